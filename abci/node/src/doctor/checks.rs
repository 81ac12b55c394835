//! What a datatrust needs of its machine, one finding per line: passed, a warning with what we do
//! without, or a reason why nothing can run here.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringseed_sys::probe::{self, FolderFacts, FsKind, MachineFacts, UringSupport};
use ringseed_sys::ring;

use super::cure::Cure;
use crate::units;

/// Linux that the engine is known to work on, on its epoll driver at worst.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Linux from which a ring runs completions only when asked (`DEFER_TASKRUN`).
const KERNEL_BEST: (u32, u32) = (6, 1);
/// What the default driver registers with its ring.
const REGISTERED_BYTES: usize = 8 << 20;
/// Files, sockets and rings of one datatrust with room to spare.
const OPEN_FILES_WANTED: u64 = 65_536;
const OPEN_FILES_MIN: u64 = 256;
/// The arena, the page tables and the metadata of an engine at its defaults.
const MEMORY_MIN_BYTES: u64 = 128 << 20;
const MEMORY_WANTED_BYTES: u64 = 512 << 20;
/// Below this share of free space, or this much, a store is about to be full.
const SPACE_MIN_SHARE: u64 = 50;
const SPACE_MIN_BYTES: u64 = 1 << 30;
/// With fewer free inodes a file system is full for a listing of many short files.
const FILES_MIN: u64 = 10_000;
/// A slower sync limits how often a consensus that waits for one can commit.
const SYNC_SLOW: Duration = Duration::from_millis(20);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Pass,
    /// Works, with less than there could be.
    Warn,
    /// Nothing runs like this.
    Fail,
}

impl Level {
    /// The word at the start of a line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Pass => "PASS",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable, for scripts and for people who search: `RS-D10`.
    pub code: &'static str,
    /// How it ended.
    pub level: Level,
    /// What was found, with its figures.
    pub what: String,
    /// What would help; `None` when nothing is wrong.
    pub cure: Option<Cure>,
}

fn pass(code: &'static str, what: impl Into<String>) -> Finding {
    Finding { code, level: Level::Pass, what: what.into(), cure: None }
}

fn warn(code: &'static str, what: impl Into<String>, cure: Cure) -> Finding {
    Finding { code, level: Level::Warn, what: what.into(), cure: Some(cure) }
}

fn fail(code: &'static str, what: impl Into<String>, cure: Cure) -> Finding {
    Finding { code, level: Level::Fail, what: what.into(), cure: Some(cure) }
}

/// Everything about the machine, then about each folder and each address.
pub fn all(facts: &MachineFacts, folders: &[PathBuf], addrs: &[SocketAddr]) -> Vec<Finding> {
    let mut found = vec![kernel(facts), uring(&facts.uring)];
    if let UringSupport::Yes(mode) = &facts.uring {
        found.push(pass("RS-D03", format!("ring flags: {mode}")));
        found.push(operations());
        found.push(registered(facts, probe::registrable_bytes(REGISTERED_BYTES)));
    }
    found.push(drivers());
    found.push(open_files(facts.open_files));
    for path in folders {
        found.extend(folder(path));
    }
    found.extend(addrs.iter().map(|&addr| port(addr)));
    found.push(cpu(facts));
    found.push(shards(facts));
    found.push(memory(facts.memory_max_bytes));
    found
}

fn kernel(facts: &MachineFacts) -> Finding {
    let version = (facts.kernel.major, facts.kernel.minor);
    let release = &facts.kernel.release;
    let what = format!(
        "kernel {release} (needs {}.{}, at its best from {}.{})",
        KERNEL_MIN.0, KERNEL_MIN.1, KERNEL_BEST.0, KERNEL_BEST.1
    );
    match version {
        _ if version < KERNEL_MIN => fail("RS-D01", what, Cure::Kernel),
        _ if version < KERNEL_BEST => warn("RS-D01", what, Cure::Kernel),
        _ => pass("RS-D01", what),
    }
}

fn uring(support: &UringSupport) -> Finding {
    let (what, _) = probe::explain(support);
    let without = format!("io_uring: {what}; the epoll driver runs instead, slower");
    match support {
        UringSupport::Yes(_) => pass("RS-D02", "io_uring is allowed"),
        UringSupport::ForbiddenBySysctl(_) => warn("RS-D02", without, Cure::Sysctl),
        UringSupport::ForbiddenBySeccomp => warn("RS-D02", without, Cure::Seccomp),
        UringSupport::NoMemory => warn("RS-D02", without, Cure::Memlock),
        UringSupport::TooOld => warn("RS-D02", without, Cure::Kernel),
        UringSupport::Other(_) => warn("RS-D02", without, Cure::Seccomp),
    }
}

