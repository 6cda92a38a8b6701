//! Fuzzes: both sides of the posted-write ring to each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("ring", bytes));
