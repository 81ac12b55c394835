//! The messages of a peer connection: BEP 3, 6 (fast), 10 (extensions), 52 (hashes).
//!
//! A [`Message`] holds the numbers as they came. They are checked against a torrent's geometry by
//! [`Channel`](super::channel::Channel), which alone turns them into blocks and pieces. Lengths are
//! checked here, per message id, before anything is kept.

use thiserror::Error;

use crate::geometry::BLOCK_LEN;

/// No message may be longer, whatever its id, in bytes. The longest honest one is the bitfield of
/// two million pieces (256 KiB).
pub const MESSAGE_LEN_MAX: u32 = 1 << 20;
/// Longest extension message: 16 KiB of metadata (BEP 9), and its dictionary. In bytes, with the id.
pub const EXTENDED_LEN_MAX: u32 = 16 * 1024 + 1024;
/// Longest message with an id that we do not know, in bytes; it is skipped.
pub const UNKNOWN_LEN_MAX: u32 = EXTENDED_LEN_MAX;
/// Length prefix, id, piece index and begin: what precedes the payload of a `piece` message.
pub const PIECE_HEADER_LEN: usize = 13;
/// Length of a `hash request` after the length prefix, in bytes.
const HASH_REQUEST_LEN: u32 = 1 + 32 + 16;

/// Message ids (BEP 3, 6, 10, 52).
pub mod id {
    #![allow(missing_docs)] // the names are those of the BEPs
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const CANCEL: u8 = 8;
    pub const SUGGEST: u8 = 13;
    pub const HAVE_ALL: u8 = 14;
    pub const HAVE_NONE: u8 = 15;
    pub const REJECT: u8 = 16;
    pub const ALLOWED_FAST: u8 = 17;
    pub const EXTENDED: u8 = 20;
    pub const HASH_REQUEST: u8 = 21;
    pub const HASHES: u8 = 22;
    pub const HASH_REJECT: u8 = 23;
}

/// Piece index, begin and length as they came; see [`crate::geometry::Geometry::block`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawBlock {
    /// Piece index.
    pub piece: u32,
    /// Position in the piece, in bytes.
    pub begin: u32,
    /// Length in bytes.
    pub len: u32,
}

impl From<crate::geometry::BlockRef> for RawBlock {
    fn from(block: crate::geometry::BlockRef) -> Self {
        Self { piece: block.piece().get(), begin: block.begin(), len: block.len() }
    }
}

/// A request for hashes of one file's tree (BEP 52).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HashRequest {
    /// Root of the file's tree.
    pub pieces_root: [u8; 32],
    /// Layers above the leaves at which the wanted hashes lie.
    pub base_layer: u32,
    /// First wanted hash of that layer.
    pub index: u32,
    /// How many hashes of that layer.
    pub length: u32,
    /// How many layers of ancestors the proof spans.
    pub proof_layers: u32,
}

/// One message, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Length zero: the peer lives.
    KeepAlive,
    /// The sender answers no requests until it unchokes.
    Choke,
    /// The sender answers requests.
    Unchoke,
    /// The sender wants something of ours.
    Interested,
    /// The sender wants nothing of ours.
    NotInterested,
    /// The sender has this piece.
    Have(u32),
    /// Which pieces the sender has, a bit each.
    Bitfield(&'a [u8]),
    /// Asks for a block.
    Request(RawBlock),
    /// A block.
    Piece {
        /// Piece index.
        piece: u32,
        /// Position in the piece, in bytes.
        begin: u32,
        /// The payload.
        data: &'a [u8],
    },
    /// Takes a request back.
    Cancel(RawBlock),
    /// A piece that is cheap for the sender (BEP 6).
    Suggest(u32),
    /// The sender has everything (BEP 6).
    HaveAll,
    /// The sender has nothing (BEP 6).
    HaveNone,
    /// A request will not be answered (BEP 6).
    Reject(RawBlock),
    /// A piece that may be asked for while choked (BEP 6).
    AllowedFast(u32),
    /// An extension message (BEP 10); `id` 0 is the extension handshake.
    Extended {
        /// Extended id, as *we* have numbered our extensions.
        id: u8,
        /// The rest.
        payload: &'a [u8],
    },
    /// Asks for hashes (BEP 52).
    HashRequest(HashRequest),
    /// Hashes of the asked layer, then the proof; 32 bytes each (BEP 52).
    Hashes {
        /// What was asked.
        request: HashRequest,
        /// The hashes.
        hashes: &'a [u8],
    },
    /// Hashes will not be sent (BEP 52).
    HashReject(HashRequest),
    /// An id that we do not know, skipped.
    Unknown {
        /// The id.
        id: u8,
    },
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than a message of this kind can be.
    #[error("message {id:?} of {len_bytes} bytes is longer than {max_bytes}")]
    TooLong {
        /// Message id, if it was looked at.
        id: Option<u8>,
        /// Length as claimed.
        len_bytes: u32,
        /// What is allowed now.
        max_bytes: u32,
    },
    /// Not the length that a message of this kind has.
    #[error("message {id} of {len_bytes} bytes has the wrong length")]
    WrongLen {
        /// Message id.
        id: u8,
        /// Length as claimed.
        len_bytes: u32,
    },
    /// Hashes that nobody has asked for.
    #[error("hashes that were not asked for")]
    HashesNotAsked,
}

