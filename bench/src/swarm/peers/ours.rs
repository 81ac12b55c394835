//! Ourselves: the release binary as a user runs it, and the engine alone in a process of this program,
//! for what the command line does not offer.

use std::path::PathBuf;
use std::process::Command;

use super::super::child::{Program, Sign};
use super::super::data::Payload;
use super::{Fetching, Job, Peer, START_MAX, said, version_in};

/// `ringseed seed` and `ringseed get`.
pub struct Release {
    pub program: PathBuf,
    /// `auto`, `uring`, `epoll`.
    pub driver: &'static str,
    /// Shards of the seed and of the leech; as it likes without.
    pub shards: Option<(u32, u32)>,
}

impl Release {
    /// As a user runs it.
    pub fn new(program: PathBuf) -> Release {
        Release { program, driver: "auto", shards: None }
    }
}

impl Peer for Release {
    fn name(&self) -> String {
        match (self.driver, self.shards) {
            ("auto", None) => "ringseed".into(),
            ("auto", Some((seed, leech))) => {
                format!("ringseed, shards: seed {seed}, leech {leech}")
            }
            (driver, _) => format!("ringseed --io-driver {driver}"),
        }
    }

    fn version(&self) -> String {
        said(&self.program, &["--version"])
            .map_or_else(|| "unknown".into(), |text| version_in(&text))
    }

    fn settings(&self) -> String {
        let driver = match self.driver {
            "auto" => String::new(),
            driver => format!(", --io-driver {driver}"),
        };
        let shards = self.shards.map_or(String::new(), |(seed, leech)| {
            format!(", --shards {seed} for the seed, {leech} for the leech")
        });
        format!("the release binary at its defaults{driver}{shards}, no trackers")
    }

    fn durability(&self) -> &'static str {
        "data and journal synced, then complete"
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.torrents.len() == 1
    }

    fn sums_up(&self) -> bool {
        true
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let mut command = Command::new(&self.program);
        command.args(["--json", "seed", "--no-trackers", "--io-driver", self.driver]);
        command.arg("--listen").arg(job.addr.to_string()).arg("--data").arg(&job.folder);
        if let Some((shards, _)) = self.shards {
            command.args(["--shards", &shards.to_string()]);
        }
        command.arg("--").args(&job.payload.torrents);
        let mut seed = job.start(command)?;
        seed.wait(&Sign::line("\"addr\""), START_MAX)?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let mut command = Command::new(&self.program);
        command.args(["--json", "get", "--no-trackers", "--io-driver", self.driver]);
        command.arg("--data").arg(&job.folder);
        if let Some((_, shards)) = self.shards {
            command.args(["--shards", &shards.to_string()]);
        }
        for peer in &job.peers {
            command.args(["--peer", &peer.to_string()]);
        }
        if job.stays {
            command.args(["--seed-after", "--listen", &job.addr.to_string()]);
        }
        command.arg("--").arg(&job.payload.torrents[0]);
        let done = if job.stays { Sign::line("\"event\":\"seeding\"") } else { Sign::Exit };
        Ok(Fetching { program: job.start(command)?, begins: Sign::Exec, done, clock: None })
    }
}

/// The engine in a process of this program, see [`super::super::node`].
pub struct Engine {
    pub name: &'static str,
    pub why: &'static str,
    /// Flags for both sides.
    pub flags: &'static [&'static str],
}

impl Engine {
    /// Without syncs, as every other program here runs.
    pub const UNSYNCED: Engine = Engine {
        name: "ringseed, syncs off",
        why: "the engine without its command line; nothing is synced, as with the others",
        flags: &["--no-sync"],
    };

    fn command(&self, what: &str, job: &Job) -> Result<Command, String> {
        let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
        command.args(["node", what]).args(self.flags);
        command.arg("--data").arg(&job.folder).arg("--state").arg(job.home.join("engine"));
        Ok(command)
    }
}

impl Peer for Engine {
    fn name(&self) -> String {
        self.name.into()
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn settings(&self) -> String {
        format!("{}: {}", self.flags.join(" "), self.why)
    }

    fn durability(&self) -> &'static str {
        match self.flags.contains(&"--no-sync") {
            true => "syncs off",
            false => "data and journal synced, then complete",
        }
    }

    fn takes(&self, _: &Payload) -> bool {
        true
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let mut command = self.command("seed", job)?;
        command.args(["--listen", &job.addr.to_string()]).args(&job.payload.torrents);
        let mut seed = job.start(command)?;
        seed.wait(&Sign::line("complete"), START_MAX)?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let mut command = self.command("leech", job)?;
        for peer in &job.peers {
            command.args(["--peer", &peer.to_string()]);
        }
        if job.stays {
            command.args(["--stays", "--listen", &job.addr.to_string()]);
        }
        command.args(&job.payload.torrents);
        let done = if job.stays { Sign::line("complete") } else { Sign::Exit };
        Ok(Fetching { program: job.start(command)?, begins: Sign::Exec, done, clock: None })
    }
}
