//! What the virtual disks are doing, and what of it a crash leaves.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use ringseed_sys::arena::{Extent, ExtentMut};
use rustix::io::Errno;

use super::aside::AsideStep;
use super::{Aside, Core, Crash, Done, Event, FileId, OpenMode, ReadPath};

/// What a disk is doing.
pub(super) enum DiskJob {
    Open {
        root: PathBuf,
        path: PathBuf,
        mode: OpenMode,
    },
    Put {
        root: PathBuf,
        path: PathBuf,
        direct: bool,
        len_bytes: u64,
        at: u64,
        buf: Extent,
        start: usize,
        len: usize,
    },
    Read {
        inode: u64,
        at: u64,
        buf: ExtentMut,
        start: usize,
        len: usize,
    },
    Write {
        inode: u64,
        at: u64,
        buf: Extent,
        start: usize,
        len: usize,
    },
    WriteSmall {
        inode: u64,
        rows: Vec<(u64, Vec<u8>)>,
    },
    Sync {
        inode: u64,
        mark: u64,
    },
    Allocate {
        inode: u64,
        len_bytes: u64,
    },
    RemoveTree {
        root: PathBuf,
        path: PathBuf,
    },
    Aside {
        job: Aside,
        step: AsideStep,
    },
    Close {
        inode: u64,
    },
}

impl Core {
    /// Does it, now that its time has come; `None` for what nobody waits for.
    pub(super) fn run_disk(&mut self, node: usize, job: DiskJob) -> Option<Done> {
        let fails_with = |fails: bool| if fails { Err(io::Error::from(Errno::IO)) } else { Ok(()) };
        let faults = self.config.faults.clone();
        let rng = &mut self.rng;
        let state = &mut self.nodes[node];
        let disk = &mut state.disk;
        Some(match job {
            DiskJob::Open { root, path, mode } => {
                Done::Opened(disk.open(&root, &path, mode != OpenMode::Read).map(|(inode, len)| {
                    let file = FileId(state.next_file);
                    state.next_file += 1;
                    state.files.insert(file, inode);
                    (file, len)
                }))
            }
            DiskJob::Put { root, path, direct: _, len_bytes, at, buf, start, len } => {
                let result = fails_with(rng.chance(faults.write_error_ppm));
                let bytes = &buf[start..start + len];
                let put = disk.put(&root, &path, len_bytes, at, bytes, result);
                let put = put.map(|inode| {
                    let file = FileId(state.next_file);
                    state.next_file += 1;
                    state.files.insert(file, inode);
                    file
                });
                Done::Put(put, buf)
            }
            DiskJob::Read { inode, at, mut buf, start, len } => {
                let ppm = faults.read_error_ppm.max(state.read_error_ppm);
                let result = fails_with(rng.chance(ppm));
                let read =
                    |()| (disk.read(inode, at, &mut buf[start..start + len]), ReadPath::Direct);
                Done::Read(result.map(read), buf)
            }
            DiskJob::Write { inode, at, buf, start, len } => {
                let result = fails_with(rng.chance(faults.write_error_ppm));
                state.calls.writes_past_end += u64::from(at + len as u64 > disk.len(inode));
                let write = |()| disk.write(inode, at, &buf[start..start + len]);
                Done::Written(result.and_then(write), buf)
            }
            DiskJob::WriteSmall { inode, rows } => {
                let mut rows = rows.into_iter();
                Done::SmallWritten(rows.try_for_each(|(at, data)| {
                    fails_with(rng.chance(faults.write_error_ppm))?;
                    disk.write(inode, at, &data)
                }))
            }
            DiskJob::Sync { inode, mark } => {
                if rng.chance(faults.sync_error_ppm) {
                    disk.fail_sync(inode, rng);
                    Done::Synced(fails_with(true))
                } else {
                    disk.sync(inode, mark);
                    Done::Synced(Ok(()))
                }
            }
            DiskJob::Allocate { inode, len_bytes } => {
                let result = fails_with(rng.chance(faults.write_error_ppm));
                Done::Allocated(result.and_then(|()| disk.allocate(inode, len_bytes)))
            }
            DiskJob::RemoveTree { root, path } => Done::Removed(disk.remove_tree(&root, &path)),
            DiskJob::Close { inode } => {
                disk.close(inode);
                return None;
            }
            DiskJob::Aside { .. } => unreachable!("it takes several steps"),
        })
    }

    /// Ends a node as [`Crash`] says: what its disk was doing may be done, half done, or not done at all.
    pub(super) fn crash(&mut self, node: usize, crash: Crash) {
        let mut torn = Vec::new();
        let mut kept = BTreeMap::new();
        for (key, event) in std::mem::take(&mut self.events) {
            match event {
                Event::Disk { node: of, job, .. } if of == node => match job {
                    DiskJob::Write { inode, at, buf, start, len } => {
                        torn.push((inode, at, buf[start..start + len].to_vec()));
                    }
                    DiskJob::WriteSmall { inode, rows } => {
                        torn.extend(rows.into_iter().map(|(at, data)| (inode, at, data)));
                    }
                    DiskJob::Put { root, path, direct, len_bytes, at, buf, start, len } => {
                        // The file may have been made and nothing written yet, or some of it.
                        let disk = &mut self.nodes[node].disk;
                        if self.rng.range(0, 1) == 0
                            && let Ok((inode, _)) = disk.open(&root, &path, true)
                        {
                            // What is not written whole, or past the page cache, has its length first.
                            if direct || len as u64 != len_bytes {
                                let _ = disk.allocate(inode, len_bytes); // full: nothing was written
                            }
                            torn.push((inode, at, buf[start..start + len].to_vec()));
                        }
                    }
                    _ => {}
                },
                Event::Connect { node: of, .. } | Event::Complete { node: of, .. }
                    if of == node => {}
                event => {
                    kept.insert(key, event);
                }
            }
        }
        self.events = kept;
        self.inbox.retain(|&(of, _)| of != node);
        self.drop_connections(node, crash == Crash::Process);
        let state = &mut self.nodes[node];
        state.epoch += 1;
        (state.is_running, state.is_dirty) = (false, false);
        state.in_flight.clear();
        state.files.clear();
        match crash {
            Crash::Power => state.disk.cut_power(torn, &mut self.rng),
            Crash::Process => state.disk.close_all(),
        }
    }
}
