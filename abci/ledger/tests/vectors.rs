//! Bytes that must never change: transactions, blocks, app hashes, deltas, a snapshot.
//!
//! The files under `tests/vectors/ledger` at the top of the repository are the format. A test that
//! fails here means that markets that run today would part; a wanted change of the format gets a new
//! version, new files beside the old ones, and `RINGSEED_WRITE_VECTORS=1 cargo test -p
//! ringseed-ledger --test vectors`.

mod support;

use std::fmt::Write as _;
use std::path::PathBuf;

use ringseed_ledger::{DecidedBlock, Delta, Genesis, Misbehaviour, State, Tx, TxBody, TxCode};
use support::*;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/ledger").join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes();
    assert!(digits.len().is_multiple_of(2), "odd hexadecimal");
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A history that meets every kind of transaction and every record of the state.
fn history(mut step: impl FnMut(&World, &DecidedBlock)) -> World {
    let mut world = World::with(&[3, 2, 2], params());
    let mut run = |world: &mut World, bodies: Vec<(u8, TxBody)>, misbehaving: Option<u8>| {
        let mut block = world.block(world.txs(bodies));
        block.misbehaviour.extend(
            misbehaving.map(|n| Misbehaviour { validator: public(n), height: block.height - 1 }),
        );
        step(world, &block);
        world.commit(&block);
    };
    let update = TxBody::UpdateEndpoint(ringseed_ledger::Endpoint {
        payload_addr: "[2001:db8::7]:6881".parse().unwrap(),
        ..endpoint(1)
    });
    run(&mut world, vec![(0, offer(1)), (1, offer(2)), (2, offer(3)), (9, register(9))], None);
    run(
        &mut world,
        vec![(1, have(&[1, 3])), (2, have(&[1, 2])), (0, admit(9)), (1, admit(9))],
        None,
    );
    run(&mut world, vec![], None);
    run(&mut world, vec![(9, have(&[1, 2, 3])), (1, update), (2, remove(1))], None);
    run(
        &mut world,
        vec![(0, remove(1)), (1, withdraw(&[2])), (8, register(8)), (0, admit(8))],
        None,
    );
    run(&mut world, vec![(0, offer(4)), (7, register(7)), (7, TxBody::Leave)], Some(2));
    run(&mut world, vec![(1, TxBody::Leave), (0, offer(5))], None);
    assert_eq!(world.state.validators().len(), 2);
    assert_eq!(world.state.listing_count(), 2);
    world
}

/// Name and text of every file.
fn vectors() -> Vec<(&'static str, String)> {
    let mut blocks = String::from(
        "# block HEIGHT | misbehaving KEY | tx BYTES | result CODE | delta BYTES | app HASH\n",
    );
    let mut txs = String::from("# KIND BYTES\n");
    let world = history(|world, block| {
        let outcome = world.state.execute(block);
        let _ = writeln!(blocks, "block {}", block.height);
        for misbehaviour in &block.misbehaviour {
            let _ = writeln!(blocks, "misbehaving {}", misbehaviour.validator);
        }
        for (tx, result) in block.txs.iter().zip(&outcome.results) {
            let kind = Tx::decode(tx).unwrap().body.kind_name().replace(' ', "-");
            let _ = writeln!(txs, "{kind} {}", hex(tx));
            let _ = writeln!(blocks, "tx {}\nresult {}", hex(tx), result.code.number());
        }
        let _ =
            writeln!(blocks, "delta {}\napp {}", hex(&outcome.delta.to_bytes()), outcome.app_hash);
    });
    let genesis = &world.genesis;
    let state = State::from_genesis(genesis).unwrap();
    let genesis = format!(
        "bytes {}\nhash {}\nchain {}\napp {}\n",
        hex(&genesis.to_bytes()),
        genesis.hash(),
        genesis.chain_id(),
        state.app_hash()
    );
    let snapshot =
        format!("app {}\nbytes {}\n", world.state.app_hash(), hex(&world.state.to_snapshot()));
    vec![
        ("genesis.toml", world.genesis.to_text()),
        ("genesis.txt", genesis),
        ("txs.txt", txs),
        ("blocks.txt", blocks),
        ("snapshot.txt", snapshot),
    ]
}

