//! Info dictionaries that break one rule each.

use super::*;
use crate::geometry::GeometryError;
use crate::metainfo::names::RelPath;

const ROOT: [u8; 32] = [0x52; 32];

/// A v1 list entry: path, length, attr.
type Entry = (&'static [&'static [u8]], i64, &'static [u8]);

/// Parts of an info dictionary; what is `None` is left out.
#[derive(Clone, Default)]
struct Parts {
    files: Option<Vec<Entry>>,
    length: Option<i64>,
    meta_version: Option<i64>,
    name: Option<&'static [u8]>,
    piece_len: Option<i64>,
    pieces: Option<usize>,
    /// Already encoded.
    tree: Option<Vec<u8>>,
}

impl Parts {
    fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.dict();
        if let Some(tree) = &self.tree {
            out.key(b"file tree").raw(tree);
        }
        if let Some(files) = &self.files {
            out.key(b"files").list();
            for (path, len, attr) in files {
                out.dict();
                if !attr.is_empty() {
                    out.key(b"attr").bytes(attr);
                }
                out.key(b"length").int(*len).key(b"path").list();
                for part in *path {
                    out.bytes(part);
                }
                out.end().end();
            }
            out.end();
        }
        if let Some(length) = self.length {
            out.key(b"length").int(length);
        }
        if let Some(version) = self.meta_version {
            out.key(b"meta version").int(version);
        }
        if let Some(name) = self.name {
            out.key(b"name").bytes(name);
        }
        if let Some(piece_len) = self.piece_len {
            out.key(b"piece length").int(piece_len);
        }
        if let Some(pieces) = self.pieces {
            out.key(b"pieces").bytes(&vec![1; 20 * pieces]);
        }
        out.end();
        out.finish()
    }

    fn parse(&self) -> Result<Info, MetainfoError> {
        Info::parse(&self.encode())
    }

    #[track_caller]
    fn refused(&self) -> MetainfoError {
        self.parse().expect_err("taken")
    }
}

fn v1(files: Vec<Entry>, pieces: usize) -> Parts {
    Parts {
        files: Some(files),
        name: Some(b"t"),
        piece_len: Some(16_384),
        pieces: Some(pieces),
        ..Parts::default()
    }
}

fn v2(tree: &[u8]) -> Parts {
    Parts {
        tree: Some(tree.to_vec()),
        meta_version: Some(2),
        name: Some(b"t"),
        piece_len: Some(16_384),
        ..Parts::default()
    }
}

/// A file of the tree, encoded.
fn leaf(len: i64, root: Option<&[u8]>) -> Vec<u8> {
    let mut out = Encoder::new();
    out.dict().key(b"").dict().key(b"length").int(len);
    if let Some(root) = root {
        out.key(b"pieces root").bytes(root);
    }
    out.end().end();
    out.finish()
}

fn tree_with(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let mut out = Encoder::new();
    out.dict();
    for (name, value) in entries {
        out.key(name).raw(value);
    }
    out.end();
    out.finish()
}

fn hybrid(files: Vec<Entry>, pieces: usize) -> Parts {
    let tree = tree_with(&[
        (b"a", leaf(10, Some(&ROOT))),
        (b"b", leaf(0, None)),
        (b"c", leaf(16_384, Some(&[0x53; 32]))),
        (b"d", leaf(5, Some(&[0x54; 32]))),
    ]);
    Parts { tree: Some(tree), meta_version: Some(2), ..v1(files, pieces) }
}

const A: Entry = (&[b"a"], 10, b"");
const B: Entry = (&[b"b"], 0, b"");
const C: Entry = (&[b"c"], 16_384, b"");
const D: Entry = (&[b"d"], 5, b"");
const PAD_A: Entry = (&[b".pad", b"1"], 16_374, b"p");
const PAD_D: Entry = (&[b".pad", b"2"], 16_379, b"p");

