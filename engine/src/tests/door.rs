//! What a shard does about strangers: whom it lets in, what they may cost, when they are gone.

use std::sync::mpsc::sync_channel;

use super::hand::{
    Hand, big_seed, big_seed_of, extended, request, request_of, requests_from, sparse_seed_of,
};
use super::*;
use crate::io::{SEND_PARTS_MAX, SockId};
use crate::shard::command::Command;

#[test]
fn who_does_not_shake_hands_in_five_seconds_is_gone() {
    let mut hand = Hand::new(|_| {});
    let silent = hand.knock("10.0.0.1");
    let slow = hand.knock("10.0.0.2");
    let hello = hand.handshake(1);
    for byte in hello.chunks(1).take(4) {
        hand.hear(slow, byte);
        hand.pass(Duration::from_secs(1));
    }
    assert!(hand.is_open(silent) && hand.is_open(slow));
    hand.pass(Duration::from_millis(1_100));
    assert!(!hand.is_open(silent) && !hand.is_open(slow));
    assert_eq!(hand.closed_by("handshake-timeout"), 2);
}

/// The flood of one address is refused at eight connections; another address is served all the while.
#[test]
fn one_address_holds_eight_connections() {
    let mut hand = Hand::new(|_| {});
    let held: Vec<SockId> = (0..20).map(|_| hand.join("10.0.0.1")).collect();
    assert_eq!(held.iter().filter(|&&sock| hand.is_open(sock)).count(), 8);
    assert_eq!(hand.closed_by("address-full"), 12);
    // The same host in IPv6 clothes is the same address; the next one is not.
    let clothed = hand.join("::ffff:10.0.0.1");
    let other = hand.join("10.0.0.2");
    assert!(!hand.is_open(clothed) && hand.is_open(other));
    let hosts: Vec<SockId> = (1..=20).map(|host| hand.join(&format!("2001:db8::{host}"))).collect();
    assert_eq!(hosts.iter().filter(|&&sock| hand.is_open(sock)).count(), 8, "a /64 is one host");
}

#[test]
fn members_and_a_machines_own_programs_are_not_counted() {
    let mut hand = Hand::new(|config| config.limit_loopback = false);
    hand.command(Command::SetMembers(vec!["10.0.0.1".parse().unwrap()]));
    for ip in ["10.0.0.1", "127.0.0.1"] {
        let held: Vec<SockId> = (0..20).map(|_| hand.join(ip)).collect();
        assert!(held.iter().all(|&sock| hand.is_open(sock)), "{ip}");
    }
    // A member that leaves the market is one like any other.
    hand.command(Command::SetMembers(Vec::new()));
    let after = hand.join("10.0.0.1");
    assert!(!hand.is_open(after));
}

/// Who comes again and again pays for it, and most for connections that ended by its fault. A handshake
/// that is none is no fault, because stock clients try an encrypted one first: it costs an arrival.
#[test]
fn an_address_that_reconnects_all_the_time_is_throttled() {
    let mut hand = Hand::new(|_| {});
    let junk = [0xff; 68];
    for _ in 0..4 {
        let sock = hand.knock("10.0.0.3");
        hand.hear(sock, &junk);
        assert!(!hand.is_open(sock));
        let plain = hand.join("10.0.0.3");
        assert!(hand.is_open(plain), "it falls back to plain");
        hand.complete_close(plain);
    }
    for name in 0..40 {
        let sock = hand.knock("10.0.0.1");
        let mut bytes = hand.handshake(name);
        bytes.extend([0xff; 8]); // a message of 4 GiB
        hand.hear(sock, &bytes);
        assert!(!hand.is_open(sock));
    }
    assert!(hand.closed_by("address-throttled") >= 35, "{:?}", hand.counters.closed());
    let other = hand.join("10.0.0.2");
    assert!(hand.is_open(other));
    hand.pass(Duration::from_secs(120));
    let again = hand.join("10.0.0.1");
    assert!(hand.is_open(again), "nobody is throttled for ever");
}

