//! The consensus core: Tendermint as `arc-malachitebft-core-consensus` implements it, wrapped so
//! that no other module knows the crate.
//!
//! Sans-I/O: [`Core::handle`] takes one input and gives back what is to be done, in order. The
//! caller logs before it publishes; nothing here reads a clock, a socket or a disk.
//!
//! The crate logs every step at `info` under its own name; operators filter it (`warn` by default).
//!
//! We run it in the mode in which values travel apart from proposals. In the other mode the core
//! calls every value it receives valid by itself, and our own verdict would not count.

mod context;
mod convert;

use std::time::Duration;

use arc_malachitebft_core_consensus as engine;
use arc_malachitebft_core_types as types;
use engine::{Effect, Input, Resumable, Resume, SignedConsensusMsg};
use ringseed_ledger::SigningKey;
use thiserror::Error;
use types::{Round, SignedMessage, Timeout, TimeoutKind, Validity, ValueOrigin};

use self::context::{Address, Height, Market, Signature, Value};
use super::certificate::{BlockId, Certificate, ValidatorSet};
use super::message::{Message, SignedVote, TimerKind};

/// Heights ahead of ours for which the core keeps messages; more come by catch-up anyway.
const QUEUE_HEIGHTS: usize = 4;
/// Messages it keeps per such height: two votes and a proposal of each of 50 validators, and some.
const QUEUE_PER_HEIGHT: usize = 256;

/// What happens to the core.
#[derive(Clone, Debug)]
pub enum CoreInput {
    /// Begin to agree on `height`.
    StartHeight {
        /// One more than the last committed height.
        height: u64,
        /// Who may sign it.
        set: ValidatorSet,
        /// The write-ahead log is about to be fed: keep to what it recorded.
        is_replay: bool,
    },
    /// A message of a peer, or of ours out of the log.
    Message(Message),
    /// A block that we judged.
    Value {
        /// The block's height.
        height: u64,
        /// The round in which it came.
        round: u32,
        /// Who made it.
        proposer: [u8; 32],
        /// The block.
        id: BlockId,
        /// Our verdict.
        is_valid: bool,
    },
    /// The block that [`Action::GetValue`] asked for.
    Propose {
        /// The height asked for.
        height: u64,
        /// The round asked for.
        round: u32,
        /// The block that we made.
        id: BlockId,
    },
    /// A timer fired.
    Timer {
        /// Which.
        kind: TimerKind,
        /// Of which round.
        round: u32,
    },
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Remember for the log; must be durable before the next `Publish`.
    Log(LogItem),
    /// Say to every validator.
    Publish(Message),
    /// Make a block for this round.
    GetValue {
        /// At which height.
        height: u64,
        /// In which round.
        round: u32,
    },
    /// Send the block `id` again: it is proposed once more in `round`.
    Restream {
        /// In which round.
        round: u32,
        /// Which block.
        id: BlockId,
    },
    /// Set a timer of the current height.
    Schedule {
        /// Which.
        kind: TimerKind,
        /// Of which round.
        round: u32,
    },
    /// Unset it.
    Cancel {
        /// Which.
        kind: TimerKind,
        /// Of which round.
        round: u32,
    },
    /// Unset all.
    CancelAll,
    /// A round begins.
    Round {
        /// Which.
        round: u32,
        /// Who proposes.
        proposer: [u8; 32],
    },
    /// The height is decided.
    Decided(Certificate),
    /// Validators signed two different votes.
    Equivocation(Vec<(SignedVote, SignedVote)>),
}

/// What moved the core and must be found again after a crash.
#[derive(Clone, Debug, PartialEq)]
pub enum LogItem {
    /// A message.
    Message(Message),
    /// A timer.
    Timer {
        /// Which.
        kind: TimerKind,
        /// Of which round.
        round: u32,
    },
    /// A block with our verdict; the caller knows its body.
    Value {
        /// The round in which it came.
        round: u32,
        /// Which block.
        id: BlockId,
        /// Our verdict.
        is_valid: bool,
    },
}

