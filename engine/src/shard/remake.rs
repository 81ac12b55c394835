//! Lost leaves are made again from the data, and what peers can cause by that is bounded.
//!
//! A sidecar is missing where an older program seeded the listing, or where its disk was full; part of
//! one is wrong after a power cut. Hashing costs as much as serving, and nobody pays for it: whoever asks
//! for the leaves of every listing would keep disks and cores busy with nothing else. So all listings of
//! a shard share one allowance. From it come first the requests of those who have a bad piece in hands
//! and wait for the answer; beyond it they are refused. With what is left the sidecars are made whole,
//! one listing at a time, so that nothing is asked of the data twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Shard;
use super::budget::Class;
use super::listing::{Active, Stage};
use super::timers::Timer;
use crate::api::ListingId;
use crate::store::RunSet;

/// Payload hashed again in a second, in bytes: about a thirtieth of what a core hashes, and a fifth of
/// what a rotational disk reads.
const RATE: u64 = 32 << 20;
/// So much may be hashed at once after a pause: two pieces of the greatest length, or two of the longest
/// requests (8192 leaves).
const BURST: u64 = 256 << 20;
/// What making sidecars whole leaves to those who wait.
const RESERVE: u64 = BURST / 2;
/// Sidecars are made whole in steps of so many bytes, or of one piece.
const STEP: u64 = 8 << 20;
/// A step after the other.
const STEP_EVERY: Duration = Duration::from_millis(1000 * STEP / RATE);
/// Listings whose sidecars wait to be made whole; of more, those that are asked for later.
const QUEUE_MAX: usize = 64;

const _: () = assert!(ringseed_core::merkle::SERVED_MAX as u64 * 16_384 <= RESERVE);

/// What may be hashed again, and what waits for it.
#[derive(Debug, Default)]
pub(super) struct Remakes {
    /// Bytes spent and not yet earned back.
    debt_bytes: u64,
    counted_at: Option<Instant>,
    /// Pieces whose leaves are lost; those of the first listing are being made.
    queue: VecDeque<(ListingId, RunSet)>,
    is_timed: bool,
}

impl Remakes {
    /// Takes bytes out of the allowance unless less than `reserve` would be left.
    fn try_spend(&mut self, now: Instant, bytes: u64, reserve: u64) -> bool {
        let counted_at = *self.counted_at.get_or_insert(now);
        let earned_ms = now.saturating_duration_since(counted_at).as_millis();
        let earned = u64::try_from(earned_ms).unwrap_or(u64::MAX).saturating_mul(RATE / 1000);
        // Without a whole millisecond the clock stays where it is, or nothing would ever be earned.
        if earned > 0 {
            self.debt_bytes = self.debt_bytes.saturating_sub(earned);
            self.counted_at = Some(now);
        }
        let is_allowed = self.debt_bytes.saturating_add(bytes) <= BURST - reserve;
        if is_allowed {
            self.debt_bytes += bytes;
        }
        is_allowed
    }

    /// Whether the sidecar of a listing waits to be made whole.
    pub fn has(&self, listing: ListingId) -> bool {
        self.queue.iter().any(|(of, _)| *of == listing)
    }

    /// Forgets a listing that is gone.
    pub fn forget(&mut self, listing: ListingId) {
        self.queue.retain(|(of, _)| *of != listing);
    }
}

impl Shard {
    /// Hashes pieces again whose leaves somebody waits for. False when none is here, or when that is too
    /// much for now.
    pub(super) fn remake_now(&mut self, listing: ListingId, pieces: RunSet) -> bool {
        if pieces.is_empty() || !self.may_remake(listing, &pieces, 0) {
            return false;
        }
        if let Some((_, queued)) = self.remakes.queue.iter_mut().find(|(of, _)| *of == listing) {
            pieces.runs().for_each(|(first, count)| queued.remove(first, count));
        }
        self.queue_check(listing, pieces, Class::Repair);
        true
    }

