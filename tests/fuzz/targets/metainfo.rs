//! See `ringseed_fuzz::metainfo`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::metainfo::run(data));
