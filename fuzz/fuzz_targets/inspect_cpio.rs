//! Fuzzes: any archive that is made well, and cut anywhere, to the inspector.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("inspect_cpio", bytes));
