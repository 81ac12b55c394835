//! Medians, spread, bars, and their two forms: a table for people, JSON for programs.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::swarm::arm::{self, Arm};
use crate::swarm::child;
use crate::swarm::table::Table;

/// A run during which the host took more of the processors than this says little.
pub const NOISY_SHARE: f64 = 0.05;

/// One measured quantity: the median of several turns.
#[derive(Clone, Serialize)]
pub struct Figure {
    /// What was measured, for example `sha1, 16 x 1 MiB, DRAM, 1 core`.
    pub shape: String,
    /// Who was measured.
    pub who: String,
    /// Median over the turns, in bytes per second.
    pub bytes_per_second: f64,
    /// Highest less lowest turn, as a share of the median.
    pub spread: f64,
    /// Processor seconds of the process per GiB, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds_per_gib: Option<f64>,
    /// Seconds that the whole machine was busy meanwhile, per GiB, less what it was without us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_seconds_per_gib: Option<f64>,
}

impl Figure {
    /// # Panics
    /// When there are no turns.
    pub fn new(shape: &str, who: &str, turns: &[f64]) -> Figure {
        let mut sorted = turns.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted[sorted.len() / 2] + sorted[(sorted.len() - 1) / 2]) / 2.0;
        let spread = (sorted[sorted.len() - 1] - sorted[0]) / median;
        Figure {
            shape: shape.to_owned(),
            who: who.to_owned(),
            bytes_per_second: median,
            spread,
            cpu_seconds_per_gib: None,
            machine_seconds_per_gib: None,
        }
    }

    /// Adds processor seconds per GiB: of the process, and of the whole machine.
    pub fn with_cpu(self, process: f64, machine: f64) -> Figure {
        let some = |value: f64| value.is_finite().then_some(value);
        Figure {
            cpu_seconds_per_gib: some(process),
            machine_seconds_per_gib: some(machine),
            ..self
        }
    }
}

/// A ratio, or a quantity, that must reach a bound.
#[derive(Clone, Serialize)]
pub struct Bar {
    pub what: String,
    pub measured: f64,
    pub must: f64,
    pub stretch: Option<f64>,
    /// Whether less is better.
    pub at_most: bool,
    pub met: bool,
    /// What stands behind it, for a table of several results.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
}

/// The quantities that a bar compares.
#[derive(Clone, Debug, Serialize)]
pub struct Behind {
    /// What was measured, without who: bars that share it stand in one row.
    pub topic: String,
    /// Which of ours.
    pub who: String,
    pub unit: String,
    pub ours: f64,
    /// Whether the bound is one of the quotient of both.
    pub is_ratio: bool,
    /// The best of the others, and the same of it.
    pub peer: Option<(String, f64)>,
}

impl Bar {
    pub fn at_least(what: &str, measured: f64, must: f64, stretch: Option<f64>) -> Bar {
        let met = measured >= must;
        Bar { what: what.to_owned(), measured, must, stretch, at_most: false, met, behind: None }
    }

    pub fn at_most(what: &str, measured: f64, must: f64, stretch: Option<f64>) -> Bar {
        let met = measured <= must;
        Bar { what: what.to_owned(), measured, must, stretch, at_most: true, met, behind: None }
    }

    /// Adds what it compares: `ours`, in `unit`, of one of ours, and the same of the best of others.
    pub fn with(
        self,
        topic: &str,
        who: &str,
        unit: &str,
        ours: f64,
        peer: Option<(f64, &str)>,
    ) -> Bar {
        let peer = peer.map(|(value, name)| (name.to_owned(), value));
        let behind = Behind {
            topic: topic.to_owned(),
            who: who.to_owned(),
            unit: unit.to_owned(),
            ours,
            is_ratio: peer.is_some() && self.measured != ours,
            peer,
        };
        Bar { behind: Some(behind), ..self }
    }

