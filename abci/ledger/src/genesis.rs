//! The first state of a market: its name, its parameters, its founding members.
//!
//! Operators read and pass around a text file (TOML). What is hashed is never that text but a fixed
//! binary encoding of what it says, so that blank lines and comments do not make another market.

use core::fmt;
use core::fmt::Write as _;
use core::str::FromStr;
use std::collections::BTreeSet;

use thiserror::Error;

use crate::addr::{Addr, AddrError};
use crate::codec::Writer;
use crate::key::{GenesisHash, PublicKey, sha256};
use crate::params::{POWER_MAX, Params, ParamsError, RULES_VERSION_MAX, VALIDATORS_MAX};

/// Longest name of a market, in bytes.
pub const MARKET_NAME_LEN_MAX: usize = 32;
/// Longest name of a member, in bytes.
pub const MEMBER_NAME_LEN_MAX: usize = 32;

const DOMAIN: &[u8] = b"ringseed genesis v1\0";

/// Everything that two nodes must have in common to be in one market.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Name of the market: 1 to 32 of `a-z 0-9 -`, a letter first. Two markets may share it.
    pub market: String,
    /// What the founders agreed on.
    pub params: Params,
    /// The founders, sorted by key. All have power.
    pub members: Vec<GenesisMember>,
}

/// A founding member. Its text form is `NAME,KEY,CONSENSUS_ADDR,PAYLOAD_ADDR,POWER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenesisMember {
    /// What people call it: 1 to 32 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// Its node key.
    pub key: PublicKey,
    /// Where it speaks consensus.
    pub consensus_addr: Addr,
    /// Where it serves payload.
    pub payload_addr: Addr,
    /// Its voting power, 1 to [`POWER_MAX`].
    pub power: u64,
}

/// Why a genesis makes no market.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GenesisError {
    /// The file is no TOML of the expected shape.
    #[error("the genesis file cannot be read: {0}")]
    Syntax(String),
    /// The market's name breaks the rule.
    #[error("market name {0:?}: use 1 to {MARKET_NAME_LEN_MAX} of a-z 0-9 -, a letter first")]
    MarketName(String),
    /// A member's name breaks the rule.
    #[error("member name {0:?}: use 1 to {MEMBER_NAME_LEN_MAX} of A-Z a-z 0-9 . _ -")]
    MemberName(String),
    /// A parameter is out of its bounds.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The market's rules are newer than this program.
    #[error(
        "the market runs rules {wanted}, this program knows up to {RULES_VERSION_MAX}: upgrade it"
    )]
    RulesTooNew {
        /// The version that the genesis asks for.
        wanted: u32,
    },
    /// Nobody to make blocks.
    #[error("a market needs at least one member")]
    NoMembers,
    /// More validators than a full mesh carries.
    #[error("{count} founding members, at most {VALIDATORS_MAX} are allowed")]
    TooManyMembers {
        /// How many there were.
        count: usize,
    },
    /// Power 0 or above the bound.
    #[error("member {name}: power {power}, allowed are 1 to {POWER_MAX}")]
    Power {
        /// Whose.
        name: String,
        /// What it said.
        power: u64,
    },
    /// A key that is no point of the curve, or of small order.
    #[error("member {name}: {key} is no usable ed25519 public key")]
    Key {
        /// Whose.
        name: String,
        /// The key.
        key: PublicKey,
    },
    /// An address that others cannot dial.
    #[error("member {name}: {error}")]
    Addr {
        /// Whose.
        name: String,
        /// What is wrong with it.
        error: AddrError,
    },
    /// Two members share what must be unique.
    #[error("{what} {value} appears twice")]
    Duplicate {
        /// `key`, `name` or `address`.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// Two genesis with one hash would number their members differently.
    #[error("the founding members are not sorted by key")]
    Unsorted,
    /// A member line that has not the five parts.
    #[error("member {0:?}: expected NAME,KEY,CONSENSUS_ADDR,PAYLOAD_ADDR,POWER")]
    MemberSyntax(String),
}

