//! Connections of our own to whatever serves: a probe with one request in flight, a peer that fetches as
//! fast as it can and keeps nothing, peers that do nothing, and slow ones. All speak BEP 3 and no more,
//! by the codec of `ringseed_core::wire`.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::geometry::Geometry;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::wire::handshake::{HANDSHAKE_LEN, Handshake, PeerId, Reserved, WireId};
use ringseed_core::wire::message::{Frame, FrameLimits, Message, RawBlock, frame};
use rustix::net::{AddressFamily, SocketType};

use super::child::is_interrupted;

/// Nobody is silent for so long who serves.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Length of a block, bytes (BEP 3).
const BLOCK_LEN: u32 = 16 << 10;
/// What is read at a time: four blocks and their headers stay in the second-level cache.
const READ_STEP: usize = 128 << 10;

/// Something that the other side sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Choke,
    Unchoke,
    /// A block, whose payload is thrown away.
    Block(RawBlock),
    Request(RawBlock),
    Have(u32),
    Other,
}

/// A connection after both handshakes.
pub struct Wire {
    stream: TcpStream,
    buf: Vec<u8>,
    /// What of `buf` is unread.
    at: usize,
    end: usize,
    /// Payload bytes of a block that are still to come.
    skip: usize,
}

impl Wire {
    /// Dials from `from`, or from the address dialled where that is not loopback, and shakes hands for a
    /// torrent. `number` makes the peer id.
    ///
    /// # Errors
    /// Those of the socket; `InvalidData` when the other side speaks something else.
    pub fn dial(
        addr: SocketAddr,
        from: Ipv4Addr,
        torrent: &Metainfo,
        number: u32,
    ) -> io::Result<Wire> {
        Wire::dial_with(addr, from, torrent, number, None)
    }

