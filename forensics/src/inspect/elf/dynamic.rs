//! What a program asks of the dynamic loader, and of the CPU.

use super::{Elf, PT_DYNAMIC, PT_GNU_PROPERTY, PT_NOTE};
use crate::inspect::bytes::{Bytes, before_nul, u32_at, u64_at, up_to};
use crate::inspect::limits::LIBRARIES;
use crate::inspect::trouble::Trouble;

/// Tags of dynamic entries (elf(5)).
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// The most bytes of a dynamic section that are read.
const DYNAMIC_BYTES: u64 = 64 << 10;
/// The most bytes of notes that are read.
const NOTE_BYTES: u64 = 64 << 10;
/// The longest name of a library that is read: longer ones are passed over.
const NAME_BYTES: usize = 1024;
/// The longest list of folders that is read.
const RUN_PATH_BYTES: usize = 16 << 10;

/// The note of GNU properties, and the property that says which level of x86-64 is needed (x86-64 psABI).
const NT_GNU_PROPERTY_TYPE_0: u32 = 5;
const GNU_PROPERTY_X86_ISA_1_NEEDED: u32 = 0xc000_8002;

/// What the dynamic section says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dynamic {
    /// The shared libraries that are needed, by name.
    pub(crate) needed: Vec<Vec<u8>>,
    /// Where they are looked for first: the RUNPATH, or else the RPATH.
    pub(crate) run_path: Vec<u8>,
    /// It is a RUNPATH, which is not handed on to the libraries.
    pub(crate) has_runpath: bool,
    /// It is longer than what was read of it.
    pub(crate) path_is_cut: bool,
    /// What a library is called.
    pub(crate) soname: Option<Vec<u8>>,
}

/// Reads the dynamic section; nothing if there is none.
pub(crate) fn read(elf: &Elf, bytes: &dyn Bytes) -> Result<Option<Dynamic>, Trouble> {
    let Some(segment) = elf.segment(PT_DYNAMIC) else { return Ok(None) };
    let length = usize::try_from(segment.file_bytes.min(DYNAMIC_BYTES)).unwrap_or_default();
    let table = up_to(bytes, segment.offset, length)?;
    let entries: Vec<(u64, u64)> = if elf.is_64 {
        table.chunks_exact(16).map(|entry| (u64_at(entry, 0), u64_at(entry, 8))).collect()
    } else {
        table.chunks_exact(8).map(|entry| (u32_at(entry, 0).into(), u32_at(entry, 4).into())).collect()
    };
    let entries: Vec<_> = entries.into_iter().take_while(|(tag, _)| *tag != 0).collect();
    let value = |wanted: u64| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
    let Some(strings) = value(DT_STRTAB).and_then(|address| elf.offset_of(address)) else {
        return Ok(Some(Dynamic::default()));
    };
    let name = |offset: u64, most: usize| -> Result<(Vec<u8>, bool), Trouble> {
        let bytes = up_to(bytes, strings.saturating_add(offset), most)?;
        Ok((before_nul(&bytes).to_vec(), bytes.len() == most && !bytes.contains(&0)))
    };
    let mut needed = Vec::new();
    for (_, offset) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED).take(LIBRARIES) {
        let (name, is_cut) = name(*offset, NAME_BYTES)?;
        needed.extend((!is_cut).then_some(name));
    }
    let (run_path, path_is_cut) = match value(DT_RUNPATH).or_else(|| value(DT_RPATH)) {
        Some(offset) => name(offset, RUN_PATH_BYTES)?,
        None => Default::default(),
    };
    let soname = value(DT_SONAME).map(|offset| name(offset, NAME_BYTES)).transpose()?.map(|(name, _)| name);
    Ok(Some(Dynamic { needed, run_path, has_runpath: value(DT_RUNPATH).is_some(), path_is_cut, soname }))
}

/// The bits of x86-64 levels that the file says it needs: 1 is the baseline, 2, 4 and 8 are v2, v3 and v4.
pub(crate) fn x86_levels(elf: &Elf, bytes: &dyn Bytes) -> Result<u32, Trouble> {
    let mut levels = 0;
    for segment in elf.segments.iter().filter(|segment| matches!(segment.kind, PT_NOTE | PT_GNU_PROPERTY)).take(16) {
        let length = usize::try_from(segment.file_bytes.min(NOTE_BYTES)).unwrap_or_default();
        let notes = up_to(bytes, segment.offset, length)?;
        let alignment = if segment.alignment == 8 { 8 } else { 4 };
        levels |= of_notes(&notes, alignment);
    }
    Ok(levels)
}

/// Rounds up.
fn align(value: usize, alignment: usize) -> usize {
    value.saturating_add(alignment.saturating_sub(1)) & !alignment.saturating_sub(1)
}

fn of_notes(mut notes: &[u8], alignment: usize) -> u32 {
    let mut levels = 0;
    while notes.len() >= 12 {
        let length = |offset| usize::try_from(u32_at(notes, offset)).unwrap_or(usize::MAX);
        let (name_bytes, body_bytes, kind) = (length(0), length(4), u32_at(notes, 8));
        let body_at = align(name_bytes.saturating_add(12), alignment);
        let next = align(body_at.saturating_add(body_bytes), alignment);
        let body = notes.get(body_at..body_at.saturating_add(body_bytes)).unwrap_or_default();
        if kind == NT_GNU_PROPERTY_TYPE_0 && notes.get(12..16) == Some(b"GNU\0") {
            levels |= of_properties(body);
        }
        notes = notes.get(next..).unwrap_or_default();
    }
    levels
}

fn of_properties(mut properties: &[u8]) -> u32 {
    let mut levels = 0;
    while properties.len() >= 8 {
        let length = usize::try_from(u32_at(properties, 4)).unwrap_or(usize::MAX);
        if u32_at(properties, 0) == GNU_PROPERTY_X86_ISA_1_NEEDED && length == 4 {
            levels |= u32_at(properties, 8);
        }
        properties = properties.get(align(length.saturating_add(8), 8)..).unwrap_or_default();
    }
    levels
}
