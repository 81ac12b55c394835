//! Consensus drivers that order transactions for the ledger.
#![forbid(unsafe_code)]
