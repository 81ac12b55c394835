//! A huge listing on all shards of both sides: every byte once, evenly, and whatever happens to a shard's
//! connections, disks or records the listing is whole in the end.

use std::path::PathBuf;

use super::*;
use crate::io::sim::{Crash, SimConfig};
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise, snapshot};
use crate::testing::SimMarket;

/// Virtual time after which a small transfer has failed.
const LIMIT: Duration = Duration::from_secs(600);
/// What counts as huge here.
const HUGE: u64 = 1 << 20;

struct Scene {
    _dir: TestDir,
    source: PathBuf,
    scratch: PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene(kind: Kind, len: usize) -> Scene {
    let dir = TestDir::new("stripes-sim");
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("data")).unwrap();
    let metainfo = match kind {
        // v1 files lie end to end: only a single one begins where a sector does.
        Kind::V1 => {
            std::fs::write(source.join("data/one.bin"), noise(len, 3)).unwrap();
            torrent(&source.join("data/one.bin"), kind, 256 << 10)
        }
        _ => {
            std::fs::write(source.join("data/a.bin"), noise(len / 2 + 17, 3)).unwrap();
            std::fs::write(source.join("data/b.bin"), noise(len / 2 - 17, 4)).unwrap();
            torrent(&source.join("data"), kind, 256 << 10)
        }
    };
    let source = if kind == Kind::V1 { source.join("data") } else { source };
    Scene { source, scratch: dir.path().join("scratch"), metainfo, _dir: dir }
}

impl Scene {
    fn market(&self, config: SimConfig, shards: (usize, usize)) -> (SimMarket, usize, usize) {
        let mut market = SimMarket::new(config, &self.scratch);
        market.stripe_min_bytes = HUGE;
        market.shards = shards.0;
        let origin = market.add_node();
        market.place(origin, &self.metainfo, &self.source);
        let add = add_of(&self.metainfo, Place::InPlace("in place".into()), &[]);
        market.add(origin, AddListing { known_complete: true, ..add });
        market.shards = shards.1;
        let leech = market.add_node();
        (market, origin, leech)
    }

    fn fetch(&self, market: &mut SimMarket, node: usize, from: &[usize]) -> ListingId {
        let peers: Vec<SocketAddr> = from.iter().map(|&node| market.world.addr(node)).collect();
        market.add(node, add_of(&self.metainfo, Place::Owned("owned".into()), &peers))
    }

    /// What is not cut proves nothing here.
    fn assert_cut(&self, market: &SimMarket, node: usize, id: ListingId) {
        assert!(market.mesh(node).is_striped(id), "the listing is not cut");
    }

    fn assert_whole(&self, market: &SimMarket, node: usize, what: &str) {
        let wrong = market.wrong_files(node, &self.metainfo, &self.source);
        assert!(wrong.is_empty(), "wrong bytes in {wrong:?}: {what}");
    }
}

fn closed(market: &SimMarket, node: usize) -> Vec<std::collections::BTreeMap<&'static str, u64>> {
    market.counters_of_shards(node).iter().map(|counters| counters.closed()).collect()
}

fn explain(market: &mut SimMarket, node: usize) -> String {
    let set = market.world.machine(node).expect("it runs");
    set.shards().iter().map(|shard| shard.explain()).collect::<Vec<_>>().join("\n")
}

