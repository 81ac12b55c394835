//! Fixed canonical bytes: little endian, exact lengths, one byte string per meaning.
//!
//! Nothing that is signed or hashed goes through a general serializer: what these two types write is
//! the format. Keys of the state are the one exception to little endian (see `record`), because their
//! byte order must be their numeric order.

use thiserror::Error;

/// Why bytes are not the canonical encoding of anything.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("bytes end inside {field}")]
    Truncated {
        /// The field that could not be read whole.
        field: &'static str,
    },
    /// Bytes follow the last field.
    #[error("{count} bytes follow the end")]
    Trailing {
        /// How many bytes were left.
        count: usize,
    },
    /// A field holds a value that the format does not allow.
    #[error("{field}: {reason}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Which rule of the format it breaks.
        reason: &'static str,
    },
}

/// A field that breaks a rule of its format.
pub(crate) fn field_error(field: &'static str, reason: &'static str) -> DecodeError {
    DecodeError::Field { field, reason }
}

/// Reads fields off the front of a byte string; never reads past its end and never allocates more
/// than it was given.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Refuses bytes behind the last field, so that no two byte strings mean the same.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(DecodeError::Trailing { count: self.rest.len() })
    }

    pub(crate) fn bytes(
        &mut self,
        len: usize,
        field: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A string with a one-byte length, at most `len_max` bytes of UTF-8.
    pub(crate) fn text(
        &mut self,
        len_max: usize,
        field: &'static str,
    ) -> Result<String, DecodeError> {
        let len = usize::from(self.u8(field)?);
        if len > len_max {
            return Err(field_error(field, "is longer than allowed"));
        }
        let bytes = self.bytes(len, field)?;
        let text = core::str::from_utf8(bytes).map_err(|_| field_error(field, "is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// A byte string with a four-byte length.
    pub(crate) fn blob(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.u32(field)?;
        let len = usize::try_from(len).map_err(|_| DecodeError::Truncated { field })?;
        self.bytes(len, field)
    }
}

/// Appends fields to a byte string.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A string with a one-byte length. Callers check the length before; what is longer would be cut.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
        self.u8(len);
        self.bytes(text.as_bytes().get(..usize::from(len)).unwrap_or_default())
    }

    /// A byte string with a four-byte length.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.u32(len);
        self.bytes(bytes)
    }
}
