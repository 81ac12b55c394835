//! Threads for the calls that may wait long: open, create, allocate, remove, close, and where there is
//! no ring the transfers and syncs too. None of them runs inside a turn of the shard.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ringseed_sys::arena::{Extent, ExtentMut};
use ringseed_sys::dir::DirHandle;
use ringseed_sys::file::{DataFile, OpenedFile};
use ringseed_sys::wake::Waker;

use super::{Aside, Completion, Done, FileId, Op, OpId, OpenMode};

/// What a thread is asked to do. Bounded by the operations that the shard has in flight.
pub(super) enum Job {
    Open {
        id: OpId,
        root: Arc<DirHandle>,
        path: PathBuf,
        mode: OpenMode,
        direct: bool,
    },
    Allocate {
        id: OpId,
        file: Arc<DataFile>,
        len_bytes: u64,
    },
    RemoveTree {
        id: OpId,
        root: Arc<DirHandle>,
        path: PathBuf,
    },
    Read {
        id: OpId,
        file: Arc<DataFile>,
        offset_bytes: u64,
        buf: ExtentMut,
        start: usize,
        len: usize,
    },
    Write {
        id: OpId,
        file: Arc<DataFile>,
        offset_bytes: u64,
        buf: Extent,
        start: usize,
        len: usize,
    },
    WriteSmall {
        id: OpId,
        file: Arc<DataFile>,
        offset_bytes: u64,
        data: Vec<u8>,
    },
    /// Syncs the file, and its name when it is new.
    Sync {
        id: OpId,
        file: Arc<DataFile>,
        new_name: Option<Arc<Name>>,
    },
    /// Ends a sync that failed on the ring: the page cache must not hide what was lost.
    FailSync {
        id: OpId,
        file: Arc<DataFile>,
        error: io::Error,
    },
    Aside {
        id: OpId,
        job: Aside,
    },
    /// Closing the last descriptor of a removed file frees its blocks, which may take long.
    Close {
        file: Arc<DataFile>,
    },
}

/// A file's name beneath its root.
pub(super) struct Name {
    root: Arc<DirHandle>,
    path: PathBuf,
}

/// What a thread has done.
pub(super) enum Report {
    /// A file was opened and wants its [`FileId`].
    Opened(OpId, io::Result<OpenedFile>, Name),
    /// Everything else is a completion already.
    Done(Completion),
}

/// The threads of one driver.
pub(super) struct DiskPool {
    queue: Arc<Queue>,
    reports: Receiver<Report>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    filled: Condvar,
}

impl DiskPool {
    /// Starts `threads` threads, which announce their reports through `waker`.
    pub(super) fn start(threads: usize, waker: &Waker) -> io::Result<DiskPool> {
        let queue = Arc::new(Queue { jobs: Mutex::default(), filled: Condvar::new() });
        let (sender, reports) = channel();
        let mut pool = DiskPool { queue, reports, threads: Vec::new() };
        for number in 0..threads {
            let (queue, sender, waker) = (pool.queue.clone(), sender.clone(), waker.clone());
            let builder = std::thread::Builder::new().name(format!("rs-disk-{number}"));
            pool.threads.push(builder.spawn(move || work(&queue, &sender, &waker))?);
        }
        Ok(pool)
    }

    /// Queues a job.
    pub(super) fn push(&self, job: Job) {
        self.queue.lock().0.push_back(job);
        self.queue.filled.notify_one();
    }

