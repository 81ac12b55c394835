//! The embedded Tendermint: N datatrusts agree without a second daemon.
//!
//! One consensus thread ([`node`]) owns everything that decides: the sans-I/O core ([`core`]), the
//! write-ahead log ([`wal`]), the block store ([`store`]), the mempool ([`mempool`]) and the
//! application. The mesh ([`mesh`]) owns sockets and threads and knows nothing of blocks. Between
//! them runs one bounded queue each way.
//!
//! Order at a decision: block store synced, block executed, application log synced, then the next
//! height (the application is never ahead of the block store).

pub mod certificate;
pub mod core;
pub mod frame;
pub mod mempool;
pub mod mesh;
pub mod message;
pub mod node;
mod open;
pub mod pace;
pub mod store;
pub mod wal;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringseed_ledger::{Genesis, GenesisHash, SigningKey};

use self::mesh::Mesh;
use self::node::{NodeEvent, Shared};
use crate::app::LedgerApp;
use crate::driver::Application;
use crate::handle::{ClusterConfig, Driver, StartError, Status, SubmitError, TxOutcome, View};

/// A running member (or newcomer) of a market. Dropping it shuts it down.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    mesh: Mesh,
    genesis: Genesis,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held while we run: a second process on the folder is refused.
    _lock: std::fs::File,
}

impl Cluster {
    /// Opens `config.dir`, listens, and takes part: as a validator at every height at which the
    /// ledger gives our key power, as an observer otherwise. Returns at once; whether we know the
    /// newest block is in [`Status::caught_up`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: ClusterConfig) -> Result<Self, StartError> {
        Self::start_with(config, |ledger| ledger)
    }

    /// As [`Cluster::start`], with `wrap` around the application: tests put a recogniser of the call
    /// grammar there.
    pub(crate) fn start_with(
        config: ClusterConfig,
        wrap: impl FnOnce(Arc<LedgerApp>) -> Arc<dyn Application>,
    ) -> Result<Self, StartError> {
        open::start(config, wrap)
    }

    /// As [`Cluster::start`] for a newcomer that knows one address and the genesis hash: fetches the
    /// genesis from `first`, checks its hash, stores it, and starts with `first` as first contact.
    /// A folder that has the genesis already starts without asking.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn join(
        first: SocketAddr,
        genesis_hash: GenesisHash,
        mut config: ClusterConfig,
    ) -> Result<Self, StartError> {
        let dir = crate::open_dir::consensus_dir(&config.dir)?;
        let stored = crate::open_dir::stored_genesis(&dir)?;
        config.genesis = Some(match stored {
            Some(genesis) if genesis.hash() == genesis_hash => genesis,
            Some(genesis) => {
                return Err(StartError::OtherGenesis {
                    stored: genesis.hash().to_string(),
                    given: genesis_hash.to_string(),
                });
            }
            None => Self::fetch_genesis(first, genesis_hash, &config.key)?,
        });
        config.first.push(first);
        Self::start(config)
    }

    /// Asks `first` for the genesis with `genesis_hash`, for `join --plan` and the like.
    ///
    /// # Errors
    /// [`StartError::Unreachable`], [`StartError::WrongGenesis`].
    pub fn fetch_genesis(
        first: SocketAddr,
        genesis_hash: GenesisHash,
        key: &SigningKey,
    ) -> Result<Genesis, StartError> {
        open::fetch_genesis(first, genesis_hash, key)
    }

    /// The market's genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Where peers reach us.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.mesh.local_addr()
    }

    /// The certificate of the block at `height`, when it is stored here.
    pub fn certificate(&self, height: u64) -> Option<certificate::Certificate> {
        self.shared.store.read(height).ok().flatten().map(|certified| certified.certificate)
    }
}

impl Driver for Cluster {
    fn submit(&self, tx: Vec<u8>, wait: Duration) -> Result<TxOutcome, SubmitError> {
        let (reply, outcome) = channel();
        let event = NodeEvent::Submit { tx, deadline: Instant::now() + wait, reply };
        self.shared.inbox.send(event).map_err(|_| SubmitError::Stopped)?;
        match outcome.recv_timeout(wait) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(SubmitError::Timeout { waited: wait }),
            Err(RecvTimeoutError::Disconnected) if self.shared.ended.load(Ordering::SeqCst) => {
                Err(SubmitError::Stopped)
            }
            // Forgotten because its transaction left the mempool without a block.
            Err(RecvTimeoutError::Disconnected) => Err(SubmitError::Timeout { waited: wait }),
        }
    }

    fn view(&self) -> View<'_> {
        self.shared.ledger.view()
    }

    fn subscribe(&self) -> Receiver<u64> {
        self.shared.heights.subscribe()
    }

    fn status(&self) -> Status {
        let mut status = self.shared.status.lock().expect("no panic under this lock").clone();
        status.peers = self.mesh.statuses();
        let last = *self.shared.last_commit.lock().expect("no panic under this lock");
        status.last_block_age = last.elapsed();
        status
    }

    fn block(&self, height: u64) -> Option<certificate::ChainBlock> {
        self.shared.store.read(height).ok().flatten().map(|certified| certified.block)
    }

    fn app_hash_at(&self, height: u64) -> Option<[u8; 32]> {
        let status = self.shared.status.lock().expect("no panic under this lock");
        if let Some(hash) = status.app_hash_at(height) {
            return Some(hash);
        }
        drop(status);
        // The next block stands on it.
        self.block(height.checked_add(1)?).map(|next| next.header.app_hash)
    }

    fn shutdown(&self) {
        let Some(thread) = self.thread.lock().expect("no panic under this lock").take() else {
            return;
        };
        let _ = self.shared.inbox.send(NodeEvent::Stop);
        let _ = thread.join();
        self.mesh.stop();
        self.shared.heights.close();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests;
