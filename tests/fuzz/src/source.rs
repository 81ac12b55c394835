//! Structured input out of a fuzzer's bytes.

/// Reads numbers and strings off the front of a fuzzer's input. Past its end everything is zero, so
/// that a short input is a short story and never an error.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    /// Starts at the front of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// One bit of a byte.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    /// 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, from one byte if that is enough and else from two.
    pub fn below(&mut self, end: usize) -> usize {
        let raw = if end <= 256 { usize::from(self.byte()) } else { usize::from(self.u16()) };
        raw % end.max(1)
    }

    /// A number that is small, at an edge of 32 bits, or any.
    pub fn edgy(&mut self) -> u32 {
        match self.byte() {
            0xff => u32::MAX,
            0xfe => u32::MAX - 1,
            0xfd => 1 << 31,
            0xfc => (1 << 31) - 1,
            0xfb => self.u32(),
            0xfa => u32::from(self.u16()),
            small => u32::from(small),
        }
    }

    /// At most `len_bytes` bytes; fewer at the end.
    pub fn take(&mut self, len_bytes: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len_bytes.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// A short string of bytes: its length comes first.
    pub fn bytes(&mut self, len_bytes_max: usize) -> &'a [u8] {
        let len_bytes = self.below(len_bytes_max + 1);
        self.take(len_bytes)
    }

    /// One of `choices`.
    pub fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.below(choices.len())]
    }
}

/// Bytes that look random and are the same for the same seed (SplitMix64).
pub fn noise(seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len_bytes + 8);
    while out.len() < len_bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(len_bytes);
    out
}

/// Thirty-two bytes of [`noise`].
pub fn noise32(seed: u64) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(&noise(seed, 32));
    out
}

/// Damages `bytes` as a disk, a cut or a liar would: flips, overwrites, cuts off, appends, repeats
/// or drops a stretch. Says whether anything is different.
pub fn damage(source: &mut Source<'_>, bytes: &mut Vec<u8>) -> bool {
    let before = bytes.clone();
    for _ in 0..source.below(4) {
        let at = source.below(bytes.len() + 1);
        match source.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << source.below(8),
            1 if at < bytes.len() => bytes[at] = source.byte(),
            2 => bytes.truncate(at),
            3 => bytes.extend_from_slice(source.bytes(32)),
            4 => {
                let len = source.below(64).min(bytes.len() - at);
                let stretch = bytes[at..at + len].to_vec();
                bytes.splice(at..at, stretch);
            }
            5 => {
                let len = source.below(64).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
            _ => {}
        }
    }
    *bytes != before
}
