//! A market by hand, as a person at five terminals makes it: every command, every printed hint as it was
//! typed, and what must be refused.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringseed_abci::{Cluster, ClusterConfig, Driver};
use ringseed_core::metainfo::Metainfo;
use ringseed_engine::{AddListing, Engine, Identity, Place};
use ringseed_ledger::{DataHash, Genesis, InfoHashV1, Offer, Tx, TxBody, TxCode};
use ringseed_tests::data::{digest_tree, write_file, write_mixed_tree};
use ringseed_tests::market::{Market, PATIENCE, free_pair};
use ringseed_tests::program::{Finished, Program};
use ringseed_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::Value;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");

/// One market at a time: two cores are enough for one.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shell in which `ringseed` is the program under test: a hint is run as it was printed.
struct Shell {
    path: String,
    logs: PathBuf,
}

impl Shell {
    fn new(scratch: &Scratch) -> Shell {
        let bin = scratch.join("bin");
        std::fs::create_dir_all(&bin).expect("folder");
        std::os::unix::fs::symlink(OURS, bin.join("ringseed")).expect("symlink");
        let old = std::env::var("PATH").unwrap_or_default();
        Shell { path: format!("{}:{old}", bin.display()), logs: scratch.join("logs") }
    }

    fn start(&self, line: &str) -> Program {
        assert!(line.starts_with("ringseed "), "no command: {line:?}");
        let mut command = Command::new("sh");
        command.env("PATH", &self.path);
        Program::start_command(command, &["-c", &format!("exec {line}")], &self.logs)
    }

    #[track_caller]
    fn run(&self, line: &str) -> Finished {
        self.start(line).wait(PATIENCE)
    }
}

/// The command behind `label:` in what was printed.
#[track_caller]
fn hint(said: &str, label: &str) -> String {
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(label));
    line.unwrap_or_else(|| panic!("no {label:?} in:\n{said}")).trim().to_owned()
}

/// Fills in the folder that a hint leaves open.
fn fill(hint: &str, placeholder: &str, dir: &Path) -> String {
    let filled = hint.replace(&format!("--dir {placeholder}"), &format!("--dir {}", dir.display()));
    assert_ne!(filled, hint, "nothing to fill in");
    filled
}

