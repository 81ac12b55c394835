//! The default driver: sockets and payload files on one io_uring, everything slow on the disk threads.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES};
use ringseed_sys::file::DataFile;
use ringseed_sys::net::{self, Blocking};
use ringseed_sys::ring::{Finished, Outcome, Ring, RingError, Task, Ticket, ZeroCopyState};
use ringseed_sys::wake::Waker;

use super::disk::{DiskPool, Files, Job, Name, canceled, refuse};
use super::{
    ACCEPT_PAUSE, Completion, DISK_THREADS, Done, Machine, MovedSock, Op, OpId, Ops, SockId,
};

/// Submissions that fit into one call. More than a turn starts with thousands of peers cost one more
/// call and nothing else.
const RING_ENTRIES: u32 = 1024;

/// Most bytes of the arena that are registered with the kernel: registered pages are touched at once,
/// and the gain beyond the extents in constant use is lost in the noise (measured).
const REGISTER_MAX_BYTES: usize = 8 << 20;

/// Tokens below this are the driver's own.
const TOKEN_WAKE: u64 = 0;
/// The first listener; the others follow it.
const TOKEN_LISTEN: u64 = 1;

/// Runs one [`Machine`] on one thread.
pub struct UringDriver {
    ring: Ring,
    waker: Waker,
    disk: DiskPool,
    files: Files,
    /// Files to close, all of a turn in one job.
    closing: Vec<Arc<DataFile>>,
    sockets: HashMap<SockId, Socket>,
    listeners: Vec<Arc<OwnedFd>>,
    /// Which listeners wait for descriptors, and when to accept again after the process ran out of descriptors.
    paused: BTreeMap<usize, Instant>,
    /// What each token of the ring stands for.
    pending: HashMap<u64, Pending>,
    next_token: u64,
    next_sock: u64,
    done: VecDeque<Completion>,
    registered_bytes: usize,
    /// What the limits did not let it have.
    unregistered_bytes: usize,
    /// As it was when somebody was told.
    zero_copy: ZeroCopyState,
}

struct Socket {
    fd: Arc<OwnedFd>,
    /// At most a poll, a receive and a few sends.
    in_flight: Vec<(u64, Ticket)>,
}

struct Pending {
    id: OpId,
    on: On,
}

enum On {
    Sock(SockId),
    Connecting(Arc<OwnedFd>),
    File,
    /// A new file's name is synced behind it.
    Sync(Arc<DataFile>, Option<Arc<Name>>),
}

impl UringDriver {
    /// Sets up the ring on the calling thread, which then must call [`UringDriver::run`].
    ///
    /// # Errors
    /// [`RingError`]: the caller may take another driver.
    pub fn new(
        waker: Waker,
        listeners: Vec<OwnedFd>,
        arena: Option<&Arena>,
    ) -> Result<UringDriver, RingError> {
        let mut ring = Ring::new(RING_ENTRIES)?;
        let len_bytes = |arena: &Arena| arena.capacity() * EXTENT_LEN_BYTES;
        let wanted_bytes = arena.map_or(0, len_bytes).min(REGISTER_MAX_BYTES);
        let registered_bytes =
            arena.map_or(0, |arena| ring.register_arena(arena, REGISTER_MAX_BYTES));
        for listener in &listeners {
            // A ring wants sockets that wait, see `Blocking`.
            rustix::io::ioctl_fionbio(listener, false).map_err(|e| RingError::Io(e.into()))?;
        }
        let disk = DiskPool::start(DISK_THREADS, &waker).map_err(RingError::Io)?;
        Ok(UringDriver {
            ring,
            waker,
            disk,
            files: Files::default(),
            closing: Vec::new(),
            sockets: HashMap::new(),
            next_token: TOKEN_LISTEN + listeners.len() as u64,
            listeners: listeners.into_iter().map(Arc::new).collect(),
            paused: BTreeMap::new(),
            pending: HashMap::new(),
            next_sock: 1,
            done: VecDeque::new(),
            registered_bytes,
            unregistered_bytes: wanted_bytes.saturating_sub(registered_bytes),
            zero_copy: ZeroCopyState::Unused,
        })
    }

    /// How many bytes of buffers the kernel lets this ring have, and how many more it was to have: the memlock
    /// limit is one for all rings of a user.
    pub fn registered_bytes(&self) -> (usize, usize) {
        (self.registered_bytes, self.unregistered_bytes)
    }

