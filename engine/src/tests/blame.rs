//! Liars among honest peers, in a simulated world: they are found, and nobody else is blamed.

use std::fs;

use super::*;
use crate::io::sim::SimConfig;
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise};
use crate::testing::SimMarket;

struct Scene {
    _dir: TestDir,
    source: std::path::PathBuf,
    scratch: std::path::PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene(kind: Kind, len: usize, piece_len: u64) -> Scene {
    let dir = TestDir::new("blame");
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("data")).unwrap();
    fs::write(source.join("data/a.bin"), noise(len, 5)).unwrap();
    fs::write(source.join("data/b.bin"), noise(len / 9, 6)).unwrap();
    let metainfo = torrent(&source.join("data"), kind, piece_len);
    Scene { source, scratch: dir.path().join("scratch"), metainfo, _dir: dir }
}

struct Outcome {
    is_complete: bool,
    /// Nodes whose peer was banned.
    banned: Vec<usize>,
    wasted_bytes: u64,
    total_bytes: u64,
}

/// Honest sources and one that flips a bit in one of `lies_one_in` blocks, at a higher rate than they.
fn run(scene: &Scene, seed: u64, honest: usize, lies_one_in: u64) -> (Outcome, usize) {
    let mut market = SimMarket::new(SimConfig::new(seed), &scene.scratch);
    let sources: Vec<usize> = (0..=honest).map(|_| market.add_node()).collect();
    for &source in &sources {
        market.place(source, &scene.metainfo, &scene.source);
        if scene.metainfo.info().geometry().kind().has_v2() {
            market.place_leaves(source, &scene.metainfo, &scene.source);
        }
        let place = Place::InPlace("in place".into());
        let add = add_of(&scene.metainfo, place, &[]);
        market.add(source, AddListing { known_complete: true, ..add });
        market.world.set_upload_rate(source, Some(500_000));
    }
    let liar = sources[seed as usize % sources.len()];
    market.world.set_lies(liar, lies_one_in);
    market.world.set_upload_rate(liar, Some(20_000_000));
    let leech = market.add_node();
    let peers: Vec<SocketAddr> = sources.iter().map(|&node| market.world.addr(node)).collect();
    let add = add_of(&scene.metainfo, Place::Owned("owned".into()), &peers);
    let id = market.add(leech, add);
    let (mut is_complete, mut banned) = (false, Vec::new());
    for _ in 0..600 {
        market.world.run_for(Duration::from_millis(500));
        for event in market.events(leech) {
            match event {
                Event::Complete { .. } => is_complete = true,
                Event::PeerBanned { peer_id, .. } => banned.push(usize::from(peer_id[19])),
                _ => {}
            }
        }
        if is_complete {
            break;
        }
    }
    assert!(market.wrong_files(leech, &scene.metainfo, &scene.source).is_empty());
    let wasted_bytes = market.status(leech, id).unwrap().wasted_bytes;
    let total_bytes = scene.metainfo.info().geometry().payload_len();
    (Outcome { is_complete, banned, wasted_bytes, total_bytes }, liar)
}

/// One of twenty flips one bit in one percent of the blocks: found, no honest peer banned, and at most
/// five percent of the bytes wasted, though pieces be few and long: whoever has a v2 view gives the leaves
/// ahead, and a bad block costs itself alone.
#[test]
fn one_liar_among_twenty_is_found_at_little_cost() {
    for (kind, piece_len) in
        [(Kind::V2, 64 << 10), (Kind::Hybrid, 512 << 10), (Kind::V1, 128 << 10)]
    {
        let scene = scene(kind, 16 << 20, piece_len);
        let (mut wasted, mut total, mut found) = (0, 0, 0);
        for seed in 0..6 {
            let (outcome, liar) = run(&scene, 4000 + seed, 19, 100);
            assert!(outcome.is_complete, "seed {seed} of {kind:?}");
            let is_honest = |&node: &usize| node != liar;
            assert!(
                !outcome.banned.iter().any(is_honest),
                "seed {seed} of {kind:?}: {:?}",
                outcome.banned
            );
            found += u32::from(outcome.banned.contains(&liar));
            wasted += outcome.wasted_bytes;
            total += outcome.total_bytes;
        }
        assert!(found >= 5, "{kind:?}: found in {found} of 6 runs");
        let share = wasted as f64 / total as f64;
        eprintln!("{kind:?}: {:.2} % wasted", share * 100.0);
        assert!(share <= 0.05, "{kind:?}: {:.2} % wasted", share * 100.0);
    }
}

