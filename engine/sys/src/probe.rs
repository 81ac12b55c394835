//! What this machine allows: asked once at start, told to the operator in words.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::arena::Arena;
use crate::dir::{DeviceId, DirHandle};
use crate::file::{DioAlign, dio_align};
use crate::process;
use crate::ring::{Ring, RingError, RingMode};

pub use crate::dir::Space;

/// Release of the running kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 in 6.18.44.
    pub major: u32,
    /// 18 in 6.18.44.
    pub minor: u32,
    /// As `uname -r` prints it.
    pub release: String,
}

/// Whether io_uring can be used, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UringSupport {
    /// Usable in this mode.
    Yes(RingMode),
    /// `kernel.io_uring_disabled` is 1 (for all but a group) or 2 (for all).
    ForbiddenBySysctl(u32),
    /// A seccomp filter, as containers set by default.
    ForbiddenBySeccomp,
    /// The memlock limit or memory, and no prohibition.
    NoMemory,
    /// A kernel that is too old.
    TooOld,
    /// Something else, in words.
    Other(String),
}

/// Kind of file system, as far as it matters to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of file systems")]
pub enum FsKind {
    Ext4,
    Xfs,
    Btrfs,
    Zfs,
    /// Lost at a restart.
    Tmpfs,
    /// A container's layers: data in it goes with the container.
    Overlay,
    Nfs,
    Fuse,
    /// Its magic number (`statfs(2)`).
    Other(u64),
}

/// What a folder's file system offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderFacts {
    /// Its kind.
    pub fs: FsKind,
    /// How O_DIRECT wants transfers; `None` where there is none.
    pub dio_align: Option<DioAlign>,
    /// Room left.
    pub space: Space,
    /// `fallocate(2)` reserves space, so that a full disk is noticed before data is accepted.
    pub can_reserve: bool,
    /// Median time of an `fdatasync(2)` after a write of 4 KiB: what each commit waits for.
    pub sync_time: Duration,
    /// The device has heads to move, see [`is_rotational`].
    pub is_rotational: Option<bool>,
}

/// What the machine allows this process.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineFacts {
    /// The kernel.
    pub kernel: KernelVersion,
    /// io_uring.
    pub uring: UringSupport,
    /// `RLIMIT_MEMLOCK` in bytes; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// `RLIMIT_NOFILE`, soft and hard.
    pub open_files: (u64, u64),
    /// CPUs that this process may run on.
    pub cpus: usize,
    /// CPUs' worth of time that the cgroup grants; `None` without a quota.
    pub cpu_quota: Option<f64>,
    /// Memory that the cgroup grants, in bytes; `None` without a limit.
    pub memory_max_bytes: Option<u64>,
}

