//! What every cell of the matrix came to, printed at the end and written as Markdown.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use libtest_mimic::{Failed, Trial};
use ringseed_tests::skip::{Need, trial};

/// Cells of a whole matrix that may be run a second time. Other people's programs lose a peer or a request now
/// and then when twelve cells share two cores, and dial again after minutes; a fault of ours comes back.
const SECOND_RUNS_MAX: usize = 3;

/// How a cell ended.
#[derive(Clone, Debug)]
enum Outcome {
    Passed {
        seconds: f64,
        is_second: bool,
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

/// Held for reading by first runs, for writing by a second run, which is alone.
static RUNNING: RwLock<()> = RwLock::new(());
static SECOND_RUNS: AtomicUsize = AtomicUsize::new(0);

/// Runs a cell; if it fails, once more with nothing beside it. Whether that was needed.
fn run_twice(name: &str, test: impl Fn() -> Result<(), Failed>) -> Result<bool, String> {
    let run = || match catch_unwind(AssertUnwindSafe(&test)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failed)) => Err(failed.message().unwrap_or("failed").to_owned()),
        Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    };
    let first = {
        let _beside_others = RUNNING.read().unwrap_or_else(PoisonError::into_inner);
        run()
    };
    let Err(why) = first else { return Ok(false) };
    if SECOND_RUNS.fetch_add(1, Ordering::Relaxed) >= SECOND_RUNS_MAX {
        return Err(why);
    }
    eprintln!("SECOND RUN of {name}, after: {why}");
    let _alone = RUNNING.write().unwrap_or_else(PoisonError::into_inner);
    run().map(|()| true)
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
        test: impl Fn() -> Result<(), Failed> + Send + 'static,
    ) -> Trial {
        let place = (self.rows.len() - 1, column);
        let outcomes = self.outcomes.clone();
        outcomes.record(place, Outcome::Skipped);
        let cell = name.to_owned();
        trial(name, needs, move || {
            let start = Instant::now();
            let result = run_twice(&cell, test);
            let seconds = start.elapsed().as_secs_f64();
            outcomes.record(
                place,
                match &result {
                    &Ok(is_second) => Outcome::Passed { seconds, is_second },
                    Err(_) => Outcome::Failed,
                },
            );
            result.map(|_| ()).map_err(Failed::from)
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
                Some(Outcome::Passed { seconds, is_second }) if with_times => {
                    let run = if *is_second { ", second run" } else { "" };
                    format!("ok {seconds:.1} s{run}")
                }
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
