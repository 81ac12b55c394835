//! ABCI 2.0 in front of our [`Application`]: every method by hand, and one dispatch.
//!
//! A daemon names validators by address (the first 20 bytes of SHA-256 of the key) and orders its
//! chain under a chain id. The ledger names them by key and signs over its genesis hash, and knows no
//! other id. Three rules tie the two: the daemon's chain id is the market's
//! ([`Genesis::chain_id`], `NAME-` and a prefix of the hash), its `app_state` carries the genesis, and a validator's key there is its node key here.
//! `init_chain` refuses a daemon that breaks one.

use std::sync::Arc;

use ringseed_ledger::{Genesis, GenesisHash, State};
use serde_json::json;
use sha2::{Digest, Sha256};
use tendermint_abci as stock;
use tendermint_proto::v0_38::abci::*;
use tendermint_proto::v0_38::crypto::{PublicKey, public_key::Sum};
use thiserror::Error;

use super::events;
use crate::app::LedgerApp;
use crate::cluster::certificate::{BlockId, Validator};
use crate::driver::{
    self, Application, ApplicationError, Proposal, SnapshotOffer, SnapshotVerdict, TxResult,
    Verdict,
};

/// The version of ABCI that is spoken: CometBFT 0.38 to 0.40 announce it.
const ABCI_VERSION: &str = "2.0.";
/// Version of the application in block headers: the ledger's rules.
pub const APP_VERSION: u64 = 1;
const CODESPACE: &str = "ringseed";
/// The field of `app_state` that holds the market's genesis, as text.
const APP_STATE_FIELD: &str = "ringseed_genesis";

/// Why a request gets an exception instead of an answer.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The daemon is not what we serve, or not set up for this market. Nothing changed.
    #[error("{0}")]
    Request(String),
    /// The application cannot go on.
    #[error(transparent)]
    Application(#[from] ApplicationError),
}

type Answer<T> = Result<T, Refusal>;

fn refuse<T>(why: impl Into<String>) -> Answer<T> {
    Err(Refusal::Request(why.into()))
}

/// `app_state` of a daemon's genesis file for this market.
pub fn app_state(genesis: &Genesis) -> serde_json::Value {
    json!({ APP_STATE_FIELD: genesis.to_text() })
}

/// The hash of the market that an `app_state` holds, if it holds one.
fn genesis_in(app_state: &[u8]) -> Option<GenesisHash> {
    let app_state: serde_json::Value = serde_json::from_slice(app_state).ok()?;
    Some(Genesis::from_text(app_state[APP_STATE_FIELD].as_str()?).ok()?.hash())
}

/// The address that CometBFT gives to a key.
pub fn address_of(key: &[u8; 32]) -> [u8; 20] {
    Sha256::digest(key)[..20].try_into().expect("a digest has 32 bytes")
}

/// The ledger as a daemon sees it. Clones share everything.
#[derive(Clone)]
pub struct Shim {
    ledger: Arc<LedgerApp>,
    app: Arc<dyn Application>,
}

impl Shim {
    /// Serves `app`, which stands before `ledger`; the ledger itself is read for who is who.
    pub fn new(ledger: Arc<LedgerApp>, app: Arc<dyn Application>) -> Self {
        Self { ledger, app }
    }

    /// The one dispatch: an answer of the request's kind.
    ///
    /// # Errors
    /// [`Refusal`], for the `exception` that the protocol has in its place.
    pub fn dispatch(&self, request: Request) -> Answer<response::Value> {
        use request::Value as In;
        use response::Value as Out;
        Ok(match request.value {
            None => return refuse("the request is empty, or of a kind that ABCI 2.0 has not"),
            Some(In::Echo(request)) => Out::Echo(ResponseEcho { message: request.message }),
            Some(In::Flush(_)) => Out::Flush(ResponseFlush {}),
            Some(In::Info(request)) => Out::Info(self.info(&request)?),
            Some(In::InitChain(request)) => Out::InitChain(self.init_chain(&request)?),
            Some(In::Query(request)) => Out::Query(self.query(&request)),
            Some(In::CheckTx(request)) => Out::CheckTx(self.check_tx(&request)),
            Some(In::Commit(_)) => Out::Commit(self.commit()?),
            Some(In::ListSnapshots(_)) => Out::ListSnapshots(self.list_snapshots()),
            Some(In::OfferSnapshot(request)) => Out::OfferSnapshot(self.offer_snapshot(request)),
            Some(In::LoadSnapshotChunk(request)) => {
                Out::LoadSnapshotChunk(self.load_snapshot_chunk(request))
            }
            Some(In::ApplySnapshotChunk(request)) => {
                Out::ApplySnapshotChunk(self.apply_snapshot_chunk(request))
            }
            Some(In::PrepareProposal(request)) => {
                Out::PrepareProposal(self.prepare_proposal(&request)?)
            }
            Some(In::ProcessProposal(request)) => {
                Out::ProcessProposal(self.process_proposal(&request)?)
            }
            Some(In::ExtendVote(_)) => return self.no_vote_extensions(),
            Some(In::VerifyVoteExtension(_)) => return self.no_vote_extensions(),
            Some(In::FinalizeBlock(request)) => Out::FinalizeBlock(self.finalize_block(&request)?),
        })
    }

