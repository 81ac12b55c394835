//! Who carried how much, as the *receivers* verified it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::render;
use crate::units;

/// Payload bytes by sender, then receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Burden {
    sent: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Burden {
    /// Notes that `receiver` verified `bytes` from `sender`.
    pub fn note(&mut self, sender: &str, receiver: &str, bytes: u64) {
        let by_receiver = self.sent.entry(sender.to_owned()).or_default();
        *by_receiver.entry(receiver.to_owned()).or_default() += bytes;
    }

    /// What `sender` sent in all.
    pub fn sent_by(&self, sender: &str) -> u64 {
        self.sent.get(sender).map_or(0, |receivers| receivers.values().sum())
    }

    /// What `receiver` got in all.
    pub fn received_by(&self, receiver: &str) -> u64 {
        self.sent.values().filter_map(|receivers| receivers.get(receiver)).sum()
    }

    /// What `receiver` got from `sender`.
    pub fn between(&self, sender: &str, receiver: &str) -> u64 {
        self.sent.get(sender).and_then(|receivers| receivers.get(receiver)).copied().unwrap_or(0)
    }

    /// The most that one of `senders` sent, over their mean: 1 is even.
    pub fn max_over_mean(&self, senders: &[String]) -> f64 {
        let sent: Vec<u64> = senders.iter().map(|sender| self.sent_by(sender)).collect();
        let total: u64 = sent.iter().sum();
        if total == 0 {
            return 1.0;
        }
        sent.iter().max().copied().unwrap_or(0) as f64 * sent.len() as f64 / total as f64
    }

    /// A table: a row per sender, a column per receiver, then what each sent, in bytes and in copies
    /// of `total`.
    pub fn table(&self, senders: &[String], receivers: &[String], total: u64) -> String {
        let mut header: Vec<String> = vec!["FROM".to_owned()];
        header.extend(receivers.iter().map(|receiver| format!("TO {receiver}")));
        header.extend(["SENT".to_owned(), "COPIES".to_owned()]);
        let row = |sender: &String| {
            let mut row = vec![sender.clone()];
            row.extend(receivers.iter().map(|receiver| {
                let (part, all) = (self.between(sender, receiver), self.received_by(receiver));
                if sender == receiver {
                    return "-".to_owned();
                }
                format!("{} {}%", units::bytes(part), render::percent(part, all.max(1)))
            }));
            let sent = self.sent_by(sender);
            row.push(units::bytes(sent));
            row.push(format!("{:.2}", copies(sent, total)));
            row
        };
        let rows: Vec<Vec<String>> = senders.iter().map(row).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        render::table(&header, &rows)
    }

    /// As JSON: `{sender: {receiver: bytes}}`.
    pub fn to_json(&self) -> Value {
        json!(self.sent)
    }
}

/// How many times `total` was sent.
pub fn copies(sent: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { sent as f64 / total as f64 }
}

/// The least time in which `newcomers` could have everything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Seconds.
    pub seconds: f64,
    /// The term that binds: `sources`, `swarm` or `cpu`.
    pub term: &'static str,
}

/// T_bound of DESIGN.md 8: `bytes` to each of `newcomers` from `sources` with `uplink` bytes/s each
/// (newcomers upload as fast), and never faster than the cores: `cpu` seconds were spent on `cores`.
/// No rate is invented: without an uplink cap only the cores bind.
pub fn bound(
    bytes: u64,
    newcomers: u64,
    sources: u64,
    uplink: Option<u64>,
    cpu: Duration,
    cores: u64,
) -> Bound {
    let mut terms = vec![Bound { seconds: cpu.as_secs_f64() / cores.max(1) as f64, term: "cpu" }];
    if let Some(uplink) = uplink {
        let from_sources = (uplink * sources) as f64;
        let all = (uplink * (sources + newcomers)) as f64;
        terms.push(Bound { seconds: bytes as f64 / from_sources, term: "sources" });
        terms.push(Bound { seconds: (bytes * newcomers) as f64 / all, term: "swarm" });
    }
    terms
        .into_iter()
        .max_by(|a, b| a.seconds.total_cmp(&b.seconds))
        .unwrap_or(Bound { seconds: 0.0, term: "cpu" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn burden_adds_up() {
        let mut burden = Burden::default();
        burden.note("t1", "t5", 30);
        burden.note("t1", "t6", 10);
        burden.note("t2", "t5", 20);
        burden.note("t1", "t5", 5);
        assert_eq!((burden.sent_by("t1"), burden.received_by("t5")), (45, 55));
        assert_eq!(burden.between("t2", "t6"), 0);
        assert!((burden.max_over_mean(&names(&["t1", "t2"])) - 45.0 * 2.0 / 65.0).abs() < 1e-9);
        assert!((burden.max_over_mean(&names(&["t9"])) - 1.0).abs() < 1e-9);
        let table = burden.table(&names(&["t1", "t2"]), &names(&["t5", "t6"]), 55);
        assert!(table.contains("35 B 63%") && table.contains("0.82"), "{table}");
    }

    #[test]
    fn the_binding_term_is_named() {
        let second = Duration::from_secs(1);
        let free = bound(1000, 2, 4, None, second * 4, 2);
        assert_eq!((free.seconds, free.term), (2.0, "cpu"));
        // One newcomer: the four sources bind. Three of them: the swarm's own uplink does.
        let one = bound(4000, 1, 4, Some(100), second, 2);
        assert_eq!((one.seconds, one.term), (10.0, "sources"));
        let three = bound(4000, 3, 4, Some(100), second, 2);
        assert_eq!(three.term, "swarm");
        assert!((three.seconds - 12_000.0 / 700.0).abs() < 1e-9);
        let slow_cores = bound(4000, 1, 4, Some(100), second * 40, 2);
        assert_eq!(slow_cores.term, "cpu");
    }
}
