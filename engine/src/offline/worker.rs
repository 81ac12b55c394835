//! One thread that reads and hashes at the same time.
//!
//! Sixteen lanes each follow a run of pieces. A lane reads ahead in *steps*, each of one file into an
//! extent of its own; when enough lanes have their next step, all of them are hashed in one call, and
//! their buffers go back to reading before the next call. So the device is busy while the core
//! hashes, and memory is what the arena holds, whatever the length of a piece.
//!
//! What the page cache has comes in short steps, one at a time: they stay in the outer caches between
//! the copy and the hash. What comes from the device is read ahead by four long steps a lane.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringseed_core::geometry::{BLOCK_LEN, FileIndex, Geometry};
use ringseed_core::merkle::piece_layer_number;
use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES};
use ringseed_sys::hash::{self, Job, Sha1LaneSet, merkle};
use rustix::io::Errno;

use super::OfflineError;
use super::queue::{Absent, Loaded, Next, PieceDigests, Queue, Run};
use super::read::{Arrived, Bytes, IoMode, OpenFile, Reads, Wanted};

/// Lanes of the widest kernels.
pub(super) const LANES: usize = 16;
/// Steps that a lane reads ahead from a device. With two, a fast disk idles while a round is hashed.
pub(super) const STEPS_AHEAD: usize = 4;
/// A step from the page cache: sixteen of them fit the outer caches of a core. Half of it costs a tenth
/// more processor time for the calls, twice of it gains nothing (measured on Zen 4).
const STEP_LEN_CACHED: usize = 128 << 10;
/// A step from a device.
const STEP_LEN_DEVICE: usize = EXTENT_LEN_BYTES;
/// Most bytes of one lane that are hashed in one round, so that lanes advance together.
const ROUND_LEN_MAX: usize = EXTENT_LEN_BYTES;
/// Direct reads want offset and address to agree modulo this.
const ALIGN_BYTES: u64 = 4096;
/// Files that a thread holds open besides those being read.
const OPEN_FILES_MAX: usize = 32;

/// What pads are made of.
static ZEROS: [u8; STEP_LEN_DEVICE] = [0; STEP_LEN_DEVICE];

/// How a worker reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub io: IoMode,
    /// One stream in the order of the files.
    pub in_file_order: bool,
}

/// A run of pieces that a lane follows.
struct Lane<'a> {
    of: Arc<Loaded<'a>>,
    /// Index of the first piece, and what is known of each.
    first: u32,
    pieces: Vec<Piece>,
    /// How many of them have been handed over.
    finished: usize,
    /// Place in the order of everything: torrent, then first piece.
    order: (u64, u32),
    /// Where reading and hashing stand, in the space of the torrent.
    read_to: u64,
    hashed_to: u64,
    end: u64,
    step_len: usize,
    steps_max: usize,
    steps: VecDeque<Step>,
    /// Number of the front step, counted over all runs of this lane.
    front: u32,
}

/// A piece under way.
#[derive(Default)]
struct Piece {
    job: Option<Job>,
    leaves: Vec<[u8; 32]>,
    absent: Option<Absent>,
}

/// One read of a lane, or what stands for it.
struct Step {
    /// Where it begins in the space of the torrent.
    at: u64,
    len: usize,
    file: FileIndex,
    file_offset: u64,
    what: What,
}

enum What {
    /// In flight.
    Waiting,
    /// Zeros that lie on no disk.
    Pad,
    /// As many bytes as the file has there; dropping them gives their buffer back.
    Here(Bytes),
    Absent(Absent),
}

/// See the module.
pub(super) struct Worker<'q, 'a, R> {
    queue: &'q Queue<'a>,
    reads: R,
    arena: Arena,
    pace: Pace,
    stop: &'q AtomicBool,
    lanes: Vec<Option<Lane<'a>>>,
    /// Numbers of steps go on over the runs of a lane, so that tokens never repeat soon.
    fronts: Vec<u32>,
    jobs: Sha1LaneSet,
    /// By torrent and file, last used last. `None`: it is not there.
    files: VecDeque<(u64, FileIndex, Option<Arc<OpenFile>>)>,
    is_drained: bool,
}

