//! Listings on their way between cold and active.
//!
//! The first handshake that names a cold listing has its metainfo read and checked and its folder
//! opened, on another thread; the connection waits for that. After a while without peers everything
//! but the row goes again. A complete listing that nobody has asked for yet is never more than a row.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::wire::{Handshake, WireId};
use ringseed_sys::dir::DirHandle;

use super::catalogue::{Row, name_of};
use super::command::{KnownMetainfo, NewListing};
use super::dial::FOUND_MAX;
use super::listing::{Active, Stage, key_of, wire_ids_of};
use super::peer::{CloseReason, ConnId};
use super::timers::Timer;
use super::{Flight, Job, Shard};
use crate::api::{Event, Identity, ListingId};
use crate::io::{Aside, Loaded, Op};
use crate::store::journal::ListingKey;
use crate::store::{RecoveredListing, metainfo_path};

/// How long the metainfo of a listing has to be written before the listing goes cold. A handshake that comes
/// sooner on a very slow disk finds it lost, and has it fetched again.
const KEEPING: Duration = Duration::from_secs(5);

/// A cold listing that is being made active.
#[derive(Debug, Default)]
pub(super) struct Loading {
    /// Who waits for it, with the handshake that named it.
    conns: Vec<(ConnId, Handshake)>,
    /// Addresses to dial when it is active.
    found: Vec<SocketAddr>,
    /// It is to be removed; with its data.
    remove: Option<bool>,
}

/// What is on its way.
pub(super) type Loads = BTreeMap<ListingId, Loading>;

impl Shard {
    /// The listing that a name on the wire stands for; of several the one that was added first.
    pub(super) fn find_wire_id(&self, wire_id: &WireId) -> Option<ListingId> {
        let has_it = |id: &ListingId| match (self.active.get(id), self.rows.get(*id)) {
            (Some(active), _) => active.wire_ids.contains(wire_id),
            (None, Some(row)) => row.wire_ids().any(|other| other == *wire_id),
            (None, None) => false,
        };
        self.names.find(wire_id).filter(has_it).min()
    }

    /// The listing of an identity.
    pub(super) fn find_key(&self, key: &ListingKey) -> Option<ListingId> {
        let has_it = |id: &ListingId| match (self.active.get(id), self.rows.get(*id)) {
            (Some(active), _) => active.key == *key,
            (None, Some(row)) => row.key == *key,
            (None, None) => false,
        };
        let name = name_of(key);
        self.names.find(&name).find(has_it).or_else(|| self.removing.get(key).copied())
    }

    /// What the metainfo of a listing is, or where it lies.
    pub(super) fn known_metainfo(&self, listing: ListingId) -> Option<KnownMetainfo> {
        match (self.active.get(&listing), self.rows.get(listing)) {
            (Some(active), _) => active.metainfo.clone().map(KnownMetainfo::Here),
            (None, Some(row)) => Some(KnownMetainfo::Kept(hashes_of(&row.key))),
            (None, None) => None,
        }
    }

    /// Takes a listing in that is complete for all we know, as a row; `None` when it is not, or when
    /// it cannot be read again later.
    pub(super) fn add_cold(&mut self, new: &NewListing) -> Option<ListingId> {
        let Identity::Metainfo(metainfo) = &new.identity else { return None };
        if !new.is_kept || metainfo.missing_layers().next().is_some() {
            return None;
        }
        let metainfo = metainfo.clone();
        let geometry = metainfo.info().geometry();
        let checks_v1 = new.verify_v1 || !geometry.kind().has_v2();
        let checks_v1 = checks_v1 && geometry.kind().has_v1();
        let key = key_of(&new.identity);
        let count = geometry.piece_count();
        let is_it = |known: &RecoveredListing| {
            known.is_of(geometry.total_len(), count, checks_v1, new.place.folder())
        };
        let mesh = self.seat.mesh.clone();
        let mut recovered = mesh.recovered();
        let known = recovered.listings.get(&key).filter(|known| is_it(known));
        let is_had = known.is_some_and(|known| {
            let is_same = known.stamp.is_none_or(|was| new.stamp == Some(was));
            is_same && known.have.count() == count && known.suspect.is_empty()
        });
        let is_there = new.bad_files.is_empty() && !new.is_fresh;
        let is_complete = new.known_complete || (is_had && is_there);
        let dials = self.config.dials_as_seed && !new.peers.is_empty();
        if !is_complete || dials || new.select.is_some() {
            return None;
        }
        let (slot, was) = known.map(|known| (known.slot, known.stamp)).unzip();
        recovered.listings.remove(&key);
        drop(recovered);
        let id = new.id;
        let writer = self.commit.writer();
        let slot = slot.unwrap_or_else(|| {
            let folder = new.place.folder().to_path_buf();
            writer.added(key, geometry.total_len(), count, checks_v1, folder)
        });
        if let Some(stamp) = new.stamp.filter(|stamp| was.flatten() != Some(*stamp)) {
            if is_had {
                writer.stamped(slot, stamp);
            } else {
                self.commit.stamps.insert(id, stamp);
            }
        }
        let row = Row {
            id,
            key,
            v1_name: metainfo.info().info_hash_v1().filter(|_| geometry.kind().has_v2()),
            place: self.folders.intern(&new.place, &key),
            verify_v1: new.verify_v1,
            is_durable: is_had,
            piece_count: count,
            payload_bytes: geometry.payload_len(),
            journal_slot: Some(slot),
            sources: None,
            sent_bytes: 0,
            wasted_bytes: 0,
        };
        for name in wire_ids_of(&new.identity) {
            self.names.insert(&name, id);
            self.seat.mesh.learn_name(&name, id);
        }
        self.rows.put(row);
        self.count_listings();
        if new.asked_by_hash {
            self.tell(Event::MetadataReady { id });
        }
        if is_had {
            self.tell(Event::Complete { id });
        } else {
            self.commit_run(id, 0, count);
            self.commit.is_urgent = true;
        }
        Some(id)
    }

