//! libFuzzer's entry to [`bulkhead_fuzz::ipc_message`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::ipc_message(data));
