//! The vocabulary of the engine: pieces, blocks, extents and files of one torrent.
//!
//! A torrent is one run of bytes, the *torrent space*: its files one after the other, with pads
//! (zeros that exist on no disk) between them. [`Geometry`] knows where everything lies in that
//! space and is the only one that turns raw numbers into [`PieceIndex`], [`BlockRef`],
//! [`ExtentIndex`] and [`FileIndex`]. So a number from the wire is checked once, here, and code
//! that holds one of these types need not check it again. They belong to the geometry that made
//! them; handing them to another one is a bug of ours and ends in a panic.
//!
//! Sources: BEP 3 (torrent space, pieces), BEP 47 (pads), BEP 52 (alignment of files to pieces).

mod files;
mod iter;

use std::sync::Arc;

use thiserror::Error;

pub(crate) use self::files::GeometryBuilder;
use self::files::{FileTable, Span};
use self::iter::ExactRange;
pub use self::iter::{Blocks, Slices};

/// Length of a block, in bytes: what peers request at a time (BEP 3) and a leaf covers (BEP 52).
pub const BLOCK_LEN: u32 = 16_384;
/// Longest run that a peer may ask for at once, in bytes. Everybody asks for [`BLOCK_LEN`]; older clients
/// asked for 32 KiB to 128 KiB, and stock clients still serve that.
pub const REQUEST_LEN_MAX: u32 = 128 << 10;
/// Longest extent, in bytes. Sixteen blocks fill the sixteen lanes of the hash kernels, and 256 KiB
/// is where direct I/O stops gaining from longer operations.
pub const EXTENT_LEN_MAX: u32 = 256 * 1024;
/// Most pieces that a torrent may have; the limit that other clients keep.
pub const PIECE_COUNT_MAX: u32 = 2_097_152;
/// Longest torrent space, in bytes (64 TiB). Keeps every sum of offsets far from overflow.
pub const TOTAL_LEN_MAX: u64 = 1 << 46;
/// Most files, pads included.
pub const FILE_COUNT_MAX: usize = 1_000_000;
/// Shortest piece of a v1 torrent, in bytes.
pub const PIECE_LEN_MIN_V1: u32 = 1024;
/// Longest piece, in bytes.
pub const PIECE_LEN_MAX: u32 = 128 * 1024 * 1024;

const _: () = assert!(BLOCK_LEN.is_power_of_two());
const _: () = assert!(EXTENT_LEN_MAX.is_multiple_of(BLOCK_LEN));
// What a peer asks for lies in two extents at most.
const _: () = assert!(REQUEST_LEN_MAX <= EXTENT_LEN_MAX);
const _: () = assert!(PIECE_LEN_MAX.is_multiple_of(EXTENT_LEN_MAX));
// Every extent but the last of a piece is full, so their number fits an index of 32 bits.
const _: () =
    assert!(TOTAL_LEN_MAX / EXTENT_LEN_MAX as u64 + (PIECE_COUNT_MAX as u64) < u32::MAX as u64);

/// Position of a piece in its torrent. Only [`Geometry`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceIndex(u32);

/// Position of an extent in its torrent. Only [`Geometry`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentIndex(u32);

/// Position of a file in the list of files that the geometry was made from, pads counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIndex(u32);

/// A run of bytes inside one piece, which it never leaves, because only [`Geometry`] makes one. What we
/// ask for has at most [`BLOCK_LEN`] bytes, what peers ask for [`REQUEST_LEN_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRef {
    piece: PieceIndex,
    begin: u32,
    len: u32,
}

impl PieceIndex {
    /// The number that goes to the wire.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// For code of this crate that has checked the bound by other means.
    pub(crate) const fn new_unchecked(raw: u32) -> Self {
        Self(raw)
    }
}

impl ExtentIndex {
    /// The bare number, for tables indexed by extent.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FileIndex {
    /// The bare number, for tables indexed by file.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl BlockRef {
    /// The piece that holds the block.
    #[inline]
    pub const fn piece(self) -> PieceIndex {
        self.piece
    }

