//! What is asked of whom: the swarm's plans become requests, and every request has a buffer.
//!
//! An extent is taken from the arena when its first block is *requested*, never later. So whatever a
//! peer may send has a place, and a full arena shows where it costs nothing: requests wait, peers
//! have nothing to send, TCP is idle.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use ringseed_core::bitfield::Bitfield;
use ringseed_core::geometry::{BLOCK_LEN, BlockRef, PieceIndex};
use ringseed_core::swarm::{Budget, PeerInfo, PeerKey, Planned, Swarm};
use ringseed_core::wire::PeerId;
use ringseed_sys::arena::ExtentMut;

use super::blame::Blame;
use super::limits::{Allowance, Way};
use super::listing::{Active, Stage};
use super::peer::{CloseReason, Conn, ConnId};
use super::timers::Timer;
use super::{Job, Shard};
use crate::api::ListingId;

/// Blocks asked for in one plan at most: 8 MiB, what the largest pipeline holds.
const PLAN_BLOCKS: u32 = 512;
/// How long a listing with several addresses waits for them before it takes anything from seeds. Whoever
/// comes first would otherwise take the shares of receivers that connect milliseconds later. With the
/// wait, capped origins sent 1.02 copies on average to three receivers, 1.53 of the worst listing.
const GATHER_MAX: Duration = Duration::from_millis(300);
/// How often buffers of others are looked for while the disk is busy: a walk over all listings, some 50 us
/// with thousands.
const MAKE_ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How long a verified piece may wait for the rest of its extent before it is split off.
const SPLIT_AFTER: Duration = Duration::from_millis(50);

/// The swarm of a listing, while something is missing.
#[derive(Debug, Default)]
pub(super) struct Requests {
    swarm: Option<Swarm>,
    keys: BTreeMap<ConnId, PeerKey>,
    conns: BTreeMap<PeerKey, ConnId>,
    wake_at: Option<Instant>,
    /// When the timer fires that a cap on what is received has set.
    capped_until: Option<Instant>,
    is_split_set: bool,
}

impl Requests {
    /// A piece is verified.
    pub fn piece_done(&mut self, piece: PieceIndex) {
        if let Some(swarm) = &mut self.swarm {
            swarm.handle_piece_verified(piece);
        }
    }

    /// A verified piece is lost.
    pub fn piece_lost(&mut self, piece: PieceIndex) {
        if let Some(swarm) = &mut self.swarm {
            swarm.handle_piece_lost(piece);
        }
    }

    /// Whether slow peers fill a piece together.
    pub fn is_filled_jointly(&self, piece: PieceIndex) -> bool {
        self.swarm.as_ref().is_some_and(|swarm| swarm.is_filled_jointly(piece))
    }

    /// Whether slow peers fill pieces together.
    pub fn has_joint(&self) -> bool {
        self.swarm.as_ref().is_some_and(Swarm::has_joint)
    }

    pub fn with_peer(&mut self, id: ConnId) -> Option<(&mut Swarm, PeerKey)> {
        Some((self.swarm.as_mut()?, *self.keys.get(&id)?))
    }
}

impl Shard {
    /// Begins to fetch what is missing.
    pub(super) fn start_swarm(&mut self, listing: ListingId) {
        let own_id = PeerId(self.config.peer_id);
        let seed = self.next_random();
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.requests.swarm.is_some() || !active.is_wanting() {
            return;
        }
        self.begin_stripes(listing);
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let mut swarm = Swarm::new(geometry, own_id, seed, &active.done);
        if active.dialer.target_count() > 1 {
            swarm.hold_seeds_until(Some(self.now + GATHER_MAX));
        }
        active.requests.swarm = Some(swarm);
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        for id in conns {
            self.swarm_peer(id, listing);
            self.peer_availability(id, listing);
        }
    }

    /// Ends fetching: everything is here.
    pub(super) fn stop_swarm(&mut self, listing: ListingId) {
        if let Some(active) = self.active.get_mut(&listing) {
            active.requests = Requests::default();
            active.blame = Blame::default();
        }
    }

