//! A listing from being added to being removed; the shard from its start to its stop.

use std::io;
use std::time::Duration;

use ringseed_core::geometry::PieceIndex;

use super::budget::Class;
use super::catalogue::name_of;
use super::command::{Command, NewListing};
use super::listing::{Active, Stage, key_of};
use super::peer::{CloseReason, ConnId};
use super::timers::Timer;
use super::{Flight, Job, Shard};
use crate::api::{EngineError, Event, Identity, ListingError, ListingId};
use crate::io::{Aside, Op};
use crate::store::RunSet;
use crate::store::journal::{ListingKey, Stamp};

impl Shard {
    /// Takes one command of the handle.
    pub(super) fn handle_command(&mut self, command: Command) {
        match command {
            Command::Add(news, answer) => {
                let answers = news.into_iter().map(|new| self.add_listing(new)).collect();
                let _ = answer.send(answers);
            }
            Command::SetPeers(listing, peers) => {
                self.tell_peers(listing, &peers, false);
                self.set_listing_peers(listing, peers);
            }
            Command::FoundPeers(listing, peers) => {
                self.tell_peers(listing, &peers, true);
                self.found_peers(listing, peers);
            }
            Command::Remove(listing, delete_data) => self.remove_listing(listing, delete_data),
            Command::SetMembers(members) => self.set_members(&members),
            Command::SetServing(serving) => self.set_serving(serving),
            Command::RatesChanged => {
                self.choke_soon();
                let ids: Vec<ConnId> = self.conns.keys().copied().collect();
                ids.into_iter().for_each(|id| self.queue_upload(id));
                let listings: Vec<ListingId> = self.active.keys().copied().collect();
                listings.into_iter().for_each(|listing| self.download_allowed(listing));
            }
            Command::Metainfo(listing, answer) => {
                let _ = answer.send(self.known_metainfo(listing));
            }
            Command::Find(key, answer) => {
                let _ = answer.send(self.find_key(&key));
            }
            Command::Status(listing, answer) => {
                let active = self.active.get(&listing).map(Active::status);
                let row = || self.rows.get(listing).map(|row| row.status());
                let _ = answer.send(active.or_else(row));
            }
            Command::Shutdown => self.begin_stop(),
        }
    }

    fn add_listing(&mut self, new: NewListing) -> Result<ListingId, EngineError> {
        if self.is_stopping {
            return Err(EngineError::Stopped);
        }
        let key = key_of(&new.identity);
        if let Some(id) = self.find_key(&key) {
            return Err(EngineError::Exists { id });
        }
        if let Some(id) = self.add_cold(&new) {
            return Ok(id);
        }
        let id = new.id;
        let NewListing { identity, place, root, verify_v1, size_max_bytes, .. } = new;
        // Piece layers may be missing from a .torrent file; then they come from peers as well.
        let (identity, to_complete) = match identity {
            Identity::Metainfo(metainfo) if metainfo.missing_layers().next().is_some() => {
                let hash = metainfo.info().info_hash_v2().expect("only v2 has layers");
                (Identity::V2(hash), Some(metainfo))
            }
            identity => (identity, None),
        };
        let mut active =
            Active::new(id, &identity, place, root, verify_v1, size_max_bytes, new.select);
        active.is_fresh = new.is_fresh;
        active.bad_files = new.bad_files;
        active.known_complete = new.known_complete;
        active.is_kept = new.is_kept;
        (active.stamp, active.changed_ns) = (new.stamp, new.changed_ns);
        let has_metainfo = active.metainfo.is_some();
        if has_metainfo && new.asked_by_hash {
            self.tell(Event::MetadataReady { id });
        }
        self.active.insert(id, active);
        self.learn_names(id);
        self.count_listings();
        if has_metainfo {
            self.place_known(id);
        } else if let Some(metainfo) = to_complete {
            self.want_layers(id, (*metainfo).clone());
        }
        self.set_peers(id, new.peers);
        Ok(id)
    }

    pub(super) fn count_listings(&mut self) {
        let own = self.active.len() - self.helping;
        self.counters.listings.set((own + self.rows.len()) as u64);
        self.counters.listings_active.set(own as u64);
    }

