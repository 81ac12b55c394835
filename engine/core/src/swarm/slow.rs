//! A fast peer beside hundreds of slow ones, in slots of virtual time, with as much memory as an engine has
//! by default.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sim::{geometry, peer_id};
use super::{Budget, Burden, PeerInfo, PeerKey, Planned, Received, Swarm};
use crate::bitfield::Bitfield;
use crate::geometry::{BLOCK_LEN, BlockRef, EXTENT_LEN_MAX, ExtentIndex, Geometry, PieceIndex};

/// One slot of virtual time.
const SLOT: Duration = Duration::from_millis(5);
/// What the fast peer sends in a second, in bytes.
const FAST: u64 = 200 << 20;
/// What a slow one sends, in bytes.
const SLOW: u64 = 10 << 10;
/// How many slow ones there are.
const SLOW_COUNT: usize = 200;
/// Extents for filling: three quarters of 64 MiB.
const EXTENTS: usize = 192;
/// Whole extents of unfinished pieces that are written in one slot to make room.
const SPILLED_AT_ONCE: usize = 16;

struct Source {
    rate: u64,
    credit: f64,
    queue: VecDeque<BlockRef>,
}

/// A leech and its sources.
struct World {
    geometry: Arc<Geometry>,
    swarm: Swarm,
    burden: Burden,
    start: Instant,
    now: Instant,
    sources: BTreeMap<PeerKey, Source>,
    got: BTreeSet<BlockRef>,
    /// Bytes of pieces that are here.
    filled: BTreeMap<PieceIndex, u32>,
    /// Extents that keep a buffer.
    held: BTreeSet<ExtentIndex>,
    is_short: bool,
    /// Bytes that came twice.
    wasted: u64,
}

impl World {
    fn new(geometry: &Arc<Geometry>) -> Self {
        let start = Instant::now();
        let empty = Bitfield::new(geometry.piece_count());
        World {
            geometry: geometry.clone(),
            swarm: Swarm::new(geometry.clone(), peer_id(999), 5, &empty),
            burden: Burden::new(),
            start,
            now: start,
            sources: BTreeMap::new(),
            got: BTreeSet::new(),
            filled: BTreeMap::new(),
            held: BTreeSet::new(),
            is_short: false,
            wasted: 0,
        }
    }

    fn join(&mut self, rate: u64, count: usize) {
        for _ in 0..count {
            let id = peer_id(self.sources.len());
            let key = self.swarm.add_peer(self.now, PeerInfo { peer_id: id, ours: false });
            let all = Bitfield::full(self.geometry.piece_count());
            self.swarm.handle_availability(self.now, key, &all);
            self.swarm.handle_unchoked(key);
            // They do not all send in the same moment.
            let credit = (self.sources.len() % 16) as f64 / 16.0 * f64::from(BLOCK_LEN);
            self.sources.insert(key, Source { rate, credit, queue: VecDeque::new() });
        }
    }

    /// Runs for so long, or until all is there: whether it is.
    fn run(&mut self, time: Duration) -> bool {
        let until = self.now + time;
        while self.now < until && !self.swarm.is_complete() {
            self.deliver();
            self.spill();
            self.plan();
            self.now += SLOT;
        }
        self.swarm.is_complete()
    }

    fn deliver(&mut self) {
        let mut sent = Vec::new();
        for (&key, source) in &mut self.sources {
            source.credit += source.rate as f64 * SLOT.as_secs_f64();
            while source.credit >= f64::from(BLOCK_LEN)
                && let Some(block) = source.queue.pop_front()
            {
                source.credit -= f64::from(BLOCK_LEN);
                sent.push((key, block));
            }
            if source.queue.is_empty() {
                source.credit = source.credit.min(f64::from(BLOCK_LEN));
            }
        }
        for (key, block) in sent {
            let mut cancels = Vec::new();
            let came =
                self.swarm.handle_block(self.now, key, block, &mut self.burden, &mut cancels);
            for (other, block) in cancels {
                let queue = &mut self.sources.get_mut(&other).unwrap().queue;
                queue.retain(|&asked| asked != block);
            }
            if came == Received::Duplicate {
                self.wasted += u64::from(block.len());
                continue;
            }
            assert!(self.got.insert(block));
            let piece = block.piece();
            let filled = self.filled.entry(piece).or_default();
            *filled += block.len();
            if *filled == self.geometry.piece_data_len(piece) {
                self.swarm.handle_piece_verified(piece);
                for extent in self.geometry.extents_of_piece(piece) {
                    self.held.remove(&extent);
                }
            }
        }
    }

    /// Makes room as a shard does: whole extents of pieces that are not whole go to the disk.
    fn spill(&mut self) {
        if !std::mem::take(&mut self.is_short) {
            return;
        }
        let is_whole = |extent: &ExtentIndex| {
            self.geometry.blocks_of_extent(*extent).all(|block| self.got.contains(&block))
        };
        let chosen: Vec<_> =
            self.held.iter().copied().filter(is_whole).take(SPILLED_AT_ONCE).collect();
        chosen.iter().for_each(|extent| assert!(self.held.remove(extent)));
        if self.held.len() < EXTENTS {
            self.swarm.wake_short();
        }
    }

