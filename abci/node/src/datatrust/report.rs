//! What a datatrust says of itself, as JSON: the one form behind `status`, `listing` and `member`.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use ringseed_engine::{ListingState, ListingStatus, Scope};
use ringseed_ledger::{DataHash, Member, Offer, PublicKey, Standing, State};
use serde_json::{Value, json};

use super::book::{Entry, Stand};
use super::{Datatrust, peer_id};
use crate::error::{Code, Error, Result};
use crate::{preflight, units};

/// Everything that fits one screen.
pub(super) fn status(trust: &Datatrust) -> Result<Value> {
    let consensus = trust.chain.driver().status();
    let engine = trust.engine.status();
    let me = trust.chain.me();
    let (ledger, rows) = {
        let view = trust.chain.driver().view();
        let member = view.member(&me);
        let ledger = json!({
            "market": view.market(), "genesis": view.genesis_hash().to_string(),
            "chain": view.chain_id(),
            "listings": view.listing_count(), "candidates": view.candidates().count(),
            "members": view.members().filter(|member| member.is_admitted()).count(),
            "power": member.map_or(0, |member| member.power), "total_power": view.total_power(),
            "standing": member.map_or("unknown", standing),
        });
        (ledger, offers(&view))
    };
    let (mut complete, mut have, mut total) = (0u64, 0u64, 0u64);
    for (hash, offer, _) in &rows {
        let (entry, status) = local(trust, hash);
        complete += u64::from(entry.is_some_and(|entry| entry.is_complete));
        have += status.map_or(0, |status| status.have_bytes);
        total += offer.size_bytes;
    }
    let recent: Vec<Value> = consensus
        .recent_app_hashes
        .iter()
        .map(|(height, hash)| json!([height, units::hex(hash)]))
        .collect();
    let peers: Vec<Value> = consensus
        .peers
        .iter()
        .map(|peer| {
            json!({"key": units::hex(&peer.key), "addr": peer.addr.to_string(),
                   "height": peer.height, "member": peer.is_member})
        })
        .collect();
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(json!({
        "name": trust.config.market.name, "key": me.to_string(),
        "peer_id": units::hex(&peer_id(&me)), "pid": std::process::id(),
        "dir": trust.layout.root(), "uptime_s": trust.started_at.elapsed().as_secs(),
        "market_addr": trust.config.market_addr().to_string(),
        "payload_addr": trust.config.payload_addr().to_string(),
        "ledger": ledger,
        "consensus": {
            "height": consensus.height, "app_hash": units::hex(&consensus.app_hash),
            "round": consensus.round, "caught_up": consensus.caught_up,
            "validator": consensus.is_validator, "mempool": consensus.mempool_txs,
            "last_block_ms": consensus.last_block_age.as_millis() as u64,
            "recent": recent, "peers": peers,
        },
        "payload": {
            "complete": complete, "wanted": rows.len(), "have_bytes": have, "total_bytes": total,
            "free_bytes": preflight::free_bytes(&trust.payload)?,
            "serving": trust.is_serving.load(Ordering::Relaxed),
            "uplink": trust.engine.rates(Scope::All).upload,
        },
        "engine": {
            "driver": engine.driver, "received_bytes": engine.received_bytes,
            "sent_bytes": engine.sent_bytes, "payload_sent_bytes": engine.payload_sent_bytes,
            "payload_verified_bytes": engine.payload_verified_bytes,
            "wasted_bytes": engine.wasted_bytes, "stored_bytes": engine.stored_bytes,
            "read_cache_bytes": engine.read_cache_bytes,
            "read_page_cache_bytes": engine.read_page_cache_bytes,
            "read_direct_bytes": engine.read_direct_bytes, "hashed_bytes": engine.hashed_bytes,
        "hash_calls": engine.hash_calls, "hash_messages": engine.hash_messages,
            "peers": engine.peers, "closed": engine.closed, "listings_active": engine.listings_active,
            "arena_in_use_bytes": engine.arena_in_use_bytes,
            "arena_capacity_bytes": engine.arena_capacity_bytes,
            "arena_waits": engine.arena_waits,
            "download_rate": engine.download_rate, "upload_rate": engine.upload_rate,
            "moved_connections": engine.moved_connections,
            "shards": crate::bt::shards_json(&engine),
        },
        "process": {
            "cpu_ms": cpu.tv_sec as u64 * 1000 + cpu.tv_nsec as u64 / 1_000_000,
            "rss_bytes": resident_bytes(),
            "rss_peak_bytes": resident_peak_bytes(),
        },
        "banned": *trust.banned.lock().unwrap_or_else(PoisonError::into_inner),
    }))
}

