//! What a machine may rely on with files.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::*;
use crate::io::{FileId, OpenMode};

fn open(bench: &mut Bench, path: &str, mode: OpenMode) -> std::io::Result<(FileId, u64)> {
    let (root, path) = (bench.rig.root(0), PathBuf::from(path));
    match bench.run(0, |id| Op::Open { id, root, path, mode, direct: true }) {
        Done::Opened(result) => result,
        other => panic!("{other:?}"),
    }
}

fn read(
    bench: &mut Bench,
    file: FileId,
    offset_bytes: u64,
    len: usize,
) -> std::io::Result<Vec<u8>> {
    let buf = bench.rig.arena().try_take().unwrap();
    match bench.run(0, |id| Op::Read { id, file, offset_bytes, buf, start: 0, len }) {
        Done::Read(Ok((n, _)), buf) => Ok(buf[..n].to_vec()),
        Done::Read(Err(error), _) => Err(error),
        other => panic!("{other:?}"),
    }
}

pub fn odd_stretches_read_back(bench: &mut Bench) {
    const LEN: usize = 700_001;
    let (file, len_bytes) = open(bench, "set/data.bin", OpenMode::Write).unwrap();
    assert_eq!(len_bytes, 0);
    let done = bench.run(0, |id| Op::Allocate { id, file, len_bytes: LEN as u64 });
    assert!(matches!(done, Done::Allocated(Ok(()))));
    let mut data = vec![0; LEN];
    pattern(3, 0, &mut data);
    // All in flight at once: edges that share a page with a neighbour must not undo each other.
    let mut at = 0;
    let mut ids = Vec::new();
    for len in [4096, 1, 262_000, 5000, 8192, 250_712, 150_000, 20_000] {
        let mut extent = bench.rig.arena().try_take().unwrap();
        // Where the address agrees with the offset, the interior can go direct.
        let start = (at % 4096).min(EXTENT_LEN_BYTES - len);
        extent[start..start + len].copy_from_slice(&data[at..at + len]);
        let (buf, offset_bytes) = (extent.freeze(), at as u64);
        ids.push(bench.start(0, |id| Op::Write { id, file, offset_bytes, buf, start, len }));
        at += len;
    }
    assert_eq!(at, LEN);
    for id in ids {
        let done = bench.wait(0, id);
        assert!(matches!(done, Done::Written(Ok(()), _)), "{done:?}");
    }
    assert!(matches!(bench.run(0, |id| Op::Sync { id, file }), Done::Synced(Ok(()))));
    assert!(matches!(bench.run(0, |id| Op::Sync { id, file }), Done::Synced(Ok(()))));
    bench.rig.push(0, Op::CloseFile { file });
    let (file, len_bytes) = open(bench, "set/data.bin", OpenMode::Read).unwrap();
    assert_eq!(len_bytes, LEN as u64);
    for (offset, len) in
        [(0, EXTENT_LEN_BYTES), (524_288, EXTENT_LEN_BYTES), (4097, 100_000), (LEN, 10)]
    {
        let got = read(bench, file, offset as u64, len).unwrap();
        assert!(got == data[offset..LEN.min(offset + len)], "{offset} {len}");
    }
    // A read touches nothing but its range.
    let mut buf = bench.rig.arena().try_take().unwrap();
    buf.fill(9);
    let (start, len, offset_bytes) = (8192, 175_713, 524_288);
    let done = bench.run(0, |id| Op::Read { id, file, offset_bytes, buf, start, len });
    let Done::Read(Ok((n, _)), buf) = done else { panic!("{done:?}") };
    assert_eq!(n, len);
    assert!(buf[start..start + len] == data[524_288..]);
    assert!(buf[..start].iter().chain(&buf[start + len..]).all(|&byte| byte == 9));
    bench.rig.push(0, Op::CloseFile { file });
}

