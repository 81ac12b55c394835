//! The table of a README out of one or several results: what, the best peer, ours, the ratio, the bar; below it
//! the machine, the command lines and everybody's settings.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::environment::Fact;
use crate::report::{Contender, NOISY_SHARE, settings_table};

/// `ringseed-bench table`.
#[derive(clap::Args)]
pub struct Options {
    /// Results that `--json` wrote. What several have is taken from the last of them.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Write it to this file instead of the terminal.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Only what is compared with somebody.
    #[arg(long)]
    compared: bool,
}

/// What of a result is read.
#[derive(Deserialize)]
struct Saved {
    workload: String,
    #[serde(default)]
    is_interrupted: bool,
    machine: SavedMachine,
    #[serde(default)]
    contenders: Vec<Contender>,
    #[serde(default)]
    arms: Vec<SavedArm>,
    bars: Vec<SavedBar>,
    #[serde(default)]
    failures: Vec<String>,
}

#[derive(Deserialize)]
struct SavedMachine {
    command: String,
    cpu: String,
    cores: usize,
    kernel: String,
    memory_bytes: u64,
    disk: Option<String>,
    #[serde(default)]
    stolen: Option<f64>,
    #[serde(default)]
    environment: Vec<Fact>,
}

#[derive(Deserialize)]
struct SavedArm {
    who: String,
    samples: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct SavedBar {
    what: String,
    /// Null where it could not be measured, which JSON has no number for.
    measured: Option<f64>,
    must: f64,
    stretch: Option<f64>,
    at_most: bool,
    met: bool,
    behind: Option<SavedBehind>,
}

/// [`crate::report::Behind`]; what is no number became null.
#[derive(Deserialize)]
struct SavedBehind {
    topic: String,
    who: String,
    unit: String,
    ours: Option<f64>,
    is_ratio: bool,
    peer: Option<(String, Option<f64>)>,
}

/// One line of the table.
#[derive(Default)]
struct Row {
    unit: String,
    peer: Option<(String, f64)>,
    is_ratio: bool,
    /// Of ours, by name: the quantity, what the bar judges, and how.
    ours: BTreeMap<String, (f64, f64, &'static str)>,
    bar: String,
}

/// Ours as a user runs it, and as everybody else runs.
const SYNCED: &str = "ringseed";
const UNSYNCED: &str = "ringseed, syncs off";

/// Reads the results and writes the table.
///
/// # Errors
/// What cannot be read or written.
pub fn run(options: &Options) -> Result<(), String> {
    let read = |path: &PathBuf| -> Result<Saved, String> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text)
            .map_err(|error| format!("{} is no result of ours: {error}", path.display()))
    };
    let results = options.results.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let text = table(&results, options.compared);
    match &options.markdown {
        None => print!("{text}"),
        Some(path) => write(path, &text)?,
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn table(results: &[Saved], compared: bool) -> String {
    let mut text = String::from(
        "| what | best peer | ours, syncs off as theirs | ours, synced | ratio | bar | |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (topic, row) in rows(results) {
        if compared && row.peer.is_none() {
            continue;
        }
        let _ = writeln!(text, "{}", row.text(&topic));
    }
    text.push_str("\nRatios are ours to the best peer's, syncs off on both sides where both columns have a figure.\n");
    for machine in machines(results) {
        let _ = write!(text, "\n{machine}\n");
    }
    for saved in results {
        let _ =
            write!(text, "\n- {}: `{}`", saved.workload, without_folder(&saved.machine.command));
        if let Some(turns) = turns(saved) {
            let _ = write!(text, ", {turns}");
        }
        for failure in &saved.failures {
            let _ = write!(text, "; FAILED: {failure}");
        }
        if saved.is_interrupted {
            text.push_str("; INTERRUPTED");
        }
        if let Some(stolen) = saved.machine.stolen.filter(|share| *share > NOISY_SHARE) {
            let _ =
                write!(text, "; noisy: the host took {:.0} % of the processors", stolen * 100.0);
        }
    }
    text.push('\n');
    let mut contenders: Vec<Contender> = Vec::new();
    for contender in results.iter().flat_map(|saved| &saved.contenders) {
        match contenders.iter_mut().find(|known| known.who == contender.who) {
            Some(known) => *known = contender.clone(),
            None => contenders.push(contender.clone()),
        }
    }
    text.push_str(&settings_table(&contenders));
    text
}

/// Rows in the order in which their topics came up first; what a later result says replaces what an earlier one
/// said.
fn rows(results: &[Saved]) -> Vec<(String, Row)> {
    let mut rows: Vec<(String, Row)> = Vec::new();
    let mut from: BTreeMap<String, usize> = BTreeMap::new();
    for (number, saved) in results.iter().enumerate() {
        for bar in &saved.bars {
            let (topic, who) = place(bar);
            let is_newer = from.insert(topic.clone(), number).is_some_and(|then| then < number);
            let at = rows.iter().position(|(known, _)| *known == topic).unwrap_or_else(|| {
                rows.push((topic.clone(), Row::default()));
                rows.len() - 1
            });
            let row = &mut rows[at].1;
            if is_newer {
                *row = Row::default();
            }
            row.take(bar, who);
        }
    }
    rows
}

/// What a bar is of, and which of ours. Whoever is neither of the two that have columns has a row of its own.
fn place(bar: &SavedBar) -> (String, String) {
    match &bar.behind {
        None => (bar.what.clone(), SYNCED.to_owned()),
        Some(behind) if [SYNCED, UNSYNCED].contains(&behind.who.as_str()) => {
            (behind.topic.clone(), behind.who.clone())
        }
        Some(behind) => {
            let whom = behind.who.trim_start_matches("ringseed").trim_start_matches([',', ' ']);
            (format!("{}; {whom}", behind.topic), SYNCED.to_owned())
        }
    }
}

impl Row {
    fn take(&mut self, bar: &SavedBar, who: String) {
        let sign = if bar.at_most { "<=" } else { ">=" };
        let measured = bar.measured.unwrap_or(f64::NAN);
        let is_stretched = bar.stretch.is_some_and(|stretch| match bar.at_most {
            true => measured <= stretch,
            false => measured >= stretch,
        });
        let verdict = match (bar.met, is_stretched) {
            (false, _) => "**missed**",
            (true, false) => "met",
            (true, true) => "met, stretch too",
        };
        let value = bar.behind.as_ref().map_or(measured, |behind| behind.ours.unwrap_or(f64::NAN));
        if let Some(behind) = &bar.behind {
            self.unit = behind.unit.clone();
            let peer = behind.peer.clone();
            self.peer = peer.map(|(who, value)| (who, value.unwrap_or(f64::NAN)));
            self.is_ratio = behind.is_ratio;
        }
        let stretch = bar.stretch.map_or(String::new(), |stretch| format!(" ({})", short(stretch)));
        let times = if self.is_ratio { " x" } else { "" };
        self.bar = format!("{sign} {}{times}{stretch}", short(bar.must));
        self.ours.insert(who, (value, measured, verdict));
    }

    fn text(&self, topic: &str) -> String {
        let of = |who: &str| self.ours.get(who).map_or(String::new(), |(value, ..)| short(*value));
        let peer = self.peer.as_ref();
        let peer_text =
            peer.map_or(String::new(), |(who, value)| format!("{} ({who})", short(*value)));
        // Like is compared with like: syncs off on both sides, where that was measured.
        let judged = self.ours.get(UNSYNCED).or_else(|| self.ours.get(SYNCED));
        let ratio = judged.zip(peer).map(|((value, measured, _), (_, peer))| match self.is_ratio {
            true => *measured,
            false => value / peer,
        });
        let ratio = ratio.filter(|ratio| ratio.is_finite());
        let ratio = ratio.map_or(String::new(), |ratio| format!("{} x", short(ratio)));
        let verdict = match (self.ours.get(UNSYNCED), self.ours.get(SYNCED)) {
            (Some((.., off)), Some((.., on))) if off != on => format!("{off}; synced: {on}"),
            (Some((.., one)), _) | (None, Some((.., one))) => (*one).to_owned(),
            (None, None) => String::new(),
        };
        let (off, on) = (of(UNSYNCED), of(SYNCED));
        format!("| {topic} | {peer_text} | {off} | {on} | {ratio} | {} | {verdict} |", self.bar)
    }
}

/// Three digits that count, or as many as a whole number has.
fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "not measured".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => {
            let text = format!("{value:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// Each machine once, with what of it decides.
fn machines(results: &[Saved]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for saved in results {
        let machine = &saved.machine;
        let mut text = format!(
            "{} cores of {}, {:.0} GiB, Linux {}",
            machine.cores,
            machine.cpu,
            machine.memory_bytes as f64 / (1u64 << 30) as f64,
            machine.kernel
        );
        if let Some(disk) = &machine.disk {
            let _ = write!(text, ", {disk}");
        }
        for fact in &machine.environment {
            // The same of both would make two machines of one.
            if fact.what != "source" {
                let _ = write!(text, "; {}: {}", fact.what, fact.value);
            }
        }
        text.push('.');
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

/// The fewest and the most turns that one of ours had.
fn turns(saved: &Saved) -> Option<String> {
    let ours = saved.arms.iter().filter(|arm| arm.who.starts_with("ringseed"));
    let counts: Vec<usize> = ours.map(|arm| arm.samples.len()).collect();
    let (least, most) = (counts.iter().min()?, counts.iter().max()?);
    Some(match least == most {
        true if *most == 1 => "a single turn, no median".to_owned(),
        true => format!("medians of {most} turns"),
        false => format!("medians of {least} to {most} turns"),
    })
}

/// A command line without the folders of whoever ran it.
fn without_folder(command: &str) -> String {
    let (program, rest) = command.split_once(' ').unwrap_or((command, ""));
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let mut words = Vec::new();
    let mut rest = rest.split(' ');
    while let Some(word) = rest.next() {
        match word {
            "--dir" | "--json" | "--ringseed" | "--drivers" => drop(rest.next()),
            word if word.starts_with("--dir=") || word.starts_with("--json=") => {}
            word => words.push(word),
        }
    }
    format!("{name} {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Bar, Report};

    fn saved(bars: Vec<Bar>) -> Saved {
        let mut report = Report::new("test");
        report.bars = bars;
        report.contend(Contender {
            who: "rqbit".into(),
            version: "9".into(),
            durability: "as it likes".into(),
            settings: "defaults".into(),
        });
        serde_json::from_str(&report.to_json()).unwrap()
    }

    /// What a result says is what stands in the table: peers with syncs off, ours with them on beside it.
    #[test]
    fn ours_with_syncs_and_without_share_a_row() {
        let of = |who: &str, rate: f64| {
            let bar = Bar::at_least("x", rate / 250.0, 4.0, Some(6.0));
            bar.with("a file: MB/s", who, "MB/s", rate, Some((250.0, "rqbit")))
        };
        let result = saved(vec![of(SYNCED, 900.0), of(UNSYNCED, 1100.0)]);
        let text = table(&[result], false);
        let row = "| a file: MB/s | 250 (rqbit) | 1100 | 900 | 4.4 x | >= 4 x (6) | met; synced: **missed** |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| rqbit | 9 | as it likes | defaults |"), "{text}");
    }

    #[test]
    fn a_later_result_replaces_an_earlier_one() {
        let of = |value: f64| {
            let bar = Bar::at_most("x", value, 0.95, Some(0.75));
            vec![bar.with("a file: CPU", SYNCED, "s", value, None)]
        };
        let text = table(&[saved(of(2.0)), saved(of(0.5))], false);
        assert!(
            text.contains("| a file: CPU |  |  | 0.5 |  | <= 0.95 (0.75) | met, stretch too |")
        );
        assert!(!text.contains("missed"), "{text}");
        assert!(!table(&[saved(of(0.5))], true).contains("a file: CPU"));
    }

    /// A figure that is missing is neither met nor nought.
    #[test]
    fn what_was_not_measured_says_so() {
        let bar = Bar::at_most("shards", f64::NAN, 1.3, None);
        let text = table(
            &[saved(vec![bar.with("shards", SYNCED, "", f64::NAN, Some((f64::NAN, "alone")))])],
            false,
        );
        assert!(text.contains("**missed**"), "{text}");
        assert_eq!(short(f64::NAN), "not measured");
        assert_eq!(
            [short(1234.5), short(12.0), short(0.5), short(3.456)],
            ["1234", "12", "0.5", "3.46"]
        );
    }

    #[test]
    fn a_command_line_keeps_nobodys_folders() {
        let command = "/home/me/target/release/ringseed-bench seedleech --dir /disk/x --turns 5 --json a.json";
        assert_eq!(without_folder(command), "ringseed-bench seedleech --turns 5");
    }
}
