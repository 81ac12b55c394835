//! Hints of the fast extension, upgrades to v2, and what an honest peer may do for weeks.

use super::*;

/// An honest peer on a connection of weeks errs now and then; only a flood within a minute ends it.
#[test]
fn requests_that_are_refused_over_weeks_are_no_flood() {
    let blocks = all_blocks();
    let mut bench = Bench::asking(&[]);
    for _ in 0..50 {
        let refused = encoded(&vec![Message::Request(blocks[1].into()); 500]);
        bench.receive(&refused).unwrap();
        let repeated = encoded(&vec![Message::Have(1); 500]);
        bench.receive(&repeated).unwrap();
        bench.now += Duration::from_secs(61);
        bench.sent();
    }
    let flood = encoded(&vec![Message::Request(blocks[1].into()); 563]);
    assert_eq!(bench.receive(&flood), Err(LinkError::Flood { what: "requests" }));
}

/// A block was given up while half of it had come, and asked for again at once: the rest of the first
/// transfer was taken for the whole, whatever lay in the block's place by then, and an honest peer was
/// convicted of bad data.
#[test]
fn what_comes_of_a_block_that_was_given_up_is_not_mixed_with_what_is_asked_again() {
    let block = all_blocks()[2];
    for in_plan in [false, true] {
        let mut bench = Bench::asking(&[block]);
        let message = piece_message(block);
        bench.receive(&message[..5000]).unwrap();
        assert!(bench.channel().cancel(block));
        // The place has another owner meanwhile.
        bench.memory.places.insert(block, vec![0x77; block.len() as usize]);
        if in_plan {
            assert!(bench.request(block));
        }
        bench.receive(&message[5000..]).unwrap();
        if !in_plan {
            assert!(bench.request(block));
        }
        assert_eq!(bench.channel_events(), [ChannelEvent::Wasted { block }]);
        assert_eq!(bench.memory.places[&block], vec![0x77; block.len() as usize]);
        assert_eq!(bench.channel().outstanding_count(), 1, "the second time is still to come");
        bench.receive(&message).unwrap();
        assert_eq!(bench.blocks[&block], payload(block));
        assert_eq!(bench.channel().outstanding_count(), 0);
    }
}

#[test]
fn allowed_pieces_are_asked_for_and_given_while_choked_and_each_once() {
    let blocks = all_blocks();
    let geometry = geometry();
    let piece = |raw| geometry.piece(raw).unwrap();
    let mut bench = Bench::asking(&[]);
    bench.receive(&encoded(&[Message::Choke, Message::AllowedFast(1)])).unwrap();
    assert!(bench.channel_events().contains(&ChannelEvent::AllowedFast(piece(1))));
    assert!(!bench.request(blocks[0]) && bench.request(blocks[4]));
    bench.receive(&piece_message(blocks[4])).unwrap();
    assert_eq!(bench.blocks[&blocks[4]], payload(blocks[4]));
    // Our side: piece 2 has four blocks, and is given once.
    bench.sent();
    bench.channel().send_allowed_fast(piece(2));
    assert_eq!(bench.sent(), encoded(&[Message::AllowedFast(2)]));
    for (at, &block) in blocks[8..12].iter().enumerate() {
        bench.receive(&encoded(&[Message::Request(block.into())])).unwrap();
        assert_eq!(bench.channel().peer_requests().count(), 1, "block {at}");
        assert!(bench.channel().serve(block));
        bench.sent();
    }
    for refused in [blocks[8], blocks[12]] {
        bench.receive(&encoded(&[Message::Request(refused.into())])).unwrap();
        assert_eq!(bench.sent(), encoded(&[Message::Reject(refused.into())]));
    }
    // A choke spares what is allowed, and a revocation does not.
    bench.channel().send_allowed_fast(piece(3));
    bench.channel().set_choking(false);
    let wanted = [blocks[12], blocks[16]].map(|block| Message::Request(block.into()));
    bench.receive(&encoded(&wanted)).unwrap();
    bench.sent();
    bench.channel().set_choking(true);
    assert_eq!(bench.sent(), encoded(&[Message::Choke, Message::Reject(blocks[16].into())]));
    assert_eq!(bench.channel().peer_requests().collect::<Vec<_>>(), [blocks[12]]);
    bench.channel().revoke_allowed_fast();
    assert_eq!(bench.sent(), encoded(&[Message::Reject(blocks[12].into())]));
    bench.channel().send_suggest(piece(7));
    assert_eq!(bench.sent(), encoded(&[Message::Suggest(7)]));
    bench.receive(&encoded(&[Message::Suggest(5)])).unwrap();
    assert!(bench.channel_events().contains(&ChannelEvent::Suggest(piece(5))));
}

/// What is given while choked is a piece's worth of bytes, in however few requests.
#[test]
fn a_long_request_spends_as_many_blocks_of_an_allowed_piece_as_it_has() {
    let mut bench = Bench::asking(&[]);
    bench.sent();
    bench.channel().send_allowed_fast(geometry().piece(2).unwrap());
    bench.sent();
    let long = |begin, len| RawBlock { piece: 2, begin, len };
    let first = long(0, 3 * BLOCK_LEN);
    bench.receive(&encoded(&[Message::Request(first)])).unwrap();
    assert_eq!(bench.channel().peer_requests().count(), 1);
    // One block is left.
    for (asked, is_given) in
        [(long(0, BLOCK_LEN + 1), false), (long(3 * BLOCK_LEN, BLOCK_LEN), true)]
    {
        bench.receive(&encoded(&[Message::Request(asked)])).unwrap();
        assert_eq!(bench.channel().peer_requests().count(), 1 + usize::from(is_given));
        let sent = bench.sent();
        assert_eq!(sent.is_empty(), is_given, "rejected or not");
    }
}

#[test]
fn the_upgrade_bit_is_answered_by_the_v2_name() {
    let v2 = WireId([9; 20]);
    for (reserved, v2_id, answer) in [
        (Reserved::ours(true), Some(v2), v2),
        (Reserved::ours(false), Some(v2), TORRENT),
        (Reserved::ours(true), None, TORRENT),
    ] {
        let now = Instant::now();
        let mut bench = Bench::of(Link::incoming(now, LinkConfig::default()), now);
        let hello = Handshake { reserved, wire_id: TORRENT, peer_id: PEER };
        bench.receive(&hello.encode()).unwrap();
        bench.link.accept(TORRENT, ChannelConfig { v2_id, ..channel_config() });
        let sent = bench.sent();
        let ours = Handshake::decode(sent.first_chunk().unwrap()).unwrap();
        assert_eq!((ours.wire_id, ours.reserved.v2()), (answer, v2_id.is_some()));
        assert_eq!(bench.channel().can_hash(), answer == v2);
    }
}

#[test]
fn that_we_want_nothing_is_said_and_taken_back() {
    let mut bench = Bench::asking(&[]);
    bench.sent();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    bench.channel().set_upload_only(true);
    assert!(text(bench.sent()).contains("11:upload_onlyi1e"));
    bench.channel().set_upload_only(true);
    assert_eq!(bench.sent(), b"");
    bench.channel().set_upload_only(false);
    let back = text(bench.sent());
    assert!(back.contains("4:reqq") && !back.contains("11:upload_onlyi1e"));
    // The peer says it by a message of its own.
    bench.receive(&encoded(&[Message::Extended { id: 3, payload: &[1] }])).unwrap();
    assert!(bench.channel().peer_extended().unwrap().upload_only);
    let said = |event: &ChannelEvent| matches!(event, ChannelEvent::Extended(extended) if extended.upload_only);
    assert!(bench.channel_events().iter().any(said));
}
