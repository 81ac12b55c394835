//! One shard at the hands of a test: it says what completes, and when. Deadlines of minutes take no time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{channel, sync_channel};

use ringseed_sys::arena::Arena;

use super::*;
use crate::Rates;
use crate::io::{
    Completion, Done, FileId, Machine, Op, OpId, Ops, ReadPath, RecvBuf, SEND_PARTS_MAX, SendBuf,
    SockId,
};
use crate::shard::command::{Command, CommandQueue, Counters, NewListing};
use crate::shard::mesh::Mesh;
use crate::shard::{Shard, ShardParts};
use crate::store;
use crate::test_support::{TestDir, tree};

/// What waits on a socket.
enum Reading {
    Poll(OpId),
    Recv(OpId, RecvBuf),
}

/// A shard, its sockets, and a disk that always answers at once.
struct Hand {
    _dir: TestDir,
    shard: Shard,
    queue: Arc<CommandQueue>,
    counters: Arc<Counters>,
    metainfo: Arc<Metainfo>,
    now: Instant,
    next: u64,
    reading: BTreeMap<SockId, Reading>,
    /// Sends that the peer has not taken.
    sending: BTreeMap<SockId, (OpId, SendBuf)>,
    /// Sockets whose peers take everything at once.
    takers: BTreeSet<SockId>,
    sent_bytes: BTreeMap<SockId, u64>,
    closed: BTreeSet<SockId>,
    dialled: Vec<(OpId, SocketAddr)>,
    reads: u64,
    /// Reads from this place of the files do not end.
    stuck_read: Option<u64>,
    stuck: Vec<Op>,
}

impl Hand {
    fn new(change: impl FnOnce(&mut Config)) -> Hand {
        Hand::of(|source| tree(&source.join("data"), 6), 64 << 10, change)
    }

    fn of(make: impl FnOnce(&Path), piece_len: u64, change: impl FnOnce(&mut Config)) -> Hand {
        Hand::of_kind(Kind::V1, make, piece_len, change)
    }

    fn of_kind(
        kind: Kind,
        make: impl FnOnce(&Path),
        piece_len: u64,
        change: impl FnOnce(&mut Config),
    ) -> Hand {
        let dir = TestDir::new("door");
        let source = dir.path().join("source");
        make(&source);
        let metainfo = torrent(&source.join("data"), kind, piece_len);
        let mut config = Config::new(dir.path().join("state"), *b"-RS0100-door00000000");
        config.arena_len_bytes = 16 << 20;
        config.limit_loopback = true;
        change(&mut config);
        std::fs::create_dir_all(&config.state_dir).unwrap();
        let (state, mut recovered) = store::open_state_dir(&config.state_dir, false).unwrap();
        let (queue, counters) = (Arc::new(CommandQueue::default()), Arc::new(Counters::default()));
        let now = Instant::now();
        let mesh = Mesh::new(
            vec![queue.clone()],
            std::mem::take(&mut recovered.recovered),
            recovered.writer.slots(),
            1,
            Rates::default(),
        );
        let parts = ShardParts {
            arena: Arena::new(config.arena_len_bytes).unwrap(),
            config,
            queue: queue.clone(),
            counters: counters.clone(),
            events: channel().0,
            state: Arc::new(state),
            recovered: Some(recovered),
            mesh,
            index: 0,
            seed: 1,
        };
        let shard = Shard::new(parts, now);
        let mut hand = Hand {
            shard,
            queue,
            counters,
            metainfo: metainfo.clone(),
            now,
            next: 0,
            reading: BTreeMap::new(),
            sending: BTreeMap::new(),
            takers: BTreeSet::new(),
            sent_bytes: BTreeMap::new(),
            closed: BTreeSet::new(),
            dialled: Vec::new(),
            reads: 0,
            stuck_read: None,
            stuck: Vec::new(),
            _dir: dir,
        };
        let (answer, answers) = sync_channel(1);
        let new = NewListing {
            id: ListingId(1),
            identity: Identity::Metainfo(metainfo),
            asked_by_hash: false,
            place: Place::InPlace(source.clone()),
            root: Arc::new(ringseed_sys::dir::DirHandle::open(&source).unwrap()),
            is_fresh: false,
            bad_files: Vec::new(),
            is_kept: false,
            stamp: None,
            changed_ns: Vec::new(),
            verify_v1: true,
            known_complete: true,
            size_max_bytes: None,
            peers: Vec::new(),
            select: None,
        };
        hand.command(Command::Add(vec![new], answer));
        answers.try_recv().unwrap().remove(0).unwrap();
        hand
    }

