//! What drivers on a runtime of tasks have in common.
//!
//! [`run`] runs one [`Machine`] as one task of a [`Runtime`]: each operation on a socket becomes a task of its
//! own, operations on files go to the disk threads (writes to the runtime, where it has them), and what has come of them lands in an inbox. The
//! loop sleeps until the inbox fills, the machine's deadline passes, or its eventfd is written to; it asks
//! for nothing by the clock.
//!
//! A socket that is closed takes its operations with it: each of them is dropped where it waits and answered
//! with `ECANCELED`. So a [`Runtime`] must bear that a future of its is dropped at any time.
#![forbid(unsafe_code)]

mod inbox;
mod table;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ringseed_engine::io::external::{FileOps, canceled, refuse};
use ringseed_engine::io::{
    ACCEPT_PAUSE, Completion, Done, Machine, MovedSock, Op, OpId, Ops, RECV_SLOTS_MAX, RecvBuf,
    SEND_PARTS_MAX, SendBuf, warn_accept,
};
use ringseed_sys::arena::Extent;
use ringseed_sys::file::WritePart;
use ringseed_sys::wake::Waker;

use inbox::{Event, Inbox};
use table::{Closed, Held, Sockets};

/// A future that nobody names.
type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

/// An executor of one thread, and its network. Cheap to clone.
#[allow(async_fn_in_trait, reason = "everything stays on the thread of the driver")]
pub trait Runtime: Clone + 'static {
    /// A connected socket.
    type Socket: 'static;
    /// A bound socket that takes connections.
    type Listener: 'static;

    /// Runs a task beside the others.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Ends when the time has come.
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + 'static;

    /// Ends when the waker of the driver is readable, or soon after it was: the driver looks itself.
    fn woken(&self) -> impl Future<Output = io::Result<()>> + 'static;

    /// Takes a listener over.
    ///
    /// # Errors
    /// That the system does not allow it.
    fn listener(&self, fd: OwnedFd) -> io::Result<Self::Listener>;

    /// Takes a connection, and tells whose it is.
    ///
    /// # Errors
    /// What `accept(2)` says: the driver pauses.
    async fn accept(&self, listener: &Self::Listener) -> io::Result<(Self::Socket, SocketAddr)>;

    /// Connects.
    ///
    /// # Errors
    /// What `connect(2)` says, `ETIMEDOUT` after `timeout`.
    async fn connect(&self, addr: SocketAddr, timeout: Duration) -> io::Result<Self::Socket>;

    /// Ends when there is something to receive, or the other end is gone.
    ///
    /// # Errors
    /// What the system says.
    async fn readable(&self, socket: &Self::Socket) -> io::Result<()>;

    /// Receives what is there into the slots of `buf`, which have been checked: at least one byte, and no more
    /// than they hold; 0 when the other end has closed.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    async fn receive(&self, socket: &Self::Socket, buf: &mut RecvBuf) -> io::Result<usize>;

    /// Sends all parts of `buf`, which have been checked.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    async fn send(&self, socket: &Self::Socket, buf: &SendBuf) -> io::Result<()>;

    /// Whether [`Runtime::write`] is there; else the disk threads write.
    const WRITES: bool = false;

    /// Writes all of a stretch of `buf`.
    ///
    /// # Errors
    /// What `pwrite(2)` says.
    async fn write(&self, _part: WritePart, _buf: &Extent) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Called when a socket is closed while operations wait on it: those futures are dropped next.
    fn hang_up(&self, socket: &Self::Socket);

    /// A descriptor of the socket, which goes to another driver; nothing waits on it.
    ///
    /// # Errors
    /// That no descriptor is left.
    fn detach(&self, socket: &Self::Socket) -> io::Result<OwnedFd>;

    /// Takes a connected socket over that another driver may have had.
    ///
    /// # Errors
    /// What the system says.
    fn attach(&self, fd: OwnedFd) -> io::Result<Self::Socket>;
}

/// Runs the machine until it has stopped. To be called inside the runtime.
///
/// # Errors
/// What breaks the driver itself.
pub async fn run<R: Runtime>(
    runtime: R,
    waker: Waker,
    listeners: Vec<OwnedFd>,
    machine: &mut dyn Machine,
) -> io::Result<()> {
    let files = FileOps::start(&waker)?;
    let mut driver = Driver {
        woken: Box::pin(runtime.woken()),
        runtime,
        waker,
        files,
        inbox: Rc::default(),
        sockets: Sockets::default(),
        done: VecDeque::new(),
        stopping: Rc::default(),
    };
    for listener in listeners {
        let listener = driver.runtime.listener(listener)?;
        driver.accept_on(listener);
    }
    let ran = driver.run(machine).await;
    driver.stopping.set();
    driver.inbox.wait_for_tasks().await;
    ran
}

