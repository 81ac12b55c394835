//! The scheduler: messages of any lengths into the lanes of the kernels.
//!
//! As many messages as the plan is wide are in flight. All advance by the same count of blocks: the
//! least that any of them has ready in one run of memory. A message that ends gives its lane to the
//! next. Nothing is allocated.

use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::plan::Plan;

/// How many waiting messages are looked at to find the longest. Starting long messages first keeps
/// the lanes full at the end: a long one started last would run alone.
const WINDOW: usize = 64;

/// A message between two feeds.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) state: State,
    /// Bytes taken in so far.
    pub(super) len_bytes: u64,
    /// The bytes past the last whole block: the first `len_bytes % 64`.
    pub(super) carry: [u8; BLOCK_LEN_BYTES],
}

impl Running {
    /// A message of which nothing has been seen.
    pub(super) fn new(start: State) -> Running {
        Running { state: start, len_bytes: 0, carry: [0; BLOCK_LEN_BYTES] }
    }
}

/// The messages of one run.
pub(super) trait Messages<'a> {
    /// Whether the data ends every message, so that padding follows it.
    const ENDS: bool;

    /// How many messages there are.
    fn count(&self) -> usize;

    /// Bytes that [`Messages::part`] will give for the message at `index`.
    fn len_bytes(&self, index: usize) -> u64;

    /// The part of the message at `index` that `cursor` stands at; moves the cursor on.
    fn part(&self, index: usize, cursor: &mut usize) -> Option<&'a [u8]>;

    /// Where an earlier run left the message, or `None` when it starts here.
    fn resume(&self, index: usize) -> Option<Running>;

    /// Takes the message back: its digest stands in the state when it has ended.
    fn done(&mut self, index: usize, running: Running);
}

/// A message in flight. Its state lies apart, beside those of the other lanes.
#[derive(Clone, Copy)]
struct Lane<'a> {
    index: usize,
    cursor: usize,
    /// What is left of the current part.
    rest: &'a [u8],
    len_bytes: u64,
    /// Joins parts to whole blocks, and holds the padding.
    buffer: [u8; 2 * BLOCK_LEN_BYTES],
    /// Bytes at the start of `buffer` that do not yet make a block.
    carry_len: usize,
    /// Whole blocks of `buffer` that wait to be hashed, as a range of bytes; empty if none.
    buffered: (usize, usize),
    padded: bool,
}

impl<'a> Lane<'a> {
    const IDLE: Lane<'static> = Lane {
        index: 0,
        cursor: 0,
        rest: &[],
        len_bytes: 0,
        buffer: [0; 2 * BLOCK_LEN_BYTES],
        carry_len: 0,
        buffered: (0, 0),
        padded: false,
    };

    /// Starts or resumes the message at `index` and gives its state.
    fn start<M: Messages<'a>>(&mut self, messages: &M, index: usize, start: State) -> State {
        (self.index, self.cursor, self.rest) = (index, 0, &[]);
        (self.buffered, self.padded) = ((0, 0), false);
        let Some(running) = messages.resume(index) else {
            (self.len_bytes, self.carry_len) = (0, 0);
            return start;
        };
        self.len_bytes = running.len_bytes;
        self.carry_len = (running.len_bytes % BLOCK_LEN_BYTES as u64) as usize;
        self.buffer[..BLOCK_LEN_BYTES].copy_from_slice(&running.carry);
        running.state
    }

    /// Whole blocks to hash next, in one run of memory.
    #[inline]
    fn ready(&self) -> &[u8] {
        match self.buffered {
            (from, to) if from < to => &self.buffer[from..to],
            _ => &self.rest[..self.rest.len() / BLOCK_LEN_BYTES * BLOCK_LEN_BYTES],
        }
    }

    /// Takes note that `len_bytes` of what was ready are hashed.
    #[inline]
    fn advance(&mut self, len_bytes: usize) {
        if self.buffered.0 < self.buffered.1 {
            self.buffered.0 += len_bytes;
        } else {
            self.rest = &self.rest[len_bytes..];
        }
    }

    /// Sees to it that blocks are ready; `false` when the message has no more.
    fn make_ready<M: Messages<'a>>(&mut self, messages: &M) -> bool {
        loop {
            if self.buffered.0 < self.buffered.1 {
                return true;
            }
            if self.carry_len == 0 && self.rest.len() >= BLOCK_LEN_BYTES {
                return true;
            }
            if self.rest.is_empty() {
                if let Some(part) = messages.part(self.index, &mut self.cursor) {
                    self.rest = part;
                    self.len_bytes += part.len() as u64;
                    continue;
                }
                if !M::ENDS || self.padded {
                    return false;
                }
                self.pad();
                return true;
            }
            let take = (BLOCK_LEN_BYTES - self.carry_len).min(self.rest.len());
            let (joined, rest) = self.rest.split_at(take);
            self.buffer[self.carry_len..self.carry_len + take].copy_from_slice(joined);
            self.rest = rest;
            self.carry_len += take;
            if self.carry_len == BLOCK_LEN_BYTES {
                (self.carry_len, self.buffered) = (0, (0, BLOCK_LEN_BYTES));
            }
        }
    }

    /// Appends the padding to what is carried: a one bit, zeros, the length in bits (FIPS 180-4,
    /// 5.1.1).
    fn pad(&mut self) {
        let len_place = std::mem::size_of::<u64>();
        let fits = self.carry_len + 1 + len_place <= BLOCK_LEN_BYTES;
        let end = if fits { BLOCK_LEN_BYTES } else { 2 * BLOCK_LEN_BYTES };
        self.buffer[self.carry_len] = 0x80;
        self.buffer[self.carry_len + 1..end - len_place].fill(0);
        self.buffer[end - len_place..end].copy_from_slice(&(self.len_bytes * 8).to_be_bytes());
        (self.carry_len, self.buffered, self.padded) = (0, (0, end), true);
    }

    /// What to give back when the message has no more blocks.
    fn finish(&self, state: State) -> Running {
        let mut carry = [0; BLOCK_LEN_BYTES];
        carry.copy_from_slice(&self.buffer[..BLOCK_LEN_BYTES]);
        Running { state, len_bytes: self.len_bytes, carry }
    }
}

