//! libFuzzer's entry to [`bulkhead_fuzz::net_offload`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::net_offload(data));
