//! The story of `up`, step by step. Each step asks the datatrusts, waits until they say that it is so,
//! and keeps what it measured for the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::burden::{Burden, bound, copies};
use super::children::Process;
use super::market::{Market, STALL_MAX};
use super::source::{self, ListingPlan, Source};
use super::verify::{self, Verified};
use crate::control::{Client, Request};
use crate::error::{Code, Error, Result};
use crate::progress::Reporter;
use crate::render::{number, text};
use crate::{cli, market, units};

/// Steps of the story.
const STEPS: u32 = 7;
/// Where the right-hand column begins.
const COLUMN: usize = 66;

/// A listing of the story.
#[derive(Clone, Debug)]
struct Offered {
    infohash: String,
    name: String,
    size_bytes: u64,
    /// Which founder offered it.
    origin: usize,
}

/// What is being told.
pub(super) struct Story<'a> {
    args: &'a cli::Up,
    source: &'a Source,
    plans: &'a [ListingPlan],
    reporter: Reporter,
    market: &'a mut Market,
    listings: Vec<Offered>,
    genesis: [u8; 32],
    began: Instant,
    result: serde_json::Map<String, Value>,
}

impl<'a> Story<'a> {
    pub(super) fn new(
        args: &'a cli::Up,
        source: &'a Source,
        plans: &'a [ListingPlan],
        reporter: Reporter,
        market: &'a mut Market,
    ) -> Story<'a> {
        Story {
            args,
            source,
            plans,
            reporter,
            market,
            listings: Vec::new(),
            genesis: [0; 32],
            began: Instant::now(),
            result: serde_json::Map::new(),
        }
    }

    fn founders(&self) -> usize {
        self.args.nodes as usize
    }

    fn names(&self, range: std::ops::Range<usize>) -> Vec<String> {
        self.market.nodes[range].iter().map(|node| node.name.clone()).collect()
    }

    fn total(&self) -> u64 {
        self.listings.iter().map(|listing| listing.size_bytes).sum()
    }

    fn line(&self, step: u32, left: &str, right: &str) -> String {
        let left = format!("[{step}/{STEPS}] {left} ");
        let dots = COLUMN.saturating_sub(left.chars().count()).max(3);
        format!("{left}{} {right}", ".".repeat(dots))
    }

    fn tell(&mut self, step: u32, name: &str, left: &str, right: &str, fields: Value) {
        let text = self.line(step, left, right);
        self.reporter.say(name, &text, fields.clone());
        self.result.insert(name.to_owned(), fields);
    }

    /// Step 1: founders, each a process of its own, agree on a first height.
    pub(super) fn found(&mut self) -> Result<()> {
        let began = Instant::now();
        let count = self.founders();
        self.market.reserve_ports(count + self.args.new as usize)?;
        let members: Vec<String> = (1..=count)
            .map(|index| self.market.init(&format!("t{index}")))
            .collect::<Result<_>>()?;
        let file = self.market.root.join("genesis.toml");
        let made = market::genesis(&cli::Genesis {
            market: "demo".to_owned(),
            members,
            out: file.clone(),
            local: true,
        })?;
        self.genesis = units::parse_hash(text(&made, "hash"), "genesis hash")?;
        for index in 0..count {
            self.market.start(index, Some(&file))?;
        }
        let mut drivers = Vec::new();
        self.market.wait("the first height", |market| {
            // Until its socket is there a datatrust is only starting.
            let Ok(statuses) = market.statuses() else { return Ok((false, 0)) };
            let heights: Vec<u64> =
                statuses.iter().map(|one| number(&one["consensus"], "height")).collect();
            drivers =
                statuses.iter().map(|one| text(&one["engine"], "driver").to_owned()).collect();
            Ok((heights.iter().all(|height| *height >= 1), heights.iter().sum()))
        })?;
        drivers.sort();
        drivers.dedup();
        let left = format!(
            "market \"demo\": {}, engine on {}",
            units::count(count as u64, "datatrust"),
            drivers.join(" and ")
        );
        let right = format!("height 1 in {}", units::time(began.elapsed()));
        let fields = json!({
            "nodes": count, "genesis": text(&made, "hash"), "drivers": drivers,
            "seconds": began.elapsed().as_secs_f64(),
        });
        self.tell(1, "founded", &left, &right, fields);
        let join = format!("      join it:  {}", text(&made, "join"));
        self.reporter.hint(&join);
        Ok(())
    }

    /// Step 2: each listing is offered at one founder, in turn.
    pub(super) fn offer(&mut self) -> Result<()> {
        let began = Instant::now();
        let total: u64 = self.plans.iter().map(ListingPlan::len_bytes).sum();
        let task = self.reporter.bytes("offering", "      hashing and offering", total);
        let dirs: Vec<PathBuf> = self.market.nodes.iter().map(|node| node.dir.clone()).collect();
        let (sender, receiver) = channel::<Result<(usize, Option<Offered>, u64)>>();
        let (plans, source, root) = (self.plans, self.source, &self.market.root);
        let mut offered: Vec<Option<Offered>> = vec![None; plans.len()];
        let interrupt = self.market.interrupt.clone();
        std::thread::scope(|scope| {
            for (origin, dir) in dirs.iter().enumerate() {
                let (sender, dirs, interrupt) = (sender.clone(), &dirs, interrupt.clone());
                scope.spawn(move || {
                    for (index, plan) in plans.iter().enumerate() {
                        if index % dirs.len() != origin || interrupt.is_asked() {
                            continue;
                        }
                        let result = offer_one(plan, source, root, dir, index, |done| {
                            let _ = sender.send(Ok((index, None, done)));
                        });
                        let failed = result.is_err();
                        let size = plan.len_bytes();
                        let _ = sender.send(
                            result
                                .map(|offered| (index, Some(Offered { origin, ..offered }), size)),
                        );
                        if failed {
                            interrupt.ask();
                        }
                    }
                });
            }
            drop(sender);
            let mut done = vec![0; plans.len()];
            let mut result = Ok(());
            for message in receiver {
                match message {
                    Ok((index, listing, bytes)) => {
                        done[index] = bytes;
                        offered[index] = listing.or(offered[index].take());
                    }
                    Err(error) => result = result.and(Err(error)),
                }
                task.set(done.iter().sum(), total);
            }
            result
        })?;
        self.market.require_alive()?;
        self.listings = offered.into_iter().flatten().collect();
        if self.listings.len() < self.plans.len() {
            return Err(Error::new(Code::Interrupted, "stopped while offering").cure("ringseed up"));
        }
        drop(task);
        let elapsed = began.elapsed();
        let left = format!(
            "offered {}, {}, each at one datatrust",
            units::count(self.listings.len() as u64, "listing"),
            units::bytes(total)
        );
        let rate = units::rate(units::mean_rate(total, elapsed));
        let right = format!("{} ({rate})", units::time(elapsed));
        let fields = json!({
            "listings": self.listings.len(), "bytes": total, "seconds": elapsed.as_secs_f64(),
        });
        self.tell(2, "offered", &left, &right, fields);
        Ok(())
    }

    /// Step 3: all founders fetch, check both views, attest; candidates become listings.
    pub(super) fn replicate(&mut self) -> Result<()> {
        let (count, listings) = (self.founders(), self.listings.len() as u64);
        let wanted = self.total() * count as u64;
        let label = format!("      replicating to {count}");
        let task = self.reporter.bytes("replicating", label, wanted);
        self.market.wait("replication", |market| {
            let statuses = market.statuses()?;
            let held = sum(&statuses, "payload", "have_bytes");
            let promoted = statuses.iter().map(|one| number(&one["ledger"], "listings")).min();
            let whole = statuses.iter().map(|one| number(&one["payload"], "complete")).min();
            task.set(held, wanted);
            let promoted = promoted.unwrap_or(0);
            task.note(format!("promoted {promoted}/{listings}"));
            let is_done = promoted == listings && whole == Some(listings);
            let heights =
                sum(&statuses, "ledger", "listings") + sum(&statuses, "payload", "complete");
            Ok((is_done, held + heights))
        })?;
        let elapsed = task.elapsed();
        drop(task);
        let burden = self.burden(0..count)?;
        let mut origins = Vec::new();
        for (listing, by_sender) in self.listings.iter().zip(&burden.by_listing) {
            let origin = &self.market.nodes[listing.origin].name;
            let sent = by_sender.get(origin).copied().unwrap_or(0);
            origins.push((copies(sent, listing.size_bytes), listing.size_bytes, sent));
        }
        let worst = origins.iter().map(|(copies, ..)| *copies).fold(0.0, f64::max);
        let sent: u64 = origins.iter().map(|(_, _, sent)| sent).sum();
        let mean = copies(sent, self.total());
        let left = format!(
            "promoted {listings}/{listings}: held by {count} datatrusts, both views checked"
        );
        let right = format!(
            "{} ({})",
            units::time(elapsed),
            units::rate(units::mean_rate(wanted - self.total(), elapsed))
        );
        let fields = json!({
            "seconds": elapsed.as_secs_f64(), "origin_copies_mean": mean, "origin_copies_max": worst,
            "origin_copies": origins.iter().map(|(copies, ..)| *copies).collect::<Vec<_>>(),
            "burden": burden.total.to_json(),
        });
        self.tell(3, "replicated", &left, &right, fields);
        self.reporter.hint(&format!(
            "      each origin sent {mean:.2} copies of its data to {} others (at most {worst:.2}; a star sends {})",
            count - 1,
            count - 1
        ));
        Ok(())
    }

    /// Step 4: newcomers that know one address and the genesis hash catch up, are admitted, fetch
    /// everything side by side, attest and get power.
    pub(super) fn onboard(&mut self) -> Result<()> {
        let (count, new) = (self.founders(), self.args.new as usize);
        let all = count + new;
        let total = self.total();
        for index in 0..new {
            let contact = self.market.nodes[index % count].listen;
            let name = format!("t{}", count + index + 1);
            self.market.join(&name, contact, self.genesis, self.reporter)?;
        }
        let joined_at = Instant::now();
        for index in count..all {
            self.market.start(index, None)?;
        }
        self.admit(count..all)?;
        let cpu_before = self.cpu()?;
        let began = Instant::now();
        let names = self.names(count..all);
        let label = format!("      {} join", names.join(" and "));
        let listings = self.listings.len() as u64;
        let task = self.reporter.bytes("onboarding", label, total * new as u64);
        let mut whole_at = vec![None; new];
        self.market.wait("on-boarding", |market| {
            let statuses: Vec<Value> = market.nodes[count..]
                .iter()
                .map(|node| node.ask(&Request::Status))
                .collect::<Result<_>>()?;
            let held = sum(&statuses, "payload", "have_bytes");
            for (at, status) in whole_at.iter_mut().zip(&statuses) {
                let payload = &status["payload"];
                if number(payload, "wanted") >= listings
                    && number(payload, "complete") == number(payload, "wanted")
                {
                    at.get_or_insert_with(|| began.elapsed());
                }
            }
            task.set(held, total * new as u64);
            let heights = sum(&statuses, "consensus", "height");
            Ok((
                whole_at.iter().all(Option::is_some),
                held + sum(&statuses, "payload", "complete") + heights / 100,
            ))
        })?;
        drop(task);
        let took = whole_at.iter().flatten().max().copied().unwrap_or_default();
        let cpu = self.cpu()?.saturating_sub(cpu_before);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let bound = bound(total, new as u64, count as u64, self.args.uplink, cpu, cores);
        let ratio = if bound.seconds > 0.0 { took.as_secs_f64() / bound.seconds } else { 1.0 };
        let burden = self.burden(count..all)?;
        let founders = self.names(0..count);
        let senders = self.names(0..all);
        let from_founders: u64 = founders.iter().map(|name| burden.total.sent_by(name)).sum();
        let fair = burden.total.max_over_mean(&founders);
        let (received, stored, wasted, payload) = self.traffic(count..all)?;
        let left = format!(
            "{} caught up, fetched {} listings each",
            names.join(" and "),
            self.listings.len()
        );
        let right = format!(
            "{} ({})",
            units::time(took),
            units::rate(units::mean_rate(total * new as u64, took))
        );
        let fields = json!({
            "seconds": took.as_secs_f64(), "since_start_seconds": joined_at.elapsed().as_secs_f64(),
            "bound_seconds": bound.seconds, "bound_term": bound.term, "ratio": ratio,
            "cpu_seconds": cpu.as_secs_f64(), "cores": cores,
            "bytes": total, "newcomers": names, "burden": burden.total.to_json(),
            "burden_by_listing": burden.by_listing, "sources_of_largest": burden.sources_of_largest,
            "founder_copies": copies(from_founders, total), "burden_max_over_mean": fair,
            "socket_bytes": received, "stored_bytes": stored, "wasted_bytes": wasted,
            "payload_bytes": payload,
        });
        self.tell(4, "onboarded", &left, &right, fields);
        let table = burden.total.table(&senders, &names, total);
        for line in table.lines() {
            self.reporter.hint(&format!("      {line}"));
        }
        self.reporter.hint(&format!(
            "      founders sent {:.2} copies to {new} newcomers, most/mean {fair:.2}; on sockets {} for {} stored, wasted {:.2}%",
            copies(from_founders, total),
            units::bytes(received),
            units::bytes(stored),
            copies(wasted, payload.max(1)) * 100.0
        ));
        self.reporter.hint(&format!(
            "      T {:.2}s, T_bound {:.2}s ({}), T/T_bound {ratio:.2}",
            took.as_secs_f64(),
            bound.seconds,
            bound.term
        ));
        self.await_power(count..all)
    }

    /// Founders vote for the newcomers as soon as they have registered.
    fn admit(&mut self, newcomers: std::ops::Range<usize>) -> Result<()> {
        let count = self.founders();
        let keys: Vec<String> =
            self.market.nodes[newcomers].iter().map(|node| node.key.clone()).collect();
        let mut waiting = keys.clone();
        self.market.wait("admission", |market| {
            let members = market.nodes[0].ask(&Request::MemberLs)?;
            let standing = |key: &str| {
                let rows = members.as_array().into_iter().flatten();
                rows.into_iter()
                    .find(|row| text(row, "key") == key)
                    .map(|row| text(row, "standing").to_owned())
            };
            let ready: Vec<String> = waiting
                .iter()
                .filter(|key| standing(key).as_deref() == Some("registered"))
                .cloned()
                .collect();
            for key in &ready {
                vote(market, count, key)?;
            }
            waiting
                .retain(|key| !matches!(standing(key).as_deref(), Some("observer" | "validator")));
            let heights = market.nodes.iter().filter_map(|node| node.ask(&Request::Status).ok());
            let moving = heights.map(|one| number(&one["consensus"], "height").min(50)).sum();
            Ok((waiting.is_empty(), moving))
        })
    }

    /// Newcomers that hold everything get power, one per trust window.
    fn await_power(&mut self, newcomers: std::ops::Range<usize>) -> Result<()> {
        let began = Instant::now();
        let count = newcomers.len() as u64;
        let task = self.reporter.things("power", "      newcomers with power", count);
        self.market.wait("power for the newcomers", |market| {
            let statuses: Vec<Value> = market.nodes[newcomers.clone()]
                .iter()
                .map(|node| node.ask(&Request::Status))
                .collect::<Result<_>>()?;
            let with = statuses.iter().filter(|one| number(&one["ledger"], "power") > 0).count();
            task.set(with as u64, count);
            Ok((with as u64 == count, with as u64))
        })?;
        drop(task);
        let text = format!(
            "      newcomers attested everything and got power after {}",
            units::time(began.elapsed())
        );
        let fields = json!({"seconds": began.elapsed().as_secs_f64()});
        self.reporter.say("power", &text, fields.clone());
        self.result.insert("power".to_owned(), fields);
        Ok(())
    }

    /// Step 5: founders stop serving payload; a stock client gets a listing from a newcomer alone.
    pub(super) fn fetch_from_newcomer(&mut self) -> Result<()> {
        let (count, began) = (self.founders(), Instant::now());
        let Some(listing) = self.one_to_show().cloned() else { return Ok(()) };
        self.serve(0..count, false)?;
        let newcomer = &self.market.nodes[count];
        let answer = newcomer.ask(&Request::Metainfo { infohash: listing.infohash.clone() })?;
        let torrent = decode_hex(text(&answer, "torrent"))?;
        let info = decode_hex(text(&answer, "info"))?;
        let file = self.market.root.join("from-newcomer.torrent");
        std::fs::write(&file, torrent).map_err(|error| Error::io("write", &file, error))?;
        let data = self.market.root.join("from-newcomer");
        std::fs::create_dir_all(&data).map_err(|error| Error::io("create", &data, error))?;
        let peer = newcomer.payload_addr()?.to_string();
        let log = self.market.root.join("get.log");
        let name = newcomer.name.clone();
        let args = [
            "get".as_ref(),
            file.as_os_str(),
            "--data".as_ref(),
            data.as_os_str(),
            "--peer".as_ref(),
            peer.as_ref(),
        ];
        let mut process = Process::start("get", &args, &log)?;
        while !process.has_succeeded()? {
            if began.elapsed() > STALL_MAX {
                return Err(Error::new(
                    Code::TimedOut,
                    format!("fetching from {name} alone took too long"),
                )
                .lines(super::children::last_lines(&log, 4)));
            }
            self.market.rest()?;
        }
        let hash = units::parse_hash(&listing.infohash, "infohash")?;
        let verified = verify::listing(&hash, &info, &data, |_| ())?;
        self.serve(0..count, true)?;
        std::fs::remove_dir_all(&data).map_err(|error| Error::io("remove", &data, error))?;
        let left = format!(
            "founders stop serving: {} from {name} alone, verified",
            units::bytes(verified.bytes)
        );
        let right = units::time(began.elapsed());
        let fields = json!({
            "infohash": listing.infohash, "from": name, "bytes": verified.bytes,
            "seconds": began.elapsed().as_secs_f64(),
        });
        self.tell(5, "from_newcomer", &left, &right, fields);
        Ok(())
    }

    /// The largest listing that does not take long, for the steps that show one.
    fn one_to_show(&self) -> Option<&Offered> {
        let small = self.listings.iter().filter(|listing| listing.size_bytes <= 64 << 20);
        let largest = small.max_by_key(|listing| listing.size_bytes);
        largest.or_else(|| self.listings.iter().min_by_key(|listing| listing.size_bytes))
    }

    fn serve(&self, range: std::ops::Range<usize>, on: bool) -> Result<()> {
        for node in &self.market.nodes[range] {
            node.ask(&Request::Serving { on })?;
        }
        Ok(())
    }

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

    /// CPU time of all datatrusts so far.
    fn cpu(&self) -> Result<Duration> {
        let statuses = self.market.statuses()?;
        Ok(Duration::from_millis(sum(&statuses, "process", "cpu_ms")))
    }

    /// Bytes on sockets, stored, wasted and verified, over these datatrusts.
    fn traffic(&self, range: std::ops::Range<usize>) -> Result<(u64, u64, u64, u64)> {
        let statuses: Vec<Value> = self.market.nodes[range]
            .iter()
            .map(|node| node.ask(&Request::Status))
            .collect::<Result<_>>()?;
        let of = |key: &str| sum(&statuses, "engine", key);
        Ok((
            of("received_bytes"),
            of("stored_bytes"),
            of("wasted_bytes"),
            of("payload_verified_bytes"),
        ))
    }

    /// What these receivers verified, by sender.
    fn burden(&self, receivers: std::ops::Range<usize>) -> Result<Carried> {
        let mut carried = Carried {
            total: Burden::default(),
            by_listing: vec![BTreeMap::new(); self.listings.len()],
            sources_of_largest: u64::MAX,
        };
        let largest = self.listings.iter().map(|listing| listing.size_bytes).max();
        for node in &self.market.nodes[receivers] {
            let mut client = Client::connect(&node.dir)?;
            for (listing, by_sender) in self.listings.iter().zip(&mut carried.by_listing) {
                let request = Request::ListingShow { infohash: listing.infohash.clone() };
                let row = client.ask(&request)?;
                let mut sources = 0;
                for source in row["sources"].as_array().into_iter().flatten() {
                    let peer = text(source, "peer_id");
                    let sender = self.market.name_of_peer(peer).unwrap_or("unknown").to_owned();
                    let bytes = number(source, "verified_bytes");
                    sources += u64::from(bytes > 0);
                    carried.total.note(&sender, &node.name, bytes);
                    *by_sender.entry(sender).or_default() += bytes;
                }
                if Some(listing.size_bytes) == largest
                    && node.name != self.market.nodes[listing.origin].name
                {
                    carried.sources_of_largest = carried.sources_of_largest.min(sources);
                }
            }
        }
        Ok(carried)
    }
}

