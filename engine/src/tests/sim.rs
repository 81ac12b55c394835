//! Shards in a simulated world: anything about crashes, loss, order or time.

use super::*;
use crate::io::sim::{Crash, SimConfig};
use crate::test_support::{TestDir, noise, tree};
use crate::testing::SimMarket;

/// Virtual time after which a small transfer has failed.
const LIMIT: Duration = Duration::from_secs(600);

/// A torrent that one node of a simulated market has and another fetches.
pub(super) struct Scene {
    _dir: TestDir,
    source: std::path::PathBuf,
    scratch: std::path::PathBuf,
    pub(super) metainfo: Arc<Metainfo>,
}

fn scene(kind: Kind, piece_len: u64) -> Scene {
    scene_of(kind, piece_len, |data| tree(data, 5))
}

/// A scene of the files that `make` puts into a folder.
pub(super) fn scene_of(kind: Kind, piece_len: u64, make: impl FnOnce(&Path)) -> Scene {
    let dir = TestDir::new("sim");
    let source = dir.path().join("source");
    make(&source.join("data"));
    let metainfo = torrent(&source.join("data"), kind, piece_len);
    Scene { source, scratch: dir.path().join("scratch"), metainfo, _dir: dir }
}

impl Scene {
    pub(super) fn market(&self, config: SimConfig) -> (SimMarket, usize, usize) {
        let mut market = SimMarket::new(config, &self.scratch);
        let seed = market.add_node();
        market.place(seed, &self.metainfo, &self.source);
        let place = Place::InPlace("in place".into());
        market.add(seed, AddListing { known_complete: true, ..add_of(&self.metainfo, place, &[]) });
        let leech = market.add_node();
        (market, seed, leech)
    }

    pub(super) fn fetch(&self, market: &mut SimMarket, node: usize, from: &[usize]) -> ListingId {
        let peers: Vec<SocketAddr> = from.iter().map(|&node| market.world.addr(node)).collect();
        market.add(node, add_of(&self.metainfo, Place::Owned("owned".into()), &peers))
    }
}

/// Short and reordered operations, resets, failed reads, writes and syncs: two shards complete a
/// transfer under each of a hundred seeds.
#[test]
fn a_transfer_completes_under_a_hundred_seeds_of_faults() {
    for kind in [Kind::Hybrid, Kind::V1] {
        let scene = scene(kind, 64 << 10);
        for seed in 0..50 {
            let mut config = SimConfig::new(seed);
            config.faults.reset_ppm = 2_000;
            config.faults.read_error_ppm = 5_000;
            config.faults.write_error_ppm = 20_000;
            config.faults.sync_error_ppm = 50_000;
            let (mut market, origin, leech) = scene.market(config);
            let id = scene.fetch(&mut market, leech, &[origin]);
            let is_done = market.run_until_complete(leech, id, LIMIT);
            let explain = market.world.machine(leech).map(|shard| shard.explain());
            let of_origin = market.status(origin, ListingId(1));
            assert!(is_done, "replay with seed {seed} of {kind:?}: {of_origin:?}; {explain:?}");
            assert_whole(
                &scene,
                &market,
                leech,
                &format!("wrong bytes with seed {seed} of {kind:?}"),
            );
        }
    }
}

/// One source sends the pieces one after the other, and SHA-1 hashes them together nevertheless; and
/// when nothing more comes, what waits is hashed at once: the transfer ends.
#[test]
fn whole_v1_pieces_of_one_connection_are_hashed_together() {
    let mut scene = scene(Kind::V1, 128 << 10);
    std::fs::write(scene.source.join("data/long"), noise(6 << 20, 9)).unwrap();
    scene.metainfo = torrent(&scene.source.join("data"), Kind::V1, 128 << 10);
    let mut config = SimConfig::new(7);
    config.latency = (Duration::from_micros(10), Duration::from_micros(50));
    let (mut market, origin, leech) = scene.market(config);
    let id = scene.fetch(&mut market, leech, &[origin]);
    assert!(market.run_until_complete(leech, id, LIMIT));
    let counters = market.world.machine(leech).expect("it runs").counters();
    let pieces = u64::from(scene.metainfo.info().geometry().piece_count());
    assert_eq!(counters.hash_messages.get(), pieces, "each piece once");
    let mean = counters.hash_messages.get() as f64 / counters.hash_calls.get() as f64;
    assert!(mean >= 2.5, "{mean} pieces together: one without waiting");
    assert_whole(&scene, &market, leech, "v1 in lanes");
}

