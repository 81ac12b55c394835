//! A transaction from a stranger: one spelling, and no effect of what is refused.

use ringseed_ledger::{
    Addr, DataHash, DecidedBlock, Delta, InfoHashV1, Offer, PendingNonces, Proof, Signature,
    StateKey, TX_LEN_MAX, Tx, TxBody, TxCode,
};

use crate::market;
use crate::source::{Source, damage};

/// Bytes with the magic of a transaction are taken as they are; others tell which to build, sign and
/// then damage.
pub fn run(data: &[u8]) {
    decoders(data);
    if data.starts_with(b"RSTX") {
        check(data);
        return;
    }
    let mut source = Source::new(data);
    let n = source.below(market::KEYS);
    let nonce = [1, 0, 2, u64::MAX][source.below(4)];
    let until = [50, 0, 1, 10_001, 10_002, u64::MAX][source.below(6)];
    if source.below(4) == 0 {
        // A body that no signer here makes: whoever decodes it must see that, before any signature.
        let (signer, signature) = (market::key(n).public(), Signature([1; 64]));
        let body = malformed(&mut source);
        let tx = Tx { signer, nonce, valid_until_height: until, body, signature };
        check(&tx.to_bytes());
        return;
    }
    let body = market::body(&mut source);
    let mut bytes = market::sign(n, nonce, until, body);
    let is_damaged = damage(&mut source, &mut bytes);
    let code = check(&bytes);
    if is_damaged {
        assert_ne!(code, Some(TxCode::Ok), "a damaged transaction succeeds");
    }
}

/// A body with ids in any order, or an offer with any numbers and letters.
fn malformed(source: &mut Source<'_>) -> TxBody {
    if source.flag() {
        let ids = |source: &mut Source<'_>| -> Vec<DataHash> {
            (0..source.below(4)).map(|_| market::id(source.byte())).collect()
        };
        return TxBody::Attest { have: ids(source), withdrawn: ids(source) };
    }
    TxBody::Candidate(Offer {
        infohash_v2: market::id(source.byte()),
        infohash_v1: InfoHashV1([1; 20]),
        size_bytes: source.byte().into(),
        file_count: source.byte().into(),
        piece_len_log2: source.byte(),
        name: String::from_utf8_lossy(source.bytes(140)).into_owned(),
    })
}

/// What holds for all bytes; the result of the transaction if they are one.
fn check(bytes: &[u8]) -> Option<TxCode> {
    let tx = Tx::decode(bytes).ok();
    if let Some(tx) = &tx {
        assert_eq!(tx.to_bytes(), bytes, "a second spelling");
        assert!(bytes.len() <= TX_LEN_MAX);
        match &tx.body {
            TxBody::Attest { have, withdrawn } => {
                assert!(have.is_sorted_by(|a, b| a < b) && withdrawn.is_sorted_by(|a, b| a < b));
                assert!(have.iter().all(|id| !withdrawn.contains(id)), "held and withdrawn");
            }
            TxBody::Candidate(offer) => {
                assert!(offer.size_bytes > 0 && offer.file_count > 0 && !offer.name.is_empty());
                assert!(!offer.name.contains(char::is_control));
            }
            TxBody::Register(endpoint) | TxBody::UpdateEndpoint(endpoint) => {
                for addr in [endpoint.consensus_addr, endpoint.payload_addr] {
                    assert_eq!(Addr::new(addr.get()), Ok(addr));
                    assert_eq!(addr.to_string().parse(), Ok(addr), "an address has one spelling");
                }
            }
            TxBody::Leave | TxBody::Admit { .. } | TxBody::Remove { .. } => {}
        }
    }
    let state = market::first_state();
    let before = state.app_hash();
    let early = state.check_tx(bytes, &PendingNonces::new());
    let txs = vec![bytes.to_vec()];
    let proposer = market::key(0).public();
    let block = DecidedBlock { height: 1, txs, proposer, misbehaviour: Vec::new() };
    let outcome = state.execute(&block);
    assert_eq!(state.app_hash(), before, "executing changes nothing");
    let result = &outcome.results[0];
    assert_eq!(early.code, result.code, "the mempool and the block judge alike");
    if result.code != TxCode::Ok {
        assert!(outcome.app_hash == before && outcome.delta.is_empty(), "{:?}", result.code);
        assert!(outcome.events.is_empty() && result.events.is_empty());
    } else {
        let tx = tx.as_ref().expect("only a transaction succeeds");
        assert!(tx.verify(&state.genesis_hash()).is_ok(), "without a signature");
        assert_ne!(outcome.app_hash, before);
    }
    if result.code == TxCode::Ok {
        assert_eq!(state.prepare(&block).len(), 1, "what a proposer keeps");
    }
    tx.map(|_| result.code)
}

/// The other things that nodes read: what they take has one spelling.
fn decoders(data: &[u8]) {
    if let Ok(delta) = Delta::decode(data) {
        assert_eq!(delta.to_bytes(), data);
    }
    if let Ok(proof) = Proof::decode(data) {
        assert_eq!(proof.to_bytes(), data);
    }
    if let Ok(key) = StateKey::decode(data) {
        assert_eq!(key.to_bytes(), data);
    }
}
