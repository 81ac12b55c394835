//! Leaf sidecars: SHA-256 of every 16 KiB of a listing, for those who must find one bad block.
//!
//! Verified leaves gather in memory and are written with the data's next batch, 32 bytes each, files
//! in order. They prove themselves: what is read leads to the piece layer or is thrown away, and is
//! then made again from the data. So nothing here needs a sync or a record.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use ringseed_core::geometry::{BLOCK_LEN, PieceIndex};
use ringseed_core::magnet::InfoHashes;
use ringseed_core::merkle::{HashRange, UpperTree};
use ringseed_core::wire::HashRequest;
use ringseed_sys::arena::{EXTENT_LEN_BYTES, ExtentMut};

use super::listing::Active;
use super::metadata::answer_hashes;
use super::peer::{Conn, ConnId};
use super::{Flight, Shard};
use crate::api::ListingId;
use crate::io::{Done, FileId, Op, OpenMode, ReadPath};
use crate::store::journal::ListingKey;
use crate::store::{LEAF_LEN, RunSet, first_leaf, in_rows, leaves_path, metainfo_path};

/// Leaf reads in flight at most. Each takes an extent for a moment.
const READS_MAX: usize = 4;
/// Leaf reads that wait at most; further requests are rejected and may be asked again.
const READS_WAITING_MAX: usize = 1024;
/// Leaves written lately that are kept in memory (2 MiB, of a gigabyte of payload): who relays is asked
/// for the leaves of what it has just announced, and they may not be in the file yet.
const RECENT_MAX: usize = 1 << 16;
/// Requests that wait until pieces are hashed again, per listing.
const WAITING_MAX: usize = 64;
/// Refused requests remembered of a connection.
const REFUSED_MAX: usize = 64;

/// A tree that answers hash requests, and where its file's leaves begin in the sidecar.
#[derive(Debug)]
pub(super) struct ServedTree {
    pub tree: UpperTree,
    pub file: u32,
}

/// Verified leaves by their number in the sidecar: those that are not written, and the last that were.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    pending: BTreeMap<u64, Vec<[u8; 32]>>,
    recent: BTreeMap<u64, Vec<[u8; 32]>>,
    recent_count: usize,
    /// Recent before there were too many.
    older: BTreeMap<u64, Vec<[u8; 32]>>,
    /// Requests that wait for pieces to be hashed again.
    waiting: Vec<(ConnId, HashRequest)>,
}

impl Leaves {
    fn insert(&mut self, at: u64, leaves: &[[u8; 32]]) {
        self.pending.insert(at, leaves.to_vec());
    }

    /// What is to be written, neighbours together: byte position and bytes.
    fn take_pending(&mut self) -> Vec<(u64, Vec<u8>)> {
        let pending = std::mem::take(&mut self.pending);
        let writes = in_rows(&pending);
        self.recent_count += pending.values().map(Vec::len).sum::<usize>();
        self.recent.extend(pending);
        if self.recent_count > RECENT_MAX / 2 {
            self.older = std::mem::take(&mut self.recent);
            self.recent_count = 0;
        }
        writes
    }

    /// Leaves in a row, if all of them are in memory.
    pub fn get(&self, first: u64, count: usize) -> Option<Vec<[u8; 32]>> {
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let at = first + found.len() as u64;
            let run =
                [&self.pending, &self.recent, &self.older].into_iter().find_map(|leaves| {
                    let (begin, run) = leaves.range(..=at).next_back()?;
                    run.get(usize::try_from(at - begin).ok()?..).filter(|run| !run.is_empty())
                })?;
            let took = run.len().min(count - found.len());
            found.extend_from_slice(&run[..took]);
        }
        Some(found)
    }
}

/// Leaves on their way from the sidecar to a peer.
#[derive(Debug)]
pub(super) struct LeafRead {
    conn: ConnId,
    listing: ListingId,
    request: HashRequest,
    /// Leaves of the file that the answer needs: first and how many.
    first: u64,
    count: usize,
    offset_bytes: u64,
    file: Option<FileId>,
}

/// Reads of leaf sidecars.
#[derive(Debug, Default)]
pub(super) struct LeafReads {
    in_flight: usize,
    waiting: VecDeque<LeafRead>,
}

