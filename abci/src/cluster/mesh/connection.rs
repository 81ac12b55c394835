//! One connection: the handshake, and the two threads that read and write.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ringseed_ledger::{SigningKey, Tx, TxBody};

use super::{Mesh, MeshEvent, Peer, QUEUE_FRAMES_MAX, STRANGERS_MAX};
use crate::cluster::certificate::{sign, verify_strict};
use crate::cluster::frame::{
    FRAME_LEN_BYTES_MAX, FRAME_LEN_BYTES_MAX_UNKNOWN, Frame, FrameError, Hello, auth_bytes,
};

/// A handshake takes two small messages each way.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long without anything to say, we say that we live.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A peer that said nothing for three of its pings is gone.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// A peer that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames written with one system call, at most about this many bytes.
const WRITE_STEP_LEN_BYTES: usize = 64 << 10;
/// Transactions that a key unknown to the ledger may send on one connection: its registration, and
/// again after a lost block.
const STRANGER_TXS_MAX: u32 = 4;
/// Questions that such a key gets answered per second on one connection; it waits for more. Blocks
/// come up to 256 at a time, so catching up is not slowed down by it.
const STRANGER_ANSWERS_PER_SECOND: u32 = 32;

/// What waits to be written to a peer.
type Queued = Receiver<Arc<[u8]>>;

/// Proves both keys to each other on a fresh connection. `ours.nonce` must be fresh.
///
/// # Errors
/// [`FrameError::Io`] with [`io::ErrorKind::PermissionDenied`] when the peer proves nothing, or is
/// of another market, or is ourselves; otherwise see [`FrameError`].
pub(crate) fn handshake(
    stream: &TcpStream,
    key: &SigningKey,
    ours: Hello,
    is_dialler: bool,
) -> Result<Hello, FrameError> {
    let refuse = |why: &str| FrameError::Io(io::Error::new(io::ErrorKind::PermissionDenied, why));
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut io = stream;
    io.write_all(&ours.to_bytes())?;
    let theirs = Hello::read_from(&mut io)?;
    if theirs.genesis_hash != ours.genesis_hash {
        return Err(refuse("the peer is of another market"));
    }
    if theirs.key == ours.key {
        return Err(refuse("the peer has our own key"));
    }
    let (dialler, acceptor) = if is_dialler { (&ours, &theirs) } else { (&theirs, &ours) };
    io.write_all(&sign(key, &auth_bytes(dialler, acceptor, is_dialler)))?;
    let mut signature = [0; 64];
    io::Read::read_exact(&mut io, &mut signature)?;
    if !verify_strict(&theirs.key, &auth_bytes(dialler, acceptor, !is_dialler), &signature) {
        return Err(refuse("the peer did not prove its key"));
    }
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    Ok(theirs)
}

impl Mesh {
    /// Registers a greeted connection and reads it to its end, on the calling thread.
    pub(super) fn run(&self, stream: TcpStream, addr: SocketAddr, hello: &Hello, outbound: bool) {
        let Some((peer, queued)) = self.register(stream, addr, hello, outbound) else { return };
        let writer = Arc::clone(&peer);
        let this = self.clone();
        self.spawn("mesh-write", move || {
            if let Err(error) = write_all(&writer, &queued, &this) {
                tracing::debug!(peer = %writer.addr, %error, "writing ended");
            }
            writer.close();
        });
        let _leave = Leave { mesh: self, peer: &peer };
        if self.0.serve.deliver(MeshEvent::Up { peer: peer.id, key: peer.key }) {
            match self.read_all(&peer) {
                Ok(()) => {}
                Err(FrameError::Io(error)) => {
                    tracing::debug!(peer = %peer.addr, %error, "connection ended");
                }
                Err(error) => tracing::warn!(peer = %peer.addr, %error, "bad bytes from a peer"),
            }
        }
    }

    /// Enters a peer into the table, unless another connection to it is the one to keep.
    ///
    /// Two nodes may dial each other at once. Both then keep the connection that the lesser key
    /// dialled. A second connection of the same dialler means that it has lost the first.
    fn register(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        hello: &Hello,
        outbound: bool,
    ) -> Option<(Arc<Peer>, Queued)> {
        let own = self.0.key.public().0;
        let dialler_key = if outbound { own } else { hello.key };
        // The port of an inbound connection is of no use to anybody; its own word is.
        let addr = if outbound { addr } else { hello.advertise.unwrap_or(addr) };
        let mut peers = self.0.peers.lock().expect("no panic under this lock");
        if self.is_stopping() {
            return None;
        }
        if let Some(old) = peers.values().find(|peer| peer.key == hello.key).cloned() {
            if old.dialler_key < dialler_key {
                return None;
            }
            old.close();
            peers.remove(&old.id);
        }
        let is_stranger = |key: &[u8; 32]| !self.is_member(key);
        if !outbound && is_stranger(&hello.key) {
            let strangers = peers.values().filter(|p| !p.outbound && is_stranger(&p.key)).count();
            if strangers >= STRANGERS_MAX {
                return None;
            }
        }
        let (queue, queued) = sync_channel(QUEUE_FRAMES_MAX);
        let peer = Arc::new(Peer {
            id: self.0.next_id.fetch_add(1, Ordering::Relaxed),
            key: hello.key,
            addr,
            dialler_key,
            outbound,
            stream,
            queue,
            queued_len_bytes: AtomicUsize::new(0),
            height: AtomicU64::new(0),
            awaits_blocks: AtomicBool::new(false),
        });
        peers.insert(peer.id, Arc::clone(&peer));
        Some((peer, queued))
    }

