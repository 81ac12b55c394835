//! The programs that move a payload, each behind the same few words: one seeds, one fetches.
//!
//! All listen and dial on this machine alone, over plain TCP without encryption or uTP, with the discovery of
//! strangers off and no queue in the way: what every comparison of a data plane needs. Whatever else is
//! set is named in [`Peer::settings`], with the reason.

mod aria2;
mod libtorrent;
mod ours;
mod plain;
mod qbittorrent;
mod rqbit;
mod transmission;
mod vortex;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::child::{Program, Sign, is_interrupted};
use super::data::Payload;
use crate::report::Contender;

pub use ours::{Engine, Release};
pub use plain::{find_fio, pump_end};

/// A program that does not serve by then never will.
pub const START_MAX: Duration = Duration::from_secs(120);

/// What a program is to do.
pub struct Job<'a> {
    /// Folder of its own, for whatever it keeps.
    pub home: PathBuf,
    /// Where it listens.
    pub addr: SocketAddr,
    pub payload: &'a Payload,
    /// Folder that holds, or will hold, the root names of the torrents.
    pub folder: PathBuf,
    /// Whom it is told of.
    pub peers: Vec<SocketAddr>,
    /// A tracker that tells of the same.
    pub tracker: String,
    /// The only core that it may use.
    pub core: Option<usize>,
    /// When complete it goes on serving.
    pub stays: bool,
    /// Its system calls are counted, which takes its time from it.
    pub counts_calls: bool,
}

impl Job<'_> {
    fn start(&self, command: Command) -> Result<Program, String> {
        std::fs::create_dir_all(&self.folder).map_err(|error| error.to_string())?;
        Program::start_with(command, &self.home, self.core, self.counts_calls)
    }

    fn peers_text(&self) -> String {
        self.peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Copies of the torrents with the tracker in them.
    fn torrents_with_tracker(&self) -> Result<Vec<Vec<u8>>, String> {
        let read = |path: &PathBuf| {
            let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
            let announce = format!("d8:announce{}:{}", self.tracker.len(), self.tracker);
            // In a canonical dictionary it comes first; ours has none.
            Ok([announce.as_bytes(), &bytes[1..]].concat())
        };
        self.payload.torrents.iter().map(read).collect()
    }
}

/// Reads seconds out of what a program printed.
pub type Clock = fn(&[String]) -> Option<f64>;

/// A fetching program, with the signs that it gives.
pub struct Fetching {
    pub program: Program,
    /// From here its time counts.
    pub begins: Sign,
    /// It has everything, verified and written.
    pub done: Sign,
    /// Seconds by its own clock, out of its lines, where starting it would count for too much.
    pub clock: Option<Clock>,
}

/// A program under comparison.
pub trait Peer: Sync {
    /// As it stands in the table.
    fn name(&self) -> String;

    /// Its version, or what it says of it.
    fn version(&self) -> String;

    /// Settings other than its defaults, with the reason.
    fn settings(&self) -> String;

    /// What it has made sure of when it says that it is complete; how many syncs it made is counted, too.
    fn durability(&self) -> &'static str {
        "its default, nothing asked for"
    }

    /// Whether it can move such a payload by one process on each side.
    fn takes(&self, payload: &Payload) -> bool;

    /// Why it does not move what it could move, for the report.
    fn declines(&self, _payload: &Payload) -> Option<String> {
        None
    }

    /// Whether what it fetched is on disk to be compared; the roof throws it away.
    fn keeps(&self) -> bool {
        true
    }

    /// Whether a seed that is asked to end says what it has counted.
    fn sums_up(&self) -> bool {
        false
    }

    /// Whether several can exchange what they have.
    fn swarms(&self) -> bool {
        true
    }

    /// The address that it takes for a peer's.
    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::LOCALHOST
    }

    /// Starts one that has everything; it serves when this returns. `None`: it needs no other side.
    ///
    /// # Errors
    /// Why not, with what it said.
    fn seed(&self, job: &Job) -> Result<Option<Program>, String>;

    /// Starts one that has nothing.
    ///
    /// # Errors
    /// Why not, with what it said.
    fn leech(&self, job: &Job) -> Result<Fetching, String>;
}