#[test]
fn hybrids_agree_or_are_refused() {
    for good in [
        vec![A, B, PAD_A, C, D],
        vec![A, PAD_A, B, C, D],
        vec![A, PAD_A, B, C, D, PAD_D],
        vec![A, PAD_A, B, (C.0, C.1, b"x"), D],
    ] {
        let info = hybrid(good.clone(), 3).parse().unwrap();
        assert_eq!(info.kind(), Kind::Hybrid);
        let roots = info.files().filter(|file| file.pieces_root.is_some()).count();
        assert_eq!((roots, info.files().len()), (3, good.len()));
    }
    let refused = |files| match hybrid(files, 3).refused() {
        MetainfoError::Hybrid { file_index, .. } => file_index,
        other => panic!("{other}"),
    };
    assert_eq!(refused(vec![A, B, C, D]), 2); // no pad
    assert_eq!(refused(vec![A, PAD_D, B, C, D]), 1); // too long
    assert_eq!(refused(vec![A, PAD_A, PAD_A, B, C, D]), 2); // twice
    assert_eq!(refused(vec![PAD_A, A, PAD_A, B, C, D]), 0); // in front
    assert_eq!(refused(vec![A, PAD_A, B, C, (&[b"p"], 16_384, b"p"), D]), 4); // a whole piece
    assert_eq!(refused(vec![A, PAD_A, B, C, (&[b"p"], 0, b"p"), D]), 4); // of nothing
    assert_eq!(refused(vec![A, PAD_A, B, C]), 4); // a file is missing
    assert_eq!(refused(vec![A, PAD_A, C, D]), 2); // an empty file is missing
    assert_eq!(refused(vec![A, PAD_A, B, C, D, PAD_D, (&[b"e"], 1, b"")]), 6); // one too many
    assert_eq!(refused(vec![B, A, PAD_A, C, D]), 0); // another order
    assert_eq!(refused(vec![(&[b"A"], 10, b""), PAD_A, B, C, D]), 0); // another name
    assert_eq!(refused(vec![(&[b"x", b"a"], 10, b""), PAD_A, B, C, D]), 0);
    assert_eq!(refused(vec![(&[b"a"], 11, b""), PAD_A, B, C, D]), 0); // another length

    // The one file of a v1 torrent is called like the torrent.
    let single = |name| Parts {
        tree: Some(tree_with(&[(b"a", leaf(10, Some(&ROOT)))])),
        files: None,
        length: Some(10),
        name: Some(name),
        ..hybrid(Vec::new(), 1)
    };
    assert_eq!(single(b"a").parse().unwrap().files().next().unwrap().path().as_str(), "a");
    assert!(matches!(single(b"t").refused(), MetainfoError::Hybrid { file_index: 0, .. }));
}

#[test]
fn half_a_view_is_none() {
    let whole = hybrid(vec![A, PAD_A, B, C, D], 3);
    let tree = whole.tree.clone().unwrap();
    let none = Parts { name: Some(b"t"), piece_len: Some(16_384), ..Parts::default() };
    let cases = [
        Parts { meta_version: None, ..whole.clone() },
        Parts { tree: None, ..whole.clone() },
        Parts { pieces: None, ..whole.clone() },
        Parts { files: None, ..whole.clone() },
        Parts { length: Some(5), ..whole.clone() },
        Parts { pieces: Some(1), ..v2(&tree) },
        Parts { length: Some(1), ..v2(&tree) },
        none,
    ];
    for (at, case) in cases.iter().enumerate() {
        assert!(matches!(case.refused(), MetainfoError::View(_)), "{at}: {}", case.refused());
    }
    for found in [-1, 0, 1, 3, i64::MAX] {
        let newer = Parts { meta_version: Some(found), ..whole.clone() };
        assert_eq!(newer.refused(), MetainfoError::MetaVersion { found });
        // The version is looked at first, whatever else is broken.
        let broken = Parts { tree: None, name: None, piece_len: None, ..newer };
        assert_eq!(broken.refused(), MetainfoError::MetaVersion { found });
    }
    let missing = |parts: Parts| match parts.refused() {
        MetainfoError::Missing { key } => key,
        other => panic!("{other}"),
    };
    assert_eq!(missing(Parts { name: None, ..whole.clone() }), "name");
    assert_eq!(missing(Parts { piece_len: None, ..whole }), "piece length");
}

