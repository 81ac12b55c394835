//! Parsing metainfo: a v1 torrent of 500,000 pieces, and three of 100,000 files, beside libtorrent's parser.
//!
//! Each measurement is a process of its own, so that its memory is that of one torrent: what the process has
//! resident more than before it read the file, over the length of the file. What is held counts anonymous
//! memory alone, for pages of the program itself belong to no torrent; of the peak the system tells only all,
//! so a small torrent is parsed before.
//! Time is processor time of the thread, from the bytes in memory to the parsed torrent, info hash included.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use ringseed_core::metainfo::Metainfo;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::report::{Bar, Figure, Report};

const PIECE_LEN: u64 = 256 * 1024;
/// What the time of a parse is given for, in bytes.
const TEN_MIB: f64 = 10.0 * 1024.0 * 1024.0;
/// Milliseconds per 10 MiB, and memory over the length of the file.
const TIME_MAX_MS: f64 = 15.0;
const MEMORY_MAX: f64 = 1.2;

/// libtorrent's parser, measured in the same way.
const LIBTORRENT: &str = r#"
import json, sys, time
import libtorrent as lt
def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
path, turns = sys.argv[1], int(sys.argv[2])
limits = {"max_buffer_size": 1 << 28, "max_pieces": 1 << 21, "max_decode_tokens": 8000000}
before, anonymous = resident("VmRSS"), resident("RssAnon")
torrent = open(path, "rb").read()
kept = lt.load_torrent_buffer(torrent, limits)
held, peak = resident("RssAnon") - anonymous, resident("VmHWM") - before
seconds = []
for _ in range(turns):
    begin = time.thread_time()
    lt.load_torrent_buffer(torrent, limits)
    seconds.append(time.thread_time() - begin)
print(json.dumps({"held_bytes": held, "peak_bytes": peak, "seconds": seconds}))
"#;

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Parses per torrent and parser; the median counts.
    #[arg(long, default_value_t = 15)]
    turns: usize,
    /// Measure this torrent alone and print what was found: how the workload runs itself.
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
}

#[derive(Deserialize, Serialize)]
struct Measured {
    held_bytes: u64,
    peak_bytes: u64,
    seconds: Vec<f64>,
}

/// Runs the workload.
pub fn run(options: &Options) -> Report {
    if let Some(path) = &options.child {
        let text = serde_json::to_string(&measure(path, options.turns)).expect("plain data");
        println!("{text}");
        std::process::exit(0);
    }
    let mut report = Report::new("parse");
    let dir = std::env::temp_dir().join(format!("ringseed-bench-parse-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir_all(&dir) {
        report.fail(format!("cannot make {}: {error}", dir.display()));
        return report;
    }
    let shapes = [
        ("500,000 pieces", one_file(500_000)),
        ("100,000 files", many_files(100_000, Order::Sorted)),
        ("100,000 files in no order", many_files(100_000, Order::ByFolder)),
        ("100,000 files, shuffled", many_files(100_000, Order::Shuffled)),
    ];
    for (shape, torrent) in shapes {
        let path = dir.join("measured.torrent");
        if let Err(error) = std::fs::write(&path, &torrent) {
            report.fail(format!("cannot write {}: {error}", path.display()));
            break;
        }
        let turns = options.turns.max(1).to_string();
        let ours = std::env::current_exe().map(|program| {
            let mut command = Command::new(program);
            command.arg("parse").arg("--child").arg(&path).args(["--turns", &turns]);
            command
        });
        match ours.map_err(|error| error.to_string()).and_then(outcome) {
            Ok(measured) => add(&mut report, shape, "ringseed", torrent.len(), &measured, true),
            Err(error) => report.fail(format!("{shape}: {error}")),
        }
        let mut theirs = Command::new("python3");
        theirs.args(["-W", "ignore", "-c", LIBTORRENT]).arg(&path).arg(&turns);
        match outcome(theirs) {
            Ok(measured) => add(&mut report, shape, "libtorrent", torrent.len(), &measured, false),
            Err(error) => report.notes.push(format!("{shape}: no libtorrent beside it: {error}")),
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    report
}

fn outcome(mut command: Command) -> Result<Measured, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        said.lines().last().unwrap_or("it said nothing").to_owned()
    })
}

