//! The node process: follows the ledger with the engine.
//!
//! Threads: the *follower* (this one) reconciles at every committed height and engine event; *duties*
//! signs and submits what this datatrust owes the ledger; *control* answers the command line. All
//! three share a [`Datatrust`], whose book says what is done about each listing.

pub mod book;
pub mod chain;
mod control;
mod duties;
mod import;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringseed_abci::{Cluster, ClusterConfig, Driver, StartError};
use ringseed_engine::{
    AddListing, DirectIo, Engine, EngineError, Event, Identity, ListingId, Place,
};
use ringseed_ledger::{Genesis, PublicKey, SigningKey};
use ringseed_sys::dir::DirHandle;
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::{error, info, warn};

use crate::cli;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::layout::{Layout, Lock, write_private};
use crate::{drivers, keys, preflight, units, up};

use book::{Action, Book, Entry, Hash, Room, Stand, Want, reconcile};
use chain::Chain;

/// How long the follower sleeps when nothing happens; space and back-offs are looked at then.
const TICK: Duration = Duration::from_millis(500);
/// How often a refused listing is looked at again.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// Something for the follower.
pub(crate) enum Wake {
    /// A height was committed, or a book entry changed.
    Look,
    /// The engine told something.
    Engine(Event),
    /// Bytes of a listing were deleted.
    Freed { hash: Hash, result: std::io::Result<u64> },
}

/// What the threads of one node process share.
pub(crate) struct Datatrust {
    pub(crate) layout: Layout,
    pub(crate) config: Config,
    pub(crate) chain: Chain,
    pub(crate) engine: Engine,
    pub(crate) payload: PathBuf,
    pub(crate) interrupt: Interrupt,
    pub(crate) is_serving: AtomicBool,
    pub(crate) started_at: Instant,
    /// Peers that were refused for good, newest last.
    pub(crate) banned: Mutex<Vec<serde_json::Value>>,
    book: Mutex<Book>,
    wake: Sender<Wake>,
    /// Wakes the duties thread.
    owed: Sender<()>,
}

impl Datatrust {
    /// The book. No panic under its lock leaves it half changed: entries are replaced whole.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the follower and the duties to look again.
    pub(crate) fn wake(&self) {
        // A follower that has ended needs no waking.
        let _ = self.wake.send(Wake::Look);
        let _ = self.owed.send(());
    }

    /// Folder that holds the root name of the listing `hash`.
    pub(crate) fn folder_of(&self, hash: &Hash) -> PathBuf {
        self.payload.join(units::hex(hash))
    }

    /// Writes down which listings lie in places of the user's, for the next start.
    pub(crate) fn save_places(&self, book: &Book) -> Result<()> {
        let places: BTreeMap<String, &PathBuf> = book
            .iter()
            .filter_map(|(hash, entry)| Some((units::hex(hash), entry.in_place.as_ref()?)))
            .collect();
        let text = json!({"version": 1, "in_place": places}).to_string();
        write_private(&self.places_path(), text.as_bytes())
    }

    fn places_path(&self) -> PathBuf {
        self.layout.root().join("places.json")
    }

    fn load_places(&self) -> Result<BTreeMap<Hash, PathBuf>> {
        let path = self.places_path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let damaged =
            || Error::new(Code::Damaged, format!("{} is not of version 1", path.display()));
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|_| damaged())?;
        if value["version"] != 1 {
            return Err(damaged());
        }
        let entries = value["in_place"].as_object().ok_or_else(damaged)?;
        entries
            .iter()
            .map(|(hash, path)| {
                let hash = units::parse_hex(hash).ok_or_else(damaged)?;
                Ok((hash, PathBuf::from(path.as_str().ok_or_else(damaged)?)))
            })
            .collect()
    }
}

/// The BitTorrent peer id of the datatrust with this key: how receivers know who sent.
pub fn peer_id(key: &PublicKey) -> [u8; 20] {
    let mut id = *b"-RS0100-............";
    id[8..].copy_from_slice(&Sha256::digest(key.0)[..12]);
    id
}

