//! Between the core's spelling of messages and ours, and the checks of certificates inside a height.

// The error type is the core's.
#![allow(clippy::result_large_err)]

use std::collections::BTreeSet;

use arc_malachitebft_core_consensus as engine;
use arc_malachitebft_core_types as types;
use engine::Input;
use types::{
    CertificateError, NilOrVal, Round, RoundCertificateType, SignedMessage, ThresholdParams,
    TimeoutKind, ValidatorSet as _, VoteType,
};

use super::LogItem;
use super::context::{Address, Height, Market, Proposal, PublicKey, Signature, ValidatorSet};
use super::context::{Value, Vote};
use crate::cluster::certificate::{
    BlockId, Certificate, VoteKind, proposal_sign_bytes, verify_strict, vote_sign_bytes,
};
use crate::cluster::message::{
    Message, PolkaCertificate, RoundCertificate, RoundVote, SignedProposal, SignedVote, TimerKind,
};

type CheckResult = Result<(), CertificateError<Market>>;

pub(super) fn input_of(message: Message) -> Input<Market> {
    match message {
        Message::Vote(vote) => Input::Vote(core_vote(vote)),
        Message::Proposal(proposal) => {
            let SignedProposal { height, round, pol_round, id, key, signature } = proposal;
            let proposal = Proposal {
                height: Height(height),
                round: Round::new(round),
                value: Value(id),
                pol_round: pol_round.map_or(Round::Nil, Round::new),
                proposer: Address(key),
            };
            Input::Proposal(SignedMessage::new(proposal, Signature(signature)))
        }
        Message::Polka(polka) => Input::PolkaCertificate(types::PolkaCertificate {
            height: Height(polka.height),
            round: Round::new(polka.round),
            value_id: polka.id,
            polka_signatures: polka
                .signatures
                .into_iter()
                .map(|(key, sig)| types::PolkaSignature::new(Address(key), Signature(sig)))
                .collect(),
        }),
        Message::Round(certificate) => {
            let cert_type = match certificate.is_skip {
                true => RoundCertificateType::Skip,
                false => RoundCertificateType::Precommit,
            };
            let signature = |vote: RoundVote| {
                types::RoundSignature::new(
                    vote_type(vote.kind),
                    nil_or(vote.id),
                    Address(vote.key),
                    Signature(vote.signature),
                )
            };
            Input::RoundCertificate(types::RoundCertificate {
                height: Height(certificate.height),
                round: Round::new(certificate.round),
                cert_type,
                round_signatures: certificate.votes.into_iter().map(signature).collect(),
            })
        }
    }
}

pub(super) fn log_item(input: Input<Market>) -> Option<LogItem> {
    match input {
        Input::Vote(signed) => Some(LogItem::Message(Message::Vote(vote(signed)))),
        Input::Proposal(signed) => Some(LogItem::Message(Message::Proposal(proposal(signed)))),
        Input::PolkaCertificate(signed) => Some(LogItem::Message(Message::Polka(polka(signed)))),
        Input::ProposedValue(value, _) => Some(LogItem::Value {
            round: value.round.as_u32()?,
            id: value.value.0,
            is_valid: value.validity.is_valid(),
        }),
        Input::TimeoutElapsed(timeout) => {
            let (kind, round) = super::timer_of(timeout)?;
            Some(LogItem::Timer { kind, round })
        }
        // The core never logs these: they dissolve into the above or are rebuilt by the host.
        Input::StartHeight(..)
        | Input::RoundCertificate(_)
        | Input::Propose(_)
        | Input::SyncValueResponse(_) => None,
    }
}

pub(super) fn timeout_kind(kind: TimerKind) -> TimeoutKind {
    match kind {
        TimerKind::Propose => TimeoutKind::Propose,
        TimerKind::Prevote => TimeoutKind::Prevote,
        TimerKind::Precommit => TimeoutKind::Precommit,
        TimerKind::Rebroadcast => TimeoutKind::Rebroadcast,
    }
}

fn core_vote(vote: SignedVote) -> types::SignedVote<Market> {
    let signature = Signature(vote.signature);
    let vote = Vote {
        kind: vote_type(vote.kind),
        height: Height(vote.height),
        round: Round::new(vote.round),
        value: nil_or(vote.id),
        voter: Address(vote.key),
    };
    SignedMessage::new(vote, signature)
}

