//! `ringseed get`, and what it shares with [`seed`](crate::seed): a plain BitTorrent client on the same engine,
//! no ledger.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ringseed_core::metainfo::Metainfo;
use ringseed_core::select::FileSelection;
use ringseed_engine::utp::UtpRefusal;
use ringseed_engine::{
    ARENA_LEN_BYTES_OF_SHARD, AddListing, Config, Engine, EngineError, EngineStatus, Event,
    ListingError, ListingId, ListingState, ListingStatus, Place, ShardStatus,
};
use serde_json::{Value, json};

use crate::datatrust::engine_error;
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::offline::{describe, say_notes};
use crate::progress::{Reporter, Task};
use crate::sources::{self, Tracking, Wanted};
use crate::{cli, drivers, keys, preflight, units, up};

/// Folder of our own inside `--data`, where `get` and `seed` keep what lets them resume.
pub const STATE_DIR: &str = ".ringseed";
/// How often progress is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// `get` gives up when for so long nobody answered and nothing came.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// And with trackers, of which one must answer first, and perhaps a second time.
const SILENCE_MAX_TRACKED: Duration = Duration::from_secs(180);
/// How often `seed` reports its counters.
const SEED_REPORT: Duration = Duration::from_secs(10);

/// Starts an engine for plain use.
pub(crate) fn start(
    state_dir: &Path,
    listen: &[SocketAddr],
    moving: &cli::Moving,
    peers_per_ip: Option<u32>,
    reporter: Reporter,
) -> Result<(Engine, Receiver<Event>, [u8; 20])> {
    for finding in preflight::machine()? {
        finding.warning.warn(&finding.now, reporter.is_json());
    }
    for &addr in listen.iter().filter(|addr| addr.port() != 0) {
        preflight::port(addr, "payload")?;
    }
    let peer_id = random_peer_id()?;
    let mut config = Config::new(state_dir, peer_id);
    config.listen = listen.to_vec();
    config.dials_as_seed = true;
    config.upload_rate_max = moving.uplink;
    config.download_rate_max = moving.downlink;
    config.zero_copy_send = moving.zero_copy_send;
    config.io_driver = drivers::find(&moving.io_driver, Code::BadValue)?;
    config.shards = moving.shards;
    // Each of them needs an arena; what is asked for is given.
    let arena_len_bytes = moving.shards.unwrap_or(1) as usize * ARENA_LEN_BYTES_OF_SHARD;
    config.arena_len_bytes = config.arena_len_bytes.max(arena_len_bytes);
    if let Some(peers_per_ip) = peers_per_ip {
        config.peers_per_ip_max = peers_per_ip;
        config.limit_loopback = true;
    }
    let (engine, events) = Engine::start(config).map_err(engine_error)?;
    Ok((engine, events, peer_id))
}

/// Stock use says nothing about who we are: a new id each time.
fn random_peer_id() -> Result<[u8; 20]> {
    let mut id = *b"-RS0100-............";
    keys::fill_random(&mut id[8..])?;
    Ok(id)
}

/// What each shard of an engine has done, in order.
pub(crate) fn shards_json(engine: &EngineStatus) -> Value {
    let shard = |shard: &ShardStatus| {
        json!({
            "driver": shard.driver, "payload_received_bytes": shard.payload_received_bytes,
            "payload_sent_bytes": shard.payload_sent_bytes, "peers": shard.peers,
            "listings": shard.listings, "listings_active": shard.listings_active,
            "arena_in_use_bytes": shard.arena_in_use_bytes,
        })
    };
    engine.shards.iter().map(shard).collect()
}

