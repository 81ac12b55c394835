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
    /// What it fetches, by listing; `None` where it is a seed.
    swarms: Vec<Option<Swarm>>,
    has: Vec<Bitfield>,
    burden: Burden,
    uplink: u64,
    credit: f64,
    /// Requests of other nodes, by node and listing.
    queues: BTreeMap<(usize, usize), VecDeque<BlockRef>>,
    turn: usize,
    /// How it calls other nodes, by listing and node.
    keys: BTreeMap<(usize, usize), PeerKey>,
    /// Bytes of pieces, by listing.
    got: BTreeMap<(usize, PieceIndex), u32>,
}

pub(super) struct World {
    listings: Vec<Arc<Geometry>>,
    start: Instant,
    now: Instant,
    nodes: Vec<Node>,
    /// From, to, listing.
    words: Vec<(usize, usize, usize, Word)>,
    wasted: u64,
    /// Bytes that each node has sent, by listing.
    sent: Vec<Vec<u64>>,
    /// Whether a node had all of a listing from the start, by listing and node.
    seeds: Vec<Vec<bool>>,
}

impl World {
    /// One listing: seeds with `uplinks`, then `receivers` with a full uplink each.
    fn of_one(
        geometry: &Arc<Geometry>,
        uplinks: &[u64],
        receivers: usize,
        ledger: &Burden,
        random: u64,
    ) -> Self {
        let mut all = uplinks.to_vec();
        all.resize(uplinks.len() + receivers, UPLINK);
        let seeds = (0..all.len()).map(|node| node < uplinks.len()).collect();
        Self::new(&[(geometry.clone(), seeds)], &all, ledger, random)
    }

    /// Nodes with `uplinks`, and listings with the nodes that have them from the start.
    fn new(
        listings: &[(Arc<Geometry>, Vec<bool>)],
        uplinks: &[u64],
        ledger: &Burden,
        random: u64,
    ) -> Self {
        let start = Instant::now();
        let node = |(index, &uplink): (usize, &u64)| {
            let swarm = |(geometry, seeds): &(Arc<Geometry>, Vec<bool>)| {
                let empty = Bitfield::new(geometry.piece_count());
                let random = random ^ index as u64;
                (!seeds[index])
                    .then(|| Swarm::new(geometry.clone(), peer_id(index), random, &empty))
            };
            let has = |(geometry, seeds): &(Arc<Geometry>, Vec<bool>)| match seeds[index] {
                true => Bitfield::full(geometry.piece_count()),
                false => Bitfield::new(geometry.piece_count()),
            };
            Node {
                swarms: listings.iter().map(swarm).collect(),
                has: listings.iter().map(has).collect(),
                burden: ledger.clone(),
                uplink,
                credit: 0.0,
                queues: BTreeMap::new(),
                turn: index,
                keys: BTreeMap::new(),
                got: BTreeMap::new(),
            }
        };
        let nodes: Vec<Node> = uplinks.iter().enumerate().map(node).collect();
        let mut world = Self {
            listings: listings.iter().map(|(geometry, _)| geometry.clone()).collect(),
            start,
            now: start,
            sent: vec![vec![0; nodes.len()]; listings.len()],
            nodes,
            words: Vec::new(),
            wasted: 0,
            seeds: listings.iter().map(|(_, seeds)| seeds.clone()).collect(),
        };
        let has: Vec<_> = world.nodes.iter().map(|node| node.has.clone()).collect();
        for (index, node) in world.nodes.iter_mut().enumerate() {
            for (listing, swarm) in node.swarms.iter_mut().enumerate() {
                let Some(swarm) = swarm else {
                    continue;
                };
                for (other, has) in has.iter().enumerate().filter(|&(other, _)| other != index) {
                    let info = PeerInfo { peer_id: peer_id(other), ours: true };
                    let key = swarm.add_peer(start, info);
                    swarm.handle_availability(start, key, &has[listing]);
                    swarm.handle_unchoked(key);
                    node.keys.insert((listing, other), key);
                }
            }
        }
        world
    }

    /// Runs until every receiver is complete. How long that took, in seconds.
    fn run(&mut self) -> f64 {
        loop {
            self.deliver_words();
            self.deliver_blocks();
            (0..self.nodes.len()).for_each(|index| self.plan(index));
            self.now += SLOT;
            let taken = self.now - self.start;
            let whole = |node: &Node| node.has.iter().all(Bitfield::is_full);
            if self.nodes.iter().all(whole) {
                return taken.as_secs_f64();
            }
            assert!(taken < Duration::from_secs(600), "stuck");
        }
    }

