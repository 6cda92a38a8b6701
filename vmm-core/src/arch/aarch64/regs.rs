//! The registers of a vCPU as KVM names them: the entry state of the first one, what a dump shows, and what tells a vCPU
//! that has stopped for good.
//!
//! The loader is distrusted: every address that it names must lie in RAM. Pure: reading and writing is the caller's.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use wire::message::Entry;

/// A 64-bit register of arm64 (linux/kvm.h `KVM_REG_ARM64 | KVM_REG_SIZE_U64`).
const REG_ARM64_U64: u64 = 0x6030_0000_0000_0000;
/// A core register; the rest of the name is its offset in `struct kvm_regs`, in units of 4 bytes (`KVM_REG_ARM_CORE`).
const REG_CORE: u64 = 0x0010_0000;
/// A system register; the rest of the name is its encoding (`KVM_REG_ARM64_SYSREG`).
const REG_SYSTEM: u64 = 0x0013_0000;

/// The general-purpose registers.
pub const GENERAL: u8 = 31;
/// `struct user_pt_regs` and `struct kvm_regs` of asm/kvm.h, by 8-byte fields: sp of EL0.
pub const SP_EL0: u64 = core(31);
/// The program counter.
pub const PC: u64 = core(32);
/// The processor state.
pub const PSTATE: u64 = core(33);
/// The stack pointer of EL1.
pub const SP_EL1: u64 = core(34);
/// Where an exception to EL1 came from.
pub const ELR_EL1: u64 = core(35);
/// The processor state where an exception to EL1 came from.
pub const SPSR_EL1: u64 = core(36);
/// Why an exception was taken to EL1 (Arm ARM D24, ESR_EL1: 3, 0, 5, 2, 0).
pub const ESR_EL1: u64 = system(3, 0, 5, 2, 0);
/// Which address it was about (FAR_EL1: 3, 0, 6, 0, 0).
pub const FAR_EL1: u64 = system(3, 0, 6, 0, 0);

/// PSTATE: EL1 with its own stack pointer; debug exceptions, SErrors, IRQs and FIQs masked ("Booting AArch64 Linux").
const ENTRY_PSTATE: u64 = 0x3c5;
/// PSTATE: IRQs are masked.
const IRQS_MASKED: u64 = 1 << 7;
/// How far the program counter moves in the loop in which Linux parks a processor: `wfe`, `wfi`, `b`.
const PARKED_BYTES: u64 = 12;
/// The FDT's alignment and the smallest one, its header alone ("Booting AArch64 Linux"; Devicetree 0.4 §5.2).
const FDT_ALIGNMENT: u64 = 8;
/// Bytes of an FDT's header.
const FDT_HEADER_BYTES: usize = 40;
/// Bytes of an instruction.
const INSTRUCTION_BYTES: usize = 4;

const fn core(field: u64) -> u64 {
    REG_ARM64_U64 | REG_CORE | (field * 2)
}

const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    REG_ARM64_U64 | REG_SYSTEM | (op0 << 14) | (op1 << 11) | (crn << 7) | (crm << 3) | op2
}

/// General-purpose register `n`.
#[must_use]
pub const fn general(n: u8) -> u64 {
    core(n as u64)
}

/// What is wrong with an entry state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// An address is not in RAM.
    #[error("the loader's {0} is not in guest memory")]
    NotInMemory(&'static str),
    /// An address is not aligned.
    #[error("the loader's {0} is not aligned")]
    Unaligned(&'static str),
    /// A state for x86_64.
    #[error("the loader's entry state is for another architecture")]
    Architecture,
}

/// Checks an entry state against guest memory.
///
/// # Errors
/// When an address is not in RAM or not aligned, or the state is for another architecture.
pub fn check(entry: &Entry, memory: &GuestMemoryMmap) -> Result<(), EntryError> {
    let Entry::Arm64 { entry, fdt } = *entry else { return Err(EntryError::Architecture) };
    let parts = [
        ("entry point", entry, INSTRUCTION_BYTES as u64, INSTRUCTION_BYTES),
        ("device tree", fdt, FDT_ALIGNMENT, FDT_HEADER_BYTES),
    ];
    for (name, address, alignment, bytes) in parts {
        if !address.is_multiple_of(alignment) {
            return Err(EntryError::Unaligned(name));
        }
        if address.checked_add(bytes as u64).is_none() || !memory.check_range(GuestAddress(address), bytes) {
            return Err(EntryError::NotInMemory(name));
        }
    }
    Ok(())
}

/// The registers for an entry state that [`check`] accepts, by KVM's names; the others stay as after reset.
///
/// # Errors
/// When the state is for another architecture.
pub fn registers(entry: &Entry) -> Result<[(u64, u64); 3], EntryError> {
    let Entry::Arm64 { entry, fdt } = *entry else { return Err(EntryError::Architecture) };
    Ok([(PSTATE, ENTRY_PSTATE), (general(0), fdt), (PC, entry)])
}

/// The registers that a dump shows, with their names.
pub fn dumped() -> impl Iterator<Item = (String, u64)> {
    let first = [("pc", PC), ("lr", general(30)), ("sp", SP_EL1), ("pstate", PSTATE)];
    let last = [("sp_el0", SP_EL0), ("elr", ELR_EL1), ("spsr", SPSR_EL1), ("esr", ESR_EL1), ("far", FAR_EL1)];
    let named = |list: Vec<(&'static str, u64)>| list.into_iter().map(|(name, id)| (name.to_owned(), id));
    named(first.to_vec()).chain((0..GENERAL - 1).map(|n| (format!("x{n}"), general(n)))).chain(named(last.to_vec()))
}

/// What must not change in a vCPU that goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The program counter.
    pub pc: u64,
    /// The processor state.
    pub pstate: u64,
    /// All general-purpose registers, and the stack pointer.
    pub others: Vec<u64>,
}

/// How a vCPU looks that was looked at twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stillness {
    /// It did something, or an interrupt can reach it.
    Moves,
    /// With IRQs masked it has changed nothing and stands in a short loop, as a parked vCPU does, and one that idles.
    Waits,
    /// With IRQs masked it has changed nothing, not even the instruction: `b .` or `wfi`.
    Stands,
}

