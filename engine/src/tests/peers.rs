//! Who may connect, from where, and whom we call ourselves.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::test_support::{TestDir, snapshot, tree};

fn world(name: &str) -> (TestDir, Arc<Metainfo>) {
    let dir = TestDir::new(name);
    tree(&dir.path().join("source/data"), 1);
    let metainfo = torrent(&dir.path().join("source/data"), Kind::Hybrid, 32 << 10);
    (dir, metainfo)
}

/// A stock client that may encrypt tries that first, and falls back to plain when the connection ends at
/// once. A node that waited for more bytes, or banned the address for the garbage, was out of reach for it.
#[test]
fn an_encrypted_handshake_ends_at_once_and_a_plain_one_is_welcome_right_after() {
    let (dir, metainfo) = world("mse");
    for driver in [IoDriver::Auto, IoDriver::Epoll] {
        let seed = Node::start_on(dir.path(), 1, driver, |_| {});
        seed.seed(&metainfo, &dir.path().join("source"));
        for round in 0..8_u8 {
            let mut stream = TcpStream::connect(seed.addr()).unwrap();
            // Diffie-Hellman key of 96 bytes and a pad of up to 512, all of it chance; one begins like a
            // handshake by accident.
            let mut hello =
                crate::test_support::noise(96 + usize::from(round) * 60, u64::from(round) + 1);
            if round == 3 {
                hello[..4].copy_from_slice(b"\x13Bit");
            }
            let began = Instant::now();
            stream.write_all(&hello).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut byte = [0];
            let ended = stream.read(&mut byte);
            assert!(!matches!(ended, Ok(1..)), "it says nothing");
            assert!(began.elapsed() < Duration::from_secs(2), "at once");
        }
        let mut stream = TcpStream::connect(seed.addr()).unwrap();
        let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
        hello.extend(metainfo.info().info_hash_v1().unwrap());
        hello.extend(b"-XX0001-falls.back.1");
        stream.write_all(&hello).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 68];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..20], hello[..20]);
        // Nobody was banned on the way.
        while let Ok(event) = seed.events.try_recv() {
            assert!(!matches!(event, Event::PeerBanned { .. }), "{event:?}");
        }
        seed.engine.shutdown();
    }
}

/// One listener for both families, and two listeners: peers come over each.
#[test]
fn peers_come_over_both_families() {
    let (dir, metainfo) = world("families");
    let lists: [&[&str]; 3] = [&["[::]:0"], &["127.0.0.1:0", "[::1]:0"], &["[::1]:0"]];
    for (at, list) in lists.iter().enumerate() {
        for (n, driver) in [IoDriver::Auto, IoDriver::Epoll].into_iter().enumerate() {
            let seed = Node::start_on(dir.path(), 1, driver, |config| {
                config.listen = list.iter().map(|addr| addr.parse().unwrap()).collect();
            });
            seed.seed(&metainfo, &dir.path().join("source"));
            let mut peers: Vec<SocketAddr> = seed.engine.local_addrs().to_vec();
            if peers[0].ip().is_unspecified() {
                let port = peers[0].port();
                peers = vec![
                    ([127, 0, 0, 1], port).into(),
                    (std::net::Ipv6Addr::LOCALHOST, port).into(),
                ];
            }
            for (number, peer) in peers.into_iter().enumerate() {
                let mut leech = Node::start(dir.path(), 2 + number as u8);
                let into = dir.path().join(format!("into-{at}-{n}-{number}"));
                let id = leech.fetch(&metainfo, &into, &[peer]);
                leech.wait_complete(id);
                assert_eq!(snapshot(&into), snapshot(&dir.path().join("source")), "{peer}");
                leech.engine.remove(id, false);
                leech.wait("removal", |event| matches!(event, Event::Removed { .. }));
            }
            seed.engine.shutdown();
        }
    }
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_one_peer_with_the_plain_one() {
    let (dir, metainfo) = world("mapped");
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        config.listen = vec!["[::]:0".parse().unwrap()];
    });
    seed.seed(&metainfo, &dir.path().join("source"));
    let port = seed.addr().port();
    let plain = SocketAddr::from(([127, 0, 0, 1], port));
    let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), port);
    let mut leech = Node::start(dir.path(), 2);
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[mapped, plain]);
    leech.wait_complete(id);
    let sources = leech.engine.listing_status(id).unwrap().sources;
    assert_eq!(sources.iter().map(|source| source.addr).collect::<Vec<_>>(), [plain]);
}

