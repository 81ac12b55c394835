//! Threads for the calls that may wait long: open, create, allocate, remove, close, and where there is
//! no ring the transfers and syncs too. None of them runs inside a turn of the shard.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ringseed_sys::arena::{Extent, ExtentMut};
use ringseed_sys::dir::DirHandle;
use ringseed_sys::file::{DataFile, OpenedFile};
use ringseed_sys::wake::Waker;

use super::short::{self, Short};
use super::{Aside, Completion, Done, FileId, Op, OpId, OpenMode};

/// Names wait for each other until those that are still coming are so many times fewer. They come from operations
/// in flight, which are bounded, so that none waits for ever.
const COMING_SHARE: usize = 4;

/// What a thread is asked to do. Bounded by the operations that the shard has in flight.
pub(super) enum Job {
    Open {
        id: OpId,
        root: Arc<DirHandle>,
        path: PathBuf,
        mode: OpenMode,
        direct: bool,
    },
    Put {
        id: OpId,
        root: Arc<DirHandle>,
        path: PathBuf,
        direct: bool,
        len_bytes: u64,
        offset_bytes: u64,
        buf: Extent,
        start: usize,
        len: usize,
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
        rows: Vec<(u64, Vec<u8>)>,
    },
    /// Syncs the file. Its name is next when it is new.
    Sync {
        id: OpId,
        file: Arc<DataFile>,
        new_name: Option<Arc<Name>>,
    },
    /// Syncs the folders of new files that are synced themselves.
    SyncNames(Vec<Unnamed>),
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
    Close(Vec<Arc<DataFile>>),
}

/// A file that is synced and whose name is not.
pub(super) struct Unnamed {
    id: OpId,
    file: Arc<DataFile>,
    name: Arc<Name>,
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
    /// The same, and it was written.
    Put(OpId, io::Result<OpenedFile>, Name, Extent),
    /// A new file is synced; its name is not.
    Synced(Unnamed),
    /// Names are synced, or could not be.
    Named(Vec<(OpId, io::Result<()>)>),
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
    jobs: Mutex<Jobs>,
    filled: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    is_closed: bool,
    /// Threads that wait: only they need to be called, and each call is a system call.
    idle: usize,
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
        let mut jobs = self.queue.lock();
        jobs.queue.push_back(job);
        let must_call = jobs.idle > 0;
        drop(jobs);
        if must_call {
            self.queue.filled.notify_one();
        }
    }

    /// What was done since the last call, one at a time.
    pub(super) fn try_report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

impl Drop for DiskPool {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.filled.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // Pushing and popping leave a whole queue behind even when a holder panicked.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when the pool stops and nothing is left.
    fn take(&self) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                return Some(job);
            }
            if jobs.is_closed {
                return None;
            }
            jobs.idle += 1;
            jobs = self.filled.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.idle -= 1;
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
        Job::Put { id, root, path, direct, len_bytes, offset_bytes, buf, start, len } => {
            let put = match buf.get(start..start.saturating_add(len)) {
                Some(part) => {
                    let (root, path) = (&*root, &*path);
                    let short = Short { root, path, len_bytes, offset_bytes, part, direct };
                    short::put(&short, &buf, start)
                }
                None => Err(io::ErrorKind::InvalidInput.into()),
            };
            // A first try may have failed after it had created the file: its name is synced in any case.
            let put = put.map(|opened| OpenedFile { created: true, ..opened });
            return Some(Report::Put(id, put, Name { root, path }, buf));
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
        Job::WriteSmall { id, file, rows } => {
            let mut rows = rows.into_iter();
            let written = rows.try_for_each(|(at, data)| file.write_small(at, &data));
            (id, Done::SmallWritten(written))
        }
        Job::Sync { id, file, new_name } => {
            let synced = file.sync();
            match new_name {
                Some(name) if synced.is_ok() => {
                    return Some(Report::Synced(Unnamed { id, file, name }));
                }
                _ if synced.is_err() => file.forget_cached(),
                _ => {}
            }
            (id, Done::Synced(synced))
        }
        Job::SyncNames(unnamed) => return Some(Report::Named(sync_names(unnamed))),
        Job::FailSync { id, file, error } => {
            file.forget_cached();
            (id, Done::Synced(Err(error)))
        }
        Job::Aside { id, job } => (id, Done::Aside(job.run())),
        Job::Close(files) => {
            drop(files);
            return None;
        }
    };
    Some(Report::Done(Completion { id, done }))
}

