//! The engine against scripted peers: BEP 6, 21, 52, 54 as they are on the wire.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Barrier;

use ringseed_core::merkle::{HashRange, TreeShape, UpperTree};
use ringseed_core::wire::HashRequest;
use ringseed_core::wire::message::{Message, RawBlock};

use super::script::{EXTENDED, Payload, Script};
use super::*;
use crate::test_support::{TestDir, noise, snapshot, tree};

struct Scene {
    dir: TestDir,
    source: std::path::PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene(kind: Kind, piece_len: u64) -> Scene {
    let dir = TestDir::new("wire");
    let source = dir.path().join("source");
    tree(&source.join("data"), 8);
    let metainfo = torrent(&source.join("data"), kind, piece_len);
    Scene { source, metainfo, dir }
}

/// One file, so that its pieces are pieces of one tree.
fn scene_of_one_file(kind: Kind, len: usize, piece_len: u64) -> Scene {
    let dir = TestDir::new("wire");
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("one.bin"), noise(len, 3)).unwrap();
    let metainfo = torrent(&source.join("one.bin"), kind, piece_len);
    Scene { source, metainfo, dir }
}

impl Scene {
    fn v1_id(&self) -> [u8; 20] {
        self.metainfo.info().info_hash_v1().unwrap()
    }

    fn v2_id(&self) -> [u8; 20] {
        *self.metainfo.info().info_hash_v2().unwrap().first_chunk().unwrap()
    }

    fn goal(&self) -> std::path::PathBuf {
        self.dir.path().join("into")
    }

    /// The answer to a request for hashes.
    fn hashes(&self, payload: &Payload<'_>, request: &HashRequest) -> Vec<[u8; 32]> {
        let leaves = payload.leaves(&request.pieces_root);
        let shape = TreeShape::of_file(leaves.len() as u64 * 16_384).unwrap();
        let tree = UpperTree::new(shape, 0, &leaves, &request.pieces_root).unwrap();
        let HashRequest { base_layer, index, length, proof_layers, .. } = *request;
        let range = HashRange::new(shape, base_layer, index, length, proof_layers).unwrap();
        tree.answer(range, |_, _| None).unwrap()
    }
}

