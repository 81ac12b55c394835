//! Datatrusts that are killed, frozen and started again: what was verified is not fetched twice, a market
//! that cannot decide goes on serving, and one that died as a whole goes on where it was.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringseed_tests::data::{digest_file, write_file, write_mixed_tree};
use ringseed_tests::market::{Market, PATIENCE};
use ringseed_tests::program::run;
use ringseed_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::Value;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");

/// One market at a time: two cores are enough for one.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(value: &Value, section: &str, key: &str) -> u64 {
    value[section][key].as_u64().unwrap_or(0)
}

/// Ends the datatrust at `index` by `signal` when it holds so much of the listing, starts it again, and
/// returns what it held.
#[track_caller]
fn end_in_mid_fetch(market: &mut Market, index: usize, signal: Signal, at_least: u64) -> u64 {
    let have = |market: &Market| number(&market.status(index), "payload", "have_bytes");
    market.wait("enough of the data", |market| have(market) > at_least);
    let held = have(market);
    let mut process = market.nodes[index].process.take().expect("it runs");
    process.signal(signal);
    let ended = process.wait(PATIENCE);
    assert_eq!(ended.code, (signal == Signal::INT).then_some(0), "{}", ended.stderr);
    market.start(index);
    held
}

/// Proves by the counters of its last life that the datatrust fetched only what it had not held before.
#[track_caller]
fn fetched_nothing_twice(market: &mut Market, index: usize, infohash: &str, held: u64, total: u64) {
    assert!(held < total, "it was too fast to be ended in the middle");
    market.wait("the rest of the data", |market| market.show(index, infohash)["complete"] == true);
    let status = market.status(index);
    let fetched = number(&status, "engine", "payload_verified_bytes");
    // What lay in memory at a kill is lost with it: at most the pieces of one write.
    let in_memory = 1 << 20;
    assert!(
        fetched <= total - held + in_memory,
        "{fetched} fetched in the last life, {held} of {total} were held before: {status}"
    );
    assert!(fetched > 0, "{status}");
}

#[test]
fn a_founder_and_a_newcomer_that_were_ended_resume_and_fetch_nothing_twice() {
    let _turn = alone();
    let scratch = Scratch::new("killed");
    let total = 20 << 20;
    let file = scratch.join("source/file.bin");
    write_file(&file, total, 51);
    let mut market = Market::init(OURS, scratch.path(), 4);
    for index in 0..4 {
        market.configure(index, "uplink", "\"3MB/s\"");
    }
    market.start_founders();
    let infohash = market.add(0, &file);
    let held = end_in_mid_fetch(&mut market, 1, Signal::KILL, total / 3);
    fetched_nothing_twice(&mut market, 1, &infohash, held, total);
    market.wait("the promotion", |market| (0..4).all(|at| market.holds(at, &infohash)));

    let newcomer = market.join();
    market.start(newcomer);
    market.admit(&[newcomer]);
    // Ctrl-C first, then a kill.
    let before = end_in_mid_fetch(&mut market, newcomer, Signal::INT, total / 4);
    let held = end_in_mid_fetch(&mut market, newcomer, Signal::KILL, total / 2);
    assert!(held >= before, "{before} held before Ctrl-C, {held} after");
    fetched_nothing_twice(&mut market, newcomer, &infohash, held, total);
    market.wait("the newcomer's attestation", |market| {
        let row = market.show(0, &infohash);
        row["holders"].as_array().is_some_and(|holders| holders.len() == 5)
    });
    for index in [1, newcomer] {
        let copy = market.nodes[index].dir.join("payload").join(&infohash).join("file.bin");
        assert_eq!(digest_file(&file), digest_file(&copy), "bytes of {index}");
    }
}

/// The origin dies while it is the only one to hold everything: when it is back, the others go on with
/// what they have, and it fetches nothing at all. It once came back without its info dict, asked those
/// who waited for it, and never told them what it had.
#[test]
fn a_killed_origin_goes_on_serving() {
    let _turn = alone();
    let scratch = Scratch::new("origin");
    let total = 16 << 20;
    let file = scratch.join("source/file.bin");
    write_file(&file, total, 52);
    let mut market = Market::init(OURS, scratch.path(), 4);
    market.configure(0, "uplink", "\"3MB/s\"");
    market.start_founders();
    let infohash = market.add(0, &file);
    let have = |market: &Market, at| number(&market.status(at), "payload", "have_bytes");
    market.wait("some of the data", |market| have(market, 1) > total / 4);
    market.kill(0);
    let held: Vec<u64> = (1..4).map(|at| have(&market, at)).collect();
    assert!(held.iter().all(|held| *held < total), "too fast to be killed in the middle: {held:?}");
    market.start(0);
    market.wait("the promotion", |market| (0..4).all(|at| market.holds(at, &infohash)));
    let fetched = number(&market.status(0), "engine", "payload_verified_bytes");
    assert_eq!(fetched, 0, "the origin fetched its own data");
    for at in 1..4 {
        let status = market.status(at);
        let verified = number(&status, "engine", "payload_verified_bytes");
        assert_eq!(verified, total, "d{} verified more or less than the data: {status}", at + 1);
    }
}

/// A listing of a mixed tree, held by all founders; its `.torrent` lies in `t.torrent`.
fn with_listing(scratch: &Scratch) -> (Market, String) {
    write_mixed_tree(&scratch.join("source/tree"), 53);
    let mut market = Market::found(OURS, scratch.path(), 4);
    let infohash = market.add(0, &scratch.join("source/tree"));
    market.wait("the promotion", |market| (0..4).all(|at| market.holds(at, &infohash)));
    market.export(0, &infohash, &scratch.join("t.torrent"));
    (market, infohash)
}

