//! What CPUID tells the guest: what KVM supports, the topology of this machine (one socket, N cores, one thread each),
//! and nothing that is not there (nested virtualization, performance counters).
//!
//! Pure: takes and returns KVM's entries.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use wire::VcpuCount;

/// Leaf 1 ecx (Intel SDM volume 2, CPUID).
mod leaf1_ecx {
    pub(super) const MONITOR: u32 = 1 << 3;
    pub(super) const VMX: u32 = 1 << 5;
    pub(super) const PDCM: u32 = 1 << 15;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}
/// Leaf 1 edx: several logical processors in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ecx (AMD APM volume 3, appendix E).
mod amd_ecx {
    pub(super) const CMP_LEGACY: u32 = 1 << 1;
    pub(super) const SVM: u32 = 1 << 2;
    pub(super) const PERF_CTR_CORE: u32 = 1 << 23;
    pub(super) const PERF_CTR_NB: u32 = 1 << 24;
}
/// Leaf 6 eax: the APIC timer runs at all times.
const ARAT: u32 = 1 << 2;
/// Leaves that describe what this machine does not have: MONITOR, performance counters, SGX, processor trace, AMD's
/// SVM, instruction-based sampling and extended performance counters.
const ABSENT: &[u32] = &[0x5, 0xa, 0x12, 0x14, 0x8000_000a, 0x8000_001b, 0x8000_0022];
/// Topology leaves, written anew.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// What is the same for all vCPUs of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// The number of vCPUs.
    pub vcpus: VcpuCount,
    /// Whether KVM's local APIC has the TSC-deadline timer (`KVM_CAP_TSC_DEADLINE_TIMER`).
    pub tsc_deadline: bool,
}

impl Machine {
    /// The bits of an APIC ID that number the cores.
    fn core_bits(self) -> u32 {
        u32::from(self.vcpus.get()).next_power_of_two().trailing_zeros()
    }

