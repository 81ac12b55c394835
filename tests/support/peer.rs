//! A BitTorrent peer made by hand: it speaks just enough of BEP 3 to serve a v1 view of some bytes, and
//! can be told to misbehave. It shares no code with the engine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the peer does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Nothing: it is an honest seed.
    None,
    /// Answers the handshake with another info hash.
    OtherInfoHash,
    /// Sends, before anything was asked for, a block nobody asked for.
    UnaskedBlock,
    /// Answers a request with a block past the piece's end.
    PastTheEnd,
    /// Announces a message of 4 GiB after the handshake.
    HugeMessage,
    /// Flips one bit in every block it sends.
    WrongBit,
    /// Flips one bit in every so many-th block it sends.
    WrongBitInOneOf(u32),
    /// Accepts and handshakes, then never says a word.
    Silent,
    /// Answers so many requests, and the others after [`ScriptedPeer::go_on`].
    PausesAfter(u32),
    /// Closes with a reset in the middle of the first block.
    ResetInTheMiddle,
    /// Sends a bitfield of the wrong length.
    WrongBitfield,
    /// Says `have` for a piece that does not exist.
    HaveOutOfRange,
}

/// What the peer serves.
#[derive(Clone, Debug)]
pub struct Served {
    /// 20-byte id in the handshake.
    pub wire_id: [u8; 20],
    /// The torrent space, pads included.
    pub bytes: Arc<Vec<u8>>,
    /// Length of a piece.
    pub piece_len_bytes: u32,
}

/// A listening peer; stops when dropped.
#[derive(Debug)]
pub struct ScriptedPeer {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicU32>,
    blocks: Arc<AtomicU32>,
    closed_by_other: Arc<AtomicU32>,
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedPeer {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When no port is to be had.
    pub fn start(served: Served, misbehaviour: Misbehaviour) -> ScriptedPeer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicU32::new(0));
        let blocks = Arc::new(AtomicU32::new(0));
        let closed_by_other = Arc::new(AtomicU32::new(0));
        let goes_on = Arc::new(AtomicBool::new(false));
        let state = (stop.clone(), connections.clone(), blocks.clone(), closed_by_other.clone());
        let may_go_on = goes_on.clone();
        let thread = std::thread::spawn(move || {
            let (stop, connections, blocks, closed) = state;
            let mut threads = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        connections.fetch_add(1, Ordering::Relaxed);
                        let (served, stop) = (served.clone(), stop.clone());
                        let (blocks, closed) = (blocks.clone(), closed.clone());
                        let goes_on = may_go_on.clone();
                        threads.push(std::thread::spawn(move || {
                            let mut talk =
                                Talk { stream, served, misbehaviour, stop, goes_on, blocks };
                            if talk.run().is_err() {
                                closed.fetch_add(1, Ordering::Relaxed);
                            }
                        }));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            for thread in threads {
                let _ = thread.join();
            }
        });
        let thread = Some(thread);
        ScriptedPeer { addr, stop, connections, blocks, closed_by_other, goes_on, thread }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections it has accepted.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Ends the pause of [`Misbehaviour::PausesAfter`].
    pub fn go_on(&self) {
        self.goes_on.store(true, Ordering::Relaxed);
    }

    /// Blocks it has sent.
    pub fn blocks_sent(&self) -> u32 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Connections that the other side has ended.
    pub fn closed_by_other(&self) -> u32 {
        self.closed_by_other.load(Ordering::Relaxed)
    }
}

impl Drop for ScriptedPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Talk {
    stream: TcpStream,
    served: Served,
    misbehaviour: Misbehaviour,
    stop: Arc<AtomicBool>,
    goes_on: Arc<AtomicBool>,
    blocks: Arc<AtomicU32>,
}

