//! Loads a guest: kernel, initrd, command line and all that the boot protocols want to find in memory.
//!
//! `linux-loader` has the types of the boot structures and writes them. Its loaders of kernel images stay unused: they
//! trust headers (the ELF one reads them twice, adds and multiplies their fields unchecked, which can panic, and lets a
//! later note segment hide the PVH note; the bzImage one takes any `setup_sects` and load address), and do not say why
//! an image is refused. What comes from a file is checked here, in one copy, before anything acts on it.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::bzimage::BzImage;
use super::elf::Elf;
use super::layout::{
    ACPI_START, CMDLINE_START, GDT_START, HIGH_RAM_START, HOLE_START, MP_TABLE_START, PAGE_TABLE_START, PVH_START,
    ZERO_PAGE_START,
};
use super::{acpi, cmdline, e820, mp_table, page_table, pvh, reset_vector, segments, zero_page};
use crate::loader::image::Image;
use crate::loader::kernel::{Bootable, KernelError, memory_mib_for};
use crate::loader::magic::{HEAD_BYTES, Kind, identify};
use crate::loader::{LoadError, Machine, Placed, Room, initrd};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::load_cmdline;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use wire::CommandLine;
use wire::message::Entry;

/// What this machine boots.
pub const HERE: Bootable =
    Bootable { machine: "x86_64", right: "give an x86_64 bzImage (vmlinuz) or an x86_64 ELF vmlinux" };

/// Where an initrd must end for a kernel that does not say: `initrd_addr_max` of all bzImages.
const INITRD_END: u64 = 0x8000_0000;
/// Bytes of a compressed kernel that are looked at: the longest magic number is shorter.
const PAYLOAD_HEAD_BYTES: usize = 16;

/// Loads a guest into fresh (zeroed) memory and says how it starts.
///
/// # Errors
/// When a boot file is refused, or cannot be read. Guest memory is unspecified then.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    kernel: &Image,
    initrd: Option<&Image>,
    machine: &Machine,
) -> Result<Entry, LoadError> {
    let head = kernel.read(0, HEAD_BYTES)?;
    if let Some(initrd) = initrd {
        initrd::check(&initrd.read(0, HEAD_BYTES)?)?;
    }
    match identify(&head) {
        Kind::BzImage => load_bzimage(memory, kernel, &BzImage::parse(&head, kernel.bytes())?, initrd, machine),
        Kind::Elf => {
            let elf = Elf::parse(kernel, HIGH_RAM_START, HOLE_START)?;
            load_elf(memory, kernel, &elf, initrd, machine)
        }
        kind => Err(KernelError::wrong_format(kind, &head, HERE).into()),
    }
}

fn load_bzimage<M: GuestMemoryBackend>(
    memory: &M,
    kernel: &Image,
    image: &BzImage,
    initrd: Option<&Image>,
    machine: &Machine,
) -> Result<Entry, LoadError> {
    if let Some(offset) = image.payload_offset {
        BzImage::check_payload(&kernel.read(offset, PAYLOAD_HEAD_BYTES)?)?;
    }
    check_memory(image.end, machine)?;
    let common = Common::write(memory, machine, image.cmdline_bytes, initrd, image.end, image.initrd_end)?;
    kernel.copy(image.offset, image.bytes, memory, image.start)?;
    common.enter_long(memory, machine, image.setup_header, image.entry())
}

fn load_elf<M: GuestMemoryBackend>(
    memory: &M,
    kernel: &Image,
    image: &Elf,
    initrd: Option<&Image>,
    machine: &Machine,
) -> Result<Entry, LoadError> {
    check_memory(image.end(), machine)?;
    let common = Common::write(memory, machine, CommandLine::MAX_BYTES, initrd, image.end(), INITRD_END)?;
    for segment in &image.segments {
        kernel.copy(segment.offset, segment.file_bytes, memory, segment.start)?;
    }
    match image.pvh_entry {
        Some(entry) => common.enter_pvh(memory, machine, entry),
        None => common.enter_long(memory, machine, zero_page::bare_setup_header(), image.entry),
    }
}

