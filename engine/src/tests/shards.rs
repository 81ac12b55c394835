//! Several shards in one engine: listings are spread over them, connections find their way, limits hold
//! over all of them, and what one has acknowledged survives with whatever number comes next.

use std::collections::BTreeSet;

use ringseed_core::magnet::InfoHashes;

use super::*;
use crate::io::sim::{Crash, SimConfig};
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise, snapshot, tree};
use crate::testing::SimMarket;
use crate::{EngineError, EngineStatus};

/// Virtual time after which a few small transfers have failed.
const LIMIT: Duration = Duration::from_secs(600);

fn with_shards(shards: u32) -> impl Fn(&mut Config) {
    move |config| {
        config.shards = Some(shards);
        config.arena_len_bytes = (16 << 20) * shards as usize;
    }
}

/// Torrents of some hundred KiB each, in a folder each.
fn torrents(source: &Path, count: u64) -> Vec<Arc<Metainfo>> {
    let make = |number: u64| {
        let path = source.join(format!("data-{number}"));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("a.bin"), noise(300_007 + number as usize, number)).unwrap();
        std::fs::write(path.join("b.bin"), noise(40_001, number + 100)).unwrap();
        torrent(&path, Kind::Hybrid, 32 << 10)
    };
    (0..count).map(make).collect()
}

fn wait_all(node: &mut Node, ids: &[ListingId]) {
    let mut left: BTreeSet<ListingId> = ids.iter().copied().collect();
    for event in &node.seen {
        if let Event::Complete { id } = event {
            left.remove(id);
        }
    }
    while let Some(&first) = left.first() {
        node.wait_complete(first);
        for event in &node.seen {
            if let Event::Complete { id } = event {
                left.remove(id);
            }
        }
    }
}

fn busy_shards(status: &EngineStatus) -> (usize, usize) {
    let receiving = status.shards.iter().filter(|shard| shard.payload_received_bytes > 0).count();
    let sending = status.shards.iter().filter(|shard| shard.payload_sent_bytes > 0).count();
    (receiving, sending)
}

/// Listings are spread over the shards of both sides, every connection finds the shard that has what it
/// wants, and the numbers of the engine are those of all its shards.
fn listings_are_spread(driver: IoDriver, seed_shards: u32, leech_shards: u32) {
    let dir = TestDir::new("shards");
    let source = dir.path().join("source");
    let all = torrents(&source, 9);
    let seed = Node::start_on(dir.path(), 1, driver, with_shards(seed_shards));
    let mut leech = Node::start_on(dir.path(), 2, driver, with_shards(leech_shards));
    let into = dir.path().join("into");
    for metainfo in &all {
        seed.seed(metainfo, &source);
    }
    let ids: Vec<ListingId> =
        all.iter().map(|metainfo| leech.fetch(metainfo, &into, &[seed.addr()])).collect();
    wait_all(&mut leech, &ids);
    assert_eq!(snapshot(&into), snapshot(&source));
    let (status, of_seed) = (leech.engine.status(), seed.engine.status());
    assert_eq!(status.shards.len(), leech_shards as usize);
    assert_eq!(of_seed.shards.len(), seed_shards as usize);
    assert_eq!((status.listings, of_seed.listings), (9, 9));
    assert_eq!(busy_shards(&status).0, leech_shards as usize, "{status:?}");
    assert_eq!(busy_shards(&of_seed).1, seed_shards as usize, "{of_seed:?}");
    let total: u64 = all.iter().map(|one| one.info().geometry().payload_len()).sum();
    assert_eq!(status.payload_verified_bytes, total);
    let sent: u64 = of_seed.shards.iter().map(|shard| shard.payload_sent_bytes).sum();
    assert_eq!(sent, of_seed.payload_sent_bytes);
    // One in so many connections is accepted by its owner.
    let wanted = if seed_shards == 1 { 0 } else { 1 };
    assert!(of_seed.moved_connections >= wanted, "{of_seed:?}");
    for &id in &ids {
        assert!(leech.engine.metainfo(id).is_some());
        assert_eq!(leech.engine.listing_status(id).unwrap().wasted_bytes, 0);
    }
    // The same once more, whichever shard has it.
    for (metainfo, &id) in all.iter().zip(&ids) {
        let again = add_of(metainfo, Place::Owned(into.clone()), &[]);
        match leech.engine.add(again) {
            Err(EngineError::Exists { id: found }) => assert_eq!(found, id),
            other => panic!("{other:?}"),
        }
    }
    // Removed where it is, and nowhere else.
    leech.engine.remove(ids[3], true);
    leech.wait("removal", |event| matches!(event, Event::Removed { id, .. } if *id == ids[3]));
    assert!(leech.engine.listing_status(ids[3]).is_none());
    assert!(leech.engine.listing_status(ids[4]).is_some());
    assert!(!into.join("data-3").exists() && into.join("data-4").exists());
    let again = leech.fetch(&all[3], &into, &[seed.addr()]);
    leech.wait_complete(again);
    assert_eq!(snapshot(&into), snapshot(&source));
    leech.engine.shutdown();
    seed.engine.shutdown();
}