    /// What was done since the last call, one at a time.
    pub(super) fn try_report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

impl Drop for DiskPool {
    fn drop(&mut self) {
        self.queue.lock().1 = true;
        self.queue.filled.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Job>, bool)> {
        // Pushing and popping leave a whole queue behind even when a holder panicked.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when the pool stops and nothing is left.
    fn take(&self) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if let Some(job) = jobs.0.pop_front() {
                return Some(job);
            }
            if jobs.1 {
                return None;
            }
            jobs = self.filled.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work(queue: &Queue, reports: &Sender<Report>, waker: &Waker) {
    while let Some(job) = queue.take() {
        let Some(report) = run(job) else { continue };
        if reports.send(report).is_err() {
            return; // the driver is gone, and nobody waits for the rest
        }
        waker.wake();
    }
}

fn run(job: Job) -> Option<Report> {
    let (id, done) = match job {
        Job::Open { id, root, path, mode, direct } => {
            let opened = DataFile::open(&root, &path, mode != OpenMode::Read, direct);
            let opened = opened.map(|mut opened| {
                opened.created |= mode == OpenMode::WriteShared;
                opened
            });
            return Some(Report::Opened(id, opened, Name { root, path }));
        }
        Job::Allocate { id, file, len_bytes } => (id, Done::Allocated(file.allocate(len_bytes))),
        Job::RemoveTree { id, root, path } => (id, Done::Removed(remove_tree(&root, &path))),
        Job::Read { id, file, offset_bytes, mut buf, start, len } => {
            let result = file.read(offset_bytes, &mut buf, start, len);
            (id, Done::Read(result, buf))
        }
        Job::Write { id, file, offset_bytes, buf, start, len } => {
            let result = file.write(offset_bytes, &buf, start, len);
            (id, Done::Written(result, buf))
        }
        Job::WriteSmall { id, file, offset_bytes, data } => {
            (id, Done::SmallWritten(file.write_small(offset_bytes, &data)))
        }
        Job::Sync { id, file, new_name } => {
            let synced = file.sync().and_then(|()| match new_name {
                Some(name) => name.root.sync_parents(&name.path),
                None => Ok(()),
            });
            if synced.is_err() {
                file.forget_cached();
            }
            (id, Done::Synced(synced))
        }
        Job::FailSync { id, file, error } => {
            file.forget_cached();
            (id, Done::Synced(Err(error)))
        }
        Job::Aside { id, job } => (id, Done::Aside(job.run())),
        Job::Close { file } => {
            drop(file);
            return None;
        }
    };
    Some(Report::Done(Completion { id, done }))
}

fn remove_tree(root: &DirHandle, path: &Path) -> io::Result<u64> {
    let freed_bytes = root.remove_tree(path)?;
    match root.sync_parents(path) {
        // The parent is gone too, or was never there: then so is the name.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(freed_bytes),
    }
}

/// The files that a driver holds for its machine.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<FileId, OpenFile>,
    next_id: u64,
    /// Syncs of new names in flight.
    naming: HashMap<OpId, FileId>,
}

struct OpenFile {
    file: Arc<DataFile>,
    /// Set until the first sync: a file that was created is durable only with its name.
    new_name: Option<Arc<Name>>,
}

impl Files {
    /// The file, or `ECANCELED` when it has been closed.
    pub(super) fn get(&self, id: FileId) -> io::Result<&Arc<DataFile>> {
        match self.open.get(&id) {
            Some(open) => Ok(&open.file),
            None => Err(canceled()),
        }
    }

    /// The name that the next sync must write too.
    pub(super) fn new_name(&mut self, id: FileId, op: OpId) -> Option<Arc<Name>> {
        let name = self.open.get(&id)?.new_name.clone()?;
        self.naming.insert(op, id);
        Some(name)
    }

    /// Takes a file out of the table.
    pub(super) fn close(&mut self, id: FileId) -> Option<Arc<DataFile>> {
        self.open.remove(&id).map(|open| open.file)
    }

    /// Turns a report into the completion that the machine waits for.
    pub(super) fn handle(&mut self, report: Report) -> Completion {
        match report {
            Report::Opened(id, opened, name) => {
                let done = opened.map(|opened| {
                    self.next_id += 1;
                    let file_id = FileId(self.next_id);
                    let new_name = opened.created.then(|| Arc::new(name));
                    let file = Arc::new(opened.file);
                    self.open.insert(file_id, OpenFile { file, new_name });
                    (file_id, opened.len_bytes)
                });
                Completion { id, done: Done::Opened(done) }
            }
            Report::Done(completion) => {
                if let Done::Synced(result) = &completion.done
                    && let Some(file_id) = self.naming.remove(&completion.id)
                    && result.is_ok()
                    && let Some(open) = self.open.get_mut(&file_id)
                {
                    open.new_name = None;
                }
                completion
            }
        }
    }
}

/// Every operation on files, carried out by the disk threads: the whole file side of a driver that has
/// nothing better.
pub struct FileOps {
    pool: DiskPool,
    files: Files,
}

impl FileOps {
    /// Starts the threads, which wake the driver through `waker` when they have done something. Twice as
    /// many as beside a ring: here they carry the transfers too.
    ///
    /// # Errors
    /// That no thread could be started.
    pub fn start(waker: &Waker) -> io::Result<FileOps> {
        let pool = DiskPool::start(2 * super::DISK_THREADS, waker)?;
        Ok(FileOps { pool, files: Files::default() })
    }

