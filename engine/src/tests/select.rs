//! Some of a torrent's files alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ringseed_core::select::{FileSelection, SelectionError};

use super::*;
use crate::EngineError;
use crate::api::ListingError;
use crate::test_support::{TestDir, noise, snapshot};

/// Five files and an empty one, so short that in v1 every piece but a few has two of them.
const FILES: [(&str, usize); 6] =
    [("a", 70_000), ("b", 5_000), ("c", 300_001), ("d", 0), ("e", 40_000), ("f", 90_000)];

struct World {
    dir: TestDir,
    metainfo: Arc<Metainfo>,
    seed: Node,
}

impl World {
    fn new(kind: Kind) -> World {
        let dir = TestDir::new("select");
        let data = dir.path().join("source/data");
        std::fs::create_dir_all(&data).unwrap();
        for (at, (name, len)) in FILES.iter().enumerate() {
            std::fs::write(data.join(name), noise(*len, at as u64)).unwrap();
        }
        let metainfo = torrent(&data, kind, 32 << 10);
        let seed = Node::start(dir.path(), 1);
        seed.seed(&metainfo, &dir.path().join("source"));
        World { dir, metainfo, seed }
    }

    fn add(&self, leech: &Node, select: &str, peers: &[SocketAddr]) -> ListingId {
        let place = Place::Owned(self.dir.path().join("into"));
        let add = add_of(&self.metainfo, place, peers);
        let select = FileSelection::parse(select).unwrap();
        leech.engine.add_selected(add, Some(select)).unwrap()
    }

    /// Files under their own names, without what lies apart.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files: BTreeMap<PathBuf, Vec<u8>> =
            snapshot(&self.dir.path().join("into")).into_iter().collect();
        files.retain(|path, _| !path.starts_with(".ringseed-parts"));
        files
    }

    #[track_caller]
    fn expect(&self, names: &[&str]) {
        let mut wanted: BTreeMap<PathBuf, Vec<u8>> =
            snapshot(&self.dir.path().join("source")).into_iter().collect();
        wanted.retain(|path, _| names.iter().any(|name| path.ends_with(name)));
        assert_eq!(wanted.len(), names.len());
        let found = self.files();
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        assert!(found == wanted, "the bytes differ");
    }
}

/// Bytes of the pieces that the files at `wanted` lie in.
fn pieces_bytes(metainfo: &Metainfo, wanted: &str) -> u64 {
    let geometry = metainfo.info().geometry();
    let wanted = FileSelection::parse(wanted).unwrap().wanted(metainfo.info()).unwrap();
    let files = geometry.files().zip(wanted).filter(|(_, wanted)| *wanted);
    let pieces: std::collections::BTreeSet<_> =
        files.flat_map(|(file, _)| geometry.pieces_of_file(file)).collect();
    pieces.into_iter().map(|piece| crate::shard::payload_of(geometry, piece)).sum()
}

#[test]
fn the_selected_files_come_and_no_others() {
    for kind in [Kind::V1, Kind::V2, Kind::Hybrid] {
        let world = World::new(kind);
        let mut leech = Node::start(world.dir.path(), 2);
        let id = world.add(&leech, "1,3-4", &[world.seed.addr()]);
        leech.wait_complete(id);
        world.expect(&["b", "d", "e"]);
        let status = leech.engine.listing_status(id).unwrap();
        let expected = pieces_bytes(&world.metainfo, "1,3-4");
        assert_eq!((status.have_bytes, status.wanted_bytes), (expected, expected), "{kind:?}");
        assert_eq!(status.state, ListingState::Seeding);
        if kind != Kind::V1 {
            assert_eq!(expected, 45_000, "nothing is shared");
            assert!(!world.dir.path().join("into/.ringseed-parts").exists());
        }
        assert_eq!(status.wasted_bytes, 0);
        if kind == Kind::V1 {
            // The end of `c` shares a piece: a hole, and one piece of room.
            use std::os::unix::fs::MetadataExt;
            let apart = world
                .dir
                .path()
                .join("into")
                .join(crate::shard::part_path(world.metainfo.info(), 2));
            let room = std::fs::metadata(apart).unwrap().blocks() * 512;
            assert!((1..=64 << 10).contains(&room), "{room}");
        }
    }
}