/// Asks for everything, in a few milliseconds.
pub fn machine() -> MachineFacts {
    MachineFacts {
        kernel: kernel_version(),
        uring: uring_support(),
        memlock_bytes: process::memlock_limit_bytes(),
        open_files: process::open_files_limit(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        cpu_quota: cpu_quota(),
        memory_max_bytes: memory_max_bytes(),
    }
}

/// How many bytes of buffers of `len_max_bytes` the kernel lets this process register with a ring now:
/// the limit is one for all processes of a user, so only trying tells.
pub fn registrable_bytes(len_max_bytes: usize) -> usize {
    let Ok(mut ring) = Ring::new(32) else { return 0 };
    match Arena::new(len_max_bytes) {
        Ok(arena) => ring.register_arena(&arena, len_max_bytes),
        Err(_) => 0,
    }
}

/// The running kernel (`uname(2)`).
pub fn kernel_version() -> KernelVersion {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let (major, minor) = parse_release(&release);
    KernelVersion { major, minor, release }
}

fn parse_release(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Tries a small ring.
pub fn uring_support() -> UringSupport {
    match Ring::new(32) {
        Ok(ring) => UringSupport::Yes(ring.mode()),
        Err(error) => support_of(&error),
    }
}

fn support_of(error: &RingError) -> UringSupport {
    match error {
        RingError::Forbidden(_) => match sysctl_disabled() {
            // 1 lets root and the members of a group through: for us it may be the filter after all.
            Some(value @ 1) if !process::is_seccomp_filtered() => {
                UringSupport::ForbiddenBySysctl(value)
            }
            Some(value @ 2..) => UringSupport::ForbiddenBySysctl(value),
            _ => UringSupport::ForbiddenBySeccomp,
        },
        // Some filters answer ENOSYS to pretend an old kernel.
        RingError::TooOld if kernel_has_rings() => UringSupport::ForbiddenBySeccomp,
        RingError::TooOld => UringSupport::TooOld,
        RingError::NoMemory { .. } => UringSupport::NoMemory,
        RingError::Io(source) => UringSupport::Other(source.to_string()),
    }
}

fn kernel_has_rings() -> bool {
    let kernel = kernel_version();
    (kernel.major, kernel.minor) >= (5, 11) && process::is_seccomp_filtered()
}

fn sysctl_disabled() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

/// Why there is no ring and what an operator can do about it, one clause each.
pub fn explain_ring_error(error: &RingError) -> (String, &'static str) {
    explain(&support_of(error))
}

/// What a verdict means and what an operator can do about it, one clause each.
pub fn explain(support: &UringSupport) -> (String, &'static str) {
    match support {
        UringSupport::Yes(mode) => (format!("io_uring works ({mode})"), "nothing to do"),
        UringSupport::ForbiddenBySysctl(value) => (
            format!("forbidden by the sysctl kernel.io_uring_disabled={value}"),
            "set kernel.io_uring_disabled=0 to allow it",
        ),
        UringSupport::ForbiddenBySeccomp => (
            "forbidden by a seccomp filter, as containers set by default".to_owned(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile",
        ),
        UringSupport::NoMemory => (
            "not enough lockable memory (the limit is one for all processes of the user)"
                .to_owned(),
            "raise it: ulimit -l, LimitMEMLOCK= in a unit, --ulimit memlock= for a container",
        ),
        UringSupport::TooOld => {
            ("the kernel is too old".to_owned(), "Linux 6.1 or newer runs it at its best")
        }
        UringSupport::Other(text) => (text.clone(), "see the error"),
    }
}

/// What the file system beneath a folder offers. Creates and removes a file in it, because alignment
/// and the cost of a sync are told for files only.
///
/// # Errors
/// What opening, writing or asking says.
pub fn folder(path: &Path) -> io::Result<FolderFacts> {
    let dir = DirHandle::open(path)?;
    let name = format!(".ringseed-probe-{}", std::process::id());
    let options = crate::dir::FileOptions { write: true, ..Default::default() };
    let file = dir.open_file(Path::new(&name), options)?;
    let facts = probe_file(&dir, file.as_fd());
    // Also when asking failed: nothing of ours stays.
    dir.remove_file(Path::new(&name))?;
    facts
}

fn probe_file(dir: &DirHandle, file: BorrowedFd<'_>) -> io::Result<FolderFacts> {
    const SYNCS: usize = 5;
    const BLOCK: [u8; 4096] = [0x5a; 4096];
    let mut times = [Duration::ZERO; SYNCS];
    for (at, time) in times.iter_mut().enumerate() {
        rustix::io::pwrite(file, &BLOCK, (at * BLOCK.len()) as u64)?;
        let begun = Instant::now();
        rustix::fs::fdatasync(file)?;
        *time = begun.elapsed();
    }
    times.sort_unstable();
    Ok(FolderFacts {
        fs: fs_kind(dir)?,
        dio_align: dio_align(file)?,
        space: dir.space()?,
        can_reserve: crate::dir::allocate(file, 64 << 10)?,
        sync_time: times[SYNCS / 2],
        is_rotational: is_rotational(file),
    })
}

/// Whether the device that holds an open file has to move heads. `None` where the kernel does not
/// know: file systems over several devices, and virtual disks, whose flag is set for want of anything
/// better.
pub fn is_rotational(file: BorrowedFd<'_>) -> Option<bool> {
    is_device_rotational(DeviceId(rustix::fs::fstat(file).ok()?.st_dev))
}

/// The same of a device by its number. Asks the kernel alone and no disk.
pub fn is_device_rotational(DeviceId(device): DeviceId) -> Option<bool> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // A partition has no queue of its own; its disk's is one folder up.
    let disk = if block.join("queue").is_dir() { block.as_path() } else { block.parent()? };
    let driver = std::fs::read_link(disk.join("device/driver")).unwrap_or_default();
    if driver.file_name().is_some_and(|name| name == "virtio_blk") {
        return None;
    }
    let flag = std::fs::read_to_string(disk.join("queue/rotational")).ok()?;
    Some(flag.trim() == "1")
}

fn fs_kind(dir: &DirHandle) -> io::Result<FsKind> {
    let magic = rustix::fs::fstatfs(dir)?.f_type as u64 & 0xffff_ffff; // sign-extended on some
    Ok(match magic {
        0xef53 => FsKind::Ext4,
        0x5846_5342 => FsKind::Xfs,
        0x9123_683e => FsKind::Btrfs,
        0x2fc1_2fc1 => FsKind::Zfs,
        0x0102_1994 => FsKind::Tmpfs,
        0x794c_7630 => FsKind::Overlay,
        0x6969 => FsKind::Nfs,
        0x6573_5546 => FsKind::Fuse,
        other => FsKind::Other(other),
    })
}

/// CPUs' worth of time that this process's cgroup grants, version 2 or 1.
fn cpu_quota() -> Option<f64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let v1 = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let is_cpu = fields.next()?.split(',').any(|name| name == "cpu");
        fields.next().filter(|_| is_cpu)
    });
    // Every level above may grant less: the smallest counts.
    let mut quotas = Vec::new();
    for level in Path::new(v2).ancestors() {
        let level = level.strip_prefix("/").unwrap_or(level);
        let file = Path::new("/sys/fs/cgroup").join(level).join("cpu.max");
        quotas.extend(std::fs::read_to_string(file).ok().and_then(|text| parse_cpu_max(&text)));
    }
    for level in Path::new(v1.unwrap_or("/")).ancestors() {
        let level = level.strip_prefix("/").unwrap_or(level);
        let folder = Path::new("/sys/fs/cgroup/cpu").join(level);
        let read = |name: &str| -> Option<f64> {
            std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        if let (Some(quota), Some(period)) = (read("cpu.cfs_quota_us"), read("cpu.cfs_period_us"))
            && quota > 0.0
            && period > 0.0
        {
            quotas.push(quota / period);
        }
    }
    quotas.into_iter().min_by(f64::total_cmp)
}