struct Driver<R: Runtime> {
    runtime: R,
    waker: Waker,
    /// The runtime's wait for the waker, kept from turn to turn.
    woken: Boxed<io::Result<()>>,
    files: FileOps,
    inbox: Rc<Inbox<R::Socket>>,
    sockets: Sockets<R::Socket>,
    done: VecDeque<Completion>,
    /// Ends the tasks that accept.
    stopping: Rc<Closed>,
}

impl<R: Runtime> Driver<R> {
    async fn run(&mut self, machine: &mut dyn Machine) -> io::Result<()> {
        let mut ops = Ops::new();
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
            let was_woken = self.wait(machine.poll_timeout()).await?;
            self.turn(machine, was_woken);
        }
    }

    /// Lets the tasks run, and waits until something is to be done; true when the waker may be readable.
    async fn wait(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        let mut must_yield = !self.done.is_empty() || self.waker.is_pending();
        let mut sleep = pin!(deadline.map(|at| self.runtime.sleep_until(at)));
        let (inbox, woken) = (&self.inbox, &mut self.woken);
        let was_woken = poll_fn(|cx| {
            if must_yield {
                // The others first: what is at hand here must not keep sockets waiting.
                must_yield = false;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Poll::Ready(result) = woken.as_mut().poll(cx) {
                return Poll::Ready(result.map(|()| true));
            }
            let is_due = !self.done.is_empty()
                || self.waker.is_pending()
                || !inbox.is_empty_else_wake(cx.waker())
                || sleep.as_mut().as_pin_mut().is_some_and(|sleep| sleep.poll(cx).is_ready());
            if is_due { Poll::Ready(Ok(false)) } else { Poll::Pending }
        })
        .await?;
        if was_woken {
            self.woken = Box::pin(self.runtime.woken());
        }
        Ok(was_woken)
    }

    /// Hands everything that has arrived to the machine.
    fn turn(&mut self, machine: &mut dyn Machine, was_woken: bool) {
        let now = Instant::now();
        while let Some(event) = self.inbox.pop() {
            let completion = self.completion_of(event);
            self.done.extend(completion);
        }
        if was_woken {
            // Whatever the flag says: the next wait would end at once again.
            self.waker.drain();
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
    }

    fn completion_of(&mut self, event: Event<R::Socket>) -> Option<Completion> {
        match event {
            Event::Redo(op) => self.files.begin(op),
            Event::Done(completion) => Some(completion),
            Event::Connected(id, result) => {
                let done = Done::Connected(result.map(|socket| self.sockets.insert(socket)));
                Some(Completion { id, done })
            }
            Event::Accepted(socket, peer) => {
                let sock = self.sockets.insert(socket);
                Some(Completion { id: OpId(0), done: Done::Accepted { sock, peer } })
            }
        }
    }

    fn start(&mut self, op: Op) {
        match op {
            Op::Connect { id, addr, timeout } => {
                let (runtime, inbox) = (self.runtime.clone(), self.inbox.clone());
                self.spawn(async move {
                    inbox.post(Event::Connected(id, runtime.connect(addr, timeout).await));
                });
            }
            Op::PollIn { id, sock } => match self.sockets.get(sock) {
                Some(held) => self.poll_in(id, held),
                None => self.refuse(Op::PollIn { id, sock }, canceled()),
            },
            Op::Recv { id, sock, mut buf } => match self.sockets.get(sock) {
                Some(held) => match check_slots(&mut buf) {
                    Ok(()) => self.receive(id, held, buf),
                    Err(error) => self.refuse(Op::Recv { id, sock, buf }, error),
                },
                None => self.refuse(Op::Recv { id, sock, buf }, canceled()),
            },
            Op::Send { id, sock, buf } => match self.sockets.get(sock) {
                Some(held) => match check_parts(&buf) {
                    Ok(()) => self.send(id, held, buf),
                    Err(error) => self.refuse(Op::Send { id, sock, buf }, error),
                },
                None => self.refuse(Op::Send { id, sock, buf }, canceled()),
            },
            Op::Detach { id, sock } => {
                let result = match self.sockets.remove(sock) {
                    Some(held) => self.runtime.detach(&held.socket).map(MovedSock::from_fd),
                    None => Err(canceled()),
                };
                self.done.push_back(Completion { id, done: Done::Detached(result) });
            }
            Op::Attach { id, moved } => {
                let result = moved.into_fd().and_then(|fd| self.runtime.attach(fd));
                let result = result.map(|socket| self.sockets.insert(socket));
                self.done.push_back(Completion { id, done: Done::Attached(result) });
            }
            Op::Close { sock } => {
                if let Some(held) = self.sockets.remove(sock)
                    && held.closed.set()
                {
                    self.runtime.hang_up(&held.socket);
                }
            }
            Op::Write { id, file, offset_bytes, buf, start, len } if R::WRITES => {
                let found = self.files.get(file);
                match found.and_then(|it| it.parts_to_write(offset_bytes, &buf, start, len)) {
                    Ok(parts) => {
                        self.write(parts, Op::Write { id, file, offset_bytes, buf, start, len });
                    }
                    Err(error) => {
                        self.refuse(Op::Write { id, file, offset_bytes, buf, start, len }, error);
                    }
                }
            }
            on_files => self.done.extend(self.files.begin(on_files)),
        }
    }

    fn refuse(&mut self, op: Op, error: io::Error) {
        self.done.extend(refuse(op, error));
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let counted = self.inbox.count_task();
        self.runtime.spawn(async move {
            task.await;
            drop(counted);
        });
    }

    fn poll_in(&self, id: OpId, held: Rc<Held<R::Socket>>) {
        let (runtime, inbox) = (self.runtime.clone(), self.inbox.clone());
        self.spawn(async move {
            let result = held.closed.race(runtime.readable(&held.socket)).await;
            inbox.post(Event::Done(Completion { id, done: Done::Readable(result) }));
        });
    }

    fn receive(&self, id: OpId, held: Rc<Held<R::Socket>>, mut buf: RecvBuf) {
        let (runtime, inbox) = (self.runtime.clone(), self.inbox.clone());
        self.spawn(async move {
            let result = held.closed.race(runtime.receive(&held.socket, &mut buf)).await;
            inbox.post(Event::Done(Completion { id, done: Done::Received(result, buf) }));
        });
    }

    fn send(&self, id: OpId, held: Rc<Held<R::Socket>>, buf: SendBuf) {
        let (runtime, inbox) = (self.runtime.clone(), self.inbox.clone());
        self.spawn(async move {
            let result = held.closed.race(runtime.send(&held.socket, &buf)).await;
            inbox.post(Event::Done(Completion { id, done: Done::Sent(result, buf) }));
        });
    }

    fn write(&self, parts: Vec<WritePart>, op: Op) {
        let (runtime, inbox) = (self.runtime.clone(), self.inbox.clone());
        self.spawn(async move {
            let Op::Write { ref buf, .. } = op else { unreachable!("only writes have parts") };
            for part in parts {
                let is_direct = part.is_direct;
                let Err(error) = runtime.write(part, buf).await else { continue };
                if is_direct && error.kind() == io::ErrorKind::InvalidInput {
                    // A file system that takes no direct transfers after all: the file learns it there.
                    return inbox.post(Event::Redo(op));
                }
                return inbox.post(Event::Done(refuse(op, error).expect("a write is answered")));
            }
            if let Op::Write { id, buf, .. } = op {
                inbox.post(Event::Done(Completion { id, done: Done::Written(Ok(()), buf) }));
            }
        });
    }

    fn accept_on(&self, listener: R::Listener) {
        let (runtime, inbox) = (self.runtime.clone(), self.inbox.clone());
        let stopping = self.stopping.clone();
        self.spawn(async move {
            loop {
                match stopping.race(runtime.accept(&listener)).await {
                    Ok((socket, peer)) => inbox.post(Event::Accepted(socket, peer)),
                    Err(_) if stopping.is_set() => return,
                    Err(error) => {
                        // The connection stays in the backlog: asking again at once would spin.
                        warn_accept(&error);
                        let pause = async {
                            runtime.sleep_until(Instant::now() + ACCEPT_PAUSE).await;
                            Ok(())
                        };
                        let _ = stopping.race(pause).await;
                    }
                }
            }
        });
    }
}

/// Refuses slots that lie outside their buffer before anything is received for them.
fn check_slots(buf: &mut RecvBuf) -> io::Result<()> {
    if buf.slots.len() > RECV_SLOTS_MAX || buf.len_bytes() == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    (0..buf.slots.len()).try_for_each(|index| buf.slot_mut(buf.slots[index]).map(drop))
}

/// Refuses parts that lie outside their buffer before anything is sent of them.
fn check_parts(buf: &SendBuf) -> io::Result<()> {
    if buf.parts.len() > SEND_PARTS_MAX || buf.len_bytes() == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    (0..buf.parts.len()).try_for_each(|index| buf.part(index).map(drop))
}

/// Buffers to receive into by those runtimes that cannot scatter: kept, because fresh memory is dear.
#[derive(Debug)]
pub struct Staging {
    len_bytes: usize,
    free: RefCell<Vec<Vec<u8>>>,
}

/// Most buffers kept. More are in use only while as many peers send at once.
const STAGING_KEPT_MAX: usize = 32;

impl Staging {
    /// Buffers of `len_bytes`.
    pub fn new(len_bytes: usize) -> Staging {
        Staging { len_bytes, free: RefCell::default() }
    }

    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        self.free.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(self.len_bytes))
    }

    /// Takes a buffer back.
    pub fn give_back(&self, mut buf: Vec<u8>) {
        buf.clear();
        let mut free = self.free.borrow_mut();
        if free.len() < STAGING_KEPT_MAX {
            free.push(buf);
        }
    }

    /// Length of a buffer in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}
