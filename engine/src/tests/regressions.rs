//! Faults that a review found, each with its story. They stay fixed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::sleep;

use super::*;
use crate::EngineError;
use crate::io::sim::{Crash, SimConfig};
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise, snapshot, tree};
use crate::testing::SimMarket;

/// The 68 bytes of a stranger.
fn handshake(metainfo: &Metainfo, peer_id: [u8; 20]) -> Vec<u8> {
    let mut bytes = b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x04".to_vec();
    bytes.extend_from_slice(&metainfo.info().wire_ids().next().unwrap());
    bytes.extend_from_slice(&peer_id);
    bytes
}

/// A connection of a stranger whose handshake is answered.
fn connect(node: &Node, metainfo: &Metainfo, number: u8) -> TcpStream {
    let mut stream = TcpStream::connect(node.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut peer_id = *b"-XX0000-000000000000";
    peer_id[19] = number;
    stream.write_all(&handshake(metainfo, peer_id)).unwrap();
    let _ = stream.read(&mut [0; 68]); // refused or answered
    stream
}

/// A connection over the bound of its listing was closed and yet counted for ever: after a few, the
/// listing took nobody in any more and dialled nobody.
#[test]
fn strangers_over_the_bound_leave_room_when_they_go() {
    let dir = TestDir::new("full");
    let source = dir.path().join("source");
    tree(&source.join("data"), 6);
    let metainfo = torrent(&source.join("data"), Kind::V1, 64 << 10);
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        config.peers_per_listing_max = 2;
    });
    let id = seed.seed(&metainfo, &source);
    let strangers: Vec<TcpStream> =
        (0..6).map(|number| connect(&seed, &metainfo, number)).collect();
    drop(strangers);
    let until = Instant::now() + Duration::from_secs(10);
    while seed.engine.listing_status(id).unwrap().peers > 0 && Instant::now() < until {
        sleep(Duration::from_millis(20));
    }
    assert_eq!(seed.engine.listing_status(id).unwrap().peers, 0);
    let mut leech = Node::start(dir.path(), 2);
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[seed.addr()]);
    leech.wait_complete(id);
}

/// What the handle says of the market's members reaches the door.
#[test]
fn members_that_the_engine_is_told_of_are_not_counted_by_their_address() {
    let dir = TestDir::new("members");
    let source = dir.path().join("source");
    tree(&source.join("data"), 6);
    let metainfo = torrent(&source.join("data"), Kind::V1, 64 << 10);
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| config.limit_loopback = true);
    let id = seed.seed(&metainfo, &source);
    seed.engine.set_members(vec!["127.0.0.1".parse().unwrap()]);
    let _held: Vec<TcpStream> = (0..12).map(|at| connect(&seed, &metainfo, at)).collect();
    let until = Instant::now() + Duration::from_secs(5);
    while seed.engine.listing_status(id).unwrap().peers < 12 && Instant::now() < until {
        sleep(Duration::from_millis(10));
    }
    assert_eq!(seed.engine.listing_status(id).unwrap().peers, 12);
}

/// Whoever called itself by the id of an honest peer took the place of its connection, and its bans
/// with it.
#[test]
fn a_stranger_with_the_name_of_a_peer_does_not_push_it_out() {
    let dir = TestDir::new("name");
    let source = dir.path().join("source");
    tree(&source.join("data"), 6);
    let metainfo = torrent(&source.join("data"), Kind::V1, 64 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    seed.engine.set_upload_rate(Some(1_000_000));
    let mut leech = Node::start(dir.path(), 2);
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[seed.addr()]);
    let until = Instant::now() + PATIENCE;
    while leech.engine.listing_status(id).unwrap().have_bytes == 0 {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(5));
    }
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    rustix::net::connect(&socket, &leech.addr()).unwrap();
    let mut stream = TcpStream::from(socket);
    let mut peer_id = *b"-RS0100-000000000000";
    peer_id[19] = 1;
    stream.write_all(&handshake(&metainfo, peer_id)).unwrap();
    assert_eq!(stream.read(&mut [0; 68]).unwrap(), 68);
    sleep(Duration::from_millis(50));
    assert_eq!(leech.engine.listing_status(id).unwrap().peers, 2);
    seed.engine.set_upload_rate(None);
    leech.wait_complete(id);
}

