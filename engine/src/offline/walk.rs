//! Finding the files of a folder.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ringseed_core::metainfo::create::{Source, SourceFile};
use ringseed_sys::dir::{DirHandle, EntryKind, FileOptions};

use super::OfflineError;

/// What to do with what cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unreadable {
    /// Fail.
    #[default]
    Refuse,
    /// Leave it out and count it.
    Skip,
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Symlinks, devices, sockets, pipes: never followed or opened.
    pub special: u64,
    /// Files and folders that cannot be read.
    pub unreadable: u64,
}

/// The files that a torrent is made of.
#[derive(Debug)]
pub struct Found {
    /// The folder that holds the root name.
    pub parent: DirHandle,
    /// The root name.
    pub name: Vec<u8>,
    /// What the torrent is laid out by.
    pub source: Source,
    /// Paths beneath `parent`, as the list of the source.
    pub paths: Vec<PathBuf>,
    /// What was left out.
    pub skipped: Skipped,
}

/// Lists a file, or a folder with all that is in it.
pub(super) fn walk(path: &Path, unreadable: Unreadable) -> Result<Found, OfflineError> {
    let read_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| OfflineError::Read { path, source }
    };
    // The user may name the root by a symlink; nothing below it is followed.
    let real = path.canonicalize().map_err(read_error(path))?;
    let (Some(folder), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(read_error(path)(io::ErrorKind::InvalidInput.into()));
    };
    let parent = DirHandle::open(folder).map_err(read_error(folder))?;
    let root = PathBuf::from(name);
    let kind = parent.metadata(&root).map_err(read_error(path))?.kind;
    let name = name.as_bytes().to_vec();
    let mut skipped = Skipped::default();
    if kind != EntryKind::Dir {
        let (len_bytes, executable) = look_at(&parent, &root).map_err(read_error(path))?;
        let source = Source::File { len_bytes, executable };
        return Ok(Found { parent, name, source, paths: vec![root], skipped });
    }
    let mut files = Vec::new();
    let mut paths = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = match parent.list(&folder) {
            Ok(entries) => entries,
            Err(_) if unreadable == Unreadable::Skip && folder != root => {
                skipped.unreadable += 1;
                continue;
            }
            Err(error) => return Err(read_error(&folder)(error)),
        };
        for entry in entries {
            let rel = folder.join(&entry.name);
            match entry.kind {
                EntryKind::Dir => folders.push(rel),
                EntryKind::Other => skipped.special += 1,
                EntryKind::File => match look_at(&parent, &rel) {
                    Ok((len_bytes, executable)) => {
                        let components = rel.iter().skip(1).map(|part| part.as_bytes().to_vec());
                        files.push(SourceFile {
                            path: components.collect(),
                            len_bytes,
                            executable,
                        });
                        paths.push(rel);
                    }
                    Err(_) if unreadable == Unreadable::Skip => skipped.unreadable += 1,
                    Err(error) => return Err(read_error(&rel)(error)),
                },
            }
        }
    }
    Ok(Found { parent, name, source: Source::Folder(files), paths, skipped })
}

/// Length of a file that can be opened, and whether it may be run.
fn look_at(parent: &DirHandle, rel: &Path) -> io::Result<(u64, bool)> {
    let file = File::from(parent.open_file(rel, FileOptions::default())?);
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.mode() & 0o111 != 0))
}
