//! What a journal says: records in, state out, and the state as a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::journal::for_each_chunk;
use super::record::{
    FileKind, Header, JournalSlot, ListingKey, Record, Records, Stamp, encode_record,
};
use super::runs::RunSet;

/// What the journal believes of one listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredListing {
    /// Its name in the journal.
    pub slot: JournalSlot,
    /// Length of its torrent space in bytes.
    pub total_len: u64,
    /// How many pieces it has.
    pub piece_count: u32,
    /// The v1 view was checked with the v2 view.
    pub both_views: bool,
    /// The folder that holds its root name; listings of one folder share it.
    pub folder: Arc<Path>,
    /// Pieces verified and synced.
    pub have: RunSet,
    /// Pieces that were being written: hash again.
    pub suspect: RunSet,
    /// What its files looked like when all of it was had.
    pub stamp: Option<Stamp>,
}

impl RecoveredListing {
    /// Whether this is what is asked for: the same layout in the same folder. Checked by one view only
    /// where both are asked for, it is to be hashed again.
    pub fn is_of(&self, total_len: u64, piece_count: u32, both_views: bool, folder: &Path) -> bool {
        *self.folder == *folder
            && self.total_len == total_len
            && self.piece_count == piece_count
            && (self.both_views || !both_views)
    }
}

/// Everything a replay yields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Listings by identity.
    pub listings: BTreeMap<ListingKey, RecoveredListing>,
}

/// State of a replay: the facts so far.
#[derive(Debug, Default)]
pub(super) struct Replay {
    listings: BTreeMap<JournalSlot, (ListingKey, RecoveredListing)>,
    /// The slot of each listing's last life.
    slots: BTreeMap<ListingKey, JournalSlot>,
    /// Earlier lives of listings that were added again: whatever is still said of them counts for nothing.
    superseded: BTreeSet<JournalSlot>,
    folders: BTreeSet<Arc<Path>>,
    next_slot: JournalSlot,
    /// What the `End` record of a checkpoint says: it is whole.
    pub next_sequence: Option<u64>,
}

