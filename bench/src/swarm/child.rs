//! A program that takes part in a transfer: what it says, when it ends, what it costs.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group};

use super::calls::{CallCount, Calls};
use super::guard;
use crate::machine::{self, TICKS_PER_SECOND};

/// How often memory is looked at while a transfer runs.
const LOOK: Duration = Duration::from_millis(20);
/// How often a file is looked for by which a program says that it is ready.
const FILE_LOOK: Duration = Duration::from_millis(5);
/// Who was asked to end has so long for it.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Lines of a program that are shown when it fails.
const LINES_SHOWN: usize = 12;

/// Whether somebody wants this program to end (Ctrl-C, `kill`): then the programs that it started are ended, and
/// what they wrote is removed, as after every run.
pub fn is_interrupted() -> bool {
    static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Who asks twice does not want to wait. Registered first, so that it sees the first time as such.
            let twice = Arc::clone(&asked);
            let _ = signal_hook::flag::register_conditional_shutdown(signal, 12, twice);
            let _ = signal_hook::flag::register(signal, Arc::clone(&asked));
        }
        asked
    });
    asked.load(Ordering::Relaxed)
}

/// Goes on, unless somebody wants this program to end.
///
/// # Errors
/// Somebody does.
pub fn still_wanted() -> Result<(), String> {
    if is_interrupted() { Err(INTERRUPTED.to_owned()) } else { Ok(()) }
}

/// Sleeps, unless somebody wants this program to end.
///
/// # Errors
/// Somebody does.
pub fn nap(time: Duration) -> Result<(), String> {
    let until = Instant::now() + time;
    while !is_interrupted() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
    }
    Err(INTERRUPTED.to_owned())
}

/// The error of whatever was going on when somebody ended it.
pub const INTERRUPTED: &str = "interrupted";

/// How a program says that it has come so far.
#[derive(Clone, Debug)]
pub enum Sign {
    /// It has written this many lines that contain this.
    Lines(&'static str, usize),
    /// It has ended, and said that all went well.
    Exit,
    /// It has made this file.
    File(PathBuf),
    /// Being executed is enough.
    Exec,
}

impl Sign {
    /// One line that contains `text`.
    pub fn line(text: &'static str) -> Sign {
        Sign::Lines(text, 1)
    }
}

/// What came from a program so far.
#[derive(Default)]
struct Said {
    lines: Vec<(Instant, String)>,
    /// When it ended, and whether it said that all went well.
    exit: Option<(Instant, bool)>,
}

struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

impl Shared {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("no thread that holds it panics")
    }
}

/// A running program in a process group of its own, which ends with its owner.
pub struct Program {
    child: Child,
    shared: Arc<Shared>,
    name: String,
    command: String,
    begun: Instant,
    rss_peak_bytes: u64,
    calls: Option<CallCount>,
}

impl Program {
    /// Starts it, on one core if that is given, with everything that it keeps for a user beneath `home`.
    ///
    /// # Errors
    /// What the system says, with the program's name.
    pub fn start(command: Command, home: &Path, core: Option<usize>) -> Result<Program, String> {
        Program::start_with(command, home, core, false)
    }

