//! `ringseed hash` and `ringseed check`: torrents and the files on disk, without any network.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::{METAINFO_LEN_MAX, Metainfo};
use ringseed_engine::offline::{self as engine, CheckReport, IoMode, PieceState};
use serde_json::{Value, json};

use crate::cli;
use crate::doctor;
use crate::error::{Code, Error, Result};
use crate::hashing::{self, Options};
use crate::interrupt::Interrupt;
use crate::progress::Reporter;
use crate::sources;
use crate::units;

/// Most damaged pieces that are named one by one.
const NAMED_MAX: usize = 20;
/// Most files that are named of one damaged piece.
const FILES_NAMED_MAX: usize = 3;

/// `ringseed hash`.
///
/// # Errors
/// See [`hashing::find`] and [`hashing::make`].
pub fn hash(args: &cli::Hash, reporter: Reporter) -> Result<Value> {
    let interrupt = Interrupt::watch()?;
    let found = hashing::find(&args.path)?;
    let root = found.parent.join(&found.name);
    let out = std::path::absolute(&args.out).map_err(|e| Error::io("write", &args.out, e))?;
    if out.starts_with(&root) {
        return Err(Error::new(
            Code::BadValue,
            format!("{} lies in what is hashed", out.display()),
        )
        .why("the source is never written to")
        .cure("choose a place outside of it with -o"));
    }
    let kind = match (args.v1, args.v2) {
        (true, _) => Kind::V1,
        (_, true) => Kind::V2,
        _ => Kind::Hybrid,
    };
    let io = io_mode(&args.io)?;
    doctor::calibrate_for(found.len_bytes);
    let options = Options { kind, piece_len_bytes: args.piece_len, is_private: args.private, io };
    let task = reporter.bytes("hash", format!("hashing {}", found.name), found.len_bytes);
    let made =
        hashing::make(&found, options, None, &interrupt, |done, total| task.set(done, total));
    let mut metainfo = made?;
    let tiers = args.trackers.iter().map(|url| vec![url.to_string()]).collect();
    metainfo.set_announce_tiers(tiers);
    metainfo.set_created_by(Some(format!("ringseed {}", env!("CARGO_PKG_VERSION"))));
    let elapsed = task.elapsed();
    write_whole(&out, &metainfo.encode())?;
    let summary = describe(&metainfo);
    let text = format!(
        "hashed {} in {} ({})",
        units::bytes(found.len_bytes),
        units::time(elapsed),
        units::rate(units::mean_rate(found.len_bytes, elapsed))
    );
    task.finish(&text, json!({"bytes": found.len_bytes, "seconds": elapsed.as_secs_f64()}));
    if kind == Kind::Hybrid {
        warn_of_pads(&metainfo, reporter);
    }
    let mut summary = summary;
    summary["torrent"] = json!(out);
    summary["magnet"] = json!(sources::link_of(&metainfo, &[]).to_string());
    Ok(summary)
}

/// Says so when pads are more than a tenth of the payload: v1 peers fetch them for nothing.
fn warn_of_pads(metainfo: &Metainfo, reporter: Reporter) {
    let files = metainfo.info().files();
    let pads: u64 = files.filter(|file| file.pad).map(|file| file.len_bytes).sum();
    let payload = metainfo.info().geometry().payload_len();
    if pads > payload / 10 {
        let text = format!(
            "note: many small files: v1 clients fetch {} of padding besides {}",
            units::bytes(pads),
            units::bytes(payload)
        );
        reporter.say("pads", &text, json!({"pad_bytes": pads, "payload_bytes": payload}));
    }
}

/// Says what is odd about a torrent that is used all the same.
pub fn say_notes(metainfo: &Metainfo, reporter: Reporter) {
    for note in metainfo.notes() {
        let text = format!("note: {}: {note}", metainfo.info().name());
        reporter.say("torrent", &text, json!({"note": note.to_string()}));
    }
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let temporary = path.with_file_name(name);
    std::fs::write(&temporary, content)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| Error::io("write", path, error))
}

/// What a torrent says of itself, as `hash`, `seed` and `get` print it.
pub fn describe(metainfo: &Metainfo) -> Value {
    let info = metainfo.info();
    let kind = match info.kind() {
        Kind::V1 => "v1",
        Kind::V2 => "v2",
        Kind::Hybrid => "hybrid",
    };
    json!({
        "name": info.name(), "kind": kind, "private": info.is_private(),
        "infohash_v1": info.info_hash_v1().map(|hash| units::hex(&hash)),
        "infohash_v2": info.info_hash_v2().map(|hash| units::hex(&hash)),
        "size_bytes": info.geometry().payload_len(),
        "files": info.files().filter(|file| !file.pad).count(),
        "piece_len_bytes": info.piece_len_bytes(), "pieces": info.geometry().piece_count(),
    })
}

