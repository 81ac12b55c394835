//! Workload `shards`: one torrent over several shards on each side, beside one on each.

use ringseed_core::geometry::Kind;
use ringseed_engine::Config;

use super::arm::Arm;
use super::data::{Plan, size_text};
use super::peers::{Peer, Release};
use super::seedleech::SIZE;
use super::turns::{LEECH_SHARD, SEED_SHARD, Shape};
use super::{Bench, Options};
use crate::report::{Bar, Report};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
}

/// Shards of the seed and of the leech; the first is what the others are judged by.
const SHARDS: [(u32, u32); 3] = [(1, 1), (4, 4), (4, 3)];

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::of_ours("shards", &args.common);
    let program = args.common.program();
    let release = |shards| -> Box<dyn Peer> {
        Box::new(Release { shards: Some(shards), ..Release::new(program.clone()) })
    };
    bench.who = SHARDS.map(release).into();
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let least = Config::new("", [0; 20]).stripe_min_bytes;
    if size < least {
        let (size, least) = (size_text(size), size_text(least));
        let text = format!("a torrent of {size} stays on one shard: --size {least} at least");
        bench.report.fail(text);
        return bench.finish();
    }
    let plans = [Plan::file("payload.bin", size)];
    let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 1) else {
        return bench.finish();
    };
    let what = format!("{} v1, pieces of {}", size_text(size), size_text(piece));
    let arms = bench.compare(&what, &payload, Shape::PAIR);
    judge(&mut bench.report, &what, &arms);
    bench.finish()
}

fn judge(report: &mut Report, what: &str, arms: &[Arm]) {
    let alone = arms[0].cpu();
    for arm in &arms[1..] {
        for side in [SEED_SHARD, LEECH_SHARD] {
            let most = arm.median(|sample| sample.more.get(side).copied().unwrap_or(f64::NAN));
            // A figure that is missing is no bar that was met.
            let most = most.unwrap_or(f64::NAN);
            let bar = Bar::at_most(&format!("{}: {side}", arm.who), most, 1.3, None);
            let topic = format!("{what}: {side}");
            report.bars.push(bar.with(&topic, &arm.who, "bytes over the mean", most, None));
        }
        let (cpu, alone) = (arm.cpu().unwrap_or(f64::NAN), alone.unwrap_or(f64::NAN));
        let text = format!("{}: CPU s/GiB over that of one shard", arm.who);
        let bar = Bar::at_most(&text, cpu / alone, 1.15, None);
        let topic = format!("{what}: CPU s/GiB, both, over that of one shard");
        let peer = Some((alone, "ours, one shard"));
        report.bars.push(bar.with(&topic, &arm.who, "CPU s/GiB, both", cpu, peer));
    }
}
