//! Reads files once, on every core, and computes what a torrent says of them: SHA-1 of pieces and
//! SHA-256 of blocks, sixteen at a time. Making a torrent, importing and checking share it.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use ringseed_core::geometry::{BLOCK_LEN, FileIndex, Geometry, Kind, PieceIndex};
use ringseed_core::metainfo::Metainfo;
use ringseed_core::metainfo::create::{Builder, CreateError, Layout, Source, SourceFile};
use ringseed_sys::hash::{sha1_many, sha256_many};
use rustix::fs::OFlags;

use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;

/// Bytes that one worker reads before it hashes: sixteen pieces of 1 MiB fill the lanes of SHA-1.
const BATCH_LEN_BYTES: u64 = 16 << 20;
/// Most files of a folder; the limit of the torrent itself is checked when it is made.
const FILES_MAX: usize = 1_000_000;

/// What shall become a torrent.
#[derive(Clone, Debug)]
pub struct Found {
    /// Root name.
    pub name: String,
    /// The folder that holds the root name.
    pub parent: PathBuf,
    /// For the layout.
    pub source: Source,
    /// Paths of the source's files, in its order.
    pub paths: Vec<PathBuf>,
    /// Bytes in all.
    pub len_bytes: u64,
}

/// Looks at a file or folder that shall become a torrent.
///
/// # Errors
/// [`Code::Missing`], [`Code::BadValue`] for what cannot be in a torrent: links, special files,
/// nothing at all.
pub fn find(path: &Path) -> Result<Found> {
    let refuse = |path: &Path, what: &str| {
        Error::new(Code::BadValue, format!("{} {what}", path.display()))
            .why("a torrent holds regular files and folders only")
    };
    // The root itself may be named through links; beneath it none is followed.
    let path = path.canonicalize().map_err(|error| Error::io("open", path, error))?;
    let meta = std::fs::metadata(&path).map_err(|error| Error::io("open", &path, error))?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| refuse(&path, "has no name that is UTF-8"))?.to_owned();
    let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
    if meta.is_file() {
        let source = Source::File { len_bytes: meta.len(), executable: is_executable(&meta) };
        return Ok(Found { name, parent, source, paths: vec![path], len_bytes: meta.len() });
    }
    if !meta.is_dir() {
        return Err(refuse(&path, "is neither a file nor a folder"));
    }
    let (mut files, mut paths, mut len_bytes) = (Vec::new(), Vec::new(), 0u64);
    let mut folders = vec![(path.clone(), Vec::new())];
    while let Some((folder, components)) = folders.pop() {
        let read = |error| Error::io("read", &folder, error);
        for entry in std::fs::read_dir(&folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let here = entry.path();
            let meta = std::fs::symlink_metadata(&here)
                .map_err(|error| Error::io("read", &here, error))?;
            let mut components: Vec<Vec<u8>> = components.clone();
            components.push(entry.file_name().as_bytes().to_vec());
            if meta.is_dir() {
                folders.push((here, components));
            } else if meta.is_file() {
                if files.len() == FILES_MAX {
                    return Err(refuse(&path, "holds more than a million files"));
                }
                len_bytes += meta.len();
                let executable = is_executable(&meta);
                files.push(SourceFile { path: components, len_bytes: meta.len(), executable });
                paths.push(here);
            } else {
                return Err(refuse(&here, "is a link or a special file")
                    .cure("offer the file that it points to, or leave it out"));
            }
        }
    }
    Ok(Found { name, parent, source: Source::Folder(files), paths, len_bytes })
}

fn is_executable(meta: &std::fs::Metadata) -> bool {
    meta.permissions().mode() & 0o111 != 0
}

/// How a torrent is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which views.
    pub kind: Kind,
    /// Piece length, or chosen.
    pub piece_len_bytes: Option<u64>,
    /// BEP 27.
    pub is_private: bool,
}

