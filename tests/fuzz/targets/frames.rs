//! See `ringseed_fuzz::frames`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::frames::run(data));
