//! A snapshot from a stranger: the state that the caller trusts, or nothing.

use std::sync::LazyLock;

use ringseed_ledger::{AppHash, DecidedBlock, State};

use crate::market;
use crate::source::{Source, damage};

/// A state with members, candidates, listings and a tombstone in it.
static RICH: LazyLock<(Vec<u8>, AppHash)> = LazyLock::new(|| {
    let mut state = market::state();
    // A story that the generator of the other target tells as well.
    for seed in 0..12u8 {
        let height = state.height() + 1;
        let mut txs = Vec::new();
        for n in 0..3 {
            let script = [if n == 0 { 4 } else { 6 }, seed, seed, seed, 0, 0];
            let body = market::body(&mut Source::new(&script));
            let nonce = state.nonce(&market::key(n).public()) + 1;
            txs.push(market::sign(n, nonce, height + 100, body));
        }
        let proposer = market::key(0).public();
        let block = DecidedBlock { height, txs, proposer, misbehaviour: Vec::new() };
        let outcome = state.execute(&block);
        state.commit(&outcome.delta).expect("its own block");
    }
    (state.to_snapshot(), state.app_hash())
});

/// Bytes before the first record: magic, version, height, app hash, count.
const HEAD_LEN: usize = 4 + 1 + 8 + 32 + 8;

/// Only the canonical bytes of the trusted state are taken, whatever is done to them.
pub fn run(data: &[u8]) {
    let (whole, trusted) = &*RICH;
    check(data, trusted);
    let mut source = Source::new(data);
    let mut bytes = whole.clone();
    match source.below(4) {
        0 => {
            damage(&mut source, &mut bytes);
        }
        1 => bytes = forged(&mut source, whole),
        2 => {
            bytes = forged(&mut source, whole);
            damage(&mut source, &mut bytes);
        }
        _ => {
            // Another height is all that may differ: it is certified elsewhere.
            bytes[5..13].copy_from_slice(&source.array::<8>());
        }
    }
    check(&bytes, trusted);
    assert!(State::from_snapshot(whole, trusted).is_ok());
    let other = AppHash(source.array());
    // A fuzzer that sees what is compared learns the right one after a while.
    if other != *trusted {
        assert!(State::from_snapshot(whole, &other).is_err(), "an app hash is as good as another");
    }
}

fn check(bytes: &[u8], trusted: &AppHash) {
    if let Ok(state) = State::from_snapshot(bytes, trusted) {
        assert_eq!(state.app_hash(), *trusted);
        assert_eq!(state.to_snapshot(), bytes, "a second spelling of a state");
    }
}

/// The same records in another order, twice, or fewer, under a count that fits.
fn forged(source: &mut Source<'_>, whole: &[u8]) -> Vec<u8> {
    let mut records: Vec<&[u8]> = Vec::new();
    let mut rest = &whole[HEAD_LEN..];
    while !rest.is_empty() {
        let key_len = usize::from(rest[0]);
        let at = 1 + key_len;
        let len = rest[at..at + 4].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let (record, behind) = rest.split_at(at + 4 + len);
        records.push(record);
        rest = behind;
    }
    for _ in 0..1 + source.below(3) {
        let (at, to) = (source.below(records.len()), source.below(records.len()));
        match source.below(4) {
            0 => records.swap(at, to),
            1 => records.insert(at, records[to]),
            2 => records.insert(at, records[at]),
            _ => drop(records.remove(at)),
        }
    }
    let mut bytes = whole[..HEAD_LEN - 8].to_vec();
    bytes.extend_from_slice(&(records.len() as u64).to_le_bytes());
    records.iter().for_each(|record| bytes.extend_from_slice(record));
    bytes
}