    fn verdict(&self) -> &'static str {
        let stretched = self.stretch.is_some_and(|stretch| match self.at_most {
            true => self.measured <= stretch,
            false => self.measured >= stretch,
        });
        match (self.met, stretched) {
            (false, _) => "MISSED",
            (true, false) => "met",
            (true, true) => "met, stretch too",
        }
    }
}

/// Somebody who took part, and how it was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contender {
    pub who: String,
    pub version: String,
    /// What it makes sure of before it says that it is complete.
    pub durability: String,
    pub settings: String,
}

/// The form of the JSON; it changes when a reader would have to.
const SCHEMA: &str = "ringseed-bench/1";

/// The outcome of a workload.
#[derive(Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub workload: &'static str,
    /// Somebody ended it before its end: what is here was measured before.
    pub is_interrupted: bool,
    pub machine: Machine,
    /// What a reader must know to judge the figures.
    pub notes: Vec<String>,
    /// Who took part, in workloads that compare programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contenders: Vec<Contender>,
    pub figures: Vec<Figure>,
    /// Transfers, by what was moved and by whom.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<Arm>,
    /// What else was measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<Table>,
    pub bars: Vec<Bar>,
    /// What went wrong: a result that was not right, a program that broke down.
    pub failures: Vec<String>,
}

impl Report {
    pub fn new(workload: &'static str) -> Report {
        Report {
            schema: SCHEMA,
            workload,
            is_interrupted: false,
            machine: Machine::look(),
            notes: Vec::new(),
            contenders: Vec::new(),
            figures: Vec::new(),
            arms: Vec::new(),
            tables: Vec::new(),
            bars: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Notes that something went wrong. Its figures are not to be believed.
    pub fn fail(&mut self, what: String) {
        if !self.failures.contains(&what) {
            self.failures.push(what);
        }
    }

    /// Takes down what was found, and shows it at once to whoever waits for the end.
    pub fn note(&mut self, text: String) {
        eprintln!("{text}");
        self.notes.push(text);
    }

    /// Notes that somebody ended it early, if somebody did.
    pub fn note_interruption(&mut self) {
        if child::is_interrupted() {
            self.is_interrupted = true;
            self.fail(child::INTERRUPTED.to_owned());
        }
    }

    /// Notes who takes part.
    pub fn contend(&mut self, contender: Contender) {
        if !self.contenders.iter().any(|known| known.who == contender.who) {
            self.contenders.push(contender);
        }
    }

    /// Takes over what another workload found.
    pub fn absorb(&mut self, other: Report) {
        let of = |text: String| format!("{}: {text}", other.workload);
        self.notes.extend(
            other.notes.into_iter().filter(|note| !self.notes.contains(note)).collect::<Vec<_>>(),
        );
        other.contenders.into_iter().for_each(|contender| self.contend(contender));
        self.is_interrupted |= other.is_interrupted;
        self.figures.extend(other.figures);
        self.arms.extend(other.arms);
        self.tables.extend(other.tables);
        self.failures.extend(other.failures.into_iter().map(of));
        let named = other.bars.into_iter().map(|bar| Bar { what: of(bar.what), ..bar });
        self.bars.extend(named);
        if self.machine.disk.is_none() {
            self.machine.disk = other.machine.disk;
            self.machine.environment = other.machine.environment;
        }
    }

    /// Whether every bar is met and nothing went wrong.
    pub fn all_met(&self) -> bool {
        self.failures.is_empty() && self.bars.iter().all(|bar| bar.met)
    }

    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data has a JSON form");
        text.push('\n');
        text
    }

    /// A table of Markdown form: one block per shape, then the bars.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        line(&format!("workload {}: `{}`", self.workload, machine.command));
        line(&format!(
            "{} x {}, Linux {}, load {} before",
            machine.cores, machine.cpu, machine.kernel, machine.load_before
        ));
        if let Some(disk) = &machine.disk {
            line(&format!("scratch on {disk}"));
        }
        if let Some(stolen) = machine.stolen.filter(|share| *share > NOISY_SHARE) {
            line(&format!("NOISY: the host took {:.0} % of the processors", stolen * 100.0));
        }
        if self.is_interrupted {
            line("INTERRUPTED: what follows was measured before");
        }
        for note in &self.notes {
            line(note);
        }
        for failure in &self.failures {
            line(&format!("FAILED: {failure}"));
        }
        line("");
        text.push_str(&arm::table(&self.arms));
        self.tables.iter().for_each(|table| text.push_str(&table.to_text()));
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        let has_cpu = self.figures.iter().any(|figure| figure.cpu_seconds_per_gib.is_some());
        if self.figures.is_empty() {
            line("");
        } else if has_cpu {
            line("| what | who | GB/s | spread | CPU s/GiB | machine s/GiB |");
            line("|---|---|---|---|---|---|");
        } else {
            line("| what | who | GB/s | spread |");
            line("|---|---|---|---|");
        }
        let mut shape = "";
        for figure in &self.figures {
            let shown = if figure.shape == shape { "" } else { &figure.shape };
            shape = &figure.shape;
            let mut row = String::new();
            let _ = write!(row, "| {shown} | {} ", figure.who);
            let rate = figure.bytes_per_second / 1e9;
            let _ = write!(row, "| {rate:.2} | {:.0} % |", figure.spread * 100.0);
            if has_cpu {
                for value in [figure.cpu_seconds_per_gib, figure.machine_seconds_per_gib] {
                    let text = value.map_or(String::new(), |value| format!("{value:.3}"));
                    let _ = write!(row, " {text} |");
                }
            }
            line(&row);
        }
        if !self.bars.is_empty() {
            line("");
            line("| bar | measured | must | stretch | |");
            line("|---|---|---|---|---|");
        }
        for bar in &self.bars {
            let sign = if bar.at_most { "<=" } else { ">=" };
            let stretch = bar.stretch.map_or(String::new(), |stretch| format!("{sign} {stretch}"));
            let (what, measured, must) = (&bar.what, bar.measured, bar.must);
            line(&format!(
                "| {what} | {measured:.3} | {sign} {must} | {stretch} | {} |",
                bar.verdict()
            ));
        }
        text.push_str(&settings_table(&self.contenders));
        text.push_str("\nenvironment\n\n");
        for fact in &self.machine.environment {
            let _ = writeln!(text, "- {}: {}", fact.what, fact.value);
        }
        text
    }
}

