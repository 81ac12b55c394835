//! Every rule of the market, and what happens right beside its bound.

mod support;

use ringseed_ledger::{
    BadSignature, CommitError, DataHash, Genesis, PENDING_PER_SIGNER_MAX, Params, PendingNonces,
    ProposalFault, PublicKey, Signature, Standing, State, StateKey, TX_LEN_MAX, Tx, TxBody, TxCode,
    VALID_AHEAD_HEIGHTS_MAX, is_over_two_thirds,
};
use support::*;

// Transactions

#[test]
fn a_bad_signature_is_refused() {
    let mut world = World::new(&[1]);
    let mut tx = world.tx_at(0, 1, offer(1));
    *tx.last_mut().unwrap() ^= 1;
    assert_eq!(world.raw(vec![tx]), [TxCode::BadSignature]);
    let mut tx = world.tx_at(0, 1, offer(1));
    let name = tx.len() - 65; // Last byte of the name, before the signature.
    tx[name] = b'X';
    assert_eq!(world.raw(vec![tx]), [TxCode::BadSignature]);
    assert_eq!(world.state.nonce(&public(0)), 0);
}

/// Other verifiers accept these: batch ones, those without the strict rule, or those that do not
/// reduce S. One accepting node among refusing ones would part the market.
#[test]
fn signatures_follow_one_rule() {
    // The identity as key and as R, S = 0: verifies every message where small orders are allowed.
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    assert!(!PublicKey(identity).is_usable());
    assert_eq!(PublicKey(identity).verify(b"any", &Signature(signature)), Err(BadSignature));
    // S + L in place of S.
    let order = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
    let order: DataHash = order.parse().unwrap();
    let mut signature = key(0).sign(b"any");
    public(0).verify(b"any", &signature).unwrap();
    let mut carry = 0;
    for (byte, add) in signature.0[32..].iter_mut().zip(order.0) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    assert_eq!(public(0).verify(b"any", &signature), Err(BadSignature));
    // A key that is no point: 2 is no coordinate of one.
    let mut no_point = [0; 32];
    no_point[0] = 2;
    assert_eq!(PublicKey(no_point).verify(b"any", &key(0).sign(b"any")), Err(BadSignature));
}

#[test]
fn a_secret_key_is_not_printed() {
    let text = format!("{:?}", key(0));
    assert!(text.contains(&public(0).to_string()) && !text.contains(&"01".repeat(32)));
}

#[test]
fn another_market_of_the_same_name_replays_nothing() {
    let other = World::with(&[1], Params { removal_grace_heights: 6, ..params() });
    let mut world = World::new(&[1]);
    assert_eq!(other.state.market(), world.state.market());
    assert_ne!(other.state.chain_id(), world.state.chain_id());
    assert_eq!(world.raw(vec![other.tx_at(0, 1, offer(1))]), [TxCode::BadSignature]);
}

#[test]
fn the_nonce_is_strictly_the_next() {
    let mut world = World::new(&[1]);
    let first = world.tx_at(0, 1, offer(1));
    assert_eq!(world.raw(vec![world.tx_at(0, 0, offer(1))]), [TxCode::NonceUsed]);
    assert_eq!(world.raw(vec![world.tx_at(0, 2, offer(1))]), [TxCode::NonceAhead]);
    assert_eq!(world.raw(vec![world.tx_at(0, u64::MAX, offer(1))]), [TxCode::NonceAhead]);
    // Twice in one block, and again later.
    assert_eq!(world.raw(vec![first.clone(), first.clone()]), [TxCode::Ok, TxCode::NonceUsed]);
    assert_eq!(world.raw(vec![first]), [TxCode::NonceUsed]);
}

#[test]
fn a_refused_transaction_keeps_its_nonce() {
    let mut world = World::new(&[1, 1, 1]);
    assert_eq!(
        world.run(vec![(0, remove(9)), (0, offer(1))]),
        [TxCode::NotListed, TxCode::NonceAhead]
    );
    assert_eq!(world.one(0, offer(1)), TxCode::Ok);
}

#[test]
fn a_transaction_is_valid_for_a_span_of_heights() {
    let mut world = World::new(&[1]);
    world.empty_blocks(5);
    let genesis = world.genesis.hash();
    let until = |height| Tx::sign(&key(0), &genesis, 1, height, offer(1)).unwrap().to_bytes();
    let height = world.next_height();
    assert_eq!(world.raw(vec![until(height - 1)]), [TxCode::Expired]);
    let height = world.next_height();
    let far = height + VALID_AHEAD_HEIGHTS_MAX;
    assert_eq!(world.raw(vec![until(far + 1), until(far)]), [TxCode::ValidTooLong, TxCode::Ok]);
    assert_eq!(World::new(&[1]).raw(vec![until(1)]), [TxCode::Ok], "its last height is a good one");
}

#[test]
fn junk_changes_nothing() {
    let mut world = World::new(&[1]);
    world.must(vec![(0, offer(1))]);
    let before = world.state.app_hash();
    let codes = world.raw(vec![Vec::new(), vec![0xaa; 1 << 20], vec![0xaa; 1 << 22], vec![0; 300]]);
    assert_eq!(codes[0], TxCode::Malformed);
    assert_eq!(codes[1..3], [TxCode::TooLarge; 2], "told by length, and takes no room");
    assert_eq!(codes[3], TxCode::Malformed);
    assert_eq!(world.state.app_hash(), before);
}

