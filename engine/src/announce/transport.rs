//! One tracker asked over all its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ringseed_core::tracker::tiers::{Ask, NamedBy, TrackerId};
use ringseed_core::tracker::udp::ConnectionId;
use ringseed_core::tracker::{
    AnnounceEvent, AnnounceReply, AnnounceRequest, SwarmCounts, TrackerUrl,
};

use super::{allowed, http, udp};

/// Addresses of one family that are tried until one answers.
const ADDRS_PER_FAMILY_MAX: usize = 3;

/// What a tracker answered over all families and names, put together.
#[derive(Debug)]
pub(super) struct Asked {
    pub peers: Vec<SocketAddr>,
    pub interval: Duration,
    pub interval_min: Option<Duration>,
    pub counts: SwarmCounts,
    pub warning: Option<String>,
}

/// What is remembered of the trackers of one torrent between two questions.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    /// Ids of HTTP trackers, to be sent back, by tracker and name.
    tracker_ids: BTreeMap<(TrackerId, [u8; 20]), Vec<u8>>,
    /// Of UDP trackers.
    connections: BTreeMap<SocketAddr, ConnectionId>,
    /// Whom we have asked how many there are.
    scraped: BTreeSet<TrackerId>,
}

/// How one question is asked.
pub(super) struct Question<'a> {
    pub to: SocketAddr,
    pub until: Instant,
    pub stop: &'a AtomicBool,
    pub tries: u32,
}

impl Gate {
    /// Asks over both families and by all names. An answer by one of them is an answer.
    #[allow(clippy::too_many_arguments)] // one call, all of them named where it is made
    pub fn ask(
        &mut self,
        ask: &Ask,
        wire_ids: &[[u8; 20]],
        request: &AnnounceRequest,
        port_of: &dyn Fn(bool) -> u16,
        until: Instant,
        stop: &AtomicBool,
        tries: u32,
    ) -> Result<Asked, String> {
        let addrs = resolve(ask)?;
        let mut all: Option<Asked> = None;
        let mut failure = "its name has no address".to_owned();
        for is_v4 in [true, false] {
            let family = addrs.iter().filter(|addr| addr.is_ipv4() == is_v4);
            for &to in family.take(ADDRS_PER_FAMILY_MAX) {
                let question = Question { to, until, stop, tries };
                let request = AnnounceRequest { port: port_of(is_v4), ..*request };
                match self.ask_one(ask, wire_ids, request, &question) {
                    Ok(asked) => {
                        all = Some(match all {
                            Some(first) => first.and(asked),
                            None => asked,
                        });
                        break;
                    }
                    Err(error) => failure = error,
                }
            }
        }
        all.ok_or(failure)
    }

    fn ask_one(
        &mut self,
        ask: &Ask,
        wire_ids: &[[u8; 20]],
        request: AnnounceRequest,
        question: &Question<'_>,
    ) -> Result<Asked, String> {
        let mut all: Option<Asked> = None;
        for &wire_id in wire_ids {
            let request = AnnounceRequest { wire_id, ..request };
            let id = (ask.tracker, wire_id);
            let reply = match &ask.url {
                TrackerUrl::Http(url) => {
                    let tracker_id = self.tracker_ids.get(&id).map(Vec::as_slice);
                    http::announce(url, &request, tracker_id, question)
                }
                TrackerUrl::Udp(_) => udp::announce(request, &mut self.connections, question),
            }?;
            if let Some(tracker_id) = &reply.tracker_id {
                self.tracker_ids.insert(id, tracker_id.clone());
            }
            let mut asked = Asked::of(question.to, reply);
            // Once is enough for people to see how often it was completed; its failure is none of ours.
            if request.event != AnnounceEvent::Stopped && self.scraped.insert(ask.tracker) {
                let scraped = match &ask.url {
                    TrackerUrl::Http(url) => http::scrape(url, &wire_id, question),
                    TrackerUrl::Udp(_) => udp::scrape(wire_id, &mut self.connections, question),
                };
                asked.counts = asked.counts.or(scraped.unwrap_or_default());
            }
            all = Some(match all {
                Some(first) => first.and(asked),
                None => asked,
            });
        }
        all.ok_or_else(|| "the torrent has no name".to_owned())
    }
}

