//! What a torrent says about itself: parsing, checking and making metainfo (BEP 3, 47, 52).
//!
//! [`Info`] is the info dictionary: what the info hash covers, and all that BEP 9 brings.
//! [`Metainfo`] adds what stands around it in a `.torrent` file, above all the piece layers. Every
//! rule is checked when either is made, so that code that holds one need not check again.

pub mod create;
mod distinct;
mod files;
mod info;
mod list;
pub mod names;
mod notes;
mod read;
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

pub use self::files::{FileEntry, Files};
use self::info::Fields;
pub use self::info::{Info, truncate};
pub use self::notes::Note;
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
    /// A symbolic link that has a length (BEP 47: it is always zero).
    #[error("file {file_index} is a symbolic link with a length")]
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
/// says. Cloning is cheap: the bytes that were parsed are shared, and they are most of it.
#[derive(Clone, Debug)]
pub struct Metainfo {
    info: Arc<Info>,
    /// The bytes that `info` keeps are a whole `.torrent` file, and nothing was changed since.
    is_as_parsed: bool,
    /// Where the layers of [`Info::layer_roots`] lie in these bytes, 0 for those that are not there.
    layers_at: Arc<[u32]>,
    /// Layers that came later.
    layers_added: BTreeMap<Hash, Arc<[u8]>>,
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
        Self::from_bytes(bytes.to_vec())
    }

    /// As [`Metainfo::parse`], keeping the bytes instead of copying them: besides them a v1 torrent
    /// takes about five bytes per file, and as many again while files in no order are read.
    ///
    /// # Errors
    /// [`MetainfoError`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, MetainfoError> {
        let document = Document::parse(&bytes, LIMITS, KeyOrder::Lenient)?;
        let outer = Outer::read(&document)?;
        let info = outer.info.ok_or(MetainfoError::Missing { key: "info" })?;
        let fields = Fields::read(&bytes, &document, info)?;
        let layers_at = read_layers(&bytes, &fields, outer.piece_layers)?;
        // The rest is for people and trackers: what is malformed there is left out.
        let text = |value: Value<'_>| {
            value.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
        };
        let mut announce_tiers = Vec::new();
        let mut left = TRACKERS_MAX;
        let tiers = outer.announce_list.and_then(|value| value.as_list());
        for tier in tiers.into_iter().flatten() {
            let urls = tier.as_list().into_iter().flatten().filter_map(text).take(left);
            let urls: Vec<String> = urls.collect();
            left -= urls.len();
            if !urls.is_empty() {
                announce_tiers.push(urls);
            }
        }
        let announce = outer.announce.and_then(text);
        let comment = outer.comment.and_then(text);
        let created_by = outer.created_by.and_then(text);
        let creation_date = outer.creation_date.and_then(|value| value.as_int());
        let first_unsorted = document.first_unsorted();
        drop(document);
        Ok(Self {
            info: Arc::new(Info::new(bytes, fields)?),
            is_as_parsed: true,
            layers_at: layers_at.into(),
            layers_added: BTreeMap::new(),
            announce,
            announce_tiers,
            comment,
            created_by,
            creation_date,
            first_unsorted,
        })
    }

    /// This torrent with its v1 view alone, see [`Info::v1_view`]; `None` without one.
    pub fn v1_view(&self) -> Option<Self> {
        let info = Arc::new(self.info.v1_view()?);
        let (layers_at, layers_added) = ([].into(), BTreeMap::new());
        Some(Self { info, is_as_parsed: false, layers_at, layers_added, ..self.clone() })
    }

    /// A torrent of which only the info dictionary is known, as BEP 9 gives it.
    pub fn from_info(info: Info) -> Self {
        let layer_count = info.layer_roots().len();
        Self {
            layers_at: vec![0; layer_count].into(),
            info: Arc::new(info),
            is_as_parsed: false,
            layers_added: BTreeMap::new(),
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
        let piece_count = self.info.layer_len(root);
        check_layer_len(root, piece_count, layer)?;
        if self.layer(root).is_some() {
            return Ok(());
        }
        check_layer(root, layer, self.info.piece_layer_number())?;
        self.is_as_parsed = false;
        self.layers_added.insert(*root, layer.into());
        Ok(())
    }

    /// The info dictionary.
    pub fn info(&self) -> &Arc<Info> {
        &self.info
    }

    /// The piece layer under a root, if it is known.
    pub fn layer(&self, root: &Hash) -> Option<&[Hash]> {
        let at = self.info.layer_index(root)?;
        if self.layers_at[at] == 0 {
            return self.layers_added.get(root).map(|layer| layer.as_chunks().0);
        }
        let layer = &self.info.bytes()[self.layers_at[at] as usize..];
        Some(&layer.as_chunks().0[..self.info.layer_len(root)? as usize])
    }

    /// Roots of files longer than a piece whose layer is not known yet, each once.
    pub fn missing_layers(&self) -> impl Iterator<Item = Hash> + '_ {
        let roots = self.info.layer_roots().zip(self.layers_at.iter());
        let absent = roots.filter(|(_, at)| **at == 0).map(|(root, _)| root);
        absent.filter(|root| !self.layers_added.contains_key(root))
    }

    /// What the leaves of a piece must hash to: its node of the piece layer or, for a file of at
    /// most one piece, the pieces root. `None` without a v2 view, of a piece that lies wholly in a
    /// pad, or while the layer is missing. [`merkle::piece_root`] makes the other side.
    pub fn v2_piece_hash(&self, piece: PieceIndex) -> Option<Hash> {
        let (file, in_file) = self.info.geometry().piece_in_file(piece)?;
        let root = self.info.file(file).pieces_root?;
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
        self.is_as_parsed = false;
        self.comment = comment;
    }

    /// Sets the program that made the torrent. It is outside of the info hash.
    pub fn set_created_by(&mut self, created_by: Option<String>) {
        self.is_as_parsed = false;
        self.created_by = created_by;
    }

    /// Sets the tracker tiers (BEP 12), and the tracker of BEP 3 to the first of them.
    pub fn set_announce_tiers(&mut self, tiers: Vec<Vec<String>>) {
        self.is_as_parsed = false;
        self.announce = tiers.iter().flatten().next().cloned();
        self.announce_tiers = tiers;
    }

    /// The `.torrent` file. One that was parsed and not changed comes out byte for byte as it went
    /// in. Of any other the info dictionary does; what stands around it is written canonically, and
    /// keys that we do not know are kept.
    pub fn encode(&self) -> Vec<u8> {
        if self.is_as_parsed {
            return self.info.bytes().to_vec();
        }
        let mut entries = self.foreign_entries();
        let mut add = |key: &[u8], write: &dyn Fn(&mut Encoder)| {
            let mut out = Encoder::new();
            write(&mut out);
            entries.insert(key.to_vec(), out.finish());
        };
        let text = |text: &Option<String>| text.as_ref().map(|text| text.as_bytes().to_vec());
        let texts = [
            (&b"announce"[..], text(&self.announce)),
            (b"comment", text(&self.comment)),
            (b"created by", text(&self.created_by)),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                add(key, &|out| {
                    out.bytes(&text);
                });
            }
        }
        if !self.announce_tiers.is_empty() {
            add(b"announce-list", &|out| {
                out.list();
                for tier in &self.announce_tiers {
                    out.list();
                    for url in tier {
                        out.bytes(url.as_bytes());
                    }
                    out.end();
                }
                out.end();
            });
        }
        if let Some(creation_date) = self.creation_date {
            add(b"creation date", &|out| {
                out.int(creation_date);
            });
        }
        add(b"info", &|out| {
            out.raw(self.info.raw());
        });
        // BEP 52 wants the key even if no file is longer than a piece.
        if self.info.kind().has_v2() {
            add(b"piece layers", &|out| {
                out.dict();
                for root in self.info.layer_roots() {
                    if let Some(layer) = self.layer(&root) {
                        out.key(&root).bytes(layer.as_flattened());
                    }
                }
                out.end();
            });
        }
        let mut out = Encoder::new();
        out.dict();
        for (key, value) in &entries {
            out.key(key).raw(value);
        }
        out.end();
        out.finish()
    }

    /// The keys around the info dictionary that mean nothing to us, with their values as they came.
    fn foreign_entries(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let bytes = self.info.bytes();
        if bytes.len() == self.info.raw().len() {
            return BTreeMap::new(); // nothing stands around it
        }
        let entries = Value::at(bytes, 0).as_dict().into_iter().flatten();
        let foreign = entries.filter(|(key, _)| !KNOWN_KEYS.contains(key));
        foreign.map(|(key, value)| (key.to_vec(), value.raw().to_vec())).collect()
    }
}

