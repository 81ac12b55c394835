//! The journal's files as the shard sees them: records go out in order, one write at a time; a batch
//! is claimed when the sync behind its records has ended; a long log is closed and the next begun.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::commit::{Phase, Pieces};
use super::mesh::{FIRST, Message};
use super::timers::Timer;
use super::{Flight, Shard};
use crate::api::{Event, ListingId};
use crate::io::{Aside, AsideDone, FileId, Op, OpenMode};
use crate::store::files::name_of;
use crate::store::journal::{JournalSlot, JournalSlots, JournalWriter, Record};
use crate::store::{FileKind, LOG_RESERVE_BYTES, RecoveredState};

/// How long after a failed journal write the same bytes are tried again.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);
/// So many failed syncs of the journal in a row mean that its device is gone.
const JOURNAL_FAILURES_MAX: u32 = 5;
/// How long after a checkpoint that could not be made the next one is tried.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(30);

/// The log that is appended to, and what is on its way into it.
#[derive(Debug)]
pub(super) struct JournalFile {
    pub writer: JournalWriter,
    /// The log that is written: behind the writer's while that one is being begun.
    generation: u64,
    file: Option<FileId>,
    step: Step,
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
    pub is_lost: bool,
    checkpoint: Checkpoint,
    /// Other shards that wait for their records to be durable, each with its ticket; and those of them
    /// whose records the sync in flight covers.
    tickets: Vec<(usize, u64)>,
    syncing_tickets: Vec<(usize, u64)>,
    /// Where another shard has the journal: the last ticket that was drawn.
    ticket: u64,
}

/// What has to end before the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: records may go out.
    Append,
    /// The log is being opened, or its space reserved.
    Opening,
    /// The log is long: what is in flight ends, then it is synced for the last time.
    Closing,
    /// That sync is in flight.
    Sealing,
}

/// When the next checkpoint is made.
#[derive(Debug)]
struct Checkpoint {
    /// Bytes of closed logs that a start would read behind the newest checkpoint.
    log_bytes: u64,
    /// Length of the newest checkpoint.
    len_bytes: u64,
    /// Make one although the logs are short.
    is_wanted: bool,
    /// One is being made; it replaces so many bytes of logs.
    replaces: Option<u64>,
    retry_at: Option<Instant>,
}

impl JournalFile {
    /// Goes on from what a start has found.
    pub fn new(state: RecoveredState) -> Self {
        let RecoveredState { writer, log_bytes, checkpoint_bytes, wants_checkpoint, .. } = state;
        Self::with(writer, log_bytes, checkpoint_bytes, wants_checkpoint)
    }

    /// The journal is another shard's: records are collected for it.
    pub fn of_another(slots: JournalSlots) -> Self {
        Self::with(JournalWriter::collecting(slots), 0, 0, false)
    }

    fn with(
        writer: JournalWriter,
        log_bytes: u64,
        checkpoint_bytes: u64,
        wants_checkpoint: bool,
    ) -> Self {
        let unsynced_at = writer.log_len();
        JournalFile {
            generation: writer.generation(),
            writer,
            file: None,
            step: Step::Append,
            in_flight: None,
            is_writing: false,
            must_rewrite: false,
            retry_at: None,
            unsynced: Vec::new(),
            unsynced_at,
            syncing_to: unsynced_at,
            failures: 0,
            is_lost: false,
            checkpoint: Checkpoint {
                log_bytes,
                len_bytes: checkpoint_bytes,
                is_wanted: wants_checkpoint,
                replaces: None,
                retry_at: None,
            },
            tickets: Vec::new(),
            syncing_tickets: Vec::new(),
            ticket: 0,
        }
    }

    /// Another shard waits for its records to be durable.
    pub fn is_waited_for(&self) -> bool {
        !self.tickets.is_empty() && !self.is_lost
    }

    /// Every record is written.
    pub fn is_written(&self) -> bool {
        let is_waited_for = !self.tickets.is_empty() || !self.syncing_tickets.is_empty();
        let is_out = self.in_flight.is_none() && !self.writer.has_pending();
        is_out && !is_waited_for && self.step == Step::Append
    }

    /// The last write or opening failed, and the next try is not yet due.
    pub fn is_waiting(&self) -> bool {
        self.retry_at.is_some() && !self.is_writing
    }

