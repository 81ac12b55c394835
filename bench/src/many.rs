//! Workload `many`: a running seed takes in torrent after torrent. What each costs in memory and time,
//! whether any of them is served when asked for, and how long a restart takes.
//!
//! The payload is sparse files of zeros, which really verify; the `.torrent` bytes are a few KB each.
//! Time counts from the bytes of a `.torrent` file in memory: parse, look at the payload, keep the
//! metainfo, journal. What the disk takes of that is measured by plain calls in turns with it: files of the
//! same length written to folders of the same kind, and the payload looked at. Nothing is removed before the
//! end, because a file system that looks for an inode passes by those that were freed lately: making files
//! behind a large removal costs ten times as much.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use clap::Args;
use ringseed_core::metainfo::Metainfo;
use ringseed_engine::{AddListing, Config, Engine, Event, Identity, ListingId, Place};

use crate::report::{Bar, Report};
use crate::swarm::child;

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Folder for the data, on the disk that is meant.
    #[arg(long, default_value = "target/bench-many")]
    dir: PathBuf,
    /// Torrents in all, in five steps.
    #[arg(long, default_value_t = 100_000)]
    torrents: u32,
    /// How many of them libtorrent takes in; 0 leaves it out.
    #[arg(long, default_value_t = 20_000)]
    libtorrent_torrents: u32,
}

/// Length of a payload file, and of a piece of it: a `.torrent` of 1.4 KB.
const FILE_LEN: u64 = 64 << 10;
const PIECE_LEN: usize = 1 << 10;
const STEPS: u32 = 5;
/// Torrents that are added together.
const BATCH: u32 = 512;
/// Every so many batches the plain calls are measured.
const DISK_TURNS: u32 = 4;
/// Torrents fetched by a peer, chosen over all that were added.
const FETCHES: u32 = 20;

/// Runs the workload.
pub fn run(options: &Options) -> Report {
    // From here on whoever ends it is shown what was measured.
    child::is_interrupted();
    let mut report = Report::new("many");
    if let Err(error) = measure(options, &mut report) {
        report.fail(error);
    }
    let _ = std::fs::remove_dir_all(&options.dir);
    report.note_interruption();
    report
}

fn measure(options: &Options, report: &mut Report) -> Result<(), String> {
    let dir = &options.dir;
    let data = dir.join("data");
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(&data)
        .map_err(|error| format!("cannot create {}: {error}", data.display()))?;
    for number in 0..options.torrents {
        child::still_wanted()?;
        let file = std::fs::File::create(data.join(name_of(number)));
        file.and_then(|file| file.set_len(FILE_LEN)).map_err(|error| error.to_string())?;
    }
    let per_step = options.torrents / STEPS;
    let mut intake = Intake::new(dir, &data)?;
    let (engine, events) = start(dir, 1)?;
    // What is touched once, however many there are, is touched before the first reading.
    let mut at = (BATCH * 2).min(per_step / 2);
    intake.add(&engine, &events, 0..at)?;
    let mut slopes = Vec::new();
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    let mut before = rss_bytes();
    for step in 1..=STEPS {
        let end = if step == STEPS { options.torrents } else { per_step * step };
        let count = f64::from(end - at);
        let took = intake.add(&engine, &events, at..end)?;
        let now = rss_bytes();
        let slope = (now - before) / count;
        let Took { ours, disk } = took;
        report.note(format!(
            "{end} torrents: {slope:.0} B of memory each, {:.1} us each (CPU {:.1} us), of which plain calls \
             take {:.1} us (CPU {:.1} us), {:.1} MB resident",
            ours.wall_us,
            ours.cpu_us,
            disk.wall_us,
            disk.cpu_us,
            now / 1e6
        ));
        slopes.push(slope);
        walls.push(ours.wall_us - disk.wall_us);
        cpus.push(ours.cpu_us - disk.cpu_us);
        (before, at) = (now, end);
    }
    let status = engine.status();
    if status.listings != u64::from(options.torrents) || status.listings_active != 0 {
        report.fail(format!("{} listings, {} active", status.listings, status.listings_active));
    }
    let slope = slopes.iter().sum::<f64>() / f64::from(STEPS);
    report.bars.push(Bar::at_most(
        "memory of a torrent that nobody asks for, bytes",
        slope,
        300.0,
        None,
    ));
    let (wall, cpu) = (median(&mut walls), median(&mut cpus));
    report.bars.push(Bar::at_most("adding a torrent, beyond the disk, us", wall, 20.0, None));
    report.bars.push(Bar::at_most("the same of processor time, us", cpu, 20.0, None));

    let slowest = fetch_some(&engine, dir, options.torrents)?;
    report.bars.push(Bar::at_most("first fetch of any of them, slowest, s", slowest, 1.0, None));
    engine.shutdown();
    drop((engine, events));

    let began = Instant::now();
    let (engine, events) = start(dir, 1)?;
    let started = began.elapsed().as_secs_f64();
    let began_adding = Instant::now();
    add_all(&engine, &data, 0..options.torrents)?;
    let waited = wait_complete(&events, options.torrents as usize);
    let wall = began_adding.elapsed().as_secs_f64();
    waited?;
    let hashed = engine.status().hashed_bytes;
    report.note(format!(
        "restart: {started:.2} s until the journal is read, {wall:.2} s until all {} are served, {hashed} bytes hashed",
        options.torrents
    ));
    if hashed > 0 {
        report.fail("the restart hashed what it knew".to_owned());
    }
    engine.shutdown();
    if options.libtorrent_torrents > 0 {
        child::still_wanted()?;
        libtorrent(dir, &data, options.libtorrent_torrents.min(options.torrents), slope, report);
    }
    Ok(())
}

