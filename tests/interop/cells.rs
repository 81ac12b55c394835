//! The columns of the matrix: what every client goes through.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use ringseed_core::metainfo::Metainfo;
use ringseed_tests::data::{digest_tree, write_file, write_mixed_tree};
use ringseed_tests::netns::Subnet;
use ringseed_tests::program::{Program, free_port};
use ringseed_tests::scratch::Scratch;
use ringseed_tests::skip::Need;
use ringseed_tests::tracker::Tracker;
use rustix::process::Signal;

use crate::ours;
use crate::peers::{self, Job, Peer, Running};

/// A client and a kind of torrent.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub peer: Peer,
    /// `v1`, `v2` or `hybrid`: what the torrents made by us are.
    pub kind: &'static str,
    pub name: &'static str,
}

/// One thing that every client goes through.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub title: &'static str,
    pub run: fn(Row) -> Result<(), Failed>,
}

pub const COLUMNS: [Column; 10] = [
    Column { name: "leeches_from_us", title: "leeches from us", run: they_leech },
    Column { name: "seeds_to_us", title: "seeds to us", run: they_seed },
    Column { name: "its_own_torrent", title: "its own torrent, both ways", run: their_torrent },
    Column { name: "magnet_from_us", title: "magnet, from us", run: their_magnet },
    Column { name: "magnet_to_us", title: "magnet, to us", run: our_magnet },
    Column { name: "killed_and_resumed", title: "killed -9, resumes", run: they_resume },
    Column { name: "we_are_killed_and_resume", title: "we are killed -9, resume", run: we_resume },
    Column { name: "mixed_swarm", title: "swarm of three", run: mixed_swarm },
    Column { name: "ipv6", title: "over IPv6, both ways", run: over_v6 },
    Column { name: "plain_tcp", title: "TCP in the clear, both ways", run: plain_tcp },
];

/// No transfer of these sizes takes longer, whatever the client's timers.
const TRANSFER_MAX: Duration = Duration::from_secs(90);
/// Tree of the cells that stop in the middle, beside the mixed one.
const LARGE_LEN_BYTES: u64 = 12 << 20;
/// Upload cap in those cells, bytes per second: three seconds and more.
const SLOW: u64 = 4 << 20;

/// Why a cell cannot be: only what lies in the client's nature, never what we lack.
pub fn impossible(row: Row, column: &Column) -> Option<&'static str> {
    let knows_v2 = matches!(row.peer, Peer::Libtorrent | Peer::Qbittorrent);
    match (row.peer, column.name) {
        (Peer::Qbittorrent, "its_own_torrent") => {
            Some("qBittorrent 4.5 makes torrents in its windows only")
        }
        (Peer::Aria2, "its_own_torrent") => Some("aria2 makes no torrents"),
        (_, "its_own_torrent") if row.kind == "hybrid" && !knows_v2 => {
            Some("it makes v1 torrents only, see there")
        }
        (_, "magnet_to_us") if row.kind == "hybrid" && !knows_v2 => Some(
            "it knows no v2 and cannot give the layers of a hybrid's files, without which nothing of a \
             hybrid is believed; they come from a `.torrent` or from any peer with v2",
        ),
        (Peer::Rtorrent, "ipv6") => Some("rTorrent 0.9.8 has no IPv6"),
        (Peer::Aria2, "ipv6") => Some(
            "aria2 takes no IPv6 on a loopback device: it finds no address there (\"not available\")",
        ),
        _ => None,
    }
}

impl Column {
    /// What this cell needs beside the client of its row.
    pub fn also_needs(&self, row: Row) -> Vec<Need> {
        if self.name == "mixed_swarm" { partner(row).needs() } else { Vec::new() }
    }
}

/// The third engine of a swarm.
fn partner(row: Row) -> Peer {
    match (row.peer, row.kind) {
        (Peer::Libtorrent, "v2") => Peer::Qbittorrent,
        (Peer::Libtorrent, _) => Peer::Rqbit,
        _ => Peer::Libtorrent,
    }
}

