//! What a file is, by its first bytes: to load what can be loaded, and to say in one sentence what else it is.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::fields::{u16_at, u32_at};

/// Bytes of a file that are looked at.
pub const HEAD_BYTES: usize = 4096;

/// What a file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An x86 Linux image with a setup header.
    BzImage,
    /// An ELF file.
    Elf,
    /// An uncompressed arm64 Linux image.
    Arm64Image,
    /// An uncompressed RISC-V Linux image.
    RiscvImage,
    /// Compressed data.
    Compressed(Compression),
    /// A compressed kernel that EFI firmware unpacks (Linux, drivers/firmware/efi/libstub/zboot-header.S).
    Zboot,
    /// Another PE executable.
    Pe,
    /// A cpio archive.
    Cpio,
    /// A file system or disk image, by name.
    Disk(&'static str),
    /// An archive or package, by name.
    Archive(&'static str),
    /// A script or another text.
    Text,
    /// None of these.
    Unknown,
}

/// A compressed format and the command that undoes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The format's name.
    pub name: &'static str,
    /// The command.
    pub undo: &'static str,
}

/// The format that the kernel of arm64 is compressed with most often.
pub const GZIP: Compression = Compression { name: "gzip", undo: "gunzip" };

const COMPRESSED: &[(&[u8], Compression)] = &[
    (b"\x1F\x8B", GZIP),
    (b"\xFD7zXZ\0", Compression { name: "xz", undo: "xz -d" }),
    (b"\x28\xB5\x2F\xFD", Compression { name: "zstd", undo: "zstd -d" }),
    (b"BZh", Compression { name: "bzip2", undo: "bunzip2" }),
    (b"\x02\x21\x4C\x18", Compression { name: "lz4", undo: "lz4 -d" }),
    (b"\x04\x22\x4D\x18", Compression { name: "lz4", undo: "lz4 -d" }),
    (b"\x5D\0\0", Compression { name: "lzma", undo: "unlzma" }),
    (b"\x89LZO\0\r\n\x1A\n", Compression { name: "lzo", undo: "lzop -d" }),
];

const CPIO: &[&[u8]] = &[b"070701", b"070702", b"070707"];

/// (offset, magic, what it is)
const OTHERS: &[(usize, &[u8], Kind)] = &[
    (0x438, b"\x53\xEF", Kind::Disk("an ext2, ext3 or ext4 file system")),
    (0x400, b"\xE2\xE1\xF5\xE0", Kind::Disk("an EROFS file system")),
    (0, b"hsqs", Kind::Disk("a squashfs file system")),
    (0, b"XFSB", Kind::Disk("an XFS file system")),
    (0, b"QFI\xFB", Kind::Disk("a qcow2 disk image")),
    (0x200, b"EFI PART", Kind::Disk("a partitioned disk image")),
    (0x101, b"ustar", Kind::Archive("a tar archive")),
    (0, b"!<arch>\n", Kind::Archive("an ar archive or a Debian package")),
    (0, b"PK\x03\x04", Kind::Archive("a zip archive")),
    (0, b"ANDROID!", Kind::Archive("an Android boot image")),
    (0, b"\x27\x05\x19\x56", Kind::Archive("a U-Boot image (uImage)")),
    (0, b"\xD0\x0D\xFE\xED", Kind::Archive("a flattened device tree or FIT image")),
];

/// Looks at the first [`HEAD_BYTES`] of a file, or all of a shorter one.
#[must_use]
pub fn identify(head: &[u8]) -> Kind {
    let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // The image formats first: they may begin with "MZ", so that firmware can start them too.
    if has(0x202, b"HdrS") {
        return Kind::BzImage;
    }
    if has(0, b"\x7FELF") {
        return Kind::Elf;
    }
    if has(0x38, b"ARM\x64") {
        return Kind::Arm64Image;
    }
    if has(0x38, b"RSC\x05") {
        return Kind::RiscvImage;
    }
    if let Some((_, compression)) = COMPRESSED.iter().find(|(magic, _)| has(0, magic)) {
        return Kind::Compressed(*compression);
    }
    if CPIO.iter().any(|magic| has(0, magic)) {
        return Kind::Cpio;
    }
    if let Some((_, _, kind)) = OTHERS.iter().find(|(offset, magic, _)| has(*offset, magic)) {
        return *kind;
    }
    if has(0, b"MZ") && has(4, b"zimg") {
        return Kind::Zboot;
    }
    if has(0, b"MZ") {
        return Kind::Pe;
    }
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b'\x0C' | b' '..=b'~' | 0x80..);
    if has(0, b"#!") || (!head.is_empty() && head.iter().all(is_text)) {
        return Kind::Text;
    }
    if has(0x1FE, b"\x55\xAA") {
        return Kind::Disk("a disk image with a boot sector");
    }
    Kind::Unknown
}

