//! Bytes from one engine to another, in every kind of torrent and by every driver.

use ringseed_sys::dir::DirHandle;
use ringseed_sys::file::DataFile;

use super::*;
use crate::test_support::{TestDir, noise, snapshot, tree};

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

/// Three sources fill pieces of 4 MiB in an arena that holds three of them, or pieces of 16 MiB, as long as it is:
/// whole extents go to the disk before their piece is whole, and all of it ends well.
#[test]
fn long_pieces_fit_a_small_arena() {
    for (kind, piece_len) in [
        (Kind::Hybrid, 4 << 20),
        (Kind::V1, 4 << 20),
        (Kind::Hybrid, 16 << 20),
        (Kind::V1, 16 << 20),
        (Kind::V2, 16 << 20),
    ] {
        let dir = TestDir::new("long-pieces");
        let source = dir.path().join("source");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("long.bin"), noise(50_000_001, 4)).unwrap();
        let metainfo = torrent(&source.join("long.bin"), kind, piece_len);
        let seeds: Vec<Node> = (1..=3).map(|number| Node::start(dir.path(), number)).collect();
        for seed in &seeds {
            seed.seed(&metainfo, &source);
        }
        let mut leech = Node::start(dir.path(), 9);
        let into = dir.path().join("into");
        let peers: Vec<SocketAddr> = seeds.iter().map(Node::addr).collect();
        let id = leech.fetch(&metainfo, &into, &peers);
        leech.wait_complete(id);
        assert_eq!(snapshot(&into), snapshot(&source));
        let status = leech.engine.status();
        assert!(status.arena_waits > 0, "the arena was to run full");
        // Leaves are hashed when they come: nothing is read back for v2.
        let is_hashed_once = status.hashed_bytes <= 50_000_001 + status.wasted_bytes;
        assert!(kind != Kind::V2 || is_hashed_once, "{} bytes hashed", status.hashed_bytes);
        // Reading back in the wrong order once took honest pieces for bad ones and fetched them again: four MiB
        // each. Where a source gets no processor, up to 31 blocks are asked of another as well.
        let wasted = leech.engine.listing_status(id).unwrap().wasted_bytes;
        assert!(wasted <= 31 * (16 << 10), "{wasted} bytes wasted");
    }
}

/// Of a v1 torrent without pads only the first file begins at a sector. All were written through the page cache,
/// at four times the cost; now their interiors go past it, and no byte of an edge is lost between two writes.
#[test]
fn files_of_odd_lengths_arrive_whole_and_past_the_page_cache() {
    let dir = TestDir::new("odd");
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("data")).unwrap();
    let lens = [1_300_001, 700_003, 131_073, 5, 2_000_001, 262_145, 900_001];
    for (at, len) in lens.into_iter().enumerate() {
        std::fs::write(source.join(format!("data/{at}.bin")), noise(len, at as u64)).unwrap();
    }
    for piece_len in [16 << 10, 256 << 10, 1 << 20] {
        let metainfo = torrent(&source.join("data"), Kind::V1, piece_len);
        let scratch = dir.path().join(format!("of-{piece_len}"));
        let seed = Node::start(&scratch, 1);
        seed.seed(&metainfo, &source);
        let mut leech = Node::start(&scratch, 2);
        let into = scratch.join("into");
        let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
        leech.wait_complete(id);
        let root = DirHandle::open(&into).unwrap();
        for (at, len) in lens.into_iter().enumerate().filter(|(_, len)| *len > 1_000_000) {
            let path = format!("data/{at}.bin");
            let file = DataFile::open(&root, Path::new(&path), false, true).unwrap().file;
            let windows = (0..len as u64 - (128 << 10)).step_by(128 << 10);
            let cached = windows.filter(|&from| file.is_resident(from, 128 << 10)).count();
            // Short pieces are written in whatever runs they came by.
            let is_judged = file.is_direct() && piece_len >= 256 << 10;
            assert!(cached == 0 || !is_judged, "{path}: {cached} windows in the page cache");
        }
        assert_eq!(snapshot(&into), snapshot(&source), "pieces of {piece_len}");
    }
}

/// A run that lies askew is copied to where it is aligned. With an arena full of requests a sixth of all bytes once
/// found no buffer to be copied to, and went through the page cache: what is copied lends its buffers to the rest.
/// A window here and there still goes that way, more or fewer with what else the machine does.
#[test]
fn files_of_odd_lengths_pass_the_page_cache_when_the_arena_is_full() {
    let (cached, all) = windows_in_page_cache();
    assert!(cached * 10 <= all, "{cached} of {all} windows went through the page cache");
}