/// Syncs the folders of many files, each folder once: files that are created together mostly lie together.
fn sync_names(unnamed: Vec<Unnamed>) -> Vec<(OpId, io::Result<()>)> {
    let mut folders: BTreeMap<(usize, &Path), Option<io::Error>> = BTreeMap::new();
    let mut results = Vec::with_capacity(unnamed.len());
    for Unnamed { id, file, name } in &unnamed {
        let mut result = Ok(());
        for folder in name.path.ancestors().skip(1) {
            let key = (Arc::as_ptr(&name.root) as usize, folder);
            let found = folders.entry(key).or_insert_with(|| name.root.sync_folder(folder).err());
            if let Some(error) = found {
                result = Err(copy_of(error));
            }
        }
        if result.is_err() {
            file.forget_cached();
        }
        results.push((*id, result));
    }
    results
}

/// The same error for another file.
fn copy_of(error: &io::Error) -> io::Error {
    let named = || io::Error::new(error.kind(), error.to_string());
    error.raw_os_error().map_or_else(named, io::Error::from_raw_os_error)
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
    /// Files that are synced and whose names are next.
    unnamed: Vec<Unnamed>,
    /// Names are on their way: what comes meanwhile goes together behind them.
    is_naming: bool,
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

    /// Turns a report into the completions that the machine waits for.
    pub(super) fn handle(&mut self, report: Report, out: &mut VecDeque<Completion>) {
        match report {
            Report::Opened(id, opened, name) => {
                let done = opened.map(|opened| self.take_in(opened, name));
                out.push_back(Completion { id, done: Done::Opened(done) });
            }
            Report::Put(id, opened, name, buf) => {
                let done = opened.map(|opened| self.take_in(opened, name).0);
                out.push_back(Completion { id, done: Done::Put(done, buf) });
            }
            Report::Synced(unnamed) => self.unnamed.push(unnamed),
            Report::Named(results) => {
                self.is_naming = false;
                for (id, result) in results {
                    if let Some(file_id) = self.naming.remove(&id)
                        && result.is_ok()
                        && let Some(open) = self.open.get_mut(&file_id)
                    {
                        open.new_name = None;
                    }
                    out.push_back(Completion { id, done: Done::Synced(result) });
                }
            }
            Report::Done(completion) => {
                // Of a new file whose own sync failed.
                self.naming.remove(&completion.id);
                out.push_back(completion);
            }
        }
    }

    fn take_in(&mut self, opened: OpenedFile, name: Name) -> (FileId, u64) {
        self.next_id += 1;
        let file_id = FileId(self.next_id);
        let new_name = opened.created.then(|| Arc::new(name));
        self.open.insert(file_id, OpenFile { file: Arc::new(opened.file), new_name });
        (file_id, opened.len_bytes)
    }

    /// A new file is synced on a ring; its name is next.
    pub(super) fn data_is_synced(&mut self, id: OpId, file: Arc<DataFile>, name: Arc<Name>) {
        self.unnamed.push(Unnamed { id, file, name });
    }

    /// The names to sync now, all that wait together: the second thousand costs what the first one does. While
    /// more than a few others are still being synced they are waited for, as they were begun together: one
    /// batch of new files was named in five rounds, each a wait for the device per folder.
    pub(super) fn next_naming(&mut self) -> Option<Job> {
        let coming = self.naming.len().saturating_sub(self.unnamed.len());
        if self.is_naming || self.unnamed.is_empty() || coming * COMING_SHARE > self.unnamed.len() {
            return None;
        }
        self.is_naming = true;
        Some(Job::SyncNames(std::mem::take(&mut self.unnamed)))
    }
}

