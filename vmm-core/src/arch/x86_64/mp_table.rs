//! The Intel MultiProcessor table (specification 1.4), by which kernels without ACPI find the CPUs and the I/O APIC.

use super::layout::{IOAPIC_ID, IOAPIC_PINS, IOAPIC_START, LAPIC_START};
use wire::VcpuCount;

/// The version of the local and of the I/O APIC.
const APIC_VERSION: u8 = 0x14;
/// The only bus.
const ISA_BUS: u8 = 0;
/// §4.3.4: active high, edge-triggered.
const EDGE_HIGH: u16 = 0b0101;
/// Bytes in the floating pointer structure.
const POINTER_BYTES: u64 = 16;
/// Bytes in the header of the configuration table.
const HEADER_BYTES: u16 = 44;

/// The floating pointer structure and the configuration table, to be written to `start`, which the guest finds on a
/// 16-byte boundary of 0xF0000 to 0xFFFFF.
#[must_use]
pub fn build(start: u32, vcpus: VcpuCount) -> Vec<u8> {
    let mut entries = Vec::new();
    for apic_id in 0..vcpus.get() {
        entries.push(processor(apic_id));
    }
    entries.push([&[1, ISA_BUS], &b"ISA   "[..]].concat());
    let ioapic = u32::try_from(IOAPIC_START).unwrap_or(0).to_le_bytes();
    entries.push([&[2, IOAPIC_ID, APIC_VERSION, 1], &ioapic[..]].concat());
    for pin in 0..u8::try_from(IOAPIC_PINS).unwrap_or(0) {
        entries.push(interrupt(3, 0, EDGE_HIGH, pin, IOAPIC_ID, pin));
    }
    // §4.3.5: LINT0 takes the 8259's interrupts (there are none), LINT1 of every local APIC is NMI.
    entries.push(interrupt(4, 3, 0, 0, 0, 0));
    entries.push(interrupt(4, 1, 0, 0, 0xFF, 1));
    with_headers(start, &entries)
}

/// §4.3.1.
fn processor(apic_id: u8) -> Vec<u8> {
    const USABLE: u8 = 1;
    const BOOTSTRAP: u8 = 2;
    let flags = if apic_id == 0 { USABLE | BOOTSTRAP } else { USABLE };
    let mut entry = vec![0, apic_id, APIC_VERSION, flags];
    entry.extend_from_slice(&0x0600_u32.to_le_bytes()); // family 6
    entry.extend_from_slice(&0x0201_u32.to_le_bytes()); // FPU and APIC on chip
    entry.resize(20, 0);
    entry
}

/// §4.3.3 and §4.3.5.
fn interrupt(entry_type: u8, interrupt_type: u8, flags: u16, irq: u8, apic: u8, pin: u8) -> Vec<u8> {
    let [low, high] = flags.to_le_bytes();
    vec![entry_type, interrupt_type, low, high, ISA_BUS, irq, apic, pin]
}

/// §4.1 and §4.2.
fn with_headers(start: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let body = entries.concat();
    let table_bytes = u16::try_from(body.len()).unwrap_or(0).saturating_add(HEADER_BYTES);
    let mut table = Vec::new();
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&table_bytes.to_le_bytes());
    table.extend_from_slice(&[4, 0]); // revision 1.4, checksum
    table.extend_from_slice(b"BULKHEADMICROVM     ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&u16::try_from(entries.len()).unwrap_or(0).to_le_bytes());
    table.extend_from_slice(&u32::try_from(LAPIC_START).unwrap_or(0).to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended table
    table.extend_from_slice(&body);
    seal(&mut table, 7);

    let mut pointer = Vec::new();
    pointer.extend_from_slice(b"_MP_");
    pointer.extend_from_slice(&start.saturating_add(16).to_le_bytes());
    pointer.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]); // 16 bytes, revision 1.4, checksum, no default, no IMCR
    seal(&mut pointer, 10);
    debug_assert_eq!(u64::try_from(pointer.len()), Ok(POINTER_BYTES));
    pointer.extend_from_slice(&table);
    pointer
}

/// Sets the byte at `checksum` so that all bytes add up to 0.
fn seal(bytes: &mut [u8], checksum: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(checksum) {
        *byte = byte.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn table_parses_back_and_its_checksums_hold() {
        for vcpus in [1, 2, 32] {
            let bytes = build(0xF_0000, VcpuCount::try_from(vcpus).unwrap());
            assert_eq!(&bytes[..4], b"_MP_");
            assert_eq!(bytes[4..8], 0xF_0010_u32.to_le_bytes());
            let (pointer, table) = bytes.split_at(16);
            assert_eq!((sum(pointer), sum(table)), (0, 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let mut counts = [0_u16; 5];
            let mut rest = &table[44..];
            while let Some(&kind) = rest.first() {
                counts[usize::from(kind)] += 1;
                rest = &rest[if kind == 0 { 20 } else { 8 }..];
            }
            assert_eq!(counts, [u16::from(vcpus), 1, 1, 24, 2]);
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), counts.iter().sum::<u16>());
        }
    }
}
