//! The types through which the consensus core sees our market.

use std::fmt;

use arc_malachitebft_core_types as types;
use ringseed_ledger::SigningKey;
use types::{NilOrVal, Round, SignedExtension, VoteType};

use crate::cluster::certificate::{self, BlockId};

/// Binds the core to our types. It carries nothing: signing is an effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Market;

/// A validator is known by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address(pub [u8; 32]);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&certificate::hex(&self.0[..6]))
    }
}

impl types::Address for Address {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Height(pub u64);

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl types::Height for Height {
    const ZERO: Self = Self(0);
    const INITIAL: Self = Self(1);
    fn increment_by(&self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }
    fn decrement_by(&self, n: u64) -> Option<Self> {
        self.0.checked_sub(n).map(Self)
    }
    fn as_u64(&self) -> u64 {
        self.0
    }
}

/// The core agrees on ids only; bodies travel in frames of ours and are judged by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value(pub BlockId);

impl types::Value for Value {
    type Id = BlockId;
    fn id(&self) -> BlockId {
        self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub height: Height,
    pub round: Round,
    pub value: Value,
    pub pol_round: Round,
    pub proposer: Address,
}

impl types::Proposal<Market> for Proposal {
    fn height(&self) -> Height {
        self.height
    }
    fn round(&self) -> Round {
        self.round
    }
    fn value(&self) -> &Value {
        &self.value
    }
    fn take_value(self) -> Value {
        self.value
    }
    fn pol_round(&self) -> Round {
        self.pol_round
    }
    fn validator_address(&self) -> &Address {
        &self.proposer
    }
}

/// Bodies are whole frames of ours, so the core sees no parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoPart;

impl types::ProposalPart<Market> for NoPart {
    fn is_first(&self) -> bool {
        true
    }
    fn is_last(&self) -> bool {
        true
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vote {
    pub kind: VoteType,
    pub height: Height,
    pub round: Round,
    pub value: NilOrVal<BlockId>,
    pub voter: Address,
}

impl types::Vote<Market> for Vote {
    fn height(&self) -> Height {
        self.height
    }
    fn round(&self) -> Round {
        self.round
    }
    fn value(&self) -> &NilOrVal<BlockId> {
        &self.value
    }
    fn take_value(self) -> NilOrVal<BlockId> {
        self.value
    }
    fn vote_type(&self) -> VoteType {
        self.kind
    }
    fn validator_address(&self) -> &Address {
        &self.voter
    }
    // Vote extensions are disabled at every height.
    fn extension(&self) -> Option<&SignedExtension<Market>> {
        None
    }
    fn take_extension(&mut self) -> Option<SignedExtension<Market>> {
        None
    }
    fn extend(self, _: SignedExtension<Market>) -> Self {
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validator {
    pub address: Address,
    pub key: PublicKey,
    pub power: u64,
}

impl types::Validator<Market> for Validator {
    fn address(&self) -> &Address {
        &self.address
    }
    fn public_key(&self) -> &PublicKey {
        &self.key
    }
    fn voting_power(&self) -> u64 {
        self.power
    }
}

/// The set in the order of the keys, with what the core asks for most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ValidatorSet {
    pub set: certificate::ValidatorSet,
    entries: Vec<Validator>,
}

impl From<certificate::ValidatorSet> for ValidatorSet {
    fn from(set: certificate::ValidatorSet) -> Self {
        let entry = |v: &certificate::Validator| Validator {
            address: Address(v.key),
            key: PublicKey(v.key),
            power: v.power,
        };
        let entries = set.iter().map(entry).collect();
        Self { set, entries }
    }
}

impl types::ValidatorSet<Market> for ValidatorSet {
    fn count(&self) -> usize {
        self.entries.len()
    }
    fn total_voting_power(&self) -> u64 {
        self.set.power_total()
    }
    fn get_by_address(&self, address: &Address) -> Option<&Validator> {
        self.set.index(&address.0).and_then(|index| self.entries.get(index))
    }
    fn get_by_index(&self, index: usize) -> Option<&Validator> {
        self.entries.get(index)
    }
}

/// ed25519 by the market's one verification rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ed25519;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PublicKey(pub [u8; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Signature(pub [u8; 64]);

impl types::SigningScheme for Ed25519 {
    type DecodingError = std::array::TryFromSliceError;
    type Signature = Signature;
    type PublicKey = PublicKey;
    type PrivateKey = SigningKey;

    fn decode_signature(bytes: &[u8]) -> Result<Signature, Self::DecodingError> {
        bytes.try_into().map(Signature)
    }
    fn encode_signature(signature: &Signature) -> Vec<u8> {
        signature.0.to_vec()
    }
    fn decode_public_key(bytes: &[u8]) -> Result<PublicKey, Self::DecodingError> {
        bytes.try_into().map(PublicKey)
    }
    fn encode_public_key(public_key: &PublicKey) -> Vec<u8> {
        public_key.0.to_vec()
    }
}

impl types::Context for Market {
    type Address = Address;
    type Height = Height;
    type ProposalPart = NoPart;
    type Proposal = Proposal;
    type Validator = Validator;
    type ValidatorSet = ValidatorSet;
    type Timeouts = types::LinearTimeouts;
    type Value = Value;
    type Vote = Vote;
    type Extension = ();
    type SigningScheme = Ed25519;

    /// Round robin over the keys: each height begins with another proposer, each round goes on to
    /// the next.
    fn select_proposer<'a>(
        &self,
        validator_set: &'a ValidatorSet,
        height: Height,
        round: Round,
    ) -> &'a Validator {
        let round = u64::from(round.as_u32().expect("a proposer is asked for in a round"));
        let index = (height.0.wrapping_add(round)) % validator_set.entries.len().max(1) as u64;
        &validator_set.entries[index as usize]
    }

    fn new_proposal(
        &self,
        height: Height,
        round: Round,
        value: Value,
        pol_round: Round,
        proposer: Address,
    ) -> Proposal {
        Proposal { height, round, value, pol_round, proposer }
    }

    fn new_prevote(
        &self,
        height: Height,
        round: Round,
        value: NilOrVal<BlockId>,
        voter: Address,
    ) -> Vote {
        Vote { kind: VoteType::Prevote, height, round, value, voter }
    }

    fn new_precommit(
        &self,
        height: Height,
        round: Round,
        value: NilOrVal<BlockId>,
        voter: Address,
    ) -> Vote {
        Vote { kind: VoteType::Precommit, height, round, value, voter }
    }
}
