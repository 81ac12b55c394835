//! How files lie on the disk, operation by operation: edges of files that share a sector's worth of torrent, short
//! files in one job, room reserved ahead. In a simulated world, so that power may be cut anywhere.

use super::sim::{Scene, assert_whole, scene_of};
use super::*;
use crate::io::sim::{Crash, SimConfig};
use crate::test_support::noise;
use crate::testing::SimMarket;

/// Virtual time after which a small transfer has failed.
const LIMIT: Duration = Duration::from_secs(600);
/// Longest file that is put in one job.
const PUT_LEN_MAX: usize = 128 << 10;

fn scene(kind: Kind, piece_len: u64, lens: &[usize]) -> Scene {
    scene_of(kind, piece_len, |data| {
        std::fs::create_dir_all(data).unwrap();
        for (at, &len) in lens.iter().enumerate() {
            std::fs::write(data.join(format!("{at:02}.bin")), noise(len, at as u64 + 1)).unwrap();
        }
    })
}

/// Files of a v1 torrent without pads that begin anywhere in a sector: what one piece has written to the sector that
/// it shares with the next survives whatever becomes of that one, and so does every tail. Nothing that was claimed
/// is taken back, and nothing is wrong in the end.
#[test]
fn edges_and_tails_of_odd_files_survive_crashes() {
    let lens = [900_001, 700_003, 131_073, 5, 600_001, 262_145, 40_001, 4097, 511];
    for piece_len in [32 << 10, 256 << 10] {
        let scene = scene(Kind::V1, piece_len, &lens);
        let mut claimed = 0;
        for seed in 0..24 {
            let what = format!("seed {seed}, pieces of {piece_len}");
            let mut config = SimConfig::new(9700 + seed);
            // A write may take longer than the next commit is away.
            config.disk_latency = (Duration::from_micros(50), Duration::from_millis(300));
            let (mut market, origin, leech) = scene.market(config);
            market.world.set_upload_rate(origin, Some(500_000));
            let mut id = scene.fetch(&mut market, leech, &[origin]);
            for round in 0..3 {
                let run = Duration::from_millis(800 + market.world.rng().range(0, 2500));
                market.world.run_for(run);
                let was = market.status(leech, id).unwrap().durable_pieces;
                claimed += was;
                let is_even = (seed + round).is_multiple_of(2);
                market.crash(leech, if is_even { Crash::Power } else { Crash::Process });
                id = scene.fetch(&mut market, leech, &[origin]);
                let status = market.status(leech, id).unwrap();
                assert!(status.durable_pieces >= was, "{what}: {was} were claimed, {status:?}");
            }
            // The power goes in the moment in which the last piece is claimed.
            assert!(
                market.run_until_complete(leech, id, LIMIT),
                "{what}: {:?}",
                market.status(leech, id)
            );
            market.crash(leech, Crash::Power);
            id = scene.fetch(&mut market, leech, &[]);
            assert!(market.run_until_complete(leech, id, LIMIT), "durable: {what}");
            assert_whole(&scene, &market, leech, &what);
        }
        assert!(claimed > 5, "{claimed} pieces were claimed before a crash");
    }
}

/// A short file is one job of a disk thread: made, given its length, written. Opening, reserving and writing apart
/// took three times what the copy does.
#[test]
fn a_short_file_is_one_job() {
    let lens: Vec<usize> = (0..60).map(|at| (at * 7919 + 1) % PUT_LEN_MAX + 1).collect();
    for kind in [Kind::Hybrid, Kind::V1] {
        let scene = scene(kind, 16 << 10, &lens);
        let (mut market, origin, leech) = scene.market(SimConfig::new(31));
        let id = scene.fetch(&mut market, leech, &[origin]);
        assert!(market.run_until_complete(leech, id, LIMIT));
        assert_whole(&scene, &market, leech, "short files");
        let calls = market.world.payload_calls(leech);
        // One of our own small files is given its length: the sidecar of a hybrid.
        assert_eq!((calls.puts, calls.opens_direct), (60, 0), "{calls:?}");
        assert_eq!(
            calls.puts_direct, 60,
            "synced behind it: past the page cache where that can be"
        );
        assert!(calls.allocations <= 1, "{calls:?}");
        // What two extents have parts of is written twice; what is padded lies in one.
        let extents = scene.metainfo.info().geometry().payload_len().div_ceil(256 << 10);
        let parts = if kind == Kind::V1 { extents } else { 60 / 4 };
        assert!(calls.writes <= parts, "{kind:?}: {calls:?} of {extents} extents");
    }
}

/// The room of a longer file is reserved before its first byte is written, and no write ever makes it longer.
#[test]
fn a_long_file_has_its_room_before_its_first_byte() {
    let lens: Vec<usize> = (0..9).map(|at| PUT_LEN_MAX + 1 + at * 77_777).collect();
    for kind in [Kind::Hybrid, Kind::V1] {
        let scene = scene(kind, 64 << 10, &lens);
        let (mut market, origin, leech) = scene.market(SimConfig::new(32));
        let id = scene.fetch(&mut market, leech, &[origin]);
        assert!(market.run_until_complete(leech, id, LIMIT));
        assert_whole(&scene, &market, leech, "long files");
        let calls = market.world.payload_calls(leech);
        assert_eq!((calls.puts, calls.opens_direct), (0, 9), "{calls:?}");
        // And one of our own: the sidecar of a hybrid.
        assert!((9..=10).contains(&calls.allocations), "{calls:?}");
        assert!(calls.writes > 9 && calls.writes_past_end == 0, "{calls:?}");
    }
}

/// Short files find no room for their bytes, wherever in the job that shows: the listing waits, what is had is
/// served, and it goes on alone.
#[test]
fn a_disk_that_is_full_in_the_middle_of_short_files_is_waited_for() {
    let lens: Vec<usize> = (0..60).map(|at| 20_000 + at * 517).collect();
    let scene = scene(Kind::Hybrid, 16 << 10, &lens);
    for seed in 0..6 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(600 + seed));
        market.world.set_disk_capacity(leech, Some(700_000 + seed * 100_003));
        let id = scene.fetch(&mut market, leech, &[origin]);
        assert!(!market.run_until_complete(leech, id, Duration::from_secs(20)));
        let status = market.status(leech, id).unwrap();
        assert_eq!(status.state, ListingState::Waiting { reason: WaitReason::DiskFull });
        // Another one gets what is here while it waits.
        let third = market.add_node();
        let copy = scene.fetch(&mut market, third, &[leech]);
        market.world.run_for(Duration::from_secs(20));
        let copied = market.status(third, copy).unwrap().have_bytes;
        assert!(copied > 0, "nothing is served");
        market.world.set_disk_capacity(leech, None);
        assert!(market.run_until_complete(leech, id, Duration::from_secs(60)), "seed {seed}");
        let end = market.world.now() + LIMIT;
        let left = |market: &mut SimMarket| {
            let status = market.status(third, copy).unwrap();
            status.piece_count - status.durable_pieces
        };
        while left(&mut market) > 0 && market.world.now() < end {
            market.world.run_for(Duration::from_millis(100));
        }
        assert_whole(&scene, &market, leech, &format!("seed {seed}"));
        assert_whole(&scene, &market, third, &format!("seed {seed}, the third"));
        // A kill after it finds everything durable.
        market.crash(leech, Crash::Power);
        let id = scene.fetch(&mut market, leech, &[]);
        assert!(market.run_until_complete(leech, id, LIMIT), "durable with seed {seed}");
    }
}
