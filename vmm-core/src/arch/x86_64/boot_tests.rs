//! Whole loads of kernels that the tests make, into memories of all shapes.

use super::*;
use crate::loader::entropy::Entropy;
use crate::loader::image::tests::image;
use crate::loader::initrd::InitrdError;
use vm_memory::GuestMemoryMmap;
use wire::message::GicVersion;
use wire::{DiskCount, MemoryBytes, VcpuCount};

const MIB: u64 = 1 << 20;
const LOAD_ADDRESS: u64 = 0x20_0000;

/// A bzImage of protocol 2.15 with setup of 2 sectors and 4096 bytes as its protected-mode kernel: 0xCC, and the magic
/// of gzip at 0x300.
pub(super) fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1F1] = 1;
    file.extend_from_slice(&[0xCC; 4096]);
    put(&mut file, 0x1F4, &(4096_u32 / 16).to_le_bytes());
    put(&mut file, 0x1FE, &[0x55, 0xAA, 0xEB, 0x66]);
    put(&mut file, 0x202, b"HdrS\x0F\x02");
    file[0x211] = 1;
    put(&mut file, 0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut file, 0x236, &[1, 0]);
    put(&mut file, 0x238, &2047_u32.to_le_bytes());
    put(&mut file, 0x248, &0x300_u32.to_le_bytes());
    put(&mut file, 0x24C, &0x100_u32.to_le_bytes());
    put(&mut file, 1024 + 0x300, b"\x1F\x8B");
    put(&mut file, 0x258, &LOAD_ADDRESS.to_le_bytes());
    put(&mut file, 0x260, &0x10_0000_u32.to_le_bytes());
    file
}

/// An ELF executable with one segment of 16 bytes in the file and 8192 in memory, with a PVH note if asked for.
pub(super) fn elf(pvh: bool) -> Vec<u8> {
    let mut file = vec![0; 64 + 2 * 56];
    put(&mut file, 0, b"\x7FELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0, 1]);
    put(&mut file, 24, &(LOAD_ADDRESS + 4).to_le_bytes());
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 52, &[64, 0, 56, 0, 1 + u8::from(pvh), 0]);
    let note: Vec<u8> = [
        // A note that is not ours comes first, with a name and a content that need padding.
        &[5, 0, 0, 0, 2, 0, 0, 0, 18, 0, 0, 0][..],
        b"Else\0\0\0\0",
        &[9, 9, 0, 0],
        &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0],
        b"Xen\0",
        &u32::try_from(LOAD_ADDRESS + 8).unwrap().to_le_bytes(),
    ]
    .concat();
    let segment = segment_header(1, 256, LOAD_ADDRESS, 16, 8192);
    put(&mut file, 64, &segment);
    put(&mut file, 64 + 56, &segment_header(4, 272, 0, u64::try_from(note.len()).unwrap(), 0));
    file.resize(256, 0);
    file.extend_from_slice(&[0xCC; 16]);
    if pvh {
        file.extend_from_slice(&note);
    }
    file
}

fn segment_header(kind: u32, offset: u64, start: u64, file_bytes: u64, memory_bytes: u64) -> Vec<u8> {
    let mut header = [kind.to_le_bytes(), [0; 4]].concat();
    for field in [offset, 0xFFFF_FFFF_8000_0000 + start, start, file_bytes, memory_bytes, 4] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header
}

pub(super) fn put(file: &mut [u8], offset: usize, field: &[u8]) {
    file[offset..offset + field.len()].copy_from_slice(field);
}

fn patched(mut file: Vec<u8>, offset: usize, field: &[u8]) -> Vec<u8> {
    put(&mut file, offset, field);
    file
}

fn machine(mib: u64) -> Machine {
    Machine {
        memory: MemoryBytes::try_from(mib * MIB).unwrap(),
        vcpus: VcpuCount::try_from(2).unwrap(),
        disks: DiskCount::try_from(2).unwrap(),
        acpi: true,
        gic: GicVersion::V3,
        cmdline: CommandLine::try_from("console=ttyS0".to_owned()).unwrap(),
        entropy: Entropy::default(),
    }
}

fn memory_of(machine: &Machine) -> GuestMemoryMmap {
    let regions: Vec<_> = crate::arch::x86_64::layout::ram_regions(machine.memory)
        .iter()
        .map(|region| (GuestAddress(region.guest_address), usize::try_from(region.bytes).unwrap()))
        .collect();
    GuestMemoryMmap::from_ranges(&regions).unwrap()
}

