//! The sockets that a driver holds, and how closing one ends what waits on it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ringseed_engine::io::SockId;
use ringseed_engine::io::external::canceled;

/// A socket, shared by the table and the tasks that work on it.
pub(crate) struct Held<S> {
    pub(crate) socket: S,
    pub(crate) closed: Closed,
}

/// The sockets by their ids, which are never used twice.
pub(crate) struct Sockets<S> {
    held: HashMap<SockId, Rc<Held<S>>>,
    next: u64,
}

impl<S> Default for Sockets<S> {
    fn default() -> Sockets<S> {
        Sockets { held: HashMap::new(), next: 1 }
    }
}

impl<S> Sockets<S> {
    pub(crate) fn insert(&mut self, socket: S) -> SockId {
        let sock = SockId(self.next);
        self.next += 1;
        self.held.insert(sock, Rc::new(Held { socket, closed: Closed::default() }));
        sock
    }

    pub(crate) fn get(&self, sock: SockId) -> Option<Rc<Held<S>>> {
        self.held.get(&sock).cloned()
    }

    pub(crate) fn remove(&mut self, sock: SockId) -> Option<Rc<Held<S>>> {
        self.held.remove(&sock)
    }
}

/// Set once; ends everything that races with it.
#[derive(Default)]
pub(crate) struct Closed {
    is_set: Cell<bool>,
    next_seat: Cell<u64>,
    /// Whoever waits now: a poll or a receive, and a send.
    waiting: RefCell<Vec<(u64, Waker)>>,
}

impl Closed {
    /// Ends what waits; true when something did.
    pub(crate) fn set(&self) -> bool {
        self.is_set.set(true);
        let waiting = self.waiting.take();
        let found = !waiting.is_empty();
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
        found
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.get()
    }

    /// What comes of `work`, or `ECANCELED` when this is set first: then `work` is dropped where it is.
    pub(crate) async fn race<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut work = pin!(work);
        let number = self.next_seat.get();
        self.next_seat.set(number + 1);
        let seat = Seat { closed: self, number };
        poll_fn(|cx| {
            if self.is_set.get() {
                return Poll::Ready(Err(canceled()));
            }
            let polled = work.as_mut().poll(cx);
            if polled.is_pending() {
                seat.wait(cx.waker());
            }
            polled
        })
        .await
    }
}

/// One that races.
struct Seat<'a> {
    closed: &'a Closed,
    number: u64,
}

impl Seat<'_> {
    fn wait(&self, waker: &Waker) {
        let mut waiting = self.closed.waiting.borrow_mut();
        match waiting.iter_mut().find(|(number, _)| *number == self.number) {
            Some((_, known)) => known.clone_from(waker),
            None => waiting.push((self.number, waker.clone())),
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.closed.waiting.borrow_mut().retain(|(number, _)| *number != self.number);
    }
}
