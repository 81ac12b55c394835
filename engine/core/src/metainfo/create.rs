//! Making a torrent: first where everything will lie, then, from digests that the caller computes,
//! the metainfo. The same files, name and options give the same bytes, so the same info hash.
//!
//! [`Layout::choose`] sorts the files, picks the piece length and gives the [`Geometry`] to hash by.
//! The caller reads each extent once, hashes pieces with SHA-1 (pads are zeros) and blocks with
//! SHA-256, hands the digests to a [`Builder`] in any order, and calls [`Builder::finish`].

use std::collections::BTreeMap;

use thiserror::Error;

use super::names::{self, NameError, RelPath};
use super::{Info, Metainfo, MetainfoError};
use crate::bencode::Encoder;
use crate::geometry::{
    BLOCK_LEN, FileIndex, FileSpan, Geometry, GeometryError, Kind, PIECE_COUNT_MAX, PIECE_LEN_MAX,
    PieceIndex, TOTAL_LEN_MAX,
};
use crate::merkle::{self, Hash, TreeShape};

/// Longest info dictionary that the choice of a piece length aims at, in bytes: BEP 9 sends it in
/// blocks of 16 KiB before anything else can begin.
pub const INFO_LEN_WANTED: u64 = 2 * 1024 * 1024;
/// Longest piece that is chosen unasked, in bytes. Past it a v1 piece outgrows the buffers of its
/// receiver, and a bad one costs too much.
const PIECE_LEN_CHOSEN_MAX: u64 = 16 * 1024 * 1024;
/// How many pieces the choice aims at: enough to swarm, few enough for small bitfields.
const PIECE_COUNT_WANTED: u64 = 2048;

/// Why a torrent cannot be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CreateError {
    /// A name that cannot stand in a torrent.
    #[error("{path:?} cannot be named in a torrent: {error}")]
    Name {
        /// The file, or the torrent itself.
        path: String,
        /// The rule that it breaks.
        error: NameError,
    },
    /// A name that would come out of the torrent changed (a backslash, a control character, bytes
    /// that are no UTF-8), so that the torrent would not find its own files.
    #[error("{path:?} would be called {mapped:?} by those who fetch it")]
    NameMapped {
        /// The name, lossy.
        path: String,
        /// What it would become.
        mapped: String,
    },
    /// A folder with one file and nothing else cannot be told from that file in a v2 torrent.
    #[error("a v2 torrent of the folder {name:?} would be read as its only file")]
    LoneFile {
        /// The torrent's name.
        name: String,
    },
    /// Lengths or limits that make no torrent.
    #[error("files make no torrent: {0}")]
    Geometry(#[from] GeometryError),
    /// No piece length keeps the number of pieces below the limit.
    #[error("{file_count} files make too many pieces at any length")]
    TooManyPieces {
        /// How many files there are.
        file_count: usize,
    },
    /// A file's digests are not those of a file of its length.
    #[error("file {file_index} has {expected} blocks, {found} digests came")]
    LeafCount {
        /// Position in [`Layout::files`].
        file_index: u32,
        /// Blocks of the file.
        expected: u64,
        /// Digests that came.
        found: usize,
    },
    /// Digests of a file were not given.
    #[error("digests of file {file_index} are missing")]
    FileMissing {
        /// Position in [`Layout::files`].
        file_index: u32,
    },
    /// The SHA-1 of a piece was not given.
    #[error("digest of piece {piece} is missing")]
    PieceMissing {
        /// The piece.
        piece: u32,
    },
    /// What was built does not parse: it is past a limit of the format.
    #[error("the torrent would be invalid: {0}")]
    Invalid(#[from] MetainfoError),
}

/// A file that shall be in a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Raw components of its path below the torrent's folder, first the outermost.
    pub path: Vec<Vec<u8>>,
    /// Length in bytes.
    pub len_bytes: u64,
    /// The file may be run (BEP 47).
    pub executable: bool,
}

/// What a torrent is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One file, by the torrent's name.
    File {
        /// Length in bytes.
        len_bytes: u64,
        /// The file may be run (BEP 47).
        executable: bool,
    },
    /// A folder, by the torrent's name, with these files in it.
    Folder(Vec<SourceFile>),
}