/// Resident bytes now (`/proc/self/statm`).
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The most bytes that were ever resident (`VmHWM`).
fn resident_peak_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> =
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0) << 10
}

/// Listings and candidates: infohash, offer, whether it is a candidate.
fn offers(view: &State) -> Vec<([u8; 32], Offer, bool)> {
    let listings = view.listings(0).map(|listing| (listing.id().0, listing.offer.clone(), false));
    let candidates = view.candidates().map(|c| (c.id().0, c.offer.clone(), true));
    listings.chain(candidates).collect()
}

fn local(trust: &Datatrust, hash: &[u8; 32]) -> (Option<Entry>, Option<ListingStatus>) {
    let entry = trust.book().get(hash).cloned();
    let status = entry.as_ref().and_then(Entry::id).and_then(|id| trust.engine.listing_status(id));
    (entry, status)
}

/// All listings and candidates, one line each.
pub(super) fn listings(trust: &Datatrust) -> Value {
    let rows = {
        let view = trust.chain.driver().view();
        let rows = offers(&view).into_iter().map(|(hash, offer, is_candidate)| {
            let holders = view.holders(&DataHash(hash)).len();
            (hash, offer, is_candidate, holders)
        });
        rows.collect::<Vec<_>>()
    };
    rows.into_iter()
        .map(|(hash, offer, is_candidate, holders)| {
            let (entry, status) = local(trust, &hash);
            let mut row = row(&hash, &offer, is_candidate, entry.as_ref(), status.as_ref());
            row["holders"] = json!(holders);
            row
        })
        .collect()
}

/// One listing, candidate, or what is left of one here.
pub(super) fn listing(trust: &Datatrust, hash: &[u8; 32]) -> Value {
    let id = DataHash(*hash);
    let (offer, is_candidate, owner, holders, tombstone) = {
        let view = trust.chain.driver().view();
        let listing = view.listing(&id).map(|l| (l.offer.clone(), l.owner, false));
        let found =
            listing.or_else(|| view.candidate(&id).map(|c| (c.offer.clone(), c.owner, true)));
        let holders: Vec<Value> = view.holders(&id).iter().map(|key| named(&view, key)).collect();
        let owner = found.as_ref().map(|(_, owner, _)| named(&view, owner));
        let is_candidate = found.as_ref().is_some_and(|(_, _, is_candidate)| *is_candidate);
        let stone = view.tombstone(&id).map(|stone| {
            json!({"removed_height": stone.removed_height, "purge_height": stone.purge_height})
        });
        (found.map(|(offer, _, _)| offer), is_candidate, owner, holders, stone)
    };
    let (entry, status) = local(trust, hash);
    let mut value = match &offer {
        Some(offer) => row(hash, offer, is_candidate, entry.as_ref(), status.as_ref()),
        None => json!({
            "infohash": units::hex(hash), "kind": if tombstone.is_some() { "removed" } else { "unknown" },
            "state": state_of(entry.as_ref(), status.as_ref()).0,
        }),
    };
    value["owner"] = json!(owner);
    value["holders"] = json!(holders);
    value["removed"] = json!(tombstone);
    let folder = entry.as_ref().and_then(|entry| entry.in_place.clone());
    value["folder"] = json!(folder.unwrap_or_else(|| trust.folder_of(hash)));
    value["on_disk"] = json!(trust.folder_of(hash).exists());
    if let Some(status) = status {
        value["sources"] = status
            .sources
            .iter()
            .map(|source| {
                json!({"peer_id": units::hex(&source.peer_id), "addr": source.addr.to_string(),
                       "verified_bytes": source.verified_bytes})
            })
            .collect();
        value["sent_bytes"] = json!(status.sent_bytes);
        value["wasted_bytes"] = json!(status.wasted_bytes);
        value["peers"] = json!(status.peers);
    }
    value
}

fn named(view: &State, key: &PublicKey) -> Value {
    let name = view.member(key).map(|member| member.endpoint.name.clone());
    json!({"key": key.to_string(), "name": name})
}

