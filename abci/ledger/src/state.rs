//! The replicated state: what is in it, how it is read, how a block's delta goes in.

use core::ops::Bound;
use std::collections::BTreeMap;

use crate::block::{
    BlockOutcome, CommitError, DecidedBlock, PendingNonces, ProposalFault, TxResult,
};
use crate::delta::Delta;
use crate::genesis::{Genesis, GenesisError, chain_id};
use crate::key::{AppHash, DataHash, GenesisHash, PublicKey, sha256};
use crate::params::Params;
use crate::record::{
    Candidate, Counters, Listing, Market, Member, MemberSet, Record, SetChange, Standing, StateKey,
    Tombstone, TrustWindow, Validator, ValidatorHistory,
};
use crate::tree::{Change, Proof, Tree, path_of};
use crate::tx::Endpoint;

/// The state after some height. [`State::execute`] leaves it untouched; only [`State::commit`]
/// moves it, by one block.
///
/// The height is beside the tree and not in it, so that an empty block keeps the app hash.
#[derive(Clone, Debug)]
pub struct State {
    height: u64,
    market: Market,
    params: Params,
    records: BTreeMap<StateKey, Record>,
    tree: Tree,
}

/// Typed reads, the same for the committed state and for a block in execution.
pub(crate) trait Records {
    fn record(&self, key: &StateKey) -> Option<&Record>;

    fn member(&self, key: &PublicKey) -> Option<&Member> {
        match self.record(&StateKey::Member(*key)) {
            Some(Record::Member(member)) => Some(member),
            _ => None,
        }
    }

    fn member_key(&self, index: u32) -> Option<PublicKey> {
        match self.record(&StateKey::MemberIndex(index)) {
            Some(Record::MemberIndex(key)) => Some(*key),
            _ => None,
        }
    }

    /// The admitted member that has `name`.
    fn member_of_name(&self, name: &str) -> Option<PublicKey> {
        match self.record(&StateKey::member_name(name)) {
            Some(Record::MemberName(key)) => Some(*key),
            _ => None,
        }
    }

    fn nonce(&self, signer: &PublicKey) -> u64 {
        match self.record(&StateKey::Nonce(*signer)) {
            Some(Record::Nonce(nonce)) => *nonce,
            _ => 0,
        }
    }

    fn candidate(&self, id: &DataHash) -> Option<&Candidate> {
        match self.record(&StateKey::Candidate(*id)) {
            Some(Record::Candidate(candidate)) => Some(candidate),
            _ => None,
        }
    }

    fn listing(&self, id: &DataHash) -> Option<&Listing> {
        match self.record(&StateKey::Listing(*id)) {
            Some(Record::Listing(listing)) => Some(listing),
            _ => None,
        }
    }

    fn tombstone(&self, id: &DataHash) -> Option<&Tombstone> {
        match self.record(&StateKey::Tombstone(*id)) {
            Some(Record::Tombstone(tombstone)) => Some(tombstone),
            _ => None,
        }
    }

    fn holder_set(&self, id: &DataHash) -> Option<&MemberSet> {
        match self.record(&StateKey::Holders(*id)) {
            Some(Record::Holders(set)) => Some(set),
            _ => None,
        }
    }

    fn counters(&self) -> Counters {
        match self.record(&StateKey::Counters) {
            Some(Record::Counters(counters)) => counters.clone(),
            _ => Counters::default(),
        }
    }

    fn trust_window(&self) -> TrustWindow {
        match self.record(&StateKey::TrustWindow) {
            Some(Record::TrustWindow(window)) => window.clone(),
            _ => TrustWindow::default(),
        }
    }

    fn validator_changes(&self) -> &[SetChange] {
        match self.record(&StateKey::Validators) {
            Some(Record::Validators(history)) => &history.changes,
            _ => &[],
        }
    }

    fn newest_validators(&self) -> &[Validator] {
        self.validator_changes().last().map_or(&[], |change| &change.validators)
    }
}

impl Records for State {
    fn record(&self, key: &StateKey) -> Option<&Record> {
        self.records.get(key)
    }
}

