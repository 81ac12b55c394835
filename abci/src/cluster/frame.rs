//! What travels between nodes: frames on TCP, and the handshake that opens a connection.
//!
//! ```text
//! frame = length u32 | kind u8 | body          (length counts kind and body)
//! ```
//! The length is checked against the cap of the connection before anything is read, and memory
//! grows with the bytes that arrive, never with the number claimed.
//!
//! Handshake: both sides send a [`Hello`] with a fresh nonce, then sign both. The signed bytes name
//! the genesis and the direction, so a signature proves a key to one peer in one connection.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::certificate::{ChainBlock, TX_LEN_BYTES_MAX};
use super::message::Message;
use super::store::CertifiedBlock;
use crate::codec::{CodecError, Reader, put_bytes, put_len};

/// Longest frame between members: a few whole blocks.
pub const FRAME_LEN_BYTES_MAX: usize = 4 << 20;
/// Longest frame that a peer we do not know may send: one transaction.
pub const FRAME_LEN_BYTES_MAX_UNKNOWN: usize = TX_LEN_BYTES_MAX + 64;
/// Most blocks in one answer; the answer's bytes are bounded by [`BLOCKS_LEN_BYTES_MAX`] too.
pub const BLOCKS_MAX: usize = 256;
/// An answer is closed when it holds this many bytes: one more block always fits the frame.
pub const BLOCKS_LEN_BYTES_MAX: usize = 1 << 20;
/// Longest genesis text.
pub const GENESIS_LEN_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(
    BLOCKS_LEN_BYTES_MAX + CertifiedBlock::ENCODED_LEN_BYTES_MAX + 64 < FRAME_LEN_BYTES_MAX
);

/// One message on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// "My last committed block is this high." Sent on connecting and after every commit.
    Status {
        /// That height.
        height: u64,
    },
    /// A message of the consensus protocol.
    Consensus(Message),
    /// A proposed block, in the round in which it is proposed.
    Body {
        /// The round.
        round: u32,
        /// The block.
        block: Box<ChainBlock>,
    },
    /// "I began this height": the others begin it too, so that no proposer oversleeps.
    Wake {
        /// The height.
        height: u64,
    },
    /// A transaction.
    Tx(Vec<u8>),
    /// Asks for blocks from a height on.
    GetBlocks {
        /// The first one wanted.
        from: u64,
    },
    /// Encoded [`CertifiedBlock`]s of consecutive heights, maybe none, and the sender's height.
    Blocks {
        /// Height of the first.
        from: u64,
        /// The encoded blocks.
        blocks: Vec<Vec<u8>>,
        /// The sender's last height.
        height: u64,
    },
    /// Asks for the genesis.
    GetGenesis,
    /// The text of the genesis.
    Genesis(Vec<u8>),
    /// Asks for the members on the sender's ledger.
    GetMembers,
    /// Keys and consensus addresses.
    Members(Vec<([u8; 32], SocketAddr)>),
    /// A sign of life, sent when there was nothing else to say for a while.
    Ping,
}

/// Why bytes from a peer are refused. Every one of these ends the connection.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The connection ended or stalled.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A length of 0 or above the connection's cap.
    #[error("a frame of {found} bytes; {max} are allowed here")]
    BadLength {
        /// The claimed length.
        found: u64,
        /// The cap.
        max: u64,
    },
}

