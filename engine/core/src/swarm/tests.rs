//! The picker against peers that come, go, choke, reject, stall and send wrong bytes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::sim::{geometry, peer_id};
use super::*;
use crate::geometry::{FileSpan, Kind};

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A peer sends the first, or with `true` the last, of what it was asked for.
    Send(u8, bool),
    Reject(u8),
    Choke(u8),
    Unchoke(u8),
    Snub(u8),
    Leave(u8),
    Have(u8, u16),
    DontHave(u8, u16),
    /// The next piece to get whole is found wrong.
    Corrupt,
    /// A verified piece rots.
    Lose(u16),
    Wait(u16),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (any::<u8>(), any::<bool>()).prop_map(|(peer, last)| Step::Send(peer, last)),
        2 => any::<u8>().prop_map(Step::Reject),
        1 => any::<u8>().prop_map(Step::Choke),
        2 => any::<u8>().prop_map(Step::Unchoke),
        1 => any::<u8>().prop_map(Step::Snub),
        1 => any::<u8>().prop_map(Step::Leave),
        3 => (any::<u8>(), any::<u16>()).prop_map(|(peer, piece)| Step::Have(peer, piece)),
        1 => (any::<u8>(), any::<u16>()).prop_map(|(peer, piece)| Step::DontHave(peer, piece)),
        1 => Just(Step::Corrupt),
        1 => any::<u16>().prop_map(Step::Lose),
        4 => (0_u16..400).prop_map(Step::Wait),
    ]
}

/// Layouts of every sort: pieces larger than an extent, equal, several in one extent, smaller than a
/// block, with pads inside and at the end.
fn any_layout() -> impl Strategy<Value = Arc<Geometry>> {
    let v2 = |piece_len: u32, files: &[u64]| {
        let files: Vec<_> =
            files.iter().map(|&len_bytes| FileSpan { len_bytes, pad: false }).collect();
        Arc::new(Geometry::new(piece_len.into(), &files, Kind::V2).unwrap())
    };
    let v1 = |piece_len: u32, files: &[(u64, bool)]| {
        let files: Vec<_> =
            files.iter().map(|&(len_bytes, pad)| FileSpan { len_bytes, pad }).collect();
        Arc::new(Geometry::new(piece_len.into(), &files, Kind::V1).unwrap())
    };
    prop_oneof![
        Just(geometry(1, 16 << 10)),
        Just(geometry(5, 256 << 10)),
        Just(geometry(3, 1 << 20)),
        Just(v2(16 << 10, &[900_000, 1, 20_000])),
        Just(v2(64 << 10, &[1, 300_000, 65_536, 70_000])),
        Just(v2(512 << 10, &[700_000, 5])),
        Just(v1(1024, &[(100_000, false), (3, true), (50_001, false)])),
        Just(v1(256 << 10, &[(1_000_001, false), (12_000_007, false)])),
        Just(v1(32 << 10, &[(40_000, false), (200_000, true), (70_000, false), (100_000, true)])),
    ]
}

struct Source {
    key: PeerKey,
    has: Bitfield,
    choked: bool,
    /// What it was asked for and neither sent, rejected, nor heard cancelled.
    queue: Vec<BlockRef>,
}

/// One receiver and its sources, with the bookkeeping that a shard would do.
struct World {
    geometry: Arc<Geometry>,
    swarm: Swarm,
    burden: Burden,
    now: Instant,
    sources: Vec<Source>,
    /// Blocks that are here, and who sent them.
    got: BTreeMap<BlockRef, PeerKey>,
    corrupt: bool,
    twice: u64,
    /// For how many extents there are buffers.
    extents: u32,
}

impl World {
    fn new(geometry: Arc<Geometry>, sources: &[Vec<bool>], have: &Bitfield) -> Self {
        let now = Instant::now();
        let swarm = Swarm::new(geometry.clone(), peer_id(99), 5, have);
        let (burden, got) = (Burden::new(), BTreeMap::new());
        let mut world = Self {
            geometry,
            swarm,
            burden,
            now,
            sources: Vec::new(),
            got,
            corrupt: false,
            twice: 0,
            extents: u32::MAX,
        };
        for (index, bits) in sources.iter().enumerate() {
            let mut has = Bitfield::new(world.geometry.piece_count());
            for (piece, _) in world.geometry.pieces().zip(bits).filter(|&(_, &bit)| bit) {
                has.set(piece);
            }
            world.join(index, has);
        }
        world
    }

