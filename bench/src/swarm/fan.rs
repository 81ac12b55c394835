//! Workloads `fanout` (one seed, several leeches) and `fanin` (several seeds, one leech).

use ringseed_core::geometry::Kind;

use super::arm::Arm;
use super::data::{Plan, size_text};
use super::seedleech::{best, is_ours};
use super::turns::Shape;
use super::{Bench, Options};
use crate::report::{Bar, Report};

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
    if let Some(arms) = compare(&mut bench, args, shape) {
        bars(&mut bench.report, &arms, 3.0, 4.0);
    }
    bench.finish()
}

/// Several seeds and one leech.
pub fn r#in(args: &Args) -> Report {
    let mut bench = Bench::new("fanin", &args.common);
    let shape = Shape { seeds: usize::from(args.many), ..Shape::PAIR };
    if let Some(arms) = compare(&mut bench, args, shape) {
        bars(&mut bench.report, &arms, 2.0, 3.0);
        for ours in arms.iter().filter(|arm| is_ours(arm)) {
            let share = ours.median(|sample| {
                sample.more.get(super::turns::LARGEST_SOURCE).copied().unwrap_or(f64::NAN)
            });
            if let Some(share) = share.filter(|share| share.is_finite()) {
                let what = format!("{}: largest source over the mean", ours.who);
                bench.report.bars.push(Bar::at_most(&what, share, 1.2, None));
            }
        }
    }
    bench.finish()
}

fn compare(bench: &mut Bench, args: &Args, shape: Shape) -> Option<Vec<Arm>> {
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let plans = [Plan::file("payload.bin", size)];
    let payload = bench.payload(Kind::V1, piece, &plans, &args.common, shape.leeches)?;
    let what = format!("{} v1, pieces of {}", size_text(size), size_text(piece));
    Some(bench.compare(&what, &payload, shape))
}

fn bars(report: &mut Report, arms: &[Arm], must: f64, stretch: f64) {
    let Some((peer, who)) = best(arms, Arm::rate, false) else { return };
    for ours in arms.iter().filter(|arm| is_ours(arm)) {
        let Some(rate) = ours.rate() else { continue };
        let what = format!("{}: all together, times {who}", ours.who);
        report.bars.push(Bar::at_least(&what, rate / peer, must, Some(stretch)));
    }
}
