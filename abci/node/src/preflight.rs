//! What is looked at before a datatrust starts: kernel, ring, locked memory, open files, space,
//! ports. What we can do without costs one warning with its cure; what we cannot is refused.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringseed_sys::probe;
use ringseed_sys::ring::{Ring, RingError};
use rustix::process::{Resource, Rlimit};

use crate::error::{Code, Error, Result};
use crate::units;

/// Oldest kernel that is known to work (`openat2` 5.6, the ring's single-issuer mode 6.1; older
/// rings step down to fewer flags, and without one epoll takes over).
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Sockets, files and rings of one datatrust with room to spare.
const OPEN_FILES_MIN: u64 = 1_024;
/// What we raise the soft limit to, if the hard one allows.
const OPEN_FILES_WANTED: u64 = 65_536;
/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of statfs(2).
const MEMORY_FS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The kernel took at most some hundred milliseconds to give the sockets of a killed process free, on
/// two busy cores.
const PORT_WAIT_MAX: Duration = Duration::from_secs(3);

/// A finding that is no reason to stop: the warning, and how we go on.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What, why and the cure.
    pub warning: Error,
    /// How we go on.
    pub now: String,
}

/// Checks the machine, not yet any folder.
///
/// # Errors
/// [`Code::Kernel`] or [`Code::OpenFiles`] when there is no way to run here.
pub fn machine() -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if parse_kernel(&release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(Error::new(Code::Kernel, format!("kernel {release} is too old"))
            .why(format!("{}.{} is the oldest that works", KERNEL_MIN.0, KERNEL_MIN.1))
            .cure("run on a newer kernel"));
    }
    findings.extend(raise_open_files()?);
    findings.extend(check_ring());
    Ok(findings)
}

/// `6.18.44-fc` becomes `(6, 18)`.
fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn raise_open_files() -> Result<Option<Finding>> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = hard.min(OPEN_FILES_WANTED);
    let soft = limit.current.unwrap_or(u64::MAX);
    if soft < wanted {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        // Raising the soft limit up to the hard one is always allowed; if not, the old one stays.
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    }
    let now = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let short = |code| {
        Error::new(code, format!("only {now} files may be open at a time"))
            .why(format!("the hard limit of this user is {hard}"))
            .cure("raise it: ulimit -Hn 65536 as root, or LimitNOFILE=65536 in the service")
    };
    if now < 256 {
        return Err(short(Code::OpenFiles));
    }
    Ok((now < OPEN_FILES_MIN).then(|| Finding {
        warning: short(Code::OpenFiles),
        now: "going on with fewer connections".to_owned(),
    }))
}

fn check_ring() -> Option<Finding> {
    let missing = Ring::new(8).err()?;
    let code = match missing {
        RingError::NoMemory { .. } => Code::Memlock,
        _ => Code::NoRing,
    };
    let (why, cure) = probe::explain_ring_error(&missing);
    Some(Finding {
        warning: Error::new(code, "io_uring cannot be used here").why(why).cure(cure),
        now: "going on with epoll: the same results, somewhat slower".to_owned(),
    })
}