/// Every operation on files, carried out by the disk threads: the whole file side of a driver that has
/// nothing better.
pub struct FileOps {
    pool: DiskPool,
    files: Files,
    done: VecDeque<Completion>,
}

impl FileOps {
    /// Starts the threads, which wake the driver through `waker` when they have done something. Twice as
    /// many as beside a ring: here they carry the transfers too.
    ///
    /// # Errors
    /// That no thread could be started.
    pub fn start(waker: &Waker) -> io::Result<FileOps> {
        let pool = DiskPool::start(2 * super::DISK_THREADS, waker)?;
        Ok(FileOps { pool, files: Files::default(), done: VecDeque::new() })
    }

    /// Begins an operation on files; a completion when it cannot be begun.
    ///
    /// # Panics
    /// For an operation on sockets.
    pub fn begin(&mut self, op: Op) -> Option<Completion> {
        let job = match op {
            Op::Open { id, root, path, mode, direct } => Job::Open { id, root, path, mode, direct },
            Op::Put {
                id,
                root,
                path,
                mode: _,
                direct,
                len_bytes,
                offset_bytes,
                buf,
                start,
                len,
            } => Job::Put { id, root, path, direct, len_bytes, offset_bytes, buf, start, len },
            Op::RemoveTree { id, root, path } => Job::RemoveTree { id, root, path },
            Op::Aside { id, job } => Job::Aside { id, job },
            Op::CloseFile { file } => Job::Close(vec![self.files.close(file)?]),
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
            Op::WriteSmall { id, file, rows } => match self.get(file) {
                Ok(file) => Job::WriteSmall { id, file, rows },
                Err(error) => return refuse(Op::WriteSmall { id, file, rows }, error),
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
        while self.done.is_empty()
            && let Some(report) = self.pool.try_report()
        {
            self.files.handle(report, &mut self.done);
        }
        let done = self.done.pop_front();
        if done.is_none()
            && let Some(job) = self.files.next_naming()
        {
            self.pool.push(job);
        }
        done
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
        Op::Put { id, buf, .. } => (id, Done::Put(Err(error), buf)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::TestDir;

    /// New files that are synced together are named together: each round of names waits for the device, and a
    /// batch of sixteen took five rounds. A sync that fails keeps nobody waiting.
    #[test]
    fn names_wait_for_those_that_come_with_them() {
        let dir = TestDir::new("naming");
        let root = Arc::new(DirHandle::open(dir.path()).unwrap());
        for last_fails in [false, true] {
            let (mut files, mut out) = (Files::default(), VecDeque::new());
            let begun: Vec<(OpId, FileId)> = (0..6)
                .map(|at| {
                    let path = PathBuf::from(format!("{last_fails}-{at}"));
                    let opened = DataFile::open(&root, &path, true, false).unwrap();
                    let (file, _) = files.take_in(opened, Name { root: root.clone(), path });
                    assert!(files.new_name(file, OpId(at)).is_some());
                    (OpId(at), file)
                })
                .collect();
            for &(id, file) in &begun[..5] {
                assert!(files.next_naming().is_none(), "before {id:?}");
                let (data, name) = (files.get(file).unwrap().clone(), files.new_name(file, id));
                files.data_is_synced(id, data, name.unwrap());
            }
            if last_fails {
                let done = Done::Synced(Err(io::ErrorKind::StorageFull.into()));
                files.handle(Report::Done(Completion { id: OpId(5), done }), &mut out);
            }
            let Some(Job::SyncNames(unnamed)) = files.next_naming() else {
                panic!("one that comes does not keep five waiting")
            };
            assert_eq!(unnamed.len(), 5);
            files.handle(Report::Named(sync_names(unnamed)), &mut out);
            assert!(files.next_naming().is_none());
            assert_eq!(out.len(), 5 + usize::from(last_fails));
        }
    }
}
