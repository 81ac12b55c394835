//! Bounds are those of the configuration.

use ringseed_core::wire::HashRequest;

use super::hand::{Hand, request, sparse_seed_with};
use super::*;

/// A seed of 64 MiB in pieces of an extent.
fn seed(change: impl FnOnce(&mut Config)) -> Hand {
    let make = |source: &Path| {
        std::fs::create_dir_all(source).unwrap();
        std::fs::File::create(source.join("data")).unwrap().set_len(64 << 20).unwrap();
    };
    Hand::of(make, 256 << 10, change)
}

#[test]
fn a_disk_has_no_more_in_flight_than_the_configuration_says() {
    for ops in [3, 8] {
        let mut hand = seed(|config| config.device_ops_max = ops);
        hand.is_disk_stuck = true;
        for peer in 0..4 {
            let sock = hand.join(&format!("10.0.0.{peer}"));
            (0..8).for_each(|at| hand.hear(sock, &request(peer * 8 + at, 0)));
        }
        hand.pass(Duration::from_millis(100));
        assert_eq!(hand.stuck.len(), ops as usize);
    }
}

/// What is in flight counts for the device that the folder of its listing is on.
#[test]
fn each_disk_has_a_budget_of_its_own() {
    let mut hand = seed(|_| {});
    hand.is_disk_stuck = true;
    let sock = hand.join("10.0.0.1");
    hand.hear(sock, &request(0, 0));
    let device = ringseed_sys::dir::DirHandle::open(&hand.source()).unwrap().device();
    assert_eq!(hand.shard.busy_devices(), [device]);
}

/// Of a check there is a quarter of a disk's operations in flight at most, so that nobody who is served waits for
/// much. Leaves that a peer waits for may take half.
#[test]
fn who_waits_for_leaves_goes_before_a_check() {
    let mut hand = sparse_seed_with(Kind::V2, 64 << 20, |config| config.device_ops_max = 8);
    let pieces_root = hand.metainfo.info().files().next().unwrap().pieces_root.unwrap();
    let (base_layer, index, length, proof_layers) = (0, 0, 512, 0);
    let asked = HashRequest { pieces_root, base_layer, index, length, proof_layers };
    // The sidecar is looked at first, and says that they are lost.
    assert!(hand.shard.leaf_answer(ListingId(1), asked).is_some());
    hand.turn();
    hand.is_disk_stuck = true;
    // Tasks of a file that is not open yet count from when it is.
    let peer = hand.join("10.0.0.1");
    hand.is_disk_stuck = false;
    hand.hear(peer, &request(0, 0));
    hand.is_disk_stuck = true;
    let asked = HashRequest { index: 512, ..asked };
    assert!(hand.shard.leaves_again(ListingId(1), asked));
    hand.turn();
    assert_eq!(hand.stuck.len(), 4);
}

#[test]
fn a_peer_has_no_more_requests_waiting_than_the_configuration_says() {
    for (requests, is_flood) in [(16, true), (512, false)] {
        let mut hand = seed(|config| config.requests_per_peer_max = requests);
        let deaf = hand.join("10.0.0.1");
        hand.takers.remove(&deaf);
        (0..200).for_each(|at| hand.hear(deaf, &request(at / 16, at % 16 * 16_384)));
        assert_eq!(!hand.is_open(deaf), is_flood, "{requests}");
        assert_eq!(hand.closed_by("flood-requests"), u64::from(is_flood));
    }
}

#[test]
fn bounds_that_would_let_nothing_or_anything_through_are_refused() {
    let refused = |change: fn(&mut Config)| {
        let mut config = Config::new("state", [7; 20]);
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(refused(|config| config.device_ops_max = 0).contains("device_ops_max"));
    assert!(refused(|config| config.requests_per_peer_max = 0).contains("requests_per_peer_max"));
    assert!(refused(|config| config.requests_per_peer_max = 4097).contains("4096"));
}
