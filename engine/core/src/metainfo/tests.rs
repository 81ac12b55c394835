use std::path::PathBuf;

use proptest::prelude::*;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::create::{Builder, CreateError, Layout, Source, SourceFile};
use super::names::NameError;
use super::*;
use crate::geometry::{BLOCK_LEN, Kind};

fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/metainfo")
}

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lines of `infohashes.txt`.
fn index() -> Vec<[String; 4]> {
    let text = String::from_utf8(vector("infohashes.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
            columns.try_into().unwrap()
        })
        .collect()
}

/// What libtorrent made parses to the hashes and paths that libtorrent gives, and comes out again.
#[test]
fn torrents_of_libtorrent_are_read_alike() {
    let index = index();
    assert!(index.len() > 30);
    for [file, v1, v2, paths] in index {
        let metainfo = Metainfo::parse(&vector(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let info = metainfo.info();
        let or_dash = |hash: Option<String>| hash.unwrap_or_else(|| "-".to_owned());
        assert_eq!(or_dash(info.info_hash_v1().map(|hash| hex(&hash))), v1, "{file}");
        assert_eq!(or_dash(info.info_hash_v2().map(|hash| hex(&hash))), v2, "{file}");
        let ids: Vec<String> = info.wire_ids().map(|id| hex(&id)).collect();
        let wanted = [v1, v2.chars().take(40).collect()];
        assert_eq!(ids, wanted.into_iter().filter(|id| id != "-").collect::<Vec<_>>());
        let files = info.files().filter(|file| !file.pad);
        let found: Vec<String> = files.map(|file| file.path().to_string()).collect();
        assert_eq!(found.join("|"), paths, "{file}");
        assert_eq!(metainfo.missing_layers().count(), 0, "{file}");
        assert_eq!(metainfo.first_unsorted(), None);
        assert_eq!(info.is_private(), file.contains("-hybrid-") && !file.contains("no-tail"));

        let again = Metainfo::parse(&metainfo.encode()).unwrap();
        assert_eq!(again.info().raw(), info.raw());
        assert_eq!(again.encode(), metainfo.encode());
        assert_eq!(again.announce(), metainfo.announce());
        let by_peers = Info::parse(info.raw()).unwrap();
        assert_eq!(by_peers.info_hash_v1(), info.info_hash_v1());
        for piece in info.geometry().pieces() {
            assert_eq!(by_peers.v1_piece_hash(piece), info.v1_piece_hash(piece));
            assert_eq!(info.v1_piece_hash(piece).is_some(), info.kind().has_v1());
            assert_eq!(metainfo.v2_piece_hash(piece).is_some(), info.kind().has_v2());
        }
    }
}

#[test]
fn a_hybrid_in_another_order_is_refused() {
    let refused = Metainfo::parse(&vector("refused-badorder-hybrid-16k.torrent"));
    let reason = "has another path than in the v2 tree";
    assert_eq!(refused.err(), Some(MetainfoError::Hybrid { file_index: 0, reason }));
}

/// Byte-wise truncations and flips of real torrents end in an error or a torrent, never a panic.
#[test]
fn damage_never_panics() {
    for name in ["tree-hybrid-16k.torrent", "tree-v1-pads-64k.torrent", "onefile-v2-16k.torrent"] {
        let bytes = vector(name);
        for cut in 0..bytes.len() {
            assert!(Metainfo::parse(&bytes[..cut]).is_err());
        }
        for at in 0..bytes.len() {
            for flip in [1, 2, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                if let Ok(metainfo) = Metainfo::parse(&bytes) {
                    assert!(Metainfo::parse(&metainfo.encode()).is_ok());
                }
            }
        }
    }
}

/// The content that `infohashes.txt` describes.
fn content(seed: u32, len: usize) -> Vec<u8> {
    let digests = (0..).flat_map(|at| Sha256::digest(format!("{seed}-{at}").as_bytes()));
    digests.take(len).collect()
}

struct Content {
    name: &'static str,
    source: Source,
    /// By the place in the source.
    bytes: Vec<Vec<u8>>,
}

fn folder(name: &'static str, files: &[(&str, bool, Vec<u8>)]) -> Content {
    let source = files.iter().map(|(path, executable, bytes)| SourceFile {
        path: path.split('/').map(|part| part.as_bytes().to_vec()).collect(),
        len_bytes: bytes.len() as u64,
        executable: *executable,
    });
    let bytes = files.iter().map(|(_, _, bytes)| bytes.clone()).collect();
    Content { name, source: Source::Folder(source.collect()), bytes }
}

fn lone(name: &'static str, bytes: Vec<u8>) -> Content {
    let source = Source::File { len_bytes: bytes.len() as u64, executable: false };
    Content { name, source, bytes: vec![bytes] }
}

fn tree() -> Content {
    folder(
        "tree",
        &[
            ("z.sh", true, content(6, 100)),
            ("b.txt", false, content(2, 20_000)),
            ("ümläut 日.txt", false, content(7, 40_000)),
            ("a/empty", false, Vec::new()),
            ("zz/exact", false, content(5, 65_536)),
            ("ab", false, content(4, 1)),
            ("a/deep/er.bin", false, content(3, 70_000)),
        ],
    )
}

fn build(content: &Content, kind: Kind, piece_len: Option<u64>) -> Metainfo {
    let layout = Layout::choose(content.name.as_bytes(), &content.source, kind, piece_len).unwrap();
    let geometry = layout.geometry().clone();
    let of_file = |file: usize| layout.files()[file].source_index.map(|at| &content.bytes[at][..]);
    let mut builder = Builder::new(layout.clone());
    for piece in geometry.pieces() {
        let mut bytes = Vec::new();
        let (offset, len) = (geometry.piece_offset(piece), geometry.piece_len(piece));
        for slice in geometry.slices(offset, u64::from(len)) {
            if slice.pad {
                bytes.resize(bytes.len() + slice.len as usize, 0);
            } else {
                let file = of_file(slice.file.get() as usize).unwrap();
                bytes.extend(&file[slice.file_offset as usize..][..slice.len as usize]);
            }
        }
        builder.set_piece(piece, Sha1::digest(&bytes).into());
    }
    if kind.has_v2() {
        for file in geometry.files().filter(|&file| !geometry.is_pad(file)) {
            let bytes = of_file(file.get() as usize).unwrap();
            let leaves: Vec<_> = bytes.chunks(BLOCK_LEN as usize).map(merkle::leaf).collect();
            builder.set_leaves(file, &leaves).unwrap();
        }
    }
    builder.finish().unwrap()
}

/// Our builder and libtorrent make the same info dictionary, to the byte, wherever both sort alike.
#[test]
fn torrents_are_made_as_libtorrent_makes_them() {
    let single = lone("single.bin", content(1, 300_000));
    let small = lone("single small", content(9, 100));
    let onefile = folder("onefile", &[("only.bin", false, content(8, 33_000))]);
    let badorder =
        folder("badorder", &[("a-b", false, content(11, 5)), ("a/x", false, content(10, 20_000))]);
    let both = [(16_384, "16k"), (65_536, "64k")];
    let (v1, v2, hybrid) = ((Kind::V1, "v1"), (Kind::V2, "v2"), (Kind::Hybrid, "hybrid-no-tail"));
    let cases = [
        (&single, "single", &[v1, v2, hybrid][..]),
        (&small, "single-small", &[v1, v2, hybrid]),
        (&onefile, "onefile", &[v1, hybrid]),
        (&tree(), "tree", &[v2, hybrid]),
        (&badorder, "badorder", &[v2]),
    ];
    for (content, name, kinds) in cases {
        for (kind, kind_name) in kinds {
            for (piece_len, len_name) in both {
                let file = format!("{name}-{kind_name}-{len_name}.torrent");
                let theirs = Metainfo::parse(&vector(&file)).unwrap();
                let ours = build(content, *kind, Some(piece_len));
                let (ours_raw, theirs_raw) = (ours.info().raw(), theirs.info().raw());
                assert_eq!(
                    ours_raw.escape_ascii().to_string(),
                    theirs_raw.escape_ascii().to_string(),
                    "{file}"
                );
                assert!(
                    theirs
                        .info()
                        .layer_roots()
                        .all(|root| ours.layer(&root) == theirs.layer(&root))
                );
            }
        }
    }
}

/// What the builder makes stays the same to the byte, so that info hashes do not change under
/// anyone. libtorrent has read these files and gives the hashes in `infohashes.txt`.
#[test]
fn torrents_made_earlier_are_made_again() {
    let badorder =
        folder("badorder", &[("a-b", false, content(11, 5)), ("a/x", false, content(10, 20_000))]);
    let many: Vec<(String, Vec<u8>)> = (0..20)
        .map(|at| (format!("d{}/f{at}", at % 3), content(at + 100, at as usize * 7_001)))
        .collect();
    let many: Vec<(&str, bool, Vec<u8>)> =
        many.iter().map(|(path, bytes)| (&**path, false, bytes.clone())).collect();
    let many = folder("many", &many);
    let one = lone("one", content(50, 1_000_000));
    for (content, name) in [(&badorder, "badorder"), (&many, "many"), (&one, "one")] {
        for (kind, suffix) in [(Kind::V1, "v1"), (Kind::V2, "v2"), (Kind::Hybrid, "hybrid")] {
            let made = build(content, kind, None).encode();
            let file = format!("ours-{name}-{suffix}.torrent");
            assert_eq!(made.escape_ascii().to_string(), vector(&file).escape_ascii().to_string());
        }
    }
}

#[test]
fn a_lone_file_of_a_folder_needs_a_v1_view() {
    let onefile = folder("onefile", &[("only.bin", false, content(8, 33_000))]);
    let refused = Layout::choose(b"onefile", &onefile.source, Kind::V2, None).err();
    assert_eq!(refused, Some(CreateError::LoneFile { name: "onefile".to_owned() }));
}

#[test]
fn names_that_would_change_are_not_put_into_a_torrent() {
    let make = |name: &[u8], path: &[&[u8]]| {
        let path = path.iter().map(|part| part.to_vec()).collect();
        let files = vec![SourceFile { path, len_bytes: 1, executable: false }];
        Layout::choose(name, &Source::Folder(files), Kind::Hybrid, None).err()
    };
    assert_eq!(make(b"x", &[b"a", b"b"]), None);
    assert!(matches!(make(b"x", &[b"a\\b"]), Some(CreateError::NameMapped { .. })));
    assert!(matches!(make(b"x\xff", &[b"a"]), Some(CreateError::NameMapped { .. })));
    assert!(matches!(make(b"x", &[b"a", b".."]), Some(CreateError::Name { .. })));
    assert!(matches!(make(b"..", &[b"a"]), Some(CreateError::Name { .. })));
    // The name in front counts for the depth.
    assert!(matches!(make(b"x", &[&b"a"[..]; 32]), Some(CreateError::Name { .. })));
}

fn sizes(lens: &[u64]) -> Source {
    if let &[len_bytes] = lens {
        return Source::File { len_bytes, executable: false };
    }
    let file = |(at, &len_bytes): (usize, &u64)| SourceFile {
        path: vec![format!("{at:07}").into_bytes()],
        len_bytes,
        executable: false,
    };
    Source::Folder(lens.iter().enumerate().map(file).collect())
}

#[test]
fn piece_lengths_follow_the_files() {
    let choose = |lens: &[u64], kind| {
        let layout = Layout::choose(b"x", &sizes(lens), kind, None).unwrap();
        (layout.geometry().piece_len_nominal() / 1024, layout.is_mostly_small_files())
    };
    const K: u64 = 1024;
    const M: u64 = 1024 * K;
    const G: u64 = 1024 * M;
    assert_eq!(choose(&[1], Kind::Hybrid), (16, false));
    assert_eq!(choose(&[3 * G], Kind::Hybrid), (2048, false));
    assert_eq!(choose(&[1024 * G], Kind::Hybrid), (16 * 1024, false));
    // Past 2 MiB of digests there is no help: the longest piece that is chosen unasked.
    assert_eq!(choose(&[20_000 * G], Kind::V1), (16 * 1024, false));
    // So many pieces are not allowed: longer ones then.
    assert_eq!(choose(&[60_000 * G], Kind::V2), (32 * 1024, false));
    // Nonsense ends in an error.
    for lens in [vec![u64::MAX; 3], vec![1 << 46, 1]] {
        let refused = Layout::choose(b"x", &sizes(&lens), Kind::V1, None).err();
        assert!(matches!(refused, Some(CreateError::Geometry(_))), "{refused:?}");
    }
    // Medium files: pads would eat more than a tenth with longer pieces.
    let (piece_len, small) = choose(&vec![300 * K; 10_000], Kind::Hybrid);
    assert!(!small && piece_len <= 128, "{piece_len}");
    // v1 has no pads, so only the total counts.
    assert_eq!(choose(&vec![300 * K; 10_000], Kind::V1), (2048, false));
    // Tiny files: nothing helps, and it is said.
    assert_eq!(choose(&vec![100; 1000], Kind::Hybrid), (16, true));
    // A giant among dwarfs: the digests decide, for the pads are few beside it.
    let mut mixed = vec![100; 1000];
    mixed.push(500 * G);
    let (piece_len, small) = choose(&mixed, Kind::Hybrid);
    assert!(!small && piece_len >= 4096, "{piece_len}");
}

/// The info dictionary stays below 2 MiB where the estimate says so.
#[test]
fn the_estimate_of_the_info_dictionary_is_not_low() {
    let lens: Vec<u64> = (0..300).map(|at| at * 1000 + 1).collect();
    for kind in [Kind::V1, Kind::V2, Kind::Hybrid] {
        let layout = Layout::choose(b"x", &sizes(&lens), kind, Some(16_384)).unwrap();
        let mut builder = Builder::new(layout.clone());
        for piece in layout.geometry().pieces() {
            builder.set_piece(piece, [1; 20]);
        }
        for file in layout.geometry().files().filter(|&file| !layout.geometry().is_pad(file)) {
            let count = layout.geometry().pieces_of_file(file).len();
            // Roots must differ, for the lengths do.
            let leaf = merkle::leaf(&file.get().to_be_bytes());
            if kind.has_v2() {
                builder.set_piece_layer(file, &vec![leaf; count]).unwrap();
            }
        }
        let metainfo = builder.finish().unwrap();
        let pieces = if kind.has_v1() { 20 * layout.geometry().piece_count() as usize } else { 0 };
        let files = layout.files().iter().filter(|file| file.source_index.is_some());
        let names = create::names_len(&files.cloned().collect::<Vec<_>>(), kind) as usize;
        let real = metainfo.info().raw().len();
        assert!(
            (real..real * 3 / 2).contains(&(names + pieces)),
            "{kind:?} {real} {names} {pieces}"
        );
    }
}

#[test]
fn a_builder_wants_all_digests() {
    let layout = Layout::choose(b"x", &sizes(&[20_000, 0, 40_000]), Kind::Hybrid, None).unwrap();
    let geometry = layout.geometry().clone();
    let mut builder = Builder::new(layout);
    assert_eq!(builder.finish().err(), Some(CreateError::PieceMissing { piece: 0 }));
    for piece in geometry.pieces() {
        builder.set_piece(piece, [7; 20]);
    }
    assert_eq!(builder.finish().err(), Some(CreateError::FileMissing { file_index: 0 }));
    let leaf_count = |builder: &mut Builder, file, count| {
        let file = geometry.file(file).unwrap();
        builder.set_leaves(file, &vec![[1; 32]; count]).map(|_| ()).err()
    };
    let wrong =
        |file_index, expected, found| Some(CreateError::LeafCount { file_index, expected, found });
    assert_eq!(leaf_count(&mut builder, 0, 1), wrong(0, 2, 1));
    assert_eq!(leaf_count(&mut builder, 1, 1), wrong(1, 0, 1)); // a pad
    assert_eq!(leaf_count(&mut builder, 0, 2), None);
    assert_eq!(leaf_count(&mut builder, 2, 0), None);
    assert_eq!(leaf_count(&mut builder, 3, 3), None);
    let made = builder.finish().unwrap();
    assert_eq!(made.info().kind(), Kind::Hybrid);
    let private = builder.set_private(true).finish().unwrap();
    assert!(private.info().is_private());
    assert_ne!(private.info().info_hash_v2(), made.info().info_hash_v2());
}

#[test]
fn layers_are_checked_as_they_come() {
    let made = build(&tree(), Kind::Hybrid, Some(16_384));
    let mut metainfo = Metainfo::from_info(Info::parse(made.info().raw()).unwrap());
    let missing: Vec<Hash> = metainfo.missing_layers().collect();
    assert_eq!(missing.len(), 4);
    let piece = metainfo.info().geometry().piece(0).unwrap();
    assert_eq!(metainfo.v2_piece_hash(piece), None);
    for root in missing {
        let layer = made.layer(&root).unwrap().as_flattened().to_vec();
        let mut lie = layer.clone();
        lie[5] ^= 1;
        assert_eq!(metainfo.add_layer(&root, &lie), Err(MetainfoError::LayerMismatch { root }));
        let short = metainfo.add_layer(&root, &layer[32..]);
        assert!(matches!(short, Err(MetainfoError::LayerLen { .. })));
        assert_eq!(metainfo.add_layer(&root, &layer), Ok(()));
        assert_eq!(metainfo.add_layer(&root, &layer), Ok(()));
    }
    assert_eq!(metainfo.missing_layers().count(), 0);
    assert_eq!(metainfo.v2_piece_hash(piece), made.v2_piece_hash(piece));
    let root = [9; 32];
    assert_eq!(metainfo.add_layer(&root, &[0; 64]), Err(MetainfoError::LayerUnknown { root }));
    // A layer that nobody asked for makes a file invalid, too.
    let mut bytes = made.encode();
    let at = bytes.windows(14).position(|window| window == b"12:piece layer".as_slice()).unwrap();
    let key = [b"32:".as_slice(), &[0; 32], b"32:", &[0; 32]].concat();
    let behind_d = at + b"12:piece layersd".len();
    bytes.splice(behind_d..behind_d, key);
    let refused = Metainfo::parse(&bytes).err();
    assert_eq!(refused, Some(MetainfoError::LayerUnknown { root: [0; 32] }));
}

mod hostile;
mod limits;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// What the builder makes parses, names every file once, and does so whatever order they came in.
    #[test]
    fn made_torrents_parse(
        lens in proptest::collection::vec(prop_oneof![Just(0_usize), 1_usize..100, 1_usize..70_000], 1..8),
        kind in prop_oneof![Just(Kind::V1), Just(Kind::V2), Just(Kind::Hybrid)],
        given in prop_oneof![Just(None), Just(Some(16_384_u64)), Just(Some(32_768))],
    ) {
        prop_assume!(lens.iter().any(|&len| len > 0));
        let paths = ["d/x", "a", "a.b", "c/c/c", "c/c/d", "c-d", "b", "d/a"];
        let mut files: Vec<(&str, bool, Vec<u8>)> =
            paths.iter().zip(&lens).map(|(path, &len)| (*path, len % 2 == 0, content(len as u32, len))).collect();
        let made = build(&folder("made", &files), kind, given);
        prop_assert_eq!(Metainfo::parse(&made.encode()).unwrap().encode(), made.encode());
        prop_assert_eq!(made.missing_layers().count(), 0);
        let payload: usize = lens.iter().sum();
        prop_assert_eq!(made.info().geometry().payload_len(), payload as u64);
        for entry in made.info().files().filter(|entry| !entry.pad) {
            let (_, executable, bytes) = files
                .iter()
                .find(|file| entry.path().as_str().strip_prefix("made/") == Some(file.0))
                .unwrap();
            prop_assert_eq!((entry.len_bytes, entry.executable), (bytes.len() as u64, *executable));
        }
        files.reverse();
        let again = build(&folder("made", &files), kind, given);
        prop_assert_eq!(again.info().raw(), made.info().raw());
    }
}
