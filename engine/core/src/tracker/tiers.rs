//! Whom to ask next, and when (BEP 3, 12): the trackers of one torrent as a state machine.
//!
//! A *round* asks the trackers in order, tier by tier, until one answers. It moves to the front of its
//! tier, and the next round begins again at the first tier. A round that nobody answers is repeated after
//! a growing wait. One tracker is asked at a time.

use std::time::{Duration, Instant};

use super::{AnnounceEvent, TrackerUrl, UrlError};

/// Most trackers of one torrent; what is beyond is left out.
pub const TRACKERS_MAX: usize = 100;
/// First wait after a round that nobody answered; every further one is twice as long.
pub const RETRY_MIN: Duration = Duration::from_secs(15);
/// Longest wait after a round that nobody answered.
pub const RETRY_MAX: Duration = Duration::from_secs(30 * 60);
/// A torrent without any peer may ask before its interval is over, but first after this time, then after
/// twice as long, and so on: trackers count requests.
pub const EARLY_MIN: Duration = Duration::from_secs(60);

/// One tracker of one torrent. Only [`TrackerList`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackerId(u32);

/// Who named a tracker. The user may send us anywhere; a file or a link from elsewhere may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NamedBy {
    /// The command line.
    User,
    /// A `.torrent` file or a magnet link.
    Torrent,
}

/// A tracker to be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// To be given back with the answer.
    pub tracker: TrackerId,
    /// Where it is.
    pub url: TrackerUrl,
    /// Who named it.
    pub named_by: NamedBy,
    /// What to tell it.
    pub event: AnnounceEvent,
    /// It is one of several: better ask the next one soon than wait for it long.
    pub has_others: bool,
}

/// The trackers of one torrent. See the module.
#[derive(Debug)]
pub struct TrackerList {
    tiers: Vec<Vec<Entry>>,
    /// Who of the round has been asked in vain.
    tried: Vec<TrackerId>,
    asked: Option<TrackerId>,
    next_at: Option<Instant>,
    failures: u32,
    earlies: u32,
    /// The last answer: when it came, and when a next question would be too early.
    answered_at: Option<Instant>,
    interval_min: Option<Duration>,
    wants_completed: bool,
    is_stopped: bool,
}

#[derive(Debug)]
struct Entry {
    id: TrackerId,
    url: TrackerUrl,
    named_by: NamedBy,
    /// It has answered us: to it we are part of the swarm.
    knows_us: bool,
}