/// Another one each time.
pub fn seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) << 32
}

/// Where everything of one cell is: `source/tree` and `t.torrent`.
pub struct Cell {
    scratch: Scratch,
    subnet: Subnet,
    tracker: Tracker,
    metainfo: Metainfo,
    name: String,
    /// Programs are at IPv6 addresses. The tracker stays where it is, or some would never find it.
    is_v6: bool,
    /// The files that are moved, when those are not all.
    some: Option<Vec<&'static str>>,
}

impl Cell {
    /// A mixed tree and a torrent of it that we made.
    pub fn of_mixed_tree(kind: &str) -> Cell {
        Cell::of_tree(kind, false)
    }

    /// The same, with a large file on request.
    fn of_tree(kind: &str, is_large: bool) -> Cell {
        let scratch = Scratch::new("matrix");
        let tree = scratch.join("source/tree");
        // Local discovery brings together what runs at the same time: no two cells share a torrent.
        write_mixed_tree(&tree, seed());
        if is_large {
            write_file(&tree.join("b/larger.bin"), LARGE_LEN_BYTES + 4_321, seed());
        }
        let flag = format!("--{kind}");
        ours::hash(
            &tree,
            &scratch.join("t.torrent"),
            &[&flag, "--piece-len", "65536"],
            &scratch.join("logs"),
        );
        Cell::around(scratch, "tree")
    }

    /// One file of `len_bytes`.
    pub fn of_file(kind: &str, len_bytes: u64, piece_len: &str) -> Cell {
        let scratch = Scratch::new("matrix");
        let file = scratch.join("source/file.bin");
        write_file(&file, len_bytes, seed());
        let flags = [&*format!("--{kind}"), "--piece-len", piece_len];
        ours::hash(&file, &scratch.join("t.torrent"), &flags, &scratch.join("logs"));
        Cell::around(scratch, "file.bin")
    }

    /// The same over IPv6.
    pub fn over_v6(mut self) -> Cell {
        self.is_v6 = true;
        self
    }

    /// These files alone are moved.
    pub fn of_some(mut self, names: &[&'static str]) -> Cell {
        self.some = Some(names.to_vec());
        self
    }

    /// A source tree and a torrent that are there already.
    pub fn around(scratch: Scratch, name: &str) -> Cell {
        let bytes = std::fs::read(scratch.join("t.torrent")).expect("the torrent was made");
        let metainfo = Metainfo::parse(&bytes).expect("a good torrent");
        let subnet = Subnet::next();
        // Not of 127.0.0.0/8: clients that are bound to another address announce themselves there.
        let tracker = Tracker::start_at((subnet.ip(1), 0).into());
        Cell { scratch, subnet, tracker, metainfo, name: name.to_owned(), is_v6: false, some: None }
    }

    pub fn torrent(&self) -> PathBuf {
        self.scratch.join("t.torrent")
    }

    pub fn join(&self, relative: &str) -> PathBuf {
        self.scratch.join(relative)
    }

    /// A free port at an address of this cell.
    pub fn addr(&self, host: u8) -> SocketAddr {
        if self.is_v6 {
            return (self.subnet.ip_v6(host), free_port()).into();
        }
        (self.subnet.ip(host), free_port()).into()
    }

    /// A link with what the info dict is known by.
    pub fn magnet(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let info = self.metainfo.info();
        let v1 = info.info_hash_v1().map(|hash| format!("xt=urn:btih:{}", hex(&hash)));
        let v2 = info.info_hash_v2().map(|hash| format!("xt=urn:btmh:1220{}", hex(&hash)));
        let topics: Vec<String> = v1.into_iter().chain(v2).collect();
        format!("magnet:?{}&dn={}", topics.join("&"), self.name)
    }

    /// A job for a client that knows of `peers`, by its own means or by the tracker.
    pub fn job(&self, home: &str, folder: &str, host: u8, peers: &[SocketAddr]) -> Job {
        for &addr in peers {
            for wire_id in self.metainfo.info().wire_ids() {
                self.tracker.add_peer(wire_id, addr);
            }
        }
        Job {
            home: self.join(home),
            addr: self.addr(host),
            source: self.torrent().into_os_string(),
            folder: self.join(folder),
            peers: peers.to_vec(),
            tracker: self.tracker.url(),
            upload_rate_max: None,
            is_plain: false,
            settings: None,
        }
    }

    /// The source as a client needs it to seed: with pads as files for those that know no BEP 47.
    pub fn source_for(&self, peer: Peer) -> &'static str {
        if !matches!(peer, Peer::Transmission | Peer::Aria2 | Peer::Rtorrent) {
            return "source";
        }
        copy_tree(&self.join("source"), &self.join("padded"));
        for file in self.metainfo.info().files().filter(|file| file.pad) {
            // The name that clients give to a pad; ours says nothing of it, for it lies on no disk.
            let name = format!("padded/{}/.pad/{}", self.name, file.len_bytes);
            let path = self.join(&name);
            std::fs::create_dir_all(path.parent().expect("beneath")).expect("folder");
            std::fs::write(path, vec![0; file.len_bytes as usize]).expect("pad");
        }
        "padded"
    }

