//! A tracker over UDP: one socket per question, connected, so that only the tracker's packets come in.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringseed_core::tracker::udp::{ConnectionId, DATAGRAM_LEN_MAX, Exchange, UdpReply, UdpRequest};
use ringseed_core::tracker::{AnnounceReply, AnnounceRequest, SwarmCounts};

use super::http::is_wait;
use super::random;
use super::transport::Question;

/// How often a wait looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

type Connections = BTreeMap<SocketAddr, ConnectionId>;

/// Announces at one address.
pub(super) fn announce(
    request: AnnounceRequest,
    connections: &mut Connections,
    question: &Question<'_>,
) -> Result<AnnounceReply, String> {
    match exchange(UdpRequest::Announce(request), connections, question)? {
        UdpReply::Announced(reply) => Ok(reply),
        other => Err(format!("not an answer to an announce: {other:?}")),
    }
}

/// Asks how many there are.
pub(super) fn scrape(
    wire_id: [u8; 20],
    connections: &mut Connections,
    question: &Question<'_>,
) -> Result<SwarmCounts, String> {
    // The tracker has just answered: what is lost now is not worth waiting for.
    let question = Question { tries: 1, ..*question };
    match exchange(UdpRequest::Scrape(wire_id), connections, &question)? {
        UdpReply::Scraped(counts) => Ok(counts),
        other => Err(format!("not an answer to a scrape: {other:?}")),
    }
}

fn exchange(
    request: UdpRequest,
    connections: &mut Connections,
    question: &Question<'_>,
) -> Result<UdpReply, String> {
    let to = question.to;
    let failed = |error: std::io::Error| format!("{to}: {error}");
    let any: SocketAddr = match to.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    socket.connect(to).map_err(failed)?;
    let known = connections.get(&to).copied();
    let mut exchange = Exchange::new(Instant::now(), to, request, known, random(), question.tries);
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    let result = loop {
        let now = Instant::now();
        if let Some(packet) = exchange.poll_transmit(now) {
            socket.send(&packet).map_err(failed)?;
        }
        let next = exchange.poll_timeout().min(question.until);
        let wait = next.saturating_duration_since(now).clamp(Duration::from_millis(1), LOOK_EVERY);
        socket.set_read_timeout(Some(wait)).map_err(failed)?;
        match socket.recv(&mut buffer) {
            Ok(count) => match exchange.handle_datagram(Instant::now(), &buffer[..count]) {
                Ok(Some(reply)) => break Ok(reply),
                Ok(None) => {}
                Err(error) => break Err(error.to_string()),
            },
            Err(error) if is_wait(error.kind()) => {}
            // Nobody listens there (ICMP): no need to wait.
            Err(error) => break Err(failed(error)),
        }
        let now = Instant::now();
        if question.stop.load(Ordering::Relaxed) {
            break Err("stopped".to_owned());
        }
        if now >= question.until || !exchange.handle_timeout(now) {
            break Err(format!("{to} does not answer"));
        }
    };
    match exchange.connection() {
        Some(connection) => connections.insert(to, connection),
        None => connections.remove(&to),
    };
    result
}
