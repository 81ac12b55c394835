//! A huge listing on all shards: each fetches pieces of its own over its own connections, and each can
//! serve all of it.
//!
//! The listing's home asks the other shards for help ([`Help`]); each makes an entry of its own under the
//! same id, with connections, buffers and files of its own, and dials the same addresses. Which pieces it
//! fetches it takes from one table ([`Stripes`]), a chunk at a time, beginning with its own range: so a
//! shard whose peers are slow, or that has none, takes little, and nothing hangs on it. Pieces that one
//! shard has written all others may serve; only the home syncs them, claims them in the journal, and
//! speaks for the listing to the program.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringseed_core::bitfield::Bitfield;
use ringseed_core::geometry::{EXTENT_LEN_MAX, FileIndex, Geometry, PieceIndex};
use ringseed_core::metainfo::Metainfo;
use ringseed_core::wire::Handshake;
use ringseed_sys::arena::EXTENT_LEN_BYTES;
use ringseed_sys::dir::DirHandle;

use super::Shard;
use super::listing::{Active, Stage};
use super::mesh::Message;
use super::peer::{CloseReason, Conn, ConnId, lane_of};
use super::timers::Timer;
use crate::api::{Identity, ListingError, ListingId, Place, SourceStatus};
use crate::store::RunSet;
use crate::store::journal::JournalSlot;

/// A file's part in a stripe must begin where a sector does, or two shards would write into one.
const SECTOR_LEN: u64 = 4096;
/// Most connections of all shards together to one address for one listing.
const LANES_MAX: usize = 64;
/// A helper writes the leaves of so many pieces at once.
const LEAVES_FLUSHED_EVERY: u32 = 32;
/// A shard that has had nothing to fetch for so long asks for what others have begun as well.
const HUNGRY_AFTER: Duration = Duration::from_secs(2);

/// Who fetches what of a listing: shared by all shards that do.
#[derive(Debug)]
pub(super) struct Stripes {
    /// Missing pieces that no shard has taken.
    free: Mutex<RunSet>,
    shards: usize,
    chunk_pieces: u32,
}

impl Stripes {
    fn new(free: RunSet, shards: usize, geometry: &Geometry, arena_len_bytes: usize) -> Self {
        let piece_len = u64::from(geometry.piece_len_nominal());
        // So much that buffers never wait for the table, and an eighth of a shard's range at most, so
        // that none is left with much when the others are done.
        let part = geometry.total_len() / (8 * shards as u64);
        let chunk = part.min(arena_len_bytes as u64).div_ceil(piece_len).max(1);
        let chunk_pieces = u32::try_from(chunk).unwrap_or(u32::MAX);
        Stripes { free: Mutex::new(free), shards, chunk_pieces }
    }

    fn free(&self) -> MutexGuard<'_, RunSet> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a chunk of pieces for a shard, of those that its peers have: from the beginning of its own
    /// range on, then from the ranges of others.
    fn claim(&self, shard: usize, has: &Bitfield, geometry: &Geometry) -> Vec<PieceIndex> {
        let count = u64::from(geometry.piece_count());
        let begin = (count * shard as u64 / self.shards as u64) as u32;
        let mut free = self.free();
        let runs: Vec<(u32, u32)> = free.runs().collect();
        let behind = runs.iter().map(|&(first, len)| (first.max(begin), first + len));
        let before = runs.iter().map(|&(first, len)| (first, (first + len).min(begin)));
        let is_had = |&piece: &PieceIndex| has.get(piece);
        let taken: Vec<PieceIndex> = behind
            .chain(before)
            .flat_map(|(from, to)| from..to.max(from))
            .filter_map(|piece| geometry.piece(piece).ok())
            .filter(is_had)
            .take(self.chunk_pieces as usize)
            .collect();
        taken.iter().for_each(|piece| free.remove(piece.get(), 1));
        taken
    }

    fn give_back(&self, pieces: &RunSet) {
        let mut free = self.free();
        pieces.runs().for_each(|(first, count)| free.insert(first, count));
    }

    fn take_out(&self, pieces: &RunSet) {
        let mut free = self.free();
        pieces.runs().for_each(|(first, count)| free.remove(first, count));
    }
}

