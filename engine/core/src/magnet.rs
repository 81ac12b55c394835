//! Magnet links: a torrent named by its info hashes, with hints where peers are (BEP 9, 52, 53).
//!
//! ```text
//! magnet:?xt=urn:btih:<40 hex or 32 base32>&xt=urn:btmh:1220<64 hex>&dn=NAME&tr=URL&x.pe=HOST:PORT&so=0,2-4
//! ```
//!
//! What names the torrent (`xt`) and what is wanted of it (`so`) must be right, because to go on without
//! would fetch something else. A hint that cannot be used is left out and told in [`Magnet::ignored`].
//! Web seeds (`ws`) and sources of the info dict (`xs`, `as`) are never fetched and count as hints.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::metainfo::truncate;
use crate::select::{FileSelection, SelectionError};

/// Longest link, in bytes.
pub const MAGNET_LEN_MAX: usize = 64 * 1024;
/// Most trackers taken from one link, and most peers: what is beyond is left out.
pub const HINTS_MAX: usize = 100;
/// Longest name of a host, in bytes (RFC 1035, 2.3.4).
const HOST_LEN_MAX: usize = 253;

/// How a torrent may be named: by SHA-1 of its info dict (BEP 3), by SHA-256 of it (BEP 52), or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InfoHashes {
    /// The v1 name alone.
    V1([u8; 20]),
    /// The v2 name alone.
    V2([u8; 32]),
    /// Both names of a hybrid.
    Both([u8; 20], [u8; 32]),
}

/// What the hashes of an info dict say to the hashes that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that were asked for are there.
    Match,
    /// Another info dict.
    Other,
    /// One hash is right and the other is not: no info dict can have both, so whoever wrote the link
    /// put two torrents into it. No peer is to blame.
    Contradiction,
}

impl InfoHashes {
    /// The v1 name, if it is known.
    pub fn v1(&self) -> Option<[u8; 20]> {
        match self {
            InfoHashes::V1(v1) | InfoHashes::Both(v1, _) => Some(*v1),
            InfoHashes::V2(_) => None,
        }
    }

    /// The v2 name, if it is known.
    pub fn v2(&self) -> Option<[u8; 32]> {
        match self {
            InfoHashes::V2(v2) | InfoHashes::Both(_, v2) => Some(*v2),
            InfoHashes::V1(_) => None,
        }
    }

    /// The names on the wire: v1, then v2 cut to 20 bytes (BEP 52).
    pub fn wire_ids(&self) -> impl Iterator<Item = [u8; 20]> + use<> {
        self.v1().into_iter().chain(self.v2().map(|v2| truncate(&v2)))
    }

    /// Compares with the hashes of an info dict that a peer gave.
    pub fn judge(&self, sha1: &[u8; 20], sha256: &[u8; 32]) -> Verdict {
        let (v1, v2) = (self.v1().map(|v1| v1 == *sha1), self.v2().map(|v2| v2 == *sha256));
        match (v1.unwrap_or(true), v2.unwrap_or(true)) {
            (true, true) => Verdict::Match,
            _ if v1 == Some(true) || v2 == Some(true) => Verdict::Contradiction,
            _ => Verdict::Other,
        }
    }
}

/// Where a peer is: an address, or a name to be resolved by whoever connects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddr {
    host: String,
    port: u16,
}

/// A text is no `HOST:PORT`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{text}\" is no HOST:PORT (IPv6 as [ADDRESS]:PORT)")]
pub struct PeerAddrError {
    /// The text, cut to 80 characters.
    pub text: String,
}

impl PeerAddr {
    /// The name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, when no name has to be resolved. IPv4-mapped addresses come as IPv4.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let ip = self.host.parse::<IpAddr>().ok()?;
        Some(SocketAddr::new(ip.to_canonical(), self.port))
    }
}

impl FromStr for PeerAddr {
    type Err = PeerAddrError;

