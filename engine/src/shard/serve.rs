//! Serving: requests in order, extents read once and shared by everybody who waits for them.
//!
//! Connections with requests stand in a round, and each turn gives one of them a quantum of bytes. Without a cap it
//! comes back when its socket has taken them: sockets set the pace, and nobody waits for anybody. Under a cap the
//! one that has been given least goes first (start-time fair queueing), so that many small requests and few large ones
//! get the same; many connections of one peer and one of another do by `accounts`.
//! A connection has one send in flight: what its socket does not take now is not pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use ringseed_core::geometry::{BLOCK_LEN, BlockRef, ExtentIndex, Geometry};
use ringseed_core::wire::{ChannelId, GatherItem, GatherList};
use ringseed_sys::arena::{Extent, ExtentMut};

use super::budget::Class;
use super::cache::ExtentKey;
use super::disk::{DiskTask, FileKey, TaskKind};
use super::limits::{Allowance, Counted, Way};
use super::peer::{CloseReason, Conn, ConnId, Held, Parts, Served};
use super::timers::Timer;
use super::writing::ranges_in;
use super::{Flight, Job, Shard};
use crate::api::ListingId;
use crate::io::{Op, ReadPath, SEND_PARTS_MAX, SendBuf, SendPart};
use crate::store::RunSet;

/// What a connection may send per turn under a cap, in bytes.
const QUANTUM: u64 = 256 << 10;
/// Whoever had nothing to ask for may catch up by so much with those who had, in bytes.
const BEHIND_MAX: u64 = 2 * QUANTUM;
/// Payload of one send at most, in bytes.
pub(super) const SEND_BYTES_MAX: u64 = 1 << 20;
/// Payload of the first send to a peer, in bytes, until it is known how fast it takes it.
pub(super) const SEND_BYTES_FIRST: u64 = 256 << 10;
/// Parts of one send that blocks may take; the rest is for messages between them.
const BLOCK_PARTS_MAX: usize = SEND_PARTS_MAX - 10;
/// Extents of one connection that are read ahead of being sent.
const READ_AHEAD: usize = 4;

/// Extents that a connection keeps for its next requests at most.
const HELD_MAX: usize = 2 * READ_AHEAD;

/// How soon connections that wait for memory are looked at again: about what reading an extent takes.
const STARVING_RETRY: Duration = Duration::from_millis(2);

/// An extent being read for serving, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiters: BTreeMap<ExtentKey, Vec<ConnId>>,
    /// Connections that held extents when that was last looked at, and those that have come by some since.
    holders: BTreeSet<ConnId>,
    /// Connections that found no extent to read into.
    starving: Vec<ConnId>,
    /// When a turn will look at them although nothing else happens.
    retry_at: Option<Instant>,
}

/// The extents that the first requests of a connection touch: only these are read ahead and held for it.
/// Small pieces asked for at random touch an extent each, all over the torrent.
#[derive(Debug, Default)]
struct Nearest {
    extents: Vec<ExtentIndex>,
}

impl Nearest {
    /// Takes the extents of the next request in. False when it touches one that is too far away.
    fn takes(&mut self, geometry: &Geometry, block: BlockRef) -> bool {
        geometry.extent_parts(block).all(|part| {
            // Requests come in order: mostly it is the last one.
            let is_known = self.extents.iter().rev().any(|&extent| extent == part.extent);
            let has_room = self.extents.len() < HELD_MAX;
            if !is_known && has_room {
                self.extents.push(part.extent);
            }
            is_known || has_room
        })
    }
}

/// A read of an extent, part by part.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub listing: ListingId,
    pub extent: ExtentIndex,
    /// Pieces that may be believed in it.
    pub pieces: RunSet,
    pub class: Class,
    /// What is still to be read, the next part last: file, offset, position in the extent, length.
    pub parts: Vec<(u32, u64, usize, usize)>,
    /// All that was read so far came from the page cache.
    pub is_resident: bool,
    /// Of a check: parts of the extent that are not there, position and length.
    pub holes: Vec<(usize, usize)>,
}

/// An extent that was found in memory with the bytes of a piece.
struct InMemory {
    extent: ExtentIndex,
    piece: u32,
    data: Extent,
    is_cached: bool,
}

impl Reads {
    /// Forgets a removed listing.
    pub fn forget(&mut self, listing: ListingId) {
        self.waiters.retain(|key, _| key.listing != listing);
    }
}