/// Versions and settings of all that took part, in Markdown; nothing without any.
pub fn settings_table(contenders: &[Contender]) -> String {
    let mut text = String::new();
    if contenders.is_empty() {
        return text;
    }
    text.push_str("\nsettings\n\n| who | version | durability | settings other than defaults |\n|---|---|---|---|\n");
    for Contender { who, version, durability, settings } in contenders {
        let _ = writeln!(text, "| {who} | {version} | {durability} | {settings} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_with_its_spread() {
        let figure = Figure::new("shape", "who", &[3.0, 1.0, 2.0]);
        assert_eq!(figure.bytes_per_second, 2.0);
        assert_eq!(figure.spread, 1.0);
    }

    #[test]
    fn one_missed_bar_fails_the_report() {
        let mut report = Report::new("test");
        report.bars.push(Bar::at_least("fast", 2.0, 1.5, Some(3.0)));
        report.bars.push(Bar::at_most("small", 0.5, 1.0, Some(0.6)));
        assert!(report.all_met());
        assert_eq!(report.bars[0].verdict(), "met");
        assert_eq!(report.bars[1].verdict(), "met, stretch too");
        report.bars.push(Bar::at_most("small", 2.0, 1.0, None));
        assert!(!report.all_met());
        assert!(report.to_text().contains("MISSED") && report.to_json().contains("\"met\": false"));
    }
}