    fn deliver_words(&mut self) {
        for (from, to, listing, word) in std::mem::take(&mut self.words) {
            let node = &mut self.nodes[to];
            let queue = node.queues.entry((from, listing)).or_default();
            match word {
                Word::Request(block) => queue.push_back(block),
                Word::Cancel(block) => queue.retain(|&other| other != block),
                Word::Have(piece) => {
                    if let Some(swarm) = &mut node.swarms[listing] {
                        swarm.handle_have(self.now, node.keys[&(listing, from)], piece);
                    }
                }
            }
        }
    }

    /// Every node sends what its uplink allows in a slot, a block to each asking link in turn.
    fn deliver_blocks(&mut self) {
        for from in 0..self.nodes.len() {
            let node = &mut self.nodes[from];
            node.credit += node.uplink as f64 * SLOT.as_secs_f64();
            let mut sent = Vec::new();
            while node.credit >= f64::from(BLOCK_LEN) {
                node.queues.retain(|_, queue| !queue.is_empty());
                let turn = node.turn % node.queues.len().max(1);
                let Some((&(to, listing), queue)) = node.queues.iter_mut().nth(turn) else {
                    node.credit = node.credit.min(f64::from(BLOCK_LEN));
                    break;
                };
                node.turn += 1;
                let block = queue.pop_front().expect("no queue is empty");
                assert!(node.has[listing].get(block.piece()), "asked for what was not announced");
                node.credit -= f64::from(block.len());
                sent.push((to, listing, block));
            }
            for (to, listing, block) in sent {
                self.receive(from, to, listing, block);
            }
        }
    }

    fn receive(&mut self, from: usize, to: usize, listing: usize, block: BlockRef) {
        self.sent[listing][from] += u64::from(block.len());
        let node = &mut self.nodes[to];
        let key = node.keys[&(listing, from)];
        let swarm = node.swarms[listing].as_mut().expect("only receivers ask");
        let mut cancels = Vec::new();
        let received = swarm.handle_block(self.now, key, block, &mut node.burden, &mut cancels);
        for (key, block) in cancels {
            let other = node_of(&node.keys, listing, key);
            self.words.push((to, other, listing, Word::Cancel(block)));
        }
        if received == Received::Duplicate {
            self.wasted += u64::from(block.len());
            return;
        }
        let piece = block.piece();
        let got = node.got.entry((listing, piece)).or_default();
        *got += block.len();
        if *got == self.listings[listing].piece_data_len(piece) {
            swarm.handle_piece_verified(piece);
            node.has[listing].set(piece);
            assert_eq!(node.has[listing].is_full(), swarm.is_complete());
            for other in (0..self.nodes.len()).filter(|&other| other != to) {
                self.words.push((to, other, listing, Word::Have(piece)));
            }
        }
    }

    fn plan(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let mut budget = Budget { extents: 256, new_extents: 256, blocks: 4096 };
        let mut planned = Planned::default();
        for (listing, swarm) in node.swarms.iter_mut().enumerate() {
            let Some(swarm) = swarm else {
                continue;
            };
            swarm.handle_timeout(self.now);
            while let Some(key) = swarm.poll_ready(&node.burden) {
                swarm.plan(self.now, key, &mut budget, &mut planned);
                assert!(!planned.short_of_budget);
                let other = node_of(&node.keys, listing, key);
                for &block in &planned.requests {
                    self.words.push((index, other, listing, Word::Request(block)));
                }
            }
        }
    }

    /// How many copies of a listing its seeds have sent in all.
    fn copies(&self, listing: usize) -> f64 {
        let of_seeds = self.sent[listing].iter().zip(&self.seeds[listing]);
        let bytes: u64 = of_seeds.filter(|&(_, &seed)| seed).map(|(bytes, _)| bytes).sum();
        bytes as f64 / self.listings[listing].payload_len() as f64
    }

    /// Bytes that some nodes must receive, over all listings.
    fn demand(&self) -> u64 {
        let of_listing = |(geometry, seeds): (&Arc<Geometry>, &Vec<bool>)| {
            let receivers = seeds.iter().filter(|&&seed| !seed).count() as u64;
            receivers * geometry.payload_len()
        };
        self.listings.iter().zip(&self.seeds).map(of_listing).sum()
    }

    /// Wasted bytes as a part of what was needed.
    fn waste(&self) -> f64 {
        self.wasted as f64 / self.demand() as f64
    }

