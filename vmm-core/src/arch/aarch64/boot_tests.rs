//! Whole loads of kernels that the tests make, into memories of all shapes.

use super::*;
use crate::loader::entropy::Entropy;
use crate::loader::gzip::tests::gzip;
use crate::loader::image::tests::image;
use crate::loader::initrd::InitrdError;
use vm_memory::GuestMemoryMmap;
use wire::message::GicVersion;
use wire::{CommandLine, DiskCount, MemoryBytes, VcpuCount};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// An Image as Linux makes it: text offset 0, 8192 bytes in the file and 3 MiB in memory, little-endian with pages of
/// 4 KiB, anywhere in memory, and a section of its own as a PE executable that ends with the file.
fn kernel() -> Vec<u8> {
    let mut file = vec![0xCC; 8192];
    file[..512].fill(0);
    put(&mut file, 0, b"MZ");
    put(&mut file, 16, &(3 * MIB).to_le_bytes());
    put(&mut file, 24, &0b1010_u64.to_le_bytes());
    put(&mut file, 0x38, b"ARM\x64\x40\0\0\0");
    put(&mut file, 0x40, b"PE\0\0\x64\xAA\x01\0");
    put(&mut file, 0x40 + 20, &[0xA0, 0]);
    put(&mut file, 0x40 + 24 + 0xA0 + 16, &4096_u32.to_le_bytes());
    put(&mut file, 0x40 + 24 + 0xA0 + 20, &4096_u32.to_le_bytes());
    file
}

fn put(file: &mut [u8], offset: usize, field: &[u8]) {
    file[offset..offset + field.len()].copy_from_slice(field);
}

fn patched(mut file: Vec<u8>, offset: usize, field: &[u8]) -> Vec<u8> {
    put(&mut file, offset, field);
    file
}

pub(in crate::arch) fn machine(mib: u64) -> Machine {
    Machine {
        memory: MemoryBytes::try_from(mib * MIB).unwrap(),
        vcpus: VcpuCount::try_from(2).unwrap(),
        disks: DiskCount::try_from(2).unwrap(),
        acpi: true,
        gic: GicVersion::V3,
        cmdline: CommandLine::try_from("console=ttyS0".to_owned()).unwrap(),
        entropy: Entropy { kaslr_seed: 0x0123_4567_89AB_CDEF, rng_seed: [0x5A; 64] },
    }
}

fn memory_of(machine: &Machine) -> GuestMemoryMmap {
    let bytes = usize::try_from(machine.memory.get()).unwrap();
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM_START), bytes)]).unwrap()
}

