//! Which operations go to the disk: open files and what is done on them. Which of them goes when is in
//! `budget.rs`.
//!
//! A task names a file of a listing. The file is opened when its first task comes, with what its
//! listing is doing now (reading only while checking, seeding or in place), sized and reserved before
//! the first write, and closed when others need its descriptor. Nothing here blocks: every step is an
//! operation of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ringseed_sys::arena::{Extent, ExtentMut};
use ringseed_sys::dir::{DeviceId, DirHandle};

use super::budget::{Charge, Class, Devices, Share};
use super::listing::Active;
use super::{Flight, Shard};
use crate::api::ListingId;
use crate::io::{FileId, Op, OpenMode, ReadPath};

/// Files up to this length are put in one job, without a second descriptor and without reserving their room: for
/// 64 KiB those cost three times what the copy does. In bytes.
pub(super) const PUT_LEN_MAX: u64 = 128 << 10;

/// A file of a listing; the number counts pads, as the geometry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileKey {
    pub listing: ListingId,
    pub file: u32,
}

/// A transfer or a touch of one file. `job` is told when it is done.
#[derive(Debug)]
pub(super) struct DiskTask {
    pub key: FileKey,
    pub class: Class,
    pub job: u64,
    pub kind: TaskKind,
}

/// What a task does.
#[derive(Debug)]
pub(super) enum TaskKind {
    /// Read into the extent.
    Read { offset_bytes: u64, buf: ExtentMut, start: usize, len: usize },
    /// Write out of the extent.
    Write { offset_bytes: u64, buf: Extent, start: usize, len: usize },
    /// Make sure that the file exists with its full length.
    Touch,
    /// Sync what was written; the commit is told, no job.
    Sync,
}

impl DiskTask {
    pub fn len_bytes(&self) -> u64 {
        match &self.kind {
            TaskKind::Read { len, .. } | TaskKind::Write { len, .. } => *len as u64,
            TaskKind::Touch | TaskKind::Sync => 0,
        }
    }

    fn needs_write(&self) -> bool {
        matches!(self.kind, TaskKind::Write { .. } | TaskKind::Touch)
    }
}

/// How a task ended.
#[derive(Debug)]
pub(super) enum TaskDone {
    /// Bytes read, which way, and the buffer.
    Read(io::Result<(usize, ReadPath)>, ExtentMut),
    /// Written or touched. A failed task comes back to be tried again.
    Wrote(Result<u64, (io::Error, DiskTask)>),
}

/// Open files and queues of one shard.
#[derive(Debug, Default)]
pub(super) struct Disk {
    files: BTreeMap<FileKey, OpenFile>,
    devices: Devices,
    tick: u64,
}

#[derive(Debug)]
struct OpenFile {
    state: FileState,
    device: DeviceId,
    mode: OpenMode,
    /// Operations in flight on it.
    users: u32,
    /// Written since the last sync; such a file is not closed.
    dirty: bool,
    /// Close it when the last user is done, and open it anew if tasks wait.
    stale: bool,
    used_at: u64,
    waiting: VecDeque<DiskTask>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileState {
    Opening,
    Sizing(FileId),
    Ready(FileId),
}

/// What is needed to open a file.
pub(super) struct OpenSpec {
    pub root: Arc<DirHandle>,
    pub path: PathBuf,
    pub mode: OpenMode,
    /// The length that it shall have; `None` leaves it as it is.
    pub len_bytes: Option<u64>,
}

/// What a task in flight must remember.
#[derive(Debug)]
pub(super) struct TaskFlight {
    pub key: FileKey,
    pub charge: Charge,
    pub job: u64,
    /// Of a write: where it goes, to try it again.
    pub offset_bytes: u64,
    pub start: usize,
}

impl Disk {
    /// Marks what a sync has made clean again.
    pub fn set_clean(&mut self, key: FileKey) {
        if let Some(file) = self.files.get_mut(&key) {
            file.dirty = false;
        }
    }

    /// Nothing queued and nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.devices.is_idle()
    }
}

impl Shard {
    /// Devices that something is in flight on.
    #[cfg(test)]
    pub(crate) fn busy_devices(&self) -> Vec<DeviceId> {
        self.disk.devices.busy().collect()
    }

    /// Queues a task. Its end comes to `task_done`.
    pub(super) fn disk_submit(&mut self, task: DiskTask) {
        let active = self.active.get(&task.key.listing);
        // Of a listing that is gone nothing is opened: any queue will do.
        let device = active.map_or(DeviceId(0), |active| active.root.device());
        self.disk.devices.push(device, self.config.read_order, task);
    }

