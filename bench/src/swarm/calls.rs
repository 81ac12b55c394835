//! How many system calls and syncs a process makes, counted by `perf` in runs that are not timed.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// System calls, and the syncs among them; a ring's syncs are no calls and counted where they are submitted
/// (opcode 3, `IORING_OP_FSYNC`).
const EVENTS: [&str; 4] = [
    "raw_syscalls:sys_enter",
    "syscalls:sys_enter_fsync",
    "syscalls:sys_enter_fdatasync",
    "io_uring:io_uring_submit_req",
];
const RING_FSYNC: &str = "opcode==3";
/// `perf` has opened its counters by then, or never.
const ATTACH_MAX: Duration = Duration::from_secs(3);
/// Between a counter that is open and one that counts.
const ENABLED_AFTER: Duration = Duration::from_millis(30);

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calls {
    pub calls: f64,
    pub syncs: f64,
}

/// `perf stat` on a process with all of its threads, present and to come.
pub struct CallCount(Child);

/// Why calls cannot be counted here, by name and with the cure; `None` if they can.
pub fn hindrance() -> Option<String> {
    let mut command = Command::new("perf");
    command.args(arguments()).args(["--", "true"]).stdin(Stdio::null());
    let Ok(output) = command.output() else {
        return Some("perf is not installed: apt-get install linux-perf".to_owned());
    };
    if parse(&String::from_utf8_lossy(&output.stderr)).is_some() {
        return None;
    }
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let mounted = fs::read_dir("/sys/kernel/tracing").is_ok();
    Some(match mounted {
        true => format!(
            "perf may not count them (perf_event_paranoid is {}): run as root, or sysctl \
             kernel.perf_event_paranoid=-1",
            paranoid.trim()
        ),
        false => "perf finds no tracepoints: run as root, or mount -t tracefs tracefs \
                  /sys/kernel/tracing"
            .to_owned(),
    })
}

fn arguments() -> Vec<&'static str> {
    let mut words = vec!["stat", "-x,"];
    EVENTS.iter().for_each(|event| words.extend(["-e", event]));
    words.extend(["--filter", RING_FSYNC]);
    words
}

impl CallCount {
    /// Attaches to a process, and counts when this returns.
    pub fn attach(pid: u32) -> Option<CallCount> {
        let mut command = Command::new("perf");
        command.args(arguments()).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().ok()?;
        let (begun, folder) = (Instant::now(), format!("/proc/{}/fd", child.id()));
        while begun.elapsed() < ATTACH_MAX {
            let is_counter = |path: std::path::PathBuf| {
                fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("perf_event"))
            };
            let files = fs::read_dir(&folder).into_iter().flatten().flatten();
            if files.filter(|file| is_counter(file.path())).count() >= EVENTS.len() {
                std::thread::sleep(ENABLED_AFTER);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(CallCount(child))
    }

    /// Stops counting; `None` when `perf` could not count.
    pub fn end(self) -> Option<Calls> {
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let output = self.0.wait_with_output().ok()?;
        parse(&String::from_utf8_lossy(&output.stderr))
    }
}

/// Reads `perf stat -x,`: the count is the first field, the event the third.
fn parse(text: &str) -> Option<Calls> {
    let count = |event: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.split(',').nth(2) == Some(event))?;
        line.split(',').next()?.parse().ok()
    };
    let syncs = EVENTS[1..].iter().map(|event| count(event).unwrap_or(0.0)).sum();
    Some(Calls { calls: count(EVENTS[0])?, syncs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_syncs_of_a_ring_count_as_well() {
        let text = "\n113,,raw_syscalls:sys_enter,137,100.00,,\n1,,syscalls:sys_enter_fsync,1,1,,\n\
                    <not counted>,,syscalls:sys_enter_fdatasync,0,0,,\n4,,io_uring:io_uring_submit_req,1,1,,\n";
        assert_eq!(parse(text), Some(Calls { calls: 113.0, syncs: 5.0 }));
        assert_eq!(parse("Error:\nNo permission\n"), None);
        assert_eq!(parse("<not supported>,,raw_syscalls:sys_enter,0,0,,\n"), None);
    }
}
