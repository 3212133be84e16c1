//! libFuzzer's entry to [`bulkhead_fuzz::rndis`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::rndis(data));
