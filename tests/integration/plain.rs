//! `hash`, `check`, `seed` and `get` as a user runs them, without any ledger: good input, damaged input,
//! hostile peers, restarts.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ringseed_core::metainfo::Metainfo;
use ringseed_tests::data::{Seeded, digest_tree, write_file, write_mixed_tree};
use ringseed_tests::peer::{Misbehaviour, ScriptedPeer, Served};
use ringseed_tests::program::{Finished, Program, free_port, run};
use ringseed_tests::scratch::Scratch;
use rustix::process::Signal;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
const DEADLINE: Duration = Duration::from_secs(60);

fn ours(scratch: &Scratch, args: &[OsString]) -> Finished {
    run(OURS, args, &scratch.join("logs"), DEADLINE)
}

fn args<const N: usize>(parts: [&dyn AsRef<std::ffi::OsStr>; N]) -> Vec<OsString> {
    parts.iter().map(|part| part.as_ref().to_owned()).collect()
}

fn hash(scratch: &Scratch, path: &Path, flags: &[&str]) -> Metainfo {
    let torrent = scratch.join("t.torrent");
    let mut all = args([&"hash", &path, &"-o", &torrent]);
    all.extend(flags.iter().map(OsString::from));
    ours(scratch, &all).expect_code(0);
    Metainfo::parse(&std::fs::read(torrent).expect("made")).expect("our own torrent parses")
}

/// One odd-length file with a v1 torrent of it and what a scripted peer needs to serve it.
fn one_file(scratch: &Scratch, len_bytes: u64) -> Served {
    let file = scratch.join("source/file.bin");
    write_file(&file, len_bytes, 7);
    let metainfo = hash(scratch, &file, &["--v1", "--piece-len", "65536"]);
    Served {
        wire_id: metainfo.info().info_hash_v1().expect("v1"),
        bytes: Arc::new(std::fs::read(&file).expect("readable")),
        piece_len_bytes: 65_536,
    }
}

fn get(scratch: &Scratch, peers: &[std::net::SocketAddr]) -> Program {
    std::fs::create_dir_all(scratch.join("copy")).expect("folder");
    let mut all =
        args([&"get", &scratch.join("t.torrent"), &"--data", &scratch.join("copy"), &"--json"]);
    for peer in peers {
        all.extend([OsString::from("--peer"), OsString::from(peer.to_string())]);
    }
    Program::start(OURS, &all, &scratch.join("logs"))
}

#[test]
fn check_accepts_what_hash_described_and_names_what_was_damaged() {
    for kind in ["--v1", "--v2", "--hybrid"] {
        let scratch = Scratch::new("plain");
        write_mixed_tree(&scratch.join("source/tree"), 1);
        hash(&scratch, &scratch.join("source/tree"), &[kind]);
        let check =
            args([&"check", &scratch.join("t.torrent"), &"--data", &scratch.join("source")]);
        ours(&scratch, &check).expect_code(0);

        let victim = scratch.join("source/tree/large.bin");
        let mut bytes = std::fs::read(&victim).expect("readable");
        bytes[1_000_000] ^= 1;
        std::fs::write(&victim, bytes).expect("writable");
        let found = ours(&scratch, &check).expect_code(6);
        assert!(!found.stderr.is_empty(), "{kind}: it says what is damaged");

        std::fs::remove_file(&victim).expect("removable");
        ours(&scratch, &check).expect_code(6);
    }
}

/// Old v1 torrents have keys out of order. They are used as they are, and it is said.
#[test]
fn what_is_odd_about_a_torrent_is_said() {
    let scratch = Scratch::new("plain");
    let file = scratch.join("source/file.bin");
    write_file(&file, 100_000, 7);
    let metainfo = hash(&scratch, &file, &["--v1"]);
    let torrent = scratch.join("t.torrent");
    let check = args([&"check", &torrent, &"--data", &scratch.join("source")]);
    let said = |found: Finished| found.stdout + &found.stderr;
    assert!(!said(ours(&scratch, &check).expect_code(0)).contains("out of order"));
    let unsorted = [b"d4:info", metainfo.info().raw(), b"7:comment4:odd!e"].concat();
    std::fs::write(&torrent, unsorted).expect("writable");
    let found = said(ours(&scratch, &check).expect_code(0));
    assert!(found.contains("note:") && found.contains("out of order"), "{found}");
}

