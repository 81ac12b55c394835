//! Whom a listing dials, and when again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringseed_core::wire::{Blame, PeerId};

use super::Shard;
use super::listing::Stage;
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

/// An address where everything is already is looked at again after this time.
const USELESS_PAUSE: Duration = Duration::from_secs(60);
/// Addresses of a listing that somebody else named (a tracker), at most: more than its connections, so
/// that dead ones have successors, and far from a list by which we could be aimed at a victim.
pub(super) const FOUND_MAX: usize = 200;
/// Of these, dialled in one second at most, over each listing.
const FOUND_DIALS_PER_SECOND: u32 = 10;
/// First and longest wait before such an address is dialled again, and tries in vain before it is
/// forgotten: whoever named it will name it again if it lives.
const FOUND_BACKOFF_MIN: Duration = Duration::from_secs(1);
const FOUND_BACKOFF_MAX: Duration = Duration::from_secs(60);
const FOUND_TRIES_MAX: u32 = 5;

/// Dials at most that have not led to a handshake yet. A peer of our kind lets 256 strangers stand before its
/// door; with half of that on their way, none of ours is turned away there, and each takes a round trip.
const GREETING_MAX: usize = 128;
/// How soon a connection of no use is looked for again, when all places are taken and somebody is to be dialled.
const DISPLACE_PAUSE: Duration = Duration::from_secs(1);

/// One address of one peer, however it was written: IPv4 in IPv6 clothes is IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Dials of all listings of a shard. Thousands of listings may be added in one moment, each with an address:
/// those that have no place wait here in order, and every end of a connection or of a dial calls the next.
#[derive(Debug, Default)]
pub(super) struct Dials {
    /// Connections that are being made.
    connecting: usize,
    /// Those that are made and over which no handshake has come.
    greeting: usize,
    waiting: VecDeque<ListingId>,
    is_waiting: BTreeSet<ListingId>,
    /// When a connection of no use is looked for next.
    displace_at: Option<Instant>,
}

impl Dials {
    /// A connection is to be made.
    pub fn begun(&mut self) {
        self.connecting += 1;
    }

    /// It is made, or could not be.
    pub fn connected(&mut self) {
        self.connecting -= 1;
    }

    /// The other end is to shake hands.
    pub fn greets(&mut self) {
        self.greeting += 1;
    }

    /// It has, or never will.
    pub fn greeted(&mut self) {
        self.greeting -= 1;
    }

    /// A listing has somebody to dial and no place for it.
    fn wait(&mut self, listing: ListingId) {
        if self.is_waiting.insert(listing) {
            self.waiting.push_back(listing);
        }
    }

    fn next(&mut self) -> Option<ListingId> {
        let listing = self.waiting.pop_front()?;
        self.is_waiting.remove(&listing);
        Some(listing)
    }
}

/// The addresses of a listing.
#[derive(Debug, Default)]
pub(super) struct Dialer {
    /// By address, and which connection to it: several where shards on both sides share a listing.
    targets: BTreeMap<(SocketAddr, u8), Target>,
    timer_at: Option<Instant>,
    /// The second that is counted, and dials of found addresses in it.
    found_dials: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Target {
    /// Who answered there last.
    peer_id: Option<PeerId>,
    is_dialling: bool,
    next_at: Instant,
    backoff: Duration,
    /// Named by somebody else than the user.
    is_found: bool,
    /// Times in a row that nothing came of it.
    failures: u32,
    /// Dials so far: each begins with the next of the torrent's names, as a stock client may know a
    /// hybrid by one of them only.
    attempts: usize,
}

impl Target {
    fn new(now: Instant, is_found: bool) -> Self {
        let backoff = if is_found { FOUND_BACKOFF_MIN } else { BACKOFF_MIN };
        Target {
            peer_id: None,
            is_dialling: false,
            next_at: now,
            backoff,
            is_found,
            failures: 0,
            attempts: 0,
        }
    }

    /// A dial or a connection has ended: wait, and longer every time.
    fn wait(&mut self, now: Instant) {
        let longest = if self.is_found { FOUND_BACKOFF_MAX } else { BACKOFF_MAX };
        self.is_dialling = false;
        self.next_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(longest);
    }
}

impl Dialer {
    /// How many addresses the user has given.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|((_, turn), target)| *turn == 0 && !target.is_found).count()
    }

