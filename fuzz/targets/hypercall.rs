//! libFuzzer's entry to [`bulkhead_fuzz::hypercall`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::hypercall(data));
