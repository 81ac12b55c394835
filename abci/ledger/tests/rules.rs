//! Every rule of the market, and what happens right beside its bound.

mod support;

use ringseed_ledger::{
    BadSignature, DataHash, Params, PublicKey, Signature, Standing, State, StateKey, TX_LEN_MAX,
    Tx, TxBody, TxCode, VALID_AHEAD_HEIGHTS_MAX, is_over_two_thirds,
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
fn a_void_registration_is_not_admitted_when_the_set_changes() {
    let mut world =
        World::with(&[1, 1, 1], Params { registration_expiry_heights: 10_000, ..params() });
    world.must(vec![(9, register(9)), (0, admit(9)), (1, admit(9))]);
    world.empty_blocks(10_000);
    world.must(vec![(2, TxBody::Leave)]);
    assert!(!world.state.member(&public(9)).unwrap().is_admitted());
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

/// More candidates can become void at once than one block drops: the rest is void all the same.
#[test]
fn a_void_candidate_is_not_promoted_while_it_waits_to_be_dropped() {
    let mut world = World::new(&[1, 1, 1]);
    let offers: Vec<TxBody> = (0..300u16)
        .map(|n| {
            let mut offer = offer_of_size(1, 1);
            offer.infohash_v2.0[..2].copy_from_slice(&n.to_le_bytes());
            TxBody::Candidate(offer)
        })
        .collect();
    let ids = |world: &World| world.state.candidates().map(|c| c.id()).collect::<Vec<_>>();
    world.must(offers.into_iter().map(|offer| (0, offer)).collect());
    assert_eq!(ids(&world).len(), 300);
    world.must(vec![(1, TxBody::attest(ids(&world), Vec::new()))]);
    world.empty_blocks(10);
    world.must(vec![(2, TxBody::Leave)]);
    assert_eq!(world.state.listing_count(), 0, "two of two hold them, too late");
    assert_eq!(world.state.member(&public(0)).unwrap().open_count, 300 - 256);
    world.must(vec![(0, have(&[]))]);
    assert_eq!(world.state.member(&public(0)).unwrap().open_count, 0);
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
