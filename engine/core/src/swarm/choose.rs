//! The choice: which extent a peer with room gets next.

use std::time::{Duration, Instant};

use super::pace::{Room, SILENCE};
use super::reserve::gives;
use super::shares::{mix, order};
use super::work::{BlockSlot, BlockState};
use super::{Budget, IDLE_PATIENCE, PeerKey, Planned, Swarm, is_willing, pipeline_max};
use crate::geometry::{BLOCK_LEN, BlockRef, ExtentIndex};

/// How many untouched groups are compared for the rarest. Listings of up to so many groups are
/// searched whole; of larger ones a random part, which is as good: what counts is not to take what
/// everybody takes.
const CANDIDATES_MAX: usize = 512;
/// Groups that are begun one after the other where files begin inside of pages: verified together they are
/// written in one run, of which only the ends are not whole pages. As many as are hashed together.
const STRETCH: u32 = 16;
/// What a receiver may take from seeds beyond its own share while the other receivers pass things on,
/// as a part of the listing divided by the number of receivers. It bounds the copies that seeds send
/// to about 1.4, and 4/3 is the optimum for four seeds and two joiners of equal uplinks.
const STEAL_QUOTA: f64 = 0.4;
/// Taking from another's share must be so many times faster than waiting for it.
const STEAL_GAIN: f64 = 2.0;
/// The same when the quota is used up, and the wait that it must save at least, in seconds: relays
/// that are so slow do not carry the listing.
const STEAL_GAIN_BEYOND: f64 = 4.0;
const STEAL_WAIT_BEYOND: f64 = 3.0;
/// An owner of a share of whom nothing is heard for this time, plus some of its groups' time, is
/// taken for stalled.
const STALL_MIN: Duration = Duration::from_secs(1);
const STALL_MAX: Duration = Duration::from_secs(10);
/// Rate taken for granted of seeds that have sent nothing yet, in bytes per second.
const RATE_GUESS: f64 = 4.0e6;
/// A second request for a block must be so many times faster than the first.
const TWIN_GAIN: f64 = 3.0;
/// And save at least so much, in seconds.
const TWIN_SAVES_MIN: f64 = 0.2;
/// A peer whose rate is unknown is given this time before others are asked for the same.
const TWIN_SILENCE: Duration = Duration::from_secs(1);
/// Blocks asked for a second time at once, from the end of the first peer's queue.
const TWINS_AT_ONCE: usize = 8;

impl Swarm {
    /// Decides what to ask a peer for now; appends to `out`, which is cleared first.
    pub fn plan(&mut self, now: Instant, key: PeerKey, budget: &mut Budget, out: &mut Planned) {
        out.requests.clear();
        out.short_of_budget = false;
        self.sort_by_pace(now, budget.extents);
        let Some(peer) =
            self.peers.get(&key).filter(|peer| is_willing(peer)).filter(|peer| peer.useful > 0)
        else {
            return;
        };
        let was_idle = peer.asked.is_empty();
        let limit = pipeline_max(peer, self.block_len());
        while (self.peers[&key].asked.len() as u32) < limit {
            if budget.blocks == 0 {
                out.short_of_budget = true;
                break;
            }
            if let Some(block) = self.next_owned(key).or_else(|| {
                self.acquire(now, key, budget, &mut out.short_of_budget).then_some(())?;
                self.next_owned(key)
            }) {
                self.ask(key, block);
                out.requests.push(block);
                budget.blocks -= 1;
                continue;
            }
            self.ask_twins(now, key, limit, budget, out);
            break;
        }
        if out.short_of_budget {
            self.short.insert(key);
        }
        self.let_others_join(key);
        let peer = self.peers.get_mut(&key).expect("looked up above");
        // A pipeline that was drained and is filled again in one turn was not idle.
        if was_idle && !peer.asked.is_empty() && peer.idle_since.is_some_and(|since| since < now) {
            peer.rate.begin(now);
            peer.last_block = now;
        } else if was_idle && !peer.asked.is_empty() {
            peer.rate.begin_first(now);
            peer.last_block = now;
        }
        if !peer.asked.is_empty() {
            peer.idle_since = None;
        } else if peer.idle_since.is_none() {
            peer.idle_since = Some(now);
        }
        // A starving peer is looked at again, as time alone may allow what was refused now. With a full
        // arena that is to take over what others turn out not to send.
        let (idle, seed, is_joint) = (peer.asked.is_empty(), peer.seed, peer.is_joint);
        let starving = (peer.asked.len() as u32) < limit;
        if starving && !(out.short_of_budget && is_joint) && !self.is_complete() {
            let hold = self.hold_seeds_until.filter(|&until| until > now);
            if let Some(until) = hold.filter(|_| seed) {
                self.wake_by(until);
            } else if idle {
                self.wake_by(now + IDLE_PATIENCE);
            }
        }
    }

