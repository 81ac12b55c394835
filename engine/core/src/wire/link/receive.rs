//! Where the stream of a peer lands, and how it is taken out of there.
//!
//! Peers answer requests in order nearly always, so the link predicts where the next bytes belong:
//! a 13-byte header, then a block's final place, and so on for up to 64 blocks. One vectored receive
//! fills all of it without a copy. Where the prediction was wrong (another message in between,
//! another order, a block cut differently) the rest of what was received is moved once into a linear
//! buffer and read again from there: a wrong prediction costs a move and never a byte.

use std::time::Instant;

use super::super::channel::{Channel, Kept};
use super::super::error::LinkError;
use super::super::handshake::HANDSHAKE_LEN;
use super::super::message::{Frame, FrameLimits, Message, PIECE_HEADER_LEN, frame, piece_header};
use super::super::plan::{
    ChannelId, Landed, PLAN_BLOCKS_MAX, PLAN_BLOCKS_MIN, PlanSlot, ReceivePlan,
};
use super::{Link, Phase};
use crate::geometry::{BLOCK_LEN, BlockRef};

/// What is read at a time when nothing is predicted, in bytes: room for a burst of haves. Whoever fills that is
/// read four times as much the next time, up to [`SMALL_LEN_MAX`]: a flood is over sooner the fewer calls
/// and turns it takes to read it.
pub(super) const SMALL_LEN: usize = 1024;
/// Most staging bytes in one slot, so that a long message does not size our buffers.
const SMALL_LEN_MAX: usize = 16 * 1024;
/// The scratch for wrong predictions is given back beyond this size, in bytes.
const SCRATCH_KEEP: usize = 64 * 1024;
/// A `piece` message whose payload is under way.
#[derive(Debug)]
pub(super) struct MidBlock {
    channel: ChannelId,
    block: BlockRef,
    /// Bytes of pad that come behind the block and are kept nowhere.
    pad: u32,
    /// Bytes of block and pad that have come.
    filled: u32,
    /// The part that found no place, once it has not.
    kept: Option<Kept>,
}

impl Link {
    /// Whether bytes are expected now: a block, or the rest of a message. If not, waiting for the
    /// socket to become readable costs no buffer.
    pub fn expects_bytes(&self) -> bool {
        let waiting = self.channels.iter().any(|channel| channel.outstanding_count() > 0);
        waiting || self.mid.is_some() || !self.staged.is_empty() || self.phase != Phase::Open
    }

    /// Where the next bytes should land: header slots and, by prediction, the final places of the
    /// blocks we asked for. `can_place` says whether a block's place can be lent to this receive; a
    /// block without one lands in staging and is handed out with its event. The driver may use any
    /// prefix of the slots. The plan stays empty while an incoming link waits for [`Link::accept`], and
    /// while a peer that has asked for more than it may is not read; [`Link::poll_timeout`] ends that.
    pub fn poll_receive(
        &mut self,
        plan: &mut ReceivePlan,
        can_place: &mut dyn FnMut(ChannelId, BlockRef) -> bool,
    ) {
        plan.slots.clear();
        match self.phase {
            Phase::Offered { .. } => {}
            Phase::Open if self.pause().is_some() => {}
            Phase::Handshake { .. } => {
                plan.slots.push(PlanSlot::Small { len: HANDSHAKE_LEN - self.staged.len() });
            }
            Phase::Open => self.predict(&mut plan.slots, can_place),
        }
        self.plan.clone_from(&plan.slots);
    }

