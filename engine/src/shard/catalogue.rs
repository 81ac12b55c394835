//! Cold listings: a row each and nothing else. No metainfo, no descriptor, no timer, no path of its own.
//!
//! A row takes about 130 bytes and its names about 40 more, so that a million listings cost a shard
//! less than its arena. What they consist of lies in the state folder and is read again by the first
//! handshake. Nothing here is ever walked over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringseed_core::wire::WireId;

use crate::api::{ListingId, ListingState, ListingStatus, Place, SourceStatus, hex};
use crate::store::journal::{JournalSlot, ListingKey};

/// What is kept of a complete listing that nobody asks for.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub id: ListingId,
    pub key: ListingKey,
    /// SHA-1 name of a hybrid.
    pub v1_name: Option<[u8; 20]>,
    pub place: PlaceRef,
    /// See [`AddListing::verify_v1`](crate::AddListing::verify_v1).
    pub verify_v1: bool,
    /// The journal says so; false for the moment between being added and being recorded.
    pub is_durable: bool,
    pub piece_count: u32,
    /// Bytes of its files.
    pub payload_bytes: u64,
    /// Its name in the journal.
    pub journal_slot: Option<JournalSlot>,
    /// Who gave how much.
    pub sources: Option<Box<[SourceStatus]>>,
    /// Payload bytes sent so far.
    pub sent_bytes: u64,
    /// Payload bytes received for nothing so far.
    pub wasted_bytes: u64,
}

impl Row {
    /// The names of the listing on the wire.
    pub fn wire_ids(&self) -> impl Iterator<Item = WireId> + use<> {
        [Some(name_of(&self.key)), self.v1_name.map(WireId)].into_iter().flatten()
    }

    /// Where it stands.
    pub fn status(&self) -> ListingStatus {
        ListingStatus {
            state: ListingState::Cold,
            have_bytes: self.payload_bytes,
            total_bytes: self.payload_bytes,
            wanted_bytes: self.payload_bytes,
            have_pieces: self.piece_count,
            piece_count: self.piece_count,
            durable_pieces: if self.is_durable { self.piece_count } else { 0 },
            sources: self.sources.as_deref().unwrap_or_default().to_vec(),
            shards: 1,
            peers: 0,
            sent_bytes: self.sent_bytes,
            wasted_bytes: self.wasted_bytes,
        }
    }
}

/// The name on the wire that a key stands for (BEP 52: the first 20 bytes of the v2 hash).
pub(crate) fn name_of(key: &ListingKey) -> WireId {
    WireId(*key.as_bytes().first_chunk().expect("a hash has 20 bytes"))
}

/// Rows by id.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    rows: Vec<Option<Row>>,
    free: Vec<u32>,
    /// Id to place in `rows`.
    places: TagTable,
}

impl Catalogue {
    /// Puts a row in.
    pub fn put(&mut self, row: Row) {
        let id = row.id;
        assert!(self.find(id).is_none(), "{id:?} has a row already");
        let at = self.free.pop().unwrap_or_else(|| {
            self.rows.push(None);
            (self.rows.len() - 1) as u32
        });
        self.rows[at as usize] = Some(row);
        self.places.insert(mix(id.0), at);
    }

    /// A row.
    pub fn get(&self, id: ListingId) -> Option<&Row> {
        self.rows[self.find(id)? as usize].as_ref()
    }

    /// A row, to change it.
    pub fn get_mut(&mut self, id: ListingId) -> Option<&mut Row> {
        let at = self.find(id)?;
        self.rows[at as usize].as_mut()
    }

    /// Takes a row out.
    pub fn take(&mut self, id: ListingId) -> Option<Row> {
        let at = self.find(id)?;
        self.places.remove(mix(id.0), at);
        self.free.push(at);
        self.rows[at as usize].take()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    fn find(&self, id: ListingId) -> Option<u32> {
        let is_it = |&at: &u32| self.rows[at as usize].as_ref().is_some_and(|row| row.id == id);
        self.places.find(mix(id.0)).find(is_it)
    }
}

/// Names of all listings, cold or not. A name may belong to several (the v1 view of a hybrid beside the
/// hybrid); who asks looks at the listings themselves, so that a name costs ten bytes here.
#[derive(Debug, Default)]
pub(super) struct Names {
    table: TagTable,
    seed: u64,
}

impl Names {
    /// No names; `seed` keeps strangers from choosing where theirs go.
    pub fn new(seed: u64) -> Self {
        Names { table: TagTable::default(), seed }
    }

