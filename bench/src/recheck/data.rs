//! What is checked: one long file and many short ones, with their torrents.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ringseed_core::geometry::Kind;
use ringseed_engine::offline::{self, CreateOptions};

use crate::hash::noise;

/// Length of a listing in the many, bytes.
pub const LISTING_LEN: usize = 64 << 10;
/// Piece length of the long file, bytes.
pub const PIECE_LEN: u64 = 1 << 20;

/// Where everything lies.
pub struct Data {
    pub dir: PathBuf,
    pub file_len: u64,
    /// `.torrent` files of the many, whose data lie in `many_dir`.
    pub torrents: Vec<PathBuf>,
}

impl Data {
    /// Makes what is not there yet: a second run finds it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn make(dir: &Path, file_len: u64, listings: usize) -> io::Result<Data> {
        fs::create_dir_all(dir.join("many"))?;
        fs::create_dir_all(dir.join("torrents"))?;
        let data = Data {
            dir: dir.to_path_buf(),
            file_len,
            torrents: (0..listings)
                .map(|at| dir.join(format!("torrents/{at:05}.torrent")))
                .collect(),
        };
        let is_there = fs::metadata(data.file()).is_ok_and(|found| found.len() == file_len);
        if !is_there {
            eprintln!("writing {} of {file_len} bytes", data.file().display());
            let mut file = File::create(data.file())?;
            let mut left = file_len;
            for seed in 0.. {
                if left == 0 {
                    break;
                }
                let chunk = noise(left.min(64 << 20) as usize, seed);
                file.write_all(&chunk)?;
                left -= chunk.len() as u64;
            }
            file.sync_all()?;
            for kind in [Kind::V1, Kind::V2] {
                let _ = fs::remove_file(data.torrent(kind));
            }
        }
        for kind in [Kind::V1, Kind::V2] {
            if !data.torrent(kind).exists() {
                fs::write(data.torrent(kind), torrent_of(&data.file(), kind, Some(PIECE_LEN))?)?;
            }
        }
        for (at, torrent) in data.torrents.iter().enumerate().filter(|(_, path)| !path.exists()) {
            let path = dir.join(format!("many/{at:05}"));
            fs::write(&path, noise(LISTING_LEN, 1_000_000 + at as u64))?;
            fs::write(torrent, torrent_of(&path, Kind::Hybrid, Some(16 << 10))?)?;
        }
        Ok(data)
    }

    /// The long file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("long.bin")
    }

    /// The torrent of the long file.
    pub fn torrent(&self, kind: Kind) -> PathBuf {
        self.dir.join(format!("long-{}.torrent", kind_name(kind)))
    }

    /// Folder of the data of the many.
    pub fn many_dir(&self) -> PathBuf {
        self.dir.join("many")
    }

    /// Brings the long file into the page cache.
    ///
    /// # Errors
    /// What reading says.
    pub fn warm(&self) -> io::Result<()> {
        warm(&self.file())
    }

    /// Brings the many into the page cache, with their torrents.
    ///
    /// # Errors
    /// What reading says.
    pub fn warm_many(&self) -> io::Result<()> {
        for (at, torrent) in self.torrents.iter().enumerate() {
            warm(torrent)?;
            warm(&self.dir.join(format!("many/{at:05}")))?;
        }
        Ok(())
    }

    /// Drops the long file from the page cache.
    ///
    /// # Errors
    /// What the system says.
    pub fn cool(&self) -> io::Result<()> {
        ringseed_sys::file::drop_cache(File::open(self.file())?.as_fd())
    }
}

/// The name of a kind on a command line.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::V1 => "v1",
        Kind::V2 => "v2",
        Kind::Hybrid => "hybrid",
    }
}

fn torrent_of(path: &Path, kind: Kind, piece_len_bytes: Option<u64>) -> io::Result<Vec<u8>> {
    let options = CreateOptions { kind, piece_len_bytes, ..CreateOptions::default() };
    let made = offline::create(path, &options, &|_, _| {}).map_err(io::Error::other)?;
    Ok(made.metainfo.encode())
}

fn warm(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buf = vec![0; 1 << 20];
    while file.read(&mut buf)? > 0 {}
    Ok(())
}
