//! The UDP tracker protocol (BEP 15): its packets, and an [`Exchange`] of them that repeats what is lost.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{
    AnnounceEvent, AnnounceReply, AnnounceRequest, INTERVAL_DEFAULT, PeerList, ReplyError,
    SwarmCounts, interval, shown,
};

/// What begins every connect request.
const PROTOCOL_ID: u64 = 0x0417_2710_1980;
/// A connection id may be used for a minute after it came.
pub const CONNECTION_ID_TTL: Duration = Duration::from_secs(60);
/// The first wait for an answer; every further one is twice as long.
pub const RETRY_AFTER: Duration = Duration::from_secs(15);
/// The specification ends here: 15 s * 2^8, a little more than an hour.
pub const TRIES_MAX: u32 = 9;
/// Longest answer that is read: the largest that fits a datagram.
pub const DATAGRAM_LEN_MAX: usize = 65_535;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

/// What is asked of a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpRequest {
    /// Where are the others?
    Announce(AnnounceRequest),
    /// How many are they? By the torrent's name on the wire.
    Scrape([u8; 20]),
}

/// What a tracker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdpReply {
    /// Use this id in what follows.
    Connected(u64),
    /// Peers, and when to ask again.
    Announced(AnnounceReply),
    /// How many they are.
    Scraped(SwarmCounts),
}

/// A connection id, and until when it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    id: u64,
    until: Instant,
}

/// Reads an answer. `is_v6` says which family the packet came over, for it decides how long an address is.
/// `None` when it answers nothing that was asked: another transaction, another action, too short to tell.
///
/// # Errors
/// [`ReplyError::Refused`] with the tracker's words.
pub fn parse(
    datagram: &[u8],
    transaction: u32,
    expected_action: u32,
    is_v6: bool,
) -> Option<Result<UdpReply, ReplyError>> {
    let (action, rest) = take_u32(datagram)?;
    let (found, body) = take_u32(rest)?;
    if found != transaction {
        return None;
    }
    if action == ERROR {
        return Some(Err(ReplyError::Refused { reason: shown(body) }));
    }
    if action != expected_action {
        return None;
    }
    Some(Ok(match action {
        CONNECT => UdpReply::Connected(u64::from_be_bytes(*body.first_chunk()?)),
        ANNOUNCE => UdpReply::Announced(parse_announce(body, is_v6)?),
        SCRAPE => {
            let (seeds, rest) = take_u32(body)?;
            let (downloads, rest) = take_u32(rest)?;
            let (leeches, _) = take_u32(rest)?;
            let (seeds, leeches, downloads) = (Some(seeds), Some(leeches), Some(downloads));
            UdpReply::Scraped(SwarmCounts { seeds, leeches, downloads })
        }
        _ => return None,
    }))
}

