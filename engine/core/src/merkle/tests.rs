use proptest::prelude::*;

use super::*;

fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|at| leaf(&at.to_be_bytes())).collect()
}

/// The reference: a whole tree with its padding, layer by layer.
fn whole_tree(leaves: &[Hash]) -> Vec<Vec<Hash>> {
    let mut layer = leaves.to_vec();
    layer.resize(leaves.len().next_power_of_two(), [0; 32]);
    let mut layers = vec![layer];
    while layers[layers.len() - 1].len() > 1 {
        let below = &layers[layers.len() - 1];
        layers.push(below.chunks(2).map(|pair| parent(&pair[0], &pair[1])).collect());
    }
    layers
}

#[test]
fn padding_and_layer_numbers() {
    assert_eq!(pad_hash(0), &[0; 32]);
    assert_eq!(pad_hash(2), &parent(&parent(&[0; 32], &[0; 32]), &parent(&[0; 32], &[0; 32])));
    pad_hash(LAYER_MAX);
    assert_eq!([16_384, 32_768, 128 << 20].map(piece_layer_number), [0, 1, 13]);
    assert_eq!(TreeShape::of_file(0), None);
    let shape = |len| TreeShape::of_file(len).unwrap();
    assert_eq!((shape(1).leaf_count(), shape(1).layer_count()), (1, 0));
    assert_eq!((shape(16_385).leaf_count(), shape(16_385).layer_count()), (2, 1));
    let five = shape(5 * 16_384);
    let counts: Vec<_> =
        (0..4).map(|layer| (five.node_count(layer), five.padded_count(layer))).collect();
    assert_eq!(counts, [(5, 8), (3, 4), (2, 2), (1, 1)]);
}

#[test]
fn requests_that_fit_no_tree_are_refused() {
    let shape = TreeShape { leaf_count: 1000 }; // ten layers below the root
    let request =
        |base, index, length, proofs| HashRange::new(shape, base, index, length, proofs).err();
    assert_eq!(request(0, 0, 512, 9), None);
    assert_eq!(request(0, 512, 512, 0), None);
    assert_eq!(request(0, 512, 488, 9), None); // the rest of the layer
    assert_eq!(request(0, 999, 1, 9), None);
    assert_eq!(request(9, 0, 2, 0), None);
    assert_eq!(
        request(10, 0, 1, 0),
        Some(MerkleError::BaseLayer { base_layer: 10, layer_count: 10 })
    );
    assert!(request(u32::MAX, 0, 1, 0).is_some());
    for (index, length) in [(0, 0), (0, 3), (512, 487), (0, u32::MAX), (0, 16_384), (u32::MAX, 3)] {
        assert_eq!(request(0, index, length, 0), Some(MerkleError::Length { index, length }));
    }
    assert_eq!(request(0, 256, 512, 0), Some(MerkleError::Index { index: 256, length: 512 }));
    assert_eq!(
        request(0, 1024, 512, 0),
        Some(MerkleError::PastEnd { index: 1024, length: 512, layer_len: 1024 })
    );
    let last = u32::MAX - 1;
    assert_eq!(
        request(0, last, 2, 0),
        Some(MerkleError::PastEnd { index: last, length: 2, layer_len: 1024 })
    );
    let too_far = |proof_layers| {
        Some(MerkleError::ProofLayers { proof_layers, base_layer: 1, layer_count: 10 })
    };
    assert_eq!(request(1, 0, 2, 8), None);
    assert_eq!(request(1, 0, 2, 9), too_far(9));
    assert_eq!(request(1, 0, 2, u32::MAX), too_far(u32::MAX));
    // A file of one block is its own root: nothing can be asked about it.
    assert!(HashRange::new(TreeShape { leaf_count: 1 }, 0, 0, 1, 0).is_err());
}

/// The example of BEP 52's rule: proof layers that the range covers are left out but counted.
#[test]
fn covered_proof_layers_have_no_uncle() {
    let shape = TreeShape { leaf_count: 1024 };
    let count = |length, proofs| HashRange::new(shape, 0, 0, length, proofs).unwrap().uncle_count();
    assert_eq!([count(2, 0), count(2, 1), count(2, 9)], [0, 1, 9]);
    assert_eq!([count(512, 0), count(512, 8), count(512, 9)], [0, 0, 1]);
    assert_eq!([count(1, 0), count(1, 9)], [1, 10]);
    assert_eq!(HashRange::new(shape, 0, 512, 512, 3).unwrap().anchor(), (9, 1));
    assert_eq!(HashRange::to_root(shape, 3, 8, 8).unwrap().anchor(), (10, 0));
}