#[test]
fn each_piece_of_junk_has_its_code() {
    let mut world = World::new(&[1]);
    let good = world.tx_at(0, 1, offer(1));
    let edited = |place: usize, value: u8| {
        let mut tx = good.clone();
        tx[place] = value;
        tx
    };
    let mut trailing = good.clone();
    trailing.push(0);
    let txs = vec![
        vec![0xaa; TX_LEN_MAX + 1],
        vec![0xaa; TX_LEN_MAX],
        trailing,
        good[..good.len() - 1].to_vec(),
        edited(0, b'X'),
        edited(4, 2),
        edited(5, 99),
        good.clone(),
    ];
    let expected = [
        TxCode::TooLarge,
        TxCode::Malformed,
        TxCode::Malformed,
        TxCode::Malformed,
        TxCode::Malformed,
        TxCode::UnknownVersion,
        TxCode::UnknownKind,
        TxCode::Ok,
    ];
    assert_eq!(world.raw(txs), expected);
}

#[test]
fn a_block_executes_no_more_bytes_than_it_may_hold() {
    let mut world = World::new(&[1]);
    let mut txs = vec![vec![0; TX_LEN_MAX]; 16];
    txs.push(world.tx_at(0, 1, offer(1)));
    assert_eq!(world.raw(txs).last(), Some(&TxCode::BlockFull));
}

// Members

#[test]
fn more_than_two_thirds_of_the_power_admit() {
    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(9, register(9))]);
    let stranger = world.state.member(&public(9)).unwrap();
    assert!(matches!(stranger.standing, Standing::Registered { .. }));
    assert_eq!(world.run(vec![(0, admit(9)), (1, admit(9))]), [TxCode::Ok; 2]);
    assert!(!world.state.member(&public(9)).unwrap().is_admitted(), "two thirds are not enough");
    assert_eq!(world.one(0, admit(9)), TxCode::AlreadyVoted);
    assert_eq!(world.one(2, admit(9)), TxCode::Ok);
    assert!(world.state.member(&public(9)).unwrap().is_observer());
    assert_eq!(world.one(0, admit(9)), TxCode::AlreadyAdmitted);
}

#[test]
fn only_validators_admit_and_only_the_registered() {
    let mut world = World::new(&[1]);
    world.admit(8, &[0]);
    world.must(vec![(9, register(9))]);
    assert_eq!(world.one(8, admit(9)), TxCode::NotValidator);
    assert_eq!(world.one(9, admit(9)), TxCode::NotMember);
    assert_eq!(world.one(0, admit(7)), TxCode::NotRegistered);
}

#[test]
fn strangers_may_register_and_nothing_else() {
    let mut world = World::new(&[1]);
    assert_eq!(world.one(9, offer(1)), TxCode::NotMember);
    assert_eq!(world.one(9, TxBody::UpdateEndpoint(endpoint(9))), TxCode::NotMember);
    assert_eq!(world.one(9, TxBody::Leave), TxCode::NotRegistered);
    assert_eq!(world.one(9, register(9)), TxCode::Ok);
    assert_eq!(world.one(9, register(9)), TxCode::AlreadyRegistered);
    assert_eq!(world.one(9, offer(1)), TxCode::NotMember);
    assert_eq!(world.one(9, have(&[])), TxCode::NotMember);
    assert_eq!(world.one(9, TxBody::UpdateEndpoint(endpoint(9))), TxCode::NotMember);
    assert_eq!(world.one(9, TxBody::Leave), TxCode::Ok);
    assert!(world.state.member(&public(9)).is_none());
    assert_eq!(world.state.nonce(&public(9)), 2, "a nonce outlives its registration");
}

#[test]
fn names_are_unique_among_members() {
    let mut world = World::new(&[1, 1, 1]);
    let named = |name: &str| {
        let mut endpoint = endpoint(9);
        endpoint.name = name.into();
        endpoint
    };
    assert_eq!(world.one(9, TxBody::Register(named("node0"))), TxCode::NameTaken);
    // A registration holds no name; an admission does.
    world.must(vec![(9, TxBody::Register(named("new"))), (8, TxBody::Register(named("new")))]);
    world.must(vec![(0, admit(9)), (1, admit(9)), (2, admit(9))]);
    assert_eq!(world.one(0, admit(8)), TxCode::NameTaken);
    assert_eq!(world.one(9, TxBody::UpdateEndpoint(named("node0"))), TxCode::NameTaken);
    assert_eq!(world.one(9, TxBody::UpdateEndpoint(named("other"))), TxCode::Ok);
    assert_eq!(world.state.member(&public(9)).unwrap().endpoint.name, "other");
    assert_eq!(world.state.member_by_name("other").unwrap().key, public(9));
    assert!(world.state.member_by_name("new").is_none(), "free again");
    world.must(vec![(0, admit(8)), (1, admit(8)), (2, admit(8))]);
    assert_eq!(world.state.member_by_name("new").unwrap().key, public(8));
    world.must(vec![(8, TxBody::Leave)]);
    assert_eq!(world.one(9, TxBody::UpdateEndpoint(named("new"))), TxCode::Ok);
}