fn name_of(number: u32) -> String {
    format!("listing-{number:06}.bin")
}

/// The `.torrent` of a file of zeros (BEP 3).
fn torrent(number: u32) -> Vec<u8> {
    use sha1::Digest as _;
    let sha1: [u8; 20] = sha1::Sha1::digest([0; PIECE_LEN]).into();
    let pieces = sha1.repeat(FILE_LEN as usize / PIECE_LEN);
    let name = name_of(number);
    let mut bytes = format!(
        "d4:infod6:lengthi{FILE_LEN}e4:name{}:{name}12:piece lengthi{PIECE_LEN}e6:pieces{}:",
        name.len(),
        pieces.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&pieces);
    bytes.extend_from_slice(b"ee");
    bytes
}

fn start(dir: &Path, number: u8) -> Result<(Engine, Receiver<Event>), String> {
    let mut peer_id = *b"-RS0100-bench0000000";
    peer_id[19] = number;
    let mut config = Config::new(dir.join(format!("state-{number}")), peer_id);
    config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    Engine::start(config).map_err(|error| error.to_string())
}

/// Microseconds for each torrent.
#[derive(Clone, Copy, Debug, Default)]
struct Micros {
    wall_us: f64,
    cpu_us: f64,
}

/// What adding took, and what the disk took of it.
struct Took {
    ours: Micros,
    disk: Micros,
}

/// Seconds on the clock and of this process's processors, summed over what is measured.
#[derive(Default)]
struct Clock {
    wall: Duration,
    cpu: f64,
}

impl Clock {
    fn measure<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (began, cpu_began) = (Instant::now(), cpu_seconds());
        let done = work();
        self.wall += began.elapsed();
        self.cpu += cpu_seconds() - cpu_began;
        done
    }

    fn each(&self, count: usize) -> Micros {
        let count = count.max(1) as f64;
        Micros { wall_us: self.wall.as_secs_f64() * 1e6 / count, cpu_us: self.cpu * 1e6 / count }
    }
}

/// Adds torrents batch after batch, and in turns with them writes the same files by plain calls.
struct Intake<'a> {
    data: &'a Path,
    plain: PathBuf,
}

impl Intake<'_> {
    fn new<'a>(dir: &Path, data: &'a Path) -> Result<Intake<'a>, String> {
        let plain = dir.join("plain");
        (0..256)
            .try_for_each(|at| std::fs::create_dir_all(plain.join(format!("{at:02x}"))))
            .map_err(|error| error.to_string())?;
        Ok(Intake { data, plain })
    }

    /// Adds torrents and waits until all are claimed.
    fn add(
        &mut self,
        engine: &Engine,
        events: &Receiver<Event>,
        numbers: std::ops::Range<u32>,
    ) -> Result<Took, String> {
        let (mut ours, mut disk) = (Clock::default(), Clock::default());
        let (mut waiting, mut disk_count) = (numbers.len(), 0);
        let mut next = numbers.start;
        for turn in 0.. {
            child::still_wanted()?;
            let end = (next + BATCH).min(numbers.end);
            let batch = next..end;
            next = end;
            // A few at a time, so that what is made here does not count as memory of the engine.
            let torrents: Vec<Vec<u8>> = batch.clone().map(torrent).collect();
            if turn % DISK_TURNS == 0 {
                disk_count += batch.len();
                disk.measure(|| self.write_plainly(batch.clone(), &torrents))?;
            }
            ours.measure(|| {
                add_batch(engine, self.data, &torrents)?;
                // The records of one batch are synced while the next is looked at.
                waiting -= complete_now(events)?;
                if next < numbers.end {
                    return Ok(());
                }
                wait_complete(events, std::mem::take(&mut waiting))
            })?;
            if next == numbers.end {
                break;
            }
        }
        Ok(Took { ours: ours.each(numbers.len()), disk: disk.each(disk_count) })
    }

    /// What the disk has to do for some of them.
    fn write_plainly(
        &self,
        numbers: std::ops::Range<u32>,
        torrents: &[Vec<u8>],
    ) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        for (number, bytes) in numbers.zip(torrents) {
            std::fs::metadata(self.data.join(name_of(number))).map_err(io)?;
            // In as many folders, in no order of theirs, as those that are named by hash.
            let folder = number.wrapping_mul(0x9e37_79b9) >> 24;
            let path = self.plain.join(format!("{folder:02x}/{number:040x}.torrent"));
            std::fs::write(path, bytes).map_err(io)?;
        }
        Ok(())
    }
}

