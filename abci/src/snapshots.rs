//! Snapshots that are offered to newcomers: the ledger's own encoding, in files that are whole or not
//! there, with a hash for every chunk.
//!
//! ```text
//! DIR/snapshots/HEIGHT    the snapshot after that height; the newest two are kept
//! ```
//! Two, so that a newcomer can finish the older one while the newer one is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::driver::{SNAPSHOT_CHUNK_LEN_BYTES, SnapshotOffer};
use crate::record_log::replace_file;

/// The ledger's snapshot, cut in chunks.
pub(crate) const SNAPSHOT_FORMAT: u32 = 1;
const KEPT_MAX: usize = 2;

/// The snapshots of one folder.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    every_heights: u64,
    /// Oldest first.
    offers: Vec<SnapshotOffer>,
}

impl Snapshots {
    /// Opens `dir`; a snapshot is due at every height that `every_heights` divides.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn open(dir: &Path, every_heights: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut offers = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            match name.and_then(|name| name.parse().ok()) {
                Some(height) => offers.push(offer(height, &std::fs::read(&path)?)),
                // Left behind by a crash while it was written.
                None => std::fs::remove_file(&path)?,
            }
        }
        offers.sort_by_key(|offer| offer.height);
        Ok(Self { dir: dir.to_owned(), every_heights: every_heights.max(1), offers })
    }

    /// Whether one is to be taken after `height`.
    pub(crate) fn is_due(&self, height: u64) -> bool {
        height > 0 && height.is_multiple_of(self.every_heights)
    }

    /// Keeps `content`, taken after `height`, and drops the oldest beyond two.
    ///
    /// # Errors
    /// I/O errors; what was offered before is offered still.
    pub(crate) fn keep(&mut self, height: u64, content: &[u8]) -> io::Result<()> {
        replace_file(&self.path(height), content)?;
        self.offers.retain(|offer| offer.height != height);
        self.offers.push(offer(height, content));
        while self.offers.len() > KEPT_MAX {
            let oldest = self.offers.remove(0);
            std::fs::remove_file(self.path(oldest.height))?;
        }
        Ok(())
    }

    /// What is offered, oldest first.
    pub(crate) fn offers(&self) -> Vec<SnapshotOffer> {
        self.offers.clone()
    }

    /// One chunk; `None` when there is no such.
    pub(crate) fn chunk(&self, height: u64, format: u32, chunk_index: u32) -> Option<Vec<u8>> {
        let offer =
            self.offers.iter().find(|offer| (offer.height, offer.format) == (height, format))?;
        let hash = offer.chunk_hashes.get(chunk_index as usize)?;
        let file = File::open(self.path(height)).ok()?;
        let offset_bytes = u64::from(chunk_index) * SNAPSHOT_CHUNK_LEN_BYTES as u64;
        let left = file.metadata().ok()?.len().saturating_sub(offset_bytes);
        let mut chunk = vec![0; left.min(SNAPSHOT_CHUNK_LEN_BYTES as u64) as usize];
        file.read_exact_at(&mut chunk, offset_bytes).ok()?;
        // A rotten disk costs us the offer, not the newcomer its time.
        (<[u8; 32]>::from(Sha256::digest(&chunk)) == *hash).then_some(chunk)
    }

    fn path(&self, height: u64) -> PathBuf {
        self.dir.join(height.to_string())
    }
}

fn offer(height: u64, content: &[u8]) -> SnapshotOffer {
    let chunks = content.chunks(SNAPSHOT_CHUNK_LEN_BYTES);
    let chunk_hashes: Vec<[u8; 32]> = chunks.map(|chunk| Sha256::digest(chunk).into()).collect();
    SnapshotOffer {
        height,
        format: SNAPSHOT_FORMAT,
        hash: Sha256::digest(content).into(),
        chunk_hashes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn the_newest_two_are_kept_and_found_again() {
        let dir = TempDir::new("snapshots");
        let mut snapshots = Snapshots::open(dir.path(), 10).unwrap();
        assert!(snapshots.is_due(20) && !snapshots.is_due(21) && !snapshots.is_due(0));
        let content = vec![7; SNAPSHOT_CHUNK_LEN_BYTES + 5];
        for height in [10, 20, 30] {
            snapshots.keep(height, &content).unwrap();
        }
        std::fs::write(dir.path().join("40.new"), b"torn").unwrap();
        let again = Snapshots::open(dir.path(), 10).unwrap();
        assert_eq!(again.offers(), snapshots.offers());
        let heights: Vec<_> = again.offers().iter().map(|offer| offer.height).collect();
        assert_eq!(heights, [20, 30]);
        assert_eq!(again.chunk(30, SNAPSHOT_FORMAT, 1), Some(vec![7; 5]));
        assert_eq!(again.chunk(30, SNAPSHOT_FORMAT, 2), None);
        assert_eq!(again.chunk(10, SNAPSHOT_FORMAT, 0), None);
        std::fs::write(dir.path().join("30"), vec![8; SNAPSHOT_CHUNK_LEN_BYTES + 5]).unwrap();
        assert_eq!(again.chunk(30, SNAPSHOT_FORMAT, 0), None);
    }
}