impl State {
    /// The state at height 0.
    ///
    /// # Errors
    /// [`GenesisError`] when the genesis makes no market that this program can run.
    pub fn from_genesis(genesis: &Genesis) -> Result<Self, GenesisError> {
        genesis.validate()?;
        let mut records = BTreeMap::new();
        let market = Market { name: genesis.market.clone(), genesis: genesis.hash() };
        records.insert(StateKey::Market, Record::Market(market));
        records.insert(StateKey::Params, Record::Params(genesis.params.clone()));
        let mut validators = Vec::new();
        for (index, founder) in (0u32..).zip(&genesis.members) {
            let key = founder.key;
            validators.push(Validator { key, index, power: founder.power });
            records.insert(StateKey::MemberIndex(index), Record::MemberIndex(key));
            records.insert(StateKey::member_name(&founder.name), Record::MemberName(key));
            let endpoint = Endpoint {
                name: founder.name.clone(),
                consensus_addr: founder.consensus_addr,
                payload_addr: founder.payload_addr,
                capacity: 0,
            };
            let member = Member {
                key,
                endpoint,
                standing: Standing::Admitted { index },
                power: founder.power,
                held_count: 0,
                attested_height: 0,
                open_bytes: 0,
                open_count: 0,
            };
            records.insert(StateKey::Member(key), Record::Member(member));
        }
        let count = u32::try_from(validators.len()).unwrap_or(u32::MAX);
        let counters =
            Counters { next_member_index: count, member_count: count, ..Counters::default() };
        records.insert(StateKey::Counters, Record::Counters(counters));
        let history = ValidatorHistory { changes: vec![SetChange { height: 0, validators }] };
        records.insert(StateKey::Validators, Record::Validators(history));
        // Every record above is there, so the assembly cannot refuse.
        Self::assemble(0, records).ok_or(GenesisError::NoMembers)
    }

    /// A state of `records`; `None` when one that every state has is missing.
    pub(crate) fn assemble(height: u64, records: BTreeMap<StateKey, Record>) -> Option<Self> {
        let Some(Record::Market(market)) = records.get(&StateKey::Market) else { return None };
        let Some(Record::Params(params)) = records.get(&StateKey::Params) else { return None };
        let Some(Record::Validators(_)) = records.get(&StateKey::Validators) else { return None };
        let Some(Record::Counters(_)) = records.get(&StateKey::Counters) else { return None };
        let (market, params) = (market.clone(), params.clone());
        let changes = records.iter().map(|(key, record)| change_of(key, Some(record))).collect();
        let tree = Tree::default().with(changes);
        Some(Self { height, market, params, records, tree })
    }

    /// Height of the last committed block, 0 after the genesis.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// Root of the Merkle tree over all state.
    pub fn app_hash(&self) -> AppHash {
        self.tree.root()
    }

    /// The full name of the market.
    pub fn genesis_hash(&self) -> GenesisHash {
        self.market.genesis
    }

    /// Name of the market.
    pub fn market(&self) -> &str {
        &self.market.name
    }

    /// `NAME-` and the first 16 hexadecimal digits of the genesis hash.
    pub fn chain_id(&self) -> String {
        chain_id(&self.market.name, &self.market.genesis)
    }

    /// The market's parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Executes `block` on an overlay; `self` stays as it is. Cannot fail: what a transaction may not
    /// do is a code in its result. The block's height is believed here and checked by
    /// [`State::commit`].
    pub fn execute(&self, block: &DecidedBlock) -> BlockOutcome {
        crate::execute::execute(self, block)
    }

    /// Moves the state by the block that `delta` came from, or by a record of the app log.
    ///
    /// # Errors
    /// [`CommitError`] when the delta is not for this state or does not give the app hash that it
    /// names. The state is then unchanged.
    pub fn commit(&mut self, delta: &Delta) -> Result<(), CommitError> {
        let expected = self.height.saturating_add(1);
        if delta.height != expected {
            return Err(CommitError::Height { found: delta.height, expected });
        }
        if delta.parent_app_hash != self.app_hash() {
            let found = delta.parent_app_hash;
            return Err(CommitError::Parent { found, expected: self.app_hash() });
        }
        let tree = self.tree_with(&delta.changes);
        if tree.root() != delta.app_hash {
            let (named, computed) = (delta.app_hash, tree.root());
            return Err(CommitError::AppHash { named, computed });
        }
        for (key, change) in &delta.changes {
            match change {
                Some(record) => self.records.insert(*key, record.clone()),
                None => self.records.remove(key),
            };
        }
        if let Some(Some(Record::Params(params))) = delta.changes.get(&StateKey::Params) {
            self.params = params.clone();
        }
        self.tree = tree;
        self.height = delta.height;
        Ok(())
    }

