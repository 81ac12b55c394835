//! The driver on [`glommio`], chosen by `--io-driver glommio`.
//!
//! What goes which way, and why:
//!
//! - **Receives and sends** are tried at once and wait in the runtime's ring when they must, which is how the runtime's own
//!   streams do it. Those know one buffer per call; so that blocks land in place and leave from their extents,
//!   the calls here are `recvmsg(2)` and `sendmsg(2)` with the whole vector, and the runtime is asked to
//!   wait alone. A send that finds no room leaves its next bytes to a stream of the runtime.
//! - **Connecting** is the ring's, with a timeout linked to it. **Accepting** waits in the ring and then takes what is there.
//! - **Files** are on the disk threads, as under epoll: the runtime reads and writes direct files only with
//!   memory of its own, and a copy of every byte would cost more than the thread.
//!
//! The runtime has no wait for a descriptor of another's. What it has is a stream that begins to wait for
//! something to read the moment it is made; [`ready`] makes one for as long as a wait lasts, on a second
//! descriptor, because a stream closes its own.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::{LocalExecutorBuilder, Placement};
use ringseed_driver_tasks::Runtime;
use ringseed_engine::io::external::{ExternalDriver, Seat, check_io_uring};
use ringseed_engine::io::{RecvBuf, SendBuf};
use ringseed_sys::buf::{try_recv, try_send};
use ringseed_sys::net::{self, Blocking};
use ringseed_sys::wake::Waker;
use socket2::SockRef;

/// The driver.
pub const DRIVER: ExternalDriver = ExternalDriver { name: "glommio", run };

/// Memory for the runtime's own file I/O, which this driver does not use: the least that it takes.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// Bytes that a full socket is left with when it has room again: what a stream takes in one call.
const WAITING_SEND_MAX_BYTES: usize = 64 << 10;

fn run(mut seat: Seat) -> io::Result<()> {
    // The runtime panics where it may not set up a ring.
    check_io_uring()?;
    let executor =
        LocalExecutorBuilder::new(Placement::Unbound).io_memory(IO_MEMORY_BYTES).make()?;
    if seat.zero_copy_send {
        tracing::info!("glommio sends by copying, whatever was asked for");
    }
    let waker = seat.waker.clone();
    let listeners = std::mem::take(&mut seat.listeners);
    executor.run(async move {
        let detail = "glommio 0.9: sockets wait in its ring, disk threads for files";
        let mut machine = seat.begin(detail.to_owned());
        let here = Glommio { waker: waker.clone() };
        ringseed_driver_tasks::run(here, waker, listeners, &mut *machine).await
    })
}

/// The runtime, as the tasks see it.
#[derive(Clone)]
struct Glommio {
    waker: Waker,
}

impl Runtime for Glommio {
    type Socket = OwnedFd;
    type Listener = OwnedFd;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + 'static {
        let left = at.saturating_duration_since(Instant::now());
        async move {
            if !left.is_zero() {
                glommio::timer::Timer::new(left).await;
            }
        }
    }

    fn woken(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let eventfd: Arc<OwnedFd> = self.waker.shared_fd();
        // An eventfd is no socket, and says so when a stream reads it: that is when it was written to.
        async move { ready(&*eventfd).await.map(drop) }
    }

    fn listener(&self, fd: OwnedFd) -> io::Result<OwnedFd> {
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    }

    async fn accept(&self, listener: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
        loop {
            match net::accept(listener.as_fd(), Blocking::No)? {
                Some(fd) => {
                    net::prepare(fd.as_fd());
                    // Gone already: nobody misses it.
                    let Ok(peer) = net::peer_addr(fd.as_fd()) else { continue };
                    return Ok((fd, peer));
                }
                // A listener is not connected, and says so when a stream reads it.
                None => drop(ready(listener).await?),
            }
        }
    }

    async fn connect(&self, addr: SocketAddr, timeout: Duration) -> io::Result<OwnedFd> {
        let stream = TcpStream::connect_timeout(addr, timeout).await?;
        let fd = std::net::TcpStream::from(SockRef::from(&stream).try_clone()?).into();
        self.attach(fd)
    }

    async fn readable(&self, socket: &OwnedFd) -> io::Result<()> {
        ready(socket).await?
    }

    async fn receive(&self, socket: &OwnedFd, buf: &mut RecvBuf) -> io::Result<usize> {
        loop {
            match try_recv(socket.as_fd(), buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready(socket).await??,
                result => return result,
            }
        }
    }

    async fn send(&self, socket: &OwnedFd, buf: &SendBuf) -> io::Result<()> {
        let total = buf.len_bytes();
        let mut sent = 0;
        while sent < total {
            match try_send(socket.as_fd(), buf, sent) {
                Ok(len) => sent += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sent += send_later(socket, next_bytes(buf, sent)?).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn hang_up(&self, _socket: &OwnedFd) {
        // What waits in the ring is a poll, and the runtime cancels it when it is dropped.
    }

    fn detach(&self, socket: &OwnedFd) -> io::Result<OwnedFd> {
        socket.try_clone()
    }

    fn attach(&self, fd: OwnedFd) -> io::Result<OwnedFd> {
        let stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(true)?;
        let _ = stream.set_nodelay(true); // refused by a peer that is gone already
        Ok(stream.into())
    }
}

/// A stream of the runtime on a second descriptor of `fd`, for one wait.
fn stream_for(fd: &impl AsFd) -> io::Result<TcpStream> {
    let second = fd.as_fd().try_clone_to_owned()?;
    Ok(TcpStream::from(socket2::Socket::from(std::net::TcpStream::from(second))))
}

/// Waits until `fd` has something to read, or the other end is gone. What is there is left there; an error
/// inside is the descriptor's own, and of no meaning for what is no connection.
///
/// # Errors
/// That no descriptor is left.
async fn ready(fd: &impl AsFd) -> io::Result<io::Result<()>> {
    let mut stream = stream_for(fd)?;
    // Reads no byte: a stream that was just made waits first, whatever it is asked to read.
    let read = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [])).await;
    Ok(read.map(drop))
}

/// Sends some of `bytes` as soon as there is room.
async fn send_later(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut stream = pin!(stream_for(fd)?);
    match poll_fn(|cx| stream.as_mut().poll_write(cx, bytes)).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        len => Ok(len),
    }
}

/// What comes next of a send of which `sent` bytes are gone: the rest of its part.
fn next_bytes(buf: &SendBuf, sent: usize) -> io::Result<&[u8]> {
    let mut before = 0;
    for index in 0..buf.parts.len() {
        let part = buf.part(index)?;
        if sent < before + part.len() {
            let rest = &part[sent - before..];
            return Ok(&rest[..rest.len().min(WAITING_SEND_MAX_BYTES)]);
        }
        before += part.len();
    }
    Err(io::ErrorKind::InvalidInput.into())
}