/// One shard's part in a listing that several serve.
#[derive(Debug)]
pub(super) struct Stripe {
    pub shared: Arc<Stripes>,
    /// The listing's home is another shard.
    pub is_helper: bool,
    /// Missing pieces that this shard does not fetch.
    pub elsewhere: Bitfield,
    /// It has told the others that it has nothing to do.
    is_hungry: bool,
    /// Of the home: helpers that may not have heard yet of a sync that failed.
    doubted: BTreeMap<usize, u32>,
}

/// What a shard needs to help with a listing of another.
#[derive(Debug)]
pub(super) struct Help {
    pub id: ListingId,
    metainfo: Arc<Metainfo>,
    place: Place,
    root: Arc<DirHandle>,
    verify_v1: bool,
    journal_slot: Option<JournalSlot>,
    have: Bitfield,
    peers: Vec<SocketAddr>,
    shared: Arc<Stripes>,
}

/// What shards tell each other of a listing that they share. All of it may come to one that has no part
/// in the listing, and is nothing to it.
#[derive(Clone, Debug)]
pub(super) enum StripeNews {
    /// From the home: have a part in it.
    Help(Arc<Help>),
    /// From the home: the addresses to dial have changed; or others were named by somebody else.
    Peers { peers: Vec<SocketAddr>, are_found: bool },
    /// Pieces are verified and written.
    Stored(RunSet),
    /// Pieces turned out not to be there.
    Lost(RunSet),
    /// From the home: a sync has failed, and what is being written may be lost with it. Answered by
    /// [`StripeNews::Doubted`].
    Doubt,
    /// To the home: what is told stored from here on was written behind that, or read back.
    Doubted,
    /// From the home: all of it is durable.
    Whole,
    /// The sender has nothing to fetch. After long it takes what others have begun, too.
    Hungry { is_urgent: bool },
    /// There are pieces in the table again.
    Freed,
    /// It cannot be had: from a helper to the home, and from the home to all.
    Failed(ListingError),
    /// From the home: it is to be removed. Answered by [`StripeNews::Left`].
    Leave,
    /// To the home: the sender has no part in it any more, or never had; what it did.
    Left(Box<Ledger>),
}

/// What a shard did for a listing of another.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    sent_bytes: u64,
    wasted_bytes: u64,
    sources: Vec<SourceStatus>,
}

/// Removals that wait until no other shard has a part in the listing: how many have, and whether the
/// data goes as well.
pub(super) type Leaving = BTreeMap<ListingId, (usize, bool)>;

/// How many connections each of `own` shards makes to one address where `theirs` shards serve: so many
/// that every shard of either side has as many as every other.
fn lanes_to(own: usize, theirs: usize) -> usize {
    let (mut a, mut b) = (own, theirs);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (theirs / a).min(LANES_MAX / own).max(1)
}

impl Active {
    /// Another shard is its home.
    pub fn is_helper(&self) -> bool {
        self.stripe.as_ref().is_some_and(|stripe| stripe.is_helper)
    }

    /// A missing piece is another shard's to fetch.
    fn is_elsewhere(&self, piece: PieceIndex) -> bool {
        self.stripe.as_ref().is_some_and(|stripe| stripe.elsewhere.get(piece))
    }

    /// Takes a piece upon this shard.
    fn take_upon(&mut self, piece: PieceIndex) {
        let Some(stripe) = &mut self.stripe else { return };
        if stripe.elsewhere.clear(piece) && !self.have.get(piece) {
            self.done.clear(piece);
            self.requests.piece_lost(piece);
        }
    }

    /// Leaves a missing piece to others.
    fn leave_to_others(&mut self, piece: PieceIndex) {
        let Some(stripe) = &mut self.stripe else { return };
        stripe.elsewhere.set(piece);
        self.done.set(piece);
        self.requests.piece_done(piece);
    }
}

impl Shard {
    /// Whether a listing is worth all shards, and can be cut.
    fn can_stripe(&self, active: &Active) -> bool {
        let Some(geometry) = active.geometry() else { return false };
        let holds_data = |file: &FileIndex| !geometry.is_pad(*file) && geometry.file_len(*file) > 0;
        let begins_at_sector =
            |file: FileIndex| geometry.file_offset(file).is_multiple_of(SECTOR_LEN);
        !self.seat.mesh.is_alone()
            && self.seat.mesh.home_of(active.id) == self.seat.index
            && geometry.total_len() >= self.config.stripe_min_bytes
            // So that no buffer is two shards'.
            && geometry.piece_len_nominal().is_multiple_of(EXTENT_LEN_MAX)
            && active.select.is_none()
            && geometry.files().filter(holds_data).all(begins_at_sector)
    }

