//! Four CometBFT daemons on loopback at the smallest timeouts: over our shim, and with the kvstore
//! that they have in their own process.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_abci::app::LedgerApp;
use ringseed_abci::comet::home::Home;
use ringseed_abci::comet::rpc::Rpc;
use ringseed_abci::shim::{Limits, ListenAddr, Listener, Shim};
use ringseed_ledger::{Addr, Genesis, GenesisMember, Params, SigningKey};
use serde_json::{Value, json};

use super::middle;
use super::socket::Folder;
use crate::swarm::child::nap;

const DAEMONS: u8 = 4;
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Medians, in blocks per second.
pub struct Compared {
    pub shim: f64,
    pub kvstore: f64,
}

/// Measures both in turns.
///
/// # Errors
/// Somebody ended it; the daemons are gone.
pub fn compare(program: &Path, turns: usize, seconds: u64) -> Result<Compared, String> {
    let (mut shim, mut kvstore) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        shim.push(blocks_per_second(program, seconds, true)?);
        kvstore.push(blocks_per_second(program, seconds, false)?);
    }
    Ok(Compared { shim: middle(shim), kvstore: middle(kvstore) })
}

/// A daemon that ends with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

fn blocks_per_second(program: &Path, seconds: u64, over_shim: bool) -> Result<f64, String> {
    let folder = Folder::new("daemons");
    let p2p: Vec<SocketAddr> = (0..DAEMONS).map(|_| free_addr()).collect();
    let member = |(seed, addr): (u8, &SocketAddr)| GenesisMember {
        name: format!("d{seed}"),
        key: SigningKey::from_seed(&[seed; 32]).public(),
        consensus_addr: Addr::new(*addr).expect("loopback"),
        payload_addr: Addr::new(([127, 0, 0, 1], u16::from(seed)).into()).expect("loopback"),
        power: 1,
    };
    let members = (1..=DAEMONS).zip(&p2p).map(member).collect();
    let genesis = Genesis::new("pace", Params::local(), members).expect("a market");
    let mut homes = Vec::new();
    for (seed, p2p) in (1..=DAEMONS).zip(p2p) {
        let dir = folder.0.join(seed.to_string());
        let (rpc, abci) = (free_addr(), ListenAddr::Unix(dir.join("abci.sock")));
        let home =
            Home { genesis: &genesis, seed: &[seed; 32], p2p, advertise: None, rpc, abci: &abci };
        home.write(&dir).expect("the folder is writable");
        homes.push((dir, rpc, abci));
    }
    let mut nodes = Vec::new();
    for (dir, rpc, abci) in homes {
        hurry(&dir, &abci, over_shim);
        let listener = over_shim.then(|| {
            let ledger = Arc::new(LedgerApp::open(&dir, &genesis).expect("a ledger"));
            let shim = Shim::new(Arc::clone(&ledger), ledger);
            Listener::start(&abci, shim, Limits::default(), |why| panic!("{why}"))
                .expect("it listens")
        });
        let daemon = Command::new(program)
            .args(["node", "--log_level", "error", "--home"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        // The daemon goes before its listener.
        nodes.push((Daemon(daemon), listener, Rpc::new(rpc)));
    }
    let height = || nodes[0].2.status().map_or(0, |status| status.height);
    let start = Instant::now();
    while height() < 10 {
        assert!(start.elapsed() < START_TIME_MAX, "four daemons agreed on nothing");
        nap(Duration::from_millis(50))?;
    }
    let (first, start) = (height(), Instant::now());
    nap(Duration::from_secs(seconds))?;
    Ok((height() - first) as f64 / start.elapsed().as_secs_f64())
}

/// The smallest timeouts, and blocks without transactions as fast as they come. For the kvstore also
/// the genesis that it wants: validators in it, no state of ours.
fn hurry(dir: &Path, abci: &ListenAddr, over_shim: bool) {
    let path = dir.join("config/config.toml");
    let mut config = std::fs::read_to_string(&path).expect("written above");
    let mut replace = |from: &str, to: &str| {
        let line = config.lines().find(|line| line.starts_with(from)).expect("the key is there");
        config = config.replace(&line.to_owned(), to);
    };
    replace("timeout_commit", "timeout_commit = \"1ms\"\nskip_timeout_commit = true");
    replace("peer_gossip_sleep_duration", "peer_gossip_sleep_duration = \"1ms\"");
    replace("flush_throttle_timeout", "flush_throttle_timeout = \"1ms\"");
    replace("create_empty_blocks_interval", "create_empty_blocks_interval = \"0s\"");
    if over_shim {
        std::fs::write(path, config).expect("the folder is writable");
        return;
    }
    config = config.replace(&abci.to_string(), "kvstore");
    std::fs::write(path, config).expect("the folder is writable");
    let path = dir.join("config/genesis.json");
    let text = std::fs::read_to_string(&path).expect("written above");
    let mut genesis: Value = serde_json::from_str(&text).expect("written above");
    let validator = |seed: u8| {
        let home = dir.parent().expect("beneath the others").join(seed.to_string());
        let text = std::fs::read_to_string(home.join("config/priv_validator_key.json")).ok()?;
        let key: Value = serde_json::from_str(&text).ok()?;
        Some(
            json!({ "address": key["address"], "pub_key": key["pub_key"], "power": "1", "name": "" }),
        )
    };
    let validators: Vec<Value> = (1..=DAEMONS).filter_map(validator).collect();
    genesis["validators"] = validators.into();
    genesis["app_state"] = json!({});
    std::fs::write(path, genesis.to_string()).expect("the folder is writable");
}