/// A file or pad of a [`Layout`]; its place in the list is its [`FileIndex`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutFile {
    /// Path below the torrent's folder, without the torrent's name. `None` for a pad, and for the
    /// one file of [`Source::File`].
    pub path: Option<RelPath>,
    /// Position in the list of [`Source::Folder`]; 0 for the one file. `None` for a pad.
    pub source_index: Option<usize>,
    /// Length in bytes.
    pub len_bytes: u64,
    /// The file may be run.
    pub executable: bool,
}

/// Where everything of a torrent to be made lies.
#[derive(Clone, Debug)]
pub struct Layout {
    name: String,
    is_single: bool,
    files: Vec<LayoutFile>,
    geometry: Geometry,
}

impl Layout {
    /// Lays out a torrent. Files come in the order of BEP 52's tree. Without a `piece_len_bytes`
    /// one is chosen (a power of two):
    ///
    /// 1. it begins at the smaller of total / 2048 and, for more than one file of a hybrid or v2
    ///    torrent, the median length of the files;
    /// 2. hybrids: it shrinks until pads are at most a tenth of the payload, or to 16 KiB;
    /// 3. it grows while the info dictionary is longer than 2 MiB, up to 16 MiB and as long as pads
    ///    stay within the tenth;
    /// 4. it grows, whatever else, until there are no more pieces than allowed.
    ///
    /// Hybrids get no pad behind the last file: no reader needs it.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn choose(
        name: &[u8],
        source: &Source,
        kind: Kind,
        piece_len_bytes: Option<u64>,
    ) -> Result<Self, CreateError> {
        let root = exact_path(&[name])?;
        let (mut files, is_single) = match source {
            &Source::File { len_bytes, executable } => {
                let only = LayoutFile { path: None, source_index: Some(0), len_bytes, executable };
                (vec![only], true)
            }
            Source::Folder(sources) => (sort_sources(&root, sources)?, false),
        };
        let is_lone = matches!(source, Source::Folder(files) if matches!(&files[..], [one] if one.path.len() == 1));
        if is_lone && kind == Kind::V2 {
            return Err(CreateError::LoneFile { name: root.as_str().to_owned() });
        }
        let piece_len = match piece_len_bytes {
            Some(piece_len) => piece_len,
            None => choose_piece_len(&files, kind)?,
        };
        if kind == Kind::Hybrid {
            files = with_pads(files, piece_len);
        }
        let spans: Vec<FileSpan> = files
            .iter()
            .map(|file| FileSpan { len_bytes: file.len_bytes, pad: file.source_index.is_none() })
            .collect();
        let geometry = Geometry::new(piece_len, &spans, kind)?;
        Ok(Self { name: root.as_str().to_owned(), is_single, files, geometry })
    }

    /// The torrent's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Files and pads, in order.
    pub fn files(&self) -> &[LayoutFile] {
        &self.files
    }

    /// Where pieces, blocks and files lie: what to hash.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Bytes of explicit pads: what a v1 peer fetches for nothing.
    pub fn pad_bytes(&self) -> u64 {
        let pads = self.files.iter().filter(|file| file.source_index.is_none());
        pads.map(|file| file.len_bytes).sum()
    }

    /// Whether pads are more than a tenth of the payload. Then even 16 KiB pieces do not help, or
    /// the piece length was given: say so to whoever makes the torrent.
    pub fn is_mostly_small_files(&self) -> bool {
        exceeds_tenth(self.pad_bytes(), self.geometry.payload_len())
    }
}

/// A path whose components come out of a torrent as they went in.
fn exact_path(parts: &[&[u8]]) -> Result<RelPath, CreateError> {
    let lossy = || {
        let parts: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
        parts.join("/")
    };
    let path = RelPath::new(parts.iter().copied())
        .map_err(|error| CreateError::Name { path: lossy(), error })?;
    if path.components().map(str::as_bytes).ne(parts.iter().copied()) {
        let mapped = path.as_str().to_owned();
        return Err(CreateError::NameMapped { path: lossy(), mapped });
    }
    Ok(path)
}

