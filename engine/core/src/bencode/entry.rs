//! One shape of dictionary, read at a stroke: a length, a path, and nothing else (BEP 3).
//!
//! A torrent of many files consists of such entries nearly whole. Read key by key, each costs a dozen
//! decisions that a processor guesses wrong; here it costs two comparisons, one number and a short length
//! per name. Whatever deviates, be it wrong or only unusual, is `None`, and is read with care instead.

use std::ops::Range;

const HEAD: &[u8; 10] = b"d6:lengthi";
const MIDDLE: &[u8; 8] = b"e4:pathl";
/// Values of an entry beside its names, keys included: itself, two keys, the number, the list.
const TOKENS_BESIDE_NAMES: u32 = 5;

/// What an entry says. Offsets are of the input.
#[derive(Clone, Debug)]
pub(crate) struct PlainEntry {
    pub len_bytes: u64,
    /// The names, still encoded.
    pub path: Range<usize>,
    /// Where the text of the last name begins.
    pub last_text: usize,
    /// How many names there are.
    pub name_count: u32,
    /// Length of the shortest name, in bytes. No name is longer than 99.
    pub shortest_bytes: usize,
}

impl PlainEntry {
    /// Reads the entry that begins at `start`. The input need not have been checked.
    // Always: the checker wants no number, and saves making it.
    #[inline(always)]
    pub fn read(bytes: &[u8], start: usize) -> Option<Self> {
        let rest = bytes.get(start..)?;
        let (head, number) = rest.split_first_chunk::<10>()?;
        if head != HEAD {
            return None;
        }
        let (len_bytes, digit_count) = short_number(number)?;
        let (middle, _) = number.get(digit_count..)?.split_first_chunk::<8>()?;
        if middle != MIDDLE {
            return None;
        }
        let path_at = HEAD.len() + digit_count + MIDDLE.len();
        let (mut at, mut last_text) = (path_at, path_at);
        let (mut name_count, mut shortest_bytes) = (0, usize::MAX);
        loop {
            // The dictionary around the list has bytes behind the entry.
            let (len, text) = match *rest.get(at..)?.first_chunk::<3>()? {
                [b'e', b'e', _] => break,
                [one @ b'0'..=b'9', b':', _] => (usize::from(one - b'0'), at + 2),
                [ten @ b'1'..=b'9', one @ b'0'..=b'9', b':'] => {
                    (usize::from(ten - b'0') * 10 + usize::from(one - b'0'), at + 3)
                }
                _ => return None,
            };
            (at, last_text) = (text + len, text);
            name_count += 1;
            shortest_bytes = shortest_bytes.min(len);
        }
        let path = start + path_at..start + at;
        Some(Self { len_bytes, path, last_text: start + last_text, name_count, shortest_bytes })
    }

    /// Where the entry ends.
    pub fn end(&self) -> usize {
        self.path.end + 2
    }

    /// How many values it has, keys and itself included.
    pub fn token_count(&self) -> u32 {
        TOKENS_BESIDE_NAMES + self.name_count
    }
}

