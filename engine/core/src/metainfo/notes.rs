//! What is odd about a torrent that is taken all the same, for whoever uses it to know.

use std::fmt;

use super::Metainfo;
use super::names::{self, RelPath};

/// An oddity of a torrent; shown to people as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Keys are out of order (BEP 3 wants them sorted); old v1 torrents have it. The info hash is
    /// that of the bytes as they are.
    UnsortedKeys {
        /// Where the first such key begins, in bytes of the file.
        offset: usize,
    },
    /// There are symbolic links (BEP 47). They are not made.
    Links {
        /// How many.
        count: u32,
    },
    /// Two names differ only in case: a file system that folds case has room for only one of them.
    CaseClash {
        /// One path.
        first: RelPath,
        /// The other.
        second: RelPath,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::UnsortedKeys { offset } => {
                write!(f, "keys are out of order, the first at byte {offset}: taken as it is")
            }
            Note::Links { count: 1 } => write!(f, "a symbolic link is left out"),
            Note::Links { count } => write!(f, "{count} symbolic links are left out"),
            Note::CaseClash { first, second } => {
                write!(f, "{first} and {second} differ only in case")
            }
        }
    }
}

impl Metainfo {
    /// What is odd about the torrent. Walks over all names.
    pub fn notes(&self) -> Vec<Note> {
        let offset = self.first_unsorted();
        let mut notes: Vec<Note> =
            offset.map(|offset| Note::UnsortedKeys { offset }).into_iter().collect();
        let count = self.info().link_count();
        notes.extend((count > 0).then_some(Note::Links { count }));
        let files = self.info().files().filter(|file| !file.pad);
        let paths: Vec<RelPath> = files.map(|file| file.path()).collect();
        if let Some((first, second)) = names::first_case_clash(&paths) {
            notes.push(Note::CaseClash { first: first.clone(), second: second.clone() });
        }
        notes
    }
}
