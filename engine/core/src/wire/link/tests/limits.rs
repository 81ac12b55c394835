//! What a peer may do too much of, with both sides of each limit.

use super::*;

/// Unchokes the peer, so that its requests are queued.
fn serving() -> Bench {
    let mut bench = Bench::asking(&[]);
    bench.channel().set_choking(false);
    bench.sent();
    bench
}

/// A message as bytes, also one that is not ours to send.
fn said(message: &Message<'_>) -> Vec<u8> {
    match message {
        Message::Unknown { id } => vec![0, 0, 0, 3, *id, 1, 2],
        known => encoded(std::slice::from_ref(known)),
    }
}

fn flood(bench: &mut Bench, message: &Message<'_>, count: usize) -> Option<LinkError> {
    let one = said(message);
    (0..count).find_map(|_| bench.receive(&one).err())
}

#[test]
fn small_talk_is_free_at_any_honest_pace_and_a_flood_of_it_ends_the_connection() {
    let block = all_blocks()[1];
    let talk = [
        Message::KeepAlive,
        Message::Unknown { id: 99 },
        Message::Interested,
        Message::NotInterested,
        Message::Cancel(block.into()),
        Message::Suggest(1),
        Message::AllowedFast(1),
        Message::Extended { id: 77, payload: &[] },
        Message::Extended { id: 0, payload: b"de" },
    ];
    for message in talk {
        let mut bench = serving();
        for _ in 0..600 {
            assert_eq!(flood(&mut bench, &message, 100), None, "100 per second of {message:?}");
            bench.now += Duration::from_secs(1);
        }
        let error = flood(&mut bench, &message, 5000).expect("a flood");
        assert_eq!(error, LinkError::Flood { what: "chatter" }, "{message:?}");
        assert_eq!((error.blame(), error.code()), (Blame::Peer, "flood-chatter"));
    }
}

/// A fast swarm of small pieces changes its interest with nearly every block: that is no flood.
#[test]
fn blocks_pay_for_the_talk_about_them() {
    let block = all_blocks()[1];
    let mut bench = serving();
    for _ in 0..20_000 {
        let turn = [Message::Interested, Message::Request(block.into()), Message::NotInterested];
        bench.receive(&encoded(&turn)).unwrap();
        assert!(bench.channel().serve(block));
        bench.sent();
    }
}

#[test]
fn a_peer_may_not_choke_and_unchoke_us_all_the_time() {
    let mut bench = Bench::asking(&[]);
    for second in 0..1000 {
        let turn = if second % 2 == 0 { Message::Choke } else { Message::Unchoke };
        assert_eq!(flood(&mut bench, &turn, 1), None, "second {second}");
        bench.now += Duration::from_secs(1);
    }
    let flapping = encoded(&[Message::Choke, Message::Unchoke]);
    let error = (0..40).find_map(|_| bench.receive(&flapping).err()).expect("a flood");
    assert_eq!(error, LinkError::Flood { what: "chokes" });
}

/// The same request again and again was ignored in silence, five hundred comparisons each.
#[test]
fn repeated_requests_are_counted() {
    let mut bench = serving();
    let request = Message::Request(all_blocks()[1].into());
    let error = flood(&mut bench, &request, 5000).expect("a flood");
    assert_eq!(error, LinkError::Flood { what: "chatter" });
    assert_eq!(bench.channel().peer_requests().count(), 1, "and queued once");
}

/// Whoever asks for what we never announced was refused for ever, at the speed of the line.
#[test]
fn refused_requests_end_the_connection_unless_blocks_are_served_between() {
    let blocks = all_blocks();
    let ask = |bench: &mut Bench, block: BlockRef| {
        bench.receive(&encoded(&[Message::Request(block.into())]))
    };
    let slack = LinkConfig::default().requests_in_max + 50;
    let mut bench = serving();
    let error = (0..slack + 2).find_map(|_| {
        let result = ask(&mut bench, blocks[1]);
        bench.channel().reject(blocks[1]);
        bench.sent();
        result.err()
    });
    assert_eq!(error, Some(LinkError::Flood { what: "requests" }));

    let mut bench = serving();
    for _ in 0..2 * slack {
        ask(&mut bench, blocks[1]).unwrap();
        bench.channel().reject(blocks[1]);
        ask(&mut bench, blocks[2]).unwrap();
        assert!(bench.channel().serve(blocks[2]));
        bench.sent();
    }
}

