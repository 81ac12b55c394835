//! The words between an engine and the program around it: what is added, what is told, what is asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringseed_core::magnet::InfoHashes;
use ringseed_core::metainfo::Metainfo;
use ringseed_core::select::SelectionError;
use thiserror::Error;

use crate::config::ConfigError;

/// A listing of one engine. Local: another engine, or the same one after a restart, gives another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListingId(pub u64);

/// What is known of the data when it is added.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Everything: the parsed metainfo, v1, v2 or hybrid.
    Metainfo(Arc<Metainfo>),
    /// Only the BitTorrent v2 info hash (SHA-256 of the info dict). The info dict comes from peers by
    /// BEP 9, the piece layers by BEP 52 hash requests, both checked against this hash. What was
    /// learned lies in the state folder, so that a restart does not ask again.
    V2([u8; 32]),
    /// Only the BitTorrent v1 info hash (SHA-1 of the info dict), never in a market. The info dict comes
    /// by BEP 9. Of a hybrid, the v1 view is all that is taken: it is all that the hash vouches for and
    /// all that peers of v1 can give.
    V1([u8; 20]),
    /// Both info hashes of a hybrid, as a magnet link gives them: [`Identity::V2`], found by its v1 name
    /// as well. An info dict must have both.
    Both([u8; 20], [u8; 32]),
}

impl Identity {
    /// The hashes that stand for an unknown info dict; `None` when it is known.
    pub fn asked_hashes(&self) -> Option<InfoHashes> {
        match self {
            Identity::Metainfo(_) => None,
            Identity::V1(v1) => Some(InfoHashes::V1(*v1)),
            Identity::V2(v2) => Some(InfoHashes::V2(*v2)),
            Identity::Both(v1, v2) => Some(InfoHashes::Both(*v1, *v2)),
        }
    }
}

impl From<InfoHashes> for Identity {
    fn from(hashes: InfoHashes) -> Self {
        match hashes {
            InfoHashes::V1(v1) => Identity::V1(v1),
            InfoHashes::V2(v2) => Identity::V2(v2),
            InfoHashes::Both(v1, v2) => Identity::Both(v1, v2),
        }
    }
}

/// Where the payload lies: the folder that *holds* the torrent's root name, as in every client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Ours: created, written, and removed with the listing when asked.
    Owned(PathBuf),
    /// The user's: opened for reading only, never written, moved or deleted.
    InPlace(PathBuf),
}

impl Place {
    /// The folder that holds the root name.
    pub fn folder(&self) -> &Path {
        match self {
            Place::Owned(folder) | Place::InPlace(folder) => folder,
        }
    }

    /// True when we may write and delete here.
    pub fn is_owned(&self) -> bool {
        matches!(self, Place::Owned(_))
    }
}

/// A listing for [`Engine::add`](crate::Engine::add). Adding what was there before resumes it: pieces
/// in the journal are kept, ranges that were being written when the process ended are hashed again,
/// and files without a journal record are checked whole.
#[derive(Clone, Debug)]
pub struct AddListing {
    /// What is known of the data.
    pub identity: Identity,
    /// Where it lies or shall lie.
    pub place: Place,
    /// Check the v1 view of a hybrid as well as the v2 view (BEP 52): true for candidates and `get`.
    /// False checks a hybrid by v2 alone. Without effect on v1-only and v2-only data.
    pub verify_v1: bool,
    /// The caller has just hashed the data, both views: no check, seed at once.
    pub known_complete: bool,
    /// Refuse a metainfo that describes more payload than this, in bytes.
    pub size_max_bytes: Option<u64>,
    /// Addresses to fetch from. Dialled with back-off as long as something is missing.
    pub peers: Vec<SocketAddr>,
    /// A listing of a market, for its members alone. Says so for the day when peers can be found by
    /// other means; the engine asks no tracker, DHT or peer exchange, so it changes nothing now.
    pub private_to_market: bool,
}

/// What the engine tells unasked, in order of happening.
#[derive(Clone, Debug)]
pub enum Event {
    /// The info dict and all piece layers are here and checked; only where a hash was all that was known.
    MetadataReady {
        /// Which listing.
        id: ListingId,
    },
    /// Every piece is verified (both views with `verify_v1`) *and* durable, the journal included.
    Complete {
        /// Which listing.
        id: ListingId,
    },
    /// The listing is given up; it stays until removed.
    Failed {
        /// Which listing.
        id: ListingId,
        /// Why.
        error: ListingError,
    },
    /// Answer to [`Engine::remove`](crate::Engine::remove).
    Removed {
        /// Which listing; the id means nothing any more.
        id: ListingId,
        /// Bytes given back to the file system; 0 when the data was kept or is the user's.
        freed_bytes: u64,
    },
    /// A peer sent what cannot be honest; its connection is closed and its id refused.
    PeerBanned {
        /// Where it came from.
        addr: SocketAddr,
        /// The id it claimed.
        peer_id: [u8; 20],
        /// What it did.
        reason: String,
    },
    /// The engine cannot go on (journal lost, driver failed). Nothing further is claimed or served.
    Fatal {
        /// Why.
        error: String,
    },
}

