//! rqbit, which says in its log when it is done.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringseed_core::geometry::Kind;

use super::super::child::{Program, Sign};
use super::super::data::Payload;
use super::{Fetching, Job, Peer, START_MAX, said, version_in};

pub struct Rqbit {
    program: PathBuf,
    version: String,
}

/// Where the tests install it, or on the path.
pub fn find() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/rqbit");
    let found = [tools, PathBuf::from("rqbit")].into_iter().find_map(|program| {
        let version = version_in(&said(&program, &["--version"])?);
        Some(Rqbit { program, version })
    });
    let found = found.ok_or(
        "rqbit is not installed: cargo install rqbit --locked --no-default-features --features rust-tls",
    )?;
    Ok(vec![Box::new(found)])
}

impl Rqbit {
    fn command(&self, job: &Job) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--disable-dht", "--disable-lsd", "--disable-trackers", "--ipv4-only"]);
        command.args(["--disable-upnp-port-forward", "--listen-ip", &job.addr.ip().to_string()]);
        command.args(["--listen-port", &job.addr.port().to_string()]);
        command.args(["download", "--disable-http-api", "--overwrite"]);
        if !job.peers.is_empty() {
            command.args(["--initial-peers", &job.peers_text()]);
        }
        command.arg("-o").arg(&job.folder).args(&job.payload.torrents);
        command.env("RUST_LOG", "info").env("NO_COLOR", "1");
        command
    }
}

impl Peer for Rqbit {
    fn name(&self) -> String {
        "rqbit".into()
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self) -> String {
        "defaults but for no discovery; the seed checks its data first, which does not count".into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.kind == Kind::V1
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let mut seed = job.start(self.command(job))?;
        seed.wait(&Sign::Lines("needed 0", job.payload.torrents.len()), START_MAX)?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let program = job.start(self.command(job))?;
        let done = Sign::Lines("torrent finished downloading", job.payload.torrents.len());
        Ok(Fetching { program, begins: Sign::Exec, done, clock: None })
    }
}
