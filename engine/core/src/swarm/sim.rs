//! A small world of swarms with capped uplinks, in slots of virtual time, and the bars that the
//! sharing of burden must keep.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Budget, Burden, PeerInfo, PeerKey, Planned, Received, Swarm};
use crate::bitfield::Bitfield;
use crate::geometry::{BLOCK_LEN, BlockRef, FileSpan, Geometry, Kind, PieceIndex};
use crate::wire::handshake::PeerId;

/// One slot of virtual time.
const SLOT: Duration = Duration::from_millis(5);
/// What every full uplink sends in a second, in bytes.
const UPLINK: u64 = 8 << 20;

pub(super) fn geometry(pieces: u32, piece_len: u32) -> Arc<Geometry> {
    let len_bytes = u64::from(pieces) * u64::from(piece_len);
    let file = FileSpan { len_bytes, pad: false };
    Arc::new(Geometry::new(piece_len.into(), &[file], Kind::V2).unwrap())
}

pub(super) fn peer_id(number: usize) -> PeerId {
    // The order of ids must not be the order of nodes.
    let scattered = super::shares::mix(number as u64).to_be_bytes();
    PeerId(std::array::from_fn(|i| if i < 8 { scattered[i] } else { number as u8 }))
}

/// What travels between two nodes; it arrives a slot later.
enum Word {
    Request(BlockRef),
    Cancel(BlockRef),
    Have(PieceIndex),
}

struct Node {
    swarm: Option<Swarm>,
    burden: Burden,
    has: Bitfield,
    uplink: u64,
    credit: f64,
    /// Requests of each other node.
    queues: BTreeMap<usize, VecDeque<BlockRef>>,
    turn: usize,
    keys: BTreeMap<usize, PeerKey>,
    got: BTreeMap<PieceIndex, u32>,
    finished: Option<Duration>,
    sent: u64,
}

pub(super) struct World {
    geometry: Arc<Geometry>,
    start: Instant,
    now: Instant,
    nodes: Vec<Node>,
    seeds: usize,
    words: Vec<(usize, usize, Word)>,
    wasted: u64,
    /// Bytes that receivers got from each seed, and from each other.
    pub(super) from: Vec<u64>,
}

impl World {
    /// Seeds with `uplinks`, then `receivers` with a full uplink each.
    pub(super) fn new(
        geometry: &Arc<Geometry>,
        uplinks: &[u64],
        receivers: usize,
        ledgers: Vec<Burden>,
        random: u64,
    ) -> Self {
        let start = Instant::now();
        let count = geometry.piece_count();
        let seeds = uplinks.len();
        let uplinks = uplinks.iter().copied().chain(std::iter::repeat_n(UPLINK, receivers));
        let mut ledgers = ledgers.into_iter();
        let node = |(index, uplink)| {
            let seed = index < seeds;
            let own = peer_id(index);
            let empty = Bitfield::new(count);
            Node {
                swarm: (!seed)
                    .then(|| Swarm::new(geometry.clone(), own, random ^ index as u64, &empty)),
                burden: if seed { Burden::new() } else { ledgers.next().unwrap_or_default() },
                has: if seed { Bitfield::full(count) } else { empty },
                uplink,
                credit: 0.0,
                queues: BTreeMap::new(),
                turn: index,
                keys: BTreeMap::new(),
                got: BTreeMap::new(),
                finished: None,
                sent: 0,
            }
        };
        let mut nodes: Vec<Node> = uplinks.enumerate().map(node).collect();
        let all: Vec<_> = nodes.iter().map(|node| node.has.clone()).collect();
        let from = vec![0; nodes.len()];
        for (index, node) in nodes.iter_mut().enumerate() {
            if let Some(swarm) = &mut node.swarm {
                for (other, has) in all.iter().enumerate().filter(|&(other, _)| other != index) {
                    let info = PeerInfo { peer_id: peer_id(other), ours: true };
                    let key = swarm.add_peer(start, info);
                    swarm.handle_availability(start, key, has);
                    swarm.handle_unchoked(key);
                    node.keys.insert(other, key);
                }
            }
        }
        let (geometry, words) = (geometry.clone(), Vec::new());
        Self { geometry, start, now: start, nodes, seeds, words, wasted: 0, from }
    }

    /// Runs until every receiver is complete. How long that took.
    pub(super) fn run(&mut self) -> Duration {
        loop {
            self.deliver_words();
            self.deliver_blocks();
            for index in self.seeds..self.nodes.len() {
                self.plan(index);
            }
            self.now += SLOT;
            let taken = self.now - self.start;
            if self.nodes[self.seeds..].iter().all(|node| node.finished.is_some()) {
                return taken;
            }
            assert!(taken < Duration::from_secs(600), "stuck: {}", self.explain());
        }
    }

