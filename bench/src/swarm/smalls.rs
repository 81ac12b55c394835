//! Workload `smalls`: many small files, many torrents, a small torrent from its start.

use ringseed_core::geometry::Kind;

use super::arm::Arm;
use super::bars::{Judge, Quantity, is_ours};
use super::data::{Plan, random_lens, size_text};
use super::turns::Shape;
use super::{Bench, Options};
use crate::report::{Bar, Report};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Files of the torrents of many files.
    #[arg(long, default_value_t = 10_000)]
    pub files: usize,
    /// Torrents of 64 KiB.
    #[arg(long, default_value_t = 2_000)]
    pub torrents: usize,
    /// Parts to run.
    #[arg(long, value_delimiter = ',', default_values = PARTS, value_parser = PARTS)]
    pub parts: Vec<String>,
}

const PARTS: [&str; 5] = ["equal", "random", "odd", "torrents", "start"];
/// Length of the payload of `odd` by default, bytes.
const SIZE: u64 = 4 << 30;
/// Files of the long torrent of odd lengths.
const ODD_FILES: u64 = 1_000;
/// What a small torrent moves, bytes.
const START_LEN: u64 = 30_000_000;

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::new("smalls", &args.common);
    for part in &args.parts {
        // What another part left is in no one's way.
        bench.runner.put_aside(&bench.runner.dir);
        match part.as_str() {
            "equal" => files(&mut bench, args, "of 32 KiB", vec![32 << 10; args.files]),
            "random" => {
                let lens = random_lens(args.files, 1..=65_536, args.common.seed);
                files(&mut bench, args, "of 1 B to 64 KiB", lens);
            }
            "odd" => odd(&mut bench, args),
            "torrents" => torrents(&mut bench, args),
            _ => start(&mut bench, args),
        }
    }
    bench.finish()
}

/// One torrent of many small files, without pads between them.
fn files(bench: &mut Bench, args: &Args, of: &str, lens: Vec<u64>) {
    let plans = [Plan::folder("many", lens)];
    let Some(payload) = bench.payload(Kind::V1, 256 << 10, &plans, &args.common, 1) else { return };
    let what = format!("{} files {of}, v1 without pads, pieces of 256 KiB", payload.files());
    let arms = bench.compare(&what, &payload, Shape::PAIR);
    let text = format!("{} files {of}", payload.files());
    against_best(&mut bench.report, &arms, &text, 6.0, Some(10.0));
}

fn against_best(report: &mut Report, arms: &[Arm], text: &str, must: f64, stretch: Option<f64>) {
    Judge { report, arms, topic: text }.times_best(Quantity::RATE, must, stretch);
}

/// A long torrent whose files begin and end in the middle of sectors, beside a single file of its length.
fn odd(bench: &mut Bench, args: &Args) {
    let size = args.common.size.unwrap_or(SIZE);
    let mean = size / ODD_FILES;
    let lens: Vec<u64> =
        random_lens(ODD_FILES as usize, mean / 2..=mean + mean / 2, args.common.seed)
            .into_iter()
            .map(|len| len | 1)
            .collect();
    let whole: u64 = lens.iter().sum();
    let piece = args.common.piece;
    let mut rates = Vec::new();
    for (name, plan) in [
        ("1 file".to_owned(), Plan::file("single.bin", whole)),
        (format!("{ODD_FILES} files of odd lengths, no pads"), Plan::folder("odd", lens)),
    ] {
        bench.runner.put_aside(&bench.runner.dir);
        let Some(payload) = bench.payload(Kind::V1, piece, &[plan], &args.common, 1) else {
            return;
        };
        let what = format!("{} v1 in {name}, pieces of {}", size_text(whole), size_text(piece));
        rates.push(bench.compare(&what, &payload, Shape::PAIR));
    }
    for (single, odd) in rates[0].iter().zip(&rates[1]).filter(|(arm, _)| is_ours(arm)) {
        if let (Some(single), Some(odd_rate)) = (single.rate(), odd.rate()) {
            let what = format!(
                "{ODD_FILES} files of odd lengths, {}: share of a single file's speed",
                odd.who
            );
            let bar = Bar::at_least(&what, odd_rate / single, 0.85, None);
            let topic =
                format!("{ODD_FILES} files of odd lengths, no pads: MB/s, beside a single file");
            let peer = Some((single / 1e6, "ours, one file"));
            bench.report.bars.push(bar.with(&topic, &odd.who, "MB/s", odd_rate / 1e6, peer));
        }
    }
}

/// Thousands of torrents at once.
fn torrents(bench: &mut Bench, args: &Args) {
    let plans: Vec<Plan> = (0..args.torrents)
        .map(|at| Plan::file(&format!("listing-{at:05}.bin"), 64 << 10))
        .collect();
    let Some(payload) = bench.payload(Kind::V1, 16 << 10, &plans, &args.common, 1) else { return };
    let count = args.torrents;
    let arms = bench.compare(&format!("{count} torrents of 64 KiB, v1"), &payload, Shape::PAIR);
    for arm in arms.iter() {
        if let Some(seconds) = arm.median(|sample| sample.seconds) {
            let rate = count as f64 / seconds;
            bench.report.notes.push(format!("{count} torrents, {}: {rate:.0} torrents/s", arm.who));
        }
    }
    against_best(&mut bench.report, &arms, &format!("{count} torrents of 64 KiB"), 10.0, None);
}

/// A small torrent, from the start of the program until it is complete.
fn start(bench: &mut Bench, args: &Args) {
    let plans = [Plan::file("small.bin", START_LEN)];
    let Some(payload) = bench.payload(Kind::V1, 1 << 20, &plans, &args.common, 1) else { return };
    let arms = bench.compare("30 MB v1, pieces of 1 MiB", &payload, Shape::PAIR);
    let seconds = Quantity {
        name: "s from start to complete",
        of: |arm| arm.median(|sample| sample.seconds),
        is_cost: true,
    };
    let mut judge = Judge { report: &mut bench.report, arms: &arms, topic: "30 MB v1" };
    judge.times_best(seconds, 0.6, Some(0.4));
}
