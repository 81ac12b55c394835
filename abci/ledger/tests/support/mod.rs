//! A market in a test: keys by number, transactions in one line, blocks one after the other.
#![allow(dead_code)] // Every test target uses another part of it.

use std::collections::BTreeMap;

use ringseed_ledger::{
    Addr, BlockOutcome, DataHash, DecidedBlock, Endpoint, Genesis, GenesisMember, InfoHashV1,
    Misbehaviour, Offer, Params, PublicKey, SigningKey, State, Tx, TxBody, TxCode,
};

/// The key of number `n`, the same in every run.
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n.wrapping_add(1); 32])
}

pub fn addr(n: u8, port: u16) -> Addr {
    format!("127.0.0.{}:{port}", n.max(1)).parse().unwrap()
}

pub fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        name: format!("node{n}"),
        consensus_addr: addr(n, 4000 + u16::from(n)),
        payload_addr: addr(n, 5000 + u16::from(n)),
        capacity: 1_000_000,
    }
}

pub fn genesis_of(powers: &[u64], params: Params) -> Genesis {
    let members = (0u8..).zip(powers).map(|(n, power)| GenesisMember {
        name: format!("node{n}"),
        key: key(n).public(),
        consensus_addr: addr(n, 4000 + u16::from(n)),
        payload_addr: addr(n, 5000 + u16::from(n)),
        power: *power,
    });
    Genesis::new("test-market", params, members.collect()).unwrap()
}

/// Short windows, so that tests see them end.
pub fn params() -> Params {
    Params {
        candidate_expiry_heights: 10,
        removal_grace_heights: 5,
        trust_window_heights: 20,
        listing_size_max_bytes: 1_000,
        open_candidate_bytes_max: 2_500,
        ..Params::local()
    }
}

pub fn id(n: u8) -> DataHash {
    DataHash([n; 32])
}

pub fn offer_of_size(n: u8, size_bytes: u64) -> Offer {
    Offer {
        infohash_v2: id(n),
        infohash_v1: InfoHashV1([n; 20]),
        size_bytes,
        file_count: 3,
        piece_len_log2: 18,
        name: format!("data {n}"),
    }
}

pub fn offer(n: u8) -> TxBody {
    TxBody::Candidate(offer_of_size(n, 100))
}

pub fn have(ids: &[u8]) -> TxBody {
    TxBody::attest(ids.iter().map(|n| id(*n)).collect(), Vec::new())
}

pub fn withdraw(ids: &[u8]) -> TxBody {
    TxBody::attest(Vec::new(), ids.iter().map(|n| id(*n)).collect())
}

pub fn remove(n: u8) -> TxBody {
    TxBody::Remove { listing: id(n) }
}

pub fn admit(n: u8) -> TxBody {
    TxBody::Admit { member: key(n).public() }
}

pub fn register(n: u8) -> TxBody {
    TxBody::Register(endpoint(n))
}

pub struct World {
    pub genesis: Genesis,
    pub state: State,
}

impl World {
    pub fn new(powers: &[u64]) -> Self {
        Self::with(powers, params())
    }

    pub fn with(powers: &[u64], params: Params) -> Self {
        let genesis = genesis_of(powers, params);
        let state = State::from_genesis(&genesis).unwrap();
        Self { genesis, state }
    }

    pub fn next_height(&self) -> u64 {
        self.state.height() + 1
    }

    pub fn tx_at(&self, n: u8, nonce: u64, body: TxBody) -> Vec<u8> {
        let until = self.next_height() + 100;
        Tx::sign(&key(n), &self.genesis.hash(), nonce, until, body).unwrap().to_bytes()
    }

    /// Transactions with the signers' next nonces, in order.
    pub fn txs(&self, bodies: Vec<(u8, TxBody)>) -> Vec<Vec<u8>> {
        let mut nonces = BTreeMap::new();
        let sign = |(n, body)| {
            let nonce = nonces.entry(n).or_insert_with(|| self.state.nonce(&key(n).public()));
            *nonce += 1;
            self.tx_at(n, *nonce, body)
        };
        bodies.into_iter().map(sign).collect()
    }

    pub fn block(&self, txs: Vec<Vec<u8>>) -> DecidedBlock {
        let proposer = key(0).public();
        DecidedBlock { height: self.next_height(), txs, proposer, misbehaviour: Vec::new() }
    }

    pub fn commit(&mut self, block: &DecidedBlock) -> BlockOutcome {
        let outcome = self.state.execute(block);
        self.state.commit(&outcome.delta).unwrap();
        assert_eq!(self.state.app_hash(), outcome.app_hash);
        outcome
    }

    /// A block of raw transactions; their codes.
    pub fn raw(&mut self, txs: Vec<Vec<u8>>) -> Vec<TxCode> {
        let block = self.block(txs);
        self.commit(&block).results.iter().map(|result| result.code).collect()
    }

    /// A block of transactions with the signers' next nonces; their codes.
    pub fn run(&mut self, bodies: Vec<(u8, TxBody)>) -> Vec<TxCode> {
        let txs = self.txs(bodies);
        self.raw(txs)
    }

    /// The same, all must succeed.
    pub fn must(&mut self, bodies: Vec<(u8, TxBody)>) -> BlockOutcome {
        let block = self.block(self.txs(bodies));
        let outcome = self.commit(&block);
        for result in &outcome.results {
            assert_eq!(result.code, TxCode::Ok, "{}", result.info);
        }
        outcome
    }

    pub fn one(&mut self, n: u8, body: TxBody) -> TxCode {
        self.run(vec![(n, body)])[0]
    }

    pub fn empty_blocks(&mut self, count: u64) {
        for _ in 0..count {
            let block = self.block(Vec::new());
            self.commit(&block);
        }
    }

    pub fn misbehave(&mut self, n: u8, txs: Vec<Vec<u8>>) -> BlockOutcome {
        let mut block = self.block(txs);
        let height = self.state.height();
        block.misbehaviour.push(Misbehaviour { validator: key(n).public(), height });
        self.commit(&block)
    }

    /// Registers `n` and has `voters` admit it.
    pub fn admit(&mut self, n: u8, voters: &[u8]) {
        self.must(vec![(n, register(n))]);
        self.must(voters.iter().map(|voter| (*voter, admit(n))).collect());
        assert!(self.state.member(&public(n)).unwrap().is_admitted());
    }

    pub fn power(&self, n: u8) -> u64 {
        self.state.member(&public(n)).map_or(0, |member| member.power)
    }

    pub fn is_listed(&self, n: u8) -> bool {
        self.state.listing(&id(n)).is_some()
    }
}

pub fn public(n: u8) -> PublicKey {
    key(n).public()
}

/// A market whose founders have `powers`, and listing 1 of the first, which all of them hold.
pub fn with_listing(powers: &[u64]) -> World {
    let mut world = World::new(powers);
    world.must(vec![(0, offer(1))]);
    let others = (1u8..).take(powers.len() - 1);
    world.must(others.map(|n| (n, have(&[1]))).collect());
    assert!(world.is_listed(1));
    world
}
