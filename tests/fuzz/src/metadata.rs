//! Fetching an info dict from peers of whom some lie.

use std::collections::BTreeMap;

use ringseed_core::swarm::PeerKey;
use ringseed_core::wire::MetadataFetch;
use ringseed_core::wire::metadata::{METADATA_PIECE_LEN, MetadataError, metadata_piece};

use crate::source::{Source, noise};

const PEERS: u32 = 4;

/// A fetch never gives out anything but the true info dict, never accuses a peer that told the truth
/// alone, and ends as soon as one honest peer is left to answer.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let pieces = 1 + source.below(4);
    let truth = noise(1, pieces * METADATA_PIECE_LEN as usize - source.below(16_000));
    let len_bytes = truth.len() as u32;
    let mut fetch = MetadataFetch::new();
    let mut asked: BTreeMap<(u32, u32), ()> = BTreeMap::new();
    let mut lied = [false; PEERS as usize];
    while !source.is_empty() {
        let peer = source.below(PEERS as usize) as u32;
        let key = PeerKey(peer);
        match source.below(7) {
            0 => {
                let said = if source.flag() { len_bytes } else { source.edgy() };
                lied[peer as usize] |= said != len_bytes;
                let _ = fetch.handle_len(key, said);
            }
            1 => {
                if let Some(index) = fetch.next_request(key) {
                    asked.insert((peer, index), ());
                }
            }
            step @ 2..=3 => {
                let index = if source.flag() { source.below(5) as u32 } else { source.edgy() };
                let was_asked = asked.remove(&(peer, index)).is_some();
                let mut total = len_bytes;
                let mut piece = metadata_piece(&truth, index).unwrap_or(&[]).to_vec();
                if step == 3 {
                    lied[peer as usize] = true;
                    match source.below(4) {
                        0 => total = source.edgy(),
                        1 => drop(piece.pop()),
                        2 => piece.push(source.byte()),
                        _ => piece.iter_mut().take(1).for_each(|byte| *byte ^= 0x55),
                    }
                }
                let verify = |whole: &[u8]| whole == truth;
                match fetch.handle_piece(key, index, total, piece, verify) {
                    Ok(Some(whole)) => {
                        assert_eq!(whole, truth, "a false info dict");
                        return;
                    }
                    Ok(None) => assert!(was_asked, "taken without being asked for"),
                    Err(MetadataError::NotAsked { .. }) => {}
                    Err(error) => assert!(lied[peer as usize], "an honest peer: {error}"),
                }
            }
            4 => {
                let index = source.below(5) as u32;
                asked.remove(&(peer, index));
                lied[peer as usize] = true; // it is not asked again, and that is right
                fetch.handle_rejected(key, index);
            }
            5 => fetch.handle_silence(),
            _ => {
                asked.retain(|(other, _), ()| *other != peer);
                fetch.remove_peer(key);
            }
        }
    }
    // All others leave; an honest newcomer is enough.
    (0..PEERS).for_each(|peer| fetch.remove_peer(PeerKey(peer)));
    let honest = PeerKey(PEERS);
    fetch.handle_len(honest, len_bytes).expect("a length that it may have");
    for _ in 0..2 * pieces {
        let Some(index) = fetch.next_request(honest) else { panic!("nobody is asked") };
        let piece = metadata_piece(&truth, index).expect("a piece that it has").to_vec();
        let verify = |whole: &[u8]| whole == truth;
        if let Some(whole) =
            fetch.handle_piece(honest, index, len_bytes, piece, verify).unwrap_or_else(|error| {
                panic!("an honest peer alone is accused: {error}");
            })
        {
            assert_eq!(whole, truth);
            return;
        }
    }
    panic!("an honest peer alone does not get through");
}