/// `ringseed start`: runs until it is asked to stop.
///
/// # Errors
/// Whatever keeps it from starting, or made it stop.
pub fn start(args: &cli::Start, as_json: bool) -> Result<()> {
    start_with(args, as_json, |layout, config, key, genesis| {
        preflight::port(config.market.listen, "market")?;
        Ok(Arc::new(start_cluster(layout, config, key, genesis)?))
    })
}

/// As [`start`], with the consensus that `order` starts.
pub(crate) fn start_with(
    args: &cli::Start,
    as_json: bool,
    order: impl FnOnce(&Layout, &Config, &SigningKey, Option<Genesis>) -> Result<Arc<dyn Driver>>,
) -> Result<()> {
    if let Some(parent) = args.with_parent {
        up::children::die_with(parent)?;
    }
    let interrupt = Interrupt::watch()?;
    let layout = Layout::new(&args.dir);
    let config = layout.load_config()?;
    let _lock = Lock::take(&layout.root().join("lock"))?;
    for finding in preflight::machine()? {
        finding.warning.warn(&finding.now, as_json);
    }
    let key = keys::load(&layout.key())?;
    preflight::writable(layout.root())?;
    let payload = layout.payload(&config);
    preflight::writable(&payload)?;
    preflight::port(config.market.payload_listen, "payload")?;
    let genesis = genesis_of(args.genesis.as_deref(), &layout)?;
    check_genesis(genesis.as_ref(), &config)?;

    let (engine, events) = start_engine(&layout, &config, &key)?;
    let driver = order(&layout, &config, &key, genesis).inspect_err(|_| engine.shutdown())?;

    let (wake, inbox) = channel();
    let (owed, owing) = channel();
    let trust = Arc::new(Datatrust {
        chain: Chain::new(driver.clone(), key),
        engine,
        payload,
        interrupt,
        is_serving: AtomicBool::new(true),
        started_at: Instant::now(),
        banned: Mutex::default(),
        book: Mutex::default(),
        wake,
        owed,
        layout,
        config,
    });
    let result = trust.run(inbox, owing, events);
    let _ = std::fs::remove_file(trust.layout.control());
    info!("stopping");
    trust.engine.shutdown();
    driver.shutdown();
    result
}

/// The genesis given, which is kept for the next start; else the one that is kept.
fn genesis_of(given: Option<&std::path::Path>, layout: &Layout) -> Result<Option<Genesis>> {
    let Some(given) = given else {
        return match layout.genesis().exists() {
            true => read_genesis(&layout.genesis()).map(Some),
            false => Ok(None),
        };
    };
    let genesis = read_genesis(given)?;
    if !layout.genesis().exists() {
        write_private(&layout.genesis(), genesis.to_text().as_bytes())?;
    }
    Ok(Some(genesis))
}

pub(crate) fn read_genesis(path: &std::path::Path) -> Result<Genesis> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    Genesis::from_text(&text).map_err(|error| {
        Error::new(Code::Genesis, format!("{}: {error}", path.display()))
            .cure("ringseed genesis --market NAME MEMBER… -o FILE")
    })
}

fn check_genesis(genesis: Option<&Genesis>, config: &Config) -> Result<()> {
    let Some((genesis, wanted)) = genesis.zip(config.market.genesis_hash.as_ref()) else {
        return Ok(());
    };
    let found = genesis.hash().to_string();
    if &found == wanted {
        return Ok(());
    }
    Err(Error::new(Code::Genesis, format!("this genesis has the hash {found}"))
        .why(format!("datatrust.toml believes in {wanted}"))
        .cure("leave --genesis away, or ask the founders for the right file"))
}

