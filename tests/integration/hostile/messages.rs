//! B4, B5, B6, B8: messages that no honest peer sends, one of them or far too many. Each attack ends the
//! connection by the code that it is to have, within its deadline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringseed_tests::attacker::{Raw, Target, about_block, message};

use crate::seed::{Ended, PIECE_LEN, Seed, evil, joined};

/// A message that breaks a rule ends the connection when it is read; the rest is for a busy machine.
const BREACH_MAX: Duration = Duration::from_secs(3);
/// A flood ends it as soon as the burst is used up that is free to everybody: a few thousand messages.
const FLOOD_MAX: Duration = Duration::from_secs(5);

/// Attackers that were gone in time, by the address each came from and the code that it is to be named with.
#[derive(Default)]
struct Gone {
    by_host: Vec<&'static str>,
    slowest: Duration,
}

impl Gone {
    /// The address of the next one.
    fn host(&self) -> u32 {
        self.by_host.len() as u32
    }

    fn push(&mut self, code: &'static str, after: Duration) {
        self.by_host.push(code);
        self.slowest = self.slowest.max(after);
    }

    /// The seed has counted each by its code and nothing else, and named those that came first in the log; a
    /// flood of one kind is written by the second, and says how many lines it left out.
    #[track_caller]
    fn expect_in(&self, ended: &Ended) {
        const ALWAYS_WRITTEN: usize = 32;
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (host, code) in (0..).zip(&self.by_host) {
            let count = counts.entry(code).or_default();
            *count += 1;
            let is_named = ended.names(code, evil(host));
            assert!(is_named || *count > ALWAYS_WRITTEN as u64, "{code} of {host}:\n{}", ended.log);
        }
        // How honest peers of the test end, who first ask before there is anything.
        let is_ours =
            |code: &str| !["network", "gone", "unknown-torrent", "duplicate"].contains(&code);
        let mut closed = ended.closed.clone();
        closed.retain(|code, count| is_ours(code) && *count > 0);
        let closed: BTreeMap<&str, u64> =
            closed.iter().map(|(code, count)| (code.as_str(), *count)).collect();
        assert_eq!(closed, counts, "{}", ended.log);
        eprintln!("{} attackers, each gone after {:?} at most", self.by_host.len(), self.slowest);
    }
}

/// B4: numbers that overflow, blocks past the end. B5: bitfields that lie.
#[test]
fn false_numbers_and_bitfields_end_the_connection_at_once() {
    let seed = Seed::start(3 << 20, "");
    let target = &seed.target;
    let count = target.piece_count;
    let numbers = [0, 1, PIECE_LEN - 1, PIECE_LEN, count - 1, count, 1 << 31, u32::MAX];
    let mut gone = Gone::default();
    let mut attack = |what: &str, code: &'static str, bytes: &[u8], has_said: bool| {
        let host = gone.host();
        let mut raw = match has_said {
            true => joined(target, host),
            false => Raw::greet(target, evil(host), host).expect("accepted"),
        };
        raw.push(bytes);
        let after = raw.wait_ended(BREACH_MAX);
        gone.push(code, after.unwrap_or_else(|| panic!("{what} is borne")));
    };
    for id in [6, 7, 8, 16] {
        for piece in [0, count - 1, count, u32::MAX] {
            for begin in numbers {
                for len in [0, 1, 16_384, 16_385, (128 << 10) + 1, u32::MAX] {
                    // A block as BEP 3 cuts it, or the file's short end, is allowed, and so is a request
                    // of up to 128 KiB.
                    let is_inside =
                        piece < count && begin.checked_add(len).is_some_and(|end| end <= PIECE_LEN);
                    let is_right = is_inside && (1..=128 << 10).contains(&len);
                    if is_right && (id == 6 || id == 8) {
                        continue;
                    }
                    let bytes = match id {
                        7 => block(piece, begin, len),
                        _ => about_block(id, piece, begin, len),
                    };
                    let code = match id {
                        // Nothing, more than a block has, a length that wraps round to less than its header.
                        7 if len == 0 || len > 16_384 => "bad-message",
                        7 if is_right => "unasked-block",
                        16 if is_right && len <= 16_384 => "unasked-reject",
                        _ => "out-of-range",
                    };
                    let what = format!("message {id} of {piece}, {begin}, {len}");
                    attack(&what, code, &bytes, true);
                }
            }
        }
    }
    let full = vec![0xff; count.div_ceil(8) as usize];
    let none = message(5, &vec![0; full.len()]);
    assert_ne!(full.len() * 8, count as usize, "no bit to spare");
    let bitfields: Vec<(&str, &'static str, Vec<u8>)> = vec![
        ("bits beyond the last piece", "bad-bitfield", message(5, &full)),
        ("too short", "bad-message", message(5, &full[..full.len() - 1])),
        ("empty", "bad-message", message(5, &[])),
        ("too long", "bad-message", message(5, &[&full[..], &[0]].concat())),
        ("a mebibyte", "bad-message", message(5, &vec![0; 1 << 20])),
        // One that comes late is read as haves (aria2 sends such); again and again it is a flood.
        ("bitfields again and again", "flood-haves", none.repeat(5000)),
        ("have-none twice", "bitfield-twice", [message(15, &[]), message(15, &[])].concat()),
        ("have-all behind a bitfield", "bitfield-twice", [none, message(14, &[])].concat()),
        ("have past the end", "out-of-range", message(4, &count.to_be_bytes())),
        ("have of 2^32-1", "out-of-range", message(4, &[0xff; 4])),
        ("have spam", "flood-haves", message(4, &[0; 4]).repeat(3000)),
        ("suggest past the end", "out-of-range", message(13, &count.to_be_bytes())),
        ("a short have", "bad-message", message(4, &[0; 3])),
        ("a length of 4 GiB", "bad-message", vec![0xff; 5]),
    ];
    for (what, code, bytes) in &bitfields {
        attack(what, code, bytes, false);
    }
    gone.expect_in(&seed.end());
}