pub(super) fn vote(signed: types::SignedVote<Market>) -> SignedVote {
    let SignedMessage { message: vote, signature } = signed;
    SignedVote {
        kind: vote_kind(vote.kind),
        height: vote.height.0,
        round: vote.round.as_u32().unwrap_or(0),
        id: id_of(vote.value),
        key: vote.voter.0,
        signature: signature.0,
    }
}

pub(super) fn proposal(signed: types::SignedProposal<Market>) -> SignedProposal {
    let SignedMessage { message: proposal, signature } = signed;
    SignedProposal {
        height: proposal.height.0,
        round: proposal.round.as_u32().unwrap_or(0),
        pol_round: proposal.pol_round.as_u32(),
        id: proposal.value.0,
        key: proposal.proposer.0,
        signature: signature.0,
    }
}

pub(super) fn polka(certificate: types::PolkaCertificate<Market>) -> PolkaCertificate {
    let signatures = certificate.polka_signatures.into_iter();
    PolkaCertificate {
        height: certificate.height.0,
        round: certificate.round.as_u32().unwrap_or(0),
        id: certificate.value_id,
        signatures: signatures.map(|s| (s.address.0, s.signature.0)).collect(),
    }
}

pub(super) fn round_certificate(certificate: types::RoundCertificate<Market>) -> RoundCertificate {
    let vote = |s: types::RoundSignature<Market>| RoundVote {
        kind: vote_kind(s.vote_type),
        id: id_of(s.value_id),
        key: s.address.0,
        signature: s.signature.0,
    };
    RoundCertificate {
        height: certificate.height.0,
        round: certificate.round.as_u32().unwrap_or(0),
        is_skip: certificate.cert_type == RoundCertificateType::Skip,
        votes: certificate.round_signatures.into_iter().map(vote).collect(),
    }
}

pub(super) fn commit(certificate: types::CommitCertificate<Market>) -> Certificate {
    let signatures = certificate.commit_signatures.into_iter();
    let mut signatures: Vec<_> = signatures.map(|s| (s.address.0, s.signature.0)).collect();
    signatures.sort_unstable();
    Certificate {
        height: certificate.height.0,
        round: certificate.round.as_u32().unwrap_or(0),
        block_id: certificate.value_id,
        signatures,
    }
}

pub(super) fn equivocations(
    evidence: &engine::MisbehaviorEvidence<Market>,
) -> Vec<(SignedVote, SignedVote)> {
    let mut pairs = Vec::new();
    for (_, doubles) in evidence.votes.iter() {
        let pair = |(a, b): &types::DoubleVote<Market>| (vote(a.clone()), vote(b.clone()));
        pairs.extend(doubles.iter().map(pair));
    }
    pairs
}

pub(super) fn vote_bytes(genesis_hash: &[u8; 32], vote: &Vote) -> Vec<u8> {
    let id = match &vote.value {
        NilOrVal::Nil => None,
        NilOrVal::Val(id) => Some(id),
    };
    let round = vote.round.as_u32().unwrap_or(0);
    vote_sign_bytes(genesis_hash, vote_kind(vote.kind), vote.height.0, round, id)
}

pub(super) fn proposal_bytes(genesis_hash: &[u8; 32], proposal: &Proposal) -> Vec<u8> {
    proposal_sign_bytes(
        genesis_hash,
        proposal.height.0,
        proposal.round.as_u32().unwrap_or(0),
        proposal.pol_round.as_u32(),
        &proposal.value.0,
    )
}

pub(super) fn is_signed(key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
    verify_strict(&key.0, bytes, &signature.0)
}

/// Precommits of more than two thirds for one block.
pub(super) fn check_commit(
    genesis_hash: &[u8; 32],
    certificate: &types::CommitCertificate<Market>,
    set: &ValidatorSet,
    thresholds: &ThresholdParams,
) -> CheckResult {
    let round = certificate.round.as_u32().unwrap_or(0);
    let (height, id) = (certificate.height.0, &certificate.value_id);
    let bytes = vote_sign_bytes(genesis_hash, VoteKind::Precommit, height, round, Some(id));
    let mut tally = Tally::new(set);
    for entry in &certificate.commit_signatures {
        if !verify_strict(&entry.address.0, &bytes, &entry.signature.0) {
            return Err(CertificateError::InvalidCommitSignature(entry.clone()));
        }
        tally.add(entry.address)?;
    }
    tally.finish(thresholds.quorum)
}

