//! Transfers in turns: every contender runs once per round, in rotated order, each with what it moves in
//! the state that is wanted; what came out is compared with what went in before it counts.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::arm::{Arm, CallsOfRun, Sample};
use super::calls::Calls;
use super::child::{self, Program, free_port};
use super::data::{Payload, free_bytes, size_text};
use super::peers::{self, Job, Peer};
use super::tracker::Tracker;
use crate::machine::{Others, busy_seconds};
use crate::report::Report;

const GIB: f64 = (1u64 << 30) as f64;
/// Nobody here is so slow that this is not enough; bytes per second of the slowest that is waited for.
const SLOWEST: f64 = 8e6;
/// Counts over less, in bytes, say more of the start of a program, which makes hundreds of calls, than of what
/// it moves.
const CALLS_LEN_MIN: u64 = 1 << 30;
/// A run of so many files is not removed before the next one.
const MANY_FILES: usize = 100;
/// Room that is left to everybody else on the disk, in bytes.
const ROOM_TO_KEEP: u64 = 8 << 30;
/// Beside that, for starts and idle timers of theirs.
const PATIENCE_MIN: Duration = Duration::from_secs(60);

/// What a sample calls the bytes of the source that gave most, over the mean of all.
pub const LARGEST_SOURCE: &str = "largest source over mean";

/// The same of the shards of a leech by what they received, and of a seed by what they sent.
pub const LEECH_SHARD: &str = "largest shard of the leech over mean";
pub const SEED_SHARD: &str = "largest shard of the seed over mean";

/// Who gives to whom.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub seeds: usize,
    pub leeches: usize,
    /// Leeches on one core, seeds on another.
    pub is_pinned: bool,
    /// The page cache is dropped before each run.
    pub is_cold: bool,
}

impl Shape {
    /// One of each.
    pub const PAIR: Shape = Shape { seeds: 1, leeches: 1, is_pinned: false, is_cold: false };

    /// How it stands in a table.
    pub fn text(&self) -> String {
        let count = |count: usize, one: &str, many: &str| match count {
            1 => format!("1 {one}"),
            more => format!("{more} {many}"),
        };
        let cache = if self.is_cold { "cold" } else { "in the page cache" };
        let pinned = if self.is_pinned { ", leech and seed on a core each" } else { "" };
        let (seeds, leeches) =
            (count(self.seeds, "seed", "seeds"), count(self.leeches, "leech", "leeches"));
        format!("{seeds}, {leeches}, {cache}{pinned}")
    }
}

/// How everything is run.
pub struct Runner {
    /// Scratch folder, on the disk that is meant.
    pub dir: PathBuf,
    pub turns: usize,
    pub others: Others,
    /// Who needs longer than this in the first round is not run again.
    pub patience: Duration,
    /// Whether a run that does not count goes first.
    pub warms_up: bool,
    /// Why system calls cannot be counted, if they cannot.
    pub calls_hindrance: Option<String>,
}

impl Runner {
    /// Whether the disk has room for a source and so many copies of `bytes`; otherwise the report says so.
    pub fn has_room(&self, bytes: u64, copies: usize, report: &mut Report) -> bool {
        let _ = fs::create_dir_all(&self.dir);
        let (free, wanted) = (free_bytes(&self.dir), bytes * (copies as u64 + 1) + (2 << 30));
        if free < wanted {
            let (free, wanted) = (size_text(free), size_text(wanted));
            report.fail(format!("{} has {free} free, {wanted} are needed", self.dir.display()));
        }
        free >= wanted
    }

