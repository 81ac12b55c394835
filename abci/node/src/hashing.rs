//! What shall become a torrent, and the engine's way of making one in the words of the command line.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::metainfo::create::{Source, SourceFile};
use ringseed_engine::offline::{self, CreateOptions, IoMode, LeafFile, OfflineError, ReadOptions};
use ringseed_sys::dir::DirHandle;

use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;

/// How often progress is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);
/// Most files of a folder; the limit of the torrent itself is checked when it is made.
const FILES_MAX: usize = 1_000_000;

/// What shall become a torrent.
#[derive(Clone, Debug)]
pub struct Found {
    /// Root name.
    pub name: String,
    /// The folder that holds the root name.
    pub parent: PathBuf,
    /// For the layout.
    pub source: Source,
    /// Paths of the source's files, in its order.
    pub paths: Vec<PathBuf>,
    /// Bytes in all.
    pub len_bytes: u64,
}

/// Looks at a file or folder that shall become a torrent.
///
/// # Errors
/// [`Code::Missing`], [`Code::BadValue`] for what cannot be in a torrent: links, special files,
/// nothing at all.
pub fn find(path: &Path) -> Result<Found> {
    let refuse = |path: &Path, what: &str| {
        Error::new(Code::BadValue, format!("{} {what}", path.display()))
            .why("a torrent holds regular files and folders only")
    };
    // The root itself may be named through links; beneath it none is followed.
    let path = path.canonicalize().map_err(|error| Error::io("open", path, error))?;
    let meta = std::fs::metadata(&path).map_err(|error| Error::io("open", &path, error))?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| refuse(&path, "has no name that is UTF-8"))?.to_owned();
    let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
    if meta.is_file() {
        let source = Source::File { len_bytes: meta.len(), executable: is_executable(&meta) };
        return Ok(Found { name, parent, source, paths: vec![path], len_bytes: meta.len() });
    }
    if !meta.is_dir() {
        return Err(refuse(&path, "is neither a file nor a folder"));
    }
    let (mut files, mut paths, mut len_bytes) = (Vec::new(), Vec::new(), 0u64);
    let mut folders = vec![(path.clone(), Vec::new())];
    while let Some((folder, components)) = folders.pop() {
        let read = |error| Error::io("read", &folder, error);
        for entry in std::fs::read_dir(&folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let here = entry.path();
            let meta = std::fs::symlink_metadata(&here)
                .map_err(|error| Error::io("read", &here, error))?;
            let mut components: Vec<Vec<u8>> = components.clone();
            components.push(entry.file_name().as_bytes().to_vec());
            if meta.is_dir() {
                folders.push((here, components));
            } else if meta.is_file() {
                if files.len() == FILES_MAX {
                    return Err(refuse(&path, "holds more than a million files"));
                }
                len_bytes += meta.len();
                let executable = is_executable(&meta);
                files.push(SourceFile { path: components, len_bytes: meta.len(), executable });
                paths.push(here);
            } else {
                return Err(refuse(&here, "is a link or a special file")
                    .cure("offer the file that it points to, or leave it out"));
            }
        }
    }
    Ok(Found { name, parent, source: Source::Folder(files), paths, len_bytes })
}

fn is_executable(meta: &std::fs::Metadata) -> bool {
    meta.permissions().mode() & 0o111 != 0
}

/// How a torrent is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which views.
    pub kind: Kind,
    /// Piece length, or chosen.
    pub piece_len_bytes: Option<u64>,
    /// BEP 27.
    pub is_private: bool,
    /// Which way the files are read.
    pub io: IoMode,
}

/// Hashes what was found and makes its metainfo. With `copy_to`, every byte is also written below
/// that folder, in the same pass, and synced: what was hashed is what was copied.
///
/// # Errors
/// [`Code::SourceChanged`] when a file is not as long as when it was found; [`Code::Damaged`] when a
/// part of one cannot be read; [`Code::BadValue`] when it makes no torrent; I/O errors;
/// [`Code::Interrupted`].
pub fn make(
    found: &Found,
    options: Options,
    copy_to: Option<&Path>,
    interrupt: &Interrupt,
    progress: impl FnMut(u64, u64),
) -> Result<Metainfo> {
    make_with_leaves(found, options, copy_to, None, interrupt, progress)
}

