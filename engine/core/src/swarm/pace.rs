//! Who fills extents alone, and who does it together with others.
//!
//! An extent that one peer fills keeps its buffer, and the piece around it many more, for as long as that
//! peer needs. Two hundred peers at 10 KiB/s once took an extent each: all memory there was, for half a
//! minute at a time, and a peer a thousand times as fast got what happened to be left, 8 % of its speed.
//! So a peer's part of the buffers follows its part of the rate of all. Whoever has no whole extent coming
//! to it is given a few blocks of one that others like it fill as well (*jointly*), in groups which the fast
//! ones leave to them until there is nothing else. Their pieces get whole one after the other, and
//! nothing that is fast waits for anything that is slow.

use std::time::{Duration, Instant};

use super::{Budget, Peer, PeerKey, Swarm, is_willing};
use crate::geometry::{BLOCK_LEN, PieceIndex};

/// A peer that fills extents alone goes on while so many come to it by its rate,
const ALONE_LEAST: f64 = 1.0;
/// and one that does it together fills them alone from so many on.
const ALONE_FROM: f64 = 2.0;
/// The same of one whose rate is not known: what it holds may be held for long.
const ALONE_UNKNOWN: f64 = 2.0;
/// How often rates are compared: as long as the first window in which a rate is measured.
const COMPARE_EVERY: Duration = Duration::from_millis(20);
/// A peer that has not answered its first request by then is no faster than that says: longer than the round
/// trip of any two hosts.
pub(super) const SILENCE: Duration = Duration::from_millis(300);
/// Part of all buffers that is left free for those that fill extents alone.
const KEPT_PART: u32 = 8;

/// What kinds of peers there are, as far as they could be asked for something.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// One that fills extents alone.
    pub(super) has_alone: bool,
    /// One that does it together with others.
    pub(super) has_joint: bool,
    /// Peers have come, gone, choked or the like since they were compared.
    pub(super) is_stale: bool,
    compared_at: Option<Instant>,
}

/// Whether a peer may begin an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It may.
    Free,
    /// There is no buffer.
    None,
    /// What there is is kept for faster ones.
    Kept,
}

/// Whether a peer counts: one that could be asked for something and does not leave us waiting.
fn counts(peer: &Peer) -> bool {
    is_willing(peer) && peer.useful > 0 && !peer.snubbed
}

impl Swarm {
    /// Compares the rates of all peers, if that was long enough ago. `extents`: how many there are buffers
    /// for.
    pub(super) fn sort_by_pace(&mut self, now: Instant, extents: u32) {
        let is_due = self.pace.compared_at.is_none_or(|at| at + COMPARE_EVERY <= now);
        if !is_due && !self.pace.is_stale {
            return;
        }
        let counted = || self.peers.values().filter(|&peer| counts(peer));
        let count = counted().count() as f64;
        let rate_of_all: f64 = counted().filter_map(|peer| peer.rate.get()).sum();
        let (mut has_alone, mut has_joint) = (false, false);
        let mut turned_joint = Vec::new();
        for (&key, peer) in &mut self.peers {
            let least = if peer.is_joint { ALONE_FROM } else { ALONE_LEAST };
            // Of whom nothing is known is taken for one like any other, until it is silent for long.
            let silent = now.saturating_duration_since(peer.last_block);
            let is_silent = silent >= SILENCE && !peer.asked.is_empty();
            let at_most = is_silent.then(|| f64::from(BLOCK_LEN) / silent.as_secs_f64());
            let (part, least) = match peer.rate.get().or(at_most) {
                Some(rate) if rate_of_all > 0.0 => (rate / rate_of_all, least),
                _ => (1.0 / count.max(1.0), ALONE_UNKNOWN),
            };
            let was_joint = peer.is_joint;
            peer.is_joint = part * f64::from(extents) < least;
            if peer.is_joint && !was_joint {
                turned_joint.push(key);
            }
            has_alone |= counts(peer) && !peer.is_joint;
            has_joint |= counts(peer) && peer.is_joint;
        }
        if self.pace.has_joint && !has_joint {
            self.work.clear_joint();
        }
        self.pace = Pace { has_alone, has_joint, is_stale: false, compared_at: Some(now) };
        turned_joint.into_iter().for_each(|key| self.let_others_join(key));
    }

    /// Whether a peer may begin an extent.
    pub(super) fn room(&self, key: PeerKey, budget: &Budget) -> Room {
        let is_behind = self.peers[&key].is_joint && self.pace.has_alone;
        if is_behind && budget.new_extents <= budget.extents / KEPT_PART {
            Room::Kept
        } else if budget.new_extents == 0 {
            Room::None
        } else {
            Room::Free
        }
    }

    /// What a peer that fills extents together has not been asked for is for whoever comes next.
    pub(super) fn let_others_join(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_joint) else { return };
        let owned = std::mem::take(&mut peer.owned);
        owned.into_iter().for_each(|extent| self.disown(extent, key));
    }

    /// Whether peers fill extents together.
    pub fn has_joint(&self) -> bool {
        self.pace.has_joint
    }

    /// Whether a piece is being filled by peers that take long for it.
    pub fn is_filled_jointly(&self, piece: PieceIndex) -> bool {
        self.work.is_joint(self.work.group_of_piece(piece))
    }
}