    fn plan(&mut self) {
        self.swarm.handle_timeout(self.now);
        let mut planned = Planned::default();
        while let Some(key) = self.swarm.poll_ready(&self.burden) {
            let new_extents = (EXTENTS - self.held.len()) as u32;
            let mut budget = Budget { extents: EXTENTS as u32, new_extents, blocks: 512 };
            self.swarm.plan(self.now, key, &mut budget, &mut planned);
            for &block in &planned.requests {
                self.held.insert(self.geometry.extent_of(block).0);
                self.sources.get_mut(&key).unwrap().queue.push_back(block);
            }
            assert!(self.held.len() <= EXTENTS, "more than there is memory for");
            self.is_short |= planned.short_of_budget;
        }
    }

    fn taken(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }
}

/// Pieces of so many MiB, and how many: enough for the end not to be all of it.
const SIZES: [(u32, u32); 3] = [(4, 96), (16, 24), (64, 8)];

/// Two hundred peers at 10 KiB/s took an extent each, all memory there was; a fast one among them got 8 % of
/// its speed, and at the end waited for what they had been asked for.
#[test]
fn a_fast_peer_keeps_its_speed_beside_hundreds_of_slow_ones() {
    for (piece_mib, pieces) in SIZES {
        let geometry = geometry(pieces, piece_mib << 20);
        let mut alone = World::new(&geometry);
        alone.join(FAST, 1);
        assert!(alone.run(Duration::from_secs(60)));
        // They come with it, or have been there for long.
        for head_start in [0, 10] {
            let mut world = World::new(&geometry);
            world.join(SLOW, SLOW_COUNT);
            assert!(!world.run(Duration::from_secs(head_start)));
            world.start = world.now;
            world.join(FAST, 1);
            let is_done = world.run(Duration::from_secs(60));
            let share = alone.taken() / world.taken();
            let wasted = world.wasted / u64::from(BLOCK_LEN);
            eprintln!(
                "{piece_mib} MiB, {head_start} s: {:.2} s alone, {:.2} s beside them, share {share:.2}, \
                 {wasted} blocks twice",
                alone.taken(),
                world.taken(),
            );
            assert!(is_done && share >= 0.9, "pieces of {piece_mib} MiB: {share:.2} of its speed");
            assert!(wasted <= 2 * SLOW_COUNT as u64, "{wasted} blocks came twice");
        }
    }
}

/// What slow peers owe waits in their queues, and memory with it.
#[test]
fn slow_peers_owe_little_and_share_the_extents_that_they_fill() {
    let mut world = World::new(&geometry(24, 16 << 20));
    world.join(SLOW, SLOW_COUNT);
    world.run(Duration::from_secs(20));
    let most = world.sources.values().map(|source| source.queue.len()).max();
    assert_eq!(most, Some(2), "three seconds' worth");
    let is_open = |extent: &&ExtentIndex| {
        let mut blocks = world.geometry.blocks_of_extent(**extent);
        blocks.any(|block| !world.got.contains(&block))
    };
    let open = world.held.iter().filter(is_open).count();
    let owed = 2 * SLOW_COUNT * BLOCK_LEN as usize / EXTENT_LEN_MAX as usize;
    assert!(open <= 2 * owed, "{open} extents are open for what fits into {owed}");
}

/// More slow peers than there are buffers: each had one to itself, and the rest nothing to do.
#[test]
fn more_slow_peers_than_buffers_all_give_what_they_have() {
    let (count, len) = (3 * EXTENTS, 64_u32 << 20);
    let mut world = World::new(&geometry(len >> 22, 4 << 20));
    world.join(SLOW, count);
    let bound = f64::from(len) / (count as f64 * SLOW as f64);
    assert!(world.run(Duration::from_secs_f64(bound * 1.5)), "{:.1} s are not enough", bound * 1.5);
}

/// Whoever was fast has gone: what it had begun is for the slow ones.
#[test]
fn slow_peers_finish_what_a_fast_one_leaves() {
    let mut world = World::new(&geometry(12, 4 << 20));
    world.join(SLOW, SLOW_COUNT);
    world.run(Duration::from_secs(2));
    world.join(FAST, 1);
    world.run(Duration::from_millis(150));
    assert!(!world.swarm.is_complete());
    let (&fast, _) = world.sources.last_key_value().unwrap();
    world.swarm.remove_peer(fast);
    world.sources.remove(&fast);
    let is_begun = |extent: &ExtentIndex| {
        world.geometry.blocks_of_extent(*extent).any(|block| !world.got.contains(&block))
    };
    assert!(world.held.iter().any(is_begun));
    assert!(world.run(Duration::from_secs(40)));
}
