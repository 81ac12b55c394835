//! The assembler: extents of the arena that are being filled, block by block, until their pieces are
//! whole.
//!
//! While a receive is in flight, the extents it may write to are *lent* to it by value. A block that
//! comes over another connection meanwhile waits in a small heap buffer (the stash) and is copied in
//! when the extent is back. That is rare: a connection first waits without buffers until bytes are
//! there, so an extent is away for one system call.

use std::collections::BTreeMap;

use ringseed_core::bitfield::Bitfield;
use ringseed_core::geometry::{BlockRef, EXTENT_LEN_MAX, ExtentIndex, Geometry, PieceIndex};
use ringseed_core::wire::Kept;
use ringseed_sys::arena::ExtentMut;
use ringseed_sys::hash;

use super::peer::{ConnId, Who};
use crate::store::RunSet;

/// An extent that lies wholly in a pad.
static ZEROS: [u8; EXTENT_LEN_MAX as usize] = [0; EXTENT_LEN_MAX as usize];

/// What came of a block that landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Needed and in place; its piece lacks others.
    New,
    /// Needed and in place; the last one of its piece.
    Whole,
    /// Had already: wasted.
    Duplicate,
    /// Its beginning went elsewhere: it is still missing.
    Torn,
}

/// One block of an extent being filled.
#[derive(Clone, Debug)]
pub(super) struct FillBlock {
    pub block: BlockRef,
    pub offset: u32,
    /// Who sent it; `None` while it is missing.
    pub from: Option<Who>,
    /// The connection whose bytes may lie in its place already. Others bring theirs in buffers of
    /// their own, so that a block never mixes bytes of two peers and blame finds the right one.
    owner: Option<ConnId>,
    /// SHA-256 of its bytes, once it was hashed: with a v2 view when it came, else when its bytes go to
    /// the disk unverified.
    pub leaf: Option<[u8; 32]>,
}

/// An extent being filled.
#[derive(Debug)]
pub(super) struct Fill {
    extent: ExtentIndex,
    buf: Option<ExtentMut>,
    /// The blocks that are wanted here, in order of offset.
    pub blocks: Vec<FillBlock>,
    /// Whole, and on disk unverified, or on its way there.
    spill: Option<Spill>,
    /// Landed while the extent was lent: where in the extent, and the bytes.
    stash: Vec<(u32, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spill {
    Writing,
    Done,
}

/// All extents of a listing that are being filled.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    fills: BTreeMap<u32, Fill>,
    /// Blocks that a begun piece lacks.
    missing: BTreeMap<u32, u32>,
}

/// An extent that leaves the assembler.
#[derive(Debug)]
pub(super) struct Filled {
    pub extent: ExtentIndex,
    pub bytes: ExtentMut,
    /// Pieces that were wanted in this buffer. Of the others there is nothing in it: they were had
    /// before it was begun, and may still be on their way to the disk from an earlier buffer.
    pub pieces: RunSet,
}

/// An extent that is given up: blocks that are missing again, and what is left.
#[derive(Debug)]
pub(super) struct GivenUp {
    pub lost: Vec<BlockRef>,
    pub filled: Filled,
}

impl Fill {
    fn filled(self, extent: ExtentIndex) -> Option<Filled> {
        let pieces = self.blocks.iter().map(|block| block.block.piece().get()).collect();
        Some(Filled { extent, bytes: self.buf?, pieces })
    }

    /// The bytes, unless they are lent.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.buf.as_deref()
    }

    fn find(&mut self, block: BlockRef, offset: u32) -> Option<&mut FillBlock> {
        let at = self.blocks.binary_search_by_key(&offset, |fill| fill.offset).ok()?;
        Some(&mut self.blocks[at]).filter(|fill| fill.block == block)
    }
}

