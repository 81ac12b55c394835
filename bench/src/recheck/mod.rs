//! Workload `recheck`: comparing files with torrents, and making torrents of files, as processes
//! beside other clients.

mod data;
mod programs;

use std::path::PathBuf;

use clap::Args;
use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;

use crate::machine::Others;
use crate::report::{Bar, Figure, Report};
use crate::swarm::child::is_interrupted;
use data::{Data, LISTING_LEN};
use programs::{Programs, Turn};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Folder for the data: on the disk that is meant, with room for it twice.
    #[arg(long, default_value = "target/bench-recheck")]
    dir: PathBuf,
    /// Length of the long file, in MiB.
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// How many listings of 64 KiB.
    #[arg(long, default_value_t = 20_000)]
    listings: usize,
    /// How many of them libtorrent checks: it takes seconds for hundreds.
    #[arg(long, default_value_t = 200)]
    libtorrent_listings: usize,
    /// Turns per contender; the median counts.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// The program under test; the one beside this benchmark by default.
    #[arg(long)]
    ringseed: Option<PathBuf>,
}

const GIB: f64 = (1u64 << 30) as f64;

/// What a contender does in one turn.
type Work<'a> = Box<dyn FnMut() -> Result<Turn, String> + 'a>;

/// Runs the workload.
pub fn run(options: &Options) -> Report {
    // From here on whoever ends it is shown what was measured.
    is_interrupted();
    let mut report = Report::new("recheck");
    let file_len = options.mib << 20;
    let data = match Data::make(&options.dir, file_len, options.listings) {
        Ok(data) => data,
        Err(error) => {
            report.fail(format!("cannot make the data: {error}"));
            return report;
        }
    };
    let programs = Programs::find(options.ringseed.clone());
    report.notes.extend(programs.missing.iter().cloned());
    let others = Others::look();
    report.notes.push(others.note());
    let mut bench =
        Bench { data: &data, programs: &programs, turns: options.turns, others, report };
    bench.warm(Kind::V1, 0.20, 0.15);
    bench.warm(Kind::V2, 0.33, 0.27);
    bench.cold();
    bench.make();
    bench.many(options.libtorrent_listings);
    bench.report.note_interruption();
    bench.report
}

struct Bench<'a> {
    data: &'a Data,
    programs: &'a Programs,
    turns: usize,
    others: Others,
    report: Report,
}

/// Median figures of one contender.
#[derive(Clone, Copy)]
struct Median {
    rate: f64,
    cpu_per_gib: f64,
}

