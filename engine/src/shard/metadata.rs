//! Fetching and serving what a torrent's identity promises: the info dict (BEP 9), piece layers and
//! leaves (BEP 52).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringseed_core::geometry::Kind;
use ringseed_core::magnet::{InfoHashes, Verdict};
use ringseed_core::merkle::{self, HashRange, TreeShape, UpperTree};
use ringseed_core::metainfo::{INFO_LEN_MAX, Info, Metainfo};
use ringseed_core::wire::{ChannelId, ExtendedHandshake, HashRequest};

use sha1::{Digest, Sha1};

use super::Shard;
use super::cold::hashes_of;
use super::leaves::ServedTree;
use super::listing::{Active, Stage};
use super::peer::{CloseReason, Conn, ConnId};
use super::timers::Timer;
use crate::api::{Event, ListingError, ListingId};
use crate::store::{RunSet, metainfo_path};

/// Bytes of one piece of the info dict (BEP 9).
const METADATA_PIECE_LEN: usize = 16 << 10;
/// Requests for pieces of the info dict in flight to one peer.
const METADATA_PIPELINE: u32 = 16;
/// Hashes asked for in one request (BEP 52: at most 512).
const HASHES_PER_REQUEST: u32 = 512;
/// Hash requests in flight to one peer.
const HASH_PIPELINE: usize = 32;

/// Refusals after which a peer is not asked for hashes any more.
const HASH_REFUSALS_MAX: u32 = 8;
/// So long nothing comes, and others are asked. A peer that offers an info dict and then keeps silent,
/// alive by its keep-alives, would otherwise hold a listing for ever.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What is known of a listing that began with a hash alone.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// The info dict on its way from one peer at a time: its length is that peer's word.
    info: Option<InfoFetch>,
    /// Peers whose info dict was wrong or refused.
    refused: BTreeSet<ConnId>,
    /// The info dict is here, layers are missing.
    partial: Option<Box<Metainfo>>,
    /// Layers on their way: what has come of them.
    layers: BTreeMap<[u8; 32], LayerFetch>,
    /// Requests not sent, and those in flight with whom they were sent to.
    queue: Vec<HashRequest>,
    in_flight: BTreeMap<HashRequest, ConnId>,
    /// Who refused or botched hashes.
    hash_refused: BTreeMap<ConnId, u32>,
    /// When the last part came, or the first was asked for.
    news_at: Option<Instant>,
    is_watched: bool,
    /// Upper trees of files, built when the first peer asks for hashes.
    pub trees: BTreeMap<[u8; 32], ServedTree>,
}

#[derive(Debug)]
struct InfoFetch {
    from: ConnId,
    bytes: Vec<u8>,
    got: Vec<bool>,
    next: u32,
    left: u32,
}

#[derive(Debug)]
struct LayerFetch {
    shape: TreeShape,
    nodes: Vec<[u8; 32]>,
    left: u32,
}

impl Metadata {
    /// A connection is gone: what it was asked for goes to others.
    pub fn forget_conn(&mut self, id: ConnId) {
        if self.info.as_ref().is_some_and(|fetch| fetch.from == id) {
            self.info = None;
        }
        self.refused.remove(&id);
        self.hash_refused.remove(&id);
        let lost: Vec<HashRequest> = self
            .in_flight
            .iter()
            .filter(|(_, of)| **of == id)
            .map(|(request, _)| *request)
            .collect();
        for request in lost {
            self.in_flight.remove(&request);
            self.queue.push(request);
        }
    }
}

