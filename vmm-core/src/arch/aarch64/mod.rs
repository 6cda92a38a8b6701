//! What is particular to aarch64 and pure; the rest of this folder is in `arch::native`.

pub mod boot;
pub mod fdt;
pub mod image;
pub mod layout;
pub mod regs;