pub fn errors_are_told_and_give_buffers_back(bench: &mut Bench) {
    let missing = open(bench, "no/such", OpenMode::Read).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    for bad in ["../out", "/etc/passwd", ""] {
        for mode in [OpenMode::Read, OpenMode::Write] {
            let error = open(bench, bad, mode).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
    let (file, _) = open(bench, "f", OpenMode::Write).unwrap();
    let buf = bench.rig.arena().try_take().unwrap();
    let (start, len) = (EXTENT_LEN_BYTES - 10, 11);
    let done = bench.run(0, |id| Op::Read { id, file, offset_bytes: 0, buf, start, len });
    let Done::Read(Err(error), buf) = done else { panic!("{done:?}") };
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let buf = buf.freeze();
    let done = bench.run(0, |id| Op::Write { id, file, offset_bytes: 0, buf, start, len });
    let Done::Written(Err(error), buf) = done else { panic!("{done:?}") };
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    bench.rig.push(0, Op::CloseFile { file });
    let canceled = Some(rustix::io::Errno::CANCELED.raw_os_error());
    let done = bench.run(0, |id| Op::Write { id, file, offset_bytes: 0, buf, start: 0, len: 1 });
    assert!(matches!(done, Done::Written(Err(e), _) if e.raw_os_error() == canceled));
    let done = bench.run(0, |id| Op::Sync { id, file });
    assert!(matches!(done, Done::Synced(Err(e)) if e.raw_os_error() == canceled));
}

pub fn trees_are_removed_and_files_closed(bench: &mut Bench) {
    let (file, _) = open(bench, "t/deep/file", OpenMode::Write).unwrap();
    let mut extent = bench.rig.arena().try_take().unwrap();
    extent.fill(6);
    let (buf, len) = (extent.freeze(), 65_536);
    let done = bench.run(0, |id| Op::Write { id, file, offset_bytes: 0, buf, start: 0, len });
    assert!(matches!(done, Done::Written(Ok(()), _)));
    assert!(matches!(bench.run(0, |id| Op::Sync { id, file }), Done::Synced(Ok(()))));
    let (other, _) = open(bench, "t2/file", OpenMode::Write).unwrap();
    bench.rig.push(0, Op::CloseFile { file: other });
    let (root, path) = (bench.rig.root(0), PathBuf::from("t"));
    let done = bench.run(0, |id| Op::RemoveTree { id, root, path });
    assert!(matches!(done, Done::Removed(Ok(freed)) if freed >= 65_536), "{done:?}");
    // An open file outlives its name.
    assert_eq!(read(bench, file, 0, 10).unwrap(), [6; 10]);
    bench.rig.push(0, Op::CloseFile { file });
    assert_eq!(open(bench, "t/deep/file", OpenMode::Read).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(open(bench, "t2/file", OpenMode::Read).is_ok());
    let (root, path) = (bench.rig.root(0), PathBuf::from("t"));
    let done = bench.run(0, |id| Op::RemoveTree { id, root, path });
    assert!(matches!(done, Done::Removed(Ok(0))), "nothing there is no error: {done:?}");
}

pub fn small_writes_append_and_overwrite(bench: &mut Bench) {
    let (file, _) = open(bench, "journal", OpenMode::Write).unwrap();
    let mut expected = Vec::new();
    for round in 0..20u8 {
        let data = vec![round; 7 * (usize::from(round) + 1)];
        let offset_bytes = expected.len() as u64;
        expected.extend_from_slice(&data);
        let done = bench.run(0, |id| Op::WriteSmall { id, file, rows: vec![(offset_bytes, data)] });
        assert!(matches!(done, Done::SmallWritten(Ok(()))));
        assert!(matches!(bench.run(0, |id| Op::Sync { id, file }), Done::Synced(Ok(()))));
    }
    expected[3..6].copy_from_slice(b"new");
    expected[40..45].copy_from_slice(b"later");
    let rows = vec![(3, b"new".to_vec()), (40, b"later".to_vec())];
    let done = bench.run(0, |id| Op::WriteSmall { id, file, rows });
    assert!(matches!(done, Done::SmallWritten(Ok(()))));
    let len = expected.len();
    assert_eq!(read(bench, file, 0, len + 50).unwrap(), expected);
    bench.rig.push(0, Op::CloseFile { file });
}

fn put(
    bench: &mut Bench,
    path: &str,
    len_bytes: u64,
    offset_bytes: u64,
    (seed, start, len): (u64, usize, usize),
) -> std::io::Result<FileId> {
    let (root, path) = (bench.rig.root(0), PathBuf::from(path));
    let mut buf = bench.rig.arena().try_take().unwrap();
    if start + len <= EXTENT_LEN_BYTES {
        pattern(seed, 0, &mut buf[start..start + len]);
    }
    let (buf, mode) = (buf.freeze(), OpenMode::Write);
    let direct = true;
    let op =
        |id| Op::Put { id, root, path, mode, direct, len_bytes, offset_bytes, buf, start, len };
    match bench.run(0, op) {
        Done::Put(result, _) => result,
        other => panic!("{other:?}"),
    }
}

pub fn short_files_are_put(bench: &mut Bench) {
    let mut whole = vec![0; 1000];
    pattern(1, 0, &mut whole);
    // Whole at once, in folders that are made for it, from somewhere in the buffer.
    let file = put(bench, "p/deep/whole", 1000, 0, (1, 77, 1000)).unwrap();
    assert_eq!(read(bench, file, 0, 2000).unwrap(), whole);
    assert!(matches!(bench.run(0, |id| Op::Sync { id, file }), Done::Synced(Ok(()))));
    bench.rig.push(0, Op::CloseFile { file });
    let (file, len_bytes) = open(bench, "p/deep/whole", OpenMode::Read).unwrap();
    assert_eq!(len_bytes, 1000);
    bench.rig.push(0, Op::CloseFile { file });
    // Over what a former run left: no byte of it stays behind the end, none before a part is touched.
    let file = put(bench, "p/deep/whole", 300, 100, (2, 0, 200)).unwrap();
    pattern(2, 0, &mut whole[100..300]);
    assert_eq!(read(bench, file, 0, 2000).unwrap(), whole[..300]);
    bench.rig.push(0, Op::CloseFile { file });
    // A part of a new one has its whole length at once, and the rest comes as any write does.
    let file = put(bench, "p/part", 5000, 4000, (3, 0, 1000)).unwrap();
    let mut expected = vec![0; 5000];
    pattern(3, 0, &mut expected[4000..]);
    assert_eq!(read(bench, file, 0, 9000).unwrap(), expected);
    let mut extent = bench.rig.arena().try_take().unwrap();
    pattern(4, 0, &mut extent[..4000]);
    pattern(4, 0, &mut expected[..4000]);
    let (buf, len) = (extent.freeze(), 4000);
    let done = bench.run(0, |id| Op::Write { id, file, offset_bytes: 0, buf, start: 0, len });
    assert!(matches!(done, Done::Written(Ok(()), _)));
    assert_eq!(read(bench, file, 0, 9000).unwrap(), expected);
    // One so long that most of it may go past the page cache, from memory that suits that and from other.
    for (path, start) in [("p/long-0", 0), ("p/long-5", 5)] {
        let mut expected = vec![0; 70_001];
        pattern(6, 0, &mut expected);
        let long = put(bench, path, 70_001, 0, (6, start, 70_001)).unwrap();
        assert!(read(bench, long, 0, 80_000).unwrap() == expected, "{path}");
        bench.rig.push(0, Op::CloseFile { file: long });
    }
    // Many in one folder, synced together.
    let files: Vec<FileId> =
        (0..20).map(|at| put(bench, &format!("p/m/{at}"), 9, 0, (at, 0, 9)).unwrap()).collect();
    let ids: Vec<_> =
        files.iter().map(|&file| bench.start(0, |id| Op::Sync { id, file })).collect();
    for id in ids {
        assert!(matches!(bench.wait(0, id), Done::Synced(Ok(()))));
    }
    for file in files.into_iter().chain([file]) {
        bench.rig.push(0, Op::CloseFile { file });
    }
    for bad in ["../out", "/etc/passwd", ""] {
        let error = put(bench, bad, 9, 0, (0, 0, 9)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
    }
    let error = put(bench, "p/long", 9, 0, (0, EXTENT_LEN_BYTES - 8, 9)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
