//! qBittorrent without a screen, driven by its web interface. It links libtorrent-rasterbar, another
//! generation of it than the Python package.

use std::net::SocketAddr;

use ringseed_tests::http::{self, Answer};
use ringseed_tests::program::{Program, free_port};
use serde_json::Value;

use super::{Job, Running};

pub struct Qbittorrent {
    program: Program,
    control: SocketAddr,
}

pub fn start(job: &Job) -> Qbittorrent {
    let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let folder = job.home.join("qBittorrent/config");
    std::fs::create_dir_all(&folder).expect("folder of its settings");
    let rate = job.upload_rate_max.map_or(String::new(), |rate| {
        format!("Session\\GlobalUPSpeedLimit={}\n", rate.div_ceil(1024))
    });
    // Encryption 2 is "disabled".
    let plain = if job.is_plain { "Session\\BTProtocol=TCP\nSession\\Encryption=2\n" } else { "" };
    let settings = format!(
        "[LegalNotice]\nAccepted=true\n\n\
         [BitTorrent]\nSession\\Port={port}\nSession\\InterfaceAddress={ip}\n{rate}{plain}\n\
         [Preferences]\nWebUI\\Address=127.0.0.1\nWebUI\\Port={web}\nWebUI\\LocalHostAuth=false\n",
        port = job.addr.port(),
        ip = job.addr.ip(),
        web = control.port(),
    );
    std::fs::write(folder.join("qBittorrent.conf"), settings).expect("settings");
    let args = [format!("--profile={}", job.home.display())];
    let program = Program::start_command(job.command("qbittorrent-nox"), &args, &job.logs());
    let mut peer = Qbittorrent { program, control };
    let control = peer.control;
    peer.program.wait_until("the web interface", super::START_MAX, |_| {
        http::request(control, "GET", "/api/v2/app/version", &[], &[])
            .is_ok_and(|answer| answer.status == 200)
    });
    if peer.info().is_null() {
        peer.add(job);
    }
    let mut told = false;
    let start = std::time::Instant::now();
    // It takes peers only for a torrent that it has begun.
    while !told {
        assert!(start.elapsed() < super::START_MAX, "qBittorrent did not take the torrent");
        std::thread::sleep(std::time::Duration::from_millis(50));
        let Some(hash) = peer.info()["hash"].as_str().map(str::to_owned) else { continue };
        let peers: Vec<String> = job.peers.iter().map(ToString::to_string).collect();
        if peers.is_empty() {
            break;
        }
        let body = format!("hashes={hash}&peers={}", peers.join("|"));
        told = peer.post("addPeers", "application/x-www-form-urlencoded", body.as_bytes()).status
            == 200;
    }
    peer
}

impl Qbittorrent {
    fn add(&self, job: &Job) {
        let folder = job.folder.to_string_lossy().into_owned();
        let mut fields =
            vec![("savepath", folder.as_str()), ("autoTMM", "false"), ("paused", "false")];
        let (link, torrent) = (job.magnet(), job.torrent());
        if let Some(link) = &link {
            fields.push(("urls", link));
        }
        let file = torrent.as_deref().map(|bytes| ("torrents", bytes));
        let (kind, body) = http::multipart(&fields, file);
        let answer = self.post("add", &kind, &body);
        assert_eq!(answer.text(), "Ok.", "qBittorrent refused the torrent");
    }

    fn post(&self, what: &str, kind: &str, body: &[u8]) -> Answer {
        let path = format!("/api/v2/torrents/{what}");
        http::request(self.control, "POST", &path, &[("Content-Type", kind)], body)
            .expect("the web interface answers")
    }

    /// Its view of the torrent; `null` as long as it has none.
    fn info(&self) -> Value {
        let answer = http::request(self.control, "GET", "/api/v2/torrents/info", &[], &[]);
        answer.map_or(Value::Null, |answer| answer.json()[0].clone())
    }
}

impl Running for Qbittorrent {
    fn is_complete(&mut self) -> bool {
        let info = self.info();
        let state = info["state"].as_str().unwrap_or_default();
        matches!(state, "uploading" | "stalledUP" | "forcedUP")
    }

    fn have_bytes(&mut self) -> u64 {
        self.info()["completed"].as_u64().unwrap_or(0)
    }

    fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}
