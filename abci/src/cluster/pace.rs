//! When to begin the next height, and how long to wait for a proposer.
//!
//! A validator begins a height when there is something to agree on, not before: an idle market costs
//! nothing between its idle blocks. A transaction begins it as soon as the market's least interval
//! has passed. Whoever begins tells the others (`Wake`), so that a proposer whose clock is a little
//! late does not cost a round.

use std::time::{Duration, Instant};

use ringseed_ledger::Params;

use super::core::RoundTimeouts;
use super::message::TimerKind;

/// Wait for a proposer that we have no connection to: its proposal can only come through others.
const ABSENT_PROPOSER_WAIT: Duration = Duration::from_millis(100);
/// The wait is stretched to this multiple of what proposals took lately.
const WAIT_FACTOR: u32 = 4;

/// What we know of the proposer of a round. Only waits depend on it, never a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposerSeen {
    /// It is us, or it is connected and proposed when it was due.
    Well,
    /// It is connected and let its last turn pass: frozen, perhaps.
    MissedItsTurn,
    /// There is no connection: it is dead, or its proposal can only come through others.
    NotConnected,
}

/// The clockwork between and inside heights.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Least time between two blocks.
    pub block_interval_min: Duration,
    /// Time between two blocks without transactions.
    pub idle_block_interval: Duration,
    /// Waits inside a height.
    pub timeouts: RoundTimeouts,
    last_commit: Instant,
    round_began: Option<Instant>,
    /// Moving average of the time from a round's begin to its proposal.
    proposal_wait: Duration,
}

impl Pace {
    /// A clockwork that starts now.
    pub fn new(block_interval_min: Duration, idle_block_interval: Duration, now: Instant) -> Self {
        Self {
            block_interval_min,
            idle_block_interval: idle_block_interval.max(block_interval_min),
            timeouts: RoundTimeouts::default(),
            last_commit: now,
            round_began: None,
            proposal_wait: Duration::ZERO,
        }
    }

    /// The clockwork that the market's parameters ask for.
    pub fn of(params: &Params, now: Instant) -> Self {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        Self::new(millis(params.block_interval_ms_min), millis(params.idle_block_interval_ms), now)
    }

    /// Takes over changed parameters.
    pub fn follow(&mut self, params: &Params) {
        let new = Self::of(params, self.last_commit);
        self.block_interval_min = new.block_interval_min;
        self.idle_block_interval = new.idle_block_interval;
    }

    /// When the next height may begin. `is_due`: there are transactions, or another validator began.
    pub fn next_height_at(&self, is_due: bool) -> Instant {
        self.last_commit + if is_due { self.block_interval_min } else { self.idle_block_interval }
    }

    /// A block was committed.
    pub fn committed(&mut self, now: Instant) {
        self.last_commit = now;
        self.round_began = None;
    }

    /// A round began.
    pub fn round_began(&mut self, now: Instant) {
        self.round_began = Some(now);
    }

    /// The proposal of the round is here.
    pub fn proposal_came(&mut self, now: Instant) {
        if let Some(began) = self.round_began.take() {
            self.proposal_wait = (self.proposal_wait * 7 + now.duration_since(began)) / 8;
        }
    }

    /// How long a timer of a round runs.
    pub fn wait(&self, kind: TimerKind, round: u32, proposer: ProposerSeen) -> Duration {
        let wait = self.timeouts.duration(kind, round);
        if kind != TimerKind::Propose {
            return wait;
        }
        let wait = match proposer {
            ProposerSeen::Well => wait.max(self.proposal_wait * WAIT_FACTOR),
            ProposerSeen::MissedItsTurn => wait / 2,
            ProposerSeen::NotConnected => {
                ABSENT_PROPOSER_WAIT + self.timeouts.delta.saturating_mul(round)
            }
        };
        wait.min(self.timeouts.max)
    }

    /// Time since the last commit.
    pub fn last_block_age(&self, now: Instant) -> Duration {
        now.duration_since(self.last_commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const IDLE: Duration = Duration::from_secs(10);

    #[test]
    fn a_transaction_waits_for_the_least_interval_and_not_for_the_idle_one() {
        let start = Instant::now();
        let mut pace = Pace::new(MIN, IDLE, start);
        assert_eq!(pace.next_height_at(true), start + MIN);
        assert_eq!(pace.next_height_at(false), start + IDLE);
        let later = start + Duration::from_secs(3);
        pace.committed(later);
        assert_eq!(pace.next_height_at(true), later + MIN);
    }

    #[test]
    fn a_dead_proposer_costs_little_and_a_slow_one_is_waited_for() {
        let start = Instant::now();
        let mut pace = Pace::new(MIN, IDLE, start);
        assert_eq!(
            pace.wait(TimerKind::Propose, 0, ProposerSeen::NotConnected),
            ABSENT_PROPOSER_WAIT
        );
        assert_eq!(
            pace.wait(TimerKind::Propose, 0, ProposerSeen::Well),
            Duration::from_millis(400)
        );
        assert!(
            pace.wait(TimerKind::Propose, 3, ProposerSeen::Well) > Duration::from_millis(1_000)
        );
        assert_eq!(pace.wait(TimerKind::Prevote, 1_000_000, ProposerSeen::Well), pace.timeouts.max);
        for round in 0..100 {
            let began = start + Duration::from_secs(round);
            pace.round_began(began);
            pace.proposal_came(began + Duration::from_millis(300));
        }
        assert!(pace.wait(TimerKind::Propose, 0, ProposerSeen::Well) > Duration::from_secs(1));
    }
}
