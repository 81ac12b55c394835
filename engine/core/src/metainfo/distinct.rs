//! Whether all paths of a v1 list differ, found out without keeping them.
//!
//! Most lists stand in the order of a tree, and then every path need only be compared with the one before
//! it. From the first that does not, paths are remembered by a hash: 5.4 bytes per file, while the list is
//! read.

use super::list::{ListEntries, ListEntry, PlainListed};
use super::names::DEPTH_MAX;
use crate::bencode::{Strings, string_at};

/// Finds out whether all paths of a list differ.
#[derive(Debug)]
pub(super) struct Distinct<'a> {
    /// The list from its beginning.
    entries: ListEntries<'a>,
    file_count: usize,
    last: Option<Path<'a>>,
    /// What has been read, once a path did not sort behind the one before it: order proves nothing then.
    set: Option<PathSet<'a>>,
    /// Some component is mapped, so that raw bytes prove nothing.
    is_mapped: bool,
}

impl<'a> Distinct<'a> {
    /// For a list of `file_count` entries.
    pub fn new(file_count: usize, entries: ListEntries<'a>) -> Self {
        Self { entries, file_count, last: None, set: None, is_mapped: false }
    }

    /// Takes in the path of the entry that begins at `at`, below the torrent's folder.
    pub fn add(&mut self, at: usize, entry: &ListEntry<'a>, is_mapped: bool) {
        if let Some(parts) = &entry.path {
            self.take(at, Path::of(parts), is_mapped);
        }
    }

    /// As [`Distinct::add`].
    #[inline]
    pub fn add_plain(&mut self, entry: &PlainListed<'a>, is_mapped: bool) {
        self.take(entry.at, Path::of_plain(entry), is_mapped);
    }

    #[inline]
    fn take(&mut self, at: usize, path: Path<'a>, is_mapped: bool) {
        self.is_mapped |= is_mapped;
        if self.is_mapped {
            return;
        }
        if let Some(set) = &mut self.set {
            set.insert(path);
            return;
        }
        match &self.last {
            Some(last) if !last.is_before(&path) => {
                let mut set = self.set_up_to(at);
                set.insert(path);
                self.set = Some(set);
            }
            _ => self.last = Some(path),
        }
    }

    /// The paths in front of the entry that begins at `at`.
    #[cold]
    fn set_up_to(&self, at: usize) -> PathSet<'a> {
        let mut set = PathSet::new(self.file_count);
        let mut walk = self.entries.clone();
        while walk.position() < at {
            if let Some(plain) = walk.next_plain() {
                set.insert(Path::of_plain(&plain));
                continue;
            }
            let entry = walk.next().and_then(Result::ok).expect("read before");
            if let Some(parts) = entry.path.as_ref().filter(|_| !entry.is_absent()) {
                set.insert(Path::of(parts));
            }
        }
        set
    }

    /// True if no two paths are one, and no file is also a folder; false if that is not certain, and
    /// [`check_distinct`](super::names::check_distinct) has to say.
    pub fn finish(self) -> bool {
        !self.is_mapped && self.set.is_none_or(PathSet::finish)
    }
}

/// A path as it stands in the list.
#[derive(Clone, Copy, Debug)]
struct Path<'a> {
    encoded: &'a [u8],
    /// Where the text of the last name begins.
    last_text: usize,
}

impl<'a> Path<'a> {
    fn of(parts: &Strings<'a>) -> Self {
        let (encoded, last_text) = parts.encoded();
        Self { encoded, last_text }
    }

    #[inline]
    fn of_plain(entry: &PlainListed<'a>) -> Self {
        let (encoded, last_text) = entry.encoded();
        Self { encoded, last_text }
    }

    /// The encoded names of the folders, and the last name.
    #[inline]
    fn split(&self) -> (&'a [u8], &'a [u8]) {
        let (head, name) = self.encoded.split_at(self.last_text);
        // In front of a text stand its length, without leading zeros, and a colon.
        let mut digit_count = 1;
        let mut rest = name.len();
        while rest >= 10 {
            rest /= 10;
            digit_count += 1;
        }
        (&head[..head.len() - digit_count - 1], name)
    }

