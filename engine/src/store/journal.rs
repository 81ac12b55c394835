//! The journal: which pieces of which listing are on disk, synced, and believed.
//!
//! Logs that are appended to, and checkpoints that hold the state before a log (`files`). A log is
//! closed when it is long, and a checkpoint of what it and all before it say is made aside.
//!
//! Order of one piece: intent record, write, `fdatasync` of the data, have record, `fdatasync` of the
//! journal. A piece with an intent and no have record may or may not be on disk: it is hashed again.
//! An intent needs no sync of its own: lost together with the data's sync it only costs a fetch.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::record::{FileKind, Header, encode_record};
pub use super::record::{JOURNAL_VERSION, JournalError, JournalSlot, ListingKey, Record, Stamp};

/// Most runs in one record, so that a sector holds it.
const RUNS_PER_RECORD_MAX: usize = 60;

/// Where journal slots come from: one sequence for all shards of an engine, as they share its journal.
pub type JournalSlots = Arc<AtomicU32>;

/// Appends records to a buffer that the owner writes out in order; or collects them, for an owner that
/// hands them on to the one that has the journal.
#[derive(Debug)]
pub struct JournalWriter {
    generation: u64,
    sequence: u64,
    /// Sequence of the first record of the log.
    log_start: u64,
    slots: JournalSlots,
    /// Position in the log of `pending[0]`.
    offset_bytes: u64,
    pending: Vec<u8>,
    /// Records that are not encoded here; `None` for whoever has the journal.
    collected: Option<Vec<Record>>,
}

impl JournalWriter {
    /// Goes on in the log of `generation`, of which nothing is written yet, not even the header: that
    /// is what is pending first.
    pub fn new(generation: u64, sequence: u64, next_slot: JournalSlot) -> Self {
        let mut writer = JournalWriter {
            generation,
            sequence,
            log_start: sequence,
            slots: Arc::new(AtomicU32::new(next_slot)),
            offset_bytes: 0,
            pending: Vec::new(),
            collected: None,
        };
        writer.begin_log(generation);
        writer
    }

    /// Collects records for another writer, which hands out slots of the same sequence.
    pub fn collecting(slots: JournalSlots) -> Self {
        JournalWriter {
            generation: 0,
            sequence: 0,
            log_start: 0,
            slots,
            offset_bytes: 0,
            pending: Vec::new(),
            collected: Some(Vec::new()),
        }
    }

    /// Where its slots come from.
    pub fn slots(&self) -> JournalSlots {
        self.slots.clone()
    }

    /// Takes what was collected.
    pub fn take_collected(&mut self) -> Vec<Record> {
        self.collected.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Appends what another has collected, in its order.
    pub fn append_all(&mut self, records: &[Record]) {
        records.iter().for_each(|record| self.append(record));
    }

    /// Leaves the log and begins the one of `generation`: what is appended from here on belongs there.
    ///
    /// # Panics
    /// When something is pending: it belongs to the log before.
    pub fn begin_log(&mut self, generation: u64) {
        assert!(self.pending.is_empty(), "records of the log before are pending");
        let first_sequence = self.sequence;
        self.log_start = first_sequence;
        (self.generation, self.offset_bytes) = (generation, 0);
        let header = Header { kind: FileKind::Log, generation, first_sequence };
        self.pending.extend_from_slice(&header.encode());
    }

    /// The log that is appended to.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Sequence of the log's first record.
    pub fn log_start(&self) -> u64 {
        self.log_start
    }

    /// Length of the log with what is pending, in bytes.
    pub fn log_len(&self) -> u64 {
        self.offset_bytes + self.pending.len() as u64
    }

    /// Records a listing and returns its slot.
    pub fn added(
        &mut self,
        key: ListingKey,
        total_len: u64,
        piece_count: u32,
        both_views: bool,
        folder: PathBuf,
    ) -> JournalSlot {
        // Only a number: what is read of the listing's records goes through the shard that owns it.
        let slot = self.slots.fetch_add(1, Ordering::Relaxed);
        self.append(&Record::Added { slot, key, total_len, piece_count, both_views, folder });
        slot
    }

    /// Records that pieces are about to be written.
    pub fn intent(&mut self, slot: JournalSlot, runs: impl IntoIterator<Item = (u32, u32)>) {
        self.append_runs(runs, |runs| Record::Intent { slot, runs });
    }

    /// Records that pieces are verified and synced.
    pub fn have(&mut self, slot: JournalSlot, runs: impl IntoIterator<Item = (u32, u32)>) {
        self.append_runs(runs, |runs| Record::Have { slot, runs });
    }

    /// Records that pieces are not to be believed any more.
    pub fn lost(&mut self, slot: JournalSlot, runs: impl IntoIterator<Item = (u32, u32)>) {
        self.append_runs(runs, |runs| Record::Lost { slot, runs });
    }

    /// Records what the files of a complete listing look like.
    pub fn stamped(&mut self, slot: JournalSlot, stamp: Stamp) {
        self.append(&Record::Stamped { slot, stamp });
    }

    /// Records that a listing is gone.
    pub fn removed(&mut self, slot: JournalSlot) {
        self.append(&Record::Removed { slot });
    }

    /// Records that nothing is being written any more.
    pub fn clean_stop(&mut self) {
        self.append(&Record::CleanStop);
    }

    /// Takes what is to be written, and where in the log.
    pub fn take_pending(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.pending.is_empty() {
            return None;
        }
        let at = self.offset_bytes;
        self.offset_bytes += self.pending.len() as u64;
        Some((at, std::mem::take(&mut self.pending)))
    }

    /// Whether something waits to be written.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.collected.as_ref().is_some_and(|all| !all.is_empty())
    }