/// Keys of a `.torrent` file that [`Metainfo`] holds the values of.
const KNOWN_KEYS: [&[u8]; 7] = [
    b"announce",
    b"announce-list",
    b"comment",
    b"created by",
    b"creation date",
    b"info",
    b"piece layers",
];

/// The values of [`KNOWN_KEYS`], as they came.
#[derive(Default)]
struct Outer<'a> {
    announce: Option<Value<'a>>,
    announce_list: Option<Value<'a>>,
    comment: Option<Value<'a>>,
    created_by: Option<Value<'a>>,
    creation_date: Option<Value<'a>>,
    info: Option<Value<'a>>,
    piece_layers: Option<Value<'a>>,
}

impl<'a> Outer<'a> {
    fn read(document: &Document<'a>) -> Result<Self, MetainfoError> {
        let mut outer = Self::default();
        let entries = document.entries_of(document.root());
        for (key, value) in entries.ok_or(MetainfoError::WrongValue { key: "" })? {
            let slot = match key {
                b"announce" => &mut outer.announce,
                b"announce-list" => &mut outer.announce_list,
                b"comment" => &mut outer.comment,
                b"created by" => &mut outer.created_by,
                b"creation date" => &mut outer.creation_date,
                b"info" => &mut outer.info,
                b"piece layers" => &mut outer.piece_layers,
                _ => continue,
            };
            *slot = Some(value);
        }
        Ok(outer)
    }
}