/// Thousands of half-open connections from everywhere: newcomers still get through the handshake, and
/// the flood crowds out itself.
#[test]
fn half_open_connections_crowd_out_their_own() {
    let mut hand = Hand::new(|config| config.peers_max = 512);
    for number in 0..5_000_u32 {
        let [.., a, b] = (number / 8).to_be_bytes();
        hand.knock(&format!("10.0.{a}.{b}"));
        if number % 100 == 0 {
            // A handshake takes a round trip; a few attackers come meanwhile.
            let (newcomer, name) = (hand.knock("192.168.1.1"), u64::from(number));
            for _ in 0..4 {
                hand.knock("10.1.0.0");
            }
            let hello = hand.handshake(name);
            hand.hear(newcomer, &hello);
            assert!(hand.is_open(newcomer), "newcomer {number}: {:?}", hand.counters.closed());
            hand.complete_close(newcomer);
        }
    }
    let turned_away = hand.closed_by("crowded-out") + hand.closed_by("address-throttled");
    assert!(turned_away > 4_000, "{:?}", hand.counters.closed());
    assert!(hand.counters.peers.get() <= 257, "{}", hand.counters.peers.get());
    hand.pass(Duration::from_secs(6));
    assert!(hand.counters.peers.get() == 0, "the rest is gone after five seconds");
}

/// All places taken by peers that do nothing: one of them gives way to a newcomer, never one that is
/// being served.
#[test]
fn idle_connections_give_way_when_all_places_are_taken() {
    for is_of_listing in [false, true] {
        let mut hand = Hand::new(|config| {
            let places = if is_of_listing {
                &mut config.peers_per_listing_max
            } else {
                &mut config.peers_max
            };
            *places = 20;
        });
        let busy = hand.join("192.168.0.1");
        let idle: Vec<SockId> =
            (0..19).map(|number| hand.join(&format!("10.0.0.{}", number / 4))).collect();
        let early = hand.join("192.168.0.2");
        assert!(!hand.is_open(early), "all are new: nobody has had a chance to be of use");
        assert_eq!(hand.closed_by("full"), 1);
        for _ in 0..12 {
            hand.pass(Duration::from_secs(1));
            hand.hear(busy, &request(0, 0));
        }
        let newcomer = hand.join("192.168.0.2");
        assert!(hand.is_open(newcomer) && hand.is_open(busy));
        assert_eq!(idle.iter().filter(|&&sock| !hand.is_open(sock)).count(), 1);
        assert_eq!(hand.closed_by("displaced"), 1);
    }
}

/// Names made up by the thousand took memory for ever, 60 bytes each and twice per listing.
#[test]
fn made_up_names_are_forgotten() {
    let mut hand = Hand::new(|_| {});
    for number in 0..2_000_u32 {
        let [.., a, b] = number.to_be_bytes();
        let sock = hand.join(&format!("10.0.{a}.{b}"));
        hand.complete_close(sock);
    }
    let (answer, answers) = sync_channel(1);
    hand.command(Command::Status(ListingId(1), answer));
    let sources = answers.try_recv().unwrap().unwrap().sources.len();
    assert!(sources <= 256, "{sources} sources remembered");
}

#[test]
fn who_takes_nothing_for_a_minute_is_gone() {
    let mut hand = Hand::new(|_| {});
    let deaf = hand.join("10.0.0.1");
    hand.takers.remove(&deaf);
    (0..64).for_each(|at| hand.hear(deaf, &request(at / 4, at % 4 * 16_384)));
    assert!(hand.sending.contains_key(&deaf));
    hand.pass(Duration::from_secs(59));
    assert!(hand.is_open(deaf));
    hand.pass(Duration::from_secs(2));
    assert!(!hand.is_open(deaf));
    assert_eq!(hand.closed_by("send-stalled"), 1);
}

