//! Every way of reading gives the digests of slow oracles, and the lanes' bookkeeping survives any
//! order of arrivals.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use ringseed_core::geometry::Kind;
use ringseed_core::merkle;
use ringseed_core::metainfo::Metainfo;
use ringseed_sys::arena::ExtentMut;
use sha1::{Digest as _, Sha1};

use super::queue::{Absent, PieceDigests, Target};
use super::read::{Arrived, OpenFile, Reads, Wanted};
use super::*;
use crate::test_support::{TestDir, noise, tree};

const MODES: [IoMode; 4] = [IoMode::Auto, IoMode::Direct, IoMode::Buffered, IoMode::Mmap];

fn quiet(_: u64, _: u64) {}

/// Every way of reading that a machine with io_uring has.
fn ways() -> Vec<ReadOptions> {
    let mut ways = Vec::new();
    for io in MODES {
        for (ring, order, threads) in [
            (true, ReadOrder::Spread, 2),
            (true, ReadOrder::FileOrder, 1),
            (false, ReadOrder::Spread, 3),
        ] {
            let threads = Some(threads);
            ways.push(ReadOptions { io, order, threads, ring, ..ReadOptions::default() });
        }
    }
    ways
}

/// Compares a torrent with what `sha1` and `sha2` say of the files, one message at a time.
fn assert_by_oracle(metainfo: &Metainfo, parent: &Path) {
    let info = metainfo.info();
    let geometry = info.geometry();
    for raw in 0..geometry.piece_count() {
        let piece = geometry.piece(raw).unwrap();
        let (mut bytes, mut data_len) = (Vec::new(), 0);
        for slice in geometry.slices(geometry.piece_offset(piece), geometry.piece_len(piece).into())
        {
            let len = slice.len as usize;
            if slice.pad {
                bytes.resize(bytes.len() + len, 0);
                continue;
            }
            let path = parent.join(info.file(slice.file).path().as_path());
            let from = bytes.len();
            bytes.resize(from + len, 0);
            let file = fs::File::open(path).unwrap();
            file.read_exact_at(&mut bytes[from..], slice.file_offset).unwrap();
            data_len = bytes.len();
        }
        if info.kind().has_v1() {
            let sha1: [u8; 20] = Sha1::digest(&bytes).into();
            assert_eq!(info.v1_piece_hash(piece), Some(&sha1), "piece {raw}");
        }
        if let Some((file, _)) = geometry.piece_in_file(piece).filter(|_| info.kind().has_v2()) {
            let leaves: Vec<_> = bytes[..data_len].chunks(16 << 10).map(merkle::leaf).collect();
            let of_file = geometry.file_len(file).div_ceil(16 << 10);
            let root = merkle::piece_root(&leaves, info.piece_layer_number(), of_file);
            assert_eq!(metainfo.v2_piece_hash(piece), Some(root), "piece {raw}");
        }
    }
}

#[test]
fn every_way_of_reading_gives_the_digests_of_the_oracles() {
    let dir = TestDir::new("offline-ways");
    tree(&dir.path().join("data"), 21);
    // Many files shorter than a step, at odd places of a v1 torrent.
    for at in 0..40u64 {
        let len = (at * 977 % 9_000) as usize;
        fs::write(dir.path().join(format!("data/tiny-{at}")), noise(len, at + 1)).unwrap();
    }
    for kind in [Kind::V1, Kind::V2, Kind::Hybrid] {
        for piece_len in [16 << 10, 64 << 10, 1 << 20] {
            let mut first: Option<Metainfo> = None;
            for reading in ways() {
                let piece_len_bytes = Some(piece_len);
                let options =
                    CreateOptions { kind, piece_len_bytes, reading, ..CreateOptions::default() };
                let made = create(&dir.path().join("data"), &options, &quiet).unwrap().metainfo;
                match &first {
                    None => assert_by_oracle(&made, dir.path()),
                    Some(first) => assert_eq!(first.info().raw(), made.info().raw()),
                }
                let report = check_with(&made, dir.path(), &options.reading, &quiet).unwrap();
                assert!(report.is_complete(), "{kind:?} {piece_len} {:?}", options.reading);
                first.get_or_insert(made);
            }
        }
    }
}

