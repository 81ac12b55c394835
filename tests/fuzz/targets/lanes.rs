//! See `ringseed_fuzz::lanes`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::lanes::run(data));
