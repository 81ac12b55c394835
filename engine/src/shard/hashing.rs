//! Hashing at the end of the turn, in batches: 16 KiB leaves of everything that landed (v2), whole
//! pieces (v1), while the bytes are still in the cache of this core.
//!
//! A piece that does not verify is never accepted and never written; `blame` says whose fault it was. A
//! block whose leaf is known is judged by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringseed_core::geometry::{BlockRef, ExtentIndex, PieceIndex};
use ringseed_core::merkle;
use ringseed_sys::arena::EXTENT_LEN_BYTES;
use ringseed_sys::hash;

use super::Shard;
use super::listing::{Active, Stage};
use super::peer::Conn;
use super::timers::Timer;
use crate::api::{ListingError, ListingId};

/// Blocks put through SHA-256 in one call at most: 4 MiB, a few hundred microseconds.
const LEAVES_PER_BATCH: usize = 256;
/// Bytes put through SHA-1 in one call at most, unless a single piece is longer.
const PIECE_BYTES_PER_BATCH: u64 = 16 << 20;
/// Whole pieces that SHA-1 waits for while blocks keep coming: the lanes of the widest kernel. Sixteen
/// pieces hash four to five times as fast as sixteen times one.
const LANES: usize = 16;
/// Bytes of whole pieces that wait for each other at most: what the third-level cache keeps, and a
/// quarter of the smallest arena.
const HELD_MAX_BYTES: u64 = 16 << 20;
/// When no block has come for this long, what there is is hashed. A sender that shares a core with us is away for
/// a slice of the scheduler, about 3 ms, and has not stopped; with several shards to a core it is away for more.
const LULL: Duration = Duration::from_millis(10);
/// No whole piece waits longer than this for others: what four shards of two cores need for 16 MiB each.
const HELD_MAX: Duration = Duration::from_millis(60);

/// What waits to be hashed.
#[derive(Debug, Default)]
pub(super) struct Hashing {
    blocks: Vec<(ListingId, BlockRef)>,
    pieces: Vec<(ListingId, PieceIndex)>,
    /// How many of them were found to be ready and left to wait for others. Looked at again when one comes.
    held_len: usize,
    /// When the last block landed.
    last_landed: Option<Instant>,
    /// Since when whole pieces wait for others to fill the lanes.
    held_since: Option<Instant>,
}

/// What hashing says of a piece.
enum Verdict {
    Good,
    Bad,
    /// v2 vouches for the bytes and v1 does not.
    ViewsDisagree {
        sha1_found: [u8; 20],
    },
}

impl Hashing {
    /// A block has landed; `is_whole` when it was the last of its piece.
    pub fn block_landed(
        &mut self,
        now: Instant,
        listing: ListingId,
        block: BlockRef,
        is_whole: bool,
    ) {
        self.last_landed = Some(now);
        self.blocks.push((listing, block));
        if is_whole {
            self.pieces.push((listing, block.piece()));
        }
    }

    /// Nothing waits.
    pub fn is_idle(&self) -> bool {
        self.blocks.is_empty() && self.pieces.is_empty()
    }

