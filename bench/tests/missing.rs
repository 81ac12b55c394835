//! Where nobody else is installed the benchmark runs all the same, and says who is missing.

use std::fs;
use std::process::{Command, Stdio};

/// Results lacked half of the peers, and nobody knew why.
#[test]
fn who_is_missing_is_named_with_how_to_install_it() {
    let dir = std::env::temp_dir().join(format!("bench-missing-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringseed-bench"));
    command.args(["seedleech", "--kinds", "v1", "--who", "TCP", "--size", "64MiB", "--turns", "1"]);
    command.args(["--quick", "--dir"]).arg(dir.join("scratch"));
    command.arg("--json").arg(dir.join("result.json")).env("PATH", "/nowhere");
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let text = fs::read_to_string(dir.join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let notes: Vec<&str> =
        result["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str()).collect();
    for (who, how) in [
        ("libtorrent", "pip install libtorrent"),
        ("aria2", "apt-get install aria2"),
        ("transmission", "apt-get install transmission-daemon"),
        ("qBittorrent", "apt-get install qbittorrent-nox"),
        ("rsync", "apt-get install rsync"),
    ] {
        let is_it = |note: &&str| note.starts_with(who) && note.contains(how);
        assert!(notes.iter().any(is_it), "{who}: {notes:#?}");
    }
    // What decides a figure is beside it.
    let sample = &result["arms"][0]["samples"][0];
    assert_eq!(sample["cache"], "in the page cache");
    for key in ["seed_cpu_per_gib", "leech_cpu_per_gib", "leech_rss_bytes", "bytes_per_second"] {
        assert!(sample[key].as_f64() > Some(0.0), "{key}: {sample}");
    }
    assert!(result["machine"]["environment"].as_array().unwrap().len() > 5);
    assert!(result["machine"]["command"].as_str().unwrap().contains("seedleech"));
    fs::remove_dir_all(dir).unwrap();
}
