//! From the socket into the assembler: what the link predicts becomes one vectored receive.

use std::io;
use std::time::Duration;

use ringseed_core::geometry::{BlockRef, ExtentIndex, Geometry};
use ringseed_core::wire::{Channel, ChannelId, Kept, Landed, PlanSlot};
use ringseed_sys::arena::ExtentMut;

use super::fill::{Arrival, Assembler};
use super::peer::{CloseReason, ConnId, Receiving};
use super::{Flight, Shard};
use crate::api::ListingId;
use crate::io::{Op, RECV_SLOTS_MAX, RecvBuf, RecvSlot};

/// A receive of at least so many bytes that comes back full promises more: four blocks, which a peer sends in
/// a burst when it has a stream to send.
const STREAM_BYTES_MIN: usize = 64 << 10;

/// A receive that is planned for at least so many bytes waits until all of them are there, in bytes.
const FILL_BYTES_MIN: usize = 256 << 10;
/// So long it waits: what a sender that shares a core with us is away for, about.
const FILL_MAX: Duration = Duration::from_millis(3);

/// What a receive in flight must remember: whose it is, and which extents it was lent.
#[derive(Debug)]
pub(super) struct RecvFlight {
    pub conn: ConnId,
    pub listing: Option<ListingId>,
    pub extents: Vec<ExtentIndex>,
}

/// The memory behind a receive, once its extents are back in the assembler.
struct Landing<'a> {
    conn: ConnId,
    small: &'a mut [u8],
    slots: &'a [RecvSlot],
    extents: &'a [ExtentIndex],
    /// `None` before the torrent's layout is known: then nothing was planned into extents.
    torrent: Option<(&'a Geometry, &'a mut Assembler)>,
}

impl Landed for Landing<'_> {
    fn slot(&mut self, index: usize) -> &mut [u8] {
        match self.slots[index] {
            RecvSlot::Small { start, len } => &mut self.small[start..start + len],
            RecvSlot::Extent { extent, start, len } => {
                let (_, assembler) = self.torrent.as_mut().expect("extents belong to a torrent");
                let bytes = assembler.bytes_mut(self.extents[extent]);
                &mut bytes.expect("a lent extent has come back")[start..start + len]
            }
        }
    }

    fn place(&mut self, _: ChannelId, block: BlockRef) -> Option<&mut [u8]> {
        let (geometry, assembler) = self.torrent.as_mut()?;
        assembler.place(geometry, block, self.conn)
    }
}

/// How long a receive of `planned` bytes, `blocks` of those that are asked for among them, may wait for its last
/// byte. A stream comes in pieces of 100 KiB, and taking in each by itself costs three times the calls. Nothing
/// idles meanwhile: what is asked for beyond it lasts twice as long.
fn fill_max(planned: usize, blocks: usize, outstanding: usize) -> Option<Duration> {
    (planned >= FILL_BYTES_MIN && outstanding >= 3 * blocks).then_some(FILL_MAX)
}

impl Shard {
    /// Puts the next receive of a connection in flight, or waits for its socket without a buffer.
    pub(super) fn arm_receive(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        // One that waits to be accepted may be on its way to another shard in a moment.
        if conn.receiving != Receiving::Idle || conn.link.is_offered() {
            return;
        }
        if !conn.is_streaming {
            conn.receiving = Receiving::Polling;
            let sock = conn.sock;
            let flight = self.flights.insert(Flight::PollIn(id));
            self.out.push_back(Op::PollIn { id: flight, sock });
            return;
        }
        let mut torrent = conn
            .listing
            .and_then(|listing| self.active.get_mut(&listing))
            .and_then(|active| active.layout_mut());
        let plan = &mut self.plan;
        conn.link.poll_receive(plan, &mut |_, block| match &mut torrent {
            Some((geometry, assembler)) => assembler.place(geometry, block, id).is_some(),
            None => false,
        });
        if plan.slots.is_empty() {
            return;
        }
        let mut buf = self.recv_bufs.pop().unwrap_or_default();
        let mut extents: Vec<ExtentIndex> = Vec::new();
        for slot in plan.slots.iter().take(RECV_SLOTS_MAX) {
            match *slot {
                PlanSlot::Small { len } => {
                    let start = buf.small.len();
                    buf.small.resize(start + len, 0);
                    buf.slots.push(RecvSlot::Small { start, len });
                }
                PlanSlot::Block { block, from_offset, len, .. } => {
                    let (geometry, assembler) = torrent.as_mut().expect("placed above");
                    let (extent, offset) = geometry.extent_of(block);
                    let at = match extents.iter().position(|&lent| lent == extent) {
                        Some(at) => at,
                        None => {
                            let lent = assembler.lend(extent).expect("placed above");
                            buf.extents.push(lent);
                            extents.push(extent);
                            extents.len() - 1
                        }
                    };
                    let start = (offset + from_offset) as usize;
                    buf.slots.push(RecvSlot::Extent { extent: at, start, len: len as usize });
                }
            }
        }
        let blocks =
            plan.slots.iter().filter(|slot| matches!(slot, PlanSlot::Block { .. })).count();
        let outstanding = conn.channel().map_or(0, Channel::outstanding_count);
        let planned = buf.slots.iter().map(RecvSlot::len_bytes).sum();
        buf.fill_max = fill_max(planned, blocks, outstanding as usize);
        conn.receiving = Receiving::InFlight;
        let flight = RecvFlight { conn: id, listing: conn.listing, extents };
        let sock = conn.sock;
        let flight = self.flights.insert(Flight::Recv(flight));
        self.out.push_back(Op::Recv { id: flight, sock, buf });
    }