#[test]
fn hash_is_deterministic_and_leaves_the_source_alone() {
    let scratch = Scratch::new("plain");
    write_mixed_tree(&scratch.join("source/tree"), 2);
    let before = digest_tree(&scratch.join("source"));
    let first = hash(&scratch, &scratch.join("source/tree"), &[]);
    let second = hash(&scratch, &scratch.join("source/tree"), &[]);
    assert_eq!(first.encode(), second.encode());
    assert!(first.info().info_hash_v1().is_some() && first.info().info_hash_v2().is_some());
    assert_eq!(before, digest_tree(&scratch.join("source")));
}

#[test]
fn get_fetches_every_byte_from_seed() {
    for kind in ["--v1", "--v2", "--hybrid"] {
        for driver in ["uring", "epoll"] {
            let scratch = Scratch::new("plain");
            write_mixed_tree(&scratch.join("source/tree"), 3);
            hash(&scratch, &scratch.join("source/tree"), &[kind]);
            let before = digest_tree(&scratch.join("source"));
            let addr: std::net::SocketAddr = ([127, 0, 0, 1], free_port()).into();
            let seed = args([
                &"seed",
                &scratch.join("t.torrent"),
                &"--data",
                &scratch.join("source"),
                &"--listen",
                &addr.to_string(),
                &"--io-driver",
                &driver,
            ]);
            let _seed = Program::start(OURS, &seed, &scratch.join("logs"));
            get(&scratch, &[addr]).wait(DEADLINE).expect_code(0);
            let _ = std::fs::remove_dir_all(scratch.join("copy/.ringseed"));
            assert_eq!(
                before["tree/large.bin"],
                digest_tree(&scratch.join("copy"))["tree/large.bin"]
            );
            let (mut source, copy) = (before.clone(), digest_tree(&scratch.join("copy")));
            source.retain(|name, _| copy.contains_key(name) || !name.starts_with(".ringseed"));
            assert_eq!(source, copy, "{kind} over {driver}");
            let mut after = digest_tree(&scratch.join("source"));
            after.retain(|name, _| !name.starts_with(".ringseed"));
            assert_eq!(before, after, "seeding changed its source");
        }
    }
}

#[test]
fn a_peer_that_breaks_the_rules_is_dropped_and_an_honest_one_serves() {
    for misbehaviour in [
        Misbehaviour::OtherInfoHash,
        Misbehaviour::UnaskedBlock,
        Misbehaviour::PastTheEnd,
        Misbehaviour::HugeMessage,
        Misbehaviour::WrongBit,
        Misbehaviour::Silent,
        Misbehaviour::ResetInTheMiddle,
        Misbehaviour::WrongBitfield,
        Misbehaviour::HaveOutOfRange,
    ] {
        let scratch = Scratch::new("hostile");
        let served = one_file(&scratch, 1_500_001);
        let evil = ScriptedPeer::start(served.clone(), misbehaviour);
        let honest = ScriptedPeer::start(served, Misbehaviour::None);
        get(&scratch, &[evil.addr(), honest.addr()]).wait(DEADLINE).expect_code(0);
        assert_eq!(
            digest_tree(&scratch.join("source"))["file.bin"],
            digest_tree(&scratch.join("copy"))["file.bin"],
            "{misbehaviour:?}"
        );
        assert!(evil.connections() > 0, "{misbehaviour:?} was never met");
    }
}

#[test]
fn a_wrong_bit_never_reaches_the_file_system_as_complete() {
    let scratch = Scratch::new("hostile");
    let evil = ScriptedPeer::start(one_file(&scratch, 300_000), Misbehaviour::WrongBit);
    let mut get = get(&scratch, &[evil.addr()]);
    std::thread::sleep(Duration::from_secs(3));
    assert!(get.try_wait().is_none(), "it ended: {}", get.stderr());
    assert!(evil.blocks_sent() > 0 && evil.closed_by_other() > 0);
    get.signal(Signal::INT);
    get.wait(DEADLINE).expect_code(12);
}