#[test]
fn damage_is_named_by_piece_and_file_in_every_way_of_reading() {
    let dir = TestDir::new("offline-named");
    let data = dir.path().join("data");
    tree(&data, 22);
    let options = CreateOptions { piece_len_bytes: Some(64 << 10), ..CreateOptions::default() };
    let made = create(&data, &options, &quiet).unwrap().metainfo;
    let big = fs::read(data.join("big.bin")).unwrap();
    let mut wrong = big.clone();
    wrong[2_000_003] ^= 0x10;
    let piece_of = |name: &str, offset: u64| {
        let geometry = made.info().geometry();
        let file = geometry
            .files()
            .find(|&file| {
                let entry = made.info().file(file);
                !entry.pad && entry.path().as_str() == format!("data/{name}")
            })
            .unwrap();
        ((geometry.file_offset(file) + offset) / (64 << 10)) as u32
    };
    for reading in ways() {
        fs::write(data.join("big.bin"), &wrong).unwrap();
        let report = check_with(&made, dir.path(), &reading, &quiet).unwrap();
        let bad: Vec<u32> = report.pieces_in(PieceState::Bad).collect();
        assert_eq!(bad, [piece_of("big.bin", 2_000_003)], "{reading:?}");
        assert!(report.bad_files.is_empty());
        // Cut in the middle: what is behind is missing and what is before is good.
        fs::write(data.join("big.bin"), &big[..1_000_000]).unwrap();
        let report = check_with(&made, dir.path(), &reading, &quiet).unwrap();
        let missing: Vec<u32> = report.pieces_in(PieceState::Missing).collect();
        let (first, last) = (piece_of("big.bin", 1_000_000), piece_of("big.bin", 3_000_016));
        assert_eq!(missing, (first..=last).collect::<Vec<u32>>(), "{reading:?}");
        assert_eq!(report.bad_files, [Path::new("data/big.bin")]);
        assert_eq!(report.pieces_in(PieceState::Bad).count(), 0);
        // A symlink in the place of a file cannot be read, and is not followed.
        fs::write(data.join("big.bin"), &big).unwrap();
        fs::rename(data.join("z.bin"), dir.path().join("aside")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("aside"), data.join("z.bin")).unwrap();
        let report = check_with(&made, dir.path(), &reading, &quiet).unwrap();
        assert_eq!(report.pieces_in(PieceState::Unreadable).count(), 4, "{reading:?}");
        assert!(report.unread.iter().all(|unread| unread.path == Path::new("data/z.bin")));
        fs::remove_file(data.join("z.bin")).unwrap();
        fs::rename(dir.path().join("aside"), data.join("z.bin")).unwrap();
        assert!(check_with(&made, dir.path(), &reading, &quiet).unwrap().is_complete());
    }
}

#[test]
fn thousands_of_listings_go_through_one_call() {
    let dir = TestDir::new("offline-many");
    let data = dir.path().join("data");
    fs::create_dir_all(&data).unwrap();
    let mut torrents = Vec::new();
    for at in 0..600usize {
        let path = data.join(format!("listing-{at}"));
        fs::write(&path, noise(20_000 + at * 37, at as u64 + 1)).unwrap();
        let options = CreateOptions { piece_len_bytes: Some(16 << 10), ..CreateOptions::default() };
        let made = create(&path, &options, &quiet).unwrap().metainfo;
        torrents.push(dir.path().join(format!("{at}.torrent")));
        fs::write(&torrents[at], made.encode()).unwrap();
    }
    let mut bytes = fs::read(data.join("listing-77")).unwrap();
    bytes[17_000] ^= 1;
    fs::write(data.join("listing-77"), bytes).unwrap();
    fs::remove_file(data.join("listing-500")).unwrap();
    fs::write(&torrents[123], b"no torrent").unwrap();
    for reading in ways() {
        let found = Mutex::new(vec![None; torrents.len()]);
        let keep = |at: usize, report: Result<(&Metainfo, CheckReport), OfflineError>| {
            let state = match report {
                Ok((metainfo, report)) => {
                    assert_eq!(metainfo.info().name(), format!("listing-{at}"));
                    let bad = report.pieces.iter().position(|&piece| piece != PieceState::Good);
                    bad.map_or("good".to_owned(), |at| format!("{at} {:?}", report.pieces[at]))
                }
                Err(error) => {
                    assert!(matches!(error, OfflineError::Torrent { .. }), "{error}");
                    "no torrent".to_owned()
                }
            };
            assert!(found.lock().unwrap()[at].replace(state).is_none(), "reported once");
        };
        check_many(&torrents, &data, &reading, &keep).unwrap();
        for (at, state) in found.into_inner().unwrap().into_iter().enumerate() {
            let expected = match at {
                77 => "1 Bad",
                500 => "0 Missing",
                123 => "no torrent",
                _ => "good",
            };
            assert_eq!(state.as_deref(), Some(expected), "listing {at} {reading:?}");
        }
    }
}

