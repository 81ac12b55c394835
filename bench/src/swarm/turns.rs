//! Transfers in turns: every contender runs once per round, in rotated order, each with what it moves in
//! the state that is wanted; what came out is compared with what went in before it counts.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arm::{Arm, Sample};
use super::child::{self, Program, free_port};
use super::data::{Payload, free_bytes, size_text};
use super::peers::{Job, Peer};
use super::tracker::Tracker;
use crate::machine::{Others, busy_seconds};
use crate::report::Report;

const GIB: f64 = (1u64 << 30) as f64;
/// Nobody here is so slow that this is not enough; bytes per second of the slowest that is waited for.
const SLOWEST: f64 = 8e6;
/// Beside that, for starts and idle timers of theirs.
const PATIENCE_MIN: Duration = Duration::from_secs(60);

/// What a sample calls the bytes of the source that gave most, over the mean of all.
pub const LARGEST_SOURCE: &str = "largest source over mean";

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
    /// System calls are counted in a run of its own.
    pub counts_calls: bool,
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
            .collect();
        let mut arms: Vec<Arm> = who
            .iter()
            .map(|peer| Arm::new(&what, &peer.name(), &peer.version(), &peer.settings()))
            .collect();
        let mut is_out = vec![false; who.len()];
        let first = usize::from(!self.warms_up);
        for round in first..=self.turns {
            for place in 0..who.len() {
                let at = (place + round) % who.len();
                if is_out[at] {
                    continue;
                }
                eprintln!("{what}: round {round} of {}: {}", self.turns, arms[at].who);
                match self.transfer(payload, shape, who[at], false) {
                    Ok(mut run) => {
                        let is_slow = run.sample.seconds > self.patience.as_secs_f64();
                        if round > 0 || is_slow {
                            run.sample.number = round;
                            arms[at].samples.push(run.sample);
                        }
                        arms[at].commands = run.commands;
                        if is_slow && self.turns > 1 {
                            is_out[at] = true;
                            arms[at].remarks.push("one run: it is too slow for more".to_owned());
                        }
                    }
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
        if self.counts_calls && shape.seeds + shape.leeches == 2 {
            for (at, peer) in who.iter().enumerate().filter(|(at, _)| !is_out[*at]) {
                if let Ok(run) = self.transfer(payload, shape, *peer, true) {
                    arms[at].calls = run.calls;
                }
            }
        }
        report.arms.extend(arms.iter().cloned());
        arms
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
        let _ = fs::remove_dir_all(&scratch);
        let done = Scratch(scratch.clone());
        let run = self.transfer_in(&scratch, payload, shape, peer, counts_calls);
        drop(done);
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
        let calls: Vec<CallCount> = match counts_calls {
            true => seeds.iter().take(1).filter_map(|seed| CallCount::attach(seed.pid())).collect(),
            false => Vec::new(),
        };
        let seeds_cpu: Vec<f64> = seeds.iter().map(Program::cpu_seconds).collect();
        let busy = busy_seconds();
        let (mut leeches, mut begins, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut leech_calls, mut clocks) = (Vec::new(), Vec::new());
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
            };
            let fetching = peer.leech(&job)?;
            if counts_calls {
                leech_calls.extend(CallCount::attach(fetching.program.pid()));
            }
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
        let shares = source_shares(&leeches);
        if shares.len() > 1 {
            let total: f64 = shares.iter().sum();
            let most = shares.iter().copied().fold(0.0, f64::max);
            sample.more.insert(LARGEST_SOURCE.into(), most * shares.len() as f64 / total);
        }
        let mut commands: Vec<String> =
            seeds.iter().take(1).map(|one| one.command().to_owned()).collect();
        commands.extend(leeches.iter().take(1).map(|one| one.command().to_owned()));
        let received = leech_calls.pop().and_then(CallCount::end).map(|count| count / gib);
        let sent = calls.into_iter().next().and_then(CallCount::end).map(|count| count / gib);
        drop(seeds);
        drop(leeches);
        if peer.keeps() {
            for at in 0..shape.leeches {
                payload.verify(&scratch.join(format!("copy-{at}")))?;
            }
        }
        Ok(Run { sample, commands, calls: (received, sent) })
    }
}

/// What came out of one transfer.
struct Run {
    sample: Sample,
    commands: Vec<String>,
    /// System calls per GiB: of the leech, of the seed.
    calls: (Option<f64>, Option<f64>),
}

/// Removes the folder of a run.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that each source gave, as `ringseed get` counts them when it ends.
fn source_shares(leeches: &[Program]) -> Vec<f64> {
    let Some(leech) = leeches.first() else { return Vec::new() };
    let lines = leech.lines();
    let mut parsed = lines.iter().rev().filter_map(|line| serde_json::from_str(line).ok());
    let has_sources = |summary: &serde_json::Value| summary["counters"]["sources"].is_array();
    let Some(summary) = parsed.find(has_sources) else { return Vec::new() };
    let sources = summary["counters"]["sources"].as_array().cloned().unwrap_or_default();
    sources.iter().filter_map(|source| source["verified_bytes"].as_f64()).collect()
}

/// `perf stat` on a process: how many system calls it makes.
struct CallCount(std::process::Child);

impl CallCount {
    fn attach(pid: u32) -> Option<CallCount> {
        let mut command = std::process::Command::new("perf");
        command.args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let child = command.stderr(std::process::Stdio::piped()).spawn().ok()?;
        // It must have attached before what it counts begins.
        std::thread::sleep(Duration::from_millis(50));
        Some(CallCount(child))
    }

    fn end(self) -> Option<f64> {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let output = self.0.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.contains("sys_enter"))?;
        line.split(',').next()?.parse().ok()
    }
}

fn first_line(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    // The last line of a program usually says why.
    let last = lines.next_back().unwrap_or_default();
    let short: String = first.chars().take(160).collect();
    format!("{short} {last}").trim().to_owned()
}
