//! rTorrent as a daemon, driven by XML-RPC over SCGI.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringseed_tests::program::{Program, free_port};

use super::{Job, Running};

pub struct Rtorrent {
    program: Program,
    control: SocketAddr,
}

pub fn start(job: &Job) -> Rtorrent {
    let control: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let session = job.home.join("session");
    std::fs::create_dir_all(&session).expect("folder of its state");
    // A lock that a killed one has left is from this machine and no obstacle.
    let rate = job.upload_rate_max.map_or(String::new(), |rate| {
        format!("throttle.global_up.max_rate.set_kb = {}\n", rate.div_ceil(1024))
    });
    let plain = if job.is_plain { "protocol.encryption.set = none\n" } else { "" };
    let settings = format!(
        "system.daemon.set = true\nnetwork.scgi.open_port = \"{control}\"\n\
         network.bind_address.set = {ip}\nnetwork.port_range.set = {port}-{port}\n\
         directory.default.set = \"{folder}\"\nsession.path.set = \"{session}\"\n{rate}{plain}",
        ip = job.addr.ip(),
        port = job.addr.port(),
        folder = job.folder.display(),
        session = session.display(),
    );
    let file = job.home.join("rtorrent.rc");
    std::fs::write(&file, settings).expect("settings");
    let args = ["-n".to_owned(), "-o".to_owned(), format!("import={}", file.display())];
    let program = Program::start_command(job.command("rtorrent"), &args, &job.logs());
    let mut peer = Rtorrent { program, control };
    peer.program.wait_until("XML-RPC", super::START_MAX, |_| {
        call(control, "system.client_version", &[]).is_some()
    });
    if peer.hash().is_none() {
        // When the info dict has come over a link, the download begins anew and knows of those peers
        // only that a tracker tells of.
        let is_magnet = job.magnet().is_some();
        let source = if is_magnet { job.source_with_tracker() } else { job.source.clone() };
        let source = source.to_string_lossy().into_owned();
        call(control, "load.start", &["", &source]).expect("rTorrent takes the torrent");
    }
    let start = std::time::Instant::now();
    let mut told = job.peers.len();
    while told > 0 {
        assert!(start.elapsed() < super::START_MAX, "rTorrent did not take the peers");
        std::thread::sleep(Duration::from_millis(100));
        let Some(hash) = peer.hash() else { continue };
        let Some(is_active) = peer.ask("d.is_active", &hash) else { continue };
        if is_active != "1" {
            continue;
        }
        for addr in &job.peers {
            if call(control, "add_peer", &[&hash, &addr.to_string()]).is_some() {
                told -= 1;
            }
        }
    }
    peer
}

impl Rtorrent {
    fn hash(&self) -> Option<String> {
        let answer = call(self.control, "download_list", &[])?;
        values(&answer).into_iter().next()
    }

    fn ask(&self, what: &str, hash: &str) -> Option<String> {
        values(&call(self.control, what, &[hash])?).into_iter().next()
    }
}

impl Running for Rtorrent {
    fn is_complete(&mut self) -> bool {
        let Some(hash) = self.hash() else { return false };
        let is = |what, value: &str| self.ask(what, &hash).is_some_and(|said| said == value);
        is("d.is_meta", "0") && is("d.complete", "1") && is("d.is_active", "1")
    }

    fn have_bytes(&mut self) -> u64 {
        let Some(hash) = self.hash() else { return 0 };
        self.ask("d.completed_bytes", &hash).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// The answer to one call with text parameters; `None` when there is none or it is a fault.
fn call(control: SocketAddr, method: &str, parameters: &[&str]) -> Option<String> {
    let parameters: String = parameters
        .iter()
        .map(|text| text.replace('&', "&amp;").replace('<', "&lt;"))
        .map(|text| format!("<param><value><string>{text}</string></value></param>"))
        .collect();
    let body = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName>\
         <params>{parameters}</params></methodCall>"
    );
    let head = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0", body.len());
    let mut stream = TcpStream::connect_timeout(&control, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("{}:{head},{body}", head.len()).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (answer.contains("<methodResponse>") && !answer.contains("<fault>")).then_some(answer)
}

/// The plain values of an answer.
fn values(answer: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in answer.split("<value>").skip(1) {
        let Some(end) = part.find("</value>") else { continue };
        let inner = &part[..end];
        let text = inner
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .map_or(inner, |(_, rest)| rest.split_once('<').map_or(rest, |(text, _)| text));
        if !inner.starts_with("<array>") {
            found.push(text.to_owned());
        }
    }
    found
}
