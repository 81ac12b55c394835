//! The info dictionary: what the info hash covers.

use std::ops::Range;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::files::{FileEntry, FileTable, Files};
use super::names::{self, RelPath};
use super::read::{Keys, Read, Reader, need};
use super::{INFO_LEN_MAX, LIMITS, MetainfoError};
use crate::bencode::{Document, KeyOrder, Limits, Value};
use crate::geometry::{FileIndex, Geometry, Kind, PieceIndex};
use crate::merkle::{self, Hash};

/// An info dictionary that keeps all the rules, with what follows from it: the geometry and the
/// info hashes. It keeps the bytes that it was parsed from and, beside them, about five bytes per
/// file: names, piece hashes and roots are read from the bytes when they are asked for.
#[derive(Clone, Debug)]
pub struct Info {
    /// All that was parsed: the info dictionary, or the `.torrent` file that it stands in.
    bytes: Box<[u8]>,
    fields: Fields,
}

/// All that is known beside the bytes. Ranges are of these bytes.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    /// The info dictionary.
    raw: Range<usize>,
    raw_name: Range<usize>,
    name: Box<str>,
    private: bool,
    files: FileTable,
    /// Reading has proven that no two paths are one.
    are_surely_distinct: bool,
    geometry: Geometry,
    /// The bytes of `pieces`; empty without a v1 view.
    pieces: Range<usize>,
    hash_v1: Option<[u8; 20]>,
    hash_v2: Option<Hash>,
    /// Files longer than a piece, one for each root, sorted by the root.
    layered: Box<[Layered]>,
}

/// A root that has a piece layer.
#[derive(Clone, Copy, Debug)]
struct Layered {
    root_at: u32,
    piece_count: u32,
}

