//! libFuzzer's entry to [`bulkhead_fuzz::unmap_list`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::unmap_list(data));
