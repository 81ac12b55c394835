//! The v1 view's list of files (BEP 3), walked where it lies.

use super::MetainfoError;
use super::names;
use super::tree::Attr;
use crate::bencode::{Strings, Value, string_at};
use crate::geometry::FileSpan;

/// An entry of `files`, or the whole of a torrent with a `length`.
#[derive(Clone, Debug)]
pub(super) struct ListEntry<'a> {
    /// Where the entry begins in the list; `None` of the one file of a torrent with a `length`.
    pub at: Option<usize>,
    /// The raw components of the path, all strings. `None` of the one file of a torrent with a
    /// `length`, and of pads that have none (BEP 47 does not ask for it).
    pub path: Option<Strings<'a>>,
    pub len_bytes: u64,
    pub pad: bool,
    /// A symbolic link, which has no bytes.
    pub link: bool,
    pub executable: bool,
}

impl<'a> ListEntry<'a> {
    /// It lies on no disk: a pad, or a link, which we never make.
    pub fn is_absent(&self) -> bool {
        self.pad || self.link
    }

    /// Applies the rules of BEP 47 to what an entry says. A link has no length, or zero.
    pub fn new(
        at: Option<usize>,
        path: Result<Option<Strings<'a>>, MetainfoError>,
        len_bytes: Option<u64>,
        attr: Attr,
        file_index: usize,
    ) -> Result<Self, MetainfoError> {
        let len_bytes = len_bytes.or(attr.symlink.then_some(0));
        let len_bytes = len_bytes.ok_or(MetainfoError::Missing { key: "length" })?;
        if attr.symlink && len_bytes > 0 {
            return Err(MetainfoError::Symlink { file_index });
        }
        let Attr { pad, symlink: link, executable } = attr;
        let pad = pad && !link;
        // Of a pad the path means nothing, so it may be anything (BEP 47).
        let path = if pad { path.unwrap_or_default() } else { path? };
        if at.is_some() && path.is_none() && !pad {
            return Err(MetainfoError::Missing { key: "path" });
        }
        Ok(Self { at, path, len_bytes, pad, link, executable })
    }

    /// The raw components of the path below the torrent's folder; none of the one file.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        self.path.clone().into_iter().flatten()
    }

    pub fn span(&self) -> FileSpan {
        FileSpan { len_bytes: self.len_bytes, pad: self.is_absent() }
    }
}

/// The entries of `files`, each read and checked but for its names.
#[derive(Clone, Debug)]
pub(super) struct ListEntries<'a> {
    bytes: &'a [u8],
    next: usize,
    file_index: usize,
}

impl<'a> ListEntries<'a> {
    /// `bytes` is the checked document that holds the list.
    pub fn new(bytes: &'a [u8], list: Value<'a>) -> Result<Self, MetainfoError> {
        list.as_list().ok_or(MetainfoError::WrongValue { key: "files" })?;
        Ok(Self { bytes, next: list.span().start + 1, file_index: 0 })
    }

    /// The entries from the one that begins at `next`, see [`ListEntry::at`].
    pub fn resume(bytes: &'a [u8], next: usize) -> Self {
        Self { bytes, next, file_index: 0 }
    }

    /// An entry that has a length and a path and nothing else: nearly all are such.
    fn read_plain(&mut self) -> Option<ListEntry<'a>> {
        let bytes = self.bytes;
        let rest = bytes[self.next..].strip_prefix(b"d6:lengthi")?;
        let mut at = bytes.len() - rest.len();
        let mut len_bytes = 0_u64;
        // A sign is none, and eighteen digits fit.
        let digits_end = at + 18;
        while bytes[at].is_ascii_digit() && at < digits_end {
            len_bytes = len_bytes * 10 + u64::from(bytes[at] - b'0');
            at += 1;
        }
        let rest = bytes[at..].strip_prefix(b"e4:pathl")?;
        let path_at = bytes.len() - rest.len();
        at = path_at;
        while bytes[at].is_ascii_digit() {
            at = string_at(bytes, at).end;
        }
        if bytes[at] != b'e' || bytes[at + 1] != b'e' {
            return None;
        }
        let path = Some(Strings::resume(bytes, path_at));
        let entry_at = std::mem::replace(&mut self.next, at + 2);
        self.file_index += 1;
        let (pad, link, executable) = (false, false, false);
        Some(ListEntry { at: Some(entry_at), path, len_bytes, pad, link, executable })
    }

    fn read(&mut self) -> Result<ListEntry<'a>, MetainfoError> {
        if let Some(plain) = self.read_plain() {
            return Ok(plain);
        }
        let wrong = |key| MetainfoError::WrongValue { key };
        let (mut path, mut len_bytes, mut attr) = (Ok(None), None, Attr::default());
        let at = self.next;
        if self.bytes[at] != b'd' {
            return Err(wrong("files"));
        }
        self.next += 1;
        while self.bytes[self.next] != b'e' {
            let key = string_at(self.bytes, self.next);
            self.next = key.end;
            let value = Value::at(self.bytes, self.next);
            self.next = value.span().end;
            match &self.bytes[key] {
                b"length" => len_bytes = Some(value.as_u64().ok_or(wrong("length"))?),
                b"path" => path = value.as_strings().map(Some).ok_or(wrong("path")),
                b"attr" => attr = Attr::of(value),
                _ => {}
            }
        }
        self.next += 1;
        self.file_index += 1;
        ListEntry::new(Some(at), path, len_bytes, attr, self.file_index - 1)
    }
}

impl<'a> Iterator for ListEntries<'a> {
    type Item = Result<ListEntry<'a>, MetainfoError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.bytes[self.next] != b'e').then(|| self.read())
    }
}

/// Finds out whether all paths of a list differ, without keeping them.
#[derive(Debug, Default)]
pub(super) struct Distinct<'a> {
    last: Option<Strings<'a>>,
    /// Some path does not sort behind the one before it: order proves nothing.
    is_unsorted: bool,
    /// Some component is mapped, so that raw bytes prove nothing.
    is_mapped: bool,
}

impl<'a> Distinct<'a> {
    /// Takes in a path below the torrent's folder.
    pub fn add(&mut self, entry: &ListEntry<'a>, is_mapped: bool) {
        self.is_mapped |= is_mapped;
        if let (Some(last), Some(path), false) = (&self.last, &entry.path, self.is_unsorted) {
            self.is_unsorted = !is_before(last.clone(), path.clone());
        }
        self.last.clone_from(&entry.path);
    }

    /// True if no two paths are one, and no file is also a folder; false if that is not certain.
    /// `entries` walks over the list again, of `file_count`.
    pub fn finish(self, file_count: usize, entries: ListEntries<'a>) -> bool {
        let files = || entries.clone().filter_map(Result::ok).filter(|entry| !entry.is_absent());
        !self.is_mapped
            && (!self.is_unsorted
                || names::are_surely_distinct(file_count, files().map(|file| file.parts())))
    }
}

/// Whether a path sorts before another by components, and is no folder of it. In a list where each
/// path stands so to the next, no two are alike: in the order of components a file stands right
/// before its namesake, and before the first file below it.
fn is_before(mut a: Strings<'_>, mut b: Strings<'_>) -> bool {
    loop {
        let (Some(a), Some(b)) = (a.next(), b.next()) else { return false };
        match a.cmp(b) {
            std::cmp::Ordering::Less => return true,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => return false,
        }
    }
}
