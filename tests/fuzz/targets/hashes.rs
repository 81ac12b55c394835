//! See `ringseed_fuzz::hashes`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::hashes::run(data));