    fn ask(&mut self, key: PeerKey, block: BlockRef) {
        let peer = self.peers.get_mut(&key).expect("a known peer");
        peer.asked.push_back(block);
        peer.asked_bytes += u64::from(block.len());
        let stealing = peer.stealing;
        if stealing {
            self.stolen_bytes += u64::from(block.len());
        }
    }

    /// The next missing block of the extents that a peer owns and has.
    fn next_owned(&mut self, key: PeerKey) -> Option<BlockRef> {
        let peer = self.peers.get_mut(&key)?;
        while let Some(&extent) = peer.owned.first() {
            if let Some(active) = self.work.active_mut(extent)
                && active.owner == Some(key)
            {
                let next = active.slots.iter().find(|slot| {
                    slot.state == BlockState::Missing
                        && gives(peer, &self.reserved, key, slot.block.piece())
                });
                if let Some(block) = next.map(|slot| slot.block) {
                    active.set(block, BlockState::Asked { by: key, twin: None });
                    return Some(block);
                }
                // Nothing left that this peer has; what is missing is for others.
                active.owner = None;
            }
            peer.owned.remove(0);
        }
        None
    }

    /// Gives a peer one extent more, if there is one for it.
    fn acquire(
        &mut self,
        now: Instant,
        key: PeerKey,
        budget: &mut Budget,
        short_of_budget: &mut bool,
    ) -> bool {
        let peer = &self.peers[&key];
        let held = self.hold_seeds_until.is_some_and(|until| until > now);
        if peer.seed && held {
            return false;
        }
        if let Some(extent) = self.find(key, false, budget, short_of_budget) {
            self.give(now, key, extent, false, budget);
            return true;
        }
        if !*short_of_budget
            && self.may_steal(now, key)
            && let Some(extent) = self.find(key, true, budget, short_of_budget)
        {
            self.give(now, key, extent, true, budget);
            return true;
        }
        if *short_of_budget {
            return false;
        }
        // Nothing is free; what another peer owns and has not asked for yet may be taken over.
        if let Some(extent) = self.find_unasked(now, key) {
            let stealing = !self.is_free_for(key, extent);
            let before = self.work.active(extent).and_then(|active| active.owner);
            if let Some(before) = before.and_then(|before| self.peers.get_mut(&before)) {
                before.owned.retain(|&owned| owned != extent);
            }
            self.give(now, key, extent, stealing, budget);
            return true;
        }
        false
    }

    fn give(
        &mut self,
        now: Instant,
        key: PeerKey,
        extent: ExtentIndex,
        stealing: bool,
        budget: &mut Budget,
    ) {
        if let Some(active) = self.work.active_mut(extent) {
            active.owner = Some(key);
        } else {
            let first = self.work.geometry().pieces_of_extent(extent).next().expect("a piece");
            let group = self.work.group_of_piece(first);
            if self.work.is_untouched(group) && self.shares.is_own(group) {
                self.own_untouched -= 1;
            }
            self.work.start(extent, key, self.peers[&key].is_joint, now);
            budget.new_extents -= 1;
        }
        let group = self.lies_askew.then(|| self.work.group_of_extent(extent));
        let peer = self.peers.get_mut(&key).expect("a known peer");
        peer.began = group;
        peer.owned.push(extent);
        peer.stealing = stealing;
    }

    /// Whether the rule of shares lets a peer give us a group at any time.
    fn is_free_group(&self, key: PeerKey, group: u32) -> bool {
        !self.peers[&key].seed || self.shares.is_own(group)
    }

    fn is_free_for(&self, key: PeerKey, extent: ExtentIndex) -> bool {
        let first = self.work.geometry().pieces_of_extent(extent).next().expect("a piece");
        self.is_free_group(key, self.work.group_of_piece(first))
    }

