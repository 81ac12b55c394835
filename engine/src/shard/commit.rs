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

use super::disk::FileKey;
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
    retry_at: Option<Instant>,
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
                retry_at: None,
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
        matches!(self.phase, Phase::Idle)
            && self.pieces.is_empty()
            && (is_written || journal.is_lost)
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
        (commit.bytes, commit.oldest) = (0, None);
        let mut left = 0;
        for key in files {
            let Some(file) = self.disk.ready_file(key) else { continue };
            if !self.config.durable {
                self.file_is_clean(key);
                continue;
            }
            // A write that starts from here on makes the file dirty again.
            self.disk.set_clean(key);
            let id = self.flights.insert(Flight::SyncData(key));
            self.out.push_back(Op::Sync { id, file });
            left += 1;
        }
        self.commit.phase = Phase::Data { left, failed: BTreeSet::new(), pieces };
        if left == 0 {
            self.data_is_synced();
        }
    }

    /// Answer to the sync of a payload file.
    pub(super) fn handle_data_synced(&mut self, key: FileKey, result: io::Result<()>) {
        self.file_is_clean(key);
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
            let unknown = pieces.remove(&listing).unwrap_or_default();
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
        if journal.retry_at.is_some_and(|at| at > self.now) {
            return;
        }
        let is_retry = journal.retry_at.take().is_some();
        if journal.in_flight.is_none() {
            journal.in_flight = journal.writer.take_pending();
        } else if !is_retry {
            return;
        }
        if let Some((offset_bytes, data)) = &journal.in_flight {
            let id = self.flights.insert(Flight::WriteJournal);
            let (offset_bytes, data) = (*offset_bytes, data.clone());
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
            Ok((file, _)) => self.commit.journal.file = Some(file),
            Err(error) => self.lose_journal(&error),
        }
    }

    /// Answer to a write of records. A full disk is waited for; the bytes are kept.
    pub(super) fn handle_journal_written(&mut self, result: io::Result<()>) {
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
        if let Err(error) = result {
            self.lose_journal(&error);
            return;
        }
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