    /// Whole pieces wait.
    pub fn has_pieces(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// A piece is not whole any more.
    pub fn forget_piece(&mut self, listing: ListingId, piece: PieceIndex) {
        self.pieces.retain(|&waiting| waiting != (listing, piece));
        self.held_len = 0;
    }

    /// Forgets a removed listing.
    pub fn forget(&mut self, listing: ListingId) {
        self.blocks.retain(|(of, _)| *of != listing);
        self.pieces.retain(|(of, _)| *of != listing);
        self.held_len = 0;
    }
}

impl Shard {
    /// Hashes what landed in this turn and acts on what comes out. What is lent to a receive waits for
    /// the next turn.
    pub(super) fn hash_turn(&mut self) {
        if self.hashing.is_idle() {
            return;
        }
        self.hash_leaves();
        let mut waiting = std::mem::take(&mut self.hashing.pieces);
        let held_len = std::mem::take(&mut self.hashing.held_len);
        if held_len > 0 && held_len == waiting.len() && self.hold_for_lanes(&waiting) {
            (self.hashing.pieces, self.hashing.held_len) = (waiting, held_len);
            return;
        }
        // A piece of which parts are on disk only is judged there.
        let mut stuck = Vec::new();
        waiting.retain(|&(listing, piece)| {
            if self.active.get(&listing).is_none_or(|active| active.have.get(piece)) {
                return false; // gone, or verified by other means
            }
            let is_spilled = self.is_partly_spilled(listing, piece);
            if is_spilled && !self.spill_rest(listing, piece) {
                stuck.push((listing, piece));
            }
            !is_spilled
        });
        let (ready, later): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|&(listing, piece)| self.is_ready(listing, piece));
        self.hashing.pieces = later;
        self.hashing.pieces.extend(stuck);
        let (mut ready, to_sha1): (Vec<_>, Vec<_>) = ready
            .into_iter()
            .partition(|(listing, _)| !self.active.get(listing).is_some_and(Active::checks_v1));
        match self.hold_for_lanes(&to_sha1) {
            true => {
                let are_all_held = self.hashing.pieces.is_empty() && ready.is_empty();
                self.hashing.held_len = if are_all_held { to_sha1.len() } else { 0 };
                self.hashing.pieces.extend(to_sha1);
            }
            false => {
                self.hashing.held_since = None;
                ready.extend(to_sha1);
            }
        }
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for (listing, piece) in ready {
            let Some(geometry) = self.active.get(&listing).and_then(Active::geometry) else {
                continue;
            };
            batch_bytes += u64::from(geometry.piece_len(piece));
            batch.push((listing, piece));
            if batch_bytes >= PIECE_BYTES_PER_BATCH {
                self.judge(std::mem::take(&mut batch));
                batch_bytes = 0;
            }
        }
        self.judge(batch);
    }

    /// Whether these whole pieces wait a moment for others, so that SHA-1 finds its lanes busy. Blocks
    /// of one connection come in order, one piece after the other: without this each would be hashed
    /// alone. v2 does not need it, a single receive brings dozens of leaves. When nothing more has been
    /// asked for, nothing is waited for.
    fn hold_for_lanes(&mut self, pieces: &[(ListingId, PieceIndex)]) -> bool {
        let len_bytes = |&(listing, piece): &(ListingId, PieceIndex)| {
            let geometry = self.active.get(&listing).and_then(Active::geometry);
            geometry.map_or(0, |geometry| u64::from(geometry.piece_len(piece)))
        };
        let held_bytes: u64 = pieces.iter().map(len_bytes).sum();
        let lull_at = self.hashing.last_landed.map_or(self.now, |at| at + LULL);
        let since = *self.hashing.held_since.get_or_insert(self.now);
        let due_at = lull_at.min(since + HELD_MAX);
        let is_full = pieces.len() >= LANES || held_bytes >= HELD_MAX_BYTES;
        // Who waits for buffers mostly waits for writes. Only where those that wait here are much of what may be
        // filled does hashing them bring any back.
        let is_much = held_bytes >= self.fill_max() as u64 * EXTENT_LEN_BYTES as u64 / 2;
        let is_pressed = is_much && !self.starving.is_empty() || self.is_stopping;
        // Everything asked for may be here because there are no buffers to ask for more: those that are being
        // written come back in a moment. As long as the disk has enough to do, nothing is lost by that.
        let is_short = !self.starving.is_empty()
            && self.cache.pinned_len() >= self.config.device_ops_max as usize;
        let more_comes = is_short || self.awaits_blocks_of(pieces);
        if self.now >= due_at || is_full || is_pressed || !more_comes {
            return false;
        }
        self.timers.set(due_at, Timer::Hash);
        true
    }