/// A tracker may name whomever it likes: a stranger must not see us come by the hundred, nor for ever.
#[test]
fn found_addresses_are_dialled_seldom_and_bounded() {
    let (dir, metainfo) = world("found");
    let victims: Vec<TcpListener> =
        (0..40).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    victims.iter().for_each(|victim| victim.set_nonblocking(true).unwrap());
    let leech = Node::start(dir.path(), 2);
    let id = leech.fetch(&metainfo, &dir.path().join("into"), &[]);
    let addrs: Vec<SocketAddr> =
        victims.iter().map(|victim| victim.local_addr().unwrap()).collect();
    // The same ones, over and over, must not count anew.
    for _ in 0..20 {
        leech.engine.add_found_peers(id, addrs.clone());
    }
    std::thread::sleep(Duration::from_millis(700));
    let mut seen = 0;
    for victim in &victims {
        while victim.accept().is_ok() {
            seen += 1;
        }
    }
    assert!((1..=10).contains(&seen), "{seen} dials in the first second");
    // Ten thousand names are no ten thousand targets.
    let many = (0..10_000_u32).map(|n| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + n), 1)));
    leech.engine.add_found_peers(id, many.collect());
    assert!(leech.engine.listing_status(id).is_some(), "it lives");
}

/// Whoever was found by a tracker is as good a source as whoever was named by hand.
#[test]
fn a_found_peer_gives_everything() {
    let (dir, metainfo) = world("found-good");
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &dir.path().join("source"));
    let mut leech = Node::start(dir.path(), 2);
    let into = dir.path().join("into");
    let id = leech.fetch(&metainfo, &into, &[]);
    // Our own address, as trackers give it back to us, and one where nobody listens.
    leech.engine.add_found_peers(id, vec![leech.addr(), ([127, 0, 0, 1], 1).into(), seed.addr()]);
    leech.wait_complete(id);
    assert_eq!(snapshot(&into), snapshot(&dir.path().join("source")));
}

/// Whoever cannot be reached by others still serves those that it is told of.
#[test]
fn a_seed_dials_whom_it_is_told_of_and_leaves_the_complete_alone() {
    let (dir, metainfo) = world("seed-dials");
    let mut leech = Node::start(dir.path(), 2);
    let into = dir.path().join("into");
    let id = leech.fetch(&metainfo, &into, &[]);
    let seed = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        config.listen = Vec::new();
        config.dials_as_seed = true;
    });
    let place = Place::InPlace(dir.path().join("source"));
    let add = add_of(&metainfo, place, &[leech.addr()]);
    seed.engine.add(AddListing { known_complete: true, ..add }).unwrap();
    leech.wait_complete(id);
    assert_eq!(snapshot(&into), snapshot(&dir.path().join("source")));
    std::thread::sleep(Duration::from_millis(600));
    let peers = (seed.engine.status().peers, leech.engine.status().peers);
    assert_eq!(peers, (0, 0), "both have everything");
}

/// A seed that knew its leeches from a tracker alone never dialled them: what nobody has asked for goes cold
/// at once, and addresses for a cold listing were forgotten. Transmission 3.00, which does not dial us in
/// time, got nothing.
#[test]
fn a_seed_wakes_for_whom_a_tracker_names_and_goes_cold_again() {
    let (dir, metainfo) = world("seed-wakes");
    let mut leech = Node::start(dir.path(), 2);
    let into = dir.path().join("into");
    let seed_of = |number, dials| {
        let seed = Node::start_on(dir.path(), number, IoDriver::Auto, |config| {
            config.listen = Vec::new();
            config.dials_as_seed = dials;
            config.idle_before_cold = Duration::from_millis(200);
        });
        let id = seed.seed(&metainfo, &dir.path().join("source"));
        let cold = |seed: &Node| seed.engine.status().listings_active == 0;
        let until = Instant::now() + PATIENCE;
        while !cold(&seed) {
            assert!(Instant::now() < until, "it does not go cold");
            std::thread::sleep(Duration::from_millis(5));
        }
        (seed, id)
    };
    let (datatrust, of_datatrust) = seed_of(3, false);
    let (seed, of_seed) = seed_of(1, true);
    let id = leech.fetch(&metainfo, &into, &[]);
    datatrust.engine.add_found_peers(of_datatrust, vec![leech.addr()]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        datatrust.engine.status().listings_active,
        0,
        "in a market whoever lacks something dials"
    );
    seed.engine.add_found_peers(of_seed, vec![leech.addr()]);
    leech.wait_complete(id);
    assert_eq!(snapshot(&into), snapshot(&dir.path().join("source")));
    let until = Instant::now() + PATIENCE;
    while seed.engine.status().listings_active > 0 {
        assert!(Instant::now() < until, "it does not go cold again");
        std::thread::sleep(Duration::from_millis(5));
    }
    seed.engine.shutdown();
}
