//! Just enough HTTP/1.1 to ask a tracker: one GET, one answer, then the connection ends (RFC 9110, 9112).
//!
//! The answer is read as it arrives and never past its bounds: 16 KiB of head, 1 MiB of body. Nothing is
//! decompressed, and a length that the server claims is only compared, never allocated.

use std::fmt::Write as _;

use super::{AnnounceEvent, AnnounceRequest, HttpUrl, ReplyError};

/// Longest head of an answer, in bytes.
pub const HEAD_LEN_MAX: usize = 16 * 1024;
/// Longest body of an answer, in bytes.
pub const BODY_LEN_MAX: usize = 1024 * 1024;
/// Longest line that begins a chunk, in bytes: a length and perhaps an extension.
const CHUNK_LINE_LEN_MAX: usize = 256;
/// Redirects followed in a row.
pub const REDIRECTS_MAX: u32 = 3;

/// The bytes that ask `url` for an announce (BEP 3, 7, 23).
pub fn announce_request(
    url: &HttpUrl,
    request: &AnnounceRequest,
    tracker_id: Option<&[u8]>,
) -> Vec<u8> {
    let mut query = String::new();
    let AnnounceRequest { port, uploaded_bytes, downloaded_bytes, left_bytes, key, wanted, .. } =
        request;
    let _ = write!(
        query,
        "info_hash={}&peer_id={}&port={port}&uploaded={uploaded_bytes}&downloaded={downloaded_bytes}\
         &left={left_bytes}&compact=1&no_peer_id=1&numwant={wanted}&key={key:08x}",
        escaped(&request.wire_id),
        escaped(&request.peer_id)
    );
    query.push_str(match request.event {
        AnnounceEvent::None => "",
        AnnounceEvent::Started => "&event=started",
        AnnounceEvent::Completed => "&event=completed",
        AnnounceEvent::Stopped => "&event=stopped",
    });
    if let Some(id) = tracker_id {
        let _ = write!(query, "&trackerid={}", escaped(id));
    }
    get(url, &query)
}

/// The bytes that ask `url`, which is a scrape URL, for one torrent (BEP 48).
pub fn scrape_request(url: &HttpUrl, wire_id: &[u8; 20]) -> Vec<u8> {
    get(url, &format!("info_hash={}", escaped(wire_id)))
}

/// The bytes that ask for a URL as it stands: after a redirect.
pub fn plain_request(url: &HttpUrl) -> Vec<u8> {
    get(url, "")
}

fn get(url: &HttpUrl, query: &str) -> Vec<u8> {
    // A passkey may stand in the URL's own query.
    let (target, host) = (url.target(), url.host_header());
    let join = match target.contains('?') {
        _ if query.is_empty() => "",
        true => "&",
        false => "?",
    };
    let agent = concat!("ringseed/", env!("CARGO_PKG_VERSION"));
    format!(
        "GET {target}{join}{query} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\n\
         Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// Bytes in a query: what is not unreserved (RFC 3986, 2.3) as `%41`.
fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 3);
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// The body, chunks put together.
    pub body: Vec<u8>,
}

/// A line without its end, and what follows it.
type Line<'a> = (Vec<u8>, &'a [u8]);

/// Reads one answer as it arrives. Feed it with [`HttpReader::handle_received`] until an answer comes
/// out; at the end of the stream call [`HttpReader::handle_end`].
#[derive(Debug)]
pub struct HttpReader {
    state: State,
    /// What has come and is not taken in yet: the head, or a line between chunks.
    held: Vec<u8>,
    answer: HttpAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes are to come.
    Length(usize),
    /// Until the stream ends.
    ToEnd,
    ChunkLine,
    Chunk(usize),
    /// The line end behind a chunk.
    ChunkEnd,
    Trailer,
    Done,
}

impl Default for HttpReader {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpReader {
    /// A reader at the beginning of an answer.
    pub fn new() -> Self {
        let answer = HttpAnswer { status: 0, location: None, body: Vec::new() };
        Self { state: State::Head, held: Vec::new(), answer }
    }