/// A message that claims to carry `len` bytes of a block; no more of them than a few blocks are sent.
fn block(piece: u32, begin: u32, len: u32) -> Vec<u8> {
    let mut bytes = 9_u32.wrapping_add(len).to_be_bytes().to_vec();
    bytes.push(7);
    bytes.extend([piece, begin].map(u32::to_be_bytes).as_flattened());
    bytes.resize(bytes.len() + len.min(64 << 10) as usize, 0);
    bytes
}

/// B6: questions about the info dict and hashes without end, answers that nobody asked for. B8: requests
/// while choked make no sense to a seed that unchokes, so: requests beyond the queue, choking and
/// unchoking without end. And everything that can be said for nothing.
#[test]
fn floods_of_messages_end_the_connection_and_cost_no_memory() {
    let seed = Seed::start(3 << 20, "");
    let target = &seed.target;
    let metadata = message(20, b"\x01d8:msg_typei0e5:piecei0ee");
    let bomb = message(20, b"\x00d1:md11:ut_metadatai3ee13:metadata_sizei4294967295ee");
    let unasked = |len: usize| {
        let mut payload = b"\x01d8:msg_typei1e5:piecei0e10:total_sizei4294967295ee".to_vec();
        payload.extend(vec![7; len]);
        message(20, &payload)
    };
    const CHATTER: &str = "flood-chatter";
    let none = Vec::new();
    let floods: Vec<(&str, &'static str, Vec<u8>, Vec<u8>)> = vec![
        ("keep-alives", CHATTER, none.clone(), vec![0; 4]),
        ("unknown messages", CHATTER, none.clone(), message(99, &[1, 2, 3])),
        ("interest", CHATTER, none.clone(), [message(2, &[]), message(3, &[])].concat()),
        ("chokes", "flood-chokes", none.clone(), [message(0, &[]), message(1, &[])].concat()),
        ("cancels", CHATTER, none.clone(), about_block(8, 0, 0, 16_384)),
        ("allowed-fast", CHATTER, none.clone(), message(17, &[0; 4])),
        ("extension handshakes", CHATTER, none.clone(), bomb.clone()),
        ("metadata questions", CHATTER, bomb.clone(), metadata),
        ("metadata unasked", CHATTER, bomb, unasked(16_384)),
        ("hash questions", CHATTER, none.clone(), hash_question(&[0x55; 32], 0, 8192)),
        ("one request again and again", CHATTER, message(2, &[]), about_block(6, 0, 0, 16_384)),
        ("peer exchange", CHATTER, none.clone(), pex(50)),
        ("requests past the queue", "flood-requests", message(2, &[]), distinct_requests(target)),
    ];
    let mut gone = Gone::default();
    for (what, code, first, again) in &floods {
        let mut raw = joined(target, gone.host());
        raw.push(first);
        let batch = again.repeat((16_384 / again.len()).max(1));
        let start = Instant::now();
        // Reads nothing, or the answers would come back to it as fast as it asks.
        while raw.push(&batch) && !raw.is_ended() {
            assert!(start.elapsed() < FLOOD_MAX, "{what} are borne");
        }
        gone.push(code, start.elapsed());
    }
    gone.expect_in(&seed.end());
}

/// Requests that are all different, and all right.
fn distinct_requests(target: &Target) -> Vec<u8> {
    let requests = (0..4096).map(|at| about_block(6, at % target.piece_count, 0, 1 + at));
    requests.collect::<Vec<_>>().concat()
}

/// A question for hashes of the leaf layer (BEP 52).
pub fn hash_question(pieces_root: &[u8; 32], index: u32, length: u32) -> Vec<u8> {
    let numbers = [0, index, length, 0].map(u32::to_be_bytes);
    message(21, &[&pieces_root[..], numbers.as_flattened()].concat())
}

/// Peer exchange (an extension that nobody offered) with made-up addresses, all of one listener of ours.
fn pex(count: usize) -> Vec<u8> {
    let mut payload = format!("\u{1}d5:added{}:", count * 6).into_bytes();
    payload[0] = 9;
    (0..count).for_each(|_| payload.extend([127, 0, 0, 1, 0x1f, 0x90]));
    payload.push(b'e');
    message(20, &payload)
}
