//! The commands that talk to a running datatrust: `member`, `listing`, `status`, `limit`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{self, Cap, Node};
use crate::control::{self, Client, Limited, Request};
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::progress::Reporter;
use crate::{render, units, up};

/// Prints data on stdout: JSON as it is, or as `text` makes it.
pub fn print(value: &Value, reporter: Reporter, text: impl FnOnce(&Value) -> String) {
    if reporter.is_json() {
        println!("{value}");
    } else {
        print!("{}", text(value));
    }
}

/// The folder of the datatrust that is meant: the one given, or the first of the running `up`.
///
/// # Errors
/// [`Code::NoMarketRunning`] when none is given and no `up` runs.
fn folder_of(node: &Node) -> Result<PathBuf> {
    if let Some(dir) = &node.dir {
        return Ok(std::path::absolute(dir).unwrap_or_else(|_| dir.clone()));
    }
    let running = up::registry::newest()?;
    running.dirs.into_iter().next().map(|(_, dir)| dir).ok_or_else(no_market)
}

fn no_market() -> Error {
    Error::new(Code::NoMarketRunning, "no `ringseed up` is running")
        .cure("start one with: ringseed up   or name a datatrust with --dir D")
}

/// `ringseed member`.
///
/// # Errors
/// What the datatrust answers.
pub fn member(command: &cli::Member, reporter: Reporter) -> Result<()> {
    match command {
        cli::Member::Ls { node } => {
            let rows = control::ask(&folder_of(node)?, &Request::MemberLs)?;
            print(&rows, reporter, render::members);
        }
        cli::Member::Admit { member, node } => {
            let request = Request::MemberAdmit { member: member.clone() };
            let done = control::ask(&folder_of(node)?, &request)?;
            print(&done, reporter, |done| {
                let key = render::text(done, "member");
                let height = render::number(done, "height");
                match done["admitted"] == true {
                    true => format!("{key} is admitted (height {height})\n"),
                    false => format!(
                        "voted for {key} (height {height}); more than two thirds of the power must\n"
                    ),
                }
            });
        }
    }
    Ok(())
}

/// `ringseed listing`.
///
/// # Errors
/// What the datatrust answers.
pub fn listing(command: &cli::Listing, reporter: Reporter) -> Result<()> {
    match command {
        cli::Listing::Ls { node } => {
            let rows = control::ask(&folder_of(node)?, &Request::ListingLs)?;
            print(&rows, reporter, render::listings);
        }
        cli::Listing::Show { infohash, node } => {
            let request = Request::ListingShow { infohash: infohash.clone() };
            let row = control::ask(&folder_of(node)?, &request)?;
            print(&row, reporter, render::listing);
        }
        cli::Listing::Rm { infohash, node } => {
            let request = Request::ListingRm { infohash: infohash.clone() };
            let done = control::ask(&folder_of(node)?, &request)?;
            print(&done, reporter, |done| {
                format!(
                    "removed {} (height {}); its bytes go at height {}\n",
                    render::text(done, "infohash"),
                    render::number(done, "height"),
                    render::number(done, "purge_height")
                )
            });
        }
        cli::Listing::Add { path, in_place, wait, node } => {
            add(path, *in_place, *wait, &folder_of(node)?, reporter)?;
        }
    }
    Ok(())
}

/// `ringseed limit`.
///
/// # Errors
/// What the datatrust answers.
pub fn limit(args: &cli::Limit, reporter: Reporter) -> Result<()> {
    let scope = match &args.listing {
        Some(infohash) => Limited::Listing { infohash: infohash.clone() },
        None if args.members => Limited::Members,
        None if args.others => Limited::Others,
        None => Limited::All,
    };
    let rate = |cap: Cap| match cap {
        Cap::None => 0,
        Cap::Rate(rate) => rate,
    };
    let request = Request::Limit { scope, up: args.up.map(rate), down: args.down.map(rate) };
    let caps = control::ask(&folder_of(&args.node)?, &request)?;
    print(&caps, reporter, render::limits);
    Ok(())
}

