//! arm64 kernel images: what the header says ("Booting AArch64 Linux", call the kernel image).
//!
//! Distrusts every field: the header is copied once and checked in the copy, before anything is loaded.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::layout::{LOAD_END, RAM_START};
use crate::loader::fields::{u16_at, u32_at, u64_at};
use crate::loader::kernel::KernelError;

const FORMAT: &str = "Image";
/// Bytes in the header.
const HEADER_BYTES: u64 = 64;
/// Bytes in the smallest page.
const PAGE_BYTES: u64 = 4096;
/// `text_offset` of kernels that do not say (before Linux 3.17), as they give no `image_size` either.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Memory that is left free behind a kernel which does not say how much it needs.
const OLD_FREE_BYTES: u64 = 16 << 20;
/// `flags`: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;

/// An arm64 Image, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm64Image {
    /// Where it goes in guest memory, which is where it is entered as well.
    pub start: u64,
    /// The memory that it needs before it looks at the device tree, with its data that is not in the file.
    memory_bytes: Option<u64>,
    /// The bytes that must be in the file.
    file_bytes: u64,
}

impl Arm64Image {
    /// Checks a file that begins with `head` and has the magic of an arm64 Image.
    ///
    /// # Errors
    /// When it is a kernel that cannot run here, or is no kernel.
    pub fn parse(head: &[u8]) -> Result<Self, KernelError> {
        let bytes = u64::try_from(head.len()).unwrap_or(u64::MAX);
        let cut = || KernelError::Truncated { format: FORMAT, bytes, expected: HEADER_BYTES };
        let field = |offset| u64_at(head, offset).ok_or_else(cut);
        let (text_offset, image_size, flags) = (field(8)?, field(16)?, field(24)?);
        field(56)?;
        if flags & BIG_ENDIAN != 0 {
            return Err(KernelError::BigEndian);
        }
        let memory_bytes = (image_size != 0).then_some(image_size);
        let text_offset = if image_size == 0 { OLD_TEXT_OFFSET } else { text_offset };
        let start = RAM_START.checked_add(text_offset).filter(|start| start.is_multiple_of(4));
        let start = start.ok_or_else(|| corrupt("its text offset is no address of an instruction"))?;
        if start.checked_add(image_size).is_none_or(|end| end > LOAD_END) {
            return Err(corrupt("it asks for more memory than there is below 4 GiB"));
        }
        // A kernel with an EFI stub is an executable of whole pages, the first of them all headers.
        let least = if head.starts_with(b"MZ") { PAGE_BYTES } else { HEADER_BYTES };
        let file_bytes = pe_bytes(head).unwrap_or(0).max(least);
        Ok(Self { start, memory_bytes, file_bytes })
    }

    /// Checks that `bytes`, the size of the file or of what it unpacks to, is neither too small nor too large.
    ///
    /// # Errors
    /// When it is.
    pub fn check_bytes(&self, bytes: u64) -> Result<(), KernelError> {
        if bytes < self.file_bytes {
            return Err(KernelError::Truncated { format: FORMAT, bytes, expected: self.file_bytes });
        }
        if self.memory_bytes.is_some_and(|most| bytes > most) {
            return Err(corrupt("it is larger than the memory that it asks for"));
        }
        Ok(())
    }

    /// The end of the memory that a kernel of `bytes` bytes needs.
    #[must_use]
    pub fn end(&self, bytes: u64) -> u64 {
        self.start.saturating_add(self.memory_bytes.unwrap_or(bytes.saturating_add(OLD_FREE_BYTES)))
    }
}

/// The size that an Image has at least, by its sections as a PE executable (PE format, section table). One that lies
/// gains nothing.
fn pe_bytes(head: &[u8]) -> Option<u64> {
    const SECTION_BYTES: usize = 40;
    let header = head.get(usize::try_from(u32_at(head, 0x3C)?).ok()?..)?;
    if !header.starts_with(b"PE\0\0") {
        return None;
    }
    let (count, optional_bytes) = (u16_at(header, 6)?, u16_at(header, 20)?);
    let sections = header.get(usize::from(optional_bytes).checked_add(24)?..)?;
    let section_end = |section: &[u8]| {
        let (bytes, start) = (u32_at(section, 16)?, u32_at(section, 20)?);
        u64::from(start).checked_add(bytes.into())
    };
    sections.chunks_exact(SECTION_BYTES).take(count.into()).filter_map(section_end).max()
}

fn corrupt(what: &'static str) -> KernelError {
    KernelError::Corrupt { format: FORMAT, what }
}
