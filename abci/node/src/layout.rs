//! The folder of a datatrust: which file is what, and the lock that one process holds on it.
//!
//! ```text
//! D/datatrust.toml   configuration
//! D/key              the node key, 0600
//! D/genesis.toml     the market's genesis
//! D/lock             held while a process runs
//! D/control.sock     the process listens here, 0600
//! D/consensus/       blocks, votes, state
//! D/engine/          journal, info dicts, leaves
//! D/payload/HASH/    one folder per listing, the files under their own names
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Code, Error, Result};

/// Paths beneath a datatrust's folder.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, which need not exist. Made absolute, so that it can be named in hints.
    pub fn new(root: &Path) -> Layout {
        let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        Layout { root: absolute }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `datatrust.toml`.
    pub fn config(&self) -> PathBuf {
        self.root.join("datatrust.toml")
    }

    /// `key`.
    pub fn key(&self) -> PathBuf {
        self.root.join("key")
    }

    /// `genesis.toml`.
    pub fn genesis(&self) -> PathBuf {
        self.root.join("genesis.toml")
    }

    /// `control.sock`.
    pub fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// `consensus/`.
    pub fn consensus(&self) -> PathBuf {
        self.root.join("consensus")
    }

    /// `engine/`.
    pub fn engine(&self) -> PathBuf {
        self.root.join("engine")
    }

    /// The payload folder that `config` names.
    pub fn payload(&self, config: &Config) -> PathBuf {
        self.root.join(&config.storage.payload)
    }

    /// Makes the folder, readable by its owner alone.
    ///
    /// # Errors
    /// [`Code::AlreadyInitialised`] when a datatrust lives there; I/O errors.
    pub fn create(&self) -> Result<()> {
        if self.key().exists() {
            return Err(Error::new(
                Code::AlreadyInitialised,
                format!("{} already holds a datatrust", self.root.display()),
            )
            .cure(format!("ringseed start --dir {}", self.root.display())));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|error| Error::io("create", &self.root, error))
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// [`Code::NotInitialised`] when there is none, else as [`Config::load`].
    pub fn load_config(&self) -> Result<Config> {
        if !self.config().exists() {
            return Err(Error::new(
                Code::NotInitialised,
                format!("{} holds no datatrust", self.root.display()),
            )
            .why("there is no datatrust.toml in it")
            .cure(format!("ringseed init --dir {} --listen 127.0.0.1:7400", self.root.display())));
        }
        Config::load(&self.config())
    }
}

/// Held as long as a process uses a folder. The kernel releases it, however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes `path` for this process and writes its id into it.
    ///
    /// # Errors
    /// [`Code::Locked`], naming the holder, when another process has it; I/O errors.
    pub fn take(path: &Path) -> Result<Lock> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::io("open", path, error))?;
        if let Err(error) = file.try_lock() {
            let std::fs::TryLockError::WouldBlock = error else {
                return Err(Error::new(Code::Io, format!("cannot lock {}", path.display()))
                    .why(error.to_string()));
            };
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let folder = path.parent().unwrap_or(path).display();
            return Err(Error::new(Code::Locked, format!("{folder} is in use"))
                .why(format!("process {} holds it", holder.trim()))
                .cure("stop that process, or choose another folder"));
        }
        let write = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        write.map_err(|error| Error::io("write", path, error))?;
        Ok(Lock { _file: file })
    }

    /// Whether a live process holds `path`.
    pub fn is_held(path: &Path) -> bool {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// I/O errors.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| Error::io("write", path, error))
}

/// Whether others than the owner may read the file.
pub fn is_exposed(path: &Path) -> std::io::Result<bool> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rs-layout-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_second_holder_is_refused_and_told_who_has_it() {
        let dir = scratch("lock");
        let path = dir.join("lock");
        let first = Lock::take(&path).unwrap();
        assert!(Lock::is_held(&path));
        let error = Lock::take(&path).unwrap_err();
        assert_eq!(error.code, Code::Locked);
        assert!(error.why.unwrap().contains(&std::process::id().to_string()));
        drop(first);
        assert!(!Lock::is_held(&path));
        Lock::take(&path).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_private_file_is_private() {
        let dir = scratch("private");
        let path = dir.join("key");
        write_private(&path, b"secret").unwrap();
        assert!(!is_exposed(&path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_folder_is_initialised_once() {
        let dir = scratch("once");
        let layout = Layout::new(&dir);
        layout.create().unwrap();
        assert_eq!(layout.load_config().unwrap_err().code, Code::NotInitialised);
        write_private(&layout.key(), b"x").unwrap();
        assert_eq!(layout.create().unwrap_err().code, Code::AlreadyInitialised);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
