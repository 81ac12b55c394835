//! What a folder remembers, and what is refused when it does not.

use super::*;
use crate::handle::StartError;

#[test]
fn a_second_process_on_one_folder_is_refused() {
    let market = Market::start("folder-lock", 1, fast(60_000));
    let mut config = market.config(0);
    config.listen = None;
    assert!(matches!(Cluster::start(config), Err(StartError::InUse { .. })));
}

#[test]
fn a_key_without_the_record_of_its_votes_is_refused() {
    let mut market = Market::start("folder-votes", 1, fast(60_000));
    market.submit(0, offer(1));
    market.stop(0);
    let consensus = market.node_dir(0).join("consensus");
    for name in ["votes", "signer"] {
        let (path, aside) = (consensus.join(name), consensus.join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let refused = Cluster::start(market.config(0));
        assert!(matches!(refused, Err(StartError::LastSignedLost { .. })), "{name}: {refused:?}");
        let _ = std::fs::remove_file(&path);
        std::fs::rename(&aside, &path).unwrap();
    }
    let mut config = market.config(0);
    config.key = key(42);
    assert!(matches!(Cluster::start(config), Err(StartError::LastSignedLost { .. })));
    market.start_node(0);
    market.submit(0, offer(2));
}

#[test]
fn a_key_in_a_fresh_folder_lets_the_heights_pass_at_which_it_may_have_signed() {
    let mut market = Market::start("folder-fresh", 4, fast(100));
    market.submit(0, offer(1));
    market.stop(3);
    std::fs::remove_dir_all(market.node_dir(3)).unwrap();
    market.start_node(3);
    market.wait("it is caught up", |market| market.node(3).status().caught_up);
    let back = market.height(3);
    market.wait("it signs again, later", |market| {
        let height = market.height(0);
        let key = market.keys[3].public().0;
        let signed = |at: u64| {
            let certificate = market.node(0).certificate(at);
            certificate.is_some_and(|c| c.signatures.iter().any(|(signer, _)| *signer == key))
        };
        (back + 1..=height).any(signed)
    });
}

#[test]
fn another_genesis_in_the_folder_is_refused() {
    let mut market = Market::start("folder-genesis", 1, fast(60_000));
    market.stop(0);
    let mut config = market.config(0);
    let mut other = market.genesis.clone();
    other.params.block_interval_ms_min += 1;
    config.genesis = Some(other);
    assert!(matches!(Cluster::start(config), Err(StartError::OtherGenesis { .. })));
}

#[test]
fn a_block_that_a_crash_left_unexecuted_is_executed_at_the_start() {
    let mut market = Market::start("folder-replay", 1, fast(60_000));
    let mut lengths = Vec::new();
    let state = market.node_dir(0).join("consensus/state.log");
    for seed in 1..=5 {
        market.submit(0, offer(seed));
        lengths.push(std::fs::metadata(&state).unwrap().len());
    }
    let (height, hash) = (market.height(0), market.node(0).status().app_hash);
    market.stop(0);
    // The crash came after the block store's sync: the last two records are lost, one is torn.
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..lengths[2] as usize + 9]).unwrap();
    market.start_node(0);
    assert_eq!((market.height(0), market.node(0).status().app_hash), (height, hash));
    market.submit(0, offer(6));
}

#[test]
fn the_log_of_votes_torn_at_any_byte_does_not_stop_the_market() {
    let mut market = Market::start("folder-torn", 1, fast(60_000));
    market.submit(0, offer(1));
    market.stop(0);
    let votes = market.node_dir(0).join("consensus/votes");
    let blocks = market.node_dir(0).join("consensus/blocks");
    let state = market.node_dir(0).join("consensus/state.log");
    let whole = std::fs::read(&votes).unwrap();
    // Back to the moment before the decision: the votes are there, the block is not stored.
    let first = 16;
    std::fs::write(&blocks, &std::fs::read(&blocks).unwrap()[..first]).unwrap();
    std::fs::write(&state, &std::fs::read(&state).unwrap()[..first]).unwrap();
    let _ = std::fs::remove_file(market.node_dir(0).join("consensus/blocks.index"));
    let empty: Vec<_> =
        [&blocks, &state].map(|path| (path.clone(), std::fs::read(path).unwrap())).into();
    let step = (whole.len() - first).div_ceil(40).max(1);
    for len in (first..=whole.len()).step_by(step) {
        empty.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        std::fs::write(&votes, &whole[..len]).unwrap();
        market.start_node(0);
        market.submit(0, offer(2));
        market.stop(0);
    }
}
