//! Cells that are no matter of every client.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use ringseed_tests::data::write_mixed_tree;
use ringseed_tests::netns;
use ringseed_tests::scratch::Scratch;
use serde_json::json;

use crate::cells::{Cell, leech_from_us, seed, seed_to_us};
use crate::ours;
use crate::peers::{self, Peer};
use crate::table::Table;

/// A line of the table: one transfer from us, and one to us.
struct Line {
    /// Of the trials; the kind of torrent comes before it.
    name: &'static str,
    title: &'static str,
    kinds: &'static [&'static str],
    make: fn(&str) -> Cell,
    by_magnet: bool,
    is_plain: bool,
}

const ALL: &[&str] = &["v1", "v2", "hybrid"];

const LINES: [Line; 6] = [
    Line {
        name: "magnet_of_1_piece",
        title: "magnet, 1 piece",
        kinds: ALL,
        make: |kind| Cell::of_file(kind, 9_999, "16KiB"),
        by_magnet: true,
        is_plain: false,
    },
    Line {
        name: "magnet_of_513_pieces",
        title: "magnet, 513 pieces",
        kinds: ALL,
        make: |kind| Cell::of_file(kind, 512 * 16_384 + 1, "16KiB"),
        by_magnet: true,
        is_plain: false,
    },
    Line {
        name: "magnet_of_70000_pieces",
        title: "magnet, 70,000 pieces",
        kinds: &["v2", "hybrid"],
        make: |kind| Cell::of_file(kind, 69_999 * 16_384 + 777, "16KiB"),
        by_magnet: true,
        is_plain: true,
    },
    // An info dict of 1.4 MB.
    Line {
        name: "magnet_of_70000_pieces_of_1_kib",
        title: "magnet, 70,000 pieces of 1 KiB",
        kinds: &["v1"],
        make: |kind| Cell::of_file(kind, 69_999 * 1_024 + 777, "1KiB"),
        by_magnet: true,
        is_plain: true,
    },
    Line {
        name: "magnet_of_a_tree",
        title: "magnet, mixed tree",
        kinds: ALL,
        make: Cell::of_mixed_tree,
        by_magnet: true,
        is_plain: true,
    },
    Line {
        name: "pieces_of_16_mib",
        title: "pieces of 16 MiB",
        kinds: &["hybrid"],
        make: |kind| Cell::of_file(kind, (40 << 20) + 5, "16MiB"),
        by_magnet: false,
        is_plain: false,
    },
];

/// Why libtorrent does not get it from us.
fn cannot_come(line: &Line, kind: &str) -> Option<&'static str> {
    let is_it = kind == "hybrid" && line.name == "magnet_of_513_pieces";
    is_it.then_some(
        "a fault of libtorrent 2.1.1, for hybrids with 512 n + 1 pieces of 16 KiB: the hash of the last piece, \
         asked for alone, it counts as data that it has, and says that the views disagree; from itself it \
         gets no such file at all, for its own answer lacks a hash",
    )
}

/// The trials, and their table.
pub fn trials() -> (Vec<Trial>, Table) {
    let mut table = Table::new(&["from us", "to us"]);
    let mut trials = Vec::new();
    let mut needs = vec![netns::need()];
    needs.extend(Peer::Libtorrent.needs());
    for line in &LINES {
        for &kind in line.kinds {
            table.row(format!("libtorrent, {kind}, {}", line.title));
            let change = |job: &mut peers::Job| {
                job.is_plain = line.is_plain;
            };
            let source = |cell: &Cell| match line.by_magnet {
                true => cell.magnet().into(),
                false => cell.torrent().into_os_string(),
            };
            let name = format!("{kind}_{}", line.name);
            match cannot_come(line, kind) {
                Some(why) => table.impossible(0, why),
                None => trials.push(table.cell(0, &format!("{name}_from_us"), &needs, move || {
                    let cell = (line.make)(kind);
                    leech_from_us(Peer::Libtorrent, &cell, |job| {
                        change(job);
                        job.source = source(&cell);
                    })
                })),
            }
            trials.push(table.cell(1, &format!("{name}_to_us"), &needs, move || {
                let cell = (line.make)(kind);
                seed_to_us(Peer::Libtorrent, &cell, &source(&cell), change)
            }));
        }
    }
    for &kind in ALL {
        table.row(format!("libtorrent, {kind}, magnet of some files"));
        let name = |to: &str| format!("{kind}_magnet_of_some_files_{to}");
        trials.push(table.cell(0, &name("from_us"), &needs, move || some_from_us(kind)));
        trials.push(table.cell(1, &name("to_us"), &needs, move || some_to_us(kind)));
    }
    table.row("libtorrent, falls back from encryption".to_owned());
    trials.push(table.cell(0, "falls_back_from_encryption", &needs, falls_back));
    for &kind in ALL {
        table.row(format!("libtorrent computes our infohashes, {kind}"));
        let name = format!("{kind}_infohashes_agree");
        trials.push(table.cell(0, &name, &needs, move || infohashes_agree(kind)));
    }
    (trials, table)
}

