//! Waking a thread that waits in its ring or in epoll, from any other thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::EventfdFlags;

/// Wakes one driver. Cheap when it has been woken already and has not looked yet: a wake-up between
/// two sleeping cores costs some 30 microseconds, so it is sent once.
#[derive(Clone, Debug)]
pub struct Waker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    eventfd: Arc<OwnedFd>,
    pending: AtomicBool,
}

impl Waker {
    /// Makes the eventfd.
    ///
    /// # Errors
    /// What `eventfd(2)` says: mostly that no descriptor is left.
    pub fn new() -> io::Result<Waker> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfd = Arc::new(rustix::event::eventfd(0, flags)?);
        Ok(Waker { inner: Arc::new(Inner { eventfd, pending: AtomicBool::new(false) }) })
    }

    /// Makes the driver look at its queues. What was queued before this call is seen.
    pub fn wake(&self) {
        if !self.inner.pending.swap(true, Ordering::AcqRel) {
            // The only way to fail is a full counter, and that wakes as well.
            let _ = rustix::io::write(&*self.inner.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// True once after any number of [`Waker::wake`]: called by the driver *before* it looks at its
    /// queues, so that nothing queued meanwhile is missed.
    pub fn take(&self) -> bool {
        // A plain load first: most turns are brought by something else, and cost no atomic exchange.
        self.is_pending() && self.inner.pending.swap(false, Ordering::AcqRel)
    }

    /// Makes the descriptor unreadable again: called by the driver when, and only when, it was woken by it,
    /// *before* [`Waker::take`]. A system call that turns brought by something else are spared.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&*self.inner.eventfd, &mut count);
    }

    /// True while a wake has not been taken.
    pub fn is_pending(&self) -> bool {
        self.inner.pending.load(Ordering::Acquire)
    }

    /// The descriptor that becomes readable, to be held by an operation.
    pub fn shared_fd(&self) -> Arc<OwnedFd> {
        self.inner.eventfd.clone()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wakes_are_taken_once() {
        let waker = Waker::new().unwrap();
        assert!(!waker.take());
        waker.wake();
        waker.clone().wake();
        assert!(waker.is_pending());
        assert!(waker.take());
        assert!(!waker.take());
        waker.wake();
        assert!(waker.take());
    }

    /// A wake that was taken by a driver that was awake leaves the descriptor readable, so that the next wake
    /// cannot be missed; draining ends that.
    #[test]
    fn only_draining_makes_it_unreadable() {
        let is_readable = |waker: &Waker| {
            let mut fds = [rustix::event::PollFd::new(waker, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap() == 1
        };
        let waker = Waker::new().unwrap();
        assert!(!is_readable(&waker));
        waker.wake();
        assert!(is_readable(&waker) && waker.take() && is_readable(&waker));
        waker.drain();
        assert!(!is_readable(&waker));
        waker.wake();
        waker.drain();
        assert!(waker.take(), "what was queued is seen although the descriptor is drained");
    }
}
