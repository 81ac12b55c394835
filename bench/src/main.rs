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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let report = match &cli.workload {
        Workload::Hash(options) => hash::run(options),
        Workload::Parse(options) => parse::run(options),
        Workload::Recheck(options) => recheck::run(options),
        Workload::Many(options) => many::run(options),
        Workload::Abci(options) => abci::run(options),
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
