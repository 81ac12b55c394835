//! Framing of one peer connection.
//!
//! Peers answer requests in order nearly always, so the link predicts where the next bytes belong:
//! a 13-byte header, then a block's final place, and so on for up to 64 blocks. One vectored receive
//! fills all of it without a copy. Where the prediction was wrong (another message in between,
//! another order, a block cut differently) the rest of what was received is moved once into a linear
//! buffer and read again from there: a wrong prediction costs a move and never a byte.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Bounds, Channel, ChannelConfig, ChannelEvent, Kept};
use super::error::LinkError;
use super::handshake::{HANDSHAKE_LEN, Handshake, PeerId, Reserved, WireId};
use super::message::{Frame, FrameLimits, Message, PIECE_HEADER_LEN, frame, piece_header};
use super::plan::{
    ChannelId, GatherList, Landed, PLAN_BLOCKS_MAX, PLAN_BLOCKS_MIN, PlanSlot, ReceivePlan,
};
use crate::geometry::{BLOCK_LEN, BlockRef};

/// What is read at a time when nothing is predicted, in bytes: room for a burst of haves. Whoever fills that is
/// read four times as much the next time, up to [`SMALL_LEN_MAX`]: a flood is over sooner the fewer calls
/// and turns it takes to read it.
const SMALL_LEN: usize = 1024;
/// Most staging bytes in one slot, so that a long message does not size our buffers.
const SMALL_LEN_MAX: usize = 16 * 1024;
/// The scratch for wrong predictions is given back beyond this size, in bytes.
const SCRATCH_KEEP: usize = 64 * 1024;
/// Pace that a begun message must keep, judged over this time (1 KiB/s).
const TRICKLE_WINDOW: Duration = Duration::from_secs(30);
/// Bytes due in one [`TRICKLE_WINDOW`].
const TRICKLE_BYTES: u64 = 30 * 1024;

/// How a link behaves; plain data.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Who we say we are.
    pub peer_id: PeerId,
    /// Name and version of the program, for the extension handshake.
    pub client: Arc<str>,
    /// The handshake must be complete by then.
    pub handshake_max: Duration,
    /// A peer that sends nothing for so long is gone (BEP 3: two minutes).
    pub idle_max: Duration,
    /// After so long without sending we send a keep-alive.
    pub keep_alive_after: Duration,
    /// A send must be taken by the peer within this time.
    pub send_max: Duration,
    /// Without a block for so long, while requests are outstanding, the peer counts as snubbing us.
    pub request_stall_max: Duration,
    /// How many requests of the peer we queue; announced as `reqq`.
    pub requests_in_max: u32,
    /// How many requests of ours may be outstanding.
    pub requests_out_max: u32,
    /// Which of our connections to this peer for this torrent it is, see [`Reserved::with_lane`].
    pub lane: u8,
    /// How many shards we have; 0 for one.
    pub shards: u8,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            peer_id: PeerId(*b"-RS0100-000000000000"),
            client: concat!("ringseed ", env!("CARGO_PKG_VERSION")).into(),
            handshake_max: Duration::from_secs(5),
            idle_max: Duration::from_secs(120),
            keep_alive_after: Duration::from_secs(60),
            send_max: Duration::from_secs(60),
            request_stall_max: Duration::from_secs(15),
            requests_in_max: 512,
            requests_out_max: 512,
            lane: 0,
            shards: 0,
        }
    }
}

/// What the shard should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The peer's handshake. On an incoming link call [`Link::accept`], or drop the connection. It may
    /// carry our own id there: then we have called ourselves.
    Handshake(Handshake),
    /// Something happened in a torrent's conversation.
    Channel {
        /// Which conversation.
        channel: ChannelId,
        /// What.
        event: ChannelEvent,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The peer's handshake is due. `wire_ids` are those that it may name; none on incoming links.
    Handshake { wire_ids: Vec<WireId>, until: Instant },
    /// An incoming link waits for [`Link::accept`].
    Offered { until: Instant },
    /// Messages flow.
    Open,
}

