//! One block: evidence, transactions, and what follows from them at its end.
//!
//! A block in which nothing succeeded changes nothing, so empty blocks and blocks of junk keep the
//! app hash. What heights bring about (expiry, room in the trust window) therefore waits for the
//! next block in which something succeeds.

use std::collections::BTreeSet;

use crate::block::{
    BlockOutcome, DecidedBlock, Event, Misbehaviour, Refusal, TxResult, ValidatorUpdate,
};
use crate::code::TxCode;
use crate::delta::Delta;
use crate::key::PublicKey;
use crate::overlay::Overlay;
use crate::params::VALIDATORS_MAX;
use crate::record::{Record, Standing, StateKey, TrustWindow, Validator};
use crate::rules::{Touched, admit_bytes};
use crate::state::{Records, State, total_power};

/// Power that an observer gets when it attested everything.
const POWER_GRANTED: u64 = 1;

pub(crate) fn execute(state: &State, block: &DecidedBlock) -> BlockOutcome {
    let mut execution = Execution::new(state, block.height, &block.misbehaviour);
    let results = block.txs.iter().map(|tx| execution.run(tx)).collect();
    execution.finish(results)
}

/// A block while its transactions come in.
pub(crate) struct Execution<'a> {
    overlay: Overlay<'a>,
    events: Vec<Event>,
    touched: Touched,
    /// Bytes of transactions so far.
    len: u64,
    /// Whether anything succeeded.
    is_effective: bool,
}

impl<'a> Execution<'a> {
    pub(crate) fn new(state: &'a State, height: u64, misbehaviour: &[Misbehaviour]) -> Self {
        let overlay = Overlay::new(state, height);
        let touched = Touched::new();
        let mut execution =
            Self { overlay, events: Vec::new(), touched, len: 0, is_effective: false };
        // Void candidates go first, so that they do not count against what their owners offer now.
        execution.events = execution.overlay.expire_candidates();
        misbehaviour.iter().for_each(|misbehaviour| execution.expel(misbehaviour));
        execution
    }

    /// Executes one transaction: all of it, or nothing and a code.
    pub(crate) fn run(&mut self, bytes: &[u8]) -> TxResult {
        match self.try_run(bytes) {
            Ok(events) => {
                self.is_effective = true;
                TxResult::ok(events)
            }
            Err(refusal) => TxResult::refused(refusal),
        }
    }

    fn try_run(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Refusal> {
        let state = self.overlay.base();
        // What is too long for any block is told by its length alone and takes no room.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if len > state.params().tx_len_max {
            return Err(TxCode::TooLarge.into());
        }
        let len = self.len.saturating_add(u64::from(len));
        if len > u64::from(state.params().block_len_max) {
            return Err(TxCode::BlockFull.into());
        }
        self.len = len;
        let height = self.overlay.height();
        let overlay = &self.overlay;
        let tx = admit_bytes(state, height, bytes, |signer| overlay.nonce(signer))?;
        self.overlay.apply(&tx, &mut self.touched)
    }

    /// Gives back the room of a transaction that is not kept.
    pub(crate) fn forget_len(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }

    /// Takes power and membership from a validator that signed twice; once, and never the last one's.
    fn expel(&mut self, misbehaviour: &Misbehaviour) {
        let key = misbehaviour.validator;
        let Some(member) = self.overlay.member(&key) else { return };
        let Some(index) = member.index() else { return };
        if member.is_validator() && self.overlay.newest_validators().len() <= 1 {
            return;
        }
        self.overlay.end_membership(&key, index);
        self.overlay.edit_member(&key, |member| member.standing = Standing::Expelled);
        self.events.push(Event::Expelled(key));
        self.is_effective = true;
    }

    pub(crate) fn finish(mut self, results: Vec<TxResult>) -> BlockOutcome {
        let state = self.overlay.base();
        let height = self.overlay.height();
        if self.is_effective {
            self.end_block();
        } else {
            self.overlay = Overlay::new(state, height);
            self.events.clear();
        }
        let validator_updates = updates(state.validators(), self.overlay.newest_validators());
        let changes = self.overlay.into_changes();
        let app_hash = state.tree_with(&changes).root();
        let parent_app_hash = state.app_hash();
        let delta = Delta { height, parent_app_hash, app_hash, changes };
        BlockOutcome { height, results, events: self.events, validator_updates, app_hash, delta }
    }

