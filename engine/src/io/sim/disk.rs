//! The virtual disk: what has been written, and what of it a power cut leaves.
//!
//! Every change since the last sync of its file may be kept, lost or torn, each on its own; a file
//! whose name was never synced may be gone. That is what the real ones do: of unsynced writes ext4
//! and XFS kept some, all zeros, or no file at all, O_DIRECT or not (measured).

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::rng::SimRng;

/// What a device writes whole or not at all.
const SECTOR_LEN: usize = 512;

/// A file's name: the folder it was opened beneath, and its path there.
type Name = (PathBuf, PathBuf);

/// The files of one node.
#[derive(Debug, Default)]
pub(super) struct VirtualDisk {
    names: BTreeMap<Name, u64>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    next_change: u64,
    /// Renames whose folder was not synced since, oldest first: from, to, and what `to` stood for.
    renames: Vec<(Name, Name, Option<u64>)>,
    /// `None` is without end.
    pub(super) capacity_bytes: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    /// As the page cache shows it.
    data: Vec<u8>,
    /// As the device holds it for sure.
    durable: Vec<u8>,
    /// Changes between the two, in order, numbered.
    unsynced: Vec<(u64, Change)>,
    /// Number of the last change.
    changed_at: u64,
    name_is_durable: bool,
    is_linked: bool,
    open_count: u32,
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Len(usize),
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Change::Write { at, bytes } => {
                let end = at + bytes.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*at..end].copy_from_slice(bytes);
            }
            Change::Len(len) => data.resize(*len, 0),
        }
    }

    /// What of the change reached the device when the power went: all, nothing, or some sectors.
    fn apply_torn(&self, data: &mut Vec<u8>, rng: &mut SimRng) {
        match rng.range(0, 2) {
            0 => {}
            1 => self.apply(data),
            _ => match self {
                Change::Len(_) => self.apply(data),
                Change::Write { at, bytes } => {
                    let mut done = 0;
                    while done < bytes.len() {
                        let to_border = SECTOR_LEN - (at + done) % SECTOR_LEN;
                        let len = to_border.min(bytes.len() - done);
                        if rng.range(0, 1) == 1 {
                            let bytes = bytes[done..done + len].to_vec();
                            Change::Write { at: at + done, bytes }.apply(data);
                        }
                        done += len;
                    }
                }
            },
        }
    }
}

fn errno(errno: rustix::io::Errno) -> io::Error {
    errno.into()
}

