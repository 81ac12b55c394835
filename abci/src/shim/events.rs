//! The ledger's events in the words of ABCI: `KIND.WHAT`, every attribute indexed.
//!
//! They are for explorers and for subscribers of the daemon; a datatrust reads the state instead.

use ringseed_ledger::Event;
use tendermint_proto::v0_38::abci;

/// `events` as a block's or a transaction's result carries them.
pub fn to_abci(events: &[Event]) -> Vec<abci::Event> {
    events.iter().map(event).collect()
}

fn event(event: &Event) -> abci::Event {
    let with = |kind: &str, attributes: &[(&str, String)]| abci::Event {
        r#type: kind.to_owned(),
        attributes: attributes.iter().map(attribute).collect(),
    };
    match event {
        Event::Registered(key) => with("member.registered", &[("key", key.to_string())]),
        Event::Admitted(key) => with("member.admitted", &[("key", key.to_string())]),
        Event::EndpointChanged(key) => with("member.endpoint", &[("key", key.to_string())]),
        Event::Left(key) => with("member.left", &[("key", key.to_string())]),
        Event::Expelled(key) => with("member.expelled", &[("key", key.to_string())]),
        Event::RegistrationExpired(key) => with("member.expired", &[("key", key.to_string())]),
        Event::PowerChanged(key, power) => {
            with("member.power", &[("key", key.to_string()), ("power", power.to_string())])
        }
        Event::Offered(id) => with("candidate.offered", &[("id", id.to_string())]),
        Event::Attested { member, have, withdrawn, unchanged, unknown } => with(
            "member.attested",
            &[
                ("key", member.to_string()),
                ("have", have.to_string()),
                ("withdrawn", withdrawn.to_string()),
                ("unchanged", unchanged.to_string()),
                ("unknown", unknown.to_string()),
            ],
        ),
        Event::Promoted(id) => with("listing.added", &[("id", id.to_string())]),
        Event::CandidateExpired(id) => with("candidate.expired", &[("id", id.to_string())]),
        Event::CandidateWithdrawn(id) => with("candidate.withdrawn", &[("id", id.to_string())]),
        Event::Removed { listing, purge_height } => with(
            "listing.removed",
            &[("id", listing.to_string()), ("purge_height", purge_height.to_string())],
        ),
    }
}

fn attribute((key, value): &(&str, String)) -> abci::EventAttribute {
    abci::EventAttribute { key: (*key).to_owned(), value: value.clone(), index: true }
}
