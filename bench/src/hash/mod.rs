//! Workload `hash`: SHA-1 and SHA-256 of data in memory.

mod bars;
mod contenders;
mod timing;

use clap::Args;
use ringseed_sys::hash::{self, Algo};

use crate::report::{Figure, Report};
use contenders::Contender;
pub use timing::noise;
use timing::{Batch, Place, Timing};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Measure only what the bars need.
    #[arg(long)]
    bars_only: bool,
    /// Turns per contender; the median counts.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Time of one turn, in milliseconds.
    #[arg(long, default_value_t = 40)]
    turn_ms: u64,
    /// Size of the tree of BEP 52, in MiB.
    #[arg(long, default_value_t = 1024)]
    tree_mib: usize,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Lengths of messages in the grid.
const LENGTHS: [usize; 4] = [16 * KIB, 256 * KIB, MIB, 4 * MIB];

/// Messages per call in the grid.
const COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Runs the workload.
pub fn run(options: &Options) -> Report {
    let mut report = Report::new("hash");
    let source = hash::calibrate(None);
    report.notes.push(format!("kernels {source}:"));
    report.notes.extend(hash::table().to_string().lines().skip(1).map(str::to_owned));
    report.notes.push("one core: bytes per second of its processor time".into());
    let timing = Timing::new(options.turns, options.turn_ms);
    report.notes.push(timing.others().note());
    if !options.bars_only {
        roof(&timing, &mut report);
        grid(&timing, &mut report);
    }
    bars::measure(&timing, options.tree_mib * MIB, &mut report);
    report
}

/// How fast memory alone can be read, by one core and by all.
fn roof(timing: &Timing, report: &mut Report) {
    for place in Place::ALL {
        for cores in timing.core_counts() {
            let turns = timing.read(place, cores);
            let shape = format!("memory read, {}, {}", place.name(), core_text(cores));
            report.figures.push(turns.figure(&shape, "plain loop"));
        }
    }
}

/// Everyone over all places, lengths, counts and cores.
fn grid(timing: &Timing, report: &mut Report) {
    for algo in Algo::ALL {
        let contenders = contenders::all(algo);
        for place in Place::ALL {
            for len_bytes in LENGTHS {
                for count in COUNTS {
                    if !place.holds(count * len_bytes) {
                        continue;
                    }
                    let batch = Batch { place, len_bytes, count };
                    for cores in timing.core_counts() {
                        compare(timing, algo, batch, cores, &contenders, report);
                    }
                }
            }
        }
    }
}

/// Measures several contenders on one shape, in turns; gives the medians in their order.
fn compare(
    timing: &Timing,
    algo: Algo,
    batch: Batch,
    cores: usize,
    contenders: &[Contender],
    report: &mut Report,
) -> Vec<f64> {
    let shape = format!(
        "{}, {} x {}, {}, {}",
        algo.name(),
        batch.count,
        size_text(batch.len_bytes),
        batch.place.name(),
        core_text(cores)
    );
    eprintln!("{shape}");
    let turns = timing.hash(algo, batch, cores, contenders);
    let figures: Vec<Figure> = contenders
        .iter()
        .zip(&turns)
        .map(|(contender, turns)| turns.figure(&shape, contender.name))
        .collect();
    let medians = figures.iter().map(|figure| figure.bytes_per_second).collect();
    report.figures.extend(figures);
    medians
}

fn size_text(len_bytes: usize) -> String {
    match len_bytes {
        MIB.. => format!("{} MiB", len_bytes / MIB),
        _ => format!("{} KiB", len_bytes / KIB),
    }
}

fn core_text(cores: usize) -> String {
    if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") }
}
