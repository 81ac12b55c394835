//! The public handle: starts the shards, queues commands, answers questions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringseed_core::metainfo::Metainfo;
use ringseed_core::select::FileSelection;
use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES};
use ringseed_sys::net::{self, Blocking, DualStack};
use rustix::fs::FlockOperation;

use crate::api::{
    AddListing, EngineError, EngineStatus, Event, ListingId, ListingStatus, Rates, Scope,
    ShardStatus,
};
use crate::config::Config;
use crate::intake::{self, Roots};
use crate::io::{self as drivers, DriverConfig, Running};
use crate::shard::command::{Command, CommandQueue, Counter, Counters, KnownMetainfo, NewListing};
use crate::shard::mesh::Mesh;
use crate::shard::{Shard, ShardParts, key_of, name_of};
use crate::store::journal::ListingKey;
use crate::store::{self, LeafFile, StateDir};

/// A running engine. Clones are handles to the same one; it runs until [`Engine::shutdown`] or until
/// the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    shards: Vec<ShardHandle>,
    mesh: Arc<Mesh>,
    state: Arc<StateDir>,
    local_addrs: Vec<SocketAddr>,
    /// Listings added so far; with the shard that gets it, the number becomes its id.
    next_number: AtomicU64,
    /// One at a time looks whether a listing is there and adds it, where several shards might have it.
    adding: Mutex<()>,
    rates: Mutex<Sampled>,
    events: std::sync::mpsc::Sender<Event>,
    /// Held for as long as the engine may write to the state folder.
    _lock: File,
}

/// One shard as its engine sees it.
struct ShardHandle {
    queue: Arc<CommandQueue>,
    counters: Arc<Counters>,
    arena: Arena,
    driver: &'static str,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// Listings that are handed to one shard together.
#[derive(Default)]
struct Batch {
    /// Where the answers belong among those of all shards.
    places: Vec<usize>,
    news: Vec<NewListing>,
}

/// The last sample that rates were taken from.
struct Sampled {
    at: Instant,
    received: u64,
    sent: u64,
    download_rate: u64,
    upload_rate: u64,
}

impl Sampled {
    fn new() -> Self {
        Sampled { at: Instant::now(), received: 0, sent: 0, download_rate: 0, upload_rate: 0 }
    }
}

impl Engine {
    /// Opens the state folder, recovers the journal and starts the shards, each on a thread of its own.
    /// Events come out of the receiver; dropping it is allowed. The hash kernels are measured, some
    /// milliseconds once in the life of a program, unless it has called [`ringseed_sys::hash::calibrate`] itself.
    ///
    /// # Errors
    /// [`EngineError`] when the configuration, the state folder, the listen address or every driver is
    /// refused. Nothing runs then.
    pub fn start(config: Config) -> Result<(Engine, Receiver<Event>), EngineError> {
        config.validate()?;
        ringseed_sys::hash::calibrate(None);
        let config = config.within_descriptors(ringseed_sys::process::open_files_limit().0);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let shard_count = config.shard_count(cpus);
        let lock = lock_state_dir(&config.state_dir)?;
        let (state, mut recovered) = store::open_state_dir(&config.state_dir, config.durable)?;
        let bound = bind_all(&config.listen)?;
        let (mut listeners, local_addrs): (Vec<OwnedFd>, Vec<SocketAddr>) =
            bound.into_iter().unzip();
        let (events, events_out) = channel();
        let state = Arc::new(state);
        let queues: Vec<_> = (0..shard_count).map(|_| Arc::new(CommandQueue::default())).collect();
        let seed = config.seed.unwrap_or_else(random_seed);
        let mesh = Mesh::new(
            queues.clone(),
            std::mem::take(&mut recovered.recovered),
            recovered.writer.slots(),
            seed,
            Rates { upload: config.upload_rate_max, download: config.download_rate_max },
        );
        let mut journal = Some(recovered);
        let of_shard = config.of_shard(shard_count);
        let mut inner = Inner {
            shards: Vec::new(),
            mesh: mesh.clone(),
            state: state.clone(),
            local_addrs,
            next_number: AtomicU64::new(1),
            adding: Mutex::new(()),
            rates: Mutex::new(Sampled::new()),
            events: events.clone(),
            _lock: lock,
        };
        for (index, queue) in queues.into_iter().enumerate() {
            let arena = Arena::new(of_shard.arena_len_bytes).map_err(|source| EngineError::Io {
                what: "cannot map the arena beside",
                path: config.state_dir.clone(),
                source,
            })?;
            let counters = Arc::new(Counters::default());
            let parts = ShardParts {
                config: of_shard.clone(),
                arena: arena.clone(),
                queue: queue.clone(),
                counters: counters.clone(),
                events: events.clone(),
                state: state.clone(),
                recovered: journal.take(),
                mesh: mesh.clone(),
                index,
                seed: seed.wrapping_add(index as u64),
            };
            let driver_config = DriverConfig {
                driver: config.io_driver,
                // The first shard accepts for all: a flood of strangers is its affair alone, and the
                // bounds of addresses are counted in one place.
                listeners: std::mem::take(&mut listeners),
                arena: Some(arena.clone()),
                zero_copy_send: config.zero_copy_send,
                thread_name: format!("ringseed-{index}"),
            };
            let waked = queue.clone();
            // What runs already is stopped when this returns early: the handle is dropped.
            let running = drivers::start(driver_config, move |waker| {
                let waker = waker.clone();
                waked.set_waker(Box::new(move || waker.wake()));
                Shard::new(parts, Instant::now())
            })
            .map_err(|error| EngineError::Driver { reason: error.to_string() })?;
            let Running { driver, detail, thread, .. } = running;
            tracing::info!(shard = index, driver, detail, "shard started");
            let thread = Mutex::new(Some(thread));
            inner.shards.push(ShardHandle { queue, counters, arena, driver, thread });
        }
        tracing::info!(shards = shard_count, listen = ?inner.local_addrs, state_dir = %config.state_dir.display(), "engine started");
        Ok((Engine { inner: Arc::new(inner) }, events_out))
    }

