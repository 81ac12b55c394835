//! A listing: cold as a row of the catalogue, active with everything it needs to move bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringseed_core::bitfield::Bitfield;
use ringseed_core::geometry::{Geometry, PieceIndex};
use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::{Info, Metainfo};
use ringseed_core::select::FileSelection;
use ringseed_core::wire::{PeerId, WireId};
use ringseed_sys::dir::DirHandle;

use super::blame::Blame;
use super::catalogue::{Folders, Row};
use super::check::Check;
use super::dial::Dialer;
use super::disk::DiskTask;
use super::fill::Assembler;
use super::leaves::Leaves;
use super::metadata::Metadata;
use super::peer::Who;
use super::requests::Requests;
use super::spill::Senders;
use super::stripes::Stripe;
use crate::api::{
    Identity, ListingError, ListingId, ListingState, ListingStatus, Place, SourceStatus, WaitReason,
};
use crate::store::journal::{JournalSlot, ListingKey, Stamp};
use crate::store::leaf_bases;

/// What an active listing is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The info dict or piece layers are missing.
    Metadata,
    /// What lies on disk is being hashed.
    Checking,
    /// Fetching what is missing; nothing to do when all is here.
    Running,
    /// Given up.
    Failed(ListingError),
}

/// A listing with everything it needs to move bytes.
#[derive(Debug)]
pub(super) struct Active {
    pub id: ListingId,
    pub key: ListingKey,
    /// What its info dict must hash to, when that was not given.
    pub asked: Option<InfoHashes>,
    pub wire_ids: Vec<WireId>,
    pub place: Place,
    pub root: Arc<DirHandle>,
    pub metainfo: Option<Arc<Metainfo>>,
    geometry: Option<Arc<Geometry>>,
    pub verify_v1: bool,
    pub size_max_bytes: Option<u64>,
    pub stage: Stage,
    /// The files that are wanted; all of them if `None`.
    pub select: Option<FileSelection>,
    /// Whether each file is wanted, once the layout is known; empty when all are.
    wanted_files: Box<[bool]>,
    /// Pieces without a byte of a wanted file: never fetched.
    skipped: Bitfield,
    /// Verified pieces and skipped ones: what is not to be fetched.
    pub done: Bitfield,
    wanted_bytes: u64,
    /// Verified pieces, in memory or on disk.
    pub have: Bitfield,
    /// Of these, written.
    pub stored: Bitfield,
    /// Of these, synced and journalled.
    pub durable: Bitfield,
    pub have_bytes: u64,
    /// Verified pieces that are in no message yet, because their extent is still being filled.
    pub unannounced: BTreeSet<u32>,
    pub assembler: Assembler,
    pub requests: Requests,
    pub blame: Blame,
    pub conns: BTreeSet<super::peer::ConnId>,
    pub dialer: Dialer,
    pub metadata: Metadata,
    pub check: Option<Check>,
    pub sources: BTreeMap<Who, (SocketAddr, u64)>,
    pub journal_slot: Option<JournalSlot>,
    /// Extents of a verified piece whose write has not ended, by piece.
    pub writing: BTreeMap<u32, u32>,
    /// Of these, pieces that a failed sync may have lost in part.
    pub doubtful: BTreeSet<u32>,
    /// Whole pieces that are on disk unverified and being read back, with who sent them.
    pub spilled: BTreeMap<u32, Senders>,
    /// Number of the first leaf of every file in the sidecar, and leaves that may not be there yet.
    pub leaf_bases: Vec<u64>,
    pub leaves: Leaves,
    /// Empty files that are not created yet.
    pub touches_left: u32,
    pub are_touches_sent: bool,
    /// Why it waits, how long it will next time, and what it will try again.
    pub wait: Option<WaitReason>,
    pub wait_for: Duration,
    pub parked: Vec<DiskTask>,
    pub is_complete_told: bool,
    pub sent_bytes: u64,
    pub wasted_bytes: u64,
    /// What the handle found when it was added: nothing there; files that are missing or of another
    /// length; the caller has just hashed all of it.
    pub is_fresh: bool,
    pub bad_files: Vec<u32>,
    pub known_complete: bool,
    /// What it consists of lies in the state folder.
    pub is_kept: bool,
    /// Several shards have a part in it.
    pub stripe: Option<Stripe>,
    /// What its files looked like when it was added, before they were checked; and when each changed.
    pub stamp: Option<Stamp>,
    pub changed_ns: Vec<u64>,
}