impl Info {
    /// Reads an info dictionary, as BEP 9 brings it. The caller compares its hash.
    ///
    /// # Errors
    /// [`MetainfoError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        Self::from_bytes(bytes.to_vec())
    }

    /// As [`Info::parse`], keeping the bytes instead of copying them.
    ///
    /// # Errors
    /// [`MetainfoError`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, MetainfoError> {
        if bytes.len() > INFO_LEN_MAX {
            return Err(MetainfoError::InfoTooLong { len_bytes: bytes.len() });
        }
        let limits = Limits { len_max_bytes: INFO_LEN_MAX, ..LIMITS };
        let document = Document::parse(&bytes, limits, KeyOrder::Lenient)?;
        let fields = Fields::read(&bytes, &document, document.root())?;
        Self::new(bytes, fields)
    }

    /// `fields` were read from `bytes`.
    ///
    /// # Errors
    /// [`NameError::Duplicate`](names::NameError::Duplicate) or
    /// [`NameError::FileIsFolder`](names::NameError::FileIsFolder).
    pub(super) fn new(bytes: Vec<u8>, fields: Fields) -> Result<Self, MetainfoError> {
        let are_surely_distinct = fields.are_surely_distinct;
        let info = Self { bytes: bytes.into(), fields };
        if !are_surely_distinct {
            let paths = info.files().filter(|file| !file.pad).map(|file| file.path());
            names::check_distinct(&paths.collect::<Vec<RelPath>>())?;
        }
        Ok(info)
    }

    /// The v1 view alone, as a client sees it that knows nothing of v2; `None` without one. Whoever has
    /// only the SHA-1 of a hybrid was promised no more than that, and its v1 peers can give no more.
    pub fn v1_view(&self) -> Option<Self> {
        self.fields.hash_v1?;
        let geometry = self.fields.geometry.v1_view();
        let files = self.fields.files.v1_view();
        let (hash_v2, layered) = (None, Box::default());
        let fields = Fields { files, geometry, hash_v2, layered, ..self.fields.clone() };
        Some(Self { bytes: self.bytes.clone(), fields })
    }

    /// The torrent's name, mapped like every name.
    pub fn name(&self) -> &str {
        &self.fields.name
    }

    /// Which views the torrent has.
    pub fn kind(&self) -> Kind {
        self.fields.geometry.kind()
    }

    /// Length of a piece, in bytes.
    pub fn piece_len_bytes(&self) -> u32 {
        self.fields.geometry.piece_len_nominal()
    }

    /// The layer of a file's tree where a node covers a piece. 0 without a v2 view.
    pub fn piece_layer_number(&self) -> u32 {
        self.fields.piece_layer_number()
    }

    /// Peers come from nowhere but the torrent's own trackers (BEP 27).
    pub fn is_private(&self) -> bool {
        self.fields.private
    }

    /// The files in order, with explicit pads; a file's place is its
    /// [`FileIndex`](crate::geometry::FileIndex).
    pub fn files(&self) -> Files<'_> {
        Files::new(self)
    }

    /// A file, by its place.
    ///
    /// # Panics
    /// If `file` belongs to another torrent.
    pub fn file(&self, file: FileIndex) -> FileEntry<'_> {
        self.fields.files.entry(self, &self.bytes, file)
    }

    pub(super) fn path(&self, file: FileIndex) -> RelPath {
        let name = &self.bytes[self.fields.raw_name.clone()];
        self.fields.files.path(&self.bytes, name, file)
    }

    /// How many files are symbolic links (BEP 47). They count as pads of no bytes.
    pub fn link_count(&self) -> u32 {
        self.fields.files.link_count
    }

    /// Where pieces, blocks and files lie.
    pub fn geometry(&self) -> &Geometry {
        &self.fields.geometry
    }

    /// The dictionary as it came.
    pub fn raw(&self) -> &[u8] {
        &self.bytes[self.fields.raw.clone()]
    }

    /// All that was parsed: the dictionary or the file around it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-1 of a piece. `None` without a v1 view.
    pub fn v1_piece_hash(&self, piece: PieceIndex) -> Option<&[u8; 20]> {
        let (hashes, _) = self.bytes[self.fields.pieces.clone()].as_chunks::<20>();
        hashes.get(piece.get() as usize)
    }

    /// SHA-1 of the dictionary (BEP 3). `None` without a v1 view.
    pub fn info_hash_v1(&self) -> Option<[u8; 20]> {
        self.fields.hash_v1
    }

    /// SHA-256 of the dictionary (BEP 52): the identity of a listing. `None` without a v2 view.
    pub fn info_hash_v2(&self) -> Option<Hash> {
        self.fields.hash_v2
    }

    /// The ids by which peers name the torrent in a handshake: SHA-1, then SHA-256 cut to 20 bytes.
    pub fn wire_ids(&self) -> impl Iterator<Item = [u8; 20]> + use<> {
        let v2 = self.fields.hash_v2.map(|hash| truncate(&hash));
        self.fields.hash_v1.into_iter().chain(v2)
    }

    /// How many pieces the files with this root have, if they have a piece layer at all.
    pub fn layer_len(&self, root: &Hash) -> Option<u32> {
        self.fields.layer_index(&self.bytes, root).map(|(_, piece_count)| piece_count)
    }

    /// The place of a root among [`Info::layer_roots`].
    pub(super) fn layer_index(&self, root: &Hash) -> Option<usize> {
        self.fields.layer_index(&self.bytes, root).map(|(at, _)| at)
    }

    /// Roots of all files longer than a piece, each once, sorted.
    pub fn layer_roots(&self) -> impl ExactSizeIterator<Item = Hash> + '_ {
        self.fields.layered.iter().map(|found| *root_at(&self.bytes, found.root_at))
    }
}

/// A v2 info hash as it stands in a handshake (BEP 52).
pub fn truncate(hash: &Hash) -> [u8; 20] {
    *hash.first_chunk().expect("20 is less than 32")
}

fn root_at(bytes: &[u8], at: u32) -> &Hash {
    bytes[at as usize..].first_chunk().expect("a root has 32 bytes, as was checked")
}