#[test]
fn a_check_that_is_told_to_stop_stops() {
    let dir = TestDir::new("offline-stop");
    let data = dir.path().join("data");
    tree(&data, 23);
    let made = create(&data, &CreateOptions::default(), &quiet).unwrap().metainfo;
    let reading = ReadOptions { stop: std::sync::Arc::new(true.into()), ..ReadOptions::default() };
    let stopped = check_with(&made, dir.path(), &reading, &quiet);
    assert!(matches!(stopped, Err(OfflineError::Stopped)));
}

/// Reads at once and delivers later, in an order of its own, and keeps what was asked for.
#[derive(Default)]
struct Shuffled {
    plain: PlainReads,
    waiting: VecDeque<Arrived>,
    ready: VecDeque<Arrived>,
    seed: u64,
    asked: Rc<RefCell<Vec<(u64, usize)>>>,
    in_flight_max: Rc<RefCell<usize>>,
}

impl Reads for Shuffled {
    fn needs_buffer(&self) -> bool {
        true
    }

    fn start(&mut self, file: &OpenFile, wanted: Wanted, buf: Option<ExtentMut>) {
        self.asked.borrow_mut().push((wanted.offset_bytes, wanted.len));
        self.plain.start(file, wanted, buf);
        self.waiting.extend(self.plain.next_arrived());
        let mut most = self.in_flight_max.borrow_mut();
        *most = (*most).max(self.waiting.len());
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (self.seed >> 33) as usize % self.waiting.len();
        self.ready.extend(self.waiting.remove(at));
        Ok(())
    }

    fn next_arrived(&mut self) -> Option<Arrived> {
        self.ready.pop_front()
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}

/// A file of the tests as a torrent, whose digests are kept.
struct Kept {
    metainfo: Metainfo,
    root: DirHandle,
    found: Mutex<Vec<Option<PieceDigests>>>,
    /// The file is cut to this length as soon as it is open.
    cut_to: Option<u64>,
    /// What opening says instead of opening.
    open_error: Option<i32>,
    absent: Mutex<Vec<u32>>,
}

impl Kept {
    fn new(dir: &TestDir, metainfo: Metainfo, cut_to: Option<u64>) -> std::sync::Arc<Kept> {
        let count = metainfo.info().geometry().piece_count() as usize;
        std::sync::Arc::new(Kept {
            metainfo,
            root: DirHandle::open(dir.path()).unwrap(),
            found: Mutex::new(vec![None; count]),
            cut_to,
            open_error: None,
            absent: Mutex::default(),
        })
    }
}

impl Target for Kept {
    fn geometry(&self) -> &ringseed_core::geometry::Geometry {
        self.metainfo.info().geometry()
    }

    fn open(
        &self,
        file: ringseed_core::geometry::FileIndex,
        io: IoMode,
    ) -> io::Result<Option<OpenFile>> {
        let path = self.metainfo.info().file(file).path();
        let path = path.as_path();
        if let Some(number) = self.open_error {
            return Err(io::Error::from_raw_os_error(number));
        }
        let open = OpenFile::open(&self.root, path, io)?;
        if let Some(len) = self.cut_to {
            fs::File::options().write(true).open(self.root.path().join(path))?.set_len(len)?;
        }
        Ok(Some(open))
    }

