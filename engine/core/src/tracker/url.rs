//! Which URLs are trackers to us.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

use crate::magnet::is_host;

/// Longest URL, in bytes.
pub const TRACKER_URL_LEN_MAX: usize = 2048;

/// A tracker's URL, checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TrackerUrl {
    /// BEP 3.
    Http(HttpUrl),
    /// BEP 15.
    Udp(UdpUrl),
}

/// `http://HOST[:PORT]/PATH[?QUERY]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    host: String,
    port: u16,
    /// Path and query, as they go into the request: printable ASCII, begins with a slash.
    target: String,
}

/// `udp://HOST:PORT`; a path behind it means nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UdpUrl {
    host: String,
    port: u16,
}

/// Why a URL is no tracker to us.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UrlError {
    /// A scheme that we do not speak. HTTPS is one of them: there is no TLS here.
    #[error("trackers are asked over http:// and udp:// only, not over {scheme}")]
    Scheme {
        /// What stands before the colon, cut to 20 characters.
        scheme: String,
    },
    /// Not written as a URL.
    #[error("the tracker's URL cannot be read: {reason}")]
    Syntax {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Longer than [`TRACKER_URL_LEN_MAX`].
    #[error("a tracker's URL of {len_bytes} bytes is longer than {TRACKER_URL_LEN_MAX}")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
}

impl TrackerUrl {
    /// Host and port.
    pub fn authority(&self) -> (&str, u16) {
        match self {
            TrackerUrl::Http(url) => (&url.host, url.port),
            TrackerUrl::Udp(url) => (&url.host, url.port),
        }
    }
}

impl FromStr for TrackerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > TRACKER_URL_LEN_MAX {
            return Err(UrlError::TooLong { len_bytes: text.len() });
        }
        let syntax = |reason| UrlError::Syntax { reason };
        let (scheme, rest) = text.split_once("://").ok_or(syntax("no scheme"))?;
        // Whatever would end the line of a request, or is not ASCII, must not come into one.
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(syntax("a space, a control character or a letter that is not ASCII"));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let target = target.split('#').next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("http") {
            let (host, port) = split_authority(authority, Some(80))?;
            let slash = if target.starts_with('/') { "" } else { "/" };
            Ok(TrackerUrl::Http(HttpUrl { host, port, target: format!("{slash}{target}") }))
        } else if scheme.eq_ignore_ascii_case("udp") {
            let (host, port) = split_authority(authority, None)?;
            Ok(TrackerUrl::Udp(UdpUrl { host, port }))
        } else {
            Err(UrlError::Scheme { scheme: scheme.chars().take(20).collect() })
        }
    }
}

impl fmt::Display for TrackerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrackerUrl::Http(url) => write!(f, "http://{}{}", url.host_header(), url.target),
            TrackerUrl::Udp(url) => write!(f, "udp://{}", authority_text(&url.host, url.port)),
        }
    }
}

impl HttpUrl {
    /// Path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What goes into the `Host` header (RFC 9110, 7.2).
    pub fn host_header(&self) -> String {
        match self.port {
            80 => authority_text(&self.host, 80).trim_end_matches(":80").to_owned(),
            port => authority_text(&self.host, port),
        }
    }

