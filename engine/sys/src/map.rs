//! Read-only maps of small files that are ours or that the operator names: catalogue snapshots and
//! `.torrent` input. Never payload: a bad sector or a file cut short under a map ends the process
//! with SIGBUS, and a page fault stalls a shard.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

/// A file's content as it was when it was opened, as long as nobody changes the file in place.
#[derive(Debug)]
pub struct FileMap {
    map: Option<Mmap>,
}

impl FileMap {
    /// Maps a regular file of at most `len_max_bytes`. The file should be replaced and never changed
    /// in place while it is mapped: our own are (`DirHandle::replace_file`).
    ///
    /// # Errors
    /// `FileTooLarge`, `InvalidInput` when it is no regular file, else what `open(2)` and `mmap(2)` say.
    pub fn open(path: &Path, len_max_bytes: u64) -> io::Result<FileMap> {
        Self::new(&File::open(path)?, len_max_bytes)
    }

    /// As [`FileMap::open`], of an opened file, which may be closed afterwards.
    ///
    /// # Errors
    /// As [`FileMap::open`].
    pub fn new(file: &File, len_max_bytes: u64) -> io::Result<FileMap> {
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if found.len() > len_max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if found.len() == 0 {
            return Ok(FileMap { map: None }); // mmap(2) refuses an empty range
        }
        let len = usize::try_from(found.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: the map is private and read-only. What remains is that the file could be changed
        // or cut short by another process, which no caller can rule out for a file named by a user:
        // readers of a map must take any bytes, copy nothing back, and check before they trust.
        let map = unsafe { MmapOptions::new().len(len).map_copy_read_only(file)? };
        Ok(FileMap { map: Some(map) })
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn content_is_mapped_and_bounds_are_kept() {
        let tmp = TestDir::new();
        let path = tmp.path().join("f");
        std::fs::write(&path, b"content").unwrap();
        assert_eq!(&*FileMap::open(&path, 7).unwrap(), b"content");
        assert_eq!(FileMap::open(&path, 6).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(&path, b"").unwrap();
        assert!(FileMap::open(&path, 0).unwrap().is_empty());
        assert!(FileMap::open(tmp.path(), 100).is_err());
    }
}