#[test]
fn listings_are_spread_over_uring() {
    listings_are_spread(IoDriver::Auto, 4, 4);
}

#[test]
fn listings_are_spread_over_epoll() {
    listings_are_spread(IoDriver::Epoll, 3, 2);
}

#[test]
fn sides_may_have_different_numbers_of_shards() {
    listings_are_spread(IoDriver::Auto, 1, 4);
    listings_are_spread(IoDriver::Auto, 4, 1);
}

/// What four shards have acknowledged a single one believes, and the other way round: nothing is fetched
/// or hashed again.
#[test]
fn a_restart_with_another_number_of_shards_fetches_nothing_again() {
    let dir = TestDir::new("reshard");
    let source = dir.path().join("source");
    let all = torrents(&source, 8);
    let into = dir.path().join("into");
    let seed = Node::start(dir.path(), 1);
    for metainfo in &all {
        seed.seed(metainfo, &source);
    }
    let mut leech = Node::start_on(dir.path(), 2, IoDriver::Auto, with_shards(4));
    let ids: Vec<ListingId> =
        all.iter().map(|metainfo| leech.fetch(metainfo, &into, &[seed.addr()])).collect();
    wait_all(&mut leech, &ids);
    drop(leech);
    for shards in [1, 3, 4, 2] {
        let mut leech = Node::start_on(dir.path(), 2, IoDriver::Auto, with_shards(shards));
        let ids: Vec<ListingId> =
            all.iter().map(|metainfo| leech.fetch(metainfo, &into, &[seed.addr()])).collect();
        wait_all(&mut leech, &ids);
        let status = leech.engine.status();
        assert_eq!((status.received_bytes, status.hashed_bytes), (0, 0), "with {shards} shards");
        assert_eq!(status.listings, 8);
        leech.engine.shutdown();
    }
    assert_eq!(snapshot(&into), snapshot(&source));
}

/// What is known by its hash alone is asked for by the shard that has it, and served by the one that has
/// it there: both names of a hybrid lead to it.
#[test]
fn a_hash_finds_its_shard() {
    let dir = TestDir::new("shards-hash");
    let source = dir.path().join("source");
    let all = torrents(&source, 4);
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, with_shards(3));
    for metainfo in &all {
        seed.seed(metainfo, &source);
    }
    let mut leech = Node::start_on(dir.path(), 2, IoDriver::Auto, with_shards(2));
    let into = dir.path().join("into");
    let mut ids = Vec::new();
    for (metainfo, use_v1) in all.iter().zip([true, false, true, false]) {
        let info = metainfo.info();
        let identity: Identity = match use_v1 {
            true => InfoHashes::V1(info.info_hash_v1().unwrap()).into(),
            false => InfoHashes::V2(info.info_hash_v2().unwrap()).into(),
        };
        let add = add_of(metainfo, Place::Owned(into.clone()), &[seed.addr()]);
        ids.push(leech.engine.add(AddListing { identity, ..add }).unwrap());
    }
    wait_all(&mut leech, &ids);
    assert_eq!(snapshot(&into), snapshot(&source));
    // A name that no shard knows is nobody's.
    let other = TestDir::new("shards-other");
    tree(&other.path().join("data"), 77);
    let stranger = torrent(&other.path().join("data"), Kind::V1, 64 << 10);
    leech.fetch(&stranger, &other.path().join("into"), &[seed.addr()]);
    let until = Instant::now() + PATIENCE;
    while !seed.engine.status().closed.contains_key("unknown-torrent") {
        assert!(Instant::now() < until, "{:?}", seed.engine.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The cap on payload sent is one for all shards, and the whole of it is there for whichever is asked.
#[test]
fn the_upload_rate_holds_over_all_shards() {
    let dir = TestDir::new("shards-rate");
    let source = dir.path().join("source");
    let all = torrents(&source, 6);
    let rate = 1_000_000;
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        with_shards(3)(config);
        config.upload_rate_max = Some(rate);
    });
    for metainfo in &all {
        seed.seed(metainfo, &source);
    }
    let mut leech = Node::start_on(dir.path(), 2, IoDriver::Auto, with_shards(2));
    let begun = Instant::now();
    let into = dir.path().join("into");
    let ids: Vec<ListingId> =
        all.iter().map(|metainfo| leech.fetch(metainfo, &into, &[seed.addr()])).collect();
    wait_all(&mut leech, &ids);
    let total: u64 = all.iter().map(|one| one.info().geometry().payload_len()).sum();
    let least = Duration::from_secs_f64((total - 100_000) as f64 / rate as f64);
    let took = begun.elapsed();
    assert!(took >= least, "{total} bytes in {took:?} at {rate} bytes/s");
    assert!(took < least * 2, "{total} bytes in {took:?}: the rate was not used");
}

