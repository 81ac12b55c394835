//! What each kind of transaction may do, and does.
//!
//! Every rule first checks, then writes: a refusal leaves the overlay as it was.

use std::collections::BTreeSet;

use crate::block::{Event, Refusal};
use crate::code::TxCode;
use crate::key::{DataHash, PublicKey};
use crate::overlay::Overlay;
use crate::params::VALID_AHEAD_HEIGHTS_MAX;
use crate::record::{
    Candidate, Listing, MEMBER_INDEX_MAX, Member, MemberSet, Record, Standing, StateKey, Tombstone,
};
use crate::state::{Records, State, attested_power, is_over_two_thirds, total_power};
use crate::tx::{Endpoint, Offer, Tx, TxBody};

/// Most candidates that one block drops because they are void. Rules treat void ones as gone anyway.
const EXPIRIES_PER_BLOCK_MAX: u32 = 256;

/// Candidates whose attestations changed: the end of the block counts them.
pub(crate) type Touched = BTreeSet<DataHash>;

/// Decodes `bytes` and checks all that needs no rule of a kind: length, encoding, heights, nonce
/// (which must be the one after `last_nonce`), signature.
pub(crate) fn admit_bytes(
    state: &State,
    height: u64,
    bytes: &[u8],
    last_nonce: impl FnOnce(&PublicKey) -> u64,
) -> Result<Tx, Refusal> {
    let len_max = state.params().tx_len_max;
    // Length first: a megabyte of junk costs no decoding.
    if u32::try_from(bytes.len()).map_or(true, |len| len > len_max) {
        let info = format!("{} bytes, at most {len_max}", bytes.len());
        return Err(Refusal::new(TxCode::TooLarge, info));
    }
    let tx = Tx::decode(bytes).map_err(|e| Refusal::new(TxCode::from(&e), e.to_string()))?;
    let until = tx.valid_until_height;
    if until < height {
        let info = format!("valid until height {until}, this is {height}");
        return Err(Refusal::new(TxCode::Expired, info));
    }
    if until > height.saturating_add(VALID_AHEAD_HEIGHTS_MAX) {
        let info = format!("valid until height {until}, this is {height}");
        return Err(Refusal::new(TxCode::ValidTooLong, info));
    }
    let last = last_nonce(&tx.signer);
    if tx.nonce <= last {
        return Err(Refusal::new(TxCode::NonceUsed, format!("nonce {}, last {last}", tx.nonce)));
    }
    if tx.nonce != last.saturating_add(1) {
        return Err(Refusal::new(TxCode::NonceAhead, format!("nonce {}, last {last}", tx.nonce)));
    }
    tx.verify(&state.genesis_hash()).map_err(|e| Refusal::new(TxCode::from(&e), e.to_string()))?;
    Ok(tx)
}

