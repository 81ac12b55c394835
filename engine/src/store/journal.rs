//! The journal: which pieces of which listing are on disk, synced, and believed.
//!
//! One append-only file per state folder, format version 1, little-endian:
//!
//! ```text
//! header   magic "ringseed" | version u32 | generation u64 | crc32 of the 20 bytes before u32
//! record   body_len u16 | kind u8 | 0 u8 | generation u32 | sequence u64 | crc32 u32 | body
//! ```
//!
//! The CRC covers the record but itself. Sequence numbers go up by one within a file; `generation` is
//! the low half of the header's, so that what an older file left behind on the same sectors is never
//! taken for a record. Replay ends at the first bad record and never skips over one. At start the
//! journal is written anew (temporary file, sync, rename, sync of the folder) under the next
//! generation and then appended to.
//!
//! Order of one piece: intent record, write, `fdatasync` of the data, have record, `fdatasync` of the
//! journal. A piece with an intent and no have record may or may not be on disk: it is hashed again.
//! An intent needs no sync of its own: lost together with the data's sync it only costs a fetch.

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

use super::runs::RunSet;

/// Format version that this code writes and reads.
pub const JOURNAL_VERSION: u32 = 1;
/// Length of the file header in bytes.
pub const HEADER_LEN: usize = 24;
const MAGIC: &[u8; 8] = b"ringseed";
const RECORD_HEAD_LEN: usize = 20;
/// Longest body in bytes: an `Added` with a path of 4 KiB. All others stay below 512.
pub const BODY_LEN_MAX: usize = 8 << 10;
/// Most runs in one record, so that a sector holds it.
const RUNS_PER_RECORD_MAX: usize = 60;
/// Most pieces that a record may speak of (`ringseed_core::geometry::PIECE_COUNT_MAX`).
const PIECE_COUNT_MAX: u32 = ringseed_core::geometry::PIECE_COUNT_MAX;

/// What the data of a listing is known by across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListingKey {
    /// SHA-1 of the info dict: v1-only torrents.
    V1([u8; 20]),
    /// SHA-256 of the info dict: v2 and hybrid.
    V2([u8; 32]),
}

/// Name of a listing inside one journal generation.
pub type JournalSlot = u32;

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A listing whose geometry is known; `slot` names it from here on.
    Added {
        /// Its name in the records that follow.
        slot: JournalSlot,
        /// Its identity.
        key: ListingKey,
        /// Length of its torrent space in bytes, pads included.
        total_len: u64,
        /// How many pieces it has.
        piece_count: u32,
        /// The v1 view was checked with the v2 view.
        both_views: bool,
        /// The folder that holds its root name.
        folder: PathBuf,
    },
    /// Pieces are about to be written.
    Intent {
        /// Which listing.
        slot: JournalSlot,
        /// First piece and how many, each.
        runs: Vec<(u32, u32)>,
    },
    /// Pieces are verified and synced.
    Have {
        /// Which listing.
        slot: JournalSlot,
        /// First piece and how many, each.
        runs: Vec<(u32, u32)>,
    },
    /// Pieces are not to be believed any more.
    Lost {
        /// Which listing.
        slot: JournalSlot,
        /// First piece and how many, each.
        runs: Vec<(u32, u32)>,
    },
    /// The listing is gone.
    Removed {
        /// Which listing.
        slot: JournalSlot,
    },
    /// Nothing was being written when the process ended: intents so far mean nothing.
    CleanStop,
}

/// Why a journal is refused whole. A torn tail is no error.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum JournalError {
    /// Not one of ours, or its header is damaged.
    #[error("no journal header")]
    Header,
    /// Written by a later program.
    #[error("journal version {found}, this program reads up to {JOURNAL_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
}