/// Sources remembered of one listing at most; more than its connections.
const SOURCES_MAX: usize = 256;

/// Beside the torrents' root names, in the folder of a [`Place`].
const PARTS_DIR: &str = ".ringseed-parts";

/// First wait after a disk error.
pub(super) const WAIT_MIN: Duration = Duration::from_secs(1);
/// Longest wait after disk errors.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(30);

impl Active {
    /// A listing as it is added; nothing is known of what lies on disk.
    pub fn new(
        id: ListingId,
        identity: &Identity,
        place: Place,
        root: Arc<DirHandle>,
        verify_v1: bool,
        size_max_bytes: Option<u64>,
        select: Option<FileSelection>,
    ) -> Self {
        let key = key_of(identity);
        let mut active = Active {
            id,
            key,
            asked: identity.asked_hashes(),
            wire_ids: wire_ids_of(identity),
            place,
            root,
            metainfo: None,
            geometry: None,
            verify_v1,
            size_max_bytes,
            stage: Stage::Metadata,
            select,
            wanted_files: Box::default(),
            skipped: Bitfield::new(0),
            done: Bitfield::new(0),
            wanted_bytes: 0,
            have: Bitfield::new(0),
            stored: Bitfield::new(0),
            durable: Bitfield::new(0),
            have_bytes: 0,
            unannounced: BTreeSet::new(),
            assembler: Assembler::default(),
            requests: Requests::default(),
            blame: Blame::default(),
            conns: BTreeSet::new(),
            dialer: Dialer::default(),
            metadata: Metadata::default(),
            check: None,
            sources: BTreeMap::new(),
            journal_slot: None,
            writing: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            spilled: BTreeMap::new(),
            leaf_bases: Vec::new(),
            leaves: Leaves::default(),
            touches_left: 0,
            are_touches_sent: false,
            wait: None,
            wait_for: WAIT_MIN,
            parked: Vec::new(),
            is_complete_told: false,
            sent_bytes: 0,
            wasted_bytes: 0,
            is_fresh: false,
            bad_files: Vec::new(),
            known_complete: false,
            is_kept: false,
            stripe: None,
            stamp: None,
            changed_ns: Vec::new(),
        };
        if let Identity::Metainfo(metainfo) = identity {
            active.set_metainfo(metainfo.clone());
        }
        active
    }

    /// A cold listing that somebody asks for. It is complete.
    pub fn from_row(row: Row, place: Place, metainfo: Arc<Metainfo>, root: Arc<DirHandle>) -> Self {
        let identity = Identity::Metainfo(metainfo);
        let mut active = Active::new(row.id, &identity, place, root, row.verify_v1, None, None);
        active.set_all_have();
        if !row.is_durable {
            active.durable = Bitfield::new(active.durable.piece_count());
        }
        active.journal_slot = row.journal_slot;
        active.sources = row
            .sources
            .iter()
            .flatten()
            .map(|source| {
                let who = Who::of(PeerId(source.peer_id), source.addr);
                (who, (source.addr, source.verified_bytes))
            })
            .collect();
        (active.sent_bytes, active.wasted_bytes) = (row.sent_bytes, row.wasted_bytes);
        active.is_complete_told = row.is_durable;
        active.are_touches_sent = true;
        active.is_kept = true;
        active.stage = Stage::Running;
        active
    }

    /// What is kept when it goes cold; `None` unless it is complete, durable, and what it consists of
    /// lies in the state folder.
    pub fn to_row(&self, folders: &mut Folders) -> Option<Row> {
        let metainfo = self.metainfo.as_ref().filter(|_| self.is_complete_told && self.is_kept)?;
        if !self.have.is_full() {
            return None; // a part of a torrent stays active: a row stands for all of it
        }
        // Only what gave something is worth its bytes.
        let sources: Box<[SourceStatus]> =
            self.source_list().into_iter().filter(|source| source.verified_bytes > 0).collect();
        Some(Row {
            id: self.id,
            key: self.key,
            v1_name: metainfo.info().info_hash_v1().filter(|_| self.has_v2()),
            place: folders.intern(&self.place, &self.key),
            verify_v1: self.verify_v1,
            is_durable: true,
            piece_count: self.have.piece_count(),
            payload_bytes: metainfo.info().geometry().payload_len(),
            journal_slot: self.journal_slot,
            sources: Some(sources).filter(|sources| !sources.is_empty()),
            sent_bytes: self.sent_bytes,
            wasted_bytes: self.wasted_bytes,
        })
    }