/// A peer that lies in every block is gone after three proofs, whatever the pieces' length, and among
/// pieces too long for the memory as well.
#[test]
fn who_always_lies_is_gone_after_three_proofs() {
    for (kind, piece_len) in [(Kind::V1, 256 << 10), (Kind::V2, 256 << 10), (Kind::V1, 4 << 20)] {
        let scene = scene(kind, 12 << 20, piece_len);
        for seed in 0..3 {
            let (outcome, liar) = run(&scene, 5000 + seed, 2, 1);
            assert!(outcome.is_complete, "seed {seed} of {kind:?}, {piece_len}");
            assert_eq!(outcome.banned, [liar], "seed {seed} of {kind:?}, {piece_len}");
        }
    }
}

/// Who is banned is neither dialled nor let in for a day, however often it tries, and then has its chance
/// again. One who has that listing alone is not kept waiting for longer than that.
#[test]
fn a_ban_lasts_a_day() {
    const HOUR: Duration = Duration::from_secs(3600);
    let scene = scene(Kind::V1, 1 << 20, 64 << 10);
    let mut market = SimMarket::new(SimConfig::new(3), &scene.scratch);
    let [liar, leech] = [(); 2].map(|()| market.add_node());
    market.place(liar, &scene.metainfo, &scene.source);
    market.world.set_lies(liar, 1);
    let in_place = add_of(&scene.metainfo, Place::InPlace("in place".into()), &[]);
    market.add(liar, AddListing { known_complete: true, ..in_place });
    let peers = [market.world.addr(liar)];
    let id = market.add(leech, add_of(&scene.metainfo, Place::Owned("owned".into()), &peers));
    let bans = |market: &mut SimMarket| -> usize {
        let events = market.events(leech);
        events.iter().filter(|event| matches!(event, Event::PeerBanned { .. })).count()
    };
    market.world.run_for(Duration::from_secs(60));
    assert_eq!(bans(&mut market), 1);
    let received = |market: &SimMarket| market.counters(leech).received_bytes.get();
    let before = received(&market);
    for hour in 1..24 {
        // As if a user or a market named it anew.
        market.command(leech, Command::SetPeers(id, peers.to_vec()));
        market.world.run_for(if hour == 23 { HOUR - Duration::from_secs(120) } else { HOUR });
        assert_eq!(market.status(leech, id).unwrap().peers, 0, "hour {hour}");
    }
    assert_eq!((bans(&mut market), received(&market)), (0, before));
    market.world.run_for(HOUR + Duration::from_secs(120));
    assert_eq!(bans(&mut market), 1, "it was not met again");
    assert!(received(&market) > before);
}

/// Honest peers alone, on links that cut and disks that fail to write: nobody is ever banned.
#[test]
fn honest_peers_are_never_banned() {
    for (kind, piece_len) in [(Kind::V1, 1 << 20), (Kind::Hybrid, 128 << 10)] {
        let scene = scene(kind, 6 << 20, piece_len);
        for seed in 0..10 {
            let mut config = SimConfig::new(6000 + seed);
            config.faults.reset_ppm = 3_000;
            config.faults.write_error_ppm = 5_000;
            config.faults.sync_error_ppm = 20_000;
            let mut market = SimMarket::new(config, &scene.scratch);
            let nodes: Vec<usize> = (0..4).map(|_| market.add_node()).collect();
            market.place(nodes[0], &scene.metainfo, &scene.source);
            market.world.set_upload_rate(nodes[0], Some(4_000_000));
            let all: Vec<SocketAddr> = nodes.iter().map(|&node| market.world.addr(node)).collect();
            let in_place = add_of(&scene.metainfo, Place::InPlace("in place".into()), &[]);
            market.add(nodes[0], AddListing { known_complete: true, ..in_place });
            let add = add_of(&scene.metainfo, Place::Owned("owned".into()), &all);
            let ids: Vec<_> =
                nodes[1..].iter().map(|&node| market.add(node, add.clone())).collect();
            for second in 0.. {
                market.world.run_for(Duration::from_secs(1));
                for &node in &nodes {
                    let events = market.events(node);
                    let is_ban = |event: &Event| matches!(event, Event::PeerBanned { .. });
                    assert!(!events.iter().any(is_ban), "seed {seed} of {kind:?}: {events:?}");
                }
                let is_done = |(&node, &id): (&usize, &ListingId)| {
                    market.status(node, id).is_some_and(|status| {
                        matches!(status.state, ListingState::Seeding | ListingState::Cold)
                    })
                };
                if nodes[1..].iter().zip(&ids).all(is_done) {
                    break;
                }
                assert!(second < 600, "seed {seed} of {kind:?}");
            }
        }
    }
}