    /// Runs all contenders that can take part, in turns. What fails is in the report, and in none of the
    /// samples.
    pub fn compare(
        &self,
        what: &str,
        payload: &Payload,
        shape: Shape,
        who: &[&dyn Peer],
        report: &mut Report,
    ) -> Vec<Arm> {
        let what = format!("{what}; {}", shape.text());
        let who: Vec<&dyn Peer> = who
            .iter()
            .copied()
            .filter(|peer| peer.takes(payload))
            .filter(|peer| peer.swarms() || shape.seeds + shape.leeches == 2)
            .filter(|peer| {
                let reason = peer.declines(payload);
                let text =
                    reason.as_ref().map(|reason| format!("{what}: {}: {reason}", peer.name()));
                report.notes.extend(text);
                reason.is_none()
            })
            .collect();
        let mut arms: Vec<Arm> = who
            .iter()
            .map(|peer| Arm::new(&what, &peer.name(), &peer.version(), &peer.settings()))
            .collect();
        who.iter().for_each(|peer| report.contend(peers::contender(*peer)));
        let mut is_out = vec![false; who.len()];
        let first = usize::from(!self.warms_up);
        for round in first..=self.turns {
            for place in 0..who.len() {
                let at = (place + round) % who.len();
                if is_out[at] || child::is_interrupted() {
                    continue;
                }
                eprintln!("{what}: round {round} of {}: {}", self.turns, arms[at].who);
                match self.transfer(payload, shape, who[at], false) {
                    Ok(mut run) => {
                        let is_slow = run.sample.seconds > self.patience.as_secs_f64();
                        run.sample.number = round;
                        match round > 0 || is_slow {
                            true => arms[at].samples.push(run.sample),
                            false => arms[at].warm_up = Some(run.sample),
                        }
                        arms[at].commands = run.commands;
                        if is_slow && self.turns > 1 {
                            is_out[at] = true;
                            arms[at].remarks.push("one run: it is too slow for more".to_owned());
                        }
                    }
                    // Whoever ended it did not end him alone.
                    Err(_) if child::is_interrupted() => {}
                    Err(error) => {
                        eprintln!("{error}");
                        arms[at].remarks.push(first_line(&error));
                        // Ourselves must not fail; of others it is told.
                        if arms[at].who.starts_with("ringseed") {
                            report.fail(format!(
                                "{what}, {}: {}",
                                arms[at].who,
                                first_line(&error)
                            ));
                        }
                        is_out[at] = round <= 1;
                    }
                }
            }
        }
        if shape.seeds + shape.leeches == 2 && !shape.is_cold {
            self.count_calls(&what, payload, shape, &who, &is_out, &mut arms, report);
        }
        report.arms.extend(arms.iter().cloned());
        arms
    }

