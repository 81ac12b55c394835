//! What the state consists of: records under typed keys, each with one encoding.
//!
//! The order of [`StateKey`] is the order of its bytes, so that a sorted walk over the map is the
//! sorted stream of the snapshot. Numbers in keys are therefore big endian; all others are little.

use crate::codec::{DecodeError, Reader, Writer, field_error};
use crate::key::{DataHash, GenesisHash, PublicKey};
use crate::params::{POWER_MAX, Params, VALIDATORS_MAX};
use crate::tx::{Endpoint, Offer};

/// Member numbers end here; a market that admits more often has to start anew.
pub(crate) const MEMBER_INDEX_MAX: u32 = 1 << 20;

/// Where a record lies. Its bytes are what [`crate::Proof`] proves about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateKey {
    /// Name and genesis hash of the market.
    Market,
    /// The market's parameters.
    Params,
    /// Next numbers and totals.
    Counters,
    /// The validator set and its last changes.
    Validators,
    /// Power added lately.
    TrustWindow,
    /// A registered, admitted or expelled key.
    Member(PublicKey),
    /// The key of an admitted member's number.
    MemberIndex(u32),
    /// The last nonce of a signer.
    Nonce(PublicKey),
    /// An open candidate.
    Candidate(DataHash),
    /// The candidate that was offered so many offers after the first.
    CandidateSeq(u64),
    /// A listing.
    Listing(DataHash),
    /// The listing that was promoted so many promotions after the first. Stays after a removal, so
    /// that the sequence has no holes.
    ListingSeq(u64),
    /// Who attested a candidate or listing.
    Holders(DataHash),
    /// A removed listing.
    Tombstone(DataHash),
    /// Who has a name: the name's bytes, then zeros.
    MemberName([u8; 32]),
}

impl StateKey {
    /// The key under which the holder of `name` stands; longer names than members have are cut.
    pub fn member_name(name: &str) -> Self {
        let mut padded = [0; 32];
        padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Self::MemberName(padded)
    }

    /// The canonical bytes: a tag, then the identity.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Market => writer.u8(1),
            Self::Params => writer.u8(2),
            Self::Counters => writer.u8(3),
            Self::Validators => writer.u8(4),
            Self::TrustWindow => writer.u8(5),
            Self::Member(key) => writer.u8(6).bytes(&key.0),
            Self::MemberIndex(index) => writer.u8(7).bytes(&index.to_be_bytes()),
            Self::Nonce(key) => writer.u8(8).bytes(&key.0),
            Self::Candidate(id) => writer.u8(9).bytes(&id.0),
            Self::CandidateSeq(seq) => writer.u8(10).bytes(&seq.to_be_bytes()),
            Self::Listing(id) => writer.u8(11).bytes(&id.0),
            Self::ListingSeq(seq) => writer.u8(12).bytes(&seq.to_be_bytes()),
            Self::Holders(id) => writer.u8(13).bytes(&id.0),
            Self::Tombstone(id) => writer.u8(14).bytes(&id.0),
            Self::MemberName(name) => writer.u8(15).bytes(name),
        };
        writer.into_bytes()
    }

    /// Reads what [`StateKey::to_bytes`] writes.
    ///
    /// # Errors
    /// [`DecodeError`] when `bytes` are no key.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let key = match reader.u8("key")? {
            1 => Self::Market,
            2 => Self::Params,
            3 => Self::Counters,
            4 => Self::Validators,
            5 => Self::TrustWindow,
            6 => Self::Member(PublicKey(reader.array("key")?)),
            7 => Self::MemberIndex(u32::from_be_bytes(reader.array("key")?)),
            8 => Self::Nonce(PublicKey(reader.array("key")?)),
            9 => Self::Candidate(DataHash(reader.array("key")?)),
            10 => Self::CandidateSeq(u64::from_be_bytes(reader.array("key")?)),
            11 => Self::Listing(DataHash(reader.array("key")?)),
            12 => Self::ListingSeq(u64::from_be_bytes(reader.array("key")?)),
            13 => Self::Holders(DataHash(reader.array("key")?)),
            14 => Self::Tombstone(DataHash(reader.array("key")?)),
            15 => Self::MemberName(reader.array("key")?),
            _ => return Err(field_error("key", "has no known tag")),
        };
        reader.finish()?;
        Ok(key)
    }
}