fn load_in(mib: u64, kernel: &[u8], initrd: Option<&[u8]>) -> Result<(Entry, GuestMemoryMmap), LoadError> {
    let machine = machine(mib);
    let memory = memory_of(&machine);
    let initrd = initrd.map(image);
    load(&memory, &image(kernel), initrd.as_ref(), &machine).map(|entry| (entry, memory))
}

fn kernel_error(kernel: &[u8]) -> KernelError {
    match load_in(64, kernel, None) {
        Err(LoadError::Kernel(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

fn read<const N: usize>(memory: &GuestMemoryMmap, start: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
    bytes
}

#[test]
fn bzimage_is_loaded_in_every_memory_layout() {
    for mib in [4, 512, 3 << 10, 4 << 10, 6 << 10] {
        let (entry, memory) = load_in(mib, &bzimage(), Some(b"070701 and so on")).unwrap();
        let Entry::X86Long { entry, boot_params, page_table, gdt } = entry else { panic!("{entry:?}") };
        assert_eq!((entry, boot_params, page_table, gdt), (LOAD_ADDRESS + 0x200, 0x7000, 0x9000, 0x500));
        assert_eq!(read::<4096>(&memory, LOAD_ADDRESS), bzimage()[1024..]);
        assert_eq!(&read::<14>(&memory, 0x2_0000), b"console=ttyS0\0");
        assert_eq!(&read::<4>(&memory, boot_params + 0x202), b"HdrS");
        let initrd = u64::from(u32::from_le_bytes(read(&memory, boot_params + 0x218)));
        assert_eq!(initrd, (mib * MIB).min(0x8000_0000) - 4096);
        assert_eq!(&read::<16>(&memory, initrd), b"070701 and so on");
        assert_eq!(u64::from_le_bytes(read(&memory, boot_params + 0x70)), ACPI_START);
        assert_eq!(&read::<8>(&memory, ACPI_START), b"RSD PTR ");
        assert_eq!(&read::<4>(&memory, MP_TABLE_START), b"_MP_");
        assert_eq!(read::<24>(&memory, gdt), segments::LONG.map(u64::to_le_bytes).concat()[..]);
    }
}

#[test]
fn elf_with_a_note_starts_by_pvh() {
    let (entry, memory) = load_in(4, &elf(true), Some(b"070701 and so on")).unwrap();
    let Entry::X86Pvh { entry, start_info, gdt } = entry else { panic!("{entry:?}") };
    assert_eq!((u64::from(entry), start_info, gdt), (LOAD_ADDRESS + 8, 0x6000, 0x500));
    assert_eq!(read(&memory, LOAD_ADDRESS), [0xCC; 16]);
    assert_eq!(read(&memory, LOAD_ADDRESS + 16), [0; 64]);
    assert_eq!(read::<4>(&memory, 0x6000), 0x336E_C578_u32.to_le_bytes());
    assert_eq!(u64::from_le_bytes(read(&memory, 0x6000 + 56)), 4 * MIB - 4096);
    assert_eq!(read::<32>(&memory, 0x500), segments::PVH.map(u64::to_le_bytes).concat()[..]);
}

#[test]
fn elf_without_a_note_starts_in_long_mode() {
    let (entry, memory) = load_in(4, &elf(false), None).unwrap();
    let Entry::X86Long { entry, boot_params, .. } = entry else { panic!("{entry:?}") };
    assert_eq!(entry, LOAD_ADDRESS + 4);
    assert_eq!(&read::<4>(&memory, boot_params + 0x202), b"HdrS");
    assert_eq!(read::<1>(&memory, boot_params + 0x210), [0xFF]);
}

#[test]
fn machine_without_acpi_names_its_disks_on_the_command_line() {
    let machine = Machine { acpi: false, ..machine(64) };
    let memory = memory_of(&machine);
    load(&memory, &image(&bzimage()), None, &machine).unwrap();
    let expected = b"console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6\0";
    assert_eq!(&read::<84>(&memory, CMDLINE_START), expected);
    assert_eq!(u64::from_le_bytes(read(&memory, ZERO_PAGE_START + 0x70)), 0);
    assert_eq!(read::<8>(&memory, ACPI_START), [0; 8]);
}

#[test]
fn command_line_that_is_too_long_with_its_disks_is_refused() {
    let cmdline = CommandLine::try_from("x".repeat(2000)).unwrap();
    let machine = Machine { acpi: false, cmdline, ..machine(64) };
    let refused = load(&memory_of(&machine), &image(&bzimage()), None, &machine);
    assert!(matches!(refused, Err(LoadError::Kernel(KernelError::CommandLine { got: 2070, most: 2047 }))));
    let short = patched(bzimage(), 0x238, &[5, 0, 0, 0]);
    assert_eq!(kernel_error(&short), KernelError::CommandLine { got: 13, most: 5 });
}

#[test]
fn file_that_is_no_kernel_is_refused_with_what_would_be_right() {
    let at = |offset: usize, magic: &[u8]| patched(vec![0; 8192], offset, magic);
    for (file, words) in [
        (vec![], "the file is empty"),
        (at(0x38, b"ARM\x64"), "for arm64 (an uncompressed Image)"),
        (at(0x38, b"RSC\x05"), "for RISC-V (an uncompressed Image)"),
        (at(0, b"\x1F\x8B"), "decompress it first (gunzip)"),
        (at(0, b"\xFD7zXZ\0"), "decompress it first (xz -d)"),
        (at(0, b"\x28\xB5\x2F\xFD"), "decompress it first (zstd -d)"),
        (at(0, b"BZh"), "decompress it first (bunzip2)"),
        (at(0, b"\x02\x21\x4C\x18"), "decompress it first (lz4 -d)"),
        (at(0, b"MZ"), "an EFI executable without a Linux header"),
        (b"#!/bin/sh\nexec true\n".to_vec(), "a script or another text"),
        (at(0, b"070701"), "a cpio archive"),
        (at(0x438, b"\x53\xEF"), "an ext2, ext3 or ext4 file system"),
        (vec![0; 8192], "no known kernel format"),
    ] {
        let error = kernel_error(&file).to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("give an x86_64 bzImage (vmlinuz) or an x86_64 ELF vmlinux"), "{error}");
    }
}

#[test]
fn elf_file_for_another_machine_is_named() {
    for (offset, field, words) in [
        (18, &[183, 0][..], "for arm64 (an ELF file)"),
        (18, &[243, 0], "for RISC-V (an ELF file)"),
        (18, &[77, 0], "for ELF machine 77 (an ELF file)"),
        (4, &[1], "for x86_64 (a 32-bit ELF file)"),
        (5, &[2], "for ELF machine 15872 (an ELF file)"),
        (16, &[1, 0], "an object file or a kernel module"),
        (16, &[4, 0], "a core dump"),
        (64, &[3], "a program of an operating system"),
        (64, &[6], "without a segment to load"),
    ] {
        let error = kernel_error(&patched(elf(false), offset, field)).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn elf_file_with_bad_headers_is_refused() {
    let refuse = |offset, field: &[u8]| kernel_error(&patched(elf(false), offset, field));
    let format = "ELF file";
    assert!(matches!(refuse(4, &[9]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(16, &[9, 0]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(54, &[32, 0]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(32, &[0xFF; 8]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(56, &[65, 0]), KernelError::TooManySegments { got: 65, most: 64 }));
    let bytes = u64::try_from(elf(false).len()).unwrap();
    let expected = 0x1000 + 56;
    assert_eq!(refuse(32, &0x1000_u64.to_le_bytes()), KernelError::Truncated { format, bytes, expected });
    let expected = 0x1000 + 16;
    assert_eq!(refuse(64 + 8, &0x1000_u64.to_le_bytes()), KernelError::Truncated { format, bytes, expected });
    assert!(matches!(refuse(64 + 8, &[0xFF; 8]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(64 + 40, &15_u64.to_le_bytes()), KernelError::Corrupt { .. }), "smaller in memory");
    assert_eq!(refuse(64 + 24, &0x8000_u64.to_le_bytes()), KernelError::BadAddress { start: 0x8000 });
    assert_eq!(refuse(64 + 24, &[0xFF; 8]), KernelError::BadAddress { start: u64::MAX });
    assert_eq!(refuse(64 + 24, &0xC000_0000_u64.to_le_bytes()), KernelError::BadAddress { start: 0xC000_0000 });
    assert_eq!(refuse(24, &0x1000_u64.to_le_bytes()), KernelError::BadEntry { entry: 0x1000 });
    let twice = patched(elf(true), 64 + 56, &segment_header(1, 256, LOAD_ADDRESS + 4096, 16, 16));
    assert!(kernel_error(&twice).to_string().contains("two of its segments overlap"));
}

#[test]
fn bzimage_with_bad_headers_is_refused() {
    let refuse = |offset, field: &[u8]| kernel_error(&patched(bzimage(), offset, field));
    assert_eq!(refuse(0x206, &[0x0A, 0x02]), KernelError::OldProtocol { major: 2, minor: 10 });
    assert_eq!(refuse(0x236, &[0, 0]), KernelError::Not64Bit);
    assert!(matches!(refuse(0x211, &[0]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(0x1F4, &[0; 4]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(0x24C, &[0xFF; 4]), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(1024 + 0x300, &[0, 0]), KernelError::Corrupt { .. }), "a hole");
    assert!(matches!(refuse(0x258, &0x1000_u64.to_le_bytes()), KernelError::Corrupt { .. }));
    assert!(matches!(refuse(0x258, &[0xFF; 8]), KernelError::Corrupt { .. }));
    let (bytes, expected) = (1024 + 4096, 256 * 512 + 4096);
    assert_eq!(refuse(0x1F1, &[255]), KernelError::Truncated { format: "bzImage", bytes, expected });
    assert_eq!(
        refuse(0x1F4, &[0xFF; 4]),
        KernelError::Truncated { format: "bzImage", bytes, expected: 1024 + 0xF_FFFF_FFF0 }
    );
}

#[test]
fn kernel_that_does_not_fit_says_how_much_memory_is_needed() {
    let Err(LoadError::Kernel(error)) = load_in(2, &bzimage(), None) else { panic!("loaded") };
    assert_eq!(error, KernelError::NeedsMemory { needed_mib: 4, have_mib: 2 });
    let Err(LoadError::Kernel(error)) = load_in(2, &elf(true), None) else { panic!("loaded") };
    assert_eq!(error, KernelError::NeedsMemory { needed_mib: 4, have_mib: 2 });
}

#[test]
fn initrd_that_does_not_fit_says_how_much_memory_is_needed() {
    let mut initrd = vec![0; 0x10_0001];
    put(&mut initrd, 0, b"070701");
    let Err(LoadError::Initrd(error)) = load_in(4, &bzimage(), Some(&initrd)) else { panic!("loaded") };
    assert_eq!(error, InitrdError::NeedsMemory { needed_mib: 6, have_mib: 4 });
    assert!(load_in(6, &bzimage(), Some(&initrd)).is_ok());
    assert!(matches!(load_in(6, &bzimage(), Some(b"")), Err(LoadError::Initrd(InitrdError::Empty))));
    assert!(matches!(load_in(6, &bzimage(), Some(b"\0\0")), Err(LoadError::Initrd(InitrdError::Unknown))));
}

#[test]
fn truncated_kernel_is_refused_at_every_length() {
    for file in [bzimage(), elf(true), elf(false)] {
        let steps = (0..file.len()).step_by(512).chain((0..file.len()).step_by(7)).chain(256..272);
        for length in steps {
            let cut = load_in(4, &file[..length], None);
            assert!(matches!(cut, Err(LoadError::Kernel(_))), "{length} of {} bytes: {cut:?}", file.len());
        }
    }
}

/// Marsaglia's xorshift.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn mutated_headers_never_panic() {
    let machine = machine(4);
    let memory = memory_of(&machine);
    let mut state = 0x9E37_79B9_7F4A_7C15;
    let mut loaded = 0;
    for case in 0..6000 {
        let mut file = match case % 3 {
            0 => bzimage(),
            1 => elf(true),
            _ => elf(false),
        };
        let header = if case % 3 == 0 { 0x1F1..0x268 } else { 0..file.len() };
        for _ in 0..1 + next(&mut state) % 4 {
            let span = u64::try_from(header.len()).unwrap();
            let offset = header.start + usize::try_from(next(&mut state) % span).unwrap();
            let value = next(&mut state).to_le_bytes();
            let width = usize::try_from(next(&mut state) % 8).unwrap().min(file.len() - 1 - offset);
            let value = if next(&mut state).is_multiple_of(4) { [0xFF; 8] } else { value };
            put(&mut file, offset, &value[..=width]);
        }
        match load(&memory, &image(&file), None, &machine) {
            Ok(_) => loaded += 1,
            Err(LoadError::Kernel(error)) => assert!(error.to_string().len() < 400),
            Err(error) => panic!("blames the host: {error:?}"),
        }
    }
    assert!((1..6000).contains(&loaded), "the mutations should hit and miss: {loaded}");
}
