//! See `ringseed_fuzz::extension`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::extension::run(data));
