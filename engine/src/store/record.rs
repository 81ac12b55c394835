//! The records of the journal, as they lie on disk. Format version 2, little-endian:
//!
//! ```text
//! header   magic "ringseed" | version u32 | kind u32 (0 log, 1 checkpoint) | generation u64
//!          | first sequence u64 | crc32 of the 32 bytes before u32
//! record   body_len u16 | kind u8 | 0 u8 | generation u32 | sequence u64 | crc32 u32 | body
//! ```
//!
//! The CRC covers the record but itself. Sequence numbers go up by one from the header's first one;
//! `generation` is the low half of the header's, so that what an older file left behind on the same
//! sectors is never taken for a record. Version 1 had one file, no kind and no first sequence; its
//! records are the same and it is still read.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use thiserror::Error;

/// Format version that this code writes. It reads version 1 as well.
pub const JOURNAL_VERSION: u32 = 2;
/// Length of the file header in bytes.
pub const HEADER_LEN: usize = 36;
/// Length of the header of version 1 in bytes.
const HEADER_LEN_V1: usize = 24;
const MAGIC: &[u8; 8] = b"ringseed";
const RECORD_HEAD_LEN: usize = 20;
/// Longest body in bytes: an `Added` with a path of 4 KiB. All others stay below 512.
pub const BODY_LEN_MAX: usize = 8 << 10;
/// Longest path in a record, in bytes (`PATH_MAX`).
const PATH_LEN_MAX: usize = 4096;
/// Most pieces that a record may speak of.
const PIECE_COUNT_MAX: u32 = ringseed_core::geometry::PIECE_COUNT_MAX;

/// What the data of a listing is known by across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListingKey {
    /// SHA-1 of the info dict: v1-only torrents.
    V1([u8; 20]),
    /// SHA-256 of the info dict: v2 and hybrid.
    V2([u8; 32]),
}

impl ListingKey {
    /// The hash itself: 20 or 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            ListingKey::V1(hash) => hash,
            ListingKey::V2(hash) => hash,
        }
    }
}

/// Name of a listing inside one journal.
pub type JournalSlot = u32;

/// What the files of a complete listing looked like when they were last known to be good. An equal
/// stamp is a hint that nobody has touched them, and no proof: reads are checked all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Latest change of any file, content or inode, in nanoseconds since 1970.
    pub newest_ns: u64,
    /// Digest over the number, length and times of every file.
    pub digest: u64,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A listing whose geometry is known; `slot` names it from here on.
    Added {
        /// Its name in the records that follow.
        slot: JournalSlot,
        /// Its identity.
        key: ListingKey,
        /// Length of its torrent space in bytes, pads included.
        total_len: u64,
        /// How many pieces it has.
        piece_count: u32,
        /// The v1 view was checked with the v2 view.
        both_views: bool,
        /// The folder that holds its root name.
        folder: PathBuf,
    },
    /// Pieces are about to be written.
    Intent {
        /// Which listing.
        slot: JournalSlot,
        /// First piece and how many, each.
        runs: Vec<(u32, u32)>,
    },
    /// Pieces are verified and synced.
    Have {
        /// Which listing.
        slot: JournalSlot,
        /// First piece and how many, each.
        runs: Vec<(u32, u32)>,
    },
    /// Pieces are not to be believed any more.
    Lost {
        /// Which listing.
        slot: JournalSlot,
        /// First piece and how many, each.
        runs: Vec<(u32, u32)>,
    },
    /// The listing is gone.
    Removed {
        /// Which listing.
        slot: JournalSlot,
    },
    /// Nothing was being written when the process ended: intents so far mean nothing.
    CleanStop,
    /// A checkpoint is whole. The last record of each.
    End {
        /// Sequence of the first record of the log that follows.
        next_sequence: u64,
        /// The first slot that is free.
        next_slot: JournalSlot,
    },
    /// What the files of a listing look like, all pieces of which are had.
    Stamped {
        /// Which listing.
        slot: JournalSlot,
        /// What they look like.
        stamp: Stamp,
    },
}

impl Record {
    /// Which listing it speaks of.
    pub(super) fn slot(&self) -> Option<JournalSlot> {
        match self {
            Record::Added { slot, .. }
            | Record::Intent { slot, .. }
            | Record::Have { slot, .. }
            | Record::Lost { slot, .. }
            | Record::Removed { slot }
            | Record::Stamped { slot, .. } => Some(*slot),
            Record::CleanStop | Record::End { .. } => None,
        }
    }
}

/// Why a journal file is refused whole. A torn tail is no error.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum JournalError {
    /// Not one of ours, or its header is damaged.
    #[error("no journal header")]
    Header,
    /// Written by a later program.
    #[error("journal version {found}, this program reads up to {JOURNAL_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
}

