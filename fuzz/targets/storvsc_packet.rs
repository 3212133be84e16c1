//! libFuzzer's entry to [`bulkhead_fuzz::storvsc_packet`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::storvsc_packet(data));