/// What the journal believes of one listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredListing {
    /// Length of its torrent space in bytes.
    pub total_len: u64,
    /// How many pieces it has.
    pub piece_count: u32,
    /// The v1 view was checked with the v2 view.
    pub both_views: bool,
    /// The folder that holds its root name.
    pub folder: PathBuf,
    /// Pieces verified and synced.
    pub have: RunSet,
    /// Pieces that were being written: hash again.
    pub suspect: RunSet,
}

/// Everything a replay yields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Generation of the file replayed; 0 when there was none.
    pub generation: u64,
    /// Listings by identity.
    pub listings: BTreeMap<ListingKey, RecoveredListing>,
    /// Bytes behind the last good record that look written: a torn tail.
    pub torn_bytes: usize,
}

/// Appends records to a buffer that the owner writes out in order.
#[derive(Debug)]
pub struct JournalWriter {
    generation: u64,
    sequence: u64,
    next_slot: JournalSlot,
    /// Position in the file of `pending[0]`.
    offset_bytes: u64,
    pending: Vec<u8>,
}

impl JournalWriter {
    /// A new file of `generation`: the pending bytes are its header.
    pub fn new(generation: u64) -> Self {
        let mut pending = Vec::with_capacity(HEADER_LEN);
        pending.extend_from_slice(MAGIC);
        pending.extend_from_slice(&JOURNAL_VERSION.to_le_bytes());
        pending.extend_from_slice(&generation.to_le_bytes());
        let crc = crc32fast::hash(&pending);
        pending.extend_from_slice(&crc.to_le_bytes());
        JournalWriter { generation, sequence: 0, next_slot: 0, offset_bytes: 0, pending }
    }

    /// The file that holds exactly what `recovered` knows, and the slots it gave the listings.
    pub fn checkpoint(
        generation: u64,
        recovered: &Recovered,
    ) -> (Self, BTreeMap<ListingKey, JournalSlot>) {
        let mut writer = JournalWriter::new(generation);
        let mut slots = BTreeMap::new();
        for (&key, listing) in &recovered.listings {
            let slot = writer.added(
                key,
                listing.total_len,
                listing.piece_count,
                listing.both_views,
                listing.folder.clone(),
            );
            writer.have(slot, listing.have.runs());
            writer.intent(slot, listing.suspect.runs());
            slots.insert(key, slot);
        }
        (writer, slots)
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
        let slot = self.next_slot;
        self.next_slot += 1;
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

    /// Records that a listing is gone.
    pub fn removed(&mut self, slot: JournalSlot) {
        self.append(&Record::Removed { slot });
    }

    /// Records that nothing is being written any more.
    pub fn clean_stop(&mut self) {
        self.append(&Record::CleanStop);
    }

    /// Takes what is to be written, and where in the file.
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
        !self.pending.is_empty()
    }

    fn append_runs(
        &mut self,
        runs: impl IntoIterator<Item = (u32, u32)>,
        record: impl Fn(Vec<(u32, u32)>) -> Record,
    ) {
        let mut runs = runs.into_iter().peekable();
        while runs.peek().is_some() {
            let chunk = runs.by_ref().take(RUNS_PER_RECORD_MAX).collect();
            self.append(&record(chunk));
        }
    }

    fn append(&mut self, record: &Record) {
        let mut body = Vec::new();
        let kind = encode_body(record, &mut body);
        assert!(body.len() <= BODY_LEN_MAX, "journal body of {} bytes", body.len());
        let start = self.pending.len();
        self.pending.extend_from_slice(&(body.len() as u16).to_le_bytes());
        self.pending.extend_from_slice(&[kind, 0]);
        self.pending.extend_from_slice(&(self.generation as u32).to_le_bytes());
        self.pending.extend_from_slice(&self.sequence.to_le_bytes());
        let crc = record_crc(&self.pending[start..], &body);
        self.pending.extend_from_slice(&crc.to_le_bytes());
        self.pending.extend_from_slice(&body);
        self.sequence += 1;
    }
}

