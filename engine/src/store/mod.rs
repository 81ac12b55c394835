//! What the engine keeps across restarts: the journal of verified pieces, metainfo, leaf sidecars. All
//! of it lies in the state folder, apart from any payload.
//!
//! ```text
//! engine.lock              held by the running process
//! log-*, checkpoint-*      the journal, see `files`
//! meta/xx/<hash>.torrent metainfo, by the first byte of the hash and the hash: v2, else v1
//! leaves/<v2 hash>         leaf layers, 32 bytes per leaf of 16 KiB, files in order
//! leaves-new/<number>      the same of a torrent that is being made
//! ```

pub mod files;
pub mod journal;
mod leaf_file;
mod record;
mod replay;
mod runs;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::Metainfo;
use ringseed_sys::dir::{self, DirHandle, FileOptions};

use crate::api::{EngineError, hex};
use files::{Found, name_of};
use journal::{JournalWriter, Stamp};

pub use leaf_file::LeafFile;
pub(crate) use leaf_file::{LEAF_LEN, first_leaf, in_rows, leaf_bases};
pub use record::FileKind;
pub use replay::{Recovered, RecoveredListing};
pub use runs::RunSet;

/// Space taken for each log when it is begun, so that a full disk can still record what it holds.
pub const LOG_RESERVE_BYTES: u64 = 1 << 20;
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
    /// The writer that goes on in a log of its own, whose header is written.
    pub writer: JournalWriter,
    /// What the next start would read: bytes of closed logs.
    pub log_bytes: u64,
    /// Bytes of the newest checkpoint.
    pub checkpoint_bytes: u64,
    /// A checkpoint should be made soon.
    pub wants_checkpoint: bool,
}

impl RecoveredState {
    /// Goes on from what was found: the state, and the header of the log that must be on disk under
    /// its name before anything is appended to it.
    pub fn begin(found: Found) -> (Self, Vec<u8>) {
        let mut writer = JournalWriter::new(found.generation, found.sequence, found.next_slot);
        let (_, header) = writer.take_pending().expect("a log begins with its header");
        let Found { recovered, log_bytes, checkpoint_bytes, wants_checkpoint, .. } = found;
        let state =
            RecoveredState { recovered, writer, log_bytes, checkpoint_bytes, wants_checkpoint };
        (state, header)
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
        load_metainfo(&self.dir, hashes)
    }

    /// Keeps metainfo, so that the listing can go cold, and for runs that know only its hash. With
    /// `durable` it is there after a power cut; without, it may be torn then, which reading tells.
    /// Nothing to keep while piece layers are missing: then what peers complete is kept.
    ///
    /// # Errors
    /// As [`DirHandle::replace_file`] and [`DirHandle::open_or_create`].
    pub fn keep_metainfo(&self, metainfo: &Metainfo, durable: bool) -> io::Result<bool> {
        if metainfo.missing_layers().next().is_some() {
            return Ok(false);
        }
        let info = metainfo.info();
        let v1 = info.info_hash_v1().map(InfoHashes::V1);
        let hashes = info.info_hash_v2().map(InfoHashes::V2).or(v1);
        let path = metainfo_path(hashes.expect("a torrent has at least one view"));
        let bytes = metainfo.encode();
        if durable {
            self.dir.replace_file(&path, &bytes)?;
            return Ok(true);
        }
        // One that is there was written by a former run. If it is not what it should be, the first
        // reader finds out; to read a hundred thousand at every start would be worse.
        if let Some(fd) = self.dir.create_new(&path)? {
            io::Write::write_all(&mut std::fs::File::from(fd), &bytes)?;
            return Ok(true);
        }
        let options = FileOptions { write: true, ..FileOptions::default() };
        let fd = self.dir.open_file(&path, options)?;
        if dir::metadata_of_fd(fd.as_fd())?.len_bytes != bytes.len() as u64 {
            let mut file = std::fs::File::from(fd);
            file.set_len(0)?;
            io::Write::write_all(&mut file, &bytes)?;
        }
        Ok(true)
    }
}

/// Metainfo that lies in a state folder, parsed and checked again.
pub fn load_metainfo(dir: &DirHandle, hashes: InfoHashes) -> Option<Metainfo> {
    let path = metainfo_path(hashes);
    let bytes = dir.read_file(&path, METAINFO_LEN_MAX).ok()?;
    let found = parse_kept(bytes, hashes);
    if found.is_none() {
        tracing::warn!(path = %path.display(), "stored metainfo is damaged, fetching it again");
    }
    found
}

/// What the files of a torrent look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookedAt {
    /// None of them is there.
    pub is_fresh: bool,
    /// Files that are missing or of another length.
    pub bad_files: Vec<u32>,
    /// All that hold something together. Empty ones are made again where they are missing: their names are
    /// synced by nobody, and one that a power cut took says nothing of the data of the others.
    pub stamp: Option<Stamp>,
    /// When each changed last, in nanoseconds since 1970; 0 for pads and what is missing.
    pub changed_ns: Vec<u64>,
}

