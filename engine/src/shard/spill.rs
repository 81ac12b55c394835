//! Long pieces in little memory: whole extents of pieces that are not whole go to the disk unverified.
//!
//! A piece of 16 MiB is 64 extents, and every source may be filling one. When the arena runs full,
//! extents that wait only for others of their piece are written to their final place under an intent
//! and forgotten. When such a piece is whole, what is left of it is written too. With a v2 view alone to be checked
//! it is judged by its leaves, which were hashed as they came; SHA-1 wants all bytes in order, so all of it is read
//! back and judged as a check does. Until then nothing of it is had, served or claimed.

use ringseed_core::geometry::{ExtentIndex, PieceIndex};

use super::Job;
use super::Shard;
use super::budget::Class;
use super::disk::{DiskTask, FileKey, TaskKind};
use super::hashing::check_v2;
use super::peer::Who;
use crate::api::ListingId;
use crate::store::RunSet;

/// Extents spilled at one time: enough that requests go on while they are written.
const SPILL_AT_ONCE: usize = 16;

/// An unverified extent on its way to the disk.
#[derive(Debug)]
pub(super) struct SpillJob {
    pub listing: ListingId,
    pub extent: ExtentIndex,
    /// Parts of files that are not written yet.
    pub left: usize,
}

impl Shard {
    /// The arena is full: makes room. `of_slow`: only in pieces that slow peers are filling.
    pub(super) fn spill_some(&mut self, of_slow: bool) {
        let mut chosen = Vec::new();
        for active in self.active.values().filter(|active| active.wait.is_none()) {
            let Some(geometry) = active.geometry() else { continue };
            if of_slow && !active.requests.has_joint() {
                continue;
            }
            let has_v2 = active.has_v2();
            let room = SPILL_AT_ONCE - chosen.len();
            let is_meant = |extent: &ExtentIndex| {
                let mut pieces = geometry.pieces_of_extent(*extent);
                !of_slow || pieces.any(|piece| active.requests.is_filled_jointly(piece))
            };
            let extents = active.assembler.spillable(geometry, has_v2).filter(is_meant).take(room);
            chosen.extend(extents.map(|extent| (active.id, extent)));
            if chosen.len() == SPILL_AT_ONCE {
                break;
            }
        }
        for (listing, extent) in chosen {
            self.spill(listing, extent);
        }
    }

