//! Comparing files with torrents: one, or tens of thousands through the same lanes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringseed_core::geometry::{FileIndex, Geometry, PieceIndex};
use ringseed_core::metainfo::{METAINFO_LEN_MAX, Metainfo};
use ringseed_sys::dir::DirHandle;

use super::queue::{Absent, PieceDigests, Target, Targets};
use super::read::{IoMode, OpenFile, ReadOptions};
use super::worker::is_our_lack;
use super::{OfflineError, Progress, hash_all};

/// Reasons that a report keeps: a dying disk has one for every sector.
const UNREAD_MAX: usize = 100;

/// What a piece on disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceState {
    /// As the torrent says, in all its views.
    Good,
    /// There, and other bytes.
    Bad,
    /// Not there, or not all of it.
    Missing,
    /// There, and cannot be read: see [`CheckReport::unread`].
    Unreadable,
    /// As the v2 view says and not as the v1 view says: the torrent describes two payloads.
    ViewsDisagree,
}

/// A file that is there and could not be read where a piece needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The piece.
    pub piece: u32,
    /// The file, beneath the folder.
    pub path: PathBuf,
    /// What the system said.
    pub why: String,
}

/// What a check has found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// State of every piece, by index.
    pub pieces: Vec<PieceState>,
    /// Files that are not there, or shorter or longer than they should be, by their path beneath the
    /// folder.
    pub bad_files: Vec<PathBuf>,
    /// Why pieces are [`PieceState::Unreadable`], at most a hundred of them.
    pub unread: Vec<Unread>,
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
/// [`OfflineError::Read`] when the folder cannot be opened. What is damaged is no error but in the
/// report.
pub fn check(
    metainfo: &Metainfo,
    data_dir: &Path,
    progress: Progress<'_>,
) -> Result<CheckReport, OfflineError> {
    check_with(metainfo, data_dir, &ReadOptions::default(), progress)
}

/// As [`check`], read as `options` say.
///
/// # Errors
/// As [`check`]; [`OfflineError::Stopped`].
pub fn check_with(
    metainfo: &Metainfo,
    data_dir: &Path,
    options: &ReadOptions,
    progress: Progress<'_>,
) -> Result<CheckReport, OfflineError> {
    let root = open_root(data_dir)?;
    let report = Mutex::new(None);
    let keep = |_: &Metainfo, found: CheckReport| *lock(&report) = Some(found);
    let one = One { metainfo, root: &root, report: &keep };
    hash_all(&one, &root, metainfo.info().geometry().payload_len(), options, progress)?;
    Ok(lock(&report).take().expect("a check that did not fail has a report"))
}

/// What [`check_many`] calls for each torrent: its place in the list, and what was found.
pub type ReportMany<'a> = dyn Fn(usize, Result<(&Metainfo, CheckReport), OfflineError>) + Sync + 'a;

/// Checks as many torrents as there are `.torrent` files in `torrents`, whose data all lie in
/// `data_dir`, through the same lanes. `report` gets each one's place in the list and what was found,
/// in no particular order and from several threads; a file that is no torrent is one report and stops
/// nobody.
///
/// # Errors
/// [`OfflineError::Read`] when the folder cannot be opened; [`OfflineError::Stopped`].
pub fn check_many(
    torrents: &[PathBuf],
    data_dir: &Path,
    options: &ReadOptions,
    report: &ReportMany<'_>,
) -> Result<(), OfflineError> {
    let root = open_root(data_dir)?;
    let many = Many { torrents, root: &root, report };
    // How much it is shows only on the way: that there are many is reason enough for every core.
    let total_bytes = if torrents.len() > 1 { u64::MAX } else { 0 };
    hash_all(&many, &root, total_bytes, options, &|_, _| {})
}

fn open_root(data_dir: &Path) -> Result<DirHandle, OfflineError> {
    DirHandle::open(data_dir).map_err(|source| OfflineError::Read { path: data_dir.into(), source })
}

/// One torrent that is parsed already.
struct One<'a> {
    metainfo: &'a Metainfo,
    root: &'a DirHandle,
    report: &'a (dyn Fn(&Metainfo, CheckReport) + Sync),
}

impl<'a> Targets<'a> for One<'a> {
    fn count(&self) -> usize {
        1
    }

    fn load(&self, _index: usize) -> Result<Option<Arc<dyn Target + 'a>>, OfflineError> {
        Ok(Some(Arc::new(Checked::new(self.metainfo, self.root, self.report))))
    }
}

/// Torrents that are read and parsed when their turn comes, so that memory does not grow with them.
struct Many<'a> {
    torrents: &'a [PathBuf],
    root: &'a DirHandle,
    report: &'a ReportMany<'a>,
}

impl<'a> Targets<'a> for Many<'a> {
    fn count(&self) -> usize {
        self.torrents.len()
    }

    fn load(&self, index: usize) -> Result<Option<Arc<dyn Target + 'a>>, OfflineError> {
        let report = self.report;
        match load_torrent(&self.torrents[index]) {
            Ok(metainfo) => {
                let done = move |metainfo: &Metainfo, found| report(index, Ok((metainfo, found)));
                Ok(Some(Arc::new(Checked::new(metainfo, self.root, done))))
            }
            Err(OfflineError::Read { source, .. }) if is_our_lack(&source) => {
                Err(OfflineError::Ring(source))
            }
            Err(error) => {
                report(index, Err(error));
                Ok(None)
            }
        }
    }
}

