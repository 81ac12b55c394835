//! Many slow peers beside a fast one, in an engine with little memory: it does not wait for them.

use std::fs;
use std::path::PathBuf;

use ringseed_core::wire::message::{Message, RawBlock};

use super::script::{Payload, Script};
use super::*;
use crate::test_support::{TestDir, noise};

/// More than the 64 extents of these engines.
const SLOW: u8 = 80;
/// Payload in bytes.
const LEN: usize = 32 << 20;
/// Length of a piece in bytes: a quarter of the memory.
const PIECE_LEN: u32 = 4 << 20;
/// What the fast peer needs at most, a loaded machine considered: alone it is a quarter of a second. Only
/// after five seconds a stalled send is given up, after fifteen a silent peer.
const TIME_MAX: Duration = Duration::from_secs(4);

struct Scene {
    dir: TestDir,
    source: PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene() -> Scene {
    let dir = TestDir::new("slow");
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("long"), noise(LEN, 3)).unwrap();
    let metainfo = torrent(&source.join("long"), Kind::V1, PIECE_LEN.into());
    Scene { source, metainfo, dir }
}

/// Eighty peers had a block or none to give, took an extent each, and with them all memory: whoever came
/// after that with everything waited until they were given up for silent.
#[test]
fn a_fast_source_does_not_wait_for_the_memory_of_slow_ones() {
    let scene = scene();
    let wire_id = scene.metainfo.info().info_hash_v1().unwrap();
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let mut leech = Node::start(scene.dir.path(), 2);
    let id = leech.fetch(&scene.metainfo, &scene.dir.path().join("into"), &[]);
    let is_request = |message: &Message<'_>| matches!(message, Message::Request(_)).then_some(());
    let slow: Vec<Script> = (0..SLOW)
        .map(|number| {
            let mut script = Script::dial(leech.addr(), wire_id, false, b"XX", number);
            script.say(&[Message::HaveAll, Message::Unchoke]);
            script.hear("it is asked for something", is_request);
            script
        })
        .collect();
    let begun = Instant::now();
    leech.engine.set_peers(id, vec![seed.addr()]);
    leech.wait_complete(id);
    let taken = begun.elapsed();
    assert!(taken < TIME_MAX, "{taken:?}");
    drop(slow);
}

/// A peer with room for one request filled each receive with its answer. That was taken for a stream, and the
/// extent of the next block lent to a receive that nothing came for: everybody else's blocks of it waited
/// beside it, and the piece could not be judged.
#[test]
fn a_peer_that_answers_one_request_at_a_time_keeps_no_extent_between_them() {
    let scene = scene();
    let wire_id = scene.metainfo.info().info_hash_v1().unwrap();
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let mut leech = Node::start(scene.dir.path(), 2);
    let id = leech.fetch(&scene.metainfo, &scene.dir.path().join("into"), &[]);
    let mut slow = Script::dial(leech.addr(), wire_id, false, b"XX", 1);
    let one_at_a_time = Message::Extended { id: 0, payload: b"d4:reqqi1ee" };
    slow.say(&[one_at_a_time, Message::HaveAll, Message::Unchoke]);
    let request = |message: &Message<'_>| match *message {
        Message::Request(block) => Some(block),
        _ => None,
    };
    for _ in 0..3 {
        let RawBlock { piece, begin, len } = slow.hear("a request", request);
        let data = payload.block(RawBlock { piece, begin, len });
        slow.say(&[Message::Piece { piece, begin, data: &data }]);
    }
    slow.hear("one more", request);
    let begun = Instant::now();
    leech.engine.set_peers(id, vec![seed.addr()]);
    leech.wait_complete(id);
    let taken = begun.elapsed();
    assert!(taken < TIME_MAX, "{taken:?}");
}

/// Peers that asked for much and read nothing kept an extent each, and a fast one found none to be served
/// from.
#[test]
fn a_fast_leech_does_not_wait_for_the_memory_of_slow_ones() {
    let scene = scene();
    let wire_id = scene.metainfo.info().info_hash_v1().unwrap();
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let blocks: Vec<RawBlock> = (0..LEN as u32 / (16 << 10))
        .map(|block| block * (16 << 10))
        .map(|at| RawBlock { piece: at / PIECE_LEN, begin: at % PIECE_LEN, len: 16 << 10 })
        .collect();
    let mut slow: Vec<Script> = (0..SLOW)
        .map(|number| {
            let mut script = Script::dial_narrow(seed.addr(), wire_id, number);
            script.say(&[Message::HaveNone, Message::Interested]);
            script.hear("it may ask", |message| matches!(message, Message::Unchoke).then_some(()));
            script
        })
        .collect();
    for (number, script) in slow.iter_mut().enumerate() {
        // Each begins elsewhere, so that they share no extent.
        let from = blocks.iter().cycle().skip(number * 16).take(500);
        let asked: Vec<Message<'_>> = from.map(|&block| Message::Request(block)).collect();
        script.say(&asked);
    }
    // Their systems' buffers are full, and each has a send that does not end.
    std::thread::sleep(Duration::from_millis(300));
    let mut leech = Node::start(scene.dir.path(), 2);
    let begun = Instant::now();
    let id = leech.fetch(&scene.metainfo, &scene.dir.path().join("into"), &[seed.addr()]);
    leech.wait_complete(id);
    let taken = begun.elapsed();
    assert!(taken < TIME_MAX, "{taken:?}");
}
