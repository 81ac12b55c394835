//! What the engine keeps across restarts: the journal of verified pieces, fetched metainfo, leaf
//! sidecars. All of it lies in the state folder, apart from any payload.
//!
//! ```text
//! engine.lock            held by the running process
//! journal                journal::JOURNAL_VERSION
//! meta/<v2 hash>.torrent metainfo that came from peers
//! leaves/<v2 hash>       leaf layers, 32 bytes per leaf of 16 KiB, files in order
//! ```

pub mod journal;
mod runs;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::Metainfo;
use ringseed_sys::dir::{self, DirHandle, FileOptions};

use crate::api::{EngineError, hex};
use journal::{JournalSlot, JournalWriter, ListingKey, Recovered};

pub use runs::RunSet;

/// Name of the journal in the state folder.
pub const JOURNAL_NAME: &str = "journal";
/// Space taken for the journal at start, so that a full disk can still record what it holds.
const JOURNAL_RESERVE_BYTES: u64 = 1 << 20;
/// Longest journal read at start. 64 bytes per 64 MiB batch make this years of writing.
const JOURNAL_LEN_MAX: usize = 256 << 20;
/// Longest stored metainfo: the info dict's cap and the piece layers of 64 TiB in 128 MiB pieces.
const METAINFO_LEN_MAX: usize = 80 << 20;

/// The state folder of an engine, open.
#[derive(Debug)]
pub struct StateDir {
    dir: Arc<DirHandle>,
}

/// What a start finds in the state folder.
#[derive(Debug)]
pub struct RecoveredState {
    /// What the journal believes.
    pub recovered: Recovered,
    /// The writer that goes on behind the checkpoint; nothing is pending.
    pub writer: JournalWriter,
    /// Names of the recovered listings in it.
    pub slots: BTreeMap<ListingKey, JournalSlot>,
}

impl RecoveredState {
    /// Goes on from what a journal believed: the state, and the bytes of the new journal that must be
    /// on disk before anything is appended to it.
    pub fn begin(recovered: Recovered) -> (Self, Vec<u8>) {
        let (mut writer, slots) = JournalWriter::checkpoint(recovered.generation + 1, &recovered);
        let (_, checkpoint) = writer.take_pending().expect("a checkpoint has at least a header");
        (RecoveredState { recovered, writer, slots }, checkpoint)
    }
}

impl StateDir {
    /// A state folder whose journal is looked after by the caller.
    pub fn new(dir: DirHandle) -> Self {
        StateDir { dir: Arc::new(dir) }
    }

    /// The open folder.
    pub fn dir(&self) -> &Arc<DirHandle> {
        &self.dir
    }

    /// Metainfo that a former run fetched from peers, parsed and checked again; `None` when there is
    /// none or it is damaged (it is then fetched anew).
    pub fn load_metainfo(&self, hashes: InfoHashes) -> Option<Metainfo> {
        let path = metainfo_path(hashes);
        let bytes = self.dir.read_file(&path, METAINFO_LEN_MAX).ok()?;
        let found = parse_kept(&bytes, hashes);
        if found.is_none() {
            tracing::warn!(path = %path.display(), "stored metainfo is damaged, fetching it again");
        }
        found
    }

    /// Keeps metainfo for runs that know only its hash. Nothing to keep for v1 alone, nor while piece
    /// layers are missing: then what peers complete is kept.
    ///
    /// # Errors
    /// As [`DirHandle::replace_file`].
    pub fn keep_metainfo(&self, metainfo: &Metainfo) -> io::Result<()> {
        match metainfo.info().info_hash_v2() {
            Some(hash) if metainfo.missing_layers().next().is_none() => {
                self.dir.replace_file(&metainfo_path(InfoHashes::V2(hash)), &metainfo.encode())
            }
            _ => Ok(()),
        }
    }
}