/// Connections that take nothing kept a MiB of the arena each, and as much again that was read ahead for
/// them: forty starved everybody for a minute.
#[test]
fn peers_that_take_nothing_do_not_starve_the_others() {
    let mut hand = big_seed();
    let warm = hand.join("192.168.0.1");
    hand.hear(warm, &request(0, 0));
    let deaf: Vec<SockId> =
        (0..60).map(|at| hand.join_deaf(&format!("10.0.0.{at}"), at * 4)).collect();
    let honest = hand.join("192.168.0.2");
    let before = hand.sent_bytes[&honest];
    (0..64).for_each(|at| hand.hear(honest, &request(240 + at / 16, at % 16 * 16_384)));
    hand.pass(Duration::from_secs(1));
    let got = hand.sent_bytes[&honest] - before;
    assert!(got >= 1 << 20, "{got} bytes of 1 MiB in a second");
    // It goes on while they are there, and those who keep most of the arena go early.
    for second in 0..8 {
        hand.hear(honest, &request(200 + second, 0));
        hand.pass(Duration::from_secs(1));
    }
    hand.pass(Duration::from_secs(60));
    assert!(deaf.iter().all(|&sock| !hand.is_open(sock)), "{:?}", hand.counters.closed());
    assert!(hand.is_open(honest));
    assert_eq!(hand.closed_by("send-stalled"), 60);
}

/// A million requests of a peer that does not read make one send and what is read ahead of the next.
#[test]
fn reads_wait_for_the_peer_to_take_what_was_read_before() {
    let mut hand = big_seed();
    let deaf = hand.join_deaf("10.0.0.1", 0);
    (64..512).for_each(|at| hand.hear(deaf, &request(at / 16, at % 16 * 16_384)));
    hand.pass(Duration::from_secs(10));
    assert!(hand.reads <= 8, "{} extents read", hand.reads);
    (0..600).for_each(|at| hand.hear(deaf, &request(at / 16 + 40, at % 16 * 16_384)));
    assert!(!hand.is_open(deaf), "more than reqq and fifty refused ones are a flood");
    assert_eq!(hand.closed_by("flood-requests"), 1);
}

/// A peer on a slow line was sent a MiB at once and dropped when it had not taken it within a minute.
#[test]
fn a_slow_peer_is_sent_little_at_a_time() {
    let mut hand = big_seed();
    let slow = hand.join("10.0.0.1");
    hand.takers.remove(&slow);
    let mut at = 0;
    for _ in 0..40 {
        for _ in 0..16 {
            hand.hear(slow, &request(at / 16, at % 16 * 16_384));
            at += 1;
        }
        // 8 KiB/s.
        let len = hand.sending.get(&slow).map_or(0, |(_, buf)| buf.len_bytes());
        hand.pass(Duration::from_millis(len as u64 * 1000 / 8192));
        assert!(hand.is_open(slow), "{:?}", hand.counters.closed());
        hand.take(slow);
        hand.turn();
    }
    let len = hand.sending.get(&slow).map_or(0, |(_, buf)| buf.len_bytes());
    assert!((1..40_000).contains(&len), "{len} bytes at once to a peer of 8 KiB/s");
}

/// Answers that nobody takes are bounded over all connections, and a little is left for everyone.
#[test]
fn answers_to_those_who_do_not_read_are_bounded_together() {
    let mut hand = big_seed();
    let ask = |hand: &mut Hand, sock: SockId| {
        // BEP 10 and 9: our id for metadata messages is 1.
        hand.hear(sock, &extended(0, b"d1:md11:ut_metadatai3eee"));
        for _ in 0..40 {
            hand.hear(sock, &extended(1, b"d8:msg_typei0e5:piecei0ee"));
        }
    };
    let mut socks = Vec::new();
    for number in 0..300 {
        let sock = hand.knock(&format!("10.0.{}.{}", number / 100, number % 100));
        let mut hello = hand.handshake(number);
        hello[25] = 0x10; // extensions
        hand.hear(sock, &hello);
        ask(&mut hand, sock);
        socks.push(sock);
    }
    let waiting = hand.shard.answer_bytes();
    assert!(waiting <= 28 << 20, "{waiting} bytes of answers wait");
    assert!(socks.iter().any(|&sock| hand.is_open(sock)), "{:?}", hand.counters.closed());
}