    /// Takes in what has come; the answer, when it is whole.
    ///
    /// # Errors
    /// [`ReplyError::Malformed`], [`ReplyError::TooLong`].
    pub fn handle_received(&mut self, bytes: &[u8]) -> Result<Option<HttpAnswer>, ReplyError> {
        let mut rest = bytes;
        loop {
            rest = match self.state {
                State::Head => match self.take_head(rest)? {
                    Some(rest) => rest,
                    None => return Ok(None),
                },
                State::Length(left) => {
                    let (taken, after) = rest.split_at(left.min(rest.len()));
                    self.answer.body.extend_from_slice(taken);
                    match left - taken.len() {
                        0 => self.state = State::Done,
                        left => {
                            self.state = State::Length(left);
                            return Ok(None);
                        }
                    }
                    after
                }
                State::ToEnd => {
                    if rest.len() > BODY_LEN_MAX - self.answer.body.len() {
                        return Err(ReplyError::TooLong { len_max_bytes: BODY_LEN_MAX });
                    }
                    self.answer.body.extend_from_slice(rest);
                    return Ok(None);
                }
                State::ChunkLine | State::ChunkEnd | State::Trailer => {
                    match self.take_line(rest)? {
                        Some((line, rest)) => {
                            self.chunk_line(&line)?;
                            rest
                        }
                        None => return Ok(None),
                    }
                }
                State::Chunk(left) => {
                    let (taken, after) = rest.split_at(left.min(rest.len()));
                    self.answer.body.extend_from_slice(taken);
                    match left - taken.len() {
                        0 => self.state = State::ChunkEnd,
                        left => {
                            self.state = State::Chunk(left);
                            return Ok(None);
                        }
                    }
                    after
                }
                State::Done => {
                    let answer = HttpAnswer { status: 0, location: None, body: Vec::new() };
                    return Ok(Some(std::mem::replace(&mut self.answer, answer)));
                }
            };
        }
    }

    /// The stream has ended: an answer without a length is whole now.
    ///
    /// # Errors
    /// [`ReplyError::Malformed`] when something is missing.
    pub fn handle_end(self) -> Result<HttpAnswer, ReplyError> {
        match self.state {
            State::ToEnd | State::Done => Ok(self.answer),
            _ => Err(ReplyError::Malformed("the HTTP answer ends too early")),
        }
    }

    /// Gathers the head; what follows it, once it is whole.
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, ReplyError> {
        let before = self.held.len();
        let room = (HEAD_LEN_MAX + 4).saturating_sub(before).min(bytes.len());
        self.held.extend_from_slice(&bytes[..room]);
        // The end may lie across what came before and what came now.
        let from = before.saturating_sub(3);
        let end = self.held[from..].windows(4).position(|end| end == b"\r\n\r\n");
        let Some(end) = end.map(|at| from + at + 4) else {
            return match self.held.len() > HEAD_LEN_MAX {
                true => Err(ReplyError::TooLong { len_max_bytes: HEAD_LEN_MAX }),
                false => Ok(None),
            };
        };
        let head = std::mem::take(&mut self.held);
        self.read_head(&head[..end - 4])?;
        Ok(Some(&bytes[end - before..]))
    }

