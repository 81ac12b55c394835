//! The consensus thread: the one owner of everything that decides.
//!
//! It takes events (frames, transactions, time), feeds the core, and carries out what the core says:
//! log, then publish; decide, then store, execute, commit. What it knows of other nodes it learned
//! from their frames; what it believes of them is checked against its own replay.

mod agree;
mod catchup;
mod commit;
mod txs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use ringseed_ledger::{SigningKey, TxHash};
use thiserror::Error;

use super::certificate::{BlockId, Certificate, ChainBlock, DoubleVote, ValidatorSet};
use super::core::{Core, CoreError};
use super::frame::{BLOCKS_LEN_BYTES_MAX, BLOCKS_MAX, Frame};
use super::mempool::Mempool;
use super::mesh::{Mesh, MeshEvent, PeerId, Roster, Serve};
use super::message::{Message, TimerKind};
use super::pace::Pace;
use super::store::{BlockStore, StoreError};
use super::wal::{Signer, Wal};
use crate::app::LedgerApp;
use crate::driver::{Application, ApplicationError};
use crate::handle::{Heights, Status, SubmitError, TxOutcome};
use crate::record_log::LogError;

/// Events that may wait for the thread; connections wait when it is full.
pub const INBOX_EVENTS_MAX: usize = 256;
/// Messages of the next height that are kept until we begin it.
const EARLY_MESSAGES_MAX: usize = 1_024;
/// Blocks of the next height that are kept until we begin it.
const EARLY_BODIES_MAX: usize = 16;
/// Different blocks of one height that one validator may send us.
const BODIES_PER_SENDER_MAX: u32 = 16;
/// Longest sleep: a bound for what no deadline announces.
const TICK_MAX: Duration = Duration::from_secs(60);

/// What comes to the thread.
#[derive(Debug)]
pub enum NodeEvent {
    /// From the mesh.
    Mesh(MeshEvent),
    /// From our own handle.
    Submit {
        /// The transaction.
        tx: Vec<u8>,
        /// Until when the caller waits.
        deadline: Instant,
        /// Where the outcome goes.
        reply: Reply,
    },
    /// End.
    Stop,
}

/// What the thread shares with the handle and the connections.
#[derive(Debug)]
pub struct Shared {
    /// The state and its application.
    pub ledger: Arc<LedgerApp>,
    /// The chain.
    pub store: BlockStore,
    /// Committed heights.
    pub heights: Heights,
    /// Where consensus stands.
    pub status: Mutex<Status>,
    /// When the last block was committed here.
    pub last_commit: Mutex<Instant>,
    /// The genesis as it is served.
    pub genesis_text: Vec<u8>,
    /// Whom the ledger knows.
    pub roster: RwLock<Roster>,
    /// To the thread.
    pub inbox: SyncSender<NodeEvent>,
    /// Set when the thread has ended.
    pub ended: AtomicBool,
}

impl Serve for Shared {
    fn answer(&self, question: &Frame) -> Option<Frame> {
        match question {
            Frame::GetGenesis => Some(Frame::Genesis(self.genesis_text.clone())),
            Frame::GetMembers => {
                let roster = self.roster.read().expect("no panic under this lock");
                let members = roster.members.iter().map(|(key, addr)| (*key, *addr));
                Some(Frame::Members(members.take(1 << 13).collect()))
            }
            Frame::GetBlocks { from } => {
                let mut blocks = Vec::new();
                let mut len_bytes = 0;
                for height in *from..from.saturating_add(BLOCKS_MAX as u64) {
                    // A damaged record is the operator's business; the peer asks somebody else.
                    let Ok(Some(bytes)) = self.store.read_bytes(height) else { break };
                    len_bytes += bytes.len();
                    blocks.push(bytes);
                    if len_bytes >= BLOCKS_LEN_BYTES_MAX {
                        break;
                    }
                }
                Some(Frame::Blocks { from: *from, blocks, height: self.store.height() })
            }
            _ => None,
        }
    }

    fn deliver(&self, event: MeshEvent) -> bool {
        self.inbox.send(NodeEvent::Mesh(event)).is_ok()
    }
}

