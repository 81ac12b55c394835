//! The SHA-256 trees of BEP 52: roots, piece layers, and proofs for the hash messages.
//!
//! A file's tree has one leaf per block of [`BLOCK_LEN`] bytes: the
//! digest of the block, the last one shorter. Layer 0 are the leaves, a node of layer `n + 1` hashes
//! two of layer `n`, and where the file ends layer 0 goes on with zeros up to a power of two. The
//! inner nodes over zeros alone are the same in every tree, see [`pad_hash`].

use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::geometry::BLOCK_LEN;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// Layers that a tree can have: 2^46 bytes are 2^32 leaves, so the root is in layer 32 at most.
pub const LAYER_MAX: u32 = 32;
/// Most hashes that we answer in one message: a piece of 128 MiB, as other clients serve.
pub const SERVED_MAX: u32 = 8192;
/// Most hashes that we ask for in one message (BEP 52: "should not be greater").
pub const ASKED_MAX: u32 = 512;

/// Why hashes do not fit a tree.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MerkleError {
    /// A request for a layer that the tree does not have, or for its root.
    #[error("layer {base_layer} is not below the root of {layer_count} layers")]
    BaseLayer {
        /// The layer.
        base_layer: u32,
        /// Layers of the tree, the root not counted.
        layer_count: u32,
    },
    /// A length that is 0, too long, or neither a power of two nor the rest of the layer.
    #[error("{length} hashes from {index} is no range of a tree")]
    Length {
        /// Where the range begins.
        index: u32,
        /// How many hashes.
        length: u32,
    },
    /// A range that begins where none of its length can.
    #[error("index {index} is not a multiple of {length}")]
    Index {
        /// Where the range begins.
        index: u32,
        /// How many hashes.
        length: u32,
    },
    /// A range that leaves its layer.
    #[error("{length} hashes from {index} leave a layer of {layer_len}")]
    PastEnd {
        /// Where the range begins.
        index: u32,
        /// How many hashes.
        length: u32,
        /// Nodes of the layer, padding included.
        layer_len: u64,
    },
    /// More proof layers than lie between the range and the root.
    #[error("{proof_layers} proof layers above layer {base_layer} of {layer_count}")]
    ProofLayers {
        /// Proof layers asked for.
        proof_layers: u32,
        /// The layer of the range.
        base_layer: u32,
        /// Layers of the tree, the root not counted.
        layer_count: u32,
    },
    /// A message with another number of hashes than its request asks for.
    #[error("{found} hashes instead of {expected}")]
    HashCount {
        /// What the request asks for.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A node past the end of the file is not what padding gives.
    #[error("node {index} of layer {layer} lies past the file and is not padding")]
    NotPadding {
        /// The layer.
        layer: u32,
        /// The node in it.
        index: u64,
    },
    /// The hashes do not lead to the hash that is known.
    #[error("hashes do not lead to the known one")]
    Mismatch,
}

/// The hash of two children.
pub fn parent(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// The digest of one block: a leaf. The engine hashes many at once elsewhere; this is for the few.
pub fn leaf(block: &[u8]) -> Hash {
    assert!(block.len() <= BLOCK_LEN as usize, "a block of {} bytes", block.len());
    Sha256::digest(block).into()
}

/// The node of a layer under which lies nothing but padding.
///
/// # Panics
/// If `layer` is above [`LAYER_MAX`].
pub fn pad_hash(layer: u32) -> &'static Hash {
    static PADS: LazyLock<[Hash; LAYER_MAX as usize + 1]> = LazyLock::new(|| {
        let mut pads = [[0; 32]; LAYER_MAX as usize + 1];
        for layer in 1..pads.len() {
            pads[layer] = parent(&pads[layer - 1], &pads[layer - 1]);
        }
        pads
    });
    &PADS[layer as usize]
}

/// The node `height` layers above `nodes`, which begin a run of `2^height` nodes of layer
/// `base_layer`; those not given are padding.
///
/// # Panics
/// If more nodes are given than lie under the result, or none.
pub fn subtree_root(nodes: &[Hash], base_layer: u32, height: u32) -> Hash {
    assert!(!nodes.is_empty() && nodes.len() as u64 <= 1 << height, "{} nodes", nodes.len());
    let mut layer = nodes.to_vec();
    for above in 0..height {
        fold(&mut layer, base_layer + above);
    }
    layer[0]
}