    /// Promotions of what was attested, power for who holds everything, and both counted again when
    /// the set is another than before.
    fn end_block(&mut self) {
        let touched = core::mem::take(&mut self.touched);
        if self.overlay.is_set_changed() {
            self.recount();
        } else {
            let mut order: Vec<_> = touched
                .iter()
                .filter_map(|id| Some((self.overlay.candidate(id)?.offer_seq, *id)))
                .collect();
            order.sort_unstable();
            for (_, id) in order {
                self.events.extend(self.overlay.promote_if_attested(&id));
            }
        }
        if self.grant_power() {
            self.recount();
        }
        let before = self.overlay.base().validators();
        for update in updates(before, self.overlay.newest_validators()) {
            self.events.push(Event::PowerChanged(update.key, update.power));
        }
    }

    /// Counts every open candidate and registration against the set as it is now.
    fn recount(&mut self) {
        for key in self.overlay.member_keys() {
            self.events.extend(self.overlay.admit_if_voted(&key));
        }
        for id in self.overlay.candidate_ids() {
            self.events.extend(self.overlay.promote_if_attested(&id));
        }
    }

    /// Gives power to observers that attested every current listing, those admitted first before
    /// others, as far as the trust window and the greatest set allow.
    fn grant_power(&mut self) -> bool {
        let listing_count = self.overlay.counters().listing_count;
        let mut waiting: Vec<(u32, PublicKey)> = Vec::new();
        for key in self.overlay.member_keys() {
            if let Some(member) = self.overlay.member(&key)
                && let Some(index) = member.index()
                && member.is_observer()
                && member.attested_height > 0
                && member.held_count == listing_count
            {
                waiting.push((index, key));
            }
        }
        waiting.sort_unstable();
        let height = self.overlay.height();
        let mut window = self.overlay.trust_window();
        let mut is_changed = false;
        for (index, key) in waiting {
            let validators = self.overlay.newest_validators();
            let heights = self.overlay.params().trust_window_heights;
            if !has_room(&mut window, validators, heights, height) {
                break;
            }
            self.overlay.set_power(&key, index, POWER_GRANTED);
            match window.added.last_mut() {
                Some((at, power)) if *at == height => *power = power.saturating_add(POWER_GRANTED),
                _ => window.added.push((height, POWER_GRANTED)),
            }
            is_changed = true;
        }
        if is_changed {
            self.overlay.put(StateKey::TrustWindow, Record::TrustWindow(window));
        }
        is_changed
    }
}

/// Whether power may be added in the block of `height`: what was added in the last `heights`
/// heights, this included, stays within max(1, a quarter) of what was there before it.
fn has_room(window: &mut TrustWindow, validators: &[Validator], heights: u64, height: u64) -> bool {
    window.added.retain(|(at, _)| at.saturating_add(heights) > height);
    let added = window.added.iter().fold(0u64, |sum, (_, power)| sum.saturating_add(*power));
    let before = total_power(validators).saturating_sub(added);
    validators.len() < VALIDATORS_MAX && added.saturating_add(POWER_GRANTED) <= (before >> 2).max(1)
}

pub(crate) fn may_claim_power(state: &State, key: &PublicKey) -> bool {
    let height = state.height().saturating_add(1);
    let heights = state.params().trust_window_heights;
    state.member(key).is_some_and(|member| {
        member.is_observer()
            && member.held_count == state.listing_count()
            && has_room(&mut state.trust_window(), state.validators(), heights, height)
    })
}

/// What changed between two sets, by key.
fn updates(before: &[Validator], after: &[Validator]) -> Vec<ValidatorUpdate> {
    let power_in = |set: &[Validator], key: &PublicKey| {
        let place = set.binary_search_by_key(key, |validator| validator.key).ok();
        place.and_then(|place| set.get(place)).map_or(0, |validator| validator.power)
    };
    let keys: BTreeSet<PublicKey> =
        before.iter().chain(after).map(|validator| validator.key).collect();
    let changed = keys.into_iter().filter(|key| power_in(before, key) != power_in(after, key));
    changed.map(|key| ValidatorUpdate { key, power: power_in(after, &key) }).collect()
}
