//! Where files begin and end, in 4 bytes and a bit each: a torrent of a million files keeps it in
//! memory for as long as it is active.

use std::sync::Arc;

use super::{
    BLOCK_LEN, EXTENT_LEN_MAX, FILE_COUNT_MAX, FileSpan, Geometry, GeometryError, Kind,
    PIECE_COUNT_MAX, PIECE_LEN_MAX, PIECE_LEN_MIN_V1, PieceIndex, TOTAL_LEN_MAX,
};

/// How often 4 GiB fit into the longest torrent: 64 KiB of steps.
const STEPS_MAX: u64 = TOTAL_LEN_MAX >> 32;
const _: () = assert!(STEPS_MAX <= 16 << 10);

/// A file's place in torrent space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

/// Where each file ends in torrent space. It begins where the one before it ends, or in a v2 torrent
/// with the next piece; an empty one ends where the one before it does.
///
/// Ends only grow, so the upper half of one need not stand beside the lower: it is enough to know with
/// which file each 4 GiB of torrent space are passed.
#[derive(Debug)]
pub(super) struct FileTable {
    /// Ends in bytes, in order: their lower halves.
    lows: Box<[u32]>,
    /// The first file that ends at so many times 4 GiB or behind, for once, twice and so on: at most
    /// [`STEPS_MAX`].
    steps: Box<[u32]>,
    /// One bit per file: it has bytes and is no pad. Walks run over these, so that a million empty
    /// files or pads at one place cost little.
    data: Box<[u64]>,
    /// One bit per file: it is a pad. Empty without pads.
    pads: Box<[u64]>,
}

impl FileTable {
    pub fn len(&self) -> usize {
        self.lows.len()
    }

    pub fn end(&self, file: u32) -> u64 {
        let high = self.steps.partition_point(|&first| first <= file) as u64;
        high << 32 | u64::from(self.lows[file as usize])
    }

    pub fn is_pad(&self, file: u32) -> bool {
        assert!((file as usize) < self.len(), "a file of another torrent");
        let word = self.pads.get(file as usize / 64);
        word.is_some_and(|word| word >> (file % 64) & 1 == 1)
    }

    pub fn span(&self, file: u32, kind: Kind, piece_len: u32) -> Span {
        let end = self.end(file);
        let before = file.checked_sub(1).map_or(0, |before| self.end(before));
        let offset_bytes = if kind == Kind::V2 && before < end {
            before.next_multiple_of(u64::from(piece_len))
        } else {
            before
        };
        Span { offset_bytes, len_bytes: end - offset_bytes }
    }

    /// The first file or pad that ends behind `offset`; the number of files if there is none.
    pub fn first_ending_behind(&self, offset: u64) -> u32 {
        // Files whose ends have this upper half stand together.
        let first_at = |high: usize| match high.checked_sub(1) {
            Some(step) => self.steps.get(step).map_or(self.len(), |&first| first as usize),
            None => 0,
        };
        let high = (offset >> 32) as usize;
        let (from, to) = (first_at(high), first_at(high + 1));
        (from + self.lows[from..to].partition_point(|&low| low <= offset as u32)) as u32
    }

    /// The first file with data that is not before `file`; the number of files if there is none.
    pub fn first_data_from(&self, file: u32) -> u32 {
        let word_at = file as usize / 64;
        let words = self.data.iter().enumerate().skip(word_at);
        let mask = |at| if at == word_at { u64::MAX << (file % 64) } else { u64::MAX };
        let mut masked = words.map(|(at, word)| (at, word & mask(at)));
        let found = masked.find(|(_, word)| *word != 0);
        found.map_or(self.len() as u32, |(at, word)| at as u32 * 64 + word.trailing_zeros())
    }

    /// The last file with data up to `file`.
    pub fn last_data_to(&self, file: u32) -> Option<u32> {
        let file = file.min(self.len() as u32 - 1);
        let word_at = file as usize / 64;
        let words = self.data[..=word_at].iter().enumerate().rev();
        let mask = |at| if at == word_at { u64::MAX >> (63 - file % 64) } else { u64::MAX };
        let mut masked = words.map(|(at, word)| (at, word & mask(at)));
        let (at, word) = masked.find(|(_, word)| *word != 0)?;
        Some(at as u32 * 64 + word.ilog2())
    }
}

/// Makes a [`Geometry`] of files that come one by one.
pub(crate) struct GeometryBuilder {
    kind: Kind,
    piece_len: u32,
    /// Never above [`TOTAL_LEN_MAX`].
    end: u64,
    payload_len: u64,
    lows: Vec<u32>,
    steps: Vec<u32>,
    data: Vec<u64>,
    pads: Vec<u64>,
}

