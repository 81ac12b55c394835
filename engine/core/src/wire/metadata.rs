//! Fetching an info dict from peers (BEP 9), and serving it.
//!
//! Peers say how long the info dict is, and may lie; nothing is allocated by their number but as
//! pieces arrive. The whole is judged by its hash alone. Pieces of several peers are mixed at first;
//! if the whole is wrong, one peer at a time must bring all of it, so that a liar stands alone.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

/// Longest info dict that is fetched, in bytes: two million pieces of 20 bytes, and the names.
pub const METADATA_LEN_MAX: u32 = 48 << 20;
/// Length of every piece of the info dict but the last, in bytes (BEP 9).
pub const METADATA_PIECE_LEN: u32 = 16 * 1024;
/// Requests outstanding with one peer.
const PIPELINE: usize = 16;
/// So often may a peer have taken part in a wrong whole.
const FAILURES_MAX: u32 = 3;

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MetadataError {
    /// Longer than any info dict that we take.
    #[error("info dict of {len_bytes} bytes is longer than {METADATA_LEN_MAX}")]
    TooLong {
        /// What the peer says, in bytes.
        len_bytes: u32,
    },
    /// A piece that the peer was not asked for.
    #[error("piece {index} of the info dict was not asked for")]
    NotAsked {
        /// Which.
        index: u32,
    },
    /// The peer names another total than before, or a piece has not its length.
    #[error("piece {index} of the info dict has a wrong length")]
    WrongLen {
        /// Which.
        index: u32,
    },
    /// All of the info dict came from this peer, and its hash is wrong.
    #[error("info dict has the wrong hash")]
    WrongHash,
}

#[derive(Debug, Default)]
struct Source {
    len_bytes: Option<u32>,
    failures: u32,
    /// It rejects, or has lied: not asked any more.
    useless: bool,
    /// Passed over, until it answers after all or everybody else was silent as well.
    is_silent: bool,
    /// Pieces that it was asked for and has not answered, however long ago. At most an info dict has so many.
    owed: BTreeSet<u32>,
}

impl Source {
    fn may_be_asked(&self) -> bool {
        !self.useless && !self.is_silent
    }
}

#[derive(Debug)]
struct Assembly<P> {
    len_bytes: u32,
    pieces: Vec<Option<(P, Vec<u8>)>>,
    asked: BTreeMap<u32, P>,
    /// Only this peer is asked, since a mixed whole was wrong.
    alone: Option<P>,
}

/// Assembles one info dict. `P` names a peer.
#[derive(Debug)]
pub struct MetadataFetch<P> {
    sources: BTreeMap<P, Source>,
    assembly: Option<Assembly<P>>,
    mistrust: bool,
}

impl<P> Default for MetadataFetch<P> {
    fn default() -> Self {
        Self { sources: BTreeMap::new(), assembly: None, mistrust: false }
    }
}

impl<P: Copy + Ord> MetadataFetch<P> {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A peer says that it serves the info dict and how long it is (BEP 9, `metadata_size`).
    ///
    /// # Errors
    /// [`MetadataError::TooLong`].
    pub fn handle_len(&mut self, peer: P, len_bytes: u32) -> Result<(), MetadataError> {
        if len_bytes > METADATA_LEN_MAX {
            return Err(MetadataError::TooLong { len_bytes });
        }
        self.sources.entry(peer).or_default().len_bytes = Some(len_bytes).filter(|&len| len > 0);
        Ok(())
    }

    /// Nothing has come for too long: whoever was asked is passed over. Those passed over before may be
    /// asked again, or an info dict whose peers all were silent once would never be fetched; of those who
    /// lied nothing is taken any more. What is here stays: late answers go on where it ends.
    pub fn handle_silence(&mut self) {
        let asked = self.assembly.as_mut().map(|assembly| std::mem::take(&mut assembly.asked));
        let silent: BTreeSet<P> = asked.into_iter().flat_map(BTreeMap::into_values).collect();
        for (peer, source) in &mut self.sources {
            source.useless = source.failures >= FAILURES_MAX;
            source.is_silent = silent.contains(peer);
        }
    }

