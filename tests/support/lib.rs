//! What the test targets share: temporary folders on a real disk, seeded data, digests of trees and
//! child processes that never outlive their test.
#![forbid(unsafe_code)]

pub mod attacker;
pub mod comet;
pub mod data;
pub mod http;
pub mod market;
pub mod netns;
pub mod peer;
pub mod program;
pub mod scratch;
pub mod skip;
pub mod tracker;
pub mod udp_tracker;
