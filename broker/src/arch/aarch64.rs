//! aarch64.

use super::Gics;
use kvm_bindings::{
    kvm_create_device, kvm_device_type, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::Kvm;

/// The kernel's name of the console: a 16550A at a fixed MMIO address.
pub(crate) const CONSOLE: &str = "console=ttyS0";
/// Output before the serial driver is there; the FDT's `stdout-path` says where ("Linux kernel-parameters", earlycon).
pub(crate) const EARLYCON: &str = "earlycon";

/// How the kernel is to restart: it knows, by PSCI.
pub(crate) fn restart(_acpi: bool) -> Option<&'static str> {
    None
}

/// Whether the interrupt controller can be chosen.
pub(crate) const HAS_GIC: bool = true;

/// Which interrupt controllers for guests KVM has; none where it cannot be asked. Each is made in a virtual machine of its
/// own, which ends with the question.
pub(crate) fn gics(kvm: &Kvm) -> Option<Gics> {
    let has = |type_: kvm_device_type| {
        // Not KVM_CREATE_DEVICE_TEST: kvm-ioctls would take the descriptor that then is none for one of its own.
        let mut device = kvm_create_device { type_, fd: 0, flags: 0 };
        // With the widest addresses, which every host has.
        kvm.create_vm().map(|vm| vm.create_device(&mut device).is_ok()).ok()
    };
    Some(Gics {
        v2: has(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2)?,
        v3: has(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)?,
    })
}