/// What lies under a [`StateKey`]; the key says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Market(Market),
    Params(Params),
    Counters(Counters),
    Validators(ValidatorHistory),
    TrustWindow(TrustWindow),
    Member(Member),
    MemberIndex(PublicKey),
    Nonce(u64),
    Candidate(Candidate),
    CandidateSeq(DataHash),
    Listing(Listing),
    ListingSeq(DataHash),
    Holders(MemberSet),
    Tombstone(Tombstone),
    MemberName(PublicKey),
}

/// Name and genesis hash: the root over the state names the market it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Market {
    pub(crate) name: String,
    pub(crate) genesis: GenesisHash,
}

/// Next numbers and totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) next_member_index: u32,
    pub(crate) member_count: u32,
    pub(crate) registration_count: u32,
    pub(crate) next_offer_seq: u64,
    pub(crate) candidate_count: u64,
    pub(crate) next_listing_seq: u64,
    pub(crate) listing_count: u64,
}

/// A validator and its power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    /// Its node key.
    pub key: PublicKey,
    /// Its member number.
    pub index: u32,
    /// At least 1.
    pub power: u64,
}

/// The set as some block left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetChange {
    /// The block that made it; 0 is the genesis.
    pub(crate) height: u64,
    /// Sorted by key.
    pub(crate) validators: Vec<Validator>,
}

/// The newest set and as many older ones as can still vote. A change of block h votes from h+2 on,
/// so three answer for every height from the last block's to the one after the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValidatorHistory {
    /// Ascending heights, the newest last; never empty.
    pub(crate) changes: Vec<SetChange>,
}

impl ValidatorHistory {
    pub(crate) const LEN_MAX: usize = 3;
}

/// Power that was added, by height, for as long as the trust window sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrustWindow {
    /// (height, power), ascending heights.
    pub(crate) added: Vec<(u64, u64)>,
}

/// A key that registered, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its node key.
    pub key: PublicKey,
    /// Name, addresses, capacity.
    pub endpoint: Endpoint,
    /// Where it stands.
    pub standing: Standing,
    /// Voting power in the newest set; 0 for an observer.
    pub power: u64,
    /// How many of the current listings it attested.
    pub held_count: u64,
    /// Height of its last attestation, 0 when it never attested.
    pub attested_height: u64,
    /// Bytes of its open candidates.
    pub open_bytes: u64,
    /// Its open candidates.
    pub open_count: u32,
}

/// Where a key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Asked to be admitted.
    Registered {
        /// Validators that voted for it.
        votes: MemberSet,
        /// After this height the registration is void.
        expires_height: u64,
    },
    /// A member: observer when its power is 0, validator otherwise.
    Admitted {
        /// Its number, never given to another.
        index: u32,
    },
    /// Signed twice at one height. Never comes back.
    Expelled,
}

impl Member {
    /// Its number, if it is admitted.
    pub fn index(&self) -> Option<u32> {
        match self.standing {
            Standing::Admitted { index } => Some(index),
            _ => None,
        }
    }

    /// Admitted, with or without power.
    pub fn is_admitted(&self) -> bool {
        self.index().is_some()
    }

    /// Admitted and without power.
    pub fn is_observer(&self) -> bool {
        self.is_admitted() && self.power == 0
    }

    /// Admitted and with power.
    pub fn is_validator(&self) -> bool {
        self.is_admitted() && self.power > 0
    }
}

/// An offered listing that is not yet one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What the owner said of the data.
    pub offer: Offer,
    /// Who offered it.
    pub owner: PublicKey,
    /// The owner's member number at the time.
    pub owner_index: u32,
    /// Offers before it.
    pub offer_seq: u64,
    /// Height of the offer.
    pub offered_height: u64,
    /// After this height it is void.
    pub expires_height: u64,
}

impl Candidate {
    /// Its identity.
    pub fn id(&self) -> DataHash {
        self.offer.infohash_v2
    }

    /// Void at `height`, though perhaps not yet dropped from the state: expiry is lazy.
    pub fn is_expired(&self, height: u64) -> bool {
        height > self.expires_height
    }
}

/// A market entry: one torrent that every member mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// What the owner said of the data, confirmed by more than two thirds of the power.
    pub offer: Offer,
    /// Who may remove it.
    pub owner: PublicKey,
    /// Promotions before it: dense over all listings that ever were.
    pub seq: u64,
    /// Height of the offer.
    pub offered_height: u64,
    /// Height of the promotion.
    pub promoted_height: u64,
}

impl Listing {
    /// Its identity.
    pub fn id(&self) -> DataHash {
        self.offer.infohash_v2
    }
}

