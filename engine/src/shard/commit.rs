//! From written to durable: sync the data, journal the pieces, sync the journal, only then claim them.
//!
//! Pieces that are written gather in a batch of 64 MiB or one second (facts: 0.5 ms for the data and
//! 0.15 ms for the journal per batch), or go at once when a listing completes. One batch is on its way
//! at a time. A failed sync makes its pieces *unknown*: a second sync would say yes over zeros, so they
//! are read back past the page cache and hashed again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::disk::{Class, DiskTask, FileKey, TaskKind};
use super::timers::Timer;
use super::{Flight, Shard};
use crate::api::{Event, ListingId};
use crate::io::{FileId, Op, OpenMode};
use crate::store::journal::{JournalSlot, JournalWriter};
use crate::store::{JOURNAL_NAME, RunSet};

/// A batch is committed when it holds so many bytes.
const BATCH_BYTES: u64 = 64 << 20;
/// A batch is committed when its first piece has waited so long.
const BATCH_AGE: Duration = Duration::from_secs(1);
/// How long after a failed journal write the same bytes are tried again.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);

/// So many failed syncs of the journal in a row mean that its device is gone.
const JOURNAL_FAILURES_MAX: u32 = 5;

/// Written pieces by listing.
type Pieces = BTreeMap<ListingId, RunSet>;

/// The way of written pieces to the journal.
#[derive(Debug)]
pub(super) struct Commit {
    /// Files written since their last sync.
    pub files: BTreeSet<FileKey>,
    /// Commit now: a listing is complete, files must be closed, the engine stops.
    pub is_urgent: bool,
    pieces: Pieces,
    bytes: u64,
    oldest: Option<Instant>,
    phase: Phase,
    journal: JournalFile,
}

#[derive(Debug)]
enum Phase {
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

/// The journal's file, opened by the driver, and what is on its way into it.
#[derive(Debug)]
struct JournalFile {
    writer: JournalWriter,
    file: Option<FileId>,
    is_opening: bool,
    /// In flight or to be tried again: position and bytes.
    in_flight: Option<(u64, Vec<u8>)>,
    is_writing: bool,
    /// A sync failed: everything behind the last good one is to be written again.
    must_rewrite: bool,
    retry_at: Option<Instant>,
    /// Everything behind the last good sync and where it begins: what a failed sync may have lost is
    /// written again, for retrying the sync alone proves nothing.
    unsynced: Vec<u8>,
    unsynced_at: u64,
    /// End of what the sync in flight covers.
    syncing_to: u64,
    failures: u32,
    /// Broken: nothing is claimed any more.
    is_lost: bool,
}

impl Commit {
    pub fn new(writer: JournalWriter) -> Self {
        Commit {
            files: BTreeSet::new(),
            is_urgent: false,
            pieces: Pieces::new(),
            bytes: 0,
            oldest: None,
            phase: Phase::Idle,
            journal: JournalFile {
                writer,
                file: None,
                is_opening: false,
                in_flight: None,
                is_writing: false,
                must_rewrite: false,
                retry_at: None,
                unsynced: Vec::new(),
                unsynced_at: 0,
                syncing_to: 0,
                failures: 0,
                is_lost: false,
            },
        }
    }

    /// The writer of records; what it holds goes out with the next turn.
    pub fn journal(&mut self) -> &mut JournalWriter {
        &mut self.journal.writer
    }

    /// Nothing waits, nothing is in flight.
    pub fn is_idle(&self) -> bool {
        let journal = &self.journal;
        let is_written = journal.in_flight.is_none() && !journal.writer.has_pending();
        // Without a journal nothing is claimed, so nothing is on its way either.
        journal.is_lost
            || (matches!(self.phase, Phase::Idle) && self.pieces.is_empty() && is_written)
    }

    /// The last write or opening of the journal failed, and the next try is not yet due.
    pub fn is_journal_waiting(&self) -> bool {
        self.journal.retry_at.is_some() && !self.journal.is_writing
    }

    /// Takes back what the journal says of pieces that turned out not to be there.
    pub fn disbelieve(&mut self, slot: Option<JournalSlot>, believed: &RunSet, have: &RunSet) {
        let mut gone = believed.clone();
        have.runs().for_each(|(first, count)| gone.remove(first, count));
        if let Some(slot) = slot.filter(|_| !gone.is_empty()) {
            self.journal.writer.lost(slot, gone.runs());
        }
    }

    /// Forgets what a removed listing has on the way.
    pub fn forget(&mut self, listing: ListingId) {
        self.pieces.remove(&listing);
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
        self.commit.pieces.entry(listing).or_default().insert(piece, 1);
        self.commit.bytes += len_bytes;
        if self.commit.oldest.is_none() {
            self.commit.oldest = Some(self.now);
            self.timers.set(self.now + BATCH_AGE, Timer::Commit);
        }
    }

    /// Takes the next steps of the batch and of the journal.
    pub(super) fn pump_commit(&mut self) {
        self.start_batch();
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
            self.pieces_are_unknown(listing, unknown);
        }
        for (&listing, runs) in &pieces {
            if let Some(slot) = self.journal_slot(listing) {
                self.commit.journal.writer.have(slot, runs.runs());
            }
        }
        self.commit.phase = Phase::Journal { pieces };
    }