    fn read_head(&mut self, head: &[u8]) -> Result<(), ReplyError> {
        let malformed = ReplyError::Malformed;
        let head =
            std::str::from_utf8(head).map_err(|_| malformed("an HTTP head that is no text"))?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| {
            let (version, rest) = line.split_once(' ')?;
            let code =
                rest.get(..3).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))?;
            version.starts_with("HTTP/1.").then_some(code)?.parse().ok()
        });
        self.answer.status = status.ok_or(malformed("no HTTP/1 status line"))?;
        let (mut length, mut is_chunked) = (None, false);
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(malformed("an HTTP header without a colon"));
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let found =
                        decimal(value).ok_or(malformed("a content length that is no number"))?;
                    if length.is_some_and(|length| length != found) {
                        return Err(malformed("two content lengths"));
                    }
                    length = Some(found);
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => is_chunked = true,
                "transfer-encoding" => return Err(malformed("an encoding that was not asked for")),
                "content-encoding" if !value.eq_ignore_ascii_case("identity") => {
                    return Err(malformed("an encoding that was not asked for"));
                }
                "location" => self.answer.location = Some(value.to_owned()),
                _ => {}
            }
        }
        if length.is_some_and(|length| length > BODY_LEN_MAX as u64) {
            return Err(ReplyError::TooLong { len_max_bytes: BODY_LEN_MAX });
        }
        self.state = match (is_chunked, length) {
            (true, None) => State::ChunkLine,
            // Both is how requests are smuggled (RFC 9112, 6.3): nobody honest sends it.
            (true, Some(_)) => return Err(malformed("a length and chunks")),
            (false, Some(0)) => State::Done,
            (false, Some(length)) => State::Length(length as usize),
            (false, None) if matches!(self.answer.status, 204 | 304) => State::Done,
            (false, None) => State::ToEnd,
        };
        Ok(())
    }

    /// A line between chunks, without its end, and what follows it.
    fn take_line<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Line<'a>>, ReplyError> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        if self.held.len() + taken > CHUNK_LINE_LEN_MAX {
            return Err(ReplyError::Malformed("a long line between chunks"));
        }
        self.held.extend_from_slice(&bytes[..taken]);
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.held);
        line.truncate(line.trim_ascii_end().len());
        Ok(Some((line, &bytes[taken..])))
    }

    fn chunk_line(&mut self, line: &[u8]) -> Result<(), ReplyError> {
        let malformed = |what| Err(ReplyError::Malformed(what));
        self.state = match self.state {
            State::ChunkEnd if line.is_empty() => State::ChunkLine,
            State::ChunkEnd => return malformed("a chunk that is longer than it says"),
            State::Trailer if line.is_empty() => State::Done,
            State::Trailer => State::Trailer,
            _ => {
                let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
                let digits = std::str::from_utf8(digits.trim_ascii()).unwrap_or_default();
                let is_hex =
                    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !is_hex {
                    return malformed("a chunk without a length");
                }
                let room = BODY_LEN_MAX - self.answer.body.len();
                match usize::from_str_radix(digits, 16) {
                    Ok(0) => State::Trailer,
                    Ok(length) if length <= room => State::Chunk(length),
                    _ => return Err(ReplyError::TooLong { len_max_bytes: BODY_LEN_MAX }),
                }
            }
        };
        Ok(())
    }
}