/// What is left of a removed listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The identity it had.
    pub id: DataHash,
    /// The sequence number it had.
    pub seq: u64,
    /// Who removed it.
    pub owner: PublicKey,
    /// Bytes it had.
    pub size_bytes: u64,
    /// Height of the removal: from here on nobody serves it.
    pub removed_height: u64,
    /// From this height on its bytes may go, and it may be offered again.
    pub purge_height: u64,
}

/// A set of member numbers, as a bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberSet {
    /// The last word is never 0.
    words: Vec<u64>,
}

impl MemberSet {
    /// Whether `index` is in it.
    pub fn contains(&self, index: u32) -> bool {
        let (word, bit) = Self::place(index);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Puts `index` in; false when it was in already.
    pub(crate) fn insert(&mut self, index: u32) -> bool {
        let (place, bit) = Self::place(index);
        if self.words.len() <= place {
            self.words.resize(place.saturating_add(1), 0);
        }
        let Some(word) = self.words.get_mut(place) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Takes `index` out; false when it was not in.
    pub(crate) fn remove(&mut self, index: u32) -> bool {
        let (place, bit) = Self::place(index);
        let Some(word) = self.words.get_mut(place) else { return false };
        let was_in = *word & bit != 0;
        *word &= !bit;
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
        was_in
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let numbers = (0..MEMBER_INDEX_MAX).step_by(64).zip(&self.words);
        numbers.flat_map(|(base, word)| {
            (0..64u32).filter(move |bit| (word >> bit) & 1 == 1).map(move |bit| base | bit)
        })
    }

    fn place(index: u32) -> (usize, u64) {
        let word = usize::try_from(index >> 6).unwrap_or(usize::MAX >> 1);
        (word, 1 << (index & 63))
    }

    fn write(&self, writer: &mut Writer) {
        writer.u16(u16::try_from(self.words.len()).unwrap_or(u16::MAX));
        self.words.iter().for_each(|word| {
            writer.u64(*word);
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.u16("member set")?;
        let words: Vec<u64> =
            (0..count).map(|_| reader.u64("member set")).collect::<Result<_, _>>()?;
        if words.last() == Some(&0) {
            return Err(field_error("member set", "ends in an empty word"));
        }
        if u32::from(count) > MEMBER_INDEX_MAX >> 6 {
            return Err(field_error("member set", "holds numbers above the greatest"));
        }
        Ok(Self { words })
    }
}

impl Record {
    /// The canonical bytes of the value; what the key says is not repeated in them.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Market(market) => {
                w.text(&market.name).bytes(&market.genesis.0);
            }
            Self::Params(params) => params.write(&mut w),
            Self::Counters(c) => {
                w.u32(c.next_member_index).u32(c.member_count).u32(c.registration_count);
                w.u64(c.next_offer_seq).u64(c.candidate_count);
                w.u64(c.next_listing_seq).u64(c.listing_count);
            }
            Self::Validators(history) => write_validators(history, &mut w),
            Self::TrustWindow(window) => {
                w.u32(u32::try_from(window.added.len()).unwrap_or(u32::MAX));
                window.added.iter().for_each(|(height, power)| {
                    w.u64(*height).u64(*power);
                });
            }
            Self::Member(member) => member.write(&mut w),
            Self::MemberIndex(key) | Self::MemberName(key) => {
                w.bytes(&key.0);
            }
            Self::Nonce(nonce) => {
                w.u64(*nonce);
            }
            Self::Candidate(c) => {
                c.offer.write(&mut w);
                w.bytes(&c.owner.0).u32(c.owner_index).u64(c.offer_seq);
                w.u64(c.offered_height).u64(c.expires_height);
            }
            Self::CandidateSeq(id) | Self::ListingSeq(id) => {
                w.bytes(&id.0);
            }
            Self::Listing(l) => {
                l.offer.write(&mut w);
                w.bytes(&l.owner.0).u64(l.seq).u64(l.offered_height).u64(l.promoted_height);
            }
            Self::Holders(set) => set.write(&mut w),
            Self::Tombstone(t) => {
                w.u64(t.seq).bytes(&t.owner.0).u64(t.size_bytes);
                w.u64(t.removed_height).u64(t.purge_height);
            }
        }
        w.into_bytes()
    }

    /// Reads the value of `key`.
    pub(crate) fn decode(key: &StateKey, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let record = match *key {
            StateKey::Market => Self::Market(Market {
                name: r.text(crate::genesis::MARKET_NAME_LEN_MAX, "market name")?,
                genesis: GenesisHash(r.array("genesis hash")?),
            }),
            StateKey::Params => Self::Params(Params::read(&mut r)?),
            StateKey::Counters => Self::Counters(Counters {
                next_member_index: r.u32("counters")?,
                member_count: r.u32("counters")?,
                registration_count: r.u32("counters")?,
                next_offer_seq: r.u64("counters")?,
                candidate_count: r.u64("counters")?,
                next_listing_seq: r.u64("counters")?,
                listing_count: r.u64("counters")?,
            }),
            StateKey::Validators => Self::Validators(read_validators(&mut r)?),
            StateKey::TrustWindow => {
                let count = r.u32("trust window")?;
                let added =
                    (0..count).map(|_| Ok((r.u64("trust window")?, r.u64("trust window")?)));
                Self::TrustWindow(TrustWindow { added: added.collect::<Result<_, DecodeError>>()? })
            }
            StateKey::Member(key) => Self::Member(Member::read(key, &mut r)?),
            StateKey::MemberIndex(_) => Self::MemberIndex(PublicKey(r.array("member key")?)),
            StateKey::MemberName(_) => Self::MemberName(PublicKey(r.array("member key")?)),
            StateKey::Nonce(_) => Self::Nonce(r.u64("nonce")?),
            StateKey::Candidate(id) => Self::Candidate(Candidate {
                offer: offer_of(id, &mut r)?,
                owner: PublicKey(r.array("owner")?),
                owner_index: r.u32("owner index")?,
                offer_seq: r.u64("offer sequence")?,
                offered_height: r.u64("offered height")?,
                expires_height: r.u64("expiry height")?,
            }),
            StateKey::CandidateSeq(_) => Self::CandidateSeq(DataHash(r.array("candidate")?)),
            StateKey::Listing(id) => Self::Listing(Listing {
                offer: offer_of(id, &mut r)?,
                owner: PublicKey(r.array("owner")?),
                seq: r.u64("listing sequence")?,
                offered_height: r.u64("offered height")?,
                promoted_height: r.u64("promoted height")?,
            }),
            StateKey::ListingSeq(_) => Self::ListingSeq(DataHash(r.array("listing")?)),
            StateKey::Holders(_) => Self::Holders(MemberSet::read(&mut r)?),
            StateKey::Tombstone(id) => Self::Tombstone(Tombstone {
                id,
                seq: r.u64("listing sequence")?,
                owner: PublicKey(r.array("owner")?),
                size_bytes: r.u64("size")?,
                removed_height: r.u64("removed height")?,
                purge_height: r.u64("purge height")?,
            }),
        };
        r.finish()?;
        Ok(record)
    }
}

/// A number above the greatest would make its set as large as it says.
fn read_index(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let index = reader.u32("member index")?;
    match index < MEMBER_INDEX_MAX {
        true => Ok(index),
        false => Err(field_error("member index", "is above the greatest")),
    }
}

/// An offer says its identity itself; under another key it would be a second meaning.
fn offer_of(id: DataHash, reader: &mut Reader<'_>) -> Result<Offer, DecodeError> {
    let offer = Offer::read(reader)?;
    if offer.infohash_v2 != id {
        return Err(field_error("infohash v2", "is not that of the key"));
    }
    Ok(offer)
}

impl Member {
    fn write(&self, w: &mut Writer) {
        self.endpoint.write(w);
        match &self.standing {
            Standing::Registered { votes, expires_height } => {
                votes.write(w.u8(1).u64(*expires_height));
            }
            Standing::Admitted { index } => {
                w.u8(2).u32(*index);
            }
            Standing::Expelled => {
                w.u8(3);
            }
        }
        w.u64(self.power).u64(self.held_count).u64(self.attested_height);
        w.u64(self.open_bytes).u32(self.open_count);
    }

