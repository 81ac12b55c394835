//! A shard among others: its mail, connections on their way to the shard that has what they want, and
//! stopping together.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ringseed_core::wire::Handshake;

use super::mesh::{FIRST, Fault, Mesh, Message, MovedConn};
use super::peer::{CloseReason, ConnId, Who, lane_of};
use super::stripes::Help;
use super::{Flight, Shard};
use crate::api::ListingId;
use crate::io::{MovedSock, Op, SockId};

/// A shard's place in its engine, and what it wants to tell the others and cannot yet.
#[derive(Debug)]
pub(super) struct Seat {
    pub mesh: Arc<Mesh>,
    pub index: usize,
    /// By receiver: messages that found its mailbox full, in order. What bounds them is what they are about:
    /// connections, and records of extents that are being written.
    outboxes: Vec<VecDeque<Message>>,
    is_clean: bool,
    has_left: bool,
}

impl Seat {
    pub fn new(mesh: Arc<Mesh>, index: usize) -> Self {
        let outboxes = (0..mesh.shard_count()).map(|_| VecDeque::new()).collect();
        mesh.started();
        Seat { mesh, index, outboxes, is_clean: false, has_left: false }
    }

    /// Nothing waits to be told that must still be heard: the first shard stops last of all.
    pub fn is_mail_out(&self) -> bool {
        self.index == FIRST || self.outboxes[FIRST].is_empty()
    }

    /// The shard has stopped.
    pub fn leave(&mut self) {
        if !std::mem::replace(&mut self.has_left, true) {
            self.mesh.stopped(self.is_clean);
        }
    }

    fn post(&mut self, to: usize, message: Message) {
        let outbox = &mut self.outboxes[to];
        if !outbox.is_empty() {
            return outbox.push_back(message);
        }
        if let Err(message) = self.mesh.try_send(self.index, to, message) {
            outbox.push_back(message);
        }
    }

    fn pump(&mut self) {
        for (to, outbox) in self.outboxes.iter_mut().enumerate() {
            while let Some(message) = outbox.pop_front() {
                if let Err(message) = self.mesh.try_send(self.index, to, message) {
                    outbox.push_front(message);
                    break;
                }
            }
        }
    }
}

impl Drop for Seat {
    /// A shard that dies must not keep the others from stopping.
    fn drop(&mut self) {
        self.leave();
    }
}

impl Shard {
    /// Tells another shard something, now or when it has room.
    pub(super) fn send_message(&mut self, to: usize, message: Message) {
        self.seat.post(to, message);
    }

    pub(super) fn send_to_others(&mut self, message: impl Fn() -> Message) {
        let own = self.seat.index;
        let all = 0..self.seat.mesh.shard_count();
        all.filter(|&to| to != own).for_each(|to| self.seat.post(to, message()));
    }

    /// Sends what found a mailbox full before.
    pub(super) fn pump_mail(&mut self) {
        self.seat.pump();
    }

    /// What another shard says.
    pub(super) fn handle_message(&mut self, message: Message) {
        match message {
            Message::Conn(moved) => self.take_conn(moved),
            Message::Left { ip, fault } => self.door.left(ip, fault, self.now),
            Message::Records { from, records, ticket } => {
                self.take_records(from, &records, ticket);
            }
            Message::Recorded { ticket } => self.records_are_durable(ticket),
            Message::JournalLost => self.commit.journal.is_lost = true,
            Message::Banned { who, until } => {
                super::peer::bound_len(&mut self.banned);
                self.banned.insert(who, until);
                self.close_conns_of(who);
            }
            Message::Stripe { from, listing, news } => {
                self.handle_stripe_news(from, listing, news);
            }
            Message::Displace => {
                self.displace_one(None);
            }
        }
    }

    /// All places of the engine are taken.
    pub(super) fn is_full(&self) -> bool {
        self.seat.mesh.conn_count() >= self.config.peers_max as usize
    }

    /// Nothing here gives way to a newcomer: perhaps something does elsewhere, for the next one.
    pub(super) fn displace_elsewhere(&mut self) {
        self.send_to_others(|| Message::Displace);
    }

    /// What one shard has found out of a peer holds for all.
    pub(super) fn ban_everywhere(&mut self, who: Who) {
        let until = self.banned.get(&who).copied().unwrap_or(self.now);
        self.send_to_others(|| Message::Banned { who, until });
    }

