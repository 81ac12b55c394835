//! Markets of several nodes in one process, over real TCP on loopback.

mod agreement;
mod byzantine;
mod folder;
mod joining;
mod processes;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ringseed_ledger::{
    Addr, DataHash, Endpoint, Genesis, GenesisMember, InfoHashV1, Offer, Params, SigningKey, Tx,
    TxBody, TxCode,
};

use super::Cluster;
use crate::grammar::Checked;
use crate::handle::{ClusterConfig, Driver, SubmitError, TxOutcome};
use crate::testing::TempDir;

/// What a test waits for at most.
const PATIENCE: Duration = Duration::from_secs(15);

/// A market whose nodes live in this process.
struct Market {
    genesis: Genesis,
    keys: Vec<SigningKey>,
    addrs: Vec<SocketAddr>,
    nodes: Vec<Option<Cluster>>,
    /// Last, so that the nodes have ended when it goes.
    dir: TempDir,
}

/// A panic on a connection's thread ends that connection only, which a test would not notice.
fn fail_on_mesh_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            default(panic);
            if std::thread::current().name().is_some_and(|name| name.starts_with("mesh-")) {
                std::process::abort();
            }
        }));
    });
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

/// A port that no other test of this process has and nobody else holds now. Below the range from
/// which the kernel takes ports for outgoing connections.
fn free_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Relaxed);
        let port =
            15_000 + (std::process::id() as u16).wrapping_mul(97).wrapping_add(step) % 17_000;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().unwrap();
        }
    }
}

fn addr(addr: SocketAddr) -> Addr {
    Addr::new(addr).unwrap()
}

impl Market {
    /// `founders` validators, all started.
    fn start(name: &str, founders: u8, params: Params) -> Self {
        let mut market = Self::prepare(name, founders, params);
        (0..usize::from(founders)).for_each(|index| market.start_node(index));
        market
    }

    fn prepare(name: &str, founders: u8, params: Params) -> Self {
        fail_on_mesh_panics();
        let dir = TempDir::new(name);
        let keys: Vec<_> = (1..=founders).map(key).collect();
        let addrs: Vec<_> = keys.iter().map(|_| free_addr()).collect();
        let member = |(key, at): (&SigningKey, &SocketAddr)| GenesisMember {
            name: format!("n{}", at.port()),
            key: key.public(),
            consensus_addr: addr(*at),
            payload_addr: addr(SocketAddr::new(at.ip(), 1)),
            power: 1,
        };
        let mut members: Vec<_> = keys.iter().zip(&addrs).map(member).collect();
        for (member, port) in members.iter_mut().zip(1..) {
            member.payload_addr = addr(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        }
        let genesis = Genesis::new("test", params, members).unwrap();
        let nodes = keys.iter().map(|_| None).collect();
        Self { dir, genesis, keys, addrs, nodes }
    }

    fn node_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("node{index}"))
    }

    fn config(&self, index: usize) -> ClusterConfig {
        let mut config = ClusterConfig::new(self.node_dir(index), self.keys[index].clone());
        config.genesis = Some(self.genesis.clone());
        config.listen = Some(self.addrs[index]);
        config
    }

    fn start_node(&mut self, index: usize) {
        let config = self.config(index);
        // Every driver call of every test goes through the recogniser.
        let node = Cluster::start_with(config, |ledger| Arc::new(Checked::new(ledger)));
        self.nodes[index] = Some(node.unwrap());
    }

    /// A newcomer that knows one address; returns its index.
    fn join(&mut self, first: usize) -> usize {
        let index = self.keys.len();
        self.keys.push(key(index as u8 + 1));
        self.addrs.push(free_addr());
        self.nodes.push(None);
        let mut config = self.config(index);
        config.genesis = None;
        let node = Cluster::join(self.addrs[first], self.genesis.hash(), config).unwrap();
        self.nodes[index] = Some(node);
        index
    }

    fn stop(&mut self, index: usize) {
        self.nodes[index] = None;
    }

    fn node(&self, index: usize) -> &Cluster {
        self.nodes[index].as_ref().expect("the node runs")
    }

    fn running(&self) -> impl Iterator<Item = &Cluster> {
        self.nodes.iter().flatten()
    }

    fn height(&self, index: usize) -> u64 {
        self.node(index).status().height
    }

    /// The highest height of any.
    fn top(&self) -> u64 {
        self.running().map(|node| node.status().height).max().unwrap()
    }

    /// Waits until all have what one has, and compares.
    fn settle(&self) {
        self.wait_height(self.top());
        self.assert_agreed();
    }

    /// Signs with the node's next nonce.
    fn tx(&self, index: usize, body: TxBody) -> Vec<u8> {
        let key = &self.keys[index];
        let nonce = self.node(index).view().nonce(&key.public()) + 1;
        let until = self.node(index).view().height() + 1_000;
        Tx::sign(key, &self.genesis.hash(), nonce, until, body).unwrap().to_bytes()
    }

    fn try_submit(&self, index: usize, body: TxBody) -> Result<TxOutcome, SubmitError> {
        let tx = self.tx(index, body);
        self.node(index).submit(tx, PATIENCE)
    }

    /// Submits at `index` and waits for the block.
    fn submit(&self, index: usize, body: TxBody) -> TxOutcome {
        let outcome = self.try_submit(index, body).unwrap();
        assert_eq!(outcome.code, TxCode::Ok, "{}", outcome.info);
        outcome
    }

    fn wait(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            if start.elapsed() > PATIENCE {
                let stands: Vec<_> = self.running().map(|node| node.status()).collect();
                panic!("not within {PATIENCE:?}: {what}\n{stands:#?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_height(&self, height: u64) {
        self.wait(&format!("height {height} on all"), |market| {
            market.running().all(|node| node.status().height >= height)
        });
    }

    /// Equal app hashes at equal heights on all that run.
    fn assert_agreed(&self) {
        let lowest = self.running().map(|node| node.status().height).min().unwrap();
        for height in 1..=lowest {
            let hashes: Vec<_> = self.running().map(|node| node.app_hash_at(height)).collect();
            assert!(hashes[0].is_some(), "height {height}");
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "height {height}: {hashes:?}");
        }
    }
}

fn offer(seed: u8) -> TxBody {
    TxBody::Candidate(Offer {
        infohash_v2: DataHash([seed; 32]),
        infohash_v1: InfoHashV1([seed; 20]),
        size_bytes: 1_000,
        file_count: 1,
        piece_len_log2: 14,
        name: format!("data {seed}"),
    })
}

fn endpoint(market: &Market, index: usize) -> Endpoint {
    Endpoint {
        name: format!("new{index}"),
        consensus_addr: addr(market.addrs[index]),
        payload_addr: addr(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 100 + index as u16)),
        capacity: 0,
    }
}

/// Blocks as fast as every 20 ms, idle ones every `idle_ms`.
fn fast(idle_ms: u32) -> Params {
    Params { block_interval_ms_min: 20, idle_block_interval_ms: idle_ms, ..Params::local() }
}