impl Metadata {
    /// Nothing came for too long: whoever was asked is passed over. Those passed over before may be
    /// asked again, or a listing whose peers all were silent once would never go on.
    fn pass_over_silent(&mut self) {
        self.refused.clear();
        self.hash_refused.clear();
        if let Some(fetch) = self.info.take() {
            self.refused.insert(fetch.from);
        }
        for (request, id) in std::mem::take(&mut self.in_flight) {
            self.queue.push(request);
            self.hash_refused.insert(id, HASH_REFUSALS_MAX);
        }
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
            metadata.pass_over_silent();
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
            self.pump_info(listing, &conns);
        } else {
            self.pump_layers(listing, &conns);
        }
    }

    fn pump_info(&mut self, listing: ListingId, conns: &[ConnId]) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let metadata = &mut active.metadata;
        if metadata.info.is_none() {
            let offer = |id: &ConnId| {
                let channel = self.conns.get(id)?.channel()?;
                let len = channel.peer_extended()?.metadata_len_bytes?;
                let is_sane = len > 0 && len as usize <= INFO_LEN_MAX && channel.can_metadata();
                (is_sane && !metadata.refused.contains(id)).then_some((*id, len as usize))
            };
            let Some((from, len)) = conns.iter().find_map(offer) else { return };
            let pieces = len.div_ceil(METADATA_PIECE_LEN);
            // The claimed length is not allocated: the buffer grows with what really comes.
            let (bytes, got) = (Vec::new(), vec![false; pieces]);
            let info = InfoFetch { from, bytes, got, next: 0, left: pieces as u32 };
            metadata.info = Some(info);
        }
        let Some(fetch) = &mut metadata.info else { return };
        let Some(channel) = self.conns.get_mut(&fetch.from).and_then(Conn::channel_mut) else {
            return;
        };
        let arrived = fetch.got.len() as u32 - fetch.left;
        while (fetch.next as usize) < fetch.got.len() && fetch.next - arrived < METADATA_PIPELINE {
            channel.send_metadata_request(fetch.next);
            fetch.next += 1;
        }
        self.touched.insert(fetch.from);
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
        let Some(fetch) = active.metadata.info.as_mut().filter(|fetch| fetch.from == id) else {
            return;
        };
        let total = total_len_bytes as usize;
        let begin = index as usize * METADATA_PIECE_LEN;
        let expected = total.saturating_sub(begin).min(METADATA_PIECE_LEN);
        // Only what was asked for: a last piece sent first would make room for all before it.
        let is_sane = total.div_ceil(METADATA_PIECE_LEN) == fetch.got.len()
            && data.len() == expected
            && index < fetch.next
            && fetch.got.get(index as usize) == Some(&false);
        if !is_sane {
            return self.metadata_refused(id, listing);
        }
        if fetch.bytes.len() < begin + data.len() {
            fetch.bytes.resize(begin + data.len(), 0);
        }
        fetch.bytes[begin..begin + data.len()].copy_from_slice(&data);
        fetch.got[index as usize] = true;
        active.metadata.news_at = Some(self.now);
        fetch.left -= 1;
        if fetch.left > 0 {
            return self.pump_metadata(listing);
        }
        let bytes = active.metadata.info.take().map(|fetch| fetch.bytes).unwrap_or_default();
        self.info_arrived(id, listing, &bytes);
    }

    fn info_arrived(&mut self, id: ConnId, listing: ListingId, bytes: &[u8]) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(asked) = active.asked else { return };
        let mut sha256 = [[0; 32]];
        ringseed_sys::hash::sha256_many(&[bytes], &mut sha256);
        match asked.judge(&Sha1::digest(bytes).into(), &sha256[0]) {
            Verdict::Match => {}
            Verdict::Contradiction => {
                let reason = "its two hashes are those of two torrents".to_owned();
                return self.fail_listing(listing, ListingError::BadMetainfo { reason });
            }
            Verdict::Other => {
                active.metadata.refused.insert(id);
                let conn = self.conns.get(&id);
                if let Some((addr, peer_id)) =
                    conn.and_then(|conn| Some((conn.addr, conn.peer_id?)))
                {
                    self.ban(peer_id, addr, "sent a wrong info dict".to_owned());
                }
                return self.pump_metadata(listing);
            }
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
        tracing::debug!(listing = listing.0, bytes = bytes.len(), "info dict is here");
        self.want_layers(listing, Metainfo::from_info(info));
    }

    /// Asks for the piece layers that a metainfo lacks; goes on at once if it lacks none.
    pub(super) fn want_layers(&mut self, listing: ListingId, metainfo: Metainfo) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let info = metainfo.info().clone();
        let base_layer = info.piece_layer_number();
        for root in metainfo.missing_layers() {
            let file = info.files().find(|file| file.pieces_root == Some(root));
            let Some(shape) = file.and_then(|file| TreeShape::of_file(file.len_bytes)) else {
                continue;
            };
            let node_count = shape.node_count(base_layer);
            let padded = shape.padded_count(base_layer);
            let mut index = 0;
            let mut left = 0;
            while u64::from(index) < node_count {
                // A power of two that may run into the padding, as BEP 52 and libtorrent ask.
                let length = u64::from(HASHES_PER_REQUEST).min(padded) as u32;
                let range = HashRange::to_root(shape, base_layer, index, length);
                let proof_layers = range.expect("inside of the layer").proof_layers();
                active.metadata.queue.push(HashRequest {
                    pieces_root: root,
                    base_layer,
                    index,
                    length,
                    proof_layers,
                });
                index += length;
                left += 1;
            }
            let nodes = vec![[0; 32]; node_count as usize];
            active.metadata.layers.insert(root, LayerFetch { shape, nodes, left });
        }
        active.metadata.partial = Some(Box::new(metainfo));
        if active.metadata.layers.is_empty() {
            self.metadata_is_ready(listing);
        } else {
            self.pump_metadata(listing);
        }
    }

    fn pump_layers(&mut self, listing: ListingId, conns: &[ConnId]) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let metadata = &mut active.metadata;
        let mut is_stuck = false;
        while !is_stuck && !metadata.queue.is_empty() {
            is_stuck = true;
            // Round the peers, so that each gives a part.
            for &id in conns {
                let refusals = metadata.hash_refused.get(&id).copied().unwrap_or(0);
                let busy = metadata.in_flight.values().filter(|&&of| of == id).count();
                if refusals >= HASH_REFUSALS_MAX || busy >= HASH_PIPELINE {
                    continue;
                }
                let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else {
                    continue;
                };
                let Some(request) = metadata.queue.pop() else { return };
                if channel.send_hash_request(request) {
                    metadata.in_flight.insert(request, id);
                    self.touched.insert(id);
                    is_stuck = false;
                } else {
                    metadata.queue.push(request);
                }
            }
        }
    }

    /// Hashes that we asked for came.
    pub(super) fn hashes_arrived(
        &mut self,
        id: ConnId,
        listing: ListingId,
        request: HashRequest,
        hashes: Vec<[u8; 32]>,
    ) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let metadata = &mut active.metadata;
        if metadata.in_flight.remove(&request).is_none() {
            return;
        }
        let Some(layer) = metadata.layers.get_mut(&request.pieces_root) else { return };
        let HashRequest { pieces_root, base_layer, index, length, proof_layers } = request;
        let range = HashRange::new(layer.shape, base_layer, index, length, proof_layers);
        let is_good =
            range.is_ok_and(|range| range.check(layer.shape, &hashes, &pieces_root).is_ok());
        if !is_good {
            metadata.queue.push(request);
            let conn = self.conns.get(&id);
            if let Some((addr, peer_id)) = conn.and_then(|conn| Some((conn.addr, conn.peer_id?))) {
                self.ban(peer_id, addr, "sent hashes that lead nowhere".to_owned());
            }
            return self.pump_metadata(listing);
        }
        metadata.news_at = Some(self.now);
        let begin = index as usize;
        let end = (begin + length as usize).min(layer.nodes.len());
        layer.nodes[begin..end].copy_from_slice(&hashes[..end - begin]);
        layer.left -= 1;
        if layer.left == 0
            && let Some(layer) = metadata.layers.remove(&pieces_root)
            && let Some(partial) = &mut metadata.partial
            && let Err(error) = partial.add_layer(&pieces_root, layer.nodes.as_flattened())
        {
            // Every part led to the root, so all of it does.
            panic!("a checked layer is refused: {error}");
        }
        if metadata.layers.is_empty() {
            self.metadata_is_ready(listing);
        } else {
            self.pump_metadata(listing);
        }
    }

    /// The peer will not give hashes.
    pub(super) fn hashes_refused(&mut self, id: ConnId, listing: ListingId, request: HashRequest) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let metadata = &mut active.metadata;
        if metadata.in_flight.remove(&request).is_some() {
            metadata.queue.push(request);
            *metadata.hash_refused.entry(id).or_default() += 1;
            self.pump_metadata(listing);
        }
    }

    /// The peer will not give the info dict.
    pub(super) fn metadata_refused(&mut self, id: ConnId, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        active.metadata.refused.insert(id);
        if active.metadata.info.as_ref().is_some_and(|fetch| fetch.from == id) {
            active.metadata.info = None;
        }
        self.pump_metadata(listing);
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
        self.pump_metadata(listing);
    }

    /// Gives a piece of the info dict (BEP 9).
    pub(super) fn serve_metadata(&mut self, id: ConnId, listing: ListingId, index: u32) {
        let may_answer = self.may_answer(id, METADATA_PIECE_LEN);
        let metainfo = self.active.get(&listing).and_then(|active| active.metainfo.clone());
        let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else { return };
        let raw = metainfo.as_ref().map_or(&[][..], |metainfo| metainfo.info().raw());
        match raw.chunks(METADATA_PIECE_LEN).nth(index as usize) {
            Some(data) if may_answer => channel.send_metadata_piece(index, raw.len() as u32, data),
            _ => channel.send_metadata_reject(index),
        }
        self.touched.insert(id);
    }

    /// Gives hashes of a file's tree (BEP 52): piece layers and what is above from memory, what is
    /// below from the sidecar.
    pub(super) fn serve_hashes(&mut self, id: ConnId, listing: ListingId, request: HashRequest) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let answer = answer_hashes(active, request);
        if answer.is_none() && self.read_leaves(id, listing, request) {
            return;
        }
        let may_answer = answer.as_ref().is_some_and(|all| self.may_answer(id, all.len() * 32));
        let Some(channel) = self.conns.get_mut(&id).and_then(Conn::channel_mut) else { return };
        match answer.filter(|_| may_answer) {
            Some(hashes) => channel.send_hashes(request, &hashes),
            None => channel.send_hash_reject(request),
        }
        self.touched.insert(id);
    }
}