/// Data that was deleted behind our back was fetched again, but the journal went on believing the old
/// pieces: after the next stop the half-fetched files had their full length, and zeros were served.
#[test]
fn deleted_data_is_not_believed_again_after_half_of_it_is_back() {
    let dir = TestDir::new("deleted");
    let (source, into) = (dir.path().join("source"), dir.path().join("into"));
    tree(&source.join("data"), 6);
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 16 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    for delete_all in [true, false] {
        let mut leech = Node::start(dir.path(), 2);
        let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
        leech.wait_complete(id);
        leech.engine.shutdown();
        drop(leech);
        if delete_all {
            fs::remove_dir_all(into.join("data")).unwrap();
        } else {
            fs::remove_file(into.join("data/big.bin")).unwrap();
        }
        seed.engine.set_upload_rate(Some(1_000_000));
        let leech = Node::start(dir.path(), 2);
        let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
        let total = metainfo.info().geometry().payload_len();
        let half = if delete_all { total / 3 } else { total * 2 / 3 };
        let until = Instant::now() + PATIENCE;
        while leech.engine.listing_status(id).unwrap().have_bytes < half {
            assert!(Instant::now() < until);
            sleep(Duration::from_millis(10));
        }
        leech.engine.shutdown();
        drop(leech);
        seed.engine.set_upload_rate(None);
        let mut leech = Node::start(dir.path(), 2);
        let id = leech.fetch(&metainfo, &into, &[seed.addr()]);
        leech.wait_complete(id);
        leech.engine.shutdown();
        assert!(snapshot(&into) == snapshot(&source), "wrong bytes, all deleted: {delete_all}");
    }
}

/// A listing removed with its data and added again at once: the removal still under way took the new
/// files as well.
#[test]
fn what_is_added_again_survives_the_removal_before_it() {
    let dir = TestDir::new("again");
    let (source, into) = (dir.path().join("source"), dir.path().join("into"));
    tree(&source.join("data"), 6);
    for file in 0..300 {
        fs::write(source.join(format!("data/{file}")), [file as u8; 100]).unwrap();
    }
    let metainfo = torrent(&source.join("data"), Kind::Hybrid, 64 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let mut leech = Node::start(dir.path(), 2);
    let mut id = leech.fetch(&metainfo, &into, &[seed.addr()]);
    for _ in 0..5 {
        leech.wait_complete(id);
        leech.engine.remove(id, true);
        id = loop {
            match leech.engine.add(add_of(&metainfo, Place::Owned(into.clone()), &[seed.addr()])) {
                Ok(id) => break id,
                Err(EngineError::Exists { .. }) => sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error}"),
            }
        };
    }
    leech.wait_complete(id);
    sleep(Duration::from_millis(200));
    leech.engine.shutdown();
    assert!(snapshot(&into) == snapshot(&source));
}

