//! The virtual network: streams cut anywhere, late, reset, cut off.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Core, Event};
use crate::io::{Completion, Done, OpId, RecvBuf, SendBuf, SendPart, SockId};

/// Most bytes that travel as one.
const SEGMENT_LEN: usize = 64 * 1024;

/// A connection between two nodes.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) ends: [End; 2],
}

/// One node's end.
#[derive(Debug)]
pub(super) struct End {
    pub(super) node: usize,
    pub(super) is_open: bool,
    /// Arrived and not yet received.
    incoming: VecDeque<u8>,
    /// Bytes on their way here.
    travelling: usize,
    /// The other end has closed, and all it sent is in `incoming`.
    has_ended: bool,
    was_reset: bool,
    reads: VecDeque<Reading>,
    sends: VecDeque<(OpId, SendBuf, usize)>,
    /// When the last thing sent here arrives: nothing overtakes in a stream.
    last_arrival: Instant,
    /// Arrivals held back while the link is down.
    held: VecDeque<Arrival>,
    is_read_due: bool,
}

#[derive(Debug)]
enum Reading {
    Poll(OpId),
    Recv(OpId, RecvBuf),
}

/// What comes to one end of a connection.
#[derive(Debug)]
pub(super) enum Arrival {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl End {
    fn new(node: usize, now: Instant) -> End {
        End {
            node,
            is_open: true,
            incoming: VecDeque::new(),
            travelling: 0,
            has_ended: false,
            was_reset: false,
            reads: VecDeque::new(),
            sends: VecDeque::new(),
            last_arrival: now,
            held: VecDeque::new(),
            is_read_due: false,
        }
    }

    fn is_readable(&self) -> bool {
        !self.incoming.is_empty() || self.has_ended || self.was_reset
    }
}

impl Core {
    pub(super) fn start_connect(
        &mut self,
        node: usize,
        id: OpId,
        addr: SocketAddr,
        timeout: Duration,
    ) {
        let deadline = self.now + timeout;
        let at = self.now + self.latency();
        let epoch = self.nodes[node].epoch;
        if at > deadline {
            let done = Done::Connected(Err(Errno::TIMEDOUT.into()));
            return self.complete_at(deadline, node, id, done);
        }
        self.schedule(at, Event::Connect { node, epoch, id, addr, deadline });
    }

    pub(super) fn handle_connect(
        &mut self,
        node: usize,
        id: OpId,
        addr: SocketAddr,
        deadline: Instant,
    ) {
        let listener = self.nodes.iter().position(|other| other.addr == addr);
        if listener.is_some_and(|listener| self.is_cut(node, listener)) {
            let done = Done::Connected(Err(Errno::TIMEDOUT.into()));
            return self.complete_at(deadline, node, id, done);
        }
        let listener = listener.filter(|&listener| self.nodes[listener].is_running);
        let Some(listener) = listener else {
            let at = self.now + self.latency();
            let done = Done::Connected(Err(Errno::CONNREFUSED.into()));
            return self.complete_at(at, node, id, done);
        };
        let port = self.nodes[node].take_port();
        let peer = SocketAddr::new(self.nodes[node].addr.ip(), port);
        let (out, taken) = (self.nodes[node].take_sock(), self.nodes[listener].take_sock());
        let conn = self.next_conn;
        self.next_conn += 1;
        let ends = [End::new(node, self.now), End::new(listener, self.now)];
        self.conns.insert(conn, Conn { ends });
        self.nodes[node].sockets.insert(out, (conn, 0));
        self.nodes[listener].sockets.insert(taken, (conn, 1));
        let done = Done::Accepted { sock: taken, peer };
        self.inbox.push_back((listener, Completion { id: OpId(0), done }));
        let at = self.now + self.latency();
        self.complete_at(at, node, id, Done::Connected(Ok(out)));
    }

