//! Reading the files of an info dictionary: the v1 list, the v2 tree, or both side by side.

use super::MetainfoError;
use super::distinct::Distinct;
use super::files::{FileTable, FileTableBuilder};
use super::list::{ListEntries, ListEntry};
use super::names;
use super::tree::{Attr, TreeCursor};
use crate::bencode::{Document, Value};
use crate::geometry::{FileSpan, Geometry, GeometryBuilder, Kind};

/// The keys of the dictionary that mean something here.
#[derive(Debug, Default)]
pub(super) struct Keys<'a> {
    attr: Option<Value<'a>>,
    file_tree: Option<Value<'a>>,
    files: Option<Value<'a>>,
    length: Option<Value<'a>>,
    meta_version: Option<Value<'a>>,
    pub name: Option<Value<'a>>,
    pub piece_len: Option<Value<'a>>,
    pub pieces: Option<Value<'a>>,
    pub private: Option<Value<'a>>,
}

impl<'a> Keys<'a> {
    pub fn read(document: &Document<'a>, info: Value<'a>) -> Result<Self, MetainfoError> {
        let mut keys = Self::default();
        let wrong = MetainfoError::WrongValue { key: "info" };
        for (key, value) in document.entries_of(info).ok_or(wrong)? {
            let slot = match key {
                b"attr" => &mut keys.attr,
                b"file tree" => &mut keys.file_tree,
                b"files" => &mut keys.files,
                b"length" => &mut keys.length,
                b"meta version" => &mut keys.meta_version,
                b"name" => &mut keys.name,
                b"piece length" => &mut keys.piece_len,
                b"pieces" => &mut keys.pieces,
                b"private" => &mut keys.private,
                _ => continue,
            };
            *slot = Some(value);
        }
        Ok(keys)
    }

    /// BEP 52 wants the version looked at before anything else.
    pub fn kind(&self) -> Result<Kind, MetainfoError> {
        let is_v2 = match self.meta_version {
            Some(version) => match version.as_int() {
                Some(2) => true,
                Some(found) => return Err(MetainfoError::MetaVersion { found }),
                None => return Err(MetainfoError::WrongValue { key: "meta version" }),
            },
            None => false,
        };
        let has_list = self.files.is_some() || self.length.is_some();
        match (is_v2, self.file_tree.is_some(), self.pieces.is_some(), has_list) {
            (true, true, true, true) => Ok(Kind::Hybrid),
            (true, true, false, false) => Ok(Kind::V2),
            (false, false, true, true) => Ok(Kind::V1),
            (true, false, _, _) => Err(MetainfoError::View("a meta version without a file tree")),
            (false, true, _, _) => Err(MetainfoError::View("a file tree without a meta version")),
            (_, _, true, false) => Err(MetainfoError::View("v1 pieces without files")),
            (_, _, false, true) => Err(MetainfoError::View("v1 files without pieces")),
            (false, false, false, false) => Err(MetainfoError::View("neither a v1 nor a v2 view")),
        }
    }
}

pub(super) fn need<'a>(
    value: Option<Value<'a>>,
    key: &'static str,
) -> Result<Value<'a>, MetainfoError> {
    value.ok_or(MetainfoError::Missing { key })
}

/// What reading the files takes.
pub(super) struct Reader<'r, 'a> {
    pub bytes: &'a [u8],
    pub document: &'r Document<'a>,
    pub keys: &'r Keys<'a>,
    pub raw_name: &'a [u8],
    /// Length of the torrent's name as mapped, in bytes: it counts where it stands in front of a path.
    pub name_len_bytes: usize,
    pub piece_len: u64,
    pub kind: Kind,
}

/// What was read.
pub(super) struct Read {
    pub files: FileTable,
    pub geometry: Geometry,
    /// It is proven that no two paths are one. If not, it is to be looked at more closely.
    pub are_surely_distinct: bool,
}

