//! libFuzzer's entry to [`bulkhead_fuzz::ring_reader`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::ring_reader(data));
