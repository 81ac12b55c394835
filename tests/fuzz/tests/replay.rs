//! Every corpus through its body: what the fuzzers once found interesting, in an ordinary test.

use std::path::Path;

use ringseed_fuzz::source::noise;
use ringseed_fuzz::{TARGETS, Target};

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(name);
    let mut count = 0;
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        let input = std::fs::read(&path).expect("an input");
        told(target, &input, &format!("{}", path.display()));
        count += 1;
    }
    assert!(count >= 10, "{} holds {count} inputs: the corpus is missing", folder.display());
    // And noise, so that a body is met by something that no fuzzer has chosen.
    for seed in 0..64 {
        told(target, &noise(seed, seed as usize * 8), &format!("noise of seed {seed}"));
    }
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
    bencode metainfo handshake wire message extension metadata hashes merkle bitfield
    journal sidecar ledger_tx ledger_blocks snapshot genesis frames abci record_log lanes
    settings
}

/// A target that is left out of a list is not tested.
#[test]
fn every_target_is_listed_everywhere() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, REPLAYED);
    let listed: Vec<&str> = include_str!("../targets.txt")
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(names, listed, "targets.txt");
    let manifest = include_str!("../Cargo.toml");
    for name in names {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} is not built");
        let plant = Path::new(env!("CARGO_MANIFEST_DIR")).join("plants").join(format!("{name}.patch"));
        assert!(plant.exists(), "{name} has no planted bug to find");
    }
}
