//! Why a connection ended, and whose fault it was.

use std::time::Duration;

use thiserror::Error;

use super::extension::ExtensionError;
use super::handshake::{HandshakeError, WireId};
use super::message::{DecodeError, HashRequest, RawBlock};
use crate::bitfield::BitfieldError;
use crate::geometry::{BlockRef, GeometryError};

/// Why a peer connection ended.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LinkError {
    /// The peer does not begin as BEP 3 says: another protocol, or the encrypted handshake (MSE) that
    /// stock clients try first.
    #[error("peer sent no plain BitTorrent handshake")]
    Handshake(#[from] HandshakeError),
    /// The peer answered for a torrent that we did not ask for.
    #[error("peer answered for another torrent {found:?}")]
    WrongTorrent {
        /// What it named.
        found: WireId,
    },
    /// We have called ourselves.
    #[error("the peer is this node")]
    SelfConnection,
    /// The handshake was not complete in time.
    #[error("handshake not complete after {after:?}")]
    HandshakeTimeout {
        /// The limit.
        after: Duration,
    },
    /// The peer sent bytes that are no message.
    #[error("peer broke the wire protocol")]
    Decode(#[from] DecodeError),
    /// The peer sent an extension message that cannot be read.
    #[error("peer broke the extension protocol")]
    Extension(#[from] ExtensionError),
    /// A piece or block that the torrent does not have.
    #[error("peer named what the torrent does not have: {0}")]
    Geometry(#[from] GeometryError),
    /// A bitfield that does not fit the torrent.
    #[error("peer sent a wrong bitfield")]
    Bitfield(#[from] BitfieldError),
    /// A have-all or have-none after the peer had already said what it has.
    #[error("peer said twice what it has")]
    AvailabilityTwice,
    /// A have-all or have-none after other messages (BEP 6: only the first may be one).
    #[error("peer said what it has behind other messages")]
    AvailabilityLate,
    /// A block that was never asked for.
    #[error("peer sent a block that was not requested: {block:?}")]
    BlockNotRequested {
        /// The block as it came.
        block: RawBlock,
    },
    /// A block that runs into a pad, and the pad is not zeros (BEP 47).
    #[error("peer sent a pad that is not zeros behind {block:?}")]
    PadNotZero {
        /// What lies before the pad.
        block: BlockRef,
    },
    /// A reject of a request that was never sent.
    #[error("peer rejected what was not requested: {block:?}")]
    RejectNotRequested {
        /// The block as it came.
        block: RawBlock,
    },
    /// Hashes, or their reject, that were never asked for.
    #[error("peer answered a hash request that was not sent: {request:?}")]
    HashesNotRequested {
        /// The request as it came.
        request: Box<HashRequest>,
    },
    /// More of something than an honest peer sends.
    #[error("peer floods us with {what}")]
    Flood {
        /// Of what.
        what: &'static str,
    },
    /// The peer sent nothing, not even a keep-alive.
    #[error("peer was silent for {after:?}")]
    Idle {
        /// The limit.
        after: Duration,
    },
    /// A message was begun and comes too slowly.
    #[error("peer sent a message at less than 1 KiB/s for {after:?}")]
    Trickle {
        /// The limit.
        after: Duration,
    },
    /// The peer takes nothing of what we send.
    #[error("peer took nothing for {after:?}")]
    SendStalled {
        /// The limit.
        after: Duration,
    },
}

/// Whose fault the end of a connection was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The peer broke a rule: do not dial it again soon; several times: ban it.
    Peer,
    /// Nobody in particular: dial again later.
    Network,
    /// We did something pointless: do not dial this address again.
    Us,
}

impl LinkError {
    /// Tells the swarm whether to ban the peer or to dial it again.
    pub fn blame(&self) -> Blame {
        match self {
            // An encrypted handshake (MSE) begins with bytes that look like chance, and so does a stranger
            // at the wrong door: neither is a breach. The other side tries again in plain.
            Self::Handshake(_)
            | Self::HandshakeTimeout { .. }
            | Self::Idle { .. }
            | Self::Trickle { .. }
            | Self::SendStalled { .. } => Blame::Network,
            Self::SelfConnection => Blame::Us,
            Self::WrongTorrent { .. }
            | Self::Decode(_)
            | Self::Extension(_)
            | Self::Geometry(_)
            | Self::Bitfield(_)
            | Self::AvailabilityTwice
            | Self::AvailabilityLate
            | Self::BlockNotRequested { .. }
            | Self::PadNotZero { .. }
            | Self::RejectNotRequested { .. }
            | Self::HashesNotRequested { .. }
            | Self::Flood { .. } => Blame::Peer,
        }
    }

    /// A word for logs and metrics that stays the same over versions and values.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Handshake(_) => "bad-handshake",
            Self::WrongTorrent { .. } => "wrong-torrent",
            Self::SelfConnection => "self-connection",
            Self::HandshakeTimeout { .. } => "handshake-timeout",
            Self::Decode(_) => "bad-message",
            Self::Extension(_) => "bad-extension",
            Self::Geometry(_) => "out-of-range",
            Self::Bitfield(_) => "bad-bitfield",
            Self::AvailabilityTwice => "bitfield-twice",
            Self::AvailabilityLate => "bitfield-late",
            Self::BlockNotRequested { .. } => "unasked-block",
            Self::PadNotZero { .. } => "bad-pad",
            Self::RejectNotRequested { .. } => "unasked-reject",
            Self::HashesNotRequested { .. } => "unasked-hashes",
            Self::Flood { what: "requests" } => "flood-requests",
            Self::Flood { what: "haves" } => "flood-haves",
            Self::Flood { what: "questions" } => "flood-questions",
            Self::Flood { what: "chatter" } => "flood-chatter",
            Self::Flood { what: "chokes" } => "flood-chokes",
            Self::Flood { .. } => "flood",
            Self::Idle { .. } => "idle",
            Self::Trickle { .. } => "trickle",
            Self::SendStalled { .. } => "send-stalled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<(LinkError, &'static str, Blame)> {
        let after = Duration::from_secs(9);
        let block = RawBlock { piece: 1, begin: 2, len: 3 };
        let request = HashRequest {
            pieces_root: [0; 32],
            base_layer: 0,
            index: 0,
            length: 2,
            proof_layers: 0,
        };
        let flood = |what| LinkError::Flood { what };
        let id = 3;
        vec![
            (HandshakeError::OtherProtocol { at: 1 }.into(), "bad-handshake", Blame::Network),
            (LinkError::WrongTorrent { found: WireId([1; 20]) }, "wrong-torrent", Blame::Peer),
            (LinkError::SelfConnection, "self-connection", Blame::Us),
            (LinkError::HandshakeTimeout { after }, "handshake-timeout", Blame::Network),
            (DecodeError::HashesNotAsked.into(), "bad-message", Blame::Peer),
            (ExtensionError::WrongLen { id, len_bytes: 9 }.into(), "bad-extension", Blame::Peer),
            (GeometryError::Empty.into(), "out-of-range", Blame::Peer),
            (BitfieldError::SpareBits.into(), "bad-bitfield", Blame::Peer),
            (LinkError::AvailabilityTwice, "bitfield-twice", Blame::Peer),
            (LinkError::AvailabilityLate, "bitfield-late", Blame::Peer),
            (LinkError::BlockNotRequested { block }, "unasked-block", Blame::Peer),
            (LinkError::RejectNotRequested { block }, "unasked-reject", Blame::Peer),
            (
                LinkError::HashesNotRequested { request: Box::new(request) },
                "unasked-hashes",
                Blame::Peer,
            ),
            (flood("requests"), "flood-requests", Blame::Peer),
            (flood("haves"), "flood-haves", Blame::Peer),
            (flood("questions"), "flood-questions", Blame::Peer),
            (flood("chatter"), "flood-chatter", Blame::Peer),
            (flood("chokes"), "flood-chokes", Blame::Peer),
            (flood("something new"), "flood", Blame::Peer),
            (LinkError::Idle { after }, "idle", Blame::Network),
            (LinkError::Trickle { after }, "trickle", Blame::Network),
            (LinkError::SendStalled { after }, "send-stalled", Blame::Network),
        ]
    }

    /// Operators' filters and the door's penalties hang on these words: they stay what they are.
    #[test]
    fn every_end_has_its_own_word_and_one_at_fault() {
        let mut words = std::collections::BTreeSet::new();
        for (error, code, blame) in all() {
            assert_eq!((error.code(), error.blame()), (code, blame), "{error}");
            assert!(words.insert(code), "{code} stands for two things");
            assert!(!error.to_string().is_empty());
        }
    }
}
