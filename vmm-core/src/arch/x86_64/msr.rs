//! The model-specific registers of a vCPU at the start, where KVM's reset values are not what a boot protocol promises.

use kvm_bindings::{Msrs, kvm_msr_entry};

/// IA32_MISC_ENABLE (Intel SDM volume 4).
const MISC_ENABLE: u32 = 0x1a0;
/// IA32_MISC_ENABLE: fast string operations.
const FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE (Intel SDM volume 3 §13.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_MTRR_DEF_TYPE: MTRRs enabled, all memory write-back.
const WRITE_BACK: u64 = (1 << 11) | 6;

/// The registers to set.
#[must_use]
pub fn initial() -> Vec<kvm_msr_entry> {
    let set = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    vec![set(MISC_ENABLE, FAST_STRING), set(MTRR_DEF_TYPE, WRITE_BACK)]
}

/// The same for KVM_SET_MSRS; `None` only if there were more than KVM takes at once.
#[must_use]
pub fn for_kvm() -> Option<Msrs> {
    Msrs::from_entries(&initial()).ok()
}