/// libtorrent's answers to hash requests pass the check, and we would give the same.
#[test]
fn answers_are_those_of_libtorrent() {
    let digests = (0..).flat_map(|at| Sha256::digest(format!("50-{at}").as_bytes()));
    let bytes: Vec<u8> = digests.take(1_000_000).collect();
    let leaves: Vec<Hash> = bytes.chunks(BLOCK_LEN as usize).map(leaf).collect();
    let shape = TreeShape::of_file(bytes.len() as u64).unwrap();
    let root = root_from_leaves(&leaves);
    let pieces = piece_layer_from_leaves(&leaves, 2);
    let kept = [
        UpperTree::new(shape, 0, &leaves, &root).unwrap(),
        UpperTree::new(shape, 2, &pieces, &root).unwrap(),
    ];
    let path = "../../tests/vectors/merkle/libtorrent-hashes.txt";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(path).unwrap();
    let mut checked = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split(' ').collect();
        let [base, index, length, proofs] = [0, 1, 2, 3].map(|at| columns[at].parse().unwrap());
        let byte = |at: usize| u8::from_str_radix(&columns[4][at..at + 2], 16).unwrap();
        let theirs: Vec<u8> = (0..columns[4].len()).step_by(2).map(byte).collect();
        let (theirs, _) = theirs.as_chunks::<32>();
        let range = HashRange::new(shape, base, index, length, proofs).unwrap();
        for tree in &kept {
            let source =
                |first: u64, count: usize| Some(leaves[first as usize..][..count].to_vec());
            assert_eq!(tree.answer(range, source).as_deref(), Some(theirs), "{line:.20}");
        }
        let (layer, at) = range.anchor();
        assert_eq!(range.check(shape, theirs, kept[0].node(layer, at).unwrap()), Ok(()));
        checked += 1;
    }
    assert_eq!(checked, 11);
}

#[test]
fn a_layer_that_leads_elsewhere_is_refused() {
    let leaves = leaves(7);
    let shape = TreeShape { leaf_count: 7 };
    let root = root_from_leaves(&leaves);
    assert!(UpperTree::new(shape, 0, &leaves, &root).is_ok());
    let counted = UpperTree::new(shape, 0, &leaves[..6], &root).err();
    assert_eq!(counted, Some(MerkleError::HashCount { expected: 7, found: 6 }));
    assert_eq!(UpperTree::new(shape, 0, &leaves, &[7; 32]).err(), Some(MerkleError::Mismatch));
}