fn sort_sources(root: &RelPath, sources: &[SourceFile]) -> Result<Vec<LayoutFile>, CreateError> {
    let mut files = Vec::with_capacity(sources.len());
    for (source_index, source) in sources.iter().enumerate() {
        let below: Vec<&[u8]> = source.path.iter().map(Vec::as_slice).collect();
        // Whoever fetches it joins the name in front, so that counts for the limits.
        let mut whole = vec![root.as_str().as_bytes()];
        whole.extend(&below);
        exact_path(&whole)?;
        files.push(LayoutFile {
            path: Some(exact_path(&below)?),
            source_index: Some(source_index),
            len_bytes: source.len_bytes,
            executable: source.executable,
        });
    }
    let paths = files.iter().filter_map(|file| file.path.as_ref());
    names::check_distinct(paths)
        .map_err(|error| CreateError::Name { path: root.as_str().to_owned(), error })?;
    files.sort_by(|a, b| match (&a.path, &b.path) {
        (Some(a), Some(b)) => a.tree_cmp(b),
        _ => std::cmp::Ordering::Equal,
    });
    Ok(files)
}

/// Puts a pad in front of every file with bytes that would not begin with a piece.
fn with_pads(files: Vec<LayoutFile>, piece_len: u64) -> Vec<LayoutFile> {
    let mut padded = Vec::with_capacity(files.len() * 2);
    let mut gap = 0;
    for file in files {
        if file.len_bytes > 0 {
            if gap > 0 {
                padded.push(LayoutFile {
                    path: None,
                    source_index: None,
                    len_bytes: gap,
                    executable: false,
                });
            }
            gap = gap_behind(file.len_bytes, piece_len);
        }
        padded.push(file);
    }
    padded
}

/// Bytes from the end of a file that begins with a piece to the next piece. A piece length of zero
/// is refused later, with the geometry.
fn gap_behind(len_bytes: u64, piece_len: u64) -> u64 {
    match len_bytes.checked_rem(piece_len) {
        None | Some(0) => 0,
        Some(tail) => piece_len - tail,
    }
}

fn exceeds_tenth(pad_bytes: u64, payload_bytes: u64) -> bool {
    pad_bytes > payload_bytes / 10
}

fn choose_piece_len(files: &[LayoutFile], kind: Kind) -> Result<u64, CreateError> {
    let mut lens: Vec<u64> =
        files.iter().map(|file| file.len_bytes).filter(|&len| len > 0).collect();
    lens.sort_unstable();
    let sum = lens.iter().try_fold(0_u64, |sum, &len| sum.checked_add(len));
    let Some(total) = sum.filter(|&total| total <= TOTAL_LEN_MAX) else {
        return Ok(u64::from(PIECE_LEN_MAX)); // the geometry says which file is too much
    };
    let min = u64::from(BLOCK_LEN);
    let round = |len: u64| len.clamp(min, PIECE_LEN_CHOSEN_MAX).next_power_of_two();
    let mut piece_len = round(total / PIECE_COUNT_WANTED);
    let pads = |piece_len: u64| -> u64 {
        // Not behind the last file; which one that is, is of no weight here.
        let gaps = lens.iter().map(|&len| gap_behind(len, piece_len));
        if kind == Kind::Hybrid && lens.len() > 1 { gaps.sum() } else { 0 }
    };
    let too_many_pads = |piece_len| exceeds_tenth(pads(piece_len), total);
    let piece_count = |piece_len: u64| -> u64 {
        match kind {
            Kind::V1 => total.div_ceil(piece_len),
            Kind::V2 | Kind::Hybrid => lens.iter().map(|&len| len.div_ceil(piece_len)).sum(),
        }
    };
    if kind.has_v2() && lens.len() > 1 {
        piece_len = piece_len.min(round(lens[lens.len() / 2]));
    }
    while too_many_pads(piece_len) && piece_len > min {
        piece_len /= 2;
    }
    let names_len = names_len(files, kind);
    let info_len =
        |piece_len| names_len + if kind.has_v1() { 20 * piece_count(piece_len) } else { 0 };
    // Longer pieces help only as long as the digests are what makes it long.
    while info_len(piece_len) > INFO_LEN_WANTED
        && names_len < INFO_LEN_WANTED
        && piece_len < PIECE_LEN_CHOSEN_MAX
        && !too_many_pads(piece_len * 2)
    {
        piece_len *= 2;
    }
    while piece_count(piece_len) > u64::from(PIECE_COUNT_MAX) {
        if piece_len >= u64::from(PIECE_LEN_MAX) {
            return Err(CreateError::TooManyPieces { file_count: files.len() });
        }
        piece_len *= 2;
    }
    Ok(piece_len)
}

