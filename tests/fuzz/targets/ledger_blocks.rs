//! See `ringseed_fuzz::ledger_blocks`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringseed_fuzz::ledger_blocks::run(data));