fn add(
    report: &mut Report,
    shape: &str,
    who: &str,
    len: usize,
    measured: &Measured,
    is_ours: bool,
) {
    let len = len as f64;
    let rates: Vec<f64> = measured.seconds.iter().map(|seconds| len / seconds).collect();
    let figure = Figure::new(shape, who, &rates);
    let time_ms = TEN_MIB / figure.bytes_per_second * 1000.0;
    let (held, peak) = (measured.held_bytes as f64 / len, measured.peak_bytes as f64 / len);
    report.notes.push(format!(
        "{shape}, {who}: {time_ms:.1} ms per 10 MiB, memory {held:.2} x the file, {peak:.2} x at the peak"
    ));
    report.figures.push(figure);
    if is_ours {
        let what = format!("{shape}: ms per 10 MiB");
        report.bars.push(Bar::at_most(&what, time_ms, TIME_MAX_MS, None));
        report.bars.push(Bar::at_most(&format!("{shape}: memory"), held, MEMORY_MAX, None));
        report.bars.push(Bar::at_most(&format!("{shape}: peak"), peak, MEMORY_MAX, None));
    }
}

/// Bytes of the process by a line of `proc_pid_status(5)`.
fn resident(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn measure(path: &Path, turns: usize) -> Measured {
    // The first look costs pages of its own, and so does the first parse: those of the code.
    resident("VmRSS");
    Metainfo::from_bytes(many_files(1000, Order::Shuffled)).expect("a good torrent");
    let (before, anonymous) = (resident("VmRSS"), resident("RssAnon"));
    let torrent = std::fs::read(path).expect("the workload wrote it");
    let kept = Metainfo::from_bytes(torrent).expect("a good torrent");
    let (held, peak) = (resident("RssAnon"), resident("VmHWM"));
    let raw = kept.encode();
    let seconds = (0..turns).map(|_| {
        let torrent = raw.clone();
        let begin = thread_seconds();
        let parsed = Metainfo::from_bytes(torrent).expect("parsed before");
        let seconds = thread_seconds() - begin;
        assert_eq!(parsed.info().info_hash_v1(), kept.info().info_hash_v1());
        seconds
    });
    Measured {
        seconds: seconds.collect(),
        held_bytes: held.saturating_sub(anonymous),
        peak_bytes: peak.saturating_sub(before),
    }
}

/// Bytes that do not repeat soon, for piece hashes.
fn noise(len: usize) -> impl Iterator<Item = u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8)
}

fn tail(piece_count: u64) -> Vec<u8> {
    let hashes_len = 20 * piece_count as usize;
    let mut out =
        format!("4:name4:name12:piece lengthi{PIECE_LEN}e6:pieces{hashes_len}:").into_bytes();
    out.extend(noise(hashes_len));
    out.extend(b"ee");
    out
}

fn one_file(piece_count: u64) -> Vec<u8> {
    let mut out = format!("d4:infod6:lengthi{}e", piece_count * PIECE_LEN).into_bytes();
    out.extend(tail(piece_count));
    out
}

/// How files follow each other in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As a tree has them.
    Sorted,
    /// Folder after folder, but their numbers are not padded.
    ByFolder,
    /// Hardly two of one folder together.
    Shuffled,
}

/// Files of 20 to 160 kB in folders of a hundred.
fn many_files(count: u64, order: Order) -> Vec<u8> {
    let mut out = b"d4:infod5:filesl".to_vec();
    let mut total = 0;
    for at in 0..count {
        // The factor is prime: each file once.
        let at = if order == Order::Shuffled { at * 7919 % count } else { at };
        let len = 20_000 + at * 7919 % 140_000;
        total += len;
        let (folder, file) = if order == Order::Sorted {
            (format!("part-{:04}", at / 100), format!("image-{at:06}.jpg"))
        } else {
            (format!("part-{}", at / 100), format!("image-{at}.jpg"))
        };
        let path = format!("{}:{folder}{}:{file}", folder.len(), file.len());
        out.extend(format!("d6:lengthi{len}e4:pathl{path}ee").into_bytes());
    }
    out.extend(b"e");
    out.extend(tail(total.div_ceil(PIECE_LEN)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_what_it_is_called() {
        let pieces = Metainfo::from_bytes(one_file(500_000)).unwrap();
        assert_eq!(pieces.info().geometry().piece_count(), 500_000);
        for order in [Order::Sorted, Order::ByFolder, Order::Shuffled] {
            let files = Metainfo::from_bytes(many_files(1000, order)).unwrap();
            assert_eq!(files.info().files().len(), 1000);
            let paths: Vec<String> =
                files.info().files().map(|file| file.path().to_string()).collect();
            assert_eq!(paths.is_sorted(), order == Order::Sorted);
        }
    }
}