fn names(rows: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        rows.as_array().into_iter().flatten().filter_map(|row| row["name"].as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_market_by_hand() {
    let _turn = alone();
    let scratch = Scratch::new("by-hand");
    let shell = Shell::new(&scratch);
    write_mixed_tree(&scratch.join("source/tree"), 11);
    write_mixed_tree(&scratch.join("source/kept"), 12);
    write_file(&scratch.join("source/one.bin"), 1_000_003, 13);
    let before = digest_tree(&scratch.join("source"));

    // Founders: each prints its member line, and the genesis prints the rest.
    let mut market = Market::init(OURS, scratch.path(), 4);
    let lines: Vec<String> = ["m1", "m2", "m3", "m4"]
        .map(|name| {
            let dir = scratch.join(&format!("other/{name}"));
            let line = format!("ringseed init --dir {} --listen {}", dir.display(), free_pair());
            shell.run(&line).expect_code(0).stdout.trim().to_owned()
        })
        .to_vec();
    let file = scratch.join("other/g.toml");
    let line =
        format!("ringseed genesis --market demo --local {} -o {}", lines.join(" "), file.display());
    let said = shell.run(&line).expect_code(0).stdout;
    assert!(hint(&said, "newcomers:").starts_with("ringseed join 127.0.0.1:"), "{said}");
    let start = fill(&hint(&said, "founders:"), "D", &scratch.join("other/m1"));
    // One of four decides nothing; that it starts and answers is what the hint promised.
    let mut one = shell.start(&start);
    let socket = scratch.join("other/m1/control.sock");
    one.wait_until("the control socket", PATIENCE, |_| socket.exists());
    drop(one);

    market.start_founders();
    let said = market.at(0, &["member", "ls"]).expect_code(0).stdout;
    assert!(said.lines().count() == 5 && said.contains("d1 *"), "{said}");

    // Offers: a copy, and one that stays where it lies. The printed hint shows the listing.
    let tree = scratch.join("source/tree");
    let offered =
        market.at(0, &["listing", "add", tree.to_str().expect("plain")]).expect_code(0).stdout;
    let copied = offered.lines().next().expect("an infohash").to_owned();
    let shown = shell.run(&hint(&offered, "look at it:")).expect_code(0).stdout;
    assert!(shown.contains(&copied) && shown.contains("tree"), "{shown}");
    let kept = scratch.join("source/kept");
    let made = market
        .at(1, &["listing", "add", kept.to_str().expect("plain"), "--in-place", "--wait", "--json"])
        .expect_code(0)
        .json();
    assert_eq!(made["kind"], "listing");
    let in_place = made["infohash"].as_str().expect("an infohash").to_owned();
    market.wait("both listings on all founders", |market| {
        (0..4).all(|at| market.holds(at, &copied) && market.holds(at, &in_place))
    });
    let listings = market.at(2, &["listing", "ls", "--json"]).expect_code(0).json();
    assert_eq!(names(&listings), ["kept", "tree"]);
    let again = market.at(2, &["listing", "add", tree.to_str().expect("plain")]).expect_code(11);
    assert!(again.stderr.contains("RS-E1101"), "{}", again.stderr);
    // Whoever offered it had every leaf in hand, of a copy as of what stays where it lies.
    for (node, infohash) in [(0, &copied), (1, &in_place)] {
        let sidecar = market.nodes[node].dir.join("engine/leaves").join(infohash);
        let len_bytes = std::fs::metadata(&sidecar).expect("a leaf sidecar").len();
        let shown = market.show(node, infohash);
        let least = shown["size_bytes"].as_u64().expect("a size").div_ceil(16_384) * 32;
        assert!((least..least + 32 * 64).contains(&len_bytes), "{len_bytes} bytes: {shown}");
    }
    let (own, copy) = (market.nodes[1].dir.join("payload").join(&in_place), &market.nodes[0]);
    assert!(!own.exists(), "an offer in place was copied");
    assert_eq!(
        digest_tree(&tree),
        digest_tree(&copy.dir.join("payload").join(&copied).join("tree"))
    );

    // A newcomer: the plan writes nothing and prints the next command; that one the next two.
    let dir = scratch.join("d5");
    let plan = format!(
        "ringseed join {} --genesis {} --dir {} --plan",
        market.nodes[0].listen,
        market.genesis_hash,
        dir.display()
    );
    let planned = shell.run(&format!("{plan} --json")).expect_code(0).json();
    assert_eq!(planned["listings"], 2);
    assert_eq!(
        (planned["fits"].as_bool(), planned["sources"].as_array().map(Vec::len)),
        (Some(true), Some(4))
    );
    assert!(!dir.exists(), "a plan wrote something");
    let said = shell.run(&plan).expect_code(0).stdout;
    let join = said.lines().find_map(|line| Some(&line[line.find("ringseed join")?..]));
    let said = shell.run(join.expect("the next command")).expect_code(0).stdout;
    let newcomer = shell.start(&hint(&said, "run it:"));
    let admit = hint(&said, "admit it:");
    let text = std::fs::read_to_string(dir.join("datatrust.toml")).expect("configuration");
    let listen = text.lines().find_map(|line| line.strip_prefix("listen = "));
    let listen = listen.expect("an address").trim_matches('"').parse().expect("an address");
    market.nodes.push(ringseed_tests::market::Node {
        name: "d5".to_owned(),
        dir: dir.clone(),
        listen,
        process: Some(newcomer),
    });
    market.wait("the registration", |market| {
        (0..4).all(|at| market.standing(at, "d5") == "registered")
    });
    for (at, said) in [(0, "voted for"), (1, "voted for"), (2, "is admitted")] {
        let voted = shell.run(&fill(&admit, "MEMBER", &market.nodes[at].dir)).expect_code(0);
        assert!(voted.stdout.contains(said), "vote {at}: {}", voted.stdout);
    }
    shell.run(&fill(&admit, "MEMBER", &market.nodes[2].dir)).expect_code(11);
    market.wait("the newcomer to hold everything", |market| {
        market.holds(4, &copied) && market.holds(4, &in_place)
    });
    market.wait("the newcomer's power", |market| market.standing(0, "d5") == "validator");
    for (infohash, name) in [(&copied, "tree"), (&in_place, "kept")] {
        let shown = market.at(4, &["listing", "show", infohash, "--json"]).expect_code(0).json();
        let folder = Path::new(shown["folder"].as_str().expect("a folder"));
        assert_eq!(
            digest_tree(&scratch.join("source").join(name)),
            digest_tree(&folder.join(name))
        );
        let given: u64 = shown["sources"]
            .as_array()
            .expect("sources")
            .iter()
            .map(|source| source["verified_bytes"].as_u64().expect("a number"))
            .sum();
        assert_eq!(Some(given), shown["size_bytes"].as_u64(), "bytes of {name} by source");
    }
    let all = market.at(0, &["status", "--all", "--json"]).expect_code(0).json();
    assert_eq!(names(&all), ["d1", "d2", "d3", "d4", "d5"]);
    let status = market.at(4, &["status"]).expect_code(0).stdout;
    assert!(status.contains("IN SYNC"), "{status}");

    limits_change_while_it_runs(&market, &copied);

    // Removal: only by who offered it; both kinds are gone everywhere but from the user's folder.
    for infohash in [&copied, &in_place] {
        let refused = market.at(2, &["listing", "rm", infohash]).expect_code(11);
        assert!(refused.stderr.contains("cure"), "{}", refused.stderr);
    }
    market.at(0, &["listing", "rm", &copied]).expect_code(0);
    market.at(1, &["listing", "rm", &in_place[..8]]).expect_code(0);
    market.wait("the space to be freed", |market| {
        let is_gone = |at, infohash| {
            let row = market.show(at, infohash);
            row["on_disk"] == false && row["state"] == "absent"
        };
        (0..5).all(|at| is_gone(at, &copied) && is_gone(at, &in_place))
    });
    let empty = market.at(4, &["listing", "ls"]).expect_code(0).stdout;
    assert!(empty.contains("no listings yet"), "{empty}");
    assert_eq!(before, digest_tree(&scratch.join("source")), "the source was touched");

    // All stop in order when asked.
    for index in 0..5 {
        market.signal(index, rustix::process::Signal::TERM);
    }
    for node in &mut market.nodes {
        let ended = node.process.as_mut().expect("it runs").wait(PATIENCE);
        assert_eq!(ended.code, Some(0), "{}: {}", node.name, ended.stderr);
    }
    assert_eq!(before, digest_tree(&scratch.join("source")), "the source was touched");
}

/// Caps are shown, changed one at a time and lifted; what makes no sense is refused.
fn limits_change_while_it_runs(market: &Market, listing: &str) {
    let limits = |args: &[&str]| {
        let args = [&["limit"], args, &["--json"]].concat();
        market.at(4, &args).expect_code(0).json()["limits"].clone()
    };
    let none = limits(&[]);
    assert_eq!(none[0], serde_json::json!({"scope": "all", "up": null, "down": null}));
    limits(&["--up", "40MB/s"]);
    limits(&["--members", "--down", "30MB/s"]);
    let set = limits(&["--listing", &listing[..8], "--up", "20MB/s", "--down", "10MB/s"]);
    assert_eq!(set[0]["up"], 40_000_000);
    assert_eq!((&set[1]["up"], &set[1]["down"]), (&Value::Null, &Value::from(30_000_000)));
    assert_eq!((set[3]["scope"].as_str(), &set[3]["down"]), (Some(listing), &10_000_000.into()));
    let status = market.at(4, &["status", "--json"]).expect_code(0).json();
    assert_eq!(status["payload"]["uplink"], 40_000_000, "{status}");
    limits(&["--listing", listing, "--up", "none", "--down", "none"]);
    limits(&["--members", "--down", "none"]);
    assert_eq!(limits(&["--up", "none"]), none);
    let said = market.at(4, &["limit"]).expect_code(0).stdout;
    assert!(said.contains("members") && said.contains("none"), "{said}");
    market.at(4, &["limit", "--listing", "00ff00ff", "--up", "none"]).expect_code(2);
    market.at(4, &["limit", "--up", "1B/s"]).expect_code(2);
}

/// What must not begin: each is refused with the exit code of its family, and nothing is left behind.
#[test]
fn what_must_not_begin_is_refused() {
    let _turn = alone();
    let scratch = Scratch::new("refused");
    let mut market = Market::found(OURS, scratch.path(), 1);
    let start = |dir: &Path, more: &[&OsStr]| {
        let mut args: Vec<&OsStr> = vec!["start".as_ref(), "--dir".as_ref(), dir.as_os_str()];
        args.extend(more);
        args.push("--json".as_ref());
        args.into_iter().map(OsStr::to_owned).collect::<Vec<_>>()
    };
    let run = |market: &Market, args: Vec<std::ffi::OsString>| {
        let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        market.cli(&args)
    };

    // A second process on one folder.
    let dir = market.nodes[0].dir.clone();
    let second = run(&market, start(&dir, &[])).expect_code(4);
    assert!(second.stderr.contains("RS-E0402"), "{}", second.stderr);
    let holder = market.nodes[0].process.as_ref().expect("it runs").pid().to_string();
    assert!(second.stderr.contains(&holder), "it does not say who: {}", second.stderr);

    // A genesis hash that the contact does not serve; the right one, but nobody there.
    let contact = market.nodes[0].listen.to_string();
    let wrong = "5a".repeat(32);
    for plan in [true, false] {
        let other = scratch.join("newcomer");
        let mut args: Vec<&OsStr> = vec![
            "join".as_ref(),
            contact.as_ref(),
            "--genesis".as_ref(),
            wrong.as_ref(),
            "--dir".as_ref(),
            other.as_os_str(),
        ];
        args.extend(plan.then_some(AsRef::<OsStr>::as_ref("--plan")));
        let refused = market.cli(&args).expect_code(5);
        assert!(refused.stderr.contains("of another market"), "{}", refused.stderr);
        assert!(refused.stderr.contains("genesis hash"), "no cure: {}", refused.stderr);
        assert!(!other.exists(), "something was written for a market that is not the one meant");
    }
    let nobody = free_pair().to_string();
    let genesis = market.genesis_hash.clone();
    let newcomer = scratch.join("newcomer");
    let args = ["join", &nobody, "--genesis", &genesis, "--dir"].map(AsRef::<OsStr>::as_ref);
    market.cli(&[&args[..], &[newcomer.as_os_str()]].concat()).expect_code(5);

    // A folder that holds nothing, one that is whole already, commands to one that does not run.
    run(&market, start(&scratch.join("nowhere"), &[])).expect_code(3);
    let free = free_pair().to_string();
    let args = ["init", "--listen", &free, "--dir"].map(AsRef::<OsStr>::as_ref);
    market.cli(&[&args[..], &[dir.as_os_str()]].concat()).expect_code(3);
    let away = ["init", "--listen", "192.0.2.1:7400", "--dir"].map(AsRef::<OsStr>::as_ref);
    market.cli(&[&away[..], &[newcomer.as_os_str()]].concat()).expect_code(2);
    assert!(!newcomer.exists());

    // Ports in use, each named; a key that others can read; the genesis of another market.
    market.kill(0);
    let silent = market.at(0, &["listing", "ls"]).expect_code(5);
    assert!(silent.stderr.contains("ringseed start --dir"), "{}", silent.stderr);
    for addr in [market.nodes[0].listen, market.nodes[0].payload_addr()] {
        let _held = std::net::TcpListener::bind(addr).expect("free again");
        let refused = run(&market, start(&dir, &[])).expect_code(4);
        assert!(refused.stderr.contains("RS-E0403"), "{}", refused.stderr);
        assert!(refused.stderr.contains(&addr.to_string()), "{}", refused.stderr);
    }
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(dir.join("key"), readable).expect("allowed");
    let refused = run(&market, start(&dir, &[])).expect_code(3);
    assert!(refused.stderr.contains("RS-E0303"), "{}", refused.stderr);
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(dir.join("key"), private).expect("allowed");
    let other = Market::init(OURS, &scratch.join("other"), 1);
    let genesis = ["--genesis".as_ref(), other.genesis.as_os_str()];
    let refused = run(&market, start(&dir, &genesis)).expect_code(3);
    assert!(refused.stderr.contains("RS-E0304"), "{}", refused.stderr);

    // After all that it starts as it was.
    market.start(0);
    market.wait("the next height", |market| market.height(0) >= 1);
}

/// A hybrid whose v2 view is right and whose v1 view is of other bytes, offered by a founder that lies:
/// every honest datatrust fetches it, finds the piece, says its SHA-1, and attests nothing.
#[test]
fn a_candidate_whose_views_disagree_is_attested_by_nobody() {
    let _turn = alone();
    let scratch = Scratch::new("views");
    // Five founders, so that four honest ones decide without the fifth.
    let mut market = Market::init(OURS, scratch.path(), 5);
    for index in 0..4 {
        market.start(index);
    }
    market.wait("the first height", |market| (0..4).all(|index| market.height(index) >= 1));

    let file = scratch.join("source/file.bin");
    write_file(&file, 700_001, 21);
    let torrent = scratch.join("t.torrent");
    let args = ["hash".as_ref(), file.as_os_str(), "-o".as_ref(), torrent.as_os_str()];
    let made = market.cli(&[&args[..], &["--piece-len".as_ref(), "65536".as_ref()]].concat());
    made.expect_code(0);
    let forged = Arc::new(forge_v1(&std::fs::read(&torrent).expect("made"), 3));
    let info = forged.info();
    let hash = info.info_hash_v2().expect("a hybrid");
    let offer = Offer {
        infohash_v2: DataHash(hash),
        infohash_v1: InfoHashV1(info.info_hash_v1().expect("a hybrid")),
        size_bytes: 700_001,
        file_count: 1,
        piece_len_log2: 16,
        name: "file.bin".to_owned(),
    };

    // The liar: its own engine, told that all is well, and its own vote on the ledger.
    let liar = &market.nodes[4];
    let key = ringseed::keys::load(&liar.dir.join("key")).expect("its key");
    let peer_id = ringseed::datatrust::peer_id(&key.public());
    let mut config = ringseed_engine::Config::new(liar.dir.join("engine"), peer_id);
    config.listen = vec![liar.payload_addr()];
    let (engine, _events) = Engine::start(config).expect("an engine");
    let add = AddListing {
        identity: Identity::Metainfo(forged.clone()),
        place: Place::InPlace(scratch.join("source")),
        verify_v1: false,
        known_complete: true,
        size_max_bytes: None,
        peers: Vec::new(),
        private_to_market: true,
    };
    engine.add(add).expect("the liar's engine believes");
    let text = std::fs::read_to_string(&market.genesis).expect("the genesis");
    let mut config = ClusterConfig::new(&liar.dir, key.clone());
    config.genesis = Some(Genesis::from_text(&text).expect("ours"));
    config.listen = Some(liar.listen);
    let cluster = Cluster::start(config).expect("a validator that lies");
    market.wait("the liar to catch up", |_| cluster.status().caught_up);
    let (nonce, height, genesis) = {
        let view = cluster.view();
        (view.nonce(&key.public()) + 1, view.height(), view.genesis_hash())
    };
    let tx = Tx::sign(&key, &genesis, nonce, height + 500, TxBody::Candidate(offer));
    let outcome = cluster.submit(tx.expect("a transaction").to_bytes(), PATIENCE);
    assert_eq!(outcome.expect("in a block").code, TxCode::Ok);

    let infohash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    market.wait("all honest founders to refuse", |market| {
        (0..4).all(|at| market.show(at, &infohash)["state"] == "refused")
    });
    let decided = market.height(0);
    market.wait("some more heights", |market| market.height(0) > decided + 5);
    let bad_piece = forged_sha1(&file, 3);
    for at in 0..4 {
        let row = market.show(at, &infohash);
        assert_eq!(row["kind"], "candidate", "{row}");
        let holders: Vec<&str> = names(&row["holders"]);
        assert_eq!(holders, ["d5"], "0 of 4 attest: {row}");
        let reason = row["reason"].as_str().expect("a reason");
        assert!(reason.contains("piece 3") && reason.contains(&bad_piece), "{reason}");
    }
    cluster.shutdown();
    engine.shutdown();
}

/// The torrent with one bit of the v1 hash of `piece` flipped. Its v2 view stays whole.
fn forge_v1(torrent: &[u8], piece: usize) -> Metainfo {
    let key = b"6:pieces";
    let at = torrent.windows(key.len()).position(|part| part == key).expect("v1 pieces");
    let digits = torrent[at + key.len()..].iter().position(|&byte| byte == b':').expect("a length");
    let mut forged = torrent.to_vec();
    forged[at + key.len() + digits + 1 + piece * 20] ^= 1;
    Metainfo::parse(&forged).expect("well-formed all the same")
}

/// SHA-1, in hexadecimal, of a piece of 64 KiB of `file`.
fn forged_sha1(file: &Path, piece: usize) -> String {
    let bytes = std::fs::read(file).expect("readable");
    let mut digest = [[0; 20]];
    ringseed_sys::hash::sha1_many(&[&bytes[piece << 16..(piece + 1) << 16]], &mut digest);
    digest[0].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A datatrust that starts again has at once what it had: no byte is hashed. What drives its engine is what its
/// configuration says, and both forms of `status` name it.
#[test]
fn a_datatrust_that_starts_again_believes_its_journal_and_names_its_driver() {
    let _turn = alone();
    let scratch = Scratch::new("again");
    let mut market = Market::init(OURS, scratch.path(), 2);
    market.configure(1, "driver", "\"epoll\"");
    market.start(0);
    market.start(1);
    let file = scratch.join("source/data.bin");
    write_file(&file, 5_000_000, 71);
    market.wait("the first height", |market| (0..2).all(|at| market.height(at) >= 1));
    let infohash = market.add(0, &file);
    market.wait("both hold it", |market| (0..2).all(|at| market.holds(at, &infohash)));
    let hashed = |market: &Market| market.status(1)["engine"]["hashed_bytes"].clone();
    assert!(hashed(&market).as_u64() >= Some(2 * 5_000_000), "both views are verified");
    market.signal(1, Signal::INT);
    let ended = market.nodes[1].process.as_mut().expect("it runs").wait(PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    market.start(1);
    market.wait("it holds it again", |market| market.holds(1, &infohash));
    assert_eq!(hashed(&market), 0);
    let status = market.status(1);
    assert_eq!(
        (&status["engine"]["driver"], &status["payload"]["complete"]),
        (&"epoll".into(), &1.into())
    );
    let said = market.at(1, &["status"]).expect_code(0).stdout;
    assert!(said.contains("epoll with"), "{said}");
}

/// Nothing of an idle market makes blocks faster than its pace, and the app hash stands still: without
/// transactions the state does not change.
#[test]
fn an_idle_market_keeps_its_app_hash() {
    let _turn = alone();
    let scratch = Scratch::new("idle");
    let mut market = Market::found(OURS, scratch.path(), 4);
    market.wait("two more heights", |market| market.height(0) >= 3);
    let first = market.status(0);
    std::thread::sleep(Duration::from_secs(3));
    let later = market.status(0);
    assert_eq!(first["consensus"]["app_hash"], later["consensus"]["app_hash"]);
    let height = |status: &Value| status["consensus"]["height"].as_u64().expect("a height");
    let made = height(&later) - height(&first);
    assert!((1..=6).contains(&made), "{made} blocks in three idle seconds");
}
