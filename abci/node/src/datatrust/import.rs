//! `listing add`: hashes a file or folder while copying it (or leaves it where it lies), and offers
//! it to the market.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringseed_core::geometry::Kind;
use ringseed_core::metainfo::Metainfo;
use ringseed_engine::offline::IoMode;
use ringseed_engine::{AddListing, EngineError, Identity, ListingId, Place};
use ringseed_ledger::{DataHash, InfoHashV1, LISTING_NAME_LEN_MAX, Offer, TxBody};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::book::{Entry, Hash, Stand};
use super::{Datatrust, engine_error};
use crate::error::{Code, Error, Result};
use crate::hashing::{self, Options};
use crate::{preflight, units};

/// Folders of imports that are not finished begin like this; a start removes them.
pub(super) const PREFIX: &str = "import-";
/// How long an offer waits for its block.
const WAIT: Duration = Duration::from_secs(60);

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Hashes, imports and offers `path`. The source is opened for reading only.
///
/// # Errors
/// Whatever is wrong with the source; [`Code::NoSpace`]; [`Code::Refused`] when the ledger does not
/// take the offer, and then nothing of it is left here.
pub(super) fn add(
    trust: &Arc<Datatrust>,
    path: &Path,
    in_place: bool,
    progress: impl FnMut(u64, u64),
) -> Result<Value> {
    let found = hashing::find(path)?;
    let inside = |folder: &Path| found.parent.join(&found.name).starts_with(folder);
    if inside(&trust.payload) {
        return Err(Error::new(Code::BadValue, format!("{} is payload already", path.display()))
            .cure("ringseed listing ls"));
    }
    let listing_max = trust.chain.driver().view().params().listing_size_max_bytes;
    if found.len_bytes > listing_max {
        return Err(Error::new(Code::Refused, "the data is larger than the market allows").why(
            format!("{} of at most {}", units::bytes(found.len_bytes), units::bytes(listing_max)),
        ));
    }
    let staging = (!in_place)
        .then(|| {
            let reserve = units::parse_bytes(&trust.config.storage.reserve)?;
            let free = preflight::free_bytes(&trust.payload)?.saturating_sub(reserve);
            if found.len_bytes > free {
                return Err(Error::new(
                    Code::NoSpace,
                    format!("no room for a copy of {}", units::bytes(found.len_bytes)),
                )
                .why(format!("{} are free above the reserve", units::bytes(free)))
                .cure("add --in-place to serve it from where it lies"));
            }
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let folder = trust.payload.join(format!("{PREFIX}{number}"));
            std::fs::create_dir(&folder).map_err(|e| Error::io("create", &folder, e))?;
            Ok(Staging(folder))
        })
        .transpose()?;
    let options =
        Options { kind: Kind::Hybrid, piece_len_bytes: None, is_private: false, io: IoMode::Auto };
    let copy_to = staging.as_ref().map(|staging| staging.0.as_path());
    let leaves = trust.engine.new_leaf_file();
    let leaves = leaves.inspect_err(|error| warn!(%error, "no leaf sidecar can be written")).ok();
    let metainfo = hashing::make_with_leaves(
        &found,
        options,
        copy_to,
        leaves.clone(),
        &trust.interrupt,
        progress,
    )?;
    let metainfo = Arc::new(metainfo);
    let offer = offer_of(&metainfo)?;
    let hash = offer.infohash_v2.0;
    let is_listed = {
        let view = trust.chain.driver().view();
        view.listing(&offer.infohash_v2).is_some() || view.candidate(&offer.infohash_v2).is_some()
    };
    if is_listed {
        return Err(Error::new(Code::Refused, "the market has this data already")
            .why(format!("its infohash is {}", units::hex(&hash)))
            .cure(format!("ringseed listing show {}", units::hex(&hash))));
    }
    let place = take_place(trust, &hash, staging, in_place.then_some(&found.parent))?;
    if let Some(leaves) = leaves
        && let Err(error) = leaves.keep(&hash)
    {
        warn!(listing = units::short_hex(&hash), %error, "its leaf sidecar cannot be kept");
    }
    let id = engine_add(trust, &metainfo, place).inspect_err(|_| forget(trust, &hash, None))?;
    if let Some(entry) = trust.book().get_mut(&hash) {
        entry.stand = Stand::Offering(Some(id));
    }
    let name = offer.name.clone();
    match trust.chain.submit(TxBody::Candidate(offer), WAIT) {
        Ok(height) => {
            settle(trust, &hash, id);
            info!(listing = units::short_hex(&hash), name, height, "offered");
            Ok(json!({
                "infohash": units::hex(&hash), "height": height, "name": name,
                "size_bytes": found.len_bytes, "files": metainfo_files(&metainfo),
                "in_place": in_place,
            }))
        }
        Err(error) if error.code == Code::TimedOut => {
            // It may still be decided: kept, and judged by the ledger from now on.
            settle(trust, &hash, id);
            Err(error)
        }
        Err(error) => {
            forget(trust, &hash, Some(id));
            Err(error)
        }
    }
}

