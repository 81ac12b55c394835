//! A small HTTP tracker on loopback (BEP 3, 7, 23, 48) that remembers every announce. For peers that
//! can be reached in no other way, and for tests of our own announces. It shares no code with the engine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How soon clients are asked to come again, in seconds. Most have a floor of their own.
const INTERVAL_S: u32 = 5;
/// A client that sends its request slower than this is dropped.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// No request line of a real client is longer, in bytes.
const LINE_LEN_MAX_BYTES: u64 = 8 * 1024;

/// One announce as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Torrent, SHA-1 or truncated SHA-256.
    pub info_hash: [u8; 20],
    /// What the client calls itself.
    pub peer_id: [u8; 20],
    /// Where it says it listens; the address is that of the connection.
    pub addr: SocketAddr,
    /// Bytes it says it lacks.
    pub left: Option<u64>,
    /// `started`, `stopped`, `completed` or nothing.
    pub event: Option<String>,
    /// All parameters, decoded.
    pub parameters: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    /// Who is there, by torrent; a seed is `true`.
    peers: BTreeMap<[u8; 20], BTreeMap<SocketAddr, bool>>,
    announces: Vec<Announce>,
}

/// A running tracker; stops when dropped.
#[derive(Debug)]
pub struct Tracker {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Tracker {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When no port is to be had.
    pub fn start() -> Tracker {
        Tracker::start_at(([127, 0, 0, 1], 0).into())
    }

    /// Listens at `addr`.
    ///
    /// # Panics
    /// When that is not to be had.
    pub fn start_at(addr: SocketAddr) -> Tracker {
        let listener = TcpListener::bind(addr).expect("a port for the tracker");
        let addr = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let (stop, state) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, shared) = (stop.clone(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, from)) => {
                        let shared = Arc::clone(&shared);
                        std::thread::spawn(move || drop(answer(stream, from, &shared)));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Tracker { addr, stop, state, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What stands in a torrent's `announce`.
    pub fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }

    /// Tells everybody who asks for the torrent of a peer that does not announce itself.
    pub fn add_peer(&self, info_hash: [u8; 20], addr: SocketAddr) {
        self.state().peers.entry(info_hash).or_default().insert(addr, true);
    }

    /// Every announce so far, oldest first.
    pub fn announces(&self) -> Vec<Announce> {
        self.state().announces.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the tracker has panicked")
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request, one answer, and the connection is closed.
fn answer(mut stream: TcpStream, from: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(REQUEST_MAX))?;
    let mut reader = BufReader::new(std::io::Read::take(&mut stream, 8 * LINE_LEN_MAX_BYTES));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = match path {
        "/announce" => announce(query, from.ip(), state),
        "/scrape" => Some(scrape(query, state)),
        _ => None,
    };
    let body = body.unwrap_or_else(|| b"d14:failure reason15:bad request heree".to_vec());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat())
}

fn announce(query: &str, from: IpAddr, state: &Mutex<State>) -> Option<Vec<u8>> {
    let parameters: BTreeMap<String, Vec<u8>> =
        pairs(query).map(|(name, value)| (name.to_owned(), unescape(value))).collect();
    let text = |name: &str| String::from_utf8(parameters.get(name)?.clone()).ok();
    let hash = |name: &str| <[u8; 20]>::try_from(parameters.get(name)?.as_slice()).ok();
    let one = Announce {
        info_hash: hash("info_hash")?,
        peer_id: hash("peer_id")?,
        addr: SocketAddr::new(from, text("port")?.parse().ok()?),
        left: text("left").and_then(|left| left.parse().ok()),
        event: text("event").filter(|event| !event.is_empty()),
        parameters: parameters.clone(),
    };
    let mut state = state.lock().expect("no thread of the tracker has panicked");
    let swarm = state.peers.entry(one.info_hash).or_default();
    if one.event.as_deref() == Some("stopped") {
        swarm.remove(&one.addr);
    } else {
        swarm.insert(one.addr, one.left == Some(0));
    }
    let seeds = swarm.values().filter(|is_seed| **is_seed).count();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for addr in swarm.keys().filter(|addr| **addr != one.addr) {
        match addr.ip() {
            IpAddr::V4(ip) => v4.extend([&ip.octets()[..], &addr.port().to_be_bytes()].concat()),
            IpAddr::V6(ip) => v6.extend([&ip.octets()[..], &addr.port().to_be_bytes()].concat()),
        }
    }
    let mut body = format!(
        "d8:completei{seeds}e10:incompletei{}e8:intervali{INTERVAL_S}e12:min intervali1e5:peers{}:",
        swarm.len() - seeds,
        v4.len()
    )
    .into_bytes();
    body.extend(v4);
    if !v6.is_empty() {
        body.extend(format!("6:peers6{}:", v6.len()).into_bytes());
        body.extend(v6);
    }
    body.push(b'e');
    state.announces.push(one);
    Some(body)
}

fn scrape(query: &str, state: &Mutex<State>) -> Vec<u8> {
    let state = state.lock().expect("no thread of the tracker has panicked");
    let mut asked: Vec<Vec<u8>> = pairs(query)
        .filter(|(name, _)| *name == "info_hash")
        .map(|(_, value)| unescape(value))
        .collect();
    asked.sort();
    asked.dedup();
    let mut body = b"d5:filesd".to_vec();
    for hash in asked {
        let known =
            <[u8; 20]>::try_from(hash.as_slice()).ok().and_then(|hash| state.peers.get(&hash));
        let Some(swarm) = known else { continue };
        let seeds = swarm.values().filter(|is_seed| **is_seed).count();
        body.extend(b"20:");
        body.extend(&hash);
        let rest = swarm.len() - seeds;
        body.extend(
            format!("d8:completei{seeds}e10:downloadedi{seeds}e10:incompletei{rest}ee")
                .into_bytes(),
        );
    }
    body.extend(b"ee");
    body
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}

/// Undoes `%XX`; a hash is mostly that.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|two| u8::from_str_radix(two, 16).ok());
        match hex.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}