/// Reads a journal up to its first bad record.
///
/// # Errors
/// [`JournalError`] when the header is not one of ours.
pub fn replay(bytes: &[u8]) -> Result<Recovered, JournalError> {
    let header = bytes.get(..HEADER_LEN).ok_or(JournalError::Header)?;
    if &header[..8] != MAGIC || crc32fast::hash(&header[..20]) != read_u32(header, 20) {
        return Err(JournalError::Header);
    }
    let version = read_u32(header, 8);
    if version != JOURNAL_VERSION {
        return Err(JournalError::Version { found: version });
    }
    let generation = read_u64(header, 12);
    let mut replay = Replay {
        recovered: Recovered { generation, ..Recovered::default() },
        slots: BTreeMap::new(),
    };
    let mut at = HEADER_LEN;
    let mut sequence = 0;
    while let Some((record, end)) = read_record(bytes, at, generation as u32, sequence) {
        if replay.apply(record).is_none() {
            break;
        }
        at = end;
        sequence += 1;
    }
    let rest = &bytes[at..];
    replay.recovered.torn_bytes =
        rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    Ok(replay.recovered)
}

/// State of a replay: the facts so far and which slot names which listing.
struct Replay {
    recovered: Recovered,
    slots: BTreeMap<JournalSlot, ListingKey>,
}

impl Replay {
    /// Takes in one record; `None` when it contradicts what came before, which ends the replay.
    fn apply(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Added { slot, key, total_len, piece_count, both_views, folder } => {
                self.slots.insert(slot, key);
                let listing = RecoveredListing {
                    total_len,
                    piece_count,
                    both_views,
                    folder,
                    have: RunSet::default(),
                    suspect: RunSet::default(),
                };
                self.recovered.listings.insert(key, listing);
            }
            Record::Intent { slot, runs } => {
                let listing = self.listing(slot)?;
                for (first, count) in checked(runs, listing.piece_count)? {
                    listing.suspect.insert(first, count);
                    listing.have.remove(first, count);
                }
            }
            Record::Have { slot, runs } => {
                let listing = self.listing(slot)?;
                for (first, count) in checked(runs, listing.piece_count)? {
                    listing.have.insert(first, count);
                    listing.suspect.remove(first, count);
                }
            }
            Record::Lost { slot, runs } => {
                let listing = self.listing(slot)?;
                for (first, count) in checked(runs, listing.piece_count)? {
                    listing.have.remove(first, count);
                    listing.suspect.insert(first, count);
                }
            }
            Record::Removed { slot } => {
                let key = self.slots.remove(&slot)?;
                self.recovered.listings.remove(&key);
            }
            Record::CleanStop => {
                for listing in self.recovered.listings.values_mut() {
                    listing.suspect = RunSet::default();
                }
            }
        }
        Some(())
    }

    fn listing(&mut self, slot: JournalSlot) -> Option<&mut RecoveredListing> {
        self.recovered.listings.get_mut(self.slots.get(&slot)?)
    }
}

/// The runs, if all of them lie below the piece count.
fn checked(runs: Vec<(u32, u32)>, piece_count: u32) -> Option<Vec<(u32, u32)>> {
    let fits = |&(first, count): &(u32, u32)| {
        first.checked_add(count).is_some_and(|end| end <= piece_count)
    };
    runs.iter().all(fits).then_some(runs)
}

