//! Making a torrent of files, and importing them on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringseed_core::geometry::{FileIndex, Geometry, Kind, PieceIndex};
use ringseed_core::metainfo::Metainfo;
use ringseed_core::metainfo::create::{Builder, Layout, LayoutFile};
use ringseed_sys::dir::{self, DirHandle, FileOptions};
use rustix::fs::Mode;

use super::queue::{Absent, PieceDigests, Target, Targets};
use super::read::{IoMode, OpenFile, ReadOptions};
use super::walk::{Found, Skipped, Unreadable, walk};
use super::{OfflineError, Progress, hash_all};
use crate::store::{LeafFile, first_leaf, leaf_bases};

/// How a torrent is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Which views it has.
    pub kind: Kind,
    /// Length of a piece in bytes; `None` chooses one.
    pub piece_len_bytes: Option<u64>,
    /// Peers come only from the torrent's own trackers (BEP 27). Changes the info hash.
    pub private: bool,
    /// Name of the torrent; `None` takes that of the file or folder. Only [`create_and_import`] can
    /// rename: the data must lie under the torrent's name to be served.
    pub name: Option<String>,
    /// What to do with what cannot be read.
    pub unreadable: Unreadable,
    /// How the files are read.
    pub reading: ReadOptions,
    /// Where the leaves go, which answer peers that look for one bad block. What goes wrong there stops
    /// nothing; it is told by [`LeafFile::keep`].
    pub leaves: Option<Arc<LeafFile>>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            kind: Kind::Hybrid,
            piece_len_bytes: None,
            private: false,
            name: None,
            unreadable: Unreadable::Refuse,
            reading: ReadOptions::default(),
            leaves: None,
        }
    }
}

/// A torrent that was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// The torrent.
    pub metainfo: Metainfo,
    /// What was left out.
    pub skipped: Skipped,
    /// Pads are more than a tenth of the payload, although pieces are as small as they may be.
    pub is_mostly_small_files: bool,
    /// Files that share their blocks with the source (reflinks), of those imported.
    pub reflinked_files: u64,
}

/// Hashes a file or folder, once, and makes a torrent of it. Nothing is written.
///
/// # Errors
/// [`OfflineError`].
pub fn create(
    path: &Path,
    options: &CreateOptions,
    progress: Progress<'_>,
) -> Result<Created, OfflineError> {
    let found = walk(path, options.unreadable)?;
    make(found, options, None, progress)
}

/// As [`create`], and brings the files to `dest_dir` under the torrent's name: by reflink where the
/// file system can, else copied while they are hashed. What is written is synced. The source is only
/// read.
///
/// # Errors
/// [`OfflineError`]; [`OfflineError::Exists`] when something by the torrent's name is in `dest_dir`.
/// What was written until then is removed.
pub fn create_and_import(
    path: &Path,
    dest_dir: &Path,
    options: &CreateOptions,
    progress: Progress<'_>,
) -> Result<Created, OfflineError> {
    let found = walk(path, options.unreadable)?;
    let write_error = |source| OfflineError::Write { path: dest_dir.into(), source };
    let dest = DirHandle::create(dest_dir).map_err(write_error)?;
    make(found, options, Some(dest), progress)
}

/// As [`create`], or [`create_and_import`] where there is a `dest_dir`, of files that were listed
/// before: a file that is not as long as it was then is an error.
///
/// # Errors
/// As [`create_and_import`]; [`OfflineError::Changed`].
pub fn create_found(
    found: Found,
    dest_dir: Option<&Path>,
    options: &CreateOptions,
    progress: Progress<'_>,
) -> Result<Created, OfflineError> {
    let open = |path: &Path| {
        DirHandle::create(path).map_err(|source| OfflineError::Write { path: path.into(), source })
    };
    make(found, options, dest_dir.map(open).transpose()?, progress)
}

fn make(
    found: Found,
    options: &CreateOptions,
    dest: Option<DirHandle>,
    progress: Progress<'_>,
) -> Result<Created, OfflineError> {
    let name = options.name.as_ref().map_or(found.name.as_slice(), |name| name.as_bytes());
    let layout = Layout::choose(name, &found.source, options.kind, options.piece_len_bytes)?;
    let root = PathBuf::from(layout.name());
    let import = match dest {
        Some(dest) => Some(Import::prepare(dest, &root, &layout, &found)?),
        None => None,
    };
    match hash(&found, &layout, import.as_ref(), options, progress) {
        Ok(metainfo) => Ok(Created {
            metainfo,
            skipped: found.skipped,
            is_mostly_small_files: layout.is_mostly_small_files(),
            reflinked_files: import.map_or(0, |import| import.reflinked_files),
        }),
        Err(error) => {
            if let Some(import) = &import {
                // Half an import is of no use to anybody; a failure here leaves only garbage of ours.
                let _ = import.dest.remove_tree(&root);
            }
            Err(error)
        }
    }
}

