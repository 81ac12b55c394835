//! One height of agreement: what the core is told, and what it has done.

use std::time::Instant;

use super::{BODIES_PER_SENDER_MAX, EARLY_BODIES_MAX, EARLY_MESSAGES_MAX, Early, Fatal, Node};
use crate::cluster::certificate::{
    BLOCK_EVIDENCE_MAX, BLOCK_LEN_BYTES_MAX, BlockHeader, BlockId, ChainBlock, DoubleVote,
    certificate_hash, evidence_hash, txs_root,
};
use crate::cluster::core::{Action, CoreInput, LogItem};
use crate::cluster::frame::Frame;
use crate::cluster::mesh::PeerId;
use crate::cluster::message::{Message, TimerKind, WalEntry};
use crate::cluster::pace::ProposerSeen;
use crate::driver::{Proposal, Verdict};

/// Proofs older than this many heights are not taken: the ledger has forgotten the power.
const EVIDENCE_HEIGHTS_MAX: u64 = 10_000;
/// Proofs that wait for a block of ours.
const EVIDENCE_WAITING_MAX: usize = 64;

impl Node {
    /// Begins to agree on the next height; `recovered` is what the log held of it.
    pub(super) fn begin_height(
        &mut self,
        now: Instant,
        recovered: Vec<WalEntry>,
    ) -> Result<(), Fatal> {
        let height = self.height + 1;
        self.wal.begin(height, !recovered.is_empty())?;
        self.running = true;
        self.woken = false;
        self.round = 0;
        self.values.clear();
        self.bodies_by_sender.clear();
        self.messages.clear();
        self.timers.clear();
        self.pace.round_began(now);
        let begun = |is_replay| CoreInput::StartHeight { height, set: self.set.clone(), is_replay };
        if recovered.is_empty() {
            let actions = self.core.handle(begun(false))?;
            self.mesh_to_validators(&Frame::Wake { height });
            self.carry_out(actions)?;
        } else {
            let start = begun(true);
            self.replay(start, recovered)?;
        }
        let Early { messages, bodies } = self.early.remove(&height).unwrap_or_default();
        for (round, block) in bodies {
            if self.running && self.height + 1 == height {
                let proposer = block.header.proposer;
                self.handle_body(proposer, round, block)?;
            }
        }
        for message in messages {
            if self.running && self.height + 1 == height {
                self.input(CoreInput::Message(message))?;
            }
        }
        Ok(())
    }

    /// Feeds the log to the core again. What we signed before the crash is signed no second time;
    /// what the crash cut off is made anew.
    fn replay(&mut self, start: CoreInput, recovered: Vec<WalEntry>) -> Result<(), Fatal> {
        let height = self.height + 1;
        tracing::info!(height, entries = recovered.len(), "the votes of this height are replayed");
        let mut inputs = Vec::new();
        let mut own_rounds = Vec::new();
        for entry in recovered {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            self.logged.insert(bytes);
            inputs.push(match entry {
                WalEntry::Message(message) => {
                    if let Message::Proposal(proposal) = &message
                        && proposal.key == self.key
                    {
                        own_rounds.push(proposal.round);
                    }
                    CoreInput::Message(message)
                }
                WalEntry::Timer { kind, round } => CoreInput::Timer { kind, round },
                WalEntry::Value { round, is_valid, block } => {
                    let (id, proposer) = (block.id(), block.header.proposer);
                    self.values.insert(id, *block);
                    CoreInput::Value { height, round, proposer, id, is_valid }
                }
            });
        }
        self.core.begin_replay(&inputs);
        self.is_replaying = true;
        let actions = self.core.handle(start)?;
        self.carry_out(actions)?;
        for input in inputs {
            // The log may lead to the decision: the height is over then.
            if !self.running || self.height + 1 != height {
                break;
            }
            self.input(input)?;
        }
        self.core.end_replay();
        self.is_replaying = false;
        self.logged.clear();
        let deferred = self.deferred_value.take();
        if let Some(round) = deferred
            && self.running
            && self.core.round() == Some(round)
            && !own_rounds.contains(&round)
        {
            self.propose(round)?;
        }
        Ok(())
    }

    pub(super) fn handle_message(&mut self, peer: PeerId, message: Message) -> Result<(), Fatal> {
        let height = message.height();
        if height <= self.height {
            // It has not heard of our last block, perhaps because a frame was dropped.
            self.mesh.send(peer, &Frame::Status { height: self.height });
            return Ok(());
        }
        if self.running && height == self.height + 1 {
            return self.input(CoreInput::Message(message));
        }
        if let Some(early) = self.early_of(height)
            && early.messages.len() < EARLY_MESSAGES_MAX
        {
            early.messages.push(message);
        }
        if height > self.height + 1 {
            self.note_height(peer, height - 1);
        }
        Ok(())
    }

