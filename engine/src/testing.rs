//! Shards in the simulated world of [`io::sim`](crate::io::sim): virtual network, virtual disks,
//! virtual time, every chance from one seed. For the tests of this crate and of those above it.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::{Duration, Instant};

use ringseed_core::geometry::BLOCK_LEN;
use ringseed_core::magnet::InfoHashes;
use ringseed_core::merkle;
use ringseed_core::metainfo::Metainfo;
use ringseed_sys::arena::Arena;
use ringseed_sys::dir::DirHandle;

use crate::api::{AddListing, Event, Identity, ListingId, ListingStatus, Place, Rates, Scope};
use crate::config::Config;
use crate::intake::is_kept_later;
use crate::io::sim::{Crash, SimConfig, World};
use crate::io::{Completion, Machine, Ops};
use crate::offline::ReadOrder;
use crate::shard::command::{Command, CommandQueue, Counters, NewListing};
use crate::shard::mesh::Mesh;
use crate::shard::{Shard, ShardParts};
use crate::store::files::{self, name_of};
use crate::store::{self, FileKind, LookedAt, RecoveredState, StateDir};

/// Arena of a simulated node, in bytes: small, so that it runs full.
const ARENA_LEN_BYTES: usize = 16 << 20;

/// Shards in a simulated world.
pub struct SimMarket {
    /// The world, to break it.
    pub world: World<ShardSet>,
    nodes: Vec<SimNode>,
    scratch: PathBuf,
    next_listing: u64,
    /// [`Config::journal_log_bytes_max`] of nodes that are started from now on.
    pub journal_log_bytes_max: u64,
    /// What the last start read of its journal, in bytes.
    pub replayed_bytes: u64,
    /// Shards of nodes that are started from now on.
    pub shards: usize,
    /// [`Config::stripe_min_bytes`] of nodes that are started from now on.
    pub stripe_min_bytes: u64,
    /// [`Config::peers_per_ip_max`] of nodes that are started from now on.
    pub peers_per_ip_max: u32,
    /// [`Config::peers_max`] of nodes that are started from now on.
    pub peers_max: u32,
}

struct SimNode {
    queues: Vec<Arc<CommandQueue>>,
    counters: Vec<Arc<Counters>>,
    mesh: Arc<Mesh>,
    events: Receiver<Event>,
    life: u64,
}

/// The shards of a simulated node, run as one machine: in a world of one thread each has its turn. What is
/// said of a shard without naming it is said of the first.
pub struct ShardSet {
    shards: Vec<Shard>,
    mesh: Arc<Mesh>,
}

impl Deref for ShardSet {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.shards[0]
    }
}

impl DerefMut for ShardSet {
    fn deref_mut(&mut self) -> &mut Shard {
        &mut self.shards[0]
    }
}

impl ShardSet {
    /// All of them, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }
}

impl Machine for ShardSet {
    fn handle(&mut self, mut completion: Completion, now: Instant) {
        let count = self.shards.len() as u64;
        let shard = (completion.id.0 % count) as usize;
        completion.id.0 /= count;
        self.shards[shard].handle(completion, now);
    }

