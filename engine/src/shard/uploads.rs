//! What sends keep of the arena, and who gives it back when it is short.
//!
//! A send keeps its extents until the peer has taken all of it, and a peer may take nothing for a minute
//! before it is dropped. So senders share half of the arena evenly, a slow peer is sent little at a time, and
//! when somebody finds no memory, what stalled sends keep is taken back early.

use std::time::{Duration, Instant};

use ringseed_core::wire::LinkError;
use ringseed_sys::arena::EXTENT_LEN_BYTES;

use super::Shard;
use super::peer::{CloseReason, Conn, ConnId};
use super::serve::SEND_BYTES_MAX;
use crate::io::{SendBuf, SendPart};

/// A peer that takes a send faster than this gets twice as much at once,
const FAST: Duration = Duration::from_millis(250);
/// and one that takes longer than this, half.
const SLOW: Duration = Duration::from_secs(1);
/// Least payload of a send, one block: a peer of 300 B/s takes it within the minute that it has.
const SEND_BYTES_MIN: u64 = 16 << 10;
/// What goes to a peer that takes no more than this at once is copied out of the arena: it would keep a whole
/// extent for a second or more, and so would each of hundreds like it.
const COPIED_BELOW: u64 = 32 << 10;
/// Most that is copied for one send, in bytes.
const COPIED_MAX: u64 = 64 << 10;
/// When memory is short, what was read ahead for a send that takes longer than this is given up,
const GIVE_UP_HELD_AFTER: Duration = Duration::from_millis(250);
/// and so is a connection whose send takes longer than this, while such sends keep a quarter of the arena.
const GIVE_UP_SEND_AFTER: Duration = Duration::from_secs(5);
/// Memory is looked for among the stalled so often at most.
const RELIEF_EVERY: Duration = Duration::from_millis(50);

/// Answers (info dict, hashes) that wait on one connection and may be joined by another small one, in
/// bytes, whatever waits elsewhere.
const ANSWERS_FREE: usize = 32 << 10;
/// Longest answer that counts as small: a piece of an info dict, or 512 hashes with their proof.
const ANSWER_SMALL: usize = 20 << 10;
/// Answers that wait or are on their way over all connections, in bytes; beyond it only small ones go to
/// those who have little waiting.
const ANSWERS_MAX: usize = 16 << 20;

/// Extents that sends keep, over all connections.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    senders: usize,
    pinned: usize,
    relieved_at: Option<Instant>,
    /// Where the round is: what the connection had been given, in bytes, that was served last or further on.
    clock: u64,
}

impl Uploads {
    /// A send that keeps `pinned` extents is on its way.
    pub fn began(&mut self, pinned: usize) {
        self.senders += usize::from(pinned > 0);
        self.pinned += pinned;
    }

    /// It is done, or its connection is gone.
    pub fn ended(&mut self, pinned: usize) {
        self.senders -= usize::from(pinned > 0);
        self.pinned -= pinned;
    }

    /// How far the round has come, see [`Conn::given_bytes`].
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// A connection that had been given `begun` bytes is served.
    pub fn set_clock(&mut self, begun: u64) {
        self.clock = self.clock.max(begun);
    }

    /// What a send to a peer that takes `send_bytes_max` at once may carry, in bytes, and whether it is copied
    /// out of an arena of `capacity` extents: that is for slow peers, for those of whom nothing is known
    /// while sends keep a quarter of it, and for all while they keep half. Who takes a megabyte into its
    /// system's buffers at once may read nothing of it for a minute.
    pub fn grant(&self, capacity: usize, send_bytes_max: u64) -> (u64, bool) {
        if self.pinned >= capacity / 2 {
            return (send_bytes_max.min(COPIED_MAX), true);
        }
        if self.pinned >= capacity / 4 && send_bytes_max < SEND_BYTES_MAX {
            return (SEND_BYTES_MIN, true);
        }
        (send_bytes_max.min(self.share_bytes(capacity)), send_bytes_max <= COPIED_BELOW)
    }

    /// What one more send may keep of an arena of `capacity` extents, in bytes.
    fn share_bytes(&self, capacity: usize) -> u64 {
        let share = capacity / 2 / (self.senders + 1);
        ((share.max(1) * EXTENT_LEN_BYTES) as u64).min(SEND_BYTES_MAX)
    }
}

/// How many extents a send keeps.
pub(super) fn extents_in(buf: &SendBuf) -> usize {
    let mut last = None;
    let mut count = 0;
    for part in &buf.parts {
        if let SendPart::Extent { extent, .. } = part {
            let at = Some(extent.as_ptr());
            count += usize::from(at != last);
            last = at;
        }
    }
    count
}

impl Conn {
    /// A send with payload took so long: the next one is to take about a second at most.
    pub(super) fn pace_sends(&mut self, took: Duration) {
        if took > SLOW {
            self.send_bytes_max = (self.send_bytes_max / 2).max(SEND_BYTES_MIN);
        } else if took < FAST {
            self.send_bytes_max = (self.send_bytes_max * 2).min(SEND_BYTES_MAX);
        }
    }
}

impl Shard {
    /// Whether an answer of so many bytes may be put in a peer's queue. Who asks and does not read would
    /// otherwise keep a quarter of a MiB with every connection.
    pub(super) fn may_answer(&self, id: ConnId, len_bytes: usize) -> bool {
        let waiting = |conn: &Conn| {
            let queued = conn.channel().map_or(0, |channel| channel.answer_bytes());
            queued + conn.sending_small
        };
        let own = self.conns.get(&id).map_or(0, waiting);
        if own <= ANSWERS_FREE && len_bytes <= ANSWER_SMALL {
            return true;
        }
        let all: usize = self.conns.values().map(waiting).sum();
        all + len_bytes <= ANSWERS_MAX / self.seat.mesh.shard_count()
    }

    /// Answers that wait or are on their way, over all connections, in bytes.
    #[cfg(test)]
    pub fn answer_bytes(&self) -> usize {
        let queued = |conn: &Conn| conn.channel().map_or(0, |channel| channel.answer_bytes());
        self.conns.values().map(|conn| queued(conn) + conn.sending_small).sum()
    }

    /// Somebody finds no memory to read into: takes it from those who take nothing.
    pub(super) fn relieve_memory(&mut self) {
        let now = self.now;
        if self.uploads.relieved_at.is_some_and(|at| now < at + RELIEF_EVERY) {
            return;
        }
        self.uploads.relieved_at = Some(now);
        let mut stalled: Vec<(Instant, usize, ConnId)> = Vec::new();
        for (&id, conn) in self.conns.iter_mut() {
            let Some((since, pinned)) = conn.sending else { continue };
            let took = now.saturating_duration_since(since);
            if took >= GIVE_UP_HELD_AFTER {
                conn.held.clear();
            }
            if took >= GIVE_UP_SEND_AFTER && pinned > 0 {
                stalled.push((since, pinned, id));
            }
        }
        stalled.sort_unstable();
        let mut kept: usize = stalled.iter().map(|(_, pinned, _)| pinned).sum();
        for (_, pinned, id) in stalled {
            if kept <= self.arena.capacity() / 4 {
                return;
            }
            kept -= pinned;
            let after = GIVE_UP_SEND_AFTER;
            self.close_conn(id, CloseReason::Link(LinkError::SendStalled { after }));
        }
    }
}
