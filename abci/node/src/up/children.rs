//! The processes that `up` runs: each in a process group of its own (so that Ctrl-C reaches only us
//! and we stop them in order), each told to die with us, each with its log in a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::error::{Code, Error, Result};

/// How long a child may take to end in order before it is killed.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How many last lines of a dead child's log are shown.
const LAST_LINES: usize = 8;

/// One running process of ours.
#[derive(Debug)]
pub struct Process {
    /// What people call it.
    pub name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts this very program with `args`; stdout and stderr go to `log`.
    ///
    /// Call it from the thread that lives longest: the kernel sends the death signal when the
    /// *thread* that started a child ends.
    ///
    /// # Errors
    /// I/O errors.
    pub fn start(name: &str, args: &[&std::ffi::OsStr], log: &Path) -> Result<Process> {
        let running = Path::new("/proc/self/exe");
        // A build or an upgrade may have replaced the file that we run from: then the kernel still has it.
        let program = std::env::current_exe()
            .map(|named| if named.exists() { named } else { running.to_owned() })
            .map_err(|error| Error::io("find", running, error))?;
        let open = File::options().create(true).append(true).open(log);
        let out = open.map_err(|error| Error::io("create", log, error))?;
        let err = out.try_clone().map_err(|error| Error::io("create", log, error))?;
        let child = Command::new(&program)
            .args(args)
            .arg("--with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|error| Error::io("start", &program, error))?;
        Ok(Process { name: name.to_owned(), log: log.to_owned(), child })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Refuses to go on when the process has ended: its status and last log lines are the reason.
    ///
    /// # Errors
    /// [`Code::ChildDied`].
    pub fn require_alive(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.died(status)),
            Err(error) => Err(Error::io("watch", Path::new(&self.name), error)),
        }
    }

    /// Whether the process has ended well; one that failed is reported as [`Process::require_alive`]
    /// does.
    ///
    /// # Errors
    /// [`Code::ChildDied`].
    pub fn has_succeeded(&mut self) -> Result<bool> {
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(true),
            _ => self.require_alive().map(|()| false),
        }
    }

    /// The error that reports this process's end.
    fn died(&self, status: ExitStatus) -> Error {
        Error::new(Code::ChildDied, format!("{} ended: {status}", self.name))
            .why("these are its last log lines")
            .lines(last_lines(&self.log, LAST_LINES))
            .cure(format!("its whole log: {}", self.log.display()))
    }

    /// Asks it to end, without waiting.
    pub fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; then there is nothing to ask.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for its end, and kills it when that takes too long.
    pub fn reap(&mut self) {
        let until = Instant::now() + STOP_MAX;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
        self.reap();
    }
}

/// The last `count` lines of a file, as far as they lie in its last 16 KiB.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let len_bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(len_bytes.saturating_sub(16 << 10)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Makes this process end when `parent` does. Call it first thing.
///
/// # Errors
/// [`Code::ChildDied`] when the parent has ended already.
pub fn die_with(parent: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| {
        Error::new(Code::Io, "cannot bind to the parent").why(error.to_string())
    })?;
    let actual = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    if actual == Some(parent) {
        return Ok(());
    }
    Err(Error::new(Code::ChildDied, format!("the parent process {parent} has ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_log_are_found() {
        let path = std::env::temp_dir().join(format!("rs-log-{}", std::process::id()));
        std::fs::write(&path, "one\ntwo\n\nthree\n").unwrap();
        assert_eq!(last_lines(&path, 2), ["two", "three"]);
        assert_eq!(last_lines(&path, 9).len(), 3);
        let long: String = (0..9000).map(|i| format!("line {i}\n")).collect();
        std::fs::write(&path, long).unwrap();
        assert_eq!(last_lines(&path, 1), ["line 8999"]);
        std::fs::remove_file(&path).unwrap();
        assert!(last_lines(&path, 1).is_empty());
    }
}
