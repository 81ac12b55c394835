//! Folders of `.torrent` files: those that are there, those that come, and those that go (`inotify(7)`).

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// What happened to the torrents of watched folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file has come, or was written anew.
    Came(PathBuf),
    /// A file is not there any more.
    Went(PathBuf),
    /// More happened than the system could tell: all folders are to be looked at again.
    Unknown,
}

/// Paths given on a command line; the folders among them are watched.
pub struct Watched {
    files: Vec<PathBuf>,
    folders: Vec<(i32, PathBuf)>,
    events: Option<OwnedFd>,
}

impl Watched {
    /// Begins to watch, so that nothing that comes while the folders are listed is missed.
    ///
    /// # Errors
    /// I/O errors, by path.
    pub fn new(paths: &[PathBuf]) -> Result<Watched> {
        let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
            paths.iter().cloned().partition(|path| path.is_dir());
        let mut watched = Watched { files, folders: Vec::new(), events: None };
        for folder in folders {
            let io = |error: Errno| Error::io("watch", &folder, error.into());
            if watched.events.is_none() {
                let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
                watched.events = Some(inotify::init(flags).map_err(io)?);
            }
            let events = watched.events.as_ref().expect("made above");
            let came = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
            let went = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
            let flags = came | went | WatchFlags::ONLYDIR;
            let number = inotify::add_watch(events, &folder, flags).map_err(io)?;
            watched.folders.push((number, folder));
        }
        Ok(watched)
    }

    /// The files that were given by themselves.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Gives every torrent that lies in the folders to `take`, in no order, without a list of all.
    ///
    /// # Errors
    /// I/O errors, by path; whatever `take` says.
    pub fn each_in_folders(&self, mut take: impl FnMut(PathBuf) -> Result<()>) -> Result<()> {
        for (_, folder) in &self.folders {
            let io = |error| Error::io("read", folder, error);
            for entry in std::fs::read_dir(folder).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if is_torrent(&path) {
                    take(path)?;
                }
            }
        }
        Ok(())
    }

    /// What has happened since the last call, in order. Does not wait.
    ///
    /// # Errors
    /// I/O errors.
    pub fn changes(&mut self) -> Result<Vec<Change>> {
        let mut found = Vec::new();
        let Some(events) = &self.events else { return Ok(found) };
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(events, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(found),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Error::io("watch", Path::new("folders"), error.into())),
            };
            let what = event.events();
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                found.push(Change::Unknown);
                continue;
            }
            let folder = self.folders.iter().find(|(number, _)| *number == event.wd());
            let (Some((_, folder)), Some(name)) = (folder, event.file_name()) else { continue };
            let path = folder.join(OsStr::from_bytes(name.to_bytes()));
            if !is_torrent(&path) {
                continue;
            }
            if what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
                found.push(Change::Went(path));
            } else if !what.contains(ReadFlags::CREATE) || is_link(&path) {
                found.push(Change::Came(path));
            }
        }
    }
}

fn is_torrent(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "torrent")
}

/// A file counts when it is written, not when it is created; but nobody writes to a link.
fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_symlink() || found.nlink() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_listed_and_what_comes_and_goes_is_told_once() {
        let dir = std::env::temp_dir().join(format!("ringseed-watch-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        for name in ["b.torrent", "a.torrent", "notes.txt"] {
            std::fs::write(at(name), b"x").unwrap();
        }
        let given = PathBuf::from("given.torrent");
        let mut watched = Watched::new(&[given.clone(), dir.clone()]).unwrap();
        assert_eq!(watched.files(), [given]);
        let mut listed = Vec::new();
        let list = |path| {
            listed.push(path);
            Ok(())
        };
        watched.each_in_folders(list).unwrap();
        listed.sort();
        assert_eq!(listed, [at("a.torrent"), at("b.torrent")]);
        assert!(watched.changes().unwrap().is_empty());

        std::fs::write(at("c.torrent"), b"x").unwrap();
        std::fs::write(at("c.part"), b"x").unwrap();
        std::fs::rename(at("c.part"), at("d.torrent")).unwrap();
        std::fs::hard_link(at("notes.txt"), at("e.torrent")).unwrap();
        let came = |name| Change::Came(at(name));
        let expected = ["c.torrent", "d.torrent", "e.torrent"].map(came);
        assert_eq!(watched.changes().unwrap(), expected);
        assert!(watched.changes().unwrap().is_empty());

        std::fs::remove_file(at("a.torrent")).unwrap();
        std::fs::rename(at("b.torrent"), at("b.txt")).unwrap();
        std::fs::remove_file(at("notes.txt")).unwrap();
        let went = |name| Change::Went(at(name));
        assert_eq!(watched.changes().unwrap(), ["a.torrent", "b.torrent"].map(went));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
