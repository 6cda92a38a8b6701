//! Fuzzes: TOML and flags to the config of the broker.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("config", bytes));
