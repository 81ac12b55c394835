//! One torrent's conversation on a link: who has what, who chokes whom, what was asked for.
//!
//! The link feeds messages in and drains what is to be sent; the shard steers with the `send_*`,
//! `request` and `set_*` methods. Everything a peer can make grow here has a bound.

mod allowance;
mod fast;
mod incoming;
mod pads;
mod request_queue;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::allowance::{Allowance, Toll};
use self::request_queue::RequestQueue;
use super::error::LinkError;
use super::extension::{ExtendedHandshake, MetadataMessage, OwnHandshake};
use super::handshake::{Reserved, WireId};
use super::message::{FrameLimits, HashRequest, Message, RawBlock, piece_header};
use super::metadata::METADATA_PIECE_LEN;
use super::plan::{ChannelId, GatherList};
use crate::bitfield::Bitfield;
use crate::geometry::{BlockRef, Geometry, PieceIndex};
use crate::merkle::SERVED_MAX;

/// Most hash requests of ours in flight on one channel.
pub const HASH_REQUESTS_MAX: usize = 64;
/// How many blocks that we have given up may still arrive without blame.
const GIVEN_UP_MAX: usize = 1024;
/// Useless haves (repeated, or flapping with don't-have): so many at once, so many per second for ever.
/// Honest peers repeat a handful around their bitfield, and what they lose and have again.
const USELESS_HAVES: (u32, u32) = (1000, 10);
/// Requests that we refused (choked, queue full, a piece we never announced) beyond a full queue, before
/// it counts as a flood. What was on its way when the choke was sent is at most one queue; libtorrent,
/// too, stops at 50 rejects. Every block served takes one back.
const REFUSED_REQUESTS_SLACK: u32 = 50;
/// Over what time refused requests are counted. An honest peer errs now and then, for weeks on one
/// connection; a flood errs within a minute.
const REFUSED_WINDOW: Duration = Duration::from_secs(60);
/// Answers (metadata, hashes) waiting to be sent before further questions are rejected, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Messages waiting to be sent to a peer that goes on asking, before it counts as a flood: two queues
/// of rejects. Each takes about 64 bytes, and there are as many such queues as connections.
const REPLIES_MAX: usize = 2048;
/// Messages that neither bring nor ask for anything new (keep-alives, unknown ids, repeated states and
/// requests, cancels, suggestions): so many at once, so many per second for ever. Every block moved in
/// either direction, and every answer of ours, earns [`CHATTER_PER_BLOCK`] more, so that a fast transfer may talk as it needs.
const CHATTER: (u32, u32) = (1024, 100);
/// See [`CHATTER`].
const CHATTER_PER_BLOCK: u32 = 2;
/// Chokes and unchokes of the peer: so many at once, so many per second for ever. Each unchoke makes us
/// plan and ask for hundreds of blocks; honest peers change their mind every ten seconds.
const CHOKES: (u32, u32) = (64, 2);
/// Answers (metadata, hashes) that a peer may ask for, in bytes: so many at once, so many per second for
/// ever. A question is 49 bytes; its answer may be 264 KiB, and a millisecond of hashing to see that what
/// the disk gave is right. A second's worth are the leaves of 2 GiB, more than a connection moves. What is free at
/// once is twice what our own nodes have in flight: whoever comes back as a newcomer gets it again.
const ANSWERS: (u64, u64) = (2 << 20, 4 << 20);
/// Pieces of the info dict that a peer is given: the whole of it so many times, and a few for luck. Who
/// asks for more is refused, and its questions are chatter.
const METADATA_WHOLES: u32 = 3;
/// See [`METADATA_WHOLES`].
const METADATA_EXTRA: u32 = 64;
/// Capacity beyond which an emptied queue gives its memory back, in entries.
const QUEUE_KEEP: usize = 256;

/// What a channel begins with.
#[derive(Clone, Debug, Default)]
pub struct ChannelConfig {
    /// The torrent's layout; `None` while its info dict is still to be fetched.
    pub geometry: Option<Arc<Geometry>>,
    /// Length of the info dict if we can serve it (BEP 9), in bytes.
    pub metadata_len_bytes: Option<u32>,
    /// We want nothing (BEP 21).
    pub upload_only: bool,
    /// The name of the torrent's v2 view, if it has one: then the upgrade bit is set, and a peer that
    /// sets it too is answered under this name (BEP 52).
    pub v2_id: Option<WireId>,
}

