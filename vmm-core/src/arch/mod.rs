//! The selector of the architecture: the only file of this crate that asks for `target_arch`.
//!
//! [`x86_64`] and [`aarch64`] are pure: they take memory as a trait, and are compiled and tested on any host. What needs
//! KVM's ABI of the architecture, or those structures of `linux-loader` that it has on the architecture alone, lies in
//! the same folders and is `native`.

pub mod aarch64;
pub mod x86_64;

/// The machine of this host's architecture.
#[cfg(target_arch = "x86_64")]
#[path = "x86_64"]
pub mod native {
    pub use super::x86_64::*;

    pub mod boot;
    pub mod bzimage;
    pub mod cache;
    pub mod cpuid;
    pub mod elf;
    pub mod machine;
    pub mod msr;
    pub mod pvh;
    pub mod regs;
    pub mod vcpu;
    pub mod zero_page;
}

/// The machine of this host's architecture.
#[cfg(target_arch = "aarch64")]
#[path = "aarch64"]
pub mod native {
    pub use super::aarch64::*;

    pub mod cache;
    pub mod gic;
    pub mod machine;
    pub mod vcpu;
}

pub use native::{boot, cache, layout, machine, regs, vcpu};