#[test]
fn v1_numbers_are_checked() {
    let take = |files, pieces| v1(files, pieces).parse().map(|info| info.geometry().total_len());
    assert_eq!(take(vec![A, C], 2), Ok(16_394));
    let wrong_len =
        |expected_bytes, found_bytes| MetainfoError::PiecesLen { expected_bytes, found_bytes };
    assert_eq!(take(vec![A, C], 1), Err(wrong_len(40, 20)));
    assert_eq!(take(vec![A, C], 3), Err(wrong_len(40, 60)));
    assert_eq!(take(vec![], 0), Err(GeometryError::Empty.into()));
    assert_eq!(take(vec![B], 0), Err(GeometryError::Empty.into()));
    assert_eq!(take(vec![(&[b"a"], -1, b"")], 1), Err(MetainfoError::WrongValue { key: "length" }));
    let huge: Entry = (&[b"h"], i64::MAX, b"");
    assert_eq!(take(vec![A, huge], 1), Err(GeometryError::TooLong { file_index: 1 }.into()));
    for len in [-1, 0, 1, 1023, i64::MAX] {
        assert!(Parts { piece_len: Some(len), ..v1(vec![A], 1) }.parse().is_err());
        assert!(
            Parts { piece_len: Some(len), ..hybrid(vec![A, PAD_A, B, C, D], 3) }.parse().is_err()
        );
    }
    // Pads anywhere, of any length and name, are fine in v1.
    let odd: Entry = (&[b"..", b""], 7, b"p");
    let pads = v1(vec![odd, A, odd, odd, C, odd], 2).parse().unwrap();
    assert_eq!(pads.geometry().payload_len(), 16_394);
    assert!(
        pads.files().next().unwrap().pad
            && pads.files().next().unwrap().path().as_str().starts_with(".pad/")
    );
}

#[test]
fn links_and_bad_names_are_refused() {
    let one = |entry| v1(vec![entry], 1).refused();
    assert_eq!(one((&[b"a"], 10, b"l")), MetainfoError::Symlink { file_index: 0 });
    assert_eq!(one((&[b"a"], 10, b"xl")), MetainfoError::Symlink { file_index: 0 });
    assert_eq!(one((&[], 10, b"")), NameError::Empty.into());
    assert!(matches!(one((&[b".."], 10, b"")), MetainfoError::Name(NameError::Traversal { .. })));
    assert!(matches!(one((&[b"a/b"], 10, b"")), MetainfoError::Name(NameError::Separator { .. })));
    let name = Parts { name: Some(b".."), ..v1(vec![A], 1) };
    assert!(matches!(name.refused(), MetainfoError::Name(NameError::Traversal { .. })));
    let twice = v1(vec![A, A], 1).refused();
    assert_eq!(twice, NameError::Duplicate { path: "t/a".to_owned() }.into());
    let inside: Entry = (&[b"a", b"b"], 1, b"");
    let both = NameError::FileIsFolder { path: "t/a".to_owned() };
    assert_eq!(v1(vec![inside, A], 1).refused(), both.into());
    // Names that become one by mapping are two files of one name.
    let mapped = v1(vec![(&[b"\\"], 1, b""), (&[b"%5C"], 1, b"")], 1).refused();
    assert_eq!(mapped, NameError::Duplicate { path: "t/%5C".to_owned() }.into());
    assert_eq!(
        v1(vec![(&[b"x"], 10, b"xh")], 1).parse().map(|info| info
            .files()
            .next()
            .unwrap()
            .executable),
        Ok(true)
    );
}