    /// The same, with its system calls counted from the first on if that is wanted; its time is then no figure.
    ///
    /// # Errors
    /// Those of [`Program::start`].
    pub fn start_with(
        command: Command,
        home: &Path,
        core: Option<usize>,
        counts_calls: bool,
    ) -> Result<Program, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let text = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let mut command = if counts_calls { held(&command) } else { command };
        fs::create_dir_all(home).map_err(|error| format!("{}: {error}", home.display()))?;
        command.env("HOME", home).env("TMPDIR", home).env("XDG_STATE_HOME", home.join("state"));
        for key in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
            command.env(key, home.join(key));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let begun = Instant::now();
        // A child inherits the cores of the thread that makes it.
        let spawned = match core {
            None => command.spawn(),
            Some(core) => std::thread::scope(|scope| {
                let spawn = scope.spawn(|| {
                    machine::pin_to_core(core);
                    command.spawn()
                });
                spawn.join().expect("it does not panic")
            }),
        };
        let mut child = spawned.map_err(|error| format!("{name}: {error}"))?;
        guard::watch(Pid::from_child(&child));
        let calls = counts_calls.then(|| release_counted(&child)).flatten();
        let shared = Arc::new(Shared { said: Mutex::default(), changed: Condvar::new() });
        let log = File::create(home.join("log")).map_err(|error| error.to_string())?;
        if let Some(out) = child.stdout.take() {
            follow(out, &shared, log.try_clone().ok());
        }
        if let Some(err) = child.stderr.take() {
            follow(err, &shared, Some(log));
        }
        let (pid, ended) = (Pid::from_child(&child), Arc::clone(&shared));
        std::thread::spawn(move || {
            // The process stays to be looked at; only its owner takes it away.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let status = rustix::process::waitid(WaitId::Pid(pid), options);
            let is_good =
                status.ok().flatten().is_some_and(|status| status.exit_status() == Some(0));
            ended.said().exit = Some((Instant::now(), is_good));
            ended.changed.notify_all();
        });
        Ok(Program { child, shared, name, command: text, begun, rss_peak_bytes: 0, calls })
    }

    /// When it was started.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command line.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// When it gave the sign, if it has.
    ///
    /// # Errors
    /// It ended before, or ended badly; with its last lines.
    pub fn gave(&self, sign: &Sign) -> Result<Option<Instant>, String> {
        let (found, exit) = {
            let said = self.shared.said();
            let found = match sign {
                Sign::Lines(text, count) => {
                    let mut lines = said.lines.iter().filter(|(_, line)| line.contains(text));
                    lines.nth(count - 1).map(|(at, _)| *at)
                }
                Sign::File(path) => path.exists().then(Instant::now),
                Sign::Exec => Some(self.begun),
                Sign::Exit => said.exit.map(|(at, _)| at),
            };
            (found, said.exit)
        };
        match (sign, found, exit) {
            (Sign::Exit, _, Some((_, false))) => Err(self.story("failed")),
            (_, Some(at), _) => Ok(Some(at)),
            (_, None, Some(_)) => Err(self.story("ended too early")),
            (_, None, None) => Ok(None),
        }
    }

    /// Waits for a sign and watches the memory of `all` programs meanwhile; `self` is one of them.
    ///
    /// # Errors
    /// It ended before, or `patience` did.
    pub fn wait(&mut self, sign: &Sign, patience: Duration) -> Result<Instant, String> {
        wait_all(&mut [self], &mut [], std::slice::from_ref(sign), patience).map(|at| at[0])
    }

    /// What it printed so far, a line each.
    pub fn lines(&self) -> Vec<String> {
        self.shared.said().lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// Processor seconds that it and its ended children have used (`proc_pid_stat(5)`), to the clock
    /// tick of 10 ms.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // The state is field 3; utime, stime, cutime and cstime are 14 to 17.
        let fields = after_name.split_whitespace().skip(11).take(4);
        fields.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
    }

    /// Most resident memory so far, bytes; it must have been looked at while it ran.
    pub fn rss_peak_bytes(&self) -> u64 {
        self.rss_peak_bytes
    }

    /// Counts its system calls from now on.
    pub fn count_calls(&mut self) {
        self.calls = CallCount::attach(self.pid());
    }

    /// What was counted, if it was.
    pub fn calls(&mut self) -> Option<Calls> {
        self.calls.take().and_then(CallCount::end)
    }

    /// Asks it to end, and waits a little so that it can say what it has counted.
    pub fn interrupt(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let begun = Instant::now();
        while self.shared.said().exit.is_none() && begun.elapsed() < LAST_WORDS {
            std::thread::sleep(FILE_LOOK);
        }
        // The last line may still be on its way through the pipe.
        std::thread::sleep(LOOK);
    }

    /// Resident memory now, bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Looks at the memory.
    pub fn look(&mut self) {
        self.rss_peak_bytes = self.rss_peak_bytes.max(self.status_bytes("VmHWM:"));
    }

    fn story(&self, what: &str) -> String {
        let lines = self.lines();
        let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        format!("{} {what}: {}\n{}", self.name, self.command, last.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
        guard::forget(group);
    }
}

/// The same command behind [`hold`].
fn held(command: &Command) -> Command {
    let mut held = Command::new(std::env::current_exe().unwrap_or_default());
    held.arg("hold").arg("--").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => held.env(key, value),
            None => held.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        held.current_dir(folder);
    }
    held
}

/// Stops this process until somebody continues it, and becomes another program: so that calls are counted from
/// its first on.
pub fn hold(program: &[std::ffi::OsString]) -> std::io::Error {
    let _ = kill_process(rustix::process::getpid(), Signal::STOP);
    Command::new(&program[0]).args(&program[1..]).exec()
}