impl Shard {
    /// The peer wants blocks: the connection joins the round.
    pub(super) fn queue_upload(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !conn.is_queued && conn.sending.is_none() {
            conn.is_queued = true;
            self.upload_round.push_back(id);
        }
    }

    /// Goes through the round once.
    pub(super) fn serve_turn(&mut self) {
        for id in std::mem::take(&mut self.reads.starving) {
            self.queue_upload(id);
        }
        self.ask_again();
        if self.seat.mesh.limiter().is_any() {
            let conns = &self.conns;
            let given = |id: &ConnId| conns.get(id).map_or(0, |conn| conn.given_bytes);
            self.upload_round.make_contiguous().sort_by_key(given); // those that wait are in order already
        }
        for _ in 0..self.upload_round.len() {
            let Some(id) = self.upload_round.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.is_queued = false;
            if conn.sending.is_some() {
                continue; // comes back when the send is done
            }
            if !self.is_its_turn(id) {
                continue;
            }
            match self.allowance(id, Way::Up) {
                Allowance::Bytes(available) => self.serve_conn(id, available),
                Allowance::NotBefore(at) => {
                    self.queue_upload(id);
                    self.timers.set(at, Timer::Upload);
                }
            }
        }
    }

    fn counted(&self, id: ConnId) -> Option<Counted> {
        let conn = self.conns.get(&id)?;
        let is_member = self.door.is_member(conn.addr.ip());
        Some(Counted { listing: conn.listing?, is_member })
    }

    /// What may go over a connection now.
    pub(super) fn allowance(&self, id: ConnId, way: Way) -> Allowance {
        let none = Allowance::Bytes(u64::MAX);
        self.counted(id)
            .map_or(none, |counted| self.seat.mesh.limiter().allowance(way, counted, self.now))
    }

    /// Counts what goes over a connection.
    pub(super) fn spend(&self, id: ConnId, way: Way, bytes: u64) {
        if let Some(counted) = self.counted(id) {
            self.seat.mesh.limiter().spend(way, counted, bytes);
        }
    }

