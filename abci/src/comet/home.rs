//! The folder of a CometBFT daemon that fits a market: genesis, keys, configuration.
//!
//! One ed25519 key is the datatrust: our node key is the daemon's validator key and its peer-to-peer
//! key too, so that the genesis alone says who may vote and who is where. Writing again changes the
//! configuration and never the record of the last signatures: losing that could sign two blocks.

use std::fmt::Write as _;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use ringseed_ledger::{Genesis, Params, SigningKey};
use serde_json::{Value, json};

use super::rpc::base64;
use crate::cluster::certificate::hex;
use crate::shim::ListenAddr;
use crate::shim::app::{APP_VERSION, address_of, app_state};

/// The version that these files are written for, and that tests run.
pub const COMETBFT_VERSION: &str = "0.38.25";
/// Room in a block beside its transactions: header, last commit of 50 validators (109 bytes each),
/// evidence, and 4 bytes around each transaction.
const BLOCK_OVERHEAD_BYTES: u32 = 256 << 10;
const EVIDENCE_LEN_BYTES_MAX: u32 = 64 << 10;
/// Transactions that wait in the mempool (DESIGN.md 7).
const MEMPOOL_TXS_MAX: u32 = 5_000;
/// The time of block 1. The same on every node without asking anybody; only later blocks are dated.
const GENESIS_TIME: &str = "2026-01-01T00:00:00Z";

/// What a daemon's folder is made of.
#[derive(Clone, Debug)]
pub struct Home<'a> {
    /// The market.
    pub genesis: &'a Genesis,
    /// Seed of the node key.
    pub seed: &'a [u8; 32],
    /// Where the daemon listens for other daemons.
    pub p2p: SocketAddr,
    /// The address that others reach it by, where that differs.
    pub advertise: Option<SocketAddr>,
    /// Where the daemon listens for us; loopback.
    pub rpc: SocketAddr,
    /// Where we listen for the daemon.
    pub abci: &'a ListenAddr,
}

impl Home<'_> {
    /// Writes `config/` and, where there is none, `data/priv_validator_state.json`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        for folder in [dir.to_owned(), dir.join("config"), dir.join("data")] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let key = SigningKey::from_seed(self.seed).public().0;
        let secret = [&self.seed[..], &key].concat();
        let secret = json!({ "type": "tendermint/PrivKeyEd25519", "value": base64(&secret) });
        let public = json!({ "type": "tendermint/PubKeyEd25519", "value": base64(&key) });
        let address = hex(&address_of(&key)).to_uppercase();
        let validator = json!({ "address": address, "pub_key": public, "priv_key": secret });
        let config = dir.join("config");
        write_file(&config.join("genesis.json"), &pretty(&genesis_json(self.genesis)))?;
        write_file(&config.join("priv_validator_key.json"), &pretty(&validator))?;
        write_file(&config.join("node_key.json"), &pretty(&json!({ "priv_key": secret })))?;
        write_file(&config.join("config.toml"), &self.config_toml())?;
        let signed = dir.join("data/priv_validator_state.json");
        if !signed.exists() {
            write_file(&signed, &pretty(&json!({ "height": "0", "round": 0, "step": 0 })))?;
        }
        Ok(())
    }

    /// `config.toml`: what differs from the daemon's defaults, and why.
    fn config_toml(&self) -> String {
        let own = SigningKey::from_seed(self.seed).public();
        let others = self.genesis.members.iter().filter(|member| member.key != own);
        let peers: Vec<String> = others
            .map(|member| format!("{}@{}", hex(&address_of(&member.key.0)), member.consensus_addr))
            .collect();
        let Params { block_interval_ms_min, idle_block_interval_ms, tx_len_max, .. } =
            self.genesis.params;
        let pace = Pace::of(block_interval_ms_min);
        let Pace { propose_ms, vote_ms, gossip_ms, flush_ms } = pace;
        let name = self.genesis.members.iter().find(|member| member.key == own);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            r#"# CometBFT {COMETBFT_VERSION} for the market {chain_id}, written by ringseed. Everything else is
# CometBFT's default.
proxy_app = "{abci}"
moniker = "{moniker}"

[rpc]
laddr = "tcp://{rpc}"

[p2p]
laddr = "tcp://{p2p}"
external_address = "{external}"
# The founders, from the market's genesis.
persistent_peers = "{peers}"
# A market may live on one machine.
addr_book_strict = {strict}
allow_duplicate_ip = {duplicate}
flush_throttle_timeout = "{flush_ms}ms"

[mempool]
# ABCI 2.0 knows no other.
type = "flood"
recheck = true
size = {MEMPOOL_TXS_MAX}
max_tx_bytes = {tx_len_max}

[consensus]
timeout_propose = "{propose_ms}ms"
timeout_propose_delta = "{vote_ms}ms"
timeout_prevote = "{vote_ms}ms"
timeout_prevote_delta = "{vote_ms}ms"
timeout_precommit = "{vote_ms}ms"
timeout_precommit_delta = "{vote_ms}ms"
# The market's block interval.
timeout_commit = "{block_interval_ms_min}ms"
peer_gossip_sleep_duration = "{gossip_ms}ms"
# The market's idle interval: a block without transactions keeps the app hash, so that none follows it
# at once.
create_empty_blocks = true
create_empty_blocks_interval = "{idle_block_interval_ms}ms"
"#,
            chain_id = self.genesis.chain_id(),
            abci = self.abci,
            moniker = name.map_or("newcomer", |member| &member.name),
            rpc = self.rpc,
            p2p = self.p2p,
            external = self.advertise.map_or(String::new(), |addr| addr.to_string()),
            peers = peers.join(","),
            strict = !self.p2p.ip().is_loopback(),
            duplicate = self.p2p.ip().is_loopback(),
        );
        text
    }
}

