//! See `ringseed_fuzz::metadata`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::metadata::run(data));
