//! The shard: everything the engine decides, without I/O and without a clock.
//!
//! One shard owns its listings, connections, buffers and files. A driver runs it as an
//! [`io::Machine`](crate::io::Machine): completions go in by [`Shard::handle`], operations come out of
//! [`Shard::poll`]. A turn is: take in what completed; hash what landed; plan requests; serve; put
//! receives, sends, disk operations in flight. Given the same seed, times and completions it decides
//! the same.
//!
//! - `admit`, `peer`, `receive`, `serve`, `accounts`: who comes in, connections, bytes in, bytes out, and whose
//!   share they are.
//! - `mesh`, `moving`, `stripes`: what the shards of an engine share, how they talk, and a huge listing
//!   on all of them.
//! - `requests`, `fill`, `hashing`, `spill`, `writing`, `gather`, `disk`, `commit`: a block from request to
//!   journal.
//! - `blame`, `hints`: who sent bad bytes; what the fast extension says.
//! - `listing`, `lifecycle`, `check`, `metadata`, `leaves`, `remake`, `dial`: a listing from its hash to its
//!   removal.

mod accounts;
mod admit;
mod blame;
mod bucket;
mod budget;
mod cache;
mod catalogue;
mod check;
mod choking;
mod cold;
pub mod command;
mod commit;
mod conns;
mod dial;
mod disk;
mod fill;
mod gather;
mod hashing;
mod hints;
mod journal;
mod leaves;
mod lifecycle;
pub mod limits;
mod listing;
pub mod mesh;
mod metadata;
mod moving;
mod peer;
mod receive;
mod remake;
mod requests;
mod serve;
mod slots;
mod smallfile;
mod spill;
mod stripes;
mod timers;
mod uploads;
mod writing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use ringseed_core::swarm::Burden;
use ringseed_core::wire::{GatherList, ReceivePlan, WireId};
use ringseed_sys::arena::Arena;

use crate::api::{Event, ListingId};
use crate::config::Config;
use crate::io::{Completion, Done, Machine, Ops, RecvBuf};
use crate::store::journal::ListingKey;
use crate::store::{RecoveredState, StateDir};
use accounts::Accounts;
use admit::Door;
use blame::Proofs;
use budget::Charge;
use cache::Cache;
pub(crate) use catalogue::name_of;
use catalogue::{Catalogue, Folders, Names};
use choking::Choking;
use cold::Loads;
use command::{CommandQueue, Counters};
use commit::Commit;
use conns::Conns;
use dial::Dials;
use disk::{Disk, FileKey, TaskFlight};
use gather::Askew;
use hashing::Hashing;
use journal::JournalFile;
use leaves::{LeafRead, LeafReads};
use listing::Active;
pub(crate) use listing::{key_of, part_path, parts_folder, payload_of};
use mesh::{Mesh, MovedConn};
use moving::Seat;
use peer::{ConnId, Who};
use receive::RecvFlight;
use remake::Remakes;
use serve::{ReadJob, Reads};
use slots::Slots;
use smallfile::SmallFile;
use spill::SpillJob;
use stripes::{Leaving, Ledger};
use timers::{Timer, Timers};
use uploads::Uploads;
use writing::WriteJob;

/// What a shard is made from.
pub struct ShardParts {
    /// The engine's configuration, validated.
    pub config: Config,
    /// Where payload buffers come from.
    pub arena: Arena,
    /// Commands of the handle.
    pub queue: Arc<CommandQueue>,
    /// Counters that the handle reads.
    pub counters: Arc<Counters>,
    /// Where events go; a receiver that is gone is no error.
    pub events: Sender<Event>,
    /// The open state folder.
    pub state: Arc<StateDir>,
    /// The journal, for the first shard alone; what it believes is with the mesh.
    pub recovered: Option<RecoveredState>,
    /// What it shares with the other shards.
    pub mesh: Arc<Mesh>,
    /// Which of them it is, counted from 0.
    pub index: usize,
    /// Seed of every choice among equals.
    pub seed: u64,
}