impl Asked {
    fn of(from: SocketAddr, reply: AnnounceReply) -> Asked {
        let AnnounceReply { interval, interval_min, peers, counts, warning, .. } = reply;
        Asked { peers: allowed(from, peers).collect(), interval, interval_min, counts, warning }
    }

    /// Two answers of one tracker. The longer times count; of two counts of one swarm the larger, for the
    /// names and families of a torrent are asked by overlapping sets of peers.
    fn and(mut self, other: Asked) -> Asked {
        let known: BTreeSet<SocketAddr> = self.peers.iter().copied().collect();
        self.peers.extend(other.peers.into_iter().filter(|peer| !known.contains(peer)));
        Asked {
            peers: self.peers,
            interval: self.interval.max(other.interval),
            interval_min: self.interval_min.max(other.interval_min),
            counts: SwarmCounts {
                seeds: self.counts.seeds.max(other.counts.seeds),
                leeches: self.counts.leeches.max(other.counts.leeches),
                downloads: self.counts.downloads.max(other.counts.downloads),
            },
            warning: self.warning.or(other.warning),
        }
    }
}

/// Resolves a tracker's name once: what is connected to is what was checked.
fn resolve(ask: &Ask) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = ask.url.authority();
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|error| format!("cannot resolve {host}: {error}"))?;
    let mut addrs: Vec<SocketAddr> =
        found.map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port())).collect();
    addrs.retain(|addr| may_ask(ask, addr.ip()));
    if addrs.is_empty() {
        return Err(format!("no address of {host} may be asked on the word of a torrent"));
    }
    Ok(addrs)
}

/// A torrent from elsewhere must not make us talk to what only this machine can reach: never to the own
/// link, and to this machine only at an announce. The user may send us anywhere.
fn may_ask(ask: &Ask, ip: IpAddr) -> bool {
    if ask.named_by == NamedBy::User {
        return true;
    }
    let is_announce = match &ask.url {
        TrackerUrl::Http(url) => url.is_announce(),
        TrackerUrl::Udp(_) => true,
    };
    ringseed_core::tracker::may_lead_to([192, 0, 2, 1].into(), ip)
        || ip.is_loopback() && is_announce
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringseed_core::tracker::tiers::TrackerList;

    fn may(named_by: NamedBy, url: &str) -> bool {
        let urls = [url.to_owned()];
        let now = Instant::now();
        let (mut list, _) = TrackerList::new(now, [(named_by, &urls[..])], 1);
        resolve(&list.poll(now).unwrap()).is_ok()
    }

    /// The corpus of ways to our own machine and link that a `.torrent` may carry.
    #[test]
    fn a_torrent_cannot_make_us_ask_what_only_we_can_reach() {
        for url in [
            "http://169.254.169.254/announce",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/announce",
            "http://[::ffff:169.254.169.254]/announce",
            "http://127.0.0.1:6379/",
            "http://[::1]:8080/shutdown",
            "http://[::ffff:127.0.0.1]/x",
            "http://2130706433/admin",
            "http://0x7f.1/admin",
            "http://localhost/admin?announce",
            "http://0.0.0.0/announce",
            "udp://224.0.0.1:1",
        ] {
            assert!(!may(NamedBy::Torrent, url), "{url}");
        }
        for url in
            ["http://127.0.0.1/announce", "http://[::1]:1/x/announce.php?k", "udp://127.0.0.1:1"]
        {
            assert!(may(NamedBy::Torrent, url), "{url}");
        }
        assert!(may(NamedBy::User, "http://127.0.0.1/whatever"));
        assert!(may(NamedBy::User, "http://169.254.1.1/announce"));
    }
}
