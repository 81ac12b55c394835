//! Names that strangers chose, made into paths that stay where they belong.
//!
//! A component that means something to the system (`..`, `.`, nothing, a slash, NUL) is refused:
//! nobody makes those by accident. Bytes that are only awkward (backslash, control characters, what
//! is no UTF-8) are written as `%XX`. Device names of other systems and names that differ only in
//! case are ordinary files on Linux (the kernel's own sources have both) and stay as they are;
//! [`first_case_clash`] finds the latter for file systems that fold case. If two names become one,
//! or one is a file and also another's folder, the torrent is refused.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use thiserror::Error;

/// Longest component, in bytes, as mapped: what Linux file systems take.
pub const COMPONENT_LEN_MAX: usize = 255;
/// Longest path, in bytes, separators counted.
pub const PATH_LEN_MAX: usize = 4096;
/// Most components of a path.
pub const DEPTH_MAX: usize = 32;

/// Why a name is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// A path without components, or a component without bytes.
    #[error("name is empty")]
    Empty,
    /// `.` or `..`.
    #[error("name {name:?} leads out of its folder")]
    Traversal {
        /// The component.
        name: String,
    },
    /// A slash or NUL inside a component.
    #[error("name {name:?} has a slash or NUL")]
    Separator {
        /// The component, lossy.
        name: String,
    },
    /// A component longer than [`COMPONENT_LEN_MAX`] once it is mapped.
    #[error("name of {len_bytes} bytes is longer than {COMPONENT_LEN_MAX}")]
    ComponentTooLong {
        /// Its length, in bytes.
        len_bytes: usize,
    },
    /// A path longer than [`PATH_LEN_MAX`].
    #[error("path of more than {PATH_LEN_MAX} bytes")]
    PathTooLong,
    /// A path of more than [`DEPTH_MAX`] components.
    #[error("path of more than {DEPTH_MAX} components")]
    TooDeep,
    /// Two files of one path.
    #[error("two files are called {path:?}")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// A path that is a file and also a folder with files.
    #[error("{path:?} is a file and also a folder")]
    FileIsFolder {
        /// The path.
        path: String,
    },
}

/// A relative path of normal components: it cannot lead out of the folder that it is joined to.
/// Components are separated by `/`, and the path is UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Box<str>);

impl RelPath {
    /// Makes a path of raw components, mapping what is awkward.
    ///
    /// # Errors
    /// [`NameError`] when a component or the whole is refused.
    pub fn new<'a>(components: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut path = String::new();
        for (depth, raw) in components.into_iter().enumerate() {
            if depth >= DEPTH_MAX {
                return Err(NameError::TooDeep);
            }
            if depth > 0 {
                path.push('/');
            }
            path.push_str(&component(raw)?);
            if path.len() > PATH_LEN_MAX {
                return Err(NameError::PathTooLong);
            }
        }
        if path.is_empty() { Err(NameError::Empty) } else { Ok(Self(path.into())) }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path for the file system.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// The components, first the outermost.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.0.split('/')
    }

    /// The order of BEP 52's file tree: component by component, as raw bytes.
    pub fn tree_cmp(&self, other: &Self) -> std::cmp::Ordering {
        // A slash ends a component, so it sorts before every byte that a component can have.
        let key = |byte: u8| if byte == b'/' { 0 } else { byte };
        self.0.bytes().map(key).cmp(other.0.bytes().map(key))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

/// Checks the path that [`RelPath::new`] would make, without making it, for a file in a folder whose
/// name, as mapped, has `folder_len` bytes. True if a component inside of it would be mapped.
///
/// # Errors
/// As [`RelPath::new`]; [`NameError::Empty`] also for the folder alone.
pub fn check<'a>(
    folder_len: Option<usize>,
    components: impl IntoIterator<Item = &'a [u8]>,
) -> Result<bool, NameError> {
    let mut len_bytes = folder_len.unwrap_or(0);
    let folder_depth = usize::from(folder_len.is_some());
    let mut is_mapped = false;
    let mut is_empty = true;
    for (depth, raw) in (folder_depth..).zip(components) {
        is_empty = false;
        if depth >= DEPTH_MAX {
            return Err(NameError::TooDeep);
        }
        len_bytes += usize::from(depth > 0);
        len_bytes += if is_plain(raw) {
            raw.len()
        } else {
            let mapped = component(raw)?;
            is_mapped |= matches!(mapped, Cow::Owned(_));
            mapped.len()
        };
        if len_bytes > PATH_LEN_MAX {
            return Err(NameError::PathTooLong);
        }
    }
    if is_empty { Err(NameError::Empty) } else { Ok(is_mapped) }
}

