//! Fetching hashes of a real tree from peers of whom some lie.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ringseed_core::merkle::{
    Hash, TreeShape, UpperTree, piece_layer_from_leaves, root_from_leaves,
};
use ringseed_core::swarm::PeerKey;
use ringseed_core::wire::hashes::{HashesError, Verified, check_request};
use ringseed_core::wire::{HashFetch, HashRequest};

use crate::source::{Source, noise32};

/// Pieces of 64 KiB: four leaves each.
const PIECE_LAYER: u32 = 2;
const PEERS: usize = 3;

struct File {
    leaves: Vec<Hash>,
    layer: Vec<Hash>,
    shape: TreeShape,
    tree: UpperTree,
    root: Hash,
}

/// Files of few leaves, of just more than one request, and of odd counts.
static FILES: LazyLock<Vec<File>> =
    LazyLock::new(|| [2, 3, 5, 8, 31, 513, 700, 2_100].map(File::new).into());

impl File {
    fn new(leaf_count: u64) -> Self {
        let leaves: Vec<Hash> = (0..leaf_count).map(|at| noise32(leaf_count << 32 | at)).collect();
        let shape = TreeShape::of_file(leaf_count * 16_384).expect("a file with bytes");
        let (root, layer) =
            (root_from_leaves(&leaves), piece_layer_from_leaves(&leaves, PIECE_LAYER));
        let upper = if shape.layer_count() < PIECE_LAYER { vec![root] } else { layer.clone() };
        let tree = UpperTree::new(shape, PIECE_LAYER, &upper, &root).expect("its own layer");
        Self { leaves, layer, shape, tree, root }
    }

    fn answer(&self, request: &HashRequest) -> Option<Vec<Hash>> {
        let range = check_request(request, self.shape).ok()?;
        let leaves = |first: u64, count: usize| {
            Some(self.leaves.get(first as usize..first as usize + count)?.to_vec())
        };
        self.tree.answer(range, leaves)
    }

    /// The true hashes of a layer, without padding.
    fn truth(&self, layer: u32) -> Vec<Hash> {
        (0..self.shape.node_count(layer))
            .map(|index| {
                let first = (index << layer) as usize;
                let end = self.leaves.len().min(first + (1 << layer));
                ringseed_core::merkle::subtree_root(&self.leaves[first..end], 0, layer)
            })
            .collect()
    }
}

/// A fetch never gives out a hash that is not in the tree, and an honest answer to its own question
/// is never refused, whoever gives it: a peer that was passed over may answer after all.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let file = source.pick(&FILES);
    let mut fetch = HashFetch::new();
    let mut asked: BTreeMap<HashRequest, usize> = BTreeMap::new();
    while !source.is_empty() {
        let peer = source.below(PEERS);
        let key = PeerKey(peer as u32);
        match source.below(8) {
            0 => fetch.want_layer(file.root, file.shape, source.below(4) as u32),
            1 => {
                let piece = source.below(file.layer.len()) as u32;
                fetch.want_leaves(file.root, file.shape, PIECE_LAYER, piece);
            }
            2 => {
                if let Some(request) = fetch.next_request(key) {
                    let twice = asked.insert(request, peer).is_some();
                    assert!(!twice, "two peers are asked for the same");
                }
            }
            step @ 3..=5 => {
                let known = asked.iter().nth(source.below(asked.len().max(1)));
                let Some((mut request, owner)) = known.map(|(request, peer)| (*request, *peer))
                else {
                    continue;
                };
                let Some(mut hashes) = file.answer(&request) else {
                    panic!("a question that a stock peer refuses: {request:?}")
                };
                let peer = if source.below(8) == 0 { peer } else { owner };
                let mut is_true = true;
                if step == 5 {
                    is_true = false;
                    let at = source.below(hashes.len());
                    match source.below(6) {
                        0 => hashes[at][source.below(32)] ^= 1 << source.below(8),
                        1 => drop(hashes.pop()),
                        2 => hashes.push(noise32(source.u64())),
                        3 => {
                            let other = source.below(hashes.len());
                            is_true = hashes[at] == hashes[other];
                            hashes.swap(at, other);
                        }
                        4 => request.index ^= 1 << source.below(6),
                        _ => request.proof_layers ^= 1,
                    }
                    // The wish may have changed into another that was asked for as well.
                    is_true &= asked.contains_key(&request);
                }
                let known = |root: &Hash, layer: u32, index: u64| {
                    assert_eq!((root, layer), (&file.root, PIECE_LAYER));
                    file.layer.get(index as usize).copied()
                };
                match fetch.handle_hashes(PeerKey(peer as u32), &request, &hashes, known) {
                    Ok(verified) => {
                        asked.remove(&request);
                        check(file, &verified);
                    }
                    Err(error) => {
                        assert!(!is_true, "true hashes are refused: {error}");
                        // Others who were asked for it still are.
                        let was_asked = asked.get(&request) == Some(&peer);
                        if was_asked && matches!(error, HashesError::False(_)) {
                            asked.remove(&request);
                        }
                    }
                }
            }
            6 => {
                if let Some((&request, _)) = asked.iter().find(|(_, owner)| **owner == peer) {
                    asked.remove(&request);
                    fetch.handle_rejected(key, &request);
                }
            }
            _ => {
                asked.retain(|_, owner| *owner != peer);
                fetch.remove_peer(key);
            }
        }
    }
    // An honest newcomer brings the rest.
    (0..PEERS as u32).for_each(|peer| fetch.remove_peer(PeerKey(peer)));
    let honest = PeerKey(PEERS as u32);
    while let Some(request) = fetch.next_request(honest) {
        let hashes = file.answer(&request).expect("a question that a stock peer answers");
        let known = |_: &Hash, _: u32, index: u64| file.layer.get(index as usize).copied();
        let verified = fetch.handle_hashes(honest, &request, &hashes, known);
        check(file, &verified.expect("true hashes"));
    }
    assert!(fetch.is_complete(), "an honest peer alone does not get through");
}

fn check(file: &File, verified: &Verified) {
    let truth = file.truth(verified.base_layer);
    let first = verified.first as usize;
    let here = truth.get(first..first + verified.hashes.len());
    assert_eq!(here, Some(&verified.hashes[..]), "hashes that the tree does not have");
    if let Some(layer) = &verified.layer {
        assert_eq!(*layer, truth, "a layer that the tree does not have");
    }
}