/// What the state of a connection allows in the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Exact length of a bitfield's payload, in bytes, once the geometry is known.
    pub bitfield_len: Option<u32>,
    /// Most hashes that an outstanding hash request can bring, proof included; 0 for none.
    pub hashes_max: u32,
}

/// What must arrive before the next step can be taken with the message at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// At least so many bytes from the beginning of the message.
    NeedsBytes(usize),
    /// The message is complete; its length with the prefix.
    Complete(usize),
    /// The header of a `piece` message is complete ([`PIECE_HEADER_LEN`] bytes); its payload follows.
    PieceHeader(RawBlock),
}

/// Looks at the beginning of a message and checks its length as soon as it can.
///
/// # Errors
/// [`DecodeError`] when the length is impossible for the id; found before any of the body is kept.
pub fn frame(prefix: &[u8], limits: FrameLimits) -> Result<Frame, DecodeError> {
    let Some(len_bytes) = read_u32(prefix, 0) else {
        return Ok(Frame::NeedsBytes(4));
    };
    if len_bytes == 0 {
        return Ok(Frame::Complete(4));
    }
    if len_bytes > MESSAGE_LEN_MAX {
        return Err(DecodeError::TooLong { id: None, len_bytes, max_bytes: MESSAGE_LEN_MAX });
    }
    let Some(&message_id) = prefix.get(4) else {
        return Ok(Frame::NeedsBytes(5));
    };
    check_len(message_id, len_bytes, limits)?;
    if message_id == id::PIECE {
        let (Some(piece), Some(begin)) = (read_u32(prefix, 5), read_u32(prefix, 9)) else {
            return Ok(Frame::NeedsBytes(PIECE_HEADER_LEN));
        };
        return Ok(Frame::PieceHeader(RawBlock { piece, begin, len: len_bytes - 9 }));
    }
    let total = 4 + len_bytes as usize;
    Ok(if prefix.len() < total { Frame::NeedsBytes(total) } else { Frame::Complete(total) })
}

fn check_len(message_id: u8, len_bytes: u32, limits: FrameLimits) -> Result<(), DecodeError> {
    let exactly = |expected: u32| {
        let wrong = DecodeError::WrongLen { id: message_id, len_bytes };
        if len_bytes == expected { Ok(()) } else { Err(wrong) }
    };
    let between = |min: u32, max: u32| {
        if len_bytes < min {
            return Err(DecodeError::WrongLen { id: message_id, len_bytes });
        }
        let too_long = DecodeError::TooLong { id: Some(message_id), len_bytes, max_bytes: max };
        if len_bytes <= max { Ok(()) } else { Err(too_long) }
    };
    match message_id {
        id::CHOKE | id::UNCHOKE | id::INTERESTED | id::NOT_INTERESTED => exactly(1),
        id::HAVE_ALL | id::HAVE_NONE => exactly(1),
        id::HAVE | id::SUGGEST | id::ALLOWED_FAST => exactly(5),
        id::BITFIELD => match limits.bitfield_len {
            Some(expected) => exactly(1 + expected),
            None => between(2, 1 + crate::geometry::PIECE_COUNT_MAX / 8),
        },
        id::REQUEST | id::CANCEL | id::REJECT => exactly(13),
        id::PIECE => between(10, 9 + BLOCK_LEN),
        id::EXTENDED => between(2, EXTENDED_LEN_MAX),
        id::HASH_REQUEST | id::HASH_REJECT => exactly(HASH_REQUEST_LEN),
        id::HASHES if limits.hashes_max == 0 => Err(DecodeError::HashesNotAsked),
        id::HASHES => {
            between(HASH_REQUEST_LEN + 32, HASH_REQUEST_LEN + 32 * limits.hashes_max)?;
            exactly(HASH_REQUEST_LEN + (len_bytes - HASH_REQUEST_LEN) / 32 * 32)
        }
        _ => between(1, UNKNOWN_LEN_MAX),
    }
}