    /// Makes a connection known to the swarm.
    fn swarm_peer(&mut self, id: ConnId, listing: ListingId) {
        let now = self.now;
        let Some(conn) = self.conns.get(&id) else { return };
        let Some(peer_id) = conn.peer_id else { return };
        let lane = conn.lane;
        let Some(channel) = conn.channel() else { return };
        let (choking, requests_max) = (channel.peer_choking(), channel.requests_max());
        let Some(active) = self.active.get_mut(&listing) else { return };
        // What a stripe lacks is no share of the whole: whoever waited for its relays would wait for others.
        let ours = peer_id.is_ours() && active.stripe.is_none();
        // And several connections of one peer bear their burdens each for itself: behind each is a shard.
        let mut peer_id = peer_id;
        if active.stripe.is_some() {
            peer_id.0[19] ^= lane;
        }
        let requests = &mut active.requests;
        let Some(swarm) = &mut requests.swarm else { return };
        if requests.keys.contains_key(&id) {
            return;
        }
        let key = swarm.add_peer(now, PeerInfo { peer_id, ours });
        swarm.set_requests_max(key, requests_max);
        if !choking {
            swarm.handle_unchoked(key);
        }
        channel.allowed_fast().for_each(|piece| swarm.handle_allowed_fast(key, piece));
        requests.keys.insert(id, key);
        requests.conns.insert(key, id);
        if requests.keys.len() >= active.dialer.target_count() {
            swarm.hold_seeds_until(None);
        }
        self.planning.insert(listing);
    }

