//! The peer wire protocol, without I/O.
//!
//! [`link::Link`] is the framing of one connection and [`channel::Channel`] one torrent's
//! conversation on it. A stock connection is a link with one channel; nothing may assume that a
//! connection is a torrent. [`metadata`] and [`hashes`] fetch what a torrent's identity promises but
//! does not hold: the info dict and the hash layers.
//!
//! Sources: BEP 3, 6 (fast), 9 (metadata), 10 (extensions), 20 (peer ids), 21 (upload only), 52 (v2),
//! 54 (don't have).

pub mod channel;
pub mod error;
pub mod extension;
pub mod fast;
pub mod handshake;
pub mod hashes;
pub mod link;
pub mod message;
pub mod metadata;
pub mod plan;

pub use channel::{Channel, ChannelConfig, ChannelEvent, Kept};
pub use error::{Blame, LinkError};
pub use extension::ExtendedHandshake;
pub use handshake::{Handshake, PeerId, Reserved, WireId};
pub use hashes::HashFetch;
pub use link::{Link, LinkConfig, LinkEvent};
pub use message::HashRequest;
pub use metadata::MetadataFetch;
pub use plan::{ChannelId, GatherItem, GatherList, Landed, PlanSlot, ReceivePlan};