/// The end of the RAM below 4 GiB.
fn ram_end(machine: &Machine) -> u64 {
    machine.memory.get().min(HOLE_START)
}

fn check_memory(kernel_end: u64, machine: &Machine) -> Result<(), KernelError> {
    if kernel_end > ram_end(machine) {
        let have_mib = machine.memory.get() >> 20;
        return Err(KernelError::NeedsMemory { needed_mib: memory_mib_for(kernel_end), have_mib });
    }
    Ok(())
}

/// What is the same for all protocols.
struct Common {
    initrd: Option<Placed>,
    rsdp: u64,
}

impl Common {
    /// Writes command line, tables and initrd.
    fn write<M: GuestMemoryBackend>(
        memory: &M,
        machine: &Machine,
        cmdline_most: usize,
        initrd: Option<&Image>,
        kernel_end: u64,
        reach_end: u64,
    ) -> Result<Self, LoadError> {
        let disks = if machine.acpi { 0 } else { machine.disks.get() };
        let cmdline = cmdline::with_disks(machine.cmdline.as_str(), disks)?;
        let (got, most) = (cmdline.as_cstring()?.count_bytes(), cmdline_most.min(CommandLine::MAX_BYTES));
        if got > most {
            return Err(KernelError::CommandLine { got, most }.into());
        }
        let ram_end = ram_end(machine);
        let have_mib = machine.memory.get() >> 20;
        let room = Room { ram_start: 0, kernel_end, ram_end, ram_end_most: HOLE_START, reach_end, have_mib };
        let placed = initrd.map(|initrd| initrd::place(initrd.bytes(), room)).transpose()?;

        load_cmdline(memory, GuestAddress(CMDLINE_START), &cmdline)?;
        let mp_table = mp_table::build(low(MP_TABLE_START), machine.vcpus);
        memory.write_slice(&mp_table, GuestAddress(MP_TABLE_START))?;
        memory.write_slice(&reset_vector::code(), GuestAddress(reset_vector::RESET_VECTOR))?;
        let mut rsdp = 0;
        if machine.acpi {
            rsdp = ACPI_START;
            memory.write_slice(&acpi::build(rsdp, machine.vcpus, machine.disks), GuestAddress(rsdp))?;
        }
        if let (Some(initrd), Some(placed)) = (initrd, placed) {
            initrd.copy(0, placed.bytes.into(), memory, placed.start.into())?;
        }
        Ok(Self { initrd: placed, rsdp })
    }

    fn enter_long<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        machine: &Machine,
        setup_header: setup_header,
        entry: u64,
    ) -> Result<Entry, LoadError> {
        let map = e820::map(machine.memory);
        let page = zero_page::build(setup_header, low(CMDLINE_START), self.initrd, self.rsdp, &map);
        let params = BootParams::new(&page, GuestAddress(ZERO_PAGE_START));
        LinuxBootConfigurator::write_bootparams(&params, memory)?;
        page_table::write(memory, PAGE_TABLE_START)?;
        segments::write(memory, GDT_START, &segments::LONG)?;
        let (boot_params, page_table, gdt) = (ZERO_PAGE_START, PAGE_TABLE_START, GDT_START);
        Ok(Entry::X86Long { entry, boot_params, page_table, gdt })
    }

    fn enter_pvh<M: GuestMemoryBackend>(&self, memory: &M, machine: &Machine, entry: u32) -> Result<Entry, LoadError> {
        let map = e820::map(machine.memory);
        let params = pvh::build(PVH_START, CMDLINE_START, self.initrd, self.rsdp, &map);
        PvhBootConfigurator::write_bootparams(&params, memory)?;
        segments::write(memory, GDT_START, &segments::PVH)?;
        Ok(Entry::X86Pvh { entry, start_info: low(PVH_START), gdt: low(GDT_START) })
    }
}

/// An address of the layout that is below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(0)
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