impl Shard {
    /// Keeps the leaves of a verified piece; they are written with the next batch.
    pub(super) fn keep_leaves(
        &mut self,
        listing: ListingId,
        piece: PieceIndex,
        leaves: &[[u8; 32]],
    ) {
        let Some(active) = self.active.get_mut(&listing).filter(|active| active.has_v2()) else {
            return;
        };
        let Some(geometry) = active.geometry() else { return };
        let Some(at) = first_leaf(&active.leaf_bases, geometry, piece) else { return };
        active.leaves.insert(at, leaves);
    }

    /// Writes what has gathered, neighbours together.
    pub(super) fn flush_leaves(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let ListingKey::V2(hash) = active.key else { return };
        let writes = active.leaves.take_pending();
        if !writes.is_empty() {
            self.write_state_file(leaves_path(&hash), writes, false);
        }
    }

    /// Answers a request for hashes below the piece layer, from the sidecar. False: reject it.
    pub(super) fn read_leaves(
        &mut self,
        conn: ConnId,
        listing: ListingId,
        request: HashRequest,
    ) -> bool {
        let waiting = self.leaf_reads.waiting.len();
        let Some(active) = self.active.get_mut(&listing) else { return false };
        let Some(served) = active.metadata.trees.get(&request.pieces_root) else { return false };
        let Some(range) = range_of(&served.tree, request) else { return false };
        // Asked without leaves, the tree says which it needs.
        let mut needed = None;
        served.tree.answer(range, |first, count| {
            needed = Some((first, count));
            None
        });
        let Some((first, count)) = needed else { return false };
        if count * LEAF_LEN > EXTENT_LEN_BYTES || waiting >= READS_WAITING_MAX {
            return false;
        }
        let offset_bytes = (active.leaf_base(served.file) + first) * LEAF_LEN as u64;
        let read = LeafRead { conn, listing, request, first, count, offset_bytes, file: None };
        self.leaf_reads.waiting.push_back(read);
        self.start_leaf_reads();
        true
    }

    fn start_leaf_reads(&mut self) {
        while self.leaf_reads.in_flight < READS_MAX
            && let Some(read) = self.leaf_reads.waiting.pop_front()
        {
            let key = self.active.get(&read.listing).map(|active| active.key);
            let Some(ListingKey::V2(hash)) = key else { continue };
            self.leaf_reads.in_flight += 1;
            let id = self.flights.insert(Flight::Leaves(read));
            let (root, path) = (self.state.dir().clone(), leaves_path(&hash));
            self.out.push_back(Op::Open { id, root, path, mode: OpenMode::Read, direct: false });
        }
    }

    /// A step of a leaf read has ended: the next one.
    pub(super) fn leaf_step(&mut self, mut read: LeafRead, done: Done) {
        match done {
            Done::Opened(Ok((file, _))) => {
                read.file = Some(file);
                let Some(buf) = self.take_extent() else {
                    self.counters.arena_waits.add(1);
                    self.close_leaf_read(&read);
                    return self.refuse_leaves(read.conn, read.request);
                };
                let (offset_bytes, len) = (read.offset_bytes, read.count * LEAF_LEN);
                let id = self.flights.insert(Flight::Leaves(read));
                self.out.push_back(Op::Read { id, file, offset_bytes, buf, start: 0, len });
            }
            Done::Opened(Err(error)) => {
                if error.kind() == io::ErrorKind::NotFound {
                    self.sidecar_is_lost(read.listing);
                }
                self.end_leaf_read(read, None);
            }
            Done::Read(result, buf) => {
                let leaves = leaves_in(result, &buf, read.count);
                drop(buf);
                self.end_leaf_read(read, leaves);
            }
            other => panic!("{other:?} answers a read of leaves"),
        }
    }

    fn close_leaf_read(&mut self, read: &LeafRead) {
        self.leaf_reads.in_flight -= 1;
        if let Some(file) = read.file {
            self.out.push_back(Op::CloseFile { file });
        }
        self.start_leaf_reads();
    }

