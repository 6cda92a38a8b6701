//! Fuzzes: register accesses to the virtio-mmio transport.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("mmio", bytes));
