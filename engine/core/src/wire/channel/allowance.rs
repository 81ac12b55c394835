//! How much of something a peer may do: some at once, and so much per second for ever. Of what it may not
//! do at all beyond that, an [`Allowance`]; of what it may do later, a [`Toll`].

use std::time::{Duration, Instant};

/// A token bucket of whole tokens. It fills when it is looked at, so that it costs no timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Most tokens that time can fill it to.
    burst: u32,
    per_second: u32,
    left: u32,
    /// When tokens were last earned by time; `None` before the first is spent.
    filled_at: Option<Instant>,
}

impl Allowance {
    /// A full one: tokens at once, tokens per second.
    pub fn new((burst, per_second): (u32, u32)) -> Self {
        Self { burst, per_second, left: burst, filled_at: None }
    }

    /// Takes a token. False: there was none.
    pub fn spend(&mut self, now: Instant) -> bool {
        let since = *self.filled_at.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        let earned = elapsed.as_millis() * u128::from(self.per_second) / 1000;
        if earned > 0 {
            // Only the time of whole tokens is used up, or frequent looks would earn nothing.
            let used = earned * 1000 / u128::from(self.per_second);
            self.filled_at = Some(since + Duration::from_millis(used as u64));
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.max(self.left.saturating_add(earned).min(self.burst));
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }

    /// Adds tokens for something useful; up to four times of what time alone fills it to.
    pub fn earn(&mut self, tokens: u32) {
        self.left = self.left.saturating_add(tokens).min(self.burst.saturating_mul(4));
    }
}

/// Longest debt of a [`Toll`], as time at its rate: well below the silence that ends a connection.
const DEBT_MAX: Duration = Duration::from_secs(30);

/// What a peer makes us do, in bytes of answers. Debt is allowed, because one receive may bring many
/// questions; whoever is in debt is not read until it is paid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Toll {
    burst: u64,
    per_second: u64,
    /// When everything spent so far will have come back; in the past, when there is nothing to pay.
    full_at: Option<Instant>,
    /// When something was charged last.
    paid_at: Option<Instant>,
}

impl Toll {
    /// One with nothing spent: bytes at once, bytes per second.
    pub fn new((burst, per_second): (u64, u64)) -> Self {
        Self { burst, per_second, full_at: None, paid_at: None }
    }

    /// Charges `cost_bytes`. Until when the peer is in debt, if it is.
    pub fn pay(&mut self, now: Instant, cost_bytes: u64) -> Option<Instant> {
        let burst = self.time(self.burst);
        let from = self.full_at.map_or(now, |at| at.max(now));
        let full_at = (from + self.time(cost_bytes)).min(now + burst + DEBT_MAX);
        (self.full_at, self.paid_at) = (Some(full_at), Some(now));
        self.debt_until()
    }

    /// Whether anything has ever been charged.
    pub fn is_used(&self) -> bool {
        self.full_at.is_some()
    }

    /// Gives back what was charged for something that was not done after all. Until when the peer is in debt all
    /// the same, if it is.
    pub fn refund(&mut self, cost_bytes: u64) -> Option<Instant> {
        let time = self.time(cost_bytes);
        self.full_at = self.full_at.and_then(|at| at.checked_sub(time));
        self.debt_until()
    }

    /// Until when there is debt, as things were when something was charged last.
    fn debt_until(&self) -> Option<Instant> {
        let burst = self.time(self.burst);
        let out_at = self.full_at?.checked_sub(burst)?;
        (Some(out_at) > self.paid_at).then_some(out_at)
    }

    fn time(&self, bytes: u64) -> Duration {
        Duration::from_micros(bytes.saturating_mul(1_000_000) / self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toll_gives_a_burst_then_its_rate_and_no_endless_debt() {
        let start = Instant::now();
        let mut toll = Toll::new((1000, 100));
        assert_eq!(toll.pay(start, 1000), None);
        assert_eq!(toll.pay(start, 50), Some(start + Duration::from_millis(500)));
        // Whoever waits until it is out of debt, and asks again, gets the rate.
        let (mut now, mut paid) = (start + Duration::from_millis(500), 0);
        while now < start + Duration::from_secs(20) {
            paid += 10;
            now = toll.pay(now, 10).unwrap_or(now);
        }
        assert!((1900..=2000).contains(&paid), "{paid} in 19.5 s at 100 a second");
        assert_eq!(toll.pay(now, u64::MAX), Some(now + DEBT_MAX));
        let later = now + Duration::from_secs(100);
        assert_eq!(toll.pay(later, 1000), None, "a burst again");
        assert_eq!(toll.pay(later, 300), Some(later + Duration::from_secs(3)));
        assert_eq!(toll.refund(200), Some(later + Duration::from_secs(1)), "100 in debt");
        assert_eq!(toll.refund(200), None, "and out of it");
    }

    #[test]
    fn a_burst_is_spent_once_and_comes_back_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new((10, 2));
        let spend =
            |allowance: &mut Allowance, now| (0..100).filter(|_| allowance.spend(now)).count();
        assert_eq!(spend(&mut allowance, start), 10);
        assert_eq!(spend(&mut allowance, start + Duration::from_millis(400)), 0);
        assert_eq!(spend(&mut allowance, start + Duration::from_secs(3)), 6);
        assert_eq!(
            spend(&mut allowance, start + Duration::from_secs(1000)),
            10,
            "no more than a burst"
        );
    }

    /// Looked at every millisecond it gives what it gives when looked at once.
    #[test]
    fn frequent_looks_lose_no_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new((1, 100));
        let given =
            (0..10_000).filter(|&at| allowance.spend(start + Duration::from_millis(at))).count();
        assert_eq!(given, 1 + 999);
    }

    #[test]
    fn what_is_earned_by_work_is_kept_beyond_the_burst_and_bounded() {
        let start = Instant::now();
        let mut allowance = Allowance::new((10, 1));
        (0..1000).for_each(|_| allowance.earn(2));
        let given = (0..1000).filter(|_| allowance.spend(start)).count();
        assert_eq!(given, 40);
    }
}