    /// Starts queued tasks as far as the budgets go.
    pub(super) fn pump_disk(&mut self) {
        let share = Share::of(self.config.device_ops_max, self.seat.mesh.shard_count());
        while let Some(task) = self.disk.devices.pop(share) {
            self.start_task(task);
        }
    }

    /// Runs a task on its file, or leaves it waiting there until the file is open.
    fn start_task(&mut self, task: DiskTask) {
        let key = task.key;
        self.disk.tick += 1;
        let tick = self.disk.tick;
        if !self.disk.files.contains_key(&key) {
            self.open_file(key, task);
            return;
        }
        let file = self.disk.files.get_mut(&key).expect("looked up above");
        file.used_at = tick;
        if task.needs_write() && file.mode == OpenMode::Read {
            file.stale = true;
        }
        match file.state {
            FileState::Ready(id) if !file.stale || matches!(task.kind, TaskKind::Sync) => {
                self.run_task(id, task);
            }
            _ => {
                file.waiting.push_back(task);
                self.close_if_stale(key);
            }
        }
    }

    fn open_file(&mut self, key: FileKey, first: DiskTask) {
        let Some(spec) = self.open_spec(key, first.needs_write()) else {
            self.fail_task(first, io::Error::from(io::ErrorKind::NotFound));
            return;
        };
        self.close_idle_files();
        let OpenSpec { root, path, mode, len_bytes } = spec;
        let mut file = OpenFile {
            state: FileState::Opening,
            device: root.device(),
            mode,
            users: 0,
            dirty: false,
            stale: false,
            used_at: self.disk.tick,
            waiting: VecDeque::new(),
        };
        let is_short = len_bytes.is_some_and(|len_bytes| len_bytes <= PUT_LEN_MAX);
        if let (TaskKind::Write { .. }, Some(len_bytes), true) = (&first.kind, len_bytes, is_short)
        {
            self.disk.files.insert(key, file);
            self.put_file(root, path, mode, len_bytes, first);
            return;
        }
        file.waiting.push_back(first);
        self.disk.files.insert(key, file);
        let id = self.flights.insert(Flight::Open(key));
        let direct = self.config.direct_io == crate::config::DirectIo::Auto && !is_short;
        self.out.push_back(Op::Open { id, root, path, mode, direct });
    }

    /// Opens a short file and writes to it in one.
    fn put_file(
        &mut self,
        root: Arc<DirHandle>,
        path: PathBuf,
        mode: OpenMode,
        len_bytes: u64,
        first: DiskTask,
    ) {
        let DiskTask { key, class, job, kind } = first;
        let TaskKind::Write { offset_bytes, buf, start, len } = kind else {
            unreachable!("only a write puts a file")
        };
        let charge = self.count_started(key, class, len as u64);
        let flight = TaskFlight { key, charge, job, offset_bytes, start };
        let id = self.flights.insert(Flight::Put(flight));
        let direct = self.config.puts_direct();
        self.out.push_back(Op::Put {
            id,
            root,
            path,
            mode,
            direct,
            len_bytes,
            offset_bytes,
            buf,
            start,
            len,
        });
    }

    /// Answer to [`Op::Put`].
    pub(super) fn handle_put(
        &mut self,
        flight: TaskFlight,
        result: io::Result<FileId>,
        buf: Extent,
    ) {
        let key = flight.key;
        let result = match (result, self.disk.files.get_mut(&key)) {
            (Ok(id), Some(file)) => {
                file.state = FileState::Ready(id);
                Ok(())
            }
            // Its listing has gone meanwhile, and the job with it.
            (Ok(id), None) => {
                self.out.push_back(Op::CloseFile { file: id });
                Ok(())
            }
            (Err(error), _) => Err(error),
        };
        let failed = result.as_ref().err().map(copy_of);
        self.handle_written(flight, result, buf);
        match failed {
            Some(error) => self.fail_file(key, error),
            None => self.run_waiting(key),
        }
    }

    /// Keeps the number of open files bounded: the least recently used idle one goes.
    fn close_idle_files(&mut self) {
        while self.disk.files.len() >= self.config.open_files_max as usize {
            let idle = |file: &OpenFile| {
                file.users == 0
                    && !file.dirty
                    && file.waiting.is_empty()
                    && matches!(file.state, FileState::Ready(_))
            };
            let oldest = self.disk.files.iter().filter(|(_, file)| idle(file));
            let Some((&key, _)) = oldest.min_by_key(|(_, file)| file.used_at) else {
                // All are busy or dirty: a commit makes some of them clean.
                self.commit.is_urgent = true;
                return;
            };
            self.close_file(key);
        }
    }

    fn close_file(&mut self, key: FileKey) {
        if let Some(file) = self.disk.files.remove(&key)
            && let FileState::Ready(id) | FileState::Sizing(id) = file.state
        {
            self.out.push_back(Op::CloseFile { file: id });
        }
    }