    /// Where peers may connect, with the port the system chose, in the order of the configuration.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.inner.local_addrs
    }

    /// The first of [`Engine::local_addrs`]; `None` without a listener.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.local_addrs.first().copied()
    }

    /// Takes a listing in and returns its id. Fetching, checking or seeding starts by itself.
    ///
    /// # Errors
    /// [`EngineError::Exists`] for an info hash that is there already, [`EngineError::Refused`] over
    /// the size cap, [`EngineError::Io`] when the place cannot be opened, [`EngineError::Stopped`].
    pub fn add(&self, add: AddListing) -> Result<ListingId, EngineError> {
        self.add_selected(add, None)
    }

    /// As [`Engine::add`], for some of the files alone (BEP 53): the pieces that they lie in are fetched,
    /// and the listing is complete when these are. What such a piece brings of a neighbour is kept apart
    /// and is no file to anybody.
    ///
    /// # Errors
    /// As [`Engine::add`]; [`ListingError::Selection`] for files that the torrent does not have. Of a
    /// torrent that is known by its hash alone, the listing fails with it later.
    pub fn add_selected(
        &self,
        add: AddListing,
        select: Option<FileSelection>,
    ) -> Result<ListingId, EngineError> {
        let new = intake::prepare(&self.inner.state, add, select, &mut Roots::default())?;
        self.inner.add_prepared(vec![new]).pop().unwrap_or(Err(EngineError::Stopped))
    }

    /// As [`Engine::add`] for each, in order. What is asked of the shard once for all of them, and the
    /// records of all in one write of the journal, is most of what adding one listing costs.
    ///
    /// # Errors
    /// Of each as [`Engine::add`]; one that is refused does not keep out the others.
    pub fn add_all(&self, adds: Vec<AddListing>) -> Vec<Result<ListingId, EngineError>> {
        let mut roots = Roots::default();
        let mut news = Vec::with_capacity(adds.len());
        let mut results: Vec<Option<EngineError>> = Vec::with_capacity(adds.len());
        for add in adds {
            let prepared = intake::prepare(&self.inner.state, add, None, &mut roots);
            results.push(prepared.map(|new| news.push(new)).err());
        }
        let answers = self.inner.add_prepared(news);
        let mut answers = answers.into_iter();
        let answer = |refused: Option<EngineError>| match refused {
            Some(refused) => Err(refused),
            None => answers.next().unwrap_or(Err(EngineError::Stopped)),
        };
        results.into_iter().map(answer).collect()
    }

    /// An empty leaf sidecar, for a torrent that is to be made of data and then added with
    /// [`AddListing::known_complete`]: given to [`CreateOptions`](crate::offline::CreateOptions) it takes the leaves in, and
    /// [`LeafFile::keep`] puts it where the listing looks for them.
    ///
    /// # Errors
    /// What `open(2)` says in the state folder.
    pub fn new_leaf_file(&self) -> io::Result<Arc<LeafFile>> {
        LeafFile::new(self.inner.state.dir().clone()).map(Arc::new)
    }

    /// Replaces the addresses that the listing is fetched from. Connections that are up stay up.
    pub fn set_peers(&self, id: ListingId, peers: Vec<SocketAddr>) {
        self.inner.home(id).queue.push(Command::SetPeers(id, peers));
    }

    /// Adds addresses that a stranger named, a tracker for one. They are dialled seldom, at most ten in a
    /// second, and forgotten when nobody answers; no more than 200 are kept.
    pub fn add_found_peers(&self, id: ListingId, peers: Vec<SocketAddr>) {
        self.inner.home(id).queue.push(Command::FoundPeers(id, peers));
    }

    /// Stops a listing and forgets it. With `delete_data` what is [`Place::Owned`] is removed from
    /// disk; [`Place::InPlace`] data is never touched. [`Event::Removed`] follows. An unknown id is
    /// ignored.
    pub fn remove(&self, id: ListingId, delete_data: bool) {
        self.inner.home(id).queue.push(Command::Remove(id, delete_data));
    }

    /// The addresses of the market's members. Their connections are not counted against
    /// [`Config::peers_per_ip_max`]: a member connects once for each listing it wants.
    pub fn set_members(&self, members: Vec<IpAddr>) {
        self.inner.tell_all(|| Command::SetMembers(members.clone()));
    }

    /// `false` chokes every peer and serves no payload, while fetching goes on.
    pub fn set_serving(&self, serving: bool) {
        self.inner.tell_all(|| Command::SetServing(serving));
    }

    /// Caps payload from now on.
    pub fn set_rates(&self, scope: Scope, rates: Rates) {
        self.inner.mesh.limiter().set(scope, rates);
        self.inner.tell_all(|| Command::RatesChanged);
    }

    /// The caps in force.
    pub fn rates(&self, scope: Scope) -> Rates {
        self.inner.mesh.limiter().rates(scope)
    }

    /// Caps the payload bytes sent per second over everything, and leaves the other cap as it is.
    pub fn set_upload_rate(&self, rate: Option<u64>) {
        self.set_rates(Scope::All, Rates { upload: rate, ..self.rates(Scope::All) });
    }

    /// The metainfo of a listing; `None` while it is not known, or for an unknown id.
    pub fn metainfo(&self, id: ListingId) -> Option<Arc<Metainfo>> {
        let home = self.inner.mesh.home_of(id);
        match self.inner.ask(home, |answer| Command::Metainfo(id, answer))?? {
            KnownMetainfo::Here(metainfo) => Some(metainfo),
            KnownMetainfo::Kept(hashes) => self.inner.state.load_metainfo(hashes).map(Arc::new),
        }
    }

    /// Where a listing stands; `None` for an unknown id.
    pub fn listing_status(&self, id: ListingId) -> Option<ListingStatus> {
        let inner = &*self.inner;
        let home = inner.mesh.home_of(id);
        let mut status = inner.ask(home, |answer| Command::Status(id, answer))??;
        if inner.mesh.is_striped(id) {
            for shard in (0..inner.shards.len()).filter(|&shard| shard != home) {
                if let Some(part) = inner.ask(shard, |answer| Command::Status(id, answer))? {
                    status.add_part(part);
                }
            }
        }
        Some(status)
    }

    /// Counters of the whole engine. Does not wait for the shards.
    pub fn status(&self) -> EngineStatus {
        let inner = &*self.inner;
        let (download_rate, upload_rate) = inner.rates();
        let mut closed = BTreeMap::new();
        for shard in &inner.shards {
            for (code, count) in shard.counters.closed() {
                *closed.entry(code).or_default() += count;
            }
        }
        let extents = |count: fn(&Arena) -> usize| {
            let all: usize = inner.shards.iter().map(|shard| count(&shard.arena)).sum();
            (all * EXTENT_LEN_BYTES) as u64
        };
        EngineStatus {
            driver: inner.shards[0].driver,
            received_bytes: inner.sum(|counters| &counters.received_bytes),
            sent_bytes: inner.sum(|counters| &counters.sent_bytes),
            payload_sent_bytes: inner.sum(|counters| &counters.payload_sent_bytes),
            payload_verified_bytes: inner.sum(|counters| &counters.payload_verified_bytes),
            wasted_bytes: inner.sum(|counters| &counters.wasted_bytes),
            stored_bytes: inner.sum(|counters| &counters.stored_bytes),
            read_cache_bytes: inner.sum(|counters| &counters.read_cache_bytes),
            read_page_cache_bytes: inner.sum(|counters| &counters.read_page_cache_bytes),
            read_direct_bytes: inner.sum(|counters| &counters.read_direct_bytes),
            hashed_bytes: inner.sum(|counters| &counters.hashed_bytes),
            hash_calls: inner.sum(|counters| &counters.hash_calls),
            hash_messages: inner.sum(|counters| &counters.hash_messages),
            peers: inner.sum(|counters| &counters.peers),
            closed,
            listings: inner.sum(|counters| &counters.listings),
            listings_active: inner.sum(|counters| &counters.listings_active),
            arena_in_use_bytes: extents(Arena::in_use),
            arena_capacity_bytes: extents(Arena::capacity),
            arena_waits: inner.sum(|counters| &counters.arena_waits),
            download_rate,
            upload_rate,
            moved_connections: inner.mesh.moved_count(),
            shards: inner.shards.iter().map(ShardHandle::status).collect(),
        }
    }

    /// How many shards run.
    pub fn shard_count(&self) -> usize {
        self.inner.shards.len()
    }

    /// Stops: what is verified is written, synced and journalled, connections are closed, the threads
    /// have ended when this returns. Calling it again does nothing.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

