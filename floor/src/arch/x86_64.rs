//! KVM on x86_64: memory first, then a split interrupt controller, one vCPU.

#![allow(unsafe_code, reason = "KVM takes guest memory by its address in this process")]

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Where the PVH start structure lies, and the command line.
const START_INFO: GuestAddress = GuestAddress(0x6000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x7000);
/// The magic number of a PVH start structure (Xen "x86/HVM direct boot ABI"), and where it points to the command line.
const START_MAGIC: u32 = 0x336e_c578;
const START_COMMAND_LINE_BYTES: u64 = 24;
/// COM1, and its line status with an empty transmitter.
const SERIAL: u16 = 0x3f8;
const LINE_STATUS: u16 = SERIAL + 5;
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Bulkhead's reset port.
const RESET: u16 = 0x602;
/// The pins of an I/O APIC, which are routed by whoever has one.
const PINS: u64 = 24;
/// A flat segment of code, or of data (Intel SDM volume 3, "Segment descriptors").
const CODE: u8 = 0xb;
const DATA: u8 = 0x3;

/// Starts the guest and serves it until its reset.
pub(crate) fn run(kernel: &Path, words: &str, memory_mib: usize) -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let vm = kvm.create_vm().context("no VM")?;
    let bytes = memory_mib << 20;
    let memfd = File::from(memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC)?);
    memfd.set_len(bytes as u64).context("no memory")?;
    let range = (GuestAddress(0), bytes, Some(FileOffset::new(memfd, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).context("cannot map memory")?;
    let entry = load(&memory, kernel, words)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: bytes as u64,
        userspace_addr: vm_memory::GuestMemoryBackend::get_host_address(&memory, GuestAddress(0))? as u64,
    };
    // SAFETY: the range is a mapping of exactly this size, which lives until the end of this function, as the VM does.
    unsafe { vm.set_user_memory_region(region) }.context("KVM refused the memory")?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
    split.args[0] = PINS;
    vm.enable_cap(&split).context("KVM has no split irqchip")?;
    let mut vcpu = vm.create_vcpu(0).context("no vCPU")?;
    enter(&vcpu, entry)?;
    serve(&mut vcpu)
}

/// Puts guest and command line into memory; gives the PVH entry point.
fn load(memory: &GuestMemoryMmap, kernel: &Path, words: &str) -> Result<u64> {
    let mut file = File::open(kernel).with_context(|| format!("cannot open {}", kernel.display()))?;
    let loaded = Elf::load(memory, None, &mut file, None).context("cannot load the kernel")?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else { bail!("the kernel has no PVH note") };
    memory.write_slice(words.as_bytes(), COMMAND_LINE)?;
    memory.write_obj(START_MAGIC, START_INFO)?;
    memory.write_obj(COMMAND_LINE.0, START_INFO.unchecked_add(START_COMMAND_LINE_BYTES))?;
    Ok(entry.0)
}

/// 32-bit protected mode without paging, as PVH wants it.
fn enter(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let flat = |selector, type_| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = vcpu.get_sregs().context("KVM does not tell the registers")?;
    special.cs = flat(8, CODE);
    for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *segment = flat(16, DATA);
    }
    special.cr0 = 0x11;
    vcpu.set_sregs(&special).context("KVM refused the registers")?;
    let regs = kvm_bindings::kvm_regs { rip: entry, rbx: START_INFO.0, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).context("KVM refused the registers")
}

fn serve(vcpu: &mut VcpuFd) -> Result<()> {
    let mut console = std::io::stdout().lock();
    loop {
        match vcpu.run().context("KVM_RUN failed")? {
            VcpuExit::IoOut(SERIAL, data) => {
                console.write_all(data)?;
                console.flush()?;
            }
            VcpuExit::IoIn(LINE_STATUS, data) => data.fill(TRANSMITTER_EMPTY),
            VcpuExit::IoOut(RESET, _) => return Ok(()),
            VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(!0),
            VcpuExit::Shutdown => return Ok(()),
            other => bail!("unexpected exit {other:?}"),
        }
    }
}