/// Hashes what was found and makes its metainfo. With `copy_to`, every byte is also written below
/// that folder, in the same pass: what was hashed is what was copied.
///
/// # Errors
/// [`Code::SourceChanged`] when a file is not as long as when it was found; [`Code::BadValue`] when it
/// makes no torrent; I/O errors; [`Code::Interrupted`].
pub fn make(
    found: &Found,
    options: Options,
    copy_to: Option<&Path>,
    interrupt: &Interrupt,
    mut progress: impl FnMut(u64, u64),
) -> Result<Metainfo> {
    let layout =
        Layout::choose(found.name.as_bytes(), &found.source, options.kind, options.piece_len_bytes)
            .map_err(|error| bad_source(&error))?;
    let geometry = layout.geometry().clone();
    let path_of = |index: FileIndex| {
        let source = layout.files()[index.get() as usize].source_index;
        source.map(|source| found.paths[source].clone())
    };
    let files: Vec<Option<PathBuf>> = geometry.files().map(path_of).collect();
    let copies = copy_to.map(|root| create_copies(&layout, found, root)).transpose()?;
    let reader = Reader { geometry: &geometry, files: &files, copies: copies.as_deref() };
    let mut leaves: Vec<Vec<[u8; 32]>> = geometry
        .files()
        .map(|file| {
            let count = if geometry.is_pad(file) || !options.kind.has_v2() {
                0
            } else {
                leaf_count(&geometry, file)
            };
            vec![[0; 32]; count]
        })
        .collect();
    let mut builder = Builder::new(layout.clone());
    builder.set_private(options.is_private);
    let mut done = 0;
    reader.run(options.kind, interrupt, |digests| {
        if let Some(sha1) = digests.sha1 {
            builder.set_piece(digests.piece, sha1);
        }
        if let Some((file, in_file)) = geometry.piece_in_file(digests.piece) {
            let first = in_file as usize * (geometry.piece_len_nominal() / BLOCK_LEN) as usize;
            let of_file = &mut leaves[file.get() as usize];
            of_file[first..first + digests.leaves.len()].copy_from_slice(&digests.leaves);
        }
        done += digests.len_bytes;
        progress(done, found.len_bytes);
        Ok(())
    })?;
    if options.kind.has_v2() {
        for file in geometry.files().filter(|file| !geometry.is_pad(*file)) {
            builder
                .set_leaves(file, &leaves[file.get() as usize])
                .map_err(|error| Error::bug(error.to_string()))?;
        }
    }
    builder.finish().map_err(|error| bad_source(&error))
}

fn leaf_count(geometry: &Geometry, file: FileIndex) -> usize {
    geometry.file_len(file).div_ceil(u64::from(BLOCK_LEN)) as usize
}

fn bad_source(error: &CreateError) -> Error {
    Error::new(Code::BadValue, format!("this makes no torrent: {error}"))
}

/// Creates the files of the copy, empty ones too, and opens those with bytes.
fn create_copies(layout: &Layout, found: &Found, root: &Path) -> Result<Vec<Option<File>>> {
    let base = root.join(&found.name);
    let create = |file: &ringseed_core::metainfo::create::LayoutFile| {
        if file.source_index.is_none() {
            return Ok(None);
        }
        let to = match &file.path {
            Some(path) => base.join(path.as_path()),
            None => base.clone(),
        };
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
        }
        let mode = if file.executable { 0o755 } else { 0o644 };
        let made = File::options().write(true).create_new(true).mode(mode).open(&to);
        made.map(Some).map_err(|error| Error::io("create", &to, error))
    };
    layout.files().iter().map(create).collect()
}

/// What was computed of one piece.
#[derive(Clone, Debug)]
pub struct PieceDigests {
    /// Which piece.
    pub piece: PieceIndex,
    /// SHA-1 with pads as zeros, if there is a v1 view.
    pub sha1: Option<[u8; 20]>,
    /// SHA-256 of its blocks, if there is a v2 view.
    pub leaves: Vec<[u8; 32]>,
    /// Bytes of files in it.
    pub len_bytes: u64,
    /// It could not be read: a file is missing or too short.
    pub unreadable: Option<Error>,
}

/// Reads the pieces of a torrent from files.
pub struct Reader<'a> {
    /// Where everything lies.
    pub geometry: &'a Geometry,
    /// Path of each file of the geometry; `None` for pads.
    pub files: &'a [Option<PathBuf>],
    /// Where each file is copied to, if it is.
    pub copies: Option<&'a [Option<File>]>,
}

