//! vortex, the other engine on io_uring. Its command line is a text interface that finds peers by its DHT
//! alone, so a small program around its library takes part: `peers/vortex`, built by whoever wants it.

use std::path::PathBuf;
use std::process::Command;

use ringseed_core::geometry::Kind;

use super::super::child::{Program, Sign};
use super::super::data::Payload;
use super::{Fetching, Job, Peer, START_MAX};

/// Version of the library that `peers/vortex/Cargo.lock` pins.
const VERSION: &str = "0.8.0";
/// Requests that it lets a peer make at once: its default. It hands out pieces once a second, as many as the
/// peer lets it ask for, which is 8 MiB with this; with 2,048 and more, transfers between two of it stopped
/// in the middle.
const REQUESTS: &str = "512";
/// At 9 MB/s nobody waits for more, bytes.
const LEN_MAX: u64 = 256 << 20;

pub struct Vortex {
    program: PathBuf,
}

pub fn find() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    // Beside `target/release`.
    let mut program = std::env::current_exe().unwrap_or_default();
    program.pop();
    program.pop();
    program.push("vortex/release/vortex-peer");
    if program.exists() {
        return Ok(vec![Box::new(Vortex { program })]);
    }
    Err("vortex is not built: cargo build --release --manifest-path bench/peers/vortex/Cargo.toml \
         --target-dir target/vortex")
}

impl Vortex {
    /// It keeps a single file beneath a folder of its name.
    fn command(&self, job: &Job) -> Result<Command, String> {
        let name = job.payload.metainfo().info().name().to_owned();
        let (kept, wanted) = (job.home.join("data").join(&name), job.folder.join(&name));
        let linked = std::fs::create_dir_all(&kept)
            .and_then(|()| std::fs::create_dir_all(&job.folder))
            .and_then(|()| match job.peers.is_empty() {
                true => std::fs::hard_link(&wanted, kept.join(&name)),
                false => std::os::unix::fs::symlink(kept.join(&name), &wanted),
            });
        linked.map_err(|error| format!("{}: {error}", kept.display()))?;
        let mut command = Command::new(&self.program);
        command.arg(&job.payload.torrents[0]).arg(job.home.join("data"));
        command.arg(job.addr.to_string()).arg(REQUESTS);
        command.args(job.peers.iter().map(ToString::to_string));
        Ok(command)
    }
}

impl Peer for Vortex {
    fn name(&self) -> String {
        "vortex".into()
    }

    fn version(&self) -> String {
        VERSION.into()
    }

    fn settings(&self) -> String {
        "defaults of its library, without DHT, by a small program around it (peers/vortex); where a peer may ask \
         for more than its default of 512 blocks at once, transfers stopped in the middle"
            .into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.kind == Kind::V1 && payload.files() == 1
    }

    fn declines(&self, payload: &Payload) -> Option<String> {
        let is_long = payload.len_bytes > LEN_MAX;
        is_long.then(|| {
            "left out of more than 256 MiB: it hands out pieces once a second, 9 MB/s".to_owned()
        })
    }

    fn swarms(&self) -> bool {
        // Each listens at a port of its own, but at one address it takes one peer.
        false
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let mut seed = job.start(self.command(job)?)?;
        seed.wait(&Sign::line("seeding"), START_MAX)?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let program = job.start(self.command(job)?)?;
        Ok(Fetching { program, begins: Sign::Exec, done: Sign::line("done"), clock: None })
    }
}
