//! The ACPI tables of any machine, read back (ACPI specification 6.5) and compared with the machine.
//!
//! The reader knows the part of AML that the tables are allowed to have, and takes nothing else.

use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use vmm_core::arch::x86_64::acpi;
use vmm_core::arch::x86_64::layout::{
    ACPI_START, IOAPIC_START, LAPIC_START, MP_TABLE_START, RESET_PORT, SERIAL_GSI, SLEEP_CONTROL_PORT, virtio_gsi,
    virtio_window,
};
use wire::{DiskCount, VcpuCount};

/// The numbers of vCPUs and of disks, and where the tables go.
///
/// # Panics
/// When something does not hold.
pub fn run(bytes: &[u8]) {
    play(&mut Unstructured::new(bytes)).unwrap_or(());
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let vcpus = VcpuCount::try_from(input.int_in_range(0..=31_u8)? + 1).expect("a count");
    let disks = DiskCount::try_from(input.int_in_range(0..=16_u8)?).expect("a count");
    let start = if input.arbitrary::<u8>()? & 1 == 0 {
        ACPI_START
    } else {
        u64::from(input.arbitrary::<u32>()?).next_multiple_of(16)
    };
    let block = acpi::build(start, vcpus, disks);
    assert!(block.len() as u64 <= MP_TABLE_START - ACPI_START, "the tables run into the next ones");
    let tables = Tables { start, block: &block };
    assert_eq!(&block[..8], b"RSD PTR ");
    assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0), "checksums of the root pointer");
    let xsdt = tables.at(u64_at(&block, 24), b"XSDT");
    let entries: Vec<u64> = xsdt[36..].as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect();
    assert_eq!(entries.len(), 2);
    let fadt = tables.at(entries[0], b"FACP");
    assert_eq!((u64_at(fadt, 120), u64_at(fadt, 248)), (RESET_PORT.into(), SLEEP_CONTROL_PORT.into()));
    madt(tables.at(entries[1], b"APIC"), vcpus);
    dsdt(tables.at(u64_at(fadt, 140), b"DSDT"), disks);
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

struct Tables<'a> {
    start: u64,
    block: &'a [u8],
}

impl<'a> Tables<'a> {
    /// The table at a guest-physical address: inside the block, of its own length, with a right checksum (§5.2.6).
    fn at(&self, address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let offset = usize::try_from(address - self.start).expect("an offset");
        let table = &self.block[offset..offset + u32_at(self.block, offset + 4) as usize];
        assert_eq!((&table[..4], sum(table)), (signature.as_slice(), 0));
        table
    }
}

/// §5.2.12: every vCPU once, and the IOAPIC.
fn madt(madt: &[u8], vcpus: VcpuCount) {
    assert_eq!(u64::from(u32_at(madt, 36)), LAPIC_START);
    let (mut at, mut ids, mut ioapics) = (44, Vec::new(), 0);
    while at < madt.len() {
        let entry = &madt[at..at + usize::from(madt[at + 1])];
        match entry[0] {
            0 => {
                assert_eq!((entry.len(), u32_at(entry, 4)), (8, 1), "an enabled vCPU");
                ids.push(entry[3]);
            }
            1 => {
                assert_eq!((u64::from(u32_at(entry, 4)), u32_at(entry, 8)), (IOAPIC_START, 0));
                ioapics += 1;
            }
            other => panic!("an entry of type {other}"),
        }
        at += entry.len();
    }
    assert_eq!((ids, ioapics), ((0..vcpus.get()).collect(), 1));
}

/// A device of the DSDT.
#[derive(Debug, Default, PartialEq, Eq)]
struct Device {
    name: String,
    names: Vec<(String, Vec<u8>)>,
}