/// Reads a `.torrent` file.
///
/// # Errors
/// I/O errors; [`Code::BadTorrent`] with the rule that it breaks.
pub fn read_torrent(path: &Path) -> Result<Metainfo> {
    let failed = |error| Error::io("read", path, error);
    let len_bytes = std::fs::metadata(path).map_err(failed)?.len();
    let bad = |why: String| hashing::bad_torrent(path, why);
    if len_bytes > METAINFO_LEN_MAX as u64 {
        return Err(bad(format!("it has {}", units::bytes(len_bytes))));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    Metainfo::from_bytes(bytes).map_err(|error| bad(error.to_string()))
}

/// The way of reading that a flag names.
fn io_mode(name: &str) -> Result<IoMode> {
    name.parse().map_err(|()| Error::new(Code::BadValue, format!("--io {name}: no such way")))
}

/// A damaged piece.
struct Bad {
    piece: u32,
    file: String,
    why: String,
}

/// `ringseed check`: exit 0 when everything is there and right.
///
/// # Errors
/// [`Code::Damaged`] when not, after the result was printed by `print`; [`Code::ViewsDiffer`] when v2
/// vouches for bytes that v1 refuses; [`Code::BadTorrent`]; [`Code::Interrupted`].
pub fn check(args: &cli::Check, reporter: Reporter, print: impl FnOnce(&Value)) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let io = io_mode(&args.io)?;
    let torrents = list_torrents(&args.torrents)?;
    let data_missing = || {
        Error::new(Code::Missing, format!("{} is no folder", args.data.display()))
            .why("--data names the folder that holds the torrent's root name")
    };
    match torrents.as_slice() {
        [torrent] => {
            let metainfo = read_torrent(torrent)?;
            say_notes(&metainfo, reporter);
            if !args.data.is_dir() {
                return Err(data_missing());
            }
            check_one(torrent, &metainfo, &args.data, io, &interrupt, reporter, print)
        }
        _ if !args.data.is_dir() => Err(data_missing()),
        torrents => check_many(torrents, &args.data, io, &interrupt, reporter, print),
    }
}

/// Files as they are named, and for a folder the `.torrent` files in it, by name.
fn list_torrents(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut torrents = Vec::with_capacity(named.len());
    for path in named {
        if !path.is_dir() {
            torrents.push(path.clone());
            continue;
        }
        let failed = |error| Error::io("read", path, error);
        let entries = std::fs::read_dir(path).map_err(failed)?;
        let entries: std::io::Result<Vec<PathBuf>> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut found = entries.map_err(failed)?;
        found.retain(|path| path.extension().is_some_and(|extension| extension == "torrent"));
        found.sort();
        torrents.append(&mut found);
    }
    if torrents.is_empty() {
        return Err(Error::new(Code::Missing, "there is no .torrent file to check against"));
    }
    Ok(torrents)
}

fn check_one(
    torrent: &Path,
    metainfo: &Metainfo,
    data: &Path,
    io: IoMode,
    interrupt: &Interrupt,
    reporter: Reporter,
    print: impl FnOnce(&Value),
) -> Result<()> {
    if let Some(root) = metainfo.missing_layers().next() {
        return Err(Error::new(Code::BadTorrent, "the torrent lacks a piece layer")
            .why(format!("of the file with root {}", units::short_hex(&root)))
            .cure("get the whole .torrent file, not only its info dict"));
    }
    let info = metainfo.info();
    let total = info.geometry().payload_len();
    doctor::calibrate_for(total);
    let task = reporter.bytes("check", format!("checking {}", info.name()), total);
    let options = hashing::reading(io, interrupt);
    let report = hashing::watched(
        |done, total| task.set(done, total),
        |tell| engine::check_with(metainfo, data, &options, tell),
    );
    let report = report.map_err(|error| hashing::explain(error, data))?;
    let elapsed = task.elapsed();
    let rate = units::rate(units::mean_rate(total, elapsed));
    let text = format!("checked {} in {} ({rate})", units::bytes(total), units::time(elapsed));
    task.finish(&text, json!({"bytes": total, "seconds": elapsed.as_secs_f64()}));
    let bad = damage(metainfo, &report, usize::MAX);
    let mut summary = describe(metainfo);
    summary["complete"] = json!(report.is_complete());
    summary["good_pieces"] = json!(report.pieces_in(PieceState::Good).count());
    summary["bad_pieces"] = json!(bad.len());
    summary["wrong_lengths"] = json!(report.bad_files);
    summary["bad"] = bad
        .iter()
        .take(NAMED_MAX)
        .map(|bad| json!({"piece": bad.piece, "file": bad.file, "why": bad.why}))
        .collect();
    print(&summary);
    if let Some((piece, sha1)) = report.disagreement {
        return Err(Error::new(Code::ViewsDiffer, "the torrent describes two different payloads")
            .why(format!(
                "piece {piece} is right by SHA-256 and wrong by SHA-1 ({})",
                units::hex(&sha1)
            ))
            .cure("do not use this torrent"));
    }
    if report.is_complete() {
        return Ok(());
    }
    let lines = bad.iter().take(NAMED_MAX);
    let mut lines: Vec<String> =
        lines.map(|bad| format!("piece {} of {}: {}", bad.piece, bad.file, bad.why)).collect();
    let files = report.bad_files.iter().take(NAMED_MAX);
    lines.extend(files.map(|path| format!("{}: missing or of another length", path.display())));
    let what = match (bad.len(), report.bad_files.len()) {
        (0, files) => format!("{} missing or too long", units::count(files as u64, "file")),
        (pieces, _) => format!(
            "{} of {} missing or wrong",
            units::count(pieces as u64, "piece"),
            info.geometry().piece_count()
        ),
    };
    Err(Error::new(Code::Damaged, what).lines(lines).cure(format!(
        "ringseed get {} --data {} --peer ADDR",
        torrent.display(),
        data.display()
    )))
}

