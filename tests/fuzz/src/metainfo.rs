//! Metainfo: from bytes to a layout and back, and hybrids whose views disagree.

use ringseed_core::bencode::Encoder;
use ringseed_core::geometry::Kind;
use ringseed_core::merkle::{self, Hash};
use ringseed_core::metainfo::{FileEntry, Info, Metainfo};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::geometry;
use crate::source::{Source, noise, noise32};

/// Bytes that begin like a dictionary are taken as a `.torrent` file; others tell what torrent to
/// build, right or wrong.
pub fn run(data: &[u8]) {
    if data.first() == Some(&b'd') {
        if let Ok(metainfo) = Metainfo::parse(data) {
            check(&metainfo, data);
        }
        return;
    }
    let mut source = Source::new(data);
    let made = Made::from_source(&mut source);
    let bytes = made.encode();
    match (Metainfo::parse(&bytes), made.lie) {
        (Ok(metainfo), None) => {
            check(&metainfo, &bytes);
            assert_eq!(metainfo.info().kind(), made.kind);
            let payload: u64 = made.files.iter().map(|file| file.len_bytes).sum();
            assert_eq!(metainfo.info().geometry().payload_len(), payload);
            assert_eq!(metainfo.missing_layers().count(), 0);
        }
        (Err(error), None) => panic!("a right torrent is refused: {error}"),
        (Ok(_), Some(lie)) => panic!("taken although {lie:?}"),
        (Err(_), Some(_)) => {}
    }
    // And what a bad disk or a bad peer makes of it: any verdict, as long as it is one.
    let mut bytes = bytes;
    if crate::source::damage(&mut source, &mut bytes)
        && let Ok(metainfo) = Metainfo::parse(&bytes)
    {
        check(&metainfo, &bytes);
    }
}

/// What holds for every torrent that was taken.
fn check(metainfo: &Metainfo, bytes: &[u8]) {
    let info = metainfo.info();
    let raw = info.raw();
    assert!(bytes.windows(raw.len()).any(|window| window == raw), "the info dict as it came");
    let has = (info.kind().has_v1(), info.kind().has_v2());
    assert_eq!(info.info_hash_v1(), has.0.then(|| Sha1::digest(raw).into()));
    assert_eq!(info.info_hash_v2(), has.1.then(|| Sha256::digest(raw).into()));
    geometry::check(info.geometry());

    assert_eq!(info.files().len(), info.geometry().file_count() as usize);
    for (file, index) in info.files().zip(info.geometry().files()) {
        assert_eq!(file.len_bytes, info.geometry().file_len(index));
        assert_eq!(file.pad, info.geometry().is_pad(index));
        assert_eq!(file.index(), index);
        let path = file.path();
        let path = path.as_str();
        assert!(!path.starts_with('/') && path.len() <= 4096 && !path.contains('\0'), "{path:?}");
        for part in file.path().components() {
            assert!(!matches!(part, "" | "." | ".."), "{path:?} leaves its folder");
            assert!(part.len() <= 255 && !part.contains(char::is_control), "{part:?}");
        }
    }
    for piece in info.geometry().pieces().take(64) {
        assert_eq!(info.v1_piece_hash(piece).is_some(), has.0);
        if metainfo.missing_layers().next().is_none() {
            let holds_data = info.geometry().piece_data_len(piece) > 0;
            assert_eq!(metainfo.v2_piece_hash(piece).is_some(), has.1 && holds_data);
        }
    }

    let written = metainfo.encode();
    let again = Metainfo::parse(&written).expect("what we write we read");
    assert_eq!(again.info().raw(), raw);
    assert_eq!(again.encode(), written, "writing is stable");
    assert!(again.info().layer_roots().eq(info.layer_roots()));
    for root in info.layer_roots() {
        assert_eq!(again.layer(&root), metainfo.layer(&root));
    }
    let alone = Info::parse(raw).expect("the info dict alone");
    assert!(alone.files().map(told).eq(info.files().map(told)), "the info dict alone says more");
}

