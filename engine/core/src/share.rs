//! Who may be sent something now, when one peer holds more connections than others.
//!
//! Connections that are served in turn get the same each, so that whoever opens ten gets ten times as
//! much. Here connections belong to *accounts* (an address, say), and an account with
//! several of them gets what the others get on average, or what one connection of its own gets, if that is
//! more: one of them in turn is always served, the rest only while the account has something to its credit.
//!
//! Nobody is held back for those who are slow by themselves: whoever gets less than a quarter of what the one
//! connection gets would gain nothing by it. So programs behind one address lose nothing on an idle machine,
//! and a hundred slow peers slow nobody down.
//!
//! While no account has two connections, or there is only one account, nothing is counted
//! ([`Shares::is_contended`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often rates are measured, and credit is given.
const STEP: Duration = Duration::from_millis(100);
/// Over what time rates are smoothed: a slow peer takes a send in about a second.
const SMOOTH: Duration = Duration::from_secs(2);
/// How long one connection of an account stays the one that is always served. What lies in the sockets of the
/// others flows on meanwhile, so that shorter turns would fill many sockets instead of one.
const TURN: Duration = Duration::from_secs(1);
/// How soon a connection that was held back asks again.
const RETRY: Duration = Duration::from_millis(20);
/// Most credit of an account, and most debt, as time at the rate it is given.
const CREDIT_MAX: Duration = Duration::from_millis(200);
/// See [`CREDIT_MAX`].
const DEBT_MAX: Duration = Duration::from_secs(1);
/// Whoever gets less than one part in so many of what one connection of an account gets is slow by itself.
const SLOWER_BY: f64 = 4.0;

/// Whether a connection may be sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Now.
    Now,
    /// Not before that time; then it asks again.
    NotBefore(Instant),
}

/// Shares what is sent among accounts of type `A`, whose connections are named by `C`. Bounded by the number of
/// connections that have joined.
#[derive(Debug)]
pub struct Shares<A, C> {
    accounts: BTreeMap<A, Account<C>>,
    /// Accounts with several connections.
    crowds: usize,
    measured_at: Option<Instant>,
}

#[derive(Debug)]
struct Account<C> {
    conns: Vec<Member<C>>,
    /// Sent since the last measurement, in bytes: over all, and over the connection whose turn it is.
    sent: Pace,
    sent_first: Pace,
    /// The connection that is always served, and until when if another one waits.
    first: Option<(C, Instant)>,
    /// Turns that there were.
    turns: u64,
    /// What others get, in bytes per second; `None`: as much as it likes.
    fair_rate: Option<f64>,
    /// Bytes; negative is debt.
    credit: f64,
}

impl<C: Copy + Eq> Account<C> {
    /// Whether the turn is this connection's, or becomes it. When its time is over it goes to whoever waits and
    /// had it longest ago.
    fn has_turn(&mut self, now: Instant, conn: C) -> bool {
        let holder = self.first.filter(|&(first, _)| first == conn);
        let is_over = self.first.is_none_or(|(_, until)| now >= until);
        if holder.is_some() && !(is_over && self.conns.iter().any(|one| one.is_waiting)) {
            return true;
        }
        if let Some(own) = self.conns.iter_mut().find(|one| one.conn == conn) {
            own.is_waiting = true;
        }
        let waiting = self.conns.iter().filter(|one| one.is_waiting);
        let next = waiting.min_by_key(|one| one.had_turn).map(|one| one.conn);
        // One that waited and wants nothing more must not keep the others from it.
        let is_idle = self.first.is_none_or(|(_, until)| now >= until + 2 * RETRY);
        if holder.is_some() || !is_over || (next != Some(conn) && !is_idle) {
            return false;
        }
        self.turns += 1;
        for one in &mut self.conns {
            one.is_waiting = false;
            if one.conn == conn {
                one.had_turn = self.turns;
            }
        }
        self.first = Some((conn, now + TURN));
        true
    }
}

/// A connection of an account.
#[derive(Debug)]
struct Member<C> {
    conn: C,
    /// Which of the account's turns it had last.
    had_turn: u64,
    /// It was held back since the present turn began.
    is_waiting: bool,
}

/// Bytes per second, smoothed.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    bytes: u64,
    rate: f64,
}

impl Pace {
    fn measure(&mut self, elapsed: Duration) {
        let now = std::mem::take(&mut self.bytes) as f64 / elapsed.as_secs_f64();
        let weight = elapsed.as_secs_f64() / (SMOOTH + elapsed).as_secs_f64();
        self.rate += (now - self.rate) * weight;
    }
}

impl<A, C> Default for Shares<A, C> {
    fn default() -> Self {
        Shares { accounts: BTreeMap::new(), crowds: 0, measured_at: None }
    }
}

