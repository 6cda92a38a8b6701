//! bzImage kernels: what the setup header says ("Linux x86 boot protocol", the real-mode kernel header).
//!
//! Distrusts every field: the header is copied once and checked in the copy, before anything is loaded.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::layout::{HIGH_RAM_START, HOLE_START};
use crate::loader::fields::{object, u8_at};
use crate::loader::kernel::KernelError;
use crate::loader::magic::{Kind, identify};
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};

const FORMAT: &str = "bzImage";
/// Bytes in a sector of the real-mode kernel.
const SECTOR_BYTES: u64 = 512;
/// The offset of the 64-bit entry point in the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// The first version with `xloadflags`.
const VERSION_2_12: u16 = 0x020C;
/// Where the setup header starts in the file.
const SETUP_HEADER: usize = 0x1F1;

/// A bzImage, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct BzImage {
    /// The setup header as it is in the file.
    pub setup_header: setup_header,
    /// The offset of the protected-mode kernel in the file.
    pub offset: u64,
    /// The bytes of the protected-mode kernel.
    pub bytes: u64,
    /// The offset of the compressed kernel in the file, unless the header does not say.
    pub payload_offset: Option<u64>,
    /// Where it goes in guest memory.
    pub start: u64,
    /// The end of the memory that it needs before it looks at the memory map.
    pub end: u64,
    /// The end of the memory in which an initrd can be.
    pub initrd_end: u64,
    /// The longest command line in bytes.
    pub cmdline_bytes: usize,
}

impl BzImage {
    /// Checks a file of `file_bytes` bytes that begins with `head` and has the magic of a setup header.
    ///
    /// # Errors
    /// When the file cannot be booted by the 64-bit protocol.
    pub fn parse(head: &[u8], file_bytes: u64) -> Result<Self, KernelError> {
        let truncated = |expected| KernelError::Truncated { format: FORMAT, bytes: file_bytes, expected };
        let header = read_setup_header(head).ok_or_else(|| truncated(0x26C))?;
        if header.version < VERSION_2_12 {
            let [minor, major] = header.version.to_le_bytes();
            return Err(KernelError::OldProtocol { major, minor });
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(corrupt("it wants to be loaded below 1 MiB"));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelError::Not64Bit);
        }

        // 0 stands for 4, for the sake of kernels from before protocol 2.00.
        let setup_sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
        let offset = u64::from(setup_sectors).saturating_add(1).saturating_mul(SECTOR_BYTES);
        let bytes = u64::from(header.syssize).saturating_mul(16);
        let file_end = offset.saturating_add(bytes);
        if file_end > file_bytes {
            return Err(truncated(file_end));
        }
        if bytes <= ENTRY_64 {
            return Err(corrupt("it has no protected-mode kernel"));
        }
        let (payload_start, payload_bytes) = (u64::from(header.payload_offset), u64::from(header.payload_length));
        if payload_start.saturating_add(payload_bytes) > bytes {
            return Err(corrupt("its compressed kernel ends after its end"));
        }

        let start = header.pref_address;
        let end = start.checked_add(u64::from(header.init_size).max(bytes));
        let end = end.filter(|end| start >= HIGH_RAM_START && *end <= HOLE_START);
        let end = end.ok_or_else(|| corrupt("its preferred address is outside of the memory for kernels"))?;
        Ok(Self {
            setup_header: header,
            offset,
            bytes,
            payload_offset: (payload_bytes > 0).then(|| offset.saturating_add(payload_start)),
            start,
            end,
            initrd_end: u64::from(header.initrd_addr_max).saturating_add(1),
            cmdline_bytes: usize::try_from(header.cmdline_size).unwrap_or(usize::MAX),
        })
    }

    /// Checks the first bytes of the compressed kernel.
    ///
    /// # Errors
    /// When they are of no format that Linux can be compressed with, as in an image with a hole in it.
    pub fn check_payload(payload: &[u8]) -> Result<(), KernelError> {
        match identify(payload) {
            Kind::Compressed(_) | Kind::Elf => Ok(()),
            _ => Err(corrupt("its compressed kernel begins with no known format")),
        }
    }

    /// The 64-bit entry point.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.start.saturating_add(ENTRY_64)
    }
}

/// The setup header ends where the jump at 0x200 leads to; the fields beyond are 0.
fn read_setup_header(head: &[u8]) -> Option<setup_header> {
    let end = 0x202_usize.saturating_add(u8_at(head, 0x201)?.into()).saturating_sub(SETUP_HEADER);
    let mut bytes = head.get(SETUP_HEADER..)?.first_chunk::<{ size_of::<setup_header>() }>()?.to_owned();
    bytes.iter_mut().skip(end).for_each(|byte| *byte = 0);
    object(&bytes)
}

fn corrupt(what: &'static str) -> KernelError {
    KernelError::Corrupt { format: FORMAT, what }
}
