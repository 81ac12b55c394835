//! The files of the journal: logs that are appended to, checkpoints that make starting short.
//!
//! ```text
//! log-<generation>          records, in the order in which they happened
//! checkpoint-<generation>   all that was believed before the log of the same generation
//! ```
//!
//! Generations are 16 hex digits. A start reads the newest whole checkpoint and the logs from its
//! generation on, as long as each goes on where the one before ends: the first bad record ends the
//! replay. It then begins a log of its own; nothing is ever appended behind a torn tail.
//!
//! When a log is long it is closed (everything in it synced) and the next one begun. Aside, on another
//! thread, [`compact`] reads the checkpoint before and the closed logs, and writes a checkpoint:
//! temporary file, sync, rename, sync of the folder. Only then what the checkpoint *before* it replaced
//! is removed, so that there are always two ways to the state. The shard keeps no copy of it for that.

use std::io::{self, Read};
use std::path::Path;

use ringseed_sys::dir::{DirHandle, FileOptions};

use super::record::{FileKind, JournalError, JournalSlot, Records};
use super::replay::{Recovered, Replay};

/// Name of the one file of version 1.
pub const V1_NAME: &str = "journal";
/// End of the name of a checkpoint that is being written.
const UNFINISHED: &str = ".new";
/// Logs at most that a start replays without making a checkpoint first: each start leaves one.
const LOGS_MAX: usize = 8;

/// Generations beyond it are no names of ours: every start and every log adds one, and must be able to.
const GENERATION_MAX: u64 = u64::MAX - (1 << 32);

/// Name of a file of the journal in the state folder.
pub fn name_of(kind: FileKind, generation: u64) -> String {
    match kind {
        FileKind::Log => format!("log-{generation:016x}"),
        FileKind::Checkpoint => format!("checkpoint-{generation:016x}"),
    }
}

/// Name of a checkpoint while it is being written.
pub fn unfinished_name(generation: u64) -> String {
    name_of(FileKind::Checkpoint, generation) + UNFINISHED
}

fn parse_name(name: &str) -> Option<(FileKind, u64)> {
    let (kind, digits) = match (name.strip_prefix("log-"), name.strip_prefix("checkpoint-")) {
        (Some(digits), _) => (FileKind::Log, digits),
        (_, Some(digits)) => (FileKind::Checkpoint, digits),
        _ => return None,
    };
    let generation = u64::from_str_radix(digits, 16).ok().filter(|&it| it <= GENERATION_MAX)?;
    (name == name_of(kind, generation)).then_some((kind, generation))
}

/// A folder with a journal in it: a real one, or one on a virtual disk.
pub trait JournalFiles {
    /// Names of the files in it.
    ///
    /// # Errors
    /// What listing says.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Opens a file for reading from its beginning.
    ///
    /// # Errors
    /// What opening says.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + '_>>;
}

impl JournalFiles for DirHandle {
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = self.list(Path::new(""))?;
        Ok(entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let fd = self.open_file(Path::new(name), FileOptions::default())?;
        Ok(Box::new(std::fs::File::from(fd)))
    }
}

/// What a start finds.
#[derive(Debug)]
pub struct Found {
    /// What is believed.
    pub recovered: Recovered,
    /// Generation of the log that the caller begins.
    pub generation: u64,
    /// Sequence of its first record.
    pub sequence: u64,
    /// The first free slot.
    pub next_slot: JournalSlot,
    /// Bytes of logs that the next start would read again.
    pub log_bytes: u64,
    /// Bytes of the checkpoint that was read.
    pub checkpoint_bytes: u64,
    /// The last log that was read: to be synced before anything is built on it.
    pub last_log: Option<String>,
    /// A checkpoint should be made soon: many logs, or the one file of version 1.
    pub wants_checkpoint: bool,
    /// Nothing of what is there can be read: to be set aside by these names.
    pub damaged: Vec<String>,
}

/// Reads a journal.
///
/// # Errors
/// What reading says; `Ok(Err(_))` when it was written by a later program.
pub fn find(files: &dyn JournalFiles) -> io::Result<Result<Found, JournalError>> {
    let names = Names::of(files)?;
    let (read, damaged) = match read_state(files, &names, u64::MAX)? {
        Ok(Some(read)) => (read, Vec::new()),
        Ok(None) => (ReadState::default(), names.all()),
        Err(error) => return Ok(Err(error)),
    };
    let newest = names.logs.iter().chain(&names.checkpoints).max().copied().unwrap_or(0);
    Ok(Ok(Found {
        generation: newest + 1,
        sequence: read.sequence,
        next_slot: read.replay.next_slot(),
        log_bytes: read.log_bytes,
        checkpoint_bytes: read.checkpoint_bytes,
        wants_checkpoint: read.logs.len() > LOGS_MAX || names.has_v1,
        last_log: match read.logs.last() {
            Some(&log) => Some(name_of(FileKind::Log, log)),
            None => read.is_v1.then(|| V1_NAME.to_owned()),
        },
        recovered: read.replay.finish(),
        damaged,
    }))
}

