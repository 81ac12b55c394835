//! The info dictionary: what the info hash covers.

use std::ops::Range;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::names::{self, RelPath};
use super::tree::{Attr, RawFile, read_tree};
use super::{INFO_LEN_MAX, LIMITS, MetainfoError};
use crate::bencode::{Document, KeyOrder, Limits, Value};
use crate::geometry::{FileSpan, Geometry, Kind, PieceIndex};
use crate::merkle::{self, Hash};

/// A file of a torrent, or a pad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Where the file lies in the folder that holds the torrent. The torrent's name comes first,
    /// unless the torrent is v2 and a lone file: that one lies there under its own name (BEP 52).
    /// Of a pad: a name that is never used, for pads lie on no disk.
    pub path: RelPath,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Root of the file's tree (BEP 52). `None` without a v2 view, and of empty files and pads.
    pub pieces_root: Option<Hash>,
    /// A pad of BEP 47.
    pub pad: bool,
    /// The file may be run (BEP 47).
    pub executable: bool,
}

/// An info dictionary that keeps all the rules, with what follows from it: the geometry and the
/// info hashes.
#[derive(Clone, Debug)]
pub struct Info {
    raw: Box<[u8]>,
    name: Box<str>,
    private: bool,
    files: Box<[FileEntry]>,
    geometry: Geometry,
    /// Where `pieces` lies in `raw`; empty without a v1 view.
    pieces: Range<usize>,
    hash_v1: Option<[u8; 20]>,
    hash_v2: Option<Hash>,
    /// Roots of files longer than a piece, sorted, each once, with the number of pieces.
    layered: Box<[(Hash, u32)]>,
}

