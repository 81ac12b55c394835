//! See `ringseed_fuzz::genesis`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::genesis::run(data));