/// Windows of 128 KiB of files of odd lengths that the page cache holds after they were fetched, and all.
fn windows_in_page_cache() -> (usize, usize) {
    let dir = TestDir::new("odd-and-long");
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("data")).unwrap();
    let lens: Vec<usize> = (0..12).map(|at| 10_000_001 + at * 300_002).collect();
    for (at, &len) in lens.iter().enumerate() {
        std::fs::write(source.join(format!("data/{at:02}.bin")), noise(len, at as u64)).unwrap();
    }
    let metainfo = torrent(&source.join("data"), Kind::V1, 1 << 20);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let long = |config: &mut Config| config.arena_len_bytes = 48 << 20;
    let mut leech = Node::start_on(dir.path(), 2, IoDriver::Auto, long);
    let into = dir.path().join("into");
    let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
    leech.wait_complete(id);
    let root = DirHandle::open(&into).unwrap();
    let (mut cached, mut all) = (0, 0);
    for (at, &len) in lens.iter().enumerate() {
        let path = format!("data/{at:02}.bin");
        let file = DataFile::open(&root, Path::new(&path), false, true).unwrap().file;
        let windows = (0..len as u64 - (128 << 10)).step_by(128 << 10);
        for from in windows.filter(|_| file.is_direct()) {
            all += 1;
            cached += usize::from(file.is_resident(from, 128 << 10));
        }
    }
    assert_eq!(snapshot(&into), snapshot(&source));
    // What is less than 64 KiB of a file in one run goes through it, and never fills a window.
    (cached, all)
}

#[test]
fn what_is_removed_is_freed_if_it_is_ours_and_left_alone_if_it_is_not() {
    let dir = TestDir::new("remove");
    let source = dir.path().join("source");
    tree(&source.join("data"), 2);
    let before = snapshot(&source);
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let mut seed = Node::start(dir.path(), 1);
    let seeded = seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let into = dir.path().join("into");
    let fetched = leech.fetch(&metainfo, &into, &[seed.addr()]);
    leech.wait_complete(fetched);
    leech.engine.remove(fetched, true);
    let removed = leech.wait("removal", |event| matches!(event, Event::Removed { .. }));
    assert!(matches!(removed, Event::Removed { freed_bytes, .. } if freed_bytes >= 3_000_000));
    assert!(snapshot(&into).is_empty());
    assert!(leech.engine.listing_status(fetched).is_none());
    seed.engine.remove(seeded, true);
    let removed = seed.wait("removal", |event| matches!(event, Event::Removed { .. }));
    assert!(matches!(removed, Event::Removed { freed_bytes: 0, .. }));
    assert_eq!(snapshot(&source), before, "the user's data stays");
    // It can be added and fetched again.
    seed.seed(&metainfo, &source);
    let again = leech.fetch(&metainfo, &into, &[seed.addr()]);
    leech.wait_complete(again);
    assert_eq!(snapshot(&into), before);
}

#[test]
fn nothing_is_sent_while_serving_is_off() {
    let dir = TestDir::new("serving");
    let source = dir.path().join("source");
    tree(&source.join("data"), 3);
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.engine.set_serving(false);
    seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[seed.addr()]);
    std::thread::sleep(Duration::from_millis(400));
    let status = leech.engine.listing_status(id).unwrap();
    assert_eq!((status.peers, status.have_bytes), (1, 0));
    assert_eq!(seed.engine.status().payload_sent_bytes, 0);
    seed.engine.set_serving(true);
    leech.wait_complete(id);
}

#[test]
fn the_upload_cap_is_kept() {
    let dir = TestDir::new("cap");
    let source = dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("one.bin"), noise(4_000_000, 4)).unwrap();
    let metainfo = torrent(&source.join("one.bin"), Kind::Hybrid, 64 << 10);
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        config.upload_rate_max = Some(2_000_000);
    });
    seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let began = Instant::now();
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[seed.addr()]);
    leech.wait_complete(id);
    let seconds = began.elapsed().as_secs_f64();
    assert!((1.8..3.5).contains(&seconds), "4 MB at 2 MB/s took {seconds} s");
}

/// Both sides dial each other, over and over; one connection is left, and the bytes arrive.
#[test]
fn two_that_dial_each_other_keep_one_connection() {
    let dir = TestDir::new("both");
    let source = dir.path().join("source");
    tree(&source.join("data"), 3);
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let mut first = Node::start(dir.path(), 1);
    let mut second = Node::start(dir.path(), 2);
    let hash = metainfo.info().info_hash_v2().unwrap();
    let owned = |name: &str| Place::Owned(dir.path().join(name));
    let by_hash = |place, peers: &[SocketAddr]| AddListing {
        identity: Identity::V2(hash),
        ..add_of(&metainfo, place, peers)
    };
    let third = Node::start(dir.path(), 3);
    let all = [first.addr(), second.addr(), third.addr()];
    let one = first.engine.add(by_hash(owned("one"), &all)).unwrap();
    let two = second.engine.add(by_hash(owned("two"), &all)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(first.engine.listing_status(one).unwrap().peers, 1);
    assert_eq!(second.engine.listing_status(two).unwrap().peers, 1);
    third.seed(&metainfo, &source);
    first.wait_complete(one);
    second.wait_complete(two);
    assert_eq!(snapshot(&dir.path().join("two")), snapshot(&source));
}
