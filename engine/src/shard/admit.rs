//! Whom we let in: how many connections an address may hold, how many may be at their handshake, who gives
//! way when there is no room, and how the log survives a flood.
//!
//! Nothing here sizes anything by what a stranger does: every table has a bound, and what a bound costs is
//! paid by whoever takes most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::Shard;
use super::mesh::Fault;
use super::peer::{CloseReason, ConnId};
use crate::api::ListingId;
use crate::io::{Op, SockId};

/// Networks remembered at most. One costs about 100 bytes.
const NETWORKS_MAX: usize = 4096;
/// Connections that one network may make: so many at once, so many per second for ever.
const ARRIVALS: (u32, u32) = (64, 4);
/// What a connection that ended by a breach costs its network, in arrivals: half a minute of waiting for
/// the second one. A crowd that comes back at once would be served a socket buffer each time.
const BREACH_COST: u32 = 128;
/// What one costs that was merely slow or in the way: that happens to honest peers, too.
const SLOWNESS_COST: u32 = 8;
/// A connection over which no payload has gone for so long gives way to a newcomer when all places are
/// taken. Honest peers of a busy node move a block every second or so.
const USELESS_AFTER: Duration = Duration::from_secs(5);
/// Lines about strangers for each kind of end: so many at once, so many per second for ever; the rest is
/// counted. So a flood of one kind hides no other.
const LOG_LINES: (u32, u32) = (32, 1);

/// Everything that is known of strangers and their addresses.
#[derive(Debug)]
pub(super) struct Door {
    networks: BTreeMap<IpAddr, Network>,
    /// Addresses whose connections are not counted: the market's members.
    members: BTreeSet<IpAddr>,
    pending: Pending,
    /// By the code of the reason: lines left, and lines not written since the last one.
    log: BTreeMap<&'static str, (Tokens, u64)>,
}

/// What one network does.
#[derive(Debug)]
struct Network {
    open: u32,
    arrivals: Tokens,
}

/// Incoming connections that have not shaken hands. A storm brings thousands of them in a second, so that who has
/// to go is known without looking at all.
#[derive(Debug, Default)]
struct Pending {
    by_network: BTreeMap<IpAddr, BTreeSet<ConnId>>,
    /// How many each network has, then its oldest: the last is the first to go.
    order: BTreeSet<(usize, Reverse<ConnId>, IpAddr)>,
    count: usize,
}

impl Pending {
    fn change(&mut self, ip: IpAddr, change: impl FnOnce(&mut BTreeSet<ConnId>) -> bool) -> bool {
        let key = |ids: &BTreeSet<ConnId>| ids.first().map(|&id| (ids.len(), Reverse(id), ip));
        let ids = self.by_network.entry(ip).or_default();
        if let Some(before) = key(ids) {
            self.order.remove(&before);
        }
        let has_changed = change(ids);
        match key(ids) {
            Some(after) => {
                self.order.insert(after);
            }
            None => {
                self.by_network.remove(&ip);
            }
        }
        has_changed
    }

    fn insert(&mut self, id: ConnId, ip: IpAddr) {
        self.count += usize::from(self.change(network_of(ip), |ids| ids.insert(id)));
    }

    fn remove(&mut self, id: ConnId, ip: IpAddr) {
        self.count -= usize::from(self.change(network_of(ip), |ids| ids.remove(&id)));
    }

    /// The oldest one of the network that has most; of networks that have as many, the oldest of all.
    fn first_to_go(&self) -> Option<ConnId> {
        self.order.last().map(|(_, Reverse(id), _)| *id)
    }
}

/// A bucket of whole tokens that time fills.
#[derive(Debug)]
struct Tokens {
    burst: u32,
    per_second: u32,
    /// Negative is debt: who offends waits longer than who merely comes often.
    left: i64,
    filled_at: Instant,
}

