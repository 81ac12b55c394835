//! A ringseed datatrust: command line, configuration, control, and the loop that follows the ledger
//! with the engine.
//!
//! Everything that a person or a script meets is here: [`error`] (codes and exit codes),
//! [`progress`], the commands. The crates below know nothing of files named by users, flags or text.
#![forbid(unsafe_code)]

pub mod bt;
pub mod cli;
pub mod client;
pub mod comet;
pub mod config;
pub mod control;
pub mod datatrust;
pub mod doctor;
pub mod drivers;
pub mod error;
pub mod hashing;
pub mod interrupt;
pub mod keys;
pub mod layout;
pub mod market;
pub mod offline;
pub mod preflight;
pub mod progress;
pub mod render;
pub mod seed;
pub mod sources;
pub mod units;
pub mod up;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use serde_json::Value;

use crate::cli::{Cli, Command};
use crate::error::{Code, Error, Result};
use crate::progress::Reporter;

/// Runs one command line, the program's name included, and says how the process should end.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let wants_json = args.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return refuse_usage(&error, wants_json),
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print(wants_json);
            error.exit_code()
        }
    }
}

/// Help and version go to stdout and are no error; everything else is a usage error.
fn refuse_usage(error: &clap::Error, wants_json: bool) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(Code::Usage.exit());
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(|line| line.trim_start_matches("error: ").to_owned());
    let what = lines.next().unwrap_or_default();
    let rest: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    let usage = Error::new(Code::Usage, what).lines(rest).cure("ringseed --help");
    usage.print(wants_json);
    usage.exit_code()
}

fn dispatch(cli: Cli) -> Result<()> {
    let reporter = Reporter::new(cli.json);
    let print = |value: &Value| match reporter.is_json() {
        true => println!("{value}"),
        false => print!("{}", plain(value)),
    };
    start_log(&cli);
    doctor::check_wish()?;
    if matches!(cli.command, Command::Start(_) | Command::Seed(_) | Command::Get(_)) {
        doctor::calibrate_for(u64::MAX);
    }
    match &cli.command {
        Command::Up(args) => up::run(args, reporter),
        Command::Init(args) => match args.consensus {
            cli::Consensus::Cluster => market::init(&args.init),
            cli::Consensus::Cometbft => comet::init(args),
        }
        .map(|made| {
            client::print(&made, reporter, |made| {
                let start = made["start"].as_array().into_iter().flatten();
                let start = start.filter_map(Value::as_str);
                let lines = [render::text(made, "member")].into_iter().chain(start);
                lines.map(|line| format!("{line}\n")).collect()
            });
        }),
        Command::Genesis(args) => market::genesis(args).map(|made| {
            client::print(&made, reporter, |made| {
                format!(
                    "genesis {}\nfounders:   {}\nnewcomers:  {}\n",
                    render::text(made, "hash"),
                    render::text(made, "start"),
                    render::text(made, "join")
                )
            });
        }),
        Command::Start(args) => datatrust::start(args, cli.json),
        Command::Abci(args) => comet::serve(args, cli.json),
        Command::Join(args) => market::join(args, reporter).map(|made| {
            client::print(&made, reporter, |made| match args.plan {
                true => render::plan(made),
                false => format!(
                    "key {}\nrun it:     {}\nadmit it:   {}\n",
                    render::text(made, "key"),
                    render::text(made, "start"),
                    render::text(made, "admit")
                ),
            });
        }),
        Command::Member(command) => client::member(command, reporter),
        Command::Listing(command) => client::listing(command, reporter),
        Command::Status(args) => client::status(args, reporter),
        Command::Limit(args) => client::limit(args, reporter),
        Command::Hash(args) => offline::hash(args, reporter).map(|made| print(&made)),
        Command::Seed(args) => seed::seed(args, reporter, print),
        Command::Get(args) => bt::get(args, reporter, print),
        Command::Check(args) => offline::check(args, reporter, print),
        Command::Doctor(args) => doctor::run(args, reporter),
    }
}

/// A flat answer as `key  value` lines; what is nested is for `--json`.
fn plain(value: &Value) -> String {
    let mut text = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let shown = match value {
            Value::String(value) => value.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => continue,
        };
        text.push_str(&format!("{key:<16}{shown}\n"));
    }
    text
}

/// The log goes to stderr: nothing but warnings, unless a datatrust runs or more is asked for.
fn start_log(cli: &Cli) {
    let level = match (&cli.command, cli.verbose) {
        // The consensus core reports every vote at `info`.
        (Command::Start(_) | Command::Abci(_), 0) => {
            "warn,ringseed=info,ringseed_abci=info,ringseed_engine=info"
        }
        (_, 0) => "warn",
        (_, 1) => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("RINGSEED_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // A second call in one process (tests) keeps the first log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}
