//! aria2, driven by its RPC. It can be told of peers by a tracker only.

use std::net::SocketAddr;

use ringseed_tests::http;
use ringseed_tests::program::{Program, free_port};
use serde_json::{Value, json};

use super::{Job, Running};

pub struct Aria2 {
    program: Program,
    control: SocketAddr,
}

pub fn start(job: &Job) -> Aria2 {
    let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let mut args = vec![
        "--no-conf".to_owned(),
        format!("--dir={}", job.folder.display()),
        format!("--listen-port={}", job.addr.port()),
        format!("--dht-listen-port={}", free_port()),
        "--enable-rpc".to_owned(),
        format!("--rpc-listen-port={}", control.port()),
        // It checks what is there and goes on from it, also after it was killed.
        "--check-integrity=true".to_owned(),
        // It seeds until it is told to end.
        "--seed-ratio=0.0".to_owned(),
    ];
    if !job.tracker.is_empty() {
        args.push(format!("--bt-tracker={}", job.tracker));
    }
    // It finds no IPv6 address where the loopback device has none of its own, and takes any.
    if job.addr.is_ipv4() {
        args.push(format!("--interface={}", job.addr.ip()));
    }
    if job.is_plain {
        // It knows no uTP, and encrypts when it is asked to; what is left to switch off is this.
        args.extend(["--enable-peer-exchange=false", "--enable-dht=false"].map(str::to_owned));
    }
    if let Some(rate) = job.upload_rate_max {
        args.push(format!("--max-overall-upload-limit={rate}"));
    }
    args.push(job.source.to_string_lossy().into_owned());
    let program = Program::start_command(job.command("aria2c"), &args, &job.logs());
    let mut peer = Aria2 { program, control };
    peer.program.wait_until("the RPC", super::START_MAX, |_| {
        http::request(control, "GET", "/", &[], &[]).is_ok()
    });
    peer
}

impl Aria2 {
    /// The download of the payload; a magnet link has one of the info dict before it.
    fn download(&self) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": "0", "method": "aria2.tellActive"}).to_string();
        let headers = [("Content-Type", "application/json")];
        let sent = http::request(self.control, "POST", "/jsonrpc", &headers, body.as_bytes());
        let Ok(answer) = sent else { return Value::Null };
        let active = answer.json()["result"].as_array().cloned().unwrap_or_default();
        let has_payload = |one: &&Value| one["bittorrent"]["info"].is_object();
        active.iter().find(has_payload).cloned().unwrap_or_default()
    }

    fn number(value: &Value) -> u64 {
        value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

impl Running for Aria2 {
    fn is_complete(&mut self) -> bool {
        let download = self.download();
        let total = Aria2::number(&download["totalLength"]);
        download["seeder"] == "true" && total == Aria2::number(&download["completedLength"])
    }

    fn have_bytes(&mut self) -> u64 {
        Aria2::number(&self.download()["completedLength"])
    }

    fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}
