//! One connection: its link, what is in flight on its socket, whom it talks to.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;
use std::{fmt, io};

use ringseed_core::geometry::{BlockRef, ExtentIndex};
use ringseed_core::wire::{
    Blame, Channel, ChannelConfig, ChannelEvent, ChannelId, Handshake, HashRequest, Link,
    LinkConfig, LinkError, LinkEvent, PeerId, WireId,
};
use ringseed_sys::arena::Extent;

use super::accounts::Account;
use super::admit::network_of;
use super::listing::Stage;
use super::mesh::Fault;
use super::timers::Timer;
use super::{Flight, Shard};
use crate::api::ListingId;
use crate::io::{Op, SockId};
use crate::store::RunSet;

/// Name of a connection, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Our protocol errors that a peer may make before its id is refused for good.
const STRIKES_MAX: u32 = 3;

/// Peer ids remembered for what they did, at most.
const PEERS_REMEMBERED_MAX: usize = 4096;

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub sock: SockId,
    pub addr: SocketAddr,
    /// We made it.
    pub is_dialled: bool,
    /// Another shard accepted it, and keeps count of its address.
    pub is_moved: bool,
    /// Which one it is of those that its dialler makes for this listing: each of its shards makes one or
    /// more. 0 for all that make one only.
    pub lane: u8,
    /// Whose torrent it speaks of; `None` until an incoming handshake has said so.
    pub listing: Option<ListingId>,
    pub peer_id: Option<PeerId>,
    /// Whose share of what is sent it takes from, once it has joined a listing.
    pub account: Option<Account>,
    pub link: Link,
    pub receiving: Receiving,
    /// Since when a send is on its way, and how many extents it keeps.
    pub sending: Option<(Instant, usize)>,
    /// Bytes on their way that are not payload.
    pub sending_small: usize,
    /// Payload of one send at most, in bytes: what this peer takes in about a second.
    pub send_bytes_max: u64,
    /// Payload of the next send is copied, because this peer would keep an extent for long.
    pub is_copied: bool,
    /// The last receive came back full: more is there, so the next one needs no wait before it.
    pub is_streaming: bool,
    /// When its timer will fire; later deadlines need no new timer.
    pub timer_at: Option<Instant>,
    /// Blocks handed to the channel to be sent, in order, with where their bytes are.
    pub served: VecDeque<Served>,
    /// Extents that were read for it and not sent yet. The cache may drop them meanwhile: with more
    /// connections than it has room for, each would push out what the others have just read.
    pub held: Vec<Held>,
    /// Payload that it has been given under caps, in bytes, beside what others were given while it wanted none.
    pub given_bytes: u64,
    /// Payload that it has sent since slots were given last, in bytes.
    pub gave_bytes: u64,
    /// Since when it is unchoked, or waits to be.
    pub slot_since: Instant,
    /// When payload last went over it in either direction, or it was made.
    pub useful_at: Instant,
    /// It lost against another connection of the same peer, and ends when the peer has been told who is
    /// here.
    pub is_leaving: bool,
    /// It is in the upload queue.
    pub is_queued: bool,
    /// Requests for leaves that were refused lately: who asks again means it.
    pub refused_leaves: VecDeque<HashRequest>,
}

/// What a connection is doing towards its next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing is in flight.
    Idle,
    /// Waiting without a buffer.
    Polling,
    /// A receive is in flight.
    InFlight,
}

/// A block on its way out: in one extent, or across two.
#[derive(Debug)]
pub(super) struct Served {
    pub block: BlockRef,
    pub parts: Parts,
}

/// Where the bytes of a block are: extent, first byte in it, length. A block lies in one extent, or in two
/// neighbours; most have no second, so there is nothing on the heap.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub first: Option<(Extent, usize, usize)>,
    pub second: Option<(Extent, usize, usize)>,
}

impl Parts {
    pub fn push(&mut self, part: (Extent, usize, usize)) {
        let place = if self.first.is_none() { &mut self.first } else { &mut self.second };
        debug_assert!(place.is_none(), "a block lies in two extents at most");
        *place = Some(part);
    }

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + usize::from(self.second.is_some())
    }
}

/// An extent that was read for a connection.
#[derive(Debug)]
pub(super) struct Held {
    pub extent: ExtentIndex,
    pub data: Extent,
    /// Pieces that may be believed in it.
    pub pieces: RunSet,
}

