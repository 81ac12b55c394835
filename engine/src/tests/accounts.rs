//! What connections of one peer get together, and what one connection of another gets.

use super::hand::{Hand, big_seed, requests_from};
use super::*;
use crate::io::SockId;
use crate::shard::command::Command;

/// Takes what each connection is sent, as fast as all of them take it, for so long; each asks for more in time.
/// What each has got, in bytes.
fn take_all(hand: &mut Hand, socks: &[SockId], time: Duration) -> Vec<u64> {
    socks.iter().for_each(|sock| {
        hand.takers.remove(sock);
    });
    let mut asked = vec![0_u64; socks.len()];
    let got = |hand: &Hand, sock: &SockId| hand.sent_bytes.get(sock).copied().unwrap_or(0);
    let before: Vec<u64> = socks.iter().map(|sock| got(hand, sock)).collect();
    let end = hand.now + time;
    while hand.now < end {
        for (at, &sock) in socks.iter().enumerate() {
            while asked[at] <= got(hand, &sock) - before[at] {
                let piece = asked[at] / (1 << 20) * 4 % 240;
                hand.hear(sock, &requests_from(piece as u32));
                asked[at] += 1 << 20;
            }
            hand.take(sock);
        }
        hand.pass(Duration::from_millis(10));
    }
    socks.iter().zip(before).map(|(sock, before)| got(hand, sock) - before).collect()
}

/// Eight connections of one address got eight times as much as the one of another.
#[test]
fn an_address_gets_what_others_get_however_many_connections_it_makes() {
    let mut hand = big_seed();
    let crowd = (0..8).map(|_| hand.join("10.0.0.1")).collect::<Vec<_>>();
    let others = (2..5).map(|host| hand.join(&format!("10.0.0.{host}")));
    let socks: Vec<SockId> = crowd.into_iter().chain(others.collect::<Vec<_>>()).collect();
    let got = take_all(&mut hand, &socks, Duration::from_secs(20));
    let all: u64 = got[..8].iter().sum();
    let other = got[8..].iter().sum::<u64>() / 3;
    let share = all as f64 / other as f64;
    assert!((0.9..=1.2).contains(&share), "{share}: {got:?}");
    // In turns: none of them is left without.
    assert!(got[..8].iter().all(|&one| one > 0), "{got:?}");
    assert!(socks.iter().all(|&sock| hand.is_open(sock)));
}

/// A /64 is one address, and so is an IPv4 address in IPv6 clothes.
#[test]
fn other_names_of_an_address_bring_it_nothing() {
    let mut hand = big_seed();
    let ips = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"];
    let socks: Vec<SockId> = ips.iter().map(|ip| hand.join(ip)).collect();
    let got = take_all(&mut hand, &socks, Duration::from_secs(20));
    let share = got[..3].iter().sum::<u64>() as f64 / got[3] as f64;
    assert!((0.9..=1.2).contains(&share), "{share}: {got:?}");
}

/// Each connection of a member counts by itself, and beside them a crowd of strangers counts as one.
#[test]
fn a_crowd_of_strangers_gets_what_one_connection_of_a_member_gets() {
    let mut hand = big_seed();
    hand.command(Command::SetMembers(vec!["10.0.0.1".parse().unwrap()]));
    let socks: Vec<SockId> = (0..3).map(|_| hand.join("10.0.0.1")).collect();
    let got = take_all(&mut hand, &socks, Duration::from_secs(10));
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(*least > 10 << 20 && most - least <= 2 << 20, "one gets as much as another: {got:?}");
    let strangers: Vec<SockId> = (0..3).map(|_| hand.join("10.0.0.2")).collect();
    let all: Vec<SockId> = socks.into_iter().chain(strangers).collect();
    let got = take_all(&mut hand, &all, Duration::from_secs(20));
    let share = got[3..].iter().sum::<u64>() as f64 / (got[..3].iter().sum::<u64>() as f64 / 3.0);
    assert!((0.9..=1.2).contains(&share), "{share}: {got:?}");
}

/// Nobody else is there: all connections of an address are served at once.
#[test]
fn a_crowd_alone_has_everything() {
    let mut hand = big_seed();
    let socks: Vec<SockId> = (0..4).map(|_| hand.join("10.0.0.1")).collect();
    let got = take_all(&mut hand, &socks, Duration::from_secs(5));
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(*least > 10 << 20 && most - least <= 2 << 20, "{got:?}");
}