    pub(super) fn start_poll(&mut self, node: usize, id: OpId, sock: SockId) {
        let Some(&(conn, side)) = self.nodes[node].sockets.get(&sock) else {
            return self.complete_soon(node, id, Done::Readable(Err(Errno::CANCELED.into())));
        };
        self.end(conn, side).reads.push_back(Reading::Poll(id));
        self.make_read_due(conn, side);
    }

    pub(super) fn start_recv(&mut self, node: usize, id: OpId, sock: SockId, mut buf: RecvBuf) {
        let Some(&(conn, side)) = self.nodes[node].sockets.get(&sock) else {
            return self.complete_soon(node, id, Done::Received(Err(Errno::CANCELED.into()), buf));
        };
        let slots = buf.slots.clone();
        let in_bounds = slots.into_iter().all(|slot| buf.slot_mut(slot).is_ok());
        if !in_bounds || buf.len_bytes() == 0 || buf.slots.len() > crate::io::RECV_SLOTS_MAX {
            let error = io::ErrorKind::InvalidInput.into();
            return self.complete_soon(node, id, Done::Received(Err(error), buf));
        }
        self.end(conn, side).reads.push_back(Reading::Recv(id, buf));
        self.make_read_due(conn, side);
    }

    pub(super) fn start_send(&mut self, node: usize, id: OpId, sock: SockId, mut buf: SendBuf) {
        let Some(&(conn, side)) = self.nodes[node].sockets.get(&sock) else {
            return self.complete_soon(node, id, Done::Sent(Err(Errno::CANCELED.into()), buf));
        };
        let in_bounds = (0..buf.parts.len()).all(|index| buf.part(index).is_ok());
        if !in_bounds || buf.len_bytes() == 0 || buf.parts.len() > crate::io::SEND_PARTS_MAX {
            let error = io::ErrorKind::InvalidInput.into();
            return self.complete_soon(node, id, Done::Sent(Err(error), buf));
        }
        self.lie(node, &mut buf);
        self.end(conn, side).sends.push_back((id, buf, 0));
        self.pump(conn, side);
    }

    /// What a node that lies makes of its payload.
    fn lie(&mut self, node: usize, buf: &mut SendBuf) {
        let one_in = self.nodes[node].lies_one_in;
        for index in 0..buf.parts.len() {
            let is_payload = matches!(buf.parts[index], SendPart::Extent { .. });
            if one_in == 0 || !is_payload || self.rng.range(1, one_in) != 1 {
                continue;
            }
            let bytes = buf.part(index).expect("checked at the start").to_vec();
            let (start, len) = (buf.small.len(), bytes.len());
            buf.small.extend_from_slice(&bytes);
            let at = self.rng.range(0, len as u64 - 1) as usize;
            buf.small[start + at] ^= 1 << self.rng.range(0, 7);
            buf.parts[index] = SendPart::Small { start, len };
        }
    }

    pub(super) fn close(&mut self, node: usize, sock: SockId) {
        let Some((conn, side)) = self.nodes[node].sockets.remove(&sock) else { return };
        let end = self.end(conn, side);
        end.is_open = false;
        let (reads, sends) = (std::mem::take(&mut end.reads), std::mem::take(&mut end.sends));
        // Closing over unread bytes resets, tcp(7).
        let arrival = if end.incoming.is_empty() { Arrival::End } else { Arrival::Reset };
        let was_reset = end.was_reset;
        for reading in reads {
            let (id, done) = match reading {
                Reading::Poll(id) => (id, Done::Readable(Err(Errno::CANCELED.into()))),
                Reading::Recv(id, buf) => (id, Done::Received(Err(Errno::CANCELED.into()), buf)),
            };
            self.complete_soon(node, id, done);
        }
        for (id, buf, _) in sends {
            self.complete_soon(node, id, Done::Sent(Err(Errno::CANCELED.into()), buf));
        }
        if !was_reset {
            self.send_arrival(conn, 1 - side, arrival);
        }
        self.forget_if_closed(conn);
    }

