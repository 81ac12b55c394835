//! Torrents that keep every rule, and what is made of them. Roots and layers are random hashes that fit each
//! other: a parser sees no content.

use std::collections::BTreeMap;

use ringseed_core::merkle;
use ringseed_tests::data::Seeded;

use crate::mutate;
use crate::tree::Node;

/// How a case came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It keeps every rule.
    Valid,
    /// Values, keys or files of a good one were changed.
    StructureMutant,
    /// Bytes of a good one were changed, knowing nothing.
    ByteMutant,
}

pub struct Case {
    pub bytes: Vec<u8>,
    pub origin: Origin,
}

/// The next case: a quarter keep every rule, of the others three in five know the structure.
pub fn case(random: &mut Seeded) -> Case {
    let mut torrent = torrent(random);
    match random.below(20) {
        0..5 => Case { bytes: torrent.encode(), origin: Origin::Valid },
        5..14 => {
            for _ in 0..1 + random.below(3) / 2 {
                mutate::structure(&mut torrent, random);
            }
            Case { bytes: torrent.encode(), origin: Origin::StructureMutant }
        }
        _ => {
            let mut bytes = torrent.encode();
            mutate::bytes(&mut bytes, random);
            Case { bytes, origin: Origin::ByteMutant }
        }
    }
}

/// A file of a torrent to be made.
pub struct Leaf {
    pub path: Vec<Vec<u8>>,
    pub len: u64,
    pub executable: bool,
}

pub fn one_of<'a, T: ?Sized>(random: &mut Seeded, all: &[&'a T]) -> &'a T {
    all[random.below(all.len() as u64) as usize]
}

fn name(random: &mut Seeded) -> Vec<u8> {
    let stems = [
        "a", "b", "c.bin", "d d", "e-1", "READ me", "ümläut", "日本", "z", "a.b", "a-b", "x1", "x2",
    ];
    let mut name = one_of(random, &stems).as_bytes().to_vec();
    if random.below(3) == 0 {
        name.extend(random.below(100).to_string().as_bytes());
    }
    name
}

fn len(random: &mut Seeded, piece_len: u64) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => 1 + random.below(100),
        2 => piece_len,
        3 => piece_len + 1,
        4 => piece_len - 1,
        5 => piece_len * (1 + random.below(4)),
        _ => 1 + random.below(piece_len * 4),
    }
}

/// Files with different paths, none of which is another's folder, in the order of BEP 52.
pub fn leaves(random: &mut Seeded, piece_len: u64) -> Vec<Leaf> {
    let mut by_path: BTreeMap<Vec<Vec<u8>>, Leaf> = BTreeMap::new();
    for _ in 0..1 + random.below(6) {
        let path: Vec<Vec<u8>> = (0..1 + random.below(3)).map(|_| name(random)).collect();
        // Some systems fold case and libtorrent counts that as a clash; here no two differ only by it.
        let clashes = by_path.keys().any(|other| {
            let shared = other.len().min(path.len());
            other[..shared] == path[..shared]
        });
        if !clashes {
            let (len, executable) = (len(random, piece_len), random.below(8) == 0);
            by_path.insert(path.clone(), Leaf { path, len, executable });
        }
    }
    let mut leaves: Vec<Leaf> = by_path.into_values().collect();
    if leaves.iter().all(|leaf| leaf.len == 0) {
        leaves[0].len = 1 + random.below(3 * piece_len);
    }
    leaves
}

struct Tree {
    tree: Node,
    layers: Node,
}

/// The file tree with roots, and the layers of the files that have one.
fn file_tree(leaves: &[Leaf], piece_len: u64, random: &mut Seeded) -> Tree {
    let (mut tree, mut layers) = (Node::Dict(Vec::new()), Node::Dict(Vec::new()));
    for leaf in leaves {
        let mut properties = Node::dict([("length", Node::int(leaf.len))]);
        if leaf.executable {
            properties.set(b"attr", Node::text("x"));
        }
        let count = leaf.len.div_ceil(piece_len) as usize;
        if count > 0 {
            let layer: Vec<merkle::Hash> = (0..count).map(|_| hash(random)).collect();
            let root =
                merkle::root_from_layer(&layer, merkle::piece_layer_number(piece_len as u32));
            properties.set(b"pieces root", Node::Bytes(root.to_vec()));
            if count > 1 {
                layers.set(&root, Node::Bytes(layer.concat()));
            }
        }
        let mut folder = &mut tree;
        for part in &leaf.path {
            let Node::Dict(entries) = folder else { unreachable!("no path is another's folder") };
            let at = entries.binary_search_by(|(found, _)| found.cmp(part)).unwrap_or_else(|at| {
                entries.insert(at, (part.clone(), Node::Dict(Vec::new())));
                at
            });
            folder = &mut entries[at].1;
        }
        *folder = Node::dict([("", properties)]);
    }
    Tree { tree, layers }
}

