//! What the broker knows of the guest's architecture: the one place with `cfg(target_arch)`.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;

/// The interrupt controllers that KVM has for guests, where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gics {
    /// GICv2.
    pub(crate) v2: bool,
    /// GICv3.
    pub(crate) v3: bool,
}