    fn handle_piece(
        &self,
        piece: ringseed_core::geometry::PieceIndex,
        found: Result<PieceDigests, Absent>,
    ) -> Result<(), OfflineError> {
        match found {
            Ok(found) => {
                let slot = &mut self.found.lock().unwrap()[piece.get() as usize];
                assert!(slot.replace(found).is_none(), "each piece comes once");
            }
            Err(Absent::Unreadable { .. }) => self.absent.lock().unwrap().push(piece.get()),
            Err(Absent::Missing) => panic!("a mapped file is as long as it was"),
        }
        Ok(())
    }
}

impl Targets<'static> for std::sync::Arc<Kept> {
    fn count(&self) -> usize {
        1
    }

    fn load(
        &self,
        _index: usize,
    ) -> Result<Option<std::sync::Arc<dyn Target + 'static>>, OfflineError> {
        Ok(Some(self.clone()))
    }
}

/// The torrent of `file.bin`, compared with the oracles.
fn torrent_of_file(dir: &TestDir, kind: Kind, piece_len: u64) -> Metainfo {
    let path = dir.path().join("file.bin");
    let options =
        CreateOptions { kind, piece_len_bytes: Some(piece_len), ..CreateOptions::default() };
    let metainfo = create(&path, &options, &quiet).unwrap().metainfo;
    assert_by_oracle(&metainfo, dir.path());
    metainfo
}

/// Runs one worker over a file with reads that arrive in any order; what was asked for, in order, and
/// the most reads in flight.
fn run_shuffled(
    dir: &TestDir,
    metainfo: Metainfo,
    in_file_order: bool,
    seed: u64,
) -> (Vec<(u64, usize)>, usize) {
    let kept = Kept::new(dir, metainfo, None);
    let targets: &'static std::sync::Arc<Kept> = Box::leak(Box::new(kept.clone()));
    let queue = Queue::new(targets, &quiet);
    let reads = Shuffled { seed, ..Shuffled::default() };
    let (asked, most) = (reads.asked.clone(), reads.in_flight_max.clone());
    let arena = Arena::new(LANES * STEPS_AHEAD * EXTENT_LEN_BYTES).unwrap();
    let pace = Pace { io: IoMode::Direct, in_file_order };
    let stop = AtomicBool::new(false);
    Worker::new(&queue, reads, arena.clone(), pace, &stop).run();
    queue.into_result().unwrap();
    assert_eq!(arena.in_use(), 0, "every buffer came back");
    let info = kept.metainfo.info();
    for (raw, digests) in (0..).zip(kept.found.lock().unwrap().iter()) {
        let piece = info.geometry().piece(raw).unwrap();
        let digests = digests.expect("every piece comes");
        assert_eq!(digests.sha1.as_ref(), info.v1_piece_hash(piece));
        assert_eq!(digests.root, kept.metainfo.v2_piece_hash(piece));
    }
    let (asked, most) = (asked.borrow().clone(), *most.borrow());
    (asked, most)
}

/// Somebody cuts the file after it was mapped: the pieces before the cut are as good as ever, those
/// behind it cannot be read, and the process lives.
#[test]
fn a_file_cut_short_under_its_map_is_damage_and_no_crash() {
    let dir = TestDir::new("offline-cut");
    fs::write(dir.path().join("file.bin"), noise(9_000_001, 5)).unwrap();
    for kind in [Kind::V1, Kind::V2] {
        let metainfo = torrent_of_file(&dir, kind, 256 << 10);
        let kept = Kept::new(&dir, metainfo, Some(4_000_000));
        let targets: &'static std::sync::Arc<Kept> = Box::leak(Box::new(kept.clone()));
        let queue = Queue::new(targets, &quiet);
        let arena = Arena::new(EXTENT_LEN_BYTES).unwrap();
        let pace = Pace { io: IoMode::Mmap, in_file_order: false };
        let stop = AtomicBool::new(false);
        Worker::new(&queue, MappedReads::default(), arena, pace, &stop).run();
        queue.into_result().unwrap();
        let mut absent = kept.absent.lock().unwrap().clone();
        absent.sort_unstable();
        // The cut is in piece 15.
        assert_eq!(absent, (15..35).collect::<Vec<u32>>(), "{kind:?}");
        let found = kept.found.lock().unwrap();
        let info = kept.metainfo.info();
        for raw in 0..15u32 {
            let piece = info.geometry().piece(raw).unwrap();
            let digests = found[raw as usize].unwrap();
            assert_eq!(digests.sha1.as_ref(), info.v1_piece_hash(piece));
            assert_eq!(digests.root, kept.metainfo.v2_piece_hash(piece));
        }
        fs::write(dir.path().join("file.bin"), noise(9_000_001, 5)).unwrap();
    }
}

