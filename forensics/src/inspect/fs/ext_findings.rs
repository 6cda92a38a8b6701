//! What the superblock of an ext file system says of a mount to come.

use super::ext::Ext;
use crate::inspect::bytes::{Raw, size, text, u16_at, uuid};
use crate::inspect::scene::{Scene, Words};
use wire::report::Confidence::{Certain, Likely};

/// Features by bit, of those that have a name in words here.
const INCOMPATIBLE: [(u32, &str); 16] = [
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extent"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x1_0000, "encrypt"),
    (0x2_0000, "casefold"),
];
/// Those that Linux 5.10 mounts (fs/ext4/ext4.h: EXT4_FEATURE_INCOMPAT_SUPP); later ones have no more.
const INCOMPATIBLE_KNOWN: u32 = 0x0003_e7d6;
/// Those with which Linux 5.10 writes (EXT4_FEATURE_RO_COMPAT_SUPP).
const READ_ONLY_KNOWN: u32 = 0x0000_a77f;
/// Orphans in a file of their own: since 5.15.
const ORPHAN_PRESENT: u32 = 0x1_0000;
const HAS_JOURNAL: u32 = 0x4;
const NEEDS_RECOVERY: u32 = 0x4;
const METADATA_CSUM: u32 = 0x400;
/// The mask of what makes it ext4.
const EXT4_ONLY: u32 = 0x0003_e7c0;

/// CRC-32C, bit by bit: it is only computed of one KiB.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Facts and findings of the superblock.
pub(crate) fn check(scene: &mut Scene<'_>, ext: &Ext<'_>, raw: &Raw<'_>) {
    let (compatible, incompatible, read_only) = (ext.field(92), ext.incompatible(), ext.field(100));
    let name = if incompatible & EXT4_ONLY != 0 || read_only & !0x7 != 0 {
        "ext4"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    scene.fact("format", name);
    let label = text(ext.superblock.get(120..136).unwrap_or_default());
    if !label.is_empty() {
        scene.fact("label", label);
    }
    scene.fact("uuid", uuid(ext.superblock.get(104..120).unwrap_or_default()));
    let bytes = ext.blocks().saturating_mul(ext.block_bytes());
    scene.fact("filesystem-size", size(bytes));
    let names: Vec<_> = INCOMPATIBLE.iter().filter(|(bit, _)| incompatible & bit != 0).map(|(_, name)| *name).collect();
    scene.fact("features", names.join(" "));
    features(scene, incompatible, read_only);
    geometry(scene, ext, raw, bytes);
    state(scene, ext, incompatible);
    if read_only & METADATA_CSUM != 0 {
        let own = ext.field(1020);
        let right = crc32c(ext.superblock.get(..1020).unwrap_or_default());
        if own != right {
            let words = Words {
                what: &"the superblock does not have the check sum that it says",
                why: &"the file system was damaged: `invalid superblock checksum.  Run e2fsck?`, and it is not mounted",
                remedy: &"repair it with e2fsck, or copy the image anew",
            };
            let evidence = [format!("it says {own:#010x}, computed {right:#010x}")];
            scene.fatal("ext4-superblock-checksum", Certain, &words, &evidence);
        }
    }
}

fn features(scene: &mut Scene<'_>, incompatible: u32, read_only: u32) {
    let unknown = incompatible & !INCOMPATIBLE_KNOWN;
    if unknown != 0 {
        let words = Words {
            what: &"the file system has features that Linux does not mount",
            why: &format_args!(
                "the kernel will say `Couldn't mount because of unsupported optional features ({unknown:x})`"
            ),
            remedy: &"make the file system anew without them (mke2fs -O ^FEATURE)",
        };
        scene.fatal(
            "ext4-unsupported-features",
            Certain,
            &words,
            &[format!("incompatible features {incompatible:#x}")],
        );
    }
    let orphans = read_only & ORPHAN_PRESENT != 0;
    let unknown = read_only & !READ_ONLY_KNOWN & !ORPHAN_PRESENT;
    if unknown != 0 || orphans {
        let words = Words {
            what: &if unknown != 0 {
                "the file system has features with which Linux does not write to it"
            } else {
                "the file system has orphans in a file, which only Linux 5.15 and later write to"
            },
            why: &"mounted read-write: `couldn't mount RDWR because of unsupported optional features`",
            remedy: &"mount it read-only (ro), or run e2fsck and tune2fs -O ^FEATURE",
        };
        scene.warn("ext4-read-only-features", Likely, &words, &[format!("read-only features {read_only:#x}")]);
    }
}

fn geometry(scene: &mut Scene<'_>, ext: &Ext<'_>, raw: &Raw<'_>, bytes: u64) {
    if bytes > raw.len() {
        let words = Words {
            what: &"the file system is larger than the image that it is in",
            why: &"the image was cut: `bad geometry: block count exceeds size of device`, and it is not mounted",
            remedy: &"copy the image anew and whole, or shrink the file system with resize2fs before cutting",
        };
        let evidence = [format!("the file system has {}, there are {}", size(bytes), size(raw.len()))];
        scene.fatal("filesystem-larger-than-image", Certain, &words, &evidence);
    }
    if ext.block_bytes() > 4096 {
        let words = Words {
            what: &format_args!("the file system has blocks of {}", size(ext.block_bytes())),
            why: &"a kernel with pages of 4 KiB does not mount it before 6.19",
            remedy: &"make it with blocks of 4 KiB (mke2fs -b 4096)",
        };
        scene.warn("ext4-large-blocks", Likely, &words, &[]);
    }
}

fn state(scene: &mut Scene<'_>, ext: &Ext<'_>, incompatible: u32) {
    let state = u16_at(&ext.superblock, 58);
    if state & 2 != 0 {
        let on_error = match u16_at(&ext.superblock, 60) {
            2 => "on an error it becomes read-only",
            3 => "on an error the kernel panics",
            _ => "on an error the kernel goes on",
        };
        let words = Words {
            what: &"the file system is marked as having errors",
            why: &format_args!("the kernel mounts it with a warning; {on_error}"),
            remedy: &"repair it with e2fsck -f",
        };
        scene.warn("ext4-errors", Certain, &words, &[format!("its state is {state:#x}")]);
    }
    if incompatible & NEEDS_RECOVERY != 0 {
        let words = Words {
            what: &"the file system was not unmounted: its journal must be replayed",
            why: &"on a read-only disk that is not possible: `write access unavailable, cannot proceed`, error -30",
            remedy: &"use an ephemeral disk, run e2fsck, or boot with rootflags=noload",
        };
        scene.warn("ext4-dirty-journal", Likely, &words, &["it has the feature needs_recovery".into()]);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc32c_is_that_of_the_standard_without_the_last_inversion() {
        assert_eq!(!super::crc32c(b"123456789"), 0xe306_9283);
    }
}
