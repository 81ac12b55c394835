//! Hashing and checking files without any network: for `hash`, `check` and `listing add`.
//!
//! One pass over the data, both views at once, by as many threads as the machine offers (at most
//! [`THREADS_MAX`]). Memory is bounded: a thread holds one unit of pieces at a time.

mod check;
mod create;
mod walk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ringseed_core::geometry::{BLOCK_LEN, Geometry, PieceIndex};
use ringseed_core::merkle;
use ringseed_core::metainfo::create::CreateError;
use ringseed_sys::hash;
use thiserror::Error;

pub use check::{CheckReport, PieceState, check};
pub use create::{CreateOptions, Created, create, create_and_import};
pub use walk::{Skipped, Unreadable};

/// Threads that hash at most: past a handful the disk is the limit, and memory grows with each.
const THREADS_MAX: usize = 8;
/// Bytes of one unit of work, unless a single piece is longer: large enough to fill the hash lanes
/// with pieces of 1 MiB, small enough to stay in the outer caches.
const UNIT_LEN: u64 = 4 << 20;

/// What is told while hashing: bytes done and bytes in all. Called from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Why hashing or checking failed.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A copy cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file became shorter or longer while it was hashed.
    #[error("{} changed while it was hashed", path.display())]
    Changed {
        /// Which one.
        path: PathBuf,
    },
    /// The import would be written over something that is there.
    #[error("{} is there already", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// No torrent can be made of this.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Digests of one piece: what it should be, or what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PieceDigests {
    piece: PieceIndex,
    /// SHA-1 with pads as zeros; `None` without a v1 view.
    sha1: Option<[u8; 20]>,
    /// Node of the piece layer, or the root of a file of one piece; `None` without a v2 view and for
    /// a piece that lies in pads.
    root: Option<[u8; 32]>,
}

/// Where the bytes of a torrent's files come from. Called from several threads.
trait Source: Sync {
    /// Fills `buf` from the file at that offset. `false`: the bytes are not there; the piece is then
    /// passed over.
    fn read(&self, file: u32, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, OfflineError>;
}

/// Hashes all pieces of a torrent, in no particular order, and gives what comes out to `take`: `None`
/// for pieces whose bytes are not there.
fn hash_all(
    geometry: &Geometry,
    source: &dyn Source,
    progress: Progress<'_>,
    take: &mut (dyn FnMut(PieceIndex, Option<PieceDigests>) + Send),
) -> Result<(), OfflineError> {
    let piece_len = u64::from(geometry.piece_len_nominal());
    let pieces_per_unit = (UNIT_LEN / piece_len).max(1) as u32;
    let units = geometry.piece_count().div_ceil(pieces_per_unit);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS_MAX).min(units as usize).max(1);
    let next_unit = AtomicU32::new(0);
    let done = AtomicU64::new(0);
    let is_failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let take = Mutex::new(take);
    let work = || {
        let mut buf = Vec::new();
        while !is_failed.load(Ordering::Relaxed) {
            let unit = next_unit.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            let first = unit * pieces_per_unit;
            let end = (first + pieces_per_unit).min(geometry.piece_count());
            match hash_unit(geometry, source, first..end, &mut buf) {
                Ok(digests) => {
                    let len =
                        digests.iter().map(|(piece, _)| u64::from(geometry.piece_len(*piece)));
                    let len: u64 = len.sum();
                    let mut take = take.lock().unwrap_or_else(PoisonError::into_inner);
                    digests.into_iter().for_each(|(piece, digests)| take(piece, digests));
                    drop(take);
                    let done = done.fetch_add(len, Ordering::Relaxed) + len;
                    progress(done, geometry.total_len());
                }
                Err(error) => {
                    is_failed.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

/// Reads and hashes a run of pieces.
fn hash_unit(
    geometry: &Geometry,
    source: &dyn Source,
    pieces: std::ops::Range<u32>,
    buf: &mut Vec<u8>,
) -> Result<Vec<(PieceIndex, Option<PieceDigests>)>, OfflineError> {
    let in_range = |raw| geometry.piece(raw).expect("a piece of this torrent");
    let begin = geometry.piece_offset(in_range(pieces.start));
    let last = in_range(pieces.end - 1);
    let end = geometry.piece_offset(last) + u64::from(geometry.piece_len(last));
    buf.resize((end - begin) as usize, 0);
    let mut absent = vec![false; pieces.len()];
    let mut at = 0;
    for slice in geometry.slices(begin, end - begin) {
        let into = &mut buf[at..at + slice.len as usize];
        if slice.pad {
            into.fill(0);
        } else if !source.read(slice.file.get(), slice.file_offset, into)? {
            let piece_len = geometry.piece_len_nominal() as usize;
            let last = (at + slice.len as usize - 1) / piece_len;
            absent[at / piece_len..=last].fill(true);
        }
        at += slice.len as usize;
    }
    let there: Vec<PieceIndex> = pieces
        .clone()
        .zip(&absent)
        .filter(|(_, absent)| !**absent)
        .map(|(raw, _)| in_range(raw))
        .collect();
    let bytes_of = |piece: PieceIndex, len: u32| {
        let at = (geometry.piece_offset(piece) - begin) as usize;
        &buf[at..at + len as usize]
    };
    let mut sha1 = vec![[0; 20]; there.len()];
    if geometry.kind().has_v1() {
        let messages: Vec<&[u8]> =
            there.iter().map(|&piece| bytes_of(piece, geometry.piece_len(piece))).collect();
        hash::sha1_many(&messages, &mut sha1);
    }
    let mut leaves = Vec::new();
    if geometry.kind().has_v2() {
        let blocks: Vec<&[u8]> = there
            .iter()
            .flat_map(|&piece| {
                bytes_of(piece, geometry.piece_data_len(piece)).chunks(BLOCK_LEN as usize)
            })
            .collect();
        leaves = vec![[0; 32]; blocks.len()];
        hash::sha256_many(&blocks, &mut leaves);
    }
    let mut leaves = leaves.as_slice();
    let mut out = Vec::with_capacity(pieces.len());
    let mut found = there.iter().zip(sha1);
    for (raw, absent) in pieces.zip(absent) {
        let piece = in_range(raw);
        if absent {
            out.push((piece, None));
            continue;
        }
        let (_, sha1) = found.next().expect("one per piece that is there");
        let root = geometry.piece_in_file(piece).map(|(file, _)| {
            let count = geometry.piece_data_len(piece).div_ceil(BLOCK_LEN) as usize;
            let (of_piece, rest) = leaves.split_at(count);
            leaves = rest;
            let layer = merkle::piece_layer_number(geometry.piece_len_nominal());
            let leaf_count = geometry.file_len(file).div_ceil(u64::from(BLOCK_LEN));
            merkle::piece_root(of_piece, layer, leaf_count)
        });
        let sha1 = geometry.kind().has_v1().then_some(sha1);
        out.push((piece, Some(PieceDigests { piece, sha1, root })));
    }
    Ok(out)
}

/// Reads exactly `buf` at an offset; `false` when the file ends before.
fn read_full(
    file: &File,
    path: &Path,
    offset_bytes: u64,
    buf: &mut [u8],
) -> Result<bool, OfflineError> {
    match file.read_exact_at(buf, offset_bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(source) => Err(OfflineError::Read { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests;
