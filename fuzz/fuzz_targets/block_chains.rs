//! Fuzzes: descriptor chains to the block device: nothing but its buffers and its disk changes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run("block_chains", bytes));
