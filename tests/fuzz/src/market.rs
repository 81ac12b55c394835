//! A small market, and the transactions that the ledger's targets put into it.

use std::sync::LazyLock;

use ringseed_ledger::{
    Addr, DataHash, Endpoint, Genesis, GenesisMember, InfoHashV1, Offer, Params, SigningKey, State,
    Tx, TxBody,
};

use crate::source::Source;

/// Keys that transactions are signed with; the first three are founders.
pub const KEYS: usize = 6;
const FOUNDERS: usize = 3;

/// The key of number `n`, the same in every run.
pub fn key(n: usize) -> &'static SigningKey {
    static ALL: LazyLock<Vec<SigningKey>> =
        LazyLock::new(|| (0..KEYS as u8).map(|n| SigningKey::from_seed(&[n + 1; 32])).collect());
    &ALL[n % KEYS]
}

fn addr(n: usize, port: u16) -> Addr {
    format!("127.0.0.{}:{port}", n + 1).parse().expect("an address of one host")
}

/// A market of three with short windows and tight limits, so that all of them are met.
pub fn genesis() -> &'static Genesis {
    static GENESIS: LazyLock<Genesis> = LazyLock::new(|| {
        let params = Params {
            candidate_expiry_heights: 10,
            removal_grace_heights: 5,
            trust_window_heights: 20,
            listing_size_max_bytes: 1_000,
            open_candidate_bytes_max: 2_500,
            ..Params::local()
        };
        let member = |n: usize| GenesisMember {
            name: format!("node{n}"),
            key: key(n).public(),
            consensus_addr: addr(n, 4000),
            payload_addr: addr(n, 5000),
            power: [3, 2, 2][n],
        };
        let members = (0..FOUNDERS).map(member).collect();
        Genesis::new("fuzz", params, members).expect("a market")
    });
    &GENESIS
}

/// The state at height 0, to be moved on.
pub fn state() -> State {
    first_state().clone()
}

/// The state at height 0.
pub fn first_state() -> &'static State {
    static STATE: LazyLock<State> =
        LazyLock::new(|| State::from_genesis(genesis()).expect("the rules are known"));
    &STATE
}

/// The identity of number `n`.
pub fn id(n: u8) -> DataHash {
    DataHash([n % 8 + 1; 32])
}

fn endpoint(source: &mut Source<'_>) -> Endpoint {
    let n = source.below(8);
    Endpoint {
        name: format!("node{n}"),
        consensus_addr: addr(n, 4000),
        payload_addr: addr(n, 5000),
        capacity: source.u64(),
    }
}

fn ids(source: &mut Source<'_>) -> Vec<DataHash> {
    let bits = source.byte();
    (0..8).filter(|n| bits & (1 << n) != 0).map(id).collect()
}

/// Any kind of transaction, mostly one that may succeed.
pub fn body(source: &mut Source<'_>) -> TxBody {
    match source.below(10) {
        0 => TxBody::Register(endpoint(source)),
        1 => TxBody::UpdateEndpoint(endpoint(source)),
        2 => TxBody::Leave,
        3 => TxBody::Admit { member: key(source.below(KEYS)).public() },
        4 | 5 => {
            let n = source.byte();
            TxBody::Candidate(Offer {
                infohash_v2: id(n),
                infohash_v1: InfoHashV1([n; 20]),
                size_bytes: [100, 900, 1_000, 1_001, 1, u64::MAX][source.below(6)],
                file_count: 3,
                piece_len_log2: 18,
                name: format!("data {n}"),
            })
        }
        6..=8 => {
            let (have, mut withdrawn) = (ids(source), ids(source));
            withdrawn.retain(|id| !have.contains(id));
            TxBody::attest(have, withdrawn)
        }
        _ => TxBody::Remove { listing: id(source.byte()) },
    }
}

/// Signs `body` for the market.
pub fn sign(n: usize, nonce: u64, until: u64, body: TxBody) -> Vec<u8> {
    let tx = Tx::sign(key(n), &genesis().hash(), nonce, until, body);
    tx.expect("bodies made here keep their form").to_bytes()
}