/// What a check of many torrents has found so far.
#[derive(Default)]
struct Many {
    good: u64,
    bytes: u64,
    /// The first of those that are not good, by place in the list, with what is wrong first.
    bad: Vec<(usize, Value)>,
    bad_count: u64,
    worst: Option<Code>,
}

fn check_many(
    torrents: &[PathBuf],
    data: &Path,
    io: IoMode,
    interrupt: &Interrupt,
    reporter: Reporter,
    print: impl FnOnce(&Value),
) -> Result<()> {
    doctor::calibrate_for(u64::MAX);
    let count = torrents.len() as u64;
    let task = reporter.things("check", format!("checking {count} torrents"), count);
    let options = hashing::reading(io, interrupt);
    let many = Mutex::new(Many::default());
    let checked = AtomicUsize::new(0);
    let result = hashing::watched(
        |done, total| task.set(done, total),
        |tell| {
            engine::check_many(torrents, data, &options, &|at, found| {
                let mut many = many.lock().unwrap_or_else(PoisonError::into_inner);
                many.take(at, &torrents[at], data, found);
                drop(many);
                tell(checked.fetch_add(1, Ordering::Relaxed) as u64 + 1, count);
            })
        },
    );
    result.map_err(|error| hashing::explain(error, data))?;
    let mut many = many.into_inner().unwrap_or_else(PoisonError::into_inner);
    many.bad.sort_by_key(|(at, _)| *at);
    let elapsed = task.elapsed();
    let text = format!(
        "checked {} torrents, {} in {} ({:.0} torrents/s)",
        count,
        units::bytes(many.bytes),
        units::time(elapsed),
        count as f64 / elapsed.as_secs_f64().max(1e-9)
    );
    task.finish(&text, json!({"torrents": count, "seconds": elapsed.as_secs_f64()}));
    let bad: Vec<Value> = many.bad.into_iter().map(|(_, bad)| bad).collect();
    print(&json!({
        "complete": many.bad_count == 0, "torrents": count, "good": many.good,
        "damaged": many.bad_count, "size_bytes": many.bytes, "bad": bad,
    }));
    let Some(code) = many.worst else { return Ok(()) };
    let lines = bad.iter().map(|bad| {
        let text = |key: &str| bad[key].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("torrent"), text("why"))
    });
    Err(Error::new(code, format!("{} of {count} torrents are damaged", many.bad_count))
        .lines(lines.collect())
        .cure("ringseed check one of them alone for all that is wrong with it"))
}