#[test]
fn an_interrupted_get_resumes_and_fetches_nothing_twice() {
    for signal in [Signal::INT, Signal::KILL] {
        let scratch = Scratch::new("resume");
        write_file(&scratch.join("source/file.bin"), 24 << 20, 9);
        hash(&scratch, &scratch.join("source/file.bin"), &["--piece-len", "262144"]);
        let addr: std::net::SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let seed = args([
            &"seed",
            &scratch.join("t.torrent"),
            &"--data",
            &scratch.join("source"),
            &"--listen",
            &addr.to_string(),
            &"--uplink",
            &"6MB/s",
        ]);
        let _seed = Program::start(OURS, &seed, &scratch.join("logs"));
        let mut first = get(&scratch, &[addr]);
        std::thread::sleep(Duration::from_millis(2_500));
        assert!(first.try_wait().is_none(), "the cap did not hold: {}", first.stdout());
        first.signal(signal);
        let ended = first.wait(DEADLINE);
        if signal == Signal::INT {
            ended.expect_code(12);
        }
        let second = get(&scratch, &[addr]).wait(DEADLINE).expect_code(0);
        let fetched =
            second.json()["counters"]["payload_verified_bytes"].as_u64().expect("counter");
        assert!(
            fetched < 20 << 20,
            "{fetched} bytes fetched by the second run of 24 MiB after {signal:?}"
        );
        assert_eq!(
            digest_tree(&scratch.join("source"))["file.bin"],
            digest_tree(&scratch.join("copy"))["file.bin"]
        );
    }
}

/// A seed that starts again believes its journal: of files that look as they did not a byte is read. A file that was
/// touched is hashed again, that one alone, and everything is served.
#[test]
fn a_seed_that_starts_again_hashes_only_what_was_touched() {
    const LEN: u64 = 4 << 20;
    let scratch = Scratch::new("restart");
    let tree = scratch.join("source/tree");
    for name in ["a.bin", "b.bin", "c.bin"] {
        write_file(&tree.join(name), LEN, name.len() as u64);
    }
    hash(&scratch, &tree, &["--piece-len", "262144"]);
    let (torrent, source) = (scratch.join("t.torrent"), scratch.join("source"));
    let addr: std::net::SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let seed = args([&"seed", &torrent, &"--data", &source, &"--listen", &addr.to_string()]);
    let seed = [seed, args([&"--io-driver", &"epoll", &"--json"])].concat();
    // What a run hashed, once it has served everything.
    let hashed = || {
        let mut seed = Program::start(OURS, &seed, &scratch.join("logs"));
        let _ = std::fs::remove_dir_all(scratch.join("copy"));
        get(&scratch, &[addr]).wait(DEADLINE).expect_code(0);
        let served = digest_tree(&scratch.join("copy"));
        let given = digest_tree(&source);
        for name in ["tree/a.bin", "tree/b.bin", "tree/c.bin"] {
            assert_eq!(served[name], given[name], "{name}");
        }
        seed.signal(Signal::INT);
        let counters = seed.wait(DEADLINE).expect_code(0).json()["counters"].take();
        assert_eq!(
            (&counters["driver"], &counters["shards"][0]["driver"]),
            (&"epoll".into(), &"epoll".into())
        );
        counters["hashed_bytes"].as_u64().expect("a counter")
    };
    // Of a hybrid every byte goes through both hashes.
    assert!(hashed() >= 2 * 3 * LEN, "the first run knows nothing");
    assert_eq!(hashed(), 0, "nothing has changed");
    let touched = std::fs::File::options().write(true).open(tree.join("b.bin")).expect("a file");
    touched.set_modified(std::time::SystemTime::now()).expect("touched");
    drop(touched);
    assert_eq!(hashed(), 2 * LEN, "the file that was touched");
    assert_eq!(hashed(), 0, "and that is remembered");
}