    /// Lets other shards have a part in a listing of this one, if it is huge.
    pub(super) fn begin_stripes(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let is_running = active.stage == Stage::Running;
        if active.stripe.is_some() || !is_running || !self.can_stripe(active) {
            return;
        }
        let Some(geometry) = active.geometry().cloned() else { return };
        let shards = self.seat.mesh.shard_count();
        let arena_len_bytes = self.arena.capacity() * EXTENT_LEN_BYTES;
        let is_wanting = active.is_wanting();
        let Some(active) = self.active.get_mut(&listing) else { return };
        let missing: RunSet = active.done.iter_missing().map(PieceIndex::get).collect();
        let free = if is_wanting { missing } else { RunSet::default() };
        let shared = Arc::new(Stripes::new(free, shards, &geometry, arena_len_bytes));
        let mut elsewhere = Bitfield::new(geometry.piece_count());
        if is_wanting {
            let missing: Vec<PieceIndex> = active.done.iter_missing().collect();
            for piece in missing {
                elsewhere.set(piece);
                active.done.set(piece);
            }
        }
        active.stripe = Some(Stripe {
            shared,
            is_helper: false,
            elsewhere,
            is_hungry: false,
            doubted: BTreeMap::new(),
        });
        self.seat.mesh.set_striped(listing, true);
        tracing::info!(listing = listing.0, shards, "every shard has a part in the listing");
        if is_wanting {
            // Its records must be in the journal before any of theirs.
            self.journal_slot(listing);
            self.helps_due.insert(listing);
        }
    }

    /// Asks for help where it is due. What the helpers write to the journal names a slot that this shard
    /// has drawn: its record must be on its way before.
    pub(super) fn pump_helps(&mut self) {
        if self.helps_due.is_empty() && self.leaves_due.is_empty() {
            return;
        }
        self.pump_journal();
        if !self.seat.is_mail_out() {
            return;
        }
        for listing in std::mem::take(&mut self.helps_due) {
            if let Some(help) = self.help_of(listing) {
                self.tell_stripes(listing, &StripeNews::Help(help));
            }
        }
        for (listing, ledger) in std::mem::take(&mut self.leaves_due) {
            let to = self.seat.mesh.home_of(listing);
            let (from, news) = (self.seat.index, StripeNews::Left(ledger));
            self.send_message(to, Message::Stripe { from, listing, news });
        }
    }

    fn help_of(&mut self, listing: ListingId) -> Option<Arc<Help>> {
        let journal_slot = self.journal_slot(listing);
        let active = self.active.get(&listing)?;
        Some(Arc::new(Help {
            id: listing,
            metainfo: active.metainfo.clone()?,
            place: active.place.clone(),
            root: active.root.clone(),
            verify_v1: active.verify_v1,
            journal_slot,
            have: active.stored.clone(),
            peers: active.dialer.given(),
            shared: active.stripe.as_ref()?.shared.clone(),
        }))
    }

    pub(super) fn tell_stripes(&mut self, listing: ListingId, news: &StripeNews) {
        let from = self.seat.index;
        self.send_to_others(|| Message::Stripe { from, listing, news: news.clone() });
    }

    /// The addresses of a listing have changed: for all who have a part in it.
    pub(super) fn tell_peers(&mut self, listing: ListingId, peers: &[SocketAddr], are_found: bool) {
        if self.active.get(&listing).is_some_and(|active| active.stripe.is_some()) {
            let news = StripeNews::Peers { peers: peers.to_vec(), are_found };
            self.tell_stripes(listing, &news);
        }
    }

