//! Which blocks to ask from whom.
//!
//! A [`Swarm`] holds one listing's sources and its missing work. It is event-driven: peers come, say
//! what they have, send blocks; after that [`Swarm::poll_ready`] names the peers that have room and
//! [`Swarm::plan`] says what to ask them for. It does no I/O, reads no clock, and draws its randomness
//! from a seed.
//!
//! - **Work is assigned by extent.** One peer at a time owns the missing blocks of an extent, so that
//!   data arrives in runs that fill a buffer, the hash lanes and a disk write. Pieces that are started
//!   come first, then the rarest, ties at random.
//! - **A peer's pipeline follows its rate**: about 300 ms of it.
//! - **So does its share of the buffers**: whoever is too slow for an extent of its own fills extents
//!   together with others of its kind (see [`pace`]).
//! - **Shares**: several receivers of one listing each take their own share from the
//!   seeds and the rest from each other.
//! - **Burden** ([`Burden`]): among sources with room the one that has borne least, per capacity it
//!   declared, is asked first, over all listings.

mod burden;
mod choose;
mod pace;
mod rate;
mod reserve;
mod shares;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tests;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use burden::Burden;
use rate::{BusyRate, Flow};
use shares::Shares;
use work::{BlockState, Work};

use crate::bitfield::Bitfield;
use crate::geometry::{BLOCK_LEN, BlockRef, ExtentIndex, Geometry, PieceIndex};
use crate::wire::handshake::PeerId;

/// A peer's pipeline holds what it sends in this time. 300 ms cover the round trip of any two hosts
/// on earth, and the queueing of a capped uplink.
const PIPELINE_TIME: Duration = Duration::from_millis(300);
/// Or in twice the time in which nothing comes from it, up to this. Clients that obey an upload limit send
/// a few times a second (Transmission twice): a pipeline shorter than the pause between two bursts is
/// all that a burst brings, and the rate that follows from it keeps it so short.
const PIPELINE_TIME_MAX: Duration = Duration::from_secs(2);
/// Smallest pipeline, in blocks, of a peer that sends so much in [`OWED_TIME`]: half an extent keeps a new
/// peer busy until its rate is known, and lets one behind a long round trip show what it can.
const PIPELINE_MIN: u32 = 8;
/// A slower one owes us no more than it sends in this time: what waits in its queue holds up a piece, and
/// with it the memory of all of it.
const OWED_TIME: Duration = Duration::from_secs(3);
/// First pipeline, in blocks, of one that fills extents together with others. Every answer allows one more, up
/// to what its rate allows.
const PIPELINE_JOINT: u32 = 2;
/// Largest pipeline, in blocks (8 MiB); what stock clients queue.
const PIPELINE_MAX: u32 = 512;
/// How long a connection to a seed must have been idle before another's share is taken from it, and
/// how often a starving peer is looked at again.
const IDLE_PATIENCE: Duration = Duration::from_millis(100);

/// So many rejects without a block between them, and a peer is left alone for [`REJECT_PAUSE`]: else it
/// would be asked and refuse in a circle. A choke brings as many rejects as were outstanding.
const REJECTS_MAX: u32 = 64;
/// How long a peer that only rejects is left alone.
const REJECT_PAUSE: Duration = Duration::from_secs(1);

/// Hints of a peer (BEP 6) that are remembered, of each kind.
const HINTS_MAX: usize = 64;
/// How fast a long silence of a receiver is forgotten, per word of it.
const NEWS_GAP_DECAY: f64 = 0.75;

/// Name of a peer in one [`Swarm`]; never used again after [`Swarm::remove_peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(pub u32);

/// What is known of a peer when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its name; the ledger of burden and the shares go by it.
    pub peer_id: PeerId,
    /// It runs this client, so it keeps to the rule of shares.
    pub ours: bool,
}

/// How much a plan may ask for; what it uses is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many extents there are buffers for in all. A plan does not change it.
    pub extents: u32,
    /// How many more extents there are buffers for.
    pub new_extents: u32,
    /// How many more blocks may be asked for.
    pub blocks: u32,
}

