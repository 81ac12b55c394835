//! Blocks around the rules: what they leave alone, what is proposed and accepted, what can be proven,
//! and the genesis that all of it starts from.

mod support;

use ringseed_ledger::{
    CommitError, Genesis, PENDING_PER_SIGNER_MAX, Params, PendingNonces, ProposalFault, State,
    StateKey, TX_LEN_MAX, TxBody, TxCode,
};
use support::*;

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
