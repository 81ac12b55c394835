//! Which files of a torrent are wanted (BEP 53): `0,2,4-7`.
//!
//! Numbers count files from 0 in the order of the torrent. What a person types counts **without pads**,
//! because pads are no files to anybody who looks at a torrent. A link's `so=` counts **with pads**: they
//! are entries of the `files` list that BEP 53 was written for, and libtorrent, which made such links
//! common, also counts the pads that a v2 torrent only implies (seen: 2.0.8 to 2.1.1). So a number means the
//! same file by either name of a hybrid, here and there. See [`Numbering`].

use std::fmt;
use std::ops::RangeInclusive;

use thiserror::Error;

use crate::geometry::{FILE_COUNT_MAX, Kind};
use crate::metainfo::Info;

/// Most ranges in one selection; what is longer is no list that a person wrote or a link could carry.
pub const RANGES_MAX: usize = 4096;

/// What a file's number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// Files that a person sees: neither pads nor links, which are never written.
    Shown,
    /// Every entry of the torrent's list, pads and links included, and in a v2 torrent the pad that each
    /// file implies which does not end with a piece, the last one too.
    Listed,
}

/// Files by their numbers. Never empty, in order, without overlaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSelection {
    ranges: Vec<RangeInclusive<u32>>,
    numbering: Numbering,
}

/// Why a text is no selection, or a selection does not fit a torrent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SelectionError {
    /// Nothing is selected.
    #[error("no file is selected")]
    Empty,
    /// A part that is neither a number nor a range of numbers.
    #[error("\"{part}\" is no file number and no range such as 4-7")]
    Syntax {
        /// The part, cut to 40 characters.
        part: String,
    },
    /// A range that ends before it begins.
    #[error("{first}-{last} ends before it begins")]
    Backwards {
        /// Its first number.
        first: u32,
        /// Its last number.
        last: u32,
    },
    /// A number that no torrent has.
    #[error("{index} is no file number: a torrent has at most {FILE_COUNT_MAX} files")]
    TooLarge {
        /// The number.
        index: u64,
    },
    /// More than [`RANGES_MAX`] parts.
    #[error("more than {RANGES_MAX} ranges")]
    TooMany,
    /// The torrent has no file of this number.
    #[error("there is no file {index}: the torrent has {count}, numbered from 0")]
    NoSuchFile {
        /// The number.
        index: u32,
        /// How many numbers there are.
        count: u32,
    },
}

impl FileSelection {
    /// Reads a list of numbers and ranges, as a person writes them: [`Numbering::Shown`].
    ///
    /// # Errors
    /// [`SelectionError`], all but [`SelectionError::NoSuchFile`].
    pub fn parse(text: &str) -> Result<Self, SelectionError> {
        Self::parse_numbered(text, Numbering::Shown)
    }

    /// Reads what a magnet link says after `so=` (BEP 53): [`Numbering::Listed`].
    ///
    /// # Errors
    /// As for [`FileSelection::parse`].
    pub fn parse_link(text: &str) -> Result<Self, SelectionError> {
        Self::parse_numbered(text, Numbering::Listed)
    }

    fn parse_numbered(text: &str, numbering: Numbering) -> Result<Self, SelectionError> {
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if ranges.len() == RANGES_MAX {
                return Err(SelectionError::TooMany);
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first, part)?, number(last, part)?);
            if last < first {
                return Err(SelectionError::Backwards { first, last });
            }
            ranges.push(first..=last);
        }
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u32>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                // Numbers are far below the largest u32, so one more is always a number.
                Some(last) if *range.start() <= *last.end() + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        if merged.is_empty() {
            return Err(SelectionError::Empty);
        }
        Ok(Self { ranges: merged, numbering })
    }

    /// What the numbers count.
    pub fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// Whether a number is selected.
    pub fn contains(&self, index: u32) -> bool {
        let after = self.ranges.partition_point(|range| *range.start() <= index);
        after.checked_sub(1).is_some_and(|at| self.ranges[at].contains(&index))
    }

    /// Which of the torrent's files are wanted, by [`FileIndex`](crate::geometry::FileIndex): here the
    /// pads have their places, and are never wanted, also where a number names one.
    ///
    /// # Errors
    /// [`SelectionError::NoSuchFile`] for the first number past the end, [`SelectionError::Empty`] when
    /// every number names a pad.
    pub fn wanted(&self, info: &Info) -> Result<Vec<bool>, SelectionError> {
        let piece_len = u64::from(info.geometry().piece_len_nominal());
        let implies_pads = info.geometry().kind() == Kind::V2;
        let mut count = 0;
        let wanted: Vec<bool> = info
            .files()
            .map(|file| {
                let index = count;
                // At most two numbers for each of at most FILE_COUNT_MAX files.
                count += match self.numbering {
                    Numbering::Shown => u32::from(!file.pad),
                    Numbering::Listed => {
                        let ends_within = implies_pads && file.len_bytes % piece_len != 0;
                        1 + u32::from(ends_within)
                    }
                };
                !file.pad && self.contains(index)
            })
            .collect();
        if let Some(range) = self.ranges.iter().find(|range| *range.end() >= count) {
            let index = (*range.start()).max(count);
            return Err(SelectionError::NoSuchFile { index, count });
        }
        if !wanted.contains(&true) {
            return Err(SelectionError::Empty);
        }
        Ok(wanted)
    }
}

fn number(text: &str, part: &str) -> Result<u32, SelectionError> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(SelectionError::Syntax { part: part.chars().take(40).collect() });
    }
    // A number too long for 64 bits is too large like any other.
    let index = text.parse::<u64>().unwrap_or(u64::MAX);
    match u32::try_from(index) {
        Ok(index) if (index as usize) < FILE_COUNT_MAX => Ok(index),
        _ => Err(SelectionError::TooLarge { index }),
    }
}