    fn from_str(text: &str) -> Result<Self, PeerAddrError> {
        let wrong = || PeerAddrError { text: text.chars().take(80).collect() };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_decimal = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|&port| is_decimal && port != 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(Some(inner)) if inner.parse::<Ipv6Addr>().is_ok() => inner,
            None if is_host(host) => host,
            _ => return Err(wrong()),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

/// A name of the DNS or an IPv4 address: what is told apart by who resolves it.
pub(crate) fn is_host(host: &str) -> bool {
    let is_host_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !host.is_empty() && host.len() <= HOST_LEN_MAX && host.bytes().all(is_host_byte)
}

impl From<SocketAddr> for PeerAddr {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_canonical().to_string(), port: addr.port() }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A magnet link, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magnet {
    /// What names the torrent.
    pub hashes: InfoHashes,
    /// The name for people, until the info dict is there; may be anything, so it names no file.
    pub name: Option<String>,
    /// Trackers in order, as they are written in the link; at most [`HINTS_MAX`].
    pub trackers: Vec<String>,
    /// Peers; at most [`HINTS_MAX`].
    pub peers: Vec<PeerAddr>,
    /// The files that are wanted; all of them if `None`.
    pub select: Option<FileSelection>,
    /// Parts that were left out, as `key=value` cut to 80 characters; at most [`HINTS_MAX`].
    pub ignored: Vec<String>,
}

/// Why a text is no magnet link that can be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MagnetError {
    /// It does not begin as one.
    #[error("a magnet link begins with magnet:?")]
    NoMagnet,
    /// Longer than [`MAGNET_LEN_MAX`].
    #[error("a link of {len_bytes} bytes is longer than {MAGNET_LEN_MAX}")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
    /// A `%` that is not followed by two hexadecimal digits, or bytes that are no UTF-8.
    #[error("the part {key}= is not written as a link should be")]
    Escape {
        /// The key.
        key: String,
    },
    /// A `urn:btih` that is neither 40 hexadecimal digits nor 32 of base32.
    #[error("urn:btih wants 40 hexadecimal digits or 32 of base32")]
    V1Hash,
    /// A `urn:btmh` that is no SHA-256 multihash.
    #[error("urn:btmh wants 1220 and 64 hexadecimal digits: a SHA-256 multihash")]
    V2Hash,
    /// Two different hashes of one kind.
    #[error("the link names two torrents")]
    TwoTorrents,
    /// No info hash at all.
    #[error("the link names no torrent: xt=urn:btih:… or xt=urn:btmh:… is missing")]
    NoHash,
    /// `so` cannot be read.
    #[error("the files to select cannot be read")]
    Select(#[source] SelectionError),
}

impl Magnet {
    /// A link with nothing but the name of the torrent.
    pub fn new(hashes: InfoHashes) -> Self {
        Self {
            hashes,
            name: None,
            trackers: Vec::new(),
            peers: Vec::new(),
            select: None,
            ignored: Vec::new(),
        }
    }

    /// Reads a link.
    ///
    /// # Errors
    /// [`MagnetError`].
    pub fn parse(text: &str) -> Result<Self, MagnetError> {
        if text.len() > MAGNET_LEN_MAX {
            return Err(MagnetError::TooLong { len_bytes: text.len() });
        }
        let query = text
            .split_at_checked("magnet:?".len())
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("magnet:?"))
            .map(|(_, query)| query)
            .ok_or(MagnetError::NoMagnet)?;
        let (mut v1, mut v2) = (None, None);
        // The hashes are known at the end only; these stand in for them.
        let mut link = Magnet::new(InfoHashes::V1([0; 20]));
        for part in query.split('&') {
            let Some((key, raw)) = part.split_once('=') else { continue };
            let key = without_number(key).to_ascii_lowercase();
            match key.as_str() {
                "xt" => read_topic(&decoded(&key, raw)?, &mut v1, &mut v2)?,
                "so" => {
                    let select = FileSelection::parse_link(&decoded(&key, raw)?);
                    link.select = Some(select.map_err(MagnetError::Select)?);
                }
                "dn" => link.name = decoded(&key, &raw.replace('+', " ")).ok(),
                "tr" => {
                    let url = decoded(&key, raw).ok().filter(|url| !url.is_empty());
                    link.hint(part, url, |link| &mut link.trackers);
                }
                "x.pe" => {
                    let addr = decoded(&key, raw).ok().and_then(|addr| addr.parse().ok());
                    link.hint(part, addr, |link| &mut link.peers);
                }
                _ => link.hint::<String>(part, None, |link| &mut link.trackers),
            }
        }
        link.hashes = match (v1, v2) {
            (Some(v1), Some(v2)) => InfoHashes::Both(v1, v2),
            (Some(v1), None) => InfoHashes::V1(v1),
            (None, Some(v2)) => InfoHashes::V2(v2),
            (None, None) => return Err(MagnetError::NoHash),
        };
        Ok(link)
    }

    /// Takes a hint, or tells that it was left out.
    fn hint<T: PartialEq>(
        &mut self,
        part: &str,
        found: Option<T>,
        list: impl Fn(&mut Self) -> &mut Vec<T>,
    ) {
        let hints = list(self);
        match found {
            Some(hint) if hints.contains(&hint) => {}
            Some(hint) if hints.len() < HINTS_MAX => hints.push(hint),
            _ if self.ignored.len() < HINTS_MAX => {
                self.ignored.push(part.chars().take(80).collect());
            }
            _ => {}
        }
    }
}

impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("magnet:?")?;
        let mut and = "";
        if let Some(v1) = self.hashes.v1() {
            write!(f, "xt=urn:btih:{}", hex(&v1))?;
            and = "&";
        }
        if let Some(v2) = self.hashes.v2() {
            write!(f, "{and}xt=urn:btmh:1220{}", hex(&v2))?;
        }
        if let Some(name) = &self.name {
            write!(f, "&dn={}", escaped(name))?;
        }
        for tracker in &self.trackers {
            write!(f, "&tr={}", escaped(tracker))?;
        }
        for peer in &self.peers {
            write!(f, "&x.pe={}", escaped(&peer.to_string()))?;
        }
        if let Some(select) = &self.select {
            write!(f, "&so={select}")?;
        }
        Ok(())
    }
}

