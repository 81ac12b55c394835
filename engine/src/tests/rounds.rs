//! Whose turn it is to be sent something, and how much a turn is.

use super::hand::{Hand, big_seed, request_of, requests_from};
use super::*;
use crate::io::SockId;
use crate::shard::command::Command;
use crate::{Rates, Scope};

/// A peer that takes what it is sent at the pace of the test, and asks for more in time.
struct Taker {
    sock: SockId,
    /// Length of its requests in bytes.
    request_len: u32,
    /// How often it takes what there is.
    every: Duration,
    next_at: Instant,
    asked: u64,
    before: u64,
    /// How often it came to take something, and how often there was nothing.
    turns: u32,
    in_vain: u32,
}

impl Taker {
    fn join(hand: &mut Hand, ip: &str, request_len: u32, every: Duration) -> Taker {
        let sock = hand.join(ip);
        hand.takers.remove(&sock);
        hand.take(sock);
        let before = hand.sent_bytes.get(&sock).copied().unwrap_or(0);
        let (next_at, asked) = (hand.now, 0);
        Taker { sock, request_len, every, next_at, asked, before, turns: 0, in_vain: 0 }
    }

    fn got(&self, hand: &Hand) -> u64 {
        hand.sent_bytes.get(&self.sock).copied().unwrap_or(0) - self.before
    }

    fn act(&mut self, hand: &mut Hand) {
        // A MiB is always asked for ahead.
        while self.asked <= self.got(hand) + (1 << 20) {
            let piece = (self.asked >> 18) as u32 % 240;
            let in_piece = (256 << 10) / self.request_len;
            let all = (0..in_piece)
                .flat_map(|at| request_of(piece, at * self.request_len, self.request_len));
            hand.hear(self.sock, &all.collect::<Vec<_>>());
            self.asked += 256 << 10;
        }
        if self.next_at <= hand.now {
            self.turns += 1;
            self.in_vain += u32::from(!hand.sending.contains_key(&self.sock));
            hand.take(self.sock);
            self.next_at = hand.now + self.every;
        }
    }
}

/// Lets all of them take for so long; what each has got, in bytes.
fn run(hand: &mut Hand, takers: &mut [Taker], time: Duration) -> Vec<u64> {
    let end = hand.now + time;
    while hand.now < end {
        takers.iter_mut().for_each(|taker| taker.act(hand));
        hand.pass(Duration::from_millis(5));
    }
    takers.iter().map(|taker| taker.got(hand)).collect()
}

fn cap(hand: &mut Hand, upload: u64) {
    let rates = Rates { upload: Some(upload), ..Rates::default() };
    hand.mesh.limiter().set(Scope::All, rates);
    hand.command(Command::RatesChanged);
}

const FAST: Duration = Duration::from_millis(5);

/// Peers that take something now and then keep what they were sent, and stand in the round with everybody else.
/// Whoever is quick finds something to take whenever it comes, and more than any of them gets.
#[test]
fn dribblers_block_nobody() {
    let mut hand = big_seed();
    let mut all: Vec<Taker> = (1..3)
        .map(|at| Taker::join(&mut hand, &format!("192.168.0.{at}"), 16 << 10, FAST))
        .collect();
    let slow = Duration::from_millis(700);
    all.extend((0..8).map(|at| Taker::join(&mut hand, &format!("10.0.0.{at}"), 16 << 10, slow)));
    let got = run(&mut hand, &mut all, Duration::from_secs(4));
    for quick in &all[..2] {
        assert!(quick.turns > 700 && quick.in_vain * 50 <= quick.turns, "{:?}", quick.in_vain);
    }
    assert!(got[..2].iter().all(|&quick| got[2..].iter().all(|&one| one * 10 < quick)), "{got:?}");
    assert!(got[2..].iter().all(|&one| one > 0), "they get something as well: {got:?}");
}

/// Whatever a peer asks for at once: under a cap many small requests and few large ones get the same, and so does
/// whoever joined last. Each turn gave a request, and those of 128 KiB eight times as much as those of 16.
#[test]
fn many_small_requests_and_few_large_ones_get_the_same() {
    let mut hand = big_seed();
    cap(&mut hand, 8_000_000);
    let lens = [16 << 10, 128 << 10, 16 << 10, 64 << 10, 128 << 10];
    let mut takers: Vec<Taker> = (0..)
        .zip(lens)
        .map(|(at, len)| Taker::join(&mut hand, &format!("192.168.0.{at}"), len, FAST))
        .collect();
    let got = run(&mut hand, &mut takers, Duration::from_secs(20));
    let all: u64 = got.iter().sum();
    assert!((150_000_000..170_000_000).contains(&all), "{all} bytes at 8 MB/s in 20 s");
    let mean = all / got.len() as u64;
    assert!(got.iter().all(|&one| one.abs_diff(mean) <= mean / 20), "{got:?}");
}

/// What the cap would let go at once after a pause is more than a turn.
#[test]
fn a_turn_under_a_cap_is_256_kib() {
    for (upload, turn) in [(Some(80_000_000), 256 << 10), (None, 1 << 20)] {
        let mut hand = big_seed();
        let quick = hand.join("192.168.0.1");
        // Whoever takes all at once is sent a MiB at once.
        (0..8).for_each(|at| hand.hear(quick, &requests_from(at * 4)));
        if let Some(upload) = upload {
            cap(&mut hand, upload);
        }
        hand.pass(Duration::from_secs(1));
        hand.takers.remove(&quick);
        hand.hear(quick, &requests_from(100)[..60 * 17]);
        let len = hand.sending[&quick].1.len_bytes();
        assert!((turn * 9 / 10..turn + 1024).contains(&len), "{len} bytes with {upload:?}");
    }
}

/// What a peer takes back before its turn has come is not sent (BEP 3, `cancel`), and what stands behind it is.
#[test]
fn what_is_taken_back_is_not_sent() {
    let mut hand = big_seed();
    let peer = hand.join("10.0.0.1");
    hand.takers.remove(&peer);
    hand.take(peer);
    // 64 requests: what is on its way when they are taken back goes out.
    hand.hear(peer, &requests_from(0));
    let begun = hand.sending[&peer].1.len_bytes() as u64;
    let before = hand.sent_bytes.get(&peer).copied().unwrap_or(0);
    let mut cancels = requests_from(0);
    cancels.chunks_mut(17).for_each(|message| message[4] = 8);
    hand.hear(peer, &cancels);
    hand.hear(peer, &request_of(9, 0, 16 << 10));
    hand.takers.insert(peer);
    hand.take(peer);
    hand.pass(Duration::from_secs(1));
    let got = hand.sent_bytes[&peer] - before;
    // Each that was taken back is answered by a refusal of 17 bytes (BEP 6).
    let rest = got - begun;
    assert!(begun < 1 << 20, "all was on its way already");
    assert!((16_384..16_384 + 64 * 17 + 100).contains(&rest), "{begun} and then {rest} bytes");
}
