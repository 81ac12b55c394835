//! Benchmark workloads of ringseed.
//!
//! Each workload runs what it compares in turns in one process, reports medians and spread, and
//! checks what came out before it counts how fast it came.
#![forbid(unsafe_code)]

mod abci;
mod environment;
mod hash;
mod machine;
mod many;
mod markdown;
mod parse;
mod recheck;
mod report;
mod swarm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;

/// Measures ringseed against others on this machine.
#[derive(Parser)]
#[command(name = "ringseed-bench", version)]
struct Cli {
    #[command(subcommand)]
    workload: Workload,
    /// Write the results as JSON to this file.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Workload {
    /// SHA-1 and SHA-256 in memory: kernels, lengths, batches, cores, and other libraries.
    Hash(hash::Options),
    /// The socket of a CometBFT daemon: latency, big blocks, checks, blocks per second.
    Abci(abci::Options),
    /// Parsing v1 torrents of many pieces and of many files, beside libtorrent's parser.
    Parse(parse::Options),
    /// Checking files against torrents and making torrents of files, beside other clients.
    Recheck(recheck::Options),
    /// A hundred thousand torrents in a running seed: memory and time of each, and a restart.
    Many(many::Options),
    /// One seed, one leech: ourselves beside every other client, with a floor and a roof.
    Seedleech(swarm::seedleech::Args),
    /// One seed, three leeches.
    Fanout(swarm::fan::Args),
    /// Three seeds, one leech.
    Fanin(swarm::fan::Args),
    /// Small files, many torrents, a small torrent from its start.
    Smalls(swarm::smalls::Args),
    /// One request in flight, of a seed at rest and beside a stream.
    Latency(swarm::latency::Args),
    /// Shares of equal peers and of greedy ones, and what idle and slow ones cost the others.
    Fairness(swarm::fairness::Args),
    /// A seed that serves parts of a tebibyte.
    Memory(swarm::memory::Args),
    /// One torrent over several shards on each side.
    Shards(swarm::shards::Args),
    /// The drivers of our engine side by side, with syncs and without.
    Disk(swarm::disk::Args),
    /// Every workload that moves data, one after the other.
    All(All),
    /// The table of a README out of results that `--json` wrote.
    Table(markdown::Options),
    /// A side of a transfer by our engine alone: how the workloads run themselves.
    #[command(hide = true)]
    Node(swarm::node::Options),
    /// Ends what the benchmark started when that is gone: how the workloads run themselves.
    #[command(hide = true)]
    Guard,
    /// Stops until it is continued, and becomes another program: how the workloads run themselves.
    #[command(hide = true)]
    Hold {
        #[arg(required = true, last = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// An end of a bare TCP connection: how the workloads run themselves.
    #[command(hide = true)]
    Pump {
        #[arg(value_parser = ["send", "receive"])]
        end: String,
        addr: std::net::SocketAddr,
        file: Option<PathBuf>,
    },
}

/// `ringseed-bench all`.
#[derive(clap::Args)]
struct All {
    /// Small payloads and one turn: a few minutes, to see that everything runs. Its figures are none.
    #[arg(long)]
    quick: bool,
    /// Scratch folder, on the disk that is meant.
    #[arg(long, default_value = "target/bench-swarm")]
    dir: PathBuf,
    /// The program under test; the one beside this benchmark by default.
    #[arg(long)]
    ringseed: Option<PathBuf>,
}

/// The command lines of `all`.
const FULL: [&str; 12] = [
    "seedleech",
    "seedleech --kinds v1,v2 --pinned",
    "seedleech --kinds v1 --cold",
    "fanout",
    "fanin",
    "smalls",
    "latency",
    "fairness",
    "shards",
    "memory",
    "disk",
    "disk --cold",
];
/// And of `all --quick`: whoever is slow comes once.
const QUICK: [&str; 13] = [
    "seedleech --size 128MiB --kinds v1",
    "seedleech --size 128MiB --kinds v2,hybrid",
    "seedleech --size 128MiB --kinds v1 --pinned --who ringseed,libtorrent",
    "seedleech --size 128MiB --kinds v1 --cold --who ringseed,libtorrent,rqbit,fio",
    "fanout --size 64MiB --who ringseed,libtorrent,rqbit",
    "fanin --size 128MiB --who ringseed,libtorrent,rqbit",
    "smalls --size 128MiB --files 500 --torrents 100 --who ringseed,libtorrent,rqbit,rsync",
    "latency --size 64MiB --seconds 1 --who ringseed,libtorrent,rqbit,aria2",
    "fairness --size 64MiB --seconds 1 --idle 500 --slow 50 --slow-pieces 4MiB --parts equal,crowd,idle \
     --who ringseed,libtorrent",
    "fairness --size 64MiB --slow 50 --slow-pieces 1MiB --parts slow",
    "shards --size 1GiB",
    "memory --seconds 2 --size 128MiB",
    "disk --size 128MiB",
];

/// What a shell says of a program that SIGINT ended.
const INTERRUPTED_CODE: u8 = 130;

/// Runs all of them, each as its own command line says. What there is so far is in `json` after each: hours
/// are not lost with the last of them.
fn all(options: &All, json: Option<&Path>) -> Report {
    let mut report = Report::new("all");
    let lines: &[&str] = if options.quick { &QUICK } else { &FULL };
    for line in lines {
        let mut words: Vec<std::ffi::OsString> = vec!["ringseed-bench".into()];
        words.extend(line.split_whitespace().map(Into::into));
        words.extend(["--dir".into(), options.dir.clone().into_os_string()]);
        if let Some(program) = &options.ringseed {
            words.extend(["--ringseed".into(), program.clone().into_os_string()]);
        }
        if options.quick {
            words.extend(["--turns".into(), "1".into(), "--quick".into()]);
        }
        if swarm::child::is_interrupted() {
            break;
        }
        eprintln!("ringseed-bench {line}");
        let cli = Cli::parse_from(words);
        report.absorb(run(&cli.workload));
        if let Some(Err(error)) = json.map(|path| write(path, &report)) {
            eprintln!("cannot write what there is so far: {error}");
        }
    }
    report.machine.look_again();
    report
}

/// What only a process of its own can do, for a workload that started it.
fn part(workload: &Workload) -> Option<ExitCode> {
    let result = match workload {
        Workload::Node(options) => swarm::node::run(options),
        Workload::Pump { end, addr, file } => {
            swarm::peers::pump_end(end, *addr, file.as_deref()).map_err(|error| error.to_string())
        }
        Workload::Table(options) => markdown::run(options),
        Workload::Guard => {
            swarm::guard::run(std::io::stdin().lock());
            Ok(())
        }
        Workload::Hold { program } => Err(swarm::child::hold(program).to_string()),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(code) = part(&cli.workload) {
        return code;
    }
    swarm::guard::start();
    let report = match &cli.workload {
        Workload::All(options) => all(options, cli.json.as_deref()),
        workload => run(workload),
    };
    print!("{}", report.to_text());
    if let Some(path) = &cli.json
        && let Err(error) = write(path, &report)
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::from(4);
    }
    if report.is_interrupted {
        return ExitCode::from(INTERRUPTED_CODE);
    }
    match report.all_met() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Writes a result so that whoever ends us in the middle finds the one before.
fn write(path: &Path, report: &Report) -> std::io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, report.to_json())?;
    std::fs::rename(part, path)
}