    /// Host and port.
    pub fn authority(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Whether the path names an announce: the only thing at our own machine that a foreign URL may
    /// ask for.
    pub fn is_announce(&self) -> bool {
        let path = self.target.split('?').next().unwrap_or_default();
        path.rsplit('/').next().is_some_and(|last| last.starts_with("announce"))
    }

    /// Where this tracker answers scrapes (BEP 48): where the text behind the last slash begins with
    /// `announce`, there stands `scrape`. `None` when it does not.
    pub fn scrape(&self) -> Option<HttpUrl> {
        let (head, last) = self.target.rsplit_once('/')?;
        let tail = last.strip_prefix("announce")?;
        Some(HttpUrl { target: format!("{head}/scrape{tail}"), ..self.clone() })
    }

    /// Where a redirect leads (RFC 9110, 15.4): another `http://` URL, or another path of this host.
    ///
    /// # Errors
    /// [`UrlError`] for anything else.
    pub fn redirect(&self, location: &str) -> Result<HttpUrl, UrlError> {
        if location.starts_with('/') && !location.starts_with("//") {
            let text = format!("http://{}{location}", authority_text(&self.host, self.port));
            return self.redirect(&text);
        }
        match location.parse()? {
            TrackerUrl::Http(url) => Ok(url),
            TrackerUrl::Udp(_) => Err(UrlError::Scheme { scheme: "udp".to_owned() }),
        }
    }
}

/// Whether a server at `from` may send us to `to`. A server out there must not use us to talk to what only
/// this machine can reach, be it by a redirect or as a peer.
pub fn may_lead_to(from: IpAddr, to: IpAddr) -> bool {
    let (from, to) = (from.to_canonical(), to.to_canonical());
    let is_nobody = to.is_unspecified() || to.is_multicast();
    !is_nobody && (from.is_loopback() || !(to.is_loopback() || is_link_local(to)))
}

/// Addresses of the own link alone, where clouds keep their secrets (169.254.169.254).
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn authority_text(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn split_authority(text: &str, port_default: Option<u16>) -> Result<(String, u16), UrlError> {
    let syntax = |reason| UrlError::Syntax { reason };
    if text.contains('@') {
        return Err(syntax("a user name"));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or(syntax("a bracket is open"))?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(syntax("no IPv6 address between the brackets"));
            }
            (host, after.strip_prefix(':').or(if after.is_empty() { None } else { Some("") }))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if !text.starts_with('[') && !is_host(host) {
        return Err(syntax("no host"));
    }
    let is_decimal = |port: &&str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        Some(port) => Some(port).filter(is_decimal).and_then(|port| port.parse().ok()),
        None => port_default,
    };
    let port = port.filter(|&port| port != 0).ok_or(syntax("no port"))?;
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<TrackerUrl, UrlError> {
        text.parse()
    }

    fn http(text: &str) -> HttpUrl {
        match parse(text).unwrap() {
            TrackerUrl::Http(url) => url,
            TrackerUrl::Udp(_) => panic!("{text} is udp"),
        }
    }

    #[test]
    fn trackers_are_read_and_written() {
        for (text, shown) in [
            ("http://t.example/announce", "http://t.example/announce"),
            ("HTTP://t.example:8080/a?k=1#x", "http://t.example:8080/a?k=1"),
            ("http://t.example", "http://t.example/"),
            ("http://t.example?k", "http://t.example/?k"),
            ("http://[2001:db8::1]/announce", "http://[2001:db8::1]/announce"),
            ("http://[::1]:81/a", "http://[::1]:81/a"),
            ("udp://t.example:6969/announce", "udp://t.example:6969"),
            ("udp://[::1]:6969", "udp://[::1]:6969"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown, "{text}");
        }
        assert_eq!(http("http://t:80/").host_header(), "t");
        assert_eq!(http("http://t:8080/").host_header(), "t:8080");
        assert_eq!(http("http://[::1]/").host_header(), "[::1]");
    }

    #[test]
    fn what_we_do_not_speak_says_what_we_do_speak() {
        for text in ["https://t.example/announce", "ws://x/", "wss://x/", "file://x/"] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, UrlError::Scheme { .. }), "{text}");
            assert!(error.to_string().contains("http:// and udp:// only"));
        }
        for text in [
            "",
            "t.example",
            "http:/x",
            "http://",
            "http://:80/",
            "udp://t.example",
            "udp://t:0",
            "http://t:99999/",
            "http://t:+1/",
            "http://u@t/",
            "http://[::1/",
            "http://[x]/",
            "http://[::1]x/",
            "http://t/a b",
            "http://t/\r\nX: y",
            "http://t/ü",
            "http://a_b\\c/",
        ] {
            assert!(
                matches!(parse(text), Err(UrlError::Syntax { .. })),
                "{text:?}: {:?}",
                parse(text)
            );
        }
        let long = format!("http://t/{}", "x".repeat(TRACKER_URL_LEN_MAX));
        assert!(matches!(parse(&long), Err(UrlError::TooLong { .. })));
        assert!(parse(&long[..TRACKER_URL_LEN_MAX]).is_ok());
    }

    /// The examples of BEP 48.
    #[test]
    fn scrape_stands_where_announce_stood() {
        let scrape = |path: &str| {
            http(&format!("http://example.com{path}")).scrape().map(|url| url.target().to_owned())
        };
        assert_eq!(scrape("/announce").as_deref(), Some("/scrape"));
        assert_eq!(scrape("/x/announce").as_deref(), Some("/x/scrape"));
        assert_eq!(scrape("/announce.php").as_deref(), Some("/scrape.php"));
        assert_eq!(scrape("/announce?x2%0644").as_deref(), Some("/scrape?x2%0644"));
        assert_eq!(scrape("/a"), None);
        assert_eq!(scrape("/announce?x=2/4"), None);
        assert_eq!(scrape("/x%064announce"), None);
    }

    #[test]
    fn a_redirect_stays_with_http() {
        let from = http("http://t.example:81/announce?k");
        let to =
            |location: &str| from.redirect(location).map(|url| TrackerUrl::Http(url).to_string());
        assert_eq!(to("/other?x").unwrap(), "http://t.example:81/other?x");
        assert_eq!(to("http://u.example/a").unwrap(), "http://u.example/a");
        for location in
            ["https://t.example/a", "udp://t:1", "//u.example/a", "a", "", "file:///etc/x"]
        {
            assert!(to(location).is_err(), "{location}");
        }
    }

    #[test]
    fn nobody_out_there_leads_us_to_our_own_machine() {
        let may = |from: &str, to: &str| may_lead_to(from.parse().unwrap(), to.parse().unwrap());
        assert!(may("93.184.216.34", "93.184.216.35") && may("93.184.216.34", "10.0.0.1"));
        for to in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "224.0.0.1",
        ] {
            assert!(!may("93.184.216.34", to), "{to}");
        }
        assert!(
            may("127.0.0.1", "127.0.0.2") && may("::1", "127.0.0.1") && may("127.0.0.1", "8.8.8.8")
        );
        assert!(!may("127.0.0.1", "0.0.0.0"));
    }

    proptest! {
        /// What we show is what we read, and no text is too much.
        #[test]
        fn any_text_is_read_or_refused(text in "(http|udp|HTTP|x)://[a-z.0-9:@\\[\\]/?# %é-]{0,60}") {
            if let Ok(url) = parse(&text) {
                prop_assert_eq!(parse(&url.to_string()), Ok(url));
            }
        }
    }
}
