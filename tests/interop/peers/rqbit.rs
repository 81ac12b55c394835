//! rqbit, driven by its HTTP interface.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ringseed_tests::http;
use ringseed_tests::program::{Program, free_port};
use serde_json::Value;

use super::{Job, Running};

/// Where the tests look for the program, and where they install it.
pub fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/rqbit")
}

pub struct Rqbit {
    program: Program,
    control: SocketAddr,
}

pub fn start(job: &Job) -> Rqbit {
    let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let mut args = vec![
        "--listen-ip".to_owned(),
        job.addr.ip().to_string(),
        "--listen-port".to_owned(),
        job.addr.port().to_string(),
        "--http-api-listen-addr".to_owned(),
        control.to_string(),
    ];
    if job.is_plain {
        // It encrypts nothing, and takes uTP only where it is told to.
        args.push("--disable-dht".to_owned());
    }
    if let Some(rate) = job.upload_rate_max {
        args.extend(["--ratelimit-upload".to_owned(), rate.to_string()]);
    }
    args.extend(["download", "--overwrite", "-o"].map(str::to_owned));
    args.push(job.folder.to_string_lossy().into_owned());
    if !job.peers.is_empty() {
        let peers: Vec<String> = job.peers.iter().map(ToString::to_string).collect();
        args.extend(["--initial-peers".to_owned(), peers.join(",")]);
    }
    args.push(job.source.to_string_lossy().into_owned());
    let program = Program::start_command(job.command(binary()), &args, &job.logs());
    let mut peer = Rqbit { program, control };
    peer.program.wait_until("the HTTP interface", super::START_MAX, |_| {
        http::request(control, "GET", "/", &[], &[]).is_ok()
    });
    peer
}

impl Rqbit {
    fn stats(&self) -> Value {
        let answer = http::request(self.control, "GET", "/torrents/0/stats/v1", &[], &[]);
        answer.map_or(Value::Null, |answer| answer.json())
    }
}

impl Running for Rqbit {
    fn is_complete(&mut self) -> bool {
        let stats = self.stats();
        stats["finished"] == true && stats["state"] == "live"
    }

    fn have_bytes(&mut self) -> u64 {
        let stats = self.stats();
        // Before that it counts what it has looked at.
        let is_live = stats["state"] == "live";
        stats["progress_bytes"].as_u64().filter(|_| is_live).unwrap_or(0)
    }

    fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// Makes a torrent through the HTTP interface of a server that runs for this alone.
pub fn make_torrent(path: &Path, out: &Path, home: &Path) {
    let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    std::fs::create_dir_all(home.join("out")).expect("folder");
    let mut command = std::process::Command::new(binary());
    command.env("HOME", home).current_dir(home);
    let args: Vec<std::ffi::OsString> = vec![
        "--http-api-listen-addr".into(),
        control.to_string().into(),
        "--http-api-allow-create".into(),
        "--listen-port".into(),
        free_port().to_string().into(),
        "server".into(),
        "start".into(),
        "--disable-persistence".into(),
        home.join("out").into_os_string(),
    ];
    let mut server = Program::start_command(command, &args, &home.join("logs"));
    server.wait_until("the HTTP interface", super::START_MAX, |_| {
        http::request(control, "GET", "/", &[], &[]).is_ok()
    });
    let text = path.to_string_lossy();
    let answer =
        http::request(control, "POST", "/torrents/create?output=torrent", &[], text.as_bytes())
            .expect("rqbit answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    std::fs::write(out, answer.body).expect("torrent");
}