    fn command(&mut self, command: Command) {
        self.queue.push(command);
        self.shard.handle_wake(self.now);
        self.turn();
    }

    fn complete(&mut self, id: OpId, done: Done) {
        self.shard.handle(Completion { id, done }, self.now);
    }

    /// Lets the shard act until it has nothing more to say.
    fn turn(&mut self) {
        let mut ops = Ops::new();
        loop {
            self.shard.poll(&mut ops, self.now);
            if ops.is_empty() {
                return;
            }
            while let Some(op) = ops.pop_front() {
                self.execute(op);
            }
        }
    }

    fn execute(&mut self, op: Op) {
        let cancelled = || io::Error::from_raw_os_error(125);
        match op {
            Op::PollIn { id, sock } if self.closed.contains(&sock) => {
                self.complete(id, Done::Readable(Err(cancelled())));
            }
            Op::PollIn { id, sock } => {
                self.reading.insert(sock, Reading::Poll(id));
            }
            Op::Recv { id, sock, buf } => {
                self.reading.insert(sock, Reading::Recv(id, buf));
            }
            Op::Send { id, sock, buf } => {
                self.sending.insert(sock, (id, buf));
                if self.takers.contains(&sock) {
                    self.take(sock);
                }
            }
            Op::Close { sock } => {
                self.closed.insert(sock);
                match self.reading.remove(&sock) {
                    Some(Reading::Poll(id)) => self.complete(id, Done::Readable(Err(cancelled()))),
                    Some(Reading::Recv(id, buf)) => {
                        self.complete(id, Done::Received(Err(cancelled()), buf));
                    }
                    None => {}
                }
                if let Some((id, buf)) = self.sending.remove(&sock) {
                    self.complete(id, Done::Sent(Err(cancelled()), buf));
                }
            }
            Op::Connect { id, addr, .. } => self.dialled.push((id, addr)),
            Op::Open { id, .. } => {
                self.next += 1;
                let file = FileId(self.next);
                self.complete(id, Done::Opened(Ok((file, 1 << 40))));
            }
            Op::Read { offset_bytes, .. } if self.stuck_read == Some(offset_bytes) => {
                self.stuck.push(op);
            }
            Op::Read { id, buf, len, .. } => {
                self.reads += 1;
                self.complete(id, Done::Read(Ok((len, ReadPath::Direct)), buf));
            }
            Op::WriteSmall { id, .. } => self.complete(id, Done::SmallWritten(Ok(()))),
            Op::Sync { id, .. } => self.complete(id, Done::Synced(Ok(()))),
            Op::Allocate { id, .. } => self.complete(id, Done::Allocated(Ok(()))),
            Op::CloseFile { .. } => {}
            other => panic!("not expected of a seed: {other:?}"),
        }
    }