    /// Where the block begins in its piece, in bytes. Blocks of ours begin at multiples of
    /// [`BLOCK_LEN`], those that peers ask for anywhere.
    #[inline]
    pub const fn begin(self) -> u32 {
        self.begin
    }

    /// Length in bytes, at least 1.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a block is never empty
    pub const fn len(self) -> u32 {
        self.len
    }
}

/// Which of the two views of a torrent exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// BEP 3: SHA-1 over pieces that run across files.
    V1,
    /// BEP 52: a SHA-256 tree per file, every file begins with a piece.
    V2,
    /// Both views of the same bytes.
    Hybrid,
}

impl Kind {
    /// Whether there are SHA-1 digests of pieces.
    pub const fn has_v1(self) -> bool {
        matches!(self, Self::V1 | Self::Hybrid)
    }

    /// Whether there are SHA-256 trees of files.
    pub const fn has_v2(self) -> bool {
        matches!(self, Self::V2 | Self::Hybrid)
    }
}

/// A file, or a pad between files, in the order of the torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSpan {
    /// Length in bytes; zero is allowed.
    pub len_bytes: u64,
    /// True for what lies on no disk: a pad of BEP 47, which is zeros, or a link, which has no bytes.
    pub pad: bool,
}

/// A part of a range of torrent space that lies in one file, or in pads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSlice {
    /// The file. Of a pad: the file that it follows (or, at the very start, precedes).
    pub file: FileIndex,
    /// Position in that file, in bytes; 0 for a pad.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// Zeros that are neither read nor written. Neighbouring pads come as one slice.
    pub pad: bool,
}

/// A part of a block that lies in one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtentPart {
    /// The extent.
    pub extent: ExtentIndex,
    /// Where the part begins in the extent, in bytes.
    pub offset: u32,
    /// Length in bytes, never 0.
    pub len: u32,
}

/// Why numbers do not fit the torrent, or why a torrent's numbers are no geometry.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GeometryError {
    /// The piece length breaks the rule of its kind.
    #[error("piece length of {len_bytes} bytes is not allowed in a {kind:?} torrent")]
    PieceLen {
        /// The length claimed, in bytes.
        len_bytes: u64,
        /// The kind whose rule it breaks.
        kind: Kind,
    },
    /// More files than [`FILE_COUNT_MAX`].
    #[error("{count} files are more than {FILE_COUNT_MAX}")]
    TooManyFiles {
        /// How many were given.
        count: usize,
    },
    /// Longer than [`TOTAL_LEN_MAX`], or past what 64 bits count.
    #[error("torrent is longer than {TOTAL_LEN_MAX} bytes at file {file_index}")]
    TooLong {
        /// The file that crosses the limit.
        file_index: usize,
    },
    /// More pieces than [`PIECE_COUNT_MAX`].
    #[error("{count} pieces are more than {PIECE_COUNT_MAX}")]
    TooManyPieces {
        /// How many there would be.
        count: u64,
    },
    /// Not a single byte of payload.
    #[error("torrent has no payload")]
    Empty,
    /// A torrent with a v2 view has a file that does not begin with a piece.
    #[error(
        "file {file_index} begins at byte {offset_bytes}, which is not a multiple of the piece length"
    )]
    NotAligned {
        /// The file.
        file_index: usize,
        /// Where it begins, in bytes.
        offset_bytes: u64,
    },
    /// An explicit pad with bytes where only implied ones exist.
    #[error("file {file_index} of a v2 torrent is a pad")]
    PadInV2 {
        /// The pad.
        file_index: usize,
    },
    /// A piece index past the end.
    #[error("piece {raw} is not below {count}")]
    PieceOutOfRange {
        /// The index given.
        raw: u32,
        /// How many pieces there are.
        count: u32,
    },
    /// An extent index past the end.
    #[error("extent {raw} is not below {count}")]
    ExtentOutOfRange {
        /// The index given.
        raw: u32,
        /// How many extents there are.
        count: u32,
    },
    /// A file index past the end.
    #[error("file {raw} is not below {count}")]
    FileOutOfRange {
        /// The index given.
        raw: u32,
        /// How many files there are.
        count: u32,
    },
    /// A block of no bytes, or of more than it may have.
    #[error("block of {len} bytes is not 1 to {max}")]
    BlockLen {
        /// The length given, in bytes.
        len: u32,
        /// The longest allowed, in bytes.
        max: u32,
    },
    /// A block that leaves its piece.
    #[error("block at {begin} of {len} bytes leaves piece {piece} of {piece_len} bytes")]
    BlockOutOfPiece {
        /// The piece.
        piece: u32,
        /// Where the block begins, in bytes.
        begin: u32,
        /// Its length in bytes.
        len: u32,
        /// The length of the piece, in bytes.
        piece_len: u32,
    },
}

