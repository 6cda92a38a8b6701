//! ELF files: the header and the segments, as the kernel reads them before it runs a program (fs/binfmt_elf.c).

pub(crate) mod code;
pub(crate) mod dynamic;
mod flow;

use super::bytes::{Bytes, exactly, u8_at, u16_at, u32_at, u64_at, up_to};
use super::trouble::Trouble;

/// Machines (elf(5), e_machine).
pub(crate) const X86_64: u16 = 62;
pub(crate) const AARCH64: u16 = 183;
pub(crate) const I386: u16 = 3;
pub(crate) const ARM: u16 = 40;

/// Types of segments.
pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_DYNAMIC: u32 = 2;
pub(crate) const PT_INTERP: u32 = 3;
pub(crate) const PT_NOTE: u32 = 4;
pub(crate) const PT_GNU_PROPERTY: u32 = 0x6474_e553;
/// The flag of a segment that holds code.
const PF_X: u32 = 1;

/// Types of files.
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;

/// The most bytes of program headers that the kernel takes.
const HEADERS_BYTES: usize = 65536;
/// The most sections that are looked at.
const SECTIONS: usize = 4096;
/// The flag of a section that holds code.
const SHF_EXECINSTR: u64 = 4;
const SHT_NOBITS: u32 = 8;

/// A segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) alignment: u64,
}

impl Segment {
    /// Whether it is loaded and may be executed.
    pub(crate) fn is_code(&self) -> bool {
        self.kind == PT_LOAD && self.flags & PF_X != 0
    }

    /// Whether this address is in its part of the file.
    pub(crate) fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|inside| inside < self.file_bytes)
    }
}

/// An ELF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elf {
    pub(crate) is_64: bool,
    pub(crate) machine: u16,
    pub(crate) kind: u16,
    pub(crate) entry: u64,
    pub(crate) segments: Vec<Segment>,
    sections: (u64, usize, usize),
}

/// Why a file is no ELF that can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// No magic.
    #[error("it has no ELF magic")]
    NotElf,
    /// Shorter than its header.
    #[error("it ends within its ELF header")]
    CutHeader,
    /// The headers of the segments are not in the file.
    #[error("its program headers are at {offset}, behind its end")]
    CutProgramHeaders { offset: u64 },
    /// Big-endian.
    #[error("it is big-endian")]
    BigEndian,
    /// A header that the kernel refuses.
    #[error("{0}")]
    Header(String),
    /// It cannot be read.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// What a machine is called.
pub(crate) fn machine_name(machine: u16) -> String {
    let name = match machine {
        I386 => "i386 (32-bit x86)",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "PowerPC64",
        22 => "s390",
        ARM => "32-bit Arm",
        X86_64 => "x86-64",
        AARCH64 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("machine {other}"),
    };
    name.into()
}

impl Elf {
    /// Reads the headers.
    pub(crate) fn read(bytes: &dyn Bytes) -> Result<Self, Fault> {
        let head = up_to(bytes, 0, 64)?;
        if !head.starts_with(b"\x7fELF") {
            return Err(Fault::NotElf);
        }
        let is_64 = match u8_at(&head, 4) {
            1 => false,
            2 => true,
            class => return Err(Fault::Header(format!("its ELF class is {class}, must be 1 or 2"))),
        };
        if u8_at(&head, 5) == 2 {
            return Err(Fault::BigEndian);
        }
        if head.len() < if is_64 { 64 } else { 52 } {
            return Err(Fault::CutHeader);
        }
        let (kind, machine) = (u16_at(&head, 16), u16_at(&head, 18));
        let (entry, headers, sections, rest) = if is_64 {
            (u64_at(&head, 24), u64_at(&head, 32), u64_at(&head, 40), 54)
        } else {
            (u32_at(&head, 24).into(), u32_at(&head, 28).into(), u32_at(&head, 32).into(), 42)
        };
        let at = |index: usize| usize::from(u16_at(&head, index.saturating_add(rest)));
        let (size, count, section_size, section_count) = (at(0), at(2), at(4), at(6));
        if !matches!(kind, ET_EXEC | ET_DYN) {
            return Err(Fault::Header(format!("its ELF type is {kind}, must be 2 (a program) or 3 (shared)")));
        }
        let right = if is_64 { 56 } else { 32 };
        if size != right {
            return Err(Fault::Header(format!("a program header has {size} bytes, must be {right}")));
        }
        let length = size.saturating_mul(count);
        if !(1..=HEADERS_BYTES).contains(&length) {
            return Err(Fault::Header(format!(
                "it has {count} program headers, must be 1 to {}",
                HEADERS_BYTES / right
            )));
        }
        let table = exactly(bytes, headers, length)?.ok_or(Fault::CutProgramHeaders { offset: headers })?;
        let segments = table.chunks_exact(right).map(|header| segment(header, is_64)).collect();
        let sections = (sections, section_size, section_count.min(SECTIONS));
        Ok(Self { is_64, machine, kind, entry, segments, sections })
    }