    fn end_leaf_read(&mut self, read: LeafRead, leaves: Option<Vec<[u8; 32]>>) {
        self.close_leaf_read(&read);
        let LeafRead { conn, listing, request, first, .. } = read;
        let answer = self.active.get(&listing).and_then(|active| {
            let tree = &active.metadata.trees.get(&request.pieces_root)?.tree;
            let range = range_of(tree, request)?;
            let leaves = leaves?;
            let hashes = tree.answer(range, |from, count| {
                let at = usize::try_from(from.checked_sub(first)?).ok()?;
                leaves.get(at..at + count).map(<[_]>::to_vec)
            })?;
            // A sidecar may be torn or from other data: only what leads to the tree is given out.
            let (layer, index) = range.anchor();
            let anchor = *tree.node(layer, index)?;
            range.check(tree.shape(), &hashes, &anchor).is_ok().then_some(hashes)
        });
        match answer {
            Some(hashes) => self.give_hashes(conn, request, &hashes),
            None if self.wait_for_leaves(&read) => {}
            None => {
                // Whoever asks next shall find them.
                self.leaves_are_lost(listing, pieces_of(self.active.get(&listing), &read));
                self.refuse_leaves(conn, request);
            }
        }
    }

    /// Sends an answer, unless too many answers wait for peers that take nothing.
    pub(super) fn give_hashes(&mut self, conn: ConnId, request: HashRequest, hashes: &[[u8; 32]]) {
        if !self.may_answer(conn, hashes.len() * LEAF_LEN) {
            return self.refuse_leaves(conn, request);
        }
        if let Some(channel) = self.conns.get_mut(&conn).and_then(Conn::channel_mut) {
            channel.send_hashes(request, hashes);
            self.touched.insert(conn);
        }
    }

    /// Sends a refusal, and remembers it.
    pub(super) fn refuse_leaves(&mut self, id: ConnId, request: HashRequest) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.refused_leaves.len() == REFUSED_MAX {
            conn.refused_leaves.pop_front();
        }
        conn.refused_leaves.push_back(request);
        if let Some(channel) = conn.channel_mut() {
            channel.send_hash_reject(request);
            self.touched.insert(id);
        }
    }

    /// Leaves that are lost are made again from the data. That costs as much as serving it, so whoever
    /// asks ahead of every piece is refused first; a second time, or of another program the first time,
    /// it is a failure that is to be looked into. Even then no more is hashed than `remake` allows.
    fn wait_for_leaves(&mut self, read: &LeafRead) -> bool {
        let Some(conn) = self.conns.get_mut(&read.conn) else { return false };
        let before = conn.refused_leaves.iter().position(|refused| *refused == read.request);
        let is_ours = conn.peer_id.is_some_and(|peer_id| peer_id.is_ours());
        if is_ours && before.is_none() {
            return false;
        }
        if let Some(at) = before {
            conn.refused_leaves.remove(at);
        }
        let Some(active) = self.active.get(&read.listing) else { return false };
        if active.leaves.waiting.len() >= WAITING_MAX {
            return false;
        }
        let pieces = pieces_of(Some(active), read);
        if !self.remake_now(read.listing, pieces) {
            return false;
        }
        if let Some(active) = self.active.get_mut(&read.listing) {
            active.leaves.waiting.push((read.conn, read.request));
        }
        true
    }

    /// Answers who waited for pieces to be hashed again; `is_over`: nothing more will be.
    pub(super) fn answer_waiting(&mut self, listing: ListingId, is_over: bool) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let mut waiting = std::mem::take(&mut active.leaves.waiting);
        let mut answers = Vec::new();
        waiting.retain(|&(conn, request)| match answer_hashes(active, request) {
            Some(hashes) => {
                answers.push((conn, request, hashes));
                false
            }
            None => true,
        });
        if !is_over {
            active.leaves.waiting.append(&mut waiting);
        }
        for (conn, request, hashes) in answers {
            self.give_hashes(conn, request, &hashes);
        }
        for (conn, request) in waiting {
            self.refuse_leaves(conn, request);
        }
    }

    /// Removes what the state folder holds of a listing that is gone.
    pub(super) fn remove_state_files(&mut self, key: ListingKey) {
        let paths = match key {
            ListingKey::V1(hash) => vec![metainfo_path(InfoHashes::V1(hash))],
            ListingKey::V2(hash) => vec![metainfo_path(InfoHashes::V2(hash)), leaves_path(&hash)],
        };
        for path in paths {
            let id = self.flights.insert(Flight::RemoveState);
            self.out.push_back(Op::RemoveTree { id, root: self.state.dir().clone(), path });
        }
    }

    /// A piece that was had is hashed again. It is as it was, or it has rotted: then it is not had
    /// any more. What cannot be read now is treated as when it was to be served.
    pub(super) fn had_piece_checked(
        &mut self,
        listing: ListingId,
        piece: PieceIndex,
        is_readable: bool,
        is_good: bool,
        leaves: &[[u8; 32]],
    ) {
        let pieces: RunSet = std::iter::once(piece.get()).collect();
        if !is_readable {
            return self.unreadable_pieces(listing, pieces);
        }
        if is_good {
            self.keep_leaves(listing, piece, leaves);
            self.flush_leaves(listing);
            self.answer_waiting(listing, false);
            return;
        }
        tracing::error!(listing = listing.0, piece = piece.get(), "a stored piece has rotted");
        self.lose_pieces(listing, &pieces);
    }
}