impl Overlay<'_> {
    /// Applies a transaction whose bytes [`admit_bytes`] passed.
    pub(crate) fn apply(&mut self, tx: &Tx, touched: &mut Touched) -> Result<Vec<Event>, Refusal> {
        let signer = tx.signer;
        let events = match &tx.body {
            TxBody::Register(endpoint) => self.register(signer, endpoint)?,
            TxBody::UpdateEndpoint(endpoint) => self.update_endpoint(signer, endpoint)?,
            TxBody::Leave => self.leave(signer)?,
            TxBody::Admit { member } => self.vote(signer, *member)?,
            TxBody::Candidate(offer) => self.offer(signer, offer, touched)?,
            TxBody::Attest { have, withdrawn } => self.attest(signer, have, withdrawn, touched)?,
            TxBody::Remove { listing } => self.remove(signer, *listing)?,
        };
        self.put(StateKey::Nonce(signer), Record::Nonce(tx.nonce));
        Ok(events)
    }

    fn admitted(&self, signer: &PublicKey) -> Result<(&Member, u32), Refusal> {
        let member = self.member(signer).ok_or(TxCode::NotMember)?;
        let index = member.index().ok_or(TxCode::NotMember)?;
        Ok((member, index))
    }

    fn is_name_taken(&self, name: &str, but: &PublicKey) -> bool {
        self.member_of_name(name).is_some_and(|key| key != *but)
    }

    /// Takes a member out of the market, but not its record.
    pub(crate) fn end_membership(&mut self, key: &PublicKey, index: u32) {
        self.set_power(key, index, 0);
        if let Some(member) = self.member(key) {
            self.delete(StateKey::member_name(&member.endpoint.name));
        }
        self.delete(StateKey::MemberIndex(index));
        self.edit_counters(|c| c.member_count = c.member_count.saturating_sub(1));
    }

    fn is_registered(&self, key: &PublicKey) -> Result<bool, TxCode> {
        match self.member(key).map(|member| &member.standing) {
            None => Ok(false),
            Some(Standing::Registered { expires_height, .. }) => {
                Ok(self.height() <= *expires_height)
            }
            Some(Standing::Admitted { .. }) => Err(TxCode::AlreadyAdmitted),
            Some(Standing::Expelled) => Err(TxCode::Expelled),
        }
    }

    fn register(&mut self, signer: PublicKey, endpoint: &Endpoint) -> Result<Vec<Event>, Refusal> {
        match self.is_registered(&signer) {
            Ok(false) => {}
            Ok(true) | Err(TxCode::AlreadyAdmitted) => {
                return Err(TxCode::AlreadyRegistered.into());
            }
            Err(code) => return Err(code.into()),
        }
        if self.is_name_taken(&endpoint.name, &signer) {
            return Err(Refusal::new(TxCode::NameTaken, endpoint.name.clone()));
        }
        let counters = self.counters();
        if counters.member_count >= self.params().members_max {
            return Err(TxCode::MembersFull.into());
        }
        // Void registrations make room only when room is short: nothing walks over them before.
        let is_void_own = self.member(&signer).is_some();
        let mut events = Vec::new();
        if counters.registration_count >= self.params().registrations_max && !is_void_own {
            let void = self.void_registrations();
            if void.is_empty() {
                return Err(TxCode::RegistrationsFull.into());
            }
            for key in void {
                self.drop_registration(&key);
                events.push(Event::RegistrationExpired(key));
            }
        }
        if !is_void_own {
            self.edit_counters(|c| c.registration_count = c.registration_count.saturating_add(1));
        }
        let expires_height =
            self.height().saturating_add(self.params().registration_expiry_heights);
        self.put_member(Member {
            key: signer,
            endpoint: endpoint.clone(),
            standing: Standing::Registered { votes: MemberSet::default(), expires_height },
            power: 0,
            held_count: 0,
            attested_height: 0,
            open_bytes: 0,
            open_count: 0,
        });
        events.push(Event::Registered(signer));
        Ok(events)
    }

    fn void_registrations(&self) -> Vec<PublicKey> {
        let mut keys = self.member_keys();
        keys.retain(|key| {
            let standing = self.member(key).map(|member| &member.standing);
            matches!(standing, Some(Standing::Registered { expires_height, .. }) if *expires_height < self.height())
        });
        keys
    }

    fn drop_registration(&mut self, key: &PublicKey) {
        self.delete(StateKey::Member(*key));
        self.edit_counters(|c| c.registration_count = c.registration_count.saturating_sub(1));
        // The registration was the key's only transaction and is too old to be replayed: it could
        // stay valid for fewer heights than a registration lives.
        if self.nonce(key) == 1 {
            self.delete(StateKey::Nonce(*key));
        }
    }

    fn update_endpoint(
        &mut self,
        signer: PublicKey,
        endpoint: &Endpoint,
    ) -> Result<Vec<Event>, Refusal> {
        let old_name = StateKey::member_name(&self.admitted(&signer)?.0.endpoint.name);
        if self.is_name_taken(&endpoint.name, &signer) {
            return Err(Refusal::new(TxCode::NameTaken, endpoint.name.clone()));
        }
        self.delete(old_name);
        self.put(StateKey::member_name(&endpoint.name), Record::MemberName(signer));
        self.edit_member(&signer, |member| member.endpoint = endpoint.clone());
        Ok(vec![Event::EndpointChanged(signer)])
    }

    fn leave(&mut self, signer: PublicKey) -> Result<Vec<Event>, Refusal> {
        let member = self.member(&signer).ok_or(TxCode::NotRegistered)?;
        match member.standing {
            Standing::Expelled => return Err(TxCode::Expelled.into()),
            Standing::Registered { .. } => {
                self.delete(StateKey::Member(signer));
                self.edit_counters(|c| {
                    c.registration_count = c.registration_count.saturating_sub(1);
                });
            }
            Standing::Admitted { index } => {
                if member.is_validator() && self.newest_validators().len() <= 1 {
                    return Err(TxCode::LastValidator.into());
                }
                self.end_membership(&signer, index);
                self.delete(StateKey::Member(signer));
            }
        }
        Ok(vec![Event::Left(signer)])
    }

    fn vote(&mut self, signer: PublicKey, key: PublicKey) -> Result<Vec<Event>, Refusal> {
        let (voter, voter_index) = self.admitted(&signer)?;
        if !voter.is_validator() {
            return Err(TxCode::NotValidator.into());
        }
        if !self.is_registered(&key)? {
            return Err(TxCode::NotRegistered.into());
        }
        let Some(mut member) = self.member(&key).cloned() else {
            return Err(TxCode::NotRegistered.into());
        };
        self.may_be_admitted(&member)?;
        let Standing::Registered { votes, .. } = &mut member.standing else {
            return Err(TxCode::NotRegistered.into());
        };
        if !votes.insert(voter_index) {
            return Err(TxCode::AlreadyVoted.into());
        }
        self.put_member(member);
        Ok(self.admit_if_voted(&key))
    }

    /// What may have changed since the registration.
    fn may_be_admitted(&self, member: &Member) -> Result<(), Refusal> {
        let counters = self.counters();
        if counters.member_count >= self.params().members_max
            || counters.next_member_index >= MEMBER_INDEX_MAX
        {
            return Err(TxCode::MembersFull.into());
        }
        if self.is_name_taken(&member.endpoint.name, &member.key) {
            return Err(Refusal::new(TxCode::NameTaken, member.endpoint.name.clone()));
        }
        Ok(())
    }

    /// Admits a registered key if more than two thirds of the power voted for it.
    pub(crate) fn admit_if_voted(&mut self, key: &PublicKey) -> Vec<Event> {
        let Some(member) = self.member(key) else { return Vec::new() };
        let Standing::Registered { votes, expires_height } = &member.standing else {
            return Vec::new();
        };
        let validators = self.newest_validators();
        let power = attested_power(validators, votes);
        if *expires_height < self.height()
            || !is_over_two_thirds(power, total_power(validators))
            || self.may_be_admitted(member).is_err()
        {
            return Vec::new();
        }
        let name = StateKey::member_name(&member.endpoint.name);
        let index = self.counters().next_member_index;
        self.put(name, Record::MemberName(*key));
        self.edit_member(key, |member| member.standing = Standing::Admitted { index });
        self.put(StateKey::MemberIndex(index), Record::MemberIndex(*key));
        self.edit_counters(|c| {
            c.next_member_index = c.next_member_index.saturating_add(1);
            c.member_count = c.member_count.saturating_add(1);
            c.registration_count = c.registration_count.saturating_sub(1);
        });
        vec![Event::Admitted(*key)]
    }

    fn offer(
        &mut self,
        signer: PublicKey,
        offer: &Offer,
        touched: &mut Touched,
    ) -> Result<Vec<Event>, Refusal> {
        let height = self.height();
        let params = self.params();
        let (member, index) = self.admitted(&signer)?;
        let (open_bytes, open_count) = (member.open_bytes, member.open_count);
        let id = offer.infohash_v2;
        if self.listing(&id).is_some() {
            return Err(TxCode::AlreadyListed.into());
        }
        if self.candidate(&id).is_some_and(|candidate| !candidate.is_expired(height)) {
            return Err(TxCode::AlreadyCandidate.into());
        }
        if let Some(tombstone) = self.tombstone(&id)
            && height < tombstone.purge_height
        {
            let info = format!("may be offered again from height {}", tombstone.purge_height);
            return Err(Refusal::new(TxCode::InGrace, info));
        }
        if offer.size_bytes > params.listing_size_max_bytes {
            let info =
                format!("{} bytes, at most {}", offer.size_bytes, params.listing_size_max_bytes);
            return Err(Refusal::new(TxCode::ListingTooLarge, info));
        }
        let open_bytes = open_bytes.saturating_add(offer.size_bytes);
        if open_bytes > params.open_candidate_bytes_max {
            let info = format!("{open_bytes} bytes, at most {}", params.open_candidate_bytes_max);
            return Err(Refusal::new(TxCode::OpenBytesFull, info));
        }
        if open_count >= params.open_candidates_max {
            return Err(TxCode::OpenCandidatesFull.into());
        }
        // Only a void one can still be there. Its owner may be the signer, so the totals are read
        // again below.
        let mut events =
            self.close_candidate(&id).map_or_else(Vec::new, |_| vec![Event::CandidateExpired(id)]);
        self.delete(StateKey::Tombstone(id));
        let offer_seq = self.counters().next_offer_seq;
        let candidate = Candidate {
            offer: offer.clone(),
            owner: signer,
            owner_index: index,
            offer_seq,
            offered_height: height,
            expires_height: height.saturating_add(params.candidate_expiry_heights),
        };
        self.put(StateKey::Candidate(id), Record::Candidate(candidate));
        self.put(StateKey::CandidateSeq(offer_seq), Record::CandidateSeq(id));
        let mut holders = MemberSet::default();
        holders.insert(index);
        self.put_holders(id, holders);
        self.edit_counters(|c| {
            c.next_offer_seq = c.next_offer_seq.saturating_add(1);
            c.candidate_count = c.candidate_count.saturating_add(1);
        });
        self.edit_member(&signer, |member| {
            member.open_bytes = member.open_bytes.saturating_add(offer.size_bytes);
            member.open_count = member.open_count.saturating_add(1);
        });
        touched.insert(id);
        events.push(Event::Offered(id));
        Ok(events)
    }

    /// Takes a candidate out of the state, its holders too.
    fn close_candidate(&mut self, id: &DataHash) -> Option<(Candidate, MemberSet)> {
        let candidate = self.candidate(id)?.clone();
        let holders = self.holders(id);
        self.delete(StateKey::Candidate(*id));
        self.delete(StateKey::CandidateSeq(candidate.offer_seq));
        self.delete(StateKey::Holders(*id));
        self.edit_counters(|c| c.candidate_count = c.candidate_count.saturating_sub(1));
        // An owner that left and came back starts with clean totals, under a new number.
        let is_same = |member: &Member| member.index() == Some(candidate.owner_index);
        if self.member(&candidate.owner).is_some_and(is_same) {
            self.edit_member(&candidate.owner, |member| {
                member.open_bytes = member.open_bytes.saturating_sub(candidate.offer.size_bytes);
                member.open_count = member.open_count.saturating_sub(1);
            });
        }
        Some((candidate, holders))
    }

    /// Drops candidates that are void, oldest first.
    pub(crate) fn expire_candidates(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..EXPIRIES_PER_BLOCK_MAX {
            let Some(oldest) = self.oldest_candidate() else { break };
            if !oldest.is_expired(self.height()) {
                break;
            }
            let id = oldest.id();
            self.close_candidate(&id);
            events.push(Event::CandidateExpired(id));
        }
        events
    }

    /// Makes a candidate a listing if more than two thirds of the power attested it.
    pub(crate) fn promote_if_attested(&mut self, id: &DataHash) -> Option<Event> {
        let candidate = self.candidate(id)?;
        let validators = self.newest_validators();
        let power = attested_power(validators, self.holder_set(id)?);
        if candidate.is_expired(self.height())
            || !is_over_two_thirds(power, total_power(validators))
        {
            return None;
        }
        let (candidate, holders) = self.close_candidate(id)?;
        let seq = self.counters().next_listing_seq;
        let listing = Listing {
            offer: candidate.offer,
            owner: candidate.owner,
            seq,
            offered_height: candidate.offered_height,
            promoted_height: self.height(),
        };
        self.put(StateKey::Listing(*id), Record::Listing(listing));
        self.put(StateKey::ListingSeq(seq), Record::ListingSeq(*id));
        self.count_held(&holders, |count| count.saturating_add(1));
        self.put_holders(*id, holders);
        self.edit_counters(|c| {
            c.next_listing_seq = c.next_listing_seq.saturating_add(1);
            c.listing_count = c.listing_count.saturating_add(1);
        });
        Some(Event::Promoted(*id))
    }

    fn count_held(&mut self, holders: &MemberSet, step: impl Fn(u64) -> u64) {
        for index in holders.iter() {
            // Numbers of members that left lead to nobody.
            if let Some(key) = self.member_key(index) {
                self.edit_member(&key, |member| member.held_count = step(member.held_count));
            }
        }
    }

    fn attest(
        &mut self,
        signer: PublicKey,
        have: &[DataHash],
        withdrawn: &[DataHash],
        touched: &mut Touched,
    ) -> Result<Vec<Event>, Refusal> {
        let (_, index) = self.admitted(&signer)?;
        let height = self.height();
        let is_candidate = |overlay: &Self, id: &DataHash| {
            overlay.candidate(id).is_some_and(|candidate| !candidate.is_expired(height))
        };
        let ids = || have.iter().chain(withdrawn);
        let is_known = |id: &&DataHash| self.listing(id).is_some() || is_candidate(self, id);
        // A batch outlives single removals and expiries; only one without any meaning is refused.
        if ids().next().is_some() && !ids().any(|id| is_known(&id)) {
            return Err(TxCode::NotListed.into());
        }
        let mut counts = [0u32; 4];
        let [new, lost, unchanged, unknown] = &mut counts;
        let mut held_delta = (0u64, 0u64);
        let wanted = have.iter().map(|id| (id, true)).chain(withdrawn.iter().map(|id| (id, false)));
        for (id, has) in wanted {
            let is_listing = self.listing(id).is_some();
            if !is_listing && !is_candidate(self, id) {
                *unknown = unknown.saturating_add(1);
                continue;
            }
            let mut holders = self.holders(id);
            let is_changed = if has { holders.insert(index) } else { holders.remove(index) };
            if !is_changed {
                *unchanged = unchanged.saturating_add(1);
                continue;
            }
            self.put_holders(*id, holders);
            let count = if has { &mut *new } else { &mut *lost };
            *count = count.saturating_add(1);
            match (is_listing, has) {
                (true, true) => held_delta.0 = held_delta.0.saturating_add(1),
                (true, false) => held_delta.1 = held_delta.1.saturating_add(1),
                (false, _) => {
                    touched.insert(*id);
                }
            }
        }
        self.edit_member(&signer, |member| {
            member.attested_height = height;
            member.held_count =
                member.held_count.saturating_add(held_delta.0).saturating_sub(held_delta.1);
        });
        let [have, withdrawn, unchanged, unknown] = counts;
        Ok(vec![Event::Attested { member: signer, have, withdrawn, unchanged, unknown }])
    }

    fn remove(&mut self, signer: PublicKey, id: DataHash) -> Result<Vec<Event>, Refusal> {
        let height = self.height();
        if let Some(candidate) = self.candidate(&id).filter(|c| !c.is_expired(height)) {
            if candidate.owner != signer {
                return Err(TxCode::NotOwner.into());
            }
            self.close_candidate(&id);
            return Ok(vec![Event::CandidateWithdrawn(id)]);
        }
        // The owner may have left the market meanwhile: it is still the only one who removes.
        let listing = self.listing(&id).ok_or(TxCode::NotListed)?;
        if listing.owner != signer {
            return Err(TxCode::NotOwner.into());
        }
        let purge_height = height.saturating_add(self.params().removal_grace_heights);
        let tombstone = Tombstone {
            id,
            seq: listing.seq,
            owner: signer,
            size_bytes: listing.offer.size_bytes,
            removed_height: height,
            purge_height,
        };
        let holders = self.holders(&id);
        self.count_held(&holders, |count| count.saturating_sub(1));
        self.delete(StateKey::Listing(id));
        self.delete(StateKey::Holders(id));
        self.put(StateKey::Tombstone(id), Record::Tombstone(tombstone));
        self.edit_counters(|c| c.listing_count = c.listing_count.saturating_sub(1));
        Ok(vec![Event::Removed { listing: id, purge_height }])
    }
}