    /// An extent that nobody owns and that the peer can give: of a started group, else of the rarest
    /// untouched one. `stealing`: of shares of others, else only what the rule of shares leaves free.
    /// Peers that fill extents alone and those that do it together each keep to their own groups while
    /// there are others; what is left in the end is for the fast ones.
    fn find(
        &mut self,
        key: PeerKey,
        stealing: bool,
        budget: &Budget,
        short_of_budget: &mut bool,
    ) -> Option<ExtentIndex> {
        let room = self.room(key, budget);
        let is_joint = self.peers[&key].is_joint;
        // Without the other kind there is nobody to keep apart from.
        let has_others = if is_joint { self.pace.has_alone } else { self.pace.has_joint };
        let own_kind = has_others.then_some(is_joint);
        if let Some(extent) = self.find_started(key, stealing, own_kind, room, short_of_budget) {
            return Some(extent);
        }
        let is_open = !self.peers[&key].seed || stealing || self.own_untouched > 0;
        if is_open
            && !(room == Room::Kept)
            && let Some(group) = self.rarest(key, stealing)
        {
            if room == Room::Free {
                let mut extents = self.work.extents_of(group);
                return extents.find(|&extent| self.peer_can(key, extent));
            }
            *short_of_budget = true;
        }
        let may_cross = has_others && !is_joint;
        may_cross
            .then(|| self.find_started(key, stealing, Some(true), room, short_of_budget))
            .flatten()
    }

    /// The same, among started groups; `kind`: only those that are filled together, or only those that are
    /// not, and always what is reserved for the peer.
    fn find_started(
        &self,
        key: PeerKey,
        stealing: bool,
        kind: Option<bool>,
        room: Room,
        short_of_budget: &mut bool,
    ) -> Option<ExtentIndex> {
        let peer = &self.peers[&key];
        let gives = |piece| gives(peer, &self.reserved, key, piece);
        let of_kind = |group| kind.is_none_or(|is_joint| self.work.is_joint(group) == is_joint);
        for &group in self.work.started() {
            let is_free = of_kind(group) && (stealing || self.is_free_group(key, group));
            if !is_free && !self.has_reserved(key, group) {
                continue;
            }
            for extent in self.work.extents_of(group) {
                match self.work.active(extent) {
                    Some(active) => {
                        let mut slots = active.slots.iter();
                        let is_missing = |slot: &BlockSlot| {
                            slot.state == BlockState::Missing && gives(slot.block.piece())
                        };
                        if active.owner.is_none() && active.missing > 0 && slots.any(is_missing) {
                            return Some(extent);
                        }
                    }
                    None if !self.peer_can(key, extent) => {}
                    None => match room {
                        Room::Free => return Some(extent),
                        Room::None => *short_of_budget = true,
                        Room::Kept => {}
                    },
                }
            }
        }
        None
    }

    /// Whether a peer has a piece of an extent that we lack.
    fn peer_can(&self, key: PeerKey, extent: ExtentIndex) -> bool {
        let (peer, have) = (&self.peers[&key], self.work.have());
        self.work
            .geometry()
            .pieces_of_extent(extent)
            .any(|piece| gives(peer, &self.reserved, key, piece) && !have.get(piece))
    }

    /// The untouched group to begin next with a peer.
    fn rarest(&mut self, key: PeerKey, stealing: bool) -> Option<u32> {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let salt = mix(self.random);
        let untouched = self.work.untouched();
        if untouched.is_empty() {
            return None;
        }
        let seed = self.peers[&key].seed;
        let shared = self.shares.count() > 1;
        let start = (salt % untouched.len() as u64) as usize;
        let candidates = untouched[start..].iter().chain(&untouched[..start]).copied();
        let candidates = candidates
            .filter(|&group| stealing || !seed || self.shares.is_own(group))
            .filter_map(|group| self.first_useful(key, group).map(|piece| (group, piece)))
            .take(CANDIDATES_MAX);
        let rank = |&(group, piece): &(u32, crate::geometry::PieceIndex)| {
            // What only others can fetch from the seeds is taken from relays first.
            let own = !seed && shared && self.shares.is_own(group);
            let order = match (seed && shared, stealing) {
                (false, _) => mix(salt ^ u64::from(group)),
                (true, false) => order(group),
                (true, true) => !order(group),
            };
            let suggested = self.peers[&key].suggested.contains(&piece);
            (own, self.relayed[piece.get() as usize], !suggested, order)
        };
        // Where nothing but chance would rank those that nobody relays, the first of them is as good as any:
        // comparing hundreds for each extent was a fiftieth of what a leech spent.
        let is_up_to_chance = !(seed && shared) && self.peers[&key].suggested.is_empty();
        let is_any =
            |rank: (bool, u16, bool, u64)| is_up_to_chance && (rank.0, rank.1) == (false, 0);
        let is_next = |group: u32| {
            let piece = self.work.is_untouched_at(group).then(|| self.first_useful(key, group));
            piece.flatten().is_some_and(|piece| is_any(rank(&(group, piece))))
        };
        let next = self.peers[&key].began.map(|group| group + 1).filter(|next| next % STRETCH != 0);
        if let Some(next) = next.filter(|&next| is_next(next)) {
            return Some(next);
        }
        let mut best = None;
        for candidate in candidates {
            let ranked = (rank(&candidate), candidate.0);
            if is_any(ranked.0) {
                let group = candidate.0;
                let begin = if self.lies_askew { group - group % STRETCH } else { group };
                return (begin..=group).find(|&group| is_next(group));
            }
            if best.is_none_or(|best| ranked < best) {
                best = Some(ranked);
            }
        }
        best.map(|(_, group)| group)
    }

