//! What holds for every transaction and every history.

mod support;

use std::collections::BTreeSet;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use ringseed_ledger::{
    Addr, DataHash, DecidedBlock, Delta, Endpoint, InfoHashV1, Misbehaviour, Offer, PendingNonces,
    Proof, PublicKey, Signature, SnapshotError, State, StateKey, Tx, TxBody, TxCode,
};
use support::*;

fn any_addr() -> impl Strategy<Value = Addr> {
    let v4 = any::<[u8; 4]>().prop_map(std::net::IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(std::net::IpAddr::from);
    (prop_oneof![v4, v6], any::<u16>())
        .prop_filter_map("no address of one host", |(ip, port)| Addr::new((ip, port).into()).ok())
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    ("[A-Za-z0-9._-]{1,32}", any_addr(), any_addr(), any::<u64>()).prop_map(
        |(name, consensus_addr, payload_addr, capacity)| Endpoint {
            name,
            consensus_addr,
            payload_addr,
            capacity,
        },
    )
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let hashes = (any::<[u8; 32]>(), any::<[u8; 20]>());
    let name = "[^\\p{Cc}]{1,32}";
    (hashes, 1u64.., 1u32.., 14u8..=30, name).prop_map(
        |(hashes, size_bytes, file_count, piece_len_log2, name)| Offer {
            infohash_v2: DataHash(hashes.0),
            infohash_v1: InfoHashV1(hashes.1),
            size_bytes,
            file_count,
            piece_len_log2,
            name,
        },
    )
}

fn any_body() -> impl Strategy<Value = TxBody> {
    let ids = || btree_set(any::<[u8; 32]>().prop_map(DataHash), 0..20);
    prop_oneof![
        any_endpoint().prop_map(TxBody::Register),
        any_endpoint().prop_map(TxBody::UpdateEndpoint),
        Just(TxBody::Leave),
        any::<[u8; 32]>().prop_map(|key| TxBody::Admit { member: PublicKey(key) }),
        any_offer().prop_map(TxBody::Candidate),
        (ids(), ids()).prop_map(|(have, withdrawn)| {
            let withdrawn = withdrawn.difference(&have).copied().collect();
            TxBody::attest(have.into_iter().collect(), withdrawn)
        }),
        any::<[u8; 32]>().prop_map(|id| TxBody::Remove { listing: DataHash(id) }),
    ]
}

fn any_tx() -> impl Strategy<Value = Tx> {
    let signature = any::<[u8; 32]>().prop_map(|half| {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&half);
        Signature(signature)
    });
    (any::<[u8; 32]>(), any::<u64>(), any::<u64>(), any_body(), signature).prop_map(
        |(signer, nonce, valid_until_height, body, signature)| Tx {
            signer: PublicKey(signer),
            nonce,
            valid_until_height,
            body,
            signature,
        },
    )
}

proptest! {
    #[test]
    fn transactions_round_trip(tx in any_tx()) {
        let bytes = tx.to_bytes();
        prop_assert_eq!(Tx::decode(&bytes), Ok(tx));
    }

    /// No second byte string means the same: whatever decodes is what its meaning encodes to.
    #[test]
    fn an_edited_transaction_is_canonical_or_refused(
        tx in any_tx(), place in any::<prop::sample::Index>(), value: u8, cut in 0usize..4, more in vec(any::<u8>(), 0..4)
    ) {
        let mut bytes = tx.to_bytes();
        let place = place.index(bytes.len());
        bytes[place] = value;
        bytes.truncate(bytes.len() - cut);
        bytes.extend(more);
        if let Ok(tx) = Tx::decode(&bytes) {
            prop_assert_eq!(tx.to_bytes(), bytes);
        }
    }

    #[test]
    fn decoders_never_panic(bytes in vec(any::<u8>(), 0..400), start in 0usize..3) {
        let magic: &[u8] = [b"RSTX\x01\x06".as_slice(), b"RSDL\x01", b"RSSN\x01"][start];
        for bytes in [bytes.clone(), [magic, &bytes].concat()] {
            if let Ok(tx) = Tx::decode(&bytes) {
                prop_assert_eq!(tx.to_bytes(), &bytes[..]);
            }
            if let Ok(delta) = Delta::decode(&bytes) {
                prop_assert_eq!(delta.to_bytes(), &bytes[..]);
            }
            if let Ok(proof) = Proof::decode(&bytes) {
                prop_assert_eq!(proof.to_bytes(), &bytes[..]);
            }
            if let Ok(key) = StateKey::decode(&bytes) {
                prop_assert_eq!(key.to_bytes(), &bytes[..]);
            }
            let trusted = World::new(&[1]).state.app_hash();
            prop_assert!(State::from_snapshot(&bytes, &trusted).is_err());
        }
    }
}

