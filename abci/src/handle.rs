//! What a datatrust holds of its consensus: one handle, whichever driver orders the transactions.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::Duration;

use ringseed_ledger::{Genesis, SigningKey, State, TxCode};
use thiserror::Error;

use crate::cluster::certificate::ChainBlock;

/// How many recent app hashes [`Status`] carries.
pub const RECENT_APP_HASHES_MAX: usize = 64;

/// How a `cluster` node starts.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The node's state folder. Everything of ours lies in `dir/consensus/`.
    pub dir: PathBuf,
    /// The node key: it proves who we are on the mesh and signs votes.
    pub key: SigningKey,
    /// The market's genesis. `None` takes the one stored in `dir/consensus/` by an earlier start
    /// or by [`crate::Cluster::join`].
    pub genesis: Option<Genesis>,
    /// Where peers reach us; port 0 takes a free one. `None`: we only dial.
    pub listen: Option<SocketAddr>,
    /// The address we tell peers, when it differs from `listen` (behind a port forward).
    pub advertise: Option<SocketAddr>,
    /// Addresses to ask besides those of the members on the ledger.
    pub first: Vec<SocketAddr>,
    /// What is done when consensus cannot go on (a failed disk, a broken invariant). After it
    /// returns the process ends with code 1: a node that is alive but deaf is worse than none.
    pub on_fatal: fn(&str),
}

impl ClusterConfig {
    /// A configuration with nothing but what is necessary.
    pub fn new(dir: impl Into<PathBuf>, key: SigningKey) -> Self {
        Self {
            dir: dir.into(),
            key,
            genesis: None,
            listen: None,
            advertise: None,
            first: Vec::new(),
            on_fatal: |reason| eprintln!("ringseed: consensus stopped: {reason}"),
        }
    }
}

/// Why a driver did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another process holds the folder.
    #[error("{path} is in use by another process")]
    InUse {
        /// The locked folder.
        path: PathBuf,
    },
    /// The folder has no genesis and none was given.
    #[error("{path} holds no genesis and none was given")]
    NoGenesis {
        /// The folder.
        path: PathBuf,
    },
    /// The folder belongs to another market.
    #[error("the folder belongs to the market {stored}, not to {given}")]
    OtherGenesis {
        /// Hash (hex) of the stored genesis.
        stored: String,
        /// Hash (hex) of the genesis given.
        given: String,
    },
    /// The first contact served a genesis with another hash than the one we trust.
    #[error("the first contact served a genesis with hash {found}, not {wanted}")]
    WrongGenesis {
        /// The hash (hex) we trust.
        wanted: String,
        /// The hash (hex) of what was served.
        found: String,
    },
    /// The first contact did not answer, or not in our language.
    #[error("{addr} did not answer as a member of this market: {why}")]
    Unreachable {
        /// The address asked.
        addr: SocketAddr,
        /// What happened.
        why: String,
    },
    /// The genesis is malformed.
    #[error("the genesis is malformed: {why}")]
    BadGenesis {
        /// What is wrong.
        why: String,
    },
    /// This key has voted here before, and the record of its votes is gone or damaged. Voting
    /// again could sign two blocks at one height.
    #[error("the record of this key's last signatures is missing or damaged: {why}")]
    LastSignedLost {
        /// What was found.
        why: String,
    },
    /// Stored state is damaged beyond a torn tail.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The listen address could not be bound.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What became of a committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxOutcome {
    /// The height of the block that holds it.
    pub height: u64,
    /// What the ledger says. Anything but [`TxCode::Ok`] changed no listing and no member.
    pub code: TxCode,
    /// What the ledger says about the code, for people.
    pub info: String,
}

/// Why a transaction has no outcome.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SubmitError {
    /// Refused before it reached any block, by our own `check_tx`.
    #[error("refused: {info}")]
    Refused {
        /// What the ledger says, never [`TxCode::Ok`].
        code: TxCode,
        /// What the ledger says about it.
        info: String,
    },
    /// The mempool is full, or the signer has too many transactions waiting.
    #[error("too many transactions are waiting")]
    Full,
    /// Not committed within the wait. It may be committed later.
    #[error("not committed within {waited:?}; it may be later")]
    Timeout {
        /// How long was waited.
        waited: Duration,
    },
    /// The driver has stopped.
    #[error("consensus has stopped")]
    Stopped,
}

