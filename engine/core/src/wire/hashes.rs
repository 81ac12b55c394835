//! Fetching hashes of files' trees (BEP 52): whole layers, to complete a torrent that was found by
//! its infohash, and the leaves of single pieces, so that each block can be judged as it comes.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::message::HashRequest;
use crate::merkle::{ASKED_MAX, Hash, HashRange, MerkleError, TreeShape};

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HashesError {
    /// The peer was not asked for these, or they are here already.
    #[error("hashes that this peer was not asked for")]
    NotAsked,
    /// The hashes are false.
    #[error("false hashes")]
    False(#[from] MerkleError),
}

/// Hashes that lead to a known one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Root of the file's tree.
    pub pieces_root: Hash,
    /// Layer of the hashes; 0 are the leaves.
    pub base_layer: u32,
    /// Position of the first hash in its layer.
    pub first: u32,
    /// The hashes, without padding and proof.
    pub hashes: Vec<Hash>,
    /// The whole layer, if these completed one that was asked for by [`HashFetch::want_layer`].
    pub layer: Option<Vec<Hash>>,
}

#[derive(Debug)]
struct Chunk<P> {
    shape: TreeShape,
    range: HashRange,
    asked: Option<P>,
    /// Peers that have refused it or sent it false.
    refused: Vec<P>,
}

#[derive(Debug)]
struct Layer {
    chunks: BTreeMap<u32, Vec<Hash>>,
    missing: u32,
}

/// Which hashes are still to be fetched, and who was asked. `P` names a peer.
#[derive(Debug)]
pub struct HashFetch<P> {
    chunks: BTreeMap<HashRequest, Chunk<P>>,
    /// Those that nobody is asked for.
    idle: BTreeSet<HashRequest>,
    layers: BTreeMap<(Hash, u32), Layer>,
}

impl<P> Default for HashFetch<P> {
    fn default() -> Self {
        Self { chunks: BTreeMap::new(), idle: BTreeSet::new(), layers: BTreeMap::new() }
    }
}

impl<P: Copy + Ord> HashFetch<P> {
    /// Nothing is wanted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wants a whole layer of the file whose tree has this root and shape; its parts are proven up to
    /// the root. Nothing happens if the layer is the root itself, or is wanted already.
    pub fn want_layer(&mut self, pieces_root: Hash, shape: TreeShape, base_layer: u32) {
        let key = (pieces_root, base_layer);
        if base_layer >= shape.layer_count() || self.layers.contains_key(&key) {
            return;
        }
        let count = shape.node_count(base_layer);
        let mut missing = 0;
        for first in (0..count).step_by(ASKED_MAX as usize) {
            // A power of two, as BEP 52 wants, and at least two; the padded layer has room for it.
            let length = (count - first).min(ASKED_MAX.into()).next_power_of_two().max(2) as u32;
            // A layer has at most 2^32 nodes, so the index of one fits.
            let range = HashRange::to_root(shape, base_layer, first as u32, length);
            self.add(pieces_root, shape, range.expect("a range of this tree"));
            missing += 1;
        }
        self.layers.insert(key, Layer { chunks: BTreeMap::new(), missing });
    }

    /// Wants the leaves under one node of a file's tree, proven up to that node, or up to the root where
    /// that is lower. `unit` counts the nodes of `unit_layer` from 0: a piece, if that is the piece
    /// layer; several small pieces together, if it is higher. Nothing happens if they are wanted already.
    pub fn want_leaves(&mut self, pieces_root: Hash, shape: TreeShape, unit_layer: u32, unit: u32) {
        for range in HashRange::leaves_of_piece(shape, unit_layer, unit) {
            self.add(pieces_root, shape, range);
        }
    }

    /// The leaves under a node are of no use any more.
    pub fn forget_leaves(
        &mut self,
        pieces_root: Hash,
        shape: TreeShape,
        unit_layer: u32,
        unit: u32,
    ) {
        for range in HashRange::leaves_of_piece(shape, unit_layer, unit) {
            let request = request_of(pieces_root, range);
            self.chunks.remove(&request);
            self.idle.remove(&request);
        }
    }

    /// Whether leaves under a node are still to come, and from whom somebody might.
    pub fn wants_leaves(
        &self,
        pieces_root: Hash,
        shape: TreeShape,
        unit_layer: u32,
        unit: u32,
    ) -> bool {
        HashRange::leaves_of_piece(shape, unit_layer, unit)
            .any(|range| self.chunks.contains_key(&request_of(pieces_root, range)))
    }

