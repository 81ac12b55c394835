//! See `ringseed_fuzz::record_log`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::record_log::run(data));