/// What a file's entry says.
fn told(file: FileEntry<'_>) -> (String, u64, Option<Hash>, bool, bool) {
    let path = file.path().as_str().to_owned();
    (path, file.len_bytes, file.pieces_root, file.pad, file.executable)
}

/// A rule that a made torrent breaks. Every one of them must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// A file of the v1 list has another length than in the tree.
    OtherLength,
    /// A file of the v1 list has another name than in the tree.
    OtherName,
    /// The v1 list lacks the last file of the tree.
    FileMissing,
    /// The v1 list has two files in another order than the tree.
    OtherOrder,
    /// A pad of the v1 list is a byte short, and the next file a byte early.
    PadShort,
    /// A hash too few in `pieces`.
    PieceMissing,
    /// A piece layer with a flipped bit.
    LayerFalse,
    /// A piece layer that is one hash short.
    LayerShort,
    /// The piece layer of a root that no file has.
    LayerUnknown,
}

struct MadeFile {
    name: Vec<u8>,
    len_bytes: u64,
}

/// A torrent to be written.
struct Made {
    kind: Kind,
    piece_len: u64,
    files: Vec<MadeFile>,
    tail_pad: bool,
    seed: u64,
    lie: Option<Lie>,
}

impl Made {
    fn from_source(source: &mut Source<'_>) -> Self {
        let kind = *source.pick(&[Kind::Hybrid, Kind::V1, Kind::V2]);
        let piece_len = match kind {
            Kind::V1 => 1024 + u64::from(source.u16()),
            _ => 16_384 << source.below(3),
        };
        let mut files = Vec::new();
        for index in 0..1 + source.below(5) {
            let len_bytes = match source.below(4) {
                0 => 0,
                1 => u64::from(source.byte()),
                2 => piece_len * source.below(5) as u64,
                _ => u64::from(source.u16()) * 3,
            };
            // In the order of the tree, all different.
            files.push(MadeFile { name: format!("{index}{}", source.below(9)).into(), len_bytes });
        }
        files[0].len_bytes = files[0].len_bytes.max(1);
        let (tail_pad, seed) = (source.flag(), source.u64());
        let mut made = Self { kind, piece_len, files, tail_pad, seed, lie: None };
        let layered = made.files.iter().position(|file| file.len_bytes > made.piece_len);
        let several = made.files.len() > 1;
        let padded = made.files.iter().rposition(|file| file.len_bytes > 0).is_some_and(|last| {
            made.files[..last].iter().any(|file| file.len_bytes % made.piece_len != 0)
        });
        let lie = match (made.kind, source.below(16)) {
            (Kind::Hybrid, 1) => Some(Lie::OtherLength),
            (Kind::Hybrid, 2) => Some(Lie::OtherName),
            (Kind::Hybrid, 3) if several => Some(Lie::FileMissing),
            (Kind::Hybrid, 4) if several => Some(Lie::OtherOrder),
            (Kind::Hybrid, 5) if padded => Some(Lie::PadShort),
            (Kind::Hybrid | Kind::V1, 6) => Some(Lie::PieceMissing),
            (Kind::Hybrid | Kind::V2, 7) if layered.is_some() => Some(Lie::LayerFalse),
            (Kind::Hybrid | Kind::V2, 8) if layered.is_some() => Some(Lie::LayerShort),
            (Kind::Hybrid | Kind::V2, 9) => Some(Lie::LayerUnknown),
            _ => None,
        };
        made.lie = lie;
        made
    }

    fn lies(&self, lie: Lie) -> bool {
        self.lie == Some(lie)
    }