    /// Answer to [`Op::Open`].
    pub(super) fn handle_opened(&mut self, key: FileKey, result: io::Result<(FileId, u64)>) {
        let spec = self.open_spec(key, false);
        let Some(file) = self.disk.files.get_mut(&key) else {
            if let Ok((id, _)) = result {
                self.out.push_back(Op::CloseFile { file: id });
            }
            return;
        };
        match (result, spec) {
            (Ok((id, len_bytes)), Some(spec)) => {
                let wanted = spec.len_bytes.filter(|&wanted| wanted != len_bytes);
                if let Some(len_bytes) = wanted.filter(|_| file.mode != OpenMode::Read) {
                    file.state = FileState::Sizing(id);
                    let flight = self.flights.insert(Flight::Allocate(key));
                    self.out.push_back(Op::Allocate { id: flight, file: id, len_bytes });
                } else {
                    file.state = FileState::Ready(id);
                    self.run_waiting(key);
                }
            }
            (Ok((id, _)), None) => {
                self.out.push_back(Op::CloseFile { file: id });
                self.fail_file(key, io::Error::from(io::ErrorKind::NotFound));
            }
            (Err(error), _) => self.fail_file(key, error),
        }
    }

    /// Answer to [`Op::Allocate`].
    pub(super) fn handle_allocated(&mut self, key: FileKey, result: io::Result<()>) {
        let Some(file) = self.disk.files.get_mut(&key) else { return };
        let FileState::Sizing(id) = file.state else { return };
        match result {
            Ok(()) => {
                file.state = FileState::Ready(id);
                // Its length is to be synced as well, by whoever syncs the listing.
                let is_own = !self.active.get(&key.listing).is_some_and(Active::is_helper);
                file.dirty = is_own;
                if is_own {
                    self.commit.files.insert(key);
                }
                self.run_waiting(key);
            }
            Err(error) => {
                self.out.push_back(Op::CloseFile { file: id });
                self.fail_file(key, error);
            }
        }
    }

    fn run_waiting(&mut self, key: FileKey) {
        while let Some(file) = self.disk.files.get_mut(&key) {
            let FileState::Ready(id) = file.state else { return };
            let Some(task) = file.waiting.pop_front() else { break };
            if task.needs_write() && file.mode == OpenMode::Read {
                file.stale = true;
                file.waiting.push_front(task);
                break;
            }
            self.run_task(id, task);
        }
        self.close_if_stale(key);
    }

    fn run_task(&mut self, file_id: FileId, task: DiskTask) {
        let DiskTask { key, class, job, .. } = task;
        let len = task.len_bytes();
        match task.kind {
            TaskKind::Sync => {
                // A write that starts from here on makes the file dirty again.
                self.disk.set_clean(key);
                let charge = self.count_started(key, class, 0);
                let id = self.flights.insert(Flight::SyncData(key, charge));
                self.out.push_back(Op::Sync { id, file: file_id });
            }
            TaskKind::Touch => {
                self.task_done(key, job, TaskDone::Wrote(Ok(0)));
            }
            TaskKind::Read { offset_bytes, buf, start, len: read_len } => {
                let charge = self.count_started(key, class, len);
                let flight = TaskFlight { key, charge, job, offset_bytes, start };
                let id = self.flights.insert(Flight::Read(flight));
                let len = read_len;
                self.out.push_back(Op::Read { id, file: file_id, offset_bytes, buf, start, len });
            }
            TaskKind::Write { offset_bytes, buf, start, len: write_len } => {
                let charge = self.count_started(key, class, len);
                let flight = TaskFlight { key, charge, job, offset_bytes, start };
                let id = self.flights.insert(Flight::Write(flight));
                let len = write_len;
                self.out.push_back(Op::Write { id, file: file_id, offset_bytes, buf, start, len });
            }
        }
    }

    fn count_started(&mut self, key: FileKey, class: Class, len_bytes: u64) -> Charge {
        let file = self.disk.files.get_mut(&key).expect("it is open, or being opened");
        file.users += 1;
        let charge = Charge { device: file.device, class, len_bytes };
        self.disk.devices.begin(charge);
        charge
    }

    fn count_ended(&mut self, key: FileKey, charge: Charge) {
        self.disk.devices.end(charge);
        // A file that was closed meanwhile, with its listing, has no users left to count.
        if let Some(file) = self.disk.files.get_mut(&key) {
            file.users = file.users.saturating_sub(1);
        }
    }