fn run(workload: &Workload) -> Report {
    match workload {
        Workload::Hash(options) => hash::run(options),
        Workload::Parse(options) => parse::run(options),
        Workload::Recheck(options) => recheck::run(options),
        Workload::Many(options) => many::run(options),
        Workload::Abci(options) => abci::run(options),
        Workload::Seedleech(args) => swarm::seedleech::run(args),
        Workload::Fanout(args) => swarm::fan::out(args),
        Workload::Fanin(args) => swarm::fan::r#in(args),
        Workload::Smalls(args) => swarm::smalls::run(args),
        Workload::Latency(args) => swarm::latency::run(args),
        Workload::Fairness(args) => swarm::fairness::run(args),
        Workload::Shards(args) => swarm::shards::run(args),
        Workload::Memory(args) => swarm::memory::run(args),
        Workload::Disk(args) => swarm::disk::run(args),
        Workload::All(options) => all(options, None),
        Workload::Table(_)
        | Workload::Node(_)
        | Workload::Pump { .. }
        | Workload::Guard
        | Workload::Hold { .. } => unreachable!("handled above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `all` finds out of a wrong line only when it comes to it, after hours.
    #[test]
    fn every_line_of_all_is_understood() {
        for line in FULL.iter().chain(&QUICK) {
            let words = std::iter::once("ringseed-bench").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        let named = [
            "seedleech",
            "fanout",
            "fanin",
            "smalls",
            "latency",
            "fairness",
            "disk",
            "shards",
            "memory",
        ];
        for name in named {
            let is_it = |line: &&str| line.split(' ').next() == Some(name);
            assert!(FULL.iter().any(is_it) && QUICK.iter().any(is_it), "{name}");
        }
    }
}