/// What a set of receivers got.
struct Carried {
    total: Burden,
    /// Per listing: bytes by sender.
    by_listing: Vec<BTreeMap<String, u64>>,
    /// How many sources the largest listing had, at the receiver that had fewest.
    sources_of_largest: u64,
}

fn sum(statuses: &[Value], section: &str, key: &str) -> u64 {
    statuses.iter().map(|one| number(&one[section], key)).sum()
}

/// Every founder votes; one that comes after the vote has carried is told so by the ledger.
fn vote(market: &Market, founders: usize, key: &str) -> Result<()> {
    for node in &market.nodes[..founders] {
        let done = node.ask(&Request::MemberAdmit { member: key.to_owned() });
        match done {
            Ok(done) if done["admitted"] == true => return Ok(()),
            Ok(_) => {}
            // Voted before, or carried meanwhile.
            Err(error) if error.code == Code::Refused => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Stages one listing, offers it, and removes the staging.
fn offer_one(
    plan: &ListingPlan,
    source: &Source,
    root: &Path,
    dir: &Path,
    index: usize,
    mut progress: impl FnMut(u64),
) -> Result<Offered> {
    let staging = root.join(format!("staging-{index}"));
    let staged = source::stage(plan, source, &staging)?;
    let request = Request::ListingAdd { path: staged, in_place: false };
    let done = Client::connect(dir)?.ask_with(&request, |done, _| progress(done))?;
    std::fs::remove_dir_all(&staging).map_err(|error| Error::io("remove", &staging, error))?;
    Ok(Offered {
        infohash: text(&done, "infohash").to_owned(),
        name: text(&done, "name").to_owned(),
        size_bytes: number(&done, "size_bytes"),
        origin: 0,
    })
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

fn decode_hex(text: &str) -> Result<Vec<u8>> {
    let bad = || Error::new(Code::BadAnswer, "an answer is not hexadecimal");
    if !text.is_ascii() || text.len() % 2 != 0 {
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
