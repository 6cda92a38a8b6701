//! The page tables that a 64-bit entry starts with: the low 4 GiB at their own address, in pages of 2 MiB.
//!
//! "Linux x86 boot protocol", 64-bit boot, asks for the kernel, the zero page and the command line to be mapped so;
//! 4 GiB cover all of them and the device windows. See Intel SDM volume 3 §4.5 for the entries.

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

/// Bytes in a page, and in a table.
const PAGE_BYTES: u64 = 4096;
/// Entries in a table.
const ENTRIES: u64 = 512;
/// Gigabytes that are mapped, each with its own page directory.
const GIGABYTES: u64 = 4;
/// Bytes that an entry of a page directory maps.
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// An entry is present and writable.
const PRESENT_WRITABLE: u64 = 0b11;
/// An entry of a page directory maps a page instead of pointing to a table.
const LARGE: u64 = 1 << 7;
/// Bytes that the tables take.
pub const BYTES: u64 = (2 + GIGABYTES) * PAGE_BYTES;

/// Writes the tables to `start`, the top-level one first.
///
/// # Errors
/// When `start` and the [`BYTES`] after it are not all in guest memory.
pub fn write<M: GuestMemory>(memory: &M, start: u64) -> Result<(), GuestMemoryError> {
    let pointers = start.saturating_add(PAGE_BYTES);
    let directories = pointers.saturating_add(PAGE_BYTES);
    let top = [pointers | PRESENT_WRITABLE];
    let pointer_table = (0..GIGABYTES).map(|n| (directories + n * PAGE_BYTES) | PRESENT_WRITABLE);
    let directory_tables = (0..GIGABYTES * ENTRIES).map(|n| (n * LARGE_PAGE_BYTES) | PRESENT_WRITABLE | LARGE);
    write_entries(memory, start, top.into_iter())?;
    write_entries(memory, pointers, pointer_table)?;
    write_entries(memory, directories, directory_tables)
}

fn write_entries<M: GuestMemory>(
    memory: &M,
    start: u64,
    entries: impl Iterator<Item = u64>,
) -> Result<(), GuestMemoryError> {
    let mut bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
    // Whatever was in the rest of the page is no entry.
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    memory.write_slice(&bytes, GuestAddress(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::{CMDLINE_START, PAGE_TABLE_START};
    use vm_memory::GuestMemoryMmap;

    /// Walks the tables as the processor does.
    fn translate(memory: &GuestMemoryMmap, address: u64) -> Option<u64> {
        let mut table = PAGE_TABLE_START;
        for (shift, leaf) in [(39, false), (30, false), (21, true)] {
            let index = (address >> shift) & 511;
            let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            assert_eq!(entry & LARGE != 0, leaf);
            table = entry & 0x000F_FFFF_FFFF_F000;
        }
        Some(table | (address & (LARGE_PAGE_BYTES - 1)))
    }

    #[test]
    fn low_4_gib_are_mapped_to_themselves_and_nothing_else_is() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory, PAGE_TABLE_START).unwrap();
        for address in [0, 0x10_0200, 0x3FFF_FFFF, 0x4000_0000, 0xD000_0000, 0xFEE0_0000, 0xFFFF_FFFF] {
            assert_eq!(translate(&memory, address), Some(address));
        }
        assert_eq!(translate(&memory, 1 << 32), None);
        assert_eq!(translate(&memory, 1 << 39), None);
        const { assert!(PAGE_TABLE_START + BYTES <= CMDLINE_START) };
    }

    #[test]
    fn memory_too_small_for_the_tables_is_an_error() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xA000)]).unwrap();
        assert!(write(&memory, PAGE_TABLE_START).is_err());
    }
}
