//! Verifies every byte of a datatrust's payload by a path that shares no code with the engine: its own
//! reader of info dicts, the `sha2` crate, one SHA-256 stream at a time, and reads that bypass the
//! page cache. Only the infohash, taken from the ledger, is believed.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES, ExtentMut};
use rustix::fs::{Advice, OFlags};
use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};
use crate::units;

const BLOCK_LEN: usize = 16 << 10;

/// What was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files read to their end.
    pub files: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Of `bytes`, those read by O_DIRECT; the others after the page cache was told to drop them.
    pub direct_bytes: u64,
}

impl std::ops::AddAssign for Verified {
    fn add_assign(&mut self, other: Verified) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.direct_bytes += other.direct_bytes;
    }
}

/// Verifies the listing `infohash`, whose root name lies in `folder`, against its own `info` dict.
/// Calls `progress` with the bytes of each read.
///
/// # Errors
/// [`Code::Damaged`] naming the file and what differs.
pub fn listing(
    infohash: &[u8; 32],
    info: &[u8],
    folder: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Verified> {
    let damaged = |what: String| Error::new(Code::Damaged, what);
    let found: [u8; 32] = Sha256::digest(info).into();
    if &found != infohash {
        return Err(damaged(format!(
            "the info dict hashes to {} and not to the agreed {}",
            units::short_hex(&found),
            units::short_hex(infohash)
        )));
    }
    let described = describe(info).ok_or_else(|| {
        damaged(format!("info dict {} has no file tree", units::short_hex(infohash)))
    })?;
    let arena = Arena::new(EXTENT_LEN_BYTES).map_err(|e| Error::io("allocate for", folder, e))?;
    let mut buffer = arena.try_take().ok_or_else(|| Error::bug("a fresh arena lends nothing"))?;
    let mut total = Verified::default();
    for file in described {
        let path = folder.join(&file.path);
        let read = read_root(&path, &mut buffer, &mut progress)?;
        if (read.bytes, read.root) != (file.len_bytes, file.root) {
            return Err(damaged(format!("{} is not what the market agreed on", path.display()))
                .why(format!(
                    "{} bytes with root {} were expected, {} with {} were found",
                    file.len_bytes,
                    file.root.map(|root| units::short_hex(&root)).unwrap_or_default(),
                    read.bytes,
                    read.root.map(|root| units::short_hex(&root)).unwrap_or_default(),
                )));
        }
        total += Verified { files: 1, bytes: read.bytes, direct_bytes: read.direct_bytes };
    }
    Ok(total)
}

struct ReadFile {
    bytes: u64,
    direct_bytes: u64,
    root: Option<[u8; 32]>,
}

/// Reads a file past the page cache and returns the root of its Merkle tree (BEP 52).
fn read_root(
    path: &Path,
    buffer: &mut ExtentMut,
    progress: &mut impl FnMut(u64),
) -> Result<ReadFile> {
    let failed = |error| Error::io("read", path, error);
    let direct =
        OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    let (mut file, mut is_direct) = match direct {
        Ok(file) => (file, true),
        Err(_) => (File::open(path).map_err(failed)?, false),
    };
    let mut tree = Tree::default();
    let (mut bytes, mut direct_bytes) = (0, 0);
    loop {
        let count = match file.read(&mut buffer[..]) {
            Ok(count) => count,
            // File systems may take the flag and refuse the read.
            Err(error) if is_direct && error.raw_os_error() == Some(22) => {
                is_direct = false;
                file = File::open(path).map_err(failed)?;
                rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
                    .map_err(|e| failed(e.into()))?;
                std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(bytes)).map_err(failed)?;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        if count == 0 {
            break;
        }
        for leaf in buffer[..count].chunks(BLOCK_LEN) {
            tree.push(Sha256::digest(leaf).into());
        }
        bytes += count as u64;
        if is_direct {
            direct_bytes += count as u64;
        }
        progress(count as u64);
        // A read that ends inside a leaf is the file's end: only there O_DIRECT is short.
        if count % BLOCK_LEN != 0 {
            let mut rest = [0; 1];
            let at_end = std::fs::metadata(path).map_err(failed)?.len() == bytes
                || (!is_direct && file.read(&mut rest).map_err(failed)? == 0);
            if !at_end {
                return Err(Error::new(
                    Code::Io,
                    format!("a read of {} was short", path.display()),
                ));
            }
            break;
        }
    }
    Ok(ReadFile { bytes, direct_bytes, root: tree.root() })
}

/// A Merkle tree that grows leaf by leaf; missing leaves are zeros (BEP 52).
#[derive(Default)]
struct Tree {
    /// Full subtrees, by height: `levels[h]` covers 2^h leaves and waits for its right sibling.
    levels: Vec<Option<[u8; 32]>>,
    leaf_count: u64,
}

impl Tree {
    fn push(&mut self, leaf: [u8; 32]) {
        self.leaf_count += 1;
        let mut node = leaf;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(None);
            }
            match self.levels[level].take() {
                None => {
                    self.levels[level] = Some(node);
                    return;
                }
                Some(left) => node = pair(&left, &node),
            }
        }
    }

    fn root(self) -> Option<[u8; 32]> {
        if self.leaf_count == 0 {
            return None;
        }
        let height = self.leaf_count.next_power_of_two().trailing_zeros() as usize;
        let mut pad = [0; 32];
        let mut right: Option<[u8; 32]> = None;
        for level in 0..height {
            let left = self.levels.get(level).copied().flatten();
            right = match (left, right) {
                (Some(left), Some(right)) => Some(pair(&left, &right)),
                (Some(left), None) => Some(pair(&left, &pad)),
                (None, Some(right)) => Some(pair(&right, &pad)),
                (None, None) => None,
            };
            pad = pair(&pad, &pad);
        }
        right.or_else(|| self.levels.get(height).copied().flatten())
    }
}