/// Who is held to account for what a connection brings. A peer id is what a peer calls itself, and
/// anybody may take the name of another: its address counts with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pub ip: IpAddr,
    pub peer_id: PeerId,
}

impl Who {
    /// A peer id at an address.
    pub fn of(peer_id: PeerId, addr: SocketAddr) -> Self {
        Who { ip: network_of(addr.ip()), peer_id }
    }

    #[cfg(test)]
    pub fn test(number: u8) -> Self {
        Who { ip: [127, 0, 0, number].into(), peer_id: PeerId([number; 20]) }
    }
}

impl Conn {
    /// Who is at the other end, once it has said so.
    pub fn who(&self) -> Option<Who> {
        Some(Who::of(self.peer_id?, self.addr))
    }

    /// Gives back memory that is not needed while nothing moves: what idles may idle for hours.
    pub fn rest(&mut self) {
        let is_quiet = self.receiving == Receiving::Polling && self.sending.is_none();
        if is_quiet && self.held.is_empty() && self.served.is_empty() && self.link.rest() {
            (self.held, self.served) = (Vec::new(), VecDeque::new());
        }
    }

    /// The conversation, once there is one.
    pub fn channel(&self) -> Option<&Channel> {
        self.link.channel(ChannelId::STOCK)
    }

    /// The conversation, to steer it; only while messages may flow.
    pub fn channel_mut(&mut self) -> Option<&mut Channel> {
        if !self.link.is_open() {
            return None;
        }
        self.link.channel_mut(ChannelId::STOCK)
    }
}

/// The number that a peer of our own kind gives its connection.
pub(super) fn lane_of(handshake: &Handshake) -> u8 {
    if handshake.peer_id.is_ours() { handshake.reserved.lane() } else { 0 }
}

/// Keeps a table of peer ids bounded: whoever makes up ids by the thousand only makes us forget.
pub(super) fn bound_len<T>(peers: &mut BTreeMap<Who, T>) {
    if peers.len() >= PEERS_REMEMBERED_MAX {
        peers.pop_first();
    }
}

/// Why we end a connection.
#[derive(Debug)]
pub(super) enum CloseReason {
    /// The peer closed, or the network did.
    Network(io::Error),
    /// The link says so.
    Link(LinkError),
    /// The same peer is connected already, and the other connection is kept.
    Duplicate,
    /// We know nothing of the torrent it wants.
    UnknownTorrent,
    /// All places are taken, by connections that are of use.
    Full,
    /// Its address holds as many connections as it may.
    AddressFull,
    /// Its address connects more often than it may.
    AddressThrottled,
    /// It did not shake hands, and a newcomer needed its place.
    CrowdedOut,
    /// Nothing went over it, and a newcomer needed its place.
    Displaced,
    /// Neither side wants anything of the other.
    Useless,
    /// Its data did not verify.
    BadData,
    /// The listing is removed, or the engine stops.
    Gone,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Network(error) => write!(f, "{error}"),
            CloseReason::Link(error) => write!(f, "{error}"),
            CloseReason::Duplicate => f.write_str("connected to this peer already"),
            CloseReason::UnknownTorrent => f.write_str("no such torrent here"),
            CloseReason::Full => f.write_str("enough peers"),
            CloseReason::AddressFull => f.write_str("enough connections from its address"),
            CloseReason::AddressThrottled => f.write_str("its address connects too often"),
            CloseReason::CrowdedOut => f.write_str("no handshake, and others wait"),
            CloseReason::Displaced => f.write_str("nothing moves, and others wait"),
            CloseReason::Useless => f.write_str("both sides have everything"),
            CloseReason::BadData => f.write_str("its data did not verify"),
            CloseReason::Gone => f.write_str("the listing is gone or the engine stops"),
        }
    }
}

