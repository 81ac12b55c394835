//! From written to durable: sync the data, journal the pieces, sync the journal, only then claim them.
//!
//! Pieces that are written gather in a batch of 64 MiB or one second (facts: 0.5 ms for the data and
//! 0.15 ms for the journal per batch), or go at once when a listing completes. One batch is on its way
//! at a time. A failed sync makes its pieces *unknown*: a second sync would say yes over zeros, so they
//! are read back past the page cache and hashed again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use ringseed_core::geometry::PieceIndex;

use super::Shard;
use super::budget::Class;
use super::disk::{DiskTask, FileKey, TaskKind};
use super::journal::JournalFile;
use super::listing::Active;
use super::timers::Timer;
use crate::api::ListingId;
use crate::store::RunSet;
use crate::store::journal::{JournalSlot, JournalWriter, Stamp};

/// A batch is committed when it holds so many bytes.
const BATCH_BYTES: u64 = 64 << 20;
/// A batch is committed when its first piece has waited so long.
const BATCH_AGE: Duration = Duration::from_secs(1);

/// Written pieces by listing.
pub(super) type Pieces = BTreeMap<ListingId, RunSet>;

/// The way of written pieces to the journal.
#[derive(Debug)]
pub(super) struct Commit {
    /// Files written since their last sync.
    pub files: BTreeSet<FileKey>,
    /// Commit now: a listing is complete, files must be closed, the engine stops.
    pub is_urgent: bool,
    pieces: Pieces,
    /// What the files of listings look like that are complete with this batch or the next.
    pub stamps: BTreeMap<ListingId, Stamp>,
    bytes: u64,
    oldest: Option<Instant>,
    pub phase: Phase,
    pub journal: JournalFile,
}

/// Where the batch is.
#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    /// Data syncs in flight; files whose sync failed.
    Data {
        left: usize,
        failed: BTreeSet<FileKey>,
        pieces: Pieces,
    },
    /// The have records are in the writer, and with them everything before.
    Journal {
        pieces: Pieces,
    },
    /// The journal's sync is in flight.
    Sync {
        pieces: Pieces,
    },
}

impl Commit {
    pub fn new(journal: JournalFile) -> Self {
        Commit {
            files: BTreeSet::new(),
            is_urgent: false,
            pieces: Pieces::new(),
            stamps: BTreeMap::new(),
            bytes: 0,
            oldest: None,
            phase: Phase::Idle,
            journal,
        }
    }

    /// The writer of records; what it holds goes out with the next turn.
    pub fn writer(&mut self) -> &mut JournalWriter {
        &mut self.journal.writer
    }

    /// Nothing waits, nothing is in flight.
    pub fn is_idle(&self) -> bool {
        // Without a journal nothing is claimed, so nothing is on its way either.
        self.journal.is_lost
            || (matches!(self.phase, Phase::Idle)
                && self.pieces.is_empty()
                && self.journal.is_written())
    }

    /// Takes back what the journal says of pieces that turned out not to be there.
    pub fn disbelieve(&mut self, slot: Option<JournalSlot>, believed: &RunSet, have: &RunSet) {
        let mut gone = believed.clone();
        have.runs().for_each(|(first, count)| gone.remove(first, count));
        if let Some(slot) = slot.filter(|_| !gone.is_empty()) {
            self.journal.writer.lost(slot, gone.runs());
        }
    }

    /// Pieces that are not synced yet are not to be claimed.
    pub fn take_back(&mut self, listing: ListingId, pieces: &RunSet) {
        let mut batches = vec![&mut self.pieces];
        if let Phase::Data { pieces, .. } = &mut self.phase {
            batches.push(pieces);
        }
        for batch in batches {
            if let Some(of) = batch.get_mut(&listing) {
                pieces.runs().for_each(|(first, count)| of.remove(first, count));
            }
        }
    }

    /// Forgets what a removed listing has on the way.
    pub fn forget(&mut self, listing: ListingId) {
        self.pieces.remove(&listing);
        self.stamps.remove(&listing);
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Data { pieces, .. } | Phase::Journal { pieces } | Phase::Sync { pieces } => {
                pieces.remove(&listing);
            }
        }
    }
}

impl Shard {
    /// A piece is written whole; it is durable when its batch is.
    pub(super) fn commit_piece(&mut self, listing: ListingId, piece: u32, len_bytes: u64) {
        self.share_stored(listing, piece);
        if self.active.get(&listing).is_some_and(Active::is_helper) {
            return self.leave_commit_to_home(listing, piece);
        }
        self.commit_run(listing, piece, 1);
        self.commit.bytes += len_bytes;
    }

