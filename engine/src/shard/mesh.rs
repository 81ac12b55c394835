//! What the shards of one engine share, and how they talk to each other.
//!
//! Shards share no listing, no connection, no buffer and no file: each of these has one owner, and what
//! another wants of it is a message. A mailbox is bounded; what finds it full waits, in order, with its
//! sender, who is woken when there is room. A message wakes its receiver only when that one sleeps and
//! has not been woken yet. In an engine of one shard none of this is ever touched.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use ringseed_core::wire::{Handshake, Link, PeerId, WireId};

use super::catalogue::Names;
use super::command::CommandQueue;
use super::limits::Limiter;
use super::peer::{CloseReason, Who};
use super::stripes::{Help, StripeNews};
use crate::api::{ListingId, Rates};
use crate::io::MovedSock;
use crate::store::Recovered;
use crate::store::journal::{JournalSlots, Record};

/// Messages that wait for a shard at most; what comes then waits with its sender.
pub(super) const MAILBOX_LEN: usize = 1024;

/// The shard that accepts connections, knows all addresses, and writes the journal.
pub(super) const FIRST: usize = 0;

/// What one shard tells another.
#[derive(Debug)]
pub(super) enum Message {
    /// A connection that wants a listing of the receiver.
    Conn(Box<MovedConn>),
    /// To the door: a connection that had been moved is gone.
    Left {
        /// Where it came from.
        ip: IpAddr,
        /// What it did.
        fault: Fault,
    },
    /// To the journal: records, in their order. With a ticket, the sender waits for all it has sent so far
    /// to be durable.
    Records { from: usize, records: Vec<Record>, ticket: Option<u64> },
    /// From the journal: everything up to the ticket is durable.
    Recorded { ticket: u64 },
    /// From the journal: it is lost, and nothing is durable from here on.
    JournalLost,
    /// Somebody sent what cannot be honest.
    Banned { who: Who, until: Instant },
    /// About a listing that several shards have a part in.
    Stripe { from: usize, listing: ListingId, news: StripeNews },
    /// All places of the engine are taken: a connection over which nothing moves is to give way.
    Displace,
}

/// A connection between two shards: it has shaken hands, nothing of it is in flight, and what it has
/// sent already is in its link.
#[derive(Debug)]
pub(super) struct MovedConn {
    pub addr: SocketAddr,
    pub link: Link,
    pub handshake: Handshake,
    /// Listings that it may want, the likeliest first; the receiver has the first one.
    pub candidates: VecDeque<ListingId>,
    /// It comes for a listing of another shard, in which the receiver is to have a part.
    pub help: Option<Arc<Help>>,
    /// In the hands of neither driver; `None` while it is still being given up.
    pub sock: Option<MovedSock>,
}

/// What the end of a connection says of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// It was slow, or in the way.
    Slow,
    /// It broke a rule.
    Breach,
}

impl Fault {
    /// What a reason says of the peer's address.
    pub fn of(reason: &CloseReason) -> Fault {
        match (reason.is_breach(), reason.is_hostile()) {
            (true, _) => Fault::Breach,
            (false, true) => Fault::Slow,
            (false, false) => Fault::None,
        }
    }
}

/// One shard as the others see it.
#[derive(Debug, Default)]
struct Mailbox {
    messages: VecDeque<Message>,
    /// Shards that wait for room.
    waiting: Vec<usize>,
}

/// What the shards of an engine share. Whoever owns a part of it says so.
pub struct Mesh {
    queues: Vec<Arc<CommandQueue>>,
    mailboxes: Vec<Mutex<Mailbox>>,
    /// What the journal believes of listings that nobody has added yet in this run.
    recovered: Mutex<Recovered>,
    slots: JournalSlots,
    /// Names on the wire of all listings; empty where there is one shard, which has its own.
    directory: RwLock<Names>,
    /// Listings that several shards have a part in, or had.
    striped: RwLock<BTreeSet<ListingId>>,
    /// Connections of all shards.
    conn_count: AtomicUsize,
    /// Shards that have not stopped.
    running: AtomicUsize,
    /// A shard has stopped before all it did was settled.
    is_unclean: AtomicBool,
    /// The caps on payload, over all shards: divided among them, the only one with peers would get its
    /// part and no more.
    limiter: Limiter,
    /// Connections that went from one shard to another.
    moved: AtomicU64,
}