impl<'q, 'a, R: Reads> Worker<'q, 'a, R> {
    pub(super) fn new(
        queue: &'q Queue<'a>,
        reads: R,
        arena: Arena,
        pace: Pace,
        stop: &'q AtomicBool,
    ) -> Self {
        Worker {
            queue,
            reads,
            arena,
            pace,
            stop,
            lanes: (0..LANES).map(|_| None).collect(),
            fronts: vec![0; LANES],
            // The shortest pieces of v1 have 1 KiB: so many of them are in a run.
            jobs: Sha1LaneSet::new(LANES * (EXTENT_LEN_BYTES >> 10)),
            files: VecDeque::new(),
            is_drained: false,
        }
    }

    /// Works until the queue is empty or everything has stopped. Errors go to the queue.
    pub(super) fn run(mut self) {
        if let Err(error) = self.work() {
            self.queue.fail(error);
        }
    }

    fn work(&mut self) -> Result<(), OfflineError> {
        while !self.queue.is_stopped() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(OfflineError::Stopped);
            }
            self.fill_lanes()?;
            self.start_reads()?;
            if self.reads.in_flight() > 0 {
                // What was started must reach the device before the core is busy with hashing.
                let reached = match self.should_hash() {
                    true => self.reads.submit(),
                    false => self.reads.wait(),
                };
                reached.map_err(OfflineError::Ring)?;
            }
            while let Some(arrived) = self.reads.next_arrived() {
                self.handle_arrived(arrived)?;
            }
            if self.should_hash() {
                self.hash_round()?;
            } else if self.lanes.iter().all(Option::is_none) && self.is_drained {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Gives every idle lane a run.
    fn fill_lanes(&mut self) -> Result<(), OfflineError> {
        for index in 0..LANES {
            if self.is_drained || self.lanes[index].is_some() {
                continue;
            }
            let may_wait = self.lanes.iter().all(Option::is_none);
            match self.queue.next(may_wait)? {
                Next::Run(run) => {
                    let lane = self.lane_for(run, self.fronts[index]);
                    self.lanes[index] = Some(lane);
                }
                Next::NotNow => return Ok(()),
                Next::End => self.is_drained = true,
            }
        }
        Ok(())
    }

    fn lane_for(&mut self, run: Run<'a>, front: u32) -> Lane<'a> {
        let geometry = run.of.target.geometry();
        let piece = |raw| geometry.piece(raw).expect("a piece of this torrent");
        let begin = geometry.piece_offset(piece(run.pieces.start));
        let last = piece(run.pieces.end - 1);
        let end = geometry.piece_offset(last) + u64::from(geometry.piece_len(last));
        let slice = geometry.slices(begin, end - begin).find(|slice| !slice.pad);
        let is_cached = match (self.pace.io, slice) {
            (IoMode::Mmap, _) | (_, None) => false,
            (_, Some(slice)) => {
                let file = self.file(&run.of, slice.file).ok().flatten();
                let len = slice.len.min(STEP_LEN_DEVICE as u64) as usize;
                file.is_some_and(|file| file.is_resident(slice.file_offset, len))
            }
        };
        let (step_len, steps_max) = match (is_cached, self.pace.io) {
            (true, _) => (STEP_LEN_CACHED, 1),
            (_, IoMode::Mmap) => (STEP_LEN_DEVICE, 1),
            _ => (STEP_LEN_DEVICE, STEPS_AHEAD),
        };
        if !is_cached {
            self.reads.expect_device();
        }
        // In file order the arena alone bounds how far ahead the one stream is.
        let steps_max = if self.pace.in_file_order { usize::MAX } else { steps_max };
        Lane {
            first: run.pieces.start,
            pieces: run.pieces.clone().map(|_| Piece::default()).collect(),
            finished: 0,
            order: (run.of.number, run.pieces.start),
            of: run.of,
            read_to: begin,
            hashed_to: begin,
            end,
            step_len,
            steps_max,
            steps: VecDeque::new(),
            front,
        }
    }

    /// Starts what the lanes may read, runs that began first first.
    fn start_reads(&mut self) -> Result<(), OfflineError> {
        let mut order: Vec<usize> =
            (0..LANES).filter(|&index| self.lanes[index].is_some()).collect();
        order.sort_unstable_by_key(|&index| self.lanes[index].as_ref().map(|lane| lane.order));
        for index in order {
            let Some(mut lane) = self.lanes[index].take() else { continue };
            let has_buffers = self.start_reads_of(index, &mut lane);
            self.lanes[index] = Some(lane);
            if !has_buffers? {
                break;
            }
        }
        Ok(())
    }

    /// `false` when there was no buffer for the next step.
    fn start_reads_of(&mut self, index: usize, lane: &mut Lane<'a>) -> Result<bool, OfflineError> {
        // Of short files, as many steps as make up the bytes of one, within the same bounds.
        let held: usize = lane.steps.iter().map(|step| step.len).sum();
        let mut small_left = lane.step_len.saturating_sub(held);
        while lane.read_to < lane.end
            && (lane.steps.len() < lane.steps_max
                || (small_left > 0 && lane.steps.len() < STEPS_AHEAD))
        {
            let mut step = lane.next_step();
            let mut wanted = None;
            if !matches!(step.what, What::Pad) {
                match self.file(&lane.of, step.file) {
                    Ok(Some(file)) => {
                        let buf = match self.reads.needs_buffer() {
                            true => match self.arena.try_take() {
                                Some(buf) => Some(buf),
                                None => return Ok(false),
                            },
                            false => None,
                        };
                        wanted = Some((file, buf));
                    }
                    Ok(None) => step.what = What::Absent(Absent::Missing),
                    Err(error) if is_our_lack(&error) => return Err(OfflineError::Ring(error)),
                    Err(error) => {
                        let file = step.file;
                        step.what = What::Absent(Absent::Unreadable { file, error });
                    }
                }
            }
            if let Some((file, buf)) = wanted {
                let number = lane.front.wrapping_add(lane.steps.len() as u32);
                let token = (index as u64) << 32 | u64::from(number);
                let start = (step.file_offset % ALIGN_BYTES) as usize;
                let (offset_bytes, len) = (step.file_offset, step.len);
                self.reads.start(&file, Wanted { token, offset_bytes, len, start }, buf);
            }
            lane.read_to += step.len as u64;
            small_left = small_left.saturating_sub(step.len);
            lane.steps.push_back(step);
        }
        Ok(true)
    }

    /// An open file, from those at hand or opened now.
    fn file(&mut self, of: &Loaded<'a>, file: FileIndex) -> io::Result<Option<Arc<OpenFile>>> {
        let found = self
            .files
            .iter()
            .rposition(|(number, of_file, _)| *number == of.number && *of_file == file);
        if let Some(at) = found {
            return Ok(self.files[at].2.clone());
        }
        let opened = of.target.open(file, self.pace.io)?.map(Arc::new);
        if self.files.len() >= OPEN_FILES_MAX {
            self.files.pop_front();
        }
        self.files.push_back((of.number, file, opened.clone()));
        Ok(opened)
    }

    fn handle_arrived(&mut self, Arrived { token, result }: Arrived) -> Result<(), OfflineError> {
        let lane = self.lanes[(token >> 32) as usize].as_mut().expect("a lane that waits");
        let step = lane.steps.get_mut((token as u32).wrapping_sub(lane.front) as usize);
        let step = step.expect("a step that waits");
        step.what = match result {
            Ok(bytes) => What::Here(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                What::Absent(Absent::Missing)
            }
            Err(error) if is_our_lack(&error) => return Err(OfflineError::Ring(error)),
            Err(error) => What::Absent(Absent::Unreadable { file: step.file, error }),
        };
        Ok(())
    }

    /// How many messages could be hashed now: what fills the lanes.
    fn ready_weight(&self) -> usize {
        self.lanes.iter().flatten().map(Lane::ready_weight).sum()
    }

    /// Hashing waits until the lanes are full, but not so long that reading runs dry.
    fn should_hash(&self) -> bool {
        let weight = self.ready_weight();
        weight >= self.jobs.width()
            || (weight > 0 && self.reads.in_flight() <= LANES * STEPS_AHEAD / 2)
    }

    /// Hashes what is there of every lane, and hands over the pieces that are finished.
    fn hash_round(&mut self) -> Result<(), OfflineError> {
        let mut taken: Vec<(usize, Step)> = Vec::with_capacity(LANES);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let Some(lane) = lane else { continue };
            let mut len = 0;
            while len < ROUND_LEN_MAX && lane.steps.front().is_some_and(Step::is_ready) {
                let step = lane.steps.pop_front().expect("just seen");
                lane.front = lane.front.wrapping_add(1);
                len += step.len;
                taken.push((index, step));
            }
        }
        self.digest(&taken)?;
        for (index, step) in taken {
            let lane = self.lanes[index].as_mut().expect("its step was taken");
            lane.hashed_to = step.at + step.len as u64;
            match &step.what {
                What::Absent(absent) => lane.spoil(step.at, step.len, absent),
                What::Here(bytes) if !bytes.is_intact() => {
                    let error = io::Error::other("it was cut short, or a sector is bad");
                    lane.spoil(step.at, step.len, &Absent::Unreadable { file: step.file, error });
                }
                // The file ends early: pieces before its end are as good as ever.
                What::Here(bytes) if bytes.len() < step.len => {
                    let at = step.at + bytes.len() as u64;
                    lane.spoil(at, step.len - bytes.len(), &Absent::Missing);
                }
                What::Here(_) | What::Pad | What::Waiting => {}
            }
        }
        self.finish_pieces()
    }

    /// Feeds the bytes of the steps to the SHA-1 jobs of their pieces, and hashes their leaves.
    fn digest(&mut self, taken: &[(usize, Step)]) -> Result<(), OfflineError> {
        let mut feeds: Vec<(Job, &[u8])> = Vec::with_capacity(taken.len());
        let mut leaves: Vec<&[u8]> = Vec::new();
        let mut leaves_of: Vec<(usize, usize, usize)> = Vec::new();
        for (index, step) in taken {
            let lane = self.lanes[*index].as_mut().expect("its step was taken");
            let target = lane.of.target.clone();
            let geometry = target.geometry();
            let (mut bytes, is_pad): (&[u8], bool) = match &step.what {
                What::Here(bytes) => (bytes, false),
                What::Pad => (&ZEROS[..step.len], true),
                What::Absent(_) | What::Waiting => continue,
            };
            if !is_pad {
                target.handle_bytes(step.file, step.file_offset, bytes)?;
            }
            let mut at = step.at;
            while !bytes.is_empty() {
                let (slot, end) = lane.piece_at(at);
                let (now, later) = bytes.split_at(bytes.len().min((end - at) as usize));
                let piece = &mut lane.pieces[slot];
                if geometry.kind().has_v1() && piece.absent.is_none() {
                    let jobs = &mut self.jobs;
                    let job = *piece.job.get_or_insert_with(|| {
                        jobs.try_submit().expect("a job for every piece of every lane")
                    });
                    feeds.push((job, now));
                }
                if geometry.kind().has_v2() && !is_pad {
                    let before = leaves.len();
                    leaves.extend(now.chunks(BLOCK_LEN as usize));
                    leaves_of.push((*index, slot, leaves.len() - before));
                }
                at += now.len() as u64;
                bytes = later;
            }
        }
        self.jobs.feed(&feeds);
        let mut digests = vec![[0; 32]; leaves.len()];
        hash::sha256_many(&leaves, &mut digests);
        let mut digests = digests.as_slice();
        for (index, slot, count) in leaves_of {
            let (of_piece, rest) = digests.split_at(count);
            digests = rest;
            let lane = self.lanes[index].as_mut().expect("its step was taken");
            lane.pieces[slot].leaves.extend_from_slice(of_piece);
        }
        Ok(())
    }

    /// Hands over the pieces whose last byte has been hashed, and frees lanes at their end.
    fn finish_pieces(&mut self) -> Result<(), OfflineError> {
        let mut jobs = Vec::new();
        let mut ended: Vec<(Arc<Loaded<'a>>, u32, Piece)> = Vec::new();
        for (index, slot) in self.lanes.iter_mut().enumerate() {
            let Some(lane) = slot else { continue };
            while lane.finished < lane.pieces.len()
                && lane.piece_end(lane.finished) <= lane.hashed_to
            {
                let mut piece = std::mem::take(&mut lane.pieces[lane.finished]);
                match (&piece.absent, piece.job) {
                    (None, Some(job)) => jobs.push(job),
                    (Some(_), Some(job)) => {
                        self.jobs.cancel(job);
                        piece.job = None;
                    }
                    (_, None) => {}
                }
                ended.push((lane.of.clone(), lane.first + lane.finished as u32, piece));
                lane.finished += 1;
            }
            if lane.finished == lane.pieces.len() {
                self.fronts[index] = lane.front;
                *slot = None;
            }
        }
        let mut digests = vec![[0; 20]; jobs.len()];
        self.jobs.finish(&jobs, &mut digests);
        let mut digests = digests.into_iter();
        for (of, raw, mut piece) in ended {
            let geometry = of.target.geometry();
            let index = geometry.piece(raw).expect("a piece of this torrent");
            let sha1 = piece.job.map(|_| digests.next().expect("one per job"));
            let found = match piece.absent.take() {
                Some(absent) => Err(absent),
                None => {
                    of.target.handle_leaves(index, &piece.leaves);
                    Ok(PieceDigests { sha1, root: root_of(geometry, raw, piece.leaves) })
                }
            };
            of.target.handle_piece(index, found)?;
            self.queue.count(crate::shard::payload_of(geometry, index));
            of.handle_pieces(1)?;
        }
        Ok(())
    }
}

/// Whether this process lacks something, which says nothing of the file: it must not pass for damage.
pub(super) fn is_our_lack(error: &io::Error) -> bool {
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN];
    lacks.iter().any(|lack| error.raw_os_error() == Some(lack.raw_os_error()))
        || error.kind() == io::ErrorKind::OutOfMemory
}

/// The node over the leaves of a piece: of the piece layer, or the root of a file of one piece.
fn root_of(geometry: &Geometry, raw: u32, mut leaves: Vec<[u8; 32]>) -> Option<[u8; 32]> {
    let piece = geometry.piece(raw).expect("a piece of this torrent");
    let (file, _) = geometry.piece_in_file(piece).filter(|_| !leaves.is_empty())?;
    assert_eq!(leaves.len(), geometry.piece_data_len(piece).div_ceil(BLOCK_LEN) as usize);
    let of_file = geometry.file_len(file).div_ceil(u64::from(BLOCK_LEN));
    let height = piece_layer_number(geometry.piece_len_nominal())
        .min(of_file.next_power_of_two().trailing_zeros());
    Some(merkle::root_at(&mut leaves, 0, height as usize))
}

impl Lane<'_> {
    /// Plans the next step; it is a pad or in flight.
    fn next_step(&self) -> Step {
        let geometry = self.of.target.geometry();
        let mut slices = geometry.slices(self.read_to, self.end - self.read_to);
        let slice = slices.next().expect("a range that is not empty has a slice");
        // The end of a step lies on the grain of direct reads, or on the end of what is in the file.
        let skew = slice.file_offset % ALIGN_BYTES;
        let len_max = if slice.pad { ZEROS.len() as u64 } else { self.step_len as u64 - skew };
        Step {
            at: self.read_to,
            len: slice.len.min(len_max) as usize,
            file: slice.file,
            file_offset: slice.file_offset,
            what: if slice.pad { What::Pad } else { What::Waiting },
        }
    }