    fn predict(
        &mut self,
        slots: &mut Vec<PlanSlot>,
        can_place: &mut dyn FnMut(ChannelId, BlockRef) -> bool,
    ) {
        let mut blocks_left = self.blocks_ahead;
        if let Some(mid) = &mut self.mid {
            let (channel, block, from_offset) = (mid.channel, mid.block, mid.filled);
            let (len, rest) = (mid.rest_of_block(), mid.rest() as usize);
            if len == 0 || !self.channels[0].is_under_way(block) {
                slots.push(PlanSlot::Small { len: rest }); // read only to be forgotten
            } else if mid.kept.is_none() && can_place(channel, block) {
                slots.push(PlanSlot::Block { channel, block, from_offset, len });
                push_pad(slots, mid.pad);
            } else {
                mid.keep();
                slots.push(PlanSlot::Small { len: rest });
            }
            blocks_left -= 1;
        }
        // The first header may have begun to arrive, or be that of another message.
        let mut header_len = PIECE_HEADER_LEN;
        let mut staged = self.staged.as_slice();
        // One that was given up and asked for again comes a second time.
        let is_wanted = |block: &BlockRef| self.channels[0].is_under_way(*block);
        let mid_block = self.mid.as_ref().map(|mid| mid.block).filter(is_wanted);
        let mut predicted = false;
        for channel in &self.channels {
            for block in channel.outstanding() {
                if Some(block) == mid_block {
                    continue;
                }
                if !staged.is_empty() {
                    if piece_header(channel.named(block)).starts_with(staged) {
                        header_len -= staged.len();
                    } else {
                        let rest = rest_of_message(staged, channel.limits());
                        slots.push(PlanSlot::Small { len: rest.min(SMALL_LEN_MAX) });
                        if rest > SMALL_LEN_MAX {
                            return;
                        }
                    }
                    staged = &[];
                }
                if blocks_left == 0 {
                    return;
                }
                predicted = true;
                blocks_left -= 1;
                slots.push(PlanSlot::Small { len: header_len });
                header_len = PIECE_HEADER_LEN;
                let (channel, len, pad) = (channel.id(), block.len(), channel.pad_of(block));
                if !can_place(channel, block) {
                    // One payload in staging is enough; the next turn may have a place again.
                    slots.push(PlanSlot::Small { len: (len + pad) as usize });
                    return;
                }
                slots.push(PlanSlot::Block { channel, block, from_offset: 0, len });
                if pad > 0 {
                    push_pad(slots, pad);
                    blocks_left = blocks_left.saturating_sub(1); // its slot is one more
                }
            }
        }
        if !predicted && self.mid.is_none() {
            let limits = self.channels[0].limits();
            let rest = if staged.is_empty() { 0 } else { rest_of_message(staged, limits) };
            slots.push(PlanSlot::Small { len: rest.clamp(self.small_len, SMALL_LEN_MAX) });
        }
    }

    /// `len_bytes` landed as planned by the last [`Link::poll_receive`]. A wrong prediction costs one
    /// move, never a byte. After an error the connection is to be closed.
    ///
    /// # Errors
    /// [`LinkError`] when the peer breaks a rule.
    ///
    /// # Panics
    /// If more landed than was planned.
    pub fn handle_received(
        &mut self,
        now: Instant,
        len_bytes: usize,
        landed: &mut dyn Landed,
    ) -> Result<(), LinkError> {
        let plan = std::mem::take(&mut self.plan);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.last_received = now;
        self.received_bytes += len_bytes as u64;
        let was_open = self.phase == Phase::Open;
        self.blocks_ahead = self.blocks_ahead_after(&plan, len_bytes);
        let result = self.walk(now, &plan, len_bytes, landed, &mut scratch);
        // Questions are paid for after the receive that brought them, so that of these few are read at once.
        let is_filled = matches!(plan[..], [PlanSlot::Small { len }] if len == len_bytes);
        self.small_len =
            match was_open && is_filled && !self.channels.iter().any(Channel::has_been_asked) {
                true => (self.small_len * 4).min(SMALL_LEN_MAX),
                false => SMALL_LEN,
            };
        scratch.clear();
        scratch.shrink_to(SCRATCH_KEEP);
        self.scratch = scratch;
        self.plan = plan;
        self.plan.clear();
        let pauses = self.channels.iter().filter_map(Channel::paused_until);
        self.paused_until = pauses.filter(|&until| until > now).max();
        self.watch_progress(now);
        result
    }

    /// A receive that came back full may have left as much behind; otherwise room for twice what came is enough.
    /// One that expected no block says nothing.
    fn blocks_ahead_after(&self, plan: &[PlanSlot], len_bytes: usize) -> usize {
        if !plan.iter().any(|slot| matches!(slot, PlanSlot::Block { .. })) {
            return self.blocks_ahead;
        }
        let planned: usize = plan.iter().map(PlanSlot::len_bytes).sum();
        let blocks = match len_bytes >= planned {
            true => 2 * self.blocks_ahead,
            false => 2 * len_bytes.div_ceil(BLOCK_LEN as usize),
        };
        blocks.clamp(PLAN_BLOCKS_MIN, PLAN_BLOCKS_MAX)
    }