/// Peers that had been quick were sent a MiB each, however many there were: twenty that then took nothing held
/// the whole arena, and a newcomer waited until the first of them was given up.
#[test]
fn senders_share_the_arena_and_leave_room_for_the_next() {
    let mut hand = big_seed();
    let quick: Vec<SockId> = (0..20).map(|at| hand.join(&format!("10.0.0.{at}"))).collect();
    for (at, &sock) in (0..).zip(&quick) {
        (0..2).for_each(|_| hand.hear(sock, &requests_from(at * 4)));
    }
    quick.iter().for_each(|sock| assert!(hand.takers.remove(sock)));
    for (at, &sock) in (0..).zip(&quick) {
        hand.hear(sock, &requests_from(at * 8));
        hand.hear(sock, &requests_from(at * 8 + 4));
    }
    let honest = hand.join("192.168.0.2");
    let before = hand.sent_bytes[&honest];
    hand.hear(honest, &requests_from(240));
    // A quarter of a second shows who takes nothing, and what was read ahead for them is given up.
    hand.pass(Duration::from_millis(400));
    let got = hand.sent_bytes[&honest] - before;
    assert!(got >= 1 << 20, "{got} bytes of 1 MiB in 400 ms");
}

/// What was read ahead for those who take nothing is given up when somebody finds no memory, before they
/// are.
#[test]
fn read_ahead_for_the_stalled_is_given_up_when_memory_is_short() {
    let mut hand = big_seed();
    for at in 0..80 {
        let sock = hand.join(&format!("10.0.0.{at}"));
        hand.takers.remove(&sock);
        hand.hear(sock, &requests_from(at * 3));
    }
    hand.pass(Duration::from_secs(3));
    let before = hand.shard.held_extents();
    let late = hand.join("192.168.0.1");
    hand.hear(late, &requests_from(250));
    hand.pass(Duration::from_millis(100));
    assert!(hand.sent_bytes[&late] >= 1 << 20, "{} bytes", hand.sent_bytes[&late]);
    let after = hand.shard.held_extents();
    assert!(before > 0 && after * 3 < before, "{after} of {before} extents that others wait for");
    assert!(hand.closed.is_empty(), "{:?}", hand.counters.closed());
}

/// Whoever takes its requests back is not kept what was read for them.
#[test]
fn what_was_read_for_requests_that_are_taken_back_is_let_go() {
    let mut hand = big_seed();
    let fickle = hand.join("10.0.0.1");
    hand.takers.remove(&fickle);
    let mut wanted = requests_from(0);
    hand.hear(fickle, &wanted);
    assert!(hand.shard.held_extents() > 0, "nothing was read ahead");
    wanted.chunks_mut(17).for_each(|message| message[4] = 8);
    hand.hear(fickle, &wanted);
    hand.takers.insert(fickle);
    hand.take(fickle);
    hand.turn();
    assert!(hand.is_open(fickle), "{:?}", hand.counters.closed());
    assert_eq!(hand.shard.held_extents(), 0);
}

/// While the first of many requests waited for its read, what had been read for those far behind it was let go
/// at once, and read again, and let go: one slow read made a seed read others a thousand times over. Nothing is
/// read that would not be held.
#[test]
fn what_is_read_ahead_of_a_slow_read_is_read_once() {
    let mut hand = big_seed();
    let peer = hand.join("10.0.0.1");
    hand.stuck_read = Some(0);
    // Extents of 256 KiB: the first one does not come, and eleven follow it.
    (0..12).for_each(|piece| hand.hear(peer, &request(piece, 0)));
    hand.pass(Duration::from_secs(1));
    assert_eq!((hand.stuck.len(), hand.reads), (1, 7), "eight extents are held at most");
    hand.stuck_read = None;
    let stuck = hand.stuck.pop().unwrap();
    hand.execute(stuck);
    hand.turn();
    assert_eq!(hand.reads, 12);
    assert!(hand.sent_bytes[&peer] >= 12 * 16_384, "{:?}", hand.sent_bytes);
}