    /// Whether somebody has been asked for blocks of the listings that these pieces belong to.
    fn awaits_blocks_of(&self, pieces: &[(ListingId, PieceIndex)]) -> bool {
        let mut listings: Vec<ListingId> = pieces.iter().map(|&(listing, _)| listing).collect();
        listings.dedup();
        listings.iter().filter_map(|listing| self.active.get(listing)).any(|active| {
            let channel = |id| self.conns.get(id).and_then(Conn::channel);
            let mut channels = active.conns.iter().filter_map(channel);
            channels.any(|channel| channel.outstanding_count() > 0)
        })
    }

    fn is_partly_spilled(&self, listing: ListingId, piece: PieceIndex) -> bool {
        let Some(active) = self.active.get(&listing) else { return false };
        let Some(geometry) = active.geometry() else { return false };
        geometry.extents_of_piece(piece).any(|extent| active.assembler.is_spilled(extent))
    }

    /// The bytes of a piece are here, its leaves hashed.
    fn is_ready(&self, listing: ListingId, piece: PieceIndex) -> bool {
        let Some(active) = self.active.get(&listing) else { return false };
        let Some(geometry) = active.geometry() else { return false };
        let here = |extent: ExtentIndex| {
            let fill = active.assembler.fill(extent);
            geometry.extent_data_len(extent) == 0 || fill.is_some_and(|fill| fill.bytes().is_some())
        };
        let is_hashed = !active.has_v2()
            || active.assembler.blocks_of(geometry, piece).all(|block| block.leaf.is_some());
        is_hashed && geometry.extents_of_piece(piece).all(here)
    }

    fn hash_leaves(&mut self) {
        let waiting = std::mem::take(&mut self.hashing.blocks);
        let (mut later, mut bad) = (Vec::new(), Vec::new());
        for batch in waiting.chunks(LEAVES_PER_BATCH) {
            let mut found = Vec::with_capacity(batch.len());
            let mut messages: Vec<&[u8]> = Vec::with_capacity(batch.len());
            for &(listing, block) in batch {
                let Some(active) = self.active.get(&listing).filter(|active| active.has_v2())
                else {
                    continue; // v1 hashes whole pieces
                };
                let Some(geometry) = active.geometry() else { continue };
                let (extent, offset) = geometry.extent_of(block);
                let Some(fill) = active.assembler.fill(extent) else { continue };
                match fill.bytes() {
                    Some(bytes) => {
                        messages.push(&bytes[offset as usize..(offset + block.len()) as usize]);
                        found.push((listing, extent, block));
                    }
                    None => later.push((listing, block)),
                }
            }
            let mut leaves = vec![[0; 32]; messages.len()];
            hash::sha256_many(&messages, &mut leaves);
            let bytes: usize = messages.iter().map(|message| message.len()).sum();
            self.counters.hashed_bytes.add(bytes as u64);
            for ((listing, extent, block), leaf) in found.into_iter().zip(leaves) {
                let Some(active) = self.active.get_mut(&listing) else { continue };
                let Some(fill) = active.assembler.fill_mut(extent) else { continue };
                let mut blocks = fill.blocks.iter_mut();
                if let Some(slot) = blocks.find(|slot| slot.block == block && slot.from.is_some()) {
                    slot.leaf = Some(leaf);
                    if active.blame.leaf_of(block).is_some_and(|known| known != leaf) {
                        bad.push((listing, block));
                    }
                }
            }
        }
        self.hashing.blocks = later;
        for (listing, block) in bad {
            self.block_is_bad(listing, block);
        }
    }

