//! What a datatrust owes the ledger: its registration, its attestations, its claim to power. Worked
//! out from the state each time, so that a crash at any point only repeats the question.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ringseed_engine::ListingState;
use ringseed_ledger::{ATTEST_IDS_MAX, Addr, DataHash, Endpoint, State, TxBody, TxCode};
use tracing::{info, warn};

use super::Datatrust;
use super::book::{Hash, Stand};
use super::chain::ledger_code;
use crate::error::{Code, Error, Result};
use crate::units;

/// How long a duty waits for its block. Short: the next look signs a fresh one.
const WAIT: Duration = Duration::from_secs(10);
/// Between looks when nothing wakes us.
const TICK: Duration = Duration::from_millis(1000);
/// After a failure.
const BACK_OFF: Duration = Duration::from_millis(1000);
/// A listing that we attested and that lacks bytes for so long is withdrawn. Longer than a check
/// after an unclean stop takes to begin, shorter than anyone should be misled.
const WITHDRAW_AFTER: Duration = Duration::from_secs(20);

/// Works until the process is asked to stop.
pub(super) fn run(trust: &Datatrust, owing: &Receiver<()>) {
    let mut lacking = BTreeMap::new();
    let mut name = trust.config.market.name.clone();
    loop {
        match owing.recv_timeout(TICK) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while owing.try_recv().is_ok() {}
        if trust.interrupt.is_asked() {
            return;
        }
        // As long as there is something to do, and it can be done.
        while let Some(body) = next(trust, &name, &mut lacking) {
            let kind = body.kind_name();
            match trust.chain.submit(body, WAIT) {
                Ok(height) => info!(height, kind, "committed"),
                Err(error) => {
                    warn!(%error, kind, "not committed");
                    if ledger_code(&error) == Some(TxCode::NameTaken) {
                        name = other_name(&name, &trust.chain.me().0);
                    }
                    if !trust.interrupt.sleep(BACK_OFF) {
                        return;
                    }
                    break;
                }
            }
        }
    }
}

/// A name that is free: what was wanted, cut, and the key's first digits.
fn other_name(name: &str, key: &Hash) -> String {
    let short = units::short_hex(key);
    let kept: String = name.chars().take(32 - 1 - short.len()).collect();
    format!("{kept}-{short}")
}

/// The next transaction that is owed, if any.
fn next(trust: &Datatrust, name: &str, lacking: &mut BTreeMap<Hash, Instant>) -> Option<TxBody> {
    let me = trust.chain.me();
    let driver = trust.chain.driver();
    let (standing, endpoint) = {
        let view = driver.view();
        let member = view.member(&me);
        (member.map(|member| member.is_admitted()), member.map(|member| member.endpoint.clone()))
    };
    if standing != Some(true) {
        // Asking before the whole ledger is here could repeat a registration that it holds.
        if standing.is_none() && driver.status().caught_up {
            return own_endpoint(trust, name).map(TxBody::Register).ok();
        }
        return None;
    }
    if let (Some(known), Ok(own)) = (endpoint, own_endpoint(trust, name))
        && (known.consensus_addr, known.payload_addr) != (own.consensus_addr, own.payload_addr)
    {
        return Some(TxBody::UpdateEndpoint(Endpoint { name: known.name, ..own }));
    }
    let (complete, suspicious) = survey(trust);
    let view = driver.view();
    let have: Vec<DataHash> = complete
        .into_iter()
        .map(DataHash)
        .filter(|hash| is_on_ledger(&view, hash) && !view.is_holder(hash, &me))
        .take(ATTEST_IDS_MAX)
        .collect();
    lacking.retain(|hash, _| suspicious.contains(hash));
    let withdrawn: Vec<DataHash> = suspicious
        .into_iter()
        .filter(|hash| {
            let since = *lacking.entry(*hash).or_insert_with(Instant::now);
            since.elapsed() > WITHDRAW_AFTER
        })
        .map(DataHash)
        .filter(|hash| view.is_holder(hash, &me))
        .take(ATTEST_IDS_MAX - have.len())
        .collect();
    if have.is_empty() && withdrawn.is_empty() && !view.may_claim_power(&me) {
        return None;
    }
    Some(TxBody::attest(have, withdrawn))
}

fn is_on_ledger(view: &State, hash: &DataHash) -> bool {
    view.listing(hash).is_some() || view.candidate(hash).is_some()
}

fn own_endpoint(trust: &Datatrust, name: &str) -> Result<Endpoint> {
    let addr = |addr| {
        Addr::new(addr).map_err(|error| Error::new(Code::ConfigValue, format!("{addr}: {error}")))
    };
    Ok(Endpoint {
        name: name.to_owned(),
        consensus_addr: addr(trust.config.market_addr())?,
        payload_addr: addr(trust.config.payload_addr())?,
        capacity: trust.config.uplink()?.unwrap_or(0),
    })
}

/// What is whole and durable here, and what is in the engine and lacks bytes.
fn survey(trust: &Datatrust) -> (Vec<Hash>, Vec<Hash>) {
    let (mut complete, mut others) = (Vec::new(), Vec::new());
    for (hash, entry) in trust.book().iter() {
        match (&entry.stand, entry.is_complete) {
            (Stand::Active(_), true) => complete.push(*hash),
            (Stand::Active(id), false) => others.push((*hash, *id)),
            _ => {}
        }
    }
    let lacks = |(hash, id)| {
        let state = trust.engine.listing_status(id)?.state;
        let lacks = matches!(
            state,
            ListingState::Metadata | ListingState::Fetching | ListingState::Failed { .. }
        );
        lacks.then_some(hash)
    };
    (complete, others.into_iter().filter_map(lacks).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_is_still_a_name() {
        for name in ["d1", &"x".repeat(32)] {
            let other = other_name(name, &[0xab; 32]);
            assert!(ringseed_ledger::is_member_name(&other), "{other}");
            assert!(other.ends_with("-abababab"));
        }
    }
}