impl<'a> Reader<'_, 'a> {
    pub fn read(&self) -> Result<Read, MetainfoError> {
        let Keys { files, length, .. } = self.keys;
        if files.is_some() && length.is_some() {
            return Err(MetainfoError::View("both a length and a list of files"));
        }
        match (self.kind, files) {
            (Kind::V1, Some(list)) => self.read_v1(*list),
            (Kind::V1, None) => {
                let file = self.lone_entry()?;
                let mut geometry = GeometryBuilder::new(self.piece_len, self.kind, 1)?;
                let mut files = FileTableBuilder::new(1, false);
                files.push_listed(&file, None);
                geometry.push(file.span())?;
                let (files, geometry) = (files.finish(true), geometry.finish()?);
                Ok(Read { files, geometry, are_surely_distinct: true })
            }
            (Kind::V2, _) => self.read_v2(),
            (Kind::Hybrid, Some(list)) => {
                let entries = ListEntries::new(self.bytes, *list)?;
                self.read_hybrid(self.document.count_of(*list), entries)
            }
            (Kind::Hybrid, None) => self.read_hybrid(1, std::iter::once(self.lone_entry())),
        }
    }

    /// The one file of a torrent with a `length`.
    fn lone_entry(&self) -> Result<ListEntry<'a>, MetainfoError> {
        let attr = self.keys.attr.map(Attr::of).unwrap_or_default();
        let len_bytes = need(self.keys.length, "length")?.as_u64();
        let len_bytes = len_bytes.ok_or(MetainfoError::WrongValue { key: "length" })?;
        ListEntry::new(None, Ok(None), Some(len_bytes), attr, 0)
    }

    /// Checks a path below the torrent's folder; true if it is mapped.
    fn check(&self, parts: impl Iterator<Item = &'a [u8]>) -> Result<bool, MetainfoError> {
        Ok(names::check(Some(self.name_len_bytes), parts)?)
    }

    fn read_v1(&self, list: Value<'a>) -> Result<Read, MetainfoError> {
        let file_count = self.document.count_of(list);
        let mut geometry = GeometryBuilder::new(self.piece_len, self.kind, file_count)?;
        let mut files = FileTableBuilder::new(file_count, false);
        let mut walk = ListEntries::new(self.bytes, list)?;
        let mut distinct = Distinct::new(file_count, walk.clone());
        loop {
            if let Some(plain) = walk.next_plain() {
                let is_good = plain.is_surely_good(self.name_len_bytes);
                let is_mapped = !is_good && self.check(plain.parts())?;
                distinct.add_plain(&plain, is_mapped);
                files.push_plain(plain.at);
                geometry.push(FileSpan { len_bytes: plain.len_bytes(), pad: false })?;
                continue;
            }
            let at = walk.position();
            let Some(entry) = walk.next() else { break };
            let entry = entry?;
            if !entry.is_absent() {
                let is_mapped = self.check(entry.parts())?;
                distinct.add(at, &entry, is_mapped);
            }
            files.push_listed(&entry, None);
            geometry.push(entry.span())?;
        }
        let are_surely_distinct = distinct.finish();
        Ok(Read { files: files.finish(false), geometry: geometry.finish()?, are_surely_distinct })
    }

    fn read_v2(&self) -> Result<Read, MetainfoError> {
        let tree = need(self.keys.file_tree, "file tree")?;
        // Counted first, so that nothing need grow.
        let mut walk = TreeCursor::new(self.bytes, tree)?;
        let (mut file_count, mut is_lone) = (0, false);
        while walk.next()?.is_some() {
            is_lone = file_count == 0 && walk.path().len() == 1;
            file_count += 1;
        }
        let mut geometry = GeometryBuilder::new(self.piece_len, self.kind, file_count)?;
        let mut files = FileTableBuilder::new(file_count, true);
        let mut walk = TreeCursor::new(self.bytes, tree)?;
        let mut is_mapped = false;
        loop {
            let mark = files.wants_mark().then(|| walk.mark());
            let Some(file) = walk.next()? else { break };
            // In a v2 torrent one file at the top of the tree is all there is: no folder around it.
            let folder_len = Some(self.name_len_bytes).filter(|_| !is_lone);
            is_mapped |= names::check(folder_len, walk.path())?;
            if let Some(mark) = mark {
                files.mark_tree(mark);
            }
            files.push(file.root_at, file.executable, file.link);
            geometry.push(FileSpan { len_bytes: file.len_bytes, pad: file.link })?;
        }
        let (files, geometry) = (files.finish(is_lone), geometry.finish()?);
        // A tree has no two names alike, unless mapping makes them so.
        Ok(Read { files, geometry, are_surely_distinct: !is_mapped })
    }

    /// Checks that the v1 list and the v2 tree of a hybrid tell of the same files in the same places,
    /// and gives the list the roots of the tree. Every file with bytes begins with a piece, by one
    /// pad in front of it where that takes one; the pad behind the last file is optional (libtorrent
    /// wrote hybrids without it until 2.0.7, and with it since).
    fn read_hybrid(
        &self,
        file_count: usize,
        entries: impl Iterator<Item = Result<ListEntry<'a>, MetainfoError>>,
    ) -> Result<Read, MetainfoError> {
        let mut geometry = GeometryBuilder::new(self.piece_len, self.kind, file_count)?;
        let mut files = FileTableBuilder::new(file_count, true);
        let mut twins = TreeCursor::new(self.bytes, need(self.keys.file_tree, "file tree")?)?;
        let mut is_mapped = false;
        // Bytes up to the next piece, unless a pad has filled them.
        let mut gap = 0_u64;
        for (file_index, entry) in entries.enumerate() {
            let mut entry = entry?;
            let wrong = |reason| Err(MetainfoError::Hybrid { file_index, reason });
            let mut root_at = None;
            if entry.pad {
                if entry.len_bytes == 0 || entry.len_bytes != gap {
                    return wrong("is a pad that does not end with a piece");
                }
                gap = 0;
            } else {
                let Some(twin) = twins.next()? else {
                    return wrong("is not in the v2 tree");
                };
                let is_alike = match entry.at {
                    Some(_) => entry.parts().eq(twins.path()),
                    None => twins.path().eq([self.raw_name]),
                };
                if !is_alike {
                    return wrong("has another path than in the v2 tree");
                }
                if entry.link != twin.link {
                    return wrong("is a link in one view alone");
                }
                if entry.len_bytes != twin.len_bytes {
                    return wrong("has another length than in the v2 tree");
                }
                if entry.len_bytes > 0 {
                    if gap > 0 {
                        return wrong("does not begin with a piece");
                    }
                    let tail = entry.len_bytes % self.piece_len;
                    gap = if tail == 0 { 0 } else { self.piece_len - tail };
                }
                if entry.at.is_some() {
                    is_mapped |= self.check(entry.parts())?;
                }
                root_at = twin.root_at;
                // Where the views differ in this, the one counts that names the listing.
                entry.executable = twin.executable;
            }
            files.push_listed(&entry, root_at);
            geometry.push(entry.span())?;
        }
        if twins.next()?.is_some() {
            let reason = "is missing";
            return Err(MetainfoError::Hybrid { file_index: file_count, reason });
        }
        // A tree has no two names alike, unless mapping makes them so.
        let are_surely_distinct = !is_mapped;
        Ok(Read { files: files.finish(false), geometry: geometry.finish()?, are_surely_distinct })
    }
}