impl Reader<'_> {
    /// Reads and hashes every piece, on as many threads as there are cores, and gives the digests to
    /// `take` in no particular order. A file that grew is noticed, too.
    ///
    /// # Errors
    /// What `take` returns; [`Code::Interrupted`]; I/O errors of the copy.
    pub fn run(
        &self,
        kind: Kind,
        interrupt: &Interrupt,
        mut take: impl FnMut(PieceDigests) -> Result<()>,
    ) -> Result<()> {
        let is_making = self.copies.is_some();
        let piece_len = u64::from(self.geometry.piece_len_nominal());
        let per_batch = (BATCH_LEN_BYTES / piece_len).clamp(1, 1024) as u32;
        let next = AtomicU32::new(0);
        let failed = AtomicBool::new(false);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let (sender, receiver) = sync_channel::<Result<Vec<PieceDigests>>>(threads * 2);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (sender, next, failed) = (sender.clone(), &next, &failed);
                scope.spawn(move || {
                    self.work(kind, per_batch, next, failed, interrupt, &sender);
                });
            }
            drop(sender);
            let mut result = Ok(());
            for batch in receiver {
                if result.is_err() {
                    continue;
                }
                result = batch.and_then(|batch| {
                    batch.into_iter().try_for_each(|digests| match &digests.unreadable {
                        Some(error) if is_making => Err(error.clone()),
                        _ => take(digests),
                    })
                });
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
            }
            if interrupt.is_asked() && result.is_ok() {
                let what = "stopped before everything was read";
                return Err(Error::new(Code::Interrupted, what).cure("run the same command again"));
            }
            result
        })
    }

    fn work(
        &self,
        kind: Kind,
        per_batch: u32,
        next: &AtomicU32,
        failed: &AtomicBool,
        interrupt: &Interrupt,
        sender: &SyncSender<Result<Vec<PieceDigests>>>,
    ) {
        let mut open = OpenFile::default();
        let mut buffer = Vec::new();
        loop {
            let first = next.fetch_add(per_batch, Ordering::Relaxed);
            let count = self.geometry.piece_count();
            if first >= count || failed.load(Ordering::Relaxed) || interrupt.is_asked() {
                return;
            }
            let batch = first..count.min(first.saturating_add(per_batch));
            let result = self.batch(kind, batch, &mut open, &mut buffer);
            if sender.send(result).is_err() {
                return;
            }
        }
    }

    fn batch(
        &self,
        kind: Kind,
        batch: std::ops::Range<u32>,
        open: &mut OpenFile,
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<PieceDigests>> {
        let pieces: Vec<PieceIndex> =
            batch.filter_map(|raw| self.geometry.piece(raw).ok()).collect();
        let lens: Vec<usize> =
            pieces.iter().map(|piece| self.geometry.piece_len(*piece) as usize).collect();
        buffer.resize(lens.iter().sum(), 0);
        let mut made = Vec::with_capacity(pieces.len());
        let mut rest = buffer.as_mut_slice();
        for (piece, len) in pieces.iter().zip(&lens) {
            let (mine, others) = rest.split_at_mut(*len);
            rest = others;
            let unreadable = self.read(*piece, mine, open)?;
            let len_bytes = self.payload_len(*piece);
            let (sha1, leaves) = (None, Vec::new());
            made.push(PieceDigests { piece: *piece, sha1, leaves, len_bytes, unreadable });
        }
        let mut messages: Vec<&[u8]> = Vec::with_capacity(pieces.len());
        let mut rest = buffer.as_slice();
        for len in &lens {
            let (mine, others) = rest.split_at(*len);
            messages.push(mine);
            rest = others;
        }
        if kind.has_v1() {
            let mut digests = vec![[0; 20]; messages.len()];
            sha1_many(&messages, &mut digests);
            for (made, digest) in made.iter_mut().zip(digests) {
                made.sha1 = Some(digest);
            }
        }
        if kind.has_v2() {
            let covered = |(piece, message): (&PieceIndex, &&[u8])| {
                message.len().min(self.geometry.piece_data_len(*piece) as usize)
            };
            let data: Vec<&[u8]> =
                pieces.iter().zip(&messages).map(|pair| &pair.1[..covered(pair)]).collect();
            let blocks: Vec<&[u8]> =
                data.iter().flat_map(|data| data.chunks(BLOCK_LEN as usize)).collect();
            let mut digests = vec![[0; 32]; blocks.len()];
            sha256_many(&blocks, &mut digests);
            let mut digests = digests.into_iter();
            for (made, data) in made.iter_mut().zip(&data) {
                made.leaves =
                    digests.by_ref().take(data.len().div_ceil(BLOCK_LEN as usize)).collect();
            }
        }
        Ok(made)
    }

    /// Bytes of a piece that lie in files.
    fn payload_len(&self, piece: PieceIndex) -> u64 {
        let offset = self.geometry.piece_offset(piece);
        let len = u64::from(self.geometry.piece_len(piece));
        let in_files = self.geometry.slices(offset, len).filter(|slice| !slice.pad);
        in_files.map(|slice| slice.len).sum()
    }

    /// Fills `out` with a piece and copies it on. Pads are zeros. What cannot be read is returned
    /// and leaves zeros, which no digest of real data takes for the data.
    fn read(
        &self,
        piece: PieceIndex,
        out: &mut [u8],
        open: &mut OpenFile,
    ) -> Result<Option<Error>> {
        let offset = self.geometry.piece_offset(piece);
        let mut unreadable = None;
        let mut at = 0;
        for slice in self.geometry.slices(offset, out.len() as u64) {
            let part = &mut out[at..at + slice.len as usize];
            at += part.len();
            let index = slice.file.get() as usize;
            let path = self.files[index].as_ref().filter(|_| !slice.pad);
            let Some(path) = path else {
                part.fill(0);
                continue;
            };
            if let Err(error) = open.read(index, path, slice.file_offset, part) {
                part.fill(0);
                unreadable = Some(error);
                continue;
            }
            // Whoever appends while we read would make a torrent of half a file.
            if slice.file_offset + slice.len == self.geometry.file_len(slice.file)
                && open.has_more(slice.file_offset + slice.len)
            {
                unreadable = Some(changed(path, "it grew"));
            }
            if let Some(copy) = self.copies.and_then(|copies| copies[index].as_ref()) {
                copy.write_all_at(part, slice.file_offset)
                    .map_err(|error| Error::io("write the copy of", path, error))?;
            }
        }
        Ok(unreadable)
    }
}

