//! What `up` makes listings of: files found on the machine, or data made from a seed.
//!
//! The source is only ever read. Listings are put together in a staging folder on the data disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};
use crate::units;

/// Most bytes that the default story moves: enough to see rates, little enough for a laptop.
pub const SIZE_MAX_BYTES: u64 = 512 << 20;
/// Most files looked at, so that `--data /` ends.
const FILES_MAX: usize = 200_000;
/// Below this a file is small: a folder of many such files is a shape of its own.
const SMALL_LEN_BYTES: u64 = 256 << 10;

/// Where the bytes of one file of a listing come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file of the source, relative to its root.
    Source(PathBuf),
    /// Incompressible bytes from a seed.
    Seeded(u64),
}

/// One file of the source or of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// Path inside the listing (inside the source, before planning).
    pub path: PathBuf,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Its bytes.
    pub content: Content,
}

/// One listing to be made: a file when `path` of its only file is empty, else a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingPlan {
    /// Root name.
    pub name: String,
    /// Its files.
    pub files: Vec<FilePlan>,
}

impl ListingPlan {
    /// Payload in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len_bytes).sum()
    }
}

/// The chosen source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Root of a source on disk; `None` when synthetic.
    pub root: Option<PathBuf>,
    /// What people are told it is.
    pub what: String,
    /// Its readable regular files, by path.
    pub files: Vec<FilePlan>,
    /// Symlinks and special files left out.
    pub skipped_links: u64,
    /// Files left out because they cannot be read.
    pub skipped_unreadable: u64,
}

/// Chooses the source: `data` if given, `synthetic` bytes if given, else the Rust toolchain's
/// libraries, else synthetic data because there is no toolchain.
///
/// # Errors
/// [`Code::Missing`] when `data` is no folder or has no readable file.
pub fn choose(data: Option<&Path>, synthetic: Option<u64>) -> Result<Source> {
    if let Some(size) = synthetic {
        return Ok(make_synthetic(size.max(1)));
    }
    if let Some(root) = data {
        let source = scan(root, format!("{}", root.display()))?;
        if source.files.is_empty() {
            return Err(Error::new(
                Code::Missing,
                format!("{} holds no readable file", root.display()),
            )
            .cure("ringseed up --synthetic 64MiB"));
        }
        return Ok(source);
    }
    let toolchain = toolchain_libraries().and_then(|lib| {
        scan(&lib, "the Rust toolchain's libraries".to_owned()).ok().filter(|s| !s.files.is_empty())
    });
    Ok(toolchain.unwrap_or_else(|| make_synthetic(64 << 20)))
}

/// `lib/` of `rustc --print sysroot`.
fn toolchain_libraries() -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).args(["--print", "sysroot"]).stderr(Stdio::null()).output().ok()?;
    let lib = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("lib");
    lib.is_dir().then_some(lib)
}

/// Finds every readable regular file beneath `root`, without following symlinks.
///
/// # Errors
/// [`Code::Missing`] when `root` is no folder.
pub fn scan(root: &Path, what: String) -> Result<Source> {
    let root = root.canonicalize().map_err(|error| Error::io("open", root, error))?;
    if !root.is_dir() {
        return Err(Error::new(Code::Missing, format!("{} is no folder", root.display())));
    }
    let mut source = Source {
        root: Some(root.clone()),
        what,
        files: Vec::new(),
        skipped_links: 0,
        skipped_unreadable: 0,
    };
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&folder)) else {
            source.skipped_unreadable += 1;
            continue;
        };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        for name in names {
            let path = folder.join(&name);
            let full = root.join(&path);
            let Ok(kind) = std::fs::symlink_metadata(&full) else {
                source.skipped_unreadable += 1;
                continue;
            };
            // A torrent's names are UTF-8 (BEP 52).
            if kind.is_dir() && name.to_str().is_some() {
                folders.push(path);
            } else if !kind.is_file() || name.to_str().is_none() {
                source.skipped_links += 1;
            } else if File::open(&full).is_err() {
                source.skipped_unreadable += 1;
            } else if source.files.len() < FILES_MAX {
                let content = Content::Source(path.clone());
                source.files.push(FilePlan { path, len_bytes: kind.len(), content });
            }
        }
    }
    source.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(source)
}

