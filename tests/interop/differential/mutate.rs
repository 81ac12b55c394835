//! What is done to good torrents: changes that know the structure, and changes of bytes.

use ringseed_tests::data::Seeded;

use crate::generate::one_of;
use crate::tree::Node;

/// Components that mean something somewhere, or look like it.
const NAMES: [&[u8]; 22] = [
    b"..",
    b".",
    b"",
    b"/",
    b"a/b",
    b"/etc",
    b"a\\b",
    b"..\\x",
    b"C:",
    b"NUL",
    b"aux.c",
    b"con",
    b"a\0b",
    b"a\nb",
    b"\x1b[31m",
    b"\xff\xfe",
    b"ab\xc3",
    b"\xc0\xae\xc0\xae",
    b" ",
    b"a.",
    b"\xe2\x80\xae" as &[u8],
    b"...",
];

/// Changes one thing about a torrent, knowing what things mean.
pub fn structure(torrent: &mut Node, random: &mut Seeded) {
    let is_empty = |node: &Node| !matches!(node, Node::Dict(entries) if !entries.is_empty());
    if is_empty(torrent) || torrent.get("info").is_none_or(is_empty) {
        return generic(torrent, random);
    }
    let choice = random.below(30);
    match choice {
        0..4 => return generic(torrent, random),
        4 => return change_layers(torrent, random),
        5 => {
            let text =
                one_of(random, &["extra", "info", "announce", "a", "zz", "url-list", "nodes"]);
            if let Node::Dict(entries) = torrent {
                let at = random.below(entries.len() as u64 + 1) as usize;
                entries.insert(at, (text.as_bytes().to_vec(), Node::text("x")));
            }
            return;
        }
        6 => {
            if let Node::Dict(entries) = torrent {
                let (a, b) =
                    (random.below(entries.len() as u64), random.below(entries.len() as u64));
                entries.swap(a as usize, b as usize);
            }
            return;
        }
        _ => {}
    }
    let Some(info) = torrent.get_mut("info") else { return generic(torrent, random) };
    match choice {
        7 => change_piece_len(info, random),
        8 => change_pieces(info, random),
        9 => {
            let value = *one_of(random, &[&0, &1, &2, &3, &-1]);
            info.set(b"meta version", Node::int(value));
        }
        10 => {
            let key = one_of(
                random,
                &["file tree", "files", "length", "meta version", "name", "piece length", "pieces"],
            );
            info.remove(key);
        }
        11 => {
            let value = Node::Bytes(one_of(random, &NAMES.each_ref().map(|name| *name)).to_vec());
            info.set(b"name", value);
        }
        12 => info.set(b"length", Node::int(random.below(70_000))),
        13 => {
            let key = one_of(
                random,
                &[&b"name.utf-8"[..], b"attr", b"symlink path", b"files", b"source", b"private"],
            );
            info.set(key, Node::text(one_of(random, &["x", "p", "l", "xp", ""])));
        }
        14 => {
            if let Node::Dict(entries) = info {
                let (a, b) =
                    (random.below(entries.len() as u64), random.below(entries.len() as u64));
                let again = entries[a as usize].clone();
                match random.below(2) {
                    0 => entries.swap(a as usize, b as usize),
                    _ => entries.insert(b as usize, again),
                }
            }
        }
        15..23 => change_list(info, random),
        _ => change_tree(info, random),
    }
}

fn change_piece_len(info: &mut Node, random: &mut Seeded) {
    let lens: [i64; 16] = [
        0,
        -1,
        1,
        512,
        1023,
        1024,
        8192,
        16_383,
        16_384,
        16_385,
        32_768,
        49_152,
        1 << 20,
        1 << 27,
        (1 << 27) + 1,
        1 << 40,
    ];
    info.set(b"piece length", Node::int(*one_of(random, &lens.each_ref())));
}

fn change_pieces(info: &mut Node, random: &mut Seeded) {
    let Some(Node::Bytes(pieces)) = info.get_mut("pieces") else {
        return info.set(b"pieces", Node::Bytes(vec![1; 20]));
    };
    match random.below(4) {
        0 => pieces.extend([7; 20]),
        1 => pieces.truncate(pieces.len().saturating_sub(20)),
        2 => drop(pieces.pop()),
        _ => pieces.clear(),
    }
}

