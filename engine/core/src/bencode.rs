//! Bencoding (BEP 3): a strict decoder with exact spans, and an encoder that cannot be wrong.
//!
//! The decoder takes bytes from strangers. It does not recurse, it copies nothing, it allocates a
//! node of 12 bytes per value and no more values than its [`Limits`] allow, and a length that a
//! string claims is compared with the bytes at hand before anything else happens. Every value knows
//! its exact span, because the info hash is the hash of bytes as they came (BEP 52, infohash).
//!
//! Refused always: leading zeros, `-0`, integers past 64 bits, keys that are no strings, duplicate
//! keys, trailing bytes. Refused or reported, by [`KeyOrder`]: keys out of order.

use std::iter::FusedIterator;
use std::ops::Range;

use thiserror::Error;

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

/// One value. Its type is the first byte of its span.
#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    end: u32,
    /// Of a container: the node behind its last element. Of a string: where its bytes begin.
    link: u32,
}

/// A decoded document: the input and the spans of its values. Borrows the input.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
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
        let mut parser = Parser { bytes, at: 0, limits, order, nodes: Vec::new(), unsorted: None };
        parser.run()?;
        Ok(Self { bytes, nodes: parser.nodes, first_unsorted: parser.unsorted })
    }

    /// The value.
    pub fn root(&self) -> Value<'_, 'a> {
        Value { document: self, at: 0 }
    }

    /// Where the first key out of order begins, in bytes; `None` if the input is canonical.
    pub fn first_unsorted(&self) -> Option<usize> {
        self.first_unsorted
    }
}

