//! Loads a guest: kernel, initrd and the flattened device tree ("Booting AArch64 Linux").
//!
//! All of it lies below 4 GiB: the kernel where its header wants to be, at the start of RAM, the device tree behind it,
//! the initrd at the top. That is within the 32 GiB that an initrd shares with its kernel.
//!
//! `linux-loader` has an Image loader as well, which takes any text offset and adds to it unchecked, does not look at
//! `image_size`, endianness or compression, and exists on arm64 hosts only; hence our own few lines.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::fdt;
use super::image::Arm64Image;
use super::layout::{LOAD_END, RAM_START, ram_end};
use crate::loader::gzip::Unpacked;
use crate::loader::image::Image;
use crate::loader::kernel::{Bootable, KernelError, memory_mib_for};
use crate::loader::magic::{GZIP, HEAD_BYTES, Kind, identify};
use crate::loader::{LoadError, Machine, Room, initrd};
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use wire::message::Entry;

/// What this machine boots.
pub const HERE: Bootable = Bootable {
    machine: "arm64",
    right: "give an arm64 Image (arch/arm64/boot/Image), as it is or compressed with gzip",
};

/// The device tree's room and alignment: it is mapped as one block of this size.
const FDT_ROOM_BYTES: u64 = 2 << 20;

/// Loads a guest into fresh (zeroed) memory and says how it starts.
///
/// # Errors
/// When a boot file is refused, or cannot be read. Guest memory is unspecified then.
pub fn load<M: GuestMemory>(
    memory: &M,
    kernel: &Image,
    initrd: Option<&Image>,
    machine: &Machine,
) -> Result<Entry, LoadError> {
    let head = kernel.read(0, HEAD_BYTES)?;
    if let Some(initrd) = initrd {
        initrd::check(&initrd.read(0, HEAD_BYTES)?)?;
    }
    let (entry, kernel_end) = match identify(&head) {
        Kind::Arm64Image => load_image(memory, kernel, &Arm64Image::parse(&head)?, machine)?,
        Kind::Compressed(GZIP) => load_gzip(memory, kernel, machine)?,
        kind => return Err(KernelError::wrong_format(kind, &head, HERE).into()),
    };
    let fdt = fdt_start(kernel_end);
    let room = Room {
        ram_start: RAM_START,
        kernel_end: fdt.saturating_add(FDT_ROOM_BYTES),
        ram_end: load_end(machine),
        ram_end_most: LOAD_END,
        reach_end: LOAD_END,
        have_mib: have_mib(machine),
    };
    let mut placed = None;
    if let Some(initrd) = initrd {
        let place = initrd::place(initrd.bytes(), room)?;
        initrd.copy(0, place.bytes.into(), memory, place.start.into())?;
        placed = Some(place);
    }
    memory.write_slice(&fdt::build(machine, placed)?, GuestAddress(fdt))?;
    Ok(Entry::Arm64 { entry, fdt })
}

/// Loads an uncompressed Image; returns where it starts and where its memory ends.
fn load_image<M: GuestMemory>(
    memory: &M,
    kernel: &Image,
    image: &Arm64Image,
    machine: &Machine,
) -> Result<(u64, u64), LoadError> {
    image.check_bytes(kernel.bytes())?;
    let end = image.end(kernel.bytes());
    check_memory(end, machine)?;
    kernel.copy(0, kernel.bytes(), memory, image.start)?;
    Ok((image.start, end))
}

/// Loads an Image that is compressed with gzip.
fn load_gzip<M: GuestMemory>(memory: &M, kernel: &Image, machine: &Machine) -> Result<(u64, u64), LoadError> {
    let inside = |error: KernelError| KernelError::Unpacked(Box::new(error));
    let mut unpacked = Unpacked::new(kernel);
    let head = unpacked.read(HEAD_BYTES)?;
    let kind = identify(&head);
    if kind != Kind::Arm64Image {
        return Err(inside(KernelError::wrong_format(kind, &head, HERE)).into());
    }
    let image = Arm64Image::parse(&head).map_err(inside)?;
    // Before anything is unpacked, if the header says how much memory it takes; once more when all is.
    check_memory(image.end(0), machine)?;
    memory.write_slice(&head, GuestAddress(image.start))?;
    let head_bytes = u64::try_from(head.len()).unwrap_or(u64::MAX);
    let rest_start = image.start.saturating_add(head_bytes);
    let most = load_end(machine).saturating_sub(rest_start);
    let rest_bytes = unpacked.copy(memory, rest_start, most)?;
    let bytes = rest_bytes.unwrap_or(u64::MAX).saturating_add(head_bytes);
    image.check_bytes(bytes).map_err(inside)?;
    let end = image.end(bytes);
    check_memory(end, machine)?;
    Ok((image.start, end))
}

/// Where the device tree goes.
fn fdt_start(kernel_end: u64) -> u64 {
    kernel_end.checked_next_multiple_of(FDT_ROOM_BYTES).unwrap_or(u64::MAX)
}

/// The end of the RAM that the loader writes to.
fn load_end(machine: &Machine) -> u64 {
    ram_end(machine.memory).min(LOAD_END)
}

fn have_mib(machine: &Machine) -> u64 {
    machine.memory.get() >> 20
}

/// Checks that there is memory for the kernel and the device tree.
fn check_memory(kernel_end: u64, machine: &Machine) -> Result<(), KernelError> {
    let end = fdt_start(kernel_end).saturating_add(FDT_ROOM_BYTES);
    if end <= load_end(machine) {
        return Ok(());
    }
    if end > LOAD_END {
        return Err(KernelError::TooLarge);
    }
    Err(KernelError::NeedsMemory {
        needed_mib: memory_mib_for(end.saturating_sub(RAM_START)),
        have_mib: have_mib(machine),
    })
}

#[cfg(test)]
#[path = "boot_tests.rs"]
pub(in crate::arch) mod tests;