/// What [`Swarm::plan`] has decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// To be asked of the planned peer, in this order. What its channel does not take goes back by
    /// [`Swarm::handle_unsent`].
    pub requests: Vec<BlockRef>,
    /// The budget, and nothing else, kept the peer from getting more: call [`Swarm::wake_short`] when
    /// there is room again.
    pub short_of_budget: bool,
}

/// What a block that came was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was missing.
    New,
    /// It was there already: its bytes are waste.
    Duplicate,
}

#[derive(Debug)]
struct Peer {
    info: PeerInfo,
    has: Bitfield,
    /// It has said what it has.
    known: bool,
    /// It had everything when it first said so. One that grew to completeness here stays a relay:
    /// what it has it got from the swarm, and may pass on.
    seed: bool,
    choked: bool,
    requests_max: u32,
    /// How many pieces it has that we lack.
    useful: u32,
    /// What it is asked for, in order.
    asked: VecDeque<BlockRef>,
    asked_bytes: u64,
    /// Extents whose missing blocks are its to fetch.
    owned: Vec<ExtentIndex>,
    rate: BusyRate,
    last_block: Instant,
    /// It has nothing to do, though it could.
    idle_since: Option<Instant>,
    /// The group it began last, where neighbours want to come together.
    began: Option<u32>,
    /// It is giving us what belongs to the shares of others.
    stealing: bool,
    /// It failed to send in time; it gets one extent at a time until it has sent a block again.
    snubbed: bool,
    /// Blocks that it has sent.
    answered: u32,
    /// It is too slow to fill extents alone, see [`pace`].
    is_joint: bool,
    /// A receiver of which nothing was heard while we starved: its share is everyone's.
    stalled: bool,
    last_news: Instant,
    /// The longest time between two words of it lately: what silence of it is worth waiting for.
    news_gap: Duration,
    /// Pieces that it gives even while it chokes (BEP 6).
    allowed: BTreeSet<PieceIndex>,
    /// Pieces that are cheap for it (BEP 6).
    suggested: BTreeSet<PieceIndex>,
    /// Rejects since its last block.
    rejects: u32,
    refuses_until: Option<Instant>,
}

/// One listing's sources and missing work.
#[derive(Debug)]
pub struct Swarm {
    work: Work,
    /// Files begin inside of pages, so that neighbours are best written together.
    lies_askew: bool,
    own_id: PeerId,
    random: u64,
    peers: BTreeMap<PeerKey, Peer>,
    next_key: u32,
    /// How many relays (peers that were not complete when they came) have each piece.
    relayed: Vec<u16>,
    shares: Shares,
    /// Untouched groups of our own share.
    own_untouched: u32,
    /// What came from relays lately.
    relay_flow: Flow,
    /// Since when seeds have idled because only shares of others are left.
    starving_since: Option<Instant>,
    /// Bytes taken from seeds that belong to the shares of others.
    stolen_bytes: u64,
    hold_seeds_until: Option<Instant>,
    /// Blocks that may still be asked for twice.
    twins_left: u32,
    /// Pieces that failed and now come from one peer alone.
    reserved: BTreeMap<PieceIndex, reserve::Reservation>,
    ready: BTreeSet<PeerKey>,
    /// Those of them that fill extents together: they come after the others.
    ready_joint: BTreeSet<PeerKey>,
    /// Peers whose last plan the budget has cut short.
    short: BTreeSet<PeerKey>,
    pace: pace::Pace,
    wake_at: Option<Instant>,
}

