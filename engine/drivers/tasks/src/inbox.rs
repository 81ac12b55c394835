//! Where the tasks leave what has come of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ringseed_engine::io::{Completion, Op, OpId};

/// What a task tells the loop.
pub(crate) enum Event<S> {
    Done(Completion),
    Connected(OpId, std::io::Result<S>),
    Accepted(S, SocketAddr),
    /// The disk threads have to do it after all.
    Redo(Op),
}

/// Filled by tasks, emptied by the loop, all on one thread. Bounded by the operations in flight and the
/// listeners' backlogs.
pub(crate) struct Inbox<S> {
    events: RefCell<VecDeque<Event<S>>>,
    reader: RefCell<Option<Waker>>,
    tasks: Cell<usize>,
}

impl<S> Default for Inbox<S> {
    fn default() -> Inbox<S> {
        Inbox { events: RefCell::default(), reader: RefCell::default(), tasks: Cell::new(0) }
    }
}

impl<S> Inbox<S> {
    pub(crate) fn post(&self, event: Event<S>) {
        self.events.borrow_mut().push_back(event);
        self.wake_reader();
    }

    pub(crate) fn pop(&self) -> Option<Event<S>> {
        self.events.borrow_mut().pop_front()
    }

    /// True when there is nothing; `waker` is then told of the next event.
    pub(crate) fn is_empty_else_wake(&self, waker: &Waker) -> bool {
        let mut reader = self.reader.borrow_mut();
        if !reader.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *reader = Some(waker.clone());
        }
        self.events.borrow().is_empty()
    }

    /// Counts a task until what this returns is dropped.
    pub(crate) fn count_task(self: &Rc<Self>) -> Counted<S> {
        self.tasks.set(self.tasks.get() + 1);
        Counted(self.clone())
    }

    /// Ends when no task is left.
    pub(crate) async fn wait_for_tasks(&self) {
        poll_fn(|cx| {
            *self.reader.borrow_mut() = Some(cx.waker().clone());
            if self.tasks.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn wake_reader(&self) {
        if let Some(reader) = &*self.reader.borrow() {
            reader.wake_by_ref();
        }
    }
}

/// A task that runs.
pub(crate) struct Counted<S>(Rc<Inbox<S>>);

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.0.tasks.set(self.0.tasks.get() - 1);
        if self.0.tasks.get() == 0 {
            self.0.wake_reader();
        }
    }
}
