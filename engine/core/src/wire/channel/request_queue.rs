//! What a peer waits for, in the order in which it asked.

use std::collections::{HashSet, VecDeque};

use crate::geometry::BlockRef;

/// Requests of a peer, the oldest first, each block once.
///
/// Every request is looked up when it comes, among up to a few hundred: searching the queue was a fortieth of what a
/// seed spent.
#[derive(Debug, Default)]
pub(super) struct RequestQueue {
    order: VecDeque<BlockRef>,
    members: HashSet<BlockRef>,
}

impl RequestQueue {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn contains(&self, block: BlockRef) -> bool {
        self.members.contains(&block)
    }

    pub fn iter(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.order.iter().copied()
    }

    /// Adds a block at the end, unless it is there already.
    pub fn push(&mut self, block: BlockRef) {
        if self.members.insert(block) {
            self.order.push_back(block);
        }
    }

    /// Takes a block out: mostly the oldest. `false` when it is not there.
    pub fn remove(&mut self, block: BlockRef) -> bool {
        if !self.members.remove(&block) {
            return false;
        }
        match self.order.front() == Some(&block) {
            true => drop(self.order.pop_front()),
            false => self.order.retain(|&other| other != block),
        }
        true
    }

    /// Empties the queue.
    pub fn take(&mut self) -> VecDeque<BlockRef> {
        self.members.clear();
        std::mem::take(&mut self.order)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::{FileSpan, Geometry, Kind};

    proptest! {
        /// Against a plain list.
        #[test]
        fn it_is_a_list_without_repetitions(steps in proptest::collection::vec((0..3, 0..8_usize), 0..60)) {
            let span = FileSpan { len_bytes: 8 * 16_384, pad: false };
            let geometry = Geometry::new(65_536, &[span], Kind::V1).unwrap();
            let blocks: Vec<BlockRef> =
                geometry.pieces().flat_map(|piece| geometry.blocks_of_piece(piece)).collect();
            let (mut queue, mut list) = (RequestQueue::default(), Vec::new());
            for (step, at) in steps {
                let block = blocks[at];
                let was_there = list.contains(&block);
                prop_assert_eq!(queue.contains(block), was_there);
                match step {
                    0 => {
                        queue.push(block);
                        list.extend((!was_there).then_some(block));
                    }
                    1 => {
                        prop_assert_eq!(queue.remove(block), was_there);
                        list.retain(|&other| other != block);
                    }
                    _ if at == 0 => {
                        prop_assert_eq!(Vec::from(queue.take()), std::mem::take(&mut list));
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.iter().collect::<Vec<_>>(), list.clone());
                prop_assert_eq!(queue.len(), list.len());
            }
        }
    }
}
