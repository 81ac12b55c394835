//! A ringseed datatrust.
#![forbid(unsafe_code)]
fn main() {}
