//! The engine that drives [`ringseed_core`] over [`ringseed_sys`]: shards, the drivers under
//! [`io`], the store and the public [`Engine`] handle.
#![forbid(unsafe_code)]

pub mod io;