/// Connections of one address are counted over all shards, and a place is free again when one of them
/// ends, whichever shard has it by then.
#[test]
fn connections_of_an_address_are_counted_over_all_shards() {
    use std::io::{Read as _, Write as _};

    let dir = TestDir::new("shards-door");
    let source = dir.path().join("source");
    let all = torrents(&source, 6);
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        with_shards(3)(config);
        (config.limit_loopback, config.peers_per_ip_max) = (true, 6);
    });
    for metainfo in &all {
        seed.seed(metainfo, &source);
    }
    let connect = |number: usize| {
        let mut stream = std::net::TcpStream::connect(seed.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut hello = Vec::from(b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x04");
        hello.extend(all[number].info().info_hash_v1().unwrap());
        hello.extend(format!("-XX0000-{number:012}").as_bytes());
        // The seventh may be closed while it writes.
        let _ = stream.write_all(&hello);
        let mut answer = [0; 68];
        stream.read_exact(&mut answer).is_ok().then_some(stream)
    };
    let mut open: Vec<_> = (0..6).map(|number| connect(number).expect("a place is free")).collect();
    assert_eq!(seed.engine.status().peers, 6);
    let busy = seed.engine.status().shards.iter().filter(|shard| shard.peers > 0).count();
    assert_eq!(busy, 3, "{:?}", seed.engine.status());
    assert!(connect(0).is_none(), "a seventh connection of the address");
    open.remove(2);
    open.remove(1);
    let until = Instant::now() + PATIENCE;
    while seed.engine.status().peers > 4 {
        assert!(Instant::now() < until, "{:?}", seed.engine.status());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The end of a moved connection takes a moment to be heard of at the door.
    let free = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        connect(1)
    });
    assert!(free.is_some(), "no place for who comes after two have left");
}

struct Scene {
    _dir: TestDir,
    source: std::path::PathBuf,
    scratch: std::path::PathBuf,
    all: Vec<Arc<Metainfo>>,
}

fn scene(count: u64) -> Scene {
    let dir = TestDir::new("shards-sim");
    let source = dir.path().join("source");
    let all = torrents(&source, count);
    Scene { source, scratch: dir.path().join("scratch"), all, _dir: dir }
}

impl Scene {
    fn market(&self, config: SimConfig, shards: (usize, usize)) -> (SimMarket, usize, usize) {
        let mut market = SimMarket::new(config, &self.scratch);
        market.shards = shards.0;
        let origin = market.add_node();
        for metainfo in &self.all {
            market.place(origin, metainfo, &self.source);
            let add = add_of(metainfo, Place::InPlace("in place".into()), &[]);
            market.add(origin, AddListing { known_complete: true, ..add });
        }
        market.shards = shards.1;
        let leech = market.add_node();
        (market, origin, leech)
    }

    fn fetch_all(&self, market: &mut SimMarket, node: usize, from: &[usize]) -> Vec<ListingId> {
        let peers: Vec<SocketAddr> = from.iter().map(|&node| market.world.addr(node)).collect();
        let add = |metainfo| add_of(metainfo, Place::Owned("owned".into()), &peers);
        self.all.iter().map(|metainfo| market.add(node, add(metainfo))).collect()
    }

    fn complete_all(
        &self,
        market: &mut SimMarket,
        node: usize,
        ids: &[ListingId],
        limit: Duration,
    ) -> bool {
        let end = market.world.elapsed() + limit;
        loop {
            let is_done = |market: &mut SimMarket, id: &ListingId| {
                let status = market.status(node, *id).expect("it was added");
                status.piece_count > 0 && status.durable_pieces == status.piece_count
            };
            if ids.iter().all(|id| is_done(market, id)) {
                return true;
            }
            if market.world.elapsed() >= end {
                return false;
            }
            market.world.run_for(Duration::from_millis(20));
        }
    }

