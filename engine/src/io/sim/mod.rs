//! The driver of tests: any number of machines in one thread, under virtual time, on a virtual
//! network and virtual disks, with every chance taken from one seed.
//!
//! It does what the real ones do on a bad day: transfers are cut anywhere, completions come in any
//! order, links drop, disks fail, a crash tears what was not synced. A run is replayed by its seed.

mod aside;
mod calls;
mod disk;
mod jobs;
mod net;
mod rng;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringseed_sys::arena::EXTENT_LEN_BYTES;
use rustix::io::Errno;

use super::{
    Aside, Completion, Done, FileId, Machine, MovedSock, MovedSockKind, Op, OpId, OpenMode, Ops,
    ReadPath, SockId,
};
use crate::store::files::JournalFiles;
use aside::AsideStep;

use disk::VirtualDisk;
use jobs::DiskJob;
use net::{Arrival, Conn};

pub use calls::PayloadCalls;
pub use rng::SimRng;

/// What may go wrong, each with its chance in a million.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Receives and segments are cut at random lengths.
    pub short_transfers: bool,
    /// A segment resets its connection.
    pub reset_ppm: u32,
    /// A read ends with `EIO`.
    pub read_error_ppm: u32,
    /// A write or allocation ends with `EIO`.
    pub write_error_ppm: u32,
    /// A sync ends with `EIO` and loses what it should have covered; the next one says OK.
    pub sync_error_ppm: u32,
}

/// How a world is.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// How long anything takes on its way between two nodes, least and most.
    pub latency: (Duration, Duration),
    /// How long a disk takes for anything, least and most.
    pub disk_latency: (Duration, Duration),
    /// Bytes sent and not yet received that a connection holds in one direction.
    pub socket_buffer_bytes: usize,
    /// What may go wrong; may be changed while it runs.
    pub faults: Faults,
}

impl SimConfig {
    /// A friendly world: milliseconds of latency, nothing fails, transfers are cut.
    pub fn new(seed: u64) -> SimConfig {
        SimConfig {
            seed,
            latency: (Duration::from_micros(100), Duration::from_millis(3)),
            disk_latency: (Duration::from_micros(50), Duration::from_millis(2)),
            socket_buffer_bytes: 256 * 1024,
            faults: Faults { short_transfers: true, ..Faults::default() },
        }
    }
}

/// How a node ends without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies; its system lives on, with all that was written, and resets its connections.
    Process,
    /// The power goes: unsynced changes are kept, lost or torn, and nobody is told.
    Power,
}

/// Wakes one node of a world: [`Machine::handle_wake`] runs before time goes on.
#[derive(Clone, Debug, Default)]
pub struct SimWaker(Arc<AtomicBool>);

impl SimWaker {
    /// Wakes the node.
    pub fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Machines and the world they live in.
pub struct World<M> {
    core: Core,
    machines: Vec<Option<M>>,
    /// Polls since time last went on.
    idle_polls: u32,
}

/// Polls of one moment after which a machine counts as stuck.
const IDLE_POLLS_MAX: u32 = 1_000_000;

struct Core {
    config: SimConfig,
    rng: SimRng,
    born: Instant,
    now: Instant,
    sequence: u64,
    events: BTreeMap<(Instant, u64), Event>,
    nodes: Vec<NodeState>,
    conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    /// Pairs of nodes that cannot reach each other, lower index first.
    cuts: BTreeSet<(usize, usize)>,
    inbox: VecDeque<(usize, Completion)>,
}

struct NodeState {
    addr: SocketAddr,
    /// Counts crashes, so that what was under way for a former life is dropped.
    epoch: u32,
    is_running: bool,
    is_dirty: bool,
    waker: SimWaker,
    in_flight: BTreeSet<OpId>,
    sockets: BTreeMap<SockId, (u64, usize)>,
    files: BTreeMap<FileId, u64>,
    disk: VirtualDisk,
    calls: PayloadCalls,
    next_sock: u64,
    next_file: u64,
    next_port: u16,
    upload_rate: Option<u64>,
    /// One in so many blocks that it sends has a wrong bit; 0: none.
    lies_one_in: u64,
    /// Beside what fails everywhere.
    read_error_ppm: u32,
    uplink_free_at: Instant,
}

enum Event {
    Connect { node: usize, epoch: u32, id: OpId, addr: SocketAddr, deadline: Instant },
    Arrive { conn: u64, side: usize, arrival: Arrival },
    Read { conn: u64, side: usize },
    Complete { node: usize, epoch: u32, completion: Completion },
    Disk { node: usize, epoch: u32, id: OpId, job: DiskJob },
}

impl<M: Machine> World<M> {
    /// An empty world.
    pub fn new(config: SimConfig) -> World<M> {
        let now = Instant::now(); // only differences to it are ever looked at
        let core = Core {
            rng: SimRng::new(config.seed),
            config,
            born: now,
            now,
            sequence: 0,
            events: BTreeMap::new(),
            nodes: Vec::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
            cuts: BTreeSet::new(),
            inbox: VecDeque::new(),
        };
        World { core, machines: Vec::new(), idle_polls: 0 }
    }

