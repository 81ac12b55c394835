//! The ledger under a real CometBFT daemon. Every call of every daemon goes through the recogniser of
//! the call grammar, which panics at the first that is not due; a panic is a failed test.
#![forbid(unsafe_code)]

#[path = "cometbft/market.rs"]
mod market;
#[path = "cometbft/story.rs"]
mod story;

use std::time::Duration;

use libtest_mimic::{Arguments, Failed};
use ringseed_ledger::{DataHash, TxBody, TxCode};
use ringseed_tests::comet;
use ringseed_tests::skip::trial;

use market::{Market, offer};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let needs = [comet::need()];
    let trials = vec![
        trial("one_node_makes_blocks_and_survives_kills", &needs, one_node),
        trial("four_nodes_agree_through_kills_of_daemons", &needs, four_nodes),
        trial("a_fifth_node_comes_by_state_sync", &needs, state_sync),
        trial("a_ledger_is_rebuilt_by_replay_from_genesis", &needs, replay),
        trial("pairs_of_daemon_and_datatrust_run_a_market", &needs, story::story),
    ];
    let mut arguments = Arguments::from_args();
    // Each trial runs several daemons: side by side they would only slow each other.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// One validator: transactions get their results, a kill at any moment costs nothing, an idle market
/// makes no blocks but at its interval.
fn one_node() -> Result<(), Failed> {
    let mut market = Market::start("comet-one", 1);
    for seed in 1..=6u8 {
        market.submit(0, offer(seed));
        if seed % 2 == 0 {
            // The moments differ from run to run: somewhere in the life of a block.
            std::thread::sleep(Duration::from_millis(u64::from(seed) * 7));
            market.restart_daemon(0);
        }
    }
    market.submit(0, TxBody::Remove { listing: DataHash([3; 32]) });
    let refused = market.check(0, TxBody::Remove { listing: DataHash([99; 32]) });
    assert_eq!(refused, TxCode::NotListed.number());
    let listings = market.node(0).ledger.view().listings(0).count();
    assert_eq!(listings, 5, "one founder promotes its own offers");
    let height = market.height(0);
    std::thread::sleep(Duration::from_millis(1_500));
    let idle = market.height(0) - height;
    assert!(
        (1..=3).contains(&idle),
        "{idle} blocks in 1.5 s of nothing to do, one a second is due"
    );
    market.assert_agreed();
    Ok(())
}

fn four_nodes() -> Result<(), Failed> {
    let mut market = Market::start("comet-four", 4);
    for seed in 1..=8u8 {
        let at = usize::from(seed) % 4;
        market.submit(at, offer(seed));
        if seed % 3 == 0 {
            market.kill_daemon(at);
            // Three of four go on.
            market.submit((at + 1) % 4, offer(100 + seed));
            market.start_daemon(at);
        }
    }
    market.settle();
    market.assert_agreed();
    Ok(())
}

fn state_sync() -> Result<(), Failed> {
    let mut market = Market::start("comet-sync", 4);
    for seed in 1..=12u8 {
        market.submit(usize::from(seed) % 4, offer(seed));
    }
    let trusted = market.height(0);
    market.wait_height(0, trusted + 6);
    let index = market.join_by_state_sync(trusted);
    market.wait_height(index, trusted + 6);
    let restored = market.node(index).daemon_log();
    assert!(restored.contains("Snapshot restored"), "it replayed instead:\n{restored}");
    market.submit(0, offer(50));
    market.settle();
    market.assert_agreed();
    Ok(())
}

fn replay() -> Result<(), Failed> {
    let mut market = Market::start("comet-replay", 1);
    for seed in 1..=5u8 {
        market.submit(0, offer(seed));
    }
    let before = market.node(0).ledger.view().app_hash();
    let height = market.height(0);
    market.kill_daemon(0);
    market.lose_ledger(0);
    assert_eq!(market.height(0), 0);
    market.start_daemon(0);
    market.wait_height(0, height);
    assert_eq!(market.node(0).ledger.view().app_hash(), before);
    market.submit(0, offer(9));
    Ok(())
}