    fn join(&mut self, number: usize, has: Bitfield) {
        let info = PeerInfo { peer_id: peer_id(number), ours: number.is_multiple_of(2) };
        let key = self.swarm.add_peer(self.now, info);
        self.swarm.handle_availability(self.now, key, &has);
        self.swarm.handle_unchoked(key);
        self.sources.push(Source { key, has, choked: false, queue: Vec::new() });
    }

    /// Plans all ready peers and checks every request.
    fn plan(&mut self) {
        let mut planned = Planned::default();
        let mut budget = Budget { extents: self.extents, new_extents: 100, blocks: 10_000 };
        while let Some(key) = self.swarm.poll_ready(&self.burden) {
            self.swarm.plan(self.now, key, &mut budget, &mut planned);
            assert!(!planned.short_of_budget);
            for &block in &planned.requests {
                self.check_request(key, block);
                let source = self.sources.iter_mut().find(|source| source.key == key).unwrap();
                source.queue.push(block);
            }
        }
    }

    fn check_request(&mut self, key: PeerKey, block: BlockRef) {
        let source = self.sources.iter().find(|source| source.key == key).unwrap();
        assert!(!source.choked, "asked a peer that chokes");
        assert!(source.has.get(block.piece()), "asked for a piece that the peer lacks");
        assert!(!self.swarm.have().get(block.piece()), "asked for a piece that is verified");
        assert!(!self.got.contains_key(&block), "asked for a block that is here");
        let (extent, _) = self.geometry.extent_of(block);
        let ours: BTreeSet<_> = self.geometry.blocks_of_extent(extent).collect();
        assert!(ours.contains(&block), "{block:?} is no block of ours");
        assert!(!source.queue.contains(&block), "asked the same peer twice");
        let others = self.sources.iter().filter(|source| source.queue.contains(&block)).count();
        assert!(others <= 1, "asked three peers for one block");
        self.twice += others as u64;
        assert!(source.queue.len() < PIPELINE_MAX as usize);
    }

    fn receive(&mut self, index: usize, block: BlockRef) {
        let key = self.sources[index].key;
        self.sources[index].queue.retain(|&other| other != block);
        let mut cancels = Vec::new();
        let received =
            self.swarm.handle_block(self.now, key, block, &mut self.burden, &mut cancels);
        for (key, block) in cancels {
            let source = self.sources.iter_mut().find(|source| source.key == key).unwrap();
            assert!(source.queue.contains(&block), "cancelled what was not asked for");
            source.queue.retain(|&other| other != block);
        }
        assert_eq!(received, Received::New, "only what is missing is asked for");
        assert!(self.got.insert(block, key).is_none());
        let piece = block.piece();
        if !self.geometry.blocks_of_piece(piece).all(|block| self.got.contains_key(&block)) {
            return;
        }
        let of_piece = self.got.iter().filter(|(block, _)| block.piece() == piece);
        let senders: BTreeSet<_> = of_piece.map(|(_, &key)| key).collect();
        if std::mem::take(&mut self.corrupt) {
            let blamed = self.swarm.handle_piece_failed(piece);
            assert_eq!(blamed, senders.into_iter().collect::<Vec<_>>());
            self.got.retain(|block, _| block.piece() != piece);
        } else {
            self.swarm.handle_piece_verified(piece);
        }
    }

