//! Fuzzes: register accesses to the 16550A, against a model.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("uart", bytes));
