//! The mesh: authenticated TCP connections between nodes, and nothing about blocks.
//!
//! One listener, one dialler, two threads per connection that sleep in the kernel. Every queue is
//! bounded: what a slow peer does not take is dropped (consensus says it again), and what we cannot
//! take yet makes the peer wait through TCP.
//!
//! Who a peer is, is proven by its key; what it may say, is decided by the ledger. Keys that the
//! ledger does not know may read genesis, blocks and members and send one registration.

mod connection;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringseed_ledger::SigningKey;

use super::frame::{Frame, Hello};
use crate::handle::PeerStatus;

pub(super) use self::connection::handshake;

/// Inbound connections of unknown keys at one time, and handshakes at one time.
const STRANGERS_MAX: usize = 32;
/// First wait after a failed dial; doubled up to the last.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Frames that may wait for a peer.
const QUEUE_FRAMES_MAX: usize = 1_024;
/// Bytes that may wait for a peer.
const QUEUE_LEN_BYTES_MAX: usize = 8 << 20;

/// A connection of this process; numbers are not used again.
pub type PeerId = u64;

/// Whom the ledger knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Admitted members and where they speak consensus.
    pub members: BTreeMap<[u8; 32], SocketAddr>,
    /// Keys with power at the next heights.
    pub validators: BTreeSet<[u8; 32]>,
}

/// What the mesh tells the consensus thread.
#[derive(Debug)]
pub enum MeshEvent {
    /// A peer proved its key.
    Up {
        /// The connection.
        peer: PeerId,
        /// The proven key.
        key: [u8; 32],
    },
    /// A connection ended.
    Down {
        /// The connection.
        peer: PeerId,
    },
    /// A peer that may say so said something.
    Frame {
        /// The connection.
        peer: PeerId,
        /// The proven key.
        key: [u8; 32],
        /// What it said.
        frame: Frame,
    },
}

/// What the mesh may answer by itself, on the threads of the connections.
pub trait Serve: Send + Sync {
    /// The answer to a question, `None` when the frame is none.
    fn answer(&self, question: &Frame) -> Option<Frame>;
    /// Takes an event in; waits while the consensus thread is behind. `false` when it has ended.
    fn deliver(&self, event: MeshEvent) -> bool;
}

/// How the mesh starts.
pub struct MeshConfig {
    /// The node key.
    pub key: SigningKey,
    /// The market.
    pub genesis_hash: [u8; 32],
    /// The bound listener, if we listen.
    pub listener: Option<TcpListener>,
    /// The address we tell peers.
    pub advertise: Option<SocketAddr>,
    /// Addresses to dial while no member is connected.
    pub first: Vec<SocketAddr>,
    /// Whom the ledger knows.
    pub roster: Roster,
}

/// The running mesh; cheap to clone.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

struct Inner {
    key: SigningKey,
    genesis_hash: [u8; 32],
    advertise: Option<SocketAddr>,
    first: Vec<SocketAddr>,
    local_addr: Option<SocketAddr>,
    roster: RwLock<Roster>,
    peers: Mutex<BTreeMap<PeerId, Arc<Peer>>>,
    next_id: AtomicU64,
    handshakes: AtomicUsize,
    registrations: Mutex<connection::Registrations>,
    stopping: AtomicBool,
    serve: Arc<dyn Serve>,
    /// Set when the dialler has something to look at.
    dial: (Mutex<bool>, Condvar),
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// One authenticated connection.
struct Peer {
    id: PeerId,
    key: [u8; 32],
    addr: SocketAddr,
    dialler_key: [u8; 32],
    outbound: bool,
    stream: TcpStream,
    queue: SyncSender<Arc<[u8]>>,
    queued_len_bytes: AtomicUsize,
    height: AtomicU64,
    /// We asked for blocks and have no answer yet: others are not read.
    awaits_blocks: AtomicBool,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("local_addr", &self.0.local_addr).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Starts to listen and to dial.
    pub fn start(config: MeshConfig, serve: Arc<dyn Serve>) -> Self {
        let local_addr = config.listener.as_ref().and_then(|l| l.local_addr().ok());
        let mesh = Self(Arc::new(Inner {
            key: config.key,
            genesis_hash: config.genesis_hash,
            advertise: config.advertise.or(local_addr),
            first: config.first,
            local_addr,
            roster: RwLock::new(config.roster),
            peers: Mutex::default(),
            next_id: AtomicU64::new(1),
            handshakes: AtomicUsize::new(0),
            registrations: Mutex::new(connection::Registrations::new(Instant::now())),
            stopping: AtomicBool::new(false),
            serve,
            dial: (Mutex::new(true), Condvar::new()),
            threads: Mutex::default(),
        }));
        if let Some(listener) = config.listener {
            let this = mesh.clone();
            mesh.spawn("mesh-listen", move || this.listen(&listener));
        }
        let this = mesh.clone();
        mesh.spawn("mesh-dial", move || this.dial_all());
        mesh
    }

