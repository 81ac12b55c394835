//! From verified to written: extents go to the disk in runs of files, and are served meanwhile.

use std::io;
use std::ops::Range;

use ringseed_core::geometry::{ExtentIndex, Geometry, PieceIndex};
use ringseed_sys::arena::Extent;

use super::budget::Class;
use super::cache::ExtentKey;
use super::disk::{DiskTask, FileKey, OpenSpec, TaskDone, TaskKind};
use super::fill::Filled;
use super::gather::holds_askew;
use super::listing::{Stage, WAIT_MAX, WAIT_MIN};
use super::peer::Conn;
use super::stripes::StripeNews;
use super::timers::Timer;
use super::{Job, Shard};
use crate::api::{Event, ListingError, ListingId, WaitReason};
use crate::io::OpenMode;
use crate::store::RunSet;

/// Extents on their way to the disk.
#[derive(Debug)]
pub(super) struct WriteJob {
    pub listing: ListingId,
    pub extents: Vec<Stored>,
    /// Buffers that their bytes were copied to, see `gather`.
    pub copies: usize,
    /// Parts of files that are not written yet.
    pub left: usize,
}

/// An extent of which verified pieces are to be written.
#[derive(Debug)]
pub(super) struct Stored {
    pub extent: ExtentIndex,
    /// None once its writes hold what they need of it.
    pub bytes: Option<Extent>,
    /// Verified pieces in it.
    pub pieces: RunSet,
    /// Name of its entry in the cache, pinned until the write has ended.
    pub cached: u64,
}

impl Stored {
    /// Where in the torrent its pieces lie, as far as they lie in it.
    pub fn ranges(&self, geometry: &Geometry) -> Vec<Range<u64>> {
        ranges_in(geometry, self.extent, &self.pieces)
    }
}

/// Where in the torrent pieces of an extent lie, as far as they lie in it.
pub(super) fn ranges_in(
    geometry: &Geometry,
    extent: ExtentIndex,
    pieces: &RunSet,
) -> Vec<Range<u64>> {
    let begin = geometry.extent_offset(extent);
    let end = begin + u64::from(geometry.extent_len(extent));
    let range_of = |(first, count): (u32, u32)| {
        let piece = geometry.piece(first).expect("a piece of the extent");
        let last = geometry.piece(first + count - 1).expect("a piece of the extent");
        let to = geometry.piece_offset(last) + u64::from(geometry.piece_len(last));
        geometry.piece_offset(piece).max(begin)..to.min(end)
    };
    pieces.runs().map(range_of).collect()
}