    /// Lets everybody who has run once run once more, slowly, with their system calls and syncs counted.
    #[expect(
        clippy::too_many_arguments,
        reason = "the second half of a function that has them all"
    )]
    fn count_calls(
        &self,
        what: &str,
        payload: &Payload,
        shape: Shape,
        who: &[&dyn Peer],
        is_out: &[bool],
        arms: &mut [Arm],
        report: &mut Report,
    ) {
        if let Some(hindrance) = &self.calls_hindrance {
            report.notes.push(format!("system calls are not counted: {hindrance}"));
            return;
        }
        if payload.len_bytes < CALLS_LEN_MIN {
            report.notes.push(format!(
                "{what}: calls per GiB are of {}, the start of the leech with them",
                size_text(payload.len_bytes)
            ));
        }
        for (at, peer) in who.iter().enumerate().filter(|(at, _)| !is_out[*at]) {
            if child::is_interrupted() {
                return;
            }
            eprintln!("{what}: counting calls: {}", arms[at].who);
            match self.transfer(payload, shape, *peer, true) {
                Ok(run) => arms[at].calls = run.calls,
                Err(_) if child::is_interrupted() => {}
                Err(error) => {
                    arms[at].remarks.push(format!("calls not counted: {}", first_line(&error)));
                }
            }
        }
    }

    /// Removes the folder of a run; one of many files only when all is over. For a minute after thousands of
    /// files were removed, ext4 looks at each of their inodes before it takes another one: creating 2,000 files
    /// took 3 CPU seconds instead of 0.2, of whoever came next.
    fn put_away(&self, scratch: &Path, payload: &Payload) {
        let has_room = free_bytes(&self.dir) > ROOM_TO_KEEP + 4 * payload.len_bytes;
        match payload.files() >= MANY_FILES && has_room {
            true => self.put_aside(scratch),
            false => drop(fs::remove_dir_all(scratch)),
        }
    }

    /// Keeps a folder out of the way until all is over.
    pub fn put_aside(&self, folder: &Path) {
        let past = past_of(&self.dir);
        let number = fs::read_dir(&past).map_or(0, Iterator::count);
        let kept = fs::create_dir_all(&past)
            .and_then(|()| fs::rename(folder, past.join(number.to_string())));
        if kept.is_err() {
            let _ = fs::remove_dir_all(folder);
        }
    }

    /// One transfer, from the start of the leeches until all have everything, verified.
    fn transfer(
        &self,
        payload: &Payload,
        shape: Shape,
        peer: &dyn Peer,
        counts_calls: bool,
    ) -> Result<Run, String> {
        let scratch = self.dir.join("run");
        self.put_away(&scratch, payload);
        let run = self.transfer_in(&scratch, payload, shape, peer, counts_calls);
        self.put_away(&scratch, payload);
        // What was written and removed must not be written back in the time of the next.
        rustix::fs::sync();
        run
    }

    fn transfer_in(
        &self,
        scratch: &Path,
        payload: &Payload,
        shape: Shape,
        peer: &dyn Peer,
        counts_calls: bool,
    ) -> Result<Run, String> {
        let ip = peer.ip();
        let addrs: Vec<SocketAddr> =
            (0..shape.seeds + shape.leeches).map(|_| SocketAddr::from((ip, free_port()))).collect();
        let (seeds_at, leeches_at) = addrs.split_at(shape.seeds);
        let io = |error: std::io::Error| error.to_string();
        // Seeds are told of nobody.
        let nobody = Tracker::start(ip, Vec::new()).map_err(io)?;
        let everybody = Tracker::start(ip, addrs.clone()).map_err(io)?;
        let cores = crate::machine::cores_allowed();
        let core = |at: usize| shape.is_pinned.then(|| cores[at % cores.len()]);
        let mut seeds = Vec::new();
        for (at, addr) in seeds_at.iter().enumerate() {
            let job = Job {
                home: scratch.join(format!("seed-{at}")),
                addr: *addr,
                payload,
                folder: payload.root.clone(),
                peers: Vec::new(),
                tracker: nobody.url(),
                core: core(1),
                stays: true,
                counts_calls: false,
            };
            seeds.extend(peer.seed(&job)?);
        }
        let mut state = "in the page cache";
        if shape.is_cold {
            state = if payload.cool().map_err(io)? {
                "all caches dropped"
            } else {
                "its files dropped"
            };
        } else {
            payload.warm().map_err(io)?;
        }
        if counts_calls {
            seeds.iter_mut().for_each(Program::count_calls);
        }
        let seeds_cpu: Vec<f64> = seeds.iter().map(Program::cpu_seconds).collect();
        let busy = busy_seconds();
        let (mut leeches, mut begins, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        let mut clocks = Vec::new();
        for (at, addr) in leeches_at.iter().enumerate() {
            let job = Job {
                home: scratch.join(format!("leech-{at}")),
                addr: *addr,
                payload,
                folder: scratch.join(format!("copy-{at}")),
                // Each is told of those that were there before it.
                peers: addrs[..shape.seeds + at].to_vec(),
                tracker: everybody.url(),
                core: core(0),
                stays: shape.leeches > 1,
                counts_calls,
            };
            let fetching = peer.leech(&job)?;
            leeches.push(fetching.program);
            begins.push(fetching.begins);
            signs.push(fetching.done);
            clocks.extend(fetching.clock);
        }
        let patience = PATIENCE_MIN
            + Duration::from_secs_f64(payload.len_bytes as f64 * shape.leeches as f64 / SLOWEST);
        let ends = child::wait_all(
            &mut leeches.iter_mut().collect::<Vec<_>>(),
            &mut seeds.iter_mut().collect::<Vec<_>>(),
            &signs,
            patience,
        )?;
        let busy = busy_seconds() - busy;
        let leech_cpu: f64 = leeches.iter().map(Program::cpu_seconds).sum();
        let used = |(seed, before): (&Program, &f64)| seed.cpu_seconds() - before;
        let seed_cpu: f64 = seeds.iter().zip(&seeds_cpu).map(used).fold(0.0, |sum, one| sum + one);
        let mut starts = Vec::new();
        for (leech, begins) in leeches.iter().zip(&begins) {
            starts.push(leech.gave(begins)?.unwrap_or(leech.begun()));
        }
        let start = *starts.iter().min().expect("there is a leech");
        let last = *ends.iter().max().expect("there is a leech");
        let first = *ends.iter().min().expect("there is a leech");
        let by_itself = clocks.first().and_then(|clock| clock(&leeches[0].lines()));
        let seconds = by_itself.unwrap_or((last - start).as_secs_f64());
        let gib = payload.len_bytes as f64 * shape.leeches as f64 / GIB;
        let wall_here = leeches[0].begun().elapsed().as_secs_f64().min(seconds + 1.0);
        let machine = self.others.less(busy, wall_here.max(seconds)) / gib;
        let peak = |all: &[Program]| all.iter().map(Program::rss_peak_bytes).max().unwrap_or(0);
        let mut sample = Sample {
            number: 0,
            seconds,
            first_seconds: (first - start).as_secs_f64(),
            bytes_per_second: gib * GIB / seconds,
            seed_cpu_per_gib: seed_cpu / gib,
            leech_cpu_per_gib: leech_cpu / gib,
            machine_per_gib: machine.is_finite().then_some(machine),
            seed_rss_bytes: peak(&seeds),
            leech_rss_bytes: peak(&leeches),
            cache: state.to_owned(),
            more: BTreeMap::new(),
        };
        let (received, sent) =
            (leeches[0].calls(), seeds.first_mut().and_then(|seed| seed.calls()));
        let per_gib = |calls: Option<Calls>| calls.map(|counted| counted.calls / gib);
        let calls = CallsOfRun {
            received: per_gib(received),
            sent: per_gib(sent),
            syncs: received.map(|counted| counted.syncs),
        };
        if peer.sums_up() {
            seeds.iter_mut().for_each(Program::interrupt);
        }
        let (seed, leech) = (seeds.first().and_then(counters), counters(&leeches[0]));
        let (seed, leech) = (seed.unwrap_or_default(), leech.unwrap_or_default());
        let past_cache = seed["read_direct_bytes"].as_f64().map(|bytes| bytes / gib / GIB);
        let found = [
            (LARGEST_SOURCE, largest_over_mean(&leech["sources"], "verified_bytes")),
            (LEECH_SHARD, largest_over_mean(&leech["shards"], "payload_received_bytes")),
            (SEED_SHARD, largest_over_mean(&seed["shards"], "payload_sent_bytes")),
            ("read past the page cache, share", past_cache),
            ("pieces hashed together", mean(&leech["hash_messages"], &leech["hash_calls"])),
        ];
        for (name, value) in found {
            sample.more.extend(value.map(|value| (name.to_owned(), value)));
        }
        let mut commands: Vec<String> =
            seeds.iter().take(1).map(|one| one.command().to_owned()).collect();
        commands.extend(leeches.iter().take(1).map(|one| one.command().to_owned()));
        drop(seeds);
        drop(leeches);
        if peer.keeps() {
            for at in 0..shape.leeches {
                payload.verify(&scratch.join(format!("copy-{at}")))?;
            }
        }
        Ok(Run { sample, commands, calls })
    }
}

