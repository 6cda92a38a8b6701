//! Fuzzes: entry states of a captured loader to the check of the vmm.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("entry", bytes));
