//! The way from the public handle to the shard: a queue of commands, answered through channels, and
//! counters that anybody may read.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::select::FileSelection;
use ringseed_sys::dir::DirHandle;

use crate::api::{EngineError, Identity, ListingId, ListingStatus, Place};
use crate::store::journal::{ListingKey, Stamp};

/// A listing as the handle prepared it: everything that needs the file system by name is done.
#[derive(Debug)]
pub struct NewListing {
    /// The id it gets if it is accepted.
    pub id: ListingId,
    /// What is known; the metainfo when the state folder had it.
    pub identity: Identity,
    /// The caller knew only the hash: it is told when the metainfo is known, also when a former run
    /// had fetched it.
    pub asked_by_hash: bool,
    /// Where it lies.
    pub place: Place,
    /// The opened folder of `place`.
    pub root: Arc<DirHandle>,
    /// Nothing lies under the root name: there is nothing to check.
    pub is_fresh: bool,
    /// Files that are missing or have another length, by their place in the metainfo: what the journal
    /// says of their pieces is not believed.
    pub bad_files: Vec<u32>,
    /// The metainfo lies in the state folder, so that the listing can go cold.
    pub is_kept: bool,
    /// What the files look like together, and when each changed last (in nanoseconds since 1970); nothing
    /// when they could not be looked at.
    pub stamp: Option<Stamp>,
    /// See `stamp`.
    pub changed_ns: Vec<u64>,
    /// See [`AddListing::verify_v1`](crate::AddListing::verify_v1).
    pub verify_v1: bool,
    /// See [`AddListing::known_complete`](crate::AddListing::known_complete).
    pub known_complete: bool,
    /// See [`AddListing::size_max_bytes`](crate::AddListing::size_max_bytes).
    pub size_max_bytes: Option<u64>,
    /// Addresses to dial while something is missing.
    pub peers: Vec<SocketAddr>,
    /// The files that are wanted; all of them if `None`.
    pub select: Option<FileSelection>,
}

/// What a shard knows of a listing's metainfo.
#[derive(Debug)]
pub enum KnownMetainfo {
    /// This is it.
    Here(Arc<Metainfo>),
    /// The listing is cold: it lies in the state folder.
    Kept(InfoHashes),
}

/// One command of the handle.
#[derive(Debug)]
pub enum Command {
    /// Take listings in; the answers are in their order.
    Add(Vec<NewListing>, SyncSender<Vec<Result<ListingId, EngineError>>>),
    /// Replace the addresses of a listing.
    SetPeers(ListingId, Vec<SocketAddr>),
    /// Add addresses that somebody else than the user named.
    FoundPeers(ListingId, Vec<SocketAddr>),
    /// Forget a listing, and delete what is ours of it when the flag says so.
    Remove(ListingId, bool),
    /// The addresses of the market's members.
    SetMembers(Vec<IpAddr>),
    /// Serve payload or not.
    SetServing(bool),
    /// Caps on payload have changed.
    RatesChanged,
    /// Ask for the metainfo.
    Metainfo(ListingId, SyncSender<Option<KnownMetainfo>>),
    /// Ask for the listing of an identity.
    Find(ListingKey, SyncSender<Option<ListingId>>),
    /// Ask for a listing's status.
    Status(ListingId, SyncSender<Option<ListingStatus>>),
    /// Flush and stop.
    Shutdown,
}

/// The queue between handles and one shard. Unbounded: its producers are few and wait for answers.
#[derive(Default)]
pub struct CommandQueue {
    commands: Mutex<VecDeque<Command>>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl CommandQueue {
    /// Sets what wakes the driver; once, by whoever starts it.
    pub fn set_waker(&self, wake: Box<dyn Fn() + Send + Sync>) {
        assert!(self.waker.set(wake).is_ok(), "a queue has one driver");
    }

    /// Queues a command and wakes the shard.
    pub fn push(&self, command: Command) {
        self.lock().push_back(command);
        self.wake();
    }

    /// Makes the shard look at what waits for it.
    pub(super) fn wake(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }

    /// All commands queued so far.
    pub fn take(&self) -> VecDeque<Command> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Command>> {
        // A queue of plain values is whole even if a holder of the lock panicked.
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters of one shard. Written by the shard alone, read by anybody.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes received on sockets.
    pub received_bytes: Counter,
    /// Bytes sent on sockets.
    pub sent_bytes: Counter,
    /// Payload bytes received, good or not.
    pub payload_received_bytes: Counter,
    /// Payload bytes sent.
    pub payload_sent_bytes: Counter,
    /// Payload bytes that ended in verified pieces.
    pub payload_verified_bytes: Counter,
    /// Payload bytes received for nothing.
    pub wasted_bytes: Counter,
    /// Payload bytes written.
    pub stored_bytes: Counter,
    /// Payload bytes served from our own cache.
    pub read_cache_bytes: Counter,
    /// Payload bytes read through the page cache for peers.
    pub read_page_cache_bytes: Counter,
    /// Payload bytes read by O_DIRECT for peers.
    pub read_direct_bytes: Counter,
    /// Bytes hashed.
    pub hashed_bytes: Counter,
    /// Batches of whole pieces put through SHA-1 at once.
    pub hash_calls: Counter,
    /// Pieces in those batches: divided by the calls, how many lanes were busy.
    pub hash_messages: Counter,
    /// Waits for the arena.
    pub arena_waits: Counter,
    /// Connections now.
    pub peers: Counter,
    /// Connections that ended, by the code of the reason.
    closed: Mutex<BTreeMap<&'static str, u64>>,
    /// Listings now.
    pub listings: Counter,
    /// Listings that are not cold, now.
    pub listings_active: Counter,
}

impl Counters {
    /// Counts the end of a connection.
    pub fn count_closed(&self, code: &'static str) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    /// How many connections ended, by the code of the reason.
    pub fn closed(&self) -> BTreeMap<&'static str, u64> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A number that one thread changes and all may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `amount` more.
    pub fn add(&self, amount: u64) {
        // One writer: a load and a store cost less than a locked add.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