/// What came out of one transfer.
struct Run {
    sample: Sample,
    commands: Vec<String>,
    calls: CallsOfRun,
}

/// Where runs of many files are kept until all is over: beside the scratch folder, on the same disk.
fn past_of(dir: &Path) -> PathBuf {
    dir.with_extension("past")
}

/// Removes all that a workload has written.
pub fn clear(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    let _ = fs::remove_dir_all(past_of(dir));
}

/// What `ringseed seed` or `get` counted, as it says when it ends.
fn counters(program: &Program) -> Option<Value> {
    let lines = program.lines();
    let parsed = lines.iter().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut summaries =
        parsed.filter(|found| found["counters"].is_object() && found["event"].is_null());
    summaries.next().map(|mut summary| summary["counters"].take())
}

fn mean(sum: &Value, count: &Value) -> Option<f64> {
    sum.as_f64()
        .zip(count.as_f64())
        .filter(|(_, count)| *count > 0.0)
        .map(|(sum, count)| sum / count)
}

/// The largest of a counter over the mean of all, where there are several.
fn largest_over_mean(of: &Value, key: &str) -> Option<f64> {
    let values: Vec<f64> = of.as_array()?.iter().filter_map(|one| one[key].as_f64()).collect();
    let total: f64 = values.iter().sum();
    let most = values.iter().copied().fold(0.0, f64::max);
    (values.len() > 1 && total > 0.0).then(|| most * values.len() as f64 / total)
}