impl CloseReason {
    /// A word for logs and metrics that stays the same over versions and values.
    pub fn code(&self) -> &'static str {
        match self {
            CloseReason::Network(_) => "network",
            CloseReason::Link(error) => error.code(),
            CloseReason::Duplicate => "duplicate",
            CloseReason::UnknownTorrent => "unknown-torrent",
            CloseReason::Full => "full",
            CloseReason::AddressFull => "address-full",
            CloseReason::AddressThrottled => "address-throttled",
            CloseReason::CrowdedOut => "crowded-out",
            CloseReason::Displaced => "displaced",
            CloseReason::Useless => "useless",
            CloseReason::BadData => "bad-data",
            CloseReason::Gone => "gone",
        }
    }

    /// The peer broke a rule.
    pub fn is_breach(&self) -> bool {
        match self {
            CloseReason::Link(error) => error.blame() == Blame::Peer,
            reason => matches!(reason, CloseReason::BadData),
        }
    }

    /// The peer did what no honest one does, or took more than its part.
    pub fn is_hostile(&self) -> bool {
        match self {
            CloseReason::Link(error) => {
                let is_slow = matches!(
                    error,
                    LinkError::HandshakeTimeout { .. }
                        | LinkError::Trickle { .. }
                        | LinkError::SendStalled { .. }
                );
                is_slow || error.blame() == Blame::Peer
            }
            CloseReason::AddressFull
            | CloseReason::AddressThrottled
            | CloseReason::CrowdedOut
            | CloseReason::BadData => true,
            CloseReason::Network(_)
            | CloseReason::Duplicate
            | CloseReason::UnknownTorrent
            | CloseReason::Full
            | CloseReason::Displaced
            | CloseReason::Useless
            | CloseReason::Gone => false,
        }
    }
}

impl Shard {
    fn link_config(&self, lane: u8) -> LinkConfig {
        let shards = self.seat.mesh.shard_count();
        // One shard says nothing of it, as a stock client does.
        let shards = if shards > 1 { u8::try_from(shards).unwrap_or(u8::MAX) } else { 0 };
        let peer_id = PeerId(self.config.peer_id);
        let requests_in_max = self.config.requests_per_peer_max;
        LinkConfig { peer_id, lane, shards, requests_in_max, ..LinkConfig::default() }
    }

    /// The listener has accepted a connection.
    pub(super) fn handle_accepted(&mut self, sock: SockId, addr: SocketAddr) {
        if let Err(reason) = self.admit(addr) {
            self.refuse(sock, addr, &reason);
            return;
        }
        let link = Link::incoming(self.now, self.link_config(0));
        let id = self.add_conn(sock, addr, false, None, link);
        self.door.opened(id, addr.ip(), self.now);
    }

