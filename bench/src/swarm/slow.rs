//! Hundreds of peers at 10 KiB/s each way: whether a leech with one fast source is held up by pieces that
//! trickle in, and whether a seed sends to a fast peer as to one alone.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::wire::message::{Message, RawBlock};

use super::Bench;
use super::arm::median;
use super::child::{Sign, free_port, is_interrupted, nap};
use super::data::{Payload, Plan, size_text};
use super::fairness::{Args, piece_text, stream};
use super::peers::{Engine, Job, Peer, contender};
use super::serve::Serving;
use super::table::Table;
use super::wire::{Came, Wire, bits, blocks_from, drain};
use crate::report::Bar;

/// What a slow peer gives, and takes, in a second, in bytes.
const RATE: u64 = 10 << 10;
/// Length of a block, bytes.
const BLOCK_LEN: u32 = 16 << 10;
/// Receive buffer of a slow leech, in bytes: what it has not read is in the seed's hands.
const NARROW: usize = 16 << 10;
/// Blocks that a slow leech has asked for.
const ASKED: usize = 32;
/// Length of the payload by default, bytes.
const SIZE: u64 = 1 << 30;
/// A transfer beside slow peers that takes so many times what it takes alone has failed.
const SLOWER_MAX: f64 = 20.0;

/// Runs this part of `fairness`.
pub fn run(bench: &mut Bench, args: &Args) {
    let size = args.common.size.unwrap_or(SIZE);
    let title = format!(
        "{} v1 from one fast source, beside {} peers at 10 KiB/s",
        size_text(size),
        args.slow
    );
    let mut table = Table::new(&title, &["alone, MB/s", "beside them, MB/s", "share"]);
    let title_served = format!("one fast leech of a seed, beside {} at 10 KiB/s", args.slow);
    let mut served = Table::new(&title_served, &["alone, MB/s", "beside them, MB/s", "share"]);
    bench.report.contend(contender(&Engine::UNSYNCED));
    for &piece in &args.slow_pieces {
        let _ = std::fs::remove_dir_all(&bench.runner.dir);
        let plans = [Plan::file("payload.bin", size)];
        let Some(payload) = bench.payload(Kind::V1, piece, &plans, &args.common, 1) else { return };
        eprintln!("fairness: {title}, {}", piece_text(piece));
        let mut times = [Vec::new(), Vec::new()];
        let rounds = args.common.turns.min(3);
        for _ in 0..rounds {
            for (at, count) in [0, args.slow].into_iter().enumerate() {
                let alone = times[0].last().copied().unwrap_or(size as f64 / 1e7);
                let patience = Duration::from_secs_f64(10.0 + alone * SLOWER_MAX);
                match fetch(bench, &payload, count, patience) {
                    Ok(seconds) => times[at].push(seconds),
                    Err(_) if is_interrupted() => break,
                    Err(error) => {
                        let text = format!("{count} slow peers, {}: {error}", piece_text(piece));
                        bench.report.fail(text.lines().next().unwrap_or_default().to_owned());
                    }
                }
            }
        }
        let rate = |times| median(times).map_or(f64::NAN, |seconds| size as f64 / seconds);
        let [alone, beside] = times.map(rate);
        table.row(&piece_text(piece), &[alone / 1e6, beside / 1e6, beside / alone]);
        let what =
            format!("{} slow peers, {}: share of the speed alone", args.slow, piece_text(piece));
        let bar = Bar::at_least(&what, beside / alone, 0.8, None);
        let topic = format!(
            "a leech beside {} peers at 10 KiB/s, {}: share of its speed alone",
            args.slow,
            piece_text(piece)
        );
        let peer = Some((alone / 1e6, "ours, alone"));
        bench.report.bars.push(bar.with(&topic, Engine::UNSYNCED.name, "MB/s", beside / 1e6, peer));
        if is_interrupted() {
            break;
        }
        if let Err(error) = serve(bench, args, &payload, &mut served) {
            bench.report.fail(format!("a seed of {}: {error}", piece_text(piece)));
        }
    }
    bench.report.tables.extend([table, served]);
}

/// A seed with so many leeches that read 10 KiB/s, each with much asked for, and a fast one beside them.
fn serve(
    bench: &mut Bench,
    args: &Args,
    payload: &Payload,
    table: &mut Table,
) -> Result<(), String> {
    let seed = Serving::start(bench, &Engine::UNSYNCED, payload)?;
    let (torrent, seconds) = (payload.metainfo(), args.seconds.min(5));
    let alone = stream(seed.addr, &torrent, seconds)?;
    // What is on its way when they begin is a burst of a few seconds.
    let settle = Duration::from_secs(5);
    let until = Instant::now() + settle + Duration::from_secs(seconds + 2);
    let taken = AtomicU64::new(0);
    let beside = std::thread::scope(|scope| {
        let (torrent, taken, addr) = (&torrent, &taken, seed.addr);
        for number in 0..args.slow {
            scope.spawn(move || {
                let from = Ipv4Addr::new(127, 3, (number / 250) as u8, 1 + (number % 250) as u8);
                let id = 30_000 + number;
                let _ =
                    Wire::dial_with(addr, from, torrent, id, Some(NARROW)).and_then(|mut wire| {
                        let blocks = blocks_from(torrent.info().geometry(), number * 7);
                        drain(&mut wire, blocks, ASKED, Some(RATE), until, taken)
                    });
            });
        }
        nap(settle)?;
        let before = taken.load(Ordering::Relaxed);
        let beside = stream(addr, torrent, seconds)?;
        let each = (taken.load(Ordering::Relaxed) - before) / u64::from(args.slow);
        if each < RATE * seconds / 2 {
            return Err(format!("the slow peers got {each} bytes each in {seconds} s"));
        }
        Ok(beside)
    })?;
    let piece = piece_text(torrent.info().geometry().piece_len_nominal().into());
    table.row(&piece, &[alone / 1e6, beside / 1e6, beside / alone]);
    let what = format!("{} slow leeches, {piece}: share of the speed alone", args.slow);
    let bar = Bar::at_least(&what, beside / alone, 0.8, None);
    let topic =
        format!("a seed beside {} leeches at 10 KiB/s, {piece}: a fast leech's share", args.slow);
    let peer = Some((alone / 1e6, "ours, alone"));
    bench.report.bars.push(bar.with(&topic, Engine::UNSYNCED.name, "MB/s", beside / 1e6, peer));
    Ok(())
}

