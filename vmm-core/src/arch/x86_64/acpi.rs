//! The ACPI tables (specification 6.5): RSDP, XSDT, FADT (hardware-reduced), MADT and DSDT.

use super::layout::{
    IOAPIC_ID, IOAPIC_START, LAPIC_START, RESET_PORT, RESET_VALUE, S5_SLEEP_TYPE, SERIAL_GSI, SERIAL_PORT,
    SERIAL_PORTS, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, VIRTIO_WINDOW_BYTES, virtio_gsi, virtio_window,
};
use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use wire::{DiskCount, VcpuCount};

const OEM: [u8; 6] = *b"BULKHD";
const OEM_TABLE: [u8; 8] = *b"BULKHEAD";
const OEM_REVISION: u32 = 1;
/// The DSDT's revision: from 2 on, integers have 64 bits (§5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// `IAPC_BOOT_ARCH` (§5.2.9.3): no VGA, no CMOS clock, and, by the clear bits, no i8042 and no other legacy device.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// Tables start on such a boundary; the RSDP must (§5.2.5.1).
const ALIGNMENT_BYTES: usize = 16;

/// The tables as one block, to be written to `start`; the RSDP comes first.
#[must_use]
pub fn build(start: u64, vcpus: VcpuCount, disks: DiskCount) -> Vec<u8> {
    let mut block = Block { start, bytes: vec![0; Rsdp::len()] };
    let dsdt = block.append(&dsdt(disks));
    let fadt = block.append(&to_bytes(&fadt(dsdt)));
    let madt = block.append(&to_bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.append(&to_bytes(&xsdt));
    let rsdp = to_bytes(&Rsdp::new(OEM, xsdt));
    for (slot, byte) in block.bytes.iter_mut().zip(rsdp) {
        *slot = byte;
    }
    block.bytes
}

struct Block {
    start: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table and tells its guest-physical address.
    fn append(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        let offset = u64::try_from(self.bytes.len()).unwrap_or(0);
        self.bytes.extend_from_slice(table);
        self.start.saturating_add(offset)
    }
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// §5.2.9. Switching off and resetting need nothing but these registers.
fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // Set means that there is no such button among the fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// §5.2.12. Without `PCAT_COMPAT`: there is no 8259.
fn madt(vcpus: VcpuCount) -> MADT {
    let lapic = LocalInterruptController::Address(low(LAPIC_START));
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for id in 0..vcpus.get() {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, low(IOAPIC_START), 0));
    madt
}

fn dsdt(disks: DiskCount) -> Vec<u8> {
    let sleep_type = S5_SLEEP_TYPE;
    // §7.4.2: the sleep type once for each of the two registers that full hardware would have.
    let s5 = Name::new(Path::new("\\_S5_"), &Package::new(vec![&sleep_type, &sleep_type, &0_u8, &0_u8]));
    let mut aml = to_bytes(&s5);

    let mut devices = vec![serial()];
    devices.extend((0..disks.get()).map(disk));
    let devices: Vec<_> = devices.into_iter().map(Raw).collect();
    let children = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new(Path::new("\\_SB_"), children).to_aml_bytes(&mut aml);

    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// AML that was built already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// Edge-triggered, active high, not shared.
fn edge_high(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// COM1.
fn serial() -> Vec<u8> {
    let ports = u8::try_from(SERIAL_PORTS).unwrap_or(8);
    let port = IO::new(SERIAL_PORT, SERIAL_PORT, 1, ports);
    let interrupt = edge_high(SERIAL_GSI);
    to_bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port, &interrupt])),
        ],
    ))
}

/// Disk `n`: a virtio-mmio window. `LNRO0005` is the identifier that Linux's `virtio_mmio` driver looks for.
fn disk(n: u8) -> Vec<u8> {
    let window = Memory32Fixed::new(true, low(virtio_window(n)), low(VIRTIO_WINDOW_BYTES));
    let interrupt = edge_high(virtio_gsi(n));
    to_bytes(&Device::new(
        Path::new(&format!("VB{n:02}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &n),
            &Name::new(Path::new("_CCA"), &1_u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&window, &interrupt])),
        ],
    ))
}

/// An address of the layout that is below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::{ACPI_START, MP_TABLE_START};

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at a guest-physical address, checked as ACPICA does.
    fn table<'a>(block: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let offset = usize::try_from(address - ACPI_START).unwrap();
        let length = usize::try_from(u32_at(block, offset + 4)).unwrap();
        let table = &block[offset..offset + length];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "checksum of {signature:?}");
        table
    }

    fn build_for(vcpus: u8, disks: u8) -> Vec<u8> {
        build(ACPI_START, VcpuCount::try_from(vcpus).unwrap(), DiskCount::try_from(disks).unwrap())
    }

    #[test]
    fn tables_are_found_from_the_root_pointer() {
        let block = build_for(2, 3);
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let xsdt = table(&block, u64_at(&block, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 16);
        let fadt = table(&block, u64_at(xsdt, 36), b"FACP");
        table(&block, u64_at(xsdt, 44), b"APIC");
        table(&block, u64_at(fadt, 140), b"DSDT");
    }

    #[test]
    fn fadt_has_the_registers_for_off_and_reset() {
        let block = build_for(1, 0);
        let xsdt = table(&block, u64_at(&block, 24), b"XSDT");
        let fadt = table(&block, u64_at(xsdt, 36), b"FACP");
        assert_eq!((fadt[8], fadt.len()), (6, 276));
        let flags = u32_at(fadt, 112);
        assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
        assert_ne!(flags & (1 << 10), 0, "reset register");
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b10_0100);
        assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0x602, 1));
        assert_eq!((fadt[244], u64_at(fadt, 248)), (1, 0x600));
        assert_eq!((fadt[256], u64_at(fadt, 260)), (1, 0x601));
    }

    #[test]
    fn madt_has_each_vcpu_and_the_ioapic() {
        let block = build_for(32, 0);
        let xsdt = table(&block, u64_at(&block, 24), b"XSDT");
        let madt = table(&block, u64_at(xsdt, 44), b"APIC");
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xFEE0_0000, 0));
        let lapics: Vec<_> = madt[44..44 + 32 * 8].chunks(8).map(|entry| (entry[0], entry[3], entry[4])).collect();
        assert_eq!(lapics, (0..32).map(|id| (0, id, 1)).collect::<Vec<_>>());
        let ioapic = &madt[44 + 32 * 8..];
        assert_eq!((ioapic[0], ioapic[1], u32_at(ioapic, 4), u32_at(ioapic, 8)), (1, 12, 0xFEC0_0000, 0));
    }

    #[test]
    fn dsdt_has_a_window_and_an_edge_interrupt_for_each_disk() {
        let block = build_for(1, 16);
        let has = |needle: &[u8]| block.windows(needle.len()).filter(|window| *window == needle).count();
        assert_eq!(has(b"LNRO0005\0"), 16);
        // Memory32Fixed of 4 KiB, read-write, then an extended interrupt: consumer, edge, active high, exclusive.
        assert_eq!(has(&[0x86, 9, 0, 1, 0, 0xF0, 0, 0xD0, 0, 0x10, 0, 0, 0x89, 6, 0, 3, 1, 20, 0, 0, 0]), 1);
        assert_eq!(has(b"_S5_\x12"), 1);
        assert_eq!(has(b"COM1"), 1);
    }

    #[test]
    fn largest_tables_end_before_the_mp_table() {
        let end = ACPI_START + u64::try_from(build_for(32, 16).len()).unwrap();
        assert!(end < MP_TABLE_START);
    }
}