/// Bounds of a channel, from [`LinkConfig`](super::link::LinkConfig).
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub requests_in_max: u32,
    pub requests_out_max: u32,
    pub request_stall_max: Duration,
}

/// The part of a block that found no place to land in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where in the block the bytes belong; what precedes them is in the block's place already.
    pub from_offset: u32,
    /// From there to the block's end.
    pub bytes: Vec<u8>,
}

/// What the shard should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    /// The peer has said what it has; see [`Channel::peer_has`].
    Availability,
    /// The peer has one piece more.
    Have(PieceIndex),
    /// The peer has lost a piece (BEP 54).
    DontHave(PieceIndex),
    /// The peer answers no more requests.
    Choked {
        /// Requests of ours that will not be answered. With the fast extension it is empty, and
        /// each request is rejected by itself.
        dropped: Vec<BlockRef>,
    },
    /// The peer answers requests.
    Unchoked,
    /// The peer wants something of ours.
    Interested,
    /// The peer wants nothing of ours.
    NotInterested,
    /// A piece that is cheap for the peer (BEP 6).
    Suggest(PieceIndex),
    /// A piece that the peer gives even while it chokes (BEP 6).
    AllowedFast(PieceIndex),
    /// A block that we asked for is complete.
    Block {
        /// Which.
        block: BlockRef,
        /// `None`: it lies in its place. `Some`: these bytes are to be copied there.
        kept: Option<Kept>,
    },
    /// A block came that we had given up; its bytes are to be forgotten.
    Wasted {
        /// Which.
        block: BlockRef,
    },
    /// The peer will not send this block.
    Rejected(BlockRef),
    /// Requests are outstanding and no block has come for a while. Said once per stall.
    Snubbed,
    /// The peer wants a block; it is in [`Channel::peer_requests`].
    Request(BlockRef),
    /// The peer takes a request back; it has left [`Channel::peer_requests`].
    Cancelled(BlockRef),
    /// The peer's extension handshake; it may come again with news.
    Extended(ExtendedHandshake),
    /// The peer wants a piece of the info dict.
    MetadataRequest {
        /// Which one.
        index: u32,
    },
    /// A piece of the info dict.
    MetadataPiece {
        /// Which one.
        index: u32,
        /// Length of the whole, as the peer says, in bytes.
        total_len_bytes: u32,
        /// The piece, at most 16 KiB.
        data: Vec<u8>,
    },
    /// The peer will not send a piece of the info dict.
    MetadataRejected {
        /// Which one.
        index: u32,
    },
    /// The peer wants hashes: answer with [`Channel::send_hashes`] or [`Channel::send_hash_reject`].
    HashRequest(HashRequest),
    /// Hashes that we asked for; not yet verified.
    Hashes {
        /// What was asked.
        request: HashRequest,
        /// The hashes, then the proof.
        hashes: Vec<[u8; 32]>,
    },
    /// The peer will not send hashes.
    HashesRejected(HashRequest),
}

/// What waits to be sent.
#[derive(Debug)]
enum Out {
    Plain(Message<'static>),
    Bytes(Vec<u8>),
    Block(BlockRef),
}

/// What the peer has said before we knew the torrent's layout.
#[derive(Debug, Default)]
struct RawAvailability {
    /// First message: bitfield, have-all (`Ok(true)`) or have-none (`Ok(false)`).
    first: Option<Result<bool, Vec<u8>>>,
    /// Haves, a bit each; grows to at most 256 KiB.
    haves: Vec<u8>,
}

/// One torrent's conversation on a link (BEP 3, 6, 9, 10, 52, 54).
#[derive(Debug)]
pub struct Channel {
    id: ChannelId,
    bounds: Bounds,
    config: ChannelConfig,
    client: Arc<str>,
    /// What both sides speak.
    reserved: Reserved,