#[test]
fn a_bad_torrent_is_refused_with_a_reason() {
    let scratch = Scratch::new("bad");
    write_mixed_tree(&scratch.join("source/tree"), 4);
    hash(&scratch, &scratch.join("source/tree"), &["--v1"]);
    let good = std::fs::read(scratch.join("t.torrent")).expect("made");
    let info = |body: &str| format!("d4:info{body}e").into_bytes();
    let pieces = "6:pieces20:aaaaaaaaaaaaaaaaaaaa";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("truncated", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("not bencode", Seeded::new(5).bytes(1_000)),
        ("trailing bytes", [&good[..], b"x"].concat()),
        (
            "wrong piece count",
            info(&format!("d6:lengthi99999e4:name1:f12:piece lengthi16384e{pieces}e")),
        ),
        (
            "dot dot",
            info(&format!(
                "d5:filesld6:lengthi5e4:pathl2:..1:xeee4:name1:f12:piece lengthi16384e{pieces}e"
            )),
        ),
        (
            "slash in a name",
            info(&format!("d6:lengthi5e4:name6:/etc/x12:piece lengthi16384e{pieces}e")),
        ),
        (
            "negative length",
            info(&format!("d6:lengthi-5e4:name1:f12:piece lengthi16384e{pieces}e")),
        ),
        (
            "overflowing lengths",
            info(&format!(
                "d5:filesld6:lengthi9223372036854775807e4:pathl1:aeed6:lengthi9223372036854775807e4:pathl1:beee4:name1:f12:piece lengthi16384e{pieces}e"
            )),
        ),
        (
            "symlink",
            info(&format!(
                "d5:filesld4:attr1:l6:lengthi0e4:pathl1:ae12:symlink pathl3:etc6:passwdeee4:name1:f12:piece lengthi16384e{pieces}e"
            )),
        ),
        ("deep nesting", [&[b'l'; 10_000][..], &[b'e'; 10_000][..]].concat()),
        ("claimed string", b"d4:info99999999999:x".to_vec()),
    ];
    for (name, bytes) in cases {
        let torrent = scratch.join("bad.torrent");
        std::fs::write(&torrent, bytes).expect("test file");
        for command in ["check", "seed", "get"] {
            let mut all = args([&command, &torrent, &"--data", &scratch.join("source"), &"--json"]);
            if command == "get" {
                all.extend(["--peer".into(), "127.0.0.1:1".into()]);
            }
            if command == "seed" {
                all.extend(["--listen".into(), "127.0.0.1:0".into()]);
            }
            let found = ours(&scratch, &all);
            assert_eq!(found.code, Some(6), "{name} by {command}: {found:?}");
            let error = found.stderr.lines().rev().find_map(|line| {
                serde_json::from_str(line)
                    .ok()
                    .filter(|one: &serde_json::Value| one["type"] == "error")
            });
            let error = error.unwrap_or_else(|| panic!("{name}: no JSON error: {found:?}"));
            let code = error["code"].as_str().expect("a stable code");
            assert!(error["what"].is_string() && error["why"].is_string(), "{error}");
            assert!(code.starts_with("RS-E"), "{code}");
        }
    }
}

/// The `.torrent` of a file of one piece (BEP 3), and its info hash.
fn lone_torrent(name: &str, bytes: &[u8]) -> (Vec<u8>, [u8; 20]) {
    use sha1::Digest as _;
    let piece: [u8; 20] = sha1::Sha1::digest(bytes).into();
    let mut info = format!(
        "d6:lengthi{}e4:name{}:{name}12:piece lengthi16384e6:pieces20:",
        bytes.len(),
        name.len()
    )
    .into_bytes();
    info.extend_from_slice(&piece);
    info.push(b'e');
    let hash = sha1::Sha1::digest(&info).into();
    ([&b"d4:info"[..], &info, b"e"].concat(), hash)
}