    /// These addresses.
    pub fn given(&self) -> Vec<SocketAddr> {
        let given = self.targets.iter().filter(|((_, turn), it)| *turn == 0 && !it.is_found);
        given.map(|((addr, _), _)| *addr).collect()
    }

    /// So many connections are to be made to an address that is known.
    pub fn widen(&mut self, addr: SocketAddr, count: usize, now: Instant) {
        let Some(is_found) = self.targets.get(&(addr, 0)).map(|target| target.is_found) else {
            return;
        };
        for turn in 1..u8::try_from(count).unwrap_or(u8::MAX) {
            self.targets.entry((addr, turn)).or_insert_with(|| Target::new(now, is_found));
        }
    }

    /// Whether another found address may be dialled in this second.
    fn take_found_dial(&mut self, now: Instant) -> bool {
        let (since, count) = self.found_dials.get_or_insert((now, 0));
        if now >= *since + Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= FOUND_DIALS_PER_SECOND
    }

    /// A handshake came over a connection: who is where.
    pub fn connected(&mut self, addr: SocketAddr, turn: u8, is_dialled: bool, peer_id: PeerId) {
        if let Some(target) = self.targets.get_mut(&(addr, turn)).filter(|_| is_dialled) {
            target.peer_id = Some(peer_id);
            target.is_dialling = false;
            target.failures = 0;
            target.backoff = if target.is_found { FOUND_BACKOFF_MIN } else { BACKOFF_MIN };
        }
    }
}

