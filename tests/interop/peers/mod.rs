//! The peer programs, each behind the same few words: start one with a torrent, ask how far it is.
//!
//! They run at their defaults, in a network namespace without a way out. What is set is what a user
//! of two clients on one machine has to set: folders, addresses and ports, who may use the control
//! interface, and, where a test says so, an upload cap.

mod aria2;
mod libtorrent;
mod qbittorrent;
mod rqbit;
mod rtorrent;
mod transmission;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringseed_tests::program::Program;
use ringseed_tests::skip::Need;

/// A peer program that is not up by then never will be.
const START_MAX: Duration = Duration::from_secs(20);

/// A peer program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Libtorrent,
    Qbittorrent,
    Transmission,
    Aria2,
    Rqbit,
    Rtorrent,
}

/// All of them.
pub const PEERS: [Peer; 6] = [
    Peer::Libtorrent,
    Peer::Qbittorrent,
    Peer::Transmission,
    Peer::Aria2,
    Peer::Rqbit,
    Peer::Rtorrent,
];

/// What a peer is to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// Folder for its home, its logs and whatever it keeps; its own.
    pub home: PathBuf,
    /// Where it listens, and what it binds to.
    pub addr: SocketAddr,
    /// A `.torrent` file or a magnet link.
    pub source: OsString,
    /// Folder that holds, or will hold, the torrent's root name.
    pub folder: PathBuf,
    /// Whom it is told of, by what means it has.
    pub peers: Vec<SocketAddr>,
    /// URL of a tracker, for programs that can be told of peers in no other way; empty for none.
    pub tracker: String,
    /// Upload cap, bytes per second.
    pub upload_rate_max: Option<u64>,
    /// What we do not speak is switched off: uTP and encryption.
    pub is_plain: bool,
    /// Settings other than the default, of libtorrent alone: a JSON object.
    pub settings: Option<serde_json::Value>,
}

impl Job {
    /// The `.torrent` file's bytes; `None` for a magnet link.
    fn torrent(&self) -> Option<Vec<u8>> {
        let is_magnet = self.source.to_string_lossy().starts_with("magnet:");
        (!is_magnet).then(|| std::fs::read(&self.source).expect("the torrent is there"))
    }

    fn magnet(&self) -> Option<String> {
        let text = self.source.to_string_lossy().into_owned();
        text.starts_with("magnet:").then_some(text)
    }

    /// A copy of the torrent, or the link, with the tracker in it, if there is one.
    fn source_with_tracker(&self) -> OsString {
        if self.tracker.is_empty() {
            return self.source.clone();
        }
        if let Some(link) = self.magnet() {
            return format!("{link}&tr={}", self.tracker.replace(':', "%3A").replace('/', "%2F"))
                .into();
        }
        let torrent = self.torrent().expect("no magnet");
        let path = self.home.join("with-tracker.torrent");
        std::fs::create_dir_all(&self.home).expect("home");
        std::fs::write(&path, with_announce(&torrent, &self.tracker)).expect("torrent");
        path.into_os_string()
    }

    /// A command whose home and temporary folders lie in the job's own.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        std::fs::create_dir_all(self.home.join("tmp")).expect("home");
        let mut command = Command::new(program);
        command.env("HOME", &self.home).env("TMPDIR", self.home.join("tmp"));
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
            command.env(name, self.home.join(name));
        }
        command.current_dir(&self.home);
        command
    }

    fn logs(&self) -> PathBuf {
        self.home.join("logs")
    }
}

/// Puts an `announce` into a torrent: in a canonical dictionary it comes first.
fn with_announce(torrent: &[u8], url: &str) -> Vec<u8> {
    assert!(!torrent.starts_with(b"d8:announce"), "it has a tracker");
    let announce = format!("d8:announce{}:{url}", url.len());
    [announce.as_bytes(), &torrent[1..]].concat()
}

/// A running peer.
pub trait Running: Send {
    /// It has all and seeds, as it says itself.
    fn is_complete(&mut self) -> bool;

    /// Payload bytes it has, as it says itself.
    fn have_bytes(&mut self) -> u64;

    /// Its process: to end it, and to read what it wrote.
    fn program(&mut self) -> &mut Program;
}