    /// A connection of ours is up.
    pub(super) fn add_dialled(
        &mut self,
        sock: SockId,
        addr: SocketAddr,
        listing: ListingId,
        wire_ids: &[WireId],
        lane: u8,
    ) {
        let Some(channel) = self.channel_config(listing) else {
            self.out.push_back(Op::Close { sock });
            return;
        };
        let link = Link::outgoing(self.now, self.link_config(lane), wire_ids, channel);
        let id = self.add_conn(sock, addr, true, Some(listing), link);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.lane = lane;
        }
    }

    pub(super) fn add_conn(
        &mut self,
        sock: SockId,
        addr: SocketAddr,
        is_dialled: bool,
        listing: Option<ListingId>,
        link: Link,
    ) -> ConnId {
        self.next_conn += 1;
        let id = ConnId(self.next_conn);
        let conn = Conn {
            sock,
            addr,
            is_dialled,
            is_moved: false,
            lane: 0,
            listing,
            peer_id: None,
            account: None,
            link,
            receiving: Receiving::Idle,
            sending: None,
            sending_small: 0,
            send_bytes_max: super::serve::SEND_BYTES_FIRST,
            is_copied: false,
            is_streaming: false,
            timer_at: None,
            served: VecDeque::new(),
            given_bytes: 0,
            gave_bytes: 0,
            slot_since: self.now,
            useful_at: self.now,
            is_leaving: false,
            held: Vec::new(),
            is_queued: false,
            refused_leaves: VecDeque::new(),
        };
        self.conns.insert(id, conn);
        self.seat.mesh.conn_opened();
        if is_dialled {
            self.dials.greets();
        }
        if let Some(active) = listing.and_then(|listing| self.active.get_mut(&listing)) {
            active.conns.insert(id);
        }
        self.counters.peers.set(self.conns.len() as u64);
        self.touched.insert(id);
        id
    }

    fn channel_config(&self, listing: ListingId) -> Option<ChannelConfig> {
        let active = self.active.get(&listing)?;
        let geometry = active.geometry().cloned();
        let info = active.metainfo.as_ref().map(|metainfo| metainfo.info());
        let metadata_len_bytes = info.map(|info| info.raw().len() as u32);
        let (upload_only, v2_id) = (active.is_complete(), active.v2_id());
        Some(ChannelConfig { geometry, metadata_len_bytes, upload_only, v2_id })
    }

    /// Ends a connection: closes its socket, gives its requests back, dials again if that is sensible.
    pub(super) fn close_conn(&mut self, id: ConnId, reason: CloseReason) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if let Some((_, pinned)) = conn.sending.filter(|(_, pinned)| *pinned > 0) {
            self.uploads.ended(pinned);
        }
        self.seat.mesh.conn_closed();
        self.leave_account(conn.account, id);
        if conn.is_dialled && conn.peer_id.is_none() {
            self.dials.greeted();
        }
        if self.choking.forget(id) {
            self.choke_soon();
        }
        if conn.is_moved {
            self.tell_door(conn.addr, Fault::of(&reason));
        } else if !conn.is_dialled {
            self.door.closed(id, conn.addr.ip(), &reason, self.now);
        }
        let peer_id = conn.peer_id.map(|peer_id| peer_id.0);
        self.tell_closed(conn.addr, conn.listing, peer_id, &reason);
        self.out.push_back(Op::Close { sock: conn.sock });
        self.counters.peers.set(self.conns.len() as u64);
        self.touched.remove(&id);
        if let Some(listing) = conn.listing {
            self.forget_requests(listing, id);
            if let Some(active) = self.active.get_mut(&listing) {
                active.conns.remove(&id);
                active.metadata.forget_conn(id);
                active.blame.forget_conn(id);
            }
            self.after_close(listing, &conn, &reason);
        }
        if let CloseReason::Link(error) = &reason
            && error.blame() == Blame::Peer
            && let Some(who) = conn.who()
        {
            bound_len(&mut self.strikes);
            let strikes = self.strikes.entry(who).or_insert(0);
            *strikes += 1;
            if *strikes >= STRIKES_MAX {
                self.ban(who.peer_id, conn.addr, error.to_string());
            }
        }
    }

    /// Takes what the link has to say, after bytes or a timeout.
    pub(super) fn drain_link(&mut self, id: ConnId) {
        self.touched.insert(id);
        while let Some(event) = self.conns.get_mut(&id).and_then(|conn| conn.link.poll_event()) {
            match event {
                LinkEvent::Handshake(handshake) => self.handle_handshake(id, handshake),
                LinkEvent::Channel { event, .. } => self.handle_channel_event(id, event),
            }
        }
    }

    fn handle_handshake(&mut self, id: ConnId, handshake: Handshake) {
        let Handshake { wire_id, peer_id, .. } = handshake;
        let addr = self.conns.get(&id).map(|conn| conn.addr);
        if addr.is_some_and(|addr| self.is_banned(&Who::of(peer_id, addr))) {
            self.close_conn(id, CloseReason::BadData);
            return;
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        self.door.settled(id, conn.addr.ip());
        if conn.is_dialled && conn.peer_id.is_none() {
            self.dials.greeted();
        }
        conn.peer_id = Some(peer_id);
        if !conn.is_dialled {
            conn.lane = lane_of(&handshake);
        }
        let listing = match conn.listing {
            Some(listing) => listing,
            None => {
                let Some(listing) = self.find_wire_id(&wire_id) else {
                    if self.move_to_owner(id, handshake) {
                        return;
                    }
                    self.close_conn(id, CloseReason::UnknownTorrent);
                    return;
                };
                if self.wait_for_cold(id, listing, handshake) {
                    return;
                }
                listing
            }
        };
        self.join_listing(id, listing, handshake);
    }

    /// A connection whose handshake is known takes its place in a listing that is active.
    pub(super) fn join_listing(&mut self, id: ConnId, listing: ListingId, handshake: Handshake) {
        let Handshake { wire_id, peer_id, .. } = handshake;
        if self.spread(id, listing, handshake) {
            return;
        }
        if peer_id.0 == self.config.peer_id || self.resolve_duplicate(id, listing, peer_id) {
            self.say_who_is_here(id, listing, wire_id);
            return;
        }
        let is_alive = |active: &&mut super::Active| !matches!(active.stage, Stage::Failed(_));
        let Some(active) = self.active.get_mut(&listing).filter(is_alive) else {
            self.close_conn(id, CloseReason::UnknownTorrent);
            return;
        };
        let conn_count = active.conns.len();
        let is_full = self
            .active
            .get(&listing)
            .is_some_and(|active| conn_count >= self.peers_per_listing_max(active));
        let is_dialled = self.conns.get(&id).is_some_and(|conn| conn.is_dialled);
        if is_full && !is_dialled && !self.displace_one(Some(listing)) {
            self.close_conn(id, CloseReason::Full);
            return;
        }
        let Some(active) = self.active.get_mut(&listing) else { return };
        let conn = self.conns.get_mut(&id).expect("looked up above");
        active.conns.insert(id);
        let turn = (usize::from(conn.lane) / self.seat.mesh.shard_count()) as u8;
        active.dialer.connected(conn.addr, turn, conn.is_dialled, peer_id);
        let addr = conn.addr;
        active.note_source(Who::of(peer_id, addr), addr);
        if !conn.is_dialled {
            let Some(config) = self.channel_config(listing) else { return };
            let conn = self.conns.get_mut(&id).expect("looked up above");
            conn.listing = Some(listing);
            conn.link.accept(wire_id, config);
        }
        self.join_account(id);
        self.greet(id, listing);
        self.widen(id, listing, &handshake);
    }

    /// Both sides may have dialled each other. The connection that the lower peer id dialled is kept,
    /// so that both sides keep the same one. True when this connection is the one that went.
    fn resolve_duplicate(&mut self, id: ConnId, listing: ListingId, peer_id: PeerId) -> bool {
        let Some(active) = self.active.get(&listing) else { return false };
        // The same name at another address may be a stranger who wants the honest one thrown out.
        let Some(who) = self.conns.get(&id).and_then(Conn::who) else { return false };
        let lane = self.conns.get(&id).map(|conn| conn.lane);
        let same = |other: &&ConnId| {
            let other_conn = self.conns.get(other).filter(|conn| Some(conn.lane) == lane);
            **other != id && other_conn.and_then(Conn::who) == Some(who)
        };
        let Some(&other) = active.conns.iter().find(same) else { return false };
        let we_are_lower = self.config.peer_id < peer_id.0;
        let is_dialled = |id| self.conns.get(&id).is_some_and(|conn: &Conn| conn.is_dialled);
        let keep_new = match (is_dialled(id), is_dialled(other)) {
            // Two of one direction: the peer has dialled again, so it has given the older one up; of
            // two that we dialled (two addresses of one peer) the older one stays.
            (false, false) => true,
            (true, true) => false,
            (new_is_ours, _) => new_is_ours == we_are_lower,
        };
        if keep_new {
            self.close_conn(other, CloseReason::Duplicate);
            false
        } else {
            if let Some(active) = self.active.get_mut(&listing)
                && let Some(conn) = self.conns.get(&id)
            {
                let turn = (usize::from(conn.lane) / self.seat.mesh.shard_count()) as u8;
                active.dialer.connected(conn.addr, turn, conn.is_dialled, peer_id);
            }
            true
        }
    }

    /// Ends a connection that lost against another one of the same peer, or that we made to ourselves. Who
    /// dialled it must learn whom it has reached, or it would dial this address for ever: our handshake
    /// goes out first.
    fn say_who_is_here(&mut self, id: ConnId, listing: ListingId, wire_id: WireId) {
        let config = self.channel_config(listing);
        match (self.conns.get_mut(&id), config) {
            (Some(conn), Some(config)) if !conn.is_dialled => {
                conn.is_leaving = true;
                conn.link.accept(wire_id, config);
                self.touched.insert(id);
            }
            _ => self.close_conn(id, CloseReason::Duplicate),
        }
    }

    /// The first messages of ours on a connection.
    fn greet(&mut self, id: ConnId, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else { return };
        // Verified pieces that wait for neighbours in their extent cannot be served yet: whoever read
        // of them here would ask and be refused. They are announced when they can be had.
        let have = active.geometry().map(|geometry| {
            let mut have = active.have.clone();
            let waiting = active.unannounced.iter().filter_map(|&piece| geometry.piece(piece).ok());
            waiting.for_each(|piece| {
                have.clear(piece);
            });
            have
        });
        channel.send_availability(have.as_ref());
        self.touched.insert(id);
        self.unchoke_if_room(id);
    }

    fn handle_channel_event(&mut self, id: ConnId, event: ChannelEvent) {
        let Some(listing) = self.conns.get(&id).and_then(|conn| conn.listing) else { return };
        match event {
            ChannelEvent::Availability => {
                self.peer_availability(id, listing);
                self.offer_hints(id, listing);
            }
            ChannelEvent::Have(piece) => self.peer_have(id, listing, piece),
            ChannelEvent::DontHave(piece) => self.peer_dont_have(id, listing, piece),
            ChannelEvent::Choked { dropped } => self.peer_choked(id, listing, &dropped),
            ChannelEvent::Unchoked => self.peer_unchoked(id, listing),
            ChannelEvent::Interested => {
                self.slot_wanted(id);
                self.check_useful(id, listing);
            }
            ChannelEvent::NotInterested => self.check_useful(id, listing),
            ChannelEvent::Suggest(piece) => self.peer_suggests(id, listing, piece),
            ChannelEvent::AllowedFast(piece) => self.peer_allows(id, listing, piece),
            ChannelEvent::Block { block, kept } => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.gave_bytes += u64::from(block.len());
                }
                self.block_landed(id, listing, block, kept);
            }
            ChannelEvent::Wasted { block } => self.count_waste(listing, u64::from(block.len())),
            ChannelEvent::Rejected(block) => self.request_failed(id, listing, block),
            ChannelEvent::Snubbed => self.peer_snubs(id, listing),
            ChannelEvent::Request(_) => self.queue_upload(id),
            ChannelEvent::Cancelled(_) => {}
            ChannelEvent::Extended(extended) => self.peer_extended(id, listing, extended),
            ChannelEvent::MetadataRequest { index } => self.serve_metadata(id, listing, index),
            ChannelEvent::MetadataPiece { index, total_len_bytes, data } => {
                self.metadata_piece(id, listing, index, total_len_bytes, data);
            }
            ChannelEvent::MetadataRejected { index } => self.metadata_refused(id, listing, index),
            ChannelEvent::HashRequest(request) => self.serve_hashes(id, listing, request),
            ChannelEvent::Hashes { request, hashes } => {
                self.hashes_arrived(id, listing, request, &hashes);
            }
            ChannelEvent::HashesRejected(request) => self.hashes_refused(id, listing, request),
        }
    }

    /// Sets the connection's timer to what its link asks for.
    pub(super) fn arm_timer(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let at = conn.link.poll_timeout();
        // An earlier timer that finds nothing to do sets the next one.
        if conn.timer_at.is_none_or(|set| at < set) {
            conn.timer_at = Some(at);
            self.timers.set(at, Timer::Conn(id));
        }
    }

    /// The connection's timer fired.
    pub(super) fn conn_timeout(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.timer_at = None;
        match conn.link.handle_timeout(self.now) {
            Ok(()) => self.drain_link(id),
            Err(error) => self.close_conn(id, CloseReason::Link(error)),
        }
    }

    /// Answer to [`Op::Connect`].
    pub(super) fn handle_connected(
        &mut self,
        listing: ListingId,
        addr: SocketAddr,
        turn: u8,
        wire_ids: &[WireId],
        result: io::Result<SockId>,
    ) {
        self.dials.connected();
        match result {
            Ok(sock) if !self.active.contains_key(&listing) || self.is_stopping => {
                self.out.push_back(Op::Close { sock });
            }
            Ok(sock) => {
                if self.is_full() && !self.displace_one(None) {
                    self.displace_elsewhere();
                    self.refuse(sock, addr, &CloseReason::Full);
                    return self.dial_failed(listing, addr, turn);
                }
                let is_striped =
                    self.active.get(&listing).is_some_and(|active| active.stripe.is_some());
                let lane = if is_striped { self.lane_of(turn) } else { 0 };
                self.add_dialled(sock, addr, listing, wire_ids, lane);
            }
            Err(error) => {
                tracing::trace!(%addr, %error, "dial failed");
                self.dial_failed(listing, addr, turn);
            }
        }
    }

    /// Starts a dial; see [`Shard::handle_connected`].
    pub(super) fn dial(
        &mut self,
        listing: ListingId,
        (addr, turn): (SocketAddr, u8),
        wire_ids: Vec<WireId>,
    ) {
        let id = self.flights.insert(Flight::Connect { listing, addr, turn, wire_ids });
        self.dials.begun();
        self.out.push_back(Op::Connect { id, addr, timeout: super::dial::CONNECT_MAX });
    }
}
