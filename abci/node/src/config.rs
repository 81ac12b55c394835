//! The configuration file of a datatrust: TOML, every key optional but the addresses, unknown keys
//! refused. [`example`] prints it with comments; a test parses what it prints.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Code, Error, Result};
use crate::{drivers, units};

/// What a datatrust is told at start.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses.
    pub market: Market,
    /// Where payload lies.
    #[serde(default)]
    pub storage: Storage,
    /// What the engine may use.
    #[serde(default)]
    pub engine: EngineSection,
}

/// `[market]`: how others reach this datatrust.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Market {
    /// What others call it: 1 to 32 of `A-Z a-z 0-9 . _ -`, unique in the market.
    pub name: String,
    /// Where the market's links are accepted.
    pub listen: SocketAddr,
    /// Where others reach it, if not at `listen`.
    pub advertise: Option<SocketAddr>,
    /// Where payload is served.
    pub payload_listen: SocketAddr,
    /// Where others fetch payload, if not at `payload_listen`.
    pub payload_advertise: Option<SocketAddr>,
    /// A member to ask first; `join` writes it.
    pub contact: Option<SocketAddr>,
    /// The genesis hash that `join` was given, in hex: a genesis with another one is refused.
    pub genesis_hash: Option<String>,
    /// Allow addresses other than loopback although links are not encrypted yet.
    #[serde(default)]
    pub insecure_plain: bool,
}

/// `[storage]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Folder of the payload; relative to the datatrust's folder.
    pub payload: PathBuf,
    /// Space that is never filled, so that ledger and journal survive a full disk.
    pub reserve: String,
    /// `auto` or `off`.
    pub direct_io: String,
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            payload: PathBuf::from("payload"),
            reserve: "64MiB".to_owned(),
            direct_io: "auto".to_owned(),
        }
    }
}

/// `[engine]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSection {
    /// `auto`, `uring` or `epoll`.
    pub driver: String,
    /// Threads that share the listings; 0: by the machine.
    pub shards: u32,
    /// Payload buffers of this process.
    pub arena: String,
    /// Upload cap such as `40MB/s`; empty: none.
    pub uplink: String,
    /// Download cap, likewise.
    pub downlink: String,
    /// Send without copying for as long as the kernel does.
    pub zero_copy_send: bool,
    /// Connections at most.
    pub peers_max: u32,
    /// Connections that one address may make; members and this machine are not counted.
    pub peers_per_ip_max: u32,
    /// Requests that one connection may have waiting.
    pub requests_per_peer_max: u32,
    /// Operations in flight on one disk.
    pub device_ops_max: u32,
}

impl Default for EngineSection {
    fn default() -> Self {
        EngineSection {
            driver: "auto".to_owned(),
            shards: 0,
            arena: "64MiB".to_owned(),
            uplink: String::new(),
            downlink: String::new(),
            zero_copy_send: false,
            peers_max: 512,
            peers_per_ip_max: 8,
            requests_per_peer_max: 512,
            device_ops_max: ringseed_engine::DEVICE_OPS_MAX_DEFAULT,
        }
    }
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`Code::ConfigSyntax`] with line and column, [`Code::ConfigValue`], or an I/O error.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        let config: Config = toml::from_str(&text).map_err(|error| {
            let place = error.span().map(|span| {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                format!(" line {line}")
            });
            Error::new(
                Code::ConfigSyntax,
                format!("{}{}: {}", path.display(), place.unwrap_or_default(), error.message()),
            )
            .cure(format!("edit {} and start again", path.display()))
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every value that has a form or a bound.
    ///
    /// # Errors
    /// [`Code::ConfigValue`] naming the key, or [`Code::NotLoopback`].
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, error: Error| {
            Error::new(Code::ConfigValue, format!("{key}: {}", error.what))
        };
        units::parse_bytes(&self.storage.reserve).map_err(|e| refuse("storage.reserve", e))?;
        units::parse_bytes(&self.engine.arena).map_err(|e| refuse("engine.arena", e))?;
        self.uplink().map_err(|e| refuse("engine.uplink", e))?;
        self.downlink().map_err(|e| refuse("engine.downlink", e))?;
        drivers::find(&self.engine.driver, Code::ConfigValue)
            .map_err(|error| Error { what: format!("engine.driver: {}", error.what), ..error })?;
        let direct_io = &self.storage.direct_io;
        if !["auto", "off"].contains(&direct_io.as_str()) {
            let what = format!("storage.direct_io: {direct_io:?} is none of auto, off");
            return Err(Error::new(Code::ConfigValue, what));
        }
        if !ringseed_ledger::is_member_name(&self.market.name) {
            let what = format!("market.name: {:?} is no name of a member", self.market.name);
            return Err(
                Error::new(Code::ConfigValue, what).cure("use 1 to 32 of A-Z a-z 0-9 . _ -")
            );
        }
        if self.market.listen == self.market.payload_listen {
            return Err(Error::new(
                Code::ConfigValue,
                "market.listen and market.payload_listen are the same address",
            ));
        }
        if !self.market.insecure_plain {
            for addr in [self.market.listen, self.market.payload_listen] {
                require_loopback(addr)?;
            }
        }
        Ok(())
    }

    /// The upload cap in bytes per second.
    ///
    /// # Errors
    /// [`Code::BadValue`] when it is no rate.
    pub fn uplink(&self) -> Result<Option<u64>> {
        cap(&self.engine.uplink)
    }

    /// The download cap in bytes per second.
    ///
    /// # Errors
    /// [`Code::BadValue`] when it is no rate.
    pub fn downlink(&self) -> Result<Option<u64>> {
        cap(&self.engine.downlink)
    }

    /// Where others reach the market's links.
    pub fn market_addr(&self) -> SocketAddr {
        self.market.advertise.unwrap_or(self.market.listen)
    }

    /// Where others fetch payload.
    pub fn payload_addr(&self) -> SocketAddr {
        self.market.payload_advertise.unwrap_or(self.market.payload_listen)
    }
}