    fn walk(
        &mut self,
        now: Instant,
        plan: &[PlanSlot],
        len_bytes: usize,
        landed: &mut dyn Landed,
        scratch: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        let mut left = len_bytes;
        for (index, slot) in plan.iter().enumerate() {
            if left == 0 {
                return Ok(());
            }
            let took = left.min(slot.len_bytes());
            match *slot {
                // Behind the first slot every message begins in a slot of its own. One that does not was
                // not predicted, and its payload may belong where a later slot still holds the stream. The
                // pad of a block that came as predicted belongs nowhere.
                PlanSlot::Small { .. }
                    if index == 0
                        || (self.staged.is_empty()
                            && self.mid.as_ref().is_none_or(|mid| mid.rest_of_block() == 0)) =>
                {
                    scratch.clear();
                    scratch.extend_from_slice(&landed.slot(index)[..took]);
                    self.feed(now, scratch, landed)?;
                }
                PlanSlot::Block { block, from_offset, .. }
                    if self.continues(block, from_offset) =>
                {
                    self.advance(now, took as u32); // at most a block
                }
                PlanSlot::Small { .. } | PlanSlot::Block { .. } => {
                    // Not what was predicted: out of the places, slot by slot, and read again. Mostly a
                    // message came between, and each block moves down by its length.
                    for (index, slot) in plan.iter().enumerate().skip(index) {
                        let took = left.min(slot.len_bytes());
                        if took == 0 {
                            break;
                        }
                        scratch.clear();
                        scratch.extend_from_slice(&landed.slot(index)[..took]);
                        let unread = &plan[index + 1..];
                        self.feed(now, scratch, &mut Behind { landed, unread })?;
                        left -= took;
                    }
                    assert_eq!(left, 0, "more landed than was planned");
                    return Ok(());
                }
            }
            left -= took;
        }
        assert_eq!(left, 0, "more landed than was planned");
        Ok(())
    }

    /// Takes in bytes of the stream, in order, wherever they were cut.
    fn feed(
        &mut self,
        now: Instant,
        mut bytes: &[u8],
        landed: &mut dyn Landed,
    ) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            if self.phase != Phase::Open {
                bytes = self.feed_handshake(bytes)?;
            } else if let Some(mid) = &mut self.mid {
                let of_block = mid.rest_of_block();
                let rest = if of_block > 0 { of_block } else { mid.rest() };
                let took = bytes.len().min(rest as usize);
                if of_block == 0 {
                    if bytes[..took].iter().any(|&byte| byte != 0) {
                        return Err(LinkError::PadNotZero { block: mid.block });
                    }
                } else if self.channels[0].is_under_way(mid.block) {
                    mid.write(&bytes[..took], landed);
                }
                self.advance(now, took as u32); // at most a block
                bytes = &bytes[took..];
            } else if self.staged.is_empty() {
                let used = self.feed_message(now, bytes)?;
                if used == 0 {
                    self.staged.extend_from_slice(bytes);
                    return Ok(());
                }
                bytes = &bytes[used..];
            } else {
                let rest = match frame(&self.staged, self.limits())? {
                    Frame::NeedsBytes(needed) => needed - self.staged.len(),
                    Frame::Complete(_) | Frame::PieceHeader(_) => 0,
                };
                let took = rest.min(bytes.len());
                self.staged.extend_from_slice(&bytes[..took]);
                bytes = &bytes[took..];
                let staged = std::mem::take(&mut self.staged);
                let used = self.feed_message(now, &staged)?;
                self.staged = staged;
                if used > 0 {
                    assert_eq!(used, self.staged.len(), "staging holds one message");
                    self.staged.clear();
                    self.staged.shrink_to(SMALL_LEN);
                }
            }
        }
        Ok(())
    }

    /// Takes in the message that `bytes` begins with, if it is complete: how many bytes it had.
    fn feed_message(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, LinkError> {
        let limits = self.limits();
        let channel = &mut self.channels[0];
        match frame(bytes, limits)? {
            Frame::NeedsBytes(_) => Ok(0),
            Frame::Complete(len) => {
                self.messages += 1;
                channel.handle_message(now, Message::decode(&bytes[..len], limits)?)?;
                Ok(len)
            }
            Frame::PieceHeader(raw) => {
                let block = channel.begin_block(raw)?;
                let (channel, pad) = (channel.id(), raw.len - block.len());
                self.mid = Some(MidBlock { channel, block, pad, filled: 0, kept: None });
                Ok(PIECE_HEADER_LEN)
            }
        }
    }

    /// Whether the block under way goes on at this place of the plan.
    fn continues(&self, block: BlockRef, from_offset: u32) -> bool {
        let is_wanted = self.channels[0].is_under_way(block);
        self.mid.as_ref().is_some_and(|mid| is_wanted && mid.continues(block, from_offset))
    }

    /// Counts `len` bytes of the block under way as arrived.
    fn advance(&mut self, now: Instant, len: u32) {
        let mid = self.mid.as_mut().expect("a block is under way");
        mid.filled += len;
        if mid.rest() == 0 {
            let mid = self.mid.take().expect("a block is under way");
            self.messages += 1;
            self.channels[mid.channel.0 as usize].finish_block(now, mid.block, mid.kept);
        }
    }
}

