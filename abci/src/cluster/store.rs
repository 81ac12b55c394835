//! The block store: every decided block with the certificate that proves it.
//!
//! `blocks` is a [`RecordLog`], one record per height; `blocks.index` holds the offset of each, so
//! that a start does not read the chain. The index is a cache: it is not synced, entries past the
//! end are dropped, and what it lacks is found by scanning the rest of the log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};

use thiserror::Error;

use super::certificate::{Certificate, ChainBlock};
use crate::codec::Reader;
use crate::record_log::{HEADER_LEN_BYTES, LogError, RecordLog, RecordReader, is_record};

const MAGIC: &[u8; 8] = b"RSBLOCKS";
const RECORD_LEN_BYTES_MAX: u32 =
    (ChainBlock::ENCODED_LEN_BYTES_MAX + Certificate::ENCODED_LEN_BYTES_MAX) as u32;

/// A block and its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedBlock {
    /// The block.
    pub block: ChainBlock,
    /// Why it is the one of its height.
    pub certificate: Certificate,
}

impl CertifiedBlock {
    /// Most bytes of an encoded block with its certificate.
    pub const ENCODED_LEN_BYTES_MAX: usize = RECORD_LEN_BYTES_MAX as usize;

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.certificate.encode(out);
        self.block.encode(out);
    }

    /// Reads what [`CertifiedBlock::encode`] wrote, to the last byte.
    ///
    /// # Errors
    /// See [`crate::codec::CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, crate::codec::CodecError> {
        let mut reader = Reader::new(bytes);
        let certificate = Certificate::decode(&mut reader)?;
        let block = ChainBlock::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self { block, certificate })
    }
}

/// Why the store cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The log under it.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record holds no block of the height that its place means.
    #[error("{path}: the record of height {height} holds no such block")]
    BadRecord {
        /// The log.
        path: PathBuf,
        /// The height.
        height: u64,
    },
}

/// All decided blocks, from height 1 on. One thread appends, any thread reads.
#[derive(Debug)]
pub struct BlockStore {
    log: Mutex<RecordLog>,
    reader: RecordReader,
    index_file: File,
    /// Offset of the record of height `i + 1`: 8 bytes per block.
    offsets: RwLock<Vec<u64>>,
    path: PathBuf,
}

impl BlockStore {
    /// Opens or creates the store in the folder `dir`; a torn last record is cut.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("blocks");
        let index_path = dir.join("blocks.index");
        let io = |source| LogError::Io { path: index_path.clone(), source };
        let mut options = OpenOptions::new();
        let index_file = options.read(true).write(true).create(true).truncate(false);
        let index_file = index_file.open(&index_path).map_err(io)?;
        let mut offsets = load_index(&index_file).map_err(io)?;
        // The last entry that points at a whole record is where scanning begins. An index that
        // points between records must never lead to a cut, so each is checked first.
        while offsets.last().is_some_and(|last| !is_record(&path, *last, RECORD_LEN_BYTES_MAX)) {
            offsets.pop();
        }
        let from = offsets.pop().unwrap_or(0);
        let log = RecordLog::open(&path, MAGIC, RECORD_LEN_BYTES_MAX, from, |offset, _| {
            offsets.push(offset);
        })?;
        let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        index_file.set_len(bytes.len() as u64).map_err(io)?;
        index_file.write_all_at(&bytes, 0).map_err(io)?;
        let reader = log.reader()?;
        let store =
            Self { log: Mutex::new(log), reader, index_file, offsets: RwLock::new(offsets), path };
        // The first and the last stand for the places of the others.
        for height in [1, store.height()] {
            if height <= store.height() && store.height() > 0 {
                store.read(height)?;
            }
        }
        Ok(store)
    }

    /// The height of the last block; 0 when there is none.
    pub fn height(&self) -> u64 {
        self.offsets.read().expect("no panic under this lock").len() as u64
    }

    /// Appends the block of the next height and waits until it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Log`]; the store must not be used after it.
    ///
    /// # Panics
    /// When the block is not of the next height: a gap would make every later height a lie.
    pub fn append(&self, certified: &CertifiedBlock) -> Result<(), StoreError> {
        let height = self.height() + 1;
        assert_eq!(certified.block.header.height, height, "blocks are stored in order");
        let mut bytes = Vec::new();
        certified.encode(&mut bytes);
        let offset = self.log.lock().expect("no panic under this lock").append(&bytes)?;
        // A lost index entry is found again by the next start; a failed write here changes nothing.
        let _ = self.index_file.write_all_at(&offset.to_le_bytes(), (height - 1) * 8);
        self.offsets.write().expect("no panic under this lock").push(offset);
        Ok(())
    }

    /// The encoded block of `height` as a peer wants it; `None` above the last.
    ///
    /// # Errors
    /// As [`BlockStore::read`].
    pub fn read_bytes(&self, height: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(index) = height.checked_sub(1) else { return Ok(None) };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let offset = self.offsets.read().expect("no panic under this lock").get(index).copied();
        let Some(offset) = offset else { return Ok(None) };
        let bytes = self.reader.read(offset).map_err(|source| self.io(source))?;
        bytes.map(Some).ok_or_else(|| self.bad(height))
    }

    /// The block of `height`; `None` above the last.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] when the record was damaged, [`StoreError::Log`] on I/O errors.
    pub fn read(&self, height: u64) -> Result<Option<CertifiedBlock>, StoreError> {
        let Some(bytes) = self.read_bytes(height)? else { return Ok(None) };
        let certified = CertifiedBlock::decode(&bytes).map_err(|_| self.bad(height))?;
        (certified.block.header.height == height)
            .then_some(Some(certified))
            .ok_or_else(|| self.bad(height))
    }

    fn bad(&self, height: u64) -> StoreError {
        StoreError::BadRecord { path: self.path.clone(), height }
    }

    fn io(&self, source: io::Error) -> LogError {
        LogError::Io { path: self.path.clone(), source }
    }
}

