//! Workloads `fanout` (one seed, several leeches) and `fanin` (several seeds, one leech).

use ringseed_core::geometry::Kind;

use super::arm::{Arm, Sample};
use super::bars::{Judge, Quantity};
use super::data::{Plan, size_text};
use super::turns::{LARGEST_SOURCE, Shape};
use super::{Bench, Options};
use crate::report::Report;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// How many there are on the side that has several.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    pub many: u16,
}

/// Length of the payload by default, bytes.
const SIZE: u64 = 1 << 30;

/// One seed and several leeches, each told of those that came before it; until the last is complete.
pub fn out(args: &Args) -> Report {
    let mut bench = Bench::new("fanout", &args.common);
    let shape = Shape { leeches: usize::from(args.many), ..Shape::PAIR };
    if let Some((what, arms)) = compare(&mut bench, args, shape) {
        let topic = format!("1 seed, {} leeches together, {what}", args.many);
        let mut judge = Judge { report: &mut bench.report, arms: &arms, topic: &topic };
        judge.times_best(Quantity::RATE, 3.0, Some(4.0));
    }
    bench.finish()
}

/// Several seeds and one leech.
pub fn r#in(args: &Args) -> Report {
    let mut bench = Bench::new("fanin", &args.common);
    let shape = Shape { seeds: usize::from(args.many), ..Shape::PAIR };
    if let Some((what, arms)) = compare(&mut bench, args, shape) {
        let topic = format!("{} seeds, 1 leech, {what}", args.many);
        let mut judge = Judge { report: &mut bench.report, arms: &arms, topic: &topic };
        judge.times_best(Quantity::RATE, 2.0, Some(3.0));
        let largest = Quantity {
            name: "largest source over the mean",
            of: |arm| {
                let of = |sample: &Sample| sample.more.get(LARGEST_SOURCE).copied();
                arm.median(|sample| of(sample).unwrap_or(f64::NAN))
            },
            is_cost: true,
        };
        judge.bound(largest, 1.2, None);
    }
    bench.finish()
}

fn compare(bench: &mut Bench, args: &Args, shape: Shape) -> Option<(String, Vec<Arm>)> {
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let plans = [Plan::file("payload.bin", size)];
    let payload = bench.payload(Kind::V1, piece, &plans, &args.common, shape.leeches)?;
    let what = format!("{} v1, pieces of {}", size_text(size), size_text(piece));
    let arms = bench.compare(&what, &payload, shape);
    Some((what, arms))
}