    /// Begins an operation on files; a completion when it cannot be begun.
    ///
    /// # Panics
    /// For an operation on sockets.
    pub fn begin(&mut self, op: Op) -> Option<Completion> {
        let job = match op {
            Op::Open { id, root, path, mode, direct } => Job::Open { id, root, path, mode, direct },
            Op::RemoveTree { id, root, path } => Job::RemoveTree { id, root, path },
            Op::Aside { id, job } => Job::Aside { id, job },
            Op::CloseFile { file } => Job::Close { file: self.files.close(file)? },
            Op::Read { id, file, offset_bytes, buf, start, len } => match self.get(file) {
                Ok(file) => Job::Read { id, file, offset_bytes, buf, start, len },
                Err(error) => {
                    return refuse(Op::Read { id, file, offset_bytes, buf, start, len }, error);
                }
            },
            Op::Write { id, file, offset_bytes, buf, start, len } => match self.get(file) {
                Ok(file) => Job::Write { id, file, offset_bytes, buf, start, len },
                Err(error) => {
                    return refuse(Op::Write { id, file, offset_bytes, buf, start, len }, error);
                }
            },
            Op::WriteSmall { id, file, offset_bytes, data } => match self.get(file) {
                Ok(file) => Job::WriteSmall { id, file, offset_bytes, data },
                Err(error) => {
                    return refuse(Op::WriteSmall { id, file, offset_bytes, data }, error);
                }
            },
            Op::Sync { id, file } => match self.get(file) {
                Ok(found) => Job::Sync { id, file: found, new_name: self.files.new_name(file, id) },
                Err(error) => return refuse(Op::Sync { id, file }, error),
            },
            Op::Allocate { id, file, len_bytes } => match self.get(file) {
                Ok(file) => Job::Allocate { id, file, len_bytes },
                Err(error) => return refuse(Op::Allocate { id, file, len_bytes }, error),
            },
            Op::Connect { .. }
            | Op::PollIn { .. }
            | Op::Recv { .. }
            | Op::Send { .. }
            | Op::Detach { .. }
            | Op::Attach { .. }
            | Op::Close { .. } => unreachable!("an operation on sockets"),
        };
        self.pool.push(job);
        None
    }

    /// What the threads have done since the last call, one at a time.
    pub fn next_done(&mut self) -> Option<Completion> {
        let report = self.pool.try_report()?;
        Some(self.files.handle(report))
    }

    /// The file, for a driver that transfers by itself.
    ///
    /// # Errors
    /// `ECANCELED` when it has been closed.
    pub fn get(&self, file: FileId) -> io::Result<Arc<DataFile>> {
        self.files.get(file).cloned()
    }
}

/// The error of what was closed or given up.
pub fn canceled() -> io::Error {
    rustix::io::Errno::CANCELED.into()
}

/// The completion of an operation that cannot be started: gives its buffer back with the error.
/// `None` for operations that are never answered.
pub fn refuse(op: Op, error: io::Error) -> Option<Completion> {
    let (id, done) = match op {
        Op::Connect { id, .. } => (id, Done::Connected(Err(error))),
        Op::PollIn { id, .. } => (id, Done::Readable(Err(error))),
        Op::Recv { id, buf, .. } => (id, Done::Received(Err(error), buf)),
        Op::Send { id, buf, .. } => (id, Done::Sent(Err(error), buf)),
        Op::Detach { id, .. } => (id, Done::Detached(Err(error))),
        Op::Attach { id, .. } => (id, Done::Attached(Err(error))),
        Op::Open { id, .. } => (id, Done::Opened(Err(error))),
        Op::Read { id, buf, .. } => (id, Done::Read(Err(error), buf)),
        Op::Write { id, buf, .. } => (id, Done::Written(Err(error), buf)),
        Op::WriteSmall { id, .. } => (id, Done::SmallWritten(Err(error))),
        Op::Sync { id, .. } => (id, Done::Synced(Err(error))),
        Op::Allocate { id, .. } => (id, Done::Allocated(Err(error))),
        Op::RemoveTree { id, .. } => (id, Done::Removed(Err(error))),
        Op::Aside { id, job } => (id, Done::Aside(job.refuse(error))),
        Op::Close { .. } | Op::CloseFile { .. } => return None,
    };
    Some(Completion { id, done })
}
