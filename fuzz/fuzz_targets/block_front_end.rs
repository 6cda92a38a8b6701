//! Fuzzes: vhost-user messages to the block device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("block_front_end", bytes));