fn decimal(text: &str) -> Option<u64> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_decimal.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Reads a whole answer at once: for tests and fuzzers.
///
/// # Errors
/// As [`HttpReader`].
pub fn parse_answer(bytes: &[u8]) -> Result<HttpAnswer, ReplyError> {
    let mut reader = HttpReader::new();
    match reader.handle_received(bytes)? {
        Some(answer) => Ok(answer),
        None => reader.handle_end(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::TrackerUrl;
    use super::*;

    fn url(text: &str) -> HttpUrl {
        match text.parse().unwrap() {
            TrackerUrl::Http(url) => url,
            TrackerUrl::Udp(_) => panic!("{text}"),
        }
    }

    #[test]
    fn an_announce_says_everything_once() {
        let request = AnnounceRequest {
            wire_id:
                *b"\x12\x34\x56\x78\x9a\xbc\xde\xf1\x23\x45\x67\x89\xab\xcd\xef\x12\x34\x56\x78\x9a",
            peer_id: *b"-RS0100-abcdefghijkl",
            port: 6881,
            uploaded_bytes: 1,
            downloaded_bytes: 2,
            left_bytes: 3,
            event: AnnounceEvent::Started,
            key: 0xbeef,
            wanted: 50,
        };
        let bytes = announce_request(&url("http://t.example:81/a?pass=k"), &request, Some(b"\0id"));
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text.split("\r\n").next().unwrap(),
            "GET /a?pass=k&info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A\
             &peer_id=-RS0100-abcdefghijkl&port=6881&uploaded=1&downloaded=2&left=3&compact=1\
             &no_peer_id=1&numwant=50&key=0000beef&event=started&trackerid=%00id HTTP/1.1"
        );
        assert!(text.contains("\r\nHost: t.example:81\r\n") && text.ends_with("\r\n\r\n"));
        let scrape = scrape_request(&url("http://t/scrape"), &[b'a'; 20]);
        assert!(
            scrape
                .starts_with(b"GET /scrape?info_hash=aaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: t\r\n")
        );
        assert!(plain_request(&url("http://t/x")).starts_with(b"GET /x HTTP/1.1\r\n"));
    }

    fn body(answer: &str) -> Vec<u8> {
        parse_answer(answer.as_bytes()).unwrap().body
    }

    #[test]
    fn every_way_to_end_a_body_is_understood() {
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"), b"abc");
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nabc"), b"abc");
        assert_eq!(body("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n"), b"");
        assert_eq!(
            body(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: x\r\n\r\n"
            ),
            b"abcde"
        );
        let moved =
            parse_answer(b"HTTP/1.1 302 Found\r\nLocation:  /x \r\nContent-Length: 0\r\n\r\n");
        let moved = moved.unwrap();
        assert_eq!((moved.status, moved.location.as_deref()), (302, Some("/x")));
    }

    #[test]
    fn what_is_no_answer_or_too_long_is_refused() {
        let refused = |answer: &str| parse_answer(answer.as_bytes()).unwrap_err();
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/2 200\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        ] {
            assert!(
                matches!(refused(answer), ReplyError::Malformed(_)),
                "{answer:?}: {:?}",
                refused(answer)
            );
        }
        for answer in [
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(HEAD_LEN_MAX)),
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BODY_LEN_MAX + 1),
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", "9".repeat(40)),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(BODY_LEN_MAX + 1)),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"
                .to_owned(),
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                format!("8000\r\n{}\r\n", "x".repeat(0x8000)).repeat(33)
            ),
        ] {
            assert!(matches!(refused(&answer), ReplyError::TooLong { .. }), "{:?}", &answer[..60]);
        }
        let whole = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(BODY_LEN_MAX));
        assert_eq!(body(&whole).len(), BODY_LEN_MAX);
    }

    /// A server that drips an endless head is stopped at the bound, whatever the size of its drops.
    #[test]
    fn a_head_without_an_end_is_given_up_at_its_bound() {
        let mut reader = HttpReader::new();
        let mut fed = 0;
        while reader.handle_received(b"HTTP/1.1 200 OK and on").is_ok() {
            fed += 22;
            assert!(fed < HEAD_LEN_MAX + 1000);
        }
        assert!(fed > HEAD_LEN_MAX - 1000);
    }

    proptest! {
        /// What is read does not depend on where TCP cut the stream.
        #[test]
        fn an_answer_is_read_whatever_its_cuts(
            parts in vec(vec(any::<u8>(), 1..40), 0..5),
            chunked in any::<bool>(),
            cuts in vec(1_usize..30, 1..80),
        ) {
            let body = parts.concat();
            let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
            if chunked {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for part in &parts {
                    bytes.extend(format!("{:x}\r\n", part.len()).into_bytes());
                    bytes.extend(part);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            } else {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
                bytes.extend(&body);
            }
            let mut reader = HttpReader::new();
            let (mut rest, mut found) = (&bytes[..], None);
            for cut in cuts.into_iter().cycle() {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                found = reader.handle_received(now).unwrap();
                rest = later;
                if found.is_some() || rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found.map(|answer| answer.body), Some(body));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), text in "[HTP/1.0 2:\r\n0-9a-f]{0,80}") {
            let _ = parse_answer(&bytes);
            let _ = parse_answer(text.as_bytes());
            let _ = parse_answer(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &bytes[..]].concat());
        }
    }
}