/// A queue holds what was announced as `reqq` and no more, whatever is asked.
#[test]
fn the_request_queue_is_bounded_by_what_we_announced() {
    let config = LinkConfig { requests_in_max: 4, ..LinkConfig::default() };
    let mut bench = Bench::new(config);
    bench.receive(&peer_handshake()).unwrap();
    bench.channel().set_choking(false);
    let asked: Vec<_> = all_blocks().iter().map(|&b| Message::Request(b.into())).collect();
    bench.receive(&encoded(&asked[..20])).unwrap();
    assert_eq!(bench.channel().peer_requests().count(), 4);
}

/// Only the first message may say that the peer has all or nothing; its extension handshake may come
/// before. A bitfield may come later, too.
#[test]
fn a_late_have_all_ends_the_connection() {
    let bits = Message::Bitfield(&[0xff, 0xc0]);
    let block = all_blocks()[0];
    let early = [
        Message::Extended { id: 0, payload: b"de" },
        Message::KeepAlive,
        // The port of a DHT node (BEP 5), which some clients send at once.
        Message::Unknown { id: 9 },
    ];
    let late = [
        Message::Unchoke,
        Message::Choke,
        Message::Interested,
        Message::NotInterested,
        Message::Suggest(1),
        Message::AllowedFast(1),
        Message::Cancel(block.into()),
        Message::Request(block.into()),
    ];
    for (before, result) in early
        .map(|message| (message, Ok(())))
        .into_iter()
        .chain(late.map(|message| (message, Err(LinkError::AvailabilityLate))))
    {
        for has in [bits, Message::HaveAll, Message::HaveNone] {
            let mut bench = Bench::new(LinkConfig::default());
            bench.receive(&peer_handshake()).unwrap();
            let bytes = [said(&before), said(&has)].concat();
            let result = if has == bits { Ok(()) } else { result.clone() };
            assert_eq!(bench.receive(&bytes), result, "{has:?} behind {before:?}");
        }
    }
    let mut bench = Bench::new(LinkConfig::default());
    bench.receive(&peer_handshake()).unwrap();
    let twice = bench.receive(&encoded(&[Message::Have(1), Message::HaveAll])).unwrap_err();
    assert_eq!(twice, LinkError::AvailabilityTwice, "a have has said it already");
}

/// aria2 1.36 could not fetch from us: in mid-transfer it sends a bitfield where that is shorter than
/// the haves it stands for, and we ended the connection and banned it at the third.
#[test]
fn a_bitfield_in_mid_conversation_stands_for_haves() {
    let mut bench = Bench::new(LinkConfig::default());
    bench.receive(&peer_handshake()).unwrap();
    let block = all_blocks()[0];
    let first = [Message::HaveNone, Message::Interested, Message::Request(block.into())];
    bench.receive(&encoded(&first)).unwrap();
    let has = |bench: &mut Bench| bench.channel().peer_has().expect("it has said so").count();
    bench.receive(&encoded(&[Message::Bitfield(&[0x10, 0])])).unwrap();
    assert_eq!(has(&mut bench), 1);
    bench.receive(&encoded(&[Message::Have(0), Message::Bitfield(&[0x08, 0x40])])).unwrap();
    assert_eq!(has(&mut bench), 4, "it adds pieces and takes none away");
    let wrong = bench.receive(&encoded(&[Message::Bitfield(&[0x08])])).unwrap_err();
    assert!(matches!(wrong, LinkError::Decode(_)), "{wrong}");
}

/// Each costs us a pass over all pieces, so without news there is an end to them.
#[test]
fn bitfields_without_news_are_a_flood() {
    let mut bench = Bench::new(LinkConfig::default());
    bench.receive(&peer_handshake()).unwrap();
    let again = encoded(&vec![Message::Bitfield(&[0xff, 0xc0]); 2000]);
    assert_eq!(bench.receive(&again).unwrap_err(), LinkError::Flood { what: "haves" });
}