    /// What another shard says of a listing.
    pub(super) fn handle_stripe_news(&mut self, from: usize, listing: ListingId, news: StripeNews) {
        match news {
            StripeNews::Help(help) => {
                self.take_help(&help);
                self.dial_turn(listing);
            }
            StripeNews::Peers { peers, are_found: false } => self.set_peers(listing, peers),
            StripeNews::Peers { peers, are_found: true } => self.found_peers(listing, peers),
            StripeNews::Stored(pieces) => {
                let of = self.active.get(&listing).and_then(|active| active.stripe.as_ref());
                let is_doubted = of.is_some_and(|stripe| stripe.doubted.contains_key(&from));
                self.stored_elsewhere(listing, &pieces, is_doubted);
                if is_doubted {
                    self.pieces_are_unknown(listing, pieces);
                }
            }
            StripeNews::Doubt => {
                if let Some(active) = self.active.get_mut(&listing) {
                    active.doubtful.extend(active.writing.keys());
                }
                let (from, to) = (self.seat.index, from);
                let news = StripeNews::Doubted;
                self.send_message(to, Message::Stripe { from, listing, news });
            }
            StripeNews::Doubted => {
                if let Some(stripe) =
                    self.active.get_mut(&listing).and_then(|active| active.stripe.as_mut())
                {
                    // Every doubt is answered for itself.
                    if let Some(left) = stripe.doubted.get_mut(&from) {
                        *left -= 1;
                    }
                    stripe.doubted.retain(|_, left| *left > 0);
                }
            }
            StripeNews::Lost(pieces) => self.lost_elsewhere(listing, &pieces),
            StripeNews::Whole => {
                let Some(active) = self.active.get(&listing) else { return };
                let missing = active.have.iter_missing().map(PieceIndex::get).collect();
                self.stored_elsewhere(listing, &missing, false);
            }
            StripeNews::Hungry { is_urgent } => self.feed(listing, is_urgent),
            StripeNews::Freed => {
                if let Some(stripe) =
                    self.active.get_mut(&listing).and_then(|active| active.stripe.as_mut())
                {
                    stripe.is_hungry = false;
                    self.planning.insert(listing);
                }
            }
            StripeNews::Failed(error) => {
                let is_helper = self.active.get(&listing).is_some_and(Active::is_helper);
                self.fail_listing(listing, error);
                if is_helper {
                    self.leave_stripe(listing);
                }
            }
            StripeNews::Leave => {
                let ledger = Box::new(self.leave_stripe(listing).unwrap_or_default());
                self.leaves_due.push((listing, ledger));
            }
            StripeNews::Left(ledger) => self.helper_left(listing, &ledger),
        }
    }

    /// Makes an entry for a listing of another shard.
    fn take_help(&mut self, help: &Help) {
        if self.active.contains_key(&help.id) || self.is_stopping {
            return;
        }
        let identity = Identity::Metainfo(help.metainfo.clone());
        let (place, root) = (help.place.clone(), help.root.clone());
        let mut active = Active::new(help.id, &identity, place, root, help.verify_v1, None, None);
        let mut elsewhere = Bitfield::full(help.have.piece_count());
        for piece in help.have.iter_set() {
            active.set_have(piece);
            elsewhere.clear(piece);
        }
        active.stored = active.have.clone();
        active.durable = active.have.clone();
        elsewhere.iter_set().for_each(|piece| {
            active.done.set(piece);
        });
        let shared = help.shared.clone();
        active.stripe = Some(Stripe {
            shared,
            is_helper: true,
            elsewhere,
            is_hungry: false,
            doubted: BTreeMap::new(),
        });
        active.journal_slot = help.journal_slot;
        active.are_touches_sent = true;
        active.stage = Stage::Running;
        active.is_complete_told = active.is_complete();
        self.active.insert(help.id, active);
        self.helping += 1;
        self.count_listings();
        self.set_peers(help.id, help.peers.clone());
        self.begin_stage(help.id);
        self.timers.set(self.now + self.config.idle_before_cold, Timer::Evict(help.id));
    }

    /// Gives up the part in a listing of another shard; what was done for it.
    fn leave_stripe(&mut self, listing: ListingId) -> Option<Ledger> {
        if !self.active.get(&listing).is_some_and(Active::is_helper) {
            return None;
        }
        self.let_go(listing, true);
        self.flush_leaves(listing);
        self.forget_active(listing);
        let active = self.active.remove(&listing)?;
        self.filling -= active.assembler.held_len();
        self.helping -= 1;
        self.count_listings();
        let (sent_bytes, wasted_bytes) = (active.sent_bytes, active.wasted_bytes);
        let sources = active.status().sources;
        Some(Ledger { sent_bytes, wasted_bytes, sources })
    }

    /// A helper without peers has nothing to do; the next connection makes it anew.
    pub(super) fn evict_helper(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let is_busy =
            !active.conns.is_empty() || active.check.is_some() || !active.writing.is_empty();
        if is_busy || !active.is_all(&active.durable) {
            self.timers.set(self.now + self.config.idle_before_cold, Timer::Evict(listing));
            return;
        }
        if let Some(ledger) = self.leave_stripe(listing) {
            self.leaves_due.push((listing, Box::new(ledger)));
        }
    }

