//! Two links speak to each other: each message that one sends arrives at the other as what it means.

use super::*;
use crate::geometry::PieceIndex;

/// Who called and who was called; handshakes and extension handshakes are exchanged.
fn pair(serves: ChannelConfig) -> (Bench, Bench) {
    let now = Instant::now();
    let mut caller = Bench::new(LinkConfig::default());
    let mut called =
        Bench::of(Link::incoming(now, LinkConfig { peer_id: PEER, ..LinkConfig::default() }), now);
    called.receive(&caller.sent()).unwrap();
    called.link.accept(TORRENT, serves);
    deliver(&mut called, &mut caller);
    deliver(&mut caller, &mut called);
    caller.events.clear();
    called.events.clear();
    (caller, called)
}

fn deliver(from: &mut Bench, to: &mut Bench) {
    to.receive(&from.sent()).unwrap();
}

/// What arrives of what `from` has to send.
fn heard(from: &mut Bench, to: &mut Bench) -> Vec<ChannelEvent> {
    to.events.clear();
    deliver(from, to);
    to.channel_events()
}

fn piece(index: u32) -> PieceIndex {
    geometry().piece(index).unwrap()
}

#[test]
fn what_one_has_the_other_knows() {
    let (mut caller, mut called) = pair(channel_config());
    let mut have = Bitfield::new(geometry().piece_count());
    have.set(piece(2));
    called.channel().send_availability(Some(&have));
    assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::Availability]);
    called.channel().send_have(piece(7));
    assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::Have(piece(7))]);
    called.channel().send_dont_have(piece(2));
    assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::DontHave(piece(2))]);
    let has = caller.channel().peer_has().unwrap();
    assert_eq!(has.iter_set().collect::<Vec<_>>(), [piece(7)]);
    // Nothing at all, and everything, have a word of their own (BEP 6).
    for (full, count) in [(false, 0), (true, geometry().piece_count())] {
        let (mut caller, mut called) = pair(channel_config());
        let whole = full.then(|| Bitfield::full(count));
        called.channel().send_availability(whole.as_ref());
        assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::Availability]);
        assert_eq!(caller.channel().peer_has().unwrap().count(), count);
    }
}

#[test]
fn interest_and_choking_are_told_once() {
    let (mut caller, mut called) = pair(channel_config());
    assert!(called.channel().choking() && caller.channel().peer_choking());
    caller.channel().set_interested(true);
    caller.channel().set_interested(true);
    assert!(caller.channel().interested());
    assert_eq!(heard(&mut caller, &mut called), [ChannelEvent::Interested]);
    assert!(called.channel().peer_interested());
    called.channel().set_choking(false);
    called.channel().set_choking(false);
    assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::Unchoked]);
    assert!(!caller.channel().peer_choking() && !called.channel().choking());
    caller.channel().set_interested(false);
    assert_eq!(heard(&mut caller, &mut called), [ChannelEvent::NotInterested]);
    let block = all_blocks()[0];
    assert!(caller.request(block));
    assert_eq!(caller.channel().outstanding().collect::<Vec<_>>(), [block]);
    deliver(&mut caller, &mut called);
    assert_eq!(called.channel().peer_requests().collect::<Vec<_>>(), [block]);
}

#[test]
fn the_info_dict_is_asked_for_given_and_refused() {
    let (mut caller, mut called) = pair(channel_config());
    // Who has no info dict says nothing of its length, and later does.
    assert_eq!(caller.channel().peer_extended().unwrap().metadata_len_bytes, None);
    called.channel().set_metadata_len(20_000);
    heard(&mut called, &mut caller);
    assert_eq!(caller.channel().peer_extended().unwrap().metadata_len_bytes, Some(20_000));
    assert!(caller.channel().can_metadata());
    assert!(caller.channel().send_metadata_request(1));
    assert_eq!(heard(&mut caller, &mut called), [ChannelEvent::MetadataRequest { index: 1 }]);
    called.channel().send_metadata_piece(1, 20_000, &[8; 3616]);
    assert_eq!(
        heard(&mut called, &mut caller),
        [ChannelEvent::MetadataPiece { index: 1, total_len_bytes: 20_000, data: vec![8; 3616] }]
    );
    called.channel().send_metadata_reject(2);
    assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::MetadataRejected { index: 2 }]);
    // A message of a kind that is not known yet is no breach (BEP 9).
    caller.events.clear();
    caller.receive(&encoded(&[Message::Extended { id: 1, payload: b"d8:msg_typei9ee" }])).unwrap();
    assert_eq!(caller.channel_events(), []);
}

#[test]
fn who_has_no_such_extension_is_not_asked() {
    let mut bench = Bench::asking(&[]);
    bench.sent();
    assert!(!bench.channel().can_metadata());
    assert!(!bench.channel().send_metadata_request(0));
    bench.channel().send_dont_have(piece(0));
    assert_eq!(bench.sent(), b"");
}

#[test]
fn hashes_are_asked_for_given_and_refused() {
    let v2 = WireId([9; 20]);
    let (mut caller, mut called) = pair(ChannelConfig { v2_id: Some(v2), ..channel_config() });
    let ask = |index| HashRequest {
        pieces_root: [3; 32],
        base_layer: 0,
        index,
        length: 2,
        proof_layers: 0,
    };
    assert!(caller.channel().send_hash_request(ask(0)));
    assert!(!caller.channel().send_hash_request(ask(0)), "it is asked for already");
    assert_eq!(heard(&mut caller, &mut called), [ChannelEvent::HashRequest(ask(0))]);
    called.channel().send_hashes(ask(0), &[[1; 32], [2; 32]]);
    assert_eq!(
        heard(&mut called, &mut caller),
        [ChannelEvent::Hashes { request: ask(0), hashes: vec![[1; 32], [2; 32]] }]
    );
    assert!(caller.channel().send_hash_request(ask(2)));
    deliver(&mut caller, &mut called);
    called.channel().send_hash_reject(ask(2));
    assert_eq!(heard(&mut called, &mut caller), [ChannelEvent::HashesRejected(ask(2))]);
    // Each is answered once.
    called.channel().send_hash_reject(ask(2));
    let again = caller.receive(&called.sent()).unwrap_err();
    assert_eq!(again.code(), "unasked-hashes");
}

#[test]
fn how_many_requests_may_wait_is_what_both_sides_take() {
    let mut bench = Bench::asking(&[]);
    let ours = bench.channel().requests_max();
    let say = |reqq: u32| {
        let payload = format!("d4:reqqi{reqq}ee");
        encoded(&[Message::Extended { id: 0, payload: payload.as_bytes() }])
    };
    bench.receive(&say(5)).unwrap();
    assert_eq!(bench.channel().requests_max(), 5);
    bench.receive(&say(u32::MAX)).unwrap();
    assert_eq!(bench.channel().requests_max(), ours);
    for block in all_blocks().into_iter().take(6) {
        bench.request(block);
    }
    bench.receive(&say(5)).unwrap();
    assert!(!bench.request(all_blocks()[7]));
}
