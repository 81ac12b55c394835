//! Whom a listing dials, and when again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringseed_core::wire::{Blame, PeerId};

use super::Shard;
use super::peer::{CloseReason, Conn, Who};
use super::timers::Timer;
use crate::api::ListingId;

/// A dial must be up by then.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(5);
/// First wait before an address is dialled again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait. A dial also fails while the other side has not heard of the listing yet, or because
/// the peer is dialling us at that moment; what lies between two tries is time without a source.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The addresses of a listing.
#[derive(Debug, Default)]
pub(super) struct Dialer {
    targets: BTreeMap<SocketAddr, Target>,
    timer_at: Option<Instant>,
}

#[derive(Debug)]
struct Target {
    /// Who answered there last.
    peer_id: Option<PeerId>,
    is_dialling: bool,
    next_at: Instant,
    backoff: Duration,
    /// Dials so far: each begins with the next of the torrent's names, as a stock client may know a
    /// hybrid by one of them only.
    attempts: usize,
}

impl Dialer {
    /// How many addresses there are.
    pub fn target_count(&self) -> usize {
        self.targets.len()
    }

    /// A handshake came over a connection: who is where.
    pub fn connected(&mut self, addr: SocketAddr, is_dialled: bool, peer_id: PeerId) {
        if let Some(target) = self.targets.get_mut(&addr).filter(|_| is_dialled) {
            target.peer_id = Some(peer_id);
            target.is_dialling = false;
            target.backoff = BACKOFF_MIN;
        }
    }
}

impl Shard {
    /// Replaces the addresses of a listing.
    pub(super) fn set_peers(&mut self, listing: ListingId, peers: Vec<std::net::SocketAddr>) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        let mut old = std::mem::take(&mut active.dialer.targets);
        let fresh = || Target {
            peer_id: None,
            is_dialling: false,
            next_at: now,
            backoff: BACKOFF_MIN,
            attempts: 0,
        };
        for addr in peers {
            let target = old.remove(&addr).unwrap_or_else(fresh);
            active.dialer.targets.insert(addr, target);
        }
        self.dial_turn(listing);
    }

    /// Dials whatever is due and not connected, and sets the timer for the rest.
    pub(super) fn dial_turn(&mut self, listing: ListingId) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        if !active.wants_peers() || self.is_stopping {
            return;
        }
        let connected: Vec<Who> =
            active.conns.iter().filter_map(|id| self.conns.get(id).and_then(Conn::who)).collect();
        let room = (self.config.peers_per_listing_max as usize).saturating_sub(active.conns.len());
        let wire_ids = active.wire_ids.clone();
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (&addr, target) in &mut active.dialer.targets {
            let is_known = |peer_id: PeerId| {
                let who = Who::of(peer_id, addr);
                connected.contains(&who) || self.banned.get(&who).is_some_and(|&until| until > now)
            };
            if target.is_dialling || target.peer_id.is_some_and(is_known) {
                continue; // looked at again when that connection ends
            }
            if target.next_at > now || due.len() >= room {
                let at = target.next_at.max(now + BACKOFF_MIN);
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            target.is_dialling = true;
            let mut ids = wire_ids.clone();
            let turn = target.attempts % ids.len().max(1);
            ids.rotate_left(turn);
            target.attempts += 1;
            due.push((addr, ids));
        }
        if let Some(at) = next
            && active.dialer.timer_at.is_none_or(|set| at < set || set <= now)
        {
            active.dialer.timer_at = Some(at);
            self.timers.set(at, Timer::Dial(listing));
        }
        for (addr, ids) in due {
            self.dial(listing, addr, ids);
        }
    }

    /// The dial timer of a listing fired.
    pub(super) fn dial_timeout(&mut self, listing: ListingId) {
        if let Some(active) = self.active.get_mut(&listing) {
            active.dialer.timer_at = None;
        }
        self.dial_turn(listing);
    }

    /// Nobody answered.
    pub(super) fn dial_failed(&mut self, listing: ListingId, addr: SocketAddr) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        if let Some(target) = active.dialer.targets.get_mut(&addr) {
            target.is_dialling = false;
            target.next_at = now + target.backoff;
            target.backoff = (target.backoff * 2).min(BACKOFF_MAX);
        }
        self.dial_turn(listing);
    }

    /// A connection has ended: dial again, unless that is pointless.
    pub(super) fn after_close(&mut self, listing: ListingId, conn: &Conn, reason: &CloseReason) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        if let Some(target) = active.dialer.targets.get_mut(&conn.addr).filter(|_| conn.is_dialled)
        {
            target.is_dialling = false;
            target.next_at = now + target.backoff;
            target.backoff = (target.backoff * 2).min(BACKOFF_MAX);
            match reason {
                CloseReason::Link(error) if error.blame() == Blame::Us => {
                    active.dialer.targets.remove(&conn.addr);
                }
                CloseReason::Link(error) if error.blame() == Blame::Peer => {
                    target.next_at = now + BACKOFF_MAX;
                }
                _ => {}
            }
        } else {
            // The peer had dialled us; our own dials to it failed as duplicates, and its address is
            // one of those whose owner we do not know. Now that the connection is gone, try soon.
            for target in active.dialer.targets.values_mut() {
                if target.peer_id.is_none() || target.peer_id == conn.peer_id {
                    target.next_at = target.next_at.min(now + BACKOFF_MIN).max(now);
                    target.backoff = BACKOFF_MIN;
                }
            }
        }
        self.dial_turn(listing);
    }
}
