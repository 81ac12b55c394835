//! Workloads that move data between processes: ourselves beside every other client, rsync as the floor
//! and a bare TCP connection as the roof.

pub mod arm;
mod bars;
mod calls;
pub mod child;
pub mod data;
pub mod disk;
pub mod fairness;
pub mod fan;
pub mod guard;
mod http;
pub mod latency;
pub mod memory;
pub mod node;
pub mod peers;
pub mod seedleech;
mod serve;
pub mod shards;
mod slow;
pub mod smalls;
pub mod table;
mod tracker;
pub mod turns;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use ringseed_core::geometry::Kind;

use crate::machine::Others;
use crate::report::Report;
use peers::{Engine, Peer, Release};
use turns::Runner;

/// A median of fewer is none.
const TURNS_MIN: u32 = 3;

/// What all of these workloads have in common.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// Scratch folder, on the disk that is meant; what it makes there it removes.
    #[arg(long, default_value = "target/bench-swarm")]
    pub dir: PathBuf,
    /// Length of the payload, such as 256MiB; 4GiB by default, 1GiB where several fetch it.
    #[arg(long, value_parser = data::parse_size)]
    pub size: Option<u64>,
    /// Length of a piece.
    #[arg(long, default_value = "1MiB", value_parser = data::parse_size)]
    pub piece: u64,
    /// Runs that count, per contender; the median is compared.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub turns: u32,
    /// Seed of the payload.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Who takes part, by the beginning of the name; all by default.
    #[arg(long, value_delimiter = ',')]
    pub who: Vec<String>,
    /// The program under test; the one beside this benchmark by default.
    #[arg(long)]
    pub ringseed: Option<PathBuf>,
    /// Who needs longer than so many seconds for a run makes one only.
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// No run to warm up.
    #[arg(long)]
    pub quick: bool,
    /// No run to count system calls and syncs.
    #[arg(long)]
    pub no_calls: bool,
}

impl Options {
    /// Whether a contender of this name takes part.
    pub fn wants(&self, name: &str) -> bool {
        self.who.is_empty() || self.who.iter().any(|wanted| name.starts_with(wanted.as_str()))
    }

    /// The program under test.
    pub fn program(&self) -> PathBuf {
        self.ringseed.clone().unwrap_or_else(|| {
            std::env::current_exe().unwrap_or_default().with_file_name("ringseed")
        })
    }
}

/// The kind of torrent of that name.
pub fn kind_of(name: &str) -> Kind {
    match name {
        "v1" => Kind::V1,
        "v2" => Kind::V2,
        _ => Kind::Hybrid,
    }
}

/// A workload in progress.
pub struct Bench {
    pub runner: Runner,
    pub report: Report,
    pub who: Vec<Box<dyn Peer>>,
}

impl Bench {
    /// Finds everybody and looks at the machine at rest.
    pub fn new(workload: &'static str, options: &Options) -> Bench {
        let mut bench = Bench::of_ours(workload, options);
        let found = peers::find();
        bench.report.notes.extend(found.missing);
        bench.who.extend(found.peers);
        bench.who.retain(|peer| options.wants(&peer.name()));
        bench
    }

    /// The same without others, for what is ours alone.
    pub fn of_ours(workload: &'static str, options: &Options) -> Bench {
        // From here on whoever interrupts it finds nothing left.
        child::is_interrupted();
        let mut report = Report::new(workload);
        report.machine.look_at_disk(&options.dir);
        let ringseed = options.program();
        let mut who: Vec<Box<dyn Peer>> = Vec::new();
        if ringseed.exists() {
            who.push(Box::new(Release::new(ringseed)));
        } else {
            report.fail(format!("{} is missing: cargo build --release", ringseed.display()));
        }
        who.push(Box::new(Engine::UNSYNCED));
        who.retain(|peer| options.wants(&peer.name()));
        if options.turns < TURNS_MIN {
            let turns = options.turns;
            report.notes.push(format!("turns: {turns}; it runs, and that is all that this shows"));
        }
        let others = Others::look();
        report.notes.push(others.note());
        let runner = Runner {
            // Programs are told of it from folders of their own.
            dir: std::path::absolute(&options.dir).unwrap_or_else(|_| options.dir.clone()),
            turns: options.turns as usize,
            others,
            patience: Duration::from_secs(options.patience),
            warms_up: !options.quick,
            calls_hindrance: match options.no_calls {
                true => Some("--no-calls".to_owned()),
                false => calls::hindrance(),
            },
        };
        Bench { runner, report, who }
    }

    /// Makes a payload, if there is room for it and so many copies.
    pub fn payload(
        &mut self,
        kind: Kind,
        piece: u64,
        plans: &[data::Plan],
        options: &Options,
        copies: usize,
    ) -> Option<data::Payload> {
        let bytes: u64 = plans.iter().flat_map(|plan| &plan.lens).sum();
        if !self.runner.has_room(bytes, copies, &mut self.report) {
            return None;
        }
        match data::Payload::make(&self.runner.dir, kind, piece, plans, options.seed) {
            Ok(made) => Some(made),
            Err(error) => {
                self.report.fail(format!("cannot make the payload: {error}"));
                None
            }
        }
    }

    /// Does something with one file of each kind of torrent; its bytes are made once.
    pub fn each_kind(
        &mut self,
        kinds: &[String],
        size: u64,
        options: &Options,
        mut work: impl FnMut(&mut Bench, &str, Kind, &data::Payload),
    ) {
        let plans = [data::Plan::file("payload.bin", size)];
        let mut payload: Option<data::Payload> = None;
        for name in kinds {
            let kind = kind_of(name);
            let made = match payload.take() {
                None => self.payload(kind, options.piece, &plans, options, 1),
                Some(found) => found.of_kind(kind, options.piece, &plans).ok(),
            };
            let Some(made) = made else { break };
            let (size, piece) = (data::size_text(size), data::size_text(options.piece));
            let what = format!("{size} {name}, pieces of {piece}");
            work(self, &what, kind, &made);
            payload = Some(made);
        }
    }

    /// Runs all contenders on it.
    pub fn compare(
        &mut self,
        what: &str,
        payload: &data::Payload,
        shape: turns::Shape,
    ) -> Vec<arm::Arm> {
        let who: Vec<&dyn Peer> = self.who.iter().map(|peer| &**peer).collect();
        self.runner.compare(what, payload, shape, &who, &mut self.report)
    }

    /// Removes what is left, and says what the machine was doing.
    pub fn finish(mut self) -> Report {
        turns::clear(&self.runner.dir);
        self.report.note_interruption();
        self.report.machine.look_again();
        self.report
    }
}
