//! This process towards the system: limits, signals, locks, what it has used.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit, Signal};

/// What this process has used so far (`getrusage(2)`, `/proc/self/status`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in our own code.
    pub user: Duration,
    /// CPU time in the kernel on our behalf.
    pub system: Duration,
    /// Most memory resident at any time, bytes.
    pub rss_peak_bytes: u64,
    /// Memory resident now, bytes; 0 where `/proc` is missing.
    pub rss_bytes: u64,
}

/// What this process has used so far.
pub fn usage() -> Usage {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a struct of the right type, which the call fills; all-zero is valid
    // for it should the call fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    Usage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        rss_peak_bytes: usage.ru_maxrss as u64 * 1024,
        rss_bytes: status_kib("VmRSS:").unwrap_or(0) * 1024,
    }
}

fn status_line(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

fn status_kib(name: &str) -> Option<u64> {
    status_line(name)?.split_whitespace().next()?.parse().ok()
}

/// True when a seccomp filter judges our system calls.
pub fn is_seccomp_filtered() -> bool {
    status_line("Seccomp:").is_some_and(|mode| mode == "2")
}

/// Makes the kernel kill this process when its parent ends, so that a test or a dev market leaves
/// nothing behind. `parent_pid` is what the parent told us; it guards against a parent that was gone
/// before this call. Beware: "parent" is the *thread* that started us (`prctl(2)`).
///
/// # Errors
/// `NotFound` when the parent is gone already, else what `prctl(2)` says.
pub fn die_with_parent(parent_pid: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    // In a process namespace of its own the parent has no number here, and cannot be checked.
    if parent.is_some_and(|parent| parent != parent_pid) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the parent process is gone"));
    }
    Ok(())
}

/// `RLIMIT_NOFILE`, soft and hard.
pub fn open_files_limit() -> (u64, u64) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

/// Raises the soft limit of open files to the hard one and returns what holds now. A soft limit of
/// 1024 is a convention for `select(2)`, which we do not use.
pub fn raise_open_files_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    open_files_limit().0
}

/// `RLIMIT_MEMLOCK` in bytes; `None` is unlimited, as it is in effect for root.
pub fn memlock_limit_bytes() -> Option<u64> {
    rustix::process::getrlimit(Resource::Memlock).current
}