    fn step(&mut self, step: Step) {
        let count = self.sources.len();
        let pick = |number: u8| number as usize % count.max(1);
        let piece =
            |raw: u16| self.geometry.piece(u32::from(raw) % self.geometry.piece_count()).unwrap();
        match step {
            Step::Send(peer, last) if count > 0 => {
                let queue = &self.sources[pick(peer)].queue;
                let block = if last { queue.last() } else { queue.first() };
                if let Some(&block) = block {
                    self.receive(pick(peer), block);
                }
            }
            Step::Reject(peer) if count > 0 => {
                let source = &mut self.sources[pick(peer)];
                if !source.queue.is_empty() {
                    let block = source.queue.remove(0);
                    self.swarm.handle_rejected(self.now, source.key, block);
                }
            }
            Step::Choke(peer) if count > 0 => {
                let source = &mut self.sources[pick(peer)];
                source.choked = true;
                let dropped = std::mem::take(&mut source.queue);
                self.swarm.handle_choked(source.key, &dropped);
            }
            Step::Unchoke(peer) if count > 0 => {
                let source = &mut self.sources[pick(peer)];
                source.choked = false;
                self.swarm.handle_unchoked(source.key);
            }
            Step::Snub(peer) if count > 0 => {
                let source = &mut self.sources[pick(peer)];
                let cancelled = self.swarm.handle_snubbed(source.key);
                let mut queue = std::mem::take(&mut source.queue);
                queue.sort();
                let mut cancelled_sorted = cancelled;
                cancelled_sorted.sort();
                assert_eq!(cancelled_sorted, queue);
            }
            Step::Leave(peer) if count > 0 => {
                let source = self.sources.remove(pick(peer));
                self.swarm.remove_peer(source.key);
            }
            Step::Have(peer, raw) if count > 0 => {
                let piece = piece(raw);
                let source = &mut self.sources[pick(peer)];
                source.has.set(piece);
                self.swarm.handle_have(self.now, source.key, piece);
            }
            Step::DontHave(peer, raw) if count > 0 => {
                let piece = piece(raw);
                let source = &mut self.sources[pick(peer)];
                // What was asked for will be rejected.
                let lost: Vec<_> =
                    source.queue.iter().copied().filter(|block| block.piece() == piece).collect();
                source.queue.retain(|block| block.piece() != piece);
                source.has.clear(piece);
                self.swarm.handle_dont_have(source.key, piece);
                for block in lost {
                    self.swarm.handle_rejected(self.now, source.key, block);
                }
            }
            Step::Corrupt => self.corrupt = true,
            Step::Lose(raw) => {
                let piece = piece(raw);
                if self.geometry.piece_data_len(piece) > 0 && self.swarm.have().get(piece) {
                    self.got.retain(|block, _| block.piece() != piece);
                    self.swarm.handle_piece_lost(piece);
                }
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms.into());
                self.swarm.handle_timeout(self.now);
            }
            _ => {}
        }
        self.plan();
    }

    /// Everybody behaves, and a seed is there: it must end.
    fn finish(&mut self) {
        let full = Bitfield::full(self.geometry.piece_count());
        self.join(1000, full);
        for index in 0..self.sources.len() {
            self.step(Step::Unchoke(index as u8));
        }
        let mut idle = 0;
        while !self.swarm.is_complete() {
            let mut moved = false;
            for index in 0..self.sources.len() {
                self.plan();
                if let Some(&block) = self.sources[index].queue.first() {
                    self.receive(index, block);
                    moved = true;
                }
            }
            idle = if moved { 0 } else { idle + 1 };
            // A receiver whose words came with long pauses is waited for as long as for any at most: 10 s.
            assert!(idle < 1200, "nothing moves: {:?}", self.swarm);
            self.step(Step::Wait(10));
        }
        assert!(self.sources.iter().all(|source| source.queue.is_empty()));
        assert!(self.swarm.active_is_empty());
    }
}