#[test]
fn registrations_are_bounded_and_expire() {
    let params = Params { registrations_max: 2, registration_expiry_heights: 10_000, ..params() };
    let mut world = World::with(&[1], params);
    world.must(vec![(8, register(8))]);
    world.must(vec![(9, register(9))]);
    assert_eq!(world.one(10, register(10)), TxCode::RegistrationsFull);
    let expires = 1 + 10_000;
    world.empty_blocks(expires - world.state.height() - 1);
    assert_eq!(world.one(10, register(10)), TxCode::RegistrationsFull, "its last height");
    assert_eq!(world.one(0, admit(8)), TxCode::NotRegistered, "one height later it is void");
    assert_eq!(world.one(10, register(10)), TxCode::Ok);
    assert!(world.state.member(&public(8)).is_none());
    assert_eq!(world.state.nonce(&public(8)), 0, "forgotten with the registration");
    assert_eq!(world.one(9, register(9)), TxCode::Ok, "void, so it may ask again");
}

#[test]
fn members_are_bounded() {
    let mut world = World::with(&[1], Params { members_max: 2, ..params() });
    world.must(vec![(8, register(8)), (9, register(9))]);
    world.must(vec![(0, admit(8))]);
    assert_eq!(world.one(0, admit(9)), TxCode::MembersFull);
    assert_eq!(world.one(10, register(10)), TxCode::MembersFull);
}

#[test]
fn the_last_validator_stays() {
    let mut world = World::new(&[1, 1]);
    assert_eq!(world.one(0, TxBody::Leave), TxCode::Ok);
    assert_eq!(world.one(1, TxBody::Leave), TxCode::LastValidator);
    let outcome = world.misbehave(1, Vec::new());
    assert!(outcome.validator_updates.is_empty() && world.power(1) == 1);
}

#[test]
fn who_signs_twice_is_expelled_once_and_for_ever() {
    let mut world = World::new(&[1, 1, 1]);
    let outcome = world.misbehave(1, Vec::new());
    assert_eq!(outcome.validator_updates.len(), 1);
    assert_eq!(
        (outcome.validator_updates[0].key, outcome.validator_updates[0].power),
        (public(1), 0)
    );
    let hash = world.state.app_hash();
    world.misbehave(1, Vec::new());
    assert_eq!(world.state.app_hash(), hash, "the same evidence twice counts once");
    assert_eq!(world.one(1, register(1)), TxCode::Expelled);
    assert_eq!(world.one(1, offer(1)), TxCode::NotMember);
    assert_eq!(world.one(0, admit(1)), TxCode::Expelled);
    assert_eq!(world.one(1, TxBody::Leave), TxCode::Expelled);
}

// Power

/// A founder of power `power`, and one listing that it holds.
fn with_listing(powers: &[u64]) -> World {
    let mut world = World::new(powers);
    world.must(vec![(0, offer(1))]);
    let others = (1u8..).take(powers.len() - 1);
    world.must(others.map(|n| (n, have(&[1]))).collect());
    assert!(world.is_listed(1));
    world
}

#[test]
fn an_observer_gets_power_when_it_attested_every_listing() {
    let mut world = with_listing(&[1, 1, 1]);
    world.must(vec![(0, offer(2)), (1, have(&[2])), (2, have(&[2]))]);
    world.admit(9, &[0, 1, 2]);
    world.must(vec![(9, have(&[1]))]);
    assert_eq!(world.power(9), 0, "one of two is not all");
    let outcome = world.must(vec![(9, have(&[2]))]);
    assert_eq!(world.power(9), 1);
    assert_eq!(outcome.validator_updates[0].key, public(9));
}

#[test]
fn a_listing_promoted_in_the_same_block_counts_as_one_of_all() {
    let mut world = with_listing(&[1, 1, 1]);
    world.admit(9, &[0, 1, 2]);
    world.must(vec![(9, have(&[1])), (0, offer(2)), (1, have(&[2])), (2, have(&[2]))]);
    assert!(world.is_listed(2) && world.power(9) == 0);
}

#[test]
fn admission_alone_gives_no_power_in_an_empty_market() {
    let mut world = World::new(&[1]);
    world.admit(9, &[0]);
    assert_eq!(world.power(9), 0);
    world.must(vec![(9, have(&[]))]);
    assert_eq!(world.power(9), 1);
}

#[test]
fn power_grows_by_a_quarter_per_window_at_most() {
    let mut world = World::new(&[4, 4]);
    for n in 10..14 {
        world.admit(n, &[0, 1]);
    }
    let start = world.next_height();
    world.must((10..14).map(|n| (n, have(&[]))).collect());
    let powers = |world: &World| [10, 11, 12, 13].map(|n| world.power(n));
    assert_eq!(powers(&world), [1, 1, 0, 0], "a quarter of 8 is 2");
    assert!(!world.state.may_claim_power(&public(12)));
    world.must(vec![(12, have(&[]))]);
    assert_eq!(powers(&world), [1, 1, 0, 0]);
    world.empty_blocks(start + 19 - world.next_height());
    assert!(!world.state.may_claim_power(&public(12)), "the window's last height");
    world.empty_blocks(1);
    assert!(world.state.may_claim_power(&public(12)));
    assert!(!world.state.may_claim_power(&public(10)), "it has power");
    world.must(vec![(13, have(&[]))]);
    assert_eq!(powers(&world), [1, 1, 1, 1], "a quarter of 10 is 2; who waits is not forgotten");
}

