//! The driver for where io_uring is forbidden, as containers do by default: sockets that never wait
//! under epoll, files on the disk threads.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ringseed_sys::buf::{try_recv, try_send};
use ringseed_sys::net::{self, Blocking};
use ringseed_sys::wake::Waker;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use super::disk::{FileOps, canceled, refuse};
use super::{
    ACCEPT_PAUSE, Completion, Done, Machine, MovedSock, Op, OpId, Ops, RecvBuf, SendBuf, SockId,
};

/// Events taken per call.
const EVENTS_MAX: usize = 256;

/// Connections accepted per turn, so that a flood of them leaves room for the rest.
const ACCEPTS_PER_TURN: usize = 64;

/// Event data of the driver's own descriptors; sockets carry their id.
const DATA_WAKE: u64 = u64::MAX;
/// The listeners are below it, the first one right below; no socket ever gets so far.
const DATA_LISTEN: u64 = u64::MAX - 1;
/// How many there may be.
const LISTENERS_MAX: u64 = 1 << 16;

/// Runs one [`Machine`] on one thread.
pub struct EpollDriver {
    epoll: OwnedFd,
    waker: Waker,
    files: FileOps,
    sockets: HashMap<SockId, Socket>,
    listeners: Vec<OwnedFd>,
    /// Which listeners wait for descriptors, and until when.
    paused: BTreeMap<usize, Instant>,
    /// When connections in progress are given up.
    deadlines: BTreeSet<(Instant, SockId)>,
    next_sock: u64,
    done: VecDeque<Completion>,
}

struct Socket {
    fd: OwnedFd,
    connecting: Option<(OpId, Instant)>,
    reads: VecDeque<Reading>,
    /// With the bytes of it that are sent.
    sends: VecDeque<(OpId, SendBuf, usize)>,
}

enum Reading {
    Poll(OpId),
    Recv(OpId, RecvBuf),
}

