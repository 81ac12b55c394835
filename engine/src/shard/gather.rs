//! Files that begin in the middle of a sector: v1 torrents without pads.
//!
//! An extent is received where it lies in the torrent, and of such a file no address in it agrees with the
//! offset in the file, as O_DIRECT wants it. Through the page cache the write costs four times as much
//! (2.3 CPU s/GiB measured, most of it for fresh pages). So what was verified in one turn is written as one
//! run: its interior is copied to where it is aligned (0.1 CPU s/GiB) and goes past the page cache, its two
//! edges of less than a page go through it. The page cache holds an edge until its neighbour has come:
//! whichever is written later reads the page as the other has left it.

use std::ops::Range;

use ringseed_core::geometry::{ExtentIndex, Geometry};
use ringseed_sys::arena::{EXTENT_LEN_BYTES, Extent};

use super::Shard;
use super::budget::Class;
use super::cache::ExtentKey;
use super::disk::{DiskTask, FileKey, PUT_LEN_MAX, TaskKind};
use super::writing::Stored;
use crate::api::ListingId;

/// What is written past the page cache begins and ends at a multiple of this, in bytes: a page, and a block of
/// all common file systems. Where a file system wants more, its driver cuts again.
const GRAIN: u64 = 4096;
/// An interior shorter than this is not worth two operations more, in bytes.
const INTERIOR_MIN: u64 = 64 << 10;
/// Extents of one run at most: its pieces count as written together.
const RUN_EXTENTS_MAX: usize = 64;

/// Extents that are verified in this turn and lie askew in their files.
#[derive(Debug, Default)]
pub(super) struct Askew {
    waiting: Vec<(ListingId, Stored)>,
    /// Buffers on their way to the disk that interiors were copied to.
    copies: usize,
}

impl Askew {
    /// Buffers on their way to the disk beside those that the cache knows of.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// The writes of a run have ended, or nobody waits for them any more.
    pub fn came_back(&mut self, copies: usize) {
        self.copies -= copies;
    }

    pub fn push(&mut self, listing: ListingId, stored: Stored) {
        self.waiting.push((listing, stored));
    }
}

/// Whether a stretch of a file lies askew: `at` is where it lies in the torrent, and so in its extents, which
/// begin at multiples of many pages.
fn is_askew(at: u64, file_offset: u64) -> bool {
    !file_offset.abs_diff(at).is_multiple_of(GRAIN)
}

/// Whether an extent holds enough of a file that lies askew.
pub(super) fn holds_askew(geometry: &Geometry, extent: ExtentIndex) -> bool {
    let mut at = geometry.extent_offset(extent);
    geometry.slices(at, u64::from(geometry.extent_len(extent))).any(|slice| {
        let begin = at;
        at += slice.len;
        !slice.pad
            && slice.len >= GRAIN
            && is_askew(begin, slice.file_offset)
            && geometry.file_len(slice.file) > PUT_LEN_MAX
    })
}

impl Shard {
    /// Writes the extents of this turn that lie askew, neighbours together.
    pub(super) fn gather_turn(&mut self) {
        let mut waiting = std::mem::take(&mut self.askew.waiting);
        waiting.sort_by_key(|(listing, stored)| (*listing, stored.extent));
        let mut run: Vec<Stored> = Vec::new();
        let mut of = ListingId(0);
        for (listing, stored) in waiting {
            let goes_on = |last: &Stored| last.extent.get() + 1 == stored.extent.get();
            let is_next = listing == of && run.last().is_none_or(goes_on);
            if !is_next || run.len() >= RUN_EXTENTS_MAX {
                self.write_run(of, std::mem::take(&mut run));
            }
            of = listing;
            run.push(stored);
        }
        self.write_run(of, run);
    }

