//! The story of a market whose datatrusts are pairs of processes: a CometBFT daemon, and `ringseed
//! abci` with ledger and engine. Candidates, swarm, promotion, a newcomer, a removal, and kill -9 of
//! either or both.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use ringseed_abci::comet::rpc::Rpc;
use ringseed_tests::comet;
use ringseed_tests::data::{digest_tree, write_mixed_tree};
use ringseed_tests::program::{Program, run};
use ringseed_tests::scratch::Scratch;
use serde_json::Value;

use super::PATIENCE;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");

struct Pair {
    dir: PathBuf,
    key: String,
    listen: SocketAddr,
    rpc: SocketAddr,
    ledger: Option<Program>,
    daemon: Option<Program>,
}

struct Market {
    pairs: Vec<Pair>,
    scratch: Scratch,
}

pub fn story() -> Result<(), Failed> {
    let mut market = Market::found(4);
    let mut listings = Vec::new();
    for seed in 1..=3u64 {
        listings.push(market.offer(seed as usize % 4, seed));
    }
    market.wait_whole(3);
    listings.iter().for_each(|(hash, source)| market.assert_same_bytes(hash, source));

    let newcomer = market.join();
    market.wait_whole(3);
    listings.iter().for_each(|(hash, source)| market.assert_same_bytes(hash, source));
    market.wait(newcomer, "power", |status| status["ledger"]["standing"] == "validator");

    let (gone, _) = listings.remove(0);
    market.command(1, &["listing", "rm", &gone]);
    for index in 0..market.pairs.len() {
        let start = Instant::now();
        while market.command(index, &["listing", "show", &gone])["on_disk"] == true {
            assert!(start.elapsed() < PATIENCE, "{index} still has what was removed");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    market.assert_agreed();

    for (victim, (kills_daemon, kills_ledger)) in
        [(1, (true, false)), (2, (false, true)), (3, (true, true))]
    {
        // Somewhere in the life of a block.
        let moment = Duration::from_millis(u64::from(std::process::id()) % 997);
        std::thread::sleep(moment);
        market.kill(victim, kills_daemon, kills_ledger);
        std::thread::sleep(moment);
        market.start(victim);
        let status = market.wait(victim, "being whole again", |status| {
            status["consensus"]["caught_up"] == true && status["payload"]["complete"] == 2
        });
        if kills_ledger {
            let fetched = status["engine"]["payload_verified_bytes"].as_u64();
            assert_eq!(fetched, Some(0), "fetched again after a kill: {status:#}");
        }
        market.assert_agreed();
    }

    // Killed while it fetches; the others promote without it.
    market.kill(2, false, true);
    let (hash, source) = market.offer(0, 9);
    market.start(2);
    std::thread::sleep(Duration::from_millis(250));
    market.kill(2, true, true);
    market.start(2);
    market.wait_whole(3);
    market.assert_same_bytes(&hash, &source);
    market.assert_agreed();
    Ok(())
}

impl Market {
    /// Keys, a genesis, daemons' folders, and all of it running.
    fn found(founders: usize) -> Market {
        let mut market = Market { pairs: Vec::new(), scratch: Scratch::new("comet-story") };
        let members: Vec<String> = (0..founders).map(|_| market.init(None)).collect();
        let genesis = market.genesis();
        let mut args = vec!["genesis", "--market", "demo", "--local", "-o", &genesis];
        args.extend(members.iter().map(String::as_str));
        market.ours(&args);
        for index in 0..founders {
            market.write_home(index);
            market.start(index);
        }
        for index in 0..founders {
            market.wait(index, "a first block", |status| {
                status["consensus"]["caught_up"] == true
                    && status["consensus"]["height"].as_u64() > Some(0)
            });
        }
        market
    }

    fn genesis(&self) -> String {
        self.scratch.join("g.toml").display().to_string()
    }

    /// A new datatrust; returns its member line.
    fn init(&mut self, genesis: Option<&str>) -> String {
        let dir = self.scratch.join(&format!("d{}", self.pairs.len() + 1));
        let listen = comet::free_ports();
        let rpc = SocketAddr::new(listen.ip(), listen.port() + 2);
        let (at, rpc_text) = (listen.to_string(), rpc.to_string());
        let folder = dir.display().to_string();
        let mut args = vec!["init", "--dir", &folder, "--listen", &at, "--consensus", "cometbft"];
        args.extend(["--rpc", &rpc_text]);
        args.extend(genesis.into_iter().flat_map(|genesis| ["--genesis", genesis]));
        let made = self.ours(&args);
        let key = made["key"].as_str().expect("a key").to_owned();
        self.pairs.push(Pair { dir, key, listen, rpc, ledger: None, daemon: None });
        made["member"].as_str().expect("a member line").to_owned()
    }

    /// The second call of `init`, once there is a genesis.
    fn write_home(&self, index: usize) {
        let Pair { dir, listen, rpc, .. } = &self.pairs[index];
        let (dir, listen, rpc) = (dir.display().to_string(), listen.to_string(), rpc.to_string());
        let args = ["init", "--dir", &dir, "--listen", &listen, "--consensus", "cometbft"];
        let genesis = self.genesis();
        let made = self.ours(&[&args[..], &["--rpc", &rpc, "--genesis", &genesis]].concat());
        assert_eq!(made["start"].as_array().map(Vec::len), Some(2), "{made:#}");
    }

    /// A newcomer, admitted by three of four.
    fn join(&mut self) -> usize {
        let index = self.pairs.len();
        let genesis = self.genesis();
        self.init(Some(&genesis));
        self.start(index);
        let key = self.pairs[index].key.clone();
        let start = Instant::now();
        loop {
            let members = self.command(0, &["member", "ls"]);
            let mut rows = members.as_array().into_iter().flatten();
            if rows.any(|row| row["key"] == key.as_str()) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "never registered\n{}", self.logs(index));
            std::thread::sleep(Duration::from_millis(100));
        }
        for voter in 0..3 {
            self.command(voter, &["member", "admit", &key]);
        }
        index
    }

    /// Starts whatever of the pair does not run.
    fn start(&mut self, index: usize) {
        let logs = self.scratch.join(&format!("logs-d{}", index + 1));
        let pair = &mut self.pairs[index];
        if pair.ledger.is_none() {
            let socket = format!("unix:{}", pair.dir.join("abci.sock").display());
            let dir = pair.dir.display().to_string();
            let rpc = pair.rpc.to_string();
            let args = ["abci", "--listen", &socket, "--dir", &dir, "--rpc", &rpc];
            pair.ledger = Some(Program::start(OURS, &args, &logs));
        }
        if pair.daemon.is_none() {
            pair.daemon = Some(comet::start(&pair.dir.join("comet"), &logs));
        }
    }

    fn kill(&mut self, index: usize, daemon: bool, ledger: bool) {
        let pair = &mut self.pairs[index];
        if ledger {
            pair.ledger = None;
        }
        // A daemon ends when its ledger goes, or gets stuck on its way out (0.38.25 stops its switch and
        // waits for peers that it refuses meanwhile): then a supervisor would kill it.
        let start = Instant::now();
        let is_patient = || !daemon && start.elapsed() < Duration::from_secs(5);
        while is_patient() && pair.daemon.as_mut().is_some_and(|it| it.try_wait().is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        pair.daemon = None;
    }

    fn ours(&self, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        run(OURS, &args, &self.scratch.join("logs"), PATIENCE).expect_code(0).json()
    }

    /// A command to the datatrust at `index`.
    fn command(&self, index: usize, args: &[&str]) -> Value {
        let dir = self.pairs[index].dir.display().to_string();
        self.ours(&[args, &["--dir", &dir]].concat())
    }

    fn status(&self, index: usize) -> Option<Value> {
        let dir = self.pairs[index].dir.display().to_string();
        let args = ["status", "--json", "--dir", &dir];
        let finished = run(OURS, &args, &self.scratch.join("logs"), PATIENCE);
        (finished.code == Some(0)).then(|| finished.json())
    }

    #[track_caller]
    fn wait(&mut self, index: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status(index);
            if let Some(status) = status.as_ref().filter(|status| holds(status)) {
                return status.clone();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited for {what} of {index}: {status:#?}\n{}",
                self.logs(index)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Offers a small tree at `index`; returns its infohash and where it lies.
    fn offer(&self, index: usize, seed: u64) -> (String, PathBuf) {
        let source = self.scratch.join(&format!("source/t{seed}"));
        write_mixed_tree(&source, seed);
        let text = source.display().to_string();
        let added = self.command(index, &["listing", "add", &text, "--wait"]);
        let hash = added["infohash"].as_str().unwrap_or_else(|| panic!("no infohash in {added:#}"));
        (hash.to_owned(), source)
    }

    /// Waits until every datatrust has all `count` listings.
    #[track_caller]
    fn wait_whole(&mut self, count: u64) {
        for index in 0..self.pairs.len() {
            self.wait(index, "all listings", |status| {
                status["payload"]["complete"] == count && status["ledger"]["listings"] == count
            });
        }
    }

    #[track_caller]
    fn assert_same_bytes(&self, hash: &str, source: &Path) {
        let name = source.file_name().expect("a tree has a name");
        for index in 0..self.pairs.len() {
            let shown = self.command(index, &["listing", "show", hash]);
            let folder = Path::new(shown["folder"].as_str().expect("a folder"));
            assert_eq!(digest_tree(&folder.join(name)), digest_tree(source), "{index}: {hash}");
        }
    }

    /// One app hash in the headers of the heights that all daemons have, and the ledgers' own.
    #[track_caller]
    fn assert_agreed(&mut self) {
        let rpcs: Vec<Rpc> = self.pairs.iter().map(|pair| Rpc::new(pair.rpc)).collect();
        let start = Instant::now();
        let heights = loop {
            let heights: Result<Vec<_>, _> =
                rpcs.iter().map(|rpc| rpc.status().map(|status| status.height)).collect();
            match heights {
                Ok(heights) => break heights,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let lowest = heights.into_iter().min().expect("a pair");
        for height in lowest.saturating_sub(3).max(1)..=lowest {
            let hashes: Vec<_> =
                rpcs.iter().map(|rpc| rpc.app_hash_in_header(height).expect("a block")).collect();
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "height {height}: {hashes:?}");
        }
    }

    fn logs(&self, index: usize) -> String {
        let pair = &self.pairs[index];
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let daemon = pair.daemon.as_ref().map(Program::stdout).unwrap_or_default();
        let ledger = pair.ledger.as_ref().map(Program::stderr).unwrap_or_default();
        format!("--- daemon\n{}\n--- ledger\n{}", tail(daemon), tail(ledger))
    }
}
