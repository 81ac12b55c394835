//! What a command says while it works, always on stderr: stdout is for data.
//!
//! On a terminal a bar with rate and time left; elsewhere a line per change; with `--json` one JSON
//! object per line. All three come from the same calls.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::units;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A bar that redraws itself.
    Bar,
    /// A line per change.
    Lines,
    /// One JSON object per line.
    Json,
}

/// Between two lines of one task. Short enough to see life, long enough to keep a log readable.
const LINE_PERIOD: Duration = Duration::from_secs(2);
/// Between two JSON events of one task.
const EVENT_PERIOD: Duration = Duration::from_millis(500);

/// Writes a line to stderr, in one call. A JSON object writes itself in hundreds of pieces, and stderr keeps none of
/// them back: with a reader at the other end that was half of the time that a small download takes.
pub fn tell_line(line: impl Display) {
    write_line(&mut std::io::stderr().lock(), line);
}

fn write_line(out: &mut impl Write, line: impl Display) {
    // Nobody may be listening any more, which is no reason to stop.
    let _ = out.write_all(format!("{line}\n").as_bytes());
}

/// Where a command reports.
#[derive(Clone, Copy, Debug)]
pub struct Reporter {
    mode: Mode,
}

impl Reporter {
    /// Chooses the mode: JSON if asked for, a bar if stderr is a terminal, else lines.
    pub fn new(json: bool) -> Reporter {
        let mode = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Bar,
            (false, false) => Mode::Lines,
        };
        Reporter { mode }
    }

    /// Whether `--json` was asked for.
    pub fn is_json(&self) -> bool {
        self.mode == Mode::Json
    }

    /// Says something once: `text` to people, `{"type":"event","event":name,…fields}` to programs.
    pub fn say(&self, name: &str, text: &str, fields: Value) {
        if self.is_json() {
            self.emit("event", name, fields);
        } else {
            tell_line(text);
        }
    }

    /// A hint for people only.
    pub fn hint(&self, text: &str) {
        if !self.is_json() {
            tell_line(text);
        }
    }

    fn emit(&self, kind: &str, name: &str, fields: Value) {
        let mut object = json!({"schema": "ringseed.v1", "type": kind, "event": name});
        if let (Some(into), Value::Object(from)) = (object.as_object_mut(), fields) {
            into.extend(from);
        }
        tell_line(&object);
    }

    /// Starts a task of `total` bytes (0: not yet known). `label` is what people see before the bar.
    pub fn bytes(&self, name: &'static str, label: impl Into<String>, total: u64) -> Task {
        self.task(name, label.into(), total, true)
    }

    /// Starts a task of `total` things.
    pub fn things(&self, name: &'static str, label: impl Into<String>, total: u64) -> Task {
        self.task(name, label.into(), total, false)
    }

    fn task(&self, name: &'static str, label: String, total: u64, in_bytes: bool) -> Task {
        let bar = (self.mode == Mode::Bar).then(|| {
            let template = if in_bytes {
                "{prefix} {bar:24} {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}  {msg}"
            } else {
                "{prefix} {bar:24} {pos}/{len}  {msg}"
            };
            let style = ProgressStyle::with_template(template)
                .expect("the template is a constant that a test parses")
                .progress_chars("▇▇▁");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar.set_prefix(label.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Task {
            reporter: *self,
            name,
            label,
            in_bytes,
            bar,
            state: RefCell::new(State {
                total,
                done: 0,
                note: String::new(),
                told: String::new(),
                told_at: now,
                told_done: 0,
                started_at: now,
            }),
        }
    }
}

struct State {
    total: u64,
    done: u64,
    note: String,
    told: String,
    told_at: Instant,
    told_done: u64,
    started_at: Instant,
}

/// A step that takes a while. Dropping it without [`Task::finish`] removes the bar silently.
pub struct Task {
    reporter: Reporter,
    name: &'static str,
    label: String,
    in_bytes: bool,
    bar: Option<ProgressBar>,
    state: RefCell<State>,
}

impl Task {
    /// Sets what is done so far, and the total if it is only now known.
    pub fn set(&self, done: u64, total: u64) {
        {
            let mut state = self.state.borrow_mut();
            state.done = done;
            state.total = total;
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
        self.tell(false);
    }

    /// Sets the remark behind the bar: sources, what is waited for.
    pub fn note(&self, note: impl Into<String>) {
        let note = note.into();
        if let Some(bar) = &self.bar {
            bar.set_message(note.clone());
        }
        self.state.borrow_mut().note = note;
        self.tell(false);
    }

    /// Time since the task began.
    pub fn elapsed(&self) -> Duration {
        self.state.borrow().started_at.elapsed()
    }

    /// Ends the task with a line that stays.
    pub fn finish(self, text: &str, fields: Value) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.reporter.say(self.name, text, fields);
    }

    fn tell(&self, at_once: bool) {
        let mut state = self.state.borrow_mut();
        let period = match self.reporter.mode {
            Mode::Bar => return,
            Mode::Lines => LINE_PERIOD,
            Mode::Json => EVENT_PERIOD,
        };
        let since = state.told_at.elapsed();
        if since < period && !at_once {
            return;
        }
        let percent = (state.done * 100).checked_div(state.total).unwrap_or(0);
        let rate = units::mean_rate(state.done.saturating_sub(state.told_done), since);
        let left = state.total.saturating_sub(state.done);
        let eta = left.checked_div(rate).map(Duration::from_secs);
        let line = format!("{percent} {} {}", state.done, state.note);
        if line == state.told {
            return;
        }
        if self.reporter.is_json() {
            self.reporter.emit(
                "progress",
                self.name,
                json!({"done": state.done, "total": state.total, "unit": self.unit(),
                       "rate": rate, "eta_s": eta.map(|eta| eta.as_secs()), "note": state.note}),
            );
        } else if self.in_bytes {
            let eta = eta.map(|eta| format!("  eta {}", units::time(eta))).unwrap_or_default();
            tell_line(format_args!(
                "{} {percent:>3}%  {}/{}  {}{eta}  {}",
                self.label,
                units::bytes(state.done),
                units::bytes(state.total),
                units::rate(rate),
                state.note
            ));
        } else {
            tell_line(format_args!(
                "{} {}/{}  {}",
                self.label, state.done, state.total, state.note
            ));
        }
        state.told = line;
        state.told_at = Instant::now();
        state.told_done = state.done;
    }

    fn unit(&self) -> &'static str {
        if self.in_bytes { "bytes" } else { "count" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_takes_the_same_calls() {
        for mode in [Mode::Bar, Mode::Lines, Mode::Json] {
            let reporter = Reporter { mode };
            let bytes = reporter.bytes("fetch", "  fetching", 0);
            bytes.set(5, 10);
            bytes.note("from t1 100%");
            bytes.finish("  done", json!({"bytes": 10}));
            let things = reporter.things("promote", "  promoted", 16);
            things.set(16, 16);
            things.tell(true);
        }
    }

    /// The summary of a small download went to stderr in hundreds of calls, each of which woke its reader.
    #[test]
    fn a_line_is_one_call() {
        struct Calls(Vec<Vec<u8>>);
        impl Write for Calls {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.push(bytes.to_vec());
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut calls = Calls(Vec::new());
        write_line(&mut calls, json!({"a": [1, 2, {"b": null}], "c": "d"}));
        assert_eq!(calls.0, [b"{\"a\":[1,2,{\"b\":null}],\"c\":\"d\"}\n".to_vec()]);
    }

    #[test]
    fn a_total_of_zero_divides_nothing() {
        let task = Reporter { mode: Mode::Lines }.bytes("x", "x", 0);
        task.tell(true);
        assert_eq!(task.state.borrow().total, 0);
    }
}
