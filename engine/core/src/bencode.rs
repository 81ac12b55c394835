//! Bencoding (BEP 3): a strict decoder with exact spans, and an encoder that cannot be wrong.
//!
//! The decoder takes bytes from strangers. It does not recurse and it copies nothing: one pass checks
//! the whole document and keeps next to nothing of it: 20 bytes per list or dictionary that is open, 12
//! per long one. What
//! has been checked is then walked as it lies, so a document costs the memory of its bytes. A length
//! that a string claims is compared with the bytes at hand before anything else happens. Every value
//! knows its exact span, because the info hash is the hash of bytes as they came (BEP 52, infohash).
//!
//! Refused always: leading zeros, `-0`, integers past 64 bits, keys that are no strings, duplicate
//! keys, trailing bytes. Refused or reported, by [`KeyOrder`]: keys out of order.

mod check;
mod encode;
mod entry;
mod walk;

use thiserror::Error;

use self::check::{Checker, Large};
pub use self::encode::Encoder;
pub(crate) use self::entry::PlainEntry;
pub(crate) use self::walk::{DocumentEntries, Strings, string_at};
pub use self::walk::{Elements, Entries, Value};

/// What a document may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest input, in bytes. At most 4 GiB, whatever is given.
    pub len_max_bytes: usize,
    /// Lists and dictionaries inside one another.
    pub depth_max: u32,
    /// Values and keys, all counted.
    pub token_max: u32,
}

impl Limits {
    /// For messages of peers (BEP 9, BEP 10).
    pub const MESSAGE: Self =
        Self { len_max_bytes: 16 * 1024 * 1024, depth_max: 32, token_max: 1_000_000 };
}

/// What to do about dictionary keys that are out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrder {
    /// Refuse them, as BEP 3 asks.
    Strict,
    /// Take them and report the first by [`Document::first_unsorted`]: old v1 torrents have them.
    Lenient,
}

/// Why bytes are no bencoded value that we take. Offsets count bytes of the input.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BencodeError {
    /// The input is longer than allowed.
    #[error("input of {len_bytes} bytes is longer than {len_max_bytes}")]
    TooLong {
        /// Length of the input, in bytes.
        len_bytes: usize,
        /// The limit, in bytes.
        len_max_bytes: usize,
    },
    /// The input ends inside a value.
    #[error("input ends inside a value, at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: usize,
    },
    /// A byte that cannot stand here.
    #[error("unexpected byte {byte:#04x} at byte {offset}")]
    Unexpected {
        /// The byte.
        byte: u8,
        /// Where it is.
        offset: usize,
    },
    /// An integer or a length with leading zeros, or `-0`: not the one canonical way to write it.
    #[error("number at byte {offset} is not canonical")]
    NotCanonical {
        /// Where it begins.
        offset: usize,
    },
    /// An integer past 64 bits.
    #[error("number at byte {offset} does not fit 64 bits")]
    NumberRange {
        /// Where it begins.
        offset: usize,
    },
    /// A string claims more bytes than there are.
    #[error("string at byte {offset} claims {claimed} bytes of {left}")]
    StringPastEnd {
        /// Where it begins.
        offset: usize,
        /// The length that it claims, in bytes.
        claimed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// A dictionary key that is no string.
    #[error("dictionary key at byte {offset} is no string")]
    KeyNotString {
        /// Where it begins.
        offset: usize,
    },
    /// A key without a value.
    #[error("dictionary key at byte {offset} has no value")]
    KeyWithoutValue {
        /// Where the key begins.
        offset: usize,
    },
    /// A key that is smaller than the one before it.
    #[error("dictionary key at byte {offset} is out of order")]
    UnsortedKey {
        /// Where it begins.
        offset: usize,
    },
    /// A key that the dictionary already has.
    #[error("dictionary key at byte {offset} is a duplicate")]
    DuplicateKey {
        /// Where it begins.
        offset: usize,
    },
    /// Lists and dictionaries too deep inside one another.
    #[error("nesting at byte {offset} is deeper than {depth_max}")]
    TooDeep {
        /// Where the container begins.
        offset: usize,
        /// The limit.
        depth_max: u32,
    },
    /// Too many values.
    #[error("more than {token_max} values, at byte {offset}")]
    TooManyTokens {
        /// Where the first value past the limit begins.
        offset: usize,
        /// The limit.
        token_max: u32,
    },
    /// Bytes behind the value.
    #[error("bytes behind the value, at byte {offset}")]
    Trailing {
        /// Where they begin.
        offset: usize,
    },
}

/// A decoded document: input that has been checked. Borrows it.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    root: Value<'a>,
    large: Vec<Large>,
    first_unsorted: Option<usize>,
}

impl<'a> Document<'a> {
    /// Decodes exactly one value.
    ///
    /// # Errors
    /// [`BencodeError`], with the place.
    pub fn parse(bytes: &'a [u8], limits: Limits, order: KeyOrder) -> Result<Self, BencodeError> {
        let document = Self::parse_prefix(bytes, limits, order)?;
        let end = document.root().span().end;
        if end < bytes.len() {
            return Err(BencodeError::Trailing { offset: end });
        }
        Ok(document)
    }

    /// Decodes one value and leaves what is behind it; the value's span says where that begins
    /// (BEP 9 puts a piece of metadata behind a dictionary).
    ///
    /// # Errors
    /// [`BencodeError`], with the place.
    pub fn parse_prefix(
        bytes: &'a [u8],
        limits: Limits,
        order: KeyOrder,
    ) -> Result<Self, BencodeError> {
        let len_max_bytes = limits.len_max_bytes.min(u32::MAX as usize);
        if bytes.len() > len_max_bytes {
            return Err(BencodeError::TooLong { len_bytes: bytes.len(), len_max_bytes });
        }
        let mut checker = Checker::new(bytes, limits, order);
        let end = checker.run()?;
        let (large, first_unsorted) = checker.finish();
        Ok(Self { root: Value::new(bytes, 0, end), large, first_unsorted })
    }

    /// The value.
    pub fn root(&self) -> Value<'a> {
        self.root
    }

    /// The entries of a dictionary, as [`Value::as_dict`] gives them, but without walking over long
    /// values to find their ends.
    pub(crate) fn entries_of(&self, dict: Value<'a>) -> Option<DocumentEntries<'_, 'a>> {
        DocumentEntries::new(dict, &self.large)
    }

    /// How many elements a list has, or values a dictionary.
    pub(crate) fn count_of(&self, container: Value<'a>) -> usize {
        let start = container.span().start as u32;
        match self.large.binary_search_by_key(&start, |large| large.start) {
            Ok(at) => self.large[at].count as usize,
            Err(_) => {
                container.as_list().map_or(0, Iterator::count)
                    + container.as_dict().map_or(0, Iterator::count)
            }
        }
    }

    /// Where the first key out of order begins, in bytes; `None` if the input is canonical.
    pub fn first_unsorted(&self) -> Option<usize> {
        self.first_unsorted
    }
}

#[cfg(test)]
mod tests;