/// A hundred thousand messages in one receive left their room in every channel for ever.
#[test]
fn queues_give_their_memory_back() {
    let mut bench = Bench::asking(&all_blocks());
    let mut said = Vec::new();
    (0..1000).for_each(|_| said.extend(encoded(&[Message::Suggest(1)])));
    assert_eq!(bench.receive_some(&said, usize::MAX).unwrap(), said.len(), "one receive");
    while bench.link.poll_event().is_some() {}
    let channel = bench.channel();
    assert!(channel.queue_capacity() <= 1024, "{} entries kept", channel.queue_capacity());
}

/// Answers to whoever does not read pile up to a quarter of a MiB and one answer, then are refused.
#[test]
fn answers_that_are_not_taken_are_bounded() {
    let mut bench = serving();
    let extended = Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai3eee" };
    bench.receive(&encoded(&[extended])).unwrap();
    let question = Message::Extended { id: 1, payload: b"d8:msg_typei0e5:piecei0ee" };
    let mut asked = 0;
    for _ in 0..100 {
        bench.events.clear();
        bench.receive(&encoded(&[question])).unwrap();
        for event in bench.channel_events() {
            if matches!(event, ChannelEvent::MetadataRequest { .. }) {
                asked += 1;
                bench.channel().send_metadata_piece(0, 16_384, &[0; 16_384]);
            }
        }
    }
    assert!((1..=18).contains(&asked), "{asked} pieces of 16 KiB wait");
    assert!(bench.channel().answer_bytes() <= (256 << 10) + (20 << 10));
    let error = flood(&mut bench, &question, 5000).expect("a flood");
    assert!(matches!(error, LinkError::Flood { .. }), "{error}");
}

/// A BEP 9 question.
const METADATA_QUESTION: Message<'_> =
    Message::Extended { id: 1, payload: b"d8:msg_typei0e5:piecei0ee" };

/// Who asked for the info dict and had not said under which number it takes answers (BEP 10) got none, and
/// was credited with each all the same: it could ask for ever, at the speed of the line.
#[test]
fn questions_that_cannot_be_answered_are_chatter() {
    let mut bench = serving();
    let question = encoded(&[METADATA_QUESTION]);
    let error = (0..5000).find_map(|_| {
        let result = bench.receive(&question);
        for event in std::mem::take(&mut bench.events) {
            let LinkEvent::Channel { event, .. } = event else { continue };
            assert!(!matches!(event, ChannelEvent::MetadataRequest { .. }), "for nothing");
        }
        bench.channel().send_metadata_piece(0, 16_384, &[0; 16_384]);
        result.err()
    });
    assert_eq!(error, Some(LinkError::Flood { what: "chatter" }));
}

/// Who takes the info dict again and again, as fast as it is given, needs it no more than three times.
#[test]
fn the_info_dict_is_given_three_times_and_then_refused() {
    let mut bench = serving();
    bench.channel().set_metadata_len(256 << 10);
    let extended = Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai3eee" };
    bench.receive(&encoded(&[extended])).unwrap();
    let question = encoded(&[METADATA_QUESTION]);
    let (mut given, mut error) = (0, None);
    for _ in 0..5000 {
        if let Err(found) = bench.receive(&question) {
            error = Some(found);
            break;
        }
        for event in std::mem::take(&mut bench.events) {
            let LinkEvent::Channel { event, .. } = event else { continue };
            if matches!(event, ChannelEvent::MetadataRequest { .. }) {
                bench.channel().send_metadata_piece(0, 256 << 10, &[0; 16_384]);
                given += 1;
            }
        }
        bench.sent();
    }
    assert_eq!(error, Some(LinkError::Flood { what: "chatter" }));
    assert_eq!(given, 3 * 16 + 64);
}

/// Questions that are refused cost no work. They were paced like the others, slower than talk is free, and
/// whoever asked for trees that nobody has was there for ever.
#[test]
fn refused_questions_are_not_paced_and_are_a_flood() {
    let request = HashRequest {
        pieces_root: [9; 32],
        base_layer: 0,
        index: 0,
        length: 8192,
        proof_layers: 0,
    };
    let mut bench = serving();
    let question = encoded(&[Message::HashRequest(request)]);
    let error = (0..2000).find_map(|_| {
        let result = bench.receive(&question);
        bench.channel().send_hash_reject(request);
        bench.sent();
        result.err()
    });
    assert_eq!(error, Some(LinkError::Flood { what: "chatter" }));
}

