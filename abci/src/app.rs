//! The ledger behind the boundary: [`LedgerApp`] executes blocks and keeps the state on disk.
//!
//! `finalize_block` computes an overlay and writes nothing. `commit` appends ONE record (height, block
//! id, delta with the root) to `state.log`, syncs it, and only then moves the state that readers see.
//! When the log outgrows the last checkpoint, `state.checkpoint` is replaced by a snapshot and the
//! log starts anew, so that opening reads at most about twice the state.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, RwLock};

use ringseed_ledger::{
    AppHash, BlockOutcome, DecidedBlock, Delta, Genesis, Misbehaviour, PendingNonces, PublicKey,
    State, StateKey, Tx, TxCode,
};
use sha2::{Digest, Sha256};

use crate::cluster::certificate::{BlockId, Validator, ValidatorSet, hex};
use crate::codec::{CodecError, Reader, put_bytes};
use crate::driver::{
    Application, ApplicationError, FinalizedBlock, Info, InitChain, Proposal,
    SNAPSHOT_CHUNK_LEN_BYTES, SNAPSHOT_CHUNKS_MAX, SnapshotOffer, SnapshotVerdict, TxResult,
    Verdict,
};
use crate::handle::{StartError, View};
use crate::record_log::{HEADER_LEN_BYTES, LogError, RecordLog, replace_file};
use crate::snapshots::{SNAPSHOT_FORMAT, Snapshots};

const LOG_MAGIC: &[u8; 8] = b"RSSTATE1";
/// A block of 1 MiB changes less than this: every change comes from bytes of a transaction.
const RECORD_LEN_BYTES_MAX: u32 = 256 << 20;
const CHECKPOINT_MAGIC: &[u8; 8] = b"RSCHECK1";
/// The log is never shortened below this: small states are replayed in milliseconds.
const LOG_LEN_BYTES_MIN: u64 = 4 << 20;
/// Largest snapshot that is taken from others. It is held in memory until its hash is proven.
const SNAPSHOT_LEN_BYTES_MAX: usize = 1 << 30;

/// The application over the ledger. Cheap to share; all state is behind locks.
#[derive(Debug)]
pub struct LedgerApp {
    state: RwLock<State>,
    /// What `check_tx` took in since the last commit.
    pending: Mutex<PendingNonces>,
    /// The executed and uncommitted block.
    executed: Mutex<Option<Executed>>,
    disk: Mutex<Disk>,
    incoming: Mutex<Option<Incoming>>,
    /// What newcomers are offered; `None` keeps none.
    snapshots: Option<Mutex<Snapshots>>,
    founders: Vec<Validator>,
}

#[derive(Debug)]
struct Executed {
    block_id: BlockId,
    outcome: BlockOutcome,
}

#[derive(Debug)]
struct Disk {
    log: RecordLog,
    checkpoint_path: PathBuf,
    checkpoint_len_bytes: u64,
    log_len_bytes_min: u64,
}

#[derive(Debug)]
struct Incoming {
    offer: SnapshotOffer,
    app_hash: [u8; 32],
    content: Vec<u8>,
}

impl LedgerApp {
    /// Opens the state in `dir`, or begins with `genesis`. A torn last record is cut off: its block
    /// is executed again.
    ///
    /// # Errors
    /// [`StartError::Damaged`], [`StartError::Io`], [`StartError::BadGenesis`].
    pub fn open(dir: &Path, genesis: &Genesis) -> Result<Self, StartError> {
        Self::open_with(dir, genesis, LOG_LEN_BYTES_MIN)
    }