impl Swarm {
    fn active_is_empty(&self) -> bool {
        self.work.actives().next().is_none()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever peers do, every request is for a missing block of ours, of a peer that has it and does
    /// not choke, of one peer at a time (of two at the very end, bounded); and it always finishes.
    #[test]
    fn every_listing_is_fetched_whatever_peers_do(
        geometry in any_layout(),
        sources in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 200), 1..6),
        have in proptest::collection::vec(any::<bool>(), 0..200),
        steps in proptest::collection::vec(any_step(), 0..300),
        // With few of them all but the fastest fill extents together.
        extents in prop_oneof![Just(u32::MAX), 1_u32..6],
    ) {
        let mut resumed = Bitfield::new(geometry.piece_count());
        for (piece, _) in geometry.pieces().zip(&have).filter(|&(_, &have)| have) {
            resumed.set(piece);
        }
        let mut world = World::new(geometry, &sources, &resumed);
        world.extents = extents;
        for (piece, _) in world.geometry.clone().pieces().zip(&have).filter(|&(_, &have)| have) {
            for block in world.geometry.blocks_of_piece(piece) {
                world.got.insert(block, PeerKey(u32::MAX));
            }
        }
        world.plan();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        let blocks = world.geometry.payload_len() / u64::from(BLOCK_LEN);
        // What slow peers owe may all be asked for twice; it is little.
        prop_assert!(extents < 6 || world.twice <= 16 + blocks / 200, "{} twins", world.twice);
    }
}

fn budget_of_9() -> Budget {
    Budget { extents: 9, new_extents: 9, blocks: 9 }
}

fn started(sources: usize, pieces: u32) -> World {
    let geometry = geometry(pieces, 256 << 10);
    let all = vec![true; pieces as usize];
    let have = Bitfield::new(pieces);
    let mut world = World::new(geometry, &vec![all; sources], &have);
    world.plan();
    world
}

#[test]
fn one_peer_at_a_time_owns_an_extent() {
    let world = started(3, 20);
    let mut owners = BTreeMap::new();
    for source in &world.sources {
        assert_eq!(source.queue.len(), PIPELINE_MIN as usize);
        for &block in &source.queue {
            let (extent, _) = world.geometry.extent_of(block);
            assert_eq!(*owners.entry(extent).or_insert(source.key), source.key);
        }
    }
    assert_eq!(owners.len(), 3);
}

#[test]
fn the_rarest_piece_comes_first() {
    let geometry = geometry(8, 256 << 10);
    let mut sources = vec![vec![true; 8]; 3];
    sources.iter_mut().skip(1).for_each(|bits| bits[5] = false);
    // A ninth bit would be none; the first source lacks piece 0, so that it is a relay, too.
    sources[0][0] = false;
    let mut world = World::new(geometry, &sources, &Bitfield::new(8));
    world.plan();
    assert_eq!(world.sources[0].queue[0].piece().get(), 5);
}

#[test]
fn a_pipeline_follows_the_rate_of_its_peer() {
    let mut world = started(1, 400);
    for _ in 0..40 {
        world.now += Duration::from_millis(10);
        // 64 blocks in 10 ms: 100 MiB/s, of which 300 ms are more than the bound.
        for _ in 0..64 {
            if let Some(&block) = world.sources[0].queue.first() {
                world.receive(0, block);
            }
        }
        world.plan();
    }
    assert_eq!(world.sources[0].queue.len(), PIPELINE_MAX as usize);
    world.swarm.set_requests_max(world.sources[0].key, 20);
    for _ in 0..500 {
        let block = world.sources[0].queue[0];
        world.receive(0, block);
        world.plan();
    }
    assert_eq!(world.sources[0].queue.len(), 20);
}

/// Transmission under an upload limit of 4 MB/s once gave us 256 KiB/s: it sends twice a second, and each
/// burst was all that we had asked for.
#[test]
fn a_peer_that_sends_in_bursts_is_asked_for_more_than_one() {
    const BURST: usize = 128;
    let mut world = started(1, 400);
    let mut came = 0;
    for _ in 0..16 {
        world.now += Duration::from_millis(500);
        came = 0;
        while let Some(&block) = world.sources[0].queue.first().filter(|_| came < BURST) {
            world.receive(0, block);
            came += 1;
        }
        world.plan();
    }
    assert_eq!(came, BURST, "it could have sent more");
    let len = world.sources[0].queue.len();
    assert!((BURST..=3 * BURST).contains(&len), "{len} blocks asked for");
}

