//! The memory map and the interrupts of the aarch64 machine: the only source of these numbers.
//!
//! All device interrupts are shared peripheral interrupts (SPIs), edge-triggered. A GSI of KVM is the number of an SPI,
//! which the distributor counts from 32 on (GIC architecture specification §2.2.1).

use crate::memory::RamRegion;
use wire::{DiskCount, MemoryBytes, VcpuCount};

/// Start of RAM, which has no hole.
pub const RAM_START: u64 = 0x4000_0000;

/// The bytes at the start of memory that are in small pages: none. Linux is loaded there.
pub const SMALL_PAGES_BYTES: usize = 0;
/// The loader writes below this address alone.
pub const LOAD_END: u64 = 0x1_0000_0000;

/// The GIC's distributor.
pub const GIC_DISTRIBUTOR_START: u64 = 0x0800_0000;
/// Bytes in the distributor's window of a GICv3.
pub const GIC_V3_DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// Bytes in the distributor's window of a GICv2, as far as the FDT and KVM say.
pub const GIC_V2_DISTRIBUTOR_BYTES: u64 = 0x1000;
/// The CPU interface of a GICv2.
pub const GIC_V2_CPU_START: u64 = 0x0801_0000;
/// Bytes in the CPU interface's window of a GICv2.
pub const GIC_V2_CPU_BYTES: u64 = 0x2000;
/// The redistributors of a GICv3, one after another.
pub const GIC_V3_REDISTRIBUTOR_START: u64 = 0x080A_0000;
/// Bytes in the redistributor of a vCPU.
pub const GIC_V3_REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// The most vCPUs of a GICv2 (its CPU interfaces).
pub const GIC_V2_MOST_VCPUS: u8 = 8;

/// The first SPI is this interrupt of the distributor.
pub const FIRST_SPI: u32 = 32;
/// The interrupts of the distributor with the private ones, a multiple of 32 (`KVM_DEV_ARM_VGIC_GRP_NR_IRQS`).
pub const GIC_INTERRUPTS: u32 = 64;

/// Private peripheral interrupts, counted from 16 on, of the architected timer ("arm,armv8-timer"): secure physical,
/// non-secure physical, virtual, hypervisor.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The first register of the serial port, a 16550A with registers of one byte side by side.
pub const SERIAL_START: u64 = 0x0900_0000;
/// The serial port's registers.
pub const SERIAL_PORTS: u64 = 8;
/// Bytes in the serial port's window.
pub const SERIAL_WINDOW_BYTES: u64 = 0x1000;
/// The serial port's SPI.
pub const SERIAL_GSI: u32 = 0;
/// The serial port's clock in Hz, from which the divisor of 115200 baud is 1.
pub const SERIAL_CLOCK_HZ: u32 = 1_843_200;

/// The first virtio-mmio window (virtio 1.2 §4.2).
pub const VIRTIO_START: u64 = 0x0A00_0000;
/// Bytes in a virtio-mmio window, and the distance between two.
pub const VIRTIO_WINDOW_BYTES: u64 = 0x1000;
/// The first virtio-mmio SPI.
pub const VIRTIO_FIRST_GSI: u32 = 1;

/// The guest RAM of a machine: one region.
#[must_use]
pub fn ram_regions(memory: MemoryBytes) -> Vec<RamRegion> {
    vec![RamRegion { guest_address: RAM_START, file_offset: 0, bytes: memory.get() }]
}

/// The guest-physical address after the last byte of RAM.
#[must_use]
pub fn ram_end(memory: MemoryBytes) -> u64 {
    RAM_START.saturating_add(memory.get())
}

/// The bits of a guest-physical address that this machine needs (`KVM_VM_TYPE_ARM_IPA_SIZE`), at least 32.
#[must_use]
pub fn ipa_bits(memory: MemoryBytes) -> u32 {
    (u64::BITS - ram_end(memory).saturating_sub(1).leading_zeros()).max(32)
}

/// The guest-physical address of disk `n`'s virtio-mmio window.
#[must_use]
pub const fn virtio_window(n: u8) -> u64 {
    VIRTIO_START + n as u64 * VIRTIO_WINDOW_BYTES
}

/// The SPI of disk `n`.
#[must_use]
pub const fn virtio_gsi(n: u8) -> u32 {
    VIRTIO_FIRST_GSI + n as u32
}

/// The affinity fields of vCPU `n`'s MPIDR_EL1, which its FDT node, PSCI and the redistributors know it by. They are
/// KVM's (`reset_mpidr` of arch/arm64/kvm/sys_regs.c): 16 vCPUs at affinity level 0, the rest of the number at level 1.
#[must_use]
pub const fn mpidr(n: u8) -> u64 {
    (n as u64 & 0xF) | ((n as u64 >> 4) << 8)
}

// The last disk's interrupt is one of the distributor's, and the windows do not overlap.
const _: () = assert!(FIRST_SPI + virtio_gsi(DiskCount::MAX - 1) < GIC_INTERRUPTS);
const _: () = assert!(GIC_V2_CPU_START + GIC_V2_CPU_BYTES <= GIC_V3_REDISTRIBUTOR_START);
const _: () = assert!(GIC_V3_REDISTRIBUTOR_START + VcpuCount::MAX as u64 * GIC_V3_REDISTRIBUTOR_BYTES <= SERIAL_START);
const _: () = assert!(SERIAL_START + SERIAL_WINDOW_BYTES <= VIRTIO_START);
const _: () = assert!(virtio_window(DiskCount::MAX) <= RAM_START);

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: u64) -> MemoryBytes {
        MemoryBytes::try_from(bytes).unwrap()
    }

    #[test]
    fn memory_is_one_region_of_any_size() {
        for bytes in [2 << 20, 512 << 20, 3 << 30, 6 << 30] {
            assert_eq!(ram_regions(memory(bytes)), [RamRegion { guest_address: 1 << 30, file_offset: 0, bytes }]);
        }
    }

    #[test]
    fn address_bits_cover_the_last_byte() {
        assert_eq!(ipa_bits(memory(2 << 20)), 32);
        assert_eq!(ipa_bits(memory(3 << 30)), 32);
        assert_eq!(ipa_bits(memory((3 << 30) + (2 << 20))), 33);
        assert_eq!(ipa_bits(memory(1 << 40)), 41);
    }

    #[test]
    fn mpidr_counts_by_sixteen() {
        assert_eq!([0, 5, 15, 16, 31].map(mpidr), [0, 5, 15, 0x100, 0x10F]);
    }

    #[test]
    fn virtio_windows_and_interrupts_follow_each_other() {
        assert_eq!((virtio_window(0), virtio_window(15)), (0x0A00_0000, 0x0A00_F000));
        assert_eq!((virtio_gsi(0), virtio_gsi(15)), (1, 16));
    }
}
