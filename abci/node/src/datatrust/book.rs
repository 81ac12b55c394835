//! What this datatrust does about each listing, and the pure rule that turns the ledger's state into
//! actions on the engine.
//!
//! The rule reads the state, never the events that led to it, and proposes nothing that is already
//! so: running it twice, or after a crash at any point, is the same as running it once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use ringseed_engine::ListingId;
use ringseed_ledger::{Offer, PublicKey, State};

/// The v2 infohash of a listing.
pub type Hash = [u8; 32];

/// What the ledger wants done with one listing or candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What its owner said of it.
    pub offer: Offer,
    /// Not promoted yet: both views are checked, free space decides.
    pub is_candidate: bool,
    /// This datatrust attested it.
    pub is_attested: bool,
}

/// What the ledger says at one height, as far as this datatrust is concerned.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// The height.
    pub height: u64,
    /// Whether this datatrust is a member: only members mirror.
    pub is_member: bool,
    /// Candidates and listings.
    pub listings: BTreeMap<Hash, Wanted>,
    /// Removed listings whose grace is not over, with the height at which it is.
    pub graves: BTreeMap<Hash, u64>,
    /// Payload addresses of all other members.
    pub peers: Vec<SocketAddr>,
}

impl Want {
    /// Reads what the datatrust `me` has to do from the state.
    pub fn read(state: &State, me: &PublicKey) -> Want {
        let height = state.height();
        let wanted = |offer: &Offer, is_candidate| {
            let is_attested = state.is_holder(&offer.infohash_v2, me);
            (offer.infohash_v2.0, Wanted { offer: offer.clone(), is_candidate, is_attested })
        };
        let mut listings: BTreeMap<Hash, Wanted> =
            state.candidates().map(|candidate| wanted(&candidate.offer, true)).collect();
        listings.extend(state.listings(0).map(|listing| wanted(&listing.offer, false)));
        let in_grace = state.tombstones().filter(|stone| stone.purge_height > height);
        let others = state.members().filter(|member| member.is_admitted() && member.key != *me);
        Want {
            height,
            is_member: state.member(me).is_some_and(|member| member.is_admitted()),
            listings,
            graves: in_grace.map(|stone| (stone.id.0, stone.purge_height)).collect(),
            peers: others.map(|member| member.endpoint.payload_addr.get()).collect(),
        }
    }
}

/// Where the bytes of a listing are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// In the engine: fetched or served.
    Active(ListingId),
    /// The engine was told to let go and has not answered yet.
    Stopping(ListingId),
    /// Out of the engine; the bytes wait for the end of the grace.
    Stopped,
    /// Being deleted.
    Freeing,
    /// Being offered right now: not on the ledger yet, not to be touched.
    Offering(Option<ListingId>),
    /// Not taken, for this reason; looked at again later.
    Refused(String),
}

/// One listing as this datatrust sees it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where its bytes are.
    pub stand: Stand,
    /// The user's folder, when it is served from where it lay.
    pub in_place: Option<PathBuf>,
    /// Every byte verified and durable, and the ledger's description of it confirmed.
    pub is_complete: bool,
    /// Why it will not be attested: its views disagree, or its description on the ledger is wrong.
    pub fault: Option<String>,
    /// When `stand` last changed.
    pub since: Instant,
}

impl Entry {
    /// An entry that has just come to `stand`.
    pub fn new(stand: Stand) -> Entry {
        let since = Instant::now();
        Entry { stand, in_place: None, is_complete: false, fault: None, since }
    }

    /// Its id in the engine, as long as the engine has it.
    pub fn id(&self) -> Option<ListingId> {
        match self.stand {
            Stand::Active(id) | Stand::Stopping(id) | Stand::Offering(Some(id)) => Some(id),
            _ => None,
        }
    }
}

/// All entries by infohash.
pub type Book = BTreeMap<Hash, Entry>;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give it to the engine.
    Fetch(Hash),
    /// There is no room for it: note the reason.
    Refuse(Hash, String),
    /// Stop serving and fetching at once.
    Stop(Hash),
    /// Delete its bytes (or forget a place of the user's).
    Free(Hash),
}

/// Bytes that may still be taken: what the file system has, without the reserve and without what
/// was promised to listings that are not yet whole.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Free for this user.
    pub free_bytes: u64,
    /// Never to be filled.
    pub reserve_bytes: u64,
    /// Missing bytes of what was accepted.
    pub promised_bytes: u64,
}

