//! An append-only file of CRC-framed records: the shape of every log that consensus keeps.
//!
//! A record is its length, a CRC-32 over length and payload, and the payload. Each append is synced
//! before the next begins, so a crash can only tear the last record, and opening cuts it off. A bad
//! record with a good one behind it was damaged later, and that is told, never skipped.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Bytes in front of the first record: magic, format version, zeros.
pub const HEADER_LEN_BYTES: u64 = 16;
/// Bytes in front of each payload: length and CRC.
pub const FRAME_LEN_BYTES: u64 = 8;
const FORMAT_VERSION: u32 = 1;

/// Why a log cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not this kind of log, or of a version that this binary does not know.
    #[error("{path} is no log of this kind and version")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A record is bad and a good one follows: no crash leaves that.
    #[error("{path} is damaged at byte {offset_bytes}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the bad record begins.
        offset_bytes: u64,
    },
}

/// The open file. One owner appends; reading by offset needs no lock.
#[derive(Debug)]
pub struct RecordLog {
    file: File,
    path: PathBuf,
    end_offset_bytes: u64,
    payload_len_bytes_max: u32,
}

impl RecordLog {
    /// Opens or creates the log at `path`, hands every whole record to `each` with its offset, and
    /// cuts a torn tail. Scanning begins at `from_offset_bytes` (0: the first record), which must
    /// be where a record starts or the end.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn open(
        path: &Path,
        magic: &[u8; 8],
        payload_len_bytes_max: u32,
        from_offset_bytes: u64,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<Self, LogError> {
        let io = |source| LogError::Io { path: path.to_path_buf(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(io)?;
        let file_len_bytes = file.metadata().map_err(io)?.len();
        let mut header = [0; HEADER_LEN_BYTES as usize];
        header[..8].copy_from_slice(magic);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        if file_len_bytes < HEADER_LEN_BYTES {
            // New, or its creation was cut short: nothing was ever appended.
            file.set_len(0).map_err(io)?;
            file.write_all_at(&header, 0).map_err(io)?;
            file.sync_all().map_err(io)?;
            sync_parent(path).map_err(io)?;
        } else {
            let mut found = [0; HEADER_LEN_BYTES as usize];
            file.read_exact_at(&mut found, 0).map_err(io)?;
            if found != header {
                return Err(LogError::Foreign { path: path.to_path_buf() });
            }
        }
        let file_len_bytes = file_len_bytes.max(HEADER_LEN_BYTES);
        let start = from_offset_bytes.max(HEADER_LEN_BYTES);
        let mut log =
            Self { file, path: path.to_path_buf(), end_offset_bytes: start, payload_len_bytes_max };
        let mut buffer = Vec::new();
        while log.end_offset_bytes < file_len_bytes {
            let offset_bytes = log.end_offset_bytes;
            let payload = log.read_into(offset_bytes, file_len_bytes, &mut buffer).map_err(io)?;
            if let Some(payload) = payload {
                each(offset_bytes, payload);
                log.end_offset_bytes += FRAME_LEN_BYTES + payload.len() as u64;
                continue;
            }
            if log.good_record_after(offset_bytes, file_len_bytes).map_err(io)? {
                return Err(LogError::Damaged { path: path.to_path_buf(), offset_bytes });
            }
            tracing::warn!(
                path = %path.display(), offset_bytes, cut_bytes = file_len_bytes - offset_bytes,
                "the last record was torn by a crash and is cut off"
            );
            log.file.set_len(offset_bytes).map_err(io)?;
            log.file.sync_all().map_err(io)?;
            break;
        }
        Ok(log)
    }

    /// Appends one record and waits until it is on disk. Returns its offset.
    ///
    /// # Errors
    /// [`LogError::Io`]. The log must not be used after it: a failed sync proves nothing about what
    /// is on disk, and a second one proves nothing either.
    ///
    /// # Panics
    /// When `payload` is above the bound given to [`RecordLog::open`]: it could not be read back.
    pub fn append(&mut self, payload: &[u8]) -> Result<u64, LogError> {
        assert!(payload.len() as u64 <= u64::from(self.payload_len_bytes_max));
        let offset_bytes = self.end_offset_bytes;
        let mut frame = Vec::with_capacity(FRAME_LEN_BYTES as usize + payload.len());
        let len = (payload.len() as u32).to_le_bytes();
        frame.extend_from_slice(&len);
        frame.extend_from_slice(&crc(&len, payload).to_le_bytes());
        frame.extend_from_slice(payload);
        let written = self.file.write_all_at(&frame, offset_bytes);
        written.and_then(|()| self.file.sync_data()).map_err(|source| self.io(source))?;
        self.end_offset_bytes += frame.len() as u64;
        Ok(offset_bytes)
    }

    /// Forgets every record from `offset_bytes` on. Not synced: the next append is.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn truncate(&mut self, offset_bytes: u64) -> Result<(), LogError> {
        self.file.set_len(offset_bytes).map_err(|source| self.io(source))?;
        self.end_offset_bytes = offset_bytes;
        Ok(())
    }

    /// Where the next record will begin.
    pub fn end_offset_bytes(&self) -> u64 {
        self.end_offset_bytes
    }

    /// A second descriptor for reading records by offset from other threads.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn reader(&self) -> Result<RecordReader, LogError> {
        let file = self.file.try_clone().map_err(|source| self.io(source))?;
        Ok(RecordReader { file, payload_len_bytes_max: self.payload_len_bytes_max })
    }

    fn io(&self, source: io::Error) -> LogError {
        LogError::Io { path: self.path.clone(), source }
    }

