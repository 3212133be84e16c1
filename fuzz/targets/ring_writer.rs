//! libFuzzer's entry to [`bulkhead_fuzz::ring_writer`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::ring_writer(data));
