//! Our parser of metainfo beside libtorrent's (PyPI), and our bencode decoder beside those of two crates, on
//! generated and mutated input: the same verdict, the same info hashes, the same files, or a difference that
//! belongs to a class which a specification decides. `RINGSEED_DIFFERENTIAL_CASES` says how many torrents
//! (CI: 100,000), `RINGSEED_DIFFERENTIAL_SEED` which ones.
#![forbid(unsafe_code)]

#[path = "differential/classes.rs"]
mod classes;
#[path = "differential/decoders.rs"]
mod decoders;
#[path = "differential/generate.rs"]
mod generate;
#[path = "differential/made.rs"]
mod made;
#[path = "differential/mutate.rs"]
mod mutate;
#[path = "differential/tree.rs"]
mod tree;
#[path = "differential/verdict.rs"]
mod verdict;

use std::collections::BTreeMap;
use std::process::Command;

use libtest_mimic::{Arguments, Failed};
use ringseed_tests::data::Seeded;
use ringseed_tests::scratch::Scratch;
use ringseed_tests::skip::{Need, trial};

use crate::classes::CLASSES;
use crate::generate::Origin;
use crate::verdict::{Parser, Verdict, ours};

/// Torrents that `cargo test` tries; CI tries 100,000.
const CASES: u64 = 5_000;
/// Torrents per question to libtorrent: what a pipe takes without filling up is not the limit, for it reads
/// a whole batch before it answers.
const BATCH: u64 = 250;
/// Differences that are written down before the test gives up.
const SHOWN_MAX: usize = 20;

fn main() {
    let present = Command::new("python3")
        .args(["-W", "ignore", "-c", "import libtorrent"])
        .output()
        .is_ok_and(|output| output.status.success());
    let needs = [Need {
        name: "libtorrent for Python",
        install: "python3 -m pip install libtorrent",
        present,
    }];
    let trials = vec![
        trial("torrents_are_read_as_libtorrent_reads_them", &needs, torrents_are_read_alike),
        trial("each_class_of_differences_has_its_file", &needs, each_class_has_its_file),
        trial("info_hashes_of_random_trees_are_libtorrents", &needs, made::info_hashes_agree),
        trial("bencode_is_read_as_bendy_reads_it", &[], decoders::agrees_with_bendy),
        trial("bencode_is_read_as_bt_bencode_reads_it", &[], decoders::agrees_with_bt_bencode),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

#[derive(Default)]
struct Tally {
    cases: u64,
    mutants: u64,
    aware: u64,
    both_take: u64,
    both_refuse: u64,
    by_class: BTreeMap<&'static str, u64>,
    unexplained: Vec<String>,
}

fn torrents_are_read_alike() -> Result<(), Failed> {
    let cases = setting("RINGSEED_DIFFERENTIAL_CASES", CASES);
    let seed = setting("RINGSEED_DIFFERENTIAL_SEED", 0x5eed);
    let mut parser = Parser::start()?;
    let mut random = Seeded::new(seed);
    let mut tally = Tally::default();
    let kept = Scratch::new("differential");
    while tally.cases < cases && tally.unexplained.len() < SHOWN_MAX {
        let count = BATCH.min(cases - tally.cases);
        let batch: Vec<_> = (0..count).map(|_| generate::case(&mut random)).collect();
        let theirs = parser.ask(batch.iter().map(|case| &case.bytes[..]))?;
        for (case, theirs) in batch.iter().zip(theirs) {
            tally.cases += 1;
            tally.mutants += u64::from(case.origin != Origin::Valid);
            tally.aware += u64::from(case.origin == Origin::StructureMutant);
            let ours = ours(&case.bytes);
            match (&ours, &theirs) {
                (Verdict::Taken(_), Verdict::Taken(_)) => tally.both_take += 1,
                (Verdict::Refused(_), Verdict::Refused(_)) => tally.both_refuse += 1,
                _ => {}
            }
            if ours.agrees_with(&theirs) {
                continue;
            }
            match classes::of(&case.bytes, &ours, &theirs) {
                Some(class) => *tally.by_class.entry(class).or_default() += 1,
                None => {
                    let at = tally.cases;
                    std::fs::write(kept.join(&format!("{at}.torrent")), &case.bytes)?;
                    let shown = case.bytes.escape_ascii().to_string();
                    let shown = shown.get(..3000).unwrap_or(&shown);
                    tally
                        .unexplained
                        .push(format!("case {at}\n{shown}\n  ours: {ours}\n  theirs: {theirs}"));
                }
            }
        }
    }
    let Tally { cases, mutants, aware, both_take, both_refuse, by_class, unexplained } = tally;
    println!(
        "{cases} torrents from seed {seed:#x}: both take {both_take}, both refuse {both_refuse}; \
         {mutants} mutants, {aware} of them structure-aware; differences by class: {by_class:#?}"
    );
    if !unexplained.is_empty() {
        let count = unexplained.len();
        return Err(format!(
            "{count} differences of no class, seed {seed:#x}:\n{}",
            unexplained.join("\n")
        )
        .into());
    }
    if both_take * 5 < cases || aware * 10 < mutants * 3 {
        return Err(
            "too few torrents that both take, or too few mutants that know the structure".into()
        );
    }
    Ok(())
}

/// The committed file of each class still is of that class, with the verdicts that its story tells.
fn each_class_has_its_file() -> Result<(), Failed> {
    let mut parser = Parser::start()?;
    for class in &CLASSES {
        let bytes = classes::file(class)?;
        let ours = ours(&bytes);
        let theirs = parser.ask(std::iter::once(&bytes[..]))?.remove(0);
        let found = classes::of(&bytes, &ours, &theirs);
        if ours.agrees_with(&theirs) || found != Some(class.name) {
            return Err(
                format!("{}: {found:?}\n  ours: {ours}\n  theirs: {theirs}", class.name).into()
            );
        }
    }
    Ok(())
}
