//! Listings that nobody asks for: rows, until somebody does.

use std::path::{Path, PathBuf};

use super::*;
use crate::io::sim::{Crash, SimConfig};
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise};
use crate::testing::SimMarket;

/// Virtual time after which a small transfer has failed.
const LIMIT: Duration = Duration::from_secs(600);

struct Scene {
    _dir: TestDir,
    source: PathBuf,
    scratch: PathBuf,
    torrents: Vec<Arc<Metainfo>>,
}

/// Torrents of three files each, one of each kind in turn.
fn scene(count: u64) -> Scene {
    let dir = TestDir::new("cold");
    let source = dir.path().join("source");
    let torrents = (0..count).map(|number| {
        let root = source.join(format!("listing-{number}"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("a.bin"), noise(200_001, number * 3 + 1)).unwrap();
        std::fs::write(root.join("b.bin"), noise(70_001, number * 3 + 2)).unwrap();
        std::fs::write(root.join("c.bin"), noise(33_000, number * 3 + 3)).unwrap();
        let kind = [Kind::Hybrid, Kind::V1, Kind::V2][number as usize % 3];
        torrent(&root, kind, 16 << 10)
    });
    let torrents = torrents.collect();
    Scene { source, scratch: dir.path().join("scratch"), torrents, _dir: dir }
}

impl Scene {
    fn add(&self, number: usize, place: Place, peers: &[SocketAddr]) -> AddListing {
        add_of(&self.torrents[number], place, peers)
    }

    /// A node that holds everything, and the ids of its listings.
    fn seed(&self, market: &mut SimMarket) -> (usize, Vec<ListingId>) {
        let node = market.add_node();
        let ids = (0..self.torrents.len()).map(|number| {
            market.place(node, &self.torrents[number], &self.source);
            let add = self.add(number, Place::InPlace("in place".into()), &[]);
            market.add(node, AddListing { known_complete: true, ..add })
        });
        (node, ids.collect())
    }

    fn fetch(&self, market: &mut SimMarket, number: usize, from: usize) -> (usize, ListingId) {
        let node = market.add_node();
        let peers = [market.world.addr(from)];
        (node, market.add(node, self.add(number, Place::Owned("owned".into()), &peers)))
    }
}

/// Whoever adds what is complete gets rows: no listing is ever active until a handshake names it, by
/// any of its names, and then only that one is, for as long as somebody is there.
#[test]
fn what_is_added_complete_is_a_row_until_it_is_asked_for() {
    let scene = scene(9);
    let mut market = SimMarket::new(SimConfig::new(1), &scene.scratch);
    let (seed, ids) = scene.seed(&mut market);
    market.world.run_for(Duration::from_secs(2));
    let told = market.events(seed);
    let is_told = |id: &ListingId| {
        told.iter().any(|event| matches!(event, Event::Complete { id: of } if of == id))
    };
    assert!(ids.iter().all(is_told), "{told:?}");
    assert_eq!(market.counters(seed).listings_active.get(), 0);
    assert_eq!(market.counters(seed).listings.get(), 9);
    for (number, &id) in ids.iter().enumerate() {
        let status = market.status(seed, id).unwrap();
        assert_eq!(status.state, ListingState::Cold);
        assert_eq!(status.total_bytes, 303_002);
        assert_eq!(status.durable_pieces, status.piece_count);
        let began = market.world.now();
        let (node, fetched) = scene.fetch(&mut market, number, seed);
        assert!(market.run_until_complete(node, fetched, LIMIT));
        assert!(market.world.now() - began < Duration::from_secs(1), "activation is quick");
        assert!(market.wrong_files(node, &scene.torrents[number], &scene.source).is_empty());
        assert_eq!(market.counters(seed).listings_active.get(), 1);
        market.world.run_for(Duration::from_secs(200));
        assert_eq!(market.counters(seed).listings_active.get(), 0);
        assert_eq!(market.status(seed, id).unwrap().state, ListingState::Cold);
    }
}

/// What the state folder should hold of a cold listing is gone or torn: its info dict comes from the
/// very peer that asks, the data is checked, and then served.
#[test]
fn a_cold_listing_survives_the_loss_of_its_metainfo() {
    let scene = scene(3);
    for (number, torn) in [(0, false), (1, true), (2, true)] {
        let mut market = SimMarket::new(SimConfig::new(7), &scene.scratch);
        let (seed, ids) = scene.seed(&mut market);
        market.world.run_for(Duration::from_secs(2));
        let state = scene.scratch.join(format!("node-{seed}/state"));
        let kept: Vec<PathBuf> = market
            .world
            .files(seed)
            .filter(|(root, rel)| *root == state && rel.starts_with("meta"))
            .map(|(_, rel)| rel.to_path_buf())
            .collect();
        assert_eq!(kept.len(), 3);
        for path in &kept {
            if torn {
                assert!(market.world.rot(seed, &state, path, 150, 0x04));
            } else {
                market.world.place_file(seed, &state, path, Vec::new()).unwrap();
            }
        }
        let (node, id) = scene.fetch(&mut market, number, seed);
        assert!(
            market.run_until_complete(node, id, LIMIT),
            "{:?}",
            market.status(seed, ids[number])
        );
        assert!(market.wrong_files(node, &scene.torrents[number], &scene.source).is_empty());
        market.world.run_for(Duration::from_secs(200));
        assert_eq!(market.status(seed, ids[number]).unwrap().state, ListingState::Cold);
    }
}

/// A start hashes nothing that looks as it did, and serves at once; a file that was changed is checked
/// while the rest of its listing is served.
#[test]
fn a_start_hashes_only_what_has_changed() {
    let scene = scene(3);
    for owned in [false, true] {
        let mut market = SimMarket::new(SimConfig::new(3), &scene.scratch);
        let (seed, _) = scene.seed(&mut market);
        let node = market.add_node();
        let place = || match owned {
            true => Place::Owned("owned".into()),
            false => Place::InPlace("in place".into()),
        };
        let peers = [market.world.addr(seed)];
        for number in 0..3 {
            if !owned {
                market.place(node, &scene.torrents[number], &scene.source);
            }
            let id = market.add(node, scene.add(number, place(), &peers));
            assert!(market.run_until_complete(node, id, LIMIT));
        }
        market.world.run_for(Duration::from_secs(3));
        market.crash(node, Crash::Power);
        let readd = |market: &mut SimMarket| -> Vec<ListingId> {
            let ids = (0..3).map(|number| market.add(node, scene.add(number, place(), &[])));
            ids.collect()
        };
        let ids = readd(&mut market);
        market.world.run_for(Duration::from_secs(1));
        assert_eq!(market.counters(node).hashed_bytes.get(), 0, "owned: {owned}");
        assert_eq!(market.counters(node).listings_active.get(), 0);
        assert!(
            ids.iter().all(|&id| { market.status(node, id).unwrap().state == ListingState::Cold })
        );
        // One file of the first listing is written again, with a wrong byte, and of the same length.
        market.world.run_for(Duration::from_secs(3));
        market.crash(node, Crash::Process);
        let path = scene.torrents[0].info().files().next().unwrap().path().as_path().to_path_buf();
        let root = market.payload_dir(node);
        let mut bytes = market.world.file_content(node, &root, &path).unwrap().to_vec();
        bytes[100_000] ^= 1;
        market.world.place_file(node, &root, &path, bytes).unwrap();
        let id = market.add(node, scene.add(0, place(), &[]));
        let status = market.status(node, id).unwrap();
        assert!(status.have_pieces > 0, "what has not changed is served at once");
        assert!(status.have_pieces < status.piece_count, "what has changed is not");
        market.world.run_for(Duration::from_secs(5));
        let status = market.status(node, id).unwrap();
        if owned {
            assert_eq!(status.have_pieces, status.piece_count - 1, "{status:?}");
        } else {
            assert!(matches!(status.state, ListingState::Failed { .. }), "{status:?}");
        }
        let hashed = market.counters(node).hashed_bytes.get();
        assert!(hashed > 0 && hashed < 2 * 250_000, "{hashed} bytes hashed");
    }
}

/// The metainfo of what is fetched was written for each torrent before it began, which took as long as fetching
/// thousands of short ones. It is written when the listing goes cold, and wakes it from there.
#[test]
fn what_is_fetched_keeps_its_metainfo_when_it_goes_cold() {
    let scene = scene(1);
    let mut market = SimMarket::new(SimConfig::new(5), &scene.scratch);
    let (seed, _) = scene.seed(&mut market);
    let (node, id) = scene.fetch(&mut market, 0, seed);
    assert!(market.run_until_complete(node, id, LIMIT));
    let kept = |market: &SimMarket| {
        market.world.files(node).filter(|(_, rel)| rel.starts_with("meta")).count()
    };
    assert_eq!(kept(&market), 0);
    market.world.run_for(Duration::from_secs(200));
    assert_eq!(market.status(node, id).unwrap().state, ListingState::Cold);
    assert_eq!(kept(&market), 1);
    market.crash(seed, Crash::Power);
    let (last, id) = scene.fetch(&mut market, 0, node);
    assert!(market.run_until_complete(last, id, LIMIT));
    assert!(market.wrong_files(last, &scene.torrents[0], &scene.source).is_empty());
}

/// A cold listing is removed: with its data if it is ours, after which nothing of it is left; and a
/// peer that wakes it at the same moment finds nothing.
#[test]
fn a_cold_listing_is_removed_with_all_it_has() {
    let scene = scene(3);
    let mut market = SimMarket::new(SimConfig::new(9), &scene.scratch);
    let (seed, _) = scene.seed(&mut market);
    for number in 0..3 {
        for is_asked_for in [false, true] {
            let (node, id) = scene.fetch(&mut market, number, seed);
            assert!(market.run_until_complete(node, id, LIMIT));
            market.world.run_for(Duration::from_secs(200));
            assert_eq!(market.status(node, id).unwrap().state, ListingState::Cold);
            if is_asked_for {
                scene.fetch(&mut market, number, node);
                market.world.run_for(Duration::from_millis(5));
            }
            market.command(node, Command::Remove(id, true));
            market.world.run_for(Duration::from_secs(1));
            let events = market.events(node);
            let freed = events.iter().find_map(|event| match event {
                Event::Removed { id: of, freed_bytes } if *of == id => Some(*freed_bytes),
                _ => None,
            });
            assert_eq!(freed, Some(303_002));
            assert!(market.status(node, id).is_none());
            let left: Vec<&Path> = market.world.files(node).map(|(_, rel)| rel).collect();
            let is_journal = |path: &&Path| {
                let name = path.to_string_lossy();
                name.starts_with("log-") || name.starts_with("checkpoint-")
            };
            assert!(left.iter().all(is_journal), "{left:?}");
        }
    }
}

/// The same over a real folder: the metainfo is read back for whoever asks, and a fetch wakes it.
#[test]
fn a_real_engine_reads_cold_listings_back() {
    let scene = scene(3);
    let quick = |config: &mut Config| config.idle_before_cold = Duration::from_millis(50);
    let seed = Node::start_on(&scene.scratch, 1, IoDriver::Auto, quick);
    let ids: Vec<ListingId> =
        scene.torrents.iter().map(|metainfo| seed.seed(metainfo, &scene.source)).collect();
    for round in 0..2_u8 {
        for (number, (metainfo, &id)) in scene.torrents.iter().zip(&ids).enumerate() {
            let until = Instant::now() + PATIENCE;
            while seed.engine.listing_status(id).unwrap().state != ListingState::Cold {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(seed.engine.metainfo(id).unwrap().encode(), metainfo.encode());
            let mut leech = Node::start(&scene.scratch, 10 + 10 * round + number as u8);
            let into = scene.scratch.join(format!("into-{round}-{number}"));
            let id = leech.fetch(metainfo, &into, &[seed.addr()]);
            leech.wait_complete(id);
        }
    }
}