/// The actions that bring `book` to what the ledger wants.
pub fn reconcile(want: &Want, book: &Book, room: Room) -> Vec<Action> {
    let mut actions = Vec::new();
    for (hash, entry) in book {
        if want.listings.contains_key(hash) && want.is_member {
            continue;
        }
        match &entry.stand {
            Stand::Active(_) => actions.push(Action::Stop(*hash)),
            Stand::Stopped if !want.graves.contains_key(hash) => actions.push(Action::Free(*hash)),
            Stand::Refused(_) => actions.push(Action::Free(*hash)),
            _ => {}
        }
    }
    if !want.is_member {
        return actions;
    }
    let taken = room.reserve_bytes.saturating_add(room.promised_bytes);
    let mut left = room.free_bytes.saturating_sub(taken);
    for (hash, wanted) in &want.listings {
        // What is being deleted is fetched anew once it is gone; what stands stopped was removed
        // and offered again, and its bytes are still there.
        match book.get(hash).map(|entry| &entry.stand) {
            None | Some(Stand::Refused(_) | Stand::Stopped) => {}
            Some(Stand::Active(_) | Stand::Stopping(_) | Stand::Freeing | Stand::Offering(_)) => {
                continue;
            }
        }
        let here = book.get(hash).is_some_and(|entry| entry.stand == Stand::Stopped);
        let size = wanted.offer.size_bytes;
        // Bytes that we attested are on this disk already: a restart needs no room for them.
        if here || wanted.is_attested {
            actions.push(Action::Fetch(*hash));
        } else if size <= left {
            left -= size;
            actions.push(Action::Fetch(*hash));
        } else {
            let reason = format!(
                "{} needed, {} free above the reserve",
                crate::units::bytes(size),
                crate::units::bytes(left)
            );
            actions.push(Action::Refuse(*hash, reason));
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use ringseed_ledger::{DataHash, InfoHashV1};

    use super::*;

    const ROOMY: Room = Room { free_bytes: 1000, reserve_bytes: 100, promised_bytes: 0 };

    fn offer(byte: u8, size_bytes: u64) -> (Hash, Wanted) {
        let offer = Offer {
            infohash_v2: DataHash([byte; 32]),
            infohash_v1: InfoHashV1([byte; 20]),
            size_bytes,
            file_count: 1,
            piece_len_log2: 14,
            name: "x".to_owned(),
        };
        ([byte; 32], Wanted { offer, is_candidate: true, is_attested: false })
    }

    fn want(listings: &[(u8, u64)]) -> Want {
        let listings = listings.iter().map(|(byte, size)| offer(*byte, *size)).collect();
        Want { is_member: true, listings, ..Want::default() }
    }

    fn active(id: u64) -> Entry {
        Entry::new(Stand::Active(ListingId(id)))
    }

    #[test]
    fn a_member_fetches_what_is_offered_once() {
        let want = want(&[(1, 10), (2, 10)]);
        let mut book = Book::new();
        let first = reconcile(&want, &book, ROOMY);
        assert_eq!(first, [Action::Fetch([1; 32]), Action::Fetch([2; 32])]);
        book.insert([1; 32], active(1));
        book.insert([2; 32], active(2));
        assert!(reconcile(&want, &book, ROOMY).is_empty(), "the second run has nothing to do");
    }

    #[test]
    fn who_is_no_member_fetches_nothing_and_stops() {
        let want = Want { is_member: false, ..want(&[(1, 10)]) };
        assert!(reconcile(&want, &Book::new(), ROOMY).is_empty());
        let book = Book::from([([1; 32], active(1))]);
        assert_eq!(reconcile(&want, &book, ROOMY), [Action::Stop([1; 32])]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason_and_taken_later() {
        let want = want(&[(1, 600), (2, 600)]);
        let actions = reconcile(&want, &Book::new(), ROOMY);
        assert_eq!(actions[0], Action::Fetch([1; 32]));
        let Action::Refuse(hash, reason) = &actions[1] else { panic!("{actions:?}") };
        assert_eq!(
            (*hash, reason.as_str()),
            ([2; 32], "600 B needed, 300 B free above the reserve")
        );
        let mut book = Book::from([([1; 32], active(1))]);
        book.insert([2; 32], Entry::new(Stand::Refused(reason.clone())));
        let promised = Room { promised_bytes: 600, ..ROOMY };
        assert!(matches!(reconcile(&want, &book, promised)[..], [Action::Refuse(..)]));
        let grown = Room { free_bytes: 5000, ..promised };
        assert_eq!(reconcile(&want, &book, grown), [Action::Fetch([2; 32])]);
    }

    #[test]
    fn attested_bytes_need_no_room_after_a_restart() {
        let mut want = want(&[(1, 5000)]);
        want.listings.get_mut(&[1; 32]).unwrap().is_attested = true;
        assert_eq!(reconcile(&want, &Book::new(), ROOMY), [Action::Fetch([1; 32])]);
    }

    #[test]
    fn a_removed_listing_stops_at_once_and_is_freed_after_the_grace() {
        let mut want = want(&[]);
        want.graves.insert([1; 32], 50);
        let mut book = Book::from([([1; 32], active(1))]);
        assert_eq!(reconcile(&want, &book, ROOMY), [Action::Stop([1; 32])]);
        book.insert([1; 32], Entry::new(Stand::Stopping(ListingId(1))));
        assert!(reconcile(&want, &book, ROOMY).is_empty());
        book.insert([1; 32], Entry::new(Stand::Stopped));
        assert!(reconcile(&want, &book, ROOMY).is_empty(), "the grace is not over");
        want.graves.clear();
        assert_eq!(reconcile(&want, &book, ROOMY), [Action::Free([1; 32])]);
    }

    #[test]
    fn an_offer_in_the_making_is_not_touched() {
        let book = Book::from([([1; 32], Entry::new(Stand::Offering(None)))]);
        assert!(reconcile(&want(&[]), &book, ROOMY).is_empty());
        assert!(reconcile(&want(&[(1, 10)]), &book, ROOMY).is_empty());
    }

    #[test]
    fn an_expired_candidate_is_stopped_and_freed() {
        let mut book = Book::from([([1; 32], active(1))]);
        assert_eq!(reconcile(&want(&[]), &book, ROOMY), [Action::Stop([1; 32])]);
        book.insert([1; 32], Entry::new(Stand::Stopped));
        assert_eq!(reconcile(&want(&[]), &book, ROOMY), [Action::Free([1; 32])]);
    }
}
