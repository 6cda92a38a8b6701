//! Programs of a few instructions, in ELF, that end in a way of their own.

use crate::architecture::Architecture;

/// Where the program is loaded, and where in the file its code begins: behind the two headers.
const LOADED_AT: u64 = 0x40_0000;
const CODE_AT: u64 = 64 + 56;

/// What a program does, for both architectures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Code {
    /// Machine code of x86_64.
    pub(crate) x86: &'static [u8],
    /// Instructions of A64.
    pub(crate) arm: &'static [u32],
}

/// `ud2`, `udf #0x17`.
pub(crate) const UNDEFINED: Code = Code { x86: &[0x0f, 0x0b], arm: &[0x17] };
/// `vpaddd ymm0, ymm0, ymm0` of AVX2, `ldadd x0, x1, [sp]` of LSE.
pub(crate) const NEW_CPU: Code = Code { x86: &[0xc5, 0xfd, 0xfe, 0xc0], arm: &[0xf820_03e1] };
/// `mulx rax, rax, rax` of BMI2, `ptrue p0.b` of SVE.
pub(crate) const NEWER_CPU: Code = Code { x86: &[0xc4, 0xe2, 0xfb, 0xf6, 0xc0], arm: &[0x2518_e3e0] };
/// A load from address 16.
pub(crate) const SEGFAULT: Code =
    Code { x86: &[0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0], arm: &[0xd280_0200, 0xf940_0000] };
/// A jump to address 0.
pub(crate) const JUMP_TO_NULL: Code = Code { x86: &[0x31, 0xc0, 0xff, 0xe0], arm: &[0xd280_0000, 0xd61f_0000] };
/// A division by zero, which traps on x86 only.
pub(crate) const DIVIDE: Code = Code { x86: &[0x31, 0xc9, 0x31, 0xd2, 0xf7, 0xf1], arm: &[0] };
/// `int3`, `brk #0`.
pub(crate) const TRAP: Code = Code { x86: &[0xcc], arm: &[0xd420_0000] };
/// The system call exit(0).
pub(crate) const EXIT_0: Code =
    Code { x86: &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05], arm: &[0xd280_0000, 0xd280_0ba8, 0xd400_0001] };
/// The system call pause() again and again.
pub(crate) const PAUSE: Code = Code {
    x86: &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],
    // wfi is not for programs: ppoll(0, 0, 0, 0).
    arm: &[0xd280_0000, 0xd280_0001, 0xd280_0002, 0xd280_0003, 0xd280_0928, 0xd400_0001, 0x17ff_fffa],
};

/// A program of this code alone.
pub(crate) fn elf(architecture: Architecture, code: Code) -> Vec<u8> {
    elf_of_size(architecture, code, None)
}

/// As [`elf`]; `claimed` is how long its segment is said to be, beyond the end of the file, and where it begins then.
pub(crate) fn elf_of_size(architecture: Architecture, code: Code, claimed: Option<u64>) -> Vec<u8> {
    let (machine, code): (u16, Vec<u8>) = match architecture {
        Architecture::X86_64 => (62, code.x86.to_vec()),
        Architecture::Aarch64 => (183, code.arm.iter().flat_map(|word| word.to_le_bytes()).collect()),
    };
    let length = claimed.unwrap_or_else(|| CODE_AT.saturating_add(u64::try_from(code.len()).unwrap_or(0)));
    // Code that a segment claims lies in the last of its pages, which the file does not have.
    let entry = claimed.map_or(CODE_AT, |claimed| claimed.saturating_sub(64));
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(&2u16.to_le_bytes()); // ET_EXEC
    put(&machine.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&LOADED_AT.saturating_add(entry).to_le_bytes());
    put(&64u64.to_le_bytes()); // program headers: where
    put(&0u64.to_le_bytes()); // section headers: none
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        put(&half.to_le_bytes());
    }
    put(&1u32.to_le_bytes()); // PT_LOAD
    put(&5u32.to_le_bytes()); // readable and executable
    for word in [0, LOADED_AT, LOADED_AT, length, length, 0x1_0000] {
        put(&word.to_le_bytes());
    }
    put(&code);
    file
}
