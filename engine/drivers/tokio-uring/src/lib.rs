//! The driver on [`tokio_uring`], chosen by `--io-driver tokio-uring`.
//!
//! What goes which way, and why:
//!
//! - **Receives** are reads of the runtime's ring into a staging buffer of [`STAGING_LEN_BYTES`], copied into their
//!   slots from there: the runtime has no vectored read of a socket, and takes only memory that it is given
//!   for good. A copy out of a small buffer that stays in the cache costs little.
//! - **Sends** are `writev` of the ring straight from the extents, which are shared while they are sent.
//! - **Accepting** is the ring's. **Connecting** and the **wait for an idle socket** go through tokio's epoll, which
//!   runs in the same thread: the runtime cannot cancel what it has submitted, so that a connection
//!   that is given up would stay for minutes, and it offers no poll.
//! - **Writes** to files are the ring's, straight from the extents as well.
//! - **Reads** of files, and what else is done to them, are on the disk threads, as under epoll: the runtime reads only
//!   into memory of types that it knows, and a read into an extent needs no copy there.
//!
//! An operation that is dropped when its socket is closed stays in the ring with the buffer it was given; the
//! socket is shut down, so that it ends at once.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use ringseed_driver_tasks::{Runtime, Staging};
use ringseed_engine::io::external::{ExternalDriver, Seat, check_io_uring};
use ringseed_engine::io::{RecvBuf, SendBuf, SendPart};
use ringseed_sys::arena::Extent;
use ringseed_sys::file::WritePart;
use ringseed_sys::wake::Waker;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

/// The driver.
pub const DRIVER: ExternalDriver = ExternalDriver { name: "tokio-uring", run };

/// Bytes received at a time: larger ones fall out of the cache between the receive and the copy (256 KiB
/// measured best).
const STAGING_LEN_BYTES: usize = 256 << 10;

/// Submissions that fit into one call.
const RING_ENTRIES: u32 = 1024;

fn run(mut seat: Seat) -> io::Result<()> {
    check_io_uring()?;
    let mut ring = tokio_uring::uring_builder();
    // The runtime waits for its ring in epoll and never in the ring: work that is put off until then, as
    // DEFER_TASKRUN does, would never be done. Without interrupts it may be.
    ring.setup_coop_taskrun().setup_clamp();
    let mut builder = tokio_uring::builder();
    let builder = builder.entries(RING_ENTRIES).uring_builder(&ring);
    let runtime = match tokio_uring::Runtime::new(builder) {
        Ok(runtime) => runtime,
        // Before Linux 5.19.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES))?
        }
        Err(error) => return Err(error),
    };
    if seat.zero_copy_send {
        tracing::info!("tokio-uring sends TCP by copying, whatever was asked for");
    }
    let waker = seat.waker.clone();
    let listeners = std::mem::take(&mut seat.listeners);
    runtime.block_on(async move {
        let here = TokioUring::new(&waker)?;
        let detail = "tokio-uring 0.5: sockets and writes on its ring, disk threads for reads";
        let mut machine = seat.begin(detail.to_owned());
        ringseed_driver_tasks::run(here, waker, listeners, &mut *machine).await
    })
}

/// The runtime, as the tasks see it.
#[derive(Clone)]
struct TokioUring {
    shared: Rc<Shared>,
}

struct Shared {
    /// The waker's eventfd in tokio's epoll.
    woken: Rc<AsyncFd<Arc<OwnedFd>>>,
    staging: Staging,
}

impl TokioUring {
    fn new(waker: &Waker) -> io::Result<TokioUring> {
        let woken = watch(waker.shared_fd())?;
        let shared = Shared { woken: Rc::new(woken), staging: Staging::new(STAGING_LEN_BYTES) };
        Ok(TokioUring { shared: Rc::new(shared) })
    }
}

