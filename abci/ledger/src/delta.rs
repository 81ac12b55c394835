//! What one block changes: the record of the app log, and the only thing that `commit` takes.

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Reader, Writer, field_error};
use crate::key::AppHash;
use crate::record::{Record, StateKey};

const MAGIC: &[u8; 4] = b"RSDL";
const VERSION: u8 = 1;

/// The changes of one block.
///
/// ```text
/// magic "RSDL" | version u8 | height u64 | parent app hash 32 | app hash 32 | count u32
/// | count times: key len u8 | key | 0, or 1 and value len u32 and value
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub(crate) height: u64,
    pub(crate) parent_app_hash: AppHash,
    pub(crate) app_hash: AppHash,
    /// `None` deletes.
    pub(crate) changes: BTreeMap<StateKey, Option<Record>>,
}

impl Delta {
    /// Height of the block.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// App hash of the state that it applies to.
    pub fn parent_app_hash(&self) -> AppHash {
        self.parent_app_hash
    }

    /// App hash after it.
    pub fn app_hash(&self) -> AppHash {
        self.app_hash
    }

    /// Whether the block changed nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The keys that it changes, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &StateKey> {
        self.changes.keys()
    }

    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.bytes(MAGIC).u8(VERSION).u64(self.height);
        w.bytes(&self.parent_app_hash.0).bytes(&self.app_hash.0);
        w.u32(u32::try_from(self.changes.len()).unwrap_or(u32::MAX));
        for (key, change) in &self.changes {
            write_key(key, &mut w);
            match change {
                None => w.u8(0),
                Some(record) => w.u8(1).blob(&record.to_bytes()),
            };
        }
        w.into_bytes()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`DecodeError`]. What decodes encodes to the same bytes again.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if &r.array::<4>("magic")? != MAGIC {
            return Err(field_error("magic", "is not that of a delta"));
        }
        if r.u8("version")? != VERSION {
            return Err(field_error("version", "is not known"));
        }
        let height = r.u64("height")?;
        let parent_app_hash = AppHash(r.array("parent app hash")?);
        let app_hash = AppHash(r.array("app hash")?);
        let mut changes = BTreeMap::new();
        for _ in 0..r.u32("count")? {
            let key = read_key(&mut r)?;
            if changes.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(field_error("key", "is out of order"));
            }
            let change = match r.u8("change")? {
                0 => None,
                1 => Some(Record::decode(&key, r.blob("value")?)?),
                _ => return Err(field_error("change", "is neither a value nor a deletion")),
            };
            changes.insert(key, change);
        }
        r.finish()?;
        Ok(Self { height, parent_app_hash, app_hash, changes })
    }
}

pub(crate) fn write_key(key: &StateKey, w: &mut Writer) {
    let bytes = key.to_bytes();
    w.u8(u8::try_from(bytes.len()).unwrap_or(u8::MAX)).bytes(&bytes);
}

pub(crate) fn read_key(r: &mut Reader<'_>) -> Result<StateKey, DecodeError> {
    let len = usize::from(r.u8("key")?);
    StateKey::decode(r.bytes(len, "key")?)
}