    /// The layout is known: believe what the journal says, check what is in doubt, fetch the rest.
    pub(super) fn place_known(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        active.stage = Stage::Running;
        let all = || {
            let mut all = RunSet::default();
            all.insert(0, geometry.piece_count());
            all
        };
        let (total_len, piece_count) = (geometry.total_len(), geometry.piece_count());
        let folder = active.place.folder();
        let known = self.seat.mesh.recovered().listings.remove(&active.key);
        let known =
            known.filter(|known| known.is_of(total_len, piece_count, active.checks_v1(), folder));
        let slot = known.as_ref().map(|known| known.slot);
        if active.known_complete {
            active.are_touches_sent = true;
            for piece in geometry.pieces() {
                active.set_have(piece);
                active.stored.set(piece);
            }
            let mut is_new = all();
            if let Some(known) = known {
                active.journal_slot = slot;
                known.have.runs().for_each(|(first, count)| is_new.remove(first, count));
                self.believe(listing, &known.have);
            }
            for piece in is_new.iter() {
                self.commit_piece(listing, piece, 0);
            }
            self.commit.is_urgent = true;
            self.begin_stage(listing);
            return;
        }
        if active.is_fresh && !active.place.is_owned() {
            // Data of the user that is not there at all fails as what is there in part does: nothing is ever
            // fetched into a folder of his.
            active.journal_slot = slot;
            let error =
                ListingError::IncompleteInPlace { missing_pieces: piece_count, piece_count };
            self.fail_listing(listing, error);
            return;
        }
        let Some(known) = known else {
            if active.is_fresh {
                self.begin_stage(listing);
            } else {
                self.begin_check(listing, all(), Class::Check);
            }
            return;
        };
        active.journal_slot = slot;
        active.look_at_stamp(known.stamp);
        let believed = known.have.clone();
        let (mut have, mut suspect) = (known.have, known.suspect);
        if active.is_fresh {
            // The journal remembers data that is gone.
            (have, suspect) = (RunSet::default(), RunSet::default());
        }
        let bad_pieces: Vec<PieceIndex> = active
            .bad_files
            .iter()
            .filter_map(|&file| geometry.file(file).ok())
            .flat_map(|file| geometry.pieces_of_file(file))
            .collect();
        for piece in bad_pieces {
            if have.contains(piece.get()) {
                have.remove(piece.get(), 1);
                suspect.insert(piece.get(), 1);
            }
        }
        // The journal must stop believing it, too: files that are begun again soon have their length.
        self.commit.disbelieve(slot, &believed, &have);
        self.believe(listing, &have);
        if suspect.is_empty() {
            self.begin_stage(listing);
        } else {
            self.begin_check(listing, suspect, Class::Check);
        }
    }