/// The counters of an engine and one listing, as `seed` and `get` print them.
pub(crate) fn counters(engine: &EngineStatus, listing: Option<&ListingStatus>) -> Value {
    let mut value = json!({
        "driver": engine.driver, "received_bytes": engine.received_bytes,
        "sent_bytes": engine.sent_bytes, "payload_sent_bytes": engine.payload_sent_bytes,
        "payload_verified_bytes": engine.payload_verified_bytes,
        "wasted_bytes": engine.wasted_bytes, "stored_bytes": engine.stored_bytes,
        "read_cache_bytes": engine.read_cache_bytes,
        "read_page_cache_bytes": engine.read_page_cache_bytes,
        "read_direct_bytes": engine.read_direct_bytes, "hashed_bytes": engine.hashed_bytes,
        "hash_calls": engine.hash_calls, "hash_messages": engine.hash_messages,
        "peers": engine.peers, "closed": engine.closed, "arena_waits": engine.arena_waits,
        "download_rate": engine.download_rate, "upload_rate": engine.upload_rate,
        "moved_connections": engine.moved_connections, "shards": shards_json(engine),
    });
    if let Some(listing) = listing {
        value["have_bytes"] = json!(listing.have_bytes);
        value["wanted_bytes"] = json!(listing.wanted_bytes);
        value["total_bytes"] = json!(listing.total_bytes);
        value["have_pieces"] = json!(listing.have_pieces);
        value["piece_count"] = json!(listing.piece_count);
        value["sources"] = listing
            .sources
            .iter()
            .map(|source| {
                json!({"peer_id": units::hex(&source.peer_id), "addr": source.addr.to_string(),
                       "verified_bytes": source.verified_bytes})
            })
            .collect();
    }
    value
}

/// What the end of a listing means to whoever typed the command.
pub(crate) fn state_error(error: &ListingError) -> Error {
    let code = match error {
        ListingError::ViewsDisagree { .. } => Code::ViewsDiffer,
        ListingError::IncompleteInPlace { .. } => Code::Damaged,
        ListingError::Selection(_) => Code::BadValue,
        ListingError::TooLarge { .. } | ListingError::BadMetainfo { .. } => Code::BadTorrent,
        ListingError::Path { .. } => Code::Io,
    };
    Error::new(code, error.to_string())
}

