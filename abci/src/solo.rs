//! One validator in this process: the same call grammar, the same block format, the same crash rules
//! as `cluster`, without a network. For a first look, for benches, and as the simplest thing that
//! another driver can be compared with.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringseed_ledger::{Genesis, SigningKey, Tx, TxCode};
use thiserror::Error;

use crate::app::LedgerApp;
use crate::cluster::certificate::{
    BLOCK_LEN_BYTES_MAX, BlockHeader, BlockId, Certificate, ChainBlock, ValidatorSet, VoteKind,
    certificate_hash, evidence_hash, sign, txs_root, vote_sign_bytes,
};
use crate::cluster::mempool::{Mempool, NoRoom};
use crate::cluster::pace::Pace;
use crate::cluster::store::{BlockStore, CertifiedBlock, StoreError};
use crate::driver::{Application, ApplicationError, Proposal, TxResult};
use crate::handle::{
    Driver, Heights, RECENT_APP_HASHES_MAX, StartError, Status, SubmitError, TxOutcome, View,
};
use crate::open_dir;

/// How a `solo` node starts.
#[derive(Clone, Debug)]
pub struct SoloConfig {
    /// The node's state folder. Everything of ours lies in `dir/consensus/`.
    pub dir: PathBuf,
    /// The only validator's key.
    pub key: SigningKey,
    /// The market's genesis, with this key as the only founder. `None` takes the stored one.
    pub genesis: Option<Genesis>,
    /// See [`crate::ClusterConfig::on_fatal`].
    pub on_fatal: fn(&str),
}

type Reply = Sender<Result<TxOutcome, SubmitError>>;

enum SoloEvent {
    Submit { tx: Vec<u8>, reply: Reply },
    Stop,
}

/// A running market of one. Dropping it shuts it down.
#[derive(Debug)]
pub struct Solo {
    shared: Arc<Shared>,
    genesis: Genesis,
    thread: Mutex<Option<JoinHandle<()>>>,
    _lock: std::fs::File,
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<LedgerApp>,
    store: BlockStore,
    heights: Heights,
    status: Mutex<(Status, Instant)>,
    inbox: SyncSender<SoloEvent>,
    ended: AtomicBool,
}

#[derive(Debug, Error)]
enum Fatal {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Application(#[from] ApplicationError),
    #[error("{0}")]
    Diverged(String),
}

impl Solo {
    /// Opens `config.dir` and begins to make blocks.
    ///
    /// # Errors
    /// See [`StartError`]; [`StartError::BadGenesis`] when somebody else has power too.
    pub fn start(config: SoloConfig) -> Result<Self, StartError> {
        Self::start_with(config, |ledger| ledger)
    }

    pub(crate) fn start_with(
        config: SoloConfig,
        wrap: impl FnOnce(Arc<LedgerApp>) -> Arc<dyn Application>,
    ) -> Result<Self, StartError> {
        let dir = open_dir::consensus_dir(&config.dir)?;
        let lock = open_dir::lock(&dir)?;
        let genesis = open_dir::settle_genesis(&dir, config.genesis.as_ref())?;
        let ledger = Arc::new(LedgerApp::open(&dir, &genesis)?);
        let store = BlockStore::open(&dir).map_err(open_dir::store_error)?;
        let next = ledger.info().height + 1;
        let set = ledger.validators_at(next).unwrap_or_default();
        if set.len() != 1 || set.power(&config.key.public().0).is_none() {
            let why = "a market of one has its own key as the only validator".into();
            return Err(StartError::BadGenesis { why });
        }
        let (inbox, events) = sync_channel(crate::cluster::node::INBOX_EVENTS_MAX);
        let shared = Arc::new(Shared {
            ledger: Arc::clone(&ledger),
            store,
            heights: Heights::default(),
            status: Mutex::new((Status::default(), Instant::now())),
            inbox,
            ended: AtomicBool::new(false),
        });
        let pace = Pace::of(ledger.view().params(), Instant::now());
        let mut maker = Maker {
            shared: Arc::clone(&shared),
            app: wrap(ledger),
            genesis_hash: genesis.hash().0,
            key: config.key,
            pace,
            mempool: Mempool::default(),
            waiters: Vec::new(),
        };
        maker
            .recover()
            .map_err(|fatal| StartError::Damaged { path: dir.clone(), why: fatal.to_string() })?;
        let (on_fatal, ended) = (config.on_fatal, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("consensus".into()).spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| maker.run(&events));
            let reason = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => {
                    ended.ended.store(true, Ordering::SeqCst);
                    return;
                }
                Ok(Err(fatal)) => fatal.to_string(),
                Err(_) => "a panic in the consensus thread".to_owned(),
            };
            tracing::error!(reason, "consensus cannot go on: the process ends");
            on_fatal(&reason);
            std::process::exit(1);
        });
        let thread = thread.map_err(|source| StartError::Io { path: dir, source })?;
        Ok(Self { shared, genesis, thread: Mutex::new(Some(thread)), _lock: lock })
    }

    /// The market's genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }
}

