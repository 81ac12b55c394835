//! transmission-daemon, driven by its RPC. It can be told of peers by a tracker only.

use std::net::SocketAddr;

use ringseed_tests::http;
use ringseed_tests::program::{Program, free_port};
use serde_json::{Value, json};

use super::{Job, Running};

pub struct Transmission {
    program: Program,
    control: SocketAddr,
}

pub fn start(job: &Job) -> Transmission {
    let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let config = job.home.join("config");
    std::fs::create_dir_all(&config).expect("folder of its settings");
    let mut settings = json!({
        "peer-port": job.addr.port(),
        "rpc-bind-address": "127.0.0.1",
        "rpc-port": control.port(),
        // Its log tells of announces and peers.
        "message-level": 3,
        "download-dir": job.folder.to_string_lossy(),
    });
    let family = if job.addr.is_ipv6() { "bind-address-ipv6" } else { "bind-address-ipv4" };
    settings[family] = json!(job.addr.ip().to_string());
    if job.is_plain {
        settings["utp-enabled"] = json!(false);
        // In the clear where the other side takes it.
        settings["encryption"] = json!(0);
    }
    if let Some(rate) = job.upload_rate_max {
        settings["speed-limit-up"] = json!(rate.div_ceil(1_000));
        settings["speed-limit-up-enabled"] = json!(true);
    }
    std::fs::write(config.join("settings.json"), settings.to_string()).expect("settings");
    let args = ["--foreground".into(), "--config-dir".into(), config.into_os_string()];
    let program = Program::start_command(job.command("transmission-daemon"), &args, &job.logs());
    let mut peer = Transmission { program, control };
    let control = peer.control;
    peer.program.wait_until("the RPC", super::START_MAX, |_| {
        http::request(control, "GET", "/transmission/rpc", &[], &[]).is_ok()
    });
    if peer.torrent().is_null() {
        let mut arguments = json!({"download-dir": job.folder.to_string_lossy()});
        arguments["filename"] = json!(job.source_with_tracker().to_string_lossy());
        let answer = peer.call("torrent-add", arguments);
        assert_eq!(answer["result"], "success", "{answer}");
    }
    peer
}

impl Transmission {
    fn call(&self, method: &str, arguments: Value) -> Value {
        let body = json!({"method": method, "arguments": arguments}).to_string();
        let mut token = String::new();
        // The first answer is a refusal with the token that the second request needs.
        for _ in 0..2 {
            let headers = [("X-Transmission-Session-Id", token.as_str())];
            let sent =
                http::request(self.control, "POST", "/transmission/rpc", &headers, body.as_bytes());
            let Ok(answer) = sent else { return Value::Null };
            if answer.status == 200 {
                return answer.json();
            }
            token = answer.header("x-transmission-session-id").unwrap_or_default().to_owned();
        }
        Value::Null
    }

    fn torrent(&self) -> Value {
        let fields =
            ["percentDone", "haveValid", "status", "errorString", "metadataPercentComplete"];
        let answer = self.call("torrent-get", json!({ "fields": fields }));
        answer["arguments"]["torrents"][0].clone()
    }
}

impl Running for Transmission {
    fn is_complete(&mut self) -> bool {
        /// Status of a torrent that is seeding.
        const SEEDING: u64 = 6;
        let torrent = self.torrent();
        torrent["status"].as_u64() == Some(SEEDING) && torrent["percentDone"].as_f64() == Some(1.0)
    }

    fn have_bytes(&mut self) -> u64 {
        self.torrent()["haveValid"].as_u64().unwrap_or(0)
    }

    fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}
