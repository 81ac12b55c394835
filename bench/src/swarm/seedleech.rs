//! Workload `seedleech`: one seed, one leech, each program to itself.

use ringseed_core::geometry::Kind;

use super::arm::Arm;
use super::bars::{Judge, Quantity, is_ours};
use super::memory::HELD_MIB;
use super::peers;
use super::turns::Shape;
use super::{Bench, Options};
use crate::report::{Bar, Report};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Views of the torrents.
    #[arg(long, value_delimiter = ',', default_values = ["v1", "v2", "hybrid"], value_parser = ["v1", "v2", "hybrid"])]
    pub kinds: Vec<String>,
    /// The caches are dropped before each run, beside a disk job that reads and writes as much.
    #[arg(long)]
    pub cold: bool,
    /// The leech on one core, the seed on another.
    #[arg(long)]
    pub pinned: bool,
}

/// Length of the payload by default, bytes.
pub const SIZE: u64 = 4 << 30;

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::new("seedleech", &args.common);
    if args.cold {
        match peers::find_fio() {
            Ok(jobs) => bench.who.extend(jobs),
            Err(missing) => bench.report.notes.push(missing.to_owned()),
        }
    }
    let shape = Shape { is_cold: args.cold, is_pinned: args.pinned, ..Shape::PAIR };
    let (size, common) = (args.common.size.unwrap_or(SIZE), &args.common);
    bench.each_kind(&args.kinds, size, common, |bench, what, kind, payload| {
        let arms = bench.compare(what, payload, shape);
        bars(&mut bench.report, what, kind, args, &arms);
    });
    bench.finish()
}

fn bars(report: &mut Report, what: &str, kind: Kind, args: &Args, arms: &[Arm]) {
    let is_hybrid = kind == Kind::Hybrid;
    let state = match (args.cold, args.pinned) {
        (true, _) => ", cold",
        (_, true) => ", leech and seed on a core each",
        _ => "",
    };
    let topic = format!("1 seed, 1 leech, {what}{state}");
    let mut judge = Judge { report, arms, topic: &topic };
    if args.pinned {
        if !is_hybrid {
            let (must, stretch) =
                if kind == Kind::V1 { (1800.0, 2500.0) } else { (1400.0, 2000.0) };
            judge.bound(Quantity::RATE, must, Some(stretch));
        }
        return;
    }
    if args.cold {
        judge.times_best(Quantity::RATE, 2.0, None);
        roof(report, &topic, arms);
        return;
    }
    if !is_hybrid {
        judge.times_best(Quantity::RATE, 4.0, Some(6.0));
    }
    let (must, stretch) = match kind {
        Kind::V1 => (0.95, 0.75),
        Kind::V2 => (1.1, 0.9),
        Kind::Hybrid => (1.3, 1.0),
    };
    judge.bound(Quantity::CPU, must, Some(stretch));
    judge.bound(Quantity::MACHINE, must, Some(stretch));
    judge.times_best(Quantity { name: "CPU s/GiB of both", ..Quantity::CPU }, 0.25, None);
    if !is_hybrid {
        judge.bound(Quantity::LEECH_CPU, 0.50, Some(0.35));
        judge.bound(Quantity::SEED_CPU, 0.40, Some(0.30));
    }
    for quantity in [Quantity::LEECH_MIB, Quantity::SEED_MIB] {
        judge.bound(quantity, HELD_MIB, None);
    }
    judge.bound(Quantity::RECEIVED_CALLS, 1000.0, None);
    judge.bound(Quantity::SENT_CALLS, 800.0, None);
}

/// The share of what a disk job reads and writes in the same time.
fn roof(report: &mut Report, topic: &str, arms: &[Arm]) {
    let jobs = arms.iter().filter(|arm| arm.who.starts_with("fio"));
    let jobs = jobs.filter_map(|arm| Some((arm.rate()? / 1e6, arm.who.as_str())));
    let Some((roof, job)) = jobs.max_by(|(a, _), (b, _)| a.total_cmp(b)) else { return };
    for ours in arms.iter().filter(|arm| is_ours(arm)) {
        let Some(rate) = ours.rate().map(|rate| rate / 1e6) else { continue };
        let what = format!("{topic}, {}: share of the disk's roof", ours.who);
        let bar = Bar::at_least(&what, rate / roof, 0.85, Some(0.95));
        let topic = format!("{topic}: share of the disk's roof");
        report.bars.push(bar.with(&topic, &ours.who, "MB/s", rate, Some((roof, job))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::arm::tests::sample;

    #[test]
    fn a_slow_leech_misses_its_bars() {
        let mut report = Report::new("test");
        let args = <Wrapped as clap::Parser>::parse_from(["x"]).args;
        let mut ours = Arm::new("a file", "ringseed", "1", "");
        ours.samples.push(sample(1.0, 0.6));
        let mut other = Arm::new("a file", "rqbit", "1", "");
        other.samples.push(sample(5.0, 3.0));
        bars(&mut report, "a file", Kind::V1, &args, &[ours.clone(), other.clone()]);
        assert!(
            report.all_met(),
            "{:?}",
            report.bars.iter().map(|bar| &bar.what).collect::<Vec<_>>()
        );
        ours.samples[0] = sample(2.0, 2.0);
        bars(&mut report, "a file", Kind::V1, &args, &[ours, other]);
        assert!(report.bars.iter().filter(|bar| !bar.met).count() >= 4);
    }

    #[derive(clap::Parser)]
    struct Wrapped {
        #[command(flatten)]
        args: Args,
    }
}
