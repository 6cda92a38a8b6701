//! Fuzzes: requests and crashes to the block device, against a model in memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("block_model", bytes));
