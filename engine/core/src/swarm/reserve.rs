//! Pieces that failed are fetched again from one peer alone.
//!
//! A piece of which several peers sent parts convicts nobody when it turns out bad. Fetched again from
//! one of them, or better from another, it convicts: if it is bad again, the one who sent all of it; if
//! it is good, everybody whose bytes differ from it. So a piece costs two downloads at most before
//! somebody is known.

use std::collections::BTreeMap;

use super::{Peer, PeerKey, Swarm};
use crate::geometry::PieceIndex;

/// Who alone may send a piece now, and who is passed over for it while there are others.
#[derive(Debug)]
pub(super) struct Reservation {
    by: PeerKey,
    avoid: Vec<PeerKey>,
}

/// Whether a peer may be asked for blocks of a piece.
pub(super) fn gives(
    peer: &Peer,
    reserved: &BTreeMap<PieceIndex, Reservation>,
    key: PeerKey,
    piece: PieceIndex,
) -> bool {
    peer.has.get(piece)
        && (!peer.choked || peer.allowed.contains(&piece))
        && reserved.get(&piece).is_none_or(|reservation| reservation.by == key)
}

impl Swarm {
    /// From now on one peer alone is asked for a piece: if possible none of `avoid`.
    pub(super) fn reserve(&mut self, piece: PieceIndex, avoid: &[PeerKey]) {
        let mut avoid = avoid.to_vec();
        if let Some(before) = self.reserved.remove(&piece) {
            avoid.extend(before.avoid);
        }
        avoid.sort_unstable();
        avoid.dedup();
        let can = |peer: &Peer| !peer.choked && !peer.snubbed && peer.has.get(piece);
        let able = self.peers.iter().filter(|(_, peer)| can(peer) && peer.refuses_until.is_none());
        let by = able.min_by_key(|(key, peer)| (avoid.contains(key), peer.asked_bytes));
        if let Some((&by, _)) = by {
            self.reserved.insert(piece, Reservation { by, avoid });
        }
    }

    /// A peer does not send what was reserved for it (all of it, or one piece): another one may.
    pub(super) fn pass_on_reserved(&mut self, key: PeerKey, piece: Option<PieceIndex>) {
        let is_its = |(&of, reservation): (&PieceIndex, &Reservation)| {
            let is_meant = piece.is_none_or(|piece| piece == of);
            (reservation.by == key && is_meant).then_some(of)
        };
        let passed: Vec<PieceIndex> = self.reserved.iter().filter_map(is_its).collect();
        passed.into_iter().for_each(|piece| self.reserve(piece, &[key]));
    }

    /// Whether a piece of a group is reserved for a peer.
    pub(super) fn has_reserved(&self, key: PeerKey, group: u32) -> bool {
        let is_its = |piece| self.reserved.get(&piece).is_some_and(|of| of.by == key);
        !self.reserved.is_empty() && self.work.pieces_of(group).any(is_its)
    }
}
