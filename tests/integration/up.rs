//! `ringseed up`, the whole story in one command: what it reports, what it leaves, on machines that allow
//! less than others. Two at a time at most: an `up` is six processes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ringseed_tests::data::{digest_tree, write_file, write_mixed_tree};
use ringseed_tests::market::{Market, PATIENCE};
use ringseed_tests::program::{Finished, Program};
use ringseed_tests::scratch::Scratch;
use ringseed_tests::skip::{Need, trial};
use rustix::process::Signal;
use serde_json::Value;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Markets mostly wait for their next block.
const MARKETS_AT_ONCE: usize = 2;
/// Written by those that measure how a market shares its uplinks: nothing else runs beside them.
static TURN: RwLock<()> = RwLock::new(());

fn main() {
    let is_root = rustix::process::getuid().is_root();
    let reaches = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let nobody = NOBODY.to_string();
    let drop_root = ["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "test", "-x", OURS];
    let unprivileged = [Need {
        name: "a user without privileges that can reach the build",
        install: "run the tests as an ordinary user, or install setpriv (util-linux)",
        present: !is_root || reaches("setpriv", &drop_root),
    }];
    let plain = |name: &str, test: fn() -> Result<(), Failed>| {
        Trial::test(name, move || {
            let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
            test()
        })
    };
    let alone = |name: &str, test: fn() -> Result<(), Failed>| {
        Trial::test(name, move || {
            let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
            test()
        })
    };
    let trials = vec![
        plain("it_tells_the_whole_story_and_leaves_nothing", whole_story),
        alone("capped_uplinks_share_the_burden", capped_uplinks),
        alone("burden_follows_capacity", burden_follows_capacity),
        plain("a_folder_of_the_users_is_only_read", only_reads_the_users_folder),
        plain("a_killed_up_leaves_no_process_and_the_next_clears_its_data", killed),
        plain("ctrl_c_stops_all_and_removes_the_data", interrupted),
        plain("a_dead_datatrust_is_reported_with_its_last_words", dead_child),
        plain("keep_keeps_a_market_that_starts_again", kept),
        plain("where_io_uring_is_forbidden_epoll_does_it", without_io_uring),
        trial("without_privileges_and_8_mib_of_locked_memory", &unprivileged, move || {
            let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
            unprivileged_user(is_root)
        }),
    ];
    let mut args = Arguments::from_args();
    args.test_threads = Some(MARKETS_AT_ONCE);
    libtest_mimic::run(&args, trials).exit();
}

/// A command for the program under test that keeps to `scratch`: its state lies there and nowhere else.
fn command(scratch: &Scratch) -> Command {
    at_home(Command::new(OURS), scratch)
}

fn at_home(mut command: Command, scratch: &Scratch) -> Command {
    std::fs::create_dir_all(scratch.join("home")).expect("folder");
    command.current_dir(scratch.join("home"));
    command.env("XDG_STATE_HOME", scratch.join("state")).env("HOME", scratch.join("home"));
    command
}

fn start(scratch: &Scratch, flags: &[&str]) -> Program {
    let args: Vec<&str> = ["up"].iter().chain(flags).copied().collect();
    Program::start_command(command(scratch), &args, &scratch.join("logs"))
}

fn once(scratch: &Scratch, flags: &[&str]) -> Finished {
    let flags: Vec<&str> = ["--once", "--json"].iter().chain(flags).copied().collect();
    start(scratch, &flags).wait(PATIENCE)
}

/// Folders of markets that are still there.
fn left_behind(scratch: &Scratch) -> Vec<PathBuf> {
    let folder = scratch.join("state/ringseed/up");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Events of this name on standard error.
fn events(stderr: &str, name: &str) -> Vec<Value> {
    let parsed = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|event| event["event"] == name).collect()
}

/// Processes that were started with these words on their command line.
fn processes_with(words: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line: Vec<String> = line
            .split(|&byte| byte == 0)
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect();
        if line.join(" ").contains(words) {
            found.push(pid);
        }
    }
    found
}