fn start_engine(
    layout: &Layout,
    config: &Config,
    key: &SigningKey,
) -> Result<(Engine, Receiver<Event>)> {
    let mut made = ringseed_engine::Config::new(layout.engine(), peer_id(&key.public()));
    made.io_driver = drivers::find(&config.engine.driver, Code::ConfigValue)?;
    made.direct_io = if config.storage.direct_io == "off" { DirectIo::Off } else { DirectIo::Auto };
    made.arena_len_bytes = units::parse_bytes(&config.engine.arena)? as usize;
    made.shards = Some(config.engine.shards).filter(|&shards| shards > 0);
    made.listen = vec![config.market.payload_listen];
    made.upload_rate_max = config.uplink()?;
    made.download_rate_max = config.downlink()?;
    made.zero_copy_send = config.engine.zero_copy_send;
    made.peers_max = config.engine.peers_max;
    made.peers_per_ip_max = config.engine.peers_per_ip_max;
    made.requests_per_peer_max = config.engine.requests_per_peer_max;
    made.device_ops_max = config.engine.device_ops_max;
    Engine::start(made).map_err(engine_error)
}

/// Our error for an engine that did not do what it was asked.
pub(crate) fn engine_error(error: EngineError) -> Error {
    let code = match &error {
        EngineError::Config(_) => Code::ConfigValue,
        EngineError::StateLocked { .. } => Code::Locked,
        EngineError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Code::PortInUse
        }
        EngineError::Io { what, path, source } => {
            let kind = source.kind();
            let again = source
                .raw_os_error()
                .map_or_else(|| kind.into(), std::io::Error::from_raw_os_error);
            return Error::io(what.trim_start_matches("cannot "), path, again);
        }
        EngineError::Journal { .. } => Code::Damaged,
        EngineError::Refused(_) => Code::BadTorrent,
        EngineError::Exists { .. } => Code::Usage,
        EngineError::Stopped => Code::Bug,
        _ => Code::Io,
    };
    Error::new(code, error.to_string())
}

fn start_cluster(
    layout: &Layout,
    config: &Config,
    key: &SigningKey,
    genesis: Option<Genesis>,
) -> Result<Cluster> {
    let mut made = ClusterConfig::new(layout.root(), key.clone());
    made.genesis = genesis;
    made.listen = Some(config.market.listen);
    made.advertise = config.market.advertise;
    made.first = config.market.contact.into_iter().collect();
    made.on_fatal = |reason| {
        error!("consensus stopped: {reason}");
        Error::new(Code::Bug, "consensus stopped").why(reason).print(false);
    };
    Cluster::start(made).map_err(|error| start_error(error, layout))
}

/// Our error for a consensus that did not start.
pub(crate) fn start_error(error: StartError, layout: &Layout) -> Error {
    let dir = layout.root().display();
    let (code, cure) = match &error {
        StartError::InUse { .. } => (Code::Locked, "stop the other process".to_owned()),
        StartError::NoGenesis { .. } => {
            (Code::Genesis, format!("ringseed start --dir {dir} --genesis FILE"))
        }
        StartError::OtherGenesis { .. } => {
            (Code::Genesis, "leave --genesis away, or use another folder".to_owned())
        }
        StartError::WrongGenesis { .. } => (
            Code::Genesis,
            "ask another member, and compare the hash with what the founders published".to_owned(),
        ),
        StartError::Unreachable { .. } => (
            Code::Unreachable,
            "check the address and the genesis hash, or try another member".to_owned(),
        ),
        StartError::BadGenesis { .. } => {
            (Code::Genesis, "ask the founders for the file".to_owned())
        }
        StartError::LastSignedLost { .. } => (
            Code::KeyFile,
            format!(
                "never copy a key: ringseed init --dir NEW and have it admitted (this one: {dir})"
            ),
        ),
        StartError::Damaged { .. } => {
            (Code::Damaged, format!("move {dir}/consensus away and join again"))
        }
        StartError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            (Code::PortInUse, "choose another address in datatrust.toml".to_owned())
        }
        _ => (Code::Io, format!("look at {dir}")),
    };
    Error::new(code, error.to_string()).cure(cure)
}

