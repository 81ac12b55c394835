//! Whole engines on loopback: what the suite says of operations must carry a swarm.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;

use super::*;
use crate::offline::{self, CreateOptions};
use crate::{AddListing, Config, Engine, Event, Identity, IoDriver, Place};

/// A loaded machine of two cores still makes it in a third of this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each torrent: one file of many pieces, and small ones of odd lengths.
const FILES: [(&str, usize); 5] =
    [("long.bin", 9_000_011), ("a", 1), ("b", 16_385), ("deep/c", 70_001), ("d", 262_144)];

/// Torrents of every kind go from one engine to another, each of two shards, so that sockets move from
/// driver to driver as well.
pub fn torrents_go_from_engine_to_engine(driver: IoDriver) {
    let folder = real::fresh_folder();
    let (seed, _events) = engine(&folder.join("seed"), driver, 1);
    let (leech, events) = engine(&folder.join("leech"), driver, 2);
    for status in [seed.status(), leech.status()] {
        assert_eq!(status.shards.len(), 2);
        assert!(status.shards.iter().all(|shard| shard.driver == real::name_of(driver)));
    }
    let addr = seed.local_addr().unwrap();
    let kinds = [Kind::V1, Kind::V2, Kind::Hybrid, Kind::V1, Kind::V2, Kind::Hybrid];
    let mut wanted = Vec::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        let source = folder.join(format!("source-{number}"));
        let data = source.join("data");
        write_tree(&data, number as u64);
        let piece_len_bytes = Some(256 << 10);
        let options = CreateOptions { kind, piece_len_bytes, ..CreateOptions::default() };
        let made = offline::create(&data, &options, &|_, _| {}).unwrap();
        let metainfo = Arc::new(made.metainfo);
        seed.add(listing(&metainfo, Place::InPlace(source), true, &[])).unwrap();
        let into = folder.join(format!("into-{number}"));
        leech.add(listing(&metainfo, Place::Owned(into.clone()), false, &[addr])).unwrap();
        wanted.push((data, into.join("data")));
    }
    wait_complete(&events, wanted.len());
    for (data, into) in wanted {
        assert!(tree(&data) == tree(&into), "{} is not as it was", into.display());
    }
    leech.shutdown();
    seed.shutdown();
    std::fs::remove_dir_all(folder).unwrap();
}

fn engine(state_dir: &Path, driver: IoDriver, number: u8) -> (Engine, Receiver<Event>) {
    let mut peer_id = *b"-RS0100-000000000000";
    peer_id[19] = number;
    let mut config = Config::new(state_dir.to_path_buf(), peer_id);
    config.io_driver = driver;
    config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    config.arena_len_bytes = 32 << 20;
    config.shards = Some(2);
    config.seed = Some(u64::from(number));
    Engine::start(config).unwrap()
}

fn listing(
    metainfo: &Arc<Metainfo>,
    place: Place,
    known_complete: bool,
    peers: &[SocketAddr],
) -> AddListing {
    AddListing {
        identity: Identity::Metainfo(metainfo.clone()),
        place,
        verify_v1: true,
        known_complete,
        size_max_bytes: None,
        peers: peers.to_vec(),
        private_to_market: false,
    }
}

fn wait_complete(events: &Receiver<Event>, count: usize) {
    let until = Instant::now() + PATIENCE;
    let mut complete = HashSet::new();
    let mut seen = Vec::new();
    while complete.len() < count {
        let left = until.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(event) => {
                if let Event::Complete { id } = event {
                    complete.insert(id);
                }
                seen.push(event);
            }
            Err(error) => panic!("{} of {count} complete: {error}; {seen:?}", complete.len()),
        }
    }
}

fn write_tree(root: &Path, seed: u64) {
    for (number, (name, len)) in FILES.into_iter().enumerate() {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = vec![0; len];
        pattern(seed * 100 + number as u64, 0, &mut bytes);
        std::fs::write(path, bytes).unwrap();
    }
}

fn tree(root: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    FILES.iter().map(|(name, _)| (*name, std::fs::read(root.join(name)).unwrap())).collect()
}