    fn read_into<'a>(
        &self,
        offset_bytes: u64,
        file_len_bytes: u64,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<Option<&'a [u8]>> {
        if offset_bytes + FRAME_LEN_BYTES > file_len_bytes {
            return Ok(None);
        }
        let Some(len) = frame_len(&self.file, offset_bytes, self.payload_len_bytes_max)? else {
            return Ok(None);
        };
        if offset_bytes + FRAME_LEN_BYTES + u64::from(len.0) > file_len_bytes {
            return Ok(None);
        }
        read_payload(&self.file, offset_bytes, len, buffer)
    }

    /// Whether a whole record stands where the bad one at `offset_bytes` says that it ends.
    fn good_record_after(&self, offset_bytes: u64, file_len_bytes: u64) -> io::Result<bool> {
        if offset_bytes + FRAME_LEN_BYTES > file_len_bytes {
            return Ok(false);
        }
        let len = frame_len(&self.file, offset_bytes, self.payload_len_bytes_max)?;
        let Some((len, _)) = len else { return Ok(false) };
        let next = offset_bytes + FRAME_LEN_BYTES + u64::from(len);
        Ok(next < file_len_bytes
            && self.read_into(next, file_len_bytes, &mut Vec::new())?.is_some())
    }
}

/// Reads records by offset, from any thread.
#[derive(Debug)]
pub struct RecordReader {
    file: File,
    payload_len_bytes_max: u32,
}

impl RecordReader {
    /// The payload of the record at `offset_bytes`; `None` when it is damaged.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn read(&self, offset_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(len) = frame_len(&self.file, offset_bytes, self.payload_len_bytes_max)? else {
            return Ok(None);
        };
        let mut buffer = Vec::new();
        Ok(read_payload(&self.file, offset_bytes, len, &mut buffer)?.is_some().then_some(buffer))
    }
}

/// Whether a whole record stands at `offset_bytes` of the log at `path`.
pub fn is_record(path: &Path, offset_bytes: u64, payload_len_bytes_max: u32) -> bool {
    File::open(path)
        .and_then(|file| RecordReader { file, payload_len_bytes_max }.read(offset_bytes))
        .is_ok_and(|payload| payload.is_some())
}

/// Length and CRC of the record at `offset_bytes`; `None` when the length cannot be one.
fn frame_len(file: &File, offset_bytes: u64, max: u32) -> io::Result<Option<(u32, u32)>> {
    let mut frame = [0; FRAME_LEN_BYTES as usize];
    file.read_exact_at(&mut frame, offset_bytes)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = frame;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    Ok((1..=max).contains(&len).then_some((len, u32::from_le_bytes([c0, c1, c2, c3]))))
}

fn read_payload<'a>(
    file: &File,
    offset_bytes: u64,
    (len, wanted): (u32, u32),
    buffer: &'a mut Vec<u8>,
) -> io::Result<Option<&'a [u8]>> {
    buffer.resize(len as usize, 0);
    file.read_exact_at(buffer, offset_bytes + FRAME_LEN_BYTES)?;
    Ok((crc(&len.to_le_bytes(), buffer) == wanted).then_some(buffer.as_slice()))
}

fn crc(len: &[u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(len);
    hasher.update(payload);
    hasher.finalize()
}

/// Makes the entry of `path` in its folder durable (fsync(2): a new file needs its folder synced).
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Replaces the file at `path` by `bytes` so that a crash leaves the old or the new one whole.
///
/// # Errors
/// What the operating system says; the old file then still stands.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = File::create(&temporary)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_parent(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    const MAGIC: &[u8; 8] = b"RSTEST01";

    fn records(path: &Path) -> Result<Vec<Vec<u8>>, LogError> {
        let mut found = Vec::new();
        RecordLog::open(path, MAGIC, 1 << 16, 0, |_, payload| found.push(payload.to_vec()))?;
        Ok(found)
    }

    #[test]
    fn a_tear_at_every_byte_costs_the_last_record_only() {
        let dir = TempDir::new("record-log-tear");
        let path = dir.path().join("log");
        let mut log = RecordLog::open(&path, MAGIC, 1 << 16, 0, |_, _| {}).unwrap();
        log.append(b"first").unwrap();
        let second = log.append(b"the second record").unwrap();
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        for len in second as usize..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(records(&path).unwrap(), [b"first"], "cut to {len} bytes");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), second);
            // A torn page may also be there in length but not in content.
            let mut zeroed = whole.clone();
            zeroed[len..].fill(0);
            std::fs::write(&path, &zeroed).unwrap();
            assert_eq!(records(&path).unwrap(), [b"first"], "zeros from byte {len}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(records(&path).unwrap().len(), 2);
    }

    #[test]
    fn damage_before_a_good_record_is_told() {
        let dir = TempDir::new("record-log-damage");
        let path = dir.path().join("log");
        let mut log = RecordLog::open(&path, MAGIC, 1 << 16, 0, |_, _| {}).unwrap();
        let first = log.append(b"first").unwrap();
        log.append(b"second").unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[(first + FRAME_LEN_BYTES) as usize] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(
            matches!(records(&path), Err(LogError::Damaged { offset_bytes, .. }) if offset_bytes == first)
        );
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone() {
        let dir = TempDir::new("record-log-foreign");
        let path = dir.path().join("log");
        std::fs::write(&path, b"a letter to my grandmother").unwrap();
        assert!(matches!(records(&path), Err(LogError::Foreign { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"a letter to my grandmother");
    }
}