/// What `--io-driver` and `engine.driver` may name.
fn drivers() -> Finding {
    let names = crate::drivers::built_in().collect::<Vec<_>>().join(", ");
    pass("RS-D05", format!("drivers of this program: {names} (engine.driver, --io-driver)"))
}

fn operations() -> Finding {
    match ring::operations() {
        Ok(found) => judge_operations(&found),
        Err(error) => {
            warn("RS-D04", format!("the ring does not tell what it can: {error}"), Cure::Seccomp)
        }
    }
}

fn judge_operations(found: &[ring::Operation]) -> Finding {
    let names = |is_needed: bool| -> Vec<&str> {
        let missing = found.iter().filter(|op| !op.is_there && op.is_needed == is_needed);
        missing.map(|op| op.name).collect()
    };
    let (needed, welcome) = (names(true), names(false));
    let there = found.iter().filter(|op| op.is_there).count();
    match (needed.is_empty(), welcome.is_empty()) {
        (true, true) => pass("RS-D04", format!("ring operations: all {there} that we use")),
        (true, false) => {
            pass("RS-D04", format!("ring operations: {there}, without {}", welcome.join(", ")))
        }
        (false, _) => {
            let what = format!("ring operations missing: {}", needed.join(", "));
            warn("RS-D04", what, Cure::Kernel)
        }
    }
}

fn registered(facts: &MachineFacts, registered_bytes: usize) -> Finding {
    let limit = facts.memlock_bytes.map_or("unlimited".to_owned(), units::bytes);
    let got = units::bytes(registered_bytes as u64);
    let what = format!("memlock {limit}: {got} of buffers can be registered now");
    match registered_bytes >= REGISTERED_BYTES {
        true => pass("RS-D10", what),
        false => {
            let wanted = units::bytes(REGISTERED_BYTES as u64);
            let what = format!("{what} of {wanted}; the rest works unregistered");
            warn("RS-D10", what, Cure::Memlock)
        }
    }
}

fn open_files((soft, hard): (u64, u64)) -> Finding {
    let what = format!("open files {soft}, can be raised to {hard}");
    match hard {
        ..OPEN_FILES_MIN => fail("RS-D11", what, Cure::OpenFiles),
        OPEN_FILES_MIN..OPEN_FILES_WANTED => {
            let what = format!("{what}; many listings want {OPEN_FILES_WANTED}");
            warn("RS-D11", what, Cure::OpenFiles)
        }
        _ => pass("RS-D11", what),
    }
}

fn folder(path: &Path) -> Vec<Finding> {
    let name = path.display();
    match probe::folder(path) {
        Ok(facts) => judge_folder(&name.to_string(), &facts),
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "is missing".to_owned(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    format!("cannot be written: {error}")
                }
                _ => format!("cannot be used: {error}"),
            };
            vec![fail("RS-D20", format!("{name} {why}"), Cure::Folder)]
        }
    }
}

fn judge_folder(name: &str, facts: &FolderFacts) -> Vec<Finding> {
    let fs = FsName(facts.fs);
    let lost = matches!(facts.fs, FsKind::Tmpfs | FsKind::Overlay);
    let mut found = vec![match (lost, facts.dio_align) {
        (true, _) => {
            let what = format!("{name} is on {fs}: what lies there is lost at a restart");
            warn("RS-D20", what, Cure::Volume)
        }
        (false, Some(align)) => pass(
            "RS-D20",
            format!(
                "{name} {fs}: O_DIRECT, memory aligned to {}, offsets to {} bytes",
                align.memory_bytes, align.offset_bytes
            ),
        ),
        (false, None) => {
            let what = format!("{name} {fs}: no O_DIRECT, everything goes through the page cache");
            warn("RS-D20", what, Cure::Volume)
        }
    }];
    let files = facts.space.files_available;
    if files < FILES_MIN {
        let what = format!("{name} has room for {files} more files, whatever their length");
        found.push(warn("RS-D23", what, Cure::Space));
    }
    let (free, total) = (facts.space.available_bytes, facts.space.total_bytes);
    let what = format!("{name} {} of {} free", units::bytes(free), units::bytes(total));
    let is_tight = free < SPACE_MIN_BYTES || free < total / SPACE_MIN_SHARE;
    found.push(match (is_tight, facts.can_reserve) {
        (true, _) => warn("RS-D21", what, Cure::Space),
        (false, true) => pass("RS-D21", format!("{what}, can be reserved")),
        (false, false) => {
            let what = format!("{what}, cannot be reserved: a full disk is noticed late");
            warn("RS-D21", what, Cure::Volume)
        }
    });
    let heads = match facts.is_rotational {
        Some(true) => "rotational, reads go in file order",
        Some(false) => "not rotational",
        None => "not known whether rotational",
    };
    let what = format!("{name} fdatasync {:.1} ms, {heads}", facts.sync_time.as_secs_f64() * 1e3);
    found.push(match facts.sync_time > SYNC_SLOW {
        true => warn("RS-D22", format!("{what}: each commit waits for one"), Cure::Volume),
        false => pass("RS-D22", what),
    });
    found
}

