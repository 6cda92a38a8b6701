//! Fuzzes: any bytes as a kernel to the inspector.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("inspect_kernel", bytes));
