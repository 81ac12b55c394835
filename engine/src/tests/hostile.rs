//! Peers and torrents that lie.

use std::fs;

use ringseed_core::metainfo::Info;

use super::*;
use crate::ListingError;
use crate::test_support::{TestDir, snapshot, tree};

/// A seed whose data has rotted by one bit: nothing wrong of it is accepted, and another seed helps out. In
/// v1 it is banned. With a v2 view it is asked for the leaves, finds out by itself, and withdraws the
/// piece.
#[test]
fn a_source_with_one_wrong_bit_does_no_harm_and_the_data_is_right() {
    for kind in [Kind::V1, Kind::V2, Kind::Hybrid] {
        let dir = TestDir::new("wrong-bit");
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        tree(&good.join("data"), 6);
        tree(&bad.join("data"), 6);
        let metainfo = torrent(&good.join("data"), kind, 64 << 10);
        let rotten = bad.join("data/big.bin");
        let mut bytes = fs::read(&rotten).unwrap();
        bytes[1_000_000] ^= 4;
        fs::write(&rotten, bytes).unwrap();
        let liar = Node::start(dir.path(), 1);
        let rotten_id = liar.seed(&metainfo, &bad);
        let mut leech = Node::start(dir.path(), 2);
        let into = dir.path().join("into");
        let id = leech.fetch(&metainfo, &into, &[liar.addr()]);
        if kind == Kind::V1 {
            let banned = leech.wait("ban", |event| matches!(event, Event::PeerBanned { .. }));
            assert!(matches!(banned, Event::PeerBanned { addr, .. } if addr == liar.addr()));
        } else {
            // On a machine that is too busy to hash a piece within the dispute, it is banned as in v1.
            let until = Instant::now() + PATIENCE;
            let mut is_banned = false;
            loop {
                let status = leech.engine.listing_status(id).unwrap();
                let has_others = status.have_pieces + 1 == status.piece_count;
                is_banned |=
                    leech.events.try_iter().any(|of| matches!(of, Event::PeerBanned { .. }));
                if is_banned || has_others {
                    break;
                }
                assert!(Instant::now() < until, "{status:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            let knows = || {
                let status = liar.engine.listing_status(rotten_id).unwrap();
                status.have_pieces + 1 == status.piece_count
            };
            while !is_banned && !knows() {
                assert!(Instant::now() < until, "it never found out");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let status = leech.engine.listing_status(id).unwrap();
        assert!(status.have_pieces < status.piece_count);
        assert!(kind != Kind::V1 || status.wasted_bytes >= 64 << 10);
        let honest = Node::start(dir.path(), 3);
        honest.seed(&metainfo, &good);
        leech.engine.set_peers(id, vec![liar.addr(), honest.addr()]);
        leech.wait_complete(id);
        assert_eq!(snapshot(&into), snapshot(&good));
    }
}

/// A hybrid whose v1 view describes other bytes than its v2 view.
fn two_faced(metainfo: &Metainfo, piece: u32) -> Arc<Metainfo> {
    let info = metainfo.info();
    let digest = *info.v1_piece_hash(info.geometry().piece(piece).unwrap()).unwrap();
    let mut raw = info.raw().to_vec();
    let at = raw.windows(20).position(|window| window == digest).unwrap();
    raw[at] ^= 1;
    let mut changed = Metainfo::from_info(Info::parse(&raw).unwrap());
    let roots: Vec<_> = changed.missing_layers().collect();
    for root in roots {
        changed.add_layer(&root, metainfo.layer(&root).unwrap().as_flattened()).unwrap();
    }
    Arc::new(changed)
}

/// Views that disagree: never complete, and the refusal names what anybody can reproduce.
#[test]
fn a_torrent_of_two_payloads_is_refused_with_evidence() {
    let dir = TestDir::new("two-faced");
    let source = dir.path().join("source");
    tree(&source.join("data"), 6);
    let honest = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let metainfo = two_faced(&honest, 11);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[seed.addr()]);
    let event = leech.wait("refusal", |event| matches!(event, Event::Failed { .. }));
    let honest_info = honest.info();
    let sha1_found = *honest_info.v1_piece_hash(honest_info.geometry().piece(11).unwrap()).unwrap();
    let Event::Failed { id: of, error } = event else { unreachable!() };
    assert_eq!((of, error), (id, ListingError::ViewsDisagree { piece: 11, sha1_found }));
    assert!(!leech.seen.iter().any(|event| matches!(event, Event::Complete { .. })));
    // Nobody blames the source: its bytes are what v2 says.
    assert!(!leech.seen.iter().any(|event| matches!(event, Event::PeerBanned { .. })));
    // By v2 alone, as for a listing that two thirds vouch for, it is whole.
    let mut trusting = Node::start(dir.path(), 3);
    let add = add_of(&metainfo, Place::Owned(dir.path().join("trusting")), &[seed.addr()]);
    let id = trusting.engine.add(AddListing { verify_v1: false, ..add }).unwrap();
    trusting.wait_complete(id);
}

#[test]
fn a_metainfo_over_the_cap_is_refused_before_and_after_it_is_known() {
    let dir = TestDir::new("cap-size");
    let source = dir.path().join("source");
    tree(&source.join("data"), 6);
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let place = Place::Owned(dir.path().join("into"));
    let add =
        AddListing { size_max_bytes: Some(1_000_000), ..add_of(&metainfo, place, &[seed.addr()]) };
    let refused = leech.engine.add(add.clone());
    assert!(matches!(refused, Err(crate::EngineError::Refused(ListingError::TooLarge { .. }))));
    let hash = metainfo.info().info_hash_v2().unwrap();
    leech.engine.add(AddListing { identity: Identity::V2(hash), ..add }).unwrap();
    let event = leech.wait("refusal", |event| matches!(event, Event::Failed { .. }));
    assert!(matches!(event, Event::Failed { error: ListingError::TooLarge { .. }, .. }));
}

/// Data of the user that is not what the torrent says is not touched and not fetched over.
#[test]
fn incomplete_data_in_place_is_refused_and_left_alone() {
    let dir = TestDir::new("in-place");
    let source = dir.path().join("source");
    tree(&source.join("data"), 6);
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let mut bytes = fs::read(source.join("data/z.bin")).unwrap();
    bytes[5] ^= 1;
    fs::write(source.join("data/z.bin"), bytes).unwrap();
    fs::remove_file(source.join("data/small/a.txt")).unwrap();
    let before = snapshot(&source);
    let mut node = Node::start(dir.path(), 1);
    let id = node.engine.add(add_of(&metainfo, Place::InPlace(source.clone()), &[])).unwrap();
    let event = node.wait("refusal", |event| matches!(event, Event::Failed { .. }));
    assert!(
        matches!(event, Event::Failed { id: of, error: ListingError::IncompleteInPlace { missing_pieces: 2, .. } } if of == id),
        "{event:?}"
    );
    assert_eq!(snapshot(&source), before);
}