/// While a disk was behind, whoever waited for buffers had every piece hashed alone as it came, which brought no
/// buffer back any sooner: a third of the leech's time went into kernels of few lanes.
#[test]
fn a_slow_disk_does_not_empty_the_lanes() {
    let mut scene = scene(Kind::V1, 256 << 10);
    std::fs::write(scene.source.join("data/long"), noise(40 << 20, 9)).unwrap();
    scene.metainfo = torrent(&scene.source.join("data"), Kind::V1, 256 << 10);
    let mut config = SimConfig::new(7);
    config.latency = (Duration::from_micros(10), Duration::from_micros(50));
    config.disk_latency = (Duration::from_millis(10), Duration::from_millis(20));
    let (mut market, origin, leech) = scene.market(config);
    // An origin's disk is as slow: together they read more than one writes.
    let mut origins = vec![origin];
    for _ in 0..15 {
        let node = market.add_node();
        market.place(node, &scene.metainfo, &scene.source);
        let place = Place::InPlace("in place".into());
        market
            .add(node, AddListing { known_complete: true, ..add_of(&scene.metainfo, place, &[]) });
        origins.push(node);
    }
    let id = scene.fetch(&mut market, leech, &origins);
    assert!(market.run_until_complete(leech, id, LIMIT));
    let counters = market.world.machine(leech).expect("it runs").counters();
    assert!(counters.arena_waits.get() > 0, "the disk was never behind");
    let mean = counters.hash_messages.get() as f64 / counters.hash_calls.get() as f64;
    assert!(mean >= 10.5, "{mean} pieces together");
    assert_whole(&scene, &market, leech, "v1 beside a slow disk");
}

/// A leech of hundreds of torrents dialled for all of them at once. Those for which there was no place were
/// closed again, waited ever longer, and stood idle when the others were done.
#[test]
fn more_listings_than_places_take_turns_at_once() {
    const LISTINGS: usize = 60;
    let dir = TestDir::new("places");
    let source = dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    let metainfos: Vec<_> = (0..LISTINGS)
        .map(|at| {
            let path = source.join(format!("listing-{at}"));
            std::fs::write(&path, noise(40_000, at as u64)).unwrap();
            torrent(&path, Kind::V1, 16 << 10)
        })
        .collect();
    let mut market = SimMarket::new(SimConfig::new(3), &dir.path().join("scratch"));
    market.peers_per_ip_max = 512;
    let origin = market.add_node();
    for metainfo in &metainfos {
        market.place(origin, metainfo, &source);
        let place = Place::InPlace("in place".into());
        let add = add_of(metainfo, place, &[]);
        market.add(origin, AddListing { known_complete: true, ..add });
    }
    market.peers_max = 8;
    let leech = market.add_node();
    let peers = [market.world.addr(origin)];
    for metainfo in &metainfos {
        market.add(leech, add_of(metainfo, Place::Owned("owned".into()), &peers));
    }
    let mut complete = 0;
    let began = market.world.now();
    while complete < LISTINGS && market.world.now() < began + Duration::from_secs(5) {
        market.world.run_for(Duration::from_millis(5));
        let events = market.events(leech);
        complete += events.iter().filter(|it| matches!(it, Event::Complete { .. })).count();
        assert!(market.counters(leech).peers.get() <= 8, "places are kept");
    }
    assert_eq!(complete, LISTINGS, "{:?}", market.counters(leech).closed());
    assert!(!market.counters(leech).closed().contains_key("full"), "nobody was dialled in vain");
}

