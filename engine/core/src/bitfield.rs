//! One bit per piece: who has what (BEP 3, `bitfield`).

use thiserror::Error;

use crate::geometry::PieceIndex;

/// A set of pieces of one torrent. Bits past the last piece are always zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitfield {
    /// Piece 0 is the highest bit of word 0, as on the wire.
    words: Box<[u64]>,
    piece_count: u32,
    set_count: u32,
}

/// Why the payload of a `bitfield` message is wrong.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BitfieldError {
    /// Not one byte per eight pieces, rounded up.
    #[error("bitfield of {found_bytes} bytes instead of {expected_bytes}")]
    WrongLen {
        /// What the piece count asks for, in bytes.
        expected_bytes: usize,
        /// What came, in bytes.
        found_bytes: usize,
    },
    /// A bit is set that stands for no piece.
    #[error("bitfield sets a spare bit")]
    SpareBits,
}

impl Bitfield {
    /// The empty set over `piece_count` pieces.
    pub fn new(piece_count: u32) -> Self {
        let words = vec![0; piece_count.div_ceil(64) as usize].into();
        Self { words, piece_count, set_count: 0 }
    }

    /// The set of all `piece_count` pieces (BEP 6, `have all`).
    pub fn full(piece_count: u32) -> Self {
        let mut all = Self::new(piece_count);
        all.words.fill(u64::MAX);
        if let Some(last) = all.words.last_mut() {
            *last &= last_word_mask(piece_count);
        }
        all.set_count = piece_count;
        all
    }

