//! libFuzzer's entry to [`bulkhead_fuzz::scsi_command`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bulkhead_fuzz::scsi_command(data));
