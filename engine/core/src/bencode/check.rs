//! The one pass that checks a document.

use std::cmp::Ordering;
use std::ops::Range;

use super::entry::PlainEntry;
use super::walk::Value;
use super::{BencodeError, KeyOrder, Limits};

/// A list or dictionary that is not closed yet. Offsets fit 32 bits: the input is at most 4 GiB.
#[derive(Clone, Copy)]
struct Open {
    start: u32,
    /// Where the bytes of the last key lie; nowhere (`0..0`) before the first.
    key_start: u32,
    key_end: u32,
    is_dict: bool,
    wants_value: bool,
    unsorted: bool,
    /// Elements of a list, values of a dictionary.
    count: u32,
}

/// Containers of at least so many bytes are remembered, in order not to walk over them again.
const LARGE_BYTES: usize = 64 * 1024;

/// A long list or dictionary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    pub start: u32,
    pub end: u32,
    /// Elements of a list, values of a dictionary.
    pub count: u32,
}

/// Reads input that nobody has looked at. After [`Checker::run`] it may be walked.
pub(super) struct Checker<'a> {
    bytes: &'a [u8],
    at: usize,
    limits: Limits,
    order: KeyOrder,
    token_count: u32,
    unsorted: Option<usize>,
    large: Vec<Large>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: Limits, order: KeyOrder) -> Self {
        Self { bytes, at: 0, limits, order, token_count: 0, unsorted: None, large: Vec::new() }
    }

    /// Long containers by where they begin, and where the first key out of order begins.
    pub(super) fn finish(mut self) -> (Vec<Large>, Option<usize>) {
        self.large.sort_unstable_by_key(|large| large.start);
        (self.large, self.unsorted)
    }

    /// Checks one value and tells where it ends.
    pub(super) fn run(&mut self) -> Result<usize, BencodeError> {
        let mut outer: Vec<Open> = Vec::new(); // with `open` never longer than `depth_max`
        let mut open: Option<Open> = None;
        loop {
            let start = self.at;
            let byte = self.peek()?;
            match &mut open {
                Some(dict) if dict.is_dict && !dict.wants_value && byte != b'e' => {
                    self.key(dict)?;
                    dict.wants_value = true;
                    continue;
                }
                Some(dict) if byte == b'e' && dict.is_dict && dict.wants_value => {
                    return Err(BencodeError::KeyWithoutValue { offset: dict.key_start as usize });
                }
                Some(closed) if byte == b'e' => {
                    self.at += 1;
                    if closed.unsorted {
                        self.refuse_duplicates(closed.start as usize)?;
                    }
                    if self.at - closed.start as usize >= LARGE_BYTES {
                        let (start, end) = (closed.start, self.at as u32);
                        self.large.push(Large { start, end, count: closed.count });
                    }
                    open = outer.pop();
                }
                parent => {
                    if let Some(parent) = parent {
                        parent.wants_value = false;
                        parent.count += 1;
                    }
                    match byte {
                        b'0'..=b'9' => {
                            self.string()?;
                        }
                        b'i' => self.integer()?,
                        b'd' if self
                            .plain_entry(outer.len() as u32 + u32::from(open.is_some())) => {}
                        b'l' | b'd' => {
                            self.begin(outer.len() as u32 + u32::from(open.is_some()))?;
                            outer.extend(open);
                            open = Some(Open {
                                start: start as u32,
                                key_start: 0,
                                key_end: 0,
                                is_dict: byte == b'd',
                                wants_value: false,
                                unsorted: false,
                                count: 0,
                            });
                            continue;
                        }
                        byte => return Err(BencodeError::Unexpected { byte, offset: start }),
                    }
                }
            }
            if open.is_none() {
                return Ok(self.at);
            }
        }
    }

    #[inline]
    fn peek(&self) -> Result<u8, BencodeError> {
        self.bytes.get(self.at).copied().ok_or(BencodeError::Truncated { offset: self.at })
    }

    #[inline]
    fn count(&mut self, offset: usize) -> Result<(), BencodeError> {
        let token_max = self.limits.token_max;
        if self.token_count >= token_max {
            return Err(BencodeError::TooManyTokens { offset, token_max });
        }
        self.token_count += 1;
        Ok(())
    }

    /// Passes a plain entry of a list of files inside `depth` others; false when something else stands here,
    /// or a limit is near.
    #[inline]
    fn plain_entry(&mut self, depth: u32) -> bool {
        let Some(entry) = PlainEntry::read(self.bytes, self.at) else { return false };
        let token_count = self.token_count.saturating_add(entry.token_count());
        let is_long = entry.end() - self.at >= LARGE_BYTES;
        if is_long || token_count > self.limits.token_max || depth + 2 > self.limits.depth_max {
            return false;
        }
        (self.token_count, self.at) = (token_count, entry.end());
        true
    }

    /// The first byte of a list or dictionary inside `depth` others.
    fn begin(&mut self, depth: u32) -> Result<(), BencodeError> {
        let offset = self.at;
        let depth_max = self.limits.depth_max;
        if depth >= depth_max {
            return Err(BencodeError::TooDeep { offset, depth_max });
        }
        self.at += 1;
        self.count(offset)
    }

    fn key(&mut self, dict: &mut Open) -> Result<(), BencodeError> {
        let offset = self.at;
        if !self.bytes[offset].is_ascii_digit() {
            return Err(BencodeError::KeyNotString { offset });
        }
        let text = self.string()?;
        // Bytes of a key lie behind its length, so never at 0.
        if dict.key_start > 0 {
            let last = &self.bytes[dict.key_start as usize..dict.key_end as usize];
            match self.bytes[text.clone()].cmp(last) {
                Ordering::Greater => {}
                Ordering::Equal => return Err(BencodeError::DuplicateKey { offset }),
                Ordering::Less if self.order == KeyOrder::Strict => {
                    return Err(BencodeError::UnsortedKey { offset });
                }
                Ordering::Less => {
                    dict.unsorted = true;
                    self.unsorted.get_or_insert(offset);
                }
            }
        }
        (dict.key_start, dict.key_end) = (text.start as u32, text.end as u32);
        Ok(())
    }

    /// Keys in order are compared as they come; of an unsorted dictionary all must be looked at.
    fn refuse_duplicates(&self, offset: usize) -> Result<(), BencodeError> {
        let value = Value::new(self.bytes, offset, self.at);
        let mut keys: Vec<&[u8]> =
            value.as_dict().into_iter().flatten().map(|(key, _)| key).collect();
        keys.sort_unstable();
        let is_twice = keys.windows(2).any(|pair| pair[0] == pair[1]);
        if is_twice { Err(BencodeError::DuplicateKey { offset }) } else { Ok(()) }
    }

    #[inline]
    fn string(&mut self) -> Result<Range<usize>, BencodeError> {
        let offset = self.at;
        let claimed = self.digits(b':')?;
        let left = self.bytes.len() - self.at;
        let Some(len) = usize::try_from(claimed).ok().filter(|&len| len <= left) else {
            return Err(BencodeError::StringPastEnd { offset, claimed, left });
        };
        self.count(offset)?;
        let text = self.at..self.at + len;
        self.at = text.end;
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
        self.count(offset)
    }

    /// Canonical decimal digits up to `end`, which is taken too.
    #[inline]
    fn digits(&mut self, end: u8) -> Result<u64, BencodeError> {
        // The common case without looking for what may be wrong: so few digits cannot overflow.
        let text = &self.bytes[self.at..];
        let mut value = 0_u64;
        for (at, &byte) in text.iter().enumerate().take(18) {
            let digit = byte.wrapping_sub(b'0');
            if digit <= 9 {
                value = value * 10 + u64::from(digit);
            } else if byte == end && (at == 1 || at > 1 && text[0] != b'0') {
                self.at += at + 1;
                return Ok(value);
            } else {
                break;
            }
        }
        self.digits_with_care(end)
    }

    #[cold]
    fn digits_with_care(&mut self, end: u8) -> Result<u64, BencodeError> {
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