    /// Where peers reach us.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.local_addr
    }

    /// Takes over whom the ledger knows now, and dials those who are new.
    pub fn set_roster(&self, roster: Roster) {
        let mut current = self.0.roster.write().expect("no panic under this lock");
        if *current != roster {
            *current = roster;
            drop(current);
            self.wake_dialler();
        }
    }

    /// Sends to every peer for which `wanted` says so.
    pub fn broadcast(&self, frame: &Frame, wanted: impl Fn(&PeerStatus) -> bool) {
        let mut bytes: Option<Arc<[u8]>> = None;
        for peer in self.peers() {
            if wanted(&self.status_of(&peer)) {
                let bytes = bytes.get_or_insert_with(|| frame.to_bytes().into());
                peer.enqueue(Arc::clone(bytes));
            }
        }
    }

    /// Sends to one peer; `false` when it is gone or does not take what waits for it.
    pub fn send(&self, peer: PeerId, frame: &Frame) -> bool {
        let peer = self.0.peers.lock().expect("no panic under this lock").get(&peer).cloned();
        let Some(peer) = peer else { return false };
        if matches!(frame, Frame::GetBlocks { .. }) {
            peer.awaits_blocks.store(true, Ordering::Relaxed);
        }
        peer.enqueue(frame.to_bytes().into())
    }

    /// Ends a connection whose peer broke the rules.
    pub fn drop_peer(&self, peer: PeerId, why: &str) {
        let peer = self.0.peers.lock().expect("no panic under this lock").get(&peer).cloned();
        if let Some(peer) = peer {
            tracing::warn!(peer = %peer.addr, why, "connection closed");
            peer.close();
        }
    }

    /// Remembers for the status what height a peer reported.
    pub fn note_height(&self, peer: PeerId, height: u64) {
        if let Some(peer) = self.0.peers.lock().expect("no panic under this lock").get(&peer) {
            peer.height.store(height, Ordering::Relaxed);
        }
    }

    /// The authenticated peers.
    pub fn statuses(&self) -> Vec<PeerStatus> {
        self.peers().iter().map(|peer| self.status_of(peer)).collect()
    }

    /// Whether `key` has power at the next heights.
    pub fn is_validator(&self, key: &[u8; 32]) -> bool {
        self.0.roster.read().expect("no panic under this lock").validators.contains(key)
    }

    /// Ends all connections and waits for the threads.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.wake_dialler();
        if let Some(addr) = self.0.local_addr {
            // Wakes the listener out of accept(2); it then sees the flag.
            let mut addr = addr;
            if addr.ip().is_unspecified() {
                addr.set_ip(match addr {
                    SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                });
            }
            let _ = TcpStream::connect_timeout(&addr, Duration::from_secs(1));
        }
        for peer in self.peers() {
            peer.close();
        }
        let threads = std::mem::take(&mut *self.0.threads.lock().expect("no panic here"));
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn peers(&self) -> Vec<Arc<Peer>> {
        self.0.peers.lock().expect("no panic under this lock").values().cloned().collect()
    }

    fn status_of(&self, peer: &Peer) -> PeerStatus {
        let roster = self.0.roster.read().expect("no panic under this lock");
        PeerStatus {
            key: peer.key,
            addr: peer.addr,
            height: peer.height.load(Ordering::Relaxed),
            is_member: roster.members.contains_key(&peer.key),
            outbound: peer.outbound,
        }
    }