fn port(addr: SocketAddr) -> Finding {
    match TcpListener::bind(addr) {
        Ok(_) => pass("RS-D40", format!("{addr} can be bound")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            warn("RS-D40", format!("{addr} is in use, perhaps by ringseed itself"), Cure::Port)
        }
        Err(error) => fail("RS-D40", format!("{addr} cannot be bound: {error}"), Cure::Port),
    }
}

fn cpu(facts: &MachineFacts) -> Finding {
    let what = units::count(facts.cpus as u64, "cpu");
    match facts.cpu_quota {
        Some(quota) if quota < 1.0 => {
            let what = format!("{what}, but the cgroup grants {quota} of one");
            warn("RS-D60", what, Cure::Cgroup)
        }
        Some(quota) => pass("RS-D60", format!("{what}, cgroup quota {quota}")),
        None => pass("RS-D60", format!("{what}, no cgroup quota")),
    }
}

/// How many shards an engine takes here at its defaults.
fn shards(facts: &MachineFacts) -> Finding {
    let config = ringseed_engine::Config::new("", [0; 20]);
    let count = config.shard_count(facts.cpus);
    let what = units::count(count as u64, "shard");
    let arena = units::bytes(config.arena_len_bytes as u64 / count as u64);
    pass(
        "RS-D62",
        format!("{what} by default, with an arena of {arena} each (engine.shards, --shards)"),
    )
}

fn memory(max_bytes: Option<u64>) -> Finding {
    let Some(max_bytes) = max_bytes else { return pass("RS-D61", "no cgroup memory limit") };
    let what = format!("cgroup memory limit {}", units::bytes(max_bytes));
    match max_bytes {
        ..MEMORY_MIN_BYTES => {
            let what = format!("{what}: an engine needs {}", units::bytes(MEMORY_MIN_BYTES));
            fail("RS-D61", what, Cure::Cgroup)
        }
        MEMORY_MIN_BYTES..MEMORY_WANTED_BYTES => warn("RS-D61", what, Cure::Cgroup),
        _ => pass("RS-D61", what),
    }
}

struct FsName(FsKind);

