//! Whole v1 pieces wait for each other so that SHA-1 finds its lanes busy, and none of them waits for long.

use std::fs;
use std::path::PathBuf;

use ringseed_core::wire::message::{Message, RawBlock};

use super::script::{Payload, Script};
use super::*;
use crate::io::sim::SimConfig;
use crate::test_support::{TestDir, noise};
use crate::testing::SimMarket;

struct Scene {
    dir: TestDir,
    source: PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene(len: usize, piece_len: u64) -> Scene {
    let dir = TestDir::new("lanes");
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("long"), noise(len, 3)).unwrap();
    let metainfo = torrent(&source.join("long"), Kind::V1, piece_len);
    Scene { source, metainfo, dir }
}

/// A source that answers what it is asked for when the test says so.
struct Source<'a> {
    script: Script,
    payload: Payload<'a>,
    asked: Vec<RawBlock>,
}

impl<'a> Source<'a> {
    fn dial(scene: &'a Scene, leech: &Node) -> Source<'a> {
        let wire_id = scene.metainfo.info().info_hash_v1().unwrap();
        let mut script = Script::dial(leech.addr(), wire_id, false, b"XX", 1);
        script.say(&[Message::HaveAll, Message::Unchoke]);
        let payload = Payload::of(&scene.metainfo, &scene.source);
        Source { script, payload, asked: Vec::new() }
    }

    /// Answers the next request.
    fn answer(&mut self) {
        let request = |message: &Message<'_>| match *message {
            Message::Request(block) => Some(block),
            _ => None,
        };
        let block = self.script.hear("a request", request);
        let (piece, begin) = (block.piece, block.begin);
        let data = self.payload.block(block);
        self.script.say(&[Message::Piece { piece, begin, data: &data }]);
        self.asked.push(block);
    }
}

fn have_pieces(leech: &Node, id: ListingId) -> u32 {
    leech.engine.listing_status(id).unwrap().have_pieces
}

/// More has been asked for, and it does not come: what is whole is hashed after a lull, not when the source is given
/// up.
#[test]
fn a_whole_piece_does_not_wait_for_what_does_not_come() {
    let scene = scene(4 << 20, 64 << 10);
    let leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.dir.path().join("into"), &[]);
    let mut source = Source::dial(&scene, &leech);
    (0..4).for_each(|_| source.answer());
    let first = source.asked[0].piece;
    assert!(source.asked.iter().all(|block| block.piece == first), "{:?}", source.asked);
    let begun = Instant::now();
    while have_pieces(&leech, id) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(2), "it waits for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A source of 16 MB/s sends a block every millisecond, never pauses for as long as a lull is, and its next piece
/// takes a quarter of a second: the one that is whole does not wait for it.
#[test]
fn a_whole_piece_does_not_wait_for_a_slow_stream() {
    let scene = scene(12 << 20, 4 << 20);
    let mut config = SimConfig::new(4);
    config.latency = (Duration::from_micros(10), Duration::from_micros(50));
    config.disk_latency = config.latency;
    config.socket_buffer_bytes = 64 << 10;
    let mut market = SimMarket::new(config, &scene.dir.path().join("scratch"));
    let origin = market.add_node();
    market.place(origin, &scene.metainfo, &scene.source);
    let add = add_of(&scene.metainfo, Place::InPlace("in place".into()), &[]);
    market.add(origin, AddListing { known_complete: true, ..add });
    market.world.set_upload_rate(origin, Some(16_000_000));
    let leech = market.add_node();
    let peers = [market.world.addr(origin)];
    let add = add_of(&scene.metainfo, Place::Owned("owned".into()), &peers);
    let id = market.add(leech, add);
    // A piece and 100 ms of the next.
    while market.counters(leech).payload_received_bytes.get() < (4 << 20) + 1_600_000 {
        market.world.run_for(Duration::from_millis(1));
    }
    assert!(
        market.counters(leech).payload_received_bytes.get() < 7 << 20,
        "the second is not whole"
    );
    assert_eq!(market.status(leech, id).unwrap().have_pieces, 1);
}