fn parse_announce(body: &[u8], is_v6: bool) -> Option<AnnounceReply> {
    let (seconds, rest) = take_u32(body)?;
    let (leeches, rest) = take_u32(rest)?;
    let (seeds, rest) = take_u32(rest)?;
    let mut list = PeerList::default();
    if is_v6 {
        list.push_v6(rest)
    } else {
        list.push_v4(rest)
    }
    Some(AnnounceReply {
        // Signed in the specification, like every number there.
        interval: interval(i64::from(seconds.cast_signed())).unwrap_or(INTERVAL_DEFAULT),
        interval_min: None,
        peers: list.peers,
        counts: SwarmCounts { seeds: Some(seeds), leeches: Some(leeches), downloads: None },
        warning: None,
        tracker_id: None,
    })
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// One question to one address of a tracker: connect if need be, ask, repeat until answered or given up.
///
/// The driver sends what [`Exchange::poll_transmit`] gives, hands in what comes, and calls
/// [`Exchange::handle_timeout`] at [`Exchange::poll_timeout`]. Only an answer to the very packet that was
/// sent last is taken: its transaction number is chance, so that nobody off the path can answer for the
/// tracker.
#[derive(Debug)]
pub struct Exchange {
    request: UdpRequest,
    to: SocketAddr,
    connection: Option<ConnectionId>,
    transaction: u32,
    random: u64,
    tries: u32,
    tries_max: u32,
    retry_at: Instant,
    is_due: bool,
}

impl Exchange {
    /// A question, with the id of an earlier exchange with the same address if there is one. `random`
    /// must be chance; `tries_max` packets are sent before it is given up, at most [`TRIES_MAX`].
    pub fn new(
        now: Instant,
        to: SocketAddr,
        request: UdpRequest,
        connection: Option<ConnectionId>,
        random: u64,
        tries_max: u32,
    ) -> Self {
        Self {
            request,
            to,
            connection,
            transaction: 0,
            random,
            tries: 0,
            tries_max: tries_max.clamp(1, TRIES_MAX),
            retry_at: now,
            is_due: true,
        }
    }

    /// The id to be used by the next exchange with this address.
    pub fn connection(&self) -> Option<ConnectionId> {
        self.connection
    }

    /// When to call [`Exchange::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        self.retry_at
    }

    /// The packet to send now, if one is due.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.is_due) {
            return None;
        }
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.transaction = (self.random >> 32) as u32;
        self.retry_at = now + RETRY_AFTER * 2_u32.pow(self.tries);
        self.tries += 1;
        self.connection = self.connection.filter(|connection| now < connection.until);
        Some(match self.connection {
            None => connect_packet(self.transaction),
            Some(ConnectionId { id, .. }) => match &self.request {
                UdpRequest::Announce(request) => announce_packet(id, self.transaction, request),
                UdpRequest::Scrape(wire_id) => scrape_packet(id, self.transaction, wire_id),
            },
        })
    }

    /// A packet came from the tracker's address. The answer, if it is one.
    ///
    /// # Errors
    /// [`ReplyError::Refused`]: the tracker says no.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
    ) -> Result<Option<UdpReply>, ReplyError> {
        let expected = match (&self.connection, &self.request) {
            (None, _) => CONNECT,
            (Some(_), UdpRequest::Announce(_)) => ANNOUNCE,
            (Some(_), UdpRequest::Scrape(_)) => SCRAPE,
        };
        match parse(datagram, self.transaction, expected, self.to.is_ipv6()) {
            None => Ok(None),
            Some(Ok(UdpReply::Connected(id))) => {
                self.connection = Some(ConnectionId { id, until: now + CONNECTION_ID_TTL });
                // The tracker lives: the question itself has all its tries.
                self.tries = 0;
                self.is_due = true;
                Ok(None)
            }
            Some(Ok(reply)) => Ok(Some(reply)),
            Some(Err(error)) => {
                // A tracker that has restarted no longer knows the id: the next exchange asks anew.
                self.connection = None;
                Err(error)
            }
        }
    }

    /// Repeats what was not answered in time; `false` when it has been repeated often enough.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if now >= self.retry_at {
            if self.tries >= self.tries_max {
                return false;
            }
            self.is_due = true;
        }
        true
    }
}

fn connect_packet(transaction: u32) -> Vec<u8> {
    let mut packet = PROTOCOL_ID.to_be_bytes().to_vec();
    packet.extend(CONNECT.to_be_bytes());
    packet.extend(transaction.to_be_bytes());
    packet
}

fn announce_packet(connection: u64, transaction: u32, request: &AnnounceRequest) -> Vec<u8> {
    let mut packet = Vec::with_capacity(98);
    packet.extend(connection.to_be_bytes());
    packet.extend(ANNOUNCE.to_be_bytes());
    packet.extend(transaction.to_be_bytes());
    packet.extend(request.wire_id);
    packet.extend(request.peer_id);
    packet.extend(request.downloaded_bytes.to_be_bytes());
    packet.extend(request.left_bytes.to_be_bytes());
    packet.extend(request.uploaded_bytes.to_be_bytes());
    let event: u32 = match request.event {
        AnnounceEvent::None => 0,
        AnnounceEvent::Completed => 1,
        AnnounceEvent::Started => 2,
        AnnounceEvent::Stopped => 3,
    };
    packet.extend(event.to_be_bytes());
    packet.extend([0; 4]); // our address: the one that the packet comes from
    packet.extend(request.key.to_be_bytes());
    packet.extend(request.wanted.to_be_bytes());
    packet.extend(request.port.to_be_bytes());
    packet
}