/// Whether a component needs no second look: printable ASCII, and nothing that has a meaning.
#[inline]
fn is_plain(raw: &[u8]) -> bool {
    are_plain(raw)
        && !raw.is_empty()
        && raw.len() <= COMPONENT_LEN_MAX
        && raw != b"."
        && raw != b".."
}

/// Whether every byte is one that needs no second look in a name, wherever it stands.
#[inline]
pub(super) fn are_plain(raw: &[u8]) -> bool {
    // Sixteen at a time without an early end become a few vector operations; the last sixteen may
    // overlap those before.
    let (chunks, rest) = raw.as_chunks::<16>();
    let mut are_plain = chunks.iter().fold(true, |all, chunk| all & is_chunk_plain(chunk));
    are_plain &= match raw.last_chunk::<16>() {
        Some(last) if !rest.is_empty() => is_chunk_plain(last),
        _ => rest.iter().fold(true, |all, &byte| all & is_byte_plain(byte)),
    };
    are_plain
}

#[inline]
fn is_chunk_plain(chunk: &[u8; 16]) -> bool {
    chunk.iter().fold(true, |all, &byte| all & is_byte_plain(byte))
}

#[inline]
fn is_byte_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) & (byte != b'/') & (byte != b'\\')
}

/// One component, mapped if it must be.
///
/// # Errors
/// [`NameError`] when it is refused.
pub fn component(raw: &[u8]) -> Result<Cow<'_, str>, NameError> {
    let lossy = || String::from_utf8_lossy(&raw[..raw.len().min(COMPONENT_LEN_MAX)]).into_owned();
    if raw.is_empty() {
        return Err(NameError::Empty);
    }
    if raw == b"." || raw == b".." {
        return Err(NameError::Traversal { name: lossy() });
    }
    if raw.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(NameError::Separator { name: lossy() });
    }
    // Mapping only lengthens, so a giant need not be mapped to be refused.
    let len_bytes = raw.len();
    if len_bytes > COMPONENT_LEN_MAX {
        return Err(NameError::ComponentTooLong { len_bytes });
    }
    let mapped = map_awkward(raw);
    let len_bytes = mapped.len();
    if len_bytes > COMPONENT_LEN_MAX {
        return Err(NameError::ComponentTooLong { len_bytes });
    }
    Ok(mapped)
}

fn map_awkward(raw: &[u8]) -> Cow<'_, str> {
    let is_awkward = |c: char| c == '\\' || c.is_control();
    if let Ok(text) = std::str::from_utf8(raw)
        && !text.contains(is_awkward)
    {
        return Cow::Borrowed(text);
    }
    let mut mapped = String::new();
    let escape = |mapped: &mut String, bytes: &[u8]| {
        bytes.iter().for_each(|byte| mapped.push_str(&format!("%{byte:02X}")));
    };
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_awkward(c) {
                escape(&mut mapped, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                mapped.push(c);
            }
        }
        escape(&mut mapped, chunk.invalid());
    }
    Cow::Owned(mapped)
}

