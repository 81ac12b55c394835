//! See `ringseed_fuzz::abci`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::abci::run(data));
