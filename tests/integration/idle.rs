//! What a peer costs that is connected, has said what it has, and then says nothing for hours. A target of
//! its own, because it looks at the memory of the whole process.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_core::wire::handshake::HANDSHAKE_LEN;
use ringseed_core::wire::message::Message;
use ringseed_core::wire::{Handshake, PeerId, Reserved, WireId};
use ringseed_engine::offline::{self, CreateOptions};
use ringseed_engine::{AddListing, Config, Engine, Identity, Place};
use ringseed_tests::data::write_file;
use ringseed_tests::scratch::Scratch;
use rustix::process::{Resource, getrlimit};

/// What one may cost, in bytes of resident memory.
const EACH_MAX: u64 = 4096;
/// Peers before the measurement, so that what grows once has grown.
const BEFORE: u32 = 200;
/// Peers that are measured, where that many descriptors may be open.
const MEASURED: u32 = 1500;
/// Pieces of the torrent, as a torrent of four GiB has of four MiB.
const PIECES: u32 = 1024;

/// A connection that has shaken hands and said what it has.
fn idle(addr: SocketAddr, wire_id: WireId, number: u32) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("the engine listens");
    let mut peer_id = *b"-XX0001-............";
    peer_id[8..].copy_from_slice(format!("{number:012}").as_bytes());
    let hello = Handshake { reserved: Reserved::default(), wire_id, peer_id: PeerId(peer_id) };
    stream.write_all(&hello.encode()).expect("it takes a handshake");
    let mut answer = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut answer).expect("it answers");
    // Every second piece, and then one more.
    let bits = vec![0xaa; PIECES as usize / 8];
    let mut bytes = Vec::new();
    [Message::Bitfield(&bits), Message::Have(1)].iter().for_each(|it| it.encode(&mut bytes));
    stream.write_all(&bytes).expect("it takes a bitfield");
    stream
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// An idle peer cost 5.8 KB: room for four conversations where there is one, half-empty tree nodes of whole
/// connections, queues that kept what their longest moment had needed.
#[test]
fn an_idle_peer_costs_less_than_4_kib() {
    let scratch = Scratch::new("idle");
    write_file(&scratch.join("file.bin"), u64::from(PIECES) * (16 << 10), 5);
    let options = CreateOptions { piece_len_bytes: Some(16 << 10), ..CreateOptions::default() };
    let made = offline::create(&scratch.join("file.bin"), &options, &|_, _| {}).expect("a file");
    let metainfo = Arc::new(made.metainfo);
    let mut config = Config::new(scratch.join("state"), *b"-RS0100-000000000001");
    config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    (config.peers_max, config.peers_per_listing_max) = (10_000, 10_000);
    let (engine, _events) = Engine::start(config).expect("an engine");
    let add = AddListing {
        identity: Identity::Metainfo(metainfo.clone()),
        place: Place::InPlace(scratch.path().to_path_buf()),
        verify_v1: true,
        known_complete: true,
        size_max_bytes: None,
        peers: Vec::new(),
        private_to_market: false,
    };
    engine.add(add).expect("it is whole");
    // The engine has raised the limit; each peer is a descriptor at both ends.
    let open_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = u32::try_from(open_max / 2).unwrap_or(u32::MAX).saturating_sub(BEFORE + 100);
    let measured = MEASURED.min(room);
    assert!(measured >= 100, "{open_max} open files are too few to measure anything");
    let wire_id = WireId(metainfo.info().wire_ids().next().expect("a torrent has a name"));
    let addr = engine.local_addr().expect("it listens");
    let wait = |count: u32| {
        let until = Instant::now() + Duration::from_secs(60);
        while engine.status().peers != u64::from(count) {
            assert!(Instant::now() < until, "{:?}", engine.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        // The last of them may still be read.
        std::thread::sleep(Duration::from_millis(300));
    };
    let mut peers: Vec<TcpStream> = (0..BEFORE).map(|it| idle(addr, wire_id, it)).collect();
    wait(BEFORE);
    let before = resident_bytes();
    peers.extend((BEFORE..BEFORE + measured).map(|it| idle(addr, wire_id, it)));
    wait(BEFORE + measured);
    let each = resident_bytes().saturating_sub(before) / u64::from(measured);
    eprintln!("{each} bytes each, of {measured} idle peers");
    assert!(each < EACH_MAX, "{each} bytes each, of {measured} idle peers");
}
