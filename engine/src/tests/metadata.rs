//! Magnet start in a simulated world: info dict and piece layers come from peers, for files of every
//! shape, from several peers, past liars and silence.

use ringseed_core::merkle;

use super::*;
use crate::io::sim::SimConfig;
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise, tree};
use crate::testing::SimMarket;

/// A v2 torrent of one file of so many pieces of 16 KiB, made of its leaves alone: no data is needed to
/// fetch what describes it.
fn synthetic(piece_count: u32) -> Arc<Metainfo> {
    let leaf = |at: u32| {
        let mut hash = [7; 32];
        hash[..4].copy_from_slice(&at.to_be_bytes());
        hash
    };
    let leaves: Vec<[u8; 32]> = (0..piece_count).map(leaf).collect();
    let root = merkle::root_from_leaves(&leaves);
    let len_bytes = u64::from(piece_count) * 16_384 - 5;
    let mut bytes = b"d4:infod9:file treed8:file.bind0:d6:lengthi".to_vec();
    bytes.extend_from_slice(len_bytes.to_string().as_bytes());
    bytes.extend_from_slice(b"e11:pieces root32:");
    bytes.extend_from_slice(&root);
    bytes.extend_from_slice(b"eee12:meta versioni2e4:name8:file.bin12:piece lengthi16384ee");
    bytes.extend_from_slice(b"12:piece layersd");
    if piece_count > 1 {
        bytes.extend_from_slice(b"32:");
        bytes.extend_from_slice(&root);
        bytes.extend_from_slice(format!("{}:", leaves.len() * 32).as_bytes());
        bytes.extend_from_slice(leaves.as_flattened());
    }
    bytes.extend_from_slice(b"ee");
    Arc::new(Metainfo::parse(&bytes).unwrap())
}

/// Fetches the metainfo by its hash from so many peers. The first is capped, so that others have a part.
fn fetch(metainfo: &Arc<Metainfo>, seed: u64, peers: usize, dir: &TestDir) -> Arc<Metainfo> {
    let mut market = SimMarket::new(SimConfig::new(seed), dir.path());
    let sources: Vec<usize> = (0..peers).map(|_| market.add_node()).collect();
    for &source in &sources {
        let add = add_of(metainfo, Place::InPlace("in place".into()), &[]);
        market.add(source, AddListing { known_complete: true, ..add });
    }
    let leech = market.add_node();
    let addrs: Vec<SocketAddr> = sources.iter().map(|&node| market.world.addr(node)).collect();
    let hash = metainfo.info().info_hash_v2().unwrap();
    let add = add_of(metainfo, Place::Owned("owned".into()), &addrs);
    let id = market.add(leech, AddListing { identity: Identity::V2(hash), ..add });
    for _ in 0..600 {
        market.world.run_for(Duration::from_millis(100));
        let is_ready = |event: &Event| matches!(event, Event::MetadataReady { .. });
        if market.events(leech).iter().any(is_ready) {
            let (answer, answers) = std::sync::mpsc::sync_channel(1);
            market.command(leech, Command::Metainfo(id, answer));
            match answers.try_recv().unwrap().unwrap() {
                crate::shard::command::KnownMetainfo::Here(known) => return known,
                other => panic!("an active listing has its metainfo in memory: {other:?}"),
            }
        }
    }
    panic!("no metainfo with seed {seed}: {:?}", market.status(leech, id));
}

#[test]
fn files_of_one_to_seventy_thousand_pieces_start_from_a_hash() {
    let dir = TestDir::new("magnet-start");
    for (piece_count, peers) in
        [(1, 1), (2, 1), (512, 2), (513, 1), (513, 3), (70_000, 1), (70_000, 4)]
    {
        let metainfo = synthetic(piece_count);
        assert_eq!(metainfo.info().geometry().piece_count(), piece_count);
        let found = fetch(&metainfo, u64::from(piece_count) + peers as u64, peers, &dir);
        assert!(found.encode() == metainfo.encode(), "{piece_count} pieces from {peers}");
    }
}

/// Empty files, files of a block, of a piece, of many; equal ones; pieces of several lengths.
#[test]
fn a_mixed_tree_starts_from_a_hash() {
    let dir = TestDir::new("magnet-tree");
    let source = dir.path().join("data");
    tree(&source, 3);
    std::fs::write(source.join("twin-1.bin"), noise(200_000, 1)).unwrap();
    std::fs::write(source.join("twin-2.bin"), noise(200_000, 1)).unwrap();
    for (kind, piece_len) in [(Kind::V2, 16 << 10), (Kind::Hybrid, 32 << 10), (Kind::V2, 1 << 20)] {
        let metainfo = torrent(&source, kind, piece_len);
        for seed in 0..5 {
            let found = fetch(&metainfo, seed, 1 + seed as usize % 3, &dir);
            assert!(found.encode() == metainfo.encode(), "seed {seed} of {kind:?}, {piece_len}");
        }
    }
}