/// Turns a layer into the one above, in place.
fn fold(nodes: &mut Vec<Hash>, layer: u32) {
    let above = nodes.len().div_ceil(2);
    for at in 0..above {
        nodes[at] = parent(&nodes[2 * at], nodes.get(2 * at + 1).unwrap_or(pad_hash(layer)));
    }
    nodes.truncate(above);
}

/// The root over a layer without its padding: `pieces root` from leaves (`base_layer` 0) or from a
/// piece layer.
///
/// # Panics
/// If there are no nodes: an empty file has no root.
pub fn root_from_layer(nodes: &[Hash], base_layer: u32) -> Hash {
    subtree_root(nodes, base_layer, log2_ceil(nodes.len() as u64))
}

/// The root over the leaves of a file.
///
/// # Panics
/// As [`root_from_layer`].
pub fn root_from_leaves(leaves: &[Hash]) -> Hash {
    root_from_layer(leaves, 0)
}

/// The value of `piece layers` for a file that is longer than a piece, from its leaves.
/// `piece_layer` is the layer where a node covers a piece, see [`piece_layer_number`].
pub fn piece_layer_from_leaves(leaves: &[Hash], piece_layer: u32) -> Vec<Hash> {
    leaves.chunks(1 << piece_layer).map(|piece| subtree_root(piece, 0, piece_layer)).collect()
}

/// The layer where a node covers a piece of this length.
///
/// # Panics
/// If the length is none that BEP 52 allows.
pub fn piece_layer_number(piece_len_bytes: u32) -> u32 {
    assert!(piece_len_bytes.is_power_of_two() && piece_len_bytes >= BLOCK_LEN);
    piece_len_bytes.ilog2() - BLOCK_LEN.ilog2()
}

/// The root of one piece from its leaves: what the piece layer, or for a file of at most one piece
/// the `pieces root`, must say. `file_leaf_count` tells the two apart.
///
/// # Panics
/// If there are more leaves than a piece has, or none.
pub fn piece_root(leaves: &[Hash], piece_layer: u32, file_leaf_count: u64) -> Hash {
    let height = piece_layer.min(log2_ceil(file_leaf_count));
    subtree_root(leaves, 0, height)
}

/// Smallest `n` with `2^n >= count`; 0 for 0 and 1.
fn log2_ceil(count: u64) -> u32 {
    count.next_power_of_two().ilog2()
}

/// The outline of a file's tree: all that is known of it from the file's length alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeShape {
    leaf_count: u64,
}

impl TreeShape {
    /// The tree of a file of this length. `None` for an empty file, which has no tree.
    ///
    /// # Panics
    /// If the file is longer than a torrent may be.
    pub fn of_file(file_len_bytes: u64) -> Option<Self> {
        assert!(file_len_bytes <= crate::geometry::TOTAL_LEN_MAX);
        let leaf_count = file_len_bytes.div_ceil(u64::from(BLOCK_LEN));
        (leaf_count > 0).then_some(Self { leaf_count })
    }

    /// Blocks of the file.
    pub fn leaf_count(self) -> u64 {
        self.leaf_count
    }

    /// The number of the root's layer, and how many layers are below it.
    pub fn layer_count(self) -> u32 {
        log2_ceil(self.leaf_count)
    }

    /// Nodes of a layer that cover at least one byte of the file.
    pub fn node_count(self, layer: u32) -> u64 {
        self.leaf_count.div_ceil(1 << layer)
    }

    /// Nodes of a layer with padding.
    pub fn padded_count(self, layer: u32) -> u64 {
        1 << (self.layer_count().saturating_sub(layer))
    }
}

/// The numbers of a `hash request` message, checked against the file's tree. Its answer has `length`
/// hashes of `base_layer` from `index`, then the uncle hashes up to proof layer `proof_layers`; the
/// proof layers that the range itself covers have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashRange {
    base_layer: u32,
    index: u32,
    length: u32,
    proof_layers: u32,
}