    fn add(&mut self, pieces_root: Hash, shape: TreeShape, range: HashRange) {
        let request = request_of(pieces_root, range);
        self.chunks.entry(request).or_insert_with(|| {
            self.idle.insert(request);
            Chunk { shape, range, asked: None, refused: Vec::new() }
        });
    }

    /// Whether all that was wanted is here.
    pub fn is_complete(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether a peer may still have something of what is wanted.
    pub fn wants_from(&self, peer: P) -> bool {
        self.chunks.values().any(|chunk| !chunk.refused.contains(&peer))
    }

    /// What to ask a peer for; call until `None` or until its channel takes no more.
    pub fn next_request(&mut self, peer: P) -> Option<HashRequest> {
        self.next_request_if(peer, |_| true)
    }

    /// What to ask a peer for among that which `may` lets through.
    pub fn next_request_if(
        &mut self,
        peer: P,
        may: impl Fn(&HashRequest) -> bool,
    ) -> Option<HashRequest> {
        let willing =
            |request: &&HashRequest| !self.chunks[*request].refused.contains(&peer) && may(request);
        let request = *self.idle.iter().find(willing)?;
        self.idle.remove(&request);
        self.chunks.get_mut(&request).expect("idle chunks are chunks").asked = Some(peer);
        Some(request)
    }

    /// Hashes came that the peer was asked for, if only by its channel's account: who was passed over for its
    /// silence and answers after all is as good as any, as hashes prove themselves. `known(root, layer, index)`
    /// gives nodes of the piece layer that are known; the root itself need not be looked up.
    ///
    /// # Errors
    /// [`HashesError`] when the peer is at fault; another one will be asked.
    pub fn handle_hashes(
        &mut self,
        peer: P,
        request: &HashRequest,
        hashes: &[Hash],
        known: impl FnOnce(&Hash, u32, u64) -> Option<Hash>,
    ) -> Result<Verified, HashesError> {
        let chunk = self.chunks.get(request).ok_or(HashesError::NotAsked)?;
        let (shape, range) = (chunk.shape, chunk.range);
        let (layer, index) = range.anchor();
        let anchor = if layer == shape.layer_count() {
            Some(request.pieces_root)
        } else {
            known(&request.pieces_root, layer, index)
        };
        let Some(anchor) = anchor else {
            // We have lost what it leads to: no fault of the peer.
            self.release_from(peer, request, None);
            return Err(HashesError::NotAsked);
        };
        if let Err(error) = range.check(shape, hashes, &anchor) {
            self.release_from(peer, request, Some(peer));
            return Err(error.into());
        }
        self.chunks.remove(request);
        self.idle.remove(request);
        let known_count = shape.node_count(request.base_layer) - u64::from(request.index);
        let count = known_count.min(request.length.into()) as usize;
        let hashes = hashes[..count].to_vec();
        let key = (request.pieces_root, request.base_layer);
        let mut layer = None;
        let leads_to_root = range.anchor().0 == shape.layer_count();
        if let Some(wanted) = self.layers.get_mut(&key).filter(|_| leads_to_root)
            && wanted.chunks.insert(request.index, hashes.clone()).is_none()
        {
            wanted.missing -= 1;
            if wanted.missing == 0 {
                let parts = self.layers.remove(&key).expect("looked up above").chunks;
                layer = Some(parts.into_values().flatten().collect());
            }
        }
        let HashRequest { pieces_root, base_layer, index: first, .. } = *request;
        Ok(Verified { pieces_root, base_layer, first, hashes, layer })
    }

    /// A peer will not send these hashes.
    pub fn handle_rejected(&mut self, peer: P, request: &HashRequest) {
        self.release_from(peer, request, Some(peer));
    }

    /// A request could not be sent: it is idle again.
    pub fn handle_unsent(&mut self, request: &HashRequest) {
        self.release(*request, None);
    }

    /// Nothing has come for too long: whoever was asked is passed over. Those passed over before may be
    /// asked again, or a torrent whose peers all were silent once would never be known.
    pub fn handle_silence(&mut self) {
        for (&request, chunk) in &mut self.chunks {
            chunk.refused.clear();
            if let Some(silent) = chunk.asked.take() {
                chunk.refused.push(silent);
                self.idle.insert(request);
            }
        }
    }

    /// A peer is gone, or takes too long: others are asked.
    pub fn remove_peer(&mut self, peer: P) {
        for (&request, chunk) in &mut self.chunks {
            chunk.refused.retain(|&other| other != peer);
            if chunk.asked == Some(peer) {
                chunk.asked = None;
                self.idle.insert(request);
            }
        }
    }

    /// A peer is done with a request, unless meanwhile another one has been asked.
    fn release_from(&mut self, peer: P, request: &HashRequest, refused_by: Option<P>) {
        if self.chunks.get(request).is_some_and(|chunk| chunk.asked == Some(peer)) {
            self.release(*request, refused_by);
        }
    }

    fn release(&mut self, request: HashRequest, refused_by: Option<P>) {
        if let Some(chunk) = self.chunks.get_mut(&request) {
            chunk.asked = None;
            chunk.refused.extend(refused_by);
            self.idle.insert(request);
        }
    }
}

fn request_of(pieces_root: Hash, range: HashRange) -> HashRequest {
    HashRequest {
        pieces_root,
        base_layer: range.base_layer(),
        index: range.index(),
        length: range.length(),
        proof_layers: range.proof_layers(),
    }
}

/// Checks a hash request of a peer against the tree of the file that it names; what passes is
/// answered by [`UpperTree::answer`](crate::merkle::UpperTree::answer), at most 8192 hashes.
///
/// # Errors
/// [`MerkleError`]: reject it.
pub fn check_request(request: &HashRequest, shape: TreeShape) -> Result<HashRange, MerkleError> {
    let HashRequest { base_layer, index, length, proof_layers, .. } = *request;
    HashRange::new(shape, base_layer, index, length, proof_layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::{UpperTree, piece_layer_from_leaves, root_from_leaves};
    use crate::swarm::PeerKey;

    const A: PeerKey = PeerKey(1);
    const B: PeerKey = PeerKey(2);
    /// Pieces of 64 KiB: four leaves each.
    const PIECE_LAYER: u32 = 2;

    struct File {
        leaves: Vec<Hash>,
        shape: TreeShape,
        tree: UpperTree,
        root: Hash,
    }

    fn file(leaf_count: u64) -> File {
        let leaf = |i: u64| std::array::from_fn(|byte| (i >> (byte % 8)) as u8 ^ byte as u8);
        let leaves: Vec<Hash> = (0..leaf_count).map(leaf).collect();
        let shape = TreeShape::of_file(leaf_count * 16_384).unwrap();
        let root = root_from_leaves(&leaves);
        let base = PIECE_LAYER.min(shape.layer_count());
        let layer = piece_layer_from_leaves(&leaves, base);
        let tree = UpperTree::new(shape, base, &layer, &root).unwrap();
        File { leaves, shape, tree, root }
    }

    fn answer(file: &File, request: &HashRequest) -> Vec<Hash> {
        let range = check_request(request, file.shape).unwrap();
        let leaves = |first: u64, count: usize| {
            Some(file.leaves[first as usize..first as usize + count].to_vec())
        };
        file.tree.answer(range, leaves).unwrap()
    }

    #[test]
    fn a_piece_layer_is_fetched_in_parts_from_two_peers() {
        for leaf_count in [5, 8, 2049, 5000] {
            let file = file(leaf_count);
            let mut fetch = HashFetch::new();
            fetch.want_layer(file.root, file.shape, PIECE_LAYER);
            let mut layer = None;
            for peer in [A, B].into_iter().cycle() {
                let Some(request) = fetch.next_request(peer) else {
                    break;
                };
                assert!(request.length <= ASKED_MAX && request.length.is_power_of_two());
                let hashes = answer(&file, &request);
                let verified = fetch.handle_hashes(peer, &request, &hashes, none).unwrap();
                layer = verified.layer;
            }
            assert!(fetch.is_complete());
            assert_eq!(layer.unwrap(), piece_layer_from_leaves(&file.leaves, PIECE_LAYER));
        }
    }

    #[test]
    fn leaves_of_a_piece_lead_to_its_hash_in_the_piece_layer() {
        for leaf_count in [2, 3, 4, 5, 30, 5000] {
            let file = file(leaf_count);
            let mut fetch = HashFetch::new();
            let pieces = leaf_count.div_ceil(4) as u32;
            (0..pieces).for_each(|piece| {
                fetch.want_leaves(file.root, file.shape, PIECE_LAYER, piece);
            });
            let mut leaves = vec![[0; 32]; leaf_count as usize];
            while let Some(request) = fetch.next_request(A) {
                let hashes = answer(&file, &request);
                let known =
                    |_: &Hash, layer: u32, index: u64| file.tree.node(layer, index).copied();
                let verified = fetch.handle_hashes(A, &request, &hashes, known).unwrap();
                let first = verified.first as usize;
                leaves[first..first + verified.hashes.len()].copy_from_slice(&verified.hashes);
            }
            assert!(fetch.is_complete());
            assert!(leaves == file.leaves, "{leaf_count} leaves");
        }
    }

    /// A file whose piece layer is one request, which A has been asked.
    fn asked_of_a() -> (File, HashFetch<PeerKey>, HashRequest) {
        let file = file(40);
        let mut fetch = HashFetch::new();
        fetch.want_layer(file.root, file.shape, PIECE_LAYER);
        let request = fetch.next_request(A).unwrap();
        (file, fetch, request)
    }

    /// No node of a piece layer is known.
    fn none(_: &Hash, _: u32, _: u64) -> Option<Hash> {
        None
    }

    #[test]
    fn false_or_refused_hashes_are_asked_of_another_peer() {
        let (file, mut fetch, request) = asked_of_a();
        let mut hashes = answer(&file, &request);
        hashes[1][0] ^= 1;
        assert!(matches!(
            fetch.handle_hashes(A, &request, &hashes, none),
            Err(HashesError::False(_))
        ));
        assert_eq!(fetch.next_request(A), None);
        assert_eq!(fetch.next_request(B), Some(request));
        fetch.handle_rejected(B, &request);
        assert!(!fetch.wants_from(B));
        assert_eq!(fetch.next_request(B), None);
        let third = PeerKey(3);
        assert_eq!(fetch.next_request(third), Some(request));
        fetch.remove_peer(third);
        assert_eq!(fetch.next_request(PeerKey(4)), Some(request));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(PeerKey(4)), None, "passed over");
        assert_eq!(fetch.next_request(B), Some(request), "its turn again");
        fetch.handle_unsent(&request);
        assert_eq!(fetch.next_request_if(B, |_| false), None);
        assert_eq!(fetch.next_request(B), Some(request));
    }

    /// A busy peer answered 64 requests six seconds after it had been asked, when it had just been passed over:
    /// all of it was thrown away and asked for anew, and so again, for a minute and a half.
    #[test]
    fn who_was_passed_over_and_answers_after_all_is_believed() {
        let (file, mut fetch, request) = asked_of_a();
        let hashes = answer(&file, &request);
        fetch.handle_silence();
        assert_eq!(fetch.next_request(A), None, "passed over");
        assert_eq!(fetch.next_request(B), Some(request));
        let verified = fetch.handle_hashes(A, &request, &hashes, none).unwrap();
        assert_eq!(verified.layer, Some(piece_layer_from_leaves(&file.leaves, PIECE_LAYER)));
        assert!(fetch.is_complete());
        assert_eq!(fetch.handle_hashes(B, &request, &hashes, none), Err(HashesError::NotAsked));
        fetch.handle_rejected(B, &request);
        assert_eq!(fetch.next_request(PeerKey(3)), None, "it is here");
    }

    /// Nor does a false answer that comes late take the request from whoever was asked since.
    #[test]
    fn a_false_answer_that_comes_late_leaves_the_request_where_it_is() {
        let (file, mut fetch, request) = asked_of_a();
        let hashes = answer(&file, &request);
        fetch.handle_silence();
        assert_eq!(fetch.next_request(B), Some(request));
        let mut other = hashes.clone();
        other[1][0] ^= 1;
        let verdict = fetch.handle_hashes(A, &request, &other, none);
        assert!(matches!(verdict, Err(HashesError::False(_))));
        assert_eq!(fetch.next_request(PeerKey(3)), None, "B is asked");
        assert!(fetch.handle_hashes(B, &request, &hashes, none).is_ok());
    }

    #[test]
    fn requests_that_fit_no_tree_are_refused() {
        let file = file(40);
        let good = HashRequest {
            pieces_root: file.root,
            base_layer: 0,
            index: 0,
            length: 4,
            proof_layers: 5,
        };
        assert!(check_request(&good, file.shape).is_ok());
        for bad in [
            HashRequest { base_layer: 6, ..good },
            HashRequest { length: 0, ..good },
            HashRequest { length: 16_384, ..good },
            HashRequest { index: 2, ..good },
            HashRequest { index: 64, ..good },
            HashRequest { index: u32::MAX, length: 1, ..good },
            HashRequest { proof_layers: 6, ..good },
        ] {
            assert!(check_request(&bad, file.shape).is_err(), "{bad:?}");
        }
    }
}