    /// Answer to [`Op::PollIn`].
    pub(super) fn handle_readable(&mut self, id: ConnId, result: io::Result<()>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.receiving = Receiving::Idle;
        match result {
            Ok(()) => {
                conn.is_streaming = true;
                self.touched.insert(id);
            }
            Err(error) => self.close_conn(id, CloseReason::Network(error)),
        }
    }

    /// Answer to [`Op::Recv`].
    pub(super) fn handle_received(
        &mut self,
        flight: RecvFlight,
        result: io::Result<usize>,
        mut buf: RecvBuf,
    ) {
        // First of all the extents go back, also when the connection or the listing is gone.
        let lent: Vec<ExtentMut> = buf.extents.drain(..).collect();
        if let Some(active) = flight.listing.and_then(|listing| self.active.get_mut(&listing)) {
            for (&extent, bytes) in flight.extents.iter().zip(lent) {
                active.assembler.give_back(extent, bytes);
            }
        }
        let outcome = self.read_out(&flight, result, &mut buf);
        self.recycle(buf);
        if let Some(active) = flight.listing.and_then(|listing| self.active.get_mut(&listing)) {
            flight.extents.iter().for_each(|&extent| active.assembler.settle(extent));
        }
        // What came before an error counts: events first, so that whole blocks are not lost.
        self.drain_link(flight.conn);
        if let Err(reason) = outcome {
            self.close_conn(flight.conn, reason);
        }
    }

    /// Takes the stream out of where it landed.
    fn read_out(
        &mut self,
        flight: &RecvFlight,
        result: io::Result<usize>,
        buf: &mut RecvBuf,
    ) -> Result<(), CloseReason> {
        let Some(conn) = self.conns.get_mut(&flight.conn) else { return Ok(()) };
        conn.receiving = Receiving::Idle;
        let len_bytes = match result {
            Ok(0) => return Err(CloseReason::Network(io::ErrorKind::UnexpectedEof.into())),
            Ok(len_bytes) => len_bytes,
            Err(error) => return Err(CloseReason::Network(error)),
        };
        self.counters.received_bytes.add(len_bytes as u64);
        let planned: usize = buf.slots.iter().map(RecvSlot::len_bytes).sum();
        let expected = conn.link.expects_bytes();
        let active = flight.listing.and_then(|listing| self.active.get_mut(&listing));
        let mut landing = Landing {
            conn: flight.conn,
            small: &mut buf.small,
            slots: &buf.slots,
            extents: &flight.extents,
            torrent: active.and_then(|active| active.layout_mut()),
        };
        let outcome = conn.link.handle_received(self.now, len_bytes, &mut landing);
        // A full receive means that more is probably there. Otherwise wait without buffers: an extent
        // lent to a silent peer is an extent that others must copy around, and its piece cannot be judged.
        // Who is asked for a block or two fills every receive, and is silent for seconds after it. Where no
        // block was expected, as from a leech that asks for much, nothing is lent.
        let is_long = planned >= STREAM_BYTES_MIN || !expected;
        conn.is_streaming = len_bytes == planned && is_long;
        outcome.map_err(CloseReason::Link)
    }

    /// Keeps a receive's vectors for the next one.
    fn recycle(&mut self, mut buf: RecvBuf) {
        if self.recv_bufs.len() < 8 {
            buf.small.clear();
            buf.small.shrink_to(64 << 10);
            buf.slots.clear();
            buf.extents.clear();
            self.recv_bufs.push(buf);
        }
    }

    /// A block that we asked for is complete.
    pub(super) fn block_landed(
        &mut self,
        id: ConnId,
        listing: ListingId,
        block: BlockRef,
        kept: Option<Kept>,
    ) {
        let len_bytes = u64::from(block.len());
        self.counters.payload_received_bytes.add(len_bytes);
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.useful_at = now;
        let Some(who) = conn.who() else { return };
        let Some(active) = self.active.get_mut(&listing) else { return };
        let arrival = match active.layout_mut() {
            Some((geometry, assembler)) => assembler.land(geometry, block, kept, id, who),
            None => Arrival::Duplicate,
        };
        match arrival {
            Arrival::Duplicate => self.count_waste(listing, len_bytes),
            Arrival::Torn => {
                self.count_waste(listing, len_bytes);
                return self.request_torn(id, listing, block);
            }
            Arrival::New | Arrival::Whole => {
                let is_whole = arrival == Arrival::Whole;
                self.hashing.block_landed(self.now, listing, block, is_whole);
            }
        }
        self.request_answered(id, listing, block);
    }

    /// Counts payload that was of no use.
    pub(super) fn count_waste(&mut self, listing: ListingId, len_bytes: u64) {
        self.counters.wasted_bytes.add(len_bytes);
        if let Some(active) = self.active.get_mut(&listing) {
            active.wasted_bytes += len_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use ringseed_core::geometry::BLOCK_LEN;

    use super::*;

    #[test]
    fn a_receive_waits_only_for_a_stream_that_lasts() {
        let block = BLOCK_LEN as usize;
        assert_eq!(fill_max(64 * block, 64, 512), Some(FILL_MAX));
        assert_eq!(fill_max(16 * block, 16, 48), Some(FILL_MAX));
        // The sender would have nothing to do until it is over.
        assert_eq!(fill_max(64 * block, 64, 191), None);
        // Who sends little is not waited for: what came of a piece counts at once.
        assert_eq!(fill_max(15 * block, 15, 512), None);
    }
}
