//! The listener: a unix socket for our own user, or loopback TCP; a thread for each connection.
//!
//! A connection is read until no whole request is left, and only then are the replies written, all
//! in one go: the daemon sends `[request][flush]` together and gets `[reply][flush reply]` together.
//! A frame that began must end before a deadline, so must a write; between frames a daemon may be
//! silent for as long as it likes, because its mempool connection is.
//!
//! One connection at a time holds the *seat*: the right to make blocks. When it drops, the block that
//! it had executed and not committed is thrown away, and only then may another connection sit down.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tendermint_proto::v0_38::abci::{Request, Response, ResponseException, request, response};
use thiserror::Error;

use super::app::{Refusal, Shim};
use super::codec::{FrameBuffer, FrameError, put_frame, request_len_bytes_max};
use super::socket::{Socket, Stream};

/// Replies are written at the latest when so many bytes of them wait.
const REPLIES_LEN_BYTES_MAX: usize = 256 << 10;

/// Where to listen: `unix:PATH` or `tcp:ADDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// A unix socket that only our own user may open.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

impl FromStr for ListenAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || format!("{text}: expected unix:PATH or tcp:IP:PORT");
        let (kind, rest) = text.split_once(':').ok_or_else(expected)?;
        // The daemon's own spelling has two slashes.
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        match kind {
            "unix" if !rest.is_empty() => Ok(Self::Unix(rest.into())),
            "tcp" => rest.parse().map(Self::Tcp).map_err(|_| expected()),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for ListenAddr {
    /// The daemon's spelling (its `proxy_app`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(addr) => write!(f, "tcp://{addr}"),
        }
    }
}

/// Why the listener did not start.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Requests are trusted: they must come from this machine.
    #[error("{0} is no loopback address: whoever reaches the listener makes blocks")]
    NotLoopback(SocketAddr),
    /// Somebody listens there.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// A file of another kind lies there.
    #[error("{0} exists and is no socket")]
    NoSocket(PathBuf),
    /// The operating system refused.
    #[error("cannot listen on {addr}: {source}")]
    Io {
        /// Where.
        addr: String,
        /// Why.
        source: io::Error,
    },
}

/// Bounds of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; a daemon has four.
    pub connections_max: usize,
    /// From the first to the last byte of a frame, and for a write.
    pub frame_time_max: Duration,
    /// How long a connection waits for the seat: a daemon that was killed and started again may be
    /// faster than we are at finishing the block of its predecessor.
    pub seat_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8,
            frame_time_max: Duration::from_secs(10),
            seat_wait_max: Duration::from_secs(30),
        }
    }
}

/// A running listener. Dropping it stops it.
pub struct Listener {
    shared: Arc<Shared>,
    addr: ListenAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    shim: Shim,
    limits: Limits,
    on_fatal: Box<dyn Fn(&str) + Send + Sync>,
    stopping: AtomicBool,
    wake: OwnedFd,
    open: Mutex<BTreeMap<u64, Arc<Stream>>>,
    closed: Condvar,
    /// Who makes blocks.
    seat: Mutex<Option<u64>>,
    seat_freed: Condvar,
}