/// Fetches the listing from one datatrust alone, as a client that knows nothing of the market.
#[track_caller]
fn get_from(scratch: &Scratch, name: &str, addr: SocketAddr) {
    let copy = scratch.join(name);
    std::fs::create_dir_all(&copy).expect("folder");
    let torrent = scratch.join("t.torrent");
    let addr = addr.to_string();
    let args: [&std::ffi::OsStr; 6] = [
        "get".as_ref(),
        torrent.as_os_str(),
        "--data".as_ref(),
        copy.as_os_str(),
        "--peer".as_ref(),
        addr.as_ref(),
    ];
    run(OURS, &args, &scratch.join("logs"), PATIENCE).expect_code(0);
    let same = |path: &str| {
        let (a, b) = (scratch.join("source/tree").join(path), copy.join("tree").join(path));
        digest_file(&a) == digest_file(Path::new(&b))
    };
    assert!(same("large.bin") && same("a/deep/nested/file.dat") && same("many/11.txt"));
}

/// No height is added while two of four are gone, however long, and the other two serve.
#[track_caller]
fn stands_still_and_serves(scratch: &Scratch, name: &str, market: &mut Market) -> u64 {
    // A height whose votes were under way may still be decided.
    std::thread::sleep(Duration::from_secs(1));
    let stood = market.height(0).max(market.height(1));
    get_from(scratch, &format!("{name}-1"), market.nodes[0].payload_addr());
    get_from(scratch, &format!("{name}-2"), market.nodes[1].payload_addr());
    // An idle market makes a height a second.
    std::thread::sleep(Duration::from_secs(3));
    let now = market.height(0).max(market.height(1));
    assert_eq!(stood, now, "two of four made a block\n{}", market.explain());
    now
}

#[test]
fn without_a_quorum_nothing_is_decided_and_everything_is_served() {
    let _turn = alone();
    let scratch = Scratch::new("halves");
    let (mut market, infohash) = with_listing(&scratch);

    market.signal(2, Signal::STOP);
    market.signal(3, Signal::STOP);
    let stood = stands_still_and_serves(&scratch, "frozen", &mut market);
    market.signal(2, Signal::CONT);
    market.signal(3, Signal::CONT);
    market.wait("all to go on", |market| (0..4).all(|at| market.height(at) > stood));

    market.kill(2);
    market.kill(3);
    let stood = stands_still_and_serves(&scratch, "killed", &mut market);
    market.start(2);
    market.start(3);
    market.wait("all to go on", |market| (0..4).all(|at| market.height(at) > stood));
    let file = scratch.join("source/more.bin");
    write_file(&file, 300_000, 54);
    let more = market.add(2, &file);
    market.wait("a listing after it all", |market| {
        (0..4).all(|at| market.holds(at, &more) && market.holds(at, &infohash))
    });
}

#[test]
fn a_market_that_died_as_a_whole_goes_on_where_it_was() {
    let _turn = alone();
    let scratch = Scratch::new("all-killed");
    let (mut market, infohash) = with_listing(&scratch);
    let height = (0..4).map(|at| market.height(at)).max().expect("four");
    for index in 0..4 {
        market.signal(index, Signal::KILL);
    }
    for index in 0..4 {
        market.kill(index);
    }
    for index in 0..4 {
        market.start(index);
    }
    market.wait("all to go on", |market| {
        (0..4).all(|at| market.height(at) > height && market.holds(at, &infohash))
    });
    for at in 0..4 {
        let status = market.status(at);
        assert_eq!(
            number(&status, "engine", "payload_verified_bytes"),
            0,
            "fetched again: {status}"
        );
    }
    get_from(&scratch, "copy", market.nodes[3].payload_addr());
    let hashes: Vec<Value> = {
        let at = (0..4).map(|at| market.height(at)).min().expect("four");
        let request = ringseed::control::Request::AppHash { height: at };
        (0..4).map(|index| market.ask(index, &request).expect("an app hash")).collect()
    };
    assert!(hashes.windows(2).all(|two| two[0] == two[1]), "{hashes:?}");
}

/// Whoever has offered a listing is the only one to know its info dict, until others ask: a datatrust that
/// was killed alone kept the bytes and could never serve them again.
#[test]
fn an_offer_that_nobody_else_has_seen_survives_a_kill() {
    let _turn = alone();
    let scratch = Scratch::new("alone");
    write_mixed_tree(&scratch.join("source/tree"), 55);
    write_mixed_tree(&scratch.join("source/kept"), 56);
    let mut market = Market::found(OURS, scratch.path(), 1);
    let copied = market.add(0, &scratch.join("source/tree"));
    let kept = scratch.join("source/kept");
    let kept = ["listing", "add", kept.to_str().expect("plain"), "--in-place", "--json"];
    let made = market.at(0, &kept).expect_code(0).json();
    let in_place = made["infohash"].as_str().expect("an infohash").to_owned();
    market.kill(0);
    market.start(0);
    market.wait("both listings", |market| market.holds(0, &copied) && market.holds(0, &in_place));
    market.export(0, &copied, &scratch.join("t.torrent"));
    get_from(&scratch, "copy", market.nodes[0].payload_addr());
    let status = market.status(0);
    assert_eq!(number(&status, "engine", "payload_verified_bytes"), 0, "{status}");
}