/// Too many open files is our lack and no damage: whoever asked must not fetch good data again.
#[test]
fn what_this_process_lacks_is_an_error_and_no_damage() {
    let dir = TestDir::new("offline-lack");
    fs::write(dir.path().join("file.bin"), noise(1_000_001, 5)).unwrap();
    for (number, is_lack) in [(24, true), (12, true), (13, false), (5, false)] {
        let metainfo = torrent_of_file(&dir, Kind::V1, 256 << 10);
        let kept = Kept::new(&dir, metainfo, None);
        let mut kept = std::sync::Arc::try_unwrap(kept).unwrap_or_else(|_| unreachable!());
        kept.open_error = Some(number);
        let kept = std::sync::Arc::new(kept);
        let targets: &'static std::sync::Arc<Kept> = Box::leak(Box::new(kept.clone()));
        let queue = Queue::new(targets, &quiet);
        let arena = Arena::new(LANES * EXTENT_LEN_BYTES).unwrap();
        let pace = Pace { io: IoMode::Buffered, in_file_order: false };
        let stop = AtomicBool::new(false);
        Worker::new(&queue, PlainReads::default(), arena, pace, &stop).run();
        let result = queue.into_result();
        assert_eq!(result.is_err(), is_lack, "{number}: {result:?}");
        assert_eq!(kept.absent.lock().unwrap().len(), if is_lack { 0 } else { 4 });
    }
}

#[test]
fn arrivals_in_any_order_give_the_same_digests() {
    let dir = TestDir::new("offline-shuffled");
    fs::write(dir.path().join("file.bin"), noise(9_000_001, 5)).unwrap();
    for kind in [Kind::V1, Kind::V2, Kind::Hybrid] {
        for piece_len in [32 << 10, 256 << 10, 1 << 20, 8 << 20] {
            let metainfo = torrent_of_file(&dir, kind, piece_len);
            for seed in 0..4 {
                for in_file_order in [false, true] {
                    let (_, most) = run_shuffled(&dir, metainfo.clone(), in_file_order, seed);
                    assert!(most <= LANES * STEPS_AHEAD, "reading ahead is bounded: {most}");
                }
            }
        }
    }
}

/// On a disk that moves heads, one stream from the first byte to the last: every read begins where the
/// one before ended, however the arrivals come.
#[test]
fn on_a_rotational_disk_reads_are_submitted_in_file_order() {
    let dir = TestDir::new("offline-order");
    fs::write(dir.path().join("file.bin"), noise(40_000_000, 6)).unwrap();
    for kind in [Kind::V1, Kind::V2] {
        for piece_len in [64 << 10, 1 << 20, 4 << 20] {
            let metainfo = torrent_of_file(&dir, kind, piece_len);
            let (asked, most) = run_shuffled(&dir, metainfo, true, 3);
            let mut end = 0;
            for (offset, len) in asked {
                assert_eq!(offset, end, "{kind:?} {piece_len}");
                end = offset + len as u64;
            }
            assert_eq!(end, 40_000_000);
            assert!(most > LANES / 2, "and still ahead of the hashing: {most}");
        }
    }
    // Spread over the lanes it is not: that is what the other order is for.
    let metainfo = torrent_of_file(&dir, Kind::V1, 1 << 20);
    let (asked, _) = run_shuffled(&dir, metainfo, false, 3);
    assert!(asked.windows(2).any(|pair| pair[1].0 != pair[0].0 + pair[0].1 as u64));
}
