//! What hostile bytes meet: one function per way in, which a fuzzer calls (`targets/`, built and run by
//! `run.sh`) and an ordinary test replays over the committed corpora (`tests/replay.rs`).
//!
//! A body never only looks for panics: it knows what must come out, from a slow decoder, a model, a
//! second run with other cuts, or from what it put in itself. Where bytes alone would not get past a
//! checksum or a signature, the input tells what to build and how to damage it ([`source`]).
#![forbid(unsafe_code)]

pub mod abci;
pub mod bencode;
pub mod bitfield;
pub mod extension;
pub mod frames;
pub mod genesis;
mod geometry;
pub mod handshake;
pub mod hashes;
pub mod journal;
pub mod lanes;
pub mod ledger_blocks;
pub mod ledger_tx;
pub mod magnet;
mod market;
pub mod merkle;
pub mod message;
pub mod metadata;
pub mod metainfo;
pub mod record_log;
mod scratch;
pub mod settings;
pub mod sidecar;
pub mod snapshot;
pub mod source;
pub mod wire;

/// A body and what its input looks like.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the target, of its module and of its corpus.
    pub name: &'static str,
    /// The body: panics when what must hold does not.
    pub run: fn(&[u8]),
}

/// All targets. `targets.txt` lists the same with the longest input of each, for `run.sh`.
pub const TARGETS: &[Target] = &[
    Target { name: "bencode", run: bencode::run },
    Target { name: "metainfo", run: metainfo::run },
    Target { name: "magnet", run: magnet::run },
    Target { name: "handshake", run: handshake::run },
    Target { name: "wire", run: wire::run },
    Target { name: "message", run: message::run },
    Target { name: "extension", run: extension::run },
    Target { name: "metadata", run: metadata::run },
    Target { name: "hashes", run: hashes::run },
    Target { name: "merkle", run: merkle::run },
    Target { name: "bitfield", run: bitfield::run },
    Target { name: "journal", run: journal::run },
    Target { name: "sidecar", run: sidecar::run },
    Target { name: "ledger_tx", run: ledger_tx::run },
    Target { name: "ledger_blocks", run: ledger_blocks::run },
    Target { name: "snapshot", run: snapshot::run },
    Target { name: "genesis", run: genesis::run },
    Target { name: "frames", run: frames::run },
    Target { name: "abci", run: abci::run },
    Target { name: "record_log", run: record_log::run },
    Target { name: "lanes", run: lanes::run },
    Target { name: "settings", run: settings::run },
];