    /// Reads the payload of a `bitfield` message.
    ///
    /// # Errors
    /// [`BitfieldError`] when the length is not exact or a spare bit is set.
    pub fn from_wire(bytes: &[u8], piece_count: u32) -> Result<Self, BitfieldError> {
        let expected_bytes = wire_len(piece_count);
        if bytes.len() != expected_bytes {
            return Err(BitfieldError::WrongLen { expected_bytes, found_bytes: bytes.len() });
        }
        let mut bitfield = Self::new(piece_count);
        for (word, chunk) in bitfield.words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_be_bytes(padded);
        }
        if bitfield.words.last().is_some_and(|last| last & !last_word_mask(piece_count) != 0) {
            return Err(BitfieldError::SpareBits);
        }
        bitfield.recount();
        Ok(bitfield)
    }

    /// The payload of a `bitfield` message.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.truncate(wire_len(self.piece_count));
        bytes
    }

    /// How many pieces the torrent has.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// How many pieces are in the set.
    pub fn count(&self) -> u32 {
        self.set_count
    }

    /// Whether all pieces are in the set.
    pub fn is_full(&self) -> bool {
        self.set_count == self.piece_count
    }

    /// Whether no piece is in the set.
    pub fn is_empty(&self) -> bool {
        self.set_count == 0
    }

    /// Whether the piece is in the set.
    ///
    /// # Panics
    /// If the piece belongs to a longer torrent; so do [`Bitfield::set`] and [`Bitfield::clear`].
    #[inline]
    pub fn get(&self, piece: PieceIndex) -> bool {
        let (word, bit) = self.place(piece);
        self.words[word] & bit != 0
    }

    /// Adds a piece. Says whether it is new.
    #[inline]
    pub fn set(&mut self, piece: PieceIndex) -> bool {
        let (word, bit) = self.place(piece);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.set_count += u32::from(is_new);
        is_new
    }

    /// Takes a piece out. Says whether it was in.
    #[inline]
    pub fn clear(&mut self, piece: PieceIndex) -> bool {
        let (word, bit) = self.place(piece);
        let was_in = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        self.set_count -= u32::from(was_in);
        was_in
    }

    /// Adds all pieces of `other`.
    ///
    /// # Panics
    /// If `other` belongs to a torrent with another number of pieces; so do the methods below.
    pub fn or_with(&mut self, other: &Self) {
        self.combine(other, |word, other| word | other);
    }

    /// Keeps only the pieces that are also in `other`.
    pub fn and_with(&mut self, other: &Self) {
        self.combine(other, |word, other| word & other);
    }

    /// Takes out all pieces of `other`.
    pub fn and_not_with(&mut self, other: &Self) {
        self.combine(other, |word, other| word & !other);
    }

    /// Whether a piece is in `self` and not in `other`: whether its holder is of interest.
    pub fn has_beyond(&self, other: &Self) -> bool {
        assert_eq!(self.piece_count, other.piece_count, "bitfields of different torrents");
        self.words.iter().zip(&other.words).any(|(word, other)| word & !other != 0)
    }

    /// The pieces in the set, in order.
    pub fn iter_set(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| Bits { word, base: at as u32 * 64 })
    }

    /// The pieces not in the set, in order.
    pub fn iter_missing(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        let last = self.words.len().saturating_sub(1);
        self.words.iter().enumerate().flat_map(move |(at, &word)| {
            let mask = if at == last { last_word_mask(self.piece_count) } else { u64::MAX };
            Bits { word: !word & mask, base: at as u32 * 64 }
        })
    }

    fn place(&self, piece: PieceIndex) -> (usize, u64) {
        let at = piece.get();
        assert!(at < self.piece_count, "{piece:?} is past the {} pieces here", self.piece_count);
        ((at / 64) as usize, 1 << (63 - at % 64))
    }

    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        assert_eq!(self.piece_count, other.piece_count, "bitfields of different torrents");
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word = with(*word, *other);
        }
        self.recount();
    }

    fn recount(&mut self) {
        self.set_count = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

/// The set bits of a word from the highest, as pieces from `base`.
struct Bits {
    word: u64,
    base: u32,
}

impl Iterator for Bits {
    type Item = PieceIndex;

    fn next(&mut self) -> Option<PieceIndex> {
        if self.word == 0 {
            return None;
        }
        let at = self.word.leading_zeros();
        self.word &= !(1 << (63 - at));
        Some(PieceIndex::new_unchecked(self.base + at))
    }
}

fn wire_len(piece_count: u32) -> usize {
    piece_count.div_ceil(8) as usize
}

/// The bits of the last word that stand for pieces.
fn last_word_mask(piece_count: u32) -> u64 {
    match piece_count % 64 {
        0 => u64::MAX,
        used => !(u64::MAX >> used),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn piece(raw: u32) -> PieceIndex {
        PieceIndex::new_unchecked(raw)
    }

    #[test]
    fn wrong_lengths_and_spare_bits_are_refused() {
        for (bytes, count) in
            [(&[0_u8][..], 0), (&[], 1), (&[0, 0], 8), (&[0], 9), (&[0; 9], 64), (&[0; 8], 65)]
        {
            let found_bytes = bytes.len();
            let expected_bytes = u32::div_ceil(count, 8) as usize;
            assert_eq!(
                Bitfield::from_wire(bytes, count),
                Err(BitfieldError::WrongLen { expected_bytes, found_bytes })
            );
        }
        for (bytes, count) in [
            (&[0x01_u8][..], 7),
            (&[0x40], 1),
            (&[0xff, 0x40], 9),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 1], 65),
        ] {
            assert_eq!(Bitfield::from_wire(bytes, count), Err(BitfieldError::SpareBits));
        }
        assert!(Bitfield::from_wire(&[], 0).is_ok_and(|none| none.is_full() && none.is_empty()));
    }

    #[test]
    fn piece_zero_is_the_highest_bit_of_the_first_byte() {
        let mut bitfield = Bitfield::new(10);
        assert!(bitfield.set(piece(0)) && bitfield.set(piece(9)) && !bitfield.set(piece(9)));
        assert_eq!(bitfield.to_wire(), [0x80, 0x40]);
        assert!(bitfield.clear(piece(9)) && !bitfield.clear(piece(9)));
        assert_eq!(bitfield.count(), 1);
    }

    #[test]
    #[should_panic(expected = "past the 8 pieces")]
    fn a_piece_of_another_torrent_is_a_bug() {
        Bitfield::new(8).get(piece(8));
    }

    fn sets() -> impl Strategy<Value = (u32, BTreeSet<u32>, BTreeSet<u32>)> {
        (1_u32..300).prop_flat_map(|count| {
            let set = || proptest::collection::btree_set(0..count, 0..=count as usize);
            (Just(count), set(), set())
        })
    }

    fn of(count: u32, pieces: &BTreeSet<u32>) -> Bitfield {
        let mut bitfield = Bitfield::new(count);
        pieces.iter().for_each(|&raw| assert!(bitfield.set(piece(raw))));
        bitfield
    }

    proptest! {
        /// A bitfield does what a set of numbers does, and survives the wire.
        #[test]
        fn agrees_with_a_set((count, a, b) in sets()) {
            let (ba, bb) = (of(count, &a), of(count, &b));
            prop_assert_eq!(ba.count() as usize, a.len());
            prop_assert_eq!(ba.is_full(), a.len() == count as usize);
            prop_assert_eq!(ba.iter_set().map(PieceIndex::get).collect::<BTreeSet<_>>(), a.clone());
            let missing: Vec<u32> = (0..count).filter(|raw| !a.contains(raw)).collect();
            prop_assert_eq!(ba.iter_missing().map(PieceIndex::get).collect::<Vec<_>>(), missing);
            prop_assert_eq!(Bitfield::from_wire(&ba.to_wire(), count).unwrap(), ba.clone());
            prop_assert_eq!(ba.has_beyond(&bb), a.difference(&b).next().is_some());
            let with = |op: fn(&mut Bitfield, &Bitfield)| { let mut out = ba.clone(); op(&mut out, &bb); out };
            prop_assert_eq!(with(Bitfield::or_with), of(count, &(&a | &b)));
            prop_assert_eq!(with(Bitfield::and_with), of(count, &(&a & &b)));
            prop_assert_eq!(with(Bitfield::and_not_with), of(count, &(&a - &b)));
            prop_assert_eq!(Bitfield::full(count), of(count, &(0..count).collect()));
        }

        /// Any bytes of the right length with clear spare bits come back as they were.
        #[test]
        fn wire_bytes_come_back(count in 1_u32..200, seed in proptest::collection::vec(any::<u8>(), 25)) {
            let bytes = &seed[..wire_len(count)];
            match Bitfield::from_wire(bytes, count) {
                Ok(bitfield) => prop_assert_eq!(bitfield.to_wire(), bytes),
                Err(error) => {
                    prop_assert_eq!(error, BitfieldError::SpareBits);
                    prop_assert!(count % 8 != 0 && bytes[bytes.len() - 1] << (count % 8) != 0);
                }
            }
        }
    }
}