/// Whatever the numbers of shards on both sides, each of them has its part, and no piece is fetched twice.
#[test]
fn every_shard_has_its_part() {
    for kind in [Kind::Hybrid, Kind::V1] {
        let scene = scene(kind, 12_000_000);
        let total = scene.metainfo.info().geometry().payload_len();
        for (seed, shards) in
            [(4, 4), (4, 3), (3, 4), (1, 4), (4, 1), (2, 3)].into_iter().enumerate()
        {
            let (mut market, origin, leech) =
                scene.market(SimConfig::new(9000 + seed as u64), shards);
            market.world.set_upload_rate(origin, Some(20_000_000));
            let id = scene.fetch(&mut market, leech, &[origin]);
            let is_done = market.run_until_complete(leech, id, LIMIT);
            assert!(is_done, "{shards:?} of {kind:?}: {}", explain(&mut market, leech));
            if shards.1 > 1 {
                scene.assert_cut(&market, leech, id);
            }
            scene.assert_whole(&market, leech, &format!("{shards:?} of {kind:?}"));
            let of_leech: Vec<u64> = (market.counters_of_shards(leech).iter())
                .map(|counters| counters.payload_received_bytes.get())
                .collect();
            let of_origin: Vec<u64> = (market.counters_of_shards(origin).iter())
                .map(|counters| counters.payload_sent_bytes.get())
                .collect();
            let received: u64 = of_leech.iter().sum();
            assert_eq!(received, total, "{shards:?} of {kind:?}: each byte once");
            assert!(
                of_leech.iter().all(|&bytes| bytes > 0),
                "{shards:?}: {of_leech:?} {:?} {:?}",
                closed(&market, leech),
                closed(&market, origin)
            );
            if shards.1 > 1 {
                assert!(of_origin.iter().all(|&bytes| bytes > 0), "{shards:?}: {of_origin:?}");
            }
            let verified: u64 = (market.counters_of_shards(leech).iter())
                .map(|counters| counters.payload_verified_bytes.get())
                .sum();
            assert_eq!(verified, total);
            // One event and no more, whoever was last.
            market.world.run_for(Duration::from_secs(5));
            let again = market.events(leech);
            assert!(
                !again.iter().any(|event| matches!(event, Event::Complete { .. })),
                "{again:?}"
            );
            // Nobody keeps a connection to somebody who has everything, too.
            let peers: u64 = market.counters_of_shards(leech).iter().map(|it| it.peers.get()).sum();
            assert_eq!(peers, 0);
            let listings: u64 =
                market.counters_of_shards(leech).iter().map(|it| it.listings.get()).sum();
            assert_eq!(listings, 1, "what helps is no listing of its own");
        }
    }
}

/// Links drop, disks fail, syncs lose what they should have covered.
#[test]
fn stripes_converge_under_faults() {
    for (number, kind) in [(0, Kind::Hybrid), (100, Kind::V1)] {
        let scene = scene(kind, 6_000_000);
        for seed in 0..20 {
            let mut config = SimConfig::new(9100 + number + seed);
            config.faults.reset_ppm = 2_000;
            config.faults.read_error_ppm = 5_000;
            config.faults.write_error_ppm = 20_000;
            config.faults.sync_error_ppm = 50_000;
            let (mut market, origin, leech) = scene.market(config, (3, 4));
            let id = scene.fetch(&mut market, leech, &[origin]);
            let is_done = market.run_until_complete(leech, id, LIMIT);
            assert!(
                is_done,
                "replay with seed {seed} of {kind:?}: {}",
                explain(&mut market, leech)
            );
            scene.assert_cut(&market, leech, id);
            scene.assert_whole(&market, leech, &format!("seed {seed} of {kind:?}"));
        }
    }
}

/// A node dies again and again, by kill or by power cut, and starts with another number of shards: what was
/// claimed is believed, and it converges on the right bytes.
#[test]
fn stripes_survive_crashes_with_any_number_of_shards() {
    let scene = scene(Kind::Hybrid, 8_000_000);
    for seed in 0..16 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(9300 + seed), (2, 4));
        market.world.set_upload_rate(origin, Some(4_000_000));
        let mut id = scene.fetch(&mut market, leech, &[origin]);
        for (round, shards) in [3, 1, 4, 2].into_iter().enumerate() {
            let run = Duration::from_millis(300 + market.world.rng().range(0, 900));
            market.world.run_for(run);
            if round == 0 {
                scene.assert_cut(&market, leech, id);
            }
            let was = market.status(leech, id).unwrap().durable_pieces;
            let is_even = (seed as usize + round).is_multiple_of(2);
            let kind = if is_even { Crash::Process } else { Crash::Power };
            market.shards = shards;
            market.crash(leech, kind);
            id = scene.fetch(&mut market, leech, &[origin]);
            let status = market.status(leech, id).unwrap();
            assert!(
                status.durable_pieces >= was,
                "seed {seed}, {kind:?}: {was} were claimed, {status:?}"
            );
        }
        let status = |market: &mut SimMarket| market.status(leech, id).unwrap();
        let is_whole = |status: crate::ListingStatus| status.durable_pieces == status.piece_count;
        for _ in 0..600 {
            if is_whole(status(&mut market)) {
                break;
            }
            market.world.run_for(Duration::from_millis(100));
        }
        assert!(is_whole(status(&mut market)), "seed {seed}: {}", explain(&mut market, leech));
        scene.assert_whole(&market, leech, &format!("seed {seed}"));
    }
}