/// The machine of a PE executable (PE format, COFF file header), as a name.
#[must_use]
pub fn pe_machine(head: &[u8]) -> Option<&'static str> {
    let header = usize::try_from(u32_at(head, 0x3C)?).ok()?;
    if !head.get(header..)?.starts_with(b"PE\0\0") {
        return None;
    }
    match u16_at(head, header.checked_add(4)?)? {
        0x014C => Some("32-bit x86"),
        0x8664 => Some("x86_64"),
        0xAA64 => Some("arm64"),
        0x01C0 | 0x01C2 | 0x01C4 => Some("32-bit Arm"),
        0x5032 | 0x5064 => Some("RISC-V"),
        0x6232 | 0x6264 => Some("LoongArch"),
        _ => None,
    }
}

/// The machine of an ELF file (`e_machine`), as a name.
#[must_use]
pub fn elf_machine(machine: u16) -> Option<&'static str> {
    match machine {
        2 | 18 | 43 => Some("SPARC"),
        3 => Some("32-bit x86"),
        8 => Some("MIPS"),
        20 => Some("32-bit PowerPC"),
        21 => Some("64-bit PowerPC"),
        22 => Some("S390"),
        40 => Some("32-bit Arm"),
        50 => Some("Itanium"),
        62 => Some("x86_64"),
        183 => Some("arm64"),
        243 => Some("RISC-V"),
        247 => Some("BPF"),
        258 => Some("LoongArch"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[offset..offset + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn formats_are_told_apart() {
        assert_eq!(identify(&with(0x202, b"HdrS")), Kind::BzImage);
        assert_eq!(identify(&with(0, b"\x7FELF")), Kind::Elf);
        assert_eq!(identify(&with(0x38, b"ARM\x64")), Kind::Arm64Image);
        assert_eq!(identify(&with(0, b"070701")), Kind::Cpio);
        assert_eq!(identify(&with(0x438, b"\x53\xEF")), Kind::Disk("an ext2, ext3 or ext4 file system"));
        assert_eq!(identify(&with(0, b"MZ")), Kind::Pe);
        assert_eq!(identify(&with(0, b"MZ\0\0zimg")), Kind::Zboot);
        assert_eq!(identify(b"#!/bin/sh\n\0"), Kind::Text);
        assert_eq!(identify("plain words, größer\n".as_bytes()), Kind::Text);
        assert_eq!(identify(&[0; 4096]), Kind::Unknown);
        assert_eq!(identify(&[]), Kind::Unknown);
        for (magic, compression) in COMPRESSED {
            assert_eq!(identify(&with(0, magic)), Kind::Compressed(*compression));
        }
    }

    #[test]
    fn image_that_firmware_can_start_too_is_still_a_bzimage() {
        let mut head = with(0x202, b"HdrS");
        head[..2].copy_from_slice(b"MZ");
        assert_eq!(identify(&head), Kind::BzImage);
    }

    #[test]
    fn pe_machine_is_named_and_a_wild_offset_is_not_followed() {
        let mut head = with(0x80, b"PE\0\0\x64\xAA");
        head[..2].copy_from_slice(b"MZ");
        head[0x3C] = 0x80;
        assert_eq!(pe_machine(&head), Some("arm64"));
        head[0x3C..0x40].copy_from_slice(&[0xFF; 4]);
        assert_eq!(pe_machine(&head), None);
    }
}