/// How one took part, for the report.
pub fn contender(peer: &dyn Peer) -> Contender {
    Contender {
        who: peer.name(),
        version: peer.version(),
        durability: peer.durability().to_owned(),
        settings: peer.settings(),
    }
}

/// All that are installed, and the others by name with how to install them.
pub struct Found {
    pub peers: Vec<Box<dyn Peer>>,
    pub missing: Vec<String>,
}

/// Looks for everything but ourselves.
pub fn find() -> Found {
    let mut found = Found { peers: Vec::new(), missing: Vec::new() };
    let mut add = |peer: Result<Vec<Box<dyn Peer>>, &str>| match peer {
        Ok(peers) => found.peers.extend(peers),
        Err(missing) => found.missing.push(missing.to_owned()),
    };
    add(libtorrent::find());
    add(rqbit::find());
    add(aria2::find());
    add(transmission::find());
    add(qbittorrent::find());
    add(plain::find_rsync());
    add(Ok(plain::pumps()));
    add(vortex::find());
    found
}

/// Output of a program that says its version, both streams.
fn said(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    let both = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&both).into_owned())
}

/// The first word that looks like a version.
fn version_in(text: &str) -> String {
    let is_version = |word: &&str| {
        let word = word.trim_start_matches('v');
        word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit())
    };
    let word = text.split_whitespace().find(is_version).unwrap_or("unknown");
    word.trim_start_matches('v').trim_end_matches(['.', ',']).to_owned()
}

/// The address of this machine that is not loopback, if it has one. Packets to it stay on the machine.
fn own_address() -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Connecting a datagram socket chooses a route and sends nothing; the address is for documentation
    // (RFC 5737) and nobody's.
    socket.connect("198.51.100.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

/// Waits until `found` says yes.
fn poll(what: &str, mut found: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let begun = std::time::Instant::now();
    while !found()? {
        if is_interrupted() || begun.elapsed() > START_MAX {
            return Err(format!("waited in vain for {what}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// An executable script that makes a file: for programs that call something when they are done.
fn touching_script(home: &Path) -> Result<(PathBuf, PathBuf), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let (script, mark) = (home.join("done.sh"), home.join("done.mark"));
    let text = format!("#!/bin/sh\n: > '{}'\n", mark.display());
    let made = std::fs::create_dir_all(home)
        .and_then(|()| std::fs::write(&script, text))
        .and_then(|()| std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)));
    made.map_err(|error| error.to_string())?;
    Ok((script, mark))
}

/// `--key=value` with a path in it.
fn flag(key: &str, value: &Path) -> OsString {
    let mut flag = OsString::from(key);
    flag.push(value);
    flag
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever is looked for takes part, or is named with what installs it.
    #[test]
    fn everybody_is_here_or_named_with_how_to_get_it() {
        let found = find();
        let names: Vec<String> = found.peers.iter().map(|peer| peer.name()).collect();
        let ways = ["install", "cargo build"];
        assert!(found.missing.iter().all(|text| ways.iter().any(|way| text.contains(way))));
        let programs =
            ["libtorrent", "rqbit", "transmission", "aria2", "qbittorrent", "vortex", "rsync"];
        for wanted in programs {
            let is_named = |text: &String| text.to_lowercase().starts_with(wanted);
            let is_here = names.iter().any(is_named);
            assert_ne!(is_here, found.missing.iter().any(is_named), "{wanted}");
        }
        assert!(names.iter().any(|name| name.contains("TCP")), "{names:?}");
        let of_libtorrent = names.iter().filter(|name| name.starts_with("libtorrent"));
        assert!([0, 2].contains(&of_libtorrent.count()), "stock and tuned: {names:?}");
    }
}
