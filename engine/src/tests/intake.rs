//! Many listings added at once.

use super::*;
use crate::EngineError;
use crate::api::ListingError;
use crate::test_support::{TestDir, noise};

/// Each of several is answered in its place: refused ones do not keep out the others, ids are those that
/// the events name, and what the journal holds of them is there after a restart.
#[test]
fn several_are_added_together_and_each_has_its_own_answer() {
    let dir = TestDir::new("intake");
    let source = dir.path().join("source");
    let torrents: Vec<Arc<Metainfo>> = (0..40)
        .map(|number| {
            let path = source.join(format!("file-{number}"));
            std::fs::create_dir_all(&source).unwrap();
            std::fs::write(&path, noise(20_000 + number as usize, number)).unwrap();
            torrent(&path, [Kind::V1, Kind::V2, Kind::Hybrid][number as usize % 3], 16 << 10)
        })
        .collect();
    let adds = |range: std::ops::Range<usize>| -> Vec<AddListing> {
        let add = |metainfo| add_of(metainfo, Place::InPlace(source.clone()), &[]);
        torrents[range].iter().map(add).collect()
    };
    let mut node = Node::start(dir.path(), 1);
    assert!(node.engine.add_all(Vec::new()).is_empty());
    let mut wanted = adds(0..40);
    wanted[7].size_max_bytes = Some(5);
    wanted[8].place = Place::InPlace(dir.path().join("nowhere"));
    wanted.push(wanted[3].clone());
    let results = node.engine.add_all(wanted);
    assert_eq!(results.len(), 41);
    let too_large = ListingError::TooLarge { size_bytes: 20_007, size_max_bytes: 5 };
    assert!(matches!(&results[7], Err(EngineError::Refused(error)) if *error == too_large));
    assert!(matches!(&results[8], Err(EngineError::Io { .. })), "{:?}", results[8]);
    let first = *results[3].as_ref().unwrap();
    assert!(matches!(results[40], Err(EngineError::Exists { id }) if id == first));
    let mut ids: Vec<ListingId> = results.into_iter().filter_map(Result::ok).collect();
    assert_eq!(ids.len(), 38);
    for _ in 0..38 {
        let event = node.wait("completion", |event| matches!(event, Event::Complete { .. }));
        let Event::Complete { id } = event else { unreachable!() };
        let at = ids.iter().position(|of| *of == id).expect("an id that was given, once");
        ids.swap_remove(at);
        let metainfo = node.engine.metainfo(id).expect("it is there");
        let total_bytes = node.engine.listing_status(id).unwrap().total_bytes;
        assert_eq!(total_bytes, metainfo.info().geometry().payload_len());
    }
    let hashed = node.engine.status().hashed_bytes;
    assert!(hashed > 0);
    node.engine.shutdown();
    drop(node);

    let mut node = Node::start(dir.path(), 1);
    assert!(node.engine.add_all(adds(0..40)).iter().all(Result::is_ok));
    for _ in 0..40 {
        node.wait("completion", |event| matches!(event, Event::Complete { .. }));
    }
    let again = node.engine.status().hashed_bytes;
    assert!(again < hashed / 10, "{again} bytes hashed again, of the two that were new alone");
    node.engine.shutdown();
    let after = node.engine.add_all(adds(0..2));
    assert!(after.iter().all(|result| matches!(result, Err(EngineError::Stopped))), "{after:?}");
}

/// The answers of several shards come back in the order of the question, and a batch is dealt out evenly.
/// All of it went to the shard that had one listing less.
#[test]
fn a_batch_is_dealt_out_over_shards_and_answered_in_order() {
    let dir = TestDir::new("intake");
    let source = dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    let torrents: Vec<Arc<Metainfo>> = (0..16)
        .map(|number| {
            let path = source.join(format!("file-{number}"));
            std::fs::write(&path, noise(20_000, number)).unwrap();
            torrent(&path, Kind::Hybrid, 16 << 10)
        })
        .collect();
    let node = Node::start_on(dir.path(), 1, IoDriver::Auto, |config| {
        config.shards = Some(3);
        config.arena_len_bytes = 48 << 20;
    });
    let there = node.seed(&torrents[5], &source);
    let add = |metainfo| add_of(metainfo, Place::InPlace(source.clone()), &[]);
    let mut wanted: Vec<AddListing> = torrents.iter().map(add).collect();
    wanted[9].size_max_bytes = Some(5);
    wanted.push(wanted[2].clone());
    let results = node.engine.add_all(wanted);
    assert_eq!(results.len(), 17);
    assert!(matches!(results[5], Err(EngineError::Exists { id }) if id == there));
    assert!(matches!(&results[9], Err(EngineError::Refused(_))), "{:?}", results[9]);
    let first = *results[2].as_ref().unwrap();
    assert!(matches!(results[16], Err(EngineError::Exists { id }) if id == first));
    for (at, result) in results.iter().enumerate().take(16) {
        if let Ok(id) = result {
            let metainfo = node.engine.metainfo(*id).expect("it is there");
            assert_eq!(metainfo.info().name(), format!("file-{at}"));
        } else {
            assert!(at == 5 || at == 9, "{at}: {result:?}");
        }
    }
    let each: Vec<u64> = node.engine.status().shards.iter().map(|shard| shard.listings).collect();
    assert_eq!(each, [5, 5, 5]);
}

/// Data that is not in the user's folder at all was taken for a download, and a peer's bytes were written
/// there; a `seed` of it waited for ever. It fails, as data that is there in part does.
#[test]
fn nothing_is_fetched_into_a_folder_of_the_user() {
    let dir = TestDir::new("intake");
    let (source, empty) = (dir.path().join("source"), dir.path().join("empty"));
    std::fs::create_dir_all(&source).unwrap();
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(source.join("file"), noise(100_000, 1)).unwrap();
    let metainfo = torrent(&source.join("file"), Kind::Hybrid, 16 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.seed(&metainfo, &source);
    let mut node = Node::start(dir.path(), 2);
    let add = add_of(&metainfo, Place::InPlace(empty.clone()), &[seed.addr()]);
    let id = node.engine.add(add).unwrap();
    let error = ListingError::IncompleteInPlace { missing_pieces: 7, piece_count: 7 };
    node.wait(
        "its end",
        |event| matches!(event, Event::Failed { id: of, error: e } if *of == id && *e == error),
    );
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
}