pub(super) fn assert_whole(scene: &Scene, market: &SimMarket, node: usize, what: &str) {
    let wrong = market.wrong_files(node, &scene.metainfo, &scene.source);
    assert!(wrong.is_empty(), "wrong bytes in {wrong:?}: {what}");
}

/// A node dies again and again, by kill or by power cut, and starts on what its disk holds: it
/// converges on the right bytes, whatever was torn.
#[test]
fn a_leech_converges_through_crashes() {
    let scene = scene(Kind::Hybrid, 32 << 10);
    for seed in 0..40 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(1000 + seed));
        market.world.set_upload_rate(origin, Some(4_000_000));
        let mut id = scene.fetch(&mut market, leech, &[origin]);
        for crash in 0..3 {
            let run = Duration::from_millis(50 + market.world.rng().range(0, 500));
            if market.run_until_complete(leech, id, run) {
                break;
            }
            let kind = if (seed + crash) % 2 == 0 { Crash::Process } else { Crash::Power };
            market.crash(leech, kind);
            id = scene.fetch(&mut market, leech, &[origin]);
        }
        let is_done = market.run_until_complete(leech, id, LIMIT);
        let status = market.status(leech, id);
        assert!(
            is_done
                || matches!(
                    status.as_ref().unwrap().state,
                    ListingState::Seeding | ListingState::Cold
                ),
            "seed {seed}: {status:?}"
        );
        assert_whole(&scene, &market, leech, &format!("wrong bytes with seed {seed}"));
        // After a power cut a complete listing is still complete.
        market.crash(leech, Crash::Power);
        id = scene.fetch(&mut market, leech, &[]);
        assert!(market.run_until_complete(leech, id, LIMIT), "durable with seed {seed}");
        assert_whole(
            &scene,
            &market,
            leech,
            &format!("wrong bytes after the cut with seed {seed}"),
        );
    }
}

/// Nobody syncs the name of an empty file, so a power cut may take it. The listing then looked as if its files
/// had changed since it was complete, and all of it was hashed again.
#[test]
fn an_empty_file_that_a_power_cut_took_is_made_again_and_nothing_is_hashed() {
    let scene = scene(Kind::Hybrid, 64 << 10);
    let mut taken = 0;
    for seed in 0..10 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(8000 + seed));
        let id = scene.fetch(&mut market, leech, &[origin]);
        assert!(market.run_until_complete(leech, id, LIMIT));
        // The files are looked at, and that is in the journal.
        market.world.run_for(Duration::from_secs(5));
        market.crash(leech, Crash::Power);
        let wrong = market.wrong_files(leech, &scene.metainfo, &scene.source);
        taken += wrong.len();
        assert!(wrong.iter().all(|path| path.ends_with("empty")), "seed {seed}: {wrong:?}");
        let id = scene.fetch(&mut market, leech, &[]);
        assert!(market.run_until_complete(leech, id, LIMIT), "seed {seed}");
        market.world.run_for(Duration::from_secs(1));
        assert_whole(&scene, &market, leech, &format!("seed {seed}"));
        assert_eq!(market.counters(leech).hashed_bytes.get(), 0, "in doubt with seed {seed}");
    }
    assert!(taken > 0, "no power cut took a name");
}

/// What was verified and written when the process was killed is not fetched again.
#[test]
fn after_a_kill_nothing_written_is_fetched_twice() {
    let scene = scene(Kind::Hybrid, 32 << 10);
    let (mut market, origin, leech) = scene.market(SimConfig::new(7));
    market.world.set_upload_rate(origin, Some(1_000_000));
    scene.fetch(&mut market, leech, &[origin]);
    market.world.run_for(Duration::from_millis(1700));
    let written = market.counters(leech).stored_bytes.get();
    let total = scene.metainfo.info().geometry().payload_len();
    assert!(written > 500_000 && written < total, "{written} of {total}");
    market.crash(leech, Crash::Process);
    let id = scene.fetch(&mut market, leech, &[origin]);
    assert!(market.run_until_complete(leech, id, LIMIT));
    let fetched = market.counters(leech).payload_received_bytes.get();
    assert!(fetched <= total - written, "{fetched} fetched, {written} of {total} were written");
    assert_whole(&scene, &market, leech, "");
}

