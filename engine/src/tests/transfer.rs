//! Bytes from one engine to another, in every kind of torrent and by every driver.

use super::*;
use crate::test_support::{TestDir, snapshot, tree};

fn transfer(kind: Kind, piece_len: u64, driver: IoDriver) {
    let dir = TestDir::new("transfer");
    let source = dir.path().join("source");
    tree(&source.join("data"), 1);
    let before = snapshot(&source);
    let metainfo = torrent(&source.join("data"), kind, piece_len);
    let seed = Node::start_on(dir.path(), 1, driver, |_| {});
    seed.seed(&metainfo, &source);
    let mut leech = Node::start_on(dir.path(), 2, driver, |_| {});
    let into = dir.path().join("into");
    let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
    leech.wait_complete(id);
    assert_eq!(snapshot(&into), before);
    assert_eq!(snapshot(&source), before, "the source is only read");
    let status = leech.engine.listing_status(id).unwrap();
    assert_eq!(status.have_bytes, metainfo.info().geometry().payload_len());
    assert_eq!(status.wasted_bytes, 0);
    let from_seed: u64 = status.sources.iter().map(|source| source.verified_bytes).sum();
    assert!(from_seed >= status.have_bytes);
    leech.engine.shutdown();
    seed.engine.shutdown();
}

#[test]
fn a_hybrid_goes_over_the_best_driver() {
    transfer(Kind::Hybrid, 32 << 10, IoDriver::Auto);
}

#[test]
fn v1_pieces_that_span_files_arrive_whole() {
    transfer(Kind::V1, 48 << 10, IoDriver::Auto);
}

#[test]
fn a_v2_torrent_of_long_pieces_arrives_whole() {
    transfer(Kind::V2, 1 << 20, IoDriver::Auto);
}

#[test]
fn epoll_does_what_uring_does() {
    transfer(Kind::Hybrid, 256 << 10, IoDriver::Epoll);
}