impl Device {
    fn value(&self, name: &str) -> &[u8] {
        let value = self.names.iter().find(|(is, _)| is == name);
        value.map(|(_, value)| value.as_slice()).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

fn dsdt(dsdt: &[u8], disks: DiskCount) {
    let mut aml = Aml(&dsdt[36..]);
    assert_eq!((aml.op(), aml.path()), (0x08, "_S5_".to_owned()));
    assert_eq!(aml.op(), 0x12, "a package");
    aml.package();
    assert_eq!(aml.op(), 0x10, "a scope");
    let mut scope = aml.package();
    assert!(aml.0.is_empty(), "more than the scope");
    assert_eq!(scope.path(), "_SB_");
    let mut devices = Vec::new();
    while !scope.0.is_empty() {
        assert_eq!((scope.op(), scope.op()), (0x5B, 0x82), "a device");
        devices.push(scope.package().device());
    }
    assert_eq!(devices.len(), usize::from(disks.get()) + 1);
    let (serial, blocks) = devices.split_first().expect("the serial port");
    assert_eq!(interrupt(serial.value("_CRS")), SERIAL_GSI);
    for (n, disk) in (0..).zip(blocks) {
        assert_eq!(disk.name, format!("VB{n:02}"));
        assert_eq!(disk.value("_HID"), b"LNRO0005");
        let resources = disk.value("_CRS");
        // §6.4.3.4: a fixed memory range, writable.
        assert_eq!((resources[0], resources[3]), (0x86, 1));
        assert_eq!((u64::from(u32_at(resources, 4)), u32_at(resources, 8)), (virtio_window(n), 0x1000));
        assert_eq!(interrupt(resources), virtio_gsi(n));
    }
}

/// §6.4.3.6: the only extended interrupt, edge-triggered and active high, then the end tag.
fn interrupt(resources: &[u8]) -> u32 {
    let at = resources.len() - 11;
    assert_eq!(resources[at..at + 5], [0x89, 6, 0, 0b11, 1]);
    assert_eq!(resources[at + 9], 0x79, "the end tag");
    u32_at(resources, at + 5)
}

/// AML that is left to read (§20).
struct Aml<'a>(&'a [u8]);

impl<'a> Aml<'a> {
    fn op(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    /// A NameString of one segment, from the root or not.
    fn path(&mut self) -> String {
        if self.0[0] == b'\\' {
            self.op();
        }
        let name = self.take(4);
        assert!(name.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')), "{name:?} is no name");
        String::from_utf8_lossy(name).into_owned()
    }

    /// PkgLength (§20.2.4), and what it spans.
    fn package(&mut self) -> Aml<'a> {
        let lead = usize::from(self.op());
        let more = lead >> 6;
        let mut length = if more == 0 { lead & 0x3F } else { lead & 0x0F };
        for n in 0..more {
            length |= usize::from(self.op()) << (4 + 8 * n);
        }
        Aml(self.take(length - 1 - more))
    }

    fn device(mut self) -> Device {
        let mut device = Device { name: self.path(), ..Device::default() };
        while !self.0.is_empty() {
            assert_eq!(self.op(), 0x08, "a name");
            device.names.push((self.path(), self.value()));
        }
        device
    }

    /// An integer as its eight bytes, a string without its NUL, or a buffer.
    fn value(&mut self) -> Vec<u8> {
        match self.op() {
            value @ (0 | 1) => u64::from(value).to_le_bytes().to_vec(),
            0x0A => u64::from(self.op()).to_le_bytes().to_vec(),
            0x0C => u64::from(u32_at(self.take(4), 0)).to_le_bytes().to_vec(),
            0x0D => {
                let end = self.0.iter().position(|byte| *byte == 0).expect("a NUL");
                let text = self.take(end + 1);
                text[..end].to_vec()
            }
            0x11 => {
                let mut buffer = self.package();
                let size = u64::from_le_bytes(buffer.value().try_into().expect("an integer"));
                assert_eq!(size, buffer.0.len() as u64, "the size of a buffer");
                buffer.0.to_vec()
            }
            other => panic!("{other:#x} is no value that is used here"),
        }
    }
}

/// A small and a full machine.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("small", Seed::new().u8(0).u8(0).u8(0).done()),
        ("full", Seed::new().u8(31).u8(16).u8(1).u32(0x1_0000).done()),
    ]
}
