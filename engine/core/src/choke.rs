//! Who is answered when more peers want payload than are served at a time (BEP 3, "choking").
//!
//! Few streams at a good rate complete pieces that their receivers can pass on; very many slow ones
//! complete nothing for long. So stock peers share a number of *slots*. While we lack pieces ourselves, most slots
//! go to those who give us most, and one in turn to everybody, for who has nothing yet can give
//! nothing. Once we lack nothing, whoever has waited longest takes the place of
//! whoever was served longest, and first of those who take nothing of it.
//! Nodes of a market are not choked: between them the shares of `swarm` decide.
//!
//! Nothing happens while there are slots for all: rounds begin when somebody waits.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often slots are given anew while somebody waits: time enough for TCP to find its pace, and what
/// stock clients do.
pub const ROUND: Duration = Duration::from_secs(10);

/// How long the slot in turn stays with one peer: three rounds, so that it can earn one of the others.
const IN_TURN: Duration = Duration::from_secs(30);

/// A peer that wants payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<K> {
    /// The caller's name for it.
    pub key: K,
    /// Payload that it has sent us since the last round, in bytes.
    pub gave_bytes: u64,
    /// It has a slot, since then; without one: it has waited since then.
    pub since: Instant,
    /// It has a slot.
    pub is_served: bool,
    /// It takes nothing of what is sent to it.
    pub is_stalled: bool,
}

/// Gives slots to peers.
#[derive(Debug)]
pub struct Choker<K> {
    /// The peer that has the slot in turn, and since when.
    in_turn: Option<(K, Instant)>,
}

impl<K> Default for Choker<K> {
    fn default() -> Self {
        Choker { in_turn: None }
    }
}

impl<K: Copy + Ord> Choker<K> {
    /// Who is served until the next round: at most `slots` of the candidates, and all of them when there
    /// is room. `is_lacking`: we want payload ourselves.
    pub fn round(
        &mut self,
        now: Instant,
        candidates: &[Candidate<K>],
        slots: usize,
        is_lacking: bool,
    ) -> BTreeSet<K> {
        if candidates.len() <= slots {
            self.in_turn = None;
            return candidates.iter().map(|candidate| candidate.key).collect();
        }
        match is_lacking {
            true => self.by_merit(now, candidates, slots),
            false => by_turns(now, candidates, slots),
        }
    }

    fn by_merit(&mut self, now: Instant, candidates: &[Candidate<K>], slots: usize) -> BTreeSet<K> {
        let stays = |&(key, since): &(K, Instant)| {
            now.saturating_duration_since(since) < IN_TURN
                && candidates.iter().any(|candidate| candidate.key == key)
        };
        let waits_longest = || {
            let waiting = candidates.iter().filter(|candidate| !candidate.is_served);
            waiting.min_by_key(|candidate| (candidate.since, candidate.key))
        };
        self.in_turn = self
            .in_turn
            .filter(stays)
            .or_else(|| waits_longest().map(|candidate| (candidate.key, now)));
        let in_turn = self.in_turn.map(|(key, _)| key);
        let mut others: Vec<_> =
            candidates.iter().filter(|candidate| Some(candidate.key) != in_turn).collect();
        // Of equals those who have a slot keep it: a change costs both sides a round trip.
        others.sort_by_key(|candidate| {
            (std::cmp::Reverse(candidate.gave_bytes), !candidate.is_served, candidate.key)
        });
        let rest = slots - usize::from(in_turn.is_some()).min(slots);
        let best = others.into_iter().take(rest).map(|candidate| candidate.key);
        in_turn.into_iter().take(slots).chain(best).collect()
    }
}

