//! Disks that are full, read-only or not there. File systems of a few MiB are mounted where only the test
//! sees them: that takes a mount namespace, with or without root.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use ringseed_tests::data::{digest_file, write_file};
use ringseed_tests::market::{Market, PATIENCE};
use ringseed_tests::program::{Finished, Program, free_port, run};
use ringseed_tests::scratch::Scratch;
use ringseed_tests::skip::{Need, trial};
use rustix::process::Signal;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");

fn main() {
    let scratch = Scratch::new("probe");
    let mut probe = mounted(scratch.path(), "mount -t tmpfs -o size=64k tmpfs \"$MOUNT\"", "true");
    let needs = [Need {
        name: "a mount namespace",
        install: "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or run as root",
        present: probe.output().is_ok_and(|output| output.status.success()),
    }];
    let ring = ours(&scratch, &words(&[&"doctor", &"--json"])).json()["io_uring"] == true;
    drop(scratch);
    let ring = Need {
        name: "io_uring",
        install: "ringseed doctor says who forbids it and how to allow it",
        present: ring,
    };
    let needs_ring = [needs[0].clone(), ring];
    let trials = vec![
        trial("a_full_disk_ends_get_with_8_and_what_is_there_is_kept", &needs, full_disk_of_get),
        trial("a_full_datatrust_waits_while_the_market_goes_on", &needs, full_datatrust),
        trial("a_read_only_folder_is_named", &needs, read_only),
        Trial::test("a_folder_that_is_not_there_is_named", missing),
        trial("little_lockable_memory_is_told_once_and_all_works", &needs_ring, little_memlock),
    ];
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    libtest_mimic::run(&args, trials).exit();
}

/// `program` in a mount namespace of its own, after `mount` (a shell command that knows `$MOUNT`).
fn mounted(at: &Path, mount: &str, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--kill-child", "sh", "-c"]);
    command.arg(format!("{mount} && exec \"$0\" \"$@\"")).arg(program).env("MOUNT", at);
    command
}