fn change_layers(torrent: &mut Node, random: &mut Seeded) {
    let Some(layers) = torrent.get_mut("piece layers") else {
        return torrent.set(b"piece layers", Node::Dict(Vec::new()));
    };
    let choice = random.below(7);
    if choice == 0 {
        layers.set(&random.bytes(32), Node::Bytes(random.bytes(64)));
    } else if choice == 1 {
        torrent.remove("piece layers");
    } else if let Node::Dict(entries) = layers
        && !entries.is_empty()
    {
        let at = random.below(entries.len() as u64) as usize;
        match (choice, &mut entries[at]) {
            (2, _) => drop(entries.remove(at)),
            (3, (_, Node::Bytes(layer))) => layer[0] ^= 1,
            (4, (_, Node::Bytes(layer))) => layer.truncate(layer.len() - 32),
            (5, (root, _)) => root[0] ^= 1,
            (_, (root, _)) => drop(root.pop()),
        }
    }
}

/// Changes a file of the v1 list.
fn change_list(info: &mut Node, random: &mut Seeded) {
    let piece_len = match info.get("piece length") {
        Some(Node::Int(digits)) => digits.parse().unwrap_or(16_384_i128),
        _ => 16_384,
    };
    let Some(files) =
        info.get_mut("files").and_then(Node::elements).filter(|files| !files.is_empty())
    else {
        let lens =
            [0, -1, 1, 16_384, 16_385, i128::from(random.below(100_000)), 1 << 46, (1 << 46) + 1];
        return info.set(b"length", Node::int(*one_of(random, &lens.each_ref())));
    };
    let at = random.below(files.len() as u64) as usize;
    let other = random.below(files.len() as u64) as usize;
    let pad = |len: i128| {
        Node::dict([
            ("attr", Node::text("p")),
            ("length", Node::int(len)),
            ("path", Node::List(vec![Node::text(".pad"), Node::text("0")])),
        ])
    };
    match random.below(16) {
        0 => drop(files.remove(at)),
        1 => files.swap(at, other),
        2 => {
            let again = files[at].clone();
            files.insert(other, again);
        }
        3 => files.insert(at, pad(*one_of(random, &[&0, &1, &100, &16_384, &piece_len]))),
        4 => files[at].set(
            b"length",
            Node::int(*one_of(
                random,
                &[&0, &-1, &1, &16_384, &70_000, &(1_i64 << 46), &(1_i64 << 62)],
            )),
        ),
        5 => {
            files[at].remove(one_of(random, &["length", "path", "attr"]));
        }
        6 => files[at]
            .set(b"attr", Node::text(one_of(random, &["p", "x", "l", "h", "px", "lx", "", "q"]))),
        7 => {
            files[at].set(b"attr", Node::text(one_of(random, &["l", "xl", "x"])));
            files[at].set(b"symlink path", Node::List(vec![Node::text("a")]));
            if random.below(2) == 0 {
                files[at].set(b"length", Node::int(0));
            }
        }
        8 => {
            files[at].set(b"path.utf-8", Node::List(vec![Node::text("other"), Node::text("path")]))
        }
        9 => files[at].set(b"sha1", Node::Bytes(random.bytes(20))),
        10 => {
            // A folder where a file stands.
            if let Some(path) = files[at].get("path").cloned() {
                let mut below = path;
                below.elements().map(|parts| parts.push(Node::text("below"))).unwrap_or_default();
                files[other].set(b"path", below);
            }
        }
        11 => {
            if let Some(Node::List(parts)) = files[at].get_mut("path") {
                for part in parts {
                    if let Node::Bytes(text) = part {
                        text.make_ascii_uppercase();
                    }
                }
                let changed = files[at].clone();
                files.push(changed);
            }
        }
        _ => {
            let Some(parts) = files[at].get_mut("path").and_then(Node::elements) else { return };
            let part = Node::Bytes(one_of(random, &NAMES).to_vec());
            let part_at = random.below(parts.len() as u64 + 1) as usize;
            match random.below(5) {
                0 => parts.insert(part_at, part),
                1 => parts.clear(),
                2 => parts.push(Node::Bytes(vec![b'x'; 250 + random.below(10) as usize])),
                3 => parts.extend(vec![Node::text("d"); 28 + random.below(8) as usize]),
                _ if part_at < parts.len() => parts[part_at] = part,
                _ => parts.push(part),
            }
        }
    }
}