impl Info {
    /// Reads an info dictionary, as BEP 9 brings it. The caller compares its hash.
    ///
    /// # Errors
    /// [`MetainfoError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        if bytes.len() > INFO_LEN_MAX {
            return Err(MetainfoError::InfoTooLong { len_bytes: bytes.len() });
        }
        let limits = Limits { len_max_bytes: INFO_LEN_MAX, ..LIMITS };
        let document = Document::parse(bytes, limits, KeyOrder::Lenient)?;
        let info = Self::from_value(document.root())?;
        match document.first_unsorted() {
            Some(offset) if info.kind().has_v2() => Err(MetainfoError::NotCanonical { offset }),
            _ => Ok(info),
        }
    }

    /// The caller refuses keys out of order, should there be a v2 view.
    pub(super) fn from_value(info: Value<'_, '_>) -> Result<Self, MetainfoError> {
        info.as_dict().ok_or(MetainfoError::WrongValue { key: "info" })?;
        let raw = info.raw();
        if raw.len() > INFO_LEN_MAX {
            return Err(MetainfoError::InfoTooLong { len_bytes: raw.len() });
        }
        let kind = read_kind(info)?;
        let name = need(info, "name")?;
        let name = name.as_bytes().ok_or(MetainfoError::WrongValue { key: "name" })?;
        let piece_len = need(info, "piece length")?.as_u64();
        let piece_len = piece_len.ok_or(MetainfoError::WrongValue { key: "piece length" })?;

        let tree = if kind.has_v2() { read_tree(need(info, "file tree")?)? } else { Vec::new() };
        // In a v2 torrent one file at the top of the tree is all there is: no folder around it.
        let is_lone = matches!(&tree[..], [file] if file.path.len() == 1);
        let (list, has_folder) = match kind {
            Kind::V2 => (None, !is_lone),
            Kind::V1 | Kind::Hybrid => (Some(read_list(info, name)?), info.get(b"files").is_some()),
        };
        let raw_files = match list {
            Some(mut list) => {
                if kind == Kind::Hybrid {
                    marry(&mut list, &tree, piece_len)?;
                }
                list
            }
            None => tree,
        };
        let files = to_entries(&raw_files, name, has_folder)?;
        names::check_distinct(files.iter().filter(|file| !file.pad).map(|file| &file.path))?;
        let spans: Vec<FileSpan> = files
            .iter()
            .map(|file| FileSpan { len_bytes: file.len_bytes, pad: file.pad })
            .collect();
        let geometry = Geometry::new(piece_len, &spans, kind)?;
        let pieces = if kind.has_v1() { read_pieces(info, &geometry)? } else { 0..0 };
        let layered = collect_layered(&files, &geometry)?;
        Ok(Self {
            raw: raw.into(),
            name: names::component(name)?.into(),
            private: info.get(b"private").and_then(|value| value.as_int()) == Some(1),
            files: files.into(),
            geometry,
            pieces,
            hash_v1: kind.has_v1().then(|| Sha1::digest(raw).into()),
            hash_v2: kind.has_v2().then(|| Sha256::digest(raw).into()),
            layered,
        })
    }

    /// The v1 view alone, as a client sees it that knows nothing of v2; `None` without one. Whoever has
    /// only the SHA-1 of a hybrid was promised no more than that, and its v1 peers can give no more.
    pub fn v1_view(&self) -> Option<Self> {
        self.hash_v1?;
        let mut files = self.files.clone();
        files.iter_mut().for_each(|file| file.pieces_root = None);
        let span = |file: &FileEntry| FileSpan { len_bytes: file.len_bytes, pad: file.pad };
        let spans: Vec<FileSpan> = files.iter().map(span).collect();
        let piece_len = u64::from(self.piece_len_bytes());
        // What is a good layout of a hybrid is one of v1, whose rules are fewer.
        let geometry = Geometry::new(piece_len, &spans, Kind::V1).ok()?;
        let layered = Box::default();
        Some(Self { files, geometry, hash_v2: None, layered, ..self.clone() })
    }

    /// The torrent's name, mapped like every name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which views the torrent has.
    pub fn kind(&self) -> Kind {
        self.geometry.kind()
    }

    /// Length of a piece, in bytes.
    pub fn piece_len_bytes(&self) -> u32 {
        self.geometry.piece_len_nominal()
    }

    /// The layer of a file's tree where a node covers a piece. 0 without a v2 view.
    pub fn piece_layer_number(&self) -> u32 {
        if self.kind().has_v2() { merkle::piece_layer_number(self.piece_len_bytes()) } else { 0 }
    }

    /// Peers come from nowhere but the torrent's own trackers (BEP 27).
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// The files in order, with explicit pads; a file's place is its
    /// [`FileIndex`](crate::geometry::FileIndex).
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// Where pieces, blocks and files lie.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The dictionary as it came.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// SHA-1 of a piece. `None` without a v1 view.
    pub fn v1_piece_hash(&self, piece: PieceIndex) -> Option<&[u8; 20]> {
        let (hashes, _) = self.raw[self.pieces.clone()].as_chunks::<20>();
        hashes.get(piece.get() as usize)
    }

    /// SHA-1 of the dictionary (BEP 3). `None` without a v1 view.
    pub fn info_hash_v1(&self) -> Option<[u8; 20]> {
        self.hash_v1
    }

    /// SHA-256 of the dictionary (BEP 52): the identity of a listing. `None` without a v2 view.
    pub fn info_hash_v2(&self) -> Option<Hash> {
        self.hash_v2
    }

    /// The ids by which peers name the torrent in a handshake: SHA-1, then SHA-256 cut to 20 bytes.
    pub fn wire_ids(&self) -> impl Iterator<Item = [u8; 20]> + use<> {
        let v2 = self.hash_v2.map(|hash| truncate(&hash));
        self.hash_v1.into_iter().chain(v2)
    }

    /// How many pieces the files with this root have, if they have a piece layer at all.
    pub fn layer_len(&self, root: &Hash) -> Option<u32> {
        let at = self.layered.binary_search_by_key(&root, |(root, _)| root).ok()?;
        Some(self.layered[at].1)
    }

    /// Roots of all files longer than a piece, each once.
    pub fn layer_roots(&self) -> impl ExactSizeIterator<Item = Hash> + '_ {
        self.layered.iter().map(|(root, _)| *root)
    }
}

