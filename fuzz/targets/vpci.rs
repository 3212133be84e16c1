//! libFuzzer's entry to [`bulkhead_fuzz::vpci`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::vpci(data));
