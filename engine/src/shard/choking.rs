//! Slots: how many stock peers are answered at a time, and which.
//!
//! Without a cap on what is sent there is a slot for everybody, and the upload round is fair by itself.
//! Under a cap each stream is to keep a rate that is of use. Nodes of a market take no slot.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ringseed_core::choke::{Candidate, Choker, ROUND};

use super::Shard;
use super::peer::{Conn, ConnId};
use super::timers::Timer;
use crate::api::Scope;

/// Least rate of a stream, in bytes per second: a block each half second.
const RATE_MIN: u64 = 32 << 10;
/// Fewest slots, however low the cap: pieces of several sources make a swarm.
const SLOTS_MIN: usize = 4;
/// A send that has lain so long shows a peer that takes nothing.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Who is answered.
#[derive(Debug, Default)]
pub(super) struct Choking {
    choker: Choker<ConnId>,
    /// Stock peers that are unchoked.
    slots: BTreeSet<ConnId>,
    /// When the next round is, while somebody waits.
    round_at: Option<Instant>,
}

impl Choking {
    /// A connection is gone. True when somebody waits for its slot.
    pub fn forget(&mut self, id: ConnId) -> bool {
        self.slots.remove(&id) && self.round_at.is_some()
    }
}

impl Shard {
    /// Slots for stock peers.
    fn slots(&self) -> usize {
        let limiter = self.seat.mesh.limiter();
        let rates = [Scope::All, Scope::Others].map(|scope| limiter.rates(scope).upload);
        match rates.into_iter().flatten().min() {
            None => usize::MAX,
            Some(rate) => {
                let shards = self.seat.mesh.shard_count() as u64;
                usize::try_from(rate / RATE_MIN / shards).unwrap_or(usize::MAX).max(SLOTS_MIN)
            }
        }
    }

    /// Whether a peer is answered without a slot. Its address says so, never its name: that is its own
    /// choice.
    fn is_always_served(&self, conn: &Conn) -> bool {
        self.door.is_member(conn.addr.ip())
    }

    /// A connection has begun, or may be served again: it is, if there is room.
    pub(super) fn unchoke_if_room(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id).filter(|_| self.is_serving) else { return };
        let is_free = self.is_always_served(conn);
        if is_free || self.choking.slots.len() < self.slots() {
            self.set_choked(id, false, !is_free);
        }
    }

    /// A peer wants payload.
    pub(super) fn slot_wanted(&mut self, id: ConnId) {
        let is_choked = |conn: &Conn| conn.channel().is_some_and(|channel| channel.choking());
        if !self.conns.get(&id).is_some_and(is_choked) {
            return;
        }
        self.unchoke_if_room(id);
        if self.conns.get(&id).is_some_and(is_choked) && self.is_serving {
            // Those who want nothing hold slots until somebody wants one.
            let wants = |conn: &Conn| conn.channel().is_some_and(|it| it.peer_interested());
            let idle = self
                .choking
                .slots
                .iter()
                .find(|id| !self.conns.get(id).is_some_and(wants))
                .copied();
            match idle {
                Some(idle) => {
                    self.set_choked(idle, true, true);
                    self.unchoke_if_room(id);
                }
                None => self.set_choke_round(self.now + ROUND),
            }
        }
    }

    /// Slots have become free, or fewer.
    pub(super) fn choke_soon(&mut self) {
        self.set_choke_round(self.now);
    }

    fn set_choke_round(&mut self, at: Instant) {
        if self.choking.round_at.is_none_or(|set| at < set) {
            self.choking.round_at = Some(at);
            self.timers.set(at, Timer::Choke);
        }
    }

    /// Gives the slots anew.
    pub(super) fn choke_round(&mut self) {
        let now = self.now;
        if self.choking.round_at.is_none_or(|at| now < at) {
            return;
        }
        self.choking.round_at = None;
        let mut candidates = Vec::new();
        for (&id, conn) in self.conns.iter() {
            let wants = conn.channel().is_some_and(|channel| channel.peer_interested());
            if !wants || self.is_always_served(conn) {
                continue;
            }
            let is_stalled = conn
                .sending
                .is_some_and(|(since, _)| now.saturating_duration_since(since) >= STALLED_AFTER);
            candidates.push(Candidate {
                key: id,
                gave_bytes: conn.gave_bytes,
                since: conn.slot_since,
                is_served: self.choking.slots.contains(&id),
                is_stalled,
            });
        }
        let is_lacking = self.active.values().any(|active| active.is_fetching());
        let slots = self.slots();
        let served = self.choking.choker.round(now, &candidates, slots, is_lacking);
        let gone: Vec<ConnId> = self.choking.slots.difference(&served).copied().collect();
        gone.into_iter().for_each(|id| self.set_choked(id, true, true));
        if self.is_serving {
            served.into_iter().for_each(|id| self.set_choked(id, false, true));
        }
        for candidate in &candidates {
            if let Some(conn) = self.conns.get_mut(&candidate.key) {
                conn.gave_bytes = 0;
            }
        }
        if candidates.len() > slots {
            self.set_choke_round(now + ROUND);
        }
    }

    fn set_choked(&mut self, id: ConnId, choked: bool, takes_slot: bool) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(channel) = conn.channel_mut() else { return };
        if channel.choking() != choked {
            channel.set_choking(choked);
            conn.slot_since = now;
            self.touched.insert(id);
        }
        match takes_slot && !choked {
            true => self.choking.slots.insert(id),
            false => self.choking.slots.remove(&id),
        };
    }

    /// Serves or chokes everybody.
    pub(super) fn set_serving(&mut self, serving: bool) {
        self.is_serving = serving;
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in ids {
            match serving {
                true => self.unchoke_if_room(id),
                false => {
                    self.revoke_hints(id);
                    self.set_choked(id, true, true);
                }
            }
        }
        if serving {
            self.choke_soon();
        }
    }
}
