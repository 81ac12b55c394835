//! B9: connections that never become any, by the thousand.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringseed_tests::attacker::{Raw, Target, greeted, handshake, leech, message};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::seed::{Expected, Seed, evil, is_strict, percentile};

/// Connections that never speak,
const SILENT: u32 = 5_000;
/// and those that speak a byte every five seconds.
const DRIPS: u32 = 500;
/// They come in crowds of so many at once,
const CROWD: u32 = 500;
/// so far apart: the storm lasts about five seconds.
const CROWD_EVERY: Duration = Duration::from_millis(500);
/// A handshake must be complete after five seconds; the rest is for a machine that does other things, too.
const GONE_AFTER: Duration = Duration::from_secs(7);
/// What the slowest of a hundred honest handshakes may take.
const HANDSHAKE_P99: Duration = Duration::from_millis(250);
/// Descriptors that this process needs besides those of attackers.
const OTHER_DESCRIPTORS: u64 = 300;

/// Allows this process as many open files as it may have: how many of `wanted` attackers that is.
fn descriptors_for(wanted: u32) -> u32 {
    let mut limit = getrlimit(Resource::Nofile);
    let needed = u64::from(wanted) + OTHER_DESCRIPTORS;
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).expect("the hard limit may be taken");
    }
    let Some(allowed) = limit.current.filter(|&current| current < needed) else { return wanted };
    let fewer = format!(
        "RLIMIT_NOFILE: {needed} descriptors are needed and {allowed} allowed (ulimit -Hn, LimitNOFILE=)"
    );
    assert!(!is_strict(), "{fewer}");
    eprintln!("{fewer}: fewer attackers than in the list");
    allowed.saturating_sub(OTHER_DESCRIPTORS) as u32
}

/// A connection that is not to live long.
struct Held {
    raw: Raw,
    opened_at: Instant,
}

/// Closes those that the seed has ended. Whoever is there for too long is an error.
fn sweep(held: &mut Vec<Held>) -> Result<(), String> {
    held.retain(|held| !held.raw.is_ended());
    let oldest = held.iter().map(|held| held.opened_at.elapsed()).max().unwrap_or_default();
    if oldest > GONE_AFTER { Err(format!("one is still there after {oldest:?}")) } else { Ok(()) }
}