/// A folder that is removed unless it was moved to its place.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            warn!(folder = %self.0.display(), %error, "could not be removed");
        }
    }
}

/// Makes the copy durable and moves it to where listing `hash` belongs, and notes it in the book, so
/// that nothing else touches it before it is on the ledger.
fn take_place(
    trust: &Datatrust,
    hash: &Hash,
    staging: Option<Staging>,
    parent: Option<&PathBuf>,
) -> Result<Place> {
    let folder = trust.folder_of(hash);
    if let Some(staging) = &staging {
        // One call for all files of the import, before anybody is told that they are here.
        let failed = |error| Error::io("sync", &staging.0, error);
        let opened = File::open(&staging.0).map_err(failed)?;
        rustix::fs::syncfs(&opened).map_err(|error| failed(error.into()))?;
    }
    let mut book = trust.book();
    if let Some(entry) = book.get(hash) {
        return Err(Error::new(Code::Refused, "this data is being offered or removed right now")
            .why(format!("{} is {:?}", units::hex(hash), entry.stand))
            .cure("try again in a moment"));
    }
    let in_place = parent.cloned();
    book.insert(*hash, Entry { in_place: in_place.clone(), ..Entry::new(Stand::Offering(None)) });
    if let Some(parent) = in_place {
        trust.save_places(&book)?;
        return Ok(Place::InPlace(parent));
    }
    if let Some(staging) = staging {
        let moved = std::fs::rename(&staging.0, &folder);
        if let Err(error) = moved {
            book.remove(hash);
            return Err(Error::io("move into", &folder, error));
        }
    }
    Ok(Place::Owned(folder))
}

fn engine_add(trust: &Datatrust, metainfo: &Arc<Metainfo>, place: Place) -> Result<ListingId> {
    let added = trust.engine.add(AddListing {
        identity: Identity::Metainfo(metainfo.clone()),
        place,
        verify_v1: true,
        known_complete: true,
        size_max_bytes: None,
        peers: Vec::new(),
        private_to_market: true,
    });
    match added {
        Ok(id) | Err(EngineError::Exists { id }) => Ok(id),
        Err(error) => Err(engine_error(error)),
    }
}

/// The offer is on the ledger: from here on the follower looks after it.
fn settle(trust: &Datatrust, hash: &Hash, id: ListingId) {
    if let Some(entry) = trust.book().get_mut(hash) {
        entry.stand = Stand::Active(id);
        // We have just hashed it; the engine's own word may have come while it was being offered.
        entry.is_complete = true;
    }
    trust.wake();
}

/// The offer was not taken: the engine lets go, and the copy is removed by the rule for what the
/// ledger does not know.
fn forget(trust: &Datatrust, hash: &Hash, id: Option<ListingId>) {
    if let Some(entry) = trust.book().get_mut(hash) {
        entry.stand = match id {
            Some(id) => Stand::Active(id),
            None => Stand::Stopped,
        };
    }
    trust.wake();
}

fn metainfo_files(metainfo: &Metainfo) -> u32 {
    metainfo.info().files().filter(|file| !file.pad).count() as u32
}

/// What the ledger is told of a torrent.
fn offer_of(metainfo: &Metainfo) -> Result<Offer> {
    let info = metainfo.info();
    let missing = || Error::bug("a hybrid torrent without one of its infohashes");
    let mut name = info.name().to_owned();
    while name.len() > LISTING_NAME_LEN_MAX {
        name.pop();
    }
    Ok(Offer {
        infohash_v2: DataHash(info.info_hash_v2().ok_or_else(missing)?),
        infohash_v1: InfoHashV1(info.info_hash_v1().ok_or_else(missing)?),
        size_bytes: info.geometry().payload_len(),
        file_count: metainfo_files(metainfo),
        piece_len_log2: info.piece_len_bytes().trailing_zeros() as u8,
        name,
    })
}

/// What an offer says differently from the info dict that its infohash names, if anything. The name
/// may be any: people choose it.
pub(super) fn difference(offer: &Offer, metainfo: &Metainfo) -> Option<String> {
    let found = match offer_of(metainfo) {
        Ok(found) => found,
        Err(_) => return Some("the torrent is no hybrid".to_owned()),
    };
    let differs = |what: &str, said: String, is: String| {
        Some(format!("{what}: the offer says {said}, the data {is}"))
    };
    if found.infohash_v1 != offer.infohash_v1 {
        return differs(
            "infohash v1",
            offer.infohash_v1.to_string(),
            found.infohash_v1.to_string(),
        );
    }
    if found.size_bytes != offer.size_bytes {
        return differs("size", offer.size_bytes.to_string(), found.size_bytes.to_string());
    }
    if found.file_count != offer.file_count {
        return differs("files", offer.file_count.to_string(), found.file_count.to_string());
    }
    if found.piece_len_log2 != offer.piece_len_log2 {
        return differs(
            "piece length",
            format!("2^{}", offer.piece_len_log2),
            format!("2^{}", found.piece_len_log2),
        );
    }
    None
}