    /// The same with a receive buffer of so many bytes, so that the other side notices how slowly it is read.
    ///
    /// # Errors
    /// Those of [`Wire::dial`].
    pub fn dial_with(
        addr: SocketAddr,
        from: Ipv4Addr,
        torrent: &Metainfo,
        number: u32,
        receive_bytes: Option<usize>,
    ) -> io::Result<Wire> {
        let from = match addr.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => ip,
            _ => from,
        };
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        if let Some(bytes) = receive_bytes {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
        }
        rustix::net::bind(&socket, &SocketAddrV4::new(from, 0))?;
        rustix::net::connect(&socket, &addr)?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let wire_id = torrent.info().wire_ids().next().expect("a torrent has a hash");
        let mut peer_id = *b"-XB0100-............";
        peer_id[8..].copy_from_slice(format!("{number:012}").as_bytes());
        let ours = Handshake {
            reserved: Reserved::default(),
            wire_id: WireId(wire_id),
            peer_id: PeerId(peer_id),
        };
        stream.write_all(&ours.encode())?;
        let mut theirs = [0; HANDSHAKE_LEN];
        stream.read_exact(&mut theirs)?;
        let theirs = Handshake::decode(&theirs).map_err(|_| io::ErrorKind::InvalidData)?;
        if theirs.wire_id.0 != wire_id {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Wire { stream, buf: vec![0; READ_STEP], at: 0, end: 0, skip: 0 })
    }

    /// Gives the buffer back: for one of thousands that will only wait.
    pub fn shrink(&mut self) {
        self.buf = Vec::new();
    }

    /// Whether the other side has not hung up; what it sent stays unread.
    pub fn is_open(&self) -> bool {
        let mut byte = [0];
        let peeked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut byte));
        match peeked {
            Ok(count) => count > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Sends messages in one call.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&mut self, messages: &[Message<'_>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        self.stream.write_all(&bytes)
    }

    /// How long [`Wire::next`] waits at most.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))
    }

    /// The next message. A block is reported when all of it has come.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` when nothing came in time; `InvalidData` for what is no message.
    pub fn next(&mut self) -> io::Result<Came> {
        let limits = FrameLimits { bitfield_len: None, hashes_max: 0 };
        loop {
            let found = frame(&self.buf[self.at..self.end], limits);
            match found.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Frame::Complete(len) => {
                    let bytes = &self.buf[self.at..self.at + len];
                    let message = Message::decode(bytes, limits)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    let came = match message {
                        Message::Choke => Came::Choke,
                        Message::Unchoke => Came::Unchoke,
                        Message::Request(block) => Came::Request(block),
                        Message::Have(piece) => Came::Have(piece),
                        _ => Came::Other,
                    };
                    self.at += len;
                    return Ok(came);
                }
                Frame::PieceHeader(block) => {
                    self.skip = 13 + block.len as usize;
                    while self.skip > 0 {
                        let here = self.skip.min(self.end - self.at);
                        self.at += here;
                        self.skip -= here;
                        if self.skip > 0 {
                            self.fill()?;
                        }
                    }
                    return Ok(Came::Block(block));
                }
                Frame::NeedsBytes(_) => self.fill()?,
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buf.copy_within(self.at..self.end, 0);
        (self.at, self.end) = (0, self.end - self.at);
        if self.end == self.buf.len() {
            self.buf.resize((self.buf.len() * 2).max(READ_STEP), 0);
        }
        let count = self.stream.read(&mut self.buf[self.end..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += count;
        Ok(())
    }

    /// Says that it wants something, and waits until it may ask.
    ///
    /// # Errors
    /// Those of [`Wire::next`].
    pub fn open(&mut self) -> io::Result<()> {
        self.send(&[Message::Interested])?;
        while self.next()? != Came::Unchoke {}
        Ok(())
    }
}

/// A bitfield of so many pieces, eight like `pattern` after the other; what is beyond them is zero (BEP 3).
pub fn bits(pieces: u32, pattern: u8) -> Vec<u8> {
    let mut bits = vec![pattern; pieces.div_ceil(8) as usize];
    let spare = bits.len() as u32 * 8 - pieces;
    if let Some(last) = bits.last_mut() {
        *last &= 0xff << spare;
    }
    bits
}

/// All blocks of a torrent, over and over, from some piece on.
pub fn blocks_from(geometry: &Geometry, piece: u32) -> impl Iterator<Item = RawBlock> {
    let count = geometry.piece_count();
    let lens: Vec<u32> = geometry.pieces().map(|piece| geometry.piece_len(piece)).collect();
    (0u64..).flat_map(move |turn| {
        let raw = ((turn + u64::from(piece)) % u64::from(count)) as u32;
        let len = lens[raw as usize];
        (0..len.div_ceil(BLOCK_LEN)).map(move |at| RawBlock {
            piece: raw,
            begin: at * BLOCK_LEN,
            len: BLOCK_LEN.min(len - at * BLOCK_LEN),
        })
    })
}

/// Fetches with so many requests in flight until `until`, and keeps nothing; payload bytes are counted in
/// `counted` as they come. At most `rate` bytes per second, if given.
///
/// # Errors
/// Those of [`Wire::next`].
pub fn drain(
    wire: &mut Wire,
    mut blocks: impl Iterator<Item = RawBlock>,
    in_flight: usize,
    rate: Option<u64>,
    until: Instant,
    counted: &AtomicU64,
) -> io::Result<()> {
    wire.open()?;
    let mut waiting = Vec::new();
    let mut open = 0usize;
    let mut is_choked = false;
    let (begun, mut received) = (Instant::now(), 0u64);
    while Instant::now() < until && !is_interrupted() {
        // A batch at a time: one call for several requests.
        if !is_choked && open <= in_flight / 2 {
            waiting.extend(blocks.by_ref().take(in_flight - open).map(Message::Request));
            open += waiting.len();
            wire.send(&waiting)?;
            waiting.clear();
        }
        match wire.next() {
            Ok(Came::Block(block)) => {
                open = open.saturating_sub(1);
                received += u64::from(block.len);
                counted.fetch_add(u64::from(block.len), Ordering::Relaxed);
            }
            Ok(Came::Choke) => (is_choked, open) = (true, 0),
            Ok(Came::Unchoke) => is_choked = false,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(received as f64 / rate as f64);
            let ahead = due.saturating_sub(begun.elapsed());
            std::thread::sleep(ahead.min(until.saturating_duration_since(Instant::now())));
        }
    }
    Ok(())
}

/// Round trips of single requests, a millisecond apart, until `until`.
///
/// # Errors
/// Those of [`Wire::next`].
pub fn probe(
    wire: &mut Wire,
    blocks: impl Iterator<Item = RawBlock>,
    until: Instant,
) -> io::Result<Vec<Duration>> {
    wire.open()?;
    let mut trips = Vec::new();
    for block in blocks {
        let asked = Instant::now();
        if asked >= until || is_interrupted() {
            break;
        }
        wire.send(&[Message::Request(block)])?;
        loop {
            match wire.next()? {
                Came::Block(found) if found == block => break,
                Came::Choke => wire.send(&[Message::Interested])?,
                Came::Unchoke => wire.send(&[Message::Request(block)])?,
                _ => {}
            }
        }
        trips.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(trips)
}

/// A share of the sorted values, such as 0.99.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Jain's index of fairness: 1 when all have the same, 1/n when one has everything.
pub fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn torrent(len: u64) -> Metainfo {
        let mut bytes =
            format!("d4:infod6:lengthi{len}e4:name1:x12:piece lengthi32768e6:pieces").into_bytes();
        let pieces = len.div_ceil(32_768) as usize;
        bytes.extend(format!("{}:", pieces * 20).into_bytes());
        bytes.extend(vec![7; pieces * 20]);
        bytes.extend(b"ee");
        Metainfo::parse(&bytes).unwrap()
    }

    #[test]
    fn all_blocks_come_round_and_the_last_is_short() {
        let torrent = torrent(70_000);
        let blocks: Vec<RawBlock> = blocks_from(torrent.info().geometry(), 1).take(6).collect();
        let ends: Vec<(u32, u32, u32)> =
            blocks.iter().map(|block| (block.piece, block.begin, block.len)).collect();
        let wanted = [
            (1, 0, 16_384),
            (1, 16_384, 16_384),
            (2, 0, 70_000 - 65_536),
            (0, 0, 16_384),
            (0, 16_384, 16_384),
            (1, 0, 16_384),
        ];
        assert_eq!(ends, wanted);
    }

    /// What is counted is what came, however TCP cut it.
    #[test]
    fn a_drain_counts_what_a_server_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hands = [0; HANDSHAKE_LEN];
            stream.read_exact(&mut hands).unwrap();
            stream.write_all(&hands).unwrap();
            let mut bytes = Vec::new();
            Message::Bitfield(&[0xe0]).encode(&mut bytes);
            Message::Unchoke.encode(&mut bytes);
            let data = [1; 4000];
            for begin in [0, 4000] {
                Message::Piece { piece: 0, begin, data: &data }.encode(&mut bytes);
            }
            for part in bytes.chunks(997) {
                stream.write_all(part).unwrap();
            }
            // Hanging up with requests unread would take back what was sent.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let torrent = torrent(70_000);
        let mut wire = Wire::dial(addr, Ipv4Addr::LOCALHOST, &torrent, 1).unwrap();
        let counted = AtomicU64::new(0);
        let until = Instant::now() + Duration::from_secs(5);
        let blocks = blocks_from(torrent.info().geometry(), 0);
        let ended = drain(&mut wire, blocks, 4, None, until, &counted);
        assert!(ended.is_err(), "the server went away");
        drop(wire);
        assert_eq!(counted.load(Ordering::Relaxed), 8000);
        server.join().unwrap();
    }

    #[test]
    fn bits_beyond_the_last_piece_are_zero() {
        assert_eq!(bits(11, 0xff), [0xff, 0xe0]);
        assert_eq!(bits(16, 0xaa), [0xaa, 0xaa]);
    }

    #[test]
    fn fairness_and_percentiles() {
        assert_eq!(jain(&[1.0, 1.0, 1.0, 1.0]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
        let all: Vec<Duration> = (0..100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&all, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&all, 0.5), Duration::from_millis(50));
    }
}
