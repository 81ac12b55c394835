//! A torrent of which nothing but its hashes is known.

use super::*;
use crate::api::{ListingError, ListingState};
use crate::test_support::{TestDir, snapshot, tree};

/// Every way to name a torrent that has this view, by peers that have it whole.
fn by_hash(kind: Kind, identity: impl Fn(&Metainfo) -> Identity) {
    let dir = TestDir::new("magnet");
    let source = dir.path().join("source");
    tree(&source.join("data"), 1);
    let metainfo = torrent(&source.join("data"), kind, 32 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let into = dir.path().join("into");
    let add = |peers: &[SocketAddr]| AddListing {
        identity: identity(&metainfo),
        ..add_of(&metainfo, Place::Owned(into.clone()), peers)
    };
    let mut leech = Node::start(dir.path(), 2);
    let id = leech.engine.add(add(&[seed.addr()])).unwrap();
    leech.wait("metadata", |event| matches!(event, Event::MetadataReady { .. }));
    leech.wait_complete(id);
    assert_eq!(snapshot(&into), snapshot(&source));
    let learned = leech.engine.metainfo(id).unwrap();
    assert_eq!(learned.info().raw(), metainfo.info().raw());
    leech.engine.shutdown();
    drop(leech);
    // What was learned is kept: the next run needs nobody.
    let mut again = Node::start(dir.path(), 2);
    let id = again.engine.add(add(&[])).unwrap();
    again.wait_complete(id);
    again.engine.remove(id, false);
    again.wait("removal", |event| matches!(event, Event::Removed { .. }));
    again.engine.shutdown();
    assert!(snapshot(&dir.path().join("state-2/meta")).is_empty(), "and forgotten with it");
}

fn v1(metainfo: &Metainfo) -> [u8; 20] {
    metainfo.info().info_hash_v1().unwrap()
}

fn v2(metainfo: &Metainfo) -> [u8; 32] {
    metainfo.info().info_hash_v2().unwrap()
}

#[test]
fn a_v1_torrent_is_fetched_by_its_sha1() {
    by_hash(Kind::V1, |metainfo| Identity::V1(v1(metainfo)));
}

#[test]
fn the_v1_view_of_a_hybrid_is_fetched_by_its_sha1() {
    by_hash(Kind::Hybrid, |metainfo| Identity::V1(v1(metainfo)));
}

#[test]
fn a_v2_torrent_is_fetched_by_its_sha256() {
    by_hash(Kind::V2, |metainfo| Identity::V2(v2(metainfo)));
}

#[test]
fn a_hybrid_is_fetched_by_both_hashes() {
    by_hash(Kind::Hybrid, |metainfo| Identity::Both(v1(metainfo), v2(metainfo)));
}

/// The listing fails with a reason; the peer, who gave what it has, is not to blame.
#[track_caller]
fn fails(kind: Kind, identity: impl Fn(&Metainfo) -> Identity, reason: &str) {
    let dir = TestDir::new("magnet-fails");
    let source = dir.path().join("source");
    tree(&source.join("data"), 1);
    let metainfo = torrent(&source.join("data"), kind, 32 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let place = Place::Owned(dir.path().join("into"));
    let identity = identity(&metainfo);
    let add = AddListing { identity, ..add_of(&metainfo, place, &[seed.addr()]) };
    let id = leech.engine.add(add).unwrap();
    let event = leech.wait("failure", |event| matches!(event, Event::Failed { .. }));
    let Event::Failed { error: ListingError::BadMetainfo { reason: said }, .. } = event else {
        panic!("{event:?}");
    };
    assert!(said.contains(reason), "{said}");
    assert!(!leech.seen.iter().any(|event| matches!(event, Event::PeerBanned { .. })));
    let state = leech.engine.listing_status(id).unwrap().state;
    assert!(matches!(state, ListingState::Failed { .. }));
}

#[test]
fn two_hashes_of_two_torrents_are_told_apart_from_a_lying_peer() {
    fails(Kind::Hybrid, |metainfo| Identity::Both([7; 20], v2(metainfo)), "two torrents");
}

/// The SHA-1 of an info dict that has no v1 view names nothing: once it was taken for a bug of ours.
#[test]
fn the_sha1_of_a_torrent_without_a_v1_view_is_refused() {
    use sha1::{Digest, Sha1};
    // The peer is asked by the name that it knows, so that it answers at all.
    fails(
        Kind::V2,
        |metainfo| Identity::Both(Sha1::digest(metainfo.info().raw()).into(), v2(metainfo)),
        "lacks the view",
    );
}