/// As [`make`]; the leaves go to `leaves` on the way.
///
/// # Errors
/// As [`make`]: what goes wrong with the leaves alone is told by [`LeafFile::keep`].
pub fn make_with_leaves(
    found: &Found,
    options: Options,
    copy_to: Option<&Path>,
    leaves: Option<Arc<LeafFile>>,
    interrupt: &Interrupt,
    progress: impl FnMut(u64, u64),
) -> Result<Metainfo> {
    let parent =
        DirHandle::open(&found.parent).map_err(|error| Error::io("open", &found.parent, error))?;
    let relative = |path: &PathBuf| {
        let path = path.strip_prefix(&found.parent);
        path.map(Path::to_path_buf).map_err(|_| Error::bug("a file outside its folder"))
    };
    let listed = offline::Found {
        parent,
        name: found.name.as_bytes().to_vec(),
        source: found.source.clone(),
        paths: found.paths.iter().map(relative).collect::<Result<_>>()?,
        skipped: offline::Skipped::default(),
    };
    let options = CreateOptions {
        kind: options.kind,
        piece_len_bytes: options.piece_len_bytes,
        private: options.is_private,
        reading: reading(options.io, interrupt),
        leaves,
        ..CreateOptions::default()
    };
    let made = watched(progress, |tell| offline::create_found(listed, copy_to, &options, tell));
    Ok(made.map_err(|error| explain(error, &found.parent))?.metainfo)
}

/// How the engine shall read: that way, until the interrupt.
pub fn reading(io: IoMode, interrupt: &Interrupt) -> ReadOptions {
    ReadOptions { io, stop: interrupt.flag(), ..ReadOptions::default() }
}

