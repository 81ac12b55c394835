//! The driver over a CometBFT daemon beside us: it orders, we follow.
//!
//! ```text
//! submit --RPC--> daemon --socket--> shim --calls--> Followed --> LedgerApp
//!    ^---- outcome, by transaction hash, at the commit ----|
//! ```
//! The daemon is a process of its own, started by the operator; [`home`] writes its folder. It may be
//! away for a while: what is committed stays readable, and what is submitted waits for it.

mod follow;
pub mod home;
pub mod rpc;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringseed_ledger::{Genesis, PublicKey, State, Tx, TxCode};
use thiserror::Error;

use self::follow::Followed;
use self::rpc::{Rpc, RpcError};
use crate::app::LedgerApp;
use crate::cluster::certificate::{ChainBlock, hex};
use crate::handle::{Driver, PeerStatus, StartError, Status, SubmitError, TxOutcome, View};
use crate::open_dir;
use crate::shim::app::address_of;
use crate::shim::{Limits, ListenAddr, ListenError, Listener, Shim};

/// A newcomer by state sync finds a snapshot of about the last quarter of an hour at one block a second.
pub const SNAPSHOT_EVERY_HEIGHTS: u64 = 1_000;
/// How often the daemon is asked how it stands.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two tries to reach the daemon with a transaction.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How a node beside a CometBFT daemon starts.
#[derive(Clone, Debug)]
pub struct CometConfig {
    /// The node's state folder. Everything of ours lies in `dir/consensus/`.
    pub dir: PathBuf,
    /// Our public key: the daemon votes with its secret half.
    pub key: PublicKey,
    /// The market's genesis. `None` takes the stored one.
    pub genesis: Option<Genesis>,
    /// Where the daemon finds us (its `proxy_app`).
    pub listen: ListenAddr,
    /// Where we find the daemon's RPC (its `rpc.laddr`).
    pub rpc: SocketAddr,
    /// Heights between two snapshots for newcomers.
    pub snapshot_every_heights: u64,
    /// See [`crate::ClusterConfig::on_fatal`].
    pub on_fatal: fn(&str),
}

/// Why the driver did not start.
#[derive(Debug, Error)]
pub enum CometError {
    /// The state could not be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The socket for the daemon could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A ledger that follows a CometBFT daemon. Dropping it shuts it down.
pub struct Comet {
    ledger: Arc<LedgerApp>,
    followed: Arc<Followed>,
    genesis: Genesis,
    key: PublicKey,
    rpc: Rpc,
    listen: ListenAddr,
    watch: Arc<Watch>,
    running: Mutex<Option<(Listener, JoinHandle<()>)>>,
    _lock: std::fs::File,
}

/// What the daemon last said about itself.
#[derive(Default)]
struct Watch {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    is_caught_up: bool,
    mempool_txs: usize,
    peers: Vec<rpc::Peer>,
    is_stopping: bool,
}

impl Comet {
    /// Opens `config.dir` and listens for the daemon. Returns at once, daemon or not.
    ///
    /// # Errors
    /// [`CometError`].
    pub fn start(config: CometConfig) -> Result<Self, CometError> {
        let dir = open_dir::consensus_dir(&config.dir)?;
        let lock = open_dir::lock(&dir)?;
        let genesis = open_dir::settle_genesis(&dir, config.genesis.as_ref())?;
        let ledger = LedgerApp::open(&dir, &genesis)?;
        let ledger = Arc::new(ledger.keep_snapshots(&dir, config.snapshot_every_heights)?);
        let followed = Arc::new(Followed::new(Arc::clone(&ledger)));
        let shim = Shim::new(Arc::clone(&ledger), followed.clone());
        let on_fatal = config.on_fatal;
        let listener =
            Listener::start(&config.listen, shim, Limits::default(), move |reason: &str| {
                tracing::error!(reason, "the ledger cannot go on: the process ends");
                on_fatal(reason);
                std::process::exit(1);
            })?;
        let listen = listener.addr().clone();
        let rpc = Rpc::new(config.rpc);
        let watch = Arc::new(Watch::default());
        let of_thread = Arc::clone(&watch);
        let look = std::thread::Builder::new().name("comet-watch".into());
        let look = look.spawn(move || watch_daemon(rpc, &of_thread));
        let look = look.map_err(|source| StartError::Io { path: dir, source })?;
        let running = Mutex::new(Some((listener, look)));
        let key = config.key;
        Ok(Self { ledger, followed, genesis, key, rpc, listen, watch, running, _lock: lock })
    }

    /// The market's genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Where the daemon finds us.
    pub fn listen_addr(&self) -> &ListenAddr {
        &self.listen
    }