    /// Compares what lies in `folder` with the source, pads and what the clients keep aside.
    ///
    /// # Errors
    /// With both trees when they differ.
    pub fn compare(&self, folder: &str) -> Result<(), Failed> {
        let mut source = payload(&self.join("source"));
        // Transmission's maker leaves out what has no bytes.
        let listed: Vec<String> = self.listed();
        source.retain(|name, _| listed.contains(name));
        if listed.len() != source.len() {
            return Err(format!("listed {listed:#?}, there {source:#?}").into());
        }
        self.compare_with(folder, &source)
    }

    /// The files that the torrent has, pads left out, as they lie beneath a folder.
    fn listed(&self) -> Vec<String> {
        let files = self.metainfo.info().files().filter(|file| !file.pad);
        files.map(|file| file.path().as_path().to_string_lossy().into_owned()).collect()
    }

    /// The same for what a client has written.
    ///
    /// # Errors
    /// As for [`Cell::compare`].
    pub fn compare_of(&self, peer: Peer, folder: &str) -> Result<(), Failed> {
        let mut source = payload(&self.join("source"));
        if peer == Peer::Transmission {
            // Transmission 3.00 makes no file for what has no bytes.
            source.retain(|name, _| {
                let meta = std::fs::metadata(self.join("source").join(name));
                meta.is_ok_and(|meta| meta.len() > 0)
            });
        }
        self.compare_with(folder, &source)
    }

