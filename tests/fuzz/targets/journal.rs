//! See `ringseed_fuzz::journal`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::journal::run(data));