/// A full disk is a state: the listing waits, what is had is served, and it goes on alone.
#[test]
fn a_full_disk_waits_and_resumes() {
    let scene = scene(Kind::Hybrid, 32 << 10);
    let (mut market, origin, leech) = scene.market(SimConfig::new(3));
    market.world.set_disk_capacity(leech, Some(1_500_000));
    let id = scene.fetch(&mut market, leech, &[origin]);
    assert!(!market.run_until_complete(leech, id, Duration::from_secs(20)));
    let state = market.status(leech, id).unwrap().state;
    assert_eq!(state, ListingState::Waiting { reason: WaitReason::DiskFull });
    market.world.set_disk_capacity(leech, None);
    assert!(market.run_until_complete(leech, id, Duration::from_secs(60)));
    assert_whole(&scene, &market, leech, "");
}

/// Three nodes that know only the v2 hash fetch info dict, layers and bytes, from the origin and from
/// each other, at once.
#[test]
fn newcomers_with_a_hash_alone_relay_to_each_other() {
    let scene = scene(Kind::Hybrid, 16 << 10);
    for seed in 0..10 {
        let (mut market, origin, first) = scene.market(SimConfig::new(50 + seed));
        market.world.set_upload_rate(origin, Some(2_000_000));
        let nodes = [first, market.add_node(), market.add_node()];
        let hash = scene.metainfo.info().info_hash_v2().unwrap();
        let all: Vec<SocketAddr> =
            nodes.iter().chain([&origin]).map(|&node| market.world.addr(node)).collect();
        let ids = nodes.map(|node| {
            let place = Place::Owned("owned".into());
            let add = add_of(&scene.metainfo, place, &all);
            market.add(node, AddListing { identity: Identity::V2(hash), ..add })
        });
        let mut left: Vec<_> = nodes.into_iter().zip(ids).collect();
        for _ in 0..600 {
            market.world.run_for(Duration::from_secs(1));
            left.retain(|&(node, id)| {
                let events = market.events(node);
                !events.iter().any(|event| matches!(event, Event::Complete { id: of } if *of == id))
            });
            if left.is_empty() {
                break;
            }
        }
        assert!(left.is_empty(), "seed {seed}: {:?}", market.status(left[0].0, left[0].1));
        nodes.iter().for_each(|&node| assert_whole(&scene, &market, node, &format!("seed {seed}")));
        let total = scene.metainfo.info().geometry().payload_len();
        let sent = market.counters(origin).payload_sent_bytes.get();
        assert!(sent < 2 * total, "the origin sent {sent} of {total} to three: seed {seed}");
    }
}

/// Leaves are served from the sidecar; when it is lost they are made again from the data.
#[test]
fn leaves_are_served_and_made_again_when_lost() {
    use ringseed_core::geometry::BLOCK_LEN;
    use ringseed_core::merkle::{HashRange, TreeShape};

    let scene = scene(Kind::V2, 64 << 10);
    let (mut market, origin, node) = scene.market(SimConfig::new(5));
    let id = scene.fetch(&mut market, node, &[origin]);
    assert!(market.run_until_complete(node, id, LIMIT));
    market.world.run_for(Duration::from_secs(1));
    let state_dir = scene.scratch.join(format!("node-{node}/state"));
    let path = crate::store::leaves_path(&scene.metainfo.info().info_hash_v2().unwrap());
    let sidecar = market.world.file_content(node, &state_dir, &path).unwrap().to_vec();
    let leaves: Vec<[u8; 32]> = sidecar.as_chunks::<32>().0.to_vec();
    // The sidecar holds, file after file, what leads to every root.
    let mut at = 0;
    for file in scene.metainfo.info().files().filter(|file| file.len_bytes > 0) {
        let count = file.len_bytes.div_ceil(u64::from(BLOCK_LEN)) as usize;
        let root = ringseed_core::merkle::root_from_leaves(&leaves[at..at + count]);
        assert_eq!(Some(root), file.pieces_root, "{}", file.path().as_str());
        at += count;
    }
    // A peer that asks is answered; see the machine of this test for the asking.
    let big = scene.metainfo.info().files().find(|file| file.len_bytes > 3_000_000).unwrap();
    let shape = TreeShape::of_file(big.len_bytes).unwrap();
    let range = HashRange::to_root(shape, 0, 8, 4).unwrap();
    let request = ringseed_core::wire::HashRequest {
        pieces_root: big.pieces_root.unwrap(),
        base_layer: 0,
        index: range.index(),
        length: range.length(),
        proof_layers: range.proof_layers(),
    };
    let shard = market.world.machine(node).unwrap();
    assert_eq!(shard.leaf_answer(id, request), Some(true), "the sidecar is there");
    assert!(market.world.rot(node, &state_dir, &path, 32 * 9, 0xff));
    market.world.run_for(Duration::from_secs(1));
    let shard = market.world.machine(node).unwrap();
    assert!(shard.leaves_again(id, request));
    market.world.run_for(Duration::from_secs(5));
    let again = market.world.file_content(node, &state_dir, &path).unwrap();
    assert!(again == sidecar, "a rotten leaf is made again from the data");
}

