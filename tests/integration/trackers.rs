//! Magnet links, selections and trackers, as a user runs them: two processes and whatever leads the one to
//! the other.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use ringseed_tests::data::{digest_tree, write_mixed_tree};
use ringseed_tests::program::{Finished, Program, free_port, run};
use ringseed_tests::scratch::Scratch;
use ringseed_tests::tracker::Tracker;
use ringseed_tests::udp_tracker::UdpTracker;
use rustix::process::Signal;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
const DEADLINE: Duration = Duration::from_secs(90);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn strings(parts: &[&str]) -> Vec<OsString> {
    parts.iter().map(OsString::from).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own path")
}

/// A tree with its torrent; returns the link that `hash` prints.
fn made(scratch: &Scratch, flags: &[&str]) -> String {
    write_mixed_tree(&scratch.join("source/tree"), 3);
    let (source, torrent) = (scratch.join("source/tree"), scratch.join("t.torrent"));
    let mut all = strings(&["hash", text(&source), "-o", text(&torrent), "--json"]);
    all.extend(strings(flags));
    let hashed = run(OURS, &all, &scratch.join("logs"), DEADLINE).expect_code(0);
    hashed.json()["magnet"].as_str().expect("a link").to_owned()
}

fn seed(scratch: &Scratch, listen: SocketAddr, flags: &[&str]) -> Program {
    let (torrent, data) = (scratch.join("t.torrent"), scratch.join("source"));
    let listen = listen.to_string();
    let mut all = strings(&["seed", text(&torrent), "--data", text(&data), "--listen", &listen]);
    all.extend(strings(flags));
    let mut seed = Program::start(OURS, &all, &scratch.join("logs"));
    seed.wait_until("it serves", DEADLINE, |seed| seed.stderr().contains("until Ctrl-C"));
    seed
}

fn get(scratch: &Scratch, what: &str, flags: &[&str]) -> Finished {
    let copy = scratch.join("copy");
    let mut all = strings(&["get", what, "--dir", text(&copy), "--json"]);
    all.extend(strings(flags));
    run(OURS, &all, &scratch.join("logs"), DEADLINE)
}

#[track_caller]
fn expect_copied(scratch: &Scratch) {
    let mut copy = digest_tree(&scratch.join("copy"));
    copy.retain(|name, _| !name.starts_with(".ringseed"));
    let mut source = digest_tree(&scratch.join("source"));
    source.retain(|name, _| !name.starts_with(".ringseed"));
    assert_eq!(copy, source);
}

