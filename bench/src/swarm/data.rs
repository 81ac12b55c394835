//! What is moved: files of seeded noise, their torrents, and the digests that every copy is judged by.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;
use ringseed_engine::offline::{self, CreateOptions};
use sha2::{Digest as _, Sha256};

use super::child::is_interrupted;
use crate::hash::noise;

/// Noise is made, read and hashed in steps of this, in bytes.
const STEP: usize = 4 << 20;

/// A file of the payload.
struct Entry {
    /// Beneath the root folder.
    path: PathBuf,
    len_bytes: u64,
    sha256: [u8; 32],
}

/// A payload on disk.
pub struct Payload {
    /// Folder that holds the torrents' root names.
    pub root: PathBuf,
    /// The `.torrent` files.
    pub torrents: Vec<PathBuf>,
    /// Kind of all of them.
    pub kind: Kind,
    /// Length of all files, bytes.
    pub len_bytes: u64,
    entries: Vec<Entry>,
}

/// The files of one torrent: its root name, and the lengths of its files; one length and `is_folder`
/// false is a torrent of a single file.
pub struct Plan {
    pub name: String,
    pub lens: Vec<u64>,
    pub is_folder: bool,
}

impl Plan {
    /// A single file.
    pub fn file(name: &str, len_bytes: u64) -> Plan {
        Plan { name: name.to_owned(), lens: vec![len_bytes], is_folder: false }
    }

    /// A folder of files.
    pub fn folder(name: &str, lens: Vec<u64>) -> Plan {
        Plan { name: name.to_owned(), lens, is_folder: true }
    }
}

/// Seeded lengths in `range`, odd ones if wanted.
pub fn random_lens(count: usize, range: std::ops::RangeInclusive<u64>, seed: u64) -> Vec<u64> {
    let width = range.end() - range.start() + 1;
    let words = noise(count * 8, seed);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight"));
    words.chunks_exact(8).map(|bytes| range.start() + word(bytes) % width).collect()
}

impl Payload {
    /// Writes the files beneath `dir` and makes a torrent of each plan.
    ///
    /// # Errors
    /// What the file system says.
    pub fn make(
        dir: &Path,
        kind: Kind,
        piece_len_bytes: u64,
        plans: &[Plan],
        seed: u64,
    ) -> io::Result<Payload> {
        let root = dir.join("source");
        let torrents = dir.join(format!("torrents-{}", kind_name(kind)));
        fs::create_dir_all(&root)?;
        fs::create_dir_all(&torrents)?;
        let mut payload = Payload {
            root: root.clone(),
            torrents: Vec::new(),
            kind,
            len_bytes: 0,
            entries: Vec::new(),
        };
        let mut number = seed << 32;
        for plan in plans {
            for (at, &len_bytes) in plan.lens.iter().enumerate() {
                let path = match plan.is_folder {
                    // A folder of ten thousand is split, as people's folders are.
                    true => PathBuf::from(&plan.name).join(format!("{:02}/{at:05}.bin", at / 256)),
                    false => PathBuf::from(&plan.name),
                };
                number += 1;
                let sha256 = write_noise(&root.join(&path), len_bytes, number)?;
                payload.entries.push(Entry { path, len_bytes, sha256 });
                payload.len_bytes += len_bytes;
            }
        }
        payload.add_torrents(&torrents, piece_len_bytes, plans)?;
        Ok(payload)
    }