impl Tokens {
    fn new((burst, per_second): (u32, u32), now: Instant) -> Self {
        Tokens { burst, per_second, left: burst.into(), filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_millis();
        let earned = elapsed * u128::from(self.per_second) / 1000;
        if earned > 0 {
            self.filled_at = now;
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(earned).min(self.burst.into());
        }
    }

    /// Takes `count`, into debt of at most four bursts. False: there was none at all.
    fn take(&mut self, now: Instant, count: u32) -> bool {
        self.fill(now);
        let has_one = self.left > 0;
        if !has_one && count == 1 {
            return false;
        }
        self.left = (self.left - i64::from(count)).max(-4 * i64::from(self.burst));
        has_one
    }
}

/// What counts as one origin: an IPv4 address, however it is written, or an IPv6 /64, of which every host
/// has one to itself.
pub(super) fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl Door {
    /// Whether an address is that of a member of the market.
    pub fn is_member(&self, ip: IpAddr) -> bool {
        self.members.contains(&network_of(ip))
    }

    pub fn new() -> Self {
        Door {
            networks: BTreeMap::new(),
            members: BTreeSet::new(),
            pending: Pending::default(),
            log: BTreeMap::new(),
        }
    }

    fn network(&mut self, ip: IpAddr, now: Instant) -> &mut Network {
        let ip = network_of(ip);
        if self.networks.len() >= NETWORKS_MAX && !self.networks.contains_key(&ip) {
            self.forget_quiet(now);
        }
        let fresh = || Network { open: 0, arrivals: Tokens::new(ARRIVALS, now) };
        self.networks.entry(ip).or_insert_with(fresh)
    }

    /// Forgets networks without connections: those with nothing against them, else the one with least.
    fn forget_quiet(&mut self, now: Instant) {
        self.networks.retain(|_, network| {
            network.arrivals.fill(now);
            network.open > 0 || network.arrivals.left < i64::from(network.arrivals.burst)
        });
        if self.networks.len() >= NETWORKS_MAX {
            let closed = self.networks.iter().filter(|(_, network)| network.open == 0);
            let least = closed.max_by_key(|(_, network)| network.arrivals.left);
            if let Some(ip) = least.map(|(&ip, _)| ip) {
                self.networks.remove(&ip);
            }
        }
    }

    fn open_of(&self, ip: IpAddr) -> u32 {
        self.networks.get(&network_of(ip)).map_or(0, |network| network.open)
    }

    /// A connection has come in, and has not shaken hands.
    pub fn opened(&mut self, id: ConnId, ip: IpAddr, now: Instant) {
        let network = self.network(ip, now);
        network.open += 1;
        self.pending.insert(id, ip);
    }

    /// Its handshake has come, or it is gone.
    pub fn settled(&mut self, id: ConnId, ip: IpAddr) {
        self.pending.remove(id, ip);
    }

    /// A connection that had come in is gone.
    pub fn closed(&mut self, id: ConnId, ip: IpAddr, reason: &CloseReason, now: Instant) {
        self.settled(id, ip);
        self.left(ip, Fault::of(reason), now);
    }

    /// A connection that had come in and been moved to another shard is gone.
    pub fn left(&mut self, ip: IpAddr, fault: Fault, now: Instant) {
        let network = self.network(ip, now);
        network.open = network.open.saturating_sub(1);
        let cost = match fault {
            Fault::Breach => BREACH_COST,
            Fault::Slow => SLOWNESS_COST,
            Fault::None => return,
        };
        network.arrivals.take(now, cost);
    }

    /// Whether to write a line about a stranger, and how many were not written before it.
    fn take_line(&mut self, code: &'static str, now: Instant) -> Option<u64> {
        let fresh = || (Tokens::new(LOG_LINES, now), 0);
        let (lines, suppressed) = self.log.entry(code).or_insert_with(fresh);
        if lines.take(now, 1) {
            return Some(std::mem::take(suppressed));
        }
        *suppressed += 1;
        None
    }
}

impl Shard {
    /// The listener has accepted a connection: whether there is a place for it. Makes one if need be.
    pub(super) fn admit(&mut self, addr: SocketAddr) -> Result<(), CloseReason> {
        if self.is_stopping {
            return Err(CloseReason::Gone);
        }
        let (now, ip) = (self.now, addr.ip());
        if !self.is_exempt(ip) {
            let per_ip_max = self.config.peers_per_ip_max;
            let network = self.door.network(ip, now);
            if network.open >= per_ip_max {
                return Err(CloseReason::AddressFull);
            }
            if !network.arrivals.take(now, 1) {
                return Err(CloseReason::AddressThrottled);
            }
        }
        if self.door.pending.count >= self.config.handshakes_max as usize {
            self.crowd_out();
        }
        if self.is_full() && !self.displace_one(None) {
            self.displace_elsewhere();
            return Err(CloseReason::Full);
        }
        Ok(())
    }

    /// Members are not counted by their address; nor is this machine unless it is asked for, as all its
    /// programs share one.
    fn is_exempt(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let is_spared = ip.is_loopback() && !self.config.limit_loopback;
        is_spared || self.door.is_member(ip)
    }

    /// The market's members: their connections are not counted by address.
    pub(super) fn set_members(&mut self, members: &[IpAddr]) {
        self.door.members = members.iter().map(|&ip| network_of(ip)).collect();
    }

