//! Comparing files with a torrent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringseed_core::metainfo::Metainfo;
use ringseed_sys::dir::{DirHandle, FileOptions};

use super::{OfflineError, PieceDigests, Progress, Source, hash_all, read_full};

/// Files that are held open at a time.
const OPEN_FILES_MAX: usize = 64;

/// What a piece on disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceState {
    /// As the torrent says, in all its views.
    Good,
    /// There, and other bytes.
    Bad,
    /// Not there, or not all of it.
    Missing,
    /// As the v2 view says and not as the v1 view says: the torrent describes two payloads.
    ViewsDisagree,
}

/// What a check has found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// State of every piece, by index.
    pub pieces: Vec<PieceState>,
    /// Files that are not there, or shorter or longer than they should be, by their path beneath the
    /// folder.
    pub bad_files: Vec<PathBuf>,
    /// Payload bytes in good pieces.
    pub good_bytes: u64,
    /// Payload bytes in all.
    pub total_bytes: u64,
    /// First piece where the views disagree, and the SHA-1 found there.
    pub disagreement: Option<(u32, [u8; 20])>,
}

impl CheckReport {
    /// Every piece is good and every file, empty ones included, is there.
    pub fn is_complete(&self) -> bool {
        self.bad_files.is_empty() && self.pieces.iter().all(|&piece| piece == PieceState::Good)
    }

    /// Pieces in a state, in order.
    pub fn pieces_in(&self, state: PieceState) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.pieces).filter(move |(_, found)| **found == state).map(|(piece, _)| piece)
    }
}

/// Hashes what lies in `data_dir` under the torrent's name and compares it, both views where there are
/// two. Nothing is written.
///
/// # Errors
/// [`OfflineError::Read`] when the folder cannot be opened or a file that is there cannot be read.
pub fn check(
    metainfo: &Metainfo,
    data_dir: &Path,
    progress: Progress<'_>,
) -> Result<CheckReport, OfflineError> {
    let root = DirHandle::open(data_dir)
        .map_err(|source| OfflineError::Read { path: data_dir.into(), source })?;
    let info = metainfo.info();
    let geometry = info.geometry();
    let mut bad_files = Vec::new();
    for file in info.files().iter().filter(|file| !file.pad) {
        match root.metadata(file.path.as_path()) {
            Ok(found) if found.len_bytes == file.len_bytes => {}
            _ => bad_files.push(file.path.as_path().to_path_buf()),
        }
    }
    let reader = Reader { root: &root, metainfo, open: Mutex::default(), absent: Mutex::default() };
    let mut pieces = vec![PieceState::Missing; geometry.piece_count() as usize];
    let mut good_bytes = 0;
    let mut disagreement: Option<(u32, [u8; 20])> = None;
    hash_all(geometry, &reader, progress, &mut |piece, digests| {
        let state =
            digests.as_ref().map_or(PieceState::Missing, |digests| judge(metainfo, digests));
        pieces[piece.get() as usize] = state;
        match state {
            PieceState::Good => good_bytes += crate::shard::payload_of(geometry, piece),
            PieceState::ViewsDisagree => {
                let sha1 = digests.and_then(|digests| digests.sha1).expect("v1 was compared");
                if disagreement.is_none_or(|(first, _)| piece.get() < first) {
                    disagreement = Some((piece.get(), sha1));
                }
            }
            PieceState::Bad | PieceState::Missing => {}
        }
    })?;
    let total_bytes = geometry.payload_len();
    Ok(CheckReport { pieces, bad_files, good_bytes, total_bytes, disagreement })
}

fn judge(metainfo: &Metainfo, digests: &PieceDigests) -> PieceState {
    let info = metainfo.info();
    let piece = digests.piece;
    let is_good_v1 = digests.sha1.map(|sha1| info.v1_piece_hash(piece) == Some(&sha1));
    // A .torrent file without piece layers says nothing of the pieces of long files by v2.
    let expected = metainfo.v2_piece_hash(piece);
    let is_good_v2 = expected.map(|expected| digests.root == Some(expected));
    match (is_good_v2, is_good_v1) {
        (Some(true), Some(false)) => PieceState::ViewsDisagree,
        (Some(false), _) | (None, Some(false)) => PieceState::Bad,
        (Some(true), _) | (None, Some(true)) => PieceState::Good,
        // Nothing to compare with: a piece in pads, or layers that are not there.
        (None, None) if info.geometry().piece_data_len(piece) == 0 => PieceState::Good,
        (None, None) => PieceState::Bad,
    }
}

struct Reader<'a> {
    root: &'a DirHandle,
    metainfo: &'a Metainfo,
    open: Mutex<BTreeMap<u32, Arc<File>>>,
    /// Files that are not there: asked for once.
    absent: Mutex<BTreeSet<u32>>,
}

impl Source for Reader<'_> {
    fn read(&self, file: u32, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, OfflineError> {
        let path = self.metainfo.info().files()[file as usize].path.as_path();
        if self.absent.lock().unwrap_or_else(PoisonError::into_inner).contains(&file) {
            return Ok(false);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = match open.get(&file) {
            Some(handle) => handle.clone(),
            None => match self.root.open_file(path, FileOptions::default()) {
                Ok(handle) => {
                    if open.len() >= OPEN_FILES_MAX {
                        open.pop_first();
                    }
                    let handle = Arc::new(File::from(handle));
                    open.insert(file, handle.clone());
                    handle
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(file);
                    return Ok(false);
                }
                Err(source) => return Err(OfflineError::Read { path: path.into(), source }),
            },
        };
        drop(open);
        read_full(&handle, path, offset_bytes, buf)
    }
}