impl Assembler {
    /// Starts filling an extent: all blocks of pieces not in `have` are wanted. What no block covers
    /// is set to zeros, because pads lie there and v1 hashes them.
    pub fn begin(
        &mut self,
        geometry: &Geometry,
        extent: ExtentIndex,
        mut buf: ExtentMut,
        have: &Bitfield,
    ) {
        let mut blocks = Vec::new();
        let mut covered = 0;
        for block in geometry.blocks_of_extent(extent) {
            let (_, offset) = geometry.extent_of(block);
            buf[covered as usize..offset as usize].fill(0);
            covered = offset + block.len();
            if !have.get(block.piece()) {
                blocks.push(FillBlock { block, offset, from: None, owner: None, leaf: None });
            }
        }
        buf[covered as usize..geometry.extent_len(extent) as usize].fill(0);
        for piece in geometry.pieces_of_extent(extent).filter(|&piece| !have.get(piece)) {
            self.missing
                .entry(piece.get())
                .or_insert_with(|| geometry.blocks_of_piece(piece).count() as u32);
        }
        self.fills.insert(
            extent.get(),
            Fill { extent, buf: Some(buf), blocks, spill: None, stash: Vec::new() },
        );
    }

    /// A piece that was had is lost: extents that are being filled without it want it, too, or its
    /// blocks would come and find no place.
    pub fn want(&mut self, geometry: &Geometry, piece: PieceIndex) {
        let mut is_begun = false;
        for extent in geometry.extents_of_piece(piece) {
            let Some(fill) = self.fills.get_mut(&extent.get()) else { continue };
            is_begun = true;
            fill.blocks.retain(|block| block.block.piece() != piece);
            let blocks = geometry.blocks_of_extent(extent).filter(|block| block.piece() == piece);
            fill.blocks.extend(blocks.map(|block| {
                let (_, offset) = geometry.extent_of(block);
                FillBlock { block, offset, from: None, owner: None, leaf: None }
            }));
            fill.blocks.sort_by_key(|block| block.offset);
        }
        if is_begun {
            self.missing.insert(piece.get(), geometry.blocks_of_piece(piece).count() as u32);
        }
    }

    /// A piece was found on disk: nothing of it is wanted any more.
    pub fn found(&mut self, geometry: &Geometry, piece: PieceIndex) {
        self.missing.remove(&piece.get());
        for extent in geometry.extents_of_piece(piece) {
            if let Some(fill) = self.fills.get_mut(&extent.get()) {
                fill.blocks.retain(|block| block.block.piece() != piece);
            }
        }
    }

    /// Whether an extent is being filled.
    pub fn is_filling(&self, extent: ExtentIndex) -> bool {
        self.fills.contains_key(&extent.get())
    }

    /// An extent being filled.
    pub fn fill(&self, extent: ExtentIndex) -> Option<&Fill> {
        self.fills.get(&extent.get())
    }

    /// An extent being filled, to write leaves into.
    pub fn fill_mut(&mut self, extent: ExtentIndex) -> Option<&mut Fill> {
        self.fills.get_mut(&extent.get())
    }

    /// Where a block belongs, for the bytes of one connection, if its extent is here.
    pub fn place(
        &mut self,
        geometry: &Geometry,
        block: BlockRef,
        conn: ConnId,
    ) -> Option<&mut [u8]> {
        let (extent, offset) = geometry.extent_of(block);
        let fill = self.fills.get_mut(&extent.get())?;
        fill.buf.as_ref()?;
        let found = fill.find(block, offset)?;
        // A block that is had already has no place: what lies there may be hashed or sent by now.
        if found.from.is_some() || *found.owner.get_or_insert(conn) != conn {
            return None;
        }
        let buf = fill.buf.as_mut()?;
        Some(&mut buf[offset as usize..(offset + block.len()) as usize])
    }

    /// Bytes of an extent that has come back from a receive.
    pub fn bytes_mut(&mut self, extent: ExtentIndex) -> Option<&mut [u8]> {
        self.fills.get_mut(&extent.get())?.buf.as_deref_mut()
    }

    /// Lends an extent to a receive.
    pub fn lend(&mut self, extent: ExtentIndex) -> Option<ExtentMut> {
        self.fills.get_mut(&extent.get())?.buf.take()
    }

