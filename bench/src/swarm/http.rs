//! One HTTP request per connection, for the control interfaces of programs on this machine.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A control interface that takes longer is not answering.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const BOUNDARY: &str = "----ringseed-bench-5a5a5a5a5a5a";

/// Status, head and body of an answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends a request as HTTP 1.0, whose answers come whole and end with the connection, or with the length
/// that they name.
///
/// # Errors
/// Those of the socket; `InvalidData` when the answer is no HTTP.
pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&addr, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {addr}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let count = stream.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..count]);
        let answer = parse(&bytes);
        let is_whole = answer.as_ref().is_some_and(|answer| {
            let len = answer.header("content-length").and_then(|text| text.parse().ok());
            len.is_some_and(|len: usize| answer.body.len() >= len)
        });
        if count == 0 || is_whole {
            return answer.ok_or_else(|| std::io::ErrorKind::InvalidData.into());
        }
    }
}

/// A `multipart/form-data` body (RFC 7578) and its content type.
pub fn multipart(fields: &[(&str, &str)], torrents: &[Vec<u8>]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        );
        body.extend(part.into_bytes());
    }
    for (at, torrent) in torrents.iter().enumerate() {
        let part = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"torrents\"; \
             filename=\"{at}.torrent\"\r\nContent-Type: application/x-bittorrent\r\n\r\n"
        );
        body.extend(part.into_bytes());
        body.extend_from_slice(torrent);
        body.extend_from_slice(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: bytes[end + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = parse(b"HTTP/1.1 409 Conflict\r\nX-Token: abc\r\n\r\n{\"a\":1}").unwrap();
        assert_eq!(answer.status, 409);
        assert_eq!(answer.header("x-token"), Some("abc"));
        assert_eq!(answer.json()["a"], 1);
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_none());
    }
}
