//! The line between deciding and doing.
//!
//! A [`Shard`](crate::shard::Shard) never does I/O and never reads a clock. It hands out [`Op`]s and
//! takes [`Completion`]s in; a driver owns the loop that executes them. Buffers travel *by value*:
//! an operation owns its memory until its completion brings it back, so that neither side can touch
//! what the kernel is writing to.
//!
//! Drivers: `uring` (default), `epoll` (where io_uring is forbidden), `sim` (virtual network and disk), and
//! any that lives outside of this crate and is given to it, see [`external`].
//! One test suite runs over all of them.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod disk;
mod epoll;
pub mod external;
mod short;
pub mod sim;
mod start;
mod uring;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::Metainfo;
use ringseed_sys::arena::{Extent, ExtentMut};
pub use ringseed_sys::buf::{RECV_SLOTS_MAX, RecvBuf, RecvSlot, SEND_PARTS_MAX, SendBuf, SendPart};
use ringseed_sys::dir::DirHandle;
pub use ringseed_sys::file::ReadPath;

use crate::store::journal::Stamp;

pub use epoll::EpollDriver;
pub use start::{DriverConfig, Running, start};
pub use uring::UringDriver;

/// Threads per driver for calls that may wait long.
const DISK_THREADS: usize = 2;

/// How long a driver that ran out of descriptors waits before it accepts again.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Name of an operation in flight, made by the shard and given back by the completion. Drivers do
/// not interpret it; the shard keeps a generation in it, so that a stale completion is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// A socket that the driver holds for the shard. Never reused within a driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SockId(pub u64);

/// A socket on its way from one driver to another. Dropped on the way, it is closed.
#[derive(Debug)]
pub struct MovedSock(MovedSockKind);

#[derive(Debug)]
enum MovedSockKind {
    Fd(OwnedFd),
    /// Of a simulated world: a connection and a side of it. The world closes what its node loses.
    Sim(u64, usize),
}

impl MovedSock {
    /// Takes a socket on its way, for a driver that gives it up.
    pub fn from_fd(fd: OwnedFd) -> MovedSock {
        MovedSock(MovedSockKind::Fd(fd))
    }

    /// The socket, for the driver that takes it over.
    ///
    /// # Errors
    /// `InvalidInput` for a socket of a simulated world.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self.0 {
            MovedSockKind::Fd(fd) => Ok(fd),
            MovedSockKind::Sim(..) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// A file that the driver holds for the shard. Never reused within a driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// How a payload file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Read only, must exist.
    Read,
    /// Read and write; it and its parent folders are created if missing.
    Write,
    /// The same for a file that another shard may have created and not synced yet: the first sync writes
    /// its name, whoever has created it.
    WriteShared,
}