    /// Another shard has written a piece of a listing of this one, which syncs and journals for all: of a sync
    /// that fails, nobody else could tell what it should have covered.
    pub(super) fn commit_for_helper(&mut self, listing: ListingId, piece: PieceIndex) {
        let Some(active) = self.active.get(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let len = u64::from(geometry.piece_len(piece));
        let slices = geometry.slices(geometry.piece_offset(piece), len);
        for slice in slices.filter(|slice| !slice.pad) {
            self.commit.files.insert(FileKey { listing, file: slice.file.get() });
        }
        self.commit_run(listing, piece.get(), 1);
        self.commit.bytes += u64::from(geometry.piece_data_len(piece));
    }

    /// Pieces that need no writing are to be journalled.
    pub(super) fn commit_run(&mut self, listing: ListingId, first: u32, count: u32) {
        self.commit.pieces.entry(listing).or_default().insert(first, count);
        if self.commit.oldest.is_none() {
            self.commit.oldest = Some(self.now);
            self.timers.set(self.now + BATCH_AGE, Timer::Commit);
        }
    }

    /// Takes the next steps of the batch and of the journal.
    pub(super) fn pump_commit(&mut self) {
        self.start_batch();
        if matches!(self.commit.phase, Phase::Idle) && self.commit.journal.is_waited_for() {
            // Nothing of this shard: other shards wait for a sync behind their records.
            self.commit.phase = Phase::Journal { pieces: Pieces::new() };
        }
        self.pump_journal();
    }

    fn start_batch(&mut self) {
        let commit = &mut self.commit;
        let is_old = commit.oldest.is_some_and(|oldest| self.now >= oldest + BATCH_AGE);
        let is_due = commit.bytes >= BATCH_BYTES || is_old || commit.is_urgent;
        let has_work = !commit.pieces.is_empty() || !commit.files.is_empty();
        if !matches!(commit.phase, Phase::Idle) || !is_due || commit.journal.is_lost {
            return;
        }
        commit.is_urgent = false;
        if !has_work {
            return;
        }
        let pieces = std::mem::take(&mut commit.pieces);
        let files = std::mem::take(&mut commit.files);
        let listings: Vec<ListingId> = pieces.keys().copied().collect();
        (commit.bytes, commit.oldest) = (0, None);
        let left = if self.config.durable { files.len() } else { 0 };
        self.commit.phase = Phase::Data { left, failed: BTreeSet::new(), pieces };
        for key in files {
            if self.config.durable {
                let (class, job, kind) = (Class::Foreground, 0, TaskKind::Sync);
                self.disk_submit(DiskTask { key, class, job, kind });
            } else {
                self.file_is_clean(key);
            }
        }
        if left == 0 {
            self.data_is_synced();
        }
        listings.into_iter().for_each(|listing| self.flush_leaves(listing));
        self.pump_disk();
    }

    /// A payload file is synced, or could not be.
    pub(super) fn data_synced(&mut self, key: FileKey, result: io::Result<()>) {
        let Phase::Data { left, failed, .. } = &mut self.commit.phase else { return };
        *left -= 1;
        let is_last = *left == 0;
        if let Err(error) = result {
            tracing::error!(listing = key.listing.0, file = key.file, %error, "sync failed, reading back");
            failed.insert(key);
        }
        if is_last {
            self.data_is_synced();
        }
    }

    fn data_is_synced(&mut self) {
        let Phase::Data { failed, mut pieces, .. } =
            std::mem::replace(&mut self.commit.phase, Phase::Idle)
        else {
            return;
        };
        // Any error makes all pieces of that listing since the last good sync unknown: which of them
        // touch the file is not worth finding out.
        let listings: BTreeSet<ListingId> = failed.iter().map(|key| key.listing).collect();
        for listing in listings {
            let mut unknown = pieces.remove(&listing).unwrap_or_default();
            // What was written meanwhile may have been under the failed sync as well.
            if let Some(later) = self.commit.pieces.remove(&listing) {
                later.runs().for_each(|(first, count)| unknown.insert(first, count));
            }
            if let Some(active) = self.active.get_mut(&listing) {
                active.doubtful.extend(active.writing.keys());
            }
            self.doubt_helpers(listing);
            self.pieces_are_unknown(listing, unknown);
        }
        for (&listing, runs) in &pieces {
            if let Some(slot) = self.journal_slot(listing) {
                self.commit.journal.writer.have(slot, runs.runs());
                if let Some(stamp) = self.commit.stamps.remove(&listing) {
                    self.commit.journal.writer.stamped(slot, stamp);
                }
            }
        }
        self.commit.phase = Phase::Journal { pieces };
    }
}
