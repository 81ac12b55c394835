//! A market made by hand, as section "by hand" of the README does it: `init`, `genesis`, `start`, `join`,
//! one process per datatrust, each in a process group of its own.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use ringseed::control::{Request, ask};
use ringseed::error::Error;
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Finished, Program, run};

/// How long anything may take. A loaded machine of two cores still makes it in a third of this.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One datatrust.
#[derive(Debug)]
pub struct Node {
    /// The last component of its folder.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Market address; payload is served on the next port.
    pub listen: SocketAddr,
    /// Its process, while it is to run.
    pub process: Option<Program>,
}

impl Node {
    /// Where it serves payload.
    pub fn payload_addr(&self) -> SocketAddr {
        SocketAddr::new(self.listen.ip(), self.listen.port() + 1)
    }
}

/// Datatrusts of one market, founders first.
#[derive(Debug)]
pub struct Market {
    program: PathBuf,
    root: PathBuf,
    /// All datatrusts, founders first, then newcomers in order of joining.
    pub nodes: Vec<Node>,
    /// The genesis file.
    pub genesis: PathBuf,
    /// Its hash, in hexadecimal.
    pub genesis_hash: String,
    founder_count: usize,
}

impl Market {
    /// `init` for each founder and `genesis` for all, below `root`; nothing runs yet.
    ///
    /// # Panics
    /// As every method here, when a command does not do what it should: the test has failed then.
    #[track_caller]
    pub fn init(program: &str, root: &Path, founder_count: usize) -> Market {
        let mut market = Market {
            program: PathBuf::from(program),
            root: root.to_owned(),
            nodes: Vec::new(),
            genesis: root.join("genesis.toml"),
            genesis_hash: String::new(),
            founder_count,
        };
        let mut members = Vec::new();
        for index in 1..=founder_count {
            let name = format!("d{index}");
            let (dir, listen) = (root.join(&name), free_pair());
            let made = market.cli(&[
                "init".as_ref(),
                "--dir".as_ref(),
                dir.as_os_str(),
                "--listen".as_ref(),
                listen.to_string().as_ref(),
            ]);
            members.push(made.expect_code(0).stdout.trim().to_owned());
            market.nodes.push(Node { name, dir, listen, process: None });
        }
        let mut args: Vec<&OsStr> =
            vec!["genesis".as_ref(), "--market".as_ref(), "test".as_ref(), "--local".as_ref()];
        args.extend(members.iter().map(AsRef::<OsStr>::as_ref));
        let genesis = market.genesis.clone();
        args.extend(["-o".as_ref(), genesis.as_os_str(), "--json".as_ref()]);
        let made = market.cli(&args).expect_code(0).json();
        market.genesis_hash = made["hash"].as_str().expect("a hash").to_owned();
        market
    }

    /// As [`Market::init`], and all founders run and stand at a first height.
    #[track_caller]
    pub fn found(program: &str, root: &Path, founder_count: usize) -> Market {
        let mut market = Market::init(program, root, founder_count);
        market.start_founders();
        market
    }

    /// Starts all founders and waits for the first height.
    #[track_caller]
    pub fn start_founders(&mut self) {
        for index in 0..self.founder_count {
            self.start(index);
        }
        self.wait("the first height", |market| {
            (0..market.founder_count).all(|index| market.height(index) >= 1)
        });
    }

    /// Sets a value of a datatrust's configuration as an operator does: by editing the commented line.
    #[track_caller]
    pub fn configure(&self, index: usize, key: &str, value: &str) {
        let path = self.nodes[index].dir.join("datatrust.toml");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        let commented = format!("# {key} = ");
        let mut is_found = false;
        let lines = text.lines().map(|line| {
            if !line.starts_with(&commented) {
                return line.to_owned();
            }
            is_found = true;
            format!("{key} = {value}")
        });
        let changed: Vec<String> = lines.collect();
        assert!(is_found, "no line for {key} in:\n{text}");
        std::fs::write(&path, changed.join("\n") + "\n").expect("written");
    }

    /// Runs one command to its end.
    #[track_caller]
    pub fn cli(&self, args: &[&OsStr]) -> Finished {
        run(&self.program, args, &self.root.join("logs"), PATIENCE)
    }

    /// Runs one command given as words, `--dir` of the datatrust at `index` added.
    #[track_caller]
    pub fn at(&self, index: usize, words: &[&str]) -> Finished {
        let mut args: Vec<&OsStr> = words.iter().map(AsRef::<OsStr>::as_ref).collect();
        args.extend(["--dir".as_ref(), self.nodes[index].dir.as_os_str()]);
        self.cli(&args)
    }

    /// `start`; founders get the genesis file, which only the first time needs.
    #[track_caller]
    pub fn start(&mut self, index: usize) {
        let node = &self.nodes[index];
        let mut args: Vec<OsString> = vec!["start".into(), "--dir".into(), node.dir.clone().into()];
        if index < self.founder_count {
            args.extend(["--genesis".into(), self.genesis.clone().into()]);
        }
        let process = Program::start(&self.program, &args, &self.root.join("logs"));
        self.nodes[index].process = Some(process);
    }

    /// Ends a datatrust without asking and waits for its end.
    #[track_caller]
    pub fn kill(&mut self, index: usize) {
        let mut process = self.nodes[index].process.take().expect("it runs");
        process.signal(Signal::KILL);
        process.wait(PATIENCE);
    }