/// What one signer does; keys and ids by number, few of each, so that they meet.
#[derive(Clone, Debug)]
enum Act {
    Do(u8, TxBody),
    /// A transaction with a nonce that is off by this.
    OffBy(u8, u64),
    Junk(Vec<u8>),
    Misbehave(u8),
}

const KEYS: u8 = 8;

fn any_act() -> impl Strategy<Value = Act> {
    let signer = || 0..KEYS;
    let ids = || vec(0u8..10, 0..6);
    let body = prop_oneof![
        2 => (0..KEYS).prop_map(register),
        3 => (0..KEYS).prop_map(admit),
        1 => Just(TxBody::Leave),
        6 => (0u8..10, 1u64..1_200).prop_map(|(n, size)| TxBody::Candidate(offer_of_size(n, size))),
        12 => ids().prop_map(|ids| have(&ids)),
        2 => ids().prop_map(|ids| withdraw(&ids)),
        2 => (0u8..10).prop_map(remove),
    ];
    prop_oneof![
        40 => (signer(), body).prop_map(|(n, body)| Act::Do(n, match body {
            // A signer registers under its own name.
            TxBody::Register(_) => register(n),
            body => body,
        })),
        1 => (signer(), prop_oneof![Just(u64::MAX), Just(1u64)]).prop_map(|(n, off)| Act::OffBy(n, off)),
        1 => vec(any::<u8>(), 0..50).prop_map(Act::Junk),
        1 => signer().prop_map(Act::Misbehave),
    ]
}

fn any_history() -> impl Strategy<Value = Vec<Vec<Act>>> {
    vec(vec(any_act(), 0..12), 1..40)
}

fn block_of(world: &World, acts: &[Act]) -> DecidedBlock {
    let mut block = world.block(Vec::new());
    let mut bodies = Vec::new();
    for act in acts {
        match act {
            Act::Do(n, body) => bodies.push((*n, body.clone())),
            Act::OffBy(n, off) => {
                let nonce = world.state.nonce(&public(*n)).wrapping_add(1).wrapping_add(*off);
                block.txs.push(world.tx_at(*n, nonce, have(&[])));
            }
            Act::Junk(bytes) => block.txs.push(bytes.clone()),
            Act::Misbehave(n) => block
                .misbehaviour
                .push(Misbehaviour { validator: public(*n), height: world.state.height() }),
        }
    }
    block.txs.extend(world.txs(bodies));
    block
}