impl<'a> Message<'a> {
    /// Reads one message that [`frame`] has found complete: `bytes` is exactly it, with its prefix.
    /// For `piece` messages, which `frame` reports by their header, `bytes` holds the payload too.
    ///
    /// # Errors
    /// [`DecodeError`], the same that `frame` gives.
    ///
    /// # Panics
    /// If `bytes` is shorter than the message.
    pub fn decode(bytes: &'a [u8], limits: FrameLimits) -> Result<Self, DecodeError> {
        let len_bytes = read_u32(bytes, 0).expect("frame() asked for the prefix");
        if len_bytes == 0 {
            return Ok(Self::KeepAlive);
        }
        let body = &bytes[4..4 + len_bytes as usize];
        let (message_id, body) = (body[0], &body[1..]);
        check_len(message_id, len_bytes, limits)?;
        let number = |at: usize| read_u32(body, at).expect("check_len() has seen the length");
        let block = || RawBlock { piece: number(0), begin: number(4), len: number(8) };
        let hash_request = || HashRequest {
            pieces_root: body[..32].try_into().expect("32 bytes"),
            base_layer: number(32),
            index: number(36),
            length: number(40),
            proof_layers: number(44),
        };
        Ok(match message_id {
            id::CHOKE => Self::Choke,
            id::UNCHOKE => Self::Unchoke,
            id::INTERESTED => Self::Interested,
            id::NOT_INTERESTED => Self::NotInterested,
            id::HAVE => Self::Have(number(0)),
            id::BITFIELD => Self::Bitfield(body),
            id::REQUEST => Self::Request(block()),
            id::PIECE => Self::Piece { piece: number(0), begin: number(4), data: &body[8..] },
            id::CANCEL => Self::Cancel(block()),
            id::SUGGEST => Self::Suggest(number(0)),
            id::HAVE_ALL => Self::HaveAll,
            id::HAVE_NONE => Self::HaveNone,
            id::REJECT => Self::Reject(block()),
            id::ALLOWED_FAST => Self::AllowedFast(number(0)),
            id::EXTENDED => Self::Extended { id: body[0], payload: &body[1..] },
            id::HASH_REQUEST => Self::HashRequest(hash_request()),
            id::HASHES => Self::Hashes { request: hash_request(), hashes: &body[48..] },
            id::HASH_REJECT => Self::HashReject(hash_request()),
            id => Self::Unknown { id },
        })
    }

    /// Appends the bytes for the wire.
    ///
    /// # Panics
    /// If the message is longer than a length prefix can say, or is [`Message::Unknown`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::KeepAlive => out.extend_from_slice(&[0; 4]),
            Self::Choke => put(out, id::CHOKE, &[]),
            Self::Unchoke => put(out, id::UNCHOKE, &[]),
            Self::Interested => put(out, id::INTERESTED, &[]),
            Self::NotInterested => put(out, id::NOT_INTERESTED, &[]),
            Self::Have(piece) => put(out, id::HAVE, &[&piece.to_be_bytes()]),
            Self::Bitfield(bits) => put(out, id::BITFIELD, &[bits]),
            Self::Request(block) => put_block(out, id::REQUEST, block),
            Self::Piece { piece, begin, data } => {
                put(out, id::PIECE, &[&piece.to_be_bytes(), &begin.to_be_bytes(), data]);
            }
            Self::Cancel(block) => put_block(out, id::CANCEL, block),
            Self::Suggest(piece) => put(out, id::SUGGEST, &[&piece.to_be_bytes()]),
            Self::HaveAll => put(out, id::HAVE_ALL, &[]),
            Self::HaveNone => put(out, id::HAVE_NONE, &[]),
            Self::Reject(block) => put_block(out, id::REJECT, block),
            Self::AllowedFast(piece) => put(out, id::ALLOWED_FAST, &[&piece.to_be_bytes()]),
            Self::Extended { id: extended, payload } => {
                put(out, id::EXTENDED, &[&[extended], payload]);
            }
            Self::HashRequest(request) => put_hashes(out, id::HASH_REQUEST, request, &[]),
            Self::Hashes { request, hashes } => put_hashes(out, id::HASHES, request, hashes),
            Self::HashReject(request) => put_hashes(out, id::HASH_REJECT, request, &[]),
            Self::Unknown { id } => panic!("message {id} is not ours to send"),
        }
    }
}

/// The 13 bytes before the payload of a `piece` message.
pub fn piece_header(block: RawBlock) -> [u8; PIECE_HEADER_LEN] {
    let mut header = [0; PIECE_HEADER_LEN];
    header[..4].copy_from_slice(&(9 + block.len).to_be_bytes());
    header[4] = id::PIECE;
    header[5..9].copy_from_slice(&block.piece.to_be_bytes());
    header[9..].copy_from_slice(&block.begin.to_be_bytes());
    header
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(four.try_into().expect("four bytes")))
}