/// What an operation in flight was for.
#[derive(Debug)]
enum Flight {
    Connect { listing: ListingId, addr: SocketAddr, turn: u8, wire_ids: Vec<WireId> },
    PollIn(ConnId),
    Recv(RecvFlight),
    Send { conn: ConnId, listing: Option<ListingId>, payload: u64 },
    Open(FileKey),
    Allocate(FileKey),
    Put(TaskFlight),
    Read(TaskFlight),
    Write(TaskFlight),
    SyncData(FileKey, Charge),
    OpenJournal,
    ReserveJournal,
    WriteJournal,
    SyncJournal,
    SealJournal,
    Checkpoint,
    Load(ListingId),
    Stamp(ListingId),
    SmallFile(SmallFile),
    RemoveTree { listing: ListingId, key: ListingKey },
    RemoveState,
    Leaves(LeafRead),
    Detach { to: usize, moved: Box<MovedConn> },
    Attach(Box<MovedConn>),
}

/// What disk tasks belong to.
#[derive(Debug)]
enum Job {
    Write(WriteJob),
    Spill(SpillJob),
    Touch(ListingId),
    Read(ReadJob),
}

/// See the module.
pub struct Shard {
    config: Config,
    arena: Arena,
    queue: Arc<CommandQueue>,
    counters: Arc<Counters>,
    events: Sender<Event>,
    state: Arc<StateDir>,
    seat: Seat,
    random: u64,
    /// The time of this turn, as the driver says.
    now: Instant,
    /// Operations decided in this turn.
    out: Ops,
    flights: Slots<Flight>,
    timers: Timers,

    rows: Catalogue,
    folders: Folders,
    /// Every name of every listing on the wire.
    names: Names,
    loads: Loads,
    /// Identities of listings whose data is being deleted.
    removing: BTreeMap<ListingKey, ListingId>,
    active: BTreeMap<ListingId, Active>,
    /// How many of these are other shards'.
    helping: usize,
    /// Listings of which the others are to have a part, and those of others that this shard has left.
    helps_due: BTreeSet<ListingId>,
    leaves_due: Vec<(ListingId, Box<Ledger>)>,
    leaving: Leaving,

    conns: Conns,
    door: Door,
    next_conn: u64,
    dials: Dials,
    /// Connections that something happened to in this turn.
    touched: BTreeSet<ConnId>,
    strikes: BTreeMap<Who, u32>,
    /// Bad data that peers were proven to have sent.
    proofs: BTreeMap<Who, Proofs>,
    /// Until when peers are refused.
    banned: BTreeMap<Who, Instant>,
    burden: Burden,
    plan: ReceivePlan,
    gather: GatherList,
    recv_bufs: Vec<RecvBuf>,

    hashing: Hashing,
    /// Listings to plan requests for in this turn.
    planning: BTreeSet<ListingId>,
    /// Listings whose requests wait for the arena.
    starving: BTreeSet<ListingId>,
    /// The one of them that had its turn last.
    starved_last: ListingId,
    /// When buffers that nobody fills were looked for last.
    room_looked_at: Instant,
    /// A source has gone, choked or refused since buffers were last looked for among the idle.
    has_lost_source: bool,
    checks_waiting: BTreeSet<ListingId>,
    /// Reads of leaf sidecars in flight.
    leaf_reads: LeafReads,
    remakes: Remakes,
    /// Extents being filled, over all listings.
    filling: usize,

    cache: Cache,
    reads: Reads,
    upload_round: VecDeque<ConnId>,
    uploads: Uploads,
    accounts: Accounts,
    choking: Choking,
    is_serving: bool,

    disk: Disk,
    askew: Askew,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    commit: Commit,

    is_stopping: bool,
    is_clean_stop_written: bool,
    is_stopped: bool,
}