    /// Adds a name of a listing.
    ///
    /// # Panics
    /// When an id is over `u32::MAX`: no process adds so many.
    pub fn insert(&mut self, name: &WireId, id: ListingId) {
        self.table.insert(self.tag(name), u32::try_from(id.0).expect("fewer than 2^32 listings"));
    }

    /// Removes a name of a listing.
    pub fn remove(&mut self, name: &WireId, id: ListingId) {
        if let Ok(id) = u32::try_from(id.0) {
            self.table.remove(self.tag(name), id);
        }
    }

    /// Listings that may have the name.
    pub fn find(&self, name: &WireId) -> impl Iterator<Item = ListingId> + '_ {
        self.table.find(self.tag(name)).map(|id| ListingId(u64::from(id)))
    }

    fn tag(&self, name: &WireId) -> u32 {
        let first = u64::from_le_bytes(*name.0.first_chunk().expect("20 bytes"));
        mix(first ^ self.seed)
    }
}

fn mix(value: u64) -> u32 {
    // The finalizer of SplitMix64.
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 32) as u32
}

/// Numbers by 32-bit tags, several of a tag allowed: eight bytes per place, at most seven of eight
/// places taken, linear probing.
#[derive(Debug, Default)]
struct TagTable {
    /// Tag and number plus one; 0 is free. A power of two of them.
    places: Vec<u64>,
    len: usize,
}

impl TagTable {
    fn insert(&mut self, tag: u32, value: u32) {
        assert!(value < u32::MAX, "the largest number stands for nothing");
        if (self.len + 1) * 8 > self.places.len() * 7 {
            let len = (self.places.len() * 2).max(64);
            let old = std::mem::replace(&mut self.places, vec![0; len]);
            old.into_iter().filter(|&place| place != 0).for_each(|place| self.put(place));
        }
        self.put(u64::from(tag) << 32 | u64::from(value + 1));
        self.len += 1;
    }

    fn put(&mut self, place: u64) {
        let mask = self.places.len() - 1;
        let mut at = (place >> 32) as usize & mask;
        while self.places[at] != 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = place;
    }

    fn find(&self, tag: u32) -> impl Iterator<Item = u32> + '_ {
        let mask = self.places.len().wrapping_sub(1);
        let mut at = tag as usize;
        let taken = std::iter::from_fn(move || {
            let place = *self.places.get(at & mask)?;
            at = (at & mask) + 1;
            (place != 0).then_some(place)
        });
        taken.filter(move |place| (place >> 32) as u32 == tag).map(|place| place as u32 - 1)
    }

    fn remove(&mut self, tag: u32, value: u32) {
        let mask = self.places.len().wrapping_sub(1);
        let wanted = u64::from(tag) << 32 | u64::from(value.wrapping_add(1));
        let mut at = tag as usize & mask;
        loop {
            match self.places.get(at) {
                None | Some(0) => return,
                Some(&place) if place == wanted => break,
                _ => at = (at + 1) & mask,
            }
        }
        // What stands behind moves up unless it would come before its first place.
        self.len -= 1;
        let mut next = (at + 1) & mask;
        while self.places[next] != 0 {
            let home = (self.places[next] >> 32) as usize & mask;
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(at) & mask {
                self.places[at] = self.places[next];
                at = next;
            }
            next = (next + 1) & mask;
        }
        self.places[at] = 0;
    }
}

/// Where a cold listing lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceRef {
    folder: u32,
    is_owned: bool,
    /// Below that folder in one that is called as its hash.
    is_by_hash: bool,
}

/// Folders of cold listings, each kept once.
#[derive(Debug, Default)]
pub(super) struct Folders {
    numbers: BTreeMap<Arc<Path>, u32>,
    /// Path, and how many listings lie there.
    folders: Vec<(Option<Arc<Path>>, u32)>,
    free: Vec<u32>,
}