#[test]
fn trees_keep_the_rules_of_bep_52() {
    let good = leaf(10, Some(&ROOT));
    let deep = |depth: usize| {
        let mut tree = good.clone();
        for _ in 0..depth {
            tree = tree_with(&[(b"d", tree)]);
        }
        tree
    };
    assert!(v2(&tree_with(&[(b"a", good.clone()), (b"b", leaf(0, None))])).parse().is_ok());
    assert_eq!(
        v2(&deep(31)).parse().map(|info| info.files().next().unwrap().path().components().count()),
        Ok(32)
    );
    assert_eq!(v2(&deep(32)).refused(), NameError::TooDeep.into());
    assert!(matches!(
        v2(&deep(1000)).refused(),
        MetainfoError::Bencode(BencodeError::TooDeep { .. })
    ));

    let linked = b"d0:d4:attr1:l6:lengthi10e11:pieces root32:RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRee";
    let padded = b"d0:d4:attr1:p6:lengthi10e11:pieces root32:RRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRee";
    let bad: &[(&str, Vec<u8>)] = &[
        ("the root is a file", good.clone()),
        ("no dictionary", b"le".to_vec()),
        ("an entry is no dictionary", b"d1:ai1ee".to_vec()),
        ("a folder is empty", b"d1:adee".to_vec()),
        ("properties are no dictionary", b"d1:ad0:i1eee".to_vec()),
        ("no length", b"d1:ad0:deee".to_vec()),
        ("negative", tree_with(&[(b"a", leaf(-1, Some(&ROOT)))])),
        ("no root", tree_with(&[(b"a", leaf(10, None))])),
        ("root of nothing", tree_with(&[(b"a", leaf(0, Some(&ROOT)))])),
        ("short root", tree_with(&[(b"a", leaf(10, Some(&ROOT[1..])))])),
        ("zero root", tree_with(&[(b"a", leaf(10, Some(&[0; 32])))])),
        ("pad", tree_with(&[(b"a", padded.to_vec())])),
        ("siblings", tree_with(&[(b"a", b"d0:d6:lengthi0ee1:xdee".to_vec())])),
    ];
    for (what, tree) in bad {
        let error = v2(tree).refused();
        assert!(matches!(error, MetainfoError::FileTree { .. }), "{what}: {error}");
    }
    let link = v2(&tree_with(&[(b"a", linked.to_vec())])).refused();
    assert_eq!(link, MetainfoError::Symlink { file_index: 0 });
    let empty = v2(b"de").refused();
    assert_eq!(empty, GeometryError::Empty.into());

    // One root for two lengths: one of the files lies.
    let lengths = [(&b"a"[..], leaf(10, Some(&ROOT))), (b"b", leaf(40_000, Some(&ROOT)))];
    assert_eq!(v2(&tree_with(&lengths)).refused(), MetainfoError::RootShared);
    let same = [(&b"a"[..], leaf(40_000, Some(&ROOT))), (b"b", leaf(40_000, Some(&ROOT)))];
    let info = v2(&tree_with(&same)).parse().unwrap();
    assert_eq!((info.layer_roots().len(), info.layer_len(&ROOT)), (1, Some(3)));
}

#[test]
fn keys_out_of_order_pass_in_v1_only() {
    let unsorted = b"d4:name1:t6:lengthi5e12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
    let info = Info::parse(unsorted).unwrap();
    assert_eq!(info.info_hash_v1(), Some(Sha1::digest(unsorted).into()));
    let outer = [b"d4:info", &unsorted[..], b"8:announce3:urle"].concat();
    let metainfo = Metainfo::parse(&outer).unwrap();
    assert_eq!(metainfo.first_unsorted(), Some(7 + 10));
    assert_eq!((metainfo.announce(), metainfo.info().raw()), (Some("url"), &unsorted[..]));

    let v2 = v2(&tree_with(&[(b"a", leaf(10, Some(&ROOT)))])).encode();
    let outer = [b"d4:info", &v2[..], b"8:announce3:urle"].concat();
    let offset = 7 + v2.len();
    assert_eq!(Metainfo::parse(&outer).err(), Some(MetainfoError::NotCanonical { offset }));
    let mut swapped = v2.clone();
    swapped.splice(1..1, *b"1:zi1e");
    let refused = Info::parse(&swapped).err();
    assert!(matches!(refused, Some(MetainfoError::NotCanonical { offset: 7 })));
}