/// Metainfo as it was kept for whoever asks by `hashes`; `None` when it is not whole or another one.
pub fn parse_kept(bytes: &[u8], hashes: InfoHashes) -> Option<Metainfo> {
    let metainfo = Metainfo::parse(bytes).ok()?;
    let info = metainfo.info();
    let is_it = hashes.v1().is_none_or(|v1| info.info_hash_v1() == Some(v1))
        && hashes.v2().is_none_or(|v2| info.info_hash_v2() == Some(v2));
    match hashes {
        _ if !is_it => None,
        InfoHashes::V1(_) => metainfo.v1_view(),
        InfoHashes::V2(_) | InfoHashes::Both(..) => Some(metainfo),
    }
}

/// Where the metainfo of a listing lies in the state folder: by its v2 hash where it has one.
pub fn metainfo_path(hashes: InfoHashes) -> PathBuf {
    let name = match hashes {
        InfoHashes::V1(hash) => hex(&hash),
        InfoHashes::V2(hash) | InfoHashes::Both(_, hash) => hex(&hash),
    };
    PathBuf::from(format!("meta/{name}.torrent"))
}

/// Where the leaf sidecar of a listing lies in the state folder.
pub fn leaves_path(hash: &[u8; 32]) -> PathBuf {
    PathBuf::from(format!("leaves/{}", hex(hash)))
}

/// Opens the state folder, replays its journal and writes it anew as a checkpoint.
///
/// # Errors
/// [`EngineError::Io`] when the folder cannot be used, [`EngineError::Journal`] when the journal is
/// of a later version. A journal that is damaged from its first byte is set aside under another name:
/// everything is checked again rather than refused.
pub fn open_state_dir(
    path: &Path,
    durable: bool,
) -> Result<(StateDir, RecoveredState), EngineError> {
    let failed = |what| move |source| EngineError::Io { what, path: path.into(), source };
    let dir = DirHandle::create(path).map_err(failed("cannot open"))?;
    let recovered = read_journal(&dir).map_err(|error| match error {
        ReadError::Io(source) => failed("cannot read the journal in")(source),
        ReadError::Journal(error) => EngineError::Journal { reason: error.to_string() },
    })?;
    let (found, checkpoint) = RecoveredState::begin(recovered);
    let name = Path::new(JOURNAL_NAME);
    dir.replace_file(name, &checkpoint).map_err(failed("cannot write the journal in"))?;
    let reserve = || -> io::Result<()> {
        let file = dir.open_file(name, FileOptions { write: true, ..FileOptions::default() })?;
        dir::allocate(file.as_fd(), checkpoint.len() as u64 + JOURNAL_RESERVE_BYTES)?;
        if durable { Ok(rustix::fs::fsync(&file)?) } else { Ok(()) }
    };
    // Without the reserve the journal still works as long as the disk has room.
    if let Err(error) = reserve() {
        tracing::warn!(%error, "no space reserved for the journal");
    }
    tracing::debug!(
        listings = found.recovered.listings.len(),
        generation = found.recovered.generation + 1,
        torn_bytes = found.recovered.torn_bytes,
        "journal replayed"
    );
    Ok((StateDir::new(dir), found))
}

enum ReadError {
    Io(io::Error),
    Journal(journal::JournalError),
}

fn read_journal(dir: &DirHandle) -> Result<Recovered, ReadError> {
    let name = Path::new(JOURNAL_NAME);
    let bytes = match dir.read_file(name, JOURNAL_LEN_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recovered::default()),
        Err(error) => return Err(ReadError::Io(error)),
    };
    match journal::replay(&bytes) {
        Ok(recovered) => Ok(recovered),
        Err(journal::JournalError::Header) => {
            tracing::error!(
                "the journal has no header; set aside as journal.bad, checking all data"
            );
            dir.rename(name, Path::new("journal.bad")).map_err(ReadError::Io)?;
            Ok(Recovered::default())
        }
        Err(error) => Err(ReadError::Journal(error)),
    }
}