fn hash(
    found: &Found,
    layout: &Layout,
    import: Option<&Import>,
    options: &CreateOptions,
    progress: Progress<'_>,
) -> Result<Metainfo, OfflineError> {
    let mut builder = Builder::new(layout.clone());
    builder.set_private(options.private);
    let digests = Mutex::new(Digests { builder, layers: BTreeMap::new() });
    let leaf_bases = leaf_bases(layout.geometry());
    let leaves = options.leaves.as_deref().map(|file| (file, leaf_bases.as_slice()));
    let made = Made { found, layout, import, leaves, digests: &digests };
    let total_bytes = layout.geometry().payload_len();
    hash_all(&made, &found.parent, total_bytes, &options.reading, progress)?;
    made.check_lengths()?;
    let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Digests { mut builder, layers } = digests;
    for (&file, layer) in &layers {
        builder.set_piece_layer(file, layer)?;
    }
    let metainfo = builder.finish()?;
    import.map_or(Ok(()), Import::finish)?;
    Ok(metainfo)
}

/// What has been computed so far.
struct Digests {
    builder: Builder,
    layers: BTreeMap<FileIndex, Vec<[u8; 32]>>,
}

/// A torrent that is being made.
#[derive(Clone, Copy)]
struct Made<'a> {
    found: &'a Found,
    layout: &'a Layout,
    import: Option<&'a Import>,
    /// Where leaves go, and the number of the first one of every file.
    leaves: Option<(&'a LeafFile, &'a [u64])>,
    digests: &'a Mutex<Digests>,
}

impl<'a> Made<'a> {
    /// Path of a file beneath the folder that holds the source's name.
    fn path(&self, file: FileIndex) -> &'a Path {
        let source = self.layout.files()[file.get() as usize].source_index;
        &self.found.paths[source.expect("a pad is not read")]
    }

    /// A file that grew while it was hashed would be cut by its own torrent.
    fn check_lengths(&self) -> Result<(), OfflineError> {
        for file in self.layout.files() {
            let Some(source) = file.source_index else { continue };
            let path = &self.found.paths[source];
            let found = self.found.parent.metadata(path);
            let found =
                found.map_err(|source| OfflineError::Read { path: path.clone(), source })?;
            if found.len_bytes != file.len_bytes {
                return Err(OfflineError::Changed { path: path.clone() });
            }
        }
        Ok(())
    }
}

impl<'a> Targets<'a> for Made<'a> {
    fn count(&self) -> usize {
        1
    }

    fn load(&self, _index: usize) -> Result<Option<Arc<dyn Target + 'a>>, OfflineError> {
        Ok(Some(Arc::new(*self)))
    }
}

impl Target for Made<'_> {
    fn geometry(&self) -> &Geometry {
        self.layout.geometry()
    }

    fn open(&self, file: FileIndex, io: IoMode) -> io::Result<Option<OpenFile>> {
        // What is served must be what was hashed: of a reflink its own bytes are read.
        let reflink = self.import.and_then(|import| Some((import, import.reflink(file)?)));
        match reflink {
            Some((import, path)) => OpenFile::open(&import.dest, path, io),
            None => OpenFile::open(&self.found.parent, self.path(file), io),
        }
        .map(Some)
    }

    fn handle_bytes(
        &self,
        file: FileIndex,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), OfflineError> {
        match self.import.filter(|import| import.reflink(file).is_none()) {
            Some(import) => import.write(file, offset_bytes, bytes),
            None => Ok(()),
        }
    }

    fn handle_leaves(&self, piece: PieceIndex, leaves: &[[u8; 32]]) {
        if let Some((file, bases)) = self.leaves
            && let Some(first) = first_leaf(bases, self.layout.geometry(), piece)
        {
            file.put(first, leaves);
        }
    }

    fn handle_piece(
        &self,
        piece: PieceIndex,
        found: Result<PieceDigests, Absent>,
    ) -> Result<(), OfflineError> {
        let geometry = self.layout.geometry();
        let found = found.map_err(|absent| match absent {
            Absent::Unreadable { file, error } => {
                OfflineError::Read { path: self.path(file).into(), source: error }
            }
            Absent::Missing => {
                let offset = geometry.piece_offset(piece);
                let len = u64::from(geometry.piece_len(piece));
                let mut files = geometry.slices(offset, len).filter(|slice| !slice.pad);
                let path = files.next().map_or(Path::new(""), |slice| self.path(slice.file));
                OfflineError::Changed { path: path.into() }
            }
        })?;
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sha1) = found.sha1 {
            digests.builder.set_piece(piece, sha1);
        }
        if let (Some(root), Some((file, in_file))) = (found.root, geometry.piece_in_file(piece)) {
            let layer = digests
                .layers
                .entry(file)
                .or_insert_with(|| vec![[0; 32]; geometry.pieces_of_file(file).len()]);
            layer[in_file as usize] = root;
        }
        Ok(())
    }
}