/// About what names, lengths and roots take in the info dictionary, in bytes.
pub(super) fn names_len(files: &[LayoutFile], kind: Kind) -> u64 {
    let names = files.iter().map(|file| file.path.as_ref().map_or(0, |path| path.as_str().len()));
    let names: usize = names.sum();
    // Keys, lengths and separators of one file: about 50 bytes in the list, 80 in the tree, and 60
    // for its pad.
    let per_file = match kind {
        Kind::V1 => 50,
        Kind::V2 => 80,
        Kind::Hybrid => 190,
    };
    let views = if kind == Kind::Hybrid { 2 } else { 1 };
    (names * views + files.len() * per_file) as u64
}

/// What is known of a file's content.
#[derive(Clone, Debug)]
struct FileDigests {
    root: Hash,
    /// Only of files longer than a piece.
    layer: Vec<Hash>,
}

/// Collects digests, in any order, and makes the metainfo.
#[derive(Clone, Debug)]
pub struct Builder {
    layout: Layout,
    private: bool,
    files: BTreeMap<FileIndex, FileDigests>,
    pieces: Vec<Option<[u8; 20]>>,
}

impl Builder {
    /// A builder for what [`Layout::choose`] laid out.
    pub fn new(layout: Layout) -> Self {
        let has_v1 = layout.geometry.kind().has_v1();
        let count = if has_v1 { layout.geometry.piece_count() as usize } else { 0 };
        Self { layout, private: false, files: BTreeMap::new(), pieces: vec![None; count] }
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Marks the torrent as private (BEP 27). This changes its info hash.
    pub fn set_private(&mut self, private: bool) -> &mut Self {
        self.private = private;
        self
    }

    /// Gives the SHA-1 of a piece, pads hashed as zeros. Needed for v1 and hybrid torrents; ignored
    /// for v2.
    pub fn set_piece(&mut self, piece: PieceIndex, digest: [u8; 20]) -> &mut Self {
        if let Some(slot) = self.pieces.get_mut(piece.get() as usize) {
            *slot = Some(digest);
        }
        self
    }

    /// Gives the SHA-256 of all blocks of a file, in order. Needed for every file with bytes of a
    /// hybrid or v2 torrent.
    ///
    /// # Errors
    /// [`CreateError::LeafCount`] when there are not as many as the file has blocks.
    pub fn set_leaves(
        &mut self,
        file: FileIndex,
        leaves: &[Hash],
    ) -> Result<&mut Self, CreateError> {
        self.check_count(file, leaves.len(), BLOCK_LEN)?;
        if leaves.is_empty() {
            return Ok(self);
        }
        let piece_len = self.layout.geometry.piece_len_nominal();
        let layer = if self.has_layer(file) {
            merkle::piece_layer_from_leaves(leaves, merkle::piece_layer_number(piece_len))
        } else {
            Vec::new()
        };
        let root = merkle::root_from_leaves(leaves);
        self.files.insert(file, FileDigests { root, layer });
        Ok(self)
    }

    /// Gives a file longer than a piece by its piece layer, for callers that fold leaves into
    /// pieces as they go; a shorter one by its root alone, as a layer of one.
    ///
    /// # Errors
    /// [`CreateError::LeafCount`] when there is not one digest per piece.
    pub fn set_piece_layer(
        &mut self,
        file: FileIndex,
        layer: &[Hash],
    ) -> Result<&mut Self, CreateError> {
        let piece_len = self.layout.geometry.piece_len_nominal();
        self.check_count(file, layer.len(), piece_len)?;
        if let [root] = layer {
            self.files.insert(file, FileDigests { root: *root, layer: Vec::new() });
        } else if !layer.is_empty() {
            let root = merkle::root_from_layer(layer, merkle::piece_layer_number(piece_len));
            self.files.insert(file, FileDigests { root, layer: layer.to_vec() });
        }
        Ok(self)
    }

    /// Makes the metainfo, and reads it back to be sure that everybody else can.
    ///
    /// # Errors
    /// [`CreateError`]: digests are missing, or a limit of the format is passed.
    pub fn finish(&self) -> Result<Metainfo, CreateError> {
        let kind = self.layout.geometry.kind();
        let mut pieces = Vec::with_capacity(self.pieces.len() * 20);
        for (piece, digest) in (0..).zip(&self.pieces) {
            pieces.extend(digest.ok_or(CreateError::PieceMissing { piece })?);
        }
        if kind.has_v2() {
            let geometry = &self.layout.geometry;
            for file in geometry.files().filter(|&file| !geometry.is_pad(file)) {
                if geometry.file_len(file) > 0 && !self.files.contains_key(&file) {
                    return Err(CreateError::FileMissing { file_index: file.get() });
                }
            }
        }
        let info = Info::parse(&self.encode_info(&pieces))?;
        let mut metainfo = Metainfo::from_info(info);
        for digests in self.files.values().filter(|digests| !digests.layer.is_empty()) {
            metainfo.add_layer(&digests.root, digests.layer.as_flattened())?;
        }
        Ok(metainfo)
    }

    fn has_layer(&self, file: FileIndex) -> bool {
        let geometry = &self.layout.geometry;
        geometry.file_len(file) > u64::from(geometry.piece_len_nominal())
    }

    fn check_count(&self, file: FileIndex, found: usize, unit: u32) -> Result<(), CreateError> {
        let geometry = &self.layout.geometry;
        let is_tree = !geometry.is_pad(file) && geometry.kind().has_v2();
        let len_bytes = if is_tree { geometry.file_len(file) } else { 0 };
        let shape = TreeShape::of_file(len_bytes);
        let expected = shape.map_or(0, |_| len_bytes.div_ceil(u64::from(unit)));
        let file_index = file.get();
        let wrong = CreateError::LeafCount { file_index, expected, found };
        if found as u64 == expected { Ok(()) } else { Err(wrong) }
    }

    fn encode_info(&self, pieces: &[u8]) -> Vec<u8> {
        let layout = &self.layout;
        let kind = layout.geometry.kind();
        let mut out = Encoder::new();
        out.dict();
        let single = layout.files.first().filter(|_| layout.is_single && kind.has_v1());
        if single.is_some_and(|file| file.executable) {
            out.key(b"attr").bytes(b"x");
        }
        if kind.has_v2() {
            out.key(b"file tree");
            self.encode_tree(&mut out);
        }
        if kind.has_v1() && !layout.is_single {
            out.key(b"files").list();
            layout.files.iter().for_each(|file| encode_list_entry(&mut out, file));
            out.end();
        }
        if let Some(file) = single {
            out.key(b"length").int(file.len_bytes);
        }
        if kind.has_v2() {
            out.key(b"meta version").int(2);
        }
        out.key(b"name").bytes(layout.name.as_bytes());
        out.key(b"piece length").int(layout.geometry.piece_len_nominal());
        if kind.has_v1() {
            out.key(b"pieces").bytes(pieces);
        }
        if self.private {
            out.key(b"private").int(1);
        }
        out.end();
        out.finish()
    }

    /// The files are in tree order, so folders open and close as paths go by.
    fn encode_tree(&self, out: &mut Encoder) {
        let layout = &self.layout;
        let mut open: Vec<&str> = Vec::new();
        out.dict();
        for (file, index) in layout.files.iter().zip(layout.geometry.files()) {
            if file.source_index.is_none() {
                continue;
            }
            let mut path: Vec<&str> = match &file.path {
                Some(path) => path.components().collect(),
                None => vec![&layout.name],
            };
            let leaf = path.pop().expect("a path has a component");
            let shared = open.iter().zip(&path).take_while(|(a, b)| a == b).count();
            for _ in shared..open.len() {
                out.end();
            }
            open.truncate(shared);
            for folder in &path[shared..] {
                out.key(folder.as_bytes()).dict();
                open.push(folder);
            }
            out.key(leaf.as_bytes()).dict().key(b"").dict();
            if file.executable {
                out.key(b"attr").bytes(b"x");
            }
            out.key(b"length").int(file.len_bytes);
            if let Some(digests) = self.files.get(&index) {
                out.key(b"pieces root").bytes(&digests.root);
            }
            out.end().end();
        }
        for _ in open {
            out.end();
        }
        out.end();
    }
}

fn encode_list_entry(out: &mut Encoder, file: &LayoutFile) {
    out.dict();
    let is_pad = file.source_index.is_none();
    if is_pad || file.executable {
        out.key(b"attr").bytes(if is_pad { b"p" } else { b"x" });
    }
    out.key(b"length").int(file.len_bytes);
    out.key(b"path").list();
    match &file.path {
        Some(path) => {
            for part in path.components() {
                out.bytes(part.as_bytes());
            }
        }
        // The name that BEP 47 suggests.
        None => {
            out.bytes(b".pad").bytes(file.len_bytes.to_string().as_bytes());
        }
    }
    out.end().end();
}