/// Checks that no two files share a path, and that no file is also a folder.
///
/// # Errors
/// [`NameError::Duplicate`] or [`NameError::FileIsFolder`].
pub fn check_distinct<'a>(paths: impl IntoIterator<Item = &'a RelPath>) -> Result<(), NameError> {
    let mut sorted: Vec<&RelPath> = paths.into_iter().collect();
    // Nearly all torrents are in tree order already, and looking costs less than sorting.
    if !sorted.is_sorted_by(|a, b| a.tree_cmp(b).is_le()) {
        sorted.sort_unstable_by(|a, b| a.tree_cmp(b));
    }
    // In tree order a file stands right before its namesake and before the first file below it.
    for pair in sorted.windows(2) {
        let path = || pair[0].as_str().to_owned();
        match pair[1].as_str().strip_prefix(pair[0].as_str()) {
            Some("") => return Err(NameError::Duplicate { path: path() }),
            Some(rest) if rest.starts_with('/') => {
                return Err(NameError::FileIsFolder { path: path() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Two paths that a file system which folds case takes for one, if there are any.
pub fn first_case_clash<'a>(
    paths: impl IntoIterator<Item = &'a RelPath>,
) -> Option<(&'a RelPath, &'a RelPath)> {
    let folded = paths.into_iter().map(|path| (path.as_str().to_lowercase(), path));
    let mut folded: Vec<(String, &RelPath)> = folded.collect();
    folded.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    folded.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| (pair[0].1, pair[1].1))
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    fn path(parts: &[&[u8]]) -> Result<String, NameError> {
        RelPath::new(parts.iter().copied()).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn what_leads_out_is_refused() {
        let long = [b'a'; 256];
        let cases: &[&[&[u8]]] = &[
            &[],
            &[b""],
            &[b"a", b""],
            &[b"."],
            &[b".."],
            &[b"a", b"..", b"b"],
            &[b"/etc/passwd"],
            &[b"a/../../b"],
            &[b"/"],
            &[b"a\0b"],
            &[b"\0"],
            &[&long],
            &[&[0xff; 100]], // 300 bytes once mapped
            &[&b"x"[..]; 33],
            &[&long[..255]; 17],
        ];
        for parts in cases {
            assert!(path(parts).is_err(), "{parts:?}");
        }
        assert_eq!(path(&[b"a", b".."]), Err(NameError::Traversal { name: "..".to_owned() }));
        assert_eq!(path(&[&long]), Err(NameError::ComponentTooLong { len_bytes: 256 }));
        assert_eq!(path(&[&b"x"[..]; 33]), Err(NameError::TooDeep));
        assert_eq!(path(&[&long[..255]; 17]), Err(NameError::PathTooLong));
        assert!(path(&[&long[..255]; 16]).is_ok() && path(&[&b"x"[..]; 32]).is_ok());
    }

    #[test]
    fn what_is_awkward_is_mapped() {
        let cases: &[(&[u8], &str)] = &[
            (b"..\\..\\x", "..%5C..%5Cx"),
            (b"C:\\x", "C:%5Cx"),
            (b"line\nbreak", "line%0Abreak"),
            (b"\x1b[31m", "%1B[31m"),
            (b"\x7f", "%7F"),
            ("\u{85}".as_bytes(), "%C2%85"),
            (b"\xff\xfe", "%FF%FE"),
            (b"ab\xc3", "ab%C3"),
            (b"\xc0\xae\xc0\xae", "%C0%AE%C0%AE"), // an overlong ".."
            (b"...", "..."),
            (b" ", " "),
            (b"~", "~"),
            (b"CON", "CON"),
            (b"aux.c", "aux.c"),
            (b"-rf", "-rf"),
            ("ümläut 日".as_bytes(), "ümläut 日"),
        ];
        for (raw, mapped) in cases {
            assert_eq!(path(&[raw]).as_deref(), Ok(*mapped));
        }
    }

    #[test]
    fn clashes_are_found() {
        let set = |paths: &[&str]| -> Vec<RelPath> {
            let split = |path: &&str| RelPath::new(path.split('/').map(str::as_bytes)).unwrap();
            paths.iter().map(split).collect()
        };
        let check = |paths: &[&str]| check_distinct(&set(paths));
        assert_eq!(check(&["a", "a-b", "a.b", "b/a", "b/b"]), Ok(()));
        assert_eq!(check(&["b", "a", "b"]), Err(NameError::Duplicate { path: "b".to_owned() }));
        // "a-b" sorts between "a" and "a/b" as text, but not as a tree.
        let both = Err(NameError::FileIsFolder { path: "a".to_owned() });
        assert_eq!(check(&["a/b", "a-b", "a"]), both);
        assert_eq!(check(&["a/b/c", "x", "a"]), both);
        assert_eq!(check(&["xt_DSCP.h", "xt_dscp.h"]), Ok(()));
        let linux = set(&["xt_DSCP.h", "z", "xt_dscp.h"]);
        assert!(first_case_clash(&linux).is_some());
        assert_eq!(first_case_clash(&linux[..2]), None);
    }

    proptest! {
        /// Whatever the name, the path has only normal components and stays below its folder.
        #[test]
        fn every_path_stays_inside(parts in proptest::collection::vec(
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..8), "[./\\\\a]{0,4}".prop_map(String::into_bytes)], 0..5,
        )) {
            let Ok(path) = RelPath::new(parts.iter().map(Vec::as_slice)) else { return Ok(()) };
            let components: Vec<_> = path.as_path().components().collect();
            prop_assert_eq!(components.len(), parts.len());
            prop_assert!(components.iter().all(|part| matches!(part, Component::Normal(_))));
            prop_assert!(!path.as_str().chars().any(char::is_control));
            prop_assert_eq!(path.components().count(), parts.len());
            // What was mapped maps to itself.
            let again = RelPath::new(path.components().map(str::as_bytes));
            prop_assert_eq!(again, Ok(path));
        }
    }
}
