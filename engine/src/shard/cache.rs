//! Extents kept in memory for serving: what has just been verified, what was read for a peer.
//!
//! Scan-resistant: an extent enters on probation, first in first out, and only a second use moves it
//! to the main part, which is kept in order of use. The main part leaves a quarter to those on probation, or
//! what is read ahead for a peer would be gone before its turn. A peer that reads a petabyte once pushes out
//! nothing but what came in the same way. Extents whose write has not ended are pinned: until then
//! memory is the only place they can be served from.

use std::collections::BTreeMap;

use ringseed_sys::arena::Extent;

use crate::api::ListingId;
use crate::store::RunSet;

/// Which extent of which listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ExtentKey {
    pub listing: ListingId,
    pub extent: u32,
}

/// Extents in memory. Several entries may stand for one extent: each holds other pieces of it.
#[derive(Debug)]
pub(super) struct Cache {
    entries: BTreeMap<(ExtentKey, u64), Entry>,
    /// Order of arrival, and order of use.
    probation: BTreeMap<u64, (ExtentKey, u64)>,
    main: BTreeMap<u64, (ExtentKey, u64)>,
    next: u64,
    /// Extents that came, ever.
    arrivals: u64,
    /// Extents kept at most, pinned ones not counted.
    len_max: usize,
}

#[derive(Debug)]
struct Entry {
    extent: Extent,
    /// Pieces whose bytes in it are verified.
    pieces: RunSet,
    pinned: bool,
    /// Key in `probation` or `main`; none while pinned.
    order: u64,
    /// How many had come before it.
    arrival: u64,
    is_main: bool,
}

impl Cache {
    /// A cache of at most `len_max` extents.
    pub fn new(len_max: usize) -> Self {
        let (probation, main) = (BTreeMap::new(), BTreeMap::new());
        Cache { entries: BTreeMap::new(), probation, main, next: 0, arrivals: 0, len_max }
    }

    /// Puts an extent in; returns the name of the entry for [`Cache::unpin`].
    pub fn insert(&mut self, key: ExtentKey, extent: Extent, pieces: RunSet, pinned: bool) -> u64 {
        self.next += 1;
        self.arrivals += 1;
        let (order, arrival) = (self.next, self.arrivals);
        let entry = Entry { extent, pieces, pinned, order, arrival, is_main: false };
        self.entries.insert((key, order), entry);
        if !pinned {
            self.probation.insert(order, (key, order));
            self.trim();
        }
        order
    }

    /// The write has ended: from now on the extent may be dropped.
    pub fn unpin(&mut self, key: ExtentKey, name: u64) {
        if let Some(entry) = self.entries.get_mut(&(key, name)) {
            entry.pinned = false;
            self.probation.insert(entry.order, (key, name));
            self.trim();
        }
    }

    /// The write has ended, and nobody wants what was written: its memory serves the next extent while it is
    /// still in the processor's caches.
    pub fn release(&mut self, key: ExtentKey, name: u64) {
        self.drop_entry((key, name));
    }

    /// The extent, if it is here with that piece.
    pub fn get(&mut self, key: ExtentKey, piece: u32) -> Option<Extent> {
        self.next += 1;
        let used = self.next;
        let mut entries = self.entries.range_mut((key, 0)..=(key, u64::MAX));
        let (&name, entry) = entries.find(|(_, entry)| entry.pieces.contains(piece))?;
        if !entry.pinned {
            let from = if entry.is_main { &mut self.main } else { &mut self.probation };
            from.remove(&entry.order);
            // A second use soon after the first is one peer reading block after block of the same
            // extent: only what outlived other arrivals has shown that it is wanted again.
            let outlived = self.arrivals - entry.arrival > self.len_max as u64 / 4;
            if entry.is_main || outlived {
                (entry.is_main, entry.order) = (true, used);
                self.main.insert(used, name);
            } else {
                self.probation.insert(entry.order, name);
            }
        }
        let extent = entry.extent.clone();
        if self.main.len() > self.len_max - self.len_max.div_ceil(4) {
            let oldest = self.main.pop_first();
            oldest.and_then(|(_, name)| self.entries.remove(&name));
        }
        Some(extent)
    }

    /// Whether the extent is here with that piece; not counted as a use.
    #[cfg(test)]
    pub fn contains(&self, key: ExtentKey, piece: u32) -> bool {
        let mut entries = self.entries.range((key, 0)..=(key, u64::MAX));
        entries.any(|(_, entry)| entry.pieces.contains(piece))
    }

    /// Extents whose write has not ended.
    pub fn pinned_len(&self) -> usize {
        self.entries.len() - self.unpinned_len()
    }

    /// Extents that may be dropped.
    pub fn unpinned_len(&self) -> usize {
        self.probation.len() + self.main.len()
    }

    /// Drops the least valuable extent that is not pinned; false when there is none.
    pub fn evict_one(&mut self) -> bool {
        let victim = self.probation.pop_first().or_else(|| self.main.pop_first());
        victim.is_some_and(|(_, name)| self.entries.remove(&name).is_some())
    }

