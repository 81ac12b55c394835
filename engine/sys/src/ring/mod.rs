//! A thin reactor over io_uring: tasks in, outcomes out.
//!
//! One table of slots owns every buffer from the start of its task until the kernel has said that it
//! is done with it; nothing else can touch or free the memory meanwhile. A completion names slot and
//! generation. Dropping a [`Ring`] cancels what is in flight and waits for it.

mod setup;
mod slot;
#[cfg(test)]
mod tests;
mod zero_copy;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::arena::{Arena, Extent, ExtentMut};
use crate::buf::{RecvBuf, SendBuf};
use crate::file::{DataFile, Part, ReadPath};

pub use setup::{Operation, RingError, RingMode, operations};
use slot::{Active, Kept, Slots};
use zero_copy::ZeroCopy;
pub use zero_copy::ZeroCopyState;

/// What the kernel is asked to do. Everything it needs is moved in and comes back with the
/// [`Outcome`].
#[derive(Debug)]
#[allow(missing_docs, reason = "as in the operations of the engine, which these carry out")]
pub enum Task {
    /// Accepts connections until it fails or is cancelled; an [`Outcome::Accepted`] for each.
    Accept { listener: Arc<OwnedFd> },
    /// Connects a socket that waits, or gives up at the deadline with `ETIMEDOUT`.
    Connect { socket: Arc<OwnedFd>, addr: SocketAddr, deadline: Instant },
    /// Waits until there is something to read, or the other end is gone.
    PollIn { fd: Arc<OwnedFd> },
    /// Receives what is there, at least one byte, or all of it within [`RecvBuf::fill_max`].
    Recv { socket: Arc<OwnedFd>, buf: RecvBuf },
    /// Sends everything.
    Send { socket: Arc<OwnedFd>, buf: SendBuf },
    /// Reads into an extent, short only at the end of the file.
    Read { file: Arc<DataFile>, offset_bytes: u64, buf: ExtentMut, start: usize, len: usize },
    /// Writes from an extent, everything.
    Write { file: Arc<DataFile>, offset_bytes: u64, buf: Extent, start: usize, len: usize },
    /// `fdatasync(2)`.
    Sync { file: Arc<DataFile> },
}

/// What came of a [`Task`], and its buffer.
#[derive(Debug)]
#[allow(missing_docs, reason = "as in the completions of the engine")]
pub enum Outcome {
    /// A connection, or why accepting has ended (after an error it has).
    Accepted(io::Result<OwnedFd>),
    Connected(io::Result<()>),
    Readable(io::Result<()>),
    Received(io::Result<usize>, RecvBuf),
    Sent(io::Result<()>, SendBuf),
    Read(io::Result<(usize, ReadPath)>, ExtentMut),
    Written(io::Result<()>, Extent),
    Synced(io::Result<()>),
}

/// One finished task.
#[derive(Debug)]
pub struct Finished {
    /// The token given with the task.
    pub token: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// Names a task in flight, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// The reactor. It stays on the thread that made it.
pub struct Ring {
    ring: IoUring,
    mode: RingMode,
    slots: Slots,
    /// Completions taken from the kernel and not looked at yet.
    arrived: VecDeque<(u64, i32, u32)>,
    ready: VecDeque<Finished>,
    /// When connections in progress are given up.
    deadlines: BTreeSet<(Instant, u64)>,
    fixed: Option<Fixed>,
    accept_multishot: bool,
    zero_copy: ZeroCopy,
    /// Sends that are reported and still read by the kernel, by the name of the slot they had.
    kept: HashMap<u64, Kept>,
}

/// The part of the arena that is registered as buffer 0.
struct Fixed {
    base: usize,
    len_bytes: usize,
    _arena: Arena,
}

/// `user_data` of cancellations, whose own completion says nothing.
const CANCEL_DATA: u64 = u64::MAX;

/// How long dropping a ring waits for what cannot be cancelled, a transfer on a dying disk.
const DRAIN_MAX: Duration = Duration::from_secs(10);

impl Ring {
    /// Sets a ring up for `entries` submissions at a time, with the best flags that the kernel takes.
    ///
    /// # Errors
    /// [`RingError`] tells "forbidden" from "no memory" and "too old".
    pub fn new(entries: u32) -> Result<Ring, RingError> {
        let (ring, mode) = setup::build(entries)?;
        Ok(Ring::over(ring, mode))
    }

    /// A ring with these very flags: what an older kernel would give.
    #[cfg(test)]
    fn with_mode(entries: u32, mode: RingMode) -> io::Result<Ring> {
        Ok(Ring::over(setup::build_as(entries, mode)?, mode))
    }