    pub(crate) fn open_with(
        dir: &Path,
        genesis: &Genesis,
        log_len_bytes_min: u64,
    ) -> Result<Self, StartError> {
        let log_path = dir.join("state.log");
        let checkpoint_path = dir.join("state.checkpoint");
        let damaged = |path: &Path, why: String| StartError::Damaged { path: path.into(), why };
        let (mut state, checkpoint_len_bytes) = match read_checkpoint(&checkpoint_path)? {
            Some((state, len_bytes)) => (state, len_bytes),
            None => {
                let state = State::from_genesis(genesis);
                (state.map_err(|error| StartError::BadGenesis { why: error.to_string() })?, 0)
            }
        };
        if state.genesis_hash() != genesis.hash() {
            return Err(StartError::OtherGenesis {
                stored: state.genesis_hash().to_string(),
                given: genesis.hash().to_string(),
            });
        }
        let mut fault = None;
        let log = RecordLog::open(&log_path, LOG_MAGIC, RECORD_LEN_BYTES_MAX, 0, |_, payload| {
            if fault.is_some() {
                return;
            }
            match decode_record(payload) {
                // Left behind by a crash between a checkpoint and the cut of the log.
                Ok((_, delta)) if delta.height() <= state.height() => {}
                Ok((_, delta)) => fault = state.commit(&delta).err().map(|error| error.to_string()),
                Err(error) => fault = Some(error),
            }
        })
        .map_err(start_error)?;
        if let Some(why) = fault {
            return Err(damaged(&log_path, why));
        }
        let founders = State::from_genesis(genesis)
            .map_err(|error| StartError::BadGenesis { why: error.to_string() })?;
        Ok(Self {
            founders: powers(founders.validators()),
            state: RwLock::new(state),
            pending: Mutex::default(),
            executed: Mutex::default(),
            disk: Mutex::new(Disk {
                log,
                checkpoint_path,
                checkpoint_len_bytes,
                log_len_bytes_min,
            }),
            incoming: Mutex::default(),
            snapshots: None,
        })
    }

    /// Keeps snapshots for newcomers in `dir/snapshots`, one every `every_heights` heights.
    ///
    /// # Errors
    /// [`StartError::Io`].
    pub fn keep_snapshots(mut self, dir: &Path, every_heights: u64) -> Result<Self, StartError> {
        let path = dir.join("snapshots");
        let snapshots = Snapshots::open(&path, every_heights)
            .map_err(|source| StartError::Io { path, source })?;
        self.snapshots = Some(Mutex::new(snapshots));
        Ok(self)
    }

    /// Keeps a snapshot of the state as it is when one is due. A newcomer can wait for the next one:
    /// failing here stops nobody.
    fn keep_due_snapshot(&self) {
        let Some(mut snapshots) = self.snapshots() else { return };
        let state = self.view();
        let height = state.height();
        if snapshots.is_due(height) {
            let content = state.to_snapshot();
            drop(state);
            if let Err(error) = snapshots.keep(height, &content) {
                tracing::warn!(height, %error, "no snapshot could be kept");
            }
        }
    }

    fn snapshots(&self) -> Option<MutexGuard<'_, Snapshots>> {
        self.snapshots.as_ref().map(|it| it.lock().expect("no panic under this lock"))
    }

    /// Read access to the committed state.
    pub fn view(&self) -> View<'_> {
        View::of(&self.state)
    }

    /// Who may sign `height`: known for the last committed height and the two after it.
    pub fn validators_at(&self, height: u64) -> Option<ValidatorSet> {
        self.view().validators_at(height).map(|set| ValidatorSet::new(powers(set)))
    }

    fn executed(&self) -> MutexGuard<'_, Option<Executed>> {
        self.executed.lock().expect("no panic under this lock")
    }

    fn pending(&self) -> MutexGuard<'_, PendingNonces> {
        self.pending.lock().expect("no panic under this lock")
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no panic under this lock")
    }
}

impl Application for LedgerApp {
    fn info(&self) -> Info {
        let state = self.view();
        Info { height: state.height(), app_hash: state.app_hash().0 }
    }

    fn init_chain(&self) -> Result<InitChain, ApplicationError> {
        let Info { height, app_hash } = self.info();
        if height > 0 {
            let why = format!("the chain is at height {height}");
            return Err(ApplicationError::OutOfOrder { call: "init_chain", why });
        }
        Ok(InitChain { validators: self.founders.clone(), app_hash })
    }

