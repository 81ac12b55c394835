//! Folders for this crate's tests, removed when dropped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A fresh empty folder under the system's temporary folder.
pub struct TestDir(PathBuf);

impl TestDir {
    pub fn new() -> TestDir {
        TestDir::beneath(&std::env::temp_dir())
    }

    /// A folder that is likely on a disk: the temporary folder may be a tmpfs, without O_DIRECT.
    pub fn on_disk() -> TestDir {
        TestDir::beneath(Path::new("/var/tmp"))
    }

    fn beneath(parent: &Path) -> TestDir {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringseed-sys-{}-{number}", std::process::id());
        let path = parent.join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        TestDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