fn pair(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(left);
    digest.update(right);
    digest.finalize().into()
}

/// A file that an info dict describes.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    path: PathBuf,
    len_bytes: u64,
    root: Option<[u8; 32]>,
}

/// Reads name and file tree out of an info dict (BEP 52). `None` when it has another shape. A tree
/// with one file of the torrent's name is that file alone; else the name is a folder.
fn describe(info: &[u8]) -> Option<Vec<Described>> {
    let mut parser = Bencode { rest: info, depth: 0 };
    let Value::Dict(entries) = parser.value()? else { return None };
    let get = |key: &[u8]| entries.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
    let Value::Bytes(name) = get(b"name")? else { return None };
    let Value::Dict(tree) = get(b"file tree")? else { return None };
    let mut files = Vec::new();
    walk(tree, Path::new(""), &mut files)?;
    let name = Path::new(std::str::from_utf8(name).ok()?);
    let is_single = files.len() == 1 && files[0].path == name;
    for file in &mut files {
        if !is_single {
            file.path = name.join(&file.path);
        }
        // Our own eyes too: nothing outside the folder is ever opened.
        if !file.path.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
    }
    Some(files)
}

fn walk(tree: &[(&[u8], Value<'_>)], at: &Path, files: &mut Vec<Described>) -> Option<()> {
    for (name, value) in tree {
        let Value::Dict(entries) = value else { return None };
        if name.is_empty() {
            let get =
                |key: &[u8]| entries.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
            let Value::Int(len_bytes) = get(b"length")? else { return None };
            let root = match get(b"pieces root") {
                Some(Value::Bytes(root)) => Some(<[u8; 32]>::try_from(*root).ok()?),
                _ => None,
            };
            let len_bytes = u64::try_from(*len_bytes).ok()?;
            files.push(Described { path: at.to_owned(), len_bytes, root });
        } else {
            walk(entries, &at.join(std::str::from_utf8(name).ok()?), files)?;
        }
    }
    Some(())
}

enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    Dict(Vec<(&'a [u8], Value<'a>)>),
    List,
}

struct Bencode<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Bencode<'a> {
    fn value(&mut self) -> Option<Value<'a>> {
        match *self.rest.first()? {
            b'i' => {
                self.rest = &self.rest[1..];
                Some(Value::Int(self.number(b'e')?))
            }
            b'l' => self.nested(|parser| {
                while parser.rest.first()? != &b'e' {
                    parser.value()?;
                }
                Some(Value::List)
            }),
            b'd' => self.nested(|parser| {
                let mut entries = Vec::new();
                while parser.rest.first()? != &b'e' {
                    let key = parser.bytes()?;
                    entries.push((key, parser.value()?));
                }
                Some(Value::Dict(entries))
            }),
            _ => Some(Value::Bytes(self.bytes()?)),
        }
    }

    fn nested(&mut self, inner: impl FnOnce(&mut Self) -> Option<Value<'a>>) -> Option<Value<'a>> {
        self.depth += 1;
        if self.depth > 256 {
            return None;
        }
        self.rest = &self.rest[1..];
        let value = inner(self)?;
        self.rest = self.rest.get(1..)?;
        self.depth -= 1;
        Some(value)
    }

    fn number(&mut self, end: u8) -> Option<i64> {
        let at = self.rest.iter().position(|byte| *byte == end)?;
        let number = std::str::from_utf8(&self.rest[..at]).ok()?.parse().ok()?;
        self.rest = &self.rest[at + 1..];
        Some(number)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number(b':')?).ok()?;
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of BEP 52, written down as it stands: pad to a power of two, hash in pairs.
    fn root_by_definition(mut leaves: Vec<[u8; 32]>) -> Option<[u8; 32]> {
        if leaves.is_empty() {
            return None;
        }
        leaves.resize(leaves.len().next_power_of_two(), [0; 32]);
        while leaves.len() > 1 {
            leaves = leaves.chunks(2).map(|two| pair(&two[0], &two[1])).collect();
        }
        Some(leaves[0])
    }

    #[test]
    fn the_growing_tree_is_the_tree_of_the_definition() {
        for count in 0..70u8 {
            let leaves: Vec<[u8; 32]> = (0..count).map(|index| [index; 32]).collect();
            let mut tree = Tree::default();
            leaves.iter().for_each(|leaf| tree.push(*leaf));
            assert_eq!(tree.root(), root_by_definition(leaves), "{count}");
        }
    }

    fn torrent(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut info = b"d9:file treed".to_vec();
        for (name, content) in files {
            let leaves =
                content.chunks(BLOCK_LEN).map(|leaf| Sha256::digest(leaf).into()).collect();
            info.extend(format!("{}:{name}d0:d6:lengthi{}e", name.len(), content.len()).bytes());
            if let Some(root) = root_by_definition(leaves) {
                info.extend(b"11:pieces root32:");
                info.extend(root);
            }
            info.extend(b"ee");
        }
        info.extend(b"e12:meta versioni2e4:name1:n12:piece lengthi16384ee");
        info
    }

    #[test]
    fn right_bytes_pass_and_one_wrong_bit_does_not() {
        let dir = std::env::temp_dir().join(format!("rs-verify-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("n")).unwrap();
        let large: Vec<u8> = (0..600_001u32).map(|i| (i * 7 % 251) as u8).collect();
        let files: [(&str, &[u8]); 3] = [("a", &large), ("b", b"x"), ("e", b"")];
        for (name, content) in files {
            std::fs::write(dir.join("n").join(name), content).unwrap();
        }
        let info = torrent(&files);
        let hash: [u8; 32] = Sha256::digest(&info).into();
        let mut seen = 0;
        let verified = listing(&hash, &info, &dir, |bytes| seen += bytes).unwrap();
        assert_eq!((verified.files, verified.bytes, seen), (3, 600_002, 600_002));

        let mut wrong = large.clone();
        wrong[599_999] ^= 1;
        std::fs::write(dir.join("n/a"), &wrong).unwrap();
        assert_eq!(listing(&hash, &info, &dir, |_| ()).unwrap_err().code, Code::Damaged);
        std::fs::write(dir.join("n/a"), [&large[..], b"tail"].concat()).unwrap();
        assert_eq!(listing(&hash, &info, &dir, |_| ()).unwrap_err().code, Code::Damaged);
        std::fs::write(dir.join("n/a"), &large[..BLOCK_LEN]).unwrap();
        assert_eq!(listing(&hash, &info, &dir, |_| ()).unwrap_err().code, Code::Damaged);
        assert_eq!(listing(&[7; 32], &info, &dir, |_| ()).unwrap_err().code, Code::Damaged);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn hostile_info_dicts_are_no_description() {
        let deep = [vec![b'l'; 10_000], vec![b'e'; 10_000]].concat();
        for bad in [&b""[..], b"d", b"d4:name99999999999:x", b"i1e", &deep, b"d4:name1:ne"] {
            assert_eq!(describe(bad), None);
        }
        assert_eq!(describe(&torrent(&[("..", b"x")])), None);
    }
}