    /// Takes what hashing these pieces costs out of the allowance. Those under check are paid for.
    fn may_remake(&mut self, listing: ListingId, pieces: &RunSet, reserve: u64) -> bool {
        let is_new = |&piece: &u32| !self.is_under_check(listing, piece);
        let cost = pieces.iter().filter(is_new).map(|piece| self.cost_of(listing, piece)).sum();
        self.remakes.try_spend(self.now, cost, reserve)
    }

    fn cost_of(&self, listing: ListingId, piece: u32) -> u64 {
        let geometry = self.active.get(&listing).and_then(|active| active.geometry());
        let piece = geometry.and_then(|geometry| Some((geometry, geometry.piece(piece).ok()?)));
        piece.map_or(0, |(geometry, piece)| u64::from(geometry.piece_data_len(piece)))
    }

    /// A listing has no sidecar at all.
    pub(super) fn sidecar_is_lost(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let stored = active.stored.iter_set().map(|piece| piece.get()).collect();
        self.leaves_are_lost(listing, stored);
    }

    /// Leaves of these pieces are to be made again when there is nothing more urgent. Of a listing that is
    /// not whole they are on their way to the sidecar, with the data; one that several shards serve has one
    /// sidecar, which its home makes.
    pub(super) fn leaves_are_lost(&mut self, listing: ListingId, pieces: RunSet) {
        let is_meant = |active: &Active| active.is_complete() && !active.is_helper();
        let is_meant = self.active.get(&listing).is_some_and(is_meant);
        let queue = &mut self.remakes.queue;
        if !is_meant || pieces.is_empty() {
            return;
        }
        let has_room = queue.len() < QUEUE_MAX;
        match queue.iter_mut().find(|(of, _)| *of == listing) {
            Some((_, queued)) => {
                pieces.runs().for_each(|(first, count)| queued.insert(first, count));
            }
            None if has_room => queue.push_back((listing, pieces)),
            None => return,
        }
        self.set_remake_timer();
    }

    fn set_remake_timer(&mut self) {
        if !std::mem::replace(&mut self.remakes.is_timed, true) {
            self.timers.set(self.now + STEP_EVERY, Timer::Remake);
        }
    }

    /// The next step of the sidecar that is being made whole.
    pub(super) fn remake_timeout(&mut self) {
        self.remakes.is_timed = false;
        while let Some((listing, queued)) = self.remakes.queue.front() {
            let listing = *listing;
            let active = self.active.get(&listing);
            let Some(active) = active.filter(|active| active.stage == Stage::Running) else {
                self.remakes.queue.pop_front();
                continue;
            };
            if active.check.is_some() {
                break; // the step before, or one that somebody waits for
            }
            let (mut step, mut bytes) = (RunSet::default(), 0);
            for piece in queued.iter() {
                bytes += self.cost_of(listing, piece);
                if bytes > STEP && !step.is_empty() {
                    break;
                }
                step.insert(piece, 1);
            }
            if step.is_empty() {
                self.remakes.queue.pop_front();
                continue;
            }
            if self.may_remake(listing, &step, RESERVE) {
                if let Some((_, queued)) = self.remakes.queue.front_mut() {
                    step.runs().for_each(|(first, count)| queued.remove(first, count));
                }
                self.queue_check(listing, step, Class::Check);
            }
            break;
        }
        if !self.remakes.queue.is_empty() && !self.is_stopping {
            self.set_remake_timer();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is hashed again is bounded whatever is asked, and those who wait come before the sidecars.
    #[test]
    fn the_allowance_is_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut remakes = Remakes::default();
        assert!(remakes.try_spend(start, BURST - RESERVE, RESERVE));
        assert!(!remakes.try_spend(start, 1, RESERVE), "the reserve is for who waits");
        assert!(remakes.try_spend(start, RESERVE, 0));
        assert!(!remakes.try_spend(start, 1, 0));
        let mut spent = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            while remakes.try_spend(now, 4096, 0) {
                spent += 4096;
            }
        }
        let wanted = 10 * RATE;
        assert!((wanted * 99 / 100..=wanted).contains(&spent), "{spent} bytes in ten seconds");
    }
}
