//! Fetching and serving what a torrent's identity promises: the info dict (BEP 9), piece layers and
//! leaves (BEP 52). Who is asked for what, and whether it is right, core decides.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::magnet::{InfoHashes, Verdict};
use ringseed_core::merkle::{HashRange, TreeShape, UpperTree};
use ringseed_core::metainfo::{Info, Metainfo};
use ringseed_core::wire::hashes::HashesError;
use ringseed_core::wire::metadata::{METADATA_PIECE_LEN, MetadataError, metadata_piece};
use ringseed_core::wire::{ChannelId, ExtendedHandshake, HashFetch, HashRequest, MetadataFetch};
use sha1::{Digest, Sha1};

use super::Shard;
use super::cold::hashes_of;
use super::leaves::ServedTree;
use super::listing::{Active, Stage};
use super::peer::{CloseReason, Conn, ConnId};
use super::timers::Timer;
use crate::api::{Event, ListingError, ListingId};
use crate::store::{RunSet, metainfo_path};

/// So long nothing comes, and others are asked. A peer that offers an info dict and then keeps silent,
/// alive by its keep-alives, would otherwise hold a listing for ever.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What is known of a listing that began with a hash alone.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    info: MetadataFetch<ConnId>,
    /// The info dict is here, layers are missing.
    partial: Option<Box<Metainfo>>,
    layers: HashFetch<ConnId>,
    /// When the last part came, or the first was asked for.
    news_at: Option<Instant>,
    is_watched: bool,
    /// Upper trees of files, built when the first peer asks for hashes.
    pub trees: BTreeMap<[u8; 32], ServedTree>,
}

impl Metadata {
    /// A connection is gone: what it was asked for goes to others.
    pub fn forget_conn(&mut self, id: ConnId) {
        self.info.remove_peer(id);
        self.layers.remove_peer(id);
    }
}