/// Seconds that a leech needs, with so many slow peers that are there before it knows of the fast one.
fn fetch(bench: &Bench, payload: &Payload, slow: u32, patience: Duration) -> Result<f64, String> {
    let seed = Serving::start(bench, &Engine::UNSYNCED, payload)?;
    let home = bench.runner.dir.join("slow-leech");
    let _ = std::fs::remove_dir_all(&home);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let job = Job {
        home: home.clone(),
        addr,
        payload,
        folder: home.join("copy"),
        peers: vec![seed.addr],
        tracker: String::new(),
        core: None,
        stays: true,
        counts_calls: false,
    };
    let is_over = AtomicBool::new(false);
    let (torrent, connected) = (payload.metainfo(), AtomicU32::new(0));
    let path = payload.root.join(torrent.info().name());
    let source = File::open(&path).map_err(|error| error.to_string())?;
    let result = std::thread::scope(|scope| {
        let (torrent, source, is_over, connected) = (&torrent, &source, &is_over, &connected);
        for number in 0..slow {
            scope.spawn(move || {
                // It comes again when it was sent away, as slow peers do.
                while !is_over.load(Ordering::Relaxed) {
                    let _ = trickle(addr, torrent, source, number, is_over, connected);
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let fetched = Engine::UNSYNCED.leech(&job).and_then(|mut fetching| {
            let begun = fetching.program.begun();
            let done = fetching.program.wait(&Sign::line("complete"), patience)?;
            Ok((done - begun).as_secs_f64())
        });
        is_over.store(true, Ordering::Relaxed);
        fetched
    });
    let checked = result.and_then(|seconds| payload.verify(&job.folder).map(|()| seconds));
    let _ = std::fs::remove_dir_all(&home);
    if checked.is_ok() && slow > 0 && connected.load(Ordering::Relaxed) < slow / 2 {
        let there = connected.load(Ordering::Relaxed);
        return Err(format!("only {there} of {slow} slow peers were let in"));
    }
    checked
}

/// One slow peer that has everything and still asks for what the other side gets.
fn trickle(
    addr: SocketAddr,
    torrent: &Metainfo,
    source: &File,
    number: u32,
    is_over: &AtomicBool,
    connected: &AtomicU32,
) -> std::io::Result<()> {
    let from = Ipv4Addr::new(127, 2, (number / 250) as u8, 1 + (number % 250) as u8);
    let mut wire = Wire::dial(addr, from, torrent, 20_000 + number)?;
    connected.fetch_add(1, Ordering::Relaxed);
    let pieces = torrent.info().geometry().piece_count();
    let bits = bits(pieces, 0xff);
    wire.send(&[Message::Bitfield(&bits), Message::Unchoke, Message::Interested])?;
    wire.set_patience(Duration::from_millis(100))?;
    let piece_len = torrent.info().geometry().piece_len_nominal();
    let (mut asked, mut may_ask, mut has) = (Vec::new(), false, None);
    // They do not all give their first block in the same moment.
    let pause = Duration::from_secs_f64(f64::from(BLOCK_LEN) / RATE as f64);
    let mut next = Instant::now() + pause.mul_f64(f64::from(number % 16) / 16.0);
    while !is_over.load(Ordering::Relaxed) {
        match wire.next() {
            Ok(Came::Request(block)) => asked.push(block),
            Ok(Came::Unchoke) => may_ask = true,
            Ok(Came::Choke) => may_ask = false,
            Ok(Came::Have(piece)) => has = Some(piece),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + pause;
        if !asked.is_empty() {
            let block: RawBlock = asked.remove(0);
            let mut data = vec![0; block.len as usize];
            let offset = u64::from(block.piece) * u64::from(piece_len) + u64::from(block.begin);
            source.read_exact_at(&mut data, offset)?;
            wire.send(&[Message::Piece { piece: block.piece, begin: block.begin, data: &data }])?;
        }
        if let Some(piece) = has.filter(|_| may_ask) {
            let block = RawBlock { piece, begin: 0, len: BLOCK_LEN };
            wire.send(&[Message::Request(block)])?;
        }
    }
    Ok(())
}