/// Looks at every file of a torrent. `look` tells length and last change of what lies under a path.
pub fn look_at_files(
    metainfo: &Metainfo,
    mut look: impl FnMut(&Path) -> Option<(u64, u64)>,
) -> LookedAt {
    let files = metainfo.info().files();
    let mut found = LookedAt { is_fresh: true, ..LookedAt::default() };
    let mut stamp = Stamp { newest_ns: 0, digest: files.len() as u64 };
    let mut is_all_there = true;
    for (number, file) in (0..).zip(files) {
        let seen = if file.pad { None } else { look(file.path().as_path()) };
        let (len_bytes, changed_ns) = seen.unwrap_or((0, 0));
        if !file.pad {
            found.is_fresh &= seen.is_none();
            if seen.is_none() || len_bytes != file.len_bytes {
                found.bad_files.push(number);
                is_all_there &= file.len_bytes == 0;
            }
        }
        found.changed_ns.push(changed_ns);
        if file.len_bytes == 0 {
            continue;
        }
        stamp.newest_ns = stamp.newest_ns.max(changed_ns);
        for word in [u64::from(number), len_bytes, changed_ns] {
            // Not against an attacker: whoever can set an inode's change time can change the journal.
            stamp.digest =
                (stamp.digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
    found.stamp = Some(stamp).filter(|_| is_all_there);
    found
}

/// Metainfo as it was kept for whoever asks by `hashes`; `None` when it is not whole or another one.
pub fn parse_kept(bytes: Vec<u8>, hashes: InfoHashes) -> Option<Metainfo> {
    let metainfo = Metainfo::from_bytes(bytes).ok()?;
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
    PathBuf::from(format!("meta/{}/{name}.torrent", &name[..2]))
}

/// Where the leaf sidecar of a listing lies in the state folder.
pub fn leaves_path(hash: &[u8; 32]) -> PathBuf {
    PathBuf::from(format!("leaves/{}", hex(hash)))
}

/// Opens the state folder, replays its journal and begins a log behind it.
///
/// # Errors
/// [`EngineError::Io`] when the folder cannot be used, [`EngineError::Journal`] when the journal is
/// of a later version. A journal of which nothing can be read is set aside under other names:
/// everything is checked again rather than refused.
pub fn open_state_dir(
    path: &Path,
    durable: bool,
) -> Result<(StateDir, RecoveredState), EngineError> {
    let failed = |what| move |source| EngineError::Io { what, path: path.into(), source };
    let dir = DirHandle::create(path).map_err(failed("cannot open"))?;
    let found = files::find(&dir).map_err(failed("cannot read the journal in"))?;
    let found = found.map_err(|error| EngineError::Journal { reason: error.to_string() })?;
    for name in &found.damaged {
        tracing::error!(name, "the journal cannot be read; set aside, checking all data");
        let aside = format!("{name}.bad");
        dir.rename(Path::new(name), Path::new(&aside)).map_err(failed("cannot rename in"))?;
    }
    // Left by a run that ended while it made a torrent.
    if let Err(error) = dir.remove_tree(Path::new(leaf_file::UNFINISHED))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "unfinished leaf sidecars are not removed");
    }
    let last_log = found.last_log.clone().filter(|_| durable);
    let generation = found.generation;
    let (state, header) = RecoveredState::begin(found);
    // What was read may have come from the page cache alone. A log that goes on behind records which
    // a power cut then takes would be lost with them.
    let begin = || -> io::Result<()> {
        if let Some(last) = &last_log {
            rustix::fs::fsync(dir.open_file(Path::new(last), FileOptions::default())?)?;
        }
        let name = name_of(FileKind::Log, generation);
        let options = FileOptions { write: true, truncate: true, ..FileOptions::default() };
        let mut file = std::fs::File::from(dir.open_file(Path::new(&name), options)?);
        // Without the reserve the journal still works as long as the disk has room.
        if let Err(error) = dir::allocate(file.as_fd(), LOG_RESERVE_BYTES) {
            tracing::warn!(%error, "no space reserved for the journal");
        }
        io::Write::write_all(&mut file, &header)?;
        if durable {
            file.sync_all()?;
            dir.sync()?;
        }
        Ok(())
    };
    begin().map_err(failed("cannot write the journal in"))?;
    tracing::debug!(
        listings = state.recovered.listings.len(),
        generation,
        log_bytes = state.log_bytes,
        checkpoint_bytes = state.checkpoint_bytes,
        "journal replayed"
    );
    Ok((StateDir::new(dir), state))
}