/// Seeded files of every shape that add up to `size` bytes: a big one, some middling, many small.
fn make_synthetic(size: u64) -> Source {
    let mut files = Vec::new();
    let mut left = size;
    let mut add = |path: String, len_bytes: u64| {
        let len_bytes = len_bytes.min(left);
        left -= len_bytes;
        let content = Content::Seeded(files.len() as u64 + 1);
        files.push(FilePlan { path: path.into(), len_bytes, content });
    };
    add("big.bin".to_owned(), size * 3 / 8 + 1);
    for index in 0..8 {
        add(format!("middling/{index}.bin"), size / 16 + 13 * index + 1);
    }
    for index in 0..48 {
        let folder = ["small", "small/a", "small/a/b"][index as usize % 3];
        add(format!("{folder}/{index:02}.bin"), (size / 1024).min(SMALL_LEN_BYTES - 1) + index);
    }
    add("rest.bin".to_owned(), u64::MAX);
    files.retain(|file| file.len_bytes > 0);
    Source {
        root: None,
        what: "seeded, incompressible data".to_owned(),
        files,
        skipped_links: 0,
        skipped_unreadable: 0,
    }
}

/// Chooses files of at most `size_max` bytes in all: small ones up to a quarter of it, then the
/// largest that fit, so that every shape is there.
fn choose_files(mut files: Vec<FilePlan>, size_max: u64) -> Vec<FilePlan> {
    files.sort_by(|a, b| a.len_bytes.cmp(&b.len_bytes).then_with(|| a.path.cmp(&b.path)));
    let mut left = size_max;
    let small = files.partition_point(|file| file.len_bytes < SMALL_LEN_BYTES);
    let large = files.split_off(small);
    let (mut chosen, mut rest) = (Vec::new(), large);
    for file in files {
        if left.saturating_sub(file.len_bytes) >= size_max - size_max / 4 {
            left -= file.len_bytes;
            chosen.push(file);
        } else {
            rest.push(file);
        }
    }
    rest.sort_by(|a, b| b.len_bytes.cmp(&a.len_bytes).then_with(|| a.path.cmp(&b.path)));
    for file in rest {
        if file.len_bytes <= left {
            left -= file.len_bytes;
            chosen.push(file);
        }
    }
    chosen
}

/// Puts at most `size_max` bytes of `source` into `count` listings of mixed shape: the largest files
/// alone, one folder of the many small files (and an empty one), the others in folders that keep
/// their nesting. Fewer listings come out when there are fewer files.
pub fn plan(source: &Source, count: usize, size_max: u64) -> Vec<ListingPlan> {
    let mut files = choose_files(source.files.clone(), size_max);
    files.sort_by(|a, b| b.len_bytes.cmp(&a.len_bytes).then_with(|| a.path.cmp(&b.path)));
    if files.is_empty() || count == 0 {
        return Vec::new();
    }
    let mut listings = Vec::new();
    let alone = if count == 1 { 0 } else { (count / 4).max(1).min(files.len()) };
    for file in files.drain(..alone) {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        listings.push(ListingPlan { name, files: vec![FilePlan { path: PathBuf::new(), ..file }] });
    }
    let folders = (count - alone).min(files.len());
    let mut groups: Vec<Vec<FilePlan>> = vec![Vec::new(); folders];
    let mut sizes = vec![0; folders];
    // Half of the small files make one listing, where there are several to choose from.
    let small = files.partition_point(|file| file.len_bytes >= SMALL_LEN_BYTES);
    let smallest = files.len() - (files.len() - small) / 2;
    if folders > 1 && smallest >= folders - 1 {
        groups[folders - 1] = files.split_off(smallest);
        sizes[folders - 1] = u64::MAX;
    }
    // Each file to the group that has least, the largest first.
    for file in files {
        if let Some(least) = (0..folders).min_by_key(|group| (sizes[*group], *group)) {
            sizes[least] = u64::saturating_add(sizes[least], file.len_bytes.max(1));
            groups[least].push(file);
        }
    }
    groups.retain(|group| !group.is_empty());
    for (index, mut group) in groups.into_iter().enumerate() {
        group.sort_by(|a, b| a.path.cmp(&b.path));
        if index == 0 {
            let content = Content::Seeded(0);
            group.push(FilePlan { path: "empty".into(), len_bytes: 0, content });
        }
        if index == 1 {
            let deep =
                |file: FilePlan| FilePlan { path: Path::new("a/b/c").join(&file.path), ..file };
            group = group.into_iter().map(deep).collect();
        }
        let number = listings.len() + 1;
        listings.push(ListingPlan { name: format!("files-{number:02}"), files: group });
    }
    make_names_unique(&mut listings);
    listings
}