    /// The journal has a row's pieces: it may be claimed.
    pub(super) fn row_is_durable(&mut self, listing: ListingId) {
        if let Some(row) = self.rows.get_mut(listing)
            && !std::mem::replace(&mut row.is_durable, true)
        {
            self.tell(Event::Complete { id: listing });
        }
    }

    /// A peer asks for a listing by its handshake. True when it is cold: the connection waits until
    /// it is active, for as long as its link allows.
    pub(super) fn wait_for_cold(
        &mut self,
        conn: ConnId,
        listing: ListingId,
        handshake: Handshake,
    ) -> bool {
        if self.rows.get(listing).is_none() {
            return false;
        }
        self.load(listing).conns.push((conn, handshake));
        true
    }

    /// A seed that dials wakes a cold listing for whoever a tracker names. True when the listing is cold.
    pub(super) fn wake_to_dial(&mut self, listing: ListingId, peers: &[SocketAddr]) -> bool {
        if self.rows.get(listing).is_none() {
            return false;
        }
        if self.config.dials_as_seed && !peers.is_empty() {
            let found = &mut self.load(listing).found;
            let room = FOUND_MAX.saturating_sub(found.len());
            found.extend(peers.iter().take(room));
        }
        true
    }

    /// Begins to make a cold listing active, if that has not begun.
    fn load(&mut self, listing: ListingId) -> &mut Loading {
        if !self.loads.contains_key(&listing)
            && let Some(row) = self.rows.get(listing)
        {
            let place = self.folders.place(row.place, &row.key);
            let hashes = hashes_of(&row.key);
            let id = self.flights.insert(Flight::Load(listing));
            let state = self.state.dir().clone();
            let folder = place.folder().to_path_buf();
            self.out.push_back(Op::Aside { id, job: Aside::Load { state, hashes, folder } });
        }
        self.loads.entry(listing).or_default()
    }

    /// What a cold listing consists of has been read, or cannot be.
    pub(super) fn handle_loaded(&mut self, listing: ListingId, result: io::Result<Loaded>) {
        let Some(Loading { conns, found, remove }) = self.loads.remove(&listing) else { return };
        let active = match result {
            Ok(Loaded { metainfo: Some(metainfo), root }) => {
                self.row_to_active(listing, metainfo, root)
            }
            // Lost from the state folder: it is asked for again like any that is known by its hash
            // alone, and the data is checked.
            Ok(Loaded { metainfo: None, root }) => {
                tracing::error!(listing = listing.0, "kept metainfo is lost, fetching it again");
                self.row_to_hash(listing, root)
            }
            Err(error) => {
                tracing::error!(listing = listing.0, %error, "cannot open the folder of a listing");
                false
            }
        };
        if let Some(delete_data) = remove {
            // What cannot be opened cannot be deleted; the listing goes all the same.
            self.remove_listing(listing, delete_data && active);
        }
        for (id, handshake) in conns {
            if active && self.conns.contains_key(&id) {
                self.join_listing(id, listing, handshake);
                self.drain_link(id);
            } else {
                self.close_conn(id, CloseReason::UnknownTorrent);
            }
        }
        if active {
            self.found_peers(listing, found);
        }
    }