    /// Sends long buffers without copying from now on, until the kernel says that it copies.
    pub fn use_zero_copy(&mut self) {
        if !self.ring.use_zero_copy() {
            tracing::warn!("this kernel cannot send without copying (Linux 6.1 or newer can)");
        }
        self.zero_copy = self.ring.zero_copy();
    }

    /// Says once when the kernel has made sends without copying pointless.
    fn watch_zero_copy(&mut self) {
        let state = self.ring.zero_copy();
        if std::mem::replace(&mut self.zero_copy, state) == state {
            return;
        }
        match state {
            ZeroCopyState::OffCopied => tracing::info!(
                "the kernel copies what is sent all the same (as on loopback): zero-copy sends are off"
            ),
            ZeroCopyState::OffRefused(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                tracing::warn!(%error, "zero-copy sends are refused and off; where it is memory, raise the memlock limit (ulimit -l, LimitMEMLOCK=)");
            }
            ZeroCopyState::Unused | ZeroCopyState::On => {}
        }
    }

    /// Which flags the ring runs with, and how much of the arena is registered with it.
    pub fn detail(&self) -> String {
        let zero_copy = match self.zero_copy {
            ZeroCopyState::On => ", zero-copy sends",
            _ => "",
        };
        let registered = self.registered_bytes >> 10;
        format!("{}, {registered} KiB of buffers registered{zero_copy}", self.ring.mode())
    }

    /// Runs the machine until it has stopped.
    ///
    /// # Errors
    /// What `io_uring_enter(2)` says when the ring itself breaks; the machine cannot go on then.
    pub fn run(&mut self, machine: &mut dyn Machine) -> io::Result<()> {
        let mut ops = Ops::new();
        self.ring.start(TOKEN_WAKE, Task::PollIn { fd: self.waker.shared_fd() });
        (0..self.listeners.len()).for_each(|at| self.accept(at));
        loop {
            let now = Instant::now();
            loop {
                machine.poll(&mut ops, now);
                if ops.is_empty() {
                    break;
                }
                while let Some(op) = ops.pop_front() {
                    self.start(op);
                }
            }
            if machine.is_stopped() {
                debug_assert!(self.pending.is_empty() && self.done.is_empty(), "stopped in flight");
                return Ok(());
            }
            if !self.closing.is_empty() {
                self.disk.push(Job::Close(std::mem::take(&mut self.closing)));
            }
            let is_busy = !self.done.is_empty() || self.waker.is_pending();
            let deadline = match is_busy {
                true => Some(now),
                false => {
                    machine.poll_timeout().into_iter().chain(self.paused.values().copied()).min()
                }
            };
            self.ring.wait(deadline)?;
            self.turn(machine);
        }
    }

    /// Hands everything that has arrived to the machine.
    fn turn(&mut self, machine: &mut dyn Machine) {
        let now = Instant::now();
        let over = self.paused.iter().filter(|(_, until)| **until <= now).map(|(&at, _)| at);
        over.collect::<Vec<_>>().into_iter().for_each(|at| self.accept(at));
        while let Some(finished) = self.ring.next_finished() {
            self.handle(finished);
        }
        if self.zero_copy == ZeroCopyState::On {
            self.watch_zero_copy();
        }
        if self.waker.take() {
            while let Some(report) = self.disk.try_report() {
                self.files.handle(report, &mut self.done);
            }
            machine.handle_wake(now);
        }
        if let Some(job) = self.files.next_naming() {
            self.disk.push(job);
        }
        while let Some(completion) = self.done.pop_front() {
            machine.handle(completion, now);
        }
    }

    /// Accepts on a listener, by its place among them.
    fn accept(&mut self, at: usize) {
        self.paused.remove(&at);
        let listener = self.listeners[at].clone();
        self.ring.start(TOKEN_LISTEN + at as u64, Task::Accept { listener });
    }

