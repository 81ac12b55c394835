use std::fs;
use std::os::unix::fs::symlink;

use ringseed_core::geometry::Kind;

use super::*;
use crate::test_support::{TestDir, tree};

fn quiet(_: u64, _: u64) {}

fn options(kind: Kind) -> CreateOptions {
    CreateOptions { kind, piece_len_bytes: Some(32 << 10), ..CreateOptions::default() }
}

#[test]
fn what_was_made_of_a_folder_checks_good_in_every_kind() {
    let dir = TestDir::new("offline-create");
    tree(&dir.path().join("data"), 7);
    for kind in [Kind::V1, Kind::V2, Kind::Hybrid] {
        let created = create(&dir.path().join("data"), &options(kind), &quiet).unwrap();
        assert_eq!(created.metainfo.info().kind(), kind);
        let report = check(&created.metainfo, dir.path(), &quiet).unwrap();
        assert!(report.is_complete(), "{kind:?}: {:?}", report.pieces);
        assert_eq!(report.good_bytes, report.total_bytes);
        // The same folder gives the same torrent.
        let again = create(&dir.path().join("data"), &options(kind), &quiet).unwrap();
        assert_eq!(again.metainfo.info().raw(), created.metainfo.info().raw());
    }
}

#[test]
fn one_wrong_bit_and_one_missing_file_are_found() {
    let dir = TestDir::new("offline-damage");
    let data = dir.path().join("data");
    tree(&data, 8);
    let created = create(&data, &options(Kind::Hybrid), &quiet).unwrap();
    let big = data.join("big.bin");
    let mut bytes = fs::read(&big).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&big, bytes).unwrap();
    fs::remove_file(data.join("nested/deep/odd.bin")).unwrap();
    let report = check(&created.metainfo, dir.path(), &quiet).unwrap();
    assert_eq!(report.pieces_in(PieceState::Bad).count(), 1);
    assert!(report.pieces_in(PieceState::Missing).count() > 0);
    assert_eq!(report.bad_files, [PathBuf::from("data/nested/deep/odd.bin")]);
    assert!(!report.is_complete() && report.disagreement.is_none());
}

#[test]
fn symlinks_are_left_out_and_counted() {
    let dir = TestDir::new("offline-links");
    let data = dir.path().join("data");
    tree(&data, 9);
    symlink("/etc/passwd", data.join("link")).unwrap();
    symlink(".", data.join("loop")).unwrap();
    let created = create(&data, &options(Kind::Hybrid), &quiet).unwrap();
    assert_eq!(created.skipped, Skipped { special: 2, unreadable: 0 });
    let names = created.metainfo.info().files().map(|file| file.path().as_str().to_owned());
    assert!(names.into_iter().all(|name| !name.contains("link") && !name.contains("loop")));
}

#[test]
fn an_import_is_a_whole_copy_and_leaves_the_source_alone() {
    let dir = TestDir::new("offline-import");
    let data = dir.path().join("data");
    tree(&data, 10);
    let before = crate::test_support::snapshot(&data);
    let dest = dir.path().join("store");
    let created = create_and_import(&data, &dest, &options(Kind::Hybrid), &quiet).unwrap();
    assert!(check(&created.metainfo, &dest, &quiet).unwrap().is_complete());
    assert_eq!(crate::test_support::snapshot(&data), before);
    assert_eq!(crate::test_support::snapshot(&dest.join("data")), before);
    let again = create_and_import(&data, &dest, &options(Kind::Hybrid), &quiet);
    assert!(matches!(again, Err(OfflineError::Exists { .. })));
    assert!(
        check(&created.metainfo, &dest, &quiet).unwrap().is_complete(),
        "the refusal removed nothing"
    );
}

#[test]
fn a_single_file_is_a_torrent_by_its_own_name() {
    let dir = TestDir::new("offline-single");
    let path = dir.path().join("one.bin");
    fs::write(&path, crate::test_support::noise(300_001, 3)).unwrap();
    let created = create(&path, &options(Kind::V2), &quiet).unwrap();
    assert_eq!(created.metainfo.info().name(), "one.bin");
    assert!(check(&created.metainfo, dir.path(), &quiet).unwrap().is_complete());
}