/// The smallest memory limit of this process's cgroup and of those above it, version 2 or 1.
fn memory_max_bytes() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let v1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let limits = |base: &str, own: &str, name: &str| -> Vec<u64> {
        let read = |level: &Path| {
            let level = level.strip_prefix("/").unwrap_or(level);
            let text = std::fs::read_to_string(Path::new(base).join(level).join(name)).ok()?;
            parse_memory_max(&text)
        };
        Path::new(own).ancestors().filter_map(read).collect()
    };
    let mut found = limits("/sys/fs/cgroup", v2, "memory.max");
    found.extend(limits("/sys/fs/cgroup/memory", v1.unwrap_or("/"), "memory.limit_in_bytes"));
    found.into_iter().min()
}

/// Version 1 says "no limit" by a number near 2^63.
fn parse_memory_max(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < 1 << 60)
}

fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.44-fc-v595"), (6, 18));
        assert_eq!(parse_release("5.4"), (5, 4));
        assert_eq!(parse_release("odd"), (0, 0));
    }

    #[test]
    fn quotas_are_read() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
    }

    #[test]
    fn memory_limits_are_read() {
        assert_eq!(parse_memory_max("536870912\n"), Some(512 << 20));
        assert_eq!(parse_memory_max("max\n"), None);
        assert_eq!(parse_memory_max("9223372036854771712\n"), None, "version 1 without a limit");
    }

    #[test]
    fn this_machine_is_told() {
        let facts = machine();
        assert!(facts.kernel.major >= 4 && facts.cpus > 0);
        assert!(facts.open_files.0 <= facts.open_files.1);
        let (reason, _) = explain(&facts.uring);
        assert!(!reason.is_empty());
        let tmp = TestDir::on_disk();
        let found = folder(tmp.path()).unwrap();
        assert!(found.space.total_bytes > 0);
        assert!(found.sync_time > Duration::ZERO);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