/// Counts the calls of a process that is held, and lets it go.
fn release_counted(child: &Child) -> Option<CallCount> {
    let stat = format!("/proc/{}/stat", child.id());
    let is_stopped = || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    };
    let begun = Instant::now();
    while !is_stopped() && begun.elapsed() < LAST_WORDS {
        std::thread::sleep(Duration::from_millis(1));
    }
    let counted = CallCount::attach(child.id());
    let _ = kill_process(Pid::from_child(child), Signal::CONT);
    counted
}

/// Waits until each of `who` gave its sign; when each did. The memory of these and of `others` is watched.
///
/// # Errors
/// One of `who` ended before, one of `others` ended, or `patience` did.
pub fn wait_all(
    who: &mut [&mut Program],
    others: &mut [&mut Program],
    signs: &[Sign],
    patience: Duration,
) -> Result<Vec<Instant>, String> {
    let begun = Instant::now();
    let mut when: Vec<Option<Instant>> = vec![None; who.len()];
    loop {
        if is_interrupted() {
            return Err(INTERRUPTED.to_owned());
        }
        for ((program, sign), when) in who.iter_mut().zip(signs).zip(&mut when) {
            if when.is_none() {
                *when = program.gave(sign)?;
            }
            program.look();
        }
        for other in others.iter_mut() {
            if other.shared.said().exit.is_some() {
                return Err(other.story("ended in the middle"));
            }
            other.look();
        }
        if let Some(when) = when.iter().copied().collect::<Option<Vec<_>>>() {
            return Ok(when);
        }
        let open = when.iter().position(Option::is_none).expect("one is open");
        if begun.elapsed() > patience {
            return Err(who[open].story(&format!("was not ready after {patience:?}")));
        }
        let nap = if matches!(signs[open], Sign::File(_)) { FILE_LOOK } else { LOOK };
        let shared = Arc::clone(&who[open].shared);
        let said = shared.said();
        // What came since the look above is seen after the nap at the latest, with its own time.
        drop(shared.changed.wait_timeout(said, nap));
    }
}

/// Writes down what comes, line by line, with its time.
fn follow(from: impl Read + Send + 'static, shared: &Arc<Shared>, log: Option<File>) {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let (mut reader, mut log, mut line) = (BufReader::new(from), log, Vec::new());
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let at = Instant::now();
            if let Some(log) = &mut log {
                let _ = log.write_all(&line);
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            shared.said().lines.push((at, text));
            shared.changed.notify_all();
            line.clear();
        }
    });
}

/// A TCP port that was free a moment ago, below those that Linux gives to outgoing connections (32,768
/// and up), of which one could take it before the program does.
pub fn free_port() -> u16 {
    use std::sync::atomic::AtomicU32;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id().wrapping_mul(31);
    loop {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 13_000 + (process.wrapping_add(serial.wrapping_mul(7)) % 17_000) as u16;
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Program {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let home =
            std::env::temp_dir().join(format!("bench-child-{}-{serial}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let program = Program::start(command, &home, None).unwrap();
        let _ = fs::remove_dir_all(home);
        program
    }

    #[test]
    fn a_program_that_fails_gives_no_sign_of_its_end() {
        let patience = Duration::from_secs(10);
        assert!(sh("exit 0").wait(&Sign::Exit, patience).is_ok());
        let story = sh("echo why; exit 3").wait(&Sign::Exit, patience).unwrap_err();
        assert!(story.contains("failed"), "{story}");
        let story = sh("exit 0").wait(&Sign::line("ready"), patience).unwrap_err();
        assert!(story.contains("too early"), "{story}");
    }

    #[test]
    fn what_a_program_used_is_known_after_its_end_with_that_of_its_children() {
        let mut program = sh("sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; exit 0");
        program.wait(&Sign::Exit, Duration::from_secs(20)).unwrap();
        assert!(program.cpu_seconds() > 0.02, "{}", program.cpu_seconds());
        assert!(program.rss_peak_bytes() > 100_000);
    }

    #[test]
    fn lines_are_counted() {
        let mut program = sh("echo done 1; sleep 0.2; echo done 2; sleep 5");
        program.wait(&Sign::Lines("done", 2), Duration::from_secs(4)).unwrap();
        assert!(program.begun().elapsed() > Duration::from_millis(150));
        assert!(program.gave(&Sign::Lines("done", 3)).unwrap().is_none());
    }
}
