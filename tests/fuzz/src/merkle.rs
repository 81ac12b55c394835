//! Hash requests of strangers, their answers and proofs.

use ringseed_core::merkle::{
    self, Hash, HashRange, MerkleError, SERVED_MAX, TreeShape, UpperTree, pad_hash,
};

use crate::source::{Source, noise32};

/// Every layer of a small tree, with its padding, by the text of BEP 52.
fn layers_of(leaves: &[Hash]) -> Vec<Vec<Hash>> {
    let mut layer = leaves.to_vec();
    layer.resize(leaves.len().next_power_of_two(), [0; 32]);
    let mut layers = vec![layer];
    while layers[layers.len() - 1].len() > 1 {
        let (pairs, _) = layers[layers.len() - 1].as_chunks::<2>();
        layers.push(pairs.iter().map(|[left, right]| merkle::parent(left, right)).collect());
    }
    layers
}

/// Numbers from the wire make a range only where the tree has one, an answer always proves its range,
/// and nothing else does.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let leaf_count = 1 + source.below(48);
    let leaves: Vec<Hash> = (0..leaf_count as u64).map(|at| noise32(at + 1)).collect();
    let layers = layers_of(&leaves);
    let root = layers[layers.len() - 1][0];
    assert_eq!(merkle::root_from_leaves(&leaves), root);
    let shape = TreeShape::of_file(leaf_count as u64 * 16_384).expect("a file with bytes");
    assert_eq!(shape.layer_count() as usize, layers.len() - 1);
    let held = source.below(layers.len()) as u32;
    let mut nodes = layers[held as usize].clone();
    nodes.truncate(shape.node_count(held) as usize);
    let tree = UpperTree::new(shape, held, &nodes, &root).expect("a layer of this tree");

    while !source.is_empty() {
        let [base_layer, index, length, proof_layers] = std::array::from_fn(|_| source.edgy());
        let range = match HashRange::new(shape, base_layer, index, length, proof_layers) {
            Ok(range) => range,
            Err(error) => {
                check_refusal(shape, [base_layer, index, length, proof_layers], error);
                continue;
            }
        };
        assert!(length <= SERVED_MAX && base_layer < shape.layer_count());
        let first = index as usize;
        let base = &layers[base_layer as usize][first..first + length as usize];
        let given = |from: u64, count: usize| {
            assert!(count <= SERVED_MAX as usize);
            Some(leaves.get(from as usize..from as usize + count)?.to_vec())
        };
        let mut answer = tree.answer(range, given).expect("a small tree answers everything");
        assert_eq!(answer.len(), range.hash_count());
        assert_eq!(&answer[..base.len()], base, "other hashes than asked for");
        let (layer, at) = range.anchor();
        let anchor = layers[layer as usize][at as usize];
        assert_eq!(range.check(shape, &answer, &anchor), Ok(()), "{range:?}");

        // One flipped bit, one hash too few or too many, another anchor: nothing of it passes.
        let place = source.below(answer.len());
        let verdict = match source.below(4) {
            0 => {
                answer[place][source.below(32)] ^= 1 << source.below(8);
                range.check(shape, &answer, &anchor)
            }
            1 => {
                answer.pop();
                range.check(shape, &answer, &anchor)
            }
            2 => {
                answer.push(*pad_hash(source.below(33) as u32));
                range.check(shape, &answer, &anchor)
            }
            _ => range.check(shape, &answer, &noise32(source.u64() | 1 << 63)),
        };
        assert!(verdict.is_err(), "a false answer to {range:?} passes");
    }
}

/// A refused request breaks a rule of BEP 52, or is longer than we serve.
fn check_refusal(shape: TreeShape, numbers: [u32; 4], error: MerkleError) {
    let [base_layer, index, length, proof_layers] = numbers;
    if base_layer >= shape.layer_count() {
        return;
    }
    let end = u64::from(index) + u64::from(length);
    let is_rest = end == shape.node_count(base_layer);
    let fits = end <= shape.padded_count(base_layer);
    let is_plain = (length.is_power_of_two() && index % length == 0)
        || (is_rest && length > 0 && index % length.next_power_of_two() == 0);
    let reaches = proof_layers < shape.layer_count() - base_layer;
    let is_right = is_plain && fits && reaches && length <= SERVED_MAX;
    assert!(!is_right, "{numbers:?} is refused: {error}");
}