    /// Whether the path sorts before another by components, and is no folder of it. In a list where
    /// each path stands so to the next, no two are alike: in the order of components a file stands right
    /// before its namesake, and before the first file below it.
    #[inline]
    fn is_before(&self, other: &Self) -> bool {
        // Mostly one look tells it: they differ in the text of the other's last name, and in nothing
        // before it, lengths included.
        match first_difference(self.encoded, other.encoded) {
            Some(at) if at >= other.last_text => self.encoded[at] < other.encoded[at],
            _ => self.is_before_by_names(other),
        }
    }

    fn is_before_by_names(&self, other: &Self) -> bool {
        let (mut mine, mut others) = (names(self.encoded), names(other.encoded));
        loop {
            let (Some(mine), Some(other)) = (mine.next(), others.next()) else { return false };
            match mine.cmp(other) {
                std::cmp::Ordering::Less => return true,
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => return false,
            }
        }
    }
}

/// The names in an encoded path.
fn names(encoded: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        (at < encoded.len()).then(|| {
            let text = string_at(encoded, at);
            at = text.end;
            &encoded[text]
        })
    })
}

/// Where two texts differ first; `None` if one begins with the other.
#[inline]
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    let (a_words, b_words) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    for (at, (a, b)) in a_words.iter().zip(b_words).enumerate() {
        let difference = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if difference != 0 {
            return Some(at * 8 + difference.trailing_zeros() as usize / 8);
        }
    }
    let rest = len - len % 8;
    (rest..len).find(|&at| a[at] != b[at])
}

/// In a slot: a folder and no file.
const FOLDER: u32 = 1;
/// Files per bucket, on average: one in a hundred buckets overflows.
const FILES_PER_BUCKET: usize = 12;
/// Hashes that are put into their buckets together: so close behind each other the processor fetches many
/// of the buckets at once, and far apart each would be waited for.
const BATCH: usize = 64;

/// A cache line of hashes. What is in it is compared at a stroke, without a guess at how far to look.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket([u32; 16]);

/// Files and their folders, by hash. What is found twice may be two that have a hash in common, so the
/// set is sure only of what it has not found.
#[derive(Debug)]
struct PathSet<'a> {
    /// The upper half of a hash names the bucket; in it are 31 bits of the lower, and [`FOLDER`]. 0 is
    /// free.
    buckets: Vec<Bucket>,
    /// How many places of each bucket are taken.
    used: Vec<u8>,
    /// Hashes that are not yet looked at, with [`FOLDER`] in place of the lowest bit.
    batch: [u64; BATCH],
    batch_len: usize,
    /// Hashes for which there was no room, in the same way. A bucket that is
    /// full stays so: two that are alike either meet in it or are both here.
    more: Vec<u64>,
    /// Folders of the last path, as they stand there, and the hash of each from the outermost.
    last_folder: &'a [u8],
    last_hashes: [u64; DEPTH_MAX],
    last_hash: u64,
    is_certain: bool,
}

impl<'a> PathSet<'a> {
    fn new(file_count: usize) -> Self {
        Self {
            buckets: vec![Bucket([0; 16]); file_count / FILES_PER_BUCKET + 1],
            used: vec![0; file_count / FILES_PER_BUCKET + 1],
            batch: [0; BATCH],
            batch_len: 0,
            more: Vec::new(),
            last_folder: &[],
            last_hashes: [0; DEPTH_MAX],
            last_hash: 0,
            is_certain: true,
        }
    }

    #[inline]
    fn insert(&mut self, path: Path<'a>) {
        let (folder, name) = path.split();
        // Files of one folder mostly stand together.
        if folder != self.last_folder {
            self.enter(folder);
        }
        self.insert_hash(hash_below(self.last_hash, name), 0);
    }

    /// Takes in the folders of a path.
    fn enter(&mut self, folder: &'a [u8]) {
        let mut hash = 0;
        for (depth, name) in names(folder).enumerate() {
            hash = hash_below(hash, name);
            if self.last_hashes[depth] != hash {
                self.last_hashes[depth] = hash;
                self.insert_hash(hash, FOLDER);
            }
        }
        (self.last_folder, self.last_hash) = (folder, hash);
    }