/// Refuses an address that cannot be bound, before anything is written. An address in use is tried for
/// a while: the kernel takes down a ring after its process has ended, so that a datatrust which is
/// started again right after a kill finds its own sockets still there.
///
/// # Errors
/// [`Code::PortInUse`], or [`Code::Io`] for other reasons.
pub fn port(addr: SocketAddr, what: &str) -> Result<()> {
    let began = Instant::now();
    let error = loop {
        match TcpListener::bind(addr) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => break error,
            Err(error) if began.elapsed() >= PORT_WAIT_MAX => break error,
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
    let code = if in_use { Code::PortInUse } else { Code::Io };
    let why = if in_use { "another process listens there".to_owned() } else { error.to_string() };
    Err(Error::new(code, format!("cannot listen on {addr} for the {what}"))
        .why(why)
        .cure("stop that process, or choose another address in datatrust.toml"))
}

/// Free bytes for this user below `path`, which must exist.
///
/// # Errors
/// I/O errors.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(path).map_err(|error| Error::io("measure", path, error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether `path` lies in memory.
///
/// # Errors
/// I/O errors.
pub fn is_memory(path: &Path) -> Result<bool> {
    let stat =
        rustix::fs::statfs(path).map_err(|error| Error::io("measure", path, error.into()))?;
    Ok(MEMORY_FS.contains(&(stat.f_type as u64)))
}

/// Makes `path` if missing and proves that it can be written.
///
/// # Errors
/// [`Code::ReadOnly`], [`Code::NoSpace`] or other I/O errors.
pub fn writable(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
    let trial = path.join(format!(".trial-{}", std::process::id()));
    let result = std::fs::write(&trial, [0u8; 4096]);
    let _ = std::fs::remove_file(&trial);
    result.map_err(|error| Error::io("write to", path, error))
}

/// The first of `places` that can be made, is no memory file system and has `needed_bytes` free.
///
/// # Errors
/// [`Code::NoSpace`] when the best of them has too little, else [`Code::MemoryFs`] or the last
/// place's own error.
pub fn choose_place(places: &[PathBuf], needed_bytes: u64) -> Result<PathBuf> {
    let mut most: Option<(u64, &Path)> = None;
    let mut last = Error::new(Code::NoSpace, "there is no place for the data");
    for place in places {
        if let Err(error) = writable(place) {
            last = error;
            continue;
        }
        if is_memory(place)? {
            last = Error::new(Code::MemoryFs, format!("{} lies in memory", place.display()))
                .why("a market's payload would fill it")
                .cure("ringseed up --keep DIR with DIR on a disk");
            continue;
        }
        let free = free_bytes(place)?;
        if free >= needed_bytes {
            return Ok(place.clone());
        }
        if most.is_none_or(|(best, _)| free > best) {
            most = Some((free, place));
        }
    }
    let Some((free, place)) = most else { return Err(last) };
    Err(Error::new(Code::NoSpace, format!("no room for {}", units::bytes(needed_bytes)))
        .why(format!("{} has {} free", place.display(), units::bytes(free)))
        .cure("ringseed up --synthetic 64MiB, or --keep DIR on a disk with room"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_read() {
        assert_eq!(parse_kernel("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_kernel("5.10-rc1"), Some((5, 10)));
        assert_eq!(parse_kernel("mystery"), None);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap();
        let error = port(addr, "payload").unwrap_err();
        assert_eq!(error.code, Code::PortInUse);
        assert!(error.what.contains(&addr.to_string()));
        drop(held);
        port(addr, "payload").unwrap();
    }

    #[test]
    fn too_little_room_is_exit_8() {
        let here = std::env::temp_dir().join(format!("rs-place-{}", std::process::id()));
        std::fs::create_dir_all(&here).unwrap();
        if !is_memory(&here).unwrap() {
            assert_eq!(choose_place(std::slice::from_ref(&here), 1).unwrap(), here);
            let error = choose_place(std::slice::from_ref(&here), u64::MAX).unwrap_err();
            assert_eq!(error.code.exit(), 8);
        }
        let nowhere = PathBuf::from("/proc/nowhere");
        assert!(choose_place(&[nowhere], 1).is_err());
        std::fs::remove_dir_all(here).unwrap();
    }

    #[test]
    fn memory_is_told_from_disk() {
        if Path::new("/dev/shm").is_dir() {
            assert!(is_memory(Path::new("/dev/shm")).unwrap());
            let error = choose_place(&[PathBuf::from("/dev/shm/rs-place-test")], 1).unwrap_err();
            let _ = std::fs::remove_dir("/dev/shm/rs-place-test");
            assert_eq!(error.code, Code::MemoryFs);
        }
    }
}