fn make_names_unique(listings: &mut [ListingPlan]) {
    let mut seen = BTreeMap::new();
    for (index, listing) in listings.iter_mut().enumerate() {
        if seen.insert(listing.name.clone(), index).is_some() {
            listing.name = format!("{:02}-{}", index + 1, listing.name);
        }
    }
}

/// Writes `listing` below `staging` and returns the path to offer.
///
/// # Errors
/// I/O errors; [`Code::SourceChanged`] when a source file has another length than when scanned.
pub fn stage(listing: &ListingPlan, source: &Source, staging: &Path) -> Result<PathBuf> {
    let root = staging.join(&listing.name);
    for file in &listing.files {
        let to =
            if file.path.as_os_str().is_empty() { root.clone() } else { root.join(&file.path) };
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
        }
        match (&file.content, &source.root) {
            (Content::Source(path), Some(source_root)) => {
                let from = source_root.join(path);
                // Reflinks where the file system can; opens the source for reading only.
                let copied =
                    std::fs::copy(&from, &to).map_err(|error| Error::io("copy", &from, error))?;
                if copied != file.len_bytes {
                    return Err(Error::new(
                        Code::SourceChanged,
                        format!("{} changed while it was read", from.display()),
                    )
                    .why(format!("{} bytes became {copied}", file.len_bytes)));
                }
            }
            (Content::Source(_), None) => return Err(Error::bug("a source file without a root")),
            (Content::Seeded(seed), _) => write_seeded(&to, file.len_bytes, *seed)?,
        }
    }
    Ok(root)
}

/// splitmix64: fast, seeded, and incompressible enough.
fn write_seeded(path: &Path, len_bytes: u64, seed: u64) -> Result<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed;
    let mut buffer = vec![0u8; 1 << 20];
    let mut left = len_bytes;
    let write = |error| Error::io("write", path, error);
    let mut file = File::create(path).map_err(write)?;
    while left > 0 {
        for word in buffer.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        let count = left.min(buffer.len() as u64);
        file.write_all(&buffer[..count as usize]).map_err(write)?;
        left -= count;
    }
    Ok(())
}