/// The table of handshakes is full: who goes is of the network that has most of them, be it younger than
/// the one newcomer of another.
#[test]
fn a_lone_slow_newcomer_is_not_crowded_out_by_a_flood() {
    let mut hand = Hand::new(|config| config.peers_max = 1024);
    let handshakes_max = 256;
    let honest = hand.knock("192.168.0.1");
    for number in 0..600_u32 {
        let [.., a, b] = (number / 8).to_be_bytes();
        hand.knock(&format!("10.0.{a}.{b}"));
    }
    assert!(hand.is_open(honest), "{:?}", hand.counters.closed());
    let open = hand.counters.peers.get();
    assert!(open <= handshakes_max, "{open} half-open connections");
    assert_eq!(hand.closed_by("crowded-out"), 601 - handshakes_max);
    let hello = hand.handshake(1);
    hand.hear(honest, &hello);
    assert!(hand.is_open(honest));
}

/// Whoever asks again and again for leaves that are lost has the pieces hashed once, not each time.
#[test]
fn pieces_that_wait_for_a_check_are_not_checked_twice() {
    let mut hand = big_seed_of(Kind::V2);
    let root = hand.metainfo.info().files().next().unwrap().pieces_root.unwrap();
    let request = ringseed_core::wire::HashRequest {
        pieces_root: root,
        base_layer: 0,
        index: 0,
        length: 512,
        proof_layers: 0,
    };
    assert!(hand.shard.leaf_answer(ListingId(1), request).is_some());
    hand.turn();
    let before = hand.reads;
    for _ in 0..50 {
        assert!(hand.shard.leaves_again(ListingId(1), request));
    }
    hand.turn();
    let extents = 512 * 16_384 / (256 << 10);
    assert!(hand.reads - before >= extents, "nothing was hashed again");
    assert!(hand.reads - before <= extents + 2, "{} reads of {extents}", hand.reads - before);
}

/// Strangers who ask for the leaves of everything have a quarter of a gigabyte hashed at once, and then 32 MiB
/// a second, whatever they ask: the rest is refused.
#[test]
fn lost_leaves_are_made_again_no_faster_than_the_allowance() {
    let mut hand = sparse_seed_of(Kind::V2, 512 << 20);
    let root = hand.metainfo.info().files().next().unwrap().pieces_root.unwrap();
    let request = |part: u32| ringseed_core::wire::HashRequest {
        pieces_root: root,
        base_layer: 0,
        index: part * 512,
        length: 512,
        proof_layers: 0,
    };
    assert!(hand.shard.leaf_answer(ListingId(1), request(63)).is_some());
    hand.turn();
    let mut parts = 0..63;
    let mut made = |hand: &mut Hand| {
        parts
            .by_ref()
            .take_while(|&part| hand.shard.leaves_again(ListingId(1), request(part)))
            .count()
    };
    assert_eq!(made(&mut hand), 256 / 8);
    hand.pass(Duration::from_millis(1_010));
    assert_eq!(made(&mut hand), 32 / 8);
    assert_eq!(made(&mut hand), 0);
}

