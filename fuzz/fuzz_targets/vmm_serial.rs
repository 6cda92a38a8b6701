//! Fuzzes: answers of a captured serial process to the vmm.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("vmm_serial", bytes));
