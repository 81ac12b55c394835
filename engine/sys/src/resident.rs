//! Which stretches of a file the page cache holds, asked of the kernel and remembered for a moment.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is asked about at once, in bytes, and begins at a multiple of it. In a longer
/// one a page is missing more often, and then each read asks for itself: with 8 MiB most did, of a file that had
/// lost 0.7 % of its pages.
const REGION: u64 = 2 << 20;
/// So long an answer is believed. What is let go meanwhile is read through the cache all the same, once.
const BELIEVED_MAX: Duration = Duration::from_secs(1);
/// Most regions remembered of one file: 32 GiB of it.
const REGIONS_MAX: usize = 16_384;

/// What was found in the page cache of a file. A stream comes in pieces of some hundred kilobytes from all over
/// the file, and a call for each would be half of all calls of a seed.
#[derive(Debug, Default)]
pub(crate) struct Resident(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    since: Option<Instant>,
    /// Whether all of a region was there, by its place in the file.
    regions: HashMap<u64, bool>,
}

impl Resident {
    /// True when all of `len` bytes at `offset` were in the page cache a moment ago. `ask` is the kernel, which is
    /// given an offset and a length.
    pub(crate) fn holds(
        &self,
        offset: u64,
        len: u64,
        now: Instant,
        ask: impl Fn(u64, u64) -> bool,
    ) -> bool {
        let region = offset / REGION;
        if offset % REGION + len > REGION {
            return ask(offset, len);
        }
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = found.since.is_some_and(|since| now < since + BELIEVED_MAX);
        if !is_fresh || found.regions.len() >= REGIONS_MAX {
            found.regions.clear();
            found.since = Some(now);
        }
        let is_whole = *found.regions.entry(region).or_insert_with(|| ask(region * REGION, REGION));
        drop(found);
        is_whole || ask(offset, len)
    }

    /// Believes nothing of what was found.
    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Found::default();
    }
}

/// True when every page of a range is in the page cache. False when the kernel cannot tell.
pub(crate) fn is_resident(fd: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> bool {
    let page = rustix::param::page_size() as u64;
    let Some(last) = offset_bytes.checked_add(len_bytes).filter(|_| len_bytes > 0) else {
        return false;
    };
    let pages = (last - 1) / page - offset_bytes / page;
    cachestat(fd, offset_bytes, len_bytes).is_ok_and(|cached_pages| cached_pages > pages)
}

/// How many pages of a range are in the page cache (`cachestat(2)`, Linux 6.5). Asking again after
/// the kernel has said that it has no such call costs a failing call and nothing more.
fn cachestat(fd: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> io::Result<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset_bytes: u64,
        len_bytes: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Cached {
        cache: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { offset_bytes, len_bytes };
    let mut cached = Cached::default();
    // SAFETY: both structs have the layout of `struct cachestat_range` and `struct cachestat` and
    // outlive the call; flags must be 0.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut cached, 0u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cached.cache) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const KIB: u64 = 1 << 10;

    /// A file of which `cached_bytes` from its beginning are in the page cache, and what was asked about it.
    struct Kernel {
        cached_bytes: u64,
        asked: RefCell<Vec<(u64, u64)>>,
    }

    impl Kernel {
        fn new(cached_bytes: u64) -> Kernel {
            Kernel { cached_bytes, asked: RefCell::default() }
        }

        fn holds(&self, resident: &Resident, offset: u64, now: Instant) -> bool {
            resident.holds(offset, 256 * KIB, now, |offset, len| {
                self.asked.borrow_mut().push((offset, len));
                offset + len <= self.cached_bytes
            })
        }

        fn asked(&self) -> usize {
            self.asked.take().len()
        }
    }

    #[test]
    fn reads_all_over_a_file_in_memory_ask_once_for_each_region() {
        let (kernel, resident, now) =
            (Kernel::new(4 * REGION), Resident::default(), Instant::now());
        for extent in 0..32 {
            assert!(kernel.holds(&resident, (extent * 37 % 32) * 256 * KIB, now));
        }
        assert!(
            kernel
                .asked
                .borrow()
                .iter()
                .all(|&(offset, len)| { offset.is_multiple_of(REGION) && len == REGION })
        );
        assert_eq!(kernel.asked(), 4);
    }

    #[test]
    fn where_a_region_is_not_whole_each_read_asks_for_itself() {
        let kernel = Kernel::new(REGION + 256 * KIB);
        let (resident, now) = (Resident::default(), Instant::now());
        assert!(kernel.holds(&resident, REGION, now));
        assert!(!kernel.holds(&resident, REGION + KIB, now), "half of it");
        assert!(!kernel.holds(&resident, REGION + 512 * KIB, now));
        assert_eq!(kernel.asked(), 4, "the region, and three reads");
        // What lies in two regions is asked for by itself.
        assert!(kernel.holds(&resident, REGION - 128 * KIB, now));
        assert_eq!(kernel.asked.take(), [(REGION - 128 * KIB, 256 * KIB)]);
    }

    #[test]
    fn an_answer_is_believed_for_a_moment_and_not_beyond_its_bounds() {
        let (kernel, resident, now) = (Kernel::new(1 << 50), Resident::default(), Instant::now());
        assert!(kernel.holds(&resident, 0, now));
        assert!(kernel.holds(&resident, 0, now + BELIEVED_MAX / 2));
        assert_eq!(kernel.asked(), 1);
        assert!(kernel.holds(&resident, 0, now + BELIEVED_MAX));
        assert_eq!(kernel.asked(), 1, "too long ago");
        resident.forget();
        assert!(kernel.holds(&resident, 0, now + BELIEVED_MAX));
        assert_eq!(kernel.asked(), 1, "forgotten");
        for region in 0..3 * REGIONS_MAX as u64 {
            assert!(kernel.holds(&resident, region * REGION, now + BELIEVED_MAX));
            assert!(resident.0.lock().unwrap().regions.len() <= REGIONS_MAX);
        }
    }
}
