//! See `ringseed_fuzz::bitfield`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::bitfield::run(data));
