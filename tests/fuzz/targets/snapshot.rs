//! See `ringseed_fuzz::snapshot`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::snapshot::run(data));
