//! The registers with which the first vCPU enters a guest, by boot protocol.
//!
//! The loader is distrusted: every address that it names must lie in RAM. Pure but for the check against guest memory.

use super::layout::PAGE_TABLE_START;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use wire::message::Entry;

/// Control register bits (Intel SDM volume 3 §2.5).
mod control {
    pub(super) const CR0_PE: u64 = 1;
    pub(super) const CR0_ET: u64 = 1 << 4;
    pub(super) const CR0_NE: u64 = 1 << 5;
    pub(super) const CR0_PG: u64 = 1 << 31;
    pub(super) const CR4_PAE: u64 = 1 << 5;
    pub(super) const EFER_LME: u64 = 1 << 8;
    pub(super) const EFER_LMA: u64 = 1 << 10;
}
/// rflags with its one reserved bit: interrupts off.
const RFLAGS: u64 = 2;
/// The code segment's selector: entry 1 of the loader's descriptor table.
const CODE: u16 = 0x08;
/// The data segments' selector: entry 2.
const DATA: u16 = 0x10;
/// The task state's selector: entry 3 (PVH).
const TASK: u16 = 0x18;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: usize = 8;
/// Bytes of a page, of `boot_params` and of a page table.
const PAGE_BYTES: usize = 4096;
/// Bytes of `hvm_start_info`, version 1.
const START_INFO_BYTES: usize = 56;

/// What is wrong with an entry state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// An address is not in RAM.
    #[error("the loader's {0} is not in guest memory")]
    NotInMemory(&'static str),
    /// The page table is not aligned.
    #[error("the loader's page table is not aligned")]
    Unaligned,
    /// A state for arm64.
    #[error("the loader's entry state is for another architecture")]
    Architecture,
}

/// Checks an entry state against guest memory.
///
/// # Errors
/// When an address is not in RAM, or the state is for another architecture.
pub fn check(entry: &Entry, memory: &GuestMemoryMmap) -> Result<(), EntryError> {
    let in_memory = |what, address: u64, bytes: usize| {
        let fits = address.checked_add(bytes as u64).is_some() && memory.check_range(GuestAddress(address), bytes);
        if fits { Ok(()) } else { Err(EntryError::NotInMemory(what)) }
    };
    match *entry {
        Entry::X86Long { entry, boot_params, page_table, gdt } => {
            in_memory("entry point", entry, 1)?;
            in_memory("zero page", boot_params, PAGE_BYTES)?;
            in_memory("page table", page_table, PAGE_BYTES)?;
            in_memory("descriptor table", gdt, 3 * DESCRIPTOR_BYTES)?;
            if page_table.is_multiple_of(PAGE_BYTES as u64) { Ok(()) } else { Err(EntryError::Unaligned) }
        }
        Entry::X86Pvh { entry, start_info, gdt } => {
            in_memory("entry point", entry.into(), 1)?;
            in_memory("start info", start_info.into(), START_INFO_BYTES)?;
            in_memory("descriptor table", gdt.into(), 4 * DESCRIPTOR_BYTES)
        }
        Entry::Arm64 { .. } => Err(EntryError::Architecture),
    }
}