/// A v2 info hash as it stands in a handshake (BEP 52).
pub fn truncate(hash: &Hash) -> [u8; 20] {
    *hash.first_chunk().expect("20 is less than 32")
}

fn need<'d, 'a>(dict: Value<'d, 'a>, key: &'static str) -> Result<Value<'d, 'a>, MetainfoError> {
    dict.get(key.as_bytes()).ok_or(MetainfoError::Missing { key })
}

/// BEP 52 wants the version looked at before anything else.
fn read_kind(info: Value<'_, '_>) -> Result<Kind, MetainfoError> {
    let has = |key: &[u8]| info.get(key).is_some();
    let is_v2 = match info.get(b"meta version") {
        Some(version) => match version.as_int() {
            Some(2) => true,
            Some(found) => return Err(MetainfoError::MetaVersion { found }),
            None => return Err(MetainfoError::WrongValue { key: "meta version" }),
        },
        None => false,
    };
    let has_list = has(b"files") || has(b"length");
    match (is_v2, has(b"file tree"), has(b"pieces"), has_list) {
        (true, true, true, true) => Ok(Kind::Hybrid),
        (true, true, false, false) => Ok(Kind::V2),
        (false, false, true, true) => Ok(Kind::V1),
        (true, false, _, _) => Err(MetainfoError::View("a meta version without a file tree")),
        (false, true, _, _) => Err(MetainfoError::View("a file tree without a meta version")),
        (_, _, true, false) => Err(MetainfoError::View("v1 pieces without files")),
        (_, _, false, true) => Err(MetainfoError::View("v1 files without pieces")),
        (false, false, false, false) => Err(MetainfoError::View("neither a v1 nor a v2 view")),
    }
}

/// The v1 view's files: `length`, or the list in `files`.
fn read_list<'a>(info: Value<'_, 'a>, name: &'a [u8]) -> Result<Vec<RawFile<'a>>, MetainfoError> {
    let length = |entry: Value<'_, '_>| {
        let wrong = MetainfoError::WrongValue { key: "length" };
        need(entry, "length")?.as_u64().ok_or(wrong)
    };
    let make = |path, entry, file_index| {
        let attr = Attr::of(entry)?;
        if attr.symlink {
            return Err(MetainfoError::Symlink { file_index });
        }
        let (pad, executable) = (attr.pad, attr.executable);
        Ok(RawFile { path, len_bytes: length(entry)?, pieces_root: None, pad, executable })
    };
    let Some(files) = info.get(b"files") else {
        return Ok(vec![make(vec![name], info, 0)?]);
    };
    if info.get(b"length").is_some() {
        return Err(MetainfoError::View("both a length and a list of files"));
    }
    let files = files.as_list().ok_or(MetainfoError::WrongValue { key: "files" })?;
    let wrong_path = MetainfoError::WrongValue { key: "path" };
    files
        .enumerate()
        .map(|(file_index, entry)| {
            entry.as_dict().ok_or(MetainfoError::WrongValue { key: "files" })?;
            let path = need(entry, "path")?.as_list().ok_or(wrong_path.clone())?;
            let path: Option<Vec<&[u8]>> = path.map(|part| part.as_bytes()).collect();
            make(path.ok_or(wrong_path.clone())?, entry, file_index)
        })
        .collect()
}

