//! The fast extension's hints (BEP 6): which pieces a choked peer may have, and where to begin.

use std::net::IpAddr;

use ringseed_core::geometry::PieceIndex;
use ringseed_core::wire::fast::{ALLOWED_FAST_COUNT, allowed_fast_set};

use super::Shard;
use super::peer::{Conn, ConnId};
use crate::api::ListingId;

/// Payload that a choked stranger may have of one listing at most, in bytes. Its pieces are the same for
/// all of its /24, each is given once per connection, and only to who has too little to trade.
const ALLOWED_BYTES_MAX: u64 = 4 << 20;
/// Pieces suggested to a newcomer.
const SUGGESTED: u32 = 4;

impl Shard {
    /// A peer that has next to nothing has said so: it is told what it may always ask for, and where to
    /// begin. Two newcomers that begin at different places have something to give each other.
    pub(super) fn offer_hints(&mut self, id: ConnId, listing: ListingId) {
        let random = self.next_random();
        let Some(active) = self.active.get(&listing) else { return };
        let Some(conn) = self.conns.get_mut(&id).filter(|_| self.is_serving) else { return };
        let (ip, wire_id) = (conn.addr.ip(), conn.link.peer().map(|peer| peer.wire_id));
        let is_ours = conn.peer_id.is_some_and(|peer_id| peer_id.is_ours());
        let (Some(geometry), Some(wire_id)) = (active.geometry(), wire_id) else { return };
        let Some(channel) = conn.channel_mut().filter(|channel| channel.has_fast()) else { return };
        let count = channel.peer_has().map_or(0, |has| has.count());
        if count as usize >= ALLOWED_FAST_COUNT.min(geometry.piece_count() as usize) {
            return;
        }
        let is_given = |piece: &PieceIndex| {
            active.have.get(*piece) && !active.unannounced.contains(&piece.get())
        };
        let IpAddr::V4(ip) = ip.to_canonical() else { return };
        let set = allowed_fast_set(ip, wire_id, geometry.piece_count(), ALLOWED_FAST_COUNT);
        let mut left_bytes = ALLOWED_BYTES_MAX;
        for piece in set.into_iter().filter_map(|raw| geometry.piece(raw).ok()).filter(is_given) {
            let Some(left) = left_bytes.checked_sub(geometry.piece_len(piece).into()) else {
                break;
            };
            left_bytes = left;
            channel.send_allowed_fast(piece);
        }
        // Peers of our own share the pieces among themselves by a rule.
        if !is_ours && active.is_complete() {
            let piece_count = u64::from(geometry.piece_count());
            for at in 0..u64::from(SUGGESTED).min(piece_count) {
                let raw = (random.wrapping_add(at * (piece_count / 4).max(1)) % piece_count) as u32;
                if let Ok(piece) = geometry.piece(raw) {
                    channel.send_suggest(piece);
                }
            }
        }
        self.touched.insert(id);
    }

    /// The peer gives a piece even while it chokes us.
    pub(super) fn peer_allows(&mut self, id: ConnId, listing: ListingId, piece: PieceIndex) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_allowed_fast(key, piece);
        }
        self.planning.insert(listing);
    }

    /// A piece is cheap for the peer.
    pub(super) fn peer_suggests(&mut self, id: ConnId, listing: ListingId, piece: PieceIndex) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_suggested(key, piece);
        }
    }

    /// Nothing is given any more, not even what was allowed.
    pub(super) fn revoke_hints(&mut self, id: ConnId) {
        if let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) {
            channel.revoke_allowed_fast();
            self.touched.insert(id);
        }
    }
}
