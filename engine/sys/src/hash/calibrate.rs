//! Measures the kernels once per boot, so that the plan fits the CPU at hand.
//!
//! No table of CPU models can know where sixteen lanes begin to pay: some cores run AVX-512 at half
//! width, some slow down under it. So a long-running program measures for a few milliseconds and
//! leaves the result in a file for the others.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use super::kernel::{Algo, BLOCK_LEN_BYTES, Kernel, LANES_MAX, Rung};
use super::plan::{self, Cost, MEASURED, Measured, Plan};

/// First line of the file: a format that is not this one is not read.
const HEADER: &str = "ringseed hash kernels, format 1, nanoseconds per block step";

/// Changed whenever the kernels are: measurements of others' code are worth nothing.
const KERNELS_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-2");

/// Blocks per lane and call: long enough to hide the call, short enough for the data of sixteen
/// lanes to stay in the second-level cache.
const PROBE_BLOCKS: usize = 64;

/// How often each kernel is timed, in turns; the least time counts.
const ROUNDS: usize = 4;

/// How long each kernel runs in a turn: about 2 algorithms x 9 kernels x 4 rounds x 50 us in all.
const TURN: Duration = Duration::from_micros(50);

/// Where the plan in force comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `RINGSEED_HASH` names one rung.
    Forced,
    /// CPU features alone; calibration has not run.
    Guessed,
    /// Measured by this process.
    Measured,
    /// Measured by another process since the machine started.
    Cached,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Forced => "forced by RINGSEED_HASH",
            Source::Guessed => "guessed from CPU features",
            Source::Measured => "measured now",
            Source::Cached => "measured since the machine started",
        })
    }
}

/// Measures the kernels, or reads what an earlier call since the machine started has measured, and
/// puts the best plan in force for the whole process. Takes a few milliseconds and allocates, so a
/// command that ends in that time does not call it. Later calls do nothing.
///
/// The result is kept in a file in `cache_dir`, where given. That it cannot be read or written is
/// no error: it is measured again next time.
pub fn calibrate(cache_dir: Option<&Path>) -> Source {
    if plan::wish().rung.is_some() {
        return Source::Forced;
    }
    MEASURED
        .get_or_init(|| {
            let file = cache_dir.map(|dir| dir.join("hash-kernels"));
            let wish = plan::wish();
            let key = key();
            let cached = file.as_deref().and_then(|file| read(file, &key, &wish.rungs()));
            let (costs, source) = match cached {
                Some(costs) => (costs, Source::Cached),
                None => (measure(&wish.rungs()), Source::Measured),
            };
            if let (Source::Measured, Some(file)) = (source, &file) {
                // Not worth an error; see above.
                let _ = write(file, &key, &costs);
            }
            let plans = Algo::ALL.map(|algo| wish.plan(algo, Some(&costs[algo as usize])));
            Measured { plans, costs, source }
        })
        .source
}

/// The folder that `XDG_CACHE_HOME` or `HOME` gives for [`calibrate`].
pub fn cache_dir_default() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("ringseed"))
}

/// What measurements depend on: this boot, this CPU, these kernels.
fn key() -> String {
    let line = |path: &str, prefix: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(prefix));
        line.unwrap_or_default().trim().to_owned()
    };
    let boot = line("/proc/sys/kernel/random/boot_id", "");
    let cpu = line("/proc/cpuinfo", "model name");
    format!("{KERNELS_VERSION} | {boot} | {cpu}")
}

/// Times every kernel of `rungs`.
fn measure(rungs: &[Rung]) -> [Vec<Cost>; 2] {
    // Not zeros: a page of zeros may be one page many times, and would stay in the first-level cache.
    let data: Vec<u8> =
        (0..LANES_MAX * PROBE_BLOCKS * BLOCK_LEN_BYTES).map(|at| (at / 64 + at) as u8).collect();
    let lanes: Vec<&[u8]> = data.chunks(PROBE_BLOCKS * BLOCK_LEN_BYTES).collect();
    Algo::ALL.map(|algo| {
        let mut costs: Vec<Cost> = Vec::new();
        for &rung in rungs {
            // Interleaving costs by the message, so every count is measured; lanes run full or not
            // in the same time.
            let counts = match rung {
                Rung::ShaNiX4 => 3..=4,
                rung => rung.lanes()..=rung.lanes(),
            };
            costs.extend(counts.map(|busy| Cost { rung, busy, time: f64::INFINITY }));
        }
        // In turns, so that a change of the clock meets all of them.
        for _ in 0..ROUNDS {
            for cost in &mut costs {
                let Some(kernel) = Kernel::new(algo, cost.rung) else { continue };
                cost.time = cost.time.min(time(algo, &kernel, &lanes[..cost.busy]));
            }
        }
        costs
    })
}

/// Nanoseconds per block step of one kernel: the least of the calls of one turn.
fn time(algo: Algo, kernel: &Kernel, lanes: &[&[u8]]) -> f64 {
    let mut states = [algo.start(); LANES_MAX];
    let started = Instant::now();
    let mut least = f64::INFINITY;
    loop {
        let before = Instant::now();
        kernel.update(&mut states[..lanes.len()], lanes, PROBE_BLOCKS);
        let took = before.elapsed();
        least = least.min(took.as_nanos() as f64 / PROBE_BLOCKS as f64);
        if started.elapsed() >= TURN {
            std::hint::black_box(&states);
            return least;
        }
    }
}

