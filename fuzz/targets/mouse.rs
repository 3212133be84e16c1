//! libFuzzer's entry to [`bulkhead_fuzz::mouse`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::mouse(data));
