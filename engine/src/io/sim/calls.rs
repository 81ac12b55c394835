//! What a node asked its disk for: where a test counts operations, not bytes.

use super::Op;

/// Operations on payload files. Our own small files are written by other ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadCalls {
    /// Files opened past the page cache: all that are longer than what is put in one.
    pub opens_direct: u64,
    /// Short files put in one job, and how many of them past the page cache.
    pub puts: u64,
    /// See [`PayloadCalls::puts`].
    pub puts_direct: u64,
    /// Files given their length, and the room for it.
    pub allocations: u64,
    /// Writes of a part of a file.
    pub writes: u64,
    /// Of these, such as made their file longer: nothing had been reserved for them.
    pub writes_past_end: u64,
}

impl PayloadCalls {
    pub(super) fn count(&mut self, op: &Op) {
        match op {
            Op::Open { direct: true, .. } => self.opens_direct += 1,
            Op::Put { direct, .. } => {
                self.puts += 1;
                self.puts_direct += u64::from(*direct);
            }
            Op::Allocate { .. } => self.allocations += 1,
            Op::Write { .. } => self.writes += 1,
            _ => {}
        }
    }
}