impl Frame {
    /// The frame with its length in front.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        self.encode(&mut out);
        let len = u32::try_from(out.len() - 4).expect("our own frames are bounded");
        out[..4].copy_from_slice(&len.to_le_bytes());
        out
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Status { height } => {
                out.push(1);
                out.extend_from_slice(&height.to_le_bytes());
            }
            Self::Consensus(message) => {
                out.push(2);
                message.encode(out);
            }
            Self::Body { round, block } => {
                out.push(3);
                out.extend_from_slice(&round.to_le_bytes());
                block.encode(out);
            }
            Self::Wake { height } => {
                out.push(4);
                out.extend_from_slice(&height.to_le_bytes());
            }
            Self::Tx(tx) => {
                out.push(5);
                put_bytes(out, tx);
            }
            Self::GetBlocks { from } => {
                out.push(6);
                out.extend_from_slice(&from.to_le_bytes());
            }
            Self::Blocks { from, blocks, height } => {
                out.push(7);
                out.extend_from_slice(&from.to_le_bytes());
                out.extend_from_slice(&height.to_le_bytes());
                put_len(out, blocks.len());
                blocks.iter().for_each(|block| put_bytes(out, block));
            }
            Self::GetGenesis => out.push(8),
            Self::Genesis(text) => {
                out.push(9);
                put_bytes(out, text);
            }
            Self::GetMembers => out.push(10),
            Self::Members(members) => {
                out.push(11);
                put_len(out, members.len());
                for (key, addr) in members {
                    out.extend_from_slice(key);
                    put_addr(out, addr);
                }
            }
            Self::Ping => out.push(12),
        }
    }

    /// Reads kind and body, to the last byte.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let frame = match reader.u8()? {
            1 => Self::Status { height: reader.u64()? },
            2 => Self::Consensus(Message::decode(&mut reader)?),
            3 => Self::Body {
                round: reader.u32()?,
                block: Box::new(ChainBlock::decode(&mut reader)?),
            },
            4 => Self::Wake { height: reader.u64()? },
            5 => Self::Tx(reader.bytes(TX_LEN_BYTES_MAX)?.to_vec()),
            6 => Self::GetBlocks { from: reader.u64()? },
            7 => {
                let (from, height) = (reader.u64()?, reader.u64()?);
                let count = reader.count(BLOCKS_MAX, 4)?;
                let mut blocks = Vec::with_capacity(count);
                for _ in 0..count {
                    blocks.push(reader.bytes(CertifiedBlock::ENCODED_LEN_BYTES_MAX)?.to_vec());
                }
                Self::Blocks { from, blocks, height }
            }
            8 => Self::GetGenesis,
            9 => Self::Genesis(reader.bytes(GENESIS_LEN_BYTES_MAX)?.to_vec()),
            10 => Self::GetMembers,
            11 => {
                let count = reader.count(1 << 14, 38)?;
                let mut members = Vec::with_capacity(count);
                for _ in 0..count {
                    members.push((reader.array()?, take_addr(&mut reader)?));
                }
                Self::Members(members)
            }
            12 => Self::Ping,
            found => return Err(CodecError::UnknownTag { found }),
        };
        reader.finish()?;
        Ok(frame)
    }

    /// Reads one frame of at most `len_bytes_max` bytes.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn read_from(input: &mut impl Read, len_bytes_max: usize) -> Result<Self, FrameError> {
        let bytes = read_counted(input, len_bytes_max)?;
        Ok(Self::decode(&bytes)?)
    }
}

/// How much is read at once: what a peer must send before we hold more.
const READ_STEP_LEN_BYTES: usize = 64 << 10;

fn read_counted(input: &mut impl Read, len_bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len == 0 || len > len_bytes_max {
        return Err(FrameError::BadLength { found: len as u64, max: len_bytes_max as u64 });
    }
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let start = bytes.len();
        bytes.resize(len.min(start + READ_STEP_LEN_BYTES), 0);
        input.read_exact(&mut bytes[start..])?;
    }
    Ok(bytes)
}

/// The first message of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The market.
    pub genesis_hash: [u8; 32],
    /// The sender's node key, not yet proven.
    pub key: [u8; 32],
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// Where the sender can be dialled, if at all.
    pub advertise: Option<SocketAddr>,
}

impl Hello {
    const MAGIC: &[u8; 8] = b"RSMESH01";
    /// Longest encoding.
    pub const LEN_BYTES_MAX: usize = 8 + 96 + 1 + 19;

    /// The hello with its length in front.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut body = Self::MAGIC.to_vec();
        body.extend_from_slice(&self.genesis_hash);
        body.extend_from_slice(&self.key);
        body.extend_from_slice(&self.nonce);
        body.push(u8::from(self.advertise.is_some()));
        if let Some(addr) = &self.advertise {
            put_addr(&mut body, addr);
        }
        let mut out = Vec::new();
        put_bytes(&mut out, &body);
        out
    }

    /// Reads the peer's hello.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn read_from(input: &mut impl Read) -> Result<Self, FrameError> {
        let bytes = read_counted(input, Self::LEN_BYTES_MAX)?;
        let mut reader = Reader::new(&bytes);
        let magic = reader.array::<8>()?;
        if magic != *Self::MAGIC {
            return Err(CodecError::UnknownTag { found: magic[0] }.into());
        }
        let (genesis_hash, key, nonce) = (reader.array()?, reader.array()?, reader.array()?);
        let advertise = reader.bool()?.then(|| take_addr(&mut reader)).transpose()?;
        reader.finish()?;
        Ok(Self { genesis_hash, key, nonce, advertise })
    }
}

/// The bytes that one side signs to prove its key: the market, who dialled whom, and both nonces.
pub fn auth_bytes(dialler: &Hello, acceptor: &Hello, signer_is_dialler: bool) -> Vec<u8> {
    let mut bytes = b"ringseed/mesh/1".to_vec();
    bytes.push(u8::from(signer_is_dialler));
    bytes.extend_from_slice(&dialler.genesis_hash);
    for hello in [dialler, acceptor] {
        bytes.extend_from_slice(&hello.key);
        bytes.extend_from_slice(&hello.nonce);
    }
    bytes
}

fn put_addr(out: &mut Vec<u8>, addr: &SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_le_bytes());
}