    /// The peer has said how many requests it queues.
    pub(super) fn set_requests_max(&mut self, id: ConnId, listing: ListingId) {
        let Some(channel) = self.conns.get(&id).and_then(Conn::channel) else { return };
        let requests_max = channel.requests_max();
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.set_requests_max(key, requests_max);
        }
    }

    /// The peer has said what it has.
    pub(super) fn peer_availability(&mut self, id: ConnId, listing: ListingId) {
        self.swarm_peer(id, listing);
        let Some(conn) = self.conns.get(&id) else { return };
        let Some(has) = conn.channel().and_then(|channel| channel.peer_has()) else { return };
        let now = self.now;
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_availability(now, key, has);
        }
        self.planning.insert(listing);
        self.show_interest(id, listing);
        self.check_useful(id, listing);
    }

    /// The peer has one piece more.
    pub(super) fn peer_have(&mut self, id: ConnId, listing: ListingId, piece: PieceIndex) {
        let now = self.now;
        self.swarm_peer(id, listing);
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_have(now, key, piece);
        }
        self.planning.insert(listing);
        self.show_interest(id, listing);
        self.check_useful(id, listing);
    }

    /// The peer has lost a piece.
    pub(super) fn peer_dont_have(&mut self, id: ConnId, listing: ListingId, piece: PieceIndex) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_dont_have(key, piece);
        }
        self.show_interest(id, listing);
    }

    /// The peer answers requests from now on.
    pub(super) fn peer_unchoked(&mut self, id: ConnId, listing: ListingId) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_unchoked(key);
        }
        self.planning.insert(listing);
    }

    /// The peer answers no more requests.
    pub(super) fn peer_choked(&mut self, id: ConnId, listing: ListingId, dropped: &[BlockRef]) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_choked(key, dropped);
            self.has_lost_source = true;
        }
        self.planning.insert(listing);
    }

    /// Looks at every connection again: pieces were lost or found.
    pub(super) fn show_interest_to_all(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        conns.into_iter().for_each(|id| self.show_interest(id, listing));
    }

    /// Tells the peer whether we want something of it.
    pub(super) fn show_interest(&mut self, id: ConnId, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let mut wants =
            active.requests.with_peer(id).is_some_and(|(swarm, key)| swarm.is_interesting(key));
        let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else { return };
        if active.stripe.is_some() && active.is_wanting() {
            // Nothing is taken from the table before somebody would give it.
            wants |= channel.peer_has().is_some_and(|has| has.has_beyond(&active.have));
        }
        if channel.interested() != wants {
            channel.set_interested(wants);
            self.touched.insert(id);
        }
    }

    /// Closes a connection between two complete sides: neither can want anything of the other.
    pub(super) fn check_useful(&mut self, id: ConnId, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let Some(channel) = self.conns.get(&id).and_then(Conn::channel) else { return };
        // Or wants nothing although it is not (BEP 21).
        let wants_nothing = channel.peer_has().is_some_and(Bitfield::is_full)
            || channel.peer_extended().is_some_and(|extended| extended.upload_only);
        if active.stage == Stage::Running && active.is_complete() && wants_nothing {
            self.close_conn(id, CloseReason::Useless);
        }
    }

    /// A request will not be answered.
    pub(super) fn request_failed(&mut self, id: ConnId, listing: ListingId, block: BlockRef) {
        let now = self.now;
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_rejected(now, key, block);
            self.has_lost_source = true;
        }
        self.planning.insert(listing);
    }

    /// A block came: its sender has room, others need not send it.
    pub(super) fn request_answered(&mut self, id: ConnId, listing: ListingId, block: BlockRef) {
        let now = self.now;
        let mut cancels = Vec::new();
        let Some(active) = self.active.get_mut(&listing) else { return };
        if let (Some(swarm), Some(&key)) =
            (&mut active.requests.swarm, active.requests.keys.get(&id))
        {
            swarm.handle_block(now, key, block, &mut self.burden, &mut cancels);
        }
        for (key, block) in cancels {
            let Some(&other) = active.requests.conns.get(&key) else { continue };
            if let Some(channel) = self.conns.get_mut(&other).and_then(Conn::channel_mut) {
                channel.cancel(block);
                self.touched.insert(other);
            }
        }
        self.planning.insert(listing);
    }

    /// The peer has not answered for long: its work goes to others.
    pub(super) fn peer_snubs(&mut self, id: ConnId, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some((swarm, key)) = active.requests.with_peer(id) else { return };
        let blocks = swarm.handle_snubbed(key);
        if let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) {
            for block in blocks {
                channel.cancel(block);
            }
            self.touched.insert(id);
        }
        self.planning.insert(listing);
    }

    /// A block came and could not be put together: it is asked for again.
    pub(super) fn request_torn(&mut self, id: ConnId, listing: ListingId, block: BlockRef) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some((swarm, key)) = active.requests.with_peer(id)
        {
            swarm.handle_unsent(key, block);
            swarm.wake_all();
        }
        self.planning.insert(listing);
    }

    /// A bad block is to be fetched again.
    pub(super) fn block_refetch(&mut self, listing: ListingId, block: BlockRef) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some(swarm) = &mut active.requests.swarm
        {
            swarm.handle_block_failed(block);
        }
        self.planning.insert(listing);
    }

    /// A piece is to be fetched again.
    pub(super) fn piece_refetch(&mut self, listing: ListingId, piece: PieceIndex) {
        if let Some(active) = self.active.get_mut(&listing)
            && let Some(swarm) = &mut active.requests.swarm
        {
            swarm.handle_piece_failed(piece);
        }
        self.planning.insert(listing);
    }

    /// A connection is gone: what it was asked for goes to others.
    pub(super) fn forget_requests(&mut self, listing: ListingId, id: ConnId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let requests = &mut active.requests;
        if let Some(key) = requests.keys.remove(&id) {
            requests.conns.remove(&key);
            if let Some(swarm) = &mut requests.swarm {
                swarm.remove_peer(key);
            }
            self.has_lost_source = true;
        }
        self.let_go_without_source(listing);
        self.planning.insert(listing);
    }

    /// Plans requests for every listing that something happened to.
    pub(super) fn plan_turn(&mut self) {
        let listings = std::mem::take(&mut self.planning);
        let starved = self.starving.len();
        for listing in listings {
            self.plan_listing(listing);
        }
        // Whoever still has nothing asked for after this has nobody to ask. Looked for once in a turn: with
        // thousands of listings each look is a walk over all.
        let has_lost_source = std::mem::take(&mut self.has_lost_source);
        if self.starving.len() > starved {
            self.make_room();
        } else if has_lost_source && starved > 0 {
            self.give_up_idle();
        }
    }

    fn plan_listing(&mut self, listing: ListingId) {
        let is_fetching = self.active.get(&listing).is_some_and(|active| active.is_fetching());
        if !is_fetching || self.is_stopping {
            return;
        }
        self.set_split_timer(listing);
        self.claim_pieces(listing);
        let extents = self.fill_max() as u32;
        let mut is_starving = false;
        loop {
            let new_extents = self.fill_budget();
            let Some(active) = self.active.get_mut(&listing) else { return };
            let Some(swarm) = &mut active.requests.swarm else { return };
            let Some(key) = swarm.poll_ready(&self.burden) else { break };
            let Some(blocks) = self.blocks_allowed(listing, key) else { continue };
            let Some(active) = self.active.get_mut(&listing) else { return };
            let Some(swarm) = &mut active.requests.swarm else { return };
            let mut budget = Budget { extents, new_extents, blocks };
            let mut planned = Planned::default();
            swarm.plan(self.now, key, &mut budget, &mut planned);
            // What a cap ends is no matter of the arena: a timer goes on with it.
            let is_capped = blocks < PLAN_BLOCKS && budget.blocks == 0;
            let is_short = planned.short_of_budget && !is_capped;
            let is_refused = !self.send_requests(listing, key, planned.requests);
            if is_capped && self.blocks_allowed(listing, key).is_some() {
                self.timers.set(self.now, Timer::Download(listing));
            }
            // Others may have requests left for buffers that are begun, and free them.
            is_starving |= is_short || is_refused;
        }
        if is_starving {
            self.wait_for_arena(listing);
        }
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(swarm) = &active.requests.swarm else { return };
        // One timer per listing at a time; an early one finds nothing and sets the next.
        if let Some(at) = swarm.poll_timeout()
            && active.requests.wake_at.is_none_or(|set| at < set || set <= self.now)
        {
            active.requests.wake_at = Some(at);
            self.timers.set(at, Timer::Swarm(listing));
        }
    }

    /// How many blocks a peer may be asked for now. `None`: caps forbid all, and a timer will wake it.
    fn blocks_allowed(&mut self, listing: ListingId, key: PeerKey) -> Option<u32> {
        let id = *self.active.get(&listing)?.requests.conns.get(&key)?;
        match self.allowance(id, Way::Down) {
            Allowance::Bytes(bytes) => {
                let blocks = bytes / u64::from(BLOCK_LEN);
                Some(u32::try_from(blocks).unwrap_or(PLAN_BLOCKS).min(PLAN_BLOCKS))
            }
            Allowance::NotBefore(at) => {
                let requests = &mut self.active.get_mut(&listing)?.requests;
                // One timer for the soonest; the others are looked at again when it fires.
                if requests.capped_until.is_none_or(|until| at < until || until <= self.now) {
                    requests.capped_until = Some(at);
                    self.timers.set(at, Timer::Download(listing));
                }
                None
            }
        }
    }

    /// A cap on what is received allows more, or has changed.
    pub(super) fn download_allowed(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.requests.capped_until = None;
        if let Some(swarm) = &mut active.requests.swarm {
            swarm.wake_all();
            self.planning.insert(listing);
        }
    }

    /// Asks a peer for what was planned, with a buffer for each block. False when the arena had none.
    fn send_requests(&mut self, listing: ListingId, key: PeerKey, blocks: Vec<BlockRef>) -> bool {
        let Some(active) = self.active.get(&listing) else { return true };
        let Some(geometry) = active.geometry().cloned() else { return true };
        let Some(&id) = active.requests.conns.get(&key) else { return true };
        let mut refused = Vec::new();
        let mut has_room = true;
        let mut asked_bytes = 0;
        for block in blocks {
            let (extent, _) = geometry.extent_of(block);
            let is_filling = self.active[&listing].assembler.is_filling(extent);
            let buf = if is_filling { None } else { self.take_extent() };
            if !is_filling && buf.is_none() {
                has_room = false;
                refused.push(block);
                continue;
            }
            let Some(active) = self.active.get_mut(&listing) else { return true };
            if let Some(buf) = buf {
                active.assembler.begin(&geometry, extent, buf, &active.done);
                self.filling += 1;
            }
            self.ask_leaves_ahead(listing, id, block.piece());
            let channel = self.conns.get_mut(&id).and_then(Conn::channel_mut);
            if !channel.is_some_and(|channel| channel.request(self.now, block)) {
                refused.push(block);
            } else {
                asked_bytes += u64::from(block.len());
            }
        }
        self.spend(id, Way::Down, asked_bytes);
        self.touched.insert(id);
        let Some(active) = self.active.get_mut(&listing) else { return true };
        if let Some(swarm) = &mut active.requests.swarm {
            refused.into_iter().for_each(|block| swarm.handle_unsent(key, block));
        }
        has_room
    }

    /// How many extents may be filled or on their way to the disk: three quarters of the arena.
    pub(super) fn fill_max(&self) -> usize {
        self.arena.capacity() / 4 * 3
    }

    /// How many extents may be begun now. Verified extents on their way to the disk count, so that a slow disk
    /// slows the requests down.
    fn fill_budget(&self) -> u32 {
        let share = self.fill_max();
        let busy = self.filling + self.cache.pinned_len() + self.askew.copies();
        let evictable = self.cache.unpinned_len();
        let free = self.arena.capacity() - self.arena.in_use().min(self.arena.capacity());
        // A few stay back for reads, or serving would starve while everything is being fetched.
        let spare = (free + evictable).saturating_sub(self.arena.capacity() / 16);
        share.saturating_sub(busy).min(spare) as u32
    }

    /// An extent, if need be at the cost of the least valuable cached one.
    pub(super) fn take_extent(&mut self) -> Option<ExtentMut> {
        loop {
            if let Some(extent) = self.arena.try_take() {
                return Some(extent);
            }
            // What is evicted may still be on its way to a peer: then the next one goes as well.
            if !self.cache.evict_one() {
                return None;
            }
        }
    }

    /// Requests of this listing wait for the arena; every extent that comes back looks here again.
    fn wait_for_arena(&mut self, listing: ListingId) {
        self.counters.arena_waits.add(1);
        self.starving.insert(listing);
    }

    /// Buffers come back by themselves while verified extents are written. Unverified ones are spilled only
    /// when nothing is on its way, because they cost a write and a read each; but those of pieces that
    /// slow peers are filling would be kept for long.
    fn make_room(&mut self) {
        self.room_looked_at = self.now;
        let frees = |job: &Job| matches!(job, Job::Write(_) | Job::Spill(_));
        // Reading a spilled piece back frees nothing, and takes long.
        let is_coming = self.cache.pinned_len() > 0 || self.jobs.values().any(frees);
        self.spill_some(is_coming || self.hashing.has_pieces());
        self.give_up_idle();
    }

    /// Takes buffers back from listings that nobody sends to any more: their sources have gone or
    /// choke, and half of the arena may have been begun for them. What is verified in such a buffer is
    /// stored; blocks of pieces that are not whole are fetched again some day.
    fn give_up_idle(&mut self) {
        let is_idle = |active: &&Active| {
            // One that waits for memory itself, and has whom to ask, may ask in a moment.
            let may_ask = self.starving.contains(&active.id);
            let mut channels = active.conns.iter().filter_map(|id| self.conns.get(id)?.channel());
            !self.planning.contains(&active.id)
                && active.assembler.held_len() > 0
                && channels.all(|channel| {
                    channel.outstanding_count() == 0 && (channel.peer_choking() || !may_ask)
                })
        };
        let idle: Vec<ListingId> =
            self.active.values().filter(is_idle).map(|active| active.id).collect();
        for listing in idle {
            tracing::debug!(listing = listing.0, "buffers without sources are given up");
            self.give_up_fills(listing);
        }
    }

    pub(super) fn give_up_fills(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        for extent in active.assembler.held() {
            let Some(active) = self.active.get_mut(&listing) else { return };
            let Some(given_up) = active.assembler.give_up(&geometry, extent) else { continue };
            self.filling -= 1;
            let mut lost_bytes = 0;
            for block in given_up.lost {
                lost_bytes += u64::from(block.len());
                if let Some(swarm) = &mut active.requests.swarm {
                    swarm.handle_block_failed(block);
                }
            }
            let filled = given_up.filled;
            let is_had =
                |piece: u32| geometry.piece(piece).is_ok_and(|piece| active.have.get(piece));
            if filled.pieces.iter().any(is_had) {
                self.store_extent(listing, filled);
            }
            self.count_waste(listing, lost_bytes);
        }
        // Whoever starves is looked at in a turn of its own.
        self.timers.set(self.now, Timer::Commit);
    }

    /// Wakes what waited for the arena, when there is room.
    pub(super) fn wake_starving(&mut self) {
        if self.starving.is_empty() {
            return;
        }
        let budget = self.fill_budget() as usize;
        if budget == 0 {
            // While something is on its way to the disk, its buffers come back by themselves.
            if self.disk.is_idle() || self.room_looked_at + MAKE_ROOM_PAUSE <= self.now {
                self.make_room();
            }
            return;
        }
        // One for each buffer that came back, in turn: those for whom there is none stay where they are.
        let mut woken: Vec<ListingId> = Vec::new();
        let behind = (Bound::Excluded(self.starved_last), Bound::Unbounded);
        woken.extend(self.starving.range(behind).take(budget));
        let left = budget - woken.len();
        woken.extend(self.starving.range(..=self.starved_last).take(left));
        for listing in woken {
            self.starving.remove(&listing);
            self.starved_last = listing;
            if let Some(active) = self.active.get_mut(&listing)
                && let Some(swarm) = &mut active.requests.swarm
            {
                swarm.wake_short();
                self.planning.insert(listing);
            }
        }
    }

    /// The swarm's timer fired.
    pub(super) fn swarm_timeout(&mut self, listing: ListingId) {
        let now = self.now;
        if let Some(active) = self.active.get_mut(&listing)
            && let Some(swarm) = &mut active.requests.swarm
        {
            active.requests.wake_at = None;
            swarm.handle_timeout(now);
            self.planning.insert(listing);
        }
    }

    pub(super) fn set_split_timer(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if !active.unannounced.is_empty() && !active.requests.is_split_set {
            active.requests.is_split_set = true;
            self.timers.set(self.now + SPLIT_AFTER, Timer::Split(listing));
        }
    }

    /// Verified pieces wait for neighbours in their extent that nobody is asked for: store and serve
    /// them now.
    pub(super) fn split_extents(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.requests.is_split_set = false;
        let Some(geometry) = active.geometry().cloned() else { return };
        let mut extents: Vec<_> = active
            .unannounced
            .iter()
            .filter_map(|&piece| geometry.piece(piece).ok())
            .filter_map(|piece| geometry.extents_of_piece(piece).next())
            .collect();
        extents.dedup();
        for id in &active.conns {
            let Some(channel) = self.conns.get(id).and_then(Conn::channel) else { continue };
            for block in channel.outstanding() {
                let asked = geometry.extent_of(block).0;
                extents.retain(|&extent| extent != asked);
            }
        }
        for extent in extents {
            let Some(active) = self.active.get_mut(&listing) else { return };
            if let Some(filled) = active.assembler.split_off(&geometry, extent) {
                self.filling -= 1;
                self.store_extent(listing, filled);
            }
        }
        self.set_split_timer(listing);
    }
}