/// The hashes that answer a request; `None` to reject it.
fn answer_hashes(active: &mut Active, request: HashRequest) -> Option<Vec<[u8; 32]>> {
    let metainfo = active.metainfo.clone()?;
    let info = metainfo.info();
    let HashRequest { pieces_root, base_layer, index, length, proof_layers } = request;
    let tree = match active.metadata.trees.entry(pieces_root) {
        Entry::Occupied(known) => &known.into_mut().tree,
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
            &vacant.insert(ServedTree { tree, file: at }).tree
        }
    };
    let range = HashRange::new(tree.shape(), base_layer, index, length, proof_layers).ok()?;
    tree.answer(range, |_, _| None)
}

const _: () = assert!(METADATA_PIECE_LEN as u32 == ringseed_core::geometry::BLOCK_LEN);
const _: () =
    assert!(HASHES_PER_REQUEST.is_power_of_two() && HASHES_PER_REQUEST <= merkle::ASKED_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer offered the info dict, took hash requests, and then only kept its connection alive: the
    /// listing waited for it for ever.
    #[test]
    fn who_is_silent_is_passed_over_and_asked_again_only_when_nobody_else_is_left() {
        let (silent, other) = (ConnId(1), ConnId(2));
        let fetch =
            || InfoFetch { from: silent, bytes: vec![], got: vec![false], next: 1, left: 1 };
        let request = HashRequest {
            pieces_root: [7; 32],
            base_layer: 4,
            index: 0,
            length: 2,
            proof_layers: 0,
        };
        let mut metadata = Metadata { info: Some(fetch()), ..Metadata::default() };
        metadata.refused.insert(other);
        metadata.in_flight.insert(request, silent);
        metadata.pass_over_silent();
        assert!(metadata.info.is_none() && metadata.refused.contains(&silent));
        assert!(!metadata.refused.contains(&other), "its turn again");
        assert_eq!(metadata.queue, [request]);
        assert_eq!(metadata.hash_refused.get(&silent), Some(&HASH_REFUSALS_MAX));
        metadata.pass_over_silent();
        assert!(metadata.refused.is_empty() && metadata.hash_refused.is_empty());
    }
}
