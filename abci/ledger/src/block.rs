//! What goes into the ledger with a decided block, and what comes out.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::code::TxCode;
use crate::delta::Delta;
use crate::key::{AppHash, DataHash, PublicKey};

/// Most transactions of one signer that wait in a mempool.
pub const PENDING_PER_SIGNER_MAX: u32 = 64;

/// A block that consensus decided, or one that is proposed. Everything in it is the same on every
/// node; certificates and other local facts are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidedBlock {
    /// Its height; the first block has height 1.
    pub height: u64,
    /// Encoded transactions, in order.
    pub txs: Vec<Vec<u8>>,
    /// Who proposed it.
    pub proposer: PublicKey,
    /// Proven equivocation that the block carries. The driver verified the proofs.
    pub misbehaviour: Vec<Misbehaviour>,
}

/// A validator that signed two different votes or proposals for one height and round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misbehaviour {
    /// Who.
    pub validator: PublicKey,
    /// At which height.
    pub height: u64,
}

/// What executing a block gives. Nothing of it is in the state until [`crate::State::commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOutcome {
    /// The block's height.
    pub height: u64,
    /// One result per transaction, in order.
    pub results: Vec<TxResult>,
    /// What happened at the end of the block: promotions, expiries, changes of power.
    pub events: Vec<Event>,
    /// Changed powers, sorted by key; 0 removes. The set that they make votes from height + 2 on.
    pub validator_updates: Vec<ValidatorUpdate>,
    /// Root of the state after the block.
    pub app_hash: AppHash,
    /// What to commit, and to keep in the log.
    pub delta: Delta,
}

/// A validator's new power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatorUpdate {
    /// Whose.
    pub key: PublicKey,
    /// 0 when it is no validator any more.
    pub power: u64,
}

/// What became of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxResult {
    /// The stable result. Everything but [`TxCode::Ok`] left the state as it was, the nonce included.
    pub code: TxCode,
    /// The values that go with the code, for people.
    pub info: String,
    /// What the transaction did by itself; its consequences are events of the block.
    pub events: Vec<Event>,
}

impl TxResult {
    /// Whether the transaction did what it asked for.
    pub fn is_ok(&self) -> bool {
        self.code == TxCode::Ok
    }

    pub(crate) fn ok(events: Vec<Event>) -> Self {
        Self { code: TxCode::Ok, info: String::new(), events }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self { code: refusal.code, info: refusal.info, events: Vec::new() }
    }
}

/// Why a transaction is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: TxCode,
    pub(crate) info: String,
}

impl Refusal {
    pub(crate) fn new(code: TxCode, info: impl Into<String>) -> Self {
        Self { code, info: info.into() }
    }
}

impl From<TxCode> for Refusal {
    fn from(code: TxCode) -> Self {
        Self::new(code, String::new())
    }
}

/// Something that followers may want to know. Nodes reconcile from the state, never from events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key asked to be admitted.
    Registered(PublicKey),
    /// A key became a member.
    Admitted(PublicKey),
    /// A member changed its name, addresses or capacity.
    EndpointChanged(PublicKey),
    /// A member left, or a registration was taken back.
    Left(PublicKey),
    /// A validator signed twice.
    Expelled(PublicKey),
    /// A registration was not admitted in time.
    RegistrationExpired(PublicKey),
    /// A member's power is another now.
    PowerChanged(PublicKey, u64),
    /// A candidate was offered.
    Offered(DataHash),
    /// Candidates and listings that a member attested or withdrew; ids that changed nothing (known
    /// before) or that are neither candidate nor listing (any more) are counted apart.
    Attested {
        /// Who.
        member: PublicKey,
        /// New attestations.
        have: u32,
        /// Withdrawn attestations.
        withdrawn: u32,
        /// Ids that changed nothing.
        unchanged: u32,
        /// Ids of nothing in the state.
        unknown: u32,
    },
    /// A candidate became a listing.
    Promoted(DataHash),
    /// A candidate was not promoted in time.
    CandidateExpired(DataHash),
    /// A candidate was taken back by its owner.
    CandidateWithdrawn(DataHash),
    /// A listing was removed; its bytes may go from this height on.
    Removed {
        /// Which.
        listing: DataHash,
        /// When its bytes may go.
        purge_height: u64,
    },
}

/// What the mempool already took in, by signer. The mempool calls [`PendingNonces::add`] for what it
/// accepts and makes a new one after every commit, checking again what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingNonces {
    /// Signer: last nonce taken in, and how many.
    by_signer: BTreeMap<PublicKey, (u64, u32)>,
}

impl PendingNonces {
    /// Nothing taken in.
    pub fn new() -> Self {
        Self::default()
    }

    /// The signer's last nonce taken in.
    pub fn last(&self, signer: &PublicKey) -> Option<u64> {
        self.by_signer.get(signer).map(|(nonce, _)| *nonce)
    }

    /// How many of the signer's transactions were taken in.
    pub fn count(&self, signer: &PublicKey) -> u32 {
        self.by_signer.get(signer).map_or(0, |(_, count)| *count)
    }

    /// Remembers a transaction that [`crate::State::check_tx`] accepted.
    pub fn add(&mut self, signer: PublicKey, nonce: u64) {
        let entry = self.by_signer.entry(signer).or_default();
        *entry = (nonce, entry.1.saturating_add(1));
    }
}

/// Why a proposed block is voted against: no honest proposer makes such a block.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProposalFault {
    /// Not the height after the state's.
    #[error("block of height {found}, expected {expected}")]
    Height {
        /// Height of the block.
        found: u64,
        /// Height after the state's.
        expected: u64,
    },
    /// More bytes of transactions than the market allows.
    #[error("{len} bytes of transactions, at most {len_max} are allowed")]
    TooLarge {
        /// Bytes found.
        len: u64,
        /// Bytes allowed.
        len_max: u64,
    },
    /// A transaction that does not decode, verify or follow its signer's last.
    #[error("transaction {index}: {code}")]
    Tx {
        /// Its place in the block.
        index: usize,
        /// What is wrong with it.
        code: TxCode,
    },
}

/// Why a delta does not fit the state.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CommitError {
    /// Not the height after the state's.
    #[error("delta of height {found}, expected {expected}")]
    Height {
        /// Height of the delta.
        found: u64,
        /// Height after the state's.
        expected: u64,
    },
    /// Made on another state.
    #[error("delta over app hash {found}, the state has {expected}")]
    Parent {
        /// What the delta was made over.
        found: AppHash,
        /// What the state has.
        expected: AppHash,
    },
    /// The delta does not give the app hash it names.
    #[error("delta names app hash {named}, its changes give {computed}")]
    AppHash {
        /// What it names.
        named: AppHash,
        /// What came out. The state is unchanged.
        computed: AppHash,
    },
}
