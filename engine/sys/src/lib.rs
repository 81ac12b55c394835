//! What touches the machine. All unsafe code of ringseed lives in this crate.
pub mod hash;