/// Where pieces, blocks, extents and files of one torrent lie. Costs 8 bytes and a bit per file,
/// which clones share; every lookup costs O(log files) or less.
///
/// An **extent** is a contiguous run of at most [`EXTENT_LEN_MAX`] bytes of torrent space, and the
/// unit of buffering, of disk I/O and of assigning work to a peer. A piece of at least that length
/// is cut into such runs from its beginning (the last one shorter); shorter pieces are grouped,
/// whole and consecutive, as many as fit. So no extent holds parts of two pieces unless it holds
/// both of them whole, and no block of ours lies in two extents.
#[derive(Clone, Debug)]
pub struct Geometry {
    kind: Kind,
    piece_len: u32,
    piece_count: u32,
    total_len: u64,
    payload_len: u64,
    extent_count: u32,
    /// Extents of a full piece; 1 if pieces are grouped.
    extents_per_piece: u32,
    /// Pieces of a full extent; 1 if pieces are cut.
    pieces_per_extent: u32,
    files: Arc<FileTable>,
}

impl Geometry {
    /// Lays out files in torrent space.
    ///
    /// `files` is the list as the torrent gives it: for `V1` and `Hybrid` with explicit pads, for
    /// `V2` the files of the tree, where the gaps up to the next piece are implied. So is the one behind
    /// the last file: libtorrent 2.0 asks for whole blocks there as everywhere.
    ///
    /// # Errors
    /// A [`GeometryError`] when a limit or an alignment rule is broken.
    pub fn new(
        piece_len_bytes: u64,
        files: &[FileSpan],
        kind: Kind,
    ) -> Result<Self, GeometryError> {
        let mut builder = GeometryBuilder::new(piece_len_bytes, kind, files.len())?;
        files.iter().try_for_each(|&file| builder.push(file))?;
        builder.finish()
    }

    /// The layout of a v1 or hybrid torrent as a client sees it that knows nothing of v2: what is a
    /// good layout of a hybrid is one of v1, whose rules are fewer.
    ///
    /// # Panics
    /// If there is no v1 view.
    pub(crate) fn v1_view(&self) -> Self {
        assert!(self.kind.has_v1(), "a v2 torrent has no v1 view");
        Self { kind: Kind::V1, ..self.clone() }
    }

    /// Which views the torrent has.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Length of torrent space in bytes, pads included.
    pub fn total_len(&self) -> u64 {
        self.total_len
    }

    /// Bytes of files, without pads.
    pub fn payload_len(&self) -> u64 {
        self.payload_len
    }

    // Pieces.

    /// How many pieces there are; at least 1.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// Length in bytes of every piece but the last.
    pub fn piece_len_nominal(&self) -> u32 {
        self.piece_len
    }

    /// Turns an index from the wire into a [`PieceIndex`] of this torrent (BEP 3, `have`).
    ///
    /// # Errors
    /// [`GeometryError::PieceOutOfRange`] when `raw` is not below the piece count.
    pub fn piece(&self, raw: u32) -> Result<PieceIndex, GeometryError> {
        let past_end = GeometryError::PieceOutOfRange { raw, count: self.piece_count };
        (raw < self.piece_count).then_some(PieceIndex(raw)).ok_or(past_end)
    }

