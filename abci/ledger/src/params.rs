//! The market's parameters: integers with bounds, set at genesis, stored in the state.

use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer, field_error};

/// The newest rules that this binary knows. A market whose rules are newer is refused by name.
pub const RULES_VERSION_MAX: u32 = 1;
/// Most validators at any time; a full mesh of links is fine to about this many.
pub const VALIDATORS_MAX: usize = 50;
/// Most power of one validator. Sums of 50 of them never come near an overflow.
pub const POWER_MAX: u64 = 1_000;
/// How far ahead of the current height a transaction may stay valid. A registration lives at least
/// as long, so that its nonce can be forgotten with it and nothing replays.
pub const VALID_AHEAD_HEIGHTS_MAX: u64 = 10_000;

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $default:literal in $min:literal ..= $max:literal;)*) => {
        /// What the members of a market agreed on before its first block.
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Params {
            $($(#[$doc])* #[doc = concat!("\n\nDefault ", $default, ", bounds ", $min, " to ", $max, ".")] pub $name: $kind,)*
        }

        impl Default for Params {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Params {
            /// Names in the order of the encoding, with the values.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), u64::from(self.$name)),)*]
            }

            /// Checks every bound.
            ///
            /// # Errors
            /// The first parameter that is out of its bounds.
            pub fn validate(&self) -> Result<(), ParamsError> {
                $(
                    if !($min..=$max).contains(&self.$name) {
                        return Err(ParamsError {
                            name: stringify!($name),
                            value: u64::from(self.$name),
                            min: $min,
                            max: $max,
                        });
                    }
                )*
                Ok(())
            }

            pub(crate) fn write(&self, writer: &mut Writer) {
                $(writer.$kind(self.$name);)*
            }

            pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let params = Self { $($name: reader.$kind(stringify!($name))?,)* };
                params.validate().map_err(|e| field_error(e.name, "is out of its bounds"))?;
                Ok(params)
            }
        }
    };
}

params! {
    /// Version of the rules that the ledger runs.
    rules_version: u32 = 1 in 1..=1;
    /// Least time between two blocks, in milliseconds.
    block_interval_ms_min: u32 = 1_000 in 10..=600_000;
    /// Time between two blocks while there is no transaction, in milliseconds.
    idle_block_interval_ms: u32 = 10_000 in 10..=3_600_000;
    /// A candidate that is not promoted so many heights after its offer expires.
    candidate_expiry_heights: u64 = 86_400 in 10..=100_000_000;
    /// A registration that is not admitted so many heights later expires. Not below
    /// [`VALID_AHEAD_HEIGHTS_MAX`], because its nonce is forgotten with it.
    registration_expiry_heights: u64 = 86_400 in 10_000..=100_000_000;
    /// Heights between a removal and the moment at which its bytes may go.
    removal_grace_heights: u64 = 100 in 1..=100_000_000;
    /// Heights over which added power is summed: at most max(1, a quarter) is added in so many.
    trust_window_heights: u64 = 604_800 in 1..=100_000_000;
    /// Largest listing, in bytes.
    listing_size_max_bytes: u64 = 1_099_511_627_776 in 1..=1_125_899_906_842_624;
    /// Most bytes in one member's open candidates.
    open_candidate_bytes_max: u64 = 4_398_046_511_104 in 1..=1_125_899_906_842_624;
    /// Most open candidates of one member.
    open_candidates_max: u32 = 10_000 in 1..=1_000_000;
    /// Most admitted members, validators included.
    members_max: u32 = 1_000 in 1..=10_000;
    /// Most registrations that wait for admission.
    registrations_max: u32 = 256 in 1..=10_000;
    /// Longest transaction, in bytes.
    tx_len_max: u32 = 65_536 in 1_024..=65_536;
    /// Most bytes of transactions in a block.
    block_len_max: u32 = 1_048_576 in 65_536..=1_048_576;
}

impl Params {
    /// A market on one machine for a while: blocks as fast as every 50 ms, and windows so short that
    /// they end within seconds even while nothing happens.
    pub fn local() -> Self {
        Self {
            block_interval_ms_min: 50,
            idle_block_interval_ms: 1_000,
            removal_grace_heights: 3,
            trust_window_heights: 2,
            ..Self::default()
        }
    }
}

/// A parameter out of its bounds.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("parameter {name} is {value}, allowed are {min} to {max}")]
pub struct ParamsError {
    /// The parameter's name.
    pub name: &'static str,
    /// What it was set to.
    pub value: u64,
    /// Least allowed value.
    pub min: u64,
    /// Greatest allowed value.
    pub max: u64,
}
