//! The authenticated map under the app hash: a binary Merkle trie over hashed keys, and its proofs.
//!
//! A key's *path* is SHA-256 of its bytes; bit `d` of the path, from the most significant of the
//! first byte, chooses left (0) or right (1) at depth `d`. A subtree with one leaf is that leaf, at
//! whatever depth, so the shape depends on the set of keys alone and never on the order of changes.
//!
//! ```text
//! leaf   = SHA-256(0x00 | path | SHA-256(value))
//! branch = SHA-256(0x01 | left | right)          an empty side counts as 32 zero bytes
//! ```
//! Nodes are shared between versions: executing a block builds new nodes along the changed paths and
//! leaves the committed tree as it is.

use std::sync::Arc;

use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer, field_error};
use crate::key::{AppHash, sha256};
use crate::record::StateKey;

type Hash = [u8; 32];
type Link = Option<Arc<Node>>;

const EMPTY: Hash = [0; 32];
/// Bits of a path.
const DEPTH_MAX: usize = 256;

/// A change of the map: where, and SHA-256 of the new value or a deletion.
pub(crate) type Change = (Hash, Option<Hash>);

#[derive(Debug)]
enum Node {
    Leaf { hash: Hash, path: Hash, value: Hash },
    Branch { hash: Hash, left: Link, right: Link },
}

/// One version of the map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    root: Link,
}

pub(crate) fn path_of(key: &StateKey) -> Hash {
    sha256(&[&key.to_bytes()])
}

fn leaf_hash(path: &Hash, value: &Hash) -> Hash {
    sha256(&[&[0], path, value])
}

fn branch_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

fn hash_of(link: &Link) -> Hash {
    match link.as_deref() {
        None => EMPTY,
        Some(Node::Leaf { hash, .. } | Node::Branch { hash, .. }) => *hash,
    }
}

/// Bit `depth` of `path`; past the end every bit is 0.
fn bit(path: &Hash, depth: usize) -> bool {
    path.get(depth >> 3).is_some_and(|byte| byte & (0x80 >> (depth & 7)) != 0)
}

impl Tree {
    pub(crate) fn root(&self) -> AppHash {
        AppHash(hash_of(&self.root))
    }

    /// The map after `changes`; a later change of a path replaces an earlier one.
    pub(crate) fn with(&self, mut changes: Vec<Change>) -> Self {
        changes.sort_by_key(|(path, _)| *path);
        // Of equal paths the last counts: reverse before dedup, which keeps the first.
        changes.reverse();
        changes.dedup_by_key(|(path, _)| *path);
        changes.reverse();
        Self { root: apply(&self.root, 0, &changes) }
    }

    /// Proves what the map holds, or does not hold, at `path`.
    pub(crate) fn prove(&self, path: &Hash) -> Proof {
        let mut siblings = Vec::new();
        let mut link = &self.root;
        loop {
            match link.as_deref() {
                None => return Proof { siblings, end: ProofEnd::Empty },
                Some(Node::Leaf { path, value, .. }) => {
                    return Proof { siblings, end: ProofEnd::Leaf { path: *path, value: *value } };
                }
                Some(Node::Branch { left, right, .. }) => {
                    let (next, sibling) =
                        if bit(path, siblings.len()) { (right, left) } else { (left, right) };
                    siblings.push(hash_of(sibling));
                    link = next;
                }
            }
        }
    }
}

fn leaf(path: &Hash, value: &Hash) -> Link {
    let hash = leaf_hash(path, value);
    Some(Arc::new(Node::Leaf { hash, path: *path, value: *value }))
}

/// A branch, or what is left of one: a lone leaf moves up, nothing stays nothing.
fn join(left: Link, right: Link) -> Link {
    match (left.as_deref(), right.as_deref()) {
        (None, None) => None,
        (Some(Node::Leaf { .. }), None) => left,
        (None, Some(Node::Leaf { .. })) => right,
        _ => {
            let hash = branch_hash(&hash_of(&left), &hash_of(&right));
            Some(Arc::new(Node::Branch { hash, left, right }))
        }
    }
}