    /// All pieces in order.
    pub fn pieces(
        &self,
    ) -> impl ExactSizeIterator<Item = PieceIndex> + DoubleEndedIterator + Clone + use<> {
        ExactRange { next: 0, end: self.piece_count, make: PieceIndex }
    }

    /// Where a piece begins in torrent space, in bytes.
    pub fn piece_offset(&self, piece: PieceIndex) -> u64 {
        assert!(piece.0 < self.piece_count, "{piece:?} of another torrent");
        u64::from(piece.0) * u64::from(self.piece_len)
    }

    /// Length of a piece in torrent space, in bytes, pads included: what SHA-1 runs over (BEP 3).
    pub fn piece_len(&self, piece: PieceIndex) -> u32 {
        let rest = self.total_len - self.piece_offset(piece);
        rest.min(u64::from(self.piece_len)) as u32 // at most a u32
    }

    /// Bytes of a piece up to the end of its last file: what a v2 tree covers, and what we fetch.
    /// Zero for a piece that lies wholly in pads.
    pub fn piece_data_len(&self, piece: PieceIndex) -> u32 {
        self.data_len(self.piece_offset(piece), self.piece_len(piece))
    }

    // Blocks.

    /// Turns the three numbers of a piece or reject message, which answer us, into a [`BlockRef`].
    /// Any run of 1 to [`BLOCK_LEN`] bytes inside the piece will do: it may end at the end of a file
    /// or run into the pad behind it (BEP 52 leaves both open).
    ///
    /// # Errors
    /// [`GeometryError::PieceOutOfRange`], [`GeometryError::BlockLen`] or
    /// [`GeometryError::BlockOutOfPiece`].
    pub fn block(&self, raw_piece: u32, begin: u32, len: u32) -> Result<BlockRef, GeometryError> {
        self.run(raw_piece, begin, len, BLOCK_LEN)
    }

    /// Turns the three numbers of a peer's request or cancel message into a [`BlockRef`] of at most
    /// [`REQUEST_LEN_MAX`] bytes; otherwise as [`Geometry::block`].
    ///
    /// # Errors
    /// As [`Geometry::block`].
    pub fn request(&self, raw_piece: u32, begin: u32, len: u32) -> Result<BlockRef, GeometryError> {
        self.run(raw_piece, begin, len, REQUEST_LEN_MAX)
    }

    fn run(
        &self,
        raw_piece: u32,
        begin: u32,
        len: u32,
        max: u32,
    ) -> Result<BlockRef, GeometryError> {
        let piece = self.piece(raw_piece)?;
        if len == 0 || len > max {
            return Err(GeometryError::BlockLen { len, max });
        }
        let piece_len = self.piece_len(piece);
        match begin.checked_add(len) {
            Some(end) if end <= piece_len => Ok(BlockRef { piece, begin, len }),
            _ => Err(GeometryError::BlockOutOfPiece { piece: raw_piece, begin, len, piece_len }),
        }
    }

    /// Bytes of pad behind a block of ours that a client which knows no pads counts to the same block: it
    /// cuts pieces into [`BLOCK_LEN`] wherever files end. Zero for a block that is cut in another way.
    pub fn pad_behind(&self, block: BlockRef) -> u32 {
        let whole = BLOCK_LEN.min(self.piece_len(block.piece) - block.begin);
        let is_ours = block.begin.is_multiple_of(BLOCK_LEN)
            && block.len == self.data_len(self.block_offset(block), whole);
        if is_ours { whole - block.len } else { 0 }
    }

    /// The block of ours that another client means by a whole one, see [`Geometry::pad_behind`]; `None`
    /// when that is not what `block` is, or when it lies wholly in a pad.
    pub fn without_pad(&self, block: BlockRef) -> Option<BlockRef> {
        let is_whole = block.begin.is_multiple_of(BLOCK_LEN)
            && block.len == BLOCK_LEN.min(self.piece_len(block.piece) - block.begin);
        let len = self.data_len(self.block_offset(block), block.len);
        (is_whole && len > 0).then_some(BlockRef { len, ..block })
    }