impl fmt::Display for FsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            FsKind::Ext4 => f.write_str("ext4"),
            FsKind::Xfs => f.write_str("xfs"),
            FsKind::Btrfs => f.write_str("btrfs"),
            FsKind::Zfs => f.write_str("zfs"),
            FsKind::Tmpfs => f.write_str("tmpfs"),
            FsKind::Overlay => f.write_str("overlay"),
            FsKind::Nfs => f.write_str("nfs"),
            FsKind::Fuse => f.write_str("fuse"),
            FsKind::Other(magic) => write!(f, "file system {magic:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use ringseed_sys::file::DioAlign;
    use ringseed_sys::probe::{KernelVersion, Space};
    use ringseed_sys::ring::{Operation, RingMode};

    use super::*;

    fn machine(major: u32, minor: u32) -> MachineFacts {
        MachineFacts {
            kernel: KernelVersion { major, minor, release: format!("{major}.{minor}.1") },
            uring: UringSupport::Yes(RingMode::Plain),
            memlock_bytes: Some(8 << 20),
            open_files: (1024, 1 << 20),
            cpus: 2,
            cpu_quota: None,
            memory_max_bytes: None,
        }
    }

    fn disk() -> FolderFacts {
        FolderFacts {
            fs: FsKind::Ext4,
            dio_align: Some(DioAlign { memory_bytes: 512, offset_bytes: 512 }),
            space: Space {
                available_bytes: 900 << 30,
                total_bytes: 1000 << 30,
                files_available: FILES_MIN,
            },
            can_reserve: true,
            sync_time: Duration::from_millis(1),
            is_rotational: Some(false),
        }
    }

    fn levels(facts: &FolderFacts) -> Vec<Level> {
        judge_folder("/srv/a", facts).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn kernels_pass_from_6_1_and_fail_before_5_10() {
        let level = |major, minor| kernel(&machine(major, minor)).level;
        assert_eq!(level(5, 9), Level::Fail);
        assert_eq!(level(5, 10), Level::Warn);
        assert_eq!(level(6, 0), Level::Warn);
        assert_eq!(level(6, 1), Level::Pass);
    }

    #[test]
    fn who_forbids_the_ring_decides_the_cure() {
        let cure = |support| uring(&support).cure;
        assert_eq!(cure(UringSupport::ForbiddenBySysctl(2)), Some(Cure::Sysctl));
        assert_eq!(cure(UringSupport::ForbiddenBySeccomp), Some(Cure::Seccomp));
        assert_eq!(cure(UringSupport::NoMemory), Some(Cure::Memlock));
        assert_eq!(cure(UringSupport::Yes(RingMode::DeferTaskrun)), None);
        assert_eq!(uring(&UringSupport::TooOld).level, Level::Warn, "epoll takes over");
    }

    #[test]
    fn an_operation_that_is_needed_is_missed_and_one_that_is_welcome_is_not() {
        let op = |name, is_needed, is_there| Operation { name, is_needed, is_there };
        let all = [op("recvmsg", true, true), op("sendmsg_zc", false, true)];
        assert_eq!(judge_operations(&all).level, Level::Pass);
        let welcome =
            judge_operations(&[op("recvmsg", true, true), op("sendmsg_zc", false, false)]);
        assert_eq!(welcome.level, Level::Pass);
        assert!(welcome.what.contains("sendmsg_zc"));
        let needed = judge_operations(&[op("recvmsg", true, false)]);
        assert_eq!(needed.level, Level::Warn);
    }

    #[test]
    fn limits_have_two_sides() {
        let level = |hard| open_files((64, hard)).level;
        assert_eq!(level(255), Level::Fail);
        assert_eq!(level(256), Level::Warn);
        assert_eq!(level(65_535), Level::Warn);
        assert_eq!(level(65_536), Level::Pass);
        let level = |bytes: u64| memory(Some(bytes)).level;
        assert_eq!(level((128 << 20) - 1), Level::Fail);
        assert_eq!(level(128 << 20), Level::Warn);
        assert_eq!(level(512 << 20), Level::Pass);
        let facts = machine(6, 18);
        assert_eq!(registered(&facts, 8 << 20).level, Level::Pass);
        assert_eq!(registered(&facts, 4 << 20).level, Level::Warn);
        let half = MachineFacts { cpu_quota: Some(0.5), ..machine(6, 18) };
        assert_eq!(cpu(&half).level, Level::Warn);
    }

    #[test]
    fn a_folder_is_judged_by_its_file_system_its_space_and_its_syncs() {
        use Level::{Pass, Warn};
        assert_eq!(levels(&disk()), [Pass, Pass, Pass]);
        assert_eq!(levels(&FolderFacts { fs: FsKind::Tmpfs, ..disk() }), [Warn, Pass, Pass]);
        assert_eq!(levels(&FolderFacts { dio_align: None, ..disk() }), [Warn, Pass, Pass]);
        assert_eq!(levels(&FolderFacts { can_reserve: false, ..disk() }), [Pass, Warn, Pass]);
        let slow = FolderFacts { sync_time: Duration::from_millis(21), ..disk() };
        assert_eq!(levels(&slow), [Pass, Pass, Warn]);
        let tight = Space { available_bytes: 19 << 30, ..disk().space };
        assert_eq!(levels(&FolderFacts { space: tight, ..disk() }), [Pass, Warn, Pass]);
        let few = Space { files_available: FILES_MIN - 1, ..disk().space };
        assert_eq!(levels(&FolderFacts { space: few, ..disk() }), [Pass, Warn, Pass, Pass]);
    }

    #[test]
    fn a_port_in_use_is_a_warning_and_a_foreign_address_fails() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(port(taken.local_addr().unwrap()).level, Level::Warn);
        assert_eq!(port("192.0.2.1:7400".parse().unwrap()).level, Level::Fail);
        let free = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        assert_eq!(port(free).level, Level::Pass);
    }

    #[test]
    fn a_missing_folder_fails() {
        let found = folder(Path::new("/nowhere/to/be/found"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, Level::Fail);
        assert!(found[0].what.contains("is missing"), "{}", found[0].what);
    }
}