impl Listener {
    /// Listens on `addr` and serves `shim`. `on_fatal` is called when the application cannot go on (a
    /// failed disk, a panic): what is durable is not known then, and the process should end.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn start(
        addr: &ListenAddr,
        shim: Shim,
        limits: Limits,
        on_fatal: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self, ListenError> {
        let io = |source: io::Error| ListenError::Io { addr: addr.to_string(), source };
        let (socket, addr) = Socket::bind(addr)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| io(error.into()))?;
        let shared = Arc::new(Shared {
            shim,
            limits,
            on_fatal: Box::new(on_fatal),
            stopping: AtomicBool::new(false),
            wake,
            open: Mutex::default(),
            closed: Condvar::new(),
            seat: Mutex::default(),
            seat_freed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("abci-accept".into())
            .spawn(move || accept_loop(&of_thread, &socket))
            .map_err(io)?;
        Ok(Self { shared, addr, thread: Some(thread) })
    }

    /// Where it listens; a TCP port 0 was replaced by the port taken.
    pub fn addr(&self) -> &ListenAddr {
        &self.addr
    }

    /// Stops: requests that came are answered, nothing new is read, and it returns when every
    /// connection has ended. Idempotent.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        let _ = thread.join();
        let mut open = lock(&self.shared.open);
        open.values().for_each(|stream| stream.stop_reading());
        self.shared.seat_freed.notify_all();
        while !open.is_empty() {
            open = self.shared.closed.wait(open).expect("no panic under this lock");
        }
        drop(open);
        if let ListenAddr::Unix(path) = &self.addr {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under this lock")
}

fn accept_loop(shared: &Arc<Shared>, socket: &Socket) {
    for id in 0.. {
        let mut ready = [
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
            PollFd::new(&shared.wake, PollFlags::IN),
        ];
        let _ = poll(&mut ready, None);
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match socket.accept(shared.limits.frame_time_max) {
            Ok(stream) => open_connection(shared, id, stream),
            Err(error) => {
                // A connection that ended at once, or no descriptors left: neither is the daemon's
                // fault, and trying at full speed would burn a core.
                tracing::warn!(%error, "an ABCI connection was not taken");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn open_connection(shared: &Arc<Shared>, id: u64, stream: Stream) {
    let stream = Arc::new(stream);
    {
        let mut open = lock(&shared.open);
        if open.len() >= shared.limits.connections_max {
            tracing::warn!(open = open.len(), "an ABCI connection too many is closed");
            return;
        }
        open.insert(id, Arc::clone(&stream));
    }
    let of_thread = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name(format!("abci-{id}")).spawn(move || {
        let mut connection = Connection::new(id, &of_thread, &stream);
        let ended = connection.run();
        tracing::debug!(id, %ended, "an ABCI connection ended");
        connection.leave_seat();
        stream.close();
        lock(&of_thread.open).remove(&id);
        of_thread.closed.notify_all();
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for an ABCI connection");
        lock(&shared.open).remove(&id);
    }
}

/// Why a connection ended.
#[derive(Debug, Error)]
enum Ended {
    #[error("the peer closed it")]
    ByPeer,
    #[error("a frame did not end in time")]
    Silent,
    #[error(transparent)]
    Broken(FrameError),
    #[error("it was refused")]
    Refused,
    #[error(transparent)]
    Io(io::Error),
}

struct Connection<'a> {
    id: u64,
    shared: &'a Shared,
    stream: &'a Stream,
    received: FrameBuffer,
    replies: Vec<u8>,
    /// Since when we wait for the rest of a frame.
    frame_began: Option<Instant>,
    has_timeout: bool,
    has_seat: bool,
}

impl<'a> Connection<'a> {
    fn new(id: u64, shared: &'a Shared, stream: &'a Stream) -> Self {
        let received = FrameBuffer::new(request_len_bytes_max);
        let replies = Vec::new();
        let (frame_began, has_timeout, has_seat) = (None, false, false);
        Self { id, shared, stream, received, replies, frame_began, has_timeout, has_seat }
    }

    fn run(&mut self) -> Ended {
        loop {
            let answered = self.answer_all();
            if let Err(error) = self.write_replies() {
                return Ended::Io(error);
            }
            if let Err(ended) = answered {
                return ended;
            }
            if let Err(ended) = self.receive() {
                return ended;
            }
        }
    }

    /// Answers every request that is here as a whole.
    fn answer_all(&mut self) -> Result<(), Ended> {
        loop {
            match self.received.poll_message::<Request>() {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => {
                    self.frame_began = None;
                    self.answer(request)?;
                }
                Err(error) => {
                    self.reply(exception(error.to_string()));
                    return Err(Ended::Broken(error));
                }
            }
            if self.replies.len() >= REPLIES_LEN_BYTES_MAX {
                self.write_replies().map_err(Ended::Io)?;
            }
        }
    }

    fn answer(&mut self, request: Request) -> Result<(), Ended> {
        if makes_blocks(&request) && !self.has_seat {
            self.has_seat = self.take_seat();
            if !self.has_seat {
                self.reply(exception("another connection makes the blocks".into()));
                return Err(Ended::Refused);
            }
        }
        // A panic is a bug of ours, and the daemon learns it as an error; whether the application is
        // still whole cannot be known, so that the process ends.
        let shim = &self.shared.shim;
        let answer = catch_unwind(AssertUnwindSafe(|| shim.dispatch(request)));
        let (value, fatal) = match answer {
            Ok(Ok(value)) => (value, None),
            Ok(Err(refusal @ Refusal::Request(_))) => (exception(refusal.to_string()), None),
            Ok(Err(refusal @ Refusal::Application(_))) => {
                (exception(refusal.to_string()), Some(refusal.to_string()))
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                (exception(format!("panicked: {text}")), Some(text))
            }
        };
        self.reply(value);
        let Some(reason) = fatal else { return Ok(()) };
        let _ = self.write_replies();
        (self.shared.on_fatal)(&reason);
        Err(Ended::Refused)
    }

    fn reply(&mut self, value: response::Value) {
        if let response::Value::Exception(exception) = &value {
            tracing::warn!(error = exception.error, "an ABCI request is refused");
        }
        put_frame(&Response { value: Some(value) }, &mut self.replies);
    }

    fn write_replies(&mut self) -> io::Result<()> {
        let written = self.stream.write_all(&self.replies);
        self.replies.clear();
        self.replies.shrink_to(REPLIES_LEN_BYTES_MAX);
        written
    }

    /// Waits for bytes. A frame that has begun must be whole within the limit; no frame, no limit.
    fn receive(&mut self) -> Result<(), Ended> {
        loop {
            let mut wait = None;
            if self.received.is_mid_frame() {
                let began = *self.frame_began.get_or_insert_with(Instant::now);
                let left = self.shared.limits.frame_time_max.saturating_sub(began.elapsed());
                wait = Some(left).filter(|left| !left.is_zero());
                if wait.is_none() {
                    return Err(Ended::Silent);
                }
            }
            if wait.is_some() || self.has_timeout {
                self.stream.set_read_timeout(wait).map_err(Ended::Io)?;
                self.has_timeout = wait.is_some();
            }
            match self.stream.read(self.received.space()) {
                Ok(0) => return Err(Ended::ByPeer),
                Ok(len_bytes) => self.received.handle_received(len_bytes),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => return Err(Ended::Silent),
                    _ => return Err(Ended::Io(error)),
                },
            }
            return Ok(());
        }
    }

    fn take_seat(&self) -> bool {
        let deadline = Instant::now() + self.shared.limits.seat_wait_max;
        let mut seat = lock(&self.shared.seat);
        while seat.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shared.stopping.load(Ordering::SeqCst) {
                return false;
            }
            let waited = self.shared.seat_freed.wait_timeout(seat, left);
            seat = waited.expect("no panic under this lock").0;
        }
        *seat = Some(self.id);
        true
    }

    fn leave_seat(&mut self) {
        if std::mem::take(&mut self.has_seat) {
            // The application may be poisoned by a panic that was told already.
            let _ = catch_unwind(AssertUnwindSafe(|| self.shared.shim.abandon()));
            *lock(&self.shared.seat) = None;
            self.shared.seat_freed.notify_one();
        }
    }
}

/// Whether only the holder of the seat may ask this.
fn makes_blocks(request: &Request) -> bool {
    use request::Value::*;
    matches!(
        request.value,
        Some(InitChain(_) | PrepareProposal(_) | ProcessProposal(_) | FinalizeBlock(_) | Commit(_))
    )
}

fn exception(error: String) -> response::Value {
    response::Value::Exception(ResponseException { error })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into())
}
