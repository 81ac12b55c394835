//! What every driver does with its folder before anything else: lock it, settle the genesis.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use ringseed_ledger::Genesis;

use crate::app::start_error;
use crate::cluster::store::StoreError;
use crate::handle::StartError;
use crate::record_log::replace_file;

/// The folder of consensus below the node's, made when it is missing.
pub(crate) fn consensus_dir(dir: &Path) -> Result<PathBuf, StartError> {
    let path = dir.join("consensus");
    match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(StartError::Io { path, source }),
    }
}

/// Takes the folder for this process, as long as the file is held.
pub(crate) fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("lock");
    let io = |source| StartError::Io { path: path.clone(), source };
    let mut file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StartError::InUse { path: dir.into() }),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(file)
}

/// The genesis that an earlier start stored.
pub(crate) fn stored_genesis(dir: &Path) -> Result<Option<Genesis>, StartError> {
    let path = dir.join("genesis.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StartError::Io { path, source }),
    };
    let genesis = Genesis::from_text(&text);
    genesis
        .map(Some)
        .map_err(|error| StartError::BadGenesis { why: format!("{}: {error}", path.display()) })
}

/// The genesis that is stored, or the one given, which is then stored.
pub(crate) fn settle_genesis(dir: &Path, given: Option<&Genesis>) -> Result<Genesis, StartError> {
    match (stored_genesis(dir)?, given) {
        (None, None) => Err(StartError::NoGenesis { path: dir.into() }),
        (Some(stored), None) => Ok(stored),
        (Some(stored), Some(given)) if stored.hash() == given.hash() => Ok(stored),
        (Some(stored), Some(given)) => Err(StartError::OtherGenesis {
            stored: stored.hash().to_string(),
            given: given.hash().to_string(),
        }),
        (None, Some(given)) => {
            given.validate().map_err(|e| StartError::BadGenesis { why: e.to_string() })?;
            let path = dir.join("genesis.toml");
            replace_file(&path, given.to_text().as_bytes())
                .map_err(|source| StartError::Io { path, source })?;
            Ok(given.clone())
        }
    }
}

/// What a driver says when the block store does not open.
pub(crate) fn store_error(error: StoreError) -> StartError {
    match error {
        StoreError::Log(error) => start_error(error),
        StoreError::BadRecord { path, height } => {
            StartError::Damaged { path, why: format!("no block of height {height} in its place") }
        }
    }
}