/// What an engine event means for a plain transfer: an error, or nothing.
pub(crate) fn judge(event: &Event, reporter: Reporter) -> Result<()> {
    match event {
        Event::Failed { error, .. } => Err(state_error(error)),
        Event::Fatal { error } => {
            Err(Error::new(Code::Io, "the engine stopped").why(error.clone()))
        }
        Event::PeerBanned { addr, reason, .. } => {
            let text = format!("peer {addr} refused: {reason}");
            reporter.say(
                "peer-refused",
                &text,
                json!({"addr": addr.to_string(), "reason": reason}),
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// `ringseed get`: exits when complete and verified; running it again resumes.
///
/// # Errors
/// [`Code::Interrupted`] (exit 12) on Ctrl-C; [`Code::Unreachable`] when nobody answers;
/// [`Code::BadValue`] for a link that cannot be used or files that the torrent does not have;
/// [`Code::ViewsDiffer`]; [`Code::NoSpace`]; I/O errors.
pub fn get(args: &cli::Get, reporter: Reporter, print: impl FnOnce(&Value)) -> Result<()> {
    if let Some(parent) = args.with_parent {
        up::children::die_with(parent)?;
    }
    let interrupt = Interrupt::watch()?;
    let wanted = Wanted::read(&args.torrent, reporter)?;
    let select = args.select.clone().or_else(|| wanted.select.clone());
    let has_tracker = sources::has_tracker(&wanted, &args.trackers);
    let has_peers = !(args.peers.is_empty() && wanted.peers.is_empty());
    if !has_peers && !has_tracker && args.listen.is_empty() {
        return Err(Error::new(Code::Usage, "there is nobody to fetch from")
            .why("no peer and no tracker is named")
            .cure("name one: --peer HOST:PORT or --tracker URL"));
    }
    preflight::writable(&args.data)?;
    if let Some(metainfo) = &wanted.metainfo {
        say_notes(metainfo, reporter);
        require_room(metainfo, select.as_ref(), &args.data)?;
    }
    let mut peers = sources::resolve_named(&args.peers)?;
    peers.extend(sources::resolve_hinted(&wanted.peers, reporter));
    let (engine, events, peer_id) =
        start(&args.data.join(STATE_DIR), &args.listen, &args.moving, None, reporter)?;
    let add = AddListing {
        identity: wanted.identity.clone(),
        place: Place::Owned(args.data.clone()),
        verify_v1: true,
        known_complete: false,
        size_max_bytes: None,
        peers,
        private_to_market: false,
    };
    let id = engine.add_selected(add, select.clone()).map_err(|error| match error {
        EngineError::Refused(error) => state_error(&error),
        error => engine_error(error),
    })?;
    let _refusal = UtpRefusal::start(engine.local_addrs());
    let tracking = Tracking::start(&engine, peer_id, &args.trackers, reporter);
    tracking.add(id, &wanted);
    let total = wanted.metainfo.as_ref().map_or(0, |known| known.info().geometry().payload_len());
    let task = reporter.bytes("get", format!("getting {}", wanted.name), total);
    let began = Instant::now();
    let silence_max = if has_tracker { SILENCE_MAX_TRACKED } else { SILENCE_MAX };
    let fetch = Fetch { engine: &engine, id, events: &events, task: &task, reporter, silence_max };
    let room = |metainfo: &Metainfo| require_room(metainfo, select.as_ref(), &args.data);
    let result = fetch.run(&interrupt, &tracking, &room);
    let elapsed = began.elapsed();
    let status = engine.listing_status(id);
    let metainfo = wanted.metainfo.clone().or_else(|| engine.metainfo(id));
    let mut summary = metainfo.as_deref().map_or_else(|| json!({"name": wanted.name}), describe);
    summary["complete"] = json!(result.is_ok());
    summary["seconds"] = json!(elapsed.as_secs_f64());
    if let Some(select) = &select {
        summary["selected"] = json!(select.to_string());
    }
    summary["swarm"] = tracking.swarm(id);
    summary["counters"] = counters(&engine.status(), status.as_ref());
    let result = result.map_err(|error| resumable(error, args));
    match &result {
        Ok(()) => {
            let verified = engine.status().payload_verified_bytes;
            let bytes = status.as_ref().map_or(total, |status| status.wanted_bytes);
            let text = format!(
                "complete and verified: {} in {}, {} fetched ({})",
                units::bytes(bytes),
                units::time(elapsed),
                units::bytes(verified),
                units::rate(units::mean_rate(verified, elapsed))
            );
            task.finish(&text, json!({"bytes": bytes, "fetched": verified}));
        }
        Err(_) => drop(task),
    }
    let mut served = Ok(());
    if result.is_ok() && args.seed_after {
        reporter.say(
            "seeding",
            "serving until Ctrl-C",
            json!({"addr": engine.local_addr().map(|a| a.to_string())}),
        );
        served = serve(&engine, id, &events, &interrupt, reporter);
        summary["counters"] = counters(&engine.status(), engine.listing_status(id).as_ref());
    }
    tracking.stop();
    engine.shutdown();
    print(&summary);
    result.and(served)
}

fn resumable(error: Error, args: &cli::Get) -> Error {
    if !matches!(error.code, Code::Interrupted | Code::Unreachable | Code::NoSpace) {
        return error;
    }
    let torrent = args.torrent.display().to_string();
    // A link has an & in it, which a shell takes for itself.
    let quote = if torrent.contains('&') { "'" } else { "" };
    let mut command =
        format!("ringseed get {quote}{torrent}{quote} --data {}", args.data.display());
    if let Some(select) = &args.select {
        command.push_str(&format!(" --select {select}"));
    }
    args.peers.iter().for_each(|peer| command.push_str(&format!(" --peer {peer}")));
    args.trackers.urls.iter().for_each(|url| command.push_str(&format!(" --tracker {url}")));
    error.cure(format!("what is there is kept; to go on:  {command}"))
}

/// Refuses early when the missing files cannot fit.
fn require_room(metainfo: &Metainfo, select: Option<&FileSelection>, data: &Path) -> Result<()> {
    let on_disk = |path: std::path::PathBuf| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
    };
    // A selection that does not fit is refused by the engine, with its reason.
    let wanted = select.and_then(|select| select.wanted(metainfo.info()).ok());
    let missing: u64 = metainfo
        .info()
        .files()
        .enumerate()
        .filter(|(at, file)| !file.pad && wanted.as_ref().is_none_or(|wanted| wanted[*at]))
        .map(|(_, file)| file.len_bytes.saturating_sub(on_disk(data.join(file.path().as_path()))))
        .sum();
    let free = preflight::free_bytes(data)?;
    if missing <= free {
        return Ok(());
    }
    Err(Error::new(Code::NoSpace, format!("no room for {}", units::bytes(missing)))
        .why(format!("{} has {} free", data.display(), units::bytes(free)))
        .cure("free some space, or choose another --data"))
}

/// One torrent on its way.
struct Fetch<'a> {
    engine: &'a Engine,
    id: ListingId,
    events: &'a Receiver<Event>,
    task: &'a Task,
    reporter: Reporter,
    silence_max: Duration,
}

impl Fetch<'_> {
    /// Waits until the listing is complete and durable. `room` is asked when it is known what comes.
    fn run(
        &self,
        interrupt: &Interrupt,
        tracking: &Tracking,
        room: &dyn Fn(&Metainfo) -> Result<()>,
    ) -> Result<()> {
        let (mut last, mut last_at) = (0, Instant::now());
        let mut was_missing = false;
        loop {
            if interrupt.is_asked() {
                return Err(Error::new(Code::Interrupted, "stopped before it was complete"));
            }
            match self.events.recv_timeout(TICK) {
                Ok(Event::Complete { id }) if id == self.id => {
                    let status = self.engine.listing_status(id);
                    // Some of the files are not all: to a tracker we still lack something.
                    if was_missing && status.is_some_and(|s| s.have_bytes == s.total_bytes) {
                        tracking.set_completed(id);
                    }
                    return Ok(());
                }
                Ok(Event::MetadataReady { .. }) => {
                    if let Some(metainfo) = self.engine.metainfo(self.id) {
                        say_notes(&metainfo, self.reporter);
                        room(&metainfo)?;
                        let info = metainfo.info();
                        let text = format!("it is {}", info.name());
                        self.reporter.say("metadata", &text, describe(&metainfo));
                    }
                }
                Ok(event) => judge(&event, self.reporter)?,
                Err(_) => {}
            }
            let Some(status) = self.engine.listing_status(self.id) else { continue };
            was_missing |= matches!(status.state, ListingState::Fetching | ListingState::Metadata);
            self.task.set(status.have_bytes.min(status.wanted_bytes), status.wanted_bytes);
            let from = units::count(u64::from(status.peers), "peer");
            match &status.state {
                ListingState::Checking => self.task.note("checking what is there"),
                ListingState::Waiting { reason } => self.task.note(reason.to_string()),
                ListingState::Metadata => self.task.note(format!("asking {from} what it is")),
                _ => self.task.note(format!("from {from}")),
            }
            if status.peers == 0 {
                tracking.want_peers(self.id);
            }
            let received = self.engine.status().received_bytes + status.have_bytes;
            if received != last || matches!(status.state, ListingState::Checking) {
                (last, last_at) = (received, Instant::now());
            } else if last_at.elapsed() > self.silence_max {
                return Err(self.given_up(&status));
            }
        }
    }

    fn given_up(&self, status: &ListingStatus) -> Error {
        if let ListingState::Waiting { reason } = &status.state {
            let code = match reason {
                ringseed_engine::WaitReason::DiskFull => Code::NoSpace,
                _ => Code::Io,
            };
            return Error::new(code, format!("cannot go on: {reason}"));
        }
        Error::new(Code::Unreachable, "no peer has anything for us").why(format!(
            "{} in {}",
            units::count(u64::from(status.peers), "connection"),
            units::time(self.silence_max)
        ))
    }
}

/// When the counters were reported last, and what they said.
pub(crate) struct Counts {
    at: Instant,
    sent_bytes: u64,
}

impl Counts {
    /// Nothing reported yet.
    pub fn new() -> Counts {
        Counts { at: Instant::now(), sent_bytes: 0 }
    }

    /// Reports the counters if that was long ago and something was sent since; those of the listing as
    /// well where there is only one.
    pub fn tell(&mut self, engine: &Engine, only: Option<ListingId>, reporter: Reporter) {
        let status = engine.status();
        if self.at.elapsed() <= SEED_REPORT || status.payload_sent_bytes == self.sent_bytes {
            return;
        }
        (self.at, self.sent_bytes) = (Instant::now(), status.payload_sent_bytes);
        let listing = only.and_then(|id| engine.listing_status(id));
        let text = format!(
            "sent {}, now {}, {}",
            units::bytes(self.sent_bytes),
            units::rate(status.upload_rate),
            units::count(status.peers, "peer")
        );
        reporter.say("counters", &text, counters(&status, listing.as_ref()));
    }
}

/// Serves until Ctrl-C, and reports the counters now and then.
fn serve(
    engine: &Engine,
    id: ListingId,
    events: &Receiver<Event>,
    interrupt: &Interrupt,
    reporter: Reporter,
) -> Result<()> {
    let mut counts = Counts::new();
    while !interrupt.is_asked() {
        if let Ok(event) = events.recv_timeout(TICK) {
            judge(&event, reporter)?;
        }
        counts.tell(engine, Some(id), reporter);
    }
    Ok(())
}