impl HashRange {
    /// Checks a request of a peer, or one that we are about to send.
    ///
    /// The length is a power of two, or what is left of the layer where the file ends. One hash
    /// alone is let through, although BEP 52 wants two: libtorrent asks so for a last piece behind
    /// a multiple of 512, and expects the sibling of that hash as the first uncle. Never *ask* it
    /// for one: its own answer lacks that sibling and proves nothing. Padding may be asked for.
    ///
    /// # Errors
    /// [`MerkleError`] when the numbers fit no range of the tree.
    pub fn new(
        shape: TreeShape,
        base_layer: u32,
        index: u32,
        length: u32,
        proof_layers: u32,
    ) -> Result<Self, MerkleError> {
        let layer_count = shape.layer_count();
        if base_layer >= layer_count {
            return Err(MerkleError::BaseLayer { base_layer, layer_count });
        }
        let end = u64::from(index) + u64::from(length);
        let is_rest = end == shape.node_count(base_layer);
        if length == 0 || length > SERVED_MAX || !(length.is_power_of_two() || is_rest) {
            return Err(MerkleError::Length { index, length });
        }
        if !index.is_multiple_of(length.next_power_of_two()) {
            return Err(MerkleError::Index { index, length });
        }
        let layer_len = shape.padded_count(base_layer);
        if end > layer_len {
            return Err(MerkleError::PastEnd { index, length, layer_len });
        }
        if proof_layers >= layer_count - base_layer {
            return Err(MerkleError::ProofLayers { proof_layers, base_layer, layer_count });
        }
        Ok(Self { base_layer, index, length, proof_layers })
    }

    /// The request whose answer can be checked against the file's root: `length` hashes from
    /// `index`, and all uncles.
    ///
    /// # Errors
    /// As [`HashRange::new`].
    pub fn to_root(
        shape: TreeShape,
        base_layer: u32,
        index: u32,
        length: u32,
    ) -> Result<Self, MerkleError> {
        let proof_layers = shape.layer_count().saturating_sub(base_layer + 1);
        Self::new(shape, base_layer, index, length, proof_layers)
    }

    /// The requests that bring a whole layer, each answer proven against the root: the piece layer
    /// of a file of which only the root is known, or all its leaves. None if the root is as low as
    /// the layer, for then the root is all there is.
    pub fn cover(shape: TreeShape, base_layer: u32) -> impl Iterator<Item = Self> + use<> {
        Self::ranges(shape, base_layer, 0, shape.padded_count(base_layer), shape.layer_count())
    }

    /// The requests that bring the leaves of a piece, each answer proven against the piece's node of
    /// the piece layer (or the root, if the file has but one piece): what to ask for when a piece is
    /// bad and its blocks are to be told apart.
    pub fn leaves_of_piece(
        shape: TreeShape,
        piece_layer: u32,
        piece_in_file: u32,
    ) -> impl Iterator<Item = Self> + use<> {
        let height = piece_layer.min(shape.layer_count());
        let first = u64::from(piece_in_file) << height;
        Self::ranges(shape, 0, first, first + (1 << height), height)
    }

    /// Ranges over `first..end` of a layer as far as the file goes, with all uncles below the node
    /// of `anchor_layer` over them. A range may take in padding, for one hash must not be asked for.
    fn ranges(
        shape: TreeShape,
        base_layer: u32,
        first: u64,
        end: u64,
        anchor_layer: u32,
    ) -> impl Iterator<Item = Self> + use<> {
        let known_end = end.min(shape.node_count(base_layer));
        let has_layer = base_layer < anchor_layer;
        let known_end = if has_layer { known_end } else { first };
        (first..known_end).step_by(ASKED_MAX as usize).map(move |index| {
            let rest = (known_end - index).next_power_of_two().max(2).min(end - index);
            let length = rest.min(u64::from(ASKED_MAX)) as u32;
            let proof_layers = anchor_layer - base_layer - 1;
            // The layer has 2^32 nodes at most, so the index of one fits.
            Self { base_layer, index: index as u32, length, proof_layers }
        })
    }

