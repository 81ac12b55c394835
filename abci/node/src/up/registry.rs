//! Where a running `up` can be found by `status` and the others, and what killed ones have left.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Code, Error, Result};
use crate::layout::{Lock, write_private};

/// Held in a market's folder as long as its `up` runs.
pub const LOCK_NAME: &str = "up.lock";
/// Folders of markets begin like this, and end in the process id.
pub const PREFIX: &str = "up-";

/// A running `up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its folder.
    pub root: PathBuf,
    /// Name and folder of each datatrust, founders first.
    pub dirs: Vec<(String, PathBuf)>,
}

/// Folder for what outlives a command: `$XDG_STATE_HOME/ringseed`, `~/.local/state/ringseed`, or,
/// without a home, one in `/var/tmp` for this user.
pub fn state_home() -> PathBuf {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return state.join("ringseed");
    }
    if let Some(home) = absolute("HOME").filter(|home| home.is_dir()) {
        return home.join(".local/state/ringseed");
    }
    PathBuf::from(format!("/var/tmp/ringseed-{}", rustix::process::getuid().as_raw()))
}

fn folder() -> PathBuf {
    state_home().join("running")
}

/// An entry in the registry; dropping it removes it.
#[derive(Debug)]
pub struct Entry {
    path: PathBuf,
}

impl Entry {
    /// A place in the registry for this process; nothing is announced yet.
    pub fn new() -> Entry {
        Entry { path: folder().join(format!("{}.json", std::process::id())) }
    }

    /// Announces `running`, or changes what was announced.
    ///
    /// # Errors
    /// I/O errors.
    pub fn announce(&self, running: &Running) -> Result<()> {
        let folder = self.path.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let text = json!({"version": 1, "root": running.root, "dirs": running.dirs}).to_string();
        write_private(&self.path, text.as_bytes())
    }
}

impl Default for Entry {
    fn default() -> Entry {
        Entry::new()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The `up` that was started last and still runs. Entries of others are removed on the way.
///
/// # Errors
/// [`Code::NoMarketRunning`] when none runs.
pub fn newest() -> Result<Running> {
    let mut found: Vec<(std::time::SystemTime, Running)> = Vec::new();
    for entry in std::fs::read_dir(folder()).into_iter().flatten().flatten() {
        let running = std::fs::read_to_string(entry.path()).ok().and_then(|text| parse(&text));
        let alive = running.filter(|running| Lock::is_held(&running.root.join(LOCK_NAME)));
        match alive {
            Some(running) => {
                let at = entry.metadata().and_then(|meta| meta.modified());
                found.push((at.unwrap_or(std::time::UNIX_EPOCH), running));
            }
            None => {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    found.sort_by_key(|(at, _)| *at);
    found.pop().map(|(_, running)| running).ok_or_else(|| {
        Error::new(Code::NoMarketRunning, "no `ringseed up` is running")
            .cure("start one with `ringseed up`, or name a datatrust with --dir D")
    })
}

fn parse(text: &str) -> Option<Running> {
    let value: Value = serde_json::from_str(text).ok()?;
    if value["version"] != 1 {
        return None;
    }
    let pair =
        |pair: &Value| Some((pair[0].as_str()?.to_owned(), PathBuf::from(pair[1].as_str()?)));
    let dirs = value["dirs"].as_array()?.iter().map(pair).collect::<Option<_>>()?;
    Some(Running { root: PathBuf::from(value["root"].as_str()?), dirs })
}

/// Removes what killed `up`s left below `base`; returns how many there were. Folders of running ones,
/// and of datatrusts that still run, stay.
pub fn clear_leftovers(base: &Path) -> u64 {
    let mut cleared = 0;
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX));
        let root = entry.path();
        if !is_ours || !root.join(LOCK_NAME).is_file() || is_in_use(&root) {
            continue;
        }
        if std::fs::remove_dir_all(&root).is_ok() {
            cleared += 1;
        }
    }
    cleared
}

fn is_in_use(root: &Path) -> bool {
    let nodes = std::fs::read_dir(root).into_iter().flatten().flatten();
    Lock::is_held(&root.join(LOCK_NAME))
        || nodes.into_iter().any(|node| Lock::is_held(&node.path().join("lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_the_living_stay() {
        let base = std::env::temp_dir().join(format!("rs-registry-{}", std::process::id()));
        for name in ["up-1", "up-2", "mine", "up-3"] {
            std::fs::create_dir_all(base.join(name).join("t1")).unwrap();
            std::fs::write(base.join(name).join(LOCK_NAME), "1").unwrap();
        }
        std::fs::remove_file(base.join("up-3").join(LOCK_NAME)).unwrap();
        let _alive = Lock::take(&base.join("up-2").join(LOCK_NAME)).unwrap();
        assert_eq!(clear_leftovers(&base), 1);
        assert!(!base.join("up-1").exists());
        assert!(base.join("up-2").exists() && base.join("mine").exists());
        assert!(base.join("up-3").exists(), "without our lock file it is not ours");
        std::fs::remove_dir_all(base).unwrap();
    }

    /// Each datatrust that `up` started made a new entry, and dropping the one before removed the file
    /// that both stood for: `status` found no market.
    #[test]
    fn announcing_again_keeps_the_entry() {
        let path = std::env::temp_dir().join(format!("rs-entry-{}.json", std::process::id()));
        let entry = Entry { path: path.clone() };
        for dirs in [vec![], vec![("t1".to_owned(), PathBuf::from("/r/t1"))]] {
            let running = Running { root: PathBuf::from("/r"), dirs };
            entry.announce(&running).unwrap();
            assert_eq!(parse(&std::fs::read_to_string(&path).unwrap()), Some(running));
        }
        drop(entry);
        assert!(!path.exists());
    }

    #[test]
    fn an_entry_reads_back_and_junk_does_not() {
        let text = r#"{"version":1,"root":"/r","dirs":[["t1","/r/t1"]]}"#;
        let running = parse(text).unwrap();
        assert_eq!(running.dirs, [("t1".to_owned(), PathBuf::from("/r/t1"))]);
        for junk in ["", "{}", r#"{"version":2,"root":"/r","dirs":[]}"#, r#"{"version":1}"#] {
            assert_eq!(parse(junk), None);
        }
    }
}
