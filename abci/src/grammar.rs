//! The call grammar of ABCI 2.0, as a recogniser that tests put around the application.
//!
//! ```text
//! run    = info [init_chain] height*            (init_chain exactly when info says height 0)
//! height = (prepare | process)* finalize+ commit (finalize again only for the same block)
//! ```
//! `info`, `check_tx`, `query` and the snapshot calls are allowed at any time after the first `info`.
//! A driver that breaks off leaves its height where it was; a snapshot takes the place of `init_chain`
//! and of the heights before it.

use std::sync::{Arc, Mutex};

use crate::cluster::certificate::BlockId;
use crate::driver::{
    Application, ApplicationError, FinalizedBlock, Info, InitChain, Proposal, SnapshotOffer,
    SnapshotVerdict, TxResult, Verdict,
};

/// One call that the grammar speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Handshake; the height that it answered.
    Info(u64),
    /// First call of a chain.
    InitChain,
    /// A block is made for a height.
    Prepare(u64),
    /// A block of a height is judged.
    Process(u64),
    /// A decided block of a height is executed.
    Finalize(u64, BlockId),
    /// It is made durable.
    Commit,
    /// The driver is gone: what was executed and not committed does not count.
    Abandon,
    /// A snapshot of a height is in place.
    Restored(u64),
}

/// Follows the calls of one run and tells the first that is not due.
#[derive(Clone, Debug, Default)]
pub struct Recogniser {
    /// The last committed height; `None` before the handshake.
    height: Option<u64>,
    needs_init: bool,
    executed: Option<BlockId>,
    commits: u64,
}

impl Recogniser {
    /// Takes the next call.
    ///
    /// # Errors
    /// What was due instead.
    pub fn accept(&mut self, call: Call) -> Result<(), String> {
        if let Call::Restored(height) = call
            && (self.height.is_none() || self.needs_init)
        {
            // State sync comes before the handshake (0.38 specification, "clean-start").
            (self.height, self.needs_init) = (Some(height), false);
            return Ok(());
        }
        let Some(height) = self.height else {
            let Call::Info(height) = call else { return Err(format!("{call:?} before info")) };
            self.height = Some(height);
            self.needs_init = height == 0;
            return Ok(());
        };
        let due = height + 1;
        match call {
            Call::Info(_) => return Ok(()),
            Call::Abandon => {
                self.executed = None;
                // The next one may begin a chain that has no block yet.
                self.needs_init = height == 0;
                return Ok(());
            }
            Call::InitChain if self.needs_init => {
                self.needs_init = false;
                return Ok(());
            }
            Call::InitChain => return Err("init_chain on a running chain".into()),
            _ if self.needs_init => return Err(format!("{call:?} before init_chain")),
            Call::Prepare(at) | Call::Process(at) if at == due && self.executed.is_none() => {}
            Call::Finalize(at, id) if at == due && self.executed.is_none_or(|last| last == id) => {
                self.executed = Some(id);
            }
            Call::Commit if self.executed.is_some() => {
                self.executed = None;
                self.height = Some(due);
                self.commits += 1;
            }
            _ => {
                let executed = self.executed.is_some();
                return Err(format!("{call:?} when height {due} is due (executed: {executed})"));
            }
        }
        Ok(())
    }

    /// How many heights were committed.
    pub fn commits(&self) -> u64 {
        self.commits
    }
}

/// An application that panics when its driver leaves the grammar.
#[derive(Debug)]
pub struct Checked<A> {
    inner: Arc<A>,
    recogniser: Mutex<Recogniser>,
}

impl<A: Application> Checked<A> {
    /// Puts the recogniser in front of `inner`.
    pub fn new(inner: Arc<A>) -> Self {
        Self { inner, recogniser: Mutex::default() }
    }

    /// Where the recogniser stands.
    ///
    /// # Panics
    /// After an earlier call left the grammar.
    pub fn recogniser(&self) -> Recogniser {
        self.recogniser.lock().expect("the grammar was kept").clone()
    }

    fn accept(&self, call: Call) {
        let result = self.recogniser.lock().expect("the grammar was kept").accept(call);
        if let Err(why) = result {
            panic!("the driver left the call grammar: {why}");
        }
    }
}