#[test]
fn what_stands_around_the_info_is_optional_and_bounded() {
    let info = v1(vec![A], 1).encode();
    let tiers: String = (0..600).map(|_| "l1:a1:bi3ee".to_owned()).collect();
    let outer = "d8:announcei1e13:announce-listle7:comment2:ok13:creation datei5e4:info";
    let parsed = Metainfo::parse(&[outer.as_bytes(), &info, b"e"].concat()).unwrap();
    assert_eq!((parsed.announce(), parsed.comment()), (None, Some("ok")));
    assert_eq!(parsed.creation_date(), Some(5));
    let outer = format!("d13:announce-listl{tiers}e4:info");
    let parsed = Metainfo::parse(&[outer.as_bytes(), &info, b"e"].concat()).unwrap();
    assert_eq!(parsed.announce_tiers().iter().flatten().count(), TRACKERS_MAX);
    assert_eq!(Metainfo::parse(b"de").err(), Some(MetainfoError::Missing { key: "info" }));
    assert_eq!(Metainfo::parse(b"le").err(), Some(MetainfoError::WrongValue { key: "" }));
    let huge = vec![b'l'; INFO_LEN_MAX + 1];
    assert!(matches!(Info::parse(&huge).err(), Some(MetainfoError::InfoTooLong { .. })));
}

/// BEP 47: what a link points to is nobody's business here; it has no bytes and lies on no disk.
#[test]
fn links_are_left_out_and_said() {
    let link: Entry = (&[b"b"], 0, b"l");
    let metainfo = Metainfo::from_info(v1(vec![A, link, C], 2).parse().unwrap());
    let info = metainfo.info();
    let on_disk: Vec<String> =
        info.files().filter(|file| !file.pad).map(|file| file.path().to_string()).collect();
    assert_eq!(on_disk, ["t/a", "t/c"]);
    assert_eq!((info.geometry().total_len(), info.files().len()), (16_394, 3));
    assert_eq!(metainfo.notes(), [Note::Links { count: 1 }]);
    // Nor does it clash with a file of its name.
    assert!(v1(vec![B, link, A], 1).parse().is_ok());
    let linked = v1(vec![A, (&[b"b"], 1, b"l")], 1).refused();
    assert_eq!(linked, MetainfoError::Symlink { file_index: 1 });

    // A length of zero may be left out, and so may the path of a pad; but not the other way round.
    let list = |entry: &str| {
        let files = format!("d6:lengthi10e4:pathl1:aee{entry}");
        let rest = "e4:name1:t12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        Info::parse(format!("d5:filesl{files}{rest}").as_bytes()).map(|info| info.files().len())
    };
    assert_eq!(list("d4:attr1:l4:pathl1:be12:symlink pathl2:..1:aee"), Ok(2));
    assert_eq!(list("d4:attr1:p6:lengthi7ee"), Ok(2));
    assert_eq!(list("d4:attr1:p6:lengthi7e4:pathi7ee"), Ok(2));
    assert_eq!(list("d6:lengthi7e4:pathi7ee"), Err(MetainfoError::WrongValue { key: "path" }));
    assert_eq!(list("d4:pathl1:bee"), Err(MetainfoError::Missing { key: "length" }));
    assert_eq!(list("d6:lengthi7ee"), Err(MetainfoError::Missing { key: "path" }));
    // Without the letter a target means nothing.
    assert_eq!(list("d6:lengthi7e4:pathl1:be12:symlink pathl1:aee"), Ok(2));

    let in_tree = b"d0:d4:attr1:l12:symlink pathl1:aeee";
    let tree = tree_with(&[(b"a", leaf(10, Some(&ROOT))), (b"b", in_tree.to_vec())]);
    let info = v2(&tree).parse().unwrap();
    assert_eq!((info.link_count(), info.files().filter(|file| !file.pad).count()), (1, 1));
    // Both views must know it for one.
    let both =
        |attr| Parts { tree: Some(tree.clone()), ..hybrid(vec![A, PAD_A, (&[b"b"], 0, attr)], 1) };
    assert_eq!(both(b"l").parse().map(|info| info.link_count()), Ok(1));
    let reason = "is a link in one view alone";
    assert_eq!(both(b"").refused(), MetainfoError::Hybrid { file_index: 2, reason });
}