    /// A helper has left: what it did is the listing's.
    fn helper_left(&mut self, listing: ListingId, ledger: &Ledger) {
        if let Some(active) = self.active.get_mut(&listing) {
            active.sent_bytes += ledger.sent_bytes;
            active.wasted_bytes += ledger.wasted_bytes;
            for source in &ledger.sources {
                active.add_source(source);
            }
        } else if let Some(row) = self.rows.get_mut(listing) {
            row.sent_bytes += ledger.sent_bytes;
            row.wasted_bytes += ledger.wasted_bytes;
        }
        let Some((left, delete_data)) = self.leaving.get_mut(&listing) else { return };
        *left -= 1;
        if *left == 0 {
            let delete_data = *delete_data;
            self.leaving.remove(&listing);
            self.seat.mesh.set_striped(listing, false);
            self.remove_listing(listing, delete_data);
        }
    }

    /// A listing is to be removed. True: others have a part in it, and must leave first, because nothing may
    /// be written to a file or to the journal behind its removal.
    pub(super) fn must_wait_for_helpers(&mut self, listing: ListingId, delete_data: bool) -> bool {
        if !self.seat.mesh.is_striped(listing) {
            return false;
        }
        if let Some((_, delete)) = self.leaving.get_mut(&listing) {
            *delete |= delete_data;
            return true;
        }
        self.leaving.insert(listing, (self.seat.mesh.shard_count() - 1, delete_data));
        self.helps_due.remove(&listing);
        self.tell_stripes(listing, &StripeNews::Leave);
        true
    }

    /// Takes more pieces upon this shard when it has little left to fetch and somebody to fetch it from.
    pub(super) fn claim_pieces(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let (Some(stripe), Some(geometry)) = (&active.stripe, active.geometry()) else { return };
        let left = active.done.piece_count() - active.done.count();
        if left >= stripe.shared.chunk_pieces {
            return;
        }
        let mut has = Bitfield::new(active.done.piece_count());
        for channel in active.conns.iter().filter_map(|id| self.conns.get(id)?.channel()) {
            if let Some(theirs) = channel.peer_has().filter(|_| !channel.peer_choking()) {
                has.or_with(theirs);
            }
        }
        let is_sourced = has.has_beyond(&active.have);
        let taken = stripe.shared.claim(self.seat.index, &has, geometry);
        let is_hungry = stripe.is_hungry;
        let Some(active) = self.active.get_mut(&listing) else { return };
        if taken.is_empty() {
            if left == 0 && is_sourced && !is_hungry {
                if let Some(stripe) = &mut active.stripe {
                    stripe.is_hungry = true;
                }
                self.tell_stripes(listing, &StripeNews::Hungry { is_urgent: false });
                self.timers.set(self.now + HUNGRY_AFTER, Timer::Hungry(listing));
            }
            return;
        }
        taken.into_iter().for_each(|piece| active.take_upon(piece));
        if let Some(stripe) = &mut active.stripe {
            stripe.is_hungry = false;
        }
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        conns.into_iter().for_each(|id| self.show_interest(id, listing));
    }

    /// Nothing has come for a while: what others have begun is fetched here as well. Whoever has it first
    /// tells the other.
    pub(super) fn still_hungry(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let is_hungry = active.stripe.as_ref().is_some_and(|stripe| stripe.is_hungry);
        if is_hungry && active.is_fetching() {
            self.tell_stripes(listing, &StripeNews::Hungry { is_urgent: true });
            self.timers.set(self.now + HUNGRY_AFTER, Timer::Hungry(listing));
        }
    }

    /// Another shard has nothing to fetch: half of what is not begun here is put back into the table, and
    /// all of it when nobody sends anything here.
    fn feed(&mut self, listing: ListingId, is_urgent: bool) {
        let Some(active) = self.active.get(&listing) else { return };
        let mut channels = active.conns.iter().filter_map(|id| self.conns.get(id)?.channel());
        let is_idle = channels.all(|channel| channel.peer_choking());
        self.let_go(listing, is_idle);
        if !is_urgent {
            return;
        }
        let Some(active) = self.active.get(&listing) else { return };
        let Some(stripe) = &active.stripe else { return };
        let begun: RunSet = active.done.iter_missing().map(PieceIndex::get).collect();
        if !begun.is_empty() {
            stripe.shared.give_back(&begun);
            self.tell_stripes(listing, &StripeNews::Freed);
        }
    }