impl GeometryBuilder {
    /// For `file_count` files: the memory is taken at once, and exactly.
    ///
    /// # Errors
    /// [`GeometryError::PieceLen`] or [`GeometryError::TooManyFiles`].
    pub(crate) fn new(
        piece_len_bytes: u64,
        kind: Kind,
        file_count: usize,
    ) -> Result<Self, GeometryError> {
        let piece_len = checked_piece_len(piece_len_bytes, kind)?;
        if file_count > FILE_COUNT_MAX {
            return Err(GeometryError::TooManyFiles { count: file_count });
        }
        let lows = Vec::with_capacity(file_count);
        let data = vec![0; file_count.div_ceil(64)];
        let (steps, pads) = (Vec::new(), Vec::new());
        Ok(Self { kind, piece_len, end: 0, payload_len: 0, lows, steps, data, pads })
    }

    /// Adds a file or pad behind the others.
    ///
    /// # Errors
    /// A [`GeometryError`] when a limit or an alignment rule is broken.
    ///
    /// # Panics
    /// If there are more files than the builder was made for.
    pub(crate) fn push(&mut self, file: FileSpan) -> Result<(), GeometryError> {
        let file_index = self.lows.len();
        let piece_len = u64::from(self.piece_len);
        if file.pad && file.len_bytes > 0 && self.kind == Kind::V2 {
            return Err(GeometryError::PadInV2 { file_index });
        }
        let holds_data = !file.pad && file.len_bytes > 0;
        let mut begin = self.end;
        if holds_data && self.kind == Kind::V2 {
            begin = begin.next_multiple_of(piece_len);
        }
        if holds_data && self.kind == Kind::Hybrid && !begin.is_multiple_of(piece_len) {
            return Err(GeometryError::NotAligned { file_index, offset_bytes: begin });
        }
        let end = begin.checked_add(file.len_bytes).filter(|&end| end <= TOTAL_LEN_MAX);
        self.end = end.ok_or(GeometryError::TooLong { file_index })?;
        if holds_data {
            self.data[file_index / 64] |= 1 << (file_index % 64);
            self.payload_len += file.len_bytes;
        }
        if file.pad {
            self.pads.resize(self.data.len(), 0);
            self.pads[file_index / 64] |= 1 << (file_index % 64);
        }
        while self.steps.len() < (self.end >> 32) as usize {
            self.steps.push(file_index as u32);
        }
        self.lows.push(self.end as u32);
        Ok(())
    }

    /// The geometry of the files given.
    ///
    /// # Errors
    /// [`GeometryError::Empty`] or [`GeometryError::TooManyPieces`].
    pub(crate) fn finish(self) -> Result<Geometry, GeometryError> {
        if self.payload_len == 0 {
            return Err(GeometryError::Empty);
        }
        let piece_len = self.piece_len;
        let total_len = match self.kind {
            Kind::V2 => self.end.next_multiple_of(u64::from(piece_len)),
            Kind::V1 | Kind::Hybrid => self.end,
        };
        let piece_count = total_len.div_ceil(u64::from(piece_len));
        let piece_count = u32::try_from(piece_count)
            .ok()
            .filter(|&count| count <= PIECE_COUNT_MAX)
            .ok_or(GeometryError::TooManyPieces { count: piece_count })?;
        let mut geometry = Geometry {
            kind: self.kind,
            piece_len,
            piece_count,
            total_len,
            payload_len: self.payload_len,
            extent_count: 0,
            extents_per_piece: piece_len.div_ceil(EXTENT_LEN_MAX),
            pieces_per_extent: (EXTENT_LEN_MAX / piece_len).max(1),
            files: Arc::new(FileTable {
                lows: self.lows.into(),
                steps: self.steps.into(),
                data: self.data.into(),
                pads: self.pads.into(),
            }),
        };
        geometry.extent_count = if geometry.cuts_pieces() {
            let last_len = geometry.piece_len(PieceIndex(piece_count - 1));
            (piece_count - 1) * geometry.extents_per_piece + last_len.div_ceil(EXTENT_LEN_MAX)
        } else {
            piece_count.div_ceil(geometry.pieces_per_extent)
        };
        Ok(geometry)
    }
}

fn checked_piece_len(len_bytes: u64, kind: Kind) -> Result<u32, GeometryError> {
    let wrong = GeometryError::PieceLen { len_bytes, kind };
    let len = u32::try_from(len_bytes).map_err(|_| wrong.clone())?;
    let fits = match kind {
        Kind::V1 => (PIECE_LEN_MIN_V1..=PIECE_LEN_MAX).contains(&len),
        Kind::V2 | Kind::Hybrid => {
            (BLOCK_LEN..=PIECE_LEN_MAX).contains(&len) && len.is_power_of_two()
        }
    };
    fits.then_some(len).ok_or(wrong)
}
