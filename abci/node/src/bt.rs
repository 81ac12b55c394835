//! `ringseed seed` and `ringseed get`: a plain BitTorrent client on the same engine, no ledger.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ringseed_core::metainfo::Metainfo;
use ringseed_engine::{
    AddListing, Config, Engine, EngineStatus, Event, Identity, ListingError, ListingId,
    ListingState, ListingStatus, Place,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::datatrust::{engine_error, io_driver};
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::offline::{describe, read_torrent, say_notes};
use crate::progress::{Reporter, Task};
use crate::{cli, keys, preflight, units, up};

/// Folder of our own inside `--data`, where `get` and `seed` keep what lets them resume.
pub const STATE_DIR: &str = ".ringseed";
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(100);
/// `get` gives up when for so long nobody answered and nothing came.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often `seed` reports its counters.
const SEED_REPORT: Duration = Duration::from_secs(10);

fn start(
    state_dir: &Path,
    listen: Option<SocketAddr>,
    uplink: Option<u64>,
    driver: &str,
    reporter: Reporter,
) -> Result<(Engine, Receiver<Event>)> {
    for finding in preflight::machine()? {
        finding.warning.warn(&finding.now, reporter.is_json());
    }
    if let Some(addr) = listen.filter(|addr| addr.port() != 0) {
        preflight::port(addr, "payload")?;
    }
    let mut config = Config::new(state_dir, random_peer_id()?);
    config.listen = listen;
    config.upload_rate_max = uplink;
    config.io_driver = io_driver(driver);
    Engine::start(config).map_err(engine_error)
}

/// Stock use says nothing about who we are: a new id each time.
fn random_peer_id() -> Result<[u8; 20]> {
    let mut id = *b"-RS0100-............";
    keys::fill_random(&mut id[8..])?;
    Ok(id)
}

/// The counters of an engine and one listing, as `seed` and `get` print them.
fn counters(engine: &EngineStatus, listing: Option<&ListingStatus>) -> Value {
    let mut value = json!({
        "driver": engine.driver, "received_bytes": engine.received_bytes,
        "sent_bytes": engine.sent_bytes, "payload_sent_bytes": engine.payload_sent_bytes,
        "payload_verified_bytes": engine.payload_verified_bytes,
        "wasted_bytes": engine.wasted_bytes, "stored_bytes": engine.stored_bytes,
        "read_cache_bytes": engine.read_cache_bytes,
        "read_page_cache_bytes": engine.read_page_cache_bytes,
        "read_direct_bytes": engine.read_direct_bytes, "hashed_bytes": engine.hashed_bytes,
        "hash_calls": engine.hash_calls, "hash_messages": engine.hash_messages,
        "peers": engine.peers, "arena_waits": engine.arena_waits,
        "download_rate": engine.download_rate, "upload_rate": engine.upload_rate,
    });
    if let Some(listing) = listing {
        value["have_bytes"] = json!(listing.have_bytes);
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

fn state_error(error: &ListingError) -> Error {
    let code = match error {
        ListingError::ViewsDisagree { .. } => Code::ViewsDiffer,
        ListingError::IncompleteInPlace { .. } => Code::Damaged,
        ListingError::TooLarge { .. } | ListingError::BadMetainfo { .. } => Code::BadTorrent,
        ListingError::Path { .. } => Code::Io,
    };
    Error::new(code, error.to_string())
}

/// What an engine event means for a plain transfer: an error, or nothing.
fn judge(event: &Event, reporter: Reporter) -> Result<()> {
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
/// [`Code::ViewsDiffer`]; [`Code::NoSpace`]; I/O errors.
pub fn get(args: &cli::Get, reporter: Reporter, print: impl FnOnce(&Value)) -> Result<()> {
    if let Some(parent) = args.with_parent {
        up::children::die_with(parent)?;
    }
    let interrupt = Interrupt::watch()?;
    let metainfo = Arc::new(read_torrent(&args.torrent)?);
    say_notes(&metainfo, reporter);
    preflight::writable(&args.data)?;
    require_room(&metainfo, &args.data)?;
    let (engine, events) =
        start(&args.data.join(STATE_DIR), args.listen, None, &args.io_driver, reporter)?;
    let total = metainfo.info().geometry().payload_len();
    let added = engine.add(AddListing {
        identity: Identity::Metainfo(metainfo.clone()),
        place: Place::Owned(args.data.clone()),
        verify_v1: true,
        known_complete: false,
        size_max_bytes: None,
        peers: args.peers.clone(),
        private_to_market: false,
    });
    let id = added.map_err(engine_error)?;
    let task = reporter.bytes("get", format!("getting {}", metainfo.info().name()), total);
    let began = Instant::now();
    let result = fetch(&engine, id, &events, &task, &interrupt, reporter);
    let elapsed = began.elapsed();
    let status = engine.listing_status(id);
    let mut summary = describe(&metainfo);
    summary["complete"] = json!(result.is_ok());
    summary["seconds"] = json!(elapsed.as_secs_f64());
    summary["counters"] = counters(&engine.status(), status.as_ref());
    let result = result.map_err(|error| resumable(error, args));
    match &result {
        Ok(()) => {
            let verified = engine.status().payload_verified_bytes;
            let text = format!(
                "complete and verified: {} in {}, {} fetched ({})",
                units::bytes(total),
                units::time(elapsed),
                units::bytes(verified),
                units::rate(units::mean_rate(verified, elapsed))
            );
            task.finish(&text, json!({"bytes": total, "fetched": verified}));
        }
        Err(_) => drop(task),
    }
    if result.is_ok() && args.seed_after {
        reporter.say(
            "seeding",
            "serving until Ctrl-C",
            json!({"addr": engine.local_addr().map(|a| a.to_string())}),
        );
        let served = serve(&engine, &[id], &events, &interrupt, reporter);
        summary["counters"] = counters(&engine.status(), engine.listing_status(id).as_ref());
        engine.shutdown();
        print(&summary);
        return served;
    }
    engine.shutdown();
    print(&summary);
    result
}

fn resumable(error: Error, args: &cli::Get) -> Error {
    if !matches!(error.code, Code::Interrupted | Code::Unreachable | Code::NoSpace) {
        return error;
    }
    let peers: Vec<String> = args.peers.iter().map(|peer| format!("--peer {peer}")).collect();
    error.cure(format!(
        "what is there is kept; to go on:  ringseed get {} --data {} {}",
        args.torrent.display(),
        args.data.display(),
        peers.join(" ")
    ))
}

/// Refuses early when the missing files cannot fit.
fn require_room(metainfo: &Metainfo, data: &Path) -> Result<()> {
    let on_disk = |path: std::path::PathBuf| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
    };
    let missing: u64 = metainfo
        .info()
        .files()
        .filter(|file| !file.pad)
        .map(|file| file.len_bytes.saturating_sub(on_disk(data.join(file.path().as_path()))))
        .sum();
    let free = preflight::free_bytes(data)?;
    if missing <= free {
        return Ok(());
    }
    Err(Error::new(Code::NoSpace, format!("no room for {}", units::bytes(missing)))
        .why(format!("{} has {} free", data.display(), units::bytes(free)))
        .cure("free some space, or choose another --data"))
}

/// Waits until the listing is complete and durable.
fn fetch(
    engine: &Engine,
    id: ListingId,
    events: &Receiver<Event>,
    task: &Task,
    interrupt: &Interrupt,
    reporter: Reporter,
) -> Result<()> {
    let (mut last, mut last_at) = (0, Instant::now());
    loop {
        if interrupt.is_asked() {
            return Err(Error::new(Code::Interrupted, "stopped before it was complete"));
        }
        match events.recv_timeout(TICK) {
            Ok(Event::Complete { id: complete }) if complete == id => return Ok(()),
            Ok(event) => judge(&event, reporter)?,
            Err(_) => {}
        }
        let Some(status) = engine.listing_status(id) else { continue };
        task.set(status.have_bytes, status.total_bytes);
        match &status.state {
            ListingState::Checking => task.note("checking what is there"),
            ListingState::Waiting { reason } => task.note(reason.to_string()),
            _ => task.note(format!("from {}", units::count(u64::from(status.peers), "peer"))),
        }
        let received = engine.status().received_bytes + status.have_bytes;
        if received != last || matches!(status.state, ListingState::Checking) {
            (last, last_at) = (received, Instant::now());
        } else if last_at.elapsed() > SILENCE_MAX {
            if let ListingState::Waiting { reason } = &status.state {
                let code = match reason {
                    ringseed_engine::WaitReason::DiskFull => Code::NoSpace,
                    _ => Code::Io,
                };
                return Err(Error::new(code, format!("cannot go on: {reason}")));
            }
            return Err(Error::new(Code::Unreachable, "no peer has anything for us").why(format!(
                "{} in {}",
                units::count(u64::from(status.peers), "connection"),
                units::time(SILENCE_MAX)
            )));
        }
    }
}

/// Serves until Ctrl-C, and reports the counters now and then.
fn serve(
    engine: &Engine,
    ids: &[ListingId],
    events: &Receiver<Event>,
    interrupt: &Interrupt,
    reporter: Reporter,
) -> Result<()> {
    let (mut told_at, mut told) = (Instant::now(), 0);
    while !interrupt.is_asked() {
        if let Ok(event) = events.recv_timeout(TICK) {
            judge(&event, reporter)?;
        }
        let status = engine.status();
        if told_at.elapsed() > SEED_REPORT && status.payload_sent_bytes != told {
            (told_at, told) = (Instant::now(), status.payload_sent_bytes);
            let listing = (ids.len() == 1).then(|| engine.listing_status(ids[0])).flatten();
            let text = format!(
                "sent {}, now {}, {}",
                units::bytes(told),
                units::rate(status.upload_rate),
                units::count(status.peers, "peer")
            );
            reporter.say("counters", &text, counters(&status, listing.as_ref()));
        }
    }
    Ok(())
}

/// `ringseed seed`: checks what is there, then serves until Ctrl-C. The data is only read.
///
/// # Errors
/// [`Code::Damaged`] when the data is not whole; [`Code::PortInUse`]; I/O errors.
pub fn seed(args: &cli::Seed, reporter: Reporter, print: impl FnOnce(&Value)) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    if !args.data.is_dir() {
        return Err(Error::new(Code::Missing, format!("{} is no folder", args.data.display()))
            .why("--data names the folder that holds each torrent's root name"));
    }
    let torrents: Vec<Arc<Metainfo>> =
        args.torrents.iter().map(|path| read_torrent(path).map(Arc::new)).collect::<Result<_>>()?;
    torrents.iter().for_each(|metainfo| say_notes(metainfo, reporter));
    let state = seed_state(&args.data)?;
    let (engine, events) =
        start(&state, Some(args.listen), args.uplink, &args.io_driver, reporter)?;
    let mut ids = Vec::new();
    for metainfo in &torrents {
        let added = engine.add(AddListing {
            identity: Identity::Metainfo(metainfo.clone()),
            place: Place::InPlace(args.data.clone()),
            verify_v1: true,
            known_complete: false,
            size_max_bytes: None,
            peers: Vec::new(),
            private_to_market: false,
        });
        ids.push(added.map_err(engine_error)?);
    }
    let total = torrents.iter().map(|one| one.info().geometry().payload_len()).sum();
    let label = format!("checking {}", units::count(ids.len() as u64, "torrent"));
    let task = reporter.bytes("check", label, total);
    let mut waiting = ids.clone();
    while !waiting.is_empty() {
        if interrupt.is_asked() {
            engine.shutdown();
            return Err(Error::new(Code::Interrupted, "stopped while checking"));
        }
        match events.recv_timeout(TICK) {
            Ok(Event::Complete { id }) => waiting.retain(|other| *other != id),
            Ok(event) => judge(&event, reporter).inspect_err(|_| engine.shutdown())?,
            Err(_) => {}
        }
        let statuses = ids.iter().filter_map(|id| engine.listing_status(*id));
        task.set(statuses.map(|status| status.have_bytes).sum(), total);
    }
    let addr = engine.local_addr().map(|addr| addr.to_string()).unwrap_or_default();
    let text = format!("serving {} on {addr} until Ctrl-C", units::bytes(total));
    task.finish(&text, json!({"addr": addr, "bytes": total}));
    let result = serve(&engine, &ids, &events, &interrupt, reporter);
    let listings: Value = torrents
        .iter()
        .zip(&ids)
        .map(|(metainfo, id)| {
            let mut row = describe(metainfo);
            row["sent_bytes"] = json!(engine.listing_status(*id).map(|status| status.sent_bytes));
            row
        })
        .collect();
    let summary = json!({"torrents": listings, "counters": counters(&engine.status(), None)});
    engine.shutdown();
    print(&summary);
    result
}

/// Where `seed` remembers what it checked. Inside `--data`, where `get` looks too; when that is
/// read-only, a folder in the user's state directory.
fn seed_state(data: &Path) -> Result<std::path::PathBuf> {
    let inside = data.join(STATE_DIR);
    if inside.is_dir() {
        return Ok(inside);
    }
    let data = data.canonicalize().map_err(|error| Error::io("open", data, error))?;
    let name = units::hex(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..8]);
    Ok(up::registry::state_home().join("seed").join(name))
}
