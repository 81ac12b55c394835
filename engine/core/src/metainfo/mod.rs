//! What a torrent says about itself: parsing, checking and making metainfo (BEP 3, 47, 52).
//!
//! [`Info`] is the info dictionary: what the info hash covers, and all that BEP 9 brings.
//! [`Metainfo`] adds what stands around it in a `.torrent` file, above all the piece layers. Every
//! rule is checked when either is made, so that code that holds one need not check again.

pub mod create;
mod info;
pub mod names;
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

pub use self::info::{FileEntry, Info, truncate};
use crate::bencode::{BencodeError, Document, Encoder, KeyOrder, Limits, Value};
use crate::geometry::{GeometryError, PieceIndex};
use crate::merkle::{self, Hash};

/// Longest info dictionary, in bytes.
pub const INFO_LEN_MAX: usize = 48 * 1024 * 1024;
/// Longest `.torrent` file, in bytes.
pub const METAINFO_LEN_MAX: usize = 128 * 1024 * 1024;

/// What a `.torrent` file may cost to decode. A path of [`names::DEPTH_MAX`] components in a file
/// tree takes four more levels: the file, the info dictionary, the tree, the file's properties.
/// Eight million values are more than fit an info dictionary of useful entries, and 96 MiB.
const LIMITS: Limits =
    Limits { len_max_bytes: METAINFO_LEN_MAX, depth_max: 40, token_max: 8_000_000 };
/// Tracker addresses that are kept; nobody here contacts them.
const TRACKERS_MAX: usize = 1000;