fn record_crc(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// The record at `at` and where the next one begins; `None` when it is not whole or not the next.
fn read_record(bytes: &[u8], at: usize, generation: u32, sequence: u64) -> Option<(Record, usize)> {
    let head = bytes.get(at..at + RECORD_HEAD_LEN)?;
    let body_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let end = at + RECORD_HEAD_LEN + body_len;
    let body = bytes.get(at + RECORD_HEAD_LEN..end)?;
    let is_next = head[3] == 0
        && read_u32(head, 4) == generation
        && read_u64(head, 8) == sequence
        && read_u32(head, 16) == record_crc(&head[..16], body);
    is_next.then_some(())?;
    Some((decode_body(head[2], body)?, end))
}

/// Writes the body and returns the kind.
fn encode_body(record: &Record, out: &mut Vec<u8>) -> u8 {
    use std::os::unix::ffi::OsStrExt as _;
    let mut with_runs = |slot: &JournalSlot, runs: &[(u32, u32)]| {
        out.extend_from_slice(&slot.to_le_bytes());
        for (first, count) in runs {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
    };
    match record {
        Record::Added { slot, key, total_len, piece_count, both_views, folder } => {
            out.extend_from_slice(&slot.to_le_bytes());
            let (tag, hash): (u8, &[u8]) = match key {
                ListingKey::V1(hash) => (1, hash),
                ListingKey::V2(hash) => (2, hash),
            };
            let mut padded = [0; 32];
            padded[..hash.len()].copy_from_slice(hash);
            out.extend_from_slice(&[tag, u8::from(*both_views)]);
            out.extend_from_slice(&padded);
            out.extend_from_slice(&total_len.to_le_bytes());
            out.extend_from_slice(&piece_count.to_le_bytes());
            // A path that does not fit is left out: the listing is then checked whole after a restart.
            let folder = folder.as_os_str().as_bytes();
            out.extend_from_slice(if folder.len() <= 4096 { folder } else { &[] });
            1
        }
        Record::Intent { slot, runs } => {
            with_runs(slot, runs);
            2
        }
        Record::Have { slot, runs } => {
            with_runs(slot, runs);
            3
        }
        Record::Lost { slot, runs } => {
            with_runs(slot, runs);
            4
        }
        Record::Removed { slot } => {
            with_runs(slot, &[]);
            5
        }
        Record::CleanStop => 6,
    }
}

fn decode_body(kind: u8, body: &[u8]) -> Option<Record> {
    use std::os::unix::ffi::OsStrExt as _;
    if kind == 6 {
        return body.is_empty().then_some(Record::CleanStop);
    }
    let (slot, rest) = body.split_at_checked(4)?;
    let slot = read_u32(slot, 0);
    let runs = || -> Option<Vec<(u32, u32)>> {
        let chunks = rest.chunks_exact(8);
        chunks.remainder().is_empty().then_some(())?;
        Some(chunks.map(|chunk| (read_u32(chunk, 0), read_u32(chunk, 4))).collect())
    };
    match kind {
        1 => {
            let (fixed, folder) = rest.split_at_checked(46)?;
            let hash = &fixed[2..34];
            let key = match fixed[0] {
                1 => ListingKey::V1(hash[..20].try_into().ok()?),
                2 => ListingKey::V2(hash.try_into().ok()?),
                _ => return None,
            };
            let piece_count = read_u32(fixed, 42);
            (piece_count <= PIECE_COUNT_MAX).then_some(())?;
            Some(Record::Added {
                slot,
                key,
                total_len: read_u64(fixed, 34),
                piece_count,
                both_views: fixed[1] != 0,
                folder: PathBuf::from(std::ffi::OsStr::from_bytes(folder)),
            })
        }
        2 => Some(Record::Intent { slot, runs: runs()? }),
        3 => Some(Record::Have { slot, runs: runs()? }),
        4 => Some(Record::Lost { slot, runs: runs()? }),
        5 => rest.is_empty().then_some(Record::Removed { slot }),
        _ => None,
    }
}

/// Callers have checked the length.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ListingKey = ListingKey::V2([9; 32]);

    /// A journal with a bit of everything, and where its records end.
    fn sample() -> Vec<u8> {
        let mut writer = JournalWriter::new(7);
        let slot = writer.added(KEY, 1 << 20, 64, true, "/data/here".into());
        writer.intent(slot, [(0, 4)]);
        writer.have(slot, [(0, 2), (3, 1)]);
        let other = writer.added(ListingKey::V1([3; 20]), 99, 1, false, "/data".into());
        writer.have(other, [(0, 1)]);
        writer.lost(slot, [(3, 1)]);
        writer.removed(other);
        writer.take_pending().unwrap().1
    }

    #[test]
    fn what_was_written_is_believed_and_the_rest_is_in_doubt() {
        let recovered = replay(&sample()).unwrap();
        assert_eq!((recovered.generation, recovered.torn_bytes), (7, 0));
        let listing = &recovered.listings[&KEY];
        assert_eq!(recovered.listings.len(), 1, "the removed one is gone");
        assert_eq!(listing.have.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(listing.suspect.iter().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(listing.folder, PathBuf::from("/data/here"));
        assert!(listing.both_views);
    }

    #[test]
    fn a_checkpoint_says_the_same() {
        let recovered = replay(&sample()).unwrap();
        let (mut writer, slots) = JournalWriter::checkpoint(8, &recovered);
        assert_eq!(slots.len(), 1);
        let again = replay(&writer.take_pending().unwrap().1).unwrap();
        assert_eq!(again, Recovered { generation: 8, ..recovered });
    }

    #[test]
    fn a_clean_stop_closes_the_intents() {
        let mut writer = JournalWriter::new(1);
        let slot = writer.added(KEY, 1 << 20, 64, true, "/d".into());
        writer.intent(slot, [(5, 9)]);
        writer.clean_stop();
        let recovered = replay(&writer.take_pending().unwrap().1).unwrap();
        assert!(recovered.listings[&KEY].suspect.is_empty());
    }

    #[test]
    fn many_runs_are_cut_into_small_records() {
        let mut writer = JournalWriter::new(1);
        let slot = writer.added(KEY, 1 << 40, 1 << 20, true, "/d".into());
        let before = writer.pending.len();
        writer.have(slot, (0..1000).map(|run| (run * 2, 1)));
        assert!((writer.pending.len() - before).div_ceil(1000_usize.div_ceil(60)) <= 512);
        let recovered = replay(&writer.take_pending().unwrap().1).unwrap();
        assert_eq!(recovered.listings[&KEY].have.count(), 1000);
    }

    /// A torn or rotten byte anywhere cuts the journal there: never a panic, never a have that was
    /// not written before the damage.
    #[test]
    fn damage_ends_the_replay_and_invents_nothing() {
        let bytes = sample();
        let whole = replay(&bytes).unwrap();
        let all_ever: RunSet = [0, 1, 3].into_iter().collect();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let Ok(recovered) = replay(&damaged) else {
                assert!(at < HEADER_LEN);
                continue;
            };
            assert_ne!(recovered, whole, "byte {at} is not covered");
            for listing in recovered.listings.values().filter(|listing| listing.piece_count == 64) {
                assert!(listing.have.iter().all(|piece| all_ever.contains(piece)));
            }
            let cut = replay(&bytes[..at.max(HEADER_LEN)]).unwrap();
            assert!(cut.listings.len() <= 2);
        }
    }

    #[test]
    fn records_of_an_older_generation_are_no_records() {
        let mut old = sample();
        let newer = JournalWriter::new(8).take_pending().unwrap().1;
        old[..HEADER_LEN].copy_from_slice(&newer);
        assert!(replay(&old).unwrap().listings.is_empty());
        assert!(replay(&old).unwrap().torn_bytes > 0);
    }

    #[test]
    fn preallocated_zeros_are_no_records() {
        let mut bytes = sample();
        let clean = replay(&bytes).unwrap();
        bytes.resize(bytes.len() + 4096, 0);
        assert_eq!(replay(&bytes).unwrap(), clean);
    }

    #[test]
    fn runs_past_the_last_piece_end_the_replay() {
        let mut writer = JournalWriter::new(1);
        let slot = writer.added(KEY, 1 << 20, 4, true, "/d".into());
        writer.have(slot, [(3, 2)]);
        writer.have(slot, [(0, 1)]);
        let recovered = replay(&writer.take_pending().unwrap().1).unwrap();
        assert!(recovered.listings[&KEY].have.is_empty());
    }
}