impl Mesh {
    /// For the shards behind these queues. `recovered` and `slots` are what the journal gave.
    pub fn new(
        queues: Vec<Arc<CommandQueue>>,
        recovered: Recovered,
        slots: JournalSlots,
        seed: u64,
        rates: Rates,
    ) -> Arc<Mesh> {
        assert!(!queues.is_empty(), "an engine has a shard");
        Arc::new(Mesh {
            mailboxes: queues.iter().map(|_| Mutex::default()).collect(),
            running: AtomicUsize::new(0),
            queues,
            recovered: Mutex::new(recovered),
            slots,
            directory: RwLock::new(Names::new(seed.rotate_left(29))),
            striped: RwLock::default(),
            conn_count: AtomicUsize::new(0),
            is_unclean: AtomicBool::new(false),
            limiter: Limiter::new(rates),
            moved: AtomicU64::new(0),
        })
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> usize {
        self.queues.len()
    }

    /// The shard that a listing belongs to: its id says so, see [`Mesh::id_of`].
    pub fn home_of(&self, listing: ListingId) -> usize {
        (listing.0 % self.queues.len() as u64) as usize
    }

    /// The id that belongs to `shard` and is the `number`th there, counted from 1. One shard counts 1, 2, 3.
    pub fn id_of(&self, shard: usize, number: u64) -> ListingId {
        ListingId(number * self.queues.len() as u64 + shard as u64)
    }

    /// Whether several shards have a part in a listing, or had.
    pub fn is_striped(&self, listing: ListingId) -> bool {
        let striped = self.striped.read().unwrap_or_else(PoisonError::into_inner);
        striped.contains(&listing)
    }

    pub(super) fn set_striped(&self, listing: ListingId, is_striped: bool) {
        let mut striped = self.striped.write().unwrap_or_else(PoisonError::into_inner);
        match is_striped {
            true => striped.insert(listing),
            false => striped.remove(&listing),
        };
    }

    /// The shard that serves a peer's connection of this number: those of one peer go round.
    pub(super) fn place_of(&self, peer_id: &PeerId, lane: u8) -> usize {
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let hash = peer_id.0.iter().fold(0xcbf2_9ce4_8422_2325, mix) >> 32;
        ((hash + u64::from(lane)) % self.queues.len() as u64) as usize
    }

    /// Connections that were moved from the shard that accepted them.
    pub fn moved_count(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Listings of any shard that may have the name.
    pub(crate) fn find_name(&self, name: &WireId) -> Vec<ListingId> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).find(name).collect()
    }

    pub(super) fn is_alone(&self) -> bool {
        self.queues.len() == 1
    }

    pub(super) fn slots(&self) -> JournalSlots {
        self.slots.clone()
    }

    /// Puts a message into a mailbox; gives it back when that is full, and has `from` woken when it is not.
    pub(super) fn try_send(&self, from: usize, to: usize, message: Message) -> Result<(), Message> {
        let mut mailbox = lock(&self.mailboxes[to]);
        if mailbox.messages.len() >= MAILBOX_LEN {
            if !mailbox.waiting.contains(&from) {
                mailbox.waiting.push(from);
            }
            return Err(message);
        }
        let is_first = mailbox.messages.is_empty();
        mailbox.messages.push_back(message);
        drop(mailbox);
        if is_first {
            self.queues[to].wake();
        }
        Ok(())
    }

    /// Takes what waits for a shard.
    pub(super) fn take(&self, shard: usize) -> VecDeque<Message> {
        if self.is_alone() {
            return VecDeque::new();
        }
        let mut mailbox = lock(&self.mailboxes[shard]);
        let waiting = std::mem::take(&mut mailbox.waiting);
        let messages = std::mem::take(&mut mailbox.messages);
        drop(mailbox);
        waiting.into_iter().for_each(|sender| self.queues[sender].wake());
        messages
    }

    /// Whether a message waits for a shard.
    pub(crate) fn has_mail(&self, shard: usize) -> bool {
        !self.is_alone() && !lock(&self.mailboxes[shard]).messages.is_empty()
    }

    pub(super) fn learn_name(&self, name: &WireId, listing: ListingId) {
        if !self.is_alone() {
            let mut names = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            if !names.find(name).any(|id| id == listing) {
                names.insert(name, listing);
            }
        }
    }

    pub(super) fn forget_name(&self, name: &WireId, listing: ListingId) {
        if !self.is_alone() {
            let mut names = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            names.remove(name, listing);
        }
    }

    pub(super) fn recovered(&self) -> MutexGuard<'_, Recovered> {
        lock(&self.recovered)
    }

    /// The caps on payload.
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Connections of all shards.
    pub(super) fn conn_count(&self) -> usize {
        self.conn_count.load(Ordering::Relaxed)
    }

    pub(super) fn conn_opened(&self) {
        self.conn_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn conn_closed(&self) {
        self.conn_count.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn count_moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// A shard has been made.
    pub(super) fn started(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    /// A shard has stopped, or died.
    pub(super) fn stopped(&self, is_clean: bool) {
        if !is_clean {
            self.is_unclean.store(true, Ordering::Release);
        }
        self.running.fetch_sub(1, Ordering::AcqRel);
        self.queues[FIRST].wake();
    }

    /// Whether the first shard is the last one, and all others have stopped with nothing left to do.
    pub(super) fn others_stopped(&self) -> Option<bool> {
        let is_last = self.running.load(Ordering::Acquire) <= 1;
        is_last.then(|| !self.is_unclean.load(Ordering::Acquire))
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("shards", &self.queues.len()).finish_non_exhaustive()
    }
}

/// Plain values, whole even if a holder of the lock panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
