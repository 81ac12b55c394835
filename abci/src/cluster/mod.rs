//! The embedded Tendermint: N datatrusts agree without a second daemon.
//!
//! One consensus thread ([`node`]) owns everything that decides: the sans-I/O core ([`core`]), the
//! write-ahead log ([`wal`]), the block store ([`store`]), the mempool ([`mempool`]) and the
//! application. The mesh ([`mesh`]) owns sockets and threads and knows nothing of blocks. Between
//! them runs one bounded queue each way.
//!
//! Order at a decision: block store synced, block executed, application log synced, then the next
//! height (facts: never be ahead of the block store).

pub mod certificate;
pub mod message;
pub mod store;
pub mod wal;

use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ringseed_ledger::{Genesis, GenesisHash, SigningKey};

use crate::handle::{ClusterConfig, Driver, StartError, Status, SubmitError, TxOutcome, View};

/// A running member (or newcomer) of a market. Dropping it shuts it down.
#[derive(Debug)]
pub struct Cluster {}

impl Cluster {
    /// Opens `config.dir`, listens, and takes part: as a validator at every height at which the
    /// ledger gives our key power, as an observer otherwise. Returns at once; whether we know the
    /// newest block is in [`Status::caught_up`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: ClusterConfig) -> Result<Self, StartError> {
        let _ = config;
        unimplemented!()
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
        config: ClusterConfig,
    ) -> Result<Self, StartError> {
        let _ = (first, genesis_hash, config);
        unimplemented!()
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
        let _ = (first, genesis_hash, key);
        unimplemented!()
    }

    /// The market's genesis.
    pub fn genesis(&self) -> &Genesis {
        unimplemented!()
    }

    /// Where peers reach us.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        unimplemented!()
    }
}

impl Driver for Cluster {
    fn submit(&self, tx: Vec<u8>, wait: Duration) -> Result<TxOutcome, SubmitError> {
        let _ = (tx, wait);
        unimplemented!()
    }
    fn view(&self) -> View<'_> {
        unimplemented!()
    }
    fn subscribe(&self) -> Receiver<u64> {
        unimplemented!()
    }
    fn status(&self) -> Status {
        unimplemented!()
    }
    fn block(&self, height: u64) -> Option<certificate::ChainBlock> {
        let _ = height;
        unimplemented!()
    }
    fn app_hash_at(&self, height: u64) -> Option<[u8; 32]> {
        let _ = height;
        unimplemented!()
    }
    fn shutdown(&self) {}
}
