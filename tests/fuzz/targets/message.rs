//! See `ringseed_fuzz::message`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::message::run(data));