/// The canonical number of at most eight digits that the text begins with, and how many they are.
#[inline]
fn short_number(text: &[u8]) -> Option<(u64, usize)> {
    let digits = u64::from_le_bytes(*text.first_chunk()?) ^ u64::from_le_bytes([b'0'; 8]);
    // The highest bit of every byte over nine is set, and what is carried into others stays behind it.
    let others = (digits.wrapping_add(u64::from_le_bytes([0x76; 8])) | digits)
        & u64::from_le_bytes([0x80; 8]);
    let count = others.trailing_zeros() / 8;
    if count == 0 || (count > 1 && digits & 0xff == 0) {
        return None;
    }
    // To the end of the word, as if zeros stood in front; then pairs, fours and eights are added up.
    let digits = digits << (64 - 8 * count);
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    let value = fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff;
    Some((value, count as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Document, KeyOrder, Limits};
    use super::*;

    #[test]
    fn numbers_are_read_as_they_stand() {
        let number = |text: &str| short_number(format!("{text}e4:pathl").as_bytes());
        for value in [0, 1, 9, 10, 99, 100, 9_999_999, 12_345_678, 99_999_999, 40_302_010] {
            let text = format!("{value}");
            assert_eq!(number(&text), Some((value, text.len())), "{value}");
        }
        for text in ["", "-1", "01", "00", "x"] {
            assert_eq!(number(text), None, "{text}");
        }
        // The ninth digit is no end of the number, and that is seen by whoever looks behind the eighth.
        assert_eq!(number("123456789"), Some((12_345_678, 8)));
        assert_eq!(short_number(b"1234567"), None, "too near the end");
    }

    #[test]
    fn an_entry_is_read_whole_or_not_at_all() {
        let entry = b"xd6:lengthi1234e4:pathl2:ab12:cdefghijklmneeee";
        let read = PlainEntry::read(entry, 1).unwrap();
        assert_eq!((read.len_bytes, read.name_count, read.shortest_bytes), (1234, 2, 2));
        assert_eq!(&entry[read.path.clone()], b"2:ab12:cdefghijklmn");
        assert_eq!(&entry[read.last_text..read.path.end], b"cdefghijklmn");
        assert_eq!(&entry[read.end()..], b"ee");
        assert_eq!(read.token_count(), 7);
        for other in [
            &b"d6:lengthi1234e4:pathl2:abe3:xyz1:aee"[..],
            b"d6:lengthi01e4:pathl2:abeeee",
            b"d6:lengthi-1e4:pathl2:abeeee",
            b"d6:lengthi123456789e4:pathl2:abeeee",
            b"d6:lengthi1e4:pathl02:abeeee",
            b"d6:lengthi1e4:pathl2abeeee",
            b"d6:lengthi1e4:pathli5eeeee",
            b"d6:lengthi1e4:pathl100:abeeee",
            b"d6:lengthi1e4:pathl9:abeeee",
            b"d6:lengthi1e4:pathl2:abe",
            b"d4:pathl2:abe6:lengthi1eeee",
            b"d6:lengthi1e4:path2:abeeee",
            b"",
        ] {
            assert!(PlainEntry::read(other, 0).is_none(), "{}", other.escape_ascii());
            assert!(PlainEntry::read(other, 99).is_none());
        }
    }

    proptest! {
        /// What is read at a stroke is what the checker lets pass and a walk finds, whatever stands there.
        #[test]
        fn a_stroke_and_a_walk_agree(
            len in prop_oneof![Just(String::from("01")), Just(String::from("-3")), (0..u64::MAX / 2).prop_map(|len| len.to_string()), (0..2000_u64).prop_map(|len| len.to_string())],
            names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..4),
            flip in proptest::option::of((0..60_usize, any::<u8>())),
        ) {
            let mut bytes = format!("d6:lengthi{len}e4:pathl").into_bytes();
            for name in &names {
                bytes.extend(format!("{}:", name.len()).as_bytes());
                bytes.extend(name);
            }
            bytes.extend(b"ee");
            if let Some((at, byte)) = flip {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            // A list around it, as in a torrent.
            let framed = [b"l", &bytes[..], b"e"].concat();
            let limits = Limits::MESSAGE;
            let document = Document::parse(&framed, limits, KeyOrder::Strict);
            if let Some(read) = PlainEntry::read(&framed, 1) {
                // Behind the entry may follow what is wrong, but the entry is not.
                let alone = [b"l", &framed[1..read.end()], b"e"].concat();
                let document = Document::parse(&alone, limits, KeyOrder::Strict).unwrap();
                let entry = document.root().as_list().unwrap().next().unwrap();
                prop_assert_eq!(entry.get(b"length").unwrap().as_u64(), Some(read.len_bytes));
                let found: Vec<&[u8]> = entry.get(b"path").unwrap().as_strings().unwrap().collect();
                prop_assert_eq!(found.len(), read.name_count as usize);
                prop_assert_eq!(found.iter().map(|name| name.len()).min().unwrap_or(usize::MAX), read.shortest_bytes);
            } else if document.is_ok() && flip.is_none() {
                prop_assert!(len.len() > 8 || len.starts_with('-') || names.iter().any(|name| name.len() > 99));
            }
        }
    }
}