/// A file that this process alone holds, until it is dropped or the process ends, however that ends.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing would release it too, but not while a child that is just being started has a copy.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Locks a file, creating it if missing; `None` when another process, or another lock of this one,
/// holds it.
///
/// # Errors
/// What `open(2)` and `flock(2)` say.
pub fn try_lock_file(path: &Path) -> io::Result<Option<FileLock>> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(FileLock { file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes writes to a closed pipe or socket fail with `EPIPE` instead of ending the process. Rust's
/// start-up does this for programs of its own; this is for libraries started otherwise.
pub fn ignore_broken_pipes() {
    // SAFETY: setting a disposition to "ignore" installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Tells of SIGINT and SIGTERM. One per process.
#[derive(Debug)]
pub struct StopSignals {
    eventfd: &'static OwnedFd,
}

static STOP_EVENTFD: OnceLock<OwnedFd> = OnceLock::new();
static STOP_EVENTFD_RAW: AtomicI32 = AtomicI32::new(-1);
static STOP_COUNT: AtomicU32 = AtomicU32::new(0);

extern "C" fn handle_stop_signal(_signal: libc::c_int) {
    // Only what signal-safety(7) allows: an atomic and write(2), with errno kept.
    STOP_COUNT.fetch_add(1, Ordering::AcqRel);
    let one = 1u64.to_ne_bytes();
    // SAFETY: the descriptor belongs to a static and is never closed; the buffer outlives the call;
    // errno is this thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(STOP_EVENTFD_RAW.load(Ordering::Acquire), one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}

impl StopSignals {
    /// Installs the handlers, once for all; later calls give another view of the same signals.
    ///
    /// # Errors
    /// What `eventfd(2)` and `sigaction(2)` say.
    pub fn install() -> io::Result<StopSignals> {
        use std::os::fd::AsRawFd;
        let eventfd = match STOP_EVENTFD.get() {
            Some(eventfd) => eventfd,
            None => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let made = rustix::event::eventfd(0, flags)?;
                STOP_EVENTFD.get_or_init(|| made)
            }
        };
        STOP_EVENTFD_RAW.store(eventfd.as_raw_fd(), Ordering::Release);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: all-zero is a valid sigaction (no flags, empty mask).
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handle_stop_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: the handler does only what is allowed in one, and lives as long as the program.
            if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(StopSignals { eventfd })
    }

    /// How many of them came so far: the second one means "now".
    pub fn count(&self) -> u32 {
        STOP_COUNT.load(Ordering::Acquire)
    }

    /// Waits for one, at most `timeout`. True when one has come at any time.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut fds = [PollFd::from_borrowed_fd(self.eventfd.as_fd(), PollFlags::IN)];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if self.count() == 0 {
            // Interrupted by the very signal it waits for: the count tells.
            let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        }
        self.count() > 0
    }
}

impl AsFd for StopSignals {
    /// Readable once a signal has come, for ever.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// Makes `io_uring_setup(2)` fail with `EPERM` in all threads of this process and its children, for
/// ever: what a container's default filter does. For tests of the fallback.
///
/// # Errors
/// What `prctl(2)` and `seccomp(2)` say.
pub fn forbid_io_uring() -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Offset of the system call's number in `struct seccomp_data`.
    const NR_OFFSET: u32 = 0;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number is the same for every architecture that we build for natively; a filter for tests
    // need not look at foreign ones.
    let mut filter = [
        op(LOAD_WORD, 0, 0, NR_OFFSET),
        op(JUMP_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the program points to `filter`, which outlives the call; the kernel checks and copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has a filter of its own"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child;
    use crate::test_dir::TestDir;

    #[test]
    fn usage_grows_with_work() {
        let before = usage();
        while usage().user == before.user {
            std::hint::black_box(0);
        }
        let after = usage();
        assert!(after.user > before.user && after.rss_peak_bytes >= after.rss_bytes / 2);
        assert!(after.rss_bytes > 0);
    }

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let tmp = TestDir::new();
        let path = tmp.path().join("lock");
        let held = try_lock_file(&path).unwrap().unwrap();
        assert!(try_lock_file(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock_file(&path).unwrap().is_some());
    }

    #[test]
    fn the_open_files_limit_goes_up_to_the_hard_one() {
        let raised = raise_open_files_limit();
        assert_eq!(raised, open_files_limit().1);
    }

    #[test]
    fn a_signal_is_told_and_does_not_end_the_process() {
        if !test_child::is_child("process::tests::a_signal_is_told_and_does_not_end_the_process") {
            return;
        }
        let signals = StopSignals::install().unwrap();
        assert!(!signals.wait(Some(Duration::from_millis(5))));
        rustix::process::kill_process(rustix::process::getpid(), Signal::TERM).unwrap();
        assert!(signals.wait(Some(Duration::from_secs(5))));
        assert_eq!(signals.count(), 1);
        rustix::process::kill_process(rustix::process::getpid(), Signal::INT).unwrap();
        while StopSignals::install().unwrap().count() < 2 {
            std::thread::yield_now();
        }
    }

    /// The middle process starts one that would sleep for long, and ends: the sleeper must end too.
    #[test]
    fn a_process_dies_with_its_parent() {
        const NAME: &str = "process::tests::a_process_dies_with_its_parent";
        const PARENT: &str = "RINGSEED_SYS_TEST_PARENT";
        if let Ok(parent) = std::env::var(PARENT) {
            die_with_parent(parent.parse().unwrap()).unwrap();
            assert!(die_with_parent(1).is_err());
            println!("sleeper is set");
            std::thread::sleep(Duration::from_secs(30));
            return;
        }
        if std::env::var("RINGSEED_SYS_TEST_CHILD").is_err() {
            let middle = test_child::command(NAME).output().unwrap();
            let text = String::from_utf8_lossy(&middle.stdout);
            let pid = text.lines().find_map(|line| line.split("sleeper pid ").nth(1)).unwrap();
            let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
            let give_up = std::time::Instant::now() + Duration::from_secs(5);
            while rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid) {
                assert!(std::time::Instant::now() < give_up, "the sleeper outlives its parent");
                std::thread::sleep(Duration::from_millis(5));
            }
            return;
        }
        let mut command = test_child::command(NAME);
        command.env(PARENT, std::process::id().to_string()).stdout(std::process::Stdio::piped());
        let mut sleeper = command.spawn().unwrap();
        println!("sleeper pid {}", sleeper.id());
        let mut lines = io::BufRead::lines(io::BufReader::new(sleeper.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("sleeper is set")));
        std::process::exit(0); // without waiting for it
    }

    /// Whoever adopts it in a container may not reap it.
    fn is_zombie(pid: rustix::process::Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| stat.contains(") Z "))
    }

    /// What an ordinary user meets: no ring without lockable memory, a small registration with the
    /// usual 8 MiB. Root is exempt, so the child gives its rights away first.
    #[test]
    fn short_lockable_memory_is_told_from_a_prohibition() {
        use crate::probe::{self, UringSupport};
        use crate::ring::Ring;
        if !test_child::is_child("process::tests::short_lockable_memory_is_told_from_a_prohibition")
        {
            return;
        }
        let limit = |bytes| Rlimit { current: Some(bytes), maximum: Some(8 << 20) };
        rustix::process::setrlimit(Resource::Memlock, limit(8 << 20)).unwrap();
        // SAFETY: changes the rights of this process alone, which ends with this test.
        unsafe { libc::setresuid(60_123, 60_123, 60_123) };
        let arena = crate::arena::Arena::new(64 << 20).unwrap();
        let mut ring = Ring::new(1024).unwrap();
        let registered_bytes = ring.register_arena(&arena, 64 << 20);
        assert!((1 << 20..=8 << 20).contains(&registered_bytes), "{registered_bytes}");
        drop(ring);
        rustix::process::setrlimit(Resource::Memlock, limit(0)).unwrap();
        let support = probe::uring_support();
        let (reason, cure) = probe::explain(&support);
        match support {
            UringSupport::NoMemory => {
                assert!(reason.contains("lockable") && cure.contains("ulimit -l"))
            }
            // Where rings are charged to the cgroup there is enough for one.
            UringSupport::Yes(_) => {}
            other => panic!("{other:?}"),
        }
    }
}