impl Many {
    fn take(
        &mut self,
        at: usize,
        torrent: &Path,
        data: &Path,
        found: std::result::Result<(&Metainfo, CheckReport), engine::OfflineError>,
    ) {
        let (code, why) = match found {
            Ok((metainfo, report)) => {
                self.bytes += report.total_bytes;
                if report.is_complete() {
                    self.good += 1;
                    return;
                }
                let code = match report.disagreement {
                    Some(_) => Code::ViewsDiffer,
                    None => Code::Damaged,
                };
                let first = damage(metainfo, &report, 1).into_iter().next();
                let why = match (first, report.bad_files.first()) {
                    (Some(bad), _) => format!("piece {} of {}: {}", bad.piece, bad.file, bad.why),
                    (None, Some(path)) => format!("{}: missing or too long", path.display()),
                    (None, None) => "damaged".to_owned(),
                };
                (code, why)
            }
            Err(error) => {
                let error = hashing::explain(error, data);
                (Code::Damaged, error.why.unwrap_or(error.what))
            }
        };
        self.bad_count += 1;
        // Damage is the family; that a torrent contradicts itself is the worse news.
        if self.worst != Some(Code::ViewsDiffer) {
            self.worst = Some(code);
        }
        if self.bad.len() < NAMED_MAX {
            self.bad.push((at, json!({"torrent": torrent, "why": why})));
        }
    }
}

/// The pieces that are not good, at most so many, with their files and what is wrong.
fn damage(metainfo: &Metainfo, report: &CheckReport, count_max: usize) -> Vec<Bad> {
    let states = (0..).zip(&report.pieces).filter(|(_, state)| **state != PieceState::Good);
    let bad = states.take(count_max).map(|(piece, state)| {
        let unread = report.unread.iter().find(|unread| unread.piece == piece);
        let why = match (state, unread) {
            (PieceState::Missing, _) => "missing or too short".to_owned(),
            (PieceState::Unreadable, Some(unread)) => format!("cannot be read: {}", unread.why),
            (PieceState::Unreadable, None) => "cannot be read".to_owned(),
            (PieceState::ViewsDisagree, _) => "right by SHA-256, wrong by SHA-1".to_owned(),
            (PieceState::Bad | PieceState::Good, _) => "wrong bytes".to_owned(),
        };
        let file = match unread {
            Some(unread) => unread.path.display().to_string(),
            None => files_of(metainfo, report, piece, *state),
        };
        Bad { piece, file, why }
    });
    bad.collect()
}