impl Shard {
    /// The watch over a fetch of metadata fired.
    pub(super) fn metadata_timeout(&mut self, listing: ListingId) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        let metadata = &mut active.metadata;
        metadata.is_watched = false;
        if metadata.news_at.is_some_and(|at| at + SILENCE_MAX <= now) {
            metadata.info.handle_silence();
            metadata.layers.handle_silence();
            metadata.news_at = Some(now);
        }
        self.pump_metadata(listing);
    }

    /// Continues fetching metadata from whoever can give it.
    pub(super) fn pump_metadata(&mut self, listing: ListingId) {
        let now = self.now;
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.stage != Stage::Metadata {
            return;
        }
        let news_at = *active.metadata.news_at.get_or_insert(now);
        if !active.metadata.is_watched {
            active.metadata.is_watched = true;
            self.timers.set((news_at + SILENCE_MAX).max(now), Timer::Metadata(listing));
        }
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        if active.metadata.partial.is_none() {
            conns.into_iter().for_each(|id| self.ask_for_info(listing, id));
        } else {
            self.ask_for_layers(listing, &conns);
        }
    }

    /// Asks one peer for pieces of the info dict.
    fn ask_for_info(&mut self, listing: ListingId, id: ConnId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else { return };
        let offered = channel.peer_extended().and_then(|extended| extended.metadata_len_bytes);
        let Some(len_bytes) = offered.filter(|_| channel.can_metadata()) else { return };
        if let Err(error) = active.metadata.info.handle_len(id, len_bytes) {
            tracing::debug!(listing = listing.0, %error, "not asked for the info dict");
            return;
        }
        while let Some(index) = active.metadata.info.next_request(id) {
            channel.send_metadata_request(index);
            self.touched.insert(id);
        }
    }

    /// A piece of the info dict came.
    pub(super) fn metadata_piece(
        &mut self,
        id: ConnId,
        listing: ListingId,
        index: u32,
        total_len_bytes: u32,
        data: Vec<u8>,
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(asked) = active.asked.filter(|_| active.metadata.partial.is_none()) else {
            return;
        };
        let mut verdict = Verdict::Other;
        let judge = |bytes: &[u8]| {
            let mut sha256 = [[0; 32]];
            ringseed_sys::hash::sha256_many(&[bytes], &mut sha256);
            verdict = asked.judge(&Sha1::digest(bytes).into(), &sha256[0]);
            !matches!(verdict, Verdict::Other)
        };
        match active.metadata.info.handle_piece(id, index, total_len_bytes, data, judge) {
            Ok(Some(bytes)) => self.info_arrived(listing, asked, verdict, &bytes),
            Ok(None) => {
                active.metadata.news_at = Some(self.now);
                self.pump_metadata(listing);
            }
            Err(MetadataError::WrongHash) => {
                self.ban_conn(id, "sent a wrong info dict");
                self.pump_metadata(listing);
            }
            // Too late, or not as long as it said: the others are asked.
            Err(error) => {
                tracing::debug!(listing = listing.0, %error, "piece of an info dict refused");
                self.pump_metadata(listing);
            }
        }
    }

    fn info_arrived(
        &mut self,
        listing: ListingId,
        asked: InfoHashes,
        verdict: Verdict,
        bytes: &[u8],
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if matches!(verdict, Verdict::Contradiction) {
            let reason = "its two hashes are those of two torrents".to_owned();
            return self.fail_listing(listing, ListingError::BadMetainfo { reason });
        }
        let info = match Info::parse(bytes) {
            Ok(info) => info,
            Err(error) => {
                let reason = error.to_string();
                return self.fail_listing(listing, ListingError::BadMetainfo { reason });
            }
        };
        let viewed = match asked {
            InfoHashes::V1(_) => info.v1_view(),
            InfoHashes::V2(_) => Some(info).filter(|info| info.kind().has_v2()),
            InfoHashes::Both(..) => Some(info).filter(|info| info.kind() == Kind::Hybrid),
        };
        let Some(info) = viewed else {
            let reason = "it lacks the view that its hash is of".to_owned();
            return self.fail_listing(listing, ListingError::BadMetainfo { reason });
        };
        let size_bytes = info.geometry().payload_len();
        if let Some(size_max_bytes) = active.size_max_bytes.filter(|&max| size_bytes > max) {
            let error = ListingError::TooLarge { size_bytes, size_max_bytes };
            return self.fail_listing(listing, error);
        }
        let wanted = active.select.as_ref().map(|select| select.wanted(&info));
        if let Some(Err(error)) = wanted {
            return self.fail_listing(listing, ListingError::Selection(error));
        }
        tracing::debug!(listing = listing.0, bytes = bytes.len(), "info dict is here");
        self.want_layers(listing, Metainfo::from_info(info));
    }

    /// Asks for the piece layers that a metainfo lacks; goes on at once if it lacks none.
    pub(super) fn want_layers(&mut self, listing: ListingId, metainfo: Metainfo) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let info = metainfo.info().clone();
        let shapes: BTreeMap<[u8; 32], TreeShape> = info
            .files()
            .filter_map(|file| Some((file.pieces_root?, TreeShape::of_file(file.len_bytes)?)))
            .collect();
        for root in metainfo.missing_layers() {
            if let Some(&shape) = shapes.get(&root) {
                active.metadata.layers.want_layer(root, shape, info.piece_layer_number());
            }
        }
        active.metadata.partial = Some(Box::new(metainfo));
        if active.metadata.layers.is_complete() {
            self.metadata_is_ready(listing);
        } else {
            self.pump_metadata(listing);
        }
    }

    /// Asks for layers round the peers, so that each gives a part.
    fn ask_for_layers(&mut self, listing: ListingId, conns: &[ConnId]) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let layers = &mut active.metadata.layers;
        let mut open: Vec<ConnId> = conns.to_vec();
        while !open.is_empty() {
            open.retain(|&id| {
                let channel = self.conns.get_mut(&id).and_then(Conn::channel_mut);
                let Some(channel) = channel.filter(|channel| channel.can_hash()) else {
                    return false;
                };
                let Some(request) = layers.next_request(id) else { return false };
                let is_sent = channel.send_hash_request(request);
                if !is_sent {
                    layers.handle_unsent(&request);
                }
                self.touched.insert(id);
                is_sent
            });
        }
    }

    /// Hashes that we asked for came: of a layer, or the leaves of pieces.
    pub(super) fn hashes_arrived(
        &mut self,
        id: ConnId,
        listing: ListingId,
        request: HashRequest,
        hashes: &[[u8; 32]],
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let metadata = &mut active.metadata;
        let Some(partial) = &mut metadata.partial else {
            return self.leaves_arrived(id, listing, request, hashes);
        };
        match metadata.layers.handle_hashes(id, &request, hashes, |_, _, _| None) {
            Ok(verified) => {
                metadata.news_at = Some(self.now);
                if let Some(layer) = verified.layer
                    && let Err(error) =
                        partial.add_layer(&verified.pieces_root, layer.as_flattened())
                {
                    // Every part led to the root, so all of it does.
                    panic!("a checked layer is refused: {error}");
                }
                if metadata.layers.is_complete() {
                    return self.metadata_is_ready(listing);
                }
            }
            Err(HashesError::False(_)) => self.ban_conn(id, "sent hashes that lead nowhere"),
            Err(HashesError::NotAsked) => {} // too late: others were asked
        }
        self.pump_metadata(listing);
    }

    /// The peer will not give hashes.
    pub(super) fn hashes_refused(&mut self, id: ConnId, listing: ListingId, request: HashRequest) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.metadata.partial.is_none() {
            return self.leaves_refused(id, listing, request);
        }
        active.metadata.layers.handle_rejected(id, &request);
        self.pump_metadata(listing);
    }

    /// The peer will not give a piece of the info dict.
    pub(super) fn metadata_refused(&mut self, id: ConnId, listing: ListingId, index: u32) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.metadata.info.handle_rejected(id, index);
        self.pump_metadata(listing);
    }

    /// Bans whoever is at the other end of a connection: what it sent is a proof by itself.
    pub(super) fn ban_conn(&mut self, id: ConnId, reason: &str) {
        let who = self.conns.get(&id).and_then(|conn| Some((conn.peer_id?, conn.addr)));
        if let Some((peer_id, addr)) = who {
            self.ban(peer_id, addr, reason.to_owned());
        }
    }

    fn metadata_is_ready(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(metainfo) = active.metadata.partial.take() else { return };
        let metainfo = Arc::new(*metainfo);
        tracing::info!(listing = listing.0, name = metainfo.info().name(), "metadata is here");
        // Read again when it goes cold, or by a run that knows only the hash.
        active.is_kept = true;
        let asked = active.asked.unwrap_or_else(|| hashes_of(&active.key));
        self.write_state_file(metainfo_path(asked), vec![(0, metainfo.encode())], true);
        self.attach_metainfo(listing, metainfo);
        self.tell(Event::MetadataReady { id: listing });
    }

    /// Gives the metainfo to a listing and to everybody who talks about it.
    fn attach_metainfo(&mut self, listing: ListingId, metainfo: Arc<Metainfo>) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.set_metainfo(metainfo.clone());
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        let geometry = active.geometry().cloned().expect("set above");
        self.learn_names(listing);
        let info_len = metainfo.info().raw().len() as u32;
        let mut broken = Vec::new();
        for id in conns {
            // One that we dialled and that has not answered yet learns it, too: its handshake gives
            // no other occasion, and what the peer says it has would never be understood.
            let channel = self.conns.get_mut(&id).map(|conn| &mut conn.link);
            let Some(channel) = channel.and_then(|link| link.channel_mut(ChannelId::STOCK)) else {
                continue;
            };
            match channel.attach_geometry(geometry.clone()) {
                Ok(()) => channel.set_metadata_len(info_len),
                Err(error) => broken.push((id, error)),
            }
            self.touched.insert(id);
        }
        for (id, error) in broken {
            self.close_conn(id, CloseReason::Link(error));
        }
        self.place_known(listing);
        self.announce_known(listing);
        let Some(active) = self.active.get(&listing) else { return };
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        conns.into_iter().for_each(|id| self.drain_link(id));
    }

    /// Who came before the layout was known got no bitfield: it is told what we had all the time.
    fn announce_known(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let mut known = RunSet::default();
        active.have.iter_set().for_each(|piece| known.insert(piece.get(), 1));
        active.unannounced.extend(known.iter());
        self.announce(listing, &known);
    }

    /// The peer's extension handshake: it may offer the info dict.
    pub(super) fn peer_extended(&mut self, id: ConnId, listing: ListingId, _: ExtendedHandshake) {
        self.set_requests_max(id, listing);
        self.check_useful(id, listing);
        self.pump_metadata(listing);
    }

    /// Gives a piece of the info dict (BEP 9).
    pub(super) fn serve_metadata(&mut self, id: ConnId, listing: ListingId, index: u32) {
        let may_answer = self.may_answer(id, METADATA_PIECE_LEN as usize);
        let metainfo = self.active.get(&listing).and_then(|active| active.metainfo.clone());
        let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else { return };
        let raw = metainfo.as_ref().map_or(&[][..], |metainfo| metainfo.info().raw());
        match metadata_piece(raw, index) {
            Some(data) if may_answer => channel.send_metadata_piece(index, raw.len() as u32, data),
            _ => channel.send_metadata_reject(index),
        }
        self.touched.insert(id);
    }

    /// Gives hashes of a file's tree (BEP 52): piece layers and what is above from memory, what is
    /// below from the sidecar.
    pub(super) fn serve_hashes(&mut self, id: ConnId, listing: ListingId, request: HashRequest) {
        // Nothing is read and hashed for who takes no answers.
        if !self.may_answer(id, request.length as usize * 32) {
            return self.refuse_leaves(id, request);
        }
        let Some(active) = self.active.get_mut(&listing) else { return };
        let answer = answer_hashes(active, request);
        if answer.is_none() && self.read_leaves(id, listing, request) {
            return;
        }
        match answer {
            Some(hashes) => self.give_hashes(id, request, &hashes),
            None => self.refuse_leaves(id, request),
        }
    }
}

/// The hashes that answer a request, from what is in memory.
pub(super) fn answer_hashes(active: &mut Active, request: HashRequest) -> Option<Vec<[u8; 32]>> {
    let metainfo = active.metainfo.clone()?;
    let info = metainfo.info();
    let HashRequest { pieces_root, base_layer, index, length, proof_layers } = request;
    let served = match active.metadata.trees.entry(pieces_root) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(vacant) => {
            let mut files = (0..).zip(info.files());
            let (at, file) = files.find(|(_, file)| file.pieces_root == Some(pieces_root))?;
            let shape = TreeShape::of_file(file.len_bytes)?;
            let nodes = match metainfo.layer(&pieces_root) {
                Some(nodes) => nodes.to_vec(),
                None => vec![pieces_root],
            };
            let base = info.piece_layer_number();
            let tree = UpperTree::new(shape, base, &nodes, &pieces_root).ok()?;
            vacant.insert(ServedTree { tree, file: at })
        }
    };
    let shape = served.tree.shape();
    let range = HashRange::new(shape, base_layer, index, length, proof_layers).ok()?;
    let base = active.leaf_bases.get(served.file as usize).copied()?;
    served.tree.answer(range, |first, count| active.leaves.get(base + first, count))
}
