//! What an image or a kernel is, and what will go wrong with it.

use crate::{Report, Source};

/// The architecture of the guest that is to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit PCs.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// The guest that the image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its architecture.
    pub architecture: Architecture,
    /// The kernel command line (`init=`, `rdinit=`, `root=`), as far as it is known.
    pub cmdline: String,
    /// Its memory in bytes, where it is known.
    pub memory_bytes: Option<u64>,
}

/// Looks at an initramfs, a file system, a disk or an archive.
#[must_use]
pub fn image(_source: &dyn Source, _guest: &Guest) -> Report {
    Report::default()
}

/// Looks at a kernel.
#[must_use]
pub fn kernel(_source: &dyn Source, _guest: &Guest) -> Report {
    Report::default()
}