fn load_in(mib: u64, kernel: &[u8], initrd: Option<&[u8]>) -> Result<(u64, u64, GuestMemoryMmap), LoadError> {
    let machine = machine(mib);
    let memory = memory_of(&machine);
    let initrd = initrd.map(image);
    match load(&memory, &image(kernel), initrd.as_ref(), &machine)? {
        Entry::Arm64 { entry, fdt } => Ok((entry, fdt, memory)),
        other => panic!("{other:?}"),
    }
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

/// The value of a property of eight bytes, wherever it is in the device tree.
fn property(memory: &GuestMemoryMmap, fdt: u64, name: &str) -> Option<u64> {
    let bytes = u32::from_be_bytes(read(memory, fdt + 4));
    let mut tree = vec![0; usize::try_from(bytes).unwrap()];
    memory.read_slice(&mut tree, GuestAddress(fdt)).unwrap();
    let cell = |offset: usize| u32::from_be_bytes(tree[offset..offset + 4].try_into().unwrap());
    let strings = usize::try_from(cell(12)).unwrap();
    let wanted = tree[strings..].windows(name.len() + 2).position(|window| {
        let (first, rest) = window.split_first().unwrap();
        *first == 0 && rest[..name.len()] == *name.as_bytes() && rest[name.len()] == 0
    })?;
    let wanted = u32::try_from(wanted + 1).unwrap();
    let start =
        (56..strings - 20).step_by(4).find(|&at| cell(at) == 3 && cell(at + 4) == 8 && cell(at + 8) == wanted)?;
    Some(u64::from(cell(start + 12)) << 32 | u64::from(cell(start + 16)))
}

#[test]
fn image_is_loaded_in_every_size_of_memory() {
    for mib in [8, 512, 3 << 10, 4 << 10, 6 << 10] {
        let (entry, fdt, memory) = load_in(mib, &kernel(), Some(b"070701 and so on")).unwrap();
        assert_eq!((entry, fdt), (RAM_START, RAM_START + 4 * MIB));
        assert_eq!(read::<8192>(&memory, RAM_START), kernel()[..]);
        assert_eq!(read::<4>(&memory, fdt), [0xD0, 0x0D, 0xFE, 0xED]);
        let initrd = property(&memory, fdt, "linux,initrd-start").unwrap();
        assert_eq!(initrd, (RAM_START + mib * MIB).min(4 * GIB) - 4096);
        assert_eq!(property(&memory, fdt, "linux,initrd-end"), Some(initrd + 16));
        assert_eq!(&read::<16>(&memory, initrd), b"070701 and so on");
        assert_eq!(property(&memory, fdt, "kaslr-seed"), Some(0x0123_4567_89AB_CDEF));
    }
}

#[test]
fn text_offset_moves_the_kernel() {
    let file = patched(kernel(), 8, &0x8_0000_u64.to_le_bytes());
    let (entry, fdt, memory) = load_in(64, &file, None).unwrap();
    assert_eq!((entry, fdt), (RAM_START + 0x8_0000, RAM_START + 4 * MIB));
    assert_eq!(read::<8192>(&memory, entry), file[..]);
    assert_eq!(property(&memory, fdt, "linux,initrd-start"), None);
}

#[test]
fn kernel_that_does_not_say_its_size_goes_to_the_old_offset() {
    let file = patched(patched(kernel(), 16, &[0; 8]), 8, &[0xFF; 8]);
    for file in [gzip(&file), file] {
        let (entry, fdt, _) = load_in(64, &file, None).unwrap();
        assert_eq!((entry, fdt), (RAM_START + 0x8_0000, RAM_START + 18 * MIB));
    }
}

#[test]
fn gzip_file_is_unpacked() {
    let file: Vec<u8> = (0..2 * MIB).map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0]).collect();
    let mut file = patched(file, 0, &kernel()[..512]);
    put(&mut file, 0x40 + 24 + 0xA0 + 16, &u32::try_from(2 * MIB - 4096).unwrap().to_le_bytes());
    let (entry, fdt, memory) = load_in(64, &gzip(&file), Some(b"070701")).unwrap();
    assert_eq!((entry, fdt), (RAM_START, RAM_START + 4 * MIB));
    let mut copy = vec![0; file.len()];
    memory.read_slice(&mut copy, GuestAddress(entry)).unwrap();
    assert!(copy == file);
}

#[test]
fn gzip_file_with_something_else_in_it_is_refused_by_its_content() {
    let elf = patched(patched(vec![0; 8192], 0, b"\x7FELF\x02\x01\x01"), 18, &[183, 0]);
    for (content, words) in [
        (vec![], "unpacked from gzip, the file is empty"),
        (elf, "unpacked from gzip, the file is an ELF file (vmlinux), not a kernel"),
        (b"070701".to_vec(), "unpacked from gzip, the file is a cpio archive"),
        (gzip(&kernel()), "unpacked from gzip, the file is compressed with gzip"),
        (kernel()[..5000].to_vec(), "unpacked from gzip, the Image is truncated: it has 5000 bytes"),
        (patched(kernel(), 24, &[1]), "unpacked from gzip, the Image is a big-endian kernel"),
    ] {
        let error = kernel_error(&gzip(&content)).to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut bomb = kernel();
    bomb.resize(4 << 20, 0);
    assert!(kernel_error(&gzip(&bomb)).to_string().contains("larger than the memory that it asks for"));
    put(&mut bomb, 16, &[0; 8]);
    bomb.resize(24 << 20, 0);
    assert!(matches!(load_in(22, &gzip(&bomb), None), Err(LoadError::Kernel(KernelError::TooLarge))));
}

#[test]
fn file_that_is_no_kernel_is_refused_with_what_would_be_right() {
    let at = |offset: usize, magic: &[u8]| patched(vec![0; 8192], offset, magic);
    let elf = at(0, b"\x7FELF\x02\x01\x01");
    let zboot = patched(patched(at(0, b"MZ\0\0zimg"), 0x3C, &[0x40]), 0x40, b"PE\0\0\x64\xAA");
    for (file, words) in [
        (vec![], "the file is empty"),
        (at(0x202, b"HdrS"), "the kernel is for x86 (a bzImage), but this machine is arm64"),
        (at(0x38, b"RSC\x05"), "for RISC-V (an uncompressed Image)"),
        (patched(elf.clone(), 18, &[62, 0]), "for x86_64 (an ELF file)"),
        (patched(elf.clone(), 18, &[183, 0]), "an ELF file (vmlinux), not a kernel"),
        (elf, "the file is an ELF file, not a kernel"),
        (zboot.clone(), "an EFI zboot image (vmlinuz.efi)"),
        (patched(zboot.clone(), 0x44, &[0x64, 0x62]), "for LoongArch (an EFI executable)"),
        (patched(zboot, 4, b"\0\0\0\0"), "an EFI executable without a Linux header"),
        (at(0, b"\xFD7zXZ\0"), "decompress it first (xz -d)"),
        (at(0, b"\x28\xB5\x2F\xFD"), "decompress it first (zstd -d)"),
        (at(0, b"\x02\x21\x4C\x18"), "decompress it first (lz4 -d)"),
        (at(0, b"\x27\x05\x19\x56"), "a U-Boot image (uImage)"),
        (b"#!/bin/sh\nexec true\n".to_vec(), "a script or another text"),
        (at(0x438, b"\x53\xEF"), "an ext2, ext3 or ext4 file system"),
        (vec![0; 8192], "no known kernel format"),
    ] {
        let error = kernel_error(&file).to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("give an arm64 Image (arch/arm64/boot/Image), as it is or compressed"), "{error}");
    }
}

