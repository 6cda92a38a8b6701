//! The entry state, which a captured loader may make up: what the vmm accepts lies in guest memory.

use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use vm_memory::GuestMemoryMmap;
use vmm_core::arch::layout::ram_regions;
use vmm_core::arch::regs;
use vmm_core::memory::RamRegion;
use wire::MemoryBytes;
use wire::message::Entry;

/// An entry state and a size of memory.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let bytes = (u64::from(input.arbitrary::<u16>()?) + 1) * MemoryBytes::GRANULE;
    let regions = ram_regions(MemoryBytes::try_from(bytes).expect("a size"));
    let entry = match input.int_in_range(0..=2_u8)? {
        0 => Entry::X86Long {
            entry: input.arbitrary()?,
            boot_params: input.arbitrary()?,
            page_table: input.arbitrary()?,
            gdt: input.arbitrary()?,
        },
        1 => Entry::X86Pvh { entry: input.arbitrary()?, start_info: input.arbitrary()?, gdt: input.arbitrary()? },
        _ => Entry::Arm64 { entry: input.arbitrary()?, fdt: input.arbitrary()? },
    };
    // Only the addresses count, so that a page of each end of a region would do; but the check asks for the whole.
    let memory = memory(&regions);
    if regs::check(&entry, &memory).is_ok() {
        assert_inside(&entry, &regions);
    }
    Ok(())
}

/// Guest memory that nobody touches.
pub(crate) fn memory(regions: &[RamRegion]) -> GuestMemoryMmap {
    let ranges: Vec<_> = regions
        .iter()
        .map(|region| (vm_memory::GuestAddress(region.guest_address), region.bytes.try_into().expect("a size")))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).expect("guest memory")
}

/// Every structure that an entry state names lies in RAM from its first to its last byte.
pub(crate) fn assert_inside(entry: &Entry, regions: &[RamRegion]) {
    let stretches: Vec<(u64, u64)> = match *entry {
        Entry::X86Long { entry, boot_params, page_table, gdt } => {
            assert_eq!(page_table % 4096, 0);
            vec![(entry, 1), (boot_params, 4096), (page_table, 4096), (gdt, 24)]
        }
        Entry::X86Pvh { entry, start_info, gdt } => {
            vec![(entry.into(), 1), (start_info.into(), 56), (gdt.into(), 32)]
        }
        Entry::Arm64 { entry, fdt } => {
            assert_eq!((entry % 4, fdt % 8), (0, 0));
            vec![(entry, 4), (fdt, 40)]
        }
    };
    for (start, bytes) in stretches {
        let inside = (start..start.saturating_add(bytes))
            .all(|address| regions.iter().any(|region| (region.guest_address..region.guest_end()).contains(&address)));
        assert!(inside && start.checked_add(bytes).is_some(), "{entry:x?} is accepted with {start:#x} outside of RAM");
    }
}

/// One of each kind, good and bad.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let long = |entry| Seed::new().u16(31).u8(0).u64(entry).u64(0x7000).u64(0x9000).u64(0x500).done();
    vec![
        ("long", long(0x10_0200)),
        ("long_at_the_end", long(64 << 20)),
        ("pvh", Seed::new().u16(31).u8(1).u32(0x10_0000).u32(0x6000).u32(0x500).done()),
        ("arm64", Seed::new().u16(31).u8(2).u64(0x4000_0000).u64(0x4040_0000).done()),
    ]
}
