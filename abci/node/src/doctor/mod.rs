//! `ringseed doctor`: whether a datatrust can run here and how well, with the cure for what is wrong,
//! and which kernel hashes how fast.

mod checks;
mod cure;

use ringseed_sys::hash::{self, Wish};
use ringseed_sys::probe::{self, UringSupport};
use serde_json::{Value, json};

use crate::cli::Doctor;
use crate::client;
use crate::error::{Code, Error, Result};
use crate::progress::Reporter;
use checks::{Finding, Level};
pub use cure::Form;

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

/// `ringseed doctor`.
///
/// # Errors
/// [`Code::Kernel`] when something is found with which nothing can run here, after all was told.
pub fn run(args: &Doctor, reporter: Reporter) -> Result<()> {
    let facts = probe::machine();
    let findings = checks::all(&facts, &args.folders, &args.listen);
    let form = args.cure.unwrap_or_default();
    let mut told = look(&facts);
    let lines = findings.iter().map(|finding| finding_json(finding, form));
    told["checks"] = lines.collect();
    for level in [Level::Pass, Level::Warn, Level::Fail] {
        let count = findings.iter().filter(|finding| finding.level == level).count();
        told[level.name().to_lowercase()] = json!(count);
    }
    if args.cure.is_some() {
        told["cure"] = json!(cure::whole(form));
    }
    client::print(&told, reporter, text);
    match told["fail"].as_u64() {
        Some(0) => Ok(()),
        _ => Err(Error::new(Code::Kernel, "ringseed cannot run here like this")
            .why("the lines that begin with FAIL say what is wrong")
            .cure("ringseed doctor --cure systemd, docker, k8s or limits")),
    }
}

fn finding_json(finding: &Finding, form: Form) -> Value {
    json!({
        "code": finding.code, "level": finding.level.name(), "what": finding.what,
        "cure": finding.cure.map(|cure| cure.line(form)),
    })
}

/// The machine and its hash kernels.
fn look(facts: &probe::MachineFacts) -> Value {
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
        "memory_max_bytes": facts.memory_max_bytes,
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
fn text(told: &Value) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or("unknown").to_owned();
    let mut out = format!("ringseed {} on {}\n", text(told, "version"), text(told, "cpu"));
    for check in told["checks"].as_array().into_iter().flatten() {
        let line = [text(check, "level"), text(check, "code"), text(check, "what")].join(" ");
        out.push_str(&format!("{line}\n"));
        if let Some(cure) = check["cure"].as_str() {
            out.push_str(&format!("            cure: {cure}\n"));
        }
    }
    let can = if told["fail"] == json!(0) { "can start" } else { "cannot start" };
    out.push_str(&format!(
        "{} pass, {} warn, {} fail: {can}\n",
        told["pass"], told["warn"], told["fail"]
    ));
    if let Some(cure) = told["cure"].as_str() {
        out.push_str(&format!("\n{cure}"));
    }
    format!("{out}\n{}", hash::table())
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
        let told = look(&probe::machine());
        assert_eq!(told["hash_kernels"].as_array().unwrap().len(), 32);
        let text = text(&told);
        for needed in ["sha1", "sha256", "GB/s"] {
            assert!(text.contains(needed), "{needed} in {text}");
        }
    }

    #[test]
    fn a_warning_is_told_with_its_cure_in_the_form_that_was_asked_for() {
        let finding = Finding {
            code: "RS-D10",
            level: Level::Warn,
            what: "memlock 8 MiB".into(),
            cure: Some(cure::Cure::Memlock),
        };
        let mut told = look(&probe::machine());
        told["checks"] = json!([finding_json(&finding, Form::Docker)]);
        (told["pass"], told["warn"], told["fail"]) = (json!(0), json!(1), json!(0));
        let text = text(&told);
        assert!(
            text.contains("WARN RS-D10 memlock 8 MiB\n            cure: --ulimit memlock=-1:-1")
        );
        assert!(text.contains("0 pass, 1 warn, 0 fail: can start"), "{text}");
    }
}
