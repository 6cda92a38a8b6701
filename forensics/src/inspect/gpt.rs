//! The partition table GPT (UEFI 2.10, 5.3), read as Linux does it (block/partitions/efi.c).

use super::bytes::{Raw, u8_at, u16_at, u32_at, u64_at, up_to, uuid};
use super::cmdline;
use super::disk::{Partition, SECTOR, Table};
use super::limits::PARTITIONS;
use super::scene::{Scene, Words};
use super::trouble::Trouble;
use wire::report::Confidence::{Certain, Likely};
use wire::report::Severity::{Fatal, Warning};

const MAGIC: &[u8] = b"EFI PART";
/// Bytes of a header, at the least, and of an entry.
const HEADER: usize = 92;
const ENTRY: usize = 128;
/// The sectors of other disks, of which an image may be a copy.
const LARGE_SECTOR: u64 = 4096;

/// Reads the GPT of a disk with a protective MBR. The kernel takes the one at the end only if it is told to by `gpt`.
pub(super) fn read(scene: &mut Scene<'_>, raw: &Raw<'_>) -> Result<Table, Trouble> {
    let first = table(raw, 1, SECTOR)?;
    if let Some((table, None)) = first {
        return Ok(table);
    }
    let last = (raw.len() / SECTOR).saturating_sub(1);
    let spare = table(raw, last, SECTOR)?.filter(|(_, fault)| fault.is_none());
    let told = scene.guest.cmdline.split_whitespace().take_while(|word| *word != "--").any(|word| word == "gpt");
    // Without a partition for its root, the guest may do well without any.
    let severity = if cmdline::names_a_partition(scene) { Fatal } else { Warning };
    if let Some((table, _)) = spare.as_ref().filter(|_| told) {
        let words = Words {
            what: &"the primary GPT is damaged; the kernel takes the one at the end of the disk, as `gpt` says",
            why: &"the table was damaged or changed by hand",
            remedy: &"repair it with sgdisk -e, or gdisk's recovery menu",
        };
        scene.warn("gpt-damaged", Certain, &words, &[]);
        return Ok(table.clone());
    }
    if let Some((table, Some(fault))) = first {
        let other = if spare.is_some() { "is whole" } else { "cannot be read either" };
        let words = Words {
            what: &format_args!("the primary GPT {fault}"),
            why: &"the kernel drops such a table, and looks at the one at the end of the disk only with `gpt` on its command line: there are no partitions",
            remedy: &"repair it with gdisk, or put gpt on the command line if the table at the end is whole",
        };
        scene.find(("gpt-damaged", severity, Likely), &words, &[format!("the table at the end of the disk {other}")]);
        return Ok(table);
    }
    if let Some((table, _)) = table(raw, 1, LARGE_SECTOR)? {
        let words = Words {
            what: &"the GPT is that of a disk with sectors of 4096 bytes",
            why: &"the guest's disk has sectors of 512 bytes, where the kernel finds no table: there are no partitions",
            remedy: &"make the image anew with sectors of 512 bytes, or give the file system alone as the image",
        };
        scene.find(("gpt-sector-size", severity, Likely), &words, &[]);
        return Ok(table);
    }
    let words = Words {
        what: &"the disk has a protective MBR but no GPT that can be read",
        why: &"its partitions do not exist for the kernel, and root= finds none",
        remedy: &"copy the image anew and whole, or repair the table with sgdisk",
    };
    scene.find(("gpt-missing", severity, Likely), &words, &[]);
    Ok(Table { kind: "GPT", partitions: Vec::new(), more: false })
}

/// Computes a check sum.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The table whose header is in this sector, if there is one, and why the kernel would not take it.
fn table(raw: &Raw<'_>, at: u64, sector: u64) -> Result<Option<(Table, Option<&'static str>)>, Trouble> {
    let mut header = up_to(raw, at.saturating_mul(sector), usize::try_from(sector).unwrap_or_default())?;
    if !header.starts_with(MAGIC) {
        return Ok(None);
    }
    let length = usize::try_from(u32_at(&header, 12)).unwrap_or(usize::MAX);
    let sum = u32_at(&header, 16);
    if let Some(field) = header.get_mut(16..20) {
        field.fill(0);
    }
    let (count, entry_bytes) = (u32_at(&header, 80), usize::try_from(u32_at(&header, 84)).unwrap_or(0));
    let looked_at = usize::try_from(count).unwrap_or(usize::MAX).min(PARTITIONS);
    let entries = up_to(raw, u64_at(&header, 72).saturating_mul(sector), ENTRY.saturating_mul(looked_at))?;
    let all = usize::try_from(count) == Ok(looked_at);
    let fault = if length < HEADER || header.get(..length).is_none_or(|header| crc32(header) != sum) {
        Some("has a header that does not have the check sum that it says")
    } else if u64_at(&header, 24) != at {
        Some("says that it is in another sector than it is")
    } else if u64_at(&header, 40).max(u64_at(&header, 48)) > (raw.len() / sector).saturating_sub(1) {
        Some("has usable sectors behind the end of the disk (was the image cut?)")
    } else if u64_at(&header, 48) < u64_at(&header, 40) {
        Some("has a last usable sector before the first")
    } else if entry_bytes != ENTRY {
        Some("has entries of a size that the kernel does not read")
    } else if all && crc32(&entries) != u32_at(&header, 88) {
        Some("has entries that do not have the check sum that it says")
    } else {
        None
    };
    let entries = if entry_bytes == ENTRY { entries.as_slice() } else { &[] };
    let partitions =
        (1_u32..).zip(entries.chunks_exact(ENTRY)).filter_map(|(number, entry)| partition(number, entry, sector));
    Ok(Some((Table { kind: "GPT", partitions: partitions.collect(), more: !all }, fault)))
}

/// The partition of an entry, unless it is empty.
fn partition(number: u32, entry: &[u8], sector: u64) -> Option<Partition> {
    if entry.get(..16)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let name: Vec<u16> = entry.get(56..)?.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect();
    let name = name.split(|unit| *unit == 0).next().unwrap_or_default();
    Some(Partition {
        number,
        offset: first.saturating_mul(sector),
        length: last.saturating_sub(first).saturating_add(1).saturating_mul(sector),
        uuid: guid(entry.get(16..32).unwrap_or_default()),
        label: String::from_utf16_lossy(name),
    })
}

/// A GUID: its first three numbers are little-endian.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    uuid(&ORDER.map(|index| u8_at(bytes, index)))
}
