//! The journal of a running shard: its logs are closed and checkpoints made while it works, and
//! whatever ends it in between loses nothing that was claimed.

use super::*;
use crate::io::sim::{Crash, SimConfig};
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise};
use crate::testing::SimMarket;

/// Virtual time after which a small transfer has failed.
const LIMIT: Duration = Duration::from_secs(600);
/// So short that a log is closed with nearly every batch.
const LOG_BYTES_MAX: u64 = 600;

struct Scene {
    _dir: TestDir,
    source: std::path::PathBuf,
    scratch: std::path::PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene() -> Scene {
    let dir = TestDir::new("journal-sim");
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("data")).unwrap();
    std::fs::write(source.join("data/a.bin"), noise(2_000_001, 3)).unwrap();
    std::fs::write(source.join("data/b.bin"), noise(70_001, 4)).unwrap();
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 16 << 10);
    Scene { source, scratch: dir.path().join("scratch"), metainfo, _dir: dir }
}

impl Scene {
    fn market(&self, seed: u64) -> (SimMarket, usize, usize) {
        let mut market = SimMarket::new(SimConfig::new(seed), &self.scratch);
        let origin = market.add_node();
        market.place(origin, &self.metainfo, &self.source);
        let add = add_of(&self.metainfo, Place::InPlace("in place".into()), &[]);
        market.add(origin, AddListing { known_complete: true, ..add });
        market.journal_log_bytes_max = LOG_BYTES_MAX;
        let leech = market.add_node();
        (market, origin, leech)
    }

    fn fetch(&self, market: &mut SimMarket, node: usize, from: &[usize]) -> ListingId {
        let peers: Vec<SocketAddr> = from.iter().map(|&node| market.world.addr(node)).collect();
        market.add(node, add_of(&self.metainfo, Place::Owned("owned".into()), &peers))
    }
}

fn names(market: &SimMarket, node: usize, prefix: &str) -> usize {
    let names = market.world.files(node).filter_map(|(_, rel)| rel.to_str());
    names.filter(|name| name.starts_with(prefix) && !name.ends_with(".new")).count()
}

/// The journal was made short at start only: one run that wrote more of it than a start reads made the
/// next start refuse. It is made short while it is written, and a start reads little.
#[test]
fn a_long_run_leaves_a_short_journal() {
    let scene = scene();
    let (mut market, _, node) = scene.market(11);
    market.place(node, &scene.metainfo, &scene.source);
    let add = add_of(&scene.metainfo, Place::InPlace("in place".into()), &[]);
    let add = AddListing { known_complete: true, ..add };
    let mut id = None;
    for round in 0..300 {
        let added = market.add(node, add.clone());
        assert!(market.run_until_complete(node, added, LIMIT));
        if round % 7 != 6 {
            market.command(node, Command::Remove(added, false));
            market.world.run_for(Duration::from_millis(20));
        } else {
            // A restart now and then is a log more.
            market.crash(node, Crash::Process);
            let again = market.add(node, add.clone());
            assert!(market.run_until_complete(node, again, LIMIT));
            market.command(node, Command::Remove(again, false));
            market.world.run_for(Duration::from_millis(20));
        }
        id = Some(added);
        // A crash may have come before the oldest was removed.
        assert!(names(&market, node, "checkpoint-") <= 3, "round {round}");
        let all: Vec<_> = market.world.files(node).map(|(_, rel)| rel).collect();
        assert!(
            names(&market, node, "log-") <= 6,
            "round {round}: {all:?} {}",
            market.replayed_bytes
        );
    }
    assert!(id.is_some());
    let unfinished = market
        .world
        .files(node)
        .filter(|(_, rel)| rel.as_os_str().to_string_lossy().ends_with(".new"));
    assert!(unfinished.count() <= 1, "unfinished checkpoints are removed");
    let last = market.add(node, add.clone());
    assert!(market.run_until_complete(node, last, LIMIT));
    market.crash(node, Crash::Power);
    // One listing of 200 bytes or so, and at most a log that was about to be closed.
    assert!(market.replayed_bytes < 4 * LOG_BYTES_MAX, "{} bytes read", market.replayed_bytes);
    let total = scene.metainfo.info().geometry().piece_count();
    let id = market.add(node, AddListing { known_complete: false, ..add });
    market.world.run_for(Duration::from_millis(1));
    assert_eq!(market.status(node, id).unwrap().durable_pieces, total, "nothing is hashed again");
}