impl Genesis {
    /// A checked genesis; sorts the members, so that their order on the command line does not matter.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn new(
        market: &str,
        params: Params,
        mut members: Vec<GenesisMember>,
    ) -> Result<Self, GenesisError> {
        members.sort_by_key(|member| member.key);
        let genesis = Self { market: market.to_owned(), params, members };
        genesis.validate()?;
        Ok(genesis)
    }

    /// Checks names, keys, addresses, powers and parameters, and that the members are sorted.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), GenesisError> {
        if !is_market_name(&self.market) {
            return Err(GenesisError::MarketName(self.market.clone()));
        }
        if self.params.rules_version > RULES_VERSION_MAX {
            return Err(GenesisError::RulesTooNew { wanted: self.params.rules_version });
        }
        self.params.validate()?;
        if self.members.is_empty() {
            return Err(GenesisError::NoMembers);
        }
        if self.members.len() > VALIDATORS_MAX {
            return Err(GenesisError::TooManyMembers { count: self.members.len() });
        }
        let mut seen = BTreeSet::new();
        let mut once = |what: &'static str, value: String| match seen.insert((what, value.clone()))
        {
            true => Ok(()),
            false => Err(GenesisError::Duplicate { what, value }),
        };
        for member in &self.members {
            let name = || member.name.clone();
            if !is_member_name(&member.name) {
                return Err(GenesisError::MemberName(name()));
            }
            if !(1..=POWER_MAX).contains(&member.power) {
                return Err(GenesisError::Power { name: name(), power: member.power });
            }
            if !member.key.is_usable() {
                return Err(GenesisError::Key { name: name(), key: member.key });
            }
            once("key", member.key.to_string())?;
            once("name", name())?;
            once("address", member.consensus_addr.to_string())?;
            once("address", member.payload_addr.to_string())?;
        }
        match self.members.is_sorted_by(|a, b| a.key < b.key) {
            true => Ok(()),
            false => Err(GenesisError::Unsorted),
        }
    }

    /// The fixed binary encoding that [`Genesis::hash`] is taken of.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(DOMAIN).text(&self.market);
        self.params.write(&mut writer);
        writer.u32(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        for member in &self.members {
            writer.text(&member.name).bytes(&member.key.0);
            member.consensus_addr.write(&mut writer);
            member.payload_addr.write(&mut writer);
            writer.u64(member.power);
        }
        writer.into_bytes()
    }

    /// The full name of the market; every signature of a transaction covers it.
    pub fn hash(&self) -> GenesisHash {
        GenesisHash(sha256(&[&self.to_bytes()]))
    }

    /// `NAME-` and the first 16 hexadecimal digits of the hash.
    pub fn chain_id(&self) -> String {
        chain_id(&self.market, &self.hash())
    }

    /// The file that operators pass around.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# The genesis of a ringseed market. Any change of a value makes another market.\n\
             # hash = {}\n\nmarket = \"{}\"\n\n[params]\n",
            self.hash(),
            self.market
        );
        for (name, value) in self.params.entries() {
            let _ = writeln!(text, "{name} = {value}");
        }
        for member in &self.members {
            let _ = write!(
                text,
                "\n[[members]]\nname = \"{}\"\nkey = \"{}\"\nconsensus_addr = \"{}\"\npayload_addr = \"{}\"\npower = {}\n",
                member.name, member.key, member.consensus_addr, member.payload_addr, member.power
            );
        }
        text
    }

    /// Reads the file that [`Genesis::to_text`] writes, or one that says the same in other TOML.
    ///
    /// # Errors
    /// [`GenesisError`]; unknown fields are refused, missing parameters take their defaults.
    pub fn from_text(text: &str) -> Result<Self, GenesisError> {
        let file: File = toml::from_str(text).map_err(|e| GenesisError::Syntax(e.to_string()))?;
        let mut members = Vec::new();
        for member in file.members {
            let name = || member.name.clone();
            let addr = |text: &str| {
                text.parse().map_err(|error| GenesisError::Addr { name: name(), error })
            };
            members.push(GenesisMember {
                key: member
                    .key
                    .parse()
                    .map_err(|e| GenesisError::Syntax(format!("member {}: key: {e}", name())))?,
                consensus_addr: addr(&member.consensus_addr)?,
                payload_addr: addr(&member.payload_addr)?,
                power: member.power,
                name: member.name.clone(),
            });
        }
        Self::new(&file.market, file.params, members)
    }
}

impl fmt::Display for GenesisMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, key, consensus_addr, payload_addr, power } = self;
        write!(f, "{name},{key},{consensus_addr},{payload_addr},{power}")
    }
}

impl FromStr for GenesisMember {
    type Err = GenesisError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || GenesisError::MemberSyntax(text.to_owned());
        let parts: Vec<&str> = text.split(',').collect();
        let [name, key, consensus_addr, payload_addr, power] = parts.as_slice() else {
            return Err(syntax());
        };
        let addr = |text: &str| {
            text.parse().map_err(|error| GenesisError::Addr { name: (*name).to_owned(), error })
        };
        Ok(Self {
            name: (*name).to_owned(),
            key: key.parse().map_err(|_| syntax())?,
            consensus_addr: addr(consensus_addr)?,
            payload_addr: addr(payload_addr)?,
            power: power.parse().map_err(|_| syntax())?,
        })
    }
}

/// `NAME-` and the first 16 hexadecimal digits of the genesis hash.
pub(crate) fn chain_id(market: &str, hash: &GenesisHash) -> String {
    let digits: String = hash.to_string().chars().take(16).collect();
    format!("{market}-{digits}")
}

/// 1 to 32 of `a-z 0-9 -`, a letter first.
pub fn is_market_name(name: &str) -> bool {
    let of_set = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    name.len() <= MARKET_NAME_LEN_MAX
        && name.bytes().next().is_some_and(|c| c.is_ascii_lowercase())
        && name.bytes().all(of_set)
}

/// 1 to 32 of `A-Z a-z 0-9 . _ -`.
pub fn is_member_name(name: &str) -> bool {
    let of_set = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=MEMBER_NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(of_set)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    market: String,
    #[serde(default)]
    params: Params,
    members: Vec<FileMember>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMember {
    name: String,
    key: String,
    consensus_addr: String,
    payload_addr: String,
    power: u64,
}
