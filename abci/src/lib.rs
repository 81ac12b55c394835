//! Consensus drivers that order transactions for the ledger.
//!
//! [`driver::Application`] is the boundary, in the call order of ABCI 2.0; [`app::LedgerApp`] is the
//! ledger behind it. [`Solo`] (one validator, in process), [`Cluster`] (embedded Tendermint) and
//! [`Comet`] (a CometBFT daemon beside us, behind the socket of [`shim`]) drive it, and a node holds any
//! of them as a [`Driver`].
#![forbid(unsafe_code)]

pub mod app;
pub mod cluster;
pub mod codec;
pub mod comet;
pub mod driver;
pub mod grammar;
pub mod handle;
mod open_dir;
pub mod record_log;
pub mod shim;
mod snapshots;
pub mod solo;
#[cfg(test)]
mod testing;

pub use cluster::Cluster;
pub use comet::{Comet, CometConfig, CometError};
pub use handle::{
    ClusterConfig, Driver, PeerStatus, StartError, Status, SubmitError, TxOutcome, View,
};
pub use solo::{Solo, SoloConfig};
