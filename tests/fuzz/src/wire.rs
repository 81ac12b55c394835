//! A peer's stream into a session: a link with its channel over a mock store.
//!
//! The same bytes go into two links. One gets them cut as the input says, with places that come and
//! go; the other in small regular cuts and never has a place. Whatever the peer does, both must tell
//! the same story.

mod mock;
mod peer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringseed_core::geometry::BlockRef;
use ringseed_core::wire::message::{FrameLimits, Message};
use ringseed_core::wire::{
    Channel, ChannelConfig, ChannelEvent, ChannelId, GatherItem, GatherList, HashRequest, Link,
    LinkConfig, LinkError, LinkEvent, Reserved, WireId,
};

use self::mock::{Memory, geometry, payload};
use self::peer::Peer;
use crate::source::Source;

const TORRENT: WireId = WireId([7; 20]);
/// Few, so that the bound is met.
const REQUESTS_MAX: u32 = 8;
/// What may wait to be sent to a peer that does not read: answers of 1 MiB, and replies.
const OUTPUT_LEN_MAX: usize = (1 << 20) + (64 << 10) + 8192 * 64;

/// What the shard sees of a session, with blocks as bytes wherever these lay.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Event(LinkEvent),
    Block(BlockRef, Vec<u8>),
}

/// One link, its store, and what became of it.
struct Session {
    link: Link,
    memory: Memory,
    seen: Vec<Seen>,
    ended: Option<LinkError>,
    /// Requests that the shard was told of and has not answered with their block.
    owed: BTreeMap<BlockRef, u32>,
    /// Blocks and rejects that were sent, by piece, begin and length.
    answered: BTreeMap<[u32; 3], u32>,
    sent_len_bytes: usize,
}

impl Session {
    fn new(now: Instant, metadata_first: bool) -> Self {
        let config = LinkConfig {
            requests_in_max: REQUESTS_MAX,
            requests_out_max: REQUESTS_MAX,
            ..LinkConfig::default()
        };
        let geometry = (!metadata_first).then(geometry);
        let channel = ChannelConfig { geometry, v2_id: Some(TORRENT), ..ChannelConfig::default() };
        let link = Link::outgoing(now, config, &[TORRENT], channel);
        Self {
            link,
            memory: Memory::default(),
            seen: Vec::new(),
            ended: None,
            owed: BTreeMap::new(),
            answered: BTreeMap::new(),
            sent_len_bytes: 0,
        }
    }

    fn channel(&mut self) -> &mut Channel {
        self.link.channel_mut(ChannelId::STOCK).expect("a stock connection has one")
    }