impl Shard {
    /// Replaces the addresses of a listing that the user gave.
    pub(super) fn set_peers(&mut self, listing: ListingId, peers: Vec<SocketAddr>) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        let targets = &mut active.dialer.targets;
        let is_found = |_: &(SocketAddr, u8), target: &mut Target| !target.is_found;
        let mut old: BTreeMap<(SocketAddr, u8), Target> =
            targets.extract_if(.., is_found).collect();
        for addr in peers.into_iter().map(canonical) {
            let key = (addr, 0);
            let known = old.remove(&key).or_else(|| targets.remove(&key));
            let mut target = known.unwrap_or_else(|| Target::new(now, false));
            target.is_found = false;
            targets.insert(key, target);
            let others: Vec<_> = old.extract_if((addr, 1)..=(addr, u8::MAX), |_, _| true).collect();
            targets.extend(others);
        }
        self.dial_turn(listing);
    }

    /// Adds addresses that somebody else named. What is known already stays as it is.
    pub(super) fn found_peers(&mut self, listing: ListingId, peers: Vec<SocketAddr>) {
        if self.wake_to_dial(listing, &peers) {
            return;
        }
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        let targets = &mut active.dialer.targets;
        let mut room =
            FOUND_MAX.saturating_sub(targets.values().filter(|target| target.is_found).count());
        for addr in peers.into_iter().map(canonical) {
            if room > 0 && !targets.contains_key(&(addr, 0)) {
                targets.insert((addr, 0), Target::new(now, true));
                room -= 1;
            }
        }
        self.dial_turn(listing);
    }

    /// Dials whatever is due and not connected, and sets the timer for the rest.
    pub(super) fn dial_turn(&mut self, listing: ListingId) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        let brings =
            self.config.dials_as_seed && active.stage == Stage::Running && active.is_complete();
        if !(active.wants_peers() || brings) || self.is_stopping {
            return;
        }
        let connected: Vec<(Who, u8)> = active
            .conns
            .iter()
            .filter_map(|id| self.conns.get(id).and_then(|conn| Some((conn.who()?, conn.lane))))
            .collect();
        let Some(active) = self.active.get(&listing) else { return };
        let room = self.peers_per_listing_max(active).saturating_sub(active.conns.len());
        let places = self.dial_places();
        let is_striped = active.stripe.is_some();
        let (index, shards) = (self.seat.index, self.seat.mesh.shard_count());
        let lane_of = |turn: u8| match is_striped {
            true => u8::try_from(index + usize::from(turn) * shards).unwrap_or(u8::MAX),
            false => 0,
        };
        let Some(active) = self.active.get_mut(&listing) else { return };
        let wire_ids = active.wire_ids.clone();
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        let mut targets = std::mem::take(&mut active.dialer.targets);
        for (&(addr, turn), target) in &mut targets {
            let who = target.peer_id.map(|peer_id| Who::of(peer_id, addr));
            let is_connected = |who| connected.contains(&(who, lane_of(turn)));
            if target.is_dialling || who.is_some_and(is_connected) {
                continue; // looked at again when that connection ends
            }
            let banned_until = who.and_then(|who| self.banned.get(&who));
            if let Some(&until) = banned_until.filter(|&&until| until > now) {
                next = Some(next.map_or(until, |next| next.min(until)));
                continue;
            }
            let is_due = target.next_at <= now && due.len() < room;
            if is_due && due.len() >= places {
                self.dials.wait(listing);
                continue;
            }
            if !is_due || (target.is_found && !active.dialer.take_found_dial(now)) {
                let soon = if target.is_found { FOUND_BACKOFF_MIN } else { BACKOFF_MIN };
                let at = target.next_at.max(now + soon);
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            target.is_dialling = true;
            let mut ids = wire_ids.clone();
            let first = target.attempts % ids.len().max(1);
            ids.rotate_left(first);
            target.attempts += 1;
            due.push(((addr, turn), ids));
        }
        active.dialer.targets = targets;
        if let Some(at) = next
            && active.dialer.timer_at.is_none_or(|set| at < set || set <= now)
        {
            active.dialer.timer_at = Some(at);
            self.timers.set(at, Timer::Dial(listing));
        }
        for (to, ids) in due {
            self.dial(listing, to, ids);
        }
    }

    /// Dials that may begin now: as many as there are places, and none of them to a door that is crowded by us.
    fn dial_places(&self) -> usize {
        let Dials { connecting, greeting, .. } = self.dials;
        let taken = self.seat.mesh.conn_count() + connecting;
        let places = (self.config.peers_max as usize).saturating_sub(taken);
        places.min(GREETING_MAX.saturating_sub(connecting + greeting))
    }

    /// Dials for those that waited for a place.
    pub(super) fn pump_dials(&mut self) {
        if self.is_stopping {
            return;
        }
        for _ in 0..self.dials.waiting.len() {
            if self.dial_places() == 0 && !self.make_dial_place() {
                return;
            }
            let Some(listing) = self.dials.next() else { return };
            self.dial_turn(listing);
        }
    }

    /// A connection over which nothing moves gives way to a dial, as it does to a newcomer. Other shards may
    /// hold the places: therefore, and as connections become useless by time alone, it is tried again.
    fn make_dial_place(&mut self) -> bool {
        if self.dials.connecting + self.dials.greeting >= GREETING_MAX {
            return false; // each of them ends soon
        }
        if self.dials.displace_at.is_some_and(|at| at > self.now) {
            return false;
        }
        if self.displace_one(None) {
            return self.dial_places() > 0;
        }
        self.displace_elsewhere();
        let at = self.now + DISPLACE_PAUSE;
        self.dials.displace_at = Some(at);
        self.timers.set(at, Timer::Commit);
        false
    }

    /// The dial timer of a listing fired.
    pub(super) fn dial_timeout(&mut self, listing: ListingId) {
        if let Some(active) = self.active.get_mut(&listing) {
            active.dialer.timer_at = None;
        }
        self.dial_turn(listing);
    }

    /// Nobody answered.
    pub(super) fn dial_failed(&mut self, listing: ListingId, addr: SocketAddr, turn: u8) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        if let Some(target) = active.dialer.targets.get_mut(&(addr, turn)) {
            target.wait(now);
            target.failures += 1;
            if target.is_found && target.failures >= FOUND_TRIES_MAX {
                active.dialer.targets.remove(&(addr, turn));
            }
        }
        self.dial_turn(listing);
    }

    /// A connection has ended: dial again, unless that is pointless.
    pub(super) fn after_close(&mut self, listing: ListingId, conn: &Conn, reason: &CloseReason) {
        let now = self.now;
        let key = (conn.addr, self.turn_of(conn));
        let Some(active) = self.active.get_mut(&listing) else { return };
        if let Some(target) = active.dialer.targets.get_mut(&key).filter(|_| conn.is_dialled) {
            target.wait(now);
            target.failures += 1;
            let is_hopeless = target.is_found && target.failures >= FOUND_TRIES_MAX;
            match reason {
                CloseReason::Link(error) if error.blame() == Blame::Us => {
                    active.dialer.targets.remove(&key);
                }
                // Both have everything: neither will miss the other soon.
                CloseReason::Useless => target.next_at = now + USELESS_PAUSE,
                _ if is_hopeless => {
                    active.dialer.targets.remove(&key);
                }
                CloseReason::Link(error) if error.blame() == Blame::Peer => {
                    target.next_at = target.next_at.max(now + BACKOFF_MAX);
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