struct Scene {
    _dir: TestDir,
    source: std::path::PathBuf,
    scratch: std::path::PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene(name: &str, len: usize, kind: Kind, piece_len: u64) -> Scene {
    let dir = TestDir::new("regressions");
    let source = dir.path().join("source");
    fs::create_dir_all(source.join(name)).unwrap();
    fs::write(source.join(name).join("big.bin"), noise(len, 77 + len as u64)).unwrap();
    let metainfo = torrent(&source.join(name), kind, piece_len);
    Scene { source, scratch: dir.path().join("scratch"), metainfo, _dir: dir }
}

fn seed_of(market: &mut SimMarket, scene: &Scene) -> usize {
    let node = market.add_node();
    market.place(node, &scene.metainfo, &scene.source);
    let place = Place::InPlace("in place".into());
    let add = AddListing { known_complete: true, ..add_of(&scene.metainfo, place, &[]) };
    market.add(node, add);
    node
}

fn fetch(market: &mut SimMarket, scene: &Scene, node: usize, from: &[usize]) -> ListingId {
    let peers: Vec<SocketAddr> = from.iter().map(|&node| market.world.addr(node)).collect();
    market.add(node, add_of(&scene.metainfo, Place::Owned("owned".into()), &peers))
}

/// Long pieces that were spilled are read back in the order they got whole in, not in the order of the
/// torrent. One that lies before another was hashed into the middle of it, and both honest sources
/// were banned for that.
#[test]
fn spilled_pieces_are_judged_one_by_one() {
    for kind in [Kind::V1, Kind::Hybrid] {
        let scene = scene("data", 40 << 20, kind, 4 << 20);
        for seed in 0..4 {
            let mut config = SimConfig::new(seed);
            config.faults.read_error_ppm = if seed % 2 == 0 { 0 } else { 10_000 };
            let mut market = SimMarket::new(config, &scene.scratch);
            let sources: Vec<usize> = (0..6).map(|_| seed_of(&mut market, &scene)).collect();
            for &source in &sources {
                market.world.set_upload_rate(source, Some(20_000_000));
            }
            let leech = market.add_node();
            let id = fetch(&mut market, &scene, leech, &sources);
            let mut events = Vec::new();
            let is_complete =
                |event: &Event| matches!(event, Event::Complete { id: of } if *of == id);
            for _ in 0..120 {
                market.world.run_for(Duration::from_secs(1));
                events.extend(market.events(leech));
                if events.iter().any(is_complete) {
                    break;
                }
            }
            let banned = events.iter().any(|event| matches!(event, Event::PeerBanned { .. }));
            assert!(!banned, "seed {seed} of {kind:?}: {events:?}");
            assert!(events.iter().any(is_complete), "seed {seed} of {kind:?}");
            assert!(market.wrong_files(leech, &scene.metainfo, &scene.source).is_empty());
            // Blocks that two sent at the end are less than one piece that was fetched again.
            let wasted_bytes = market.status(leech, id).unwrap().wasted_bytes;
            assert!(seed % 2 == 1 || wasted_bytes < 4 << 20, "seed {seed} of {kind:?}");
        }
    }
}

/// A spilled piece that our own disk would not give back was taken for a bad one. With one source all of it
/// came from there, so each read error was a proof against it, and the third banned it for a day.
#[test]
fn nobody_is_blamed_for_what_our_own_disk_does_not_read() {
    // As long as the arena: a piece cannot be whole in memory.
    for kind in [Kind::V1, Kind::Hybrid] {
        let scene = scene("data", 64 << 20, kind, 16 << 20);
        let mut wasted_bytes = 0;
        for seed in 0..3 {
            let mut market = SimMarket::new(SimConfig::new(seed), &scene.scratch);
            let source = seed_of(&mut market, &scene);
            let leech = market.add_node();
            market.world.set_read_errors(leech, 20_000);
            let id = fetch(&mut market, &scene, leech, &[source]);
            let mut is_complete = false;
            for _ in 0..120 {
                market.world.run_for(Duration::from_secs(1));
                for event in market.events(leech) {
                    is_complete |= matches!(event, Event::Complete { id: of } if of == id);
                    let is_ban = matches!(event, Event::PeerBanned { .. });
                    assert!(!is_ban, "seed {seed} of {kind:?}: {event:?}");
                }
                if is_complete {
                    break;
                }
            }
            let explain = market.world.machine(leech).map(|shard| shard.explain());
            let status = market.status(leech, id).unwrap();
            assert!(is_complete, "seed {seed} of {kind:?}: {status:?}; {explain:?}");
            assert!(market.wrong_files(leech, &scene.metainfo, &scene.source).is_empty());
            wasted_bytes += status.wasted_bytes;
        }
        // Three bad reads in each run would have been enough.
        assert!(
            wasted_bytes >= 9 * (16 << 20),
            "{kind:?}: the disk failed too seldom to tell: {wasted_bytes}"
        );
    }
}

/// A listing whose only source went away kept the buffers that its requests had begun; with half of
/// the arena gone that way no other listing could ask for anything, for ever.
#[test]
fn a_listing_without_sources_does_not_starve_the_others() {
    let first = scene("first", 80 << 20, Kind::V1, 256 << 10);
    let second = scene("second", 4 << 20, Kind::V1, 64 << 10);
    for seed in 0..4 {
        let mut config = SimConfig::new(seed);
        config.socket_buffer_bytes = 4 << 20;
        let mut market = SimMarket::new(config, &first.scratch);
        let gone = [(); 2].map(|()| seed_of(&mut market, &first));
        let stays = seed_of(&mut market, &second);
        gone.iter().for_each(|&node| market.world.set_upload_rate(node, Some(60_000_000)));
        let leech = market.add_node();
        fetch(&mut market, &first, leech, &gone);
        market.world.run_for(Duration::from_millis(350 + 10 * seed));
        gone.iter().for_each(|&node| market.world.crash(node, Crash::Process));
        let id = fetch(&mut market, &second, leech, &[stays]);
        let is_done = market.run_until_complete(leech, id, Duration::from_secs(60));
        let explain = market.world.machine(leech).map(|shard| shard.explain());
        assert!(is_done, "seed {seed}: {explain:?}");
        assert!(market.wrong_files(leech, &second.metainfo, &second.source).is_empty());
    }
}

/// A check that a stop cut short was forgotten: the journal knew the pieces that were through, and the
/// rest was taken for missing. Data in place could then never be seeded.
#[test]
fn a_check_that_was_cut_short_goes_on_after_the_restart() {
    let scene = scene("data", 30 << 20, Kind::Hybrid, 64 << 10);
    let mut cut_short = 0;
    for seed in 0..8 {
        let mut market = SimMarket::new(SimConfig::new(seed), &scene.scratch);
        let node = market.add_node();
        market.place(node, &scene.metainfo, &scene.source);
        let add = add_of(&scene.metainfo, Place::InPlace("in place".into()), &[]);
        let id = market.add(node, add.clone());
        market.world.run_for(Duration::from_millis(5 + 2 * seed));
        let have = market.status(node, id).unwrap().have_pieces;
        cut_short += u32::from(have > 0 && have < scene.metainfo.info().geometry().piece_count());
        if seed % 2 == 0 {
            market.command(node, Command::Shutdown);
            // Of a large listing the rest of a check takes hours: a stop does not wait for it.
            market.world.run_for(Duration::from_millis(15));
            assert!(!market.world.is_running(node), "seed {seed}: it goes on with the check");
        } else {
            market.world.run_for(Duration::from_millis(2));
        }
        market.crash(node, Crash::Process);
        let id = market.add(node, add);
        let is_done = market.run_until_complete(node, id, Duration::from_secs(60));
        assert!(is_done, "seed {seed}: {:?}", market.status(node, id));
    }
    assert!(cut_short >= 3, "{cut_short} checks were cut short");
}

/// Receivers dial each other, and each is told its own address, too. The connection that loses was closed
/// without a word, and so was one to ourselves: its dialler never learned whom it had reached, and
/// dialled that address again every two seconds as long as both were there.
#[test]
fn receivers_that_dial_each_other_keep_one_connection_and_stop_dialling() {
    let scene = scene("mutual", 1_000_000, Kind::Hybrid, 64 << 10);
    for seed in 0..8 {
        let mut market = SimMarket::new(SimConfig::new(4000 + seed), &scene.scratch);
        let nodes = [(); 4].map(|()| market.add_node());
        let ids = nodes.map(|node| fetch(&mut market, &scene, node, &nodes));
        market.world.run_for(Duration::from_secs(20));
        let closed = |market: &SimMarket| -> u64 {
            nodes.iter().map(|&node| market.counters(node).closed().values().sum::<u64>()).sum()
        };
        let early = closed(&market);
        market.world.run_for(Duration::from_secs(600));
        let late = closed(&market) - early;
        for (node, id) in nodes.into_iter().zip(ids) {
            assert_eq!(market.status(node, id).unwrap().peers, 3, "seed {seed}, node {node}");
        }
        let how = nodes.map(|node| market.counters(node).closed());
        assert_eq!(late, 0, "seed {seed}: made and ended for ten minutes: {how:?}");
    }
}
