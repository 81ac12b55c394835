//! Seeded, incompressible test data and digests of whole trees.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// A small seeded generator (splitmix64): the same seed gives the same bytes on every machine.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// `len_bytes` random bytes.
    pub fn bytes(&mut self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len_bytes + 8);
        while bytes.len() < len_bytes {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len_bytes);
        bytes
    }
}

/// Writes a file of `len_bytes` seeded bytes, with its parent folders.
///
/// # Panics
/// When it cannot be written.
pub fn write_file(path: &Path, len_bytes: u64, seed: u64) {
    fs::create_dir_all(path.parent().expect("a file has a parent")).expect("folder");
    let mut file = fs::File::create(path).expect("test file");
    let mut seeded = Seeded::new(seed);
    let mut left = len_bytes;
    while left > 0 {
        let chunk = left.min(1 << 20);
        file.write_all(&seeded.bytes(chunk as usize)).expect("test data");
        left -= chunk;
    }
}

/// A folder of mixed shape: one larger file, an empty one, a nested one, odd lengths.
pub fn write_mixed_tree(root: &Path, seed: u64) {
    write_file(&root.join("large.bin"), 3 * 1024 * 1024 + 17, seed);
    write_file(&root.join("empty"), 0, seed);
    write_file(&root.join("a/deep/nested/file.dat"), 65_537, seed + 1);
    write_file(&root.join("a/one-byte"), 1, seed + 2);
    for index in 0..12 {
        write_file(
            &root.join(format!("many/{index:02}.txt")),
            1_000 * index + 3,
            seed + 10 + index,
        );
    }
}

/// SHA-256 of every file beneath `root` by relative path, folders and symlinks included by name, so
/// that two trees are equal exactly when their maps are.
///
/// # Panics
/// When something cannot be read.
pub fn digest_tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
    let kind = fs::symlink_metadata(at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
    let name = at.strip_prefix(root).expect("beneath").to_string_lossy().into_owned();
    if kind.is_dir() {
        found.insert(format!("{name}/"), String::new());
        for entry in fs::read_dir(at).expect("readable folder") {
            walk(root, &entry.expect("entry").path(), found);
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(at).expect("symlink");
        found.insert(name, format!("-> {}", target.display()));
    } else {
        found.insert(name, digest_file(at));
    }
}

/// SHA-256 of one file in hex.
///
/// # Panics
/// When it cannot be read.
pub fn digest_file(path: &Path) -> String {
    let mut file =
        fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).expect("readable file");
        if count == 0 {
            return digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        }
        digest.update(&buffer[..count]);
    }
}