/// Opens them in crowds, and watches them go.
fn storm(target: &Target, silent: u32, drips: u32) -> Result<u32, String> {
    let mut opened = 0;
    let (mut held, mut slow): (Vec<Held>, Vec<Held>) = (Vec::new(), Vec::new());
    let hello = handshake(target, 1);
    for crowd in 0..silent.div_ceil(CROWD) {
        let begun = Instant::now();
        for at in crowd * CROWD..silent.min((crowd + 1) * CROWD) {
            // Six from each address, below what one address may hold.
            let raw = Raw::connect(target, evil(at / 6)).map_err(|error| error.to_string())?;
            held.push(Held { raw, opened_at: Instant::now() });
            opened += 1;
        }
        if crowd == 0 {
            for at in 0..drips {
                let raw = Raw::connect(target, evil(20_000 + at));
                let mut raw = raw.map_err(|error| error.to_string())?;
                raw.push(&hello[..1]);
                slow.push(Held { raw, opened_at: Instant::now() });
                opened += 1;
            }
        }
        sweep(&mut held)?;
        sweep(&mut slow)?;
        std::thread::sleep(CROWD_EVERY.saturating_sub(begun.elapsed()));
    }
    // Five seconds after the first byte: the second.
    slow.iter_mut().for_each(|held| {
        held.raw.push(&hello[1..2]);
    });
    while !held.is_empty() || !slow.is_empty() {
        sweep(&mut held)?;
        sweep(&mut slow)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(opened)
}

#[test]
fn half_open_connections_do_not_keep_honest_ones_out() {
    let allowed = descriptors_for(SILENT + DRIPS);
    let drips = DRIPS.min(allowed / 11);
    let seed = Seed::start(3 << 20, "");
    let target = &seed.target;
    let (is_over, waits) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let before = seed.cpu();
    let opened = std::thread::scope(|scope| {
        for side in 0..2_u8 {
            let (is_over, waits) = (&is_over, &waits);
            scope.spawn(move || {
                let mut name = 0;
                while !is_over.load(Ordering::Relaxed) {
                    name += 1;
                    // No address comes so often that it would have to wait for that.
                    let from = Ipv4Addr::new(127, 9, 10 + side, (name % 250) as u8);
                    let begun = Instant::now();
                    let greeted = greeted(target, from, name);
                    let took = greeted.map(|_| begun.elapsed());
                    waits.lock().expect("no panic").push(took);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let opened = storm(target, allowed - drips, drips);
        is_over.store(true, Ordering::Relaxed);
        opened
    });
    let opened = opened.unwrap_or_else(|error| panic!("{error}"));
    let cpu = seed.cpu() - before;
    let waits = waits.into_inner().expect("no panic");
    // Where hundreds arrive in the same turn as an honest one, it may be the oldest of those that hold one place
    // each, before its handshake could be read. It comes again; here it has waited for ever.
    let refused = waits.iter().filter(|wait| wait.is_err()).count();
    let mut waits: Vec<Duration> =
        waits.into_iter().map(|wait| wait.unwrap_or(Duration::MAX)).collect();
    waits.sort();
    let (p50, p99) = (percentile(&waits, 0.5), percentile(&waits, 0.99));
    eprintln!(
        "{} honest handshakes beside {opened} half-open connections: {refused} refused, median {p50:?}, p99 {p99:?}, worst {:?}; {:?} of the seed's CPU for each of {} connections",
        waits.len(),
        percentile(&waits, 1.0),
        cpu / (opened + waits.len() as u32),
        opened as usize + waits.len()
    );
    assert!(waits.len() >= 300, "{} honest handshakes are too few to tell", waits.len());
    assert!(p99 <= HANDSHAKE_P99, "p99 {p99:?}");
    // Nine of one address: the ninth is refused while eight are there.
    let from_one: Vec<Raw> =
        (0..9).filter_map(|name| Raw::greet(target, evil(60_000), name).ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(from_one.iter().filter(|raw| raw.is_ended()).count(), 1);
    drop(from_one);
    let ended = seed.end();
    ended.expect(&[
        Expected { code: "crowded-out", count: 1_000 },
        Expected { code: "handshake-timeout", count: 100 },
        Expected { code: "address-full", count: 1 },
    ]);
    let by_us = ["crowded-out", "handshake-timeout"].map(|code| ended.count(code));
    let by_us: u64 = by_us.iter().sum();
    let ends = u64::from(opened)..=u64::from(opened) + refused as u64;
    assert!(ends.contains(&by_us), "each is ended by us: {:?}", ended.closed);
}

/// With few descriptors the listener neither spins nor stays deaf.
#[test]
fn few_descriptors_are_no_reason_to_spin_or_to_stay_deaf() {
    let seed = Seed::start(3 << 20, "ulimit -n 256;");
    let held: Vec<Raw> =
        (0..300).filter_map(|host| Raw::greet(&seed.target, evil(host), host).ok()).collect();
    let before = seed.cpu();
    // Those who are connected are of no use by then, and one of them gives way.
    std::thread::sleep(Duration::from_secs(6));
    let spent = seed.cpu() - before;
    assert!(spent < Duration::from_secs(2), "{spent:?} of CPU in 6 s of doing nothing");
    let honest = Ipv4Addr::new(127, 9, 3, 1);
    let served = leech(&seed.target, honest, 1, Duration::from_millis(200));
    assert!(served.as_ref().is_ok_and(|&bytes| bytes > 0), "with all connected: {served:?}");
    drop(held);
    std::thread::sleep(Duration::from_millis(500));
    seed.end();
}

/// B9 behind the handshake: a message that is begun and trickles in. B10: a queue full of requests and nothing
/// read. Each has its time, and is gone after it.
#[test]
fn who_trickles_or_takes_nothing_is_gone_in_time() {
    let seed = Seed::start(64 << 20, "");
    let target = &seed.target;
    let begun = Instant::now();
    let mut deaf = Raw::greet_deaf(target, evil(40_000), 40_000).expect("accepted");
    deaf.push(&[message(15, &[]), message(2, &[])].concat());
    (0..500).for_each(|at| {
        let request = ringseed_tests::attacker::about_block(6, at / 16, at % 16 * 16_384, 16_384);
        deaf.push(&request);
    });
    let mut dribbler = Raw::greet(target, evil(40_001), 40_001).expect("accepted");
    dribbler.push(&message(15, &[]));
    // The length of an extension message, then a byte in five seconds.
    dribbler.push(&9_000_u32.to_be_bytes());
    let mut dribbled = None;
    while begun.elapsed() < Duration::from_secs(70) && !seed.has_logged("send-stalled") {
        if dribbled.is_none() {
            dribbler.push(&[20]);
            dribbled = dribbler.wait_ended(Duration::from_secs(5)).map(|_| begun.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let deaf_for = begun.elapsed();
    let dribbled = dribbled.expect("a message may take for ever");
    eprintln!("who dribbles is gone after {dribbled:?}, who takes nothing after {deaf_for:?}");
    assert!((29..40).contains(&dribbled.as_secs()), "{dribbled:?}");
    // What the seed has closed the deaf cannot hear, behind what it does not read: the log tells.
    assert!((59..=65).contains(&deaf_for.as_secs()), "{deaf_for:?}");
    drop(deaf);
    let ended = seed.end();
    ended.expect(&[
        Expected { code: "send-stalled", count: 1 },
        Expected { code: "trickle", count: 1 },
    ]);
    assert!(ended.names("send-stalled", evil(40_000)) && ended.names("trickle", evil(40_001)));
}