/// Eight blocks of 1 KiB once were a pipeline: one late acknowledgement after the other, 180 KB/s.
#[test]
fn a_pipeline_of_short_pieces_holds_as_many_bytes() {
    let file = crate::geometry::FileSpan { len_bytes: 400 << 10, pad: false };
    let geometry = Geometry::new(1 << 10, &[file], crate::geometry::Kind::V1).unwrap();
    let mut world = World::new(Arc::new(geometry), &[vec![true; 400]], &Bitfield::new(400));
    world.plan();
    assert_eq!(world.sources[0].queue.len(), 16 * PIPELINE_MIN as usize);
}

/// How many pieces of a seed are begun right behind the piece begun before, of 128.
fn begun_behind_the_last(first_len_bytes: u64) -> usize {
    let total = 128 * (256 << 10);
    let lens = [first_len_bytes, total - first_len_bytes];
    let files = lens.map(|len_bytes| FileSpan { len_bytes, pad: false });
    let geometry = Arc::new(Geometry::new(256 << 10, &files, Kind::V1).unwrap());
    let mut world = World::new(geometry, &[vec![true; 128]], &Bitfield::new(128));
    let mut begun: Vec<u32> = Vec::new();
    while !world.swarm.is_complete() {
        world.plan();
        for block in &world.sources[0].queue {
            let piece = block.piece().get();
            if !begun.contains(&piece) {
                begun.push(piece);
            }
        }
        let block = world.sources[0].queue[0];
        world.now += Duration::from_micros(100);
        world.receive(0, block);
    }
    assert_eq!(begun.len(), 128);
    begun.windows(2).filter(|pair| pair[1] == pair[0] + 1).count()
}

#[test]
fn neighbours_come_together_where_files_begin_inside_of_pages() {
    // Eight stretches of sixteen, the last of them behind one another by chance.
    assert!(begun_behind_the_last(1_000_001) >= 8 * 15);
    assert!(begun_behind_the_last(1 << 20) < 64);
}

#[test]
fn a_slow_peer_does_not_hold_up_the_end() {
    let mut world = started(2, 4);
    let mut elapsed = Duration::ZERO;
    let mut slow_credit = 0;
    while !world.swarm.is_complete() {
        elapsed += Duration::from_millis(10);
        world.step(Step::Wait(10));
        // One peer sends 10 blocks in 10 ms, the other one block in 200 ms.
        for _ in 0..10 {
            world.step(Step::Send(0, false));
        }
        slow_credit += 1;
        if slow_credit % 20 == 0 {
            world.step(Step::Send(1, false));
        }
        assert!(elapsed < Duration::from_secs(2), "held up");
    }
}

#[test]
fn a_plan_stops_at_its_budget_and_goes_on_when_there_is_room() {
    let geometry = geometry(20, 256 << 10);
    let mut swarm = Swarm::new(geometry.clone(), peer_id(99), 5, &Bitfield::new(20));
    let (now, burden) = (Instant::now(), Burden::new());
    let key = swarm.add_peer(now, PeerInfo { peer_id: peer_id(1), ours: true });
    swarm.handle_availability(now, key, &Bitfield::full(20));
    swarm.handle_unchoked(key);
    let mut planned = Planned::default();
    let mut budget = Budget { extents: 9, new_extents: 0, blocks: 100 };
    assert_eq!(swarm.poll_ready(&burden), Some(key));
    swarm.plan(now, key, &mut budget, &mut planned);
    assert_eq!(planned, Planned { requests: Vec::new(), short_of_budget: true });
    assert_eq!(swarm.poll_ready(&burden), None, "it does not spin");
    swarm.wake_all();
    budget.new_extents = 1;
    assert_eq!(swarm.poll_ready(&burden), Some(key));
    swarm.plan(now, key, &mut budget, &mut planned);
    assert_eq!((planned.requests.len(), budget.new_extents), (8, 0));
}

