//! Which pieces a peer may ask for while it is choked (BEP 6, "allowed fast set generation").

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use sha1::{Digest, Sha1};

use super::handshake::WireId;

/// How many pieces a peer is allowed (BEP 6: `k`), and how many it may have to need them: one that has
/// more has something to trade.
pub const ALLOWED_FAST_COUNT: usize = 10;

/// The set of BEP 6 for a peer at this address: always the same pieces for a whole /24, so that whoever
/// connects again and again from there gets nothing more than once. At most `count`, and no more than
/// there are.
///
/// # Panics
/// If there are no pieces.
pub fn allowed_fast_set(
    addr: Ipv4Addr,
    wire_id: WireId,
    piece_count: u32,
    count: usize,
) -> Vec<u32> {
    assert!(piece_count > 0, "a torrent has pieces");
    let count = count.min(piece_count as usize);
    let [a, b, c, _] = addr.octets();
    let mut hasher = Sha1::new();
    hasher.update([a, b, c, 0]);
    hasher.update(wire_id.0);
    let mut digest: [u8; 20] = hasher.finalize().into();
    let (mut set, mut seen) = (Vec::new(), BTreeSet::new());
    loop {
        let (numbers, _) = digest.as_chunks::<4>();
        for number in numbers {
            if set.len() == count {
                return set;
            }
            let piece = u32::from_be_bytes(*number) % piece_count;
            if seen.insert(piece) {
                set.push(piece);
            }
        }
        digest = Sha1::digest(digest).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two examples of BEP 6.
    #[test]
    fn the_set_is_that_of_the_specification() {
        let id = WireId([0xaa; 20]);
        let addr = Ipv4Addr::new(80, 4, 4, 200);
        let nine = [1059, 431, 808, 1217, 287, 376, 1188, 353, 508];
        assert_eq!(allowed_fast_set(addr, id, 1313, 7), nine[..7]);
        assert_eq!(allowed_fast_set(addr, id, 1313, 9), nine);
        assert_eq!(allowed_fast_set(Ipv4Addr::new(80, 4, 4, 1), id, 1313, 9), nine);
        assert_ne!(allowed_fast_set(Ipv4Addr::new(80, 4, 5, 200), id, 1313, 9), nine);
    }

    #[test]
    fn a_torrent_of_few_pieces_allows_each_once() {
        let mut set = allowed_fast_set(Ipv4Addr::LOCALHOST, WireId([1; 20]), 3, 10);
        set.sort_unstable();
        assert_eq!(set, [0, 1, 2]);
    }
}
