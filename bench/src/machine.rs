//! What a figure must say about where it was measured.

use std::fs;

use serde::Serialize;

/// The machine, the kernel and how the benchmark was called.
#[derive(Serialize)]
pub struct Machine {
    pub command: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Load average over the last minute before the start: others on the cores show here.
    pub load_before: String,
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
        }
    }
}

/// Binds the calling thread to one core, so that the scheduler's moves are not measured. Where that
/// is not allowed the thread stays free.
pub fn pin_to_core(core: usize) {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &cores);
}

/// The cores that the calling thread may run on.
pub fn cores_allowed() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    if cores.is_empty() { vec![0] } else { cores }
}
