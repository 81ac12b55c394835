//! Workload `shards`: one torrent over several shards on each side, beside one on each.

use ringseed_core::geometry::Kind;

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
    let mut bench = Bench::new("shards", &args.common);
    let program = args.common.program();
    let release = |shards| -> Box<dyn Peer> {
        Box::new(Release { shards: Some(shards), ..Release::new(program.clone()) })
    };
    bench.who = SHARDS.map(release).into();
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let plans = [Plan::file("payload.bin", size)];
    let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 1) else {
        return bench.finish();
    };
    let what = format!("{} v1, pieces of {}", size_text(size), size_text(piece));
    let arms = bench.compare(&what, &payload, Shape::PAIR);
    let alone = arms[0].cpu();
    for arm in &arms[1..] {
        let bars = &mut bench.report.bars;
        for side in [SEED_SHARD, LEECH_SHARD] {
            let most = arm.median(|sample| sample.more.get(side).copied().unwrap_or(f64::NAN));
            // A figure that is missing is no bar that was met.
            let most = most.unwrap_or(f64::NAN);
            bars.push(Bar::at_most(&format!("{}: {side}", arm.who), most, 1.3, None));
        }
        let ratio = arm.cpu().zip(alone).map_or(f64::NAN, |(cpu, alone)| cpu / alone);
        let what = format!("{}: CPU s/GiB over that of one shard", arm.who);
        bars.push(Bar::at_most(&what, ratio, 1.15, None));
    }
    bench.finish()
}
