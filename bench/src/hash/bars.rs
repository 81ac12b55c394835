//! The ratios that the kernels and the scheduler must reach, each from contenders in turns.

use ringseed_sys::hash::{Algo, Rung, Sha256Digest, merkle, registers};
use sha2::Digest as _;

use super::timing::{Batch, Clock, Place, Sample, Timing, noise, timed};
use super::{KIB, MIB, compare, contenders, size_text};
use crate::report::{Bar, Report};

/// Measures everything that has a bar. The tree has `tree_len_bytes` of leaves.
pub fn measure(timing: &Timing, tree_len_bytes: usize, report: &mut Report) {
    batches(timing, report);
    forced_sha_instructions(timing, report);
    few_messages(timing, report);
    unequal_lengths(timing, report);
    soiled_registers(timing, report);
    all_cores(timing, report);
    tree(timing, tree_len_bytes, report);
}

/// Full lanes against one message at a time, data in memory.
fn batches(timing: &Timing, report: &mut Report) {
    let batch = Batch { place: Place::Memory, len_bytes: 256 * KIB, count: 16 };
    let who = [contenders::ours(Algo::Sha1), contenders::yardstick(Algo::Sha1)];
    let rates = compare(timing, Algo::Sha1, batch, 1, &who, report);
    let what = "SHA-1, 16 x 256 KiB, DRAM: times the sha1 crate";
    report.bars.push(Bar::at_least(what, rates[0] / rates[1], 4.8, Some(5.8)));

    let batch = Batch { place: Place::Memory, len_bytes: 16 * KIB, count: 64 };
    let mut who = vec![contenders::ours(Algo::Sha256), contenders::yardstick(Algo::Sha256)];
    who.extend(contenders::tape(Algo::Sha256));
    let rates = compare(timing, Algo::Sha256, batch, 1, &who, report);
    let what = "SHA-256, leaves of 16 KiB, DRAM: times the sha2 crate";
    report.bars.push(Bar::at_least(what, rates[0] / rates[1], 2.4, Some(3.2)));
    match rates.get(2) {
        Some(tape) => {
            let what = "the same: times tape-sha256";
            report.bars.push(Bar::at_least(what, rates[0] / tape, 0.95, Some(1.15)));
        }
        None => report.notes.push("not built with `tape`: tape-sha256 is not compared".into()),
    }
}

/// What CPUs without AVX-512 get.
fn forced_sha_instructions(timing: &Timing, report: &mut Report) {
    for (algo, must, stretch) in [(Algo::Sha1, 2.3, 2.8), (Algo::Sha256, 1.7, 2.0)] {
        let Some(interleaved) = contenders::rung(algo, Rung::ShaNiX4) else { continue };
        let batch = Batch { place: Place::Memory, len_bytes: 256 * KIB, count: 16 };
        let who = [interleaved, contenders::yardstick(algo)];
        let rates = compare(timing, algo, batch, 1, &who, report);
        let what = format!("{}, sha-ni-x4 forced: times the crate", algo.name());
        report.bars.push(Bar::at_least(&what, rates[0] / rates[1], must, Some(stretch)));
    }
}

/// Fewer messages than lanes.
fn few_messages(timing: &Timing, report: &mut Report) {
    for (count, must) in [(8, 2.6), (4, 1.9), (1, 0.97)] {
        let batch = Batch { place: Place::Memory, len_bytes: 256 * KIB, count };
        let who = [contenders::ours(Algo::Sha1), contenders::yardstick(Algo::Sha1)];
        let rates = compare(timing, Algo::Sha1, batch, 1, &who, report);
        let what = format!("SHA-1, {count} messages of 256 KiB: times the sha1 crate");
        report.bars.push(Bar::at_least(&what, rates[0] / rates[1], must, None));
    }
}

/// Random lengths against equal ones of the same sum.
fn unequal_lengths(timing: &Timing, report: &mut Report) {
    // One in four million bytes would do; a fixed sequence makes runs comparable.
    let lengths: Vec<usize> = noise(8 * 120, 11)
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| 1 + u64::from_le_bytes(*bytes) as usize % (4 * MIB))
        .collect();
    let data = timing.data();
    let mut rest = data;
    let mut unequal: Vec<&[u8]> = Vec::new();
    for len_bytes in lengths {
        if len_bytes > rest.len() {
            break;
        }
        let (message, later) = rest.split_at(len_bytes);
        unequal.push(message);
        rest = later;
    }
    let equal: Vec<&[u8]> = data.chunks_exact(2 * MIB).take(unequal.len()).collect();
    for algo in Algo::ALL {
        let ours = contenders::ours(algo);
        contenders::check(&[ours], algo, &unequal);
        let turns = timing
            .in_turns(2, |who| timing.hash_once(&ours, if who == 0 { &unequal } else { &equal }));
        let shape = format!("{}, {} messages, DRAM, 1 core", algo.name(), unequal.len());
        let random = turns[0].figure(&shape, "random lengths to 4 MiB");
        let same = turns[1].figure(&shape, "2 MiB each");
        let ratio = random.bytes_per_second / same.bytes_per_second;
        report.figures.extend([random, same]);
        let what = format!("{}, random lengths against equal ones", algo.name());
        report.bars.push(Bar::at_least(&what, ratio, 0.88, Some(0.95)));
    }
}