impl Datatrust {
    fn run(
        self: &Arc<Self>,
        inbox: Receiver<Wake>,
        owing: Receiver<()>,
        events: Receiver<Event>,
    ) -> Result<()> {
        self.recall()?;
        let heights = self.chain.driver().subscribe();
        let to_follower = self.wake.clone();
        let to_duties = self.owed.clone();
        std::thread::spawn(move || {
            for _height in heights {
                let _ = to_duties.send(());
                if to_follower.send(Wake::Look).is_err() {
                    return;
                }
            }
        });
        let to_follower = self.wake.clone();
        std::thread::spawn(move || {
            for event in events {
                if to_follower.send(Wake::Engine(event)).is_err() {
                    return;
                }
            }
        });
        let listener = crate::control::listen(&self.layout.control())?;
        let trust = self.clone();
        std::thread::spawn(move || control::serve(&trust, &listener));
        let trust = self.clone();
        let duties = std::thread::spawn(move || duties::run(&trust, &owing));
        info!(
            name = self.config.market.name,
            key = %self.chain.me(),
            market = %self.config.market.listen,
            payload = %self.config.market.payload_listen,
            driver = self.engine.status().driver,
            "started"
        );
        let result = self.follow(&inbox);
        self.interrupt.ask();
        let _ = self.owed.send(());
        // A duty that waits for a block gives up within its own bound; it need not be waited for.
        drop(duties);
        result
    }