fn hash(random: &mut Seeded) -> merkle::Hash {
    random.bytes(32).try_into().expect("32 bytes")
}

/// The v1 list; of a hybrid with pads, behind the last file too if `has_tail`.
fn file_list(leaves: &[Leaf], align: Option<u64>, has_tail: bool) -> (Vec<Node>, u64) {
    let mut list = Vec::new();
    let mut end = 0_u64;
    let pad_to = |list: &mut Vec<Node>, end: &mut u64| {
        let Some(piece_len) = align else { return };
        let gap = end.next_multiple_of(piece_len) - *end;
        if gap > 0 {
            let path = vec![Node::text(".pad"), Node::text(&gap.to_string())];
            list.push(Node::dict([
                ("attr", Node::text("p")),
                ("length", Node::int(gap)),
                ("path", Node::List(path)),
            ]));
            *end += gap;
        }
    };
    for leaf in leaves {
        if leaf.len > 0 {
            pad_to(&mut list, &mut end);
        }
        let path = leaf.path.iter().map(|part| Node::Bytes(part.clone())).collect();
        let mut entry = Node::dict([("length", Node::int(leaf.len)), ("path", Node::List(path))]);
        if leaf.executable {
            entry.set(b"attr", Node::text("x"));
        }
        list.push(entry);
        end += leaf.len;
    }
    if has_tail {
        pad_to(&mut list, &mut end);
    }
    (list, end)
}

/// A torrent that keeps every rule.
pub fn torrent(random: &mut Seeded) -> Node {
    let kind = random.below(4);
    let is_v1 = kind <= 1;
    let piece_len: u64 = if is_v1 && random.below(2) == 0 {
        *one_of(random, &[&1024, &1025, &20_000, &65_535, &100_000, &131_072, &4096])
    } else {
        16_384 << random.below(4)
    };
    let mut info =
        Node::dict([("name", Node::Bytes(name(random))), ("piece length", Node::int(piece_len))]);
    let mut layers = None;
    let mut total = 0;
    let mut leaves = leaves(random, piece_len);
    if kind == 0 {
        total = leaves.iter().map(|leaf| leaf.len).max().unwrap_or(0);
        info.set(b"length", Node::int(total));
    } else if is_v1 {
        let (list, end) = file_list(&leaves, None, false);
        total = end;
        info.set(b"files", Node::List(list));
    } else {
        // A lone file at the top of the tree stands for itself, by the torrent's name.
        let is_lone = random.below(5) == 0;
        if is_lone {
            leaves.truncate(1);
            let Some(Node::Bytes(name)) = info.get("name") else { unreachable!("just set") };
            leaves[0].path = vec![name.clone()];
            leaves[0].len = leaves[0].len.max(1);
        }
        let made = file_tree(&leaves, piece_len, random);
        info.set(b"file tree", made.tree);
        info.set(b"meta version", Node::int(2));
        layers = Some(made.layers);
        if kind == 3 {
            let (list, end) = file_list(&leaves, Some(piece_len), random.below(2) == 0);
            total = end;
            if is_lone {
                total = leaves[0].len;
                info.set(b"length", Node::int(total));
                if leaves[0].executable {
                    info.set(b"attr", Node::text("x"));
                }
            } else {
                info.set(b"files", Node::List(list));
            }
        }
    }
    if kind != 2 {
        info.set(b"pieces", Node::Bytes(random.bytes(20 * total.div_ceil(piece_len) as usize)));
    }
    if random.below(4) == 0 {
        info.set(b"private", Node::int(random.below(2)));
    }
    if random.below(6) == 0 {
        info.set(b"source", Node::text("somewhere"));
    }
    let mut torrent = Node::dict([("info", info)]);
    if let Some(layers) = layers {
        torrent.set(b"piece layers", layers);
    }
    if random.below(2) == 0 {
        torrent.set(b"announce", Node::text("http://tracker.invalid/announce"));
        let tier = Node::List(vec![Node::text("udp://tracker.invalid:80")]);
        torrent.set(b"announce-list", Node::List(vec![tier]));
        torrent.set(b"comment", Node::text("no comment"));
        torrent.set(b"creation date", Node::int(random.below(1 << 31)));
    }
    torrent
}
