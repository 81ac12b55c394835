//! A small UDP tracker on loopback (BEP 15) that remembers every announce. It shares no code with the engine.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// The id that every client is given; an announce with another one is refused.
const CONNECTION: u64 = 0x1122_3344_5566_7788;

/// One announce as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpAnnounce {
    /// Torrent, SHA-1 or truncated SHA-256.
    pub info_hash: [u8; 20],
    /// Where it says it listens; the address is that of the packet.
    pub addr: SocketAddr,
    /// Bytes it says it lacks.
    pub left: u64,
    /// 0 nothing, 1 completed, 2 started, 3 stopped.
    pub event: u32,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<[u8; 20], BTreeMap<SocketAddr, bool>>,
    announces: Vec<UdpAnnounce>,
}

/// A running tracker; stops when dropped.
#[derive(Debug)]
pub struct UdpTracker {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl UdpTracker {
    /// Listens on a free port of `ip`.
    ///
    /// # Panics
    /// When no port is to be had.
    pub fn start(ip: IpAddr) -> UdpTracker {
        let socket = UdpSocket::bind((ip, 0)).expect("a port for the tracker");
        let addr = socket.local_addr().expect("bound");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let (stop, state) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<State>>::default());
        let (stopped, shared) = (stop.clone(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut packet) else { continue };
                let mut state = shared.lock().expect("nobody has panicked");
                if let Some(answer) = answer(&packet[..len], from, &mut state) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        UdpTracker { addr, stop, state, thread: Some(thread) }
    }

    /// What stands in a torrent's `announce`.
    pub fn url(&self) -> String {
        format!("udp://{}/announce", self.addr)
    }

    /// Every announce so far, oldest first.
    pub fn announces(&self) -> Vec<UdpAnnounce> {
        self.state().announces.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the tracker has panicked")
    }
}

impl Drop for UdpTracker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(packet: &[u8], from: SocketAddr, state: &mut State) -> Option<Vec<u8>> {
    let u32_at = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_be_bytes(packet.get(at..at + 8)?.try_into().ok()?));
    let (connection, action, transaction) = (u64_at(0)?, u32_at(8)?, u32_at(12)?);
    let answer = |action: u32, rest: &[u8]| {
        Some([&action.to_be_bytes()[..], &transaction.to_be_bytes(), rest].concat())
    };
    if action == 0 && connection == 0x0417_2710_1980 {
        return answer(0, &CONNECTION.to_be_bytes());
    }
    if connection != CONNECTION {
        return answer(3, b"connect first");
    }
    let info_hash: [u8; 20] = packet.get(16..36)?.try_into().ok()?;
    let peers = state.peers.entry(info_hash).or_default();
    if action == 1 {
        let port = u16::from_be_bytes(packet.get(96..98)?.try_into().ok()?);
        let (addr, left, event) = (SocketAddr::new(from.ip(), port), u64_at(64)?, u32_at(80)?);
        if event == 3 {
            peers.remove(&addr);
        } else {
            peers.insert(addr, left == 0);
        }
        state.announces.push(UdpAnnounce { info_hash, addr, left, event });
        let peers = &state.peers[&info_hash];
        let seeds = peers.values().filter(|is_seed| **is_seed).count() as u32;
        let mut rest = 1800_u32.to_be_bytes().to_vec();
        rest.extend((peers.len() as u32 - seeds).to_be_bytes());
        rest.extend(seeds.to_be_bytes());
        for peer in peers.keys().filter(|peer| **peer != addr) {
            match peer.ip() {
                IpAddr::V4(ip) => rest.extend(ip.octets()),
                IpAddr::V6(ip) => rest.extend(ip.octets()),
            }
            rest.extend(peer.port().to_be_bytes());
        }
        return answer(1, &rest);
    }
    let seeds = peers.values().filter(|is_seed| **is_seed).count() as u32;
    let counts = [seeds, 0, peers.len() as u32 - seeds];
    answer(2, &counts.map(u32::to_be_bytes).concat())
}