    /// Notes what lies on disk from earlier runs; half-made imports are removed.
    fn recall(&self) -> Result<()> {
        let mut book = self.book();
        for (hash, path) in self.load_places()? {
            let entry = Entry { in_place: Some(path), ..Entry::new(Stand::Stopped) };
            book.insert(hash, entry);
        }
        let entries = std::fs::read_dir(&self.payload)
            .map_err(|error| Error::io("read", &self.payload, error))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(hash) = units::parse_hex::<32>(name) {
                book.entry(hash).or_insert_with(|| Entry::new(Stand::Stopped));
            } else if name.starts_with(import::PREFIX) {
                let root = DirHandle::open(&self.payload)
                    .and_then(|dir| dir.remove_tree(std::path::Path::new(name)));
                root.map_err(|error| Error::io("remove", &entry.path(), error))?;
            }
        }
        Ok(())
    }

    /// The loop. Ends when asked to stop, or when the engine cannot go on.
    fn follow(self: &Arc<Self>, inbox: &Receiver<Wake>) -> Result<()> {
        let mut seen = Seen::default();
        while !self.interrupt.is_asked() {
            let first = match inbox.recv_timeout(TICK) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut is_changed = first.is_some();
            for wake in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
                is_changed |= self.take_in(wake, &mut seen)?;
            }
            self.look(&mut seen, is_changed)?;
        }
        Ok(())
    }

    /// Takes one message in; true when the book may have to be reconciled although the state is the
    /// same.
    fn take_in(&self, wake: Wake, seen: &mut Seen) -> Result<bool> {
        match wake {
            Wake::Look => return Ok(false),
            Wake::Engine(event) => self.take_event(event)?,
            Wake::Freed { hash, result } => {
                let name = units::short_hex(&hash);
                match result {
                    Ok(bytes) => info!(listing = name, bytes, "freed"),
                    Err(error) => warn!(listing = name, %error, "could not be freed"),
                }
                self.book().remove(&hash);
            }
        }
        seen.is_stale = true;
        Ok(true)
    }

    fn take_event(&self, event: Event) -> Result<()> {
        match event {
            Event::MetadataReady { id } => self.check_description(id),
            Event::Complete { id } => {
                self.check_description(id);
                if let Some((hash, entry)) = find(&mut self.book(), id)
                    && entry.fault.is_none()
                {
                    entry.is_complete = true;
                    info!(listing = units::short_hex(hash), "complete");
                }
                let _ = self.owed.send(());
            }
            Event::Failed { id, error } => {
                if let Some((hash, entry)) = find(&mut self.book(), id) {
                    warn!(listing = units::short_hex(hash), %error, "refused");
                    entry.fault = Some(error.to_string());
                    entry.is_complete = false;
                }
                let _ = self.owed.send(());
            }
            Event::Removed { id, .. } => {
                if let Some((_, entry)) = find(&mut self.book(), id) {
                    entry.stand = Stand::Stopped;
                    entry.since = Instant::now();
                    entry.is_complete = false;
                }
            }
            Event::PeerBanned { addr, peer_id, reason } => {
                warn!(%addr, reason, "peer refused");
                let mut banned = self.banned.lock().unwrap_or_else(PoisonError::into_inner);
                if banned.len() == 16 {
                    banned.remove(0);
                }
                banned.push(json!({"addr": addr.to_string(), "peer_id": units::hex(&peer_id), "reason": reason}));
            }
            Event::Fatal { error } => {
                return Err(Error::new(Code::Io, "the engine cannot go on").why(error));
            }
        }
        Ok(())
    }

    /// Compares what the ledger says of a listing with what its info dict says. A listing that is
    /// described wrongly is neither fetched further nor attested.
    fn check_description(&self, id: ListingId) {
        let Some(metainfo) = self.engine.metainfo(id) else { return };
        let Some(hash) = find(&mut self.book(), id).map(|(hash, _)| *hash) else { return };
        let offer = {
            let view = self.chain.driver().view();
            let data = hash.into();
            let listing = view.listing(&data).map(|listing| listing.offer.clone());
            listing.or_else(|| view.candidate(&data).map(|candidate| candidate.offer.clone()))
        };
        let Some(offer) = offer else { return };
        let Some(fault) = import::difference(&offer, &metainfo) else { return };
        warn!(listing = units::short_hex(&hash), fault, "described wrongly");
        self.engine.set_peers(id, Vec::new());
        if let Some(entry) = self.book().get_mut(&hash) {
            entry.fault = Some(fault);
            entry.is_complete = false;
        }
    }

    /// Reconciles when the state, the book or the space may have changed.
    fn look(self: &Arc<Self>, seen: &mut Seen, is_changed: bool) -> Result<()> {
        // The book first: what becomes active after this is judged by a later state. The other way
        // round, an offer that was decided in between would look like one that was removed.
        let book = self.book().clone();
        let (want, app_hash) = {
            let view = self.chain.driver().view();
            let app_hash = view.app_hash().0;
            let is_due = seen.app_hash != Some(app_hash)
                || view.height() >= seen.next_height
                || is_changed && seen.is_stale
                || seen.refused_since.is_some_and(|since| since.elapsed() > REFUSED_RETRY);
            if !is_due {
                return Ok(());
            }
            (Want::read(&view, &self.chain.me()), app_hash)
        };
        let is_caught_up = seen.is_caught_up || self.chain.driver().status().caught_up;
        seen.is_caught_up = is_caught_up;
        seen.is_stale = !is_caught_up;
        seen.app_hash = Some(app_hash);
        seen.next_height = want.graves.values().copied().min().unwrap_or(u64::MAX);
        if seen.peers != want.peers {
            seen.peers = want.peers.clone();
            self.engine.set_members(want.peers.iter().map(|addr| addr.ip()).collect());
            let ids: Vec<_> = self.book().values().filter_map(Entry::id).collect();
            for id in ids {
                self.engine.set_peers(id, want.peers.clone());
            }
        }
        let room = self.room()?;
        let actions = reconcile(&want, &book, room);
        seen.refused_since = None;
        for action in actions {
            match action {
                Action::Fetch(hash) => self.fetch(hash, &want)?,
                Action::Refuse(hash, reason) => {
                    seen.refused_since = Some(Instant::now());
                    self.refuse(hash, reason);
                }
                // Before it has caught up the ledger here may be older than what is on disk.
                Action::Stop(_) | Action::Free(_) if !is_caught_up => {}
                Action::Stop(hash) => self.stop(hash),
                Action::Free(hash) => self.free(hash)?,
            }
        }
        Ok(())
    }

    fn room(&self) -> Result<Room> {
        let reserve_bytes = units::parse_bytes(&self.config.storage.reserve)?;
        let ids: Vec<_> = self.book().values().filter_map(Entry::id).collect();
        // The engine allocates a file when it opens it, so that what is missing of opened files is
        // counted twice here: on the careful side.
        let missing = ids.into_iter().filter_map(|id| self.engine.listing_status(id));
        let promised_bytes =
            missing.map(|status| status.total_bytes.saturating_sub(status.have_bytes)).sum();
        Ok(Room {
            free_bytes: preflight::free_bytes(&self.payload)?,
            reserve_bytes,
            promised_bytes,
        })
    }

    fn fetch(&self, hash: Hash, want: &Want) -> Result<()> {
        let Some(wanted) = want.listings.get(&hash) else { return Ok(()) };
        let mut book = self.book();
        let in_place = book.get(&hash).and_then(|entry| entry.in_place.clone());
        let place = match &in_place {
            Some(folder) => Place::InPlace(folder.clone()),
            None => Place::Owned(self.folder_of(&hash)),
        };
        let added = self.engine.add(AddListing {
            identity: Identity::V2(hash),
            place,
            verify_v1: wanted.is_candidate,
            known_complete: false,
            size_max_bytes: Some(wanted.offer.size_bytes),
            peers: want.peers.clone(),
            private_to_market: true,
        });
        let stand = match added {
            Ok(id) | Err(EngineError::Exists { id }) => Stand::Active(id),
            Err(EngineError::Stopped) => return Err(Error::bug("the engine has stopped")),
            Err(error) => Stand::Refused(error.to_string()),
        };
        info!(listing = units::short_hex(&hash), name = wanted.offer.name, ?stand, "wanted");
        book.insert(hash, Entry { in_place, ..Entry::new(stand) });
        Ok(())
    }

    fn refuse(&self, hash: Hash, reason: String) {
        let mut book = self.book();
        let is_new = book.get(&hash).is_none_or(|entry| !matches!(entry.stand, Stand::Refused(_)));
        if is_new {
            warn!(listing = units::short_hex(&hash), reason, "not taken");
        }
        book.insert(hash, Entry::new(Stand::Refused(reason)));
    }

    fn stop(&self, hash: Hash) {
        let mut book = self.book();
        let Some(entry) = book.get_mut(&hash) else { return };
        let Stand::Active(id) = entry.stand else { return };
        info!(listing = units::short_hex(&hash), "stopped");
        entry.stand = Stand::Stopping(id);
        entry.since = Instant::now();
        self.engine.remove(id, false);
    }

    fn free(&self, hash: Hash) -> Result<()> {
        let mut book = self.book();
        let Some(entry) = book.get_mut(&hash) else { return Ok(()) };
        if matches!(entry.stand, Stand::Refused(_)) && entry.in_place.is_none() {
            book.remove(&hash);
            return Ok(());
        }
        if entry.in_place.is_some() {
            // The user's bytes stay; we only forget them.
            book.remove(&hash);
            return self.save_places(&book);
        }
        entry.stand = Stand::Freeing;
        entry.since = Instant::now();
        let (wake, payload) = (self.wake.clone(), self.payload.clone());
        // Deleting a large tree takes seconds; the follower goes on meanwhile.
        std::thread::spawn(move || {
            let result = DirHandle::open(&payload)
                .and_then(|dir| dir.remove_tree(std::path::Path::new(&units::hex(&hash))));
            let _ = wake.send(Wake::Freed { hash, result });
        });
        Ok(())
    }

    /// Serves payload or stops serving it.
    pub(crate) fn set_serving(&self, on: bool) {
        self.is_serving.store(on, Ordering::Relaxed);
        self.engine.set_serving(on);
    }
}

/// What the follower saw last, so that an unchanged state costs nothing.
#[derive(Default)]
struct Seen {
    app_hash: Option<Hash>,
    /// Height at which something is due although the state stays the same.
    next_height: u64,
    peers: Vec<std::net::SocketAddr>,
    refused_since: Option<Instant>,
    is_caught_up: bool,
    is_stale: bool,
}

/// The entry that the engine knows as `id`.
fn find(book: &mut Book, id: ListingId) -> Option<(&Hash, &mut Entry)> {
    book.iter_mut().find(|(_, entry)| entry.id() == Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_is_the_keys_own() {
        let id = peer_id(&PublicKey([7; 32]));
        assert_eq!(&id[..8], b"-RS0100-");
        assert_eq!(id[8..], Sha256::digest([7; 32])[..12]);
        assert_ne!(id, peer_id(&PublicKey([8; 32])));
    }
}
