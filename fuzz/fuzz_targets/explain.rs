//! Fuzzes: console logs to the explanation of the inspector.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("explain", bytes));