    fn check_tx(&self, tx: &[u8]) -> TxResult {
        let mut pending = self.pending();
        // One gossiped transaction must not stop every validator: a panic in here is a refusal.
        // The state cannot be half changed, because it is only read.
        let check = std::panic::AssertUnwindSafe(|| {
            let result = self.view().check_tx(tx, &pending);
            (result, Tx::decode(tx).ok())
        });
        let Ok((result, decoded)) = std::panic::catch_unwind(check) else {
            tracing::error!(tx = %Tx::hash_of(tx), "checking a transaction panicked: it is refused");
            let info = "the check failed".into();
            return TxResult { code: TxCode::Malformed, info, events: Vec::new() };
        };
        if let (true, Some(tx)) = (result.is_ok(), decoded) {
            pending.add(tx.signer, tx.nonce);
        }
        tx_result(result)
    }

    fn prepare_proposal(&self, proposal: &Proposal<'_>) -> Vec<Vec<u8>> {
        self.view().prepare(&decided(proposal))
    }

    fn process_proposal(&self, proposal: &Proposal<'_>) -> Verdict {
        match self.view().process(&decided(proposal)) {
            Ok(()) => Verdict::Accept,
            Err(fault) => {
                tracing::warn!(height = proposal.height, %fault, "a proposed block is refused");
                Verdict::Reject
            }
        }
    }

    fn finalize_block(
        &self,
        block_id: BlockId,
        block: &Proposal<'_>,
    ) -> Result<FinalizedBlock, ApplicationError> {
        let mut executed = self.executed();
        if let Some(Executed { block_id: last, outcome }) = executed.as_ref()
            && *last == block_id
        {
            return Ok(finalized(outcome));
        }
        let state = self.view();
        if block.height != state.height() + 1 {
            let why = format!("block {} after height {}", block.height, state.height());
            return Err(ApplicationError::OutOfOrder { call: "finalize_block", why });
        }
        let outcome = state.execute(&decided(block));
        let finalized = finalized(&outcome);
        *executed = Some(Executed { block_id, outcome });
        Ok(finalized)
    }

    fn commit(&self) -> Result<Info, ApplicationError> {
        let Some(Executed { block_id, outcome }) = self.executed().take() else {
            let why = "no block was executed since the last commit".into();
            return Err(ApplicationError::OutOfOrder { call: "commit", why });
        };
        let storage = |error: LogError| ApplicationError::Storage(error.to_string());
        let mut disk = self.disk();
        disk.log.append(&encode_record(&block_id, &outcome.delta)).map_err(storage)?;
        {
            let mut state = self.state.write().expect("a commit never panics under this lock");
            state.commit(&outcome.delta).map_err(|e| ApplicationError::Storage(e.to_string()))?;
        }
        *self.pending() = PendingNonces::new();
        let log_len_bytes = disk.log.end_offset_bytes();
        if log_len_bytes > disk.checkpoint_len_bytes.max(disk.log_len_bytes_min) {
            let state = self.view();
            let bytes = checkpoint_bytes(&state);
            drop(state);
            replace_file(&disk.checkpoint_path, &bytes)
                .map_err(|error| ApplicationError::Storage(error.to_string()))?;
            disk.checkpoint_len_bytes = bytes.len() as u64;
            disk.log.truncate(HEADER_LEN_BYTES).map_err(storage)?;
        }
        drop(disk);
        self.keep_due_snapshot();
        Ok(self.info())
    }

    fn abandon(&self) {
        *self.executed() = None;
    }

