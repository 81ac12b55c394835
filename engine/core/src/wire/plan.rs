//! What a link and its transport tell each other: where received bytes land, what to send.

use crate::geometry::BlockRef;

/// A torrent's conversation on a link. A stock connection has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u32);

impl ChannelId {
    /// The one channel of a stock connection.
    pub const STOCK: Self = Self(0);
}

/// Most blocks that one receive is planned for. 64 blocks are 1 MiB: more do not save syscalls that
/// would be felt, and `IOV_MAX` (1024) is far.
pub const PLAN_BLOCKS_MAX: usize = 64;
/// Fewest blocks that a receive is planned for, if so many were asked for.
pub const PLAN_BLOCKS_MIN: usize = 16;
/// Most slots of one plan: a header and a payload slot per block, and two for what is half done.
pub const PLAN_SLOTS_MAX: usize = 2 * PLAN_BLOCKS_MAX + 2;

/// Where the next received bytes should land, in stream order. Keep one and use it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceivePlan {
    /// At most [`PLAN_SLOTS_MAX`]. Empty: do not receive now.
    pub slots: Vec<PlanSlot>,
}

impl ReceivePlan {
    /// How many bytes the plan has room for.
    pub fn len_bytes(&self) -> usize {
        self.slots.iter().map(PlanSlot::len_bytes).sum()
    }
}

/// One entry of a vectored receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanSlot {
    /// Bytes of staging: a header, a small message, or a payload without a place.
    Small {
        /// Length in bytes.
        len: usize,
    },
    /// A part of a block's final place.
    Block {
        /// Whose block.
        channel: ChannelId,
        /// Which block.
        block: BlockRef,
        /// Where in the block, in bytes.
        from_offset: u32,
        /// Length in bytes: from there to the block's end.
        len: u32,
    },
}

impl PlanSlot {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        match *self {
            Self::Small { len } => len,
            Self::Block { len, .. } => len as usize,
        }
    }
}

/// The memory behind a plan, after a receive.
pub trait Landed {
    /// All bytes of the plan's slot `index`, in planned length.
    fn slot(&mut self, index: usize) -> &mut [u8];

    /// The whole final place of a block, exactly its length; `None` if it has none now. Blocks that
    /// have a slot in the plan have a place. A place that holds a part of a block stays until the
    /// link has given the block out, or the channel has cancelled it.
    fn place(&mut self, channel: ChannelId, block: BlockRef) -> Option<&mut [u8]>;
}

/// One part of a vectored send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatherItem {
    /// A range of [`GatherList::small`].
    Bytes {
        /// First byte.
        start: usize,
        /// Length in bytes.
        len: usize,
    },
    /// The payload of a block; the shard knows which extent holds it.
    Block {
        /// Whose block.
        channel: ChannelId,
        /// Which block.
        block: BlockRef,
    },
}

/// What one vectored send carries, in stream order. Keep one and use it again.
#[derive(Clone, Debug)]
pub struct GatherList {
    /// Headers and small messages, back to back.
    pub small: Vec<u8>,
    /// The parts in order.
    pub items: Vec<GatherItem>,
    items_max: usize,
    payload_max_bytes: usize,
    payload_bytes: usize,
}

impl GatherList {
    /// An empty list that takes at most `items_max` parts and about `payload_max_bytes` (it stops
    /// taking when they are reached).
    pub fn new(items_max: usize, payload_max_bytes: usize) -> Self {
        assert!(items_max >= 2, "a block needs a header and a payload part");
        let (small, items) = (Vec::new(), Vec::new());
        Self { small, items, items_max, payload_max_bytes, payload_bytes: 0 }
    }

    /// Empties the list for the next send.
    pub fn clear(&mut self) {
        self.small.clear();
        self.items.clear();
        self.payload_bytes = 0;
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of blocks in the list.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Whether a message, and a block behind it, still fit.
    pub(super) fn has_room(&self) -> bool {
        self.items.len() + 2 <= self.items_max
            && self.payload_bytes + self.small.len() < self.payload_max_bytes
    }

    /// Adds the bytes that `write` appends, joined with the part before where possible.
    pub(super) fn push_bytes(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.small.len();
        write(&mut self.small);
        let len = self.small.len() - start;
        match self.items.last_mut() {
            Some(GatherItem::Bytes { start: before, len: before_len })
                if *before + *before_len == start =>
            {
                *before_len += len;
            }
            _ => self.items.push(GatherItem::Bytes { start, len }),
        }
    }

    /// Adds a block's payload.
    pub(super) fn push_block(&mut self, channel: ChannelId, block: BlockRef) {
        self.payload_bytes += block.len() as usize;
        self.items.push(GatherItem::Block { channel, block });
    }
}

impl Default for GatherList {
    /// 64 blocks, 1 MiB: what one receive of the other side takes in.
    fn default() -> Self {
        Self::new(2 * PLAN_BLOCKS_MAX, PLAN_BLOCKS_MAX * crate::geometry::BLOCK_LEN as usize)
    }
}