impl Peer {
    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Peer::Libtorrent => "libtorrent",
            Peer::Qbittorrent => "qBittorrent",
            Peer::Transmission => "Transmission",
            Peer::Aria2 => "aria2",
            Peer::Rqbit => "rqbit",
            Peer::Rtorrent => "rTorrent",
        }
    }

    /// Which one is installed; empty when none is.
    pub fn version(self) -> String {
        let (program, args): (PathBuf, &[&str]) = match self {
            Peer::Libtorrent => (
                "python3".into(),
                &["-W", "ignore", "-c", "import libtorrent; print(libtorrent.__version__)"],
            ),
            Peer::Qbittorrent => ("qbittorrent-nox".into(), &["--version"]),
            Peer::Transmission => ("transmission-daemon".into(), &["--version"]),
            Peer::Aria2 => ("aria2c".into(), &["--version"]),
            Peer::Rqbit => (rqbit::binary(), &["--version"]),
            Peer::Rtorrent => ("rtorrent".into(), &["-h"]),
        };
        let text = Command::new(program).args(args).output().map_or_else(
            |_| String::new(),
            |output| {
                let both = [output.stdout, output.stderr].concat();
                String::from_utf8_lossy(&both).into_owned()
            },
        );
        let is_version = |word: &&str| {
            let word = word.trim_start_matches('v');
            word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit())
        };
        let version = text.split_whitespace().find(is_version).unwrap_or_default();
        version.trim_start_matches('v').trim_end_matches('.').to_owned()
    }

    /// What must be installed for it.
    pub fn needs(self) -> Vec<Need> {
        let runs = |program: &Path, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).env("HOME", "/nonexistent");
            command.output().is_ok()
        };
        let is_there = |program: &str| runs(Path::new(program), &["--version"]);
        match self {
            Peer::Libtorrent => vec![Need {
                name: "libtorrent for Python",
                install: "python3 -m pip install libtorrent",
                present: Command::new("python3")
                    .args(["-W", "ignore", "-c", "import libtorrent"])
                    .output()
                    .is_ok_and(|output| output.status.success()),
            }],
            Peer::Qbittorrent => vec![Need {
                name: "qbittorrent-nox",
                install: "apt-get install qbittorrent-nox",
                present: is_there("qbittorrent-nox"),
            }],
            Peer::Transmission => vec![Need {
                name: "transmission-daemon and transmission-create",
                install: "apt-get install transmission-daemon transmission-cli",
                present: is_there("transmission-daemon") && is_there("transmission-create"),
            }],
            Peer::Aria2 => vec![Need {
                name: "aria2",
                install: "apt-get install aria2",
                present: is_there("aria2c"),
            }],
            Peer::Rqbit => vec![Need {
                name: "rqbit",
                install: "cargo install rqbit --locked --root target/rqbit --no-default-features \
                          --features rust-tls && cp target/rqbit/bin/rqbit target/tools/",
                present: runs(&rqbit::binary(), &["--version"]),
            }],
            Peer::Rtorrent => vec![Need {
                name: "rtorrent and mktorrent",
                install: "apt-get install rtorrent mktorrent",
                present: runs(Path::new("rtorrent"), &["-h"]) && is_there("mktorrent"),
            }],
        }
    }

    /// Starts it; it takes up its torrent at once, checks what is there, fetches and seeds.
    ///
    /// # Panics
    /// When it cannot be started or does not take the torrent.
    pub fn start(self, job: &Job) -> Box<dyn Running> {
        std::fs::create_dir_all(&job.folder).expect("folder of the payload");
        match self {
            Peer::Libtorrent => Box::new(libtorrent::start(job)),
            Peer::Qbittorrent => Box::new(qbittorrent::start(job)),
            Peer::Transmission => Box::new(transmission::start(job)),
            Peer::Aria2 => Box::new(aria2::start(job)),
            Peer::Rqbit => Box::new(rqbit::start(job)),
            Peer::Rtorrent => Box::new(rtorrent::start(job)),
        }
    }
}

/// Makes a torrent of `path` with the client's own maker, of pieces of 32 KiB where it can be told.
///
/// # Panics
/// When it fails.
pub fn make_torrent(peer: Peer, kind: &str, path: &Path, out: &Path, home: &Path) {
    let logs = home.join("logs");
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        ringseed_tests::program::run(program, args, &logs, START_MAX).expect_code(0);
    };
    match peer {
        Peer::Libtorrent => {
            let args = [path.as_os_str(), out.as_os_str(), kind.as_ref(), "32768".as_ref()];
            ask_libtorrent("create", &args, &logs);
        }
        Peer::Transmission => run(
            "transmission-create",
            &["--piecesize".as_ref(), "32".as_ref(), "-o".as_ref(), out.as_ref(), path.as_ref()],
        ),
        Peer::Rtorrent => run(
            "mktorrent",
            &["-l".as_ref(), "15".as_ref(), "-o".as_ref(), out.as_ref(), path.as_ref()],
        ),
        Peer::Rqbit => rqbit::make_torrent(path, out, home),
        Peer::Qbittorrent | Peer::Aria2 => unreachable!("{peer:?} makes no torrents"),
    }
}

/// Both infohashes of a torrent as libtorrent computes them: a line each, `-` for none.
///
/// # Panics
/// When it fails.
pub fn infohashes(torrent: &Path, logs: &Path) -> String {
    ask_libtorrent("infohashes", &[torrent.as_os_str()], logs)
}

/// The files of a torrent by the numbers that libtorrent gives them in links, pads left out.
///
/// # Panics
/// When it fails.
pub fn file_numbers(torrent: &Path, logs: &Path) -> BTreeMap<String, u32> {
    let listed = ask_libtorrent("files", &[torrent.as_os_str()], logs);
    let files = listed.lines().filter_map(|line| {
        let (number, path) = line.split_once(' ')?;
        (path != "pad").then(|| (path.to_owned(), number.parse().expect("a number")))
    });
    files.collect()
}

fn ask_libtorrent(what: &str, args: &[&OsStr], logs: &Path) -> String {
    let driver = ["-W", "ignore", libtorrent::DRIVER, what].map(OsStr::new);
    let args: Vec<&OsStr> = driver.iter().chain(args).copied().collect();
    let finished = ringseed_tests::program::run("python3", &args, logs, START_MAX);
    finished.expect_code(0).stdout
}