/// A checkpoint that was made in memory or written, and what it makes superfluous.
#[derive(Debug)]
pub struct Compacted {
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Files that nobody needs any more once the checkpoint is durable.
    pub superfluous: Vec<String>,
}

/// Makes the checkpoint of `generation` from what lies in the folder before that log, and writes it
/// to `out`. `next_sequence` is where that log begins: what the files say must reach to there.
///
/// # Errors
/// `InvalidData` when a closed log is damaged; what reading and writing say.
pub fn build_checkpoint(
    files: &dyn JournalFiles,
    generation: u64,
    next_sequence: u64,
    out: &mut dyn io::Write,
) -> io::Result<Compacted> {
    let names = Names::of(files)?;
    let read = read_state(files, &names, generation)?.map_err(io::Error::other)?;
    let read = read.filter(|read| read.sequence == next_sequence);
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a closed log is damaged");
    let read = read.ok_or_else(damaged)?;
    let len_bytes = read.replay.write_checkpoint(generation, next_sequence, out)?;
    // What this one is made of stays, as the second way to the state.
    let oldest = read.base.unwrap_or(0);
    let old = |kind: FileKind, of: &[u64]| -> Vec<String> {
        of.iter().filter(|&&it| it < oldest).map(|&it| name_of(kind, it)).collect()
    };
    let mut superfluous = old(FileKind::Log, &names.logs);
    superfluous.extend(old(FileKind::Checkpoint, &names.checkpoints));
    let ours = unfinished_name(generation);
    superfluous.extend(names.unfinished.into_iter().filter(|name| *name != ours));
    superfluous.extend((names.has_v1 && !read.is_v1).then(|| V1_NAME.to_owned()));
    Ok(Compacted { len_bytes, superfluous })
}

/// Writes the checkpoint of `generation` and removes what it makes superfluous; its length in bytes.
/// Whenever it is interrupted, the folder says the same as before.
///
/// # Errors
/// As [`build_checkpoint`]; what writing, syncing and renaming say.
pub fn compact(dir: &DirHandle, generation: u64, next_sequence: u64) -> io::Result<u64> {
    let name = name_of(FileKind::Checkpoint, generation);
    let beside = unfinished_name(generation);
    let options = FileOptions { write: true, truncate: true, ..FileOptions::default() };
    let mut file = std::fs::File::from(dir.open_file(Path::new(&beside), options)?);
    let built = build_checkpoint(dir, generation, next_sequence, &mut file);
    let compacted = match built.and_then(|built| file.sync_all().map(|()| built)) {
        Ok(compacted) => compacted,
        Err(error) => {
            // Half of a checkpoint only takes room that a full disk needs.
            let _ = dir.remove_file(Path::new(&beside));
            return Err(error);
        }
    };
    dir.rename(Path::new(&beside), Path::new(&name))?;
    dir.sync()?;
    for old in &compacted.superfluous {
        dir.remove_file(Path::new(old))?;
    }
    Ok(compacted.len_bytes)
}

/// Generations in a folder, ascending.
#[derive(Debug)]
struct Names {
    logs: Vec<u64>,
    checkpoints: Vec<u64>,
    has_v1: bool,
    /// Checkpoints that a crash kept from getting their names.
    unfinished: Vec<String>,
}

impl Names {
    fn of(files: &dyn JournalFiles) -> io::Result<Names> {
        let names = files.names()?;
        let of = |wanted: FileKind| {
            let parsed = names.iter().filter_map(|name| parse_name(name));
            let mut found: Vec<u64> =
                parsed.filter(|(kind, _)| *kind == wanted).map(|(_, it)| it).collect();
            found.sort_unstable();
            found
        };
        let (logs, checkpoints) = (of(FileKind::Log), of(FileKind::Checkpoint));
        let has_v1 = names.iter().any(|name| name == V1_NAME);
        let is_unfinished = |name: &&String| {
            let parsed = name.strip_suffix(UNFINISHED).and_then(parse_name);
            matches!(parsed, Some((FileKind::Checkpoint, _)))
        };
        let unfinished = names.iter().filter(is_unfinished).cloned().collect();
        Ok(Names { logs, checkpoints, has_v1, unfinished })
    }