/// A `piece` message whose payload is under way.
#[derive(Debug)]
struct MidBlock {
    channel: ChannelId,
    block: BlockRef,
    /// Bytes of pad that come behind the block and are kept nowhere.
    pad: u32,
    /// Bytes of block and pad that have come.
    filled: u32,
    /// The part that found no place, once it has not.
    kept: Option<Kept>,
}

/// Framing of one peer connection (BEP 3). Does no I/O. The driver calls `handle_*` with what network
/// or clock brings, then drains every `poll_*`, then `handle_*` again.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    phase: Phase,
    peer: Option<Handshake>,
    /// One for a stock connection, none before an incoming link is accepted.
    channels: Vec<Channel>,
    /// The handshake has come and is still to be told.
    is_handshake_new: bool,

    /// The beginning of a message whose end has not come.
    staged: Vec<u8>,
    mid: Option<MidBlock>,
    /// What the receive in flight was planned as.
    plan: Vec<PlanSlot>,
    /// Blocks that the next receive is planned for: planning for many that do not come costs as much as
    /// taking them in.
    blocks_ahead: usize,
    scratch: Vec<u8>,
    /// What is read next when nothing is predicted, in bytes.
    small_len: usize,

    /// Our handshake, until it is sent.
    greeting: Option<Box<[u8; HANDSHAKE_LEN]>>,
    keep_alive_due: bool,
    sending_since: Option<Instant>,
    last_sent: Instant,
    last_received: Instant,
    received_bytes: u64,
    messages: u64,
    /// The peer has asked for more than it may and is not read until then.
    paused_until: Option<Instant>,
    /// Start of the window in which the message at hand must make progress.
    partial: Option<Partial>,
}

#[derive(Clone, Copy, Debug)]
struct Partial {
    since: Instant,
    received_bytes: u64,
    messages: u64,
}

impl Link {
    /// A connection that we made. `wire_ids` name the torrent: the first is sent, any of them may
    /// come back (BEP 52: a peer may answer a v1 id with the v2 id of a hybrid).
    ///
    /// # Panics
    /// If `wire_ids` is empty.
    pub fn outgoing(
        now: Instant,
        config: LinkConfig,
        wire_ids: &[WireId],
        channel: ChannelConfig,
    ) -> Self {
        let phase =
            Phase::Handshake { wire_ids: wire_ids.to_vec(), until: now + config.handshake_max };
        let mut link = Self::new(now, config, phase);
        link.greet(wire_ids[0], &channel);
        link.open_channel(channel);
        link
    }

    /// A connection that a peer made.
    pub fn incoming(now: Instant, config: LinkConfig) -> Self {
        let until = now + config.handshake_max;
        Self::new(now, config, Phase::Handshake { wire_ids: Vec::new(), until })
    }

    fn new(now: Instant, config: LinkConfig, phase: Phase) -> Self {
        Self {
            config,
            phase,
            peer: None,
            channels: Vec::new(),
            is_handshake_new: false,
            staged: Vec::new(),
            mid: None,
            plan: Vec::new(),
            blocks_ahead: PLAN_BLOCKS_MAX,
            scratch: Vec::new(),
            small_len: SMALL_LEN,
            greeting: None,
            keep_alive_due: false,
            sending_since: None,
            last_sent: now,
            last_received: now,
            received_bytes: 0,
            messages: 0,
            paused_until: None,
            partial: None,
        }
    }

    /// Answers an incoming handshake for the torrent `wire_id` and opens its channel. A peer that has
    /// named the v1 view of a hybrid and set the upgrade bit is answered by the v2 name (BEP 52).
    ///
    /// # Panics
    /// If no handshake waits for an answer.
    pub fn accept(&mut self, wire_id: WireId, channel: ChannelConfig) -> ChannelId {
        assert!(matches!(self.phase, Phase::Offered { .. }), "nothing to accept");
        let peer = self.peer.expect("an offered link has seen a handshake");
        self.phase = Phase::Open;
        let answer = channel.v2_id.filter(|_| peer.reserved.v2()).unwrap_or(wire_id);
        self.greet(answer, &channel);
        let id = self.open_channel(channel);
        self.channels[0].set_peer(peer.reserved, answer);
        self.channels[0].start();
        id
    }