impl Swarm {
    /// The swarm of a listing of which `have` is verified already. `seed` makes choices among equals
    /// differ between nodes.
    ///
    /// # Panics
    /// If `have` is of another torrent.
    pub fn new(geometry: Arc<Geometry>, own_id: PeerId, seed: u64, have: &Bitfield) -> Self {
        let piece_count = geometry.piece_count();
        let blocks = geometry.payload_len() / u64::from(BLOCK_LEN);
        let lies_askew = geometry.lies_askew();
        let work = Work::new(geometry, have);
        let mut swarm = Self {
            work,
            lies_askew,
            own_id,
            random: seed,
            peers: BTreeMap::new(),
            next_key: 0,
            relayed: vec![0; piece_count as usize],
            shares: Shares::new(own_id, std::iter::empty()),
            own_untouched: 0,
            relay_flow: Flow::default(),
            starving_since: None,
            stolen_bytes: 0,
            hold_seeds_until: None,
            // Half a percent of the listing, and a few for small ones.
            twins_left: 16 + u32::try_from(blocks / 200).unwrap_or(u32::MAX / 2),
            reserved: BTreeMap::new(),
            ready: BTreeSet::new(),
            ready_joint: BTreeSet::new(),
            short: BTreeSet::new(),
            pace: pace::Pace::default(),
            wake_at: None,
        };
        swarm.count_own_untouched();
        swarm
    }

    /// What is verified.
    pub fn have(&self) -> &Bitfield {
        self.work.have()
    }

    /// Whether every piece is verified.
    pub fn is_complete(&self) -> bool {
        self.work.have().is_full()
    }

    /// How many connected peers have a piece, seeds included.
    pub fn availability(&self, piece: PieceIndex) -> u32 {
        let seeds = self.peers.values().filter(|peer| peer.seed).count() as u32;
        seeds + u32::from(self.relayed[piece.get() as usize])
    }

    /// Whether a peer has a piece that we lack.
    pub fn is_interesting(&self, key: PeerKey) -> bool {
        self.peers.get(&key).is_some_and(|peer| peer.useful > 0)
    }

