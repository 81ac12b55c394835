//! Whole shards over a simulated network and simulated disks, in virtual time: the very code that runs in
//! production, under faults that no real machine would show on demand.
//!
//! The disk shortens, reorders, fails and tears operations; the network cuts, delays and resets. The
//! engine's own tests look at single behaviours in this world; here whole transfers go through all of it
//! at once. Replay a failure with the seed that it names.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;
use ringseed_engine::io::sim::{Crash, SimConfig};
use ringseed_engine::offline::{self, CreateOptions};
use ringseed_engine::testing::SimMarket;
use ringseed_engine::{AddListing, Identity, ListingId, ListingState, Place};
use ringseed_tests::data::write_mixed_tree;
use ringseed_tests::scratch::Scratch;

/// Virtual time after which a transfer has failed.
const LIMIT: Duration = Duration::from_secs(900);
/// Seeds of each world.
const SEEDS: std::ops::Range<u64> = 0..100;

struct Scene {
    scratch: Scratch,
    source: PathBuf,
    metainfo: Arc<Metainfo>,
}

impl Scene {
    fn new(kind: Kind) -> Scene {
        let scratch = Scratch::new("transfer");
        let source = scratch.join("source");
        write_mixed_tree(&source.join("tree"), 71);
        let options =
            CreateOptions { kind, piece_len_bytes: Some(64 << 10), ..CreateOptions::default() };
        let made = offline::create(&source.join("tree"), &options, &|_, _| {}).expect("a torrent");
        Scene { source, metainfo: Arc::new(made.metainfo), scratch }
    }

    fn listing(&self, place: Place, peers: Vec<SocketAddr>) -> AddListing {
        AddListing {
            identity: Identity::Metainfo(self.metainfo.clone()),
            place,
            verify_v1: true,
            known_complete: false,
            size_max_bytes: None,
            peers,
            private_to_market: false,
        }
    }

    /// Two shards; the first holds everything.
    fn market(&self, config: SimConfig) -> (SimMarket, usize, usize) {
        let mut market = SimMarket::new(config, &self.scratch.join("sim"));
        let origin = market.add_node();
        market.place(origin, &self.metainfo, &self.source);
        let add = self.listing(Place::InPlace("in place".into()), Vec::new());
        market.add(origin, AddListing { known_complete: true, ..add });
        let leech = market.add_node();
        (market, origin, leech)
    }

    fn fetch(&self, market: &mut SimMarket, leech: usize, origin: usize) -> ListingId {
        let peers = vec![market.world.addr(origin)];
        market.add(leech, self.listing(Place::Owned("owned".into()), peers))
    }
}

/// Everything that can go wrong without anybody dying, all at once, at rates that no machine survives
/// for long in truth.
fn faulty(seed: u64) -> SimConfig {
    let mut config = SimConfig::new(seed);
    config.faults.reset_ppm = 1_000;
    config.faults.read_error_ppm = 2_000;
    config.faults.write_error_ppm = 10_000;
    config.faults.sync_error_ppm = 20_000;
    config
}

/// Two shards complete a transfer under a hundred seeds of short, reordered, failed and torn operations,
/// although the receiver is killed, or its power cut, in the middle.
#[test]
fn two_shards_complete_a_transfer_under_a_hundred_seeds() {
    let scene = Scene::new(Kind::Hybrid);
    for seed in SEEDS {
        let (mut market, origin, leech) = scene.market(faulty(seed));
        market.world.set_upload_rate(origin, Some(6_000_000));
        let mut id = scene.fetch(&mut market, leech, origin);
        let until = Duration::from_millis(20 + market.world.rng().range(0, 600));
        let mut is_done = market.run_until_complete(leech, id, until);
        if !is_done {
            let crash = if seed % 2 == 0 { Crash::Process } else { Crash::Power };
            market.crash(leech, crash);
            id = scene.fetch(&mut market, leech, origin);
            is_done = market.run_until_complete(leech, id, LIMIT);
        }
        let status = market.status(leech, id);
        let is_seeding = status
            .as_ref()
            .is_some_and(|one| matches!(one.state, ListingState::Seeding | ListingState::Cold));
        assert!(is_done || is_seeding, "replay with seed {seed}: {status:?}");
        let wrong = market.wrong_files(leech, &scene.metainfo, &scene.source);
        assert!(wrong.is_empty(), "wrong bytes in {wrong:?}: replay with seed {seed}");
    }
}

/// The origin dies and comes back: the receiver goes on with what it has.
#[test]
fn a_transfer_survives_its_origin() {
    let scene = Scene::new(Kind::Hybrid);
    for seed in 0..20 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(500 + seed));
        market.world.set_upload_rate(origin, Some(4_000_000));
        let id = scene.fetch(&mut market, leech, origin);
        let is_done = market.run_until_complete(leech, id, Duration::from_millis(300));
        assert!(!is_done, "the origin was to die in the middle: seed {seed}");
        let held = market.status(leech, id).map_or(0, |status| status.have_bytes);
        market.crash(origin, if seed % 2 == 0 { Crash::Process } else { Crash::Power });
        let add = scene.listing(Place::InPlace("in place".into()), Vec::new());
        market.add(origin, add);
        assert!(market.run_until_complete(leech, id, LIMIT), "replay with seed {seed}");
        let wrong = market.wrong_files(leech, &scene.metainfo, &scene.source);
        assert!(wrong.is_empty(), "wrong bytes in {wrong:?}: replay with seed {seed}");
        let total = scene.metainfo.info().geometry().payload_len();
        let sent = market.counters(origin).payload_sent_bytes.get();
        // The second life of the origin sends the rest, and what was on its way when it died.
        let on_its_way = 2 << 20;
        assert!(
            sent <= total - held + on_its_way,
            "{sent} sent, {held} of {total} held: seed {seed}"
        );
    }
}

/// An origin came back without its info dict and asked its own leeches for it. They were connected by
/// then, so no bitfield told them what it had, and they waited for it for ever.
#[test]
fn an_origin_that_asks_for_its_info_dict_says_what_it_has() {
    let scene = Scene::new(Kind::Hybrid);
    for seed in 0..10 {
        let (mut market, origin, leech) = scene.market(SimConfig::new(900 + seed));
        market.world.set_upload_rate(origin, Some(4_000_000));
        let id = scene.fetch(&mut market, leech, origin);
        let is_done = market.run_until_complete(leech, id, Duration::from_millis(300));
        assert!(!is_done, "the origin was to die in the middle: seed {seed}");
        market.crash(origin, Crash::Process);
        let peers = vec![market.world.addr(leech)];
        let hash = scene.metainfo.info().info_hash_v2().expect("a hybrid");
        let add = scene.listing(Place::Owned("owned".into()), peers);
        market.add(origin, AddListing { identity: Identity::V2(hash), ..add });
        assert!(market.run_until_complete(leech, id, LIMIT), "replay with seed {seed}");
        let wrong = market.wrong_files(leech, &scene.metainfo, &scene.source);
        assert!(wrong.is_empty(), "wrong bytes in {wrong:?}: replay with seed {seed}");
    }
}