fn take_addr(reader: &mut Reader<'_>) -> Result<SocketAddr, CodecError> {
    let ip = match reader.u8()? {
        4 => IpAddr::from(reader.array::<4>()?),
        6 => IpAddr::from(reader.array::<16>()?),
        found => return Err(CodecError::UnknownTag { found }),
    };
    Ok(SocketAddr::new(ip, reader.u16()?))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::certificate::{BlockId, VoteKind};
    use crate::cluster::message::{PolkaCertificate, SignedProposal, SignedVote};

    fn any_message() -> impl Strategy<Value = Message> {
        let vote = (any::<bool>(), any::<u64>(), any::<u32>(), any::<Option<[u8; 32]>>());
        let vote = vote.prop_map(|(is_prevote, height, round, id)| {
            let kind = if is_prevote { VoteKind::Prevote } else { VoteKind::Precommit };
            let id = id.map(BlockId);
            Message::Vote(SignedVote { kind, height, round, id, key: [1; 32], signature: [2; 64] })
        });
        let proposal = (any::<u64>(), any::<u32>(), any::<Option<u32>>(), any::<[u8; 32]>());
        let proposal = proposal.prop_map(|(height, round, pol_round, id)| {
            let (key, signature) = ([3; 32], [4; 64]);
            let id = BlockId(id);
            Message::Proposal(SignedProposal { height, round, pol_round, id, key, signature })
        });
        let polka = (any::<u64>(), any::<u32>(), vec(any::<[u8; 32]>(), 0..5));
        let polka = polka.prop_map(|(height, round, keys)| {
            let signatures = keys.into_iter().map(|key| (key, [5; 64])).collect();
            let id = BlockId([6; 32]);
            Message::Polka(PolkaCertificate { height, round, id, signatures })
        });
        prop_oneof![vote, proposal, polka]
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            any::<u64>().prop_map(|height| Frame::Status { height }),
            any_message().prop_map(Frame::Consensus),
            any::<u64>().prop_map(|height| Frame::Wake { height }),
            vec(any::<u8>(), 0..300).prop_map(Frame::Tx),
            any::<u64>().prop_map(|from| Frame::GetBlocks { from }),
            (any::<u64>(), vec(vec(any::<u8>(), 0..50), 0..5), any::<u64>())
                .prop_map(|(from, blocks, height)| Frame::Blocks { from, blocks, height }),
            vec(any::<u8>(), 0..100).prop_map(Frame::Genesis),
            vec((any::<[u8; 32]>(), any::<[u8; 4]>(), any::<u16>()), 0..4).prop_map(|members| {
                let member = |(key, ip, port)| (key, SocketAddr::new(IpAddr::from(ip), port));
                Frame::Members(members.into_iter().map(member).collect())
            }),
            Just(Frame::GetGenesis),
            Just(Frame::GetMembers),
            Just(Frame::Ping),
        ]
    }

    proptest! {
        #[test]
        fn frames_round_trip(frames in vec(any_frame(), 1..8)) {
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
            let mut input = bytes.as_slice();
            for frame in frames {
                prop_assert_eq!(Frame::read_from(&mut input, FRAME_LEN_BYTES_MAX).unwrap(), frame);
            }
            prop_assert!(input.is_empty());
        }

        /// Whatever comes, the decoder answers; and what it accepts it would have written itself.
        #[test]
        fn junk_never_panics(bytes in vec(any::<u8>(), 0..400)) {
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(&frame.to_bytes()[4..], bytes.as_slice());
            }
            let _ = Frame::read_from(&mut bytes.as_slice(), FRAME_LEN_BYTES_MAX);
            let _ = Hello::read_from(&mut bytes.as_slice());
        }

        /// A good frame with one byte changed or cut short is another frame or an error.
        #[test]
        fn damaged_frames_never_panic(frame in any_frame(), at in any::<usize>(), bit in 0..8u8) {
            let mut bytes = frame.to_bytes();
            let at = at % bytes.len();
            let _ = Frame::decode(&bytes[4..][..at.saturating_sub(4)]);
            bytes[at] ^= 1 << bit;
            let _ = Frame::read_from(&mut bytes.as_slice(), FRAME_LEN_BYTES_MAX);
        }
    }

    #[test]
    fn a_claimed_length_is_refused_before_anything_is_read() {
        let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        let result = Frame::read_from(&mut bytes, FRAME_LEN_BYTES_MAX);
        assert!(matches!(result, Err(FrameError::BadLength { found: 0xffff_ffff, .. })));
        let mut bytes: &[u8] = &[0, 0, 0, 0];
        let result = Frame::read_from(&mut bytes, FRAME_LEN_BYTES_MAX);
        assert!(matches!(result, Err(FrameError::BadLength { found: 0, .. })));
    }

    #[test]
    fn memory_grows_with_what_arrives() {
        // 4 MiB claimed, 10 bytes sent: one step is allocated, and the end of input is told.
        let mut bytes = (FRAME_LEN_BYTES_MAX as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[1; 10]);
        let result = Frame::read_from(&mut bytes.as_slice(), FRAME_LEN_BYTES_MAX);
        assert!(matches!(result, Err(FrameError::Io(_))));
    }
}
