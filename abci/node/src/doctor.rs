//! `ringseed doctor`: what this machine offers, and which kernel hashes how fast.

use ringseed_sys::hash::{self, Wish};
use ringseed_sys::probe::{self, UringSupport};
use serde_json::{Value, json};

use crate::error::{Code, Error, Result};
use crate::units;

/// A command that hashes less than this is over before measuring the kernels has paid.
const CALIBRATE_LEN_MIN: u64 = 256 << 20;

/// Refuses to start when the environment wishes for a hash kernel that is not to be had.
///
/// # Errors
/// [`Code::ConfigValue`] with the variable and its value.
pub fn check_wish() -> Result<()> {
    match Wish::from_env() {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::new(Code::ConfigValue, error.to_string())
            .why("RINGSEED_HASH and RINGSEED_HASH_AVX512 choose the hash kernels")
            .cure("unset it, or look at ringseed doctor for what there is")),
    }
}

/// Measures the hash kernels, unless somebody has since the machine started: worth it only for a
/// command that hashes so many bytes.
pub fn calibrate_for(len_bytes: u64) {
    if len_bytes >= CALIBRATE_LEN_MIN {
        hash::calibrate(hash::cache_dir_default().as_deref());
    }
}

/// Asks the machine.
pub fn look() -> Value {
    let facts = probe::machine();
    let (uring, cure) = probe::explain(&facts.uring);
    let source = hash::calibrate(hash::cache_dir_default().as_deref());
    let kernels: Vec<Value> = hash::table()
        .rows
        .iter()
        .map(|row| {
            let kernels = row.kernels.iter();
            let kernels: Vec<Value> = kernels
                .map(|(rung, messages)| json!({"kernel": rung.name(), "messages": messages}))
                .collect();
            json!({
                "algorithm": row.algo.name(), "messages": row.messages, "kernels": kernels,
                "bytes_per_second": row.rate.map(|rate| rate as u64),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": facts.kernel.release,
        "cpu": cpu_name(),
        "cpus": facts.cpus,
        "cpu_quota": facts.cpu_quota,
        "io_uring": matches!(facts.uring, UringSupport::Yes(_)),
        "io_uring_why": uring,
        "io_uring_cure": cure,
        "memlock_bytes": facts.memlock_bytes,
        "open_files_soft": facts.open_files.0,
        "open_files_hard": facts.open_files.1,
        "hash_source": source.to_string(),
        "hash_kernels": kernels,
    })
}

/// The answer for people.
pub fn text(found: &Value) -> String {
    let text = |key: &str| found[key].as_str().unwrap_or("unknown").to_owned();
    let number = |key: &str| found[key].as_u64().map_or("unlimited".to_owned(), |n| n.to_string());
    let memlock = found["memlock_bytes"].as_u64().map_or("unlimited".to_owned(), units::bytes);
    let quota = found["cpu_quota"].as_f64().map_or(String::new(), |n| format!(", quota {n}"));
    let mut lines = vec![
        format!("ringseed   {}", text("version")),
        format!("kernel     {}", text("kernel")),
        format!("cpu        {} x {}{quota}", number("cpus"), text("cpu")),
        format!("io_uring   {}", text("io_uring_why")),
    ];
    if found["io_uring"] != json!(true) {
        lines.push(format!("           cure: {}", text("io_uring_cure")));
    }
    lines.push(format!("memlock    {memlock}"));
    lines.push(format!(
        "files      {} open at a time, up to {}",
        number("open_files_soft"),
        number("open_files_hard")
    ));
    format!("{}\n{}", lines.join("\n"), hash::table())
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line =
            info.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| "unknown".to_owned());
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_a_row_for_every_count_of_messages() {
        let found = look();
        assert_eq!(found["hash_kernels"].as_array().unwrap().len(), 32);
        let text = text(&found);
        for needed in ["kernel ", "io_uring ", "sha1", "sha256", "GB/s"] {
            assert!(text.contains(needed), "{needed} in {text}");
        }
    }
}
