//! The file that keeps a listing's leaves: the SHA-256 of every block of every file.
//!
//! Piece layers judge whole pieces; leaves judge single blocks, so that a bad one is blamed on its
//! sender at once, and they answer hash requests of peers. They take 0.2 % of the payload and can be
//! rebuilt from it, so the file is a cache: what does not check is thrown away, never believed.
//! Every leaf taken from it can still be proven against the `pieces root`; the checksums only tell
//! early, and cheaply, that a write was torn or a sector rotted.
//!
//! # Format, version 1 (all numbers little-endian)
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `RSLEAVES` |
//! | 4 | version, 1 |
//! | 4 | leaves per chunk, 511 |
//! | 32 | info hash (SHA-256) |
//! | 8 | leaves in all |
//! | 4 | CRC-32 of the bytes before |
//! | 4 | zero |
//!
//! Then chunks of 16,384 bytes, the first at byte 16,384 so that all are aligned: a CRC-32 of the
//! rest with the chunk's number in front of it (a chunk at the wrong place does not check), how many
//! leaves it has (4 bytes), 24 bytes of zero, then 511 leaves. The last chunk is padded with zeros.
//! Leaves stand in the order of blocks in the torrent, file after file. One of all zeros is not
//! known yet; no block has that digest.

use thiserror::Error;

use crate::geometry::{BLOCK_LEN, FileIndex, Geometry};
use crate::merkle::Hash;

/// Length of a chunk, and of the header with what pads it, in bytes.
pub const CHUNK_LEN: usize = 16_384;
/// Leaves in every chunk but the last.
pub const LEAVES_PER_CHUNK: u32 = 511;
/// The version that is written.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"RSLEAVES";
const CHUNK_HEAD_LEN: usize = 32;
const HEADER_CRC_AT: usize = 56;
const HEADER_LEN: usize = 64;

const _: () = assert!(CHUNK_HEAD_LEN + LEAVES_PER_CHUNK as usize * 32 == CHUNK_LEN);

/// Why bytes are no part of this sidecar. Whatever it is: drop them and rebuild from the payload.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SidecarError {
    /// Too short, or too long, to be what it should be.
    #[error("{found_bytes} bytes instead of {expected_bytes}")]
    WrongLen {
        /// What the format asks for, in bytes.
        expected_bytes: usize,
        /// What is there, in bytes.
        found_bytes: usize,
    },
    /// Not a sidecar at all.
    #[error("no leaf sidecar")]
    WrongMagic,
    /// Written by a later version of this program.
    #[error("leaf sidecar of version {found}, known is {VERSION}")]
    WrongVersion {
        /// The version.
        found: u32,
    },
    /// The sidecar of another torrent.
    #[error("leaf sidecar of another torrent")]
    WrongTorrent,
    /// Bytes changed since they were written, or were never written whole.
    #[error("checksum of {part} is wrong")]
    Checksum {
        /// The chunk, or the header.
        part: Part,
    },
}

/// A part of a sidecar with a checksum of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first 64 bytes.
    Header,
    /// A chunk, by number.
    Chunk(u32),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Chunk(chunk) => write!(f, "chunk {chunk}"),
        }
    }
}

/// Where each leaf of a torrent lies in its sidecar, and the codec of header and chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafSidecar {
    info_hash: Hash,
    leaf_count: u64,
    /// The number of the first leaf of each file, pads and empty files included.
    first_leaves: Box<[u64]>,
}

impl LeafSidecar {
    /// The sidecar of a torrent with a v2 view. `None` if it has none.
    pub fn new(info_hash: Hash, geometry: &Geometry) -> Option<Self> {
        if !geometry.kind().has_v2() {
            return None;
        }
        let mut leaf_count = 0;
        let mut first_leaves = Vec::with_capacity(geometry.file_count() as usize);
        for file in geometry.files() {
            first_leaves.push(leaf_count);
            if !geometry.is_pad(file) {
                leaf_count += geometry.file_len(file).div_ceil(u64::from(BLOCK_LEN));
            }
        }
        Some(Self { info_hash, leaf_count, first_leaves: first_leaves.into() })
    }

    /// Leaves of all files.
    pub fn leaf_count(&self) -> u64 {
        self.leaf_count
    }

    /// How many chunks there are; at least 1.
    pub fn chunk_count(&self) -> u32 {
        // 2^46 bytes are 2^32 leaves, and every file may add one: far below 511 * 2^32.
        self.leaf_count.div_ceil(u64::from(LEAVES_PER_CHUNK)) as u32
    }