    /// The first piece of a group that a peer has and we lack.
    fn first_useful(&self, key: PeerKey, group: u32) -> Option<crate::geometry::PieceIndex> {
        let (peer, have) = (&self.peers[&key], self.work.have());
        let mut pieces = self.work.pieces_of(group);
        pieces.find(|&piece| gives(peer, &self.reserved, key, piece) && !have.get(piece))
    }

    /// Whether a seed may now give us what belongs to the share of another receiver.
    fn may_steal(&mut self, now: Instant, key: PeerKey) -> bool {
        let peer = &self.peers[&key];
        if !peer.seed || self.shares.count() == 1 {
            return false;
        }
        let idle = peer.idle_since.is_some_and(|since| since + IDLE_PATIENCE <= now);
        let going_on = peer.stealing && peer.idle_since.is_none();
        if !idle && !going_on {
            return false;
        }
        self.give_up_stalled(now, key);
        if self.shares.count() == 1 || self.own_untouched > 0 {
            return true; // a stalled receiver's share has become ours
        }
        let relayed = self.relay_flow.get(now);
        let left = self.work.unassigned_len() as f64;
        if relayed <= 0.0 || left <= 0.0 {
            return false;
        }
        let count = f64::from(self.shares.count());
        let rate = self.peers[&key].rate.get().unwrap_or(relayed / (count - 1.0));
        let wait = left / relayed;
        let take = self.work.group_len() as f64 / rate;
        let quota = STEAL_QUOTA / count * self.work.geometry().payload_len() as f64;
        if (self.stolen_bytes as f64) < quota {
            wait > STEAL_GAIN * take
        } else {
            wait > STEAL_GAIN_BEYOND * take + STEAL_WAIT_BEYOND
        }
    }

    /// Takes a receiver out of the shares of which nothing is heard while we starve.
    fn give_up_stalled(&mut self, now: Instant, key: PeerKey) {
        let starving_since = *self.starving_since.get_or_insert(now);
        let rate = self.peers[&key].rate.get().unwrap_or(RATE_GUESS);
        let group_time = self.work.group_len() as f64 / rate;
        let unheard = 4.0 * f64::from(self.shares.count()) * group_time;
        let mut gave_up = false;
        for peer in self.peers.values_mut() {
            let receiver = peer.info.ours && peer.known && !peer.seed;
            let receiver = receiver && !peer.stalled && !peer.has.is_full();
            // Who was heard of every tenth of a second does not pause for ten.
            let pause = match peer.news_gap {
                Duration::ZERO => unheard,
                gap => 4.0 * gap.as_secs_f64(),
            };
            let patience = (STALL_MIN.as_secs_f64() + pause).min(STALL_MAX.as_secs_f64());
            let patience = Duration::from_secs_f64(patience);
            if receiver && peer.last_news.max(starving_since) + patience <= now {
                peer.stalled = true;
                gave_up = true;
            }
        }
        if gave_up {
            self.update_shares();
        }
    }

    /// An extent of which another peer owns blocks that it has not asked for.
    fn find_unasked(&mut self, now: Instant, key: PeerKey) -> Option<ExtentIndex> {
        let peer = &self.peers[&key];
        if peer.is_joint && self.pace.has_alone {
            return None; // its owner is faster
        }
        let mut found = self.work.actives().filter(|(extent, active)| {
            active.missing > 0
                && active.owner.is_some_and(|owner| owner != key)
                && active.slots.iter().any(|slot| {
                    slot.state == BlockState::Missing
                        && gives(peer, &self.reserved, key, slot.block.piece())
                })
                && active.since < now
                && (self.is_free_for(key, *extent)
                    || self.has_reserved(key, self.work.group_of_extent(*extent)))
        });
        found.next().map(|(extent, _)| extent)
    }