impl TrackerList {
    /// The trackers of a torrent, in tiers; `seed` shuffles them inside their tiers (BEP 12), so that not
    /// all clients ask the same one. Those that cannot be asked come back with the reason; what is named
    /// twice counts once.
    pub fn new<'a>(
        now: Instant,
        tiers: impl IntoIterator<Item = (NamedBy, &'a [String])>,
        seed: u64,
    ) -> (Self, Vec<(String, UrlError)>) {
        let (mut list, mut refused) = (Vec::new(), Vec::new());
        let (mut count, mut random) = (0, seed | 1);
        let mut known: Vec<TrackerUrl> = Vec::new();
        for (named_by, urls) in tiers {
            let mut tier = Vec::new();
            for text in urls {
                match text.parse::<TrackerUrl>() {
                    Ok(url) if count < TRACKERS_MAX && !known.contains(&url) => {
                        known.push(url.clone());
                        tier.push(Entry {
                            id: TrackerId(count as u32),
                            url,
                            named_by,
                            knows_us: false,
                        });
                        count += 1;
                    }
                    Ok(_) => {}
                    Err(error) if refused.len() < TRACKERS_MAX => {
                        refused.push((text.clone(), error))
                    }
                    Err(_) => {}
                }
            }
            // Fisher-Yates over a linear congruential sequence: chance, and the same in a test.
            for last in (1..tier.len()).rev() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                tier.swap(last, (random >> 33) as usize % (last + 1));
            }
            if !tier.is_empty() {
                list.push(tier);
            }
        }
        let list = TrackerList {
            tiers: list,
            tried: Vec::new(),
            asked: None,
            next_at: Some(now).filter(|_| count > 0),
            failures: 0,
            earlies: 0,
            answered_at: None,
            interval_min: None,
            wants_completed: false,
            is_stopped: false,
        };
        (list, refused)
    }

    /// Whether there is no tracker at all.
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    /// Every URL, in the order in which they would be asked.
    pub fn urls(&self) -> impl Iterator<Item = &TrackerUrl> {
        self.tiers.iter().flatten().map(|entry| &entry.url)
    }

    /// Whether a tracker is being asked.
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// When to call [`TrackerList::poll`]; `None` while a tracker is being asked, or without any.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_at.filter(|_| self.asked.is_none() && !self.is_stopped)
    }

    /// The tracker to ask now, if it is time. Its answer goes to [`TrackerList::handle_answer`] or
    /// [`TrackerList::handle_failure`].
    pub fn poll(&mut self, now: Instant) -> Option<Ask> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return None;
        }
        let tried = &self.tried;
        let entry = self.tiers.iter().flatten().find(|entry| !tried.contains(&entry.id))?;
        self.asked = Some(entry.id);
        let event = match (entry.knows_us, self.wants_completed) {
            (false, _) => AnnounceEvent::Started,
            (true, true) => AnnounceEvent::Completed,
            (true, false) => AnnounceEvent::None,
        };
        Some(self.ask(entry, event))
    }

    fn ask(&self, entry: &Entry, event: AnnounceEvent) -> Ask {
        Ask {
            tracker: entry.id,
            url: entry.url.clone(),
            named_by: entry.named_by,
            event,
            has_others: self.tiers.iter().map(Vec::len).sum::<usize>() > 1,
        }
    }

    /// A tracker has answered: it moves to the front of its tier and is asked again after `interval`.
    pub fn handle_answer(
        &mut self,
        now: Instant,
        of: &Ask,
        interval: Duration,
        interval_min: Option<Duration>,
    ) {
        self.asked = None;
        for tier in &mut self.tiers {
            if let Some(at) = tier.iter().position(|entry| entry.id == of.tracker) {
                tier[at].knows_us = true;
                tier[..=at].rotate_right(1);
            }
        }
        if of.event == AnnounceEvent::Completed {
            self.wants_completed = false;
        }
        self.tried.clear();
        self.failures = 0;
        self.answered_at = Some(now);
        self.interval_min = interval_min;
        // What happened while it was asked it hears at once, but not before `started` is told.
        let wait = if self.wants_completed { Duration::ZERO } else { interval };
        self.next_at =
            Some(now + wait.max(interval_min.filter(|_| !wait.is_zero()).unwrap_or_default()));
    }

    /// A tracker has not answered, or refused: the next one is asked at once, and after the last one the
    /// round begins anew, later.
    pub fn handle_failure(&mut self, now: Instant, of: &Ask) {
        self.asked = None;
        self.tried.push(of.tracker);
        if self.tried.len() < self.tiers.iter().map(Vec::len).sum() {
            self.next_at = Some(now);
            return;
        }
        self.tried.clear();
        let wait = RETRY_MIN.saturating_mul(2_u32.saturating_pow(self.failures.min(16)));
        self.failures += 1;
        self.next_at = Some(now + wait.min(RETRY_MAX));
    }

    /// What was missing has come. The tracker that knows us is told at once.
    pub fn set_completed(&mut self, now: Instant) {
        self.wants_completed = true;
        if self.answered_at.is_some() && self.failures == 0 {
            self.next_at = self.next_at.map(|at| at.min(now));
        }
    }

    /// There is nobody to fetch from: ask before the interval is over, as far as that is decent and the
    /// tracker's own minimum allows.
    pub fn want_peers(&mut self) {
        let (Some(answered_at), Some(next_at)) = (self.answered_at, self.next_at) else { return };
        let decent = EARLY_MIN.saturating_mul(2_u32.saturating_pow(self.earlies.min(16)));
        let early = answered_at + decent.max(self.interval_min.unwrap_or_default());
        if self.asked.is_none() && self.failures == 0 && early < next_at {
            self.next_at = Some(early);
            self.earlies += 1;
        }
    }

    /// We leave: whom to tell so. Nobody is asked any more.
    pub fn stop(&mut self) -> Vec<Ask> {
        self.is_stopped = true;
        let entries = self.tiers.iter().flatten().filter(|entry| entry.knows_us);
        entries.map(|entry| self.ask(entry, AnnounceEvent::Stopped)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(lists: &[&[&str]]) -> Vec<Vec<String>> {
        let own = |urls: &&[&str]| urls.iter().map(|url| format!("udp://{url}:1")).collect();
        lists.iter().map(own).collect()
    }

    fn list(now: Instant, lists: &[&[&str]]) -> TrackerList {
        let tiers = tiers(lists);
        let named = tiers.iter().map(|tier| (NamedBy::Torrent, &tier[..]));
        TrackerList::new(now, named, 7).0
    }

    fn host(ask: &Ask) -> &str {
        ask.url.authority().0
    }

    fn order(list: &TrackerList) -> Vec<&str> {
        list.urls().map(|url| url.authority().0).collect()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    /// The walk of BEP 12: every tracker of a tier before the next tier, and who answers comes first.
    #[test]
    fn a_round_goes_through_the_tiers_and_promotes_who_answers() {
        let now = Instant::now();
        let mut trackers = list(now, &[&["a", "b", "c"], &["d"]]);
        let before: Vec<String> = order(&trackers).iter().map(|&host| host.to_owned()).collect();
        assert_eq!(before[3], "d");
        for expected in &before[..2] {
            let ask = trackers.poll(now).unwrap();
            assert_eq!((host(&ask), ask.event), (expected.as_str(), AnnounceEvent::Started));
            assert!(trackers.poll(now).is_none(), "one at a time");
            trackers.handle_failure(now, &ask);
        }
        let ask = trackers.poll(now).unwrap();
        assert_eq!(host(&ask), before[2]);
        trackers.handle_answer(now, &ask, HOUR, None);
        assert_eq!(order(&trackers), [&before[2], &before[0], &before[1], "d"]);
        assert!(
            trackers.poll(now + HOUR - Duration::from_millis(1)).is_none(),
            "the interval is obeyed"
        );
        let ask = trackers.poll(now + HOUR).unwrap();
        assert_eq!((host(&ask), ask.event), (before[2].as_str(), AnnounceEvent::None));
    }

    #[test]
    fn the_next_tier_is_asked_when_the_first_is_dead_and_the_first_again_next_time() {
        let now = Instant::now();
        let mut trackers = list(now, &[&["a"], &["b"]]);
        let ask = trackers.poll(now).unwrap();
        assert_eq!(host(&ask), "a");
        trackers.handle_failure(now, &ask);
        let ask = trackers.poll(now).unwrap();
        assert_eq!(host(&ask), "b");
        trackers.handle_answer(now, &ask, HOUR, None);
        assert_eq!(order(&trackers), ["a", "b"], "promoted inside its tier only");
        assert_eq!(host(&trackers.poll(now + HOUR).unwrap()), "a");
    }

    #[test]
    fn a_round_that_nobody_answers_is_repeated_at_growing_distances() {
        let start = Instant::now();
        let mut trackers = list(start, &[&["a", "b"]]);
        let (mut now, mut waits) = (start, Vec::new());
        for _ in 0..10 {
            for _ in 0..2 {
                let ask = trackers.poll(now).unwrap();
                trackers.handle_failure(now, &ask);
            }
            let next = trackers.poll_timeout().unwrap();
            waits.push((next - now).as_secs());
            assert!(trackers.poll(now).is_none());
            now = next;
        }
        assert_eq!(waits, [15, 30, 60, 120, 240, 480, 960, 1800, 1800, 1800]);
    }

    #[test]
    fn completed_is_told_once_to_who_knows_us() {
        let now = Instant::now();
        let mut trackers = list(now, &[&["a"]]);
        let ask = trackers.poll(now).unwrap();
        trackers.set_completed(now); // it came while the tracker was asked
        trackers.handle_answer(now, &ask, HOUR, Some(HOUR));
        let ask = trackers.poll(now).unwrap();
        assert_eq!(ask.event, AnnounceEvent::Completed);
        trackers.handle_answer(now, &ask, HOUR, None);
        assert_eq!(trackers.poll(now + HOUR).unwrap().event, AnnounceEvent::None);

        let mut trackers = list(now, &[&["a"]]);
        let ask = trackers.poll(now).unwrap();
        trackers.handle_answer(now, &ask, HOUR, None);
        trackers.set_completed(now);
        assert_eq!(trackers.poll(now).unwrap().event, AnnounceEvent::Completed);
    }

    #[test]
    fn stopped_goes_to_those_who_know_us_and_nobody_is_asked_after_it() {
        let now = Instant::now();
        let mut trackers = list(now, &[&["a"], &["b"]]);
        let ask = trackers.poll(now).unwrap();
        trackers.handle_failure(now, &ask);
        let ask = trackers.poll(now).unwrap();
        trackers.handle_answer(now, &ask, HOUR, None);
        let told = trackers.stop();
        let told: Vec<_> = told.iter().map(|ask| (host(ask), ask.event)).collect();
        assert_eq!(told, [("b", AnnounceEvent::Stopped)]);
        assert!(trackers.poll(now + 9 * HOUR).is_none() && trackers.poll_timeout().is_none());
    }

    #[test]
    fn who_lacks_peers_asks_earlier_but_never_below_the_minimum() {
        let now = Instant::now();
        let mut trackers = list(now, &[&["a"]]);
        trackers.want_peers();
        let ask = trackers.poll(now).unwrap();
        trackers.handle_answer(now, &ask, HOUR, None);
        trackers.want_peers();
        assert_eq!(trackers.poll_timeout(), Some(now + EARLY_MIN));
        let now = now + EARLY_MIN;
        let ask = trackers.poll(now).unwrap();
        trackers.handle_answer(now, &ask, HOUR, None);
        trackers.want_peers();
        assert_eq!(trackers.poll_timeout(), Some(now + 2 * EARLY_MIN), "and rarer every time");
        let now = now + 2 * EARLY_MIN;
        let ask = trackers.poll(now).unwrap();
        trackers.handle_answer(now, &ask, HOUR, Some(HOUR / 2));
        trackers.want_peers();
        assert_eq!(trackers.poll_timeout(), Some(now + HOUR / 2));
    }

    #[test]
    fn an_interval_below_the_minimum_gives_way_to_it() {
        let now = Instant::now();
        let mut trackers = list(now, &[&["a"]]);
        let ask = trackers.poll(now).unwrap();
        trackers.handle_answer(now, &ask, Duration::from_secs(1), Some(HOUR));
        assert_eq!(trackers.poll_timeout(), Some(now + HOUR));
    }

    #[test]
    fn what_cannot_be_asked_is_told_and_what_is_named_twice_counts_once() {
        let now = Instant::now();
        let urls: Vec<String> =
            ["https://a/", "udp://b:1", "udp://b:1", "nonsense"].map(str::to_owned).into();
        let (trackers, refused) =
            TrackerList::new(now, [(NamedBy::User, &urls[..]), (NamedBy::Torrent, &urls[..])], 1);
        assert_eq!(order(&trackers), ["b"]);
        assert_eq!(refused.len(), 4);
        let many: Vec<String> = (0..500).map(|n| format!("udp://t{n}:1")).collect();
        let (trackers, _) = TrackerList::new(now, [(NamedBy::Torrent, &many[..])], 1);
        assert_eq!(trackers.urls().count(), TRACKERS_MAX);
        let (none, _) = TrackerList::new(now, [], 1);
        assert!(none.is_empty() && none.poll_timeout().is_none());
    }

    #[test]
    fn the_order_inside_a_tier_is_chance() {
        let now = Instant::now();
        let tiers = tiers(&[&["a", "b", "c", "d"]]);
        let firsts: std::collections::BTreeSet<String> = (0..64)
            .map(|seed: u64| {
                let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let named = tiers.iter().map(|tier| (NamedBy::Torrent, &tier[..]));
                order(&TrackerList::new(now, named, seed).0)[0].to_owned()
            })
            .collect();
        assert_eq!(firsts.len(), 4);
    }
}