/// `changes` are sorted, unique, and agree with the subtree's place in their first `depth` bits.
fn apply(link: &Link, depth: usize, changes: &[Change]) -> Link {
    if changes.is_empty() {
        return link.clone();
    }
    match link.as_deref() {
        None => build(depth, &present(changes)),
        Some(Node::Leaf { path, value, .. }) => {
            let mut leaves = present(changes);
            if changes.binary_search_by_key(path, |(path, _)| *path).is_err() {
                let place = leaves.partition_point(|(other, _)| other < path);
                leaves.insert(place, (*path, *value));
            }
            build(depth, &leaves)
        }
        Some(Node::Branch { left, right, .. }) => {
            let (lefts, rights) =
                changes.split_at(changes.partition_point(|(path, _)| !bit(path, depth)));
            let below = depth.saturating_add(1);
            join(apply(left, below, lefts), apply(right, below, rights))
        }
    }
}

fn present(changes: &[Change]) -> Vec<(Hash, Hash)> {
    changes.iter().filter_map(|(path, value)| value.map(|value| (*path, value))).collect()
}

fn build(depth: usize, leaves: &[(Hash, Hash)]) -> Link {
    match leaves {
        [] => None,
        [(path, value)] => leaf(path, value),
        // Unique paths differ before their end, so the guard only spares a reader the thought.
        _ if depth >= DEPTH_MAX => None,
        _ => {
            let (lefts, rights) =
                leaves.split_at(leaves.partition_point(|(path, _)| !bit(path, depth)));
            let below = depth.saturating_add(1);
            join(build(below, lefts), build(below, rights))
        }
    }
}