#[test]
fn a_small_market_grows_by_one_per_window() {
    let mut world = World::new(&[1]);
    world.admit(8, &[0]);
    world.admit(9, &[0]);
    world.must(vec![(8, have(&[])), (9, have(&[]))]);
    assert_eq!((world.power(8), world.power(9)), (1, 0));
}

#[test]
fn there_are_fifty_validators_at_most() {
    let mut world = World::new(&[100; 50]);
    let voters: Vec<u8> = (0..34).collect();
    world.admit(99, &voters);
    world.must(vec![(99, have(&[]))]);
    assert_eq!(world.power(99), 0);
}

#[test]
fn a_change_of_the_set_votes_two_heights_later() {
    let mut world = World::new(&[1, 1, 1]);
    world.empty_blocks(3);
    let change = world.next_height();
    world.must(vec![(2, TxBody::Leave)]);
    let count = |height| world.state.validators_at(height).map(<[_]>::len);
    assert_eq!(count(change - 1), None, "forgotten");
    assert_eq!((count(change), count(change + 1), count(change + 2)), (Some(3), Some(3), Some(2)));
    assert_eq!(count(change + 3), None, "not known yet");
    assert_eq!(world.state.validators().len(), 2, "the ledger itself counts with the newest");
    // One change per block, three in a row: every set is still known.
    let mut world = World::new(&[1, 1, 1, 1]);
    world.must(vec![(3, TxBody::Leave)]);
    world.must(vec![(2, TxBody::Leave)]);
    world.must(vec![(1, TxBody::Leave)]);
    let counts = [3, 4, 5].map(|height| world.state.validators_at(height).unwrap().len());
    assert_eq!(counts, [3, 2, 1]);
}

// Candidates and listings

#[test]
fn more_than_two_thirds_of_the_power_promote() {
    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(0, offer(1))]);
    world.must(vec![(1, have(&[1]))]);
    assert!(!world.is_listed(1), "exactly two thirds are not enough");
    world.must(vec![(2, have(&[1]))]);
    assert!(world.is_listed(1));
    assert!(world.state.candidate(&id(1)).is_none());
    assert_eq!(world.state.holders(&id(1)).len(), 3);

    let mut world = World::new(&[34, 33, 33]);
    world.must(vec![(0, offer(1)), (1, have(&[1]))]);
    assert!(world.is_listed(1), "67 of 100 are");
    let mut world = World::new(&[33, 33, 34]);
    world.must(vec![(0, offer(1)), (1, have(&[1]))]);
    assert!(!world.is_listed(1), "66 of 100 are not");
}

#[test]
fn two_thirds_are_exact() {
    assert!(!is_over_two_thirds(0, 0));
    assert!(!is_over_two_thirds(2, 3) && is_over_two_thirds(3, 3));
    assert!(!is_over_two_thirds(u64::MAX / 3 * 2, u64::MAX));
    assert!(is_over_two_thirds(u64::MAX / 3 * 2 + 1, u64::MAX));
}

#[test]
fn observers_attest_without_weight() {
    let mut world = with_listing(&[1, 1, 1]);
    world.admit(9, &[0, 1, 2]);
    world.must(vec![(0, offer(2)), (9, have(&[2])), (1, have(&[2]))]);
    assert!(!world.is_listed(2));
    assert_eq!(world.state.attested_power(&id(2)), 2);
    assert_eq!(world.state.holders(&id(2)).len(), 3);
    assert!(world.state.is_holder(&id(2), &public(9)));
}

#[test]
fn candidates_are_counted_again_when_the_set_changes() {
    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(0, offer(1)), (1, have(&[1]))]);
    assert!(!world.is_listed(1));
    world.must(vec![(2, TxBody::Leave)]);
    assert!(world.is_listed(1), "two of two");

    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(0, offer(1)), (1, have(&[1]))]);
    world.misbehave(2, Vec::new());
    assert!(world.is_listed(1));

    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(9, register(9))]);
    world.must(vec![(0, admit(9)), (1, admit(9))]);
    world.must(vec![(2, TxBody::Leave)]);
    assert!(world.state.member(&public(9)).unwrap().is_observer(), "votes are, too");
}

#[test]
fn power_granted_at_the_end_of_a_block_counts_there() {
    let mut world = World::new(&[1, 1, 1]);
    world.admit(9, &[0, 1, 2]);
    // Three of four after the grant, two of three before it: both counts happen in one block.
    world.must(vec![(0, offer(1)), (1, have(&[1])), (9, have(&[1]))]);
    assert_eq!(world.power(9), 1);
    assert!(world.is_listed(1));
}