/// Whether somebody answers a handshake for this torrent (BEP 3): the connection is closed otherwise.
fn answers(addr: std::net::SocketAddr, hash: [u8; 20]) -> bool {
    use std::io::{Read as _, Write as _};
    let mut peer = std::net::TcpStream::connect(addr).expect("it listens");
    peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let hello =
        [b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0", &hash[..], b"-XX0000-abcdefghijkl"].concat();
    peer.write_all(&hello).expect("sent");
    let mut answer = [0; 68];
    peer.read_exact(&mut answer).is_ok() && answer[28..48] == hash
}

/// A folder stands for the torrents in it: those that come are served, those that go are withdrawn, and
/// what cannot be served is named with its code and keeps nobody else out.
#[test]
fn a_folder_of_torrents_is_served_and_followed() {
    let scratch = Scratch::new("folder");
    let (torrents, data) = (scratch.join("torrents"), scratch.join("data"));
    std::fs::create_dir_all(&torrents).expect("folder");
    std::fs::create_dir_all(&data).expect("folder");
    let make = |number: u64| {
        let (name, bytes) = (format!("file-{number}"), Seeded::new(number).bytes(5_000));
        std::fs::write(data.join(&name), &bytes).expect("data");
        let (torrent, hash) = lone_torrent(&name, &bytes);
        (torrents.join(format!("{name}.torrent")), torrent, hash)
    };
    let mut hashes = Vec::new();
    for number in 0..300 {
        let (path, torrent, hash) = make(number);
        std::fs::write(path, torrent).expect("torrent");
        hashes.push(hash);
    }
    std::fs::write(torrents.join("broken.torrent"), b"d4:infod").expect("file");
    std::fs::write(torrents.join("notes.txt"), b"no torrent").expect("file");
    let (missing, missing_hash) = lone_torrent("missing", b"these bytes lie nowhere");
    std::fs::write(torrents.join("missing.torrent"), missing).expect("file");
    std::fs::copy(torrents.join("file-7.torrent"), torrents.join("again.torrent")).expect("copied");

    let addr: std::net::SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let listen = addr.to_string();
    let seed = args([&"seed", &torrents, &"--data", &data, &"--listen", &listen, &"--json"]);
    let mut seed = Program::start(OURS, &seed, &scratch.join("logs"));
    let events = |seed: &Program, name: &str| -> Vec<serde_json::Value> {
        let lines: Vec<serde_json::Value> =
            seed.stderr().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.into_iter().filter(|line| line["event"] == name || line["type"] == name).collect()
    };
    let is_serving = |seed: &Program| seed.stderr().contains("magnets");
    seed.wait_until("it serves", DEADLINE, is_serving);
    let line = seed.stderr().lines().find(|line| line.contains("magnets")).map(str::to_owned);
    let serving: serde_json::Value = serde_json::from_str(&line.expect("said")).expect("JSON");
    assert_eq!((&serving["count"], &serving["left_out"]), (&300.into(), &2.into()), "{serving}");
    let warned = |seed: &Program, code: &str, name: &str| {
        events(seed, "warning").iter().any(|warning| {
            warning["code"] == code && warning["now"].as_str().is_some_and(|now| now.contains(name))
        })
    };
    assert!(warned(&seed, "RS-E0602", "broken.torrent"), "{}", seed.stderr());
    assert!(warned(&seed, "RS-E0601", "missing.torrent"), "{}", seed.stderr());
    assert!(answers(addr, hashes[0]) && answers(addr, hashes[299]));
    assert!(!answers(addr, missing_hash));

    // One comes: written beside, then moved there.
    let (path, torrent, hash) = make(300);
    assert!(!answers(addr, hash));
    std::fs::write(scratch.join("new"), torrent).expect("written");
    std::fs::rename(scratch.join("new"), &path).expect("moved");
    let last_count =
        |seed: &Program| events(seed, "torrents").last().and_then(|event| event["count"].as_u64());
    seed.wait_until("one more", DEADLINE, |seed| last_count(seed) == Some(301));
    assert!(answers(addr, hash), "what came is served");

    // One goes; of another one of its two files.
    std::fs::remove_file(torrents.join("again.torrent")).expect("removed");
    std::fs::remove_file(torrents.join("file-3.torrent")).expect("removed");
    seed.wait_until("one less", DEADLINE, |seed| last_count(seed) == Some(300));
    assert!(!answers(addr, hashes[3]), "what went is withdrawn");
    assert!(answers(addr, hashes[7]), "its first file is still there");
    assert_eq!(events(&seed, "withdrawn").len(), 1, "{}", seed.stderr());
    assert!(data.join("file-3").is_file(), "the data is the user's");

    // One is written anew, as another.
    let (_, torrent, other) = make(301);
    std::fs::write(torrents.join("file-5.torrent"), torrent).expect("written");
    seed.wait_until("changed", DEADLINE, |seed| events(seed, "withdrawn").len() == 2);
    assert!(answers(addr, other) && !answers(addr, hashes[5]));
    // A bad one in the place of a good one: the good one is not meant any more.
    std::fs::write(torrents.join("file-6.torrent"), b"what is this").expect("written");
    seed.wait_until("spoilt", DEADLINE, |seed| warned(seed, "RS-E0602", "file-6.torrent"));
    seed.wait_until("withdrawn", DEADLINE, |seed| events(seed, "withdrawn").len() == 3);
    assert!(!answers(addr, hashes[6]));

    seed.signal(Signal::INT);
    let ended = seed.wait(DEADLINE).expect_code(0).json();
    assert_eq!((&ended["count"], &ended["left_out"]), (&299.into(), &3.into()), "{ended}");
}

#[test]
fn what_the_environment_lacks_is_named() {
    let scratch = Scratch::new("environment");
    write_mixed_tree(&scratch.join("source/tree"), 5);
    hash(&scratch, &scratch.join("source/tree"), &[]);
    let torrent = scratch.join("t.torrent");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = port.local_addr().expect("bound").to_string();
    let source = scratch.join("source");
    let in_use = args([&"seed", &torrent, &"--data", &source, &"--listen", &taken]);
    let found = ours(&scratch, &in_use).expect_code(4);
    assert!(found.stderr.contains(&taken), "{}", found.stderr);

    let missing = args([&"check", &torrent, &"--data", &scratch.join("nowhere")]);
    assert_ne!(ours(&scratch, &missing).code, Some(0));
    let missing = args([&"hash", &scratch.join("nowhere"), &"-o", &scratch.join("x.torrent")]);
    assert_ne!(ours(&scratch, &missing).code, Some(0));
    ours(&scratch, &args([&"no-such-command"])).expect_code(2);
}

/// The doctor names who forbids io_uring and what to do in the words of the deployment, and fails, with
/// everything else told, when there is something that nothing can run with.
#[test]
fn the_doctor_tells_what_is_wrong_and_what_helps() {
    let scratch = Scratch::new("doctor");
    let run = |forbid: bool, flags: &[&str]| {
        let mut command = Command::new(OURS);
        command.env("XDG_CACHE_HOME", scratch.join("cache"));
        if forbid {
            command.env("RINGSEED_TEST_FORBID_IO_URING", "1");
        }
        Program::start_command(command, flags, &scratch.join("logs")).wait(DEADLINE)
    };
    let find = |told: &serde_json::Value, code: &str| {
        let checks = told["checks"].as_array().expect("checks").iter();
        checks.filter(|check| check["code"] == code).cloned().collect::<Vec<_>>()
    };
    let here = scratch.path().to_str().expect("a path in UTF-8");

    let told = run(true, &["doctor", here, "--json", "--cure", "docker"]).expect_code(0).json();
    let ring = &find(&told, "RS-D02")[0];
    assert_eq!(ring["level"], "WARN", "{ring}");
    assert!(ring["what"].as_str().unwrap().contains("seccomp"), "{ring}");
    assert!(ring["cure"].as_str().unwrap().contains("--security-opt"), "{ring}");
    assert!(told["cure"].as_str().unwrap().contains("io_uring_setup"));
    assert!(find(&told, "RS-D03").is_empty(), "no ring, no flags");

    let told = run(false, &["doctor", here, "--json"]).expect_code(0).json();
    assert_eq!(find(&told, "RS-D21").len(), 1, "the folder's space is told");
    assert!(told["cure"].is_null(), "nobody asked for a form");
    // Kernel, ring, files, folder, ports, hash kernels by count of messages, shares of the machine.
    for code in ["RS-D01", "RS-D02", "RS-D05", "RS-D11", "RS-D20", "RS-D22", "RS-D60", "RS-D61"] {
        assert_eq!(find(&told, code).len(), 1, "{code}");
    }
    assert_eq!(find(&told, "RS-D40").len(), 2, "both ports");
    assert_eq!(told["hash_kernels"].as_array().map(Vec::len), Some(32));
    let drivers = &find(&told, "RS-D05")[0]["what"];
    assert!(drivers.as_str().unwrap().contains("uring, epoll"), "{drivers}");
    let forms = [
        ("systemd", "LimitMEMLOCK=infinity"),
        ("docker", "docker run --ulimit memlock=-1:-1"),
        ("k8s", "localhostProfile"),
        ("limits", "limits.d"),
    ];
    for (form, line) in forms {
        let said = run(false, &["doctor", here, "--cure", form]).expect_code(0).stdout;
        assert!(said.contains(line), "{form}: {said}");
    }

    let ended = run(false, &["doctor", "/nowhere/at/all", here]).expect_code(4);
    assert!(ended.stdout.contains("FAIL RS-D20 /nowhere/at/all is missing"), "{}", ended.stdout);
    assert!(ended.stdout.contains("RS-D61"), "the rest is told all the same");
    assert!(ended.stderr.contains("RS-E0406"), "{}", ended.stderr);
}
