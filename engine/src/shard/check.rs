//! Hashing what lies on disk: after an unclean stop, after a failed sync, for data that was there.
//!
//! A few extents are read ahead and hashed in order, so that a piece of any length needs the memory of
//! those few extents only.

use std::collections::VecDeque;
use std::io;

use ringseed_core::geometry::{BLOCK_LEN, ExtentIndex, PieceIndex};
use ringseed_sys::arena::ExtentMut;
use ringseed_sys::hash;
use sha1::Digest as _;

use super::Shard;
use super::budget::Class;
use super::disk::FileKey;
use super::hashing::check_v2;
use super::listing::Stage;
use crate::api::{ListingError, ListingId};
use crate::store::RunSet;

/// Extents of one listing that are read ahead.
const READ_AHEAD: usize = 4;

/// A check under way.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Pieces to check, those in `extents` included.
    pieces: RunSet,
    /// Somebody waits for it, or data is in doubt.
    is_repair: bool,
    /// Extents to read, the next one first.
    queue: VecDeque<ExtentIndex>,
    /// Read or being read, in the order they were queued: all extents of a piece one behind the other.
    extents: VecDeque<(ExtentIndex, Option<ReadExtent>)>,
    /// The piece that the last extent ended in the middle of.
    partial: Option<PartialPiece>,
    /// Pieces that failed.
    bad: u32,
    /// The disk failed to read something that is there.
    disk_error: Option<String>,
}

/// An extent as it was read: its bytes, and the parts that are not there.
#[derive(Debug)]
struct ReadExtent {
    bytes: Option<ExtentMut>,
    holes: Vec<(usize, usize)>,
}

/// The hash of a piece of which some extents are through.
#[derive(Debug)]
struct PartialPiece {
    piece: PieceIndex,
    sha1: sha1::Sha1,
    leaves: Vec<[u8; 32]>,
    is_readable: bool,
}

