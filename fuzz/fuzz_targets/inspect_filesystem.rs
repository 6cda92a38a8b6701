//! Fuzzes: ext, squashfs and erofs images to the inspector.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("inspect_filesystem", bytes));