    fn append_runs(
        &mut self,
        runs: impl IntoIterator<Item = (u32, u32)>,
        record: impl Fn(Vec<(u32, u32)>) -> Record,
    ) {
        for_each_chunk(runs, |chunk| self.append(&record(chunk)));
    }

    fn append(&mut self, record: &Record) {
        if let Some(collected) = &mut self.collected {
            return collected.push(record.clone());
        }
        encode_record(record, self.generation, self.sequence, &mut self.pending);
        self.sequence += 1;
    }
}

/// Cuts runs into parts that fit into one record each.
pub(super) fn for_each_chunk(
    runs: impl IntoIterator<Item = (u32, u32)>,
    mut take: impl FnMut(Vec<(u32, u32)>),
) {
    let mut runs = runs.into_iter().peekable();
    while runs.peek().is_some() {
        take(runs.by_ref().take(RUNS_PER_RECORD_MAX).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay::replay_one;
    use super::super::runs::RunSet;
    use super::*;

    const KEY: ListingKey = ListingKey::V2([9; 32]);

    /// A log with a bit of everything.
    fn sample() -> Vec<u8> {
        let mut writer = JournalWriter::new(7, 0, 0);
        let slot = writer.added(KEY, 1 << 20, 64, true, "/data/here".into());
        writer.intent(slot, [(0, 4)]);
        writer.have(slot, [(0, 2), (3, 1)]);
        let other = writer.added(ListingKey::V1([3; 20]), 99, 1, false, "/data".into());
        writer.have(other, [(0, 1)]);
        writer.stamped(other, Stamp { newest_ns: 5, digest: 6 });
        writer.lost(slot, [(3, 1)]);
        writer.removed(other);
        writer.take_pending().unwrap().1
    }

    #[test]
    fn what_was_written_is_believed_and_the_rest_is_in_doubt() {
        let recovered = replay_one(&sample()).unwrap();
        let listing = &recovered.listings[&KEY];
        assert_eq!(recovered.listings.len(), 1, "the removed one is gone");
        assert_eq!(listing.have.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(listing.suspect.iter().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(&*listing.folder, std::path::Path::new("/data/here"));
        assert!(listing.both_views);
    }

    #[test]
    fn a_clean_stop_closes_the_intents() {
        let mut writer = JournalWriter::new(1, 0, 0);
        let slot = writer.added(KEY, 1 << 20, 64, true, "/d".into());
        writer.intent(slot, [(5, 9)]);
        writer.clean_stop();
        let recovered = replay_one(&writer.take_pending().unwrap().1).unwrap();
        assert!(recovered.listings[&KEY].suspect.is_empty());
    }

    /// What the files of a complete listing look like is forgotten when they are written again.
    #[test]
    fn a_stamp_ends_with_the_next_write() {
        let stamp = Stamp { newest_ns: 5, digest: 6 };
        for (write, is_kept) in [(false, true), (true, false)] {
            let mut writer = JournalWriter::new(1, 0, 0);
            let slot = writer.added(KEY, 1 << 20, 64, true, "/d".into());
            writer.have(slot, [(0, 64)]);
            writer.stamped(slot, stamp);
            if write {
                writer.lost(slot, [(5, 1)]);
            }
            let recovered = replay_one(&writer.take_pending().unwrap().1).unwrap();
            assert_eq!(recovered.listings[&KEY].stamp, is_kept.then_some(stamp));
        }
    }

    /// A listing that was added again, as after its folder was moved, and then removed: its first life came back with
    /// the next start, and what had been deleted was believed to be there. A fuzzer found it, because a checkpoint
    /// forgets first lives and a replay of the logs did not.
    #[test]
    fn an_earlier_life_does_not_come_back() {
        let mut writer = JournalWriter::new(1, 0, 0);
        let first = writer.added(KEY, 1 << 20, 64, true, "/first".into());
        writer.have(first, [(0, 64)]);
        let second = writer.added(KEY, 1 << 20, 64, true, "/second".into());
        writer.have(second, [(0, 1)]);
        writer.lost(first, [(0, 1)]);
        writer.have(second, [(1, 1)]);
        let before = writer.pending.clone();
        let listing = &replay_one(&before).unwrap().listings[&KEY];
        assert_eq!(&*listing.folder, std::path::Path::new("/second"));
        assert_eq!(listing.have.count(), 2, "a late word about the first ends nothing");
        writer.removed(second);
        assert!(replay_one(&writer.take_pending().unwrap().1).unwrap().listings.is_empty());
    }

    #[test]
    fn many_runs_are_cut_into_small_records() {
        let mut writer = JournalWriter::new(1, 0, 0);
        let slot = writer.added(KEY, 1 << 40, 1 << 20, true, "/d".into());
        let before = writer.pending.len();
        writer.have(slot, (0..1000).map(|run| (run * 2, 1)));
        assert!((writer.pending.len() - before).div_ceil(1000_usize.div_ceil(60)) <= 512);
        let recovered = replay_one(&writer.take_pending().unwrap().1).unwrap();
        assert_eq!(recovered.listings[&KEY].have.count(), 1000);
    }

    /// A torn or rotten byte anywhere cuts the journal there: never a panic, never a have that was
    /// not written before the damage.
    #[test]
    fn damage_ends_the_replay_and_invents_nothing() {
        let bytes = sample();
        let all_ever: RunSet = [0, 1, 3].into_iter().collect();
        let whole = replay_one(&bytes).unwrap();
        for at in 0..bytes.len() {
            for mask in [0x01, 0x40, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= mask;
                let Ok(recovered) = replay_one(&damaged) else {
                    assert!(at < super::super::record::HEADER_LEN);
                    continue;
                };
                assert_ne!(recovered, whole, "byte {at} is not covered");
                for listing in recovered.listings.values().filter(|it| it.piece_count == 64) {
                    assert!(listing.have.iter().all(|piece| all_ever.contains(piece)));
                }
            }
        }
    }

    /// However a log is cut, what stands before the cut is what its records say up to there.
    #[test]
    fn a_torn_log_says_what_its_whole_records_say() {
        let bytes = sample();
        let mut haves = Vec::new();
        for len in super::super::record::HEADER_LEN..=bytes.len() {
            let recovered = replay_one(&bytes[..len]).unwrap();
            haves.push(recovered.listings.get(&KEY).map_or(0, |listing| listing.have.count()));
        }
        assert!(haves.contains(&3) && haves.last() == Some(&2) && haves[0] == 0);
    }

    #[test]
    fn records_of_an_older_generation_are_no_records() {
        let mut old = sample();
        let newer = JournalWriter::new(8, 0, 0).take_pending().unwrap().1;
        old[..newer.len()].copy_from_slice(&newer);
        assert!(replay_one(&old).unwrap().listings.is_empty());
    }

    #[test]
    fn preallocated_zeros_are_no_records() {
        let mut bytes = sample();
        let clean = replay_one(&bytes).unwrap();
        bytes.resize(bytes.len() + 4096, 0);
        assert_eq!(replay_one(&bytes).unwrap(), clean);
    }

    #[test]
    fn runs_past_the_last_piece_end_the_replay() {
        let mut writer = JournalWriter::new(1, 0, 0);
        let slot = writer.added(KEY, 1 << 20, 4, true, "/d".into());
        writer.have(slot, [(3, 2)]);
        writer.have(slot, [(0, 1)]);
        let recovered = replay_one(&writer.take_pending().unwrap().1).unwrap();
        assert!(recovered.listings[&KEY].have.is_empty());
    }
}