    /// Length of the sidecar, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.chunk_offset(self.chunk_count())
    }

    /// Where a chunk lies in the sidecar, in bytes.
    pub fn chunk_offset(&self, chunk: u32) -> u64 {
        (u64::from(chunk) + 1) * CHUNK_LEN as u64
    }

    /// How many leaves a chunk has.
    ///
    /// # Panics
    /// If there is no such chunk; so do the methods below.
    pub fn leaves_in_chunk(&self, chunk: u32) -> u32 {
        assert!(chunk < self.chunk_count(), "chunk {chunk} of {}", self.chunk_count());
        let rest = self.leaf_count - u64::from(chunk) * u64::from(LEAVES_PER_CHUNK);
        rest.min(u64::from(LEAVES_PER_CHUNK)) as u32
    }

    /// The chunk of a leaf of a file, and its place there: how many leaves come before it.
    ///
    /// # Panics
    /// If the file has no such leaf.
    pub fn place(&self, file: FileIndex, leaf: u64) -> (u32, u32) {
        let at = file.get() as usize;
        let end = self.first_leaves.get(at + 1).copied().unwrap_or(self.leaf_count);
        let number = self.first_leaves[at] + leaf;
        assert!(number < end, "leaf {leaf} of {file:?}");
        let per_chunk = u64::from(LEAVES_PER_CHUNK);
        ((number / per_chunk) as u32, (number % per_chunk) as u32)
    }

    /// The header with its padding: [`CHUNK_LEN`] bytes for the beginning of the file.
    pub fn encode_header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CHUNK_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&LEAVES_PER_CHUNK.to_le_bytes());
        out.extend_from_slice(&self.info_hash);
        out.extend_from_slice(&self.leaf_count.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(CHUNK_LEN, 0);
        out
    }

    /// Checks the header: at least the first 64 bytes of the file.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn check_header(&self, bytes: &[u8]) -> Result<(), SidecarError> {
        let wrong_len =
            SidecarError::WrongLen { expected_bytes: HEADER_LEN, found_bytes: bytes.len() };
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or(wrong_len)?;
        if !header.starts_with(MAGIC) {
            return Err(SidecarError::WrongMagic);
        }
        // The version comes before the checksum: a later one may have another.
        let found = u32_at(header, 8);
        if found != VERSION {
            return Err(SidecarError::WrongVersion { found });
        }
        if crc32fast::hash(&header[..HEADER_CRC_AT]) != u32_at(header, HEADER_CRC_AT) {
            return Err(SidecarError::Checksum { part: Part::Header });
        }
        let wanted = self.encode_header();
        if header[..] != wanted[..HEADER_LEN] { Err(SidecarError::WrongTorrent) } else { Ok(()) }
    }

    /// Writes a chunk into `out`, which is [`CHUNK_LEN`] bytes long.
    ///
    /// # Panics
    /// If there are not as many leaves as the chunk has, or `out` has another length.
    pub fn encode_chunk(&self, chunk: u32, leaves: &[Hash], out: &mut [u8]) {
        assert_eq!(out.len(), CHUNK_LEN);
        assert_eq!(leaves.len(), self.leaves_in_chunk(chunk) as usize);
        out.fill(0);
        let bytes = leaves.as_flattened();
        out[4..8].copy_from_slice(&(leaves.len() as u32).to_le_bytes());
        out[CHUNK_HEAD_LEN..CHUNK_HEAD_LEN + bytes.len()].copy_from_slice(bytes);
        let crc = chunk_crc(chunk, out);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// The leaves of a chunk, checked. Those of all zeros are not known yet.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn decode_chunk<'a>(
        &self,
        chunk: u32,
        bytes: &'a [u8],
    ) -> Result<&'a [Hash], SidecarError> {
        if bytes.len() != CHUNK_LEN {
            let (expected_bytes, found_bytes) = (CHUNK_LEN, bytes.len());
            return Err(SidecarError::WrongLen { expected_bytes, found_bytes });
        }
        let count = self.leaves_in_chunk(chunk);
        // Only the checksum is looked at first: a chunk of zeros, as in a file that was made longer
        // and not written, has the wrong one.
        if chunk_crc(chunk, bytes) != u32_at(bytes, 0) || u32_at(bytes, 4) != count {
            return Err(SidecarError::Checksum { part: Part::Chunk(chunk) });
        }
        let (leaves, _) = bytes[CHUNK_HEAD_LEN..].as_chunks::<32>();
        Ok(&leaves[..count as usize])
    }
}