    /// Takes a lent extent back as the receive has left it. What landed meanwhile is not in it before
    /// [`Assembler::settle`]: where the receive was predicted wrong, the slots hold other bytes of its
    /// stream, and those must be read out first.
    pub fn give_back(&mut self, extent: ExtentIndex, buf: ExtentMut) {
        // The fill may be gone (a removed listing, a piece given up): then the extent goes home.
        let Some(fill) = self.fills.get_mut(&extent.get()) else { return };
        fill.buf = Some(buf);
    }

    /// Copies in what landed over other connections while the extent was lent.
    pub fn settle(&mut self, extent: ExtentIndex) {
        let Some(fill) = self.fills.get_mut(&extent.get()) else { return };
        let Some(buf) = &mut fill.buf else { return };
        for (offset, bytes) in fill.stash.drain(..) {
            buf[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// A block has landed: in place, or from some offset on in a buffer of its own.
    pub fn land(
        &mut self,
        geometry: &Geometry,
        block: BlockRef,
        kept: Option<Kept>,
        conn: ConnId,
        from: Who,
    ) -> Arrival {
        let (extent, offset) = geometry.extent_of(block);
        let Some(fill) = self.fills.get_mut(&extent.get()) else { return Arrival::Duplicate };
        let is_whole = kept.as_ref().is_some_and(|kept| kept.from_offset == 0);
        match fill.find(block, offset) {
            // What precedes kept bytes lies in place only if the place was this connection's.
            Some(found) if found.from.is_none() && (is_whole || found.owner == Some(conn)) => {
                found.from = Some(from);
            }
            Some(found) if found.from.is_none() => return Arrival::Torn,
            _ => return Arrival::Duplicate,
        }
        if let Some(kept) = kept {
            let at = offset + kept.from_offset;
            match fill.buf.as_mut() {
                Some(buf) => {
                    buf[at as usize..at as usize + kept.bytes.len()].copy_from_slice(&kept.bytes);
                }
                None => fill.stash.push((at, kept.bytes)),
            }
        }
        let missing =
            self.missing.get_mut(&block.piece().get()).expect("set when its extent began");
        *missing -= 1;
        if *missing == 0 { Arrival::Whole } else { Arrival::New }
    }

    /// The blocks of a piece that are here or wanted, in order.
    pub fn blocks_of<'a>(
        &'a self,
        geometry: &Geometry,
        piece: PieceIndex,
    ) -> impl Iterator<Item = &'a FillBlock> + use<'a> {
        let extents = geometry.extents_of_piece(piece);
        extents
            .filter_map(|extent| self.fills.get(&extent.get()))
            .flat_map(|fill| fill.blocks.iter())
            .filter(move |fill| fill.block.piece() == piece)
    }

    /// The bytes of a whole piece, pads included, as parts in order; `None` while one is lent.
    pub fn parts_of<'a>(&'a self, geometry: &Geometry, piece: PieceIndex) -> Option<Vec<&'a [u8]>> {
        let begin = geometry.piece_offset(piece);
        let end = begin + u64::from(geometry.piece_len(piece));
        let mut parts = Vec::new();
        for extent in geometry.extents_of_piece(piece) {
            let at = geometry.extent_offset(extent);
            let bytes: &[u8] = match geometry.extent_data_len(extent) {
                0 => &ZEROS, // wholly in a pad: nobody sends it, v1 hashes it
                _ => self.fills.get(&extent.get())?.bytes()?,
            };
            let from = begin.saturating_sub(at) as usize;
            let to = (end - at).min(u64::from(geometry.extent_len(extent))) as usize;
            parts.push(&bytes[from..to]);
        }
        Some(parts)
    }

    /// Who sent blocks of a piece, each peer once.
    pub fn senders_of(&self, geometry: &Geometry, piece: PieceIndex) -> Vec<(Who, u64)> {
        let mut senders: BTreeMap<Who, u64> = BTreeMap::new();
        for block in self.blocks_of(geometry, piece) {
            if let Some(from) = block.from {
                *senders.entry(from).or_default() += u64::from(block.block.len());
            }
        }
        senders.into_iter().collect()
    }