    fn read_all(&self, peer: &Peer) -> Result<(), FrameError> {
        let mut input = BufReader::with_capacity(16 << 10, &peer.stream);
        let mut stranger_txs = 0;
        let mut answers = (Instant::now(), 0);
        while !self.is_stopping() {
            let is_member = self.is_member(&peer.key);
            // Who we dialled as a newcomer sends us blocks before our replay knows it.
            let trusted_len = is_member || peer.outbound;
            let cap = if trusted_len { FRAME_LEN_BYTES_MAX } else { FRAME_LEN_BYTES_MAX_UNKNOWN };
            let frame = Frame::read_from(&mut input, cap)?;
            if let Some(answer) = self.0.serve.answer(&frame) {
                if !is_member {
                    hold_back(&mut answers);
                }
                peer.enqueue(answer.to_bytes().into());
                continue;
            }
            let wanted = match &frame {
                Frame::Status { .. } => true,
                Frame::Tx(_) if is_member => true,
                Frame::Tx(tx) => {
                    stranger_txs += 1;
                    stranger_txs <= STRANGER_TXS_MAX
                        && is_registration_of(tx, &peer.key)
                        && self.0.registrations.lock().expect("no panic here").take(Instant::now())
                }
                Frame::Consensus(_) | Frame::Body { .. } | Frame::Wake { .. } => {
                    self.is_validator(&peer.key)
                }
                Frame::Blocks { .. } => peer.awaits_blocks.swap(false, Ordering::Relaxed),
                _ => false,
            };
            let event = MeshEvent::Frame { peer: peer.id, key: peer.key, frame };
            if wanted && !self.0.serve.deliver(event) {
                break;
            }
        }
        Ok(())
    }
}

/// Takes a peer out of the table when its reader ends, however it ends.
struct Leave<'a> {
    mesh: &'a Mesh,
    peer: &'a Peer,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.peer.close();
        if let Ok(mut peers) = self.mesh.0.peers.lock() {
            peers.remove(&self.peer.id);
        }
        self.mesh.0.serve.deliver(MeshEvent::Down { peer: self.peer.id });
        self.mesh.wake_dialler();
    }
}

/// Waits until a stranger's next second when it has had its answers of this one.
fn hold_back((since, count): &mut (Instant, u32)) {
    *count += 1;
    if *count >= STRANGER_ANSWERS_PER_SECOND {
        std::thread::sleep(Duration::from_secs(1).saturating_sub(since.elapsed()));
        (*since, *count) = (Instant::now(), 0);
    }
}

/// Registrations from strangers over all connections: reconnecting gives nobody a new budget.
#[derive(Debug)]
pub(super) struct Registrations {
    left: u32,
    refilled: Instant,
}

impl Registrations {
    const BURST: u32 = 32;
    const REFILL_INTERVAL: Duration = Duration::from_millis(500);

    pub(super) fn new(now: Instant) -> Self {
        Self { left: Self::BURST, refilled: now }
    }

    /// Whether one more may pass now.
    fn take(&mut self, now: Instant) -> bool {
        let due = now.duration_since(self.refilled).as_millis() / Self::REFILL_INTERVAL.as_millis();
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(Self::BURST);
            self.left = self.left.saturating_add(due).min(Self::BURST);
            self.refilled = now;
        }
        let passes = self.left > 0;
        self.left = self.left.saturating_sub(1);
        passes
    }
}

fn is_registration_of(tx: &[u8], key: &[u8; 32]) -> bool {
    Tx::decode(tx).is_ok_and(|tx| tx.signer.0 == *key && matches!(tx.body, TxBody::Register(_)))
}

fn write_all(peer: &Peer, queued: &Queued, mesh: &Mesh) -> io::Result<()> {
    let mut stream = &peer.stream;
    let ping = Frame::Ping.to_bytes();
    let mut step = Vec::new();
    while !mesh.is_stopping() {
        match queued.recv_timeout(PING_INTERVAL) {
            // What `Peer::close` leaves behind.
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) if bytes.len() >= WRITE_STEP_LEN_BYTES => {
                stream.write_all(&bytes)?;
                peer.queued_len_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            }
            Ok(bytes) => {
                step.clear();
                step.extend_from_slice(&bytes);
                while step.len() < WRITE_STEP_LEN_BYTES
                    && let Ok(more) = queued.try_recv()
                {
                    if more.is_empty() {
                        return stream.write_all(&step);
                    }
                    step.extend_from_slice(&more);
                }
                stream.write_all(&step)?;
                peer.queued_len_bytes.fetch_sub(step.len(), Ordering::Relaxed);
            }
            Err(RecvTimeoutError::Timeout) => {
                stream.write_all(&ping)?;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_have_a_burst_and_a_rate() {
        let start = Instant::now();
        let mut budget = Registrations::new(start);
        assert_eq!((0..100).filter(|_| budget.take(start)).count(), 32);
        let later = start + 3 * Registrations::REFILL_INTERVAL;
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), 3);
        let much_later = later + Duration::from_secs(86_400);
        assert_eq!((0..100).filter(|_| budget.take(much_later)).count(), 32);
    }
}