/// Why the thread cannot go on. What is on disk is no longer known, or an invariant is broken.
#[derive(Debug, Error)]
pub enum Fatal {
    /// The core.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The log of votes.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The block store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The application.
    #[error(transparent)]
    Application(#[from] ApplicationError),
    /// The file that says who signs here.
    #[error("the signer file: {0}")]
    Signer(std::io::Error),
    /// Two thirds certified something that our replay does not give.
    #[error("{0}")]
    Diverged(String),
}

/// A peer as consensus sees it.
#[derive(Clone, Debug)]
struct PeerState {
    key: [u8; 32],
    /// What it reported since it connected.
    height: Option<u64>,
    /// It did not answer, or answered with nothing, before this: ask others first.
    ask_after: Option<Instant>,
}

/// What came for a height before we began it.
#[derive(Debug, Default)]
struct Early {
    messages: Vec<Message>,
    bodies: Vec<(u32, ChainBlock)>,
}

/// Where the outcome of a transaction goes.
type Reply = Sender<Result<TxOutcome, SubmitError>>;

/// A transaction that waits until our state is new enough to check it, and until when its sender
/// waits.
struct Parked {
    tx: Vec<u8>,
    deadline: Instant,
    reply: Reply,
}

/// A question for blocks that is out.
#[derive(Clone, Copy, Debug)]
struct Request {
    peer: PeerId,
    until: Instant,
}

/// Everything that the thread owns. See the module's documentation.
pub struct Node {
    pub(super) shared: Arc<Shared>,
    pub(super) app: Arc<dyn Application>,
    pub(super) mesh: Mesh,
    pub(super) inbox: Receiver<NodeEvent>,
    pub(super) genesis_hash: [u8; 32],
    pub(super) key: [u8; 32],
    pub(super) core: Core,
    pub(super) wal: Wal,
    pub(super) signer: Signer,
    pub(super) signer_path: std::path::PathBuf,
    pub(super) pace: Pace,

    /// Last committed height, its block, the proof, and who signed it.
    height: u64,
    last_id: BlockId,
    last_certificate: Option<Certificate>,
    last_set: ValidatorSet,
    app_hash: [u8; 32],
    /// Who signs the next height, and the one after.
    set: ValidatorSet,
    next_set: ValidatorSet,

    /// The core works on `height + 1`.
    running: bool,
    woken: bool,
    round: u32,
    /// Blocks of this height that were judged, good and bad.
    values: BTreeMap<BlockId, ChainBlock>,
    bodies_by_sender: BTreeMap<[u8; 32], u32>,
    /// What the core accepted at this height: said again to those who may lack it.
    messages: Vec<Message>,
    /// Entries that the log holds already, while it is replayed.
    logged: BTreeSet<Vec<u8>>,
    deferred_value: Option<u32>,
    is_replaying: bool,
    timers: BTreeMap<(TimerKind, u32), Instant>,
    /// Who let a turn pass since its last proposal: waited for less.
    missed: BTreeSet<[u8; 32]>,
    decided: Option<Certificate>,
    /// What came for the next two heights before we began them.
    early: BTreeMap<u64, Early>,
    evidence: Vec<DoubleVote>,

    peers: BTreeMap<PeerId, PeerState>,
    request: Option<Request>,
    behind_since: Option<Instant>,
    caught_up: bool,