    /// What a start reads before the log is closed: the live state and about as much again, and no
    /// less than the bound, so that writing checkpoints costs at most what writing records does.
    fn is_long(&self, log_bytes_max: u64, now: Instant) -> bool {
        let checkpoint = &self.checkpoint;
        let bound = log_bytes_max.max(checkpoint.len_bytes);
        let is_due = checkpoint.is_wanted || checkpoint.log_bytes + self.writer.log_len() >= bound;
        let may_try = checkpoint.retry_at.is_none_or(|at| at <= now);
        is_due && may_try && checkpoint.replaces.is_none() && self.step == Step::Append
    }
}

impl Shard {
    /// Writes pending records, one write at a time, and syncs behind a batch.
    pub(super) fn pump_journal(&mut self) {
        if self.seat.index != FIRST {
            return self.hand_records_on();
        }
        let is_syncing = matches!(self.commit.phase, Phase::Sync { .. });
        let journal = &mut self.commit.journal;
        if journal.is_lost || matches!(journal.step, Step::Opening | Step::Sealing) {
            return;
        }
        let is_idle = journal.in_flight.is_none() && !journal.writer.has_pending();
        let wants_write = !is_idle || journal.retry_at.is_some() || journal.checkpoint.is_wanted;
        if journal.retry_at.is_some_and(|at| at > self.now) {
            return;
        }
        let Some(file) = journal.file else {
            if wants_write
                || journal.must_rewrite
                || matches!(self.commit.phase, Phase::Journal { .. })
            {
                self.open_log();
            }
            return;
        };
        if journal.is_writing {
            return;
        }
        journal.retry_at = None;
        if std::mem::take(&mut journal.must_rewrite) {
            journal.in_flight = Some((journal.unsynced_at, journal.unsynced.clone()));
        }
        if journal.in_flight.is_none() && journal.step == Step::Append {
            journal.in_flight = journal.writer.take_pending();
            if let Some((offset_bytes, data)) = &journal.in_flight {
                if journal.unsynced.is_empty() {
                    journal.unsynced_at = *offset_bytes;
                }
                journal.unsynced.extend_from_slice(data);
            }
            // With nothing pending, everything that follows may belong to another log.
            if !is_syncing
                && !self.is_stopping
                && journal.is_long(self.config.journal_log_bytes_max, self.now)
            {
                journal.checkpoint.log_bytes += journal.writer.log_len();
                journal.writer.begin_log(journal.generation + 1);
                journal.step = Step::Closing;
            }
        }
        if let Some((offset_bytes, data)) = &journal.in_flight {
            let id = self.flights.insert(Flight::WriteJournal);
            let rows = vec![(*offset_bytes, data.clone())];
            journal.is_writing = true;
            self.out.push_back(Op::WriteSmall { id, file, rows });
        } else if journal.step == Step::Closing {
            self.seal_log(file);
        } else if matches!(self.commit.phase, Phase::Journal { .. }) {
            self.sync_journal(file);
        }
    }

    fn open_log(&mut self) {
        self.commit.journal.step = Step::Opening;
        let id = self.flights.insert(Flight::OpenJournal);
        let root = self.state.dir().clone();
        let path = PathBuf::from(name_of(FileKind::Log, self.commit.journal.generation));
        self.out.push_back(Op::Open { id, root, path, mode: OpenMode::Write, direct: false });
    }

    /// Syncs a log for the last time. No record of the next one may be claimed, nor any be left out of
    /// a checkpoint, before all of this one are safe.
    fn seal_log(&mut self, file: FileId) {
        self.commit.journal.step = Step::Sealing;
        if self.config.durable {
            let id = self.flights.insert(Flight::SealJournal);
            self.out.push_back(Op::Sync { id, file });
        } else {
            self.handle_journal_sealed(Ok(()));
        }
    }

