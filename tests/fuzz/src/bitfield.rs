//! The bitfield, and the journal's sets of runs, beside sets of numbers.

use std::collections::BTreeSet;

use ringseed_core::bitfield::{Bitfield, BitfieldError};
use ringseed_core::geometry::{FileSpan, Geometry, Kind, PIECE_LEN_MIN_V1};
use ringseed_engine::store::RunSet;

use crate::source::Source;

/// A bitfield from the wire is taken exactly when it has the right length and no spare bit, and
/// every operation does what it does to a set.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let piece_count = 1 + source.below(200) as u32;
    let len_bytes = u64::from(piece_count) * u64::from(PIECE_LEN_MIN_V1);
    let span = FileSpan { len_bytes, pad: false };
    let geometry = Geometry::new(PIECE_LEN_MIN_V1.into(), &[span], Kind::V1).expect("a torrent");
    let piece = |raw: u32| geometry.piece(raw).expect("below the count");

    let first = source.bytes(32);
    let mut has = from_wire(first, piece_count).unwrap_or_else(|| Bitfield::new(piece_count));
    let mut set: BTreeSet<u32> = has.iter_set().map(|piece| piece.get()).collect();
    let mut runs: RunSet = set.iter().copied().collect();
    while !source.is_empty() {
        match source.below(8) {
            0 => {
                let raw = source.byte().into();
                match geometry.piece(raw) {
                    Ok(piece) => assert_eq!(has.set(piece), set.insert(raw)),
                    Err(_) => assert!(raw >= piece_count),
                }
                if raw < piece_count {
                    runs.insert(raw, 1);
                }
            }
            1 => {
                let raw = source.below(piece_count as usize) as u32;
                assert_eq!(has.clear(piece(raw)), set.remove(&raw));
                runs.remove(raw, 1);
            }
            step @ 2..=4 => {
                let bytes = source.bytes(32);
                let Some(other) = from_wire(bytes, piece_count) else { continue };
                let others: BTreeSet<u32> = other.iter_set().map(|piece| piece.get()).collect();
                assert_eq!(has.has_beyond(&other), !set.is_subset(&others));
                match step {
                    2 => {
                        has.or_with(&other);
                        set.extend(&others);
                    }
                    3 => {
                        has.and_with(&other);
                        set.retain(|raw| others.contains(raw));
                    }
                    _ => {
                        has.and_not_with(&other);
                        set.retain(|raw| !others.contains(raw));
                    }
                }
                runs = set.iter().copied().collect();
            }
            5 => {
                has = Bitfield::full(piece_count);
                set = (0..piece_count).collect();
                runs = RunSet::default();
                runs.insert(0, piece_count);
            }
            step => {
                let first = source.below(piece_count as usize) as u32;
                let count = source.below((piece_count - first + 1) as usize) as u32;
                for raw in first..first + count {
                    if step == 6 {
                        assert_eq!(has.set(piece(raw)), set.insert(raw));
                    } else {
                        assert_eq!(has.clear(piece(raw)), set.remove(&raw));
                    }
                }
                if step == 6 { runs.insert(first, count) } else { runs.remove(first, count) }
            }
        }
        check(&has, &set, &runs);
    }
}

/// What the wire gives, with the verdict that the text of BEP 3 asks for.
fn from_wire(bytes: &[u8], piece_count: u32) -> Option<Bitfield> {
    let expected_bytes = piece_count.div_ceil(8) as usize;
    let has_len = bytes.len() == expected_bytes;
    let bit = |at: usize| bytes[at / 8] & (0x80 >> (at % 8)) != 0;
    let has_spare = has_len && (piece_count as usize..expected_bytes * 8).any(bit);
    match Bitfield::from_wire(bytes, piece_count) {
        Ok(bitfield) => {
            assert!(has_len && !has_spare, "a wrong bitfield was taken");
            assert_eq!(bitfield.to_wire(), bytes);
            Some(bitfield)
        }
        Err(BitfieldError::WrongLen { .. }) => {
            assert!(!has_len);
            None
        }
        Err(BitfieldError::SpareBits) => {
            assert!(has_spare);
            None
        }
    }
}

fn check(has: &Bitfield, set: &BTreeSet<u32>, runs: &RunSet) {
    let count = has.piece_count();
    assert_eq!(has.count() as usize, set.len());
    assert_eq!((has.is_empty(), has.is_full()), (set.is_empty(), set.len() == count as usize));
    assert!(has.iter_set().map(|piece| piece.get()).eq(set.iter().copied()));
    let missing = (0..count).filter(|raw| !set.contains(raw));
    assert!(has.iter_missing().map(|piece| piece.get()).eq(missing));
    assert_eq!(Bitfield::from_wire(&has.to_wire(), count).as_ref(), Ok(has));
    assert!(runs.iter().eq(set.iter().copied()), "the runs have other numbers");
    let runs: Vec<_> = runs.runs().collect();
    assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "runs touch");
}
