//! What a machine may rely on with sockets.

use std::io::ErrorKind;
use std::time::Duration;

use super::*;
use crate::io::{SendBuf, SendPart};

pub fn bytes_are_gathered_scattered_and_polled_for(bench: &mut Bench) {
    let (a, b) = bench.connect();
    let poll = bench.start(0, |id| Op::PollIn { id, sock: a });
    let mut extent = bench.rig.arena().try_take().unwrap();
    pattern(1, 0, &mut extent);
    let extent = extent.freeze();
    let buf = SendBuf {
        small: b"headtail".to_vec(),
        parts: vec![
            SendPart::Small { start: 0, len: 4 },
            SendPart::Extent { extent: extent.clone(), start: 100, len: 5000 },
            SendPart::Small { start: 4, len: 4 },
        ],
    };
    let done = bench.run(1, |id| Op::Send { id, sock: b, buf });
    let Done::Sent(Ok(()), buf) = done else { panic!("{done:?}") };
    assert_eq!((buf.small.len(), buf.parts.len()), (8, 3));
    assert!(matches!(bench.wait(0, poll), Done::Readable(Ok(()))));
    // Scattered again: received bytes fill the slots in order, however TCP cut the stream.
    let mut buf = RecvBuf {
        small: vec![0; 8],
        extents: vec![bench.rig.arena().try_take().unwrap()],
        slots: vec![
            RecvSlot::Small { start: 0, len: 4 },
            RecvSlot::Extent { extent: 0, start: 64, len: 5000 },
            RecvSlot::Small { start: 4, len: 4 },
        ],
        fill_max: None,
    };
    let mut got = 0;
    while got < 5008 {
        let done = bench.run(0, |id| Op::Recv { id, sock: a, buf });
        let Done::Received(Ok(n), back) = done else { panic!("{done:?}") };
        assert!(n > 0);
        got += n;
        buf = back;
        let mut left = n;
        buf.slots.retain_mut(|slot| {
            let (start, len) = match slot {
                RecvSlot::Small { start, len } | RecvSlot::Extent { start, len, .. } => {
                    (start, len)
                }
            };
            let step = left.min(*len);
            (*start, *len, left) = (*start + step, *len - step, left - step);
            *len > 0
        });
    }
    assert_eq!(&buf.small, b"headtail");
    assert_eq!(buf.extents[0][64..5064], extent[100..5100]);
    bench.rig.push(0, Op::Close { sock: a });
    bench.rig.push(1, Op::Close { sock: b });
}