    /// The log is closed: the next one is begun, and a checkpoint made of all before it.
    pub(super) fn handle_journal_sealed(&mut self, result: io::Result<()>) {
        let journal = &mut self.commit.journal;
        journal.step = Step::Closing;
        if let Err(error) = result {
            return self.journal_sync_failed(&error);
        }
        if let Some(file) = journal.file.take() {
            self.out.push_back(Op::CloseFile { file });
        }
        journal.generation = journal.writer.generation();
        journal.step = Step::Append;
        journal.unsynced.clear();
        (journal.unsynced_at, journal.syncing_to) = (0, 0);
        journal.failures = 0;
        journal.checkpoint.is_wanted = false;
        journal.checkpoint.replaces = Some(journal.checkpoint.log_bytes);
        let (generation, next_sequence) = (journal.generation, journal.writer.log_start());
        let id = self.flights.insert(Flight::Checkpoint);
        let dir = self.state.dir().clone();
        let job = Aside::Checkpoint { dir, generation, next_sequence };
        self.out.push_back(Op::Aside { id, job });
        self.pump_journal();
    }

    /// A checkpoint is made, or could not be: then the logs stay, and the state with them.
    pub(super) fn handle_checkpoint(&mut self, result: io::Result<u64>) {
        let checkpoint = &mut self.commit.journal.checkpoint;
        let replaced = checkpoint.replaces.take().unwrap_or(0);
        match result {
            Ok(len_bytes) => {
                checkpoint.log_bytes -= replaced;
                checkpoint.len_bytes = len_bytes;
                checkpoint.retry_at = None;
                tracing::debug!(len_bytes, replaced, "checkpoint made");
            }
            Err(error) => {
                tracing::warn!(%error, "no checkpoint made of the journal, trying again");
                checkpoint.is_wanted = true;
                checkpoint.retry_at = Some(self.now + CHECKPOINT_RETRY);
            }
        }
    }

    fn sync_journal(&mut self, file: FileId) {
        let Phase::Journal { pieces } = std::mem::replace(&mut self.commit.phase, Phase::Idle)
        else {
            return;
        };
        self.commit.phase = Phase::Sync { pieces };
        let journal = &mut self.commit.journal;
        // Their records came before this moment, and everything that has come is written.
        journal.syncing_tickets.append(&mut journal.tickets);
        journal.syncing_to = journal.unsynced_at + journal.unsynced.len() as u64;
        if self.config.durable {
            let id = self.flights.insert(Flight::SyncJournal);
            self.out.push_back(Op::Sync { id, file });
        } else {
            self.handle_journal_synced(Ok(()));
        }
    }

    /// Answer to the opening of the log; its space comes next.
    pub(super) fn handle_journal_opened(&mut self, result: io::Result<(FileId, u64)>) {
        match result {
            Ok((file, len_bytes)) => {
                self.commit.journal.file = Some(file);
                self.commit.journal.failures = 0;
                if len_bytes >= LOG_RESERVE_BYTES {
                    self.commit.journal.step = Step::Append;
                    return;
                }
                let id = self.flights.insert(Flight::ReserveJournal);
                self.out.push_back(Op::Allocate { id, file, len_bytes: LOG_RESERVE_BYTES });
            }
            Err(error) => {
                self.commit.journal.step = Step::Append;
                let is_full = error.kind() == io::ErrorKind::StorageFull;
                // It may be descriptors that are short now, and a full disk is waited for.
                self.commit.journal.failures += u32::from(!is_full);
                if self.commit.journal.failures >= JOURNAL_FAILURES_MAX {
                    return self.lose_journal(&error);
                }
                tracing::warn!(%error, "journal not opened, trying again");
                self.retry_journal();
            }
        }
    }

    /// The space of a new log is reserved; without it the log works as long as the disk has room.
    pub(super) fn handle_journal_reserved(&mut self, result: io::Result<()>) {
        self.commit.journal.step = Step::Append;
        if let Err(error) = result {
            tracing::warn!(%error, "no space reserved for the journal");
        }
    }

    fn retry_journal(&mut self) {
        let at = self.now + JOURNAL_RETRY;
        self.commit.journal.retry_at = Some(at);
        self.timers.set(at, Timer::Commit);
    }

    /// Answer to a write of records. A full disk is waited for; the bytes are kept.
    pub(super) fn handle_journal_written(&mut self, result: io::Result<()>) {
        self.commit.journal.is_writing = false;
        match result {
            Ok(()) => self.commit.journal.in_flight = None,
            Err(error) => {
                tracing::warn!(%error, "journal not written, trying again");
                self.retry_journal();
            }
        }
    }