    /// The same files with torrents of another kind.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of_kind(self, kind: Kind, piece_len_bytes: u64, plans: &[Plan]) -> io::Result<Payload> {
        let dir = self.root.parent().expect("beneath the scratch folder");
        let torrents = dir.join(format!("torrents-{}", kind_name(kind)));
        fs::create_dir_all(&torrents)?;
        let mut payload = Payload { torrents: Vec::new(), kind, ..self };
        payload.add_torrents(&torrents, piece_len_bytes, plans)?;
        Ok(payload)
    }

    fn add_torrents(&mut self, into: &Path, piece_len: u64, plans: &[Plan]) -> io::Result<()> {
        for plan in plans {
            let options = CreateOptions {
                kind: self.kind,
                piece_len_bytes: Some(piece_len),
                ..CreateOptions::default()
            };
            let made = offline::create(&self.root.join(&plan.name), &options, &|_, _| {})
                .map_err(io::Error::other)?;
            let path = into.join(format!("{}.torrent", plan.name));
            fs::write(&path, made.metainfo.encode())?;
            self.torrents.push(path);
        }
        Ok(())
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.entries.len()
    }

    /// The first torrent, parsed.
    ///
    /// # Panics
    /// When it is gone: we made it.
    pub fn metainfo(&self) -> Metainfo {
        let bytes = fs::read(&self.torrents[0]).expect("it was made before");
        Metainfo::parse(&bytes).expect("we made it")
    }

    /// Reads all files, so that the page cache has them.
    ///
    /// # Errors
    /// What reading says.
    pub fn warm(&self) -> io::Result<()> {
        let mut buf = vec![0; STEP];
        for entry in &self.entries {
            let mut file = File::open(self.root.join(&entry.path))?;
            while file.read(&mut buf)? > 0 {}
        }
        Ok(())
    }

    /// Drops all files from the page cache; whether all caches of the machine were dropped, for which one
    /// must be root.
    ///
    /// # Errors
    /// What the system says.
    pub fn cool(&self) -> io::Result<bool> {
        for entry in &self.entries {
            ringseed_sys::file::drop_cache(File::open(self.root.join(&entry.path))?.as_fd())?;
        }
        rustix::fs::sync();
        Ok(fs::write("/proc/sys/vm/drop_caches", "3").is_ok())
    }

    /// Compares a copy with the source by SHA-256 of another library than the one that is measured.
    ///
    /// # Errors
    /// The first file that differs.
    pub fn verify(&self, folder: &Path) -> Result<(), String> {
        let next = AtomicUsize::new(0);
        let check = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(entry) = self.entries.get(at) else { return Ok(()) };
                let path = folder.join(&entry.path);
                let (len_bytes, sha256) =
                    digest(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                if len_bytes != entry.len_bytes || sha256 != entry.sha256 {
                    return Err(format!("{} is not what was sent", path.display()));
                }
            }
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(check);
            let here = check();
            here.and(other.join().expect("it does not panic"))
        })
    }
}

/// Name of a kind.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::V1 => "v1",
        Kind::V2 => "v2",
        Kind::Hybrid => "hybrid",
    }
}

fn write_noise(path: &Path, len_bytes: u64, seed: u64) -> io::Result<[u8; 32]> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = BufWriter::with_capacity(STEP, File::create(path)?);
    let (mut left, mut sha256) = (len_bytes, Sha256::new());
    for step in 0u64.. {
        if left == 0 {
            break;
        }
        if is_interrupted() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let chunk = noise(left.min(STEP as u64) as usize, seed.wrapping_mul(0x9e37) ^ (step << 40));
        sha256.update(&chunk);
        file.write_all(&chunk)?;
        left -= chunk.len() as u64;
    }
    file.flush()?;
    Ok(sha256.finalize().into())
}

fn digest(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let (mut file, mut sha256, mut len_bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut buf = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buf)?;
        if count == 0 {
            return Ok((len_bytes, sha256.finalize().into()));
        }
        if is_interrupted() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        sha256.update(&buf[..count]);
        len_bytes += count as u64;
    }
}

/// A length such as `4GiB`, `256MiB`, `64KiB` or plain bytes.
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let found = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = found.unwrap_or((text, &0));
    let number: u64 = number.trim().parse().map_err(|_| format!("{text} is no size"))?;
    number.checked_shl(*shift).filter(|&bytes| bytes > 0).ok_or(format!("{text} is no size"))
}

/// A length for people.
pub fn size_text(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
        0x10_0000.. => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.0} KiB", bytes as f64 / 1024.0),
    }
}

/// Free bytes of the file system that holds `dir`.
pub fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |found| found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_with_one_wrong_byte_is_refused() {
        let dir = std::env::temp_dir().join(format!("bench-data-{}", std::process::id()));
        let plans = [Plan::folder("many", random_lens(20, 1..=70_000, 7))];
        let payload = Payload::make(&dir, Kind::V1, 16 << 10, &plans, 1).unwrap();
        assert_eq!(payload.files(), 20);
        payload.verify(&payload.root).unwrap();
        let path = payload.root.join("many/00/00007.bin");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(payload.verify(&payload.root).unwrap_err().contains("00007"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        assert!(parse_size("4GB").is_err() && parse_size("0MiB").is_err());
    }

    #[test]
    fn lengths_stay_in_their_range() {
        let lens = random_lens(1000, 1..=65_536, 3);
        assert!(lens.iter().all(|len| (1..=65_536).contains(len)));
        assert!(lens.iter().any(|len| len % 2 == 1) && lens.iter().any(|len| *len > 60_000));
    }
}
