//! The virtual machine: memory, the interrupt controller, and the vCPUs in their reset state.
//!
//! Everything is built before the process is locked down, and before anything untrusted is read. The order is of
//! weight: memory first, then the interrupt controller, then the vCPUs, and the controller is finished last.

use super::gic::Gic;
use super::layout::ipa_bits;
use super::vcpu::Vcpu;
pub use crate::vmm::machine::MachineError;
use crate::vmm::machine::{check_host, set_memory};
use crate::vmm::virtio::view::Views;
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use nix::errno::Errno;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use wire::MemoryBytes;
use wire::message::StartVmm;

/// The bits of a guest-physical address that KVM offers unasked (KVM API KVM_CREATE_VM), and the only ones before 4.20.
const DEFAULT_ADDRESS_BITS: u32 = 40;

/// What the vCPUs of a machine share with KVM.
#[derive(Debug)]
pub struct Platform {
    vm: VmFd,
    // KVM reaches guest memory and the views through these mappings for as long as a vCPU can run.
    _memory: GuestMemoryMmap,
    views: Option<Views>,
}

/// Builds a machine.
///
/// # Errors
/// When KVM refuses a step or lacks something.
pub fn build(
    kvm: &Kvm,
    memory: &GuestMemoryMmap,
    start: &StartVmm,
) -> Result<(Arc<Platform>, Vec<Vcpu>), MachineError> {
    check_host(kvm, start.vcpus, &[(Cap::ArmPsci02, "PSCI 0.2"), (Cap::DeviceCtrl, "device control")])?;
    let vm = create_vm(kvm, start.memory)?;
    let views = set_memory(kvm, &vm, memory, start.disks)?;
    let gic = Gic::create(&vm, start.gic, start.vcpus)?;
    let platform = Arc::new(Platform { vm, _memory: memory.clone(), views });
    let mut target = kvm_vcpu_init::default();
    platform.vm.get_preferred_target(&mut target).map_err(MachineError::Cores)?;
    for feature in features(&platform.vm) {
        set_feature(&mut target, feature);
    }
    let vcpus = (0..start.vcpus.get()).map(|index| {
        let fd =
            platform.vm.create_vcpu(u64::from(index)).map_err(|error| MachineError::Kvm("create a vCPU", error))?;
        let mut target = target;
        if index != 0 {
            set_feature(&mut target, KVM_ARM_VCPU_POWER_OFF);
        }
        fd.vcpu_init(&target).map_err(|error| match Errno::from_raw(error.errno()) {
            Errno::EINVAL => MachineError::Cores(error),
            _ => MachineError::Kvm("set a vCPU up", error),
        })?;
        Vcpu::new(index, fd, Arc::clone(&platform))
    });
    let vcpus = vcpus.collect::<Result<Vec<_>, MachineError>>()?;
    gic.finish()?;
    Ok((platform, vcpus))
}

/// A virtual machine with addresses wide enough for its memory, and of the default width where that will do.
fn create_vm(kvm: &Kvm, memory: MemoryBytes) -> Result<VmFd, MachineError> {
    let needed = ipa_bits(memory);
    // 0 where KVM has no choice to offer (KVM_CAP_ARM_VM_IPA_SIZE).
    let limit = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
    let most = if limit == 0 { DEFAULT_ADDRESS_BITS } else { limit };
    if needed > most {
        return Err(MachineError::AddressBits { needed, limit: most });
    }
    let bits = needed.max(DEFAULT_ADDRESS_BITS.min(most));
    // Type 0 is the default width; `create_vm` of kvm-ioctls would ask for the widest.
    let vm = kvm.create_vm_with_type(if bits == DEFAULT_ADDRESS_BITS { 0 } else { bits.into() });
    vm.map_err(|error| MachineError::Kvm("create a virtual machine", error))
}

/// The features of all vCPUs: PSCI, and pointer authentication where the host has it. Deliberately absent are the PMU and
/// SVE: less of KVM in reach of the guest.
fn features(vm: &VmFd) -> Vec<u32> {
    let mut features = vec![KVM_ARM_VCPU_PSCI_0_2];
    if vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric) {
        features.extend([KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC]);
    }
    features
}

fn set_feature(target: &mut kvm_vcpu_init, feature: u32) {
    if let Some(word) = target.features.first_mut() {
        *word |= 1 << feature;
    }
}

impl Platform {
    /// The virtual machine.
    #[must_use]
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// The registers of the disks as the guest reads them, where KVM can keep it from writing them.
    #[must_use]
    pub fn views(&self) -> Option<&Views> {
        self.views.as_ref()
    }
}
