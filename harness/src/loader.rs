//! Any kernel and any initrd, loaded for any machine: refused with a sentence, or loaded with an entry state that the
//! vmm accepts. Nothing is written outside of guest memory, which the address sanitizer watches.

use crate::entry::assert_inside;
use crate::packets::memory_file;
use crate::seeds::Seed;
use arbitrary::{Result, Unstructured};
use std::fs::File;
use std::os::unix::fs::FileExt;
use vm_memory::GuestMemoryMmap;
use vmm_core::arch::{aarch64, layout};
use vmm_core::loader::entropy::Entropy;
use vmm_core::loader::image::Image;
use vmm_core::loader::{LoadError, Machine};
use vmm_core::memory::RamRegion;
use wire::message::{Entry, FromLoader, GicVersion};
use wire::{CommandLine, MemoryBytes};

/// Loads by the loader of this host.
///
/// # Panics
/// When something does not hold.
pub fn native(bytes: &[u8]) {
    let load = |memory: &GuestMemoryMmap, kernel: &Image, initrd: Option<&Image>, machine: &Machine| {
        let entry = vmm_core::arch::boot::load(memory, kernel, initrd, machine)?;
        vmm_core::arch::regs::check(&entry, memory).expect("the vmm accepts what the loader answers");
        Ok(entry)
    };
    play(&mut Unstructured::new(bytes), layout::ram_regions, load).unwrap_or(());
}

/// Loads by the loader of arm64.
///
/// # Panics
/// When something does not hold.
pub fn arm64(bytes: &[u8]) {
    let load = |memory: &GuestMemoryMmap, kernel: &Image, initrd: Option<&Image>, machine: &Machine| {
        let entry = aarch64::boot::load(memory, kernel, initrd, machine)?;
        aarch64::regs::check(&entry, memory).expect("the vmm accepts what the loader answers");
        Ok(entry)
    };
    play(&mut Unstructured::new(bytes), aarch64::layout::ram_regions, load).unwrap_or(());
}

type Load = fn(&GuestMemoryMmap, &Image, Option<&Image>, &Machine) -> std::result::Result<Entry, LoadError>;

fn play(input: &mut Unstructured<'_>, regions: fn(MemoryBytes) -> Vec<RamRegion>, load: Load) -> Result<()> {
    let machine = machine(input)?;
    let initrd_bytes = input.arbitrary::<u16>()?;
    let initrd = if initrd_bytes == 0 { None } else { Some(input.bytes(usize::from(initrd_bytes).min(input.len()))?) };
    let kernel = input.bytes(input.len())?;
    let regions = regions(machine.memory);
    let memory = crate::entry::memory(&regions);
    match load(&memory, &image(kernel), initrd.map(image).as_ref(), &machine) {
        Ok(entry) => assert_inside(&entry, &regions),
        Err(error) => {
            // Whatever is wrong is the file's fault: the host's files and memory are as they should be.
            let answer = FromLoader::from(error);
            assert!(matches!(answer, FromLoader::Refused { .. }), "{answer:?}");
        }
    }
    Ok(())
}

/// A machine of up to 128 MiB; what is beyond is for no kernel of a fuzzer.
pub(crate) fn machine(input: &mut Unstructured<'_>) -> Result<Machine> {
    let memory = (u64::from(input.int_in_range(0..=63_u8)?) + 1) * MemoryBytes::GRANULE;
    let vcpus = input.int_in_range(0..=31_u8)? + 1;
    let disks = input.int_in_range(0..=16_u8)?;
    let flags = input.arbitrary::<u8>()?;
    let words = crate::packets::short(input)?;
    let words: String =
        words.iter().map(|&byte| char::from(byte)).filter(|c| !matches!(c, '\0' | '\n' | '\r')).collect();
    Ok(Machine {
        memory: memory.try_into().expect("a size"),
        vcpus: vcpus.try_into().expect("a count"),
        disks: disks.try_into().expect("a count"),
        acpi: flags & 1 == 0,
        gic: if flags & 2 == 0 { GicVersion::V3 } else { GicVersion::V2 },
        cmdline: CommandLine::try_from(words).expect("a line"),
        entropy: Entropy { kaslr_seed: flags.into(), rng_seed: [flags; 64] },
    })
}

fn image(content: &[u8]) -> Image {
    let file = File::from(memory_file(content.len() as u64));
    file.write_all_at(content, 0).expect("a write to a memfd");
    Image::new(file.into()).expect("a boot file")
}