fn words(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

fn ours(scratch: &Scratch, args: &[OsString]) -> Finished {
    run(OURS, args, &scratch.join("logs"), PATIENCE)
}

fn check(is_so: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if is_so { Ok(()) } else { Err(what().into()) }
}

/// A seed of one file, and where it listens.
fn seed(scratch: &Scratch, len_bytes: u64) -> (Program, String) {
    let file = scratch.join("source/file.bin");
    write_file(&file, len_bytes, 61);
    let torrent = scratch.join("t.torrent");
    ours(scratch, &words(&[&"hash", &file, &"-o", &torrent])).expect_code(0);
    let addr = format!("127.0.0.1:{}", free_port());
    let args = words(&[&"seed", &torrent, &"--data", &scratch.join("source"), &"--listen", &addr]);
    (Program::start(OURS, &args, &scratch.join("logs")), addr)
}

fn full_disk_of_get() -> Result<(), Failed> {
    let scratch = Scratch::new("full");
    let (_seed, addr) = seed(&scratch, 6 << 20);
    let copy = scratch.join("copy");
    std::fs::create_dir_all(&copy)?;
    let command = mounted(&copy, "mount -t tmpfs -o size=2m tmpfs \"$MOUNT\"", OURS);
    let torrent = scratch.join("t.torrent");
    let args = words(&[&"get", &torrent, &"--data", &copy, &"--peer", &addr, &"--json"]);
    let ended = Program::start_command(command, &args, &scratch.join("logs")).wait(PATIENCE);
    let ended = ended.expect_code(8);
    check(ended.stderr.contains("RS-E0801"), || ended.stderr.clone())?;
    // With room it is fetched after all.
    let args = words(&[&"get", &torrent, &"--data", &copy, &"--peer", &addr]);
    ours(&scratch, &args).expect_code(0);
    check(
        digest_file(&copy.join("file.bin")) == digest_file(&scratch.join("source/file.bin")),
        || "wrong bytes".to_owned(),
    )
}

/// One of four has no room for a candidate: it says so and does not take it, the other three promote it,
/// and it goes on with everything else. An offer that it has no room for is refused with 8.
fn full_datatrust() -> Result<(), Failed> {
    let scratch = Scratch::new("full");
    let mut market = Market::init(OURS, scratch.path(), 4);
    market.configure(3, "reserve", "\"64KiB\"");
    for index in 0..3 {
        market.start(index);
    }
    let dir = market.nodes[3].dir.clone();
    std::fs::create_dir_all(dir.join("payload"))?;
    let command = mounted(&dir.join("payload"), "mount -t tmpfs -o size=2m tmpfs \"$MOUNT\"", OURS);
    let args = words(&[&"start", &"--dir", &dir, &"--genesis", &market.genesis]);
    let process = Program::start_command(command, &args, &scratch.join("logs"));
    market.nodes[3].process = Some(process);
    market.wait("the first height", |market| (0..4).all(|at| market.height(at) >= 1));

    let large = scratch.join("source/large.bin");
    write_file(&large, 4 << 20, 62);
    let refused = market.at(3, &["listing", "add", large.to_str().expect("plain"), "--json"]);
    let refused = refused.expect_code(8);
    check(refused.stderr.contains("RS-E0801"), || refused.stderr.clone())?;
    let infohash = market.add(0, &large);
    market.wait("the promotion by three", |market| {
        (0..3).all(|at| market.holds(at, &infohash))
            && market.show(3, &infohash)["kind"] == "listing"
    });
    let row = market.show(3, &infohash);
    check(row["state"] == "refused" && row["holders"].as_array().map(Vec::len) == Some(3), || {
        row.to_string()
    })?;
    let reason = row["reason"].as_str().unwrap_or_default();
    check(reason.contains("needed") && reason.contains("free"), || row.to_string())?;

    let small = scratch.join("source/small.bin");
    write_file(&small, 100_000, 63);
    let infohash = market.add(1, &small);
    market.wait("a small one on all four", |market| (0..4).all(|at| market.holds(at, &infohash)));
    Ok(())
}

fn read_only() -> Result<(), Failed> {
    let scratch = Scratch::new("read-only");
    let remount = "mount --bind \"$MOUNT\" \"$MOUNT\" && mount -o remount,bind,ro \"$MOUNT\"";
    let market = Market::init(OURS, scratch.path(), 1);
    let dir = market.nodes[0].dir.clone();
    let payload = dir.join("payload");
    std::fs::create_dir_all(&payload)?;
    for folder in [&payload, &dir] {
        let command = mounted(folder, remount, OURS);
        let args = words(&[&"start", &"--dir", &dir, &"--genesis", &market.genesis, &"--json"]);
        let ended = Program::start_command(command, &args, &scratch.join("logs")).wait(PATIENCE);
        let ended = ended.expect_code(4);
        check(ended.stderr.contains("RS-E0405"), || ended.stderr.clone())?;
        check(ended.stderr.contains(folder.to_str().expect("plain")), || ended.stderr.clone())?;
    }

    // A seed only reads: a read-only folder is all it needs. A `get` into one is refused.
    let (seed, addr) = seed(&scratch, 300_000);
    drop(seed);
    let (torrent, source) = (scratch.join("t.torrent"), scratch.join("source"));
    let args = words(&[&"seed", &torrent, &"--data", &source, &"--listen", &addr]);
    let command = mounted(&source, remount, OURS);
    let _seed = Program::start_command(command, &args, &scratch.join("logs"));
    let copy = scratch.join("copy");
    std::fs::create_dir_all(&copy)?;
    let args = words(&[&"get", &torrent, &"--data", &copy, &"--peer", &addr, &"--json"]);
    let command = mounted(&copy, remount, OURS);
    let ended = Program::start_command(command, &args, &scratch.join("logs")).wait(PATIENCE);
    let ended = ended.expect_code(4);
    check(ended.stderr.contains("RS-E0405"), || ended.stderr.clone())?;
    ours(&scratch, &args).expect_code(0);
    Ok(())
}

/// An ordinary user may lock 8 MiB, over all processes: two shards want more than that for their buffers. Both ends
/// work, on io_uring, and each says it once, however many shards it has.
fn little_memlock() -> Result<(), Failed> {
    let scratch = Scratch::new("memlock");
    let file = scratch.join("source/file.bin");
    write_file(&file, 20 << 20, 64);
    let torrent = scratch.join("t.torrent");
    ours(&scratch, &words(&[&"hash", &file, &"-o", &torrent])).expect_code(0);
    // Root is exempt from the limit, except in a user namespace.
    let ordinary = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c"]);
        command.arg("ulimit -l 8192 2>/dev/null; exec \"$0\" \"$@\"").arg(OURS);
        command
    };
    let addr = format!("127.0.0.1:{}", free_port());
    let flags = words(&[&"--io-driver", &"uring", &"--shards", &"2", &"--json"]);
    let source = scratch.join("source");
    let seed = words(&[&"seed", &torrent, &"--data", &source, &"--listen", &addr]);
    let mut seed =
        Program::start_command(ordinary(), &[seed, flags.clone()].concat(), &scratch.join("logs"));
    let copy = scratch.join("copy");
    let get = words(&[&"get", &torrent, &"--data", &copy, &"--peer", &addr]);
    let mut get = Program::start_command(ordinary(), &[get, flags].concat(), &scratch.join("logs"));
    let got = get.wait(PATIENCE).expect_code(0);
    check(digest_file(&copy.join("file.bin")) == digest_file(&file), || "wrong bytes".to_owned())?;
    check(got.json()["counters"]["driver"] == "uring", || got.stdout.clone())?;
    seed.signal(Signal::INT);
    let seed = seed.wait(PATIENCE).expect_code(0);
    for ended in [got, seed] {
        let said = ended.stderr.matches("memlock limit").count();
        check(said == 1 && ended.stderr.contains("WARN"), || ended.stderr.clone())?;
    }
    Ok(())
}

fn missing() -> Result<(), Failed> {
    let scratch = Scratch::new("missing");
    let market = Market::init(OURS, scratch.path(), 1);
    market.configure(0, "payload", "\"/proc/no-such-place/payload\"");
    let dir = &market.nodes[0].dir;
    let args = words(&[&"start", &"--dir", dir, &"--genesis", &market.genesis, &"--json"]);
    let ended = ours(&scratch, &args).expect_code(4);
    check(ended.stderr.contains("/proc/no-such-place"), || ended.stderr.clone())?;
    let gone = ours(&scratch, &words(&[&"start", &"--dir", &scratch.join("gone"), &"--json"]));
    let gone = gone.expect_code(3);
    check(gone.stderr.contains("RS-E0305"), || gone.stderr.clone())
}
