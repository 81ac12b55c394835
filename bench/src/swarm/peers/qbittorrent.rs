//! qBittorrent without a screen, driven by its web interface. It links libtorrent-rasterbar, another
//! generation of it than the Python package.

use std::net::SocketAddr;
use std::process::Command;

use ringseed_core::geometry::Kind;
use serde_json::Value;

use super::super::child::{Program, Sign, free_port};
use super::super::data::Payload;
use super::super::http;
use super::{Fetching, Job, Peer, poll, said, touching_script, version_in};

pub struct Qbittorrent {
    version: String,
}

pub fn find() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let text = said("qbittorrent-nox", &["--version"])
        .ok_or("qBittorrent is not installed: apt-get install qbittorrent-nox")?;
    Ok(vec![Box::new(Qbittorrent { version: version_in(&text) })])
}

impl Qbittorrent {
    /// Starts it and adds the torrent; peers are told once it has begun it.
    fn start(&self, job: &Job, skips_check: bool) -> Result<(Program, Sign), String> {
        let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let folder = job.home.join("qBittorrent/config");
        let (script, mark) = touching_script(&job.home)?;
        let settings = format!(
            "[LegalNotice]\nAccepted=true\n\n[AutoRun]\nenabled=true\nprogram={script}\n\n\
             [BitTorrent]\nSession\\Port={port}\nSession\\InterfaceAddress={ip}\n\
             Session\\DHTEnabled=false\nSession\\LSDEnabled=false\nSession\\PeXEnabled=false\n\
             Session\\BTProtocol=TCP\nSession\\Encryption=2\nSession\\QueueingSystemEnabled=false\n\
             Session\\MultiConnectionsPerIp=true\nSession\\MaxUploads=-1\n\
             Session\\MaxUploadsPerTorrent=-1\n\n\
             [Preferences]\nWebUI\\Address=127.0.0.1\nWebUI\\Port={web}\nWebUI\\LocalHostAuth=false\n\
             WebUI\\UseUPnP=false\n",
            script = script.display(),
            port = job.addr.port(),
            ip = job.addr.ip(),
            web = control.port(),
        );
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join("qBittorrent.conf"), settings))
            .map_err(|error| error.to_string())?;
        let mut command = Command::new("qbittorrent-nox");
        command.arg(super::flag("--profile=", &job.home));
        let program = job.start(command)?;
        poll("qBittorrent's web interface", || {
            program.gave(&Sign::line("no such line"))?;
            let answer = http::request(control, "GET", "/api/v2/app/version", &[], &[]);
            Ok(answer.is_ok_and(|answer| answer.status == 200))
        })?;
        let folder = job.folder.to_string_lossy().into_owned();
        let fields = [
            ("savepath", folder.as_str()),
            ("autoTMM", "false"),
            ("paused", "false"),
            ("skip_checking", if skips_check { "true" } else { "false" }),
        ];
        let torrent = std::fs::read(&job.payload.torrents[0]).map_err(|error| error.to_string())?;
        let (kind, body) = http::multipart(&fields, &[torrent]);
        let answer = post(control, "add", &kind, &body)?;
        if answer.status != 200 {
            return Err(format!("qBittorrent refused the torrent: {}", answer.status));
        }
        if !job.peers.is_empty() {
            let peers = job.peers_text().replace(',', "|");
            // It takes peers only for a torrent that it has begun.
            poll("qBittorrent to take peers", || {
                let Some(hash) = info(control)["hash"].as_str().map(str::to_owned) else {
                    return Ok(false);
                };
                let body = format!("hashes={hash}&peers={peers}");
                let form = "application/x-www-form-urlencoded";
                Ok(post(control, "addPeers", form, body.as_bytes())?.status == 200)
            })?;
        } else {
            poll("qBittorrent to seed", || {
                let info = info(control);
                let state = info["state"].as_str().unwrap_or_default().to_owned();
                Ok(matches!(state.as_str(), "uploading" | "stalledUP" | "forcedUP"))
            })?;
        }
        Ok((program, Sign::File(mark)))
    }
}

fn post(control: SocketAddr, what: &str, kind: &str, body: &[u8]) -> Result<http::Answer, String> {
    let path = format!("/api/v2/torrents/{what}");
    http::request(control, "POST", &path, &[("Content-Type", kind)], body)
        .map_err(|error| format!("qBittorrent's web interface: {error}"))
}

/// Its view of the torrent; null as long as it has none.
fn info(control: SocketAddr) -> Value {
    let answer = http::request(control, "GET", "/api/v2/torrents/info", &[], &[]);
    answer.map_or(Value::Null, |answer| answer.json()[0].clone())
}

impl Peer for Qbittorrent {
    fn name(&self) -> String {
        "qbittorrent-nox".into()
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self) -> String {
        "no discovery, no uTP, no encryption, no queue, unlimited upload slots; calls a script when done".into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.kind == Kind::V1 && payload.torrents.len() == 1
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        Ok(Some(self.start(job, true)?.0))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let (program, done) = self.start(job, false)?;
        Ok(Fetching { program, begins: Sign::Exec, done, clock: None })
    }
}