    fn all(&self) -> Vec<String> {
        let logs = self.logs.iter().map(|&it| name_of(FileKind::Log, it));
        let checkpoints = self.checkpoints.iter().map(|&it| name_of(FileKind::Checkpoint, it));
        logs.chain(checkpoints).chain(self.has_v1.then(|| V1_NAME.to_owned())).collect()
    }
}

#[derive(Default)]
struct ReadState {
    replay: Replay,
    /// Sequence of the next record.
    sequence: u64,
    /// The checkpoint that was begun with; `None`: with nothing.
    base: Option<u64>,
    is_v1: bool,
    logs: Vec<u64>,
    log_bytes: u64,
    checkpoint_bytes: u64,
}

/// The state before the log of generation `before`; `None` when there are files and no way through
/// them.
fn read_state(
    files: &dyn JournalFiles,
    names: &Names,
    before: u64,
) -> io::Result<Result<Option<ReadState>, JournalError>> {
    let mut has_files = names.has_v1;
    let mut start = None;
    for &generation in names.checkpoints.iter().rev().filter(|&&it| it < before) {
        has_files = true;
        match read_checkpoint(files, generation)? {
            Ok(Some(read)) => {
                start = Some(read);
                break;
            }
            Ok(None) => {
                tracing::error!(generation, "a checkpoint is damaged, taking the older one")
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    if start.is_none() && names.has_v1 {
        match read_v1(files)? {
            Ok(read) => start = read,
            Err(error) => return Ok(Err(error)),
        }
    }
    let mut read = start.unwrap_or_default();
    let from = read.base.unwrap_or(0);
    let mut is_whole = read.base.is_some() || read.is_v1;
    for &generation in names.logs.iter().filter(|&&it| it >= from && it < before) {
        has_files = true;
        let file = files.open(&name_of(FileKind::Log, generation))?;
        let mut records = match Records::open(file)? {
            Ok(records) => records,
            Err(error @ JournalError::Version { .. }) => return Ok(Err(error)),
            // Its header never reached the disk, so nothing behind it was claimed.
            Err(JournalError::Header) => continue,
        };
        let header = records.header();
        let is_it = header.kind == FileKind::Log && header.generation == generation;
        if !is_it || header.first_sequence != read.sequence {
            // A log before it was damaged. A start that saw the damage began a log that goes on where
            // the good records ended: that one is further on.
            tracing::error!(generation, "a log does not go on where the one before ends, left out");
            continue;
        }
        is_whole = true;
        read.replay.take_all(&mut records)?;
        read.sequence = records.sequence();
        read.log_bytes += records.good_bytes();
        read.logs.push(generation);
        if records.is_torn() {
            tracing::debug!(generation, sequence = read.sequence, "a log ends torn");
        }
    }
    Ok(Ok((is_whole || !has_files).then_some(read)))
}

/// A checkpoint, if it is whole.
fn read_checkpoint(
    files: &dyn JournalFiles,
    generation: u64,
) -> io::Result<Result<Option<ReadState>, JournalError>> {
    let file = files.open(&name_of(FileKind::Checkpoint, generation))?;
    let mut records = match Records::open(file)? {
        Ok(records) => records,
        Err(error @ JournalError::Version { .. }) => return Ok(Err(error)),
        Err(JournalError::Header) => return Ok(Ok(None)),
    };
    let mut replay = Replay::default();
    let header = records.header();
    let is_it = header.kind == FileKind::Checkpoint && header.generation == generation;
    replay.take_all(&mut records)?;
    let Some(sequence) = replay.next_sequence.take().filter(|_| is_it) else {
        return Ok(Ok(None));
    };
    let checkpoint_bytes = records.good_bytes();
    let base = Some(generation);
    Ok(Ok(Some(ReadState { replay, sequence, base, checkpoint_bytes, ..ReadState::default() })))
}

/// The one file of version 1: a checkpoint and its log in one. The logs that followed it go on with
/// its sequence.
fn read_v1(files: &dyn JournalFiles) -> io::Result<Result<Option<ReadState>, JournalError>> {
    let mut records = match Records::open(files.open(V1_NAME)?)? {
        Ok(records) => records,
        Err(error @ JournalError::Version { .. }) => return Ok(Err(error)),
        Err(JournalError::Header) => return Ok(Ok(None)),
    };
    let mut replay = Replay::default();
    replay.take_all(&mut records)?;
    let (sequence, log_bytes) = (records.sequence(), records.good_bytes());
    Ok(Ok(Some(ReadState { replay, sequence, log_bytes, is_v1: true, ..ReadState::default() })))
}
