//! What operators write: the configuration file, sizes, rates and times.

use ringseed::config::{Config, name_of, payload_beside};
use ringseed::units;

use crate::source::{Source, damage};

/// Whatever stands in the file, reading it ends in a value within its bounds or in an error that
/// names the key.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.below(3) {
        0 => {
            let mut text = EXAMPLE.as_bytes().to_vec();
            damage(&mut source, &mut text);
            config(&text);
        }
        1 => config(source.rest()),
        _ => {
            if let Ok(text) = std::str::from_utf8(source.rest()) {
                values(text);
            }
        }
    }
}

const EXAMPLE: &str = r#"[market]
name = "d1"
listen = "127.0.0.1:7400"
payload_listen = "127.0.0.1:7401"
contact = "[::1]:7300"
insecure_plain = true
[storage]
payload = "payload"
reserve = "64MiB"
[engine]
driver = "epoll"
arena = "1.5 GiB"
uplink = "40Mbit/s"
"#;

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = toml::from_str::<Config>(text) else { return };
    let verdict = config.validate();
    if verdict.is_err() {
        return;
    }
    assert!(ringseed_ledger::is_member_name(&config.market.name));
    values(&config.storage.reserve);
    values(&config.engine.arena);
    assert!(config.uplink().is_ok_and(|rate| rate != Some(0)), "a rate of nothing");
    let _ = (config.market_addr(), config.payload_addr(), payload_beside(config.market.listen));
}

fn values(text: &str) {
    if let Ok(bytes) = units::parse_bytes(text) {
        assert!(bytes < 1 << 63);
        let shown = units::bytes(bytes);
        if bytes >= 1 << 62 {
            return; // rounded up, it may be the first size that is too large
        }
        let again = units::parse_bytes(&shown).expect("what we print we read");
        // Three significant digits.
        assert!(again.abs_diff(bytes) <= bytes / 100 + 1, "{text:?} is {bytes}, shown as {shown}");
    }
    if let Ok(rate) = units::parse_rate(text) {
        assert!(rate > 0);
    }
    let name = name_of(std::path::Path::new(text));
    assert!(ringseed_ledger::is_member_name(&name), "{name:?} of {text:?}");
}