fn children_of(program: &Program) -> Vec<i32> {
    processes_with(&format!("--with-parent {}", program.pid()))
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Failed> {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() > PATIENCE {
            return Err(format!("waited for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn check(is_so: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if is_so { Ok(()) } else { Err(what().into()) }
}

fn real(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

fn whole(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(u64::MAX)
}

const STEPS: [&str; 9] = [
    "founded",
    "offered",
    "replicated",
    "onboarded",
    "from_newcomer",
    "verified",
    "agreed",
    "removed",
    "finished",
];

/// What every story must say, however it was run.
fn check_story(ended: Finished, listings: u64) -> Result<Value, Failed> {
    let ended = ended.expect_code(0);
    let result = ended.json();
    check(result["ok"] == true && result["schema"] == "ringseed.v1", || result.to_string())?;
    for step in STEPS {
        check(result[step].is_object(), || format!("{step} is missing: {result}"))?;
        check(events(&ended.stderr, step).len() == 1, || {
            format!("no event {step}: {}", ended.stderr)
        })?;
    }
    let (onboarded, agreed) = (&result["onboarded"], &result["agreed"]);
    check(whole(&result["offered"], "listings") == listings, || result["offered"].to_string())?;
    let bytes = whole(onboarded, "bytes");
    check(whole(&result["verified"], "bytes") == 2 * bytes, || result["verified"].to_string())?;
    check(whole(agreed, "nodes") == 6, || agreed.to_string())?;
    let after = whole(&result["agreed_after_removal"], "height");
    check(after > whole(agreed, "height"), || result["agreed_after_removal"].to_string())?;
    // What was received adds up: every byte of both newcomers has a source, and little was wasted.
    let mut by_receiver: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, receivers) in onboarded["burden"].as_object().into_iter().flatten() {
        for (receiver, bytes) in receivers.as_object().into_iter().flatten() {
            *by_receiver.entry(receiver).or_default() += bytes.as_u64().unwrap_or(0);
        }
    }
    for newcomer in ["t5", "t6"] {
        let got = by_receiver.get(newcomer).copied();
        check(got == Some(bytes), || format!("{newcomer} got {got:?} of {bytes}: {onboarded}"))?;
    }
    let (wasted, payload) = (whole(onboarded, "wasted_bytes"), whole(onboarded, "payload_bytes"));
    // Blocks asked of two at the end of a listing do not grow with it: two per listing and newcomer are
    // more than a hundredth of data as small as this.
    let endgame = 4 * listings * (16 << 10);
    check(wasted < payload / 100 + endgame, || format!("{wasted} wasted of {payload}"))?;
    let stored = whole(onboarded, "stored_bytes");
    check(stored >= 2 * bytes, || format!("{stored} stored of {bytes}"))?;
    check(real(onboarded, "bound_seconds") > 0.0 && onboarded["bound_term"].is_string(), || {
        format!("no bound: {onboarded}")
    })?;
    Ok(result)
}

fn whole_story() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let result = check_story(once(&scratch, &["--synthetic", "12MiB", "--listings", "8"]), 8)?;
    check(result["founded"]["drivers"].as_array().is_some_and(|all| all.len() == 1), || {
        result["founded"].to_string()
    })?;
    let peak = whole(&result["finished"], "rss_peak_bytes");
    check(peak < 160 << 20, || format!("a datatrust took {peak} bytes of memory"))?;
    check(left_behind(&scratch).is_empty(), || format!("left: {:?}", left_behind(&scratch)))
}

/// What scarcity shows: an origin sends hardly more than one copy, founders little more than one and a
/// half to two joiners, who serve each other.
fn capped_uplinks() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let flags = ["--synthetic", "24MiB", "--listings", "4", "--uplink", "4MB/s"];
    let result = check_story(once(&scratch, &flags), 4)?;
    let replicated = &result["replicated"];
    let mean = real(replicated, "origin_copies_mean");
    check((1.0..=1.5).contains(&mean), || format!("origins sent {mean} copies: {replicated}"))?;
    let onboarded = &result["onboarded"];
    let copies = real(onboarded, "founder_copies");
    check((1.0..=1.6).contains(&copies), || format!("founders sent {copies} copies: {onboarded}"))?;
    let sources = whole(onboarded, "sources_of_largest");
    check((3..=5).contains(&sources), || format!("{sources} sources: {onboarded}"))?;
    check(real(onboarded, "ratio") > 0.0, || format!("no T/T_bound: {onboarded}"))
}

/// One founder has a quarter of the others' uplink: its share of the burden is a quarter of theirs.
fn burden_follows_capacity() -> Result<(), Failed> {
    let scratch = Scratch::new("capacity");
    let mut market = Market::init(OURS, scratch.path(), 4);
    let rates = [4_000_000_u64, 4_000_000, 4_000_000, 1_000_000];
    for (index, rate) in rates.iter().enumerate() {
        market.configure(index, "uplink", &format!("\"{rate}\""));
    }
    market.start_founders();
    let total = 24 << 20;
    write_file(&scratch.join("source/file.bin"), total, 31);
    let infohash = market.add(0, &scratch.join("source/file.bin"));
    market.wait("all founders to hold it", |market| (0..4).all(|at| market.holds(at, &infohash)));
    let newcomer = market.join();
    market.start(newcomer);
    market.admit(&[newcomer]);
    market.wait("the newcomer to hold it", |market| market.holds(newcomer, &infohash));
    let row = market.show(newcomer, &infohash);
    let mut sent = [0; 4];
    for (at, sent) in sent.iter_mut().enumerate() {
        let addr = market.nodes[at].payload_addr().to_string();
        let status = market.status(at);
        let peer_id = status["peer_id"].as_str().unwrap_or_default();
        let of = row["sources"].as_array().into_iter().flatten();
        *sent = of
            .filter(|source| source["peer_id"] == peer_id || source["addr"] == addr)
            .filter_map(|source| source["verified_bytes"].as_u64())
            .sum();
    }
    let all: u64 = sent.iter().sum();
    check(all == total, || format!("{sent:?} do not add up to {total}: {row}"))?;
    let capacity: u64 = rates.iter().sum();
    for (sent, rate) in sent.iter().zip(rates) {
        let share = *sent as f64 / all as f64 / (rate as f64 / capacity as f64);
        check((1.0 / 1.3..=1.3).contains(&share), || {
            format!("burden {share:.2} of its capacity's share: {sent} of {all} at {rate}")
        })?;
    }
    Ok(())
}

fn only_reads_the_users_folder() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let data = scratch.join("data");
    write_mixed_tree(&data.join("a"), 41);
    write_mixed_tree(&data.join("b"), 42);
    std::os::unix::fs::symlink("a", data.join("link")).expect("symlink");
    let before = digest_tree(&data);
    let path = data.to_str().expect("a plain path");
    let ended = once(&scratch, &["--data", path, "--nodes", "4", "--new", "1", "--listings", "5"]);
    let result = ended.expect_code(0).json();
    check(result["finished"]["source_unchanged"] == true, || result["finished"].to_string())?;
    check(before == digest_tree(&data), || "the user's folder was changed".to_owned())
}

/// `up` without `--once`, as far as its last step.
fn up_and_ready(scratch: &Scratch) -> Program {
    let mut up = start(scratch, &["--json", "--synthetic", "4MiB", "--listings", "4"]);
    up.wait_until("the market to be ready", PATIENCE, |up| {
        !events(&up.stderr(), "ready").is_empty()
    });
    up
}

fn killed() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    for is_ready in [true, false] {
        let mut up = match is_ready {
            true => up_and_ready(&scratch),
            false => {
                let mut up =
                    start(&scratch, &["--json", "--synthetic", "64MiB", "--uplink", "2MB/s"]);
                up.wait_until("offers", PATIENCE, |up| !events(&up.stderr(), "offered").is_empty());
                up
            }
        };
        let children = children_of(&up);
        check(children.len() >= 4, || format!("children: {children:?}"))?;
        up.signal(Signal::KILL);
        up.wait(PATIENCE);
        // Gone from the table: only then are their locks.
        let is_gone = |pid: &i32| !Path::new(&format!("/proc/{pid}")).exists();
        wait_for("the children to die with their parent", || children.iter().all(is_gone))?;
        check(left_behind(&scratch).len() == 1, || format!("left: {:?}", left_behind(&scratch)))?;
        let flags = ["--synthetic", "1MiB", "--listings", "1", "--new", "0"];
        let next = once(&scratch, &flags).expect_code(0);
        let cleared = events(&next.stderr, "cleared");
        check(cleared.len() == 1 && cleared[0]["count"] == 1, || next.stderr.clone())?;
        check(left_behind(&scratch).is_empty(), || format!("left: {:?}", left_behind(&scratch)))?;
    }
    Ok(())
}

