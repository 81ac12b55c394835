//! How fast bytes come: per source while it is asked for something, and per group of sources.

use std::time::{Duration, Instant};

/// The first window is short, so that a fast peer's pipeline opens at once.
const FIRST_WINDOW: Duration = Duration::from_millis(20);
/// Later windows are long enough to hold many blocks of a slow peer's burst.
const WINDOW: Duration = Duration::from_millis(100);

/// Rate of one source while it has something to send to us; idle time does not count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BusyRate {
    bytes_per_second: Option<f64>,
    window: Option<(Instant, u64)>,
    /// The last bytes, or the first request if none came since.
    last: Option<Instant>,
    /// The longest silence of this window.
    silence: Duration,
    /// The longest of those before, of which each window takes an eighth.
    gap: Duration,
}

impl BusyRate {
    /// The source has been asked for something after it had nothing to do.
    pub(super) fn begin(&mut self, now: Instant) {
        self.window = Some((now, 0));
        self.last = Some(now);
    }

    /// The source has been asked for something; it counts if it is the first time.
    pub(super) fn begin_first(&mut self, now: Instant) {
        self.window.get_or_insert((now, 0));
        self.last.get_or_insert(now);
    }

    /// Bytes came.
    pub(super) fn record(&mut self, now: Instant, len_bytes: u64) {
        let (since, bytes) = self.window.unwrap_or((now, 0));
        let bytes = bytes + len_bytes;
        let last = self.last.replace(now).unwrap_or(now);
        self.silence = self.silence.max(now.saturating_duration_since(last));
        let elapsed = now.saturating_duration_since(since);
        let due = if self.bytes_per_second.is_some() { WINDOW } else { FIRST_WINDOW };
        if elapsed < due {
            self.window = Some((since, bytes));
            return;
        }
        let sample = bytes as f64 / elapsed.as_secs_f64();
        self.bytes_per_second =
            Some(self.bytes_per_second.map_or(sample, |rate| (rate + sample) / 2.0));
        self.window = Some((now, 0));
        self.gap = self.silence.max(self.gap * 7 / 8);
        self.silence = Duration::ZERO;
    }

    /// How long nothing comes between what the source sends: its round trip at first, and the pauses of one
    /// that sends in bursts.
    pub(super) fn gap(&self) -> Duration {
        self.gap
    }

    /// Bytes per second, once it is known.
    pub(super) fn get(&self) -> Option<f64> {
        self.bytes_per_second
    }
}

/// Rate over the last second or so, whatever the sources did; fades when nothing comes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    /// First bytes, last update, and the faded sum of bytes then.
    state: Option<(Instant, Instant, f64)>,
}

/// Time in which an old byte loses most of its weight, in seconds.
const FADE_SECONDS: f64 = 1.0;
/// Without at least so much history a rate is a guess, in seconds.
const HISTORY_MIN_SECONDS: f64 = 0.05;

impl Flow {
    /// Bytes came.
    pub(super) fn record(&mut self, now: Instant, len_bytes: u64) {
        let (first, last, sum) = self.state.unwrap_or((now, now, 0.0));
        let faded = sum * fade(last, now);
        self.state = Some((first, now, faded + len_bytes as f64));
    }

    /// Bytes per second; 0 if none ever came.
    pub(super) fn get(&self, now: Instant) -> f64 {
        let Some((first, last, sum)) = self.state else {
            return 0.0;
        };
        // A young flow has not had time to fill the sum: weigh it by the time it had.
        let history = now.saturating_duration_since(first).as_secs_f64().max(HISTORY_MIN_SECONDS);
        sum * fade(last, now) / (FADE_SECONDS * (1.0 - (-history / FADE_SECONDS).exp()))
    }
}

fn fade(from: Instant, to: Instant) -> f64 {
    (-to.saturating_duration_since(from).as_secs_f64() / FADE_SECONDS).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_rate_ignores_idle_time() {
        let start = Instant::now();
        let mut rate = BusyRate::default();
        rate.begin(start);
        for step in 1..=20 {
            rate.record(start + Duration::from_millis(10 * step), 10_000);
        }
        let before = rate.get().unwrap();
        rate.begin(start + Duration::from_secs(60));
        for step in 1..=20 {
            rate.record(start + Duration::from_millis(60_000 + 10 * step), 10_000);
        }
        let after = rate.get().unwrap();
        assert!((900_000.0..1_100_000.0).contains(&before), "{before}");
        assert!((900_000.0..1_100_000.0).contains(&after), "{after}");
    }

    #[test]
    fn a_flow_is_right_when_young_and_fades_when_nothing_comes() {
        let start = Instant::now();
        let mut flow = Flow::default();
        for step in 1..=20 {
            flow.record(start + Duration::from_millis(10 * step), 10_000);
        }
        let young = flow.get(start + Duration::from_millis(200));
        assert!((800_000.0..1_300_000.0).contains(&young), "{young}");
        assert!(flow.get(start + Duration::from_secs(5)) < 10_000.0);
        assert_eq!(Flow::default().get(start), 0.0);
    }
}