    /// Adds a node with an empty disk, which runs nothing yet; its index.
    pub fn add_node(&mut self) -> usize {
        let node = self.core.nodes.len();
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + node as u32);
        self.core.nodes.push(NodeState {
            addr: SocketAddr::new(ip.into(), 6881),
            epoch: 0,
            is_running: false,
            is_dirty: false,
            waker: SimWaker::default(),
            in_flight: BTreeSet::new(),
            sockets: BTreeMap::new(),
            files: BTreeMap::new(),
            disk: VirtualDisk::default(),
            calls: PayloadCalls::default(),
            next_sock: 1,
            next_file: 1,
            next_port: 32768,
            upload_rate: None,
            lies_one_in: 0,
            read_error_ppm: 0,
            uplink_free_at: self.core.now,
        });
        self.machines.push(None);
        node
    }

    /// Starts a machine on a node, listening on its address. Panics when one runs there.
    pub fn run_machine(&mut self, node: usize, machine: M) {
        let state = &mut self.core.nodes[node];
        assert!(!state.is_running, "node {node} runs already");
        (state.is_running, state.is_dirty) = (true, true);
        self.machines[node] = Some(machine);
    }

    /// Where a node listens.
    pub fn addr(&self, node: usize) -> SocketAddr {
        self.core.nodes[node].addr
    }

    /// Wakes a node, also after it was restarted.
    pub fn waker(&self, node: usize) -> SimWaker {
        self.core.nodes[node].waker.clone()
    }

    /// The machine of a node, if it has not crashed.
    pub fn machine(&mut self, node: usize) -> Option<&mut M> {
        self.machines[node].as_mut()
    }

    /// False once a machine has stopped or crashed.
    pub fn is_running(&self, node: usize) -> bool {
        self.core.nodes[node].is_running
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.core.now
    }

    /// Virtual time since the world began.
    pub fn elapsed(&self) -> Duration {
        self.core.now - self.core.born
    }

    /// The world's source of chance, for tests that decide by it too.
    pub fn rng(&mut self) -> &mut SimRng {
        &mut self.core.rng
    }

    /// What may go wrong from now on.
    pub fn faults_mut(&mut self) -> &mut Faults {
        &mut self.core.config.faults
    }

    /// Cuts the link between two nodes, or heals it. What is under way waits; connecting times out.
    pub fn set_link(&mut self, a: usize, b: usize, is_up: bool) {
        let pair = (a.min(b), a.max(b));
        if is_up {
            self.core.cuts.remove(&pair);
            self.core.release_held();
        } else {
            self.core.cuts.insert(pair);
        }
    }

    /// Lets a node flip one bit in one of so many parts of payload that it sends, drawn anew each time;
    /// 0: in none.
    pub fn set_lies(&mut self, node: usize, one_in: u64) {
        self.core.nodes[node].lies_one_in = one_in;
    }

    /// Lets so many of a million reads of one node's disk fail, beside those that fail everywhere.
    pub fn set_read_errors(&mut self, node: usize, ppm: u32) {
        self.core.nodes[node].read_error_ppm = ppm;
    }

    /// Bytes per second that a node sends at most.
    pub fn set_upload_rate(&mut self, node: usize, rate: Option<u64>) {
        self.core.nodes[node].upload_rate = rate;
    }

    /// Room on a node's disk; `None` is without end.
    pub fn set_disk_capacity(&mut self, node: usize, capacity_bytes: Option<u64>) {
        self.core.nodes[node].disk.capacity_bytes = capacity_bytes;
    }

