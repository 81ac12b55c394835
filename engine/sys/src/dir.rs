//! A folder that names cannot lead out of.
//!
//! Names in a torrent come from strangers. Every path is taken beneath an opened folder by
//! `openat2(2)` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, so that neither `..` nor a symlink that
//! somebody planted, now or between two calls, reaches anything outside.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat,
};
use rustix::io::Errno;

/// Deepest tree that [`DirHandle::remove_tree`] descends into; a level costs one descriptor.
pub const TREE_DEPTH_MAX: usize = 256;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);

/// An opened folder, the root that relative paths are taken beneath.
#[derive(Debug)]
pub struct DirHandle {
    fd: OwnedFd,
    path: PathBuf,
    device: DeviceId,
}

/// Which device a file system is on, as `stat(2)` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u64);

/// How [`DirHandle::open_file`] opens. The default reads a file that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Open for writing as well; the file and its parent folders are created if missing.
    pub write: bool,
    /// Transfers by-pass the page cache (O_DIRECT) and must be aligned.
    pub direct: bool,
    /// Cut an existing file to no bytes.
    pub truncate: bool,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
    /// Symlink, device, socket or pipe: never followed or opened.
    Other,
}

/// One name of [`DirHandle::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, one component.
    pub name: OsString,
    /// What it stands for.
    pub kind: EntryKind,
    /// Length in bytes; 0 unless a file.
    pub len_bytes: u64,
}

/// What [`DirHandle::metadata`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Bytes on disk: less than the length when the file is sparse.
    pub allocated_bytes: u64,
    /// Device and inode: the same file under any name.
    pub identity: (u64, u64),
    /// Last change of the content, by the wall clock: a hint and no proof.
    pub modified: SystemTime,
    /// Last change of content or inode, in nanoseconds since 1970: nobody can set the second of the two
    /// back, short of setting the clock.
    pub changed_ns: u64,
}

/// Room on the file system beneath a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this user may still write.
    pub available_bytes: u64,
    /// Size of the file system.
    pub total_bytes: u64,
    /// Files that can still be created; `u64::MAX` where the file system does not count them.
    pub files_available: u64,
}