    /// Whether it is linked to run at one address.
    pub(crate) fn is_fixed(&self) -> bool {
        self.kind == ET_EXEC
    }

    /// The first segment of a type.
    pub(crate) fn segment(&self, kind: u32) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.kind == kind)
    }

    /// The ELF interpreter that it asks for, or what is wrong with its name.
    pub(crate) fn interpreter(&self, bytes: &dyn Bytes) -> Result<Option<Vec<u8>>, Fault> {
        let Some(segment) = self.segment(PT_INTERP) else { return Ok(None) };
        let length = usize::try_from(segment.file_bytes).unwrap_or(usize::MAX);
        if !(2..=4096).contains(&length) {
            return Err(Fault::Header(format!(
                "the name of its ELF interpreter has {length} bytes, must be 2 to 4096"
            )));
        }
        let name = exactly(bytes, segment.offset, length)?;
        let name = name.ok_or_else(|| Fault::Header("the name of its ELF interpreter is behind its end".into()))?;
        if name.last() != Some(&0) {
            return Err(Fault::Header("the name of its ELF interpreter has no end".into()));
        }
        Ok(Some(super::bytes::before_nul(&name).to_vec()))
    }

    /// Where in the file an address is.
    pub(crate) fn offset_of(&self, address: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| segment.kind == PT_LOAD && segment.holds(address))?;
        segment.offset.checked_add(address.checked_sub(segment.address)?)
    }

    /// The ranges of the file that hold instructions: of its sections, if it has any, else of its segments.
    pub(crate) fn code_ranges(&self, bytes: &dyn Bytes) -> Result<Vec<(u64, u64)>, Trouble> {
        let (offset, size, count) = self.sections;
        let right = if self.is_64 { 64 } else { 40 };
        let mut ranges = Vec::new();
        if size == right && count > 0 {
            for header in up_to(bytes, offset, right.saturating_mul(count))?.chunks_exact(right) {
                let (kind, flags, start, length) = if self.is_64 {
                    (u32_at(header, 4), u64_at(header, 8), u64_at(header, 24), u64_at(header, 32))
                } else {
                    let word = |offset| u64::from(u32_at(header, offset));
                    (u32_at(header, 4), word(8), word(16), word(20))
                };
                if flags & SHF_EXECINSTR != 0 && kind != SHT_NOBITS && length > 0 {
                    ranges.push((start, start.saturating_add(length)));
                }
            }
        }
        if ranges.is_empty() {
            let code = self.segments.iter().filter(|segment| segment.is_code());
            ranges = code.map(|code| (code.offset, code.offset.saturating_add(code.file_bytes))).collect();
        }
        Ok(ranges)
    }
}

fn segment(header: &[u8], is_64: bool) -> Segment {
    let word = |offset| u64::from(u32_at(header, offset));
    if is_64 {
        Segment {
            kind: u32_at(header, 0),
            flags: u32_at(header, 4),
            offset: u64_at(header, 8),
            address: u64_at(header, 16),
            file_bytes: u64_at(header, 32),
            memory_bytes: u64_at(header, 40),
            alignment: u64_at(header, 48),
        }
    } else {
        Segment {
            kind: u32_at(header, 0),
            offset: word(4),
            address: word(8),
            file_bytes: word(16),
            memory_bytes: word(20),
            flags: u32_at(header, 24),
            alignment: word(28),
        }
    }
}
