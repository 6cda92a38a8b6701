//! The loader process: identifies the boot files and writes them and the boot tables into guest memory.
//!
//! It distrusts every byte of the kernel and the initrd; whoever controls them gains at most what the guest has anyway,
//! its memory. It runs in its jail before it reads the first of them, answers once, and ends before the guest starts.

pub mod entropy;
pub mod fields;
pub mod gzip;
pub mod image;
pub mod initrd;
pub mod kernel;
pub mod magic;
pub mod process;

use entropy::Entropy;
use image::ImageError;
use initrd::InitrdError;
use kernel::KernelError;
use linux_loader::{cmdline, configurator};
use std::error::Error;
use vm_memory::GuestMemoryError;
use wire::message::{BootFile, FromLoader, GicVersion};
use wire::{CommandLine, DiskCount, MemoryBytes, Text, VcpuCount};

/// Something that was put into guest memory, below 4 GiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placed {
    /// The guest-physical address.
    pub start: u32,
    /// The size in bytes.
    pub bytes: u32,
}

/// Where an initrd can go.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The start of RAM.
    pub ram_start: u64,
    /// The end of the kernel, with the memory that it needs to start.
    pub kernel_end: u64,
    /// The end of this machine's RAM below 4 GiB.
    pub ram_end: u64,
    /// The end that it would have with any amount of memory.
    pub ram_end_most: u64,
    /// The end of what the kernel can reach.
    pub reach_end: u64,
    /// The size of guest memory in MiB, for the refusal.
    pub have_mib: u64,
}

/// The machine that the guest is told of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The size of guest memory.
    pub memory: MemoryBytes,
    /// The number of virtual CPUs.
    pub vcpus: VcpuCount,
    /// The number of disks.
    pub disks: DiskCount,
    /// Whether the guest gets ACPI tables.
    pub acpi: bool,
    /// The interrupt controller, where the architecture has a choice.
    pub gic: GicVersion,
    /// The kernel command line.
    pub cmdline: CommandLine,
    /// Random numbers for the guest, where the boot protocol hands them over.
    pub entropy: Entropy,
}

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel is refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd is refused.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// A boot file could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A boot structure could not be written.
    #[error("a boot structure could not be written to guest memory")]
    Memory(#[from] GuestMemoryError),
    /// A boot structure could not be written.
    #[error("a boot structure could not be written to guest memory")]
    Structure(#[from] configurator::Error),
    /// The device tree could not be built.
    #[error("the device tree cannot be built")]
    DeviceTree(#[from] vm_fdt::Error),
    /// The command line cannot be one.
    #[error("the kernel command line cannot be built")]
    CommandLine(#[from] cmdline::Error),
    /// The command line could not be written.
    #[error("the kernel command line could not be written to guest memory")]
    WriteCommandLine(#[from] linux_loader::loader::Error),
}

impl From<LoadError> for FromLoader {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Kernel(why) => Self::Refused { file: BootFile::Kernel, why: Text::truncated(why) },
            LoadError::Initrd(why) => Self::Refused { file: BootFile::Initrd, why: Text::truncated(why) },
            error => Self::Failed(chain(&error)),
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> Text {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    Text::truncated(text)
}