    /// A connection that another shard had accepted is gone.
    pub(super) fn tell_door(&mut self, addr: SocketAddr, fault: Fault) {
        self.send_message(FIRST, Message::Left { ip: addr.ip(), fault });
    }

    /// Sends an incoming connection to the shard whose listing it names. False: no other shard knows it.
    pub(super) fn move_to_owner(&mut self, id: ConnId, handshake: Handshake) -> bool {
        if self.seat.mesh.is_alone() {
            return false;
        }
        let mut candidates = self.seat.mesh.find_name(&handshake.wire_id);
        candidates.sort_unstable();
        self.move_on(id, handshake, candidates.into())
    }

    /// Sends a connection to the first of the listings that it may want and another shard has; false when
    /// there is none. Of a name's tag there may be several, and only their owners know which of them it is.
    fn move_on(
        &mut self,
        id: ConnId,
        handshake: Handshake,
        mut candidates: VecDeque<ListingId>,
    ) -> bool {
        candidates.retain(|&listing| self.seat.mesh.home_of(listing) != self.seat.index);
        let Some(&first) = candidates.front() else { return false };
        self.move_conn(id, handshake, self.seat.mesh.home_of(first), candidates, None);
        true
    }

    /// Sends a connection to another shard.
    pub(super) fn move_conn(
        &mut self,
        id: ConnId,
        handshake: Handshake,
        to: usize,
        candidates: VecDeque<ListingId>,
        help: Option<Arc<Help>>,
    ) {
        let Some(conn) = self.conns.remove(&id) else { return };
        self.touched.remove(&id);
        self.leave_account(conn.account, id);
        self.seat.mesh.conn_closed();
        self.counters.peers.set(self.conns.len() as u64);
        let (addr, link) = (conn.addr, conn.link);
        let moved = MovedConn { addr, link, handshake, candidates, help, sock: None };
        let flight = self.flights.insert(Flight::Detach { to, moved: Box::new(moved) });
        self.out.push_back(Op::Detach { id: flight, sock: conn.sock });
    }

    /// Answer to [`Op::Detach`].
    pub(super) fn handle_detached(
        &mut self,
        to: usize,
        mut moved: Box<MovedConn>,
        result: io::Result<MovedSock>,
    ) {
        match result {
            Ok(sock) => {
                moved.sock = Some(sock);
                self.seat.mesh.count_moved();
                self.send_message(to, Message::Conn(moved));
            }
            Err(error) => {
                tracing::debug!(addr = %moved.addr, %error, "connection lost between shards");
                self.tell_door(moved.addr, Fault::None);
            }
        }
    }

    /// A connection comes from another shard.
    fn take_conn(&mut self, mut moved: Box<MovedConn>) {
        let sock = moved.sock.take().filter(|_| !self.is_stopping);
        let Some(sock) = sock else { return self.tell_door(moved.addr, Fault::None) };
        let id = self.flights.insert(Flight::Attach(moved));
        self.out.push_back(Op::Attach { id, moved: sock });
    }

    /// Answer to [`Op::Attach`].
    pub(super) fn handle_attached(&mut self, moved: Box<MovedConn>, result: io::Result<SockId>) {
        let MovedConn { addr, link, handshake, candidates, help, .. } = *moved;
        let sock = match result {
            Ok(sock) => sock,
            Err(error) => {
                tracing::debug!(%addr, %error, "connection lost between shards");
                return self.tell_door(addr, Fault::None);
            }
        };
        let id = self.add_conn(sock, addr, false, None, link);
        let conn = self.conns.get_mut(&id).expect("added above");
        (conn.is_moved, conn.peer_id) = (true, Some(handshake.peer_id));
        conn.lane = lane_of(&handshake);
        if self.is_stopping {
            return self.close_conn(id, CloseReason::Gone);
        }
        if self.is_banned(&Who::of(handshake.peer_id, addr)) {
            return self.close_conn(id, CloseReason::BadData);
        }
        if let Some(help) = help {
            self.help_conn(&help);
            self.join_listing(id, help.id, handshake);
            return self.drain_link(id);
        }
        let Some(listing) = self.find_wire_id(&handshake.wire_id) else {
            if !self.move_on(id, handshake, candidates) {
                self.close_conn(id, CloseReason::UnknownTorrent);
            }
            return;
        };
        if !self.wait_for_cold(id, listing, handshake) {
            self.join_listing(id, listing, handshake);
        }
        self.drain_link(id);
    }

