//! Peers that do what a test says, message by message, on a real connection.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use ringseed_core::merkle;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::wire::handshake::HANDSHAKE_LEN;
use ringseed_core::wire::message::{Frame, FrameLimits, Message, RawBlock, frame};
use ringseed_core::wire::{Handshake, PeerId, Reserved, WireId};

/// What a stock client may take in.
const LIMITS: FrameLimits = FrameLimits { bitfield_len: None, hashes_max: 8192 + 32 };
/// A loaded machine answers in a tenth of this.
const PATIENCE: Duration = Duration::from_secs(20);

/// One end of a connection to an engine.
pub(super) struct Script {
    stream: TcpStream,
    buf: Vec<u8>,
    /// What the engine has answered.
    pub hello: Handshake,
}

impl Script {
    /// Dials an engine and shakes hands. `program` is the two letters of a client (BEP 20).
    pub fn dial(
        addr: SocketAddr,
        wire_id: [u8; 20],
        upgrades: bool,
        program: &[u8; 2],
        number: u8,
    ) -> Script {
        let stream = TcpStream::connect(addr).unwrap();
        Script::greet(stream, wire_id, upgrades, program, number)
    }

    /// One that has room for a few blocks that it has not read.
    pub fn dial_narrow(addr: SocketAddr, wire_id: [u8; 20], number: u8) -> Script {
        use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_recv_buffer_size(&socket, 16 << 10).unwrap();
        connect(&socket, &addr).unwrap();
        Script::greet(TcpStream::from(socket), wire_id, false, b"XX", number)
    }

    fn greet(
        mut stream: TcpStream,
        wire_id: [u8; 20],
        upgrades: bool,
        program: &[u8; 2],
        number: u8,
    ) -> Script {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut peer_id = *b"-XX0001-scripted0000";
        peer_id[1..3].copy_from_slice(program);
        peer_id[19] = number;
        let reserved = Reserved::ours(upgrades);
        let hello = Handshake { reserved, wire_id: WireId(wire_id), peer_id: PeerId(peer_id) };
        stream.write_all(&hello.encode()).unwrap();
        let mut answer = [0; HANDSHAKE_LEN];
        stream.read_exact(&mut answer).unwrap();
        Script { stream, buf: Vec::new(), hello: Handshake::decode(&answer).unwrap() }
    }

    /// Sends messages.
    pub fn say(&mut self, messages: &[Message<'_>]) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        // An engine that has hung up is for the test to notice when it listens.
        let _ = self.stream.write_all(&bytes);
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message, as `read` makes something of it; `None` when the engine hangs up.
    pub fn next<T>(&mut self, read: impl FnOnce(&Message<'_>) -> T) -> Option<T> {
        self.listen(PATIENCE, read).map(|heard| heard.expect("nothing more is heard"))
    }

    /// The next message, if one comes in time; `None` when the engine hangs up.
    pub fn listen<T>(
        &mut self,
        patience: Duration,
        read: impl FnOnce(&Message<'_>) -> T,
    ) -> Option<Option<T>> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        loop {
            if let Ok(Frame::Complete(len)) = frame(&self.buf, LIMITS) {
                return Some(Some(self.take(len, read)));
            }
            if let Ok(Frame::PieceHeader(block)) = frame(&self.buf, LIMITS)
                && self.buf.len() >= 13 + block.len as usize
            {
                return Some(Some(self.take(13 + block.len as usize, read)));
            }
            let mut more = [0; 16 << 10];
            match self.stream.read(&mut more) {
                Ok(0) => return None,
                Ok(len) => self.buf.extend_from_slice(&more[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(None),
            }
        }
    }

    /// The next message as it came, without its length: also one that no stock client would take in.
    pub fn raw_message(&mut self) -> Vec<u8> {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        loop {
            if let Some(prefix) = self.buf.first_chunk() {
                let len = 4 + u32::from_be_bytes(*prefix) as usize;
                if self.buf.len() >= len {
                    let rest = self.buf.split_off(len);
                    return std::mem::replace(&mut self.buf, rest).split_off(4);
                }
            }
            let mut more = [0; 16 << 10];
            match self.stream.read(&mut more) {
                Ok(0) => panic!("the engine hung up"),
                Ok(len) => self.buf.extend_from_slice(&more[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing more is heard: {error}"),
            }
        }
    }

    fn take<T>(&mut self, len: usize, read: impl FnOnce(&Message<'_>) -> T) -> T {
        let rest = self.buf.split_off(len);
        let message = std::mem::replace(&mut self.buf, rest);
        read(&Message::decode(&message, LIMITS).unwrap())
    }

    /// Listens until `read` makes something of a message.
    pub fn hear<T>(&mut self, what: &str, mut read: impl FnMut(&Message<'_>) -> Option<T>) -> T {
        loop {
            match self.next(&mut read) {
                Some(Some(heard)) => return heard,
                Some(None) => {}
                None => panic!("the engine hung up before {what}"),
            }
        }
    }
}

/// The payload of a torrent as it lies on disk, to be served by a script.
pub(super) struct Payload<'a> {
    metainfo: &'a Metainfo,
    files: Vec<Vec<u8>>,
}

impl<'a> Payload<'a> {
    pub fn of(metainfo: &'a Metainfo, source: &Path) -> Self {
        let files = metainfo.info().files();
        let read = |file: ringseed_core::metainfo::FileEntry<'_>| match file.pad {
            true => vec![0; file.len_bytes as usize],
            false => std::fs::read(source.join(file.path().as_path())).unwrap(),
        };
        Payload { metainfo, files: files.map(read).collect() }
    }

    /// The bytes of a block as it was asked for.
    pub fn block(&self, block: RawBlock) -> Vec<u8> {
        let geometry = self.metainfo.info().geometry();
        let found = geometry.request(block.piece, block.begin, block.len).unwrap();
        let slices = geometry.slices(geometry.block_offset(found), block.len.into());
        let bytes = slices.flat_map(|slice| {
            if slice.pad {
                return vec![0; slice.len as usize];
            }
            let begin = slice.file_offset as usize;
            self.files[slice.file.get() as usize][begin..begin + slice.len as usize].to_vec()
        });
        bytes.collect()
    }

    /// The leaves of a file, by its root.
    pub fn leaves(&self, pieces_root: &[u8; 32]) -> Vec<[u8; 32]> {
        let mut files = self.metainfo.info().files();
        let at = files.position(|file| file.pieces_root == Some(*pieces_root)).unwrap();
        self.files[at].chunks(16 << 10).map(merkle::leaf).collect()
    }
}

/// The extension handshake of a client that knows don't-have, under id 7.
pub(super) const EXTENDED: Message<'_> =
    Message::Extended { id: 0, payload: b"d1:md11:lt_donthavei7eee" };
