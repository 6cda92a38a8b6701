//! The virtual machine: memory, the split interrupt chip, and the vCPUs in their reset state.
//!
//! Everything is built before the process is locked down, and before anything untrusted is read. The order is of
//! weight: memory first, since KVM makes later changes wait for a grace period once there are in-kernel devices.

use super::cpuid;
use super::ioapic::Ioapic;
use super::layout::{IOAPIC_BYTES, IOAPIC_PINS, IOAPIC_START};
use super::msr;
use super::vcpu::Vcpu;
use crate::vmm::machine::{check_host, set_memory};
use crate::vmm::sync::lock;
use crate::vmm::virtio::view::Views;
use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES,
    KVM_PMU_CAP_DISABLE, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_lapic_state,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::sync::{Arc, Mutex};
use vm_memory::GuestMemoryMmap;
use wire::message::StartVmm;

/// Three pages for KVM on Intel hosts without unrestricted guests (KVM API KVM_SET_TSS_ADDR), in the hole.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page for the same hosts (KVM API KVM_SET_IDENTITY_MAP_ADDR).
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// The local vector table's entries for the two interrupt pins (Intel SDM volume 3 §12.5.1).
const LVT_LINT0: usize = 0x350;
/// The second of them.
const LVT_LINT1: usize = 0x360;
/// Delivery mode: an interrupt of the legacy controller, as firmware sets LINT0 of the first processor.
const EXT_INT: i8 = 7;
/// Delivery mode: NMI, as firmware sets LINT1.
const NMI: i8 = 4;

pub use crate::vmm::machine::MachineError;

/// What the vCPUs of a machine share with KVM.
#[derive(Debug)]
pub struct Platform {
    vm: VmFd,
    ioapic: Mutex<Ioapic>,
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
    let vcpus = start.vcpus;
    check_host(kvm, vcpus, &[(Cap::SplitIrqchip, "split interrupt chip")])?;
    let vm = kvm.create_vm().map_err(|error| MachineError::Kvm("create a virtual machine", error))?;
    let views = set_memory(kvm, &vm, memory, start.disks)?;
    switch_counters_off(&vm)?;
    // Hosts that need these two take them; the others have no such call.
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).unwrap_or(());
    vm.set_tss_address(TSS_ADDRESS).unwrap_or(());
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
    split.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&split).map_err(|error| MachineError::Kvm("split the interrupt chip", error))?;
    let platform = Arc::new(Platform { vm, ioapic: Mutex::default(), _memory: memory.clone(), views });
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| MachineError::Kvm("say its CPUID", error))?;
    let processor = cpuid::Machine { vcpus, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) };
    let vcpus = (0..vcpus.get()).map(|index| {
        let entries = processor.cpuid(supported.as_slice(), index);
        let fd =
            platform.vm.create_vcpu(u64::from(index)).map_err(|error| MachineError::Kvm("create a vCPU", error))?;
        prepare(&fd, &entries, index)?;
        Vcpu::new(index, fd, Arc::clone(&platform))
    });
    let vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
    Ok((platform, vcpus))
}

/// Takes the performance counters from the guest, where KVM has any: CPUID hides them, but AMD's oldest work without it.
fn switch_counters_off(vm: &VmFd) -> Result<(), MachineError> {
    let offered = vm.check_extension_raw(u64::from(KVM_CAP_PMU_CAPABILITY));
    if offered <= 0 || offered.unsigned_abs() & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let mut disable = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..kvm_enable_cap::default() };
    disable.args[0] = u64::from(KVM_PMU_CAP_DISABLE);
    vm.enable_cap(&disable).map_err(|error| MachineError::Kvm("switch performance counters off", error))
}

fn prepare(fd: &VcpuFd, cpuid: &[kvm_bindings::kvm_cpuid_entry2], index: u8) -> Result<(), MachineError> {
    let cpuid = CpuId::from_entries(cpuid).map_err(|_too_long| MachineError::List)?;
    fd.set_cpuid2(&cpuid).map_err(|error| MachineError::Kvm("set CPUID", error))?;
    let msrs = msr::for_kvm().ok_or(MachineError::List)?;
    let set = fd.set_msrs(&msrs).map_err(|error| MachineError::Kvm("set model-specific registers", error))?;
    if set != msrs.as_slice().len() {
        return Err(MachineError::Lacks("such model-specific register as the boot protocol needs"));
    }
    if index == 0 {
        // The others get theirs reset by INIT.
        let mut lapic = fd.get_lapic().map_err(|error| MachineError::Kvm("read the local APIC", error))?;
        set_lvt(&mut lapic, LVT_LINT0, EXT_INT);
        set_lvt(&mut lapic, LVT_LINT1, NMI);
        fd.set_lapic(&lapic).map_err(|error| MachineError::Kvm("set the local APIC", error))?;
    }
    Ok(())
}

/// Sets the delivery mode of a local vector, unmasked.
fn set_lvt(lapic: &mut kvm_lapic_state, register: usize, delivery_mode: i8) {
    let entry = [0, delivery_mode, 0, 0];
    for (byte, value) in lapic.regs.iter_mut().skip(register).zip(entry) {
        *byte = value;
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

    /// A guest reads memory that belongs to the architecture; false if it does not.
    #[must_use]
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some(offset) = ioapic_offset(address) else { return false };
        lock(&self.ioapic).read(offset, data);
        true
    }

    /// A guest writes memory that belongs to the architecture; false if it does not.
    ///
    /// # Errors
    /// When KVM refuses the new interrupt routes.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Result<bool, MachineError> {
        let Some(offset) = ioapic_offset(address) else { return Ok(false) };
        let mut ioapic = lock(&self.ioapic);
        if ioapic.write(offset, data) {
            // Under the lock, so that two vCPUs cannot leave an older table in KVM than the registers show.
            let routes: Vec<_> = ioapic.routes().into_iter().map(route).collect();
            let routes = KvmIrqRouting::from_entries(&routes).map_err(|_too_long| MachineError::List)?;
            self.vm.set_gsi_routing(&routes).map_err(|error| MachineError::Kvm("route interrupts", error))?;
        }
        Ok(true)
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(IOAPIC_START).filter(|&offset| offset < IOAPIC_BYTES)
}

fn route(msi: super::ioapic::Msi) -> kvm_irq_routing_entry {
    let message = kvm_irq_routing_msi { address_lo: msi.address, data: msi.data, ..kvm_irq_routing_msi::default() };
    kvm_irq_routing_entry {
        gsi: msi.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi: message },
        ..kvm_irq_routing_entry::default()
    }
}
