//! From behind to the newest block, believing nobody.
//!
//! A peer says how high it is; that is a hint whom to ask. What it sends is checked: each block
//! against the certificate, each certificate against the validator set that our own replay gives.
//! We are caught up when more than a third of the power, asked directly on authenticated
//! connections, has nothing newer than we: at least one of them is honest. A first contact that
//! hides the last blocks is found out, because the members that the ledger names are asked too.

use std::time::{Duration, Instant};

use super::{Fatal, Node, Request};
use crate::cluster::certificate::CertificateError;
use crate::cluster::frame::Frame;
use crate::cluster::mesh::PeerId;
use crate::cluster::store::CertifiedBlock;

/// A validator that is one block behind is mostly about to decide that block itself.
const DECIDING_GRACE: Duration = Duration::from_millis(250);
/// How long a peer may take to answer; then another is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that did not answer, or had nothing, is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(2);

impl Node {
    pub(super) fn note_height(&mut self, peer: PeerId, height: u64) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.height = Some(state.height.map_or(height, |known| known.max(height)));
            self.mesh.note_height(peer, height);
        }
        if height > self.height {
            self.behind_since.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn tick_catchup(&mut self, now: Instant) -> Result<(), Fatal> {
        if self.request.is_some_and(|request| request.until <= now) {
            let request = self.request.take().expect("looked at above");
            if let Some(peer) = self.peers.get_mut(&request.peer) {
                peer.ask_after = Some(now + ASK_AGAIN);
            }
        }
        if self.request.is_none() && self.ask_at().is_some_and(|at| at <= now) {
            self.ask(now);
        }
        let was_caught_up = self.caught_up;
        self.caught_up = self.newest_is_ours(was_caught_up);
        if self.caught_up && self.signer.signing_from == u64::MAX {
            self.allow_signing()?;
        }
        Ok(())
    }

    pub(super) fn catchup_deadline(&self) -> Option<Instant> {
        self.request.map(|request| request.until).or_else(|| self.ask_at())
    }

    /// When to ask for blocks; `None` when nobody has newer ones.
    fn ask_at(&self) -> Option<Instant> {
        let ahead = self.peers.values().filter(|p| p.height.is_some_and(|h| h > self.height));
        let soonest = ahead.map(|peer| (peer.ask_after, peer.height)).collect::<Vec<_>>();
        let newest = soonest.iter().filter_map(|(_, height)| *height).max()?;
        let since = self.behind_since.unwrap_or_else(Instant::now);
        let grace = match self.running && newest == self.height + 1 {
            true => since + DECIDING_GRACE,
            false => since,
        };
        let free = soonest.iter().map(|(after, _)| after.unwrap_or(since)).min()?;
        Some(grace.max(free))
    }

    fn ask(&mut self, now: Instant) {
        let free = self.peers.iter().filter(|(_, peer)| {
            peer.height.is_some_and(|height| height > self.height)
                && peer.ask_after.is_none_or(|after| after <= now)
        });
        // Not always the one that boasts most: a liar would be asked for ever.
        let Some((&peer, _)) = free.max_by_key(|(id, peer)| {
            (peer.ask_after.is_none(), peer.height.map(|h| h.min(self.height + 64)), **id)
        }) else {
            return;
        };
        let sent = self.mesh.send(peer, &Frame::GetBlocks { from: self.height + 1 });
        if sent {
            self.request = Some(Request { peer, until: now + ANSWER_TIMEOUT });
        } else if let Some(state) = self.peers.get_mut(&peer) {
            state.ask_after = Some(now + ASK_AGAIN);
        }
    }

    pub(super) fn handle_blocks(
        &mut self,
        peer: PeerId,
        from: u64,
        blocks: &[Vec<u8>],
        height: u64,
    ) -> Result<(), Fatal> {
        if self.request.is_some_and(|request| request.peer == peer) {
            self.request = None;
        }
        let before = self.height;
        for (offset, bytes) in (0_u64..).zip(blocks) {
            // `from` is the peer's word. What was decided here meanwhile is passed over; what does
            // not follow is no answer to us.
            let at = from.saturating_add(offset);
            if at <= self.height {
                continue;
            }
            if at > self.height + 1 {
                break;
            }
            match self.check_certified(bytes) {
                Ok(certified) => self.commit(certified)?,
                Err(why) => {
                    self.mesh.drop_peer(peer, &format!("block {at} of it: {why}"));
                    return Ok(());
                }
            }
        }
        let progressed = self.height > before;
        if let Some(state) = self.peers.get_mut(&peer) {
            // What it serves counts, not what it said before.
            state.height = Some(if progressed { height.max(self.height) } else { height });
            if !progressed && height > self.height {
                state.ask_after = Some(Instant::now() + ASK_AGAIN);
            }
        }
        if height > self.height {
            self.behind_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// A block of the next height, proven by more than two thirds of the power that our own replay
    /// gives for it.
    fn check_certified(&self, bytes: &[u8]) -> Result<CertifiedBlock, String> {
        let certified = CertifiedBlock::decode(bytes).map_err(|error| error.to_string())?;
        let CertifiedBlock { block, certificate } = &certified;
        certificate
            .verify(&self.genesis_hash, self.height + 1, &self.set, block)
            .map_err(|error| error.to_string())?;
        self.follows(block).map_err(|why| format!("{}: {why}", CertificateError::OtherChain))?;
        Ok(certified)
    }

    /// Whether more than a third of the power has nothing newer than we. Once so, a block that is
    /// on its way does not change the answer.
    fn newest_is_ours(&self, was_caught_up: bool) -> bool {
        let slack = if was_caught_up { 2 } else { 0 };
        let mut power = self.set.power(&self.key).unwrap_or(0);
        for validator in self.set.iter().filter(|validator| validator.key != self.key) {
            let mut of_key = self.peers.values().filter(|peer| peer.key == validator.key);
            let agrees = of_key.any(|peer| peer.height.is_some_and(|at| at <= self.height + slack));
            if agrees {
                power = power.saturating_add(validator.power);
            }
        }
        self.set.has_honest(power)
    }

    /// A fresh folder: from which height on may this key sign? One that already has power may have
    /// signed in an earlier life whatever came right after the newest block, so it lets that pass.
    fn allow_signing(&mut self) -> Result<(), Fatal> {
        let had_power = self.is_validator() || self.next_set.power(&self.key).is_some();
        let signing_from = match (self.height, had_power) {
            (0, _) => 1,
            (height, true) => height + 3,
            (height, false) => height + 1,
        };
        self.signer.signing_from = signing_from;
        self.signer.save(&self.signer_path).map_err(Fatal::Signer)?;
        tracing::info!(signing_from, "this key may sign");
        Ok(())
    }
}
