//! The memory map, the ports and the interrupts of the x86_64 machine: the only source of these numbers.
//!
//! All device interrupts are edge-triggered and active high.

use crate::memory::RamRegion;
use wire::{DiskCount, MemoryBytes};

/// Start of the hole below 4 GiB that holds device windows instead of RAM, in bytes.
pub const HOLE_START: u64 = 0xC000_0000;
/// End of the hole: RAM that does not fit below it continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio window (virtio 1.2 §4.2).
pub const VIRTIO_START: u64 = 0xD000_0000;
/// Bytes in a virtio-mmio window, and the distance between two.
pub const VIRTIO_WINDOW_BYTES: u64 = 0x1000;
/// The first virtio-mmio interrupt.
pub const VIRTIO_FIRST_GSI: u32 = 5;

/// The I/O APIC's registers (82093AA).
pub const IOAPIC_START: u64 = 0xFEC0_0000;
/// Bytes in the I/O APIC's window.
pub const IOAPIC_BYTES: u64 = 0x1000;
/// The pins of the I/O APIC; pin n is GSI n.
pub const IOAPIC_PINS: u32 = 24;
/// The I/O APIC's identifier.
pub const IOAPIC_ID: u8 = 0;
/// The local APICs' registers (Intel SDM volume 3 §12.4.1).
pub const LAPIC_START: u64 = 0xFEE0_0000;

/// COM1's first port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's number of ports.
pub const SERIAL_PORTS: u16 = 8;
/// COM1's interrupt.
pub const SERIAL_GSI: u32 = 4;

/// The keyboard controller's command port, of which only the reset command exists.
pub const I8042_PORT: u16 = 0x64;
/// The keyboard controller command that pulses the reset line.
pub const I8042_RESET: u8 = 0xfe;

/// ACPI 6.5 §4.8.3.7, sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI 6.5 §4.8.3.7, sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI 6.5 §4.8.3.6, reset register.
pub const RESET_PORT: u16 = 0x602;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off, as `\_S5_` announces it. The guest writes `S5_SLEEP_TYPE << 2 | 1 << 5`.
pub const S5_SLEEP_TYPE: u8 = 5;
/// What the guest writes to the sleep control register to switch the machine off.
pub const SLEEP_S5: u8 = (S5_SLEEP_TYPE << 2) | (1 << 5);

/// The end of conventional memory that the guest may use; the rest up to 1 MiB is reserved.
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// The end of the reserved area above conventional memory.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The bytes at the start of memory that are in small pages: boot structures, and guests of a few pages. Linux uses little of
/// it before it is up (`pref_address` of a bzImage is 16 MiB).
pub const SMALL_PAGES_BYTES: usize = 4 << 20;
/// Where the loader writes the global descriptor table.
pub const GDT_START: u64 = 0x500;
/// Where the loader writes `hvm_start_info`, its module list and its memory map (one page).
pub const PVH_START: u64 = 0x6000;
/// Where the loader writes the zero page (one page).
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Where the loader writes the page tables: PML4, PDPT and four page directories, each a page.
pub const PAGE_TABLE_START: u64 = 0x9000;
/// Where the loader writes the command line (one page).
pub const CMDLINE_START: u64 = 0x2_0000;
/// Where the loader writes the ACPI root pointer and after it the tables.
pub const ACPI_START: u64 = 0xE_0000;
/// Where the loader writes the Intel MP table.
pub const MP_TABLE_START: u64 = 0xF_0000;

/// The guest RAM of a machine, lowest address first.
#[must_use]
pub fn ram_regions(memory: MemoryBytes) -> Vec<RamRegion> {
    let low_bytes = memory.get().min(HOLE_START);
    let mut regions = vec![RamRegion { guest_address: 0, file_offset: 0, bytes: low_bytes }];
    let high_bytes = memory.get().saturating_sub(low_bytes);
    if high_bytes > 0 {
        regions.push(RamRegion { guest_address: HOLE_END, file_offset: low_bytes, bytes: high_bytes });
    }
    regions
}

/// The guest-physical address of disk `n`'s virtio-mmio window.
#[must_use]
pub const fn virtio_window(n: u8) -> u64 {
    VIRTIO_START + n as u64 * VIRTIO_WINDOW_BYTES
}

/// The interrupt of disk `n`.
#[must_use]
pub const fn virtio_gsi(n: u8) -> u32 {
    VIRTIO_FIRST_GSI + n as u32
}

// The last disk's interrupt has a pin.
const _: () = assert!(virtio_gsi(DiskCount::MAX - 1) < IOAPIC_PINS);

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(bytes: u64) -> Vec<(u64, u64, u64)> {
        let memory = MemoryBytes::try_from(bytes).unwrap();
        ram_regions(memory).iter().map(|region| (region.guest_address, region.file_offset, region.bytes)).collect()
    }

    #[test]
    fn memory_up_to_the_hole_is_one_region() {
        assert_eq!(regions(2 << 20), [(0, 0, 2 << 20)]);
        assert_eq!(regions(512 << 20), [(0, 0, 512 << 20)]);
        assert_eq!(regions(3 << 30), [(0, 0, 3 << 30)]);
    }

    #[test]
    fn memory_beyond_the_hole_continues_at_4_gib() {
        assert_eq!(regions((3 << 30) + (2 << 20)), [(0, 0, 3 << 30), (4 << 30, 3 << 30, 2 << 20)]);
        assert_eq!(regions(4 << 30), [(0, 0, 3 << 30), (4 << 30, 3 << 30, 1 << 30)]);
        assert_eq!(regions(6 << 30), [(0, 0, 3 << 30), (4 << 30, 3 << 30, 3 << 30)]);
    }

    #[test]
    fn virtio_windows_do_not_overlap_and_end_before_the_ioapic() {
        assert_eq!(virtio_window(0), 0xD000_0000);
        assert_eq!(virtio_window(15), 0xD000_F000);
        assert_eq!((virtio_gsi(0), virtio_gsi(15)), (5, 20));
    }
}
