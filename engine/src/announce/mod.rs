//! Asking trackers, on threads of its own: names are resolved and answers waited for here, never inside a
//! shard's turn. What is decided lies in [`ringseed_core::tracker`].
//!
//! Only `seed` and `get` start one, for torrents that a user asked for by name. A datatrust never does:
//! in a market no URL is ever fetched, and peers are those of the ledger.
//!
//! A torrent is announced by each of its names on the wire, over each family that the tracker's name
//! resolves to (BEP 7), so that peers of either view and family find it.

mod http;
mod transport;
mod udp;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringseed_core::tracker::tiers::{Ask, NamedBy, TrackerList};
use ringseed_core::tracker::{
    AnnounceEvent, AnnounceRequest, INTERVAL_MAX, PEERS_WANTED, SwarmCounts, UrlError, may_lead_to,
};

use crate::api::ListingId;
use crate::handle::Engine;
use transport::{Asked, Gate};

/// Threads that ask, at most; torrents beyond them wait their turn.
const WORKERS_MAX: usize = 8;
/// Time for telling trackers that we leave: a person waits for the process to end.
const LEAVE_MAX: Duration = Duration::from_secs(3);
/// Trackers that wait to be told of torrents that are served no more; what goes beyond it is not told, and
/// forgotten by its trackers for its silence.
const LEAVING_MAX: usize = 4096;
/// What is said to be missing while nobody knows how much there is: anything but 0, which means a seed.
const LEFT_UNKNOWN: u64 = 16 << 10;
/// The port that is announced when nobody can connect to us. Trackers refuse 0.
const PORT_NONE: u16 = 1;

/// A torrent to be announced.
#[derive(Clone, Debug)]
pub struct Announced {
    /// The listing that peers are found for.
    pub id: ListingId,
    /// Its names on the wire.
    pub wire_ids: Vec<[u8; 20]>,
    /// Trackers, tier by tier, with who named them.
    pub tiers: Vec<(NamedBy, Vec<String>)>,
}

/// What a tracker has said, for people.
#[derive(Clone, Debug)]
pub struct TrackerNews {
    /// Which torrent.
    pub id: ListingId,
    /// The tracker.
    pub url: String,
    /// What came of it.
    pub said: Result<TrackerSaid, String>,
}

/// An answer, for people.
#[derive(Clone, Debug)]
pub struct TrackerSaid {
    /// Peers in it that may be dialled.
    pub peers: usize,
    /// Who takes part, as the tracker counts them.
    pub counts: SwarmCounts,
    /// When it is asked again.
    pub interval: Duration,
    /// What the tracker wants read.
    pub warning: Option<String>,
}

/// Announces torrents until it is stopped.
pub struct Announcer {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    peer_id: [u8; 20],
    key: u32,
    state: Mutex<State>,
    wake: Condvar,
    is_stopping: AtomicBool,
    tell: Box<dyn Fn(TrackerNews) + Send + Sync>,
}

#[derive(Default)]
struct State {
    torrents: BTreeMap<ListingId, Torrent>,
    /// When each torrent that is not being asked for is next.
    due: BTreeSet<(Instant, ListingId)>,
    /// Whom to tell that a torrent is served no more.
    leaving: VecDeque<Leaving>,
    /// The torrent of which one is being told: one at a time, so that a folder that is emptied keeps
    /// nobody from asking.
    leaving_now: Option<ListingId>,
    workers: usize,
}

struct Torrent {
    wire_ids: Vec<[u8; 20]>,
    list: TrackerList,
    due_at: Option<Instant>,
    gate: Gate,
    counts: SwarmCounts,
    /// Forgotten while a tracker is being asked: it is told when it has answered, not before.
    is_gone: bool,
}

/// A tracker that is to hear that we leave.
struct Leaving {
    id: ListingId,
    wire_ids: Vec<[u8; 20]>,
    gate: Gate,
    ask: Ask,
    request: AnnounceRequest,
}

impl Announcer {
    /// One that has nothing to announce yet. `tell` is called from threads of its own.
    pub fn new(
        engine: Engine,
        peer_id: [u8; 20],
        tell: impl Fn(TrackerNews) + Send + Sync + 'static,
    ) -> Announcer {
        let inner = Inner {
            engine,
            peer_id,
            key: random() as u32,
            state: Mutex::default(),
            wake: Condvar::new(),
            is_stopping: AtomicBool::new(false),
            tell: Box::new(tell),
        };
        Announcer { inner: Arc::new(inner) }
    }