    /// All of a node's connections end; the others hear of it if the node's system lives on.
    pub(super) fn drop_connections(&mut self, node: usize, is_heard: bool) {
        self.nodes[node].sockets.clear();
        let mut resets = Vec::new();
        for (&conn, found) in &mut self.conns {
            for side in [0, 1] {
                if found.ends[side].node == node {
                    found.ends[side].is_open = false;
                    found.ends[side].reads.clear();
                    found.ends[side].sends.clear();
                    resets.push((conn, 1 - side));
                }
            }
        }
        for (conn, side) in resets {
            if is_heard {
                self.send_arrival(conn, side, Arrival::Reset);
            }
            self.forget_if_closed(conn);
        }
    }

    fn forget_if_closed(&mut self, conn: u64) {
        if self.conns.get(&conn).is_some_and(|conn| conn.ends.iter().all(|end| !end.is_open)) {
            self.conns.remove(&conn);
        }
    }

    fn end(&mut self, conn: u64, side: usize) -> &mut End {
        &mut self.conns.get_mut(&conn).expect("a socket has a connection").ends[side]
    }

    /// Lets what can be read be read, a moment later.
    fn make_read_due(&mut self, conn: u64, side: usize) {
        let at = self.now + self.moment();
        let Some(found) = self.conns.get_mut(&conn) else { return };
        let end = &mut found.ends[side];
        if !end.is_read_due && end.is_readable() && !end.reads.is_empty() {
            end.is_read_due = true;
            self.schedule(at, Event::Read { conn, side });
        }
    }

    /// Serves what waits to read.
    pub(super) fn handle_read(&mut self, conn: u64, side: usize) {
        let Some(found) = self.conns.get_mut(&conn) else { return };
        let end = &mut found.ends[side];
        end.is_read_due = false;
        let node = end.node;
        let mut has_room = false;
        while end.is_readable()
            && let Some(reading) = end.reads.pop_front()
        {
            let completion = match reading {
                Reading::Poll(id) => Completion { id, done: Done::Readable(Ok(())) },
                Reading::Recv(id, mut buf) => {
                    let result = if end.was_reset {
                        Err(Errno::CONNRESET.into())
                    } else {
                        let mut len = end.incoming.len().min(buf.len_bytes());
                        if self.config.faults.short_transfers && len > 0 {
                            len = self.rng.range(1, len as u64) as usize;
                        }
                        let bytes: Vec<u8> = end.incoming.drain(..len).collect();
                        has_room |= len > 0;
                        buf.fill_from(&bytes)
                    };
                    Completion { id, done: Done::Received(result, buf) }
                }
            };
            self.inbox.push_back((node, completion));
        }
        if has_room {
            self.pump(conn, 1 - side);
        }
    }

    /// Puts what the other end has room for on its way.
    fn pump(&mut self, conn: u64, side: usize) {
        loop {
            let buffer_bytes = self.config.socket_buffer_bytes;
            let short = self.config.faults.short_transfers;
            let Some(found) = self.conns.get_mut(&conn) else { return };
            let other = &found.ends[1 - side];
            // What a closed end has in its buffers does not matter: the answer is a reset.
            let taken = if other.is_open { other.incoming.len() + other.travelling } else { 0 };
            let end = &mut found.ends[side];
            let node = end.node;
            if end.was_reset {
                let sends = std::mem::take(&mut end.sends);
                for (id, buf, _) in sends {
                    self.complete_soon(node, id, Done::Sent(Err(Errno::PIPE.into()), buf));
                }
                return;
            }
            let Some((id, buf, sent)) = end.sends.front_mut() else { return };
            let room = buffer_bytes.saturating_sub(taken);
            if room == 0 {
                return;
            }
            let total = buf.len_bytes();
            let mut len = room.min(total - *sent).min(SEGMENT_LEN);
            if short {
                len = self.rng.range(1, len as u64) as usize;
            }
            let bytes = copy_of(buf, *sent, len);
            *sent += len;
            let id = *id;
            if *sent == total {
                let (_, buf, _) = end.sends.pop_front().expect("it is the front");
                self.complete_soon(node, id, Done::Sent(Ok(()), buf));
            }
            self.send_arrival(conn, 1 - side, Arrival::Bytes(bytes));
        }
    }

