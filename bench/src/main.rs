//! Benchmark workloads of ringseed.
//!
//! Each workload runs what it compares in turns in one process, reports medians and spread, and
//! checks what came out before it counts how fast it came.
#![forbid(unsafe_code)]

mod abci;
mod hash;
mod machine;
mod many;
mod parse;
mod recheck;
mod report;
mod swarm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// The drivers of our engine side by side, with syncs and without.
    Disk(swarm::disk::Args),
    /// A side of a transfer by our engine alone: how the workloads run themselves.
    #[command(hide = true)]
    Node(swarm::node::Options),
    /// An end of a bare TCP connection: how the workloads run themselves.
    #[command(hide = true)]
    Pump {
        #[arg(value_parser = ["send", "receive"])]
        end: String,
        addr: std::net::SocketAddr,
        file: Option<PathBuf>,
    },
}

/// What only a process of its own can do, for a workload that started it.
fn part(workload: &Workload) -> Option<ExitCode> {
    let result = match workload {
        Workload::Node(options) => swarm::node::run(options),
        Workload::Pump { end, addr, file } => {
            swarm::peers::pump_end(end, *addr, file.as_deref()).map_err(|error| error.to_string())
        }
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
    let report = match &cli.workload {
        Workload::Hash(options) => hash::run(options),
        Workload::Parse(options) => parse::run(options),
        Workload::Recheck(options) => recheck::run(options),
        Workload::Many(options) => many::run(options),
        Workload::Abci(options) => abci::run(options),
        Workload::Seedleech(args) => swarm::seedleech::run(args),
        Workload::Fanout(args) => swarm::fan::out(args),
        Workload::Fanin(args) => swarm::fan::r#in(args),
        Workload::Smalls(args) => swarm::smalls::run(args),
        Workload::Disk(args) => swarm::disk::run(args),
        Workload::Node(_) | Workload::Pump { .. } => unreachable!("handled above"),
    };
    print!("{}", report.to_text());
    if let Some(path) = &cli.json
        && let Err(error) = std::fs::write(path, report.to_json())
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::from(4);
    }
    match report.all_met() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