/// Changes a file or folder of the v2 tree.
fn change_tree(info: &mut Node, random: &mut Seeded) {
    let Some(mut folder) = info.get_mut("file tree") else { return change_list(info, random) };
    // Down to some entry.
    let depth = random.below(3);
    for _ in 0..depth {
        let Node::Dict(entries) = &mut *folder else { return };
        if entries.is_empty() || entries.iter().any(|(name, _)| name.is_empty()) {
            break;
        }
        let at = random.below(entries.len() as u64) as usize;
        let Node::Dict(_) = entries[at].1 else { return };
        folder = match folder {
            Node::Dict(entries) => &mut entries[at].1,
            _ => return,
        };
    }
    if let Some(properties) = folder.get_mut("") {
        match random.below(9) {
            0 => properties.set(
                b"length",
                Node::int(*one_of(
                    random,
                    &[&0, &-1, &1, &16_384, &70_000, &(1_i64 << 46), &(1_i64 << 62)],
                )),
            ),
            1 => drop(properties.remove("length")),
            2 => drop(properties.remove("pieces root")),
            3 => properties.set(b"pieces root", Node::Bytes(random.bytes(32))),
            4 => properties
                .set(b"pieces root", Node::Bytes(random.bytes(random.clone().below(40) as usize))),
            5 => properties.set(b"pieces root", Node::Bytes(vec![0; 32])),
            6 => {
                properties.set(b"attr", Node::text(one_of(random, &["p", "x", "l", "h", "px", ""])))
            }
            7 => properties.set(b"symlink path", Node::List(vec![Node::text("a")])),
            _ => folder.set(one_of(random, &[&b"a"[..], b"x", b"\xff"]), Node::Dict(Vec::new())),
        }
        return;
    }
    let root = random.bytes(32);
    let leaf = |len: i128| {
        Node::dict([(
            "",
            Node::dict([("length", Node::int(len)), ("pieces root", Node::Bytes(root))]),
        )])
    };
    let Node::Dict(entries) = folder else { return };
    if entries.is_empty() {
        return;
    }
    let at = random.below(entries.len() as u64) as usize;
    match random.below(8) {
        0 => drop(entries.remove(at)),
        1 => entries[at].0 = one_of(random, &NAMES).to_vec(),
        2 => {
            let other = random.below(entries.len() as u64) as usize;
            entries.swap(at, other);
        }
        3 => entries[at].1 = Node::Dict(Vec::new()),
        4 => folder.set(b"", Node::dict([("length", Node::int(5))])),
        5 => folder.set(one_of(random, &NAMES), leaf(5)),
        6 => entries[at].1 = Node::int(5),
        _ => {
            let again = entries[at].clone();
            entries.insert(at, again);
        }
    }
}

/// Changes some value, whatever it means.
fn generic(torrent: &mut Node, random: &mut Seeded) {
    let at = random.below(torrent.count() as u64) as usize;
    let Some(node) = torrent.nth(at) else { return };
    let choice = random.below(10);
    match node {
        Node::Int(digits) => match choice {
            0 => digits.insert(0, '0'),
            1 => *digits = "-0".to_owned(),
            2 => digits.insert(0, '-'),
            3 => *digits = "9223372036854775808".to_owned(),
            4 => *digits = "99999999999999999999999999".to_owned(),
            5 => digits.clear(),
            6 => digits.insert(0, '+'),
            7 => *node = Node::text("5"),
            _ => *digits = random.below(1 << 20).to_string(),
        },
        Node::Bytes(text) => match choice {
            0 => *node = Node::Raw([format!("0{}:", text.len()).as_bytes(), text].concat()),
            1 => *node = Node::Raw([format!("{}:", text.len() + 1).as_bytes(), text].concat()),
            2 => *node = Node::int(5),
            3 => *node = Node::List(Vec::new()),
            4 => text.clear(),
            _ => text.push(random.below(256) as u8),
        },
        Node::List(elements) => match choice {
            0 => *node = Node::Dict(Vec::new()),
            1 => *node = Node::text("list"),
            2 => elements.clear(),
            3 => elements.push(Node::int(1)),
            4 => elements.push(Node::List(Vec::new())),
            _ => drop(elements.pop()),
        },
        Node::Dict(entries) => match choice {
            0 => *node = Node::List(Vec::new()),
            1 => *node = Node::int(1),
            2 => entries.clear(),
            3 => entries.push((b"zzz".to_vec(), Node::int(1))),
            4 => entries.insert(0, (b"zzz".to_vec(), Node::int(1))),
            5 => entries.reverse(),
            _ => drop(entries.pop()),
        },
        Node::Raw(_) => {}
    }
}

/// Changes bytes.
pub fn bytes(bytes: &mut Vec<u8>, random: &mut Seeded) {
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(8) {
            0..3 => bytes[at] ^= 1 << random.below(8),
            3 => bytes[at] = *one_of(random, &b"0123456789ilde:-".each_ref()),
            4 => bytes.insert(at, *one_of(random, &b"0123456789ilde:-".each_ref())),
            5 => drop(bytes.remove(at)),
            6 => bytes.extend(b"e"),
            _ => {
                let end = bytes.len().min(at + 1 + random.below(20) as usize);
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() as u64) as usize;
                bytes.splice(to..to, part);
            }
        }
    }
}