    fn poll(&mut self, ops: &mut Ops, now: Instant) {
        let count = self.shards.len() as u64;
        loop {
            for (at, shard) in self.shards.iter_mut().enumerate() {
                if self.mesh.has_mail(at) {
                    shard.handle_wake(now);
                }
                if shard.is_stopped() {
                    continue;
                }
                let before = ops.len();
                shard.poll(ops, now);
                for op in ops.range_mut(before..) {
                    if let Some(id) = op.id_mut() {
                        id.0 = id.0 * count + at as u64;
                    }
                }
            }
            if !(0..self.shards.len()).any(|at| self.mesh.has_mail(at)) {
                return;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.shards.iter().filter_map(Machine::poll_timeout).min()
    }

    fn handle_wake(&mut self, now: Instant) {
        self.shards.iter_mut().for_each(|shard| shard.handle_wake(now));
    }

    fn is_stopped(&self) -> bool {
        self.shards.iter().all(Machine::is_stopped)
    }
}

impl SimMarket {
    /// An empty world. Folders are opened beneath `scratch`, but nothing is ever written there: files
    /// live on virtual disks.
    ///
    /// # Panics
    /// Like every method here, when the scratch folder cannot be used: a test cannot go on then.
    pub fn new(config: SimConfig, scratch: &Path) -> Self {
        SimMarket {
            world: World::new(config),
            nodes: Vec::new(),
            scratch: scratch.to_path_buf(),
            next_listing: 1,
            journal_log_bytes_max: crate::config::JOURNAL_LOG_BYTES_MAX_DEFAULT,
            replayed_bytes: 0,
            shards: 1,
            stripe_min_bytes: crate::config::STRIPE_MIN_BYTES_DEFAULT,
            peers_per_ip_max: 8,
            peers_max: 512,
        }
    }

    /// Adds a node and starts its shard.
    pub fn add_node(&mut self) -> usize {
        let node = self.world.add_node();
        self.start(node, 0);
        node
    }

    /// The folder of a node's payload.
    pub fn payload_dir(&self, node: usize) -> PathBuf {
        self.scratch.join(format!("node-{node}/payload"))
    }

    fn state_dir(&self, node: usize) -> PathBuf {
        self.scratch.join(format!("node-{node}/state"))
    }

    /// Puts the files of a torrent on a node's disk, as they lie in `source`.
    pub fn place(&mut self, node: usize, metainfo: &Metainfo, source: &Path) {
        let root = self.payload_dir(node);
        for file in metainfo.info().files().filter(|file| !file.pad) {
            let content =
                std::fs::read(source.join(file.path().as_path())).expect("a file of the source");
            self.world
                .place_file(node, &root, file.path().as_path(), content)
                .expect("room for it");
        }
    }

    /// Puts the leaf sidecar of a torrent on a node's disk, as whoever made the torrent has it.
    pub fn place_leaves(&mut self, node: usize, metainfo: &Metainfo, source: &Path) {
        let info = metainfo.info();
        let mut sidecar = Vec::new();
        for file in info.files().filter(|file| !file.pad) {
            let content =
                std::fs::read(source.join(file.path().as_path())).expect("a file of the source");
            sidecar.extend(content.chunks(BLOCK_LEN as usize).flat_map(merkle::leaf));
        }
        let path = store::leaves_path(&info.info_hash_v2().expect("a v2 view"));
        let state = self.state_dir(node);
        self.world.place_file(node, &state, &path, sidecar).expect("room for it");
    }

    /// Files of a torrent that a node's disk does not hold as they lie in `source`.
    pub fn wrong_files(&self, node: usize, metainfo: &Metainfo, source: &Path) -> Vec<PathBuf> {
        let root = self.payload_dir(node);
        let files = metainfo.info().files().filter(|file| !file.pad);
        let is_wrong = |path: &&Path| {
            let wanted = std::fs::read(source.join(path)).expect("a file of the source");
            self.world.file_content(node, &root, path) != Some(&wanted[..])
        };
        files
            .map(|file| file.path().as_path().to_path_buf())
            .filter(|path| is_wrong(&path.as_path()))
            .collect()
    }

    /// Adds a listing as [`Engine::add`](crate::Engine::add) does; the place is the node's payload
    /// folder whatever `add` says, and its kind is kept.
    pub fn add(&mut self, node: usize, add: AddListing) -> ListingId {
        let folder = self.payload_dir(node);
        let root = DirHandle::create(&folder).expect("a folder in the scratch");
        let place = match add.place {
            Place::Owned(_) => Place::Owned(folder.clone()),
            Place::InPlace(_) => Place::InPlace(folder.clone()),
        };
        let hashes = add.identity.asked_hashes();
        let asked_by_hash = hashes.is_some();
        let stored = hashes.and_then(|hashes| {
            let path = crate::store::metainfo_path(hashes);
            let bytes = self.world.file_content(node, &self.state_dir(node), &path)?;
            crate::store::parse_kept(bytes.to_vec(), hashes)
        });
        let identity = stored.map_or(add.identity, |found| Identity::Metainfo(Arc::new(found)));
        let mut found = LookedAt::default();
        let mut is_kept = false;
        if let Identity::Metainfo(metainfo) = &identity {
            let look = |path: &Path| self.world.look_at_file(node, &folder, path);
            found = store::look_at_files(metainfo, look);
            let info = metainfo.info();
            let v1 = info.info_hash_v1().map(InfoHashes::V1);
            let hashes = info.info_hash_v2().map(InfoHashes::V2).or(v1).expect("a view");
            let must_last = add.private_to_market && !asked_by_hash;
            let is_later = is_kept_later(&add.place, found.is_fresh) && !must_last;
            is_kept = metainfo.missing_layers().next().is_none() && (asked_by_hash || !is_later);
            if is_kept && !asked_by_hash {
                let (state, path) = (self.state_dir(node), crate::store::metainfo_path(hashes));
                self.world.place_file(node, &state, &path, metainfo.encode()).expect("room");
            }
        }
        let LookedAt { is_fresh, bad_files, stamp, changed_ns } = found;
        let mesh = self.nodes[node].mesh.clone();
        let home = self.next_listing as usize % mesh.shard_count();
        let id = mesh.id_of(home, self.next_listing);
        self.next_listing += 1;
        let new = NewListing {
            id,
            identity,
            asked_by_hash,
            place,
            root: Arc::new(root),
            is_fresh,
            bad_files,
            is_kept,
            stamp,
            changed_ns,
            verify_v1: add.verify_v1,
            known_complete: add.known_complete,
            size_max_bytes: add.size_max_bytes,
            peers: add.peers,
            select: None,
        };
        let (answer, answers) = sync_channel(1);
        self.nodes[node].queues[home].push(Command::Add(vec![new], answer));
        self.world.run_for(Duration::ZERO);
        let mut answers = answers.try_recv().expect("a running node answers");
        answers.remove(0).expect("the listing is accepted")
    }

    /// Gives a node's first shard a command.
    pub fn command(&mut self, node: usize, command: Command) {
        self.command_shard(node, 0, command);
    }

    /// Gives a shard of a node a command.
    pub fn command_shard(&mut self, node: usize, shard: usize, command: Command) {
        self.nodes[node].queues[shard].push(command);
        self.world.run_for(Duration::ZERO);
    }

    /// Where a listing of a node stands.
    pub fn status(&mut self, node: usize, id: ListingId) -> Option<ListingStatus> {
        let (answer, answers) = sync_channel(1);
        let home = self.nodes[node].mesh.home_of(id);
        self.command_shard(node, home, Command::Status(id, answer));
        answers.try_recv().ok().flatten()
    }

    /// What a node has told since the last call.
    pub fn events(&mut self, node: usize) -> Vec<Event> {
        self.nodes[node].events.try_iter().collect()
    }

    /// Caps payload of a node from now on.
    pub fn set_rates(&mut self, node: usize, scope: Scope, rates: Rates) {
        self.nodes[node].mesh.limiter().set(scope, rates);
        self.command(node, Command::RatesChanged);
    }

    /// The counters of a node's first shard; they begin anew with each life.
    pub fn counters(&self, node: usize) -> &Counters {
        &self.nodes[node].counters[0]
    }

    /// The counters of a node's shards.
    pub fn counters_of_shards(&self, node: usize) -> &[Arc<Counters>] {
        &self.nodes[node].counters
    }

    /// What the shards of a node share.
    pub fn mesh(&self, node: usize) -> &Mesh {
        &self.nodes[node].mesh
    }

    /// Runs until a node tells that a listing is complete; false when that takes longer than `limit`.
    pub fn run_until_complete(&mut self, node: usize, id: ListingId, limit: Duration) -> bool {
        let events = &self.nodes[node].events;
        self.world.run_until(limit, |_| {
            events.try_iter().any(|event| matches!(event, Event::Complete { id: of } if of == id))
        })
    }

    /// Ends a node without asking, and starts it again on what its disk holds. Its listings are to be
    /// added again.
    pub fn crash(&mut self, node: usize, crash: Crash) {
        self.world.crash(node, crash);
        let life = self.nodes[node].life + 1;
        self.start(node, life);
    }

    fn start(&mut self, node: usize, life: u64) {
        let mut peer_id = *b"-RS0100-sim000000000";
        peer_id[19] = node as u8;
        let mut config = Config::new(self.state_dir(node), peer_id);
        config.arena_len_bytes = ARENA_LEN_BYTES;
        // A virtual disk has no heads, whatever the folder is on that it borrows its names from.
        config.read_order = ReadOrder::Spread;
        let state =
            StateDir::new(DirHandle::create(&config.state_dir).expect("a folder in the scratch"));
        config.journal_log_bytes_max = self.journal_log_bytes_max;
        config.stripe_min_bytes = self.stripe_min_bytes;
        (config.peers_per_ip_max, config.peers_max) = (self.peers_per_ip_max, self.peers_max);
        let found = files::find(&self.world.journal_files(node, &config.state_dir));
        let found = found.expect("a virtual disk is read").expect("a journal of this version");
        assert!(found.damaged.is_empty(), "no way through the journal: {found:?}");
        if let Some(last) = &found.last_log {
            self.world.sync_file(node, &config.state_dir, Path::new(last));
        }
        self.replayed_bytes = found.log_bytes + found.checkpoint_bytes;
        let name = name_of(FileKind::Log, found.generation);
        let (mut recovered, header) = RecoveredState::begin(found);
        self.world
            .place_file(node, &config.state_dir, Path::new(&name), header)
            .expect("room for a journal");
        let queues: Vec<_> = (0..self.shards).map(|_| Arc::new(CommandQueue::default())).collect();
        for queue in &queues {
            let waker = self.world.waker(node);
            queue.set_waker(Box::new(move || waker.wake()));
        }
        let (events, events_out) = channel();
        let seed = (node as u64) << 32 | life;
        let mesh = Mesh::new(
            queues.clone(),
            std::mem::take(&mut recovered.recovered),
            recovered.writer.slots(),
            seed,
            Rates::default(),
        );
        let (mut journal, state) = (Some(recovered), Arc::new(state));
        let now: Instant = self.world.now();
        let (mut shards, mut counters) = (Vec::new(), Vec::new());
        for (index, queue) in queues.iter().enumerate() {
            counters.push(Arc::new(Counters::default()));
            let parts = ShardParts {
                config: config.clone(),
                arena: Arena::new(config.arena_len_bytes).expect("address space for an arena"),
                queue: queue.clone(),
                counters: counters[index].clone(),
                events: events.clone(),
                state: state.clone(),
                recovered: journal.take(),
                mesh: mesh.clone(),
                index,
                seed: seed.wrapping_add((index as u64) << 48),
            };
            shards.push(Shard::new(parts, now));
        }
        self.world.run_machine(node, ShardSet { shards, mesh: mesh.clone() });
        let sim = SimNode { queues, counters, mesh, events: events_out, life };
        if node < self.nodes.len() {
            self.nodes[node] = sim;
        } else {
            self.nodes.push(sim);
        }
    }
}
