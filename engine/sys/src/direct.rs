//! Reading a whole file past the page cache, for checks that must see what the device has.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::arena::{Arena, EXTENT_LEN_BYTES, ExtentMut};
use crate::dir::{self, DirHandle, FileOptions};
use crate::file::dio_align;

/// Reads a file in steps of [`EXTENT_LEN_BYTES`] by O_DIRECT, or, where the file system has none,
/// through the page cache after dropping what it holds of the file.
#[derive(Debug)]
pub struct DirectReader {
    fd: OwnedFd,
    buf: ExtentMut,
    len_bytes: u64,
    is_direct: bool,
}

impl DirectReader {
    /// Opens `rel` beneath `root`.
    ///
    /// # Errors
    /// As [`DirHandle::open_file`], and `ENOMEM`.
    pub fn open(root: &DirHandle, rel: &Path) -> io::Result<DirectReader> {
        let buffered = root.open_file(rel, FileOptions::default())?;
        let len_bytes = dir::metadata_of_fd(buffered.as_fd())?.len_bytes;
        let aligned = dio_align(buffered.as_fd())?.is_some_and(|align| {
            align.offset_bytes as usize <= EXTENT_LEN_BYTES && align.memory_bytes <= 4096
        });
        let direct = match aligned {
            true => {
                root.open_file(rel, FileOptions { direct: true, ..FileOptions::default() }).ok()
            }
            false => None,
        };
        let buf = Arena::new(EXTENT_LEN_BYTES)?.try_take().expect("it is all free");
        let is_direct = direct.is_some();
        let fd = direct.unwrap_or(buffered);
        if !is_direct {
            let _ = rustix::fs::fadvise(&fd, 0, None, rustix::fs::Advice::DontNeed);
        }
        Ok(DirectReader { fd, buf, len_bytes, is_direct })
    }

    /// Length of the file when it was opened, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// True when the page cache is by-passed.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// The bytes of step `index`; shorter than [`EXTENT_LEN_BYTES`] only at the end of the file, and
    /// empty behind it.
    ///
    /// # Errors
    /// What `pread(2)` says: `EIO` for a bad sector.
    pub fn read_step(&mut self, index: u64) -> io::Result<&[u8]> {
        let base = index.saturating_mul(EXTENT_LEN_BYTES as u64);
        let mut filled = 0;
        // The tail is read with the full length: the buffer is ours, and the kernel stops at the end.
        while filled < EXTENT_LEN_BYTES && base < self.len_bytes {
            match rustix::io::pread(&self.fd, &mut self.buf[filled..], base + filled as u64) {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    if self.is_direct && !n.is_multiple_of(512) {
                        break; // the end of the file
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(&self.buf[..filled])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn a_file_is_read_whole_with_its_tail() {
        let tmp = TestDir::on_disk();
        let root = DirHandle::open(tmp.path()).unwrap();
        for len in [0, 1, 511, 4096, EXTENT_LEN_BYTES, 2 * EXTENT_LEN_BYTES + 700] {
            let data: Vec<u8> = (0..len).map(|i| (i % 249) as u8).collect();
            std::fs::write(tmp.path().join("f"), &data).unwrap();
            std::fs::File::open(tmp.path().join("f")).unwrap().sync_all().unwrap();
            let mut reader = DirectReader::open(&root, Path::new("f")).unwrap();
            let mut found = Vec::new();
            for index in 0.. {
                let step = reader.read_step(index).unwrap();
                if step.is_empty() {
                    break;
                }
                found.extend_from_slice(step);
            }
            assert!(found == data, "{len}");
            assert_eq!(reader.len_bytes(), len as u64);
        }
    }
}
