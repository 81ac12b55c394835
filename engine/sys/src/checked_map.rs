//! Maps of payload that survive what happens to the file beneath them.
//!
//! A page of a mapped file that cannot be read (a bad sector, or the file cut short since) is told by
//! SIGBUS, which ends the process. For the offline commands that read without copying, a
//! [`CheckedMap`] turns that into an answer: the handler puts pages of zeros in place of the rest of
//! that map, notes the fault, and the reading goes on; whoever read asks [`CheckedMap::is_intact`]
//! afterwards and throws away what it computed when the answer is no. Display servers read their
//! clients' shared memory in this way. The alternatives are worse: jumping out of a handler over Rust
//! frames is undefined, and a process of its own for each check cannot say which file it was.
//!
//! A datatrust never maps payload: a page fault stalls a shard.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

/// Maps at a time, over the whole process: a hundred for each of many threads. The handler searches
/// them, which is quick beside the fault that brought it there.
pub const MAPS_MAX: usize = 8192;

/// What the handler knows of a map. It may run at any instruction, so there is no lock: the range is
/// valid exactly while `base` is not 0.
struct Slot {
    base: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static SLOTS: [Slot; MAPS_MAX] = [const {
    Slot { base: AtomicUsize::new(0), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) }
}; MAPS_MAX];
/// Numbers of the slots that are not used; `None` until the first map.
static FREE: Mutex<Option<Vec<usize>>> = Mutex::new(None);
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);
/// What SIGBUS did before us: what it does again for an address that is none of ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct CheckedMap {
    base: NonNull<u8>,
    len: usize,
    slot: usize,
}

// SAFETY: the mapping belongs to this value alone, is only ever read through it, and what else it
// names are atomics.
unsafe impl Send for CheckedMap {}
// SAFETY: as above.
unsafe impl Sync for CheckedMap {}

impl CheckedMap {
    /// Maps a regular file that is not empty.
    ///
    /// # Errors
    /// `InvalidInput` for anything else; `OutOfMemory` when [`MAPS_MAX`] files are mapped; what
    /// `mmap(2)` and `sigaction(2)` say.
    pub fn new(file: BorrowedFd<'_>) -> io::Result<CheckedMap> {
        let stat = rustix::fs::fstat(file)?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        let len = usize::try_from(stat.st_size).unwrap_or(0);
        if !is_file || len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file with bytes"));
        }
        install_handler()?;
        let slot = take_slot().ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours; it is
        // private and read-only.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                file,
                0,
            )
        };
        let base = match base {
            Ok(base) => NonNull::new(base.cast::<u8>()).expect("mmap never gives the null page"),
            Err(error) => {
                give_back(slot);
                return Err(error.into());
            }
        };
        let known = &SLOTS[slot];
        known.faulted.store(false, Ordering::Relaxed);
        known
            .end
            .store(base.as_ptr() as usize + len.next_multiple_of(page_bytes()), Ordering::Relaxed);
        known.base.store(base.as_ptr() as usize, Ordering::Release);
        Ok(CheckedMap { base, len, slot })
    }

    /// Length of the map: that of the file when it was mapped, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// Brings a range into the page tables in one call, which costs less than a fault per page
    /// (`MADV_POPULATE_READ`, Linux 5.14; older kernels leave it to the faults).
    ///
    /// # Errors
    /// What the kernel says when the range cannot be read: then it must not be.
    ///
    /// # Panics
    /// When the range is outside the map.
    pub fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        const MADV_POPULATE_READ: libc::c_int = 22;
        let range = self.bytes(offset, len);
        let page = page_bytes();
        let from = range.as_ptr() as usize / page * page;
        let len = range.as_ptr() as usize + range.len() - from;
        // SAFETY: the range lies inside our own mapping, and the advice changes no content.
        let result = unsafe { libc::madvise(from as *mut libc::c_void, len, MADV_POPULATE_READ) };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            // EFAULT is what a fault would have made a SIGBUS.
            error if error.raw_os_error() == Some(libc::EFAULT) => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            error => Err(error),
        }
    }

    /// A range of the map. Any bytes may come, also other ones at a second look, when somebody
    /// changes the file: copy nothing back, and believe a digest of them only after
    /// [`CheckedMap::is_intact`].
    ///
    /// # Panics
    /// When the range is outside the map.
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset <= self.len && len <= self.len - offset, "a range outside its map");
        // SAFETY: the range is mapped and readable for as long as `self` lives; where the file has
        // no such page, the handler puts one. That another process may change the file meanwhile
        // cannot be ruled out for any map of a file; callers take any bytes.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), len) }
    }

    /// False once any read from this map has met a page that cannot be read: what was read since the
    /// last `true` is worth nothing.
    pub fn is_intact(&self) -> bool {
        !SLOTS[self.slot].faulted.load(Ordering::Acquire)
    }
}

impl Drop for CheckedMap {
    fn drop(&mut self) {
        SLOTS[self.slot].base.store(0, Ordering::Release);
        // SAFETY: nobody borrows the mapping any more; the handler's pages lie inside the range.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
        give_back(self.slot);
    }
}

fn page_bytes() -> usize {
    PAGE_BYTES.load(Ordering::Relaxed)
}