#[test]
fn a_bad_block_is_blamed_on_its_sender_and_fetched_again() {
    let mut world = started(2, 2);
    let block = world.sources[1].queue[0];
    let key = world.sources[1].key;
    let mut cancels = Vec::new();
    world.sources[1].queue.remove(0);
    world.swarm.handle_block(world.now, key, block, &mut world.burden, &mut cancels);
    assert_eq!(world.swarm.handle_block_failed(block), Some(key));
    assert_eq!(world.swarm.handle_block_failed(block), None);
    world.finish();
}

#[test]
fn the_share_of_a_silent_receiver_is_taken_over() {
    let geometry = geometry(12, 256 << 10);
    let mut world = World::new(geometry, &[], &Bitfield::new(12));
    world.join(2, Bitfield::full(12)); // a seed
    world.join(4, Bitfield::new(12)); // a receiver that never gets anything
    assert_eq!(world.swarm.receiver_count(), 2);
    let mut elapsed = Duration::ZERO;
    let mut at_rest = 0;
    while !world.swarm.is_complete() {
        elapsed += Duration::from_millis(20);
        world.step(Step::Wait(20));
        at_rest = at_rest.max(world.swarm.have().count());
        (0..16).for_each(|_| world.step(Step::Send(0, false)));
        if elapsed < Duration::from_secs(1) {
            assert!(world.swarm.have().count() <= 6, "its own half alone");
        }
        assert!(elapsed < Duration::from_secs(15), "given up too late");
    }
}

#[test]
fn seeds_are_not_asked_while_receivers_are_expected() {
    let geometry = geometry(4, 256 << 10);
    let mut world = World::new(geometry, &[], &Bitfield::new(4));
    let until = world.now + Duration::from_millis(300);
    world.swarm.hold_seeds_until(Some(until));
    world.join(2, Bitfield::full(4));
    world.plan();
    assert!(world.sources[0].queue.is_empty());
    assert_eq!(world.swarm.poll_timeout(), Some(until));
    world.step(Step::Wait(300));
    assert!(!world.sources[0].queue.is_empty());
}

#[test]
fn a_peer_that_only_rejects_is_left_alone_for_a_while() {
    let mut world = started(1, 20);
    let mut rejected = 0;
    while !world.sources[0].queue.is_empty() {
        world.step(Step::Reject(0));
        let key = world.sources[0].key;
        world.swarm.ready.insert(key);
        world.plan();
        rejected += 1;
        assert!(rejected < 1000, "asked and refused in a circle");
    }
    assert_eq!(world.swarm.poll_timeout(), Some(world.now + REJECT_PAUSE));
    world.step(Step::Wait(1000));
    assert!(!world.sources[0].queue.is_empty());
    world.finish();
}

/// All blocks of piece 0 came from the first two of three sources in turn, and the piece is bad.
fn mixed_and_bad() -> World {
    let mut world = started(3, 1);
    let piece = world.geometry.piece(0).unwrap();
    world.sources.iter_mut().for_each(|source| source.queue.clear());
    let keys: Vec<PeerKey> = world.sources.iter().map(|source| source.key).collect();
    let blocks: Vec<BlockRef> = world.geometry.blocks_of_piece(piece).collect();
    for (at, &block) in blocks.iter().enumerate() {
        let mut cancels = Vec::new();
        let key = keys[at % 2];
        world.swarm.handle_block(world.now, key, block, &mut world.burden, &mut cancels);
    }
    assert_eq!(world.swarm.handle_piece_failed(piece), keys[..2]);
    world.plan();
    world
}

/// A piece that several had a part in was fetched from several again, and again: nobody could be
/// convicted while one of them lied.
#[test]
fn a_piece_that_failed_comes_again_from_one_peer_that_had_no_part_in_it() {
    let mut world = mixed_and_bad();
    let asked = |world: &World| -> Vec<usize> {
        world.sources.iter().map(|source| source.queue.len()).collect()
    };
    assert_eq!(asked(&world), [0, 0, PIPELINE_MIN as usize]);
    for _ in 0..16 {
        world.step(Step::Send(2, false));
        assert_eq!(asked(&world)[..2], [0, 0], "nobody else is asked");
    }
    assert!(world.swarm.is_complete());
    // Whoever it is reserved for may go, choke, or refuse: then it is another one's.
    for step in [Step::Leave(2), Step::Choke(2), Step::Reject(2), Step::Snub(2)] {
        let mut world = mixed_and_bad();
        world.step(step);
        let asked = asked(&world);
        // What was asked before a reject is still to come.
        assert_eq!(asked[..2].iter().filter(|&&len| len > 0).count(), 1, "{step:?}: {asked:?}");
        world.finish();
    }
}