fn add(path: &Path, in_place: bool, wait: bool, folder: &Path, reporter: Reporter) -> Result<()> {
    let path = std::path::absolute(path).map_err(|error| Error::io("open", path, error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut client = Client::connect(folder)?;
    let task = reporter.bytes("add", format!("hashing {name}"), 0);
    let request = Request::ListingAdd { path, in_place };
    let mut done = client.ask_with(&request, |done, total| task.set(done, total))?;
    let elapsed = task.elapsed();
    let size = render::number(&done, "size_bytes");
    let text = format!("offered {} in {}", units::bytes(size), units::time(elapsed));
    task.finish(&text, json!({"bytes": size, "seconds": elapsed.as_secs_f64()}));
    if wait {
        await_promotion(&mut client, &mut done, reporter)?;
    }
    let dir = folder.display().to_string();
    print(&done, reporter, |done| {
        let infohash = render::text(done, "infohash");
        format!("{infohash}\nlook at it:  ringseed listing show {infohash} --dir {dir}\n")
    });
    Ok(())
}

/// Waits until the offer in `done` is a listing.
fn await_promotion(client: &mut Client, done: &mut Value, reporter: Reporter) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let infohash = render::text(done, "infohash").to_owned();
    let task = reporter.things("promote", "held by", 0);
    loop {
        let row = client.ask(&Request::ListingShow { infohash: infohash.clone() })?;
        let holders = row["holders"].as_array().map_or(0, Vec::len) as u64;
        task.set(holders, holders);
        match render::text(&row, "kind") {
            "listing" => break,
            "candidate" => {}
            kind => {
                return Err(Error::new(Code::Refused, format!("the offer is {kind}"))
                    .why("it expired or was taken back before enough datatrusts held it"));
            }
        }
        if !interrupt.sleep(Duration::from_millis(100)) {
            return Err(Error::new(Code::Interrupted, "stopped waiting; the offer stands")
                .cure(format!("ringseed listing show {infohash}")));
        }
    }
    done["kind"] = json!("listing");
    let elapsed = task.elapsed();
    task.finish(
        &format!("promoted after {}", units::time(elapsed)),
        json!({"seconds": elapsed.as_secs_f64()}),
    );
    Ok(())
}

/// `ringseed status`.
///
/// # Errors
/// What the datatrust answers; with `--all` those that do not answer are shown as down.
pub fn status(args: &cli::Status, reporter: Reporter) -> Result<()> {
    if !args.all {
        let answer = control::ask(&folder_of(&args.node)?, &Request::Status)?;
        print(&answer, reporter, render::status);
        return Ok(());
    }
    let dirs = match &args.node.dir {
        Some(dir) => beside(dir)?,
        None => up::registry::newest()?.dirs,
    };
    let rows: Vec<(String, Value)> = dirs
        .into_iter()
        .map(|(name, dir)| {
            let answer = control::ask(&dir, &Request::Status);
            (name, answer.unwrap_or_else(|error| json!({"error": error.to_json()})))
        })
        .collect();
    let value: Value =
        rows.iter().map(|(name, row)| json!({"name": name, "status": row})).collect();
    print(&value, reporter, |_| render::all(&rows));
    Ok(())
}

/// The datatrust in `dir` and those in folders beside it: others can only be asked on their own
/// machines.
fn beside(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let dir = std::path::absolute(dir).map_err(|error| Error::io("open", dir, error))?;
    let parent = dir.parent().unwrap_or(&dir);
    let entries = std::fs::read_dir(parent).map_err(|error| Error::io("read", parent, error))?;
    let mut found: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().join("datatrust.toml").is_file())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    found.sort();
    if found.is_empty() {
        found.push((dir.display().to_string(), dir));
    }
    Ok(found)
}