    /// What to ask a peer for now, if anything; call until `None`.
    pub fn next_request(&mut self, peer: P) -> Option<u32> {
        let source = self.sources.get(&peer).filter(|source| source.may_be_asked())?;
        let len_bytes = source.len_bytes?;
        self.give_way_to(peer, len_bytes);
        let mistrust = self.mistrust;
        let assembly = self.assembly.get_or_insert_with(|| Assembly {
            len_bytes,
            pieces: Vec::new(),
            asked: BTreeMap::new(),
            alone: mistrust.then_some(peer),
        });
        let in_flight = assembly.asked.values().filter(|&&other| other == peer).count();
        let excluded = assembly.alone.is_some_and(|alone| alone != peer);
        if assembly.len_bytes != len_bytes || excluded || in_flight >= PIPELINE {
            return None;
        }
        let wanted = |index: &u32| {
            let here = assembly.pieces.get(*index as usize).is_some_and(Option::is_some);
            !here && !assembly.asked.contains_key(index)
        };
        let index = (0..piece_count(len_bytes)).find(wanted)?;
        assembly.asked.insert(index, peer);
        self.sources.entry(peer).or_default().owed.insert(index);
        Some(index)
    }

    /// Begins anew for a peer that has no part in what was begun, if nobody who has may be asked.
    fn give_way_to(&mut self, peer: P, len_bytes: u32) {
        let Some(assembly) = &self.assembly else { return };
        let has_part = |of: P, len: Option<u32>| {
            len == Some(assembly.len_bytes) && assembly.alone.is_none_or(|alone| alone == of)
        };
        let goes_on =
            |(&of, source): (&P, &Source)| source.may_be_asked() && has_part(of, source.len_bytes);
        if !has_part(peer, Some(len_bytes)) && !self.sources.iter().any(goes_on) {
            self.assembly = None;
        }
    }

    /// A piece came. `verify` judges the whole by its hash; `Some` is the verified info dict. Who was passed
    /// over for its silence and answers after all is as good as any: the whole proves itself.
    ///
    /// # Errors
    /// [`MetadataError`] when the peer is at fault; it is not asked again.
    pub fn handle_piece(
        &mut self,
        peer: P,
        index: u32,
        total_len_bytes: u32,
        data: Vec<u8>,
        verify: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>, MetadataError> {
        let not_asked = MetadataError::NotAsked { index };
        let source = self.sources.get_mut(&peer).ok_or(not_asked)?;
        if !source.owed.remove(&index) {
            return Err(not_asked);
        }
        let assembly = self.assembly.as_mut().ok_or(not_asked)?;
        if assembly.asked.get(&index) != Some(&peer) {
            let is_here = assembly.pieces.get(index as usize).is_some_and(Option::is_some);
            // Asked for when a longer one was being put together.
            let is_behind = index >= piece_count(assembly.len_bytes);
            let is_apart = assembly.alone.is_some_and(|alone| alone != peer)
                || total_len_bytes != assembly.len_bytes
                || is_behind;
            if source.useless || is_here || is_apart {
                return Err(not_asked);
            }
        }
        source.is_silent = false;
        assembly.asked.remove(&index);
        let right_len = piece_len(assembly.len_bytes, index) as usize == data.len();
        if total_len_bytes != assembly.len_bytes || !right_len {
            self.refuse(peer);
            return Err(MetadataError::WrongLen { index });
        }
        // Grows with what has come, not with what was said.
        if assembly.pieces.len() <= index as usize {
            assembly.pieces.resize_with(index as usize + 1, || None);
        }
        assembly.pieces[index as usize] = Some((peer, data));
        let whole = assembly.pieces.len() == piece_count(assembly.len_bytes) as usize
            && assembly.pieces.iter().all(Option::is_some);
        if !whole {
            return Ok(None);
        }
        let pieces = self.assembly.take().expect("looked up above").pieces;
        let (senders, parts): (BTreeSet<_>, Vec<_>) = pieces.into_iter().flatten().unzip();
        let bytes = parts.concat();
        if verify(&bytes) {
            return Ok(Some(bytes));
        }
        self.mistrust = true;
        for sender in &senders {
            if let Some(source) = self.sources.get_mut(sender) {
                source.failures += if senders.len() == 1 { FAILURES_MAX } else { 1 };
                source.useless |= source.failures >= FAILURES_MAX;
            }
        }
        if senders.len() == 1 { Err(MetadataError::WrongHash) } else { Ok(None) }
    }

    /// A peer will not send what it was asked for.
    pub fn handle_rejected(&mut self, peer: P, index: u32) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.owed.remove(&index);
        }
        let asked = self.assembly.as_ref().and_then(|assembly| assembly.asked.get(&index));
        if asked == Some(&peer) {
            self.refuse(peer);
        }
    }

    /// A peer is gone, or takes too long.
    pub fn remove_peer(&mut self, peer: P) {
        self.refuse(peer);
        self.sources.remove(&peer);
    }

    fn refuse(&mut self, peer: P) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.useless = true;
        }
        let Some(assembly) = &mut self.assembly else {
            return;
        };
        assembly.asked.retain(|_, &mut other| other != peer);
        let same_len =
            |source: &Source| !source.useless && source.len_bytes == Some(assembly.len_bytes);
        // Nobody is left who could finish it: whoever comes next begins anew, with its own length.
        if assembly.alone == Some(peer) || !self.sources.values().any(same_len) {
            self.assembly = None;
        }
    }
}

