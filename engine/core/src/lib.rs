//! What the engine decides: no I/O, no clock, no threads.
#![forbid(unsafe_code)]

pub mod bencode;
pub mod bitfield;
pub mod choke;
pub mod geometry;
pub mod leaf_sidecar;
pub mod magnet;
pub mod merkle;
pub mod metainfo;
pub mod select;
pub mod share;
pub mod swarm;
pub mod tracker;
pub mod wire;