    fn explain(&self) -> String {
        let state = |node: &Node| {
            let swarm = node.swarm.as_ref().unwrap();
            let asked = |key| swarm.asked(key).count();
            let asked: Vec<_> = node.keys.values().map(|&key| asked(key)).collect();
            let timeout = swarm.poll_timeout().map(|at| at.saturating_duration_since(self.now));
            format!("has {} asked {asked:?} wakes in {timeout:?}", node.has.count())
        };
        self.nodes[self.seeds..].iter().map(state).collect::<Vec<_>>().join("; ")
    }

    fn deliver_words(&mut self) {
        for (from, to, word) in std::mem::take(&mut self.words) {
            let now = self.now;
            let node = &mut self.nodes[to];
            match word {
                Word::Request(block) => node.queues.entry(from).or_default().push_back(block),
                Word::Cancel(block) => {
                    node.queues.entry(from).or_default().retain(|&other| other != block);
                }
                Word::Have(piece) => {
                    if let Some(swarm) = &mut node.swarm {
                        swarm.handle_have(now, node.keys[&from], piece);
                    }
                }
            }
        }
    }

    /// Every node sends what its uplink allows in a slot, a block to each asking node in turn.
    fn deliver_blocks(&mut self) {
        for from in 0..self.nodes.len() {
            let node = &mut self.nodes[from];
            node.credit += node.uplink as f64 * SLOT.as_secs_f64();
            let mut sent = Vec::new();
            while node.credit >= f64::from(BLOCK_LEN) {
                let asking = |(_, queue): &(&usize, &VecDeque<BlockRef>)| !queue.is_empty();
                let asking: Vec<_> = node.queues.iter().filter(asking).map(|(&to, _)| to).collect();
                let Some(&to) = asking.get(node.turn % asking.len().max(1)) else {
                    node.credit = node.credit.min(f64::from(BLOCK_LEN));
                    break;
                };
                node.turn += 1;
                let block = node.queues.get_mut(&to).unwrap().pop_front().unwrap();
                assert!(node.has.get(block.piece()), "asked for a piece that was not announced");
                node.credit -= f64::from(block.len());
                node.sent += u64::from(block.len());
                sent.push((to, block));
            }
            for (to, block) in sent {
                self.receive(from, to, block);
            }
        }
    }

    fn receive(&mut self, from: usize, to: usize, block: BlockRef) {
        self.from[from] += u64::from(block.len());
        let node = &mut self.nodes[to];
        let key = node.keys[&from];
        let swarm = node.swarm.as_mut().unwrap();
        let mut cancels = Vec::new();
        let received = swarm.handle_block(self.now, key, block, &mut node.burden, &mut cancels);
        for (key, block) in cancels {
            let other = *node.keys.iter().find(|&(_, &other)| other == key).unwrap().0;
            self.words.push((to, other, Word::Cancel(block)));
        }
        if received == Received::Duplicate {
            self.wasted += u64::from(block.len());
            return;
        }
        let got = node.got.entry(block.piece()).or_default();
        *got += block.len();
        if *got == self.geometry.piece_data_len(block.piece()) {
            swarm.handle_piece_verified(block.piece());
            node.has.set(block.piece());
            if node.has.is_full() {
                assert!(swarm.is_complete());
                node.finished = Some(self.now - self.start);
            }
            for other in (0..self.nodes.len()).filter(|&other| other != to) {
                self.words.push((to, other, Word::Have(block.piece())));
            }
        }
    }

    fn plan(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let swarm = node.swarm.as_mut().unwrap();
        swarm.handle_timeout(self.now);
        let mut budget = Budget { new_extents: 64, blocks: 4096 };
        let mut planned = Planned::default();
        while let Some(key) = swarm.poll_ready(&node.burden) {
            swarm.plan(self.now, key, &mut budget, &mut planned);
            let other = *node.keys.iter().find(|&(_, &other)| other == key).unwrap().0;
            for &block in &planned.requests {
                self.words.push((index, other, Word::Request(block)));
            }
            if planned.short_of_budget {
                break;
            }
        }
        if planned.short_of_budget {
            swarm.wake_all();
        }
    }

    /// How many copies of the listing the seeds have sent in all.
    pub(super) fn copies(&self) -> f64 {
        self.from[..self.seeds].iter().sum::<u64>() as f64 / self.geometry.payload_len() as f64
    }

    /// Wasted bytes as a part of what was needed.
    fn waste(&self) -> f64 {
        let receivers = (self.nodes.len() - self.seeds) as u64;
        self.wasted as f64 / (receivers * self.geometry.payload_len()) as f64
    }

    /// The fluid bound on the time (Kumar and Ross 2006), downlinks unbounded, in seconds.
    fn bound(&self) -> f64 {
        let bytes = self.geometry.payload_len() as f64;
        let seeds: u64 = self.nodes[..self.seeds].iter().map(|node| node.uplink).sum();
        let all: u64 = self.nodes.iter().map(|node| node.uplink).sum();
        let receivers = (self.nodes.len() - self.seeds) as f64;
        (bytes / seeds as f64).max(receivers * bytes / all as f64)
    }
}