/// Picks the order in which messages start: as they come if all have one length, else the longest
/// of the next [`WINDOW`].
struct Queue {
    next: usize,
    count: usize,
    equal: bool,
    waiting: [(u64, usize); WINDOW],
    waiting_len: usize,
}

impl Queue {
    fn new<'a, M: Messages<'a>>(messages: &M) -> Queue {
        let count = messages.count();
        let equal = (1..count).all(|index| messages.len_bytes(index) == messages.len_bytes(0));
        Queue { next: 0, count, equal, waiting: [(0, 0); WINDOW], waiting_len: 0 }
    }

    fn pop<'a, M: Messages<'a>>(&mut self, messages: &M) -> Option<usize> {
        if self.equal {
            let index = self.next;
            self.next += 1;
            return (index < self.count).then_some(index);
        }
        while self.waiting_len < WINDOW && self.next < self.count {
            self.waiting[self.waiting_len] = (messages.len_bytes(self.next), self.next);
            self.waiting_len += 1;
            self.next += 1;
        }
        let waiting = &mut self.waiting[..self.waiting_len];
        let longest = (0..waiting.len()).max_by_key(|&at| waiting[at].0)?;
        let (_, index) = waiting[longest];
        waiting[longest] = waiting[self.waiting_len - 1];
        self.waiting_len -= 1;
        Some(index)
    }
}

/// Hashes all of `messages` by `plan`.
pub(super) fn run<'a, M: Messages<'a>>(plan: &Plan, messages: &mut M) {
    // A short message must not pay for lanes that it does not use.
    match messages.count().min(plan.width) {
        0 => (),
        1 => run_in::<1, M>(plan, messages),
        2..=4 => run_in::<4, M>(plan, messages),
        _ => run_in::<LANES_MAX, M>(plan, messages),
    }
}

/// Hashes all of `messages` by `plan` in at most `LANES` lanes.
fn run_in<'a, const LANES: usize, M: Messages<'a>>(plan: &Plan, messages: &mut M) {
    let start = plan.algo.start();
    let width = plan.width.min(LANES);
    let mut queue = Queue::new(messages);
    let mut lanes = [Lane::IDLE; LANES];
    let mut states = [start; LANES];
    let mut busy = 0;
    loop {
        while busy < width {
            let Some(index) = queue.pop(messages) else { break };
            states[busy] = lanes[busy].start(messages, index, start);
            if lanes[busy].make_ready(messages) {
                busy += 1;
            } else {
                messages.done(index, lanes[busy].finish(states[busy]));
            }
        }
        if busy == 0 {
            return;
        }
        let mut from = 0;
        while from < busy {
            let group = plan.group(busy - from);
            let to = from + group.take;
            step(group, &mut lanes[from..to], &mut states[from..to]);
            from = to;
        }
        // Backwards, so that a lane moved into a gap has been looked at.
        for at in (0..busy).rev() {
            if !lanes[at].make_ready(messages) {
                messages.done(lanes[at].index, lanes[at].finish(states[at]));
                busy -= 1;
                lanes[at] = lanes[busy];
                states[at] = states[busy];
            }
        }
    }
}

/// Advances a group of lanes by as many blocks as all of them have ready.
#[inline]
fn step(group: &super::plan::Group, lanes: &mut [Lane<'_>], states: &mut [State]) {
    let mut data: [&[u8]; LANES_MAX] = [&[]; LANES_MAX];
    let mut blocks = usize::MAX;
    for (data, lane) in data.iter_mut().zip(lanes.iter()) {
        *data = lane.ready();
        blocks = blocks.min(data.len() / BLOCK_LEN_BYTES);
    }
    group.kernel.update(states, &data[..lanes.len()], blocks);
    for lane in lanes {
        lane.advance(blocks * BLOCK_LEN_BYTES);
    }
}
