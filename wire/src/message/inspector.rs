//! The messages of the inspector, which looks at an image, a kernel or a console log, and what the host saw of a guest.

use super::Lockdown;
use crate::report::{Fact, Finding};
use crate::value::{CommandLine, MemoryBytes, Text};
use serde::{Deserialize, Serialize};

/// The architecture of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// 64-bit PCs.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// The guest that an image or a kernel is for, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedGuest {
    /// Its architecture.
    pub architecture: Architecture,
    /// Its kernel command line; empty where it is not known.
    pub cmdline: CommandLine,
    /// Its memory.
    pub memory: Option<MemoryBytes>,
}

/// What the bytes of a log are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogForm {
    /// The log.
    Plain,
    /// A recording of serial's ([`crate::recording`]).
    Recording,
}

/// What an inspector is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InspectorTask {
    /// To say what an image and a kernel are, and what will go wrong with them. Descriptors: the image if `has_image`,
    /// then the kernel if `has_kernel`, both read-only.
    Inspect {
        /// The guest.
        guest: InspectedGuest,
        /// Whether an image comes along.
        has_image: bool,
        /// Whether a kernel comes along.
        has_kernel: bool,
        /// Whether an image that is a kernel is to be looked at as one; else it is wrong to be a kernel.
        may_be_kernel: bool,
    },
    /// To say what a console log means. Descriptor: the log, read-only.
    Explain {
        /// The architecture of the guest that printed it, where it is known.
        architecture: Option<Architecture>,
        /// The form of the log.
        form: LogForm,
    },
}

/// broker → inspector. Descriptors: as each task says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartInspector {
    /// Report missing syscalls instead of killing.
    pub audit: bool,
    /// What it is for.
    pub task: InspectorTask,
}

/// broker → inspector, after `Ready`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToInspector {
    /// The jail was checked: read what came along. With what the host saw of the run, where there was one.
    Begin(HostSeen),
}

/// inspector → broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromInspector {
    /// In its jail; nothing untrusted was read yet.
    Ready(Lockdown),
    /// Something that is so.
    Fact(Fact),
    /// Something that is wrong.
    Finding(Finding),
    /// That was all; the inspector exits with status 0 after this.
    Finished,
    /// The host is at fault.
    Failed(Text),
}

/// What the host saw of a run. No guest can forge it, but for a reason that is read off the console (`guest-panic`); a captured
/// vmm can.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSeen {
    /// The reason with which the run ended, by its name in reports; none for a log alone.
    pub reason: Option<Text>,
    /// The bytes that the guest printed; none for a log alone.
    pub console_bytes: Option<u64>,
    /// What the vmm saw; none where it was not there to tell.
    pub machine: Option<MachineSeen>,
}

/// What the vmm saw of its guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSeen {
    /// Each vCPU whose thread came to tell, by its number.
    pub vcpus: Vec<VcpuSeen>,
    /// Each virtio disk, in their order.
    pub disks: Vec<DiskSeen>,
}

/// What was seen of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuSeen {
    /// Its number, from 0.
    pub vcpu: u8,
    /// Whether the guest has ever started it; the first one starts with the machine.
    pub started: bool,
    /// The exits that it made, by kind.
    pub exits: Exits,
    /// Its program counter a moment before that, where it was asked twice: whether it stands still.
    pub earlier_counter: Option<u64>,
    /// Its program counter at the end, where KVM tells it.
    pub program_counter: Option<u64>,
}

/// How often a vCPU left its guest, by what it wanted. Interrupts, waits, and what KVM does itself are not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// Reads of memory that is no RAM: registers of devices, or nothing.
    pub mmio_reads: u64,
    /// Writes to such memory.
    pub mmio_writes: u64,
    /// Reads of I/O ports; there are none on aarch64.
    pub port_reads: u64,
    /// Writes to I/O ports.
    pub port_writes: u64,
}

impl Exits {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.mmio_writes, self.port_reads, self.port_writes].into_iter().fold(self.mmio_reads, u64::saturating_add)
    }
}

/// What was seen of the driver of a virtio disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSeen {
    /// Every bit of the device status (virtio 1.2 §2.1) that the driver has ever set: 0 when no driver came, 1 ACKNOWLEDGE,
    /// 2 DRIVER, 4 DRIVER_OK, 8 FEATURES_OK, 128 FAILED.
    pub status: u8,
    /// What the driver did that it must not.
    pub refusals: u64,
}

impl DiskSeen {
    /// DRIVER_OK (virtio 1.2 §2.1).
    const DRIVER_OK: u8 = 4;

    /// Whether a driver has ever brought it into service.
    #[must_use]
    pub fn was_driven(&self) -> bool {
        self.status & Self::DRIVER_OK != 0
    }
}