/// 64 MiB, 2 vCPUs, 2 disks, ACPI, a command line, and an initrd or none.
fn seed(kernel: &[u8], initrd: &[u8]) -> Vec<u8> {
    let line = b"console=ttyS0 root=/dev/vda";
    let machine = Seed::new().u8(31).u8(1).u8(2).u8(0).u8(line.len() as u8).bytes(line);
    machine.u16(initrd.len() as u16).bytes(initrd).bytes(kernel).done()
}

/// The smallest files of each format that are loaded.
#[must_use]
pub fn native_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("bzimage", seed(&bzimage(), b"070701 and so on")),
        (
            "bzimage_without_acpi",
            seed(&bzimage(), b"").into_iter().enumerate().map(|(n, b)| if n == 3 { 1 } else { b }).collect(),
        ),
        ("elf", seed(&elf(false), b"")),
        ("elf_pvh", seed(&elf(true), b"\x1F\x8B rest")),
        ("arm64_image", seed(&arm64_image(), b"")),
        ("script", seed(b"#!/bin/sh\n", b"")),
    ]
}

/// The smallest files of each format that are loaded.
#[must_use]
pub fn arm64_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("image", seed(&arm64_image(), b"070701 and so on")),
        ("image_gz", seed(&gzip(&arm64_image()), b"")),
        ("elf", seed(&elf(false), b"")),
        ("zboot", seed(b"MZ\0\0zimg", b"")),
    ]
}

fn put(file: &mut [u8], offset: usize, field: &[u8]) {
    file[offset..offset + field.len()].copy_from_slice(field);
}

/// "Linux x86 boot protocol" 2.15, two sectors of setup and a page of kernel.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 512];
    file[0x1F1] = 1;
    put(&mut file, 0x1F4, &(512_u32 / 16).to_le_bytes());
    put(&mut file, 0x1FE, &[0x55, 0xAA, 0xEB, 0x66]);
    put(&mut file, 0x202, b"HdrS\x0F\x02");
    file[0x211] = 1;
    put(&mut file, 0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut file, 0x236, &[1, 0]);
    put(&mut file, 0x238, &2047_u32.to_le_bytes());
    put(&mut file, 0x258, &0x20_0000_u64.to_le_bytes());
    put(&mut file, 0x260, &0x10_0000_u32.to_le_bytes());
    file
}

/// One segment, and a PVH note if asked for.
fn elf(pvh: bool) -> Vec<u8> {
    let mut file = vec![0; 256];
    put(&mut file, 0, b"\x7FELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0, 1]);
    put(&mut file, 24, &0x20_0004_u64.to_le_bytes());
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 52, &[64, 0, 56, 0, 1 + u8::from(pvh), 0]);
    let segment = |kind: u32, offset: u64, start: u64, bytes: u64, memory: u64| {
        let mut header = [kind.to_le_bytes(), [0; 4]].concat();
        for field in [offset, start, start, bytes, memory, 4] {
            header.extend(field.to_le_bytes());
        }
        header
    };
    put(&mut file, 64, &segment(1, 256, 0x20_0000, 16, 8192));
    put(&mut file, 64 + 56, &segment(4, 272, 0, 20, 0));
    file.extend([0xCC; 16]);
    if pvh {
        file.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        file.extend(b"Xen\0");
        file.extend(0x20_0008_u32.to_le_bytes());
    }
    file
}

/// "Booting AArch64 Linux": 3 MiB in memory, a page in the file.
fn arm64_image() -> Vec<u8> {
    let mut file = vec![0; 4096];
    put(&mut file, 16, &(3_u64 << 20).to_le_bytes());
    put(&mut file, 24, &0b1010_u64.to_le_bytes());
    put(&mut file, 0x38, b"ARM\x64");
    file
}

/// RFC 1952, in stored blocks (RFC 1951 §3.2.4), which need no compressor.
fn gzip(content: &[u8]) -> Vec<u8> {
    let mut file = b"\x1F\x8B\x08\0\0\0\0\0\0\xFF\x01".to_vec();
    let length = content.len() as u16;
    file.extend(length.to_le_bytes());
    file.extend((!length).to_le_bytes());
    file.extend(content);
    let checksum = content.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _bit| if sum & 1 == 0 { sum >> 1 } else { (sum >> 1) ^ 0xEDB8_8320 })
    });
    file.extend((!checksum).to_le_bytes());
    file.extend((content.len() as u32).to_le_bytes());
    file
}