    fn assert_whole(&self, market: &SimMarket, node: usize, what: &str) {
        for metainfo in &self.all {
            let wrong = market.wrong_files(node, metainfo, &self.source);
            assert!(wrong.is_empty(), "wrong bytes in {wrong:?}: {what}");
        }
    }
}

/// Four shards on one side and three on the other complete under faults of network and disk.
#[test]
fn shards_converge_under_faults() {
    let scene = scene(5);
    for seed in 0..30 {
        let mut config = SimConfig::new(8000 + seed);
        config.faults.reset_ppm = 2_000;
        config.faults.read_error_ppm = 5_000;
        config.faults.write_error_ppm = 20_000;
        config.faults.sync_error_ppm = 50_000;
        let (mut market, origin, leech) = scene.market(config, (3, 4));
        let ids = scene.fetch_all(&mut market, leech, &[origin]);
        let is_done = scene.complete_all(&mut market, leech, &ids, LIMIT);
        let explain = market.world.machine(leech).map(|set| {
            set.shards().iter().map(|shard| shard.explain()).collect::<Vec<_>>().join("\n")
        });
        assert!(is_done, "replay with seed {seed}: {}", explain.unwrap_or_default());
        scene.assert_whole(&market, leech, &format!("seed {seed}"));
        assert!(market.mesh(origin).moved_count() > 0, "nothing was moved");
    }
}

/// Killed or cut off from power again and again, each time with another number of shards: it converges,
/// and what one number of shards has claimed every other believes.
#[test]
fn what_is_acknowledged_survives_with_any_number_of_shards() {
    let scene = scene(4);
    for seed in 0..24 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(8200 + seed), (2, 4));
        market.world.set_upload_rate(origin, Some(3_000_000));
        let mut ids = scene.fetch_all(&mut market, leech, &[origin]);
        for (round, shards) in [1, 3, 4, 2].into_iter().enumerate() {
            let run = Duration::from_millis(50 + market.world.rng().range(0, 400));
            market.world.run_for(run);
            let durable: Vec<u32> =
                ids.iter().map(|&id| market.status(leech, id).unwrap().durable_pieces).collect();
            let is_even = (seed as usize + round).is_multiple_of(2);
            let kind = if is_even { Crash::Process } else { Crash::Power };
            market.shards = shards;
            market.crash(leech, kind);
            ids = scene.fetch_all(&mut market, leech, &[origin]);
            for (&id, was) in ids.iter().zip(durable) {
                let status = market.status(leech, id).unwrap();
                // What was claimed is had at once; what was in doubt beside it is being hashed.
                assert!(
                    status.durable_pieces >= was,
                    "seed {seed}, {kind:?}: {was} pieces were claimed, {status:?}"
                );
            }
        }
        assert!(scene.complete_all(&mut market, leech, &ids, LIMIT), "seed {seed}");
        scene.assert_whole(&market, leech, &format!("seed {seed}"));
        market.shards = 1 + (seed as usize % 4);
        market.crash(leech, Crash::Power);
        let ids = scene.fetch_all(&mut market, leech, &[]);
        assert!(scene.complete_all(&mut market, leech, &ids, LIMIT), "durable with seed {seed}");
    }
}

/// The shard that has the journal stops last: what the others have written until then is in it.
#[test]
fn a_stop_of_all_shards_is_clean() {
    let scene = scene(6);
    let (mut market, origin, leech) = scene.market(SimConfig::new(8300), (1, 3));
    market.world.set_upload_rate(origin, Some(2_000_000));
    let ids = scene.fetch_all(&mut market, leech, &[origin]);
    market.world.run_for(Duration::from_millis(400));
    for shard in 0..3 {
        market.command_shard(leech, shard, Command::Shutdown);
    }
    assert!(market.world.run_until(LIMIT, |world| !world.is_running(leech)));
    let stored: u64 = market.counters_of_shards(leech).iter().map(|it| it.stored_bytes.get()).sum();
    market.shards = 2;
    market.crash(leech, Crash::Power);
    let again = scene.fetch_all(&mut market, leech, &[]);
    market.world.run_for(Duration::from_secs(5));
    let hashed: u64 = market.counters_of_shards(leech).iter().map(|it| it.hashed_bytes.get()).sum();
    assert_eq!(hashed, 0, "a clean stop leaves nothing in doubt");
    let mut had = 0;
    for id in again {
        had += market.status(leech, id).unwrap().have_bytes;
    }
    assert!(stored > 0 && had >= stored, "{had} of {stored} bytes written are believed");
    assert_eq!(ids.len(), 6);
}
