//! Trackers: servers that tell the peers of a torrent where the others are.
//!
//! Everything here decides and reads; sockets, names and clocks belong to whoever drives it.
//!
//! - `url`: which URLs are trackers to us, and what a redirect may lead to (BEP 3, 48).
//! - [`http`]: the bytes of a request, and an answer as it arrives, bounded.
//! - `reply`: the bencoded answers to announce and scrape (BEP 3, 7, 23, 48).
//! - [`udp`]: packets, and an exchange of them that repeats what is lost (BEP 15).
//! - [`tiers`]: whom to ask next, and when (BEP 12).
//!
//! No number of a tracker sizes anything: an answer is bounded before it is read, and of the peers in it
//! at most [`PEERS_MAX`] are taken.

pub mod http;
mod reply;
pub mod tiers;
pub mod udp;
mod url;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

pub use self::reply::{parse_announce, parse_scrape};
pub use self::url::{HttpUrl, TRACKER_URL_LEN_MAX, TrackerUrl, UdpUrl, UrlError, may_lead_to};

/// Peers taken from one answer.
pub const PEERS_MAX: usize = 1_000;
/// Peers asked for: enough for a listing's connections with some that are gone.
pub const PEERS_WANTED: u32 = 100;
/// Time between announces when the tracker names none that can be believed.
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// Longest time between announces that is believed; a tracker that says more is asked once a day.
pub const INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a tracker's text that are shown.
const TEXT_LEN_MAX: usize = 200;

/// What an announce tells besides the numbers (BEP 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AnnounceEvent {
    /// Nothing: still here.
    #[default]
    None,
    /// The first announce to this tracker.
    Started,
    /// What was missing has come; never sent by whoever began with everything.
    Completed,
    /// The last announce to this tracker.
    Stopped,
}

/// What a tracker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceRequest {
    /// Which torrent, by one of its names on the wire.
    pub wire_id: [u8; 20],
    /// Who we are.
    pub peer_id: [u8; 20],
    /// Where we take connections.
    pub port: u16,
    /// Payload bytes sent since `started`.
    pub uploaded_bytes: u64,
    /// Payload bytes received since `started`.
    pub downloaded_bytes: u64,
    /// Bytes that are missing; 0 says that we are a seed.
    pub left_bytes: u64,
    /// What happened.
    pub event: AnnounceEvent,
    /// By which the tracker knows us again when our address changes.
    pub key: u32,
    /// How many peers we would like; 0 when we leave.
    pub wanted: u32,
}

/// How many take part in a torrent, as a tracker counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmCounts {
    /// Peers that have everything.
    pub seeds: Option<u32>,
    /// Peers that do not.
    pub leeches: Option<u32>,
    /// How often it was completed, ever (from a scrape).
    pub downloads: Option<u32>,
}

impl SwarmCounts {
    /// These counts, and the others where these are not known.
    pub fn or(self, others: SwarmCounts) -> SwarmCounts {
        SwarmCounts {
            seeds: self.seeds.or(others.seeds),
            leeches: self.leeches.or(others.leeches),
            downloads: self.downloads.or(others.downloads),
        }
    }
}

/// A tracker's answer to an announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceReply {
    /// When to ask again; already within sane bounds.
    pub interval: Duration,
    /// Not to be asked more often than this.
    pub interval_min: Option<Duration>,
    /// Where peers are, each once; addresses that cannot be dialled are left out.
    pub peers: Vec<SocketAddr>,
    /// Who takes part.
    pub counts: SwarmCounts,
    /// What the operator should read.
    pub warning: Option<String>,
    /// To be sent back with the next announce.
    pub tracker_id: Option<Vec<u8>>,
}

/// Why a tracker's answer is of no use.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReplyError {
    /// The tracker says no, in its own words.
    #[error("the tracker refused: {reason}")]
    Refused {
        /// Its words, cut to 200 bytes, without control characters.
        reason: String,
    },
    /// The answer is not written as it should be.
    #[error("the tracker's answer cannot be read: {0}")]
    Malformed(&'static str),
    /// An HTTP status that is no success.
    #[error("the tracker answered with HTTP status {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// Larger than we read.
    #[error("the tracker's answer is longer than {len_max_bytes} bytes")]
    TooLong {
        /// The limit that was passed.
        len_max_bytes: usize,
    },
}

/// The time between announces, out of a number that a tracker sent.
fn interval(seconds: i64) -> Option<Duration> {
    let seconds = u64::try_from(seconds).ok().filter(|&seconds| seconds > 0)?;
    Some(Duration::from_secs(seconds).min(INTERVAL_MAX))
}

/// Text of a tracker, fit to be shown: short and without control characters.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(TEXT_LEN_MAX)];
    let text = String::from_utf8_lossy(cut);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Addresses as they are taken from an answer: such that can be dialled, each once, bounded.
#[derive(Debug, Default)]
struct PeerList {
    peers: Vec<SocketAddr>,
    seen: std::collections::BTreeSet<SocketAddr>,
}

impl PeerList {
    /// Takes an address in. IPv4 in IPv6 clothes becomes IPv4.
    fn push(&mut self, ip: IpAddr, port: u16) {
        let ip = ip.to_canonical();
        let is_one_host = match ip {
            IpAddr::V4(v4) => !v4.is_broadcast() && v4.octets()[0] != 0,
            IpAddr::V6(_) => true,
        };
        let addr = SocketAddr::new(ip, port);
        if port != 0
            && is_one_host
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && self.peers.len() < PEERS_MAX
            && self.seen.insert(addr)
        {
            self.peers.push(addr);
        }
    }

    /// Six bytes each (BEP 23). An end that is no whole address is left out.
    fn push_v4(&mut self, bytes: &[u8]) {
        for [a, b, c, d, high, low] in bytes.as_chunks::<6>().0 {
            self.push(IpAddr::from([*a, *b, *c, *d]), u16::from_be_bytes([*high, *low]));
        }
    }

    /// Eighteen bytes each (BEP 7).
    fn push_v6(&mut self, bytes: &[u8]) {
        for entry in bytes.as_chunks::<18>().0 {
            let (ip, port) = entry.split_first_chunk::<16>().expect("16 of 18 bytes");
            self.push(IpAddr::from(*ip), u16::from_be_bytes([port[0], port[1]]));
        }
    }
}