/// A stock client takes one connection of an address and no more: whichever shard has it fetches all of it,
/// and from there every shard serves it.
#[test]
fn one_connection_is_enough() {
    let scene = scene(Kind::Hybrid, 8_000_000);
    for seed in 0..8 {
        let mut market = SimMarket::new(SimConfig::new(9400 + seed), &scene.scratch);
        market.stripe_min_bytes = HUGE;
        market.peers_per_ip_max = 1;
        let origin = market.add_node();
        market.place(origin, &scene.metainfo, &scene.source);
        let add = add_of(&scene.metainfo, Place::InPlace("in place".into()), &[]);
        market.add(origin, AddListing { known_complete: true, ..add });
        market.peers_per_ip_max = 8;
        market.shards = 4;
        let leech = market.add_node();
        let id = scene.fetch(&mut market, leech, &[origin]);
        let is_done = market.run_until_complete(leech, id, LIMIT);
        assert!(is_done, "seed {seed}: {}", explain(&mut market, leech));
        scene.assert_whole(&market, leech, &format!("seed {seed}"));
        // The other way round: whoever makes one connection gets all of it over that.
        market.world.crash(origin, Crash::Power);
        market.shards = 1;
        let third = market.add_node();
        let id = scene.fetch(&mut market, third, &[leech]);
        let is_done = market.run_until_complete(third, id, LIMIT);
        assert!(is_done, "seed {seed}: {}", explain(&mut market, third));
        scene.assert_whole(&market, third, &format!("seed {seed}"));
    }
}

/// A link that dies under some shards leaves their part to the others.
#[test]
fn a_shard_that_loses_its_source_leaves_its_part_to_others() {
    let scene = scene(Kind::Hybrid, 10_000_000);
    for seed in 0..8 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(9500 + seed), (4, 4));
        market.world.set_upload_rate(origin, Some(3_000_000));
        let id = scene.fetch(&mut market, leech, &[origin]);
        market.world.run_for(Duration::from_millis(900));
        scene.assert_cut(&market, leech, id);
        // From here on two in three connections are reset soon after they were made.
        market.world.faults_mut().reset_ppm = 30_000;
        market.world.run_for(Duration::from_secs(3));
        market.world.faults_mut().reset_ppm = 0;
        let is_done = market.run_until_complete(leech, id, Duration::from_secs(60));
        assert!(is_done, "seed {seed}: {}", explain(&mut market, leech));
        scene.assert_whole(&market, leech, &format!("seed {seed}"));
    }
}

/// Newcomers with shards that know only the hash fetch from the origin and from each other.
#[test]
fn newcomers_with_shards_relay_to_each_other() {
    let scene = scene(Kind::Hybrid, 6_000_000);
    let hash = scene.metainfo.info().info_hash_v2().unwrap();
    for seed in 0..6 {
        let (mut market, origin, first) = scene.market(SimConfig::new(9600 + seed), (2, 3));
        market.world.set_upload_rate(origin, Some(4_000_000));
        let nodes = [first, market.add_node()];
        let all: Vec<SocketAddr> =
            nodes.iter().chain([&origin]).map(|&node| market.world.addr(node)).collect();
        let ids = nodes.map(|node| {
            let add = add_of(&scene.metainfo, Place::Owned("owned".into()), &all);
            market.add(node, AddListing { identity: Identity::V2(hash), ..add })
        });
        for (node, id) in nodes.into_iter().zip(ids) {
            let is_done = market.run_until_complete(node, id, LIMIT);
            let is_whole = |it: crate::ListingStatus| it.durable_pieces == it.piece_count;
            let is_done = is_done || is_whole(market.status(node, id).unwrap());
            assert!(is_done, "seed {seed}: {}", explain(&mut market, node));
            scene.assert_whole(&market, node, &format!("seed {seed}"));
        }
    }
}