impl Shard {
    /// Checks pieces from disk; what verifies is had, what does not is fetched.
    pub(super) fn begin_check(&mut self, listing: ListingId, pieces: RunSet, class: Class) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if matches!(active.stage, Stage::Failed(_)) || pieces.is_empty() {
            return;
        }
        active.stage = Stage::Checking;
        tracing::info!(listing = listing.0, pieces = pieces.count(), "checking");
        // A stop before the check is through must not turn what is not checked into what is missing.
        if let Some(slot) = self.journal_slot(listing) {
            self.commit.writer().intent(slot, pieces.runs());
        }
        self.queue_check(listing, pieces, class);
    }

    /// Checks pieces from disk while fetching goes on.
    pub(super) fn queue_check(&mut self, listing: ListingId, pieces: RunSet, class: Class) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let check = active.check.get_or_insert_default();
        // What is urgent does not wait behind what is not: all of it is urgent then.
        check.is_repair |= class == Class::Repair;
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            // Under check already: whoever asks again and again for lost leaves gets one check of them.
            if check.pieces.contains(piece.get()) {
                continue;
            }
            for extent in geometry.extents_of_piece(piece) {
                if check.queue.back() != Some(&extent) {
                    check.queue.push_back(extent);
                }
            }
            check.pieces.insert(piece.get(), 1);
        }
        self.pump_check(listing);
    }

    /// Whether a piece is being checked, or about to be.
    pub(super) fn is_under_check(&self, listing: ListingId, piece: u32) -> bool {
        let check = self.active.get(&listing).and_then(|active| active.check.as_ref());
        check.is_some_and(|check| check.pieces.contains(piece))
    }

    /// Reads ahead as far as the arena allows.
    fn pump_check(&mut self, listing: ListingId) {
        // What is under way ends; the rest is for the next run, which finds its intents.
        while !self.is_stopping {
            let Some(active) = self.active.get_mut(&listing) else { return };
            let Some(geometry) = active.geometry().cloned() else { return };
            let Some(check) = &mut active.check else { return };
            if check.extents.len() >= READ_AHEAD {
                return;
            }
            let Some(&extent) = check.queue.front() else { return };
            let Some(buf) = self.take_extent() else {
                self.counters.arena_waits.add(1);
                self.checks_waiting.insert(listing);
                return;
            };
            let check = self.active.get_mut(&listing).and_then(|active| active.check.as_mut());
            let check = check.expect("looked up above");
            check.queue.pop_front();
            check.extents.push_back((extent, None));
            let class = if check.is_repair { Class::Repair } else { Class::Check };
            self.read_extent(listing, &geometry, extent, RunSet::default(), class, buf);
        }
    }

    /// Looks again at checks that found no extent to read into.
    pub(super) fn wake_checks(&mut self) {
        for listing in std::mem::take(&mut self.checks_waiting) {
            self.pump_check(listing);
        }
    }

    /// An extent of a check is read, or cannot be.
    pub(super) fn check_read(
        &mut self,
        listing: ListingId,
        extent: ExtentIndex,
        bytes: Option<ExtentMut>,
        holes: Vec<(usize, usize)>,
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(check) = &mut active.check else { return };
        let is_it =
            |(of, read): &&mut (ExtentIndex, Option<ReadExtent>)| *of == extent && read.is_none();
        let Some((_, slot)) = check.extents.iter_mut().find(is_it) else { return };
        *slot = Some(ReadExtent { bytes, holes });
        // Strictly in order: a piece goes through one hash state.
        while let Some(active) = self.active.get_mut(&listing)
            && let Some(check) = &mut active.check
            && let Some((_, Some(_))) = check.extents.front()
        {
            if let Some((extent, Some(read))) = check.extents.pop_front() {
                self.check_extent(listing, extent, read);
            }
        }
        self.pump_check(listing);
        self.look_whether_checked(listing);
    }

    /// Says what could not be read, unless it is merely not there.
    pub(super) fn note_check_error(&mut self, listing: ListingId, error: &io::Error) {
        let is_absence =
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof);
        if !is_absence {
            tracing::warn!(listing = listing.0, %error, "cannot read while checking");
            let check = self.active.get_mut(&listing).and_then(|active| active.check.as_mut());
            if let Some(check) = check {
                check.disk_error = Some(error.to_string());
            }
        }
    }

    fn check_extent(&mut self, listing: ListingId, extent: ExtentIndex, read: ReadExtent) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let (has_v2, has_v1) = (active.has_v2(), active.checks_v1());
        let begin = geometry.extent_offset(extent);
        let mut verdicts = Vec::new();
        for piece in geometry.pieces_of_extent(extent) {
            let Some(check) = &mut active.check else { return };
            if !check.pieces.contains(piece.get()) {
                continue;
            }
            let fresh = || PartialPiece {
                piece,
                sha1: sha1::Sha1::new(),
                leaves: Vec::new(),
                is_readable: true,
            };
            let mut partial =
                check.partial.take().filter(|partial| partial.piece == piece).unwrap_or_else(fresh);
            let piece_begin = geometry.piece_offset(piece);
            let piece_end = piece_begin + u64::from(geometry.piece_len(piece));
            let from = piece_begin.max(begin);
            let to = piece_end.min(begin + u64::from(geometry.extent_len(extent)));
            let (first, last) = ((from - begin) as usize, (to - begin) as usize);
            let is_hole = read.holes.iter().any(|&(at, len)| at < last && at + len > first);
            match read.bytes.as_ref().filter(|_| !is_hole) {
                Some(bytes) => {
                    let bytes = &bytes[first..last];
                    if has_v1 {
                        partial.sha1.update(bytes);
                        self.counters.hashed_bytes.add(bytes.len() as u64);
                    }
                    if has_v2 {
                        let data_end = piece_begin + u64::from(geometry.piece_data_len(piece));
                        let data = &bytes[..data_end.saturating_sub(from).min(to - from) as usize];
                        partial.leaves.extend(leaves_of(data));
                        self.counters.hashed_bytes.add(data.len() as u64);
                    }
                }
                None => partial.is_readable = false,
            }
            if to < piece_end {
                check.partial = Some(partial);
                continue;
            }
            check.pieces.remove(piece.get(), 1);
            let metainfo = active.metainfo.as_ref().expect("a piece has a metainfo");
            let sha1: [u8; 20] = partial.sha1.finalize().into();
            let is_good_v1 = !has_v1 || metainfo.info().v1_piece_hash(piece) == Some(&sha1);
            let is_good_v2 = !has_v2 || check_v2(metainfo, piece, &partial.leaves);
            let is_good = partial.is_readable && is_good_v1 && is_good_v2;
            if partial.is_readable && has_v2 && is_good_v2 && !is_good_v1 {
                let piece = piece.get();
                self.fail_listing(listing, ListingError::ViewsDisagree { piece, sha1_found: sha1 });
                return;
            }
            verdicts.push((piece, partial.is_readable, is_good, partial.leaves));
        }
        for (piece, is_readable, is_good, leaves) in verdicts {
            if self.spilled_checked(listing, piece, is_readable, is_good, &leaves) {
                continue;
            }
            if self.active.get(&listing).is_some_and(|active| active.have.get(piece)) {
                self.had_piece_checked(listing, piece, is_readable, is_good, &leaves);
                continue;
            }
            if is_good {
                self.piece_found(listing, piece, &leaves);
            } else if let Some(check) =
                self.active.get_mut(&listing).and_then(|active| active.check.as_mut())
            {
                check.bad += 1;
            }
        }
    }

    /// A piece on disk verifies.
    pub(super) fn piece_found(
        &mut self,
        listing: ListingId,
        piece: PieceIndex,
        leaves: &[[u8; 32]],
    ) {
        self.keep_leaves(listing, piece, leaves);
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        active.set_have(piece);
        active.stored.set(piece);
        active.requests.piece_done(piece);
        active.assembler.found(&geometry, piece);
        let is_owned = active.place.is_owned() && !active.is_helper();
        active.unannounced.insert(piece.get());
        self.announce(listing, &std::iter::once(piece.get()).collect());
        // It was read, perhaps out of the page cache: durable is only what a sync has gone over.
        if is_owned {
            let len = u64::from(geometry.piece_len(piece));
            for slice in
                geometry.slices(geometry.piece_offset(piece), len).filter(|slice| !slice.pad)
            {
                self.commit.files.insert(FileKey { listing, file: slice.file.get() });
            }
        }
        self.commit_piece(listing, piece.get(), u64::from(geometry.piece_data_len(piece)));
    }

    fn look_whether_checked(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(check) = &active.check else { return };
        if !check.queue.is_empty() || !check.extents.is_empty() {
            return;
        }
        let (bad, disk_error) = (check.bad, check.disk_error.clone());
        active.check = None;
        self.answer_waiting(listing, true);
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.stage != Stage::Checking {
            self.begin_stage(listing);
            return;
        }
        active.stage = Stage::Running;
        tracing::info!(listing = listing.0, bad, have = active.have.count(), "checked");
        let missing_pieces = active.have.piece_count() - active.have.count();
        if !active.place.is_owned()
            && missing_pieces > 0
            && let Some(error) = disk_error
        {
            // What cannot be read now is not wrong: it is looked at again.
            return self.disk_failed(listing, &io::Error::other(error));
        }
        if !active.place.is_owned() && missing_pieces > 0 {
            let piece_count = active.have.piece_count();
            let error = ListingError::IncompleteInPlace { missing_pieces, piece_count };
            self.fail_listing(listing, error);
            return;
        }
        self.begin_stage(listing);
    }
}

/// SHA-256 of each block.
fn leaves_of(data: &[u8]) -> Vec<[u8; 32]> {
    let blocks: Vec<&[u8]> = data.chunks(BLOCK_LEN as usize).collect();
    let mut leaves = vec![[0; 32]; blocks.len()];
    hash::sha256_many(&blocks, &mut leaves);
    leaves
}
