//! Every corpus through its body: what the fuzzers once found interesting, in an ordinary test.

use std::path::Path;

use ringseed_fuzz::source::noise;
use ringseed_fuzz::{TARGETS, Target};

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let mut corpus = Vec::new();
    for path in paths {
        let input = std::fs::read(&path).expect("an input");
        told(target, &input, &format!("{}", path.display()));
        corpus.push(input);
    }
    let count = corpus.len();
    assert!(count >= 10, "{} holds {count} inputs: the corpus is missing", folder.display());
    // And noise, and inputs of the corpus with some of it in them: `RINGSEED_FUZZ_ROUNDS=100000` is a
    // poor man's fuzzer where libFuzzer cannot be built.
    let rounds = std::env::var("RINGSEED_FUZZ_ROUNDS").ok();
    let rounds = rounds.map_or(64, |rounds| rounds.parse().expect("a number of rounds"));
    for seed in 0..rounds {
        let mut input = noisy(&corpus, seed);
        input.truncate(len_max(name));
        told(target, &input, &format!("round {seed}"));
    }
}

/// Length of the longest input that makes sense, in bytes.
fn len_max(name: &str) -> usize {
    let mut lines = include_str!("../targets.txt").lines();
    let len = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    len.unwrap_or_else(|| panic!("{name} has no line in targets.txt"))
}

/// An input that is noise, or one of the corpus with noise in some of its places.
fn noisy(corpus: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let dice = noise(seed, 64);
    if dice[0] < 64 {
        return noise(seed ^ 1 << 32, 4 * usize::from(dice[1]));
    }
    let mut input =
        corpus[(usize::from(dice[1]) * 256 + usize::from(dice[2])) % corpus.len()].clone();
    for place in dice[4..].chunks(5).take(1 + usize::from(dice[3]) % 12) {
        let at = (usize::from(place[0]) * 256 + usize::from(place[1])) % input.len().max(1);
        match place[2] % 4 {
            0 if !input.is_empty() => input[at] = place[3],
            1 if !input.is_empty() => input[at] ^= 1 << (place[3] % 8),
            2 => input.insert(at, place[3]),
            _ => drop(input.drain(at..input.len().min(at + usize::from(place[3] % 8)))),
        }
    }
    input
}

/// Runs a body and says which input it was, should it panic.
fn told(target: &Target, input: &[u8], what: &str) {
    let result = std::panic::catch_unwind(|| (target.run)(input));
    assert!(result.is_ok(), "{}: {what} fails, see above", target.name);
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

replayed! {
    bencode metainfo magnet handshake wire message extension metadata hashes merkle bitfield
    journal sidecar ledger_tx ledger_blocks snapshot genesis frames abci record_log lanes
    settings
}

/// A target that is left out of a list is not tested.
#[test]
fn every_target_is_listed_everywhere() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, REPLAYED);
    let listed: Vec<&str> =
        include_str!("../targets.txt").lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, listed, "targets.txt");
    let manifest = include_str!("../Cargo.toml");
    for name in names {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} is not built");
        let plant =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("plants").join(format!("{name}.patch"));
        assert!(plant.exists(), "{name} has no planted bug to find");
    }
}