impl Shard {
    /// A shard without listings; `now` is the driver's first reading of its clock.
    pub fn new(parts: ShardParts, now: Instant) -> Self {
        // A quarter of the arena for the cache: the rest fills, writes and is on its way to peers.
        let cache = Cache::new(parts.arena.capacity() / 4);
        let seat = Seat::new(parts.mesh, parts.index);
        let journal = match parts.recovered {
            Some(found) => JournalFile::new(found),
            None => JournalFile::of_another(seat.mesh.slots()),
        };
        Shard {
            config: parts.config,
            arena: parts.arena,
            queue: parts.queue,
            counters: parts.counters,
            events: parts.events,
            state: parts.state,
            seat,
            random: parts.seed,
            now,
            out: Ops::new(),
            flights: Slots::default(),
            timers: Timers::default(),
            rows: Catalogue::default(),
            folders: Folders::default(),
            names: Names::new(parts.seed.rotate_left(17)),
            loads: Loads::new(),
            removing: BTreeMap::new(),
            active: BTreeMap::new(),
            helping: 0,
            helps_due: BTreeSet::new(),
            leaves_due: Vec::new(),
            leaving: Leaving::new(),
            conns: Conns::default(),
            door: Door::new(),
            next_conn: 0,
            dials: Dials::default(),
            touched: BTreeSet::new(),
            strikes: BTreeMap::new(),
            proofs: BTreeMap::new(),
            banned: BTreeMap::new(),
            burden: Burden::new(),
            plan: ReceivePlan::default(),
            gather: GatherList::default(),
            recv_bufs: Vec::new(),
            hashing: Hashing::default(),
            planning: BTreeSet::new(),
            starving: BTreeSet::new(),
            starved_last: ListingId(0),
            room_looked_at: now,
            has_lost_source: false,
            checks_waiting: BTreeSet::new(),
            leaf_reads: LeafReads::default(),
            remakes: Remakes::default(),
            filling: 0,
            cache,
            reads: Reads::default(),
            upload_round: VecDeque::new(),
            uploads: Uploads::default(),
            accounts: Accounts::default(),
            choking: Choking::default(),
            is_serving: true,
            disk: Disk::default(),
            askew: Askew::default(),
            jobs: BTreeMap::new(),
            next_job: 0,
            commit: Commit::new(journal),
            is_stopping: false,
            is_clean_stop_written: false,
            is_stopped: false,
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What waits for what, in words: for a simulated world that does not converge.
    pub fn explain(&self) -> String {
        let listings: Vec<_> = self
            .active
            .values()
            .map(|active| {
                (active.id, active.status(), &active.wait, &active.check, &active.writing)
            })
            .collect();
        format!(
            "listings {listings:?}; disk {:?}; commit {:?}; jobs {:?}; in flight {:?}; filling {}; arena {}",
            self.disk,
            self.commit,
            self.jobs,
            self.flights,
            self.filling,
            self.arena.in_use()
        )
    }

    /// Tells the program around the engine.
    fn tell(&self, event: Event) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    /// The next number of the seeded sequence (SplitMix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Conn(id) => self.conn_timeout(id),
            Timer::Dial(listing) => self.dial_timeout(listing),
            Timer::Resume(listing) => self.resume_listing(listing),
            Timer::Evict(listing) => self.evict(listing),
            Timer::Swarm(listing) => self.swarm_timeout(listing),
            Timer::Split(listing) => self.split_extents(listing),
            Timer::Metadata(listing) => self.metadata_timeout(listing),
            Timer::Download(listing) => self.download_allowed(listing),
            Timer::Dispute(listing) => self.disputes_timeout(listing),
            Timer::Hungry(listing) => self.still_hungry(listing),
            Timer::Remake => self.remake_timeout(),
            // Their work is looked at in every turn; the timer only makes one happen.
            Timer::Choke => self.choke_round(),
            Timer::Commit | Timer::Upload | Timer::Hash => {}
        }
    }

