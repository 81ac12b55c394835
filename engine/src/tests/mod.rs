//! Whole engines on loopback, on the real drivers.

mod accounts;
mod blame;
mod bounds;
mod choking;
mod cold;
mod door;
mod edges;
mod hand;
mod hostile;
mod intake;
mod journal;
mod lanes;
mod leaves;
mod limits;
mod magnet;
mod metadata;
mod paths;
mod peers;
mod regressions;
mod rounds;
mod script;
mod select;
mod shards;
mod sim;
mod slow;
mod stripes;
mod transfer;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;

use crate::offline::{self, CreateOptions};
use crate::{
    AddListing, Config, Engine, Event, Identity, IoDriver, ListingId, ListingState, Place,
    WaitReason,
};

/// A loaded machine of two cores still makes it in a third of this.
const PATIENCE: Duration = Duration::from_secs(30);

/// An engine with what it told so far.
struct Node {
    engine: Engine,
    events: Receiver<Event>,
    seen: Vec<Event>,
}

impl Node {
    fn start(dir: &Path, number: u8) -> Node {
        Node::start_on(dir, number, IoDriver::Auto, |_| {})
    }

    fn start_on(
        dir: &Path,
        number: u8,
        driver: IoDriver,
        change: impl FnOnce(&mut Config),
    ) -> Node {
        let mut peer_id = *b"-RS0100-000000000000";
        peer_id[19] = number;
        let mut config = Config::new(dir.join(format!("state-{number}")), peer_id);
        config.io_driver = driver;
        config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        config.arena_len_bytes = 16 << 20;
        config.seed = Some(u64::from(number));
        change(&mut config);
        let (engine, events) = Engine::start(config).unwrap();
        Node { engine, events, seen: Vec::new() }
    }

    fn addr(&self) -> SocketAddr {
        self.engine.local_addr().unwrap()
    }

    fn seed(&self, metainfo: &Arc<Metainfo>, data: &Path) -> ListingId {
        let place = Place::InPlace(data.to_path_buf());
        let add = AddListing { known_complete: true, ..add_of(metainfo, place, &[]) };
        self.engine.add(add).unwrap()
    }

    fn fetch(&self, metainfo: &Arc<Metainfo>, into: &Path, peers: &[SocketAddr]) -> ListingId {
        self.engine.add(add_of(metainfo, Place::Owned(into.to_path_buf()), peers)).unwrap()
    }

    /// Waits for an event; what comes before it is kept in `seen`.
    fn wait(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if is_it(&event) {
                        return event;
                    }
                }
                Err(error) => {
                    panic!("no {what}: {error}; {:?}; {:?}", self.engine.status(), self.seen)
                }
            }
        }
    }

    fn wait_complete(&mut self, id: ListingId) {
        self.wait("completion", |event| matches!(event, Event::Complete { id: of } if *of == id));
    }
}

fn add_of(metainfo: &Arc<Metainfo>, place: Place, peers: &[SocketAddr]) -> AddListing {
    AddListing {
        identity: Identity::Metainfo(metainfo.clone()),
        place,
        verify_v1: true,
        known_complete: false,
        size_max_bytes: None,
        peers: peers.to_vec(),
        private_to_market: false,
    }
}

fn torrent(path: &Path, kind: Kind, piece_len_bytes: u64) -> Arc<Metainfo> {
    let piece_len_bytes = Some(piece_len_bytes);
    let options = CreateOptions { kind, piece_len_bytes, ..CreateOptions::default() };
    Arc::new(offline::create(path, &options, &|_, _| {}).unwrap().metainfo)
}