/// A complete listing that nobody asks for keeps nothing but its row; the first handshake wakes it.
#[test]
fn an_idle_listing_goes_cold_and_the_first_handshake_wakes_it() {
    let scene = scene(Kind::Hybrid, 64 << 10);
    let (mut market, origin, leech) = scene.market(SimConfig::new(2));
    let first = scene.fetch(&mut market, leech, &[origin]);
    assert!(market.run_until_complete(leech, first, LIMIT));
    market.world.run_for(Duration::from_secs(90));
    assert_eq!(market.status(leech, first).unwrap().state, ListingState::Cold);
    assert_eq!(market.counters(leech).listings_active.get(), 0);
    assert_eq!(market.counters(leech).peers.get(), 0);
    // The origin is gone: a third node lives off the cold listing alone.
    market.world.crash(origin, Crash::Process);
    let third = market.add_node();
    let id = scene.fetch(&mut market, third, &[leech]);
    assert!(market.run_until_complete(third, id, LIMIT));
    assert_whole(&scene, &market, third, "fetched from a cold listing");
    let status = market.status(leech, first).unwrap();
    let given: u64 = status.sources.iter().map(|source| source.verified_bytes).sum();
    assert_eq!(given, status.total_bytes, "who gave what is kept while it is cold");
    assert!(status.sent_bytes >= status.total_bytes);
}

/// Pieces that several peers had a part in, one of them lying: the liar is found, nobody else is
/// banned, and the bytes are right.
#[test]
fn the_liar_among_several_sources_is_found() {
    for kind in [Kind::V1, Kind::Hybrid] {
        let scene = scene(kind, 1 << 20);
        for seed in 0..8 {
            let (mut market, honest, leech) = scene.market(SimConfig::new(300 + seed));
            let liar = market.add_node();
            market.place(liar, &scene.metainfo, &scene.source);
            let root = market.payload_dir(liar);
            for at in [70_000, 800_000, 1_600_000, 2_500_000] {
                assert!(market.world.rot(liar, &root, Path::new("data/big.bin"), at, 1));
            }
            let place = Place::InPlace("in place".into());
            let add = add_of(&scene.metainfo, place, &[]);
            market.add(liar, AddListing { known_complete: true, ..add });
            for source in [honest, liar] {
                market.world.set_upload_rate(source, Some(3_000_000));
            }
            let id = scene.fetch(&mut market, leech, &[honest, liar]);
            market.world.run_for(Duration::from_secs(60));
            let events = market.events(leech);
            let complete = |event: &Event| matches!(event, Event::Complete { id: of } if *of == id);
            assert!(events.iter().any(complete), "seed {seed} of {kind:?}: {events:?}");
            assert_whole(&scene, &market, leech, &format!("seed {seed} of {kind:?}"));
            let banned = events.iter().filter_map(|event| match event {
                Event::PeerBanned { peer_id, .. } => Some(peer_id[19]),
                _ => None,
            });
            let banned: Vec<u8> = banned.collect();
            assert!(banned.iter().all(|&id| usize::from(id) == liar), "seed {seed}: {banned:?}");
        }
    }
}