/// An operation for the driver. Every operation with an `id` is answered by exactly one
/// [`Completion`] with that id, also when it fails or its socket is closed under it.
///
/// A socket takes one [`Op::PollIn`] or [`Op::Recv`] and one [`Op::Send`] at a time: two receives, or
/// two sends, in flight together have no order. Operations on a closed socket or file complete with
/// `ECANCELED`. Operations on one file complete in any order.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants tell their fields")]
pub enum Op {
    /// Connects; answers [`Done::Connected`].
    Connect { id: OpId, addr: SocketAddr, timeout: Duration },
    /// Waits, without a buffer, until the socket has bytes or is closed by the peer;
    /// answers [`Done::Readable`]. An idle peer costs no memory this way.
    PollIn { id: OpId, sock: SockId },
    /// Receives what is there, at least one byte; answers [`Done::Received`].
    Recv { id: OpId, sock: SockId, buf: RecvBuf },
    /// Sends everything; answers [`Done::Sent`].
    Send { id: OpId, sock: SockId, buf: SendBuf },
    /// Gives the socket up, so that another shard's driver can take it; answers [`Done::Detached`].
    /// Nothing may be in flight on it.
    Detach { id: OpId, sock: SockId },
    /// Takes a socket that another shard's driver has given up; answers [`Done::Attached`].
    Attach { id: OpId, moved: MovedSock },
    /// Closes. What is in flight on the socket completes with `ECANCELED`. No completion of its own.
    Close { sock: SockId },
    /// Opens `path` beneath `root` (`openat2`, no symlinks, never outside); answers [`Done::Opened`].
    /// With `direct` the driver also opens an O_DIRECT descriptor where the file system has it, and
    /// uses it for aligned transfers.
    Open { id: OpId, root: Arc<DirHandle>, path: PathBuf, mode: OpenMode, direct: bool },
    /// Opens a short file as with `mode`, gives it the length `len_bytes` and writes `len` bytes of `buf` from
    /// `start` to `offset_bytes`; answers [`Done::Put`]. What opening, reserving and writing would each cost a
    /// hand-over to another thread is one. With `direct` the driver may write most of it past the page cache. A
    /// failure leaves the file closed.
    Put {
        id: OpId,
        root: Arc<DirHandle>,
        path: PathBuf,
        mode: OpenMode,
        direct: bool,
        len_bytes: u64,
        offset_bytes: u64,
        buf: Extent,
        start: usize,
        len: usize,
    },
    /// Reads `len` bytes at `offset_bytes` into `buf` from `start`; answers [`Done::Read`]. The driver
    /// takes the page cache when the range is resident (`cachestat(2)`), else O_DIRECT if it may.
    Read { id: OpId, file: FileId, offset_bytes: u64, buf: ExtentMut, start: usize, len: usize },
    /// Writes `len` bytes of `buf` from `start` to `offset_bytes`; answers [`Done::Written`] only when
    /// all is written. O_DIRECT where address, offset and length are aligned; a tail that is not
    /// aligned goes buffered.
    Write { id: OpId, file: FileId, offset_bytes: u64, buf: Extent, start: usize, len: usize },
    /// Writes rows, each with its position in bytes, to a small file of our own (the journal, a sidecar),
    /// through the page cache: not for a file opened with `direct`. Answers [`Done::SmallWritten`] when
    /// all are written, or with the first error.
    WriteSmall { id: OpId, file: FileId, rows: Vec<(u64, Vec<u8>)> },
    /// `fdatasync(2)`, and the first time the name of a file that was created; answers
    /// [`Done::Synced`]. Covers the writes that were answered before. When it fails, everything written
    /// since the last success is unknown, and what the page cache held of the file has been dropped:
    /// a read tells what the device has.
    Sync { id: OpId, file: FileId },
    /// `fallocate(2)` mode 0, `len_bytes` from 0, and sets the length; answers [`Done::Allocated`].
    Allocate { id: OpId, file: FileId, len_bytes: u64 },
    /// Closes a file. No completion; what is in flight on it completes first.
    CloseFile { file: FileId },
    /// Removes the folder or file `path` beneath `root` with all it holds, never following a symlink;
    /// answers [`Done::Removed`].
    RemoveTree { id: OpId, root: Arc<DirHandle>, path: PathBuf },
    /// Does work of the store on another thread; answers [`Done::Aside`].
    Aside { id: OpId, job: Aside },
}

/// Work that reads or writes more than belongs into a turn of the shard.
#[derive(Debug)]
pub enum Aside {
    /// Makes a checkpoint of the journal, see [`compact`](crate::store::files::compact).
    Checkpoint {
        /// The state folder.
        dir: Arc<DirHandle>,
        /// The log that follows it.
        generation: u64,
        /// That log's first record.
        next_sequence: u64,
    },
    /// Reads what a cold listing consists of and opens its folder.
    Load {
        /// The state folder.
        state: Arc<DirHandle>,
        /// By what the metainfo is kept.
        hashes: InfoHashes,
        /// The folder that holds its root name.
        folder: PathBuf,
    },
    /// Looks at the files of a listing, see [`look_at_files`](crate::store::look_at_files).
    Stamp {
        /// The folder that holds its root name.
        root: Arc<DirHandle>,
        /// What it consists of.
        metainfo: Arc<Metainfo>,
    },
}

/// What a listing needs to become active.
#[derive(Debug)]
pub struct Loaded {
    /// What it consists of; `None` when that is lost or damaged.
    pub metainfo: Option<Arc<Metainfo>>,
    /// Its folder.
    pub root: Arc<DirHandle>,
}

/// What came of an [`Aside`].
#[derive(Debug)]
pub enum AsideDone {
    /// Length of the checkpoint in bytes.
    Checkpoint(io::Result<u64>),
    /// A cold listing.
    Load(io::Result<Loaded>),
    /// What the files look like; nothing when one of them is not as it should be.
    Stamp(Option<Stamp>),
}

impl Aside {
    /// Does the work, on whatever thread this is.
    pub fn run(self) -> AsideDone {
        match self {
            Aside::Checkpoint { dir, generation, next_sequence } => {
                AsideDone::Checkpoint(crate::store::files::compact(&dir, generation, next_sequence))
            }
            Aside::Load { state, hashes, folder } => {
                let metainfo = crate::store::load_metainfo(&state, hashes).map(Arc::new);
                let root = DirHandle::open(&folder).map(Arc::new);
                AsideDone::Load(root.map(|root| Loaded { metainfo, root }))
            }
            Aside::Stamp { root, metainfo } => {
                let found = crate::store::look_at_files(&metainfo, |path| {
                    root.metadata(path).ok().map(|it| (it.len_bytes, it.changed_ns))
                });
                AsideDone::Stamp(found.stamp.filter(|_| found.bad_files.is_empty()))
            }
        }
    }

