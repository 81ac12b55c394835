//! One block of memory for all payload, cut into extents that are lent and given back.
//!
//! An engine's payload memory has one bound, given at start. Pages are touched as extents are first
//! lent and then reused, last given back first lent: fresh pages cost 0.75 CPU seconds per GiB on the
//! measured guest, and the extent given back last is the one still in the caches.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Size of an extent: sixteen blocks of 16 KiB. A piece is a list of extents, so that a piece of
/// 16 MiB needs no hole of 16 MiB.
pub const EXTENT_LEN_BYTES: usize = 256 * 1024;

/// Alignment of every extent's address, enough for O_DIRECT on every device with 4 KiB sectors.
pub const EXTENT_ALIGN_BYTES: usize = 4096;

const _: () = assert!(EXTENT_LEN_BYTES.is_multiple_of(EXTENT_ALIGN_BYTES));

/// The memory all extents come from. Clones share it; it is unmapped when the last clone and the
/// last extent are gone.
#[derive(Clone)]
pub struct Arena {
    inner: Arc<Inner>,
}

/// An extent with one owner: may be written.
pub struct ExtentMut {
    inner: Arc<Inner>,
    index: u32,
}

/// A frozen extent with any number of owners: may be read.
pub struct Extent {
    inner: Arc<Inner>,
    index: u32,
}

struct Inner {
    base: NonNull<u8>,
    /// How many [`Extent`]s own each extent; 0 while it is free or an [`ExtentMut`] owns it.
    shared: Box<[AtomicU32]>,
    free: Mutex<Vec<u32>>,
}

// SAFETY: `base` points to a mapping that lives as long as `Inner` and that nothing else names. Who
// may touch which part of it is settled by `ExtentMut` (one owner) and `Extent` (read only).
unsafe impl Send for Inner {}
// SAFETY: as above; the bookkeeping itself is atomics and a mutex.
unsafe impl Sync for Inner {}

impl Arena {
    /// Maps an arena of `len_bytes`, rounded up to whole extents. No page is touched yet.
    ///
    /// # Errors
    /// `InvalidInput` when `len_bytes` is 0 or needs more than `u32::MAX` extents; what `mmap(2)`
    /// says when the address space or the memory limit does not allow it.
    pub fn new(len_bytes: usize) -> io::Result<Arena> {
        let count = len_bytes.div_ceil(EXTENT_LEN_BYTES);
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "arena size out of range");
        if count == 0 {
            return Err(bad());
        }
        let count_u32 = u32::try_from(count).map_err(|_| bad())?;
        let map_len_bytes = count.checked_mul(EXTENT_LEN_BYTES).ok_or_else(bad)?;
        // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice aliases
        // nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                map_len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // Huge pages save page faults where the kernel has them; where not, nothing is lost.
        // SAFETY: the range is the mapping just made; the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(base, map_len_bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast::<u8>()).expect("mmap never gives the null page");
        Ok(Arena {
            inner: Arc::new(Inner {
                base,
                shared: (0..count).map(|_| AtomicU32::new(0)).collect(),
                free: Mutex::new((0..count_u32).rev().collect()),
            }),
        })
    }

    /// Lends an extent, or `None` when all are out: the caller waits and never allocates. Its
    /// content is whatever its last owner left there.
    pub fn try_take(&self) -> Option<ExtentMut> {
        let index = self.inner.free().pop()?;
        Some(ExtentMut { inner: self.inner.clone(), index })
    }

    /// How many extents are lent now.
    pub fn in_use(&self) -> usize {
        self.capacity() - self.inner.free().len()
    }

    /// How many extents there are.
    pub fn capacity(&self) -> usize {
        self.inner.shared.len()
    }

    /// The whole mapping, for registration as fixed buffers. Touches nothing.
    pub(crate) fn region(&self) -> (NonNull<u8>, usize) {
        (self.inner.base, self.inner.len_bytes())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("in_use", &self.in_use())
            .field("capacity", &self.capacity())
            .finish()
    }
}

impl Inner {
    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        // The list is only pushed to and popped from, so a panic elsewhere cannot leave it torn.
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn len_bytes(&self) -> usize {
        self.shared.len() * EXTENT_LEN_BYTES
    }

    fn address(&self, index: u32) -> NonNull<u8> {
        assert!((index as usize) < self.shared.len());
        // SAFETY: the index is below the extent count, so the offset stays inside the mapping.
        unsafe { self.base.add(index as usize * EXTENT_LEN_BYTES) }
    }

