//! The interrupt controller, which is KVM's: made before the vCPUs, finished after them.
//!
//! Its routing is KVM's default: GSI n is SPI n. Nothing untrusted is read here. The descriptor of the controller is
//! closed when it is finished; the controller stays with the virtual machine.

use super::layout::{
    GIC_DISTRIBUTOR_START, GIC_INTERRUPTS, GIC_V2_CPU_START, GIC_V2_MOST_VCPUS, GIC_V3_REDISTRIBUTOR_START,
};
use crate::vmm::machine::MachineError;
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use nix::errno::Errno;
use wire::VcpuCount;
use wire::message::GicVersion;

/// A controller without its size and without vCPUs.
#[derive(Debug)]
pub struct Gic(DeviceFd);

impl Gic {
    /// Makes the controller and puts its registers where the layout says.
    ///
    /// # Errors
    /// When the host has no such controller for guests, or it cannot serve so many vCPUs.
    pub fn create(vm: &VmFd, version: GicVersion, vcpus: VcpuCount) -> Result<Self, MachineError> {
        let (type_, lacks, windows) = match version {
            GicVersion::V2 => (
                kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
                "GICv2 for guests",
                [(KVM_VGIC_V2_ADDR_TYPE_DIST, GIC_DISTRIBUTOR_START), (KVM_VGIC_V2_ADDR_TYPE_CPU, GIC_V2_CPU_START)],
            ),
            GicVersion::V3 => (
                kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
                "GICv3 for guests",
                [
                    (KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DISTRIBUTOR_START),
                    // The redistributors of all vCPUs, side by side from here on.
                    (KVM_VGIC_V3_ADDR_TYPE_REDIST, GIC_V3_REDISTRIBUTOR_START),
                ],
            ),
        };
        if version == GicVersion::V2 && vcpus.get() > GIC_V2_MOST_VCPUS {
            return Err(MachineError::GicV2Vcpus(GIC_V2_MOST_VCPUS));
        }
        let mut device = kvm_create_device { type_, fd: 0, flags: 0 };
        let gic = vm.create_device(&mut device).map_err(|error| match Errno::from_raw(error.errno()) {
            Errno::ENODEV => MachineError::Lacks(lacks),
            _ => MachineError::Kvm("make the interrupt controller", error),
        });
        let gic = Self(gic?);
        for (kind, address) in windows {
            gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &address, "place the interrupt controller")?;
        }
        Ok(gic)
    }

    /// Finishes the controller; all vCPUs must have been set up.
    ///
    /// # Errors
    /// When KVM refuses it.
    pub fn finish(self) -> Result<(), MachineError> {
        self.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &GIC_INTERRUPTS, "size the interrupt controller")?;
        let none: u64 = 0;
        self.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &none, "finish the interrupt controller")
    }

    fn set<T>(&self, group: u32, kind: u32, value: &T, what: &'static str) -> Result<(), MachineError> {
        let addr = std::ptr::from_ref(value) as u64;
        let attribute = kvm_device_attr { flags: 0, group, attr: kind.into(), addr };
        self.0.set_device_attr(&attribute).map_err(|error| MachineError::Kvm(what, error))
    }
}
