//! The newcomers' part of the story: they join, are admitted, fetch everything, get power, and serve
//! alone.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::burden::{bound, copies};
use super::children::{Process, last_lines};
use super::market::{Market, STALL_MAX};
use super::proof::decode_hex;
use super::story::{Offered, Story, cpu_of, sum};
use super::verify;
use crate::control::Request;
use crate::error::{Code, Error, Result};
use crate::render::{number, text};
use crate::units;

impl Story<'_> {
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
        let (began, cpu_before) = self.admit(count..all)?;
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
    /// Returns when the first vote was sent, and the CPU time spent until then: from there on newcomers
    /// may fetch.
    fn admit(&mut self, newcomers: Range<usize>) -> Result<(Instant, Duration)> {
        let count = self.founders();
        let keys: Vec<String> =
            self.market.nodes[newcomers].iter().map(|node| node.key.clone()).collect();
        let mut first = None;
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
                if first.is_none() {
                    first = Some((Instant::now(), cpu_of(market)?));
                }
                vote(market, count, key)?;
            }
            waiting
                .retain(|key| !matches!(standing(key).as_deref(), Some("observer" | "validator")));
            let heights = market.nodes.iter().filter_map(|node| node.ask(&Request::Status).ok());
            let moving = heights.map(|one| number(&one["consensus"], "height").min(50)).sum();
            Ok((waiting.is_empty(), moving))
        })?;
        first.ok_or_else(|| Error::bug("admitted without a vote"))
    }

    /// Newcomers that hold everything get power, one per trust window.
    fn await_power(&mut self, newcomers: Range<usize>) -> Result<()> {
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
            "--no-trackers".as_ref(),
        ];
        let mut process = Process::start("get", &args, &log)?;
        while !process.has_succeeded()? {
            if began.elapsed() > STALL_MAX {
                return Err(Error::new(
                    Code::TimedOut,
                    format!("fetching from {name} alone took too long"),
                )
                .lines(last_lines(&log, 4)));
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
    pub(super) fn one_to_show(&self) -> Option<&Offered> {
        let small = self.listings.iter().filter(|listing| listing.size_bytes <= 64 << 20);
        let largest = small.max_by_key(|listing| listing.size_bytes);
        largest.or_else(|| self.listings.iter().min_by_key(|listing| listing.size_bytes))
    }

    fn serve(&self, range: Range<usize>, on: bool) -> Result<()> {
        for node in &self.market.nodes[range] {
            node.ask(&Request::Serving { on })?;
        }
        Ok(())
    }
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
