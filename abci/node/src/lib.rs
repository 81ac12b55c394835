//! A ringseed datatrust: command line, configuration, control, and the loop that follows the ledger
//! with the engine.
//!
//! Everything that a person or a script meets is here: [`error`] (codes and exit codes),
//! [`progress`], the commands. The crates below know nothing of files named by users, flags or text.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod hashing;
pub mod interrupt;
pub mod keys;
pub mod layout;
pub mod offline;
pub mod preflight;
pub mod progress;
pub mod units;
pub mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::error::{Code, Error, Result};

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
    todo_dispatch(cli)
}
fn todo_dispatch(_cli: Cli) -> Result<()> {
    match _cli.command {
        Command::Up(_) => Ok(()),
        _ => Ok(()),
    }
}