#[track_caller]
fn wait_for(what: &str, found: impl Fn() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !found() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_find_each_other_by_an_http_tracker_alone() {
    for ip in [V4, V6] {
        let scratch = Scratch::new("tracker-http");
        made(&scratch, &[]);
        let tracker = Tracker::start_at(SocketAddr::new(ip, 0));
        let url = tracker.url();
        let listen = SocketAddr::new(ip, free_port());
        let mut seed = seed(&scratch, listen, &["--tracker", &url]);
        let events = |name: &str| {
            let announces = tracker.announces();
            let of = |one: &&ringseed_tests::tracker::Announce| one.event.as_deref() == Some(name);
            announces.iter().filter(of).cloned().collect::<Vec<_>>()
        };
        // A hybrid goes by two names, and both are announced.
        wait_for("the seed's announces", || events("started").len() == 2);
        assert!(events("started").iter().all(|one| one.left == Some(0) && one.addr == listen));
        let torrent = scratch.join("t.torrent");
        let got = get(&scratch, text(&torrent), &["--tracker", &url]).expect_code(0);
        expect_copied(&scratch);
        assert_eq!(got.json()["swarm"]["seeds"], 1, "{}", got.stdout);
        assert_eq!(events("started").len(), 4);
        assert!(events("started")[2..].iter().all(|one| one.left > Some(0)));
        assert_eq!(events("stopped").len(), 2, "get has left when it ended");
        seed.signal(Signal::INT);
        seed.wait(DEADLINE).expect_code(0);
        let stopped = events("stopped");
        assert_eq!(stopped.len(), 4, "and so does the seed on Ctrl-C");
        assert_eq!(stopped[2].addr, listen);
    }
}

#[test]
fn two_find_each_other_by_a_udp_tracker_alone() {
    for ip in [V4, V6] {
        let scratch = Scratch::new("tracker-udp");
        made(&scratch, &["--v1"]);
        let tracker = UdpTracker::start(ip);
        let listen = SocketAddr::new(ip, free_port());
        let mut seed = seed(&scratch, listen, &["--tracker", &tracker.url()]);
        wait_for("the seed's announce", || tracker.announces().len() == 1);
        let first = tracker.announces()[0].clone();
        assert_eq!((first.addr, first.left, first.event), (listen, 0, 2));
        let torrent = scratch.join("t.torrent");
        get(&scratch, text(&torrent), &["--tracker", &tracker.url()]).expect_code(0);
        expect_copied(&scratch);
        seed.signal(Signal::INT);
        seed.wait(DEADLINE).expect_code(0);
        let events: Vec<u32> = tracker.announces().iter().map(|one| one.event).collect();
        assert_eq!(
            (events[..2].to_vec(), events[events.len() - 2..].to_vec()),
            (vec![2, 2], vec![3, 3])
        );
    }
}

/// Serves a folder, with a torrent of the source in it.
fn seed_folder(scratch: &Scratch, listen: SocketAddr) -> Program {
    let (folder, data) = (scratch.join("served"), scratch.join("source"));
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::copy(scratch.join("t.torrent"), folder.join("t.torrent")).expect("copied");
    let listen = listen.to_string();
    let all = ["seed", text(&folder), "--data", text(&data), "--listen", &listen];
    let mut seed = Program::start(OURS, &strings(&all), &scratch.join("logs"));
    seed.wait_until("it serves", DEADLINE, |seed| seed.stderr().contains("until Ctrl-C"));
    seed
}

/// It was once left to the trackers' patience: for half an hour they sent peers to what was not served.
#[test]
fn a_torrent_that_goes_from_its_folder_leaves_its_trackers() {
    let scratch = Scratch::new("tracker-folder");
    let tracker = Tracker::start();
    made(&scratch, &["--tracker", &tracker.url()]);
    let mut seed = seed_folder(&scratch, SocketAddr::new(V4, free_port()));
    let of = |name: &str| {
        let announces = tracker.announces();
        let named = announces.iter().filter(|one| one.event.as_deref() == Some(name));
        named.cloned().collect::<Vec<_>>()
    };
    wait_for("both names to be announced", || of("started").len() == 2);
    let there = scratch.join("served/t.torrent");
    std::fs::remove_file(&there).expect("removed");
    wait_for("both names to leave", || of("stopped").len() == 2);
    // What is told is of the torrent as it was served.
    assert!(of("stopped").iter().all(|one| one.left == Some(0)), "{:?}", of("stopped"));
    std::fs::copy(scratch.join("t.torrent"), &there).expect("copied");
    wait_for("both names to come back", || of("started").len() == 4);
    seed.signal(Signal::INT);
    seed.wait(DEADLINE).expect_code(0);
    assert_eq!((of("started").len(), of("stopped").len()), (4, 4));
}

/// The tracker has been asked and has not answered when the torrent goes: it is told after it has, for in
/// the other order it would take us in again.
#[test]
fn a_torrent_that_goes_while_its_tracker_is_asked_leaves_it_afterwards() {
    let scratch = Scratch::new("tracker-slow");
    let listener = TcpListener::bind((V4, 0)).expect("a port");
    let url = format!("http://{}/announce", listener.local_addr().expect("bound"));
    let (asked, questions) = channel();
    let (answer, answers) = channel::<()>();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut line = String::new();
            let mut lines = BufReader::new(&stream);
            lines.read_line(&mut line).expect("a request");
            let mut header = String::new();
            while lines.read_line(&mut header).is_ok_and(|len| len > 2) {
                header.clear();
            }
            if asked.send(line).is_err() || answers.recv().is_err() {
                return;
            }
            let body = "d8:intervali1800e5:peers0:e";
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    made(&scratch, &["--v1", "--tracker", &url]);
    let mut seed = seed_folder(&scratch, SocketAddr::new(V4, free_port()));
    let first = questions.recv_timeout(DEADLINE).expect("the tracker is asked");
    assert!(first.contains("event=started"), "{first}");
    std::fs::remove_file(scratch.join("served/t.torrent")).expect("removed");
    seed.wait_until("it is withdrawn", DEADLINE, |seed| seed.stderr().contains("is withdrawn"));
    // The rest of the first question, if there is one (how many there are), and then the leave.
    let left = loop {
        answer.send(()).expect("the tracker lives");
        let next = questions.recv_timeout(Duration::from_secs(20)).expect("it is told");
        if next.starts_with("GET /announce") {
            break next;
        }
    };
    assert!(left.contains("event=stopped"), "{left}");
    answer.send(()).expect("the tracker lives");
    seed.signal(Signal::INT);
    seed.wait(DEADLINE).expect_code(0);
}

/// The torrent's own trackers: nobody listens at the first, an unreadable one is told, the last answers.
#[test]
fn a_dead_tracker_gives_way_to_the_next_and_none_is_asked_when_forbidden() {
    let scratch = Scratch::new("tiers");
    let tracker = Tracker::start();
    let dead = format!("http://127.0.0.1:{}/announce", free_port());
    let link = made(&scratch, &["--tracker", &dead, "--tracker", &tracker.url()]);
    let listen = SocketAddr::new(V4, free_port());
    let _seed = seed(&scratch, listen, &[]);
    wait_for("the seed's announces", || tracker.announces().len() >= 2);
    // The link carries both trackers, too, and one that we do not speak.
    let link = format!("{link}&tr=https://t.invalid/announce");
    let got = get(&scratch, &link, &[]).expect_code(0);
    expect_copied(&scratch);
    assert!(got.stderr.contains("http:// and udp:// only"), "{}", got.stderr);
    assert!(got.stderr.contains("tracker-failed"), "{}", got.stderr);
    let before = tracker.announces().len();
    let torrent = scratch.join("t.torrent");
    let peer = listen.to_string();
    get(&scratch, text(&torrent), &["--no-trackers", "--peer", &peer]).expect_code(0);
    assert_eq!(tracker.announces().len(), before);
}

#[test]
fn a_link_fetches_what_it_names_and_selects() {
    let scratch = Scratch::new("magnet");
    let link = made(&scratch, &[]);
    let port = free_port();
    let listen = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let _seed = seed(&scratch, listen, &[]);
    let here = format!("{link}&x.pe=[::1]:{port}");
    let all = get(&scratch, &here, &["--select", "0"]).expect_code(0);
    assert_eq!(all.json()["selected"], "0");
    let files = |folder: &str| {
        let mut files = digest_tree(&scratch.join(folder));
        files.retain(|name, _| !name.starts_with(".ringseed") && !name.ends_with('/'));
        files
    };
    let (copy, count) = (files("copy"), files("source").len());
    assert_eq!(copy.len(), 1, "{copy:?}");
    let (name, digest) = copy.first_key_value().expect("one file");
    assert_eq!(files("source").get(name), Some(digest));
    // A person's numbers end with the files, a link's with the pads.
    let wrong = get(&scratch, &here, &["--select", &format!("0,{count}")]).expect_code(2);
    assert!(wrong.stderr.contains(&format!("the torrent has {count}")), "{}", wrong.stderr);
    let wrong = get(&scratch, &format!("{here}&so=0,999"), &[]).expect_code(2);
    assert!(wrong.stderr.contains("there is no file 999"), "{}", wrong.stderr);
    // By the name of IPv4, by the v1 name alone, everything.
    let v1 = link.split("&xt=").next().expect("the first name");
    get(&scratch, &format!("{v1}&x.pe=localhost:{port}"), &[]).expect_code(0);
    expect_copied(&scratch);
}

#[test]
fn a_bad_link_is_an_error_by_the_contract() {
    let scratch = Scratch::new("bad-magnet");
    for link in [
        "magnet:?",
        "magnet:?xt=urn:btih:zz",
        "magnet:?xt=urn:btmh:1114aa",
        "magnet:?xt=urn:btih:5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a&so=7-1",
        "magnet:?xt=urn:btih:5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
    ] {
        let found = get(&scratch, link, &[]).expect_code(2);
        let error = found.stderr.lines().rev().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["type"] == "error").then_some(line)
        });
        let error = error.unwrap_or_else(|| panic!("{link}: {found:?}"));
        assert!(error["code"].as_str().is_some_and(|code| code.starts_with("RS-E02")), "{error}");
        assert!(error["why"].is_string() && error["cure"].is_string(), "{error}");
    }
}

