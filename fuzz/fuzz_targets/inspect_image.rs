//! Fuzzes: any bytes as an image to the inspector.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("inspect_image", bytes));
