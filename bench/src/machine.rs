//! What a figure must say about where it was measured.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::environment::{self, Fact};

/// The machine, the kernel and how the benchmark was called.
#[derive(Serialize)]
pub struct Machine {
    pub command: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Load average over the last minute before the start: others on the cores show here.
    pub load_before: String,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// What the CPU can do that matters here.
    pub cpu_flags: Vec<String>,
    /// Governor, mitigations, limits and the like.
    pub environment: Vec<Fact>,
    /// Whether this is a virtual machine.
    pub is_virtual: bool,
    /// Device, file system and mount options of the scratch folder, where a workload has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Share of the processors that the host took away meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stolen: Option<f64>,
    #[serde(skip)]
    ticks: Vec<f64>,
}

impl Machine {
    pub fn look() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let family: Vec<&str> = ["cpu family", "model\t", "stepping"]
            .iter()
            .filter_map(|key| cpuinfo.lines().find_map(|line| line.strip_prefix(key)))
            .map(|value| value.trim_start_matches([' ', '\t', ':']))
            .collect();
        let name = cpu.map_or("unknown", |value| value.trim_start_matches([' ', '\t', ':']));
        Machine {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            cpu: format!("{name} (family, model, stepping {})", family.join(", ")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            memory_bytes: read("/proc/meminfo")
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))
                .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024,
            cpu_flags: cpuinfo
                .lines()
                .find_map(|line| line.strip_prefix("flags"))
                .unwrap_or_default()
                .split_whitespace()
                .filter(|flag| {
                    ["sha_ni", "avx2", "avx512f", "avx512bw", "hypervisor"].contains(flag)
                })
                .map(str::to_owned)
                .collect(),
            environment: environment::look(None),
            is_virtual: cpuinfo.contains(" hypervisor"),
            disk: None,
            stolen: None,
            ticks: ticks(),
        }
    }

    /// Notes what a folder, or the nearest above it that exists, is on.
    pub fn look_at_disk(&mut self, dir: &std::path::Path) {
        self.environment = environment::look(Some(dir));
        let dir = std::path::absolute(dir).unwrap_or_default();
        let Some(dir) = dir.ancestors().find_map(|dir| dir.canonicalize().ok()) else { return };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let holds = |line: &&str| line.split(' ').nth(1).is_some_and(|at| dir.starts_with(at));
        let depth = |line: &&str| line.split(' ').nth(1).map_or(0, str::len);
        let line = mounts.lines().filter(holds).max_by_key(depth);
        self.disk = line.map(|line| {
            let mut fields = line.split(' ');
            let (device, _) = (fields.next().unwrap_or_default(), fields.next());
            format!("{device} {}", fields.take(2).collect::<Vec<_>>().join(" "))
        });
    }

    /// Notes what the host took since the first look.
    pub fn look_again(&mut self) {
        let now = ticks();
        let since: Vec<f64> = now.iter().zip(&self.ticks).map(|(now, then)| now - then).collect();
        let all: f64 = since.iter().take(8).sum();
        self.stolen = since.get(7).map(|stolen| stolen / all).filter(|share| share.is_finite());
    }
}

/// Clock ticks of all cores since the machine started, by what they did (`proc_stat(5)`).
fn ticks() -> Vec<f64> {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect()
}

/// Seconds that all cores together were not idle since the machine started (`proc_stat(5)`).
pub fn busy_seconds() -> f64 {
    let fields = ticks();
    // user, nice, system, irq, softirq: neither idle, iowait, what the host took, nor guests again.
    [0, 1, 2, 5, 6].iter().filter_map(|&at| fields.get(at)).sum::<f64>() / TICKS_PER_SECOND
}

/// What the machine does by itself: the control that its busy seconds are judged by.
#[derive(Clone, Copy)]
pub struct Others {
    /// Cores that others keep busy while this process sleeps.
    cores: f64,
}

impl Others {
    /// With more than this on the cores, what others would have done in a time says nothing of what
    /// they did: they had to share.
    const CORES_MAX: f64 = 0.25;

    /// Looks for two seconds.
    pub fn look() -> Others {
        const CONTROL: Duration = Duration::from_secs(2);
        let before = busy_seconds();
        std::thread::sleep(CONTROL);
        Others { cores: (busy_seconds() - before) / CONTROL.as_secs_f64() }
    }

    /// What is left of the machine's busy seconds for us after `wall` seconds; not a number where
    /// nobody can tell.
    pub fn less(self, busy: f64, wall: f64) -> f64 {
        if self.cores > Others::CORES_MAX { f64::NAN } else { busy - self.cores * wall }
    }

    /// What a reader must know to judge the machine's seconds.
    pub fn note(self) -> String {
        let cores = self.cores;
        if cores > Others::CORES_MAX {
            format!("others kept {cores:.2} cores busy: the machine's seconds are left out")
        } else {
            format!("others kept {cores:.2} cores busy: taken off the machine's seconds")
        }
    }
}

/// `USER_HZ`, which is 100 on every architecture that we build for.
pub const TICKS_PER_SECOND: f64 = 100.0;

/// Binds the calling thread to one core, so that the scheduler's moves are not measured. Where that
/// is not allowed the thread stays free.
pub fn pin_to_core(core: usize) {
    pin_to_cores(&[core]);
}

/// A core for the program that is measured and the others for those that measure it; none of its own where there
/// is one core.
pub fn core_apart() -> (Option<usize>, Vec<usize>) {
    let cores = cores_allowed();
    match cores.split_first() {
        Some((&first, rest)) if !rest.is_empty() => (Some(first), rest.to_vec()),
        _ => (None, cores),
    }
}

/// Like [`pin_to_core`], to any of several.
pub fn pin_to_cores(cores: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// The cores that the calling thread may run on.
pub fn cores_allowed() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the machine does anyway is no cost of who is measured; where it does much, nobody can tell.
    #[test]
    fn what_others_do_is_taken_off_or_nothing_is_said() {
        let quiet = Others { cores: 0.1 };
        assert!((quiet.less(10.0, 20.0) - 8.0).abs() < 1e-9);
        assert!(quiet.note().contains("taken off"));
        let busy = Others { cores: 0.3 };
        assert!(busy.less(10.0, 20.0).is_nan());
        assert!(busy.note().contains("left out"));
    }

    #[test]
    fn the_machine_is_as_busy_as_we_make_it() {
        let before = busy_seconds();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            std::hint::spin_loop();
        }
        let busy = busy_seconds() - before;
        assert!(busy > 0.05, "{busy} s");
        assert!(Others::look().cores >= 0.0);
    }
}
