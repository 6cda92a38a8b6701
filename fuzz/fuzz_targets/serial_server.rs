//! Fuzzes: packets of a captured vmm and typed bytes to the serial process.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("serial_server", bytes));
