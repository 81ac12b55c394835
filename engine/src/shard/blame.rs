//! Who is to blame for bad bytes: leaves ahead of the data, disputes over pieces, proofs, bans.
//!
//! - Of a peer that runs this program the leaves of a piece are asked for with its first block. Every
//!   block is then judged when it is hashed, and a bad one is fetched again by itself.
//! - Without leaves a bad piece tells nobody's guilt. A piece with a v2 view stays in memory for a
//!   moment while whoever has it is asked for its leaves; stock peers are asked only now.
//! - Where nobody gives leaves, and in v1, the digests of the blocks are kept and the piece is fetched
//!   again from one peer alone. If it is bad again, that peer sent all of it; if it is good, whoever sent
//!   other bytes than these lied.
//!
//! Each of these is a proof. Three in a day ban for a day: one bit may flip in an honest peer's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringseed_core::geometry::{BLOCK_LEN, BlockRef, PieceIndex};
use ringseed_core::merkle::{self, TreeShape};
use ringseed_core::metainfo::Metainfo;
use ringseed_core::wire::hashes::HashesError;
use ringseed_core::wire::{HashFetch, HashRequest, PeerId};

use super::Shard;
use super::listing::Active;
use super::peer::{CloseReason, Conn, ConnId, Who, bound_len};
use super::timers::Timer;
use crate::api::{Event, ListingId};

/// Leaves are asked for by nodes of this layer (8 MiB), or of the piece layer where that is higher. An
/// answer between blocks stands where the receive expected the next block, and what lands behind it must
/// be moved: asking for each extent cost a v2 leech as much as hashing. Longer units leave more blocks
/// unjudged where the other side has to hash them first.
const UNIT_LAYER: u32 = 9;
/// Leaves of pieces under way that are remembered for one listing (2 MiB).
const KNOWN_LEAVES_MAX: usize = 1 << 16;
/// So many refusals in a row, and a peer is asked for leaves ahead only now and then.
const REFUSALS_MAX: u32 = 4;
/// Now and then.
const ASK_AGAIN_AFTER: u32 = 64;
/// How long a bad piece waits for its leaves: the answer stands behind what the other side is sending, and
/// it may have to hash the piece from its disk first.
const DISPUTE_MAX: Duration = Duration::from_secs(5);
/// Failed attempts at a piece that are remembered.
const ATTEMPTS_MAX: usize = 8;
/// Proofs against a peer within [`PROOF_AGE_MAX`] that ban it.
const PROOFS_MAX: u32 = 3;
/// How long a proof counts.
const PROOF_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a ban lasts.
pub(super) const BAN: Duration = Duration::from_secs(24 * 3600);

/// A leaf that is not known; no block has this digest.
const UNKNOWN: [u8; 32] = [0; 32];

/// Position in the piece, SHA-256, sender.
type BlockDigest = (u32, [u8; 32], Who);

/// What a listing knows of who sent what.
#[derive(Debug, Default)]
pub(super) struct Blame {
    fetch: HashFetch<ConnId>,
    /// Units asked for (root and number), and the first piece of their file.
    wanted: BTreeMap<([u8; 32], u32), u32>,
    /// Leaves of pieces under way.
    known: BTreeMap<u32, Vec<[u8; 32]>>,
    known_count: usize,
    /// Refusals in a row.
    refusals: BTreeMap<ConnId, u32>,
    passed_over: u32,
    disputes: BTreeMap<u32, Dispute>,
    /// Blocks of attempts at pieces that did not verify.
    suspicions: BTreeMap<u32, Vec<Vec<BlockDigest>>>,
}

/// A piece that is bad and waits for its leaves.
#[derive(Debug)]
struct Dispute {
    /// Who was asked how often.
    asked: BTreeMap<ConnId, u32>,
    until: Instant,
}

/// Proofs against a peer.
#[derive(Debug)]
pub(super) struct Proofs {
    count: u32,
    since: Instant,
}