impl Shard {
    /// A piece is verified, in memory or on disk: tell what depends on it.
    pub(super) fn piece_verified(&mut self, listing: ListingId, piece: PieceIndex) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        active.requests.piece_done(piece);
        active.unannounced.insert(piece.get());
        let holds_data = |extent: &ExtentIndex| geometry.extent_data_len(*extent) > 0;
        let extents = geometry.extents_of_piece(piece).filter(holds_data).count() as u32;
        active.writing.insert(piece.get(), extents);
        let done = active.assembler.finish(&geometry, piece, &active.done);
        self.filling -= done.len();
        for filled in done {
            self.store_extent(listing, filled);
        }
    }

    /// Freezes an extent of verified pieces: from here on it is served, and written.
    pub(super) fn store_extent(&mut self, listing: ListingId, filled: Filled) {
        let Filled { extent, bytes, pieces: wanted } = filled;
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let pieces: RunSet = geometry
            .pieces_of_extent(extent)
            .filter(|&piece| active.have.get(piece) && !active.stored.get(piece))
            .filter(|&piece| wanted.contains(piece.get()) || geometry.piece_data_len(piece) == 0)
            .map(PieceIndex::get)
            .collect();
        let frozen = bytes.freeze();
        let key = ExtentKey { listing, extent: extent.get() };
        let cached = self.cache.insert(key, frozen.clone(), pieces.clone(), true);
        if let Some(slot) = self.journal_slot(listing) {
            self.commit.writer().intent(slot, pieces.runs());
        }
        self.announce(listing, &pieces);
        let stored = Stored { extent, bytes: Some(frozen.clone()), pieces, cached };
        if holds_askew(&geometry, extent) {
            self.askew.push(listing, stored);
        } else {
            self.next_job += 1;
            let job = self.next_job;
            let begin = geometry.extent_offset(extent);
            let mut tasks = Vec::new();
            for range in stored.ranges(&geometry) {
                let mut at = range.start;
                for slice in geometry.slices(range.start, range.end - range.start) {
                    if !slice.pad {
                        let key = FileKey { listing, file: slice.file.get() };
                        let kind = TaskKind::Write {
                            offset_bytes: slice.file_offset,
                            buf: frozen.clone(),
                            start: (at - begin) as usize,
                            len: slice.len as usize,
                        };
                        tasks.push(DiskTask { key, class: Class::Foreground, job, kind });
                    }
                    at += slice.len;
                }
            }
            self.begin_write(listing, job, vec![stored], 0, tasks);
        }
        self.send_touches(listing);
        self.look_whether_complete(listing);
    }

    /// Submits the writes of extents; these are written when all of them have ended.
    pub(super) fn begin_write(
        &mut self,
        listing: ListingId,
        job: u64,
        extents: Vec<Stored>,
        copies: usize,
        tasks: Vec<DiskTask>,
    ) {
        let left = tasks.len();
        self.jobs.insert(job, Job::Write(WriteJob { listing, extents, copies, left }));
        for task in tasks {
            self.disk_submit(task);
        }
        if left == 0 {
            self.extents_written(job);
        }
    }

    /// Says to every peer which pieces can be had here now.
    pub(super) fn announce(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        let news: Vec<PieceIndex> = pieces
            .iter()
            .filter(|piece| active.unannounced.remove(piece))
            .filter_map(|piece| geometry.piece(piece).ok())
            .collect();
        let conns: Vec<_> = active.conns.iter().copied().collect();
        for id in conns {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            let Some(channel) = conn.channel_mut() else { continue };
            for &piece in &news {
                if !channel.peer_has().is_some_and(|has| has.get(piece)) {
                    channel.send_have(piece);
                }
            }
            self.touched.insert(id);
        }
    }

    /// Creates the empty files of a listing: nobody sends a block of them.
    pub(super) fn send_touches(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.are_touches_sent || !active.place.is_owned() {
            return;
        }
        active.are_touches_sent = true;
        let Some(metainfo) = active.metainfo.clone() else { return };
        let empty =
            |file: &ringseed_core::metainfo::FileEntry<'_>| !file.pad && file.len_bytes == 0;
        let files = metainfo.info().files().enumerate();
        let files: Vec<u32> =
            files.filter(|(_, file)| empty(file)).map(|(at, _)| at as u32).collect();
        let files: Vec<u32> =
            files.into_iter().filter(|&file| active.is_wanted_file(file)).collect();
        active.touches_left = files.len() as u32;
        for file in files {
            self.next_job += 1;
            let job = self.next_job;
            self.jobs.insert(job, Job::Touch(listing));
            let key = FileKey { listing, file };
            self.disk_submit(DiskTask {
                key,
                class: Class::Foreground,
                job,
                kind: TaskKind::Touch,
            });
        }
    }

    /// How a file of a listing is opened now. While something is missing it will be written soon, so
    /// it is opened for that at once; a check alone creates nothing.
    pub(super) fn open_spec(&self, key: FileKey, needs_write: bool) -> Option<OpenSpec> {
        let active = self.active.get(&key.listing)?;
        let path = active.file_path(key.file)?;
        let geometry = active.geometry()?;
        // Of a file that is not wanted only a few bytes come: no room is kept for the rest.
        let len_bytes = geometry.file_len(geometry.file(key.file).ok()?);
        let len_bytes = Some(len_bytes).filter(|_| active.is_wanted_file(key.file));
        // What several shards write its home syncs to the end, with the names that they have made.
        let settled = if active.stripe.is_some() { &active.durable } else { &active.stored };
        let is_filled = active.stage == Stage::Running && !active.is_all(settled);
        let is_written = active.place.is_owned() && (needs_write || is_filled);
        let mode = match (is_written, active.stripe.is_some()) {
            (true, true) => OpenMode::WriteShared,
            (true, false) => OpenMode::Write,
            (false, _) => OpenMode::Read,
        };
        Some(OpenSpec { root: active.root.clone(), path, mode, len_bytes })
    }

    /// A disk task has ended; its job decides what follows.
    pub(super) fn task_done(&mut self, key: FileKey, job: u64, done: TaskDone) {
        match done {
            TaskDone::Read(result, buf) => self.read_done(key, job, result, buf),
            TaskDone::Wrote(Ok(_)) => self.write_done(job),
            TaskDone::Wrote(Err((error, task))) => {
                if let Some(active) = self.active.get_mut(&key.listing) {
                    active.parked.push(task);
                    self.disk_failed(key.listing, &error);
                }
            }
        }
    }

    fn write_done(&mut self, job: u64) {
        match self.jobs.get_mut(&job) {
            Some(Job::Write(write)) => {
                write.left -= 1;
                if write.left == 0 {
                    self.extents_written(job);
                }
            }
            Some(Job::Spill(spill)) => {
                spill.left -= 1;
                if spill.left == 0
                    && let Some(Job::Spill(spill)) = self.jobs.remove(&job)
                {
                    self.spill_written(spill);
                }
            }
            Some(Job::Touch(listing)) => {
                let listing = *listing;
                self.jobs.remove(&job);
                if let Some(active) = self.active.get_mut(&listing) {
                    active.touches_left -= 1;
                    self.commit.is_urgent |= active.touches_left == 0 && active.is_complete();
                }
                self.look_whether_complete(listing);
            }
            _ => {}
        }
    }

    fn extents_written(&mut self, job: u64) {
        let Some(Job::Write(write)) = self.jobs.remove(&job) else { return };
        let listing = write.listing;
        self.askew.came_back(write.copies);
        let is_wanted = self.is_anybody_interested(listing);
        for Stored { extent, pieces, cached, .. } in write.extents {
            let key = ExtentKey { listing, extent: extent.get() };
            match is_wanted {
                true => self.cache.unpin(key, cached),
                false => self.cache.release(key, cached),
            }
            self.pieces_written(listing, &pieces);
        }
        self.look_whether_complete(listing);
    }

    /// Whether some peer wants something of a listing that we have.
    pub(super) fn is_anybody_interested(&self, listing: ListingId) -> bool {
        let conns = self.active.get(&listing).into_iter().flat_map(|active| &active.conns);
        let mut channels = conns.filter_map(|id| self.conns.get(id).and_then(Conn::channel));
        channels.any(|channel| channel.peer_interested())
    }

    fn pieces_written(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        // A write that went through shows that the disk is well again.
        active.wait_for = WAIT_MIN;
        let mut written = Vec::new();
        let mut unknown = RunSet::default();
        for piece in pieces.iter() {
            let Some(left) = active.writing.get_mut(&piece) else { continue };
            *left -= 1;
            if *left == 0 {
                active.writing.remove(&piece);
                if active.doubtful.remove(&piece) {
                    unknown.insert(piece, 1);
                    continue;
                }
                let piece = geometry.piece(piece).expect("a piece of the extent");
                active.stored.set(piece);
                written.push(piece);
            }
        }
        if !unknown.is_empty() {
            self.pieces_are_unknown(listing, unknown);
        }
        for piece in written {
            self.commit_piece(listing, piece.get(), u64::from(geometry.piece_data_len(piece)));
        }
    }

    /// Commits at once when the last piece of a listing is written, and tells when it is durable.
    pub(super) fn look_whether_complete(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.stage != Stage::Running || !active.is_complete() || active.touches_left > 0 {
            return;
        }
        if active.place.is_owned() && !active.are_touches_sent {
            self.send_touches(listing);
            return self.look_whether_complete(listing);
        }
        if active.is_helper() && active.is_all(&active.durable) {
            // Its home speaks for it.
            if !std::mem::replace(&mut active.is_complete_told, true) {
                self.listing_is_whole(listing);
            }
        } else if active.is_all(&active.durable) && !active.is_complete_told {
            active.is_complete_told = true;
            if active.stripe.is_some() {
                self.tell_stripes(listing, &StripeNews::Whole);
            }
            let Some(active) = self.active.get(&listing) else { return };
            tracing::info!(listing = listing.0, bytes = active.have_bytes, "listing complete");
            self.tell(Event::Complete { id: listing });
            self.stamp_listing(listing);
            self.listing_is_whole(listing);
        } else if active.is_all(&active.stored) && !active.is_all(&active.durable) {
            self.commit.is_urgent = true;
        }
    }

    /// A batch is durable.
    pub(super) fn pieces_are_durable(&mut self, listing: ListingId, pieces: &RunSet) {
        let Some(active) = self.active.get_mut(&listing) else {
            return self.row_is_durable(listing);
        };
        let Some(geometry) = active.geometry().cloned() else { return };
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            // It may have been lost since.
            if active.stored.get(piece) {
                active.durable.set(piece);
            }
        }
        self.look_whether_complete(listing);
    }

    /// A sync failed: what these pieces are on disk nobody knows. Read them back, past the cache.
    pub(super) fn pieces_are_unknown(&mut self, listing: ListingId, pieces: RunSet) {
        if pieces.is_empty() {
            return;
        }
        self.share_lost(listing, &pieces);
        if let Some(slot) = self.journal_slot(listing) {
            self.commit.writer().lost(slot, pieces.runs());
        }
        let Some(active) = self.active.get_mut(&listing) else { return };
        let Some(geometry) = active.geometry().cloned() else { return };
        for piece in pieces.iter().filter_map(|piece| geometry.piece(piece).ok()) {
            let Some(active) = self.active.get_mut(&listing) else { return };
            active.clear_have(piece);
            active.requests.piece_lost(piece);
            active.assembler.want(&geometry, piece);
            let extents: Vec<ExtentIndex> = geometry.extents_of_piece(piece).collect();
            self.forget_bytes(listing, &extents, piece.get());
        }
        self.withdraw(listing, &pieces);
        self.close_files_of(listing, false);
        self.begin_check(listing, pieces, Class::Repair);
    }

    /// The disk refused an operation: wait with this listing, seed on, try again.
    pub(super) fn disk_failed(&mut self, listing: ListingId, error: &io::Error) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        use rustix::io::Errno;
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        if let Some(Errno::LOOP | Errno::NOTDIR | Errno::ISDIR) = errno {
            let path = active.place.folder().display().to_string();
            let error = ListingError::Path { path, reason: error.to_string() };
            self.fail_listing(listing, error);
            return;
        }
        if active.wait.is_some() {
            return;
        }
        let is_full =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let reason =
            if is_full { WaitReason::DiskFull } else { WaitReason::DiskError(error.to_string()) };
        tracing::warn!(listing = listing.0, %error, "listing waits for its disk");
        active.wait = Some(reason);
        let wait_for = active.wait_for;
        active.wait_for = (wait_for * 2).min(WAIT_MAX);
        self.timers.set(self.now + wait_for, Timer::Resume(listing));
    }

    /// The wait is over: the parked operations are tried again.
    pub(super) fn resume_listing(&mut self, listing: ListingId) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if active.wait.take().is_none() {
            return;
        }
        for task in std::mem::take(&mut active.parked) {
            self.disk_submit(task);
        }
        let conns: Vec<_> = self.active[&listing].conns.iter().copied().collect();
        self.touched.extend(conns);
        let Some(active) = self.active.get(&listing) else { return };
        if active.stage == Stage::Running && !active.place.is_owned() && !active.have.is_full() {
            // In place nothing is fetched: what could not be read is read again.
            let missing = active.have.iter_missing().map(PieceIndex::get).collect();
            return self.begin_check(listing, missing, Class::Repair);
        }
        self.begin_stage(listing);
    }

    /// Gives a listing up. What is had is not served either: it is not what it should be.
    pub(super) fn fail_listing(&mut self, listing: ListingId, error: ListingError) {
        let Some(active) = self.active.get_mut(&listing) else { return };
        if matches!(active.stage, Stage::Failed(_)) {
            return;
        }
        tracing::error!(listing = listing.0, %error, "listing failed");
        active.stage = Stage::Failed(error.clone());
        active.set_none_have();
        active.check = None;
        // What was being filled goes home; a part that is lent does so when its receive ends.
        self.filling -= active.assembler.held_len();
        active.assembler = super::fill::Assembler::default();
        active.unannounced.clear();
        active.spilled.clear();
        active.parked.clear();
        let conns: Vec<_> = active.conns.iter().copied().collect();
        for id in conns {
            self.close_conn(id, super::peer::CloseReason::Gone);
        }
        self.stop_swarm(listing);
        self.hashing.forget(listing);
        self.cache.forget(listing);
        let Some(active) = self.active.get(&listing) else { return };
        let (is_striped, is_helper) = (active.stripe.is_some(), active.is_helper());
        if is_striped {
            self.tell_stripes(listing, &StripeNews::Failed(error.clone()));
        }
        if !is_helper {
            self.tell(Event::Failed { id: listing, error });
        }
    }
}