/// The files that a damaged piece lies in; of a missing piece those that are not whole.
fn files_of(metainfo: &Metainfo, report: &CheckReport, raw: u32, state: PieceState) -> String {
    let info = metainfo.info();
    let geometry = info.geometry();
    let Ok(piece) = geometry.piece(raw) else { return String::new() };
    let offset = geometry.piece_offset(piece);
    let slices = geometry.slices(offset, u64::from(geometry.piece_len(piece)));
    let mut paths: Vec<_> =
        slices.filter(|slice| !slice.pad).map(|slice| info.file(slice.file).path()).collect();
    if state == PieceState::Missing {
        paths.retain(|path| report.bad_files.iter().any(|bad| bad == path.as_path()));
    }
    let named = paths.iter().take(FILES_NAMED_MAX).map(|path| path.as_str());
    let named = named.collect::<Vec<&str>>().join(", ");
    match paths.len().saturating_sub(FILES_NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rs-offline-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("data/t/sub")).unwrap();
        let big: Vec<u8> = (0..300_001u32).map(|i| (i * 13 % 241) as u8).collect();
        std::fs::write(dir.join("data/t/big"), &big).unwrap();
        std::fs::write(dir.join("data/t/sub/small"), b"small").unwrap();
        std::fs::write(dir.join("data/t/empty"), b"").unwrap();
        dir
    }

    fn hash_args(dir: &Path, kind: &str) -> cli::Hash {
        cli::Hash {
            path: dir.join("data/t"),
            out: dir.join(format!("{kind}.torrent")),
            trackers: Vec::new(),
            v1: kind == "v1",
            v2: kind == "v2",
            hybrid: kind == "hybrid",
            piece_len: None,
            private: false,
            io: "auto".to_owned(),
        }
    }

    #[test]
    fn what_was_hashed_checks_and_one_wrong_byte_does_not() {
        let dir = scratch("round");
        let reporter = Reporter::new(false);
        let data = dir.join("data");
        for kind in ["v1", "v2", "hybrid"] {
            let summary = hash(&hash_args(&dir, kind), reporter).unwrap();
            assert_eq!(
                (summary["kind"].as_str(), summary["files"].as_u64()),
                (Some(kind), Some(3))
            );
        }
        let check_all = |expected: Option<Code>| {
            for kind in ["v1", "v2", "hybrid"] {
                let torrent = dir.join(format!("{kind}.torrent"));
                let io = "auto".to_owned();
                let args = cli::Check { torrents: vec![torrent], data: data.clone(), io };
                let mut summary = Value::Null;
                let result = check(&args, reporter, |value| summary = value.clone());
                assert_eq!(result.err().map(|error| error.code), expected, "{kind} {summary}");
                assert_eq!(summary["complete"].as_bool(), Some(expected.is_none()), "{kind}");
            }
        };
        check_all(None);
        let big = std::fs::read(data.join("t/big")).unwrap();
        let mut wrong = big.clone();
        wrong[300_000] ^= 4;
        std::fs::write(data.join("t/big"), &wrong).unwrap();
        check_all(Some(Code::Damaged));
        std::fs::write(data.join("t/big"), &big[..200_000]).unwrap();
        check_all(Some(Code::Damaged));
        std::fs::write(data.join("t/big"), [&big[..], b"more"].concat()).unwrap();
        check_all(Some(Code::Damaged));
        std::fs::write(data.join("t/big"), &big).unwrap();
        std::fs::remove_file(data.join("t/empty")).unwrap();
        check_all(Some(Code::Damaged));
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn check_args(torrents: Vec<PathBuf>, dir: &Path, io: &str) -> cli::Check {
        cli::Check { torrents, data: dir.join("data"), io: io.to_owned() }
    }

    #[test]
    fn every_way_of_reading_names_the_piece_and_the_file() {
        let dir = scratch("ways");
        hash(&hash_args(&dir, "hybrid"), Reporter::new(false)).unwrap();
        let big = dir.join("data/t/big");
        let mut bytes = std::fs::read(&big).unwrap();
        bytes[100_000] ^= 1;
        std::fs::write(&big, &bytes).unwrap();
        for io in IoMode::NAMES {
            let args = check_args(vec![dir.join("hybrid.torrent")], &dir, io);
            let mut summary = Value::Null;
            let error = check(&args, Reporter::new(false), |value| summary = value.clone());
            assert_eq!(error.unwrap_err().code, Code::Damaged, "{io}");
            assert_eq!(summary["bad_pieces"], 1, "{io}");
            assert_eq!(summary["bad"][0]["file"], "t/big", "{io}");
        }
        std::fs::write(&big, &bytes[..50_000]).unwrap();
        let args = check_args(vec![dir.join("hybrid.torrent")], &dir, "mmap");
        let error = check(&args, Reporter::new(false), |_| ()).unwrap_err();
        assert_eq!(error.code.exit(), 6, "a file cut short under a map is no crash");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn many_torrents_are_checked_in_one_call_and_the_bad_ones_named() {
        let dir = scratch("many");
        let torrents = dir.join("torrents");
        std::fs::create_dir_all(&torrents).unwrap();
        for at in 0..50u8 {
            std::fs::write(dir.join(format!("data/f{at}")), vec![at; 70_000]).unwrap();
            let (path, out) =
                (dir.join(format!("data/f{at}")), torrents.join(format!("{at}.torrent")));
            let args = cli::Hash { path, out, ..hash_args(&dir, "hybrid") };
            hash(&args, Reporter::new(false)).unwrap();
        }
        let args = check_args(vec![torrents.clone()], &dir, "auto");
        let mut summary = Value::Null;
        check(&args, Reporter::new(false), |value| summary = value.clone()).unwrap();
        assert_eq!((&summary["torrents"], &summary["good"]), (&json!(50), &json!(50)));
        std::fs::write(dir.join("data/f7"), vec![8; 70_000]).unwrap();
        std::fs::remove_file(dir.join("data/f9")).unwrap();
        let error = check(&args, Reporter::new(false), |value| summary = value.clone());
        let error = error.unwrap_err();
        assert_eq!((error.code, &summary["damaged"]), (Code::Damaged, &json!(2)));
        let named = error.lines.join("\n");
        assert!(named.contains("7.torrent: piece 0 of f7: wrong bytes"), "{named}");
        assert!(named.contains("9.torrent: piece 0 of f9: missing"), "{named}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_torrent_is_never_written_into_the_source() {
        let dir = scratch("inside");
        let args = cli::Hash { out: dir.join("data/t/x.torrent"), ..hash_args(&dir, "hybrid") };
        assert_eq!(hash(&args, Reporter::new(false)).unwrap_err().code, Code::BadValue);
        assert!(!dir.join("data/t/x.torrent").exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn bad_torrents_are_exit_6_and_say_why() {
        let dir = scratch("bad");
        let path = dir.join("bad.torrent");
        let deep = [vec![b'l'; 10_000], vec![b'e'; 10_000]].concat();
        for bad in [&b"not bencode"[..], b"d4:info", &deep, b"d4:infod4:name99999999999:"] {
            std::fs::write(&path, bad).unwrap();
            let error = read_torrent(&path).unwrap_err();
            assert!(error.code == Code::BadTorrent && error.why.is_some());
        }
        assert_eq!(read_torrent(&dir.join("none")).unwrap_err().code, Code::Missing);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