/// Adds torrents without looking at what the plain calls take.
fn add_all(engine: &Engine, data: &Path, numbers: std::ops::Range<u32>) -> Result<(), String> {
    let mut numbers = numbers;
    while !numbers.is_empty() {
        child::still_wanted()?;
        let torrents: Vec<Vec<u8>> = numbers.by_ref().take(BATCH as usize).map(torrent).collect();
        add_batch(engine, data, &torrents)?;
    }
    Ok(())
}

fn add_batch(engine: &Engine, data: &Path, torrents: &[Vec<u8>]) -> Result<(), String> {
    let adds = torrents.iter().map(|bytes| {
        let metainfo = Metainfo::parse(bytes).map_err(|error| error.to_string())?;
        Ok(AddListing {
            identity: Identity::Metainfo(Arc::new(metainfo)),
            place: Place::InPlace(data.to_path_buf()),
            verify_v1: true,
            known_complete: true,
            size_max_bytes: None,
            peers: Vec::new(),
            private_to_market: false,
        })
    });
    let adds = adds.collect::<Result<Vec<_>, String>>()?;
    let mut results = engine.add_all(adds).into_iter();
    results.try_for_each(|result| result.map(|_| ()).map_err(|error| error.to_string()))
}

fn is_complete(event: &Event) -> Result<(), String> {
    match event {
        Event::Complete { .. } => Ok(()),
        event => Err(format!("{event:?}")),
    }
}

/// How many are claimed since the last call.
fn complete_now(events: &Receiver<Event>) -> Result<usize, String> {
    let mut count = 0;
    for event in events.try_iter() {
        is_complete(&event)?;
        count += 1;
    }
    Ok(count)
}

/// Waits until so many more are claimed.
fn wait_complete(events: &Receiver<Event>, count: usize) -> Result<(), String> {
    for left in (1..=count).rev() {
        let event = events.recv_timeout(Duration::from_secs(20));
        is_complete(&event.map_err(|error| format!("{left} not complete: {error}"))?)?;
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A peer fetches some of them, one after the other; seconds that the slowest took.
fn fetch_some(seed: &Engine, dir: &Path, torrents: u32) -> Result<f64, String> {
    let (leech, events) = start(dir, 2)?;
    let addr = seed.local_addr().ok_or("the seed does not listen")?;
    let mut slowest: f64 = 0.0;
    for at in 0..FETCHES {
        child::still_wanted()?;
        // Spread over all of them, in no order of theirs.
        let number = ((u64::from(at) * 2_654_435_761) % u64::from(torrents)) as u32;
        let metainfo = Metainfo::parse(&torrent(number)).map_err(|error| error.to_string())?;
        let into = dir.join("into");
        let began = Instant::now();
        let id: ListingId = leech
            .add(AddListing {
                identity: Identity::Metainfo(Arc::new(metainfo)),
                place: Place::Owned(into.clone()),
                verify_v1: true,
                known_complete: false,
                size_max_bytes: None,
                peers: vec![addr],
                private_to_market: false,
            })
            .map_err(|error| error.to_string())?;
        loop {
            match events.recv_timeout(Duration::from_secs(20)) {
                Ok(Event::Complete { id: of }) if of == id => break,
                Ok(Event::Failed { error, .. }) => return Err(error.to_string()),
                Ok(_) => {}
                Err(error) => return Err(format!("listing {number} is not served: {error}")),
            }
        }
        slowest = slowest.max(began.elapsed().as_secs_f64());
        let bytes = std::fs::read(into.join(name_of(number))).map_err(|error| error.to_string())?;
        if bytes.len() as u64 != FILE_LEN || bytes.iter().any(|&byte| byte != 0) {
            return Err(format!("listing {number} came with wrong bytes"));
        }
    }
    leech.shutdown();
    Ok(slowest)
}

/// libtorrent takes the same torrents in without looking at the data (`seed_mode`).
fn libtorrent(dir: &Path, data: &Path, count: u32, ours: f64, report: &mut Report) {
    let folder = dir.join("torrents");
    let written = std::fs::create_dir_all(&folder).and_then(|()| {
        (0..count).try_for_each(|number| {
            std::fs::write(folder.join(format!("{number:06}.torrent")), torrent(number))
        })
    });
    if let Err(error) = written {
        return report.fail(error.to_string());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/libtorrent_many.py");
    let output = Command::new("python3").arg(script).arg(&folder).arg(data).output();
    let text = output.ok().filter(|output| output.status.success());
    let text = text.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let figures: Option<(f64, f64)> = text.as_deref().and_then(|text| {
        let (bytes, micros) = text.trim().split_once(' ')?;
        Some((bytes.parse().ok()?, micros.parse().ok()?))
    });
    match figures {
        Some((bytes, micros)) => report.note(format!(
            "libtorrent, {count} torrents in seed mode: {bytes:.0} B of memory each ({:.0} x), {micros:.0} us each",
            bytes / ours
        )),
        None => report.note("libtorrent is left out: pip install libtorrent".to_owned()),
    }
}

/// Resident memory of this process, in bytes (`proc_pid_statm(5)`).
fn rss_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    pages * rustix::param::page_size() as f64
}

/// Processor seconds of this process so far.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