/// Three newcomers relay to each other while links drop and disks fail.
#[test]
fn relays_converge_under_faults() {
    let scene = scene(Kind::Hybrid, 64 << 10);
    for seed in 0..10 {
        let mut config = SimConfig::new(700 + seed);
        config.faults.reset_ppm = 3_000;
        config.faults.read_error_ppm = 5_000;
        config.faults.write_error_ppm = 10_000;
        config.faults.sync_error_ppm = 30_000;
        let (mut market, origin, first) = scene.market(config);
        market.world.set_upload_rate(origin, Some(3_000_000));
        let nodes = [first, market.add_node(), market.add_node()];
        let all = [origin, nodes[0], nodes[1], nodes[2]];
        let ids = nodes.map(|node| scene.fetch(&mut market, node, &all));
        for (node, id) in nodes.into_iter().zip(ids) {
            let is_done = market.run_until_complete(node, id, LIMIT);
            let explain = market.world.machine(node).map(|shard| shard.explain());
            assert!(is_done, "replay with seed {seed}, node {node}: {explain:?}");
            assert_whole(&scene, &market, node, &format!("seed {seed}"));
        }
    }
}

/// Many listings at once between nodes with little memory: the arena runs full on every side, and
/// nobody waits for ever.
#[test]
fn many_listings_at_once_share_a_small_arena() {
    let dir = TestDir::new("many");
    let source = dir.path().join("source");
    let shapes: [(usize, u64); 8] = [
        (3_000_000, 16 << 10),
        (2_500_000, 32 << 10),
        (4_000_000, 64 << 10),
        (6_000_000, 256 << 10),
        (9_000_000, 1 << 20),
        (12_000_000, 4 << 20),
        (700_000, 16 << 10),
        (5_000_000, 512 << 10),
    ];
    let torrents: Vec<Arc<Metainfo>> = (0..)
        .zip(shapes)
        .map(|(number, (len, piece_len))| {
            let path = source.join(format!("listing-{number}"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("a.bin"), noise(len, number + 1)).unwrap();
            std::fs::write(path.join("b.bin"), noise(len / 7, number + 100)).unwrap();
            torrent(&path, Kind::Hybrid, piece_len)
        })
        .collect();
    for seed in 0..3 {
        let mut market = SimMarket::new(SimConfig::new(900 + seed), &dir.path().join("scratch"));
        let nodes: Vec<usize> = (0..6).map(|_| market.add_node()).collect();
        let all: Vec<SocketAddr> = nodes.iter().map(|&node| market.world.addr(node)).collect();
        let mut wanted = Vec::new();
        for (number, metainfo) in torrents.iter().enumerate() {
            let origin = number % 4;
            market.place(origin, metainfo, &source);
            for &node in &nodes {
                if node == origin {
                    let add = add_of(metainfo, Place::InPlace("in place".into()), &all);
                    market.add(node, AddListing { known_complete: true, ..add });
                } else {
                    let id = market.add(node, add_of(metainfo, Place::Owned("owned".into()), &all));
                    wanted.push((node, id));
                }
            }
        }
        for second in 0.. {
            market.world.run_for(Duration::from_secs(1));
            wanted.retain(|&(node, id)| {
                market.status(node, id).is_some_and(|status| {
                    !matches!(status.state, ListingState::Seeding | ListingState::Cold)
                })
            });
            if wanted.is_empty() {
                break;
            }
            if second > 120 {
                let (node, id) = wanted[0];
                let status = market.status(node, id);
                let explain = market.world.machine(node).map(|shard| shard.explain());
                panic!("seed {seed}: {} stuck, {node} {status:?}: {explain:?}", wanted.len());
            }
        }
        for &node in &nodes {
            for metainfo in &torrents {
                assert!(market.wrong_files(node, metainfo, &source).is_empty(), "seed {seed}");
            }
        }
    }
}
