//! ELF kernels: which segments go where, and how the kernel is entered.
//!
//! Distrusts every field: headers are copied once and checked in the copy, and nothing is loaded before all of it was.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::boot::HERE;
use crate::loader::LoadError;
use crate::loader::fields::{object, u32_at, u64_at};
use crate::loader::image::{Image, ImageError};
use crate::loader::kernel::KernelError;
use crate::loader::magic::elf_machine;
use linux_loader::elf::{
    ELFCLASS32, ELFCLASS64, ELFDATA2MSB, EM_X86_64, ET_CORE, ET_DYN, ET_EXEC, ET_REL, Elf64_Ehdr, Elf64_Nhdr,
    Elf64_Phdr, PT_INTERP, PT_LOAD, PT_NOTE,
};

/// The most program headers that are looked at; Linux has five.
const MOST_HEADERS: u16 = 64;
/// Bytes in `Elf64_Ehdr`.
const FILE_HEADER_BYTES: usize = size_of::<Elf64_Ehdr>();
/// Bytes in `Elf64_Phdr`.
const PROGRAM_HEADER_BYTES: usize = size_of::<Elf64_Phdr>();
/// The most bytes of a note segment that are looked at.
const MOST_NOTE_BYTES: usize = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`, of the name "Xen": the PVH entry point.
const PVH_NOTE: u32 = 18;

const FORMAT: &str = "ELF file";

/// A part of the file and its place in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The offset in the file.
    pub offset: u64,
    /// The bytes in the file.
    pub file_bytes: u64,
    /// The guest-physical address.
    pub start: u64,
    /// The guest-physical address after the last byte; what the file does not fill is zero.
    pub end: u64,
}

/// An ELF kernel, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// What is to be loaded, by address and apart from each other; at least one.
    pub segments: Vec<Segment>,
    /// `e_entry`, in one of the segments unless there is a PVH entry point.
    pub entry: u64,
    /// The PVH entry point, in one of the segments.
    pub pvh_entry: Option<u32>,
}

impl Elf {
    /// Reads and checks the headers of an ELF file, whose segments must lie in `first..last`.
    ///
    /// # Errors
    /// When the file cannot be read, or is no kernel that can be loaded there.
    pub fn parse(image: &Image, first: u64, last: u64) -> Result<Self, LoadError> {
        let header: Elf64_Ehdr =
            object(&image.read(0, FILE_HEADER_BYTES)?).ok_or_else(|| truncated(image.bytes(), 64))?;
        check_ident(&header)?;
        let headers = program_headers(image, &header)?;
        let mut segments = Vec::new();
        let mut notes = Vec::new();
        for header in headers.chunks_exact(PROGRAM_HEADER_BYTES).filter_map(object::<Elf64_Phdr>) {
            match header.p_type {
                PT_LOAD | PT_NOTE => check_file_range(&header, image.bytes())?,
                PT_INTERP => return Err(KernelError::ElfNotAKernel("a program of an operating system", HERE).into()),
                _ => {}
            }
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => segments.push(segment(&header, first, last)?),
                PT_NOTE => notes.push(header),
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(KernelError::ElfNotAKernel("without a segment to load", HERE).into());
        }
        segments.sort_unstable_by_key(|segment| segment.start);
        // This also bounds the bytes to copy by the size of memory.
        if segments.array_windows().any(|[one, next]| one.end > next.start) {
            return Err(corrupt("two of its segments overlap in memory").into());
        }
        let mut pvh_entry = None;
        for note in notes {
            if pvh_entry.is_none() {
                let limit = usize::try_from(note.p_filesz).unwrap_or(usize::MAX).min(MOST_NOTE_BYTES);
                pvh_entry = find_pvh_entry(&image.read(note.p_offset, limit)?, note.p_align);
            }
        }
        let entry = header.e_entry;
        let used = pvh_entry.map_or(entry, u64::from);
        if !segments.iter().any(|segment| (segment.start..segment.end).contains(&used)) {
            return Err(KernelError::BadEntry { entry: used }.into());
        }
        Ok(Self { segments, entry, pvh_entry })
    }

    /// The guest-physical address after the highest segment.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).max().unwrap_or(0)
    }
}

fn corrupt(what: &'static str) -> KernelError {
    KernelError::Corrupt { format: FORMAT, what }
}

fn truncated(bytes: u64, expected: u64) -> KernelError {
    KernelError::Truncated { format: FORMAT, bytes, expected }
}

/// ELF-64 object file format, version 1.5, §3: `e_ident`, `e_type`, `e_machine`.
fn check_ident(header: &Elf64_Ehdr) -> Result<(), KernelError> {
    let [_, _, _, _, class, endian, ..] = header.e_ident;
    let machine = if endian == ELFDATA2MSB { header.e_machine.swap_bytes() } else { header.e_machine };
    let name = || elf_machine(machine).map_or_else(|| format!("ELF machine {machine}"), str::to_owned);
    match class {
        ELFCLASS32 => return Err(KernelError::OtherMachine(format!("{} (a 32-bit ELF file)", name()), HERE)),
        ELFCLASS64 => {}
        _ => return Err(corrupt("its class is neither 32 nor 64 bits")),
    }
    if machine != EM_X86_64 || endian == ELFDATA2MSB {
        return Err(KernelError::OtherMachine(format!("{} (an ELF file)", name()), HERE));
    }
    match header.e_type {
        ET_EXEC | ET_DYN => Ok(()),
        ET_REL => Err(KernelError::ElfNotAKernel("an object file or a kernel module", HERE)),
        ET_CORE => Err(KernelError::ElfNotAKernel("a core dump", HERE)),
        _ => Err(corrupt("its type is none that can be loaded")),
    }
}

/// The program headers, as they are in the file.
fn program_headers(image: &Image, header: &Elf64_Ehdr) -> Result<Vec<u8>, LoadError> {
    let (count, bytes) = (header.e_phnum, image.bytes());
    if count > 0 && usize::from(header.e_phentsize) != PROGRAM_HEADER_BYTES {
        return Err(corrupt("its program headers have another size than 56 bytes").into());
    }
    if count > MOST_HEADERS {
        return Err(KernelError::TooManySegments { got: count, most: MOST_HEADERS }.into());
    }
    let length = usize::from(count).saturating_mul(PROGRAM_HEADER_BYTES);
    let end = u64::try_from(length).ok().and_then(|length| header.e_phoff.checked_add(length));
    let end = end.ok_or_else(|| corrupt("its program headers are beyond any file"))?;
    if end > bytes {
        return Err(truncated(bytes, end).into());
    }
    let headers = image.read(header.e_phoff, length)?;
    if headers.len() != length {
        return Err(ImageError::Shrunk.into());
    }
    Ok(headers)
}

fn check_file_range(header: &Elf64_Phdr, image_bytes: u64) -> Result<(), KernelError> {
    let end = header.p_offset.checked_add(header.p_filesz);
    match end.ok_or_else(|| corrupt("a segment is beyond any file"))? {
        end if end > image_bytes => Err(truncated(image_bytes, end)),
        _ => Ok(()),
    }
}

fn segment(header: &Elf64_Phdr, first: u64, last: u64) -> Result<Segment, KernelError> {
    let &Elf64_Phdr { p_paddr: start, p_offset: offset, p_filesz: file_bytes, .. } = header;
    if file_bytes > header.p_memsz {
        return Err(corrupt("a segment is larger in the file than in memory"));
    }
    let end = start.checked_add(header.p_memsz).filter(|end| start >= first && *end <= last);
    Ok(Segment { offset, file_bytes, start, end: end.ok_or(KernelError::BadAddress { start })? })
}

/// Looks for the PVH entry point in the notes of a segment; notes that do not parse are as good as none.
fn find_pvh_entry(notes: &[u8], alignment: u64) -> Option<u32> {
    // GNU property notes are aligned to 8 bytes, all others to 4, whatever the specification says of 64-bit files.
    let alignment = if alignment == 8 { 8 } else { 4 };
    let mut rest = notes;
    loop {
        let header: Elf64_Nhdr = object(rest)?;
        let name_bytes = usize::try_from(header.n_namesz).ok()?;
        let content_bytes = usize::try_from(header.n_descsz).ok()?;
        let name = rest.get(12..)?.get(..name_bytes)?;
        let content_start = 12_usize.checked_add(name_bytes)?.checked_next_multiple_of(alignment)?;
        let content = rest.get(content_start..)?.get(..content_bytes)?;
        if header.n_type == PVH_NOTE && name == b"Xen\0" {
            return match content_bytes {
                4 => u32_at(content, 0),
                8 => u64_at(content, 0).and_then(|entry| u32::try_from(entry).ok()),
                _ => None,
            };
        }
        let end = content_start.checked_add(content_bytes)?.checked_next_multiple_of(alignment)?;
        rest = rest.get(end..)?;
    }
}
