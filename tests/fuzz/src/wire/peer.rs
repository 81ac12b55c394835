//! A peer that says what the input tells it to: mostly sense, in any order.

use std::collections::BTreeMap;

use ringseed_core::wire::extension::{MetadataMessage, OwnHandshake, ours};
use ringseed_core::wire::message::{Message, RawBlock, piece_header};
use ringseed_core::wire::{Channel, Handshake, HashRequest, PeerId, Reserved};

use super::TORRENT;
use super::mock::{geometry, payload};
use crate::source::Source;

/// The peer and what it has written that has not arrived yet.
pub struct Peer {
    /// Bytes on their way.
    pub stream: Vec<u8>,
    /// How often it has asked for a block, as piece, begin and length, in what has arrived.
    pub asked: BTreeMap<[u32; 3], u32>,
    /// What has arrived of the message at hand; the handshake stands in front of the first.
    unread: Vec<u8>,
    /// How many of our requests it has answered in a row without our hearing of it.
    ahead: usize,
}

impl Peer {
    /// A peer that has sent its handshake.
    pub fn new(reserved: Reserved) -> Self {
        let peer_id = PeerId(*b"-XX0001-abcdefghijkl");
        let stream = Handshake { reserved, wire_id: TORRENT, peer_id }.encode().to_vec();
        Self { stream, asked: BTreeMap::new(), unread: Vec::new(), ahead: 0 }
    }

    /// Lets at most `len` bytes arrive, and counts the requests in them by a reader of its own.
    pub fn arrive(&mut self, len: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.stream.drain(..len.min(self.stream.len())).collect();
        self.unread.extend_from_slice(&bytes);
        let mut at = 0;
        while let Some(rest) = self.unread.get(at..).filter(|rest| !rest.is_empty()) {
            if rest.starts_with(b"\x13BitTorrent") && rest.len() >= 68 {
                at += 68;
                continue;
            }
            let Some(prefix) = rest.first_chunk::<4>() else { break };
            let end = 4 + u32::from_be_bytes(*prefix) as usize;
            let Some(message) = rest.get(4..end) else { break };
            if let [6, body @ ..] = message
                && let ([piece, begin, len], []) = body.as_chunks::<4>()
            {
                let block = [*piece, *begin, *len].map(u32::from_be_bytes);
                *self.asked.entry(block).or_default() += 1;
            }
            at += end;
        }
        self.unread.drain(..at);
        bytes
    }

    /// Writes one message.
    pub fn say(&mut self, source: &mut Source<'_>, channel: Option<&Channel>) {
        let number = |source: &mut Source<'_>| match source.byte() {
            edge @ 0xf0.. => Source::new(&[edge, 1, 2, 3, 4]).edgy(),
            small => u32::from(small % 10),
        };
        let any_block = |source: &mut Source<'_>| RawBlock {
            piece: number(source),
            begin: if source.flag() { 0 } else { number(source).wrapping_mul(100) },
            len: match source.below(4) {
                0 => number(source),
                1 => 512,
                _ => 1024,
            },
        };
        let message = match source.below(20) {
            0 => Message::Choke,
            1 => Message::Unchoke,
            2 => Message::Interested,
            3 => Message::NotInterested,
            4 => Message::Have(number(source)),
            5 => Message::HaveAll,
            6 => Message::HaveNone,
            7 => Message::Bitfield(source.take(2)),
            8 => Message::Request(any_block(source)),
            9 => Message::Cancel(any_block(source)),
            10 => Message::Reject(any_block(source)),
            11 => Message::Suggest(number(source)),
            12 => Message::AllowedFast(number(source)),
            13 => return self.answer(source, channel),
            14 => Message::Extended { id: source.byte() % 6, payload: source.bytes(64) },
            15 => {
                let own = OwnHandshake {
                    client: "peer",
                    metadata_len_bytes: Some(number(source)),
                    requests_max: number(source),
                    upload_only: source.flag(),
                };
                return own.encode(&mut self.stream);
            }
            16 => {
                let index = number(source);
                let message = match source.below(3) {
                    0 => MetadataMessage::Request { index },
                    1 => MetadataMessage::Reject { index },
                    _ => MetadataMessage::Data {
                        index,
                        total_len_bytes: number(source),
                        data: source.bytes(40),
                    },
                };
                return message.encode(ours::METADATA, &mut self.stream);
            }
            17 => {
                let request = HashRequest {
                    pieces_root: [1; 32],
                    base_layer: 0,
                    index: number(source) & !1,
                    length: 2,
                    proof_layers: number(source),
                };
                match source.below(3) {
                    0 => Message::HashRequest(request),
                    1 => Message::HashReject(request),
                    _ => {
                        let hashes = vec![9; 32 * source.below(6)];
                        return Message::Hashes { request, hashes: &hashes }
                            .encode(&mut self.stream);
                    }
                }
            }
            18 => return self.stream.extend_from_slice(source.bytes(64)),
            _ => Message::KeepAlive,
        };
        message.encode(&mut self.stream);
    }

    /// Answers one of our requests: the next, or any, sometimes one that was never made.
    fn answer(&mut self, source: &mut Source<'_>, channel: Option<&Channel>) {
        let wanted: Vec<_> = channel.into_iter().flat_map(Channel::outstanding).collect();
        let block = match source.below(8) {
            0 => {
                let raw = source.below(9) as u32;
                geometry().block(raw, 0, 512).ok()
            }
            1 => wanted.get(source.below(8)).copied(),
            // In order, several before the first has arrived.
            _ => {
                self.ahead = (self.ahead + 1) % wanted.len().max(1);
                wanted.get(self.ahead).copied()
            }
        };
        let Some(block) = block else { return };
        self.stream.extend_from_slice(&piece_header(block.into()));
        self.stream.extend(payload(block));
    }
}
