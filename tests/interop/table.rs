//! What every cell of the matrix came to, printed at the end and written as Markdown.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use libtest_mimic::{Failed, Trial};
use ringseed_tests::skip::{Need, trial};

/// How a cell ended.
#[derive(Clone, Debug)]
enum Outcome {
    Passed {
        seconds: f64,
    },
    Failed,
    Skipped,
    /// No such cell can exist, and why.
    Impossible(&'static str),
}

/// Position in the table: the order in which rows were made, then columns.
type Place = (usize, usize);

/// The matrix under construction.
#[derive(Debug)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<String>,
    outcomes: Outcomes,
}

/// Shared with the cells, which end on threads of their own.
#[derive(Clone, Debug, Default)]
struct Outcomes(Arc<Mutex<BTreeMap<Place, Outcome>>>);

impl Outcomes {
    fn record(&self, place: Place, outcome: Outcome) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place, outcome);
    }
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[&'static str]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new(), outcomes: Outcomes::default() }
    }

    /// Begins a row.
    pub fn row(&mut self, title: String) {
        self.rows.push(title);
    }

    /// A cell of the current row that can be no test, with the reason.
    pub fn impossible(&mut self, column: usize, reason: &'static str) {
        self.outcomes.record((self.rows.len() - 1, column), Outcome::Impossible(reason));
    }

    /// A cell of the current row.
    pub fn cell(
        &mut self,
        column: usize,
        name: &str,
        needs: &[Need],
        test: impl FnOnce() -> Result<(), Failed> + Send + 'static,
    ) -> Trial {
        let place = (self.rows.len() - 1, column);
        let outcomes = self.outcomes.clone();
        outcomes.record(place, Outcome::Skipped);
        trial(name, needs, move || {
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(test));
            let is_ok = matches!(result, Ok(Ok(())));
            let seconds = start.elapsed().as_secs_f64();
            outcomes
                .record(place, if is_ok { Outcome::Passed { seconds } } else { Outcome::Failed });
            result.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// The table with its footnotes, as Markdown; with what each cell took, or as the README has it.
    pub fn markdown(&self, with_times: bool) -> String {
        let outcomes = self.outcomes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes: Vec<&str> = Vec::new();
        let mut text = format!("| peer | {} |\n", self.columns.join(" | "));
        text.push_str(&format!("|---|{}\n", "---|".repeat(self.columns.len())));
        for (row, title) in self.rows.iter().enumerate() {
            let cells = (0..self.columns.len()).map(|column| match outcomes.get(&(row, column)) {
                Some(Outcome::Passed { seconds }) if with_times => format!("ok {seconds:.1} s"),
                Some(Outcome::Passed { .. }) => "yes".to_owned(),
                Some(Outcome::Failed) => "FAILED".to_owned(),
                Some(Outcome::Skipped) => "skipped".to_owned(),
                Some(Outcome::Impossible(reason)) => {
                    let known = notes.iter().position(|note| note == reason);
                    let number = known.unwrap_or_else(|| {
                        notes.push(reason);
                        notes.len() - 1
                    });
                    format!("– ({})", number + 1)
                }
                None => String::new(),
            });
            text.push_str(&format!("| {title} | {} |\n", cells.collect::<Vec<_>>().join(" | ")));
        }
        for (number, note) in notes.iter().enumerate() {
            text.push_str(&format!("\n({}) {note}", number + 1));
        }
        text.push('\n');
        text
    }
}
