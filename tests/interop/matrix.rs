//! The interop matrix: other clients against `ringseed seed` and `ringseed get`. Each cell is a real
//! transfer between processes, and every byte of what arrived is compared.
//!
//! It runs in a network namespace (see `netns`), so that the clients keep their defaults: encryption
//! preferred, uTP, DHT, local discovery and peer exchange on.
#![forbid(unsafe_code)]

mod cells;
mod extras;
mod ours;
mod peers;
mod table;

use libtest_mimic::Arguments;
use ringseed_tests::netns;
use ringseed_tests::skip::{self, Need};

use cells::Row;
use peers::Peer;
use table::Table;

/// Must say what was seen.
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
/// What was seen is left here for whoever wants to paste it.
const MARKDOWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/interop-matrix.md");

/// Cells spend most of their time waiting for a client's timers.
const CELLS_AT_ONCE: usize = 12;

const ROWS: [Row; 10] = [
    Row { peer: Peer::Libtorrent, kind: "v1", name: "libtorrent_v1" },
    Row { peer: Peer::Libtorrent, kind: "v2", name: "libtorrent_v2" },
    Row { peer: Peer::Libtorrent, kind: "hybrid", name: "libtorrent_hybrid" },
    Row { peer: Peer::Qbittorrent, kind: "v2", name: "qbittorrent_v2" },
    Row { peer: Peer::Qbittorrent, kind: "hybrid", name: "qbittorrent_hybrid" },
    Row { peer: Peer::Transmission, kind: "v1", name: "transmission_v1" },
    Row { peer: Peer::Aria2, kind: "v1", name: "aria2_v1" },
    Row { peer: Peer::Rqbit, kind: "v1", name: "rqbit_v1" },
    Row { peer: Peer::Rqbit, kind: "hybrid", name: "rqbit_hybrid" },
    Row { peer: Peer::Rtorrent, kind: "v1", name: "rtorrent_v1" },
];

fn main() {
    netns::enter();
    let mut trials = Vec::new();
    let mut table = Table::new(&cells::COLUMNS.map(|column| column.title));
    for row in ROWS {
        let mut needs: Vec<Need> = vec![netns::need()];
        needs.extend(row.peer.needs());
        table.row(format!("{}, {}", row.peer.title(), row.kind));
        for (index, column) in cells::COLUMNS.iter().enumerate() {
            if let Some(reason) = cells::impossible(row, column) {
                table.impossible(index, reason);
                continue;
            }
            let name = format!("{}_{}", row.name, column.name);
            let mut needs = needs.clone();
            needs.extend(column.also_needs(row));
            let run = column.run;
            trials.push(table.cell(index, &name, &needs, move || run(row)));
        }
    }
    let (more, extras) = extras::trials();
    trials.extend(more);
    // Those that take longest first, so that nothing is waited for alone at the end: Transmission looks
    // at its torrents every ten seconds.
    trials.sort_by_key(|trial| match trial.name() {
        name if name.starts_with("transmission") => 0,
        name if name.contains("70000") => 1,
        _ => 2,
    });
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(CELLS_AT_ONCE));
    let is_whole = arguments.filter.is_none() && !arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        conclusion.exit();
    }
    let text =
        |with_times| format!("{}\n{}", table.markdown(with_times), extras.markdown(with_times));
    println!("\n{}", text(true));
    for peer in peers::PEERS {
        println!("{} {}", peer.title(), peer.version());
    }
    conclusion.exit_if_failed();
    if is_whole {
        let _ = std::fs::write(MARKDOWN, text(false));
        // Without RINGSEED_REQUIRE cells may have been skipped, and those are no news for the README.
        let is_said = std::fs::read_to_string(README).is_ok_and(|said| said.contains(&text(false)));
        if skip::is_required() && !is_said {
            eprintln!("README.md has another matrix: put target/interop-matrix.md into it");
            std::process::exit(101);
        }
    }
}
