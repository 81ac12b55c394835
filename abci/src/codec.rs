//! Fixed little-endian encoding of what consensus writes to sockets and disks.
//!
//! Every length is checked against the bytes that are really there before anything is allocated:
//! a number claimed by a peer never sizes a buffer.

use thiserror::Error;

/// Why bytes from a peer or a disk are no message of ours.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// The bytes end inside a field.
    #[error("the bytes end inside a field: {missing_bytes} missing")]
    Truncated {
        /// How many bytes the field still needed.
        missing_bytes: u64,
    },
    /// Bytes follow the last field. There is one encoding per meaning.
    #[error("{extra_bytes} bytes follow the last field")]
    Trailing {
        /// How many bytes are too many.
        extra_bytes: u64,
    },
    /// A count or a length is above its bound.
    #[error("a length of {found} is above its bound of {max}")]
    TooLong {
        /// The claimed length.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// A tag has no meaning.
    #[error("tag {found} has no meaning here")]
    UnknownTag {
        /// The tag found.
        found: u8,
    },
}

/// Reads fields off the front of a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub fn remaining_bytes(&self) -> usize {
        self.rest.len()
    }

    /// Takes exactly `len_bytes` bytes.
    ///
    /// # Errors
    /// [`CodecError::Truncated`] when fewer are left.
    pub fn take(&mut self, len_bytes: usize) -> Result<&'a [u8], CodecError> {
        let Some((head, rest)) = self.rest.split_at_checked(len_bytes) else {
            let missing_bytes = (len_bytes - self.rest.len()) as u64;
            return Err(CodecError::Truncated { missing_bytes });
        };
        self.rest = rest;
        Ok(head)
    }

    /// Takes `N` bytes as an array. Errors as [`Reader::take`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Takes one byte. Errors as [`Reader::take`].
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a `u16`. Errors as [`Reader::take`].
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes a `u32`. Errors as [`Reader::take`].
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a `u64`. Errors as [`Reader::take`].
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a boolean; only 0 and 1 are one.
    ///
    /// # Errors
    /// [`CodecError::UnknownTag`] on any other byte, and as [`Reader::take`].
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(CodecError::UnknownTag { found }),
        }
    }

    /// Takes a count of items of at least `item_len_bytes_min` bytes each, so that a caller may
    /// reserve room for them.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] above `max` or above what the remaining bytes can hold.
    pub fn count(&mut self, max: usize, item_len_bytes_min: usize) -> Result<usize, CodecError> {
        let found = self.u32()? as usize;
        let room = self.rest.len() / item_len_bytes_min.max(1);
        if found > max.min(room) {
            return Err(CodecError::TooLong { found: found as u64, max: max.min(room) as u64 });
        }
        Ok(found)
    }

    /// Takes a byte string written by [`put_bytes`].
    ///
    /// # Errors
    /// [`CodecError::TooLong`] above `len_bytes_max`, and as [`Reader::take`].
    pub fn bytes(&mut self, len_bytes_max: usize) -> Result<&'a [u8], CodecError> {
        let found = self.u32()?;
        if found as usize > len_bytes_max {
            return Err(CodecError::TooLong { found: found.into(), max: len_bytes_max as u64 });
        }
        self.take(found as usize)
    }

    /// Asserts that every byte was read.
    ///
    /// # Errors
    /// [`CodecError::Trailing`] otherwise.
    pub fn finish(self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(CodecError::Trailing { extra_bytes: extra as u64 }),
        }
    }
}

/// Appends a byte string with its length in front.
///
/// # Panics
/// When `bytes` is longer than 4 GiB: our own messages are bounded far below.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends a count or a length.
///
/// # Panics
/// When `len` does not fit 32 bits.
pub fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("our own messages are bounded far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_length_is_checked_against_what_is_there() {
        let mut reader = Reader::new(&[0xff, 0xff, 0xff, 0x7f, 1, 2]);
        assert_eq!(reader.bytes(8), Err(CodecError::TooLong { found: 0x7fff_ffff, max: 8 }));
        let mut reader = Reader::new(&[200, 0, 0, 0, 1, 2]);
        assert_eq!(reader.count(1 << 20, 1), Err(CodecError::TooLong { found: 200, max: 2 }));
    }

    #[test]
    fn trailing_bytes_are_no_message() {
        let mut reader = Reader::new(&[1, 2]);
        reader.u8().unwrap();
        assert_eq!(reader.finish(), Err(CodecError::Trailing { extra_bytes: 1 }));
    }
}