    #[inline]
    fn insert_hash(&mut self, hash: u64, kind: u32) {
        self.batch[self.batch_len] = (hash & !u64::from(FOLDER)) | u64::from(kind);
        self.batch_len += 1;
        if self.batch_len == BATCH {
            self.settle();
        }
    }

    /// Puts what has gathered into its buckets.
    fn settle(&mut self) {
        for &hash in &self.batch[..std::mem::take(&mut self.batch_len)] {
            let at = (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize;
            let bucket = &mut self.buckets[at].0;
            let low = hash as u32;
            let slot = if low > FOLDER { low } else { low | 2 };
            // All sixteen without an early end: a few vector operations.
            let is_alike = |all: bool, found: &u32| all | ((found ^ slot) & !FOLDER == 0);
            if bucket.iter().fold(false, is_alike) {
                // Two folders that are one are no clash.
                self.is_certain &= slot & FOLDER != 0 && bucket.contains(&slot);
            } else if let Some(free) = bucket.get_mut(usize::from(self.used[at])) {
                *free = slot;
                self.used[at] += 1;
            } else {
                self.more.push(hash);
            }
        }
    }

    /// True if no two files are one and none is also a folder; false if that is not certain.
    fn finish(mut self) -> bool {
        self.settle();
        self.more.sort_unstable();
        let is_clash = |a: u64, b: u64| (a | 1) == (b | 1) && a & b & u64::from(FOLDER) == 0;
        self.is_certain && self.more.windows(2).all(|pair| !is_clash(pair[0], pair[1]))
    }
}

/// The hash of a path, by that of its folder (0 for none) and its last name.
#[inline]
fn hash_below(folder: u64, name: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * u128::from(ODD);
        (product as u64) ^ (product >> 64) as u64
    };
    let hash = folder.wrapping_add(ODD).rotate_left(name.len() as u32) ^ name.len() as u64;
    match name.last_chunk::<8>() {
        // The last eight bytes may overlap those before: together with the length nothing is left open.
        Some(last) => {
            let words = name[..name.len() - 1].as_chunks::<8>().0.iter();
            let hash = words.fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
            mix(hash, u64::from_le_bytes(*last))
        }
        None => mix(mix(hash, name.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))), ODD),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::bencode::{Encoder, Value};

    /// A list of files with these paths, all as nearly all torrents have them, or all otherwise.
    fn list(paths: &[Vec<String>], is_plain: bool) -> Vec<u8> {
        let mut out = Encoder::new();
        out.list();
        for path in paths {
            out.dict();
            if !is_plain {
                out.key(b"attr").bytes(b"x");
            }
            out.key(b"length").int(1_u64).key(b"path").list();
            path.iter().for_each(|name| {
                out.bytes(name.as_bytes());
            });
            out.end().end();
        }
        out.end();
        // As in a torrent, something comes behind it.
        [&out.finish()[..], b"e"].concat()
    }

    fn are_surely_distinct(bytes: &[u8], file_count: usize) -> bool {
        let entries = ListEntries::new(bytes, Value::at(bytes, 0)).unwrap();
        let mut distinct = Distinct::new(file_count, entries.clone());
        let mut walk = entries;
        loop {
            if let Some(plain) = walk.next_plain() {
                distinct.add_plain(&plain, false);
                continue;
            }
            let at = walk.position();
            let Some(entry) = walk.next() else { break };
            distinct.add(at, &entry.unwrap(), false);
        }
        distinct.finish()
    }

    fn paths(texts: &[&str]) -> Vec<Vec<String>> {
        let split = |text: &&str| text.split('/').map(str::to_owned).collect();
        texts.iter().map(split).collect()
    }

    #[test]
    fn what_is_twice_is_found_in_order_and_without() {
        for (texts, expected) in [
            (&["a", "b", "c"][..], true),
            (&["c", "b", "a"], true),
            (&["b", "a", "b"], false),
            (&["a", "a"], false),
            (&["x/b", "x/a", "y/a"], true),
            (&["x/b", "x/a", "y", "x/b"], false),
            // A file that is also a folder, whichever comes first, and between others.
            (&["b", "a", "a/x"], false),
            (&["b/x", "a", "b"], false),
            (&["b/x/y/z", "a", "b/x"], false),
            (&["b/x/y/z", "a", "b/x/y/z/w"], false),
            (&["b/x/y/z", "a", "b/x/y/w", "b/w"], true),
            // Alike but for where the names are cut.
            (&["z", "ab/c", "a/bc", "abc", "a/b/c"], true),
            (&["z", "image-000000000001", "image-000000000002", "image-00000000001"], true),
        ] {
            let paths = paths(texts);
            for is_plain in [true, false] {
                let bytes = list(&paths, is_plain);
                assert_eq!(are_surely_distinct(&bytes, paths.len()), expected, "{texts:?}");
            }
        }
    }

    /// A set that knew less would send such a list to the longer look, which makes every path anew.
    #[test]
    fn a_hundred_thousand_in_no_order_are_surely_distinct() {
        let name = |at: u32| vec![format!("part-{}", at / 100), format!("image-{at}.jpg")];
        // 77,777 has no divisor in common with the count: every file once, and none beside its neighbour.
        let in_folders: Vec<_> = (0..100_000).map(name).collect();
        let shuffled: Vec<_> =
            (0..100_000_u32).map(|at| name((u64::from(at) * 77_777 % 100_000) as u32)).collect();
        for mut paths in [in_folders, shuffled] {
            assert!(are_surely_distinct(&list(&paths, true), paths.len()));
            let (first, last) = (paths[0].clone(), paths.len() - 1);
            let instead = std::mem::replace(&mut paths[last], first);
            assert!(!are_surely_distinct(&list(&paths, true), paths.len()), "a namesake");
            paths[last] = vec![instead[0].clone()];
            assert!(!are_surely_distinct(&list(&paths, true), paths.len()), "a folder");
        }
    }

    /// More folders than files: there is no room for most of them in the buckets.
    #[test]
    fn folders_without_number_are_found_too() {
        let deep = |at: u32| {
            let folders = (0..20).map(move |depth| format!("{at}-{depth}"));
            folders.chain([format!("f{at}")]).collect()
        };
        let mut paths: Vec<Vec<String>> = (0..500).rev().map(deep).collect();
        assert!(are_surely_distinct(&list(&paths, true), 500));
        // A file where a folder of another is; either may have come first.
        for at in 0..500 {
            let other = (at + 200) % 500;
            let before = paths[at].clone();
            paths[at] = paths[other][..1 + at % 20].to_vec();
            assert!(!are_surely_distinct(&list(&paths, true), 500), "{at}");
            paths[at] = before;
        }
    }

    /// Names chosen so that all want one bucket: those that find no room are compared as well.
    #[test]
    fn crowding_one_bucket_hides_nothing() {
        for (again, kind, expected) in [
            (None, 0, true),
            (Some(3), 0, false),
            (Some(900), 0, false),
            (Some(900), FOLDER, false),
        ] {
            let mut set = PathSet::new(1000);
            (1..1000).for_each(|hash| set.insert_hash(hash << 1, 0));
            set.settle();
            assert_eq!(set.more.len(), 999 - 16);
            again.into_iter().for_each(|hash: u64| set.insert_hash(hash << 1, kind));
            assert_eq!(set.finish(), expected, "{again:?} {kind}");
        }
        let mut set = PathSet::new(1000);
        (1..1000).chain(1..1000).for_each(|hash| set.insert_hash(hash << 1, FOLDER));
        assert!(set.finish(), "folders have many files");
    }

    proptest! {
        /// Surely distinct is never said of what is not; and of so few, always of what is.
        #[test]
        fn the_set_says_what_a_comparison_of_all_says(
            paths in proptest::collection::vec(proptest::collection::vec("[ab]{1,2}|c{7,9}", 1..4), 1..12),
            is_plain in any::<bool>(),
        ) {
            let files: BTreeSet<&[String]> = paths.iter().map(Vec::as_slice).collect();
            let mut folders = paths.iter().flat_map(|path| (1..path.len()).map(|len| &path[..len]));
            let expected = files.len() == paths.len() && !folders.any(|folder| files.contains(folder));
            prop_assert_eq!(are_surely_distinct(&list(&paths, is_plain), paths.len()), expected);
        }
    }
}