    fn is_member(&self, key: &[u8; 32]) -> bool {
        self.0.roster.read().expect("no panic under this lock").members.contains_key(key)
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(512 << 10);
        match thread.spawn(work) {
            Ok(thread) => {
                let mut threads = self.0.threads.lock().expect("no panic under this lock");
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(error) => tracing::warn!(%error, name, "no thread for a connection"),
        }
    }

    fn listen(&self, listener: &TcpListener) {
        while !self.is_stopping() {
            let (stream, addr) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to be closed.
                    tracing::warn!(%error, "accepting a connection failed");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if self.is_stopping() || self.0.handshakes.load(Ordering::Relaxed) >= STRANGERS_MAX {
                continue;
            }
            self.0.handshakes.fetch_add(1, Ordering::Relaxed);
            let this = self.clone();
            self.spawn("mesh-in", move || {
                let result = this.greet(&stream, None);
                this.0.handshakes.fetch_sub(1, Ordering::Relaxed);
                match result {
                    Ok(hello) => this.run(stream, addr, &hello, false),
                    Err(error) => tracing::debug!(%addr, %error, "no handshake"),
                }
            });
        }
    }

    /// Keeps a connection to every member, and to a first contact while there is none.
    fn dial_all(&self) {
        let (tell, told) = sync_channel::<(SocketAddr, bool)>(64);
        let mut waits: BTreeMap<SocketAddr, (Instant, Duration)> = BTreeMap::new();
        let mut dialling = BTreeSet::new();
        while !self.is_stopping() {
            self.take_dialled(&told, &mut waits, &mut dialling);
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            for addr in self.wanted() {
                let (at, _) = *waits.entry(addr).or_insert((now, RETRY_DELAY_MIN));
                if dialling.contains(&addr) {
                    continue;
                }
                if at > now {
                    next = Some(next.map_or(at, |next| next.min(at)));
                    continue;
                }
                dialling.insert(addr);
                let (this, tell) = (self.clone(), tell.clone());
                self.spawn("mesh-out", move || this.dial(addr, &tell));
            }
            let (lock, woken) = &self.0.dial;
            let guard = lock.lock().expect("no panic under this lock");
            let wait = next.map_or(Duration::from_secs(3_600), |next| next - now);
            let (mut guard, _) = woken
                .wait_timeout_while(guard, wait, |due| !*due)
                .expect("no panic under this lock");
            *guard = false;
        }
    }

    fn take_dialled(
        &self,
        told: &Receiver<(SocketAddr, bool)>,
        waits: &mut BTreeMap<SocketAddr, (Instant, Duration)>,
        dialling: &mut BTreeSet<SocketAddr>,
    ) {
        while let Ok((addr, connected)) = told.try_recv() {
            dialling.remove(&addr);
            let (_, delay) = waits.get(&addr).copied().unwrap_or((Instant::now(), RETRY_DELAY_MIN));
            let next = if connected { RETRY_DELAY_MIN } else { (delay * 2).min(RETRY_DELAY_MAX) };
            let wait = if connected { RETRY_DELAY_MIN } else { delay };
            waits.insert(addr, (Instant::now() + wait, next));
        }
    }

    fn wanted(&self) -> Vec<SocketAddr> {
        let peers = self.peers();
        let connected: BTreeSet<_> = peers.iter().map(|peer| peer.key).collect();
        let own = self.0.key.public().0;
        let roster = self.0.roster.read().expect("no panic under this lock");
        let missing =
            roster.members.iter().filter(|(key, _)| **key != own && !connected.contains(*key));
        let mut wanted: Vec<_> = missing.map(|(_, addr)| *addr).collect();
        // A first contact need not be on the ledger that we have replayed so far.
        let known: BTreeSet<_> = roster.members.values().collect();
        let dialled: BTreeSet<_> = peers.iter().map(|peer| peer.addr).collect();
        let strangers = self.0.first.iter().filter(|a| !known.contains(a) && !dialled.contains(a));
        wanted.extend(strangers.filter(|addr| Some(**addr) != self.0.local_addr));
        wanted
    }

    fn dial(&self, addr: SocketAddr, tell: &SyncSender<(SocketAddr, bool)>) {
        let done = |connected| {
            let _ = tell.try_send((addr, connected));
            self.wake_dialler();
        };
        let connected = TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT);
        let greeted = connected.map_err(Into::into).and_then(|stream| {
            let hello = self.greet(&stream, Some(addr))?;
            Ok::<_, super::frame::FrameError>((stream, hello))
        });
        match greeted {
            Ok((stream, hello)) => {
                self.run(stream, addr, &hello, true);
                done(true);
            }
            Err(error) => {
                tracing::debug!(%addr, %error, "dialling failed");
                done(false);
            }
        }
    }

    fn greet(
        &self,
        stream: &TcpStream,
        dialled: Option<SocketAddr>,
    ) -> Result<Hello, super::frame::FrameError> {
        let ours = Hello {
            genesis_hash: self.0.genesis_hash,
            key: self.0.key.public().0,
            nonce: fresh_nonce()?,
            advertise: self.0.advertise,
        };
        handshake(stream, &self.0.key, ours, dialled.is_some())
    }

    fn wake_dialler(&self) {
        let (lock, woken) = &self.0.dial;
        *lock.lock().expect("no panic under this lock") = true;
        woken.notify_all();
    }
}

impl Peer {
    /// Ends the connection and wakes both of its threads.
    fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        // A full queue needs no waking: its writer is writing, and fails now.
        let _ = self.queue.try_send(Arc::from([]));
    }

    fn enqueue(&self, bytes: Arc<[u8]>) -> bool {
        let len = bytes.len();
        let queued = self.queued_len_bytes.fetch_add(len, Ordering::Relaxed);
        if queued + len <= QUEUE_LEN_BYTES_MAX && self.queue.try_send(bytes).is_ok() {
            return true;
        }
        self.queued_len_bytes.fetch_sub(len, Ordering::Relaxed);
        tracing::debug!(peer = %self.addr, "a frame was dropped: the peer takes too little");
        false
    }
}

/// Random bytes of the operating system.
pub(super) fn fresh_nonce() -> std::io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}
