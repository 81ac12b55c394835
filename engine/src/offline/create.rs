//! Making a torrent of files, and importing them on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringseed_core::geometry::{FileIndex, Kind};
use ringseed_core::metainfo::Metainfo;
use ringseed_core::metainfo::create::{Builder, Layout};
use ringseed_sys::dir::{self, DirHandle, FileOptions};

use super::walk::{Found, Skipped, Unreadable, walk};
use super::{OfflineError, Progress, Source, hash_all, read_full};

/// Files that are held open at a time.
const OPEN_FILES_MAX: usize = 64;

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
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            kind: Kind::Hybrid,
            piece_len_bytes: None,
            private: false,
            name: None,
            unreadable: Unreadable::Refuse,
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
    let geometry = layout.geometry().clone();
    let sources = layout.files().iter().map(|file| file.source_index).collect();
    let reader = Reader { found: &found, sources, open: Mutex::default(), import: import.as_ref() };
    let mut builder = Builder::new(layout.clone());
    builder.set_private(options.private);
    let mut layers: BTreeMap<FileIndex, Vec<[u8; 32]>> = BTreeMap::new();
    let mut take = |piece, digests: Option<super::PieceDigests>| {
        let digests = digests.expect("a source that is read whole");
        if let Some(sha1) = digests.sha1 {
            builder.set_piece(piece, sha1);
        }
        if let (Some(root), Some((file, in_file))) = (digests.root, geometry.piece_in_file(piece)) {
            let layer = layers
                .entry(file)
                .or_insert_with(|| vec![[0; 32]; geometry.pieces_of_file(file).len()]);
            layer[in_file as usize] = root;
        }
    };
    let hashed = hash_all(&geometry, &reader, progress, &mut take).and_then(|()| {
        reader.check_lengths(&layout)?;
        for (&file, layer) in &layers {
            builder.set_piece_layer(file, layer)?;
        }
        let metainfo = builder.finish()?;
        import.as_ref().map_or(Ok(()), Import::finish)?;
        Ok(metainfo)
    });
    match hashed {
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

/// Reads the files of a folder; each is opened when it is needed.
struct Reader<'a> {
    found: &'a Found,
    /// By place in the layout: position in the list that was found; `None` of a pad.
    sources: Vec<Option<usize>>,
    open: Mutex<BTreeMap<usize, Arc<File>>>,
    import: Option<&'a Import>,
}

impl Reader<'_> {
    fn file(&self, source: usize) -> Result<Arc<File>, OfflineError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&source) {
            return Ok(file.clone());
        }
        let path = &self.found.paths[source];
        let file = self.found.parent.open_file(path, FileOptions::default());
        let file = file.map_err(|source| OfflineError::Read { path: path.clone(), source })?;
        let file = Arc::new(File::from(file));
        if open.len() >= OPEN_FILES_MAX {
            open.pop_first(); // files are read in order, so the first is the oldest
        }
        open.insert(source, file.clone());
        Ok(file)
    }

    /// A file that grew while it was hashed would be cut by its own torrent.
    fn check_lengths(&self, layout: &Layout) -> Result<(), OfflineError> {
        for file in layout.files() {
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

impl Source for Reader<'_> {
    fn read(&self, file: u32, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, OfflineError> {
        let source = self.sources[file as usize].expect("a pad is not read");
        // What is served must be what was hashed: of a reflink its own bytes are read.
        if let Some(import) = self.import
            && let Some(path) = import.reflink(file)
        {
            let file = import.dest.open_file(path, FileOptions::default());
            let file = file.map_err(|source| OfflineError::Read { path: path.into(), source })?;
            if !read_full(&File::from(file), path, offset_bytes, buf)? {
                return Err(OfflineError::Changed { path: path.into() });
            }
            return Ok(true);
        }
        let path = &self.found.paths[source];
        if !read_full(&*self.file(source)?, path, offset_bytes, buf)? {
            return Err(OfflineError::Changed { path: path.clone() });
        }
        if let Some(import) = self.import {
            import.write(file, offset_bytes, buf)?;
        }
        Ok(true)
    }
}

/// Files on their way to a folder of ours.
struct Import {
    dest: DirHandle,
    /// By place in the layout: path beneath `dest`, and whether it is a reflink. `None` of a pad.
    files: Vec<Option<(PathBuf, bool)>>,
    reflinked_files: u64,
}

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
        let mut import = Import { dest, files: Vec::new(), reflinked_files: 0 };
        for file in layout.files() {
            let Some(source) = file.source_index else {
                import.files.push(None);
                continue;
            };
            let path = match &file.path {
                Some(path) => root.join(path.as_path()),
                None => root.to_path_buf(),
            };
            let is_reflink =
                import.begin(&path, file.len_bytes, &found.parent, &found.paths[source]);
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
        len_bytes: u64,
        parent: &DirHandle,
        source: &Path,
    ) -> io::Result<bool> {
        let options = FileOptions { write: true, truncate: true, ..FileOptions::default() };
        let file = self.dest.open_file(path, options)?;
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
    fn reflink(&self, file: u32) -> Option<&Path> {
        self.files[file as usize]
            .as_ref()
            .filter(|(_, is_reflink)| *is_reflink)
            .map(|(path, _)| path.as_path())
    }

    fn write(&self, file: u32, offset_bytes: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        let (path, _) = self.files[file as usize].as_ref().expect("a pad is not read");
        let write_error = |source| OfflineError::Write { path: path.clone(), source };
        let options = FileOptions { write: true, ..FileOptions::default() };
        let file = File::from(self.dest.open_file(path, options).map_err(write_error)?);
        file.write_all_at(bytes, offset_bytes).map_err(write_error)
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
