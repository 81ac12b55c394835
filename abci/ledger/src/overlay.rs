//! A block in execution: the committed state underneath, the block's own changes on top.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::{DataHash, PublicKey};
use crate::params::{POWER_MAX, Params};
use crate::record::{
    Candidate, Counters, Member, MemberSet, Record, SetChange, StateKey, Validator,
    ValidatorHistory,
};
use crate::state::{Records, State};

/// Reads through to the state, writes beside it. Dropping it forgets the block.
pub(crate) struct Overlay<'a> {
    base: &'a State,
    height: u64,
    changes: BTreeMap<StateKey, Option<Record>>,
    /// The newest set, as this block leaves it; sorted by key.
    validators: Vec<Validator>,
}

impl Records for Overlay<'_> {
    fn record(&self, key: &StateKey) -> Option<&Record> {
        match self.changes.get(key) {
            Some(change) => change.as_ref(),
            None => self.base.record(key),
        }
    }

    fn newest_validators(&self) -> &[Validator] {
        &self.validators
    }
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(base: &'a State, height: u64) -> Self {
        let validators = base.validators().to_vec();
        Self { base, height, changes: BTreeMap::new(), validators }
    }

    pub(crate) fn base(&self) -> &'a State {
        self.base
    }

    /// Height of the block in execution.
    pub(crate) fn height(&self) -> u64 {
        self.height
    }

    pub(crate) fn params(&self) -> &'a Params {
        self.base.params()
    }

    pub(crate) fn put(&mut self, key: StateKey, record: Record) {
        self.changes.insert(key, Some(record));
    }

    pub(crate) fn delete(&mut self, key: StateKey) {
        self.changes.insert(key, None);
    }

    pub(crate) fn put_member(&mut self, member: Member) {
        self.put(StateKey::Member(member.key), Record::Member(member));
    }

    /// Changes a member that is there.
    pub(crate) fn edit_member(&mut self, key: &PublicKey, edit: impl FnOnce(&mut Member)) {
        if let Some(mut member) = self.member(key).cloned() {
            edit(&mut member);
            self.put_member(member);
        }
    }

    pub(crate) fn edit_counters(&mut self, edit: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters();
        edit(&mut counters);
        self.put(StateKey::Counters, Record::Counters(counters));
    }

    /// Who attested `id`; nobody when it is not there.
    pub(crate) fn holders(&self, id: &DataHash) -> MemberSet {
        self.holder_set(id).cloned().unwrap_or_default()
    }

    pub(crate) fn put_holders(&mut self, id: DataHash, set: MemberSet) {
        self.put(StateKey::Holders(id), Record::Holders(set));
    }

    /// Changes the set; power 0 takes the member out. The member's own record follows.
    pub(crate) fn set_power(&mut self, key: &PublicKey, index: u32, power: u64) {
        let power = power.min(POWER_MAX);
        match self.validators.binary_search_by_key(key, |validator| validator.key) {
            Ok(place) if power == 0 => {
                self.validators.remove(place);
            }
            Ok(place) => {
                if let Some(validator) = self.validators.get_mut(place) {
                    validator.power = power;
                }
            }
            Err(_) if power == 0 => {}
            Err(place) => self.validators.insert(place, Validator { key: *key, index, power }),
        }
        self.edit_member(key, |member| member.power = power);
    }

    /// Whether this block changed the set so far.
    pub(crate) fn is_set_changed(&self) -> bool {
        self.validators != self.base.validators()
    }

    /// The least key from `from` to `to`, both included.
    pub(crate) fn first_in(&self, from: StateKey, to: StateKey) -> Option<StateKey> {
        let mut below = self.base.records().range(from..=to).map(|(key, _)| *key);
        let below = below.find(|key| !matches!(self.changes.get(key), Some(None)));
        let mut above = self.changes.range(from..=to);
        let above = above.find(|(_, change)| change.is_some()).map(|(key, _)| *key);
        below.into_iter().chain(above).min()
    }

    /// All keys from `from` to `to`, both included, ascending.
    pub(crate) fn keys_in(&self, from: StateKey, to: StateKey) -> BTreeSet<StateKey> {
        let below = self.base.records().range(from..=to).map(|(key, _)| *key);
        let mut keys: BTreeSet<StateKey> = below.collect();
        for (key, change) in self.changes.range(from..=to) {
            match change {
                Some(_) => keys.insert(*key),
                None => keys.remove(key),
            };
        }
        keys
    }

    /// Every registered, admitted or expelled key. A market has some hundred, see `members_max`.
    pub(crate) fn member_keys(&self) -> Vec<PublicKey> {
        let from = StateKey::Member(PublicKey([0; 32]));
        let to = StateKey::Member(PublicKey([255; 32]));
        let keys = self.keys_in(from, to).into_iter();
        keys.filter_map(|key| if let StateKey::Member(key) = key { Some(key) } else { None })
            .collect()
    }

    /// The candidate that was offered first, void or not.
    pub(crate) fn oldest_candidate(&self) -> Option<&Candidate> {
        let from = StateKey::CandidateSeq(0);
        let key = self.first_in(from, StateKey::CandidateSeq(u64::MAX))?;
        match self.record(&key) {
            Some(Record::CandidateSeq(id)) => self.candidate(id),
            _ => None,
        }
    }

    /// Every candidate, in the order of the offers.
    pub(crate) fn candidate_ids(&self) -> Vec<DataHash> {
        let keys = self.keys_in(StateKey::CandidateSeq(0), StateKey::CandidateSeq(u64::MAX));
        let ids = keys.iter().filter_map(|key| match self.record(key) {
            Some(Record::CandidateSeq(id)) => Some(*id),
            _ => None,
        });
        ids.collect()
    }

    /// The block's changes: what says the same as the state underneath is left out, and a changed
    /// validator set is written down with the height of its block.
    pub(crate) fn into_changes(mut self) -> BTreeMap<StateKey, Option<Record>> {
        if self.is_set_changed() {
            let mut changes = self.base.validator_changes().to_vec();
            changes.push(SetChange { height: self.height, validators: self.validators.clone() });
            let surplus = changes.len().saturating_sub(ValidatorHistory::LEN_MAX);
            changes.drain(..surplus.min(changes.len()));
            let history = ValidatorHistory { changes };
            self.put(StateKey::Validators, Record::Validators(history));
        }
        let base = self.base;
        self.changes.retain(|key, change| base.record(key) != change.as_ref());
        self.changes
    }
}