    fn compare_with(&self, folder: &str, source: &Tree) -> Result<(), Failed> {
        let start = Instant::now();
        let mut source = source.clone();
        if let Some(some) = &self.some {
            source.retain(|name, _| some.contains(&name.as_str()));
            assert_eq!(source.len(), some.len(), "files that there are");
        }
        loop {
            let copy = payload(&self.join(folder));
            if source == copy {
                return Ok(());
            }
            // Some say that they are done a moment before the last rename or write.
            if start.elapsed() > Duration::from_secs(5) {
                return Err(format!("trees differ:\n{source:#?}\n{copy:#?}").into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Digests by name.
type Tree = std::collections::BTreeMap<String, String>;

/// Digests of files, without pads (BEP 47) and the programs' own files; folders by their files only.
fn payload(root: &Path) -> Tree {
    let mut found = digest_tree(root);
    found.retain(|name, _| {
        let is_own = [".ringseed", ".pad", ".aria2", ".meta", ".parts"]
            .iter()
            .any(|part| name.contains(part));
        !is_own && !name.ends_with('/') && !name.ends_with(".torrent")
    });
    found
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Waits until a client says that it has all.
#[track_caller]
pub fn wait_complete(peer: &mut dyn Running) {
    let start = Instant::now();
    while !peer.is_complete() {
        let ended = peer.program().try_wait();
        if ended.is_some() || start.elapsed() > TRANSFER_MAX {
            let have = if ended.is_some() { 0 } else { peer.have_bytes() };
            let program = peer.program();
            panic!(
                "not complete ({have} bytes, ended: {ended:?})\n--- stdout\n{}\n--- stderr\n{}",
                tail(&program.stdout()),
                tail(&program.stderr())
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The last lines of a log.
fn tail(text: &str) -> &str {
    const LEN_BYTES: usize = 6_000;
    let mut at = text.len().saturating_sub(LEN_BYTES);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    &text[at..]
}

/// Fails with both logs.
fn explain(what: &str, ours: &Program, theirs: &mut dyn Running) -> Failed {
    let theirs = theirs.program();
    format!(
        "{what}\n--- ours\n{}\n{}\n--- theirs\n{}\n{}",
        tail(&ours.stdout()),
        tail(&ours.stderr()),
        tail(&theirs.stdout()),
        tail(&theirs.stderr())
    )
    .into()
}

/// Ends ours in good order, so that its counters are in its log.
fn last_words(ours: &Program) {
    ours.signal(Signal::INT);
    std::thread::sleep(Duration::from_secs(2));
}

/// Runs `wait_complete` so that our log is shown too when it panics.
pub fn await_leech(seed: &Program, leech: &mut dyn Running) -> Result<(), Failed> {
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_complete(leech)));
    waited.map_err(|panic| {
        let what = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        last_words(seed);
        explain(what.lines().next().unwrap_or_default(), seed, leech)
    })
}

/// Waits for our `get`; with both logs when it fails.
pub fn await_get(get: &mut Program, seed: &mut dyn Running) -> Result<(), Failed> {
    let start = Instant::now();
    loop {
        match get.try_wait() {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(explain(&format!("get: {status}"), get, seed)),
            None if start.elapsed() > TRANSFER_MAX => {
                last_words(get);
                return Err(explain("get does not end", get, seed));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Our seed of the cell's source, for `peer`.
fn our_seed(cell: &Cell, peer: Peer, addr: SocketAddr, flags: &[&str]) -> Program {
    let mut flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
    // Transmission 3.00 tries an address of a tracker by uTP; when that fails it calls the address
    // unreachable, and TCP has its turn a quarter of an hour later (seen with strace). It takes whoever
    // dials it: our seed does, if it is in the same tracker, as seeds are.
    if peer == Peer::Transmission {
        flags.extend(["--tracker".into(), cell.tracker.url().into()]);
    }
    ours::seed(&cell.join("ours"), &cell.torrent(), &cell.join("source"), addr, &flags)
}

fn they_leech(row: Row) -> Result<(), Failed> {
    leech_from_us(row.peer, &Cell::of_tree(row.kind, false), |_| {})
}

/// The client fetches from us; `change` may change what it is asked to do.
pub fn leech_from_us(peer: Peer, cell: &Cell, change: impl FnOnce(&mut Job)) -> Result<(), Failed> {
    let addr = cell.addr(9);
    let mut job = cell.job("theirs", "copy", 2, &[addr]);
    change(&mut job);
    if cell.is_v6 && peer == Peer::Transmission {
        // The tracker hears of it over IPv4.
        cell.job("unused", "unused", 6, &[job.addr]);
    }
    let seed = our_seed(cell, peer, addr, &[]);
    let mut leech = peer.start(&job);
    await_leech(&seed, leech.as_mut())?;
    cell.compare_of(peer, "copy")
}

fn they_seed(row: Row) -> Result<(), Failed> {
    let cell = Cell::of_tree(row.kind, false);
    let source = cell.torrent().into_os_string();
    seed_to_us(row.peer, &cell, &source, |_| {})
}

/// We fetch from the client; `change` may change what it is asked to do.
pub fn seed_to_us(
    peer: Peer,
    cell: &Cell,
    source: &OsString,
    change: impl FnOnce(&mut Job),
) -> Result<(), Failed> {
    let mut job = seeding(peer, cell);
    change(&mut job);
    let mut seed = peer.start(&job);
    wait_complete(seed.as_mut());
    let mut get =
        ours::get(&cell.join("ours-getting"), source, &cell.join("got"), &[job.addr], &[]);
    await_get(&mut get, seed.as_mut())?;
    cell.compare("got")
}

fn their_torrent(row: Row) -> Result<(), Failed> {
    let scratch = Scratch::new("matrix");
    let tree = scratch.join("source/tree");
    write_mixed_tree(&tree, seed());
    peers::make_torrent(
        row.peer,
        row.kind,
        &tree,
        &scratch.join("t.torrent"),
        &scratch.join("maker"),
    );
    let cell = Cell::around(scratch, "tree");
    both_ways(row.peer, &cell, |_| {})
}

/// A job of seeding to us, who dial it: it needs no tracker. Transmission takes an address for a seed, which it
/// sends nothing and closes after 30 s, once a tracker that knows seeds alone has named it, and its own address
/// is the one that a dial on the same machine comes from.
fn seeding(peer: Peer, cell: &Cell) -> Job {
    let mut job = cell.job("theirs-seeding", cell.source_for(peer), 3, &[]);
    job.tracker.clear();
    job
}

/// The client from us, then we from it; `change` may change what it is asked to do.
fn both_ways(peer: Peer, cell: &Cell, change: impl Fn(&mut Job)) -> Result<(), Failed> {
    leech_from_us(peer, cell, &change)?;
    seed_to_us(peer, cell, &cell.torrent().into_os_string(), &change)
}

fn over_v6(row: Row) -> Result<(), Failed> {
    both_ways(row.peer, &Cell::of_tree(row.kind, false).over_v6(), |_| {})
}

fn plain_tcp(row: Row) -> Result<(), Failed> {
    both_ways(row.peer, &Cell::of_tree(row.kind, false), |job| job.is_plain = true)
}

fn their_magnet(row: Row) -> Result<(), Failed> {
    let cell = Cell::of_tree(row.kind, false);
    leech_from_us(row.peer, &cell, |job| job.source = cell.magnet().into())
}

fn our_magnet(row: Row) -> Result<(), Failed> {
    let cell = Cell::of_tree(row.kind, false);
    seed_to_us(row.peer, &cell, &cell.magnet().into(), |_| {})
}

/// The client is killed in mid-transfer from us, starts again in the same folders and fetches the rest.
fn they_resume(row: Row) -> Result<(), Failed> {
    let cell = Cell::of_tree(row.kind, true);
    let total = cell.metainfo.info().geometry().payload_len();
    let addr = cell.addr(9);
    let mut seed = our_seed(&cell, row.peer, addr, &["--uplink", "4MiB/s"]);
    let job = cell.job("theirs", "copy", 2, &[addr]);
    let mut leech = row.peer.start(&job);
    let start = Instant::now();
    while leech.have_bytes() < total / 4 {
        if start.elapsed() > TRANSFER_MAX {
            return Err(explain("it does not begin", &seed, leech.as_mut()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = leech.have_bytes();
    assert!(before < total, "the cap did not hold: {before} of {total}");
    leech.program().signal_group(Signal::KILL);
    leech.program().wait(TRANSFER_MAX);
    drop(leech);
    let mut leech = row.peer.start(&job);
    await_leech(&seed, leech.as_mut())?;
    // Before it is ended: some say that they have what they have not written yet.
    cell.compare_of(row.peer, "copy")?;
    drop(leech);
    seed.signal(Signal::INT);
    let sent = ours::counter(&seed.wait(TRANSFER_MAX), "payload_sent_bytes");
    assert!(sent < total * 2 - total / 16, "{sent} of {total} sent: nothing was resumed");
    Ok(())
}

/// Our `get` is killed in mid-transfer from the client, starts again and fetches the rest.
fn we_resume(row: Row) -> Result<(), Failed> {
    let cell = Cell::of_tree(row.kind, true);
    let total = cell.metainfo.info().geometry().payload_len();
    let mut job = seeding(row.peer, &cell);
    job.upload_rate_max = Some(SLOW);
    let mut seed = row.peer.start(&job);
    wait_complete(seed.as_mut());
    let source = cell.torrent().into_os_string();
    let (home, folder) = (cell.join("ours-getting"), cell.join("got"));
    let mut get = ours::get(&home, &source, &folder, &[job.addr], &[]);
    let start = Instant::now();
    let have = |get: &Program| {
        let text = get.stderr();
        let last = text.lines().rev().find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            (event["event"] == "get").then(|| event["done"].as_u64()).flatten()
        });
        last.unwrap_or(0)
    };
    while have(&get) < total / 4 {
        if start.elapsed() > TRANSFER_MAX || get.try_wait().is_some() {
            return Err(explain("it does not stop in the middle", &get, seed.as_mut()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // What is claimed is flushed once a second.
    std::thread::sleep(Duration::from_millis(1_100));
    if get.try_wait().is_some() {
        return Err(explain("the cap did not hold", &get, seed.as_mut()));
    }
    get.signal(Signal::KILL);
    get.wait(TRANSFER_MAX);
    let mut get = ours::get(&home, &source, &folder, &[job.addr], &[]);
    await_get(&mut get, seed.as_mut())?;
    let fetched = ours::counter(&get.wait(TRANSFER_MAX), "payload_verified_bytes");
    assert!(fetched < total, "{fetched} of {total} fetched by the second run");
    cell.compare("got")
}

/// One seed that dribbles, three leeches of three engines that know each other: what the seed sends is
/// less than each of them fetching its own, so they have traded.
fn mixed_swarm(row: Row) -> Result<(), Failed> {
    let cell = Cell::of_tree(row.kind, true);
    let total = cell.metainfo.info().geometry().payload_len();
    let seed_addr = cell.addr(9);
    let mut seed = our_seed(&cell, row.peer, seed_addr, &["--uplink", "2MiB/s"]);
    let our_addr = cell.addr(4);
    let other = partner(row);
    // The addresses must be known before anybody starts.
    let mut theirs = cell.job("theirs", "copy", 2, &[]);
    let mut others = cell.job("others", "other-copy", 5, &[]);
    let all = [seed_addr, our_addr, theirs.addr, others.addr];
    cell.job("unused", "unused", 6, &all);
    theirs.peers = vec![seed_addr, our_addr, others.addr];
    others.peers = vec![seed_addr, our_addr, theirs.addr];
    let source = cell.torrent().into_os_string();
    let flags = ["--listen".into(), our_addr.to_string().into(), "--seed-after".into()];
    let addrs = [seed_addr, theirs.addr, others.addr];
    let mut get = ours::get(&cell.join("ours-getting"), &source, &cell.join("got"), &addrs, &flags);
    let mut first = row.peer.start(&theirs);
    let mut second = other.start(&others);
    let start = Instant::now();
    let is_ours_complete = |get: &Program| get.stderr().contains("\"seeding\"");
    while !is_ours_complete(&get) {
        if start.elapsed() > TRANSFER_MAX || get.try_wait().is_some() {
            return Err(explain("ours is not complete", &get, first.as_mut()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    await_leech(&get, first.as_mut())?;
    await_leech(&get, second.as_mut())?;
    get.signal(Signal::INT);
    let given = ours::counter(&get.wait(TRANSFER_MAX), "payload_sent_bytes");
    seed.signal(Signal::INT);
    let sent = ours::counter(&seed.wait(TRANSFER_MAX), "payload_sent_bytes");
    assert!(given > 0, "we gave nothing to the others");
    assert!(sent < total * 5 / 2, "the seed sent {sent} bytes of {total}: nobody traded");
    cell.compare("got")?;
    cell.compare_of(row.peer, "copy")?;
    cell.compare_of(other, "other-copy")
}