/// Why a listing was given up.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ListingError {
    /// The v2 view verifies and the v1 view does not: the hybrid describes two different payloads.
    /// Any holder of the data can reproduce it from these two values.
    #[error("v1 and v2 views disagree at piece {piece}: the data's SHA-1 is {}", hex(sha1_found))]
    ViewsDisagree {
        /// Index of the first piece found.
        piece: u32,
        /// SHA-1 of the bytes that v2 vouches for.
        sha1_found: [u8; 20],
    },
    /// The info dict describes more than the caller allows.
    #[error("payload of {size_bytes} bytes is over the cap of {size_max_bytes}")]
    TooLarge {
        /// Described by the info dict.
        size_bytes: u64,
        /// The cap given.
        size_max_bytes: u64,
    },
    /// The info dict has the right hash and is no torrent we accept.
    #[error("info dict refused: {reason}")]
    BadMetainfo {
        /// What the parser said.
        reason: String,
    },
    /// Files were selected that the torrent does not have.
    #[error("{0}")]
    Selection(SelectionError),
    /// Data of the user lacks pieces or differs; we never write there.
    #[error("{missing_pieces} of {piece_count} pieces are missing or differ in the given folder")]
    IncompleteInPlace {
        /// Pieces that did not verify.
        missing_pieces: u32,
        /// Pieces in all.
        piece_count: u32,
    },
    /// A path of the torrent cannot be used below the folder (a symlink in the way, a file where a
    /// folder should be).
    #[error("cannot use {path}: {reason}")]
    Path {
        /// Relative to the place.
        path: String,
        /// What the system said.
        reason: String,
    },
}

/// Why a call on the engine failed.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The configuration was refused.
    #[error("configuration refused: {0}")]
    Config(#[from] ConfigError),
    /// Another process uses the state folder.
    #[error("{} is in use by another process", path.display())]
    StateLocked {
        /// The state folder.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// What was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder of ours, or a place given by the caller, cannot be used.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried: "cannot create", "cannot read".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No driver runs here.
    #[error("no I/O driver: {reason}")]
    Driver {
        /// What each one said.
        reason: String,
    },
    /// The journal in the state folder is of a version this program does not read.
    #[error("journal refused: {reason}")]
    Journal {
        /// What is wrong with it.
        reason: String,
    },
    /// Already there under this id (same info hash).
    #[error("already added as listing {}", id.0)]
    Exists {
        /// The listing that has it.
        id: ListingId,
    },
    /// The metainfo describes more than `size_max_bytes`.
    #[error(transparent)]
    Refused(ListingError),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// Where a listing stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListingState {
    /// Complete, nobody is asking: a row and nothing else.
    Cold,
    /// Hashing what lies on disk.
    Checking,
    /// Waiting for the info dict or the piece layers.
    Metadata,
    /// Something is missing and wanted.
    Fetching,
    /// Complete and serving.
    Seeding,
    /// Cannot go on now; retried by itself. What is there is served.
    Waiting {
        /// Why.
        reason: WaitReason,
    },
    /// Given up.
    Failed {
        /// Why.
        error: ListingError,
    },
}

/// Why a listing waits. Each is retried with back-off, 1 to 30 s.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WaitReason {
    /// No space left where the payload goes.
    #[error("disk full")]
    DiskFull,
    /// The disk reported an error.
    #[error("disk error: {0}")]
    DiskError(String),
}

/// What one source has given to a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The peer's id in its handshake.
    pub peer_id: [u8; 20],
    /// Where it was last seen.
    pub addr: SocketAddr,
    /// Payload bytes from it that ended in a verified piece. Kept after it disconnects.
    pub verified_bytes: u64,
}

/// One listing, at the moment of asking.
#[derive(Clone, Debug)]
pub struct ListingStatus {
    /// Where it stands.
    pub state: ListingState,
    /// Bytes of verified pieces, pads excluded.
    pub have_bytes: u64,
    /// Bytes in all, pads excluded; 0 while the info dict is unknown.
    pub total_bytes: u64,
    /// Bytes of the pieces that are wanted, pads excluded: all of them unless files were selected.
    pub wanted_bytes: u64,
    /// Verified pieces.
    pub have_pieces: u32,
    /// Pieces in all; 0 while the info dict is unknown.
    pub piece_count: u32,
    /// Of `have_pieces`, those that are synced and journalled.
    pub durable_pieces: u32,
    /// Who gave how much since the listing was added to this engine, by peer id.
    pub sources: Vec<SourceStatus>,
    /// Shards that have a part in it: more than one for a huge listing that is being fetched or served.
    pub shards: u32,
    /// Connections now.
    pub peers: u32,
    /// Payload bytes sent to peers.
    pub sent_bytes: u64,
    /// Payload bytes received that were not needed or did not verify.
    pub wasted_bytes: u64,
}