    /// Hands as many of the peer's requests to its channel as are in memory, and reads the next ones. It comes back
    /// to the round with the end of its send, or of a read.
    fn serve_conn(&mut self, id: ConnId, available: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(listing) = conn.listing else { return };
        // While choking, only what is allowed nevertheless waits there.
        let Some(channel) = conn.link.channel(ChannelId::STOCK) else { return };
        let wanted: Vec<BlockRef> = channel.peer_requests().take(2 * BLOCK_PARTS_MAX).collect();
        let Some(geometry) =
            self.active.get(&listing).and_then(|active| active.geometry()).cloned()
        else {
            return;
        };
        if wanted.is_empty() {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.held.clear();
            }
            return;
        }
        let is_capped = available != u64::MAX;
        let conn = self.conns.get_mut(&id).expect("looked up above");
        let (send_bytes_max, is_copied) =
            self.uploads.grant(self.arena.capacity(), conn.send_bytes_max);
        conn.is_copied = is_copied;
        let turn_max = if is_capped { QUANTUM.min(send_bytes_max) } else { send_bytes_max };
        let granted = turn_max.min(available);
        let mut spent = 0;
        // Behind a long answer blocks of earlier turns may still wait: one send may take them all.
        let parts_queued: usize = conn.served.iter().map(|served| served.parts.len() + 1).sum();
        let mut parts_left = BLOCK_PARTS_MAX.saturating_sub(parts_queued);
        let mut missing: Vec<ExtentIndex> = Vec::new();
        let mut nearest = Nearest::default();
        let mut last = None;
        for block in wanted {
            let Some(active) = self.active.get(&listing) else { return };
            let is_had = active.have.get(block.piece())
                && !active.unannounced.contains(&block.piece().get());
            if !is_had {
                // Asked for what we never announced, or have lost: say no, read nothing.
                if let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) {
                    channel.reject(block);
                }
                continue;
            }
            let is_near = nearest.takes(&geometry, block);
            let missing_before = missing.len();
            let (parts, cached_bytes) =
                self.parts_of(id, listing, &geometry, block, &mut last, &mut missing);
            if !is_near && missing.len() > missing_before {
                missing.truncate(missing_before);
                break; // read now, it would be let go below and read again and again
            }
            if !missing.is_empty() {
                if missing.len() >= READ_AHEAD {
                    break;
                }
                continue; // in order: nothing behind a missing block is sent before it
            }
            let len = u64::from(block.len());
            let parts_len = parts.len();
            // A request longer than usual may be more than a slow peer is ever granted at once: then it
            // goes alone, and the bucket is in debt for it.
            let goes_alone = len > granted && spent == 0 && granted >= u64::from(BLOCK_LEN);
            if (spent + len > granted && !goes_alone) || parts_len + 1 > parts_left {
                break;
            }
            let conn = self.conns.get_mut(&id).expect("looked up above");
            let Some(channel) = conn.channel_mut() else { return };
            if channel.serve(block) {
                conn.served.push_back(Served { block, parts });
                self.counters.read_cache_bytes.add(cached_bytes);
                spent += len;
                parts_left -= parts_len + 1;
            }
        }
        let conn = self.conns.get_mut(&id).expect("looked up above");
        if is_capped && spent > 0 {
            let begun = conn.given_bytes.max(self.uploads.clock().saturating_sub(BEHIND_MAX));
            self.uploads.set_clock(begun);
            conn.given_bytes = begun + spent;
        }
        self.spend(id, Way::Up, spent);
        self.count_for_account(id, spent);
        self.release_held(id, &geometry);
        self.touched.insert(id);
        for (ahead, extent) in missing.into_iter().enumerate() {
            self.read_for(id, listing, &geometry, extent, ahead > 0);
        }
    }

    /// Lets go of extents that the connection has no request for any more.
    fn release_held(&mut self, id: ConnId, geometry: &Geometry) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.held.is_empty() {
            return;
        }
        let mut nearest = Nearest::default();
        let channel = conn.link.channel(ChannelId::STOCK).into_iter();
        channel
            .flat_map(|channel| channel.peer_requests().take(2 * BLOCK_PARTS_MAX))
            .take_while(|&block| nearest.takes(geometry, block))
            .for_each(drop);
        conn.held.retain(|held| nearest.extents.contains(&held.extent));
    }

    /// Extents that are held or being read for connections.
    fn held_len(&mut self) -> usize {
        let mut held = 0;
        // Of thousands of connections few hold anything.
        self.reads.holders.retain(|id| {
            let len = self.conns.get(id).map_or(0, |conn| conn.held.len());
            held += len;
            len > 0
        });
        held + self.reads.waiters.len()
    }

    /// Extents that are held for connections and not on their way.
    #[cfg(test)]
    pub fn held_extents(&self) -> usize {
        self.conns.values().map(|conn| conn.held.len()).sum()
    }

    /// Where the bytes of a block are in memory, and how many of them our own cache has; extents that are not there
    /// are added to `missing`. `last` is what was found last: the next block mostly lies in the same extent.
    fn parts_of(
        &mut self,
        id: ConnId,
        listing: ListingId,
        geometry: &Geometry,
        block: BlockRef,
        last: &mut Option<InMemory>,
        missing: &mut Vec<ExtentIndex>,
    ) -> (Parts, u64) {
        let mut parts = Parts::default();
        let mut cached_bytes = 0;
        let piece = block.piece().get();
        for part in geometry.extent_parts(block) {
            let (start, len) = (part.offset as usize, part.len as usize);
            if last.as_ref().is_none_or(|last| (last.extent, last.piece) != (part.extent, piece)) {
                *last = self.in_memory(id, listing, part.extent, piece);
            }
            match last {
                Some(found) => {
                    cached_bytes += if found.is_cached { len as u64 } else { 0 };
                    parts.push((found.data.clone(), start, len));
                }
                None if missing.contains(&part.extent) => {}
                None => missing.push(part.extent),
            }
        }
        (parts, cached_bytes)
    }

    /// An extent with the bytes of a piece, if the connection holds it or the cache has it.
    fn in_memory(
        &mut self,
        id: ConnId,
        listing: ListingId,
        extent: ExtentIndex,
        piece: u32,
    ) -> Option<InMemory> {
        let is_it = |held: &&Held| held.extent == extent && held.pieces.contains(piece);
        let held = self.conns.get(&id).and_then(|conn| conn.held.iter().find(is_it));
        if let Some(held) = held {
            return Some(InMemory { extent, piece, data: held.data.clone(), is_cached: false });
        }
        let key = ExtentKey { listing, extent: extent.get() };
        let data = self.cache.get(key, piece)?;
        Some(InMemory { extent, piece, data, is_cached: true })
    }

    /// Reads an extent for a connection, or lets it wait for the read under way. `is_ahead`: the
    /// connection waits for another one first.
    ///
    /// At most a quarter of the arena is held for connections, so that receiving never waits for
    /// sending, and at most half of that for what is read ahead: the first extent of each connection,
    /// the one that it can send at once, always comes to its turn.
    fn read_for(
        &mut self,
        id: ConnId,
        listing: ListingId,
        geometry: &Geometry,
        extent: ExtentIndex,
        is_ahead: bool,
    ) {
        let key = ExtentKey { listing, extent: extent.get() };
        if let Some(waiters) = self.reads.waiters.get_mut(&key) {
            if !waiters.contains(&id) {
                waiters.push(id);
            }
            return;
        }
        let held_max = self.arena.capacity() / if is_ahead { 8 } else { 4 };
        if self.held_len() >= held_max {
            if is_ahead {
                return;
            }
            // What it keeps for later requests must not stand in the way of the first: connections that
            // all wait for each other's memory would wait for ever.
            let own = self.conns.get_mut(&id).map(|conn| std::mem::take(&mut conn.held));
            if own.is_none_or(|held| held.is_empty()) {
                self.starve(id);
                return;
            }
        }
        let Some(active) = self.active.get(&listing) else { return };
        // Only what is on disk may be believed, never bytes under a write that has not ended.
        let pieces: RunSet = geometry
            .pieces_of_extent(extent)
            .filter(|&piece| active.stored.get(piece))
            .map(|piece| piece.get())
            .collect();
        if pieces.is_empty() {
            // A long piece of which this extent is written and another is not: soon.
            self.starve(id);
            return;
        }
        let Some(buf) = self.take_extent() else {
            self.counters.arena_waits.add(1);
            self.starve(id);
            return;
        };
        self.reads.waiters.insert(key, vec![id]);
        self.read_extent(listing, geometry, extent, pieces, Class::Foreground, buf);
    }

    /// Lets a connection wait for memory. What frees some may be the end of the very turn we are in,
    /// with nothing to bring another one: so a timer does.
    fn starve(&mut self, id: ConnId) {
        self.relieve_memory();
        self.reads.starving.push(id);
        if self.reads.retry_at.is_none_or(|at| at <= self.now) {
            let at = self.now + STARVING_RETRY;
            self.reads.retry_at = Some(at);
            self.timers.set(at, Timer::Upload);
        }
    }

    /// Starts to read the pieces of an extent, or all of it for a check; pads become zeros. What is between the
    /// pieces is not read: it may lie in files that are not there, because nobody selected them.
    pub(super) fn read_extent(
        &mut self,
        listing: ListingId,
        geometry: &Geometry,
        extent: ExtentIndex,
        pieces: RunSet,
        class: Class,
        mut buf: ExtentMut,
    ) {
        let begin = geometry.extent_offset(extent);
        let mut parts = Vec::new();
        let ranges = match class {
            Class::Repair | Class::Check => {
                let whole = begin..begin + u64::from(geometry.extent_len(extent));
                std::iter::once(whole).collect()
            }
            Class::Foreground => ranges_in(geometry, extent, &pieces),
        };
        for range in ranges {
            let mut at = (range.start - begin) as usize; // within an extent
            for slice in geometry.slices(range.start, range.end - range.start) {
                let slice_len = slice.len as usize;
                if slice.pad {
                    buf[at..at + slice_len].fill(0);
                } else {
                    parts.push((slice.file.get(), slice.file_offset, at, slice_len));
                }
                at += slice_len;
            }
        }
        parts.reverse();
        self.next_job += 1;
        let job = self.next_job;
        self.jobs.insert(
            job,
            Job::Read(ReadJob {
                listing,
                extent,
                pieces,
                class,
                parts,
                is_resident: true,
                holes: Vec::new(),
            }),
        );
        self.read_next(job, buf);
    }

    /// Submits the next part of a read, or ends it.
    fn read_next(&mut self, job: u64, buf: ExtentMut) {
        let Some(Job::Read(read)) = self.jobs.get_mut(&job) else { return };
        let (listing, class) = (read.listing, read.class);
        match read.parts.last() {
            Some(&(file, offset_bytes, start, len)) => {
                let key = FileKey { listing, file };
                let kind = TaskKind::Read { offset_bytes, buf, start, len };
                self.disk_submit(DiskTask { key, class, job, kind });
            }
            None => {
                let Some(Job::Read(read)) = self.jobs.remove(&job) else { return };
                self.extent_read(read, Ok(buf));
            }
        }
    }

    /// A part of a read has ended.
    pub(super) fn read_done(
        &mut self,
        _: FileKey,
        job: u64,
        result: io::Result<(usize, ReadPath)>,
        buf: ExtentMut,
    ) {
        let Some(Job::Read(read)) = self.jobs.get_mut(&job) else { return };
        let read_listing = read.listing;
        let Some((.., start, wanted)) = read.parts.pop() else { return };
        let error = match result {
            Ok((len, path)) => {
                let counter = match path {
                    ReadPath::Direct => &self.counters.read_direct_bytes,
                    ReadPath::PageCache | ReadPath::Buffered => {
                        &self.counters.read_page_cache_bytes
                    }
                };
                if read.class == Class::Foreground {
                    counter.add(len as u64);
                }
                read.is_resident &= path != ReadPath::Direct;
                if len == wanted {
                    return self.read_next(job, buf);
                }
                io::Error::from(io::ErrorKind::UnexpectedEof)
            }
            Err(error) => error,
        };
        if read.class.is_check() {
            // Neighbours of what is not there may be.
            read.holes.push((start, wanted));
            self.note_check_error(read_listing, &error);
            return self.read_next(job, buf);
        }
        drop(buf);
        let Some(Job::Read(read)) = self.jobs.remove(&job) else { return };
        self.extent_read(read, Err(error));
    }

    /// An extent is read whole, or cannot be.
    fn extent_read(&mut self, read: ReadJob, result: io::Result<ExtentMut>) {
        if read.class.is_check() {
            self.check_read(read.listing, read.extent, result.ok(), read.holes);
            return;
        }
        let ReadJob { listing, extent, pieces, is_resident, .. } = read;
        let key = ExtentKey { listing, extent: extent.get() };
        let waiters = self.reads.waiters.remove(&key).unwrap_or_default();
        match result {
            Ok(buf) => {
                if self.active.contains_key(&listing) {
                    let data = buf.freeze();
                    for id in &waiters {
                        if let Some(conn) = self.conns.get_mut(id) {
                            let (data, pieces) = (data.clone(), pieces.clone());
                            conn.held.push(Held { extent, data, pieces });
                            self.reads.holders.insert(*id);
                        }
                    }
                    // What the kernel keeps need not be kept here as well. Its memory comes back at once and
                    // is used again while it is in the processor's caches.
                    if !is_resident {
                        self.cache.insert(key, data, pieces, false);
                    }
                }
            }
            Err(error) => {
                tracing::error!(listing = listing.0, %error, "cannot read what was stored");
                self.unreadable_pieces(listing, pieces);
            }
        }
        waiters.into_iter().for_each(|id| self.queue_upload(id));
    }

    /// What should be on disk cannot be read: it is not had any more. It is read again by a check, and
    /// fetched again if that fails as well.
    pub(super) fn unreadable_pieces(&mut self, listing: ListingId, pieces: RunSet) {
        self.lose_pieces(listing, &pieces);
        self.close_files_of(listing, false);
        self.begin_check(listing, pieces, Class::Repair);
    }

    /// Forgets whatever memory holds of a piece that is not believed any more: in the cache, held for
    /// connections, and in reads under way, which would bring it back when the piece is had again.
    pub(super) fn forget_bytes(&mut self, listing: ListingId, extents: &[ExtentIndex], piece: u32) {
        for &extent in extents {
            self.cache.forget_extent(ExtentKey { listing, extent: extent.get() });
        }
        for job in self.jobs.values_mut() {
            if let Job::Read(read) = job
                && read.listing == listing
                && extents.contains(&read.extent)
            {
                read.pieces.remove(piece, 1);
            }
        }
        let conns = self.active.get(&listing).into_iter().flat_map(|active| &active.conns);
        for id in conns {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            for held in conn.held.iter_mut().filter(|held| extents.contains(&held.extent)) {
                held.pieces.remove(piece, 1);
            }
        }
    }

    /// Takes pieces back: from the listing, from the journal, from what peers were told (BEP 54).
    pub(super) fn lose_pieces(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let lost: Vec<_> = pieces.iter().filter_map(|piece| geometry.piece(piece).ok()).collect();
        self.share_lost(listing, pieces);
        for &piece in &lost {
            let Some(active) = self.active.get_mut(&listing) else { return };
            active.clear_have(piece);
            active.requests.piece_lost(piece);
            active.assembler.want(&geometry, piece);
            let extents: Vec<ExtentIndex> = geometry.extents_of_piece(piece).collect();
            self.forget_bytes(listing, &extents, piece.get());
        }
        self.withdraw(listing, pieces);
        if let Some(slot) = self.journal_slot(listing) {
            self.commit.writer().lost(slot, pieces.runs());
        }
    }

    /// Tells every peer that pieces cannot be had here any more (BEP 54), and that we want something again
    /// (BEP 21).
    pub(super) fn withdraw(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get(&listing) else { return };
        let Some(geometry) = active.geometry() else { return };
        let lost: Vec<_> = pieces.iter().filter_map(|piece| geometry.piece(piece).ok()).collect();
        for id in &active.conns {
            let Some(channel) = self.conns.get_mut(id).and_then(Conn::channel_mut) else {
                continue;
            };
            lost.iter().for_each(|&piece| channel.send_dont_have(piece));
            channel.set_upload_only(false);
            self.touched.insert(*id);
        }
    }

    /// Sends what the link has to say, if nothing is on its way.
    pub(super) fn transmit(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.sending.is_some() || !conn.link.has_output() {
            return;
        }
        let mut list = std::mem::replace(&mut self.gather, GatherList::new(2, 1));
        conn.link.poll_transmit(self.now, &mut list);
        let payload = list.payload_bytes() as u64;
        let parts = Vec::with_capacity(list.items.len());
        let mut buf = SendBuf { small: std::mem::take(&mut list.small), parts };
        conn.sending_small = buf.small.len();
        for item in &list.items {
            match *item {
                GatherItem::Bytes { start, len } => buf.parts.push(SendPart::Small { start, len }),
                GatherItem::Block { block, .. } => {
                    let served = conn.served.pop_front().expect("served before it is sent");
                    assert_eq!(served.block, block, "blocks go out as they were served");
                    let Parts { first, second } = served.parts;
                    for (extent, start, len) in first.into_iter().chain(second) {
                        if conn.is_copied {
                            let at = buf.small.len();
                            buf.small.extend_from_slice(&extent[start..start + len]);
                            buf.parts.push(SendPart::Small { start: at, len });
                        } else {
                            buf.parts.push(SendPart::Extent { extent, start, len });
                        }
                    }
                }
            }
        }
        assert!(buf.parts.len() <= SEND_PARTS_MAX, "{} parts", buf.parts.len());
        self.gather = list;
        if buf.parts.is_empty() {
            return;
        }
        let pinned = super::uploads::extents_in(&buf);
        conn.sending = Some((self.now, pinned));
        self.uploads.began(pinned);
        let (sock, listing) = (conn.sock, conn.listing);
        let flight = self.flights.insert(Flight::Send { conn: id, listing, payload });
        self.out.push_back(Op::Send { id: flight, sock, buf });
    }

    /// Answer to [`Op::Send`].
    pub(super) fn handle_sent(
        &mut self,
        id: ConnId,
        listing: Option<ListingId>,
        payload: u64,
        result: io::Result<()>,
        buf: SendBuf,
    ) {
        let len_bytes = buf.len_bytes() as u64;
        drop(buf);
        if let Err(error) = result {
            self.close_conn(id, CloseReason::Network(error));
            return;
        }
        self.counters.sent_bytes.add(len_bytes);
        self.counters.payload_sent_bytes.add(payload);
        if let Some(active) = listing.and_then(|listing| self.active.get_mut(&listing)) {
            active.sent_bytes += payload;
        }
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.sending_small = 0;
        if let Some((since, pinned)) = conn.sending.take() {
            self.uploads.ended(pinned);
            if payload > 0 {
                conn.useful_at = now;
                conn.pace_sends(now.saturating_duration_since(since));
            }
        }
        if conn.is_leaving {
            return self.close_conn(id, CloseReason::Duplicate);
        }
        conn.link.handle_transmitted(now);
        self.touched.insert(id);
        self.queue_upload(id);
    }
}
