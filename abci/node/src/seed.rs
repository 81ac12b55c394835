//! `ringseed seed`: torrents that are named, and folders of them, checked and served until Ctrl-C.
//!
//! A folder may hold a hundred thousand, so nothing but an id and the hash of its path is kept of each: a few
//! are checked at a time, no status is asked but theirs, and the folder itself is watched and not listed
//! again. A torrent of a folder is served for as long as its file lies there. One that cannot be served is
//! named and left out; one that was named on the command line ends the command.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use ringseed_core::metainfo::Metainfo;
use ringseed_engine::utp::UtpRefusal;
use ringseed_engine::{
    AddListing, Engine, EngineError, Event, Identity, ListingError, ListingId, Place,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bt::{Counts, STATE_DIR, TICK, counters, judge, start, state_error};
use crate::datatrust::engine_error;
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::offline::{describe, read_torrent, say_notes};
use crate::progress::Reporter;
use crate::sources::{self, Tracking, Wanted};
use crate::watch::{Change, Watched};
use crate::{cli, units, up};

/// Magnet links that are printed for people.
const LINKS_SHOWN_MAX: usize = 4;
/// Torrents that people are told of one by one when many are withdrawn together.
const WITHDRAWN_SHOWN_MAX: u64 = 4;
/// Torrents that are described one by one to programs.
const DESCRIBED_MAX: usize = 100;
/// Torrents that are read and added together.
const BATCH: usize = 64;
/// Torrents that are checked at the same time: enough to keep the disk busy, and few enough that their
/// metainfo is a matter of megabytes.
const CHECKS_MAX: usize = 256;

/// Checks what is there, then serves until Ctrl-C. The data is only read. A folder stands for the
/// `.torrent` files in it, and for those that come while it runs.
///
/// # Errors
/// [`Code::Damaged`] when the data of a torrent that was named is not whole, [`Code::BadTorrent`];
/// [`Code::PortInUse`]; I/O errors.
pub fn seed(args: &cli::Seed, reporter: Reporter, print: impl FnOnce(&Value)) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    if !args.data.is_dir() {
        return Err(Error::new(Code::Missing, format!("{} is no folder", args.data.display()))
            .why("--data names the folder that holds each torrent's root name"));
    }
    let mut watched = Watched::new(&args.torrents)?;
    let peers = sources::resolve_named(&args.peers)?;
    let state = seed_state(&args.data)?;
    let (engine, events, peer_id) =
        start(&state, &args.listen, &args.moving, args.peers_per_ip, reporter)?;
    let _refusal = UtpRefusal::start(engine.local_addrs());
    let mut seeding = Seeding {
        data: &args.data,
        peers,
        tracking: Tracking::start(&engine, peer_id, &args.trackers, reporter),
        engine: &engine,
        events: &events,
        interrupt: &interrupt,
        reporter,
        keys: RandomState::new(),
        paths: HashMap::new(),
        more_paths: BTreeMap::new(),
        named: BTreeSet::new(),
        first: Vec::new(),
        checking: BTreeMap::new(),
        count: 0,
        left_out: 0,
        withdrawn: 0,
        total_bytes: 0,
        whole_bytes: 0,
    };
    let result = seeding.run(&mut watched);
    let summary = seeding.summary();
    seeding.tracking.stop();
    engine.shutdown();
    if result.is_ok() {
        print(&summary);
    }
    result
}

/// A torrent whose data is not yet known to be whole.
struct Checking {
    len_bytes: u64,
    path: PathBuf,
    /// What its trackers are told when it is whole.
    wanted: Wanted,
}

/// A `seed` that runs.
struct Seeding<'a> {
    data: &'a Path,
    peers: Vec<SocketAddr>,
    engine: &'a Engine,
    events: &'a Receiver<Event>,
    interrupt: &'a Interrupt,
    tracking: Tracking,
    reporter: Reporter,
    /// What paths are hashed with. It differs from run to run, so that nobody can choose names that meet.
    keys: RandomState,
    /// Which torrent lies under a path, by the hash of the path.
    paths: HashMap<u64, ListingId>,
    /// How many more paths than one name a torrent.
    more_paths: BTreeMap<ListingId, u32>,
    /// Torrents of the command line.
    named: BTreeSet<ListingId>,
    /// The first few, to be described.
    first: Vec<ListingId>,
    checking: BTreeMap<ListingId, Checking>,
    count: u64,
    left_out: u64,
    /// Of those that went together.
    withdrawn: u64,
    total_bytes: u64,
    whole_bytes: u64,
}

