//! Workload `disk`: the drivers of our engine side by side in one transfer, with syncs and without.

use ringseed_core::geometry::Kind;

use super::data::{Plan, size_text};
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
    /// The caches are dropped before each run.
    #[arg(long)]
    pub cold: bool,
}

/// Drivers that there may be, and how one gets a program that has them.
const DRIVERS: [&str; 4] = ["uring", "epoll", "glommio", "tokio-uring"];

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    let mut bench = Bench::new("disk", &args.common);
    let program = args.common.program();
    let help = std::process::Command::new(&program).args(["get", "--help"]).output();
    let help = help.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let help = help.unwrap_or_default();
    let mut who: Vec<Box<dyn Peer>> = Vec::new();
    for driver in DRIVERS {
        if has_driver(&help, driver) {
            who.push(Box::new(Release { driver, ..Release::new(program.clone()) }));
        } else {
            let text = format!("{} was built without the driver {driver}", program.display());
            bench.report.notes.push(text);
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
    let (size, piece) = (args.common.size.unwrap_or(SIZE), args.common.piece);
    let plans = [Plan::file("payload.bin", size)];
    if let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 1) {
        let what = format!("{} v1, pieces of {}", size_text(size), size_text(piece));
        let shape = Shape { is_cold: args.cold, ..Shape::PAIR };
        bench.compare(&what, &payload, shape);
    }
    bench.finish()
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
        let found = DRIVERS.map(|driver| has_driver(help, driver));
        assert_eq!(found, [true, true, false, false]);
    }
}
