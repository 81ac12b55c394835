//! The cap on payload sent: a token bucket.

use std::time::{Duration, Instant};

/// Longest burst, as time at the full rate. Short, so that a cap is felt within a second and a rate
/// measured over one is near it.
const BURST: Duration = Duration::from_millis(50);
/// Least burst in bytes: four blocks, so that one send carries more than a header.
const BURST_BYTES_MIN: u64 = 64 << 10;

/// Hands out bytes at a rate. Debt is allowed: a send that was begun is not cut.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Bytes per second; `None` hands out any number.
    rate: Option<u64>,
    /// Bytes at hand; negative is debt.
    level: i64,
    filled_at: Option<Instant>,
}

impl Bucket {
    /// A bucket of `rate` bytes per second.
    pub fn new(rate: Option<u64>) -> Self {
        Bucket { rate: rate.map(|rate| rate.max(16 << 10)), level: 0, filled_at: None }
    }

    /// Bytes that may be sent now; 0 in debt.
    pub fn available(&mut self, now: Instant) -> u64 {
        let Some(rate) = self.rate else { return u64::MAX };
        let burst = (rate as f64 * BURST.as_secs_f64()) as u64;
        let burst = burst.max(BURST_BYTES_MIN) as i64;
        let elapsed = self.filled_at.map_or(BURST, |at| now.saturating_duration_since(at));
        let earned = (rate as f64 * elapsed.as_secs_f64()) as i64;
        // Without whole bytes earned the clock stays where it is, or nothing would ever be earned.
        if earned > 0 {
            self.level = self.level.saturating_add(earned).min(burst);
            self.filled_at = Some(now);
        }
        self.level.max(0) as u64
    }

    /// Counts bytes as sent.
    pub fn spend(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.level -= bytes as i64;
        }
    }

    /// When a quarter of the burst will be at hand.
    pub fn ready_at(&self, now: Instant) -> Instant {
        let Some(rate) = self.rate else { return now };
        let wanted = (BURST_BYTES_MIN / 4) as i64 - self.level;
        now + Duration::from_secs_f64((wanted.max(1) as f64 / rate as f64).max(0.001))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_rate_everything_goes() {
        let mut bucket = Bucket::new(None);
        bucket.spend(1 << 40);
        assert_eq!(bucket.available(Instant::now()), u64::MAX);
    }

    /// Whoever asks again and again, at whatever pace, gets the rate over ten seconds and no more.
    #[test]
    fn the_rate_is_kept_over_time() {
        for step in [Duration::from_micros(10), Duration::from_millis(3), Duration::from_millis(40)]
        {
            let mut bucket = Bucket::new(Some(10_000_000));
            let start = Instant::now();
            let mut now = start;
            let mut sent = 0;
            while now < start + Duration::from_secs(10) {
                while bucket.available(now) > 0 {
                    bucket.spend(16_384);
                    sent += 16_384;
                }
                now += step;
            }
            let error = (sent as f64 / 100e6 - 1.0).abs();
            assert!(error < 0.02, "{sent} bytes in 10 s at steps of {step:?}");
        }
    }

    #[test]
    fn debt_is_paid_before_more_is_given() {
        let mut bucket = Bucket::new(Some(1_000_000));
        let start = Instant::now();
        assert!(bucket.available(start) > 0);
        bucket.spend(1_050_000);
        assert_eq!(bucket.available(start + Duration::from_millis(500)), 0);
        assert!(bucket.available(start + Duration::from_millis(1100)) > 0);
        assert!(bucket.ready_at(start) > start);
    }
}