fn first_line(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    // The last line of a program usually says why.
    let last = lines.next_back().unwrap_or_default();
    let short: String = first.chars().take(160).collect();
    format!("{short} {last}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use ringseed_core::geometry::Kind;

    use super::super::child::Sign;
    use super::super::data::Plan;
    use super::super::peers::Fetching;
    use super::*;

    /// Copies files, and changes one byte if it `breaks` them.
    #[derive(Default)]
    struct Copier {
        breaks: bool,
        name: &'static str,
        /// Who was called, in order.
        called: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Copier {
        fn new(name: &'static str, breaks: bool) -> Copier {
            Copier { name, breaks, ..Copier::default() }
        }
    }

    fn runner(dir: &Path, warms_up: bool) -> Runner {
        Runner {
            dir: dir.to_owned(),
            turns: 2,
            others: Others::look(),
            patience: Duration::from_secs(60),
            warms_up,
            calls_hindrance: Some("a test".to_owned()),
        }
    }

    impl Peer for Copier {
        fn name(&self) -> String {
            self.name.into()
        }

        fn version(&self) -> String {
            "1".into()
        }

        fn settings(&self) -> String {
            String::new()
        }

        fn takes(&self, _: &Payload) -> bool {
            true
        }

        fn seed(&self, _: &Job) -> Result<Option<Program>, String> {
            Ok(None)
        }

        fn leech(&self, job: &Job) -> Result<Fetching, String> {
            self.called.lock().unwrap().push(self.name);
            let harm = "printf x | dd of=\"$2/a.bin\" bs=1 seek=40000 conv=notrunc status=none";
            let script = format!(
                "cp \"$1\"/* \"$2\"{}",
                if self.breaks { format!("; {harm}") } else { String::new() }
            );
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).arg(&job.payload.root).arg(&job.folder);
            std::fs::create_dir_all(&job.folder).map_err(|error| error.to_string())?;
            let program = Program::start(command, &job.home, job.core)?;
            Ok(Fetching { program, begins: Sign::Exec, done: Sign::Exit, clock: None })
        }
    }

    /// Runs of many files paid for the removal of those before them.
    #[test]
    fn many_files_are_removed_when_all_is_over() {
        let dir = std::env::temp_dir().join(format!("bench-past-{}", std::process::id()));
        let plans = [Plan::folder("many", vec![10; MANY_FILES])];
        let payload = Payload::make(&dir, Kind::V1, 16 << 10, &plans, 1).unwrap();
        let runner = runner(&dir, false);
        for number in 0..3 {
            fs::create_dir_all(dir.join("run")).unwrap();
            fs::write(dir.join("run/of"), number.to_string()).unwrap();
            runner.put_away(&dir.join("run"), &payload);
            assert!(!dir.join("run").exists());
            let kept = fs::read_to_string(past_of(&dir).join(format!("{number}/of"))).unwrap();
            assert_eq!(kept, number.to_string());
        }
        clear(&dir);
        assert!(!dir.exists() && !past_of(&dir).exists());
    }

    /// A run that ends with another byte than was sent is void: it enters no median, and where it is ours
    /// the report fails.
    #[test]
    fn a_run_with_a_wrong_byte_is_void() {
        let dir = std::env::temp_dir().join(format!("bench-turns-{}", std::process::id()));
        let plans = [Plan::file("a.bin", 100_000)];
        let payload = Payload::make(&dir, Kind::V1, 16 << 10, &plans, 1).unwrap();
        let mut report = Report::new("test");
        let (good, bad) = (Copier::new("copier", false), Copier::new("ringseed, broken", true));
        let arms = runner(&dir, true).compare(
            "a file",
            &payload,
            Shape::PAIR,
            &[&good, &bad],
            &mut report,
        );
        assert_eq!(arms[0].samples.len(), 2, "{:?}", arms[0].remarks);
        assert!(arms[0].samples.iter().all(|sample| sample.cache == "in the page cache"));
        assert!(arms[1].samples.is_empty());
        assert!(report.failures.iter().any(|text| text.contains("not what was sent")));
        assert!(!dir.join("run").exists(), "a run leaves nothing");
        fs::remove_dir_all(dir).unwrap();
    }

    /// Whatever the machine does meanwhile meets all alike: nobody runs all his turns before the next one, and
    /// nobody always goes behind the same other. The round that warms up counts for nobody.
    #[test]
    fn contenders_take_turns() {
        let dir = std::env::temp_dir().join(format!("bench-order-{}", std::process::id()));
        let plans = [Plan::file("a.bin", 100_000)];
        let payload = Payload::make(&dir, Kind::V1, 16 << 10, &plans, 1).unwrap();
        let one = Copier::new("one", false);
        let other = Copier { called: one.called.clone(), ..Copier::new("other", false) };
        let mut report = Report::new("test");
        let who: [&dyn Peer; 2] = [&one, &other];
        let arms = runner(&dir, true).compare("a file", &payload, Shape::PAIR, &who, &mut report);
        let called = one.called.lock().unwrap().clone();
        assert_eq!(called, ["one", "other", "other", "one", "one", "other"]);
        assert!(arms.iter().all(|arm| arm.samples.len() == 2 && arm.warm_up.is_some()));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_shape_says_what_is_in_the_cache() {
        assert_eq!(Shape::PAIR.text(), "1 seed, 1 leech, in the page cache");
        let cold = Shape { seeds: 3, is_cold: true, ..Shape::PAIR };
        assert_eq!(cold.text(), "3 seeds, 1 leech, cold");
    }
}