    /// Root and piece layer of a file: the layer is made up, the root follows from it.
    fn tree_of(&self, index: usize) -> Option<(Hash, Vec<Hash>)> {
        let len_bytes = self.files[index].len_bytes;
        let seed = self.seed ^ (index as u64 + 1) << 32;
        let pieces = len_bytes.div_ceil(self.piece_len);
        match pieces {
            0 => None,
            1 => Some((noise32(seed), Vec::new())),
            _ => {
                let layer: Vec<Hash> =
                    (0..pieces).map(|piece| noise32(seed.wrapping_add(piece))).collect();
                let number = merkle::piece_layer_number(self.piece_len as u32);
                Some((merkle::root_from_layer(&layer, number), layer))
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.dict().key(b"info").dict();
        if self.kind.has_v2() {
            out.key(b"file tree").dict();
            for (index, file) in self.files.iter().enumerate() {
                out.key(&file.name).dict().key(b"").dict().key(b"length").int(file.len_bytes);
                if let Some((root, _)) = self.tree_of(index) {
                    out.key(b"pieces root").bytes(&root);
                }
                out.end().end();
            }
            out.end();
        }
        let mut total_bytes = 0;
        if self.kind.has_v1() {
            out.key(b"files").list();
            for (name, len_bytes) in self.v1_list() {
                total_bytes += len_bytes;
                out.dict();
                if name.is_none() {
                    out.key(b"attr").bytes(b"p");
                }
                out.key(b"length").int(len_bytes).key(b"path").list();
                match name {
                    Some(name) => out.bytes(&name),
                    None => out.bytes(b".pad").bytes(len_bytes.to_string().as_bytes()),
                };
                out.end().end();
            }
            out.end();
        }
        if self.kind.has_v2() {
            out.key(b"meta version").int(2);
        }
        out.key(b"name").bytes(b"made").key(b"piece length").int(self.piece_len);
        if self.kind.has_v1() {
            let count = total_bytes.div_ceil(self.piece_len) as usize;
            let count = count - usize::from(self.lies(Lie::PieceMissing));
            out.key(b"pieces").bytes(&noise(self.seed, count * 20));
        }
        out.end();
        if self.kind.has_v2() {
            out.key(b"piece layers").dict();
            let mut layers: Vec<_> = (0..self.files.len())
                .filter_map(|index| self.tree_of(index))
                .filter(|(_, layer)| !layer.is_empty())
                .collect();
            if let Some((_, layer)) = layers.first_mut() {
                layer[0][0] ^= u8::from(self.lies(Lie::LayerFalse));
                if self.lies(Lie::LayerShort) {
                    layer.pop();
                }
            }
            if self.lies(Lie::LayerUnknown) {
                layers.push((noise32(self.seed.wrapping_add(99)), vec![[7; 32]; 2]));
            }
            layers.sort();
            for (root, layer) in layers {
                out.key(&root).bytes(layer.as_flattened());
            }
            out.end();
        }
        out.end();
        out.finish()
    }

    /// Files and pads of the v1 view, with what is false in it; a pad has no name.
    fn v1_list(&self) -> Vec<(Option<Vec<u8>>, u64)> {
        let mut list = Vec::new();
        let mut pad = 0;
        let mut short = self.lies(Lie::PadShort);
        for file in &self.files {
            if file.len_bytes > 0 {
                if pad > 0 && self.kind == Kind::Hybrid {
                    list.push((None, pad - u64::from(short)));
                    short = false;
                }
                pad = (self.piece_len - file.len_bytes % self.piece_len) % self.piece_len;
            }
            list.push((Some(file.name.clone()), file.len_bytes));
        }
        match self.lie {
            Some(Lie::OtherLength) => list[0].1 += 1,
            Some(Lie::OtherName) => list[0].0 = Some(b"zz".to_vec()),
            Some(Lie::FileMissing) => while list.pop().is_some_and(|(name, _)| name.is_none()) {},
            Some(Lie::OtherOrder) => {
                let last = list.len() - 1;
                list.swap(0, last);
            }
            _ if self.tail_pad && pad > 0 && self.kind == Kind::Hybrid => list.push((None, pad)),
            _ => {}
        }
        list
    }
}
