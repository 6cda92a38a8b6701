//! `hvm_start_info`, its module list and its memory map (Xen, `public/arch-x86/hvm/start_info.h`, version 1), in the
//! types of `linux-loader`.

use super::e820::Stretch;
use crate::loader::Placed;
use linux_loader::configurator::BootParams;
use linux_loader::start_info::{XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

/// Bytes in `hvm_start_info`, after which the module list comes.
const START_INFO_BYTES: u64 = 56;
/// Bytes in `hvm_modlist_entry`; its room is there without a module as well, so that the map has one place.
const MODULE_BYTES: u64 = 32;

/// What the guest is told, to be written to `start`. The ACPI root pointer is 0 if there is none.
#[must_use]
pub fn build(start: u64, cmdline: u64, initrd: Option<Placed>, rsdp: u64, map: &[Stretch]) -> BootParams {
    let modules = start.saturating_add(START_INFO_BYTES);
    let map_start = modules.saturating_add(MODULE_BYTES);
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { modules } else { 0 },
        cmdline_paddr: cmdline,
        rsdp_paddr: rsdp,
        memmap_paddr: map_start,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(start));
    if let Some(Placed { start, bytes }) = initrd {
        let module = hvm_modlist_entry { paddr: start.into(), size: bytes.into(), ..Default::default() };
        params.set_modules(&[module], GuestAddress(modules));
    }
    let entry = |stretch: &Stretch| hvm_memmap_table_entry {
        addr: stretch.start,
        size: stretch.bytes,
        type_: stretch.kind as u32,
        reserved: 0,
    };
    let map: Vec<_> = map.iter().map(entry).collect();
    params.set_sections(&map, GuestAddress(map_start));
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::e820::map;
    use linux_loader::configurator::BootConfigurator;
    use linux_loader::configurator::pvh::PvhBootConfigurator;
    use vm_memory::{Bytes, GuestMemoryMmap};
    use wire::MemoryBytes;

    fn written(params: &BootParams) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        PvhBootConfigurator::write_bootparams(params, &memory).unwrap();
        memory
    }

    #[test]
    fn module_and_map_are_found_by_their_addresses() {
        let map = map(MemoryBytes::try_from(4 << 30).unwrap());
        let memory = written(&build(0x6000, 0x2_0000, Some(Placed { start: 0x100_0000, bytes: 77 }), 0xE_0000, &map));
        let u32_at = |address| memory.read_obj::<u32>(GuestAddress(address)).unwrap();
        let u64_at = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!((u32_at(0x6000), u32_at(0x6004), u32_at(0x600C)), (0x336E_C578, 1, 1));
        let module = u64_at(0x6010);
        assert_eq!((u64_at(module), u64_at(module + 8)), (0x100_0000, 77));
        assert_eq!((u64_at(0x6018), u64_at(0x6020)), (0x2_0000, 0xE_0000));
        let entries = u64_at(0x6028);
        assert!(entries >= module + 32);
        assert_eq!(u32_at(0x6030), 4);
        assert_eq!((u64_at(entries + 72), u64_at(entries + 80)), (4 << 30, 1 << 30));
    }

    #[test]
    fn start_info_without_initrd_has_no_module() {
        let memory = written(&build(0x6000, 0, None, 0, &[]));
        assert_eq!(memory.read_obj::<[u64; 2]>(GuestAddress(0x6008)).unwrap(), [0, 0]);
    }
}