/// Totals that the state keeps against what they are totals of.
fn check_totals(state: &State) {
    let validators = state.validators();
    assert!((1..=50).contains(&validators.len()));
    let powered: BTreeSet<_> =
        state.members().filter(|m| m.power > 0).map(|m| (m.key, m.power)).collect();
    assert_eq!(powered, validators.iter().map(|v| (v.key, v.power)).collect());
    let listings: Vec<_> = state.listings(0).collect();
    assert_eq!(listings.len() as u64, state.listing_count());
    for member in state.members() {
        let is_of_name = |m: &ringseed_ledger::Member| m.key == member.key;
        assert_eq!(
            member.is_admitted(),
            state.member_by_name(&member.endpoint.name).is_some_and(is_of_name)
        );
        let held = listings.iter().filter(|l| state.is_holder(&l.id(), &member.key)).count();
        assert!(!member.is_admitted() || member.held_count == held as u64);
        // Void candidates that lazy expiry has not reached yet still count.
        let open = state.candidates().filter(|c| Some(c.owner_index) == member.index());
        let open: u64 = open.map(|c| c.offer.size_bytes).sum();
        assert!(!member.is_admitted() || member.open_bytes >= open);
        assert!(member.open_bytes <= state.params().open_candidate_bytes_max);
    }
    for listing in &listings {
        assert!(
            state.candidate(&listing.id()).is_none() && state.tombstone(&listing.id()).is_none()
        );
    }
    for candidate in state.candidates() {
        let attested = state.attested_power(&candidate.id());
        assert!(attested * 3 <= state.total_power() * 2, "nothing waits that could be promoted");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The same blocks give the same app hash: executed, replayed from the deltas' bytes, and carried
    /// on from a snapshot.
    #[test]
    fn histories_are_deterministic(history in any_history(), at in any::<prop::sample::Index>()) {
        let mut world = World::new(&[1, 1, 1, 1]);
        let mut replayed = world.state.clone();
        let mut restored: Option<State> = None;
        let at = at.index(history.len());
        for (index, acts) in history.iter().enumerate() {
            let block = block_of(&world, acts);
            let outcome = world.state.execute(&block);
            prop_assert_eq!(&world.state.execute(&block), &outcome);
            prop_assert_eq!(outcome.results.len(), block.txs.len());
            let bytes = outcome.delta.to_bytes();
            let delta = Delta::decode(&bytes).unwrap();
            prop_assert_eq!(delta.to_bytes(), bytes);
            replayed.commit(&delta).unwrap();
            if let Some(state) = &mut restored {
                prop_assert_eq!(&state.execute(&block), &outcome);
                state.commit(&delta).unwrap();
            }
            let before = world.state.app_hash();
            let outcome = world.commit(&block);
            prop_assert_eq!(outcome.delta.is_empty(), before == outcome.app_hash);
            if block.misbehaviour.is_empty() && outcome.results.iter().all(|r| r.code != TxCode::Ok) {
                prop_assert!(outcome.delta.is_empty());
            }
            check_totals(&world.state);
            if index == at {
                let snapshot = world.state.to_snapshot();
                restored = Some(State::from_snapshot(&snapshot, &outcome.app_hash).unwrap());
            }
        }
        let snapshot = world.state.to_snapshot();
        prop_assert_eq!(replayed.to_snapshot(), snapshot.clone());
        prop_assert_eq!(restored.unwrap().to_snapshot(), snapshot);
    }

    /// What a proposer prepares succeeds whole, and voters accept it; what the mempool takes in from
    /// a signer with nothing pending does succeed alone.
    #[test]
    fn proposals_are_accepted(history in any_history()) {
        let mut world = World::new(&[1, 1, 1, 1]);
        for acts in &history {
            let mut block = block_of(&world, acts);
            for tx in &block.txs {
                if world.state.check_tx(tx, &PendingNonces::new()).is_ok() {
                    let mut alone = world.block(vec![tx.clone()]);
                    alone.proposer = public(3);
                    prop_assert!(world.state.execute(&alone).results[0].is_ok());
                }
            }
            block.txs = world.state.prepare(&block);
            prop_assert_eq!(world.state.process(&block), Ok(()));
            let outcome = world.commit(&block);
            prop_assert!(outcome.results.iter().all(|result| result.is_ok()));
        }
    }

    /// An altered snapshot is refused; only its height is not under the app hash.
    #[test]
    fn altered_snapshots_are_refused(history in any_history(), place in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut world = World::new(&[1, 1, 1, 1]);
        for acts in &history {
            let block = block_of(&world, acts);
            world.commit(&block);
        }
        let (good, hash) = (world.state.to_snapshot(), world.state.app_hash());
        let place = place.index(good.len());
        let mut bytes = good.clone();
        bytes[place] ^= flip;
        let restored = State::from_snapshot(&bytes, &hash);
        prop_assert!((5..13).contains(&place) || restored.is_err(), "byte {}", place);
        prop_assert!(State::from_snapshot(&good[..place], &hash).is_err());
        let other = State::from_snapshot(&good, &World::new(&[1]).state.app_hash());
        let is_other = matches!(other, Err(SnapshotError::AppHash { .. }));
        prop_assert!(is_other);
    }

    #[test]
    fn proofs_hold_for_every_key(history in any_history()) {
        let mut world = World::new(&[1, 1, 1, 1]);
        for acts in &history {
            let block = block_of(&world, acts);
            world.commit(&block);
        }
        let root = world.state.app_hash();
        let ids = (0..12).map(id);
        let keys = ids.flat_map(|id| [StateKey::Listing(id), StateKey::Holders(id), StateKey::Tombstone(id)]);
        for key in keys.chain((0..12).map(|n| StateKey::Nonce(public(n)))) {
            let value = world.state.value(&key);
            let proof = Proof::decode(&world.state.proof(&key).to_bytes()).unwrap();
            prop_assert_eq!(proof.verify(&root, &key, value.as_deref()), Ok(()));
            let wrong = if value.is_some() { None } else { Some(b"".as_slice()) };
            prop_assert!(proof.verify(&root, &key, wrong).is_err());
        }
    }
}
