//! A file for targets whose code reads and writes files.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the files of this process lie. Give it memory to lie on (`TMPDIR=/dev/shm`) when fuzzing.
static NAME: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("ringseed-fuzz-{}", std::process::id())));

/// A file that is gone when this is dropped.
pub struct ScratchFile(pub PathBuf);

impl ScratchFile {
    /// A name that no other thread has; there is no file yet.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NAME.with_extension(NEXT.fetch_add(1, Ordering::Relaxed).to_string()))
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
