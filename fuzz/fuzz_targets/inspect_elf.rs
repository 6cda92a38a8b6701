//! Fuzzes: any bytes as the init of an initramfs to the inspector.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("inspect_elf", bytes));