    /// Writes pending records, one write at a time, and syncs behind a batch.
    fn pump_journal(&mut self) {
        let journal = &mut self.commit.journal;
        if journal.is_lost || journal.is_opening {
            return;
        }
        let wants_write = journal.writer.has_pending() || journal.retry_at.is_some();
        let Some(file) = journal.file else {
            if journal.retry_at.is_some_and(|at| at > self.now) {
                return;
            }
            if wants_write || matches!(self.commit.phase, Phase::Journal { .. }) {
                journal.is_opening = true;
                let id = self.flights.insert(Flight::OpenJournal);
                let root = self.state.dir().clone();
                let path = PathBuf::from(JOURNAL_NAME);
                self.out.push_back(Op::Open {
                    id,
                    root,
                    path,
                    mode: OpenMode::Write,
                    direct: false,
                });
            }
            return;
        };
        if journal.is_writing || journal.retry_at.is_some_and(|at| at > self.now) {
            return;
        }
        journal.retry_at = None;
        if std::mem::take(&mut journal.must_rewrite) {
            journal.in_flight = Some((journal.unsynced_at, journal.unsynced.clone()));
        }
        if journal.in_flight.is_none() {
            journal.in_flight = journal.writer.take_pending();
            if let Some((offset_bytes, data)) = &journal.in_flight {
                if journal.unsynced.is_empty() {
                    journal.unsynced_at = *offset_bytes;
                }
                journal.unsynced.extend_from_slice(data);
            }
        }
        if let Some((offset_bytes, data)) = &journal.in_flight {
            let id = self.flights.insert(Flight::WriteJournal);
            let (offset_bytes, data) = (*offset_bytes, data.clone());
            journal.is_writing = true;
            self.out.push_back(Op::WriteSmall { id, file, offset_bytes, data });
        } else if matches!(self.commit.phase, Phase::Journal { .. }) {
            self.sync_journal(file);
        }
    }

    fn sync_journal(&mut self, file: FileId) {
        let Phase::Journal { pieces } = std::mem::replace(&mut self.commit.phase, Phase::Idle)
        else {
            return;
        };
        self.commit.phase = Phase::Sync { pieces };
        let journal = &mut self.commit.journal;
        journal.syncing_to = journal.unsynced_at + journal.unsynced.len() as u64;
        if self.config.durable {
            let id = self.flights.insert(Flight::SyncJournal);
            self.out.push_back(Op::Sync { id, file });
        } else {
            self.handle_journal_synced(Ok(()));
        }
    }

    /// Answer to the opening of the journal.
    pub(super) fn handle_journal_opened(&mut self, result: io::Result<(FileId, u64)>) {
        self.commit.journal.is_opening = false;
        match result {
            Ok((file, _)) => {
                self.commit.journal.file = Some(file);
                self.commit.journal.failures = 0;
            }
            // It may be descriptors that are short now.
            Err(error) => {
                self.commit.journal.failures += 1;
                if self.commit.journal.failures >= JOURNAL_FAILURES_MAX {
                    return self.lose_journal(&error);
                }
                tracing::warn!(%error, "journal not opened, trying again");
                let at = self.now + JOURNAL_RETRY;
                self.commit.journal.retry_at = Some(at);
                self.timers.set(at, Timer::Commit);
            }
        }
    }

    /// Answer to a write of records. A full disk is waited for; the bytes are kept.
    pub(super) fn handle_journal_written(&mut self, result: io::Result<()>) {
        self.commit.journal.is_writing = false;
        match result {
            Ok(()) => self.commit.journal.in_flight = None,
            Err(error) => {
                tracing::warn!(%error, "journal not written, trying again");
                let at = self.now + JOURNAL_RETRY;
                self.commit.journal.retry_at = Some(at);
                self.timers.set(at, Timer::Commit);
            }
        }
    }

    /// Answer to the journal's sync: the batch is durable.
    pub(super) fn handle_journal_synced(&mut self, result: io::Result<()>) {
        let Phase::Sync { pieces } = std::mem::replace(&mut self.commit.phase, Phase::Idle) else {
            return;
        };
        let journal = &mut self.commit.journal;
        if let Err(error) = result {
            journal.failures += 1;
            if journal.failures >= JOURNAL_FAILURES_MAX {
                self.lose_journal(&error);
                return;
            }
            tracing::error!(%error, "journal not synced, writing it again");
            journal.must_rewrite = true;
            let at = self.now + JOURNAL_RETRY;
            journal.retry_at = Some(at);
            self.commit.phase = Phase::Journal { pieces };
            self.timers.set(at, Timer::Commit);
            return;
        }
        let covered = (journal.syncing_to - journal.unsynced_at) as usize;
        journal.unsynced.drain(..covered.min(journal.unsynced.len()));
        journal.unsynced_at = journal.syncing_to;
        journal.failures = 0;
        for (listing, runs) in pieces {
            self.pieces_are_durable(listing, &runs);
        }
    }

    /// What the journal's device says cannot be believed any more: serve on, claim nothing.
    fn lose_journal(&mut self, error: &io::Error) {
        self.commit.journal.is_lost = true;
        tracing::error!(%error, "journal lost, nothing more is claimed");
        let error = format!("journal in {}: {error}", self.config.state_dir.display());
        self.tell(Event::Fatal { error });
    }

    /// Names a listing in the journal, once its geometry is known.
    pub(super) fn journal_slot(&mut self, listing: ListingId) -> Option<JournalSlot> {
        let active = self.active.get_mut(&listing)?;
        if active.journal_slot.is_none() {
            let geometry = active.geometry()?;
            let (total_len, piece_count) = (geometry.total_len(), geometry.piece_count());
            let folder = active.place.folder().to_path_buf();
            let slot = self.commit.journal.writer.added(
                active.key,
                total_len,
                piece_count,
                active.checks_v1(),
                folder,
            );
            active.journal_slot = Some(slot);
        }
        active.journal_slot
    }
}
