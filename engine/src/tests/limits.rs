//! Caps on payload, in virtual time.

use super::*;
use crate::api::{Rates, Scope};
use crate::io::sim::SimConfig;
use crate::shard::command::Command;
use crate::test_support::{TestDir, noise};
use crate::testing::SimMarket;

/// Payload in bytes: long against every burst.
const LEN: usize = 6 << 20;

struct Scene {
    _dir: TestDir,
    market: SimMarket,
    metainfo: Arc<Metainfo>,
    origin: usize,
}

/// An origin with one listing of [`LEN`] bytes, and nobody else.
fn scene() -> Scene {
    let dir = TestDir::new("limits");
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("data")).unwrap();
    std::fs::write(source.join("data/long"), noise(LEN, 3)).unwrap();
    std::fs::write(source.join("data/short"), b"so that it is a folder").unwrap();
    let metainfo = torrent(&source.join("data"), Kind::V2, 64 << 10);
    let mut market = SimMarket::new(SimConfig::new(11), &dir.path().join("scratch"));
    let origin = market.add_node();
    market.place(origin, &metainfo, &source);
    let place = Place::InPlace("in place".into());
    market.add(origin, AddListing { known_complete: true, ..add_of(&metainfo, place, &[]) });
    Scene { _dir: dir, market, metainfo, origin }
}

impl Scene {
    fn fetcher(&mut self) -> (usize, ListingId) {
        let node = self.market.add_node();
        let peers = [self.market.world.addr(self.origin)];
        let add = add_of(&self.metainfo, Place::Owned("owned".into()), &peers);
        (node, self.market.add(node, add))
    }

    /// Seconds of virtual time that a fetch takes.
    fn seconds(&mut self, node: usize, id: ListingId) -> f64 {
        let start = self.market.world.now();
        assert!(
            self.market.run_until_complete(node, id, Duration::from_secs(600)),
            "it stands still"
        );
        self.market.world.now().duration_since(start).as_secs_f64()
    }
}

fn up(rate: u64) -> Rates {
    Rates { upload: Some(rate), download: None }
}

fn down(rate: u64) -> Rates {
    Rates { upload: None, download: Some(rate) }
}

/// At 1 MB/s it takes six seconds and a little, whoever caps it and on what ground.
#[test]
fn every_cap_is_kept() {
    type Capped = fn(&Scene, usize, ListingId) -> (usize, Scope, Rates);
    let caps: [(&str, Capped); 6] = [
        ("all sent", |scene, _, _| (scene.origin, Scope::All, up(1_000_000))),
        ("sent to others", |scene, _, _| (scene.origin, Scope::Others, up(1_000_000))),
        ("a listing sent", |scene, _, _| {
            (scene.origin, Scope::Listing(ListingId(1)), up(1_000_000))
        }),
        ("all received", |_, node, _| (node, Scope::All, down(1_000_000))),
        ("received of others", |_, node, _| (node, Scope::Others, down(1_000_000))),
        ("a listing received", |_, node, id| (node, Scope::Listing(id), down(1_000_000))),
    ];
    let mut scene = scene();
    let (node, id) = scene.fetcher();
    let free = scene.seconds(node, id);
    assert!(free < 2.0, "{free} s without any cap");
    for (what, cap) in caps {
        let mut scene = self::scene();
        let (node, id) = scene.fetcher();
        let (at, scope, rates) = cap(&scene, node, id);
        scene.market.set_rates(at, scope, rates);
        let seconds = scene.seconds(node, id);
        let wanted = LEN as f64 / 1e6;
        assert!(seconds > 0.9 * wanted && seconds < 1.25 * wanted, "{what}: {seconds} s");
    }
}

/// Members go at full speed beside strangers that are capped, and the other way round.
#[test]
fn a_cap_on_a_class_spares_the_other() {
    for (capped, fast_is_member) in [(Scope::Others, true), (Scope::Members, false)] {
        let mut scene = scene();
        let (one, id_one) = scene.fetcher();
        let (other, id_other) = scene.fetcher();
        let member = if fast_is_member { one } else { other };
        let members = vec![scene.market.world.addr(member).ip()];
        scene.market.command(scene.origin, Command::SetMembers(members));
        scene.market.set_rates(scene.origin, capped, up(500_000));
        let fast = scene.seconds(one, id_one);
        let slow = fast + scene.seconds(other, id_other);
        assert!(fast < 2.0 && slow > 9.0, "{capped:?}: {fast} s and {slow} s");
    }
}

/// A cap that is lifted in the middle holds nothing back any longer.
#[test]
fn caps_change_while_bytes_move() {
    for (at_origin, rates) in [(true, up(100_000)), (false, down(100_000))] {
        let mut scene = scene();
        let (node, id) = scene.fetcher();
        let capped = if at_origin { scene.origin } else { node };
        scene.market.set_rates(capped, Scope::All, rates);
        assert!(!scene.market.run_until_complete(node, id, Duration::from_secs(5)));
        let done = scene.market.status(node, id).unwrap().have_bytes;
        assert!((200_000..900_000).contains(&done), "{done} bytes in 5 s");
        scene.market.set_rates(capped, Scope::All, Rates::default());
        let rest = scene.seconds(node, id);
        assert!(rest < 2.0, "{rest} s");
    }
}
