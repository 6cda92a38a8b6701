//! What building a machine has in common on all architectures.
//!
//! Nothing untrusted is read here.

#![allow(unsafe_code, reason = "KVM takes guest memory by its address in this process")]

use super::virtio::view::{ViewError, Views};
use crate::arch::layout;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use wire::{DiskCount, VcpuCount};

/// The stable version of KVM's interface (KVM API KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;

/// Why the machine could not be built, or its interrupts not routed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused a call.
    #[error("KVM refused to {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM lacks something.
    #[error("this host's KVM has no {0}")]
    Lacks(&'static str),
    /// More vCPUs than KVM offers.
    #[error("this host's KVM runs at most {0} vCPUs")]
    Vcpus(usize),
    /// More vCPUs than the interrupt controller has places for.
    #[error("a GICv2 serves at most {0} vCPUs; more need a GICv3")]
    GicV2Vcpus(u8),
    /// More memory than KVM can address.
    #[error("guest memory needs addresses of {needed} bits, this host's KVM has at most {limit}")]
    AddressBits {
        /// What the end of memory needs.
        needed: u32,
        /// What KVM offers.
        limit: u32,
    },
    /// The host's cores are not of one kind, as far as KVM is concerned.
    #[error(
        "KVM refused to set a vCPU up; on a host with cores of several kinds, name those of one kind in machine.cpus"
    )]
    Cores(#[source] kvm_ioctls::Error),
    /// There is no memory for the registers of the disks.
    #[error(transparent)]
    Views(#[from] ViewError),
    /// A list for KVM was longer than it takes.
    #[error("a list for KVM is too long")]
    List,
}

/// Checks that KVM has what every architecture needs, and `needed` as well.
///
/// # Errors
/// When it has not.
pub fn check_host(kvm: &Kvm, vcpus: VcpuCount, needed: &[(Cap, &'static str)]) -> Result<(), MachineError> {
    if kvm.get_api_version() != API_VERSION {
        return Err(MachineError::Lacks("interface of version 12"));
    }
    let always = [
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::UserMemory, "user memory"),
    ];
    if let Some((_, name)) = always.iter().chain(needed).find(|&&(cap, _)| !kvm.check_extension(cap)) {
        return Err(MachineError::Lacks(name));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus.get()) > most { Err(MachineError::Vcpus(most)) } else { Ok(()) }
}

/// Gives a virtual machine its memory, and, for reading alone, the registers of its disks where KVM has such memory. The
/// caller keeps `memory` and the result for as long as a vCPU can run.
///
/// # Errors
/// When KVM refuses it.
pub fn set_memory(
    kvm: &Kvm,
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    disks: DiskCount,
) -> Result<Option<Views>, MachineError> {
    let mut slots = 0..;
    for (region, slot) in memory.iter().zip(&mut slots) {
        let address = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_no_address| MachineError::Lacks("address for guest memory"))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        // SAFETY: the range is a mapping of exactly this size, which `Platform` keeps for as long as a vCPU can run, and
        // this process touches guest memory only through vm-memory, which expects it to change at any time.
        unsafe { vm.set_user_memory_region(region) }.map_err(|error| MachineError::Kvm("take guest memory", error))?;
    }
    if !kvm.check_extension(Cap::ReadonlyMem) {
        return Ok(None);
    }
    let views = Views::map(disks)?;
    if let (Some(views), Some(slot)) = (&views, slots.next()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::VIRTIO_START,
            memory_size: views.memory().size() as u64,
            userspace_addr: views.memory().as_ptr().addr() as u64,
        };
        // SAFETY: the range is a mapping of exactly this size, which `Platform` keeps for as long as a vCPU can run; the
        // guest only reads it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| MachineError::Kvm("show the registers of the disks", error))?;
    }
    Ok(views)
}