impl Replay {
    /// Takes in the good records of a file up to its end or to the first that contradicts what came
    /// before.
    ///
    /// # Errors
    /// What reading says.
    pub fn take_all<R: Read>(&mut self, records: &mut Records<R>) -> io::Result<()> {
        while let Some(record) = records.next_record()? {
            if self.next_sequence.is_some() && records.header().kind == FileKind::Checkpoint {
                // Nothing follows an `End`.
                self.next_sequence = None;
                return Ok(());
            }
            if self.apply(record).is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The first slot that no record names.
    pub fn next_slot(&self) -> JournalSlot {
        self.next_slot
    }

    /// What is believed after all.
    pub fn finish(self) -> Recovered {
        Recovered { listings: self.listings.into_values().collect() }
    }

    /// Takes in one record; `None` when it contradicts what came before, which ends the replay.
    fn apply(&mut self, record: Record) -> Option<()> {
        if record.slot().is_some_and(|slot| self.superseded.contains(&slot))
            && !matches!(record, Record::Added { .. })
        {
            return Some(());
        }
        match record {
            Record::Added { slot, key, total_len, piece_count, both_views, folder } => {
                let folder = match self.folders.get(folder.as_path()) {
                    Some(known) => known.clone(),
                    None => {
                        let folder: Arc<Path> = folder.into();
                        self.folders.insert(folder.clone());
                        folder
                    }
                };
                let (have, suspect) = (RunSet::default(), RunSet::default());
                let listing = RecoveredListing {
                    slot,
                    total_len,
                    piece_count,
                    both_views,
                    folder,
                    have,
                    suspect,
                    stamp: None,
                };
                if let Some((other, _)) = self.listings.insert(slot, (key, listing)) {
                    self.slots.remove(&other);
                }
                // An earlier life that was kept would come back when this one is removed.
                if let Some(earlier) = self.slots.insert(key, slot).filter(|&it| it != slot) {
                    self.listings.remove(&earlier);
                    self.superseded.insert(earlier);
                }
                self.superseded.remove(&slot);
                self.next_slot = self.next_slot.max(slot.checked_add(1)?);
            }
            Record::Intent { slot, runs } | Record::Lost { slot, runs } => {
                let listing = self.listing(slot)?;
                for (first, count) in checked(runs, listing.piece_count)? {
                    listing.suspect.insert(first, count);
                    listing.have.remove(first, count);
                }
                listing.stamp = None;
            }
            Record::Have { slot, runs } => {
                let listing = self.listing(slot)?;
                for (first, count) in checked(runs, listing.piece_count)? {
                    listing.have.insert(first, count);
                    listing.suspect.remove(first, count);
                }
            }
            Record::Removed { slot } => {
                let (key, _) = self.listings.remove(&slot)?;
                self.slots.remove(&key);
            }
            Record::CleanStop => {
                for (_, listing) in self.listings.values_mut() {
                    listing.suspect = RunSet::default();
                }
            }
            Record::End { next_sequence, next_slot } => {
                self.next_sequence = Some(next_sequence);
                self.next_slot = self.next_slot.max(next_slot);
            }
            Record::Stamped { slot, stamp } => self.listing(slot)?.stamp = Some(stamp),
        }
        Some(())
    }

    fn listing(&mut self, slot: JournalSlot) -> Option<&mut RecoveredListing> {
        self.listings.get_mut(&slot).map(|(_, listing)| listing)
    }

    /// Writes what is known as the checkpoint of `generation`, behind which the log goes on with the
    /// record `next_sequence`. Returns its length in bytes.
    ///
    /// # Errors
    /// What writing says.
    pub fn write_checkpoint(
        &self,
        generation: u64,
        next_sequence: u64,
        out: &mut dyn Write,
    ) -> io::Result<u64> {
        let header = Header { kind: FileKind::Checkpoint, generation, first_sequence: 0 };
        let mut buffer = header.encode().to_vec();
        let (mut sequence, mut written) = (0, 0);
        let mut put = |record: &Record, buffer: &mut Vec<u8>| {
            encode_record(record, generation, sequence, buffer);
            sequence += 1;
        };
        for (&slot, (key, listing)) in &self.listings {
            let RecoveredListing { total_len, piece_count, both_views, .. } = *listing;
            let (key, folder) = (*key, listing.folder.to_path_buf());
            let added = Record::Added { slot, key, total_len, piece_count, both_views, folder };
            put(&added, &mut buffer);
            let have = listing.have.runs();
            for_each_chunk(have, |runs| put(&Record::Have { slot, runs }, &mut buffer));
            let suspect = listing.suspect.runs();
            for_each_chunk(suspect, |runs| put(&Record::Intent { slot, runs }, &mut buffer));
            if let Some(stamp) = listing.stamp {
                put(&Record::Stamped { slot, stamp }, &mut buffer);
            }
            if buffer.len() > 64 << 10 {
                out.write_all(&buffer)?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
        put(&Record::End { next_sequence, next_slot: self.next_slot }, &mut buffer);
        out.write_all(&buffer)?;
        Ok(written + buffer.len() as u64)
    }
}

/// Reads one file alone, up to its first bad record.
///
/// # Errors
/// [`JournalError`] when the header is not one of ours.
#[cfg(test)]
pub(super) fn replay_one(bytes: &[u8]) -> Result<Recovered, super::record::JournalError> {
    let mut replay = Replay::default();
    let mut records = Records::open(bytes).expect("memory can be read")?;
    replay.take_all(&mut records).expect("memory can be read");
    Ok(replay.finish())
}

/// The runs, if all of them lie below the piece count.
fn checked(runs: Vec<(u32, u32)>, piece_count: u32) -> Option<Vec<(u32, u32)>> {
    let fits = |&(first, count): &(u32, u32)| {
        first.checked_add(count).is_some_and(|end| end <= piece_count)
    };
    runs.iter().all(fits).then_some(runs)
}