/// Leaves that are asked for together.
#[derive(Clone, Copy, Debug)]
struct Unit {
    root: [u8; 32],
    shape: TreeShape,
    layer: u32,
    index: u32,
    first_piece: u32,
}

impl Unit {
    /// The unit of a piece; `None` where the piece's own hash is that of its only block.
    fn of(active: &Active, piece: PieceIndex) -> Option<Self> {
        let info = active.metainfo.as_ref().filter(|_| active.has_v2())?.info();
        let piece_layer = info.piece_layer_number();
        let (file, in_file) = info.geometry().piece_in_file(piece)?;
        let file = info.file(file);
        let shape = TreeShape::of_file(file.len_bytes)?;
        let layer = piece_layer.max(UNIT_LAYER);
        let index = in_file >> (layer - piece_layer);
        let first_piece = piece.get() - in_file;
        let unit = Self { root: file.pieces_root?, shape, layer, index, first_piece };
        (piece_layer > 0 && shape.layer_count() > 0).then_some(unit)
    }

    fn has(&self, request: &HashRequest) -> bool {
        let index = u64::from(request.index) >> self.layer;
        request.pieces_root == self.root && request.base_layer == 0 && index == self.index.into()
    }
}

impl Blame {
    /// A connection is gone.
    pub fn forget_conn(&mut self, id: ConnId) {
        self.fetch.remove_peer(id);
        self.refusals.remove(&id);
    }

    /// What a block of a piece must hash to, if that is known.
    pub fn leaf_of(&self, block: BlockRef) -> Option<[u8; 32]> {
        let leaves = self.known.get(&block.piece().get())?;
        let leaf = *leaves.get((block.begin() / BLOCK_LEN) as usize)?;
        (leaf != UNKNOWN).then_some(leaf)
    }

    /// Whether these are the leaves that lead to the piece's hash, by what was proven before.
    pub fn vouches_for(&self, piece: PieceIndex, leaves: &[[u8; 32]]) -> bool {
        let known = self.known.get(&piece.get());
        known.is_some_and(|known| !known.contains(&UNKNOWN) && known == leaves)
    }

    fn want(&mut self, unit: &Unit) {
        self.wanted.insert((unit.root, unit.index), unit.first_piece);
        self.fetch.want_leaves(unit.root, unit.shape, unit.layer, unit.index);
    }

    fn forget_unit(&mut self, unit: &Unit) {
        self.wanted.remove(&(unit.root, unit.index));
        self.fetch.forget_leaves(unit.root, unit.shape, unit.layer, unit.index);
    }

    fn forget_piece(&mut self, piece: PieceIndex) {
        self.disputes.remove(&piece.get());
        if let Some(leaves) = self.known.remove(&piece.get()) {
            self.known_count -= leaves.len();
        }
    }

    fn learn(&mut self, piece: PieceIndex, leaf_count: usize, at: usize, leaf: [u8; 32]) {
        let known = self.known.entry(piece.get()).or_insert_with(|| {
            self.known_count += leaf_count;
            vec![UNKNOWN; leaf_count]
        });
        if let Some(slot) = known.get_mut(at) {
            *slot = leaf;
        }
    }
}