#[test]
fn formats_are_as_written() {
    for (name, text) in vectors() {
        let path = file(name);
        if std::env::var_os("RINGSEED_WRITE_VECTORS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let stored =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (line, (stored, computed)) in stored.lines().zip(text.lines()).enumerate() {
            assert_eq!(stored, computed, "{name}, line {}: the format changed", line + 1);
        }
        assert_eq!(stored.len(), text.len(), "{name}: the format changed");
    }
}

/// The files alone make the same state: nothing here calls an encoder.
#[test]
fn stored_blocks_give_the_stored_app_hashes() {
    if std::env::var_os("RINGSEED_WRITE_VECTORS").is_some() {
        return; // They are being written.
    }
    let genesis =
        Genesis::from_text(&std::fs::read_to_string(file("genesis.toml")).unwrap()).unwrap();
    let mut state = State::from_genesis(&genesis).unwrap();
    let mut replayed = state.clone();
    let blocks = std::fs::read_to_string(file("blocks.txt")).unwrap();
    let mut block = None;
    let mut codes = Vec::new();
    let mut block_count = 0;
    for line in blocks.lines().filter(|line| !line.starts_with('#')) {
        let (what, value) = line.split_once(' ').unwrap();
        match what {
            "block" => {
                let height = value.parse().unwrap();
                let (txs, misbehaviour) = (Vec::new(), Vec::new());
                block = Some(DecidedBlock { height, txs, proposer: public(0), misbehaviour });
            }
            "misbehaving" => {
                let validator = value.parse().unwrap();
                let block = block.as_mut().unwrap();
                block.misbehaviour.push(Misbehaviour { validator, height: block.height - 1 });
            }
            "tx" => block.as_mut().unwrap().txs.push(unhex(value)),
            "result" => codes.push(TxCode::from_number(value.parse().unwrap()).unwrap()),
            "delta" => replayed.commit(&Delta::decode(&unhex(value)).unwrap()).unwrap(),
            "app" => {
                let outcome = state.execute(&block.take().unwrap());
                let found: Vec<_> = outcome.results.iter().map(|result| result.code).collect();
                assert_eq!(found, std::mem::take(&mut codes));
                state.commit(&outcome.delta).unwrap();
                assert_eq!(state.app_hash().to_string(), value);
                assert_eq!(replayed.app_hash().to_string(), value);
                block_count += 1;
            }
            _ => panic!("unknown line {line}"),
        }
    }
    assert_eq!(block_count, 7);
    let snapshot = std::fs::read_to_string(file("snapshot.txt")).unwrap();
    let bytes = snapshot.lines().find_map(|line| line.strip_prefix("bytes ")).unwrap();
    let restored = State::from_snapshot(&unhex(bytes), &state.app_hash()).unwrap();
    assert_eq!(restored.to_snapshot(), state.to_snapshot());
}

#[test]
fn codes_keep_their_numbers() {
    let numbers: Vec<(u32, &str)> = TxCode::ALL.iter().map(|c| (c.number(), c.name())).collect();
    for code in TxCode::ALL {
        assert_eq!(TxCode::from_number(code.number()), Some(*code));
        assert!(!code.text().is_empty() && !code.cure().is_empty());
    }
    assert!(numbers.is_sorted_by(|a, b| a.0 < b.0));
    for known in [(5, "BadSignature"), (8, "NonceUsed"), (34, ""), (47, "NotOwner")] {
        let name =
            numbers.iter().find(|(number, _)| *number == known.0).map_or("", |(_, name)| name);
        assert_eq!(name, known.1);
    }
}