    /// A block is bad: it is missing again. Returns who sent it; `None` for one that is on disk.
    pub fn reject_block(&mut self, geometry: &Geometry, block: BlockRef) -> Option<Who> {
        let (extent, offset) = geometry.extent_of(block);
        let fill = self.fills.get_mut(&extent.get()).filter(|fill| fill.spill.is_none())?;
        let found = fill.find(block, offset)?;
        let sender = found.from.take()?;
        (found.owner, found.leaf) = (None, None);
        *self.missing.entry(block.piece().get()).or_default() += 1;
        Some(sender)
    }

    /// Whether every block of a piece is here, or was and is on disk unverified.
    pub fn is_whole(&self, piece: PieceIndex) -> bool {
        self.missing.get(&piece.get()) == Some(&0)
    }

    /// Hashes the blocks of an extent that are not hashed.
    pub fn digest_blocks(&mut self, extent: ExtentIndex) {
        let Some(fill) = self.fills.get_mut(&extent.get()) else { return };
        let Some(buf) = fill.buf.as_deref() else { return };
        let mut blocks: Vec<&mut FillBlock> =
            fill.blocks.iter_mut().filter(|block| block.leaf.is_none()).collect();
        let range = |block: &FillBlock| {
            let begin = block.offset as usize;
            begin..begin + block.block.len() as usize
        };
        let messages: Vec<&[u8]> = blocks.iter().map(|block| &buf[range(block)]).collect();
        let mut digests = vec![[0; 32]; messages.len()];
        hash::sha256_many(&messages, &mut digests);
        for (block, digest) in blocks.iter_mut().zip(digests) {
            block.leaf = Some(digest);
        }
    }

    /// A piece did not verify: all its blocks are missing again. Returns their bytes.
    pub fn reject(&mut self, geometry: &Geometry, piece: PieceIndex) -> u64 {
        let mut rejected = 0;
        for extent in geometry.extents_of_piece(piece) {
            let Some(fill) = self.fills.get_mut(&extent.get()) else { continue };
            for block in fill.blocks.iter_mut().filter(|block| block.block.piece() == piece) {
                if block.from.is_some() {
                    (block.from, block.owner, block.leaf) = (None, None, None);
                    rejected += u64::from(block.block.len());
                    *self.missing.entry(piece.get()).or_default() += 1;
                }
            }
            if fill.spill.is_some() {
                self.fills.remove(&extent.get()); // begun anew, with memory, when it is asked for
            }
        }
        rejected
    }

    /// A piece is verified: it is no longer being filled. Returns the extents that have nothing left
    /// to wait for, with their bytes.
    pub fn finish(
        &mut self,
        geometry: &Geometry,
        piece: PieceIndex,
        have: &Bitfield,
    ) -> Vec<Filled> {
        self.missing.remove(&piece.get());
        let mut done = Vec::new();
        for extent in geometry.extents_of_piece(piece) {
            if geometry.pieces_of_extent(extent).all(|piece| have.get(piece))
                && let Some(fill) = self.fills.remove(&extent.get())
                && fill.spill.is_none()
            {
                done.push(fill.filled(extent).expect("a verified piece is not lent"));
            }
        }
        done
    }

    /// Takes out an extent of several pieces of which some are verified and none is half here, so that
    /// the verified ones can be written and served; the others begin anew when they are asked for.
    pub fn split_off(&mut self, geometry: &Geometry, extent: ExtentIndex) -> Option<Filled> {
        let fill = self.fills.get(&extent.get())?;
        let half_here = |piece: PieceIndex| {
            let mut of_piece = fill.blocks.iter().filter(|block| block.block.piece() == piece);
            self.missing.contains_key(&piece.get()) && of_piece.any(|block| block.from.is_some())
        };
        if fill.buf.is_none() || geometry.pieces_of_extent(extent).any(half_here) {
            return None;
        }
        for piece in geometry.pieces_of_extent(extent) {
            self.missing.remove(&piece.get());
        }
        self.fills.remove(&extent.get())?.filled(extent)
    }

    /// Extents that are being filled in memory.
    pub fn held(&self) -> Vec<ExtentIndex> {
        self.fills
            .iter()
            .filter(|(_, fill)| fill.spill.is_none())
            .map(|(_, fill)| fill.extent)
            .collect()
    }

