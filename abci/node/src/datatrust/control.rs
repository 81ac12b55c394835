//! Answers the command line.

use std::io::BufReader;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringseed_engine::Scope;
use ringseed_ledger::{DataHash, PublicKey, TxBody};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::book::Entry;
use super::{Datatrust, import, report};
use crate::control::{Limited, Request, answer, read_line, write_line};
use crate::error::{Code, Error, Result};
use crate::units;

/// Connections at a time: a command line is one, and `up` holds one per question.
const CLIENTS_MAX: u32 = 32;
/// How long a transaction of the command line waits for its block.
const WAIT: Duration = Duration::from_secs(60);

/// Accepts and answers until the process ends.
pub(super) fn serve(trust: &Arc<Datatrust>, listener: &UnixListener) {
    let clients = Arc::new(AtomicU32::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "control socket");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::Relaxed);
            let busy = Error::new(Code::Unreachable, "too many commands talk to this datatrust");
            let _ = write_line(&mut &stream, &answer(Err(busy)));
            continue;
        }
        let (trust, clients) = (trust.clone(), clients.clone());
        std::thread::spawn(move || {
            talk(&trust, stream);
            clients.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One connection: requests in turn until the other side hangs up.
fn talk(trust: &Arc<Datatrust>, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    loop {
        let reply = match read_line::<Request>(&mut stream) {
            Ok(Some(request)) => {
                let out = stream.get_ref().try_clone();
                answer(handle(trust, request, |done, total| {
                    let step = json!({"progress": {"done": done, "total": total}});
                    // A command that was given up is noticed at the answer.
                    if let Ok(mut out) = out.as_ref() {
                        let _ = write_line(&mut out, &step);
                    }
                }))
            }
            Ok(None) => return,
            Err(error) => answer(Err(error)),
        };
        if write_line(stream.get_mut(), &reply).is_err() {
            return;
        }
    }
}

fn handle(
    trust: &Arc<Datatrust>,
    request: Request,
    progress: impl FnMut(u64, u64),
) -> Result<Value> {
    match request {
        Request::Status => report::status(trust),
        Request::ListingAdd { path, in_place } => import::add(trust, &path, in_place, progress),
        Request::ListingLs => Ok(report::listings(trust)),
        Request::ListingShow { infohash } => {
            Ok(report::listing(trust, &find_listing(trust, &infohash)?))
        }
        Request::ListingRm { infohash } => remove(trust, &infohash),
        Request::Metainfo { infohash } => metainfo(trust, &infohash),
        Request::MemberLs => Ok(report::members(trust)),
        Request::MemberAdmit { member } => admit(trust, &member),
        Request::Serving { on } => {
            info!(on, "serving");
            trust.set_serving(on);
            Ok(json!({"serving": on}))
        }
        Request::Limit { scope, up, down } => limit(trust, &scope, up, down),
        Request::AppHash { height } => app_hash(trust, height),
        Request::Shutdown => {
            trust.interrupt.ask();
            trust.wake();
            Ok(json!({"stopping": true}))
        }
    }
}

fn find_listing(trust: &Datatrust, text: &str) -> Result<[u8; 32]> {
    let mut known: Vec<[u8; 32]> = trust.book().keys().copied().collect();
    {
        let view = trust.chain.driver().view();
        known.extend(view.listings(0).map(|listing| listing.id().0));
        known.extend(view.candidates().map(|candidate| candidate.id().0));
        known.extend(view.tombstones().map(|stone| stone.id.0));
    }
    report::find_id(text, "listing", known.into_iter())
}

/// Changes caps, and tells all that are in force.
fn limit(
    trust: &Datatrust,
    limited: &Limited,
    up: Option<u64>,
    down: Option<u64>,
) -> Result<Value> {
    let mut scopes = vec![
        ("all".to_owned(), Scope::All),
        ("members".to_owned(), Scope::Members),
        ("others".to_owned(), Scope::Others),
    ];
    let scope = match limited {
        Limited::All => Scope::All,
        Limited::Members => Scope::Members,
        Limited::Others => Scope::Others,
        Limited::Listing { infohash } => {
            let hash = find_listing(trust, infohash)?;
            let id = trust.book().get(&hash).and_then(Entry::id).ok_or_else(|| {
                Error::new(Code::Missing, format!("listing {infohash} is not at this datatrust"))
            })?;
            scopes.push((units::hex(&hash), Scope::Listing(id)));
            Scope::Listing(id)
        }
    };
    // Less than a block a second would stand still for ever.
    const RATE_MIN: u64 = 16 << 10;
    for rate in [up, down].into_iter().flatten() {
        if (1..RATE_MIN).contains(&rate) {
            return Err(Error::new(
                Code::BadValue,
                format!("{rate} B/s is less than a block a second"),
            )
            .cure("give 16KiB/s or more, or none"));
        }
    }
    let mut rates = trust.engine.rates(scope);
    let set = |rate: u64| (rate > 0).then_some(rate);
    rates.upload = up.map_or(rates.upload, set);
    rates.download = down.map_or(rates.download, set);
    if up.is_some() || down.is_some() {
        trust.engine.set_rates(scope, rates);
        info!(?scope, ?rates, "limits");
    }
    let rows = scopes.into_iter().map(|(name, scope)| {
        let rates = trust.engine.rates(scope);
        json!({"scope": name, "up": rates.upload, "down": rates.download})
    });
    Ok(json!({"limits": rows.collect::<Vec<_>>()}))
}

fn remove(trust: &Arc<Datatrust>, text: &str) -> Result<Value> {
    let hash = find_listing(trust, text)?;
    let height = trust.chain.submit(TxBody::Remove { listing: DataHash(hash) }, WAIT)?;
    trust.wake();
    let purge_height = {
        let view = trust.chain.driver().view();
        view.tombstone(&DataHash(hash)).map(|stone| stone.purge_height)
    };
    Ok(json!({"infohash": units::hex(&hash), "height": height, "purge_height": purge_height}))
}

fn metainfo(trust: &Datatrust, text: &str) -> Result<Value> {
    let hash = find_listing(trust, text)?;
    let id = trust.book().get(&hash).and_then(|entry| entry.id());
    let metainfo = id.and_then(|id| trust.engine.metainfo(id)).ok_or_else(|| {
        Error::new(
            Code::Missing,
            format!("the info dict of {} is not here", units::short_hex(&hash)),
        )
        .cure("wait until the listing is fetched: ringseed listing ls")
    })?;
    Ok(json!({
        "infohash": units::hex(&hash), "info": units::hex(metainfo.info().raw()),
        "torrent": units::hex(&metainfo.encode()),
    }))
}

fn admit(trust: &Arc<Datatrust>, text: &str) -> Result<Value> {
    let key = {
        let view = trust.chain.driver().view();
        let by_name = view.members().find(|member| member.endpoint.name == text);
        match by_name {
            Some(member) => member.key.0,
            None => report::find_id(text, "member", view.members().map(|member| member.key.0))?,
        }
    };
    let member = PublicKey(key);
    let height = trust.chain.submit(TxBody::Admit { member }, WAIT)?;
    let is_admitted = {
        let view = trust.chain.driver().view();
        view.member(&member).is_some_and(|member| member.is_admitted())
    };
    Ok(json!({"member": member.to_string(), "height": height, "admitted": is_admitted}))
}

fn app_hash(trust: &Datatrust, height: u64) -> Result<Value> {
    let hash = trust.chain.driver().app_hash_at(height).ok_or_else(|| {
        let last = trust.chain.driver().status().height;
        Error::new(Code::Missing, format!("the app hash after height {height} is not known here"))
            .why(format!("this datatrust stands at height {last}"))
    })?;
    Ok(json!({"height": height, "app_hash": units::hex(&hash)}))
}