/// The selection is over and the process has ended; the next run knows it without asking anybody, and
/// hashes nothing again.
#[test]
fn a_selection_that_is_complete_is_complete_after_a_restart() {
    for kind in [Kind::V1, Kind::Hybrid] {
        let world = World::new(kind);
        let mut leech = Node::start(world.dir.path(), 2);
        let id = world.add(&leech, "2", &[world.seed.addr()]);
        leech.wait_complete(id);
        leech.engine.shutdown();
        drop(leech);
        let mut again = Node::start(world.dir.path(), 2);
        let id = world.add(&again, "2", &[]);
        again.wait_complete(id);
        world.expect(&["c"]);
        assert_eq!(again.engine.status().hashed_bytes, 0, "{kind:?}");
    }
}

#[test]
fn whoever_wants_more_later_gets_it_and_at_last_everything() {
    for kind in [Kind::V1, Kind::Hybrid] {
        let world = World::new(kind);
        for (select, names) in
            [("4", &["e"][..]), ("0,4", &["a", "e"]), ("0-2", &["a", "b", "c", "e"])]
        {
            let mut leech = Node::start(world.dir.path(), 2);
            let id = world.add(&leech, select, &[world.seed.addr()]);
            leech.wait_complete(id);
            leech.engine.shutdown();
            world.expect(names);
        }
        let mut leech = Node::start(world.dir.path(), 2);
        let into = world.dir.path().join("into");
        let id = leech.fetch(&world.metainfo, &into, &[world.seed.addr()]);
        leech.wait_complete(id);
        assert_eq!(snapshot(&into), snapshot(&world.dir.path().join("source")), "{kind:?}");
    }
}

/// What is there of a part is served: a second node gets it from the first alone.
#[test]
fn a_part_is_served() {
    for kind in [Kind::V1, Kind::V2] {
        let world = World::new(kind);
        let mut first = Node::start(world.dir.path(), 2);
        let id = world.add(&first, "1", &[world.seed.addr()]);
        first.wait_complete(id);
        world.seed.engine.shutdown();
        let mut second = Node::start(world.dir.path(), 3);
        let place = Place::Owned(world.dir.path().join("second"));
        let add = add_of(&world.metainfo, place, &[first.addr()]);
        let select = FileSelection::parse("1").ok();
        let id = second.engine.add_selected(add, select).unwrap();
        second.wait_complete(id);
        let found = std::fs::read(world.dir.path().join("second/data/b")).unwrap();
        assert_eq!(found, noise(5_000, 1), "{kind:?}");
    }
}

#[test]
fn a_removed_part_leaves_nothing() {
    let world = World::new(Kind::V1);
    let mut leech = Node::start(world.dir.path(), 2);
    let id = world.add(&leech, "1", &[world.seed.addr()]);
    leech.wait_complete(id);
    leech.engine.remove(id, true);
    leech.wait("removal", |event| matches!(event, Event::Removed { .. }));
    leech.engine.shutdown();
    assert!(snapshot(&world.dir.path().join("into")).is_empty());
}

#[test]
fn files_that_are_not_there_are_refused_now_or_when_the_info_dict_comes() {
    let world = World::new(Kind::Hybrid);
    let mut leech = Node::start(world.dir.path(), 2);
    let place = Place::Owned(world.dir.path().join("into"));
    let add = add_of(&world.metainfo, place, &[world.seed.addr()]);
    let select = || FileSelection::parse("2,6-9").ok();
    let expected = SelectionError::NoSuchFile { index: 6, count: 6 };
    let refused = leech.engine.add_selected(add.clone(), select()).unwrap_err();
    let EngineError::Refused(ListingError::Selection(error)) = refused else { panic!("{refused}") };
    assert_eq!(error, expected);
    let identity = Identity::V2(world.metainfo.info().info_hash_v2().unwrap());
    leech.engine.add_selected(AddListing { identity, ..add }, select()).unwrap();
    let event = leech.wait("failure", |event| matches!(event, Event::Failed { .. }));
    let Event::Failed { error: ListingError::Selection(error), .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!(error, expected);
}
