//! What `seed` and `get` are about, and where its peers come from: a file or a magnet link, peers by name,
//! trackers. Nothing of this is used in a market.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ringseed_core::magnet::{InfoHashes, Magnet, PeerAddr};
use ringseed_core::metainfo::Metainfo;
use ringseed_core::select::FileSelection;
use ringseed_core::tracker::tiers::NamedBy;
use ringseed_core::tracker::{SwarmCounts, TrackerUrl};
use ringseed_engine::announce::{Announced, Announcer, TrackerNews};
use ringseed_engine::{Engine, Identity, ListingId};
use serde_json::{Value, json};

use crate::cli;
use crate::error::{Code, Error, Result};
use crate::offline::read_torrent;
use crate::progress::Reporter;
use crate::units;

/// A torrent that the user asked for, by whatever names it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the engine is told.
    pub identity: Identity,
    /// The name to show.
    pub name: String,
    /// What it consists of, when that is known from the start.
    pub metainfo: Option<Arc<Metainfo>>,
    /// The files that its link selects.
    pub select: Option<FileSelection>,
    /// Peers that its link names.
    pub peers: Vec<PeerAddr>,
    /// Trackers that it names, tier by tier.
    pub tiers: Vec<Vec<String>>,
}

impl Wanted {
    /// Reads a `.torrent` file, or a magnet link where one stands in place of a path.
    ///
    /// # Errors
    /// [`Code::BadValue`] for a link that cannot be used; as [`read_torrent`] for a file.
    pub fn read(torrent: &Path, reporter: Reporter) -> Result<Wanted> {
        let text = torrent.to_str().unwrap_or_default();
        let scheme = text.split_at_checked("magnet:".len()).map(|(scheme, _)| scheme);
        match scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:")) {
            true => Wanted::from_link(text, reporter),
            false => {
                read_torrent(torrent).map(|metainfo| Wanted::from_metainfo(Arc::new(metainfo)))
            }
        }
    }

    /// A torrent whose `.torrent` file is here.
    pub fn from_metainfo(metainfo: Arc<Metainfo>) -> Wanted {
        Wanted {
            identity: Identity::Metainfo(metainfo.clone()),
            name: metainfo.info().name().to_owned(),
            select: None,
            peers: Vec::new(),
            tiers: tiers_of(&metainfo),
            metainfo: Some(metainfo),
        }
    }

    fn from_link(text: &str, reporter: Reporter) -> Result<Wanted> {
        let link = Magnet::parse(text).map_err(|error| {
            let mut why = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                why.push_str(&format!(": {source}"));
            }
            Error::new(Code::BadValue, "the magnet link cannot be used")
                .why(why)
                .cure("copy the whole link, and put it in quotes: the shell takes & for itself")
        })?;
        for part in &link.ignored {
            let text = format!("note: {} of the link is not used", printable(part));
            reporter.say("magnet-part-ignored", &text, json!({"part": part}));
        }
        let hash = link.hashes.wire_ids().last().unwrap_or_default();
        Ok(Wanted {
            identity: link.hashes.into(),
            name: link.name.map_or_else(|| units::short_hex(&hash), |name| printable(&name)),
            metainfo: None,
            select: link.select,
            peers: link.peers,
            tiers: link.trackers.into_iter().map(|url| vec![url]).collect(),
        })
    }

    /// Its names on the wire.
    pub fn wire_ids(&self) -> Vec<[u8; 20]> {
        match (&self.metainfo, self.identity.asked_hashes()) {
            (Some(metainfo), _) => metainfo.info().wire_ids().collect(),
            (None, hashes) => hashes.iter().flat_map(InfoHashes::wire_ids).collect(),
        }
    }
}

