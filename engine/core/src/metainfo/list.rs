//! The v1 view's list of files (BEP 3), walked where it lies.

use super::MetainfoError;
use super::names;
use super::tree::Attr;
use crate::bencode::{PlainEntry, Strings, Value, string_at};
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
    pub fn parts(&self) -> Strings<'a> {
        self.path.clone().unwrap_or_else(Strings::none)
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

    /// The next entry if it has a length and a path and nothing else: nearly all are such.
    #[inline]
    pub fn next_plain(&mut self) -> Option<PlainListed<'a>> {
        let entry = PlainEntry::read(self.bytes, self.next)?;
        let at = std::mem::replace(&mut self.next, entry.end());
        self.file_index += 1;
        Some(PlainListed { at, bytes: self.bytes, entry })
    }

    /// Where the next entry begins, see [`ListEntry::at`].
    pub fn position(&self) -> usize {
        self.next
    }

    fn read(&mut self) -> Result<ListEntry<'a>, MetainfoError> {
        if let Some(plain) = self.next_plain() {
            return Ok(plain.into());
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

/// An entry of `files` that has a length and a path and nothing else.
#[derive(Clone, Debug)]
pub(super) struct PlainListed<'a> {
    /// See [`ListEntry::at`].
    pub at: usize,
    bytes: &'a [u8],
    entry: PlainEntry,
}

impl<'a> PlainListed<'a> {
    pub fn len_bytes(&self) -> u64 {
        self.entry.len_bytes
    }

    /// The names of the path, raw.
    pub fn parts(&self) -> Strings<'a> {
        Strings::resume(self.bytes, self.entry.path.start)
    }

    /// True if [`names::check`] has nothing to say of the path; false if that is not certain.
    pub fn is_surely_good(&self, folder_len: usize) -> bool {
        let PlainEntry { path, name_count, shortest_bytes, .. } = &self.entry;
        // Encoded it is as long as with a slash before each name, or longer; `..` has two bytes.
        folder_len + path.len() <= names::PATH_LEN_MAX
            && (*name_count as usize) < names::DEPTH_MAX
            && (3..=names::COMPONENT_LEN_MAX).contains(shortest_bytes)
            && names::are_plain(&self.bytes[path.clone()])
    }

    /// The names as they stand there, and where in them the text of the last one begins.
    #[inline]
    pub fn encoded(&self) -> (&'a [u8], usize) {
        let last_text = self.entry.last_text - self.entry.path.start;
        (&self.bytes[self.entry.path.clone()], last_text)
    }
}

impl<'a> From<PlainListed<'a>> for ListEntry<'a> {
    fn from(plain: PlainListed<'a>) -> Self {
        let (at, path) = (Some(plain.at), Some(plain.parts()));
        let (pad, link, executable) = (false, false, false);
        ListEntry { at, path, len_bytes: plain.len_bytes(), pad, link, executable }
    }
}