/// Timeouts that fit a block interval. A market on one machine (50 ms) must not wait three seconds for
/// a proposer that died.
struct Pace {
    propose_ms: u32,
    vote_ms: u32,
    gossip_ms: u32,
    flush_ms: u32,
}

impl Pace {
    fn of(block_interval_ms: u32) -> Self {
        Self {
            propose_ms: (block_interval_ms * 3).clamp(500, 3_000),
            vote_ms: block_interval_ms.clamp(200, 1_000),
            gossip_ms: (block_interval_ms / 10).clamp(5, 100),
            flush_ms: (block_interval_ms / 10).clamp(5, 100),
        }
    }
}

/// `genesis.json`. It names no validators: `init_chain` answers with the founders of our genesis.
fn genesis_json(genesis: &Genesis) -> Value {
    let Params { block_len_max, .. } = genesis.params;
    json!({
        "genesis_time": GENESIS_TIME,
        "chain_id": genesis.chain_id(),
        "initial_height": "1",
        "consensus_params": {
            "block": { "max_bytes": (block_len_max + BLOCK_OVERHEAD_BYTES).to_string(), "max_gas": "-1" },
            "evidence": {
                "max_age_num_blocks": "100000",
                "max_age_duration": "172800000000000",
                "max_bytes": EVIDENCE_LEN_BYTES_MAX.to_string(),
            },
            "validator": { "pub_key_types": ["ed25519"] },
            "version": { "app": APP_VERSION.to_string() },
            "abci": { "vote_extensions_enable_height": "0" },
        },
        "app_hash": "",
        "app_state": app_state(genesis),
    })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Whole or not at all, and for the owner alone: two of these files hold the key.
fn write_file(path: &Path, content: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use ringseed_ledger::{Addr, GenesisMember};

    use super::*;
    use crate::testing::TempDir;

    fn genesis() -> Genesis {
        let member = |seed: u8| GenesisMember {
            name: format!("m{seed}"),
            key: SigningKey::from_seed(&[seed; 32]).public(),
            consensus_addr: Addr::new(([127, 0, 0, 1], 7_000 + u16::from(seed)).into()).unwrap(),
            payload_addr: Addr::new(([127, 0, 0, 1], 8_000 + u16::from(seed)).into()).unwrap(),
            power: 1,
        };
        Genesis::new("films", Params::local(), (1..=3).map(member).collect()).unwrap()
    }

    #[test]
    fn a_home_names_the_market_and_keeps_what_was_signed() {
        let dir = TempDir::new("comet-home");
        let genesis = genesis();
        let abci = ListenAddr::Unix("/d/abci.sock".into());
        let home = Home {
            genesis: &genesis,
            seed: &[2; 32],
            p2p: ([127, 0, 0, 1], 7_002).into(),
            advertise: None,
            rpc: ([127, 0, 0, 1], 7_004).into(),
            abci: &abci,
        };
        home.write(dir.path()).unwrap();
        let signed = dir.path().join("data/priv_validator_state.json");
        std::fs::write(&signed, "height 7").unwrap();
        home.write(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&signed).unwrap(), "height 7");

        let read =
            |name: &str| std::fs::read_to_string(dir.path().join("config").join(name)).unwrap();
        let config: toml::Table = toml_of(&read("config.toml"));
        assert_eq!(config["proxy_app"].as_str(), Some("unix:///d/abci.sock"));
        assert_eq!(config["consensus"]["timeout_commit"].as_str(), Some("50ms"));
        let peers = config["p2p"]["persistent_peers"].as_str().unwrap();
        assert_eq!(peers.split(',').count(), 2);
        let first = SigningKey::from_seed(&[1; 32]).public().0;
        assert!(peers.contains(&format!("{}@127.0.0.1:7001", hex(&address_of(&first)))));
        let json: Value = serde_json::from_str(&read("genesis.json")).unwrap();
        assert_eq!(json["chain_id"], genesis.chain_id());
        let key_file = dir.path().join("config/priv_validator_key.json");
        assert_eq!(std::fs::metadata(key_file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    fn toml_of(text: &str) -> toml::Table {
        text.parse().unwrap()
    }
}
