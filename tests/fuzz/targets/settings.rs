//! See `ringseed_fuzz::settings`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::settings::run(data));
