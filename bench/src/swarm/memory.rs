//! Workload `memory`: a seed that serves parts of a torrent of a tebibyte, a sparse file of zeros that it is told
//! to be whole; and a leech of more random content than the machine has memory for.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;
use sha1::Digest as _;

use super::bars::{Judge, Quantity};
use super::child::{Program, Sign, free_port, is_interrupted};
use super::data::{Plan, free_bytes, parse_size, size_text};
use super::table::Table;
use super::turns::Shape;
use super::wire::{Wire, blocks_from, drain};
use super::{Bench, Options};
use crate::report::{Bar, Report};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// Length of the sparse file, which takes no room.
    #[arg(long, default_value = "1024GiB", value_parser = parse_size)]
    pub sparse: u64,
    /// Parts to run.
    #[arg(long, value_delimiter = ',', default_values = PARTS, value_parser = PARTS)]
    pub parts: Vec<String>,
    /// Seconds of serving.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
}

const PARTS: [&str; 2] = ["seed", "leech"];
/// Length of what a leech fetches by default, bytes.
const SIZE: u64 = 32 << 30;
/// Room that is left to everybody else on the disk, bytes.
const ROOM_TO_KEEP: u64 = 4 << 30;
/// Length of a piece, bytes: 65,536 pieces of a tebibyte.
const PIECE_LEN: u64 = 16 << 20;
/// Peers that take parts far from each other.
const PEERS: u32 = 8;
/// What an engine may hold beyond its buffers of 64 MiB, in MiB.
const BEYOND_ARENA_MIB: f64 = 64.0;
/// Those buffers, in MiB: the default of the engine.
const ARENA_MIB: f64 = (ringseed_engine::ARENA_LEN_BYTES_DEFAULT >> 20) as f64;
/// So it may hold both, in MiB, and no more.
pub const HELD_MIB: f64 = ARENA_MIB + BEYOND_ARENA_MIB;

/// Runs the workload.
pub fn run(args: &Args) -> Report {
    // `seedleech` compares us with others; here they take part when they are named.
    let mut bench = match args.common.who.is_empty() {
        true => Bench::of_ours("memory", &args.common),
        false => Bench::new("memory", &args.common),
    };
    let is_wanted = |part: &str| args.parts.iter().any(|wanted| wanted == part);
    if is_wanted("seed")
        && let Err(error) = measure(&mut bench, args)
    {
        bench.report.fail(error);
    }
    if is_wanted("leech") {
        leech(&mut bench, args);
    }
    bench.finish()
}

/// One leech, one seed, and as much content as the disk has room for twice.
fn leech(bench: &mut Bench, args: &Args) {
    let wanted = args.common.size.unwrap_or(SIZE);
    let _ = fs::create_dir_all(&bench.runner.dir);
    let room = free_bytes(&bench.runner.dir).saturating_sub(ROOM_TO_KEEP) / 2;
    let size = wanted.min(room) / args.common.piece * args.common.piece;
    if size < wanted {
        bench.report.notes.push(format!(
            "the disk has room for {} and a copy, {} were wanted",
            size_text(size),
            size_text(wanted)
        ));
    }
    // Memory is the same in every turn, and turns are long.
    bench.runner.turns = bench.runner.turns.min(1);
    bench.runner.warms_up = false;
    bench.runner.calls_hindrance = Some("this workload looks at memory alone".to_owned());
    let plans = [Plan::file("payload.bin", size)];
    let piece = args.common.piece;
    let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 1) else { return };
    let what = format!("{} v1, pieces of {}", size_text(size), size_text(piece));
    let arms = bench.compare(&what, &payload, Shape::PAIR);
    let mut judge =
        Judge { report: &mut bench.report, arms: &arms, topic: &format!("memory, {what}") };
    for quantity in [Quantity::LEECH_MIB, Quantity::SEED_MIB] {
        judge.bound(quantity, HELD_MIB, None);
    }
}