/// A choked peer was never asked for what it gives nevertheless (BEP 6).
#[test]
fn a_choked_peer_is_asked_for_what_it_allows() {
    let geometry = geometry(4, 256 << 10);
    let mut swarm = Swarm::new(geometry.clone(), peer_id(99), 5, &Bitfield::new(4));
    let (now, burden) = (Instant::now(), Burden::new());
    let key = swarm.add_peer(now, PeerInfo { peer_id: peer_id(1), ours: false });
    swarm.handle_availability(now, key, &Bitfield::full(4));
    assert_eq!(swarm.poll_ready(&burden), None);
    swarm.handle_allowed_fast(key, geometry.piece(2).unwrap());
    assert_eq!(swarm.poll_ready(&burden), Some(key));
    let mut planned = Planned::default();
    let mut budget = Budget { extents: 9, new_extents: 9, blocks: 99 };
    swarm.plan(now, key, &mut budget, &mut planned);
    assert_eq!(planned.requests.len(), PIPELINE_MIN as usize);
    assert!(planned.requests.iter().all(|block| block.piece().get() == 2));
}

/// A suggested piece comes first among equals and not before a rarer one.
#[test]
fn a_suggestion_decides_among_equally_rare_pieces_only() {
    for (suggested, wanted) in [(9, 9), (3, 17)] {
        let geometry = geometry(20, 256 << 10);
        let mut swarm = Swarm::new(geometry.clone(), peer_id(99), 5, &Bitfield::new(20));
        let (now, burden) = (Instant::now(), Burden::new());
        let info = |number| PeerInfo { peer_id: peer_id(number), ours: false };
        let key = swarm.add_peer(now, info(1));
        let other = swarm.add_peer(now, info(3));
        swarm.handle_availability(now, key, &Bitfield::full(20));
        if wanted == 17 {
            // All but piece 17 are with another peer, too.
            let mut has = Bitfield::full(20);
            has.clear(geometry.piece(17).unwrap());
            swarm.handle_availability(now, other, &has);
        }
        swarm.handle_suggested(key, geometry.piece(suggested).unwrap());
        swarm.handle_unchoked(key);
        assert_eq!(swarm.poll_ready(&burden), Some(key));
        let (mut planned, mut budget) = (Planned::default(), budget_of_9());
        swarm.plan(now, key, &mut budget, &mut planned);
        assert_eq!(planned.requests[0].piece().get(), wanted);
    }
}

/// A receiver that had spoken every 50 ms fell silent, and its share waited for ten seconds because
/// pieces are long.
#[test]
fn the_share_of_a_lively_receiver_that_stalls_is_taken_over_soon() {
    let geometry = geometry(12, 4 << 20);
    let mut world = World::new(geometry.clone(), &[], &Bitfield::new(12));
    world.join(2, Bitfield::full(12));
    world.join(4, Bitfield::new(12));
    let receiver = world.sources[1].key;
    world.sources[1].choked = true;
    world.swarm.handle_choked(receiver, &[]);
    for piece in geometry.pieces().take(3) {
        world.step(Step::Wait(50));
        world.swarm.handle_have(world.now, receiver, piece);
    }
    let mut starved = Duration::ZERO;
    while !world.swarm.is_complete() {
        world.step(Step::Wait(20));
        if world.sources[0].queue.is_empty() {
            starved += Duration::from_millis(20);
        }
        (0..256).for_each(|_| world.step(Step::Send(0, false)));
        assert!(starved < Duration::from_secs(3), "the seed idles, and the receiver is silent");
    }
    assert!(starved > Duration::from_millis(500), "it is waited for at all");
}