    /// The peer's handshake, once it has come.
    pub fn peer(&self) -> Option<&Handshake> {
        self.peer.as_ref()
    }

    /// Whether handshakes are exchanged, so that messages may be sent.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether an incoming link waits for [`Link::accept`]: until then nothing is received.
    pub fn is_offered(&self) -> bool {
        matches!(self.phase, Phase::Offered { .. })
    }

    /// A torrent's conversation.
    pub fn channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(id.0 as usize)
    }

    /// A torrent's conversation, to steer it.
    pub fn channel_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(id.0 as usize)
    }

    // Receiving.

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

    fn feed_handshake<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], LinkError> {
        let took = bytes.len().min(HANDSHAKE_LEN - self.staged.len());
        self.staged.extend_from_slice(&bytes[..took]);
        Handshake::check_prefix(&self.staged)?;
        if let Ok(whole) = self.staged.as_slice().try_into() {
            let handshake = Handshake::decode(whole)?;
            self.staged.clear();
            self.handle_handshake(handshake)?;
        }
        Ok(&bytes[took..])
    }

    fn handle_handshake(&mut self, peer: Handshake) -> Result<(), LinkError> {
        let Phase::Handshake { wire_ids, until } = &self.phase else {
            unreachable!("only an open link receives after the handshake");
        };
        // The end that dialled gives the address up. The other end is told by the event, and answers it:
        // without an answer the dialler would not know whom it has reached.
        if peer.peer_id == self.config.peer_id && !wire_ids.is_empty() {
            return Err(LinkError::SelfConnection);
        }
        self.peer = Some(peer);
        self.is_handshake_new = true;
        if wire_ids.is_empty() {
            self.phase = Phase::Offered { until: *until };
        } else if wire_ids.contains(&peer.wire_id) {
            self.phase = Phase::Open;
            for channel in &mut self.channels {
                channel.set_peer(peer.reserved, peer.wire_id);
                channel.start();
            }
        } else {
            return Err(LinkError::WrongTorrent { found: peer.wire_id });
        }
        Ok(())
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

    fn limits(&self) -> FrameLimits {
        self.channels[0].limits()
    }

    /// What the shard should know, in order.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        if std::mem::take(&mut self.is_handshake_new) {
            return self.peer.map(LinkEvent::Handshake);
        }
        self.channels.iter_mut().find_map(|channel| {
            let event = channel.pop_event()?;
            Some(LinkEvent::Channel { channel: channel.id(), event })
        })
    }

    /// Gives back the memory of queues and staging, if nothing is under way in either direction: whether that
    /// is so. What an idle peer keeps are then its own fields and what it has said of itself.
    pub fn rest(&mut self) -> bool {
        let is_quiet = !self.expects_bytes()
            && !self.has_output()
            && self.sending_since.is_none()
            && self.channels.iter().all(Channel::is_quiet);
        if is_quiet {
            (self.staged, self.scratch, self.plan) = (Vec::new(), Vec::new(), Vec::new());
            self.channels.iter_mut().for_each(Channel::rest);
        }
        is_quiet
    }

    // Sending.

    /// What to send now; empty if there is nothing, or if the last send is not done
    /// ([`Link::handle_transmitted`]). `out` is cleared first.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut GatherList) {
        out.clear();
        if self.sending_since.is_some() {
            return;
        }
        if let Some(greeting) = self.greeting.take() {
            out.push_bytes(|small| small.extend_from_slice(&*greeting));
        }
        if self.phase == Phase::Open {
            for channel in &mut self.channels {
                channel.transmit(out);
            }
            if std::mem::take(&mut self.keep_alive_due) && out.is_empty() {
                out.push_bytes(|small| Message::KeepAlive.encode(small));
            }
        }
        if !out.is_empty() {
            self.sending_since = Some(now);
            self.last_sent = now;
        }
    }

    /// The send that [`Link::poll_transmit`] gave last is done.
    pub fn handle_transmitted(&mut self, now: Instant) {
        self.sending_since = None;
        self.last_sent = now;
    }

    /// Whether [`Link::poll_transmit`] would give something.
    pub fn has_output(&self) -> bool {
        let open = self.phase == Phase::Open;
        let channels = open && self.channels.iter().any(Channel::has_output);
        self.sending_since.is_none()
            && (self.greeting.is_some() || channels || (open && self.keep_alive_due))
    }

    // Time.

    /// When to call [`Link::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        let idle = self.last_received + self.config.idle_max;
        let sending = self.sending_since.map(|since| since + self.config.send_max);
        let keep_alive = (self.sending_since.is_none() && !self.keep_alive_due)
            .then(|| self.last_sent + self.config.keep_alive_after);
        let phase = match self.phase {
            Phase::Handshake { until, .. } | Phase::Offered { until } => Some(until),
            Phase::Open => keep_alive,
        };
        let partial = self.partial.map(|partial| partial.since + TRICKLE_WINDOW);
        let stalls = self.channels.iter().filter_map(Channel::stall_deadline);
        let others = [sending, phase, partial, self.pause()].into_iter().flatten();
        others.chain(stalls).fold(idle, Instant::min)
    }

    /// The time of [`Link::poll_timeout`] has come. Sets what follows from it; early calls are
    /// harmless.
    ///
    /// # Errors
    /// [`LinkError`] when the peer has been silent, slow or deaf for too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkError> {
        if let Phase::Handshake { until, .. } | Phase::Offered { until } = self.phase
            && until <= now
        {
            return Err(LinkError::HandshakeTimeout { after: self.config.handshake_max });
        }
        if self.last_received + self.config.idle_max <= now {
            return Err(LinkError::Idle { after: self.config.idle_max });
        }
        if self.sending_since.is_some_and(|since| since + self.config.send_max <= now) {
            return Err(LinkError::SendStalled { after: self.config.send_max });
        }
        if let Some(partial) = self.partial
            && partial.since + TRICKLE_WINDOW <= now
        {
            if self.received_bytes - partial.received_bytes < TRICKLE_BYTES {
                return Err(LinkError::Trickle { after: TRICKLE_WINDOW });
            }
            self.partial = None;
            self.watch_progress(now);
        }
        if self.pause().is_none_or(|until| until <= now) && self.paused_until.take().is_some() {
            self.watch_progress(now);
        }
        if self.phase == Phase::Open
            && self.sending_since.is_none()
            && self.last_sent + self.config.keep_alive_after <= now
        {
            self.keep_alive_due = true;
        }
        self.channels.iter_mut().for_each(|channel| channel.handle_timeout(now));
        Ok(())
    }

    /// Until when the peer is not read. Questions of the last receive that were refused cost nothing after all.
    fn pause(&self) -> Option<Instant> {
        let until = self.channels.iter().filter_map(Channel::paused_until).max();
        self.paused_until.and(until)
    }

    /// Keeps the window in which a begun message must make progress.
    fn watch_progress(&mut self, now: Instant) {
        let begun = self.phase == Phase::Open && (self.mid.is_some() || !self.staged.is_empty());
        // A peer that is not read makes no progress by our doing.
        if !begun || self.pause().is_some() {
            self.partial = None;
        } else if self.partial.is_none_or(|partial| partial.messages != self.messages) {
            let (received_bytes, messages) = (self.received_bytes, self.messages);
            self.partial = Some(Partial { since: now, received_bytes, messages });
        }
    }

    fn greet(&mut self, wire_id: WireId, channel: &ChannelConfig) {
        let reserved = Reserved::ours(channel.v2_id.is_some());
        let reserved = reserved.with_lane(self.config.lane, self.config.shards);
        let greeting = Handshake { reserved, wire_id, peer_id: self.config.peer_id };
        self.greeting = Some(Box::new(greeting.encode()));
    }

    fn open_channel(&mut self, channel: ChannelConfig) -> ChannelId {
        let id = ChannelId(self.channels.len() as u32); // one, on a stock connection
        let bounds = Bounds {
            requests_in_max: self.config.requests_in_max,
            requests_out_max: self.config.requests_out_max,
            request_stall_max: self.config.request_stall_max,
        };
        self.channels.reserve_exact(1); // room for four would be most of what an idle peer costs
        self.channels.push(Channel::new(id, channel, bounds, self.config.client.clone()));
        id
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

#[cfg(test)]
mod tests;