impl Shard {
    /// The first block of an extent is about to be asked of a peer: its leaves go ahead.
    pub(super) fn ask_leaves_ahead(&mut self, listing: ListingId, id: ConnId, piece: PieceIndex) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(unit) = Unit::of(active, piece) else { return };
        let is_ours =
            self.conns.get(&id).and_then(|conn| conn.peer_id).is_some_and(|id| id.is_ours());
        let blame = &mut active.blame;
        let is_known = blame.known.contains_key(&piece.get())
            || blame.wanted.contains_key(&(unit.root, unit.index));
        if !is_ours || is_known || blame.known_count > KNOWN_LEAVES_MAX {
            return;
        }
        if blame.refusals.get(&id).is_some_and(|&count| count >= REFUSALS_MAX) {
            blame.passed_over += 1;
            if !blame.passed_over.is_multiple_of(ASK_AGAIN_AFTER) {
                return;
            }
        }
        if !self.ask_leaves(listing, id, &unit)
            && let Some(active) = self.active.get_mut(&listing)
        {
            active.blame.forget_unit(&unit);
        }
    }

    /// Asks a peer for the leaves of a unit. False when it cannot be asked.
    fn ask_leaves(&mut self, listing: ListingId, id: ConnId, unit: &Unit) -> bool {
        let Some(active) = self.active.get_mut(&listing) else { return false };
        let channel = self.conns.get_mut(&id).and_then(Conn::channel_mut);
        let Some(channel) = channel.filter(|channel| channel.can_hash()) else { return false };
        active.blame.want(unit);
        let fetch = &mut active.blame.fetch;
        let mut has_asked = false;
        while let Some(request) = fetch.next_request_if(id, |request| unit.has(request)) {
            if !channel.send_hash_request(request) {
                fetch.handle_unsent(&request);
                return false;
            }
            has_asked = true;
        }
        self.touched.insert(id);
        has_asked
    }

    /// Leaves that we asked for came.
    pub(super) fn leaves_arrived(
        &mut self,
        id: ConnId,
        listing: ListingId,
        request: HashRequest,
        hashes: &[[u8; 32]],
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(metainfo) = active.metainfo.clone() else { return };
        let node = |root: &[u8; 32], layer, index| node_of(&metainfo, root, layer, index);
        let verified = match active.blame.fetch.handle_hashes(id, &request, hashes, node) {
            Ok(verified) => verified,
            Err(HashesError::NotAsked) => return, // not needed any more
            Err(HashesError::False(_)) => {
                self.ban_conn(id, "sent hashes that lead nowhere");
                return;
            }
        };
        active.blame.refusals.remove(&id);
        let info = metainfo.info();
        let piece_layer = info.piece_layer_number();
        let unit_index = verified.first >> piece_layer.max(UNIT_LAYER);
        let Some(&first_piece) = active.blame.wanted.get(&(verified.pieces_root, unit_index))
        else {
            return;
        };
        let mut pieces = BTreeSet::new();
        for (at, &leaf) in (u64::from(verified.first)..).zip(&verified.hashes) {
            let Ok(piece) = info.geometry().piece(first_piece + (at >> piece_layer) as u32) else {
                continue;
            };
            if !active.have.get(piece) {
                let leaf_count = info.geometry().piece_data_len(piece).div_ceil(BLOCK_LEN) as usize;
                let in_piece = (at & ((1 << piece_layer) - 1)) as usize;
                active.blame.learn(piece, leaf_count, in_piece, leaf);
                pieces.insert(piece);
            }
        }
        for piece in pieces {
            self.judge_blocks(listing, piece);
        }
    }

    /// Compares what is here of a piece with its leaves.
    fn judge_blocks(&mut self, listing: ListingId, piece: PieceIndex) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let blame = &active.blame;
        let is_bad = |block: &&super::fill::FillBlock| {
            let found = block.leaf.filter(|_| block.from.is_some());
            let known = blame.leaf_of(block.block);
            found.is_some_and(|found| known.is_some_and(|known| known != found))
        };
        let blocks = active.assembler.blocks_of(&geometry, piece);
        let bad: Vec<BlockRef> = blocks.filter(is_bad).map(|block| block.block).collect();
        let is_disputed = active.blame.disputes.contains_key(&piece.get());
        let is_told = !bad.is_empty();
        for block in bad {
            self.block_is_bad(listing, block);
        }
        if let Some(active) = self.active.get_mut(&listing)
            && is_disputed
            && is_told
        {
            active.blame.disputes.remove(&piece.get());
        }
    }

    /// A block is not what its leaf says: whoever sent it is told apart at once, and the block alone is
    /// fetched again.
    pub(super) fn block_is_bad(&mut self, listing: ListingId, block: BlockRef) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some((geometry, assembler)) = active.layout_mut() else { return };
        // One that is on disk unverified is judged with its piece, when that is read back.
        let Some(sender) = assembler.reject_block(geometry, block) else { return };
        tracing::warn!(
            listing = listing.0,
            piece = block.piece().get(),
            begin = block.begin(),
            "block is bad"
        );
        self.hashing.forget_piece(listing, block.piece());
        self.count_waste(listing, u64::from(block.len()));
        self.block_refetch(listing, block);
        self.convict(listing, sender, block.piece());
    }

    /// A peer will not give leaves.
    pub(super) fn leaves_refused(&mut self, id: ConnId, listing: ListingId, request: HashRequest) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.blame.fetch.handle_rejected(id, &request);
        *active.blame.refusals.entry(id).or_default() += 1;
        let Some(geometry) = active.geometry().cloned() else { return };
        let pieces = active.blame.disputes.keys().filter_map(|&piece| geometry.piece(piece).ok());
        let is_meant =
            |piece: &PieceIndex| Unit::of(active, *piece).is_some_and(|unit| unit.has(&request));
        let disputed: Vec<PieceIndex> = pieces.filter(is_meant).collect();
        // Asked for ahead of the data, it stays asked for: the piece is judged by its hash, and a second
        // request would make the other side hash it from its disk.
        for piece in disputed {
            if !self.ask_next_about(listing, piece) {
                self.settle_bad_piece(listing, piece, false);
            }
        }
    }

    /// A piece is bad and nobody knows which block. Keeps it for a moment and asks for its leaves. False
    /// when nobody can be asked.
    pub(super) fn open_dispute(&mut self, listing: ListingId, piece: PieceIndex) -> bool {
        let Some(active) = self.active.get_mut(&listing) else { return false };
        if Unit::of(active, piece).is_none() {
            return false;
        }
        let until = self.now + DISPUTE_MAX;
        active.blame.disputes.insert(piece.get(), Dispute { asked: BTreeMap::new(), until });
        self.timers.set(until, Timer::Dispute(listing));
        let is_open = self.ask_next_about(listing, piece);
        if !is_open && let Some(active) = self.active.get_mut(&listing) {
            active.blame.disputes.remove(&piece.get());
        }
        is_open
    }

    /// Asks the next peer for the leaves of a piece in dispute. One that runs this program is asked twice:
    /// it refuses what it would have to read from its disk, unless it is asked again.
    fn ask_next_about(&mut self, listing: ListingId, piece: PieceIndex) -> bool {
        loop {
            let Some(active) = self.active.get_mut(&listing) else { return false };
            let Some(unit) = Unit::of(active, piece) else { return false };
            let Some(dispute) = active.blame.disputes.get_mut(&piece.get()) else { return false };
            let may_ask = |id: &&ConnId| {
                let Some(conn) = self.conns.get(id) else { return false };
                let is_ours = conn.peer_id.is_some_and(|peer_id| peer_id.is_ours());
                let channel = conn.channel().filter(|channel| channel.can_hash());
                let has = channel.and_then(|channel| channel.peer_has());
                let asked = dispute.asked.get(id).copied().unwrap_or(0);
                has.is_some_and(|has| has.get(piece)) && asked < 1 + u32::from(is_ours)
            };
            // Who has given leaves before comes first.
            let refusals = |id: &&ConnId| active.blame.refusals.get(id).copied().unwrap_or(0);
            let Some(&id) = active.conns.iter().filter(may_ask).min_by_key(refusals) else {
                return false;
            };
            *dispute.asked.entry(id).or_default() += 1;
            active.blame.forget_unit(&unit);
            if self.ask_leaves(listing, id, &unit) {
                return true;
            }
        }
    }

    /// Disputes have lasted long enough.
    pub(super) fn disputes_timeout(&mut self, listing: ListingId) {
        let now = self.now;
        let Some(active) = self.active.get(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let due = active.blame.disputes.iter().filter(|(_, dispute)| dispute.until <= now);
        let due: Vec<PieceIndex> =
            due.filter_map(|(&piece, _)| geometry.piece(piece).ok()).collect();
        due.into_iter().for_each(|piece| self.settle_bad_piece(listing, piece, false));
    }

    /// A bad piece is judged without leaves: all of it is fetched again, from one peer alone.
    pub(super) fn settle_bad_piece(
        &mut self,
        listing: ListingId,
        piece: PieceIndex,
        is_disk_to_blame: bool,
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.blame.disputes.remove(&piece.get());
        if !active.assembler.is_whole(piece) {
            return; // found out by other means
        }
        let digests = self.block_digests(listing, piece);
        let Some(active) = self.active.get_mut(&listing) else { return };
        let blame = &mut active.blame;
        let proven = |(begin, digest, _): &&BlockDigest| {
            let leaf = blame
                .known
                .get(&piece.get())
                .and_then(|known| known.get((begin / BLOCK_LEN) as usize));
            leaf.is_some_and(|leaf| *leaf != UNKNOWN && leaf != digest)
        };
        let mut liars: BTreeSet<Who> =
            digests.iter().filter(proven).map(|&(.., sender)| sender).collect();
        if !is_disk_to_blame {
            let attempts = blame.suspicions.entry(piece.get()).or_default();
            if attempts.len() < ATTEMPTS_MAX {
                attempts.push(digests);
            }
        }
        let Some((geometry, assembler)) = active.layout_mut() else { return };
        let senders = assembler.senders_of(geometry, piece);
        let rejected = assembler.reject(geometry, piece);
        tracing::warn!(
            listing = listing.0,
            piece = piece.get(),
            senders = senders.len(),
            "piece is bad"
        );
        self.count_waste(listing, rejected);
        self.piece_refetch(listing, piece);
        if let [(sender, _)] = senders[..] {
            liars.insert(sender);
        }
        if !is_disk_to_blame {
            liars.into_iter().for_each(|sender| self.convict(listing, sender, piece));
        }
    }

    /// SHA-256 of every block of a piece that is here, with its sender.
    fn block_digests(&self, listing: ListingId, piece: PieceIndex) -> Vec<BlockDigest> {
        let Some(active) = self.active.get(&listing) else { return Vec::new() };
        let Some(geometry) = active.geometry() else { return Vec::new() };
        let of_block = |fill: &super::fill::FillBlock| {
            let digest = match fill.leaf {
                Some(leaf) => leaf,
                None => {
                    let (extent, offset) = geometry.extent_of(fill.block);
                    let bytes = active.assembler.fill(extent)?.bytes()?;
                    merkle::leaf(&bytes[offset as usize..(offset + fill.block.len()) as usize])
                }
            };
            Some((fill.block.begin(), digest, fill.from?))
        };
        active.assembler.blocks_of(geometry, piece).filter_map(of_block).collect()
    }

    /// A piece is verified: whoever sent other bytes than these, when it failed before, lied.
    pub(super) fn settle_good_piece(&mut self, listing: ListingId, piece: PieceIndex) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.blame.forget_piece(piece);
        if let Some(unit) = Unit::of(active, piece) {
            let per_unit = 1_u64 << (unit.layer - piece_layer_of(active));
            let begin = u64::from(unit.first_piece) + u64::from(unit.index) * per_unit;
            let mut others = begin..begin + per_unit;
            let is_had = |piece: u64| {
                let piece =
                    u32::try_from(piece).ok().and_then(|raw| active.geometry()?.piece(raw).ok());
                piece.is_none_or(|piece| active.have.get(piece))
            };
            if others.all(is_had) {
                active.blame.forget_unit(&unit);
            }
        }
        let Some(attempts) = active.blame.suspicions.remove(&piece.get()) else { return };
        let good: BTreeMap<u32, [u8; 32]> = self
            .block_digests(listing, piece)
            .into_iter()
            .map(|(begin, digest, _)| (begin, digest))
            .collect();
        for attempt in attempts {
            let is_lie = |&&(begin, digest, _): &&BlockDigest| {
                good.get(&begin).is_some_and(|good| *good != digest)
            };
            let liars: BTreeSet<Who> = attempt.iter().filter(is_lie).map(|of| of.2).collect();
            // Who sent all of a bad piece was convicted when it came.
            let senders: BTreeSet<Who> = attempt.iter().map(|of| of.2).collect();
            if senders.len() > 1 {
                liars.into_iter().for_each(|sender| self.convict(listing, sender, piece));
            }
        }
    }

    /// Counts a proof against a peer; enough of them ban it.
    pub(super) fn convict(&mut self, listing: ListingId, sender: Who, piece: PieceIndex) {
        let known = self.active.get(&listing).and_then(|active| active.sources.get(&sender));
        let Some(&(addr, _)) = known else { return };
        let now = self.now;
        bound_len(&mut self.proofs);
        let proofs = self.proofs.entry(sender).or_insert(Proofs { count: 0, since: now });
        if proofs.since + PROOF_AGE_MAX <= now {
            *proofs = Proofs { count: 0, since: now };
        }
        proofs.count += 1;
        let count = proofs.count;
        tracing::warn!(listing = listing.0, %addr, piece = piece.get(), count, "peer sent bad data");
        if count >= PROOFS_MAX {
            self.ban(sender.peer_id, addr, format!("sent bad data in piece {}", piece.get()));
        }
    }

    /// Refuses a peer id at its address for a day, and says so once. Elsewhere the id may be that of an
    /// honest peer whose name was taken.
    pub(super) fn ban(&mut self, peer_id: PeerId, addr: SocketAddr, reason: String) {
        let who = Who::of(peer_id, addr);
        let is_news = !self.is_banned(&who);
        bound_len(&mut self.banned);
        self.banned.insert(who, self.now + BAN);
        if is_news {
            tracing::warn!(%addr, reason, "peer banned");
            self.ban_everywhere(who);
            self.tell(Event::PeerBanned { addr, peer_id: peer_id.0, reason });
        }
        self.close_conns_of(who);
    }

    /// Closes every connection of a peer that is banned.
    pub(super) fn close_conns_of(&mut self, who: Who) {
        let of_peer = |(&id, conn): (&ConnId, &Conn)| (conn.who() == Some(who)).then_some(id);
        let conns: Vec<ConnId> = self.conns.iter().filter_map(of_peer).collect();
        for id in conns {
            self.close_conn(id, CloseReason::BadData);
        }
    }

    /// Whether a peer is refused now.
    pub(super) fn is_banned(&self, who: &Who) -> bool {
        self.banned.get(who).is_some_and(|&until| until > self.now)
    }
}

fn piece_layer_of(active: &Active) -> u32 {
    active.metainfo.as_ref().map_or(0, |metainfo| metainfo.info().piece_layer_number())
}

/// A node of a file's tree at the piece layer or a few layers above it.
fn node_of(metainfo: &Metainfo, root: &[u8; 32], layer: u32, index: u64) -> Option<[u8; 32]> {
    let piece_layer = metainfo.info().piece_layer_number();
    let height = layer.checked_sub(piece_layer).filter(|&height| height <= UNIT_LAYER)?;
    let pieces = metainfo.layer(root)?;
    let begin = usize::try_from(index << height).ok().filter(|&begin| begin < pieces.len())?;
    let end = pieces.len().min(begin + (1 << height));
    Some(merkle::subtree_root(&pieces[begin..end], piece_layer, height))
}
