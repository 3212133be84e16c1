//! libFuzzer's entry to [`bulkhead_fuzz::vhost_net`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::vhost_net(data));
