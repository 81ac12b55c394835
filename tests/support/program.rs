//! Child processes with deadlines. Each runs in a process group of its own and is ended, group and
//! all, when its handle goes out of scope.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails the test, with all output, unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(
            self.code,
            Some(code),
            "--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as JSON: the last line that parses.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let whole = serde_json::from_str(&self.stdout);
        whole
            .ok()
            .or_else(|| self.stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok()))
            .unwrap_or_else(|| panic!("no JSON in:\n{}\n--- stderr\n{}", self.stdout, self.stderr))
    }
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Program {
    /// Starts `program` in its own process group, its output in files beneath `logs`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[A], logs: &Path) -> Program {
        Program::start_command(Command::new(program), args, logs)
    }

    /// Like [`Program::start`] with a prepared command (folder, environment).
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_command<A: AsRef<OsStr>>(
        mut command: Command,
        args: &[A],
        logs: &Path,
    ) -> Program {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        std::fs::create_dir_all(logs).expect("log folder");
        // What a program keeps for its user must not land in the home of whoever runs the tests.
        let is_state_set = command.get_envs().any(|(name, _)| name == "XDG_STATE_HOME");
        if !is_state_set {
            command.env("XDG_STATE_HOME", logs.join("state"));
        }
        let stdout = logs.join(format!("{serial}.out"));
        let stderr = logs.join(format!("{serial}.err"));
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("log"))
            .stderr(File::create(&stderr).expect("log"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Program { child, stdout, stderr }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Sends a signal to the program and all it started.
    pub fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Exit status if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("own child")
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended after `deadline`, with what it wrote.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> Finished {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait() {
                return Finished {
                    code: status.code(),
                    stdout: self.stdout(),
                    stderr: self.stderr(),
                };
            }
            if start.elapsed() > deadline {
                self.signal_group(Signal::KILL);
                panic!(
                    "still running after {deadline:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.stdout(),
                    self.stderr()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `found` says yes.
    ///
    /// # Panics
    /// When the program ends before, or `deadline` passes.
    #[track_caller]
    pub fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut found: impl FnMut(&Program) -> bool,
    ) {
        let start = Instant::now();
        while !found(self) {
            let ended = self.try_wait();
            assert!(
                ended.is_none() && start.elapsed() < deadline,
                "waited for {what}: {}\n--- stdout\n{}\n--- stderr\n{}",
                ended.map_or_else(
                    || format!("nothing after {deadline:?}"),
                    |status| format!("ended with {status}")
                ),
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal_group(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Runs a program to its end.
///
/// # Panics
/// When it cannot be started or has not ended after `deadline`.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: &[A],
    logs: &Path,
    deadline: Duration,
) -> Finished {
    Program::start(program, args, logs).wait(deadline)
}

/// A TCP port of 127.0.0.1 that was free a moment ago. Below the ports that Linux gives to outgoing
/// connections (32,768 and up), of which one could take it before the program under test does.
///
/// # Panics
/// When none is free.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id().wrapping_mul(31);
    for _ in 0..1_000 {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 5_000 + (process.wrapping_add(serial.wrapping_mul(7)) % 7_000) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

fn read_lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