/// The core broke one of its invariants, or the log contradicts what it derives. Going on could sign
/// two blocks at one height, so the process must stop.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the consensus core cannot go on: {0}")]
pub struct CoreError(String);

/// The state of agreement on one height after the other.
pub struct Core {
    state: engine::State<Market>,
    signer: Signer,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("height", &self.height()).finish_non_exhaustive()
    }
}

struct Signer {
    genesis_hash: [u8; 32],
    key: SigningKey,
}

impl Core {
    /// A core that has not started any height. `may_sign` false makes it follow without voting.
    pub fn new(
        genesis_hash: [u8; 32],
        key: SigningKey,
        height: u64,
        set: ValidatorSet,
        may_sign: bool,
    ) -> Self {
        let params = engine::Params {
            address: Address(key.public().0),
            threshold_params: engine::ThresholdParams::default(),
            value_payload: types::ValuePayload::ProposalAndParts,
            enabled: may_sign,
        };
        let state = engine::State::new(
            Market,
            Height(height),
            set.into(),
            params,
            QUEUE_HEIGHTS,
            QUEUE_PER_HEIGHT,
        );
        Self { state, signer: Signer { genesis_hash, key } }
    }

    /// Whether the core may vote from the next height on.
    pub fn set_may_sign(&mut self, may_sign: bool) {
        self.state.params.enabled = may_sign;
    }

    /// The height it works on.
    pub fn height(&self) -> u64 {
        self.state.height().0
    }

    /// The round it is in; `None` before the height starts.
    pub fn round(&self) -> Option<u32> {
        self.state.round().as_u32()
    }

    /// Whose turn it is in `round` of the current height.
    pub fn proposer(&self, round: u32) -> [u8; 32] {
        self.state.get_proposer(self.state.height(), Round::new(round)).0
    }

    /// Tells the core which of our messages the log holds, before they are fed again: it then signs
    /// nothing that contradicts them.
    pub fn begin_replay(&mut self, logged: &[CoreInput]) {
        let inputs: Vec<_> =
            logged.iter().filter_map(|input| self.input_of(input.clone())).collect();
        self.state.index_wal_entries(&inputs);
    }

    /// The log has been fed.
    pub fn end_replay(&mut self) {
        self.state.reset_entries_index();
    }

    /// Takes one input in and gives what is to be done.
    ///
    /// # Errors
    /// [`CoreError`]; the process must stop.
    ///
    /// # Panics
    /// When the core finds one of its own certificates invalid: a broken invariant.
    pub fn handle(&mut self, input: CoreInput) -> Result<Vec<Action>, CoreError> {
        let Some(input) = self.input_of(input) else { return Ok(Vec::new()) };
        let mut actions = Vec::new();
        let (state, signer) = (&mut self.state, &self.signer);
        let metrics = &();
        let result: Result<(), engine::Error<Market>> = engine::process!(
            input: input,
            state: state,
            metrics: metrics,
            with: effect => Ok::<_, engine::Error<Market>>(signer.perform(effect, &mut actions))
        );
        result.map_err(|error| CoreError(error.to_string()))?;
        Ok(actions)
    }

    fn input_of(&self, input: CoreInput) -> Option<Input<Market>> {
        Some(match input {
            CoreInput::StartHeight { height, set, is_replay } => Input::StartHeight(
                Height(height),
                set.into(),
                is_replay,
                None,
                types::VoteExtensionPolicy::Disabled,
            ),
            CoreInput::Message(message) => convert::input_of(message),
            CoreInput::Value { height, round, proposer, id, is_valid } => {
                let value = engine::ProposedValue {
                    height: Height(height),
                    round: Round::new(round),
                    valid_round: Round::Nil,
                    proposer: Address(proposer),
                    value: Value(id),
                    validity: Validity::from_bool(is_valid),
                };
                Input::ProposedValue(value, ValueOrigin::Consensus)
            }
            CoreInput::Propose { height, round, id } => Input::Propose(
                engine::LocallyProposedValue::new(Height(height), Round::new(round), Value(id)),
            ),
            CoreInput::Timer { kind, round } => {
                Input::TimeoutElapsed(Timeout::new(Round::new(round), convert::timeout_kind(kind)))
            }
        })
    }
}