    /// Too many are at their handshake: the oldest one of the network that has most of them goes. Who
    /// floods crowds out its own; an honest handshake takes one round trip.
    fn crowd_out(&mut self) {
        let victim = self.door.pending.first_to_go();
        if let Some(id) = victim {
            self.close_conn(id, CloseReason::CrowdedOut);
        }
    }

    /// All places are taken, of the engine or of one listing: a connection over which nothing moves gives
    /// way, first of the network that holds most. False: all of them are of use.
    pub(super) fn displace_one(&mut self, listing: Option<ListingId>) -> bool {
        let now = self.now;
        let of_listing = |listing| self.active.get(&listing).map(|active| &active.conns);
        let among = listing.map(of_listing);
        let victim = self
            .conns
            .iter()
            .filter(|(id, conn)| {
                let is_among = among.is_none_or(|conns| conns.is_some_and(|all| all.contains(id)));
                is_among && now.saturating_duration_since(conn.useful_at) >= USELESS_AFTER
            })
            .min_by_key(|(_, conn)| {
                let ip = conn.addr.ip();
                let held = Reverse(self.door.open_of(ip));
                (self.door.is_member(ip), held, conn.useful_at)
            })
            .map(|(&id, _)| id);
        let Some(id) = victim else { return false };
        self.close_conn(id, CloseReason::Displaced);
        true
    }

    /// Closes a connection that never became one.
    pub(super) fn refuse(&mut self, sock: SockId, addr: SocketAddr, reason: &CloseReason) {
        self.out.push_back(Op::Close { sock });
        self.tell_closed(addr, None, None, reason);
    }

    /// Counts the end of a connection, and names in the log whoever is to blame for it.
    pub(super) fn tell_closed(
        &mut self,
        addr: SocketAddr,
        listing: Option<ListingId>,
        peer_id: Option<[u8; 20]>,
        reason: &CloseReason,
    ) {
        let code = reason.code();
        self.counters.count_closed(code);
        let listing = listing.map(|listing| listing.0);
        if !reason.is_hostile() {
            tracing::debug!(code, %addr, ?listing, %reason, "connection closed");
            return;
        }
        if let Some(suppressed) = self.door.take_line(code, self.now) {
            let peer = peer_id.map(|id| id.escape_ascii().to_string()).unwrap_or_default();
            tracing::warn!(code, %addr, peer, listing, suppressed, %reason, "peer dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_an_address_or_a_64() {
        assert_eq!(network_of(ip("10.0.0.1")), network_of(ip("::ffff:10.0.0.1")));
        assert_ne!(network_of(ip("10.0.0.1")), network_of(ip("10.0.0.2")));
        assert_eq!(network_of(ip("2001:db8::1")), network_of(ip("2001:db8::ffff:1")));
        assert_ne!(network_of(ip("2001:db8::1")), network_of(ip("2001:db8:0:1::1")));
    }

    #[test]
    fn the_table_of_networks_is_bounded_and_keeps_who_is_connected_or_has_offended() {
        let now = Instant::now();
        let mut door = Door::new();
        door.opened(ConnId(1), ip("10.0.0.1"), now);
        door.settled(ConnId(1), ip("10.0.0.1"));
        door.opened(ConnId(2), ip("10.0.0.2"), now);
        door.closed(ConnId(2), ip("10.0.0.2"), &CloseReason::BadData, now);
        for number in 0..100_000_u32 {
            let stranger = IpAddr::from((0x0b00_0000 + number).to_be_bytes());
            let id = ConnId(u64::from(number) + 10);
            door.opened(id, stranger, now);
            door.closed(id, stranger, &CloseReason::Gone, now);
        }
        assert!(door.networks.len() <= NETWORKS_MAX, "{}", door.networks.len());
        assert_eq!((door.pending.count, door.pending.order.len()), (0, 0));
        assert_eq!(door.open_of(ip("10.0.0.1")), 1);
        let offender = &door.networks[&ip("10.0.0.2")];
        assert_eq!(offender.arrivals.left, i64::from(ARRIVALS.0) - i64::from(BREACH_COST));
    }

    #[test]
    fn a_flood_writes_some_lines_and_says_how_many_it_did_not() {
        let now = Instant::now();
        let mut door = Door::new();
        let written = (0..10_000).filter(|_| door.take_line("idle", now).is_some()).count();
        assert_eq!(written, LOG_LINES.0 as usize);
        assert_eq!(
            door.take_line("idle", now + Duration::from_secs(1)),
            Some(10_000 - written as u64)
        );
        assert_eq!(door.take_line("trickle", now), Some(0), "another kind has lines of its own");
    }
}