/// A list or dictionary that is not closed yet.
struct Open {
    node: u32,
    is_dict: bool,
    /// The key that waits for its value.
    key: Option<Range<usize>>,
    last_key: Option<Range<usize>>,
    unsorted: bool,
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    limits: Limits,
    order: KeyOrder,
    nodes: Vec<Node>,
    unsorted: Option<usize>,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), BencodeError> {
        let mut open: Vec<Open> = Vec::new(); // never longer than `depth_max`
        loop {
            let start = self.at;
            let byte = self.peek()?;
            if byte == b'e' && !open.is_empty() {
                self.at += 1;
                self.close(open.pop().expect("checked on the line above"))?;
            } else {
                if let Some(parent) = open.last_mut().filter(|parent| parent.is_dict) {
                    if parent.key.is_none() {
                        let key = self.key(parent)?;
                        parent.key = Some(key);
                        continue;
                    }
                    parent.last_key = parent.key.take();
                }
                match byte {
                    b'l' | b'd' => {
                        if open.len() as u32 >= self.limits.depth_max {
                            let depth_max = self.limits.depth_max;
                            return Err(BencodeError::TooDeep { offset: start, depth_max });
                        }
                        self.at += 1;
                        let node = self.push(start, 0)?;
                        let is_dict = byte == b'd';
                        open.push(Open {
                            node,
                            is_dict,
                            key: None,
                            last_key: None,
                            unsorted: false,
                        });
                        continue;
                    }
                    b'i' => self.integer()?,
                    b'0'..=b'9' => self.string().map(|_| ())?,
                    byte => return Err(BencodeError::Unexpected { byte, offset: start }),
                }
            }
            if open.is_empty() {
                return Ok(());
            }
        }
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.bytes.get(self.at).copied().ok_or(BencodeError::Truncated { offset: self.at })
    }

    /// Notes a value from `start` to where we are.
    fn push(&mut self, start: usize, link: u32) -> Result<u32, BencodeError> {
        let token_max = self.limits.token_max;
        if self.nodes.len() >= token_max as usize {
            return Err(BencodeError::TooManyTokens { offset: start, token_max });
        }
        let node = self.nodes.len() as u32;
        // Offsets fit: the input is at most 4 GiB long.
        self.nodes.push(Node { start: start as u32, end: self.at as u32, link });
        Ok(node)
    }

    fn close(&mut self, open: Open) -> Result<(), BencodeError> {
        if let Some(key) = open.key {
            return Err(BencodeError::KeyWithoutValue { offset: key.start });
        }
        let end = self.nodes.len() as u32;
        let node = &mut self.nodes[open.node as usize];
        node.end = self.at as u32;
        node.link = end;
        if open.unsorted {
            self.refuse_duplicates(open.node)?;
        }
        Ok(())
    }

    /// Keys in order are compared as they come; of an unsorted dictionary all must be looked at.
    fn refuse_duplicates(&mut self, dict: u32) -> Result<(), BencodeError> {
        let nodes = std::mem::take(&mut self.nodes);
        let document = Document { bytes: self.bytes, nodes, first_unsorted: None };
        let value = Value { document: &document, at: dict };
        let mut keys: Vec<&[u8]> =
            value.as_dict().into_iter().flatten().map(|(key, _)| key).collect();
        keys.sort_unstable();
        let is_twice = keys.windows(2).any(|pair| pair[0] == pair[1]);
        let offset = value.span().start;
        self.nodes = document.nodes;
        if is_twice { Err(BencodeError::DuplicateKey { offset }) } else { Ok(()) }
    }

    fn key(&mut self, dict: &mut Open) -> Result<Range<usize>, BencodeError> {
        let offset = self.at;
        if !self.peek()?.is_ascii_digit() {
            return Err(BencodeError::KeyNotString { offset });
        }
        let text = self.string()?;
        if let Some(last) = dict.last_key.clone() {
            match self.bytes[text.clone()].cmp(&self.bytes[last]) {
                std::cmp::Ordering::Greater => {}
                std::cmp::Ordering::Equal => return Err(BencodeError::DuplicateKey { offset }),
                std::cmp::Ordering::Less if self.order == KeyOrder::Strict => {
                    return Err(BencodeError::UnsortedKey { offset });
                }
                std::cmp::Ordering::Less => {
                    dict.unsorted = true;
                    self.unsorted.get_or_insert(offset);
                }
            }
        }
        Ok(text)
    }

    fn string(&mut self) -> Result<Range<usize>, BencodeError> {
        let offset = self.at;
        let claimed = self.digits(b':')?;
        let left = self.bytes.len() - self.at;
        let Some(len) = usize::try_from(claimed).ok().filter(|&len| len <= left) else {
            return Err(BencodeError::StringPastEnd { offset, claimed, left });
        };
        let text = self.at..self.at + len;
        self.at = text.end;
        self.push(offset, text.start as u32)?;
        Ok(text)
    }

    fn integer(&mut self) -> Result<(), BencodeError> {
        let offset = self.at;
        self.at += 1;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let value = self.digits(b'e')?;
        if negative && value == 0 {
            return Err(BencodeError::NotCanonical { offset });
        }
        if value > i64::MAX as u64 + u64::from(negative) {
            return Err(BencodeError::NumberRange { offset });
        }
        self.push(offset, 0).map(drop)
    }

    /// Canonical decimal digits up to `end`, which is taken too.
    fn digits(&mut self, end: u8) -> Result<u64, BencodeError> {
        let offset = self.at;
        let mut value = 0_u64;
        loop {
            let byte = self.peek()?;
            if byte == end && self.at > offset {
                break;
            }
            if !byte.is_ascii_digit() {
                return Err(BencodeError::Unexpected { byte, offset: self.at });
            }
            if self.at > offset && self.bytes[offset] == b'0' {
                return Err(BencodeError::NotCanonical { offset });
            }
            value = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                .ok_or(BencodeError::NumberRange { offset })?;
            self.at += 1;
        }
        self.at += 1;
        Ok(value)
    }
}

/// A value of a [`Document`].
#[derive(Clone, Copy)]
pub struct Value<'d, 'a> {
    document: &'d Document<'a>,
    at: u32,
}

impl<'d, 'a> Value<'d, 'a> {
    fn node(&self) -> Node {
        self.document.nodes[self.at as usize]
    }

    fn first_byte(&self) -> u8 {
        self.document.bytes[self.node().start as usize]
    }

    /// Where the value is in the input, in bytes.
    pub fn span(&self) -> Range<usize> {
        let node = self.node();
        node.start as usize..node.end as usize
    }

    /// The value as it came, still encoded.
    pub fn raw(&self) -> &'a [u8] {
        &self.document.bytes[self.span()]
    }

    /// The bytes of a string.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        let node = self.node();
        let text = node.link as usize..node.end as usize;
        self.first_byte().is_ascii_digit().then(|| &self.document.bytes[text])
    }

    /// An integer.
    pub fn as_int(&self) -> Option<i64> {
        let raw = self.raw();
        let digits = raw.strip_prefix(b"i")?.strip_suffix(b"e")?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// An integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        u64::try_from(self.as_int()?).ok()
    }

    /// The elements of a list, in order.
    pub fn as_list(&self) -> Option<Elements<'d, 'a>> {
        (self.first_byte() == b'l').then(|| Elements {
            document: self.document,
            next: self.at + 1,
            end: self.node().link,
        })
    }

    /// The entries of a dictionary, in the order of the input.
    pub fn as_dict(&self) -> Option<Entries<'d, 'a>> {
        (self.first_byte() == b'd').then(|| Entries {
            document: self.document,
            next: self.at + 1,
            end: self.node().link,
        })
    }

    /// The value under `key`, if this is a dictionary that has it. Looks at all keys.
    pub fn get(&self, key: &[u8]) -> Option<Value<'d, 'a>> {
        self.as_dict()?.find_map(|(found, value)| (found == key).then_some(value))
    }

    /// The node behind this value and all that is in it.
    fn behind(&self) -> u32 {
        match self.first_byte() {
            b'l' | b'd' => self.node().link,
            _ => self.at + 1,
        }
    }
}