    /// Where nobody wants what was received, its buffers are free as soon as they are copied, and the next copy
    /// goes to the one that has just been read: a run needs a buffer or two of its own however long it is. Until
    /// then a third of the bytes found no buffer to be copied to while the arena was full of requests.
    fn write_run(&mut self, listing: ListingId, mut run: Vec<Stored>) {
        // One that was removed in this very turn has nothing to write any more.
        let geometry = self.active.get(&listing).and_then(|active| active.geometry()).cloned();
        let Some(geometry) = geometry.filter(|_| !run.is_empty()) else { return };
        let mut first = self.take_extent();
        if first.is_none() && !self.disk.is_idle() && !self.is_stopping {
            // What is on its way to the disk brings buffers back, and another turn.
            self.askew.waiting.extend(run.into_iter().map(|stored| (listing, stored)));
            return;
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in run.iter().flat_map(|stored| stored.ranges(&geometry)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        if !self.is_anybody_interested(listing) {
            for stored in &run {
                let key = ExtentKey { listing, extent: stored.extent.get() };
                self.cache.release(key, stored.cached);
            }
        }
        self.next_job += 1;
        let mut writes = Writes { listing, job: self.next_job, tasks: Vec::new(), copies: 0 };
        for range in ranges {
            let mut at = range.start;
            for slice in geometry.slices(range.start, range.end - range.start) {
                let (begin, file) = (at, slice.file.get());
                at += slice.len;
                if slice.pad {
                    continue;
                }
                let file_offset = |at: u64| slice.file_offset + (at - begin);
                // Where the interior begins and ends in the torrent.
                let low = begin + (slice.file_offset.next_multiple_of(GRAIN) - slice.file_offset);
                let high = at - file_offset(at) % GRAIN;
                let is_worth_it = is_askew(begin, slice.file_offset)
                    && geometry.file_len(slice.file) > PUT_LEN_MAX
                    && high.saturating_sub(low) >= INTERIOR_MIN;
                if !is_worth_it {
                    writes.plain(&geometry, &run, file, begin..at, slice.file_offset);
                    continue;
                }
                writes.plain(&geometry, &run, file, begin..low, slice.file_offset);
                for from in (low..high).step_by(EXTENT_LEN_BYTES) {
                    let to = high.min(from + EXTENT_LEN_BYTES as u64);
                    // Without a buffer to copy to it goes as it lies.
                    match first.take().or_else(|| self.take_extent()) {
                        Some(mut aligned) => {
                            let len = (to - from) as usize;
                            copy_run(&geometry, &run, from..to, &mut aligned[..len]);
                            writes.push(file, file_offset(from), aligned.freeze(), 0, len);
                            writes.copies += 1;
                            let_go(&geometry, &mut run, to);
                        }
                        None => writes.plain(&geometry, &run, file, from..to, file_offset(from)),
                    }
                }
                writes.plain(&geometry, &run, file, high..at, file_offset(high));
            }
        }
        let Writes { job, tasks, copies, .. } = writes;
        let_go(&geometry, &mut run, u64::MAX);
        self.askew.copies += copies;
        self.begin_write(listing, job, run, copies, tasks);
    }
}

/// The writes of a run, as they come together.
struct Writes {
    listing: ListingId,
    job: u64,
    tasks: Vec<DiskTask>,
    copies: usize,
}

impl Writes {
    fn push(&mut self, file: u32, offset_bytes: u64, buf: Extent, start: usize, len: usize) {
        let key = FileKey { listing: self.listing, file };
        let kind = TaskKind::Write { offset_bytes, buf, start, len };
        self.tasks.push(DiskTask { key, class: Class::Foreground, job: self.job, kind });
    }

    /// Writes a range of the torrent out of the extents that hold it.
    fn plain(
        &mut self,
        geometry: &Geometry,
        run: &[Stored],
        file: u32,
        range: Range<u64>,
        file_offset: u64,
    ) {
        for (stored, bytes, part) in parts_of(geometry, run, &range) {
            let start = (part.start - geometry.extent_offset(stored.extent)) as usize;
            let offset_bytes = file_offset + (part.start - range.start);
            let len = (part.end - part.start) as usize;
            self.push(file, offset_bytes, bytes.clone(), start, len);
        }
    }
}

/// Lets go of the extents of a run that end at `before` in the torrent or earlier: all of them is in writes.
fn let_go(geometry: &Geometry, run: &mut [Stored], before: u64) {
    let is_done = |stored: &&mut Stored| {
        let end = geometry.extent_offset(stored.extent);
        end + u64::from(geometry.extent_len(stored.extent)) <= before
    };
    run.iter_mut().take_while(is_done).for_each(|stored| stored.bytes = None);
}

/// The extents of a run that hold parts of a range of the torrent, in order.
///
/// # Panics
/// For one that was let go.
fn parts_of<'a>(
    geometry: &'a Geometry,
    run: &'a [Stored],
    range: &'a Range<u64>,
) -> impl Iterator<Item = (&'a Stored, &'a Extent, Range<u64>)> {
    run.iter().filter_map(move |stored| {
        let begin = geometry.extent_offset(stored.extent);
        let end = begin + u64::from(geometry.extent_len(stored.extent));
        let part = range.start.max(begin)..range.end.min(end);
        let bytes = || stored.bytes.as_ref().expect("what is still to be written is kept");
        (part.start < part.end).then(|| (stored, bytes(), part))
    })
}

fn copy_run(geometry: &Geometry, run: &[Stored], range: Range<u64>, out: &mut [u8]) {
    for (stored, bytes, part) in parts_of(geometry, run, &range) {
        let begin = geometry.extent_offset(stored.extent);
        let from = &bytes[(part.start - begin) as usize..(part.end - begin) as usize];
        let at = (part.start - range.start) as usize;
        out[at..at + from.len()].copy_from_slice(from);
    }
}