fn put(out: &mut Vec<u8>, message_id: u8, parts: &[&[u8]]) {
    let len = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let len = u32::try_from(len).expect("a message of ours fits its length prefix");
    out.extend_from_slice(&len.to_be_bytes());
    out.push(message_id);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn put_block(out: &mut Vec<u8>, message_id: u8, block: RawBlock) {
    let [piece, begin, len] = [block.piece, block.begin, block.len].map(u32::to_be_bytes);
    put(out, message_id, &[&piece, &begin, &len]);
}

fn put_hashes(out: &mut Vec<u8>, message_id: u8, request: HashRequest, hashes: &[u8]) {
    let numbers = [request.base_layer, request.index, request.length, request.proof_layers];
    let [base, index, length, proof] = numbers.map(u32::to_be_bytes);
    put(out, message_id, &[&request.pieces_root, &base, &index, &length, &proof, hashes]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { bitfield_len: Some(3), hashes_max: 10 };

    fn every_message() -> Vec<Message<'static>> {
        let block = RawBlock { piece: 7, begin: 16_384, len: 1000 };
        let request = HashRequest {
            pieces_root: [9; 32],
            base_layer: 4,
            index: 512,
            length: 8,
            proof_layers: 3,
        };
        vec![
            Message::KeepAlive,
            Message::Choke,
            Message::Unchoke,
            Message::Interested,
            Message::NotInterested,
            Message::Have(u32::MAX),
            Message::Bitfield(&[1, 2, 3]),
            Message::Request(block),
            Message::Piece { piece: 1, begin: 2, data: &[5; 300] },
            Message::Cancel(block),
            Message::Suggest(3),
            Message::HaveAll,
            Message::HaveNone,
            Message::Reject(block),
            Message::AllowedFast(4),
            Message::Extended { id: 0, payload: b"de" },
            Message::HashRequest(request),
            Message::Hashes { request, hashes: &[6; 320] },
            Message::HashReject(request),
        ]
    }

    #[test]
    fn every_message_survives_the_wire_and_waits_for_its_last_byte() {
        for sent in every_message() {
            let mut bytes = Vec::new();
            sent.encode(&mut bytes);
            assert_eq!(Message::decode(&bytes, LIMITS), Ok(sent));
            for cut in 0..bytes.len() {
                match frame(&bytes[..cut], LIMITS) {
                    Ok(Frame::NeedsBytes(needed)) => assert!(needed > cut && needed <= bytes.len()),
                    Ok(Frame::PieceHeader(_)) => assert!(cut >= PIECE_HEADER_LEN),
                    other => panic!("{sent:?} cut at {cut}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_its_body_arrives() {
        let claim = |len: u32, id: u8| {
            let mut prefix = len.to_be_bytes().to_vec();
            prefix.push(id);
            frame(&prefix, LIMITS)
        };
        assert_eq!(
            frame(&u32::MAX.to_be_bytes(), LIMITS),
            Err(DecodeError::TooLong { id: None, len_bytes: u32::MAX, max_bytes: 1 << 20 })
        );
        let wrong = |len_bytes: u32, id: u8| Err(DecodeError::WrongLen { id, len_bytes });
        assert_eq!(claim(2, id::CHOKE), wrong(2, id::CHOKE));
        assert_eq!(claim(4, id::HAVE), wrong(4, id::HAVE));
        assert_eq!(claim(5, id::BITFIELD), wrong(5, id::BITFIELD));
        assert_eq!(claim(14, id::REQUEST), wrong(14, id::REQUEST));
        assert_eq!(claim(9, id::PIECE), wrong(9, id::PIECE));
        for (len, id) in [
            (9 + BLOCK_LEN + 1, id::PIECE),
            (EXTENDED_LEN_MAX + 1, id::EXTENDED),
            (49 + 32 * 11, id::HASHES),
            (UNKNOWN_LEN_MAX + 1, 99),
        ] {
            assert!(matches!(claim(len, id), Err(DecodeError::TooLong { .. })), "{len} {id}");
        }
        assert_eq!(claim(49 + 33, id::HASHES), wrong(82, id::HASHES));
        let nothing_asked = FrameLimits { hashes_max: 0, ..LIMITS };
        assert_eq!(
            frame(&[0, 0, 0, 81, id::HASHES], nothing_asked),
            Err(DecodeError::HashesNotAsked)
        );
        let no_geometry = FrameLimits { bitfield_len: None, ..LIMITS };
        let longest = 1 + 262_144_u32;
        let [a, b, c, d] = longest.to_be_bytes();
        assert_eq!(
            frame(&[a, b, c, d, id::BITFIELD], no_geometry),
            Ok(Frame::NeedsBytes(4 + longest as usize))
        );
    }
}
