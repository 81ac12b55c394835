//! aria2, which can be told of peers by a tracker only.

use std::process::Command;

use ringseed_core::geometry::Kind;
use serde_json::json;

use super::super::child::{Program, Sign, free_port};
use super::super::data::Payload;
use super::super::http;
use super::{Fetching, Job, Peer, flag, poll, said, version_in};

pub struct Aria2 {
    version: String,
}

pub fn find() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let text =
        said("aria2c", &["--version"]).ok_or("aria2 is not installed: apt-get install aria2")?;
    Ok(vec![Box::new(Aria2 { version: version_in(&text) })])
}

impl Aria2 {
    fn command(&self, job: &Job) -> Command {
        let mut command = Command::new("aria2c");
        command.args(["--no-conf=true", "--enable-dht=false", "--bt-enable-lpd=false"]);
        command.args(["--enable-peer-exchange=false", "--summary-interval=0"]);
        command.args(["--console-log-level=warn", "--show-console-readout=false"]);
        command.args(["--file-allocation=none", "--max-concurrent-downloads=10000"]);
        command.arg(format!("--interface={}", job.addr.ip()));
        command.arg(format!("--listen-port={}", job.addr.port()));
        command.arg(format!("--bt-tracker={}", job.tracker));
        command.arg(flag("--dir=", &job.folder));
        command
    }
}

impl Peer for Aria2 {
    fn name(&self) -> String {
        "aria2".into()
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self) -> String {
        "no discovery; files not allocated ahead, its fastest; told of peers by a tracker on this machine, \
         which it asks as soon as it runs; it ends when complete"
            .into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.kind == Kind::V1 && payload.torrents.len() == 1
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let control = ([127, 0, 0, 1], free_port()).into();
        let mut command = self.command(job);
        command.args(["--check-integrity=true", "--seed-ratio=0.0", "--enable-rpc=true"]);
        command.arg(format!("--rpc-listen-port={}", std::net::SocketAddr::port(&control)));
        let seed = job.start({
            command.args(&job.payload.torrents);
            command
        })?;
        let body = json!({"jsonrpc": "2.0", "id": "0", "method": "aria2.tellActive"}).to_string();
        let headers = [("Content-Type", "application/json")];
        poll("aria2 to seed", || {
            seed.gave(&Sign::line("no such line"))?;
            let answer = http::request(control, "POST", "/jsonrpc", &headers, body.as_bytes());
            let Ok(answer) = answer else { return Ok(false) };
            let active = answer.json()["result"].as_array().cloned().unwrap_or_default();
            Ok(active.len() == job.payload.torrents.len()
                && active.iter().all(|one| one["seeder"] == "true"))
        })?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let mut command = self.command(job);
        let done = match job.stays {
            true => {
                let (script, mark) = super::touching_script(&job.home)?;
                command.args(["--seed-ratio=0.0"]);
                command.arg(flag("--on-bt-download-complete=", &script));
                Sign::File(mark)
            }
            false => {
                command.args(["--seed-time=0"]);
                Sign::Exit
            }
        };
        command.args(&job.payload.torrents);
        Ok(Fetching { program: job.start(command)?, begins: Sign::Exec, done, clock: None })
    }
}