/// A request, if that is what was heard.
fn request(message: &Message<'_>) -> Option<RawBlock> {
    match *message {
        Message::Request(block) => Some(block),
        _ => None,
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not yet: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn piece(payload: &Payload<'_>, block: RawBlock) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = payload.block(block);
    Message::Piece { piece: block.piece, begin: block.begin, data: &data }.encode(&mut bytes);
    bytes
}

fn send(script: &mut Script, payload: &Payload<'_>, block: RawBlock, flip: bool) {
    let mut data = payload.block(block);
    data[0] ^= u8::from(flip);
    script.say(&[Message::Piece { piece: block.piece, begin: block.begin, data: &data }]);
}

/// A peer that knows only the v1 name, one that uses the v2 name, and one that upgrades: they feed one
/// picker and one store, no block is asked of two, and all of it ends in one listing.
#[test]
fn v1_v2_and_upgraded_peers_of_a_hybrid_share_one_picker_and_one_store() {
    let scene = scene(Kind::Hybrid, 64 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let mut leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let (v1, v2) = (scene.v1_id(), scene.v2_id());
    let mut scripts =
        [(v1, false, v1), (v2, true, v2), (v1, true, v2)].map(|(named, upgrades, answered)| {
            let script =
                Script::dial(leech.addr(), named, upgrades, b"XX", named[0] ^ u8::from(upgrades));
            assert_eq!(script.hello.wire_id.0, answered, "upgrades: {upgrades}");
            assert!(script.hello.reserved.v2());
            script
        });
    let all_are_asked = Barrier::new(3);
    let asked: Vec<Vec<RawBlock>> = std::thread::scope(|scope| {
        let serve = |script| {
            let (payload, all_are_asked): (&Payload<'_>, &Barrier) = (&payload, &all_are_asked);
            let script: &mut Script = script;
            scope.spawn(move || {
                script.say(&[Message::HaveAll, Message::Unchoke]);
                let mut asked = vec![script.hear("the first request", request)];
                all_are_asked.wait();
                send(script, payload, asked[0], false);
                while let Some(heard) = script.next(request) {
                    if let Some(block) = heard {
                        asked.push(block);
                        send(script, payload, block, false);
                    }
                }
                asked
            })
        };
        let threads = scripts.each_mut().map(serve);
        leech.wait_complete(id);
        assert_eq!(leech.engine.status().listings, 1);
        let sources = leech.engine.listing_status(id).unwrap().sources;
        let given: Vec<u64> = sources.iter().map(|source| source.verified_bytes).collect();
        assert_eq!(given.len(), 3);
        assert!(given.iter().all(|&bytes| bytes > 0), "{given:?}");
        leech.engine.shutdown();
        threads.map(|thread| thread.join().unwrap()).into()
    });
    let mut times: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    asked
        .iter()
        .flatten()
        .for_each(|block| *times.entry((block.piece, block.begin)).or_default() += 1);
    let geometry = scene.metainfo.info().geometry();
    let blocks = geometry.pieces().flat_map(|piece| geometry.blocks_of_piece(piece)).count();
    assert_eq!(times.len(), blocks, "every block was asked for");
    // At the very end a few may be asked of two.
    let twice = times.values().filter(|&&count| count > 1).count();
    assert!(twice <= 17, "{twice} of {blocks} blocks were asked for twice");
    assert_eq!(snapshot(&scene.goal()), snapshot(&scene.source));
}

/// The end of a file may be asked for as it is or with the pad behind it.
#[test]
fn a_request_may_end_at_the_end_of_the_file_or_run_into_the_pad() {
    let scene = scene(Kind::Hybrid, 32 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let geometry = scene.metainfo.info().geometry();
    let pads = geometry
        .pieces()
        .filter(|&piece| geometry.piece_data_len(piece) < geometry.piece_len(piece));
    let mut script = Script::dial(seed.addr(), scene.v2_id(), true, b"XX", 1);
    let mut seen = 0;
    for of in pads {
        let data_len = geometry.piece_data_len(of);
        let begin = data_len / 16_384 * 16_384;
        let to_file_end = data_len - begin;
        let into_pad = (geometry.piece_len(of) - begin).min(16_384);
        for len in [to_file_end, into_pad, into_pad.min(to_file_end + 1)] {
            let block = RawBlock { piece: of.get(), begin, len };
            if len == 0 {
                continue;
            }
            script.say(&[Message::Request(block)]);
            let got = script.hear("the block", |message| match message {
                Message::Piece { data, .. } => Some(data.to_vec()),
                _ => None,
            });
            assert!(got == payload.block(block), "{block:?}");
            seen += 1;
        }
    }
    assert!(seen >= 9, "{seen} ends of files");
}

/// rqbit 9.1 knows a hybrid by its v1 view alone: there the torrent is whole blocks wherever files end, and
/// it hangs up at a request that is none. So does this one, and everything comes nevertheless.
#[test]
fn a_peer_that_knows_v1_alone_serves_a_hybrid_in_whole_blocks() {
    let scene = scene(Kind::Hybrid, 32 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let geometry = scene.metainfo.info().geometry();
    let mut leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut script = Script::dial(leech.addr(), scene.v1_id(), false, b"XX", 1);
    let padded = std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut padded = 0;
            script.say(&[Message::HaveAll, Message::Unchoke]);
            while let Some(heard) = script.next(request) {
                let Some(block) = heard else { continue };
                let end = geometry.piece_len(geometry.piece(block.piece).unwrap());
                let is_whole =
                    block.begin % 16_384 == 0 && block.len == (end - block.begin).min(16_384);
                assert!(is_whole, "{block:?} of a piece of {end} bytes");
                padded += u32::from(
                    block.begin + block.len
                        > geometry.piece_data_len(geometry.piece(block.piece).unwrap()),
                );
                send(&mut script, &payload, block, false);
            }
            padded
        });
        leech.wait_complete(id);
        leech.engine.shutdown();
        serving.join().unwrap()
    });
    assert!(padded >= 4, "{padded} blocks ran into pads");
    assert_eq!(snapshot(&scene.goal()), snapshot(&scene.source));
}

/// A pad that is not zeros is no byte of the torrent and costs its sender the connection; the piece comes
/// from another.
#[test]
fn a_pad_of_other_bytes_is_refused_and_nothing_of_it_is_kept() {
    let scene = scene(Kind::Hybrid, 32 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let geometry = scene.metainfo.info().geometry();
    let mut leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut script = Script::dial(leech.addr(), scene.v1_id(), false, b"XX", 1);
    script.say(&[Message::HaveAll, Message::Unchoke]);
    while let Some(heard) = script.next(request) {
        let Some(block) = heard else { continue };
        let piece = geometry.piece(block.piece).unwrap();
        let mut data = payload.block(block);
        if block.begin + block.len > geometry.piece_data_len(piece) {
            *data.last_mut().unwrap() = 1;
        }
        script.say(&[Message::Piece { piece: block.piece, begin: block.begin, data: &data }]);
    }
    assert_eq!(leech.engine.status().closed["bad-pad"], 1);
    let seed = Node::start(scene.dir.path(), 2);
    seed.seed(&scene.metainfo, &scene.source);
    leech.engine.set_peers(id, vec![seed.addr()]);
    leech.wait_complete(id);
    leech.engine.shutdown();
    assert_eq!(snapshot(&scene.goal()), snapshot(&scene.source));
}

/// Older clients ask for 32 to 128 KiB at once. They were hung up on, and banned at the third time.
#[test]
fn long_requests_are_served_whole_and_endless_ones_are_not() {
    for (kind, piece_len) in [(Kind::V1, 1 << 20), (Kind::Hybrid, 128 << 10)] {
        let scene = scene(kind, piece_len);
        let payload = Payload::of(&scene.metainfo, &scene.source);
        // Less than one of them is granted at a time.
        let seed = Node::start_on(scene.dir.path(), 1, IoDriver::Auto, |config| {
            config.upload_rate_max = Some(1 << 20);
        });
        seed.seed(&scene.metainfo, &scene.source);
        let mut script = Script::dial(seed.addr(), scene.v1_id(), false, b"XX", 1);
        script.say(&[Message::Interested]);
        script.hear("unchoke", |message| matches!(message, Message::Unchoke).then_some(()));
        let last_of_extent = if kind == Kind::V1 { (256 << 10) - 5_000 } else { 0 };
        for (begin, len) in
            [(0, 32 << 10), (16_384, 64 << 10), (7, (64 << 10) + 1), (last_of_extent, 128 << 10)]
        {
            let block = RawBlock { piece: 0, begin, len };
            script.say(&[Message::Request(block)]);
            let mut got = script.raw_message();
            while got.first() != Some(&7) {
                got = script.raw_message();
            }
            assert_eq!(got[1..9], [0_u32.to_be_bytes(), begin.to_be_bytes()].concat());
            assert!(got[9..] == payload.block(block), "{block:?}");
        }
        assert!(seed.engine.status().closed.is_empty());
        let block = RawBlock { piece: 0, begin: 0, len: (128 << 10) + 1 };
        script.say(&[Message::Request(block)]);
        while script.next(|_| ()).is_some() {}
        assert_eq!(seed.engine.status().closed["out-of-range"], 1);
    }
}

/// Pieces of 1 KiB, asked for at random as rarest-first does: each lies in another extent, and all that is
/// read for the later requests once filled the share of the arena that the first one needed. libtorrent
/// got 954 blocks and then nothing.
#[test]
fn small_pieces_asked_for_at_random_are_served() {
    const LEN: usize = 40 << 20;
    const ASKED: u32 = 240;
    let scene = scene_of_one_file(Kind::V1, LEN, 1 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let mut script = Script::dial(seed.addr(), scene.v1_id(), false, b"XX", 1);
    script.say(&[Message::Interested]);
    script.hear("an unchoke", |message| matches!(message, Message::Unchoke).then_some(()));
    let count = (LEN >> 10) as u32;
    // A stride that meets every extent before it meets one twice.
    let asked = (0..8 * ASKED).map(|at| (at * 25_747) % count);
    let asked: Vec<RawBlock> = asked.map(|piece| RawBlock { piece, begin: 0, len: 1024 }).collect();
    let mut answers = 0;
    for (at, &block) in asked.iter().enumerate() {
        script.say(&[Message::Request(block)]);
        if at as u32 >= ASKED {
            let expected = asked[answers];
            let got = script.hear("a block", |message| match *message {
                Message::Piece { piece, data, .. } => Some((piece, data.to_vec())),
                _ => None,
            });
            assert!(got == (expected.piece, payload.block(expected)), "answer {answers}");
            answers += 1;
        }
    }
}

/// A stock client that has next to nothing hears what it may always have, and where to begin; it is
/// unchoked as well, and when serving ends nothing is given any more.
#[test]
fn a_newcomer_is_told_what_is_always_given_and_gets_nothing_when_serving_ends() {
    let scene = scene(Kind::V1, 32 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let mut script = Script::dial(seed.addr(), scene.v1_id(), false, b"XX", 1);
    script.say(&[Message::HaveNone]);
    let (mut allowed, mut suggested) = (Vec::new(), Vec::new());
    script.hear("four suggestions", |message| {
        match *message {
            Message::AllowedFast(piece) => allowed.push(piece),
            Message::Suggest(piece) => suggested.push(piece),
            _ => {}
        }
        (suggested.len() == 4).then_some(())
    });
    let piece_count = scene.metainfo.info().geometry().piece_count();
    let wanted = ringseed_core::wire::fast::allowed_fast_set(
        Ipv4Addr::LOCALHOST,
        ringseed_core::wire::WireId(scene.v1_id()),
        piece_count,
        10,
    );
    assert_eq!(allowed, wanted);
    let block = |piece| RawBlock { piece, begin: 0, len: 16_384 };
    script.say(&[Message::Request(block(allowed[0]))]);
    let got = script.hear("an allowed block", |message| match message {
        Message::Piece { data, .. } => Some(data.to_vec()),
        _ => None,
    });
    assert!(got == payload.block(block(allowed[0])));
    seed.engine.set_serving(false);
    script.hear("a choke", |message| matches!(message, Message::Choke).then_some(()));
    script.say(&[Message::Request(block(allowed[1]))]);
    script.hear("a reject", |message| match *message {
        Message::Reject(rejected) => (rejected == block(allowed[1])).then_some(()),
        Message::Piece { .. } => panic!("served although serving has ended"),
        _ => None,
    });
    // One that has something to trade is told nothing.
    seed.engine.set_serving(true);
    let mut trader = Script::dial(seed.addr(), scene.v1_id(), false, b"XX", 2);
    let mut bits = vec![0; piece_count.div_ceil(8) as usize];
    bits[..2].fill(0xff);
    trader.say(&[Message::Bitfield(&bits), Message::Request(block(3))]);
    trader.hear("a block", |message| match message {
        Message::AllowedFast(_) | Message::Suggest(_) => panic!("{message:?}"),
        Message::Piece { .. } => Some(()),
        _ => None,
    });
}

/// What a choked peer allows is asked for.
#[test]
fn what_a_choking_peer_allows_is_fetched() {
    let scene = scene(Kind::V1, 32 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut script = Script::dial(leech.addr(), scene.v1_id(), false, b"XX", 1);
    script.say(&[Message::HaveAll, Message::Suggest(4), Message::AllowedFast(5)]);
    for _ in 0..2 {
        let block = script.hear("a request", request);
        assert_eq!(block.piece, 5);
        send(&mut script, &payload, block, false);
    }
    until("the piece is there", || leech.engine.listing_status(id).unwrap().have_pieces == 1);
    // Nothing else was asked for: the unchoke comes before the next request.
    script.say(&[Message::Extended { id: 3, payload: &[0] }, Message::Unchoke]);
    let others = script.hear("a request", request);
    assert_ne!(others.piece, 5);
}

/// A piece that a peer has lost is not asked of it any more, until it has it again (BEP 54).
#[test]
fn a_piece_that_a_peer_has_lost_is_not_asked_for() {
    let scene = scene(Kind::V2, 64 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let mut leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut script = Script::dial(leech.addr(), scene.v2_id(), true, b"XX", 1);
    let lost = 3_u32;
    // Id 2 is what the engine has given don't-have.
    let dont_have = Message::Extended { id: 2, payload: &lost.to_be_bytes() };
    script.say(&[EXTENDED, Message::HaveAll, dont_have, Message::Unchoke]);
    let geometry = scene.metainfo.info().geometry();
    let piece_count = geometry.piece_count();
    let have = || leech.engine.listing_status(id).unwrap().have_pieces;
    let lost_piece = geometry.piece(lost).unwrap();
    let others = geometry.pieces().filter(|&piece| piece != lost_piece);
    for _ in 0..others.flat_map(|piece| geometry.blocks_of_piece(piece)).count() {
        let block = script.hear("a request", request);
        assert_ne!(block.piece, lost);
        send(&mut script, &payload, block, false);
    }
    until("all but one are there", || have() == piece_count - 1);
    script.say(&[Message::Have(lost)]);
    for _ in geometry.blocks_of_piece(lost_piece) {
        let block = script.hear("a request for what is back", request);
        assert_eq!(block.piece, lost);
        send(&mut script, &payload, block, false);
    }
    leech.wait_complete(id);
}

/// A stock client asks for leaves after a failure. The data has rotted under us meanwhile: making the
/// leaves shows it, the leaves are refused, and the piece is withdrawn (BEP 54). We want it again, too
/// (BEP 21).
#[test]
fn what_has_rotted_is_found_by_whoever_asks_for_its_leaves_and_withdrawn() {
    let scene = scene_of_one_file(Kind::V2, 1 << 20, 64 << 10);
    let seed = Node::start(scene.dir.path(), 1);
    let id = seed.seed(&scene.metainfo, &scene.source);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let path = scene.source.join("one.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5 * 65_536 + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut script = Script::dial(seed.addr(), scene.v2_id(), true, b"XX", 1);
    script.say(&[EXTENDED, Message::HaveNone]);
    let root = scene.metainfo.info().files().next().unwrap().pieces_root.unwrap();
    let of_piece = |piece: u32| HashRequest {
        pieces_root: root,
        base_layer: 0,
        index: piece * 4,
        length: 4,
        proof_layers: 1,
    };
    script.say(&[Message::HashRequest(of_piece(4))]);
    let good = script.hear("hashes of a good piece", |message| match message {
        Message::Hashes { request, hashes } => Some((*request, hashes.to_vec())),
        _ => None,
    });
    let wanted = scene.hashes(&payload, &of_piece(4));
    assert_eq!(good, (of_piece(4), wanted.as_flattened().to_vec()));
    script.say(&[Message::HashRequest(of_piece(5))]);
    let (mut is_refused, mut is_withdrawn) = (false, false);
    let mut wants_again = false;
    script.hear("a refusal, and that the piece is gone", |message| {
        match message {
            Message::HashReject(request) => is_refused = *request == of_piece(5),
            Message::Extended { id: 7, payload } => is_withdrawn = *payload == 5_u32.to_be_bytes(),
            Message::Extended { id: 0, payload } => {
                wants_again = !payload.windows(16).any(|bytes| bytes == b"11:upload_onlyi1");
            }
            Message::Hashes { .. } => panic!("leaves that nobody can vouch for"),
            _ => {}
        }
        (is_refused && is_withdrawn).then_some(())
    });
    assert!(wants_again);
    let piece_count = scene.metainfo.info().geometry().piece_count();
    assert_eq!(seed.engine.listing_status(id).unwrap().have_pieces, piece_count - 1);
}

/// A peer of our own is asked for the leaves before the first block of a piece, and a bad block is
/// fetched again by itself, while its piece is still on its way.
#[test]
fn leaves_go_ahead_of_the_data_and_a_bad_block_is_blamed_at_once() {
    let scene = scene_of_one_file(Kind::V2, 256 << 10, 256 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let mut leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut script = Script::dial(leech.addr(), scene.v2_id(), true, b"RS", 9);
    script.say(&[Message::HaveAll, Message::Unchoke]);
    let asked = script.hear("a request for leaves", |message| match message {
        Message::HashRequest(request) => Some(*request),
        Message::Request(block) => panic!("{block:?} before its leaves"),
        _ => None,
    });
    assert_eq!((asked.base_layer, asked.index, asked.length), (0, 0, 16));
    let hashes = scene.hashes(&payload, &asked);
    script.say(&[Message::Hashes { request: asked, hashes: hashes.as_flattened() }]);
    let first = script.hear("a request", request);
    send(&mut script, &payload, first, true);
    let mut sent = 0;
    let mut again = None;
    // The bad block comes back although most of its piece was never sent.
    while again.is_none() {
        let block = script.hear("the bad block again", request);
        if (block.piece, block.begin) == (first.piece, first.begin) {
            again = Some(block);
        } else if sent < 4 {
            send(&mut script, &payload, block, false);
            sent += 1;
        }
    }
    assert_eq!(leech.engine.listing_status(id).unwrap().wasted_bytes, 16_384);
    // Twice more, and the proofs are enough.
    send(&mut script, &payload, first, true);
    script.hear("the bad block a third time", |message| {
        request(message).filter(|block| (block.piece, block.begin) == (first.piece, first.begin))
    });
    send(&mut script, &payload, first, true);
    let event = leech.wait("ban", |event| matches!(event, Event::PeerBanned { .. }));
    assert!(matches!(event, Event::PeerBanned { peer_id, .. } if peer_id[19] == 9));
}

/// Serves blocks until the engine has what it wants, the first of them once with a wrong bit; asked for
/// hashes it answers if it may. Returns what was asked for and how often hashes were.
fn serve_one_lie(
    scene: &Scene,
    script: &mut Script,
    gives_leaves: bool,
    is_done: impl Fn() -> bool,
) -> (Vec<RawBlock>, u32) {
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let (mut asked, mut hash_requests) = (Vec::new(), 0);
    script.say(&[Message::HaveAll, Message::Unchoke]);
    while !is_done() {
        enum Heard {
            Block(RawBlock),
            Hashes(HashRequest),
        }
        let moment = Duration::from_millis(20);
        let heard = script.listen(moment, |message| match message {
            Message::Request(block) => Some(Heard::Block(*block)),
            Message::HashRequest(request) => Some(Heard::Hashes(*request)),
            _ => None,
        });
        match heard.map(Option::flatten) {
            Some(Some(Heard::Block(block))) => {
                send(script, &payload, block, asked.is_empty());
                asked.push(block);
            }
            Some(Some(Heard::Hashes(request))) if gives_leaves => {
                hash_requests += 1;
                let hashes = scene.hashes(&payload, &request);
                script.say(&[Message::Hashes { request, hashes: hashes.as_flattened() }]);
            }
            Some(Some(Heard::Hashes(request))) => {
                hash_requests += 1;
                script.say(&[Message::HashReject(request)]);
            }
            Some(None) => {}
            None => break,
        }
    }
    (asked, hash_requests)
}

/// A stock peer is asked for leaves after a failure only; then one block is fetched again, and no more.
/// If it refuses, the piece is judged by its hash, and all of it is fetched again.
#[test]
fn a_stock_peer_is_asked_for_leaves_after_a_failure_only() {
    for (gives_leaves, again) in [(true, 1), (false, 16)] {
        let scene = scene_of_one_file(Kind::V2, 512 << 10, 256 << 10);
        let leech = Node::start(scene.dir.path(), 1);
        let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
        let mut script = Script::dial(leech.addr(), scene.v2_id(), true, b"XX", 9);
        let is_done = || leech.engine.listing_status(id).unwrap().have_pieces == 2;
        let (asked, hash_requests) = serve_one_lie(&scene, &mut script, gives_leaves, is_done);
        assert_eq!(asked.len(), 32 + again, "leaves given: {gives_leaves}");
        assert_eq!(hash_requests, 1);
        let status = leech.engine.listing_status(id).unwrap();
        assert_eq!(status.wasted_bytes, again as u64 * 16_384);
    }
}

/// A piece as long as the arena goes to the disk before it is whole, and is judged by the leaves that were hashed on
/// the way there: what is wrong in it is found, fetched again, and nothing false is had meanwhile.
#[test]
fn a_lie_in_a_spilled_piece_is_found_by_its_leaves() {
    for gives_leaves in [true, false] {
        let scene = scene_of_one_file(Kind::V2, 16 << 20, 16 << 20);
        let mut leech = Node::start(scene.dir.path(), 1);
        let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
        let mut script = Script::dial(leech.addr(), scene.v2_id(), true, b"XX", 9);
        let is_done = || leech.engine.listing_status(id).unwrap().have_pieces == 1;
        let (asked, _) = serve_one_lie(&scene, &mut script, gives_leaves, is_done);
        leech.wait_complete(id);
        assert!(leech.engine.status().arena_waits > 0, "it was to be spilled");
        assert!(asked.len() > 1024, "the lie was believed");
        assert_eq!(snapshot(&scene.goal()), snapshot(&scene.source));
    }
}

/// A peer that named the v1 view alone is never sent a message of BEP 52.
#[test]
fn a_v1_peer_is_not_asked_for_hashes() {
    let scene = scene_of_one_file(Kind::Hybrid, 512 << 10, 256 << 10);
    let leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut script = Script::dial(leech.addr(), scene.v1_id(), false, b"RS", 9);
    let is_done = || leech.engine.listing_status(id).unwrap().have_pieces == 2;
    let (asked, hash_requests) = serve_one_lie(&scene, &mut script, true, is_done);
    assert_eq!((asked.len(), hash_requests), (32 + 16, 0));
}

/// Half a block came, the request was taken back, another peer sent the block, and the first one was asked
/// again: nothing of the two transfers is mixed, and nobody is blamed.
#[test]
fn a_block_asked_for_again_in_the_middle_convicts_nobody() {
    let scene = scene_of_one_file(Kind::V1, 256 << 10, 256 << 10);
    let payload = Payload::of(&scene.metainfo, &scene.source);
    let mut leech = Node::start(scene.dir.path(), 1);
    let id = leech.fetch(&scene.metainfo, &scene.goal(), &[]);
    let mut slow = Script::dial(leech.addr(), scene.v1_id(), false, b"XX", 1);
    slow.say(&[Message::HaveAll, Message::Unchoke]);
    let first = slow.hear("a request", request);
    let message = piece(&payload, first);
    slow.raw(&message[..8000]);
    // Another one brings all it is asked for, the end of the slow one's queue included.
    let mut fast = Script::dial(leech.addr(), scene.v1_id(), false, b"XX", 2);
    let is_done = || leech.engine.listing_status(id).unwrap().have_pieces == 1;
    fast.say(&[Message::HaveAll, Message::Unchoke]);
    while !is_done() {
        match fast.listen(Duration::from_millis(20), request).map(Option::flatten) {
            Some(Some(block)) => send(&mut fast, &payload, block, false),
            Some(None) => {}
            None => break,
        }
    }
    slow.raw(&message[8000..]);
    leech.wait_complete(id);
    assert!(!leech.seen.iter().any(|event| matches!(event, Event::PeerBanned { .. })));
    assert_eq!(snapshot(&scene.goal()), snapshot(&scene.source));
}