    /// The layer of the hashes asked for.
    pub fn base_layer(self) -> u32 {
        self.base_layer
    }

    /// The first hash asked for.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many hashes of the base layer.
    pub fn length(self) -> u32 {
        self.length
    }

    /// How many layers above the base layer the proof reaches.
    pub fn proof_layers(self) -> u32 {
        self.proof_layers
    }

    /// Layers that the range itself covers: its hashes give the node this far above them.
    fn height(self) -> u32 {
        log2_ceil(u64::from(self.length))
    }

    /// How many uncle hashes the answer has.
    pub fn uncle_count(self) -> u32 {
        (self.proof_layers + 1).saturating_sub(self.height())
    }

    /// How many hashes the answer has.
    pub fn hash_count(self) -> usize {
        (self.length + self.uncle_count()) as usize
    }

    /// How many hashes of the range cover bytes of the file: those at the beginning of an answer
    /// that are worth keeping.
    pub fn known_count(self, shape: TreeShape) -> usize {
        let known = shape.node_count(self.base_layer).saturating_sub(u64::from(self.index));
        known.min(u64::from(self.length)) as usize
    }

    /// Layer and index of the node that the answer leads to. Unless it is the root, it must be
    /// known from elsewhere.
    pub fn anchor(self) -> (u32, u64) {
        let rise = self.height() + self.uncle_count();
        (self.base_layer + rise, u64::from(self.index) >> rise)
    }

    /// Checks an answer against the hash of the node that it leads to, see [`HashRange::anchor`].
    ///
    /// # Errors
    /// [`MerkleError`] when the number of hashes is wrong, when there is anything but padding past
    /// the end of the file, or when the hashes lead elsewhere: all the peer's fault.
    pub fn check(
        self,
        shape: TreeShape,
        hashes: &[Hash],
        anchor: &Hash,
    ) -> Result<(), MerkleError> {
        let expected = self.hash_count();
        if hashes.len() != expected {
            return Err(MerkleError::HashCount { expected, found: hashes.len() });
        }
        let (base, uncles) = hashes.split_at(self.length as usize);
        let known = shape.node_count(self.base_layer);
        for (index, hash) in (u64::from(self.index)..).zip(base) {
            if index >= known && hash != pad_hash(self.base_layer) {
                return Err(MerkleError::NotPadding { layer: self.base_layer, index });
            }
        }
        let mut index = u64::from(self.index) >> self.height();
        let mut node = subtree_root(base, self.base_layer, self.height());
        for (layer, uncle) in (self.base_layer + self.height()..).zip(uncles) {
            if (index ^ 1) >= shape.node_count(layer) && uncle != pad_hash(layer) {
                return Err(MerkleError::NotPadding { layer, index: index ^ 1 });
            }
            node = if index & 1 == 0 { parent(&node, uncle) } else { parent(uncle, &node) };
            index >>= 1;
        }
        if node == *anchor { Ok(()) } else { Err(MerkleError::Mismatch) }
    }
}

/// A file's tree from one layer upwards, ready to answer hash requests in O(log) time. It holds
/// about twice the hashes of that layer, so build it over the piece layer and let the leaves of a
/// piece come from where they are stored.
#[derive(Clone, Debug)]
pub struct UpperTree {
    shape: TreeShape,
    base_layer: u32,
    /// The layers from `base_layer` to the root, without padding.
    layers: Vec<Box<[Hash]>>,
}

impl UpperTree {
    /// Builds the tree over a layer without its padding, and checks it against the root.
    ///
    /// # Errors
    /// [`MerkleError::HashCount`] when the layer has another number of nodes,
    /// [`MerkleError::Mismatch`] when it leads elsewhere than to `root`.
    pub fn new(
        shape: TreeShape,
        base_layer: u32,
        nodes: &[Hash],
        root: &Hash,
    ) -> Result<Self, MerkleError> {
        let base_layer = base_layer.min(shape.layer_count());
        let expected = shape.node_count(base_layer) as usize;
        if nodes.len() != expected {
            return Err(MerkleError::HashCount { expected, found: nodes.len() });
        }
        let mut layer = nodes.to_vec();
        let mut layers = vec![Box::from(nodes)];
        for number in base_layer..shape.layer_count() {
            fold(&mut layer, number);
            layers.push(Box::from(layer.as_slice()));
        }
        if layer[0] != *root {
            return Err(MerkleError::Mismatch);
        }
        Ok(Self { shape, base_layer, layers })
    }