impl Seeding<'_> {
    fn run(&mut self, watched: &mut Watched) -> Result<()> {
        let task = self.reporter.bytes("check", "checking", 0);
        let mut told_at = Instant::now();
        let mut tell = |seeding: &Self| {
            if told_at.elapsed() > TICK {
                told_at = Instant::now();
                task.set(seeding.checked_bytes(), seeding.total_bytes);
            }
        };
        for files in watched.files().chunks(BATCH) {
            self.take_in(files, true)?;
            tell(self);
        }
        let mut batch = Vec::with_capacity(BATCH);
        watched.each_in_folders(|path| {
            batch.push(path);
            if batch.len() == BATCH {
                self.take_in(&batch, false)?;
                batch.clear();
                tell(self);
            }
            Ok(())
        })?;
        self.take_in(&batch, false)?;
        while !self.checking.is_empty() {
            self.wait()?;
            tell(self);
        }
        let (text, fields) = self.introduce();
        task.finish(&text, fields);
        let mut counts = Counts::new();
        while !self.interrupt.is_asked() {
            if let Ok(event) = self.events.recv_timeout(TICK) {
                self.take(&event)?;
                self.take_all_told()?;
            }
            self.follow(watched).or_else(|error| match error.code {
                // Asked to end in the middle of new ones: that is how serving ends.
                Code::Interrupted => Ok(()),
                _ => Err(error),
            })?;
            let only = self.first.first().copied().filter(|_| self.count == 1);
            counts.tell(self.engine, only, self.reporter);
        }
        Ok(())
    }

    /// Does to what is served what was done to the folders.
    fn follow(&mut self, watched: &mut Watched) -> Result<()> {
        let changes = watched.changes()?;
        if changes.is_empty() {
            return Ok(());
        }
        let before = self.count;
        self.withdrawn = 0;
        // In order: what was written anew has gone and come.
        let mut came = Vec::new();
        for change in changes {
            match change {
                Change::Came(path) => came.push(path),
                Change::Went(path) => {
                    self.take_in(&std::mem::take(&mut came), false)?;
                    let key = self.key(&path);
                    if let Some(id) = self.paths.remove(&key) {
                        self.withdraw(id, &path);
                    }
                }
                Change::Unknown => {
                    came.clear();
                    self.look_again(watched)?;
                }
            }
            if came.len() == BATCH {
                self.take_in(&std::mem::take(&mut came), false)?;
            }
        }
        self.take_in(&came, false)?;
        if self.count != before {
            let more = match self.withdrawn.saturating_sub(WITHDRAWN_SHOWN_MAX) {
                0 => String::new(),
                more => format!("{more} more are withdrawn; "),
            };
            let text = format!("{more}{} now", units::count(self.count, "torrent"));
            self.reporter.say("torrents", &text, json!({"count": self.count}));
        }
        Ok(())
    }

    /// Compares what is served with what lies in the folders.
    fn look_again(&mut self, watched: &Watched) -> Result<()> {
        let mut there: HashSet<u64> = watched.files().iter().map(|path| self.key(path)).collect();
        let mut batch = Vec::with_capacity(BATCH);
        watched.each_in_folders(|path| {
            there.insert(self.key(&path));
            batch.push(path);
            if batch.len() == BATCH {
                self.take_in(&std::mem::take(&mut batch), false)?;
            }
            Ok(())
        })?;
        self.take_in(&batch, false)?;
        let gone: Vec<u64> =
            self.paths.keys().copied().filter(|key| !there.contains(key)).collect();
        for id in gone.iter().filter_map(|key| self.paths.remove(key)).collect::<Vec<_>>() {
            self.withdraw(id, Path::new("a folder"));
        }
        Ok(())
    }

    fn key(&self, path: &Path) -> u64 {
        self.keys.hash_one(path)
    }

    /// Hands torrents to the engine, once few enough are being checked.
    fn take_in(&mut self, paths: &[PathBuf], is_named: bool) -> Result<()> {
        while self.checking.len() >= CHECKS_MAX {
            self.wait()?;
        }
        let mut adds = Vec::with_capacity(paths.len());
        let mut metainfos: Vec<(&PathBuf, Arc<Metainfo>)> = Vec::with_capacity(paths.len());
        for path in paths {
            match read_torrent(path) {
                Ok(metainfo) => {
                    let metainfo = Arc::new(metainfo);
                    say_notes(&metainfo, self.reporter);
                    adds.push(self.listing_of(&metainfo));
                    metainfos.push((path, metainfo));
                }
                // Gone again before it was read: that is told as well.
                Err(_) if !is_named && !path.exists() => {}
                Err(error) => self.leave_out(error, path, is_named)?,
            }
        }
        for ((path, metainfo), added) in metainfos.into_iter().zip(self.engine.add_all(adds)) {
            match added {
                Ok(id) => self.is_added(id, path, &metainfo, is_named),
                Err(EngineError::Exists { id }) if !is_named => self.name_again(id, path),
                Err(error) => self.leave_out(engine_error(error), path, is_named)?,
            }
        }
        self.take_all_told()
    }

    fn listing_of(&self, metainfo: &Arc<Metainfo>) -> AddListing {
        AddListing {
            identity: Identity::Metainfo(metainfo.clone()),
            place: Place::InPlace(self.data.to_path_buf()),
            verify_v1: true,
            known_complete: false,
            size_max_bytes: None,
            peers: self.peers.clone(),
            private_to_market: false,
        }
    }

    fn is_added(&mut self, id: ListingId, path: &Path, metainfo: &Arc<Metainfo>, is_named: bool) {
        let len_bytes = metainfo.info().geometry().payload_len();
        let wanted = Wanted::from_metainfo(metainfo.clone());
        self.checking.insert(id, Checking { len_bytes, path: path.to_owned(), wanted });
        self.count += 1;
        self.total_bytes += len_bytes;
        if is_named {
            self.named.insert(id);
        }
        if self.first.len() < DESCRIBED_MAX {
            self.first.push(id);
        }
        if let Some(before) = self.paths.insert(self.key(path), id) {
            self.withdraw(before, path);
        }
    }

    /// A torrent that is served lies under this path: the same as before, or one more.
    fn name_again(&mut self, id: ListingId, path: &Path) {
        let before = self.paths.insert(self.key(path), id);
        if before == Some(id) {
            return;
        }
        *self.more_paths.entry(id).or_default() += 1;
        if let Some(before) = before {
            self.withdraw(before, path);
        }
    }

    /// A path does not name a torrent any more: it is served as long as another does.
    fn withdraw(&mut self, id: ListingId, path: &Path) {
        if let Some(more) = self.more_paths.get_mut(&id) {
            *more -= 1;
            if *more == 0 {
                self.more_paths.remove(&id);
            }
            return;
        }
        self.withdrawn += 1;
        if self.withdrawn <= WITHDRAWN_SHOWN_MAX || self.reporter.is_json() {
            let text = format!("{} is withdrawn: its file has gone", path.display());
            self.reporter.say("withdrawn", &text, json!({"path": path}));
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ListingId) {
        let len_bytes = match self.checking.remove(&id) {
            Some(checking) => checking.len_bytes,
            None => {
                let status = self.engine.listing_status(id);
                let len_bytes = status.map_or(0, |status| status.total_bytes);
                self.whole_bytes -= len_bytes;
                len_bytes
            }
        };
        self.total_bytes -= len_bytes;
        self.count -= 1;
        self.first.retain(|of| *of != id);
        self.tracking.forget(id);
        self.engine.remove(id, false);
    }

    /// Says that a torrent is not served and why; one that was named ends the command.
    fn leave_out(&mut self, error: Error, path: &Path, is_named: bool) -> Result<()> {
        if is_named {
            return Err(error);
        }
        self.left_out += 1;
        let now = format!("{} is left out, the others are served", path.display());
        error.warn(&now, self.reporter.is_json());
        // Whatever lay there before, it is this that lies there now.
        let key = self.key(path);
        if let Some(before) = self.paths.remove(&key) {
            self.withdraw(before, path);
        }
        Ok(())
    }

    /// Waits for the next event, or a tick, and takes all that was told.
    fn wait(&mut self) -> Result<()> {
        if self.interrupt.is_asked() {
            return Err(Error::new(Code::Interrupted, "stopped while checking"));
        }
        if let Ok(event) = self.events.recv_timeout(TICK) {
            self.take(&event)?;
        }
        self.take_all_told()
    }

    fn take_all_told(&mut self) -> Result<()> {
        while let Ok(event) = self.events.try_recv() {
            self.take(&event)?;
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Complete { id } => {
                if let Some(checking) = self.checking.remove(id) {
                    self.whole_bytes += checking.len_bytes;
                    self.tracking.add(*id, &checking.wanted);
                }
                Ok(())
            }
            Event::Failed { id, error } if !self.named.contains(id) => {
                self.has_failed(*id, error);
                Ok(())
            }
            event => judge(event, self.reporter),
        }
    }

    fn has_failed(&mut self, id: ListingId, error: &ListingError) {
        let metainfo = || self.engine.metainfo(id).map(|metainfo| metainfo.info().name().into());
        let path = self.checking.get(&id).map(|checking| checking.path.clone());
        let path = path.or_else(metainfo).unwrap_or_default();
        self.left_out += 1;
        let now = format!("{} is left out, the others are served", path.display());
        let error = state_error(error).cure("once the data is there, put the torrent there again");
        error.warn(&now, self.reporter.is_json());
        self.paths.remove(&self.key(&path));
        if self.more_paths.remove(&id).is_some() {
            self.paths.retain(|_, of| *of != id);
        }
        self.forget(id);
    }

    /// Bytes that are known to be good.
    fn checked_bytes(&self) -> u64 {
        let statuses = self.checking.keys().filter_map(|id| self.engine.listing_status(*id));
        self.whole_bytes + statuses.map(|status| status.have_bytes).sum::<u64>()
    }

    /// What is said when all are checked.
    fn introduce(&self) -> (String, Value) {
        let addrs = self.engine.local_addrs();
        let shown: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let described = self.first.iter().filter_map(|id| self.engine.metainfo(*id));
        let links: Vec<String> =
            described.map(|one| sources::link_of(&one, addrs).to_string()).collect();
        let what = match self.count {
            1 => units::bytes(self.total_bytes),
            count => {
                format!("{} of {}", units::count(count, "torrent"), units::bytes(self.total_bytes))
            }
        };
        let mut text = format!("serving {what} on {} until Ctrl-C", shown.join(" and "));
        // A list of thousands helps nobody on a terminal.
        for link in links.iter().take(LINKS_SHOWN_MAX) {
            text.push_str(&format!("\n{link}"));
        }
        let fields = json!({
            "addr": shown.first().cloned().unwrap_or_default(), "addrs": shown,
            "bytes": self.total_bytes, "count": self.count, "left_out": self.left_out,
            "magnets": links,
        });
        (text, fields)
    }

    fn summary(&self) -> Value {
        let addrs = self.engine.local_addrs();
        let rows = self.first.iter().filter_map(|id| {
            let metainfo = self.engine.metainfo(*id)?;
            let mut row = describe(&metainfo);
            row["magnet"] = json!(sources::link_of(&metainfo, addrs).to_string());
            let status = self.engine.listing_status(*id);
            row["sent_bytes"] = json!(status.map(|status| status.sent_bytes));
            Some(row)
        });
        let rows: Value = rows.collect();
        let counters = counters(&self.engine.status(), None);
        json!({
            "torrents": rows, "count": self.count, "left_out": self.left_out, "counters": counters,
        })
    }
}

/// Where `seed` remembers what it checked. Inside `--data`, where `get` looks too; when that is
/// read-only, a folder in the user's state directory.
fn seed_state(data: &Path) -> Result<PathBuf> {
    let inside = data.join(STATE_DIR);
    if inside.is_dir() {
        return Ok(inside);
    }
    let data = data.canonicalize().map_err(|error| Error::io("open", data, error))?;
    let name = units::hex(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..8]);
    Ok(up::registry::state_home().join("seed").join(name))
}
