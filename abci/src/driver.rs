//! The boundary between whoever orders transactions and what they mean, in the call order of
//! ABCI 2.0. `solo`, `cluster` and the socket shim all drive the same [`Application`], and
//! [`crate::grammar::Recogniser`] checks in tests that they do it by the same grammar.

use ringseed_ledger::{Event, TxCode};
use thiserror::Error;

use crate::cluster::certificate::{BlockId, Validator};

/// Where the application stands: what it answers to a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Height of the last durable commit; 0 before the first.
    pub height: u64,
    /// App hash after it.
    pub app_hash: [u8; 32],
}

/// The answer to `init_chain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitChain {
    /// The founders' powers.
    pub validators: Vec<Validator>,
    /// App hash of the genesis state.
    pub app_hash: [u8; 32],
}

/// What became of one transaction, checked or executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxResult {
    /// What the ledger says.
    pub code: TxCode,
    /// The same for people.
    pub info: String,
    /// What the transaction did by itself.
    pub events: Vec<Event>,
}

/// A block as the application sees it: proposed or decided.
#[derive(Clone, Debug)]
pub struct Proposal<'a> {
    /// Its height: one more than the last commit.
    pub height: u64,
    /// Who made it.
    pub proposer: [u8; 32],
    /// The transactions in order.
    pub txs: &'a [Vec<u8>],
    /// Proven equivocation that the block carries: who, and at which height.
    pub misbehaviour: &'a [([u8; 32], u64)],
}

/// What executing a block gave. Nothing is stored before `commit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalizedBlock {
    /// One result per transaction, in order.
    pub tx_results: Vec<TxResult>,
    /// What followed from the transactions at the end of the block.
    pub events: Vec<Event>,
    /// New powers, effective two heights later.
    pub validator_updates: Vec<Validator>,
    /// App hash after the block.
    pub app_hash: [u8; 32],
}

/// Whether a proposed block may be voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Accept,
    /// An honest proposer can never have produced it.
    Reject,
}

/// A state that a newcomer may be given instead of the whole history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOffer {
    /// The height after which it was taken.
    pub height: u64,
    /// Format of the content; 1 is the ledger's snapshot cut in chunks.
    pub format: u32,
    /// SHA-256 of the whole content.
    pub hash: [u8; 32],
    /// SHA-256 of every chunk, in order: tells who sent a bad one.
    pub chunk_hashes: Vec<[u8; 32]>,
}

/// What to do after a snapshot or a chunk was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotVerdict {
    /// Taken; the next chunk is welcome.
    Accept,
    /// Taken, and it was the last: the state is in place.
    Done,
    /// Not usable: wrong format, wrong content.
    Reject,
    /// The chunk is not the one that was offered: another sender may have it.
    BadChunk,
}

/// Length of a snapshot chunk; only the last is shorter.
pub const SNAPSHOT_CHUNK_LEN_BYTES: usize = 4 << 20;
/// Most chunks of a snapshot.
pub const SNAPSHOT_CHUNKS_MAX: usize = 4_096;

/// Why the application cannot go on. The driver must stop: what is durable is not known.
#[derive(Debug, Error)]
pub enum ApplicationError {
    /// A call outside of the grammar of ABCI 2.0: a bug of the driver.
    #[error("{call} is not due here: {why}")]
    OutOfOrder {
        /// The call.
        call: &'static str,
        /// What was expected.
        why: String,
    },
    /// The state could not be made durable or read back.
    #[error("the application's state: {0}")]
    Storage(String),
}

/// What a driver calls. All methods take `&self`: the calls of one connection of a socket server
/// run beside those of another, and locking is the application's job.
///
/// Order per block: `prepare_proposal` (by the proposer), `process_proposal` (any number, any
/// rounds), `finalize_block` once, `commit` once. `info`, `check_tx`, `query` and the snapshot
/// listing come at any time.
pub trait Application: Send + Sync {
    /// The last durable height and its app hash.
    fn info(&self) -> Info;
    /// First call of a new chain: puts the genesis state in place.
    ///
    /// # Errors
    /// [`ApplicationError::OutOfOrder`] when there is a height already.
    fn init_chain(&self) -> Result<InitChain, ApplicationError>;
    /// Whether `tx` is worth gossiping, after those accepted since the last commit. No promise
    /// about its execution. Every commit forgets what was accepted: the mempool checks again.
    fn check_tx(&self, tx: &[u8]) -> TxResult;
    /// Picks and orders from `proposal.txs` what its block shall hold.
    fn prepare_proposal(&self, proposal: &Proposal<'_>) -> Vec<Vec<u8>>;
    /// Judges a proposed block.
    fn process_proposal(&self, proposal: &Proposal<'_>) -> Verdict;
    /// Executes a decided block into an overlay. Idempotent until the commit.
    ///
    /// # Errors
    /// [`ApplicationError::OutOfOrder`] when it is not the next height.
    fn finalize_block(
        &self,
        block_id: BlockId,
        block: &Proposal<'_>,
    ) -> Result<FinalizedBlock, ApplicationError>;
    /// Makes the last executed block durable and readable.
    ///
    /// # Errors
    /// See [`ApplicationError`].
    fn commit(&self) -> Result<Info, ApplicationError>;
    /// Throws away what was executed and not committed: whoever drives starts from `info` again.
    fn abandon(&self);
    /// Reads committed state; `path` as the ledger's documentation names it.
    fn query(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, String>;
    /// Snapshots that can be served.
    fn list_snapshots(&self) -> Vec<SnapshotOffer>;
    /// One chunk of a listed snapshot; `None` when there is no such.
    fn load_snapshot_chunk(&self, height: u64, format: u32, chunk_index: u32) -> Option<Vec<u8>>;
    /// Looks at a snapshot whose state shall have `app_hash` (trusted by the caller).
    fn offer_snapshot(&self, offer: &SnapshotOffer, app_hash: [u8; 32]) -> SnapshotVerdict;
    /// Takes the next chunk of the accepted offer, in order.
    fn apply_snapshot_chunk(&self, chunk_index: u32, chunk: &[u8]) -> SnapshotVerdict;
}