    /// Decides over whole pieces.
    fn judge(&mut self, batch: Vec<(ListingId, PieceIndex)>) {
        if batch.is_empty() {
            return;
        }
        let with_v1: Vec<_> = batch
            .iter()
            .copied()
            .filter(|(listing, _)| self.active.get(listing).is_some_and(Active::checks_v1))
            .collect();
        let mut sha1 = BTreeMap::new();
        if !with_v1.is_empty() {
            let parts: Vec<Vec<&[u8]>> = with_v1
                .iter()
                .map(|(listing, piece)| {
                    let active = &self.active[listing];
                    let geometry = active.geometry().expect("a piece has a layout");
                    active.assembler.parts_of(geometry, *piece).expect("checked by is_ready")
                })
                .collect();
            let messages: Vec<&[&[u8]]> = parts.iter().map(Vec::as_slice).collect();
            let mut digests = vec![[0; 20]; messages.len()];
            hash::sha1_many_parts(&messages, &mut digests);
            let bytes: usize = parts.iter().flatten().map(|part| part.len()).sum();
            self.counters.hashed_bytes.add(bytes as u64);
            self.counters.hash_calls.add(1);
            self.counters.hash_messages.add(messages.len() as u64);
            sha1.extend(with_v1.into_iter().zip(digests));
        }
        for (listing, piece) in batch {
            let Some(active) = self.active.get(&listing) else { continue };
            if matches!(active.stage, Stage::Failed(_)) {
                continue; // by an earlier piece of this batch
            }
            let geometry = active.geometry().expect("a piece has a layout");
            let leaves: Vec<[u8; 32]> = active
                .assembler
                .blocks_of(geometry, piece)
                .filter_map(|block| block.leaf)
                .collect();
            match verdict(active, piece, &leaves, sha1.get(&(listing, piece))) {
                Verdict::Good => self.piece_is_good(listing, piece, &leaves),
                Verdict::Bad => self.piece_is_bad(listing, piece),
                Verdict::ViewsDisagree { sha1_found } => {
                    let piece = piece.get();
                    self.fail_listing(listing, ListingError::ViewsDisagree { piece, sha1_found });
                }
            }
        }
    }

    /// A piece from peers is verified, in memory.
    fn piece_is_good(&mut self, listing: ListingId, piece: PieceIndex, leaves: &[[u8; 32]]) {
        self.settle_good_piece(listing, piece);
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        for (sender, bytes) in active.assembler.senders_of(&geometry, piece) {
            if let Some((_, verified)) = active.sources.get_mut(&sender) {
                *verified += bytes;
            }
            self.counters.payload_verified_bytes.add(bytes);
        }
        active.set_have(piece);
        self.keep_leaves(listing, piece, leaves);
        self.piece_verified(listing, piece);
    }

    /// A piece did not verify: find who is to blame, fetch what is bad again.
    fn piece_is_bad(&mut self, listing: ListingId, piece: PieceIndex) {
        if !self.open_dispute(listing, piece) {
            self.settle_bad_piece(listing, piece, false);
        }
    }
}

/// Compares what was hashed with what the metainfo says.
fn verdict(
    active: &Active,
    piece: PieceIndex,
    leaves: &[[u8; 32]],
    sha1: Option<&[u8; 20]>,
) -> Verdict {
    let metainfo = active.metainfo.as_ref().expect("a piece has a metainfo");
    let is_good = || active.blame.vouches_for(piece, leaves) || check_v2(metainfo, piece, leaves);
    let is_good_v2 = active.has_v2().then(is_good);
    let is_good_v1 = sha1.map(|found| metainfo.info().v1_piece_hash(piece) == Some(found));
    match (is_good_v2, is_good_v1) {
        (Some(true), Some(false)) => {
            Verdict::ViewsDisagree { sha1_found: *sha1.expect("v1 was checked") }
        }
        (Some(false), _) | (None, Some(false)) => Verdict::Bad,
        (Some(true), _) | (None, Some(true)) => Verdict::Good,
        (None, None) => Verdict::Bad,
    }
}

/// Whether the leaves of a piece lead to its hash in the piece layer (BEP 52).
pub(crate) fn check_v2(
    metainfo: &ringseed_core::metainfo::Metainfo,
    piece: PieceIndex,
    leaves: &[[u8; 32]],
) -> bool {
    let geometry = metainfo.info().geometry();
    let Some((file, _)) = geometry.piece_in_file(piece) else { return leaves.is_empty() };
    let block_len = u64::from(ringseed_core::geometry::BLOCK_LEN);
    let leaf_count = geometry.file_len(file).div_ceil(block_len);
    if leaves.is_empty() {
        return false;
    }
    let root = merkle::piece_root(leaves, metainfo.info().piece_layer_number(), leaf_count);
    metainfo.v2_piece_hash(piece) == Some(root)
}
