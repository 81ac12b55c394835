//! The shard's one timer structure: a heap of what is due when.
//!
//! Timers are not cancelled. Each carries what it was set for, and its owner, when called, looks
//! whether there is still something to do. So a closed connection leaves at most one dead entry.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::peer::ConnId;
use crate::api::ListingId;

/// What a timer was set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A connection's own deadlines (handshake, keep-alive, silence).
    Conn(ConnId),
    /// Dial what this listing wants.
    Dial(ListingId),
    /// A waiting listing tries its disk again.
    Resume(ListingId),
    /// A listing without anything to do goes cold.
    Evict(ListingId),
    /// The oldest uncommitted piece has waited its second.
    Commit,
    /// Whole pieces have waited long enough for others to be hashed with.
    Hash,
    /// Slots are given anew.
    Choke,
    /// Nothing to fetch of a listing for long, though others do.
    Hungry(ListingId),
    /// A cap on what is sent allows a block again.
    Upload,
    /// A cap on what is received allows a listing a block again.
    Download(ListingId),
    /// The swarm of a listing looks again at a peer that starves.
    Swarm(ListingId),
    /// Verified pieces have waited long enough for the rest of their extent.
    Split(ListingId),
    /// Nothing of the info dict or the layers of a listing may have come for long.
    Metadata(ListingId),
    /// A bad piece has waited long enough for its leaves.
    Dispute(ListingId),
    /// Lost leaves may be made again.
    Remake,
}

/// What is due when, soonest first; equal times in the order they were set.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, Timer)>>,
    sequence: u64,
}

impl Timers {
    /// Sets a timer.
    pub fn set(&mut self, at: Instant, timer: Timer) {
        self.sequence += 1;
        self.heap.push(Reverse((at, self.sequence, timer)));
    }

    /// The next timer that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let Reverse((at, ..)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, _, timer))| timer)
    }

    /// When the next timer is due.
    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_come_in_order_of_time_then_of_setting() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut timers = Timers::default();
        timers.set(later, Timer::Commit);
        timers.set(start, Timer::Upload);
        timers.set(start, Timer::Dial(ListingId(3)));
        assert_eq!(timers.next_at(), Some(start));
        assert_eq!(timers.pop_due(start), Some(Timer::Upload));
        assert_eq!(timers.pop_due(start), Some(Timer::Dial(ListingId(3))));
        assert_eq!(timers.pop_due(start), None, "the commit is not due yet");
        assert_eq!(timers.pop_due(later), Some(Timer::Commit));
        assert_eq!(timers.next_at(), None);
    }
}
