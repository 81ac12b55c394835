//! One shard at the hands of a test: it says what completes, and when. Deadlines of minutes take no time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{channel, sync_channel};

use ringseed_sys::arena::Arena;

use super::*;
use crate::Rates;
use crate::io::{
    Completion, Done, FileId, Machine, Op, OpId, Ops, ReadPath, RecvBuf, SendBuf, SockId,
};
use crate::shard::command::{Command, CommandQueue, Counters, NewListing};
use crate::shard::mesh::Mesh;
use crate::shard::{Shard, ShardParts};
use crate::store;
use crate::test_support::{TestDir, tree};

/// What waits on a socket.
pub(super) enum Reading {
    Poll(OpId),
    Recv(OpId, RecvBuf),
}

/// A shard, its sockets, and a disk that always answers at once.
pub(super) struct Hand {
    dir: TestDir,
    pub(super) shard: Shard,
    pub(super) queue: Arc<CommandQueue>,
    pub(super) counters: Arc<Counters>,
    pub(super) mesh: Arc<Mesh>,
    pub(super) metainfo: Arc<Metainfo>,
    pub(super) now: Instant,
    pub(super) next: u64,
    pub(super) reading: BTreeMap<SockId, Reading>,
    /// Sends that the peer has not taken.
    pub(super) sending: BTreeMap<SockId, (OpId, SendBuf)>,
    /// Sockets whose peers take everything at once.
    pub(super) takers: BTreeSet<SockId>,
    pub(super) sent_bytes: BTreeMap<SockId, u64>,
    pub(super) closed: BTreeSet<SockId>,
    pub(super) dialled: Vec<(OpId, SocketAddr)>,
    pub(super) reads: u64,
    /// Reads from this place of the files do not end.
    pub(super) stuck_read: Option<u64>,
    /// No read ends.
    pub(super) is_disk_stuck: bool,
    pub(super) stuck: Vec<Op>,
}

impl Hand {
    /// The folder that the payload is in.
    pub(super) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub(super) fn new(change: impl FnOnce(&mut Config)) -> Hand {
        Hand::of(|source| tree(&source.join("data"), 6), 64 << 10, change)
    }

    pub(super) fn of(
        make: impl FnOnce(&Path),
        piece_len: u64,
        change: impl FnOnce(&mut Config),
    ) -> Hand {
        Hand::of_kind(Kind::V1, make, piece_len, change)
    }

    pub(super) fn of_kind(
        kind: Kind,
        make: impl FnOnce(&Path),
        piece_len: u64,
        change: impl FnOnce(&mut Config),
    ) -> Hand {
        let dir = TestDir::new("door");
        let source = dir.path().join("source");
        make(&source);
        let metainfo = torrent(&source.join("data"), kind, piece_len);
        let mut config = Config::new(dir.path().join("state"), *b"-RS0100-door00000000");
        config.arena_len_bytes = 16 << 20;
        config.limit_loopback = true;
        change(&mut config);
        std::fs::create_dir_all(&config.state_dir).unwrap();
        let (state, mut recovered) = store::open_state_dir(&config.state_dir, false).unwrap();
        let (queue, counters) = (Arc::new(CommandQueue::default()), Arc::new(Counters::default()));
        let now = Instant::now();
        let mesh = Mesh::new(
            vec![queue.clone()],
            std::mem::take(&mut recovered.recovered),
            recovered.writer.slots(),
            1,
            Rates::default(),
        );
        let parts = ShardParts {
            arena: Arena::new(config.arena_len_bytes).unwrap(),
            config,
            queue: queue.clone(),
            counters: counters.clone(),
            events: channel().0,
            state: Arc::new(state),
            recovered: Some(recovered),
            mesh: mesh.clone(),
            index: 0,
            seed: 1,
        };
        let shard = Shard::new(parts, now);
        let mut hand = Hand {
            shard,
            queue,
            counters,
            mesh,
            metainfo: metainfo.clone(),
            now,
            next: 0,
            reading: BTreeMap::new(),
            sending: BTreeMap::new(),
            takers: BTreeSet::new(),
            sent_bytes: BTreeMap::new(),
            closed: BTreeSet::new(),
            dialled: Vec::new(),
            reads: 0,
            stuck_read: None,
            is_disk_stuck: false,
            stuck: Vec::new(),
            dir,
        };
        let (answer, answers) = sync_channel(1);
        let new = NewListing {
            id: ListingId(1),
            identity: Identity::Metainfo(metainfo),
            asked_by_hash: false,
            place: Place::InPlace(source.clone()),
            root: Arc::new(ringseed_sys::dir::DirHandle::open(&source).unwrap()),
            is_fresh: false,
            bad_files: Vec::new(),
            is_kept: false,
            stamp: None,
            changed_ns: Vec::new(),
            verify_v1: true,
            known_complete: true,
            size_max_bytes: None,
            peers: Vec::new(),
            select: None,
        };
        hand.command(Command::Add(vec![new], answer));
        answers.try_recv().unwrap().remove(0).unwrap();
        hand
    }

