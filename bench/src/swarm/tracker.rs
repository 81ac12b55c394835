//! A tracker on this machine that names fixed peers to everybody (BEP 3, BEP 23), for programs that can
//! be told of peers in no other way.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A client that is slower with its request is dropped.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// No request is longer, bytes.
const REQUEST_LEN_MAX: u64 = 64 << 10;

/// A running tracker; it stops when dropped.
pub struct Tracker {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tracker {
    /// Listens on a free port of `ip`.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(ip: Ipv4Addr, peers: Vec<SocketAddr>) -> std::io::Result<Tracker> {
        let listener = TcpListener::bind((ip, 0))?;
        let addr = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    let peers = peers.clone();
                    std::thread::spawn(move || answer(stream, &peers));
                }
            }
        });
        Ok(Tracker { addr, stop, thread: Some(thread) })
    }

    /// What goes into a torrent's `announce`.
    pub fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It sleeps in `accept`.
        drop(TcpStream::connect(self.addr));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request, one answer, and the connection is closed.
fn answer(mut stream: TcpStream, peers: &[SocketAddr]) -> Option<()> {
    stream.set_read_timeout(Some(REQUEST_MAX)).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?.take(REQUEST_LEN_MAX));
    let (mut first, mut line) = (String::new(), String::new());
    reader.read_line(&mut first).ok()?;
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let body = body(&first, peers);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).ok()
}

/// All peers but the one that asks, which names its port.
fn body(request_line: &str, peers: &[SocketAddr]) -> Vec<u8> {
    let query = request_line.split_once('?').map_or("", |(_, rest)| rest);
    let port = query.split(['&', ' ']).find_map(|pair| pair.strip_prefix("port="));
    let port: Option<u16> = port.and_then(|text| text.parse().ok());
    let others = peers.iter().filter(|peer| Some(peer.port()) != port);
    let compact: Vec<u8> = others
        .flat_map(|peer| match peer.ip() {
            IpAddr::V4(ip) => [&ip.octets()[..], &peer.port().to_be_bytes()].concat(),
            IpAddr::V6(_) => Vec::new(),
        })
        .collect();
    let mut body = format!(
        "d8:completei1e10:incompletei1e8:intervali60e12:min intervali5e5:peers{}:",
        compact.len()
    )
    .into_bytes();
    body.extend(compact);
    body.push(b'e');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_everybody_but_the_one_who_asks() {
        let peers = [7001, 7002].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let tracker = Tracker::start(Ipv4Addr::LOCALHOST, peers.to_vec()).unwrap();
        let mut stream = TcpStream::connect(tracker.addr).unwrap();
        stream.write_all(b"GET /announce?port=7001&left=0 HTTP/1.1\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let seven_two = [127, 0, 0, 1, 0x1b, 0x5a];
        assert!(bytes.windows(6).any(|six| six == seven_two));
        assert!(!bytes.windows(6).any(|six| six == [127, 0, 0, 1, 0x1b, 0x59]));
    }
}
