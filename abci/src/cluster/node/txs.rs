//! Transactions: from our own handle, from peers, and again after every block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_ledger::{Tx, TxCode};

use super::{Node, Parked, Reply};
use crate::cluster::frame::Frame;
use crate::cluster::mempool::NoRoom;
use crate::cluster::mesh::PeerId;
use crate::driver::TxResult;
use crate::handle::SubmitError;

/// A transaction of ours that is in no block after so long is said again: frames may be dropped.
const REGOSSIP_INTERVAL: Duration = Duration::from_secs(2);

impl Node {
    pub(super) fn handle_submit(&mut self, tx: Vec<u8>, deadline: Instant, reply: Reply) {
        if !self.caught_up {
            // Our state may be old: its nonces would refuse what the market takes.
            self.parked.push(Parked { tx, deadline, reply });
            return;
        }
        match self.take_tx(tx, true, None) {
            Ok(hash) | Err(Refused::Known(hash)) => {
                self.waiters.entry(hash).or_default().push(reply);
            }
            Err(Refused::NoRoom) => drop(reply.send(Err(SubmitError::Full))),
            Err(Refused::Check(TxResult { code, info, .. })) => {
                let _ = reply.send(Err(SubmitError::Refused { code, info }));
            }
        }
    }

    pub(super) fn handle_gossip(&mut self, peer: PeerId, tx: Vec<u8>) {
        if self.caught_up {
            let _ = self.take_tx(tx, false, Some(peer));
        }
    }

    fn take_tx(
        &mut self,
        bytes: Vec<u8>,
        is_local: bool,
        from: Option<PeerId>,
    ) -> Result<ringseed_ledger::TxHash, Refused> {
        let hash = Tx::hash_of(&bytes);
        let tx = Tx::decode(&bytes).map_err(|error| {
            let code = TxCode::from(&error);
            let info = format!("{}: {error}", code.text());
            Refused::Check(TxResult { code, info, events: Vec::new() })
        })?;
        match self.mempool.room_for(&hash, &tx.signer) {
            Ok(()) => {}
            Err(NoRoom::Known) => return Err(Refused::Known(hash)),
            Err(NoRoom::Full | NoRoom::SignerFull) => return Err(Refused::NoRoom),
        }
        let result = self.app.check_tx(&bytes);
        if result.code != TxCode::Ok {
            return Err(Refused::Check(result));
        }
        let bytes = Arc::new(bytes);
        self.mempool.push(&tx, hash, Arc::clone(&bytes), is_local);
        self.regossip_at.get_or_insert_with(|| Instant::now() + REGOSSIP_INTERVAL);
        let from = from.and_then(|peer| self.peers.get(&peer)).map(|peer| peer.key);
        // A newcomer's registration goes through whoever it knows; members tell members.
        self.mesh.broadcast(&Frame::Tx(bytes.to_vec()), |peer| {
            Some(peer.key) != from && (peer.is_member || (is_local && peer.outbound))
        });
        Ok(hash)
    }

    /// After a commit: what still fits the new state stays, in its order.
    pub(super) fn recheck(&mut self) {
        let mut refused = Vec::new();
        let app = Arc::clone(&self.app);
        self.mempool.retain(|waiting| {
            let result = app.check_tx(&waiting.bytes);
            let keep = result.code == TxCode::Ok;
            if !keep {
                refused.push((waiting.hash, result));
            }
            keep
        });
        for (hash, TxResult { code, info, .. }) in refused {
            for waiter in self.waiters.remove(&hash).unwrap_or_default() {
                let _ = waiter.send(Err(SubmitError::Refused { code, info: info.clone() }));
            }
        }
        if self.mempool.is_empty() {
            self.regossip_at = None;
            // Whoever still waits gave up, or its transaction went another way.
            self.waiters.clear();
        }
    }

    pub(super) fn tick_txs(&mut self, now: Instant) {
        if self.caught_up && !self.parked.is_empty() {
            for Parked { tx, deadline, reply } in std::mem::take(&mut self.parked) {
                self.handle_submit(tx, deadline, reply);
            }
        }
        self.parked.retain(|parked| parked.deadline > now);
        if self.regossip_at.is_some_and(|at| at <= now) {
            self.regossip_at = (!self.mempool.is_empty()).then(|| now + REGOSSIP_INTERVAL);
            for waiting in self.mempool.iter().filter(|waiting| waiting.is_local) {
                let frame = Frame::Tx(waiting.bytes.to_vec());
                self.mesh.broadcast(&frame, |peer| peer.is_member || peer.outbound);
            }
        }
    }
}

enum Refused {
    Known(ringseed_ledger::TxHash),
    NoRoom,
    Check(TxResult),
}
