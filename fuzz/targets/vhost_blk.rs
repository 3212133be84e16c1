//! libFuzzer's entry to [`bulkhead_fuzz::vhost_blk`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::vhost_blk(data));
