//! The `file tree` of BEP 52, walked without recursion.

use super::MetainfoError;
use crate::bencode::{Value, string_at};

/// What `attr` of BEP 47 says: pad, symbolic link, executable. Other letters mean nothing to us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attr {
    pub pad: bool,
    pub symlink: bool,
    pub executable: bool,
}

impl Attr {
    /// Reads the value of `attr`. One that is no string says nothing.
    pub fn of(attr: Value<'_>) -> Self {
        let attr = attr.as_bytes().unwrap_or_default();
        Self {
            pad: attr.contains(&b'p'),
            symlink: attr.contains(&b'l'),
            executable: attr.contains(&b'x'),
        }
    }
}

/// A file of the tree; [`TreeCursor::path`] has its path.
#[derive(Clone, Copy, Debug)]
pub(super) struct TreeFile {
    pub len_bytes: u64,
    /// Where the 32 bytes of `pieces root` lie; `None` of an empty file.
    pub root_at: Option<u32>,
    pub executable: bool,
    /// A symbolic link, which has no bytes.
    pub link: bool,
}

/// A place in a tree to go on from.
#[derive(Clone, Debug)]
pub(super) struct TreeMark {
    at: u32,
    path: Box<[(u32, u32)]>,
}

/// Walks over a tree in its order. The bencoding is canonical, so that is the order of BEP 52.
pub(super) struct TreeCursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the names of the open folders lie, and of the file that was given last.
    path: Vec<(u32, u32)>,
    is_in_file: bool,
    is_done: bool,
    file_index: usize,
}

impl<'a> TreeCursor<'a> {
    /// Begins at the first file. `bytes` is the checked document that holds the tree.
    pub fn new(bytes: &'a [u8], tree: Value<'a>) -> Result<Self, MetainfoError> {
        let reason = "the tree is no dictionary";
        tree.as_dict().ok_or(MetainfoError::FileTree { reason })?;
        Ok(Self::resume(bytes, &TreeMark { at: tree.span().start as u32 + 1, path: [].into() }))
    }

    /// Goes on from a place that [`TreeCursor::mark`] told.
    pub fn resume(bytes: &'a [u8], mark: &TreeMark) -> Self {
        Self {
            bytes,
            at: mark.at as usize,
            path: mark.path.to_vec(),
            is_in_file: false,
            is_done: false,
            file_index: 0,
        }
    }

    /// The place in front of the next file.
    pub fn mark(&self) -> TreeMark {
        let folders = self.path.len() - usize::from(self.is_in_file);
        TreeMark { at: self.at as u32, path: self.path[..folders].into() }
    }

    /// The raw components of the path of the file that was given last.
    pub fn path(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a, '_> {
        self.path.iter().map(|&(start, end)| &self.bytes[start as usize..end as usize])
    }

    /// The next file, or `None` behind the last.
    pub fn next(&mut self) -> Result<Option<TreeFile>, MetainfoError> {
        let wrong = |reason| Err(MetainfoError::FileTree { reason });
        if std::mem::take(&mut self.is_in_file) {
            self.path.pop();
        }
        while !self.is_done {
            if self.bytes[self.at] == b'e' {
                self.at += 1;
                self.is_done = self.path.pop().is_none();
                continue;
            }
            let name = string_at(self.bytes, self.at);
            if name.is_empty() {
                return wrong("properties beside other entries, or of the root");
            }
            // Folders that are open; the decoder bounds their depth.
            self.path.push((name.start as u32, name.end as u32));
            let inside = name.end + 1;
            if self.bytes[name.end] != b'd' {
                return wrong("an entry is no dictionary");
            }
            match &self.bytes[inside..] {
                [b'e', ..] => return wrong("a folder is empty"),
                // The empty key sorts first, so a file is known by its first entry.
                [b'0', ..] => {
                    let properties = Value::at(self.bytes, string_at(self.bytes, inside).end);
                    let end = properties.span().end;
                    if self.bytes[end] != b'e' {
                        return wrong("a file has other entries beside its properties");
                    }
                    let file = read_file(properties, self.file_index)?;
                    self.file_index += 1;
                    self.is_in_file = true;
                    self.at = end + 1;
                    return Ok(Some(file));
                }
                _ => self.at = inside,
            }
        }
        Ok(None)
    }
}

fn read_file(properties: Value<'_>, file_index: usize) -> Result<TreeFile, MetainfoError> {
    let wrong = |reason| MetainfoError::FileTree { reason };
    let (mut len_bytes, mut attr, mut root_at) = (None, Attr::default(), None);
    for (key, value) in properties.as_dict().ok_or(wrong("properties are no dictionary"))? {
        match key {
            b"attr" => attr = Attr::of(value),
            b"length" => {
                let length = value.as_u64();
                len_bytes = Some(length.ok_or(wrong("a length is no number from 0 up"))?);
            }
            b"pieces root" => {
                let root = value.as_bytes().filter(|root| root.len() == 32);
                let root = root.ok_or(wrong("a pieces root has not 32 bytes"))?;
                if root == [0; 32] {
                    return Err(wrong("a pieces root is zero"));
                }
                root_at = Some((value.span().end - root.len()) as u32);
            }
            _ => {}
        }
    }
    // BEP 47: a link has no length, or zero.
    let len_bytes = len_bytes.or(attr.symlink.then_some(0)).ok_or(wrong("a file has no length"))?;
    if attr.symlink && len_bytes > 0 {
        return Err(MetainfoError::Symlink { file_index });
    }
    if attr.pad {
        return Err(wrong("a pad stands in the tree"));
    }
    if root_at.is_some() != (len_bytes > 0) {
        return Err(wrong("a pieces root is there although the file is empty, or the other way"));
    }
    Ok(TreeFile { len_bytes, root_at, executable: attr.executable, link: attr.symlink })
}