impl MidBlock {
    fn continues(&self, block: BlockRef, from_offset: u32) -> bool {
        self.kept.is_none() && self.block == block && self.filled == from_offset
    }

    /// Bytes of the block that are still to come.
    fn rest_of_block(&self) -> u32 {
        self.block.len().saturating_sub(self.filled)
    }

    /// Bytes of block and pad that are still to come.
    fn rest(&self) -> u32 {
        self.block.len() + self.pad - self.filled
    }

    /// From here on the payload finds no place.
    fn keep(&mut self) {
        let (from_offset, rest) = (self.filled, self.rest_of_block() as usize); // at most a block
        self.kept.get_or_insert_with(|| Kept { from_offset, bytes: Vec::with_capacity(rest) });
    }

    /// Puts the next bytes of the payload where they belong.
    fn write(&mut self, bytes: &[u8], landed: &mut dyn Landed) {
        if self.kept.is_none() {
            match landed.place(self.channel, self.block) {
                Some(place) => {
                    assert_eq!(place.len(), self.block.len() as usize, "place of {:?}", self.block);
                    let filled = self.filled as usize;
                    place[filled..filled + bytes.len()].copy_from_slice(bytes);
                }
                None => self.keep(),
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.bytes.extend_from_slice(bytes);
        }
    }
}

/// The places of a plan while the stream is moved out of its slots: those of slots that are not read yet hold
/// other bytes of the stream. A block that came before its turn finds no place and is kept.
struct Behind<'a> {
    landed: &'a mut dyn Landed,
    unread: &'a [PlanSlot],
}

impl Landed for Behind<'_> {
    fn slot(&mut self, index: usize) -> &mut [u8] {
        self.landed.slot(index)
    }

    fn place(&mut self, channel: ChannelId, block: BlockRef) -> Option<&mut [u8]> {
        let holds_stream = |slot: &PlanSlot| match *slot {
            PlanSlot::Block { block: planned, .. } => planned == block,
            PlanSlot::Small { .. } => false,
        };
        let is_unread = self.unread.iter().any(holds_stream);
        if is_unread { None } else { self.landed.place(channel, block) }
    }
}

/// A place to forget a pad in.
fn push_pad(slots: &mut Vec<PlanSlot>, pad: u32) {
    if pad > 0 {
        slots.push(PlanSlot::Small { len: pad as usize });
    }
}

/// How many bytes of the message that `staged` begins are still to come, as far as can be said.
fn rest_of_message(staged: &[u8], limits: FrameLimits) -> usize {
    match frame(staged, limits) {
        Ok(Frame::NeedsBytes(needed)) => needed - staged.len(),
        // An error is found again, and reported, when the next bytes come.
        Ok(Frame::Complete(_) | Frame::PieceHeader(_)) | Err(_) => 1,
    }
}