    /// Begins to announce a torrent. What comes back cannot be asked, and why; the rest is.
    pub fn add(&self, torrent: Announced) -> Vec<(String, UrlError)> {
        let now = Instant::now();
        let tiers = torrent.tiers.iter().map(|(named_by, urls)| (*named_by, &urls[..]));
        let (list, refused) = TrackerList::new(now, tiers, random());
        if list.is_empty() {
            return refused;
        }
        let wire_ids = torrent.wire_ids;
        let (gate, counts) = (Gate::default(), SwarmCounts::default());
        let made = Torrent { wire_ids, list, due_at: None, gate, counts, is_gone: false };
        let mut state = self.inner.lock();
        // It has come back before anybody heard that it went.
        state.leaving.retain(|leaving| leaving.id != torrent.id);
        state.torrents.insert(torrent.id, made);
        state.reschedule(torrent.id);
        if state.workers < WORKERS_MAX.min(state.torrents.len()) {
            state.workers += 1;
            let inner = self.inner.clone();
            let builder = std::thread::Builder::new().name("ringseed-track".to_owned());
            if let Err(error) = builder.spawn(move || inner.work()) {
                tracing::warn!(%error, "no thread for trackers");
                state.workers -= 1;
            }
        }
        drop(state);
        self.inner.wake.notify_all();
        refused
    }

    /// Asks no more for a torrent, and tells those of its trackers that know us, in their turn. To be
    /// called before the engine forgets it: they are told what it has sent.
    pub fn forget(&self, id: ListingId) {
        let mut state = self.inner.lock();
        let Some(torrent) = state.torrents.get_mut(&id) else { return };
        if let Some(at) = torrent.due_at.take() {
            state.due.remove(&(at, id));
        }
        let Some(torrent) = state.torrents.get_mut(&id) else { return };
        torrent.is_gone = true;
        if !torrent.list.is_asking() {
            self.inner.leave(&mut state, id);
        }
    }

    /// What was missing has come: the tracker is told at once.
    pub fn set_completed(&self, id: ListingId) {
        self.inner.change(id, |list| list.set_completed(Instant::now()));
    }

    /// There is nobody to fetch from: trackers are asked as early as they allow.
    pub fn want_peers(&self, id: ListingId) {
        self.inner.change(id, TrackerList::want_peers);
    }

    /// Who takes part, by what trackers said last.
    pub fn counts(&self, id: ListingId) -> SwarmCounts {
        self.inner.lock().torrents.get(&id).map_or(SwarmCounts::default(), |torrent| torrent.counts)
    }

    /// Stops asking, and tells every tracker that knows us that we leave; waits three seconds at most.
    pub fn stop(&self) {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
        self.inner.wake.notify_all();
        let until = Instant::now() + LEAVE_MAX;
        let mut state = self.inner.lock();
        state.due.clear();
        let mut leaving: Vec<Leaving> = state.leaving.drain(..).collect();
        let torrents = std::mem::take(&mut state.torrents);
        drop(state);
        for (id, torrent) in torrents {
            leaving.extend(self.inner.leaving(id, torrent));
        }
        let count = leaving.len();
        let (told, done) = channel();
        let queue = Arc::new(Mutex::new(leaving));
        for _ in 0..count.min(WORKERS_MAX) {
            let (inner, queue, told) = (self.inner.clone(), queue.clone(), told.clone());
            // A thread that cannot be had, or does not end in time, is a tracker that learns of our leave
            // by our silence.
            let _ =
                std::thread::Builder::new().name("ringseed-leave".to_owned()).spawn(move || {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let Some(leaving) = next else { return };
                        let _ = told.send(inner.tell_leaving(leaving, until));
                    }
                });
        }
        drop(told);
        for _ in 0..count {
            let left = until.saturating_duration_since(Instant::now());
            if done.recv_timeout(left).is_err() {
                return;
            }
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
        self.inner.wake.notify_all();
    }
}

impl State {
    /// Enters a torrent at the time when it wants to be asked for.
    fn reschedule(&mut self, id: ListingId) {
        let Some(torrent) = self.torrents.get_mut(&id) else { return };
        if let Some(at) = torrent.due_at.take() {
            self.due.remove(&(at, id));
        }
        torrent.due_at = torrent.list.poll_timeout();
        if let Some(at) = torrent.due_at {
            self.due.insert((at, id));
        }
    }

