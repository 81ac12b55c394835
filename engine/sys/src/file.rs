//! Payload files: one file behind two descriptors, one through the page cache and one past it.
//!
//! O_DIRECT halves the cost of a read that misses and takes a tenth of the CPU of a buffered write
//! (measured), but wants aligned memory, offsets and lengths. A transfer is therefore cut: the
//! aligned interior goes direct, the edges go buffered. Cuts lie on whole pages *and* whole file
//! system blocks, so that no page is ever written both ways: a buffered write of half a page reads
//! the other half first and would put back what a direct write has changed meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{Advice, AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::arena::{EXTENT_LEN_BYTES, Extent, ExtentMut};
use crate::buf::check_extent_range;
use crate::dir::{self, DirHandle, FileOptions};
use crate::resident::{self, Resident};

/// Smallest grain of direct transfers: a page.
const GRAIN_MIN_BYTES: u64 = 4096;

/// Which way a read went; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPath {
    /// Resident in the page cache, buffered.
    PageCache,
    /// O_DIRECT.
    Direct,
    /// Buffered: the file system offers no O_DIRECT, or the range holds no aligned whole page.
    Buffered,
}

/// What O_DIRECT wants on a file (`statx(2)`, STATX_DIOALIGN): two separate values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DioAlign {
    /// Alignment of the memory address, bytes.
    pub memory_bytes: u32,
    /// Alignment of offset and length, bytes.
    pub offset_bytes: u32,
}

/// An opened payload file.
#[derive(Debug)]
pub struct DataFile {
    buffered: OwnedFd,
    direct: Option<Direct>,
    /// Read from the device even what the page cache holds.
    past_cache: bool,
    resident: Resident,
}

#[derive(Debug)]
struct Direct {
    fd: OwnedFd,
    memory_align: usize,
    grain: u64,
    /// Set when the file system refused a transfer that `statx` called aligned.
    refused: AtomicBool,
}

/// One stretch of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) direct: bool,
    /// Where it begins in the extent.
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) offset_bytes: u64,
}

/// A transfer cut into at most a head, an interior and a tail, done in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    parts: [Part; 3],
    count: usize,
}

/// One stretch of a write, for a driver that carries it out by itself.
#[derive(Debug)]
pub struct WritePart {
    /// A descriptor of the stretch's own, past the page cache or through it.
    pub fd: OwnedFd,
    /// It goes past the page cache.
    pub is_direct: bool,
    /// Where it begins in the extent.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Where it goes in the file.
    pub offset_bytes: u64,
}

/// How a file was found by [`DataFile::open`].
#[derive(Debug)]
pub struct OpenedFile {
    /// The file.
    pub file: DataFile,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// It was not there before: its name is durable only after [`DirHandle::sync_parents`].
    pub created: bool,
}

impl DataFile {
    /// Opens `rel` beneath `root`, with a second descriptor for direct transfers if `direct` and the
    /// file system reports how it wants them. (`open` alone proves nothing: tmpfs takes O_DIRECT and
    /// ignores it.)
    ///
    /// # Errors
    /// As [`DirHandle::open_or_create`].
    pub fn open(root: &DirHandle, rel: &Path, write: bool, direct: bool) -> io::Result<OpenedFile> {
        let options = FileOptions { write, ..FileOptions::default() };
        let (buffered, created) = root.open_or_create(rel, options)?;
        let found = dir::metadata_of_fd(buffered.as_fd())?;
        let mut file =
            DataFile { buffered, direct: None, past_cache: false, resident: Resident::default() };
        if direct && let Some(align) = dio_align(file.buffered.as_fd())? {
            file.direct = open_direct(root, rel, options, align, found.identity)?;
        }
        if file.direct.is_some() {
            // Only edges and resident ranges are read through the page cache: reading ahead of them
            // would fetch what comes by O_DIRECT anyway.
            let _ = rustix::fs::fadvise(&file.buffered, 0, None, Advice::Random);
        }
        Ok(OpenedFile { file, len_bytes: found.len_bytes, created })
    }