#[test]
fn a_file_of_one_block_or_piece_is_asked_about_as_far_as_it_has_layers() {
    let one = TreeShape { leaf_count: 1 };
    assert_eq!(HashRange::cover(one, 0).count(), 0);
    assert_eq!(HashRange::leaves_of_piece(one, 4, 0).count(), 0);
    let short = TreeShape { leaf_count: 3 };
    assert_eq!(HashRange::cover(short, 4).count(), 0);
    let ranges: Vec<_> = HashRange::leaves_of_piece(short, 4, 0).collect();
    assert_eq!(ranges, [HashRange::new(short, 0, 0, 4, 1).unwrap()]);
    assert_eq!(ranges[0].anchor(), (2, 0));
    // 513 pieces: never one hash alone.
    let long = TreeShape { leaf_count: 513 * 16 - 3 };
    let ranges: Vec<_> = HashRange::cover(long, 4).collect();
    let last = HashRange::new(long, 4, 512, 2, 9).unwrap();
    assert_eq!(ranges, [HashRange::new(long, 4, 0, 512, 9).unwrap(), last]);
    assert_eq!((last.known_count(long), last.anchor()), (1, (14, 0)));
    // A piece of 128 MiB: sixteen ranges, each proven against the piece.
    let giant = TreeShape { leaf_count: 8192 * 3 + 600 };
    assert_eq!(HashRange::leaves_of_piece(giant, 13, 1).count(), 16);
    let tail: Vec<_> = HashRange::leaves_of_piece(giant, 13, 3).collect();
    assert_eq!(tail.len(), 2);
    assert!(tail.iter().all(|range| range.anchor() == (13, 3)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The ranges that we ask for bring every hash of a layer, or of a piece, once and in order.
    #[test]
    fn what_we_ask_for_covers_the_layer(count in 1_u64..3000, base in 0_u32..5, piece_layer in 1_u32..11) {
        let shape = TreeShape { leaf_count: count };
        let expect = if base < shape.layer_count() { shape.node_count(base) } else { 0 };
        let mut next = 0;
        for range in HashRange::cover(shape, base) {
            prop_assert_eq!(u64::from(range.index()), next);
            prop_assert!(range.length() >= 2 && range.length() <= ASKED_MAX);
            prop_assert_eq!(range.anchor(), (shape.layer_count(), 0));
            next += range.known_count(shape) as u64;
        }
        prop_assert_eq!(next, expect);
        let mut next = 0;
        for piece in 0..shape.node_count(piece_layer) {
            for range in HashRange::leaves_of_piece(shape, piece_layer, piece as u32) {
                prop_assert_eq!(u64::from(range.index()), next);
                prop_assert!(range.length() >= 2 && range.length() <= ASKED_MAX);
                let anchor = (piece_layer.min(shape.layer_count()), piece);
                prop_assert_eq!(range.anchor(), anchor);
                next += range.known_count(shape) as u64;
            }
        }
        prop_assert_eq!(next, if count > 1 { count } else { 0 });
    }

    /// Roots, piece layers and piece roots agree with a tree that is spelt out.
    #[test]
    fn agrees_with_a_whole_tree(count in 1_u64..200, piece_layer in 0_u32..6) {
        let leaves = leaves(count);
        let tree = whole_tree(&leaves);
        let root = tree[tree.len() - 1][0];
        prop_assert_eq!(root_from_leaves(&leaves), root);
        if count > 1 << piece_layer {
            let layer = piece_layer_from_leaves(&leaves, piece_layer);
            prop_assert_eq!(&layer[..], &tree[piece_layer as usize][..layer.len()]);
            prop_assert_eq!(root_from_layer(&layer, piece_layer), root);
            for (piece, leaves) in leaves.chunks(1 << piece_layer).enumerate() {
                prop_assert_eq!(piece_root(leaves, piece_layer, count), layer[piece]);
            }
        } else {
            prop_assert_eq!(piece_root(&leaves, piece_layer, count), root);
        }
    }

    /// Every request that is allowed gets an answer that passes its check, whatever layers the
    /// server keeps, and no answer with a bit flipped or a hash missing passes.
    #[test]
    fn answers_pass_and_lies_do_not(
        count in 2_u64..150, kept in 0_u32..8, base in 0_u32..8, log in 0_u32..8,
        at in 0_u32..150, proofs in 0_u32..8, rest in any::<bool>(), flip in any::<prop::sample::Index>(),
    ) {
        let leaves = leaves(count);
        let shape = TreeShape { leaf_count: count };
        let tree = whole_tree(&leaves);
        let base = base % shape.layer_count();
        let proofs = proofs % (shape.layer_count() - base);
        let mut length = (1_u64 << log).min(shape.padded_count(base));
        let mut index = u64::from(at) % (shape.padded_count(base) / length) * length;
        if rest && shape.node_count(base) > index && shape.node_count(base) - index < length {
            length = shape.node_count(base) - index;
            index = index / length.next_power_of_two() * length.next_power_of_two();
        }
        let range = HashRange::new(shape, base, index as u32, length as u32, proofs);
        prop_assume!(range.is_ok()); // `rest` may land on another range
        let range = range.unwrap();

        let kept = kept.min(shape.layer_count());
        let nodes = &tree[kept as usize][..shape.node_count(kept) as usize];
        let upper = UpperTree::new(shape, kept, nodes, &tree[tree.len() - 1][0]).unwrap();
        let source = |first: u64, count: usize| Some(leaves[first as usize..][..count].to_vec());
        let answer = upper.answer(range, source).unwrap();
        prop_assert_eq!(&answer[..length as usize], &tree[base as usize][index as usize..][..length as usize]);
        let (layer, at) = range.anchor();
        let anchor = tree[layer as usize][at as usize];
        prop_assert_eq!(range.check(shape, &answer, &anchor), Ok(()));
        if kept > base {
            let unknown = upper.answer(range, |_, _| None);
            prop_assert!(unknown.is_none() || index >= shape.node_count(base));
        }

        let mut lie = answer.clone();
        let flip = flip.index(lie.len() * 256);
        lie[flip / 256][flip % 256 / 8] ^= 1 << (flip % 8);
        prop_assert!(range.check(shape, &lie, &anchor).is_err());
        prop_assert!(range.check(shape, &answer[1..], &anchor).is_err());
        prop_assert_eq!(range.check(shape, &answer, &[0; 32]), Err(MerkleError::Mismatch));
    }
}