impl EpollDriver {
    /// Sets the driver up.
    ///
    /// # Errors
    /// What `epoll_create(2)` says, or that no thread could be started.
    pub fn new(waker: Waker, listeners: Vec<OwnedFd>) -> io::Result<EpollDriver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(DATA_WAKE);
        epoll::add(&epoll, &waker, data, epoll::EventFlags::IN)?;
        for listener in &listeners {
            rustix::io::ioctl_fionbio(listener, true)?;
        }
        let files = FileOps::start(&waker)?;
        let mut driver = EpollDriver {
            epoll,
            waker,
            files,
            sockets: HashMap::new(),
            listeners,
            paused: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_sock: 1,
            done: VecDeque::new(),
        };
        for at in 0..driver.listeners.len() {
            driver.watch_listener(at)?;
        }
        Ok(driver)
    }

    /// Runs the machine until it has stopped.
    ///
    /// # Errors
    /// What `epoll_wait(2)` says when epoll itself breaks.
    pub fn run(&mut self, machine: &mut dyn Machine) -> io::Result<()> {
        let mut ops = Ops::new();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
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
                debug_assert!(self.done.is_empty(), "stopped in flight");
                return Ok(());
            }
            self.wait(machine.poll_timeout(), &mut events)?;
            self.turn(machine, &mut events)?;
        }
    }

    fn wait(&self, timeout: Option<Instant>, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let first = self.deadlines.first().map(|&(at, _)| at);
        let until = timeout.into_iter().chain(first).chain(self.paused.values().copied()).min();
        let wait = match self.done.is_empty() {
            true => until.map(|until| until.saturating_duration_since(Instant::now())),
            false => Some(Duration::ZERO),
        };
        // Before Linux 5.11 the kernel counts milliseconds in an int.
        let wait = wait.map(|wait| wait.min(Duration::from_secs(3600)));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn turn(
        &mut self,
        machine: &mut dyn Machine,
        events: &mut Vec<epoll::Event>,
    ) -> io::Result<()> {
        let now = Instant::now();
        for event in events.drain(..) {
            match event.data.u64() {
                DATA_WAKE => self.waker.drain(),
                data if data > DATA_LISTEN - LISTENERS_MAX => {
                    self.accept((DATA_LISTEN - data) as usize)?;
                }
                sock => self.handle_event(SockId(sock), event.flags),
            }
        }
        let over = self.paused.iter().filter(|(_, until)| **until <= now).map(|(&at, _)| at);
        for at in over.collect::<Vec<_>>() {
            self.watch_listener(at)?;
        }
        while let Some(&(at, sock)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            self.end_connect(sock, Err(rustix::io::Errno::TIMEDOUT.into()));
        }
        if self.waker.take() {
            while let Some(completion) = self.files.next_done() {
                self.done.push_back(completion);
            }
            machine.handle_wake(now);
        }
        while let Some(completion) = self.done.pop_front() {
            machine.handle(completion, now);
        }
        Ok(())
    }

    /// Watches a listener, by its place among them.
    fn watch_listener(&mut self, at: usize) -> io::Result<()> {
        self.paused.remove(&at);
        let data = epoll::EventData::new_u64(DATA_LISTEN - at as u64);
        Ok(epoll::add(&self.epoll, &self.listeners[at], data, epoll::EventFlags::IN)?)
    }

    fn accept(&mut self, at: usize) -> io::Result<()> {
        let listener = &self.listeners[at];
        for _ in 0..ACCEPTS_PER_TURN {
            match net::accept(listener.as_fd(), Blocking::No) {
                Ok(Some(fd)) => {
                    net::prepare(fd.as_fd());
                    let Ok(peer) = net::peer_addr(fd.as_fd()) else { continue };
                    let sock = SockId(self.next_sock);
                    if watch(&self.epoll, fd.as_fd(), sock).is_err() {
                        continue; // out of watches, epoll(7): the peer sees a closed connection
                    }
                    self.next_sock += 1;
                    self.sockets.insert(sock, Socket::new(fd));
                    let done = Done::Accepted { sock, peer };
                    self.done.push_back(Completion { id: OpId(0), done });
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The connection stays in the backlog and the listener readable: watching on
                    // would spin.
                    super::warn_accept(&error);
                    epoll::delete(&self.epoll, listener)?;
                    self.paused.insert(at, Instant::now() + ACCEPT_PAUSE);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn handle_event(&mut self, sock: SockId, flags: epoll::EventFlags) {
        let Some(socket) = self.sockets.get_mut(&sock) else { return };
        let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        if socket.connecting.is_some() {
            if failed || flags.contains(epoll::EventFlags::OUT) {
                let result = net::connect_result(socket.fd.as_fd());
                self.end_connect(sock, result);
            }
            return;
        }
        if failed || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP) {
            socket.read(&mut self.done);
        }
        if failed || flags.contains(epoll::EventFlags::OUT) {
            socket.write(&mut self.done);
        }
    }

    fn start(&mut self, op: Op) {
        match op {
            Op::Connect { id, addr, timeout } => {
                if let Err(error) = self.connect(id, addr, timeout) {
                    self.refuse(Op::Connect { id, addr, timeout }, error);
                }
            }
            Op::PollIn { id, sock } => match self.sockets.get_mut(&sock) {
                Some(socket) => {
                    socket.reads.push_back(Reading::Poll(id));
                    socket.read(&mut self.done);
                }
                None => self.refuse(Op::PollIn { id, sock }, canceled()),
            },
            Op::Recv { id, sock, buf } => match self.sockets.get_mut(&sock) {
                Some(socket) => {
                    socket.reads.push_back(Reading::Recv(id, buf));
                    socket.read(&mut self.done);
                }
                None => self.refuse(Op::Recv { id, sock, buf }, canceled()),
            },
            Op::Send { id, sock, buf } => match self.sockets.get_mut(&sock) {
                Some(socket) => {
                    socket.sends.push_back((id, buf, 0));
                    socket.write(&mut self.done);
                }
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
                    socket.cancel(&mut self.done);
                }
            }
            on_files => self.done.extend(self.files.begin(on_files)),
        }
    }

    fn refuse(&mut self, op: Op, error: io::Error) {
        self.done.extend(refuse(op, error));
    }

    fn connect(&mut self, id: OpId, addr: SocketAddr, timeout: Duration) -> io::Result<()> {
        let fd = net::socket(addr, Blocking::No)?;
        let connected = net::connect(fd.as_fd(), addr)?;
        let sock = SockId(self.next_sock);
        watch(&self.epoll, fd.as_fd(), sock)?;
        self.next_sock += 1;
        let mut socket = Socket::new(fd);
        if connected {
            self.done.push_back(Completion { id, done: Done::Connected(Ok(sock)) });
        } else {
            let deadline = Instant::now() + timeout;
            socket.connecting = Some((id, deadline));
            self.deadlines.insert((deadline, sock));
        }
        self.sockets.insert(sock, socket);
        Ok(())
    }

    fn detach(&mut self, sock: SockId) -> io::Result<MovedSock> {
        let socket = self.sockets.remove(&sock).ok_or_else(canceled)?;
        debug_assert!(socket.reads.is_empty() && socket.sends.is_empty(), "work in flight");
        // It stays open, so that this epoll would go on telling of it.
        epoll::delete(&self.epoll, &socket.fd)?;
        Ok(MovedSock::from_fd(socket.fd))
    }

    fn attach(&mut self, moved: MovedSock) -> io::Result<SockId> {
        let fd = moved.into_fd()?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        let sock = SockId(self.next_sock);
        watch(&self.epoll, fd.as_fd(), sock)?;
        self.next_sock += 1;
        self.sockets.insert(sock, Socket::new(fd));
        Ok(sock)
    }

    fn end_connect(&mut self, sock: SockId, result: io::Result<()>) {
        let Some(socket) = self.sockets.get_mut(&sock) else { return };
        let Some((id, deadline)) = socket.connecting.take() else { return };
        self.deadlines.remove(&(deadline, sock));
        if result.is_err() {
            self.sockets.remove(&sock);
        }
        self.done.push_back(Completion { id, done: Done::Connected(result.map(|()| sock)) });
    }
}

impl Socket {
    fn new(fd: OwnedFd) -> Socket {
        Socket { fd, connecting: None, reads: VecDeque::new(), sends: VecDeque::new() }
    }

    /// Does what can be done without waiting. Events are edge-triggered, so that an idle socket costs
    /// nothing: everything is tried once when it is asked for and again at each edge.
    fn read(&mut self, done: &mut VecDeque<Completion>) {
        while let Some(reading) = self.reads.pop_front() {
            match reading {
                Reading::Poll(id) => match is_readable(self.fd.as_fd()) {
                    Ok(false) => return self.reads.push_front(Reading::Poll(id)),
                    result => {
                        let result = result.map(drop);
                        done.push_back(Completion { id, done: Done::Readable(result) });
                    }
                },
                Reading::Recv(id, mut buf) => match try_recv(self.fd.as_fd(), &mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                        self.reads.push_front(Reading::Recv(id, buf));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return self.reads.push_front(Reading::Recv(id, buf));
                    }
                    result => {
                        done.push_back(Completion { id, done: Done::Received(result, buf) });
                    }
                },
            }
        }
    }

    fn write(&mut self, done: &mut VecDeque<Completion>) {
        while let Some((id, buf, sent)) = self.sends.front_mut() {
            let result = match buf.len_bytes() {
                0 => Err(io::ErrorKind::InvalidInput.into()),
                total => match try_send(self.fd.as_fd(), buf, *sent) {
                    Ok(n) => {
                        *sent += n;
                        if *sent < total {
                            continue;
                        }
                        Ok(())
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(error) => Err(error),
                },
            };
            let completion = Completion { id: *id, done: Done::Sent(result, std::mem::take(buf)) };
            done.push_back(completion);
            self.sends.pop_front();
        }
    }

    fn cancel(self, done: &mut VecDeque<Completion>) {
        for reading in self.reads {
            done.push_back(match reading {
                Reading::Poll(id) => Completion { id, done: Done::Readable(Err(canceled())) },
                Reading::Recv(id, buf) => {
                    Completion { id, done: Done::Received(Err(canceled()), buf) }
                }
            });
        }
        for (id, buf, _) in self.sends {
            done.push_back(Completion { id, done: Done::Sent(Err(canceled()), buf) });
        }
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, sock: SockId) -> io::Result<()> {
    use epoll::EventFlags;
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    Ok(epoll::add(epoll, fd, epoll::EventData::new_u64(sock.0), flags)?)
}

fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