    /// Drops everything of a listing, pinned or not.
    pub fn forget(&mut self, listing: ListingId) {
        let first = (ExtentKey { listing, extent: 0 }, 0);
        let last = (ExtentKey { listing, extent: u32::MAX }, u64::MAX);
        let names: Vec<_> = self.entries.range(first..=last).map(|(&name, _)| name).collect();
        for name in names {
            self.drop_entry(name);
        }
    }

    /// Drops what is kept of one extent, so that the next read goes to the disk.
    pub fn forget_extent(&mut self, key: ExtentKey) {
        let names: Vec<_> =
            self.entries.range((key, 0)..=(key, u64::MAX)).map(|(&name, _)| name).collect();
        for name in names {
            self.drop_entry(name);
        }
    }

    fn drop_entry(&mut self, name: (ExtentKey, u64)) {
        if let Some(entry) = self.entries.remove(&name) {
            self.probation.remove(&entry.order);
            self.main.remove(&entry.order);
        }
    }

    fn trim(&mut self) {
        while self.probation.len() + self.main.len() > self.len_max && self.evict_one() {}
    }
}

#[cfg(test)]
mod tests {
    use ringseed_sys::arena::Arena;

    use super::*;

    fn key(extent: u32) -> ExtentKey {
        ExtentKey { listing: ListingId(1), extent }
    }

    fn extent(arena: &Arena) -> Extent {
        arena.try_take().unwrap().freeze()
    }

    fn pieces(first: u32, count: u32) -> RunSet {
        (first..first + count).collect()
    }

    #[test]
    fn a_pinned_extent_stays_until_it_is_written() {
        let arena = Arena::new(64 << 20).unwrap();
        let mut cache = Cache::new(2);
        let name = cache.insert(key(0), extent(&arena), pieces(0, 1), true);
        for other in 1..10 {
            cache.insert(key(other), extent(&arena), pieces(other, 1), false);
        }
        assert_eq!(arena.in_use(), 3, "two kept and one pinned");
        assert!(cache.get(key(0), 0).is_some());
        cache.unpin(key(0), name);
        assert_eq!(arena.in_use(), 2);
        while cache.evict_one() {}
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn an_entry_answers_only_for_its_pieces() {
        let arena = Arena::new(64 << 20).unwrap();
        let mut cache = Cache::new(4);
        cache.insert(key(3), extent(&arena), pieces(48, 4), false);
        assert!(cache.contains(key(3), 51) && !cache.contains(key(3), 52));
        cache.insert(key(3), extent(&arena), pieces(52, 4), false);
        assert!(cache.get(key(3), 50).is_some() && cache.get(key(3), 53).is_some());
        cache.forget_extent(key(3));
        assert!(!cache.contains(key(3), 50));
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used_again() {
        let arena = Arena::new(64 << 20).unwrap();
        let mut cache = Cache::new(8);
        cache.insert(key(0), extent(&arena), pieces(0, 1), false);
        for scanned in 1..6 {
            cache.insert(key(scanned), extent(&arena), pieces(scanned, 1), false);
        }
        cache.get(key(0), 0);
        for scanned in 6..100 {
            cache.insert(key(scanned), extent(&arena), pieces(scanned, 1), false);
        }
        assert!(cache.contains(key(0), 0));
        cache.forget(ListingId(1));
        assert_eq!(arena.in_use(), 0);
    }

    /// Block after block of one extent counted as use after use, until everything a peer had read was in the main
    /// part, and what was read ahead for it next had no room: each extent was read twice.
    #[test]
    fn one_reader_does_not_fill_the_main_part() {
        let arena = Arena::new(64 << 20).unwrap();
        let mut cache = Cache::new(16);
        for ahead in 0..100 {
            cache.insert(key(ahead), extent(&arena), pieces(ahead, 1), false);
            for read in ahead.saturating_sub(3)..=ahead {
                (0..16).for_each(|_| assert!(cache.get(key(read), read).is_some()));
            }
        }
        assert!(cache.main.is_empty(), "{} extents", cache.main.len());
    }

    /// However much is used again, what comes next has room until its turn.
    #[test]
    fn those_on_probation_have_their_quarter() {
        let arena = Arena::new(64 << 20).unwrap();
        let mut cache = Cache::new(16);
        let insert =
            |cache: &mut Cache, at: u32| cache.insert(key(at), extent(&arena), pieces(at, 1), true);
        let names: Vec<u64> = (0..16).map(|at| insert(&mut cache, at)).collect();
        (0..).zip(names).for_each(|(at, name)| cache.unpin(key(at), name));
        for at in 16..22 {
            insert(&mut cache, at);
        }
        (0..16).for_each(|used| drop(cache.get(key(used), used)));
        assert_eq!(cache.main.len(), 12);
        for at in 64..68 {
            cache.insert(key(at), extent(&arena), pieces(at, 1), false);
        }
        assert!((64..68).all(|at| cache.contains(key(at), at)));
    }
}