impl<A: Copy + Ord, C: Copy + Eq> Shares<A, C> {
    /// A connection begins.
    pub fn join(&mut self, account: A, conn: C) {
        let fresh = || Account {
            conns: Vec::new(),
            sent: Pace::default(),
            sent_first: Pace::default(),
            first: None,
            turns: 0,
            fair_rate: None,
            credit: 0.0,
        };
        let account = self.accounts.entry(account).or_insert_with(fresh);
        if !account.conns.iter().any(|member| member.conn == conn) {
            account.conns.push(Member { conn, had_turn: 0, is_waiting: false });
            self.crowds += usize::from(account.conns.len() == 2);
        }
    }

    /// A connection has ended.
    pub fn leave(&mut self, account: A, conn: C) {
        let Some(found) = self.accounts.get_mut(&account) else { return };
        let Some(at) = found.conns.iter().position(|one| one.conn == conn) else { return };
        found.conns.swap_remove(at);
        found.first = found.first.filter(|(first, _)| *first != conn);
        match found.conns.len() {
            0 => {
                self.accounts.remove(&account);
            }
            1 => {
                self.crowds -= 1;
                found.fair_rate = None;
            }
            _ => {}
        }
        if !self.is_contended() {
            self.measured_at = None;
        }
    }

    /// Whether there is anything to decide; if not, [`Shares::sent`] and [`Shares::turn`] need not be called.
    pub fn is_contended(&self) -> bool {
        self.crowds > 0 && self.accounts.len() > 1
    }

    /// Payload goes out over a connection.
    pub fn sent(&mut self, account: A, conn: C, bytes: u64) {
        let Some(account) = self.accounts.get_mut(&account) else { return };
        account.sent.bytes += bytes;
        if account.conns.len() > 1 {
            account.credit -= bytes as f64;
            if account.first.is_some_and(|(first, _)| first == conn) {
                account.sent_first.bytes += bytes;
            }
        }
    }

    /// Whether a connection that wants to be sent something is.
    pub fn turn(&mut self, now: Instant, account: A, conn: C) -> Turn {
        self.measure(now);
        let Some(account) = self.accounts.get_mut(&account) else { return Turn::Now };
        if account.conns.len() < 2 {
            return Turn::Now;
        }
        if account.has_turn(now, conn) {
            return Turn::Now;
        }
        if account.fair_rate.is_none() || account.credit > 0.0 {
            return Turn::Now;
        }
        Turn::NotBefore(now + RETRY)
    }

