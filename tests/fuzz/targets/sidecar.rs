//! See `ringseed_fuzz::sidecar`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::sidecar::run(data));