    pub(crate) fn tree_with(&self, changes: &BTreeMap<StateKey, Option<Record>>) -> Tree {
        self.tree
            .with(changes.iter().map(|(key, change)| change_of(key, change.as_ref())).collect())
    }

    /// Whether the mempool should take `tx` in and pass it on. Not authoritative: the block decides.
    pub fn check_tx(&self, tx: &[u8], pending: &PendingNonces) -> TxResult {
        crate::propose::check_tx(self, tx, pending)
    }

    /// What an honest proposer puts into the block of this height: of `txs`, in their order, those
    /// that succeed one after the other on this state, as many as the market's block holds. The txs
    /// of `block` are candidates for it; its height, proposer and misbehaviour are those of the block
    /// to come.
    pub fn prepare(&self, block: &DecidedBlock) -> Vec<Vec<u8>> {
        crate::propose::prepare(self, block)
    }

    /// Judges a proposed block: refuses what no honest proposer on this state makes, and nothing
    /// else.
    ///
    /// # Errors
    /// [`ProposalFault`].
    pub fn process(&self, block: &DecidedBlock) -> Result<(), ProposalFault> {
        crate::propose::process(self, block)
    }

    /// The newest validator set, sorted by key: it votes from height + 2 on, and the ledger's own
    /// thresholds (admission, promotion) count with it.
    pub fn validators(&self) -> &[Validator] {
        self.newest_validators()
    }

    /// The set that votes on the block of `height`, sorted by key. Known from the last committed
    /// block's height to the one after the next (`self.height() ..= self.height() + 2`).
    pub fn validators_at(&self, height: u64) -> Option<&[Validator]> {
        let ahead = self.height.saturating_add(2);
        if height < self.height || height > ahead {
            return None;
        }
        // A change of block h votes from h+2 on; the genesis' set votes from the start.
        let last = height.saturating_sub(2);
        let mut changes = self.validator_changes().iter().rev();
        changes.find(|change| change.height <= last).map(|change| change.validators.as_slice())
    }

    /// Power of the newest set.
    pub fn total_power(&self) -> u64 {
        total_power(self.validators())
    }