    /// Opens or creates `rel` beneath `root`, gives it the length `len_bytes`, and writes a part of it through
    /// the page cache: `len` bytes of `buf` from `start` to `offset_bytes`. For files so short that a second
    /// descriptor, reserving and a direct write would cost more than the copy.
    ///
    /// # Errors
    /// As [`DataFile::open`] and [`DataFile::write`]. The file may be there all the same.
    pub fn put(
        root: &DirHandle,
        rel: &Path,
        len_bytes: u64,
        offset_bytes: u64,
        (buf, start, len): (&Extent, usize, usize),
    ) -> io::Result<OpenedFile> {
        check_extent_range(start, len)?;
        let opened = match root.create_new(rel)? {
            Some(buffered) => {
                let file = DataFile {
                    buffered,
                    direct: None,
                    past_cache: false,
                    resident: Resident::default(),
                };
                OpenedFile { file, len_bytes: 0, created: true }
            }
            None => DataFile::open(root, rel, true, false)?,
        };
        let is_whole =
            offset_bytes == 0 && len as u64 == len_bytes && opened.len_bytes <= len_bytes;
        if !is_whole && opened.len_bytes != len_bytes {
            rustix::fs::ftruncate(&opened.file.buffered, len_bytes)?;
        }
        opened.file.write_small(offset_bytes, &buf[start..start + len])?;
        Ok(OpenedFile { len_bytes, ..opened })
    }

    /// Makes aligned reads go to the device even where the page cache holds the range: to see what
    /// the device has, or to measure it.
    pub fn past_cache(self) -> DataFile {
        DataFile { past_cache: true, ..self }
    }

    /// True when aligned transfers by-pass the page cache.
    pub fn is_direct(&self) -> bool {
        self.usable_direct().is_some()
    }

