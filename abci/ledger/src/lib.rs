//! The replicated state of a data market: pure, deterministic, cannot fail on any input.
#![forbid(unsafe_code)]
