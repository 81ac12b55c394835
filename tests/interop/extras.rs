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

/// libtorrent with what we do not speak switched off.
fn tuned() -> serde_json::Value {
    /// `enc_policy` for "disabled".
    const DISABLED: u8 = 2;
    json!({
        "enable_outgoing_utp": false, "enable_incoming_utp": false,
        "out_enc_policy": DISABLED, "in_enc_policy": DISABLED,
    })
}

/// A line of the table: name, title, what is moved, whether by a magnet link, whether tuned.
struct Line {
    name: &'static str,
    title: &'static str,
    make: fn() -> Cell,
    by_magnet: bool,
    is_tuned: bool,
}

const LINES: [Line; 6] = [
    Line {
        name: "magnet_of_1_piece",
        title: "magnet, v2, 1 piece",
        make: || Cell::of_file("v2", 9_999, "16KiB"),
        by_magnet: true,
        is_tuned: false,
    },
    Line {
        name: "magnet_of_513_pieces",
        title: "magnet, v2, 513 pieces",
        make: || Cell::of_file("v2", 512 * 16_384 + 1, "16KiB"),
        by_magnet: true,
        is_tuned: false,
    },
    Line {
        name: "magnet_of_70000_pieces",
        title: "magnet, v2, 70,000 pieces",
        make: || Cell::of_file("v2", 69_999 * 16_384 + 777, "16KiB"),
        by_magnet: true,
        is_tuned: true,
    },
    Line {
        name: "pieces_of_16_mib",
        title: "hybrid, pieces of 16 MiB",
        make: || Cell::of_file("hybrid", (40 << 20) + 5, "16MiB"),
        by_magnet: false,
        is_tuned: false,
    },
    Line {
        name: "ipv6",
        title: "hybrid, over IPv6",
        make: || Cell::of_file("hybrid", (3 << 20) + 5, "64KiB").over_v6(),
        by_magnet: false,
        is_tuned: false,
    },
    Line {
        name: "plain_tcp",
        title: "hybrid, without uTP and encryption",
        make: || Cell::of_file("hybrid", (3 << 20) + 5, "64KiB"),
        by_magnet: false,
        is_tuned: true,
    },
];

/// The trials, and their table.
pub fn trials() -> (Vec<Trial>, Table) {
    let mut table = Table::new(&["from us", "to us"]);
    let mut trials = Vec::new();
    let mut needs = vec![netns::need()];
    needs.extend(Peer::Libtorrent.needs());
    for line in &LINES {
        table.row(format!("libtorrent, {}", line.title));
        let change = |cell: &Cell, job: &mut peers::Job| {
            if line.is_tuned {
                job.tuned = Some(tuned());
            }
            if line.by_magnet {
                job.source = cell.magnet().into();
            }
        };
        trials.push(table.cell(0, &format!("{}_from_us", line.name), &needs, move || {
            let cell = (line.make)();
            leech_from_us(Peer::Libtorrent, &cell, |job| change(&cell, job))
        }));
        if line.by_magnet {
            table.impossible(1, "open: `ringseed get` takes no magnet link yet");
            continue;
        }
        let change = |job: &mut peers::Job| {
            if line.is_tuned {
                job.tuned = Some(tuned());
            }
        };
        trials.push(table.cell(1, &format!("{}_to_us", line.name), &needs, move || {
            let cell = (line.make)();
            let source = cell.torrent().into_os_string();
            seed_to_us(Peer::Libtorrent, &cell, &source, change)
        }));
    }
    table.row("libtorrent, falls back from encryption".to_owned());
    trials.push(table.cell(0, "falls_back_from_encryption", &needs, falls_back));
    for kind in ["v1", "v2", "hybrid"] {
        table.row(format!("libtorrent computes our infohashes, {kind}"));
        let name = format!("{kind}_infohashes_agree");
        trials.push(table.cell(0, &name, &needs, move || infohashes_agree(kind)));
    }
    (trials, table)
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
        job.tuned = Some(json!({"enable_outgoing_utp": false}));
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