    /// The CPUID of the vCPU with `apic_id`, from what KVM supports.
    #[must_use]
    pub fn cpuid(self, supported: &[kvm_cpuid_entry2], apic_id: u8) -> Vec<kvm_cpuid_entry2> {
        let vendor = supported.iter().find(|entry| entry.function == 0);
        let is_amd = vendor.is_some_and(|leaf| matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"));
        let last = vendor.map_or(0, |leaf| leaf.eax);
        let mut entries: Vec<_> = supported
            .iter()
            .filter(|entry| !TOPOLOGY.contains(&entry.function) && !ABSENT.contains(&entry.function))
            .copied()
            .collect();
        for entry in &mut entries {
            self.adapt(entry, apic_id, is_amd);
        }
        for leaf in TOPOLOGY.into_iter().filter(|&leaf| leaf <= last) {
            entries.extend(self.topology(leaf, apic_id));
        }
        entries
    }

    fn adapt(self, entry: &mut kvm_cpuid_entry2, apic_id: u8, is_amd: bool) {
        let cores = u32::from(self.vcpus.get());
        let ids = cores.next_power_of_two();
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xffff) | (ids << 16) | (u32::from(apic_id) << 24);
                entry.ecx &= !(leaf1_ecx::MONITOR | leaf1_ecx::VMX | leaf1_ecx::PDCM | leaf1_ecx::TSC_DEADLINE);
                entry.ecx |= leaf1_ecx::HYPERVISOR;
                if self.tsc_deadline {
                    entry.ecx |= leaf1_ecx::TSC_DEADLINE;
                }
                entry.edx = if cores > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Deterministic cache parameters: cores in the package, and who shares this cache.
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = (entry.eax & 0x3fff) | (self.sharing(entry.eax) << 14) | (ids.saturating_sub(1) << 26);
            }
            6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & ARAT, 0, 0, 0),
            // Architectural LBRs and hybrid cores have leaves of their own that are not there; SGX, processor trace.
            7 if entry.index == 0 => {
                entry.ebx &= !((1 << 2) | (1 << 25));
                entry.ecx &= !(1 << 30);
                entry.edx &= !((1 << 15) | (1 << 19));
            }
            0x8000_0001 => {
                entry.ecx &= !(amd_ecx::CMP_LEGACY | amd_ecx::SVM | amd_ecx::PERF_CTR_CORE | amd_ecx::PERF_CTR_NB);
                if is_amd && cores > 1 {
                    entry.ecx |= amd_ecx::CMP_LEGACY;
                }
            }
            // Number of cores, and the size of their part of the APIC ID.
            0x8000_0008 if is_amd => {
                entry.ecx = (entry.ecx & !0xf0ff) | cores.saturating_sub(1) | (self.core_bits() << 12);
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                entry.eax = (entry.eax & 0x3fff) | (self.sharing(entry.eax) << 14);
            }
            // Extended APIC ID; core ID and one thread per core; node 0 of 1.
            0x8000_001e => {
                let id = u32::from(apic_id);
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id, 0, 0);
            }
            _ => {}
        }
    }

    /// The number of vCPUs less one that share a cache of the kind in `eax`: all of them from level 3 on.
    fn sharing(self, eax: u32) -> u32 {
        let level = (eax >> 5) & 7;
        if level >= 3 { u32::from(self.vcpus.get()).next_power_of_two().saturating_sub(1) } else { 0 }
    }

    /// Extended topology: a thread level and a core level, then the end (Intel SDM volume 2, CPUID leaf 0BH and 1FH).
    fn topology(self, function: u32, apic_id: u8) -> [kvm_cpuid_entry2; 3] {
        let levels = [
            // Bits to shift off, logical processors, type (1 thread, 2 core, 0 none).
            (0, 1, 1),
            (self.core_bits(), u32::from(self.vcpus.get()), 2),
            (0, 0, 0),
        ];
        let mut index = 0;
        levels.map(|(eax, ebx, kind)| {
            let entry = kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: index | (kind << 8),
                edx: u32::from(apic_id),
                ..kvm_cpuid_entry2::default()
            };
            index = index.saturating_add(1);
            entry
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(vcpus: u8) -> Machine {
        Machine { vcpus: VcpuCount::try_from(vcpus).unwrap(), tsc_deadline: true }
    }

    fn leaf(function: u32, index: u32, values: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = values;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    fn supported(vendor: &[u8; 4]) -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0x1f, u32::from_le_bytes(*vendor), 0, 0]),
            leaf(1, 0, [0x306f2, 0x0780_0800, 0xffff_ffff, 0xffff_ffff]),
            leaf(4, 0, [0xfc00_4121, 1, 2, 3]),
            leaf(4, 3, [0xfc07_c163, 1, 2, 3]),
            leaf(4, 4, [0; 4]),
            leaf(0xa, 0, [7; 4]),
            leaf(0xb, 0, [9; 4]),
            leaf(0x4000_0001, 0, [0x0100_7afb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 0xffff_ffff, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x70ff, 0]),
            leaf(0x8000_001e, 0, [5, 0x105, 3, 0]),
        ]
    }

    fn get(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let found = entries.iter().find(|entry| entry.function == function && entry.index == index);
        found.map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]).unwrap_or([0; 4])
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        for id in 0..6 {
            let entries = machine(6).cpuid(&supported(b"Genu"), id);
            assert_eq!(get(&entries, 1, 0)[1], 0x0008_0800 | (u32::from(id) << 24));
            assert_eq!(get(&entries, 0xb, 0)[3], u32::from(id));
            assert_eq!(get(&entries, 0x1f, 1)[3], u32::from(id));
        }
    }

    #[test]
    fn topology_is_one_socket_of_cores() {
        let entries = machine(6).cpuid(&supported(b"Genu"), 2);
        for function in [0xb, 0x1f] {
            assert_eq!(get(&entries, function, 0), [0, 1, 0x100, 2]);
            assert_eq!(get(&entries, function, 1), [3, 6, 0x201, 2]);
            assert_eq!(get(&entries, function, 2), [0, 0, 2, 2]);
        }
        assert_eq!(get(&entries, 4, 0)[0], 0x1c00_0121, "level 1 is private, 8 core ids in the package");
        assert_eq!(get(&entries, 4, 3)[0], 0x1c01_c163, "level 3 is shared by all");
        assert_eq!(get(&entries, 4, 4)[0], 0, "the end stays the end");
    }

    #[test]
    fn single_vcpu_is_not_multithreaded() {
        let entries = machine(1).cpuid(&supported(b"Genu"), 0);
        assert_eq!(get(&entries, 1, 0)[3] & HTT, 0);
        assert_eq!(get(&entries, 1, 0)[1] >> 16, 1);
        assert_eq!(get(&entries, 0xb, 1), [0, 1, 0x201, 0]);
    }

    #[test]
    fn amd_topology_leaves_name_the_cores() {
        let entries = machine(4).cpuid(&supported(b"Auth"), 3);
        assert_eq!(get(&entries, 0x8000_0008, 0)[2], 0x2003);
        assert_eq!(get(&entries, 0x8000_001e, 0), [3, 3, 0, 0]);
        assert_ne!(get(&entries, 0x8000_0001, 0)[2] & amd_ecx::CMP_LEGACY, 0);
    }

    #[test]
    fn what_is_not_there_is_hidden() {
        let entries = machine(2).cpuid(&supported(b"Auth"), 0);
        assert_eq!(get(&entries, 1, 0)[2] & (leaf1_ecx::VMX | leaf1_ecx::MONITOR | leaf1_ecx::PDCM), 0);
        assert_eq!(get(&entries, 0x8000_0001, 0)[2] & (amd_ecx::SVM | amd_ecx::PERF_CTR_CORE), 0);
        assert_eq!(get(&entries, 0xa, 0), [0; 4]);
    }

    #[test]
    fn hypervisor_and_paravirtual_leaves_stay() {
        let entries = machine(2).cpuid(&supported(b"Genu"), 0);
        assert_ne!(get(&entries, 1, 0)[2] & leaf1_ecx::HYPERVISOR, 0);
        assert_eq!(get(&entries, 0x4000_0001, 0)[0], 0x0100_7afb);
    }

    #[test]
    fn tsc_deadline_follows_kvm() {
        let with = machine(2).cpuid(&supported(b"Genu"), 0);
        let without = Machine { tsc_deadline: false, ..machine(2) }.cpuid(&supported(b"Genu"), 0);
        assert_ne!(get(&with, 1, 0)[2] & leaf1_ecx::TSC_DEADLINE, 0);
        assert_eq!(get(&without, 1, 0)[2] & leaf1_ecx::TSC_DEADLINE, 0);
    }
}