impl std::fmt::Debug for Value<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({:?} at {:?})", char::from(self.first_byte()), self.span())
    }
}

/// The elements of a list; made by [`Value::as_list`].
#[derive(Clone, Debug)]
pub struct Elements<'d, 'a> {
    document: &'d Document<'a>,
    next: u32,
    end: u32,
}

impl<'d, 'a> Iterator for Elements<'d, 'a> {
    type Item = Value<'d, 'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let value = Value { document: self.document, at: self.next };
        (self.next < self.end).then(|| {
            self.next = value.behind();
            value
        })
    }
}

impl FusedIterator for Elements<'_, '_> {}

/// The entries of a dictionary; made by [`Value::as_dict`].
#[derive(Clone, Debug)]
pub struct Entries<'d, 'a> {
    document: &'d Document<'a>,
    next: u32,
    end: u32,
}

impl<'d, 'a> Iterator for Entries<'d, 'a> {
    type Item = (&'a [u8], Value<'d, 'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let key = Value { document: self.document, at: self.next };
        let value = Value { document: self.document, at: self.next + 1 };
        self.next = value.behind();
        // The parser put a string before every value of a dictionary.
        Some((key.as_bytes()?, value))
    }
}

impl FusedIterator for Entries<'_, '_> {}

/// Writes canonical bencoding. Calls that would write anything else are bugs of ours and panic.
#[derive(Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
    open: Vec<OpenOut>,
}

#[derive(Debug)]
struct OpenOut {
    is_dict: bool,
    last_key: Option<Range<usize>>,
    /// A key was written and its value is due.
    wants_value: bool,
}

impl Encoder {
    /// Writes into a buffer of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes an integer.
    pub fn int(&mut self, value: impl Into<i128>) -> &mut Self {
        self.before_value();
        let value: i128 = value.into();
        self.out.extend_from_slice(format!("i{value}e").as_bytes());
        self
    }

    /// Writes a string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.before_value();
        self.string(value);
        self
    }

    /// Writes a value that is encoded already.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.before_value();
        self.out.extend_from_slice(value);
        self
    }

    /// Writes a key. Keys must come in order.
    pub fn key(&mut self, key: &[u8]) -> &mut Self {
        let open = self.open.last_mut().expect("a key outside of a dictionary");
        assert!(open.is_dict && !open.wants_value, "a key where a value is due");
        open.wants_value = true;
        if let Some(last) = open.last_key.take() {
            assert!(&self.out[last] < key, "keys out of order");
        }
        self.string(key);
        let end = self.out.len();
        if let Some(open) = self.open.last_mut() {
            open.last_key = Some(end - key.len()..end);
        }
        self
    }

    /// Begins a list.
    pub fn list(&mut self) -> &mut Self {
        self.begin(b'l')
    }

    /// Begins a dictionary.
    pub fn dict(&mut self) -> &mut Self {
        self.begin(b'd')
    }

    /// Ends the list or dictionary begun last.
    pub fn end(&mut self) -> &mut Self {
        let open = self.open.pop().expect("nothing to end");
        assert!(!open.wants_value, "a key without a value");
        self.out.push(b'e');
        self
    }

    /// The bytes written.
    pub fn finish(self) -> Vec<u8> {
        assert!(self.open.is_empty(), "a list or dictionary without its end");
        self.out
    }

    fn begin(&mut self, byte: u8) -> &mut Self {
        self.before_value();
        self.out.push(byte);
        self.open.push(OpenOut { is_dict: byte == b'd', last_key: None, wants_value: false });
        self
    }

    fn string(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value.len().to_string().as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(value);
    }

    fn before_value(&mut self) {
        if let Some(open) = self.open.last_mut().filter(|open| open.is_dict) {
            assert!(std::mem::take(&mut open.wants_value), "a value without a key");
        }
    }
}

#[cfg(test)]
mod tests;