    fn start(&mut self, op: Op) {
        match op {
            Op::Connect { id, addr, timeout } => self.connect(id, addr, timeout),
            Op::PollIn { id, sock } => match self.socket(sock) {
                Some(fd) => self.start_on_sock(id, sock, Task::PollIn { fd }),
                None => self.refuse(Op::PollIn { id, sock }, canceled()),
            },
            Op::Recv { id, sock, buf } => match self.socket(sock) {
                Some(socket) => self.start_on_sock(id, sock, Task::Recv { socket, buf }),
                None => self.refuse(Op::Recv { id, sock, buf }, canceled()),
            },
            Op::Send { id, sock, buf } => match self.socket(sock) {
                Some(socket) => self.start_on_sock(id, sock, Task::Send { socket, buf }),
                None => self.refuse(Op::Send { id, sock, buf }, canceled()),
            },
            Op::Detach { id, sock } => {
                let result = self.detach(sock);
                self.done.push_back(Completion { id, done: Done::Detached(result) });
            }
            Op::Attach { id, moved } => {
                let result = self.attach(moved);
                self.done.push_back(Completion { id, done: Done::Attached(result) });
            }
            Op::Close { sock } => {
                if let Some(socket) = self.sockets.remove(&sock) {
                    for (_, ticket) in socket.in_flight {
                        self.ring.cancel(ticket);
                    }
                }
            }
            Op::Open { id, root, path, mode, direct } => {
                self.disk.push(Job::Open { id, root, path, mode, direct });
            }
            Op::Put {
                id,
                root,
                path,
                mode: _,
                direct,
                len_bytes,
                offset_bytes,
                buf,
                start,
                len,
            } => {
                // The ring would hand it to a thread of the kernel's, step by step.
                self.disk.push(Job::Put {
                    id,
                    root,
                    path,
                    direct,
                    len_bytes,
                    offset_bytes,
                    buf,
                    start,
                    len,
                });
            }
            Op::RemoveTree { id, root, path } => self.disk.push(Job::RemoveTree { id, root, path }),
            Op::Aside { id, job } => self.disk.push(Job::Aside { id, job }),
            Op::CloseFile { file } => self.closing.extend(self.files.close(file)),
            Op::Read { id, file, offset_bytes, buf, start, len } => match self.files.get(file) {
                Ok(found) => {
                    let file = found.clone();
                    let task = Task::Read { file, offset_bytes, buf, start, len };
                    self.start_on_file(id, task);
                }
                Err(error) => {
                    self.refuse(Op::Read { id, file, offset_bytes, buf, start, len }, error);
                }
            },
            Op::Write { id, file, offset_bytes, buf, start, len } => match self.files.get(file) {
                Ok(found) => {
                    let file = found.clone();
                    let task = Task::Write { file, offset_bytes, buf, start, len };
                    self.start_on_file(id, task);
                }
                Err(error) => {
                    self.refuse(Op::Write { id, file, offset_bytes, buf, start, len }, error);
                }
            },
            Op::WriteSmall { id, file, rows } => match self.files.get(file).cloned() {
                // As with `Put`; and a batch of leaves is thousands of rows.
                Ok(file) => self.disk.push(Job::WriteSmall { id, file, rows }),
                Err(error) => self.refuse(Op::WriteSmall { id, file, rows }, error),
            },
            Op::Sync { id, file } => match self.files.get(file).cloned() {
                Ok(found) => {
                    let on = On::Sync(found.clone(), self.files.new_name(file, id));
                    self.start_task(Pending { id, on }, Task::Sync { file: found });
                }
                Err(error) => self.refuse(Op::Sync { id, file }, error),
            },
            Op::Allocate { id, file, len_bytes } => match self.files.get(file).cloned() {
                Ok(file) => self.disk.push(Job::Allocate { id, file, len_bytes }),
                Err(error) => self.refuse(Op::Allocate { id, file, len_bytes }, error),
            },
        }
    }

    fn refuse(&mut self, op: Op, error: io::Error) {
        self.done.extend(refuse(op, error));
    }

    fn socket(&self, sock: SockId) -> Option<Arc<OwnedFd>> {
        self.sockets.get(&sock).map(|socket| socket.fd.clone())
    }

    fn connect(&mut self, id: OpId, addr: SocketAddr, timeout: Duration) {
        match net::socket(addr, Blocking::Yes) {
            Ok(fd) => {
                let socket = Arc::new(fd);
                let deadline = Instant::now() + timeout;
                let task = Task::Connect { socket: socket.clone(), addr, deadline };
                self.start_task(Pending { id, on: On::Connecting(socket) }, task);
            }
            Err(error) => self.refuse(Op::Connect { id, addr, timeout }, error),
        }
    }

    fn start_on_sock(&mut self, id: OpId, sock: SockId, task: Task) {
        let (token, ticket) = self.start_task(Pending { id, on: On::Sock(sock) }, task);
        if let Some(socket) = self.sockets.get_mut(&sock) {
            socket.in_flight.push((token, ticket));
        }
    }

