//! transmission-daemon, driven by its RPC. It takes no loopback address for a peer's, so it uses the
//! machine's own address, whose packets stay on the machine as well; a tracker tells it of peers.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use ringseed_core::geometry::Kind;
use serde_json::{Value, json};

use super::super::child::{Program, Sign, free_port};
use super::super::data::Payload;
use super::super::http;
use super::{Fetching, Job, Peer, own_address, poll, said, touching_script, version_in};

pub struct Transmission {
    version: String,
    ip: Ipv4Addr,
}

pub fn find() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let text = said("transmission-daemon", &["--version"])
        .ok_or("transmission is not installed: apt-get install transmission-daemon")?;
    let ip = own_address()
        .ok_or("transmission refuses loopback peers, and this machine has no other address")?;
    Ok(vec![Box::new(Transmission { version: version_in(&text), ip })])
}

impl Transmission {
    /// Starts it and adds the torrents.
    fn start(&self, job: &Job) -> Result<(Program, SocketAddr, Sign), String> {
        let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let config = job.home.join("config");
        let (script, mark) = touching_script(&job.home)?;
        let settings = json!({
            "bind-address-ipv4": job.addr.ip().to_string(),
            "peer-port": job.addr.port(),
            "rpc-bind-address": "127.0.0.1",
            "rpc-port": control.port(),
            "download-dir": job.folder,
            "dht-enabled": false, "lpd-enabled": false, "pex-enabled": false, "utp-enabled": false,
            "port-forwarding-enabled": false,
            "encryption": 0,
            "download-queue-enabled": false, "seed-queue-enabled": false, "queue-stalled-enabled": false,
            "upload-slots-per-torrent": 100,
            "cache-size-mb": 64,
            "script-torrent-done-enabled": true,
            "script-torrent-done-filename": script,
        });
        std::fs::create_dir_all(&config)
            .and_then(|()| std::fs::write(config.join("settings.json"), settings.to_string()))
            .map_err(|error| error.to_string())?;
        let mut command = Command::new("transmission-daemon");
        command.arg("--foreground").arg("--config-dir").arg(&config);
        let program = job.start(command)?;
        poll("transmission's RPC", || {
            program.gave(&Sign::line("no such line"))?;
            Ok(http::request(control, "GET", "/transmission/rpc", &[], &[]).is_ok())
        })?;
        for (at, torrent) in job.torrents_with_tracker()?.iter().enumerate() {
            let path = job.home.join(format!("{at}.torrent"));
            std::fs::write(&path, torrent).map_err(|error| error.to_string())?;
            let arguments = json!({"download-dir": job.folder, "filename": path});
            let answer = call(control, "torrent-add", &arguments);
            if answer["result"] != "success" {
                return Err(format!("transmission refused a torrent: {answer}"));
            }
        }
        Ok((program, control, Sign::File(mark)))
    }
}

fn call(control: SocketAddr, method: &str, arguments: &Value) -> Value {
    let body = json!({"method": method, "arguments": arguments}).to_string();
    let mut token = String::new();
    // The first answer is a refusal with the token that the second request needs.
    for _ in 0..2 {
        let headers = [("X-Transmission-Session-Id", token.as_str())];
        let sent = http::request(control, "POST", "/transmission/rpc", &headers, body.as_bytes());
        let Ok(answer) = sent else { return Value::Null };
        if answer.status == 200 {
            return answer.json();
        }
        token = answer.header("x-transmission-session-id").unwrap_or_default().to_owned();
    }
    Value::Null
}

impl Peer for Transmission {
    fn name(&self) -> String {
        "transmission".into()
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self) -> String {
        "no discovery, no uTP, plain text preferred, no queues, 100 upload slots, cache of 64 MB; on the \
         machine's own address, told of peers by a tracker"
            .into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.kind == Kind::V1 && payload.torrents.len() == 1
    }

    fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        /// Status of a torrent that is seeding.
        const SEEDING: u64 = 6;
        let (program, control, _) = self.start(job)?;
        let arguments = json!({"fields": ["percentDone", "status"]});
        poll("transmission to seed", || {
            program.gave(&Sign::line("no such line"))?;
            let answer = call(control, "torrent-get", &arguments);
            let torrents = answer["arguments"]["torrents"].as_array().cloned().unwrap_or_default();
            Ok(torrents.len() == job.payload.torrents.len()
                && torrents.iter().all(|one| {
                    one["status"].as_u64() == Some(SEEDING)
                        && one["percentDone"].as_f64() == Some(1.0)
                }))
        })?;
        Ok(Some(program))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let (program, _, done) = self.start(job)?;
        Ok(Fetching { program, begins: Sign::Exec, done, clock: None })
    }
}
