//! See `ringseed_fuzz::merkle`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::merkle::run(data));