#[test]
fn what_is_odd_is_said() {
    let clash =
        v1(vec![(&[b"Read me"], 1, b""), (&[b"other"], 1, b""), (&[b"READ ME"], 1, b"")], 1);
    let [first, second] = ["t/READ ME", "t/Read me"]
        .map(|path| RelPath::new(path.split('/').map(str::as_bytes)).unwrap());
    let notes = Metainfo::from_info(clash.parse().unwrap()).notes();
    let (one, other) = (
        Note::CaseClash { first: first.clone(), second: second.clone() },
        Note::CaseClash { first: second, second: first },
    );
    assert!(notes == [one] || notes == [other], "{notes:?}");
    let unsorted = [b"d4:info", &v1(vec![A], 1).encode()[..], b"8:announce3:urle"].concat();
    let notes = Metainfo::parse(&unsorted).unwrap().notes();
    assert_eq!(notes, [Note::UnsortedKeys { offset: unsorted.len() - 16 }]);
    assert!(notes[0].to_string().contains("out of order"));
}

/// A file that was parsed and not changed comes out as it went in, whatever stands around the info
/// dictionary and in whatever order; of one that was changed, what we do not know stays too.
#[test]
fn a_torrent_comes_out_byte_for_byte() {
    let info = v1(vec![A], 1).encode();
    for (before, after) in
        [("", "8:announce3:url"), ("1:zi-7e", "4:infp0:"), ("4:abcdli1ee", "8:url-list3:url")]
    {
        let bytes = [b"d", before.as_bytes(), b"4:info", &info, after.as_bytes(), b"e"].concat();
        let mut metainfo = Metainfo::parse(&bytes).unwrap();
        assert_eq!(metainfo.encode(), bytes);
        assert_eq!(Metainfo::from_bytes(bytes.clone()).unwrap().encode(), bytes);
        metainfo.set_comment(Some("new".to_owned()));
        let changed = Metainfo::parse(&metainfo.encode()).unwrap();
        assert_eq!((changed.comment(), changed.first_unsorted()), (Some("new"), None));
        assert_eq!(changed.info().raw(), metainfo.info().raw());
        let foreign = metainfo.encode();
        for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
            assert!(foreign.windows(part.len()).any(|window| window == part.as_bytes()), "{part}");
        }
    }
}

/// Where order proves nothing, hashes of the paths do, and where these are alike, the paths.
#[test]
fn clashes_are_found_in_lists_of_any_order() {
    let take = |paths: &[&str]| {
        let mut out = Encoder::new();
        out.dict().key(b"files").list();
        for path in paths {
            out.dict().key(b"length").int(1).key(b"path").list();
            path.split('/').for_each(|part| {
                out.bytes(part.as_bytes());
            });
            out.end().end();
        }
        out.end().key(b"name").bytes(b"t").key(b"piece length").int(16_384);
        out.key(b"pieces").bytes(&[1; 20]).end();
        Info::from_bytes(out.finish()).map(|info| info.files().len())
    };
    assert_eq!(
        take(&["d2/b", "d10/a", "d1/c", "d2/a", "x", "d10/b", "d1/long name of a file"]),
        Ok(7)
    );
    let duplicate = |path: &str| Err(NameError::Duplicate { path: path.to_owned() }.into());
    let folder = |path: &str| Err(NameError::FileIsFolder { path: path.to_owned() }.into());
    assert_eq!(take(&["d2/b", "d10/a", "x", "d2/b"]), duplicate("t/d2/b"));
    assert_eq!(take(&["z", "d2/b/c", "x", "d2/b"]), folder("t/d2/b"));
    assert_eq!(take(&["z", "d2/b", "x", "d2/b/c/d"]), folder("t/d2/b"));
    // In order, but for one that is a file and a folder right behind it.
    assert_eq!(take(&["a", "b", "b/c", "d"]), folder("t/b"));
    // Lengths are part of the hash: nothing moves over the border of a component.
    assert_eq!(take(&["z", "ab/c", "a/bc", "abc", "a/b/c"]), Ok(5));
    // A mapped name is compared as it is mapped.
    assert_eq!(take(&["z", "a%5Cb", "a\\b"]), duplicate("t/a%5Cb"));
}