const SIZES: [(u32, u32); 7] = [
    (1, 256 << 10),
    (1, 4 << 20),
    (3, 256 << 10),
    (3, 1 << 20),
    (40, 256 << 10),
    (40, 1 << 20),
    (500, 256 << 10),
];

#[test]
fn the_origin_sends_at_most_one_copy_and_a_half_to_three_receivers() {
    for (pieces, piece_len) in SIZES {
        for random in 0..4 {
            let geometry = geometry(pieces, piece_len);
            let mut world = World::new(&geometry, &[UPLINK], 3, Vec::new(), random);
            let taken = world.run().as_secs_f64();
            let (copies, ratio) = (world.copies(), taken / world.bound());
            eprintln!(
                "1 -> 3, {pieces} x {piece_len}: {copies:.2} copies, {taken:.2} s, \
                 {ratio:.2} of the bound, waste {:.4}",
                world.waste()
            );
            assert!(copies <= 1.5, "{pieces} x {piece_len}: {copies} copies");
            assert!(world.waste() <= 0.01, "{}", world.waste());
            if pieces >= 40 {
                assert!(ratio <= 1.3, "{pieces} x {piece_len}: {ratio} times the bound");
            }
        }
    }
}

#[test]
fn four_seeds_send_little_more_than_needed_to_two_joiners() {
    for (pieces, piece_len) in SIZES {
        for random in 0..4 {
            let geometry = geometry(pieces, piece_len);
            let mut world = World::new(&geometry, &[UPLINK; 4], 2, Vec::new(), random);
            let taken = world.run().as_secs_f64();
            let (copies, ratio) = (world.copies(), taken / world.bound());
            eprintln!(
                "4 -> 2, {pieces} x {piece_len}: {copies:.2} copies, {taken:.2} s, \
                 {ratio:.2} of the bound, waste {:.4}",
                world.waste()
            );
            assert!(copies <= 1.6, "{pieces} x {piece_len}: {copies} copies");
            assert!(world.waste() <= 0.01, "{}", world.waste());
            if pieces >= 500 {
                assert!(ratio <= 1.3, "{pieces} x {piece_len}: {ratio} times the bound");
            }
        }
    }
}

#[test]
fn burden_follows_capacity_with_one_source_capped_at_a_quarter() {
    let uplinks = [UPLINK, UPLINK, UPLINK, UPLINK / 4];
    for (pieces, piece_len, receivers) in
        [(40, 1 << 20, 1), (500, 256 << 10, 1), (40, 1 << 20, 2), (500, 256 << 10, 2)]
    {
        let mut ledger = Burden::new();
        for (index, &uplink) in uplinks.iter().enumerate() {
            ledger.set_capacity(peer_id(index), uplink);
        }
        let geometry = geometry(pieces, piece_len);
        let ledgers = vec![ledger; receivers];
        let mut world = World::new(&geometry, &uplinks, receivers, ledgers, 1);
        let taken = world.run().as_secs_f64();
        let load = |(&bytes, &uplink): (&u64, &u64)| bytes as f64 / uplink as f64;
        let loads: Vec<f64> = world.from.iter().zip(&uplinks).map(load).collect();
        let mean = world.from[..4].iter().sum::<u64>() as f64 / uplinks.iter().sum::<u64>() as f64;
        let ratio = taken / world.bound();
        eprintln!(
            "quarter, {pieces} x {piece_len} to {receivers}: loads {loads:.2?}, mean {mean:.2}, \
             {ratio:.2} of the bound, waste {:.4}",
            world.waste()
        );
        assert!(loads.iter().all(|load| (mean / 1.3..mean * 1.3).contains(load)), "{loads:?}");
        assert!(ratio <= 1.3, "{ratio} times the bound");
        assert!(world.waste() <= 0.01, "{}", world.waste());
    }
}

#[test]
fn over_many_small_listings_the_ledger_keeps_the_burden_even() {
    for pieces in [1, 3] {
        let mut ledger = Burden::new();
        for seed in 0..4 {
            ledger.set_capacity(peer_id(seed), UPLINK);
        }
        let mut from = [0_u64; 4];
        for listing in 0..40 {
            let geometry = geometry(pieces, 256 << 10);
            let mut world = World::new(&geometry, &[UPLINK; 4], 1, vec![ledger], listing);
            world.run();
            (0..4).for_each(|seed| from[seed] += world.from[seed]);
            ledger = std::mem::take(&mut world.nodes[4].burden);
        }
        let mean = from.iter().sum::<u64>() as f64 / 4.0;
        assert!(from.iter().all(|&bytes| bytes as f64 <= mean * 1.05), "{pieces}: {from:?}");
    }
}
