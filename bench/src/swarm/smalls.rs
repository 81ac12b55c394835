//! Workload `smalls`: many small files, many torrents, a small torrent from its start.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;

use super::arm::Arm;
use super::bars::{Judge, Quantity, is_ours};
use super::child;
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
/// How long it takes to create a file is measured with so many.
const PROBE_FILES: u32 = 500;
/// Where a file takes longer the file system is busy with inodes that were freed lately: 30 us are usual, 400 us were
/// seen minutes after ten thousand files had been removed.
const CREATE_MAX: Duration = Duration::from_micros(100);
/// How often that is looked at, and how often it is waited for in between: ext4 keeps off an inode for five minutes.
const LOOKS_MAX: u32 = 21;
const LOOK_PAUSE: Duration = Duration::from_secs(20);

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

/// Waits until files are created as fast as usual. What was removed before, by whomever, is paid for by who creates
/// files next: one contender took five times as long as in the round before, and the next one did not.
fn settle(bench: &mut Bench) {
    let folder = bench.runner.dir.join("probe");
    let look = || {
        let taken = create_time(&folder);
        bench.runner.put_aside(&folder);
        taken.ok()
    };
    let pause = || {
        let until = Instant::now() + LOOK_PAUSE;
        while Instant::now() < until && !child::is_interrupted() {
            std::thread::sleep(Duration::from_millis(100));
        }
        !child::is_interrupted()
    };
    bench.report.notes.extend(wait_until_quick(look, pause));
}

/// Looks until files are created quickly, as often as makes sense. What is worth a note; nothing when all was well,
/// or when it cannot be told.
fn wait_until_quick(
    mut look: impl FnMut() -> Option<Duration>,
    mut pause: impl FnMut() -> bool,
) -> Option<String> {
    let first = look()?;
    let mut last = first;
    let mut looks = 1;
    while last > CREATE_MAX && looks < LOOKS_MAX && pause() {
        last = look()?;
        looks += 1;
    }
    let us = |time: Duration| time.as_micros();
    match looks {
        _ if last > CREATE_MAX => Some(format!(
            "creating a file takes {} us on this disk: many were removed lately, or it is slow",
            us(last)
        )),
        1 => None,
        looks => Some(format!(
            "waited {} s: creating a file took {} us (many had been removed), and takes {} us",
            (LOOK_PAUSE * (looks - 1)).as_secs(),
            us(first),
            us(last)
        )),
    }
}

/// How long it takes to create a file in a new folder.
fn create_time(folder: &Path) -> std::io::Result<Duration> {
    fs::create_dir_all(folder)?;
    let begin = Instant::now();
    for number in 0..PROBE_FILES {
        File::create_new(folder.join(number.to_string()))?;
    }
    Ok(begin.elapsed() / PROBE_FILES)
}

/// One torrent of many small files, without pads between them.
fn files(bench: &mut Bench, args: &Args, of: &str, lens: Vec<u64>) {
    settle(bench);
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
    settle(bench);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(times_us: &[u64], may_pause: bool) -> (usize, Option<String>) {
        let mut times = times_us.iter();
        let look = || times.next().map(|&us| Duration::from_micros(us));
        let mut pauses = 0;
        let pause = || {
            pauses += 1;
            may_pause
        };
        let note = wait_until_quick(look, pause);
        (pauses, note)
    }

    /// A run of 10,000 files paid 4 CPU seconds for files that the run before had removed.
    #[test]
    fn who_creates_files_does_not_pay_for_who_removed_some() {
        assert_eq!(wait(&[30], true), (0, None));
        let (pauses, note) = wait(&[400, 200, 40], true);
        let waited =
            "waited 40 s: creating a file took 400 us (many had been removed), and takes 40 us";
        assert_eq!((pauses, note.as_deref()), (2, Some(waited)));
        let (pauses, note) = wait(&[400; 100], true);
        assert_eq!(pauses, LOOKS_MAX as usize - 1);
        assert!(note.is_some_and(|note| note.starts_with("creating a file takes 400 us")));
        let (pauses, note) = wait(&[400; 100], false);
        assert!(pauses == 1 && note.is_some());
        assert_eq!(wait(&[], true), (0, None));
    }

    #[test]
    fn files_are_created_in_a_folder_of_their_own() {
        let dir = std::env::temp_dir().join(format!("bench-probe-{}", std::process::id()));
        assert!(create_time(&dir).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), PROBE_FILES as usize);
        assert!(create_time(&dir).is_err(), "only new files tell how long it takes");
        fs::remove_dir_all(dir).unwrap();
    }
}