#[test]
fn who_left_holds_nothing() {
    let mut world = World::new(&[1, 1, 1, 1]);
    world.must(vec![(0, offer(1)), (3, have(&[1]))]);
    world.must(vec![(3, TxBody::Leave)]);
    assert_eq!(world.state.holders(&id(1)), [public(0)]);
    world.must(vec![(1, have(&[1])), (2, have(&[1]))]);
    assert!(world.is_listed(1));
    // Back again under another number: what the old one attested is not its own.
    world.admit(3, &[0, 1, 2]);
    assert!(!world.state.is_holder(&id(1), &public(3)));
    world.must(vec![(3, have(&[]))]);
    assert_eq!(world.power(3), 0);
}

#[test]
fn a_withdrawn_attestation_does_not_count() {
    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(0, offer(1)), (1, have(&[1]))]);
    world.must(vec![(1, withdraw(&[1]))]);
    world.must(vec![(2, have(&[1]))]);
    assert!(!world.is_listed(1));
    world.must(vec![(1, have(&[1]))]);
    assert!(world.is_listed(1));
    let held = |world: &World, n| world.state.member(&public(n)).unwrap().held_count;
    assert_eq!([0, 1, 2].map(|n| held(&world, n)), [1, 1, 1]);
    world.must(vec![(1, withdraw(&[1])), (1, withdraw(&[1])), (2, have(&[1]))]);
    assert_eq!([0, 1, 2].map(|n| held(&world, n)), [1, 0, 1]);
    assert!(world.is_listed(1), "a listing stays");
}

#[test]
fn a_batch_outlives_single_ids_but_not_all() {
    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(0, offer(1))]);
    assert_eq!(world.one(1, have(&[1, 7])), TxCode::Ok);
    assert_eq!(world.state.holders(&id(1)).len(), 2);
    assert_eq!(world.one(1, have(&[7])), TxCode::NotListed);
    assert_eq!(world.one(1, withdraw(&[7])), TxCode::NotListed);
    assert!(world.state.holders(&id(7)).is_empty());
}

#[test]
fn the_same_data_is_offered_once() {
    let mut world = World::new(&[1, 1]);
    world.must(vec![(0, offer(1))]);
    assert_eq!(world.one(0, offer(1)), TxCode::AlreadyCandidate);
    assert_eq!(world.one(1, offer(1)), TxCode::AlreadyCandidate);
    world.must(vec![(1, have(&[1]))]);
    assert_eq!(world.one(1, offer(1)), TxCode::AlreadyListed);
}

#[test]
fn a_listing_has_a_greatest_size() {
    let mut world = World::new(&[1, 1]);
    let sized = |size| TxBody::Candidate(offer_of_size(1, size));
    assert_eq!(world.one(0, sized(1_001)), TxCode::ListingTooLarge);
    assert_eq!(world.one(0, sized(u64::MAX)), TxCode::ListingTooLarge);
    assert_eq!(world.one(0, sized(1_000)), TxCode::Ok);
}

#[test]
fn open_candidates_hold_bounded_bytes() {
    let mut world = World::new(&[1, 1]);
    let sized = |n, size| TxBody::Candidate(offer_of_size(n, size));
    world.must(vec![(0, sized(1, 1_000)), (0, sized(2, 1_000))]);
    assert_eq!(world.one(0, sized(3, 501)), TxCode::OpenBytesFull);
    assert_eq!(world.one(0, sized(3, 500)), TxCode::Ok);
    assert_eq!(world.one(1, sized(4, 1_000)), TxCode::Ok, "each member has its own");
    // Promotion, withdrawal and expiry give room.
    world.must(vec![(1, have(&[1]))]);
    world.must(vec![(0, remove(2))]);
    assert_eq!(world.state.member(&public(0)).unwrap().open_bytes, 500);
    world.must(vec![(0, sized(5, 1_000)), (0, sized(6, 1_000))]);
    world.empty_blocks(11);
    assert_eq!(world.one(0, sized(7, 1_000)), TxCode::Ok);
    assert_eq!(world.state.member(&public(0)).unwrap().open_bytes, 1_000);
    assert_eq!(world.state.member(&public(0)).unwrap().open_count, 1);
}

#[test]
fn open_candidates_are_bounded_in_number() {
    let mut world = World::with(&[1, 1], Params { open_candidates_max: 2, ..params() });
    world.must(vec![(0, offer(1)), (0, offer(2))]);
    assert_eq!(world.one(0, offer(3)), TxCode::OpenCandidatesFull);
}