    /// Answer to the journal's sync: the batch is durable.
    pub(super) fn handle_journal_synced(&mut self, result: io::Result<()>) {
        let Phase::Sync { pieces } = std::mem::replace(&mut self.commit.phase, Phase::Idle) else {
            return;
        };
        if let Err(error) = result {
            self.commit.phase = Phase::Journal { pieces };
            let journal = &mut self.commit.journal;
            journal.tickets.append(&mut journal.syncing_tickets);
            self.journal_sync_failed(&error);
            return;
        }
        let journal = &mut self.commit.journal;
        let covered = (journal.syncing_to - journal.unsynced_at) as usize;
        journal.unsynced.drain(..covered.min(journal.unsynced.len()));
        journal.unsynced_at = journal.syncing_to;
        journal.failures = 0;
        for (shard, ticket) in std::mem::take(&mut journal.syncing_tickets) {
            self.send_message(shard, Message::Recorded { ticket });
        }
        self.batch_is_durable(pieces);
    }

    fn batch_is_durable(&mut self, pieces: Pieces) {
        for (listing, runs) in pieces {
            self.pieces_are_durable(listing, &runs);
        }
    }

    /// Gives the shard that has the journal what was collected here. A batch waits until that shard says
    /// that everything up to it is durable.
    fn hand_records_on(&mut self) {
        let journal = &mut self.commit.journal;
        if journal.is_lost {
            return;
        }
        let records = journal.writer.take_collected();
        let mut ticket = None;
        if let Phase::Journal { pieces } = &mut self.commit.phase {
            journal.ticket += 1;
            ticket = Some(journal.ticket);
            self.commit.phase = Phase::Sync { pieces: std::mem::take(pieces) };
        }
        if ticket.is_some() || !records.is_empty() {
            let from = self.seat.index;
            self.send_message(FIRST, Message::Records { from, records, ticket });
        }
    }

    /// Another shard's records go into the journal behind all that it sent before.
    pub(super) fn take_records(&mut self, from: usize, records: &[Record], ticket: Option<u64>) {
        let journal = &mut self.commit.journal;
        if journal.is_lost {
            return self.send_message(from, Message::JournalLost);
        }
        journal.writer.append_all(records);
        journal.tickets.extend(ticket.map(|ticket| (from, ticket)));
    }

    /// The shard that has the journal says that everything up to a ticket is durable.
    pub(super) fn records_are_durable(&mut self, ticket: u64) {
        assert_eq!(ticket, self.commit.journal.ticket, "one batch is on its way at a time");
        if let Phase::Sync { pieces } = std::mem::replace(&mut self.commit.phase, Phase::Idle) {
            self.batch_is_durable(pieces);
        }
    }

    /// What was written since the last good sync is unknown: it is written again.
    fn journal_sync_failed(&mut self, error: &io::Error) {
        let journal = &mut self.commit.journal;
        journal.failures += 1;
        if journal.failures >= JOURNAL_FAILURES_MAX {
            return self.lose_journal(error);
        }
        tracing::error!(%error, "journal not synced, writing it again");
        journal.must_rewrite = true;
        self.retry_journal();
    }

    /// What the journal's device says cannot be believed any more: serve on, claim nothing.
    fn lose_journal(&mut self, error: &io::Error) {
        self.commit.journal.is_lost = true;
        tracing::error!(%error, "journal lost, nothing more is claimed");
        self.commit.journal.tickets.clear();
        self.send_to_others(|| Message::JournalLost);
        let error = format!("journal in {}: {error}", self.config.state_dir.display());
        self.tell(Event::Fatal { error });
    }

    /// Names a listing in the journal, once its geometry is known.
    pub(super) fn journal_slot(&mut self, listing: ListingId) -> Option<JournalSlot> {
        let Some(active) = self.active.get_mut(&listing) else {
            return self.rows.get(listing)?.journal_slot;
        };
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

    /// Answer to work that was done aside.
    pub(super) fn handle_aside(&mut self, flight: Flight, done: AsideDone) {
        match (flight, done) {
            (Flight::Checkpoint, AsideDone::Checkpoint(result)) => self.handle_checkpoint(result),
            (Flight::Load(listing), AsideDone::Load(result)) => self.handle_loaded(listing, result),
            (Flight::Stamp(listing), AsideDone::Stamp(result)) => {
                self.handle_stamped(listing, result);
            }
            (flight, done) => panic!("{done:?} answers {flight:?}"),
        }
    }
}
