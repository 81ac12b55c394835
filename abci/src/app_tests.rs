//! The application alone: order of calls, crash rules, checkpoints, snapshots.

use ringseed_ledger::{
    Addr, DataHash, GenesisMember, InfoHashV1, Offer, Params, SigningKey, TxBody,
};

use super::*;
use crate::testing::TempDir;

fn key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn genesis() -> Genesis {
    let addr = |port: u16| Addr::new(([127, 0, 0, 1], port).into()).unwrap();
    let member = GenesisMember {
        name: "founder".into(),
        key: key().public(),
        consensus_addr: addr(1),
        payload_addr: addr(2),
        power: 1,
    };
    Genesis::new("app", Params::local(), vec![member]).unwrap()
}

fn open(dir: &TempDir, log_len_bytes_min: u64) -> LedgerApp {
    LedgerApp::open_with(dir.path(), &genesis(), log_len_bytes_min).unwrap()
}

fn offer(app: &LedgerApp, seed: u8) -> Vec<u8> {
    let body = TxBody::Candidate(Offer {
        infohash_v2: DataHash([seed; 32]),
        infohash_v1: InfoHashV1([seed; 20]),
        size_bytes: 1,
        file_count: 1,
        piece_len_log2: 14,
        name: format!("data {seed}"),
    });
    let nonce = app.view().nonce(&key().public()) + 1;
    Tx::sign(&key(), &genesis().hash(), nonce, 5_000, body).unwrap().to_bytes()
}

fn block(app: &LedgerApp, txs: &[Vec<u8>]) -> FinalizedBlock {
    let height = app.info().height + 1;
    let proposal = Proposal { height, proposer: key().public().0, txs, misbehaviour: &[] };
    assert_eq!(app.process_proposal(&proposal), Verdict::Accept);
    let id = BlockId([height as u8; 32]);
    let finalized = app.finalize_block(id, &proposal).unwrap();
    assert_eq!(app.finalize_block(id, &proposal).unwrap(), finalized, "idempotent");
    assert_eq!(app.info().height, height - 1, "nothing moves before the commit");
    assert_eq!(app.commit().unwrap(), Info { height, app_hash: finalized.app_hash });
    finalized
}

#[test]
fn a_torn_record_at_every_byte_leaves_the_block_before() {
    let dir = TempDir::new("app-torn");
    let app = open(&dir, u64::MAX);
    block(&app, &[offer(&app, 1)]);
    let before = app.info();
    let path = dir.path().join("state.log");
    let start = std::fs::metadata(&path).unwrap().len() as usize;
    block(&app, &[offer(&app, 2)]);
    let after = app.info();
    drop(app);
    let whole = std::fs::read(&path).unwrap();
    let step = ((whole.len() - start) / 60).max(1);
    for len in (start..whole.len()).step_by(step) {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(open(&dir, u64::MAX).info(), before, "cut to {len} bytes");
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(open(&dir, u64::MAX).info(), after);
}

#[test]
fn checkpoints_keep_the_start_short_and_a_crash_between_them_harmless() {
    let dir = TempDir::new("app-checkpoint");
    let app = open(&dir, 2_000);
    let log = dir.path().join("state.log");
    let mut old_log = Vec::new();
    for seed in 1..=60 {
        let before = std::fs::read(&log).unwrap();
        block(&app, &[offer(&app, seed)]);
        if std::fs::metadata(&log).unwrap().len() == HEADER_LEN_BYTES {
            old_log = before;
        }
    }
    let info = app.info();
    drop(app);
    assert!(dir.path().join("state.checkpoint").exists());
    let app = open(&dir, 2_000);
    assert_eq!(app.info(), info);
    drop(app);
    let bytes = std::fs::read(dir.path().join("state.checkpoint")).unwrap();
    let height = parse_checkpoint(&bytes).unwrap().height;
    assert!(height > 0 && height <= info.height);
    // The crash came after the checkpoint and before the cut: records of old heights are skipped.
    std::fs::write(&log, &old_log).unwrap();
    assert_eq!(open(&dir, 2_000).info().height, height);
}

#[test]
fn check_tx_counts_what_it_took_until_the_next_commit() {
    let dir = TempDir::new("app-check");
    let app = open(&dir, u64::MAX);
    let (first, second) = (offer(&app, 1), {
        let body = TxBody::Remove { listing: DataHash([1; 32]) };
        Tx::sign(&key(), &genesis().hash(), 2, 5_000, body).unwrap().to_bytes()
    });
    assert_eq!(app.check_tx(&second).code, TxCode::NonceAhead);
    assert_eq!(app.check_tx(&first).code, TxCode::Ok);
    assert_eq!(app.check_tx(&first).code, TxCode::NonceUsed);
    block(&app, &[]);
    assert_eq!(app.check_tx(&first).code, TxCode::Ok, "the commit forgot what was taken in");
    assert_eq!(app.check_tx(&[1, 2, 3]).code, TxCode::Malformed);
}

#[test]
fn queries_prove_what_they_answer() {
    let dir = TempDir::new("app-query");
    let app = open(&dir, u64::MAX);
    block(&app, &[offer(&app, 1)]);
    assert_eq!(app.query("/height", &[]), Ok(1_u64.to_le_bytes().to_vec()));
    assert_eq!(app.query("/nonce", &key().public().0), Ok(1_u64.to_le_bytes().to_vec()));
    let at = StateKey::Nonce(key().public());
    let value = app.query("/value", &at.to_bytes()).unwrap();
    let proof = app.query("/proof", &at.to_bytes()).unwrap();
    let proof = ringseed_ledger::Proof::decode(&proof).unwrap();
    let app_hash = AppHash(app.info().app_hash);
    proof.verify(&app_hash, &at, Some(&value)).unwrap();
    assert!(app.query("/nothing", &[]).is_err());
    assert!(app.query("/value", &[200]).is_err());
}