fn checked(rel: &Path) -> io::Result<()> {
    let plain = rel.components().all(|part| matches!(part, Component::Normal(_)));
    match plain && !rel.as_os_str().is_empty() {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl VirtualDisk {
    /// Opens or creates; the inode and the length.
    pub(super) fn open(&mut self, root: &Path, rel: &Path, write: bool) -> io::Result<(u64, u64)> {
        checked(rel)?;
        if rel.ancestors().skip(1).any(|up| self.id(root, up).is_some()) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if self.beneath(root, rel).next().is_some() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let id = match self.id(root, rel) {
            Some(id) => id,
            None if !write => return Err(io::ErrorKind::NotFound.into()),
            None => {
                self.next_inode += 1;
                self.names.insert((root.to_owned(), rel.to_owned()), self.next_inode);
                let inode = Inode { is_linked: true, ..Inode::default() };
                self.inodes.insert(self.next_inode, inode);
                self.next_inode
            }
        };
        let inode = self.inodes.get_mut(&id).expect("a name has an inode");
        inode.open_count += 1;
        Ok((id, inode.data.len() as u64))
    }

    pub(super) fn close(&mut self, id: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.open_count -= 1;
            if inode.open_count == 0 && !inode.is_linked {
                self.inodes.remove(&id);
            }
        }
    }

    /// Reads at most `out`; short at the end of the file.
    pub(super) fn read(&self, id: u64, at: u64, out: &mut [u8]) -> usize {
        let Some(inode) = self.inodes.get(&id) else { return 0 };
        let at = (at as usize).min(inode.data.len());
        let len = out.len().min(inode.data.len() - at);
        out[..len].copy_from_slice(&inode.data[at..at + len]);
        len
    }

    /// Length of an open file in bytes.
    pub(super) fn len(&self, id: u64) -> u64 {
        self.inodes.get(&id).map_or(0, |inode| inode.data.len() as u64)
    }

    pub(super) fn write(&mut self, id: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = at as usize;
        let grown_to =
            self.inodes.get(&id).map_or(0, |inode| inode.data.len()).max(at + bytes.len());
        self.reserve(id, grown_to)?;
        self.change(id, Change::Write { at, bytes: bytes.to_vec() });
        Ok(())
    }

    /// Opens or creates, sets the length and writes, unless the device `fails`; what was created stays.
    pub(super) fn put(
        &mut self,
        root: &Path,
        rel: &Path,
        len_bytes: u64,
        at: u64,
        bytes: &[u8],
        fails: io::Result<()>,
    ) -> io::Result<u64> {
        let (id, len_now) = self.open(root, rel, true)?;
        let size = |disk: &mut Self| match len_now == len_bytes {
            true => Ok(()),
            false => disk.allocate(id, len_bytes),
        };
        let put = size(self).and(fails).and_then(|()| self.write(id, at, bytes));
        put.map(|()| id).inspect_err(|_| self.close(id))
    }

    pub(super) fn allocate(&mut self, id: u64, len_bytes: u64) -> io::Result<()> {
        self.reserve(id, len_bytes as usize)?;
        self.change(id, Change::Len(len_bytes as usize));
        Ok(())
    }

    fn reserve(&self, id: u64, len: usize) -> io::Result<()> {
        let Some(capacity_bytes) = self.capacity_bytes else { return Ok(()) };
        let others = self.inodes.iter().filter(|&(&other, _)| other != id);
        let used: u64 = others.map(|(_, inode)| inode.data.len() as u64).sum();
        let old_len = self.inodes.get(&id).map_or(0, |inode| inode.data.len());
        match len > old_len && used + len as u64 > capacity_bytes {
            true => Err(errno(rustix::io::Errno::NOSPC)),
            false => Ok(()),
        }
    }

    fn change(&mut self, id: u64, change: Change) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            change.apply(&mut inode.data);
            self.next_change += 1;
            inode.changed_at = self.next_change;
            inode.unsynced.push((self.next_change, change));
        }
    }

    /// What a sync that starts now will cover.
    pub(super) fn sync_mark(&self) -> u64 {
        self.next_change
    }

    /// Makes durable what was changed before `mark`, and the name.
    pub(super) fn sync(&mut self, id: u64, mark: u64) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        inode.name_is_durable = true;
        let covered = inode.unsynced.partition_point(|&(number, _)| number <= mark);
        for (_, change) in inode.unsynced.drain(..covered) {
            change.apply(&mut inode.durable);
        }
    }

    /// [`VirtualDisk::sync`] of everything in a file that is there.
    pub(super) fn sync_by_name(&mut self, root: &Path, rel: &Path) {
        if let Some(id) = self.id(root, rel) {
            self.sync(id, self.next_change);
        }
    }

    /// A sync that fails: what it should have covered is kept, lost or torn, and the next sync will
    /// know nothing of it. Reads show what the device holds, as O_DIRECT would.
    pub(super) fn fail_sync(&mut self, id: u64, rng: &mut SimRng) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        for (_, change) in inode.unsynced.drain(..) {
            change.apply_torn(&mut inode.durable, rng);
        }
        inode.data.clone_from(&inode.durable);
    }

    /// Renames a file; a power cut may undo it until the names are synced.
    pub(super) fn rename(&mut self, root: &Path, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = ((root.to_owned(), from.to_owned()), (root.to_owned(), to.to_owned()));
        let id = self.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        let replaced = self.names.insert(to.clone(), id);
        self.renames.push((from, to, replaced));
        Ok(())
    }

    /// Makes renames durable.
    pub(super) fn sync_names(&mut self) {
        self.renames.clear();
    }

    /// Removes a file or everything beneath a folder, durably; bytes freed.
    pub(super) fn remove_tree(&mut self, root: &Path, rel: &Path) -> io::Result<u64> {
        checked(rel)?;
        let mut gone: Vec<Name> = self.beneath(root, rel).cloned().collect();
        gone.extend(self.id(root, rel).map(|_| (root.to_owned(), rel.to_owned())));
        let mut freed_bytes = 0;
        for name in gone {
            let Some(id) = self.names.remove(&name) else { continue };
            let Some(inode) = self.inodes.get_mut(&id) else { continue };
            freed_bytes += inode.data.len() as u64;
            inode.is_linked = false;
            if inode.open_count == 0 {
                self.inodes.remove(&id);
            }
        }
        Ok(freed_bytes)
    }

    /// The power goes: `in_flight` are writes that were on their way.
    pub(super) fn cut_power(&mut self, in_flight: Vec<(u64, u64, Vec<u8>)>, rng: &mut SimRng) {
        for (id, at, bytes) in in_flight {
            self.change(id, Change::Write { at: at as usize, bytes });
        }
        while let Some((from, to, replaced)) = self.renames.pop() {
            if rng.range(0, 1) == 0
                && let Some(id) = self.names.remove(&to)
            {
                self.names.insert(from, id);
                self.names.extend(replaced.map(|id| (to, id)));
            }
        }
        let mut lost = Vec::new();
        for (&id, inode) in &mut self.inodes {
            for (_, change) in inode.unsynced.drain(..) {
                change.apply_torn(&mut inode.durable, rng);
            }
            inode.data.clone_from(&inode.durable);
            inode.open_count = 0;
            if !inode.is_linked || (!inode.name_is_durable && rng.range(0, 1) == 0) {
                lost.push(id);
            }
            inode.name_is_durable = true;
        }
        self.inodes.retain(|id, _| !lost.contains(id));
        self.names.retain(|_, id| !lost.contains(id));
    }

    /// The process dies and the system lives on: the page cache keeps everything.
    pub(super) fn close_all(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.open_count = 0;
        }
        self.inodes.retain(|_, inode| inode.is_linked);
    }

    /// Content of a file as the page cache shows it.
    pub(super) fn content(&self, root: &Path, rel: &Path) -> Option<&[u8]> {
        Some(&self.inodes.get(&self.id(root, rel)?)?.data)
    }

    /// Length of a file, and when it was changed last.
    pub(super) fn look(&self, root: &Path, rel: &Path) -> Option<(u64, u64)> {
        let inode = self.inodes.get(&self.id(root, rel)?)?;
        Some((inode.data.len() as u64, inode.changed_at))
    }

    /// Replaces a file, durably: what was there before the simulation began.
    pub(super) fn place(&mut self, root: &Path, rel: &Path, content: Vec<u8>) -> io::Result<()> {
        let (id, _) = self.open(root, rel, true)?;
        self.next_change += 1;
        let inode = self.inodes.get_mut(&id).expect("just opened");
        inode.changed_at = self.next_change;
        inode.unsynced.clear();
        inode.durable.clone_from(&content);
        inode.data = content;
        inode.name_is_durable = true;
        self.close(id);
        Ok(())
    }

    /// Flips the bits of `mask` in one byte on the device: rot. False when there is no such byte.
    pub(super) fn rot(&mut self, root: &Path, rel: &Path, at: u64, mask: u8) -> bool {
        let Some(inode) = self.id(root, rel).and_then(|id| self.inodes.get_mut(&id)) else {
            return false;
        };
        let mut found = false;
        for data in [&mut inode.data, &mut inode.durable] {
            if let Some(byte) = data.get_mut(at as usize) {
                *byte ^= mask;
                found = true;
            }
        }
        found
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.names.keys().map(|(root, rel)| (root.as_path(), rel.as_path()))
    }

    fn id(&self, root: &Path, rel: &Path) -> Option<u64> {
        self.names.get(&(root.to_owned(), rel.to_owned())).copied()
    }

    fn beneath<'a>(&'a self, root: &'a Path, rel: &'a Path) -> impl Iterator<Item = &'a Name> {
        self.names
            .keys()
            .filter(move |(at, name)| at == root && name != rel && name.starts_with(rel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/r";

    fn written(seed: u64, sync: bool) -> Option<Vec<u8>> {
        let mut disk = VirtualDisk::default();
        let (root, rel) = (Path::new(ROOT), Path::new("a/f"));
        let (id, _) = disk.open(root, rel, true).unwrap();
        disk.write(id, 100, &[7; 5000]).unwrap();
        if sync {
            disk.sync(id, disk.sync_mark());
        }
        disk.cut_power(vec![(id, 0, vec![9; 50])], &mut SimRng::new(seed));
        disk.content(root, rel).map(<[u8]>::to_vec)
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_be_lost_or_torn() {
        let mut outcomes = [0; 4];
        for seed in 0..200 {
            let kept = written(seed, true).expect("a synced name stays");
            assert!(kept.len() == 5100 && kept[100..].iter().all(|&byte| byte == 7));
            outcomes[match written(seed, false) {
                None => 0,
                Some(data) if data.iter().filter(|&&byte| byte == 7).count() == 5000 => 1,
                Some(data) if data.iter().all(|&byte| byte != 7) => 2,
                Some(_) => 3,
            }] += 1;
        }
        assert!(outcomes.iter().all(|&count| count > 0), "{outcomes:?}");
        assert_eq!(written(3, false), written(3, false));
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        let (root, rel) = (Path::new(ROOT), Path::new("f"));
        let mut lost = false;
        for seed in 0..50 {
            let mut disk = VirtualDisk::default();
            let (id, _) = disk.open(root, rel, true).unwrap();
            disk.write(id, 0, &[1; 10]).unwrap();
            let mark = disk.sync_mark();
            disk.write(id, 0, &[2; 10]).unwrap();
            disk.sync(id, mark);
            disk.cut_power(Vec::new(), &mut SimRng::new(seed));
            let data = disk.content(root, rel).unwrap();
            assert!(data.iter().all(|&byte| byte > 0));
            lost |= data[0] == 1;
        }
        assert!(lost);
    }

    #[test]
    fn a_failed_sync_loses_data_though_the_next_one_succeeds() {
        let (root, rel) = (Path::new(ROOT), Path::new("f"));
        let lost = (0..50).filter(|&seed| {
            let mut disk = VirtualDisk::default();
            let (id, _) = disk.open(root, rel, true).unwrap();
            disk.write(id, 0, &[1; 4096]).unwrap();
            disk.fail_sync(id, &mut SimRng::new(seed));
            disk.sync(id, disk.sync_mark());
            disk.content(root, rel).unwrap() != [1; 4096]
        });
        assert!(lost.count() > 10);
    }

    #[test]
    fn a_full_disk_refuses_what_is_new() {
        let mut disk = VirtualDisk { capacity_bytes: Some(1000), ..VirtualDisk::default() };
        let (id, _) = disk.open(Path::new(ROOT), Path::new("f"), true).unwrap();
        disk.allocate(id, 900).unwrap();
        disk.write(id, 800, &[1; 100]).unwrap();
        let error = disk.write(id, 950, &[1; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.remove_tree(Path::new(ROOT), Path::new("f")).unwrap(), 900);
    }
}