/// Proof that a key has a value, or has none, under an app hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// From the root downwards.
    siblings: Vec<Hash>,
    end: ProofEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ProofEnd {
    Empty,
    Leaf { path: Hash, value: Hash },
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProofError {
    /// The hashes do not lead to the app hash.
    #[error("the proof leads to another app hash")]
    Root,
    /// The proof ends elsewhere than the key does.
    #[error("the proof is about another key")]
    Key,
    /// The key is there, with another value, or although it should not be, or the other way round.
    #[error("the proof shows something else")]
    Value,
}

impl Proof {
    /// Verifies that under `root` the key has `value`, or with `None` that it has none.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(
        &self,
        root: &AppHash,
        key: &StateKey,
        value: Option<&[u8]>,
    ) -> Result<(), ProofError> {
        let path = path_of(key);
        if self.siblings.len() > DEPTH_MAX {
            return Err(ProofError::Root);
        }
        let mut hash = match &self.end {
            ProofEnd::Empty => EMPTY,
            ProofEnd::Leaf { path: found, value } => {
                let agree = (0..self.siblings.len()).all(|d| bit(found, d) == bit(&path, d));
                if !agree {
                    return Err(ProofError::Key);
                }
                leaf_hash(found, value)
            }
        };
        for (depth, sibling) in self.siblings.iter().enumerate().rev() {
            hash = match bit(&path, depth) {
                true => branch_hash(sibling, &hash),
                false => branch_hash(&hash, sibling),
            };
        }
        if hash != root.0 {
            return Err(ProofError::Root);
        }
        let found = match &self.end {
            ProofEnd::Leaf { path: found, value } if *found == path => Some(*value),
            _ => None,
        };
        match found == value.map(|value| sha256(&[value])) {
            true => Ok(()),
            false => Err(ProofError::Value),
        }
    }

    /// The canonical bytes: `count u16 | siblings | 0`, or `1 | path | value hash` at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u16(u16::try_from(self.siblings.len()).unwrap_or(u16::MAX));
        self.siblings.iter().for_each(|sibling| {
            w.bytes(sibling);
        });
        match &self.end {
            ProofEnd::Empty => w.u8(0),
            ProofEnd::Leaf { path, value } => w.u8(1).bytes(path).bytes(value),
        };
        w.into_bytes()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let count = r.u16("siblings")?;
        if usize::from(count) > DEPTH_MAX {
            return Err(field_error("siblings", "are more than a path has bits"));
        }
        let siblings = (0..count).map(|_| r.array("siblings")).collect::<Result<_, _>>()?;
        let end = match r.u8("end")? {
            0 => ProofEnd::Empty,
            1 => ProofEnd::Leaf { path: r.array("path")?, value: r.array("value hash")? },
            _ => return Err(field_error("end", "is neither empty nor a leaf")),
        };
        r.finish()?;
        Ok(Self { siblings, end })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::key::DataHash;

    /// The slow twin: the root straight from the definition.
    fn oracle(leaves: &[(Hash, Hash)], depth: usize) -> Hash {
        match leaves {
            [] => EMPTY,
            [(path, value)] => leaf_hash(path, value),
            _ => {
                let side = |right| {
                    let of_side = |(path, _): &&(Hash, Hash)| bit(path, depth) == right;
                    let leaves: Vec<_> = leaves.iter().filter(of_side).copied().collect();
                    oracle(&leaves, depth + 1)
                };
                branch_hash(&side(false), &side(true))
            }
        }
    }

    /// Paths that share long prefixes are as likely as others.
    fn any_path() -> impl Strategy<Value = Hash> {
        let near = (0usize..256, any::<bool>()).prop_map(|(place, low)| {
            let mut path = [0x5a; 32];
            path[place / 8] ^= 0x80 >> (place % 8);
            path[31] ^= u8::from(low);
            path
        });
        prop_oneof![near, any::<[u8; 32]>()]
    }

    fn any_changes() -> impl Strategy<Value = Vec<Vec<Change>>> {
        let pool = vec(any_path(), 1..30);
        let picks = vec(vec((any::<prop::sample::Index>(), any::<Option<u8>>()), 0..20), 1..8);
        (pool, picks).prop_map(|(pool, picks)| {
            let change = |(place, value): (prop::sample::Index, Option<u8>)| {
                (*place.get(&pool), value.map(|value| [value; 32]))
            };
            picks.into_iter().map(|batch| batch.into_iter().map(change).collect()).collect()
        })
    }

    proptest! {
        /// However it was reached, the root is the one of the definition.
        #[test]
        fn the_root_depends_on_the_contents_alone(batches in any_changes()) {
            let mut tree = Tree::default();
            let mut model = BTreeMap::new();
            for batch in batches {
                for (path, value) in &batch {
                    match value {
                        Some(value) => model.insert(*path, *value),
                        None => model.remove(path),
                    };
                }
                tree = tree.with(batch);
                let leaves: Vec<_> = model.iter().map(|(path, value)| (*path, *value)).collect();
                prop_assert_eq!(tree.root().0, oracle(&leaves, 0));
            }
        }
    }

    fn key(n: u8) -> StateKey {
        StateKey::Listing(DataHash([n; 32]))
    }

    fn tree_of(keys: impl Iterator<Item = u8>) -> Tree {
        Tree::default().with(keys.map(|n| (path_of(&key(n)), Some(sha256(&[&[n]])))).collect())
    }

    #[test]
    fn no_altered_proof_proves() {
        let tree = tree_of(0..100);
        let root = tree.root();
        for n in [7, 200] {
            let value = (n < 100).then_some([n]);
            let value = value.as_ref().map(<[u8; 1]>::as_slice);
            let good = tree.prove(&path_of(&key(n)));
            assert_eq!(good.verify(&root, &key(n), value), Ok(()));
            let bytes = good.to_bytes();
            for place in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[place] ^= 1;
                if let Ok(altered) = Proof::decode(&bytes) {
                    assert!(altered.verify(&root, &key(n), value).is_err(), "byte {place}");
                }
            }
        }
    }

    /// A leaf from elsewhere in the tree is no proof of absence here.
    #[test]
    fn absence_needs_a_leaf_on_the_path() {
        let tree = tree_of(0..100);
        let here = tree.prove(&path_of(&key(7)));
        let there = (0..100u8)
            .map(|n| tree.prove(&path_of(&key(n))))
            .find(|other| other.siblings.first() != here.siblings.first())
            .unwrap();
        let forged = Proof { siblings: there.siblings.clone(), end: there.end.clone() };
        assert_eq!(forged.verify(&tree.root(), &key(7), None), Err(ProofError::Key));
        let empty = Proof { siblings: here.siblings, end: ProofEnd::Empty };
        assert_eq!(empty.verify(&tree.root(), &key(7), None), Err(ProofError::Root));
    }

    #[test]
    fn an_empty_tree_proves_absence() {
        let tree = Tree::default();
        assert_eq!(tree.root().0, EMPTY);
        let proof = tree.prove(&path_of(&key(1)));
        assert_eq!(proof.verify(&tree.root(), &key(1), None), Ok(()));
        assert!(proof.verify(&tree.root(), &key(1), Some(b"")).is_err());
    }
}