#[test]
fn candidates_expire_lazily() {
    let mut world = World::new(&[1, 1, 1]);
    world.must(vec![(0, offer(1)), (1, have(&[1]))]);
    let expires = world.state.candidate(&id(1)).unwrap().expires_height;
    assert_eq!(expires, 11);
    let before = world.state.app_hash();
    world.empty_blocks(expires - 1 - world.state.height());
    assert_eq!(world.state.candidates().count(), 1, "the next block can still promote it");
    let mut in_time = State::from_snapshot(&world.state.to_snapshot(), &before).unwrap();
    let block = world.block(world.txs(vec![(2, have(&[1]))]));
    in_time.commit(&in_time.execute(&block).delta).unwrap();
    assert!(in_time.listing(&id(1)).is_some(), "its last height");

    world.empty_blocks(1);
    assert_eq!(world.state.app_hash(), before, "empty blocks drop nothing");
    assert_eq!(world.state.candidates().count(), 0);
    assert!(world.state.candidate(&id(1)).is_none());
    assert_eq!(world.one(2, have(&[1])), TxCode::NotListed);
    assert_eq!(world.state.app_hash(), before, "nor do blocks in which nothing succeeds");
    assert_eq!(world.one(1, offer(1)), TxCode::Ok, "anybody may offer it again");
    assert_eq!(world.state.candidate(&id(1)).unwrap().owner, public(1));
    assert_eq!(world.state.holders(&id(1)), [public(1)]);
}

#[test]
fn only_the_owner_removes() {
    let mut world = with_listing(&[1, 1]);
    assert_eq!(world.one(1, remove(1)), TxCode::NotOwner);
    assert!(world.is_listed(1));
    world.must(vec![(0, offer(2))]);
    assert_eq!(world.one(1, remove(2)), TxCode::NotOwner, "nor takes back a candidate");
    assert_eq!(world.one(0, remove(9)), TxCode::NotListed);
    let height = world.next_height();
    assert_eq!(world.one(0, remove(1)), TxCode::Ok);
    assert!(!world.is_listed(1));
    let tombstone = world.state.tombstone(&id(1)).unwrap();
    assert_eq!((tombstone.removed_height, tombstone.purge_height), (height, height + 5));
    assert!(world.state.holders(&id(1)).is_empty());
    assert_eq!(world.state.member(&public(1)).unwrap().held_count, 0);
    assert_eq!(world.one(0, remove(1)), TxCode::NotListed);
    assert_eq!(world.one(0, remove(2)), TxCode::Ok);
    assert!(world.state.tombstone(&id(2)).is_none(), "a candidate leaves no tombstone");
}

#[test]
fn an_owner_that_left_still_removes() {
    let mut world = with_listing(&[1, 1]);
    world.must(vec![(0, TxBody::Leave)]);
    assert_eq!(world.one(0, remove(1)), TxCode::Ok);
}

#[test]
fn removed_data_may_come_back_after_its_grace() {
    let mut world = with_listing(&[1, 1]);
    world.must(vec![(0, remove(1))]);
    let purge = world.state.tombstone(&id(1)).unwrap().purge_height;
    world.empty_blocks(purge - 1 - world.next_height());
    assert_eq!(world.one(0, offer(1)), TxCode::InGrace);
    assert_eq!(world.next_height(), purge);
    world.must(vec![(1, offer(1)), (0, have(&[1]))]);
    let listing = world.state.listing(&id(1)).unwrap();
    assert_eq!((listing.seq, listing.owner), (1, public(1)));
    assert!(world.state.tombstone(&id(1)).is_none());
    let seqs: Vec<u64> = world.state.listings(0).map(|listing| listing.seq).collect();
    assert_eq!(seqs, [1], "its old number leads nowhere");
    assert_eq!(world.state.next_listing_seq(), 2);
}

#[test]
fn listings_have_dense_numbers() {
    let mut world = World::new(&[1]);
    world.must((1..=5).map(|n| (0, offer(n))).collect());
    world.must(vec![(0, remove(2))]);
    let seqs = |since| world.state.listings(since).map(|l| l.seq).collect::<Vec<_>>();
    assert_eq!(seqs(0), [0, 2, 3, 4]);
    assert_eq!(seqs(3), [3, 4]);
    assert_eq!(world.state.listing_count(), 4);
    let removed = StateKey::ListingSeq(1);
    assert!(world.state.value(&removed).is_some(), "the sequence itself has no holes");
}

// Blocks

#[test]
fn an_empty_block_keeps_the_app_hash() {
    let mut world = with_listing(&[1, 1, 1]);
    world.must(vec![(0, offer(2))]);
    world.must(vec![(2, TxBody::Leave)]);
    let hash = world.state.app_hash();
    for _ in 0..50 {
        let block = world.block(Vec::new());
        let outcome = world.commit(&block);
        assert!(outcome.delta.is_empty() && outcome.events.is_empty());
        assert_eq!(outcome.app_hash, hash);
    }
}

#[test]
fn executing_leaves_the_state_alone() {
    let world = with_listing(&[1, 1]);
    let (hash, snapshot) = (world.state.app_hash(), world.state.to_snapshot());
    let outcome = world.state.execute(&world.block(world.txs(vec![(0, remove(1))])));
    assert_ne!(outcome.app_hash, hash);
    assert_eq!(world.state.to_snapshot(), snapshot);
}

