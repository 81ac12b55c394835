//! Scripted attackers against `ringseed seed` while it serves honest peers: the process lives, its memory
//! keeps to its cap, honest peers go on, and whoever attacks is gone in time, named in the log and counted.
//!
//! Attacks are numbered as in the threat model (B4 to B16). Attackers come from their own addresses of
//! 127.1.0.0/16, honest peers from 127.9.0.0/16. With `RINGSEED_REQUIRE=1` honest peers must keep 80 % of what
//! they get without attackers, in rounds that alternate.
#![forbid(unsafe_code)]

#[path = "hostile/messages.rs"]
mod messages;
#[path = "hostile/reflection.rs"]
mod reflection;
#[path = "hostile/seed.rs"]
mod seed;
#[path = "hostile/shares.rs"]
mod shares;
#[path = "hostile/storms.rs"]
mod storms;