    fn read(key: PublicKey, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            key,
            endpoint: Endpoint::read(r)?,
            standing: match r.u8("standing")? {
                1 => {
                    let expires_height = r.u64("expiry height")?;
                    Standing::Registered { votes: MemberSet::read(r)?, expires_height }
                }
                2 => Standing::Admitted { index: read_index(r)? },
                3 => Standing::Expelled,
                _ => return Err(field_error("standing", "is not known")),
            },
            power: r.u64("power")?,
            held_count: r.u64("held count")?,
            attested_height: r.u64("attested height")?,
            open_bytes: r.u64("open bytes")?,
            open_count: r.u32("open count")?,
        })
    }
}

fn write_validators(history: &ValidatorHistory, w: &mut Writer) {
    w.u8(u8::try_from(history.changes.len()).unwrap_or(u8::MAX));
    for change in &history.changes {
        w.u64(change.height).u8(u8::try_from(change.validators.len()).unwrap_or(u8::MAX));
        for validator in &change.validators {
            w.bytes(&validator.key.0).u32(validator.index).u64(validator.power);
        }
    }
}

fn read_validators(r: &mut Reader<'_>) -> Result<ValidatorHistory, DecodeError> {
    let count = usize::from(r.u8("validators")?);
    if !(1..=ValidatorHistory::LEN_MAX).contains(&count) {
        return Err(field_error("validators", "keep 1 to 3 sets"));
    }
    let mut changes: Vec<SetChange> = Vec::new();
    for _ in 0..count {
        let height = r.u64("validators")?;
        let len = usize::from(r.u8("validators")?);
        if !(1..=VALIDATORS_MAX).contains(&len) {
            return Err(field_error("validators", "are none or too many"));
        }
        let mut validators: Vec<Validator> = Vec::new();
        for _ in 0..len {
            validators.push(Validator {
                key: PublicKey(r.array("validators")?),
                index: read_index(r)?,
                power: r.u64("validators")?,
            });
        }
        if !validators.is_sorted_by(|a, b| a.key < b.key) {
            return Err(field_error("validators", "are not sorted by key"));
        }
        if validators.iter().any(|v| !(1..=POWER_MAX).contains(&v.power)) {
            return Err(field_error("validators", "have a power out of bounds"));
        }
        changes.push(SetChange { height, validators });
    }
    if !changes.is_sorted_by(|a, b| a.height < b.height) {
        return Err(field_error("validators", "are not sorted by height"));
    }
    Ok(ValidatorHistory { changes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = StateKey> {
        let near = |n: u8| {
            let mut id = [0; 32];
            id[31] = n;
            id
        };
        (1u8..=15, any::<u64>(), any::<u8>()).prop_map(move |(tag, number, n)| match tag {
            1 => StateKey::Market,
            2 => StateKey::Params,
            3 => StateKey::Counters,
            4 => StateKey::Validators,
            5 => StateKey::TrustWindow,
            6 => StateKey::Member(PublicKey(near(n))),
            7 => StateKey::MemberIndex((number >> 32) as u32),
            8 => StateKey::Nonce(PublicKey(near(n))),
            9 => StateKey::Candidate(DataHash(near(n))),
            10 => StateKey::CandidateSeq(number),
            11 => StateKey::Listing(DataHash(near(n))),
            12 => StateKey::ListingSeq(number),
            13 => StateKey::Holders(DataHash(near(n))),
            14 => StateKey::Tombstone(DataHash(near(n))),
            _ => StateKey::MemberName(near(n)),
        })
    }

    proptest! {
        /// A sorted walk over the map is the sorted stream of the bytes.
        #[test]
        fn keys_are_ordered_as_their_bytes(a in any_key(), b in any_key()) {
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(StateKey::decode(&a.to_bytes()), Ok(a));
        }

        #[test]
        fn a_member_set_is_a_set(edits in proptest::collection::vec((0u32..200, any::<bool>()), 0..60)) {
            let mut set = MemberSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (index, is_in) in edits {
                let changed = if is_in { set.insert(index) } else { set.remove(index) };
                let expected = if is_in { model.insert(index) } else { model.remove(&index) };
                prop_assert_eq!(changed, expected);
                prop_assert_eq!(set.contains(index), is_in);
                prop_assert!(set.iter().eq(model.iter().copied()));
            }
            let bytes = Record::Holders(set.clone()).to_bytes();
            let key = StateKey::Holders(DataHash([0; 32]));
            prop_assert_eq!(Record::decode(&key, &bytes), Ok(Record::Holders(set)));
        }
    }

    #[test]
    fn values_have_one_encoding() {
        let holders = StateKey::Holders(DataHash([0; 32]));
        let padded = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(Record::decode(&holders, &padded).is_err(), "a set does not end in an empty word");
        assert!(Record::decode(&holders, &[0, 0, 0]).is_err(), "nothing follows a value");
        let validators = |keys: [u8; 2]| {
            let validators =
                keys.map(|n| Validator { key: PublicKey([n; 32]), index: 0, power: 1 }).to_vec();
            let changes = vec![SetChange { height: 0, validators }];
            Record::Validators(ValidatorHistory { changes }).to_bytes()
        };
        assert!(Record::decode(&StateKey::Validators, &validators([1, 2])).is_ok());
        assert!(Record::decode(&StateKey::Validators, &validators([2, 1])).is_err(), "sorted");
        assert!(Record::decode(&StateKey::Validators, &validators([1, 1])).is_err(), "unique");
    }
}