    fn spill(&mut self, listing: ListingId, extent: ExtentIndex) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        if !active.has_v2() {
            // Of v1 nothing was hashed yet, and whoever lied must be told apart when the piece is judged.
            active.assembler.digest_blocks(extent);
        }
        let Some(bytes) = active.assembler.take_for_spill(extent) else { return };
        self.filling -= 1;
        let pieces: RunSet = geometry.pieces_of_extent(extent).map(PieceIndex::get).collect();
        if let Some(slot) = self.journal_slot(listing) {
            self.commit.writer().intent(slot, pieces.runs());
        }
        let frozen = bytes.freeze();
        self.next_job += 1;
        let job = self.next_job;
        let len = u64::from(geometry.extent_len(extent));
        let mut start = 0;
        let mut tasks = Vec::new();
        for slice in geometry.slices(geometry.extent_offset(extent), len) {
            let (offset_bytes, buf, len) = (slice.file_offset, frozen.clone(), slice.len as usize);
            if !slice.pad {
                let key = FileKey { listing, file: slice.file.get() };
                let kind = TaskKind::Write { offset_bytes, buf, start, len };
                tasks.push(DiskTask { key, class: Class::Foreground, job, kind });
            }
            start += len;
        }
        let left = tasks.len();
        self.jobs.insert(job, Job::Spill(SpillJob { listing, extent, left }));
        for task in tasks {
            self.disk_submit(task);
        }
    }

    /// An extent is written, unverified.
    pub(super) fn spill_written(&mut self, spill: SpillJob) {
        let Some(active) = self.active.get_mut(&spill.listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        active.assembler.set_spilled(spill.extent);
        for piece in geometry.pieces_of_extent(spill.extent) {
            self.look_whether_spilled(spill.listing, piece);
        }
    }

    /// A piece is whole and parts of it are on disk only: the rest goes there as well. False while a
    /// part is lent to a receive.
    pub(super) fn spill_rest(&mut self, listing: ListingId, piece: PieceIndex) -> bool {
        let Some(active) = self.active.get(&listing) else { return true };
        let Some(geometry) = active.geometry().cloned() else { return true };
        let in_memory = |extent: &ExtentIndex| !active.assembler.is_spilled(*extent);
        let rest: Vec<ExtentIndex> = geometry
            .extents_of_piece(piece)
            .filter(|&extent| geometry.extent_data_len(extent) > 0)
            .filter(in_memory)
            .collect();
        let is_here = |extent: &ExtentIndex| {
            active.assembler.fill(*extent).is_some_and(|fill| fill.bytes().is_some())
        };
        if !rest.iter().all(is_here) {
            return false;
        }
        for extent in rest {
            self.spill(listing, extent);
        }
        self.look_whether_spilled(listing, piece);
        true
    }

    /// Judges a whole piece when all of it is on disk.
    fn look_whether_spilled(&mut self, listing: ListingId, piece: PieceIndex) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        if active.spilled.contains_key(&piece.get())
            || !active.assembler.is_spilled_whole(&geometry, piece)
        {
            return;
        }
        let senders = active.assembler.senders_of(&geometry, piece);
        active.spilled.insert(piece.get(), senders);
        let blocks = active.assembler.blocks_of(&geometry, piece);
        let leaves: Option<Vec<[u8; 32]>> = blocks.map(|block| block.leaf).collect();
        let Some(leaves) = leaves.filter(|_| active.has_v2() && !active.checks_v1()) else {
            self.queue_check(listing, std::iter::once(piece.get()).collect(), Class::Repair);
            return;
        };
        let metainfo = active.metainfo.as_ref().expect("a piece has a metainfo");
        let is_good =
            active.blame.vouches_for(piece, &leaves) || check_v2(metainfo, piece, &leaves);
        self.spilled_checked(listing, piece, true, is_good, &leaves);
    }

    /// A spilled piece was read back: what follows. True when it was one.
    pub(super) fn spilled_checked(
        &mut self,
        listing: ListingId,
        piece: PieceIndex,
        is_readable: bool,
        is_good: bool,
        leaves: &[[u8; 32]],
    ) -> bool {
        let Some(active) = self.active.get_mut(&listing) else { return false };
        let Some(senders) = active.spilled.remove(&piece.get()) else { return false };
        let Some(geometry) = active.geometry().cloned() else { return false };
        if is_good {
            self.settle_good_piece(listing, piece);
            let Some(active) = self.active.get_mut(&listing) else { return true };
            active.set_have(piece);
            active.assembler.finish(&geometry, piece, &active.done);
            for (sender, bytes) in senders {
                if let Some((_, verified)) = active.sources.get_mut(&sender) {
                    *verified += bytes;
                }
                self.counters.payload_verified_bytes.add(bytes);
            }
            self.piece_found(listing, piece, leaves);
        } else {
            // The leaves were hashed when the blocks came: if they are right, our disk is not. Of v1
            // nothing was hashed, and what cannot be read at all says nothing of who sent it.
            let came: Vec<[u8; 32]> = active
                .assembler
                .blocks_of(&geometry, piece)
                .filter_map(|block| block.leaf)
                .collect();
            let metainfo = active.metainfo.as_ref().expect("a piece has a metainfo");
            let is_disk_to_blame = match active.has_v2() {
                true => check_v2(metainfo, piece, &came),
                false => !is_readable,
            };
            self.settle_bad_piece(listing, piece, is_disk_to_blame);
        }
        true
    }
}

/// Who sent how much of a piece, kept while it is read back.
pub(super) type Senders = Vec<(Who, u64)>;