    /// Hands `tx` to the daemon, again and again while it is away.
    fn broadcast(&self, tx: &[u8], deadline: Instant) -> Result<(), SubmitError> {
        loop {
            match self.rpc.broadcast(tx) {
                Ok(check) if check.code == TxCode::Ok.number() => return Ok(()),
                Ok(check) => {
                    let code = TxCode::from_number(check.code).unwrap_or(TxCode::Malformed);
                    return Err(SubmitError::Refused { code, info: check.log });
                }
                // An earlier try of ours, or another node's gossip: it waits for its block.
                Err(RpcError::Refused(why)) if why.contains("already exists in cache") => {
                    return Ok(());
                }
                Err(RpcError::Refused(why)) if why.contains("mempool is full") => {
                    return Err(SubmitError::Full);
                }
                Err(RpcError::Refused(why)) if why.contains("Tx too large") => {
                    return Err(SubmitError::Refused { code: TxCode::TooLarge, info: why });
                }
                Err(error) => tracing::debug!(%error, "the daemon took no transaction"),
            }
            if Instant::now() + RETRY_INTERVAL >= deadline || self.seen().is_stopping {
                return Ok(());
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.watch.seen)
    }
}

impl Driver for Comet {
    fn submit(&self, tx: Vec<u8>, wait: Duration) -> Result<TxOutcome, SubmitError> {
        let deadline = Instant::now() + wait;
        let hash = Tx::hash_of(&tx);
        let (ticket, outcome) = self.followed.await_outcome(hash);
        let broadcast = self.broadcast(&tx, deadline);
        let waited = broadcast.and_then(|()| {
            let left = deadline.saturating_duration_since(Instant::now());
            outcome.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => SubmitError::Timeout { waited: wait },
                RecvTimeoutError::Disconnected => SubmitError::Stopped,
            })
        });
        self.followed.forget(&ticket);
        waited
    }

    fn view(&self) -> View<'_> {
        self.ledger.view()
    }

    fn subscribe(&self) -> Receiver<u64> {
        self.followed.subscribe()
    }

    fn status(&self) -> Status {
        let mut status = self.followed.status();
        let state = self.ledger.view();
        let next = state.validators_at(state.height() + 1).unwrap_or_default();
        status.is_validator = next.iter().any(|validator| validator.key == self.key);
        let seen = self.seen();
        status.caught_up = seen.is_caught_up;
        status.mempool_txs = seen.mempool_txs;
        status.peers = seen.peers.iter().map(|peer| peer_status(&state, peer)).collect();
        status
    }

    /// Always `None`: the blocks are the daemon's, in its format.
    fn block(&self, _height: u64) -> Option<ChainBlock> {
        None
    }

    fn app_hash_at(&self, height: u64) -> Option<[u8; 32]> {
        if let Some(hash) = self.followed.status().app_hash_at(height) {
            return Some(hash);
        }
        if height > self.ledger.view().height() {
            return None;
        }
        // The next block's header carries it.
        self.rpc.app_hash_in_header(height.checked_add(1)?).ok()
    }

    fn shutdown(&self) {
        let Some((mut listener, look)) = lock(&self.running).take() else { return };
        self.seen().is_stopping = true;
        self.watch.changed.notify_all();
        listener.stop();
        let _ = look.join();
        self.followed.close();
    }
}

impl Drop for Comet {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under this lock")
}

/// The daemon names peers by the address of their key; the ledger knows the keys of members.
fn peer_status(state: &State, peer: &rpc::Peer) -> PeerStatus {
    let member = state.members().find(|member| hex(&address_of(&member.key.0)) == peer.id);
    PeerStatus {
        key: member.map(|member| member.key.0).unwrap_or_default(),
        addr: peer.addr,
        height: peer.height,
        is_member: member.is_some_and(|member| member.index().is_some()),
        outbound: peer.is_outbound,
    }
}

/// Asks the daemon how it stands until we stop. A daemon that does not answer is not caught up.
fn watch_daemon(rpc: Rpc, watch: &Watch) {
    let mut was_reached = true;
    loop {
        let status = rpc.status();
        if let Err(error) = &status
            && was_reached
        {
            tracing::info!(%error, "the daemon does not answer yet");
        }
        was_reached = status.is_ok();
        let mempool_txs = rpc.mempool_txs().unwrap_or_default();
        let peers = rpc.peers().unwrap_or_default();
        let mut seen = lock(&watch.seen);
        seen.is_caught_up = status.is_ok_and(|status| !status.is_catching_up && status.height > 0);
        (seen.mempool_txs, seen.peers) = (mempool_txs, peers);
        if !seen.is_stopping {
            let waited = watch.changed.wait_timeout(seen, LOOK_INTERVAL);
            seen = waited.expect("no panic under this lock").0;
        }
        if seen.is_stopping {
            return;
        }
    }
}
