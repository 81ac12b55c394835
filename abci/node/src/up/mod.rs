//! `ringseed up`: a whole market on one machine, built from the commands that anybody could type.
//!
//! [`Market`] holds the processes; [`story`] tells what happens to them, step by step; [`burden`] adds
//! up who carried how much. Everything that is shown was asked from the datatrusts over their control
//! sockets, or read from their disks by [`verify`], which shares no code with the engine.

pub mod burden;
pub mod children;
mod market;
mod newcomers;
mod proof;
pub mod registry;
pub mod source;
mod story;
pub mod verify;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::cli;
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::layout::Lock;
use crate::progress::Reporter;
use crate::{preflight, units};

use market::Market;
use source::{ListingPlan, Source};
use story::Story;

/// Room besides payload: ledgers, journals, leaves, logs.
const ROOM_BESIDES_BYTES: u64 = 128 << 20;

/// Runs the story; returns when it is told (`--once`) or when asked to stop.
///
/// # Errors
/// Whatever went wrong, with what the datatrusts said; [`Code::MarketDiffers`] or [`Code::Damaged`]
/// when anything was not as agreed.
pub fn run(args: &cli::Up, reporter: Reporter) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    for finding in preflight::machine()? {
        finding.warning.warn(&finding.now, reporter.is_json());
    }
    let source = source::choose(args.data.as_deref(), args.synthetic)?;
    let size_max = match (&args.data, args.synthetic) {
        (_, Some(size)) => size,
        // A folder that was named is taken whole if it fits the cap.
        _ => source::SIZE_MAX_BYTES,
    };
    let plans = source::plan(&source, args.listings as usize, size_max);
    let total: u64 = plans.iter().map(ListingPlan::len_bytes).sum();
    if plans.is_empty() {
        return Err(Error::new(Code::Missing, format!("{} has no file that fits", source.what))
            .cure("ringseed up --synthetic 64MiB"));
    }
    let copies = u64::from(args.nodes + args.new) + 1;
    let root = Root::choose(args, total * copies + ROOM_BESIDES_BYTES, reporter)?;
    introduce(&source, &plans, total, &root, reporter);
    let before = source::digest(&source, &plans)?;

    let mut market = Market::new(root.path.clone(), interrupt.clone(), args.uplink);
    let told = tell(args, &source, &plans, before, &mut market, reporter);
    let ended = told.and_then(|()| match args.once {
        true => Ok(()),
        false => stay(&mut market, &interrupt, reporter),
    });
    // In order, all at once: then the folder may go.
    market.stop();
    drop(root);
    ended
}

fn tell(
    args: &cli::Up,
    source: &Source,
    plans: &[ListingPlan],
    before: Option<String>,
    market: &mut Market,
    reporter: Reporter,
) -> Result<()> {
    let mut story = Story::new(args, source, plans, reporter, market);
    story.found()?;
    story.offer()?;
    story.replicate()?;
    if args.new > 0 {
        story.onboard()?;
        story.fetch_from_newcomer()?;
    }
    story.verify()?;
    story.compare()?;
    story.remove()?;
    let result = story.finish(before)?;
    if reporter.is_json() {
        println!("{result}");
    }
    Ok(())
}

/// The market stays up until Ctrl-C; a datatrust that dies ends it.
fn stay(market: &mut Market, interrupt: &Interrupt, reporter: Reporter) -> Result<()> {
    let exe = "ringseed";
    let first = market.nodes.first().map(|node| node.dir.display().to_string()).unwrap_or_default();
    reporter.say(
        "ready",
        &format!(
            "\nthe market stays up. try:  {exe} status --all\n                           {exe} listing ls\n                           {exe} listing add PATH --dir {first}\nstop: Ctrl-C (data is removed; --keep DIR keeps it)"
        ),
        json!({"dirs": market.nodes.iter().map(|node| &node.dir).collect::<Vec<_>>()}),
    );
    while interrupt.sleep(Duration::from_millis(500)) {
        market.require_alive()?;
    }
    reporter.say("stopping", "stopping", json!({}));
    Ok(())
}

fn introduce(source: &Source, plans: &[ListingPlan], total: u64, root: &Root, reporter: Reporter) {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let path = root.path.display();
    let free = preflight::free_bytes(&root.path).unwrap_or(0);
    let mut left_out = String::new();
    if source.skipped_links + source.skipped_unreadable > 0 {
        left_out = format!(
            " (left out: {} and {})",
            units::count(source.skipped_links, "link"),
            units::count(source.skipped_unreadable, "unreadable file")
        );
    }
    let files: usize = plans.iter().map(|plan| plan.files.len()).sum();
    let text = format!(
        "ringseed {}  kernel {kernel}  {cores} cores\ndata in {path} ({} free), {}\nlistings from {}: {} in {}, {}{left_out}\n",
        env!("CARGO_PKG_VERSION"),
        units::bytes(free),
        if root.is_kept { "kept" } else { "removed at the end" },
        source.what,
        plans.len(),
        units::count(files as u64, "file"),
        units::bytes(total),
    );
    let fields = json!({
        "version": env!("CARGO_PKG_VERSION"), "kernel": kernel, "cores": cores, "root": root.path,
        "free_bytes": free, "source": source.what, "source_root": source.root,
        "listings": plans.len(), "files": files, "bytes": total,
        "skipped_links": source.skipped_links, "skipped_unreadable": source.skipped_unreadable,
    });
    reporter.say("begin", &text, fields);
}

/// The market's folder: locked while we run, removed when dropped unless it is to be kept.
struct Root {
    path: PathBuf,
    is_kept: bool,
    _lock: Lock,
}

impl Root {
    fn choose(args: &cli::Up, needed_bytes: u64, reporter: Reporter) -> Result<Root> {
        let (path, is_kept) = match &args.keep {
            Some(keep) => {
                let keep = std::path::absolute(keep).map_err(|e| Error::io("create", keep, e))?;
                let holds_market = keep.join("genesis.toml").exists();
                if holds_market {
                    return Err(Error::new(
                        Code::AlreadyInitialised,
                        format!("{} holds a market already", keep.display()),
                    )
                    .cure(
                        "choose another folder, or start its datatrusts: ringseed start --dir D",
                    ));
                }
                (preflight::choose_place(&[keep], needed_bytes)?, true)
            }
            None => {
                let places = places();
                for place in &places {
                    let cleared = registry::clear_leftovers(place);
                    if cleared > 0 {
                        let text = format!(
                            "cleared what {} left in {}",
                            units::count(cleared, "killed run"),
                            place.display()
                        );
                        reporter.say("cleared", &text, json!({"count": cleared, "base": place}));
                    }
                }
                let base = preflight::choose_place(&places, needed_bytes)?;
                (base.join(format!("{}{}", registry::PREFIX, std::process::id())), false)
            }
        };
        std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
        let lock = Lock::take(&path.join(registry::LOCK_NAME))?;
        Ok(Root { path, is_kept, _lock: lock })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.is_kept {
            let _ = std::fs::remove_file(self.path.join(registry::LOCK_NAME));
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            Error::io("remove", &self.path, error)
                .warn("it stays; the next `up` removes it", false);
        }
    }
}

/// Where data may go, best first: a build folder here, the user's state, `/var/tmp`.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Ok(target) = std::env::current_dir().map(|dir| dir.join("target"))
        && target.is_dir()
    {
        places.push(target.join("ringseed"));
    }
    places.push(registry::state_home().join("up"));
    let uid = rustix::process::getuid().as_raw();
    places.push(PathBuf::from(format!("/var/tmp/ringseed-{uid}/up")));
    places
}