    /// Puts pieces back into the table that are not begun: half of them, or all.
    pub(super) fn let_go(&mut self, listing: ListingId, is_all: bool) {
        if self.active.get(&listing).is_none_or(|active| active.stripe.is_none()) {
            return;
        }
        if is_all {
            self.give_up_fills(listing);
        }
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let is_begun = |piece: &PieceIndex| {
            geometry.extents_of_piece(*piece).any(|extent| active.assembler.is_filling(extent))
        };
        let idle: Vec<PieceIndex> =
            active.done.iter_missing().filter(|piece| !is_begun(piece)).collect();
        let keep = if is_all { 0 } else { idle.len().div_ceil(2) };
        let Some(stripe) = active.stripe.as_ref().filter(|_| idle.len() > keep) else { return };
        let given: RunSet = idle[keep..].iter().map(|piece| piece.get()).collect();
        let shared = stripe.shared.clone();
        idle[keep..].iter().for_each(|&piece| active.leave_to_others(piece));
        shared.give_back(&given);
        self.tell_stripes(listing, &StripeNews::Freed);
    }

    /// A connection is gone. When it was the last that sent anything, others fetch what it was to bring.
    pub(super) fn let_go_without_source(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing).filter(|active| active.stripe.is_some())
        else {
            return;
        };
        let mut channels = active.conns.iter().filter_map(|id| self.conns.get(id)?.channel());
        if channels.all(|channel| channel.peer_choking()) {
            self.let_go(listing, true);
        }
    }

    /// A piece is verified and written here: the others serve it, too.
    pub(super) fn share_stored(&mut self, listing: ListingId, piece: u32) {
        let Some(active) = self.active.get(&listing) else { return };
        let Some(stripe) = &active.stripe else { return };
        let pieces: RunSet = std::iter::once(piece).collect();
        // It may be in the table again, for somebody who was in a hurry.
        stripe.shared.take_out(&pieces);
        self.tell_stripes(listing, &StripeNews::Stored(pieces));
    }

    /// A sync of this shard has failed. What helpers have written until they hear of it may be lost as well,
    /// and the next sync would not say so: it is read back.
    pub(super) fn doubt_helpers(&mut self, listing: ListingId) {
        let (own, shards) = (self.seat.index, self.seat.mesh.shard_count());
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(stripe) = active.stripe.as_mut().filter(|stripe| !stripe.is_helper) else {
            return;
        };
        for helper in (0..shards).filter(|&shard| shard != own) {
            *stripe.doubted.entry(helper).or_default() += 1;
        }
        self.tell_stripes(listing, &StripeNews::Doubt);
    }

    /// A helper has written a piece: its home has been told, and makes it durable.
    pub(super) fn leave_commit_to_home(&mut self, listing: ListingId, piece: u32) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        if let Ok(piece) = geometry.piece(piece) {
            active.durable.set(piece);
        }
        // Where there is no batch there is no other occasion.
        if piece.is_multiple_of(LEAVES_FLUSHED_EVERY) || active.have.is_full() {
            self.flush_leaves(listing);
        }
    }

    /// Other shards have written pieces.
    fn stored_elsewhere(&mut self, listing: ListingId, pieces: &RunSet, is_doubted: bool) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let (Some(geometry), true) = (active.geometry().cloned(), active.stripe.is_some()) else {
            return;
        };
        let mut news = RunSet::default();
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            let Some(active) = self.active.get_mut(&listing) else { return };
            // Whole here as well: its own verdict comes in a moment.
            if active.have.get(piece) || active.assembler.is_whole(piece) {
                continue;
            }
            active.set_have(piece);
            active.stored.set(piece);
            active.requests.piece_done(piece);
            active.assembler.found(&geometry, piece);
            if active.is_helper() {
                active.durable.set(piece);
            }
            active.unannounced.insert(piece.get());
            let is_home = !active.is_helper();
            news.insert(piece.get(), 1);
            if is_home && !is_doubted {
                self.commit_for_helper(listing, piece);
            }
        }
        self.announce(listing, &news);
        self.planning.insert(listing);
        self.look_whether_complete(listing);
    }

    /// Another shard had pieces that turned out not to be there; it fetches them again.
    fn lost_elsewhere(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let mut lost = RunSet::default();
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            let Some(active) = self.active.get_mut(&listing) else { return };
            if !active.have.get(piece) || active.stripe.is_none() {
                continue;
            }
            active.clear_have(piece);
            active.leave_to_others(piece);
            lost.insert(piece.get(), 1);
            let extents: Vec<_> = geometry.extents_of_piece(piece).collect();
            self.forget_bytes(listing, &extents, piece.get());
        }
        if !lost.is_empty() {
            self.commit.take_back(listing, &lost);
            self.withdraw(listing, &lost);
            self.begin_stage(listing);
        }
    }

    /// Pieces turned out not to be there: this shard looks after them, the others stop serving them.
    pub(super) fn share_lost(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.stripe.is_none() {
            return;
        }
        let Some(geometry) = active.geometry().cloned() else { return };
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            if active.is_elsewhere(piece) {
                active.take_upon(piece);
            }
        }
        self.tell_stripes(listing, &StripeNews::Lost(pieces.clone()));
    }

    /// An incoming connection for a listing of this shard goes to another that serves it as well, in turn.
    /// True: it is on its way.
    pub(super) fn spread(&mut self, id: ConnId, listing: ListingId, handshake: Handshake) -> bool {
        if self.seat.mesh.is_alone() || self.conns.get(&id).is_none_or(|conn| conn.is_dialled) {
            return false;
        }
        if self.leaving.contains_key(&listing) {
            self.close_conn(id, CloseReason::Gone);
            return true;
        }
        self.begin_stripes(listing);
        let Some(active) = self.active.get(&listing) else { return false };
        let can_be_shared = active.stage == Stage::Running && active.journal_slot.is_some();
        if active.stripe.is_none() || active.is_helper() || !can_be_shared {
            return false;
        }
        let to = self.seat.mesh.place_of(&handshake.peer_id, lane_of(&handshake));
        if to == self.seat.index || self.helps_due.contains(&listing) {
            return false;
        }
        let Some(help) = self.help_of(listing) else { return false };
        self.move_conn(id, handshake, to, [listing].into(), Some(help));
        true
    }

    /// Takes part in a listing for the sake of a connection that comes for it.
    pub(super) fn help_conn(&mut self, help: &Help) {
        self.take_help(help);
    }

    /// A node of ours has answered a dial and said how many shards it has: more connections, so that each
    /// of them has as many as every other.
    pub(super) fn widen(&mut self, id: ConnId, listing: ListingId, handshake: &Handshake) {
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.is_dialled) else { return };
        let addr = conn.addr;
        let own = self.seat.mesh.shard_count();
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.stripe.is_none() || !handshake.peer_id.is_ours() || !active.is_fetching() {
            return;
        }
        let theirs = usize::from(handshake.reserved.shards()).max(1);
        active.dialer.widen(addr, lanes_to(own, theirs), self.now);
        self.dial_turn(listing);
    }

    /// Connections that a listing may have here.
    pub(super) fn peers_per_listing_max(&self, active: &Active) -> usize {
        let all = self.config.peers_per_listing_max as usize;
        match &active.stripe {
            Some(stripe) => (all / stripe.shared.shards).max(1),
            None => all,
        }
    }

    /// The number of a connection of ours among those to the same address: which shard's, and which of its.
    pub(super) fn lane_of(&self, turn: u8) -> u8 {
        let lane = self.seat.index + usize::from(turn) * self.seat.mesh.shard_count();
        u8::try_from(lane).unwrap_or(u8::MAX)
    }

    /// Which of this shard's connections to an address this one is.
    pub(super) fn turn_of(&self, conn: &Conn) -> u8 {
        (usize::from(conn.lane) / self.seat.mesh.shard_count()) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_of_either_side_gets_as_many_connections() {
        for (own, theirs) in [(4, 4), (4, 3), (3, 4), (4, 2), (2, 4), (1, 4), (4, 1), (8, 6)] {
            let lanes = lanes_to(own, theirs);
            let mut each = vec![0; theirs];
            for shard in 0..own {
                for turn in 0..lanes {
                    each[(shard + turn * own) % theirs] += 1;
                }
            }
            assert!(each.iter().all(|&count| count == each[0]), "{own} to {theirs}: {each:?}");
        }
        assert_eq!(lanes_to(64, 63), 1, "bounded");
    }
}