impl Look {
    /// Whether IRQs are masked; otherwise it need not be compared.
    #[must_use]
    pub fn is_masked(pstate: u64) -> bool {
        pstate & IRQS_MASKED != 0
    }

    /// What became of a vCPU since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Stillness {
        if !Self::is_masked(self.pstate) || self.pstate != before.pstate || self.others != before.others {
            Stillness::Moves
        } else if self.pc == before.pc {
            Stillness::Stands
        } else if self.pc.abs_diff(before.pc) < PARKED_BYTES {
            Stillness::Waits
        } else {
            Stillness::Moves
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 0x4000_0000;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x20_0000)]).unwrap()
    }

    #[test]
    fn names_are_those_of_kvm() {
        // Documentation/virt/kvm/api.rst, the table of arm64 core registers.
        assert_eq!(general(0), 0x6030_0000_0010_0000);
        assert_eq!(general(30), 0x6030_0000_0010_003c);
        assert_eq!(PC, 0x6030_0000_0010_0040);
        assert_eq!(PSTATE, 0x6030_0000_0010_0042);
        assert_eq!(SP_EL1, 0x6030_0000_0010_0044);
        assert_eq!(ESR_EL1, 0x6030_0000_0013_c290);
    }

    #[test]
    fn entry_follows_the_boot_protocol() {
        let entry = Entry::Arm64 { entry: RAM, fdt: RAM + 0x10_0000 };
        check(&entry, &memory()).unwrap();
        let registers = registers(&entry).unwrap();
        assert_eq!(registers, [(PSTATE, 0x3c5), (general(0), RAM + 0x10_0000), (PC, RAM)]);
    }

    #[test]
    fn address_outside_of_memory_is_refused() {
        for bad in [0, RAM - 8, RAM + 0x20_0000, u64::MAX - 7, u64::MAX - 39] {
            let entry = Entry::Arm64 { entry: bad & !3, fdt: RAM };
            assert_eq!(check(&entry, &memory()), Err(EntryError::NotInMemory("entry point")));
            let entry = Entry::Arm64 { entry: RAM, fdt: bad & !7 };
            assert_eq!(check(&entry, &memory()), Err(EntryError::NotInMemory("device tree")));
        }
    }

    #[test]
    fn unaligned_address_is_refused() {
        let entry = Entry::Arm64 { entry: RAM + 2, fdt: RAM };
        assert_eq!(check(&entry, &memory()), Err(EntryError::Unaligned("entry point")));
        let entry = Entry::Arm64 { entry: RAM, fdt: RAM + 4 };
        assert_eq!(check(&entry, &memory()), Err(EntryError::Unaligned("device tree")));
    }

    #[test]
    fn x86_entry_is_refused() {
        let entry = Entry::X86Pvh { entry: 0, start_info: 0, gdt: 0 };
        assert_eq!(check(&entry, &memory()), Err(EntryError::Architecture));
        assert_eq!(registers(&entry), Err(EntryError::Architecture));
    }

    #[test]
    fn dump_names_every_register_once() {
        let mut ids: Vec<_> = dumped().map(|(_, id)| id).collect();
        assert_eq!(ids.len(), 39);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 39);
    }

    #[test]
    fn vcpu_that_changes_a_register_or_can_be_interrupted_moves() {
        let before = Look { pc: 0x1000, pstate: 0x3c5, others: vec![1, 2] };
        assert_eq!(before.since(&before), Stillness::Stands);
        assert_eq!(Look { pc: 0x1008, ..before.clone() }.since(&before), Stillness::Waits);
        assert_eq!(Look { pc: 0x100c, ..before.clone() }.since(&before), Stillness::Moves);
        assert_eq!(Look { others: vec![1, 3], ..before.clone() }.since(&before), Stillness::Moves);
        let open = Look { pstate: 0x345, ..before };
        assert_eq!(open.since(&open), Stillness::Moves);
    }
}