    choking: bool,
    interested: bool,
    peer_choking: bool,
    peer_interested: bool,
    peer_has: Option<Bitfield>,
    availability_said: bool,
    raw: RawAvailability,
    /// The peer has said something that must come after what it has.
    has_spoken: bool,
    useless_haves: Allowance,
    refused_requests: u32,
    /// Since when they are counted.
    refused_since: Option<Instant>,
    chatter: Allowance,
    chokes: Allowance,
    /// What it has asked for besides blocks.
    answers: Toll,
    /// Pieces of the info dict among it.
    metadata_asked: u32,
    /// It has asked for more than that, and is not read until then.
    paused_until: Option<Instant>,
    peer_extended: Option<ExtendedHandshake>,
    /// Both sides have named the v2 view, so hash messages are understood.
    is_v2: bool,
    /// Pieces that we may ask for while choked (BEP 6), at most [`fast::ALLOWED_MAX`].
    allowed_in: BTreeSet<PieceIndex>,
    /// Pieces that the peer may ask for while choked, and how many requests of each are left.
    allowed_out: BTreeMap<PieceIndex, u32>,

    /// Our requests in the order they were (or will be) sent.
    outstanding: VecDeque<BlockRef>,
    /// Requests that we gave up and that may still be answered.
    given_up: VecDeque<BlockRef>,
    /// The outstanding request whose block is under way. One that is given up is so no more, also when
    /// it is asked for again at once: what comes then are the bytes of the first time, and the block's
    /// place may hold others by now.
    under_way: Option<BlockRef>,
    hash_requests: Vec<HashRequest>,
    /// Since when nothing has come although requests are outstanding.
    waiting_since: Option<Instant>,
    snubbed: bool,

    peer_requests: RequestQueue,
    out: VecDeque<Out>,
    out_bytes: usize,
    events: VecDeque<ChannelEvent>,
}

impl Channel {
    pub(super) fn new(
        id: ChannelId,
        config: ChannelConfig,
        bounds: Bounds,
        client: Arc<str>,
    ) -> Self {
        Self {
            id,
            bounds,
            config,
            client,
            reserved: Reserved::default(),
            choking: true,
            interested: false,
            peer_choking: true,
            peer_interested: false,
            peer_has: None,
            availability_said: false,
            raw: RawAvailability::default(),
            has_spoken: false,
            useless_haves: Allowance::new(USELESS_HAVES),
            refused_requests: 0,
            refused_since: None,
            chatter: Allowance::new(CHATTER),
            chokes: Allowance::new(CHOKES),
            answers: Toll::new(ANSWERS),
            metadata_asked: 0,
            paused_until: None,
            peer_extended: None,
            is_v2: false,
            allowed_in: BTreeSet::new(),
            allowed_out: BTreeMap::new(),
            outstanding: VecDeque::new(),
            given_up: VecDeque::new(),
            under_way: None,
            hash_requests: Vec::new(),
            waiting_since: None,
            snubbed: false,
            peer_requests: RequestQueue::default(),
            out: VecDeque::new(),
            out_bytes: 0,
            events: VecDeque::new(),
        }
    }

    // What is known of the other side.

    /// The channel's name on its link.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// What the peer has; `None` until the layout is known and the peer has said something.
    pub fn peer_has(&self) -> Option<&Bitfield> {
        self.peer_has.as_ref()
    }

    /// Whether the peer answers no requests.
    pub fn peer_choking(&self) -> bool {
        self.peer_choking
    }

    /// Whether the peer wants something of ours.
    pub fn peer_interested(&self) -> bool {
        self.peer_interested
    }

    /// Whether we answer no requests.
    pub fn choking(&self) -> bool {
        self.choking
    }

    /// Whether we have told the peer that we want something.
    pub fn interested(&self) -> bool {
        self.interested
    }

    /// The peer's extension handshake, the latest.
    pub fn peer_extended(&self) -> Option<&ExtendedHandshake> {
        self.peer_extended.as_ref()
    }

    /// Whether both sides have the fast extension (BEP 6).
    pub fn has_fast(&self) -> bool {
        self.reserved.fast()
    }

    /// Whether the peer serves and takes metadata (BEP 9).
    pub fn can_metadata(&self) -> bool {
        self.peer_extended.as_ref().is_some_and(|extended| extended.metadata_id.is_some())
    }

