//! Fuzzes: kernels and initrds to the loader of this host.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("loader", bytes));
