//! Who has leaves, gives them; who has none hashes no more for strangers than it allows itself.

use std::fs;

use ringseed_core::merkle::{HashRange, TreeShape};
use ringseed_core::wire::HashRequest;
use ringseed_core::wire::message::Message;

use super::script::{EXTENDED, Payload, Script};
use super::*;
use crate::io::sim::SimConfig;
use crate::store::leaves_path;
use crate::test_support::{TestDir, noise, tree};
use crate::testing::SimMarket;

/// Files of every kind of length, one long enough for many units.
fn source_in(dir: &TestDir) -> std::path::PathBuf {
    let source = dir.path().join("source");
    tree(&source.join("data"), 9);
    fs::write(source.join("data/long.bin"), noise(9_000_001, 4)).unwrap();
    source
}

/// What the sidecar of a torrent holds.
fn sidecar_of(payload: &Payload<'_>, metainfo: &Metainfo) -> Vec<u8> {
    let files = metainfo.info().files().filter(|file| !file.pad && file.len_bytes > 0);
    files.flat_map(|file| payload.leaves(&file.pieces_root.unwrap())).flatten().collect()
}

fn sidecar_path(dir: &TestDir, number: u8, metainfo: &Metainfo) -> std::path::PathBuf {
    let hash = metainfo.info().info_hash_v2().unwrap();
    dir.path().join(format!("state-{number}")).join(leaves_path(&hash))
}

/// The leaves of a file from `index` on, with what leads to the root.
fn request_of(metainfo: &Metainfo, name: &str, index: u32, length: u32) -> HashRequest {
    let mut files = metainfo.info().files();
    let file = files.find(|file| file.path().as_str().ends_with(name)).unwrap();
    let shape = TreeShape::of_file(file.len_bytes).unwrap();
    let range = HashRange::to_root(shape, 0, index, length).unwrap();
    HashRequest {
        pieces_root: file.pieces_root.unwrap(),
        base_layer: 0,
        index,
        length,
        proof_layers: range.proof_layers(),
    }
}

fn dial(node: &Node, metainfo: &Metainfo, program: &[u8; 2], number: u8) -> Script {
    let id = *metainfo.info().info_hash_v2().unwrap().first_chunk().unwrap();
    let mut script = Script::dial(node.addr(), id, true, program, number);
    script.say(&[EXTENDED, Message::HaveNone]);
    script
}