fn changed(path: &Path, why: &str) -> Error {
    Error::new(Code::SourceChanged, format!("{} changed while it was read", path.display()))
        .why(why)
        .cure("wait until nobody writes to it, then run it again")
}

/// The file that a worker read last: pieces come in order, so mostly it is the right one.
#[derive(Default)]
struct OpenFile(Option<(usize, File)>);

impl OpenFile {
    fn read(&mut self, index: usize, path: &Path, offset: u64, out: &mut [u8]) -> Result<()> {
        if self.0.as_ref().is_none_or(|(open, _)| *open != index) {
            let options = &mut File::options();
            let opened = options.read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path);
            let file = opened.map_err(|error| Error::io("open", path, error))?;
            self.0 = Some((index, file));
        }
        let Some((_, file)) = &self.0 else { return Err(Error::bug("the file was just opened")) };
        file.read_exact_at(out, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => changed(path, "it is shorter than expected"),
            _ => Error::io("read", path, error),
        })
    }

    fn has_more(&self, end: u64) -> bool {
        let Some((_, file)) = &self.0 else { return false };
        file.read_at(&mut [0], end).is_ok_and(|count| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use sha1::Sha1;
    use sha2::{Digest, Sha256};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rs-hashing-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("tree/sub")).unwrap();
        let big: Vec<u8> = (0..700_003u32).map(|i| (i * 31 % 253) as u8).collect();
        std::fs::write(dir.join("tree/big"), &big).unwrap();
        std::fs::write(dir.join("tree/sub/small"), b"small").unwrap();
        std::fs::write(dir.join("tree/empty"), b"").unwrap();
        dir
    }

    fn options(kind: Kind) -> Options {
        Options { kind, piece_len_bytes: Some(32 << 10), is_private: false }
    }

    #[test]
    fn digests_are_those_of_the_definition_and_the_copy_is_the_source() {
        let dir = scratch("make");
        let found = find(&dir.join("tree")).unwrap();
        assert_eq!((found.len_bytes, found.name.as_str()), (700_008, "tree"));
        let copy = dir.join("copy");
        let interrupt = Interrupt::default();
        let mut last = (0, 0);
        let hybrid = options(Kind::Hybrid);
        let made = make(&found, hybrid, Some(&copy), &interrupt, |a, b| last = (a, b)).unwrap();
        assert_eq!(last, (700_008, 700_008));
        for name in ["big", "sub/small", "empty"] {
            let (a, b) = (dir.join("tree").join(name), copy.join("tree").join(name));
            assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap(), "{name}");
        }
        let big = std::fs::read(dir.join("tree/big")).unwrap();
        let first = made.info().geometry().piece(0).unwrap();
        let expected: [u8; 20] = Sha1::digest(&big[..32 << 10]).into();
        assert_eq!(made.info().v1_piece_hash(first), Some(&expected));
        let halves: Vec<u8> = big[..32 << 10]
            .chunks(16 << 10)
            .flat_map(|leaf| Sha256::digest(leaf).to_vec())
            .collect();
        assert_eq!(made.v2_piece_hash(first), Some(Sha256::digest(halves).into()));
        assert!(made.missing_layers().next().is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_link_is_refused_by_name() {
        let dir = scratch("link");
        std::os::unix::fs::symlink("big", dir.join("tree/link")).unwrap();
        let error = find(&dir.join("tree")).unwrap_err();
        assert!(error.code == Code::BadValue && error.what.contains("link"), "{}", error.what);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_source_that_changes_makes_no_torrent() {
        let dir = scratch("change");
        let found = find(&dir.join("tree")).unwrap();
        let interrupt = Interrupt::default();
        std::fs::write(dir.join("tree/sub/small"), b"smal").unwrap();
        let make = |copy: &str| {
            make(&found, options(Kind::Hybrid), Some(&dir.join(copy)), &interrupt, |_, _| ())
        };
        assert_eq!(make("one").unwrap_err().code, Code::SourceChanged);
        std::fs::write(dir.join("tree/sub/small"), b"small and more").unwrap();
        assert_eq!(make("two").unwrap_err().code, Code::SourceChanged);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