/// In a market no URL of a metainfo is fetched. An engine has no way to a tracker of its own, and what
/// has one is not used by the code of a datatrust.
#[test]
fn nothing_of_a_market_knows_of_trackers() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../abci/node/src");
    let mut folders = vec![source.join("datatrust"), source.join("up")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let code = std::fs::read_to_string(&path).expect("source");
            for word in ["announce::", "Announcer", "sources::", "announce_tiers", "url-list"] {
                assert!(!code.contains(word), "{} speaks of {word}", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 10);

    let scratch = Scratch::new("no-url");
    let tracker = Tracker::start();
    made(&scratch, &["--tracker", &tracker.url()]);
    let bytes = std::fs::read(scratch.join("t.torrent")).expect("made");
    let metainfo = ringseed_core::metainfo::Metainfo::parse(&bytes).expect("our own");
    assert_eq!(metainfo.announce(), Some(tracker.url().as_str()));
    let config = ringseed_engine::Config::new(scratch.join("state"), [7; 20]);
    let (engine, _events) = ringseed_engine::Engine::start(config).expect("an engine");
    let add = ringseed_engine::AddListing {
        identity: ringseed_engine::Identity::Metainfo(metainfo.into()),
        place: ringseed_engine::Place::Owned(scratch.join("data")),
        verify_v1: true,
        known_complete: false,
        size_max_bytes: None,
        peers: Vec::new(),
        private_to_market: true,
    };
    engine.add(add).expect("added");
    std::thread::sleep(Duration::from_millis(700));
    assert!(tracker.announces().is_empty());
    engine.shutdown();
}
