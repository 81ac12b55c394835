//! The first 68 bytes of a connection (BEP 3), with the reserved bits that we know.

use thiserror::Error;

/// Length of a handshake, in bytes (BEP 3).
pub const HANDSHAKE_LEN: usize = 68;

/// What every handshake begins with: the length of the name, and the name.
const PREFIX: &[u8; 20] = b"\x13BitTorrent protocol";

/// The 20 bytes that name a torrent on the wire: the SHA-1 of a v1 info dict, or the first 20 bytes
/// of the SHA-256 of a v2 one (BEP 52). A hybrid torrent has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireId(pub [u8; 20]);

/// The 20 bytes by which a client names itself (BEP 20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub [u8; 20]);

impl PeerId {
    /// Whether the peer says that it runs this client. It is a hint for scheduling and never for
    /// trust: anyone can say so.
    pub fn is_ours(&self) -> bool {
        self.0.starts_with(b"-RS")
    }
}

/// The eight reserved bytes of the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reserved(pub [u8; 8]);

impl Reserved {
    /// What this client speaks: extension protocol, fast extension, and v2 upgrade if the torrent
    /// has a v2 view.
    pub fn ours(v2: bool) -> Self {
        let last = 0x04 | if v2 { 0x10 } else { 0 };
        Self([0, 0, 0, 0, 0, 0x10, 0, last])
    }

    /// Extension protocol (BEP 10).
    pub fn extensions(self) -> bool {
        self.0[5] & 0x10 != 0
    }

    /// Fast extension (BEP 6).
    pub fn fast(self) -> bool {
        self.0[7] & 0x04 != 0
    }

    /// The sender of a v1 wire id can speak v2 as well (BEP 52, upgrade path).
    pub fn v2(self) -> bool {
        self.0[7] & 0x10 != 0
    }

    /// The same, with what only this client reads, and only of its own kind: the number of a connection
    /// among those of one peer for one torrent, and how many shards the sender has (0: one). Two bytes
    /// that no BEP has a use for; a stock client has zeros there.
    pub fn with_lane(mut self, lane: u8, shards: u8) -> Self {
        (self.0[2], self.0[3]) = (lane, shards);
        self
    }

    /// The number of the connection, see [`Reserved::with_lane`].
    pub fn lane(self) -> u8 {
        self.0[2]
    }

    /// How many shards the sender has; 0 stands for one.
    pub fn shards(self) -> u8 {
        self.0[3]
    }

    /// What both sides speak.
    pub fn and(self, other: Self) -> Self {
        let mut both = self;
        both.0.iter_mut().zip(other.0).for_each(|(bits, others)| *bits &= others);
        both
    }
}

/// A handshake, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handshake {
    /// What the sender speaks.
    pub reserved: Reserved,
    /// Which torrent it wants to talk about.
    pub wire_id: WireId,
    /// Who it says it is.
    pub peer_id: PeerId,
}

/// Why bytes are no handshake.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HandshakeError {
    /// Another protocol, or an encrypted stream.
    #[error("peer does not speak the BitTorrent protocol: byte {at} differs")]
    OtherProtocol {
        /// Position of the first wrong byte.
        at: usize,
    },
}

impl Handshake {
    /// The bytes for the wire.
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut bytes = [0; HANDSHAKE_LEN];
        bytes[..20].copy_from_slice(PREFIX);
        bytes[20..28].copy_from_slice(&self.reserved.0);
        bytes[28..48].copy_from_slice(&self.wire_id.0);
        bytes[48..].copy_from_slice(&self.peer_id.0);
        bytes
    }

    /// Reads a handshake.
    ///
    /// # Errors
    /// [`HandshakeError::OtherProtocol`] if it does not begin as BEP 3 says.
    pub fn decode(bytes: &[u8; HANDSHAKE_LEN]) -> Result<Self, HandshakeError> {
        Self::check_prefix(bytes)?;
        let mut handshake = Self {
            reserved: Reserved::default(),
            wire_id: WireId([0; 20]),
            peer_id: PeerId([0; 20]),
        };
        handshake.reserved.0.copy_from_slice(&bytes[20..28]);
        handshake.wire_id.0.copy_from_slice(&bytes[28..48]);
        handshake.peer_id.0.copy_from_slice(&bytes[48..]);
        Ok(handshake)
    }

    /// Checks as much of the fixed beginning as has arrived, so that a peer with another protocol
    /// is refused at its first wrong byte and not after five seconds.
    ///
    /// # Errors
    /// [`HandshakeError::OtherProtocol`].
    pub fn check_prefix(bytes: &[u8]) -> Result<(), HandshakeError> {
        match bytes.iter().zip(PREFIX).position(|(found, expected)| found != expected) {
            Some(at) => Err(HandshakeError::OtherProtocol { at }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Handshake {
        Handshake {
            reserved: Reserved::ours(true),
            wire_id: WireId(std::array::from_fn(|i| i as u8)),
            peer_id: PeerId(*b"-RS0100-abcdefghijkl"),
        }
    }

    #[test]
    fn a_handshake_survives_the_wire() {
        let sent = example();
        let bytes = sent.encode();
        assert_eq!(&bytes[..28], b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x14");
        assert_eq!(Handshake::decode(&bytes), Ok(sent));
        assert!(sent.reserved.extensions() && sent.reserved.fast() && sent.reserved.v2());
        assert!(!Reserved::ours(false).v2());
        assert!(sent.peer_id.is_ours());
    }

    #[test]
    fn another_protocol_is_refused_at_its_first_byte() {
        assert_eq!(
            Handshake::check_prefix(b"GET / HTTP/1.1"),
            Err(HandshakeError::OtherProtocol { at: 0 })
        );
        assert_eq!(Handshake::check_prefix(b"\x13BitTorrent"), Ok(()));
        let mut bytes = example().encode();
        bytes[19] = b'L';
        assert_eq!(Handshake::decode(&bytes), Err(HandshakeError::OtherProtocol { at: 19 }));
    }
}