/// Text from elsewhere, fit for a terminal.
fn printable(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The trackers of a torrent: the tiers where there are any, else the lone one (BEP 12).
fn tiers_of(metainfo: &Metainfo) -> Vec<Vec<String>> {
    match metainfo.announce_tiers() {
        [] => metainfo.announce().map(|url| vec![vec![url.to_owned()]]).unwrap_or_default(),
        tiers => tiers.to_vec(),
    }
}

/// The link that names a torrent, its trackers, and where it is served if that is known.
pub fn link_of(metainfo: &Metainfo, serving: &[SocketAddr]) -> Magnet {
    let info = metainfo.info();
    let hashes = match (info.info_hash_v1(), info.info_hash_v2()) {
        (Some(v1), Some(v2)) => InfoHashes::Both(v1, v2),
        (None, Some(v2)) => InfoHashes::V2(v2),
        (v1, None) => InfoHashes::V1(v1.unwrap_or_default()),
    };
    let mut link = Magnet::new(hashes);
    link.name = Some(info.name().to_owned());
    link.trackers = tiers_of(metainfo).into_iter().flatten().collect();
    let known = serving.iter().filter(|addr| !addr.ip().is_unspecified());
    link.peers = known.map(|&addr| PeerAddr::from(addr)).collect();
    link
}

/// All addresses of peers that the user named.
///
/// # Errors
/// [`Code::Unreachable`] for a name that cannot be resolved.
pub fn resolve_named(peers: &[PeerAddr]) -> Result<Vec<SocketAddr>> {
    let mut addrs = Vec::new();
    for peer in peers {
        let found = resolve(peer).map_err(|why| {
            Error::new(Code::Unreachable, format!("cannot find the peer {peer}")).why(why)
        })?;
        addrs.extend(found);
    }
    Ok(addrs)
}

/// All addresses of peers that a link named; names that cannot be resolved are told and left out.
pub fn resolve_hinted(peers: &[PeerAddr], reporter: Reporter) -> Vec<SocketAddr> {
    let mut addrs = Vec::new();
    for peer in peers {
        match resolve(peer) {
            Ok(found) => addrs.extend(found),
            Err(why) => {
                let text = format!("note: cannot find the peer {peer}: {why}");
                reporter.say(
                    "peer-not-found",
                    &text,
                    json!({"peer": peer.to_string(), "why": why}),
                );
            }
        }
    }
    addrs
}

fn resolve(peer: &PeerAddr) -> std::result::Result<Vec<SocketAddr>, String> {
    if let Some(addr) = peer.socket_addr() {
        return Ok(vec![addr]);
    }
    let found = (peer.host(), peer.port()).to_socket_addrs().map_err(|error| error.to_string())?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
}

/// The trackers of what `seed` or `get` is doing; nothing where there are none.
pub struct Tracking {
    announcer: Option<Announcer>,
    urls: Vec<TrackerUrl>,
    reporter: Reporter,
}

impl Tracking {
    /// Nothing is asked yet. The flag that forbids trackers is obeyed.
    pub fn start(
        engine: &Engine,
        peer_id: [u8; 20],
        flags: &cli::Trackers,
        reporter: Reporter,
    ) -> Tracking {
        let told = Mutex::new(Told::default());
        let announcer = (!flags.no_trackers).then(|| {
            Announcer::new(engine.clone(), peer_id, move |news| {
                let is_new = told.lock().unwrap_or_else(PoisonError::into_inner).is_new(&news);
                if is_new || reporter.is_json() {
                    tell_news(reporter, &news);
                }
            })
        });
        Tracking { announcer, urls: flags.urls.clone(), reporter }
    }

    /// Begins to ask the trackers of a torrent: first those of the command line, then its own. What cannot
    /// be asked is told.
    pub fn add(&self, id: ListingId, wanted: &Wanted) {
        let Some(announcer) = &self.announcer else { return };
        let user = self.urls.iter().map(|url| (NamedBy::User, vec![url.to_string()]));
        let own = wanted.tiers.iter().map(|tier| (NamedBy::Torrent, tier.clone()));
        let tiers = user.chain(own).collect();
        let refused = announcer.add(Announced { id, wire_ids: wanted.wire_ids(), tiers });
        for (url, why) in refused {
            let text = format!("note: tracker {} is not asked: {why}", printable(&url));
            let fields = json!({"url": url, "why": why.to_string()});
            self.reporter.say("tracker-not-asked", &text, fields);
        }
    }

    /// Asks no more for a torrent that is not served any more, and tells its trackers.
    pub fn forget(&self, id: ListingId) {
        if let Some(announcer) = &self.announcer {
            announcer.forget(id);
        }
    }

    /// Everything of a torrent has come.
    pub fn set_completed(&self, id: ListingId) {
        if let Some(announcer) = &self.announcer {
            announcer.set_completed(id);
        }
    }

    /// Nobody is there to fetch from.
    pub fn want_peers(&self, id: ListingId) {
        if let Some(announcer) = &self.announcer {
            announcer.want_peers(id);
        }
    }

    /// Who takes part, as trackers count them; `null` while none has said.
    pub fn swarm(&self, id: ListingId) -> Value {
        let counts = self.announcer.as_ref().map(|announcer| announcer.counts(id));
        match counts.unwrap_or_default() {
            counts if counts == SwarmCounts::default() => Value::Null,
            counts => counts_json(counts),
        }
    }

    /// Tells the trackers that we leave.
    pub fn stop(self) {
        if let Some(announcer) = self.announcer {
            announcer.stop();
        }
    }
}

/// Whether a torrent has a tracker that may be asked.
pub fn has_tracker(wanted: &Wanted, flags: &cli::Trackers) -> bool {
    let is_one = |url: &String| url.parse::<TrackerUrl>().is_ok();
    !flags.no_trackers && (!flags.urls.is_empty() || wanted.tiers.iter().flatten().any(is_one))
}

fn counts_json(counts: SwarmCounts) -> Value {
    json!({"seeds": counts.seeds, "leeches": counts.leeches, "downloads": counts.downloads})
}

/// What people have been told of trackers. Of a few torrents they are told everything, and of thousands
/// when a tracker begins to say something else: two thousand times the same line helps nobody.
#[derive(Default)]
struct Told {
    torrents: BTreeSet<ListingId>,
    /// The warning or failure that each tracker named last.
    trackers: BTreeMap<String, std::result::Result<Option<String>, String>>,
}

impl Told {
    /// Torrents of which everything is told.
    const TORRENTS_MAX: usize = 4;
    /// Trackers that are remembered. Some torrents have one each, and people read no thousand lines.
    const TRACKERS_MAX: usize = 100;

    fn is_new(&mut self, news: &TrackerNews) -> bool {
        let said = news.said.as_ref().map(|said| said.warning.clone()).map_err(Clone::clone);
        let is_known = self.trackers.contains_key(&news.url);
        let is_other = (is_known || self.trackers.len() < Self::TRACKERS_MAX)
            && self.trackers.insert(news.url.clone(), said.clone()) != Some(said);
        if self.torrents.len() < Self::TORRENTS_MAX {
            self.torrents.insert(news.id);
        }
        is_other || self.torrents.contains(&news.id)
    }
}

fn tell_news(reporter: Reporter, news: &TrackerNews) {
    let url = &news.url;
    match &news.said {
        Ok(said) => {
            let count =
                |count: Option<u32>| count.map_or("?".to_owned(), |count| count.to_string());
            let text = format!(
                "tracker {url}: {}, {} seeds and {} others in the swarm{}",
                units::count(said.peers as u64, "address"),
                count(said.counts.seeds),
                count(said.counts.leeches),
                said.warning.as_ref().map(|text| format!(", says: {text}")).unwrap_or_default()
            );
            let fields = json!({
                "url": url, "peers": said.peers, "swarm": counts_json(said.counts),
                "interval_seconds": said.interval.as_secs(), "warning": said.warning,
            });
            reporter.say("tracker", &text, fields);
        }
        Err(why) => {
            let text = format!("tracker {url}: {why}");
            reporter.say("tracker-failed", &text, json!({"url": url, "why": why}));
        }
    }
}

#[cfg(test)]
mod tests {
    use ringseed_engine::announce::TrackerSaid;

    use super::*;

    /// `seed` of a folder of two thousand once said two thousand times that a tracker had answered.
    #[test]
    fn a_tracker_of_thousands_is_told_once_until_it_says_something_else() {
        let news = |id: u64, said: std::result::Result<(), &str>| {
            let answer = |()| TrackerSaid {
                peers: 0,
                counts: SwarmCounts::default(),
                interval: std::time::Duration::from_secs(1800),
                warning: None,
            };
            let said = said.map(answer).map_err(str::to_owned);
            TrackerNews { id: ListingId(id), url: "http://t/announce".to_owned(), said }
        };
        let mut told = Told::default();
        let mut count = |news: Vec<TrackerNews>| news.iter().filter(|one| told.is_new(one)).count();
        assert_eq!(count((0..2000).map(|id| news(id, Ok(()))).collect()), 4);
        assert_eq!(count((0..2000).map(|id| news(id, Err("refused"))).collect()), 4);
        assert_eq!(count((100..2000).map(|id| news(id, Ok(()))).collect()), 1, "it is back");
        assert_eq!(count(vec![news(3, Ok(())), news(4, Ok(()))]), 1, "of the few everything");
    }

    #[test]
    fn a_link_stands_where_a_path_may_stand() {
        let reporter = Reporter::new(true);
        let hash = "5a".repeat(20);
        let link =
            format!("MAGNET:?xt=urn:btih:{hash}&dn=a%1b[31mb&x.pe=[::1]:5&tr=udp://t:1&so=1");
        let wanted = Wanted::read(Path::new(&link), reporter).unwrap();
        assert!(matches!(wanted.identity, Identity::V1(hash) if hash == [0x5a; 20]));
        assert_eq!(wanted.name, "a [31mb", "no escape reaches the terminal");
        assert_eq!(wanted.wire_ids(), [[0x5a; 20]]);
        assert_eq!(wanted.tiers, [["udp://t:1"]]);
        assert_eq!(resolve_named(&wanted.peers).unwrap(), ["[::1]:5".parse().unwrap()]);
        assert_eq!(wanted.select.unwrap().to_string(), "1");
        let missing = Wanted::read(Path::new("/no/such/file"), reporter).unwrap_err();
        assert_eq!(missing.code, Code::Missing);
    }

    #[test]
    fn a_bad_link_is_a_bad_value_with_its_reason() {
        for link in
            ["magnet:", "magnet:?dn=x", "magnet:?xt=urn:btih:zz", "magnet:?xt=urn:btih:5a&so=x"]
        {
            let error = Wanted::read(Path::new(link), Reporter::new(true)).unwrap_err();
            assert_eq!(error.code, Code::BadValue, "{link}");
            assert!(error.why.is_some() && error.cure.is_some());
        }
        let so = format!("magnet:?xt=urn:btih:{}&so=9-1", "5a".repeat(20));
        let error = Wanted::read(Path::new(&so), Reporter::new(true)).unwrap_err();
        assert!(error.why.unwrap().contains("9-1 ends before it begins"));
    }

    #[test]
    fn a_name_stands_for_all_its_addresses_and_a_wrong_one_says_so() {
        let peers: Vec<PeerAddr> = vec!["localhost:7".parse().unwrap()];
        let found = resolve_named(&peers).unwrap();
        assert!(!found.is_empty() && found.iter().all(|addr| addr.ip().is_loopback()));
        // RFC 6761: this name never exists.
        let wrong: Vec<PeerAddr> = vec!["no.such.host.invalid:7".parse().unwrap()];
        assert_eq!(resolve_named(&wrong).unwrap_err().code, Code::Unreachable);
        assert!(resolve_hinted(&wrong, Reporter::new(true)).is_empty());
    }
}
