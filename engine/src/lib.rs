//! The engine that drives [`ringseed_core`] over [`ringseed_sys`]: shards, the drivers under
//! [`io`], the store and the public [`Engine`] handle.
//!
//! [`Engine::start`] gives a handle and a channel of [`Event`]s. A listing is added with what is known
//! of it ([`Identity`]) and where its bytes lie ([`Place`]); the engine fetches, verifies, stores and
//! serves it until it is removed.
#![forbid(unsafe_code)]

pub mod announce;
mod api;
mod config;
mod handle;
mod intake;
pub mod io;
pub mod offline;
pub mod shard;
pub mod store;
pub mod testing;
pub mod utp;

#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;

pub use api::{
    AddListing, EngineError, EngineStatus, Event, Identity, ListingError, ListingId, ListingState,
    ListingStatus, Place, Rates, Scope, ShardStatus, SourceStatus, WaitReason,
};
pub use config::{
    ARENA_LEN_BYTES_DEFAULT, ARENA_LEN_BYTES_MAX, ARENA_LEN_BYTES_MIN, ARENA_LEN_BYTES_OF_SHARD,
    Config, ConfigError, DEVICE_OPS_MAX_DEFAULT, DirectIo, IoDriver, REQUESTS_PER_PEER_MAX,
    SHARDS_MAX, SHARDS_MAX_DEFAULT,
};
pub use handle::Engine;
