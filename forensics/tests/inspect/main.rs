//! What the inspector says of images that are made here, byte by byte, or were made with the real tools (`fixtures/make`).
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is how a test fails, and its images are small"
)]

mod bounds;
mod disks;
mod documented;
mod filesystems;
mod initramfs;
mod kernels;
mod libraries;
mod linked;
mod make;
mod programs;