impl Signer {
    /// Answers what the core can be told at once and remembers what the caller has to do.
    fn perform(&self, effect: Effect<Market>, actions: &mut Vec<Action>) -> Resume<Market> {
        match effect {
            Effect::CancelAllTimeouts(r) => {
                actions.push(Action::CancelAll);
                r.resume_with(())
            }
            Effect::CancelTimeout(timeout, r) => {
                if let Some((kind, round)) = timer_of(timeout) {
                    actions.push(Action::Cancel { kind, round });
                }
                r.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, r) => {
                if let Some((kind, round)) = timer_of(timeout) {
                    actions.push(Action::Schedule { kind, round });
                }
                r.resume_with(())
            }
            Effect::StartRound(_, round, proposer, _, r) => {
                let round = round.as_u32().unwrap_or(0);
                actions.push(Action::Round { round, proposer: proposer.0 });
                r.resume_with(())
            }
            Effect::PublishConsensusMsg(message, r) => {
                actions.push(Action::Publish(match message {
                    SignedConsensusMsg::Vote(vote) => Message::Vote(convert::vote(vote)),
                    SignedConsensusMsg::Proposal(proposal) => {
                        Message::Proposal(convert::proposal(proposal))
                    }
                }));
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(message, r) => {
                actions.push(Action::Publish(match message {
                    engine::LivenessMsg::Vote(vote) => Message::Vote(convert::vote(vote)),
                    engine::LivenessMsg::PolkaCertificate(polka) => {
                        Message::Polka(convert::polka(polka))
                    }
                    engine::LivenessMsg::SkipRoundCertificate(round) => {
                        Message::Round(convert::round_certificate(round))
                    }
                }));
                r.resume_with(())
            }
            Effect::RepublishVote(vote, r) => {
                actions.push(Action::Publish(Message::Vote(convert::vote(vote))));
                r.resume_with(())
            }
            Effect::RepublishRoundCertificate(certificate, r) => {
                let certificate = convert::round_certificate(certificate);
                actions.push(Action::Publish(Message::Round(certificate)));
                r.resume_with(())
            }
            Effect::GetValue(height, round, _, r) => {
                let round = round.as_u32().unwrap_or(0);
                actions.push(Action::GetValue { height: height.0, round });
                r.resume_with(())
            }
            Effect::RestreamProposal(_, round, _, _, id, r) => {
                actions.push(Action::Restream { round: round.as_u32().unwrap_or(0), id });
                r.resume_with(())
            }
            // Both belong to the core's own sync, which we do not use: blocks with certificates are
            // checked and committed by `catchup` without asking the core.
            Effect::CertVerifiedSyncValue(_, _, r) => r.resume_with(()),
            Effect::CertRejectedSyncValue(_, _, _, r) => r.resume_with(()),
            Effect::Decide(certificate, _, r) => {
                actions.push(Action::Decided(convert::commit(certificate)));
                r.resume_with(())
            }
            Effect::Finalize(_, _, evidence, r) => {
                let pairs = convert::equivocations(&evidence);
                if !pairs.is_empty() {
                    actions.push(Action::Equivocation(pairs));
                }
                r.resume_with(())
            }
            Effect::SignVote(vote, r) => {
                let signature = self.sign(&convert::vote_bytes(&self.genesis_hash, &vote));
                r.resume_with(SignedMessage::new(vote, signature))
            }
            Effect::SignProposal(proposal, r) => {
                let signature = self.sign(&convert::proposal_bytes(&self.genesis_hash, &proposal));
                r.resume_with(SignedMessage::new(proposal, signature))
            }
            Effect::VerifySignature(message, key, r) => {
                let bytes = match &message.message {
                    engine::ConsensusMsg::Vote(vote) => {
                        convert::vote_bytes(&self.genesis_hash, vote)
                    }
                    engine::ConsensusMsg::Proposal(proposal) => {
                        convert::proposal_bytes(&self.genesis_hash, proposal)
                    }
                };
                r.resume_with(convert::is_signed(&key, &bytes, &message.signature))
            }
            Effect::VerifyCommitCertificate(certificate, set, thresholds, r) => r.resume_with(
                convert::check_commit(&self.genesis_hash, &certificate, &set, &thresholds),
            ),
            // Only asked for by the core's own sync.
            Effect::VerifyExtendedCommitCertificate(_, _, _, _, r) => {
                r.resume_with(Err(types::CertificateError::VerificationError(None)))
            }
            Effect::VerifyPolkaCertificate(certificate, set, thresholds, r) => r.resume_with(
                convert::check_polka(&self.genesis_hash, &certificate, &set, &thresholds),
            ),
            Effect::VerifyRoundCertificate(certificate, set, thresholds, r) => r.resume_with(
                convert::check_round(&self.genesis_hash, &certificate, &set, &thresholds),
            ),
            Effect::WalAppend(_, input, r) => {
                if let Some(item) = convert::log_item(input) {
                    actions.push(Action::Log(item));
                }
                r.resume_with(())
            }
            // Vote extensions are disabled at every height: neither is ever asked for.
            Effect::ExtendVote(_, _, _, _, r) => r.resume_with(None),
            Effect::VerifyVoteExtension(_, _, _, _, _, _, r) => {
                r.resume_with(Err(engine::VoteExtensionError::InvalidVoteExtension))
            }
        }
    }

    fn sign(&self, bytes: &[u8]) -> Signature {
        Signature(super::certificate::sign(&self.key, bytes))
    }
}

fn timer_of(timeout: Timeout) -> Option<(TimerKind, u32)> {
    let kind = match timeout.kind {
        TimeoutKind::Propose => TimerKind::Propose,
        TimeoutKind::Prevote => TimerKind::Prevote,
        TimeoutKind::Precommit => TimerKind::Precommit,
        TimeoutKind::Rebroadcast => TimerKind::Rebroadcast,
        // Only with a target time per height; our pace lies between heights.
        TimeoutKind::FinalizeHeight(_) => return None,
    };
    Some((kind, timeout.round.as_u32()?))
}

/// How long the core waits in a round. Short at first, because a dead proposer costs every block it
/// is due for; longer with every round, so that a slow network is never locked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTimeouts {
    /// Wait for a proposal in round 0.
    pub propose: Duration,
    /// Wait for more votes when two thirds voted for different things, in round 0.
    pub vote: Duration,
    /// What each further round adds to both.
    pub delta: Duration,
    /// Silence after which our votes are said again.
    pub rebroadcast: Duration,
    /// No wait is longer.
    pub max: Duration,
}

impl Default for RoundTimeouts {
    /// Loopback and one data centre; measured waits stretch `propose` (see `pace`).
    fn default() -> Self {
        Self {
            propose: Duration::from_millis(400),
            vote: Duration::from_millis(100),
            delta: Duration::from_millis(250),
            rebroadcast: Duration::from_millis(1_000),
            max: Duration::from_secs(10),
        }
    }
}

impl RoundTimeouts {
    /// The wait for a timer.
    pub fn duration(&self, kind: TimerKind, round: u32) -> Duration {
        let base = match kind {
            TimerKind::Propose => self.propose,
            TimerKind::Prevote | TimerKind::Precommit => self.vote,
            TimerKind::Rebroadcast => self.rebroadcast,
        };
        base.saturating_add(self.delta.saturating_mul(round)).min(self.max)
    }
}

#[cfg(test)]
mod tests;