/// Refuses an address that leaves the machine: links are not encrypted yet (DESIGN.md 9).
///
/// # Errors
/// [`Code::NotLoopback`].
pub fn require_loopback(addr: SocketAddr) -> Result<()> {
    if addr.ip().is_loopback() {
        return Ok(());
    }
    Err(Error::new(Code::NotLoopback, format!("{addr} is not on the loopback interface"))
        .why("links between datatrusts are not encrypted yet: anyone on the way could read them")
        .cure("listen on 127.0.0.1, or add --insecure-plain on a network that you trust wholly"))
}

/// A member's name made of the folder's name, with what a name may not hold replaced.
pub fn name_of(folder: &Path) -> String {
    let base = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = base
        .unwrap_or_default()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(32)
        .collect();
    if name.is_empty() { "datatrust".to_owned() } else { name }
}

/// The payload address that belongs to a market address: the next port.
///
/// # Errors
/// [`Code::BadValue`] when there is no next port, or the port is 0 (others must know it).
pub fn payload_beside(market: SocketAddr) -> Result<SocketAddr> {
    match (market.port(), market.port().checked_add(1)) {
        (1.., Some(next)) => Ok(SocketAddr::new(market.ip(), next)),
        _ => Err(Error::new(Code::BadValue, format!("{market} has no usable port"))
            .why("others must know the port, and payload is served on the one after it")
            .cure("choose a port from 1024 to 65534")),
    }
}

/// The file that `init` and `join` write.
pub fn example(market: &Market) -> String {
    let optional = |key: &str, value: Option<String>| match value {
        Some(value) => format!("{key} = \"{value}\"\n"),
        None => format!("# {key} = \"\"\n"),
    };
    let advertise = optional("advertise", market.advertise.map(|a| a.to_string()));
    let payload_advertise =
        optional("payload_advertise", market.payload_advertise.map(|a| a.to_string()));
    let contact = optional("contact", market.contact.map(|a| a.to_string()));
    let genesis_hash = optional("genesis_hash", market.genesis_hash.clone());
    format!(
        r#"# A ringseed datatrust. Commented lines show the default. Unknown keys are errors.

[market]
# What others call this datatrust; unique in the market.
name = "{name}"
# Where links of the market are accepted.
listen = "{listen}"
# Where others reach it, if that differs from `listen`.
{advertise}# Where payload is served.
payload_listen = "{payload_listen}"
# Where others fetch payload, if that differs from `payload_listen`.
{payload_advertise}# A member to ask first.
{contact}# Hash of the genesis this datatrust believes in; a genesis with another hash is refused.
{genesis_hash}# Allow addresses other than loopback although links are not encrypted yet.
insecure_plain = {insecure_plain}

[storage]
# Folder of the payload, relative to this file.
# payload = "payload"
# Space that is never filled, so that ledger and journal survive a full disk.
# reserve = "64MiB"
# Payload past the page cache where the file system can: "auto" or "off".
# direct_io = "auto"

[engine]
# "auto" takes io_uring where the kernel allows it, else epoll; "uring" or "epoll" insist. "glommio" and
# "tokio-uring" are for programs that were built with the feature of that name.
# driver = "auto"
# Threads that share the listings, each with 16 MiB of the arena at least. 0: one for two CPUs, each with
# 32 MiB at least.
# shards = 0
# Payload buffers of this process: touched as needed, never more.
# arena = "64MiB"
# Upload cap, such as "40MB/s". Empty: none.
# uplink = ""
# Download cap, likewise. `ringseed limit` changes both while it runs, for classes of peers and listings too.
# downlink = ""
# Send without copying (SENDMSG_ZC) for as long as the kernel does: for fast network cards.
# zero_copy_send = false
# Connections at most.
# peers_max = 512
# Connections that one address (a /64 in IPv6) may make. Members and this machine are not counted.
# peers_per_ip_max = 8
# Requests at most that one connection may have waiting with us.
# requests_per_peer_max = 512
# Operations at most in flight on one disk.
# device_ops_max = 32
"#,
        name = market.name,
        listen = market.listen,
        payload_listen = market.payload_listen,
        insecure_plain = market.insecure_plain,
    )
}