    /// The outline of the tree.
    pub fn shape(&self) -> TreeShape {
        self.shape
    }

    /// The lowest layer that the tree holds.
    pub fn base_layer(&self) -> u32 {
        self.base_layer
    }

    /// A node, padding included. `None` below [`UpperTree::base_layer`] or past the layer's end.
    pub fn node(&self, layer: u32, index: u64) -> Option<&Hash> {
        let nodes = self.layers.get(layer.checked_sub(self.base_layer)? as usize)?;
        let is_inside = index < self.shape.padded_count(layer);
        let found = nodes.get(usize::try_from(index).ok()?);
        is_inside.then(|| found.unwrap_or_else(|| pad_hash(layer)))
    }

    /// The hashes that answer a request. For layers below [`UpperTree::base_layer`] the leaves of
    /// the file are asked for by `leaves(first, count)`, all inside the file and at most
    /// [`SERVED_MAX`]; `None` from it means that they are not known, and the answer is `None` too:
    /// reject the request.
    pub fn answer(
        &self,
        range: HashRange,
        mut leaves: impl FnMut(u64, usize) -> Option<Vec<Hash>>,
    ) -> Option<Vec<Hash>> {
        let mut hashes = Vec::with_capacity(range.hash_count()); // at most 8192 and 32
        // Subtrees of the base layer that the range and its low uncles lie in: one, unless the
        // range itself is wider.
        let low = if range.base_layer < self.base_layer {
            let height = self.base_layer - range.base_layer;
            let first = u64::from(range.index) >> height << height;
            let end =
                (u64::from(range.index) + u64::from(range.length)).next_multiple_of(1 << height);
            Some((first, self.low_layers(range.base_layer, first, end, &mut leaves)?))
        } else {
            None
        };
        let node = |layer: u32, index: u64| -> Option<Hash> {
            match &low {
                Some((first, layers)) if layer < self.base_layer => {
                    let above = layer - range.base_layer;
                    let at = index.checked_sub(first >> above)? as usize;
                    Some(*layers[above as usize].get(at).unwrap_or_else(|| pad_hash(layer)))
                }
                _ => self.node(layer, index).copied(),
            }
        };
        let first = u64::from(range.index);
        for index in first..first + u64::from(range.length) {
            hashes.push(node(range.base_layer, index)?);
        }
        let mut index = u64::from(range.index) >> range.height();
        for layer in (range.base_layer + range.height()..).take(range.uncle_count() as usize) {
            hashes.push(node(layer, index ^ 1)?);
            index >>= 1;
        }
        Some(hashes)
    }

    /// The layers from `base_layer` to the one below ours, over nodes `first..end` of it.
    fn low_layers(
        &self,
        base_layer: u32,
        first: u64,
        end: u64,
        leaves: &mut impl FnMut(u64, usize) -> Option<Vec<Hash>>,
    ) -> Option<Vec<Vec<Hash>>> {
        let first_leaf = first << base_layer;
        let end_leaf = (end << base_layer).min(self.shape.leaf_count);
        let count = usize::try_from(end_leaf.saturating_sub(first_leaf)).ok()?;
        if count > SERVED_MAX as usize {
            return None; // only a request for an inner layer gets here; nobody needs those
        }
        let mut layer = if count == 0 { Vec::new() } else { leaves(first_leaf, count)? };
        assert_eq!(layer.len(), count, "another number of leaves than asked for");
        let mut layers = Vec::new();
        for number in 0..self.base_layer {
            if number >= base_layer {
                layers.push(layer.clone());
            }
            if !layer.is_empty() {
                fold(&mut layer, number);
            }
        }
        Some(layers)
    }
}

#[cfg(test)]
mod tests;
