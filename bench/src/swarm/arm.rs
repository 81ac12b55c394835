//! Samples of one contender, their medians, and the table of all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// One transfer that was right.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Its round.
    pub number: usize,
    /// From the start of the first leech until the last has everything.
    pub seconds: f64,
    /// Until the first has.
    pub first_seconds: f64,
    /// Payload of all leeches together, over `seconds`.
    pub bytes_per_second: f64,
    /// Processor seconds of all seeds per GiB delivered, from the start of the leeches.
    pub seed_cpu_per_gib: f64,
    /// Of all leeches, from their start.
    pub leech_cpu_per_gib: f64,
    /// Seconds that the machine was busy per GiB, less what it is without us.
    pub machine_per_gib: Option<f64>,
    /// Most resident memory of one seed, and of one leech.
    pub seed_rss_bytes: u64,
    pub leech_rss_bytes: u64,
    /// State of the source.
    pub cache: String,
    /// Whatever else was found.
    pub more: BTreeMap<String, f64>,
}

/// What was counted in a run of its own that enters no other figure.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CallsOfRun {
    /// System calls per GiB of the leech, from its start.
    pub received: Option<f64>,
    /// Of the seed, while it served.
    pub sent: Option<f64>,
    /// Syncs of the leech until it was complete.
    pub syncs: Option<f64>,
}

/// One contender in one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    pub what: String,
    pub who: String,
    pub version: String,
    pub settings: String,
    /// Command lines of the last run: a seed's, a leech's.
    pub commands: Vec<String>,
    pub samples: Vec<Sample>,
    /// The run that went first and does not count; all that there is when somebody ended it early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Sample>,
    pub calls: CallsOfRun,
    /// What went wrong, or differently.
    pub remarks: Vec<String>,
}

impl Arm {
    pub fn new(what: &str, who: &str, version: &str, settings: &str) -> Arm {
        Arm {
            what: what.to_owned(),
            who: who.to_owned(),
            version: version.to_owned(),
            settings: settings.to_owned(),
            commands: Vec::new(),
            samples: Vec::new(),
            warm_up: None,
            calls: CallsOfRun::default(),
            remarks: Vec::new(),
        }
    }

    /// Median of something over the samples; `None` without any.
    pub fn median(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.iter().map(of).collect())
    }

    /// Median of bytes per second.
    pub fn rate(&self) -> Option<f64> {
        self.median(|sample| sample.bytes_per_second)
    }

    /// Median of processor seconds per GiB of both sides.
    pub fn cpu(&self) -> Option<f64> {
        self.median(|sample| sample.seed_cpu_per_gib + sample.leech_cpu_per_gib)
    }

    fn row(&self) -> String {
        // Of one who was never measured the warm-up says more than nothing.
        let of_warm_up = self.samples.is_empty().then_some(self.warm_up.as_ref()).flatten();
        if let Some(sample) = of_warm_up {
            let mut shown = Arm { samples: vec![sample.clone()], warm_up: None, ..self.clone() };
            shown.remarks.insert(0, "the warm-up alone".to_owned());
            return shown.row();
        }
        let mut row = format!("| {} {} | {} ", self.who, self.version, self.samples.len());
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) if value.is_finite() => format!("{value:.digits$}"),
            _ => String::new(),
        };
        let rates = self.samples.iter().map(|sample| sample.bytes_per_second / 1e6);
        let (low, high) =
            rates.fold((f64::MAX, 0.0f64), |(low, high), rate| (low.min(rate), high.max(rate)));
        match self.rate() {
            Some(rate) => {
                let rate = rate / 1e6;
                let spread = (high - low) / rate * 100.0;
                let _ = write!(row, "| {rate:.0} ({low:.0} to {high:.0}) | {spread:.0} % ");
            }
            None => row.push_str("| none | "),
        }
        let machine = self.median(|sample| sample.machine_per_gib.unwrap_or(f64::NAN));
        let mib = |of: fn(&Sample) -> u64| self.median(|sample| of(sample) as f64 / 1_048_576.0);
        let cells = [
            number(self.median(|sample| sample.seconds), 2),
            number(self.median(|sample| sample.seed_cpu_per_gib), 2),
            number(self.median(|sample| sample.leech_cpu_per_gib), 2),
            number(self.cpu(), 2),
            number(machine, 2),
            number(mib(|sample| sample.seed_rss_bytes), 0),
            number(mib(|sample| sample.leech_rss_bytes), 0),
            number(self.calls.received, 0),
            number(self.calls.sent, 0),
            number(self.calls.syncs, 0),
            self.remarks.join("; "),
        ];
        for cell in cells {
            let _ = write!(row, "| {cell} ");
        }
        row.push('|');
        row
    }
}

/// The middle value, or the mean of the two in the middle; `None` without any.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// All contenders, a table for each thing that was done.
pub fn table(arms: &[Arm]) -> String {
    let (mut text, mut what) = (String::new(), "");
    if !arms.is_empty() {
        text.push_str("\nMedians of so many turns; calls and syncs are of a run of their own.\n");
    }
    for arm in arms {
        if arm.what != what {
            what = &arm.what;
            let _ = writeln!(text, "\n{what}\n");
            text.push_str(
                "| who | turns | MB/s (lowest to highest) | spread | s | seed CPU s/GiB | leech CPU s/GiB | both \
                 | machine s/GiB | seed MiB | leech MiB | leech calls/GiB | seed calls/GiB | leech syncs | |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            );
        }
        let _ = writeln!(text, "{}", arm.row());
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A sample of a GiB.
    pub fn sample(seconds: f64, cpu: f64) -> Sample {
        Sample {
            number: 1,
            seconds,
            first_seconds: seconds,
            bytes_per_second: (1u64 << 30) as f64 / seconds,
            seed_cpu_per_gib: cpu / 4.0,
            leech_cpu_per_gib: cpu * 3.0 / 4.0,
            machine_per_gib: None,
            seed_rss_bytes: 1 << 20,
            leech_rss_bytes: 2 << 20,
            cache: "in the page cache".into(),
            more: BTreeMap::new(),
        }
    }

    #[test]
    fn a_row_shows_medians_and_the_range() {
        let mut arm = Arm::new("a file", "who", "1.0", "");
        assert_eq!(arm.rate(), None);
        assert!(table(&[arm.clone()]).contains("| none |"));
        arm.samples = vec![sample(4.0, 1.0), sample(1.0, 3.0), sample(2.0, 2.0)];
        assert_eq!(arm.cpu(), Some(2.0));
        assert!(
            table(&[arm]).contains(
                "| 3 | 537 (268 to 1074) | 150 % | 2.00 | 0.50 | 1.50 | 2.00 |  | 1 | 2 |"
            )
        );
    }

    /// Of two turns the faster one was the median.
    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 8.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }

    /// Hours of warming up were shown as "none" when somebody ended them.
    #[test]
    fn a_warm_up_is_shown_where_there_is_nothing_else_and_counts_for_nothing() {
        let mut arm = Arm::new("a file", "who", "1.0", "");
        arm.warm_up = Some(sample(2.0, 1.0));
        assert!(table(&[arm.clone()]).contains("| 1 | 537 (537 to 537) | 0 % | 2.00 |"));
        assert!(table(&[arm.clone()]).contains("the warm-up alone"));
        assert_eq!((arm.rate(), arm.cpu()), (None, None));
        arm.samples.push(sample(1.0, 1.0));
        assert!(!table(&[arm]).contains("warm-up"));
    }
}