/// Checks the layers that a `.torrent` file brings, and tells where they lie.
fn read_layers(
    bytes: &[u8],
    fields: &Fields,
    layers: Option<Value<'_>>,
) -> Result<Vec<u32>, MetainfoError> {
    let mut layers_at = vec![0; fields.layer_count()];
    let Some(layers) = layers.filter(|_| fields.kind().has_v2()) else { return Ok(layers_at) };
    let wrong = MetainfoError::WrongValue { key: "piece layers" };
    for (root, value) in layers.as_dict().ok_or(wrong.clone())? {
        let root = Hash::try_from(root).map_err(|_| wrong.clone())?;
        let layer = value.as_bytes().ok_or(wrong.clone())?;
        let known = fields.layer_index(bytes, &root);
        check_layer_len(&root, known.map(|(_, piece_count)| piece_count), layer)?;
        check_layer(&root, layer, fields.piece_layer_number())?;
        if let Some((at, _)) = known {
            layers_at[at] = (value.span().end - layer.len()) as u32;
        }
    }
    Ok(layers_at)
}

/// `piece_count` is that of the files with this root, if there are any that have a layer.
fn check_layer_len(
    root: &Hash,
    piece_count: Option<u32>,
    layer: &[u8],
) -> Result<(), MetainfoError> {
    let piece_count = piece_count.ok_or(MetainfoError::LayerUnknown { root: *root })?;
    let expected_bytes = piece_count as usize * 32;
    let found_bytes = layer.len();
    let wrong = MetainfoError::LayerLen { expected_bytes, found_bytes };
    if found_bytes == expected_bytes { Ok(()) } else { Err(wrong) }
}

fn check_layer(root: &Hash, layer: &[u8], layer_number: u32) -> Result<(), MetainfoError> {
    let (nodes, _) = layer.as_chunks::<32>();
    let is_right = merkle::root_from_layer(nodes, layer_number) == *root;
    if is_right { Ok(()) } else { Err(MetainfoError::LayerMismatch { root: *root }) }
}

#[cfg(test)]
mod tests;