impl ShardHandle {
    fn has_ended(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn status(&self) -> ShardStatus {
        let counters = &self.counters;
        ShardStatus {
            driver: self.driver,
            payload_received_bytes: counters.payload_received_bytes.get(),
            payload_sent_bytes: counters.payload_sent_bytes.get(),
            peers: counters.peers.get(),
            listings: counters.listings.get(),
            listings_active: counters.listings_active.get(),
            arena_in_use_bytes: (self.arena.in_use() * EXTENT_LEN_BYTES) as u64,
        }
    }
}

impl Inner {
    /// Sends a question to a shard and waits for the answer; `None` when it has stopped.
    fn ask<T>(&self, shard: usize, command: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        let (answer, answers) = sync_channel(1);
        let shard = &self.shards[shard];
        shard.queue.push(command(answer));
        // A stopped shard never drains the queue, so the sender would wait there for ever: look
        // whether the thread lives between short waits.
        loop {
            match answers.recv_timeout(Duration::from_millis(200)) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if shard.has_ended() => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn home(&self, id: ListingId) -> &ShardHandle {
        &self.shards[self.mesh.home_of(id)]
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.shards.iter().for_each(|shard| shard.queue.push(command()));
    }

    fn sum(&self, counter: impl Fn(&Counters) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| counter(&shard.counters).get()).sum()
    }

    /// Hands listings to shards, each shard all of its own at once; the answers are in their order.
    fn add_prepared(&self, news: Vec<NewListing>) -> Vec<Result<ListingId, EngineError>> {
        // One shard looks by itself; of several, any may have it.
        let has_several = self.mesh.shard_count() > 1;
        let _adding =
            has_several.then(|| self.adding.lock().unwrap_or_else(PoisonError::into_inner));
        let mut results: Vec<Result<ListingId, EngineError>> = Vec::with_capacity(news.len());
        let mut chosen: BTreeMap<ListingKey, usize> = BTreeMap::new();
        let mut by_shard: Vec<Batch> = Vec::new();
        by_shard.resize_with(self.shards.len(), Default::default);
        for (at, mut new) in news.into_iter().enumerate() {
            let key = key_of(&new.identity);
            if let Some(id) = self.find_elsewhere(&key) {
                results.push(Err(EngineError::Exists { id }));
                continue;
            }
            // One that is there twice goes to one shard, which refuses it the second time.
            let shard = match has_several {
                true => *chosen.entry(key).or_insert_with(|| self.least_filled(&by_shard)),
                false => 0,
            };
            let number = self.next_number.fetch_add(1, Ordering::Relaxed);
            new.id = self.mesh.id_of(shard, number);
            results.push(Err(EngineError::Stopped));
            by_shard[shard].places.push(at);
            by_shard[shard].news.push(new);
        }
        for (shard, Batch { places, news }) in by_shard.into_iter().enumerate() {
            if news.is_empty() {
                continue;
            }
            let answers = self.ask(shard, |answer| Command::Add(news, answer)).unwrap_or_default();
            for (at, answer) in places.into_iter().zip(answers) {
                results[at] = answer;
            }
        }
        results
    }

    /// The listing of an identity in any shard; where there is one shard, it looks when it is asked to add.
    fn find_elsewhere(&self, key: &ListingKey) -> Option<ListingId> {
        let candidates = match self.mesh.shard_count() {
            1 => Vec::new(),
            _ => self.mesh.find_name(&name_of(key)),
        };
        candidates.into_iter().find_map(|candidate| {
            let home = self.mesh.home_of(candidate);
            self.ask(home, |answer| Command::Find(*key, answer)).flatten()
        })
    }

    /// The shard that gets the next listing: one with fewest of them, in turn. What is on its way to a
    /// shard is counted with what it has.
    fn least_filled(&self, coming: &[Batch]) -> usize {
        let count = self.shards.len();
        let turn = self.next_number.load(Ordering::Relaxed) as usize;
        let in_turn = (0..count).map(|at| (turn + at) % count);
        let filled =
            |&at: &usize| self.shards[at].counters.listings.get() + coming[at].news.len() as u64;
        in_turn.min_by_key(filled).unwrap_or(0)
    }

    fn stop(&self) {
        // All at once: the first shard waits for the others by itself, it has their records to write.
        let take = |shard: &ShardHandle| {
            let mut thread = shard.thread.lock().unwrap_or_else(PoisonError::into_inner);
            thread.take().inspect(|_| shard.queue.push(Command::Shutdown))
        };
        let threads: Vec<_> = self.shards.iter().map(take).collect();
        for thread in threads.into_iter().flatten() {
            let error = match thread.join() {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("the I/O driver failed: {error}"),
                Err(_) => "the shard's thread panicked".to_owned(),
            };
            tracing::error!(error);
            // Nobody has to listen any more.
            let _ = self.events.send(Event::Fatal { error });
        }
    }

    /// Payload rates, sampled when asked and at most once a second.
    fn rates(&self) -> (u64, u64) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let elapsed = now.duration_since(rates.at);
        if elapsed >= Duration::from_secs(1) {
            let received = self.sum(|counters| &counters.payload_received_bytes);
            let sent = self.sum(|counters| &counters.payload_sent_bytes);
            let per_second = |bytes: u64| (bytes as f64 / elapsed.as_secs_f64()) as u64;
            rates.download_rate = per_second(received - rates.received);
            rates.upload_rate = per_second(sent - rates.sent);
            (rates.at, rates.received, rates.sent) = (now, received, sent);
        }
        (rates.download_rate, rates.upload_rate)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Takes the lock that keeps a second process out of the state folder.
fn lock_state_dir(path: &Path) -> Result<File, EngineError> {
    let io_error = |what, path: PathBuf| move |source| EngineError::Io { what, path, source };
    std::fs::create_dir_all(path).map_err(io_error("cannot create", path.into()))?;
    let lock_path = path.join("engine.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(io_error("cannot open", lock_path.clone()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(EngineError::StateLocked { path: path.into() }),
        Err(error) => Err(io_error("cannot lock", lock_path)(error.into())),
    }
}

/// Binds the listeners; the driver only has to accept on them.
fn bind_all(addrs: &[SocketAddr]) -> Result<Vec<(OwnedFd, SocketAddr)>, EngineError> {
    let bind = |&addr: &SocketAddr| {
        let has_v4 = addrs
            .iter()
            .any(|other| other.is_ipv4() && other.port() == addr.port() && addr.port() != 0);
        let is_any = addr.ip().is_unspecified();
        let dual = if is_any && !has_v4 { DualStack::Yes } else { DualStack::No };
        let listen_error = |source: io::Error| EngineError::Listen { addr, source };
        let listener = net::listen(addr, Blocking::No, dual).map_err(listen_error)?;
        let local = net::local_addr(listener.as_fd()).map_err(listen_error)?;
        Ok((listener, local))
    };
    addrs.iter().map(bind).collect()
}

/// A seed that differs between engines and runs: the standard library keys its hash maps with one.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}