fn measure(bench: &mut Bench, args: &Args) -> Result<(), String> {
    let dir = bench.runner.dir.join("sparse");
    let io = |error: std::io::Error| error.to_string();
    fs::create_dir_all(&dir).map_err(io)?;
    File::create(dir.join("sparse.bin")).and_then(|file| file.set_len(args.sparse)).map_err(io)?;
    let torrent = bench.runner.dir.join("sparse.torrent");
    fs::write(&torrent, torrent_of_zeros(args.sparse)).map_err(io)?;
    let metainfo =
        Metainfo::parse(&fs::read(&torrent).map_err(io)?).map_err(|error| error.to_string())?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut seed = serve(bench, &dir, &torrent, addr)?;
    let counted = AtomicU64::new(0);
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let pieces = metainfo.info().geometry().piece_count();
    let served = std::thread::scope(|scope| {
        let (metainfo, counted) = (&metainfo, &counted);
        let peers: Vec<_> = (0..PEERS)
            .map(|number| {
                scope.spawn(move || {
                    let from = Ipv4Addr::new(127, 0, 3, 1 + number as u8);
                    let mut wire = Wire::dial(addr, from, metainfo, number)?;
                    // Spread over all of it; each goes on from where it began.
                    let first = pieces / PEERS * number;
                    let blocks = blocks_from(metainfo.info().geometry(), first);
                    drain(&mut wire, blocks, 64, None, until, counted)
                })
            })
            .collect();
        while Instant::now() < until && !is_interrupted() {
            seed.look();
            std::thread::sleep(Duration::from_millis(50));
        }
        peers.into_iter().try_for_each(|peer| peer.join().expect("it does not panic"))
    });
    served.map_err(|error| format!("a peer of the sparse torrent: {error}"))?;
    seed.look();
    let (peak, bytes) =
        (seed.rss_peak_bytes() as f64 / 1_048_576.0, counted.load(Ordering::Relaxed));
    let title = format!(
        "parts of a sparse torrent of {}, {PEERS} peers, {} s",
        size_text(args.sparse),
        args.seconds
    );
    let mut table = Table::new(&title, &["peak MiB", "served MB/s"]);
    table.row("ringseed", &[peak, bytes as f64 / 1e6 / args.seconds as f64]);
    bench.report.tables.push(table);
    let bar = Bar::at_most("a tebibyte's seed, MiB at the peak", peak, HELD_MIB, None);
    let topic =
        format!("serving parts of {} sparse: MiB at the peak, seed", size_text(args.sparse));
    bench.report.bars.push(bar.with(&topic, "ringseed", "MiB", peak, None));
    Ok(())
}

fn serve(bench: &Bench, dir: &Path, torrent: &Path, addr: SocketAddr) -> Result<Program, String> {
    let home = bench.runner.dir.join("sparse-seed");
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.args(["node", "seed", "--known-complete", "--listen", &addr.to_string()]);
    command.arg("--data").arg(dir).arg("--state").arg(home.join("engine")).arg(torrent);
    let mut seed = Program::start(command, &home, None)?;
    seed.wait(&Sign::line("complete"), super::peers::START_MAX)?;
    Ok(seed)
}

/// The `.torrent` of a file of zeros (BEP 3).
fn torrent_of_zeros(len_bytes: u64) -> Vec<u8> {
    let digest = |len: u64| -> [u8; 20] { sha1::Sha1::digest(vec![0; len as usize]).into() };
    let whole = len_bytes / PIECE_LEN;
    let mut pieces = digest(PIECE_LEN).repeat(whole as usize);
    if !len_bytes.is_multiple_of(PIECE_LEN) {
        pieces.extend(digest(len_bytes % PIECE_LEN));
    }
    let head = format!(
        "d4:infod6:lengthi{len_bytes}e4:name10:sparse.bin12:piece lengthi{PIECE_LEN}e6:pieces{}:",
        pieces.len()
    );
    [head.as_bytes(), &pieces, b"ee"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_of_zeros_is_what_it_says() {
        let torrent = Metainfo::parse(&torrent_of_zeros(PIECE_LEN * 3 + 5)).unwrap();
        assert_eq!(torrent.info().geometry().piece_count(), 4);
        let piece = torrent.info().geometry().piece(3).unwrap();
        let hash: [u8; 20] = sha1::Sha1::digest([0; 5]).into();
        assert_eq!(torrent.info().v1_piece_hash(piece), Some(&hash));
    }
}
