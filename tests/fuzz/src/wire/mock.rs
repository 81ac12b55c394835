//! A torrent of a few KiB, and the memory that its blocks land in.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use ringseed_core::geometry::{BlockRef, FileSpan, Geometry, Kind};
use ringseed_core::wire::{ChannelId, Kept, Landed, Link, PlanSlot, ReceivePlan};

use crate::source::noise;

/// Nine pieces of 1,000 bytes and more, the last one short: a stream of all of them fits an input.
pub fn geometry() -> Arc<Geometry> {
    static GEOMETRY: LazyLock<Arc<Geometry>> = LazyLock::new(|| {
        let span = FileSpan { len_bytes: 9 * 1024 - 300, pad: false };
        Arc::new(Geometry::new(1024, &[span], Kind::V1).expect("a torrent"))
    });
    GEOMETRY.clone()
}

/// The bytes of a block, of any cut.
pub fn payload(block: BlockRef) -> Vec<u8> {
    static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(5, 9 * 1024));
    let start = geometry().block_offset(block) as usize;
    WHOLE[start..start + block.len() as usize].to_vec()
}

/// Final places of blocks, full of junk until something lands.
#[derive(Default)]
pub struct Memory {
    places: BTreeMap<BlockRef, Vec<u8>>,
    plan: ReceivePlan,
    small: Vec<Vec<u8>>,
    nowhere_of: u32,
    turn: u32,
}

impl Memory {
    /// Asks the link where the next bytes should land; how many there is room for.
    pub fn plan(&mut self, link: &mut Link, nowhere_of: u32) -> usize {
        (self.nowhere_of, self.turn) = (nowhere_of, self.turn.wrapping_add(1));
        let mut plan = std::mem::take(&mut self.plan);
        link.poll_receive(&mut plan, &mut |_, block| !self.is_nowhere(block));
        self.plan = plan;
        self.small = self.plan.slots.iter().map(|slot| vec![0xee; slot.len_bytes()]).collect();
        for slot in &self.plan.slots {
            if let PlanSlot::Block { block, .. } = slot {
                let place = vec![0xcc; block.len() as usize];
                self.places.entry(*block).or_insert(place);
            }
        }
        self.plan.len_bytes()
    }

    /// Lands bytes as the last plan says.
    pub fn fill(&mut self, mut bytes: &[u8]) {
        for index in 0..self.plan.slots.len() {
            let slot = self.slot(index);
            let len = slot.len().min(bytes.len());
            slot[..len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
        }
        assert!(bytes.is_empty(), "more than was planned");
    }

    /// The whole of a block that has come, wherever its parts lay.
    pub fn take(&mut self, block: BlockRef, kept: Option<&Kept>) -> Vec<u8> {
        let place = self.forget(block);
        let Some(kept) = kept else { return place.expect("a block without its place") };
        let mut bytes = place.unwrap_or_default();
        bytes.truncate(kept.from_offset as usize);
        bytes.extend_from_slice(&kept.bytes);
        bytes
    }

    /// Takes a block's place away.
    pub fn forget(&mut self, block: BlockRef) -> Option<Vec<u8>> {
        self.places.remove(&block)
    }

    /// Whether a block finds no place in this turn; the choice is another each turn.
    fn is_nowhere(&self, block: BlockRef) -> bool {
        let mixed = (block.piece().get() * 7 + self.turn).wrapping_mul(2_654_435_761) >> 8;
        self.nowhere_of > 0 && mixed.is_multiple_of(self.nowhere_of)
    }
}

impl Landed for Memory {
    fn slot(&mut self, index: usize) -> &mut [u8] {
        match self.plan.slots[index] {
            PlanSlot::Small { .. } => &mut self.small[index],
            PlanSlot::Block { block, from_offset, len, .. } => {
                let place = self.places.get_mut(&block).expect("a planned block has a place");
                &mut place[from_offset as usize..(from_offset + len) as usize]
            }
        }
    }

    fn place(&mut self, _: ChannelId, block: BlockRef) -> Option<&mut [u8]> {
        let planned =
            self.plan.slots.iter().any(
                |slot| matches!(slot, PlanSlot::Block { block: other, .. } if *other == block),
            );
        if self.is_nowhere(block) && !planned {
            return None;
        }
        let place = self.places.entry(block).or_insert_with(|| vec![0xcc; block.len() as usize]);
        Some(place)
    }
}
