//! The bencoded answers of HTTP trackers.
//!
//! Keys out of order and bytes behind the end are accepted, for trackers send both; what is of the wrong
//! type counts as not said.

use super::{
    AnnounceReply, INTERVAL_DEFAULT, PeerList, ReplyError, SwarmCounts, http::BODY_LEN_MAX,
    interval, shown,
};
use crate::bencode::{Document, KeyOrder, Limits, Value};

/// A thousand peers as dictionaries of four entries are ten thousand tokens.
const LIMITS: Limits = Limits { len_max_bytes: BODY_LEN_MAX, depth_max: 8, token_max: 100_000 };

/// Reads the answer to an announce (BEP 3, 7, 23).
///
/// # Errors
/// [`ReplyError::Refused`] with the tracker's reason, [`ReplyError::Malformed`].
pub fn parse_announce(body: &[u8]) -> Result<AnnounceReply, ReplyError> {
    let document = parse(body)?;
    let root = document.root();
    refused(root)?;
    if root.get(b"peers").is_none()
        && root.get(b"peers6").is_none()
        && root.get(b"interval").is_none()
    {
        return Err(ReplyError::Malformed("neither peers nor an interval"));
    }
    let seconds = |key: &[u8]| root.get(key).and_then(|value| value.as_int()).and_then(interval);
    let mut list = PeerList::default();
    if let Some(peers) = root.get(b"peers") {
        if let Some(compact) = peers.as_bytes() {
            list.push_v4(compact);
        }
        for peer in peers.as_list().into_iter().flatten() {
            // A name in place of an address would have to be resolved for a stranger: left out.
            let ip = peer
                .get(b"ip")
                .and_then(|ip| std::str::from_utf8(ip.as_bytes()?).ok()?.parse().ok());
            let port = peer.get(b"port").and_then(|port| u16::try_from(port.as_int()?).ok());
            if let (Some(ip), Some(port)) = (ip, port) {
                list.push(ip, port);
            }
        }
    }
    if let Some(compact) = root.get(b"peers6").and_then(|peers| peers.as_bytes()) {
        list.push_v6(compact);
    }
    let text = |key: &[u8]| root.get(key).and_then(|value| value.as_bytes());
    Ok(AnnounceReply {
        interval: seconds(b"interval").unwrap_or(INTERVAL_DEFAULT),
        interval_min: seconds(b"min interval"),
        peers: list.peers,
        counts: counts(root),
        warning: text(b"warning message").map(shown),
        tracker_id: text(b"tracker id").filter(|id| id.len() <= 256).map(<[u8]>::to_vec),
    })
}

/// Reads the answer to a scrape of one torrent (BEP 48).
///
/// # Errors
/// [`ReplyError::Refused`] with the tracker's reason, [`ReplyError::Malformed`] also when it says nothing
/// of this torrent.
pub fn parse_scrape(body: &[u8], wire_id: &[u8; 20]) -> Result<SwarmCounts, ReplyError> {
    let document = parse(body)?;
    let root = document.root();
    refused(root)?;
    let files = root.get(b"files").ok_or(ReplyError::Malformed("no files"))?;
    files.get(wire_id).map(counts).ok_or(ReplyError::Malformed("another torrent"))
}

fn parse(body: &[u8]) -> Result<Document<'_>, ReplyError> {
    if body.len() > BODY_LEN_MAX {
        return Err(ReplyError::TooLong { len_max_bytes: BODY_LEN_MAX });
    }
    let no_bencode = |_| ReplyError::Malformed("no bencode");
    let document = Document::parse_prefix(body, LIMITS, KeyOrder::Lenient).map_err(no_bencode)?;
    match document.root().as_dict() {
        Some(_) => Ok(document),
        None => Err(ReplyError::Malformed("no dictionary")),
    }
}

