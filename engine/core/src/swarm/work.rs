//! What is still to be fetched: extents with their blocks, in groups that are started together.
//!
//! A *group* is what a source is chosen for: a piece with all its extents, or, of small pieces, the
//! one extent that holds several of them. Started groups come first, so that pieces get whole and
//! can be passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::PeerKey;
use crate::bitfield::Bitfield;
use crate::geometry::{BlockRef, EXTENT_LEN_MAX, ExtentIndex, Geometry, PieceIndex};

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Nobody is asked for it.
    Missing,
    /// One peer is asked for it, at the very end perhaps a second.
    Asked { by: PeerKey, twin: Option<PeerKey> },
    /// It is here and not yet verified.
    Got { from: PeerKey },
    /// Its piece is verified.
    Done,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSlot {
    pub(super) block: BlockRef,
    pub(super) state: BlockState,
}

/// An extent that is being fetched.
#[derive(Debug)]
pub(super) struct Active {
    /// Who may ask for the missing blocks.
    pub(super) owner: Option<PeerKey>,
    pub(super) slots: Vec<BlockSlot>,
    /// How many of them are `Missing`.
    pub(super) missing: u32,
    pub(super) since: Instant,
}

impl Active {
    fn slot_index(&self, block: BlockRef) -> Option<usize> {
        self.slots.binary_search_by_key(&block, |slot| slot.block).ok()
    }

    pub(super) fn state(&self, block: BlockRef) -> Option<BlockState> {
        Some(self.slots[self.slot_index(block)?].state)
    }

