//! The whole state as one sorted stream of keys and values.
//!
//! ```text
//! magic "RSSN" | version u8 | height u64 | app hash 32 | count u64 | count times: key len u8 | key | value len u32 | value
//! ```
//! Every node writes the same bytes for the same height, so a snapshot can be a torrent.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer, field_error};
use crate::delta::{read_key, write_key};
use crate::key::AppHash;
use crate::record::Record;
use crate::state::State;

const MAGIC: &[u8; 4] = b"RSSN";
const VERSION: u8 = 1;

/// Why bytes are no snapshot of the wanted state.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SnapshotError {
    /// Not the canonical encoding of a snapshot.
    #[error("no snapshot: {0}")]
    Decode(#[from] DecodeError),
    /// A record that every state has is missing.
    #[error("the snapshot lacks the market's own records")]
    Incomplete,
    /// Another state than the trusted one.
    #[error("the snapshot is of app hash {found} at height {height}, expected {expected}")]
    AppHash {
        /// Computed from the records.
        found: AppHash,
        /// The height that it names.
        height: u64,
        /// What the caller trusts.
        expected: AppHash,
    },
}

impl State {
    /// The snapshot of this state.
    pub fn to_snapshot(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.bytes(MAGIC).u8(VERSION).u64(self.height()).bytes(&self.app_hash().0);
        w.u64(u64::try_from(self.records().len()).unwrap_or(u64::MAX));
        for (key, record) in self.records() {
            write_key(key, &mut w);
            w.blob(&record.to_bytes());
        }
        w.into_bytes()
    }

    /// The state of a snapshot, if it is the one whose app hash the caller trusts. The height is not
    /// under the app hash: a caller that needs it certain compares it with the certified block's.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn from_snapshot(bytes: &[u8], expected: &AppHash) -> Result<Self, SnapshotError> {
        let mut r = Reader::new(bytes);
        if &r.array::<4>("magic")? != MAGIC {
            return Err(field_error("magic", "is not that of a snapshot").into());
        }
        if r.u8("version")? != VERSION {
            return Err(field_error("version", "is not known").into());
        }
        let height = r.u64("height")?;
        let named = AppHash(r.array("app hash")?);
        let mut records = BTreeMap::new();
        for _ in 0..r.u64("count")? {
            let key = read_key(&mut r)?;
            if records.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(field_error("key", "is out of order").into());
            }
            records.insert(key, Record::decode(&key, r.blob("value")?)?);
        }
        r.finish()?;
        let state = Self::assemble(height, records).ok_or(SnapshotError::Incomplete)?;
        let found = state.app_hash();
        if found != *expected || named != *expected {
            return Err(SnapshotError::AppHash { found, height, expected: *expected });
        }
        Ok(state)
    }
}
