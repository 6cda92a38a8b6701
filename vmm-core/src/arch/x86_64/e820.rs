//! The map of guest memory, which the zero page and `hvm_start_info` both tell.

use super::layout::{HIGH_RAM_START, LOW_RAM_END, ram_regions};
use wire::MemoryBytes;

/// What a stretch of the address space is; the numbers are those of the E820 BIOS call and of `hvm_memmap_table_entry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The guest may use it.
    Ram = 1,
    /// Firmware tables; not RAM for the guest's allocator.
    Reserved = 2,
}

/// A stretch of the guest-physical address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The first address.
    pub start: u64,
    /// The size in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: Kind,
}

/// The memory map of a machine, lowest address first; at most four stretches.
#[must_use]
pub fn map(memory: MemoryBytes) -> Vec<Stretch> {
    let mut map = vec![
        Stretch { start: 0, bytes: LOW_RAM_END, kind: Kind::Ram },
        Stretch { start: LOW_RAM_END, bytes: HIGH_RAM_START.saturating_sub(LOW_RAM_END), kind: Kind::Reserved },
    ];
    for region in ram_regions(memory) {
        let start = region.guest_address.max(HIGH_RAM_START);
        let bytes = region.guest_end().saturating_sub(start);
        map.push(Stretch { start, bytes, kind: Kind::Ram });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(bytes: u64) -> Vec<(u64, u64)> {
        let map = map(MemoryBytes::try_from(bytes).unwrap());
        assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start));
        let ram = map.iter().filter(|stretch| stretch.kind == Kind::Ram);
        ram.map(|stretch| (stretch.start, stretch.start + stretch.bytes)).collect()
    }

    #[test]
    fn usable_memory_leaves_out_the_reserved_area_and_the_hole() {
        let low = (0, 0x9_FC00);
        assert_eq!(ram(2 << 20), [low, (1 << 20, 2 << 20)]);
        assert_eq!(ram(512 << 20), [low, (1 << 20, 512 << 20)]);
        assert_eq!(ram(3 << 30), [low, (1 << 20, 3 << 30)]);
        assert_eq!(ram(4 << 30), [low, (1 << 20, 3 << 30), (4 << 30, 5 << 30)]);
        assert_eq!(ram(6 << 30), [low, (1 << 20, 3 << 30), (4 << 30, 7 << 30)]);
    }
}