fn row(
    hash: &[u8; 32],
    offer: &Offer,
    is_candidate: bool,
    entry: Option<&Entry>,
    status: Option<&ListingStatus>,
) -> Value {
    let (state, reason) = state_of(entry, status);
    json!({
        "infohash": units::hex(hash), "infohash_v1": offer.infohash_v1.to_string(),
        "name": offer.name, "kind": if is_candidate { "candidate" } else { "listing" },
        "size_bytes": offer.size_bytes, "files": offer.file_count,
        "piece_len_bytes": 1u64 << offer.piece_len_log2,
        "state": state, "reason": reason,
        "have_bytes": status.map_or(0, |status| status.have_bytes),
        "complete": entry.is_some_and(|entry| entry.is_complete),
        "in_place": entry.is_some_and(|entry| entry.in_place.is_some()),
    })
}

/// One word, and the reason where there is one.
fn state_of(
    entry: Option<&Entry>,
    status: Option<&ListingStatus>,
) -> (&'static str, Option<String>) {
    let Some(entry) = entry else { return ("absent", None) };
    if let Some(fault) = &entry.fault {
        return ("refused", Some(fault.clone()));
    }
    match &entry.stand {
        Stand::Refused(reason) => ("refused", Some(reason.clone())),
        Stand::Stopping(_) | Stand::Stopped => ("stopped", None),
        Stand::Freeing => ("freeing", None),
        Stand::Offering(_) => ("offering", None),
        Stand::Active(_) => match status.map(|status| &status.state) {
            None => ("starting", None),
            Some(ListingState::Cold | ListingState::Seeding) => ("seeding", None),
            Some(ListingState::Checking) => ("checking", None),
            Some(ListingState::Metadata) => ("metadata", None),
            Some(ListingState::Fetching) => ("fetching", None),
            Some(ListingState::Waiting { reason }) => ("waiting", Some(reason.to_string())),
            Some(ListingState::Failed { error }) => ("failed", Some(error.to_string())),
        },
    }
}

/// One word for where a member stands.
fn standing(member: &Member) -> &'static str {
    match member.standing {
        Standing::Registered { .. } => "registered",
        Standing::Admitted { .. } if member.power > 0 => "validator",
        Standing::Admitted { .. } => "observer",
        Standing::Expelled => "expelled",
    }
}

/// All registered datatrusts.
pub(super) fn members(trust: &Datatrust) -> Value {
    let view = trust.chain.driver().view();
    let listings = view.listing_count();
    view.members()
        .map(|member| {
            let votes = match &member.standing {
                Standing::Registered { votes, .. } => Some(votes.iter().count()),
                _ => None,
            };
            json!({
                "key": member.key.to_string(), "name": member.endpoint.name,
                "standing": standing(member), "power": member.power, "votes": votes,
                "market_addr": member.endpoint.consensus_addr.to_string(),
                "payload_addr": member.endpoint.payload_addr.to_string(),
                "holds": member.held_count, "listings": listings,
                "peer_id": units::hex(&peer_id(&member.key)), "me": member.key == trust.chain.me(),
            })
        })
        .collect()
}

/// Finds the one id that `text` is the beginning of.
///
/// # Errors
/// [`Code::BadValue`] when it is no hexadecimal prefix of eight digits or more, or fits none or
/// several.
pub(super) fn find_id(
    text: &str,
    what: &str,
    all: impl Iterator<Item = [u8; 32]>,
) -> Result<[u8; 32]> {
    if let Some(whole) = units::parse_hex(text) {
        return Ok(whole);
    }
    let bad = |why: &str| Error::new(Code::BadValue, format!("{text:?} names no {what}")).why(why);
    let text = text.to_ascii_lowercase();
    if !(8..64).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad("it has 64 hexadecimal digits; the first eight or more will do"));
    }
    let mut fitting: Vec<[u8; 32]> = all.filter(|id| units::hex(id).starts_with(&text)).collect();
    fitting.sort_unstable();
    fitting.dedup();
    match fitting[..] {
        [one] => Ok(one),
        [] => Err(bad("none begins like this here")),
        _ => Err(bad("several begin like this: give more digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_names_one_or_is_refused() {
        let all = || {
            [[0xab; 32], [0xac; 32], {
                let mut id = [0xab; 32];
                id[31] = 0;
                id
            }]
            .into_iter()
        };
        let find = |text: &str| find_id(text, "listing", all());
        assert_eq!(find(&"ac".repeat(4)).unwrap(), [0xac; 32]);
        assert_eq!(find(&"AB".repeat(32)).unwrap(), [0xab; 32]);
        for bad in ["abababab", "ac", "zzzzzzzz", "00000000", ""] {
            assert_eq!(find(bad).unwrap_err().code, Code::BadValue, "{bad}");
        }
    }

    #[test]
    fn memory_is_measured() {
        assert!(resident_bytes() > 0 && resident_peak_bytes() >= resident_bytes() / 2);
    }
}
