//! Fuzzes: packets of captured processes to the supervision of the broker.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("broker_events", bytes));