    /// The answer when the work cannot be begun.
    pub fn refuse(self, error: io::Error) -> AsideDone {
        match self {
            Aside::Checkpoint { .. } => AsideDone::Checkpoint(Err(error)),
            Aside::Load { .. } => AsideDone::Load(Err(error)),
            Aside::Stamp { .. } => AsideDone::Stamp(None),
        }
    }
}

/// What came of an operation.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants tell their fields")]
pub enum Done {
    /// The listener accepted a connection (not an answer: it comes unasked, with `OpId(0)`).
    Accepted { sock: SockId, peer: SocketAddr },
    /// Answer to [`Op::Connect`].
    Connected(io::Result<SockId>),
    /// Answer to [`Op::Detach`].
    Detached(io::Result<MovedSock>),
    /// Answer to [`Op::Attach`].
    Attached(io::Result<SockId>),
    /// Answer to [`Op::PollIn`].
    Readable(io::Result<()>),
    /// Answer to [`Op::Recv`]: bytes filled (0: the peer closed), and the buffer back.
    Received(io::Result<usize>, RecvBuf),
    /// Answer to [`Op::Send`], and the buffer back.
    Sent(io::Result<()>, SendBuf),
    /// Answer to [`Op::Open`]: the file and its length in bytes.
    Opened(io::Result<(FileId, u64)>),
    /// Answer to [`Op::Put`]: the file, and the buffer back.
    Put(io::Result<FileId>, Extent),
    /// Answer to [`Op::Read`]: bytes read (short only at the end of the file), which way, the buffer.
    Read(io::Result<(usize, ReadPath)>, ExtentMut),
    /// Answer to [`Op::Write`], and the buffer back.
    Written(io::Result<()>, Extent),
    /// Answer to [`Op::WriteSmall`].
    SmallWritten(io::Result<()>),
    /// Answer to [`Op::Sync`].
    Synced(io::Result<()>),
    /// Answer to [`Op::Allocate`].
    Allocated(io::Result<()>),
    /// Answer to [`Op::RemoveTree`]: bytes freed.
    Removed(io::Result<u64>),
    /// Answer to [`Op::Aside`].
    Aside(AsideDone),
}

impl Op {
    /// The name of the operation, for whoever runs several machines as one.
    pub(crate) fn id_mut(&mut self) -> Option<&mut OpId> {
        match self {
            Op::Connect { id, .. }
            | Op::PollIn { id, .. }
            | Op::Recv { id, .. }
            | Op::Send { id, .. }
            | Op::Detach { id, .. }
            | Op::Attach { id, .. }
            | Op::Open { id, .. }
            | Op::Put { id, .. }
            | Op::Read { id, .. }
            | Op::Write { id, .. }
            | Op::WriteSmall { id, .. }
            | Op::Sync { id, .. }
            | Op::Allocate { id, .. }
            | Op::RemoveTree { id, .. }
            | Op::Aside { id, .. } => Some(id),
            Op::Close { .. } | Op::CloseFile { .. } => None,
        }
    }
}

/// One finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The id given with the operation.
    pub id: OpId,
    /// What came of it.
    pub done: Done,
}

/// Operations on their way from the shard to the driver.
pub type Ops = std::collections::VecDeque<Op>;

/// What a driver runs: the shard, or a test's machine in its place.
pub trait Machine {
    /// Takes in one completion.
    fn handle(&mut self, completion: Completion, now: Instant);
    /// Hands out what is to be done now. Called after completions, commands and timeouts, until it
    /// adds nothing; does the deferred work of the turn (hashing in batches) as well.
    fn poll(&mut self, ops: &mut Ops, now: Instant);
    /// When to call [`Machine::poll`] next if nothing completes.
    fn poll_timeout(&self) -> Option<Instant>;
    /// Takes commands from the handle's queue; the driver calls it when it was woken.
    fn handle_wake(&mut self, now: Instant);
    /// True when the machine has stopped and has nothing in flight: the driver leaves its loop.
    fn is_stopped(&self) -> bool;
}

/// Tells, at most once a minute in this process, that connections cannot be accepted.
pub fn warn_accept(error: &io::Error) {
    use std::sync::Mutex;
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(60)) {
        *last = Some(Instant::now());
        tracing::warn!(%error, "cannot accept connections now; raise the limit of open files");
    }
}