    /// What a peer is asked for, in order.
    pub fn asked(&self, key: PeerKey) -> impl Iterator<Item = BlockRef> + '_ {
        self.peers.get(&key).into_iter().flat_map(|peer| peer.asked.iter().copied())
    }

    /// How many receivers share this listing, this node counted.
    pub fn receiver_count(&self) -> u32 {
        self.shares.count()
    }

    // Peers come and go.

    /// A peer is connected. It counts from its first word about what it has.
    pub fn add_peer(&mut self, now: Instant, info: PeerInfo) -> PeerKey {
        let key = PeerKey(self.next_key);
        self.next_key += 1;
        let peer = Peer {
            info,
            has: Bitfield::new(self.work.geometry().piece_count()),
            known: false,
            seed: false,
            choked: true,
            requests_max: PIPELINE_MAX,
            useful: 0,
            asked: VecDeque::new(),
            asked_bytes: 0,
            owned: Vec::new(),
            rate: BusyRate::default(),
            last_block: now,
            idle_since: None,
            began: None,
            stealing: false,
            snubbed: false,
            answered: 0,
            is_joint: false,
            stalled: false,
            last_news: now,
            news_gap: Duration::ZERO,
            allowed: BTreeSet::new(),
            suggested: BTreeSet::new(),
            rejects: 0,
            refuses_until: None,
        };
        self.peers.insert(key, peer);
        self.pace.is_stale = true;
        key
    }

    /// A peer is gone; its work goes to others.
    pub fn remove_peer(&mut self, key: PeerKey) {
        self.release(key);
        let Some(peer) = self.peers.remove(&key) else {
            return;
        };
        self.ready.remove(&key);
        self.ready_joint.remove(&key);
        self.short.remove(&key);
        self.pace.is_stale = true;
        self.pass_on_reserved(key, None);
        if !peer.seed {
            peer.has.iter_set().for_each(|piece| self.relayed[piece.get() as usize] -= 1);
        }
        self.update_shares();
        self.wake_all();
    }

    /// How many requests a peer queues (`reqq`, BEP 10).
    pub fn set_requests_max(&mut self, key: PeerKey, requests_max: u32) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.requests_max = requests_max;
        }
    }

    /// Until then nothing is taken from seeds: other receivers are expected to connect, and without
    /// them this one would take everything as its own share. `None` ends the wait.
    pub fn hold_seeds_until(&mut self, until: Option<Instant>) {
        self.hold_seeds_until = until;
        self.wake_all();
    }

    // What peers have.

    /// A peer has said what it has.
    pub fn handle_availability(&mut self, now: Instant, key: PeerKey, has: &Bitfield) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.seed {
            peer.has.iter_set().for_each(|piece| self.relayed[piece.get() as usize] -= 1);
        }
        peer.seed = !peer.known && has.is_full();
        peer.known = true;
        peer.has = has.clone();
        peer.last_news = now;
        if !peer.seed {
            has.iter_set().for_each(|piece| self.relayed[piece.get() as usize] += 1);
        }
        let mut beyond = has.clone();
        beyond.and_not_with(self.work.have());
        peer.useful = beyond.count();
        self.ready.insert(key);
        self.update_shares();
    }

    /// A peer has one piece more.
    pub fn handle_have(&mut self, now: Instant, key: PeerKey, piece: PieceIndex) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let news = !peer.known;
        peer.known = true;
        if peer.has.set(piece) {
            if !peer.seed {
                self.relayed[piece.get() as usize] += 1;
            }
            let gap = now.saturating_duration_since(peer.last_news);
            if gap > Duration::ZERO {
                peer.news_gap = gap.max(peer.news_gap.mul_f64(NEWS_GAP_DECAY));
            }
            peer.last_news = now;
            peer.useful += u32::from(!self.work.have().get(piece));
            self.starving_since = None;
            self.ready.insert(key);
            let back = std::mem::take(&mut peer.stalled);
            if news || back {
                self.update_shares();
            }
        }
    }

    /// A peer has lost a piece (BEP 54).
    pub fn handle_dont_have(&mut self, key: PeerKey, piece: PieceIndex) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.has.clear(piece) {
            if peer.seed {
                // No longer complete: from now on its pieces are counted one by one.
                peer.seed = false;
                peer.has.iter_set().for_each(|piece| self.relayed[piece.get() as usize] += 1);
            } else {
                self.relayed[piece.get() as usize] -= 1;
            }
            peer.useful -= u32::from(!self.work.have().get(piece));
            self.pass_on_reserved(key, Some(piece));
            self.update_shares();
        }
    }

    /// A peer gives a piece even while it chokes (BEP 6).
    pub fn handle_allowed_fast(&mut self, key: PeerKey, piece: PieceIndex) {
        if let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.allowed.len() < HINTS_MAX) {
            peer.allowed.insert(piece);
            self.ready.insert(key);
        }
    }

    /// A piece is cheap for a peer (BEP 6). It comes first among those that are equally rare, and never
    /// before rarer ones: what is cheap for a seed is what it has just given to somebody else.
    pub fn handle_suggested(&mut self, key: PeerKey, piece: PieceIndex) {
        if let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.suggested.len() < HINTS_MAX)
        {
            peer.suggested.insert(piece);
        }
    }

    /// A peer answers requests.
    pub fn handle_unchoked(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.choked = false;
            self.ready.insert(key);
            self.pace.is_stale = true;
        }
    }

    /// A peer answers no more requests. `dropped` are those it will not answer; with the fast
    /// extension that comes one by one, by [`Swarm::handle_rejected`].
    pub fn handle_choked(&mut self, key: PeerKey, dropped: &[BlockRef]) {
        dropped.iter().for_each(|&block| self.take_back(key, block));
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.choked = true;
            peer.idle_since = None;
            self.pace.is_stale = true;
            let owned = std::mem::take(&mut peer.owned);
            owned.into_iter().for_each(|extent| self.disown(extent, key));
        }
        self.pass_on_reserved(key, None);
        self.wake_all();
    }

    /// The peer will not answer a request (BEP 6).
    pub fn handle_rejected(&mut self, now: Instant, key: PeerKey, block: BlockRef) {
        self.handle_unsent(key, block);
        self.pass_on_reserved(key, Some(block.piece()));
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.rejects += 1;
            if peer.rejects >= REJECTS_MAX {
                peer.rejects = 0;
                peer.refuses_until = Some(now + REJECT_PAUSE);
                self.wake_by(now + REJECT_PAUSE);
            }
        }
    }

    /// A planned request could not be sent: it goes back.
    pub fn handle_unsent(&mut self, key: PeerKey, block: BlockRef) {
        self.take_back(key, block);
        if let Some(peer) = self.peers.get_mut(&key) {
            let owned = std::mem::take(&mut peer.owned);
            owned.into_iter().for_each(|extent| self.disown(extent, key));
            self.short.insert(key);
        }
        self.wake_others(key);
    }

    /// A peer has sent nothing for too long: its work goes to others.
    ///
    /// Returns the blocks to cancel on its channel.
    pub fn handle_snubbed(&mut self, key: PeerKey) -> Vec<BlockRef> {
        let blocks = self.release(key);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.snubbed = true;
            self.pace.is_stale = true;
        }
        self.pass_on_reserved(key, None);
        self.wake_others(key);
        blocks
    }

    // What comes.

    /// A block came from a peer, complete. The burden is booked. Requests of the same block to others
    /// are added to `cancels`.
    pub fn handle_block(
        &mut self,
        now: Instant,
        key: PeerKey,
        block: BlockRef,
        burden: &mut Burden,
        cancels: &mut Vec<(PeerKey, BlockRef)>,
    ) -> Received {
        let len = u64::from(block.len());
        if let Some(peer) = self.peers.get_mut(&key) {
            burden.record(peer.info.peer_id, len);
            peer.rate.record(now, len);
            peer.last_block = now;
            peer.answered = peer.answered.saturating_add(1);
            peer.snubbed = false;
            peer.rejects = 0;
            forget(peer, block);
            if !peer.seed {
                self.relay_flow.record(now, len);
                self.starving_since = None;
            }
            self.ready.insert(key);
        }
        let (extent, _) = self.work.geometry().extent_of(block);
        let Some(active) = self.work.active_mut(extent) else {
            return Received::Duplicate;
        };
        let others = match active.state(block) {
            Some(BlockState::Asked { by, twin }) => [Some(by), twin],
            Some(BlockState::Missing) => [None, None],
            Some(BlockState::Got { .. } | BlockState::Done) | None => return Received::Duplicate,
        };
        active.set(block, BlockState::Got { from: key });
        for other in others.into_iter().flatten().filter(|&other| other != key) {
            if let Some(peer) = self.peers.get_mut(&other) {
                forget(peer, block);
                cancels.push((other, block));
                self.ready.insert(other);
            }
        }
        Received::New
    }

    /// A block does not match its leaf: it is wanted again. Returns who sent it.
    pub fn handle_block_failed(&mut self, block: BlockRef) -> Option<PeerKey> {
        let (extent, _) = self.work.geometry().extent_of(block);
        let active = self.work.active_mut(extent)?;
        let Some(BlockState::Got { from }) = active.state(block) else {
            return None;
        };
        active.set(block, BlockState::Missing);
        active.owner = None;
        self.reserve(block.piece(), &[from]);
        self.wake_all();
        Some(from)
    }

    /// A piece is verified (by hashing, on resume, or repaired).
    pub fn handle_piece_verified(&mut self, piece: PieceIndex) {
        let group = self.work.group_of_piece(piece);
        let was_own = self.work.is_untouched(group) && self.shares.is_own(group);
        self.reserved.remove(&piece);
        if self.work.finish_piece(piece) {
            if was_own && !self.work.is_untouched(group) {
                self.own_untouched -= 1;
            }
            for peer in self.peers.values_mut().filter(|peer| peer.has.get(piece)) {
                peer.useful -= 1;
            }
        }
    }

    /// A piece does not match its hash: all its blocks are wanted again, from one peer that had no part in
    /// it, if there is one: what then verifies tells who lied. Returns who sent parts of it.
    pub fn handle_piece_failed(&mut self, piece: PieceIndex) -> Vec<PeerKey> {
        let mut senders = BTreeSet::new();
        let extents: Vec<_> = self.work.geometry().extents_of_piece(piece).collect();
        for extent in extents {
            let Some(active) = self.work.active_mut(extent) else {
                continue;
            };
            let of_piece = active.slots.iter().filter(|slot| slot.block.piece() == piece);
            let got: Vec<_> = of_piece
                .filter_map(|slot| match slot.state {
                    BlockState::Got { from } => Some((slot.block, from)),
                    _ => None,
                })
                .collect();
            for (block, from) in got {
                senders.insert(from);
                active.set(block, BlockState::Missing);
                active.owner = None;
            }
        }
        let senders: Vec<PeerKey> = senders.into_iter().collect();
        self.reserve(piece, &senders);
        self.wake_all();
        senders
    }

    /// A verified piece is lost (rotten on disk): it is fetched again.
    pub fn handle_piece_lost(&mut self, piece: PieceIndex) {
        if self.work.lose_piece(piece) {
            for peer in self.peers.values_mut().filter(|peer| peer.has.get(piece)) {
                peer.useful += 1;
            }
            self.count_own_untouched();
            self.wake_all();
        }
    }

    // What to do next.

    /// Length of a block, in bytes: a piece, where that is shorter.
    fn block_len(&self) -> u32 {
        self.work.geometry().piece_len_nominal().min(BLOCK_LEN)
    }

    /// A peer that [`Swarm::plan`] may have work for, the least burdened first; those that fill extents
    /// together come last, because what they need least is memory. Each is named once per event. `None`:
    /// there is nothing to plan.
    pub fn poll_ready(&mut self, burden: &Burden) -> Option<PeerKey> {
        let block_len = self.block_len();
        let room = |key: &PeerKey| {
            self.peers.get(key).is_some_and(|peer| {
                is_willing(peer)
                    && peer.useful > 0
                    && (peer.asked.len() as u32) < pipeline_max(peer, block_len)
            })
        };
        let load = |key: PeerKey| {
            let peer = &self.peers[&key];
            burden.ratio(peer.info.peer_id, peer.asked_bytes)
        };
        let least = |ready: &BTreeSet<PeerKey>| {
            ready.iter().copied().min_by(|&a, &b| load(a).total_cmp(&load(b)))
        };
        self.ready.retain(room);
        let is_joint = |key: &PeerKey| self.peers[key].is_joint;
        self.ready_joint.extend(self.ready.extract_if(.., is_joint));
        if let Some(key) = least(&self.ready) {
            self.ready.remove(&key);
            return Some(key);
        }
        // Hundreds of slow peers are not compared with each other beside a fast one.
        while self.pace.has_alone
            && let Some(key) = self.ready_joint.pop_first()
        {
            if room(&key) {
                return Some(key);
            }
        }
        self.ready_joint.retain(room);
        let key = least(&self.ready_joint)?;
        self.ready_joint.remove(&key);
        Some(key)
    }

    /// There is room in the budget again: peers whose plans it has cut short may have work.
    pub fn wake_short(&mut self) {
        self.ready.append(&mut self.short);
    }

    /// All peers may have work again: it was released.
    pub fn wake_all(&mut self) {
        self.ready.extend(self.peers.keys().copied());
    }

    /// When to call [`Swarm::handle_timeout`]; `None` while no peer starves.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wake_at
    }

    /// The time of [`Swarm::poll_timeout`] has come. Early calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            for peer in self.peers.values_mut() {
                peer.refuses_until = peer.refuses_until.filter(|&until| until > now);
            }
            if let Some(next) = self.peers.values().filter_map(|peer| peer.refuses_until).min() {
                self.wake_by(next);
            }
            self.wake_all();
        }
    }

    fn wake_others(&mut self, key: PeerKey) {
        self.ready.extend(self.peers.keys().copied().filter(|&other| other != key));
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    // Releasing.

    /// Takes all work from a peer. Returns what it was asked for.
    fn release(&mut self, key: PeerKey) -> Vec<BlockRef> {
        let Some(peer) = self.peers.get_mut(&key) else {
            return Vec::new();
        };
        peer.idle_since = None;
        let asked: Vec<_> = peer.asked.iter().copied().collect();
        let owned = std::mem::take(&mut peer.owned);
        asked.iter().for_each(|&block| self.take_back(key, block));
        owned.into_iter().for_each(|extent| self.disown(extent, key));
        asked
    }

    /// A block that `key` was asked for is not coming from it.
    fn take_back(&mut self, key: PeerKey, block: BlockRef) {
        if let Some(peer) = self.peers.get_mut(&key) {
            forget(peer, block);
        }
        let (extent, _) = self.work.geometry().extent_of(block);
        let Some(active) = self.work.active_mut(extent) else {
            return;
        };
        match active.state(block) {
            Some(BlockState::Asked { by, twin: Some(twin) }) if by == key => {
                active.set(block, BlockState::Asked { by: twin, twin: None });
            }
            Some(BlockState::Asked { by, twin: None }) if by == key => {
                active.set(block, BlockState::Missing);
            }
            Some(BlockState::Asked { by, twin: Some(twin) }) if twin == key => {
                active.set(block, BlockState::Asked { by, twin: None });
            }
            _ => {}
        }
    }

    fn disown(&mut self, extent: ExtentIndex, key: PeerKey) {
        if let Some(active) = self.work.active_mut(extent)
            && active.owner == Some(key)
        {
            active.owner = None;
        }
    }

    // Shares.

    fn update_shares(&mut self) {
        // A receiver that is complete by now stays one: it has what it took for the others, too.
        let receives = |peer: &&Peer| peer.known && peer.info.ours && !peer.seed && !peer.stalled;
        let receivers = self.peers.values().filter(receives);
        let shares = Shares::new(self.own_id, receivers.map(|peer| peer.info.peer_id));
        if shares != self.shares {
            self.shares = shares;
            self.count_own_untouched();
            self.wake_all();
        }
    }

    fn count_own_untouched(&mut self) {
        let own = self.work.untouched().iter().filter(|&&group| self.shares.is_own(group));
        self.own_untouched = own.count() as u32;
    }
}