/// The piece of an info dict that a peer asks for; `None` past its end: reject.
pub fn metadata_piece(info: &[u8], index: u32) -> Option<&[u8]> {
    let start = (index as usize).checked_mul(METADATA_PIECE_LEN as usize)?;
    let rest = info.get(start..).filter(|rest| !rest.is_empty())?;
    Some(&rest[..rest.len().min(METADATA_PIECE_LEN as usize)])
}

fn piece_count(len_bytes: u32) -> u32 {
    len_bytes.div_ceil(METADATA_PIECE_LEN)
}

fn piece_len(len_bytes: u32, index: u32) -> u32 {
    (len_bytes - index * METADATA_PIECE_LEN).min(METADATA_PIECE_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::PeerKey;

    const A: PeerKey = PeerKey(1);
    const B: PeerKey = PeerKey(2);

    fn info() -> Vec<u8> {
        (0..100_000_u32).map(|i| (i * 7 / 3) as u8).collect()
    }

    fn fetch(lens: &[(PeerKey, u32)]) -> MetadataFetch<PeerKey> {
        let mut fetch = MetadataFetch::new();
        lens.iter().for_each(|&(peer, len)| fetch.handle_len(peer, len).unwrap());
        fetch
    }

    /// Peers answer in turn, `liar` with a flipped bit.
    fn run(
        fetch: &mut MetadataFetch<PeerKey>,
        peers: &[PeerKey],
        liar: Option<PeerKey>,
    ) -> Option<Vec<u8>> {
        let whole = info();
        for _ in 0..100 {
            for &peer in peers {
                let Some(index) = fetch.next_request(peer) else {
                    continue;
                };
                let mut data = metadata_piece(&whole, index).unwrap().to_vec();
                data[0] ^= u8::from(liar == Some(peer));
                let verify = |bytes: &[u8]| bytes == whole;
                let len = whole.len() as u32;
                match fetch.handle_piece(peer, index, len, data, verify) {
                    Ok(None) => {}
                    Ok(done) => return done,
                    Err(error) => assert_eq!((Some(peer), error), (liar, MetadataError::WrongHash)),
                }
            }
        }
        None
    }

    #[test]
    fn pieces_of_several_peers_make_one_info_dict() {
        let len = info().len() as u32;
        let mut fetch = fetch(&[(A, len), (B, len)]);
        assert_eq!(run(&mut fetch, &[A, B], None), Some(info()));
    }

    #[test]
    fn a_liar_among_honest_peers_is_found_and_left_out() {
        let len = info().len() as u32;
        let mut fetch = fetch(&[(A, len), (B, len)]);
        assert_eq!(run(&mut fetch, &[B, A], Some(A)), Some(info()));
        assert!(fetch.sources[&A].useless && !fetch.sources[&B].useless);
    }

    #[test]
    fn a_false_length_costs_nothing_and_gives_way_to_the_right_one() {
        let len = info().len() as u32;
        let mut fetch = fetch(&[(A, METADATA_LEN_MAX), (B, len)]);
        let too_long = METADATA_LEN_MAX + 1;
        assert_eq!(
            fetch.handle_len(PeerKey(3), too_long),
            Err(MetadataError::TooLong { len_bytes: too_long })
        );
        assert_eq!(fetch.next_request(A), Some(0));
        assert_eq!(fetch.next_request(B), None, "one length at a time");
        assert!(fetch.assembly.as_ref().unwrap().pieces.is_empty());
        fetch.handle_rejected(A, 0);
        assert_eq!(run(&mut fetch, &[A, B], None), Some(info()));
    }

    /// A peer offered the info dict and then only kept its connection alive: the listing waited for it
    /// for ever.
    #[test]
    fn who_is_silent_is_passed_over_and_asked_again_only_when_nobody_else_is_left() {
        let len = info().len() as u32;
        let mut fetch = fetch(&[(A, len), (B, len)]);
        assert_eq!(fetch.next_request(A), Some(0));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(A), None);
        assert_eq!(fetch.next_request(B), Some(0));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(B), None);
        assert_eq!(fetch.next_request(A), Some(0), "its turn again");
        let cut = fetch.handle_piece(A, 0, len + 1, vec![0; 16_384], |_| true);
        assert_eq!(cut, Err(MetadataError::WrongLen { index: 0 }));
    }

    /// A busy peer answered each request six seconds after it had been asked, when it had just been passed over:
    /// every piece was thrown away and asked for anew, for ever.
    #[test]
    fn who_was_passed_over_and_answers_after_all_is_believed() {
        let whole = info();
        let len = whole.len() as u32;
        let mut fetch = fetch(&[(A, len)]);
        let mut rounds = 0;
        let found = loop {
            let asked: Vec<u32> = std::iter::from_fn(|| fetch.next_request(A)).take(2).collect();
            assert!(!asked.is_empty(), "who has answered is asked again at once");
            fetch.handle_silence();
            assert_eq!(fetch.next_request(A), None, "passed over");
            let mut found = None;
            for index in asked {
                let data = metadata_piece(&whole, index).unwrap().to_vec();
                let came = fetch.handle_piece(A, index, len, data.clone(), |bytes| bytes == whole);
                found = came.unwrap();
                let again = fetch.handle_piece(A, index, len, data, |_| true);
                assert_eq!(again, Err(MetadataError::NotAsked { index }), "it was answered");
            }
            rounds += 1;
            if found.is_some() {
                break found;
            }
        };
        assert_eq!(found, Some(whole));
        assert_eq!(rounds, 4, "seven pieces by two");
    }

    /// Two answer the same request, the one that was passed over first: the other's answer does no harm.
    #[test]
    fn a_late_piece_takes_the_place_of_the_one_that_was_asked_since() {
        let whole = info();
        let len = whole.len() as u32;
        let mut fetch = fetch(&[(A, len), (B, len)]);
        assert_eq!(fetch.next_request(A), Some(0));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(B), Some(0));
        let first = || metadata_piece(&whole, 0).unwrap().to_vec();
        assert_eq!(fetch.handle_piece(A, 0, len, first(), |_| false), Ok(None));
        let late = fetch.handle_piece(B, 0, len, first(), |_| false);
        assert_eq!(late, Err(MetadataError::NotAsked { index: 0 }));
        assert_eq!(fetch.next_request(B), Some(1));
        assert_eq!(run(&mut fetch, &[A], None), None, "B owes a piece");
        let second = metadata_piece(&whole, 1).unwrap().to_vec();
        assert_eq!(fetch.handle_piece(B, 1, len, second, |bytes| bytes == whole), Ok(Some(whole)));
    }

    /// Late pieces of an info dict of another length, or of one that another peer must bring alone, or of a liar,
    /// go nowhere.
    #[test]
    fn late_pieces_are_mixed_with_nothing_that_they_do_not_belong_to() {
        let whole = info();
        let len = whole.len() as u32;
        let first = || metadata_piece(&whole, 0).unwrap().to_vec();
        let not_asked = Err(MetadataError::NotAsked { index: 0 });
        // The first is silent and names another length than the one who is asked then.
        let mut fetch = fetch(&[(A, len + 1), (B, len)]);
        assert_eq!(fetch.next_request(A), Some(0));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(B), Some(0), "a silent one's length gives way at once");
        assert_eq!(fetch.handle_piece(A, 0, len + 1, first(), |_| true), not_asked);
        assert_eq!(run(&mut fetch, &[B], None), None, "it still owes the first");
        assert!(fetch.handle_piece(B, 0, len, first(), |bytes| bytes == whole).unwrap().is_some());
        // Nobody is mixed in while one must bring all of it.
        let mut fetch = self::fetch(&[(A, len), (B, len)]);
        fetch.mistrust = true;
        assert_eq!(fetch.next_request(A), Some(0));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(B), Some(0), "now it is this one's turn");
        assert_eq!(fetch.handle_piece(A, 0, len, first(), |_| true), not_asked);
        // Nothing is taken of who has lied.
        let mut fetch = self::fetch(&[(A, len), (B, len)]);
        assert_eq!((fetch.next_request(A), fetch.next_request(B)), (Some(0), Some(1)));
        fetch.sources.get_mut(&A).unwrap().failures = FAILURES_MAX;
        fetch.handle_silence();
        assert_eq!(fetch.handle_piece(A, 0, len, first(), |_| true), not_asked);
    }

    /// Whoever is asked for the last piece of a long info dict and brings it when a shorter one is being fetched, whose
    /// length it names: there is no such piece. That was a subtraction below zero.
    #[test]
    fn a_late_piece_behind_the_end_of_a_shorter_info_dict_is_none_of_it() {
        let (long, short) = (3 * METADATA_PIECE_LEN, METADATA_PIECE_LEN);
        let mut fetch = fetch(&[(A, long), (B, short)]);
        assert!((0..3).all(|index| fetch.next_request(A) == Some(index)));
        fetch.handle_silence();
        assert_eq!(fetch.next_request(B), Some(0), "a silent one's length gives way at once");
        for index in 1..3 {
            let late = vec![0; METADATA_PIECE_LEN as usize];
            let taken = fetch.handle_piece(A, index, short, late, |_| true);
            assert_eq!(taken, Err(MetadataError::NotAsked { index }));
        }
    }

    #[test]
    fn pieces_that_were_not_asked_for_or_are_cut_are_refused() {
        let len = info().len() as u32;
        let mut fetch = fetch(&[(A, len), (B, len)]);
        let index = fetch.next_request(A).unwrap();
        let verify = |_: &[u8]| true;
        let piece = vec![0; METADATA_PIECE_LEN as usize];
        let not_asked = Err(MetadataError::NotAsked { index });
        assert_eq!(fetch.handle_piece(B, index, len, piece.clone(), verify), not_asked);
        let wrong_len = Err(MetadataError::WrongLen { index });
        assert_eq!(fetch.handle_piece(A, index, len, piece[1..].to_vec(), verify), wrong_len);
        assert_eq!(fetch.next_request(A), None);
        assert_eq!(fetch.next_request(B), Some(index));
        fetch.remove_peer(B);
        assert_eq!(fetch.next_request(B), None);
    }

    #[test]
    fn serving_ends_where_the_info_dict_ends() {
        let info = info();
        assert_eq!(metadata_piece(&info, 0).unwrap().len(), 16_384);
        assert_eq!(metadata_piece(&info, 6).unwrap(), &info[98_304..]);
        assert_eq!(metadata_piece(&info, 7), None);
        assert_eq!(metadata_piece(&info[..16_384], 1), None);
        assert_eq!(metadata_piece(&info, u32::MAX), None);
    }
}