impl<A: Application> Application for Checked<A> {
    fn info(&self) -> Info {
        let info = self.inner.info();
        self.accept(Call::Info(info.height));
        info
    }
    fn init_chain(&self) -> Result<InitChain, ApplicationError> {
        self.accept(Call::InitChain);
        self.inner.init_chain()
    }
    fn check_tx(&self, tx: &[u8]) -> TxResult {
        self.inner.check_tx(tx)
    }
    fn prepare_proposal(&self, proposal: &Proposal<'_>) -> Vec<Vec<u8>> {
        self.accept(Call::Prepare(proposal.height));
        self.inner.prepare_proposal(proposal)
    }
    fn process_proposal(&self, proposal: &Proposal<'_>) -> Verdict {
        self.accept(Call::Process(proposal.height));
        self.inner.process_proposal(proposal)
    }
    fn finalize_block(
        &self,
        block_id: BlockId,
        block: &Proposal<'_>,
    ) -> Result<FinalizedBlock, ApplicationError> {
        self.accept(Call::Finalize(block.height, block_id));
        self.inner.finalize_block(block_id, block)
    }
    fn commit(&self) -> Result<Info, ApplicationError> {
        self.accept(Call::Commit);
        self.inner.commit()
    }
    fn abandon(&self) {
        // A driver may break off before its handshake.
        if self.recogniser().height.is_some() {
            self.accept(Call::Abandon);
        }
        self.inner.abandon();
    }
    fn query(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, String> {
        self.inner.query(path, data)
    }
    fn list_snapshots(&self) -> Vec<SnapshotOffer> {
        self.inner.list_snapshots()
    }
    fn load_snapshot_chunk(&self, height: u64, format: u32, chunk_index: u32) -> Option<Vec<u8>> {
        self.inner.load_snapshot_chunk(height, format, chunk_index)
    }
    fn offer_snapshot(&self, offer: &SnapshotOffer, app_hash: [u8; 32]) -> SnapshotVerdict {
        self.inner.offer_snapshot(offer, app_hash)
    }
    fn apply_snapshot_chunk(&self, chunk_index: u32, chunk: &[u8]) -> SnapshotVerdict {
        let verdict = self.inner.apply_snapshot_chunk(chunk_index, chunk);
        if verdict == SnapshotVerdict::Done {
            self.accept(Call::Restored(self.inner.info().height));
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(calls: &[Call]) -> Result<(), String> {
        let mut recogniser = Recogniser::default();
        calls.iter().try_for_each(|call| recogniser.accept(*call))
    }

    #[test]
    fn a_new_chain_and_a_recovery_are_accepted() {
        let (a, b) = (BlockId([1; 32]), BlockId([2; 32]));
        let new = [
            Call::Info(0),
            Call::InitChain,
            Call::Prepare(1),
            Call::Process(1),
            Call::Finalize(1, a),
            Call::Finalize(1, a),
            Call::Commit,
            Call::Process(2),
            Call::Finalize(2, b),
            Call::Commit,
        ];
        assert_eq!(run(&new), Ok(()));
        assert_eq!(run(&[Call::Info(7), Call::Finalize(8, a), Call::Commit]), Ok(()));
    }

    #[test]
    fn every_other_order_is_told() {
        let (a, b) = (BlockId([1; 32]), BlockId([2; 32]));
        let wrong: [&[Call]; 9] = [
            &[Call::Commit],
            &[Call::Info(0), Call::Prepare(1)],
            &[Call::Info(3), Call::InitChain],
            &[Call::Info(3), Call::Commit],
            &[Call::Info(3), Call::Finalize(5, a)],
            &[Call::Info(3), Call::Finalize(4, a), Call::Finalize(4, b)],
            &[Call::Info(3), Call::Finalize(4, a), Call::Commit, Call::Commit],
            &[Call::Info(3), Call::Finalize(4, a), Call::Prepare(4)],
            &[Call::Info(3), Call::Process(3)],
        ];
        for calls in wrong {
            assert!(run(calls).is_err(), "{calls:?}");
        }
    }
}