    /// The fluid bound on the time (Kumar and Ross 2006), downlinks unbounded, in seconds: all
    /// uplinks together carry the demand, and nodes that have a listing send it once at least.
    fn bound(&self) -> f64 {
        let all: u64 = self.nodes.iter().map(|node| node.uplink).sum();
        let mut bound = self.demand() as f64 / all as f64;
        for (geometry, seeds) in self.listings.iter().zip(&self.seeds) {
            let uplink = self.nodes.iter().zip(seeds).filter(|&(_, &seed)| seed);
            let uplink: u64 = uplink.map(|(node, _)| node.uplink).sum();
            bound = bound.max(geometry.payload_len() as f64 / uplink as f64);
        }
        bound
    }
}

fn node_of(keys: &BTreeMap<(usize, usize), PeerKey>, listing: usize, key: PeerKey) -> usize {
    let found = keys.iter().find(|&(&(of, _), &other)| of == listing && other == key);
    found.expect("a known peer").0.1
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
            let mut world = World::of_one(&geometry, &[UPLINK], 3, &Burden::new(), random);
            let taken = world.run();
            let (copies, ratio) = (world.copies(0), taken / world.bound());
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
            let mut world = World::of_one(&geometry, &[UPLINK; 4], 2, &Burden::new(), random);
            let taken = world.run();
            let (copies, ratio) = (world.copies(0), taken / world.bound());
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
        let mut world = World::of_one(&geometry, &uplinks, receivers, &ledger, 1);
        let taken = world.run();
        let load = |(&bytes, &uplink): (&u64, &u64)| bytes as f64 / uplink as f64;
        let loads: Vec<f64> = world.sent[0].iter().zip(&uplinks).map(load).collect();
        let mean =
            world.sent[0][..4].iter().sum::<u64>() as f64 / uplinks.iter().sum::<u64>() as f64;
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
            let mut world = World::of_one(&geometry, &[UPLINK; 4], 1, &ledger, listing);
            world.run();
            (0..4).for_each(|seed| from[seed] += world.sent[0][seed]);
            ledger = std::mem::take(&mut world.nodes[4].burden);
        }
        let mean = from.iter().sum::<u64>() as f64 / 4.0;
        assert!(from.iter().all(|&bytes| bytes as f64 <= mean * 1.05), "{pieces}: {from:?}");
    }
}

/// Sixteen listings of mixed sizes, 64 MiB in all.
fn market() -> Vec<Arc<Geometry>> {
    let sizes: [(u32, u32); 8] = [
        (1, 64 << 10),
        (3, 256 << 10),
        (20, 16 << 10),
        (40, 64 << 10),
        (9, 256 << 10),
        (16, 512 << 10),
        (30, 256 << 10),
        (12, 1 << 20),
    ];
    sizes.iter().chain(&sizes).map(|&(pieces, piece_len)| geometry(pieces, piece_len)).collect()
}

#[test]
fn four_founders_exchange_their_listings_near_the_bound() {
    let origin = |index: usize| (0..4).map(|node| node == index % 4).collect::<Vec<_>>();
    let listings: Vec<_> = market()
        .into_iter()
        .enumerate()
        .map(|(index, geometry)| (geometry, origin(index / 2)))
        .collect();
    let mut world = World::new(&listings, &[UPLINK; 4], &Burden::new(), 3);
    let ratio = world.run() / world.bound();
    let copies: Vec<_> = (0..listings.len()).map(|listing| world.copies(listing)).collect();
    eprintln!("founders: copies {copies:.2?}, {ratio:.2} of the bound, waste {:.4}", world.waste());
    assert!(copies.iter().all(|&copies| copies <= 1.5), "{copies:?}");
    assert!(ratio <= 1.3, "{ratio} times the bound");
    assert!(world.waste() <= 0.01, "{}", world.waste());
}

#[test]
fn two_joiners_get_the_whole_market_near_the_bound() {
    let founders: Vec<_> = (0..6).map(|node| node < 4).collect();
    let listings: Vec<_> =
        market().into_iter().map(|geometry| (geometry, founders.clone())).collect();
    let mut world = World::new(&listings, &[UPLINK; 6], &Burden::new(), 3);
    let ratio = world.run() / world.bound();
    let total: u64 = market().iter().map(|geometry| geometry.payload_len()).sum();
    let sent = world.sent.iter().flat_map(|nodes| &nodes[..4]).sum::<u64>();
    let copies = sent as f64 / total as f64;
    eprintln!("joiners: {copies:.2} copies, {ratio:.2} of the bound, waste {:.4}", world.waste());
    assert!(copies <= 1.6, "{copies} copies");
    assert!(ratio <= 1.3, "{ratio} times the bound");
    assert!(world.waste() <= 0.01, "{}", world.waste());
}
