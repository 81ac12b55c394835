//! What is done of adding a listing before a shard hears of it: all that needs the file system by name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ringseed_core::metainfo::Metainfo;
use ringseed_core::select::FileSelection;
use ringseed_sys::dir::DirHandle;

use crate::api::{AddListing, EngineError, Identity, ListingError, ListingId, Place};
use crate::shard::command::NewListing;
use crate::shard::{part_path, parts_folder};
use crate::store::{self, LookedAt, StateDir};

/// The folder that was opened last: listings that are added together mostly lie together.
#[derive(Default)]
pub(crate) struct Roots {
    last: Option<(Place, Arc<DirHandle>)>,
}

impl Roots {
    /// Opens the folder of a place, unless it is the last one.
    fn open(&mut self, place: &Place) -> Result<Arc<DirHandle>, EngineError> {
        if let Some((last, root)) = &self.last
            && last == place
        {
            return Ok(root.clone());
        }
        let root = Arc::new(open_place(place)?);
        self.last = Some((place.clone(), root.clone()));
        Ok(root)
    }
}

/// Checks what can be checked of a listing, keeps its metainfo and looks at its files. The id is left to
/// the caller.
///
/// # Errors
/// As [`Engine::add_selected`](crate::Engine::add_selected), but for what only a shard knows.
pub(crate) fn prepare(
    state: &StateDir,
    add: AddListing,
    select: Option<FileSelection>,
    roots: &mut Roots,
) -> Result<NewListing, EngineError> {
    let asked_by_hash = add.identity.asked_hashes().is_some();
    let identity = with_known_metainfo(state, add.identity);
    if let (Identity::Metainfo(metainfo), Some(size_max_bytes)) = (&identity, add.size_max_bytes) {
        let size_bytes = metainfo.info().geometry().payload_len();
        if size_bytes > size_max_bytes {
            let refused = ListingError::TooLarge { size_bytes, size_max_bytes };
            return Err(EngineError::Refused(refused));
        }
    }
    // Before anything is kept of a torrent that is refused.
    let wanted = match (&identity, &select) {
        (Identity::Metainfo(metainfo), Some(select)) => {
            let refused = |error| EngineError::Refused(ListingError::Selection(error));
            Some(select.wanted(metainfo.info()).map_err(refused)?)
        }
        _ => None,
    };
    // A market names its listings by hash, and whoever offers one is the only one to know it yet:
    // kept before anybody is told, else a restart would have to fetch it from those who ask us.
    let must_last = add.private_to_market && !asked_by_hash;
    let kept = match &identity {
        Identity::Metainfo(metainfo) if must_last => {
            Some(state.keep_metainfo(metainfo, true).map_err(|source| {
                let path = state.dir().path().to_path_buf();
                EngineError::Io { what: "cannot write in", path, source }
            })?)
        }
        _ => None,
    };
    let root = roots.open(&add.place)?;
    if let (Identity::Metainfo(metainfo), None, true) = (&identity, &select, add.place.is_owned()) {
        // A former run wanted some files and this one wants all: whatever lies apart is not missed,
        // and a failure leaves a few bytes that nobody looks at.
        let _ = root.remove_tree(&parts_folder(metainfo.info()));
    }
    let LookedAt { is_fresh, bad_files, stamp, changed_ns } = match &identity {
        Identity::Metainfo(metainfo) => {
            let looked = look_at(&root, metainfo);
            match wanted {
                Some(wanted) => look_at_part(&root, metainfo, &wanted, looked),
                None => looked,
            }
        }
        _ => LookedAt::default(),
    };
    let is_kept = match &identity {
        Identity::Metainfo(_) if asked_by_hash => true,
        Identity::Metainfo(_) if kept.is_some() => kept == Some(true),
        Identity::Metainfo(metainfo) if !is_kept_later(&add.place, is_fresh) => {
            // What is not kept cannot go cold, and that is all.
            state.keep_metainfo(metainfo, false).unwrap_or_else(|error| {
                tracing::warn!(%error, "metainfo not kept");
                false
            })
        }
        _ => false,
    };
    Ok(NewListing {
        id: ListingId(0),
        identity,
        asked_by_hash,
        place: add.place,
        root,
        is_fresh,
        bad_files,
        is_kept,
        stamp,
        changed_ns,
        verify_v1: add.verify_v1,
        known_complete: add.known_complete,
        size_max_bytes: add.size_max_bytes,
        peers: add.peers,
        select,
    })
}

/// Whether the metainfo is kept when its listing goes cold and not before: what is to be fetched from its
/// beginning stays active for long, and many programs end before that. A file of a folder of 256 for each of two
/// thousand torrents was half of the time in which they were fetched.
pub(crate) fn is_kept_later(place: &Place, is_fresh: bool) -> bool {
    place.is_owned() && is_fresh
}

/// Takes the metainfo from the state folder when a former run has fetched it.
fn with_known_metainfo(state: &StateDir, identity: Identity) -> Identity {
    let Some(hashes) = identity.asked_hashes() else { return identity };
    let known = state.load_metainfo(hashes);
    known.map_or(identity, |metainfo| Identity::Metainfo(Arc::new(metainfo)))
}

/// Opens the folder of a place; creates one of ours, never one of the user's.
fn open_place(place: &Place) -> Result<DirHandle, EngineError> {
    let (what, opened) = match place {
        Place::Owned(path) => ("cannot create", DirHandle::create(path)),
        Place::InPlace(path) => ("cannot open", DirHandle::open(path)),
    };
    opened.map_err(|source| EngineError::Io { what, path: place.folder().into(), source })
}

/// What the files of a torrent look like. Fresh is only where nothing lies under its root name, so that
/// a check would find nothing.
fn look_at(root: &DirHandle, metainfo: &Metainfo) -> LookedAt {
    let mut found = store::look_at_files(metainfo, |path| {
        root.metadata(path).ok().map(|it| (it.len_bytes, it.changed_ns))
    });
    // Of a torrent of one file that is the very name which was just looked at.
    let is_single = metainfo.info().files().all(|it| it.path().as_path().components().count() == 1);
    if found.is_fresh && !is_single {
        let at_root = root.metadata(Path::new(metainfo.info().name()));
        found.is_fresh = at_root.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    }
    found
}

/// What the files of a torrent look like when some of them are wanted: of the others only what came of
/// them with a neighbour's piece is missed.
fn look_at_part(
    root: &DirHandle,
    metainfo: &Metainfo,
    wanted: &[bool],
    mut found: LookedAt,
) -> LookedAt {
    let info = metainfo.info();
    let is_missing = |path: &Path| matches!(root.metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    found.is_fresh &= is_missing(&parts_folder(info));
    let apart = (0..).zip(info.files()).filter(|(at, file)| !file.pad && !wanted[*at as usize]);
    let lost = apart.map(|(at, _)| at).filter(|&at| is_missing(&part_path(info, at)));
    let lost: Vec<u32> = lost.collect();
    found.bad_files.retain(|&at| wanted[at as usize]);
    found.bad_files.extend(lost);
    found.bad_files.sort_unstable();
    // A stamp is of whole torrents.
    LookedAt { stamp: None, ..found }
}
