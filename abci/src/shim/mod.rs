//! The shim: the ledger behind the socket protocol of a CometBFT daemon (ABCI 2.0, CometBFT 0.38).
//!
//! ```text
//! daemon --socket--> listener --frames--> codec --Request--> app (Shim) --calls--> Application
//! ```
//! [`codec`] cuts the stream into requests, [`listener`] owns sockets, threads and deadlines, [`app`]
//! turns requests into calls of the driver boundary and answers into replies, [`events`] names what
//! happened. All rules are the ledger's; nothing here knows a listing. The message types and the
//! `Application` trait are those of `tendermint-abci`, so that its stock server and client serve as the
//! second implementation in tests. Its server is not used because each call stalls 44 ms behind a
//! delayed ACK, big frames cost quadratic time and unbounded memory, and an empty request panics.

pub mod app;
pub mod codec;
pub mod events;
pub mod listener;
mod socket;

pub use app::Shim;
pub use listener::{Limits, ListenAddr, ListenError, Listener};

#[cfg(test)]
mod tests;
