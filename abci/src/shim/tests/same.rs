//! The same decided blocks give the same results and the same state under every driver.

use std::time::Duration;

use ringseed_ledger::Endpoint;

use super::*;
use crate::cluster::certificate::BlockId;
use crate::driver::{
    Application, ApplicationError, FinalizedBlock, Info, InitChain, Proposal, SnapshotOffer,
    SnapshotVerdict, TxResult, Verdict,
};
use crate::handle::{ClusterConfig, Driver};
use crate::shim::app::finalized_response;
use crate::{Cluster, Solo, SoloConfig};

/// A decided block and what it gave.
#[derive(Clone, Debug)]
struct Decided {
    block_id: BlockId,
    height: u64,
    proposer: [u8; 32],
    txs: Vec<Vec<u8>>,
    finalized: FinalizedBlock,
}

/// An application that writes down what its driver decided.
struct Recorder {
    inner: Arc<LedgerApp>,
    decided: Arc<Mutex<Vec<Decided>>>,
}

impl Application for Recorder {
    fn info(&self) -> Info {
        self.inner.info()
    }
    fn init_chain(&self) -> Result<InitChain, ApplicationError> {
        self.inner.init_chain()
    }
    fn check_tx(&self, tx: &[u8]) -> TxResult {
        self.inner.check_tx(tx)
    }
    fn prepare_proposal(&self, proposal: &Proposal<'_>) -> Vec<Vec<u8>> {
        self.inner.prepare_proposal(proposal)
    }
    fn process_proposal(&self, proposal: &Proposal<'_>) -> Verdict {
        self.inner.process_proposal(proposal)
    }
    fn finalize_block(
        &self,
        block_id: BlockId,
        block: &Proposal<'_>,
    ) -> Result<FinalizedBlock, ApplicationError> {
        let finalized = self.inner.finalize_block(block_id, block)?;
        assert!(block.misbehaviour.is_empty());
        self.decided.lock().unwrap().push(Decided {
            block_id,
            height: block.height,
            proposer: block.proposer,
            txs: block.txs.to_vec(),
            finalized: finalized.clone(),
        });
        Ok(finalized)
    }
    fn commit(&self) -> Result<Info, ApplicationError> {
        self.inner.commit()
    }
    fn abandon(&self) {
        self.inner.abandon();
    }
    fn query(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, String> {
        self.inner.query(path, data)
    }
    fn list_snapshots(&self) -> Vec<SnapshotOffer> {
        self.inner.list_snapshots()
    }
    fn load_snapshot_chunk(&self, height: u64, format: u32, index: u32) -> Option<Vec<u8>> {
        self.inner.load_snapshot_chunk(height, format, index)
    }
    fn offer_snapshot(&self, offer: &SnapshotOffer, app_hash: [u8; 32]) -> SnapshotVerdict {
        self.inner.offer_snapshot(offer, app_hash)
    }
    fn apply_snapshot_chunk(&self, chunk_index: u32, chunk: &[u8]) -> SnapshotVerdict {
        self.inner.apply_snapshot_chunk(chunk_index, chunk)
    }
}

/// Offers, a removal, a registration and its admission, a refusal: what a market does.
fn story() -> Vec<TxBody> {
    let newcomer = SigningKey::from_seed(&[2; 32]);
    let offer_body = |seed: u8| {
        TxBody::Candidate(Offer {
            infohash_v2: DataHash([seed; 32]),
            infohash_v1: InfoHashV1([seed; 20]),
            size_bytes: 1_000,
            file_count: 1,
            piece_len_log2: 14,
            name: format!("data {seed}"),
        })
    };
    let mut story: Vec<_> = (1..=5).map(offer_body).collect();
    story.push(TxBody::Remove { listing: DataHash([3; 32]) });
    story.push(TxBody::attest(vec![DataHash([1; 32])], vec![DataHash([2; 32])]));
    let addr = |port: u16| Addr::new(([127, 0, 0, 1], port).into()).unwrap();
    let endpoint = |port: u16| Endpoint {
        name: "renamed".into(),
        consensus_addr: addr(port),
        payload_addr: addr(port + 1),
        capacity: 7,
    };
    story.push(TxBody::UpdateEndpoint(endpoint(9)));
    // Refused by the rules of the market, so never in a block of an honest proposer.
    story.push(TxBody::Admit { member: newcomer.public() });
    story
}

fn play(driver: &dyn Driver) {
    for body in story() {
        let nonce = driver.view().nonce(&key().public()) + 1;
        let tx = Tx::sign(&key(), &genesis().hash(), nonce, 5_000, body).unwrap();
        let _ = driver.submit(tx.to_bytes(), Duration::from_secs(10));
    }
}

/// Feeds `decided` to a fresh shim over its socket and compares every byte of every answer.
fn assert_same_through_the_shim(name: &str, decided: &[Decided], height: u64, app_hash: [u8; 32]) {
    let served = serve_tcp(name);
    let mut daemon = served.connect();
    daemon.handshake();
    assert!(decided.iter().map(|block| block.txs.len()).sum::<usize>() >= 8, "nothing to compare");
    for block in decided.iter().filter(|block| block.height <= height) {
        let request = RequestFinalizeBlock {
            height: block.height as i64,
            txs: block.txs.iter().cloned().map(Into::into).collect(),
            hash: block.block_id.0.to_vec().into(),
            proposer_address: address_of(&block.proposer).to_vec().into(),
            ..Default::default()
        };
        let answer = daemon.call(request::Value::FinalizeBlock(request));
        let response::Value::FinalizeBlock(answer) = answer else { panic!("{answer:?}") };
        assert_eq!(bytes_of(&answer), bytes_of(&finalized_response(&block.finalized)));
        daemon.commit();
    }
    let state = served.ledger.view();
    assert_eq!((state.height(), state.app_hash().0), (height, app_hash));
}

#[test]
fn blocks_of_solo_give_the_same_through_the_shim() {
    let dir = TempDir::new("same-solo");
    let decided = Arc::new(Mutex::new(Vec::new()));
    let config = SoloConfig {
        dir: dir.path().into(),
        key: key(),
        genesis: Some(genesis()),
        on_fatal: |why| panic!("{why}"),
    };
    let log = decided.clone();
    let solo =
        Solo::start_with(config, |inner| Arc::new(Recorder { inner, decided: log })).unwrap();
    play(&solo);
    solo.shutdown();
    let (height, app_hash) = (solo.view().height(), solo.view().app_hash().0);
    assert_same_through_the_shim("same-solo-shim", &decided.lock().unwrap(), height, app_hash);
}

#[test]
fn blocks_of_the_cluster_give_the_same_through_the_shim() {
    let dir = TempDir::new("same-cluster");
    let decided = Arc::new(Mutex::new(Vec::new()));
    let mut config = ClusterConfig::new(dir.path(), key());
    config.genesis = Some(genesis());
    let log = decided.clone();
    let cluster =
        Cluster::start_with(config, |inner| Arc::new(Recorder { inner, decided: log })).unwrap();
    play(&cluster);
    cluster.shutdown();
    let (height, app_hash) = (cluster.view().height(), cluster.view().app_hash().0);
    assert_same_through_the_shim("same-cluster-shim", &decided.lock().unwrap(), height, app_hash);
}