    fn start_on_file(&mut self, id: OpId, task: Task) {
        self.start_task(Pending { id, on: On::File }, task);
    }

    fn start_task(&mut self, pending: Pending, task: Task) -> (u64, Ticket) {
        let token = self.next_token;
        self.next_token += 1;
        self.pending.insert(token, pending);
        (token, self.ring.start(token, task))
    }

    /// Turns what the ring brings into a completion.
    fn handle(&mut self, finished: Finished) {
        match (finished.token, finished.outcome) {
            (TOKEN_WAKE, _) => {
                self.waker.drain();
                self.ring.start(TOKEN_WAKE, Task::PollIn { fd: self.waker.shared_fd() });
            }
            (token, Outcome::Accepted(accepted)) => {
                self.handle_accepted((token - TOKEN_LISTEN) as usize, accepted);
            }
            (token, outcome) => {
                let pending = self.pending.remove(&token).expect("the ring answers each task once");
                let (outcome, on) = match (outcome, pending.on) {
                    (Outcome::Synced(Err(error)), On::Sync(file, _)) => {
                        return self.disk.push(Job::FailSync { id: pending.id, file, error });
                    }
                    (Outcome::Synced(Ok(())), On::Sync(file, Some(name))) => {
                        return self.files.data_is_synced(pending.id, file, name);
                    }
                    other => other,
                };
                let done = self.done_of(token, on, outcome);
                self.done.push_back(Completion { id: pending.id, done });
            }
        }
    }

    fn done_of(&mut self, token: u64, on: On, outcome: Outcome) -> Done {
        if let On::Sock(sock) = on
            && let Some(socket) = self.sockets.get_mut(&sock)
        {
            socket.in_flight.retain(|&(other, _)| other != token);
        }
        match outcome {
            Outcome::Connected(result) => Done::Connected(result.map(|()| {
                let On::Connecting(fd) = on else { unreachable!("only a connection connects") };
                self.insert_socket(fd)
            })),
            Outcome::Readable(result) => Done::Readable(result),
            Outcome::Received(result, buf) => Done::Received(result, buf),
            Outcome::Sent(result, buf) => Done::Sent(result, buf),
            Outcome::Read(result, buf) => Done::Read(result, buf),
            Outcome::Written(result, buf) => Done::Written(result, buf),
            Outcome::Synced(result) => Done::Synced(result),
            Outcome::Accepted(_) => unreachable!("only the listener accepts"),
        }
    }

    fn handle_accepted(&mut self, at: usize, accepted: io::Result<OwnedFd>) {
        let fd = match accepted {
            Ok(fd) => fd,
            Err(error) => {
                // The connection stays in the backlog: asking again at once would spin.
                super::warn_accept(&error);
                self.paused.insert(at, Instant::now() + ACCEPT_PAUSE);
                return;
            }
        };
        net::prepare(fd.as_fd());
        // Gone already: nobody misses it.
        let Ok(peer) = net::peer_addr(fd.as_fd()) else { return };
        let sock = self.insert_socket(Arc::new(fd));
        self.done.push_back(Completion { id: OpId(0), done: Done::Accepted { sock, peer } });
    }

    fn detach(&mut self, sock: SockId) -> io::Result<MovedSock> {
        let socket = self.sockets.remove(&sock).ok_or_else(canceled)?;
        debug_assert!(socket.in_flight.is_empty(), "given up with work in flight");
        // An operation that has just ended may still hold it for a moment.
        let fd = match Arc::try_unwrap(socket.fd) {
            Ok(fd) => fd,
            Err(shared) => shared.try_clone()?,
        };
        Ok(MovedSock::from_fd(fd))
    }

    fn attach(&mut self, moved: MovedSock) -> io::Result<SockId> {
        let fd = moved.into_fd()?;
        // A ring wants sockets that wait, see `Blocking`; the driver it comes from may be another kind.
        rustix::io::ioctl_fionbio(&fd, false)?;
        Ok(self.insert_socket(Arc::new(fd)))
    }

    fn insert_socket(&mut self, fd: Arc<OwnedFd>) -> SockId {
        let sock = SockId(self.next_sock);
        self.next_sock += 1;
        self.sockets.insert(sock, Socket { fd, in_flight: Vec::new() });
        sock
    }
}