/// Checks that the v1 list and the v2 tree of a hybrid tell of the same files in the same places,
/// and gives the list the roots of the tree. Every file with bytes begins with a piece, by one pad
/// in front of it where that takes one; the pad behind the last file is optional (libtorrent wrote
/// hybrids without it until 2.0.7, and with it since).
fn marry(
    list: &mut [RawFile<'_>],
    tree: &[RawFile<'_>],
    piece_len: u64,
) -> Result<(), MetainfoError> {
    let mut twins = tree.iter();
    // Bytes up to the next piece, and whether a pad has filled them.
    let mut gap = 0_u64;
    for (file_index, file) in list.iter_mut().enumerate() {
        let wrong = |reason| Err(MetainfoError::Hybrid { file_index, reason });
        if file.pad {
            if file.len_bytes == 0 || file.len_bytes != gap {
                return wrong("is a pad that does not end with a piece");
            }
            gap = 0;
            continue;
        }
        let Some(twin) = twins.next() else {
            return wrong("is not in the v2 tree");
        };
        if file.path != twin.path {
            return wrong("has another path than in the v2 tree");
        }
        if file.len_bytes != twin.len_bytes {
            return wrong("has another length than in the v2 tree");
        }
        if file.len_bytes > 0 {
            if gap > 0 {
                return wrong("does not begin with a piece");
            }
            // A piece length of zero is refused with the geometry.
            let tail = file.len_bytes.checked_rem(piece_len).unwrap_or(0);
            gap = if tail == 0 { 0 } else { piece_len - tail };
        }
        file.pieces_root = twin.pieces_root;
    }
    match twins.next() {
        Some(_) => {
            let file_index = list.len();
            Err(MetainfoError::Hybrid { file_index, reason: "is missing" })
        }
        None => Ok(()),
    }
}

fn to_entries(
    raw_files: &[RawFile<'_>],
    name: &[u8],
    has_folder: bool,
) -> Result<Vec<FileEntry>, MetainfoError> {
    let entry = |file: &RawFile<'_>| {
        let inside = file.path.iter().copied();
        let path = if file.path.is_empty() {
            return Err(names::NameError::Empty.into());
        } else if file.pad {
            // Pads of one length share a name in the wild, and nobody opens them.
            RelPath::new([&b".pad"[..], file.len_bytes.to_string().as_bytes()])?
        } else if has_folder {
            RelPath::new(std::iter::once(name).chain(inside))?
        } else {
            RelPath::new(inside)?
        };
        Ok(FileEntry {
            path,
            len_bytes: file.len_bytes,
            pieces_root: file.pieces_root,
            pad: file.pad,
            executable: file.executable,
        })
    };
    raw_files.iter().map(entry).collect()
}

fn read_pieces(info: Value<'_, '_>, geometry: &Geometry) -> Result<Range<usize>, MetainfoError> {
    let value = need(info, "pieces")?;
    let pieces = value.as_bytes().ok_or(MetainfoError::WrongValue { key: "pieces" })?;
    let expected_bytes = u64::from(geometry.piece_count()) * 20;
    if pieces.len() as u64 != expected_bytes {
        return Err(MetainfoError::PiecesLen { expected_bytes, found_bytes: pieces.len() });
    }
    // The string's bytes end where its value ends.
    let end = value.span().end - info.span().start;
    Ok(end - pieces.len()..end)
}

fn collect_layered(
    files: &[FileEntry],
    geometry: &Geometry,
) -> Result<Box<[(Hash, u32)]>, MetainfoError> {
    let piece_len = u64::from(geometry.piece_len_nominal());
    let mut all: Vec<(Hash, u64, bool)> = files
        .iter()
        .filter_map(|file| {
            let pieces = file.len_bytes.div_ceil(piece_len);
            file.pieces_root.map(|root| (root, pieces, pieces > 1))
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    // Equal roots mean equal bytes. Two lengths for one root are a lie about one of the files, and
    // with two numbers of pieces no layer could serve both.
    if all.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(MetainfoError::RootShared);
    }
    let layered = all.into_iter().filter(|(_, _, has_layer)| *has_layer);
    Ok(layered.map(|(root, pieces, _)| (root, pieces as u32)).collect()) // at most 2^21
}
