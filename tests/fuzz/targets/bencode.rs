//! See `ringseed_fuzz::bencode`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::bencode::run(data));