fn refused(root: Value<'_>) -> Result<(), ReplyError> {
    match root.get(b"failure reason") {
        Some(reason) => {
            let reason = shown(reason.as_bytes().unwrap_or(b"no reason given"));
            Err(ReplyError::Refused { reason })
        }
        None => Ok(()),
    }
}

fn counts(of: Value<'_>) -> SwarmCounts {
    let count = |key: &[u8]| of.get(key).and_then(|value| u32::try_from(value.as_int()?).ok());
    SwarmCounts {
        seeds: count(b"complete"),
        leeches: count(b"incomplete"),
        downloads: count(b"downloaded"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::{INTERVAL_MAX, PEERS_MAX};
    use super::*;

    fn reply(body: &[u8]) -> AnnounceReply {
        parse_announce(body).unwrap()
    }

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn compact_peers_of_both_families_are_read() {
        let mut body = b"d8:completei5e10:incompletei7e8:intervali900e12:min intervali60e".to_vec();
        body.extend(b"5:peers12:\x01\x02\x03\x04\x1a\xe1\x05\x06\x07\x08\0\x50");
        body.extend(b"6:peers618:\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe1");
        body.extend(b"15:warning message5:slow\ne");
        let found = reply(&body);
        assert_eq!(found.peers, addrs(&["1.2.3.4:6881", "5.6.7.8:80", "[2001:db8::1]:6881"]));
        assert_eq!(found.interval, Duration::from_secs(900));
        assert_eq!(found.interval_min, Some(Duration::from_secs(60)));
        let counts = SwarmCounts { seeds: Some(5), leeches: Some(7), downloads: None };
        assert_eq!(found.counts, counts);
        assert_eq!(found.warning.as_deref(), Some("slow "));
    }

    #[test]
    fn a_list_of_dictionaries_is_read_and_its_names_are_left_out() {
        let body = b"d8:intervali900e5:peersl\
            d2:ip7:1.2.3.47:peer id20:aaaaaaaaaaaaaaaaaaaa4:porti6881ee\
            d2:ip11:2001:db8::14:porti6882ee\
            d2:ip12:peer.example4:porti6883ee\
            d2:ip7:1.2.3.54:porti70000ee\
            d2:ip7:1.2.3.64:porti-1ee\
            d4:porti1eei5eee";
        assert_eq!(reply(body).peers, addrs(&["1.2.3.4:6881", "[2001:db8::1]:6882"]));
    }

    #[test]
    fn lists_of_odd_lengths_give_their_whole_addresses() {
        for extra in 0..6 {
            let tail = &b"xxxxx"[..extra];
            let mut body = format!("d8:intervali9e5:peers{}:", 6 + extra).into_bytes();
            body.extend(b"\x01\x02\x03\x04\0\x01");
            body.extend(tail);
            body.push(b'e');
            assert_eq!(reply(&body).peers, addrs(&["1.2.3.4:1"]), "{extra}");
        }
    }

    #[test]
    fn what_nobody_can_dial_is_left_out_and_the_rest_comes_once() {
        let mut peers = Vec::new();
        for ip in [[0, 0, 0, 0], [0, 1, 2, 3], [255; 4], [224, 0, 0, 1], [9, 9, 9, 9], [9, 9, 9, 9]]
        {
            peers.extend(ip);
            peers.extend([0, 80]);
        }
        peers.extend([8, 8, 8, 8, 0, 0]); // no port
        let mut body = format!("d8:intervali9e5:peers{}:", peers.len()).into_bytes();
        body.extend(&peers);
        body.extend(b"6:peers636:\0\0\0\0\0\0\0\0\0\0\xff\xff\x09\x09\x09\x09\0\x50");
        body.extend(b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50e");
        assert_eq!(reply(&body).peers, addrs(&["9.9.9.9:80"]));
    }

    #[test]
    fn no_more_peers_are_taken_than_we_want() {
        let peers: Vec<u8> = (0..50_000_u32)
            .flat_map(|n| [&(n | 9 << 24).to_be_bytes()[..], &[1, 1]].concat())
            .collect();
        let mut body = format!("d8:intervali9e5:peers{}:", peers.len()).into_bytes();
        body.extend(&peers);
        body.push(b'e');
        assert_eq!(reply(&body).peers.len(), PEERS_MAX);
    }

    #[test]
    fn intervals_that_cannot_be_meant_are_replaced() {
        for (said, taken) in [
            ("i-5e", INTERVAL_DEFAULT),
            ("i0e", INTERVAL_DEFAULT),
            ("3:abc", INTERVAL_DEFAULT),
            ("i9223372036854775807e", INTERVAL_MAX),
            ("i7e", Duration::from_secs(7)),
        ] {
            let body = format!("d8:interval{said}12:min interval{said}5:peers0:e");
            let found = reply(body.as_bytes());
            assert_eq!(found.interval, taken, "{said}");
            assert_eq!(found.interval_min.unwrap_or(INTERVAL_DEFAULT), taken, "{said}");
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_is_no_answer_is_refused() {
        let refused = |body: &[u8]| parse_announce(body).unwrap_err();
        let error = refused(b"d14:failure reason13:not\x1b[31m here5:peers0:e");
        assert_eq!(error, ReplyError::Refused { reason: "not [31m here".to_owned() });
        let long = [b"d14:failure reason5000:".as_slice(), &[b'x'; 5000], b"e"].concat();
        assert!(matches!(refused(&long), ReplyError::Refused { reason } if reason.len() == 200));
        let no_text = refused(b"d14:failure reasoni1ee");
        assert_eq!(no_text, ReplyError::Refused { reason: "no reason given".to_owned() });
        for body in
            [&b""[..], b"de", b"le", b"i5e", b"<html>", b"d5:peers99999999999:", b"d4:porti1ee"]
        {
            assert!(matches!(refused(body), ReplyError::Malformed(_)), "{body:?}");
        }
        let bomb = [&[b'l'; 500_000][..], &[b'e'; 500_000]].concat();
        assert!(matches!(refused(&bomb), ReplyError::Malformed(_)));
        assert!(matches!(refused(&vec![b'x'; BODY_LEN_MAX + 1]), ReplyError::TooLong { .. }));
        assert!(parse_announce(b"d8:intervali9e5:peers0:e\r\n").is_ok(), "bytes behind the end");
        assert!(parse_announce(b"d5:peers0:8:intervali9ee").is_ok(), "keys out of order");
    }

    #[test]
    fn a_scrape_counts_the_torrent_that_was_asked_for() {
        let body =
            b"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei1e10:downloadedi2e10:incompletei-3eeee";
        let found = parse_scrape(body, b"aaaaaaaaaaaaaaaaaaaa").unwrap();
        assert_eq!(found, SwarmCounts { seeds: Some(1), leeches: None, downloads: Some(2) });
        assert!(parse_scrape(body, &[7; 20]).is_err());
        assert!(parse_scrape(b"d5:filesi1ee", &[7; 20]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in vec(any::<u8>(), 0..300)) {
            let _ = parse_announce(&body);
            let _ = parse_scrape(&body, &[0; 20]);
        }

        /// Every address in, every address out, whatever the mixture of families.
        #[test]
        fn addresses_survive(peers in vec((1_u8..=223, any::<[u8; 3]>(), 1..=u16::MAX), 0..50)) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (first, [b, c, d], port) in peers {
                bytes.extend([first, b, c, d]);
                bytes.extend(port.to_be_bytes());
                let addr = SocketAddr::from(([first, b, c, d], port));
                if !expected.contains(&addr) {
                    expected.push(addr);
                }
            }
            let mut body = format!("d8:intervali9e5:peers{}:", bytes.len()).into_bytes();
            body.extend(&bytes);
            body.push(b'e');
            prop_assert_eq!(reply(&body).peers, expected);
        }
    }
}
