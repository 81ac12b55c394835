//! How answers look to people: aligned, short, the state first.

use serde_json::Value;

use crate::units;

/// Left-aligned columns, as wide as their widest cell; the last one is never padded.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (index, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            text.push_str(cell);
            if index + 1 < cells.len() {
                let pad = width - cell.chars().count() + 2;
                text.extend(std::iter::repeat_n(' ', pad));
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// A text field, or `-`.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

/// A number field, or 0.
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn short(value: &Value, key: &str) -> String {
    text(value, key).chars().take(8).collect()
}

/// Parts of a whole in percent, rounded down so that 100 means all.
pub fn percent(part: u64, whole: u64) -> u64 {
    (part.saturating_mul(100)).checked_div(whole).unwrap_or(100)
}

/// `listing ls`.
pub fn listings(rows: &Value) -> String {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return "no listings yet.  ringseed listing add PATH\n".to_owned();
    }
    let line = |row: &Value| {
        let (have, size) = (number(row, "have_bytes"), number(row, "size_bytes"));
        let reason = row["reason"].as_str().map(|reason| format!(" ({reason})"));
        vec![
            short(row, "infohash"),
            text(row, "kind").to_owned(),
            format!("{}{}", text(row, "state"), reason.unwrap_or_default()),
            format!("{}%", percent(have, size)),
            units::bytes(size),
            number(row, "files").to_string(),
            number(row, "holders").to_string(),
            text(row, "name").to_owned(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(line).collect();
    table(&["INFOHASH", "KIND", "STATE", "HERE", "SIZE", "FILES", "HOLDERS", "NAME"], &rows)
}

/// `listing show`.
pub fn listing(row: &Value) -> String {
    let mut out = format!("{}  {}\n", text(row, "infohash"), text(row, "name"));
    let mut line = |key: &str, value: String| out.push_str(&format!("  {key:<9}{value}\n"));
    line("kind", text(row, "kind").to_owned());
    let reason = row["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
    line("state", format!("{}{reason}", text(row, "state")));
    if row["size_bytes"].is_u64() {
        let size = number(row, "size_bytes");
        line(
            "size",
            format!(
                "{} in {}, pieces of {}",
                units::bytes(size),
                units::count(number(row, "files"), "file"),
                units::bytes(number(row, "piece_len_bytes"))
            ),
        );
        let have = number(row, "have_bytes");
        line("here", format!("{}% ({})", percent(have, size), units::bytes(have)));
        line("owner", text(&row["owner"], "name").to_owned());
    }
    let names = |value: &Value| {
        let names: Vec<&str> =
            value.as_array().into_iter().flatten().map(|one| text(one, "name")).collect();
        names.join(" ")
    };
    line("holders", names(&row["holders"]));
    line("folder", text(row, "folder").to_owned());
    if row["removed"].is_object() {
        line("removed", format!("bytes go at height {}", number(&row["removed"], "purge_height")));
    }
    for source in row["sources"].as_array().into_iter().flatten() {
        let bytes = number(source, "verified_bytes");
        line("from", format!("{}  {}", text(source, "addr"), units::bytes(bytes)));
    }
    if row["sent_bytes"].is_u64() {
        line("sent", units::bytes(number(row, "sent_bytes")));
    }
    out
}

/// `limit`.
pub fn limits(caps: &Value) -> String {
    let rate = |row: &Value, key: &str| row[key].as_u64().map_or("none".to_owned(), units::rate);
    let line = |row: &Value| {
        let scope = text(row, "scope");
        let scope = scope.get(..12).unwrap_or(scope);
        vec![scope.to_owned(), rate(row, "up"), rate(row, "down")]
    };
    let rows: Vec<_> = caps["limits"].as_array().into_iter().flatten().map(line).collect();
    table(&["SCOPE", "UP", "DOWN"], &rows)
}

/// `member ls`.
pub fn members(rows: &Value) -> String {
    let line = |row: &Value| {
        vec![
            text(row, "name").to_owned() + if row["me"] == true { " *" } else { "" },
            short(row, "key"),
            text(row, "standing").to_owned(),
            number(row, "power").to_string(),
            format!("{}/{}", number(row, "holds"), number(row, "listings")),
            text(row, "market_addr").to_owned(),
            text(row, "payload_addr").to_owned(),
        ]
    };
    let rows: Vec<_> = rows.as_array().into_iter().flatten().map(line).collect();
    table(&["NAME", "KEY", "STANDING", "POWER", "HOLDS", "MARKET", "PAYLOAD"], &rows)
}

/// `status`.
pub fn status(status: &Value) -> String {
    let (ledger, consensus) = (&status["ledger"], &status["consensus"]);
    let (payload, engine) = (&status["payload"], &status["engine"]);
    let is_current = consensus["caught_up"] == true;
    let is_whole = number(payload, "complete") == number(payload, "wanted");
    let word = match (is_current, is_whole) {
        (true, true) => "IN SYNC",
        (true, false) => "FETCHING",
        (false, _) => "CATCHING UP",
    };
    let mut out = format!(
        "{}  {word}  market {:?}  height {}\n",
        text(status, "name"),
        text(ledger, "market"),
        number(consensus, "height")
    );
    let mut line = |key: &str, value: String| out.push_str(&format!("  {key:<10}{value}\n"));
    line(
        "payload",
        format!(
            "{}/{} whole, {} of {}, {} free",
            number(payload, "complete"),
            units::count(number(payload, "wanted"), "listing"),
            units::bytes(number(payload, "have_bytes")),
            units::bytes(number(payload, "total_bytes")),
            units::bytes(number(payload, "free_bytes"))
        ),
    );
    let serving = if payload["serving"] == true { "" } else { "  not serving" };
    line(
        "engine",
        format!(
            "{} with {}  in {}  out {}  {} peers{serving}",
            text(engine, "driver"),
            units::count(engine["shards"].as_array().map_or(0, Vec::len) as u64, "shard"),
            units::rate(number(engine, "download_rate")),
            units::rate(number(engine, "upload_rate")),
            number(engine, "peers")
        ),
    );
    let peers = consensus["peers"].as_array().map_or(0, Vec::len);
    line(
        "consensus",
        format!(
            "{} with power {} of {}, {} links, last block {}s ago, app hash {}",
            text(ledger, "standing"),
            number(ledger, "power"),
            number(ledger, "total_power"),
            peers,
            number(consensus, "last_block_ms") / 1000,
            short(consensus, "app_hash")
        ),
    );
    line(
        "process",
        format!(
            "pid {}, {} resident, up {}s, {}",
            number(status, "pid"),
            units::bytes(number(&status["process"], "rss_bytes")),
            number(status, "uptime_s"),
            text(status, "dir")
        ),
    );
    for ban in status["banned"].as_array().into_iter().flatten() {
        line("refused", format!("{}: {}", text(ban, "addr"), text(ban, "reason")));
    }
    out
}

/// `status --all`: one line each. Rows that could not be asked carry an `error`.
pub fn all(rows: &[(String, Value)]) -> String {
    let line = |(name, status): &(String, Value)| {
        if let Some(error) = status["error"]["what"].as_str() {
            return vec![name.clone(), format!("DOWN ({error})")];
        }
        let (consensus, payload) = (&status["consensus"], &status["payload"]);
        let word = match (consensus["caught_up"] == true, payload["complete"] == payload["wanted"])
        {
            (true, true) => "IN SYNC",
            (true, false) => "FETCHING",
            _ => "CATCHING UP",
        };
        vec![
            name.clone(),
            word.to_owned(),
            number(consensus, "height").to_string(),
            short(consensus, "app_hash"),
            number(&status["ledger"], "power").to_string(),
            format!("{}/{}", number(payload, "complete"), number(payload, "wanted")),
            units::bytes(number(payload, "have_bytes")),
            units::rate(number(&status["engine"], "download_rate")),
            units::rate(number(&status["engine"], "upload_rate")),
            text(status, "dir").to_owned(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(line).collect();
    table(
        &["NAME", "STATE", "HEIGHT", "APP HASH", "POWER", "WHOLE", "HELD", "IN", "OUT", "DIR"],
        &rows,
    )
}

/// `join --plan`.
pub fn plan(plan: &Value) -> String {
    let total = number(plan, "total_bytes");
    let fits = if plan["fits"] == true { "fits" } else { "DOES NOT FIT" };
    let mut out = format!(
        "market {:?}  height {}  genesis {}\n",
        text(plan, "market"),
        number(plan, "height"),
        text(plan, "genesis")
    );
    let mut line = |key: &str, value: String| out.push_str(&format!("  {key:<10}{value}\n"));
    line(
        "to fetch",
        format!(
            "{}, {} (largest {}, median {})",
            units::count(number(plan, "listings"), "listing"),
            units::bytes(total),
            units::bytes(number(plan, "largest_bytes")),
            units::bytes(number(plan, "median_bytes"))
        ),
    );
    line("disk", format!("{} free: {fits}", units::bytes(number(plan, "free_bytes"))));
    for source in plan["sources"].as_array().into_iter().flatten() {
        let capacity = match number(source, "capacity") {
            0 => String::new(),
            rate => format!(", up to {}", units::rate(rate)),
        };
        line(
            "source",
            format!(
                "{} at {}, holds {}{capacity}",
                text(source, "name"),
                text(source, "payload_addr"),
                units::count(number(source, "holds"), "listing")
            ),
        );
    }
    out.push_str(&format!("nothing written. to join:  {}\n", text(plan, "start")));
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let rows = vec![vec!["a".to_owned(), "bbb".to_owned()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&["X", "Y"], &rows), "X    Y\na    bbb\nccc  d\n");
    }

    #[test]
    fn every_view_takes_an_answer_with_nothing_in_it() {
        let nothing = json!({});
        for text in [status(&nothing), listing(&nothing), plan(&nothing)] {
            assert!(!text.is_empty());
        }
        assert!(listings(&json!([])).contains("listing add"));
        assert!(listings(&json!([{}])).contains("INFOHASH"));
        assert!(members(&json!([{}])).contains("STANDING"));
        let down = ("d1".to_owned(), json!({"error": {"what": "no datatrust is running"}}));
        assert!(all(&[down]).contains("DOWN"));
    }

    #[test]
    fn a_hundred_percent_means_all() {
        assert_eq!((percent(999, 1000), percent(1000, 1000), percent(0, 0)), (99, 100, 100));
    }
}