/// Any rung after code that left register halves dirty.
fn soiled_registers(timing: &Timing, report: &mut Report) {
    let data: Vec<&[u8]> = timing.data().chunks_exact(16 * KIB).take(16).collect();
    for algo in Algo::ALL {
        let mut worst: f64 = 0.0;
        for rung in Rung::ALL {
            // The crates' code is not ours to build; the plan takes it on x86-64 only when forced.
            if rung == Rung::Crates {
                continue;
            }
            let Some(contender) = contenders::rung(algo, rung) else { continue };
            let turns = timing.in_turns(2, |who| {
                let mut buffers = contenders::Buffers::default();
                let rate = timed(Clock::Core, timing.turn(), || {
                    if who == 0 {
                        registers::soil()
                    } else {
                        registers::clear()
                    }
                    contender.hash(&data, &mut buffers);
                    data.len() * 16 * KIB
                });
                registers::clear();
                rate
            });
            let shape = format!("{}, 16 x 16 KiB, L2, 1 core, {rung}", algo.name());
            let soiled = turns[0].figure(&shape, "dirty upper halves");
            let clean = turns[1].figure(&shape, "clean");
            worst = worst.max(clean.bytes_per_second / soiled.bytes_per_second - 1.0);
            report.figures.extend([soiled, clean]);
        }
        let what = format!("{}, worst rung, dirty registers: share of time lost", algo.name());
        report.bars.push(Bar::at_most(&what, worst, 0.03, None));
    }
}

/// All cores against one.
fn all_cores(timing: &Timing, report: &mut Report) {
    let cores = timing.core_counts().pop().unwrap_or(1);
    if cores < 2 {
        report.notes.push("one core only: scaling is not measured".into());
        return;
    }
    for (algo, len_bytes) in [(Algo::Sha1, 256 * KIB), (Algo::Sha256, 16 * KIB)] {
        let batch = Batch { place: Place::Memory, len_bytes, count: 16 };
        let turns = timing.scaling(batch, cores, &contenders::ours(algo));
        let shape = format!("{}, 16 x {}, DRAM", algo.name(), size_text(len_bytes));
        let one = turns[0].figure(&format!("{shape}, 1 core"), "ringseed");
        let all = turns[1].figure(&format!("{shape}, {cores} cores"), "ringseed");
        let gain = all.bytes_per_second / one.bytes_per_second;
        report.figures.extend([one, all]);
        // The bar is set for two cores; more share caches and memory in ways it says nothing about.
        let per_two = gain * 2.0 / cores as f64;
        let what = format!("{}, {cores} cores against one, per two cores", algo.name());
        report.bars.push(Bar::at_least(&what, per_two, 1.9, Some(2.0)));
    }
}

/// The tree of BEP 52 over data in memory, against one `sha2` call after another.
fn tree(timing: &Timing, len_bytes: usize, report: &mut Report) {
    let data = timing.data();
    // The data of one core again and again: it is far larger than the caches.
    let leaf_count = (len_bytes / merkle::LEAF_LEN_BYTES).next_power_of_two();
    let chunks = || {
        let per_round = data.len() / merkle::LEAF_LEN_BYTES;
        (0..leaf_count)
            .step_by(per_round)
            .map(move |from| &data[..(leaf_count - from).min(per_round) * merkle::LEAF_LEN_BYTES])
    };
    let mut nodes: Vec<Sha256Digest> = vec![[0; 32]; leaf_count];
    let mut roots = [[0; 32]; 2];
    let mut inner_shares = Vec::new();
    let turns = timing.in_turns(2, |who| {
        registers::clear();
        let started = Clock::Core.now();
        let mut rest = nodes.as_mut_slice();
        let mut inner = started;
        for chunk in chunks() {
            let (now, later) = rest.split_at_mut(chunk.len() / merkle::LEAF_LEN_BYTES);
            if who == 0 {
                merkle::leaves(chunk, now);
            } else {
                for (leaf, node) in chunk.chunks(merkle::LEAF_LEN_BYTES).zip(now) {
                    *node = sha2::Sha256::digest(leaf).into();
                }
            }
            rest = later;
        }
        if who == 0 {
            inner = Clock::Core.now();
            roots[0] = merkle::root(&mut nodes, 0);
        } else {
            let mut count = nodes.len();
            while count > 1 {
                count /= 2;
                for at in 0..count {
                    let pair = &nodes[2 * at..2 * at + 2];
                    nodes[at] = sha2::Sha256::digest(pair.as_flattened()).into();
                }
            }
            roots[1] = nodes[0];
        }
        let ended = Clock::Core.now();
        let took = ended - started;
        if who == 0 {
            inner_shares.push((ended - inner).as_secs_f64() / took.as_secs_f64());
        }
        let bytes = (leaf_count * merkle::LEAF_LEN_BYTES) as f64;
        Sample { rate: bytes / took.as_secs_f64(), bytes }
    });
    assert_eq!(roots[0], roots[1], "the trees have one root");
    let size = leaf_count * merkle::LEAF_LEN_BYTES / MIB;
    let shape = format!("tree of BEP 52 over {size} MiB, DRAM, 1 core");
    let ours = turns[0].figure(&shape, "ringseed");
    let crates = turns[1].figure(&shape, "sha2 crate");
    let ratio = ours.bytes_per_second / crates.bytes_per_second;
    report.figures.extend([ours, crates]);
    inner_shares.sort_by(f64::total_cmp);
    let inner_share = inner_shares[inner_shares.len() / 2];
    report.bars.push(Bar::at_least(
        "tree of BEP 52, one core: times the sha2 crate",
        ratio,
        2.3,
        Some(3.0),
    ));
    report.bars.push(Bar::at_most(
        "tree of BEP 52: share of time in inner nodes",
        inner_share,
        0.02,
        Some(0.01),
    ));
}
