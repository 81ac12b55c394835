//! Walking input that has been checked. Nothing here looks for errors again: what is read must be a
//! value that the [`Checker`](super::check::Checker) passed; anything else panics or reads nonsense.

use std::iter::FusedIterator;
use std::ops::Range;

use super::check::Large;

/// A value of a checked document. Its type is the first byte of its span.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    bytes: &'a [u8],
    // Offsets fit: the input is at most 4 GiB long.
    start: u32,
    end: u32,
}

impl<'a> Value<'a> {
    pub(super) fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        Self { bytes, start: start as u32, end: end as u32 }
    }

    /// The value that begins at `start` of input that has been checked before.
    pub(crate) fn at(bytes: &'a [u8], start: usize) -> Self {
        Self::new(bytes, start, behind(bytes, start))
    }

    fn first_byte(&self) -> u8 {
        self.bytes[self.start as usize]
    }

    /// Where the value is in the input, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The value as it came, still encoded.
    pub fn raw(&self) -> &'a [u8] {
        &self.bytes[self.span()]
    }

    /// The bytes of a string.
    #[inline]
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        let is_string = self.first_byte().is_ascii_digit();
        is_string.then(|| &self.bytes[string_at(self.bytes, self.start as usize)])
    }

    /// An integer.
    #[inline]
    pub fn as_int(&self) -> Option<i64> {
        let digits = self.raw().strip_prefix(b"i")?.strip_suffix(b"e")?;
        let (digits, negative) = match digits.strip_prefix(b"-") {
            Some(digits) => (digits, true),
            None => (digits, false),
        };
        // At most 2^63, and 2^63 only if it is negative.
        let value = digits.iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        Some(if negative { (value as i64).wrapping_neg() } else { value as i64 })
    }

    /// An integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        u64::try_from(self.as_int()?).ok()
    }

    /// The elements of a list, in order.
    pub fn as_list(&self) -> Option<Elements<'a>> {
        let (bytes, next) = (self.bytes, self.start as usize + 1);
        (self.first_byte() == b'l').then_some(Elements { bytes, next })
    }

    /// The elements of a list that has nothing but strings.
    pub(crate) fn as_strings(&self) -> Option<Strings<'a>> {
        let are_strings = self.as_list()?.all(|element| element.first_byte().is_ascii_digit());
        are_strings.then(|| Strings::resume(self.bytes, self.start as usize + 1))
    }

    /// The entries of a dictionary, in the order of the input.
    pub fn as_dict(&self) -> Option<Entries<'a>> {
        let (bytes, next) = (self.bytes, self.start as usize + 1);
        (self.first_byte() == b'd').then_some(Entries { bytes, next })
    }

    /// The value under `key`, if this is a dictionary that has it. Walks over all that is in front
    /// of it.
    pub fn get(&self, key: &[u8]) -> Option<Value<'a>> {
        self.as_dict()?.find_map(|(found, value)| (found == key).then_some(value))
    }
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({:?} at {:?})", char::from(self.first_byte()), self.span())
    }
}

/// Where the bytes of the string lie that begins at `start`.
#[inline]
pub(crate) fn string_at(bytes: &[u8], start: usize) -> Range<usize> {
    let mut at = start;
    let mut len = 0;
    while bytes[at] != b':' {
        len = len * 10 + usize::from(bytes[at] - b'0');
        at += 1;
    }
    at + 1..at + 1 + len
}

/// Where the value that begins at `start` ends.
#[inline]
fn behind(bytes: &[u8], start: usize) -> usize {
    match bytes[start] {
        b'0'..=b'9' => string_at(bytes, start).end,
        b'i' => integer_end(bytes, start),
        _ => container_end(bytes, start),
    }
}

#[inline]
fn integer_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while bytes[at] != b'e' {
        at += 1;
    }
    at + 1
}

fn container_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_u32;
    let mut at = start;
    loop {
        match bytes[at] {
            b'0'..=b'9' => at = string_at(bytes, at).end,
            b'i' => at = integer_end(bytes, at),
            b'e' => {
                at += 1;
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            _ => {
                at += 1;
                depth += 1;
            }
        }
    }
}

/// The elements of a list; made by [`Value::as_list`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        (self.bytes[self.next] != b'e').then(|| {
            let value = Value::at(self.bytes, self.next);
            self.next = value.end as usize;
            value
        })
    }
}

impl FusedIterator for Elements<'_> {}

/// The elements of a list of strings; made by [`Value::as_strings`].
#[derive(Clone, Debug)]
pub(crate) struct Strings<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl<'a> Strings<'a> {
    /// No strings.
    pub(crate) fn none() -> Self {
        Self { bytes: b"e", next: 0 }
    }

    /// The strings from the one that begins at `next` to the end of their list.
    pub(crate) fn resume(bytes: &'a [u8], next: usize) -> Self {
        Self { bytes, next }
    }

    /// The strings as they stand there, and where in them the text of the last one begins.
    pub(crate) fn encoded(&self) -> (&'a [u8], usize) {
        let (mut end, mut last_text) = (self.next, self.next);
        while self.bytes[end] != b'e' {
            let text = string_at(self.bytes, end);
            (last_text, end) = (text.start, text.end);
        }
        (&self.bytes[self.next..end], last_text - self.next)
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        (self.bytes[self.next] != b'e').then(|| {
            let text = string_at(self.bytes, self.next);
            self.next = text.end;
            &self.bytes[text]
        })
    }
}

impl FusedIterator for Strings<'_> {}

/// The entries of a dictionary; made by [`Value::as_dict`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        (self.bytes[self.next] != b'e').then(|| {
            let key = string_at(self.bytes, self.next);
            let value = Value::at(self.bytes, key.end);
            self.next = value.end as usize;
            (&self.bytes[key], value)
        })
    }
}

impl FusedIterator for Entries<'_> {}

/// As [`Entries`], with the long values of a document looked up.
pub(crate) struct DocumentEntries<'d, 'a> {
    entries: Entries<'a>,
    large: &'d [Large],
}

impl<'d, 'a> DocumentEntries<'d, 'a> {
    pub(super) fn new(dict: Value<'a>, large: &'d [Large]) -> Option<Self> {
        dict.as_dict().map(|entries| Self { entries, large })
    }
}

impl<'a> Iterator for DocumentEntries<'_, 'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let Entries { bytes, next } = self.entries;
        if bytes[next] == b'e' {
            return None;
        }
        let key = string_at(bytes, next);
        let start = key.end as u32;
        match self.large.binary_search_by_key(&start, |large| large.start) {
            Ok(at) => {
                let value = Value { bytes, start, end: self.large[at].end };
                self.entries.next = value.end as usize;
                Some((&bytes[key], value))
            }
            Err(_) => self.entries.next(),
        }
    }
}
