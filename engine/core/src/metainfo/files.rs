//! The files of a torrent, looked up where the info dictionary names them.

use std::iter::FusedIterator;

use super::info::Info;
use super::list::{ListEntries, ListEntry};
use super::names::RelPath;
use super::tree::{TreeCursor, TreeMark};
use crate::geometry::FileIndex;
use crate::merkle::Hash;

/// A name is found by walking from the last place that is noted: over this many files at most. A
/// place costs 4 bytes in a list.
const FILES_PER_MARK: usize = 16;

/// A file of a torrent, or a pad. Made by [`Info::file`]; borrows the info dictionary.
#[derive(Clone, Copy, Debug)]
pub struct FileEntry<'a> {
    info: &'a Info,
    index: FileIndex,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Root of the file's tree (BEP 52). `None` without a v2 view, and of empty files and pads.
    pub pieces_root: Option<Hash>,
    /// It lies on no disk: a pad of BEP 47, or a symbolic link, which we never make.
    pub pad: bool,
    /// The file may be run (BEP 47).
    pub executable: bool,
}

impl FileEntry<'_> {
    /// Where the file lies in the folder that holds the torrent. The torrent's name comes first,
    /// unless the torrent is v2 and a lone file: that one lies there under its own name (BEP 52).
    /// Of a pad: a name that is never used, for pads lie on no disk. Made anew at every call.
    pub fn path(&self) -> RelPath {
        self.info.path(self.index)
    }

    /// The file's place in the torrent.
    pub fn index(&self) -> FileIndex {
        self.index
    }
}

/// The files of a torrent in order, with explicit pads; made by [`Info::files`].
#[derive(Clone, Debug)]
pub struct Files<'a> {
    info: &'a Info,
    next: u32,
}

impl<'a> Files<'a> {
    pub(super) fn new(info: &'a Info) -> Self {
        Self { info, next: 0 }
    }
}

impl<'a> Iterator for Files<'a> {
    type Item = FileEntry<'a>;

    fn next(&mut self) -> Option<FileEntry<'a>> {
        let file = self.info.geometry().file(self.next).ok()?;
        self.next += 1;
        Some(self.info.file(file))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.info.geometry().file_count() - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Files<'_> {}
impl FusedIterator for Files<'_> {}

/// Where names, roots and flags of the files are found.
#[derive(Clone, Debug)]
pub(super) struct FileTable {
    names: Names,
    /// Where each file's `pieces root` lies, 0 for none; empty without a v2 view.
    roots: Box<[u32]>,
    /// One bit per file; empty if no file may be run.
    executable: Box<[u64]>,
    /// How many files are symbolic links.
    pub link_count: u32,
}

#[derive(Clone, Debug)]
enum Names {
    /// The one file is called like the torrent.
    One,
    /// Every so many entries of `files`, where one begins.
    List(Box<[u32]>),
    /// Every so many files of `file tree`, how to go on; and whether a folder lies around them.
    Tree(Box<[TreeMark]>, bool),
}

impl FileTable {
    /// Makes a file's entry.
    pub fn entry<'a>(&self, info: &'a Info, bytes: &[u8], index: FileIndex) -> FileEntry<'a> {
        let at = index.get() as usize;
        let pieces_root =
            self.root_at(at).map(|root| *bytes[root..].first_chunk().expect("checked"));
        let executable =
            self.executable.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1);
        let geometry = info.geometry();
        let (len_bytes, pad) = (geometry.file_len(index), geometry.is_pad(index));
        FileEntry { info, index, len_bytes, pieces_root, pad, executable }
    }

    /// The table without roots.
    pub fn v1_view(&self) -> Self {
        Self { roots: Box::default(), ..self.clone() }
    }

    /// Where the root of a file lies.
    pub fn root_at(&self, file: usize) -> Option<usize> {
        self.roots.get(file).map(|&at| at as usize).filter(|&at| at > 0)
    }

    /// Makes a file's path. `bytes` is what was parsed, `name` the torrent's raw name.
    pub fn path(&self, bytes: &[u8], name: &[u8], index: FileIndex) -> RelPath {
        let at = index.get() as usize;
        let (mark, rest) = (at / FILES_PER_MARK, at % FILES_PER_MARK);
        let root = std::iter::once(name);
        let path = match &self.names {
            Names::One => RelPath::new(root),
            Names::List(marks) => {
                let entry = ListEntries::resume(bytes, marks[mark] as usize).nth(rest);
                let entry = entry.and_then(Result::ok).expect("read when the torrent was parsed");
                if entry.is_absent() {
                    // Pads of one length share a name in the wild, and nobody opens them.
                    RelPath::new([&b".pad"[..], entry.len_bytes.to_string().as_bytes()])
                } else {
                    RelPath::new(root.chain(entry.parts()))
                }
            }
            Names::Tree(marks, has_folder) => {
                let mut cursor = TreeCursor::resume(bytes, &marks[mark]);
                for _ in 0..=rest {
                    cursor.next().expect("read when the torrent was parsed");
                }
                RelPath::new(root.filter(|_| *has_folder).chain(cursor.path()))
            }
        };
        path.expect("checked when the torrent was parsed")
    }
}

