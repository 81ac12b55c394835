//! The ledger's application with somebody listening: who submitted learns the outcome at the commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use ringseed_ledger::{Tx, TxHash};

use crate::app::LedgerApp;
use crate::cluster::certificate::BlockId;
use crate::driver::{
    Application, ApplicationError, FinalizedBlock, Info, InitChain, Proposal, SnapshotOffer,
    SnapshotVerdict, TxResult, Verdict,
};
use crate::handle::{Heights, RECENT_APP_HASHES_MAX, Status, TxOutcome};

/// The application that the shim serves.
pub(super) struct Followed {
    ledger: Arc<LedgerApp>,
    heights: Heights,
    desk: Mutex<Desk>,
}

/// Who waits for what.
pub(super) struct Ticket {
    hash: TxHash,
    serial: u64,
}

struct Desk {
    /// Outcomes of the block that is executed and not committed.
    executed: Vec<(TxHash, TxOutcome)>,
    /// By transaction, then by who asked.
    waiters: BTreeMap<(TxHash, u64), SyncSender<TxOutcome>>,
    next_serial: u64,
    recent: VecDeque<(u64, [u8; 32])>,
    last_commit: Instant,
    is_closed: bool,
}

impl Followed {
    pub(super) fn new(ledger: Arc<LedgerApp>) -> Self {
        let Info { height, app_hash } = ledger.info();
        let desk = Desk {
            executed: Vec::new(),
            waiters: BTreeMap::new(),
            next_serial: 0,
            recent: [(height, app_hash)].into(),
            last_commit: Instant::now(),
            is_closed: false,
        };
        Self { ledger, heights: Heights::default(), desk: Mutex::new(desk) }
    }

    /// The outcome of the transaction with `hash`, once a block that holds it is committed. The ticket
    /// takes the wish back.
    pub(super) fn await_outcome(&self, hash: TxHash) -> (Ticket, Receiver<TxOutcome>) {
        let (sender, receiver) = sync_channel(1);
        let mut desk = self.desk();
        let ticket = Ticket { hash, serial: desk.next_serial };
        desk.next_serial += 1;
        if !desk.is_closed {
            desk.waiters.insert((hash, ticket.serial), sender);
        }
        (ticket, receiver)
    }

    /// Nobody waits for this any more.
    pub(super) fn forget(&self, ticket: &Ticket) {
        self.desk().waiters.remove(&(ticket.hash, ticket.serial));
    }

    pub(super) fn subscribe(&self) -> Receiver<u64> {
        self.heights.subscribe()
    }

    /// What is known without asking the daemon.
    pub(super) fn status(&self) -> Status {
        let Info { height, app_hash } = self.ledger.info();
        let desk = self.desk();
        Status {
            height,
            app_hash,
            recent_app_hashes: desk.recent.clone(),
            last_block_age: desk.last_commit.elapsed(),
            ..Status::default()
        }
    }

    /// Ends every wait and every subscription.
    pub(super) fn close(&self) {
        let mut desk = self.desk();
        desk.is_closed = true;
        desk.waiters.clear();
        drop(desk);
        self.heights.close();
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().expect("no panic under this lock")
    }

    fn moved_to(&self, info: &Info, outcomes: Vec<(TxHash, TxOutcome)>) {
        let mut desk = self.desk();
        desk.last_commit = Instant::now();
        desk.recent.push_back((info.height, info.app_hash));
        while desk.recent.len() > RECENT_APP_HASHES_MAX {
            desk.recent.pop_front();
        }
        for (hash, outcome) in outcomes {
            for (_, waiter) in desk.waiters.range((hash, 0)..=(hash, u64::MAX)) {
                // Who stopped waiting does not want it.
                let _ = waiter.try_send(outcome.clone());
            }
        }
        drop(desk);
        self.heights.publish(info.height);
    }
}

impl Application for Followed {
    fn info(&self) -> Info {
        self.ledger.info()
    }
    fn init_chain(&self) -> Result<InitChain, ApplicationError> {
        self.ledger.init_chain()
    }
    fn check_tx(&self, tx: &[u8]) -> TxResult {
        self.ledger.check_tx(tx)
    }
    fn prepare_proposal(&self, proposal: &Proposal<'_>) -> Vec<Vec<u8>> {
        self.ledger.prepare_proposal(proposal)
    }
    fn process_proposal(&self, proposal: &Proposal<'_>) -> Verdict {
        self.ledger.process_proposal(proposal)
    }
    fn finalize_block(
        &self,
        block_id: BlockId,
        block: &Proposal<'_>,
    ) -> Result<FinalizedBlock, ApplicationError> {
        let finalized = self.ledger.finalize_block(block_id, block)?;
        let outcome = |(tx, result): (&Vec<u8>, &TxResult)| {
            let TxResult { code, info, .. } = result.clone();
            (Tx::hash_of(tx), TxOutcome { height: block.height, code, info })
        };
        self.desk().executed = block.txs.iter().zip(&finalized.tx_results).map(outcome).collect();
        Ok(finalized)
    }
    fn commit(&self) -> Result<Info, ApplicationError> {
        let info = self.ledger.commit()?;
        let outcomes = std::mem::take(&mut self.desk().executed);
        self.moved_to(&info, outcomes);
        Ok(info)
    }
    fn abandon(&self) {
        self.ledger.abandon();
        self.desk().executed.clear();
    }
    fn query(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, String> {
        self.ledger.query(path, data)
    }
    fn list_snapshots(&self) -> Vec<SnapshotOffer> {
        self.ledger.list_snapshots()
    }
    fn load_snapshot_chunk(&self, height: u64, format: u32, chunk_index: u32) -> Option<Vec<u8>> {
        self.ledger.load_snapshot_chunk(height, format, chunk_index)
    }
    fn offer_snapshot(&self, offer: &SnapshotOffer, app_hash: [u8; 32]) -> SnapshotVerdict {
        self.ledger.offer_snapshot(offer, app_hash)
    }
    fn apply_snapshot_chunk(&self, chunk_index: u32, chunk: &[u8]) -> SnapshotVerdict {
        let verdict = self.ledger.apply_snapshot_chunk(chunk_index, chunk);
        if verdict == SnapshotVerdict::Done {
            self.moved_to(&self.ledger.info(), Vec::new());
        }
        verdict
    }
}