    /// The peer takes what is being sent to it.
    fn take(&mut self, sock: SockId) {
        if let Some((id, buf)) = self.sending.remove(&sock) {
            *self.sent_bytes.entry(sock).or_default() += buf.len_bytes() as u64;
            self.complete(id, Done::Sent(Ok(()), buf));
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.shard.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at) + Duration::from_nanos(1);
            self.turn();
        }
        self.now = self.now.max(end);
        self.turn();
    }

    fn knock(&mut self, ip: &str) -> SockId {
        self.next += 1;
        let sock = SockId(self.next);
        let ip: IpAddr = ip.parse().unwrap();
        let peer = SocketAddr::new(ip, 10_000 + (self.next % 50_000) as u16);
        self.complete(OpId(0), Done::Accepted { sock, peer });
        self.turn();
        sock
    }

    /// Bytes come in on a socket.
    fn hear(&mut self, sock: SockId, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.reading.remove(&sock) {
                Some(Reading::Poll(id)) => self.complete(id, Done::Readable(Ok(()))),
                Some(Reading::Recv(id, mut buf)) => {
                    let len = bytes.len().min(buf.len_bytes());
                    let filled = buf.fill_from(&bytes[..len]).unwrap();
                    bytes = &bytes[filled..];
                    self.complete(id, Done::Received(Ok(filled), buf));
                }
                None => return, // closed
            }
            self.turn();
        }
    }

    fn handshake(&self, name: u64) -> Vec<u8> {
        let mut bytes = b"\x13BitTorrent protocol".to_vec();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 4]); // the fast extension
        bytes.extend(self.metainfo.info().info_hash_v1().unwrap());
        bytes.extend(format!("-XX0001-{name:012}").into_bytes());
        bytes
    }

    /// A peer that has nothing, wants all, takes what it is sent.
    fn join(&mut self, ip: &str) -> SockId {
        let sock = self.knock(ip);
        self.takers.insert(sock);
        let mut hello = self.handshake(sock.0);
        hello.extend([0, 0, 0, 1, 15, 0, 0, 0, 1, 2]); // have none, interested
        self.hear(sock, &hello);
        sock
    }

    fn is_open(&self, sock: SockId) -> bool {
        !self.closed.contains(&sock)
    }

    fn closed_by(&self, code: &str) -> u64 {
        self.counters.closed().get(code).copied().unwrap_or(0)
    }
}

fn request(piece: u32, begin: u32) -> Vec<u8> {
    request_of(piece, begin, 16_384)
}

fn request_of(piece: u32, begin: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 13, 6];
    [piece, begin, len].iter().for_each(|number| bytes.extend(number.to_be_bytes()));
    bytes
}

/// A message of the extension protocol (BEP 10).
fn extended(id: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32 + 2;
    [&len.to_be_bytes()[..], &[20, id], payload].concat()
}

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

impl Hand {
    /// The peer closes.
    fn complete_close(&mut self, sock: SockId) {
        loop {
            match self.reading.remove(&sock) {
                Some(Reading::Poll(id)) => self.complete(id, Done::Readable(Ok(()))),
                Some(Reading::Recv(id, buf)) => self.complete(id, Done::Received(Ok(0), buf)),
                None => return,
            }
            self.turn();
        }
    }
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

/// A seed of 64 MiB, four times its arena.
fn big_seed() -> Hand {
    big_seed_of(Kind::V1)
}

fn big_seed_of(kind: Kind) -> Hand {
    sparse_seed_of(kind, 64 << 20)
}

fn sparse_seed_of(kind: Kind, len_bytes: u64) -> Hand {
    Hand::of_kind(
        kind,
        move |dir| {
            std::fs::create_dir_all(dir.join("data")).unwrap();
            let file = std::fs::File::create(dir.join("data/sparse.bin")).unwrap();
            file.set_len(len_bytes).unwrap();
            // A folder of one file alone makes no v2 torrent.
            std::fs::write(dir.join("data/tail.bin"), b"x").unwrap();
        },
        256 << 10,
        |_| {},
    )
}

impl Hand {
    /// A peer that asks for 64 blocks from a piece on and takes nothing.
    fn join_deaf(&mut self, ip: &str, piece: u32) -> SockId {
        let sock = self.join(ip);
        self.takers.remove(&sock);
        (0..64).for_each(|at| self.hear(sock, &request(piece + at / 16, at % 16 * 16_384)));
        sock
    }
}

/// 64 requests from a piece on, in one breath.
fn requests_from(piece: u32) -> Vec<u8> {
    (0..64).flat_map(|at| request(piece + at / 16, at % 16 * 16_384)).collect()
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
    let before = hand.shard.held_extents();
    hand.pass(Duration::from_secs(3));
    // Some still wait for the extent that they can begin with, and hold what is behind it.
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
