//! A tracker over HTTP: one connection per question, every wait bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::tracker::http::{
    HttpAnswer, HttpReader, REDIRECTS_MAX, announce_request, plain_request, scrape_request,
};
use ringseed_core::tracker::{
    AnnounceReply, AnnounceRequest, HttpUrl, ReplyError, SwarmCounts, may_lead_to, parse_announce,
    parse_scrape,
};

use super::transport::Question;

/// A connection must be up by then.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The answer must be whole by then, redirects included.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How often a wait looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Announces at one address.
pub(super) fn announce(
    url: &HttpUrl,
    request: &AnnounceRequest,
    tracker_id: Option<&[u8]>,
    question: &Question<'_>,
) -> Result<AnnounceReply, String> {
    let answer = exchange(url, announce_request(url, request, tracker_id), question)?;
    // Some trackers say why they refuse under a status that is no success.
    let reply = match (answer.status, parse_announce(&answer.body)) {
        (200, reply) => reply,
        (_, Err(refused @ ReplyError::Refused { .. })) => Err(refused),
        (status, _) => Err(ReplyError::Status { status }),
    };
    reply.map_err(|error| error.to_string())
}

/// Asks how many there are (BEP 48).
pub(super) fn scrape(
    url: &HttpUrl,
    wire_id: &[u8; 20],
    question: &Question<'_>,
) -> Result<SwarmCounts, String> {
    let url = url.scrape().ok_or("the tracker has no scrape")?;
    let answer = exchange(&url, scrape_request(&url, wire_id), question)?;
    match answer.status {
        200 => parse_scrape(&answer.body, wire_id).map_err(|error| error.to_string()),
        status => Err(ReplyError::Status { status }.to_string()),
    }
}

/// Sends a request and follows redirects, each to an address that the first one may lead to.
fn exchange(
    url: &HttpUrl,
    request: Vec<u8>,
    question: &Question<'_>,
) -> Result<HttpAnswer, String> {
    let until = question.until.min(Instant::now() + ANSWER_MAX);
    let (mut url, mut request, mut to) = (url.clone(), request, question.to);
    for _ in 0..=REDIRECTS_MAX {
        let answer = get(to, &request, until, question.stop)?;
        if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
            return Ok(answer);
        }
        let location = answer.location.ok_or("a redirect that leads nowhere")?;
        let next = url.redirect(&location).map_err(|error| error.to_string())?;
        to = redirected(&next, to)?;
        request = plain_request(&next);
        url = next;
    }
    Err(format!("more than {REDIRECTS_MAX} redirects"))
}

/// Where a redirect leads, if a server at `from` may send us there.
fn redirected(url: &HttpUrl, from: SocketAddr) -> Result<SocketAddr, String> {
    let (host, port) = url.authority();
    let found = (host, port).to_socket_addrs();
    let mut found = found.map_err(|error| format!("cannot resolve {host}: {error}"))?;
    let allowed = found.find(|addr| may_lead_to(from.ip(), addr.ip()));
    allowed.ok_or_else(|| format!("a redirect to {host}, where it must not lead"))
}

fn get(
    to: SocketAddr,
    request: &[u8],
    until: Instant,
    stop: &AtomicBool,
) -> Result<HttpAnswer, String> {
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    let failed = |error: std::io::Error| format!("{to}: {error}");
    let wait = left(until).min(CONNECT_MAX);
    if wait.is_zero() {
        return Err("no time is left".to_owned());
    }
    let mut stream = TcpStream::connect_timeout(&to, wait).map_err(failed)?;
    let _ = stream.set_nodelay(true);
    stream.set_write_timeout(Some(wait)).map_err(failed)?;
    stream.set_read_timeout(Some(LOOK_EVERY)).map_err(failed)?;
    stream.write_all(request).map_err(failed)?;
    let mut reader = HttpReader::new();
    let mut buffer = [0; 8192];
    loop {
        if left(until).is_zero() {
            return Err("the tracker's answer takes too long".to_owned());
        }
        if stop.load(Ordering::Relaxed) {
            return Err("stopped".to_owned());
        }
        match stream.read(&mut buffer) {
            Ok(0) => return reader.handle_end().map_err(|error| error.to_string()),
            Ok(count) => match reader.handle_received(&buffer[..count]) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) => return Err(error.to_string()),
            },
            Err(error) if is_wait(error.kind()) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A call that ended because its short wait was over.
pub(super) fn is_wait(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ringseed_core::tracker::TrackerUrl;

    use super::*;

    /// A server that gives these answers, one per connection, and then the requests it got.
    fn server(answers: Vec<String>) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).unwrap();
                requests.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (addr, thread)
    }

    fn ask(addr: SocketAddr) -> Result<HttpAnswer, String> {
        let TrackerUrl::Http(url) = format!("http://{addr}/announce").parse().unwrap() else {
            panic!("http")
        };
        let stop = AtomicBool::new(false);
        let until = Instant::now() + Duration::from_secs(5);
        let question = Question { to: addr, until, stop: &stop, tries: 1 };
        exchange(&url, plain_request(&url), &question)
    }

    fn moved(to: &str) -> String {
        format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
    }

    #[test]
    fn redirects_are_followed_three_times_and_no_further() {
        let end = "HTTP/1.1 200 OK\r\n\r\nd5:peers0:e".to_owned();
        let (addr, server_of) = server(vec![moved("/a"), moved("/b"), moved("/c"), end]);
        assert_eq!(ask(addr).unwrap().body, b"d5:peers0:e");
        let requests = server_of.join().unwrap();
        let lines: Vec<&str> =
            requests.iter().map(|request| request.lines().next().unwrap()).collect();
        assert_eq!(lines[1..], ["GET /a HTTP/1.1", "GET /b HTTP/1.1", "GET /c HTTP/1.1"]);
        let (addr, server_of) = server(vec![moved("/a"); 4]);
        assert!(ask(addr).unwrap_err().contains("redirects"));
        server_of.join().unwrap();
    }

    #[test]
    fn a_redirect_does_not_leave_http_nor_lead_inwards() {
        let (addr, server_of) = server(vec![moved("https://x.example/announce")]);
        assert!(ask(addr).unwrap_err().contains("http://"));
        server_of.join().unwrap();
        let TrackerUrl::Http(url) = "http://127.0.0.1:1/announce".parse().unwrap() else {
            panic!()
        };
        assert!(redirected(&url, "93.184.216.34:80".parse().unwrap()).is_err());
        assert!(redirected(&url, "127.0.0.1:80".parse().unwrap()).is_ok());
    }

    #[test]
    fn an_endless_answer_is_given_up_at_its_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            let mut sent = 0_usize;
            while stream.write_all(&[b'x'; 8192]).is_ok() {
                sent += 8192;
            }
            sent
        });
        assert!(ask(addr).unwrap_err().contains("longer than"));
        let sent = server.join().unwrap();
        assert!(sent < 16 << 20, "{sent} bytes were taken");
    }
}
