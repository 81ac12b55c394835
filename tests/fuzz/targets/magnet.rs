//! See `ringseed_fuzz::magnet`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::magnet::run(data));