    /// Whether the peer has named the v2 view of the torrent, so that it takes hash requests (BEP 52).
    pub fn can_hash(&self) -> bool {
        self.is_v2
    }

    /// How many requests may be outstanding: our bound and the peer's.
    pub fn requests_max(&self) -> u32 {
        let peers = self.peer_extended.as_ref().and_then(|extended| extended.requests_max);
        peers.unwrap_or(u32::MAX).min(self.bounds.requests_out_max)
    }

    /// How many requests are outstanding, those not yet sent included.
    pub fn outstanding_count(&self) -> u32 {
        self.outstanding.len() as u32 // at most requests_out_max
    }

    /// Our outstanding requests, the oldest first.
    pub fn outstanding(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.outstanding.iter().copied()
    }

    /// What the peer waits for, the oldest first. At most `requests_in_max`.
    pub fn peer_requests(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.peer_requests.iter()
    }

    // What the shard wants.

    /// Gives the channel its layout once the info dict is known, checks what the peer has said so
    /// far against it, and reports it.
    ///
    /// # Errors
    /// [`LinkError::Bitfield`] or [`LinkError::Geometry`] if the peer has lied.
    pub fn attach_geometry(&mut self, geometry: Arc<Geometry>) -> Result<(), LinkError> {
        assert!(self.config.geometry.is_none(), "a channel keeps its geometry");
        let raw = std::mem::take(&mut self.raw);
        let count = geometry.piece_count();
        self.config.geometry = Some(geometry.clone());
        let mut has = match &raw.first {
            Some(Ok(true)) => Bitfield::full(count),
            Some(Ok(false)) | None => Bitfield::new(count),
            Some(Err(bytes)) => Bitfield::from_wire(bytes, count)?,
        };
        for (byte_index, byte) in raw.haves.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (0x80 >> bit) != 0) {
                has.set(geometry.piece(byte_index as u32 * 8 + bit)?);
            }
        }
        if self.availability_said {
            self.peer_has = Some(has);
            self.events.push_back(ChannelEvent::Availability);
        }
        Ok(())
    }

    /// Tells the peer what we have; once, before anything else but extension messages. `None` while
    /// the layout is unknown.
    pub fn send_availability(&mut self, have: Option<&Bitfield>) {
        let fast = self.reserved.fast();
        match have {
            Some(have) if fast && have.is_full() => {
                self.out.push_back(Out::Plain(Message::HaveAll))
            }
            Some(have) if !have.is_empty() => {
                self.push_message(&Message::Bitfield(&have.to_wire()));
            }
            _ if fast => self.out.push_back(Out::Plain(Message::HaveNone)),
            _ => {} // BEP 3: who has nothing may say nothing
        }
    }

    /// Tells the peer that we have a piece.
    pub fn send_have(&mut self, piece: PieceIndex) {
        self.out.push_back(Out::Plain(Message::Have(piece.get())));
    }

    /// Tells the peer that we no longer have a piece, if it understands that (BEP 54).
    pub fn send_dont_have(&mut self, piece: PieceIndex) {
        if let Some(id) = self.peer_extended.as_ref().and_then(|extended| extended.dont_have_id) {
            self.push_message(&Message::Extended { id, payload: &piece.get().to_be_bytes() });
        }
    }

    /// Chokes or unchokes the peer. Choking drops the peer's waiting requests, with a reject each
    /// where the peer understands it.
    pub fn set_choking(&mut self, choking: bool) {
        if self.choking == choking {
            return;
        }
        self.choking = choking;
        self.refused_requests = 0;
        self.out.push_back(Out::Plain(if choking { Message::Choke } else { Message::Unchoke }));
        if choking {
            for block in self.peer_requests.take() {
                if self.spend_allowed(block) {
                    self.peer_requests.push(block);
                } else {
                    self.push_reject(block.into());
                }
            }
        }
    }

    /// Tells the peer whether we want something of it.
    pub fn set_interested(&mut self, interested: bool) {
        if self.interested != interested {
            self.interested = interested;
            let message = if interested { Message::Interested } else { Message::NotInterested };
            self.out.push_back(Out::Plain(message));
        }
    }

    /// Asks for a block that is not outstanding here. `false`: the peer chokes us (and does not give
    /// this piece nevertheless), or enough is outstanding.
    #[must_use = "a request that was not sent must go back to the picker"]
    pub fn request(&mut self, now: Instant, block: BlockRef) -> bool {
        let refuses = self.peer_choking && !self.allowed_in.contains(&block.piece());
        if refuses || self.outstanding_count() >= self.requests_max() {
            return false;
        }
        debug_assert!(!self.outstanding.contains(&block), "{block:?} requested twice");
        if self.outstanding.is_empty() {
            self.waiting_since = Some(now);
        }
        self.outstanding.push_back(block);
        let raw = self.named(block);
        self.out.push_back(Out::Plain(Message::Request(raw)));
        true
    }

    /// Takes a request back. A block that is under way will be reported as wasted. `false`: it was
    /// not outstanding.
    pub fn cancel(&mut self, block: BlockRef) -> bool {
        if !self.forget_outstanding(block) {
            return false;
        }
        let named = self.named(block);
        let unsent = |out: &Out| matches!(out, Out::Plain(Message::Request(raw)) if *raw == named);
        if let Some(at) = self.out.iter().rposition(unsent) {
            self.out.remove(at);
        } else {
            self.give_up(block);
            self.out.push_back(Out::Plain(Message::Cancel(named)));
        }
        true
    }

    /// Answers a waiting request: the block goes out with the next [`Link::poll_transmit`], which
    /// names it for the shard to resolve. `false`: the peer no longer waits for it.
    ///
    /// [`Link::poll_transmit`]: super::link::Link::poll_transmit
    pub fn serve(&mut self, block: BlockRef) -> bool {
        let waiting = self.forget_peer_request(block);
        if waiting {
            self.out.push_back(Out::Block(block));
            self.refused_requests = self.refused_requests.saturating_sub(1);
            self.chatter.earn(CHATTER_PER_BLOCK);
        }
        waiting
    }

    /// Refuses a waiting request (silently where the peer has no fast extension). Whoever goes on
    /// asking for what we never announced is a flood some day.
    pub fn reject(&mut self, block: BlockRef) {
        if self.forget_peer_request(block) {
            self.refused_requests += 1;
            self.push_reject(block.into());
        }
    }

    /// Entries that the queues have room for.
    #[cfg(test)]
    pub(super) fn queue_capacity(&self) -> usize {
        self.events.capacity().max(self.out.capacity())
    }

    /// Bytes of answers (metadata, hashes) that wait to be sent.
    pub fn answer_bytes(&self) -> usize {
        self.out_bytes
    }

    /// Announces that we can serve the info dict from now on (BEP 9, BEP 10: a second handshake).
    pub fn set_metadata_len(&mut self, len_bytes: u32) {
        self.config.metadata_len_bytes = Some(len_bytes);
        self.start();
    }

    /// Announces that we want nothing more, or something again (BEP 21).
    pub fn set_upload_only(&mut self, upload_only: bool) {
        if std::mem::replace(&mut self.config.upload_only, upload_only) != upload_only {
            self.start();
        }
    }

    /// Asks for a piece of the info dict. `false`: the peer has no such extension.
    pub fn send_metadata_request(&mut self, index: u32) -> bool {
        self.send_metadata(MetadataMessage::Request { index })
    }

    /// Answers with a piece of the info dict of `total_len_bytes`.
    pub fn send_metadata_piece(&mut self, index: u32, total_len_bytes: u32, data: &[u8]) {
        if self.send_metadata(MetadataMessage::Data { index, total_len_bytes, data }) {
            self.chatter.earn(CHATTER_PER_BLOCK);
        }
    }

    /// Refuses a piece of the info dict.
    pub fn send_metadata_reject(&mut self, index: u32) {
        self.send_metadata(MetadataMessage::Reject { index });
    }

    /// Asks for hashes. `false`: [`HASH_REQUESTS_MAX`] are outstanding, or this one is.
    pub fn send_hash_request(&mut self, request: HashRequest) -> bool {
        let full = self.hash_requests.len() >= HASH_REQUESTS_MAX;
        if full || self.hash_requests.contains(&request) {
            return false;
        }
        self.hash_requests.push(request);
        self.out.push_back(Out::Plain(Message::HashRequest(request)));
        true
    }

    /// Answers a hash request: the hashes of the asked layer, then the proof.
    pub fn send_hashes(&mut self, request: HashRequest, hashes: &[[u8; 32]]) {
        self.chatter.earn(CHATTER_PER_BLOCK);
        self.push_message(&Message::Hashes { request, hashes: hashes.as_flattened() });
    }

    /// Refuses a hash request, which then counts as chatter alone.
    pub fn send_hash_reject(&mut self, request: HashRequest) {
        self.paused_until = self.answers.refund(u64::from(hashes_of(&request)) * 32);
        self.out.push_back(Out::Plain(Message::HashReject(request)));
    }

    // What the link does.

    /// The peer's handshake has come: from here on we speak what both speak. `wire_id` is the name
    /// that was agreed on.
    pub(super) fn set_peer(&mut self, peer: Reserved, wire_id: WireId) {
        self.reserved = peer.and(Reserved::ours(self.config.v2_id.is_some()));
        self.is_v2 = self.config.v2_id == Some(wire_id);
    }

    /// Sends the extension handshake, if the peer understands it.
    pub(super) fn start(&mut self) {
        if self.reserved.extensions() {
            let own = OwnHandshake {
                client: &self.client,
                metadata_len_bytes: self.config.metadata_len_bytes,
                requests_max: self.bounds.requests_in_max,
                upload_only: self.config.upload_only,
            };
            let mut bytes = Vec::new();
            own.encode(&mut bytes);
            self.push_bytes(bytes);
        }
    }

    pub(super) fn limits(&self) -> FrameLimits {
        let geometry = self.config.geometry.as_ref();
        FrameLimits {
            bitfield_len: geometry.map(|geometry| geometry.piece_count().div_ceil(8)),
            hashes_max: self.hash_requests.iter().map(hashes_of).max().unwrap_or(0),
        }
    }

    pub(super) fn pop_event(&mut self) -> Option<ChannelEvent> {
        let event = self.events.pop_front();
        // One receive may bring a hundred thousand haves; what held them is not kept.
        if event.is_none() && self.events.capacity() > QUEUE_KEEP {
            self.events.shrink_to(QUEUE_KEEP);
        }
        event
    }

    /// Whether the peer has asked for more of the info dict than anybody needs.
    fn has_metadata_enough(&self) -> bool {
        let pieces = self.config.metadata_len_bytes.unwrap_or(0).div_ceil(METADATA_PIECE_LEN);
        self.metadata_asked >= METADATA_WHOLES * pieces + METADATA_EXTRA
    }

    /// Whether the peer has asked for something whose answer is charged.
    pub(super) fn has_been_asked(&self) -> bool {
        self.answers.is_used()
    }

    /// Whether nothing is to be sent, answered or told.
    pub(super) fn is_quiet(&self) -> bool {
        self.outstanding.is_empty()
            && self.peer_requests.is_empty()
            && self.out.is_empty()
            && self.events.is_empty()
    }

    /// Gives back the memory of empty queues.
    pub(super) fn rest(&mut self) {
        (self.outstanding, self.peer_requests) = (VecDeque::new(), RequestQueue::default());
        (self.out, self.events) = (VecDeque::new(), VecDeque::new());
        self.given_up.shrink_to_fit();
        self.hash_requests.shrink_to_fit();
    }

    /// Until when the peer is not to be read, because it has asked for more than it may.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn stall_deadline(&self) -> Option<Instant> {
        let since = self.waiting_since.filter(|_| !self.snubbed)?;
        Some(since + self.bounds.request_stall_max)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.stall_deadline().is_some_and(|deadline| deadline <= now) {
            self.snubbed = true;
            self.events.push_back(ChannelEvent::Snubbed);
        }
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    pub(super) fn transmit(&mut self, list: &mut GatherList) {
        while list.has_room() {
            match self.out.pop_front() {
                None => {
                    if self.out.capacity() > 2 * QUEUE_KEEP {
                        self.out.shrink_to(QUEUE_KEEP);
                    }
                    break;
                }
                Some(Out::Plain(message)) => list.push_bytes(|small| message.encode(small)),
                Some(Out::Bytes(bytes)) => {
                    self.out_bytes -= bytes.len();
                    list.push_bytes(|small| small.extend_from_slice(&bytes));
                }
                Some(Out::Block(block)) => {
                    let header = piece_header(block.into());
                    list.push_bytes(|small| small.extend_from_slice(&header));
                    list.push_block(self.id, block);
                }
            }
        }
    }

    /// Checks the header of a `piece` message before any of its payload is kept.
    pub(super) fn begin_block(&mut self, raw: RawBlock) -> Result<BlockRef, LinkError> {
        let not_requested = LinkError::BlockNotRequested { block: raw };
        let block = self.asked_as(raw)?.ok_or(not_requested.clone())?;
        let is_wanted = self.outstanding.contains(&block);
        self.under_way = is_wanted.then_some(block);
        let known = is_wanted || self.given_up.contains(&block);
        known.then_some(block).ok_or(not_requested)
    }

    /// Whether the block that is under way answers a request that still stands.
    pub(super) fn is_under_way(&self, block: BlockRef) -> bool {
        self.under_way == Some(block)
    }

    /// The last byte of a block has come.
    pub(super) fn finish_block(&mut self, now: Instant, block: BlockRef, kept: Option<Kept>) {
        self.snubbed = false;
        if self.under_way.take() == Some(block) && self.forget_outstanding(block) {
            self.chatter.earn(CHATTER_PER_BLOCK);
            self.waiting_since = (!self.outstanding.is_empty()).then_some(now);
            self.events.push_back(ChannelEvent::Block { block, kept });
        } else {
            self.forget_given_up(block);
            self.events.push_back(ChannelEvent::Wasted { block });
        }
    }

    fn send_metadata(&mut self, message: MetadataMessage<'_>) -> bool {
        let id = self.peer_extended.as_ref().and_then(|extended| extended.metadata_id);
        if let Some(id) = id {
            let mut bytes = Vec::new();
            message.encode(id, &mut bytes);
            self.push_bytes(bytes);
        }
        id.is_some()
    }

    /// Questions of a peer that does not read our answers must not pile up here.
    fn check_replies(&self) -> Result<(), LinkError> {
        let flood = self.out.len() >= REPLIES_MAX;
        if flood { Err(LinkError::Flood { what: "questions" }) } else { Ok(()) }
    }

    fn push_reject(&mut self, raw: RawBlock) {
        if self.reserved.fast() {
            self.out.push_back(Out::Plain(Message::Reject(raw)));
        }
    }

    fn push_message(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.push_bytes(bytes);
    }

    fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.out_bytes += bytes.len();
        self.out.push_back(Out::Bytes(bytes));
    }

    fn give_up(&mut self, block: BlockRef) {
        if self.given_up.len() == GIVEN_UP_MAX {
            self.given_up.pop_front();
        }
        self.given_up.push_back(block);
    }

    fn forget_outstanding(&mut self, block: BlockRef) -> bool {
        let found = forget(&mut self.outstanding, block);
        if self.under_way == Some(block) {
            self.under_way = None;
        }
        if self.outstanding.is_empty() {
            self.waiting_since = None;
        }
        found
    }

    fn forget_given_up(&mut self, block: BlockRef) -> bool {
        forget(&mut self.given_up, block)
    }

    fn forget_peer_request(&mut self, block: BlockRef) -> bool {
        self.peer_requests.remove(block)
    }

    fn forget_hash_request(&mut self, request: HashRequest) -> Result<(), LinkError> {
        let found = self.hash_requests.iter().position(|&asked| asked == request);
        let unasked = LinkError::HashesNotRequested { request: Box::new(request) };
        self.hash_requests.swap_remove(found.ok_or(unasked)?);
        Ok(())
    }
}

/// Most hashes that an answer may have: a proof has at most one per layer, and no tree is higher than 64.
fn hashes_of(request: &HashRequest) -> u32 {
    request.length.min(SERVED_MAX) + request.proof_layers.min(64)
}

/// Removes a block; answers come in order, so it is nearly always the first.
fn forget(queue: &mut VecDeque<BlockRef>, block: BlockRef) -> bool {
    if queue.front() == Some(&block) {
        queue.pop_front();
        return true;
    }
    match queue.iter().position(|&other| other == block) {
        Some(at) => queue.remove(at).is_some(),
        None => false,
    }
}
