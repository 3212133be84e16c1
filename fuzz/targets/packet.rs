//! libFuzzer's entry to [`bulkhead_fuzz::packet`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::packet(data));