/// Caps on payload, in bytes per second; `None` is no cap. Rates below one block (16 KiB) per second are
/// taken as one block per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// What is sent.
    pub upload: Option<u64>,
    /// What is received.
    pub download: Option<u64>,
}

/// What a cap is on. Payload counts for every scope that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The engine.
    All,
    /// The market's members together, see [`Engine::set_members`](crate::Engine::set_members).
    Members,
    /// All other peers together.
    Others,
    /// One listing.
    Listing(ListingId),
}

impl ListingStatus {
    /// Adds what another shard has done for the listing; how far it is its home knows alone.
    pub(crate) fn add_part(&mut self, part: ListingStatus) {
        self.shards += 1;
        // What one shard waits for the listing waits for.
        if self.state == ListingState::Fetching
            && matches!(part.state, ListingState::Waiting { .. })
        {
            self.state = part.state;
        }
        self.peers += part.peers;
        self.sent_bytes += part.sent_bytes;
        self.wasted_bytes += part.wasted_bytes;
        for source in part.sources {
            let is_it = |known: &&mut SourceStatus| {
                known.peer_id == source.peer_id && known.addr.ip() == source.addr.ip()
            };
            match self.sources.iter_mut().find(is_it) {
                Some(known) => known.verified_bytes += source.verified_bytes,
                None => self.sources.push(source),
            }
        }
    }
}

/// The engine, at the moment of asking. Counters only grow; rates are over the last second or so.
#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    /// The driver that runs: `uring`, `epoll`.
    pub driver: &'static str,
    /// Bytes received on sockets, overhead included.
    pub received_bytes: u64,
    /// Bytes sent on sockets, overhead included.
    pub sent_bytes: u64,
    /// Payload bytes sent.
    pub payload_sent_bytes: u64,
    /// Payload bytes received that ended in verified pieces.
    pub payload_verified_bytes: u64,
    /// Payload bytes received for nothing: duplicates, unasked, corrupt.
    pub wasted_bytes: u64,
    /// Payload bytes written to files.
    pub stored_bytes: u64,
    /// Payload bytes read for serving out of our own cache.
    pub read_cache_bytes: u64,
    /// Payload bytes read through the page cache for peers.
    pub read_page_cache_bytes: u64,
    /// Payload bytes read by O_DIRECT for peers.
    pub read_direct_bytes: u64,
    /// Bytes put through SHA-1 and SHA-256 by the shard.
    pub hashed_bytes: u64,
    /// Batches of whole pieces put through SHA-1 together.
    pub hash_calls: u64,
    /// Pieces in those batches: divided by `hash_calls`, how many lanes were busy.
    pub hash_messages: u64,
    /// Connections now.
    pub peers: u64,
    /// Connections that ended since the start, by a word for the reason (`duplicate`,
    /// `handshake-timeout`, `flood-requests`, `address-full`, ...). The words stay the same over versions.
    pub closed: BTreeMap<&'static str, u64>,
    /// Listings known.
    pub listings: u64,
    /// Listings that are not cold.
    pub listings_active: u64,
    /// Arena bytes lent out now.
    pub arena_in_use_bytes: u64,
    /// Arena bytes in all.
    pub arena_capacity_bytes: u64,
    /// How often something waited because the arena was all lent.
    pub arena_waits: u64,
    /// Payload bytes/s received.
    pub download_rate: u64,
    /// Payload bytes/s sent.
    pub upload_rate: u64,
    /// Connections that went from the shard that accepted them to the one whose listing they wanted.
    pub moved_connections: u64,
    /// What each shard has done, in order; everything above is of all of them.
    pub shards: Vec<ShardStatus>,
}

/// What one shard has done since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which loop it runs on: `uring` or `epoll`.
    pub driver: &'static str,
    /// Payload bytes received.
    pub payload_received_bytes: u64,
    /// Payload bytes sent.
    pub payload_sent_bytes: u64,
    /// Connections now.
    pub peers: u64,
    /// Listings that are its own.
    pub listings: u64,
    /// Of these, not cold.
    pub listings_active: u64,
    /// Bytes of its part of the arena lent out now.
    pub arena_in_use_bytes: u64,
}

/// Lower-case hex for error texts.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
