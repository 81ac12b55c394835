//! Leaves of data that is hashed before its info hash is known.
//!
//! Whoever makes a torrent has every leaf in hand once. They go to a file of the state folder that no
//! listing knows, and it becomes the listing's sidecar when the torrent is made: so an origin has its
//! leaves from the first request on, and never hashes its data for a stranger.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringseed_core::geometry::{BLOCK_LEN, Geometry, PieceIndex};
use ringseed_sys::dir::{DirHandle, FileOptions};

use super::leaves_path;

/// Length of a leaf in a sidecar, in bytes.
pub(crate) const LEAF_LEN: usize = 32;
/// Where sidecars lie that are not finished. A start removes it: their torrents were never made.
pub(super) const UNFINISHED: &str = "leaves-new";
/// Leaves that gather before they are written (1 MiB, of half a gigabyte of payload): pieces come one by
/// one from several threads, and neighbours go in one write.
const GATHERED_MAX: usize = 1 << 15;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A leaf sidecar in the making. Removed when it is dropped, unless it was kept.
#[derive(Debug)]
pub struct LeafFile {
    dir: Arc<DirHandle>,
    path: PathBuf,
    file: File,
    gathered: Mutex<Gathered>,
    is_kept: AtomicBool,
}

#[derive(Debug, Default)]
struct Gathered {
    leaves: BTreeMap<u64, Vec<[u8; LEAF_LEN]>>,
    count: usize,
    /// The first write that failed. A sidecar is a help and no need: nobody is stopped by it.
    failed: Option<io::Error>,
}

impl LeafFile {
    /// An empty one in a state folder.
    pub(crate) fn new(dir: Arc<DirHandle>) -> io::Result<Self> {
        let path = Path::new(UNFINISHED).join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        let options = FileOptions { write: true, truncate: true, ..FileOptions::default() };
        let (fd, _) = dir.open_or_create(&path, options)?;
        let is_kept = AtomicBool::new(false);
        Ok(LeafFile { dir, path, file: fd.into(), gathered: Mutex::default(), is_kept })
    }

    /// Takes leaves in a row; `first` is the number of the first one in the sidecar.
    pub(crate) fn put(&self, first: u64, leaves: &[[u8; LEAF_LEN]]) {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if gathered.failed.is_some() {
            return;
        }
        gathered.leaves.insert(first, leaves.to_vec());
        gathered.count += leaves.len();
        if gathered.count >= GATHERED_MAX {
            self.write(&mut gathered);
        }
    }

    fn write(&self, gathered: &mut Gathered) {
        gathered.count = 0;
        for (offset_bytes, bytes) in in_rows(&std::mem::take(&mut gathered.leaves)) {
            if let Err(error) = self.file.write_all_at(&bytes, offset_bytes) {
                gathered.failed = Some(error);
                return;
            }
        }
    }

    /// Makes it the sidecar of the listing with this v2 info hash. It needs no sync: what a power cut
    /// takes of it does not lead to the root any more and is made again from the data.
    ///
    /// # Errors
    /// The first write that failed; what `mkdir(2)` and `rename(2)` say. The listing then has no sidecar
    /// and makes one when somebody asks.
    pub fn keep(&self, info_hash_v2: &[u8; 32]) -> io::Result<()> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&mut gathered);
        if let Some(error) = gathered.failed.take() {
            return Err(error);
        }
        let path = leaves_path(info_hash_v2);
        if let Some(folder) = path.parent() {
            self.dir.create_dirs(folder)?;
        }
        self.dir.rename(&self.path, &path)?;
        self.is_kept.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for LeafFile {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) {
            // What stays behind is removed by the next start.
            let _ = self.dir.remove_file(&self.path);
        }
    }
}

/// Byte positions and bytes of leaves by number, neighbours together.
pub(crate) fn in_rows(leaves: &BTreeMap<u64, Vec<[u8; LEAF_LEN]>>) -> Vec<(u64, Vec<u8>)> {
    let mut rows: Vec<(u64, Vec<u8>)> = Vec::new();
    for (&at, leaves) in leaves {
        let offset_bytes = at * LEAF_LEN as u64;
        let bytes = leaves.as_flattened();
        match rows.last_mut() {
            Some((begin, row)) if *begin + row.len() as u64 == offset_bytes => {
                row.extend_from_slice(bytes);
            }
            _ => rows.push((offset_bytes, bytes.to_vec())),
        }
    }
    rows
}

/// Number of the first leaf of every file in the sidecar, pads counted as nothing.
pub(crate) fn leaf_bases(geometry: &Geometry) -> Vec<u64> {
    if !geometry.kind().has_v2() {
        return Vec::new();
    }
    let mut next = 0;
    let begin_of = |file| {
        let begin = next;
        if !geometry.is_pad(file) {
            next += geometry.file_len(file).div_ceil(u64::from(BLOCK_LEN));
        }
        begin
    };
    geometry.files().map(begin_of).collect()
}

/// Number of the first leaf of a piece in the sidecar; `None` of one that lies in pads.
pub(crate) fn first_leaf(bases: &[u64], geometry: &Geometry, piece: PieceIndex) -> Option<u64> {
    let (file, in_file) = geometry.piece_in_file(piece)?;
    let per_piece = u64::from(geometry.piece_len_nominal() / BLOCK_LEN);
    Some(bases.get(file.get() as usize)? + u64::from(in_file) * per_piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::TestDir;

    fn state(dir: &TestDir) -> Arc<DirHandle> {
        Arc::new(DirHandle::create(&dir.path().join("state")).unwrap())
    }

    /// Leaves come in any order and more than gather: each lies at its place.
    #[test]
    fn leaves_in_any_order_lie_in_theirs() {
        let dir = TestDir::new("leaf-file");
        let state = state(&dir);
        let file = LeafFile::new(state.clone()).unwrap();
        let leaf = |number: u32| {
            let mut leaf = [7; LEAF_LEN];
            leaf[..4].copy_from_slice(&number.to_le_bytes());
            leaf
        };
        let count = 3 * GATHERED_MAX as u32;
        for first in (0..count).step_by(16).filter(|first| first % 32 != 0) {
            file.put(first.into(), &(first..first + 16).map(leaf).collect::<Vec<_>>());
        }
        for first in (0..count).step_by(32).rev() {
            file.put(first.into(), &(first..first + 16).map(leaf).collect::<Vec<_>>());
        }
        file.keep(&[3; 32]).unwrap();
        drop(file);
        let wanted: Vec<u8> = (0..count).flat_map(leaf).collect();
        assert!(state.read_file(&leaves_path(&[3; 32]), 1 << 30).unwrap() == wanted);
    }

    /// Of a torrent that was not made in the end nothing stays.
    #[test]
    fn what_is_not_kept_is_removed() {
        let dir = TestDir::new("leaf-file");
        let state = state(&dir);
        let file = LeafFile::new(state.clone()).unwrap();
        file.put(0, &[[1; LEAF_LEN]]);
        assert_eq!(state.list(Path::new(UNFINISHED)).unwrap().len(), 1);
        drop(file);
        assert!(state.list(Path::new(UNFINISHED)).unwrap().is_empty());
    }
}
