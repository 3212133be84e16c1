//! libFuzzer's entry to [`bulkhead_fuzz::web`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::web(data));