    /// The daemon is gone: its unfinished block does not count.
    pub fn abandon(&self) {
        self.app.abandon();
    }

    fn info(&self, request: &RequestInfo) -> Answer<ResponseInfo> {
        let version = &request.abci_version;
        if !version.starts_with(ABCI_VERSION) {
            return refuse(format!(
                "the daemon {} speaks ABCI {version:?}; this ledger speaks 2.0 (CometBFT 0.38)",
                request.version
            ));
        }
        let driver::Info { height, app_hash } = self.app.info();
        Ok(ResponseInfo {
            data: CODESPACE.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            app_version: APP_VERSION,
            last_block_height: to_i64(height),
            // A chain without a block has no hash yet: `init_chain` gives it.
            last_block_app_hash: if height == 0 {
                <_>::default()
            } else {
                app_hash.to_vec().into()
            },
        })
    }

    fn init_chain(&self, request: &RequestInitChain) -> Answer<ResponseInitChain> {
        let (chain_id, genesis) = {
            let state = self.ledger.view();
            (state.chain_id(), state.genesis_hash())
        };
        if request.chain_id != chain_id {
            return refuse(format!("the daemon's chain is {}, not {chain_id}", request.chain_id));
        }
        if genesis_in(&request.app_state_bytes) != Some(genesis) {
            return refuse(format!("the daemon's app_state does not hold the genesis {genesis}"));
        }
        if request.initial_height > 1 {
            return refuse("the chain must begin at height 1");
        }
        let abci = request.consensus_params.as_ref().and_then(|params| params.abci.as_ref());
        if abci.is_some_and(|abci| abci.vote_extensions_enable_height != 0) {
            return refuse("vote extensions are off here: set vote_extensions_enable_height to 0");
        }
        let driver::InitChain { validators, app_hash } = self.app.init_chain()?;
        Ok(ResponseInitChain {
            consensus_params: None,
            validators: validators.iter().map(validator_update).collect(),
            app_hash: app_hash.to_vec().into(),
        })
    }

    fn query(&self, request: &RequestQuery) -> ResponseQuery {
        let height = to_i64(self.app.info().height);
        let answer = match request.height {
            0 => self.app.query(&request.path, &request.data),
            at if at == height => self.app.query(&request.path, &request.data),
            at => Err(format!("the state after height {at} is not kept, only after {height}")),
        };
        let key = request.data.clone();
        let empty =
            ResponseQuery { key, height, codespace: CODESPACE.into(), ..Default::default() };
        match answer {
            Ok(value) => ResponseQuery { value: value.into(), ..empty },
            Err(log) => ResponseQuery { code: 1, log, ..empty },
        }
    }

    fn check_tx(&self, request: &RequestCheckTx) -> ResponseCheckTx {
        let TxResult { code, info, events } = self.app.check_tx(&request.tx);
        ResponseCheckTx {
            code: code.number(),
            log: info,
            events: events::to_abci(&events),
            codespace: CODESPACE.into(),
            ..Default::default()
        }
    }

    fn prepare_proposal(
        &self,
        request: &RequestPrepareProposal,
    ) -> Answer<ResponsePrepareProposal> {
        let block = &request.misbehavior;
        let block = self.block(request.height, &request.proposer_address, &request.txs, block)?;
        let mut left = usize::try_from(request.max_tx_bytes).unwrap_or(0);
        // The daemon counts what each transaction takes in its block: tag, length, bytes.
        let fits = |tx: &Vec<u8>| {
            let len = prost::encoding::bytes::encoded_len(1, tx);
            left.checked_sub(len).inspect(|rest| left = *rest).is_some()
        };
        let txs = self.app.prepare_proposal(&block.proposal());
        Ok(ResponsePrepareProposal {
            txs: txs.into_iter().take_while(fits).map(Into::into).collect(),
        })
    }

    fn process_proposal(
        &self,
        request: &RequestProcessProposal,
    ) -> Answer<ResponseProcessProposal> {
        use response_process_proposal::ProposalStatus;
        let block = &request.misbehavior;
        let block = self.block(request.height, &request.proposer_address, &request.txs, block)?;
        let status = match self.app.process_proposal(&block.proposal()) {
            Verdict::Accept => ProposalStatus::Accept,
            Verdict::Reject => ProposalStatus::Reject,
        };
        Ok(ResponseProcessProposal { status: status.into() })
    }