    /// Every key that registered, was admitted or was expelled, by key.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        let keys = StateKey::Member(PublicKey([0; 32]))..=StateKey::Member(PublicKey([255; 32]));
        self.records.range(keys).filter_map(|(_, record)| match record {
            Record::Member(member) => Some(member),
            _ => None,
        })
    }

    /// One of [`State::members`].
    pub fn member(&self, key: &PublicKey) -> Option<&Member> {
        Records::member(self, key)
    }

    /// The admitted member that people call `name`; names are unique among members.
    pub fn member_by_name(&self, name: &str) -> Option<&Member> {
        let key = self.member_of_name(name)?;
        self.member(&key).filter(|member| member.endpoint.name == name)
    }

    /// The last nonce of `signer`; its next transaction carries one more.
    pub fn nonce(&self, signer: &PublicKey) -> u64 {
        Records::nonce(self, signer)
    }

    /// Current listings by ascending sequence number, from `since_seq` on. Numbers of removed ones
    /// are left out.
    pub fn listings(&self, since_seq: u64) -> impl Iterator<Item = &Listing> {
        let keys = StateKey::ListingSeq(since_seq)..=StateKey::ListingSeq(u64::MAX);
        self.records.range(keys).filter_map(|(key, record)| match (key, record) {
            // Data that was removed and came back has a new number; the old one leads nowhere.
            (StateKey::ListingSeq(seq), Record::ListingSeq(id)) => {
                Records::listing(self, id).filter(|listing| listing.seq == *seq)
            }
            _ => None,
        })
    }

    /// The current listing `id`.
    pub fn listing(&self, id: &DataHash) -> Option<&Listing> {
        Records::listing(self, id)
    }

    /// How many listings there are.
    pub fn listing_count(&self) -> u64 {
        self.counters().listing_count
    }

    /// The sequence number that the next promoted listing gets: how many there ever were.
    pub fn next_listing_seq(&self) -> u64 {
        self.counters().next_listing_seq
    }

    /// Open candidates in the order of their offers. Those that the next block cannot promote any
    /// more are left out, although lazy expiry may still keep them in the state.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        let keys = (
            Bound::Included(StateKey::CandidateSeq(0)),
            Bound::Included(StateKey::CandidateSeq(u64::MAX)),
        );
        let next = self.height.saturating_add(1);
        self.records.range(keys).filter_map(move |(_, record)| match record {
            Record::CandidateSeq(id) => {
                Records::candidate(self, id).filter(|c| !c.is_expired(next))
            }
            _ => None,
        })
    }

    /// The open candidate `id`.
    pub fn candidate(&self, id: &DataHash) -> Option<&Candidate> {
        let next = self.height.saturating_add(1);
        Records::candidate(self, id).filter(|candidate| !candidate.is_expired(next))
    }

    /// Members that attested the candidate or listing `id`, in the order of their admission. Those
    /// who left do not count.
    pub fn holders(&self, id: &DataHash) -> Vec<PublicKey> {
        let set = self.holder_set(id).into_iter().flat_map(MemberSet::iter);
        set.filter_map(|index| self.member_key(index)).collect()
    }

    /// Whether the member `key` attested `id`.
    pub fn is_holder(&self, id: &DataHash, key: &PublicKey) -> bool {
        let index = self.member(key).and_then(Member::index);
        index.zip(self.holder_set(id)).is_some_and(|(index, set)| set.contains(index))
    }

    /// Power of those that attested `id`, in the newest set.
    pub fn attested_power(&self, id: &DataHash) -> u64 {
        self.holder_set(id).map_or(0, |set| attested_power(self.validators(), set))
    }

    /// Removed listings that were not offered again, by identity.
    pub fn tombstones(&self) -> impl Iterator<Item = &Tombstone> {
        let keys =
            StateKey::Tombstone(DataHash([0; 32]))..=StateKey::Tombstone(DataHash([255; 32]));
        self.records.range(keys).filter_map(|(_, record)| match record {
            Record::Tombstone(tombstone) => Some(tombstone),
            _ => None,
        })
    }

    /// The removed listing `id`.
    pub fn tombstone(&self, id: &DataHash) -> Option<&Tombstone> {
        Records::tombstone(self, id)
    }

    /// Whether an attestation by `key`, an empty one too, would bring it power in the next block: it
    /// is an observer, attested every current listing, and the trust window has room. Windows move
    /// with empty blocks but grants wait for a transaction, so an observer that this returns true for
    /// sends one.
    pub fn may_claim_power(&self, key: &PublicKey) -> bool {
        crate::execute::may_claim_power(self, key)
    }

    /// Canonical bytes of the value under `key`, as a proof shows them.
    pub fn value(&self, key: &StateKey) -> Option<Vec<u8>> {
        self.records.get(key).map(Record::to_bytes)
    }

    /// Proves the value, or the absence, of `key` under [`State::app_hash`].
    pub fn proof(&self, key: &StateKey) -> Proof {
        self.tree.prove(&path_of(key))
    }

    pub(crate) fn records(&self) -> &BTreeMap<StateKey, Record> {
        &self.records
    }
}

fn change_of(key: &StateKey, record: Option<&Record>) -> Change {
    (path_of(key), record.map(|record| sha256(&[&record.to_bytes()])))
}

pub(crate) fn total_power(validators: &[Validator]) -> u64 {
    validators.iter().fold(0, |sum, validator| sum.saturating_add(validator.power))
}

pub(crate) fn attested_power(validators: &[Validator], set: &MemberSet) -> u64 {
    let attested = validators.iter().filter(|validator| set.contains(validator.index));
    attested.fold(0, |sum, validator| sum.saturating_add(validator.power))
}

/// Whether `part` is more than two thirds of `total`, exactly.
pub fn is_over_two_thirds(part: u64, total: u64) -> bool {
    u128::from(part).saturating_mul(3) > u128::from(total).saturating_mul(2)
}
