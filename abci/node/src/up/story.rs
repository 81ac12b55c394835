//! The story of `up`, step by step. Each step asks the datatrusts, waits until they say that it is so,
//! and keeps what it measured for the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::burden::{Burden, copies};
use super::market::Market;
use super::source::{self, ListingPlan, Source};
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
pub(super) struct Offered {
    pub(super) infohash: String,
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// Which founder offered it.
    pub(super) origin: usize,
}

/// What is being told.
pub(super) struct Story<'a> {
    pub(super) args: &'a cli::Up,
    pub(super) source: &'a Source,
    pub(super) plans: &'a [ListingPlan],
    pub(super) reporter: Reporter,
    pub(super) market: &'a mut Market,
    pub(super) listings: Vec<Offered>,
    pub(super) genesis: [u8; 32],
    pub(super) began: Instant,
    pub(super) result: serde_json::Map<String, Value>,
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

    pub(super) fn founders(&self) -> usize {
        self.args.nodes as usize
    }

    pub(super) fn names(&self, range: std::ops::Range<usize>) -> Vec<String> {
        self.market.nodes[range].iter().map(|node| node.name.clone()).collect()
    }

    pub(super) fn total(&self) -> u64 {
        self.listings.iter().map(|listing| listing.size_bytes).sum()
    }

    fn line(&self, step: u32, left: &str, right: &str) -> String {
        let left = format!("[{step}/{STEPS}] {left} ");
        let dots = COLUMN.saturating_sub(left.chars().count()).max(3);
        format!("{left}{} {right}", ".".repeat(dots))
    }

    pub(super) fn tell(&mut self, step: u32, name: &str, left: &str, right: &str, fields: Value) {
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

    /// CPU time of all datatrusts so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.market)
    }

    /// Bytes on sockets, stored, wasted and verified, over these datatrusts.
    pub(super) fn traffic(&self, range: std::ops::Range<usize>) -> Result<(u64, u64, u64, u64)> {
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
    pub(super) fn burden(&self, receivers: std::ops::Range<usize>) -> Result<Carried> {
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
pub(super) struct Carried {
    pub(super) total: Burden,
    /// Per listing: bytes by sender.
    pub(super) by_listing: Vec<BTreeMap<String, u64>>,
    /// How many sources the largest listing had, at the receiver that had fewest.
    pub(super) sources_of_largest: u64,
}

/// CPU time of all datatrusts so far.
pub(super) fn cpu_of(market: &Market) -> Result<Duration> {
    Ok(Duration::from_millis(sum(&market.statuses()?, "process", "cpu_ms")))
}

/// One counter over all these datatrusts.
pub(super) fn sum(statuses: &[Value], section: &str, key: &str) -> u64 {
    statuses.iter().map(|one| number(&one[section], key)).sum()
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