    /// `/height`, `/app_hash`, `/nonce` (data: key), `/value` and `/proof` (data: a state key).
    fn query(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, String> {
        let state = self.view();
        let key = || StateKey::decode(data).map_err(|error| error.to_string());
        match path {
            "/height" => Ok(state.height().to_le_bytes().to_vec()),
            "/app_hash" => Ok(state.app_hash().0.to_vec()),
            "/nonce" => {
                let key = data.try_into().map_err(|_| "a key has 32 bytes".to_owned())?;
                Ok(state.nonce(&PublicKey(key)).to_le_bytes().to_vec())
            }
            "/value" => state.value(&key()?).ok_or_else(|| "nothing there".to_owned()),
            "/proof" => Ok(state.proof(&key()?).to_bytes()),
            other => Err(format!("no query has the path {other}")),
        }
    }

    fn list_snapshots(&self) -> Vec<SnapshotOffer> {
        self.snapshots().map_or(Vec::new(), |snapshots| snapshots.offers())
    }

    fn load_snapshot_chunk(&self, height: u64, format: u32, chunk_index: u32) -> Option<Vec<u8>> {
        self.snapshots()?.chunk(height, format, chunk_index)
    }

    fn offer_snapshot(&self, offer: &SnapshotOffer, app_hash: [u8; 32]) -> SnapshotVerdict {
        let fits = offer.format == SNAPSHOT_FORMAT
            && (1..=SNAPSHOT_CHUNKS_MAX).contains(&offer.chunk_hashes.len())
            && self.info().height == 0;
        if !fits {
            return SnapshotVerdict::Reject;
        }
        let incoming = Incoming { offer: offer.clone(), app_hash, content: Vec::new() };
        *self.incoming.lock().expect("no panic under this lock") = Some(incoming);
        SnapshotVerdict::Accept
    }

    fn apply_snapshot_chunk(&self, chunk_index: u32, chunk: &[u8]) -> SnapshotVerdict {
        let mut slot = self.incoming.lock().expect("no panic under this lock");
        let Some(incoming) = slot.as_mut() else { return SnapshotVerdict::Reject };
        let due = incoming.content.len() == chunk_index as usize * SNAPSHOT_CHUNK_LEN_BYTES;
        let Some(hash) = incoming.offer.chunk_hashes.get(chunk_index as usize) else {
            return SnapshotVerdict::Reject;
        };
        let is_last = chunk_index as usize + 1 == incoming.offer.chunk_hashes.len();
        let len_fits = chunk.len() == SNAPSHOT_CHUNK_LEN_BYTES
            || (is_last && (1..SNAPSHOT_CHUNK_LEN_BYTES).contains(&chunk.len()));
        if !due {
            return SnapshotVerdict::Reject;
        }
        if !len_fits || <[u8; 32]>::from(Sha256::digest(chunk)) != *hash {
            return SnapshotVerdict::BadChunk;
        }
        if incoming.content.len() + chunk.len() > SNAPSHOT_LEN_BYTES_MAX {
            return SnapshotVerdict::Reject;
        }
        incoming.content.extend_from_slice(chunk);
        if !is_last {
            return SnapshotVerdict::Accept;
        }
        let Incoming { offer, app_hash, content } = slot.take().expect("looked at above");
        let genesis_hash = self.view().genesis_hash();
        let restored = State::from_snapshot(&content, &AppHash(app_hash)).ok().filter(|state| {
            state.height() == offer.height
                && state.genesis_hash() == genesis_hash
                && <[u8; 32]>::from(Sha256::digest(&content)) == offer.hash
        });
        let Some(restored) = restored else { return SnapshotVerdict::Reject };
        let mut disk = self.disk();
        let bytes = checkpoint_bytes(&restored);
        if replace_file(&disk.checkpoint_path, &bytes).is_err() {
            return SnapshotVerdict::Reject;
        }
        disk.checkpoint_len_bytes = bytes.len() as u64;
        *self.state.write().expect("a commit never panics under this lock") = restored;
        SnapshotVerdict::Done
    }
}

pub(crate) fn start_error(error: LogError) -> StartError {
    match error {
        LogError::Io { path, source } => StartError::Io { path, source },
        LogError::Foreign { path } => {
            StartError::Damaged { path, why: "it is no file of this kind and version".into() }
        }
        LogError::Damaged { path, offset_bytes } => {
            StartError::Damaged { path, why: format!("bad record at byte {offset_bytes}") }
        }
    }
}

fn powers(validators: &[ringseed_ledger::Validator]) -> Vec<Validator> {
    validators.iter().map(|v| Validator { key: v.key.0, power: v.power }).collect()
}

fn decided(block: &Proposal<'_>) -> DecidedBlock {
    let misbehaviour = block.misbehaviour.iter();
    DecidedBlock {
        height: block.height,
        txs: block.txs.to_vec(),
        proposer: PublicKey(block.proposer),
        misbehaviour: misbehaviour
            .map(|(key, height)| Misbehaviour { validator: PublicKey(*key), height: *height })
            .collect(),
    }
}

fn finalized(outcome: &BlockOutcome) -> FinalizedBlock {
    let updates = outcome.validator_updates.iter();
    FinalizedBlock {
        tx_results: outcome.results.iter().cloned().map(tx_result).collect(),
        events: outcome.events.clone(),
        validator_updates: updates.map(|u| Validator { key: u.key.0, power: u.power }).collect(),
        app_hash: outcome.app_hash.0,
    }
}

/// The ledger's info holds values only; people want to read what happened as well.
fn tx_result(result: ringseed_ledger::TxResult) -> TxResult {
    let info = match (result.is_ok(), result.info.is_empty()) {
        (true, _) => result.info,
        (false, true) => result.code.text().to_owned(),
        (false, false) => format!("{}: {}", result.code.text(), result.info),
    };
    TxResult { code: result.code, info, events: result.events }
}

fn encode_record(block_id: &BlockId, delta: &Delta) -> Vec<u8> {
    let mut bytes = block_id.0.to_vec();
    put_bytes(&mut bytes, &delta.to_bytes());
    bytes
}

fn decode_record(payload: &[u8]) -> Result<(BlockId, Delta), String> {
    let mut reader = Reader::new(payload);
    let mut parse = || Ok::<_, CodecError>((reader.array()?, reader.bytes(usize::MAX)?));
    let (block_id, delta) = parse().map_err(|error| error.to_string())?;
    let delta = Delta::decode(delta).map_err(|error| error.to_string())?;
    Ok((BlockId(block_id), delta))
}

struct Checkpoint<'a> {
    height: u64,
    app_hash: [u8; 32],
    snapshot: &'a [u8],
}