    /// Puts a file on a node's disk, durably, beneath the folder that `root` was opened by.
    ///
    /// # Errors
    /// When the path leads out of the folder or runs through a file.
    pub fn place_file(
        &mut self,
        node: usize,
        root: &Path,
        rel: &Path,
        content: Vec<u8>,
    ) -> io::Result<()> {
        self.core.nodes[node].disk.place(root, rel, content)
    }

    /// What a node has asked its disk for since it was added.
    pub fn payload_calls(&self, node: usize) -> PayloadCalls {
        self.core.nodes[node].calls
    }

    /// Length of a file and when it was changed last, as its node would see it.
    pub fn look_at_file(&self, node: usize, root: &Path, rel: &Path) -> Option<(u64, u64)> {
        self.core.nodes[node].disk.look(root, rel)
    }

    /// Content of a file, as its node would read it.
    pub fn file_content(&self, node: usize, root: &Path, rel: &Path) -> Option<&[u8]> {
        self.core.nodes[node].disk.content(root, rel)
    }

    /// All files of a node: folder and path.
    pub fn files(&self, node: usize) -> impl Iterator<Item = (&Path, &Path)> {
        self.core.nodes[node].disk.names()
    }

    /// Syncs a file, as what runs before a machine does.
    pub fn sync_file(&mut self, node: usize, root: &Path, rel: &Path) {
        self.core.nodes[node].disk.sync_by_name(root, rel);
    }

    /// The journal in a folder of a node.
    pub fn journal_files<'a>(&'a self, node: usize, root: &'a Path) -> impl JournalFiles + 'a {
        aside::VirtualFolder { disk: &self.core.nodes[node].disk, root }
    }

    /// Flips the bits of `mask` in one byte of a file, on the device; false when it is not there.
    pub fn rot(&mut self, node: usize, root: &Path, rel: &Path, at: u64, mask: u8) -> bool {
        self.core.nodes[node].disk.rot(root, rel, at, mask)
    }

    /// Ends a node as [`Crash`] says; its machine is dropped, its disk stays for the next.
    pub fn crash(&mut self, node: usize, crash: Crash) {
        self.machines[node] = None;
        self.core.crash(node, crash);
    }

    /// Lets one thing happen, or time go on to the next. False when nothing will ever happen again
    /// by itself.
    pub fn step(&mut self) -> bool {
        self.settle();
        let timeout = self.first_timeout();
        let event = self.core.events.first_key_value().map(|(&(at, _), _)| at);
        let Some(at) = event.into_iter().chain(timeout).min() else { return false };
        if at > self.core.now {
            self.core.now = at;
            self.idle_polls = 0;
        }
        if event.is_some_and(|event| event <= self.core.now) {
            let (_, event) = self.core.events.pop_first().expect("it was just seen");
            self.core.handle(event);
        } else {
            // A machine that wants to go on at once gets its turn, and time a little further.
            self.core.now += Duration::from_nanos(100);
            self.idle_polls += 1;
            assert!(self.idle_polls < IDLE_POLLS_MAX, "a machine asks for ever to be polled now");
        }
        self.settle();
        true
    }

    /// Runs for a stretch of virtual time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.core.now + time;
        self.run_until(time, |_| false);
        self.core.now = self.core.now.max(end);
    }

    /// Runs until `is_done`, for at most `limit` of virtual time; whether it was done.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut is_done: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.core.now + limit;
        loop {
            self.settle();
            if is_done(self) {
                return true;
            }
            let event = self.core.events.first_key_value().map(|(&(at, _), _)| at);
            let next = event.into_iter().chain(self.first_timeout()).min();
            if next.is_none_or(|at| at > end) || self.core.now > end {
                return false;
            }
            self.step();
        }
    }

    fn first_timeout(&self) -> Option<Instant> {
        let running =
            self.core.nodes.iter().zip(&self.machines).filter(|(node, _)| node.is_running);
        running.filter_map(|(_, machine)| machine.as_ref()?.poll_timeout()).min()
    }

    /// Hands out what has arrived and polls everybody concerned, until all is quiet.
    fn settle(&mut self) {
        let mut ops = Ops::new();
        loop {
            while let Some((node, completion)) = self.core.inbox.pop_front() {
                let state = &mut self.core.nodes[node];
                let Some(machine) = self.machines[node].as_mut().filter(|_| state.is_running)
                else {
                    continue;
                };
                if completion.id != OpId(0) {
                    assert!(
                        state.in_flight.remove(&completion.id),
                        "{completion:?} answered twice"
                    );
                }
                state.is_dirty = true;
                machine.handle(completion, self.core.now);
            }
            let mut is_quiet = true;
            for node in 0..self.machines.len() {
                let state = &mut self.core.nodes[node];
                let Some(machine) = self.machines[node].as_mut().filter(|_| state.is_running)
                else {
                    continue;
                };
                if state.waker.0.swap(false, Ordering::AcqRel) {
                    machine.handle_wake(self.core.now);
                    state.is_dirty = true;
                }
                let is_due = machine.poll_timeout().is_some_and(|at| at <= self.core.now);
                if !std::mem::take(&mut state.is_dirty) && !is_due {
                    continue;
                }
                loop {
                    machine.poll(&mut ops, self.core.now);
                    if ops.is_empty() {
                        break;
                    }
                    is_quiet = false;
                    for op in ops.drain(..) {
                        self.core.start(node, op);
                    }
                }
                if machine.is_stopped() {
                    let state = &mut self.core.nodes[node];
                    assert!(state.in_flight.is_empty(), "node {node} stopped with work in flight");
                    state.is_running = false;
                    state.epoch += 1;
                    self.core.drop_connections(node, true);
                }
            }
            if is_quiet && self.core.inbox.is_empty() {
                return;
            }
        }
    }
}

