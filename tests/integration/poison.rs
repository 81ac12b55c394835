//! Scripted attackers against `ringseed get`: sources that lie, torrents that point elsewhere, info dicts that
//! never end. The process lives, its memory keeps to its cap, nothing wrong is kept, liars are named.
//!
//! Attacks are numbered as in the threat model (B6, B11, B12, B14).
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::metainfo::Metainfo;
use ringseed_tests::data::write_file;
use ringseed_tests::peer::{Misbehaviour, ScriptedPeer, Served};
use ringseed_tests::program::{Program, free_port, run};
use ringseed_tests::scratch::Scratch;
use rustix::process::Signal;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
const PATIENCE: Duration = Duration::from_secs(90);
/// What a leech may hold resident: its arena (64 MiB), the program (32 MiB), and a tenth on top.
const RESIDENT_MAX: u64 = ((64 + 32) << 20) * 11 / 10;

fn words(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// Makes `t.torrent` of a file, in pieces of 16 KiB.
fn hash(scratch: &Scratch, file: &Path, flags: &[&str]) -> Metainfo {
    let torrent = scratch.join("t.torrent");
    let mut all = words(&[&"hash", &file, &"-o", &torrent, &"--piece-len", &"16384"]);
    all.extend(flags.iter().map(OsString::from));
    run(OURS, &all, &scratch.join("logs"), PATIENCE).expect_code(0);
    Metainfo::parse(&std::fs::read(torrent).expect("made")).expect("our own torrent parses")
}

fn served(metainfo: &Metainfo, bytes: Vec<u8>) -> Served {
    let wire_id = metainfo.info().info_hash_v1().expect("a v1 view");
    Served { wire_id, bytes: Arc::new(bytes), piece_len_bytes: 16_384 }
}

fn get(scratch: &Scratch, what: &str, to: &str, peers: &[SocketAddr], more: &[&str]) -> Program {
    let copy = scratch.join(to);
    std::fs::create_dir_all(&copy).expect("a folder");
    let mut all = words(&[&"get", &what, &"--dir", &copy, &"--json"]);
    all.extend(more.iter().map(OsString::from));
    for peer in peers {
        all.extend([OsString::from("--peer"), OsString::from(peer.to_string())]);
    }
    Program::start(OURS, &all, &scratch.join("logs"))
}

fn torrent(scratch: &Scratch) -> String {
    scratch.join("t.torrent").to_str().expect("our own path").to_owned()
}

/// Most that a process has held resident, in bytes.
fn peak(program: &Program) -> u64 {
    let path = format!("/proc/{}/status", program.pid());
    let text = std::fs::read_to_string(path).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
    let kib = line.trim_matches(|c: char| !c.is_ascii_digit());
    kib.parse::<u64>().expect("a number") << 10
}

/// B11: one of twenty sources flips a bit now and then. All bytes are right in the end, it is named, and
/// no honest source is. The honest ones pause until then: on a busy machine they gave everything before the liar
/// had been asked for three wrong blocks, which is what a ban takes.
#[test]
fn one_poisoner_among_twenty_is_named_and_nobody_else() {
    let scratch = Scratch::new("poison");
    let file = scratch.join("source/file.bin");
    write_file(&file, 24 << 20, 11);
    let bytes = std::fs::read(&file).expect("readable");
    let served = served(&hash(&scratch, &file, &["--v1"]), bytes.clone());
    let liar = ScriptedPeer::start(served.clone(), Misbehaviour::WrongBitInOneOf(8));
    let honest: Vec<ScriptedPeer> = (0..19)
        .map(|_| ScriptedPeer::start(served.clone(), Misbehaviour::PausesAfter(32)))
        .collect();
    let mut peers: Vec<SocketAddr> = honest.iter().map(ScriptedPeer::addr).collect();
    peers.insert(7, liar.addr());
    let mut get = get(&scratch, &torrent(&scratch), "copy", &peers, &[]);
    get.wait_until("the ban", PATIENCE, |get| get.stderr().contains("bad-data"));
    honest.iter().for_each(ScriptedPeer::go_on);
    let done = get.wait(PATIENCE).expect_code(0);
    assert!(std::fs::read(scratch.join("copy/file.bin")).expect("fetched") == bytes);
    let blamed: Vec<&str> = done.stderr.lines().filter(|line| line.contains("bad-data")).collect();
    let liar = liar.addr().to_string();
    assert!(blamed.iter().all(|line| line.contains(&liar)), "{liar} lied, {blamed:#?} are blamed");
}

/// B11: who was proven to lie three times is gone: it is not dialled again, and under its name it is not let in
/// again. Others at its address are, and whoever is honest in the same run is never blamed.
#[test]
fn a_banned_poisoner_is_neither_dialled_nor_let_in() {
    let scratch = Scratch::new("banned");
    let file = scratch.join("source/file.bin");
    write_file(&file, 2 << 20, 12);
    let bytes = std::fs::read(&file).expect("readable");
    let served = served(&hash(&scratch, &file, &["--v1"]), bytes.clone());
    let liar = ScriptedPeer::start(served.clone(), Misbehaviour::WrongBit);
    // Nothing can be finished before the honest one listens.
    let honest: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let flags = ["--listen", &listen.to_string()];
    let torrent = torrent(&scratch);
    let mut get = get(&scratch, &torrent, "copy", &[liar.addr(), honest], &flags);
    get.wait_until("the ban", PATIENCE, |get| get.stderr().contains("bad-data"));
    let met = liar.connections();
    let knock = |peer_id: &str| {
        let mut stream = std::net::TcpStream::connect(listen).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
        hello.extend(served.wire_id);
        hello.extend(peer_id.as_bytes());
        stream.write_all(&hello).expect("taken");
        let mut answer = [0; 68];
        stream.read_exact(&mut answer).is_ok()
    };
    let banned = format!("-XX0001-scripted{:04x}", liar.addr().port());
    for attempt in 0..3 {
        assert!(!knock(&banned), "let in at attempt {attempt}");
        assert!(knock(&format!("-XX0001-stranger{attempt:04}")), "a stranger at the same address");
    }
    // Longer than the first waits between two attempts at an address.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(liar.connections(), met, "it was dialled again");
    let (data, said) = (scratch.join("source"), honest.to_string());
    let seed = words(&[&"seed", &torrent, &"--data", &data, &"--listen", &said]);
    let mut seed = Program::start(OURS, &seed, &scratch.join("logs"));
    let done = get.wait(PATIENCE).expect_code(0);
    assert!(std::fs::read(scratch.join("copy/file.bin")).expect("fetched") == bytes);
    let mut blamed = done.stderr.lines().filter(|line| line.contains("bad-data"));
    assert!(!blamed.any(|line| line.contains(&said)), "{said} is honest:\n{}", done.stderr);
    seed.signal(Signal::INT);
    seed.wait(PATIENCE).expect_code(0);
}

/// B12: two payloads with one SHA-1 (the published collision of 2017, its first 320 bytes; whatever follows,
/// they collide). A v1 torrent of the one takes the other for it, which is why such a torrent is
/// never a listing; the v2 view of a hybrid knows them apart, and names who sent the twin.
#[test]
fn a_twin_with_the_same_sha1_does_not_get_past_the_v2_view() {
    let vector = |number: u32| {
        let path = format!("{}/vectors/sha1/collision-{number}.bin", env!("CARGO_MANIFEST_DIR"));
        let mut bytes = std::fs::read(path).expect("a vector");
        bytes.resize(100_000, 7);
        bytes
    };
    let (ours, twin) = (vector(1), vector(2));
    for view in ["--v1", "--hybrid"] {
        let scratch = Scratch::new("twin");
        let file = scratch.join("source/file.bin");
        std::fs::create_dir_all(scratch.join("source")).expect("a folder");
        std::fs::write(&file, &ours).expect("written");
        let metainfo = match view {
            "--v1" => hash(&scratch, &file, &["--v1"]),
            _ => hash(&scratch, &file, &[]),
        };
        let evil = ScriptedPeer::start(served(&metainfo, twin.clone()), Misbehaviour::None);
        let torrent = torrent(&scratch);
        if view == "--v1" {
            get(&scratch, &torrent, "copy", &[evil.addr()], &[]).wait(PATIENCE).expect_code(0);
            assert!(std::fs::read(scratch.join("copy/file.bin")).expect("fetched") == twin);
            continue;
        }
        let mut fooled = get(&scratch, &torrent, "copy", &[evil.addr()], &[]);
        fooled
            .wait_until("the twin to be named", PATIENCE, |get| get.stderr().contains("bad-data"));
        std::thread::sleep(Duration::from_secs(1));
        assert!(fooled.try_wait().is_none(), "it ended: {}", fooled.stderr());
        fooled.signal(Signal::INT);
        fooled.wait(PATIENCE);
        let honest = ScriptedPeer::start(served(&metainfo, ours.clone()), Misbehaviour::None);
        let peers = [evil.addr(), honest.addr()];
        get(&scratch, &torrent, "other", &peers, &[]).wait(PATIENCE).expect_code(0);
        assert!(std::fs::read(scratch.join("other/file.bin")).expect("fetched") == ours);
    }
}

/// Counts who connects to a port of this machine, by IPv4 and IPv6.
struct Bait {
    listeners: Vec<TcpListener>,
    port: u16,
}

impl Bait {
    fn lay() -> Bait {
        let port = free_port();
        let hosts: [SocketAddr; 2] =
            [([127, 0, 0, 1], port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()];
        // A machine without IPv6 has one place less to be lured to.
        let listeners: Vec<_> = hosts.iter().filter_map(|at| TcpListener::bind(at).ok()).collect();
        assert!(!listeners.is_empty(), "a port for the bait");
        listeners.iter().for_each(|one| one.set_nonblocking(true).expect("non-blocking"));
        Bait { listeners, port }
    }

    fn taken(&self) -> usize {
        self.listeners.iter().map(|one| std::iter::from_fn(|| one.accept().ok()).count()).sum()
    }
}

/// B14: a torrent names services of this machine as trackers, web seeds and nodes, in every way that an
/// address can be written. None is asked on its word; only where the user says so.
#[test]
fn no_address_inside_is_asked_on_the_word_of_a_torrent() {
    let scratch = Scratch::new("lure");
    let file = scratch.join("source/file.bin");
    write_file(&file, 100_000, 14);
    hash(&scratch, &file, &["--v1"]);
    let bait = Bait::lay();
    let port = bait.port;
    let urls: Vec<String> =
        ["127.0.0.1", "2130706433", "0x7f000001", "0177.1", "localhost", "[::1]"]
            .into_iter()
            .chain(["[::ffff:127.0.0.1]", "0.0.0.0", "127.1"])
            .map(|host| format!("http://{host}:{port}/latest/meta-data"))
            .collect();
    let text = |text: &str| format!("{}:{text}", text.len());
    let list: String = urls.iter().map(|url| text(url)).collect();
    let tiers: String = urls.iter().map(|url| format!("l{}e", text(url))).collect();
    let bytes = std::fs::read(scratch.join("t.torrent")).expect("made");
    let info = bytes.windows(6).position(|found| found == b"4:info").expect("an info dict");
    let lure = [
        format!("d8:announce{}13:announce-listl{tiers}e", text(&urls[0])).as_bytes(),
        &bytes[1..info],
        format!("9:httpseedsl{list}e").as_bytes(),
        &bytes[info..bytes.len() - 1],
        format!("5:nodesll9:127.0.0.1i{port}eee8:url-listl{list}ee").as_bytes(),
    ]
    .concat();
    std::fs::write(scratch.join("t.torrent"), lure).expect("written");
    let lured = |flags: &[&str], time: Duration| {
        let mut get = get(&scratch, &torrent(&scratch), "copy", &[], flags);
        let until = Instant::now() + time;
        let mut taken = 0;
        while taken == 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            assert!(get.try_wait().is_none(), "it ended: {}", get.stderr());
            taken = bait.taken();
        }
        get.signal(Signal::INT);
        get.wait(PATIENCE);
        taken
    };
    assert_eq!(lured(&[], Duration::from_secs(4)), 0, "the torrent's word was enough");
    // The bait works: the user may send us there.
    assert!(lured(&["--tracker", &urls[0]], PATIENCE) > 0, "nobody has asked the bait");
}

/// How an info dict is not delivered.
#[derive(Clone, Copy, Debug)]
enum Bomb {
    /// One of so many bytes is claimed, and a byte of it comes every half second.
    Drip(u64),
    /// The length is right and the bytes are not.
    Junk(u64),
}

/// Listens, and answers everybody by the bomb until it is told to stop.
fn plant(bomb: Bomb, stop: Arc<AtomicBool>, met: Arc<AtomicU32>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("non-blocking");
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if let Ok((stream, _)) = listener.accept() {
                met.fetch_add(1, Ordering::Relaxed);
                let stop = stop.clone();
                std::thread::spawn(move || explode(stream, bomb, &stop));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    addr
}

fn explode(mut stream: std::net::TcpStream, bomb: Bomb, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut handshake = [0; 68];
    stream.read_exact(&mut handshake)?;
    let port = stream.local_addr()?.port();
    handshake[48..].copy_from_slice(format!("-EV0001-bomb{port:08}").as_bytes());
    handshake[20..28].copy_from_slice(&[0, 0, 0, 0, 0, 0x10, 0, 4]);
    stream.write_all(&handshake)?;
    let (Bomb::Drip(len) | Bomb::Junk(len)) = bomb;
    let send = |payload: &[u8], stream: &mut std::net::TcpStream| {
        stream.write_all(&(payload.len() as u32 + 1).to_be_bytes())?;
        stream.write_all(&[20])?;
        stream.write_all(payload)
    };
    let hello = format!("\0d1:md11:ut_metadatai3ee13:metadata_sizei{len}ee");
    send(hello.as_bytes(), &mut stream)?;
    let piece = |index: u64| {
        let len_here = (len - index * 16_384).min(16_384) as usize;
        let head = format!("\x01d8:msg_typei1e5:piecei{index}e10:total_sizei{len}ee");
        [head.as_bytes(), &vec![0x5a; len_here]].concat()
    };
    match bomb {
        Bomb::Junk(_) => {
            // Answers in the order in which honest questions come, whatever is asked.
            std::thread::sleep(Duration::from_millis(300));
            for index in 0..len.div_ceil(16_384) {
                send(&piece(index), &mut stream)?;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Bomb::Drip(_) => {
            let first = piece(0);
            stream.write_all(&(first.len() as u32 + 1).to_be_bytes())?;
            stream.write_all(&[20])?;
            for byte in first {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                stream.write_all(&[byte])?;
                std::thread::sleep(Duration::from_millis(500));
            }
        }
    }
    Ok(())
}

/// B6: claims of 48 MiB and of more, a byte at a time, and junk of the right length. Memory follows what came;
/// who drips is gone after half a minute, by name; and when an honest peer comes, all is fetched.
#[test]
fn info_dicts_that_never_come_cost_no_memory_and_do_not_keep_the_right_one_away() {
    let scratch = Scratch::new("bombs");
    let file = scratch.join("source/file.bin");
    write_file(&file, 3_000_000, 6);
    let metainfo = hash(&scratch, &file, &[]);
    let id = metainfo.info().info_hash_v1().expect("hybrid");
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let real = metainfo.info().raw().len() as u64;
    let (stop, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut bombs = vec![Bomb::Drip(48 << 20); 12];
    bombs.extend([Bomb::Drip((48 << 20) + 1), Bomb::Drip(u64::from(u32::MAX)), Bomb::Drip(real)]);
    bombs.extend([Bomb::Junk(real); 3]);
    let mut peers: Vec<SocketAddr> =
        bombs.iter().map(|&bomb| plant(bomb, stop.clone(), met.clone())).collect();
    let honest: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    peers.push(honest);
    let link = format!("magnet:?xt=urn:btih:{hex}");
    let mut get = get(&scratch, &link, "copy", &peers, &[]);
    get.wait_until("the drips to be dropped", PATIENCE, |get| get.stderr().contains("trickle"));
    assert!(met.load(Ordering::Relaxed) >= 18, "{met:?} of them were met");
    let peak = peak(&get);
    assert!(peak <= RESIDENT_MAX, "{} MiB resident", peak >> 20);
    let (torrent, source) = (scratch.join("t.torrent"), scratch.join("source"));
    let seed = words(&[&"seed", &torrent, &"--data", &source, &"--listen", &honest.to_string()]);
    let mut seed = Program::start(OURS, &seed, &scratch.join("logs"));
    get.wait(PATIENCE).expect_code(0);
    let got = std::fs::read(scratch.join("copy/file.bin")).expect("fetched");
    assert!(got == std::fs::read(&file).expect("readable"));
    seed.signal(Signal::INT);
    seed.wait(PATIENCE).expect_code(0);
    stop.store(true, Ordering::Relaxed);
}
