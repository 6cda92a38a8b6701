//! What differs between architectures: the one place of this crate with `cfg(target_arch)`.
//!
//! Old system calls that an architecture does not have are `None`, and an attempt that needs one is "not there".

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