    /// When there is nothing else: asks for what much slower peers still owe, each from the end of its queue,
    /// so that the two meet in the middle. Between peers that fill extents alone that is for the very end,
    /// and bounded by `twins_left`; of those that do it together few blocks are outstanding, and all may
    /// be asked for at once. With a full arena it is the way to get pieces whole that a peer holds up
    /// which has turned out slow.
    fn ask_twins(
        &mut self,
        now: Instant,
        key: PeerKey,
        limit: u32,
        budget: &mut Budget,
        out: &mut Planned,
    ) {
        let peer = &self.peers[&key];
        // Two slow peers at one block would keep a fast one from it.
        if !peer.asked.is_empty() || (peer.is_joint && self.pace.has_alone) {
            return;
        }
        let own_rate = match peer.rate.get() {
            Some(rate) => rate,
            None if peer.is_joint => return, // nothing says that it is any faster
            None => RATE_GUESS,
        };
        let block_seconds = f64::from(BLOCK_LEN) / own_rate;
        // Where all are slow a block takes seconds: each takes over one, and all of them together the rest.
        let at_once = if peer.is_joint { 1 } else { TWINS_AT_ONCE };
        let worth_it = TWIN_GAIN * at_once as f64 * block_seconds + TWIN_SAVES_MIN;
        let slower = self.peers.iter().filter(|&(&other, _)| other != key);
        let slower = slower.filter_map(|(&other, slow)| {
            let silent = now.saturating_duration_since(slow.last_block);
            let patience = if slow.is_joint { SILENCE } else { TWIN_SILENCE };
            let owes = slow.asked_bytes as f64;
            let seconds = match slow.rate.get() {
                Some(rate) => (owes / rate).max(silent.as_secs_f64()),
                None if silent >= patience => silent.as_secs_f64() * 2.0,
                None => return None,
            };
            (owes > 0.0 && seconds >= worth_it).then_some((slow.is_joint, seconds, other))
        });
        let mut slower: Vec<(bool, f64, PeerKey)> = slower.collect();
        slower.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
        let is_joint = peer.is_joint;
        for (is_slow_joint, seconds, slow) in slower {
            let (room, asked) = match is_slow_joint {
                true if is_joint => (at_once, out.requests.len()),
                true => (limit as usize, self.peers[&key].asked.len()),
                false => (TWINS_AT_ONCE, out.requests.len()),
            };
            let mut room = room.saturating_sub(asked);
            let wanted: Vec<_> = self.peers[&slow].asked.iter().copied().enumerate().collect();
            let count = wanted.len() as f64;
            for (before, block) in wanted.into_iter().rev() {
                // Those in front come sooner.
                let wait = seconds * (before + 1) as f64 / count;
                let may_ask = room > 0
                    && (is_slow_joint || self.twins_left > 0)
                    && budget.blocks > 0
                    && !(is_joint && wait < worth_it);
                if !may_ask {
                    break;
                }
                if self.ask_twin(key, slow, block, out.short_of_budget) {
                    out.requests.push(block);
                    self.twins_left -= u32::from(!is_slow_joint);
                    budget.blocks -= 1;
                    room -= 1;
                }
            }
        }
    }

    /// Asks a second peer for a block, if it is one that it may be asked for. `is_short`: memory is what
    /// it is for, so that what is filled together anyway stays so.
    fn ask_twin(&mut self, key: PeerKey, slow: PeerKey, block: BlockRef, is_short: bool) -> bool {
        let (extent, _) = self.work.geometry().extent_of(block);
        let is_free = self.is_free_for(key, extent) || self.peers[&slow].seed;
        let can = gives(&self.peers[&key], &self.reserved, key, block.piece());
        let is_joint = self.work.is_joint(self.work.group_of_extent(extent));
        let asked_once = BlockState::Asked { by: slow, twin: None };
        let Some(active) = self.work.active_mut(extent) else { return false };
        if !is_free || !can || (is_short && is_joint) || active.state(block) != Some(asked_once) {
            return false;
        }
        active.set(block, BlockState::Asked { by: slow, twin: Some(key) });
        self.ask(key, block);
        true
    }
}