    /// Answer to [`Op::Read`].
    pub(super) fn handle_read(
        &mut self,
        flight: TaskFlight,
        result: io::Result<(usize, ReadPath)>,
        buf: ExtentMut,
    ) {
        self.count_ended(flight.key, flight.charge);
        self.close_if_stale(flight.key);
        self.task_done(flight.key, flight.job, TaskDone::Read(result, buf));
    }

    /// Answer to [`Op::Write`].
    pub(super) fn handle_written(
        &mut self,
        flight: TaskFlight,
        result: io::Result<()>,
        buf: Extent,
    ) {
        let TaskFlight { key, charge, job, offset_bytes, start } = flight;
        let (class, len) = (charge.class, charge.len_bytes);
        self.count_ended(key, charge);
        let done = match result {
            Ok(()) => {
                if !self.active.get(&key.listing).is_some_and(Active::is_helper)
                    && let Some(file) = self.disk.files.get_mut(&key)
                {
                    file.dirty = true;
                    self.commit.files.insert(key);
                }
                self.counters.stored_bytes.add(len);
                Ok(len)
            }
            Err(error) => {
                let kind = TaskKind::Write { offset_bytes, buf, start, len: len as usize };
                Err((error, DiskTask { key, class, job, kind }))
            }
        };
        self.close_if_stale(key);
        self.task_done(key, job, TaskDone::Wrote(done));
    }

    /// A file could not be opened or sized: what waits for it fails with it.
    fn fail_file(&mut self, key: FileKey, error: io::Error) {
        let Some(file) = self.disk.files.remove(&key) else { return };
        for task in file.waiting {
            self.fail_task(task, copy_of(&error));
        }
    }

    fn fail_task(&mut self, task: DiskTask, error: io::Error) {
        let (key, job) = (task.key, task.job);
        let done = match task.kind {
            TaskKind::Sync => return self.data_synced(key, Err(error)),
            TaskKind::Read { buf, .. } => TaskDone::Read(Err(error), buf),
            _ => TaskDone::Wrote(Err((error, task))),
        };
        self.task_done(key, job, done);
    }

    fn close_if_stale(&mut self, key: FileKey) {
        let Some(file) = self.disk.files.get_mut(&key) else { return };
        let FileState::Ready(id) = file.state else { return };
        if !file.stale {
            return;
        }
        if file.dirty {
            // It cannot be closed before it is synced, and the sync must not wait behind that.
            let is_sync = |task: &DiskTask| matches!(task.kind, TaskKind::Sync);
            match file.waiting.iter().position(is_sync).and_then(|at| file.waiting.remove(at)) {
                Some(sync) => self.run_task(id, sync),
                None => self.commit.is_urgent = true,
            }
            return;
        }
        if file.users > 0 {
            return;
        }
        let waiting = std::mem::take(&mut file.waiting);
        self.close_file(key);
        for task in waiting {
            self.start_task(task);
        }
    }

    /// A file needs no sync.
    pub(super) fn file_is_clean(&mut self, key: FileKey) {
        self.disk.set_clean(key);
        self.close_if_stale(key);
    }

    /// Answer to the sync of a payload file.
    pub(super) fn handle_data_synced(
        &mut self,
        key: FileKey,
        charge: Charge,
        result: io::Result<()>,
    ) {
        self.count_ended(key, charge);
        self.close_if_stale(key);
        self.data_synced(key, result);
    }

    /// Forgets every open file of a listing, so that the next task opens it anew: after a failed
    /// sync, a check, a change of mode. `drop_tasks` also forgets what is queued (removal).
    pub(super) fn close_files_of(&mut self, listing: ListingId, drop_tasks: bool) {
        // A commit counts its syncs: those that are dropped have nothing left to sync.
        let mut dropped = Vec::new();
        if drop_tasks {
            dropped.extend(self.disk.devices.take_all_of(listing));
        }
        let range = FileKey { listing, file: 0 }..=FileKey { listing, file: u32::MAX };
        let keys: Vec<FileKey> = self.disk.files.range(range).map(|(&key, _)| key).collect();
        for key in keys {
            let file = self.disk.files.get_mut(&key).expect("key of the range");
            if drop_tasks {
                dropped.extend(file.waiting.drain(..));
                file.dirty = false;
                self.commit.files.remove(&key);
                // Operations in flight complete on the driver's side; their answers find no file.
                self.close_file(key);
            } else {
                file.stale = true;
                self.close_if_stale(key);
            }
        }
        for task in dropped.into_iter().filter(|task| matches!(task.kind, TaskKind::Sync)) {
            self.data_synced(task.key, Ok(()));
        }
    }
}

/// The same error for another task.
fn copy_of(error: &io::Error) -> io::Error {
    let named = || io::Error::new(error.kind(), error.to_string());
    error.raw_os_error().map_or_else(named, io::Error::from_raw_os_error)
}
