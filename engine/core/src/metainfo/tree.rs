//! The `file tree` of BEP 52, walked without recursion.

use super::MetainfoError;
use crate::bencode::Value;
use crate::merkle::Hash;

/// A file as a list or tree gives it, with the raw components of its path.
#[derive(Debug)]
pub(super) struct RawFile<'a> {
    pub path: Vec<&'a [u8]>,
    pub len_bytes: u64,
    pub pieces_root: Option<Hash>,
    pub pad: bool,
    pub executable: bool,
}

/// What `attr` of BEP 47 says: pad, symbolic link, executable. Other letters mean nothing to us.
pub(super) struct Attr {
    pub pad: bool,
    pub symlink: bool,
    pub executable: bool,
}

impl Attr {
    pub fn of(entry: Value<'_, '_>) -> Result<Self, MetainfoError> {
        let attr = match entry.get(b"attr") {
            Some(attr) => attr.as_bytes().ok_or(MetainfoError::WrongValue { key: "attr" })?,
            None => &[],
        };
        Ok(Self {
            pad: attr.contains(&b'p'),
            symlink: attr.contains(&b'l') || entry.get(b"symlink path").is_some(),
            executable: attr.contains(&b'x'),
        })
    }
}

/// The files of a tree in its order. The bencoding is canonical, so that is the order of BEP 52.
pub(super) fn read_tree<'a>(tree: Value<'_, 'a>) -> Result<Vec<RawFile<'a>>, MetainfoError> {
    let wrong = |reason| MetainfoError::FileTree { reason };
    let mut files = Vec::new();
    let mut path: Vec<&[u8]> = Vec::new();
    // Folders that are open; the decoder bounds their depth.
    let mut open = vec![tree.as_dict().ok_or(wrong("the tree is no dictionary"))?];
    while let Some(folder) = open.last_mut() {
        let Some((name, node)) = folder.next() else {
            open.pop();
            path.pop();
            continue;
        };
        if name.is_empty() {
            return Err(wrong("properties beside other entries, or of the root"));
        }
        let entries = node.as_dict().ok_or(wrong("an entry is no dictionary"))?;
        path.push(name);
        let mut ahead = entries.clone();
        match ahead.next() {
            None => return Err(wrong("a folder is empty")),
            // The empty key sorts first, so a file is known by its first entry.
            Some((b"", properties)) => {
                if ahead.next().is_some() {
                    return Err(wrong("a file has other entries beside its properties"));
                }
                files.push(read_file(properties, &path, files.len())?);
                path.pop();
            }
            Some(_) => open.push(entries),
        }
    }
    Ok(files)
}

fn read_file<'a>(
    properties: Value<'_, 'a>,
    path: &[&'a [u8]],
    file_index: usize,
) -> Result<RawFile<'a>, MetainfoError> {
    let wrong = |reason| MetainfoError::FileTree { reason };
    properties.as_dict().ok_or(wrong("properties are no dictionary"))?;
    let length = properties.get(b"length").and_then(|length| length.as_u64());
    let len_bytes = length.ok_or(wrong("a file has no length"))?;
    let attr = Attr::of(properties)?;
    if attr.symlink {
        return Err(MetainfoError::Symlink { file_index });
    }
    if attr.pad {
        return Err(wrong("a pad stands in the tree"));
    }
    let pieces_root = match properties.get(b"pieces root") {
        None => None,
        Some(root) => {
            let root = root.as_bytes().and_then(|root| Hash::try_from(root).ok());
            Some(root.ok_or(wrong("a pieces root has not 32 bytes"))?)
        }
    };
    if pieces_root.is_some() != (len_bytes > 0) {
        return Err(wrong("a pieces root is there although the file is empty, or the other way"));
    }
    if pieces_root == Some([0; 32]) {
        return Err(wrong("a pieces root is zero"));
    }
    let path = path.to_vec();
    Ok(RawFile { path, len_bytes, pieces_root, pad: false, executable: attr.executable })
}
