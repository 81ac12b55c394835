//! What is to be hashed: torrents one after another, each cut into runs of pieces. Threads take runs
//! from one queue, so that one huge torrent and twenty thousand tiny ones keep them busy alike.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ringseed_core::geometry::{FileIndex, Geometry, PieceIndex};
use ringseed_sys::arena::EXTENT_LEN_BYTES;

use super::read::{IoMode, OpenFile};
use super::{OfflineError, Progress};

/// Why there are no digests of a piece.
#[derive(Debug)]
pub(super) enum Absent {
    /// A file is not there or too short.
    Missing,
    /// A file is there and cannot be read.
    Unreadable { file: FileIndex, error: io::Error },
}

impl Absent {
    /// The same reason, for another piece.
    pub(super) fn again(&self) -> Absent {
        match self {
            Absent::Missing => Absent::Missing,
            Absent::Unreadable { file, error } => {
                let error = match error.raw_os_error() {
                    Some(number) => io::Error::from_raw_os_error(number),
                    None => io::Error::new(error.kind(), error.to_string()),
                };
                Absent::Unreadable { file: *file, error }
            }
        }
    }
}

/// Digests of one piece as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PieceDigests {
    /// SHA-1 with pads as zeros; `None` without a v1 view.
    pub sha1: Option<[u8; 20]>,
    /// Node of the piece layer, or the root of a file of one piece; `None` without a v2 view and for
    /// a piece that lies in pads.
    pub root: Option<[u8; 32]>,
}

/// One torrent whose files are read and hashed. Called from several threads.
pub(super) trait Target: Send + Sync {
    /// Where everything lies.
    fn geometry(&self) -> &Geometry;

    /// Opens a file that is no pad. `Ok(None)`: it is not there.
    fn open(&self, file: FileIndex, io: IoMode) -> io::Result<Option<OpenFile>>;

    /// Bytes of a file have come, before they are hashed.
    ///
    /// # Errors
    /// Ends everything.
    fn handle_bytes(
        &self,
        _file: FileIndex,
        _offset_bytes: u64,
        _bytes: &[u8],
    ) -> Result<(), OfflineError> {
        Ok(())
    }

    /// SHA-256 of every block of a piece with a v2 view, before the piece itself comes.
    fn handle_leaves(&self, _piece: PieceIndex, _leaves: &[[u8; 32]]) {}

    /// A piece is hashed, or cannot be. Each piece comes once, in any order.
    ///
    /// # Errors
    /// Ends everything.
    fn handle_piece(
        &self,
        piece: PieceIndex,
        found: Result<PieceDigests, Absent>,
    ) -> Result<(), OfflineError>;

    /// Every piece has come.
    ///
    /// # Errors
    /// Ends everything.
    fn handle_end(&self) -> Result<(), OfflineError> {
        Ok(())
    }
}

/// Torrents by number.
pub(super) trait Targets<'a>: Sync {
    /// How many.
    fn count(&self) -> usize;

    /// Prepares one; `None` when there is nothing to hash of it. Called once for each, from several
    /// threads.
    ///
    /// # Errors
    /// Ends everything.
    fn load(&self, index: usize) -> Result<Option<Arc<dyn Target + 'a>>, OfflineError>;
}

/// A torrent in the queue, with what is still to come of it.
pub(super) struct Loaded<'a> {
    /// In the order of the queue.
    pub number: u64,
    pub target: Arc<dyn Target + 'a>,
    pieces_left: AtomicU64,
}

impl Loaded<'_> {
    /// Notes that `count` pieces have been handed over.
    pub(super) fn handle_pieces(&self, count: u64) -> Result<(), OfflineError> {
        match self.pieces_left.fetch_sub(count, Ordering::AcqRel) == count {
            true => self.target.handle_end(),
            false => Ok(()),
        }
    }
}

/// Consecutive pieces that one lane reads: one long one, or short ones up to a buffer's length.
pub(super) struct Run<'a> {
    pub of: Arc<Loaded<'a>>,
    pub pieces: Range<u32>,
}

/// What [`Queue::next`] has.
pub(super) enum Next<'a> {
    Run(Run<'a>),
    /// Another thread is preparing what comes next.
    NotNow,
    /// There is no more.
    End,
}

/// The queue of all threads, and what they share.
pub(super) struct Queue<'a> {
    targets: &'a dyn Targets<'a>,
    state: Mutex<State<'a>>,
    loaded: Condvar,
    is_stopped: AtomicBool,
    failure: Mutex<Option<OfflineError>>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    progress: Progress<'a>,
}

struct State<'a> {
    next_target: usize,
    loading: usize,
    next_number: u64,
    /// Torrents with pieces nobody has taken, and the first of those.
    open: VecDeque<(Arc<Loaded<'a>>, u32)>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(targets: &'a dyn Targets<'a>, progress: Progress<'a>) -> Queue<'a> {
        let (next_target, loading, next_number) = (0, 0, 0);
        let open = VecDeque::new();
        Queue {
            targets,
            state: Mutex::new(State { next_target, loading, next_number, open }),
            loaded: Condvar::new(),
            is_stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            progress,
        }
    }

    /// The next run. `may_wait`: the caller has nothing else to do while another thread prepares one.
    pub(super) fn next(&self, may_wait: bool) -> Result<Next<'a>, OfflineError> {
        let mut state = self.lock();
        loop {
            if let Some((loaded, first)) = state.open.front_mut() {
                let (of, pieces) = (loaded.clone(), run_from(loaded.target.geometry(), *first));
                *first = pieces.end;
                if pieces.end == of.target.geometry().piece_count() {
                    state.open.pop_front();
                }
                return Ok(Next::Run(Run { of, pieces }));
            }
            if self.is_stopped() {
                return Ok(Next::End);
            }
            if state.next_target < self.targets.count() {
                let index = state.next_target;
                state.next_target += 1;
                state.loading += 1;
                drop(state);
                let target = self.targets.load(index);
                state = self.lock();
                state.loading -= 1;
                self.loaded.notify_all();
                self.open(&mut state, target?)?;
            } else if state.loading == 0 {
                return Ok(Next::End);
            } else if may_wait {
                state = self.loaded.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                return Ok(Next::NotNow);
            }
        }
    }

    fn open(
        &self,
        state: &mut State<'a>,
        target: Option<Arc<dyn Target + 'a>>,
    ) -> Result<(), OfflineError> {
        let Some(target) = target else { return Ok(()) };
        let count = target.geometry().piece_count();
        if count == 0 {
            return target.handle_end();
        }
        self.total_bytes.fetch_add(target.geometry().payload_len(), Ordering::Relaxed);
        let number = state.next_number;
        state.next_number += 1;
        let pieces_left = AtomicU64::new(u64::from(count));
        state.open.push_back((Arc::new(Loaded { number, target, pieces_left }), 0));
        Ok(())
    }

    /// Tells of payload bytes that are done with.
    pub(super) fn count(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.total_bytes.load(Ordering::Relaxed));
    }

    /// Ends everything with an error; the first one counts.
    pub(super) fn fail(&self, error: OfflineError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop();
    }

    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// What came of it, when all threads are gone.
    pub(super) fn into_result(self) -> Result<(), OfflineError> {
        let failure = self.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pieces from `first` that one lane takes.
fn run_from(geometry: &Geometry, first: u32) -> Range<u32> {
    let pieces = (EXTENT_LEN_BYTES as u32 / geometry.piece_len_nominal()).max(1);
    first..geometry.piece_count().min(first.saturating_add(pieces))
}
