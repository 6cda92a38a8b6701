//! Fuzzes: any machine to the device tree, read back by a reader of our own.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("device_tree", bytes));