    /// Where to keep what is for a height that we have not begun: the next, and the one after, for
    /// whoever is a block ahead of us says things only once.
    fn early_of(&mut self, height: u64) -> Option<&mut Early> {
        self.woken |= height == self.height + 1;
        let is_near = (self.height + 1..=self.height + 2).contains(&height);
        is_near.then(|| self.early.entry(height).or_default())
    }

    pub(super) fn handle_body(
        &mut self,
        sender: [u8; 32],
        round: u32,
        block: ChainBlock,
    ) -> Result<(), Fatal> {
        let height = block.header.height;
        if !self.running || height != self.height + 1 {
            if let Some(early) = self.early_of(height)
                && early.bodies.len() < EARLY_BODIES_MAX
            {
                early.bodies.push((round, block));
            }
            return Ok(());
        }
        let id = block.id();
        if self.values.contains_key(&id) {
            return Ok(());
        }
        let sent = self.bodies_by_sender.entry(sender).or_default();
        *sent += 1;
        if *sent > BODIES_PER_SENDER_MAX {
            return Ok(());
        }
        let is_valid = match self.judge(&block) {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(height, round, %id, why, "proposed block refused");
                false
            }
        };
        self.pace.proposal_came(Instant::now());
        let proposer = block.header.proposer;
        self.missed.remove(&proposer);
        self.values.insert(id, block);
        self.input(CoreInput::Value { height, round, proposer, id, is_valid })
    }

    pub(super) fn handle_timer(&mut self, kind: TimerKind, round: u32) -> Result<(), Fatal> {
        if !self.running {
            return Ok(());
        }
        if kind == TimerKind::Propose {
            self.missed.insert(self.core.proposer(round));
        }
        self.input(CoreInput::Timer { kind, round })?;
        if kind == TimerKind::Rebroadcast && self.running {
            // Somebody lacks something: say everything that this round stands on.
            self.relay(None);
        }
        Ok(())
    }

    pub(super) fn input(&mut self, input: CoreInput) -> Result<(), Fatal> {
        let actions = self.core.handle(input)?;
        self.carry_out(actions)
    }

    /// Does what the core says, in its order; then what a decision means.
    fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), Fatal> {
        for action in actions {
            match action {
                Action::Log(item) => self.log(item)?,
                Action::Publish(message) => {
                    self.wal.flush()?;
                    self.publish(message);
                }
                Action::GetValue { round, .. } if self.is_replaying => {
                    self.deferred_value = Some(round);
                }
                Action::GetValue { height, round } => {
                    if height == self.height + 1 {
                        self.propose(round)?;
                    }
                }
                Action::Restream { round, id } => self.send_body(round, &id),
                Action::Schedule { kind, round } => {
                    let wait = self.pace.wait(kind, round, self.proposer_seen(round));
                    self.timers.insert((kind, round), Instant::now() + wait);
                }
                Action::Cancel { kind, round } => {
                    self.timers.remove(&(kind, round));
                }
                Action::CancelAll => self.timers.clear(),
                Action::Round { round, .. } => {
                    self.round = round;
                    self.messages.retain(|message| message.round().saturating_add(2) > round);
                    self.pace.round_began(Instant::now());
                }
                Action::Decided(certificate) => self.decided = Some(certificate),
                Action::Equivocation(pairs) => {
                    for (a, b) in pairs {
                        let double = DoubleVote::new(a, b);
                        if self.evidence.len() < EVIDENCE_WAITING_MAX {
                            tracing::error!(
                                validator = %super::super::certificate::hex(&double.first.key),
                                height = double.first.height, "a validator voted twice"
                            );
                            self.evidence.push(double);
                        }
                    }
                }
            }
        }
        match self.decided.take() {
            Some(certificate) => self.commit_decided(certificate),
            None => Ok(()),
        }
    }

    /// How much we have seen of the proposer of `round`.
    fn proposer_seen(&self, round: u32) -> ProposerSeen {
        let proposer = self.core.proposer(round);
        match self.peers.values().any(|peer| peer.key == proposer) {
            _ if proposer == self.key => ProposerSeen::Well,
            false => ProposerSeen::NotConnected,
            true if self.missed.contains(&proposer) => ProposerSeen::MissedItsTurn,
            true => ProposerSeen::Well,
        }
    }

    fn log(&mut self, item: LogItem) -> Result<(), Fatal> {
        let entry = match item {
            LogItem::Message(message) => {
                self.messages.push(message.clone());
                WalEntry::Message(message)
            }
            LogItem::Timer { kind, round } => WalEntry::Timer { kind, round },
            LogItem::Value { round, id, is_valid } => {
                let block = self.values.get(&id).expect("the core logs blocks that it was told");
                WalEntry::Value { round, is_valid, block: Box::new(block.clone()) }
            }
        };
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        if !self.logged.contains(&bytes) {
            self.wal.append(&bytes)?;
        }
        Ok(())
    }

    fn publish(&mut self, message: Message) {
        assert!(self.wal.is_flushed(), "what we sign is on disk before anybody hears it");
        if let Message::Proposal(proposal) = &message {
            self.send_body(proposal.round, &proposal.id);
        }
        self.mesh_to_validators(&Frame::Consensus(message));
    }

    fn send_body(&self, round: u32, id: &BlockId) {
        if let Some(block) = self.values.get(id) {
            let block = Box::new(block.clone());
            self.mesh_to_validators(&Frame::Body { round, block });
        }
    }

    /// Says what the height stands on to `peer`, or to every validator: a proposal whose block or
    /// whose votes were lost on the way would otherwise be lost for good.
    pub(super) fn relay(&self, peer: Option<PeerId>) {
        let say = |frame: &Frame| match peer {
            Some(peer) => {
                self.mesh.send(peer, frame);
            }
            None => self.mesh_to_validators(frame),
        };
        let oldest = self.round.saturating_sub(1);
        for message in self.messages.iter().filter(|message| message.round() >= oldest) {
            if let Message::Proposal(proposal) = message
                && let Some(block) = self.values.get(&proposal.id)
            {
                let block = Box::new(block.clone());
                say(&Frame::Body { round: proposal.round, block });
            }
            say(&Frame::Consensus(message.clone()));
        }
    }

    pub(super) fn mesh_to_validators(&self, frame: &Frame) {
        self.mesh.broadcast(frame, |peer| self.mesh.is_validator(&peer.key));
    }

    /// Makes the block that is ours to propose.
    fn propose(&mut self, round: u32) -> Result<(), Fatal> {
        let height = self.height + 1;
        let waiting = self.mempool.oldest(2 * BLOCK_LEN_BYTES_MAX);
        let (genesis_hash, last) = (self.genesis_hash, self.height);
        self.evidence.retain(|double| {
            double.first.height <= last && double.first.height + EVIDENCE_HEIGHTS_MAX > last
        });
        let evidence: Vec<_> = self.evidence.iter().take(BLOCK_EVIDENCE_MAX).cloned().collect();
        let proven = evidence.iter().filter_map(|double| double.proven(&genesis_hash));
        let misbehaviour: Vec<_> = proven.collect();
        let proposal =
            Proposal { height, proposer: self.key, txs: &waiting, misbehaviour: &misbehaviour };
        let txs = self.app.prepare_proposal(&proposal);
        let last_certificate = self.last_certificate.clone();
        let header = BlockHeader {
            genesis_hash,
            height,
            parent: self.last_id,
            app_hash: self.app_hash,
            validators_hash: self.set.hash(),
            next_validators_hash: self.next_set.hash(),
            txs_root: txs_root(&txs),
            last_certificate_hash: certificate_hash(last_certificate.as_ref()),
            evidence_hash: evidence_hash(&evidence),
            proposer: self.key,
        };
        let block = ChainBlock { header, txs, last_certificate, evidence };
        let id = block.id();
        self.values.insert(id, block);
        self.input(CoreInput::Propose { height, round, id })
    }

    /// Whether a proposed block may be voted for.
    fn judge(&self, block: &ChainBlock) -> Result<(), String> {
        let header = &block.header;
        let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        self.follows(block)?;
        must(block.body_matches_header(), "the body is not the header's")?;
        must(self.set.power(&header.proposer).is_some(), "its maker has no power")?;
        match (&block.last_certificate, self.height) {
            (None, 0) => {}
            (Some(certificate), height) if height > 0 => certificate
                .verify_id(&self.genesis_hash, height, &self.last_set, &self.last_id)
                .map_err(|error| format!("the parent's certificate: {error}"))?,
            _ => return Err("the parent's certificate is missing".into()),
        }
        let mut misbehaviour = Vec::new();
        for (index, double) in block.evidence.iter().enumerate() {
            let proven = double.proven(&self.genesis_hash).ok_or("evidence proves nothing")?;
            let recent = proven.1 <= self.height && proven.1 + EVIDENCE_HEIGHTS_MAX > self.height;
            must(recent, "evidence is of no recent height")?;
            must(!block.evidence[..index].contains(double), "evidence appears twice")?;
            misbehaviour.push(proven);
        }
        let proposal = Proposal {
            height: header.height,
            proposer: header.proposer,
            txs: &block.txs,
            misbehaviour: &misbehaviour,
        };
        must(self.app.process_proposal(&proposal) == Verdict::Accept, "the ledger refuses it")
    }

    /// Whether the header continues our chain.
    pub(super) fn follows(&self, block: &ChainBlock) -> Result<(), String> {
        let header = &block.header;
        let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        must(header.genesis_hash == self.genesis_hash, "it is of another market")?;
        must(header.height == self.height + 1, "it is of another height")?;
        must(header.parent == self.last_id, "it has another parent")?;
        must(header.app_hash == self.app_hash, "it stands on another app hash")?;
        must(header.validators_hash == self.set.hash(), "it names other validators")?;
        must(header.next_validators_hash == self.next_set.hash(), "it names other next validators")
    }
}