    /// Reads `len` bytes at `offset_bytes` into `buf` from `start`, waiting for the disk. Short only
    /// at the end of the file.
    ///
    /// # Errors
    /// `InvalidInput` for a range outside the extent, else what `pread(2)` says.
    pub fn read(
        &self,
        offset_bytes: u64,
        buf: &mut ExtentMut,
        start: usize,
        len: usize,
    ) -> io::Result<(usize, ReadPath)> {
        let (plan, path) =
            self.plan_read(offset_bytes, buf.address().as_ptr() as usize, start, len)?;
        let mut done = 0;
        for mut part in plan.parts().iter().copied() {
            while part.len > 0 {
                let target = &mut buf[part.start..part.start + part.len];
                match rustix::io::pread(self.fd(part.direct), target, part.offset_bytes) {
                    Ok(0) => return Ok((done, path)),
                    Ok(n) => {
                        done += n;
                        part.advance(n);
                        if part.direct && self.is_unaligned(n) {
                            return Ok((done, path)); // the end of the file
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::INVAL) if part.direct => self.refuse_direct(&mut part),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok((done, path))
    }

    /// Writes `len` bytes of `buf` from `start` to `offset_bytes`, all of them, waiting for the disk.
    ///
    /// # Errors
    /// `InvalidInput` for a range outside the extent, else what `pwrite(2)` says; how much was written
    /// is unknown then.
    pub fn write(
        &self,
        offset_bytes: u64,
        buf: &Extent,
        start: usize,
        len: usize,
    ) -> io::Result<()> {
        let plan = self.plan_write(offset_bytes, buf.address().as_ptr() as usize, start, len)?;
        for mut part in plan.parts().iter().copied() {
            while part.len > 0 {
                let source = &buf[part.start..part.start + part.len];
                match rustix::io::pwrite(self.fd(part.direct), source, part.offset_bytes) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => part.advance(n),
                    Err(Errno::INTR) => {}
                    Err(Errno::INVAL) if part.direct => self.refuse_direct(&mut part),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Writes `data` to `offset_bytes` through the page cache, all of it.
    ///
    /// # Errors
    /// What `pwrite(2)` says.
    pub fn write_small(&self, mut offset_bytes: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match rustix::io::pwrite(&self.buffered, data, offset_bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    data = &data[n..];
                    offset_bytes += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes everything to the device (`fdatasync(2)`): both descriptors are of one file.
    ///
    /// # Errors
    /// What `fdatasync(2)` says. What was written since the last success is *unknown* then: a second
    /// sync may say OK over lost data.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.buffered)?)
    }

    /// Drops the clean pages that the page cache holds of this file, without writing anything out.
    /// After a failed sync they show data that the device does not have (measured on ext4 and XFS);
    /// what is read from here on is what the device has.
    pub fn forget_cached(&self) {
        self.resident.forget();
        // Refused only for what has no page cache.
        let _ = rustix::fs::fadvise(&self.buffered, 0, None, Advice::DontNeed);
    }

    /// Reserves and sets the length, see [`dir::allocate`].
    ///
    /// # Errors
    /// As [`dir::allocate`].
    pub fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        dir::allocate(self.buffered.as_fd(), len_bytes).map(|_reserved| ())
    }

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn len_bytes(&self) -> io::Result<u64> {
        Ok(dir::metadata_of_fd(self.buffered.as_fd())?.len_bytes)
    }

    pub(crate) fn fd(&self, direct: bool) -> BorrowedFd<'_> {
        match &self.direct {
            Some(found) if direct => found.fd.as_fd(),
            _ => self.buffered.as_fd(),
        }
    }

    /// True when a direct transfer of `len` ended off the grain, which it does only at the file's end.
    pub(crate) fn is_unaligned(&self, len: usize) -> bool {
        self.direct.as_ref().is_some_and(|direct| !(len as u64).is_multiple_of(direct.grain))
    }

    /// Sends this part and all that follow through the page cache.
    pub(crate) fn refuse_direct(&self, part: &mut Part) {
        part.direct = false;
        if let Some(direct) = &self.direct {
            direct.refused.store(true, Ordering::Relaxed);
        }
    }

    fn usable_direct(&self) -> Option<&Direct> {
        self.direct.as_ref().filter(|direct| !direct.refused.load(Ordering::Relaxed))
    }

    /// Cuts a read of an extent that lies at `address`.
    pub(crate) fn plan_read(
        &self,
        offset_bytes: u64,
        address: usize,
        start: usize,
        len: usize,
    ) -> io::Result<(Plan, ReadPath)> {
        let whole = Part { direct: false, start, len, offset_bytes };
        let plan = self.plan(address, whole)?;
        if !plan.parts().iter().any(|part| part.direct) {
            let path = if self.direct.is_some() && self.was_resident(offset_bytes, len) {
                ReadPath::PageCache
            } else {
                ReadPath::Buffered
            };
            return Ok((plan, path));
        }
        if !self.past_cache && self.was_resident(offset_bytes, len) {
            return Ok((Plan::whole(whole), ReadPath::PageCache));
        }
        Ok((plan, ReadPath::Direct))
    }

    /// Cuts a write as [`DataFile::write`] does; the stretches are to be written in order, each whole. Where
    /// one that is direct fails with `EINVAL`, [`DataFile::write`] has to take all of it over.
    ///
    /// # Errors
    /// `InvalidInput` for a range outside the extent; that no descriptor is left.
    pub fn parts_to_write(
        &self,
        offset_bytes: u64,
        buf: &Extent,
        start: usize,
        len: usize,
    ) -> io::Result<Vec<WritePart>> {
        let plan = self.plan_write(offset_bytes, buf.address().as_ptr() as usize, start, len)?;
        let part_of = |part: &Part| {
            let Part { direct: is_direct, start, len, offset_bytes } = *part;
            let fd = self.fd(is_direct).try_clone_to_owned()?;
            Ok(WritePart { fd, is_direct, start, len, offset_bytes })
        };
        plan.parts().iter().map(part_of).collect()
    }

    /// Cuts a write of an extent that lies at `address`.
    pub(crate) fn plan_write(
        &self,
        offset_bytes: u64,
        address: usize,
        start: usize,
        len: usize,
    ) -> io::Result<Plan> {
        self.plan(address, Part { direct: false, start, len, offset_bytes })
    }

    fn plan(&self, address: usize, whole: Part) -> io::Result<Plan> {
        check_extent_range(whole.start, whole.len)?;
        let end = whole.offset_bytes.checked_add(whole.len as u64);
        let Some(end) = end.filter(|&end| i64::try_from(end).is_ok()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let Some(direct) = self.usable_direct() else { return Ok(Plan::whole(whole)) };
        Ok(cut(whole, address, end, direct.memory_align, direct.grain))
    }

    /// True when every page of the range is in the page cache. False when the kernel cannot tell:
    /// the read goes past the cache then, which is right if slower.
    pub fn is_resident(&self, offset_bytes: u64, len: usize) -> bool {
        resident::is_resident(self.buffered.as_fd(), offset_bytes, len as u64)
    }

    /// The same for a range that is about to be read, by what is known of a moment ago.
    fn was_resident(&self, offset_bytes: u64, len: usize) -> bool {
        self.resident.holds(offset_bytes, len as u64, Instant::now(), |offset_bytes, len_bytes| {
            resident::is_resident(self.buffered.as_fd(), offset_bytes, len_bytes)
        })
    }
}

impl AsFd for DataFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }
}

impl Part {
    pub(crate) fn advance(&mut self, done: usize) {
        assert!(done <= self.len, "the kernel moved more than it was asked to");
        self.start += done;
        self.len -= done;
        self.offset_bytes += done as u64;
    }
}

impl Plan {
    fn whole(part: Part) -> Plan {
        Plan { parts: [part, Part::default(), Part::default()], count: 1 }
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }
}

/// Cuts `whole`, which ends at `end` in the file and lies in an extent at `address`.
fn cut(whole: Part, address: usize, end: u64, memory_align: usize, grain: u64) -> Plan {
    let low = whole.offset_bytes.next_multiple_of(grain);
    let high = end - end % grain;
    if high <= low {
        return Plan::whole(whole);
    }
    let head_len = (low - whole.offset_bytes) as usize;
    let interior_len = (high - low) as usize;
    let interior_start = whole.start + head_len;
    if !(address + interior_start).is_multiple_of(memory_align) {
        return Plan::whole(whole);
    }
    let stretches = [
        Part { len: head_len, ..whole },
        Part { direct: true, start: interior_start, len: interior_len, offset_bytes: low },
        Part {
            direct: false,
            start: interior_start + interior_len,
            len: (end - high) as usize,
            offset_bytes: high,
        },
    ];
    let mut plan = Plan::default();
    for part in stretches.into_iter().filter(|part| part.len > 0) {
        plan.parts[plan.count] = part;
        plan.count += 1;
    }
    plan
}

fn open_direct(
    root: &DirHandle,
    rel: &Path,
    options: FileOptions,
    align: DioAlign,
    identity: (u64, u64),
) -> io::Result<Option<Direct>> {
    let Ok(fd) = root.open_file(rel, FileOptions { direct: true, ..options }) else {
        return Ok(None); // O_DIRECT is a gain and never a need
    };
    if dir::metadata_of_fd(fd.as_fd())?.identity != identity {
        return Err(io::Error::other("file was replaced while it was opened"));
    }
    let block_bytes = rustix::fs::fstat(&fd)?.st_blksize as u64;
    let mut grain = GRAIN_MIN_BYTES.max(u64::from(align.offset_bytes));
    grain = grain.max(rustix::param::page_size() as u64);
    if block_bytes.is_power_of_two() && block_bytes <= EXTENT_LEN_BYTES as u64 {
        grain = grain.max(block_bytes);
    }
    let memory_align = align.memory_bytes as usize;
    let sane = grain.is_power_of_two() && memory_align.is_power_of_two();
    Ok(sane.then(|| Direct { fd, memory_align, grain, refused: AtomicBool::new(false) }))
}

/// How O_DIRECT wants transfers on `fd`; `None` where the file system does not say that it has it.
///
/// # Errors
/// What `statx(2)` says.
pub fn dio_align(fd: BorrowedFd<'_>) -> io::Result<Option<DioAlign>> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let (memory_bytes, offset_bytes) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    let some = told && memory_bytes > 0 && offset_bytes > 0;
    Ok(some.then_some(DioAlign { memory_bytes, offset_bytes }))
}

/// Drops a file's clean pages from the page cache, after writing out the dirty ones, so that the next
/// read comes from the device.
///
/// # Errors
/// What `fdatasync(2)` and `posix_fadvise(2)` say.
pub fn drop_cache(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::fdatasync(fd)?;
    Ok(rustix::fs::fadvise(fd, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::test_dir::TestDir;
    use proptest::prelude::*;

    proptest! {
        /// The parts cover the transfer without gap or overlap, and a direct one is aligned.
        #[test]
        fn cuts_cover_and_are_aligned(
            start in 0usize..20_000, len in 0usize..200_000, offset_bytes in 0u64..100_000,
            memory_bits in 2u32..13, grain_bits in 12u32..17,
        ) {
            let (memory, grain) = (1usize << memory_bits, 1u64 << grain_bits);
            let whole = Part { direct: false, start, len, offset_bytes };
            let address = 0x10_0000;
            let plan = cut(whole, address, offset_bytes + len as u64, memory, grain);
            let (mut at, mut offset, mut left) = (start, offset_bytes, len);
            for part in plan.parts() {
                prop_assert_eq!((part.start, part.offset_bytes), (at, offset));
                if part.direct {
                    prop_assert!((address + part.start).is_multiple_of(memory));
                    prop_assert!(part.offset_bytes.is_multiple_of(grain));
                    prop_assert!((part.len as u64).is_multiple_of(grain));
                }
                at += part.len;
                offset += part.len as u64;
                left -= part.len;
            }
            prop_assert_eq!(left, 0);
        }
    }

    fn pattern(seed: usize, len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * 31 + seed * 7 + i / 251) % 256) as u8).collect()
    }

    #[test]
    fn what_is_written_in_odd_stretches_reads_back() {
        let tmp = TestDir::on_disk();
        let root = DirHandle::open(tmp.path()).unwrap();
        let arena = Arena::new(8 * EXTENT_LEN_BYTES).unwrap();
        for direct in [false, true] {
            let name = Path::new(if direct { "d/direct" } else { "d/buffered" });
            let opened = DataFile::open(&root, name, true, direct).unwrap();
            assert!(opened.created);
            let file = opened.file;
            let data = pattern(3, 700_001);
            let mut at = 0;
            for len in [262_144, 5, 100_000, 4096, 262_144, 71_612] {
                let start = if at % 4096 + len <= EXTENT_LEN_BYTES { at % 4096 } else { 0 };
                let mut extent = arena.try_take().unwrap();
                extent[start..start + len].copy_from_slice(&data[at..at + len]);
                file.write(at as u64, &extent.freeze(), start, len).unwrap();
                at += len;
            }
            assert_eq!(at, data.len());
            file.sync().unwrap();
            assert_eq!(std::fs::read(tmp.path().join(name)).unwrap(), data);
            drop_cache(file.as_fd()).unwrap();
            for (offset, len) in [(0, 262_144), (262_144, 262_144), (524_288, 262_144), (777, 9000)]
            {
                let mut extent = arena.try_take().unwrap();
                let (n, path) = file.read(offset, &mut extent, 0, len).unwrap();
                let end = data.len().min(offset as usize + len);
                assert_eq!(&extent[..n], &data[offset as usize..end]);
                if direct && file.is_direct() && offset != 777 {
                    assert_eq!(path, ReadPath::Direct);
                }
            }
            if file.is_direct() {
                let mut extent = arena.try_take().unwrap();
                std::fs::read(tmp.path().join(name)).unwrap(); // warms the page cache
                let (_, path) = file.read(0, &mut extent, 0, 65_536).unwrap();
                assert_eq!(path, ReadPath::PageCache);
                file.forget_cached();
                let (_, path) = file.read(0, &mut extent, 0, 65_536).unwrap();
                assert_eq!(path, ReadPath::Direct);
            }
            let mut extent = arena.try_take().unwrap();
            assert!(file.read(0, &mut extent, 1, EXTENT_LEN_BYTES).is_err());
            assert!(file.write(u64::MAX - 5, &extent.freeze(), 0, 10).is_err());
        }
        assert_eq!(arena.in_use(), 0);
    }
}