/// The leaves that answer a request, without what proves them; `None` when it is refused.
fn ask(script: &mut Script, request: HashRequest) -> Option<Vec<u8>> {
    script.say(&[Message::HashRequest(request)]);
    script.hear("an answer", |message| match message {
        Message::Hashes { request: of, hashes } if *of == request => {
            Some(Some(hashes[..request.length as usize * 32].to_vec()))
        }
        Message::HashReject(of) if *of == request => Some(None),
        _ => None,
    })
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not yet: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whoever made the torrent has hashed every block of it: the leaves lie in the sidecar, are given to the
/// first who asks ahead of the data, also after a restart, and nothing is hashed for that.
#[test]
fn an_origin_gives_leaves_without_hashing_anything_again() {
    let dir = TestDir::new("leaves");
    let source = source_in(&dir);
    for (number, kind) in [(1, Kind::V2), (2, Kind::Hybrid)] {
        let mut node = Node::start(dir.path(), number);
        let leaves = node.engine.new_leaf_file().unwrap();
        let options = CreateOptions {
            kind,
            piece_len_bytes: Some(256 << 10),
            leaves: Some(leaves.clone()),
            ..CreateOptions::default()
        };
        let made = offline::create(&source.join("data"), &options, &|_, _| {}).unwrap();
        let metainfo = Arc::new(made.metainfo);
        leaves.keep(&metainfo.info().info_hash_v2().unwrap()).unwrap();
        let payload = Payload::of(&metainfo, &source);
        let wanted = sidecar_of(&payload, &metainfo);
        let path = sidecar_path(&dir, number, &metainfo);
        assert!(fs::read(&path).unwrap() == wanted, "{kind:?}");
        for life in 0..2 {
            let id = node.seed(&metainfo, &source);
            node.wait_complete(id);
            let mut script = dial(&node, &metainfo, b"RS", 1);
            let asked = [("long.bin", 128), ("long.bin", 256), ("big.bin", 0), ("odd.bin", 0)];
            for (name, index) in asked {
                let length = if name == "odd.bin" { 8 } else { 128 };
                let request = request_of(&metainfo, name, index, length);
                let got = ask(&mut script, request).expect("leaves ahead of the data");
                let all = payload.leaves(&request.pieces_root);
                let end = all.len().min((index + length) as usize);
                let right = all[index as usize..end].as_flattened();
                assert!(got.starts_with(right), "{name} of {kind:?}, life {life}");
            }
            assert_eq!(node.engine.status().hashed_bytes, 0, "{kind:?}, life {life}");
            node.engine.shutdown();
            drop(node);
            node = Node::start(dir.path(), number);
        }
    }
}

/// A listing whose sidecar is lost: whoever asks ahead is refused, and meanwhile all of it is made again,
/// once. From then on it is given like any other.
#[test]
fn an_origin_without_a_sidecar_makes_it_once() {
    let dir = TestDir::new("leaves");
    let source = source_in(&dir);
    let metainfo = torrent(&source.join("data"), Kind::V2, 256 << 10);
    let payload = Payload::of(&metainfo, &source);
    let wanted = sidecar_of(&payload, &metainfo);
    let mut node = Node::start(dir.path(), 1);
    let id = node.seed(&metainfo, &source);
    node.wait_complete(id);
    let path = sidecar_path(&dir, 1, &metainfo);
    assert!(!path.exists());
    let mut script = dial(&node, &metainfo, b"RS", 1);
    let request = request_of(&metainfo, "long.bin", 128, 128);
    assert!(ask(&mut script, request).is_none(), "it was hashed while somebody waited");
    until("the sidecar is whole", || fs::read(&path).is_ok_and(|found| found == wanted));
    let total = metainfo.info().geometry().payload_len();
    assert_eq!(node.engine.status().hashed_bytes, total, "each block once");
    for number in 2..6 {
        let mut script = dial(&node, &metainfo, b"RS", number);
        assert!(ask(&mut script, request).is_some());
    }
    assert_eq!(node.engine.status().hashed_bytes, total);
    // Nothing was in doubt meanwhile: the next start believes everything.
    node.engine.shutdown();
    drop(node);
    let mut node = Node::start(dir.path(), 1);
    let id = node.engine.add(add_of(&metainfo, Place::InPlace(source.clone()), &[])).unwrap();
    node.wait_complete(id);
    assert_eq!(node.engine.status().hashed_bytes, 0);
}

/// A sidecar that a power cut has torn, and one of other bytes: nothing wrong is given out, and what is
/// wrong is made again, and no more than that.
#[test]
fn a_torn_sidecar_is_mended_where_it_is_torn() {
    let dir = TestDir::new("leaves");
    let source = source_in(&dir);
    let metainfo = torrent(&source.join("data"), Kind::V2, 256 << 10);
    let payload = Payload::of(&metainfo, &source);
    let wanted = sidecar_of(&payload, &metainfo);
    let request = request_of(&metainfo, "long.bin", 128, 128);
    let leaves = payload.leaves(&request.pieces_root);
    let right = leaves[128..256].as_flattened();
    let at = wanted.windows(32).position(|leaf| leaf == leaves[128]).unwrap();
    let damage = |bytes: &mut Vec<u8>, what: &str| match what {
        "torn" => bytes[at..at + 4096].fill(0),
        "short" => bytes.truncate(at + 100),
        _ => bytes[at + 3] ^= 1,
    };
    for (number, what) in (1..).zip(["torn", "short", "other"]) {
        let path = sidecar_path(&dir, number, &metainfo);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = wanted.clone();
        damage(&mut bytes, what);
        fs::write(&path, bytes).unwrap();
        let node = Node::start(dir.path(), number);
        let id = node.seed(&metainfo, &source);
        let mut script = dial(&node, &metainfo, b"RS", 1);
        assert!(ask(&mut script, request).is_none(), "{what}");
        until("the leaves are right", || {
            fs::read(&path).is_ok_and(|found| found.get(at..at + right.len()) == Some(right))
        });
        assert!(ask(&mut script, request).is_some_and(|got| got == right), "{what}");
        assert_eq!(node.engine.status().hashed_bytes, 128 * 16_384, "{what}");
        let status = node.engine.listing_status(id).unwrap();
        assert_eq!(status.have_pieces, status.piece_count);
    }
}

/// An origin of eight long pieces without a sidecar, with a slow leech that keeps it awake.
fn long_pieces() -> (TestDir, Arc<Metainfo>, SimMarket, usize, ListingId) {
    let dir = TestDir::new("leaves");
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("one.bin"), noise(16 << 20, 8)).unwrap();
    let metainfo = torrent(&source.join("one.bin"), Kind::V2, 2 << 20);
    let mut market = SimMarket::new(SimConfig::new(1), &dir.path().join("scratch"));
    let node = market.add_node();
    market.place(node, &metainfo, &source);
    let add = add_of(&metainfo, Place::InPlace("in place".into()), &[]);
    let id = market.add(node, AddListing { known_complete: true, ..add });
    // Nothing but a handshake wakes it.
    let leech = market.add_node();
    let addr = market.world.addr(node);
    market.world.set_upload_rate(node, Some(100_000));
    market.add(leech, add_of(&metainfo, Place::Owned("owned".into()), &[addr]));
    market.world.run_for(Duration::from_secs(1));
    (dir, metainfo, market, node, id)
}

/// A disk that fails to read for a while: what was to be hashed for its leaves was taken for rotten, and data of
/// the user's, which is never fetched, was not had any more until the next start.
#[test]
fn what_cannot_be_read_for_its_leaves_is_read_again_and_not_given_up() {
    let (_dir, metainfo, mut market, node, id) = long_pieces();
    market.world.set_read_errors(node, 1_000_000);
    let request = request_of(&metainfo, "one.bin", 0, 512);
    assert!(market.world.machine(node).unwrap().leaves_again(id, request));
    market.world.run_for(Duration::from_secs(1));
    market.world.set_read_errors(node, 0);
    market.world.run_for(Duration::from_secs(120));
    let status = market.status(node, id).unwrap();
    assert_eq!(status.have_pieces, status.piece_count, "{:?}", status.state);
}

/// Long pieces that are read back were hashed in the order of the torrent and not as they were queued: a
/// later one got the bytes of an earlier one in its middle, and was withdrawn as rotten.
#[test]
fn long_pieces_are_read_again_one_by_one_when_their_leaves_are_lost() {
    let (_dir, metainfo, mut market, node, id) = long_pieces();
    let before = market.counters(node).hashed_bytes.get();
    // Whoever asks for the later piece first is not kept waiting for the other, nor hashed into it.
    for index in [5 * 128, 2 * 128] {
        let request = request_of(&metainfo, "one.bin", index, 128);
        assert!(market.world.machine(node).unwrap().leaves_again(id, request));
    }
    market.world.run_for(Duration::from_secs(5));
    assert!(market.counters(node).hashed_bytes.get() >= before + (4 << 20));
    let status = market.status(node, id).unwrap();
    assert_eq!(status.have_pieces, status.piece_count, "a piece was taken for rotten");
}