/// `tr.1` and `xt.2` are further values of `tr` and `xt`; `x.pe` has its dot for good.
fn without_number(key: &str) -> &str {
    match key.rsplit_once('.') {
        Some((key, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => key,
        _ => key,
    }
}

fn read_topic(
    topic: &str,
    v1: &mut Option<[u8; 20]>,
    v2: &mut Option<[u8; 32]>,
) -> Result<(), MagnetError> {
    let strip = |prefix: &str| {
        let (head, rest) = topic.split_at_checked(prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then_some(rest)
    };
    if let Some(hash) = strip("urn:btih:") {
        let found = match hash.len() {
            40 => unhex::<20>(hash),
            32 => unbase32(hash),
            _ => None,
        };
        set_once(v1, found.ok_or(MagnetError::V1Hash)?)
    } else if let Some(hash) = strip("urn:btmh:") {
        // 0x12 is SHA-256, 0x20 its length (multiformats table): the only one that BEP 52 knows.
        let found = hash.strip_prefix("1220").and_then(unhex::<32>);
        set_once(v2, found.ok_or(MagnetError::V2Hash)?)
    } else {
        Ok(()) // an exact topic of another network
    }
}

fn set_once<T: PartialEq>(known: &mut Option<T>, found: T) -> Result<(), MagnetError> {
    match known {
        Some(known) if *known != found => Err(MagnetError::TwoTorrents),
        _ => {
            *known = Some(found);
            Ok(())
        }
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

/// RFC 4648 base32 of 20 bytes: 32 digits, no padding, either case.
fn unbase32(text: &str) -> Option<[u8; 20]> {
    let mut bytes = [0; 20];
    let (mut held, mut held_bits, mut at) = (0_u32, 0, 0);
    for digit in text.bytes() {
        let value = match digit.to_ascii_uppercase() {
            letter @ b'A'..=b'Z' => letter - b'A',
            number @ b'2'..=b'7' => number - b'2' + 26,
            _ => return None,
        };
        held = held << 5 | u32::from(value);
        held_bits += 5;
        if held_bits >= 8 {
            held_bits -= 8;
            *bytes.get_mut(at)? = (held >> held_bits) as u8;
            at += 1;
        }
    }
    (at == bytes.len()).then_some(bytes)
}

/// Undoes `%41`. Whatever else stands there means itself.
fn decoded(key: &str, raw: &str) -> Result<String, MagnetError> {
    let wrong = || MagnetError::Escape { key: key.chars().take(40).collect() };
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let [high, low, after @ ..] = rest else { return Err(wrong()) };
        let (high, low) = hex_digit(*high).zip(hex_digit(*low)).ok_or_else(wrong)?;
        bytes.push(high << 4 | low);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// Writes everything as `%41` that might mean something else in a link (RFC 3986, 2.3 and 3.4).
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                out.push(byte as char);
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const V1: &str = "631a31dd0a46257d5078c0dee4e66e26f73e42ac";
    const V2: &str = "d8dd32ac93357c368556af3ac1d95c9d76bd0dff6fa9833ecdac3d53134efabb";

    #[test]
    fn hex_base32_and_multihash_name_the_same_bytes() {
        let v1 = unhex::<20>(V1).unwrap();
        // RFC 4648 of the same twenty bytes, computed by another program.
        let base32 = "MMNDDXIKIYSX2UDYYDPOJZTOE33T4QVM";
        for text in [V1.to_owned(), V1.to_uppercase(), base32.into(), base32.to_lowercase()] {
            let link = Magnet::parse(&format!("magnet:?xt=urn:btih:{text}")).unwrap();
            assert_eq!(link.hashes, InfoHashes::V1(v1), "{text}");
        }
        let v2 = unhex::<32>(V2).unwrap();
        let link = Magnet::parse(&format!("MAGNET:?dn=x&xt=urn:btmh:1220{V2}")).unwrap();
        assert_eq!(link.hashes, InfoHashes::V2(v2));
        let hybrid = format!("magnet:?xt.1=urn:btih:{V1}&xt.2=urn:btmh:1220{V2}");
        let link = Magnet::parse(&hybrid).unwrap();
        assert_eq!(link.hashes, InfoHashes::Both(v1, v2));
        assert_eq!(link.hashes.wire_ids().collect::<Vec<_>>(), [v1, truncate(&v2)]);
    }

    #[test]
    fn hints_are_read_in_order_and_once() {
        let link = Magnet::parse(&format!(
            "magnet:?xt=urn:btih:{V1}&dn=a+b%26c&tr=http%3A%2F%2Ft.example%2Fa%3Fk%3D1&tr.1=udp://u.example:1\
             &tr=udp://u.example:1&x.pe=127.0.0.1:6881&x.pe=%5B::1%5D:2&x.pe=peer.example:3&so=0,2-4"
        ))
        .unwrap();
        assert_eq!(link.name.as_deref(), Some("a b&c"));
        assert_eq!(link.trackers, ["http://t.example/a?k=1", "udp://u.example:1"]);
        let peers: Vec<String> = link.peers.iter().map(PeerAddr::to_string).collect();
        assert_eq!(peers, ["127.0.0.1:6881", "[::1]:2", "peer.example:3"]);
        assert_eq!(link.select.unwrap().to_string(), "0,2-4");
        assert!(link.ignored.is_empty());
    }

    #[test]
    fn hints_that_cannot_be_used_are_left_out_and_told() {
        let link = Magnet::parse(&format!(
            "magnet:?xt=urn:btih:{V1}&x.pe=nowhere&x.pe=a:0&x.pe=[1.2.3.4]:5&ws=http://w.example/&tr=%zz&foo"
        ))
        .unwrap();
        assert!(link.peers.is_empty() && link.trackers.is_empty());
        assert_eq!(
            link.ignored,
            ["x.pe=nowhere", "x.pe=a:0", "x.pe=[1.2.3.4]:5", "ws=http://w.example/", "tr=%zz"]
        );
    }

    #[test]
    fn a_link_that_would_fetch_something_else_is_refused() {
        let xt = format!("xt=urn:btih:{V1}");
        let other = V1.replace('6', "7");
        for (text, error) in [
            ("".to_owned(), MagnetError::NoMagnet),
            ("magnet".into(), MagnetError::NoMagnet),
            ("http://x/?xt=1".into(), MagnetError::NoMagnet),
            ("magnet:?".into(), MagnetError::NoHash),
            (
                "magnet:?dn=x&xt=urn:sha1:YNCKHTQCWBTRNJIV4WNAE52SJUQCZO5C".into(),
                MagnetError::NoHash,
            ),
            (format!("magnet:?xt=urn:btih:{}", &V1[1..]), MagnetError::V1Hash),
            (format!("magnet:?xt=urn:btih:{}g", &V1[1..]), MagnetError::V1Hash),
            ("magnet:?xt=urn:btih:MMNDDXIKIYSX2UDYYDPOJZTOE33T4QV1".into(), MagnetError::V1Hash),
            (format!("magnet:?xt=urn:btmh:1114{V1}"), MagnetError::V2Hash),
            (format!("magnet:?xt=urn:btmh:1220{}", &V2[2..]), MagnetError::V2Hash),
            (format!("magnet:?xt=urn:btmh:1220{V2}ab"), MagnetError::V2Hash),
            (format!("magnet:?{xt}&xt=urn:btih:{other}"), MagnetError::TwoTorrents),
            (format!("magnet:?{xt}&so=5-1"), {
                MagnetError::Select(SelectionError::Backwards { first: 5, last: 1 })
            }),
            ("magnet:?xt=%4".into(), MagnetError::Escape { key: "xt".into() }),
            ("magnet:?xt=%ff".into(), MagnetError::Escape { key: "xt".into() }),
        ] {
            assert_eq!(Magnet::parse(&text), Err(error), "{text}");
        }
        let long = format!("magnet:?{xt}&dn={}", "x".repeat(MAGNET_LEN_MAX));
        assert!(matches!(Magnet::parse(&long), Err(MagnetError::TooLong { .. })));
        assert!(Magnet::parse(&long[..MAGNET_LEN_MAX]).is_ok());
    }

    #[test]
    fn hints_are_bounded() {
        let mut text = format!("magnet:?xt=urn:btih:{V1}");
        for port in 1..=500 {
            text += &format!("&x.pe=a:{port}&tr=udp://a:{port}&ws={port}");
        }
        let link = Magnet::parse(&text).unwrap();
        let lens = [link.peers.len(), link.trackers.len(), link.ignored.len()];
        assert_eq!(lens, [HINTS_MAX; 3]);
    }

    #[test]
    fn an_info_dict_must_have_every_hash_that_was_asked_for() {
        let (v1, v2, other1, other2) = ([1; 20], [2; 32], [3; 20], [4; 32]);
        let judge = |hashes: InfoHashes, sha1, sha256| hashes.judge(&sha1, &sha256);
        assert_eq!(judge(InfoHashes::V1(v1), v1, other2), Verdict::Match);
        assert_eq!(judge(InfoHashes::V1(v1), other1, v2), Verdict::Other);
        assert_eq!(judge(InfoHashes::V2(v2), other1, v2), Verdict::Match);
        assert_eq!(judge(InfoHashes::V2(v2), v1, other2), Verdict::Other);
        let both = InfoHashes::Both(v1, v2);
        assert_eq!(judge(both, v1, v2), Verdict::Match);
        assert_eq!(judge(both, v1, other2), Verdict::Contradiction);
        assert_eq!(judge(both, other1, v2), Verdict::Contradiction);
        assert_eq!(judge(both, other1, other2), Verdict::Other);
    }

    #[test]
    fn addresses_are_read_with_their_family() {
        let addr = |text: &str| text.parse::<PeerAddr>().ok().and_then(|addr| addr.socket_addr());
        assert_eq!(addr("1.2.3.4:5"), Some("1.2.3.4:5".parse().unwrap()));
        assert_eq!(addr("[::ffff:1.2.3.4]:5"), Some("1.2.3.4:5".parse().unwrap()));
        assert_eq!(addr("[2001:db8::1]:5"), Some("[2001:db8::1]:5".parse().unwrap()));
        assert!("peer.example:5".parse::<PeerAddr>().unwrap().socket_addr().is_none());
        for text in ["", ":5", "a:", "a:0", "a:65536", "a:+5", "::1:5", "[::1]", "[x]:5", "a b:5"] {
            assert!(text.parse::<PeerAddr>().is_err(), "{text}");
        }
    }

    fn any_link() -> impl Strategy<Value = Magnet> {
        let hashes = (any::<[u8; 20]>(), any::<[u8; 32]>(), 0..3).prop_map(|(v1, v2, kind)| {
            [InfoHashes::V1(v1), InfoHashes::V2(v2), InfoHashes::Both(v1, v2)][kind as usize]
        });
        let peers = vec((any::<SocketAddr>(), 1..=u16::MAX), 0..4);
        let select = prop::option::of(vec(0_u32..500, 1..9));
        (hashes, prop::option::of(".{0,30}"), vec("[!-~ ]{1,30}", 0..4), peers, select).prop_map(
            |(hashes, name, trackers, peers, select)| {
                let mut link = Magnet::new(hashes);
                link.name = name;
                for tracker in trackers {
                    link.hint("", Some(tracker), |link| &mut link.trackers);
                }
                for (mut addr, port) in peers {
                    addr.set_port(port);
                    link.hint("", Some(PeerAddr::from(addr)), |link| &mut link.peers);
                }
                let text =
                    |list: Vec<u32>| list.iter().map(|n| format!("{n},")).collect::<String>();
                link.select = select.map(|list| FileSelection::parse_link(&text(list)).unwrap());
                link
            },
        )
    }

    proptest! {
        /// What we print is what we read.
        #[test]
        fn a_link_survives_its_text(link in any_link()) {
            prop_assert_eq!(Magnet::parse(&link.to_string()), Ok(link));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", tail in "[xtrp.=&%:1220a-f]{0,80}") {
            let _ = Magnet::parse(&text);
            let _ = Magnet::parse(&format!("magnet:?{tail}"));
        }
    }
}
