//! libFuzzer's entry to [`bulkhead_fuzz::synthvid`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::synthvid(data));