fn interrupted() -> Result<(), Failed> {
    // After the story Ctrl-C is how it ends well; before, the story was not told.
    let scratch = Scratch::new("up");
    let mut up = up_and_ready(&scratch);
    let mut status = command(&scratch);
    let all = status.args(["status", "--all", "--json"]).output().expect("it runs");
    let all: Value = serde_json::from_slice(&all.stdout).unwrap_or_default();
    check(all.as_array().is_some_and(|all| all.len() == 6), || format!("status --all: {all}"))?;
    up.signal(Signal::INT);
    let ended = up.wait(PATIENCE).expect_code(0);
    check(ended.json()["ok"] == true, || ended.stdout.clone())?;
    check(children_of(&up).is_empty() && left_behind(&scratch).is_empty(), || {
        format!("left: {:?} {:?}", children_of(&up), left_behind(&scratch))
    })?;

    for (step, flags) in [
        ("founded", &["--synthetic", "64MiB"][..]),
        ("replicated", &["--synthetic", "24MiB", "--listings", "4", "--uplink", "4MB/s"][..]),
    ] {
        let flags: Vec<&str> = ["--json"].iter().chain(flags).copied().collect();
        let mut up = start(&scratch, &flags);
        up.wait_until(step, PATIENCE, |up| !events(&up.stderr(), step).is_empty());
        up.signal(Signal::INT);
        let ended = up.wait(PATIENCE).expect_code(12);
        check(ended.stderr.contains("RS-E1201"), || ended.stderr.clone())?;
        check(children_of(&up).is_empty() && left_behind(&scratch).is_empty(), || {
            format!("left after {step}: {:?} {:?}", children_of(&up), left_behind(&scratch))
        })?;
    }
    Ok(())
}

