//! libFuzzer's entry to [`bulkhead_fuzz::keyboard`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::keyboard(data));