impl Bench<'_> {
    /// A check of what the page cache has.
    fn warm(&mut self, kind: Kind, cpu_must: f64, cpu_stretch: f64) {
        let (data, programs) = (self.data, self.programs);
        let name = data::kind_name(kind);
        let shape = format!("check {name}, {}, page cache warm", size_text(data.file_len));
        let mut who: Vec<(&str, Work<'_>)> = vec![
            ("ringseed", Box::new(move || programs.ours(data, kind, "auto"))),
            ("ringseed --io mmap", Box::new(move || programs.ours(data, kind, "mmap"))),
        ];
        if programs.has_libtorrent {
            who.push((
                "libtorrent",
                Box::new(move || programs.libtorrent(data, kind).expect("found")),
            ));
        }
        if kind == Kind::V1 && programs.has_aria2 {
            who.push(("aria2", Box::new(move || programs.aria2(data).expect("found"))));
        }
        if kind == Kind::V1 && programs.has_rqbit() {
            who.push(("rqbit", Box::new(move || programs.rqbit(data).expect("found"))));
        }
        let medians = self.compare(&shape, data.file_len, &mut who, || data.warm());
        let Some(ours) = medians.first().copied().flatten() else { return };
        let what = format!("check {name}, warm: CPU s/GiB");
        self.report.bars.push(Bar::at_most(&what, ours.cpu_per_gib, cpu_must, Some(cpu_stretch)));
        let theirs = medians.get(2).copied().flatten().filter(|_| programs.has_libtorrent);
        if let Some(other) = theirs {
            let ratio = ours.rate / other.rate;
            match kind {
                Kind::V1 => {
                    let what = "check v1, warm: times libtorrent";
                    self.report.bars.push(Bar::at_least(what, ratio, 3.5, None));
                }
                _ => self.report.notes.push(format!("check {name}, warm: {ratio:.2} x libtorrent")),
            }
            if let Some(mapped) = medians.get(1).copied().flatten() {
                let (ratio, cpu) = (mapped.rate / other.rate, mapped.cpu_per_gib);
                let text = format!(
                    "check {name}, warm, mapped: {ratio:.2} x libtorrent, {cpu:.3} CPU s/GiB"
                );
                self.report.notes.push(text);
            }
        }
    }

    /// A check of what only the device has, beside the device's own rate.
    fn cold(&mut self) {
        let (data, programs) = (self.data, self.programs);
        let shape = format!("check v1, {}, cold", size_text(data.file_len));
        let file_len = data.file_len as f64;
        let mut who: Vec<(&str, Work<'_>)> = vec![
            ("ringseed (O_DIRECT)", Box::new(move || programs.ours(data, Kind::V1, "direct"))),
            ("ringseed --io auto", Box::new(move || programs.ours(data, Kind::V1, "auto"))),
            ("ringseed --io buffered", Box::new(move || programs.ours(data, Kind::V1, "buffered"))),
        ];
        if programs.has_fio {
            let roof = move || {
                let rate = programs.fio(data).expect("found")?;
                Ok(Turn { wall: file_len / rate, cpu: f64::NAN, busy: f64::NAN })
            };
            who.push(("fio, best job", Box::new(roof)));
        }
        if programs.has_libtorrent {
            who.push((
                "libtorrent",
                Box::new(move || programs.libtorrent(data, Kind::V1).expect("found")),
            ));
        }
        let medians = self.compare(&shape, data.file_len, &mut who, || data.cool());
        if let (true, Some(ours), Some(roof)) =
            (programs.has_fio, medians[0], medians.get(3).copied().flatten())
        {
            let what = "check v1, O_DIRECT cold: share of the read roof";
            self.report.bars.push(Bar::at_least(what, ours.rate / roof.rate, 0.90, Some(0.97)));
        }
    }

    /// Making a hybrid torrent of what the page cache has.
    fn make(&mut self) {
        let (data, programs) = (self.data, self.programs);
        let shape = format!("hash hybrid, {}, page cache warm", size_text(data.file_len));
        let mut who: Vec<(&str, Work<'_>)> =
            vec![("ringseed", Box::new(move || programs.ours_make(data, "auto")))];
        if programs.has_libtorrent {
            who.push((
                "libtorrent",
                Box::new(move || programs.libtorrent_make(data).expect("found")),
            ));
        }
        if programs.has_transmission {
            who.push((
                "transmission-create (v1 only)",
                Box::new(move || programs.transmission_make(data).expect("found")),
            ));
        }
        who.push(("ringseed --io mmap", Box::new(move || programs.ours_make(data, "mmap"))));
        let medians = self.compare(&shape, data.file_len, &mut who, || data.warm());
        let Some(ours) = medians[0] else { return };
        let what = "hash hybrid, warm: CPU s/GiB";
        self.report.bars.push(Bar::at_most(what, ours.cpu_per_gib, 0.50, None));
        let theirs = medians.get(1).copied().flatten().filter(|_| programs.has_libtorrent);
        if let Some(other) = theirs {
            let what = "hash hybrid, warm: times libtorrent's create";
            self.report.bars.push(Bar::at_least(what, ours.rate / other.rate, 4.0, None));
            match self.same_as_libtorrent() {
                Some(true) => self.report.notes.push("both made the same digests".into()),
                _ => self.report.fail("libtorrent made other digests than we".into()),
            }
        }
    }

    /// Whether libtorrent's torrent of the long file says what ours does, in both views.
    fn same_as_libtorrent(&self) -> Option<bool> {
        let read =
            |name: &str| Metainfo::parse(&std::fs::read(self.data.dir.join(name)).ok()?).ok();
        let (ours, theirs) = (read("made-by-us.torrent")?, read("made-by-libtorrent.torrent")?);
        let roots = |of: &Metainfo| -> Vec<_> {
            of.info().files().filter_map(|file| file.pieces_root).collect()
        };
        Some(programs::same_v1(&ours, &theirs) && roots(&ours) == roots(&theirs))
    }

    /// Many short listings in one call.
    fn many(&mut self, libtorrent_listings: usize) {
        let (data, programs) = (self.data, self.programs);
        let count = data.torrents.len();
        if count == 0 {
            return;
        }
        let shape = format!("check {count} listings of 64 KiB, page cache warm");
        let bytes = (count * LISTING_LEN) as u64;
        let mut who: Vec<(&str, Work<'_>)> =
            vec![("ringseed", Box::new(move || programs.ours_many(data)))];
        let medians = self.compare(&shape, bytes, &mut who, || data.warm_many());
        if let Some(ours) = medians[0] {
            let what = format!("check {count} listings of 64 KiB, warm: listings/s");
            let per_second = ours.rate / LISTING_LEN as f64;
            self.report.bars.push(Bar::at_least(&what, per_second, 5_000.0, Some(50_000.0)));
        }
        if is_interrupted() {
            return;
        }
        match programs.libtorrent_many(data, libtorrent_listings) {
            Some(Ok(turn)) => {
                let count = libtorrent_listings.min(count);
                let rate = count as f64 / turn.wall;
                let text =
                    format!("libtorrent checked {count} of the listings at {rate:.0} a second");
                self.report.notes.push(text);
            }
            Some(Err(error)) => self.report.notes.push(format!("libtorrent, many: {error}")),
            None => {}
        }
    }

    /// Runs contenders one after another, as many times as there are turns, each after `prepare`; the
    /// first round warms up and counts for nothing. A contender that fails once fails the report.
    fn compare(
        &mut self,
        shape: &str,
        bytes: u64,
        who: &mut [(&str, Work<'_>)],
        prepare: impl Fn() -> std::io::Result<()>,
    ) -> Vec<Option<Median>> {
        if is_interrupted() {
            return vec![None; who.len()];
        }
        eprintln!("{shape}");
        let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); who.len()];
        for round in 0..=self.turns {
            for ((name, work), turns) in who.iter_mut().zip(&mut turns) {
                if is_interrupted() {
                    continue;
                }
                if let Err(error) = prepare() {
                    self.report.fail(format!("{shape}: {error}"));
                    continue;
                }
                match work() {
                    Ok(turn) if round > 0 => turns.push(turn),
                    Ok(_) => {}
                    // Whoever ended it did not end him alone.
                    Err(_) if is_interrupted() => {}
                    Err(error) => self.report.fail(format!("{shape}, {name}: {error}")),
                }
            }
        }
        let of_all = who.iter().zip(&turns);
        let medians = of_all.map(|((name, _), turns)| {
            if turns.is_empty() {
                return None;
            }
            let gib = bytes as f64 / GIB;
            let rates: Vec<f64> = turns.iter().map(|turn| bytes as f64 / turn.wall).collect();
            let cpu = median(turns.iter().map(|turn| turn.cpu / gib));
            let busy =
                median(turns.iter().map(|turn| self.others.less(turn.busy, turn.wall) / gib));
            let figure = Figure::new(shape, name, &rates).with_cpu(cpu, busy);
            let median = Median { rate: figure.bytes_per_second, cpu_per_gib: cpu };
            self.report.figures.push(figure);
            Some(median)
        });
        medians.collect()
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn size_text(len_bytes: u64) -> String {
    format!("{:.1} GiB", len_bytes as f64 / GIB)
}