    /// Sends a signal to a datatrust.
    #[track_caller]
    pub fn signal(&self, index: usize, signal: Signal) {
        self.nodes[index].process.as_ref().expect("it runs").signal(signal);
    }

    /// `join` with the first founder as contact; the newcomer does not run yet.
    #[track_caller]
    pub fn join(&mut self) -> usize {
        let name = format!("d{}", self.nodes.len() + 1);
        let (dir, listen) = (self.root.join(&name), free_pair());
        let contact = self.nodes[0].listen.to_string();
        self.cli(&[
            "join".as_ref(),
            contact.as_ref(),
            "--genesis".as_ref(),
            self.genesis_hash.as_ref(),
            "--dir".as_ref(),
            dir.as_os_str(),
            "--listen".as_ref(),
            listen.to_string().as_ref(),
        ])
        .expect_code(0);
        self.nodes.push(Node { name, dir, listen, process: None });
        self.nodes.len() - 1
    }

    /// Waits until the newcomers have registered, and lets founders vote until they are admitted.
    #[track_caller]
    pub fn admit(&mut self, newcomers: &[usize]) {
        for &newcomer in newcomers {
            let name = self.nodes[newcomer].name.clone();
            self.wait("a registration", |market| market.standing(0, &name) == "registered");
            for founder in 0..self.founder_count {
                if self.standing(founder, &name) != "registered" {
                    break;
                }
                // A founder may not have seen yet what another one has.
                let voted = self.at(founder, &["member", "admit", &name]);
                assert!(matches!(voted.code, Some(0 | 11)), "{voted:?}");
            }
            self.wait("an admission", |market| {
                matches!(market.standing(0, &name).as_str(), "observer" | "validator")
            });
        }
    }

    /// What `member ls` of the datatrust at `index` says of the member `name`.
    pub fn standing(&self, index: usize, name: &str) -> String {
        let rows = self.ask(index, &Request::MemberLs).unwrap_or_default();
        let rows = rows.as_array().into_iter().flatten();
        rows.filter(|row| row["name"] == name).filter_map(|row| row["standing"].as_str()).collect()
    }

    /// Asks a datatrust over its control socket.
    ///
    /// # Errors
    /// What it answers, or that it does not.
    pub fn ask(&self, index: usize, request: &Request) -> Result<Value, Error> {
        ask(&self.nodes[index].dir, request)
    }

    /// Its status; null when it does not answer.
    pub fn status(&self, index: usize) -> Value {
        self.ask(index, &Request::Status).unwrap_or_default()
    }

    /// Its height; 0 when it does not answer.
    pub fn height(&self, index: usize) -> u64 {
        self.status(index)["consensus"]["height"].as_u64().unwrap_or(0)
    }

    /// `listing show` there; null when it does not answer.
    pub fn show(&self, index: usize, infohash: &str) -> Value {
        self.ask(index, &Request::ListingShow { infohash: infohash.to_owned() }).unwrap_or_default()
    }

    /// Whether it holds all of a listing that is promoted.
    pub fn holds(&self, index: usize, infohash: &str) -> bool {
        let row = self.show(index, infohash);
        row["kind"] == "listing" && row["complete"] == true
    }

    /// Offers `path` at the datatrust at `index`; returns the infohash.
    #[track_caller]
    pub fn add(&self, index: usize, path: &Path) -> String {
        let path = path.to_str().expect("a plain path");
        let made = self.at(index, &["listing", "add", path, "--json"]).expect_code(0).json();
        made["infohash"].as_str().expect("an infohash").to_owned()
    }

    /// Writes the `.torrent` file of a listing.
    #[track_caller]
    pub fn export(&self, index: usize, infohash: &str, to: &Path) {
        let request = Request::Metainfo { infohash: infohash.to_owned() };
        let answer = self.ask(index, &request).expect("a metainfo");
        let text = answer["torrent"].as_str().expect("hexadecimal");
        let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(pair).collect();
        std::fs::write(to, bytes).expect("written");
    }

    /// Waits until `is_so` says yes.
    ///
    /// # Panics
    /// When a datatrust that is to run has ended, or [`PATIENCE`] passes: with what all of them say.
    #[track_caller]
    pub fn wait(&mut self, what: &str, mut is_so: impl FnMut(&Market) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            let is_late = began.elapsed() > PATIENCE;
            for node in &mut self.nodes {
                let Some(process) = &mut node.process else { continue };
                let ended = process.try_wait();
                assert!(
                    ended.is_none(),
                    "waited for {what}; {} ended: {ended:?}\n{}",
                    node.name,
                    process.stderr()
                );
            }
            assert!(!is_late, "waited for {what}\n{}", self.explain());
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// What every datatrust says of itself, and the last lines of its log.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let listings = self.ask(index, &Request::ListingLs).unwrap_or_default();
            let status = self.status(index);
            text.push_str(&format!("--- {}\n{status}\n{listings}\n", node.name));
            if let Some(process) = &node.process {
                let log = process.stderr();
                let lines: Vec<&str> = log.lines().collect();
                text.push_str(&lines[lines.len().saturating_sub(20)..].join("\n"));
                text.push('\n');
            }
        }
        text
    }
}

/// An address of 127.0.0.1 whose port and next port are free. Below the range from which the system
/// takes ports for outgoing connections, and different in every process of a test run.
///
/// # Panics
/// When there is none.
pub fn free_pair() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 4_500;
    let begin = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (begin + step) % COUNT * 2;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 1) {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        }
    }
    panic!("no two free ports in a row");
}