impl Runtime for TokioUring {
    type Socket = Rc<TcpStream>;
    type Listener = TcpListener;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio_uring::spawn(task);
    }

    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep_until(at.into())
    }

    fn woken(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let woken = self.shared.woken.clone();
        async move {
            woken.readable().await?.clear_ready();
            Ok(())
        }
    }

    fn listener(&self, fd: OwnedFd) -> io::Result<TcpListener> {
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(false)?; // a ring reports `EAGAIN` for those that do not wait
        Ok(TcpListener::from_std(listener))
    }

    async fn accept(&self, listener: &TcpListener) -> io::Result<(Rc<TcpStream>, SocketAddr)> {
        let (stream, peer) = listener.accept().await?;
        let _ = stream.set_nodelay(true); // refused by a peer that is gone already
        // One peer has one address, whichever listener it came to.
        Ok((Rc::new(stream), SocketAddr::new(peer.ip().to_canonical(), peer.port())))
    }

    async fn connect(&self, addr: SocketAddr, timeout: Duration) -> io::Result<Rc<TcpStream>> {
        match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(addr)).await {
            Ok(connected) => self.attach(connected?.into_std()?.into()),
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn readable(&self, socket: &Rc<TcpStream>) -> io::Result<()> {
        // Watched anew each time: what epoll said of it before is of no worth after a receive by the ring. By a
        // descriptor of its own, because the runtime lends none.
        let watched = watch(self.detach(socket)?)?;
        watched.readable().await?.retain_ready();
        Ok(())
    }

    async fn receive(&self, socket: &Rc<TcpStream>, buf: &mut RecvBuf) -> io::Result<usize> {
        let staging = &self.shared.staging;
        let wanted = buf.len_bytes().min(staging.len_bytes());
        loop {
            let (result, slice) = socket.read(staging.take().slice(..wanted)).await;
            let bytes = slice.into_inner();
            let filled = match result {
                Ok(len) => Ok(buf.fill_from(&bytes[..len])?),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            staging.give_back(bytes);
            return filled;
        }
    }

    async fn send(&self, socket: &Rc<TcpStream>, buf: &SendBuf) -> io::Result<()> {
        let mut parts = shared_parts(buf);
        while !parts.is_empty() {
            let (result, back) = socket.writev(parts).await;
            parts = back;
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => cut_front(&mut parts, len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    const WRITES: bool = true;

    async fn write(&self, part: WritePart, buf: &Extent) -> io::Result<()> {
        let file = tokio_uring::fs::File::from_std(part.fd.into());
        let bytes = Bytes::from_owner(Lent(buf.clone()));
        let bytes = Bytes::slice(&bytes, part.start..part.start + part.len);
        file.write_all_at(bytes, part.offset_bytes).await.0
    }

    fn hang_up(&self, socket: &Rc<TcpStream>) {
        let _ = socket.shutdown(std::net::Shutdown::Both); // refused when the peer was faster
    }

    fn detach(&self, socket: &Rc<TcpStream>) -> io::Result<OwnedFd> {
        let socket = SockRef::from(&**socket).try_clone()?;
        Ok(std::net::TcpStream::from(socket).into())
    }

    fn attach(&self, fd: OwnedFd) -> io::Result<Rc<TcpStream>> {
        let stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(false)?; // a ring reports `EAGAIN` for those that do not wait
        let _ = stream.set_nodelay(true); // refused by a peer that is gone already
        Ok(Rc::new(TcpStream::from_std(stream)))
    }
}

/// Watches a descriptor for something to read, in tokio's epoll.
fn watch<T>(fd: T) -> io::Result<AsyncFd<T>>
where
    T: AsFd + AsRawFd,
{
    #[expect(
        deprecated,
        reason = "takes whatever has a number, which may be of a closed file; an owned descriptor is not, and the \
                  successor is unsafe to call"
    )]
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// An extent as an owner of bytes.
struct Lent(Extent);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The parts as the ring takes them: the extents themselves, shared, and the small bytes copied once.
fn shared_parts(buf: &SendBuf) -> Vec<Bytes> {
    let small = Bytes::copy_from_slice(&buf.small);
    let parts = buf.parts.iter().map(|part| match part {
        SendPart::Small { start, len } => Bytes::slice(&small, *start..*start + *len),
        SendPart::Extent { extent, start, len } => {
            Bytes::slice(&Bytes::from_owner(Lent(extent.clone())), *start..*start + *len)
        }
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// Cuts `len` bytes off the front.
fn cut_front(parts: &mut Vec<Bytes>, mut len: usize) {
    let sent = parts.iter().take_while(|part| {
        let is_sent = part.len() <= len;
        if is_sent {
            len -= part.len();
        }
        is_sent
    });
    let sent = sent.count();
    parts.drain(..sent);
    if let Some(first) = parts.first_mut() {
        first.advance(len);
    }
}