fn scrape_packet(connection: u64, transaction: u32, wire_id: &[u8; 20]) -> Vec<u8> {
    let mut packet = connection.to_be_bytes().to_vec();
    packet.extend(SCRAPE.to_be_bytes());
    packet.extend(transaction.to_be_bytes());
    packet.extend(wire_id);
    packet
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const REQUEST: AnnounceRequest = AnnounceRequest {
        wire_id: [1; 20],
        peer_id: [2; 20],
        port: 6881,
        uploaded_bytes: 3,
        downloaded_bytes: 4,
        left_bytes: 5,
        event: AnnounceEvent::Started,
        key: 6,
        wanted: 7,
    };

    fn exchange(now: Instant, tries_max: u32) -> Exchange {
        let to = "127.0.0.1:6969".parse().unwrap();
        Exchange::new(now, to, UdpRequest::Announce(REQUEST), None, 99, tries_max)
    }

    /// An answer to a packet: its action, its transaction, and what follows.
    fn answer(packet: &[u8], action: u32, rest: &[u8]) -> Vec<u8> {
        [&action.to_be_bytes()[..], &packet[12..16], rest].concat()
    }

    #[test]
    fn packets_are_laid_out_as_specified() {
        let packet = connect_packet(0x0a0b_0c0d);
        assert_eq!(packet, b"\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0\x0a\x0b\x0c\x0d");
        let packet = announce_packet(8, 9, &REQUEST);
        assert_eq!(packet.len(), 98);
        assert_eq!(packet[8..16], [0, 0, 0, 1, 0, 0, 0, 9]);
        assert_eq!(packet[16..36], [1; 20]);
        assert_eq!(packet[36..56], [2; 20]);
        assert_eq!((packet[63], packet[71], packet[79], packet[83]), (4, 5, 3, 2));
        assert_eq!(packet[84..], [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 7, 0x1a, 0xe1]);
        assert_eq!(scrape_packet(8, 9, &[1; 20]).len(), 36);
    }

    #[test]
    fn connect_comes_before_the_question_and_its_id_is_used_again() {
        let now = Instant::now();
        let mut first = exchange(now, 9);
        let packet = first.poll_transmit(now).unwrap();
        assert_eq!(first.poll_transmit(now), None, "once");
        let connected = answer(&packet, CONNECT, &7_u64.to_be_bytes());
        assert_eq!(first.handle_datagram(now, &connected), Ok(None));
        let packet = first.poll_transmit(now).unwrap();
        assert_eq!(packet[..12], [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1]);
        let body = b"\0\0\x03\x84\0\0\0\x02\0\0\0\x01\x01\x02\x03\x04\x1a\xe1\x05\x06";
        let reply = first.handle_datagram(now, &answer(&packet, ANNOUNCE, body)).unwrap().unwrap();
        let UdpReply::Announced(reply) = reply else { panic!("{reply:?}") };
        assert_eq!(reply.interval, Duration::from_secs(900));
        assert_eq!(reply.peers, ["1.2.3.4:6881".parse().unwrap()]);
        assert_eq!((reply.counts.seeds, reply.counts.leeches), (Some(1), Some(2)));

        let to = "127.0.0.1:6969".parse().unwrap();
        let scrape = UdpRequest::Scrape([1; 20]);
        let mut second = Exchange::new(now, to, scrape, first.connection(), 5, 9);
        let packet = second.poll_transmit(now).unwrap();
        assert_eq!(packet[..12], [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2]);
        let body = b"\0\0\0\x01\0\0\0\x02\0\0\0\x03";
        let reply = second.handle_datagram(now, &answer(&packet, SCRAPE, body)).unwrap();
        let counts = SwarmCounts { seeds: Some(1), leeches: Some(3), downloads: Some(2) };
        assert_eq!(reply, Some(UdpReply::Scraped(counts)));

        let later = now + CONNECTION_ID_TTL;
        let mut third = Exchange::new(later, to, scrape, first.connection(), 5, 9);
        let packet = third.poll_transmit(later).unwrap();
        assert_eq!(packet[..8], PROTOCOL_ID.to_be_bytes(), "too old: connect again");
    }

    #[test]
    fn what_is_lost_is_repeated_at_growing_distances_and_given_up() {
        let start = Instant::now();
        let mut exchange = exchange(start, TRIES_MAX);
        let (mut now, mut sent) = (start, Vec::new());
        loop {
            if let Some(packet) = exchange.poll_transmit(now) {
                sent.push((now - start).as_secs());
                assert_eq!(packet.len(), 16);
            }
            now = exchange.poll_timeout();
            if !exchange.handle_timeout(now) {
                break;
            }
        }
        assert_eq!(sent, [0, 15, 45, 105, 225, 465, 945, 1905, 3825]);
        assert_eq!((now - start).as_secs(), 3825 + 3840, "n ends at 8");
        let mut short = self::exchange(start, 1);
        short.poll_transmit(start);
        assert!(short.handle_timeout(start), "not yet");
        assert!(!short.handle_timeout(start + RETRY_AFTER));
    }

    #[test]
    fn only_the_answer_to_the_last_packet_counts() {
        let now = Instant::now();
        let mut exchange = exchange(now, 9);
        let old = exchange.poll_transmit(now).unwrap();
        let later = now + RETRY_AFTER;
        assert!(exchange.handle_timeout(later));
        let packet = exchange.poll_transmit(later).unwrap();
        assert_ne!(old[12..], packet[12..], "a new transaction");
        for wrong in [
            answer(&old, CONNECT, &7_u64.to_be_bytes()),
            answer(&packet, ANNOUNCE, &[0; 12]),
            answer(&packet, CONNECT, &[0; 7]),
            answer(&packet, 9, &[0; 8]),
            packet[..7].to_vec(),
            Vec::new(),
        ] {
            assert_eq!(exchange.handle_datagram(later, &wrong), Ok(None));
            assert_eq!(exchange.connection(), None);
        }
        let refusal = answer(&packet, ERROR, b"no\x07");
        let refused = exchange.handle_datagram(later, &refusal);
        assert_eq!(refused, Err(ReplyError::Refused { reason: "no ".to_owned() }));
    }

    #[test]
    fn an_address_is_as_long_as_the_family_of_the_socket_says() {
        let body = [&[0; 12][..], b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe1"].concat();
        let datagram = [&ANNOUNCE.to_be_bytes()[..], &5_u32.to_be_bytes(), &body].concat();
        let UdpReply::Announced(reply) = parse(&datagram, 5, ANNOUNCE, true).unwrap().unwrap()
        else {
            panic!("an announce")
        };
        assert_eq!(reply.peers, ["[2001:db8::1]:6881".parse().unwrap()]);
        assert_eq!(reply.interval, INTERVAL_DEFAULT, "0 seconds cannot be meant");
        let negative = [&ANNOUNCE.to_be_bytes()[..], &5_u32.to_be_bytes(), &[0xff; 12]].concat();
        let UdpReply::Announced(reply) = parse(&negative, 5, ANNOUNCE, true).unwrap().unwrap()
        else {
            panic!("an announce")
        };
        assert_eq!(reply.interval, INTERVAL_DEFAULT, "nor can -1");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(datagram in vec(any::<u8>(), 0..200), action in 0_u32..5, is_v6: bool) {
            let _ = parse(&datagram, 7, action, is_v6);
            let right = [&action.to_be_bytes()[..], &7_u32.to_be_bytes(), &datagram].concat();
            if let Some(Ok(UdpReply::Announced(reply))) = parse(&right, 7, action, is_v6) {
                prop_assert!(reply.peers.len() <= datagram.len() / 6);
            }
        }
    }
}