impl fmt::Display for FileSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.ranges.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        let selection = FileSelection::parse("0,2,4,6-8").unwrap();
        let selected: Vec<u32> = (0..20).filter(|&index| selection.contains(index)).collect();
        assert_eq!(selected, [0, 2, 4, 6, 7, 8]);
        assert_eq!(selection.to_string(), "0,2,4,6-8");
    }

    #[test]
    fn ranges_are_put_in_order_and_together() {
        let selection = FileSelection::parse("7, 3-5,4-6,0,,1").unwrap();
        assert_eq!(selection.to_string(), "0-1,3-7");
    }

    #[test]
    fn what_is_no_selection_is_refused_with_the_reason() {
        for (text, error) in [
            ("", SelectionError::Empty),
            (",,", SelectionError::Empty),
            ("5-2", SelectionError::Backwards { first: 5, last: 2 }),
            ("1000000", SelectionError::TooLarge { index: 1_000_000 }),
            ("99999999999999999999999", SelectionError::TooLarge { index: u64::MAX }),
            ("0-4294967295", SelectionError::TooLarge { index: 4_294_967_295 }),
        ] {
            assert_eq!(FileSelection::parse(text), Err(error), "{text:?}");
        }
        for text in ["x", "-1", "1-", "-", "1-2-3", "+1", "0x1", "１"] {
            let refused = FileSelection::parse(text);
            assert!(matches!(refused, Err(SelectionError::Syntax { .. })), "{text:?}: {refused:?}");
        }
        let long = "1,".repeat(RANGES_MAX + 1);
        assert_eq!(FileSelection::parse(&long), Err(SelectionError::TooMany));
        assert!(FileSelection::parse(&"1,".repeat(RANGES_MAX)).is_ok());
    }

    /// A v1 torrent of `lens` with a pad behind every file.
    fn padded(lens: &[u64]) -> Info {
        let mut files = String::new();
        let mut total = 0;
        for (at, len) in lens.iter().enumerate() {
            let pad = 16_384 - len % 16_384;
            files += &format!("d6:lengthi{len}e4:pathl2:f{at}ee");
            files += &format!("d4:attr1:p6:lengthi{pad}e4:pathl4:.pad1:{at}ee");
            total += len + pad;
        }
        let count = total.div_ceil(16_384) * 20;
        let pieces = "a".repeat(count as usize);
        let info =
            format!("d5:filesl{files}e4:name1:t12:piece lengthi16384e6:pieces{count}:{pieces}e");
        Info::parse(info.as_bytes()).unwrap()
    }

    /// Of five files, an empty one among them, those at 16,384 bytes end with a piece and imply no pad.
    #[test]
    fn a_link_counts_pads_also_those_that_a_v2_torrent_implies() {
        let info = padded(&[5, 6, 7]);
        let wanted = |info, text| FileSelection::parse_link(text).unwrap().wanted(info);
        let second = [false, false, true, false, false, false];
        assert_eq!(wanted(&info, "2").unwrap(), second);
        assert_eq!(wanted(&info, "1-3").unwrap(), second, "pads are never wanted");
        let error = SelectionError::NoSuchFile { index: 6, count: 6 };
        assert_eq!(wanted(&info, "2,6"), Err(error));

        let lens = [5, 16_384, 0, 16_385, 7];
        let mut tree = String::new();
        for (at, len) in lens.iter().enumerate() {
            let root = at.to_string().repeat(32);
            let root = if *len > 0 { format!("11:pieces root32:{root}") } else { String::new() };
            tree += &format!("2:f{at}d0:d6:lengthi{len}e{root}ee");
        }
        let info =
            format!("d9:file treed{tree}e12:meta versioni2e4:name1:t12:piece lengthi16384ee");
        let info = Info::parse(info.as_bytes()).unwrap();
        // 0 the first, 1 its pad, 2, 3 the empty one, 4, 5 its pad, 6, 7 the pad at the end.
        assert_eq!(wanted(&info, "2-3,6").unwrap(), [false, true, true, false, true]);
        assert_eq!(wanted(&info, "0-1,4-5").unwrap(), [true, false, false, true, false]);
        assert_eq!(wanted(&info, "1,7"), Err(SelectionError::Empty));
        let error = SelectionError::NoSuchFile { index: 8, count: 8 };
        assert_eq!(wanted(&info, "8"), Err(error));
    }

    #[test]
    fn pads_do_not_count_and_are_never_wanted() {
        let info = padded(&[5, 6, 7]);
        let wanted = |text| FileSelection::parse(text).unwrap().wanted(&info);
        assert_eq!(wanted("1-2").unwrap(), [false, false, true, false, true, false]);
        let error = SelectionError::NoSuchFile { index: 3, count: 3 };
        assert_eq!(wanted("1-3"), Err(error.clone()));
        assert_eq!(wanted("0,3"), Err(error.clone()));
        assert!(error.to_string().contains("the torrent has 3"));
    }

    proptest! {
        /// Any list of numbers survives its text form, and means what a plain set of them means.
        #[test]
        fn a_selection_is_a_set(indices in prop::collection::vec(0_u32..200, 1..40)) {
            let text: Vec<String> = indices.iter().map(u32::to_string).collect();
            let selection = FileSelection::parse(&text.join(",")).unwrap();
            prop_assert_eq!(&FileSelection::parse(&selection.to_string()).unwrap(), &selection);
            for index in 0..200 {
                prop_assert_eq!(selection.contains(index), indices.contains(&index));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9,\\- x]{0,60}") {
            if let Ok(selection) = FileSelection::parse(&text) {
                prop_assert_eq!(FileSelection::parse(&selection.to_string()), Ok(selection));
            }
        }
    }
}
