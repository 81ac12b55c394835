//! Caps on payload: over everything, per class of peers, per listing, in both directions. One table for
//! all shards of an engine, changed while they run.
//!
//! Sending is capped where blocks are handed to a connection, receiving where blocks are asked for: what
//! nobody asked for does not come. So a cap on receiving costs no memory and no closed TCP window.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ringseed_core::geometry::BLOCK_LEN;

use super::bucket::Bucket;
use crate::api::{ListingId, Rates, Scope};

/// Which way payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To a peer.
    Up,
    /// From a peer.
    Down,
}

/// What a connection's payload counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub listing: ListingId,
    /// The other end is a member of the market.
    pub is_member: bool,
}

/// What may move now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowance {
    /// So many bytes, a block at least; `u64::MAX` without any cap.
    Bytes(u64),
    /// Nothing before that time.
    NotBefore(Instant),
}

#[derive(Debug, Default)]
struct Pair {
    rates: Rates,
    up: Bucket,
    down: Bucket,
}

impl Pair {
    fn new(rates: Rates) -> Pair {
        Pair { rates, up: Bucket::new(rates.upload), down: Bucket::new(rates.download) }
    }

    fn bucket(&mut self, way: Way) -> &mut Bucket {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

#[derive(Debug, Default)]
struct Caps {
    all: Pair,
    members: Pair,
    others: Pair,
    listings: BTreeMap<ListingId, Pair>,
}

impl Caps {
    fn of(&mut self, way: Way, counted: Counted) -> impl Iterator<Item = &mut Bucket> {
        let class = if counted.is_member { &mut self.members } else { &mut self.others };
        let listing = self.listings.get_mut(&counted.listing);
        [&mut self.all, class].into_iter().chain(listing).map(move |pair| pair.bucket(way))
    }
}

/// The caps in force.
#[derive(Debug, Default)]
pub struct Limiter {
    /// Whether there is any: without, nobody takes the lock.
    is_any: AtomicBool,
    caps: Mutex<Caps>,
}

impl Limiter {
    /// A table with a cap over everything.
    pub fn new(all: Rates) -> Limiter {
        let limiter = Limiter::default();
        limiter.set(Scope::All, all);
        limiter
    }

    /// Sets the caps of a scope. What was spent before is forgotten.
    pub fn set(&self, scope: Scope, rates: Rates) {
        let mut caps = self.lock();
        match scope {
            Scope::All => caps.all = Pair::new(rates),
            Scope::Members => caps.members = Pair::new(rates),
            Scope::Others => caps.others = Pair::new(rates),
            Scope::Listing(listing) if rates == Rates::default() => {
                caps.listings.remove(&listing);
            }
            Scope::Listing(listing) => {
                caps.listings.insert(listing, Pair::new(rates));
            }
        }
        let pairs = [&caps.all, &caps.members, &caps.others];
        let is_any = !caps.listings.is_empty()
            || pairs.into_iter().any(|pair| pair.rates != Rates::default());
        self.is_any.store(is_any, Ordering::Release);
    }

    /// The caps of a scope.
    pub fn rates(&self, scope: Scope) -> Rates {
        let caps = self.lock();
        match scope {
            Scope::All => caps.all.rates,
            Scope::Members => caps.members.rates,
            Scope::Others => caps.others.rates,
            Scope::Listing(listing) => {
                caps.listings.get(&listing).map_or(Rates::default(), |pair| pair.rates)
            }
        }
    }

    /// Whether anything is capped.
    pub(super) fn is_any(&self) -> bool {
        self.is_any.load(Ordering::Acquire)
    }

    /// What may move now: the tightest cap counts.
    pub(super) fn allowance(&self, way: Way, counted: Counted, now: Instant) -> Allowance {
        if !self.is_any() {
            return Allowance::Bytes(u64::MAX);
        }
        let mut least = u64::MAX;
        let mut not_before = None;
        for bucket in self.lock().of(way, counted) {
            let bytes = bucket.available(now);
            least = least.min(bytes);
            if bytes < u64::from(BLOCK_LEN) {
                not_before = not_before.max(Some(bucket.ready_at(now)));
            }
        }
        match not_before {
            Some(at) => Allowance::NotBefore(at),
            None => Allowance::Bytes(least),
        }
    }

    /// Counts what moves.
    pub(super) fn spend(&self, way: Way, counted: Counted, bytes: u64) {
        if bytes > 0 && self.is_any() {
            self.lock().of(way, counted).for_each(|bucket| bucket.spend(bytes));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Caps> {
        // Plain numbers are whole even if a holder of the lock panicked.
        self.caps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use super::*;

    const LISTING: ListingId = ListingId(3);

    fn upload(rate: u64) -> Rates {
        Rates { upload: Some(rate), download: None }
    }

    fn counted(is_member: bool) -> Counted {
        Counted { listing: LISTING, is_member }
    }

    /// Bytes that a greedy connection moves in two seconds, of which each caller has its own.
    fn moved(limiter: &Limiter, way: Way, counted: Counted) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now() + Duration::from_secs(10 * nth);
        let mut now = start;
        let mut bytes = 0;
        while now < start + Duration::from_secs(2) {
            now = match limiter.allowance(way, counted, now) {
                Allowance::Bytes(u64::MAX) => return u64::MAX,
                Allowance::Bytes(some) => {
                    limiter.spend(way, counted, some.min(64 << 10));
                    bytes += some.min(64 << 10);
                    now
                }
                Allowance::NotBefore(at) => {
                    assert!(at > now, "it would spin");
                    at
                }
            };
        }
        bytes
    }

    fn assert_about(bytes: u64, wanted: u64) {
        assert!(bytes.abs_diff(wanted) < wanted / 8, "{bytes} bytes, not about {wanted}");
    }

    #[test]
    fn the_tightest_cap_counts_and_only_for_whom_it_is() {
        let limiter = Limiter::new(upload(4_000_000));
        limiter.set(Scope::Others, upload(1_000_000));
        assert_about(moved(&limiter, Way::Up, counted(false)), 2_000_000);
        assert_about(moved(&limiter, Way::Up, counted(true)), 8_000_000);
        assert_eq!(moved(&limiter, Way::Down, counted(false)), u64::MAX);
        limiter.set(Scope::Listing(LISTING), Rates { upload: None, download: Some(500_000) });
        assert_about(moved(&limiter, Way::Down, counted(true)), 1_000_000);
        let other = Counted { listing: ListingId(4), is_member: true };
        assert_eq!(moved(&limiter, Way::Down, other), u64::MAX);
        assert_eq!(limiter.rates(Scope::Listing(LISTING)).download, Some(500_000));
    }

    #[test]
    fn caps_are_lifted() {
        let limiter = Limiter::new(upload(1_000_000));
        limiter.set(Scope::Members, upload(1_000_000));
        limiter.set(Scope::Listing(LISTING), upload(1_000_000));
        for scope in [Scope::All, Scope::Members, Scope::Listing(LISTING)] {
            assert_ne!(moved(&limiter, Way::Up, counted(true)), u64::MAX);
            limiter.set(scope, Rates::default());
        }
        assert_eq!(moved(&limiter, Way::Up, counted(true)), u64::MAX);
    }

    /// All connections together stay within a cap that they share.
    #[test]
    fn a_shared_cap_is_shared() {
        let limiter = Limiter::new(Rates::default());
        limiter.set(Scope::Members, upload(1_000_000));
        let now = Instant::now();
        let Allowance::Bytes(first) = limiter.allowance(Way::Up, counted(true), now) else {
            panic!("a new bucket is not empty");
        };
        limiter.spend(Way::Up, counted(true), first);
        let other = Counted { listing: ListingId(9), is_member: true };
        assert!(matches!(limiter.allowance(Way::Up, other, now), Allowance::NotBefore(_)));
    }
}