    /// Takes out an extent of which nothing more comes. Blocks of pieces that lack others are missing
    /// again. `None` while it is lent, or when a whole piece in it waits for its hash.
    pub fn give_up(&mut self, geometry: &Geometry, extent: ExtentIndex) -> Option<GivenUp> {
        let fill = self.fills.get(&extent.get()).filter(|fill| fill.spill.is_none())?;
        let is_whole = |block: &FillBlock| self.missing.get(&block.block.piece().get()) == Some(&0);
        if fill.buf.is_none() || fill.blocks.iter().any(is_whole) {
            return None;
        }
        let mut lost = Vec::new();
        for block in &fill.blocks {
            if let Some(missing) = self.missing.get_mut(&block.block.piece().get())
                && block.from.is_some()
            {
                *missing += 1;
                lost.push(block.block);
            }
        }
        // A short piece has no other extents: it is begun anew. A long one may have.
        for piece in geometry.pieces_of_extent(extent) {
            let mut others = geometry.extents_of_piece(piece).filter(|&other| other != extent);
            if !others.any(|other| self.fills.contains_key(&other.get())) {
                self.missing.remove(&piece.get());
            }
        }
        let filled = self.fills.remove(&extent.get())?.filled(extent)?;
        Some(GivenUp { lost, filled })
    }