/// Why bytes are no metainfo that we take.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MetainfoError {
    /// Not bencoded, or past a limit.
    #[error("metainfo is not bencoded: {0}")]
    Bencode(#[from] BencodeError),
    /// The info dictionary is too long.
    #[error("info dictionary of {len_bytes} bytes is longer than {INFO_LEN_MAX}")]
    InfoTooLong {
        /// Its length, in bytes.
        len_bytes: usize,
    },
    /// A key that must be there is not.
    #[error("key {key:?} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key has a value of the wrong type, length or range.
    #[error("value of key {key:?} is wrong")]
    WrongValue {
        /// The key.
        key: &'static str,
    },
    /// A `meta version` that we do not know.
    #[error("meta version {found} is not 2")]
    MetaVersion {
        /// The version.
        found: i64,
    },
    /// A torrent with a v2 view whose keys are out of order.
    #[error("key at byte {offset} is out of order in a v2 torrent")]
    NotCanonical {
        /// Where the key begins, in bytes.
        offset: usize,
    },
    /// Neither a v1 view nor a v2 view is there, or only half of one.
    #[error("torrent has {0}")]
    View(&'static str),
    /// A name that we do not take.
    #[error("bad name: {0}")]
    Name(#[from] names::NameError),
    /// Lengths or limits that make no torrent.
    #[error("bad layout: {0}")]
    Geometry(#[from] GeometryError),
    /// A symbolic link (BEP 47). We never make links that a stranger asked for.
    #[error("file {file_index} is a symbolic link")]
    Symlink {
        /// Position in the list of files.
        file_index: usize,
    },
    /// `pieces` has not 20 bytes per piece.
    #[error("pieces has {found_bytes} bytes instead of {expected_bytes}")]
    PiecesLen {
        /// What the piece count asks for, in bytes.
        expected_bytes: u64,
        /// What is there, in bytes.
        found_bytes: usize,
    },
    /// The file tree breaks a rule of BEP 52.
    #[error("file tree: {reason}")]
    FileTree {
        /// Which rule.
        reason: &'static str,
    },
    /// One pieces root stands for files with different numbers of pieces.
    #[error("a pieces root is shared by files of different length")]
    RootShared,
    /// The v1 list of a hybrid and its v2 tree do not describe the same files.
    #[error("hybrid: entry {file_index} of the v1 list {reason}")]
    Hybrid {
        /// Position in the v1 list.
        file_index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A piece layer of a root that no file with a layer has.
    #[error("piece layer of an unknown root")]
    LayerUnknown {
        /// The root.
        root: Hash,
    },
    /// A piece layer of the wrong length.
    #[error("piece layer of {found_bytes} bytes instead of {expected_bytes}")]
    LayerLen {
        /// 32 bytes per piece of the file.
        expected_bytes: usize,
        /// What came, in bytes.
        found_bytes: usize,
    },
    /// A piece layer that does not hash to its root.
    #[error("piece layer does not lead to its root")]
    LayerMismatch {
        /// The root.
        root: Hash,
    },
}

/// A torrent: the info dictionary, the piece layers of its files, and what else a `.torrent` file
/// says. Cloning is cheap but for the table of layers; the hashes are shared.
#[derive(Clone, Debug)]
pub struct Metainfo {
    info: Arc<Info>,
    layers: BTreeMap<Hash, Arc<[u8]>>,
    announce: Option<String>,
    announce_tiers: Vec<Vec<String>>,
    comment: Option<String>,
    created_by: Option<String>,
    creation_date: Option<i64>,
    first_unsorted: Option<usize>,
}

impl Metainfo {
    /// Reads a `.torrent` file.
    ///
    /// Piece layers that are there must be right; which are not there is told by
    /// [`Metainfo::missing_layers`], for peers can bring them. A v1 torrent may have keys out of
    /// order, see [`Metainfo::first_unsorted`].
    ///
    /// # Errors
    /// [`MetainfoError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let document = Document::parse(bytes, LIMITS, KeyOrder::Lenient)?;
        let root = document.root();
        root.as_dict().ok_or(MetainfoError::WrongValue { key: "" })?;
        let info = root.get(b"info").ok_or(MetainfoError::Missing { key: "info" })?;
        let info = Info::from_value(info)?;
        if let Some(offset) = document.first_unsorted().filter(|_| info.kind().has_v2()) {
            return Err(MetainfoError::NotCanonical { offset });
        }
        let mut metainfo = Self::from_info(info);
        metainfo.first_unsorted = document.first_unsorted();
        if let Some(layers) = root.get(b"piece layers").filter(|_| metainfo.info.kind().has_v2()) {
            let wrong = MetainfoError::WrongValue { key: "piece layers" };
            for (root, layer) in layers.as_dict().ok_or(wrong.clone())? {
                let root = Hash::try_from(root).map_err(|_| wrong.clone())?;
                metainfo.add_layer(&root, layer.as_bytes().ok_or(wrong.clone())?)?;
            }
        }
        // The rest is for people and trackers: what is malformed there is left out.
        let text = |value: Value<'_, '_>| {
            value.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
        };
        metainfo.announce = root.get(b"announce").and_then(text);
        metainfo.comment = root.get(b"comment").and_then(text);
        metainfo.created_by = root.get(b"created by").and_then(text);
        metainfo.creation_date = root.get(b"creation date").and_then(|value| value.as_int());
        let mut left = TRACKERS_MAX;
        let tiers = root.get(b"announce-list").and_then(|value| value.as_list());
        for tier in tiers.into_iter().flatten() {
            let urls = tier.as_list().into_iter().flatten().filter_map(text).take(left);
            let urls: Vec<String> = urls.collect();
            left -= urls.len();
            if !urls.is_empty() {
                metainfo.announce_tiers.push(urls);
            }
        }
        Ok(metainfo)
    }

    /// This torrent with its v1 view alone, see [`Info::v1_view`]; `None` without one.
    pub fn v1_view(&self) -> Option<Self> {
        let info = Arc::new(self.info.v1_view()?);
        Some(Self { info, layers: BTreeMap::new(), ..self.clone() })
    }

    /// A torrent of which only the info dictionary is known, as BEP 9 gives it.
    pub fn from_info(info: Info) -> Self {
        Self {
            info: Arc::new(info),
            layers: BTreeMap::new(),
            announce: None,
            announce_tiers: Vec::new(),
            comment: None,
            created_by: None,
            creation_date: None,
            first_unsorted: None,
        }
    }

    /// Adds the piece layer of all files with this root, after checking it. One that is there
    /// already is left as it is.
    ///
    /// # Errors
    /// [`MetainfoError::LayerUnknown`], [`MetainfoError::LayerLen`] or
    /// [`MetainfoError::LayerMismatch`]: the fault of whoever sent it.
    pub fn add_layer(&mut self, root: &Hash, layer: &[u8]) -> Result<(), MetainfoError> {
        let unknown = MetainfoError::LayerUnknown { root: *root };
        let piece_count = self.info.layer_len(root).ok_or(unknown)?;
        let expected_bytes = piece_count as usize * 32;
        if layer.len() != expected_bytes {
            return Err(MetainfoError::LayerLen { expected_bytes, found_bytes: layer.len() });
        }
        if self.layers.contains_key(root) {
            return Ok(());
        }
        let (nodes, _) = layer.as_chunks::<32>();
        if merkle::root_from_layer(nodes, self.info.piece_layer_number()) != *root {
            return Err(MetainfoError::LayerMismatch { root: *root });
        }
        self.layers.insert(*root, layer.into());
        Ok(())
    }

    /// The info dictionary.
    pub fn info(&self) -> &Arc<Info> {
        &self.info
    }

    /// The piece layer under a root, if it is known.
    pub fn layer(&self, root: &Hash) -> Option<&[Hash]> {
        self.layers.get(root).map(|layer| layer.as_chunks().0)
    }

    /// Roots of files longer than a piece whose layer is not known yet, each once.
    pub fn missing_layers(&self) -> impl Iterator<Item = Hash> + '_ {
        self.info.layer_roots().filter(|root| !self.layers.contains_key(root))
    }

    /// What the leaves of a piece must hash to: its node of the piece layer or, for a file of at
    /// most one piece, the pieces root. `None` without a v2 view, of a piece that lies wholly in a
    /// pad, or while the layer is missing. [`merkle::piece_root`] makes the other side.
    pub fn v2_piece_hash(&self, piece: PieceIndex) -> Option<Hash> {
        let (file, in_file) = self.info.geometry().piece_in_file(piece)?;
        let root = self.info.files()[file.get() as usize].pieces_root?;
        if self.info.geometry().file_len(file) <= u64::from(self.info.piece_len_bytes()) {
            return Some(root);
        }
        self.layer(&root)?.get(in_file as usize).copied()
    }

    /// The tracker of BEP 3. Kept, never contacted.
    pub fn announce(&self) -> Option<&str> {
        self.announce.as_deref()
    }

    /// The tracker tiers of BEP 12. Kept, never contacted.
    pub fn announce_tiers(&self) -> &[Vec<String>] {
        &self.announce_tiers
    }

    /// What the maker of the torrent remarked.
    pub fn comment(&self) -> Option<&str> {
        self.comment.as_deref()
    }

    /// The program that made the torrent.
    pub fn created_by(&self) -> Option<&str> {
        self.created_by.as_deref()
    }

    /// When the torrent was made, in seconds since 1970, as its maker says.
    pub fn creation_date(&self) -> Option<i64> {
        self.creation_date
    }

    /// Where the first key out of order begins, in bytes of the file; `None` if it was canonical.
    pub fn first_unsorted(&self) -> Option<usize> {
        self.first_unsorted
    }

    /// Sets the remark. It is outside of the info hash.
    pub fn set_comment(&mut self, comment: Option<String>) {
        self.comment = comment;
    }

    /// Sets the program that made the torrent. It is outside of the info hash.
    pub fn set_created_by(&mut self, created_by: Option<String>) {
        self.created_by = created_by;
    }

    /// Sets the tracker tiers (BEP 12), and the tracker of BEP 3 to the first of them.
    pub fn set_announce_tiers(&mut self, tiers: Vec<Vec<String>>) {
        self.announce = tiers.iter().flatten().next().cloned();
        self.announce_tiers = tiers;
    }

    /// The `.torrent` file. The info dictionary comes out byte for byte as it went in; keys that we
    /// do not know are not kept around it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.dict();
        if let Some(announce) = &self.announce {
            out.key(b"announce").bytes(announce.as_bytes());
        }
        if !self.announce_tiers.is_empty() {
            out.key(b"announce-list").list();
            for tier in &self.announce_tiers {
                out.list();
                for url in tier {
                    out.bytes(url.as_bytes());
                }
                out.end();
            }
            out.end();
        }
        if let Some(comment) = &self.comment {
            out.key(b"comment").bytes(comment.as_bytes());
        }
        if let Some(created_by) = &self.created_by {
            out.key(b"created by").bytes(created_by.as_bytes());
        }
        if let Some(creation_date) = self.creation_date {
            out.key(b"creation date").int(creation_date);
        }
        out.key(b"info").raw(self.info.raw());
        // BEP 52 wants the key even if no file is longer than a piece.
        if self.info.kind().has_v2() {
            out.key(b"piece layers").dict();
            for (root, layer) in &self.layers {
                out.key(root).bytes(layer);
            }
            out.end();
        }
        out.end();
        out.finish()
    }
}

#[cfg(test)]
mod tests;