/// Reads a `.torrent` file that has all that a check needs.
fn load_torrent(path: &Path) -> Result<Metainfo, OfflineError> {
    let read_error = |source| OfflineError::Read { path: path.into(), source };
    if std::fs::metadata(path).map_err(read_error)?.len() > METAINFO_LEN_MAX as u64 {
        return Err(read_error(io::ErrorKind::FileTooLarge.into()));
    }
    let bytes = std::fs::read(path).map_err(read_error)?;
    let metainfo = Metainfo::from_bytes(bytes)
        .map_err(|source| OfflineError::Torrent { path: path.into(), source })?;
    let is_whole = metainfo.missing_layers().next().is_none();
    is_whole.then_some(metainfo).ok_or_else(|| OfflineError::NoLayer { path: path.into() })
}

/// A torrent under check. `M` is a [`Metainfo`] or a reference to one.
struct Checked<'a, M, F> {
    metainfo: M,
    root: &'a DirHandle,
    found: Mutex<Findings>,
    report: F,
}

struct Findings {
    pieces: Vec<PieceState>,
    /// Files seen to be as long as they should be.
    is_whole: Vec<bool>,
    unread: Vec<Unread>,
    good_bytes: u64,
    disagreement: Option<(u32, [u8; 20])>,
}

impl<'a, M, F> Checked<'a, M, F>
where
    M: std::borrow::Borrow<Metainfo>,
    F: Fn(&Metainfo, CheckReport),
{
    fn new(metainfo: M, root: &'a DirHandle, report: F) -> Self {
        let info = metainfo.borrow().info();
        let found = Findings {
            pieces: vec![PieceState::Missing; info.geometry().piece_count() as usize],
            is_whole: vec![false; info.files().len()],
            unread: Vec::new(),
            good_bytes: 0,
            disagreement: None,
        };
        Checked { metainfo, root, found: Mutex::new(found), report }
    }

    fn path(&self, file: FileIndex) -> PathBuf {
        self.metainfo.borrow().info().file(file).path().as_path().to_path_buf()
    }
}

impl<M, F> Target for Checked<'_, M, F>
where
    M: std::borrow::Borrow<Metainfo> + Send + Sync,
    F: Fn(&Metainfo, CheckReport) + Send + Sync,
{
    fn geometry(&self) -> &Geometry {
        self.metainfo.borrow().info().geometry()
    }

    fn open(&self, file: FileIndex, io: IoMode) -> io::Result<Option<OpenFile>> {
        match OpenFile::open(self.root, &self.path(file), io) {
            Ok(open) => {
                let is_whole = open.len_bytes == self.geometry().file_len(file);
                lock(&self.found).is_whole[file.get() as usize] = is_whole;
                Ok(Some(open))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn handle_piece(
        &self,
        piece: PieceIndex,
        digests: Result<PieceDigests, Absent>,
    ) -> Result<(), OfflineError> {
        let raw = piece.get();
        let (state, unread) = match &digests {
            Ok(digests) => (judge(self.metainfo.borrow(), piece, digests), None),
            Err(Absent::Missing) => (PieceState::Missing, None),
            Err(Absent::Unreadable { file, error }) => {
                let (path, why) = (self.path(*file), error.to_string());
                (PieceState::Unreadable, Some(Unread { piece: raw, path, why }))
            }
        };
        let mut found = lock(&self.found);
        found.pieces[raw as usize] = state;
        match (state, digests) {
            (PieceState::Good, _) => {
                found.good_bytes += crate::shard::payload_of(self.geometry(), piece);
            }
            (PieceState::ViewsDisagree, Ok(PieceDigests { sha1: Some(sha1), .. }))
                if found.disagreement.is_none_or(|(first, _)| raw < first) =>
            {
                found.disagreement = Some((raw, sha1));
            }
            _ => {}
        }
        if found.unread.len() < UNREAD_MAX {
            found.unread.extend(unread);
        }
        Ok(())
    }

    fn handle_end(&self) -> Result<(), OfflineError> {
        let metainfo = self.metainfo.borrow();
        let mut found = lock(&self.found);
        let mut bad_files = Vec::new();
        for (file, is_whole) in metainfo.info().files().zip(&found.is_whole) {
            // Of empty files nothing is read; of no other is there a need to ask again.
            let path = file.path();
            let path = path.as_path();
            let is_whole = *is_whole
                || (file.len_bytes == 0
                    && self.root.metadata(path).is_ok_and(|found| found.len_bytes == 0));
            if !is_whole && !file.pad {
                bad_files.push(path.to_path_buf());
            }
        }
        let report = CheckReport {
            pieces: std::mem::take(&mut found.pieces),
            bad_files,
            unread: std::mem::take(&mut found.unread),
            good_bytes: found.good_bytes,
            total_bytes: self.geometry().payload_len(),
            disagreement: found.disagreement,
        };
        drop(found);
        (self.report)(metainfo, report);
        Ok(())
    }
}

fn judge(metainfo: &Metainfo, piece: PieceIndex, digests: &PieceDigests) -> PieceState {
    let info = metainfo.info();
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