#[test]
fn image_with_a_bad_header_is_refused() {
    let refuse = |offset, field: &[u8]| kernel_error(&patched(kernel(), offset, field));
    assert_eq!(refuse(24, &[0b1011]), KernelError::BigEndian);
    assert!(matches!(refuse(8, &[0xFF; 8]), KernelError::Corrupt { .. }), "the start overflows");
    assert!(matches!(refuse(8, &[2]), KernelError::Corrupt { .. }), "the start is odd");
    assert!(matches!(refuse(8, &(3 * GIB).to_le_bytes()), KernelError::Corrupt { .. }), "above 4 GiB");
    assert!(matches!(refuse(16, &[0xFF; 8]), KernelError::Corrupt { .. }), "the size overflows");
    assert!(matches!(refuse(16, &8191_u64.to_le_bytes()), KernelError::Corrupt { .. }), "larger than it says");
    assert_eq!(refuse(16, &(3 * GIB).to_le_bytes()), KernelError::TooLarge);
}

#[test]
fn truncated_kernel_is_refused_at_every_length() {
    for length in (0..8192).step_by(512).chain((0..200).step_by(7)).chain([8191]) {
        let cut = load_in(8, &kernel()[..length], None);
        assert!(matches!(cut, Err(LoadError::Kernel(_))), "{length} bytes: {cut:?}");
    }
    let bytes = 8191;
    let truncated = KernelError::Truncated { format: "Image", bytes, expected: 8192 };
    assert_eq!(kernel_error(&kernel()[..8191]), truncated);
}

#[test]
fn kernel_that_does_not_fit_says_how_much_memory_is_needed() {
    for file in [kernel(), gzip(&kernel())] {
        let Err(LoadError::Kernel(error)) = load_in(4, &file, None) else { panic!("loaded") };
        assert_eq!(error, KernelError::NeedsMemory { needed_mib: 6, have_mib: 4 });
        assert!(load_in(6, &file, None).is_ok());
    }
}

#[test]
fn initrd_that_does_not_fit_says_how_much_memory_is_needed() {
    let mut initrd = vec![0; 0x20_0001];
    put(&mut initrd, 0, b"070701");
    let Err(LoadError::Initrd(error)) = load_in(8, &kernel(), Some(&initrd)) else { panic!("loaded") };
    assert_eq!(error, InitrdError::NeedsMemory { needed_mib: 10, have_mib: 8 });
    assert!(load_in(10, &kernel(), Some(&initrd)).is_ok());
    assert!(matches!(load_in(8, &kernel(), Some(b"")), Err(LoadError::Initrd(InitrdError::Empty))));
}

/// Marsaglia's xorshift.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn mutated_files_never_panic() {
    let machine = machine(8);
    let memory = memory_of(&machine);
    let packed = gzip(&kernel());
    let mut state = 0x9E37_79B9_7F4A_7C15;
    let mut loaded = 0;
    for case in 0..4000 {
        let mut file = if case % 2 == 0 { kernel() } else { packed.clone() };
        let span = u64::try_from(file.len().min(0x140)).unwrap();
        for _ in 0..1 + next(&mut state) % 4 {
            let offset = usize::try_from(next(&mut state) % span).unwrap();
            let value = if next(&mut state).is_multiple_of(4) { 0xFF } else { next(&mut state).to_le_bytes()[0] };
            file[offset] = value;
        }
        match load(&memory, &image(&file), None, &machine) {
            Ok(_) => loaded += 1,
            Err(LoadError::Kernel(error)) => assert!(error.to_string().len() < 400),
            Err(error) => panic!("blames the host: {error:?}"),
        }
    }
    assert!((1..4000).contains(&loaded), "the mutations should hit and miss: {loaded}");
}