/// Requests that cross extents were counted anew with every turn. What a send had no room for, behind long
/// answers, met those of the next turn, and the send that took them all had more parts than a send may
/// have: a panic that any peer could cause.
#[test]
fn crossing_requests_behind_many_answers_do_no_harm() {
    let long_names = |dir: &Path| {
        std::fs::create_dir_all(dir.join("data")).unwrap();
        for file in 0..200 {
            let name = format!("data/a-rather-long-name-{file:0>60}");
            std::fs::write(dir.join(name), b"x").unwrap();
        }
        let file = std::fs::File::create(dir.join("data/sparse.bin")).unwrap();
        file.set_len(3 << 20).unwrap();
    };
    let mut hand = Hand::of(long_names, 1 << 20, |_| {});
    let peer = hand.knock("10.0.0.1");
    hand.takers.insert(peer);
    let mut hello = hand.handshake(1);
    hello[25] = 0x10; // extensions
    hello.extend([0, 0, 0, 1, 15, 0, 0, 0, 1, 2]); // have none, interested
    hello.extend(extended(0, b"d1:md11:ut_metadatai3eee"));
    hand.hear(peer, &hello);
    // Both extents are in memory from here on, and the peer is known to be quick.
    let crossing = |before: u32, len: u32| request_of(1, (256 << 10) - before, len);
    (0..4).for_each(|at| hand.hear(peer, &crossing(100 + at, 200)));
    hand.takers.remove(&peer);
    hand.hear(peer, &crossing(50, 100));
    assert!(hand.sending.contains_key(&peer));
    // Meanwhile as many answers gather as may, and more blocks than go behind them.
    let questions = extended(1, b"d8:msg_typei0e5:piecei0ee").repeat(20);
    hand.hear(peer, &questions);
    (0..39).for_each(|at| hand.hear(peer, &crossing(1_000 + at, 26 << 10)));
    (0..80).for_each(|at| hand.hear(peer, &crossing(1 + at, 2 + at)));
    let step = |hand: &mut Hand| {
        hand.take(peer);
        hand.turn();
        let (_, buf) = &hand.sending[&peer];
        (buf.small.len(), buf.len_bytes(), buf.parts.len())
    };
    let (answers, all, _) = step(&mut hand);
    assert!(answers > 256 << 10 && all >= 1 << 20, "{answers} bytes of answers of {all}");
    let (_, _, parts) = step(&mut hand);
    assert!((100..=SEND_PARTS_MAX).contains(&parts), "{parts} parts");
    hand.takers.insert(peer);
    hand.take(peer);
    hand.turn();
    assert!(hand.is_open(peer), "{:?}", hand.counters.closed());
    let payload = 4 * 200 + 100 + 39 * (26 << 10) + (2..82).sum::<u64>();
    assert_eq!(hand.counters.payload_sent_bytes.get(), payload);
}

/// Questions whose answers would have been thrown away were read and hashed for first: a millisecond each.
#[test]
fn nothing_is_read_for_an_answer_that_will_not_be_sent() {
    let join = |hand: &mut Hand, number: u64| {
        let sock = hand.knock(&format!("10.0.{}.{}", number / 100, number % 100));
        let mut hello = hand.handshake(number);
        hello[27] |= 0x10; // speaks v2
        hello.extend([0, 0, 0, 1, 15]);
        hand.hear(sock, &hello);
        sock
    };
    let question = |hand: &Hand, base_layer: u32, length: u32| {
        let root = hand.metainfo.info().files().next().unwrap().pieces_root.unwrap();
        let numbers = [base_layer, 0, length, 0].map(u32::to_be_bytes);
        [&[0, 0, 0, 49, 21], &root[..], numbers.as_flattened()].concat()
    };
    let reads_for_leaves = |hand: &mut Hand| {
        let (before, sock) = (hand.reads, join(hand, 5_000));
        let asked = question(hand, 0, 1024);
        hand.hear(sock, &asked);
        hand.turn();
        assert!(hand.is_open(sock), "{:?}", hand.counters.closed());
        hand.reads - before
    };
    let mut calm = big_seed_of(Kind::V2);
    assert!(reads_for_leaves(&mut calm) > 0, "leaves come from the disk");
    let mut hand = big_seed_of(Kind::V2);
    for number in 0..120 {
        let sock = join(&mut hand, number);
        let layer = question(&hand, 4, 256);
        (0..40).for_each(|_| hand.hear(sock, &layer));
    }
    let waiting = hand.shard.answer_bytes();
    assert!(waiting > 15 << 20, "{waiting} bytes wait");
    assert_eq!(reads_for_leaves(&mut hand), 0);
}