    /// Extents that wait only for others of their piece.
    pub fn spillable<'a>(
        &'a self,
        geometry: &'a Geometry,
        has_v2: bool,
    ) -> impl Iterator<Item = ExtentIndex> + 'a {
        self.fills.iter().filter_map(move |(&extent, fill)| {
            let is_in =
                |block: &FillBlock| block.from.is_some() && (!has_v2 || block.leaf.is_some());
            let is_whole = fill.buf.is_some() && fill.blocks.iter().all(is_in);
            let extent = geometry.extent(extent).ok()?;
            let piece = geometry.pieces_of_extent(extent).next()?;
            let waits = self.missing.get(&piece.get()).is_some_and(|&missing| missing > 0);
            (is_whole && waits && geometry.extents_of_piece(piece).len() > 1).then_some(extent)
        })
    }

    /// Takes the bytes of a whole extent out, to be written unverified.
    pub fn take_for_spill(&mut self, extent: ExtentIndex) -> Option<ExtentMut> {
        let fill = self.fills.get_mut(&extent.get())?;
        let buf = fill.buf.take()?;
        fill.spill = Some(Spill::Writing);
        Some(buf)
    }

    /// The write of a spilled extent has ended.
    pub fn set_spilled(&mut self, extent: ExtentIndex) {
        if let Some(fill) = self.fills.get_mut(&extent.get()).filter(|fill| fill.spill.is_some()) {
            fill.spill = Some(Spill::Done);
        }
    }

    /// Whether an extent is on disk unverified, or on its way there.
    pub fn is_spilled(&self, extent: ExtentIndex) -> bool {
        self.fills.get(&extent.get()).is_some_and(|fill| fill.spill.is_some())
    }

    /// Whether every extent of a whole piece is on disk, unverified.
    pub fn is_spilled_whole(&self, geometry: &Geometry, piece: PieceIndex) -> bool {
        let mut extents =
            geometry.extents_of_piece(piece).filter(|&extent| geometry.extent_data_len(extent) > 0);
        self.missing.get(&piece.get()) == Some(&0)
            && extents.all(|extent| {
                self.fills.get(&extent.get()).is_some_and(|fill| fill.spill == Some(Spill::Done))
            })
    }

    /// How many extents are being filled in memory.
    pub fn held_len(&self) -> usize {
        self.fills.values().filter(|fill| fill.spill.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use ringseed_core::geometry::{FileSpan, Kind};
    use ringseed_sys::arena::Arena;

    use super::*;

    /// A piece that was lost (a failed read, a failed sync) while its extent was being filled for
    /// others was asked for again, and its blocks found no place: the listing never became complete.
    #[test]
    fn a_piece_that_is_lost_while_its_extent_is_filled_gets_its_place() {
        let span = FileSpan { len_bytes: 16 * 16_384, pad: false };
        let geometry = Geometry::new(16_384, &[span], Kind::V2).unwrap();
        let arena = Arena::new(1 << 20).unwrap();
        let extent = geometry.extent(0).unwrap();
        let lost = geometry.piece(3).unwrap();
        let mut have = Bitfield::new(16);
        have.set(lost);
        let mut assembler = Assembler::default();
        assembler.begin(&geometry, extent, arena.try_take().unwrap(), &have);
        have.clear(lost);
        assembler.want(&geometry, lost);
        let mut filled = Vec::new();
        for piece in geometry.pieces() {
            let block = geometry.blocks_of_piece(piece).next().unwrap();
            let kept = Some(Kept { from_offset: 0, bytes: vec![7; 16_384] });
            let peer = Who::test(1);
            assert_eq!(assembler.land(&geometry, block, kept, ConnId(1), peer), Arrival::Whole);
            have.set(piece);
            filled.extend(assembler.finish(&geometry, piece, &have));
        }
        assert_eq!(filled[0].pieces.runs().collect::<Vec<_>>(), [(0, 16)]);
    }

    /// Founders banned each other: a receive that a HAVE had put out of step left bytes of the *next*
    /// block in the slot of one that had landed over another connection meanwhile, and those were
    /// overwritten before the stream was read out of the slots.
    #[test]
    fn what_landed_meanwhile_waits_until_the_receive_is_read_out() {
        let span = FileSpan { len_bytes: 4 * 16_384, pad: false };
        let geometry = Geometry::new(65_536, &[span], Kind::V2).unwrap();
        let arena = Arena::new(1 << 20).unwrap();
        let extent = geometry.extent(0).unwrap();
        let block = geometry.blocks_of_extent(extent).next().unwrap();
        let mut assembler = Assembler::default();
        assembler.begin(&geometry, extent, arena.try_take().unwrap(), &Bitfield::new(1));
        let (one, other) = (ConnId(1), ConnId(2));
        assert!(assembler.place(&geometry, block, one).is_some());
        let mut lent = assembler.lend(extent).unwrap();
        let kept = Some(Kept { from_offset: 0, bytes: vec![7; 16_384] });
        let landed = assembler.land(&geometry, block, kept, other, Who::test(2));
        assert_eq!(landed, Arrival::New);
        lent[..16_384].fill(9); // of the stream, not of this block
        assembler.give_back(extent, lent);
        assert_eq!(assembler.bytes_mut(extent).unwrap()[0], 9);
        assembler.settle(extent);
        assert!(assembler.bytes_mut(extent).unwrap()[..16_384].iter().all(|&byte| byte == 7));
    }

    /// Two newcomers that fetched from each other wrote blocks of other listings into their files: an
    /// extent had been split off with some of its pieces, was begun again for the others, and when it
    /// was full the pieces still being written from the first buffer were written from the second as
    /// well, which held whatever its last owner had left there.
    #[test]
    fn a_buffer_that_is_begun_again_speaks_only_for_what_it_waited_for() {
        let span = FileSpan { len_bytes: 16 * 16_384, pad: false };
        let geometry = Geometry::new(16_384, &[span], Kind::V2).unwrap();
        let arena = Arena::new(1 << 20).unwrap();
        let extent = geometry.extent(0).unwrap();
        let mut have = Bitfield::new(16);
        for piece in geometry.pieces().take(5) {
            have.set(piece);
        }
        let mut assembler = Assembler::default();
        assembler.begin(&geometry, extent, arena.try_take().unwrap(), &have);
        let mut filled = Vec::new();
        for piece in geometry.pieces().skip(5) {
            let block = geometry.blocks_of_piece(piece).next().unwrap();
            let kept = Some(Kept { from_offset: 0, bytes: vec![7; 16_384] });
            let peer = Who::test(1);
            assert_eq!(assembler.land(&geometry, block, kept, ConnId(1), peer), Arrival::Whole);
            have.set(piece);
            filled.extend(assembler.finish(&geometry, piece, &have));
        }
        let [filled] = &filled[..] else { panic!("one extent is full") };
        assert_eq!(filled.pieces.runs().collect::<Vec<_>>(), [(5, 11)]);
    }
}