/// Runs `work` on a thread of its own and hands on what it tells of its progress, now and then, on
/// this one: whoever draws it need not be shared between threads.
pub fn watched<T: Send>(
    mut progress: impl FnMut(u64, u64),
    work: impl FnOnce(&(dyn Fn(u64, u64) + Sync)) -> T + Send,
) -> T {
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let here = std::thread::current();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let made = work(&|now, all| {
                // Told by several threads: the highest counts.
                done.fetch_max(now, Ordering::Relaxed);
                total.store(all, Ordering::Relaxed);
            });
            here.unpark();
            made
        });
        while !worker.is_finished() {
            std::thread::park_timeout(PROGRESS_EVERY);
            if total.load(Ordering::Relaxed) > 0 {
                progress(done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
            }
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// An error of the engine in the words and codes of the command line. Its paths lie beneath `root`.
pub fn explain(error: OfflineError, root: &Path) -> Error {
    match error {
        OfflineError::Read { path, source } if is_unreadable(&source) => {
            Error::new(Code::Damaged, format!("cannot read {}", root.join(path).display()))
                .why(source.to_string())
                .cure("look at the disk's health, or whether somebody writes to the file")
        }
        OfflineError::Read { path, source } => Error::io("read", &root.join(path), source),
        OfflineError::Write { path, source } => Error::io("write the copy of", &path, source),
        OfflineError::Changed { path } => {
            let path = root.join(path);
            Error::new(Code::SourceChanged, format!("{} changed while it was read", path.display()))
                .why("it is not as long as it was")
                .cure("wait until nobody writes to it, then run it again")
        }
        OfflineError::Exists { path } => {
            Error::new(Code::BadValue, format!("{} is there already", path.display()))
                .why("nothing is written over what is there")
        }
        OfflineError::Create(error) => {
            Error::new(Code::BadValue, format!("this makes no torrent: {error}"))
        }
        OfflineError::Torrent { path, source } => bad_torrent(&path, source.to_string()),
        OfflineError::NoLayer { path } => bad_torrent(&path, "it lacks the piece layer of a file"),
        OfflineError::Ring(source) => {
            Error::new(Code::Io, "reading broke down").why(source.to_string())
        }
        OfflineError::Stopped => {
            Error::new(Code::Interrupted, "stopped before everything was read")
                .cure("run the same command again")
        }
    }
}

/// A `.torrent` file that we do not take, and why.
pub fn bad_torrent(path: &Path, why: impl Into<String>) -> Error {
    Error::new(Code::BadTorrent, format!("{} is no torrent that we take", path.display()))
        .why(why)
        .cure("get it again from where it was published")
}

/// Whether the bytes themselves cannot be had: a bad sector, or a file cut short under a map.
fn is_unreadable(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
        || error.kind() == std::io::ErrorKind::Other
}

#[cfg(test)]
mod tests {
    use sha1::Sha1;
    use sha2::{Digest, Sha256};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rs-hashing-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("tree/sub")).unwrap();
        let big: Vec<u8> = (0..700_003u32).map(|i| (i * 31 % 253) as u8).collect();
        std::fs::write(dir.join("tree/big"), &big).unwrap();
        std::fs::write(dir.join("tree/sub/small"), b"small").unwrap();
        std::fs::write(dir.join("tree/empty"), b"").unwrap();
        dir
    }

    fn options(kind: Kind) -> Options {
        Options { kind, piece_len_bytes: Some(32 << 10), is_private: false, io: IoMode::Auto }
    }

    #[test]
    fn digests_are_those_of_the_definition_and_the_copy_is_the_source() {
        let dir = scratch("make");
        let found = find(&dir.join("tree")).unwrap();
        assert_eq!((found.len_bytes, found.name.as_str()), (700_008, "tree"));
        let copy = dir.join("copy");
        let interrupt = Interrupt::default();
        let mut last = (0, 0);
        let hybrid = options(Kind::Hybrid);
        let made = make(&found, hybrid, Some(&copy), &interrupt, |a, b| last = (a, b)).unwrap();
        assert_eq!(last, (700_008, 700_008));
        for name in ["big", "sub/small", "empty"] {
            let (a, b) = (dir.join("tree").join(name), copy.join("tree").join(name));
            assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap(), "{name}");
        }
        let big = std::fs::read(dir.join("tree/big")).unwrap();
        let first = made.info().geometry().piece(0).unwrap();
        let expected: [u8; 20] = Sha1::digest(&big[..32 << 10]).into();
        assert_eq!(made.info().v1_piece_hash(first), Some(&expected));
        let halves: Vec<u8> = big[..32 << 10]
            .chunks(16 << 10)
            .flat_map(|leaf| Sha256::digest(leaf).to_vec())
            .collect();
        assert_eq!(made.v2_piece_hash(first), Some(Sha256::digest(halves).into()));
        assert!(made.missing_layers().next().is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_link_is_refused_by_name() {
        let dir = scratch("link");
        std::os::unix::fs::symlink("big", dir.join("tree/link")).unwrap();
        let error = find(&dir.join("tree")).unwrap_err();
        assert!(error.code == Code::BadValue && error.what.contains("link"), "{}", error.what);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_source_that_changes_makes_no_torrent() {
        let dir = scratch("change");
        let found = find(&dir.join("tree")).unwrap();
        let interrupt = Interrupt::default();
        std::fs::write(dir.join("tree/sub/small"), b"smal").unwrap();
        let make = |copy: &str| {
            make(&found, options(Kind::Hybrid), Some(&dir.join(copy)), &interrupt, |_, _| ())
        };
        assert_eq!(make("one").unwrap_err().code, Code::SourceChanged);
        std::fs::write(dir.join("tree/sub/small"), b"small and more").unwrap();
        assert_eq!(make("two").unwrap_err().code, Code::SourceChanged);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
