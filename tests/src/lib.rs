//! What the end-to-end tests share: guests, disk images, a broker to run, and a look at its processes from outside.
//!
//! A test program runs on any machine with the binaries of Bulkhead: `BULKHEAD_BIN_DIR` says where they are; without it
//! they are built beside the test program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails by a panic, with the place and the cause"
)]

pub mod arch;
pub mod binaries;
pub mod captured;
pub mod disk;
pub mod guest;
pub mod linux;
pub mod machine;
pub mod outside;
pub mod probe;
pub mod tracer;
