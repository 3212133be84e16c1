//! libFuzzer's entry to [`bulkhead_fuzz::ledger`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::ledger(data));