/// A receive that may wait for its last byte does not wait for ever, and the stream goes on behind it.
pub fn waiting_for_more_has_an_end(bench: &mut Bench) {
    let (a, b) = bench.connect();
    for text in [&b"some"[..], b"more"] {
        let parts = vec![SendPart::Small { start: 0, len: text.len() }];
        let buf = SendBuf { small: text.to_vec(), parts };
        let done = bench.run(1, |id| Op::Send { id, sock: b, buf });
        assert!(matches!(done, Done::Sent(Ok(()), _)), "{done:?}");
        let mut got = Vec::new();
        while got.len() < text.len() {
            let buf = RecvBuf { fill_max: Some(Duration::from_millis(5)), ..Bench::small(64) };
            match bench.run(0, |id| Op::Recv { id, sock: a, buf }) {
                Done::Received(Ok(len), buf) => got.extend_from_slice(&buf.small[..len]),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, text);
    }
    bench.rig.push(0, Op::Close { sock: a });
    bench.rig.push(1, Op::Close { sock: b });
}

/// A socket that is given up and taken again, as between two shards, loses nothing: neither what had come
/// and was not received, nor what comes later.
pub fn a_socket_moves_with_what_it_holds(bench: &mut Bench) {
    let (a, b) = bench.connect();
    let say = |bench: &mut Bench, text: &[u8]| {
        let parts = vec![SendPart::Small { start: 0, len: text.len() }];
        let buf = SendBuf { small: text.to_vec(), parts };
        let done = bench.run(1, |id| Op::Send { id, sock: b, buf });
        assert!(matches!(done, Done::Sent(Ok(()), _)), "{done:?}");
    };
    say(bench, b"before");
    let moved = match bench.run(0, |id| Op::Detach { id, sock: a }) {
        Done::Detached(Ok(moved)) => moved,
        other => panic!("{other:?}"),
    };
    // It is not there any more.
    let done = bench.run(0, |id| Op::Recv { id, sock: a, buf: Bench::small(6) });
    assert!(matches!(done, Done::Received(Err(_), _)), "{done:?}");
    say(bench, b"between");
    let sock = match bench.run(0, |id| Op::Attach { id, moved }) {
        Done::Attached(Ok(sock)) => sock,
        other => panic!("{other:?}"),
    };
    say(bench, b"after");
    let wanted = b"beforebetweenafter";
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        let poll = bench.run(0, |id| Op::PollIn { id, sock });
        assert!(matches!(poll, Done::Readable(Ok(()))), "{poll:?}");
        let buf = Bench::small(wanted.len() - got.len());
        match bench.run(0, |id| Op::Recv { id, sock, buf }) {
            Done::Received(Ok(len), buf) if len > 0 => got.extend_from_slice(&buf.small[..len]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, wanted);
    bench.rig.push(0, Op::Close { sock });
    bench.rig.push(1, Op::Close { sock: b });
    let gone = bench.run(0, |id| Op::Detach { id, sock });
    assert!(matches!(gone, Done::Detached(Err(_))), "{gone:?}");
}

pub fn closing_ends_what_is_in_flight(bench: &mut Bench) {
    let canceled = rustix::io::Errno::CANCELED.raw_os_error();
    // An idle receive.
    let (a, b) = bench.connect();
    let mut buf = Bench::small(10);
    buf.extents.push(bench.rig.arena().try_take().unwrap());
    let recv = bench.start(0, |id| Op::Recv { id, sock: a, buf });
    // Something else comes and goes meanwhile, so that the receive has truly begun.
    let (root, path) = (bench.rig.root(0), "no-such-tree".into());
    let done = bench.run(0, |id| Op::RemoveTree { id, root, path });
    assert!(matches!(done, Done::Removed(Ok(0))), "{done:?}");
    bench.rig.push(0, Op::Close { sock: a });
    match bench.wait(0, recv) {
        Done::Received(Err(error), buf) => {
            assert_eq!(error.raw_os_error(), Some(canceled));
            assert_eq!(buf.extents.len(), 1);
        }
        other => panic!("{other:?}"),
    }
    // A poll.
    let (c, d) = bench.connect();
    let poll = bench.start(0, |id| Op::PollIn { id, sock: c });
    bench.rig.push(0, Op::Close { sock: c });
    let done = bench.wait(0, poll);
    assert!(matches!(done, Done::Readable(Err(e)) if e.raw_os_error() == Some(canceled)));
    // A send that the other end never takes: more than any socket buffer holds.
    let (e, f) = bench.connect();
    let extent = bench.rig.arena().try_take().unwrap().freeze();
    let part = SendPart::Extent { extent, start: 0, len: EXTENT_LEN_BYTES };
    let buf = SendBuf { small: Vec::new(), parts: vec![part; 100] };
    let send = bench.start(0, |id| Op::Send { id, sock: e, buf });
    let recv = bench.start(0, |id| Op::Recv { id, sock: e, buf: Bench::small(1) });
    bench.rig.push(0, Op::Close { sock: e });
    match bench.wait(0, send) {
        Done::Sent(Err(error), buf) => {
            assert_eq!(error.raw_os_error(), Some(canceled));
            assert_eq!(buf.parts.len(), 100);
        }
        other => panic!("{other:?}"),
    }
    let done = bench.wait(0, recv);
    assert!(matches!(done, Done::Received(Err(e), _) if e.raw_os_error() == Some(canceled)));
    // The other ends are told, although something was in flight.
    for sock in [b, d] {
        let told = bench.run(1, |id| Op::Recv { id, sock, buf: Bench::small(1) });
        assert!(matches!(told, Done::Received(Ok(0) | Err(_), _)), "{told:?}");
    }
    // Closed twice is closed.
    bench.rig.push(0, Op::Close { sock: e });
    for sock in [b, d, f] {
        bench.rig.push(1, Op::Close { sock });
    }
}

pub fn a_peer_that_closes_is_seen(bench: &mut Bench) {
    let (a, b) = bench.connect();
    let poll = bench.start(0, |id| Op::PollIn { id, sock: a });
    let parts = vec![SendPart::Small { start: 0, len: 3 }];
    let buf = SendBuf { small: b"bye".to_vec(), parts };
    assert!(matches!(bench.run(1, |id| Op::Send { id, sock: b, buf }), Done::Sent(Ok(()), _)));
    bench.rig.push(1, Op::Close { sock: b });
    assert!(matches!(bench.wait(0, poll), Done::Readable(Ok(()))));
    let mut text = Vec::new();
    loop {
        match bench.run(0, |id| Op::Recv { id, sock: a, buf: Bench::small(100) }) {
            Done::Received(Ok(0), _) => break,
            Done::Received(Ok(n), buf) => text.extend_from_slice(&buf.small[..n]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(text, b"bye");
    assert!(matches!(bench.run(0, |id| Op::PollIn { id, sock: a }), Done::Readable(_)));
    // Sending to nobody fails sooner or later, and never ends the process.
    let mut tries = 0;
    loop {
        let parts = vec![SendPart::Small { start: 0, len: 1000 }];
        let buf = SendBuf { small: vec![1; 1000], parts };
        match bench.run(0, |id| Op::Send { id, sock: a, buf }) {
            Done::Sent(Ok(()), _) => tries += 1,
            Done::Sent(Err(error), _) => {
                let expected = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
                break assert!(expected.contains(&error.kind()), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
        assert!(tries < 1000);
    }
    bench.rig.push(0, Op::Close { sock: a });
}

pub fn refused_and_closed_tell_their_errors(bench: &mut Bench) {
    let addr = bench.rig.dead_addr();
    let timeout = Duration::from_secs(5);
    let done = bench.run(1, |id| Op::Connect { id, addr, timeout });
    assert!(
        matches!(done, Done::Connected(Err(ref e)) if e.kind() == ErrorKind::ConnectionRefused),
        "{done:?}"
    );
    let (a, b) = bench.connect();
    bench.rig.push(0, Op::Close { sock: a });
    let canceled = Some(rustix::io::Errno::CANCELED.raw_os_error());
    let done = bench.run(0, |id| Op::PollIn { id, sock: a });
    assert!(matches!(done, Done::Readable(Err(e)) if e.raw_os_error() == canceled));
    let done = bench.run(0, |id| Op::Recv { id, sock: a, buf: Bench::small(8) });
    let Done::Received(Err(error), buf) = done else { panic!("{done:?}") };
    assert_eq!((error.raw_os_error(), buf.small.len()), (canceled, 8));
    // A slot outside its buffer never reaches memory.
    let mut buf = Bench::small(8);
    buf.slots[0] = RecvSlot::Small { start: 4, len: 5 };
    let done = bench.run(1, |id| Op::Recv { id, sock: b, buf });
    assert!(matches!(done, Done::Received(Err(e), _) if e.kind() == ErrorKind::InvalidInput));
    bench.rig.push(1, Op::Close { sock: b });
}

/// Streams both ways at once; every received byte is compared with its place in the stream.
pub fn bulk_arrives_whole_both_ways(bench: &mut Bench) {
    let (a, b) = bench.connect();
    let total = bench.rig.bulk_bytes();
    let mut ends = [Stream::new(0, a, 7), Stream::new(1, b, 8)];
    // What node 0 receives is what node 1 sends.
    let seeds = [8, 7];
    for end in &mut ends {
        end.send(bench, total);
        end.recv(bench);
    }
    while ends.iter().any(|end| end.received < total || end.sent < total) {
        for (end, seed) in ends.iter_mut().zip(seeds) {
            if end.received < total || end.sent < total {
                end.step(bench, total, seed);
            }
        }
    }
    bench.rig.push(0, Op::Close { sock: a });
    bench.rig.push(1, Op::Close { sock: b });
    for (end, node) in ends.into_iter().zip(0..) {
        if let Some(id) = end.recv_id {
            bench.wait(node, id);
        }
    }
}

struct Stream {
    node: usize,
    sock: SockId,
    seed: u64,
    sent: usize,
    received: usize,
    send_id: Option<(OpId, usize)>,
    recv_id: Option<OpId>,
}

const HEADER_LEN: usize = 13;
const BLOCK_LEN: usize = 16 * 1024;

impl Stream {
    fn new(node: usize, sock: SockId, seed: u64) -> Stream {
        Stream { node, sock, seed, sent: 0, received: 0, send_id: None, recv_id: None }
    }

    fn send(&mut self, bench: &mut Bench, total: usize) {
        let len = (total - self.sent).min(3 * EXTENT_LEN_BYTES + 500);
        let mut buf = SendBuf { small: vec![0; 500.min(len)], parts: Vec::new() };
        pattern(self.seed, self.sent, &mut buf.small);
        buf.parts.push(SendPart::Small { start: 0, len: buf.small.len() });
        let mut at = buf.small.len();
        while at < len {
            let mut extent = bench.rig.arena().try_take().unwrap();
            let part_len = (len - at).min(EXTENT_LEN_BYTES);
            pattern(self.seed, self.sent + at, &mut extent[..part_len]);
            let extent = extent.freeze();
            buf.parts.push(SendPart::Extent { extent, start: 0, len: part_len });
            at += part_len;
        }
        let sock = self.sock;
        self.send_id = Some((bench.start(self.node, |id| Op::Send { id, sock, buf }), len));
    }

    /// As the engine receives: a header slot and a block's place, in turns.
    fn recv(&mut self, bench: &mut Bench) {
        let mut buf = RecvBuf { small: vec![0; 64 * HEADER_LEN], ..RecvBuf::default() };
        for extent in 0..4 {
            buf.extents.push(bench.rig.arena().try_take().unwrap());
            for block in 0..16 {
                let start = (extent * 16 + block) * HEADER_LEN;
                buf.slots.push(RecvSlot::Small { start, len: HEADER_LEN });
                let start = block * BLOCK_LEN;
                buf.slots.push(RecvSlot::Extent { extent, start, len: BLOCK_LEN });
            }
        }
        let sock = self.sock;
        self.recv_id = Some(bench.start(self.node, |id| Op::Recv { id, sock, buf }));
    }

    fn step(&mut self, bench: &mut Bench, total: usize, peer_seed: u64) {
        let completion = bench.rig.next(self.node);
        match completion.done {
            Done::Sent(Ok(()), _) => {
                let (id, len) = self.send_id.take().unwrap();
                assert_eq!(id, completion.id);
                self.sent += len;
                if self.sent < total {
                    self.send(bench, total);
                }
            }
            Done::Received(Ok(n), mut buf) => {
                assert!(n > 0, "closed too early");
                assert_eq!(self.recv_id.take(), Some(completion.id));
                let mut left = n;
                for slot in buf.slots.clone() {
                    let bytes = buf.slot_mut(slot).unwrap();
                    let len = left.min(bytes.len());
                    let mut expected = vec![0; len];
                    pattern(peer_seed, self.received, &mut expected);
                    assert!(bytes[..len] == expected, "wrong byte near {}", self.received);
                    self.received += len;
                    left -= len;
                }
                assert_eq!(left, 0);
                drop(buf);
                if self.received < total {
                    self.recv(bench);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn many_connections_are_accepted(bench: &mut Bench) {
    const COUNT: usize = 40;
    let (addr, timeout) = (bench.rig.addr(0), Duration::from_secs(5));
    let ids: Vec<OpId> =
        (0..COUNT).map(|_| bench.start(1, |id| Op::Connect { id, addr, timeout })).collect();
    let mut socks = HashSet::new();
    for id in ids {
        let done = bench.wait(1, id);
        let Done::Connected(Ok(sock)) = done else { panic!("{done:?}") };
        assert!(socks.insert(sock));
    }
    let mut accepted = HashSet::new();
    for _ in 0..COUNT {
        let done = bench.wait(0, OpId(0));
        let Done::Accepted { sock, peer } = done else { panic!("{done:?}") };
        assert!(accepted.insert((sock, peer)));
    }
    let peers: HashSet<SocketAddr> = accepted.iter().map(|&(_, peer)| peer).collect();
    assert_eq!(peers.len(), COUNT);
    socks.into_iter().for_each(|sock| bench.rig.push(1, Op::Close { sock }));
    accepted.into_iter().for_each(|(sock, _)| bench.rig.push(0, Op::Close { sock }));
}