    /// Where a block begins in torrent space, in bytes.
    pub fn block_offset(&self, block: BlockRef) -> u64 {
        self.piece_offset(block.piece) + u64::from(block.begin)
    }

    /// The blocks of a piece that **we** request, in order: they begin at multiples of
    /// [`BLOCK_LEN`]; one that lies wholly in a pad is left out, one that runs into a pad ends where
    /// the file ends. Together they hold every byte of payload of the piece exactly once. (Pads
    /// inside a block, which only a v1 torrent can have, come along: they are requested as zeros.)
    pub fn blocks_of_piece(&self, piece: PieceIndex) -> Blocks<'_> {
        let offset = self.piece_offset(piece);
        Blocks { geometry: self, next: offset, end: offset + u64::from(self.piece_len(piece)) }
    }

    /// The blocks of an extent that we request; see [`Geometry::blocks_of_piece`].
    pub fn blocks_of_extent(&self, extent: ExtentIndex) -> Blocks<'_> {
        let offset = self.extent_offset(extent);
        Blocks { geometry: self, next: offset, end: offset + u64::from(self.extent_len(extent)) }
    }

    // Extents.

    /// How many extents there are; at least 1.
    pub fn extent_count(&self) -> u32 {
        self.extent_count
    }

    /// Turns a number into an [`ExtentIndex`] of this torrent.
    ///
    /// # Errors
    /// [`GeometryError::ExtentOutOfRange`] when `raw` is not below the extent count.
    pub fn extent(&self, raw: u32) -> Result<ExtentIndex, GeometryError> {
        let past_end = GeometryError::ExtentOutOfRange { raw, count: self.extent_count };
        (raw < self.extent_count).then_some(ExtentIndex(raw)).ok_or(past_end)
    }

    /// All extents in order.
    pub fn extents(
        &self,
    ) -> impl ExactSizeIterator<Item = ExtentIndex> + DoubleEndedIterator + Clone + use<> {
        ExactRange { next: 0, end: self.extent_count, make: ExtentIndex }
    }

    /// Where an extent begins in torrent space, in bytes.
    pub fn extent_offset(&self, extent: ExtentIndex) -> u64 {
        assert!(extent.0 < self.extent_count, "{extent:?} of another torrent");
        let first = u64::from(self.piece_len) * u64::from(self.first_piece_of(extent));
        first + u64::from(extent.0 % self.extents_per_piece) * u64::from(EXTENT_LEN_MAX)
    }

    /// Length of an extent in bytes, pads included; 1 to [`EXTENT_LEN_MAX`].
    pub fn extent_len(&self, extent: ExtentIndex) -> u32 {
        let offset = self.extent_offset(extent);
        let end = if self.cuts_pieces() {
            let piece = PieceIndex(self.first_piece_of(extent));
            let piece_end = self.piece_offset(piece) + u64::from(self.piece_len(piece));
            piece_end.min(offset + u64::from(EXTENT_LEN_MAX))
        } else {
            let full = u64::from(self.pieces_per_extent) * u64::from(self.piece_len);
            self.total_len.min(offset + full)
        };
        (end - offset) as u32 // at most EXTENT_LEN_MAX
    }

    /// Bytes of an extent up to the end of its last file; zero if it lies wholly in pads.
    pub fn extent_data_len(&self, extent: ExtentIndex) -> u32 {
        self.data_len(self.extent_offset(extent), self.extent_len(extent))
    }

    /// The extent that holds the first byte of a block, and where in it, in bytes. A block of ours
    /// lies wholly in it; for a block that a peer cut as it liked see [`Geometry::extent_parts`].
    pub fn extent_of(&self, block: BlockRef) -> (ExtentIndex, u32) {
        assert!(block.piece.0 < self.piece_count, "{block:?} of another torrent");
        if self.cuts_pieces() {
            let in_piece = block.begin / EXTENT_LEN_MAX;
            let extent = ExtentIndex(block.piece.0 * self.extents_per_piece + in_piece);
            (extent, block.begin % EXTENT_LEN_MAX)
        } else {
            let extent = ExtentIndex(block.piece.0 / self.pieces_per_extent);
            let in_extent = block.piece.0 % self.pieces_per_extent;
            (extent, in_extent * self.piece_len + block.begin)
        }
    }

    /// The one or two extents that a block lies in. It is two only for a block of a peer that does
    /// not begin at a multiple of [`BLOCK_LEN`].
    pub fn extent_parts(
        &self,
        block: BlockRef,
    ) -> impl Iterator<Item = ExtentPart> + Clone + use<> {
        let (extent, offset) = self.extent_of(block);
        let len = block.len.min(self.extent_len(extent) - offset);
        let rest = block.len - len;
        let first = ExtentPart { extent, offset, len };
        // A block never leaves its piece, so what is left lies in the next extent of that piece.
        let second = ExtentPart { extent: ExtentIndex(extent.0 + 1), offset: 0, len: rest };
        std::iter::once(first).chain((rest > 0).then_some(second))
    }

    /// The pieces that have bytes in an extent: one, or several that lie in it whole.
    pub fn pieces_of_extent(
        &self,
        extent: ExtentIndex,
    ) -> impl ExactSizeIterator<Item = PieceIndex> + DoubleEndedIterator + Clone + use<> {
        assert!(extent.0 < self.extent_count, "{extent:?} of another torrent");
        let next = self.first_piece_of(extent);
        let end = self.piece_count.min(next + self.pieces_per_extent);
        ExactRange { next, end, make: PieceIndex }
    }

    /// The extents that a piece lies in: several of its own, or one that it may share.
    pub fn extents_of_piece(
        &self,
        piece: PieceIndex,
    ) -> impl ExactSizeIterator<Item = ExtentIndex> + DoubleEndedIterator + Clone + use<> {
        let piece_len = self.piece_len(piece);
        let (next, count) = if self.cuts_pieces() {
            (piece.0 * self.extents_per_piece, piece_len.div_ceil(EXTENT_LEN_MAX))
        } else {
            (piece.0 / self.pieces_per_extent, 1)
        };
        ExactRange { next, end: next + count, make: ExtentIndex }
    }

    // Files.

    /// How many files the list has, pads and empty files included.
    pub fn file_count(&self) -> u32 {
        self.files.len() as u32 // at most FILE_COUNT_MAX
    }

    /// Turns a number into a [`FileIndex`] of this torrent.
    ///
    /// # Errors
    /// [`GeometryError::FileOutOfRange`] when `raw` is not below the file count.
    pub fn file(&self, raw: u32) -> Result<FileIndex, GeometryError> {
        let past_end = GeometryError::FileOutOfRange { raw, count: self.file_count() };
        (raw < self.file_count()).then_some(FileIndex(raw)).ok_or(past_end)
    }

    /// All files in order, pads and empty files included.
    pub fn files(
        &self,
    ) -> impl ExactSizeIterator<Item = FileIndex> + DoubleEndedIterator + Clone + use<> {
        ExactRange { next: 0, end: self.file_count(), make: FileIndex }
    }

    /// Where a file begins in torrent space, in bytes.
    pub fn file_offset(&self, file: FileIndex) -> u64 {
        self.span(file.0).offset_bytes
    }

    /// Length of a file in bytes.
    pub fn file_len(&self, file: FileIndex) -> u64 {
        self.span(file.0).len_bytes
    }

    /// Whether a file that is not empty begins inside of a page: v1 without pads.
    pub fn lies_askew(&self) -> bool {
        let is_askew =
            |file| self.file_len(file) > 0 && !self.file_offset(file).is_multiple_of(4096);
        self.files().any(|file| !self.is_pad(file) && is_askew(file))
    }

    /// Whether a file of the list is a pad of BEP 47.
    pub fn is_pad(&self, file: FileIndex) -> bool {
        self.files.is_pad(file.0)
    }

    /// The pieces that have bytes of a file (or explicit pad), in order; none of an empty one.
    pub fn pieces_of_file(
        &self,
        file: FileIndex,
    ) -> impl ExactSizeIterator<Item = PieceIndex> + DoubleEndedIterator + Clone + use<> {
        let span = self.span(file.0);
        let piece_len = u64::from(self.piece_len);
        let next = span.offset_bytes / piece_len;
        let end = (span.offset_bytes + span.len_bytes).div_ceil(piece_len);
        let end = if span.len_bytes == 0 { next } else { end };
        ExactRange { next: next as u32, end: end as u32, make: PieceIndex }
    }

    /// The file that a piece of a v2 or hybrid torrent belongs to, and the number of the piece in
    /// that file (its place in the file's piece layer). `None` for a piece that lies wholly in a
    /// pad; of v1 torrents, where pieces span files, always `None`.
    pub fn piece_in_file(&self, piece: PieceIndex) -> Option<(FileIndex, u32)> {
        let offset = self.piece_offset(piece);
        if !self.kind.has_v2() {
            return None;
        }
        let file = self.last_data_before(offset + 1)?;
        let span = self.span(file);
        let in_file = offset - span.offset_bytes;
        (in_file < span.len_bytes)
            .then(|| (FileIndex(file), (in_file / u64::from(self.piece_len)) as u32))
    }

    /// The file and the leaf of its BEP 52 tree that a block of a v2 or hybrid torrent is. `None`
    /// for a block that is no leaf: not at a multiple of [`BLOCK_LEN`], wholly in a pad, or of a v1
    /// torrent. The length is not looked at.
    pub fn leaf_of(&self, block: BlockRef) -> Option<(FileIndex, u32)> {
        if !self.kind.has_v2() || !block.begin.is_multiple_of(BLOCK_LEN) {
            return None;
        }
        let (file, _) = self.piece_in_file(block.piece)?;
        let span = self.span(file.0);
        let in_file = self.block_offset(block) - span.offset_bytes;
        // 2^46 / 2^14 = 2^32 leaves, numbered from 0: the last number fits.
        (in_file < span.len_bytes).then(|| (file, (in_file / u64::from(BLOCK_LEN)) as u32))
    }

    /// Cuts `len` bytes of torrent space at `offset` into parts of files and pads, in order.
    ///
    /// # Panics
    /// If the range leaves the torrent space.
    pub fn slices(&self, offset: u64, len: u64) -> Slices<'_> {
        let end = offset.checked_add(len).filter(|&end| end <= self.total_len);
        let end =
            end.unwrap_or_else(|| panic!("{len} bytes at {offset} leave {} bytes", self.total_len));
        // The first file with data that ends behind `offset`.
        let next = self.files.first_data_from(self.files.first_ending_behind(offset));
        Slices { geometry: self, next, offset, end }
    }

    fn span(&self, file: u32) -> Span {
        self.files.span(file, self.kind, self.piece_len)
    }

    /// The last file with data that begins before `end`.
    fn last_data_before(&self, end: u64) -> Option<u32> {
        // The file in which the byte in front of `end` lies; files from there on begin later.
        let at = self.files.first_ending_behind(end.checked_sub(1)?);
        let file = self.files.last_data_to(at)?;
        // In a v2 torrent that byte may lie in the implied pad in front of the file.
        if self.span(file).offset_bytes < end {
            return Some(file);
        }
        self.files.last_data_to(file.checked_sub(1)?)
    }

    /// Bytes of the range up to the end of the last file in it.
    fn data_len(&self, offset: u64, len: u32) -> u32 {
        // Asked of every block: where nothing is a pad there is nothing to look for among thousands of files.
        if self.payload_len() == self.total_len() {
            return len;
        }
        let end = offset + u64::from(len);
        let data_end = self.last_data_before(end).map_or(0, |file| self.files.end(file).min(end));
        data_end.saturating_sub(offset) as u32 // at most `len`
    }

    fn cuts_pieces(&self) -> bool {
        self.piece_len >= EXTENT_LEN_MAX
    }

    /// One of the two factors is always 1.
    fn first_piece_of(&self, extent: ExtentIndex) -> u32 {
        extent.0 / self.extents_per_piece * self.pieces_per_extent
    }
}

#[cfg(test)]
mod tests;
