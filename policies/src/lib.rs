//! Seccomp policies as data, and the jail that each of Bulkhead's processes is started in.
//!
//! A jail has two halves. The broker's half ([`spawn`], feature `broker`) stands before the binary is exec'ed: namespaces, an empty
//! read-only root, an unprivileged id, no capabilities, resource limits. The process's half ([`lockdown`]) is the first
//! thing it does: Landlock, seccomp, not dumpable. Then the broker looks at the result from outside ([`inspect`]).

#[cfg(feature = "broker")]
mod arch;
#[cfg(feature = "broker")]
pub mod audit;
pub mod code;
pub mod guest_memory;
#[cfg(feature = "broker")]
pub mod inspect;
pub mod lockdown;
#[cfg(feature = "broker")]
pub mod rules;
pub mod seccomp;
#[cfg(feature = "broker")]
pub mod spawn;
#[cfg(feature = "usage")]
pub mod usage;

/// A process of Bulkhead that runs in a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Process {
    /// Writes the kernel, the initrd and the boot tables into guest memory.
    Loader,
    /// Holds the KVM descriptor and runs the vCPUs.
    Vmm,
    /// The 16550A.
    Serial,
    /// One disk.
    VirtioBlk,
    /// Looks at an image, a kernel or a console log.
    Inspector,
}

impl Process {
    /// The name in logs, reports and policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loader => "loader",
            Self::Vmm => "vmm",
            Self::Serial => "serial",
            Self::VirtioBlk => "virtio-blk",
            Self::Inspector => "inspector",
        }
    }

    /// The file name of the binary.
    #[must_use]
    pub fn binary(self) -> &'static str {
        match self {
            Self::Loader => "bulkhead-loader",
            Self::Vmm => "bulkhead-vmm",
            Self::Serial => "bulkhead-serial",
            Self::VirtioBlk => "bulkhead-virtio-blk",
            Self::Inspector => "bulkhead-inspector",
        }
    }
}
