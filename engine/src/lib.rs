//! The engine that drives [`ringseed_core`] over [`ringseed_sys`]: shards, the drivers under
//! [`io`], the store and the public `Engine` handle.
#![forbid(unsafe_code)]

mod config;
pub mod io;

pub use config::{
    ARENA_LEN_BYTES_DEFAULT, ARENA_LEN_BYTES_MAX, ARENA_LEN_BYTES_MIN, Config, ConfigError, DirectIo,
    IoDriver,
};