/// Whether a peer answers requests, be it for a few pieces only.
fn is_willing(peer: &Peer) -> bool {
    (!peer.choked || !peer.allowed.is_empty()) && peer.refuses_until.is_none()
}

/// How many blocks of `block_len` bytes a peer's pipeline holds now. Counted as if they were full, those
/// of pieces of 1 KiB are a sixteenth of what was meant: less than what lies between two late acknowledgements.
fn pipeline_max(peer: &Peer, block_len: u32) -> u32 {
    let bound = PIPELINE_MAX.min(peer.requests_max).max(1);
    let scale = BLOCK_LEN / block_len;
    let of_rate = peer.rate.get().map_or(PIPELINE_MIN * scale, |rate| {
        let blocks = |time: Duration| rate * time.as_secs_f64() / f64::from(block_len);
        let owed_max = blocks(OWED_TIME).ceil() as u32;
        (blocks(pipeline_time(peer)) as u32).max(owed_max.min(PIPELINE_MIN * scale))
    });
    let wanted = match peer.is_joint {
        _ if peer.snubbed => 1,
        // A first answer may have come at once that the next ones will not.
        true => of_rate.min((PIPELINE_JOINT * scale).saturating_add(peer.answered)),
        false => of_rate,
    };
    wanted.clamp(1, bound)
}

/// How long a peer's pipeline is in time.
fn pipeline_time(peer: &Peer) -> Duration {
    (peer.rate.gap() * 2).clamp(PIPELINE_TIME, PIPELINE_TIME_MAX)
}

fn forget(peer: &mut Peer, block: BlockRef) {
    let at = if peer.asked.front() == Some(&block) {
        Some(0)
    } else {
        peer.asked.iter().position(|&other| other == block)
    };
    if let Some(at) = at {
        peer.asked.remove(at);
        peer.asked_bytes -= u64::from(block.len());
    }
}