/// A listing that all shards have a part in is removed when the last of them has left it: nothing of it is
/// written behind that, and the journal is read to its end by the next start.
#[test]
fn a_striped_listing_is_removed_whole() {
    let scene = scene(Kind::Hybrid, 8_000_000);
    for seed in 0..10 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(9700 + seed), (1, 4));
        market.world.set_upload_rate(origin, Some(4_000_000));
        let id = scene.fetch(&mut market, leech, &[origin]);
        let run = Duration::from_millis(300 + market.world.rng().range(0, 1500));
        market.world.run_for(run);
        let home = (id.0 % 4) as usize;
        scene.assert_cut(&market, leech, id);
        market.command_shard(leech, home, Command::Remove(id, true));
        market.world.run_for(Duration::from_secs(5));
        let events = market.events(leech);
        let removed = events.iter().filter(|event| matches!(event, Event::Removed { .. })).count();
        assert_eq!(removed, 1, "seed {seed}: {events:?}");
        assert!(market.status(leech, id).is_none());
        let root = market.payload_dir(leech);
        let left: Vec<PathBuf> = market
            .world
            .files(leech)
            .filter(|(at, _)| *at == root)
            .map(|(_, path)| path.to_path_buf())
            .collect();
        assert!(left.is_empty(), "seed {seed}: {left:?}");
        // Again, and a crash behind it: what is claimed of the second life is believed.
        let id = scene.fetch(&mut market, leech, &[origin]);
        assert!(market.run_until_complete(leech, id, LIMIT), "seed {seed}");
        market.crash(leech, Crash::Power);
        let id = scene.fetch(&mut market, leech, &[]);
        assert!(market.run_until_complete(leech, id, LIMIT), "durable with seed {seed}");
        scene.assert_whole(&market, leech, &format!("seed {seed}"));
    }
}

/// The same on real sockets and files, with every driver: each shard bears a part, and the listing's status is
/// the sum of them. How even the parts are is for the benchmark to say, on an idle machine: here other tests run
/// as well, and a shard that gets no processor for two seconds leaves its part to others, who fetch what it has
/// begun once more. But it is not so each time.
fn every_shard_bears_a_part(driver: IoDriver, of_seed: u32, of_leech: u32) {
    let uneven = || uneven_parts(driver, of_seed, of_leech);
    let tries: Vec<String> = (0..3).map_while(|_| uneven()).collect();
    assert!(tries.len() < 3, "{tries:?}");
}

/// Moves a listing over several shards; what was uneven in it.
fn uneven_parts(driver: IoDriver, of_seed: u32, of_leech: u32) -> Option<String> {
    let dir = TestDir::new("stripes");
    let source = dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("huge.bin"), noise(96_000_001, 8)).unwrap();
    let metainfo = torrent(&source.join("huge.bin"), Kind::Hybrid, 256 << 10);
    let with = |shards: u32| {
        move |config: &mut Config| {
            config.shards = Some(shards);
            config.arena_len_bytes = (16 << 20) * shards as usize;
            config.stripe_min_bytes = 16 << 20;
        }
    };
    let seed = Node::start_on(dir.path(), 1, driver, with(of_seed));
    seed.seed(&metainfo, &source);
    let mut leech = Node::start_on(dir.path(), 2, driver, with(of_leech));
    let into = dir.path().join("into");
    let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
    leech.wait_complete(id);
    assert!(snapshot(&into) == snapshot(&source), "wrong bytes");
    let status = leech.engine.listing_status(id).unwrap();
    assert_eq!(status.shards, of_leech);
    let from_seed: u64 = status.sources.iter().map(|source| source.verified_bytes).sum();
    assert_eq!(from_seed, status.total_bytes, "{status:?}");
    let mut uneven = Vec::new();
    // That each byte comes once is seen in virtual time.
    if status.wasted_bytes >= status.total_bytes / 8 {
        uneven.push(format!("{} of {} came twice", status.wasted_bytes, status.total_bytes));
    }
    let engine = leech.engine.status();
    assert_eq!((engine.listings, engine.shards.len()), (1, of_leech as usize));
    let received: Vec<u64> = engine.shards.iter().map(|it| it.payload_received_bytes).collect();
    let sent: Vec<u64> =
        seed.engine.status().shards.iter().map(|shard| shard.payload_sent_bytes).collect();
    for (side, bytes) in [("leech", &received), ("seed", &sent)] {
        let mean = bytes.iter().sum::<u64>() / bytes.len() as u64;
        if bytes.iter().any(|&part| part <= mean / 8) {
            uneven.push(format!("{side}: {bytes:?}"));
        }
    }
    (!uneven.is_empty()).then(|| uneven.join("; "))
}

#[test]
fn every_shard_bears_a_part_over_uring() {
    every_shard_bears_a_part(IoDriver::Auto, 4, 4);
    every_shard_bears_a_part(IoDriver::Auto, 3, 4);
}

#[test]
fn every_shard_bears_a_part_over_epoll() {
    every_shard_bears_a_part(IoDriver::Epoll, 2, 3);
}