fn chunk_crc(chunk: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&chunk.to_le_bytes());
    hasher.update(&bytes[4..]);
    // Zeros hash to something else than zero, because the start value is not zero.
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{FileSpan, Kind};

    const FILES: [u64; 4] = [20_000, 0, 16_384 * 1000, 5];

    fn sidecar() -> (LeafSidecar, Geometry) {
        let span = |&len_bytes: &u64| FileSpan { len_bytes, pad: false };
        let spans: Vec<FileSpan> = FILES.iter().map(span).collect();
        let geometry = Geometry::new(65_536, &spans, Kind::V2).unwrap();
        (LeafSidecar::new([7; 32], &geometry).unwrap(), geometry)
    }

    fn leaves(sidecar: &LeafSidecar, chunk: u32) -> Vec<Hash> {
        (0..sidecar.leaves_in_chunk(chunk)).map(|at| [(at % 255) as u8 + 1; 32]).collect()
    }

    #[test]
    fn every_leaf_has_a_place_of_its_own() {
        let (sidecar, geometry) = sidecar();
        assert_eq!((sidecar.leaf_count(), sidecar.chunk_count()), (1003, 2));
        assert_eq!(sidecar.len_bytes(), 3 * 16_384);
        let mut number = 0;
        for file in geometry.files() {
            for leaf in 0..geometry.file_len(file).div_ceil(16_384) {
                let place = sidecar.place(file, leaf);
                assert_eq!(place, ((number / 511) as u32, (number % 511) as u32));
                number += 1;
            }
        }
        assert_eq!([0, 1].map(|chunk| sidecar.leaves_in_chunk(chunk)), [511, 492]);
        let v1 = Geometry::new(16_384, &[FileSpan { len_bytes: 1, pad: false }], Kind::V1).unwrap();
        assert_eq!(LeafSidecar::new([0; 32], &v1), None);
    }

    #[test]
    #[should_panic(expected = "leaf 2 of")]
    fn a_leaf_that_the_file_has_not_is_a_bug() {
        let (sidecar, geometry) = sidecar();
        sidecar.place(geometry.file(0).unwrap(), 2);
    }

    #[test]
    fn header_and_chunks_come_back() {
        let (sidecar, _) = sidecar();
        let header = sidecar.encode_header();
        assert_eq!(header.len(), CHUNK_LEN);
        assert_eq!(sidecar.check_header(&header), Ok(()));
        for chunk in 0..2 {
            let mut bytes = vec![0xff; CHUNK_LEN];
            sidecar.encode_chunk(chunk, &leaves(&sidecar, chunk), &mut bytes);
            assert_eq!(sidecar.decode_chunk(chunk, &bytes), Ok(&leaves(&sidecar, chunk)[..]));
            let elsewhere = sidecar.decode_chunk(1 - chunk, &bytes);
            assert_eq!(elsewhere, Err(SidecarError::Checksum { part: Part::Chunk(1 - chunk) }));
        }
    }

    #[test]
    fn what_is_torn_or_foreign_is_refused() {
        let (sidecar, geometry) = sidecar();
        let header = sidecar.encode_header();
        let other = LeafSidecar::new([8; 32], &geometry).unwrap();
        assert_eq!(other.check_header(&header), Err(SidecarError::WrongTorrent));
        assert!(matches!(sidecar.check_header(&header[..63]), Err(SidecarError::WrongLen { .. })));
        assert_eq!(sidecar.check_header(&[0; 64]), Err(SidecarError::WrongMagic));
        let mut later = header.clone();
        later[8] = 2;
        assert_eq!(sidecar.check_header(&later), Err(SidecarError::WrongVersion { found: 2 }));
        for bit in 0..HEADER_LEN * 8 {
            let mut rotten = header.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert!(sidecar.check_header(&rotten).is_err(), "bit {bit}");
        }
        let mut bytes = vec![0; CHUNK_LEN];
        assert!(sidecar.decode_chunk(0, &bytes).is_err(), "never written");
        sidecar.encode_chunk(1, &leaves(&sidecar, 1), &mut bytes);
        for bit in (0..CHUNK_LEN * 8).step_by(61) {
            let mut rotten = bytes.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert!(sidecar.decode_chunk(1, &rotten).is_err(), "bit {bit}");
        }
        for cut in (0..CHUNK_LEN).step_by(512) {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            assert!(sidecar.decode_chunk(1, &torn).is_err() || torn == bytes, "torn at {cut}");
        }
    }
}
