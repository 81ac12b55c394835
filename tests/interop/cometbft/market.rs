//! A market of daemons, each a process of its own, with their ledgers in this one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringseed_abci::app::LedgerApp;
use ringseed_abci::comet::home::Home;
use ringseed_abci::comet::rpc::{Rpc, RpcError};
use ringseed_abci::driver::Application;
use ringseed_abci::grammar::Checked;
use ringseed_abci::shim::{Limits, ListenAddr, Listener, Shim};
use ringseed_ledger::{
    Addr, DataHash, Genesis, GenesisMember, InfoHashV1, Offer, Params, SigningKey, Tx, TxBody,
};
use ringseed_tests::comet;
use ringseed_tests::program::Program;
use ringseed_tests::scratch::Scratch;

use super::PATIENCE;

/// Small, so that a test sees several.
const SNAPSHOT_EVERY_HEIGHTS: u64 = 5;

pub struct Node {
    seed: [u8; 32],
    dir: PathBuf,
    rpc: SocketAddr,
    pub ledger: Arc<LedgerApp>,
    listener: Option<Listener>,
    daemon: Option<Program>,
    /// What must not happen: panics and broken disks, the grammar's complaints among them.
    fatal: Arc<Mutex<Vec<String>>>,
}

pub struct Market {
    genesis: Genesis,
    p2p: Vec<SocketAddr>,
    nodes: Vec<Node>,
    /// Last, so that everything has ended when it goes.
    scratch: Scratch,
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn seed_of(index: usize) -> [u8; 32] {
    [index as u8 + 1; 32]
}

pub fn offer(seed: u8) -> TxBody {
    TxBody::Candidate(Offer {
        infohash_v2: DataHash([seed; 32]),
        infohash_v1: InfoHashV1([seed; 20]),
        size_bytes: 1_000,
        file_count: 1,
        piece_len_log2: 14,
        name: format!("data {seed}"),
    })
}

impl Market {
    /// `founders` daemons that have agreed on a first block.
    pub fn start(name: &str, founders: usize) -> Market {
        let scratch = Scratch::new(name);
        let p2p: Vec<_> = (0..founders).map(|_| comet::free_ports()).collect();
        let member = |(index, addr): (usize, &SocketAddr)| GenesisMember {
            name: format!("d{}", index + 1),
            key: SigningKey::from_seed(&seed_of(index)).public(),
            consensus_addr: Addr::new(*addr).expect("loopback"),
            payload_addr: Addr::new(loopback(index as u16 + 1)).expect("loopback"),
            power: 1,
        };
        let members = p2p.iter().enumerate().map(member).collect();
        let genesis = Genesis::new("comet", Params::local(), members).expect("a market");
        let mut market = Market { genesis, p2p, nodes: Vec::new(), scratch };
        for index in 0..founders {
            market.prepare_node(index);
        }
        (0..founders).for_each(|index| market.start_daemon(index));
        (0..founders).for_each(|index| market.wait_height(index, 1));
        market
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub fn height(&self, index: usize) -> u64 {
        self.nodes[index].ledger.view().height()
    }

    /// A ledger behind its socket, and a home for its daemon.
    fn prepare_node(&mut self, index: usize) {
        let dir = self.scratch.join(&format!("d{}", index + 1));
        std::fs::create_dir_all(dir.join("ledger")).expect("scratch");
        let (seed, p2p) = (seed_of(index), self.p2p[index]);
        let rpc = SocketAddr::new(p2p.ip(), p2p.port() + 2);
        let abci = ListenAddr::Unix(dir.join("abci.sock"));
        let home =
            Home { genesis: &self.genesis, seed: &seed, p2p, advertise: None, rpc, abci: &abci };
        home.write(&dir.join("comet")).expect("scratch");
        let ledger = open_ledger(&dir, &self.genesis);
        let fatal = Arc::default();
        let listener = Some(serve(&abci, &ledger, &fatal));
        self.nodes.push(Node { seed, dir, rpc, ledger, listener, daemon: None, fatal });
    }

    pub fn start_daemon(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.daemon = Some(comet::start(&node.dir.join("comet"), &node.dir.join("logs")));
    }

    /// kill -9.
    pub fn kill_daemon(&mut self, index: usize) {
        self.nodes[index].daemon = None;
    }

    pub fn restart_daemon(&mut self, index: usize) {
        self.kill_daemon(index);
        self.start_daemon(index);
    }

    /// The ledger's folder is gone: only the daemon has the blocks.
    pub fn lose_ledger(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.listener = None;
        std::fs::remove_dir_all(node.dir.join("ledger")).expect("scratch");
        std::fs::create_dir_all(node.dir.join("ledger")).expect("scratch");
        node.ledger = open_ledger(&node.dir, &self.genesis);
        let abci = ListenAddr::Unix(node.dir.join("abci.sock"));
        node.listener = Some(serve(&abci, &node.ledger, &node.fatal));
    }

    /// A node that fetches a snapshot instead of the blocks, trusting the block at `trusted`.
    pub fn join_by_state_sync(&mut self, trusted: u64) -> usize {
        let index = self.nodes.len();
        self.p2p.push(comet::free_ports());
        self.prepare_node(index);
        let header = Rpc::new(self.nodes[0].rpc)
            .call("commit", serde_json::json!({ "height": trusted.to_string() }))
            .expect("the first daemon has the block");
        let hash = &header["signed_header"]["commit"]["block_id"]["hash"];
        let path = self.nodes[index].dir.join("comet/config/config.toml");
        let config = std::fs::read_to_string(&path).expect("written above");
        let config = format!(
            "{config}\n[statesync]\nenable = true\nrpc_servers = \"{},{}\"\ntrust_height = {trusted}\n\
             trust_hash = {hash}\ntrust_period = \"168h0m0s\"\ndiscovery_time = \"5s\"\n",
            self.nodes[0].rpc, self.nodes[1].rpc,
        );
        std::fs::write(path, config).expect("scratch");
        self.start_daemon(index);
        index
    }

    fn tx(&self, index: usize, body: TxBody) -> Vec<u8> {
        let node = &self.nodes[index];
        let key = SigningKey::from_seed(&node.seed);
        let (nonce, height) = {
            let state = node.ledger.view();
            (state.nonce(&key.public()) + 1, state.height())
        };
        let tx = Tx::sign(&key, &self.genesis.hash(), nonce, height + 1_000, body);
        tx.expect("a transaction").to_bytes()
    }

    /// What the mempool of the daemon says.
    pub fn check(&self, index: usize, body: TxBody) -> u32 {
        let tx = self.tx(index, body);
        Rpc::new(self.nodes[index].rpc).broadcast(&tx).expect("the daemon answers").code
    }

    /// Submits at `index`, over restarts of its daemon, and waits for the block.
    #[track_caller]
    pub fn submit(&mut self, index: usize, body: TxBody) {
        let key = SigningKey::from_seed(&self.nodes[index].seed).public();
        let before = self.nodes[index].ledger.view().nonce(&key);
        let tx = self.tx(index, body);
        let rpc = Rpc::new(self.nodes[index].rpc);
        let start = Instant::now();
        while self.nodes[index].ledger.view().nonce(&key) == before {
            // Refusals pass: it is in the cache already, or the daemon is starting.
            let said = rpc.broadcast(&tx);
            self.assert_well(index);
            assert!(start.elapsed() < PATIENCE, "not in a block: {said:?}\n{}", self.logs(index));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn wait_height(&mut self, index: usize, height: u64) {
        let start = Instant::now();
        while self.height(index) < height {
            self.assert_well(index);
            let at = self.height(index);
            assert!(start.elapsed() < PATIENCE, "at {at}, not {height}\n{}", self.logs(index));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until all have what one has.
    #[track_caller]
    pub fn settle(&mut self) {
        let top = (0..self.nodes.len()).map(|index| self.height(index)).max().unwrap_or(0);
        (0..self.nodes.len()).for_each(|index| self.wait_height(index, top));
    }

    /// The daemon runs and the application had no fault.
    #[track_caller]
    fn assert_well(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let ended = node.daemon.as_mut().and_then(Program::try_wait);
        assert!(ended.is_none(), "daemon {index} ended: {ended:?}\n{}", self.logs(index));
        let fatal = self.nodes[index].fatal.lock().expect("no panic under this lock").clone();
        assert!(fatal.is_empty(), "application {index}: {fatal:?}");
    }

    /// Equal app hashes in the headers of every height that all have, and no fault anywhere.
    #[track_caller]
    pub fn assert_agreed(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.assert_well(index));
        let rpcs: Vec<_> = self.nodes.iter().map(|node| Rpc::new(node.rpc)).collect();
        let heights = rpcs.iter().map(|rpc| rpc.status().expect("it answers").height);
        let lowest = heights.min().expect("a node");
        let mut compared = 0;
        for height in (lowest.saturating_sub(4)).max(1)..=lowest {
            let hashes: Vec<_> = rpcs.iter().map(|rpc| rpc.app_hash_in_header(height)).collect();
            // A daemon that came by state sync has no blocks before its snapshot, and says so.
            let is_before = |hash: &Result<_, RpcError>| {
                hash.as_ref().is_err_and(|error| error.to_string().contains("lowest height is"))
            };
            if height < lowest && hashes.iter().any(is_before) {
                continue;
            }
            let hashes: Vec<_> = hashes.into_iter().map(|hash| hash.expect("a block")).collect();
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "height {height}: {hashes:?}");
            compared += 1;
        }
        assert!(compared > 0);
    }

    fn logs(&self, index: usize) -> String {
        let log = self.nodes[index].daemon_log();
        let tail: Vec<_> = log.lines().rev().take(30).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Node {
    pub fn daemon_log(&self) -> String {
        self.daemon.as_ref().map(Program::stdout).unwrap_or_default()
    }
}

fn open_ledger(dir: &std::path::Path, genesis: &Genesis) -> Arc<LedgerApp> {
    let dir = dir.join("ledger");
    let ledger = LedgerApp::open(&dir, genesis).expect("it opens");
    Arc::new(ledger.keep_snapshots(&dir, SNAPSHOT_EVERY_HEIGHTS).expect("it opens"))
}

fn serve(abci: &ListenAddr, ledger: &Arc<LedgerApp>, fatal: &Arc<Mutex<Vec<String>>>) -> Listener {
    let checked: Arc<dyn Application> = Arc::new(Checked::new(Arc::clone(ledger)));
    let told = Arc::clone(fatal);
    let on_fatal = move |why: &str| told.lock().expect("no panic").push(why.to_owned());
    let shim = Shim::new(Arc::clone(ledger), checked);
    Listener::start(abci, shim, Limits::default(), on_fatal).expect("it listens")
}