/// Prevotes of more than two thirds for one block.
pub(super) fn check_polka(
    genesis_hash: &[u8; 32],
    certificate: &types::PolkaCertificate<Market>,
    set: &ValidatorSet,
    thresholds: &ThresholdParams,
) -> CheckResult {
    let round = certificate.round.as_u32().unwrap_or(0);
    let (height, id) = (certificate.height.0, &certificate.value_id);
    let bytes = vote_sign_bytes(genesis_hash, VoteKind::Prevote, height, round, Some(id));
    let mut tally = Tally::new(set);
    for entry in &certificate.polka_signatures {
        tally.add(entry.address)?;
        if !verify_strict(&entry.address.0, &bytes, &entry.signature.0) {
            return Err(CertificateError::InvalidPolkaSignature(entry.clone()));
        }
    }
    tally.finish(thresholds.quorum)
}

/// Votes of more than a third (skip), or precommits of more than two thirds, for anything.
pub(super) fn check_round(
    genesis_hash: &[u8; 32],
    certificate: &types::RoundCertificate<Market>,
    set: &ValidatorSet,
    thresholds: &ThresholdParams,
) -> CheckResult {
    let round = certificate.round.as_u32().unwrap_or(0);
    let is_skip = certificate.cert_type == RoundCertificateType::Skip;
    let mut tally = Tally::new(set);
    for entry in &certificate.round_signatures {
        if !is_skip && entry.vote_type == VoteType::Prevote {
            return Err(CertificateError::InvalidVoteType(entry.address));
        }
        tally.add(entry.address)?;
        let id = id_of(entry.value_id);
        let kind = vote_kind(entry.vote_type);
        let height = certificate.height.0;
        let bytes = vote_sign_bytes(genesis_hash, kind, height, round, id.as_ref());
        if !verify_strict(&entry.address.0, &bytes, &entry.signature.0) {
            return Err(CertificateError::InvalidRoundSignature(entry.clone()));
        }
    }
    tally.finish(if is_skip { thresholds.honest } else { thresholds.quorum })
}

/// Power of distinct members of a set.
struct Tally<'a> {
    set: &'a ValidatorSet,
    seen: BTreeSet<Address>,
    signed: u64,
}

impl<'a> Tally<'a> {
    fn new(set: &'a ValidatorSet) -> Self {
        Self { set, seen: BTreeSet::new(), signed: 0 }
    }

    fn add(&mut self, address: Address) -> CheckResult {
        if !self.seen.insert(address) {
            return Err(CertificateError::DuplicateVote(address));
        }
        let power = self.set.get_by_address(&address).map(|validator| validator.power);
        let power = power.ok_or(CertificateError::UnknownValidator(address))?;
        self.signed = self.signed.saturating_add(power);
        Ok(())
    }

    fn finish(self, threshold: types::ThresholdParam) -> CheckResult {
        let total = self.set.total_voting_power();
        if threshold.is_met(self.signed, total) {
            return Ok(());
        }
        let expected = threshold.min_expected(total);
        Err(CertificateError::NotEnoughVotingPower { signed: self.signed, total, expected })
    }
}

fn vote_type(kind: VoteKind) -> VoteType {
    match kind {
        VoteKind::Prevote => VoteType::Prevote,
        VoteKind::Precommit => VoteType::Precommit,
    }
}

fn vote_kind(kind: VoteType) -> VoteKind {
    match kind {
        VoteType::Prevote => VoteKind::Prevote,
        VoteType::Precommit => VoteKind::Precommit,
    }
}

fn nil_or(id: Option<BlockId>) -> NilOrVal<BlockId> {
    id.map_or(NilOrVal::Nil, NilOrVal::Val)
}

fn id_of(value: NilOrVal<BlockId>) -> Option<BlockId> {
    match value {
        NilOrVal::Nil => None,
        NilOrVal::Val(id) => Some(id),
    }
}