impl Talk {
    /// Talks until told to stop (`Ok`) or until the other side ends the connection (`Err`).
    fn run(&mut self) -> std::io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut handshake = [0; 68];
        if !self.read_exact(&mut handshake)? {
            return Ok(());
        }
        let mut id = self.served.wire_id;
        if self.misbehaviour == Misbehaviour::OtherInfoHash {
            id[0] ^= 1;
        }
        let mut answer = Vec::with_capacity(68);
        answer.push(19);
        answer.extend_from_slice(b"BitTorrent protocol");
        answer.extend_from_slice(&[0; 8]);
        answer.extend_from_slice(&id);
        let port = self.stream.local_addr()?.port();
        answer.extend_from_slice(format!("-XX0001-scripted{port:04x}").as_bytes());
        self.stream.write_all(&answer)?;
        if self.misbehaviour == Misbehaviour::HugeMessage {
            self.stream.write_all(&[0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0, 0])?;
        }
        if self.misbehaviour != Misbehaviour::Silent {
            self.send_bitfield()?;
            self.send(1, &[])?; // unchoke
            if self.misbehaviour == Misbehaviour::UnaskedBlock {
                self.send_block(0, 0, 16_384)?;
            }
        }
        loop {
            let mut length = [0; 4];
            if !self.read_exact(&mut length)? {
                return Ok(());
            }
            let length = u32::from_be_bytes(length) as usize;
            if length == 0 {
                continue;
            }
            let mut message = vec![0; length];
            if !self.read_exact(&mut message)? {
                return Ok(());
            }
            if message[0] == 6 && message.len() == 13 && self.misbehaviour != Misbehaviour::Silent {
                let number = |at: usize| {
                    u32::from_be_bytes([
                        message[at],
                        message[at + 1],
                        message[at + 2],
                        message[at + 3],
                    ])
                };
                self.pause();
                self.send_block(number(1), number(5), number(9))?;
            }
        }
    }

    fn pause(&self) {
        let Misbehaviour::PausesAfter(blocks) = self.misbehaviour else { return };
        let is_due = || self.blocks.load(Ordering::Relaxed) >= blocks;
        let is_over = || self.goes_on.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed);
        while is_due() && !is_over() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn piece_count(&self) -> u32 {
        (self.served.bytes.len() as u64).div_ceil(u64::from(self.served.piece_len_bytes)) as u32
    }

    fn send_bitfield(&mut self) -> std::io::Result<()> {
        let count = self.piece_count();
        let mut bits = vec![0; count.div_ceil(8) as usize];
        for piece in 0..count {
            bits[piece as usize / 8] |= 0x80 >> (piece % 8);
        }
        if self.misbehaviour == Misbehaviour::WrongBitfield {
            bits.push(0);
        }
        self.send(5, &bits)?;
        if self.misbehaviour == Misbehaviour::HaveOutOfRange {
            self.send(4, &count.to_be_bytes())?;
        }
        Ok(())
    }

    fn send_block(&mut self, piece: u32, begin: u32, len: u32) -> std::io::Result<()> {
        let start = u64::from(piece) * u64::from(self.served.piece_len_bytes) + u64::from(begin);
        let end = (start + u64::from(len)).min(self.served.bytes.len() as u64);
        let mut block = self.served.bytes[start as usize..end as usize].to_vec();
        let mut begin = begin;
        match self.misbehaviour {
            Misbehaviour::WrongBit => block[0] ^= 0x10,
            Misbehaviour::WrongBitInOneOf(blocks) => {
                block[0] ^=
                    u8::from(self.blocks.load(Ordering::Relaxed).is_multiple_of(blocks)) << 4;
            }
            Misbehaviour::PastTheEnd => begin = self.served.piece_len_bytes,
            Misbehaviour::ResetInTheMiddle => {
                let mut head = (9 + block.len() as u32).to_be_bytes().to_vec();
                head.push(7);
                head.extend_from_slice(&piece.to_be_bytes());
                head.extend_from_slice(&begin.to_be_bytes());
                head.extend_from_slice(&block[..block.len() / 2]);
                self.stream.write_all(&head)?;
                // Unread bytes in our receive buffer or not: zero linger makes it a reset.
                rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?;
                let _ = self.stream.shutdown(std::net::Shutdown::Read);
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            _ => {}
        }
        let mut payload = piece.to_be_bytes().to_vec();
        payload.extend_from_slice(&begin.to_be_bytes());
        payload.extend_from_slice(&block);
        self.send(7, &payload)?;
        self.blocks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn send(&mut self, id: u8, payload: &[u8]) -> std::io::Result<()> {
        let mut message = (1 + payload.len() as u32).to_be_bytes().to_vec();
        message.push(id);
        message.extend_from_slice(payload);
        self.stream.write_all(&message)
    }

    /// Fills `buffer`; `false` when told to stop.
    fn read_exact(&mut self, buffer: &mut [u8]) -> std::io::Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::TimedOut
                            | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
