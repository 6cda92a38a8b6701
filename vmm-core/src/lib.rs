//! The loader and the vmm.
//!
//! The loader parses boot files in a jail of its own and is gone before the first guest instruction; the vmm runs the
//! guest. What both know of the machine, its memory map and its guest memory, is in [`arch`] and [`memory`].

pub mod arch;
pub mod loader;
pub mod memory;
pub mod vmm;