    /// Brings `bytes`, at most `cut` of them at a time; one block in `nowhere_of` has no place.
    fn receive(&mut self, now: Instant, mut bytes: &[u8], cut: usize, nowhere_of: u32) {
        while !bytes.is_empty() && self.ended.is_none() {
            let room = self.memory.plan(&mut self.link, nowhere_of);
            assert!(room > 0, "an open link reads on");
            let len = bytes.len().min(cut).min(room);
            self.memory.fill(&bytes[..len]);
            bytes = &bytes[len..];
            let result = self.link.handle_received(now, len, &mut self.memory);
            self.drain();
            self.ended = result.err();
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.link.poll_event() {
            let LinkEvent::Channel { event: what, .. } = &event else {
                self.seen.push(Seen::Event(event));
                continue;
            };
            match what {
                ChannelEvent::Block { block, kept } => {
                    let bytes = self.memory.take(*block, kept.as_ref());
                    assert!(bytes == payload(*block), "{block:?} is not what was sent");
                    self.seen.push(Seen::Block(*block, bytes));
                    continue;
                }
                ChannelEvent::Wasted { block } => drop(self.memory.forget(*block)),
                ChannelEvent::Request(block) => *self.owed.entry(*block).or_default() += 1,
                _ => {}
            }
            self.seen.push(Seen::Event(event));
        }
        let channel = self.channel();
        assert!(channel.outstanding_count() <= REQUESTS_MAX, "more asked for than allowed");
        assert!(channel.peer_requests().count() <= REQUESTS_MAX as usize, "a queue without end");
    }

    /// Sends what waits, and checks that it is what a peer may get.
    fn transmit(&mut self, now: Instant, peer: &Peer, list: &mut GatherList) {
        loop {
            self.link.poll_transmit(now, list);
            if list.is_empty() {
                break;
            }
            let is_greeting = list.small.starts_with(b"\x13BitTorrent protocol");
            let mut stream = list.small[if is_greeting { 68 } else { 0 }..].to_vec();
            self.sent_len_bytes += stream.len();
            assert!(self.sent_len_bytes <= OUTPUT_LEN_MAX, "output without end");
            for item in &list.items {
                if let GatherItem::Block { block, .. } = item {
                    let owed = self.owed.get_mut(block).filter(|owed| **owed > 0);
                    *owed.expect("a block is answered twice, or was never asked for") -= 1;
                    let raw = [block.piece().get(), block.begin(), block.len()];
                    *self.answered.entry(raw).or_default() += 1;
                    // The header stays in the stream; make it a message that the reader below skips.
                    stream = without_header(&stream, *block);
                }
            }
            self.read_own(&stream);
            self.link.handle_transmitted(now);
        }
        self.sent_len_bytes = 0;
        for (block, answers) in &self.answered {
            let asked = peer.asked.get(block).copied().unwrap_or_default();
            assert!(*answers <= asked, "{answers} answers to {asked} requests for {block:?}");
        }
    }

    /// Reads back our own messages: all of them are whole, and rejects answer requests.
    fn read_own(&mut self, mut stream: &[u8]) {
        let limits = FrameLimits {
            bitfield_len: Some(geometry().piece_count().div_ceil(8)),
            hashes_max: 64,
        };
        while let Some(prefix) = stream.first_chunk::<4>() {
            let len = 4 + u32::from_be_bytes(*prefix) as usize;
            let message = Message::decode(&stream[..len], limits).expect("a message of ours");
            if let Message::Reject(raw) = message {
                *self.answered.entry([raw.piece, raw.begin, raw.len]).or_default() += 1;
            }
            stream = &stream[len..];
        }
        assert!(stream.is_empty(), "half a message");
    }
}

/// `stream` without the 13 bytes that announce `block`.
fn without_header(stream: &[u8], block: BlockRef) -> Vec<u8> {
    let header = ringseed_core::wire::message::piece_header(block.into());
    let at = stream.windows(header.len()).position(|window| window == header);
    let at = at.expect("a block has its header");
    [&stream[..at], &stream[at + header.len()..]].concat()
}

/// Both links see the same, blocks come as they were sent, and nobody is answered twice.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let start = Instant::now();
    let mut now = start;
    let (metadata_first, fast) = (source.flag(), source.flag());
    let mut pair = [Session::new(now, metadata_first), Session::new(now, metadata_first)];
    let reserved = Reserved([0, 0, 0, 0, 0, 0x10, 0, if fast { 0x14 } else { 0x10 }]);
    let mut peer = Peer::new(reserved);
    let mut attached = !metadata_first;
    let mut list = GatherList::new(16, 4096);
    while !source.is_empty() && pair[0].ended.is_none() {
        match source.byte() {
            // The peer writes.
            0..=127 => peer.say(&mut source, pair[0].link.channel(ChannelId::STOCK)),
            // What it wrote arrives: at the one in any cuts, at the other in short ones.
            128..=175 => {
                let bytes = peer.arrive(usize::from(source.u16() % 4096));
                let (cut, nowhere_of) = (1 + source.below(3000), source.byte().into());
                pair[0].receive(now, &bytes, cut, nowhere_of);
                pair[1].receive(now, &bytes, 61, 1);
                compare(&mut pair);
            }
            // We act, the same on both.
            _ if pair[0].link.is_open() => {
                if !attached && source.byte() == 0 {
                    attached = true;
                    for session in &mut pair {
                        let result = session.channel().attach_geometry(geometry());
                        session.drain();
                        session.ended = result.err();
                    }
                } else {
                    let act = source.clone();
                    let mut ends = [act.clone(), act];
                    for (session, source) in pair.iter_mut().zip(&mut ends) {
                        step(session, source, (now, attached), &peer, &mut list);
                    }
                    source = ends.into_iter().next().expect("two of them");
                }
                compare(&mut pair);
            }
            _ => {}
        }
        if source.byte() == 200 {
            now += Duration::from_secs(source.byte().into());
            for session in &mut pair {
                session.ended = session.ended.take().or(session.link.handle_timeout(now).err());
                session.drain();
            }
            compare(&mut pair);
        }
    }
    for session in &mut pair {
        if session.ended.is_none() {
            session.transmit(now, &peer, &mut list);
        }
    }
}

/// What a shard does with its channel.
fn step(
    session: &mut Session,
    source: &mut Source<'_>,
    (now, attached): (Instant, bool),
    peer: &Peer,
    list: &mut GatherList,
) {
    match source.below(12) {
        0..=3 if attached => {
            let geometry = geometry();
            let blocks = geometry.pieces().flat_map(|piece| geometry.blocks_of_piece(piece));
            let count = 1 + source.below(4);
            let wanted: Vec<_> = blocks.skip(source.below(8)).take(count).collect();
            for block in wanted {
                if session.channel().outstanding().all(|other| other != block) {
                    let _ = session.channel().request(now, block);
                }
            }
        }
        4 => {
            let at = source.below(8);
            let block = session.channel().outstanding().nth(at);
            if let Some(block) = block {
                session.channel().cancel(block);
            }
        }
        5 => session.channel().set_choking(source.flag()),
        6 => session.channel().set_interested(source.flag()),
        7 => {
            let at = source.below(8);
            let block = session.channel().peer_requests().nth(at);
            if let Some(block) = block {
                assert!(session.channel().serve(block), "a waiting request");
                assert!(!session.channel().serve(block), "served twice");
            }
        }
        8 => {
            let at = source.below(8);
            let block = session.channel().peer_requests().nth(at);
            if let Some(block) = block {
                session.channel().reject(block);
            }
        }
        9 => {
            let request = HashRequest {
                pieces_root: [1; 32],
                base_layer: 0,
                index: source.below(4) as u32 * 2,
                length: 2,
                proof_layers: source.below(3) as u32,
            };
            session.channel().send_hash_request(request);
        }
        10 => {
            session.channel().send_metadata_piece(0, 10, &[0; 10]);
            session.channel().send_metadata_request(source.byte().into());
        }
        _ => session.transmit(now, peer, list),
    }
    session.drain();
}

/// After the same bytes both links have said the same.
fn compare(pair: &mut [Session; 2]) {
    let [one, other] = pair;
    assert_eq!(one.ended, other.ended, "the end depends on where TCP cut the stream");
    assert!(one.seen == other.seen, "{:#?}\nis not\n{:#?}", one.seen, other.seen);
    one.seen.clear();
    other.seen.clear();
}