    fn no_vote_extensions<T>(&self) -> Answer<T> {
        refuse("vote extensions are off here: set vote_extensions_enable_height to 0")
    }

    fn finalize_block(&self, request: &RequestFinalizeBlock) -> Answer<ResponseFinalizeBlock> {
        let Ok(block_id) = <[u8; 32]>::try_from(&request.hash[..]) else {
            return refuse(format!("a block hash has 32 bytes, not {}", request.hash.len()));
        };
        let block = &request.misbehavior;
        let block = self.block(request.height, &request.proposer_address, &request.txs, block)?;
        let finalized = self.app.finalize_block(BlockId(block_id), &block.proposal())?;
        Ok(finalized_response(&finalized))
    }

    fn commit(&self) -> Answer<ResponseCommit> {
        self.app.commit()?;
        // The daemon keeps its blocks: a newcomer may want to replay them all.
        Ok(ResponseCommit { retain_height: 0 })
    }

    fn list_snapshots(&self) -> ResponseListSnapshots {
        let snapshot = |offer: SnapshotOffer| Snapshot {
            height: offer.height,
            format: offer.format,
            chunks: u32::try_from(offer.chunk_hashes.len()).unwrap_or(u32::MAX),
            hash: offer.hash.to_vec().into(),
            metadata: offer.chunk_hashes.concat().into(),
        };
        let offers = self.app.list_snapshots();
        ResponseListSnapshots { snapshots: offers.into_iter().map(snapshot).collect() }
    }

    fn offer_snapshot(&self, request: RequestOfferSnapshot) -> ResponseOfferSnapshot {
        use response_offer_snapshot::Result as Verdict;
        let offer = request.snapshot.as_ref().and_then(snapshot_offer);
        let app_hash = <[u8; 32]>::try_from(&request.app_hash[..]).ok();
        let result = match offer.zip(app_hash) {
            Some((offer, app_hash)) => match self.app.offer_snapshot(&offer, app_hash) {
                SnapshotVerdict::Accept | SnapshotVerdict::Done => Verdict::Accept,
                SnapshotVerdict::Reject | SnapshotVerdict::BadChunk => Verdict::Reject,
            },
            None => Verdict::RejectSender,
        };
        ResponseOfferSnapshot { result: result.into() }
    }

    fn load_snapshot_chunk(&self, request: RequestLoadSnapshotChunk) -> ResponseLoadSnapshotChunk {
        let RequestLoadSnapshotChunk { height, format, chunk } = request;
        let chunk = self.app.load_snapshot_chunk(height, format, chunk).unwrap_or_default();
        ResponseLoadSnapshotChunk { chunk: chunk.into() }
    }

    fn apply_snapshot_chunk(
        &self,
        request: RequestApplySnapshotChunk,
    ) -> ResponseApplySnapshotChunk {
        use response_apply_snapshot_chunk::Result as Verdict;
        let RequestApplySnapshotChunk { index, chunk, sender } = request;
        let answer = |result: Verdict| ResponseApplySnapshotChunk {
            result: result.into(),
            ..Default::default()
        };
        match self.app.apply_snapshot_chunk(index, &chunk) {
            SnapshotVerdict::Accept | SnapshotVerdict::Done => answer(Verdict::Accept),
            SnapshotVerdict::BadChunk => ResponseApplySnapshotChunk {
                refetch_chunks: vec![index],
                reject_senders: vec![sender],
                ..answer(Verdict::Retry)
            },
            SnapshotVerdict::Reject => answer(Verdict::RejectSnapshot),
        }
    }

    /// A block in the ledger's words. Addresses become keys by the committed state, which is the same
    /// on every node at this point.
    fn block(
        &self,
        height: i64,
        proposer: &[u8],
        txs: &[bytes::Bytes],
        misbehaviour: &[Misbehavior],
    ) -> Answer<Block> {
        let Ok(height) = u64::try_from(height) else {
            return refuse(format!("no block has the height {height}"));
        };
        let state = self.ledger.view();
        let proven = misbehaviour.iter().filter_map(|proven| {
            let address = &proven.validator.as_ref()?.address;
            // Whoever is unknown by now has no membership that could be taken away.
            Some((key_of(&state, height, address)?, u64::try_from(proven.height).ok()?))
        });
        Ok(Block {
            height,
            proposer: key_of(&state, height, proposer).unwrap_or_default(),
            txs: txs.iter().map(|tx| tx.to_vec()).collect(),
            misbehaviour: proven.collect(),
        })
    }
}

struct Block {
    height: u64,
    proposer: [u8; 32],
    txs: Vec<Vec<u8>>,
    misbehaviour: Vec<([u8; 32], u64)>,
}

