//! Workload `disk`: the drivers of our engine side by side in one transfer, with syncs and without.

use std::path::{Path, PathBuf};

use super::peers::{Engine, Peer, Release};
use super::seedleech::SIZE;
use super::turns::Shape;
use super::{Bench, Options};
use crate::report::Report;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Views of the torrents.
    #[arg(long, value_delimiter = ',', default_values = ["v1", "v2"], value_parser = ["v1", "v2", "hybrid"])]
    pub kinds: Vec<String>,
    /// The caches are dropped before each run.
    #[arg(long)]
    pub cold: bool,
    /// A program with the drivers that are not built by default; `../drivers/release/ringseed` beside this
    /// benchmark otherwise.
    #[arg(long)]
    pub drivers: Option<PathBuf>,
}

/// Drivers of the default build, and of one with features.
const BUILT_IN: [&str; 2] = ["uring", "epoll"];
const EXTRA: [&str; 2] = ["glommio", "tokio-uring"];

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::of_ours("disk", &args.common);
    let program = args.common.program();
    let extra = args.drivers.clone().unwrap_or_else(|| {
        // Beside `target/release`, so that the default build stays what it is.
        let mut path = std::env::current_exe().unwrap_or_default();
        path.pop();
        path.pop();
        path.join("drivers/release/ringseed")
    });
    let mut who: Vec<Box<dyn Peer>> = Vec::new();
    for driver in BUILT_IN.into_iter().chain(EXTRA) {
        let is_extra = EXTRA.contains(&driver);
        // A default build that was made with the features has them as well.
        let found = [&program, &extra].into_iter().find(|path| has_driver(&help_of(path), driver));
        match found {
            Some(path) => who.push(Box::new(Release { driver, ..Release::new(path.clone()) })),
            None if is_extra => bench.report.notes.push(format!(
                "no program with the driver {driver}: cargo build --release --features \
                 {driver} --target-dir target/drivers (and --drivers PATH where that is elsewhere)"
            )),
            None => bench.report.fail(format!("{} has no driver {driver}", program.display())),
        }
    }
    who.push(Box::new(Engine {
        name: "ringseed, uring, syncs off",
        why: "the engine without its command line; nothing is synced",
        flags: &["--no-sync", "--io-driver", "uring"],
    }));
    who.push(Box::new(Engine {
        name: "ringseed, epoll, syncs off",
        why: "the engine without its command line; nothing is synced",
        flags: &["--no-sync", "--io-driver", "epoll"],
    }));
    bench.who = who;
    bench.who.retain(|peer| args.common.wants(&peer.name()));
    let shape = Shape { is_cold: args.cold, ..Shape::PAIR };
    let (size, common) = (args.common.size.unwrap_or(SIZE), &args.common);
    bench.each_kind(&args.kinds, size, common, |bench, what, _, payload| {
        bench.compare(what, payload, shape);
    });
    bench.finish()
}

fn help_of(program: &Path) -> String {
    let help = std::process::Command::new(program).args(["get", "--help"]).output();
    help.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Whether the help of `--io-driver` lists it among the values.
fn has_driver(help: &str, driver: &str) -> bool {
    let flag = help.split("--io-driver").nth(1).unwrap_or_default();
    let values = flag.split("possible values:").nth(1).and_then(|rest| rest.split(']').next());
    values.is_some_and(|values| values.split(',').any(|value| value.trim() == driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_says_which_drivers_there_are() {
        let help = "--io-driver <DRIVER>  What does the I/O: io_uring, glommio, or any [default: auto] \
                    [possible values: auto, uring, epoll]\n --other <X> [possible values: tokio-uring]";
        let found =
            ["uring", "epoll", "glommio", "tokio-uring"].map(|driver| has_driver(help, driver));
        assert_eq!(found, [true, true, false, false]);
    }
}