#[test]
fn a_delta_fits_one_state_only() {
    let mut world = World::new(&[1, 1]);
    let genesis = State::from_genesis(&world.genesis).unwrap();
    let first = world.must(vec![(0, offer(1))]).delta;
    let second = world.must(vec![(1, have(&[1]))]).delta;
    let mut state = genesis.clone();
    assert!(matches!(state.commit(&second), Err(CommitError::Height { .. })));
    let empty = genesis.execute(&World::new(&[1, 1]).block(Vec::new())).delta;
    state.commit(&empty).unwrap();
    assert!(matches!(state.commit(&second), Err(CommitError::Parent { .. })));
    let mut state = genesis.clone();
    let mut bytes = first.to_bytes();
    bytes[13 + 32] ^= 1; // First byte of the app hash that it names.
    let forged = ringseed_ledger::Delta::decode(&bytes).unwrap();
    assert!(matches!(state.commit(&forged), Err(CommitError::AppHash { .. })));
    assert_eq!(state.app_hash(), genesis.app_hash());
    state.commit(&first).unwrap();
    state.commit(&second).unwrap();
    assert_eq!(state.to_snapshot(), world.state.to_snapshot());
}

// Mempool and proposals

#[test]
fn the_mempool_follows_pending_nonces() {
    let world = World::new(&[1]);
    let mut pending = PendingNonces::new();
    let check = |pending: &PendingNonces, nonce, body| {
        world.state.check_tx(&world.tx_at(0, nonce, body), pending).code
    };
    assert_eq!(check(&pending, 2, offer(1)), TxCode::NonceAhead);
    assert_eq!(check(&pending, 1, remove(1)), TxCode::NotListed);
    assert_eq!(check(&pending, 1, offer(1)), TxCode::Ok);
    pending.add(public(0), 1);
    assert_eq!(check(&pending, 1, offer(1)), TxCode::NonceUsed);
    assert_eq!(check(&pending, 2, remove(1)), TxCode::Ok, "it may become good");
    for nonce in 2..=u64::from(PENDING_PER_SIGNER_MAX) {
        assert_eq!(check(&pending, nonce, have(&[])), TxCode::Ok);
        pending.add(public(0), nonce);
    }
    assert_eq!(check(&pending, 65, have(&[])), TxCode::SignerBusy);
    assert_eq!(world.state.check_tx(&vec![7; 1 << 20], &pending).code, TxCode::TooLarge);
}

#[test]
fn a_proposer_keeps_what_succeeds_and_voters_accept_it() {
    let mut world = World::new(&[1, 1]);
    world.must(vec![(0, offer(1))]);
    let other = World::with(&[1], Params { removal_grace_heights: 6, ..params() });
    let mut txs = world.txs(vec![(0, offer(2)), (1, have(&[1, 2])), (1, remove(1)), (1, offer(3))]);
    txs.push(other.tx_at(0, 3, offer(4)));
    txs.push(vec![1; 1 << 20]);
    txs.push(world.tx_at(0, 3, remove(2)));
    let kept = world.state.prepare(&world.block(txs.clone()));
    // 1 owns nothing, and behind its refused removal its next nonce is too far ahead.
    assert_eq!(kept, [txs[0].clone(), txs[1].clone(), txs[6].clone()]);
    world.state.process(&world.block(kept.clone())).unwrap();
    assert!(world.raw(kept).iter().all(|code| *code == TxCode::Ok));
}

#[test]
fn a_proposer_fills_the_block_and_no_more() {
    let world = World::new(&[1]);
    let mut bodies = vec![(0, offer(1))];
    let ids: Vec<u8> = (1..40).collect();
    bodies.extend((0..900).map(|_| (0, have(&ids))));
    let txs = world.txs(bodies);
    let len = |txs: &[Vec<u8>]| txs.iter().map(Vec::len).sum::<usize>();
    assert!(len(&txs) > 1 << 20);
    let kept = world.state.prepare(&world.block(txs.clone()));
    assert!(len(&kept) <= 1 << 20 && len(&kept) > (1 << 20) - 1_500);
    world.state.process(&world.block(kept)).unwrap();
    let fault = world.state.process(&world.block(txs)).unwrap_err();
    assert!(matches!(fault, ProposalFault::TooLarge { .. }));
}

#[test]
fn voters_refuse_what_no_honest_proposer_makes() {
    let world = World::new(&[1, 1]);
    let process = |txs| world.state.process(&world.block(txs));
    let fault = |txs| match process(txs) {
        Err(ProposalFault::Tx { index, code }) => (index, code),
        other => panic!("{other:?}"),
    };
    let good = world.tx_at(0, 1, offer(1));
    let mut forged = world.tx_at(1, 1, have(&[1]));
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(process(vec![good.clone()]), Ok(()));
    assert_eq!(fault(vec![good.clone(), forged]), (1, TxCode::BadSignature));
    assert_eq!(fault(vec![good.clone(), good.clone()]), (1, TxCode::NonceUsed));
    assert_eq!(fault(vec![vec![0; 10]]), (0, TxCode::Malformed));
    assert_eq!(fault(vec![vec![0; TX_LEN_MAX + 1]]), (0, TxCode::TooLarge));
    assert_eq!(fault(vec![world.tx_at(0, 2, offer(1))]), (0, TxCode::NonceAhead));
    // A rule of the market that fails is a result, and costs no round.
    assert_eq!(process(vec![world.tx_at(0, 1, remove(1))]), Ok(()));
    let mut late = world.block(vec![good]);
    late.height = 2;
    assert!(matches!(world.state.process(&late), Err(ProposalFault::Height { .. })));
}