    /// Slot of the piece at a place of the torrent, and where it ends.
    fn piece_at(&self, at: u64) -> (usize, u64) {
        let piece_len = u64::from(self.of.target.geometry().piece_len_nominal());
        let slot = (at / piece_len - u64::from(self.first)) as usize;
        (slot, self.piece_end(slot))
    }

    fn piece_end(&self, slot: usize) -> u64 {
        let geometry = self.of.target.geometry();
        let piece = geometry.piece(self.first + slot as u32).expect("a piece of this run");
        geometry.piece_offset(piece) + u64::from(geometry.piece_len(piece))
    }

    /// Marks the pieces of a range as absent; the first reason counts.
    fn spoil(&mut self, at: u64, len: usize, absent: &Absent) {
        let (first, _) = self.piece_at(at);
        let (last, _) = self.piece_at(at + len as u64 - 1);
        for piece in &mut self.pieces[first..=last] {
            if piece.absent.is_none() {
                piece.absent = Some(absent.again());
            }
        }
    }

    /// Messages that the steps at hand would bring to the lanes.
    fn ready_weight(&self) -> usize {
        let geometry = self.of.target.geometry();
        // Without a v1 view there are only leaves, and they fill the lanes by themselves.
        let message_len = match geometry.kind().has_v1() {
            true => geometry.piece_len_nominal() as usize,
            false => BLOCK_LEN as usize,
        };
        let ready = self.steps.iter().take_while(|step| step.is_ready());
        let len: usize = ready.map(|step| step.len).sum();
        let messages = len.min(ROUND_LEN_MAX).div_ceil(message_len);
        // One at least for what takes no hashing, so that it is handed over.
        messages.max(usize::from(len > 0))
    }
}

impl Step {
    fn is_ready(&self) -> bool {
        !matches!(self.what, What::Waiting)
    }
}