    /// Sets what the listing consists of, with all piece layers; it has nothing yet.
    pub fn set_metainfo(&mut self, metainfo: Arc<Metainfo>) {
        let geometry = Arc::new(metainfo.info().geometry().clone());
        self.have = Bitfield::new(geometry.piece_count());
        let wanted = self.select.as_ref().map(|select| select.wanted(metainfo.info()));
        // A selection that does not fit was refused before.
        self.wanted_files = wanted.and_then(Result::ok).unwrap_or_default().into();
        self.skipped = skipped_pieces(&geometry, &self.wanted_files);
        self.done = self.skipped.clone();
        self.wanted_bytes = match self.skipped.is_empty() {
            true => geometry.payload_len(),
            false => self.skipped.iter_missing().map(|piece| payload_of(&geometry, piece)).sum(),
        };
        self.stored = self.have.clone();
        self.durable = self.have.clone();
        self.requests = Requests::default();
        self.leaf_bases = leaf_bases(&geometry);
        self.wire_ids = wire_ids_of(&Identity::Metainfo(metainfo.clone()));
        self.geometry = Some(geometry);
        self.metainfo = Some(metainfo);
        // Pieces that lie wholly in pads hold nothing that could be fetched or be wrong.
        let pads: Vec<PieceIndex> = self.pad_pieces();
        for piece in pads {
            self.set_have(piece);
            self.stored.set(piece);
            self.durable.set(piece);
        }
    }

    fn pad_pieces(&self) -> Vec<PieceIndex> {
        let Some(geometry) = &self.geometry else { return Vec::new() };
        geometry.pieces().filter(|&piece| geometry.piece_data_len(piece) == 0).collect()
    }

    /// Counts a piece as verified; says whether it is new.
    pub fn set_have(&mut self, piece: PieceIndex) -> bool {
        let is_new = self.have.set(piece);
        self.done.set(piece);
        if is_new && let Some(geometry) = &self.geometry {
            self.have_bytes += payload_of(geometry, piece);
        }
        is_new
    }

    /// A piece is not to be believed any more.
    pub fn clear_have(&mut self, piece: PieceIndex) {
        if self.have.clear(piece)
            && let Some(geometry) = &self.geometry
        {
            self.have_bytes -= payload_of(geometry, piece);
        }
        let is_others = self.stripe.as_ref().is_some_and(|stripe| stripe.elsewhere.get(piece));
        if !self.skipped.get(piece) && !is_others {
            self.done.clear(piece);
        }
        self.stored.clear(piece);
        self.durable.clear(piece);
        self.is_complete_told = false;
    }

    /// Everything is here, on disk and durable.
    pub fn set_all_have(&mut self) {
        let Some(geometry) = &self.geometry else { return };
        self.have = Bitfield::full(geometry.piece_count());
        self.have_bytes = geometry.payload_len();
        self.done = self.have.clone();
        self.stored = self.have.clone();
        self.durable = self.have.clone();
    }

    /// Nothing is had any more.
    pub fn set_none_have(&mut self) {
        self.have = Bitfield::new(self.have.piece_count());
        self.have_bytes = 0;
        self.done = self.skipped.clone();
    }

    /// Whether these pieces are all that are wanted.
    pub fn is_all(&self, pieces: &Bitfield) -> bool {
        if self.skipped.is_empty() {
            return pieces.is_full();
        }
        let mut all = pieces.clone();
        all.or_with(&self.skipped);
        all.is_full()
    }

    /// Whether a file is wanted.
    pub fn is_wanted_file(&self, file: u32) -> bool {
        self.wanted_files.is_empty() || self.wanted_files.get(file as usize) == Some(&true)
    }

    /// The layout, once it is known.
    pub fn geometry(&self) -> Option<&Arc<Geometry>> {
        self.geometry.as_ref()
    }

