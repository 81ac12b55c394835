//! Opening a folder: genesis, lock, logs, threads.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use ringseed_ledger::{Genesis, GenesisHash, SigningKey};

use super::Cluster;
use super::certificate::hex;
use super::frame::{FRAME_LEN_BYTES_MAX, Frame, Hello};
use super::mesh::{Mesh, MeshConfig, Roster, fresh_nonce, handshake};
use super::node::{INBOX_EVENTS_MAX, Node, NodeParts, Shared};
use super::store::BlockStore;
use super::wal::{Signer, Wal};
use crate::app::{LedgerApp, start_error};
use crate::driver::Application;
use crate::handle::{ClusterConfig, Heights, StartError, Status};
use crate::open_dir;

/// How long a first contact may take for each step.
const FIRST_CONTACT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn start(
    config: ClusterConfig,
    wrap: impl FnOnce(Arc<LedgerApp>) -> Arc<dyn Application>,
) -> Result<Cluster, StartError> {
    let dir = open_dir::consensus_dir(&config.dir)?;
    let lock = open_dir::lock(&dir)?;
    let genesis = open_dir::settle_genesis(&dir, config.genesis.as_ref())?;
    let ledger = Arc::new(LedgerApp::open(&dir, &genesis)?);
    let store = BlockStore::open(&dir).map_err(open_dir::store_error)?;
    let votes_path = dir.join("votes");
    let signer_path = dir.join("signer");
    let is_used = store.height() > 0 || ledger.info().height > 0;
    let signer = settle_signer(&signer_path, &votes_path, config.key.public().0, is_used)?;
    let wal = Wal::open(&votes_path).map_err(start_error)?;

    let listener = match config.listen {
        None => None,
        Some(addr) => {
            Some(TcpListener::bind(addr).map_err(|source| StartError::Listen { addr, source })?)
        }
    };
    let (inbox, events) = sync_channel(INBOX_EVENTS_MAX);
    let shared = Arc::new(Shared {
        ledger: Arc::clone(&ledger),
        store,
        heights: Heights::default(),
        status: Mutex::new(Status::default()),
        last_commit: Mutex::new(Instant::now()),
        genesis_text: genesis.to_text().into_bytes(),
        roster: RwLock::new(Roster::default()),
        inbox,
        ended: AtomicBool::new(false),
    });
    let genesis_hash = genesis.hash().0;
    let mesh_config = MeshConfig {
        key: config.key.clone(),
        genesis_hash,
        listener,
        advertise: config.advertise,
        first: config.first,
        // Filled in by the node before it reads its first frame.
        roster: Roster::default(),
    };
    let serve: Arc<Shared> = Arc::clone(&shared);
    let mesh = Mesh::start(mesh_config, serve);
    let mut node = Node::new(NodeParts {
        shared: Arc::clone(&shared),
        app: wrap(ledger),
        mesh: mesh.clone(),
        inbox: events,
        genesis_hash,
        key: config.key,
        wal,
        signer,
        signer_path,
    });
    let on_fatal = config.on_fatal;
    let ended = Arc::clone(&shared);
    let (ready, is_ready) = sync_channel(1);
    let thread = std::thread::Builder::new().name("consensus".into()).spawn(move || {
        // A node whose consensus has ended but whose process lives on looks well and is deaf.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            node.recover()?;
            let _ = ready.send(());
            node.run()
        }));
        ended.ended.store(true, Ordering::SeqCst);
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(fatal)) => fatal.to_string(),
            Err(_) => "a panic in the consensus thread".to_owned(),
        };
        tracing::error!(reason, "consensus cannot go on: the process ends");
        on_fatal(&reason);
        std::process::exit(1);
    });
    let thread = thread.map_err(|source| StartError::Io { path: dir, source })?;
    // Status and view are right from the first call on.
    let _ = is_ready.recv();
    Ok(Cluster { shared, mesh, genesis, thread: Mutex::new(Some(thread)), _lock: lock })
}

/// Who signs here. A folder with blocks but without the record of its votes is refused: the key
/// could sign a second block at a height.
fn settle_signer(
    path: &Path,
    votes_path: &Path,
    key: [u8; 32],
    is_used: bool,
) -> Result<Signer, StartError> {
    let lost = |why: String| StartError::LastSignedLost { why };
    let loaded =
        Signer::load(path).map_err(|error| lost(format!("{}: {error}", path.display())))?;
    match loaded {
        Some(signer) if signer.key != key => {
            Err(lost(format!("the folder belongs to the key {}", hex(&signer.key))))
        }
        Some(signer) if votes_path.exists() => Ok(signer),
        Some(signer) if !is_used && signer.signing_from == u64::MAX => Ok(signer),
        Some(_) => Err(lost(format!("{} is missing", votes_path.display()))),
        None if is_used || votes_path.exists() => {
            Err(lost(format!("{} is missing", path.display())))
        }
        None => {
            let signer = Signer { key, signing_from: u64::MAX };
            signer.save(path).map_err(|source| StartError::Io { path: path.into(), source })?;
            Ok(signer)
        }
    }
}

/// Asks one address for the genesis whose hash we trust.
pub(super) fn fetch_genesis(
    first: SocketAddr,
    genesis_hash: GenesisHash,
    key: &SigningKey,
) -> Result<Genesis, StartError> {
    let ask = || -> Result<Vec<u8>, super::frame::FrameError> {
        let stream = TcpStream::connect_timeout(&first, FIRST_CONTACT_TIMEOUT)?;
        let ours = Hello {
            genesis_hash: genesis_hash.0,
            key: key.public().0,
            nonce: fresh_nonce()?,
            advertise: None,
        };
        handshake(&stream, key, ours, true)?;
        stream.set_read_timeout(Some(FIRST_CONTACT_TIMEOUT))?;
        let mut io = &stream;
        io.write_all(&Frame::GetGenesis.to_bytes())?;
        // It greets us with other frames too; among a few comes the answer.
        for _ in 0..64 {
            if let Frame::Genesis(text) = Frame::read_from(&mut io, FRAME_LEN_BYTES_MAX)? {
                return Ok(text);
            }
        }
        Err(std::io::Error::new(ErrorKind::InvalidData, "it does not serve the genesis").into())
    };
    let unreachable = |why: String| StartError::Unreachable { addr: first, why };
    let text = ask().map_err(|error| unreachable(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|error| unreachable(error.to_string()))?;
    let genesis = Genesis::from_text(&text)
        .map_err(|error| StartError::BadGenesis { why: error.to_string() })?;
    if genesis.hash() != genesis_hash {
        return Err(StartError::WrongGenesis {
            wanted: genesis_hash.to_string(),
            found: genesis.hash().to_string(),
        });
    }
    Ok(genesis)
}