    pub(super) fn set(&mut self, block: BlockRef, state: BlockState) {
        let index = self.slot_index(block).expect("a block of this extent");
        let slot = &mut self.slots[index];
        self.missing -= u32::from(slot.state == BlockState::Missing);
        self.missing += u32::from(state == BlockState::Missing);
        slot.state = state;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Untouched,
    Started,
    Done,
}

/// The work of one listing.
#[derive(Debug)]
pub(super) struct Work {
    geometry: Arc<Geometry>,
    /// Verified pieces; those wholly in pads count as verified.
    have: Bitfield,
    groups_are_pieces: bool,
    stages: Vec<Stage>,
    /// Groups nobody has begun, in no order, and where each group stands in the list.
    untouched: Vec<u32>,
    place: Vec<u32>,
    /// Groups begun and not done, the oldest first.
    started: Vec<u32>,
    /// Those of them that peers fill together, see [`super::pace`].
    joint: BTreeSet<u32>,
    active: BTreeMap<ExtentIndex, Active>,
    /// Bytes of payload in pieces that are not verified.
    payload_left: u64,
}

impl Work {
    pub(super) fn new(geometry: Arc<Geometry>, resumed: &Bitfield) -> Self {
        assert_eq!(resumed.piece_count(), geometry.piece_count(), "bitfield of another torrent");
        let mut have = resumed.clone();
        let mut payload_left = 0;
        for piece in geometry.pieces() {
            let len = u64::from(geometry.piece_data_len(piece));
            if len == 0 {
                have.set(piece);
            }
            payload_left += if have.get(piece) { 0 } else { len };
        }
        let groups_are_pieces = geometry.piece_len_nominal() > EXTENT_LEN_MAX;
        let count =
            if groups_are_pieces { geometry.piece_count() } else { geometry.extent_count() };
        let mut work = Self {
            geometry,
            have,
            groups_are_pieces,
            stages: vec![Stage::Done; count as usize],
            untouched: Vec::new(),
            place: vec![u32::MAX; count as usize],
            started: Vec::new(),
            joint: BTreeSet::new(),
            active: BTreeMap::new(),
            payload_left,
        };
        for group in 0..count {
            if work.pieces_of(group).any(|piece| !work.have.get(piece)) {
                work.stages[group as usize] = Stage::Untouched;
                work.place[group as usize] = work.untouched.len() as u32;
                work.untouched.push(group);
            }
        }
        work
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn have(&self) -> &Bitfield {
        &self.have
    }

    pub(super) fn untouched(&self) -> &[u32] {
        &self.untouched
    }

    pub(super) fn is_untouched(&self, group: u32) -> bool {
        self.stages[group as usize] == Stage::Untouched
    }

    /// The same for a group that may not exist.
    pub(super) fn is_untouched_at(&self, group: u32) -> bool {
        self.stages.get(group as usize) == Some(&Stage::Untouched)
    }

    pub(super) fn started(&self) -> &[u32] {
        &self.started
    }

    /// Whether a group was begun by peers that fill extents together.
    pub(super) fn is_joint(&self, group: u32) -> bool {
        self.joint.contains(&group)
    }

    /// Nobody fills extents together any more: what was begun so is work like any other.
    pub(super) fn clear_joint(&mut self) {
        self.joint.clear();
    }

    pub(super) fn active(&self, extent: ExtentIndex) -> Option<&Active> {
        self.active.get(&extent)
    }

    pub(super) fn active_mut(&mut self, extent: ExtentIndex) -> Option<&mut Active> {
        self.active.get_mut(&extent)
    }

    pub(super) fn actives(&self) -> impl Iterator<Item = (ExtentIndex, &Active)> {
        self.active.iter().map(|(&extent, active)| (extent, active))
    }

    pub(super) fn group_of_piece(&self, piece: PieceIndex) -> u32 {
        let extent = || self.geometry.extents_of_piece(piece).next().expect("at least one").get();
        if self.groups_are_pieces { piece.get() } else { extent() }
    }

    /// The pieces of a group.
    pub(super) fn pieces_of(&self, group: u32) -> impl Iterator<Item = PieceIndex> + use<> {
        let extent = self.extents_of(group).next().expect("a group has an extent");
        self.geometry.pieces_of_extent(extent)
    }

    /// The extents of a group.
    pub(super) fn extents_of(&self, group: u32) -> impl Iterator<Item = ExtentIndex> + use<> {
        let in_range = "a group of this torrent";
        let (piece, extent) = if self.groups_are_pieces {
            (Some(self.geometry.piece(group).expect(in_range)), None)
        } else {
            (None, Some(self.geometry.extent(group).expect(in_range)))
        };
        let of_piece = piece.map(|piece| self.geometry.extents_of_piece(piece));
        of_piece.into_iter().flatten().chain(extent)
    }

    /// Rough length of a group, in bytes.
    pub(super) fn group_len(&self) -> u64 {
        let len = self.geometry.piece_len_nominal().max(EXTENT_LEN_MAX);
        u64::from(len).min(self.geometry.total_len())
    }

    /// Bytes of groups and extents that no peer has been given, roughly.
    pub(super) fn unassigned_len(&self) -> u64 {
        let block_len = u64::from(crate::geometry::BLOCK_LEN);
        let mut len = self.untouched.len() as u64 * self.group_len();
        for &group in &self.started {
            for extent in self.extents_of(group) {
                len += match self.active.get(&extent) {
                    Some(active) if active.owner.is_none() => u64::from(active.missing) * block_len,
                    Some(_) => 0,
                    None if self.is_extent_done(extent) => 0,
                    None => u64::from(self.geometry.extent_len(extent)),
                };
            }
        }
        len.min(self.payload_left)
    }

    /// Whether every piece of an extent is verified.
    pub(super) fn is_extent_done(&self, extent: ExtentIndex) -> bool {
        self.geometry.pieces_of_extent(extent).all(|piece| self.have.get(piece))
    }

    /// Begins an extent for `owner`. `is_joint`: it will fill it together with others.
    pub(super) fn start(
        &mut self,
        extent: ExtentIndex,
        owner: PeerKey,
        is_joint: bool,
        now: Instant,
    ) {
        let mut missing = 0;
        let slots = self.geometry.blocks_of_extent(extent).map(|block| {
            let done = self.have.get(block.piece());
            missing += u32::from(!done);
            BlockSlot { block, state: if done { BlockState::Done } else { BlockState::Missing } }
        });
        let slots = slots.collect();
        let active = Active { owner: Some(owner), slots, missing, since: now };
        let before = self.active.insert(extent, active);
        assert!(before.is_none(), "{extent:?} is begun already");
        let group = self.group_of_extent(extent);
        if self.stages[group as usize] == Stage::Untouched {
            self.set_stage(group, Stage::Started);
            if is_joint {
                self.joint.insert(group);
            }
        }
    }

    /// A piece is verified: its blocks are done for good.
    pub(super) fn finish_piece(&mut self, piece: PieceIndex) -> bool {
        if !self.have.set(piece) {
            return false;
        }
        self.payload_left -= u64::from(self.geometry.piece_data_len(piece));
        for extent in self.geometry.extents_of_piece(piece) {
            if self.is_extent_done(extent) {
                self.active.remove(&extent);
            } else if let Some(active) = self.active.get_mut(&extent) {
                for slot in active.slots.iter_mut().filter(|slot| slot.block.piece() == piece) {
                    active.missing -= u32::from(slot.state == BlockState::Missing);
                    slot.state = BlockState::Done;
                }
            }
        }
        let group = self.group_of_piece(piece);
        if self.pieces_of(group).all(|piece| self.have.get(piece)) {
            self.set_stage(group, Stage::Done);
        }
        true
    }

    /// A verified piece is lost (rotten on disk): it is wanted again.
    pub(super) fn lose_piece(&mut self, piece: PieceIndex) -> bool {
        if !self.have.clear(piece) {
            return false;
        }
        self.payload_left += u64::from(self.geometry.piece_data_len(piece));
        for extent in self.geometry.extents_of_piece(piece) {
            if let Some(active) = self.active.get_mut(&extent) {
                for slot in active.slots.iter_mut().filter(|slot| slot.block.piece() == piece) {
                    slot.state = BlockState::Missing;
                    active.missing += 1;
                }
            }
        }
        let group = self.group_of_piece(piece);
        if self.stages[group as usize] == Stage::Done {
            self.set_stage(group, Stage::Untouched);
        }
        true
    }

    pub(super) fn group_of_extent(&self, extent: ExtentIndex) -> u32 {
        let first = self.geometry.pieces_of_extent(extent).next().expect("at least one piece");
        self.group_of_piece(first)
    }

    fn set_stage(&mut self, group: u32, stage: Stage) {
        match std::mem::replace(&mut self.stages[group as usize], stage) {
            Stage::Untouched => {
                let at = self.place[group as usize] as usize;
                self.untouched.swap_remove(at);
                if let Some(&moved) = self.untouched.get(at) {
                    self.place[moved as usize] = at as u32;
                }
            }
            Stage::Started => {
                self.started.retain(|&other| other != group);
                self.joint.remove(&group);
            }
            Stage::Done => {}
        }
        match stage {
            Stage::Untouched => {
                self.place[group as usize] = self.untouched.len() as u32;
                self.untouched.push(group);
            }
            Stage::Started => self.started.push(group),
            Stage::Done => {}
        }
    }
}
