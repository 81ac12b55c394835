//! Before consensus: what the mempool takes in, what a proposer offers, what a voter accepts.

use crate::block::{DecidedBlock, PENDING_PER_SIGNER_MAX, PendingNonces, ProposalFault, TxResult};
use crate::code::TxCode;
use crate::execute::Execution;
use crate::overlay::Overlay;
use crate::rules::{Touched, admit_bytes};
use crate::state::State;

pub(crate) fn check_tx(state: &State, tx: &[u8], pending: &PendingNonces) -> TxResult {
    let height = state.height().saturating_add(1);
    let last_nonce = |signer: &_| {
        let taken = pending.last(signer).unwrap_or(0);
        taken.max(state.nonce(signer))
    };
    let tx = match admit_bytes(state, height, tx, last_nonce) {
        Ok(tx) => tx,
        Err(refusal) => return TxResult::refused(refusal),
    };
    if pending.count(&tx.signer) >= PENDING_PER_SIGNER_MAX {
        return TxResult::refused(TxCode::SignerBusy.into());
    }
    // Behind a transaction that waits, the rules would judge a state that this one will not meet.
    if pending.last(&tx.signer).is_some_and(|nonce| nonce > state.nonce(&tx.signer)) {
        return TxResult::ok(Vec::new());
    }
    let mut overlay = Overlay::new(state, height);
    overlay.expire_candidates();
    match overlay.apply(&tx, &mut Touched::new()) {
        Ok(events) => TxResult::ok(events),
        Err(refusal) => TxResult::refused(refusal),
    }
}

pub(crate) fn prepare(state: &State, block: &DecidedBlock) -> Vec<Vec<u8>> {
    let mut execution = Execution::new(state, block.height, &block.misbehaviour);
    let mut kept = Vec::new();
    for tx in &block.txs {
        let result = execution.run(tx);
        match result.code {
            TxCode::Ok => kept.push(tx.clone()),
            // It took no room.
            TxCode::BlockFull | TxCode::TooLarge => {}
            _ => execution.forget_len(tx),
        }
    }
    kept
}

pub(crate) fn process(state: &State, block: &DecidedBlock) -> Result<(), ProposalFault> {
    let expected = state.height().saturating_add(1);
    if block.height != expected {
        return Err(ProposalFault::Height { found: block.height, expected });
    }
    let lens = block.txs.iter().map(|tx| u64::try_from(tx.len()).unwrap_or(u64::MAX));
    let len = lens.fold(0u64, u64::saturating_add);
    let len_max = u64::from(state.params().block_len_max);
    if len > len_max {
        return Err(ProposalFault::TooLarge { len, len_max });
    }
    let mut execution = Execution::new(state, block.height, &block.misbehaviour);
    for (index, tx) in block.txs.iter().enumerate() {
        let code = execution.run(tx).code;
        if is_proposers_fault(code) {
            return Err(ProposalFault::Tx { index, code });
        }
    }
    Ok(())
}

/// What depends on the bytes and the signer's own sequence alone. A rule of the market that fails is
/// left to the result code, so that a doubt about it never costs a round.
fn is_proposers_fault(code: TxCode) -> bool {
    matches!(
        code,
        TxCode::TooLarge
            | TxCode::Malformed
            | TxCode::UnknownVersion
            | TxCode::UnknownKind
            | TxCode::BadSignature
            | TxCode::Expired
            | TxCode::ValidTooLong
            | TxCode::NonceUsed
            | TxCode::NonceAhead
            | TxCode::BlockFull
    )
}