impl NodeState {
    fn take_sock(&mut self) -> SockId {
        self.next_sock += 1;
        SockId(self.next_sock - 1)
    }

    fn take_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(32768);
        self.next_port
    }
}

impl Core {
    fn schedule(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    fn between(&mut self, (low, high): (Duration, Duration)) -> Duration {
        Duration::from_nanos(self.rng.range(low.as_nanos() as u64, high.as_nanos() as u64))
    }

    fn latency(&mut self) -> Duration {
        self.between(self.config.latency)
    }

    /// How long the node's own system takes to tell something.
    fn moment(&mut self) -> Duration {
        Duration::from_nanos(self.rng.range(100, 50_000))
    }

    fn complete_at(&mut self, at: Instant, node: usize, id: OpId, done: Done) {
        let epoch = self.nodes[node].epoch;
        self.schedule(at, Event::Complete { node, epoch, completion: Completion { id, done } });
    }

    fn complete_soon(&mut self, node: usize, id: OpId, done: Done) {
        let at = self.now + self.moment();
        self.complete_at(at, node, id, done);
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    fn start(&mut self, node: usize, op: Op) {
        self.nodes[node].calls.count(&op);
        match op {
            Op::Connect { id, addr, timeout } => {
                self.note(node, id);
                self.start_connect(node, id, addr, timeout);
            }
            Op::PollIn { id, sock } => {
                self.note(node, id);
                self.start_poll(node, id, sock);
            }
            Op::Recv { id, sock, buf } => {
                self.note(node, id);
                self.start_recv(node, id, sock, buf);
            }
            Op::Send { id, sock, buf } => {
                self.note(node, id);
                self.start_send(node, id, sock, buf);
            }
            Op::Detach { id, sock } => {
                self.note(node, id);
                let moved = self.nodes[node].sockets.remove(&sock);
                let moved = moved.map(|(conn, side)| MovedSock(MovedSockKind::Sim(conn, side)));
                let result = moved.ok_or_else(|| Errno::CANCELED.into());
                self.complete_soon(node, id, Done::Detached(result));
            }
            Op::Attach { id, moved } => {
                self.note(node, id);
                let MovedSock(MovedSockKind::Sim(conn, side)) = moved else {
                    panic!("a real socket in a simulated world")
                };
                let sock = self.nodes[node].take_sock();
                self.nodes[node].sockets.insert(sock, (conn, side));
                self.complete_soon(node, id, Done::Attached(Ok(sock)));
            }
            Op::Close { sock } => self.close(node, sock),
            Op::Open { id, root, path, mode, direct: _ } => {
                let root = root.path().to_owned();
                self.start_disk(node, id, DiskJob::Open { root, path, mode });
            }
            Op::Put {
                id,
                root,
                path,
                direct,
                len_bytes,
                offset_bytes: at,
                buf,
                start,
                len,
                ..
            } => {
                let root = root.path().to_owned();
                match start.checked_add(len).is_some_and(|end| end <= EXTENT_LEN_BYTES) {
                    true => {
                        let job =
                            DiskJob::Put { root, path, direct, len_bytes, at, buf, start, len };
                        self.start_disk(node, id, job);
                    }
                    false => {
                        let error = io::ErrorKind::InvalidInput.into();
                        self.refuse(node, id, Done::Put(Err(error), buf));
                    }
                }
            }
            Op::RemoveTree { id, root, path } => {
                let root = root.path().to_owned();
                self.start_disk(node, id, DiskJob::RemoveTree { root, path });
            }
            Op::Aside { id, job } => {
                self.start_disk(node, id, DiskJob::Aside { job, step: AsideStep::Begin });
            }
            Op::CloseFile { file } => {
                if let Some(inode) = self.nodes[node].files.remove(&file) {
                    // Last of all, so that what is in flight on it completes first.
                    let (_, at) = self.config.disk_latency;
                    let (epoch, at) = (self.nodes[node].epoch, self.now + at);
                    let job = DiskJob::Close { inode };
                    self.schedule(at, Event::Disk { node, epoch, id: OpId(0), job });
                }
            }
            Op::Read { id, file, offset_bytes, buf, start, len } => {
                match self.check(node, file, start, len) {
                    Ok(inode) => {
                        let job = DiskJob::Read { inode, at: offset_bytes, buf, start, len };
                        self.start_disk(node, id, job);
                    }
                    Err(error) => self.refuse(node, id, Done::Read(Err(error), buf)),
                }
            }
            Op::Write { id, file, offset_bytes, buf, start, len } => {
                match self.check(node, file, start, len) {
                    Ok(inode) => {
                        let job = DiskJob::Write { inode, at: offset_bytes, buf, start, len };
                        self.start_disk(node, id, job);
                    }
                    Err(error) => self.refuse(node, id, Done::Written(Err(error), buf)),
                }
            }
            Op::WriteSmall { id, file, rows } => match self.check(node, file, 0, 0) {
                Ok(inode) => self.start_disk(node, id, DiskJob::WriteSmall { inode, rows }),
                Err(error) => self.refuse(node, id, Done::SmallWritten(Err(error))),
            },
            Op::Sync { id, file } => match self.check(node, file, 0, 0) {
                Ok(inode) => {
                    let mark = self.nodes[node].disk.sync_mark();
                    self.start_disk(node, id, DiskJob::Sync { inode, mark });
                }
                Err(error) => self.refuse(node, id, Done::Synced(Err(error))),
            },
            Op::Allocate { id, file, len_bytes } => match self.check(node, file, 0, 0) {
                Ok(inode) => self.start_disk(node, id, DiskJob::Allocate { inode, len_bytes }),
                Err(error) => self.refuse(node, id, Done::Allocated(Err(error))),
            },
        }
    }

    /// Notes that an operation is in flight.
    fn note(&mut self, node: usize, id: OpId) {
        let is_new = self.nodes[node].in_flight.insert(id);
        assert!(is_new && id != OpId(0), "node {node} uses {id:?} twice at a time");
    }

    fn refuse(&mut self, node: usize, id: OpId, done: Done) {
        self.note(node, id);
        self.complete_soon(node, id, done);
    }

    fn check(&self, node: usize, file: FileId, start: usize, len: usize) -> io::Result<u64> {
        let inode = self.nodes[node].files.get(&file);
        let &inode = inode.ok_or_else(|| io::Error::from(Errno::CANCELED))?;
        match start.checked_add(len).is_some_and(|end| end <= EXTENT_LEN_BYTES) {
            true => Ok(inode),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn start_disk(&mut self, node: usize, id: OpId, job: DiskJob) {
        self.note(node, id);
        let at = self.now + self.between(self.config.disk_latency);
        let epoch = self.nodes[node].epoch;
        self.schedule(at, Event::Disk { node, epoch, id, job });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connect { node, epoch, id, addr, deadline } => {
                if self.nodes[node].epoch == epoch {
                    self.handle_connect(node, id, addr, deadline);
                }
            }
            Event::Arrive { conn, side, arrival } => self.handle_arrival(conn, side, arrival),
            Event::Read { conn, side } => self.handle_read(conn, side),
            Event::Complete { node, epoch, completion } => {
                if self.nodes[node].epoch == epoch {
                    self.inbox.push_back((node, completion));
                }
            }
            Event::Disk { node, epoch, id, job } => {
                if self.nodes[node].epoch != epoch {
                    return;
                }
                if let DiskJob::Aside { job, step } = job {
                    self.run_aside(node, id, job, step);
                } else if let Some(done) = self.run_disk(node, job) {
                    self.inbox.push_back((node, Completion { id, done }));
                }
            }
        }
    }
}
