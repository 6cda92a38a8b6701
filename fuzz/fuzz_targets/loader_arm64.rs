//! Fuzzes: kernels and initrds to the loader of arm64.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("loader_arm64", bytes));
