//! Validators agree: fast, idle, with some of them gone, and after everybody was killed.

use super::*;

#[test]
fn four_validators_agree_on_transactions_from_each_of_them() {
    let market = Market::start("agree-four", 4, fast(60_000));
    for round in 0..3_u8 {
        for index in 0..4 {
            let outcome = market.submit(index, offer(round * 4 + index as u8 + 1));
            assert!(outcome.height > 0);
        }
    }
    market.settle();
    let height = market.height(0);
    for node in market.running() {
        assert_eq!(node.view().candidates().count(), 12);
        let certificate = node.certificate(height).unwrap();
        assert!(certificate.signatures.len() >= 3);
    }
}

#[test]
fn a_transaction_does_not_wait_for_the_idle_interval_and_idleness_makes_no_blocks() {
    let market = Market::start("agree-pace", 4, fast(60_000));
    market.submit(0, offer(1));
    let height = market.top();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(market.top(), height, "an idle market makes no blocks before its interval");
    let start = Instant::now();
    market.submit(1, offer(2));
    // Of 60 s; a loaded machine may miss a round or two.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn idle_blocks_come_at_their_interval_and_keep_the_app_hash() {
    let market = Market::start("agree-idle", 4, fast(200));
    market.wait_height(5);
    let node = market.node(0);
    let genesis_hash = node.block(1).unwrap().header.app_hash;
    assert_eq!(node.app_hash_at(4), Some(genesis_hash), "empty blocks change nothing");
    assert!(node.block(3).unwrap().txs.is_empty());
    market.settle();
}

#[test]
fn one_dead_validator_of_four_costs_little_and_catches_up_when_it_is_back() {
    let mut market = Market::start("agree-dead", 4, fast(60_000));
    market.submit(0, offer(1));
    market.stop(2);
    let start = Instant::now();
    // Eight blocks: the dead one is due to propose two of them.
    (2..10).for_each(|seed| drop(market.submit(usize::from(seed % 2), offer(seed))));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    market.start_node(2);
    market.wait("the node is caught up", |market| market.node(2).status().caught_up);
    market.settle();
    // It votes again: without it and one other there is no quorum.
    market.stop(3);
    market.submit(2, offer(20));
}

#[test]
fn two_of_four_stopped_make_no_height_and_reads_go_on() {
    let mut market = Market::start("agree-half", 4, fast(100));
    market.submit(0, offer(1));
    market.stop(2);
    market.stop(3);
    // What was on its way may still be decided.
    std::thread::sleep(Duration::from_millis(300));
    let height = market.height(0);
    let tx = market.tx(0, offer(2));
    let stuck = market.node(0).submit(tx, Duration::from_millis(1_500));
    assert!(matches!(stuck, Err(SubmitError::Timeout { .. })), "{stuck:?}");
    assert_eq!(market.height(0), height, "no new height without a quorum");
    assert_eq!(market.node(0).view().candidates().count(), 1, "reads go on");
    market.start_node(2);
    market.start_node(3);
    market.wait("the waiting transaction is in a block", |market| {
        market.running().all(|node| node.view().candidates().count() == 2)
    });
    market.settle();
}

#[test]
fn all_four_restarted_together_go_on() {
    let mut market = Market::start("agree-restart", 4, fast(100));
    for round in 0..3 {
        market.submit(round, offer(round as u8 + 1));
        let height = market.height(round);
        // In the middle of whatever they are doing; idle blocks never stop.
        (0..4).for_each(|index| market.stop(index));
        (0..4).for_each(|index| market.start_node(index));
        market.wait_height(height + 2);
    }
    market.submit(3, offer(9));
    market.settle();
    assert_eq!(market.node(0).view().candidates().count(), 4);
}

#[test]
fn a_refused_transaction_says_why_and_reaches_no_block() {
    let market = Market::start("agree-refused", 4, fast(60_000));
    market.submit(0, offer(1));
    let height = market.height(0);
    let again = market.try_submit(0, offer(1));
    let Err(SubmitError::Refused { code, info }) = again else { panic!("{again:?}") };
    assert_eq!(code, TxCode::AlreadyCandidate);
    assert!(!info.is_empty());
    let junk = market.node(0).submit(vec![7; 1 << 20], PATIENCE);
    assert!(matches!(junk, Err(SubmitError::Refused { code: TxCode::TooLarge, .. })), "{junk:?}");
    let key = key(77);
    let stranger = Tx::sign(&key, &market.genesis.hash(), 1, 900, offer(5)).unwrap();
    let refused = market.node(0).submit(stranger.to_bytes(), PATIENCE);
    assert!(matches!(refused, Err(SubmitError::Refused { .. })), "{refused:?}");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(market.height(0), height);
}

#[test]
fn a_market_of_one_needs_nobody() {
    let mut market = Market::start("agree-one", 1, fast(60_000));
    (1..6).for_each(|seed| drop(market.submit(0, offer(seed))));
    let (height, hash) = (market.height(0), market.node(0).status().app_hash);
    market.stop(0);
    market.start_node(0);
    assert_eq!(market.height(0), height);
    assert_eq!(market.node(0).status().app_hash, hash);
    market.submit(0, offer(9));
}

#[test]
fn kills_at_any_moment_under_load_lose_nothing_and_stop_nothing() {
    let mut market = Market::start("agree-kills", 4, fast(60_000));
    let mut dice: u64 = 0x9e37_79b9_7f4a_7c15;
    for step in 0..12_u8 {
        // A transaction is on its way while all are killed at an odd moment.
        let tx = market.tx(usize::from(step % 4), offer(step + 1));
        let at = usize::from(step % 4);
        let _ = market.node(at).submit(tx.clone(), Duration::ZERO);
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(dice >> 59));
        (0..4).for_each(|index| market.stop(index));
        (0..4).for_each(|index| market.start_node(index));
        // Said again after the kill it is in a block, once.
        match market.node(at).submit(tx, PATIENCE) {
            Ok(outcome) => assert_eq!(outcome.code, TxCode::Ok, "{}", outcome.info),
            Err(SubmitError::Refused { code, .. }) => assert_eq!(code, TxCode::NonceUsed),
            Err(other) => panic!("step {step}: {other}"),
        }
        market.settle();
        assert_eq!(market.node(0).view().candidates().count(), usize::from(step) + 1);
    }
}
