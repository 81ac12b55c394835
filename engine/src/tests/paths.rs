//! Where served bytes come from: our own cache, the page cache, the device. Each is counted, and what is read is
//! little more than what is sent.

use std::fs;
use std::path::PathBuf;

use ringseed_sys::dir::DirHandle;
use ringseed_sys::file::DataFile;

use super::*;
use crate::test_support::{TestDir, noise, snapshot};

/// More than the arena of these engines holds.
const LEN: usize = 40 << 20;

struct Scene {
    dir: TestDir,
    source: PathBuf,
    metainfo: Arc<Metainfo>,
}

fn scene(kind: Kind, len: usize) -> Scene {
    let dir = TestDir::new("paths");
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("data")).unwrap();
    fs::write(source.join("data/long.bin"), noise(len, 5)).unwrap();
    fs::write(source.join("data/odd.bin"), noise(300_001, 6)).unwrap();
    let metainfo = torrent(&source.join("data"), kind, 256 << 10);
    Scene { source, metainfo, dir }
}

impl Scene {
    /// The files as an engine opens them.
    fn files(&self) -> Vec<(DataFile, u64)> {
        let root = DirHandle::open(&self.source).unwrap();
        let open = |name: &str| {
            let opened = DataFile::open(&root, Path::new(name), false, true).unwrap();
            (opened.file, opened.len_bytes)
        };
        ["data/long.bin", "data/odd.bin"].into_iter().map(open).collect()
    }

    /// Whether this file system can read past the page cache: else there is one way only, which continuous
    /// integration does not put up with.
    fn has_two_ways(&self) -> bool {
        let has_two = self.files().iter().all(|(file, _)| file.is_direct());
        let must = std::env::var_os("RINGSEED_REQUIRE").is_some();
        assert!(has_two || !must, "no O_DIRECT on the file system of the build folder");
        has_two
    }

    /// Drops what the page cache holds of the files.
    fn make_cold(&self) {
        for (file, len_bytes) in self.files() {
            file.sync().unwrap();
            // What other threads have just touched stays on their lists for a moment.
            let until = Instant::now() + Duration::from_secs(10);
            while (0..len_bytes).step_by(4096).any(|at| file.is_resident(at, 1)) {
                assert!(Instant::now() < until, "the page cache keeps it");
                file.forget_cached();
            }
        }
        // What an engine has asked the kernel about is believed for a second.
        std::thread::sleep(Duration::from_millis(1100));
    }

    fn make_resident(&self) {
        snapshot(&self.source);
    }

    fn fetch_by(&self, number: u8, seed: &Node) {
        let mut leech = Node::start(self.dir.path(), number);
        let into = self.dir.path().join(format!("into-{number}"));
        let id = leech.fetch(&self.metainfo, &into, &[seed.addr()]);
        leech.wait_complete(id);
        assert_eq!(snapshot(&into), snapshot(&self.source));
        leech.engine.shutdown();
    }
}

/// What was read by each way: own cache, page cache, device.
fn ways(node: &Node) -> [u64; 3] {
    let status = node.engine.status();
    [status.read_cache_bytes, status.read_page_cache_bytes, status.read_direct_bytes]
}

fn drivers() -> [IoDriver; 2] {
    [IoDriver::Auto, IoDriver::Epoll]
}

/// What the page cache has is read from there, what it has not comes past it, and of a cold file hardly a byte is
/// read that is not sent.
#[test]
fn resident_bytes_come_from_the_page_cache_and_cold_ones_once_from_the_device() {
    // Of v1, whose seed has no leaves to make from the same files meanwhile.
    let scene = scene(Kind::V1, LEN);
    if !scene.has_two_ways() {
        return;
    }
    for driver in drivers() {
        let seed = Node::start_on(scene.dir.path(), 1, driver, |_| {});
        seed.seed(&scene.metainfo, &scene.source);
        let payload: u64 = scene.files().iter().map(|(_, len)| len).sum();
        scene.make_resident();
        let before = ways(&seed);
        scene.fetch_by(2, &seed);
        let after = ways(&seed);
        let [own, resident, direct] = [0, 1, 2].map(|at| after[at] - before[at]);
        assert!(direct * 50 <= payload, "{direct} bytes past a page cache that has them");
        assert!(resident * 100 >= payload * 95, "{after:?} of {payload}");
        // Extents that are read from the page cache are not kept a second time.
        assert!(own * 50 <= payload, "{own} bytes were kept twice");

        scene.make_cold();
        let before = (ways(&seed), seed.engine.status().payload_sent_bytes);
        scene.fetch_by(3, &seed);
        let after = ways(&seed);
        let sent = seed.engine.status().payload_sent_bytes - before.1;
        let [_, resident, direct] = [0, 1, 2].map(|at| after[at] - before.0[at]);
        assert!(sent >= payload, "{sent} of {payload}");
        assert!(direct * 100 >= payload * 95, "{resident} resident, {direct} direct");
        let read = resident + direct;
        assert!(read * 100 <= sent * 105, "{read} bytes were read for {sent}");
        seed.engine.shutdown();
        for name in ["state-1", "state-2", "state-3", "into-2", "into-3"] {
            let _ = fs::remove_dir_all(scene.dir.path().join(name));
        }
    }
}

/// What has been read past the page cache for one peer is there for the next: a listing that fits is read once.
#[test]
fn what_one_peer_had_read_the_next_finds_in_our_cache() {
    let scene = scene(Kind::V1, 2 << 20);
    if !scene.has_two_ways() {
        return;
    }
    let seed = Node::start(scene.dir.path(), 1);
    seed.seed(&scene.metainfo, &scene.source);
    let payload: u64 = scene.files().iter().map(|(_, len)| len).sum();
    scene.make_cold();
    scene.fetch_by(2, &seed);
    scene.make_cold();
    let before = ways(&seed);
    scene.fetch_by(3, &seed);
    let after = ways(&seed);
    let [own, resident, direct] = [0, 1, 2].map(|at| after[at] - before[at]);
    assert!(own * 100 >= payload * 95, "{own} of {payload} from our cache");
    assert!((resident + direct) * 20 <= payload, "{resident} and {direct} were read again");
}