    /// Puts receives and sends in flight for connections that something happened to.
    fn pump_conns(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            self.transmit(id);
            self.arm_receive(id);
            self.arm_timer(id);
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.rest();
            }
        }
    }
}

impl Machine for Shard {
    fn handle(&mut self, completion: Completion, now: Instant) {
        self.now = now;
        let Completion { id, done } = completion;
        if let Done::Accepted { sock, peer } = done {
            self.handle_accepted(sock, peer);
            return;
        }
        let Some(flight) = self.flights.take(id) else {
            tracing::error!(?id, "completion of no operation");
            return;
        };
        match (flight, done) {
            (Flight::Connect { listing, addr, turn, wire_ids }, Done::Connected(result)) => {
                self.handle_connected(listing, addr, turn, &wire_ids, result);
            }
            (Flight::PollIn(conn), Done::Readable(result)) => self.handle_readable(conn, result),
            (Flight::Recv(flight), Done::Received(result, buf)) => {
                self.handle_received(flight, result, buf);
            }
            (Flight::Send { conn, listing, payload }, Done::Sent(result, buf)) => {
                self.handle_sent(conn, listing, payload, result, buf);
            }
            (Flight::Open(key), Done::Opened(result)) => self.handle_opened(key, result),
            (Flight::Allocate(key), Done::Allocated(result)) => self.handle_allocated(key, result),
            (Flight::Put(flight), Done::Put(result, buf)) => {
                self.handle_put(flight, result, buf);
            }
            (Flight::Read(flight), Done::Read(result, buf)) => {
                self.handle_read(flight, result, buf)
            }
            (Flight::Write(flight), Done::Written(result, buf)) => {
                self.handle_written(flight, result, buf);
            }
            (Flight::SyncData(key, charge), Done::Synced(result)) => {
                self.handle_data_synced(key, charge, result);
            }
            (Flight::OpenJournal, Done::Opened(result)) => self.handle_journal_opened(result),
            (Flight::WriteJournal, Done::SmallWritten(result)) => {
                self.handle_journal_written(result)
            }
            (Flight::SyncJournal, Done::Synced(result)) => self.handle_journal_synced(result),
            (Flight::SealJournal, Done::Synced(result)) => self.handle_journal_sealed(result),
            (Flight::ReserveJournal, Done::Allocated(result)) => {
                self.handle_journal_reserved(result);
            }
            (flight, Done::Aside(done)) => self.handle_aside(flight, done),
            (Flight::SmallFile(file), done) => self.small_file_step(file, done),
            (Flight::RemoveTree { listing, key }, Done::Removed(result)) => {
                self.handle_removed(listing, key, result);
            }
            (Flight::RemoveState, Done::Removed(_)) => {}
            (Flight::Leaves(read), done) => self.leaf_step(read, done),
            (Flight::Detach { to, moved }, Done::Detached(result)) => {
                self.handle_detached(to, moved, result);
            }
            (Flight::Attach(moved), Done::Attached(result)) => self.handle_attached(moved, result),
            (flight, done) => panic!("{done:?} answers {flight:?}"),
        }
    }

    fn poll(&mut self, ops: &mut Ops, now: Instant) {
        self.now = now;
        while let Some(timer) = self.timers.pop_due(now) {
            self.fire(timer);
        }
        self.hash_turn();
        self.wake_starving();
        self.wake_checks();
        self.plan_turn();
        self.serve_turn();
        self.pump_dials();
        self.gather_turn();
        self.pump_conns();
        self.pump_disk();
        self.pump_commit();
        self.pump_mail();
        self.pump_helps();
        self.look_whether_stopped();
        ops.append(&mut self.out);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next_at()
    }

    fn handle_wake(&mut self, now: Instant) {
        self.now = now;
        for command in self.queue.take() {
            self.handle_command(command);
        }
        for message in self.seat.mesh.take(self.seat.index) {
            self.handle_message(message);
        }
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped
    }
}