/// Reads measurements, if they were made under `key` and cover all of `rungs`.
fn read(file: &Path, key: &str, rungs: &[Rung]) -> Option<[Vec<Cost>; 2]> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    if lines.next()? != HEADER || lines.next()? != key {
        return None;
    }
    let mut costs = [Vec::new(), Vec::new()];
    for line in lines {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        let algo = Algo::ALL.into_iter().find(|algo| algo.name() == name)?;
        let rung: Rung = fields.next()?.parse().ok()?;
        let busy: usize = fields.next()?.parse().ok()?;
        let time: f64 = fields.next()?.parse().ok()?;
        if !(time.is_finite() && time > 0.0 && (1..=rung.lanes()).contains(&busy)) {
            return None;
        }
        costs[algo as usize].push(Cost { rung, busy, time });
    }
    let covers = |costs: &Vec<Cost>| {
        rungs.iter().all(|rung| costs.iter().any(|cost: &Cost| cost.rung == *rung))
    };
    costs.iter().all(covers).then_some(costs)
}

/// Writes measurements under `key`: to a file of its own, then renamed, so that nobody reads half.
fn write(file: &Path, key: &str, costs: &[Vec<Cost>; 2]) -> io::Result<()> {
    let mut text = format!("{HEADER}\n{key}\n");
    for algo in Algo::ALL {
        for cost in &costs[algo as usize] {
            let (name, rung, time) = (algo.name(), cost.rung, cost.time);
            writeln!(text, "{name} {rung} {} {time:.3}", cost.busy).expect("memory does not fail");
        }
    }
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let own = file.with_extension(format!("{}.tmp", std::process::id()));
    let done = fs::write(&own, text).and_then(|()| fs::rename(&own, file));
    if done.is_err() {
        let _ = fs::remove_file(&own);
    }
    done
}

/// What is in force, for people to read.
#[derive(Clone, Debug)]
pub struct Table {
    /// Where the choice comes from.
    pub source: Source,
    /// One row for every hash function and count of messages.
    pub rows: Vec<TableRow>,
}

/// What runs when so many messages are at hand.
#[derive(Clone, Debug)]
pub struct TableRow {
    /// The hash function.
    pub algo: Algo,
    /// How many messages.
    pub messages: usize,
    /// The kernels that run one after another, each with the count of messages it takes.
    pub kernels: Vec<(Rung, usize)>,
    /// Bytes per second of one core as measured, all messages together; `None` if not measured.
    pub rate: Option<f64>,
}

/// The plans in force and, where known, their rates.
pub fn table() -> Table {
    let measured = MEASURED.get();
    let source = match measured {
        _ if plan::wish().rung.is_some() => Source::Forced,
        Some(measured) => measured.source,
        None => Source::Guessed,
    };
    let mut rows = Vec::new();
    for algo in Algo::ALL {
        let plan = plan::current(algo);
        let costs = measured.map(|measured| measured.costs[algo as usize].as_slice());
        rows.extend((1..=LANES_MAX).map(|messages| row(plan, messages, costs)));
    }
    Table { source, rows }
}

/// The row of `plan` for a count of messages.
fn row(plan: &Plan, messages: usize, costs: Option<&[Cost]>) -> TableRow {
    let mut kernels = Vec::new();
    let mut nanoseconds = Some(0.0);
    let mut left = messages;
    while left > 0 {
        let group = plan.group(left);
        kernels.push((group.kernel.rung, group.take));
        // Measured with this count of messages or more of the same kernel.
        let cost = costs
            .unwrap_or_default()
            .iter()
            .filter(|cost| cost.rung == group.kernel.rung && cost.busy >= group.take);
        let time = cost.map(|cost| cost.time).min_by(f64::total_cmp);
        nanoseconds = nanoseconds.zip(time).map(|(sum, time)| sum + time);
        left -= group.take;
    }
    let bytes = (messages * BLOCK_LEN_BYTES) as f64;
    let rate = nanoseconds.map(|time| bytes / time * 1e9);
    TableRow { algo: plan.algo, messages, kernels, rate }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "hash kernels, {}", self.source)?;
        for row in &self.rows {
            let kernels: Vec<String> =
                row.kernels.iter().map(|(rung, take)| format!("{rung} ({take})")).collect();
            write!(f, "{:<7}{:>3}  ", row.algo.name(), row.messages)?;
            match row.rate {
                Some(rate) => writeln!(f, "{:>6.2} GB/s  {}", rate / 1e9, kernels.join(" + "))?,
                None => writeln!(f, "{:>11}  {}", "", kernels.join(" + "))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_survive_the_file_and_only_under_their_key() {
        let dir = env::temp_dir().join(format!("ringseed-calibrate-{}", std::process::id()));
        let file = dir.join("hash-kernels");
        let rungs = [Rung::Crates, Rung::Portable];
        let costs = measure(&rungs);
        assert!(costs.iter().flatten().all(|cost| cost.time.is_finite() && cost.time > 0.0));
        write(&file, "this boot", &costs).unwrap();
        let back = read(&file, "this boot", &rungs).unwrap();
        assert_eq!(back[0].len(), costs[0].len());
        assert!((back[1][1].time - costs[1][1].time).abs() < 0.001);
        assert!(read(&file, "another boot", &rungs).is_none());
        assert!(read(&file, "this boot", &[Rung::Avx2]).is_none(), "a rung was not measured");
        fs::write(&file, format!("{HEADER}\nthis boot\nsha1 avx512 99 -1\n")).unwrap();
        assert!(read(&file, "this boot", &rungs).is_none(), "damaged");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn calibration_is_short_and_takes_force() {
        let started = Instant::now();
        let source = calibrate(None);
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
        let table = table();
        assert_eq!(table.source, source);
        assert_eq!(table.rows.len(), 2 * LANES_MAX);
        assert!(table.to_string().contains("sha256"));
    }
}
