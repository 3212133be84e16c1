//! libFuzzer's entry to [`bulkhead_fuzz::seat`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::seat(data));
