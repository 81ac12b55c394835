//! What of the system besides processor and kernel decides how fast something runs: mitigations, limits,
//! memory pages, the disk's queue, and which build this is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    pub what: String,
    pub value: String,
}

/// What the system says of itself; what it does not say is left out. Of the kernel's command line only
/// what concerns speed is taken: the rest of it is nobody's business.
pub fn look(scratch: Option<&Path>) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |what: &str, value: Option<String>| {
        let value = value.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        facts.extend(value.map(|value| Fact { what: what.to_owned(), value }));
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_cpu = |key: &str| {
        let line = cpuinfo.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches(['\t', ' ', ':']).to_owned())
    };
    add("microcode", of_cpu("microcode"));
    let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    add("governor", governor.or_else(|| Some("none that the system shows".to_owned())));
    add("turbo", read("/sys/devices/system/cpu/cpufreq/boost"));
    add("SMT active", read("/sys/devices/system/cpu/smt/active"));
    add("NUMA nodes", read("/sys/devices/system/node/online"));
    add("clock source", read("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
    add("mitigations", Some(mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities"))));
    let options = read("/proc/cmdline").unwrap_or_default();
    let wanted = ["mitigations=", "isolcpus=", "nohz_full=", "preempt=", "hugepages="];
    let options = options.split_whitespace().filter(|word| {
        wanted.iter().any(|start| word.starts_with(start)) || *word == "nosmt" || *word == "nopti"
    });
    add("kernel options", Some(options.collect::<Vec<_>>().join(" ")));
    add(
        "huge pages",
        read("/sys/kernel/mm/transparent_hugepage/enabled").map(|text| chosen(&text)),
    );
    add("io_uring_disabled", read("/proc/sys/kernel/io_uring_disabled"));
    for (what, key) in [("locked memory", "Max locked memory"), ("open files", "Max open files")] {
        add(&format!("limit of {what}, soft and hard"), limit_of_process(key));
    }
    add("limit of processors (cgroup)", cgroup("cpu.max", "cpu", "cpu.cfs_quota_us"));
    add("limit of memory (cgroup)", cgroup("memory.max", "memory", "memory.limit_in_bytes"));
    add("TCP buffers, bytes: receive", read("/proc/sys/net/ipv4/tcp_rmem"));
    add("TCP buffers, bytes: send", read("/proc/sys/net/ipv4/tcp_wmem"));
    if let Some(queue) = scratch.and_then(queue_of) {
        add("disk scheduler", read(queue.join("scheduler")).map(|text| chosen(&text)));
        add("disk write cache", read(queue.join("write_cache")));
        let rotates = read(queue.join("rotational")).map(|text| text.trim() == "1");
        add("disk rotates", rotates.map(|rotates| if rotates { "yes" } else { "no" }.to_owned()));
    }
    let root = rustix::process::geteuid().is_root();
    add("run by root", Some(if root { "yes" } else { "no" }.to_owned()));
    add("source", commit());
    let build = if cfg!(debug_assertions) { "NOT OPTIMISED: no figure" } else { "release" };
    add("build of the benchmark", Some(build.to_owned()));
    facts
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

/// The word in brackets, as sysfs marks what is chosen of several.
fn chosen(text: &str) -> String {
    let inside = text.split('[').nth(1).and_then(|rest| rest.split(']').next());
    inside.unwrap_or(text).to_owned()
}

/// What the kernel does against faults of this processor; those that it does not have are left out.
fn mitigations(folder: &Path) -> String {
    let mut found: Vec<(String, String)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let state = read(entry.path())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            (state != "Not affected").then_some((name, state))
        })
        .collect();
    found.sort();
    let texts: Vec<String> = found
        .into_iter()
        .map(|(name, state)| format!("{name}: {}", state.trim_start_matches("Mitigation: ")))
        .collect();
    if texts.is_empty() { "none needed".to_owned() } else { texts.join("; ") }
}

/// Soft and hard limit (`proc_pid_limits(5)`).
fn limit_of_process(key: &str) -> Option<String> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(key))?.to_owned();
    let mut fields = line.split_whitespace();
    Some(format!("{} {}", fields.next()?, fields.next()?))
}

/// The tightest limit of our control group and those above it, by the name of version 2 or of version 1
/// (`cgroups(7)`); `None` where there is none.
fn cgroup(name: &str, controller: &str, name_v1: &str) -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut found = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (base, file) = match controllers {
            "" => (PathBuf::from("/sys/fs/cgroup"), name),
            some if some.split(',').any(|one| one == controller) => {
                (Path::new("/sys/fs/cgroup").join(some), name_v1)
            }
            _ => continue,
        };
        let mut at = base.join(path.trim_start_matches('/'));
        while at.starts_with(&base) {
            found = found.or_else(|| read(at.join(file)).filter(|text| is_limit(text)));
            if !at.pop() {
                break;
            }
        }
    }
    Some(found.unwrap_or_else(|| "none".to_owned()))
}

/// Whether it is not a way to say that there is no limit; version 1 says the largest page-aligned number.
fn is_limit(text: &str) -> bool {
    let number = text.split(' ').next().unwrap_or_default().parse::<i64>();
    number.is_ok_and(|number| (0..1 << 60).contains(&number))
}

/// Where sysfs describes the queue of the disk that holds a folder, or the nearest above it that exists.
fn queue_of(dir: &Path) -> Option<PathBuf> {
    let dir = std::path::absolute(dir).ok()?;
    let device = dir.ancestors().find_map(|dir| rustix::fs::stat(dir).ok())?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // A partition has none of its own.
    [block.join("queue"), block.parent()?.join("queue")].into_iter().find(|path| path.is_dir())
}

/// The commit that this was built from, and whether something was changed since.
fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let folder = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git").arg("-C").arg(folder).args(args).output().ok()?;
        let is_good = output.status.success();
        is_good.then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(format!("{commit}{}", if changed.is_empty() { "" } else { ", with changes" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_marks_what_is_chosen() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("none"), "none");
    }

    #[test]
    fn no_limit_is_told_from_a_limit() {
        assert!(is_limit("200000 100000") && is_limit("1073741824"));
        assert!(!is_limit("max 100000") && !is_limit("9223372036854771712") && !is_limit("-1"));
    }

    /// A result with mitigations off is not to be compared with one where they are on.
    #[test]
    fn faults_that_the_processor_has_are_told() {
        let dir = std::env::temp_dir().join(format!("bench-faults-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("meltdown"), "Not affected\n").unwrap();
        assert_eq!(mitigations(&dir), "none needed");
        fs::write(dir.join("spectre_v1"), "Mitigation: usercopy barriers\n").unwrap();
        fs::write(dir.join("retbleed"), "Vulnerable\n").unwrap();
        assert_eq!(mitigations(&dir), "retbleed: Vulnerable; spectre_v1: usercopy barriers");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn this_machine_says_what_decides_its_figures() {
        let facts = look(Some(Path::new(".")));
        for wanted in ["mitigations", "governor", "limit of locked memory, soft and hard"] {
            assert!(facts.iter().any(|fact| fact.what == wanted), "{wanted}: {facts:?}");
        }
        assert!(facts.iter().all(|fact| !fact.value.is_empty()));
    }
}