/// Magic, height, app hash, CRC-32 of the snapshot, the snapshot.
fn checkpoint_bytes(state: &State) -> Vec<u8> {
    let snapshot = state.to_snapshot();
    let mut bytes = CHECKPOINT_MAGIC.to_vec();
    bytes.extend_from_slice(&state.height().to_le_bytes());
    bytes.extend_from_slice(&state.app_hash().0);
    bytes.extend_from_slice(&crc32fast::hash(&snapshot).to_le_bytes());
    bytes.extend_from_slice(&snapshot);
    bytes
}

fn parse_checkpoint(bytes: &[u8]) -> Result<Checkpoint<'_>, String> {
    let mut reader = Reader::new(bytes);
    let mut parse = || {
        Ok::<_, CodecError>((reader.array::<8>()?, reader.u64()?, reader.array()?, reader.u32()?))
    };
    let (magic, height, app_hash, crc) = parse().map_err(|error| error.to_string())?;
    let snapshot = reader.take(reader.remaining_bytes()).map_err(|error| error.to_string())?;
    if magic != *CHECKPOINT_MAGIC {
        return Err("it is no checkpoint of this version".into());
    }
    if crc32fast::hash(snapshot) != crc {
        return Err("its checksum is wrong".into());
    }
    Ok(Checkpoint { height, app_hash, snapshot })
}

fn read_checkpoint(path: &Path) -> Result<Option<(State, u64)>, StartError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StartError::Io { path: path.into(), source }),
    };
    let parse = |bytes: &[u8]| {
        let checkpoint = parse_checkpoint(bytes)?;
        let state = State::from_snapshot(checkpoint.snapshot, &AppHash(checkpoint.app_hash))
            .map_err(|error| error.to_string())?;
        (state.height() == checkpoint.height)
            .then_some(state)
            .ok_or_else(|| format!("not of height {}", checkpoint.height))
    };
    let state = parse(&bytes).map_err(|why| StartError::Damaged { path: path.into(), why })?;
    tracing::debug!(height = state.height(), app_hash = %hex(&state.app_hash().0), "checkpoint");
    Ok(Some((state, bytes.len() as u64)))
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