// Proofs and genesis

#[test]
fn proofs_show_presence_and_absence() {
    let world = with_listing(&[1, 1]);
    let root = world.state.app_hash();
    for key in [StateKey::Listing(id(1)), StateKey::Member(public(0)), StateKey::Params] {
        let (proof, value) = (world.state.proof(&key), world.state.value(&key).unwrap());
        proof.verify(&root, &key, Some(&value)).unwrap();
        assert!(proof.verify(&root, &key, None).is_err());
        assert!(proof.verify(&root, &key, Some(b"other")).is_err());
        assert!(proof.verify(&root, &StateKey::Listing(id(2)), Some(&value)).is_err());
        let mut other = root;
        other.0[0] ^= 1;
        assert!(proof.verify(&other, &key, Some(&value)).is_err());
    }
    for key in [StateKey::Listing(id(2)), StateKey::Member(public(9)), StateKey::ListingSeq(1)] {
        let proof = world.state.proof(&key);
        proof.verify(&root, &key, None).unwrap();
        assert!(proof.verify(&root, &key, Some(b"")).is_err());
        assert!(proof.verify(&root, &StateKey::Listing(id(1)), None).is_err());
    }
}

#[test]
fn a_genesis_reads_back_from_its_text() {
    let genesis = genesis_of(&[1, 2, 3], params());
    let text = genesis.to_text();
    let read = Genesis::from_text(&text).unwrap();
    assert_eq!(read, genesis);
    assert_eq!(read.to_text(), text);
    assert_eq!(read.hash(), genesis.hash());
    assert!(genesis.chain_id().starts_with("test-market-"));
    let comment = text.replace("\n\n", "\n# a comment\n\n");
    assert_eq!(Genesis::from_text(&comment).unwrap().hash(), genesis.hash());
    let line = genesis.members[0].to_string();
    assert_eq!(line.parse(), Ok(genesis.members[0].clone()));
}

#[test]
fn every_value_of_a_genesis_is_under_its_hash() {
    let text = genesis_of(&[1, 2], params()).to_text();
    let hash = Genesis::from_text(&text).unwrap().hash();
    let values: Vec<&str> =
        text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).collect();
    for line in values {
        let (name, value) = line.split_once(" = ").unwrap();
        let other = match value.trim_matches('"').parse::<u64>() {
            Ok(number) => format!("{name} = {}", number + 1),
            Err(_) if name == "key" => format!("{name} = \"{}\"", public(40)),
            Err(_) if name.ends_with("addr") => format!("{name} = \"127.0.0.77:7\""),
            Err(_) => format!("{name} = \"other\""),
        };
        match Genesis::from_text(&text.replacen(line, &other, 1)) {
            Ok(genesis) => assert_ne!(genesis.hash(), hash, "{other}"),
            Err(error) => {
                assert!(name == "rules_version" || name.ends_with("_len_max"), "{other}: {error}")
            }
        }
    }
}

#[test]
fn a_bad_genesis_is_refused_by_name() {
    let text = genesis_of(&[1, 2], params()).to_text();
    let error = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Genesis::from_text(&text.replacen(from, to, 1)).unwrap_err().to_string()
    };
    let second = public(1).to_string();
    for (from, to, expected) in [
        ("test-market", "Test", "market name"),
        ("\"node0\"", "\"\"", "member name"),
        ("\"node0\"", "\"node1\"", "name node1 appears twice"),
        ("power = 1\n", "power = 0\n", "power 0"),
        ("power = 1\n", "power = 1001\n", "power 1001"),
        ("127.0.0.1:4000", "0.0.0.0:4000", "0.0.0.0"),
        ("127.0.0.1:4000", "localhost:4000", "expected IPv4:port"),
        ("127.0.0.1:4000", "127.0.0.1:0", "port 0"),
        ("127.0.0.1:4000", "127.0.0.1:5000", "address 127.0.0.1:5000 appears twice"),
        ("rules_version = 1", "rules_version = 2", "rules 2"),
        ("removal_grace_heights = 5", "removal_grace_heights = 0", "removal_grace_heights is 0"),
        ("market = ", "extra = 1\nmarket = ", "extra"),
        (&second, &public(0).to_string(), "key"),
        (&second, &"00".repeat(32), "no usable ed25519"),
    ] {
        let error = error(from, to);
        assert!(error.contains(expected), "{to}: {error}");
    }
    let members: Vec<_> = genesis_of(&[1; 50], params()).members;
    let mut more = members.clone();
    let unsorted =
        Genesis { members: members.iter().rev().cloned().collect(), ..genesis_of(&[1], params()) };
    assert!(State::from_genesis(&unsorted).unwrap_err().to_string().contains("not sorted"));
    let mut member = members[0].clone();
    member.name = "one-more".into();
    member.key = public(77);
    member.consensus_addr = addr(77, 1);
    member.payload_addr = addr(77, 2);
    more.push(member);
    let error = Genesis::new("m", params(), more).unwrap_err().to_string();
    assert!(error.contains("51 founding members"), "{error}");
    assert!(
        Genesis::new("m", params(), Vec::new()).unwrap_err().to_string().contains("at least one")
    );
}
