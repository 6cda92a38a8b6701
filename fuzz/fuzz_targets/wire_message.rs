//! Fuzzes: packets to the decoder of every message type.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("wire_message", bytes));
