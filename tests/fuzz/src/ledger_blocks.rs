//! A short history of a market, in any order of events.

use std::collections::BTreeMap;

use ringseed_ledger::{
    DecidedBlock, Delta, Event, Misbehaviour, PublicKey, State, StateKey, TxCode,
};

use crate::market::{self, KEYS};
use crate::source::Source;

/// However members behave: a refused transaction leaves no trace, counts agree with what is there,
/// and a second node that reads deltas from its log has the same state.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut state = market::state();
    let mut follower = market::state();
    while !source.is_empty() {
        let block = block(&mut source, &state);
        let outcome = state.execute(&block);

        let mut refused = false;
        let mut good = block.clone();
        let mut results = outcome.results.iter();
        good.txs.retain(|_| {
            let is_ok = results.next().is_some_and(|result| result.is_ok());
            refused |= !is_ok;
            is_ok
        });
        if refused {
            let without = state.execute(&good);
            assert_eq!(without.app_hash, outcome.app_hash, "a refused transaction leaves a trace");
            assert_eq!(without.delta, outcome.delta);
            assert!(without.results.iter().all(|result| result.is_ok()));
        }
        let kept = state.prepare(&block);
        let offer = DecidedBlock { txs: kept, ..block.clone() };
        assert_eq!(state.process(&offer), Ok(()), "a proposer's own block is refused");
        assert!(state.execute(&offer).results.iter().all(|result| result.is_ok()));

        let is_effective = outcome.results.iter().any(|result| result.is_ok())
            || outcome.events.iter().any(|event| matches!(event, Event::Expelled(_)));
        let is_kept = outcome.app_hash == state.app_hash() && outcome.delta.is_empty();
        assert!(is_effective || is_kept, "a block in which nothing succeeded changes something");

        let before: BTreeMap<PublicKey, u64> = nonces(&state);
        state.commit(&outcome.delta).expect("its own block");
        assert_eq!(state.app_hash(), outcome.app_hash);
        let delta = Delta::decode(&outcome.delta.to_bytes()).expect("its own bytes");
        follower.commit(&delta).expect("a delta from the log");
        assert_eq!(follower.app_hash(), state.app_hash());
        for (key, nonce) in nonces(&state) {
            // A registration that expired takes the nonce with it.
            let is_forgotten = nonce == 0 && state.member(&key).is_none();
            assert!(nonce >= before[&key] || is_forgotten, "a nonce goes back");
        }
        check(&state);
    }
    let snapshot = state.to_snapshot();
    let again = State::from_snapshot(&snapshot, &state.app_hash()).expect("its own snapshot");
    assert_eq!(again.to_snapshot(), snapshot);
}

fn nonces(state: &State) -> BTreeMap<PublicKey, u64> {
    (0..KEYS).map(|n| (market::key(n).public(), state.nonce(&market::key(n).public()))).collect()
}

fn block(source: &mut Source<'_>, state: &State) -> DecidedBlock {
    let height = state.height() + 1;
    let mut next = nonces(state);
    let mut txs = Vec::new();
    for _ in 0..source.below(6) {
        let n = source.below(KEYS);
        let nonce = next.get_mut(&market::key(n).public()).expect("all keys are there");
        // Mostly the next one; now and then an old one, or a gap.
        let wanted = match source.byte() {
            0xff => *nonce,
            0xfe => *nonce + 2,
            _ => *nonce + 1,
        };
        let tx = market::sign(n, wanted, height + 100, market::body(source));
        // Later ones of this signer count on it only if it succeeds alone.
        let alone = DecidedBlock { height, txs: vec![tx.clone()], ..empty(height) };
        if state.execute(&alone).results[0].code == TxCode::Ok || source.flag() {
            *nonce = wanted;
        }
        txs.push(tx);
    }
    let mut block = DecidedBlock { txs, ..empty(height) };
    if source.byte() == 0xee {
        let validator = market::key(source.below(KEYS)).public();
        block.misbehaviour.push(Misbehaviour { validator, height: height.saturating_sub(1) });
    }
    block
}

fn empty(height: u64) -> DecidedBlock {
    let proposer = market::key(0).public();
    DecidedBlock { height, txs: Vec::new(), proposer, misbehaviour: Vec::new() }
}

/// What holds for every state.
fn check(state: &State) {
    assert_eq!(state.listings(0).count() as u64, state.listing_count());
    assert!(!state.validators().is_empty(), "a market without a validator");
    assert!(state.validators().is_sorted_by(|a, b| a.key < b.key));
    let powers: u64 = state.members().map(|member| member.power).sum();
    assert_eq!(powers, state.total_power(), "power of nobody");
    for validator in state.validators() {
        let member = state.member(&validator.key).expect("a validator is a member");
        assert!(member.is_admitted() && member.power == validator.power);
        let key = StateKey::Nonce(validator.key);
        let value = state.value(&key);
        let verdict = state.proof(&key).verify(&state.app_hash(), &key, value.as_deref());
        assert_eq!(verdict, Ok(()));
    }
    // By number: an owner that left and came back starts with clean totals.
    let mut open: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
    for candidate in state.candidates() {
        let entry = open.entry(candidate.owner_index).or_default();
        *entry = (entry.0 + candidate.offer.size_bytes, entry.1 + 1);
        assert!(state.listing(&candidate.offer.infohash_v2).is_none(), "candidate and listing");
        assert!(candidate.offer.size_bytes <= state.params().listing_size_max_bytes);
    }
    for member in state.members().filter(|member| member.is_admitted()) {
        let index = member.index().expect("an admitted member has a number");
        let (bytes, count) = open.get(&index).copied().unwrap_or_default();
        // Void candidates count until a block drops them.
        assert!(member.open_bytes >= bytes && member.open_count >= count, "room given back twice");
        assert!(member.open_bytes <= state.params().open_candidate_bytes_max);
        let named = state.member_by_name(&member.endpoint.name).map(|named| named.key);
        assert_eq!(named, Some(member.key), "a name that leads elsewhere");
    }
}