/// The offsets that look like one: ascending, past the header. Anything else ends the cache.
fn load_index(file: &File) -> io::Result<Vec<u64>> {
    let len_bytes = file.metadata()?.len() / 8 * 8;
    let mut bytes = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    let (chunks, _) = bytes.as_chunks::<8>();
    let mut offsets: Vec<u64> = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let offset = u64::from_le_bytes(*chunk);
        let floor = offsets.last().map_or(HEADER_LEN_BYTES - 1, |last| *last);
        if offset <= floor || (offsets.is_empty() && offset != HEADER_LEN_BYTES) {
            break;
        }
        offsets.push(offset);
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::super::certificate::{BlockHeader, BlockId, certificate_hash, txs_root};
    use super::*;
    use crate::testing::TempDir;

    fn certified(height: u64) -> CertifiedBlock {
        let txs = vec![height.to_le_bytes().to_vec(); 3];
        let header = BlockHeader {
            genesis_hash: [1; 32],
            height,
            parent: BlockId([2; 32]),
            app_hash: [3; 32],
            validators_hash: [4; 32],
            next_validators_hash: [4; 32],
            txs_root: txs_root(&txs),
            last_certificate_hash: certificate_hash(None),
            evidence_hash: [0; 32],
            proposer: [5; 32],
        };
        let block = ChainBlock { header, txs, last_certificate: None, evidence: Vec::new() };
        let certificate = Certificate {
            height,
            round: 0,
            block_id: block.id(),
            signatures: vec![([6; 32], [7; 64])],
        };
        CertifiedBlock { block, certificate }
    }

    #[test]
    fn blocks_survive_a_start_with_and_without_the_index() {
        let dir = TempDir::new("store-index");
        let store = BlockStore::open(dir.path()).unwrap();
        (1..=20).for_each(|height| store.append(&certified(height)).unwrap());
        drop(store);
        let index = dir.path().join("blocks.index");
        let whole = std::fs::read(&index).unwrap();
        let mut shifted = whole.clone();
        shifted[8 * 12] += 3; // points into a record
        for bytes in [whole.clone(), Vec::new(), whole[..60].to_vec(), shifted[..8 * 13].to_vec()] {
            std::fs::write(&index, bytes).unwrap();
            let store = BlockStore::open(dir.path()).unwrap();
            assert_eq!(store.height(), 20);
            for height in [1, 7, 20] {
                assert_eq!(store.read(height).unwrap().unwrap(), certified(height));
            }
            assert_eq!(store.read(21).unwrap(), None);
            assert_eq!(store.read(0).unwrap(), None);
        }
    }

    #[test]
    fn a_torn_last_block_is_cut_and_written_again() {
        let dir = TempDir::new("store-torn");
        let store = BlockStore::open(dir.path()).unwrap();
        (1..=3).for_each(|height| store.append(&certified(height)).unwrap());
        drop(store);
        let path = dir.path().join("blocks");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let store = BlockStore::open(dir.path()).unwrap();
        assert_eq!(store.height(), 2);
        store.append(&certified(3)).unwrap();
        assert_eq!(store.read(3).unwrap().unwrap(), certified(3));
    }
}