/// A mixed tree, the link that selects some of its files by the numbers that libtorrent gives them, and
/// their names: whether pads count, also those that a v2 torrent only implies, is for libtorrent to say.
fn some(kind: &str) -> (Cell, String, Vec<&'static str>) {
    let chosen = vec!["tree/a/deep/nested/file.dat", "tree/many/05.txt", "tree/many/06.txt"];
    let cell = Cell::of_mixed_tree(kind);
    let numbers = peers::file_numbers(&cell.torrent(), &cell.join("numbers"));
    let listed: Vec<String> = chosen.iter().map(|&name| numbers[name].to_string()).collect();
    let link = format!("{}&so={}", cell.magnet(), listed.join(","));
    (cell, link, chosen)
}

fn some_from_us(kind: &str) -> Result<(), Failed> {
    let (cell, link, chosen) = some(kind);
    let cell = cell.of_some(&chosen);
    leech_from_us(Peer::Libtorrent, &cell, |job| job.source = link.into())
}

fn some_to_us(kind: &str) -> Result<(), Failed> {
    let (cell, link, chosen) = some(kind);
    let cell = cell.of_some(&chosen);
    seed_to_us(Peer::Libtorrent, &cell, &link.into(), |_| {})
}

/// libtorrent tries an encrypted handshake first. We end that connection, and it dials again in the
/// clear: a matter of a moment, not of timeouts one after the other.
fn falls_back() -> Result<(), Failed> {
    /// Start of an interpreter and a session, five seconds for a handshake that never comes, a second
    /// of libtorrent's own before it dials again, and room for a busy machine.
    const FALL_BACK_MAX: Duration = Duration::from_secs(15);
    let cell = Cell::of_file("hybrid", (1 << 20) + 5, "64KiB");
    let start = Instant::now();
    leech_from_us(Peer::Libtorrent, &cell, |job| {
        job.settings = Some(json!({"enable_outgoing_utp": false}));
    })?;
    let took = start.elapsed();
    if took > FALL_BACK_MAX {
        return Err(format!("it took {took:?}").into());
    }
    Ok(())
}

/// Both infohashes of a torrent made by us are those libtorrent computes for it.
fn infohashes_agree(kind: &str) -> Result<(), Failed> {
    let scratch = Scratch::new("matrix");
    let tree = scratch.join("source/tree");
    write_mixed_tree(&tree, seed());
    let torrent: PathBuf = scratch.join("t.torrent");
    ours::hash(&tree, &torrent, &[&format!("--{kind}")], &scratch.join("logs"));
    let theirs = peers::infohashes(&torrent, &scratch.join("logs"));
    let metainfo = ringseed_core::metainfo::Metainfo::parse(&std::fs::read(&torrent)?)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let v1 = metainfo.info().info_hash_v1().map_or("-".to_owned(), |hash| hex(&hash));
    let v2 = metainfo.info().info_hash_v2().map_or("-".to_owned(), |hash| hex(&hash));
    let ours = format!("v1 {v1}\nv2 {v2}\n");
    if ours != theirs {
        return Err(format!("ours:\n{ours}theirs:\n{theirs}").into());
    }
    Ok(())
}