/// A question of 49 bytes may cost a millisecond. Who asks and takes the answers is served at a pace, by
/// not being read meanwhile, and is not refused: an honest peer may be that fast.
#[test]
fn questions_are_taken_at_the_pace_of_their_answers() {
    let hashes = HashRequest {
        pieces_root: [7; 32],
        base_layer: 0,
        index: 0,
        length: 8192,
        proof_layers: 10,
    };
    let extended = Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai3eee" };
    let asked = |event: &ChannelEvent| {
        let is_metadata = matches!(event, ChannelEvent::MetadataRequest { .. });
        let is_hashes = matches!(event, ChannelEvent::HashRequest(_));
        is_metadata || is_hashes
    };
    for (question, answer_bytes) in
        [(Message::HashRequest(hashes), 8202 * 32), (METADATA_QUESTION, 16_384)]
    {
        let mut bench = serving();
        bench.channel().set_metadata_len(48 << 20);
        bench.sent();
        bench.receive(&encoded(&[extended])).unwrap();
        let question = encoded(&[question]);
        let (start, mut events) = (bench.now, 0);
        while bench.now < start + Duration::from_secs(30) {
            // One at a time: bytes of the next wait in the socket.
            if bench.receive_some(&question, usize::MAX).unwrap() == 0 {
                let until = bench.link.poll_timeout();
                assert!(bench.now < until && until <= bench.now + Duration::from_secs(1));
                bench.now = until;
                bench.link.handle_timeout(until).unwrap();
            }
            events += bench.channel_events().iter().filter(|event| asked(event)).count();
            assert!(events < 50_000, "it is never paused");
            bench.events.clear();
            bench.channel().send_hashes(hashes, &[]); // as an answer it pays for the talk about it
            bench.sent();
        }
        let rate = (events as f64) * f64::from(answer_bytes) / 30.0;
        let (least, most) = (4.0 * 1_048_576.0, 4.0 * 1_048_576.0 + 9.0 * 1_048_576.0 / 30.0);
        assert!((least..most * 1.01).contains(&rate), "{rate} bytes of answers a second");
    }
}

/// Nobody is too slow with a message who is not read, however much he has asked for.
#[test]
fn a_pause_is_no_slowness_of_the_peer_and_has_an_end() {
    // A receive that was planned for many blocks brings a thousand questions, and half of another.
    let mut bench = Bench::asking(&all_blocks());
    let hashes = HashRequest {
        pieces_root: [7; 32],
        base_layer: 0,
        index: 0,
        length: 8192,
        proof_layers: 0,
    };
    let many = encoded(&vec![Message::HashRequest(hashes); 1000]);
    assert_eq!(bench.receive_some(&many[..many.len() - 9], usize::MAX).unwrap(), many.len() - 9);
    let (start, rest) = (bench.now, &many[many.len() - 9..]);
    while bench.receive_some(rest, usize::MAX).unwrap() == 0 {
        bench.now = bench.link.poll_timeout();
        bench.link.handle_timeout(bench.now).unwrap();
    }
    assert_eq!(bench.now - start, Duration::from_secs(30), "ended, and not before");
}

/// A flood was read a KiB at a time: a peer that asks for everything and reads nothing was sent a MiB between the
/// first of its requests and the one too many. A question may cost a millisecond and is paid for only after
/// the receive that brought it, so that of these few are read at once, whatever was said before.
#[test]
fn who_says_much_is_read_much_at_a_time_and_who_asks_little() {
    let mut bench = serving();
    let talk = encoded(&vec![Message::Suggest(1); 1000]);
    let mut at = 0;
    for (there, read) in [(9000, 1024), (9000, 4096), (9, 9), (9000, 1024)] {
        let end = talk.len().min(at + there);
        assert_eq!(bench.receive_some(&talk[at..end], usize::MAX), Ok(read));
        at += read;
    }
    let mut bench = serving();
    let hashes =
        HashRequest { pieces_root: [7; 32], base_layer: 0, index: 0, length: 2, proof_layers: 0 };
    let questions = encoded(&vec![Message::HashRequest(hashes); 100]);
    for at in 0..4 {
        assert_eq!(bench.receive_some(&questions[at * 1024..], usize::MAX), Ok(1024));
    }
}