/// A digest over names, lengths, times of change and bytes of the source's files that `plans` use,
/// and over names, lengths and times of all others.
///
/// # Errors
/// I/O errors: a file that vanished counts as changed too.
pub fn digest(source: &Source, plans: &[ListingPlan]) -> Result<Option<String>> {
    let Some(root) = &source.root else { return Ok(None) };
    let mut used = std::collections::BTreeSet::new();
    for file in plans.iter().flat_map(|plan| &plan.files) {
        if let Content::Source(path) = &file.content {
            used.insert(path);
        }
    }
    let rescanned = scan(root, String::new())?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    for file in &rescanned.files {
        let full = root.join(&file.path);
        let read = |error| Error::io("read", &full, error);
        let meta = std::fs::metadata(&full).map_err(read)?;
        digest.update(file.path.as_os_str().as_encoded_bytes());
        digest.update([0]);
        digest.update(file.len_bytes.to_le_bytes());
        let modified =
            meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        digest.update(modified.unwrap_or_default().as_nanos().to_le_bytes());
        if used.contains(&file.path) {
            let mut opened = File::open(&full).map_err(read)?;
            loop {
                let count = opened.read(&mut buffer).map_err(read)?;
                if count == 0 {
                    break;
                }
                digest.update(&buffer[..count]);
            }
        }
    }
    Ok(Some(units::hex(&digest.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, len_bytes: u64) -> FilePlan {
        FilePlan { path: path.into(), len_bytes, content: Content::Source(path.into()) }
    }

    fn source(files: Vec<FilePlan>) -> Source {
        Source { root: None, what: String::new(), files, skipped_links: 0, skipped_unreadable: 0 }
    }

    #[test]
    fn a_toolchain_gives_every_shape_below_the_cap() {
        let mut files = vec![
            file("libLLVM.so", 190 << 20),
            file("librustc_driver.so", 146 << 20),
            file("rustlib/x/lib/libcore.rmeta", 60 << 20),
            file("rustlib/x/lib/libstd.rlib", 11 << 20),
            file("rustlib/x/bin/lld", 120 << 20),
        ];
        files.extend((0..40).map(|i| file(&format!("rustlib/x/lib/lib{i}.rlib"), (1 << 20) + i)));
        files.extend((0..40).map(|i| file(&format!("rustlib/etc/{i}.py"), 1000 * i + 1)));
        let plans = plan(&source(files), 16, SIZE_MAX_BYTES);
        assert_eq!(plans.len(), 16);
        let total: u64 = plans.iter().map(ListingPlan::len_bytes).sum();
        assert!(total <= SIZE_MAX_BYTES && total > SIZE_MAX_BYTES * 3 / 4, "{total}");
        assert_eq!(plans[0].name, "libLLVM.so");
        assert!(plans[0].files[0].path.as_os_str().is_empty(), "the largest is a file, no folder");
        let all = || plans.iter().flat_map(|plan| &plan.files);
        assert!(all().any(|file| file.len_bytes == 0), "an empty file");
        assert!(all().any(|file| file.path.components().count() > 3), "a nested folder");
        assert!(all().any(|file| file.len_bytes % 16384 != 0), "an odd length");
        assert!(plans.last().unwrap().files.len() >= 20, "many small files");
    }

    #[test]
    fn no_file_is_used_twice_and_no_two_listings_share_a_name() {
        let files: Vec<_> = (0..50).map(|i| file(&format!("{}/same", i), 1 << (i % 24))).collect();
        for count in [1, 2, 3, 16, 49, 50, 60] {
            let plans = plan(&source(files.clone()), count, u64::MAX);
            assert!(plans.len() <= count && !plans.is_empty(), "{count}");
            let mut used: Vec<_> = plans
                .iter()
                .flat_map(|plan| &plan.files)
                .filter(|file| matches!(file.content, Content::Source(_)))
                .map(|file| format!("{:?}", file.content))
                .collect();
            used.sort();
            let before = used.len();
            used.dedup();
            assert_eq!((used.len(), before), (50, 50), "{count}");
            let mut names: Vec<_> = plans.iter().map(|plan| &plan.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), plans.len());
        }
    }

    #[test]
    fn few_files_make_few_listings() {
        assert_eq!(plan(&source(vec![file("only", 5)]), 16, 100).len(), 1);
        assert!(plan(&source(vec![]), 16, 100).is_empty());
        assert!(plan(&source(vec![file("too big", 1 << 20)]), 16, 100).is_empty());
    }

    #[test]
    fn synthetic_data_has_the_size_asked_for() {
        for size in [1, 1000, 1 << 20, 64 << 20, 1 << 30] {
            let made = make_synthetic(size);
            assert_eq!(made.files.iter().map(|file| file.len_bytes).sum::<u64>(), size);
            assert!(!plan(&made, 16, size).is_empty());
        }
        assert_eq!(plan(&make_synthetic(64 << 20), 16, 64 << 20).len(), 16);
    }

    #[test]
    fn staging_copies_and_the_source_stays_as_it_was() {
        let base = std::env::temp_dir().join(format!("rs-source-{}", std::process::id()));
        let root = base.join("src");
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        std::fs::write(root.join("a"), vec![1; 300_000]).unwrap();
        std::fs::write(root.join("deep/er/b"), b"b").unwrap();
        std::os::unix::fs::symlink("a", root.join("link")).unwrap();
        let source = scan(&root, "test".into()).unwrap();
        assert_eq!((source.files.len(), source.skipped_links), (2, 1));
        let plans = plan(&source, 2, u64::MAX);
        let before = digest(&source, &plans).unwrap();
        let staged: Vec<_> =
            plans.iter().map(|plan| stage(plan, &source, &base.join("stage")).unwrap()).collect();
        assert_eq!(std::fs::read(&staged[0]).unwrap(), vec![1; 300_000]);
        assert_eq!(std::fs::read(staged[1].join("deep/er/b")).unwrap(), b"b");
        assert_eq!(std::fs::read(staged[1].join("empty")).unwrap(), b"");
        assert_eq!(digest(&source, &plans).unwrap(), before);
        std::fs::write(root.join("deep/er/b"), b"c").unwrap();
        assert_ne!(digest(&source, &plans).unwrap(), before);
        std::fs::remove_dir_all(base).unwrap();
    }
}