fn dead_child() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let mut up = up_and_ready(&scratch);
    let victims = processes_with("/t3 --genesis");
    let ours = children_of(&up);
    let victim = victims.into_iter().find(|pid| ours.contains(pid)).ok_or("no datatrust t3")?;
    let pid = rustix::process::Pid::from_raw(victim).ok_or("a process id")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    let ended = up.wait(PATIENCE).expect_code(4);
    let error = ended.stderr.lines().rev().find(|line| line.contains("RS-E0411"));
    let error: Value = serde_json::from_str(error.ok_or_else(|| ended.stderr.clone())?)?;
    check(error["what"].as_str().is_some_and(|what| what.starts_with("t3 ended")), || {
        error.to_string()
    })?;
    check(error["lines"].as_array().is_some_and(|lines| !lines.is_empty()), || error.to_string())?;
    check(children_of(&up).is_empty() && left_behind(&scratch).is_empty(), || "left".to_owned())
}

fn kept() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let keep = scratch.join("kept");
    let path = keep.to_str().expect("a plain path").to_owned();
    let flags = ["--synthetic", "2MiB", "--listings", "2", "--new", "0", "--keep", &path];
    once(&scratch, &flags).expect_code(0);
    let again = once(&scratch, &flags).expect_code(3);
    check(again.stderr.contains("RS-E0306"), || again.stderr.clone())?;
    // What was kept is a market: its datatrusts start where they stopped.
    let mut programs = Vec::new();
    for name in ["t1", "t2", "t3", "t4"] {
        let dir = keep.join(name);
        let args: [OsString; 3] = ["start".into(), "--dir".into(), dir.into()];
        programs.push(Program::start(OURS, &args, &scratch.join("logs")));
    }
    let height = |name: &str| {
        let status = ringseed::control::ask(&keep.join(name), &ringseed::control::Request::Status);
        status.map_or(0, |status| whole(&status["consensus"], "height"))
    };
    wait_for("the kept market", || height("t1") > 0)?;
    let before = height("t1");
    wait_for("another height", || height("t1") > before)
}

fn without_io_uring() -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let mut command = command(&scratch);
    command.env("RINGSEED_TEST_FORBID_IO_URING", "1");
    let flags = ["up", "--once", "--json", "--synthetic", "6MiB", "--listings", "4"];
    let ended = Program::start_command(command, &flags, &scratch.join("logs")).wait(PATIENCE);
    let warnings = ended.stderr.matches("RS-E0407").count();
    let result = check_story(ended, 4)?;
    check(result["founded"]["drivers"] == serde_json::json!(["epoll"]), || {
        result["founded"].to_string()
    })?;
    check(warnings == 1, || format!("{warnings} warnings"))
}

fn unprivileged_user(is_root: bool) -> Result<(), Failed> {
    let scratch = Scratch::new("up");
    let mut command = match is_root {
        false => command(&scratch),
        true => {
            let mut command = Command::new("setpriv");
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", OURS]);
            let command = at_home(command, &scratch);
            for folder in ["home", "state"] {
                std::fs::create_dir_all(scratch.join(folder))?;
                give_away(&scratch.join(folder))?;
            }
            command
        }
    };
    // Only this much memory may be locked, by all processes of the user together.
    let program = command.get_program().to_owned();
    let args: Vec<OsString> = command.get_args().map(OsString::from).collect();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -l 8192 && exec \"$0\" \"$@\""]).arg(program).args(args);
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    limited.current_dir(command.get_current_dir().expect("set above"));
    command = limited;
    let flags = ["up", "--once", "--json", "--synthetic", "6MiB", "--listings", "4"];
    let ended = Program::start_command(command, &flags, &scratch.join("logs")).wait(PATIENCE);
    let warnings = ended.stderr.matches("\"warning\"").count();
    let text = ended.stderr.clone();
    check_story(ended, 4)?;
    check(warnings <= 1, || format!("{warnings} warnings:\n{text}"))
}

fn give_away(path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))
}
