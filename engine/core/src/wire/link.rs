//! Framing of one peer connection.
//!
//! Here is what a connection is, says and waits for; where what it brings lands is in [`receive`].

mod receive;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::receive::{MidBlock, SMALL_LEN};
use super::channel::{Bounds, Channel, ChannelConfig, ChannelEvent};
use super::error::LinkError;
use super::handshake::{HANDSHAKE_LEN, Handshake, PeerId, Reserved, WireId};
use super::message::{FrameLimits, Message};
use super::plan::{ChannelId, GatherList, PLAN_BLOCKS_MAX, PlanSlot};

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

#[cfg(test)]
mod tests;
