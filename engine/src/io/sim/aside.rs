//! Work aside on a virtual disk: what the threads of a real driver do in one go happens in steps here,
//! with time between them, so that a crash comes between any two.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringseed_sys::dir::DirHandle;
use rustix::io::Errno;

use super::super::{Aside, AsideDone, Completion, Done, Loaded, OpId};
use super::disk::VirtualDisk;
use super::{Core, DiskJob};
use crate::store::files::{Compacted, JournalFiles, build_checkpoint, name_of, unfinished_name};
use crate::store::{FileKind, look_at_files, metainfo_path, parse_kept};

/// How far a job is.
pub(super) enum AsideStep {
    Begin,
    /// A checkpoint is written beside its name.
    Written(u64, Compacted),
    /// It is synced there.
    Synced(Compacted),
    /// It has its name, which is not synced.
    Renamed(Compacted),
    /// Its name is durable.
    Named(Compacted),
}

/// A folder of a virtual disk.
pub(super) struct VirtualFolder<'a> {
    pub disk: &'a VirtualDisk,
    pub root: &'a Path,
}

impl JournalFiles for VirtualFolder<'_> {
    fn names(&self) -> io::Result<Vec<String>> {
        let here = self.disk.names().filter(|(root, _)| *root == self.root);
        Ok(here.filter_map(|(_, rel)| rel.to_str().map(str::to_owned)).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let content = self.disk.content(self.root, Path::new(name));
        content.map(|bytes| Box::new(bytes) as Box<dyn Read>).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Core {
    /// Takes one step of a job; its end goes to the machine.
    pub(super) fn run_aside(&mut self, node: usize, id: OpId, job: Aside, step: AsideStep) {
        let done = match job {
            Aside::Checkpoint { ref dir, generation, next_sequence } => {
                let (root, faults) = (dir.path().to_owned(), self.config.faults.clone());
                let of = (generation, next_sequence);
                match self.step_checkpoint(node, &root, of, step, &faults) {
                    Ok(Ok(step)) => {
                        let job = DiskJob::Aside { job, step };
                        self.nodes[node].in_flight.remove(&id);
                        return self.start_disk(node, id, job);
                    }
                    Ok(Err(len_bytes)) => AsideDone::Checkpoint(Ok(len_bytes)),
                    Err(error) => AsideDone::Checkpoint(Err(error)),
                }
            }
            Aside::Load { state, hashes, folder } => {
                let disk = &self.nodes[node].disk;
                let kept = disk.content(state.path(), &metainfo_path(hashes));
                let metainfo =
                    kept.and_then(|bytes| parse_kept(bytes.to_vec(), hashes)).map(Arc::new);
                let root = DirHandle::open(&folder).map(Arc::new);
                AsideDone::Load(root.map(|root| Loaded { metainfo, root }))
            }
            Aside::Stamp { root, metainfo } => {
                let disk = &self.nodes[node].disk;
                let found = look_at_files(&metainfo, |path| disk.look(root.path(), path));
                AsideDone::Stamp(found.stamp)
            }
        };
        self.inbox.push_back((node, Completion { id, done: Done::Aside(done) }));
    }

    /// The next step, or in the end the checkpoint's length.
    fn step_checkpoint(
        &mut self,
        node: usize,
        root: &Path,
        (generation, next_sequence): (u64, u64),
        step: AsideStep,
        faults: &super::Faults,
    ) -> io::Result<Result<AsideStep, u64>> {
        let name = PathBuf::from(name_of(FileKind::Checkpoint, generation));
        let beside = PathBuf::from(unfinished_name(generation));
        let fails = |fails: bool| if fails { Err(io::Error::from(Errno::IO)) } else { Ok(()) };
        let rng = &mut self.rng;
        let disk = &mut self.nodes[node].disk;
        Ok(match step {
            AsideStep::Begin => {
                fails(rng.chance(faults.write_error_ppm))?;
                let mut bytes = Vec::new();
                let folder = VirtualFolder { disk, root };
                let compacted = build_checkpoint(&folder, generation, next_sequence, &mut bytes)?;
                let (inode, _) = disk.open(root, &beside, true)?;
                disk.allocate(inode, 0)?;
                disk.write(inode, 0, &bytes)?;
                Ok(AsideStep::Written(inode, compacted))
            }
            AsideStep::Written(inode, compacted) => {
                if rng.chance(faults.sync_error_ppm) {
                    disk.fail_sync(inode, rng);
                    disk.close(inode);
                    return Err(Errno::IO.into());
                }
                disk.sync(inode, disk.sync_mark());
                disk.close(inode);
                Ok(AsideStep::Synced(compacted))
            }
            AsideStep::Synced(compacted) => {
                disk.rename(root, &beside, &name)?;
                Ok(AsideStep::Renamed(compacted))
            }
            AsideStep::Renamed(compacted) => {
                disk.sync_names();
                Ok(AsideStep::Named(compacted))
            }
            AsideStep::Named(mut compacted) => match compacted.superfluous.pop() {
                Some(old) => {
                    disk.remove_tree(root, Path::new(&old))?;
                    Ok(AsideStep::Named(compacted))
                }
                None => Err(compacted.len_bytes),
            },
        })
    }
}
