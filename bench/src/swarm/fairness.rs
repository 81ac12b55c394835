//! Workload `fairness`: whether one who asks more gets more, and what a crowd costs the others.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;

use super::child::{is_interrupted, nap};
use super::data::{Payload, Plan, size_text};
use super::peers::{Engine, Peer, contender};
use super::serve::Serving;
use super::table::Table;
use super::wire::{Wire, bits, blocks_from, drain, jain};
use super::{Bench, Options, slow};
use crate::machine;
use crate::report::{Bar, Report};
use ringseed_core::wire::message::Message;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Peers that do nothing but be there.
    #[arg(long, default_value_t = 5_000)]
    pub idle: u32,
    /// Peers at 10 KiB/s beside a fast one.
    #[arg(long, default_value_t = 200)]
    pub slow: u32,
    /// Lengths of pieces beside slow peers.
    #[arg(long, value_delimiter = ',', default_values = ["4MiB", "16MiB", "64MiB"], value_parser = super::data::parse_size)]
    pub slow_pieces: Vec<u64>,
    /// Parts to run.
    #[arg(long, value_delimiter = ',', default_values = PARTS, value_parser = PARTS)]
    pub parts: Vec<String>,
}

const PARTS: [&str; 4] = ["equal", "crowd", "idle", "slow"];
/// Length of the payload by default, bytes.
const SIZE: u64 = 1 << 30;
/// Leeches that are alike.
const EQUAL: u32 = 8;
/// Connections of the greedy one.
const CROWD: u32 = 10;
/// Requests of each in flight.
const IN_FLIGHT: usize = 64;
/// Idle peers that come in at a time, so that a queue of new connections does not overflow.
const IDLE_AT_A_TIME: u32 = 50;

/// Descriptors of a process beside those of its idle peers: the first of them, streams, files, pipes.
const SPARE_FILES: u32 = 200;

/// Room for the crowd of idle ones, which the command line does not offer.
const ROOMY: Engine = Engine {
    name: "ringseed, room for 10,000 peers",
    why: "the engine without its command line, whose bound is 512 peers; syncs off",
    flags: &["--no-sync", "--peers-max", "10000"],
};

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::new("fairness", &args.common);
    let is_wanted = |part: &str| args.parts.iter().any(|wanted| wanted == part);
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    // The second is for those that are only there.
    let plans = [Plan::file("payload.bin", size), Plan::file("idle.bin", size.min(256 << 20))];
    if is_wanted("equal") || is_wanted("crowd") || is_wanted("idle") {
        let made = bench.payload(Kind::V1, piece, &plans[..1], &args.common, 0);
        if let Some(payload) = &made {
            if is_wanted("equal") {
                equal(&mut bench, args, payload, false);
            }
            if is_wanted("crowd") {
                equal(&mut bench, args, payload, true);
            }
        }
        if is_wanted("idle")
            && made.is_some()
            && let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 0)
            && let Err(error) = idle(&mut bench, args, &payload)
        {
            bench.report.fail(format!("idle peers: {error}"));
        }
    }
    if is_wanted("slow") {
        slow::run(&mut bench, args);
    }
    bench.finish()
}

/// Peers alike, or one of them with many connections.
fn equal(bench: &mut Bench, args: &Args, payload: &Payload, has_crowd: bool) {
    let title = match has_crowd {
        false => {
            format!("{EQUAL} leeches alike, the seed on a core of its own, {} s", args.seconds)
        }
        true => format!(
            "{EQUAL} leeches, one with {CROWD} connections, the seed on a core of its own, {} s",
            args.seconds
        ),
    };
    let columns =
        ["all, MB/s", "least, MB/s", "most, MB/s", "Jain", "crowd over the mean of others"];
    let mut table = Table::new(&title, &columns);
    let who = std::mem::take(&mut bench.who);
    for peer in who.iter().filter(|peer| peer.swarms() && peer.takes(payload)) {
        eprintln!("fairness: {title}: {}", peer.name());
        bench.report.contend(contender(&**peer));
        let shares = match shares(bench, &**peer, payload, args.seconds, has_crowd) {
            Ok(shares) => shares,
            Err(_) if is_interrupted() => break,
            Err(error) => {
                let error = error.lines().next().unwrap_or_default();
                let text = format!("{title}, {}: {error}", peer.name());
                match peer.name().starts_with("ringseed") {
                    true => bench.report.fail(text),
                    false => bench.report.notes.push(text),
                }
                continue;
            }
        };
        let all: f64 = shares.iter().sum();
        let least = shares.iter().copied().fold(f64::MAX, f64::min);
        let most = shares.iter().copied().fold(0.0, f64::max);
        let fairness = jain(&shares);
        let others = (all - shares[0]) / (shares.len() - 1) as f64;
        let row = [all / 1e6, least / 1e6, most / 1e6, fairness, shares[0] / others];
        table.row(&format!("{} {}", peer.name(), peer.version()), &row);
        if peer.name() == "ringseed" {
            let (what, value, bar) = match has_crowd {
                false => {
                    let what = "8 leeches alike: Jain's index";
                    (what, fairness, Bar::at_least(what, fairness, 0.98, None))
                }
                true => {
                    let what = "10 x the connections: share over the others'";
                    (what, row[4], Bar::at_most(what, row[4], 1.2, None))
                }
            };
            bench.report.bars.push(bar.with(what, "ringseed", "", value, None));
        }
    }
    bench.who = who;
    bench.report.tables.push(table);
}