    fn over(ring: IoUring, mode: RingMode) -> Ring {
        Ring {
            ring,
            mode,
            slots: Slots::default(),
            arrived: VecDeque::new(),
            ready: VecDeque::new(),
            deadlines: BTreeSet::new(),
            fixed: None,
            accept_multishot: true,
            zero_copy: ZeroCopy::default(),
            kept: HashMap::new(),
        }
    }

    /// Sends long buffers without copying them from now on (`IORING_OP_SENDMSG_ZC`, Linux 6.1), for as
    /// long as that is what the kernel does. A send is reported when the socket has taken it; its
    /// buffer stays the kernel's until the other end has it. `false`: this kernel has no such operation.
    pub fn use_zero_copy(&mut self) -> bool {
        let mut probe = io_uring::Probe::new();
        let is_there = self.ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::SendMsgZc::CODE);
        if is_there {
            self.zero_copy.turn_on();
        }
        is_there
    }

    /// Whether sends go without copying, and why not.
    pub fn zero_copy(&self) -> ZeroCopyState {
        self.zero_copy.state()
    }

    /// Which flags the kernel took.
    pub fn mode(&self) -> RingMode {
        self.mode
    }

    /// Registers the first `len_max_bytes` of the arena, which are the ones used most, so that
    /// transfers from and to files need not pin them each time. Halves while the memlock limit
    /// forbids it (it is one for all processes of the user), then goes without. Returns the bytes
    /// registered. The registered pages are touched now.
    pub fn register_arena(&mut self, arena: &Arena, len_max_bytes: usize) -> usize {
        const REGISTER_MIN_BYTES: usize = 1 << 20;
        const REGISTER_MAX_BYTES: usize = 1 << 30; // per buffer, io_uring_register(2)
        if self.fixed.is_some() {
            return 0;
        }
        let (base, arena_len_bytes) = arena.region();
        let mut len_bytes = arena_len_bytes.min(len_max_bytes).min(REGISTER_MAX_BYTES);
        while len_bytes >= REGISTER_MIN_BYTES {
            let vec = libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len_bytes };
            // SAFETY: the range lies in the arena's mapping, which `fixed` keeps alive for as long
            // as the ring.
            if unsafe { self.ring.submitter().register_buffers(&[vec]) }.is_ok() {
                let base = base.as_ptr() as usize;
                self.fixed = Some(Fixed { base, len_bytes, _arena: arena.clone() });
                return len_bytes;
            }
            len_bytes /= 2;
        }
        0
    }

    /// Starts a task; its outcome will carry `token`. Nothing reaches the kernel before
    /// [`Ring::wait`] or a full queue.
    pub fn start(&mut self, token: u64, task: Task) -> Ticket {
        let mut active = Active::new(token, task);
        let args = active.wants_args().then(|| self.slots.take_args());
        if let Err(error) = active.prepare(args) {
            let (finished, args) = active.finish(Err(error));
            self.slots.recycle(args);
            self.ready.push_back(finished);
            return Ticket(CANCEL_DATA);
        }
        let deadline = active.deadline();
        let data = self.slots.insert(active);
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, data));
        }
        self.arm(data);
        Ticket(data)
    }

    /// Asks for the end of a task. Its outcome still comes, with `ECANCELED` whatever the kernel did;
    /// a transfer from or to a file may have happened.
    pub fn cancel(&mut self, ticket: Ticket) {
        let Some(active) = self.slots.get_mut(ticket.0) else { return };
        if active.stop.is_none() {
            active.stop = Some(libc::ECANCELED);
            self.push_cancel(ticket.0);
        }
    }

    /// The next outcome, if one is there.
    pub fn next_finished(&mut self) -> Option<Finished> {
        self.ready.pop_front()
    }

    /// Tasks that the kernel still works on, and sends that it still reads from.
    pub fn in_flight(&self) -> usize {
        self.slots.len() + self.kept.len()
    }

    /// Submits what was started and waits for an outcome, until `deadline` at most. Returns at once
    /// when outcomes are there already.
    ///
    /// # Errors
    /// What `io_uring_enter(2)` says when the ring itself is broken.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        if !self.ready.is_empty() {
            self.enter(None)?;
        } else {
            let first = self.deadlines.first().map(|&(at, _)| at);
            let until = deadline.into_iter().chain(first).min();
            let wait = match until {
                Some(until) => Wait::AtMost(until.saturating_duration_since(Instant::now())),
                None => Wait::Forever,
            };
            self.enter(Some(wait))?;
        }
        self.process();
        self.expire(Instant::now());
        Ok(())
    }

    fn enter(&mut self, wait: Option<Wait>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let result = match wait {
            None => submitter.submit(),
            Some(Wait::Forever) => submitter.submit_and_wait(1),
            Some(Wait::AtMost(duration)) => {
                let spec = Timespec::from(duration);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&spec))
            }
        };
        self.collect();
        match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => Ok(()),
            // The time is over, a signal came, or the completion queue was full and is empty now.
            Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY), _)) => Ok(()),
            Err((Some(libc::EAGAIN), _)) => {
                // The kernel is out of request memory: give it a moment rather than spin.
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    fn collect(&mut self) {
        for entry in self.ring.completion() {
            self.arrived.push_back((entry.user_data(), entry.result(), entry.flags()));
        }
    }

    fn process(&mut self) {
        while let Some((data, result, flags)) = self.arrived.pop_front() {
            if data != CANCEL_DATA {
                self.handle(data, result, flags);
            }
        }
    }

    /// Takes in one completion: the task goes on or ends.
    fn handle(&mut self, data: u64, result: i32, flags: u32) {
        if cqueue::notif(flags) {
            return self.handle_notice(data, result);
        }
        let Some(active) = self.slots.get_mut(data) else {
            debug_assert!(false, "completion for no task");
            return;
        };
        if matches!(active.task, Task::Accept { .. }) {
            return self.handle_accept(data, result, flags);
        }
        if cqueue::more(flags) {
            active.notices_due += 1;
        }
        let stop = active.stop;
        if stop.is_none() && result == -libc::EINTR {
            return self.arm(data);
        }
        if stop.is_none()
            && result == -libc::ECANCELED
            && let Some(until) = active.fill_until.take()
        {
            // Its time was over before the first byte.
            self.deadlines.remove(&(until, data));
            return self.arm(data);
        }
        if stop.is_none() && active.is_zero_copy && self.zero_copy.is_refusal(-result) {
            return self.arm(data); // by copying
        }
        let result = match usize::try_from(result) {
            Ok(n) => Ok(n),
            Err(_) => Err(-result),
        };
        let result = match stop {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => match active.advance(result) {
                slot::Next::Again => return self.arm(data),
                slot::Next::Done(n) => Ok(n),
                slot::Next::Failed(error) => Err(error),
            },
        };
        self.finish(data, result);
    }

    fn handle_accept(&mut self, data: u64, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        let Some(active) = self.slots.get_mut(data) else { return };
        let (token, stop) = (active.token, active.stop);
        if result >= 0 {
            // SAFETY: the kernel made this descriptor for this completion; nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(result) };
            if stop.is_none() {
                self.ready.push_back(Finished { token, outcome: Outcome::Accepted(Ok(fd)) });
                if !more {
                    self.arm(data); // ended by itself, or the kernel knows no multishot
                }
                return;
            }
        } else if stop.is_none() && !more {
            if result == -libc::EINVAL && self.accept_multishot {
                self.accept_multishot = false; // before Linux 5.19
                return self.arm(data);
            }
            if result == -libc::EINTR {
                return self.arm(data);
            }
        }
        if !more {
            let errno = stop.unwrap_or(-result);
            self.finish(data, Err(io::Error::from_raw_os_error(errno)));
        }
    }

    /// The kernel no longer reads the buffer of a zero-copy send.
    fn handle_notice(&mut self, data: u64, result: i32) {
        self.zero_copy.count_notice(result);
        if let Some(active) = self.slots.get_mut(data) {
            active.notices_due -= 1;
        } else if let Some(kept) = self.kept.get_mut(&data) {
            kept.notices_due -= 1;
            if kept.notices_due == 0 {
                let kept = self.kept.remove(&data).expect("just seen");
                self.slots.recycle(kept.args);
            }
        }
    }

    fn finish(&mut self, data: u64, result: io::Result<usize>) {
        let Some(active) = self.slots.remove(data) else { return };
        if active.notices_due > 0 {
            let (finished, kept) = active.finish_early(result);
            self.kept.insert(data, kept);
            self.ready.push_back(finished);
            return;
        }
        if let Some(deadline) = active.deadline() {
            self.deadlines.remove(&(deadline, data));
        }
        let (finished, args) = active.finish(result);
        self.slots.recycle(args);
        self.ready.push_back(finished);
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, data)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            let Some(active) = self.slots.get_mut(data) else { continue };
            if active.stop.is_some() {
                continue;
            }
            match active.wait_again(now) {
                // Cancelled it reports what it has. One that the kernel is just working on may not be found.
                Some(again) => _ = self.deadlines.insert((again, data)),
                None => active.stop = Some(libc::ETIMEDOUT),
            }
            self.push_cancel(data);
        }
    }

    /// Hands the task, or what is left of it, to the kernel.
    fn arm(&mut self, data: u64) {
        let multishot = self.accept_multishot;
        let zero_copy = self.zero_copy;
        let Some(active) = self.slots.get_mut(data) else { return };
        let args = active.args.as_mut();
        let part = active.part;
        let entry = match &mut active.task {
            Task::Accept { listener } => {
                let fd = Fd(listener.as_raw_fd());
                if multishot {
                    opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
                } else {
                    let none = std::ptr::null_mut();
                    opcode::Accept::new(fd, none, none.cast()).flags(libc::SOCK_CLOEXEC).build()
                }
            }
            Task::Connect { socket, .. } => {
                let (addr, len) = args.expect("prepared").addr();
                opcode::Connect::new(Fd(socket.as_raw_fd()), addr, len).build()
            }
            Task::PollIn { fd } => {
                opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32).build()
            }
            Task::Recv { socket, .. } => {
                let header = args.expect("prepared").header();
                // WAITALL makes the kernel itself go on after a part of it.
                let flags = active.fill_until.map_or(0, |_| libc::MSG_WAITALL as u32);
                opcode::RecvMsg::new(Fd(socket.as_raw_fd()), header).flags(flags).build()
            }
            Task::Send { socket, buf } => {
                // WAITALL makes the kernel itself resume a short send.
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
                let header = args.expect("prepared").header();
                let fd = Fd(socket.as_raw_fd());
                active.is_zero_copy = zero_copy.is_for(buf);
                match active.is_zero_copy {
                    true => opcode::SendMsgZc::new(fd, header)
                        .ioprio(zero_copy::REPORT_USAGE)
                        .flags(flags)
                        .build(),
                    false => opcode::SendMsg::new(fd, header).flags(flags).build(),
                }
            }
            Task::Read { file, buf, .. } => {
                let fd = Fd(file.fd(part.direct).as_raw_fd());
                let address = slot::address_of_part(buf.address(), part);
                match is_fixed(&self.fixed, address, part) {
                    true => opcode::ReadFixed::new(fd, address, part.len as u32, 0)
                        .offset(part.offset_bytes)
                        .build(),
                    false => opcode::Read::new(fd, address, part.len as u32)
                        .offset(part.offset_bytes)
                        .build(),
                }
            }
            Task::Write { file, buf, .. } => {
                let fd = Fd(file.fd(part.direct).as_raw_fd());
                let address = slot::address_of_part(buf.address(), part);
                match is_fixed(&self.fixed, address, part) {
                    true => opcode::WriteFixed::new(fd, address, part.len as u32, 0)
                        .offset(part.offset_bytes)
                        .build(),
                    false => opcode::Write::new(fd, address, part.len as u32)
                        .offset(part.offset_bytes)
                        .build(),
                }
            }
            Task::Sync { file } => opcode::Fsync::new(Fd(file.fd(false).as_raw_fd()))
                .flags(FsyncFlags::DATASYNC)
                .build(),
        };
        self.push(&entry.user_data(data));
    }

    fn push_cancel(&mut self, data: u64) {
        self.push(&opcode::AsyncCancel::new(data).build().user_data(CANCEL_DATA));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every address in the entry points into memory that the task's slot owns (or
            // to nothing), its range was checked by `Active::prepare`, and the slot is kept until
            // the completion of this very entry has been taken in.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // Completions that arrive meanwhile wait in `arrived`.
            self.enter(None).expect("io_uring_enter(2) refuses to take submissions");
        }
    }
}

enum Wait {
    Forever,
    AtMost(Duration),
}

fn is_fixed(fixed: &Option<Fixed>, address: *mut u8, part: Part) -> bool {
    fixed.as_ref().is_some_and(|fixed| {
        let at = address as usize;
        at >= fixed.base && at + part.len <= fixed.base + fixed.len_bytes
    })
}

impl Drop for Ring {
    fn drop(&mut self) {
        for data in self.slots.data_of_all() {
            self.cancel(Ticket(data));
        }
        let give_up = Instant::now() + DRAIN_MAX;
        while self.in_flight() > 0 && Instant::now() < give_up {
            self.ready.clear();
            if self.wait(Some(give_up)).is_err() {
                break;
            }
        }
        if self.in_flight() > 0 {
            // The kernel may still write into these buffers: leaked is better than freed.
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(std::mem::take(&mut self.kept));
            std::mem::forget(self.fixed.take());
        }
    }
}