/// Half of the slots, and one at least, go to those who have waited longest, in place of those who were
/// served longest; whoever takes nothing goes first, and who has been served for less than a round stays.
fn by_turns<K: Copy + Ord>(now: Instant, candidates: &[Candidate<K>], slots: usize) -> BTreeSet<K> {
    let (mut served, mut waiting): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|candidate| candidate.is_served);
    let is_new = |candidate: &Candidate<K>| {
        !candidate.is_stalled && now.saturating_duration_since(candidate.since) < ROUND
    };
    served.sort_by_key(|candidate: &&Candidate<K>| {
        (candidate.is_stalled, std::cmp::Reverse(candidate.since), candidate.key)
    });
    waiting.sort_by_key(|candidate| (candidate.since, candidate.key));
    let new_count = served.iter().filter(|candidate| is_new(candidate)).count();
    let free = slots.saturating_sub(served.len());
    let turns = waiting.len().min((slots / 2).max(1).max(free));
    let kept = slots.saturating_sub(turns).max(new_count.min(slots)).min(served.len());
    let kept = served.into_iter().take(kept).map(|candidate| candidate.key);
    let kept: Vec<K> = kept.collect();
    let room = slots - kept.len();
    kept.into_iter().chain(waiting.into_iter().take(room).map(|it| it.key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(key: u32, since: Instant) -> Candidate<u32> {
        Candidate { key, gave_bytes: 0, since, is_served: false, is_stalled: false }
    }

    /// Lets rounds pass. Returns in how many each was served.
    fn play(
        count: u32,
        slots: usize,
        rounds: u32,
        gives: impl Fn(u32) -> u64,
        lacking: bool,
    ) -> Vec<u64> {
        let start = Instant::now();
        let mut peers: Vec<_> = (0..count).map(|key| waiting(key, start)).collect();
        let mut got = vec![0; count as usize];
        let mut choker = Choker::default();
        for round in 0..rounds {
            let now = start + ROUND * round;
            let served = choker.round(now, &peers, slots, lacking);
            assert_eq!(served.len(), slots.min(count as usize));
            for peer in &mut peers {
                let is_served = served.contains(&peer.key);
                if is_served != peer.is_served {
                    (peer.is_served, peer.since) = (is_served, now);
                }
                got[peer.key as usize] += u64::from(is_served);
                peer.gave_bytes = gives(peer.key);
            }
        }
        got
    }

    #[test]
    fn all_are_served_while_there_is_room() {
        for lacking in [false, true] {
            assert_eq!(play(4, 4, 3, |_| 0, lacking), [3; 4]);
            assert_eq!(play(0, 4, 3, |_| 0, lacking), [0; 0]);
        }
    }

    #[test]
    fn a_seed_serves_everybody_in_turn() {
        let got = play(20, 4, 100, |_| 0, false);
        let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
        assert!(*least >= 15 && *most <= 25, "{got:?}");
        // One slot goes round as well.
        let got = play(3, 1, 30, |_| 0, false);
        assert!(got.iter().all(|&rounds| rounds >= 9), "{got:?}");
    }

    #[test]
    fn who_gives_most_is_served_and_the_others_in_turn() {
        let got = play(10, 4, 120, |key| if key < 3 { 1000 + u64::from(key) } else { 0 }, true);
        assert!(got[..3].iter().all(|&rounds| rounds >= 110), "{got:?}");
        let others = &got[3..];
        assert!(others.iter().all(|&rounds| (9..=36).contains(&rounds)), "{got:?}");
    }

    #[test]
    fn a_newcomer_that_gives_most_wins_a_slot_within_its_turn() {
        let start = Instant::now();
        let mut choker = Choker::default();
        let served = |key| Candidate { is_served: true, gave_bytes: 500, ..waiting(key, start) };
        let mut peers = vec![served(0), served(1), waiting(2, start)];
        let first = choker.round(start, &peers, 2, true);
        assert!(first.contains(&2), "it waited longest: {first:?}");
        peers[2] = Candidate { is_served: true, gave_bytes: 900, ..waiting(2, start) };
        peers[1].is_served = false;
        let later = choker.round(start + 4 * ROUND, &peers, 2, true);
        assert!(later.contains(&2), "it gives most: {later:?}");
    }

    #[test]
    fn who_has_just_got_a_slot_keeps_it_for_a_round() {
        let start = Instant::now();
        let now = start + ROUND / 2;
        let new = |key| Candidate { is_served: true, ..waiting(key, now) };
        let old = Candidate { is_served: true, ..waiting(7, start - ROUND) };
        let mut choker = Choker::default();
        let served = choker.round(now, &[new(1), new(2), old, waiting(9, start)], 3, false);
        assert_eq!(served, BTreeSet::from([1, 2, 9]));
    }

    /// Connections that ask and never read would keep their slots for ever, as they cost nothing.
    #[test]
    fn who_takes_nothing_goes_first() {
        let start = Instant::now();
        let deaf = |key| Candidate { is_served: true, is_stalled: true, ..waiting(key, start) };
        let old = Candidate { is_served: true, ..waiting(0, start - 9 * ROUND) };
        let mut choker = Choker::default();
        let peers = [old, deaf(1), deaf(2), deaf(3), waiting(8, start), waiting(9, start)];
        let served = choker.round(start + ROUND / 2, &peers, 4, false);
        assert!(served.is_superset(&BTreeSet::from([0, 8, 9])), "{served:?}");
    }
}
