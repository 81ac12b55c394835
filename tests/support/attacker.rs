//! Hands for scripted attackers and an honest leech to measure them against: raw BitTorrent over TCP. It
//! shares no code with the engine.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// What is attacked.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The torrent's name on the wire.
    pub wire_id: [u8; 20],
    /// Length of a piece, in bytes.
    pub piece_len_bytes: u32,
    /// Pieces in all.
    pub piece_count: u32,
    /// Root of the only file's tree of hashes (BEP 52).
    pub pieces_root: [u8; 32],
    /// Leaves of that tree, rounded up to a power of two.
    pub leaf_count: u32,
}

/// A connection from an address of our choice in 127.0.0.0/8.
#[derive(Debug)]
pub struct Raw {
    /// The socket, with a read timeout of 20 ms.
    pub stream: TcpStream,
}

impl Raw {
    /// Connects from `from`; an error when nobody accepts.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(target: &Target, from: Ipv4Addr) -> std::io::Result<Raw> {
        let socket: OwnedFd = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0))?;
        rustix::net::connect(&socket, &target.addr)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        Ok(Raw { stream })
    }

    /// Like [`Raw::greet`] with a receive buffer of a few KiB, so that what is not read stays at the sender.
    ///
    /// # Errors
    /// What the system says.
    pub fn greet_deaf(target: &Target, from: Ipv4Addr, name: u32) -> std::io::Result<Raw> {
        let raw = Raw::greet(target, from, name)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&raw.stream, 4096)?;
        Ok(raw)
    }

    /// Connects and shakes hands, with the fast extension and BEP 10 announced.
    ///
    /// # Errors
    /// What the system says.
    pub fn greet(target: &Target, from: Ipv4Addr, name: u32) -> std::io::Result<Raw> {
        let mut raw = Raw::connect(target, from)?;
        raw.stream.write_all(&handshake(target, name))?;
        Ok(raw)
    }

    /// Sends as much of the bytes as is taken; false when the other side has ended the connection.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.push_some(bytes).is_some()
    }

    /// Like [`Raw::push`]: how many bytes were taken, or `None` when the other side has ended the connection.
    pub fn push_some(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return None,
                Ok(count) => rest = &rest[count..],
                Err(error) if is_wait(error.kind()) => break,
                Err(_) => return None,
            }
        }
        Some(bytes.len() - rest.len())
    }

    /// Reads and forgets what is there; false when the other side has ended the connection.
    pub fn drain(&mut self) -> bool {
        let mut buffer = [0; 65_536];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => is_wait(error.kind()),
        }
    }

    /// Whether the other side has ended the connection, without taking what it has sent.
    pub fn is_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut fds, Some(&at_once)).is_ok_and(|count| count > 0);
        ready && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    /// Waits until the other side ends the connection, reading all it sends: how long that took, or
    /// `None` when it did not within `limit`.
    pub fn wait_ended(&mut self, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if !self.drain() {
                return Some(start.elapsed());
            }
        }
        None
    }
}

fn is_wait(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The 68 bytes of BEP 3.
pub fn handshake(target: &Target, name: u32) -> Vec<u8> {
    let mut bytes = b"\x13BitTorrent protocol".to_vec();
    bytes.extend([0, 0, 0, 0, 0, 0x10, 0, 4]);
    bytes.extend(target.wire_id);
    bytes.extend(format!("-EV0001-{name:012}").into_bytes());
    bytes
}

/// A message with its length prefix.
pub fn message(id: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (1 + payload.len() as u32).to_be_bytes().to_vec();
    bytes.push(id);
    bytes.extend_from_slice(payload);
    bytes
}

/// `request`, `cancel` or `reject` of a block.
pub fn about_block(id: u8, piece: u32, begin: u32, len: u32) -> Vec<u8> {
    let numbers = [piece, begin, len].map(u32::to_be_bytes);
    message(id, numbers.as_flattened())
}

/// Connects and shakes hands honestly: a connection whose handshake has been answered.
///
/// # Errors
/// When the seed ends the connection instead, or answers something else.
pub fn greeted(target: &Target, from: Ipv4Addr, name: u32) -> std::io::Result<Raw> {
    let mut raw = Raw::greet(target, from, name)?;
    raw.stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = [0; 68];
    raw.stream.read_exact(&mut answer)?;
    if answer[..20] != *b"\x13BitTorrent protocol" {
        return Err(std::io::Error::other("no handshake"));
    }
    Ok(raw)
}

/// With which of so many blocks [`leech`] begins under a name.
pub fn first_block(name: u32, blocks: u32) -> u32 {
    name.wrapping_mul(977) % blocks
}

/// Leeches honestly for a stretch of time, 32 requests at a time: payload bytes that came.
///
/// # Errors
/// When the seed ends the connection, or sends what was not asked for.
pub fn leech(target: &Target, from: Ipv4Addr, name: u32, time: Duration) -> std::io::Result<u64> {
    let mut raw = Raw::greet(target, from, name)?;
    raw.stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let hello = [message(15, &[]), message(2, &[])].concat();
    raw.stream.write_all(&hello)?;
    let mut buffer = vec![0; 68];
    raw.stream.read_exact(&mut buffer)?;
    let blocks_per_piece = target.piece_len_bytes / 16_384;
    // The last piece may be short.
    let blocks = (target.piece_count - 1) * blocks_per_piece;
    let mut next = first_block(name, blocks);
    let (start, mut got, mut asked, mut is_unchoked) = (Instant::now(), 0, 0, false);
    while start.elapsed() < time {
        let mut out = Vec::new();
        while is_unchoked && asked < 32 {
            let (piece, block) = (next / blocks_per_piece, next % blocks_per_piece);
            out.extend(about_block(6, piece, block * 16_384, 16_384));
            next = (next + 1) % blocks;
            asked += 1;
        }
        raw.stream.write_all(&out)?;
        let mut length = [0; 4];
        raw.stream.read_exact(&mut length)?;
        buffer.resize(u32::from_be_bytes(length) as usize, 0);
        raw.stream.read_exact(&mut buffer)?;
        match buffer.first() {
            Some(1) => is_unchoked = true,
            Some(16) => return Err(std::io::Error::other("an honest request is refused")),
            Some(7) => {
                got += buffer.len() as u64 - 9;
                asked -= 1;
            }
            _ => {}
        }
    }
    Ok(got)
}
