//! Short files: created, given their length and written in one job of a disk thread.
//!
//! What is synced right behind goes past the page cache where it can: to copy it into the cache and have the sync
//! write it from there took a third more time and processor for files of 32 and 64 KiB (measured, ext4), and far
//! more where the machine below has taken away the memory that the cache wants. A file whose length is no multiple
//! of a page would need a second write for its end, which takes more than that gains; and what nobody syncs is
//! there sooner when it waits for no device.

use std::cell::RefCell;
use std::io;
use std::path::Path;

use ringseed_sys::arena::Extent;
use ringseed_sys::dir::DirHandle;
use ringseed_sys::file::{DataFile, OpenedFile};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Less than this goes through the page cache, in bytes: the wait for the device is longer than the copy.
const DIRECT_LEN_MIN: usize = 16 << 10;
/// Direct writes begin and end at multiples of it, in the file and in memory. Devices want less (`statx(2)`,
/// STATX_DIOALIGN), and what wants more is written through the page cache.
const GRAIN: usize = 4096;

/// What is to be written of a short file.
pub(super) struct Short<'a> {
    pub root: &'a DirHandle,
    pub path: &'a Path,
    /// The length that the file gets, in bytes.
    pub len_bytes: u64,
    /// Where in the file the part goes, in bytes.
    pub offset_bytes: u64,
    pub part: &'a [u8],
    /// It may go past the page cache.
    pub direct: bool,
}

/// Opens or creates the file, gives it its length, and writes the part. The file may be there also when that
/// fails.
///
/// # Errors
/// As [`DataFile::put`].
pub(super) fn put(short: &Short<'_>, buf: &Extent, start: usize) -> io::Result<OpenedFile> {
    let Short { root, path, len_bytes, offset_bytes, part, direct } = *short;
    let is_aligned = offset_bytes.is_multiple_of(GRAIN as u64) && part.len().is_multiple_of(GRAIN);
    if !direct || !is_aligned || part.len() < DIRECT_LEN_MIN {
        return DataFile::put(root, path, len_bytes, offset_bytes, (buf, start, part.len()));
    }
    // With its length and nothing in it; a direct write need not make it longer then.
    let opened = DataFile::put(root, path, len_bytes, offset_bytes, (buf, start, 0))?;
    let written = write_direct(&opened.file, offset_bytes, part)?;
    opened.file.write_small(offset_bytes + written as u64, &part[written..])?;
    Ok(opened)
}

/// Writes past the page cache, and says how much it wrote: nothing where the file system cannot do that.
fn write_direct(file: &DataFile, offset_bytes: u64, data: &[u8]) -> io::Result<usize> {
    if rustix::fs::fcntl_setfl(file, OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let written = with_aligned(data, |data| write_all(file, offset_bytes, data));
    // What comes next may not be aligned.
    rustix::fs::fcntl_setfl(file, OFlags::empty())?;
    written
}

fn write_all(file: &DataFile, offset_bytes: u64, data: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwrite(file, &data[done..], offset_bytes + done as u64) {
            // The rest goes through the page cache, which says what is wrong.
            Ok(n) if n == 0 || !n.is_multiple_of(GRAIN) => return Ok(done),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(Errno::INVAL) => return Ok(done),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

thread_local! {
    /// Where a part is copied to that lies in memory where the device cannot take it from.
    static ALIGNED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_aligned<T>(data: &[u8], write: impl FnOnce(&[u8]) -> T) -> T {
    if data.as_ptr().addr().is_multiple_of(GRAIN) {
        return write(data);
    }
    ALIGNED.with_borrow_mut(|room| {
        if room.len() < data.len() + GRAIN {
            room.resize(data.len() + GRAIN, 0);
        }
        let from = room.as_ptr().align_offset(GRAIN);
        let copy = &mut room[from..from + data.len()];
        copy.copy_from_slice(data);
        write(copy)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES};
    use ringseed_sys::file::dio_align;

    use super::*;
    use crate::test_support::TestDir;

    fn has_dio(file: &DataFile) -> bool {
        dio_align(file.as_fd()).unwrap().is_some()
    }

    /// Wherever a part lies in memory and in the file, the file has it and its length, and can be written through
    /// the page cache afterwards.
    #[test]
    fn what_is_put_reads_back() {
        let dir = TestDir::new("short");
        let root = DirHandle::open(dir.path()).unwrap();
        let arena = Arena::new(2 * EXTENT_LEN_BYTES).unwrap();
        let mut extent = arena.try_take().unwrap();
        for (at, byte) in extent.iter_mut().enumerate() {
            *byte = (at * 7 + at / 251) as u8;
        }
        let buf = extent.freeze();
        let mut number = 0;
        for direct in [false, true] {
            for start in [0, 1, 511, 4096, 100_001] {
                for (offset, len, whole) in [
                    (0, 1, 1),
                    (0, 4096, 4096),
                    (0, 16_384, 16_384),
                    (0, 40_001, 40_001),
                    (0, 40_001, 60_000),
                    (4096, 65_536, 100_003),
                    (4097, 65_536, 100_003),
                    (0, 131_072, 131_072),
                ] {
                    number += 1;
                    let name = format!("d/{number}");
                    let path = Path::new(&name);
                    let part = &buf[start..start + len];
                    let short = Short {
                        root: &root,
                        path,
                        len_bytes: whole,
                        offset_bytes: offset,
                        part,
                        direct,
                    };
                    let opened = put(&short, &buf, start).unwrap();
                    assert!(opened.created);
                    let aligned = [offset as usize, len].iter().all(|it| it.is_multiple_of(GRAIN));
                    if direct && aligned && len >= DIRECT_LEN_MIN && has_dio(&opened.file) {
                        assert!(!opened.file.is_resident(offset, len), "{start} {offset} {len}");
                    }
                    assert_eq!(opened.len_bytes, whole);
                    let mut wanted = vec![0; whole as usize];
                    wanted[offset as usize..offset as usize + len].copy_from_slice(part);
                    let found = std::fs::read(dir.path().join(path)).unwrap();
                    assert!(found == wanted, "{direct} {start} {offset} {len} {whole}");
                    opened.file.write_small(0, b"x").unwrap();
                    // Tried again after a failure somewhere behind it.
                    let opened = put(&short, &buf, start).unwrap();
                    assert!(!opened.created);
                    if offset == 0 {
                        wanted[0] = buf[start];
                    } else {
                        wanted[0] = b'x';
                    }
                    let found = std::fs::read(dir.path().join(path)).unwrap();
                    assert!(found == wanted, "again {direct} {start} {offset} {len} {whole}");
                }
            }
        }
    }
}