impl Fields {
    /// Reads the info dictionary `info` of `document`, which was decoded from `bytes`.
    pub fn read(
        bytes: &[u8],
        document: &Document<'_>,
        info: Value<'_>,
    ) -> Result<Self, MetainfoError> {
        let raw = info.span();
        if raw.len() > INFO_LEN_MAX {
            return Err(MetainfoError::InfoTooLong { len_bytes: raw.len() });
        }
        let keys = Keys::read(document, info)?;
        let kind = keys.kind()?;
        if let Some(offset) = document.first_unsorted().filter(|_| kind.has_v2()) {
            return Err(MetainfoError::NotCanonical { offset });
        }
        let name_value = need(keys.name, "name")?;
        let raw_name = name_value.as_bytes().ok_or(MetainfoError::WrongValue { key: "name" })?;
        let name = names::component(raw_name)?;
        let piece_len = need(keys.piece_len, "piece length")?.as_u64();
        let piece_len = piece_len.ok_or(MetainfoError::WrongValue { key: "piece length" })?;

        let name_len_bytes = name.len();
        let reader =
            Reader { bytes, document, keys: &keys, raw_name, name_len_bytes, piece_len, kind };
        let Read { files, geometry, are_surely_distinct } = reader.read()?;
        let pieces = if kind.has_v1() { read_pieces(&keys, &geometry)? } else { 0..0 };
        let layered = collect_layered(bytes, &files, &geometry)?;
        let name_end = name_value.span().end;
        Ok(Self {
            raw_name: name_end - raw_name.len()..name_end,
            name: name.into(),
            private: keys.private.and_then(|value| value.as_int()) == Some(1),
            files,
            are_surely_distinct,
            pieces,
            hash_v1: kind.has_v1().then(|| Sha1::digest(info.raw()).into()),
            hash_v2: kind.has_v2().then(|| Sha256::digest(info.raw()).into()),
            layered,
            geometry,
            raw,
        })
    }

    pub fn kind(&self) -> Kind {
        self.geometry.kind()
    }

    /// See [`Info::piece_layer_number`].
    pub fn piece_layer_number(&self) -> u32 {
        let has_v2 = self.kind().has_v2();
        if has_v2 { merkle::piece_layer_number(self.geometry.piece_len_nominal()) } else { 0 }
    }

    /// The place of a root among [`Info::layer_roots`], and how many pieces its files have.
    pub fn layer_index(&self, bytes: &[u8], root: &Hash) -> Option<(usize, u32)> {
        let found = |found: &Layered| root_at(bytes, found.root_at).cmp(root);
        let at = self.layered.binary_search_by(found).ok()?;
        Some((at, self.layered[at].piece_count))
    }

    /// How many files have a piece layer, roots counted once.
    pub fn layer_count(&self) -> usize {
        self.layered.len()
    }
}

fn read_pieces(keys: &Keys<'_>, geometry: &Geometry) -> Result<Range<usize>, MetainfoError> {
    let value = need(keys.pieces, "pieces")?;
    let pieces = value.as_bytes().ok_or(MetainfoError::WrongValue { key: "pieces" })?;
    let expected_bytes = u64::from(geometry.piece_count()) * 20;
    if pieces.len() as u64 != expected_bytes {
        return Err(MetainfoError::PiecesLen { expected_bytes, found_bytes: pieces.len() });
    }
    // The string's bytes end where its value ends.
    let end = value.span().end;
    Ok(end - pieces.len()..end)
}

fn collect_layered(
    bytes: &[u8],
    files: &FileTable,
    geometry: &Geometry,
) -> Result<Box<[Layered]>, MetainfoError> {
    let piece_len = u64::from(geometry.piece_len_nominal());
    let with_root =
        geometry.files().filter_map(|file| Some((file, files.root_at(file.get() as usize)?)));
    let mut all: Vec<Layered> = with_root
        .map(|(file, root_at)| {
            // At most 2^21 pieces, and 4 GiB of bytes.
            let piece_count = geometry.file_len(file).div_ceil(piece_len) as u32;
            Layered { root_at: root_at as u32, piece_count }
        })
        .collect();
    let root = |found: &Layered| *root_at(bytes, found.root_at);
    all.sort_unstable_by_key(|found| (root(found), found.piece_count));
    all.dedup_by_key(|found| (root(found), found.piece_count));
    // Equal roots mean equal bytes. Two lengths for one root are a lie about one of the files, and
    // with two numbers of pieces no layer could serve both.
    if all.windows(2).any(|pair| root(&pair[0]) == root(&pair[1])) {
        return Err(MetainfoError::RootShared);
    }
    all.retain(|found| found.piece_count > 1);
    Ok(all.into())
}
