//! The first code that a program runs: pages of zeros in it, and instructions that not every CPU has.

use super::Elf;
use crate::inspect::bytes::{Bytes, u32_at, up_to};
use crate::inspect::limits::{CODE_BYTES, SCANNED_BYTES};
use crate::inspect::trouble::Trouble;
use iced_x86::{Decoder, DecoderOptions};

/// A page.
const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;
/// Pages that are read at once.
const PAGES_AT_ONCE: usize = 16;

/// A run of pages of zeros in code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zeros {
    /// Where in the file the first begins.
    pub(crate) offset: u64,
    /// How many there are.
    pub(crate) pages: u64,
}

/// The runs of pages of zeros in code, at most eight; and whether all code was looked at.
pub(crate) fn zeros(elf: &Elf, bytes: &dyn Bytes) -> Result<(Vec<Zeros>, bool), Trouble> {
    let mut runs: Vec<Zeros> = Vec::new();
    let mut left = SCANNED_BYTES;
    let mut buffer = vec![0; PAGE_BYTES.saturating_mul(PAGES_AT_ONCE)];
    for (start, end) in elf.code_ranges(bytes)? {
        // Only whole pages: what surrounds a function is seldom as large.
        let mut offset = start.saturating_add(PAGE - 1) & !(PAGE - 1);
        while offset.saturating_add(PAGE) <= end {
            if left == 0 {
                return Ok((runs, false));
            }
            let count = bytes.read_at(offset, &mut buffer)?;
            if count < PAGE_BYTES {
                break;
            }
            for page in buffer.get(..count).unwrap_or_default().chunks_exact(PAGE_BYTES) {
                if offset.saturating_add(PAGE) > end {
                    break;
                }
                if page.iter().all(|byte| *byte == 0) {
                    add(&mut runs, offset);
                }
                offset = offset.saturating_add(PAGE);
                left = left.saturating_sub(PAGE);
            }
        }
    }
    Ok((runs, true))
}

fn add(runs: &mut Vec<Zeros>, offset: u64) {
    let follows = |run: &&mut Zeros| run.offset.saturating_add(run.pages.saturating_mul(PAGE)) == offset;
    if let Some(run) = runs.last_mut().filter(follows) {
        run.pages = run.pages.saturating_add(1);
    } else if runs.len() < 8 {
        runs.push(Zeros { offset, pages: 1 });
    }
}

/// The first code from the entry on.
fn entry_code(elf: &Elf, bytes: &dyn Bytes) -> Result<Vec<u8>, Trouble> {
    let Some(segment) = elf.segments.iter().find(|segment| segment.is_code() && segment.holds(elf.entry)) else {
        return Ok(Vec::new());
    };
    let inside = elf.entry.saturating_sub(segment.address);
    let rest = usize::try_from(segment.file_bytes.saturating_sub(inside)).unwrap_or(usize::MAX);
    up_to(bytes, segment.offset.saturating_add(inside), rest.min(64))
}

/// What runs first: whether it is an instruction at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// An instruction, or there is no telling.
    Fine,
    /// None, or one that is made to fail.
    Illegal(String),
}

/// Looks at the instruction at the entry.
pub(crate) fn first(elf: &Elf, bytes: &dyn Bytes) -> Result<First, Trouble> {
    let code = entry_code(elf, bytes)?;
    let shown = || code.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let zeros = code.len() >= 16 && code.iter().take(16).all(|byte| *byte == 0);
    let illegal = match elf.machine {
        super::X86_64 if !code.is_empty() => {
            let instruction = Decoder::with_ip(64, &code, elf.entry, DecoderOptions::NONE).decode();
            zeros || instruction.is_invalid() || instruction.mnemonic() == iced_x86::Mnemonic::Ud2
        }
        // The word 0 to 0xffff is UDF.
        super::AARCH64 if code.len() >= 4 => zeros || u32_at(&code, 0) <= 0xffff,
        _ => zeros,
    };
    Ok(if illegal { First::Illegal(shown()) } else { First::Fine })
}

/// The code that may be reached from the entry.
pub(super) struct Code<'a> {
    pub(super) bytes: &'a [u8],
    /// The address of the first byte.
    pub(super) start: u64,
}

impl Code<'_> {
    /// What stands from an address on.
    pub(super) fn at(&self, address: u64) -> &[u8] {
        let inside = address.checked_sub(self.start).and_then(|inside| usize::try_from(inside).ok());
        inside.and_then(|inside| self.bytes.get(inside..)).unwrap_or_default()
    }
}

/// Instructions that are reached from the entry without an indirect jump and are in no baseline, at most four, with the
/// extension that each needs. What a program chooses by the CPU's features is mostly reached by a pointer.
pub(crate) fn beyond_baseline(elf: &Elf, bytes: &dyn Bytes) -> Result<Vec<String>, Trouble> {
    let Some(segment) = elf.segments.iter().find(|segment| segment.is_code() && segment.holds(elf.entry)) else {
        return Ok(Vec::new());
    };
    let length = usize::try_from(segment.file_bytes).unwrap_or(usize::MAX).min(CODE_BYTES);
    let loaded = up_to(bytes, segment.offset, length)?;
    let code = Code { bytes: &loaded, start: segment.address };
    Ok(match elf.machine {
        super::X86_64 => {
            let main = super::flow::main_of_x86(&code, elf.entry);
            super::flow::walk(&code, [elf.entry].into_iter().chain(main).collect(), super::flow::x86)
        }
        super::AARCH64 => {
            let main = super::flow::main_of_arm64(&code, elf.entry);
            super::flow::walk(&code, [elf.entry].into_iter().chain(main).collect(), super::flow::arm64)
        }
        _ => Vec::new(),
    })
}
