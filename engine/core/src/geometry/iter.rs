//! Walks over pieces, extents, blocks and files.

use std::iter::FusedIterator;

use super::{BLOCK_LEN, BlockRef, FileIndex, FileSlice, Geometry, PieceIndex};

/// Blocks that we request, in order; made by [`Geometry::blocks_of_extent`].
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) next: u64,
    pub(super) end: u64,
}

impl Iterator for Blocks<'_> {
    type Item = BlockRef;

    fn next(&mut self) -> Option<BlockRef> {
        let geometry = self.geometry;
        let piece_len = u64::from(geometry.piece_len);
        while self.next < self.end {
            let offset = self.next;
            let piece = PieceIndex((offset / piece_len) as u32);
            let begin = (offset % piece_len) as u32;
            let in_piece = geometry.piece_len(piece) - begin;
            let full = in_piece.min(BLOCK_LEN);
            self.next += u64::from(full);
            let len = geometry.data_len(offset, full);
            if len > 0 {
                return Some(BlockRef { piece, begin, len });
            }
        }
        None
    }
}

impl FusedIterator for Blocks<'_> {}

/// Parts of files and pads, in order; made by [`Geometry::slices`].
#[derive(Clone, Debug)]
pub struct Slices<'a> {
    pub(super) geometry: &'a Geometry,
    /// The file with data that holds `offset`, or the first one behind it.
    pub(super) next: u32,
    pub(super) offset: u64,
    pub(super) end: u64,
}

impl Iterator for Slices<'_> {
    type Item = FileSlice;

    fn next(&mut self) -> Option<FileSlice> {
        if self.offset >= self.end {
            return None;
        }
        let files = &self.geometry.files;
        let here = (self.next < self.geometry.file_count()).then(|| self.geometry.span(self.next));
        let data_begin = here.map_or(self.end, |span| span.offset_bytes);
        let slice = if self.offset < data_begin {
            let before = self.next.checked_sub(1).and_then(|before| files.last_data_to(before));
            // A geometry has at least one file with data.
            let file = before.unwrap_or(self.next);
            let len = data_begin.min(self.end) - self.offset;
            FileSlice { file: FileIndex(file), file_offset: 0, len, pad: true }
        } else {
            let file = self.next;
            let len = files.end(file).min(self.end) - self.offset;
            self.next = files.first_data_from(file + 1);
            FileSlice {
                file: FileIndex(file),
                file_offset: self.offset - data_begin,
                len,
                pad: false,
            }
        };
        self.offset += slice.len;
        Some(slice)
    }
}

impl FusedIterator for Slices<'_> {}

/// `make(next)`, `make(next + 1)`, up to but without `end`.
#[derive(Clone)]
pub(super) struct ExactRange<T> {
    pub(super) next: u32,
    pub(super) end: u32,
    pub(super) make: fn(u32) -> T,
}

impl<T> Iterator for ExactRange<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        (self.next < self.end).then(|| {
            self.next += 1;
            (self.make)(self.next - 1)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(self.next) as usize;
        (left, Some(left))
    }
}

impl<T> DoubleEndedIterator for ExactRange<T> {
    fn next_back(&mut self) -> Option<T> {
        (self.next < self.end).then(|| {
            self.end -= 1;
            (self.make)(self.end)
        })
    }
}

impl<T> ExactSizeIterator for ExactRange<T> {}
impl<T> FusedIterator for ExactRange<T> {}