    mempool: Mempool,
    waiters: BTreeMap<TxHash, Vec<Reply>>,
    /// Submitted before we were caught up.
    parked: Vec<Parked>,
    regossip_at: Option<Instant>,
}

/// What [`Node::new`] needs.
pub struct NodeParts {
    pub(super) shared: Arc<Shared>,
    pub(super) app: Arc<dyn Application>,
    pub(super) mesh: Mesh,
    pub(super) inbox: Receiver<NodeEvent>,
    pub(super) genesis_hash: [u8; 32],
    pub(super) key: SigningKey,
    pub(super) wal: Wal,
    pub(super) signer: Signer,
    pub(super) signer_path: std::path::PathBuf,
}

impl Node {
    /// Puts the parts together. [`Node::recover`] comes next, then [`Node::run`].
    pub(super) fn new(parts: NodeParts) -> Self {
        let now = Instant::now();
        let NodeParts { shared, app, mesh, inbox, genesis_hash, key, wal, signer, signer_path } =
            parts;
        let pace = Pace::of(shared.ledger.view().params(), now);
        let public = key.public().0;
        let set = ValidatorSet::default();
        let core = Core::new(genesis_hash, key, 0, set.clone(), true);
        Self {
            shared,
            app,
            mesh,
            inbox,
            genesis_hash,
            key: public,
            core,
            wal,
            signer,
            signer_path,
            pace,
            height: 0,
            last_id: BlockId::default(),
            last_certificate: None,
            last_set: set.clone(),
            app_hash: [0; 32],
            next_set: set.clone(),
            set,
            running: false,
            woken: false,
            round: 0,
            values: BTreeMap::new(),
            bodies_by_sender: BTreeMap::new(),
            messages: Vec::new(),
            logged: BTreeSet::new(),
            deferred_value: None,
            is_replaying: false,
            timers: BTreeMap::new(),
            missed: BTreeSet::new(),
            decided: None,
            early: BTreeMap::new(),
            evidence: Vec::new(),
            peers: BTreeMap::new(),
            request: None,
            behind_since: None,
            caught_up: false,
            mempool: Mempool::default(),
            waiters: BTreeMap::new(),
            parked: Vec::new(),
            regossip_at: None,
        }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// [`Fatal`]: the process must end.
    pub(super) fn run(mut self) -> Result<(), Fatal> {
        loop {
            let now = Instant::now();
            self.tick(now)?;
            self.publish_status();
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(wait.min(TICK_MAX)) {
                Ok(event) => {
                    if !self.handle(event)? {
                        break;
                    }
                    // What else is there costs no further look at the clock.
                    for _ in 0..INBOX_EVENTS_MAX {
                        let Ok(event) = self.inbox.try_recv() else { break };
                        if !self.handle(event)? {
                            return self.end();
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.end()
    }

    fn end(mut self) -> Result<(), Fatal> {
        // Nothing is flushed: a stop and a kill leave the same files behind.
        for (_, waiters) in std::mem::take(&mut self.waiters) {
            waiters.iter().for_each(|to| drop(to.send(Err(SubmitError::Stopped))));
        }
        self.shared.ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn handle(&mut self, event: NodeEvent) -> Result<bool, Fatal> {
        match event {
            NodeEvent::Stop => return Ok(false),
            NodeEvent::Submit { tx, deadline, reply } => self.handle_submit(tx, deadline, reply),
            NodeEvent::Mesh(MeshEvent::Up { peer, key }) => {
                self.peers.insert(peer, PeerState { key, height: None, ask_after: None });
                self.greet(peer);
            }
            NodeEvent::Mesh(MeshEvent::Down { peer }) => {
                self.peers.remove(&peer);
                if self.request.is_some_and(|request| request.peer == peer) {
                    self.request = None;
                }
            }
            NodeEvent::Mesh(MeshEvent::Frame { peer, key, frame }) => {
                self.handle_frame(peer, key, frame)?;
            }
        }
        Ok(true)
    }

    fn handle_frame(&mut self, peer: PeerId, key: [u8; 32], frame: Frame) -> Result<(), Fatal> {
        match frame {
            Frame::Status { height } => self.note_height(peer, height),
            Frame::Consensus(message) => self.handle_message(peer, message)?,
            Frame::Body { round, block } => self.handle_body(key, round, *block)?,
            Frame::Wake { height } => {
                self.woken |= height == self.height + 1;
                if height > self.height + 1 {
                    self.note_height(peer, height - 1);
                }
            }
            Frame::Tx(tx) => self.handle_gossip(peer, tx),
            Frame::Blocks { from, blocks, height } => {
                self.handle_blocks(peer, from, &blocks, height)?;
            }
            // Questions were answered on the connection; the rest is only for newcomers' first
            // steps, which are not taken here.
            Frame::GetBlocks { .. }
            | Frame::GetGenesis
            | Frame::Genesis(_)
            | Frame::GetMembers
            | Frame::Members(_)
            | Frame::Ping => {}
        }
        Ok(())
    }

    /// Everything that time brings.
    fn tick(&mut self, now: Instant) -> Result<(), Fatal> {
        self.tick_catchup(now)?;
        if !self.running && self.may_begin() && self.begin_at() <= now {
            self.begin_height(now, Vec::new())?;
        }
        while let Some((&(kind, round), _)) = self.timers.iter().find(|(_, at)| **at <= now) {
            self.timers.remove(&(kind, round));
            self.handle_timer(kind, round)?;
        }
        self.tick_txs(now);
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let mut next = Instant::now() + TICK_MAX;
        let mut by = |at: Option<Instant>| next = at.map_or(next, |at| next.min(at));
        by(self.timers.values().min().copied());
        by((!self.running && self.may_begin()).then(|| self.begin_at()));
        by(self.regossip_at);
        by(self.parked.iter().map(|parked| parked.deadline).min());
        by(self.catchup_deadline());
        next
    }

    fn is_validator(&self) -> bool {
        self.set.power(&self.key).is_some()
    }

    /// Whether we take part in the next height.
    fn may_begin(&self) -> bool {
        self.is_validator() && self.signer.signing_from <= self.height + 1
    }

    fn begin_at(&self) -> Instant {
        self.pace
            .next_height_at(self.woken || !self.mempool.is_empty() || !self.evidence.is_empty())
    }

    /// Tells a new peer where we are, what the height at work needs, and what waits.
    fn greet(&mut self, peer: PeerId) {
        self.mesh.send(peer, &Frame::Status { height: self.height });
        if self.running {
            self.mesh.send(peer, &Frame::Wake { height: self.height + 1 });
            self.relay(Some(peer));
        }
        for waiting in self.mempool.iter() {
            if !self.mesh.send(peer, &Frame::Tx(waiting.bytes.to_vec())) {
                break;
            }
        }
    }

    fn publish_status(&self) {
        let mut status = self.shared.status.lock().expect("no panic under this lock");
        status.caught_up = self.caught_up;
        status.is_validator = self.is_validator();
        status.mempool_txs = self.mempool.len();
        status.round = self.round;
    }
}
