//! From a decision to durable state: store, execute, commit, tell.

use std::time::Instant;

use super::{Fatal, Node};
use crate::cluster::certificate::{Certificate, ChainBlock, ValidatorSet};
use crate::cluster::frame::Frame;
use crate::cluster::mesh::Roster;
use crate::cluster::message::WalEntry;
use crate::cluster::store::CertifiedBlock;
use crate::driver::{FinalizedBlock, Proposal};
use crate::handle::{RECENT_APP_HASHES_MAX, TxOutcome};

impl Node {
    /// Brings the application to the block store's height, then takes up the height that the log
    /// speaks of.
    pub(in crate::cluster) fn recover(&mut self) -> Result<(), Fatal> {
        let info = self.app.info();
        let stored = self.shared.store.height();
        if info.height > stored {
            let why = format!("the state is at height {}, the blocks end at {stored}", info.height);
            return Err(Fatal::Diverged(why));
        }
        if info.height == 0 {
            self.app.init_chain()?;
        }
        self.height = info.height;
        self.app_hash = info.app_hash;
        self.load_sets();
        if let Some(CertifiedBlock { block, certificate }) = self.shared.store.read(self.height)? {
            self.last_id = block.id();
            self.last_certificate = Some(certificate);
        }
        for height in info.height + 1..=stored {
            let Some(certified) = self.shared.store.read(height)? else { break };
            if let Err(why) = self.follows(&certified.block) {
                return Err(Fatal::Diverged(format!("stored block {height}: {why}")));
            }
            tracing::info!(height, "a stored block is executed that a crash left out");
            self.execute(&certified)?;
        }
        self.refresh_roster();
        self.note_committed();
        let recovered = self.wal.take_recovered(self.height + 1);
        let mut entries = Vec::with_capacity(recovered.len());
        for bytes in recovered {
            let entry = WalEntry::decode(&bytes);
            entries.push(entry.map_err(|error| {
                Fatal::Diverged(format!("the log of votes holds what was never written: {error}"))
            })?);
        }
        if !entries.is_empty() && self.may_begin() {
            self.begin_height(Instant::now(), entries)?;
        }
        Ok(())
    }

    /// The core decided the block that `certificate` names.
    pub(super) fn commit_decided(&mut self, certificate: Certificate) -> Result<(), Fatal> {
        let block = self.values.remove(&certificate.block_id);
        let block = block.expect("the core decides blocks that it was told");
        self.commit(CertifiedBlock { block, certificate })
    }

    /// Makes a certified block of the next height durable and part of the state.
    pub(super) fn commit(&mut self, certified: CertifiedBlock) -> Result<(), Fatal> {
        self.shared.store.append(&certified)?;
        let finalized = self.execute(&certified)?;
        self.running = false;
        self.early.retain(|height, _| *height > self.height);
        self.woken = self.early.contains_key(&(self.height + 1));
        self.round = 0;
        self.timers.clear();
        self.values.clear();
        self.messages.clear();
        self.behind_since = None;
        self.pace.committed(Instant::now());
        *self.shared.last_commit.lock().expect("no panic under this lock") = Instant::now();
        let block = &certified.block;
        self.evidence.retain(|double| !block.evidence.contains(double));
        self.refresh_roster();
        // Who is told that its transaction is in a block finds that block in the status.
        self.note_committed();
        self.answer_waiters(block, &finalized);
        self.recheck();
        self.mesh.broadcast(&Frame::Status { height: self.height }, |_| true);
        self.shared.heights.publish(self.height);
        tracing::debug!(
            height = self.height,
            round = certified.certificate.round,
            txs = block.txs.len(),
            signers = certified.certificate.signatures.len(),
            "block committed"
        );
        Ok(())
    }

    fn execute(&mut self, certified: &CertifiedBlock) -> Result<FinalizedBlock, Fatal> {
        let CertifiedBlock { block, certificate } = certified;
        let id = block.id();
        let proven = block.evidence.iter().filter_map(|double| double.proven(&self.genesis_hash));
        let misbehaviour: Vec<_> = proven.collect();
        let proposal = Proposal {
            height: block.header.height,
            proposer: block.header.proposer,
            txs: &block.txs,
            misbehaviour: &misbehaviour,
        };
        let finalized = self.app.finalize_block(id, &proposal)?;
        let info = self.app.commit()?;
        assert_eq!(info.height, block.header.height, "the application commits what was executed");
        self.height = info.height;
        self.app_hash = info.app_hash;
        self.last_id = id;
        self.last_certificate = Some(certificate.clone());
        self.load_sets();
        Ok(finalized)
    }

    /// Who signed the last height, signs the next, and the one after: all by our own replay.
    fn load_sets(&mut self) {
        let set = |height| self.shared.ledger.validators_at(height).unwrap_or_default();
        let (last, next, after) = (set(self.height), set(self.height + 1), set(self.height + 2));
        (self.last_set, self.set, self.next_set) = (last, next, after);
        assert!(!self.set.is_empty(), "the ledger never lets the last validator go");
        self.pace.follow(self.shared.ledger.view().params());
    }

    fn refresh_roster(&self) {
        let keys = |set: &ValidatorSet| set.iter().map(|v| v.key).collect::<Vec<_>>();
        let mut roster = Roster::default();
        for set in [&self.last_set, &self.set, &self.next_set] {
            roster.validators.extend(keys(set));
        }
        {
            let view = self.shared.ledger.view();
            let admitted = view.members().filter(|member| member.is_admitted());
            roster.members = admitted
                .map(|member| (member.key.0, member.endpoint.consensus_addr.get()))
                .collect();
        }
        let mut current = self.shared.roster.write().expect("no panic under this lock");
        if *current != roster {
            *current = roster.clone();
            drop(current);
            self.mesh.set_roster(roster);
        }
    }

    fn note_committed(&self) {
        let mut status = self.shared.status.lock().expect("no panic under this lock");
        status.height = self.height;
        status.app_hash = self.app_hash;
        status.recent_app_hashes.push_back((self.height, self.app_hash));
        if status.recent_app_hashes.len() > RECENT_APP_HASHES_MAX {
            status.recent_app_hashes.pop_front();
        }
    }

    fn answer_waiters(&mut self, block: &ChainBlock, finalized: &FinalizedBlock) {
        for (tx, result) in block.txs.iter().zip(&finalized.tx_results) {
            let hash = ringseed_ledger::Tx::hash_of(tx);
            let Some(waiters) = self.waiters.remove(&hash) else { continue };
            let outcome =
                TxOutcome { height: self.height, code: result.code, info: result.info.clone() };
            for waiter in waiters {
                let _ = waiter.send(Ok(outcome.clone()));
            }
        }
        let in_block: std::collections::BTreeSet<_> =
            block.txs.iter().map(|tx| ringseed_ledger::Tx::hash_of(tx)).collect();
        self.mempool.retain(|waiting| !in_block.contains(&waiting.hash));
    }
}