/// Files on their way to a folder of ours.
struct Import {
    dest: DirHandle,
    /// By place in the layout: path beneath `dest`, and whether it is a reflink. `None` of a pad.
    files: Vec<Option<(PathBuf, bool)>>,
    reflinked_files: u64,
    /// Files being written.
    open: Mutex<BTreeMap<FileIndex, Arc<File>>>,
}

/// Files of a copy that are held open at a time.
const OPEN_FILES_MAX: usize = 64;

impl Import {
    fn prepare(
        dest: DirHandle,
        root: &Path,
        layout: &Layout,
        found: &Found,
    ) -> Result<Self, OfflineError> {
        if dest.metadata(root).is_ok() {
            return Err(OfflineError::Exists { path: dest.path().join(root) });
        }
        let mut import =
            Import { dest, files: Vec::new(), reflinked_files: 0, open: Mutex::default() };
        for file in layout.files() {
            let Some(source) = file.source_index else {
                import.files.push(None);
                continue;
            };
            let path = match &file.path {
                Some(path) => root.join(path.as_path()),
                None => root.to_path_buf(),
            };
            let is_reflink = import.begin(&path, file, &found.parent, &found.paths[source]);
            let is_reflink = is_reflink.map_err(|source| {
                let _ = import.dest.remove_tree(root);
                OfflineError::Write { path: path.clone(), source }
            })?;
            import.reflinked_files += u64::from(is_reflink);
            import.files.push(Some((path, is_reflink)));
        }
        Ok(import)
    }

    /// Makes the file, as a reflink if the file system can (`ioctl_ficlone(2)`).
    fn begin(
        &self,
        path: &Path,
        laid_out: &LayoutFile,
        parent: &DirHandle,
        source: &Path,
    ) -> io::Result<bool> {
        let options = FileOptions { write: true, truncate: true, ..FileOptions::default() };
        let file = self.dest.open_file(path, options)?;
        let len_bytes = laid_out.len_bytes;
        if laid_out.executable {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o755))?;
        }
        if len_bytes > 0 {
            let from = parent.open_file(source, FileOptions::default())?;
            if rustix::fs::ioctl_ficlone(&file, &from).is_ok() {
                let cloned = File::from(file).metadata()?.len();
                return if cloned == len_bytes {
                    Ok(true)
                } else {
                    Err(io::ErrorKind::InvalidData.into())
                };
            }
        }
        dir::allocate(file.as_fd(), len_bytes)?;
        Ok(false)
    }

    /// The path of a file that is a reflink.
    fn reflink(&self, file: FileIndex) -> Option<&Path> {
        self.files[file.get() as usize]
            .as_ref()
            .filter(|(_, is_reflink)| *is_reflink)
            .map(|(path, _)| path.as_path())
    }

    fn write(&self, file: FileIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        let (path, _) = self.files[file.get() as usize].as_ref().expect("a pad is not read");
        let write_error = |source| OfflineError::Write { path: path.clone(), source };
        let open = self.open(file, path).map_err(write_error)?;
        open.write_all_at(bytes, offset_bytes).map_err(write_error)
    }

    /// A file of the copy, opened for writing, from those at hand or opened now.
    fn open(&self, file: FileIndex, path: &Path) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.get(&file) {
            return Ok(open.clone());
        }
        let options = FileOptions { write: true, ..FileOptions::default() };
        let opened = Arc::new(File::from(self.dest.open_file(path, options)?));
        if open.len() >= OPEN_FILES_MAX {
            open.pop_first(); // files are read in order, so the first is the oldest
        }
        open.insert(file, opened.clone());
        Ok(opened)
    }

    /// Makes the import durable: data, then names.
    fn finish(&self) -> Result<(), OfflineError> {
        for (path, _) in self.files.iter().flatten() {
            let write_error = |source| OfflineError::Write { path: path.clone(), source };
            let options = FileOptions { write: true, ..FileOptions::default() };
            let file = File::from(self.dest.open_file(path, options).map_err(write_error)?);
            file.sync_all().map_err(write_error)?;
            self.dest.sync_parents(path).map_err(write_error)?;
        }
        Ok(())
    }
}