/// Bytes per second of each peer; of the one with the crowd first. Each has an address of its own. The seed has a
/// core of its own where there are several, and the peers share the others: a peer that ran on the seed's
/// core would get less for that, and what is measured is the seed and not the scheduler.
fn shares(
    bench: &Bench,
    peer: &dyn Peer,
    payload: &Payload,
    seconds: u64,
    has_crowd: bool,
) -> Result<Vec<f64>, String> {
    let (own, others) = machine::core_apart();
    let (seed, others) = (Serving::start_on(bench, peer, payload, own)?, &others);
    let torrent = payload.metainfo();
    let counted: Vec<AtomicU64> = (0..EQUAL).map(|_| AtomicU64::new(0)).collect();
    let time = Duration::from_secs(seconds);
    let settle = Duration::from_secs(1);
    let until = Instant::now() + settle + time + Duration::from_millis(200);
    let failed = AtomicU64::new(0);
    let (torrent, failures, seed_addr) = (&torrent, &failed, seed.addr);
    let took = std::thread::scope(|scope| {
        for (number, counted) in (0..EQUAL).zip(&counted) {
            let connections = if has_crowd && number == 0 { CROWD } else { 1 };
            for connection in 0..connections {
                scope.spawn(move || {
                    machine::pin_to_cores(others);
                    let from = Ipv4Addr::new(127, 0, 1, 1 + number as u8);
                    // One who takes more than its share says that it is many.
                    let id = number * 100 + connection;
                    let first = number * 7 + connection;
                    let drained = Wire::dial(seed_addr, from, torrent, id).and_then(|mut wire| {
                        let blocks = blocks_from(torrent.info().geometry(), first);
                        drain(&mut wire, blocks, IN_FLIGHT, None, until, counted)
                    });
                    if drained.is_err() {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        nap(settle)?;
        let read = || counted.iter().map(|one| one.load(Ordering::Relaxed)).collect::<Vec<u64>>();
        let (before, begun) = (read(), Instant::now());
        nap(time)?;
        let (after, taken) = (read(), begun.elapsed().as_secs_f64());
        let took = before.iter().zip(&after).map(|(then, now)| (now - then) as f64 / taken);
        Ok::<Vec<f64>, String>(took.collect())
    })?;
    let refused = failed.load(Ordering::Relaxed);
    // Refusing the crowd is a way to be fair; refusing one who came alone is none.
    if took.contains(&0.0) {
        return Err(format!("some got nothing; {refused} connections ended"));
    }
    Ok(took)
}

/// Thousands that sent a bitfield and a `have` and then nothing: memory, and the speed of another torrent.
fn idle(bench: &mut Bench, args: &Args, payload: &Payload) -> Result<(), String> {
    let allowed = idle_allowed(args.idle);
    if allowed < args.idle {
        bench.report.fail(format!(
            "{} idle peers need {} open files in each process, and the hard limit allows {allowed} of them: \
             ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of docker",
            args.idle,
            args.idle + SPARE_FILES
        ));
    }
    if allowed <= IDLE_AT_A_TIME {
        return Err("that is too few to say anything".to_owned());
    }
    bench.report.contend(contender(&ROOMY));
    let seed = Serving::start(bench, &ROOMY, payload)?;
    let read = |at: usize| {
        let bytes = std::fs::read(&payload.torrents[at]).map_err(|error| error.to_string())?;
        Metainfo::parse(&bytes).map_err(|error| error.to_string())
    };
    let (streamed, idled) = (read(0)?, read(1)?);
    let seconds = args.seconds.min(10);
    // What is touched once, however many there are, is touched before.
    let mut waiting = connect_idle(seed.addr, &idled, 0..IDLE_AT_A_TIME)?;
    let _ = stream(seed.addr, &streamed, 2)?;
    let alone = stream(seed.addr, &streamed, seconds)?;
    let before = seed.program.rss_bytes() as f64;
    waiting.extend(connect_idle(seed.addr, &idled, IDLE_AT_A_TIME..allowed + IDLE_AT_A_TIME)?);
    std::thread::sleep(Duration::from_secs(1));
    let resident = seed.program.rss_bytes() as f64;
    let beside = stream(seed.addr, &streamed, seconds)?;
    let still = waiting.iter().filter(|wire| wire.is_open()).count();
    let each = (resident - before) / f64::from(allowed);
    let title = format!("{allowed} idle peers of one torrent, another streams");
    let columns = ["stream alone, MB/s", "beside them", "memory of each, bytes", "still connected"];
    let mut table = Table::new(&title, &columns);
    table.row(ROOMY.name, &[alone / 1e6, beside / 1e6, each, still as f64]);
    bench.report.tables.push(table);
    if still < waiting.len() {
        bench.report.fail(format!(
            "{} of {} idle peers were sent away",
            waiting.len() - still,
            waiting.len()
        ));
    }
    let what = "memory of an idle peer, bytes";
    let bar = Bar::at_most(what, each, 4096.0, None);
    let topic = format!("{allowed} idle peers: memory of each, bytes");
    bench.report.bars.push(bar.with(&topic, "ringseed", "bytes", each, None));
    let what = "stream beside idle peers, share of its speed alone";
    let bar = Bar::at_least(what, beside / alone, 0.9, None);
    let topic = format!("{allowed} idle peers: stream beside them, share of its speed alone");
    let peer = Some((alone / 1e6, "ours, alone"));
    bench.report.bars.push(bar.with(&topic, "ringseed", "MB/s", beside / 1e6, peer));
    Ok(())
}

/// Raises the limit of open files as far as it goes, also for the programs that are started from now on; how
/// many of so many idle peers fit into it.
fn idle_allowed(wanted: u32) -> u32 {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    idle_within(wanted, limit.current)
}

fn idle_within(wanted: u32, files: Option<u64>) -> u32 {
    let files = files.map_or(u32::MAX, |files| u32::try_from(files).unwrap_or(u32::MAX));
    wanted.min(files.saturating_sub(SPARE_FILES))
}

fn connect_idle(
    addr: SocketAddr,
    torrent: &Metainfo,
    numbers: std::ops::Range<u32>,
) -> Result<Vec<Wire>, String> {
    let pieces = torrent.info().geometry().piece_count();
    // They have every second piece, and then one more.
    let bits = bits(pieces, 0xaa);
    let mut wires = Vec::new();
    for number in numbers {
        let from = Ipv4Addr::new(127, 1, (number / 250) as u8, 1 + (number % 250) as u8);
        let wire = Wire::dial(addr, from, torrent, 10_000 + number).and_then(|mut wire| {
            wire.send(&[Message::Bitfield(&bits), Message::Have(1)])?;
            wire.shrink();
            Ok(wire)
        });
        wires.push(wire.map_err(|error| format!("idle peer {number}: {error}"))?);
        if number % IDLE_AT_A_TIME == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(wires)
}

/// Bytes per second of one peer that takes all it can.
pub fn stream(addr: SocketAddr, torrent: &Metainfo, seconds: u64) -> Result<f64, String> {
    let counted = &AtomicU64::new(0);
    let rate = std::thread::scope(|scope| {
        let until = Instant::now() + Duration::from_secs(seconds) + Duration::from_millis(600);
        let drained = scope.spawn(move || {
            let mut wire = Wire::dial(addr, Ipv4Addr::new(127, 0, 2, 1), torrent, 1)?;
            let blocks = blocks_from(torrent.info().geometry(), 0);
            drain(&mut wire, blocks, 256, None, until, counted)
        });
        nap(Duration::from_millis(500))?;
        let (before, begun) = (counted.load(Ordering::Relaxed), Instant::now());
        nap(Duration::from_secs(seconds))?;
        let taken = counted.load(Ordering::Relaxed) - before;
        let rate = taken as f64 / begun.elapsed().as_secs_f64();
        let drained = drained.join().expect("it does not panic");
        drained.map(|()| rate).map_err(|error| format!("a stream: {error}"))
    })?;
    Ok(rate)
}

/// How it stands in a table.
pub fn piece_text(piece: u64) -> String {
    format!("pieces of {}", size_text(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_idle_peers_as_files_allow() {
        assert_eq!(idle_within(5_000, Some(20_000)), 5_000);
        assert_eq!(idle_within(5_000, Some(4_096)), 3_896);
        assert_eq!(idle_within(5_000, Some(100)), 0);
        assert_eq!(idle_within(5_000, None), 5_000);
    }
}
