//! The last part of the story: every byte is verified, app hashes are compared, a listing is removed,
//! the source is what it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Instant;

use serde_json::{Value, json};

use super::source;
use super::story::{Story, sum};
use super::verify::{self, Verified};
use crate::control::{Client, Request};
use crate::error::{Code, Error, Result};
use crate::render::{number, text};
use crate::units;

impl Story<'_> {
    /// Step 5, second half: every byte on the newcomers (or, without any, on the founders).
    pub(super) fn verify(&mut self) -> Result<()> {
        let began = Instant::now();
        let first = if self.args.new > 0 { self.founders() } else { 0 };
        let range = first..self.market.nodes.len();
        let names = self.names(range.clone());
        let total = self.total() * names.len() as u64;
        let task = self.reporter.bytes("verifying", "      verifying every byte", total);
        let (sender, receiver) = channel::<Result<Option<Verified>>>();
        let nodes = &self.market.nodes[range];
        let expected = self.listings.len();
        let verified = std::thread::scope(|scope| {
            for node in nodes {
                let sender = sender.clone();
                scope.spawn(move || {
                    let progress = |bytes| {
                        let step = Verified { bytes, ..Verified::default() };
                        let _ = sender.send(Ok(Some(step)));
                    };
                    let result = verify_node(&node.dir, expected, progress);
                    let _ = sender.send(result.map(|_| None));
                });
            }
            drop(sender);
            let (mut done, mut result) = (0, Ok(()));
            for message in receiver {
                match message {
                    Ok(Some(step)) => done += step.bytes,
                    Ok(None) => {}
                    Err(error) => result = result.and(Err(error)),
                }
                task.set(done, total);
            }
            result.map(|()| done)
        })?;
        drop(task);
        if verified != total {
            return Err(Error::new(
                Code::Damaged,
                format!(
                    "{} were verified instead of {}",
                    units::bytes(verified),
                    units::bytes(total)
                ),
            ));
        }
        let left = format!(
            "verified {} on {}, off the disk, by sha2",
            units::bytes(verified),
            names.join(" and ")
        );
        let right = format!("ok, {}", units::time(began.elapsed()));
        let fields =
            json!({"bytes": verified, "on": names, "seconds": began.elapsed().as_secs_f64()});
        self.tell(5, "verified", &left, &right, fields);
        Ok(())
    }

    /// The app hash at one height after the last change is the same everywhere.
    pub(super) fn compare(&mut self) -> Result<()> {
        let (height, hash) = self.same_app_hash()?;
        let count = self.market.nodes.len();
        let left = format!("app hash at height {height} on {count} of {count}");
        let fields = json!({"height": height, "app_hash": hash, "nodes": count});
        let short: String = hash.chars().take(16).collect();
        self.tell(5, "agreed", &left, &format!("equal, {short}"), fields);
        Ok(())
    }

    fn same_app_hash(&mut self) -> Result<(u64, String)> {
        let heights = |statuses: &[Value]| -> Vec<u64> {
            statuses.iter().map(|one| number(&one["consensus"], "height")).collect()
        };
        let height = heights(&self.market.statuses()?).into_iter().max().unwrap_or(0);
        self.market.wait("one height on all", |market| {
            let heights = heights(&market.statuses()?);
            Ok((heights.iter().all(|at| *at >= height), heights.iter().sum()))
        })?;
        let mut hashes = BTreeMap::new();
        for node in &self.market.nodes {
            let answer = node.ask(&Request::AppHash { height })?;
            hashes
                .entry(text(&answer, "app_hash").to_owned())
                .or_insert_with(Vec::new)
                .push(node.name.clone());
        }
        if hashes.len() > 1 {
            let lines = hashes.iter().map(|(hash, names)| format!("{hash}: {}", names.join(" ")));
            return Err(Error::new(
                Code::MarketDiffers,
                format!("app hashes differ at height {height}"),
            )
            .lines(lines.collect()));
        }
        let hash = hashes.into_keys().next().unwrap_or_default();
        Ok((height, hash))
    }

    /// Step 6: the owner removes a listing; all stop serving it and free its space after the grace.
    pub(super) fn remove(&mut self) -> Result<()> {
        let began = Instant::now();
        let Some(listing) = self.one_to_show().cloned() else { return Ok(()) };
        let request = Request::ListingRm { infohash: listing.infohash.clone() };
        let done = self.market.nodes[listing.origin].ask(&request)?;
        let owner = self.market.nodes[listing.origin].name.clone();
        let task =
            self.reporter.things("freeing", "      freed on", self.market.nodes.len() as u64);
        let mut stopped_at = None;
        self.market.wait("the removal", |market| {
            let request = Request::ListingShow { infohash: listing.infohash.clone() };
            let rows: Vec<Value> =
                market.nodes.iter().map(|node| node.ask(&request)).collect::<Result<_>>()?;
            let serving = rows
                .iter()
                .filter(|row| !matches!(text(row, "state"), "stopped" | "freeing" | "absent"))
                .count();
            if serving == 0 {
                stopped_at.get_or_insert_with(|| began.elapsed());
            }
            let freed = rows
                .iter()
                .filter(|row| row["on_disk"] == false && text(row, "state") == "absent")
                .count() as u64;
            task.set(freed, rows.len() as u64);
            let height = number(&market.nodes[0].ask(&Request::Status)?["consensus"], "height");
            Ok((freed == rows.len() as u64, freed + height.min(number(&done, "purge_height") + 20)))
        })?;
        drop(task);
        let stopped = stopped_at.unwrap_or_default();
        let all = self.market.nodes.len() as u64;
        let left = format!(
            "removed \"{}\" by its owner {owner}; {} freed",
            listing.name,
            units::bytes(listing.size_bytes * all)
        );
        let right =
            format!("stopped {}, freed {}", units::time(stopped), units::time(began.elapsed()));
        let fields = json!({
            "infohash": listing.infohash, "name": listing.name, "owner": owner,
            "freed_bytes": listing.size_bytes * all, "stopped_seconds": stopped.as_secs_f64(),
            "freed_seconds": began.elapsed().as_secs_f64(),
        });
        self.tell(6, "removed", &left, &right, fields);
        let (height, hash) = self.same_app_hash()?;
        self.result
            .insert("agreed_after_removal".to_owned(), json!({"height": height, "app_hash": hash}));
        Ok(())
    }

    /// Step 7: the source is as it was; the sum of it all.
    pub(super) fn finish(mut self, before: Option<String>) -> Result<Value> {
        let after = source::digest(self.source, self.plans)?;
        if before != after {
            return Err(Error::new(Code::SourceChanged, "the source is not what it was before")
                .why("nothing of ours writes to it: somebody else changed it meanwhile"));
        }
        let statuses = self.market.statuses()?;
        let peak = statuses.iter().map(|one| number(&one["process"], "rss_peak_bytes")).max();
        let left = match before {
            Some(_) => "the source is byte for byte what it was".to_owned(),
            None => "everything is as agreed".to_owned(),
        };
        let fields = json!({
            "source_unchanged": before.is_some(), "seconds": self.began.elapsed().as_secs_f64(),
            "rss_peak_bytes": peak, "cpu_seconds": self.cpu()?.as_secs_f64(),
            "wasted_bytes": sum(&statuses, "engine", "wasted_bytes"),
        });
        let right = format!(
            "all in {}, at most {} each",
            units::time(self.began.elapsed()),
            units::bytes(peak.unwrap_or(0))
        );
        self.tell(7, "finished", &left, &right, fields);
        let nodes: Value = self
            .market
            .nodes
            .iter()
            .zip(&statuses)
            .map(|(node, status)| json!({"name": node.name, "dir": node.dir, "status": status}))
            .collect();
        self.result.insert("schema".to_owned(), json!("ringseed.v1"));
        self.result.insert("type".to_owned(), json!("result"));
        self.result.insert("ok".to_owned(), json!(true));
        self.result.insert("nodes".to_owned(), nodes);
        Ok(Value::Object(self.result))
    }
}