    /// Whether this shard may stop: the first one waits for all others, as it has their records to write.
    pub(super) fn is_turn_to_stop(&self) -> bool {
        let seat = &self.seat;
        let is_last = seat.mesh.others_stopped().is_some() && !seat.mesh.has_mail(FIRST);
        seat.index != FIRST || is_last
    }

    /// All that this shard did is settled, or not. The first shard speaks for all: only when none has left
    /// anything behind may the next start believe what it finds without looking.
    pub(super) fn note_clean_stop(&mut self, is_clean: bool) {
        if self.seat.index != FIRST {
            self.seat.is_clean = is_clean;
            return;
        }
        let others = self.seat.mesh.others_stopped().unwrap_or(false);
        let is_all_checked =
            self.seat.mesh.recovered().listings.values().all(|of| of.suspect.is_empty());
        if is_clean && others && is_all_checked {
            self.commit.writer().clean_stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::command::CommandQueue;
    use super::super::mesh::MAILBOX_LEN;
    use super::*;
    use crate::Rates;

    /// Two shards that count how often they are woken.
    fn pair() -> ([Seat; 2], [Arc<AtomicU32>; 2]) {
        let woken: [Arc<AtomicU32>; 2] = Default::default();
        let queue = |woken: &Arc<AtomicU32>| {
            let (queue, woken) = (Arc::new(CommandQueue::default()), woken.clone());
            queue.set_waker(Box::new(move || {
                woken.fetch_add(1, Ordering::Relaxed);
            }));
            queue
        };
        let queues = woken.iter().map(queue).collect();
        let (recovered, slots) = Default::default();
        let mesh = Mesh::new(queues, recovered, slots, 1, Rates::default());
        ([Seat::new(mesh.clone(), 0), Seat::new(mesh, 1)], woken)
    }

    fn number(message: Message) -> u64 {
        match message {
            Message::Recorded { ticket } => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn read(seat: &Seat) -> Vec<u64> {
        seat.mesh.take(seat.index).into_iter().map(number).collect()
    }

    /// A message to a shard that has not looked since the last one wakes nobody: one wake brings all of them.
    #[test]
    fn whoever_is_woken_is_not_woken_again_before_it_has_looked() {
        let ([mut one, two], woken) = pair();
        let woken = |at: usize| woken[at].load(Ordering::Relaxed);
        (0..100).for_each(|ticket| one.post(1, Message::Recorded { ticket }));
        assert_eq!((woken(0), woken(1)), (0, 1));
        assert_eq!(read(&two), (0..100).collect::<Vec<_>>());
        one.post(1, Message::Recorded { ticket: 100 });
        assert_eq!(woken(1), 2);
        assert_eq!(read(&two), [100]);
        assert_eq!(woken(0), 0, "nobody waited for room");
    }

    /// A mailbox has an end. What finds it full waits in order with its sender, who is woken when there is room.
    #[test]
    fn a_full_mailbox_keeps_its_senders_waiting_in_order() {
        let ([mut one, two], woken) = pair();
        let woken = |at: usize| woken[at].load(Ordering::Relaxed);
        let all = 2 * MAILBOX_LEN as u64 + 10;
        (0..all).for_each(|ticket| one.post(1, Message::Recorded { ticket }));
        let mut heard = read(&two);
        assert_eq!(heard.len(), MAILBOX_LEN, "no more than a mailbox holds");
        assert_eq!(woken(0), 1, "there is room");
        // There is room, and others wait before this one.
        one.post(1, Message::Recorded { ticket: all });
        assert_eq!(read(&two), []);
        while heard.len() <= all as usize {
            one.pump();
            let more = read(&two);
            assert!(!more.is_empty() && more.len() <= MAILBOX_LEN);
            heard.extend(more);
        }
        assert_eq!(heard, (0..=all).collect::<Vec<_>>());
        let room = woken(0);
        one.pump();
        assert!(read(&two).is_empty());
        assert_eq!(woken(0), room, "nobody waits any more");
    }
}