    fn row_to_active(
        &mut self,
        listing: ListingId,
        metainfo: Arc<Metainfo>,
        root: Arc<DirHandle>,
    ) -> bool {
        let Some(row) = self.rows.take(listing) else { return false };
        let place = self.folders.place(row.place, &row.key);
        self.folders.release(row.place);
        self.active.insert(listing, Active::from_row(row, place, metainfo, root));
        self.count_listings();
        self.timers.set(self.now + self.config.idle_before_cold, Timer::Evict(listing));
        true
    }

    fn row_to_hash(&mut self, listing: ListingId, root: Arc<DirHandle>) -> bool {
        let Some(row) = self.rows.take(listing) else { return false };
        let place = self.folders.place(row.place, &row.key);
        self.folders.release(row.place);
        for name in row.wire_ids() {
            self.names.remove(&name, listing);
            self.seat.mesh.forget_name(&name, listing);
        }
        let identity = Identity::from(hashes_of(&row.key));
        let mut active = Active::new(listing, &identity, place, root, row.verify_v1, None, None);
        active.journal_slot = row.journal_slot;
        self.active.insert(listing, active);
        self.learn_names(listing);
        self.count_listings();
        true
    }

    /// Lets the names of a listing lead to it.
    pub(super) fn learn_names(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        for name in &active.wire_ids {
            if !self.names.find(name).any(|id| id == listing) {
                self.names.insert(name, listing);
                self.seat.mesh.learn_name(name, listing);
            }
        }
    }

    /// Lets a listing go cold if nobody has asked for it.
    pub(super) fn evict(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        if active.is_helper() {
            return self.evict_helper(listing);
        }
        let dials = self.config.dials_as_seed && active.dialer.target_count() > 0;
        let is_remade = active.check.is_some() || self.remakes.has(listing);
        let is_busy = !active.conns.is_empty() || is_remade || dials;
        if is_busy || active.stage != Stage::Running {
            // Not complete any more: the timer is set again when it is.
            if active.is_complete_told {
                self.timers.set(self.now + self.config.idle_before_cold, Timer::Evict(listing));
            }
            return;
        }
        self.flush_leaves(listing);
        if self.keep_for_cold(listing) {
            // Its row would be of no use before that is written.
            self.timers.set(self.now + KEEPING, Timer::Evict(listing));
            return;
        }
        let Some(active) = self.active.get(&listing) else { return };
        if let Some(row) = active.to_row(&mut self.folders) {
            self.active.remove(&listing);
            self.rows.put(row);
            // Reads for peers that have left go with the files: a waiter left behind would keep
            // the next life of the listing waiting for a read that never comes.
            self.close_files_of(listing, true);
            self.reads.forget(listing);
            self.jobs.retain(|_, job| !matches!(job, Job::Read(read) if read.listing == listing));
            self.count_listings();
        }
    }

    /// Keeps the metainfo of a complete listing, if that was put off, see [`crate::intake`]. False when there is
    /// nothing to wait for.
    fn keep_for_cold(&mut self, listing: ListingId) -> bool {
        let Some(active) = self.active.get_mut(&listing) else { return false };
        let may_go = active.is_complete_told && active.have.is_full() && !active.is_kept;
        let Some(metainfo) = active.metainfo.clone().filter(|_| may_go) else { return false };
        active.is_kept = true;
        let path = metainfo_path(hashes_of(&active.key));
        self.write_state_file(path, vec![(0, metainfo.encode())], false);
        true
    }

    /// Removes a cold listing; one whose data is to go as well must be made active first, for only
    /// then its name is known. False when it is not cold.
    pub(super) fn remove_cold(&mut self, listing: ListingId, delete_data: bool) -> bool {
        let Some(row) = self.rows.get(listing) else { return false };
        let is_owned = self.folders.place(row.place, &row.key).is_owned();
        if self.loads.contains_key(&listing) || (delete_data && is_owned) {
            let loading = self.load(listing);
            loading.remove = Some(delete_data || loading.remove == Some(true));
            return true;
        }
        let Some(row) = self.rows.take(listing) else { return false };
        self.folders.release(row.place);
        for name in row.wire_ids() {
            self.names.remove(&name, listing);
            self.seat.mesh.forget_name(&name, listing);
        }
        self.commit.forget(listing);
        if let Some(slot) = row.journal_slot {
            self.commit.writer().removed(slot);
        }
        self.remove_state_files(row.key);
        self.count_listings();
        self.tell(Event::Removed { id: listing, freed_bytes: 0 });
        true
    }
}

/// By what the metainfo of a listing is kept.
pub(super) fn hashes_of(key: &ListingKey) -> InfoHashes {
    match *key {
        ListingKey::V1(hash) => InfoHashes::V1(hash),
        ListingKey::V2(hash) => InfoHashes::V2(hash),
    }
}