    /// Takes pieces as verified, written and durable.
    fn believe(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            active.set_have(piece);
            active.stored.set(piece);
            active.durable.set(piece);
        }
        if active.is_all(&active.durable) {
            // The empty files were there when it was completed.
            active.are_touches_sent = active.bad_files.is_empty();
        }
    }

    /// Goes on with a listing whose check or wait is over.
    pub(super) fn begin_stage(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.stage != Stage::Running {
            return;
        }
        if active.is_complete() {
            self.stop_swarm(listing);
            // A check may have found what the rest of an extent was waiting for.
            self.set_split_timer(listing);
            self.look_whether_complete(listing);
        } else {
            self.start_swarm(listing);
            self.show_interest_to_all(listing);
            self.planning.insert(listing);
            self.dial_turn(listing);
        }
    }

    /// Notes in the journal what the files of a listing look like that is complete: what is ours was just
    /// written, what is the user's was hashed after it was looked at.
    pub(super) fn stamp_listing(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        if !active.place.is_owned() {
            let stamp = active.stamp;
            return self.handle_stamped(listing, stamp);
        }
        let Some(metainfo) = active.metainfo.clone() else { return };
        let root = active.root.clone();
        let id = self.flights.insert(Flight::Stamp(listing));
        self.out.push_back(Op::Aside { id, job: Aside::Stamp { root, metainfo } });
    }

    /// What the files of a complete listing look like.
    pub(super) fn handle_stamped(&mut self, listing: ListingId, stamp: Option<Stamp>) {
        if let Some(stamp) = stamp
            && let Some(slot) = self.journal_slot(listing)
        {
            self.commit.writer().stamped(slot, stamp);
        }
    }

    /// Everything is here and durable.
    pub(super) fn listing_is_whole(&mut self, listing: ListingId) {
        self.stop_swarm(listing);
        if self.active.get(&listing).is_some_and(|active| active.stripe.is_some()) {
            // What was begun here and came over another shard.
            self.give_up_fills(listing);
        }
        self.close_files_of(listing, false);
        let Some(active) = self.active.get(&listing) else { return };
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        for id in conns {
            if let Some(channel) = self.conns.get_mut(&id).and_then(super::peer::Conn::channel_mut)
            {
                channel.set_interested(false);
                channel.set_upload_only(true);
                self.touched.insert(id);
            }
            self.check_useful(id, listing);
        }
        // One that nobody has ever asked for goes cold at once: thousands may be added in a row.
        let is_asked_for =
            self.active.get(&listing).is_some_and(|active| !active.sources.is_empty());
        let idle = if is_asked_for { self.config.idle_before_cold } else { Duration::ZERO };
        self.timers.set(self.now + idle, Timer::Evict(listing));
        self.dial_turn(listing);
    }

    fn set_listing_peers(&mut self, listing: ListingId, peers: Vec<std::net::SocketAddr>) {
        // A cold listing wants nothing, so its addresses need not be kept.
        self.set_peers(listing, peers);
    }

    pub(super) fn remove_listing(&mut self, listing: ListingId, delete_data: bool) {
        if self.must_wait_for_helpers(listing, delete_data) {
            return;
        }
        if self.remove_cold(listing, delete_data) {
            return;
        }
        self.forget_active(listing);
        if let Some(slot) = self.active.get(&listing).and_then(|active| active.journal_slot) {
            self.commit.writer().removed(slot);
        }
        let Some(active) = self.active.remove(&listing) else { return };
        self.end_active(listing, active, delete_data);
    }

    /// Ends everything that goes on for an active listing.
    pub(super) fn forget_active(&mut self, listing: ListingId) {
        let Some(active) = self.active.get(&listing) else { return };
        let conns: Vec<ConnId> = active.conns.iter().copied().collect();
        for id in conns {
            self.close_conn(id, CloseReason::Gone);
        }
        self.close_files_of(listing, true);
        self.cache.forget(listing);
        self.commit.forget(listing);
        self.hashing.forget(listing);
        self.planning.remove(&listing);
        self.starving.remove(&listing);
        self.checks_waiting.remove(&listing);
        self.remakes.forget(listing);
        let askew = &mut self.askew;
        self.jobs.retain(|_, job| match job {
            Job::Write(write) if write.listing == listing => {
                askew.came_back(write.copies);
                false
            }
            Job::Write(_) => true,
            Job::Read(read) => read.listing != listing,
            Job::Spill(spill) => spill.listing != listing,
            Job::Touch(of) => *of != listing,
        });
        self.reads.forget(listing);
    }

    fn end_active(&mut self, listing: ListingId, active: Active, delete_data: bool) {
        self.filling -= active.assembler.held_len();
        for name in &active.wire_ids {
            self.names.remove(name, listing);
        }
        let deletes = delete_data && active.place.is_owned() && active.metainfo.is_some();
        for name in &active.wire_ids {
            // The name by which a second life would be looked for stays until the data is gone.
            if !deletes || *name != name_of(&active.key) {
                self.seat.mesh.forget_name(name, listing);
            }
        }
        self.remove_state_files(active.key);
        self.count_listings();
        if let Some(metainfo) = &active.metainfo
            && active.select.is_some()
            && delete_data
        {
            // Its answer is nobody's: what is asked for is the name that follows.
            let id = self.flights.insert(Flight::RemoveState);
            let path = super::parts_folder(metainfo.info());
            self.out.push_back(Op::RemoveTree { id, root: active.root.clone(), path });
        }
        let name = active.metainfo.as_ref().map(|metainfo| metainfo.info().name().to_owned());
        match name {
            Some(name) if delete_data && active.place.is_owned() => {
                // Its key stays taken until the data is gone: added again before, it would lose the
                // files that it has just written.
                self.removing.insert(active.key, listing);
                let id = self.flights.insert(Flight::RemoveTree { listing, key: active.key });
                let path = std::path::PathBuf::from(name);
                self.out.push_back(Op::RemoveTree { id, root: active.root, path });
            }
            _ => {
                self.tell(Event::Removed { id: listing, freed_bytes: 0 });
            }
        }
    }

    /// Answer to [`Op::RemoveTree`].
    pub(super) fn handle_removed(
        &mut self,
        listing: ListingId,
        key: ListingKey,
        result: io::Result<u64>,
    ) {
        self.removing.remove(&key);
        self.seat.mesh.forget_name(&name_of(&key), listing);
        let freed_bytes = match result {
            Ok(freed_bytes) => freed_bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => {
                tracing::error!(listing = listing.0, %error, "cannot remove the data");
                0
            }
        };
        self.tell(Event::Removed { id: listing, freed_bytes });
    }

    fn begin_stop(&mut self) {
        self.is_stopping = true;
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in conns {
            self.close_conn(id, CloseReason::Gone);
        }
        self.commit.is_urgent = true;
    }

    /// Stops when what is verified is written and journalled, and no operation is in flight.
    pub(super) fn look_whether_stopped(&mut self) {
        if !self.is_stopping || self.is_stopped || !self.is_turn_to_stop() {
            return;
        }
        // A piece that lacks a block waits for ever, but what is lent to a receive comes back.
        if !self.hashing.is_idle() && self.flights.len() > 0 {
            return;
        }
        // What cannot be written now is fetched again by the next run.
        let waits = self.active.values().any(|active| active.wait.is_some());
        if !self.disk.is_idle() && !waits {
            return;
        }
        // Nor can a journal be waited for whose disk is full: what is not in it is hashed again.
        let journal_waits = self.commit.journal.is_waiting();
        if !self.commit.is_idle() && !journal_waits {
            self.commit.is_urgent = true;
            return;
        }
        let waits = waits || journal_waits;
        if !self.is_clean_stop_written {
            self.is_clean_stop_written = true;
            // Checks that are not through, or never began, are for the next run.
            let is_settled = |active: &Active| active.writing.is_empty() && active.check.is_none();
            let is_clean = !waits && self.active.values().all(is_settled);
            self.note_clean_stop(is_clean);
            // Where that leaves nothing to write, nothing will complete that could bring another turn.
            self.pump_commit();
        }
        if self.flights.len() == 0 && self.seat.is_mail_out() {
            self.is_stopped = true;
            self.seat.leave();
        }
    }
}