/// Read access to the committed state.
///
/// Holding it delays the next commit: take what is needed and let go. Do not ask for a second view
/// while holding one (a waiting commit between the two would block both).
#[derive(Debug)]
pub struct View<'a>(RwLockReadGuard<'a, State>);

impl<'a> View<'a> {
    pub(crate) fn of(state: &'a RwLock<State>) -> Self {
        Self(state.read().expect("a commit never panics while it holds the lock"))
    }
}

impl Deref for View<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.0
    }
}

/// One peer on the mesh, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer's proven node key.
    pub key: [u8; 32],
    /// Where it is, or says that it is.
    pub addr: SocketAddr,
    /// The highest block that it reported.
    pub height: u64,
    /// Whether the ledger knows it as a member.
    pub is_member: bool,
    /// Whether we dialled it.
    pub outbound: bool,
}

/// Where consensus stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// Height of the last committed block; 0 before the first.
    pub height: u64,
    /// App hash after that block.
    pub app_hash: [u8; 32],
    /// App hashes after recent heights, oldest first, at most [`RECENT_APP_HASHES_MAX`].
    pub recent_app_hashes: VecDeque<(u64, [u8; 32])>,
    /// Authenticated peers.
    pub peers: Vec<PeerStatus>,
    /// More than a third of the power, asked directly, reports nothing newer than we have.
    pub caught_up: bool,
    /// Whether we have power at the next height.
    pub is_validator: bool,
    /// Time since the last commit of this process, or since its start.
    pub last_block_age: Duration,
    /// Transactions waiting here.
    pub mempool_txs: usize,
    /// The round of the height that is being agreed; above 0 a proposer was missed.
    pub round: u32,
}

impl Status {
    /// The app hash after `height`, when it is among the recent ones.
    pub fn app_hash_at(&self, height: u64) -> Option<[u8; 32]> {
        self.recent_app_hashes.iter().find(|(at, _)| *at == height).map(|(_, hash)| *hash)
    }
}

/// The same handle over every driver: the node does not care who orders.
pub trait Driver: Send + Sync {
    /// Checks `tx`, spreads it, and waits at most `wait` for the block that holds it.
    ///
    /// # Errors
    /// See [`SubmitError`].
    fn submit(&self, tx: Vec<u8>, wait: Duration) -> Result<TxOutcome, SubmitError>;
    /// Read access to the committed state.
    fn view(&self) -> View<'_>;
    /// Committed heights from now on. A reader that lags more than 1,024 heights behind misses
    /// some, never the last: read the view, not the count.
    fn subscribe(&self) -> Receiver<u64>;
    /// Where consensus stands.
    fn status(&self) -> Status;
    /// The block at `height`, when it is stored here.
    fn block(&self, height: u64) -> Option<ChainBlock>;
    /// The app hash after `height`, when it is known here.
    fn app_hash_at(&self, height: u64) -> Option<[u8; 32]>;
    /// Stops and waits until everything is on disk. Idempotent.
    fn shutdown(&self);
}

/// Tells subscribers about committed heights; the drivers share it.
#[derive(Clone, Debug, Default)]
pub struct Heights(Arc<Mutex<Vec<SyncSender<u64>>>>);

impl Heights {
    /// How many heights a subscriber may lag behind.
    const LAG_MAX: usize = 1024;

    /// Heights from now on.
    pub(crate) fn subscribe(&self) -> Receiver<u64> {
        let (sender, receiver) = sync_channel(Self::LAG_MAX);
        self.0.lock().expect("no panic under this lock").push(sender);
        receiver
    }

    /// Tells everybody.
    pub(crate) fn publish(&self, height: u64) {
        let mut senders = self.0.lock().expect("no panic under this lock");
        // A full queue wakes its reader anyway, and the reader then reads the view.
        senders.retain(|to| !matches!(to.try_send(height), Err(TrySendError::Disconnected(_))));
    }

    /// Ends every subscription, so that readers do not wait for a driver that has stopped.
    pub(crate) fn close(&self) {
        self.0.lock().expect("no panic under this lock").clear();
    }
}