    /// Puts something on its way to an end, behind all that is under way to it.
    fn send_arrival(&mut self, conn: u64, side: usize, arrival: Arrival) {
        let mut at = self.now + self.latency();
        let Some(found) = self.conns.get(&conn) else { return };
        if let Arrival::Bytes(bytes) = &arrival {
            let sender = &mut self.nodes[found.ends[1 - side].node];
            if let Some(rate) = sender.upload_rate {
                let begin = sender.uplink_free_at.max(self.now);
                let nanos = (bytes.len() as u128 * 1_000_000_000 / u128::from(rate.max(1))) as u64;
                sender.uplink_free_at = begin + Duration::from_nanos(nanos);
                at += sender.uplink_free_at - self.now;
            }
        }
        let end = self.end(conn, side);
        if let Arrival::Bytes(bytes) = &arrival {
            end.travelling += bytes.len();
        }
        at = at.max(end.last_arrival + Duration::from_nanos(1));
        end.last_arrival = at;
        self.schedule(at, Event::Arrive { conn, side, arrival });
    }

    pub(super) fn handle_arrival(&mut self, conn: u64, side: usize, arrival: Arrival) {
        let Some(found) = self.conns.get(&conn) else { return };
        let (here, there) = (found.ends[side].node, found.ends[1 - side].node);
        let is_cut = self.is_cut(here, there);
        let is_unlucky = self.rng.chance(self.config.faults.reset_ppm);
        let end = self.end(conn, side);
        if is_cut || !end.held.is_empty() {
            end.held.push_back(arrival);
            return;
        }
        if let Arrival::Bytes(bytes) = &arrival {
            end.travelling -= bytes.len();
        }
        if !end.is_open {
            if matches!(arrival, Arrival::Bytes(_)) {
                self.send_arrival(conn, 1 - side, Arrival::Reset);
            }
            return;
        }
        match arrival {
            Arrival::Bytes(_) if is_unlucky => {
                end.was_reset = true;
                self.send_arrival(conn, 1 - side, Arrival::Reset);
            }
            Arrival::Bytes(bytes) => end.incoming.extend(bytes),
            Arrival::End => end.has_ended = true,
            Arrival::Reset => end.was_reset = true,
        }
        let end = self.end(conn, side);
        if end.was_reset {
            end.incoming.clear();
            self.pump(conn, side); // fails what waits to be sent
        }
        self.make_read_due(conn, side);
    }

    /// Lets through what was held back on links that are up now.
    pub(super) fn release_held(&mut self) {
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            for side in [0, 1] {
                let Some(found) = self.conns.get_mut(&conn) else { break };
                let (here, there) = (found.ends[side].node, found.ends[1 - side].node);
                let held = std::mem::take(&mut found.ends[side].held);
                if self.is_cut(here, there) {
                    self.end(conn, side).held = held;
                    continue;
                }
                for arrival in held {
                    self.handle_arrival(conn, side, arrival);
                }
            }
        }
    }
}

/// `len` bytes of what a send carries, from its byte `from`. Bounds were checked at the start.
fn copy_of(buf: &SendBuf, from: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    let mut skip = from;
    for (index, part) in buf.parts.iter().enumerate() {
        let part_len = SendPart::len_bytes(part);
        if skip >= part_len {
            skip -= part_len;
            continue;
        }
        let part = buf.part(index).expect("checked at the start");
        let step = (part_len - skip).min(len - bytes.len());
        bytes.extend_from_slice(&part[skip..skip + step]);
        skip = 0;
        if bytes.len() == len {
            break;
        }
    }
    bytes
}
