//! The replicated state of a data market: pure, deterministic, cannot fail on any input.
//!
//! A [`Genesis`] makes a [`State`]; a [`DecidedBlock`] of signed [`Tx`]s is executed on it
//! ([`State::execute`], which leaves the state alone) and its [`Delta`] committed
//! ([`State::commit`]). The same blocks give the same app hash everywhere: there is no clock, no
//! float, no I/O, no map with a random order here, and bad input is a [`TxCode`].
//!
//! ```
//! use ringseed_ledger::{
//!     DecidedBlock, Genesis, Params, SigningKey, State, StateKey, Tx, TxBody, TxCode,
//! };
//!
//! let key = SigningKey::from_seed(&[7; 32]);
//! let member = format!("alice,{},127.0.0.1:4000,127.0.0.1:5000,1", key.public());
//! let genesis = Genesis::new("films", Params::local(), vec![member.parse()?])?;
//! let mut state = State::from_genesis(&genesis)?;
//!
//! let body = TxBody::attest(Vec::new(), Vec::new());
//! let nonce = state.nonce(&key.public()) + 1;
//! let tx = Tx::sign(&key, &state.genesis_hash(), nonce, state.height() + 100, body)?;
//! let block = DecidedBlock {
//!     height: state.height() + 1,
//!     txs: vec![tx.to_bytes()],
//!     proposer: key.public(),
//!     misbehaviour: Vec::new(),
//! };
//! let outcome = state.execute(&block);
//! assert_eq!(outcome.results[0].code, TxCode::Ok);
//! state.commit(&outcome.delta)?;
//!
//! let signer = StateKey::Nonce(key.public());
//! let value = state.value(&signer);
//! state.proof(&signer).verify(&state.app_hash(), &signer, value.as_deref())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Words (see the design, section 7): a *member* is a registered and admitted key, an *observer* a
//! member without power, a *validator* one with power, an *owner* the key that signed a candidate, a
//! *candidate* an offered listing that is not yet one.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::disallowed_types,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unwrap_used
    )
)]

mod addr;
mod block;
mod code;
mod codec;
mod delta;
mod execute;
mod genesis;
mod key;
mod overlay;
mod params;
mod propose;
mod record;
mod rules;
mod snapshot;
mod state;
mod tree;
mod tx;

pub use addr::{Addr, AddrError};
pub use block::{
    BlockOutcome, CommitError, DecidedBlock, Event, Misbehaviour, PENDING_PER_SIGNER_MAX,
    PendingNonces, ProposalFault, TxResult, ValidatorUpdate,
};
pub use code::TxCode;
pub use codec::DecodeError;
pub use delta::Delta;
pub use genesis::{
    Genesis, GenesisError, GenesisMember, MARKET_NAME_LEN_MAX, MEMBER_NAME_LEN_MAX, is_market_name,
    is_member_name,
};
pub use key::{
    AppHash, BadSignature, DataHash, GenesisHash, InfoHashV1, ParseHexError, PublicKey, Signature,
    SigningKey, TxHash,
};
pub use params::{
    POWER_MAX, Params, ParamsError, RULES_VERSION_MAX, VALID_AHEAD_HEIGHTS_MAX, VALIDATORS_MAX,
};
pub use record::{Candidate, Listing, Member, MemberSet, Standing, StateKey, Tombstone, Validator};
pub use snapshot::SnapshotError;
pub use state::{State, is_over_two_thirds};
pub use tree::{Proof, ProofError};
pub use tx::{
    ATTEST_IDS_MAX, Endpoint, LISTING_NAME_LEN_MAX, Offer, TX_LEN_MAX, TX_VERSION, Tx, TxBody,
    TxError,
};
