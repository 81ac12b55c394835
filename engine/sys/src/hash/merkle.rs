//! The SHA-256 tree of BEP 52 over 16 KiB leaves: leaves in lanes, inner nodes in batches.
//!
//! A tree is as wide as the next power of two; leaves past the end of the file are 32 zero bytes,
//! and a node over nothing but such leaves is a constant, [`zero_hash`]. *Level* counts from the
//! leaves, which are level 0.

use std::sync::OnceLock;

use super::kernel::{Algo, BLOCK_LEN_BYTES, LANES_MAX};
use super::plan::{self, Plan};
use super::{Sha256Digest, sha256_many, write_digest};

/// Bytes of data under one leaf (BEP 52).
pub const LEAF_LEN_BYTES: usize = 16 * 1024;

/// Levels above any file's leaves: 2^50 leaves hold 2^64 bytes.
pub const LEVELS_MAX: usize = 50;

/// The second block of every inner node: padding after 64 bytes (FIPS 180-4, 5.1.1).
const NODE_PADDING: [u8; BLOCK_LEN_BYTES] = {
    let mut block = [0; BLOCK_LEN_BYTES];
    block[0] = 0x80;
    // 512 bits, most significant byte first.
    block[BLOCK_LEN_BYTES - 2] = 2;
    block
};

/// Hashes `data` leaf by leaf; the last leaf may be short and is not padded (BEP 52).
///
/// # Panics
/// When `out` has not one place per leaf.
pub fn leaves(data: &[u8], out: &mut [Sha256Digest]) {
    assert_eq!(data.len().div_ceil(LEAF_LEN_BYTES), out.len(), "one digest per leaf");
    const BATCH: usize = 4 * LANES_MAX;
    for (data, out) in data.chunks(BATCH * LEAF_LEN_BYTES).zip(out.chunks_mut(BATCH)) {
        let mut messages: [&[u8]; BATCH] = [&[]; BATCH];
        for (message, leaf) in messages.iter_mut().zip(data.chunks(LEAF_LEN_BYTES)) {
            *message = leaf;
        }
        sha256_many(&messages[..out.len()], out);
    }
}

/// The hash of a node at `level` that has only absent leaves under it.
///
/// # Panics
/// When `level` is above [`LEVELS_MAX`].
pub fn zero_hash(level: usize) -> &'static Sha256Digest {
    static ZERO_HASHES: OnceLock<[Sha256Digest; LEVELS_MAX + 1]> = OnceLock::new();
    let hashes = ZERO_HASHES.get_or_init(|| {
        let mut hashes = [[0; 32]; LEVELS_MAX + 1];
        for level in 1..hashes.len() {
            hashes[level] = node(&hashes[level - 1], &hashes[level - 1]);
        }
        hashes
    });
    &hashes[level]
}

/// The node above two others.
pub fn node(left: &Sha256Digest, right: &Sha256Digest) -> Sha256Digest {
    let mut pair = [*left, *right];
    reduce_pairs(plan::current(Algo::Sha256), &mut pair);
    pair[0]
}

/// The parents of the nodes of one level, into `out`. A last child without a sibling is paired with
/// the zero hash of `level`, the children's level.
///
/// # Panics
/// When `out` is not half as long as `children`, rounded up.
pub fn parents(children: &[Sha256Digest], level: usize, out: &mut [Sha256Digest]) {
    assert_eq!(children.len().div_ceil(2), out.len(), "one parent per two children");
    const BATCH: usize = LANES_MAX;
    let mut batch = [[0; 32]; 2 * BATCH];
    for (children, out) in children.chunks(2 * BATCH).zip(out.chunks_mut(BATCH)) {
        batch[..children.len()].copy_from_slice(children);
        if children.len() % 2 == 1 {
            batch[children.len()] = *zero_hash(level);
        }
        reduce_pairs(plan::current(Algo::Sha256), &mut batch[..2 * out.len()]);
        out.copy_from_slice(&batch[..out.len()]);
    }
}

/// The root of the smallest full tree over `nodes` of `level`: they are overwritten. A single node is
/// its own root.
///
/// # Panics
/// When there are no nodes.
pub fn root(nodes: &mut [Sha256Digest], level: usize) -> Sha256Digest {
    assert!(!nodes.is_empty(), "an empty file has no tree");
    let height = nodes.len().next_power_of_two().trailing_zeros() as usize;
    root_at(nodes, level, height)
}