impl Folders {
    /// Notes where a listing lies.
    pub fn intern(&mut self, place: &Place, key: &ListingKey) -> PlaceRef {
        let whole = place.folder();
        // A datatrust gives each listing a folder of its own, called as its hash.
        let is_by_hash = whole.file_name().is_some_and(|name| *name == *hex(key.as_bytes()));
        let base = whole.parent().filter(|_| is_by_hash).unwrap_or(whole);
        let folder = match self.numbers.get(base) {
            Some(&number) => number,
            None => {
                let path: Arc<Path> = base.into();
                let number = self.free.pop().unwrap_or_else(|| {
                    self.folders.push((None, 0));
                    (self.folders.len() - 1) as u32
                });
                self.folders[number as usize].0 = Some(path.clone());
                self.numbers.insert(path, number);
                number
            }
        };
        self.folders[folder as usize].1 += 1;
        PlaceRef { folder, is_owned: place.is_owned(), is_by_hash }
    }

    /// Where a listing lies.
    pub fn place(&self, place: PlaceRef, key: &ListingKey) -> Place {
        let base = self.folders[place.folder as usize].0.as_deref().expect("a folder in use");
        let folder = match place.is_by_hash {
            true => base.join(hex(key.as_bytes())),
            false => PathBuf::from(base),
        };
        if place.is_owned { Place::Owned(folder) } else { Place::InPlace(folder) }
    }

    /// A listing is not kept here any more.
    pub fn release(&mut self, place: PlaceRef) {
        let (path, users) = &mut self.folders[place.folder as usize];
        *users -= 1;
        if *users == 0
            && let Some(path) = path.take()
        {
            self.numbers.remove(&path);
            self.free.push(place.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is put in and taken out, every number is found under its tag and no other.
        #[test]
        fn a_table_finds_what_was_put_in(steps in proptest::collection::vec((any::<bool>(), 0_u32..12, 0_u32..30), 0..300)) {
            let (mut table, mut model) = (TagTable::default(), BTreeSet::new());
            for (add, tag, value) in steps {
                // Tags that fall on neighbouring places, the last of the table among them.
                let tag = tag.wrapping_sub(6);
                if add && model.insert((tag, value)) {
                    table.insert(tag, value);
                } else if !add {
                    model.remove(&(tag, value));
                    table.remove(tag, value);
                }
                prop_assert_eq!(table.len, model.len());
                for tag in (0..12_u32).map(|tag| tag.wrapping_sub(6)) {
                    let found: BTreeSet<u32> = table.find(tag).collect();
                    let wanted = model.iter().filter(|(of, _)| *of == tag).map(|(_, value)| *value);
                    prop_assert_eq!(found, wanted.collect());
                }
            }
        }
    }

    #[test]
    fn folders_are_kept_once_and_given_up() {
        let mut folders = Folders::default();
        let keys: Vec<ListingKey> = (0..3).map(|at| ListingKey::V2([at; 32])).collect();
        let shared = Place::InPlace("/data".into());
        let own = |key: &ListingKey| Place::Owned(Path::new("/payload").join(hex(key.as_bytes())));
        let refs: Vec<PlaceRef> = keys
            .iter()
            .flat_map(|key| [folders.intern(&shared, key), folders.intern(&own(key), key)])
            .collect();
        assert_eq!(folders.numbers.len(), 2);
        assert_eq!(folders.place(refs[2], &keys[1]), shared);
        assert_eq!(folders.place(refs[3], &keys[1]), own(&keys[1]));
        refs.into_iter().for_each(|place| folders.release(place));
        assert!(folders.numbers.is_empty());
        folders.intern(&shared, &keys[0]);
        assert_eq!(folders.folders.len(), 2, "numbers are used again");
    }

    /// A million of them fit into a quarter of a gigabyte: the bound on a row's size.
    #[test]
    fn a_row_is_small() {
        assert!(size_of::<Option<Row>>() <= 144, "{} bytes", size_of::<Option<Row>>());
    }
}