fn cap(text: &str) -> Result<Option<u64>> {
    if text.is_empty() { Ok(None) } else { units::parse_rate(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market() -> Market {
        Market {
            name: "d1".to_owned(),
            listen: "127.0.0.1:7400".parse().unwrap(),
            advertise: None,
            payload_listen: "127.0.0.1:7401".parse().unwrap(),
            payload_advertise: None,
            contact: Some("127.0.0.1:7300".parse().unwrap()),
            genesis_hash: None,
            insecure_plain: false,
        }
    }

    #[test]
    fn the_example_parses_and_says_the_defaults() {
        let text = example(&market());
        let config: Config = toml::from_str(&text).unwrap();
        config.validate().unwrap();
        assert_eq!(config.market.contact, market().contact);
        // Every commented default, when uncommented, parses and is the default.
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") && !rest.ends_with("= \"\"") => rest,
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n");
        let full: Config = toml::from_str(&uncommented).unwrap();
        assert_eq!(full.storage.payload, Storage::default().payload);
        assert_eq!(full.storage.reserve, Storage::default().reserve);
        assert_eq!(full.engine.peers_max, EngineSection::default().peers_max);
        assert_eq!(full.engine.peers_per_ip_max, EngineSection::default().peers_per_ip_max);
        let defaults = EngineSection::default();
        assert_eq!(full.engine.requests_per_peer_max, defaults.requests_per_peer_max);
        assert_eq!(full.engine.device_ops_max, defaults.device_ops_max);
        assert_eq!(full.engine.arena, EngineSection::default().arena);
        assert_eq!(full.engine.shards, EngineSection::default().shards);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let dir = std::env::temp_dir().join(format!("rs-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("datatrust.toml");
        let text = example(&market()).replace("# arena =", "aerna =");
        std::fs::write(&path, text).unwrap();
        let error = Config::load(&path).unwrap_err();
        assert_eq!(error.code, Code::ConfigSyntax);
        assert!(error.what.contains("aerna") && error.what.contains("line"), "{}", error.what);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn values_are_checked_by_name() {
        let mut config: Config = toml::from_str(&example(&market())).unwrap();
        config.engine.uplink = "fast".to_owned();
        let error = config.validate().unwrap_err();
        assert_eq!(error.code, Code::ConfigValue);
        assert!(error.what.starts_with("engine.uplink"));
        config.engine.uplink = "40MB/s".to_owned();
        config.engine.downlink = "slow".to_owned();
        assert!(config.validate().unwrap_err().what.starts_with("engine.downlink"));
        config.engine.downlink = "1GB/s".to_owned();
        config.engine.driver = "iocp".to_owned();
        assert!(config.validate().unwrap_err().what.contains("engine.driver"));
    }

    #[test]
    fn leaving_loopback_needs_a_word() {
        let mut config: Config = toml::from_str(&example(&market())).unwrap();
        config.market.listen = "0.0.0.0:7400".parse().unwrap();
        assert_eq!(config.validate().unwrap_err().code, Code::NotLoopback);
        config.market.insecure_plain = true;
        config.validate().unwrap();
    }

    #[test]
    fn a_folder_gives_a_name() {
        assert_eq!(name_of(Path::new("/srv/d1")), "d1");
        assert_eq!(name_of(Path::new("/srv/Ünï code")), "-n--code");
        assert_eq!(name_of(Path::new("/")), "datatrust");
    }

    #[test]
    fn payload_lies_on_the_next_port() {
        let at = |text: &str| payload_beside(text.parse().unwrap());
        assert_eq!(at("127.0.0.1:7400").unwrap().port(), 7401);
        assert!(at("127.0.0.1:0").is_err());
        assert!(at("127.0.0.1:65535").is_err());
    }
}
