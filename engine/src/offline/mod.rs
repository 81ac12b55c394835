//! Hashing and checking files without any network: for `hash`, `check` and `listing add`.
//!
//! One pass over the data, both views at once, by one thread per core, each with a ring and lanes of
//! its own. A thread's memory is its arena of [`LANES`] times [`STEPS_AHEAD`] extents (16 MiB),
//! whatever is hashed.
//!
//! `read` brings bytes, `queue` deals out pieces of one torrent or of thousands, `worker` is where both
//! meet the lanes.

mod check;
mod create;
mod queue;
mod read;
mod walk;
mod worker;

use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use ringseed_core::metainfo::MetainfoError;
use ringseed_core::metainfo::create::CreateError;
use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES};
use ringseed_sys::dir::DirHandle;
use ringseed_sys::probe;
use ringseed_sys::process;
use ringseed_sys::ring::Ring;
use thiserror::Error;

pub use crate::store::LeafFile;
pub use check::{CheckReport, PieceState, Unread, check, check_many, check_with};
pub use create::{CreateOptions, Created, create, create_and_import, create_found};
pub use read::{IoMode, ReadOptions, ReadOrder};
pub use walk::{Found, Skipped, Unreadable};

use queue::{Queue, Targets};
use read::{MappedReads, PlainReads, RingReads};
use worker::{LANES, Pace, STEPS_AHEAD, Worker};

/// Threads at most: each brings an arena, and so many lanes outrun any device.
const THREADS_MAX: usize = 64;
/// A thread must have so much to do to be worth starting.
const BYTES_PER_THREAD_MIN: u64 = 4 << 20;
/// Registering touches the whole arena, which a short run does not earn back.
const REGISTER_MIN_BYTES: u64 = 256 << 20;

/// What is told while hashing: bytes done and bytes in all. Called from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Why hashing or checking failed.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A copy cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file became shorter or longer while it was hashed.
    #[error("{} changed while it was hashed", path.display())]
    Changed {
        /// Which one.
        path: PathBuf,
    },
    /// The import would be written over something that is there.
    #[error("{} is there already", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// No torrent can be made of this.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A `.torrent` file is none.
    #[error("{} is no torrent that we take: {source}", path.display())]
    Torrent {
        /// Which one.
        path: PathBuf,
        /// The rule that it breaks.
        source: MetainfoError,
    },
    /// A `.torrent` file does not say all that is needed to check by it.
    #[error("{} lacks the piece layer of a file", path.display())]
    NoLayer {
        /// Which one.
        path: PathBuf,
    },
    /// The machinery of reading broke, not a file.
    #[error("reading broke down: {0}")]
    Ring(#[source] io::Error),
    /// Stopped from outside before the end.
    #[error("stopped")]
    Stopped,
}

/// Reads and hashes everything in `targets`, on as many threads as the options and the machine say.
/// `total_bytes` is about how much that is; `root` is where it lies, as far as one folder tells.
fn hash_all<'a>(
    targets: &'a dyn Targets<'a>,
    root: &DirHandle,
    total_bytes: u64,
    options: &ReadOptions,
    progress: Progress<'a>,
) -> Result<(), OfflineError> {
    let in_file_order = match options.order {
        ReadOrder::Auto => probe::is_rotational(root.as_fd()) == Some(true),
        ReadOrder::Spread => false,
        ReadOrder::FileOrder => true,
    };
    let pace = Pace { io: options.io, in_file_order };
    // A thread holds up to a hundred files of two descriptors each.
    process::raise_open_files_limit();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let has_ring = options.ring && options.io != IoMode::Mmap && Ring::new(8).is_ok();
    let is_plain = !has_ring && options.io != IoMode::Mmap;
    let threads = options.threads.unwrap_or(match (in_file_order, is_plain) {
        (true, _) => 1,
        // Each waits for its own reads: twice as many keep device and cores busy.
        (false, true) => 2 * cores,
        (false, false) => cores,
    });
    let threads = threads.clamp(1, THREADS_MAX);
    let threads = threads.min(total_bytes.div_ceil(BYTES_PER_THREAD_MIN).max(1) as usize);
    let register = total_bytes >= REGISTER_MIN_BYTES && options.io != IoMode::Buffered;
    let queue = Queue::new(targets, progress);
    let work = || {
        let arena = match Arena::new(LANES * STEPS_AHEAD * EXTENT_LEN_BYTES) {
            Ok(arena) => arena,
            Err(error) => return queue.fail(OfflineError::Ring(error)),
        };
        let stop = &*options.stop;
        if options.io == IoMode::Mmap {
            return Worker::new(&queue, MappedReads::default(), arena, pace, stop).run();
        }
        let entries = (LANES * STEPS_AHEAD) as u32;
        match has_ring.then(|| RingReads::new(entries, &arena, register)).flatten() {
            Some(reads) => Worker::new(&queue, reads, arena, pace, stop).run(),
            None => Worker::new(&queue, PlainReads::default(), arena, pace, stop).run(),
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    queue.into_result()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_reading;