    pub(super) fn command(&mut self, command: Command) {
        self.queue.push(command);
        self.shard.handle_wake(self.now);
        self.turn();
    }

    pub(super) fn complete(&mut self, id: OpId, done: Done) {
        self.shard.handle(Completion { id, done }, self.now);
    }

    /// Lets the shard act until it has nothing more to say.
    pub(super) fn turn(&mut self) {
        let mut ops = Ops::new();
        loop {
            self.shard.poll(&mut ops, self.now);
            if ops.is_empty() {
                return;
            }
            while let Some(op) = ops.pop_front() {
                self.execute(op);
            }
        }
    }

    pub(super) fn execute(&mut self, op: Op) {
        let cancelled = || io::Error::from_raw_os_error(125);
        match op {
            Op::PollIn { id, sock } if self.closed.contains(&sock) => {
                self.complete(id, Done::Readable(Err(cancelled())));
            }
            Op::PollIn { id, sock } => {
                self.reading.insert(sock, Reading::Poll(id));
            }
            Op::Recv { id, sock, buf } => {
                self.reading.insert(sock, Reading::Recv(id, buf));
            }
            Op::Send { id, sock, buf } => {
                self.sending.insert(sock, (id, buf));
                if self.takers.contains(&sock) {
                    self.take(sock);
                }
            }
            Op::Close { sock } => {
                self.closed.insert(sock);
                match self.reading.remove(&sock) {
                    Some(Reading::Poll(id)) => self.complete(id, Done::Readable(Err(cancelled()))),
                    Some(Reading::Recv(id, buf)) => {
                        self.complete(id, Done::Received(Err(cancelled()), buf));
                    }
                    None => {}
                }
                if let Some((id, buf)) = self.sending.remove(&sock) {
                    self.complete(id, Done::Sent(Err(cancelled()), buf));
                }
            }
            Op::Connect { id, addr, .. } => self.dialled.push((id, addr)),
            Op::Open { id, .. } => {
                self.next += 1;
                let file = FileId(self.next);
                self.complete(id, Done::Opened(Ok((file, 1 << 40))));
            }
            Op::Read { offset_bytes, .. }
                if self.is_disk_stuck || self.stuck_read == Some(offset_bytes) =>
            {
                self.stuck.push(op);
            }
            Op::Read { id, buf, len, .. } => {
                self.reads += 1;
                self.complete(id, Done::Read(Ok((len, ReadPath::Direct)), buf));
            }
            Op::WriteSmall { id, .. } => self.complete(id, Done::SmallWritten(Ok(()))),
            Op::Sync { id, .. } => self.complete(id, Done::Synced(Ok(()))),
            Op::Allocate { id, .. } => self.complete(id, Done::Allocated(Ok(()))),
            Op::CloseFile { .. } => {}
            other => panic!("not expected of a seed: {other:?}"),
        }
    }