    fn give_back(&self, index: u32) {
        self.free().push(index);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Arena::new` with this length, and no extent is left:
        // each holds an `Arc` of this.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len_bytes()) };
        debug_assert!(unmapped.is_ok());
    }
}

impl ExtentMut {
    /// Ends writing: from now on the extent can be shared and only be read.
    pub fn freeze(self) -> Extent {
        // SAFETY: `self` is forgotten below, so its `Arc` is moved and not duplicated.
        let inner = unsafe { std::ptr::read(&self.inner) };
        let index = self.index;
        std::mem::forget(self);
        inner.shared[index as usize].store(1, Ordering::Release);
        Extent { inner, index }
    }

    /// Start of the extent's memory, for the kernel.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.inner.address(self.index)
    }

    /// True when the extent is part of `arena`.
    pub fn is_of(&self, arena: &Arena) -> bool {
        Arc::ptr_eq(&self.inner, &arena.inner)
    }
}

impl Deref for ExtentMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the extent is mapped and initialised (anonymous pages start as zeros), and this
        // is its only owner.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), EXTENT_LEN_BYTES) }
    }
}

impl DerefMut for ExtentMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), EXTENT_LEN_BYTES) }
    }
}

impl Drop for ExtentMut {
    fn drop(&mut self) {
        self.inner.give_back(self.index);
    }
}

impl fmt::Debug for ExtentMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExtentMut({})", self.index)
    }
}

impl Extent {
    /// Takes the extent for writing again when nobody else owns it.
    ///
    /// # Errors
    /// Gives the extent back when it has other owners.
    pub fn try_into_mut(self) -> Result<ExtentMut, Extent> {
        let shared = &self.inner.shared[self.index as usize];
        if shared.compare_exchange(1, 0, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(self);
        }
        // SAFETY: `self` is forgotten below, so its `Arc` is moved and not duplicated.
        let inner = unsafe { std::ptr::read(&self.inner) };
        let index = self.index;
        std::mem::forget(self);
        Ok(ExtentMut { inner, index })
    }

    /// Start of the extent's memory, for the kernel.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.inner.address(self.index)
    }

    /// True when the extent is part of `arena`.
    pub fn is_of(&self, arena: &Arena) -> bool {
        Arc::ptr_eq(&self.inner, &arena.inner)
    }
}

impl Clone for Extent {
    fn clone(&self) -> Extent {
        let before = self.inner.shared[self.index as usize].fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX / 2, "extent has too many owners");
        Extent { inner: self.inner.clone(), index: self.index }
    }
}

impl Deref for Extent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the extent is mapped and initialised, and while a frozen extent has an owner
        // nobody may write to it.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), EXTENT_LEN_BYTES) }
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        if self.inner.shared[self.index as usize].fetch_sub(1, Ordering::Release) == 1 {
            // Orders the other owners' last reads before the next owner's first write.
            fence(Ordering::Acquire);
            self.inner.give_back(self.index);
        }
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extent({})", self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_aligned_disjoint_and_bounded() {
        let arena = Arena::new(EXTENT_LEN_BYTES * 3 - 1).unwrap();
        assert_eq!(arena.capacity(), 3);
        let mut taken: Vec<ExtentMut> = std::iter::from_fn(|| arena.try_take()).collect();
        assert_eq!(taken.len(), 3);
        assert_eq!(arena.in_use(), 3);
        for (i, extent) in taken.iter_mut().enumerate() {
            assert_eq!(extent.as_ptr() as usize % EXTENT_ALIGN_BYTES, 0);
            assert_eq!(extent.len(), EXTENT_LEN_BYTES);
            extent.fill(i as u8 + 1);
        }
        for (i, extent) in taken.iter().enumerate() {
            assert!(extent.iter().all(|&byte| byte == i as u8 + 1));
        }
        drop(taken);
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn the_extent_given_back_last_is_lent_first() {
        let arena = Arena::new(EXTENT_LEN_BYTES * 4).unwrap();
        let a = arena.try_take().unwrap();
        let b = arena.try_take().unwrap();
        let address = a.as_ptr();
        drop(b);
        drop(a);
        assert_eq!(arena.try_take().unwrap().as_ptr(), address);
    }

    #[test]
    fn a_frozen_extent_goes_back_with_its_last_owner() {
        let arena = Arena::new(EXTENT_LEN_BYTES).unwrap();
        let mut extent = arena.try_take().unwrap();
        extent[7] = 42;
        let frozen = extent.freeze();
        let other = frozen.clone();
        let frozen = frozen.try_into_mut().unwrap_err();
        drop(frozen);
        assert!(arena.try_take().is_none());
        let mut again = other.try_into_mut().unwrap();
        assert_eq!(again[7], 42);
        again[7] = 43;
        let frozen = again.freeze();
        assert_eq!(frozen[7], 43);
        drop(frozen);
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn extents_outlive_the_arena_handle_and_cross_threads() {
        let arena = Arena::new(EXTENT_LEN_BYTES * 8).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|seed: u8| {
                let arena = arena.clone();
                std::thread::spawn(move || {
                    for round in 0..200u8 {
                        let Some(mut extent) = arena.try_take() else { continue };
                        let mark = seed.wrapping_mul(31).wrapping_add(round);
                        extent[..64].fill(mark);
                        let frozen = extent.freeze();
                        let copy = frozen.clone();
                        drop(frozen);
                        assert!(copy[..64].iter().all(|&byte| byte == mark));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let last = arena.try_take().unwrap();
        drop(arena);
        assert_eq!(last.len(), EXTENT_LEN_BYTES);
    }

    #[test]
    fn an_empty_arena_is_refused() {
        assert_eq!(Arena::new(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
