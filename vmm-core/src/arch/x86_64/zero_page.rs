//! The zero page, `struct boot_params` ("Linux x86 boot protocol", zero page), in the types of `linux-loader`.
//!
//! The setup header in it comes from the kernel image and is the kernel's own affair: it was checked where this loader
//! acts on it, and is handed on as it is with the loader's fields filled in.

use super::e820::Stretch;
use crate::loader::Placed;
use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};

/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xFF;

/// The zero page of a kernel with the setup header `hdr`. The ACPI root pointer is 0 if there is none.
#[must_use]
pub fn build(hdr: setup_header, cmdline: u32, initrd: Option<Placed>, rsdp: u64, map: &[Stretch]) -> boot_params {
    let initrd = initrd.unwrap_or_default();
    let hdr = setup_header {
        type_of_loader: LOADER_UNDEFINED,
        loadflags: hdr.loadflags | LOADED_HIGH,
        ramdisk_image: initrd.start,
        ramdisk_size: initrd.bytes,
        cmd_line_ptr: cmdline,
        ..hdr
    };
    let e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    let mut page = boot_params { hdr, acpi_rsdp_addr: rsdp, e820_entries, ..Default::default() };
    for (entry, stretch) in page.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr: stretch.start, size: stretch.bytes, r#type: stretch.kind as u32 };
    }
    page
}

/// The setup header for a kernel that brings none (an ELF file): just enough to be recognised as protocol 2.12.
#[must_use]
pub fn bare_setup_header() -> setup_header {
    setup_header {
        boot_flag: 0xAA55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020C,
        kernel_alignment: 0x0100_0000,
        cmdline_size: 2047,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::e820::map;
    use vm_memory::ByteValued;
    use wire::MemoryBytes;

    fn u32_at(page: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(page: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(page[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn fields_stand_where_the_protocol_has_them() {
        let map = map(MemoryBytes::try_from(4 << 30).unwrap());
        let initrd = Some(Placed { start: 0x7000_0000, bytes: 0x1234 });
        let page = build(bare_setup_header(), 0x2_0000, initrd, 0xE_0000, &map);
        let page = page.as_slice();
        assert_eq!(page.len(), 4096);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!((page[0x210], page[0x211]), (0xFF, 1));
        assert_eq!((u32_at(page, 0x218), u32_at(page, 0x21C)), (0x7000_0000, 0x1234));
        assert_eq!(u32_at(page, 0x228), 0x2_0000);
        assert_eq!(u64_at(page, 0x70), 0xE_0000);
        assert_eq!(page[0x1E8], 4);
        assert_eq!((u64_at(page, 0x2D0), u64_at(page, 0x2D8), u32_at(page, 0x2E0)), (0, 0x9_FC00, 1));
        assert_eq!(u32_at(page, 0x2D0 + 20 + 16), 2);
        assert_eq!(u64_at(page, 0x2D0 + 60), 4 << 30);
    }
}
