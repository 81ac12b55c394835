//! The benchmark is ended in the middle: what it has measured must be there, and nobody whom it started.
//!
//! Only the bare TCP connection takes part, which is this program itself, so that nothing else is needed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Whoever has not come by then never will, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("bench-interrupt-{name}-{}", std::process::id()))
}

/// More turns than anybody waits for.
fn start(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringseed-bench"));
    command.args(["seedleech", "--kinds", "v1", "--who", "TCP", "--size", "16MiB"]);
    command.args(["--turns", "100", "--dir"]).arg(dir.join("scratch"));
    command.arg("--json").arg(dir.join("result.json"));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for_line(child: &mut Child, text: &str) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(text)), "it ended before {text}");
    // Or it would stop when the pipe is full.
    std::thread::spawn(move || lines.for_each(drop));
}

/// Processes that work in a folder.
fn working_in(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let read = |entry: fs::DirEntry| {
        let bytes = fs::read(entry.path().join("cmdline")).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        text.contains(dir).then_some(text)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(read).collect()
}

fn until(what: &str, mut found: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !found() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody ended an evening's run before its last round, and it said "none" of everybody.
#[test]
fn who_is_asked_to_end_says_what_it_has_measured() {
    let dir = scratch("asked");
    fs::create_dir_all(&dir).unwrap();
    let mut bench = start(&dir);
    wait_for_line(&mut bench, "round 2 of");
    kill_process(Pid::from_child(&bench), Signal::TERM).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    let text = fs::read_to_string(dir.join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["is_interrupted"], true);
    for arm in result["arms"].as_array().unwrap() {
        let samples = arm["samples"].as_array().unwrap();
        assert!((1..100).contains(&samples.len()), "{arm}");
        assert!(samples[0]["bytes_per_second"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(result["arms"].as_array().unwrap().len(), 2, "one writes, one does not");
    assert_eq!(working_in(&dir), Vec::<String>::new());
    assert!(!dir.join("scratch").exists(), "what it wrote is removed");
    fs::remove_dir_all(dir).unwrap();
}

/// Starts a workload that goes on for long, ends it when it has said `text`, and reads what it leaves.
fn ended_at(dir: &Path, args: &[&str], text: &str) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringseed-bench"));
    // Nobody else takes part.
    command.args(args).arg("--json").arg(dir.join("result.json")).env("PATH", "/nowhere");
    let mut bench = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut bench, text);
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&bench), Signal::TERM).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    let text = fs::read_to_string(dir.join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["is_interrupted"], true);
    assert_eq!(result["failures"], serde_json::json!(["interrupted"]));
    result
}

/// Three workloads had nothing to show when somebody ended them.
#[test]
fn the_workloads_without_peers_say_what_they_have_measured_as_well() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = scratch("alone");
    fs::create_dir_all(&dir).unwrap();
    let result = ended_at(&dir, &["abci", "--turns", "100"], "request + flush");
    assert_eq!(result["bars"][0]["what"], "request + flush, p50 us");
    assert!(result["bars"][0]["measured"].as_f64().unwrap() > 0.0, "{result}");

    let many = dir.join("many");
    let folder = many.to_str().unwrap();
    let steps = ["many", "--torrents", "40000", "--dir", folder];
    let result = ended_at(&dir, &steps, "8000 torrents: ");
    let has_step = |note: &serde_json::Value| note.as_str().unwrap().starts_with("8000 torrents");
    assert!(result["notes"].as_array().unwrap().iter().any(has_step), "{result}");
    assert!(!many.exists(), "what it wrote is removed");

    // Finds everything complete, at once.
    let program = dir.join("ringseed");
    fs::write(&program, "#!/bin/sh\necho '{\"complete\": true, \"size_bytes\": 1048576}'\n")
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (folder, program) = (dir.join("recheck"), program.to_str().unwrap());
    let folder = folder.to_str().unwrap();
    let turns = ["recheck", "--mib", "1", "--listings", "0", "--turns", "1000000"];
    let all = [&turns[..], &["--dir", folder, "--ringseed", program]].concat();
    let result = ended_at(&dir, &all, "check v1");
    assert!(result["figures"][0]["bytes_per_second"].as_f64().unwrap() > 0.0, "{result}");
    fs::remove_dir_all(dir).unwrap();
}

/// Seeds of killed benchmarks were found days later, serving nobody.
#[test]
fn nobody_outlives_a_benchmark_that_is_killed() {
    let dir = scratch("killed");
    fs::create_dir_all(&dir).unwrap();
    let mut bench = start(&dir);
    wait_for_line(&mut bench, "round 1 of");
    until("somebody serves", || working_in(&dir).iter().any(|line| line.contains("pump send")));
    bench.kill().unwrap();
    bench.wait().unwrap();
    until("all are gone", || working_in(&dir).is_empty());
    fs::remove_dir_all(dir).unwrap();
}