impl Block {
    fn proposal(&self) -> Proposal<'_> {
        let Self { height, proposer, txs, misbehaviour } = self;
        Proposal { height: *height, proposer: *proposer, txs, misbehaviour }
    }
}

/// Who has `address`: a validator of `height`, else any member.
fn key_of(state: &State, height: u64, address: &[u8]) -> Option<[u8; 32]> {
    let voting = state.validators_at(height).unwrap_or_default().iter();
    let mut keys = voting.map(|it| it.key.0).chain(state.members().map(|it| it.key.0));
    keys.find(|key| address_of(key) == *address)
}

/// What a block did, for the daemon. Results hold no local fact, so that a replay gives the same.
pub fn finalized_response(finalized: &driver::FinalizedBlock) -> ResponseFinalizeBlock {
    ResponseFinalizeBlock {
        events: events::to_abci(&finalized.events),
        tx_results: finalized.tx_results.iter().map(tx_result).collect(),
        validator_updates: finalized.validator_updates.iter().map(validator_update).collect(),
        consensus_param_updates: None,
        app_hash: finalized.app_hash.to_vec().into(),
    }
}

fn tx_result(result: &TxResult) -> ExecTxResult {
    ExecTxResult {
        code: result.code.number(),
        log: result.info.clone(),
        events: events::to_abci(&result.events),
        codespace: CODESPACE.into(),
        ..Default::default()
    }
}

fn validator_update(validator: &Validator) -> ValidatorUpdate {
    let pub_key = Some(PublicKey { sum: Some(Sum::Ed25519(validator.key.to_vec())) });
    ValidatorUpdate { pub_key, power: to_i64(validator.power) }
}

fn snapshot_offer(snapshot: &Snapshot) -> Option<SnapshotOffer> {
    let (chunk_hashes, rest) = snapshot.metadata.as_chunks::<32>();
    let is_whole = rest.is_empty() && chunk_hashes.len() == snapshot.chunks as usize;
    let hash = <[u8; 32]>::try_from(&snapshot.hash[..]).ok()?;
    let Snapshot { height, format, .. } = *snapshot;
    is_whole.then(|| SnapshotOffer { height, format, hash, chunk_hashes: chunk_hashes.to_vec() })
}

/// Heights and powers are far below the bound; saturating keeps the conversion total.
fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The same ledger behind the stock server, which knows no exception: there a refusal ends the
/// connection by a panic, because a default answer would be taken for a result.
impl stock::Application for Shim {
    fn info(&self, request: RequestInfo) -> ResponseInfo {
        answered(Shim::info(self, &request))
    }
    fn init_chain(&self, request: RequestInitChain) -> ResponseInitChain {
        answered(Shim::init_chain(self, &request))
    }
    fn query(&self, request: RequestQuery) -> ResponseQuery {
        Shim::query(self, &request)
    }
    fn check_tx(&self, request: RequestCheckTx) -> ResponseCheckTx {
        Shim::check_tx(self, &request)
    }
    fn commit(&self) -> ResponseCommit {
        answered(Shim::commit(self))
    }
    fn list_snapshots(&self) -> ResponseListSnapshots {
        Shim::list_snapshots(self)
    }
    fn offer_snapshot(&self, request: RequestOfferSnapshot) -> ResponseOfferSnapshot {
        Shim::offer_snapshot(self, request)
    }
    fn load_snapshot_chunk(&self, request: RequestLoadSnapshotChunk) -> ResponseLoadSnapshotChunk {
        Shim::load_snapshot_chunk(self, request)
    }
    fn apply_snapshot_chunk(
        &self,
        request: RequestApplySnapshotChunk,
    ) -> ResponseApplySnapshotChunk {
        Shim::apply_snapshot_chunk(self, request)
    }
    fn prepare_proposal(&self, request: RequestPrepareProposal) -> ResponsePrepareProposal {
        answered(Shim::prepare_proposal(self, &request))
    }
    fn process_proposal(&self, request: RequestProcessProposal) -> ResponseProcessProposal {
        answered(Shim::process_proposal(self, &request))
    }
    fn extend_vote(&self, _request: RequestExtendVote) -> ResponseExtendVote {
        answered(self.no_vote_extensions())
    }
    fn verify_vote_extension(
        &self,
        _request: RequestVerifyVoteExtension,
    ) -> ResponseVerifyVoteExtension {
        answered(self.no_vote_extensions())
    }
    fn finalize_block(&self, request: RequestFinalizeBlock) -> ResponseFinalizeBlock {
        answered(Shim::finalize_block(self, &request))
    }
}

fn answered<T>(answer: Answer<T>) -> T {
    answer.unwrap_or_else(|refusal| panic!("{refusal}"))
}
