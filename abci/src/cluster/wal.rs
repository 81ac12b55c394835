//! The write-ahead log of the height being agreed, and the record of who signs here.
//!
//! Everything that moved the consensus core, and every signature of ours, is written and synced
//! before a message of ours leaves (facts: a lost log means possible equivocation). What was logged
//! since the last flush goes out as one record, so a tear loses a whole flush that nobody saw.
//!
//! Beside it lies `signer`: the key and the first height at which it may sign, written when the
//! folder is fresh. A folder that has blocks but lacks either file lost its memory, and its key must
//! not vote ([`Signer`]).

use std::io;
use std::path::Path;

use super::certificate::ChainBlock;
use crate::codec::{CodecError, Reader, put_bytes};
use crate::record_log::{HEADER_LEN_BYTES, LogError, RecordLog, replace_file};

const MAGIC: &[u8; 8] = b"RSVOTES1";
/// A flush may hold several proposed blocks (one per round), never more than these bytes: it is
/// split before.
const RECORD_LEN_BYTES_MAX: u32 = 4 << 20;
const ENTRY_LEN_BYTES_MAX: usize = ChainBlock::ENCODED_LEN_BYTES_MAX + 64;

/// Who signs in this folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The node key.
    pub key: [u8; 32],
    /// The first height at which it may sign. A key that comes to a fresh folder may have signed in
    /// an earlier life; it lets pass the heights at which that was possible. [`u64::MAX`] until it
    /// is known which those are.
    pub signing_from: u64,
}

impl Signer {
    const MAGIC: &[u8; 8] = b"RSSIGNER";

    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// What the operating system says; [`io::ErrorKind::InvalidData`] on a damaged file.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged");
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        let mut reader = Reader::new(body);
        let mut parse = || {
            let magic = reader.array::<8>()?;
            let signer = Self { key: reader.array()?, signing_from: reader.u64()? };
            Ok::<_, CodecError>((magic, signer))
        };
        let (magic, signer) = parse().map_err(|_| damaged())?;
        let good = magic == *Self::MAGIC
            && reader.remaining_bytes() == 0
            && crc32fast::hash(body) == u32::from_le_bytes(*crc);
        good.then_some(Some(signer)).ok_or_else(damaged)
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Self::MAGIC.to_vec();
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(&self.signing_from.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        replace_file(path, &bytes)
    }
}

/// The open log.
#[derive(Debug)]
pub struct Wal {
    log: RecordLog,
    height: u64,
    pending: Vec<u8>,
    /// Entries of the last height found on opening.
    recovered: (u64, Vec<Vec<u8>>),
}

impl Wal {
    /// Opens or creates the log at `path`; a torn last flush is cut.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let mut recovered: (u64, Vec<Vec<u8>>) = (0, Vec::new());
        let mut bad = None;
        let log = RecordLog::open(path, MAGIC, RECORD_LEN_BYTES_MAX, 0, |offset, payload| {
            match decode_flush(payload) {
                Ok((height, entries)) if height >= recovered.0 => {
                    if height > recovered.0 {
                        recovered = (height, Vec::new());
                    }
                    recovered.1.extend(entries);
                }
                // A flush of an earlier height behind a later one was never cut: it is stale.
                Ok(_) => {}
                Err(_) => bad = bad.or(Some(offset)),
            }
        })?;
        if let Some(offset_bytes) = bad {
            return Err(LogError::Damaged { path: path.to_path_buf(), offset_bytes });
        }
        Ok(Self { log, height: 0, pending: Vec::new(), recovered })
    }

    /// Takes what was logged for `height` before the last stop; empty for another height.
    pub fn take_recovered(&mut self, height: u64) -> Vec<Vec<u8>> {
        let (found, entries) = std::mem::take(&mut self.recovered);
        if found == height { entries } else { Vec::new() }
    }

    /// Begins to log `height`. Records of earlier heights are dropped unless they are of `height`
    /// itself (a restart in the middle of it).
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn begin(&mut self, height: u64, keep_recovered: bool) -> Result<(), LogError> {
        self.pending.clear();
        self.height = height;
        if !keep_recovered {
            self.log.truncate(HEADER_LEN_BYTES)?;
        }
        Ok(())
    }

    /// Remembers one entry for the next flush.
    ///
    /// # Errors
    /// [`LogError::Io`]: an entry that does not fit flushes those before it.
    pub fn append(&mut self, entry: &[u8]) -> Result<(), LogError> {
        if self.pending.len() + entry.len() + 64 > RECORD_LEN_BYTES_MAX as usize {
            self.flush()?;
        }
        put_bytes(&mut self.pending, entry);
        Ok(())
    }

    /// Whether everything appended is on disk: what every publish asserts.
    pub fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// Makes everything appended durable. Must return before anything of ours is published.
    ///
    /// # Errors
    /// [`LogError::Io`]; the node must stop.
    pub fn flush(&mut self) -> Result<(), LogError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut record = self.height.to_le_bytes().to_vec();
        record.append(&mut self.pending);
        self.log.append(&record)?;
        Ok(())
    }
}

