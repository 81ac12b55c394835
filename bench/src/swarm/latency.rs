//! Workload `latency`: a single request in flight, on its own connection, of a seed at rest and of the
//! same seed while another peer takes all that it gives.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;

use super::arm::median as median_of;
use super::child::is_interrupted;
use super::data::{Payload, Plan, size_text};
use super::peers::{Peer, contender};
use super::serve::{Serving, lift_priority, lower_priority};
use super::table::Table;
use super::wire::{Wire, blocks_from, drain, percentile, probe};
use super::{Bench, Options};
use crate::machine;
use crate::report::{Bar, Report};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
}

/// Length of the payload by default, bytes.
const SIZE: u64 = 1 << 30;
/// The probe asks for the blocks of so many bytes, so that whoever keeps a cache has them in it.
const PROBED_LEN: u64 = 4 << 20;
/// Requests that the streaming peer has in flight: what the engines here ask each other for.
const STREAM_IN_FLIGHT: usize = 256;

/// One turn: percentiles at rest and beside a stream, and the stream's speed.
struct Turn {
    rest: [Duration; 2],
    busy: [Duration; 2],
    stream: f64,
}

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::new("latency", &args.common);
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let plans = [Plan::file("payload.bin", size)];
    let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 0) else {
        return bench.finish();
    };
    bench.report.notes.push(format!(
        "blocks of 16 KiB from {} v1, the same {} again and again, one at a time and 1 ms apart; the seed on a \
         core of its own{}",
        size_text(size),
        size_text(PROBED_LEN),
        if lift_priority() { "; the prober runs before others" } else { "" }
    ));
    let title =
        format!("a block, {} s at rest and {} s beside a stream", args.seconds, args.seconds);
    let columns = ["p50 at rest, ms", "p99", "p50 beside, ms", "p99", "stream, MB/s"];
    let mut table = Table::new(&title, &columns);
    let who = std::mem::take(&mut bench.who);
    let who: Vec<&dyn Peer> = who
        .iter()
        .map(|peer| &**peer)
        .filter(|peer| peer.swarms() && peer.takes(&payload))
        .collect();
    who.iter().for_each(|peer| bench.report.contend(contender(*peer)));
    let mut turns: Vec<Vec<Turn>> = who.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.runner.turns {
        for place in 0..who.len() {
            let at = (place + round) % who.len();
            if is_interrupted() {
                continue;
            }
            eprintln!("latency: round {} of {}: {}", round + 1, bench.runner.turns, who[at].name());
            match turn(&bench, who[at], &payload, args.seconds) {
                Ok(turn) => turns[at].push(turn),
                Err(_) if is_interrupted() => {}
                Err(error) => {
                    let text =
                        format!("{}: {}", who[at].name(), error.lines().next().unwrap_or_default());
                    if who[at].name().starts_with("ringseed") {
                        bench.report.fail(text);
                    } else if !bench.report.notes.contains(&text) {
                        bench.report.notes.push(text);
                    }
                }
            }
        }
    }
    for (peer, turns) in who.iter().zip(&turns).filter(|(_, turns)| !turns.is_empty()) {
        let median = |of: &dyn Fn(&Turn) -> f64| {
            median_of(turns.iter().map(of).collect()).unwrap_or(f64::NAN)
        };
        let ms = |of: fn(&Turn) -> Duration| median(&|turn| of(turn).as_secs_f64() * 1000.0);
        let (rest, busy) = (ms(|turn| turn.rest[1]), ms(|turn| turn.busy[1]));
        let stream = median(&|turn| turn.stream / 1e6);
        let row = [ms(|turn| turn.rest[0]), rest, ms(|turn| turn.busy[0]), busy, stream];
        table.row(&format!("{} {}", peer.name(), peer.version()), &row);
        if peer.name() == "ringseed" {
            let what = "p99 beside a stream, ms above that at rest";
            let more = busy - rest;
            let bar = Bar::at_most(what, more, 2.0, None);
            let topic = "a block beside a stream: p99 above that at rest, ms";
            bench.report.bars.push(bar.with(topic, "ringseed", "ms", more, None));
        }
    }
    bench.report.tables.push(table);
    bench.finish()
}

/// The seed has a core of its own where there are several, and the stream's reader does not run before it: what
/// is measured is how long a request waits in the seed, and not for the scheduler's next slice (3 ms).
fn turn(bench: &Bench, peer: &dyn Peer, payload: &Payload, seconds: u64) -> Result<Turn, String> {
    let (own, others) = machine::core_apart();
    let seed = Serving::start_on(bench, peer, payload, own)?;
    let torrent = payload.metainfo();
    let time = Duration::from_secs(seconds);
    let (rest, _) = measure(&seed, &torrent, time, &others, false)?;
    let (busy, stream) = measure(&seed, &torrent, time, &others, true)?;
    Ok(Turn { rest, busy, stream })
}

/// p50 and p99, and bytes per second of the stream beside it.
fn measure(
    seed: &Serving,
    torrent: &Metainfo,
    time: Duration,
    cores: &[usize],
    streams: bool,
) -> Result<([Duration; 2], f64), String> {
    let geometry = torrent.info().geometry();
    let counted = AtomicU64::new(0);
    let trips = std::thread::scope(|scope| {
        // The stream begins before the probe and ends after it.
        let settle = Duration::from_millis(if streams { 500 } else { 0 });
        let until = Instant::now() + settle + time;
        if streams {
            let counted = &counted;
            scope.spawn(move || {
                machine::pin_to_cores(cores);
                lower_priority();
                let stream = Wire::dial(seed.addr, Ipv4Addr::new(127, 0, 0, 3), torrent, 2);
                let blocks = blocks_from(geometry, 0);
                let more = Duration::from_millis(100);
                stream.and_then(|mut wire| {
                    drain(&mut wire, blocks, STREAM_IN_FLIGHT, None, until + more, counted)
                })
            });
        }
        std::thread::sleep(settle);
        counted.store(0, Ordering::Relaxed);
        let probed = (PROBED_LEN / (16 << 10)) as usize;
        let again: Vec<_> = blocks_from(geometry, 0).take(probed).collect();
        let prober = scope.spawn(move || {
            machine::pin_to_cores(cores);
            let mut wire = Wire::dial(seed.addr, Ipv4Addr::new(127, 0, 0, 2), torrent, 1)?;
            probe(&mut wire, again.into_iter().cycle(), until)
        });
        prober.join().expect("it does not panic")
    });
    let mut trips = trips.map_err(|error| format!("the probe: {error}"))?;
    let stream = counted.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
    if trips.is_empty() || (streams && stream == 0.0) {
        return Err("it served nothing".to_owned());
    }
    trips.sort();
    Ok(([percentile(&trips, 0.5), percentile(&trips, 0.99)], stream))
}
