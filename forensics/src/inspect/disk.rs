//! Partition tables: MBR with logical partitions, numbered as Linux numbers them, and GPT, which has a file of its own.

use super::bytes::{Bytes, Raw, exactly, size, u8_at, u16_at, u32_at};
use super::gpt;
use super::limits::PARTITIONS;
use super::scene::{Scene, Words};
use super::trouble::Trouble;
use wire::report::Confidence::Certain;

/// Bytes of a sector, as the disk of a guest has them.
pub(super) const SECTOR: u64 = 512;
/// Types of MBR partitions that hold further ones, and the one that stands for a GPT.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// The number in its name: 1 for /dev/vda1.
    pub(crate) number: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// As PARTUUID= names it, in lower case.
    pub(crate) uuid: String,
    /// As PARTLABEL= names it.
    pub(crate) label: String,
}

/// The table of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) kind: &'static str,
    pub(crate) partitions: Vec<Partition>,
    /// There were more than are looked at.
    pub(crate) more: bool,
}

/// Reads the partition table, if there is one.
pub(crate) fn read(scene: &mut Scene<'_>, raw: &Raw<'_>) -> Result<Option<Table>, Trouble> {
    let Some(mbr) = exactly(raw, 0, 512)? else { return Ok(None) };
    if u16_at(&mbr, 510) != 0xaa55 {
        return Ok(None);
    }
    let entries: Vec<_> = mbr.get(446..510).unwrap_or_default().chunks_exact(16).collect();
    if entries.iter().any(|entry| u8_at(entry, 0) & 0x7f != 0) {
        return Ok(None);
    }
    if entries.iter().any(|entry| u8_at(entry, 4) == PROTECTIVE) {
        return gpt::read(scene, raw).map(Some);
    }
    if entries.iter().all(|entry| u32_at(entry, 12) == 0) {
        return Ok(None);
    }
    mbr_table(raw, &mbr).map(Some)
}

fn mbr_table(raw: &Raw<'_>, mbr: &[u8]) -> Result<Table, Trouble> {
    let signature = u32_at(mbr, 440);
    let partition = |number: u32, start: u64, entry: &[u8]| Partition {
        number,
        offset: start.saturating_mul(SECTOR),
        length: u64::from(u32_at(entry, 12)).saturating_mul(SECTOR),
        uuid: format!("{signature:08x}-{number:02x}"),
        label: String::new(),
    };
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1_u32..).zip(mbr.get(446..510).unwrap_or_default().chunks_exact(16)) {
        if u32_at(entry, 12) == 0 {
            continue;
        }
        let start = u64::from(u32_at(entry, 8));
        if EXTENDED.contains(&u8_at(entry, 4)) {
            extended.get_or_insert(start);
        } else {
            partitions.push(partition(number, start, entry));
        }
    }
    let mut more = false;
    if let Some(base) = extended {
        // Each logical partition has a table of its own, which names the next table, relative to the first.
        let mut table = base;
        let mut number = 5;
        loop {
            if partitions.len() >= PARTITIONS {
                more = true;
                break;
            }
            let Some(sector) = exactly(raw, table.saturating_mul(SECTOR), 512)? else { break };
            let (own, next) = (sector.get(446..462).unwrap_or_default(), sector.get(462..478).unwrap_or_default());
            if u16_at(&sector, 510) != 0xaa55 || u32_at(own, 12) == 0 {
                break;
            }
            partitions.push(partition(number, table.saturating_add(u64::from(u32_at(own, 8))), own));
            number = number.saturating_add(1);
            if u32_at(next, 8) == 0 {
                break;
            }
            table = base.saturating_add(u64::from(u32_at(next, 8)));
        }
    }
    Ok(Table { kind: "MBR", partitions, more })
}

/// The facts of a table, and whether the partitions are in the image.
pub(crate) fn check(scene: &mut Scene<'_>, raw: &Raw<'_>, table: &Table) {
    scene.fact("format", format_args!("disk with {} and {} partitions", table.kind, table.partitions.len()));
    if table.more {
        let trouble = Trouble::Bound("a disk has more than 128 partitions");
        scene.trouble("the partition table", &trouble);
    }
    for partition in &table.partitions {
        let mut scene = scene.part(format_args!("partition {}", partition.number));
        scene.fact("size", size(partition.length));
        scene.fact("partuuid", &partition.uuid);
        if !partition.label.is_empty() {
            scene.fact("partlabel", &partition.label);
        }
        let end = partition.offset.saturating_add(partition.length);
        let mut last = [0];
        let inside = end > 0 && raw.read_at(end.saturating_sub(1), &mut last) == Ok(1);
        if !inside {
            // Of an MBR, the kernel makes a partition as short as the disk is.
            let dropped = table.kind != "MBR" || partition.offset >= raw.len();
            let words = Words {
                what: &format_args!("partition {} ends behind the end of the image", partition.number),
                why: &if dropped {
                    "the image was cut: the kernel has no such partition"
                } else {
                    "the image was cut: the kernel truncates the partition, and a file system that is larger is not mounted"
                },
                remedy: &"copy the image anew and whole",
            };
            let evidence = [format!("the partition ends at {end}, the image at {}", raw.len())];
            scene.warn("partition-behind-end", Certain, &words, &evidence);
        }
    }
}
