//! The initial RAM disk: its content is for the guest's kernel to judge, its size and its place are ours.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::kernel::memory_mib_for;
use super::magic::{Kind, identify};
use super::{Placed, Room};

/// Bytes in a page; the initrd starts on a page boundary.
const PAGE_BYTES: u64 = 4096;

/// Why an initrd is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitrdError {
    /// No byte at all.
    #[error("the file is empty; give a cpio archive, compressed or not, or leave the initrd out")]
    Empty,
    /// A file that is something else.
    #[error("the file is {0}, not an initrd; {1}")]
    NotAnInitrd(&'static str, &'static str),
    /// A file that is nothing known.
    #[error("the file is neither a cpio archive nor a compressed one; make it with cpio -H newc, or copy it again")]
    Unknown,
    /// Guest memory is too small for kernel and initrd.
    #[error(
        "kernel and initrd need at least {needed_mib} MiB of guest memory and the machine has {have_mib} MiB (the \
         kernel needs more to unpack it)"
    )]
    NeedsMemory {
        /// What would do.
        needed_mib: u64,
        /// What there is.
        have_mib: u64,
    },
    /// No machine could have the memory that this kernel can reach.
    #[error("the initrd has {bytes} bytes; beside this kernel at most {most} fit; put the files on a disk instead")]
    TooLarge {
        /// The size of the initrd.
        bytes: u64,
        /// What fits at most.
        most: u64,
    },
}

/// Checks that a file which begins with `head` can be an initrd at all.
///
/// # Errors
/// When it is empty or has no magic number of an initrd.
pub fn check(head: &[u8]) -> Result<(), InitrdError> {
    if head.is_empty() {
        return Err(InitrdError::Empty);
    }
    match identify(head) {
        Kind::Cpio | Kind::Compressed(_) => Ok(()),
        Kind::Disk(what) => Err(InitrdError::NotAnInitrd(what, "give it as a disk")),
        Kind::BzImage | Kind::Elf | Kind::Arm64Image | Kind::RiscvImage | Kind::Zboot | Kind::Pe => {
            Err(InitrdError::NotAnInitrd("a kernel or a program", "were kernel and initrd mixed up?"))
        }
        Kind::Archive(what) => Err(InitrdError::NotAnInitrd(what, "give a cpio archive (cpio -H newc)")),
        Kind::Text => Err(InitrdError::NotAnInitrd("a script or another text", "give a cpio archive (cpio -H newc)")),
        Kind::Unknown => Err(InitrdError::Unknown),
    }
}

/// The highest place for an initrd of `bytes` bytes in `room`.
///
/// # Errors
/// When there is none; the error says how much memory there would have to be.
pub fn place(bytes: u64, room: Room) -> Result<Placed, InitrdError> {
    let end = room.ram_end.min(room.reach_end);
    let start = end.checked_sub(bytes).map(|start| start & !(PAGE_BYTES - 1)).filter(|start| *start >= room.kernel_end);
    if let Some(start) = start
        && let (Ok(start), Ok(bytes)) = (u32::try_from(start), u32::try_from(bytes))
    {
        return Ok(Placed { start, bytes });
    }
    let kernel_end = room.kernel_end.next_multiple_of(PAGE_BYTES);
    match kernel_end.checked_add(bytes).filter(|needed| *needed <= room.reach_end.min(room.ram_end_most)) {
        Some(needed) => Err(InitrdError::NeedsMemory {
            needed_mib: memory_mib_for(needed.saturating_sub(room.ram_start)),
            have_mib: room.have_mib,
        }),
        None => {
            let most = room.reach_end.min(room.ram_end_most).saturating_sub(kernel_end);
            Err(InitrdError::TooLarge { bytes, most })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        ram_start: 0,
        kernel_end: 0x0300_0123,
        ram_end: 512 << 20,
        ram_end_most: 3 << 30,
        reach_end: 0x8000_0000,
        have_mib: 512,
    };

    #[test]
    fn initrd_goes_to_the_top_of_ram_on_a_page() {
        assert_eq!(place(5000, ROOM), Ok(Placed { start: 0x1FFF_E000, bytes: 5000 }));
        assert_eq!(place(4096, ROOM), Ok(Placed { start: 0x1FFF_F000, bytes: 4096 }));
    }

    #[test]
    fn initrd_stays_below_what_the_kernel_reaches() {
        let room = Room { ram_end: 3 << 30, ..ROOM };
        assert_eq!(place(4096, room), Ok(Placed { start: 0x7FFF_F000, bytes: 4096 }));
    }

    #[test]
    fn initrd_that_would_overlap_the_kernel_says_how_much_memory_is_needed() {
        let bytes = (512 << 20) - 0x0300_0000;
        let refused = place(bytes, ROOM);
        assert_eq!(refused, Err(InitrdError::NeedsMemory { needed_mib: 514, have_mib: 512 }));
        assert!(refused.unwrap_err().to_string().contains("at least 514 MiB"));
        assert!(place(bytes - 4096, ROOM).is_ok());
    }

    #[test]
    fn memory_that_starts_higher_up_is_counted_from_its_start() {
        let room = Room {
            ram_start: 1 << 30,
            kernel_end: (1 << 30) + (32 << 20),
            ram_end: (1 << 30) + (64 << 20),
            reach_end: 4 << 30,
            have_mib: 64,
            ..ROOM
        };
        let refused = place(33 << 20, room);
        assert_eq!(refused, Err(InitrdError::NeedsMemory { needed_mib: 66, have_mib: 64 }));
        assert_eq!(place(32 << 20, room), Ok(Placed { start: 0x4200_0000, bytes: 32 << 20 }));
    }

    #[test]
    fn initrd_beyond_the_kernels_reach_is_too_large() {
        assert!(matches!(place(2 << 30, ROOM), Err(InitrdError::TooLarge { most: 0x7CFF_F000..=0x8000_0000, .. })));
        assert!(matches!(place(u64::MAX, ROOM), Err(InitrdError::TooLarge { .. })));
    }

    #[test]
    fn file_that_cannot_be_an_initrd_is_named() {
        assert_eq!(check(b""), Err(InitrdError::Empty));
        assert_eq!(check(&[0; 64]), Err(InitrdError::Unknown));
        assert!(matches!(check(b"\x7FELF"), Err(InitrdError::NotAnInitrd("a kernel or a program", _))));
        assert!(matches!(check(b"#!/bin/sh"), Err(InitrdError::NotAnInitrd("a script or another text", _))));
        assert!(matches!(check(b"hsqs\0"), Err(InitrdError::NotAnInitrd("a squashfs file system", _))));
        assert!(matches!(check(b"PK\x03\x04\0"), Err(InitrdError::NotAnInitrd("a zip archive", _))));
    }

    #[test]
    fn archives_compressed_or_not_are_taken() {
        for head in ["070701", "070702", "070707", "BZh9"] {
            assert_eq!(check(head.as_bytes()), Ok(()));
        }
        let heads: [&[u8]; 6] = [
            b"\x1F\x8B\x08",
            b"\xFD7zXZ\0",
            b"\x28\xB5\x2F\xFD",
            b"\x02\x21\x4C\x18",
            b"\x04\x22\x4D\x18",
            b"\x5D\0\0\0",
        ];
        for head in heads {
            assert_eq!(check(head), Ok(()));
        }
    }
}