fn decode_flush(payload: &[u8]) -> Result<(u64, Vec<Vec<u8>>), CodecError> {
    let mut reader = Reader::new(payload);
    let height = reader.u64()?;
    let mut entries = Vec::new();
    while reader.remaining_bytes() > 0 {
        entries.push(reader.bytes(ENTRY_LEN_BYTES_MAX)?.to_vec());
    }
    Ok((height, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_tear_at_every_byte_of_the_last_flush_leaves_the_flush_before() {
        let dir = TempDir::new("wal-torn");
        let path = dir.path().join("votes");
        let mut wal = Wal::open(&path).unwrap();
        wal.begin(7, false).unwrap();
        wal.append(b"proposal").unwrap();
        wal.append(b"prevote").unwrap();
        wal.flush().unwrap();
        let published = std::fs::metadata(&path).unwrap().len() as usize;
        wal.append(b"polka").unwrap();
        wal.append(b"precommit").unwrap();
        wal.flush().unwrap();
        drop(wal);
        let whole = std::fs::read(&path).unwrap();
        for len in published..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let mut wal = Wal::open(&path).unwrap();
            let entries = wal.take_recovered(7);
            assert_eq!(entries, [&b"proposal"[..], b"prevote"], "cut to {len} bytes");
            assert!(wal.take_recovered(7).is_empty());
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Wal::open(&path).unwrap().take_recovered(7).len(), 4);
    }

    #[test]
    fn a_new_height_forgets_the_old_one() {
        let dir = TempDir::new("wal-heights");
        let path = dir.path().join("votes");
        let mut wal = Wal::open(&path).unwrap();
        wal.begin(1, false).unwrap();
        wal.append(b"old").unwrap();
        wal.flush().unwrap();
        wal.begin(2, false).unwrap();
        wal.append(b"new").unwrap();
        wal.flush().unwrap();
        drop(wal);
        let mut wal = Wal::open(&path).unwrap();
        assert!(wal.take_recovered(1).is_empty());
        drop(wal);
        let mut wal = Wal::open(&path).unwrap();
        assert_eq!(wal.take_recovered(2), [b"new"]);
        wal.begin(2, true).unwrap();
        wal.append(b"newer").unwrap();
        wal.flush().unwrap();
        drop(wal);
        assert_eq!(Wal::open(&path).unwrap().take_recovered(2), [&b"new"[..], b"newer"]);
    }

    #[test]
    fn damage_in_an_earlier_flush_is_told_and_not_skipped() {
        let dir = TempDir::new("wal-damage");
        let path = dir.path().join("votes");
        let mut wal = Wal::open(&path).unwrap();
        wal.begin(1, false).unwrap();
        let first = wal.log.end_offset_bytes() as usize;
        for entry in [b"one", b"two"] {
            wal.append(entry).unwrap();
            wal.flush().unwrap();
        }
        drop(wal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[first + 10] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(Wal::open(&path), Err(LogError::Damaged { .. })));
    }

    #[test]
    fn a_damaged_signer_file_is_no_fresh_folder() {
        let dir = TempDir::new("wal-signer");
        let path = dir.path().join("signer");
        assert_eq!(Signer::load(&path).unwrap(), None);
        let signer = Signer { key: [9; 32], signing_from: 12 };
        signer.save(&path).unwrap();
        assert_eq!(Signer::load(&path).unwrap(), Some(signer));
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(Signer::load(&path).is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Signer::load(&path).is_err(), "cut to {at} bytes");
        }
    }
}