    /// The peer takes what is being sent to it.
    pub(super) fn take(&mut self, sock: SockId) {
        if let Some((id, buf)) = self.sending.remove(&sock) {
            *self.sent_bytes.entry(sock).or_default() += buf.len_bytes() as u64;
            self.complete(id, Done::Sent(Ok(()), buf));
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.shard.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at) + Duration::from_nanos(1);
            self.turn();
        }
        self.now = self.now.max(end);
        self.turn();
    }

    pub(super) fn knock(&mut self, ip: &str) -> SockId {
        self.next += 1;
        let sock = SockId(self.next);
        let ip: IpAddr = ip.parse().unwrap();
        let peer = SocketAddr::new(ip, 10_000 + (self.next % 50_000) as u16);
        self.complete(OpId(0), Done::Accepted { sock, peer });
        self.turn();
        sock
    }

    /// Bytes come in on a socket.
    pub(super) fn hear(&mut self, sock: SockId, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.reading.remove(&sock) {
                Some(Reading::Poll(id)) => self.complete(id, Done::Readable(Ok(()))),
                Some(Reading::Recv(id, mut buf)) => {
                    let len = bytes.len().min(buf.len_bytes());
                    let filled = buf.fill_from(&bytes[..len]).unwrap();
                    bytes = &bytes[filled..];
                    self.complete(id, Done::Received(Ok(filled), buf));
                }
                None => return, // closed
            }
            self.turn();
        }
    }

    pub(super) fn handshake(&self, name: u64) -> Vec<u8> {
        let mut bytes = b"\x13BitTorrent protocol".to_vec();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 4]); // the fast extension
        bytes.extend(self.metainfo.info().wire_ids().next().unwrap());
        bytes.extend(format!("-XX0001-{name:012}").into_bytes());
        bytes
    }

    /// A peer that has nothing, wants all, takes what it is sent.
    pub(super) fn join(&mut self, ip: &str) -> SockId {
        let sock = self.knock(ip);
        self.takers.insert(sock);
        let mut hello = self.handshake(sock.0);
        hello.extend([0, 0, 0, 1, 15, 0, 0, 0, 1, 2]); // have none, interested
        self.hear(sock, &hello);
        sock
    }

    pub(super) fn is_open(&self, sock: SockId) -> bool {
        !self.closed.contains(&sock)
    }

    pub(super) fn closed_by(&self, code: &str) -> u64 {
        self.counters.closed().get(code).copied().unwrap_or(0)
    }
}

pub(super) fn request(piece: u32, begin: u32) -> Vec<u8> {
    request_of(piece, begin, 16_384)
}

pub(super) fn request_of(piece: u32, begin: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 13, 6];
    [piece, begin, len].iter().for_each(|number| bytes.extend(number.to_be_bytes()));
    bytes
}

/// A message of the extension protocol (BEP 10).
pub(super) fn extended(id: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32 + 2;
    [&len.to_be_bytes()[..], &[20, id], payload].concat()
}

impl Hand {
    /// The peer closes.
    pub(super) fn complete_close(&mut self, sock: SockId) {
        loop {
            match self.reading.remove(&sock) {
                Some(Reading::Poll(id)) => self.complete(id, Done::Readable(Ok(()))),
                Some(Reading::Recv(id, buf)) => self.complete(id, Done::Received(Ok(0), buf)),
                None => return,
            }
            self.turn();
        }
    }
}

/// A seed of 64 MiB, four times its arena.
pub(super) fn big_seed() -> Hand {
    big_seed_of(Kind::V1)
}

pub(super) fn big_seed_of(kind: Kind) -> Hand {
    sparse_seed_of(kind, 64 << 20)
}

pub(super) fn sparse_seed_of(kind: Kind, len_bytes: u64) -> Hand {
    sparse_seed_with(kind, len_bytes, |_| {})
}

pub(super) fn sparse_seed_with(
    kind: Kind,
    len_bytes: u64,
    change: impl FnOnce(&mut Config),
) -> Hand {
    Hand::of_kind(
        kind,
        move |dir| {
            std::fs::create_dir_all(dir.join("data")).unwrap();
            let file = std::fs::File::create(dir.join("data/sparse.bin")).unwrap();
            file.set_len(len_bytes).unwrap();
            // A folder of one file alone makes no v2 torrent.
            std::fs::write(dir.join("data/tail.bin"), b"x").unwrap();
        },
        256 << 10,
        change,
    )
}

impl Hand {
    /// A peer that asks for 64 blocks from a piece on and takes nothing.
    pub(super) fn join_deaf(&mut self, ip: &str, piece: u32) -> SockId {
        let sock = self.join(ip);
        self.takers.remove(&sock);
        (0..64).for_each(|at| self.hear(sock, &request(piece + at / 16, at % 16 * 16_384)));
        sock
    }
}

/// 64 requests from a piece on, in one breath.
pub(super) fn requests_from(piece: u32) -> Vec<u8> {
    (0..64).flat_map(|at| request(piece + at / 16, at % 16 * 16_384)).collect()
}
