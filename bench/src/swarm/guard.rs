//! A process that outlives the benchmark by a moment: when the benchmark is gone, however it went, the guard
//! ends every program that it had started and not yet ended, with all of their process group.
//!
//! The kernel could tell a child of its parent's end (`PR_SET_PDEATHSIG`), but tells no grandchild, and a
//! child only of the end of the very thread that made it.

use std::collections::BTreeSet;
use std::io::{BufRead, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use rustix::process::{Pid, Signal, kill_process_group};

/// The pipe to the guard of this process, if it has one.
static GUARD: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();

/// Starts the guard of this process, which must be the benchmark itself. Where that is not possible programs
/// are ended by their owners alone.
pub fn start() {
    GUARD.get_or_init(|| {
        let mut command = Command::new(std::env::current_exe().ok()?);
        // Of a process group of its own: Ctrl-C is not for it.
        command.arg("guard").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        child.stdin.take().map(Mutex::new)
    });
}

/// Tells the guard of a process group that was started.
pub fn watch(group: Pid) {
    tell('+', group);
}

/// Tells the guard that a process group was ended, and its number may become somebody else's.
pub fn forget(group: Pid) {
    tell('-', group);
}

fn tell(sign: char, group: Pid) {
    if let Some(Some(pipe)) = GUARD.get() {
        let mut pipe = pipe.lock().expect("no thread that holds it panics");
        let _ = pipe.write_all(format!("{sign}{}\n", group.as_raw_nonzero()).as_bytes());
    }
}

/// The guard itself: reads until the other end is gone, then ends what is left.
pub fn run(from: impl BufRead) {
    for group in left(from) {
        if let Some(group) = Pid::from_raw(group) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The groups that were named and not taken back.
fn left(from: impl BufRead) -> BTreeSet<i32> {
    let mut groups = BTreeSet::new();
    for line in from.lines().map_while(Result::ok) {
        // Group 1 and below would be everybody.
        let Some(group) = line.get(1..).and_then(|text| text.parse().ok()).filter(|&id| id > 1)
        else {
            continue;
        };
        match line.as_bytes()[0] {
            b'+' => groups.insert(group),
            _ => groups.remove(&group),
        };
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ended_is_not_ended_again() {
        let told = b"+20\n+30\n-20\n+1\n+-1\n+x\n\n+40".as_slice();
        assert_eq!(left(told), BTreeSet::from([30, 40]));
    }
}