    /// Measures what everybody gets, and gives credit by it.
    fn measure(&mut self, now: Instant) {
        let since = *self.measured_at.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed < STEP {
            return;
        }
        self.measured_at = Some(now);
        for account in self.accounts.values_mut() {
            account.sent.measure(elapsed);
            account.sent_first.measure(elapsed);
        }
        // The fastest first, and what each and all before it get.
        let mut rates: Vec<f64> = self.accounts.values().map(|account| account.sent.rate).collect();
        rates.retain(|rate| *rate >= 1.0);
        rates.sort_by(|one, other| other.total_cmp(one));
        let mut sum = 0.0;
        let sums: Vec<f64> = rates
            .iter()
            .map(|rate| {
                sum += rate;
                sum
            })
            .collect();
        for account in self.accounts.values_mut().filter(|account| account.conns.len() > 1) {
            let least = account.sent_first.rate / SLOWER_BY;
            let counted = rates.partition_point(|rate| *rate >= least);
            // It is among them itself, unless it gets nothing at all.
            let own = account.sent.rate;
            let is_counted = own >= least.max(1.0);
            let others = counted - usize::from(is_counted && counted > 0);
            if others == 0 {
                (account.fair_rate, account.credit) = (None, 0.0);
                continue;
            }
            let all = sums[counted - 1] - if is_counted { own } else { 0.0 };
            let fair = all / others as f64;
            let (most, debt) = (fair * CREDIT_MAX.as_secs_f64(), fair * DEBT_MAX.as_secs_f64());
            let earned = fair * elapsed.min(CREDIT_MAX).as_secs_f64();
            account.credit = (account.credit.max(-debt) + earned).min(most);
            account.fair_rate = Some(fair);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What accounts have got after `time`, when the one who serves gives `capacity` bytes per second to whoever
    /// is first in a queue, and each connection takes at most so much per second. Accounts are given as the
    /// number of their connections and what each takes.
    fn served(accounts: &[(u32, f64)], capacity: f64, time: Duration) -> Vec<f64> {
        const SEND: f64 = 65_536.0;
        let start = Instant::now();
        let mut shares = Shares::default();
        let mut conns = Vec::new();
        for (account, &(count, rate)) in (0_u32..).zip(accounts) {
            for at in 0..count {
                shares.join(account, (account, at));
                conns.push((account, (account, at), rate, start));
            }
        }
        let mut got = vec![0.0; accounts.len()];
        let mut now = start;
        let mut at = 0;
        while now < start + time {
            // Round robin over those who can take something.
            let ready = (0..conns.len()).map(|step| (at + step) % conns.len());
            let next = ready.into_iter().find(|&index| {
                let (account, conn, _, free_at) = conns[index];
                let may = !shares.is_contended() || shares.turn(now, account, conn) == Turn::Now;
                free_at <= now && may
            });
            let Some(index) = next else {
                now += Duration::from_millis(1);
                continue;
            };
            at = index + 1;
            let (account, conn, rate, free_at) = &mut conns[index];
            got[*account as usize] += SEND;
            shares.sent(*account, *conn, SEND as u64);
            *free_at = now + Duration::from_secs_f64(SEND / *rate);
            now += Duration::from_secs_f64(SEND / capacity);
        }
        got.iter().map(|bytes| bytes / time.as_secs_f64()).collect()
    }

    const FOREVER: Duration = Duration::from_secs(60);

    /// The bar: with ten times the connections at most 1.2 times as much.
    #[test]
    fn ten_connections_get_what_others_get_with_one() {
        let mut accounts = vec![(10, 1e9)];
        accounts.extend([(1, 1e9); 7]);
        let got = served(&accounts, 1e8, FOREVER);
        let others = got[1..].iter().sum::<f64>() / 7.0;
        let share = got[0] / others;
        assert!((0.8..=1.2).contains(&share), "{share}: {got:?}");
        assert!(got.iter().sum::<f64>() > 0.95e8, "nothing is left lying: {got:?}");
    }

    #[test]
    fn two_crowds_and_one_alone_get_the_same() {
        let got = served(&[(4, 1e9), (8, 1e9), (1, 1e9)], 1e8, FOREVER);
        assert!(got.iter().all(|one| (0.8..1.25).contains(&(one / got[2]))), "{got:?}");
    }

    /// Whoever is slow by itself is no measure: four programs behind one address use what is there.
    #[test]
    fn slow_peers_hold_nobody_back() {
        let got = served(&[(4, 1e7), (1, 1e5), (1, 1e5)], 1e9, FOREVER);
        assert!(got[0] > 3.5e7, "{got:?}");
        let mut accounts = vec![(2, 1e7)];
        accounts.extend([(1, 10_240.0); 200]);
        let got = served(&accounts, 1e9, FOREVER);
        assert!(got[0] > 1.75e7, "{:?}", got[0]);
    }

    /// Of an account that may not use all its connections each has its turn.
    #[test]
    fn connections_of_one_account_take_turns() {
        let start = Instant::now();
        let mut shares: Shares<u8, u8> = Shares::default();
        (0..4).for_each(|conn| shares.join(1, conn));
        shares.join(2, 9);
        let mut got = [0_u32; 4];
        for step in 0..60_000_u32 {
            let now = start + Duration::from_millis(step.into());
            if shares.turn(now, 2, 9) == Turn::Now {
                shares.sent(2, 9, 1000);
            }
            for conn in 0..4_u8 {
                if shares.turn(now, 1, conn) == Turn::Now {
                    shares.sent(1, conn, 1000);
                    got[usize::from(conn)] += 1;
                }
            }
        }
        assert!(got.iter().all(|&one| one > 10_000), "{got:?} of 60,000");
        assert!(got.iter().sum::<u32>() < 80_000, "{got:?} against 60,000");
    }

    #[test]
    fn without_a_crowd_or_without_others_there_is_nothing_to_decide() {
        let mut shares: Shares<u8, u8> = Shares::default();
        (0..4).for_each(|conn| shares.join(1, conn));
        assert!(!shares.is_contended(), "nobody else is there");
        shares.join(2, 9);
        assert!(shares.is_contended());
        shares.join(2, 9);
        (0..3).for_each(|conn| shares.leave(1, conn));
        assert!(!shares.is_contended(), "one each");
        shares.leave(1, 3);
        shares.leave(1, 3);
        shares.leave(2, 9);
        assert!(shares.accounts.is_empty());
        assert_eq!(shares.turn(Instant::now(), 1, 3), Turn::Now, "nobody we know");
    }

    /// Who holds the turn and goes away leaves it to the others.
    #[test]
    fn a_turn_does_not_end_with_its_holder() {
        let start = Instant::now();
        let mut shares: Shares<u8, u8> = Shares::default();
        [0, 1].into_iter().for_each(|conn| shares.join(1, conn));
        shares.join(2, 9);
        assert_eq!(shares.turn(start, 1, 0), Turn::Now);
        shares.leave(1, 0);
        shares.join(1, 2);
        assert_eq!(shares.turn(start, 1, 2), Turn::Now);
    }
}