/// Verifies all listings of the datatrust in `dir`; infohashes come from its ledger.
fn verify_node(dir: &Path, expected: usize, mut progress: impl FnMut(u64)) -> Result<Verified> {
    let mut client = Client::connect(dir)?;
    let rows = client.ask(&Request::ListingLs)?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    if rows.len() != expected {
        return Err(Error::new(
            Code::MarketDiffers,
            format!(
                "the ledger lists {} instead of {expected}",
                units::count(rows.len() as u64, "listing")
            ),
        ));
    }
    let mut total = Verified::default();
    for row in rows {
        let infohash = text(&row, "infohash").to_owned();
        let hash = units::parse_hash(&infohash, "infohash")?;
        let answer = client.ask(&Request::Metainfo { infohash: infohash.clone() })?;
        let shown = client.ask(&Request::ListingShow { infohash })?;
        let info = decode_hex(text(&answer, "info"))?;
        total += verify::listing(&hash, &info, Path::new(text(&shown, "folder")), &mut progress)?;
    }
    Ok(total)
}

/// Bytes of a hexadecimal answer.
pub(super) fn decode_hex(text: &str) -> Result<Vec<u8>> {
    let bad = || Error::new(Code::BadAnswer, "an answer is not hexadecimal");
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(bad());
    }
    let digit = |c: u8| (c as char).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| Some(digit(pair[0])? * 16 + digit(pair[1])?);
    text.as_bytes().chunks(2).map(|two| pair(two).ok_or_else(bad)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_decoded_or_refused() {
        assert_eq!(decode_hex("00ff7a").unwrap(), [0, 255, 0x7a]);
        assert!(decode_hex("0").is_err() && decode_hex("zz").is_err());
    }
}