    /// The layout and what is being filled by it.
    pub fn layout_mut(&mut self) -> Option<(&Geometry, &mut Assembler)> {
        Some((self.geometry.as_deref()?, &mut self.assembler))
    }

    /// Every piece that is wanted is verified, whichever shard has fetched it.
    pub fn is_complete(&self) -> bool {
        // Of a listing that several shards have a part in all pieces are wanted.
        let all = if self.stripe.is_some() { &self.have } else { &self.done };
        self.geometry.is_some() && all.is_full()
    }

    /// Bytes are wanted: something is missing and nothing stands in the way.
    pub fn is_fetching(&self) -> bool {
        self.is_wanting() && self.wait.is_none()
    }

    /// Connections are worth making.
    pub fn wants_peers(&self) -> bool {
        self.stage == Stage::Metadata || self.is_wanting()
    }

    /// Something is missing and may be written. Nothing is ever fetched over the user's data.
    pub fn is_wanting(&self) -> bool {
        self.stage == Stage::Running && !self.is_complete() && self.place.is_owned()
    }

    /// The name of the v2 view on the wire.
    pub fn v2_id(&self) -> Option<WireId> {
        match self.key {
            // BEP 52: the first 20 bytes of the v2 hash.
            ListingKey::V2(hash) => Some(WireId(*hash.first_chunk().expect("20 is less than 32"))),
            ListingKey::V1(_) => None,
        }
    }

    /// There is a v2 view.
    pub fn has_v2(&self) -> bool {
        matches!(self.key, ListingKey::V2(_))
    }

    /// Pieces are hashed with SHA-1: always for v1-only data, on request for a hybrid.
    pub fn checks_v1(&self) -> bool {
        let kind = self.geometry.as_ref().map(|geometry| geometry.kind());
        kind.is_some_and(|kind| kind.has_v1() && (self.verify_v1 || !kind.has_v2()))
    }

    /// Compares what the files look like with what they looked like when all of them were good. Those
    /// that changed since are bad until they are checked; when it cannot be told which, all are.
    pub fn look_at_stamp(&mut self, was: Option<Stamp>) {
        let Some(was) = was.filter(|was| self.stamp != Some(*was)) else { return };
        let changed = |newest_ns: u64| -> Vec<u32> {
            let files = self.changed_ns.iter().zip(0..);
            files.filter(|(at_ns, _)| **at_ns > newest_ns).map(|(_, file)| file).collect()
        };
        let mut since = changed(was.newest_ns);
        if since.is_empty() {
            let count = self.geometry.as_ref().map_or(0, |geometry| geometry.files().count());
            since = (0..count as u32).collect();
        }
        tracing::info!(
            listing = self.id.0,
            files = since.len(),
            "files changed since the last run"
        );
        self.bad_files.extend(since);
        self.bad_files.sort_unstable();
        self.bad_files.dedup();
    }

    /// Path of a file below the place's folder. What wanted pieces bring of a file that is not wanted
    /// lies apart, so that it never looks like the file.
    pub fn file_path(&self, file: u32) -> Option<PathBuf> {
        let info = self.metainfo.as_ref()?.info();
        let index = info.geometry().file(file).ok()?;
        match self.is_wanted_file(file) {
            true => Some(info.file(index).path().as_path().to_path_buf()),
            false => Some(part_path(info, file)),
        }
    }