/// Pieces whose leaves a read wants, of those that are here.
fn pieces_of(active: Option<&Active>, read: &LeafRead) -> RunSet {
    let Some(active) = active else { return RunSet::default() };
    let Some(served) = active.metadata.trees.get(&read.request.pieces_root) else {
        return RunSet::default();
    };
    let Some(geometry) = active.geometry() else { return RunSet::default() };
    let Ok(file) = geometry.file(served.file) else { return RunSet::default() };
    let per_piece = u64::from(geometry.piece_len_nominal() / BLOCK_LEN);
    let last = (read.first + read.count as u64).saturating_sub(1) / per_piece;
    let wanted = read.first / per_piece..=last;
    let pieces = geometry.pieces_of_file(file).enumerate();
    pieces
        .filter(|(at, piece)| wanted.contains(&(*at as u64)) && active.stored.get(*piece))
        .map(|(_, piece)| piece.get())
        .collect()
}

fn range_of(tree: &UpperTree, request: HashRequest) -> Option<HashRange> {
    let HashRequest { base_layer, index, length, proof_layers, .. } = request;
    HashRange::new(tree.shape(), base_layer, index, length, proof_layers).ok()
}

fn leaves_in(
    result: io::Result<(usize, ReadPath)>,
    buf: &ExtentMut,
    count: usize,
) -> Option<Vec<[u8; 32]>> {
    let (len, _) = result.ok()?;
    let (leaves, _) = buf.get(..len)?.as_chunks::<LEAF_LEN>();
    (leaves.len() == count).then(|| leaves.to_vec())
}

impl Active {
    /// Number of the first leaf of a file in the sidecar.
    pub fn leaf_base(&self, file: u32) -> u64 {
        self.leaf_bases.get(file as usize).copied().unwrap_or(0)
    }
}

/// An extent holds the leaves that one answer may need.
const _: () = assert!(ringseed_core::merkle::SERVED_MAX as usize * LEAF_LEN <= EXTENT_LEN_BYTES);

#[cfg(test)]
impl Shard {
    /// Asks as a peer would; whether the sidecar was asked. The answer goes to nobody.
    pub fn leaf_answer(&mut self, listing: ListingId, request: HashRequest) -> Option<bool> {
        self.serve_hashes(ConnId(u64::MAX), listing, request);
        let asked = self.read_leaves(ConnId(u64::MAX), listing, request);
        Some(asked)
    }

    /// Makes leaves again as for a peer that asks for the second time.
    pub fn leaves_again(&mut self, listing: ListingId, request: HashRequest) -> bool {
        let (first, count) = (u64::from(request.index), request.length as usize);
        let conn = ConnId(u64::MAX);
        let read = LeafRead { conn, listing, request, first, count, offset_bytes: 0, file: None };
        let pieces = pieces_of(self.active.get(&listing), &read);
        self.remake_now(listing, pieces)
    }
}