/// The node `height` levels above `nodes`, which start its subtree and are overwritten; what is
/// missing to their right counts as absent leaves. This is how the last piece of a file is judged
/// against the piece layer.
///
/// # Panics
/// When there are no nodes, or more than the subtree has places.
pub fn root_at(nodes: &mut [Sha256Digest], level: usize, height: usize) -> Sha256Digest {
    assert!(!nodes.is_empty() && (nodes.len() - 1) >> height == 0, "nodes of one subtree");
    let mut count = nodes.len();
    for step in 0..height {
        count = reduce(&mut nodes[..count], level + step);
    }
    nodes[0]
}

/// Whether the node at `index` of its level leads by `uncles`, lowest first, to `root`.
pub fn proof_holds(
    node_hash: &Sha256Digest,
    index: u64,
    uncles: &[Sha256Digest],
    root: &Sha256Digest,
) -> bool {
    let mut hash = *node_hash;
    let mut index = index;
    for uncle in uncles {
        hash = if index.is_multiple_of(2) { node(&hash, uncle) } else { node(uncle, &hash) };
        index /= 2;
    }
    index == 0 && hash == *root
}

/// Replaces the nodes of one level by their parents, in place; gives the count of parents.
fn reduce(nodes: &mut [Sha256Digest], level: usize) -> usize {
    let pairs = nodes.len() / 2;
    let plan = plan::current(Algo::Sha256);
    reduce_pairs(plan, &mut nodes[..2 * pairs]);
    if nodes.len() % 2 == 1 {
        nodes[pairs] = node(&nodes[nodes.len() - 1], zero_hash(level));
    }
    nodes.len().div_ceil(2)
}

/// Replaces pairs of nodes by their parents, at the front of the slice.
fn reduce_pairs(plan: &Plan, nodes: &mut [Sha256Digest]) {
    let pairs = nodes.len() / 2;
    let mut from = 0;
    while from < pairs {
        let group = plan.group_of_one_block((pairs - from).min(LANES_MAX));
        let count = group.take;
        let mut states = [plan.algo.start(); LANES_MAX];
        let states = &mut states[..count];
        let mut data: [&[u8]; LANES_MAX] = [&NODE_PADDING; LANES_MAX];
        let (blocks, _) = nodes.as_flattened().as_chunks::<BLOCK_LEN_BYTES>();
        for (data, block) in data.iter_mut().zip(&blocks[from..from + count]) {
            *data = block;
        }
        group.kernel.update(states, &data[..count], 1);
        group.kernel.update(states, &[&NODE_PADDING[..]; LANES_MAX][..count], 1);
        // Parents never overtake the children that are still to be read.
        for (node, state) in nodes[from..from + count].iter_mut().zip(states.iter()) {
            write_digest(state, node);
        }
        from += count;
    }
}

/// Builds a layer from the leaves of a file as they come: every full subtree of `height` levels
/// gives one node. Holds the leaves of one batch of subtrees and no more.
pub struct LayerBuilder {
    height: usize,
    leaves: Vec<Sha256Digest>,
    capacity: usize,
}

impl LayerBuilder {
    /// A builder of the layer `height` levels above the leaves: for pieces of 16 KiB times two to
    /// the power of `height`, the piece layer.
    ///
    /// # Panics
    /// When `height` is 32 or more.
    pub fn new(height: usize) -> LayerBuilder {
        assert!(height < 32, "a piece is at most 32 TiB");
        // Several small subtrees at once, so that their nodes fill the lanes.
        let capacity = (1usize << height).max(8 * LANES_MAX);
        LayerBuilder { height, leaves: Vec::with_capacity(capacity), capacity }
    }

    /// Takes the next leaves; `emit` gets the nodes of the layer that are complete.
    pub fn push(&mut self, mut leaves: &[Sha256Digest], mut emit: impl FnMut(Sha256Digest)) {
        while !leaves.is_empty() {
            let take = leaves.len().min(self.capacity - self.leaves.len());
            let (now, later) = leaves.split_at(take);
            self.leaves.extend_from_slice(now);
            leaves = later;
            if self.leaves.len() == self.capacity {
                self.flush(&mut emit);
            }
        }
    }

    /// Ends the file: the last subtree is filled up with absent leaves.
    pub fn finish(mut self, mut emit: impl FnMut(Sha256Digest)) {
        self.flush(&mut emit);
    }

    fn flush(&mut self, emit: &mut impl FnMut(Sha256Digest)) {
        let mut count = self.leaves.len();
        for level in 0..self.height {
            if count > 0 {
                count = reduce(&mut self.leaves[..count], level);
            }
        }
        self.leaves[..count].iter().for_each(|node| emit(*node));
        self.leaves.clear();
    }
}