    /// Enters a torrent at `at`, and not before.
    fn put_off(&mut self, id: ListingId, at: Instant) {
        let Some(torrent) = self.torrents.get_mut(&id) else { return };
        if let Some(before) = torrent.due_at.replace(at) {
            self.due.remove(&(before, id));
        }
        self.due.insert((at, id));
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it left whole values behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: ListingId, change: impl FnOnce(&mut TrackerList)) {
        let mut state = self.lock();
        if let Some(torrent) = state.torrents.get_mut(&id) {
            change(&mut torrent.list);
            state.reschedule(id);
            self.wake.notify_one();
        }
    }

    /// One worker: whatever is due, until it is stopped.
    fn work(&self) {
        let mut state = self.lock();
        while !self.is_stopping.load(Ordering::Relaxed) {
            let now = Instant::now();
            if state.leaving_now.is_none()
                && let Some(leaving) = state.leaving.pop_front()
            {
                state.leaving_now = Some(leaving.id);
                drop(state);
                self.tell_leaving(leaving, Instant::now() + LEAVE_MAX);
                state = self.lock();
                state.leaving_now = None;
                continue;
            }
            let wait = match state.due.first() {
                // It has come back while a tracker hears that it went: one after the other.
                Some(&(at, id)) if at <= now && state.leaving_now == Some(id) => {
                    state.put_off(id, now + LEAVE_MAX / 10);
                    continue;
                }
                Some(&(at, id)) if at <= now => {
                    let is_crowded = state.torrents.len() > WORKERS_MAX;
                    let Some(torrent) = state.torrents.get_mut(&id) else {
                        state.due.pop_first();
                        continue;
                    };
                    let asked = torrent.list.poll(now);
                    let wire_ids = torrent.wire_ids.clone();
                    let mut gate = torrent.gate.clone();
                    state.reschedule(id);
                    let Some(ask) = asked else { continue };
                    drop(state);
                    // With others to ask, nobody is waited for long; alone, the specification's hour.
                    let tries = if ask.has_others {
                        2
                    } else if is_crowded {
                        4
                    } else {
                        9
                    };
                    let until = Instant::now() + INTERVAL_MAX;
                    let stop = &self.is_stopping;
                    let said = self.ask(id, &wire_ids, &mut gate, &ask, until, stop, tries);
                    state = self.lock();
                    self.take_in(&mut state, id, &ask, gate, said);
                    continue;
                }
                Some(&(at, _)) => at - now,
                None => INTERVAL_MAX,
            };
            let waited = self.wake.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What came of asking a tracker.
    fn take_in(
        &self,
        state: &mut State,
        id: ListingId,
        ask: &Ask,
        gate: Gate,
        said: Result<Asked, String>,
    ) {
        let now = Instant::now();
        let Some(torrent) = state.torrents.get_mut(&id) else { return };
        torrent.gate = gate;
        let url = ask.url.to_string();
        let said = match said {
            Ok(asked) => {
                torrent.list.handle_answer(now, ask, asked.interval, asked.interval_min);
                torrent.counts = asked.counts.or(torrent.counts);
                let peers = asked.peers.len();
                tracing::debug!(url, peers, ?ask.event, "tracker answered");
                if !torrent.is_gone {
                    self.engine.add_found_peers(id, asked.peers);
                }
                let Asked { interval, warning, .. } = asked;
                Ok(TrackerSaid { peers, counts: torrent.counts, interval, warning })
            }
            Err(error) => {
                torrent.list.handle_failure(now, ask);
                tracing::debug!(url, error, "tracker failed");
                Err(error)
            }
        };
        if torrent.is_gone {
            self.leave(state, id);
            return;
        }
        state.reschedule(id);
        if !self.is_stopping.load(Ordering::Relaxed) {
            (self.tell)(TrackerNews { id, url, said });
        }
    }

    /// Takes a torrent out, and its trackers that know us into the queue of those to be told.
    fn leave(&self, state: &mut State, id: ListingId) {
        let Some(torrent) = state.torrents.remove(&id) else { return };
        let room = LEAVING_MAX.saturating_sub(state.leaving.len());
        state.leaving.extend(self.leaving(id, torrent).take(room));
        self.wake.notify_one();
    }

    /// Whom to tell that a torrent is served no more, and what.
    fn leaving(&self, id: ListingId, mut torrent: Torrent) -> impl Iterator<Item = Leaving> {
        let asks = torrent.list.stop();
        let request = (!asks.is_empty()).then(|| self.request(id, AnnounceEvent::Stopped));
        asks.into_iter().zip(request.into_iter().cycle()).map(move |(ask, request)| {
            let (wire_ids, gate) = (torrent.wire_ids.clone(), torrent.gate.clone());
            Leaving { id, wire_ids, gate, ask, request }
        })
    }

    /// Tells one tracker that we leave, once; whether it has heard it.
    fn tell_leaving(&self, mut leaving: Leaving, until: Instant) -> bool {
        let never = AtomicBool::new(false);
        let port_of = |is_v4| port_of(self.engine.local_addrs(), is_v4);
        let Leaving { wire_ids, gate, ask, request, .. } = &mut leaving;
        let told = gate.ask(ask, wire_ids, request, &port_of, until, &never, 1);
        told.is_ok()
    }

    /// Announces at one tracker, by every name and over every family.
    #[allow(clippy::too_many_arguments)] // one call, all of them named where it is made
    fn ask(
        &self,
        id: ListingId,
        wire_ids: &[[u8; 20]],
        gate: &mut Gate,
        ask: &Ask,
        until: Instant,
        stop: &AtomicBool,
        tries: u32,
    ) -> Result<Asked, String> {
        let request = self.request(id, ask.event);
        let port_of = |is_v4| port_of(self.engine.local_addrs(), is_v4);
        let asked = gate.ask(ask, wire_ids, &request, &port_of, until, stop, tries)?;
        Ok(asked)
    }

    fn request(&self, id: ListingId, event: AnnounceEvent) -> AnnounceRequest {
        let status = self.engine.listing_status(id);
        let status = status.as_ref();
        let left = status.map(|status| match status.total_bytes {
            0 => LEFT_UNKNOWN,
            total => total.saturating_sub(status.have_bytes),
        });
        let from = |status: &crate::ListingStatus| {
            status.sources.iter().map(|source| source.verified_bytes).sum::<u64>()
                + status.wasted_bytes
        };
        let is_leaving = event == AnnounceEvent::Stopped;
        AnnounceRequest {
            wire_id: [0; 20],
            peer_id: self.peer_id,
            port: PORT_NONE,
            uploaded_bytes: status.map_or(0, |status| status.sent_bytes),
            downloaded_bytes: status.map_or(0, from),
            left_bytes: left.unwrap_or(LEFT_UNKNOWN),
            event,
            key: self.key,
            wanted: if is_leaving || left == Some(0) { 0 } else { PEERS_WANTED },
        }
    }
}

/// The port by which peers of a family reach us: of a listener of that family (one on `[::]` has both),
/// else of any, else none.
fn port_of(listening: &[SocketAddr], is_v4: bool) -> u16 {
    let takes = |addr: &&SocketAddr| {
        addr.is_ipv4() == is_v4 || addr.ip().is_unspecified() && addr.is_ipv6()
    };
    let exact = listening.iter().find(|addr| addr.is_ipv4() == is_v4);
    let any = exact.or_else(|| listening.iter().find(takes)).or_else(|| listening.first());
    any.map_or(PORT_NONE, SocketAddr::port)
}

/// Addresses of an answer that a tracker at `from` may send us to.
fn allowed(from: SocketAddr, peers: Vec<SocketAddr>) -> impl Iterator<Item = SocketAddr> {
    peers.into_iter().filter(move |peer| may_lead_to(from.ip(), peer.ip()))
}

/// Chance enough for transaction numbers: the standard library keys its hash maps with it.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_that_of_the_family() {
        let addrs = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let both = addrs(&["[2001:db8::1]:6", "1.2.3.4:4"]);
        assert_eq!((port_of(&both, true), port_of(&both, false)), (4, 6));
        let dual = addrs(&["[::]:7"]);
        assert_eq!((port_of(&dual, true), port_of(&dual, false)), (7, 7));
        assert_eq!(port_of(&addrs(&["1.2.3.4:4"]), false), 4);
        assert_eq!(port_of(&[], true), PORT_NONE);
    }
}