fn take_slot() -> Option<usize> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    free.get_or_insert_with(|| (0..MAPS_MAX).rev().collect()).pop()
}

fn give_back(slot: usize) {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    free.get_or_insert_with(Vec::new).push(slot);
}

/// Installs the handler, once for the process.
fn install_handler() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    PAGE_BYTES.store(rustix::param::page_size(), Ordering::Relaxed);
    // SAFETY: all-zero is a valid sigaction, to be filled by the call.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Known before the handler can run.
    let _ = PREVIOUS.set(previous);
    // SAFETY: all-zero is a valid sigaction (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler does only what is allowed in one, and lives as long as the program.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Runs on the thread that read, at the instruction that read. Uses atomics and bare system calls
/// alone, keeps errno, allocates and locks nothing (signal-safety(7); `mmap(2)` is not on the list,
/// but is one system call without any state of the C library).
extern "C" fn handle_bus_error(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to a handler set with SA_SIGINFO; for SIGBUS it has
    // an address; errno is this thread's own.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    let found = SLOTS.iter().find(|slot| {
        let base = slot.base.load(Ordering::Acquire);
        base != 0 && base <= address && address < slot.end.load(Ordering::Relaxed)
    });
    let mut is_mended = false;
    if let Some(slot) = found {
        let page = page_bytes();
        let from = address / page * page;
        let len = slot.end.load(Ordering::Relaxed) - from;
        slot.faulted.store(true, Ordering::Release);
        // SAFETY: replaces the rest of a mapping of ours by zeros, page by page the same addresses.
        // The thread reads through a borrow of the map, so it is not being unmapped.
        let put = unsafe {
            libc::mmap(
                from as *mut libc::c_void,
                len,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        is_mended = put != libc::MAP_FAILED;
    }
    // SAFETY: puts back what was there before us, so that the same instruction, run again, does what
    // it would have done without us; errno is this thread's own.
    unsafe {
        if !is_mended {
            match PREVIOUS.get() {
                Some(previous) => libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()),
                None => libc::abort(),
            };
        }
        *libc::__errno_location() = errno;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::test_child;
    use crate::test_dir::TestDir;

    #[test]
    fn what_is_mapped_is_the_file() {
        let tmp = TestDir::on_disk();
        let data: Vec<u8> = (0..100_001u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(tmp.path().join("f"), &data).unwrap();
        let map = CheckedMap::new(File::open(tmp.path().join("f")).unwrap().as_fd()).unwrap();
        map.populate(5000, 90_000).unwrap();
        assert_eq!(map.bytes(0, map.len_bytes()), data);
        assert!(map.is_intact());
        assert!(CheckedMap::new(File::open(tmp.path()).unwrap().as_fd()).is_err());
    }

    /// Several threads meet the end of a file that was cut while it was mapped; a map beside it
    /// stays whole.
    #[test]
    fn a_file_cut_short_is_an_answer_and_no_crash() {
        let tmp = TestDir::on_disk();
        for name in ["cut", "whole"] {
            std::fs::write(tmp.path().join(name), vec![7; 1 << 20]).unwrap();
        }
        let file = File::options().read(true).write(true).open(tmp.path().join("cut")).unwrap();
        let map = CheckedMap::new(file.as_fd()).unwrap();
        let other = CheckedMap::new(File::open(tmp.path().join("whole")).unwrap().as_fd()).unwrap();
        assert_eq!(map.bytes(900_000, 4), [7; 4]);
        file.set_len(10_000).unwrap();
        assert!(map.populate(600_000, 4).is_err(), "it says so where it is asked first");
        std::thread::scope(|scope| {
            for at in [300_000, 500_000, 700_000, 900_000] {
                let map = &map;
                scope.spawn(move || assert_eq!(map.bytes(at, 4), [0; 4]));
            }
        });
        assert!(!map.is_intact());
        assert!(other.is_intact() && other.bytes(0, 1 << 20).iter().all(|&byte| byte == 7));
        drop(map);
        std::fs::write(tmp.path().join("cut"), vec![9; 1 << 20]).unwrap();
        let again = CheckedMap::new(File::open(tmp.path().join("cut")).unwrap().as_fd()).unwrap();
        assert_eq!(again.bytes(900_000, 4), [9; 4]);
        assert!(again.is_intact(), "a new map knows nothing of the old one's fault");
    }

    /// A fault at an address that is none of ours ends the process as ever.
    #[test]
    fn other_bus_errors_stay_deadly() {
        const NAME: &str = "checked_map::tests::other_bus_errors_stay_deadly";
        if std::env::var("RINGSEED_SYS_TEST_CHILD").is_err() {
            let status = test_child::command(NAME).output().unwrap().status;
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
            return;
        }
        let tmp = TestDir::on_disk();
        let path = tmp.path().join("f");
        std::fs::write(&path, vec![7; 1 << 16]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let _ours = CheckedMap::new(file.as_fd()).unwrap();
        // SAFETY: a new mapping that aliases nothing.
        let foreign = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file).unwrap() };
        file.set_len(0).unwrap();
        std::hint::black_box(foreign[40_000]);
        panic!("the read must not return");
    }
}