/// Collects a [`FileTable`] as files go by.
pub(super) struct FileTableBuilder {
    file_count: usize,
    has_roots: bool,
    roots: Vec<u32>,
    executable: Vec<u64>,
    list: Vec<u32>,
    tree: Vec<TreeMark>,
    next: usize,
    link_count: u32,
}

impl FileTableBuilder {
    pub fn new(file_count: usize, has_roots: bool) -> Self {
        let roots = Vec::with_capacity(if has_roots { file_count } else { 0 });
        let (executable, list, tree) = (Vec::new(), Vec::new(), Vec::new());
        Self { file_count, has_roots, roots, executable, list, tree, next: 0, link_count: 0 }
    }

    /// Whether the place of the next file is to be noted.
    pub fn wants_mark(&self) -> bool {
        self.next.is_multiple_of(FILES_PER_MARK)
    }

    /// Notes where the next file stands in the tree.
    pub fn mark_tree(&mut self, mark: TreeMark) {
        self.tree.push(mark);
    }

    /// Adds the next file of a list.
    pub fn push_listed(&mut self, entry: &ListEntry<'_>, root_at: Option<u32>) {
        if let Some(at) = entry.at {
            self.mark_listed(at);
        }
        self.push(root_at, entry.executable, entry.link);
    }

    /// Adds the next file of a list, of which there is nothing to note.
    #[inline]
    pub fn push_plain(&mut self, at: usize) {
        self.mark_listed(at);
        self.push(None, false, false);
    }

    #[inline]
    fn mark_listed(&mut self, at: usize) {
        if self.wants_mark() {
            if self.list.is_empty() {
                self.list.reserve_exact(self.file_count.div_ceil(FILES_PER_MARK));
            }
            self.list.push(at as u32);
        }
    }

    /// Adds the next file.
    pub fn push(&mut self, root_at: Option<u32>, executable: bool, link: bool) {
        self.link_count += u32::from(link);
        if self.has_roots {
            self.roots.push(root_at.unwrap_or(0));
        }
        if executable {
            self.executable.resize(self.file_count.div_ceil(64), 0);
            self.executable[self.next / 64] |= 1 << (self.next % 64);
        }
        self.next += 1;
    }

    /// `lone`: the tree's one file lies in no folder.
    pub fn finish(self, is_lone: bool) -> FileTable {
        let names = if !self.tree.is_empty() {
            Names::Tree(self.tree.into(), !is_lone)
        } else if !self.list.is_empty() {
            Names::List(self.list.into())
        } else {
            Names::One
        };
        let (roots, executable) = (self.roots.into(), self.executable.into());
        FileTable { names, roots, executable, link_count: self.link_count }
    }
}