/// What a file of the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Records in the order in which they happened.
    Log,
    /// The state before the log of the same generation.
    Checkpoint,
}

/// Beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the file is.
    pub kind: FileKind,
    /// Its generation.
    pub generation: u64,
    /// Sequence of its first record.
    pub first_sequence: u64,
}

impl Header {
    /// The header as it is written.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&JOURNAL_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.kind == FileKind::Checkpoint).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Adds one record to `out`.
///
/// # Panics
/// When the body is longer than [`BODY_LEN_MAX`], which no record of ours is.
pub fn encode_record(record: &Record, generation: u64, sequence: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEAD_LEN]);
    let kind = encode_body(record, out);
    let body_len = out.len() - start - RECORD_HEAD_LEN;
    assert!(body_len <= BODY_LEN_MAX, "journal body of {body_len} bytes");
    let (head, body) = out[start..].split_at_mut(RECORD_HEAD_LEN);
    head[..2].copy_from_slice(&(body_len as u16).to_le_bytes());
    head[2] = kind;
    head[4..8].copy_from_slice(&(generation as u32).to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    let crc = record_crc(&head[..16], body);
    head[16..].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the records of one file, as many as are good. Holds one record in memory at a time.
pub struct Records<R> {
    file: R,
    header: Header,
    sequence: u64,
    /// Bytes that are not yet looked at are `buffer[at..]`.
    buffer: Vec<u8>,
    at: usize,
    good_bytes: u64,
}

impl<R: Read> Records<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`JournalError`] when it is not one of ours; what reading says.
    pub fn open(file: R) -> io::Result<Result<Self, JournalError>> {
        let header = Header { kind: FileKind::Log, generation: 0, first_sequence: 0 };
        let buffer = Vec::with_capacity(64 << 10);
        let mut records = Records { file, header, sequence: 0, buffer, at: 0, good_bytes: 0 };
        records.fill(HEADER_LEN)?;
        Ok(records.read_header().map(|header| {
            records.header = header;
            records.sequence = header.first_sequence;
            records.good_bytes = records.at as u64;
            records
        }))
    }

    fn read_header(&mut self) -> Result<Header, JournalError> {
        let bytes = &self.buffer;
        let (magic, version) = (bytes.get(..8), bytes.get(8..12));
        if magic != Some(MAGIC) {
            return Err(JournalError::Header);
        }
        let version = version.map(|version| read_u32(version, 0)).ok_or(JournalError::Header)?;
        let len = if version == 1 { HEADER_LEN_V1 } else { HEADER_LEN };
        let bytes = bytes.get(..len).ok_or(JournalError::Header)?;
        let is_whole = crc32fast::hash(&bytes[..len - 4]) == read_u32(bytes, len - 4);
        match version {
            1 if is_whole => {
                self.at = HEADER_LEN_V1;
                let generation = read_u64(bytes, 12);
                Ok(Header { kind: FileKind::Log, generation, first_sequence: 0 })
            }
            JOURNAL_VERSION if is_whole => {
                self.at = HEADER_LEN;
                let kind = match read_u32(bytes, 12) {
                    0 => FileKind::Log,
                    1 => FileKind::Checkpoint,
                    _ => return Err(JournalError::Header),
                };
                let (generation, first_sequence) = (read_u64(bytes, 16), read_u64(bytes, 24));
                Ok(Header { kind, generation, first_sequence })
            }
            // Later versions keep the first 36 bytes, so that rot is told from them.
            found if found > JOURNAL_VERSION && is_whole => Err(JournalError::Version { found }),
            _ => Err(JournalError::Header),
        }
    }

    /// The file's header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Sequence of the next record.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes of the header and of the records read so far.
    pub fn good_bytes(&self) -> u64 {
        self.good_bytes
    }

    /// The next record; `None` at the end, and at the first that is not whole or not the next one:
    /// nothing behind that is ever looked at.
    ///
    /// # Errors
    /// What reading says.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        if !self.fill(RECORD_HEAD_LEN)? {
            return Ok(None);
        }
        let body_len =
            usize::from(u16::from_le_bytes([self.buffer[self.at], self.buffer[self.at + 1]]));
        if body_len > BODY_LEN_MAX || !self.fill(RECORD_HEAD_LEN + body_len)? {
            return Ok(None);
        }
        let bytes = &self.buffer[self.at..self.at + RECORD_HEAD_LEN + body_len];
        let (head, body) = bytes.split_at(RECORD_HEAD_LEN);
        let is_next = head[3] == 0
            && read_u32(head, 4) == self.header.generation as u32
            && read_u64(head, 8) == self.sequence
            && read_u32(head, 16) == record_crc(&head[..16], body);
        let record = if is_next { decode_body(head[2], body) } else { None };
        if record.is_some() {
            self.at += RECORD_HEAD_LEN + body_len;
            self.good_bytes += (RECORD_HEAD_LEN + body_len) as u64;
            self.sequence += 1;
        }
        Ok(record)
    }

    /// Whether something that is no record stands behind the last good one: a torn tail. Zeros are
    /// space that was reserved.
    pub fn is_torn(&self) -> bool {
        self.buffer[self.at..].iter().any(|&byte| byte != 0)
    }

    /// Makes sure that `len` bytes are in the buffer; false when the file ends before.
    fn fill(&mut self, len: usize) -> io::Result<bool> {
        while self.buffer.len() - self.at < len {
            self.buffer.drain(..self.at);
            self.at = 0;
            let room = (64_u64 << 10).saturating_sub(self.buffer.len() as u64);
            let got = self.file.by_ref().take(room).read_to_end(&mut self.buffer)?;
            if got == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn record_crc(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// Writes the body and returns the kind.
fn encode_body(record: &Record, out: &mut Vec<u8>) -> u8 {
    let mut with_runs = |slot: &JournalSlot, runs: &[(u32, u32)]| {
        out.extend_from_slice(&slot.to_le_bytes());
        for (first, count) in runs {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
    };
    match record {
        Record::Added { slot, key, total_len, piece_count, both_views, folder } => {
            out.extend_from_slice(&slot.to_le_bytes());
            let tag = if matches!(key, ListingKey::V1(_)) { 1 } else { 2 };
            let mut padded = [0; 32];
            padded[..key.as_bytes().len()].copy_from_slice(key.as_bytes());
            out.extend_from_slice(&[tag, u8::from(*both_views)]);
            out.extend_from_slice(&padded);
            out.extend_from_slice(&total_len.to_le_bytes());
            out.extend_from_slice(&piece_count.to_le_bytes());
            // A path that does not fit is left out: the listing is then checked whole after a restart.
            let folder = folder.as_os_str().as_bytes();
            out.extend_from_slice(if folder.len() <= PATH_LEN_MAX { folder } else { &[] });
            1
        }
        Record::Intent { slot, runs } => {
            with_runs(slot, runs);
            2
        }
        Record::Have { slot, runs } => {
            with_runs(slot, runs);
            3
        }
        Record::Lost { slot, runs } => {
            with_runs(slot, runs);
            4
        }
        Record::Removed { slot } => {
            with_runs(slot, &[]);
            5
        }
        Record::CleanStop => 6,
        Record::End { next_sequence, next_slot } => {
            out.extend_from_slice(&next_slot.to_le_bytes());
            out.extend_from_slice(&next_sequence.to_le_bytes());
            7
        }
        Record::Stamped { slot, stamp } => {
            out.extend_from_slice(&slot.to_le_bytes());
            out.extend_from_slice(&stamp.newest_ns.to_le_bytes());
            out.extend_from_slice(&stamp.digest.to_le_bytes());
            8
        }
    }
}

fn decode_body(kind: u8, body: &[u8]) -> Option<Record> {
    if kind == 6 {
        return body.is_empty().then_some(Record::CleanStop);
    }
    let (slot, rest) = body.split_at_checked(4)?;
    let slot = read_u32(slot, 0);
    let runs = || -> Option<Vec<(u32, u32)>> {
        let chunks = rest.chunks_exact(8);
        chunks.remainder().is_empty().then_some(())?;
        Some(chunks.map(|chunk| (read_u32(chunk, 0), read_u32(chunk, 4))).collect())
    };
    match kind {
        1 => {
            let (fixed, folder) = rest.split_at_checked(46)?;
            let hash = &fixed[2..34];
            let key = match fixed[0] {
                1 => ListingKey::V1(hash[..20].try_into().ok()?),
                2 => ListingKey::V2(hash.try_into().ok()?),
                _ => return None,
            };
            let piece_count = read_u32(fixed, 42);
            (piece_count <= PIECE_COUNT_MAX).then_some(())?;
            Some(Record::Added {
                slot,
                key,
                total_len: read_u64(fixed, 34),
                piece_count,
                both_views: fixed[1] != 0,
                folder: PathBuf::from(OsStr::from_bytes(folder)),
            })
        }
        2 => Some(Record::Intent { slot, runs: runs()? }),
        3 => Some(Record::Have { slot, runs: runs()? }),
        4 => Some(Record::Lost { slot, runs: runs()? }),
        5 => rest.is_empty().then_some(Record::Removed { slot }),
        7 => (rest.len() == 8)
            .then(|| Record::End { next_sequence: read_u64(rest, 0), next_slot: slot }),
        8 => (rest.len() == 16).then(|| Record::Stamped {
            slot,
            stamp: Stamp { newest_ns: read_u64(rest, 0), digest: read_u64(rest, 8) },
        }),
        _ => None,
    }
}

/// Callers have checked the length.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}