    /// A peer has shaken hands: what it will give is counted under its name. Beyond
    /// [`SOURCES_MAX`] names one that has given nothing, else the one that has given least, is forgotten:
    /// whoever makes up names only takes the places of others that are made up.
    pub fn note_source(&mut self, who: Who, addr: SocketAddr) {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&who) {
            let least = self.sources.iter().min_by_key(|(_, (_, given))| *given);
            if let Some(least) = least.map(|(&who, _)| who) {
                self.sources.remove(&least);
            }
        }
        self.sources.entry(who).or_insert((addr, 0)).0 = addr;
    }

    /// What a peer gave to another shard counts with what it gave to this one.
    pub fn add_source(&mut self, source: &SourceStatus) {
        let who = Who::of(PeerId(source.peer_id), source.addr);
        self.note_source(who, source.addr);
        if let Some((_, verified)) = self.sources.get_mut(&who) {
            *verified += source.verified_bytes;
        }
    }

    fn source_list(&self) -> Vec<SourceStatus> {
        let status = |(who, &(addr, verified_bytes)): (&Who, &(SocketAddr, u64))| SourceStatus {
            peer_id: who.peer_id.0,
            addr,
            verified_bytes,
        };
        self.sources.iter().map(status).collect()
    }

    /// Where it stands.
    pub fn status(&self) -> ListingStatus {
        let state = match (&self.stage, &self.wait) {
            (Stage::Failed(error), _) => ListingState::Failed { error: error.clone() },
            (_, Some(reason)) => ListingState::Waiting { reason: reason.clone() },
            (Stage::Metadata, _) => ListingState::Metadata,
            (Stage::Checking, _) => ListingState::Checking,
            (Stage::Running, _) if self.is_complete_told => ListingState::Seeding,
            (Stage::Running, _) => ListingState::Fetching,
        };
        let geometry = self.geometry.as_ref();
        ListingStatus {
            state,
            have_bytes: self.have_bytes,
            total_bytes: geometry.map_or(0, |geometry| geometry.payload_len()),
            wanted_bytes: self.wanted_bytes,
            have_pieces: self.have.count(),
            piece_count: self.have.piece_count(),
            durable_pieces: self.durable.count(),
            sources: self.source_list(),
            shards: 1,
            peers: self.conns.len() as u32,
            sent_bytes: self.sent_bytes,
            wasted_bytes: self.wasted_bytes,
        }
    }
}

/// Pieces that hold nothing of a wanted file. Without a list all files are wanted, and a piece of pads
/// alone is skipped by nobody.
fn skipped_pieces(geometry: &Geometry, wanted_files: &[bool]) -> Bitfield {
    let mut skipped = match wanted_files.is_empty() {
        true => Bitfield::new(geometry.piece_count()),
        false => Bitfield::full(geometry.piece_count()),
    };
    for (file, _) in geometry.files().zip(wanted_files).filter(|(_, wanted)| **wanted) {
        for piece in geometry.pieces_of_file(file) {
            skipped.clear(piece);
        }
    }
    skipped
}

/// Where the bytes of an unwanted file lie that came with a neighbour's piece.
pub(crate) fn part_path(info: &Info, file: u32) -> PathBuf {
    parts_folder(info).join(file.to_string())
}

/// The folder of all such bytes of a torrent.
pub(crate) fn parts_folder(info: &Info) -> PathBuf {
    let id = info.wire_ids().last().unwrap_or_default();
    Path::new(PARTS_DIR).join(crate::api::hex(&id))
}

/// Bytes of files in a piece.
pub(crate) fn payload_of(geometry: &Geometry, piece: PieceIndex) -> u64 {
    let len = u64::from(geometry.piece_len(piece));
    let slices = geometry.slices(geometry.piece_offset(piece), len);
    slices.filter(|slice| !slice.pad).map(|slice| slice.len).sum()
}

/// What a listing is known by in the journal.
pub(crate) fn key_of(identity: &Identity) -> ListingKey {
    match identity {
        Identity::V1(hash) => ListingKey::V1(*hash),
        Identity::V2(hash) | Identity::Both(_, hash) => ListingKey::V2(*hash),
        Identity::Metainfo(metainfo) => {
            match (metainfo.info().info_hash_v2(), metainfo.info().info_hash_v1()) {
                (Some(hash), _) => ListingKey::V2(hash),
                (None, Some(hash)) => ListingKey::V1(hash),
                (None, None) => unreachable!("a torrent has at least one view"),
            }
        }
    }
}

/// The names of a torrent on the wire. The v2 name comes first: a peer that knows only the v2 hash of
/// a hybrid understands no other, and stock clients of hybrids understand both.
pub(super) fn wire_ids_of(identity: &Identity) -> Vec<WireId> {
    let mut ids: Vec<WireId> = match (identity, identity.asked_hashes()) {
        (Identity::Metainfo(metainfo), _) => metainfo.info().wire_ids().map(WireId).collect(),
        (_, hashes) => hashes.iter().flat_map(|hashes| hashes.wire_ids()).map(WireId).collect(),
    };
    ids.reverse();
    ids
}
