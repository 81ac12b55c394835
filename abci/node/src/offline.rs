//! `ringseed hash` and `ringseed check`: torrents and the files on disk, without any network.

use std::path::{Path, PathBuf};

use ringseed_core::geometry::Kind;
use ringseed_core::merkle;
use ringseed_core::metainfo::{METAINFO_LEN_MAX, Metainfo};
use serde_json::{Value, json};

use crate::cli;
use crate::error::{Code, Error, Result};
use crate::hashing::{self, Options, PieceDigests, Reader};
use crate::interrupt::Interrupt;
use crate::progress::Reporter;
use crate::units;

/// Most damaged pieces that are named one by one.
const NAMED_MAX: usize = 20;

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
    let options = Options { kind, piece_len_bytes: args.piece_len, is_private: args.private };
    let task = reporter.bytes("hash", format!("hashing {}", found.name), found.len_bytes);
    let made =
        hashing::make(&found, options, None, &interrupt, |done, total| task.set(done, total));
    let mut metainfo = made?;
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
    Ok(summary)
}

/// Says so when pads are more than a tenth of the payload: v1 peers fetch them for nothing.
fn warn_of_pads(metainfo: &Metainfo, reporter: Reporter) {
    let files = metainfo.info().files();
    let pads: u64 = files.iter().filter(|file| file.pad).map(|file| file.len_bytes).sum();
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
        "files": info.files().iter().filter(|file| !file.pad).count(),
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
    let bad = |why: String| {
        Error::new(Code::BadTorrent, format!("{} is no torrent that we take", path.display()))
            .why(why)
            .cure("get it again from where it was published")
    };
    if len_bytes > METAINFO_LEN_MAX as u64 {
        return Err(bad(format!("it has {}", units::bytes(len_bytes))));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    Metainfo::parse(&bytes).map_err(|error| bad(error.to_string()))
}

/// What `check` found.
struct Checked {
    good_pieces: u32,
    bad: Vec<Bad>,
    views_differ: Option<u32>,
}

struct Bad {
    piece: u32,
    file: String,
    why: &'static str,
}

/// `ringseed check`: exit 0 when everything is there and right.
///
/// # Errors
/// [`Code::Damaged`] when not, after the result was printed by `print`; [`Code::ViewsDiffer`] when v2
/// vouches for bytes that v1 refuses; [`Code::BadTorrent`]; [`Code::Interrupted`].
pub fn check(args: &cli::Check, reporter: Reporter, print: impl FnOnce(&Value)) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let metainfo = read_torrent(&args.torrent)?;
    if !args.data.is_dir() {
        return Err(Error::new(Code::Missing, format!("{} is no folder", args.data.display()))
            .why("--data names the folder that holds the torrent's root name"));
    }
    if let Some(root) = metainfo.missing_layers().next() {
        return Err(Error::new(Code::BadTorrent, "the torrent lacks a piece layer")
            .why(format!("of the file with root {}", units::short_hex(&root)))
            .cure("get the whole .torrent file, not only its info dict"));
    }
    let info = metainfo.info();
    let files: Vec<Option<PathBuf>> = info
        .files()
        .iter()
        .map(|file| (!file.pad).then(|| args.data.join(file.path.as_path())))
        .collect();
    let total = info.geometry().payload_len();
    let task = reporter.bytes("check", format!("checking {}", info.name()), total);
    let mut checked = Checked { good_pieces: 0, bad: Vec::new(), views_differ: None };
    let mut done = 0;
    let reader = Reader { geometry: info.geometry(), files: &files, copies: None };
    reader.run(info.kind(), &interrupt, |digests| {
        done += digests.len_bytes;
        judge(&metainfo, &digests, &mut checked);
        task.set(done, total);
        Ok(())
    })?;
    let lengths = wrong_lengths(&metainfo, &files);
    let elapsed = task.elapsed();
    let rate = units::rate(units::mean_rate(total, elapsed));
    let text = format!("checked {} in {} ({rate})", units::bytes(total), units::time(elapsed));
    task.finish(&text, json!({"bytes": total, "seconds": elapsed.as_secs_f64()}));
    checked.bad.sort_by_key(|bad| bad.piece);
    let is_whole = checked.bad.is_empty() && lengths.is_empty();
    let mut summary = describe(&metainfo);
    summary["complete"] = json!(is_whole);
    summary["good_pieces"] = json!(checked.good_pieces);
    summary["bad_pieces"] = json!(checked.bad.len());
    summary["wrong_lengths"] = json!(lengths);
    summary["bad"] = checked
        .bad
        .iter()
        .take(NAMED_MAX)
        .map(|bad| json!({"piece": bad.piece, "file": bad.file, "why": bad.why}))
        .collect();
    print(&summary);
    if let Some(piece) = checked.views_differ {
        return Err(Error::new(Code::ViewsDiffer, "the torrent describes two different payloads")
            .why(format!("piece {piece} is right by SHA-256 and wrong by SHA-1"))
            .cure("do not use this torrent"));
    }
    if is_whole {
        return Ok(());
    }
    let lines = checked.bad.iter().take(NAMED_MAX);
    let lines = lines.map(|bad| format!("piece {} of {}: {}", bad.piece, bad.file, bad.why));
    let what = match (checked.bad.len(), lengths.len()) {
        (0, files) => format!("{} longer than they should be", units::count(files as u64, "file")),
        (pieces, _) => format!(
            "{} of {} missing or wrong",
            units::count(pieces as u64, "piece"),
            info.geometry().piece_count()
        ),
    };
    Err(Error::new(Code::Damaged, what).lines(lines.collect()).cure(format!(
        "ringseed get {} --data {} --peer ADDR",
        args.torrent.display(),
        args.data.display()
    )))
}

