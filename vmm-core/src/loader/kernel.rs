//! Why a kernel image is refused, in sentences that say what would be right.

use super::fields::u16_at;
use super::magic::{Compression, Kind, elf_machine, pe_machine};

/// What a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootable {
    /// The machine's name.
    pub machine: &'static str,
    /// What would be right.
    pub right: &'static str,
}

/// Why a kernel image is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// No byte at all.
    #[error("the file is empty; {}", .0.right)]
    Empty(Bootable),
    /// A kernel or an executable for another machine.
    #[error("the kernel is for {0}, but this machine is {here}; {right}", here = .1.machine, right = .1.right)]
    OtherMachine(String, Bootable),
    /// Compressed data.
    #[error(
        "the file is compressed with {name}; decompress it first ({undo}): {right}",
        name = .0.name, undo = .0.undo, right = .1.right
    )]
    Compressed(Compression, Bootable),
    /// An EFI zboot image.
    #[error(
        "the file is an EFI zboot image (vmlinuz.efi), a compressed kernel that only EFI firmware unpacks; {}",
        .0.right
    )]
    Zboot(Bootable),
    /// A PE executable without a Linux header.
    #[error(
        "the file is an EFI executable without a Linux header; {}, from a unified kernel image its .linux section",
        .0.right
    )]
    Pe(Bootable),
    /// A file that is something else.
    #[error("the file is {0}, not a kernel; {right}", right = .1.right)]
    NotAKernel(&'static str, Bootable),
    /// A file that is nothing known.
    #[error("the file has no known kernel format; {}", .0.right)]
    Unknown(Bootable),
    /// The content of a compressed file.
    #[error("unpacked from gzip, {0}")]
    Unpacked(Box<Self>),

    /// A file that ends before what its headers announce.
    #[error("the {format} is truncated: it has {bytes} bytes and should have at least {expected}; copy the file again")]
    Truncated {
        /// What it is.
        format: &'static str,
        /// The size of the file.
        bytes: u64,
        /// The size that the headers announce.
        expected: u64,
    },
    /// Headers that contradict themselves.
    #[error("the {format} is corrupt: {what}; copy the file again")]
    Corrupt {
        /// What it is.
        format: &'static str,
        /// The contradiction.
        what: &'static str,
    },
    /// A bzImage from before boot protocol 2.12.
    #[error("the bzImage has boot protocol {major}.{minor:02}; at least 2.12 is needed, which Linux has since 3.8")]
    OldProtocol {
        /// The high byte of the version.
        major: u8,
        /// The low byte of the version.
        minor: u8,
    },
    /// A bzImage without a 64-bit entry point.
    #[error("the bzImage is a 32-bit kernel; give one that was built with CONFIG_64BIT")]
    Not64Bit,

    /// An ELF file that is no kernel.
    #[error("the ELF file is {0}, not a kernel; {right}", right = .1.right)]
    ElfNotAKernel(&'static str, Bootable),
    /// An ELF file with more segments than a kernel has.
    #[error("the ELF file has {got} program headers; a kernel has up to {most}")]
    TooManySegments {
        /// How many it has.
        got: u16,
        /// How many are allowed.
        most: u16,
    },
    /// A segment where the boot structures or no RAM are.
    #[error(
        "the ELF file asks to be loaded at {start:#x}, outside of the memory for kernels (0x100000 to 0xbfffffff); link \
         it to a physical address there"
    )]
    BadAddress {
        /// The physical address.
        start: u64,
    },
    /// An entry point that is not in the loaded file.
    #[error("the ELF file's entry point {entry:#x} is in none of its segments; it must be a physical address")]
    BadEntry {
        /// The entry point.
        entry: u64,
    },

    /// An arm64 kernel that expects its data the other way round.
    #[error("the Image is a big-endian kernel; give one that was built without CONFIG_CPU_BIG_ENDIAN")]
    BigEndian,

    /// Guest memory is too small for the kernel.
    #[error("the kernel needs at least {needed_mib} MiB of guest memory and the machine has {have_mib} MiB")]
    NeedsMemory {
        /// What would do.
        needed_mib: u64,
        /// What there is.
        have_mib: u64,
    },
    /// The kernel does not fit below 4 GiB.
    #[error("the kernel is too large for the memory that there is below 4 GiB")]
    TooLarge,
    /// The command line is longer than this kernel takes.
    #[error("the kernel takes a command line of up to {most} bytes and this one has {got}; shorten it")]
    CommandLine {
        /// Bytes in the command line.
        got: usize,
        /// Bytes that the kernel takes.
        most: usize,
    },
}

impl KernelError {
    /// The refusal of a file that is no image which this machine boots.
    #[must_use]
    pub fn wrong_format(kind: Kind, head: &[u8], here: Bootable) -> Self {
        match kind {
            _ if head.is_empty() => Self::Empty(here),
            Kind::BzImage => Self::OtherMachine("x86 (a bzImage)".to_owned(), here),
            Kind::Arm64Image => Self::OtherMachine("arm64 (an uncompressed Image)".to_owned(), here),
            Kind::RiscvImage => Self::OtherMachine("RISC-V (an uncompressed Image)".to_owned(), here),
            Kind::Elf => match u16_at(head, 18).and_then(elf_machine) {
                Some(machine) if machine == here.machine => Self::NotAKernel("an ELF file (vmlinux)", here),
                Some(machine) => Self::OtherMachine(format!("{machine} (an ELF file)"), here),
                None => Self::NotAKernel("an ELF file", here),
            },
            Kind::Compressed(compression) => Self::Compressed(compression, here),
            Kind::Zboot | Kind::Pe => match pe_machine(head) {
                Some(machine) if machine != here.machine => {
                    Self::OtherMachine(format!("{machine} (an EFI executable)"), here)
                }
                _ if kind == Kind::Zboot => Self::Zboot(here),
                _ => Self::Pe(here),
            },
            Kind::Cpio => Self::NotAKernel("a cpio archive (an initrd?)", here),
            Kind::Disk(what) | Kind::Archive(what) => Self::NotAKernel(what, here),
            Kind::Text => Self::NotAKernel("a script or another text", here),
            Kind::Unknown => Self::Unknown(here),
        }
    }
}

/// The guest memory, in MiB as it can be configured, that reaches up to `end`.
#[must_use]
pub fn memory_mib_for(end: u64) -> u64 {
    end.div_ceil(2 << 20).saturating_mul(2)
}