/// The thread that makes blocks.
struct Maker {
    shared: Arc<Shared>,
    app: Arc<dyn Application>,
    genesis_hash: [u8; 32],
    key: SigningKey,
    pace: Pace,
    mempool: Mempool,
    waiters: Vec<(ringseed_ledger::TxHash, Reply)>,
}

impl Maker {
    fn recover(&mut self) -> Result<(), Fatal> {
        let info = self.app.info();
        let stored = self.shared.store.height();
        if info.height > stored {
            let why = format!("the state is at height {}, the blocks end at {stored}", info.height);
            return Err(Fatal::Diverged(why));
        }
        if info.height == 0 {
            self.app.init_chain()?;
        }
        for height in info.height + 1..=stored {
            let Some(certified) = self.shared.store.read(height)? else { break };
            self.execute(&certified.block)?;
        }
        self.note();
        Ok(())
    }

    fn run(mut self, events: &Receiver<SoloEvent>) -> Result<(), Fatal> {
        loop {
            let due = self.pace.next_height_at(!self.mempool.is_empty());
            match events.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(SoloEvent::Submit { tx, reply }) => self.submit(tx, reply),
                Err(RecvTimeoutError::Timeout) => self.make_block()?,
                Ok(SoloEvent::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn submit(&mut self, bytes: Vec<u8>, reply: Reply) {
        let hash = Tx::hash_of(&bytes);
        let refuse = |reply: Reply, TxResult { code, info, .. }| {
            let _ = reply.send(Err(SubmitError::Refused { code, info }));
        };
        let tx = match Tx::decode(&bytes) {
            Ok(tx) => tx,
            Err(error) => {
                let code = TxCode::from(&error);
                let info = format!("{}: {error}", code.text());
                return refuse(reply, TxResult { code, info, events: Vec::new() });
            }
        };
        match self.mempool.room_for(&hash, &tx.signer) {
            Ok(()) => {
                let result = self.app.check_tx(&bytes);
                if result.code != TxCode::Ok {
                    return refuse(reply, result);
                }
                self.mempool.push(&tx, hash, Arc::new(bytes), true);
                self.waiters.push((hash, reply));
            }
            Err(NoRoom::Known) => self.waiters.push((hash, reply)),
            Err(NoRoom::Full | NoRoom::SignerFull) => drop(reply.send(Err(SubmitError::Full))),
        }
    }

    fn make_block(&mut self) -> Result<(), Fatal> {
        let info = self.app.info();
        let height = info.height + 1;
        let last = self.shared.store.read(info.height)?;
        let set = |at| self.shared.ledger.validators_at(at).unwrap_or_default();
        let (this, next): (ValidatorSet, ValidatorSet) = (set(height), set(height + 1));
        let proposer = self.key.public().0;
        if this.len() != 1 || this.power(&proposer).is_none() {
            let why = "another validator has power now: run `cluster`".into();
            return Err(Fatal::Diverged(why));
        }
        let waiting = self.mempool.oldest(2 * BLOCK_LEN_BYTES_MAX);
        let proposal = Proposal { height, proposer, txs: &waiting, misbehaviour: &[] };
        let txs = self.app.prepare_proposal(&proposal);
        let (parent, last_certificate) = match last {
            Some(last) => (last.block.id(), Some(last.certificate)),
            None => (BlockId::default(), None),
        };
        let header = BlockHeader {
            genesis_hash: self.genesis_hash,
            height,
            parent,
            app_hash: info.app_hash,
            validators_hash: this.hash(),
            next_validators_hash: next.hash(),
            txs_root: txs_root(&txs),
            last_certificate_hash: certificate_hash(last_certificate.as_ref()),
            evidence_hash: evidence_hash(&[]),
            proposer,
        };
        let block = ChainBlock { header, txs, last_certificate, evidence: Vec::new() };
        let id = block.id();
        // Alone, one precommit is the quorum. It is stored with the block, so that the same height
        // is never signed twice.
        let message =
            vote_sign_bytes(&self.genesis_hash, VoteKind::Precommit, height, 0, Some(&id));
        let signatures = vec![(proposer, sign(&self.key, &message))];
        let certificate = Certificate { height, round: 0, block_id: id, signatures };
        let certified = CertifiedBlock { block, certificate };
        self.shared.store.append(&certified)?;
        let results = self.execute(&certified.block)?;
        self.pace.committed(Instant::now());
        self.note();
        let results: Vec<_> =
            certified.block.txs.iter().map(|tx| Tx::hash_of(tx)).zip(results).collect();
        self.mempool.retain(|waiting| !results.iter().any(|(hash, _)| *hash == waiting.hash));
        let app = Arc::clone(&self.app);
        let mut refused = Vec::new();
        self.mempool.retain(|waiting| {
            let result = app.check_tx(&waiting.bytes);
            let keep = result.code == TxCode::Ok;
            if !keep {
                refused.push((waiting.hash, result));
            }
            keep
        });
        for (hash, reply) in std::mem::take(&mut self.waiters) {
            if let Some((_, result)) = results.iter().find(|(of, _)| *of == hash) {
                let TxResult { code, info, .. } = result.clone();
                let _ = reply.send(Ok(TxOutcome { height, code, info }));
            } else if let Some((_, result)) = refused.iter().find(|(of, _)| *of == hash) {
                let TxResult { code, info, .. } = result.clone();
                let _ = reply.send(Err(SubmitError::Refused { code, info }));
            } else {
                self.waiters.push((hash, reply));
            }
        }
        self.shared.heights.publish(height);
        Ok(())
    }

    fn execute(&self, block: &ChainBlock) -> Result<Vec<TxResult>, Fatal> {
        let (height, proposer) = (block.header.height, block.header.proposer);
        let proposal = Proposal { height, proposer, txs: &block.txs, misbehaviour: &[] };
        let finalized = self.app.finalize_block(block.id(), &proposal)?;
        self.app.commit()?;
        Ok(finalized.tx_results)
    }

    fn note(&self) {
        let info = self.app.info();
        let mut guard = self.shared.status.lock().expect("no panic under this lock");
        let (status, last_commit) = &mut *guard;
        *last_commit = Instant::now();
        status.height = info.height;
        status.app_hash = info.app_hash;
        status.caught_up = true;
        status.is_validator = true;
        let recent: &mut VecDeque<_> = &mut status.recent_app_hashes;
        recent.push_back((info.height, info.app_hash));
        if recent.len() > RECENT_APP_HASHES_MAX {
            recent.pop_front();
        }
    }
}

impl Driver for Solo {
    fn submit(&self, tx: Vec<u8>, wait: Duration) -> Result<TxOutcome, SubmitError> {
        let (reply, outcome) = channel();
        let event = SoloEvent::Submit { tx, reply };
        self.shared.inbox.send(event).map_err(|_| SubmitError::Stopped)?;
        outcome.recv_timeout(wait).unwrap_or_else(|error| {
            let ended = self.shared.ended.load(Ordering::SeqCst);
            match (error, ended) {
                (RecvTimeoutError::Disconnected, true) => Err(SubmitError::Stopped),
                _ => Err(SubmitError::Timeout { waited: wait }),
            }
        })
    }

    fn view(&self) -> View<'_> {
        self.shared.ledger.view()
    }

    fn subscribe(&self) -> Receiver<u64> {
        self.shared.heights.subscribe()
    }

    fn status(&self) -> Status {
        let guard = self.shared.status.lock().expect("no panic under this lock");
        let (status, last_commit) = &*guard;
        Status { last_block_age: last_commit.elapsed(), ..status.clone() }
    }

    fn block(&self, height: u64) -> Option<ChainBlock> {
        self.shared.store.read(height).ok().flatten().map(|certified| certified.block)
    }

    fn app_hash_at(&self, height: u64) -> Option<[u8; 32]> {
        let recent = self.status().app_hash_at(height);
        recent.or_else(|| self.block(height.checked_add(1)?).map(|next| next.header.app_hash))
    }

    fn shutdown(&self) {
        let Some(thread) = self.thread.lock().expect("no panic under this lock").take() else {
            return;
        };
        let _ = self.shared.inbox.send(SoloEvent::Stop);
        let _ = thread.join();
        self.shared.heights.close();
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use ringseed_ledger::{Addr, DataHash, GenesisMember, InfoHashV1, Offer, Params, TxBody};

    use super::*;
    use crate::grammar::Checked;
    use crate::testing::TempDir;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn genesis(key: &SigningKey) -> Genesis {
        let params = Params { block_interval_ms_min: 10, ..Params::local() };
        let addr = |port: u16| Addr::new(([127, 0, 0, 1], port).into()).unwrap();
        let member = GenesisMember {
            name: "alone".into(),
            key: key.public(),
            consensus_addr: addr(1),
            payload_addr: addr(2),
            power: 1,
        };
        Genesis::new("solo", params, vec![member]).unwrap()
    }

    fn start(dir: &TempDir, key: &SigningKey) -> Solo {
        let config = SoloConfig {
            dir: dir.path().into(),
            key: key.clone(),
            genesis: Some(genesis(key)),
            on_fatal: |why| panic!("{why}"),
        };
        Solo::start_with(config, |ledger| Arc::new(Checked::new(ledger))).unwrap()
    }

    fn offer(solo: &Solo, key: &SigningKey, seed: u8) -> Vec<u8> {
        let body = TxBody::Candidate(Offer {
            infohash_v2: DataHash([seed; 32]),
            infohash_v1: InfoHashV1([seed; 20]),
            size_bytes: 1,
            file_count: 1,
            piece_len_log2: 14,
            name: "x".into(),
        });
        let nonce = solo.view().nonce(&key.public()) + 1;
        Tx::sign(key, &solo.genesis.hash(), nonce, 5_000, body).unwrap().to_bytes()
    }

    #[test]
    fn alone_a_transaction_is_in_a_block_and_survives_a_restart() {
        let dir = TempDir::new("solo-restart");
        let key = SigningKey::from_seed(&[1; 32]);
        let solo = start(&dir, &key);
        let heights = solo.subscribe();
        for seed in 1..=5 {
            let outcome = solo.submit(offer(&solo, &key, seed), PATIENCE).unwrap();
            assert_eq!(outcome.code, TxCode::Ok, "{}", outcome.info);
        }
        assert_eq!(heights.recv_timeout(PATIENCE), Ok(1));
        let again = solo.submit(offer(&solo, &key, 1), PATIENCE);
        assert!(
            matches!(again, Err(SubmitError::Refused { code: TxCode::AlreadyListed, .. })),
            "{again:?}"
        );
        let status = solo.status();
        drop(solo);
        assert!(heights.iter().count() > 0, "the subscription ends");

        // A crash after the block store's sync: the last record of the state is torn.
        let state = dir.path().join("consensus/state.log");
        let bytes = std::fs::read(&state).unwrap();
        std::fs::write(&state, &bytes[..bytes.len() - 3]).unwrap();
        let solo = start(&dir, &key);
        assert_eq!(
            (solo.status().height, solo.status().app_hash),
            (status.height, status.app_hash)
        );
        solo.submit(offer(&solo, &key, 9), PATIENCE).unwrap();
        let certified = solo.shared.store.read(2).unwrap().unwrap();
        let set = ValidatorSet::new([crate::cluster::certificate::Validator {
            key: key.public().0,
            power: 1,
        }]);
        let genesis_hash = solo.genesis.hash().0;
        assert_eq!(certified.certificate.verify(&genesis_hash, 2, &set, &certified.block), Ok(()));
    }

    #[test]
    fn somebody_elses_market_is_refused() {
        let dir = TempDir::new("solo-other");
        let config = SoloConfig {
            dir: dir.path().into(),
            key: SigningKey::from_seed(&[2; 32]),
            genesis: Some(genesis(&SigningKey::from_seed(&[1; 32]))),
            on_fatal: |why| panic!("{why}"),
        };
        assert!(matches!(Solo::start(config), Err(StartError::BadGenesis { .. })));
    }
}