fn judge(metainfo: &Metainfo, digests: &PieceDigests, checked: &mut Checked) {
    let info = metainfo.info();
    let by_v1 = digests.sha1.zip(info.v1_piece_hash(digests.piece)).map(|(is, said)| is == *said);
    let by_v2 = metainfo.v2_piece_hash(digests.piece).map(|said| {
        let leaf_count = info
            .geometry()
            .piece_in_file(digests.piece)
            .map_or(0, |(file, _)| info.geometry().file_len(file).div_ceil(16 << 10));
        !digests.leaves.is_empty()
            && merkle::piece_root(&digests.leaves, info.piece_layer_number(), leaf_count) == said
    });
    let is_readable = digests.unreadable.is_none();
    if is_readable && by_v1 != Some(false) && by_v2 != Some(false) {
        checked.good_pieces += 1;
        return;
    }
    if is_readable && (by_v1, by_v2) == (Some(false), Some(true)) {
        checked.views_differ.get_or_insert(digests.piece.get());
    }
    let why = if is_readable { "wrong bytes" } else { "missing or too short" };
    let offset = info.geometry().piece_offset(digests.piece);
    let len = u64::from(info.geometry().piece_len(digests.piece));
    let mut slices = info.geometry().slices(offset, len).filter(|slice| !slice.pad);
    let file = slices.next().map(|slice| info.files()[slice.file.get() as usize].path.as_str());
    let file = file.unwrap_or_default().to_owned();
    checked.bad.push(Bad { piece: digests.piece.get(), file, why });
}

/// Files that are missing although empty, or longer than the torrent says.
fn wrong_lengths(metainfo: &Metainfo, files: &[Option<PathBuf>]) -> Vec<String> {
    let entries = metainfo.info().files().iter().zip(files);
    entries
        .filter_map(|(entry, path)| {
            let len_bytes = std::fs::metadata(path.as_ref()?).ok().map(|meta| meta.len());
            let is_wrong = match len_bytes {
                Some(len_bytes) => len_bytes > entry.len_bytes,
                None => entry.len_bytes == 0,
            };
            is_wrong.then(|| entry.path.as_str().to_owned())
        })
        .collect()
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
            v1: kind == "v1",
            v2: kind == "v2",
            hybrid: kind == "hybrid",
            piece_len: None,
            private: false,
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
                let args = cli::Check { torrent, data: data.clone() };
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