impl DirHandle {
    /// Opens an existing folder. The path itself is the operator's and may hold symlinks.
    ///
    /// # Errors
    /// What `open(2)` says; `ENOTDIR` when it is no folder.
    pub fn open(path: &Path) -> io::Result<DirHandle> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        DirHandle::of(fd, path.to_owned())
    }

    /// Opens a folder, creating it and its parents if missing. What was created is durable when this
    /// returns: files synced beneath it later would go with an unsynced parent.
    ///
    /// # Errors
    /// What `mkdir(2)`, `open(2)` and `fsync(2)` say.
    pub fn create(path: &Path) -> io::Result<DirHandle> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|up| !up.as_os_str().is_empty() && !up.exists()).collect();
        std::fs::create_dir_all(path)?;
        for created in missing {
            let parent = created.parent().filter(|parent| !parent.as_os_str().is_empty());
            Self::open(parent.unwrap_or(Path::new(".")))?.sync()?;
        }
        Self::open(path)
    }

    fn of(fd: OwnedFd, path: PathBuf) -> io::Result<DirHandle> {
        let device = DeviceId(rustix::fs::fstat(&fd)?.st_dev);
        Ok(DirHandle { fd, path, device })
    }

    /// The device that the folder itself is on.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file `rel` beneath this folder. See [`DirHandle::open_or_create`].
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`].
    pub fn open_file(&self, rel: &Path, options: FileOptions) -> io::Result<OwnedFd> {
        self.open_or_create(rel, options).map(|(fd, _)| fd)
    }

    /// Opens the file `rel` beneath this folder and tells whether it was created. A new file is
    /// durable under its name only after [`DirHandle::sync_parents`].
    ///
    /// # Errors
    /// `InvalidInput` when `rel` is empty, absolute or holds `..`; `ELOOP` or `EXDEV` when a symlink
    /// stands in the way; `InvalidInput` when it is no regular file; else what `openat2(2)` says.
    pub fn open_or_create(&self, rel: &Path, options: FileOptions) -> io::Result<(OwnedFd, bool)> {
        let rel = checked(rel)?;
        // A pipe planted under the name must not block the open, hence NONBLOCK until it is known
        // to be a regular file.
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        flags |= if options.write { OFlags::RDWR } else { OFlags::RDONLY };
        flags.set(OFlags::DIRECT, options.direct);
        let (fd, created) = match self.openat(rel, flags, Mode::empty()) {
            Ok(fd) => (fd, false),
            Err(Errno::NOENT) if options.write => {
                let create = || self.openat(rel, flags | OFlags::CREATE | OFlags::EXCL, FILE_MODE);
                // Its folder is mostly there.
                let created = match (create(), parent_of(rel)) {
                    (Err(Errno::NOENT), Some(parent)) => {
                        self.make_dirs(parent)?;
                        create()
                    }
                    (created, _) => created,
                };
                match created {
                    Ok(fd) => (fd, true),
                    // Another thread created it since: it is there now.
                    Err(Errno::EXIST) => (self.openat(rel, flags, Mode::empty())?, false),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(invalid("not a regular file"));
        }
        let status = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, status - OFlags::NONBLOCK)?;
        if options.truncate && stat.st_size != 0 {
            rustix::fs::ftruncate(&fd, 0)?;
        }
        Ok((fd, created))
    }

    /// Creates the file `rel` beneath this folder, and its parent folders if missing; `None` when something is
    /// there already. One call where [`DirHandle::open_or_create`] makes five: what is created is a regular
    /// file for sure.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`].
    pub fn create_new(&self, rel: &Path) -> io::Result<Option<OwnedFd>> {
        let rel = checked(rel)?;
        let flags = OFlags::CLOEXEC | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let create = || self.openat(rel, flags, FILE_MODE);
        let created = match (create(), parent_of(rel)) {
            (Err(Errno::NOENT), Some(parent)) => {
                self.make_dirs(parent)?;
                create()
            }
            (created, _) => created,
        };
        match created {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the folder `rel` beneath this one as a root of its own.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`]; `ENOTDIR` when it is no folder.
    pub fn open_dir(&self, rel: &Path) -> io::Result<DirHandle> {
        let fd = self.open_dir_fd(checked(rel)?)?;
        DirHandle::of(fd, self.path.join(rel))
    }

    /// Creates the folder `rel` and its parents beneath this one, one component at a time.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`]; `ENOTDIR` when a component is no folder.
    pub fn create_dirs(&self, rel: &Path) -> io::Result<()> {
        self.make_dirs(checked(rel)?)
    }

    fn make_dirs(&self, rel: &Path) -> io::Result<()> {
        match self.open_dir_fd(rel) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut at: Option<OwnedFd> = None;
        for component in rel.components() {
            let name = Path::new(component.as_os_str());
            let parent = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            match rustix::fs::mkdirat(parent, name, DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = Some(open_dir_at(parent, name)?);
        }
        Ok(())
    }

    /// What stands under `rel`. A symlink is told as [`EntryKind::Other`] and not followed.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`].
    pub fn metadata(&self, rel: &Path) -> io::Result<Metadata> {
        let rel = checked(rel)?;
        if parent_of(rel).is_none() {
            return Ok(metadata_of(&statat(&self.fd, rel, AtFlags::SYMLINK_NOFOLLOW)?));
        }
        let (parent, name) = self.parent(rel)?;
        Ok(metadata_of(&statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// The names in the folder `rel` (this folder when `rel` is empty), sorted.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`].
    pub fn list(&self, rel: &Path) -> io::Result<Vec<Entry>> {
        let fd = match rel.as_os_str().is_empty() {
            true => open_dir_at(self.fd.as_fd(), Path::new("."))?,
            false => self.open_dir_fd(checked(rel)?)?,
        };
        let mut entries = Vec::new();
        for name in names_in(fd.as_fd())? {
            let stat = match statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue, // removed since it was read
                Err(error) => return Err(error.into()),
            };
            let kind = kind_of(&stat);
            let len_bytes = if kind == EntryKind::File { stat.st_size as u64 } else { 0 };
            entries.push(Entry { name: OsString::from_vec(name.into_bytes()), kind, len_bytes });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Renames `from` to `to`, both beneath this folder, replacing a file that stands there; the
    /// parents of `to` are created. Atomic, and durable after [`DirHandle::sync_parents`] of both.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`], and what `renameat(2)` says.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if let Some(parent) = parent_of(checked(to)?) {
            self.make_dirs(parent)?;
        }
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        Ok(rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)?)
    }

    /// Removes the file `rel`.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`], and what `unlinkat(2)` says.
    pub fn remove_file(&self, rel: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(rel)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    /// Removes the file or folder `rel` with all it holds and returns the bytes freed. A symlink is
    /// removed and not followed; a mount point in the tree is refused. Nothing there: 0 bytes freed.
    ///
    /// # Errors
    /// `EXDEV` at a mount point, `InvalidInput` past [`TREE_DEPTH_MAX`], else what `unlinkat(2)`
    /// says; what was removed before the error stays removed.
    pub fn remove_tree(&self, rel: &Path) -> io::Result<u64> {
        let device = rustix::fs::fstat(&self.fd)?.st_dev;
        match self.parent(rel) {
            Ok((parent, name)) => remove_at(parent.as_fd(), name, device, 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes the names in this folder to disk (`fsync(2)`).
    ///
    /// # Errors
    /// What `fsync(2)` says.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Writes the names in the folder `rel` to disk; in this folder when `rel` is empty.
    ///
    /// # Errors
    /// As [`DirHandle::open_dir`], and what `fsync(2)` says.
    pub fn sync_folder(&self, rel: &Path) -> io::Result<()> {
        match rel.as_os_str().is_empty() {
            true => self.sync(),
            false => Ok(rustix::fs::fsync(self.open_dir_fd(checked(rel)?)?)?),
        }
    }

    /// Writes to disk the name `rel` and the names of its parents up to this folder.
    ///
    /// # Errors
    /// What `fsync(2)` says.
    pub fn sync_parents(&self, rel: &Path) -> io::Result<()> {
        let mut at = parent_of(checked(rel)?);
        while let Some(parent) = at {
            rustix::fs::fsync(self.open_dir_fd(parent)?)?;
            at = parent_of(parent);
        }
        self.sync()
    }

    /// Writes `data` to `rel` so that after a crash either the old or the new content is there whole:
    /// a file beside it, `fsync`, rename, `fsync` of the folder.
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`], [`DirHandle::rename`] and `write(2)`.
    pub fn replace_file(&self, rel: &Path, data: &[u8]) -> io::Result<()> {
        let mut beside = checked(rel)?.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let options = FileOptions { write: true, truncate: true, ..FileOptions::default() };
        let mut file = std::fs::File::from(self.open_file(&beside, options)?);
        io::Write::write_all(&mut file, data)?;
        file.sync_all()?;
        self.rename(&beside, rel)?;
        self.sync_parents(rel)
    }

    /// Reads the small file `rel` whole.
    ///
    /// # Errors
    /// `FileTooLarge` when it holds more than `len_max_bytes`, else as [`DirHandle::open_file`].
    pub fn read_file(&self, rel: &Path, len_max_bytes: usize) -> io::Result<Vec<u8>> {
        let file = std::fs::File::from(self.open_file(rel, FileOptions::default())?);
        let mut data = Vec::new();
        let limit = len_max_bytes as u64 + 1;
        io::Read::read_to_end(&mut io::Read::take(file, limit), &mut data)?;
        if data.len() > len_max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(data)
    }

    /// Room on the file system beneath this folder (`fstatvfs(3)`).
    ///
    /// # Errors
    /// What `fstatfs(2)` says.
    pub fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.fd)?;
        Ok(Space {
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            files_available: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
        })
    }

    fn openat(&self, rel: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        openat2(&self.fd, rel, flags, mode, RESOLVE)
    }

    fn open_dir_fd(&self, rel: &Path) -> io::Result<OwnedFd> {
        open_dir_at(self.fd.as_fd(), rel)
    }

    /// Opens the folder that holds `rel`, and gives the last name.
    fn parent<'a>(&self, rel: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let rel = checked(rel)?;
        let name = rel.file_name().ok_or_else(|| invalid("path has no name"))?;
        let parent = parent_of(rel).unwrap_or(Path::new("."));
        Ok((self.open_dir_fd(parent)?, name))
    }
}

impl AsFd for DirHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reserves the first `len_bytes` of a file and sets its length to that (`fallocate(2)` mode 0). Where
/// the file system cannot reserve, only the length is set: reserved is false then.
///
/// # Errors
/// `ENOSPC` when the room is not there, else what `fallocate(2)` and `ftruncate(2)` say.
pub fn allocate(file: BorrowedFd<'_>, len_bytes: u64) -> io::Result<bool> {
    let mut reserved = true;
    if len_bytes > 0 {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => reserved = false,
            Err(error) => return Err(error.into()),
        }
    }
    if rustix::fs::fstat(file)?.st_size as u64 != len_bytes {
        rustix::fs::ftruncate(file, len_bytes)?;
    }
    Ok(reserved)
}

/// What an opened file or folder is.
///
/// # Errors
/// What `fstat(2)` says.
pub fn metadata_of_fd(fd: BorrowedFd<'_>) -> io::Result<Metadata> {
    Ok(metadata_of(&rustix::fs::fstat(fd)?))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Only plain names: the kernel would refuse the rest too, but not before `mkdirat` saw it.
fn checked(rel: &Path) -> io::Result<&Path> {
    let plain = rel.components().all(|component| matches!(component, Component::Normal(_)));
    if !plain || rel.as_os_str().is_empty() || rel.as_os_str().as_bytes().contains(&0) {
        return Err(invalid("path must be relative, without `..`, and not empty"));
    }
    Ok(rel)
}

fn parent_of(rel: &Path) -> Option<&Path> {
    rel.parent().filter(|parent| !parent.as_os_str().is_empty())
}

fn open_dir_at(at: BorrowedFd<'_>, rel: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat2(at, rel, flags, Mode::empty(), RESOLVE)?)
}

/// All names of a folder but `.` and `..`, read before anything is changed: removing while reading
/// may skip names.
fn names_in(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn remove_at(
    at: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    device: u64,
    depth: usize,
) -> io::Result<u64> {
    let stat = match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    if kind_of(&stat) != EntryKind::Dir {
        rustix::fs::unlinkat(at, name, AtFlags::empty())?;
        let freed = stat.st_nlink == 1;
        return Ok(if freed { stat.st_blocks as u64 * 512 } else { 0 });
    }
    if depth == TREE_DEPTH_MAX {
        return Err(invalid("folders nested too deep to remove"));
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = openat2(at, name, flags, Mode::empty(), RESOLVE)?;
    // Asked of the opened folder and not of the name, which may have been replaced since.
    if rustix::fs::fstat(&dir)?.st_dev != device {
        return Err(Errno::XDEV.into());
    }
    let mut freed_bytes = 0;
    for child in names_in(dir.as_fd())? {
        freed_bytes += remove_at(dir.as_fd(), child.as_c_str(), device, depth + 1)?;
    }
    match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(freed_bytes),
        Err(error) => Err(error.into()),
    }
}

fn kind_of(stat: &Stat) -> EntryKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Dir,
        _ => EntryKind::Other,
    }
}

fn metadata_of(stat: &Stat) -> Metadata {
    let since_epoch = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0))
        + Duration::from_nanos(stat.st_mtime_nsec as _);
    let ns = |seconds: i64, ns: u64| {
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(ns)
    };
    let modified_ns = ns(stat.st_mtime, stat.st_mtime_nsec as _);
    let changed_ns = ns(stat.st_ctime, stat.st_ctime_nsec as _);
    Metadata {
        kind: kind_of(stat),
        len_bytes: stat.st_size as u64,
        allocated_bytes: stat.st_blocks as u64 * 512,
        identity: (stat.st_dev, stat.st_ino),
        modified: SystemTime::UNIX_EPOCH + since_epoch,
        changed_ns: changed_ns.max(modified_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use std::os::unix::fs::symlink;

    const WRITE: FileOptions = FileOptions { write: true, direct: false, truncate: false };
    const READ: FileOptions = FileOptions { write: false, direct: false, truncate: false };

    #[test]
    fn writing_creates_parents_and_reading_finds_the_file() {
        let tmp = TestDir::new();
        let root = DirHandle::create(&tmp.path().join("root")).unwrap();
        let rel = Path::new("a/b/c.bin");
        assert_eq!(root.open_file(rel, READ).unwrap_err().kind(), io::ErrorKind::NotFound);
        let (fd, created) = root.open_or_create(rel, WRITE).unwrap();
        assert!(created);
        rustix::io::write(&fd, b"hello").unwrap();
        root.sync_parents(rel).unwrap();
        let (_, created) = root.open_or_create(rel, WRITE).unwrap();
        assert!(!created);
        assert_eq!(root.metadata(rel).unwrap().len_bytes, 5);
        assert_eq!(root.read_file(rel, 5).unwrap(), b"hello");
        assert_eq!(root.read_file(rel, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn folders_of_other_file_systems_are_on_other_devices() {
        let tmp = TestDir::new();
        let root = DirHandle::create(&tmp.path().join("a")).unwrap();
        root.create_dirs(Path::new("b")).unwrap();
        assert_eq!(root.device(), root.open_dir(Path::new("b")).unwrap().device());
        assert_ne!(root.device(), DirHandle::open(Path::new("/proc")).unwrap().device());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let tmp = TestDir::new();
        let root = DirHandle::create(&tmp.path().join("root")).unwrap();
        std::fs::write(tmp.path().join("secret"), b"x").unwrap();
        symlink(tmp.path(), tmp.path().join("root/up")).unwrap();
        symlink(tmp.path().join("secret"), tmp.path().join("root/file")).unwrap();
        for bad in
            ["../secret", "/etc/passwd", "a/../../secret", "", "up/secret", "file", "up/new/x"]
        {
            assert!(root.open_file(Path::new(bad), READ).is_err(), "{bad}");
            assert!(root.open_file(Path::new(bad), WRITE).is_err(), "{bad}");
        }
        assert!(root.create_dirs(Path::new("up/made")).is_err());
        assert!(!tmp.path().join("made").exists() && !tmp.path().join("new").exists());
        assert_eq!(root.metadata(Path::new("file")).unwrap().kind, EntryKind::Other);
    }

    #[test]
    fn a_pipe_under_the_name_neither_blocks_nor_opens() {
        let tmp = TestDir::new();
        let root = DirHandle::open(tmp.path()).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(&root, "pipe", FileType::Fifo, mode, 0).unwrap();
        assert!(root.open_file(Path::new("pipe"), READ).is_err());
        assert!(root.open_file(Path::new("pipe"), WRITE).is_err());
    }

    #[test]
    fn removing_a_tree_leaves_what_its_symlinks_point_to() {
        let tmp = TestDir::new();
        let outside = tmp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("keep"), vec![1; 9000]).unwrap();
        let root = DirHandle::create(&tmp.path().join("root")).unwrap();
        let fd = root.open_file(Path::new("t/deep/er/file"), WRITE).unwrap();
        rustix::io::write(&fd, &[7; 8192]).unwrap();
        rustix::fs::fsync(&fd).unwrap();
        symlink(&outside, tmp.path().join("root/t/link")).unwrap();
        assert!(root.remove_tree(Path::new("t")).unwrap() >= 8192);
        assert!(root.list(Path::new("")).unwrap().is_empty());
        assert!(outside.join("keep").exists());
        assert_eq!(root.remove_tree(Path::new("t")).unwrap(), 0);
        assert_eq!(root.remove_tree(Path::new("no/such")).unwrap(), 0);
        assert!(root.remove_tree(Path::new("../outside")).is_err());
        symlink(&outside, tmp.path().join("root/alone")).unwrap();
        root.remove_tree(Path::new("alone")).unwrap();
        assert!(outside.join("keep").exists());
    }

    #[test]
    fn replacing_a_file_leaves_the_new_content_alone() {
        let tmp = TestDir::new();
        let root = DirHandle::open(tmp.path()).unwrap();
        let rel = Path::new("state/head");
        root.replace_file(rel, b"one").unwrap();
        root.replace_file(rel, b"second").unwrap();
        assert_eq!(root.read_file(rel, 100).unwrap(), b"second");
        assert_eq!(root.list(Path::new("state")).unwrap().len(), 1);
    }

    /// The room is taken before anything is written, so that a full disk is met at the beginning.
    #[test]
    fn what_is_allocated_has_its_room() {
        let tmp = TestDir::new();
        let root = DirHandle::open(tmp.path()).unwrap();
        let fd = root.open_file(Path::new("f"), WRITE).unwrap();
        let reserved = allocate(fd.as_fd(), 1 << 20).unwrap();
        let taken_bytes = rustix::fs::fstat(&fd).unwrap().st_blocks * 512;
        assert_eq!(reserved, taken_bytes >= 1 << 20, "{taken_bytes} bytes are taken");
        let must = std::env::var_os("RINGSEED_REQUIRE").is_some();
        assert!(reserved || !must, "this file system cannot reserve");
        // All of it reads as zeros, and nothing is written to show that.
        assert_eq!(root.read_file(Path::new("f"), 2 << 20).unwrap(), vec![0; 1 << 20]);
    }

    #[test]
    fn allocating_sets_the_length_both_ways() {
        let tmp = TestDir::new();
        let root = DirHandle::open(tmp.path()).unwrap();
        let fd = root.open_file(Path::new("f"), WRITE).unwrap();
        allocate(fd.as_fd(), 100_000).unwrap();
        assert_eq!(metadata_of_fd(fd.as_fd()).unwrap().len_bytes, 100_000);
        allocate(fd.as_fd(), 10).unwrap();
        assert_eq!(metadata_of_fd(fd.as_fd()).unwrap().len_bytes, 10);
        allocate(fd.as_fd(), 0).unwrap();
        assert_eq!(metadata_of_fd(fd.as_fd()).unwrap().len_bytes, 0);
        assert!(root.space().unwrap().available_bytes > 0);
    }
}