/// The registers for an entry state that [`check`] accepts; what it does not name stays as in `reset`.
///
/// # Errors
/// When the state is for another architecture.
pub fn registers(entry: &Entry, reset: &kvm_sregs) -> Result<(kvm_regs, kvm_sregs), EntryError> {
    use control::{CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};
    let mut regs = kvm_regs { rflags: RFLAGS, ..kvm_regs::default() };
    let mut sregs = *reset;
    match *entry {
        Entry::X86Long { entry, boot_params, page_table, gdt } => {
            (regs.rip, regs.rsi) = (entry, boot_params);
            // The page below the page tables is free: a small stack for guests that have none of their own yet.
            (regs.rsp, regs.rbp) = (PAGE_TABLE_START, PAGE_TABLE_START);
            set_segments(&mut sregs, gdt, 3, kvm_segment { l: 1, db: 0, ..code() });
            sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
            sregs.cr3 = page_table;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::X86Pvh { entry, start_info, gdt } => {
            (regs.rip, regs.rbx) = (entry.into(), start_info.into());
            set_segments(&mut sregs, gdt.into(), 4, code());
            sregs.tr = kvm_segment { selector: TASK, limit: 0x67, type_: 11, present: 1, ..kvm_segment::default() };
            sregs.cr0 = CR0_PE | CR0_ET;
            (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
        }
        Entry::Arm64 { .. } => return Err(EntryError::Architecture),
    }
    Ok((regs, sregs))
}

/// The registers that a dump shows, with their names.
#[must_use]
pub fn named(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<(String, u64)> {
    let named = [
        ("rip", regs.rip),
        ("rsp", regs.rsp),
        ("rflags", regs.rflags),
        ("cs", sregs.cs.selector.into()),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("efer", sregs.efer),
    ];
    named.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// A flat code segment, 32 bits (Intel SDM volume 3 §3.4.5: execute, read, accessed).
fn code() -> kvm_segment {
    kvm_segment { selector: CODE, type_: 11, ..flat() }
}

fn flat() -> kvm_segment {
    kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, db: 1, ..kvm_segment::default() }
}

fn set_segments(sregs: &mut kvm_sregs, gdt: u64, descriptors: u16, code: kvm_segment) {
    // Read, write, accessed.
    let data = kvm_segment { selector: DATA, type_: 3, ..flat() };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.gdt.base = gdt;
    sregs.gdt.limit = descriptors.saturating_mul(8).saturating_sub(1);
    // No interrupt descriptor table: an exception before the guest has one is a triple fault.
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap()
    }

    fn long(entry: u64, boot_params: u64, page_table: u64, gdt: u64) -> Entry {
        Entry::X86Long { entry, boot_params, page_table, gdt }
    }

    #[test]
    fn long_mode_entry_follows_the_boot_protocol() {
        let entry = long(0x10_0200, 0x7000, 0x9000, 0x500);
        check(&entry, &memory()).unwrap();
        let (regs, sregs) = registers(&entry, &kvm_sregs::default()).unwrap();
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x10_0200, 0x7000, 2));
        assert_eq!((sregs.cr3, sregs.efer, sregs.cr0 & control::CR0_PG != 0), (0x9000, 0x500, true));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.ss.selector), (8, 1, 0, 16));
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 23));
    }

    #[test]
    fn pvh_entry_is_flat_protected_mode() {
        let entry = Entry::X86Pvh { entry: 0x10_0000, start_info: 0x6000, gdt: 0x500 };
        check(&entry, &memory()).unwrap();
        let (regs, sregs) = registers(&entry, &kvm_sregs::default()).unwrap();
        assert_eq!((regs.rip, regs.rbx), (0x10_0000, 0x6000));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.tr.limit), (0, 1, 0xffff_ffff, 0x67));
    }

    #[test]
    fn address_outside_of_memory_is_refused() {
        let good = [0x10_0200, 0x7000, 0x9000, 0x500];
        let names = ["entry point", "zero page", "page table", "descriptor table"];
        for (position, name) in names.into_iter().enumerate() {
            for bad in [0x20_0000, u64::MAX, !0xfff] {
                let mut addresses = good;
                addresses[position] = bad;
                let [entry, boot_params, page_table, gdt] = addresses;
                let refused = check(&long(entry, boot_params, page_table, gdt), &memory());
                assert_eq!(refused, Err(EntryError::NotInMemory(name)));
            }
        }
        let pvh = Entry::X86Pvh { entry: 0x10_0000, start_info: 0x1f_fff0, gdt: 0x500 };
        assert_eq!(check(&pvh, &memory()), Err(EntryError::NotInMemory("start info")));
    }

    #[test]
    fn unaligned_page_table_is_refused() {
        assert_eq!(check(&long(0x10_0200, 0x7000, 0x9008, 0x500), &memory()), Err(EntryError::Unaligned));
    }

    #[test]
    fn arm64_entry_is_refused() {
        let entry = Entry::Arm64 { entry: 0, fdt: 0 };
        assert_eq!(check(&entry, &memory()), Err(EntryError::Architecture));
    }
}