/// A crash at any moment, of any kind, while logs are closed and checkpoints made: what was durable is
/// durable, and nothing is believed that is not there.
#[test]
fn a_crash_between_any_two_steps_loses_nothing_that_was_claimed() {
    let scene = scene();
    let mut checkpoints = 0;
    for seed in 0..60 {
        let (mut market, origin, leech) = scene.market(2000 + seed);
        market.world.faults_mut().sync_error_ppm = if seed % 3 == 0 { 30_000 } else { 0 };
        market.world.faults_mut().write_error_ppm = if seed % 3 == 1 { 20_000 } else { 0 };
        market.world.set_upload_rate(origin, Some(500_000));
        let mut id = scene.fetch(&mut market, leech, &[origin]);
        for crash in 0..6 {
            let run = Duration::from_micros(market.world.rng().range(100_000, 1_200_000));
            if market.run_until_complete(leech, id, run) {
                break;
            }
            let status = market.status(leech, id).unwrap();
            let kind = if (seed + crash) % 2 == 0 { Crash::Process } else { Crash::Power };
            checkpoints += names(&market, leech, "checkpoint-");
            market.crash(leech, kind);
            id = scene.fetch(&mut market, leech, &[]);
            // What cannot be claimed is hashed again, which takes a moment.
            market.world.run_for(Duration::from_secs(5));
            let again = market.status(leech, id).unwrap();
            assert!(
                again.durable_pieces >= status.durable_pieces,
                "seed {seed}: {} of {} durable pieces left after {kind:?}",
                again.durable_pieces,
                status.durable_pieces
            );
            market.command(leech, Command::SetPeers(id, vec![market.world.addr(origin)]));
        }
        assert!(
            market.run_until_complete(leech, id, LIMIT) || {
                let state = market.status(leech, id).unwrap().state;
                matches!(state, ListingState::Seeding | ListingState::Cold)
            }
        );
        let wrong = market.wrong_files(leech, &scene.metainfo, &scene.source);
        assert!(wrong.is_empty(), "seed {seed}: wrong bytes in {wrong:?}");
    }
    assert!(checkpoints > 40, "{checkpoints} checkpoints seen");
}

/// A disk that is full when a log is closed: the checkpoint waits, and what is recorded meanwhile is
/// found by the next start.
#[test]
fn a_full_disk_at_a_checkpoint_loses_nothing() {
    let scene = scene();
    let (mut market, origin, leech) = scene.market(5);
    market.world.set_upload_rate(origin, Some(400_000));
    let id = scene.fetch(&mut market, leech, &[origin]);
    market.world.run_for(Duration::from_millis(1500));
    market.world.faults_mut().write_error_ppm = 400_000;
    market.world.run_for(Duration::from_secs(4));
    let status = market.status(leech, id).unwrap();
    market.world.faults_mut().write_error_ppm = 0;
    market.crash(leech, Crash::Power);
    let id = scene.fetch(&mut market, leech, &[]);
    market.world.run_for(Duration::from_secs(5));
    assert!(status.durable_pieces > 0);
    assert!(market.status(leech, id).unwrap().durable_pieces >= status.durable_pieces);
}

/// The same on a real disk.
#[test]
fn a_real_engine_makes_checkpoints_while_it_runs() {
    let scene = scene();
    let into = scene.scratch.join("into");
    let seed = Node::start(&scene.scratch, 1);
    seed.seed(&scene.metainfo, &scene.source);
    let small = |config: &mut Config| config.journal_log_bytes_max = LOG_BYTES_MAX;
    let mut leech = Node::start_on(&scene.scratch, 2, IoDriver::Auto, small);
    let mut id = None;
    for _ in 0..12 {
        if let Some(id) = id.take() {
            leech.engine.remove(id, true);
            leech.wait("removal", |event| matches!(event, Event::Removed { .. }));
        }
        let added = leech.fetch(&scene.metainfo, &into, &[seed.addr()]);
        leech.wait_complete(added);
        id = Some(added);
    }
    leech.engine.shutdown();
    drop(leech);
    let names = std::fs::read_dir(scene.scratch.join("state-2")).unwrap();
    let names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let of = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count();
    assert!((1..=2).contains(&of("checkpoint-")) && of("log-") <= 5, "{names:?}");
    let leech = Node::start_on(&scene.scratch, 2, IoDriver::Auto, small);
    let id = leech.fetch(&scene.metainfo, &into, &[]);
    assert_eq!(
        leech.engine.listing_status(id).unwrap().durable_pieces,
        scene.metainfo.info().geometry().piece_count()
    );
}
